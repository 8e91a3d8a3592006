//! What it costs to bring changes home.

use super::{Bed, LIMIT, Part, median};
use crate::{
    demo::map,
    screen::{Step, bytes, table},
};
use anyhow::Context as _;
use img_storage_model::api::Phase;
use rand::{Rng as _, RngExt as _, SeedableRng as _, rngs::SmallRng, seq::SliceRandom as _};
use std::time::{Duration, Instant};

/// What a changed byte takes along.
const CLUSTER: u64 = 64 << 10;

/// What is changed: a share of the volume, in writes of so many bytes.
const CHANGES: [(f64, u32); 4] = [(0.001, 65536), (0.01, 65536), (0.1, 65536), (0.01, 4096)];

pub async fn measure(bed: &Bed) -> anyhow::Result<Part> {
    bed.volume("w").await?;
    let (device, _) = map(&bed.service, &["map", "w", "compute-0-0", "--sync"]).await?;
    bed.service.until("w", Phase::Local, LIMIT).await?;
    let nbd = device.connect(Duration::from_secs(60)).await?;
    let mut rng = SmallRng::seed_from_u64(2);
    bed.cli(&["sync", "w"]).await?;
    let mut rows = Vec::new();
    for (share, write) in CHANGES {
        let (mut times, mut ratios, mut moved_all, mut changed_all) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let step = Step::new(&format!("write-back of {} % in writes of {}", share * 100.0, bytes(write.into())));
        for _ in 0..bed.rounds(5) {
            let clusters = change(&nbd, bed.size, share, write, &mut rng).await?;
            let begun = Instant::now();
            bed.cli(&["sync", "w"]).await?;
            times.push(begun.elapsed().as_secs_f64());
            let last = bed.service.volume("w").await?.last_write_back.context("a write-back came home")?;
            let moved = last.moved.context("what it moved")?;
            ratios.push(moved as f64 / (clusters * CLUSTER) as f64);
            moved_all.push(moved as f64);
            changed_all.push((clusters * CLUSTER) as f64);
        }
        step.done("");
        rows.push(vec![
            format!("{} %", share * 100.0),
            format!("{} KiB", write / 1024),
            bytes(median(&changed_all) as u64),
            bytes(median(&moved_all) as u64),
            format!("{:.2}", median(&ratios)),
            format!("{:.2} s", median(&times)),
        ]);
    }
    // The last way home: with something to take along, and without.
    change(&nbd, bed.size, 0.01, 65536, &mut rng).await?;
    nbd.disconnect().await;
    device.released().await;
    let begun = Instant::now();
    bed.cli(&["unmap", "w"]).await?;
    let last = begun.elapsed();
    bed.cli(&["delete", "w", "--yes"]).await?;
    let text = format!(
        "{}\nOf a volume of {}, the node's guest connected, `sync` from its start to its end: point in time, transfer over TLS, digests \
         compared, committed, on stable storage. Changes are tracked in blocks of 64 KiB; *changed* counts those. Aim: moved ≤ 1.1 × changed. \
         `unmap` with 1 % changed: {:.2} s.\n",
        table(&["written", "in writes of", "changed", "moved", "moved / changed", "median time"], &rows),
        bytes(bed.size),
        last.as_secs_f64()
    );
    Ok(Part { title: "Write-back", text })
}

/// Writes `share` of the volume at random places, flushes, and tells how many clusters that touched.
async fn change(nbd: &img_storage_host::nbd::Nbd, size: u64, share: f64, write: u32, rng: &mut SmallRng) -> anyhow::Result<u64> {
    let places = size / u64::from(write);
    let wanted = (places as f64 * share) as usize;
    let mut chosen: Vec<u64> = (0..wanted * 2).map(|_| rng.random_range(0..places)).collect();
    chosen.sort_unstable();
    chosen.dedup();
    chosen.shuffle(rng);
    chosen.truncate(wanted);
    let mut bytes = vec![0; write as usize];
    let mut under_way = std::collections::VecDeque::new();
    for place in &chosen {
        rng.fill_bytes(&mut bytes[..64]);
        if under_way.len() >= 16
            && let Some(first) = under_way.pop_front()
        {
            let first: img_storage_host::nbd::InTransit = first;
            first.wait().await?;
        }
        under_way.push_back(nbd.start_write(place * u64::from(write), &bytes).await?);
    }
    for write in under_way {
        write.wait().await?;
    }
    nbd.flush().await?;
    let mut clusters: Vec<u64> = chosen.iter().map(|place| place * u64::from(write) / CLUSTER).collect();
    clusters.sort_unstable();
    clusters.dedup();
    Ok(clusters.len() as u64)
}
