//! What a guest gets from its disk in each phase, next to a plain file on the same disk.

use super::{Bed, LIMIT, Part, copy::Server, median};
use crate::{
    command,
    demo::map,
    screen::{Step, seconds, table},
};
use anyhow::Context as _;
use img_storage_model::api::Phase;
use img_storage_tests::writer::Device;
use std::{process::Command, time::Duration};

struct Job {
    name: &'static str,
    options: [&'static str; 3],
    /// Told in MiB a second, not in requests.
    bulk: bool,
}

const JOBS: [Job; 6] = [
    Job { name: "random read 4 KiB, 1 at a time", options: ["--rw=randread", "--bs=4k", "--iodepth=1"], bulk: false },
    Job { name: "random read 4 KiB, 16 at a time", options: ["--rw=randread", "--bs=4k", "--iodepth=16"], bulk: false },
    Job { name: "random write 4 KiB, 1 at a time", options: ["--rw=randwrite", "--bs=4k", "--iodepth=1"], bulk: false },
    Job { name: "random write 4 KiB, 16 at a time", options: ["--rw=randwrite", "--bs=4k", "--iodepth=16"], bulk: false },
    Job { name: "read 1 MiB, 4 at a time", options: ["--rw=read", "--bs=1m", "--iodepth=4"], bulk: true },
    Job { name: "write 1 MiB, 4 at a time", options: ["--rw=write", "--bs=1m", "--iodepth=4"], bulk: true },
];

const PLACES: [&str; 6] = ["plain file", "file by NBD", "remote", "copying", "local", "writing back"];

/// What fio measured.
#[derive(Clone, Copy)]
struct Got {
    iops: f64,
    bytes: f64,
    p99: f64,
}

pub async fn measure(bed: &Bed) -> anyhow::Result<Part> {
    bed.volume("g").await?;
    let file = bed.dir.join("plain.raw");
    super::random_file(&file, bed.size)?;
    let plain = ["--ioengine=io_uring".to_owned(), "--direct=1".to_owned(), format!("--filename={}", file.display())];
    let mut got: Vec<Vec<Vec<Got>>> = vec![vec![Vec::new(); PLACES.len()]; JOBS.len()];
    let mut cut_short = 0;
    for round in 0..bed.rounds(3) {
        let step = Step::new("the guest's I/O");
        for (n, job) in JOBS.iter().enumerate() {
            step.note(&format!("plain file, {}", job.name));
            got[n][0].push(fio(bed, job, &plain).await?);
        }
        let server = Server::start(&file, true, None).await?;
        for (n, job) in JOBS.iter().enumerate() {
            step.note(&format!("file by NBD, {}", job.name));
            got[n][1].push(fio(bed, job, &nbd(&server.uri())).await?);
        }
        drop(server);
        let (device, _) = map(&bed.service, &["map", "g", "compute-0-0"]).await?;
        for (n, job) in JOBS.iter().enumerate() {
            step.note(&format!("remote, {}", job.name));
            got[n][2].push(fio(bed, job, &uri(&device)).await?);
        }
        device.released().await;
        bed.cli(&["unmap", "g"]).await?;
        for (n, job) in JOBS.iter().enumerate() {
            step.note(&format!("copying, {}", job.name));
            let (device, _) = map(&bed.service, &["map", "g", "compute-0-0", "--sync"]).await?;
            got[n][3].push(fio(bed, job, &uri(&device)).await?);
            cut_short += u32::from(bed.service.glance("g").await == Some(Phase::Local));
            if n + 1 < JOBS.len() {
                device.released().await;
                bed.cli(&["unmap", "g"]).await?;
            }
        }
        bed.service.until("g", Phase::Local, LIMIT).await?;
        let device: Device = bed.service.volume("g").await?.device.context("a device")?.parse()?;
        for (n, job) in JOBS.iter().enumerate() {
            step.note(&format!("local, {}", job.name));
            got[n][4].push(fio(bed, job, &uri(&device)).await?);
            step.note(&format!("writing back, {}", job.name));
            let place = uri(&device);
            let mut measuring = std::pin::pin!(fio(bed, job, &place));
            let measured = loop {
                let writing_back = async {
                    bed.cli(&["sync", "g"]).await?;
                    Ok::<_, anyhow::Error>(())
                };
                tokio::select! {
                    biased;
                    measured = &mut measuring => break measured?,
                    done = writing_back => done?,
                }
            };
            got[n][5].push(measured);
        }
        device.released().await;
        bed.cli(&["unmap", "g"]).await?;
        step.done(&format!("round {}", round + 1));
    }
    std::fs::remove_file(&file)?;
    bed.cli(&["delete", "g", "--yes"]).await?;
    let mut head = vec!["job"];
    head.extend(PLACES);
    let middle = |all: &[Got], of: fn(&Got) -> f64| median(&all.iter().map(of).collect::<Vec<_>>());
    let speed: Vec<Vec<String>> = JOBS
        .iter()
        .zip(&got)
        .map(|(job, places)| {
            let value =
                |all: &[Got]| if job.bulk { middle(all, |g| g.bytes) / f64::from(1 << 20) } else { middle(all, |g| g.iops) };
            let base = value(&places[0]);
            let cells = places.iter().map(|all| format!("{:.0} ({:.2})", value(all), value(all) / base));
            std::iter::once(format!("{}, {}", job.name, if job.bulk { "MiB/s" } else { "per s" })).chain(cells).collect()
        })
        .collect();
    let slowest: Vec<Vec<String>> = JOBS
        .iter()
        .zip(&got)
        .map(|(job, places)| {
            let cells = places.iter().map(|all| seconds(Duration::from_secs_f64(middle(all, |g| g.p99))));
            std::iter::once(job.name.to_owned()).chain(cells).collect()
        })
        .collect();
    let short =
        if cut_short > 0 { format!(" In {cut_short} of the runs while copying the copy ended first.") } else { String::new() };
    let text = format!(
        "Medians of {} rounds; in brackets × the plain file.\n\n{}\nThe 99th percentile of a request's time:\n\n{}\nfio, {} s each: `io_uring` \
         with O_DIRECT on the plain file, its `nbd` engine everywhere else. *File by NBD* is the same file served by a \
         qemu-storage-daemon over TCP without TLS: what the block layer and the protocol cost without us. *Remote* goes on through TLS to \
         the NAS's daemon; all of them share this machine's cores.{short}\n",
        bed.rounds(3),
        table(&head, &speed),
        table(&head, &slowest),
        run_time(bed)
    );
    Ok(Part { title: "The guest's disk in each phase", text })
}

fn run_time(bed: &Bed) -> u32 {
    if bed.quick { 1 } else { 2 }
}

fn nbd(uri: &str) -> [String; 3] {
    ["--ioengine=nbd".to_owned(), format!("--uri={uri}"), "--thread".to_owned()]
}

fn uri(device: &Device) -> [String; 3] {
    nbd(&format!("nbd+unix:///{}?socket={}", device.export, device.socket.display()))
}

async fn fio(bed: &Bed, job: &Job, place: &[String]) -> anyhow::Result<Got> {
    let mut fio = Command::new("fio");
    fio.args(["--name=job", "--output-format=json", "--time_based", "--randrepeat=0", "--norandommap", "--group_reporting"]);
    fio.args(job.options).args(place).arg(format!("--runtime={}", run_time(bed))).arg(format!("--size={}", bed.size));
    fio.current_dir(&bed.dir);
    let text = tokio::task::spawn_blocking(move || command::output(&mut fio)).await??;
    // Engines may print before the document.
    let json = text.find('{').map_or("", |at| &text[at..]);
    let result: serde_json::Value = serde_json::from_str(json).with_context(|| format!("what fio printed: {text}"))?;
    let job = &result["jobs"][0];
    let side = if job["read"]["total_ios"].as_u64() > job["write"]["total_ios"].as_u64() { &job["read"] } else { &job["write"] };
    let number = |value: &serde_json::Value| value.as_f64().context("a number from fio");
    Ok(Got {
        iops: number(&side["iops"])?,
        bytes: number(&side["bw_bytes"])?,
        p99: number(&side["clat_ns"]["percentile"]["99.000000"])? / 1e9,
    })
}
