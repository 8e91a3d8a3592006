//! What the daemons say to each other and what front ends ask of them: JSON, version 1.
//!
//! A message is a hint, the ledgers are the truth: every one may be lost, late, doubled or out of order. `assign` and `report`
//! carry whole states, so that the newest alone is enough; requests carry an id, so that a repeated one gets the stored answer.

use crate::{
    Epoch, Fault, HostName, Plane, RequestId, Size, SnapshotId, VolumeId,
    api::{Answer, Request, WarmCopy},
    attribute::Speeds,
    node::PushResult,
    snapshot::Snapshot,
};
use serde::{Deserialize, Serialize};

/// The version of the messages this program speaks.
pub const VERSION: u32 = 1;

/// How a guest reaches the volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceKind {
    /// An NBD server on a unix socket.
    #[default]
    Nbd,
    /// A vhost-user-blk socket.
    VhostUserBlk,
    /// A block device.
    Block,
}

/// A digest of contents: blake3, in hex, over `(offset u64 LE, length u64 LE, bytes)` of each extent in ascending order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ContentDigest(pub String);

/// Where an NBD export is served, over TLS with certificates on both sides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Address or name to connect to.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Export name; carries the epoch, so that an old mapping cannot reconnect.
    pub export: String,
    /// The name the server's certificate must have.
    pub server: HostName,
}

impl Endpoint {
    /// As a URI, for people and programs to know it by.
    pub fn uri(&self) -> String {
        let Endpoint { host, port, export, .. } = self;
        if host.contains(':') { format!("nbds://[{host}]:{port}/{export}") } else { format!("nbds://{host}:{port}/{export}") }
    }
}

/// What a node needs to log in to an iSCSI export, and to know its disk by. Of one epoch; sent over the bus to that node alone.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IscsiLogin {
    /// CHAP name.
    pub user: String,
    /// CHAP secret.
    pub password: String,
    /// The serial number the disk must have.
    pub serial: String,
}

impl std::fmt::Debug for IscsiLogin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "IscsiLogin({}, {})", self.user, self.serial)
    }
}

/// The other end of a stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// The host's name.
    pub host: HostName,
    /// Where it is reached.
    pub address: String,
    /// Its local zvol's dataset.
    pub dataset: String,
    /// The mapping's epoch.
    pub epoch: Epoch,
}

/// What an assignment on the kernel plane says besides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelAssign {
    /// For its export.
    pub login: IscsiLogin,
    /// The NAS's last snapshot before authority passed: the node's local copy, brought to it, and the overlay are everything.
    pub base: Option<Snapshot>,
    /// The local copy of an earlier mapping has nothing in common with the volume any more: it goes, and all is copied.
    #[serde(default)]
    pub fresh: bool,
    /// When the node's local copy was all that the volume had: the guest's device may be moved to it at once where nothing was written since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub still: Option<Still>,
}

/// How much was written through one guest's device since it was made. What is made later, under the same name or after a reboot, is another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Writes {
    /// The start of the host's kernel (`boot_id`).
    pub boot: String,
    /// Which device since then (`diskseq`).
    pub device: u64,
    /// Its writes and discards.
    pub count: u64,
}

/// A snapshot that held everything which had been written through the guest's device until then: the NAS counted nothing newer, after the node
/// had counted these writes and found none under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Still {
    /// The snapshot, which the local copy has.
    pub snapshot: Snapshot,
    /// What the node had counted before.
    pub writes: Writes,
}

/// What a report on the kernel plane says besides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelReport {
    /// Where the local zvol is, or would be received.
    pub dataset: String,
    /// It takes streams of this epoch.
    pub receives: bool,
    /// Its snapshots, oldest first.
    pub snapshots: Vec<Snapshot>,
    /// What a stream that was cut off goes on with.
    pub resume: Option<String>,
    /// The guest's writes go to the overlay: nothing is written to what lies under it.
    pub overlaid: bool,
    /// What had been written through the guest's device, on the NAS's volume, when none of it was under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub writes: Option<Writes>,
}

