//! Requests, from the bytes that came to the types that mean something.

use super::field::{self, Fields};
use crate::{HostName, PoolName, Size, VolumeName};
use serde_json::Value;
use std::collections::BTreeMap;

/// The longest message that is looked at, in bytes.
pub const LONGEST: usize = 1 << 20;

/// What a volume has attributes of.
pub const VOLUME_ATTRIBUTES: [&str; 4] = ["frequency", "nextsync", "downloadspeed", "uploadspeed"];

/// What can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// `map_zvol`
    MapZvol,
    /// `unmap_zvol`
    UnmapZvol,
    /// `del_zvol`
    DelZvol,
    /// `list_zvols`
    ListZvols,
    /// `get_zvol_attrs`
    GetZvolAttrs,
    /// `set_zvol_attrs`
    SetZvolAttrs,
    /// `get_attrs`
    GetAttrs,
    /// `set_attrs`
    SetAttrs,
    /// `del_attrs`
    DelAttrs,
    /// `list_initiator`
    ListInitiator,
    /// `list_dev`
    ListDev,
}

impl Action {
    /// What the answer calls itself; a node's errors have no name.
    pub fn answer(self) -> &'static str {
        match self {
            Action::MapZvol => "zvol_mapped",
            Action::UnmapZvol => "zvol_unmapped",
            Action::DelZvol => "zvol_deleted",
            Action::ListZvols | Action::ListInitiator => "zvol_list",
            Action::GetZvolAttrs => "get_zvol_attrs",
            Action::SetZvolAttrs => "set_zvol_attrs",
            Action::GetAttrs => "get_attrs",
            Action::SetAttrs => "set_attrs",
            Action::DelAttrs => "del_attrs",
            Action::ListDev => "dev_list",
        }
    }

    /// What a request is called, and where it goes.
    fn of(name: &str) -> Option<(Action, Side)> {
        Some(match name {
            "map_zvol" => (Action::MapZvol, Side::Nas),
            "unmap_zvol" => (Action::UnmapZvol, Side::Nas),
            "del_zvol" => (Action::DelZvol, Side::Nas),
            "list_zvols" => (Action::ListZvols, Side::Nas),
            "get_zvol_attrs" => (Action::GetZvolAttrs, Side::Nas),
            "set_zvol_attrs" => (Action::SetZvolAttrs, Side::Nas),
            "get_attrs" => (Action::GetAttrs, Side::Nas),
            "set_attrs" => (Action::SetAttrs, Side::Nas),
            "del_attrs" => (Action::DelAttrs, Side::Nas),
            "list_initiator" => (Action::ListInitiator, Side::Node),
            "list_dev" => (Action::ListDev, Side::Node),
            _ => return None,
        })
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Nas,
    Node,
}

/// What is answered to a request that is not carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What was asked, as far as that could be told.
    pub action: Option<Action>,
    /// Why it is refused.
    pub why: String,
}

impl Refusal {
    /// Nobody here does this.
    pub fn unsupported() -> Self {
        Refusal { action: None, why: "action_unsupported".to_owned() }
    }
}

/// `map_zvol`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapZvol {
    /// The pool.
    pub zpool: PoolName,
    /// The volume, made when it is not there.
    pub zvol: VolumeName,
    /// The node.
    pub remotehost: HostName,
    /// The pool there.
    pub remotepool: Option<PoolName>,
    /// Of a volume that is to be made.
    pub size: Size,
    /// On a local copy.
    pub sync: bool,
    /// The node's iSCSI name.
    pub initiator: String,
}

/// What a NAS is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NasRequest {
    /// `map_zvol`
    Map(MapZvol),
    /// `unmap_zvol`
    Unmap {
        /// The volume.
        zvol: VolumeName,
    },
    /// `del_zvol`
    Delete {
        /// Its pool.
        zpool: PoolName,
        /// The volume.
        zvol: VolumeName,
    },
    /// `list_zvols`
    List,
    /// `get_zvol_attrs`
    VolumeAttributes {
        /// The volume.
        zvol: VolumeName,
    },
    /// `set_zvol_attrs`
    SetVolumeAttributes {
        /// The volume.
        zvol: VolumeName,
        /// Those of [`VOLUME_ATTRIBUTES`] that were named; without a value they are cleared.
        changes: BTreeMap<String, Option<String>>,
    },
    /// `get_attrs`
    Attributes,
    /// `set_attrs`
    SetAttributes {
        /// Names and values; without a value they are cleared.
        changes: BTreeMap<String, Option<String>>,
    },
    /// `del_attrs`
    DeleteAttributes {
        /// Which.
        names: Vec<String>,
    },
}

