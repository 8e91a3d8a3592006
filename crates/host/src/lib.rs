//! The only code that touches the machine: it starts programs, speaks to them, and opens files and devices.
//!
//! What to do is decided in `img-storage-model`; here is how. The two traits exist because each has a second
//! implementation, [`sim`]: the same verbs in memory, which the simulation's tests run the real daemons on.

pub mod digest;
pub mod exec;
pub mod image;
pub mod kernel;
pub mod lock;
pub mod nbd;
pub mod net;
pub mod planes;
pub mod qemu;
pub mod qmp;
pub mod qsd;
pub mod rabbitmq;
pub mod sim;

use img_storage_model::{
    Plane, PoolName, VolumeId, VolumeName,
    messages::{DeviceKind, Holder, PoolReport},
    nas,
    node::{self, NodeVolume, StepResult},
};
use std::{collections::BTreeMap, future::Future, pin::Pin};

/// A boxed future; the traits are used as objects, so that a daemon does not care what host it runs on.
pub type Work<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Why an effect or an observation failed: what was tried, on what, and what it said. Nothing is decided by its text; what
/// became of the thing is found by observing again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct HostError(pub String);

/// The local copies that a node's pool of the kernel plane holds, of mappings that last and of those that are over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalCopies {
    /// Bytes that there is room for in all, used or not.
    pub size: u64,
    /// Bytes free.
    pub free: u64,
    /// Bytes that each takes, with its snapshots and what is reserved for it.
    pub used: BTreeMap<VolumeId, u64>,
}

/// The verbs of a node.
pub trait NodeHost: Send + Sync {
    /// What is there of this volume. Zvols that were seen a moment ago and are `carried` over are not looked at.
    fn observe(&self, volume: NodeVolume, carried: Option<node::kernel::Zvols>) -> Work<'_, node::Facts>;
    /// Carries a step out.
    fn run(&self, volume: NodeVolume, step: node::Step) -> Work<'_, Result<StepResult, HostError>>;
    /// What a guest uses to reach the volume: an NBD URI, or the path of a socket or a block device.
    fn device(&self, volume: &NodeVolume, kind: DeviceKind) -> String;
    /// Who is connected to the guest's device now.
    fn users(&self, volume: NodeVolume) -> Work<'_, Result<Vec<Holder>, HostError>>;
    /// The pool for local copies.
    fn pools(&self) -> Work<'_, Vec<PoolReport>>;
    /// The local copies on the kernel plane, and their room.
    fn copies(&self) -> Work<'_, Result<LocalCopies, HostError>>;
}

/// The verbs of a NAS. A volume is found by its pool and name; its identity is checked against the mark.
pub trait NasHost: Send + Sync {
    /// What is there of this volume. A zvol that was seen a moment ago and is `carried` over is not looked at.
    fn observe(&self, volume: VolumeRef, carried: Option<nas::kernel::Zvol>) -> Work<'_, nas::Facts>;
    /// Carries a step out.
    fn run(&self, volume: VolumeRef, step: nas::Step) -> Work<'_, Result<StepResult, HostError>>;
    /// The pools and their room.
    fn pools(&self) -> Work<'_, Vec<PoolReport>>;
    /// A TCP port nobody listens on now.
    fn free_port(&self) -> Result<u16, HostError>;
}

/// Which volume of a NAS.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct VolumeRef {
    /// Identity.
    pub id: VolumeId,
    /// Its pool.
    pub pool: PoolName,
    /// Its name.
    pub name: VolumeName,
    /// What carries its data.
    pub plane: Plane,
}

/// A host, or a simulated one, that has no such plane.
pub fn other_plane(plane: Plane) -> HostError {
    HostError(format!("this host does not serve the {plane} plane"))
}

/// Identity of the machine's boot; empty where it cannot be told, which then counts as one and the same.
pub fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map_or_else(|_| String::new(), |id| id.trim().to_owned())
}

/// Where open-iscsi keeps this machine's name.
const INITIATOR_FILE: &str = "/etc/iscsi/initiatorname.iscsi";

/// This machine's iSCSI name; nothing where it has no open-iscsi.
///
/// # Errors
/// When there is a file for it with no name that can be read.
pub fn initiator() -> Result<Option<String>, HostError> {
    match std::fs::read_to_string(INITIATOR_FILE) {
        Ok(text) => initiator_in(&text).map(Some).ok_or_else(|| HostError(format!("{INITIATOR_FILE} has no InitiatorName"))),
        Err(why) if why.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(why) => Err(HostError(format!("{INITIATOR_FILE} cannot be read: {why}"))),
    }
}

fn initiator_in(text: &str) -> Option<String> {
    let values = text.lines().filter_map(|line| line.trim().strip_prefix("InitiatorName"));
    values.filter_map(|rest| rest.trim_start().strip_prefix('=')).map(|name| name.trim().to_owned()).find(|name| !name.is_empty())
}

/// Whether a name means a machine to this one: it is in its hosts file or its name service, which is not waited for for long.
pub async fn resolves(name: &str) -> bool {
    let found = tokio::time::timeout(std::time::Duration::from_secs(2), tokio::net::lookup_host((name, 0))).await;
    found.is_ok_and(|found| found.is_ok_and(|mut addresses| addresses.next().is_some()))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_initiators_name_is_found_among_comments() {
        let text = "## DO NOT EDIT\n#InitiatorName=no\n InitiatorName = iqn.1993-08.org.debian:01:f3 \n";
        assert_eq!(super::initiator_in(text).as_deref(), Some("iqn.1993-08.org.debian:01:f3"));
        assert_eq!(super::initiator_in("GenerateName=yes\nInitiatorName=\n"), None);
    }
}
