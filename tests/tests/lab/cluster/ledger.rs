//! A node that comes back with a ledger from a backup, in the middle of a switch.

use img_storage_tests::lab::{
    Guest, Lab,
    cluster::{Cluster, DEVICE, DIR, DONE, VOLUME, Writer, ZVOL, holds},
};

/// What the guest wrote last is in the overlay alone, and the ledger is older than that. The overlay is kept, and the bare disk is not put up
/// without it; with the newest ledger everything goes on.
pub async fn an_old_ledger_destroys_nothing(lab: &Lab) -> anyhow::Result<()> {
    let cluster = Cluster::start(lab).await?;
    let node = cluster.guest("node1")?;
    cluster.ask(&format!("create {VOLUME} --size 64M")).await?;
    cluster.ask(&format!("map {VOLUME} node1")).await?;
    let writer = Writer::on(&cluster, "node1").await?;
    cluster.kill("node1").await?;
    keep(node, "old").await?;
    cluster.start_one("node1", "node1", "vm").await?;
    cluster.ask(&format!("map {VOLUME} node1 --sync")).await?;
    let switched = "grep -qm1 'table=Overlay(Remote)' < <(exec tail -n +1 -F /run/lab/node1.all 2> /dev/null)";
    node.check_within(&format!("{switched}; pkill -9 -x img-storage"), DONE).await?;
    writer.works().await?;
    writer.off().await?;
    let known = writer.known().await?;
    holds(&cluster, "node1", DEVICE, &known).await?;

    // As if the machine had been started again meanwhile.
    node.check("dmsetup remove --retry nas.tank.vol1").await?;
    keep(node, "newest").await?;
    put_back(node, "old").await?;
    cluster.start_one("node1", "node1", "vm").await?;
    cluster.stuck(&["is its ledger an old one", "is it an old one"]).await?;
    node.check("zfs list vmpool/images/nas.tank.vol1-overlay > /dev/null; test -z \"$(dmsetup ls | grep nas.tank || true)\"")
        .await?;

    cluster.kill("node1").await?;
    put_back(node, "newest").await?;
    cluster.start_one("node1", "node1", "vm").await?;
    cluster.until("local").await?;
    holds(&cluster, "node1", DEVICE, &known).await?;
    cluster.ask(&format!("unmap {VOLUME}")).await?;
    holds(&cluster, "nas", ZVOL, &known).await?;
    writer.forget().await?;
    cluster.end().await
}

/// Keeps a copy of the ledger of a daemon that does not run.
async fn keep(node: &Guest, name: &str) -> anyhow::Result<()> {
    node.check(&format!("rm -rf {DIR}-{name}; cp -a {DIR}-node1 {DIR}-{name}")).await.map(drop)
}

async fn put_back(node: &Guest, name: &str) -> anyhow::Result<()> {
    node.check(&format!("rm -rf {DIR}-node1; cp -a {DIR}-{name} {DIR}-node1")).await.map(drop)
}
