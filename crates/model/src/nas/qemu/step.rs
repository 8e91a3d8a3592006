//! The effects a NAS's planner can ask for on the qemu plane. Idempotent, like [`crate::node::qemu::NodeStep`].

use crate::{Epoch, Extents, HostName, Size, SnapshotId, messages::ContentDigest, nas::NasLayer};

/// The export name during bring-back, of an epoch: `e<epoch>.back`.
pub const BACK: &str = "back";
/// The export name for an import, of an epoch: `e<epoch>.import`.
pub const IMPORT: &str = "import";

/// The name of the export a mapping's node uses, `e<epoch>`: an older mapping cannot reconnect to it.
pub fn plain_export(epoch: Epoch) -> String {
    format!("e{epoch}")
}

/// One effect on the NAS's host, on one volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NasStep {
    /// Makes the volume's directory with its mark, and the file, sparse. Fails when something without our mark is in the way
    /// or the pool lacks the room.
    CreateDisk {
        /// Its size.
        size: Size,
    },
    /// Makes the file longer.
    GrowDisk {
        /// Its new size.
        size: Size,
    },
    /// Puts everything written to the file on stable storage.
    SyncDisk,
    /// Destroys the volume: its file, mark and directory. Nothing may have them open.
    RemoveDisk,
    /// Starts the storage daemon that exports the volume, over TLS, to `peer` alone, for writing.
    StartExport {
        /// Goes into its mark.
        epoch: Epoch,
        /// The export's name.
        name: String,
        /// The one host let in.
        peer: HostName,
        /// TCP port to listen on.
        port: u16,
        /// What to export; on the overlay every write is on stable storage before it is answered.
        layer: NasLayer,
    },
    /// Ends that storage daemon, whoever is connected; everything written is on stable storage when this returns.
    StopExport,
    /// Adds an export of the volume's file under another name to the running daemon (after the live commit).
    AddExport {
        /// The export's name.
        name: String,
    },
    /// Removes an export from the running daemon, whoever is connected.
    RemoveExport {
        /// The export's name.
        name: String,
    },
    /// Makes the empty incoming file for a write-back, over the volume's file.
    CreateIncoming {
        /// The write-back.
        push: SnapshotId,
    },
    /// Starts the incoming file's storage daemon: an export named by the push, to `peer` alone, over TLS, and a read-only
    /// one on a private socket for the verification.
    ServeIncoming {
        /// The write-back.
        push: SnapshotId,
        /// The one host let in.
        peer: HostName,
        /// TCP port to listen on.
        port: u16,
    },
    /// Reads the ranges from the incoming file over the volume's file, and compares their digest. Gives
    /// [`crate::node::StepResult::Verified`].
    VerifyIncoming {
        /// The write-back.
        push: SnapshotId,
        /// Which ranges.
        extents: Extents,
        /// What their contents must be.
        digest: ContentDigest,
    },
    /// Ends the incoming file's daemon, puts the file on stable storage and renames it to pending. Fails when the daemon is not
    /// there to be ended: one that died may not have written everything to the file.
    SealIncoming {
        /// The write-back.
        push: SnapshotId,
    },
    /// Ends the incoming file's daemon and removes the file.
    DiscardIncoming,
    /// Commits the pending file into the volume's file and puts that on stable storage. Repeatable; does not remove it.
    CommitPending {
        /// The write-back.
        push: SnapshotId,
    },
    /// Removes the pending file.
    RemovePending {
        /// The write-back.
        push: SnapshotId,
    },
    /// Makes the empty overlay for a bring-back, over the volume's file.
    CreateOverlay {
        /// Goes into its mark.
        epoch: Epoch,
    },
    /// Removes the overlay's file. Nothing may have it open.
    RemoveOverlay,
    /// Starts the live commit of the overlay into the volume's file, under the running export (auto-finalize off).
    StartCommit,
    /// `job-complete` for the commit: it goes on to pending.
    CompleteCommit,
    /// `job-finalize` for the commit, wait, dismiss, close the overlay's node: the export lies on the volume's file.
    FinalizeCommit,
    /// Dismisses a commit that failed.
    EndCommit,
    /// Serves the volume's file read-only over TLS to `peer` alone, under the name `reader`.
    StartReader {
        /// The one host let in.
        peer: HostName,
        /// TCP port to listen on.
        port: u16,
    },
    /// Ends that.
    StopReader,
}
