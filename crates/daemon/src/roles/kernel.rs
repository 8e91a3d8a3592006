//! The kernel plane of a role: its host verbs, where the configuration asks for them.

use crate::config::Config;
use img_storage_host::{
    HostError,
    kernel::{
        nas::{KernelNas, Settings},
        node::KernelNode,
        stream::Ssh,
    },
    qemu::{Daemons, lend::Lender},
};
use img_storage_model::{Fault, HostName};
use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

/// Where keys for streams are.
const SSH: &str = "/etc/img-storage/ssh";
/// The user that streams run as.
const USER: &str = "img-storage";
/// How long a guest waits for a NAS that is away before its reads and writes fail: longer than a NAS takes to boot.
const PATIENCE: Duration = Duration::from_secs(600);

fn unusable(error: HostError) -> Fault {
    Fault::failed(error.0).next("nothing was started; see docs/kernel-plane.md")
}

/// A NAS's ZFS pools; nothing without any.
///
/// # Errors
/// When this host cannot serve them, and when they hold volumes that the ledger, which is new, does not know.
pub(super) async fn nas(
    config: &Config,
    name: &HostName,
    dir: &Path,
    address: IpAddr,
    daemons: Daemons,
    new_ledger: bool,
) -> Result<Option<KernelNas>, Fault> {
    if config.nas.zfs.is_empty() {
        return Ok(None);
    }
    let sockets = dir.join("ssh");
    std::fs::create_dir_all(&sockets).map_err(|error| Fault::failed(format!("cannot make {}: {error}", sockets.display())))?;
    let nas = nas_of(config, name, dir, address, daemons);
    nas.ready().await.map_err(unusable)?;
    let found = nas.anything().await.map_err(unusable)?;
    known(found.filter(|_| new_ledger)).map(|()| Some(nas))
}

/// The host verbs of a NAS, by its configuration; nothing is made or looked at.
pub(crate) fn nas_of(config: &Config, name: &HostName, dir: &Path, address: IpAddr, daemons: Daemons) -> KernelNas {
    let ssh = &config.nas.ssh;
    let place = |given: &Option<PathBuf>, name: &str| given.clone().unwrap_or_else(|| Path::new(SSH).join(name));
    KernelNas::new(Settings {
        name: name.clone(),
        pools: config.nas.zfs.clone(),
        portal: SocketAddr::new(address, img_storage_model::nas::kernel::ISCSI_PORT),
        lender: Lender::new(daemons, address.to_string()),
        ssh: Ssh {
            user: stream_user(config),
            key: place(&ssh.key, "id_ed25519"),
            known_hosts: place(&ssh.known_hosts, "known_hosts"),
            sockets: dir.join("ssh"),
        },
        ssh_port: ssh.port.unwrap_or(22),
    })
}

/// The user that streams run as.
pub(crate) fn stream_user(config: &Config) -> String {
    config.nas.ssh.user.clone().unwrap_or_else(|| USER.to_owned())
}

/// A node's local copies in ZFS; nothing when that is not configured.
///
/// # Errors
/// As [`nas`].
pub(super) async fn node(config: &Config, new_ledger: bool) -> Result<Option<KernelNode>, Fault> {
    let Some(node) = node_of(config) else { return Ok(None) };
    node.ready().await.map_err(unusable)?;
    let found = node.anything().await.map_err(unusable)?;
    known(found.filter(|_| new_ledger)).map(|()| Some(node))
}

/// The host verbs of a node, by its configuration; nothing is made or looked at.
pub(crate) fn node_of(config: &Config) -> Option<KernelNode> {
    let patience = config.vm.nas_timeout.map_or(PATIENCE, |timeout| timeout.duration());
    config.vm.zfs.as_ref().map(|dataset| KernelNode::new(dataset.clone(), patience))
}

/// A new ledger is begun only where there is nothing that an old one would know.
fn known(found: Option<String>) -> Result<(), Fault> {
    found.map_or(Ok(()), |found| {
        Err(Fault::failed(format!("the ledger is new, and there is the zvol {found} of an older one"))
            .next("nothing was changed; restore the ledger from a backup, or rename what is in the pool to begin anew"))
    })
}
