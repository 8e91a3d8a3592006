//! What front ends ask and what they are told. The HTTP API carries these types as they stand; so does the bus.

use crate::{
    Epoch, Fault, HostName, PoolName, Size, SnapshotId, VolumeId, VolumeName,
    attribute::{AttributeView, Changes},
    messages::{DeviceKind, Endpoint, Progress},
    name::Selector,
    node::Going,
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A request to a NAS.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "snake_case")]
pub enum Request {
    /// Volumes that match (all without a selector).
    Find {
        /// Which.
        selector: Option<Selector>,
    },
    /// A new volume.
    Create {
        /// Its pool; `None` when the NAS has just one.
        pool: Option<PoolName>,
        /// Its name.
        name: VolumeName,
        /// Its size.
        size: Size,
        /// The asking front end will fill it.
        import: bool,
    },
    /// The front end has filled the volume, or has failed to.
    Imported {
        /// Which.
        volume: VolumeId,
        /// Everything is in; otherwise the volume goes.
        complete: bool,
    },
    /// Serve the volume read-only to the asking front end.
    Read {
        /// Which.
        volume: VolumeId,
    },
    /// The front end has read it.
    ReadDone {
        /// Which.
        volume: VolumeId,
    },
    /// Make it longer.
    Resize {
        /// Which.
        volume: VolumeId,
        /// To what.
        size: Size,
    },
    /// Destroy it.
    Delete {
        /// Which.
        volume: VolumeId,
    },
    /// Map it to a node.
    Map {
        /// Which.
        volume: VolumeId,
        /// Where.
        node: HostName,
        /// Move the guest onto a local copy.
        sync: bool,
        /// How the guest wants it.
        device: DeviceKind,
    },
    /// End its mapping; answered when it is over.
    Unmap {
        /// Which.
        volume: VolumeId,
        /// Cut off whoever uses it.
        force: bool,
    },
    /// Bring the NAS's copy up to date now; answered when it is.
    Sync {
        /// Which.
        volume: VolumeId,
    },
    /// From local back to remote while the guest runs; answered when it is.
    BringBack {
        /// Which.
        volume: VolumeId,
    },
    /// What happened to it.
    History {
        /// Which.
        volume: VolumeId,
    },
    /// The attributes of the NAS or of a volume, as they count.
    Attributes {
        /// Whose.
        of: AttributesOf,
    },
    /// Change some of them, all or none; answered with what counts then.
    SetAttributes {
        /// Whose.
        of: AttributesOf,
        /// By name, ours or the original's; nothing as a value takes the attribute away.
        changes: Changes,
        /// An unknown name is one of a note of the NAS, which is kept without effect; otherwise it is an error.
        #[serde(default)]
        notes: bool,
    },
}

/// Whose attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttributesOf {
    /// The NAS's that is asked.
    Nas,
    /// A volume's of it.
    Volume(VolumeId),
}

/// What a NAS answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "snake_case")]
pub enum Answer {
    /// To `find`.
    Volumes {
        /// Them.
        volumes: Vec<VolumeView>,
    },
    /// The volume as it is now.
    Volume {
        /// It.
        volume: Box<VolumeView>,
    },
    /// To `create` with `import`, and to `read`: where to write or read the contents.
    Served {
        /// The volume.
        volume: Box<VolumeView>,
        /// The export.
        endpoint: Endpoint,
    },
    /// To `delete`.
    Deleted,
    /// To `history`.
    History {
        /// Oldest first.
        events: Vec<Event>,
    },
    /// To `attributes` and `set_attributes`.
    Attributes {
        /// Those there are, in their order; notes last.
        attributes: Vec<AttributeView>,
    },
}

/// The phase of a volume, as shown to the operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Being made.
    Creating,
    /// Being filled from an image.
    Importing,
    /// At home; nobody uses it.
    Unmapped,
    /// Mapped, not usable yet.
    Attaching,
    /// In use over the network.
    Remote,
    /// In use over the network while it is copied.
    Copying,
    /// Changing over to the local copy.
    Switching,
    /// In use on the local copy.
    Local,
    /// Moving from the local copy back to the NAS under the guest.
    BringingBack,
    /// Being unmapped; the last changes go home.
    Returning,
    /// Being destroyed.
    Deleting,
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Phase::Creating => "creating",
            Phase::Importing => "importing",
            Phase::Unmapped => "unmapped",
            Phase::Attaching => "attaching",
            Phase::Remote => "remote",
            Phase::Copying => "copying",
            Phase::Switching => "switching",
            Phase::Local => "local",
            Phase::BringingBack => "bringing-back",
            Phase::Returning => "returning",
            Phase::Deleting => "deleting",
        })
    }
}

impl std::str::FromStr for Phase {
    type Err = Fault;
    fn from_str(text: &str) -> Result<Self, Fault> {
        serde_json::from_value(serde_json::Value::String(text.to_owned())).map_err(|_| {
            Fault::invalid(format!("{text:?} is no phase"))
                .next("phases are creating, importing, unmapped, attaching, remote, copying, switching, local, bringing-back, returning and deleting")
        })
    }
}

