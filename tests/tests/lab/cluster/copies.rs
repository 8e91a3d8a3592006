//! Copies that are cut off, cancelled, and begun again elsewhere; and how much goes over the network for each.

use anyhow::{Context as _, ensure};
use img_storage_model::size::human_bytes;
use img_storage_tests::lab::{
    Guest, Lab,
    cluster::{Cluster, DEVICE, DONE, VOLUME, Writer, ZVOL, holds},
};
use std::time::Instant;

/// What the volume is filled with, in MiB.
const FILLED: u64 = 48;
/// What has arrived when something happens to the copy.
const ARRIVED: u64 = 16 << 20;
/// What is changed before the second start on a node, in MiB.
const CHANGED: u64 = 6;
/// What cuts a stream off in the middle.
const CUT: &str = "pkill -9 -u img-storage -x sshd";

/// A stream is cut off and goes on where it was; a copy is cancelled under its guest and begun again; the volume is mapped elsewhere in the
/// middle of a copy; and the second start on a node moves what was changed.
pub async fn copies_are_cut_and_cancelled(lab: &Lab) -> anyhow::Result<()> {
    let cluster = Cluster::start(lab).await?;
    let (nas, node1, node2) = (cluster.guest("nas")?, cluster.guest("node1")?, cluster.guest("node2")?);
    cluster.ask(&format!("create {VOLUME} --size 64M")).await?;
    cluster.ask(&format!("map {VOLUME} node1")).await?;
    write(node1, 0, FILLED).await?;
    let there = format!("map {VOLUME} node1 --sync");

    // What has arrived is not sent again.
    cluster.ask(&there).await?;
    arrived(&cluster).await?;
    node1.check(CUT).await?;
    cluster.until("local").await?;
    nas.check("grep -q 'was cut off after .* goes on where it was' /run/lab/nas.all").await?;
    let (sent, all) = (streams(&cluster).await?.iter().sum::<u64>(), FILLED << 20);
    println!("  {} of {} streamed, with a cut after {} or more", human_bytes(sent), human_bytes(all), human_bytes(ARRIVED));
    // What was under way when it was cut counts twice.
    ensure!(sent < all + ARRIVED / 4 * 3, "{} were sent again of {}", human_bytes(sent), human_bytes(all));
    let filled = sum(node1, DEVICE).await?;
    cluster.ask(&format!("unmap {VOLUME}")).await?;
    ensure!(sum(nas, ZVOL).await? == filled, "what came home is not what was on {}", node1.name());

    // Cancelled under its guest, who notices nothing; then the copy is made all the same.
    cluster.ask(&format!("map {VOLUME} node2")).await?;
    let writer = Writer::on(&cluster, "node2").await?;
    cluster.ask(&format!("map {VOLUME} node2 --sync")).await?;
    arrived(&cluster).await?;
    cluster.ask(&format!("bring-back {VOLUME}")).await?;
    cluster.until("remote").await?;
    writer.works().await?;
    nas.wait_for("! pgrep -x zfs", DONE).await?;
    writer.off().await?;
    cluster.ask(&format!("map {VOLUME} node2 --sync")).await?;
    cluster.until("copying").await?;

    // Mapped elsewhere, where it was before: what is there of it is a warm copy.
    cluster.ask(&format!("unmap {VOLUME}")).await?;
    cluster.ask(&format!("map {VOLUME} node1 --sync --wait local --timeout 230s")).await?;
    let known = writer.known().await?;
    holds(&cluster, "node1", DEVICE, &known).await?;
    writer.forget().await?;
    let now = sum(node1, DEVICE).await?;
    cluster.ask(&format!("unmap {VOLUME}")).await?;
    ensure!(sum(nas, ZVOL).await? == now, "what came home is not what was on {}", node1.name());

    // The other node changes a little of it, on the NAS's volume.
    cluster.ask(&format!("map {VOLUME} node2")).await?;
    write(node2, 20, CHANGED).await?;
    let changed = sum(node2, DEVICE).await?;
    cluster.ask(&format!("unmap {VOLUME}")).await?;
    let before = streams(&cluster).await?.len();
    let begun = Instant::now();
    cluster.ask(&format!("map {VOLUME} node1 --sync --wait local --timeout 230s")).await?;
    let moved: u64 = streams(&cluster).await?.iter().skip(before).sum();
    let took = begun.elapsed().as_secs_f64();
    println!("  {} changed, {} moved to the warm copy, local after {took:.1} s", human_bytes(CHANGED << 20), human_bytes(moved));
    ensure!(moved * 10 <= (CHANGED << 20) * 11, "{} went over the network", human_bytes(moved));
    ensure!(sum(node1, DEVICE).await? == changed, "the warm copy is not what the volume is");
    cluster.ask(&format!("unmap {VOLUME}")).await?;
    cluster.end().await
}

/// Writes so many MiB to the volume, that many MiB behind its beginning.
async fn write(node: &Guest, at: u64, length: u64) -> anyhow::Result<()> {
    let script =
        format!("dd if=/dev/urandom of={DEVICE} bs=1M seek={at} count={length} oflag=direct conv=notrunc,fsync status=none");
    node.check_within(&script, DONE).await.map(drop)
}

async fn sum(guest: &Guest, device: &str) -> anyhow::Result<String> {
    let script = format!(
        "for try in $(seq 120); do test -b {device} && break; sleep 0.5; done; dd if={device} bs=1M iflag=direct status=none | md5sum"
    );
    guest.check_within(&script, DONE).await
}

/// Waits until some of a copy has arrived, and not all of it.
async fn arrived(cluster: &Cluster<'_>) -> anyhow::Result<()> {
    let begun = Instant::now();
    loop {
        let view = cluster.view().await?;
        let volume = if view["phase"].is_null() { &view["volume"] } else { &view };
        let done = volume["progress"]["done"].as_u64().unwrap_or(0);
        if volume["phase"] == "copying" && done >= ARRIVED {
            return Ok(());
        }
        ensure!(volume["phase"] != "local", "it was copied before anybody could look");
        ensure!(begun.elapsed() < DONE, "nothing is copied: {view}");
    }
}

/// How many bytes each stream had that came to its end, as the NAS says.
async fn streams(cluster: &Cluster<'_>) -> anyhow::Result<Vec<u64>> {
    let said =
        cluster.guest("nas")?.check("sed -n 's/.* \\([0-9.]*[KMG]\\{0,1\\}\\) streamed in .*/\\1/p' /run/lab/nas.all").await?;
    said.lines().map(|line| bytes(line).with_context(|| format!("{line:?} is no number of bytes"))).collect()
}

/// `8.1M` and the like.
fn bytes(text: &str) -> Option<u64> {
    let number = text.trim_end_matches(['K', 'M', 'G']);
    let shift = match text.strip_prefix(number)? {
        "K" => 10,
        "M" => 20,
        "G" => 30,
        _ => 0,
    };
    let (whole, tenths) = number.split_once('.').unwrap_or((number, "0"));
    let tenths = whole.parse::<u64>().ok()? * 10 + tenths.parse::<u64>().ok()?;
    Some((tenths << shift) / 10)
}
