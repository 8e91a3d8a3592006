//! Where a guest's device lies, and the jobs that move its contents.

use serde::{Deserialize, Serialize};

/// What the guest's device lies on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layer {
    /// The NAS's volume, over the network.
    Remote,
    /// The local copy.
    Local,
}

/// The state of a job that moves a volume's contents: of QEMU's, or a stream of snapshots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JobState {
    /// Moving data, or created and about to.
    Running,
    /// Stopped on an I/O error, such as a full disk; goes on by resume.
    Paused(String),
    /// A mirror that has caught up and mirrors every write.
    Ready,
    /// A mirror told to complete: both sides are identical and the guest is held until finalize.
    Pending,
    /// Over and well, not dismissed.
    Done,
    /// Over and failed (or cancelled), with the reason; not dismissed.
    Failed(String),
}

/// One job and how far it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// Where it is in its life.
    pub state: JobState,
    /// Bytes done.
    pub done: u64,
    /// Bytes in total, as far as known now; it may grow.
    pub total: u64,
    /// Bytes per second it may move; 0 for no limit.
    pub speed: u64,
}
