//! A guest that writes and reads through its device, and knows what it must find.
//!
//! Several requests are in flight at once, never two on one block. When the connection breaks it connects again, as a guest
//! with `reconnect-delay` does, looks what became of what was under way, and goes on.

use crate::{
    history::{Cut, History, Violation},
    stamp,
};
use img_storage_host::nbd::{Nbd, NbdError};
use img_storage_model::Extent;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use std::{
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    path::PathBuf,
    str::FromStr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::task::JoinSet;

/// Blocks read at once when everything is looked at.
const CHUNK: usize = 64;

/// A guest's device: an export behind a unix socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// The socket.
    pub socket: PathBuf,
    /// The export's name.
    pub export: String,
}

impl FromStr for Device {
    type Err = anyhow::Error;

    /// `nbd+unix:///NAME?socket=PATH`, as `img-storage map` prints it.
    fn from_str(text: &str) -> anyhow::Result<Self> {
        let bad = || anyhow::anyhow!("{text:?} is no nbd+unix:///NAME?socket=PATH");
        let (export, socket) = text.trim().strip_prefix("nbd+unix:///").and_then(|t| t.split_once("?socket=")).ok_or_else(bad)?;
        anyhow::ensure!(!socket.contains('%'), "the socket's path in {text:?} has encoded characters");
        Ok(Device { socket: socket.into(), export: export.to_owned() })
    }
}

impl Device {
    /// Connects; `deadline` is for each request.
    ///
    /// # Errors
    /// When nobody serves it.
    pub async fn connect(&self, deadline: Duration) -> Result<Nbd, NbdError> {
        Nbd::unix(&self.socket, &self.export, &[], deadline).await
    }

