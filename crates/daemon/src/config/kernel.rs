//! What is configured of the kernel plane.

use serde::Deserialize;
use std::path::PathBuf;

/// `[nas.ssh]`: how a NAS reaches its nodes for streams of snapshots.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ssh {
    /// As which user; `img-storage`.
    pub user: Option<String>,
    /// The port of the nodes' sshd; 22.
    pub port: Option<u16>,
    /// The private key; `/etc/img-storage/ssh/id_ed25519`.
    pub key: Option<PathBuf>,
    /// The nodes' keys; `/etc/img-storage/ssh/known_hosts`.
    pub known_hosts: Option<PathBuf>,
}
