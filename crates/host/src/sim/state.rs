//! Everything there is in the world, and the checks of the guarantees.

use super::{graph::NodeVolume, history::History, kernel::Kernel, nas_state::Nases};
use img_storage_model::{
    Extents, HostName, Plane, Size, VolumeId,
    messages::{ContentDigest, PoolReport},
};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};
use tokio::time::Instant;

/// Bytes of a block: the granularity of write-backs.
pub(super) const BLOCK_BYTES: u64 = Size::GRAIN;
/// Lines of trace that are kept.
const TRACE: usize = 3000;

/// How many blocks a volume of so many bytes has.
pub(super) fn blocks(bytes: u64) -> usize {
    usize::try_from(bytes / BLOCK_BYTES).unwrap_or(usize::MAX)
}

/// The whole world.
pub(super) struct State {
    pub nases: Nases,
    pub nodes: BTreeMap<HostName, Node>,
    pub kernel: Kernel,
    pub histories: BTreeMap<VolumeId, History>,
    pub log: Log,
}

/// A node's machine.
#[derive(Default)]
pub(super) struct Node {
    pub volumes: BTreeMap<VolumeId, NodeVolume>,
    /// Cut off the data network.
    pub cut: bool,
    /// Its disk has no room.
    pub full: bool,
}

/// The clock, the trace and what was found wrong.
pub(super) struct Log {
    pub start: Instant,
    pub now: Instant,
    pub trace: VecDeque<String>,
    pub violations: Vec<String>,
    /// Volumes the operator destroys.
    pub may_go: BTreeSet<VolumeId>,
    pub longest_hold: Duration,
    processes: u64,
}

impl Log {
    pub fn say(&mut self, line: String) {
        if self.trace.len() == TRACE {
            self.trace.pop_front();
        }
        let at = self.now.duration_since(self.start);
        self.trace.push_back(format!("{:>9.3} {line}", at.as_secs_f64()));
    }

    pub fn violation(&mut self, what: String) {
        self.say(format!("VIOLATION {what}"));
        self.violations.push(what);
    }

    /// The number of a new process.
    pub fn process(&mut self) -> u64 {
        self.processes += 1;
        self.processes
    }
}

impl State {
    pub fn new(now: Instant) -> Self {
        State {
            nases: Nases::default(),
            nodes: BTreeMap::new(),
            kernel: Kernel::default(),
            histories: BTreeMap::new(),
            log: Log {
                start: now,
                now,
                trace: VecDeque::new(),
                violations: Vec::new(),
                may_go: BTreeSet::new(),
                longest_hold: Duration::ZERO,
                processes: 0,
            },
        }
    }

    /// The state of a volume on a node, made when it is first asked for.
    pub fn node(&mut self, node: &HostName, volume: VolumeId) -> &mut NodeVolume {
        self.nodes.entry(node.clone()).or_default().volumes.entry(volume).or_default()
    }

    pub fn history(&mut self, volume: VolumeId) -> &mut History {
        self.histories.entry(volume).or_default()
    }

    /// What a reader of the NAS's copy gets.
    pub fn readable(&self, volume: VolumeId) -> Option<Vec<u64>> {
        self.nases.readable(volume).or_else(|| self.kernel.readable(volume))
    }

    /// Every copy on a volume's NAS.
    fn home_copies(&self, volume: VolumeId) -> Vec<Vec<u64>> {
        let mut copies = self.nases.copies(volume);
        copies.extend(self.kernel.copies(volume));
        copies
    }

    /// After contents on a NAS have changed: what a reader would get must be a point in time.
    pub fn check_readable(&mut self, volume: VolumeId, doing: &str) {
        if let Some(copy) = self.readable(volume) {
            let history = self.histories.entry(volume).or_default();
            if let Err(why) = history.point_in_time(&copy) {
                self.log.violation(format!("{doing}: the NAS's copy is no point in time: {why}"));
            }
        }
    }

    /// After something was destroyed: every answered write is still somewhere.
    pub fn check_kept(&mut self, volume: VolumeId, doing: &str) {
        if self.log.may_go.contains(&volume) {
            return;
        }
        let mut copies = self.home_copies(volume);
        copies.extend(self.kernel.node_copies(volume));
        copies.extend(self.nodes.values().filter_map(|n| n.volumes.get(&volume)?.local.as_ref().map(|l| l.data.clone())));
        let history = self.histories.entry(volume).or_default();
        let length = copies.iter().map(Vec::len).max().unwrap_or(0);
        let best: Vec<u64> = (0..length).map(|b| copies.iter().filter_map(|c| c.get(b).copied()).max().unwrap_or(0)).collect();
        if let Err(why) = history.complete(&best) {
            self.log.violation(format!("{doing}: an answered write is nowhere any more: {why}"));
        }
    }

    /// A local copy was released: the NAS has every answered write it had.
    pub fn check_released(&mut self, node: &HostName, volume: VolumeId, local: &[u64]) {
        if self.log.may_go.contains(&volume) {
            return;
        }
        // An overlay with everything in it is as good, once the node has written the pivot back down.
        let copies = self.home_copies(volume);
        let history = self.histories.entry(volume).or_default();
        for (block, version) in local.iter().copied().enumerate() {
            let have = copies.iter().filter_map(|c| c.get(block).copied()).max().unwrap_or(0);
            if version > have && history.is_acked(block, version) {
                self.log.violation(format!(
                    "{node} released a local copy with the answered {version} in block {block}; the NAS has {have}"
                ));
                return;
            }
        }
    }

    /// A guest is put onto a copy: it must have everything.
    pub fn check_complete(&mut self, volume: VolumeId, copy: &[u64], doing: &str) {
        let history = self.histories.entry(volume).or_default();
        if let Err(why) = history.complete(copy) {
            self.log.violation(format!("{doing}: the guest gets a copy that lacks writes: {why}"));
        }
    }
}

/// The digest of ranges of some contents, made as the real one is.
pub(super) fn digest(extents: &Extents, content: impl Fn(usize) -> u64) -> ContentDigest {
    let mut hasher = blake3::Hasher::new();
    for extent in extents.iter() {
        hasher.update(&extent.offset.to_le_bytes());
        hasher.update(&extent.length.to_le_bytes());
        for block in blocks(extent.offset)..blocks(extent.end()) {
            hasher.update(&content(block).to_le_bytes());
        }
    }
    ContentDigest(hasher.finalize().to_hex().to_string())
}

/// A pool with more room than anybody needs.
pub(super) fn pool_report(name: &str, plane: Plane) -> PoolReport {
    PoolReport { name: name.to_owned(), size: 1 << 50, free: 1 << 49, plane }
}
