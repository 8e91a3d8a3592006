//! What a node must remember about a volume because no host can show it: the node's ledger row.

use super::{Layer, kernel::Table};
use crate::{
    Epoch, Extents, Plane, SnapshotId, VolumeId,
    messages::{Assign, ContentDigest, Still},
    snapshot::Snapshot,
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Which copy holds the newest acknowledged writes, as this node knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Truth {
    /// The NAS's; the local copy, if any, can be thrown away.
    Remote,
    /// The local copy. It is not destroyed until the NAS has it verified.
    Local,
}

/// Where a guest's writes are on the kernel plane. The device's table is put up from this after a reboot, so that it is written down
/// before each change of the table: a merge that had begun and was taken for a plain overlay would lose writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lies {
    /// On the NAS.
    #[default]
    Remote,
    /// On the NAS, or on the local copy, to which the device is about to be moved: its table says which, and without a device the local copy,
    /// which nobody else writes to.
    Moving,
    /// In the overlay, over the NAS's volume.
    OverRemote,
    /// In the overlay and the local copy, into which it is merged.
    MergingLocal,
    /// On the local copy.
    Local,
    /// In the overlay, over the local copy.
    OverLocal,
    /// In the overlay and the NAS's volume, into which it is merged.
    MergingRemote,
}

impl Lies {
    /// The table that the guest's device has then; while it is about to be moved, the one from which.
    pub fn table(self) -> Table {
        match self {
            Lies::Remote | Lies::Moving => Table::Linear(Layer::Remote),
            Lies::OverRemote => Table::Overlay(Layer::Remote),
            Lies::MergingLocal => Table::Merge(Layer::Local),
            Lies::Local => Table::Linear(Layer::Local),
            Lies::OverLocal => Table::Overlay(Layer::Local),
            Lies::MergingRemote => Table::Merge(Layer::Remote),
        }
    }

    /// Where they are, by the table of a device in use.
    pub fn of(table: Table) -> Self {
        match table {
            Table::Linear(Layer::Remote) => Lies::Remote,
            Table::Overlay(Layer::Remote) => Lies::OverRemote,
            Table::Merge(Layer::Local) => Lies::MergingLocal,
            Table::Linear(Layer::Local) => Lies::Local,
            Table::Overlay(Layer::Local) => Lies::OverLocal,
            Table::Merge(Layer::Remote) => Lies::MergingRemote,
        }
    }
}

/// How a push ended on this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PushOutcome {
    /// Everything is in the NAS's incoming file; the NAS verifies it by this.
    Sent {
        /// Ranges that cover what moved.
        extents: Extents,
        /// Digest of their contents at the point in time.
        digest: ContentDigest,
        /// Bytes moved.
        moved: u64,
    },
    /// The snapshot is taken; the NAS fetches it, and knows it by this.
    Taken(Snapshot),
    /// It failed; the guest was not affected and the changes are still recorded.
    Failed {
        /// Why.
        why: String,
    },
}

/// The result of the last push.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PushResult {
    /// Which push.
    pub push: SnapshotId,
    /// How it ended.
    pub outcome: PushOutcome,
}

/// Why a warm copy is to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Going {
    /// The warm copies take more than they may, and it was used longest ago.
    Quota,
    /// A local copy that is about to be made needs its room.
    Room,
    /// Its volume was deleted.
    Deleted,
}

impl std::fmt::Display for Going {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Going::Quota => "the warm copies take more than they may",
            Going::Room => "a local copy that is about to be made needs the room",
            Going::Deleted => "the volume was deleted",
        })
    }
}

/// What is remembered of a local copy that is kept for the next start, after its mapping ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warm {
    /// When the mapping ended: what was used longest ago goes first.
    pub since: Timestamp,
    /// The newest snapshot in it, where the NAS is known to have had it then. A copy with another one may be the only one there is.
    pub home: Option<Snapshot>,
    /// It is to go.
    pub going: Option<Going>,
    /// It was to go, and stays: why.
    pub stays: Option<String>,
}

/// The ledger row of one volume on a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// The volume.
    pub volume: VolumeId,
    /// The newest assignment; its epoch is the highest this node has seen for the volume.
    pub assign: Assign,
    /// Who holds the newest acknowledged writes.
    pub truth: Truth,
    /// Where the guest's writes are, on the kernel plane.
    #[serde(default)]
    pub lies: Lies,
    /// By what the device is, or was, moved to the local copy at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub still: Option<Still>,
    /// The epoch a local copy was made for on this node, with this ledger's knowledge. A local file the ledger does not know may
    /// be the only copy of something, whatever else the ledger says.
    #[serde(default)]
    pub local: Option<Epoch>,
    /// The epoch whose mapping this node has ended; an assignment of this or a lower epoch starts nothing any more.
    pub ended: Option<Epoch>,
    /// The last push's end, kept until the NAS has accepted it or ordered another.
    pub pushed: Option<PushResult>,
    /// The local copy is kept for the next start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warm: Option<Warm>,
}