    /// Waits, a second at most, until the server too has closed the connections that are over: until then whoever asks who
    /// uses the device is told that somebody does.
    pub async fn released(&self) {
        let path = self.socket.display().to_string();
        for _ in 0..500 {
            let table = std::fs::read_to_string("/proc/net/unix").unwrap_or_default();
            // 03 is a connection, 01 a socket that listens.
            let connected = |line: &str| line.ends_with(&path) && line.split_whitespace().nth(5) == Some("03");
            if !table.lines().any(connected) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

/// What the writer does.
#[derive(Clone, Debug)]
pub struct Load {
    /// Requests in flight.
    pub depth: usize,
    /// The longest request, in blocks; lengths are drawn from 1 to this.
    pub longest: usize,
    /// Per cent of the requests that read and check.
    pub reads: u32,
    /// A flush after so many requests of one of those in flight.
    pub flush_every: u32,
    /// A rest after each request.
    pub rest: Duration,
    /// How long a request may take.
    pub deadline: Duration,
    /// How long the device may be away.
    pub patience: Duration,
}

impl Default for Load {
    fn default() -> Self {
        Load {
            depth: 8,
            longest: 16,
            reads: 30,
            flush_every: 20,
            rest: Duration::ZERO,
            deadline: Duration::from_secs(120),
            patience: Duration::from_secs(60),
        }
    }
}

/// What was done so far.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// Write requests acknowledged, and their bytes.
    pub writes: u64,
    /// Bytes of them.
    pub written: u64,
    /// Read requests, every block of which was checked.
    pub reads: u64,
    /// Bytes of them.
    pub read: u64,
    /// Flushes acknowledged.
    pub flushes: u64,
    /// The longest a request took since this was last asked for.
    pub longest: Duration,
    /// Times the device went away, and the longest time until it was usable again.
    pub outages: u64,
    /// That time.
    pub longest_outage: Duration,
    /// Requests answered by an error while the device was there.
    pub refused: u64,
}

/// Why the writer ended.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// The disk is not what it must be.
    #[error("{0}")]
    Violation(#[from] Violation),
    /// The device stayed away.
    #[error("the device was away for more than {after:?}: {why}")]
    Away {
        /// How long.
        after: Duration,
        /// The last error.
        why: NbdError,
    },
}

/// A writer; its history outlives connections.
pub struct Writer {
    history: Mutex<History>,
    figures: Mutex<Figures>,
    seeds: AtomicU64,
    stop: AtomicBool,
}

enum End {
    Stopped,
    Broken(NbdError),
    Violation(Violation),
}

impl From<NbdError> for End {
    fn from(error: NbdError) -> Self {
        End::Broken(error)
    }
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The offsets of the whole blocks in `areas` that lie on a multiple of the block size.
pub fn blocks_of(areas: &[Extent], block: u32) -> Vec<u64> {
    let block = u64::from(block);
    areas.iter().flat_map(|a| (a.offset.div_ceil(block)..a.end() / block).map(move |n| n * block)).collect()
}

/// Fills `areas` of a disk image with what a writer of run `seed` takes for their initial contents.
///
/// # Errors
/// When the file cannot be written.
pub fn stamp_areas(image: &File, seed: u64, block: u32, areas: &[Extent]) -> io::Result<()> {
    let mut bytes = vec![0; block as usize];
    for offset in blocks_of(areas, block) {
        stamp::fill(&mut bytes, seed, offset, 0);
        image.write_all_at(&bytes, offset)?;
    }
    Ok(())
}

impl Writer {
    /// A writer for `areas` of a disk, which are zero. What it does follows from the seed, as far as the order of answers
    /// allows.
    pub fn new(seed: u64, block: u32, areas: &[Extent]) -> Arc<Self> {
        Self::over(History::new(seed, block, blocks_of(areas, block), false))
    }

    /// The same for areas that [`stamp_areas`] has filled.
    pub fn stamped(seed: u64, block: u32, areas: &[Extent]) -> Arc<Self> {
        Self::over(History::new(seed, block, blocks_of(areas, block), true))
    }

    fn over(history: History) -> Arc<Self> {
        let seeds = AtomicU64::new(history.run());
        Arc::new(Writer { history: Mutex::new(history), figures: Mutex::default(), seeds, stop: AtomicBool::new(false) })
    }

    /// What was done so far; the longest request begins anew.
    pub fn figures(&self) -> Figures {
        let mut figures = held(&self.figures);
        let now = figures.clone();
        figures.longest = Duration::ZERO;
        now
    }

    /// A moment, to compare a [`Cut`] with.
    pub fn now(&self) -> u64 {
        held(&self.history).now()
    }

    /// Whether an image is what the disk was at one instant. The writer goes on meanwhile.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn cut(&self, image: &File) -> io::Result<Result<Cut, Violation>> {
        let history = held(&self.history).clone();
        history.cut(image)
    }

    /// Ends [`Writer::run`] after the requests in flight.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Puts load on the device until told to stop.
    ///
    /// # Errors
    /// The first thing that is not as it must be.
    pub async fn run(self: Arc<Self>, device: Device, load: Load) -> Result<(), Trouble> {
        self.stop.store(false, Ordering::Relaxed);
        let mut away: Option<Instant> = None;
        while !self.stopped() {
            let end = match device.connect(load.deadline).await {
                Ok(nbd) => self.session(nbd, &load, &mut away).await,
                Err(why) => End::Broken(why),
            };
            match end {
                End::Stopped => break,
                End::Violation(violation) => return Err(violation.into()),
                End::Broken(why) => {
                    if matches!(why, NbdError::Refused { .. }) {
                        held(&self.figures).refused += 1;
                    }
                    let since = *away.get_or_insert_with(Instant::now);
                    if since.elapsed() > load.patience {
                        return Err(Trouble::Away { after: load.patience, why });
                    }
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }
        device.released().await;
        Ok(())
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    async fn session(self: &Arc<Self>, nbd: Nbd, load: &Load, away: &mut Option<Instant>) -> End {
        let doubtful = held(&self.history).doubtful(CHUNK);
        if let Err(end) = self.settle(&nbd, &doubtful, false).await {
            return end;
        }
        if let Some(since) = away.take() {
            let mut figures = held(&self.figures);
            figures.outages += 1;
            figures.longest_outage = figures.longest_outage.max(since.elapsed());
        }
        let nbd = Arc::new(nbd);
        let halt = Arc::new(AtomicBool::new(false));
        let mut workers = JoinSet::new();
        for _ in 0..load.depth {
            let rng = StdRng::seed_from_u64(self.seeds.fetch_add(1, Ordering::Relaxed));
            let (writer, nbd, load, halt) = (Arc::clone(self), Arc::clone(&nbd), load.clone(), Arc::clone(&halt));
            workers.spawn(async move {
                let end = writer.work(&nbd, &load, rng, &halt).await;
                halt.store(true, Ordering::Relaxed);
                end
            });
        }
        let mut end = End::Stopped;
        while let Some(done) = workers.join_next().await {
            let done = done.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
            end = match (end, done) {
                (End::Violation(v), _) | (_, End::Violation(v)) => End::Violation(v),
                (End::Broken(why), _) | (_, End::Broken(why)) => End::Broken(why),
                (End::Stopped, End::Stopped) => End::Stopped,
            };
        }
        end
    }

    async fn work(&self, nbd: &Nbd, load: &Load, mut rng: StdRng, halt: &AtomicBool) -> End {
        let mut since_flush = 0;
        while !self.stopped() && !halt.load(Ordering::Relaxed) {
            let done = if since_flush >= load.flush_every {
                since_flush = 0;
                self.flush(nbd).await
            } else {
                since_flush += 1;
                let (first, count) = {
                    let mut history = held(&self.history);
                    let first = rng.random_range(0..history.len());
                    (first, history.reserve(first, rng.random_range(1..=load.longest)))
                };
                let done = match rng.random_range(0..100) < load.reads {
                    _ if count == 0 => Ok(()),
                    true => self.read(nbd, first, count).await,
                    false => self.write(nbd, first, count).await,
                };
                held(&self.history).release(first, count);
                done
            };
            if let Err(end) = done {
                return end;
            }
            if load.rest.is_zero() {
                tokio::task::yield_now().await;
            } else {
                tokio::time::sleep(load.rest).await;
            }
        }
        End::Stopped
    }

    fn took(&self, begun: Instant, note: impl FnOnce(&mut Figures)) {
        let mut figures = held(&self.figures);
        figures.longest = figures.longest.max(begun.elapsed());
        note(&mut figures);
    }

    async fn flush(&self, nbd: &Nbd) -> Result<(), End> {
        let (begun, event) = (Instant::now(), self.now());
        nbd.flush().await?;
        held(&self.history).flushed(event);
        self.took(begun, |f| f.flushes += 1);
        Ok(())
    }

    async fn write(&self, nbd: &Nbd, first: usize, count: usize) -> Result<(), End> {
        let (bytes, offset) = {
            let mut history = held(&self.history);
            let sequence = history.issue(first, count);
            let mut bytes = vec![0; count * history.block_size() as usize];
            let run = history.run();
            for (n, block) in bytes.chunks_mut(history.block_size() as usize).enumerate() {
                stamp::fill(block, run, history.offset(first + n), sequence);
            }
            (bytes, history.offset(first))
        };
        let begun = Instant::now();
        let done = nbd.write(offset, &bytes).await;
        let mut history = held(&self.history);
        match done {
            Ok(()) => history.acknowledge(first, count),
            Err(why) => {
                history.doubt(first, count);
                return Err(why.into());
            }
        }
        drop(history);
        self.took(begun, |f| {
            f.writes += 1;
            f.written += bytes.len() as u64;
        });
        Ok(())
    }

    fn span(&self, first: usize, count: usize) -> (u64, u32, usize) {
        let history = held(&self.history);
        let size = history.block_size();
        (history.offset(first), size * u32::try_from(count).unwrap_or(u32::MAX), size as usize)
    }

    async fn read(&self, nbd: &Nbd, first: usize, count: usize) -> Result<(), End> {
        let (offset, length, size) = self.span(first, count);
        let begun = Instant::now();
        let bytes = nbd.read(offset, length).await?;
        self.took(begun, |f| {
            f.reads += 1;
            f.read += bytes.len() as u64;
        });
        let history = held(&self.history);
        for (index, block) in (first..).zip(bytes.chunks(size)) {
            history.check_read(index, block).map_err(End::Violation)?;
        }
        Ok(())
    }

    async fn settle(&self, nbd: &Nbd, runs: &[(usize, usize)], only_flushed: bool) -> Result<(), End> {
        for (first, count) in runs {
            let (offset, length, size) = self.span(*first, *count);
            let bytes = nbd.read(offset, length).await?;
            let mut history = held(&self.history);
            for (index, block) in (*first..).zip(bytes.chunks(size)) {
                history.settle(index, block, only_flushed).map_err(End::Violation)?;
            }
        }
        Ok(())
    }

    /// Reads every block and checks it, while the writer does not run. What a broken connection left open is settled by what
    /// is found; with `only_flushed`, what was not flushed may be gone.
    ///
    /// # Errors
    /// The first thing that is not as it must be.
    pub async fn check_all(&self, device: &Device, deadline: Duration, only_flushed: bool) -> Result<(), Trouble> {
        let away = |why| Trouble::Away { after: Duration::ZERO, why };
        let nbd = device.connect(deadline).await.map_err(away)?;
        let all = held(&self.history).all(CHUNK);
        match self.settle(&nbd, &all, only_flushed).await {
            Ok(()) | Err(End::Stopped) => {}
            Err(End::Broken(why)) => return Err(away(why)),
            Err(End::Violation(violation)) => return Err(violation.into()),
        }
        nbd.disconnect().await;
        device.released().await;
        Ok(())
    }
}
