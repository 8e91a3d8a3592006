//! What a NAS host can show about one volume on the kernel plane, by looking.

use crate::{Epoch, Fact, SnapshotId, nas::qemu::ExportFacts, node::Job, snapshot::Snapshot};

/// Everything observed about one volume on its NAS. The zvol may have been looked at some seconds before the rest: to ask ZFS costs more than all
/// other looks together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NasFacts {
    /// The volume's zvol, with our mark.
    pub zvol: Fact<Option<Zvol>>,
    /// Its iSCSI exports, of whatever epoch.
    pub exports: Fact<Vec<Export>>,
    /// The storage daemon over the zvol through which a front end fills it.
    pub import: Fact<Option<ExportFacts>>,
    /// A read-only export for a reader is served.
    pub reader: Fact<bool>,
    /// The stream to or from the node that this daemon runs; one that another daemon ran ended with it.
    pub stream: Option<Stream>,
}

/// A volume's zvol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zvol {
    /// Length in bytes.
    pub size: u64,
    /// Bytes it takes in the pool, its snapshots included.
    pub allocated: u64,
    /// Our snapshots, oldest first, with whether our hold is on them.
    pub snapshots: Vec<Held>,
    /// Bytes written since the newest of them; everything when there is none. ZFS counts them when it syncs, seconds later;
    /// a snapshot makes it sync.
    pub written: u64,
    /// A snapshot of somebody else that is newer than our newest: nothing can be received over it.
    pub foreign: Option<String>,
    /// What a receive that was cut off goes on with.
    pub resume: Option<String>,
}

/// One of our snapshots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Which.
    pub snapshot: Snapshot,
    /// Our hold keeps it from being destroyed by mistake.
    pub held: bool,
}

impl Zvol {
    /// The snapshots, oldest first.
    pub fn points(&self) -> Vec<Snapshot> {
        self.snapshots.iter().map(|s| s.snapshot).collect()
    }

    /// One of them.
    pub fn point(&self, id: SnapshotId) -> Option<&Held> {
        self.snapshots.iter().find(|s| s.snapshot.id == id)
    }
}

/// An iSCSI export of the volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// The epoch in its mark.
    pub epoch: Epoch,
    /// Its target.
    pub iqn: String,
    /// The one initiator it lets in.
    pub initiator: Option<String>,
    /// Every piece of it is there and it is open for logins; one that was cut off in the making is not.
    pub complete: bool,
    /// Somebody is logged in.
    pub session: bool,
}

/// Which way a stream goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From here to the node.
    ToNode,
    /// From the node to here.
    FromNode,
}

/// A stream of snapshots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stream {
    /// Its direction.
    pub way: Way,
    /// The snapshot that will be there at its end.
    pub to: SnapshotId,
    /// How far it is; it is over and waits for [`super::NasStep::EndStream`] in [`crate::node::JobState::Done`] and `Failed`.
    pub job: Job,
}
