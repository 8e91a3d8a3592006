//! The life of a volume, with a guest that writes all the time.

use anyhow::{Context as _, ensure};
use img_storage_tests::lab::{
    Lab,
    cluster::{Cluster, DEVICE, DONE, VOLUME, Writer, ZVOL, holds},
};
use std::time::Instant;

/// Remote, copied, local, written back, unmapped; on the other node; brought back; and again on the first, which has a warm copy.
pub async fn a_volume_lives(lab: &Lab) -> anyhow::Result<()> {
    let cluster = Cluster::start(lab).await?;
    cluster.ask(&format!("create {VOLUME} --size 64M")).await?;
    let begun = Instant::now();
    cluster.ask(&format!("map {VOLUME} node1")).await?;
    println!("  map to device: {:.1} s", begun.elapsed().as_secs_f64());
    let writer = Writer::on(&cluster, "node1").await?;
    let begun = Instant::now();
    cluster.ask(&format!("map {VOLUME} node1 --sync --wait local --timeout 230s")).await?;
    println!("  copied and switched: {:.1} s", begun.elapsed().as_secs_f64());
    cluster.until("local").await?;
    writer.works().await?;
    ensure!(sessions(&cluster, "node1").await? == 0, "the node is still logged in");
    for _ in 0..2 {
        cluster.ask(&format!("sync {VOLUME}")).await?;
        writer.works().await?;
    }
    writer.off().await?;
    let known = writer.known().await?;
    holds(&cluster, "node1", DEVICE, &known).await?;
    cluster.ask(&format!("unmap {VOLUME}")).await?;
    holds(&cluster, "nas", ZVOL, &known).await?;
    writer.forget().await?;

    cluster.ask(&format!("map {VOLUME} node2 --sync --wait local --timeout 230s")).await?;
    holds(&cluster, "node2", DEVICE, &known).await?;
    let moved =
        "grep -q 'goes on, on the local copy' /run/lab/node2.all; ! grep 'the guest.s writes: OverRemote' /run/lab/node2.all";
    cluster.guest("node2")?.check(moved).await.context("nobody wrote, and yet there was an overlay")?;
    let writer = Writer::on(&cluster, "node2").await?;
    let begun = Instant::now();
    cluster.ask(&format!("bring-back {VOLUME}")).await?;
    println!("  brought back: {:.1} s", begun.elapsed().as_secs_f64());
    cluster.until("remote").await?;
    writer.works().await?;
    writer.off().await?;
    let later = writer.known().await?;
    cluster.ask(&format!("unmap {VOLUME}")).await?;
    holds(&cluster, "nas", ZVOL, &later).await?;

    // And whoever moves it is killed in the middle.
    let node = cluster.guest("node1")?;
    let from = node.check("wc -l < /run/lab/node1.all").await?.trim().parse::<u64>()? + 1;
    let begun = Instant::now();
    cluster.ask(&format!("map {VOLUME} node1 --sync")).await?;
    let moves = "nothing is written: the guest moves";
    let script = format!("grep -qm1 '{moves}' < <(exec tail -n +{from} -F /run/lab/node1.all); pkill -9 -x img-storage");
    node.check_within(&script, DONE).await.with_context(|| format!("node1 never said {moves:?}"))?;
    cluster.start_one("node1", "node1", "vm").await?;
    cluster.until("local").await?;
    println!("  on a warm copy: {:.1} s", begun.elapsed().as_secs_f64());
    holds(&cluster, "node1", DEVICE, &later).await?;
    cluster.ask(&format!("unmap {VOLUME}")).await?;
    cluster.ask(&format!("delete {VOLUME} --yes")).await?;
    let left = cluster
        .guest("nas")?
        .check("zfs list -H -t all -o name -r tank; ls /sys/kernel/config/target/iscsi | grep iqn || true")
        .await?;
    ensure!(left.trim() == "tank", "the NAS still has {left}");
    cluster.end().await
}

async fn sessions(cluster: &Cluster<'_>, node: &str) -> anyhow::Result<usize> {
    Ok(cluster.guest(node)?.check("ls /sys/class/iscsi_session 2> /dev/null | wc -l").await?.trim().parse()?)
}
