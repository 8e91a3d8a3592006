//! A node that comes back to a volume which is somebody else's by now.

use anyhow::ensure;
use img_storage_tests::lab::{
    Lab,
    cluster::{Cluster, DEVICE, DONE, VOLUME, Writer},
};
use std::time::Duration;

/// A node is cut off with a write under way, its mapping is ended by force and the volume mapped to the other one. When it is back, nothing of what it
/// had under way arrives, it lets go, and it cannot log in to what is the other's.
pub async fn an_old_session_is_locked_out(lab: &Lab) -> anyhow::Result<()> {
    let cluster = Cluster::start(lab).await?;
    let (nas, old, new) = (cluster.guest("nas")?, cluster.guest("node1")?, cluster.guest("node2")?);
    cluster.ask(&format!("create {VOLUME} --size 64M")).await?;
    cluster.ask(&format!("map {VOLUME} node1")).await?;
    let writer = Writer::on(&cluster, "node1").await?;
    old.link(false).await?;
    // One write waits in the kernel for its disk to come back; no other follows it.
    old.wait_for("p=$(pgrep -x dd) && sleep 2 && test \"$(pgrep -x dd)\" = \"$p\"", DONE).await?;
    writer.stop().await?;
    cluster.ask(&format!("unmap {VOLUME} --force --yes")).await?;
    cluster.ask(&format!("map {VOLUME} node2")).await?;
    new.check_within(
        &format!(
            "head -c 64M /dev/zero | tr '\\0' x | dd of={DEVICE} bs=1M iflag=fullblock oflag=direct conv=notrunc,fsync status=none"
        ),
        DONE,
    )
    .await?;
    let sum = format!("dd if={DEVICE} bs=1M iflag=direct status=none | md5sum");
    let before = new.check_within(&sum, DONE).await?;

    old.link(true).await?;
    old.wait_for("test ! -e /dev/mapper/nas.tank.vol1 && test -z \"$(ls /sys/class/iscsi_session 2> /dev/null)\"", DONE).await?;
    writer.off().await?;
    tokio::time::sleep(Duration::from_secs(5)).await;
    ensure!(new.check_within(&sum, DONE).await? == before, "what a node had under way that was cut off has arrived");

    // Nor is it let in by hand: the target knows one initiator.
    let target = nas.check("ls /sys/kernel/config/target/iscsi | grep iqn.2026").await?;
    let log_in = format!(
        "iscsiadm -m node -T {0} -p 10.77.0.2 -o new > /dev/null && iscsiadm -m node -T {0} -p 10.77.0.2 --login",
        target.trim()
    );
    let refused = old.run_within(&log_in, DONE).await?;
    ensure!(refused.code != 0, "a node logged in to what is another's: {}", refused.stdout);
    old.check(&format!(
        "iscsiadm -m node -T {} -o delete; test -z \"$(ls /sys/class/iscsi_session 2> /dev/null)\"",
        target.trim()
    ))
    .await?;

    cluster.ask(&format!("unmap {VOLUME}")).await?;
    writer.forget().await?;
    cluster.end().await
}
