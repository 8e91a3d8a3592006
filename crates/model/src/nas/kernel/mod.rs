//! What a NAS sees, decides and does on the kernel plane: zvols, exported by iSCSI, and streams of their snapshots.

pub(super) mod assign;
mod facts;
mod plan;
mod plan_node;
mod step;

pub use assign::iqn;
pub use facts::{Export, Held, NasFacts, Stream, Way, Zvol};
pub use plan::{Decision, after, after_error, plan, setback};
pub use step::NasStep;

use crate::{SnapshotId, messages::Still};
use serde::{Deserialize, Serialize};

/// The port of iSCSI.
pub const ISCSI_PORT: u16 = 3260;

/// What a NAS must remember of a mapping on the kernel plane.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Copying {
    /// The snapshot that is on its way to the node.
    pub round: Option<SnapshotId>,
    /// So many went there before it.
    pub rounds: u32,
    /// What the last of them took.
    pub last: Option<Round>,
    /// What the node kept of an earlier mapping has nothing in common with the volume: it is to go before anything is sent.
    #[serde(default)]
    pub fresh: bool,
    /// The last snapshot before authority passed; taken when the guest writes to its overlay.
    pub base: Option<SnapshotId>,
    /// When nothing had been written since the snapshot that the node has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub still: Option<Still>,
    /// A bring-back was begun: the guest may write to an overlay over the local copy.
    pub back: bool,
    /// So many write-backs were ordered to make what is left for the bring-back small.
    pub back_rounds: u32,
    /// The write-back that takes home what the local copy holds under the overlay.
    pub back_push: Option<SnapshotId>,
}

/// What a stream took.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Round {
    /// Bytes over the network.
    pub moved: u64,
    /// Milliseconds.
    pub took_ms: u64,
}

/// Streams of less than this are not worth another round whatever the speed.
const SMALL: u64 = 4 << 20;
/// How long the last difference may be expected to take while the guest writes to the overlay.
const SHORT_MS: u64 = 1_500;
/// After so many rounds authority passes however much is left: it does not get less.
const ROUNDS: u32 = 8;

impl Copying {
    /// Whether the last difference, of about `left` bytes, is to be fetched with the guest on the overlay: it is short, or stopped
    /// shrinking.
    fn nearly_there(&self, left: u64) -> bool {
        let short = self.last.is_some_and(|last| left.saturating_mul(last.took_ms) <= SHORT_MS.saturating_mul(last.moved));
        let stopped = self.rounds >= 3 && self.last.is_some_and(|last| left.saturating_mul(10) >= last.moved.saturating_mul(8));
        left <= SMALL || short || stopped || self.rounds >= ROUNDS
    }
}
