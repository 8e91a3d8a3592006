//! The two ways a volume's data goes.

use crate::{Fault, messages::DeviceKind};
use serde::{Deserialize, Serialize};
use std::fmt;

/// What carries a volume's data: its pool's, and the volume's for life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Plane {
    /// Raw files and QEMU's storage daemons.
    #[default]
    Qemu,
    /// zvols, the kernel's iSCSI and device-mapper.
    Kernel,
}

impl Plane {
    /// The device a guest gets on this plane when it asks for `wanted`.
    ///
    /// # Errors
    /// [`crate::FaultKind::Invalid`] when the plane has no such device.
    pub fn device(self, wanted: DeviceKind) -> Result<DeviceKind, Fault> {
        match (self, wanted) {
            // The default of a request that does not know the plane.
            (Plane::Kernel, DeviceKind::Nbd | DeviceKind::Block) => Ok(DeviceKind::Block),
            (Plane::Qemu, DeviceKind::Nbd | DeviceKind::VhostUserBlk) => Ok(wanted),
            (Plane::Kernel, DeviceKind::VhostUserBlk) => {
                Err(Fault::invalid("a volume in a ZFS pool is a block device, not a vhost-user-blk socket")
                    .next("map it without --device"))
            }
            (Plane::Qemu, DeviceKind::Block) => {
                Err(Fault::invalid("a volume in a directory pool is a socket, not a block device")
                    .next("map it without --device"))
            }
        }
    }
}

impl fmt::Display for Plane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Plane::Qemu => "qemu",
            Plane::Kernel => "kernel",
        })
    }
}
