//! A guest that writes all the time and remembers what it wrote.
//!
//! Every block carries the number of the write that made it, all over the block. From the history of writes it can be told
//! whether a disk is what the guest would read now, or what it would have read at *some* moment.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use img_storage_host::nbd::Nbd;
use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};
use tokio::task::JoinHandle;

const BLOCK: usize = 4096;
/// Writes in flight at once; they may take effect in any order.
const DEPTH: usize = 6;

pub struct Writer {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    slowest: Arc<AtomicU64>,
    task: JoinHandle<History>,
}

/// All writes, in order: number 0 is the block of the first one. Those that were not answered may or may not be there.
#[derive(Debug, Clone, Default)]
pub struct History {
    writes: Vec<u32>,
    acknowledged: Vec<bool>,
    /// Why it stopped, if not told to.
    pub error: Option<String>,
    blocks: usize,
}

fn content(block: u32, write: u64) -> Vec<u8> {
    let stamp = [write.to_le_bytes(), u64::from(block).to_le_bytes()].concat();
    stamp.repeat(BLOCK / 16)
}

impl Writer {
    /// Begins to write; `history` goes on from an earlier one.
    pub async fn start(socket: &Path, mut history: History) -> Self {
        let nbd = Nbd::unix(socket, "disk", &[], Duration::from_secs(90)).await.expect("the guest connects");
        history.blocks = nbd.info().size as usize / BLOCK;
        let (stop, written, slowest) = <(Arc<AtomicBool>, Arc<AtomicU64>, Arc<AtomicU64>)>::default();
        let (stopping, counting, timing) = (stop.clone(), written.clone(), slowest.clone());
        let task = tokio::spawn(async move {
            let mut random = StdRng::seed_from_u64(history.writes.len() as u64 + 1);
            while !stopping.load(Ordering::Relaxed) {
                if let Err(error) = batch(&nbd, &mut history, &mut random, &timing).await {
                    history.error = Some(error);
                    return history;
                }
                counting.fetch_add(DEPTH as u64, Ordering::Relaxed);
            }
            if let Err(error) = nbd.flush().await {
                history.error = Some(error.to_string());
            }
            nbd.disconnect().await;
            history
        });
        Self { stop, written, slowest, task }
    }

    /// Waits until it has written this much more.
    pub async fn writes(&self, more: u64) {
        let goal = self.written.load(Ordering::Relaxed) + more;
        let end = Instant::now() + Duration::from_secs(60);
        while self.written.load(Ordering::Relaxed) < goal {
            assert!(Instant::now() < end && !self.task.is_finished(), "the guest does not get on with it");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// The longest time a batch took since the last look.
    pub fn pause(&self) -> Duration {
        Duration::from_micros(self.slowest.swap(0, Ordering::Relaxed))
    }

    /// Stops it.
    pub async fn stop(self) -> History {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.expect("the guest lives")
    }
}

async fn batch(nbd: &Nbd, history: &mut History, random: &mut impl Rng, slowest: &AtomicU64) -> Result<(), String> {
    let begin = Instant::now();
    let begun = history.writes.len();
    let (mut blocks, mut in_transit) = (Vec::new(), Vec::new());
    while blocks.len() < DEPTH {
        // Half of the writes go to a sixteenth of the disk.
        let among = if random.random() { history.blocks } else { history.blocks / 16 };
        let block = random.random_range(0..among as u32);
        if blocks.contains(&block) {
            continue;
        }
        blocks.push(block);
        let data = content(block, history.writes.len() as u64);
        history.writes.push(block);
        history.acknowledged.push(false);
        in_transit.push(nbd.start_write(u64::from(block) * BLOCK as u64, &data).await.map_err(|error| error.to_string())?);
    }
    for transit in in_transit {
        transit.wait().await.map_err(|error| error.to_string())?;
    }
    history.acknowledged[begun..].fill(true);
    slowest.fetch_max(begin.elapsed().as_micros() as u64, Ordering::Relaxed);
    Ok(())
}

impl History {
    /// The newest answered write of each block among the first `n`.
    fn newest(&self, n: usize) -> Vec<Option<usize>> {
        let mut newest = vec![None; self.blocks];
        for (write, block) in self.writes[..n].iter().enumerate().filter(|(write, _)| self.acknowledged[*write]) {
            newest[*block as usize] = Some(write);
        }
        newest
    }

    /// Whether the block may hold this write instead of the newest answered one: it is later, and was not answered.
    fn may_be(&self, found: Option<usize>, block: usize, newest: Option<usize>) -> bool {
        found.is_some_and(|write| {
            Some(write) > newest && self.writes.get(write) == Some(&(block as u32)) && !self.acknowledged[write]
        })
    }

    /// Every acknowledged write is there; nothing else is.
    pub fn check_all(&self, what: &str, disk: &[u8]) {
        let newest = self.newest(self.writes.len());
        for (block, found) in stamps(what, disk) {
            let right = found == newest[block] || self.may_be(found, block, newest[block]);
            assert!(right, "{what}: block {block} has write {found:?}, not {:?}", newest[block]);
        }
        eprintln!("{what}: every one of {} writes is there", self.writes.len());
    }

    /// The disk is what it was at one moment, and that moment is not before write `since`.
    pub fn check_moment(&self, what: &str, disk: &[u8], since: usize) -> usize {
        let found: Vec<(usize, Option<usize>)> = stamps(what, disk).collect();
        let moment = found.iter().filter_map(|(_, write)| *write).max().map_or(0, |write| write + 1);
        assert!(moment >= since, "{what}: a moment before write {since}: {moment}");
        // Writes in flight at that moment may be there or not.
        let (early, late) = (self.newest(moment.saturating_sub(DEPTH)), self.newest(moment));
        for (block, write) in found {
            let right = write == late[block] || write == early[block] || self.may_be(write, block, early[block]);
            assert!(right, "{what}: block {block} has write {write:?}, not {:?} as at {moment}", late[block]);
        }
        eprintln!("{what}: as it was after write {moment} of {}", self.writes.len());
        moment
    }
}

/// Which write each block holds; a block with parts of several writes is an error.
fn stamps<'a>(what: &'a str, disk: &'a [u8]) -> impl Iterator<Item = (usize, Option<usize>)> + 'a {
    disk.chunks(BLOCK).enumerate().map(move |(block, data)| {
        if data.iter().all(|byte| *byte == 0) {
            return (block, None);
        }
        let write = u64::from_le_bytes(data[..8].try_into().expect("eight bytes"));
        assert!(data == content(block as u32, write), "{what}: block {block} is torn or of elsewhere");
        (block, Some(write as usize))
    })
}
