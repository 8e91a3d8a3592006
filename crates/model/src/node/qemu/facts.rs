//! What a node's host can show about one volume on the qemu plane, by looking.

use crate::{
    Epoch, Fact, SnapshotId,
    node::{Job, Layer},
};
use serde::{Deserialize, Serialize};

/// Everything observed about one volume on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeFacts {
    /// The storage daemon process that carries the guest's device; `None` when there is none.
    pub qsd: Fact<Option<QsdFacts>>,
    /// The local copy on disk; `None` when there is none.
    pub local: Fact<Option<LocalFile>>,
}

/// The local copy's file, and the mark beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalFile {
    /// The epoch of the mapping it was made for.
    pub epoch: Epoch,
    /// Its length in bytes.
    pub size: u64,
    /// Every block of it has its place on the disk (or the file system cannot reserve): no write can meet a full disk.
    pub reserved: bool,
}

/// What a bitmap on `top` records changes since: the snapshot the NAS holds, the pivot, or nothing anybody knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Incremental {
    /// Since the pivot of this epoch: the NAS's copy as it was then.
    Pivot,
    /// Since this snapshot.
    Snapshot(SnapshotId),
    /// Put in after an unclean stop; what was written before it is not recorded. Only a full push can follow.
    Unknown,
}

/// One of our bitmaps on `top` (named `wb.pivot`, `wb.unknown` or `wb.<uuid of the snapshot>`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bitmap {
    /// Since when it records.
    pub since: Incremental,
    /// Whether it is recording now; the one that belongs to a push under way is disabled.
    pub recording: bool,
    /// Bytes it marks as changed.
    pub dirty: u64,
}

/// The fleecing arrangement of a push, as far as it is built.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Snapshotting {
    /// `top` lies on the copy-before-write filter: the point in time exists.
    pub fleece: bool,
    /// The point in time is broken (its scratch file filled up or failed): the push must be given up.
    pub broken: bool,
    /// The readable point in time with its `push` bitmap exists (node `snap` over the filter; without fleecing the bitmap is on `top`).
    pub source: bool,
    /// The connection to the NAS's incoming file is open.
    pub incoming: bool,
    /// Leftover pieces (scratch file, detached filter nodes) exist though `fleece` is false.
    pub leftovers: bool,
}

/// The block graph of the storage daemon that carries the volume on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QsdFacts {
    /// The epoch this process was started for.
    pub epoch: Epoch,
    /// What `top` lies on, seen through filters. During a mirror that has not finalized this is the source.
    pub top: Layer,
    /// The export name of the open NBD connection to the NAS volume, when one is open (`remote`).
    pub remote: Option<String>,
    /// The local copy is open (`local`).
    pub local: bool,
    /// The guest's device is exported.
    pub guest: bool,
    /// The copy to the local file (job `copy`).
    pub copy: Option<Job>,
    /// Our bitmaps on `top`, oldest first.
    pub bitmaps: Vec<Bitmap>,
    /// What of a push's arrangement is there.
    pub snapshotting: Snapshotting,
    /// The backup of a push (job `push-<uuid of the snapshot>`).
    pub push: Option<(SnapshotId, Job)>,
    /// The export name of the open bring-back connections (nodes `back`, `back2`), when both are open.
    pub back: Option<String>,
    /// The mirror of bring-back (job `back`), which sends every guest write to the NAS too.
    pub back_mirror: Option<Job>,
    /// The backup that fills in what had changed before (job `backfill`).
    pub back_fill: Option<Job>,
}

impl QsdFacts {
    /// One that was only just started over a layer, with this export of the NAS open.
    pub fn started(epoch: Epoch, over: Layer, remote: Option<String>) -> Self {
        QsdFacts {
            epoch,
            top: over,
            remote,
            local: over == Layer::Local,
            guest: false,
            copy: None,
            bitmaps: Vec::new(),
            snapshotting: Snapshotting::default(),
            push: None,
            back: None,
            back_mirror: None,
            back_fill: None,
        }
    }

    /// The bitmap that is disabled for a push under way.
    pub fn frozen(&self) -> Option<&Bitmap> {
        self.bitmaps.iter().find(|b| !b.recording)
    }

    /// The job that moves contents and can be followed.
    pub fn moving(&self) -> Option<&Job> {
        self.copy.as_ref().or(self.push.as_ref().map(|(_, job)| job)).or(self.back_fill.as_ref())
    }

    /// Any job of ours.
    pub fn job(&self) -> Option<&Job> {
        self.moving().or(self.back_mirror.as_ref())
    }

    /// The bitmap that records now.
    pub fn recording(&self) -> Option<&Bitmap> {
        self.bitmaps.iter().find(|b| b.recording)
    }
}
