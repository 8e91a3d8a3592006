//! A NAS that is started again as its administrator would, under guests.

use img_storage_tests::lab::{
    Lab,
    cluster::{Cluster, Writer, device, holds},
};

/// Each volume, its node, and where its guest works meanwhile.
const GUESTS: [(&str, &str, &str); 3] =
    [("tank/vol1", "node1", "remote"), ("tank/vol2", "node2", "remote"), ("tank/vol3", "node2", "local")];

/// The guests whose disks it serves wait and get no error; the exports are there again before an initiator gives up. Who works locally goes on.
pub async fn a_nas_is_rebooted_under_its_guests(lab: &Lab) -> anyhow::Result<()> {
    let cluster = Cluster::start(lab).await?;
    let mut writers = Vec::new();
    for (volume, node, phase) in GUESTS {
        cluster.ask(&format!("create {volume} --size 64M")).await?;
        let sync = if phase == "local" { "--sync --wait local --timeout 230s" } else { "" };
        cluster.ask(&format!("map {volume} {node} {sync}")).await?;
        writers.push(Writer::to(&cluster, node, volume).await?);
    }
    cluster.guest("nas")?.reboot().await?;
    cluster.after_boot("nas").await?;
    for (writer, (volume, _, phase)) in writers.iter().zip(GUESTS) {
        writer.works().await?;
        cluster.until_of(volume, phase).await?;
    }
    cluster.ask("sync tank/vol3").await?;
    for (writer, (volume, node, _)) in writers.iter().zip(GUESTS) {
        writer.works().await?;
        writer.off().await?;
        let known = writer.known().await?;
        holds(&cluster, node, &device(volume), &known).await?;
        cluster.ask(&format!("unmap {volume}")).await?;
        holds(&cluster, "nas", &format!("/dev/zvol/{volume}"), &known).await?;
        writer.forget().await?;
    }
    cluster.end().await
}