/// The phase the NAS wants a mapping to be in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Want {
    /// The guest works on the NAS volume.
    Remote,
    /// The guest works on a local copy.
    Local,
    /// Nothing of the mapping is left on the node.
    Gone,
}

/// An order to push a point in time to the NAS.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PushOrder {
    /// The snapshot to be.
    pub push: SnapshotId,
    /// Where the incoming file is served; `None` while it is being made.
    pub endpoint: Option<Endpoint>,
    /// The guest is off: no fleecing.
    pub last: bool,
    /// Everything is to move: what the NAS holds may not be what the node's record of changes begins with.
    #[serde(default)]
    pub full: bool,
}

/// An order to move the guest back onto the NAS while it runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackOrder {
    /// The overlay's export.
    pub endpoint: Endpoint,
    /// The NAS keeps the overlay from now on: the node may pivot.
    pub granted: bool,
}

/// NAS to node: the whole wanted state of one volume on that node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assign {
    /// The volume.
    pub volume: VolumeId,
    /// Its name for people, `POOL/NAME`.
    pub name: String,
    /// Its NAS.
    pub nas: HostName,
    /// Its size.
    pub size: Size,
    /// The mapping's epoch.
    pub epoch: Epoch,
    /// Counts the assignments of this volume; an assignment with a lower one is old news.
    pub revision: u64,
    /// The wanted phase.
    pub want: Want,
    /// How the guest wants it.
    pub device: DeviceKind,
    /// Cut a connected guest off at [`Want::Gone`].
    pub force: bool,
    /// The NAS volume's export; `None` while it is being made or when it is not needed any more.
    pub export: Option<Endpoint>,
    /// The node may pivot to its local copy: the NAS knows that it may have.
    pub granted: bool,
    /// A push to make.
    pub push: Option<PushOrder>,
    /// The newest snapshot of this mapping that the NAS holds, verified and committed.
    pub accepted: Option<SnapshotId>,
    /// The NAS has everything in its own copy: what is local may be released. With [`Want::Gone`] this says that `accepted` was
    /// taken after the guest was off.
    pub release: bool,
    /// Bring the guest back onto the NAS.
    pub back: Option<BackOrder>,
    /// How fast its transfers may be.
    #[serde(default)]
    pub speeds: Speeds,
    /// The NAS's clock when it sent this, for the node to say in its report what it looked at later than that. Never stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked: Option<jiff::Timestamp>,
    /// What carries its data.
    #[serde(default)]
    pub plane: Plane,
    /// On the kernel plane.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<KernelAssign>,
    /// What only this NAS could have given this node for this epoch, to be shown when the NAS's ledger does not know of it any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<String>,
}

/// A phase of a mapping as the node sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodePhase {
    /// Not usable yet.
    Attaching,
    /// The guest works on the NAS volume.
    Remote,
    /// The same, and a local copy is being filled.
    Copying,
    /// Copied, and every write goes to both; waiting for the NAS to allow the pivot.
    Ready,
    /// The pivot is under way.
    Switching,
    /// The guest works on the local copy.
    Local,
    /// The guest works on the local copy, and moves back to the NAS.
    BringingBack,
    /// As before, and everything is on both sides: waiting for the NAS to allow the pivot.
    BackReady,
    /// The guest is off; the last changes go home.
    Returning,
    /// Nothing of the mapping is left here.
    Gone,
}

/// How far something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Bytes done.
    pub done: u64,
    /// Bytes in total, as far as known.
    pub total: u64,
}

/// Who uses a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Process id, when it can be seen.
    pub pid: Option<u32>,
    /// Command name, when it can be seen; what it is, when it is no process.
    pub command: Option<String>,
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.command, self.pid) {
            (Some(command), Some(pid)) => write!(f, "{command} pid {pid}"),
            (None, Some(pid)) => write!(f, "pid {pid}"),
            // What holds it is no process.
            (Some(what), None) => f.write_str(what),
            (None, None) => f.write_str("a process of another user"),
        }
    }
}

