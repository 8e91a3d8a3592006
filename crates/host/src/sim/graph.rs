//! A volume on a node: the local file, and the block graph of the storage daemon that carries the guest's device.

use super::{BLOCK, nas_state::Patch};
use img_storage_model::Fact;
use img_storage_model::{
    Epoch, SnapshotId,
    attribute::Speed,
    messages::Endpoint,
    node::{
        Job, JobState, Layer,
        qemu::{Bitmap, Incremental, LocalFile, NodeFacts, QsdFacts, Snapshotting},
    },
};
use std::{collections::BTreeSet, time::Duration};
use tokio::time::Instant;

use super::state::{BLOCK_BYTES, blocks};

/// What a node has of a volume.
#[derive(Default)]
pub(super) struct NodeVolume {
    pub local: Option<LocalCopy>,
    /// A file without our mark is where the local copy would be.
    pub foreign: bool,
    pub qsd: Option<Qsd>,
}

pub(super) struct LocalCopy {
    pub epoch: Epoch,
    pub size: u64,
    pub reserved: bool,
    pub data: Vec<u64>,
}

/// An NBD client.
#[derive(Clone, Debug)]
pub(super) struct Conn {
    pub endpoint: Endpoint,
    /// Since when it leads nowhere.
    pub lost: Option<Instant>,
}

impl Conn {
    pub fn to(endpoint: &Endpoint) -> Self {
        Conn { endpoint: endpoint.clone(), lost: None }
    }
}

/// A job: which blocks it still has to move, and when it moves the next.
pub(super) struct SimJob {
    pub state: JobState,
    pub todo: BTreeSet<usize>,
    pub total: usize,
    pub next: Instant,
    pub speed: Speed,
}

fn pace(speed: Speed) -> Duration {
    match speed.get() {
        0 => BLOCK,
        limit => BLOCK.max(Duration::from_micros(BLOCK_BYTES * 1_000_000 / limit)),
    }
}

impl SimJob {
    pub fn new(todo: BTreeSet<usize>, now: Instant, speed: Speed) -> Self {
        SimJob { state: JobState::Running, total: todo.len(), todo, next: now + pace(speed), speed }
    }

    /// How long it takes for a block.
    pub fn pace(&self) -> Duration {
        pace(self.speed)
    }

    pub fn fact(&self) -> Job {
        let bytes = |blocks: usize| blocks as u64 * BLOCK_BYTES;
        let done = bytes(self.total.saturating_sub(self.todo.len()));
        Job { state: self.state.clone(), done, total: bytes(self.total), speed: self.speed.get() }
    }

    pub fn is(&self, state: &JobState) -> bool {
        self.state == *state
    }
}

pub(super) struct SimBitmap {
    pub since: Incremental,
    pub recording: bool,
    pub dirty: BTreeSet<usize>,
}

/// What a push reads from: the blocks of its bitmap, or everything.
pub(super) struct Source {
    pub marked: Option<BTreeSet<usize>>,
}

/// The storage daemon process.
pub(super) struct Qsd {
    /// Tells this process from a later one.
    pub process: u64,
    pub epoch: Epoch,
    pub top: Layer,
    pub remote: Option<Conn>,
    pub local: bool,
    /// Exported to the guest, and whether one is connected.
    pub guest: Option<bool>,
    pub copy: Option<SimJob>,
    pub bitmaps: Vec<SimBitmap>,
    /// The old contents of blocks written since the point in time.
    pub fleece: Option<Patch>,
    pub broken: bool,
    pub leftovers: bool,
    pub source: Option<Source>,
    pub incoming: Option<Conn>,
    pub push: Option<(SnapshotId, SimJob)>,
    /// The first and the second connection to the overlay.
    pub back: Option<Conn>,
    pub back2: bool,
    pub back_mirror: Option<SimJob>,
    pub back_fill: Option<SimJob>,
}

impl Qsd {
    pub fn new(process: u64, epoch: Epoch, top: Layer) -> Self {
        Qsd {
            process,
            epoch,
            top,
            remote: None,
            local: top == Layer::Local,
            guest: None,
            copy: None,
            bitmaps: Vec::new(),
            fleece: None,
            broken: false,
            leftovers: false,
            source: None,
            incoming: None,
            push: None,
            back: None,
            back2: false,
            back_mirror: None,
            back_fill: None,
        }
    }

    /// The guest's requests are held by a mirror that waits to be finalized.
    pub fn holds(&self) -> bool {
        [&self.copy, &self.back_mirror].into_iter().flatten().any(|job| job.is(&JobState::Pending))
    }

    pub fn frozen(&self) -> Option<usize> {
        self.bitmaps.iter().position(|b| !b.recording)
    }

    pub fn recording(&self) -> Option<usize> {
        self.bitmaps.iter().position(|b| b.recording)
    }

    /// What all bitmaps mark.
    pub fn marked(&self) -> BTreeSet<usize> {
        self.bitmaps.iter().flat_map(|b| b.dirty.iter().copied()).collect()
    }

    fn facts(&self) -> QsdFacts {
        QsdFacts {
            epoch: self.epoch,
            top: self.top,
            remote: self.remote.as_ref().map(|c| c.endpoint.export.clone()),
            local: self.local,
            guest: self.guest.is_some(),
            copy: self.copy.as_ref().map(SimJob::fact),
            bitmaps: self
                .bitmaps
                .iter()
                .map(|b| Bitmap { since: b.since, recording: b.recording, dirty: b.dirty.len() as u64 * BLOCK_BYTES })
                .collect(),
            snapshotting: Snapshotting {
                fleece: self.fleece.is_some(),
                broken: self.broken,
                source: self.source.is_some(),
                incoming: self.incoming.is_some(),
                leftovers: self.leftovers,
            },
            push: self.push.as_ref().map(|(push, job)| (*push, job.fact())),
            back: self.back.as_ref().filter(|_| self.back2).map(|c| c.endpoint.export.clone()),
            back_mirror: self.back_mirror.as_ref().map(SimJob::fact),
            back_fill: self.back_fill.as_ref().map(SimJob::fact),
        }
    }
}

impl NodeVolume {
    pub fn facts(&self) -> NodeFacts {
        let local = match (&self.local, self.foreign) {
            (_, true) => Fact::Unknown("a file without our mark is in the way".to_owned()),
            (local, false) => {
                Fact::Known(local.as_ref().map(|l| LocalFile { epoch: l.epoch, size: l.size, reserved: l.reserved }))
            }
        };
        NodeFacts { qsd: Fact::Known(self.qsd.as_ref().map(Qsd::facts)), local }
    }

    /// The contents at the push's point in time: as they are, or as they were where the guest wrote since.
    pub fn point_in_time(&self, block: usize) -> u64 {
        let now = self.local.as_ref().and_then(|l| l.data.get(block).copied()).unwrap_or(0);
        self.qsd.as_ref().and_then(|q| q.fleece.as_ref()).and_then(|f| f.get(&block).copied()).unwrap_or(now)
    }
}

/// All blocks of a volume of so many bytes.
pub(super) fn every(bytes: u64) -> BTreeSet<usize> {
    (0..blocks(bytes)).collect()
}
