//! Many volumes: memory of the daemon, and how long a list takes.

use super::{Bed, Part, longest, median_time};
use crate::screen::{Step, bytes, seconds, table};
use anyhow::{Context as _, ensure};
use img_storage_tests::{processes, service::Service};
use std::{fs, sync::Arc, time::Duration};

pub async fn measure(bed: &Bed) -> anyhow::Result<Part> {
    let many = if bed.quick { 1000 } else { 10_000 };
    let dir = bed.dir.join("many");
    fs::create_dir(&dir)?;
    let mut service = Service::new(bed.service.program().to_owned(), &dir)?;
    service.start(&["up", "--frequency", "1h"])?;
    service.ready(4).await?;
    let pid = service.pid(0);
    let service = Arc::new(service);
    let idle = processes::memory(pid)?;
    create(&service, 0, 100).await?;
    let step = Step::new("10 of 100 volumes mapped");
    for n in 0..10 {
        let ran = service.run(&["map", &format!("v{n}"), "compute-0-0", "--sync", "--wait", "local"]).await?;
        ran.ok()?;
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let hundred = processes::memory(pid)?;
    step.done("");
    for n in 0..10 {
        service.run(&["unmap", &format!("v{n}")]).await?.ok()?;
    }
    create(&service, 100, many).await?;
    let all = processes::memory(pid)?;
    let mut times = Vec::new();
    for _ in 0..=bed.rounds(20) {
        let ran = service.run(&["list"]).await?;
        times.push(ran.took);
        let lines = ran.ok()?.lines().count();
        ensure!(lines == many + 1, "the list has {lines} lines, not {}", many + 1);
    }
    times.remove(0);
    let memory =
        |what: &str, (own, resident): (u64, u64), aim: &str| vec![what.to_owned(), bytes(own), bytes(resident), aim.to_owned()];
    let sizes = [
        memory("nothing there", idle, ""),
        memory("100 volumes, 10 of them mapped and local", hundred, "≤ 40 MiB"),
        memory(&format!("{many} volumes"), all, ""),
    ];
    let list = vec![
        format!("`img-storage list` of {many} volumes"),
        seconds(median_time(&times)),
        seconds(longest(&times)),
        "≤ 40 ms".to_owned(),
    ];
    let text = format!(
        "{}\nMemory of `img-storage up` with all roles, two nodes:\n\n{}\nThe list is the wall time of the command, its start and a table on a pipe \
         included.\n",
        table(&["what", "median", "worst", "aim"], &[list]),
        table(&["with", "its own", "resident", "aim"], &sizes)
    );
    Ok(Part { title: "Many volumes", text })
}

/// Creates volumes `vN`, several at a time.
async fn create(service: &Arc<Service>, from: usize, to: usize) -> anyhow::Result<()> {
    let step = Step::new(&format!("volumes {from} to {to}"));
    let next = Arc::new(std::sync::atomic::AtomicUsize::new(from));
    let mut workers = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let (service, next) = (Arc::clone(service), Arc::clone(&next));
        workers.spawn(async move {
            loop {
                let n = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                if n >= to {
                    return Ok::<_, anyhow::Error>(());
                }
                let body = format!(r#"{{"name": "v{n}", "size": 1073741824}}"#);
                let answer = service.ask("POST", "/api/volumes", &body).await?;
                let answer: serde_json::Value = serde_json::from_str(&answer).context("an answer")?;
                ensure!(answer["volume"]["name"] == format!("v{n}"), "v{n} is not created: {answer}");
            }
        });
    }
    while let Some(done) = workers.join_next().await {
        done??;
        step.note(&format!("{}", next.load(std::sync::atomic::Ordering::Relaxed).min(to)));
    }
    step.done("");
    Ok(())
}
