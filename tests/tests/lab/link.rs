//! The network that is tested goes away and comes back; the way in stays.

use anyhow::ensure;
use img_storage_tests::lab::Lab;
use std::time::Duration;

/// The other guests do not reach one whose link is down; commands do. Then they do again.
pub async fn goes_and_comes(lab: &Lab) -> anyhow::Result<()> {
    let (nas, node) = (lab.guest("nas")?, lab.guest("node1")?);
    let ping = format!("ping -c 1 -W 2 {}", nas.address());
    node.wait_for(&ping, Duration::from_secs(10)).await?;
    nas.link(false).await?;
    nas.wait_for("test $(cat /sys/class/net/eth0/carrier) = 0", Duration::from_secs(10)).await?;
    ensure!(node.run(&ping).await?.code != 0, "{} answers without a link", nas.name());
    ensure!(lab.guest("node2")?.run(&ping).await?.code != 0, "{} answers without a link", nas.name());
    nas.link(true).await?;
    nas.wait_for("test $(cat /sys/class/net/eth0/carrier) = 1", Duration::from_secs(10)).await?;
    node.wait_for(&ping, Duration::from_secs(10)).await?;
    Ok(())
}
