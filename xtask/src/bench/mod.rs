//! `cargo xtask bench`: what it costs, next to what the same work costs otherwise, in the same run.
//!
//! Things that are compared are measured in turns, several rounds, and medians are told.

mod bus;
mod copy;
mod guest;
mod kernel;
mod machine;
mod mapping;
mod overlay;
mod scale;
mod write_back;

use crate::{command, demo, packages, screen};
use anyhow::{Context as _, bail, ensure};
use clap::Args;
use img_storage_tests::{lab, service::Service};
use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};
use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

/// The longest any one step may take.
const LIMIT: Duration = Duration::from_secs(1200);
/// Where the result goes in the document.
const MARKS: [&str; 2] = ["<!-- bench: begin -->", "<!-- bench: end -->"];
/// Where that of the kernel plane goes.
const KERNEL_MARKS: [&str; 2] = ["<!-- bench kernel: begin -->", "<!-- bench kernel: end -->"];

/// Measure what it costs, next to what the same work costs otherwise
#[derive(Args)]
pub struct Bench {
    /// Smaller volumes and fewer rounds: to see that it works, not to be quoted
    #[arg(long)]
    quick: bool,
    /// Put the result into docs/performance.md
    #[arg(long)]
    write: bool,
    /// Only these parts: mapping, copy, write-back, guest, scale, bus; or kernel alone, which is measured in virtual machines and
    /// only when it is named
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// The disk to measure on; a short path, because sockets are in it
    #[arg(long, default_value = "/var/tmp")]
    dir: PathBuf,
}

/// What all parts need.
struct Bed {
    service: Service,
    dir: PathBuf,
    quick: bool,
    /// A raw image full of random bytes.
    image: PathBuf,
    size: u64,
}

/// A section of the result.
struct Part {
    title: &'static str,
    text: String,
}

impl Bench {
    pub fn run(&self) -> anyhow::Result<ExitCode> {
        if self.only.iter().any(|only| only == "kernel") {
            ensure!(self.only.len() == 1, "the kernel plane is measured alone: --only kernel");
            return self.run_kernel();
        }
        for needs in [&packages::PRODUCT[..], &packages::BENCH[..], &packages::BROKER[..]] {
            packages::ensure(needs)?;
        }
        let program = demo::release()?;
        let dir = tempfile::Builder::new().prefix("img-bench-").tempdir_in(&self.dir)?;
        let size = if self.quick { 512 << 20 } else { 2 << 30 };
        let free = rustix::fs::statvfs(dir.path()).map(|f| f.f_bavail * f.f_frsize)?;
        ensure!(free > size * 8, "{} has too little room: {} are needed (--dir)", self.dir.display(), screen::bytes(size * 8));
        let image = dir.path().join("random.raw");
        random_file(&image, size)?;
        let service = Service::new(program, dir.path())?;
        let mut bed = Bed { service, dir: dir.path().to_owned(), quick: self.quick, image, size };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let parts = runtime.block_on(async {
            tokio::select! {
                parts = self.parts(&mut bed) => parts,
                () = demo::interrupted() => bail!("interrupted; everything that was started is ended and removed"),
            }
        })?;
        runtime.shutdown_timeout(Duration::from_secs(5));
        self.tell(parts, MARKS)
    }

    fn run_kernel(&self) -> anyhow::Result<ExitCode> {
        packages::ensure(&packages::LAB)?;
        packages::ensure(&packages::BROKER)?;
        lab::possible()?;
        let program = demo::release()?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let parts = runtime.block_on(async {
            tokio::select! {
                parts = kernel::measure(&program, self.quick) => parts,
                () = demo::interrupted() => bail!("interrupted; everything that was started is ended and removed"),
            }
        })?;
        self.tell(parts, KERNEL_MARKS)
    }

    fn tell(&self, parts: Vec<Part>, marks: [&str; 2]) -> anyhow::Result<ExitCode> {
        let mut text = format!("{}\n", machine::describe(&self.dir, self.quick)?);
        for part in parts {
            text.push_str(&format!("### {}\n\n{}\n", part.title, part.text));
        }
        println!("\n{text}");
        if self.write {
            write(&text, marks)?;
        }
        Ok(ExitCode::SUCCESS)
    }

    fn wants(&self, part: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == part)
    }

    async fn parts(&self, bed: &mut Bed) -> anyhow::Result<Vec<Part>> {
        bed.service.start(&["up", "--frequency", "1h"])?;
        bed.service.ready(4).await?;
        let mut parts = Vec::new();
        if self.wants("mapping") {
            parts.push(mapping::measure(bed).await?);
        }
        if self.wants("copy") {
            parts.push(copy::measure(bed).await?);
        }
        if self.wants("write-back") {
            parts.push(write_back::measure(bed).await?);
        }
        if self.wants("guest") {
            parts.push(guest::measure(bed).await?);
        }
        if self.wants("scale") {
            parts.push(scale::measure(bed).await?);
        }
        if self.wants("bus") {
            parts.push(bus::measure(bed).await?);
        }
        Ok(parts)
    }
}

impl Bed {
    /// Runs a command of the CLI that must succeed; gives what it printed.
    async fn cli(&self, words: &[&str]) -> anyhow::Result<String> {
        self.service.run_within(words, LIMIT).await?.ok()
    }

    /// A volume with the image's contents.
    async fn volume(&self, name: &str) -> anyhow::Result<()> {
        let image = self.image.to_str().context("a path that is UTF-8")?;
        self.cli(&["create", name, "--from", image]).await.map(drop)
    }

    /// How often something is measured.
    fn rounds(&self, full: usize) -> usize {
        if self.quick { 3.min(full) } else { full }
    }
}

/// The middle one; of an even number the mean of the two in the middle.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

fn median_time(times: &[Duration]) -> Duration {
    Duration::from_secs_f64(median(&times.iter().map(Duration::as_secs_f64).collect::<Vec<_>>()))
}

fn longest(times: &[Duration]) -> Duration {
    times.iter().copied().max().unwrap_or_default()
}

/// A file that cannot be compressed and has no holes.
fn random_file(path: &Path, size: u64) -> anyhow::Result<()> {
    let mut rng = SmallRng::seed_from_u64(1);
    let mut file = File::create(path)?;
    let mut bytes = vec![0; 4 << 20];
    for _ in 0..size / bytes.len() as u64 {
        rng.fill_bytes(&mut bytes);
        file.write_all(&bytes)?;
    }
    Ok(file.sync_all()?)
}

/// Throws a file out of the page cache, so that everyone reads it from the disk.
fn forget(path: &Path) -> anyhow::Result<()> {
    let file = File::open(path)?;
    file.sync_all()?;
    Ok(rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?)
}

fn write(text: &str, marks: [&str; 2]) -> anyhow::Result<()> {
    let path = command::root().join("docs/performance.md");
    let old = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let (before, rest) = old.split_once(marks[0]).with_context(|| format!("{} has no {}", path.display(), marks[0]))?;
    let (_, after) = rest.split_once(marks[1]).with_context(|| format!("{} has no {}", path.display(), marks[1]))?;
    fs::write(&path, format!("{before}{}\n\n{text}\n{}{after}", marks[0], marks[1]))?;
    println!("written to {}", path.display());
    Ok(())
}
