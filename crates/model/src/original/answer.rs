//! Answers, with the original's field names.

use super::{Action, Device, Refusal, Row};
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// To `map_zvol`: what the guest uses.
    Mapped {
        /// The device.
        bdev: String,
    },
    /// It is done.
    Done(Action),
    /// To `list_zvols`.
    Volumes(Vec<Row>),
    /// To `get_zvol_attrs`.
    VolumeAttributes(VolumeAttributes),
    /// To `get_attrs`.
    Attributes(BTreeMap<String, String>),
    /// To `list_initiator`.
    Initiator(String),
    /// To `list_dev`.
    Devices(BTreeMap<String, Device>),
    /// It is not done.
    Refused(Refusal),
}

/// A volume's own attributes: numbers where they are written as such, as the original keeps them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct VolumeAttributes {
    /// The volume.
    pub zvol: String,
    /// Seconds between write-backs.
    pub frequency: Value,
    /// When the next one is due, in seconds since 1970.
    pub nextsync: Value,
    /// Bytes per second from the node.
    pub downloadspeed: Value,
    /// Bytes per second to the node.
    pub uploadspeed: Value,
}

impl VolumeAttributes {
    /// From names and values; those that a volume has none of are null.
    pub fn new(zvol: &str, values: &BTreeMap<String, String>) -> Self {
        let value = |name: &str| match values.get(name) {
            Some(text) => text.parse::<i64>().map_or_else(|_| Value::from(text.as_str()), Value::from),
            None => Value::Null,
        };
        VolumeAttributes {
            zvol: zvol.to_owned(),
            frequency: value("frequency"),
            nextsync: value("nextsync"),
            downloadspeed: value("downloadspeed"),
            uploadspeed: value("uploadspeed"),
        }
    }
}

impl Reply {
    /// A refusal of a request that was understood.
    pub fn refused(action: Action, why: impl Into<String>) -> Self {
        Reply::Refused(Refusal { action: Some(action), why: why.into() })
    }

    /// The message: one JSON object.
    pub fn encode(&self) -> Vec<u8> {
        let success = |action: Action| json!({ "action": action.answer(), "status": "success" });
        let with = |action: Action, name: &str, value: Value| {
            let mut answer = success(action);
            answer[name] = value;
            answer
        };
        let answer = match self {
            Reply::Mapped { bdev } => with(Action::MapZvol, "bdev", bdev.as_str().into()),
            Reply::Done(action) => success(*action),
            Reply::Volumes(rows) => return listed(rows),
            Reply::VolumeAttributes(attributes) => with(Action::GetZvolAttrs, "body", json!(attributes)),
            Reply::Attributes(attributes) => with(Action::GetAttrs, "attrs", json!(attributes)),
            Reply::Initiator(name) => with(Action::ListInitiator, "body", name.as_str().into()),
            Reply::Devices(devices) => {
                let mut answer = with(Action::ListDev, "body", json!(devices));
                answer["node_type"] = "mixed".into();
                answer
            }
            Reply::Refused(Refusal { action, why }) => {
                let mut answer = json!({ "status": "error", "error": why });
                if let Some(action) = action.filter(|a| !matches!(a, Action::ListInitiator | Action::ListDev)) {
                    answer["action"] = action.answer().into();
                }
                answer
            }
        };
        answer.to_string().into_bytes()
    }
}

/// Ten thousand rows are written as they are, without a tree of values in between.
fn listed(rows: &[Row]) -> Vec<u8> {
    #[derive(Serialize)]
    struct Listed<'a> {
        action: &'static str,
        status: &'static str,
        body: &'a [Row],
    }
    let listed = Listed { action: Action::ListZvols.answer(), status: "success", body: rows };
    serde_json::to_vec(&listed).unwrap_or_else(|why| Reply::refused(Action::ListZvols, why.to_string()).encode())
}

/// The original's error texts, to the letter.
pub mod say {
    use crate::{HostName, VolumeName};
    use std::fmt::Display;

    /// Something else is being done with the volume.
    pub fn busy(zvol: &VolumeName) -> String {
        format!("ZVol {zvol} is busy")
    }

    /// It has a node already.
    pub fn already_mapped() -> String {
        "Error when mapping zvol: already mapped".to_owned()
    }

    /// There is no such host.
    pub fn unknown_host(host: &HostName) -> String {
        format!("Host {host} is unknown")
    }

    /// The node is not there.
    pub fn unavailable(node: &HostName) -> String {
        format!("Compute node {node} is unavailable")
    }

    /// There is no such volume.
    pub fn not_found(zvol: &VolumeName) -> String {
        format!("ZVol {zvol} not found in database")
    }

    /// It has no node.
    pub fn not_mapped(zvol: &VolumeName) -> String {
        format!("ZVol {zvol} is not mapped")
    }

    /// It has a node.
    pub fn still_mapped(zvol: &VolumeName) -> String {
        not_deleted(zvol, "is mapped")
    }

    /// It is not destroyed.
    pub fn not_deleted(zvol: &VolumeName, why: impl Display) -> String {
        format!("Error deleting zvol {zvol}: {why}")
    }

    /// It did not get to the node.
    pub fn not_attached(why: impl Display) -> String {
        format!("Error attaching iSCSI target to compute node: {why}")
    }

    /// It did not get off the node.
    pub fn not_detached(why: impl Display) -> String {
        format!("Error detaching iSCSI target from compute node: {why}")
    }

    /// The node has no iSCSI name.
    pub const NO_INITIATOR: &str = "no initiator name";
}
