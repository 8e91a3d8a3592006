//! `cargo xtask demo`: the whole life of one volume, with a real disk image under a guest that writes and checks.

use crate::{
    command,
    disk_image::{self, DiskImage},
    packages,
    screen::{self, Step, bytes, rate, seconds},
};
use anyhow::{Context as _, bail, ensure};
use clap::Args;
use img_storage_model::api::{Phase, VolumeView, WriteBack};
use img_storage_tests::{
    service::Service,
    writer::{self, Device, Load, Writer},
};
use std::{
    fs::File,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

/// The writer's run, part of every block.
const RUN: u64 = 0x1d3a;
const BLOCK: u32 = 4096;
/// The longest any one step may take.
const LIMIT: Duration = Duration::from_secs(300);
/// Free space it takes.
const ROOM: u64 = 6 << 30;

/// See it work: a real disk image, mapped, moved under a running writer, written back, and proven intact
#[derive(Args)]
pub struct Demo {
    /// Leave it running, and say what to type
    #[arg(long)]
    keep: bool,
    /// Where its files go; a short path, because sockets are in it
    #[arg(long, default_value = "/var/tmp")]
    dir: PathBuf,
}

/// What is told at the end.
#[derive(Default)]
struct Figures {
    usable: Duration,
    copied: u64,
    copying: Duration,
    pauses: Vec<(&'static str, Duration)>,
    write_backs: Vec<(WriteBack, u64)>,
    unmap: Duration,
    again: Duration,
    proven: String,
}

impl Demo {
    pub fn run(&self) -> anyhow::Result<ExitCode> {
        packages::ensure(&packages::PRODUCT)?;
        packages::ensure(&packages::EXT4)?;
        let program = release()?;
        let dir = tempfile::Builder::new().prefix("img-demo-").tempdir_in(&self.dir)?;
        let free = rustix::fs::statvfs(dir.path()).map(|f| f.f_bavail * f.f_frsize)?;
        ensure!(free >= ROOM, "{} has {} free; {} are needed (--dir)", self.dir.display(), bytes(free), bytes(ROOM));
        let mut service = Service::new(program, dir.path())?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        // What is dropped on the way out, on success, failure or Ctrl-C, ends what was started and removes its files.
        let figures = runtime.block_on(async {
            tokio::select! {
                figures = life(&mut service, dir.path()) => figures,
                () = interrupted() => bail!("interrupted; everything that was started is ended and removed"),
            }
        })?;
        runtime.shutdown_timeout(Duration::from_secs(5));
        println!("\n{}", figures.table());
        if self.keep {
            service.keep();
            println!("{}", keep(&service, &dir.keep()));
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Builds the program as it is shipped, unless it is given.
pub fn release() -> anyhow::Result<PathBuf> {
    if let Some(path) = std::env::var_os("IMG_STORAGE_BIN") {
        return Ok(path.into());
    }
    println!("building img-storage (release)");
    let status = command::cargo(&["build", "--release", "--bin", "img-storage"]).status()?;
    ensure!(status.success(), "it cannot be built; see above");
    Ok(target().join("release/img-storage"))
}

/// Where cargo puts what it builds.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| command::root().join("target"), PathBuf::from)
}

/// Ctrl-C, or being asked to end.
pub async fn interrupted() {
    let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).ok();
    let term = async {
        match &mut term {
            Some(signal) => drop(signal.recv().await),
            None => std::future::pending().await,
        }
    };
    tokio::select! { _ = tokio::signal::ctrl_c() => {}, () = term => {} }
}

async fn life(service: &mut Service, dir: &Path) -> anyhow::Result<Figures> {
    let mut figures = Figures::default();
    println!("\na disk image");
    let image = make_image(dir).await?;
    println!("\nits life");
    let step = Step::new("img-storage up, with a NAS and two nodes");
    service.start(&["up", "--frequency", "2s"])?;
    service.ready(4).await?;
    step.done("");
    create(service, &image).await?;

    let step = Step::new("map vol1 compute-0-0 --sync");
    let (device, usable) = map(service, &["map", "vol1", "compute-0-0", "--sync"]).await?;
    figures.usable = usable;
    step.done("usable");
    let guest = Writer::stamped(RUN, BLOCK, &image.areas);
    let load = Load { depth: 4, rest: Duration::from_millis(2), ..Load::default() };
    let running = tokio::spawn(Arc::clone(&guest).run(device.clone(), load));
    let followed = tokio::select! {
        followed = follow(service, &guest, &mut figures) => followed,
        // It ends by itself only when something is wrong.
        () = async { while !running.is_finished() { tokio::time::sleep(Duration::from_millis(20)).await } } => Ok(()),
    };
    guest.stop();
    running.await?.context("the guest found its disk wrong")?;
    followed?;
    guest.check_all(&device, LIMIT, false).await.context("the guest found its disk wrong")?;
    let did = guest.figures();
    println!(
        "  the guest wrote {} in {} requests and checked {} that it read; nothing was wrong",
        bytes(did.written),
        did.writes,
        bytes(did.read)
    );

    let last = guest.now();
    let step = Step::new("unmap vol1");
    service.run_within(&["unmap", "vol1"], LIMIT).await?.ok()?;
    figures.unmap = step.done("everything is home and verified");

    println!("\nthe proof");
    let (device, again) = map(service, &["map", "vol1", "compute-0-1"]).await?;
    figures.again = again;
    let step = Step::new("every block the guest wrote, read on compute-0-1");
    guest.check_all(&device, LIMIT, false).await.context("what the guest wrote is not on the other node")?;
    step.done("right");
    service.run_within(&["unmap", "vol1"], LIMIT).await?.ok()?;
    let copy = dir.join("proof.raw");
    let step = Step::new("export vol1 to a file, and the guest's blocks in it");
    let words = ["export".as_ref(), "vol1".as_ref(), copy.as_os_str()];
    service.run_within(&words, LIMIT).await?.ok()?;
    let cut = guest.cut(&File::open(&copy)?)?.context("the exported file is wrong")?;
    ensure!(cut.has_all_before(last), "the exported file lacks what the guest wrote last");
    step.done("right");
    let step = Step::new("e2fsck -fn, and the digest of every file");
    let (count, scratch) = (image.files.len(), dir.to_owned());
    let checked = copy.clone();
    tokio::task::spawn_blocking(move || image.check(&checked, &scratch)).await??;
    step.done(&format!("clean; {count} files as they were"));
    std::fs::remove_file(copy)?;
    figures.proven = format!("all {} requests of the guest, {count} files by digest, e2fsck clean", did.writes);
    Ok(figures)
}

async fn make_image(dir: &Path) -> anyhow::Result<DiskImage> {
    let step = Step::new("an ext4 file system of real files of this machine");
    let place = dir.to_owned();
    let image = tokio::task::spawn_blocking(move || -> anyhow::Result<DiskImage> {
        let image = DiskImage::make(&place)?;
        writer::stamp_areas(&File::options().write(true).open(&image.path)?, RUN, BLOCK, &image.areas)?;
        Ok(image)
    })
    .await??;
    let room: u64 = image.areas.iter().map(|area| area.length).sum();
    step.done(&format!(
        "{}, {} files of {} together, and one of {} for the guest to write to",
        bytes(disk_image::SIZE),
        image.files.len(),
        bytes(image.bytes),
        bytes(room)
    ));
    Ok(image)
}

async fn create(service: &Service, image: &DiskImage) -> anyhow::Result<()> {
    let step = Step::new("create vol1 --from disk.img");
    let words = ["create".as_ref(), "vol1".as_ref(), "--from".as_ref(), image.path.as_os_str()];
    let mut creating = std::pin::pin!(service.run_within(&words, LIMIT));
    loop {
        tokio::select! {
            ran = &mut creating => break drop(ran?.ok()?),
            () = tokio::time::sleep(Duration::from_millis(50)) => {
                if let Some(p) = service.view("vol1").await.and_then(|view| view.progress) {
                    step.progress(p.done, p.total, "");
                }
            }
        }
    }
    step.done(&format!("{} filled", bytes(disk_image::SIZE)));
    Ok(())
}

/// Maps, and reads the first block through the device: then it is usable, and that long it took.
pub async fn map(service: &Service, words: &[&str]) -> anyhow::Result<(Device, Duration)> {
    let begun = Instant::now();
    let device: Device = service.run_within(words, LIMIT).await?.ok()?.parse()?;
    let nbd = device.connect(LIMIT).await?;
    nbd.read(0, BLOCK).await?;
    let usable = begun.elapsed();
    nbd.disconnect().await;
    device.released().await;
    Ok((device, usable))
}

/// Watches the volume from copying to its second write-back.
async fn follow(service: &Service, guest: &Writer, figures: &mut Figures) -> anyhow::Result<()> {
    let begun = Instant::now();
    let (mut local, mut step) = (false, Step::new("copying under the running guest"));
    let [mut copying, mut switching, mut writing_back] = [Duration::ZERO; 3];
    while begun.elapsed() < LIMIT {
        tokio::time::sleep(Duration::from_millis(3)).await;
        let Some(view) = service.view("vol1").await else { continue };
        // The longest request that ended since the last look counts for what is the case now.
        let under_way = view.phase == Phase::Copying && view.progress.is_none_or(|p| p.done < p.total);
        let longest = if local {
            &mut writing_back
        } else if under_way {
            &mut copying
        } else {
            &mut switching
        };
        *longest = guest.figures().longest.max(*longest);
        if let Some(trouble) = &view.stuck {
            step.note(&format!("stuck on {}: {}", trouble.host, trouble.why));
        }
        if !local {
            if let Some(p) = view.progress.filter(|_| view.phase == Phase::Copying) {
                step.progress(p.done, p.total, "");
            }
            if view.phase == Phase::Local {
                (figures.copying, figures.copied) = (begun.elapsed(), view.allocated.unwrap_or(view.size.bytes()));
                local = true;
                step.done(&format!("{}, and switched to the local disk", rate(figures.copied, figures.copying)));
                step = Step::new("the guest on its local disk");
            }
        } else if take(&view, figures) {
            step.note(&format!("{} write-backs came home", figures.write_backs.len()));
            if figures.write_backs.len() >= 2 {
                figures.pauses =
                    vec![("while it was copied", copying), ("at the switch", switching), ("during write-backs", writing_back)];
                step.done("two write-backs came home while it wrote");
                return Ok(());
            }
        }
    }
    bail!("it does not get there within {}:\n{}", seconds(LIMIT), service.log_tail())
}

/// Keeps a write-back that is new; says whether it is.
fn take(view: &VolumeView, figures: &mut Figures) -> bool {
    let Some(last) = view.last_write_back.as_ref().filter(|w| w.took_ms.is_some()) else { return false };
    if figures.write_backs.last().is_some_and(|(known, _)| known.snapshot == last.snapshot) {
        return false;
    }
    figures.write_backs.push((last.clone(), view.dirty.unwrap_or(0)));
    true
}

impl Figures {
    fn table(&self) -> String {
        let mut rows = vec![
            vec!["map → usable".to_owned(), seconds(self.usable)],
            vec!["copied and switched".to_owned(), {
                format!("{} in {}: {}", bytes(self.copied), seconds(self.copying), rate(self.copied, self.copying))
            }],
        ];
        for (when, pause) in &self.pauses {
            rows.push(vec![format!("guest's longest pause {when}"), seconds(*pause)]);
        }
        for (n, (write_back, _)) in self.write_backs.iter().enumerate() {
            let took = Duration::from_millis(write_back.took_ms.unwrap_or(0));
            rows.push(vec![format!("write-back {}", n + 1), {
                format!("{} in {}", bytes(write_back.moved.unwrap_or(0)), seconds(took))
            }]);
        }
        rows.push(vec!["unmap, with the last write-back".to_owned(), seconds(self.unmap)]);
        rows.push(vec!["map on the other node → usable".to_owned(), seconds(self.again)]);
        rows.push(vec!["proven".to_owned(), self.proven.clone()]);
        screen::table(&["what", "figure"], &rows)
    }
}

fn keep(service: &Service, dir: &Path) -> String {
    let program = service.program().display();
    format!(
        "It still runs. To play on:\n\n  export IMG_STORAGE_DIR={}\n  {program} status\n  {program} map vol1 compute-0-0 --sync --wait local\n  \
         {program} list -o wide\n  {program} show vol1\n  {program} unmap vol1\n\nTo end it: unmap what is mapped, then\n\n  \
         kill {}\n  rm -r {}",
        service.dir().display(),
        service.pid(0),
        dir.display()
    )
}
