//! What a NAS host can show about one volume, by looking.

use crate::{Epoch, Fact, HostName, SnapshotId, nas::NasLayer, node::Job};

/// Everything observed about one volume on its NAS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NasFacts {
    /// The volume's own file, `disk.raw`.
    pub disk: Fact<Option<DiskFile>>,
    /// The storage daemon that exports the volume to its node (or to an importing front end).
    pub export: Fact<Option<ExportFacts>>,
    /// The file a write-back arrives in.
    pub incoming: Fact<Option<IncomingFacts>>,
    /// A complete, verified write-back that is not (known to be) committed.
    pub pending: Fact<Option<SnapshotId>>,
    /// The overlay of a bring-back, with the epoch in its mark.
    pub overlay: Fact<Option<Epoch>>,
    /// A read-only export for a reader (`export` to a file) is served.
    pub reader: Fact<bool>,
}

/// The volume's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskFile {
    /// Length in bytes.
    pub size: u64,
    /// Bytes it takes in the pool.
    pub allocated: u64,
}

/// The storage daemon that exports a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportFacts {
    /// The epoch it was started for.
    pub epoch: Epoch,
    /// The one host its certificate check lets in.
    pub peer: HostName,
    /// TCP port.
    pub port: u16,
    /// Names of the exports it has.
    pub names: Vec<String>,
    /// What [`super::BACK`], or else the plain export, lies on.
    pub over: NasLayer,
    /// The live commit of the overlay into the volume's file (job `commit`).
    pub commit: Option<Job>,
}

/// The incoming file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IncomingFacts {
    /// The write-back it was made for.
    pub push: SnapshotId,
    /// Its storage daemon runs.
    pub serving: bool,
}
