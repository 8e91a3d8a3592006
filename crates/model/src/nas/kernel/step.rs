//! The effects a NAS's planner can ask for on the kernel plane. Idempotent: where a step is done already it succeeds.

use crate::{
    Epoch, HostName, Size, SnapshotId,
    attribute::Speed,
    messages::{IscsiLogin, Peer, Still},
};

/// One effect on the NAS's host, on one volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NasStep {
    /// Makes the zvol, sparse, with its mark, and waits for its device. Fails when something without our mark has its name.
    CreateZvol {
        /// Its size.
        size: Size,
    },
    /// Makes the zvol longer.
    GrowZvol {
        /// Its new size.
        size: Size,
    },
    /// Puts everything written to it on stable storage.
    SyncZvol,
    /// Destroys the volume: our snapshots, then the zvol. Fails, before anything is gone, while anybody has it open.
    DestroyZvol,
    /// Starts a storage daemon over the zvol for the front end that fills it, to `peer` alone, over TLS.
    StartImport {
        /// Goes into its mark.
        epoch: Epoch,
        /// The export's name.
        name: String,
        /// The one host let in.
        peer: HostName,
        /// TCP port to listen on.
        port: u16,
    },
    /// Ends it; everything written is on stable storage when this returns.
    StopImport,
    /// Serves the zvol read-only over TLS to `peer` alone, under the name `reader`.
    StartReader {
        /// The one host let in.
        peer: HostName,
        /// TCP port to listen on.
        port: u16,
    },
    /// Ends that.
    StopReader,
    /// Exports the zvol by iSCSI: a target of this epoch that lets in one initiator with these credentials. Completes one that
    /// was cut off in the making.
    Export {
        /// Goes into its mark.
        epoch: Epoch,
        /// The target's name.
        iqn: String,
        /// The one initiator.
        initiator: String,
        /// What it logs in with, and what the disk says its serial number is.
        login: IscsiLogin,
    },
    /// Takes an export away: whoever is logged in is locked out first.
    Unexport {
        /// Which.
        epoch: Epoch,
    },
    /// Takes a snapshot and holds it.
    TakeSnapshot {
        /// Which.
        snapshot: SnapshotId,
    },
    /// Counts what was written since the newest snapshot, all that was answered until now. Gives [`crate::node::StepResult::Written`]; fails when
    /// another snapshot is the newest.
    CountWritten {
        /// The newest, and what the node had counted before.
        still: Still,
    },
    /// Puts our hold on a snapshot that was received.
    Hold {
        /// Which.
        snapshot: SnapshotId,
    },
    /// Takes our hold away and destroys the snapshot. Contents that only it has are gone: the planner asks for those that the
    /// newest common one makes superfluous.
    DropSnapshot {
        /// Which.
        snapshot: SnapshotId,
    },
    /// Begins a stream to the node; it goes on by itself and is seen in the facts.
    Send {
        /// Where to.
        peer: Peer,
        /// What the node has already; nothing for everything.
        from: Option<SnapshotId>,
        /// The snapshot to send.
        to: SnapshotId,
        /// What an earlier stream that was cut off goes on with.
        resume: Option<String>,
        /// How fast it may go.
        speed: Speed,
    },
    /// Begins a stream from the node, never over what was written here since.
    Receive {
        /// Where from.
        peer: Peer,
        /// What is here already.
        from: SnapshotId,
        /// The snapshot to get.
        to: SnapshotId,
        /// What an earlier stream that was cut off goes on with.
        resume: Option<String>,
        /// How fast it may go.
        speed: Speed,
    },
    /// Lets the stream go on at another speed.
    SetSpeed {
        /// How fast it may go.
        speed: Speed,
    },
    /// Ends the stream, whatever its state, and forgets it. Gives [`crate::node::StepResult::Streamed`] for one that was done.
    EndStream,
    /// Throws away what a receive that was cut off left.
    DiscardReceived,
}
