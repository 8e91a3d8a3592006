//! The only code that touches the machine: it starts programs, speaks to them, and opens files and devices.
//!
//! What to do is decided in `img-storage-model`; here is how. The two traits exist because each has a second
//! implementation, [`sim`]: the same verbs in memory, which the simulation's tests run the real daemons on.

pub mod digest;
pub mod exec;
pub mod image;
pub mod nbd;
pub mod net;
pub mod qemu;
pub mod qmp;
pub mod qsd;
pub mod rabbitmq;
pub mod sim;

use img_storage_model::{
    PoolName, VolumeId, VolumeName,
    messages::{DeviceKind, Holder, PoolReport},
    nas::{NasFacts, NasStep},
    node::{NodeFacts, NodeStep, StepResult},
};
use std::{future::Future, pin::Pin};

/// A boxed future; the traits are used as objects, so that a daemon does not care what host it runs on.
pub type Work<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Why an effect or an observation failed: what was tried, on what, and what it said. Nothing is decided by its text; what
/// became of the thing is found by observing again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct HostError(pub String);

/// The verbs of a node.
pub trait NodeHost: Send + Sync {
    /// What is there of this volume.
    fn observe(&self, volume: VolumeId) -> Work<'_, NodeFacts>;
    /// Carries a step out.
    fn run(&self, volume: VolumeId, step: NodeStep) -> Work<'_, Result<StepResult, HostError>>;
    /// What a guest uses to reach the volume: an NBD URI or a socket's path.
    fn device(&self, volume: VolumeId, kind: DeviceKind) -> String;
    /// Who is connected to the guest's device now.
    fn users(&self, volume: VolumeId) -> Work<'_, Result<Vec<Holder>, HostError>>;
    /// The pool for local copies.
    fn pools(&self) -> Work<'_, Vec<PoolReport>>;
}

/// The verbs of a NAS. A volume is found by its pool and name; its identity is checked against the mark.
pub trait NasHost: Send + Sync {
    /// What is there of this volume.
    fn observe(&self, volume: VolumeRef) -> Work<'_, NasFacts>;
    /// Carries a step out.
    fn run(&self, volume: VolumeRef, step: NasStep) -> Work<'_, Result<StepResult, HostError>>;
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
}

/// Identity of the machine's boot; empty where it cannot be told, which then counts as one and the same.
pub fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map_or_else(|_| String::new(), |id| id.trim().to_owned())
}
