//! Sessions, as the kernel shows them.

use crate::{
    HostError,
    kernel::{names, text},
};
use std::{net::SocketAddr, path::Path};

/// What a session is good for now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// I/O goes through.
    LoggedIn,
    /// The target is away. I/O waits until the replacement timeout is over; it is tried again and again.
    Failed,
    /// The target has been away for longer than the replacement timeout: I/O fails. It is still tried again. A session that is being
    /// made is also so.
    Free,
    /// Another word of the kernel's.
    Other(String),
}

/// A session with a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// Its number, in `iscsiadm` and the kernel.
    pub id: u32,
    /// The target's name.
    pub target: String,
    /// Its state.
    pub state: State,
    /// Where it was told to connect to.
    pub portal: Option<SocketAddr>,
    /// As whom.
    pub initiator: Option<String>,
}

pub(super) fn all(sysfs: &Path, prefix: &str) -> Result<Vec<Session>, HostError> {
    let class = sysfs.join("class/iscsi_session");
    let mut found = Vec::new();
    // Without the module there is no such directory, and no session.
    for name in names(&class)?.unwrap_or_default() {
        let Some(id) = name.strip_prefix("session").and_then(|id| id.parse().ok()) else { continue };
        let dir = class.join(&name);
        let (Some(target), Some(state)) = (text(&dir.join("targetname"))?, text(&dir.join("state"))?) else { continue };
        if !target.starts_with(prefix) {
            continue;
        }
        let state = match state.as_str() {
            "LOGGED_IN" => State::LoggedIn,
            "FAILED" => State::Failed,
            "FREE" => State::Free,
            _ => State::Other(state),
        };
        let initiator = text(&dir.join("initiatorname"))?.filter(|name| !name.is_empty());
        found.push(Session { id, target, state, portal: portal(sysfs, id)?, initiator });
    }
    Ok(found)
}

/// The address that the session's first connection was made for.
fn portal(sysfs: &Path, id: u32) -> Result<Option<SocketAddr>, HostError> {
    let dir = sysfs.join(format!("class/iscsi_connection/connection{id}:0"));
    let (Some(address), Some(port)) = (text(&dir.join("persistent_address"))?, text(&dir.join("persistent_port"))?) else {
        return Ok(None);
    };
    Ok(address.parse().ok().zip(port.parse().ok()).map(|(address, port)| SocketAddr::new(address, port)))
}
