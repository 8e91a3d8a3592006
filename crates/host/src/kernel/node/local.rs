//! The local zvol and the overlay.

use super::Steps;
use crate::{
    HostError,
    kernel::{
        marks::{self, EPOCH, RECEIVES},
        zfs::NewVolume,
    },
};
use img_storage_model::{
    Epoch, SnapshotId,
    node::kernel::{LocalZvol, Overlay},
};

impl Steps<'_> {
    pub(super) async fn look_at_local(&self) -> Result<Option<LocalZvol>, HostError> {
        let zfs = &self.host.zfs;
        let Some(found) = marks::ours(zfs, &self.local, self.volume.id).await? else { return Ok(None) };
        let points = marks::points(&zfs.snapshots(&self.local).await?.unwrap_or_default());
        Ok(Some(LocalZvol {
            size: found.size.unwrap_or(0),
            snapshots: points.ours.iter().map(|(snapshot, _)| *snapshot).collect(),
            written: marks::written(zfs, &found, &points).await?,
            receives: marks::epoch_in(&found, RECEIVES),
            reserved: zfs.is_reserved(&self.local).await?,
            resume: found.resume_token,
        }))
    }

    pub(super) async fn look_at_overlay(&self) -> Result<Option<Overlay>, HostError> {
        let Some(found) = marks::ours(&self.host.zfs, &self.overlay, self.volume.id).await? else { return Ok(None) };
        let epoch = marks::epoch_in(&found, EPOCH)
            .ok_or_else(|| HostError(format!("the zvol {} does not say of which epoch it is", self.overlay)))?;
        Ok(Some(Overlay { epoch, size: found.size.unwrap_or(0) }))
    }

    pub(super) async fn set_receives(&self, epoch: Option<Epoch>) -> Result<(), HostError> {
        let zfs = &self.host.zfs;
        match epoch {
            Some(epoch) => zfs.set(&self.local, RECEIVES, &epoch.to_string()).await,
            None => zfs.unset(&self.local, RECEIVES).await,
        }
    }

    pub(super) async fn roll_back(&self, to: SnapshotId) -> Result<(), HostError> {
        let name = marks::at(&self.local, to)?;
        let found = self.host.zfs.find_snapshot(&name).await?;
        let guid = found.ok_or_else(|| HostError(format!("there is no snapshot {name}")))?.guid;
        self.host.zfs.rollback(&name, guid).await
    }

    /// Larger than the volume, so that it never fills: every chunk of it, and the overlay's own bookkeeping; and all of it has its
    /// room in the pool, because an overlay that meets a full pool is lost with every write in it. The room is free again after the merge.
    pub(super) async fn create_overlay(&self, epoch: Epoch, size: u64) -> Result<(), HostError> {
        let new = NewVolume {
            size: marks::whole_blocks(size + size / 50 + (16 << 20)),
            sparse: false,
            block_size: None,
            volume: self.volume.id.to_string(),
            marks: vec![(EPOCH.to_owned(), epoch.to_string())],
        };
        self.host.zfs.create(&self.overlay, &new).await?;
        self.host.zfs.wait_for_device(&self.overlay).await.map(drop)
    }
}
