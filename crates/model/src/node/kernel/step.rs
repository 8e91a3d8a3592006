//! The effects a node's planner can ask for on the kernel plane. Idempotent: where a step is done already it succeeds.

use super::Table;
use crate::{
    Epoch, Size, SnapshotId,
    messages::{Endpoint, IscsiLogin, Writes},
    snapshot::Snapshot,
};

/// One effect on the node's host, on one volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeStep {
    /// Logs in to the target and waits for its disk, which must have the serial number and be long enough.
    Login {
        /// Where; the export's name is the target's.
        endpoint: Endpoint,
        /// With what.
        login: IscsiLogin,
        /// The disk's least length.
        size: Size,
    },
    /// Logs out of the volume's targets of whatever epoch and forgets them. Fails while the disk is in use.
    Logout,
    /// Makes the kernel look again how long the disk is.
    Rescan {
        /// What it is to be.
        size: Size,
    },
    /// Makes the guest's device, with the epoch in its mark.
    CreateDevice {
        /// Goes into its mark.
        epoch: Epoch,
        /// What it lies on.
        table: Table,
        /// Its length.
        size: Size,
    },
    /// Changes what the device lies on: its writes are waited for and put on stable storage, then it goes on over the other. On
    /// any failure it goes on as it was.
    Swap {
        /// What it is to lie on.
        table: Table,
        /// Its length.
        size: Size,
    },
    /// Moves the device from the NAS's volume to the local copy, in one pause, if no more than this was ever written through it; else it goes on as
    /// it was.
    Move {
        /// What was written when both were the same.
        writes: Writes,
        /// Its length.
        size: Size,
    },
    /// Lets a device that was left suspended go on as it was.
    ResumeDevice,
    /// Takes the device away; fails with a named holder when one has it open, unless `force`, which makes every read and write
    /// from then on an error.
    RemoveDevice {
        /// Cut off whoever has it open.
        force: bool,
    },
    /// Puts everything written to the NAS's disk on stable storage there.
    FlushRemote,
    /// Lets the local zvol take streams of an epoch, or of none.
    SetReceives {
        /// Which.
        epoch: Option<Epoch>,
    },
    /// Gives every block of the local zvol its place in the pool.
    ReserveLocal,
    /// Both at once: every block of the local zvol gets its place, and it takes no streams any more.
    CloseLocal,
    /// Gives back the room that is kept free for the local zvol's blocks: nobody writes to it.
    UnreserveLocal,
    /// Makes the local zvol longer.
    GrowLocal {
        /// Its new length.
        size: Size,
    },
    /// Takes the local zvol back to its newest snapshot: what was written since is gone. Asked only while the NAS is the truth.
    RollBackLocal {
        /// Which.
        to: SnapshotId,
    },
    /// Notes on the local zvol that what ZFS counts as written is nothing: its newest snapshot holds all that it holds. Looks once more before:
    /// fails when anything was written, and when it is in use.
    SettleLocal,
    /// Destroys the local zvol. Asked only when the NAS is the truth or holds a verified snapshot of equal identity.
    DestroyLocal,
    /// Destroys a warm copy. Looks once more before: fails, with nothing gone, when it is in use, when its newest snapshot is another,
    /// or when anything was written since. The oldest snapshot goes first, so that what is left by one that was cut off is still a
    /// copy that can be looked at, and is of use.
    DestroyWarm {
        /// Its newest snapshot, which the NAS has had.
        home: Snapshot,
    },
    /// Makes the overlay's zvol, empty, larger than the volume.
    CreateOverlay {
        /// Goes into its mark.
        epoch: Epoch,
        /// The volume's size.
        size: Size,
    },
    /// Destroys the overlay's zvol. Fails while the device uses it, and while it has writes that were not merged.
    RemoveOverlay,
    /// Takes a snapshot of the local zvol, which says that it was taken here, and holds it.
    TakeSnapshot {
        /// Which.
        snapshot: SnapshotId,
    },
    /// Puts our hold on a snapshot.
    HoldSnapshot {
        /// Which.
        snapshot: SnapshotId,
    },
    /// Takes our hold away and destroys the snapshot.
    DropSnapshot {
        /// Which.
        snapshot: SnapshotId,
    },
}
