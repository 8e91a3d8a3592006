//! A NAS with a pool of each plane, and a network that is away for minutes.

use anyhow::ensure;
use img_storage_tests::lab::{
    Guest, Lab,
    cluster::{Cluster, DEVICE, DIR, DONE, SHELF, VOLUME, Writer, ZVOL, holds},
};
use std::time::Duration;

/// The volume in the directory pool.
const FILE: &str = "shelf/vol2";
/// Longer than open-iscsi, ssh and the bus wait by themselves.
const MINUTES: Duration = Duration::from_secs(130);

/// A volume of each plane lives on one NAS and one node; the network to the node is away for minutes while the one is copied and its guest
/// waits, and again while both guests work locally; and a node that serves one plane says so of the other.
pub async fn both_planes_and_minutes_without_network(lab: &Lab) -> anyhow::Result<()> {
    let cluster = Cluster::start(lab).await?;
    let (nas, node) = (cluster.guest("nas")?, cluster.guest("node1")?);
    cluster.ask(&format!("create {VOLUME} --size 64M")).await?;
    cluster.ask(&format!("create {FILE} --size 64M")).await?;
    let disk = cluster.ask(&format!("map {FILE} node1")).await?;
    qemu_io(node, &disk, "write -P 0x11 0 8M").await?;
    cluster.ask(&format!("map {FILE} node1 --sync --wait local --timeout 230s")).await?;
    qemu_io(node, &disk, "write -P 0x22 4M 8M").await?;

    cluster.ask(&format!("map {VOLUME} node1")).await?;
    let writer = Writer::on(&cluster, "node1").await?;
    cluster.ask(&format!("map {VOLUME} node1 --sync")).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    node.link(false).await?;
    tokio::time::sleep(MINUTES).await;
    // The guest on the storage daemon has everything where it is.
    qemu_io(node, &disk, "write -P 0x33 8M 8M").await?;
    node.link(true).await?;
    cluster.until("local").await?;
    writer.works().await?;

    node.link(false).await?;
    writer.works().await?;
    tokio::time::sleep(MINUTES / 4).await;
    writer.works().await?;
    node.link(true).await?;
    cluster.ask(&format!("sync {VOLUME}")).await?;
    writer.off().await?;
    let known = writer.known().await?;
    holds(&cluster, "node1", DEVICE, &known).await?;
    cluster.ask(&format!("unmap {VOLUME}")).await?;
    holds(&cluster, "nas", ZVOL, &known).await?;
    writer.forget().await?;

    cluster.ask(&format!("unmap {FILE}")).await?;
    let file = nas.check(&format!("ls {SHELF}/vol2/*.raw")).await?;
    for what in ["read -P 0x11 0 4M", "read -P 0x22 4M 4M", "read -P 0x33 8M 8M"] {
        qemu_io(nas, &file, what).await?;
    }
    one_plane_only(&cluster, nas).await?;
    for volume in [VOLUME, FILE] {
        cluster.ask(&format!("delete {volume} --yes")).await?;
    }
    cluster.end().await
}

/// A node without a dataset for local copies serves the one plane, and a volume of the other is not mapped to it.
async fn one_plane_only(cluster: &Cluster<'_>, nas: &Guest) -> anyhow::Result<()> {
    let node = cluster.guest("node2")?;
    cluster.kill("node2").await?;
    node.check("sed -i /^zfs/d /etc/img-storage/node2.toml").await?;
    cluster.begin("node2").await?;
    let shown =
        format!("img-storage --dir {DIR} hosts -o json | tr -d ' \\n' | grep -q '\"node2\"[^}}]*\"planes\":\\[\"qemu\"\\]'");
    nas.wait_for(&shown, DONE).await?;
    let refused = cluster.try_ask(&format!("map {VOLUME} node2")).await?;
    ensure!(
        refused.code != 0 && refused.stderr.contains("node2 does not serve the kernel plane"),
        "a volume was mapped where it cannot be: {refused:?}"
    );
    let disk = cluster.ask(&format!("map {FILE} node2")).await?;
    qemu_io(node, &disk, "read -P 0x33 8M 8M").await?;
    cluster.ask(&format!("unmap {FILE}")).await.map(drop)
}

/// One command of qemu-io, which fails when what it reads is not what it is told.
async fn qemu_io(guest: &Guest, disk: &str, command: &str) -> anyhow::Result<()> {
    let said = guest.check_within(&format!("qemu-io -f raw -c '{command}' -c flush '{}' 2>&1", disk.trim()), DONE).await?;
    ensure!(!said.contains("failed"), "{command} on {}: {said}", guest.name());
    Ok(())
}