/// Node to NAS: what one volume is like on that node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The volume.
    pub volume: VolumeId,
    /// The mapping's epoch.
    pub epoch: Epoch,
    /// The newest assignment's revision the node has stored.
    pub revision: u64,
    /// The phase.
    pub phase: NodePhase,
    /// The node's local copy is the truth (durably recorded before it became so).
    pub pivoted: bool,
    /// The node does not use the NAS volume's export any more.
    pub detached: bool,
    /// The export of the NAS volume the node is connected to.
    pub attached: Option<String>,
    /// What the guest uses, when usable.
    pub device: Option<String>,
    /// Progress of copy, push or bring-back.
    pub progress: Option<Progress>,
    /// Bytes changed since the newest snapshot on the NAS, when known.
    pub dirty: Option<u64>,
    /// The end of the last push.
    pub pushed: Option<PushResult>,
    /// Why it does not go on, when it does not.
    pub stuck: Option<String>,
    /// Something the operator should hear, such as why the next push is a full copy.
    pub notice: Option<String>,
    /// The newest [`Assign::asked`] that had arrived when this was looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked: Option<jiff::Timestamp>,
    /// On the kernel plane.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<KernelReport>,
    /// [`Assign::proof`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<String>,
}

/// A pool as its daemon sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolReport {
    /// Its name.
    pub name: String,
    /// Bytes in all.
    pub size: u64,
    /// Bytes free.
    pub free: u64,
    /// What carries the data of its volumes.
    #[serde(default)]
    pub plane: Plane,
}

/// What a daemon is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Owns volumes.
    Nas,
    /// Runs guests.
    Node,
    /// Speaks to operators.
    Frontend,
}

/// Who is there: sent on start, on reconnect and every few seconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// What the sender is.
    pub role: Role,
    /// The program's version.
    pub version: String,
    /// Pools with their sizes.
    pub pools: Vec<PoolReport>,
    /// Data planes it can serve.
    pub planes: Vec<String>,
    /// Its iSCSI name, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initiator: Option<String>,
    /// Addresses by which nodes reach its exports.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
    /// A node's warm copies: all for a front end, and for a NAS those of its volumes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warm: Vec<WarmCopy>,
    /// Number of the sender's start, so that a restart is seen.
    pub started: jiff::Timestamp,
    /// The receiver should introduce itself and send what it holds for the sender.
    pub reply: bool,
}

/// A message's content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Body {
    /// Who is there.
    Hello(Hello),
    /// NAS to node.
    Assign(Box<Assign>),
    /// Node to NAS.
    Report(Box<Report>),
    /// NAS to node: these volumes were deleted, and warm copies of them are of no use. Said when it happens, and again to every hello
    /// that lists one. Only what this NAS remembers to have deleted is in it: that a volume is not in its ledger means nothing, as that may
    /// be a new one, or from a backup.
    Deleted {
        /// Them.
        volumes: Vec<VolumeId>,
    },
    /// NAS to node: who uses the guest's device of this volume?
    WhoUses {
        /// The volume.
        volume: VolumeId,
        /// Echoed in the answer.
        query: RequestId,
    },
    /// Node to NAS.
    Users {
        /// From the question.
        query: RequestId,
        /// Those connected, or why that cannot be told.
        holders: Result<Vec<Holder>, String>,
    },
    /// Front end to NAS.
    Request {
        /// A repeated id gets the stored answer.
        id: RequestId,
        /// What is asked.
        request: Box<Request>,
    },
    /// NAS to front end.
    Answer {
        /// From the request.
        id: RequestId,
        /// What came of it.
        answer: Result<Box<Answer>, Fault>,
    },
}

/// A message on the bus.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// [`VERSION`].
    pub v: u32,
    /// Who sent it, checked by the bus.
    pub from: HostName,
    /// Who is to get it.
    pub to: HostName,
    /// The content.
    pub body: Body,
}