impl NasRequest {
    /// What it is.
    pub fn action(&self) -> Action {
        match self {
            NasRequest::Map(_) => Action::MapZvol,
            NasRequest::Unmap { .. } => Action::UnmapZvol,
            NasRequest::Delete { .. } => Action::DelZvol,
            NasRequest::List => Action::ListZvols,
            NasRequest::VolumeAttributes { .. } => Action::GetZvolAttrs,
            NasRequest::SetVolumeAttributes { .. } => Action::SetZvolAttrs,
            NasRequest::Attributes => Action::GetAttrs,
            NasRequest::SetAttributes { .. } => Action::SetAttrs,
            NasRequest::DeleteAttributes { .. } => Action::DelAttrs,
        }
    }

    /// Whether it only looks.
    pub fn only_looks(&self) -> bool {
        matches!(self, NasRequest::List | NasRequest::VolumeAttributes { .. } | NasRequest::Attributes)
    }
}

/// What a node is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeRequest {
    /// `list_initiator`
    Initiator,
    /// `list_dev`
    Devices,
}

/// What a NAS is asked by a message.
///
/// # Errors
/// What is answered instead: the message is none, a field is missing or wrong, or it is not for a NAS.
pub fn nas_request(body: &[u8]) -> Result<NasRequest, Refusal> {
    let (action, fields) = opened(body, Side::Nas)?;
    filled(action, &fields).map_err(|why| Refusal { action: Some(action), why })
}

/// What a node is asked by a message.
///
/// # Errors
/// As [`nas_request`].
pub fn node_request(body: &[u8]) -> Result<NodeRequest, Refusal> {
    match opened(body, Side::Node)?.0 {
        Action::ListInitiator => Ok(NodeRequest::Initiator),
        Action::ListDev => Ok(NodeRequest::Devices),
        _ => Err(Refusal::unsupported()),
    }
}

fn opened(body: &[u8], side: Side) -> Result<(Action, Fields), Refusal> {
    let refuse = |why: String| Refusal { action: None, why };
    if body.len() > LONGEST {
        return Err(refuse(format!("the message is {} bytes long; at most {LONGEST} are looked at", body.len())));
    }
    let fields = match serde_json::from_slice(body) {
        Ok(Value::Object(fields)) => fields,
        Ok(_) => return Err(refuse("the message is no JSON object".to_owned())),
        Err(why) => return Err(refuse(format!("the message is no JSON: {why}"))),
    };
    match field::field(&fields, "action").map_err(refuse)? {
        Value::String(name) => match Action::of(name) {
            Some((action, its)) if its == side => Ok((action, fields)),
            _ => Err(Refusal::unsupported()),
        },
        other => Err(refuse(format!("the field action is wrong: {} is no string", field::shortened(&other.to_string())))),
    }
}

fn filled(action: Action, fields: &Fields) -> Result<NasRequest, String> {
    Ok(match action {
        Action::MapZvol => NasRequest::Map(MapZvol {
            zpool: field::zpool(fields)?,
            zvol: field::zvol(fields)?,
            remotehost: field::remotehost(fields)?,
            remotepool: field::remotepool(fields)?,
            size: field::size(fields)?,
            sync: field::sync(fields)?,
            initiator: field::initiator(fields)?,
        }),
        Action::UnmapZvol => NasRequest::Unmap { zvol: field::zvol(fields)? },
        Action::DelZvol => NasRequest::Delete { zpool: field::zpool(fields)?, zvol: field::zvol(fields)? },
        Action::GetZvolAttrs => NasRequest::VolumeAttributes { zvol: field::zvol(fields)? },
        Action::SetZvolAttrs => {
            let given = VOLUME_ATTRIBUTES.iter().filter_map(|name| fields.get(*name).map(|value| (*name, value)));
            let changes = given.map(|(name, value)| Ok((name.to_owned(), field::attribute(name, value)?)));
            NasRequest::SetVolumeAttributes { zvol: field::zvol(fields)?, changes: changes.collect::<Result<_, String>>()? }
        }
        Action::GetAttrs => NasRequest::Attributes,
        Action::SetAttrs => NasRequest::SetAttributes { changes: field::values(fields)?.into_iter().collect() },
        Action::DelAttrs => NasRequest::DeleteAttributes { names: field::names(fields)? },
        Action::ListZvols | Action::ListInitiator | Action::ListDev => NasRequest::List,
    })
}