/// Why something does not go on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Trouble {
    /// The host it is on.
    #[schema(value_type = String)]
    pub host: HostName,
    /// What is wrong.
    pub why: String,
    /// Since when.
    #[schema(value_type = String, format = DateTime)]
    pub since: Timestamp,
    /// When it is tried again; nothing when it waits for the operator.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub next_try: Option<Timestamp>,
}

/// A write-back, or the last one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WriteBack {
    /// The snapshot.
    #[schema(value_type = String)]
    pub snapshot: SnapshotId,
    /// Its point in time.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// Bytes moved, when it is over.
    pub moved: Option<u64>,
    /// Milliseconds from order to commit, when it is over.
    pub took_ms: Option<u64>,
}

/// A volume as the operator sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumeView {
    /// Identity.
    #[schema(value_type = String)]
    pub id: VolumeId,
    /// Its NAS.
    #[schema(value_type = String)]
    pub nas: HostName,
    /// Its pool.
    #[schema(value_type = String)]
    pub pool: PoolName,
    /// Its name.
    #[schema(value_type = String)]
    pub name: VolumeName,
    /// Size in bytes.
    #[schema(value_type = u64)]
    pub size: Size,
    /// Bytes it takes on the NAS, when it was last looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allocated: Option<u64>,
    /// Where it is in its life.
    pub phase: Phase,
    /// The node it is mapped to.
    #[schema(value_type = Option<String>)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<HostName>,
    /// The highest epoch given.
    #[schema(value_type = u64)]
    pub epoch: Epoch,
    /// What the guest uses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Where its NAS serves it to its node, as a URI; nothing once the node works on its own copy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub export: Option<String>,
    /// Whether it is (to be) moved onto a local copy.
    pub sync: bool,
    /// Age of the newest snapshot on the NAS in seconds, while the node has the newest writes; 0 while the node says that it has
    /// none that the NAS lacks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lag: Option<u64>,
    /// No write older than this is missing on the NAS, while the node has the newest writes.
    #[schema(value_type = Option<String>, format = DateTime)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub home: Option<Timestamp>,
    /// How old it may get, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frequency: Option<u64>,
    /// When the next write-back is due, while the node has the newest writes.
    #[schema(value_type = Option<String>, format = DateTime)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_sync: Option<Timestamp>,
    /// Bytes changed since that snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dirty: Option<u64>,
    /// How far a transfer under way is.
    #[schema(value_type = Option<Object>)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// Since when a transfer between NAS and node is under way.
    #[schema(value_type = Option<String>, format = DateTime)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transfer_since: Option<Timestamp>,
    /// Bytes per second of that transfer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<u64>,
    /// The last write-back that came home in this mapping.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_write_back: Option<WriteBack>,
    /// How many came home in this mapping.
    pub write_backs: u64,
    /// Why it does not go on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stuck: Option<Trouble>,
    /// What it is waiting for, or something the operator should hear.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notice: Option<String>,
    /// When it was created.
    #[schema(value_type = String, format = DateTime)]
    pub created: Timestamp,
    /// When it was mapped.
    #[schema(value_type = Option<String>, format = DateTime)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mapped: Option<Timestamp>,
}

impl VolumeView {
    /// `NAS:POOL/NAME`.
    pub fn full_name(&self) -> String {
        format!("{}:{}/{}", self.nas, self.pool, self.name)
    }
}

/// Something that happened to a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// When.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// What.
    pub what: String,
}

/// A local copy that a node keeps for the next start there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WarmCopy {
    /// Of which volume.
    #[schema(value_type = String)]
    pub volume: VolumeId,
    /// That volume's NAS.
    #[schema(value_type = String)]
    pub nas: HostName,
    /// Its name, `POOL/NAME`.
    pub name: String,
    /// Bytes of the node's pool that it takes, snapshots included.
    pub used: u64,
    /// When its mapping ended.
    #[schema(value_type = String, format = DateTime)]
    pub since: Timestamp,
    /// Why it is being removed, when it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub going: Option<Going>,
    /// Why it is not removed although it was to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stays: Option<String>,
}

/// A host as the front end knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HostView {
    /// Its name.
    #[schema(value_type = String)]
    pub name: HostName,
    /// `nas`, `node` or `frontend`.
    #[schema(value_type = String)]
    pub role: crate::messages::Role,
    /// Its program's version.
    pub version: String,
    /// Data planes it serves.
    pub planes: Vec<String>,
    /// Its pools.
    #[schema(value_type = Vec<Object>)]
    pub pools: Vec<crate::messages::PoolReport>,
    /// Addresses by which nodes reach its exports.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
    /// Seconds since it was last heard of.
    pub heard: u64,
    /// It has not been heard of for too long.
    pub away: bool,
    /// Volumes there: on a NAS all it owns, on a node those mapped to it.
    pub volumes: u64,
    /// Local copies that a node keeps for the next start there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warm: Vec<WarmCopy>,
}
