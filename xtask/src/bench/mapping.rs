//! From asking to a usable disk, and from asking to a released one.

use super::{Bed, Part, longest, median_time};
use crate::{
    demo::map,
    screen::{Step, seconds, table},
};
use img_storage_model::{Extent, api::Phase};
use img_storage_tests::writer::{Load, Writer};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

pub async fn measure(bed: &Bed) -> anyhow::Result<Part> {
    let step = Step::new("map and unmap");
    bed.cli(&["create", "m", "--size", "1G"]).await?;
    let (mut usable, mut released) = (Vec::new(), Vec::new());
    let rounds = bed.rounds(20);
    for round in 0..=rounds {
        let (_, mapped) = map(&bed.service, &["map", "m", "compute-0-0"]).await?;
        let begun = Instant::now();
        bed.cli(&["unmap", "m"]).await?;
        // The first is for warming up.
        if round > 0 {
            usable.push(mapped);
            released.push(begun.elapsed());
        }
    }
    let mut local = Vec::new();
    for _ in 0..bed.rounds(10) {
        bed.cli(&["map", "m", "compute-0-0", "--sync", "--wait", "local"]).await?;
        let begun = Instant::now();
        bed.cli(&["unmap", "m"]).await?;
        local.push(begun.elapsed());
    }
    step.done(&format!("{rounds} rounds"));
    let pauses = pauses(bed).await?;
    bed.cli(&["delete", "m", "--yes"]).await?;
    let row = |what: &str, times: &[Duration], target: &str| {
        vec![what.to_owned(), seconds(median_time(times)), seconds(longest(times)), target.to_owned()]
    };
    let rows = [
        row("`map` → first block read through the device", &usable, "≤ 150 ms"),
        row("`unmap` from remote → released", &released, "≤ 500 ms"),
        row("`unmap` from local, nothing changed → last write-back verified, released", &local, "≤ 500 ms"),
        row("guest's longest request at the switch", &pauses, "≤ 100 ms"),
    ];
    let text = format!(
        "{}\nWall time of the command line, the start of the program included. At the switch the guest has 4 requests of 4 to 64 KiB in \
         flight without a rest; the longest of them from the end of the copy to `local`, over {} switches.\n",
        table(&["what", "median", "worst", "aim"], &rows),
        pauses.len()
    );
    Ok(Part { title: "Map, unmap, switch", text })
}

/// The longest request of each switch.
async fn pauses(bed: &Bed) -> anyhow::Result<Vec<Duration>> {
    let mut all = Vec::new();
    let step = Step::new("the switch, under a guest");
    for round in 0..bed.rounds(10) {
        let name = format!("p{round}");
        bed.cli(&["create", &name, "--size", "256M"]).await?;
        let (device, _) = map(&bed.service, &["map", &name, "compute-0-0", "--sync"]).await?;
        let guest = Writer::new(round as u64 + 1, 4096, &[Extent { offset: 0, length: 256 << 20 }]);
        let load = Load { depth: 4, ..Load::default() };
        let running = tokio::spawn(Arc::clone(&guest).run(device, load));
        let begun = Instant::now();
        let mut worst = Duration::ZERO;
        loop {
            tokio::time::sleep(Duration::from_millis(3)).await;
            let longest = guest.figures().longest;
            let Some(view) = bed.service.view(&name).await else { continue };
            if view.phase != Phase::Copying || view.progress.is_some_and(|p| p.done >= p.total) {
                worst = worst.max(longest);
            }
            if view.phase == Phase::Local {
                tokio::time::sleep(Duration::from_millis(50)).await;
                worst = worst.max(guest.figures().longest);
                break;
            }
            anyhow::ensure!(begun.elapsed() < super::LIMIT, "it does not become local:\n{}", bed.service.log_tail());
        }
        guest.stop();
        running.await??;
        all.push(worst);
        bed.cli(&["unmap", &name]).await?;
        bed.cli(&["delete", &name, "--yes"]).await?;
    }
    step.done("");
    Ok(all)
}
