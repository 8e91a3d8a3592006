//! Both planes of one host: every verb goes to the plane its volume is of.

use crate::{
    HostError, LocalCopies, NasHost, NodeHost, VolumeRef, Work,
    kernel::{nas::KernelNas, node::KernelNode},
    other_plane,
    qemu::{nas::QemuNas, node::QemuNode},
};
use img_storage_model::{
    Plane,
    messages::{DeviceKind, Holder, PoolReport},
    nas,
    node::{self, NodeVolume, StepResult},
};

/// A NAS: directory pools, and ZFS pools where it has any.
pub struct NasPlanes {
    /// The directory pools, and the ports for all that listens.
    pub qemu: QemuNas,
    /// The ZFS pools.
    pub kernel: Option<KernelNas>,
}

/// A node: storage daemons, and ZFS, iSCSI and device-mapper where it is set up for them.
pub struct NodePlanes {
    /// The storage daemons.
    pub qemu: QemuNode,
    /// ZFS, iSCSI and device-mapper.
    pub kernel: Option<KernelNode>,
}

impl NasPlanes {
    fn kernel(&self) -> Result<&KernelNas, HostError> {
        self.kernel.as_ref().ok_or_else(|| other_plane(Plane::Kernel))
    }
}

impl NodePlanes {
    fn kernel(&self) -> Result<&KernelNode, HostError> {
        self.kernel.as_ref().ok_or_else(|| other_plane(Plane::Kernel))
    }
}

impl NasHost for NasPlanes {
    fn observe(&self, volume: VolumeRef, carried: Option<nas::kernel::Zvol>) -> Work<'_, nas::Facts> {
        Box::pin(async move {
            match (volume.plane, self.kernel()) {
                (Plane::Qemu, _) => nas::Facts::Qemu(self.qemu.look(&volume).await),
                (Plane::Kernel, Ok(kernel)) => nas::Facts::Kernel(kernel.look(&volume, carried).await),
                (Plane::Kernel, Err(error)) => nas::Facts::unknown(Plane::Kernel, &error.0),
            }
        })
    }

    fn run(&self, volume: VolumeRef, step: nas::Step) -> Work<'_, Result<StepResult, HostError>> {
        Box::pin(async move {
            match step {
                nas::Step::Qemu(step) => self.qemu.carry_out(&volume, step).await,
                nas::Step::Kernel(step) => self.kernel()?.carry_out(&volume, step).await,
            }
        })
    }

    fn pools(&self) -> Work<'_, Vec<PoolReport>> {
        Box::pin(async move {
            let mut reports = self.qemu.pools().await;
            if let Some(kernel) = &self.kernel {
                reports.extend(kernel.pools().await);
            }
            reports
        })
    }

    fn free_port(&self) -> Result<u16, HostError> {
        self.qemu.free_port()
    }
}

impl NodeHost for NodePlanes {
    fn observe(&self, volume: NodeVolume, carried: Option<node::kernel::Zvols>) -> Work<'_, node::Facts> {
        Box::pin(async move {
            match (volume.plane, self.kernel()) {
                (Plane::Qemu, _) => node::Facts::Qemu(self.qemu.look(volume.id).await),
                (Plane::Kernel, Ok(kernel)) => node::Facts::Kernel(kernel.look(&volume, carried).await),
                (Plane::Kernel, Err(error)) => node::Facts::unknown(Plane::Kernel, &error.0),
            }
        })
    }

    fn run(&self, volume: NodeVolume, step: node::Step) -> Work<'_, Result<StepResult, HostError>> {
        Box::pin(async move {
            match step {
                node::Step::Qemu(step) => self.qemu.carry_out(volume.id, step).await,
                node::Step::Kernel(step) => self.kernel()?.carry_out(&volume, step).await,
            }
        })
    }

    fn device(&self, volume: &NodeVolume, kind: DeviceKind) -> String {
        match volume.plane {
            Plane::Qemu => self.qemu.device(volume, kind),
            Plane::Kernel => KernelNode::device(volume).display().to_string(),
        }
    }

    fn users(&self, volume: NodeVolume) -> Work<'_, Result<Vec<Holder>, HostError>> {
        Box::pin(async move {
            match volume.plane {
                Plane::Qemu => self.qemu.users(volume).await,
                Plane::Kernel => self.kernel()?.users(&volume).await,
            }
        })
    }

    fn pools(&self) -> Work<'_, Vec<PoolReport>> {
        Box::pin(async move {
            let mut reports = self.qemu.pools().await;
            if let Some(kernel) = &self.kernel {
                reports.push(kernel.pool().await);
            }
            reports
        })
    }

    fn copies(&self) -> Work<'_, Result<LocalCopies, HostError>> {
        Box::pin(async move {
            match &self.kernel {
                Some(kernel) => kernel.copies().await,
                None => Ok(LocalCopies::default()),
            }
        })
    }
}
