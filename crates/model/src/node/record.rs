//! What a node must remember about a volume because no host can show it: the node's ledger row.

use crate::{Epoch, Extents, SnapshotId, VolumeId, messages::Assign, messages::ContentDigest};
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

/// The ledger row of one volume on a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// The volume.
    pub volume: VolumeId,
    /// The newest assignment; its epoch is the highest this node has seen for the volume.
    pub assign: Assign,
    /// Who holds the newest acknowledged writes.
    pub truth: Truth,
    /// The epoch a local copy was made for on this node, with this ledger's knowledge. A local file the ledger does not know may
    /// be the only copy of something, whatever else the ledger says.
    #[serde(default)]
    pub local: Option<Epoch>,
    /// The epoch whose mapping this node has ended; an assignment of this or a lower epoch starts nothing any more.
    pub ended: Option<Epoch>,
    /// The last push's end, kept until the NAS has accepted it or ordered another.
    pub pushed: Option<PushResult>,
}

impl NodeRecord {
    /// A row for a volume's first assignment.
    pub fn new(assign: Assign) -> Self {
        let assign = Assign { asked: None, ..assign };
        NodeRecord { volume: assign.volume, assign, truth: Truth::Remote, local: None, ended: None, pushed: None }
    }

    /// Whether the present mapping has been ended on this node.
    pub fn has_ended(&self) -> bool {
        self.ended.is_some_and(|e| e >= self.assign.epoch)
    }

    /// The row after a change.
    pub fn apply(&mut self, change: NodeChange) {
        match change {
            NodeChange::Truth(truth) => self.truth = truth,
            NodeChange::Local(epoch) => self.local = Some(epoch),
            NodeChange::Pushed(result) => self.pushed = Some(result),
            NodeChange::Ended => {
                self.ended = Some(self.assign.epoch);
                self.truth = Truth::Remote;
                self.pushed = None;
                self.local = None;
            }
        }
    }
}

/// A change of the row that the planner asks for; durable before the next step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeChange {
    /// The pivot, or the pivot back.
    Truth(Truth),
    /// A local copy is about to be made for this epoch.
    Local(Epoch),
    /// A push ended.
    Pushed(PushResult),
    /// Nothing of this mapping is left on the node.
    Ended,
}
