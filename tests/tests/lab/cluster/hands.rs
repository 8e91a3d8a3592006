//! What people do to a volume in use by hand, pools that are full, and a broker that is away: the guest writes on, the culprit is
//! named, and when it is gone the rest goes on by itself.

use anyhow::ensure;
use img_storage_tests::lab::{
    Guest, Lab,
    cluster::{Cluster, DEVICE, DONE, VOLUME, Writer, ZVOL, holds},
};
use std::time::Duration;

/// Fills a pool but for so many KiB.
async fn fill(guest: &Guest, pool: &str, left: u64) -> anyhow::Result<()> {
    // Reserved room is as good as written, and quicker.
    let script = format!(
        "avail=$(zfs get -Hpo value available {pool}); zfs create -o reservation=$((avail - {left} * 1024)) {pool}/ballast"
    );
    guest.check(&script).await?;
    Ok(())
}

async fn make_room(guest: &Guest, pool: &str) -> anyhow::Result<()> {
    guest.check(&format!("zfs destroy {pool}/ballast")).await?;
    Ok(())
}

/// Nobody loses anything by them.
pub async fn hands_meddle(lab: &Lab) -> anyhow::Result<()> {
    let cluster = Cluster::start(lab).await?;
    let (nas, node) = (lab.guest("nas")?, lab.guest("node1")?);
    cluster.ask(&format!("create {VOLUME} --size 64M")).await?;
    cluster.ask(&format!("map {VOLUME} node1")).await?;
    let writer = Writer::on(&cluster, "node1").await?;

    // The target goes under the guest, which waits for it.
    let remove = "targetcli /iscsi delete $(ls /sys/kernel/config/target/iscsi | grep img-storage)";
    nas.check_within(remove, Duration::from_secs(90)).await?;
    writer.works().await?;

    // No room for the local copy: the guest stays where it is.
    fill(node, "vmpool", 8 << 10).await?;
    cluster.ask(&format!("map {VOLUME} node1 --sync")).await?;
    cluster.stuck(&["space", "room"]).await?;
    writer.works().await?;
    make_room(node, "vmpool").await?;
    cluster.until("local").await?;
    writer.works().await?;

    // No room for what comes home: it stays on the node, and comes when there is some.
    fill(nas, "tank", 128).await?;
    cluster.stuck(&["space", "room"]).await?;
    writer.works().await?;
    make_room(nas, "tank").await?;
    cluster.ask(&format!("sync {VOLUME}")).await?;

    // It grows under the guest.
    cluster.ask(&format!("resize {VOLUME} 96M --timeout 230s")).await?;
    node.wait_for(&format!("test $(blockdev --getsize64 {DEVICE}) = {}", 96 << 20), DONE).await?;
    writer.works().await?;

    // Nobody hears of anybody. What comes home comes later.
    cluster.broker_away().await?;
    writer.works().await?;
    cluster.kill("node1").await?;
    cluster.start_one("node1", "node1", "vm").await?;
    writer.works().await?;
    cluster.broker_back().await?;
    cluster.until("local").await?;
    cluster.ask(&format!("sync {VOLUME}")).await?;

    // What NAS and node have in common is destroyed: nothing is ended, nothing is begun anew, and it is said.
    // One that the NAS drops at this moment is gone as well.
    let destroy = "for s in $(zfs list -Ht snapshot -o name tank/vol1); do \
                   zfs holds -H $s | while read -r name tag rest; do zfs release $tag $s || true; done; \
                   zfs destroy $s || ! zfs list $s > /dev/null 2>&1; done";
    nas.check(destroy).await?;
    cluster.stuck(&["no snapshot of this volume"]).await?;
    writer.works().await?;
    writer.off().await?;
    let known = writer.known().await?;
    holds(&cluster, "node1", DEVICE, &known).await?;
    let unmapped = cluster.try_ask(&format!("unmap {VOLUME} --timeout 10s")).await?;
    ensure!(unmapped.code != 0, "what the node alone has was given up: {}", unmapped.stdout);
    holds(&cluster, "node1", "/dev/zvol/vmpool/images/nas.tank.vol1", &known).await?;
    // The way out of docs/kernel-plane.md: the node's newest snapshot is sent whole, by hand.
    node.check(
        "zfs send -L -c $(zfs list -Hd 1 -t snapshot -o name -s createtxg vmpool/images/nas.tank.vol1 | tail -n 1) > /tmp/whole",
    )
    .await?;
    let carried = tempfile::NamedTempFile::new()?;
    node.get("/tmp/whole", carried.path()).await?;
    nas.put(carried.path(), "/tmp/whole").await?;
    nas.check(
        "id=$(zfs get -Ho value img-storage:volume tank/vol1); zfs inherit img-storage:volume tank/vol1; zfs rename tank/vol1 tank/vol1-old
         zfs receive -u -o volmode=dev -o snapdev=hidden -o img-storage:volume=$id tank/vol1 < /tmp/whole",
    )
    .await?;
    cluster.ask(&format!("unmap {VOLUME}")).await?;
    holds(&cluster, "nas", ZVOL, &known).await?;
    writer.forget().await?;
    cluster.end().await
}
