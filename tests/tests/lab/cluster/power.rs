//! Machines that lose their power, with what they had not flushed, and networks that go away.

use img_storage_tests::lab::{
    Lab,
    cluster::{Cluster, DEVICE, VOLUME, Writer, ZVOL, holds},
};
use std::time::Duration;

/// The NAS under a running guest; the node with writes that are nowhere else; the network while the volume is copied.
pub async fn machines_lose_power(lab: &Lab) -> anyhow::Result<()> {
    let cluster = Cluster::start(lab).await?;
    cluster.ask(&format!("create {VOLUME} --size 64M")).await?;
    cluster.ask(&format!("map {VOLUME} node1")).await?;
    let writer = Writer::on(&cluster, "node1").await?;
    let (nas, node) = (cluster.guest("nas")?, cluster.guest("node1")?);

    // Its guest waits, and goes on as if nothing had been.
    nas.cut_power().await?;
    nas.start().await?;
    cluster.after_boot("nas").await?;
    writer.works().await?;

    // The copy goes on when the network is back; the guest on the NAS's volume waits for it.
    cluster.ask(&format!("map {VOLUME} node1 --sync")).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    node.link(false).await?;
    tokio::time::sleep(Duration::from_secs(8)).await;
    node.link(true).await?;
    cluster.until("local").await?;
    writer.works().await?;

    // What was written since the last write-back is on the node alone.
    node.cut_power().await?;
    node.start().await?;
    cluster.after_boot("node1").await?;
    cluster.until("local").await?;
    let known = writer.known().await?;
    holds(&cluster, "node1", DEVICE, &known).await?;
    cluster.ask(&format!("unmap {VOLUME}")).await?;
    holds(&cluster, "nas", ZVOL, &known).await?;
    writer.forget().await?;
    cluster.end().await
}
