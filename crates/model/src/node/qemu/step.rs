//! The effects a node's planner can ask for on the qemu plane.
//!
//! Every step is idempotent: where it is already done it succeeds and changes nothing. A step may be cut off anywhere (the
//! daemon killed, a tool hanging); what is found then is described by [`super::NodeFacts`], and the planner goes on from there.

use super::Incremental;
use crate::{
    Epoch, Size, SnapshotId,
    attribute::Speed,
    messages::{DeviceKind, Endpoint},
    node::Layer,
};

/// The jobs that move a volume's contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moving {
    /// The copy to the local disk.
    Copy,
    /// A write-back.
    Push,
    /// What had changed before a bring-back.
    Back,
}

/// One effect on the node's host, on one volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeStep {
    /// Starts the volume's storage daemon for `epoch` with `top` (throttle filter, unlimited) over the NBD connection
    /// `endpoint` or the local file. A process of ours for another epoch must have been stopped before. No guest export yet.
    Start {
        /// Goes into the process's mark.
        epoch: Epoch,
        /// What `top` lies on.
        over: Layer,
        /// The NAS volume's export; needed for [`Layer::Remote`].
        endpoint: Option<Endpoint>,
    },
    /// Ends the storage daemon: flushes, quits, and is gone when this returns. Fails when a guest is connected unless `force`.
    Stop {
        /// Also with a guest connected.
        force: bool,
    },
    /// Exports `top` to the guest.
    AddGuest {
        /// How.
        device: DeviceKind,
    },
    /// Takes the guest's export away; fails with a named holder when one is connected, unless `force`.
    RemoveGuest {
        /// Cut connected guests off.
        force: bool,
    },
    /// Opens a new NBD connection to `endpoint`, moves `top` onto it, closes the old one.
    Reattach {
        /// The NAS volume's new export.
        endpoint: Endpoint,
    },
    /// Makes the local copy's file, sparse, `size` long, with its mark. Fails when a file of another mark is in the way
    /// or the pool lacks the room.
    CreateLocal {
        /// Goes into the mark.
        epoch: Epoch,
        /// Its length.
        size: Size,
    },
    /// Destroys the local copy's file and mark. The planner asks only when the NAS is the truth or holds a verified snapshot of
    /// equal identity. The storage daemon must not have it open.
    RemoveLocal,
    /// Opens the local file as node `local`.
    OpenLocal,
    /// Starts the write-blocking mirror of `top` onto `local` (auto-finalize and auto-dismiss off).
    StartCopy {
        /// How fast it may go.
        speed: Speed,
    },
    /// Lets a job that runs go on at another speed; nothing is done where it does not run any more.
    SetSpeed {
        /// Which.
        job: Moving,
        /// How fast it may go.
        speed: Speed,
    },
    /// Goes on with a paused copy.
    ResumeCopy,
    /// Cancels the copy, whatever its state before finalize, waits until it is over, dismisses it, closes `local`
    /// and removes our bitmaps from `top`.
    CancelCopy,
    /// Reserves disk space for every block of the local file, so that no guest write can meet a full disk later.
    ReserveLocal,
    /// `job-complete` for the copy: it goes on to pending, with the guest held from there.
    CompleteCopy,
    /// Adds a recording bitmap to `top`.
    AddBitmap {
        /// What it records changes since.
        since: Incremental,
    },
    /// `job-finalize` for the copy, wait until it is over, dismiss it: `top` lies on `local`.
    FinalizeCopy,
    /// Closes the connection to the NAS volume (`remote`).
    DetachRemote,
    /// One transaction: a new recording bitmap `since: Snapshot(push)` on `top`, and the bitmap that was recording is disabled.
    FreezeBitmap {
        /// The push that begins.
        push: SnapshotId,
    },
    /// Makes the scratch file and the copy-before-write filter and moves `top` onto it: the point in time.
    InsertFleece,
    /// The readable point in time and its `push` bitmap, merged from every bitmap of ours (for a push without fleecing: from every
    /// frozen bitmap, on `top`). With `full`, no bitmap.
    OpenSource {
        /// Everything moves; no bitmap is used.
        full: bool,
    },
    /// Opens the connection to the NAS's incoming file; a NAS that dies makes it fail rather than wait.
    OpenIncoming {
        /// The incoming file's export.
        endpoint: Endpoint,
    },
    /// Starts the backup (job `push-<uuid>`) from the point in time into the incoming file.
    StartPush {
        /// The push's snapshot.
        push: SnapshotId,
        /// Everything, not only what the bitmap marks.
        full: bool,
        /// How fast it may go.
        speed: Speed,
    },
    /// Reads what moved from the point in time and digests it. Gives [`crate::node::StepResult::Digest`].
    DigestPush {
        /// The push's snapshot.
        push: SnapshotId,
        /// Everything, not only what the bitmap marks.
        full: bool,
    },
    /// Takes the push apart: job cancelled or dismissed, incoming closed, point in time and its bitmap gone, `top` back on
    /// `local`, scratch file removed. Guest writes are not held up by a NAS that is away.
    EndPush,
    /// Removes one bitmap from `top`.
    DropBitmap {
        /// Which.
        since: Incremental,
    },
    /// After a failed push: the recording bitmap is merged into the frozen one, which records again; the newer one goes.
    RevertBitmap,
    /// Opens the two connections (`back`, `back2`) to the NAS's overlay.
    OpenBack {
        /// The overlay's export.
        endpoint: Endpoint,
    },
    /// Starts the mirror (sync none, write-blocking, replaces `local`) and then the backup of what the bitmaps mark (everything
    /// with `full`).
    StartBack {
        /// No trustworthy bitmap: everything moves.
        full: bool,
        /// How fast the backup may go; the guest's own writes are not slowed down.
        speed: Speed,
    },
    /// `job-complete` for the bring-back mirror, after the fill is done; goes on to pending with the guest held.
    CompleteBack,
    /// `job-finalize` for the bring-back mirror, wait, dismiss both jobs: `top` lies on the NAS again (node `back` serves as
    /// `remote`), `local` and the bitmaps are closed.
    FinalizeBack,
    /// Gives bring-back up before its pivot: both jobs cancelled and dismissed, both connections closed.
    CancelBack,
}