impl NodeRecord {
    /// A row for a volume's first assignment.
    pub fn new(assign: Assign) -> Self {
        let assign = Assign { asked: None, ..assign };
        NodeRecord {
            volume: assign.volume,
            assign,
            truth: Truth::Remote,
            lies: Lies::Remote,
            still: None,
            local: None,
            ended: None,
            pushed: None,
            warm: None,
        }
    }

    /// The NAS's snapshot with which this node's copy became the truth, which the NAS therefore has.
    pub fn base(&self) -> Option<Snapshot> {
        let last = self.assign.kernel.as_ref().and_then(|kernel| kernel.base);
        last.or(self.still.as_ref().map(|still| still.snapshot))
    }

    /// Whether the present mapping has been ended on this node.
    pub fn has_ended(&self) -> bool {
        self.ended.is_some_and(|e| e >= self.assign.epoch)
    }

    /// What is remembered of the warm copy, when the mapping is over and there may be one. Of a row that is older than this program
    /// nothing is: such a copy goes first.
    pub fn kept(&self) -> Option<Warm> {
        let may_be =
            self.has_ended() && self.truth == Truth::Remote && self.local.is_some() && self.assign.plane == Plane::Kernel;
        may_be.then(|| self.warm.clone().unwrap_or_default())
    }

    /// The row after a change; `now` is the daemon's clock.
    pub fn apply(&mut self, change: NodeChange, now: Timestamp) {
        match change {
            NodeChange::Truth(truth) => self.truth = truth,
            NodeChange::Lies(lies) => {
                self.lies = lies;
                self.truth = if lies == Lies::Remote { Truth::Remote } else { Truth::Local };
                self.still = self.still.take().filter(|_| lies == Lies::Local);
            }
            // The copy may be the truth in a moment: it is treated as such.
            NodeChange::Move(still) => (self.lies, self.truth, self.still) = (Lies::Moving, Truth::Local, Some(still)),
            NodeChange::Local(epoch) => self.local = Some(epoch),
            NodeChange::Pushed(result) => self.pushed = Some(result),
            NodeChange::Home(newest) => self.warm = Some(Warm { home: Some(newest), ..Warm::default() }),
            NodeChange::Going(why) => self.warm = self.kept().map(|warm| Warm { going: Some(why), stays: None, ..warm }),
            NodeChange::Stays(why) => self.warm = self.kept().map(|warm| Warm { going: None, stays: Some(why), ..warm }),
            // That one was made stays known: a stream that was under way when the mapping ended may still make another.
            NodeChange::WarmGone => self.warm = None,
            NodeChange::Ended { warm, home } => {
                // A mapping that did not touch it proves nothing of a copy that was found to be perhaps the only one.
                let stays = self.warm.take().and_then(|before| before.stays).filter(|_| home.is_none());
                self.warm = warm.then(|| Warm { since: now, home, stays, ..Warm::default() });
                self.ended = Some(self.assign.epoch);
                self.truth = Truth::Remote;
                self.pushed = None;
                (self.lies, self.still) = (Lies::Remote, None);
                self.local = self.local.filter(|_| warm);
            }
        }
    }
}

/// A change of the row that the planner asks for; durable before the next step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeChange {
    /// The pivot, or the pivot back.
    Truth(Truth),
    /// Where the guest's writes are about to be.
    Lies(Lies),
    /// The device is about to be moved to the local copy at once.
    Move(Still),
    /// A local copy is about to be made for this epoch.
    Local(Epoch),
    /// A push ended.
    Pushed(PushResult),
    /// The NAS has this, the newest snapshot of the local copy, from which the guest goes back to it.
    Home(Snapshot),
    /// The warm copy is to go.
    Going(Going),
    /// The warm copy was to go, and stays: why.
    Stays(String),
    /// The warm copy is gone.
    WarmGone,
    /// Nothing of this mapping is left on the node.
    Ended {
        /// But for a local copy that is what the NAS has, for the next time.
        warm: bool,
        /// Its newest snapshot, where the NAS is known to have that.
        home: Option<Snapshot>,
    },
}
