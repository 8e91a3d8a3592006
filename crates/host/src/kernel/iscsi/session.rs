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

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const TREE: &str = include_str!("../../../tests/transcripts/iscsi-session.txt");

    #[test]
    fn a_session_is_what_the_kernel_shows() {
        let sysfs = tempfile::tempdir().unwrap();
        let all_of = |prefix: &str| all(sysfs.path(), prefix);
        assert_eq!(all_of("iqn."), Ok(Vec::new()), "without the module there is none");
        for line in TREE.lines() {
            let (path, text) = line.split_once('\t').unwrap();
            let path = sysfs.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{text}\n")).unwrap();
        }
        let target = "iqn.2026-11.org.img-storage:nas.01a20785ac1a7bfbb0349aecc9f7b1f3.e1".to_owned();
        let session = Session {
            id: 3,
            target,
            state: State::LoggedIn,
            portal: Some("10.77.0.2:3260".parse().unwrap()),
            initiator: Some("iqn.1993-08.org.debian:01:node1".to_owned()),
        };
        assert_eq!(all_of("iqn.2026-11.org.img-storage:"), Ok(vec![session.clone()]));
        assert_eq!(all_of("iqn.2003-01.org.linux-iscsi:"), Ok(Vec::new()), "another's is none of ours");
        // What has no name yet, or no more, is no session yet; a word of a newer kernel is kept.
        let dir = sysfs.path().join("class/iscsi_session/session3");
        fs::write(dir.join("state"), "DREAMING\n").unwrap();
        assert_eq!(all_of("iqn."), Ok(vec![Session { state: State::Other("DREAMING".to_owned()), ..session }]));
        fs::remove_file(dir.join("targetname")).unwrap();
        assert_eq!(all_of("iqn."), Ok(Vec::new()));
    }
}
