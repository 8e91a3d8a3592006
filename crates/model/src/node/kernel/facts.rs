//! What a node's host can show about one volume on the kernel plane, by looking.

use crate::{
    Epoch, Fact,
    messages::{Progress, Writes},
    node::Layer,
    snapshot::Snapshot,
};
use serde::{Deserialize, Serialize};

/// Everything observed about one volume on this node. The zvols may have been looked at some seconds before the rest ([`Zvols`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeFacts {
    /// The session with the volume's target, of whatever epoch.
    pub session: Fact<Option<Session>>,
    /// The device-mapper device the guest uses.
    pub device: Fact<Option<Device>>,
    /// The local zvol.
    pub local: Fact<Option<LocalZvol>>,
    /// The zvol that takes the guest's writes for a moment.
    pub overlay: Fact<Option<Overlay>>,
    /// Where the local zvol is, or would be received.
    pub dataset: String,
}

/// What was seen of a volume's zvols. To ask ZFS costs more than all other looks together, so where nothing can have changed that counts it is
/// carried over to the next facts, for seconds at most.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zvols {
    /// The local copy.
    pub local: Option<LocalZvol>,
    /// The overlay.
    pub overlay: Option<Overlay>,
}

/// An iSCSI session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// Its target.
    pub iqn: String,
    /// It is logged in now; one that lost its target tries again by itself.
    pub up: bool,
    /// Its disk, when that is there.
    pub disk: Option<Disk>,
}

/// What a disk says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Its serial number.
    pub serial: String,
    /// Its length in bytes.
    pub size: u64,
}

/// What the guest's device lies on, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Table {
    /// Straight on it.
    Linear(Layer),
    /// Reads come from it, writes go to the overlay.
    Overlay(Layer),
    /// As before, and what the overlay has is moved into it.
    Merge(Layer),
}

impl Table {
    /// What lies under it.
    pub fn layer(self) -> Layer {
        let (Table::Linear(layer) | Table::Overlay(layer) | Table::Merge(layer)) = self;
        layer
    }
}

/// The device-mapper device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// The epoch in its mark.
    pub epoch: Epoch,
    /// Its table; what is not one of ours says what it is.
    pub table: Result<Table, String>,
    /// Length in bytes.
    pub size: u64,
    /// It was left suspended: whoever uses it waits.
    pub suspended: bool,
    /// Of a merge: how much is left of how much, by the overlay's own account.
    pub merge: Option<Merge>,
    /// Why the overlay can take no more, when that is so.
    pub broken: Option<String>,
    /// What was written through it, where the kernel counts that.
    pub writes: Option<Writes>,
    /// None of it was under way, for as long as it took to look at the zvols.
    pub quiet: bool,
}

/// How far a merge is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Merge {
    /// Bytes that wait in the overlay.
    pub left: u64,
    /// Bytes of the overlay.
    pub total: u64,
}

impl Merge {
    /// As it is shown, of a merge that began with `total` bytes to move or more.
    pub fn progress(self) -> Progress {
        Progress { done: self.total.saturating_sub(self.left), total: self.total }
    }
}

/// The local copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalZvol {
    /// Length in bytes.
    pub size: u64,
    /// Our snapshots, oldest first.
    pub snapshots: Vec<Snapshot>,
    /// The newest of them came in a stream, and was not held since: what is taken here says so, from its first moment.
    pub received: bool,
    /// A hold keeps the newest of them from being destroyed by mistake.
    pub held: bool,
    /// Bytes written since the newest of them, as ZFS counts; everything when there is none.
    pub written: u64,
    /// Whether all of that is ZFS's own bookkeeping, the newest snapshot holding everything: shown to be so, or not to be. Nothing where that cannot be
    /// told, as of what is in use, or nothing was counted.
    pub unchanged: Option<bool>,
    /// The epoch whose streams it takes; the mark that stands between a late stream and the truth.
    pub receives: Option<Epoch>,
    /// What a receive that was cut off goes on with.
    pub resume: Option<String>,
    /// Every block of it has its place in the pool: no write can meet a full one.
    pub reserved: bool,
}

/// The overlay's zvol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overlay {
    /// The epoch in its mark.
    pub epoch: Epoch,
    /// Length in bytes.
    pub size: u64,
}
