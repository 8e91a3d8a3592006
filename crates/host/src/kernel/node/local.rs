//! The local zvol and the overlay.

use super::Steps;
use crate::{
    HostError,
    kernel::{
        dm,
        marks::{self, EPOCH, NOTED, RECEIVES},
        zfs::{Look, NewVolume, Zfs},
    },
};
use img_storage_model::{
    Epoch, SnapshotId,
    node::kernel::{LocalZvol, Overlay},
    snapshot::Snapshot,
};

impl Steps<'_> {
    /// The local zvol and the overlay.
    pub(super) async fn look_at_zvols(&self) -> (Result<Option<LocalZvol>, HostError>, Result<Option<Overlay>, HostError>) {
        // Before all the rest: ZFS makes a zvol's device when it has put the log into it, and counts nothing of that before.
        let complete = Zfs::device(&self.local).exists();
        match marks::look(&self.host.zfs, [&self.local, &self.overlay]).await {
            Ok([local, overlay]) => (self.local(local, complete).await, self.overlay(overlay)),
            Err(error) => (Err(error.clone()), Err(error)),
        }
    }

    async fn local(&self, found: Option<Look>, complete: bool) -> Result<Option<LocalZvol>, HostError> {
        let Some(Look { mut zvol, snapshots }) = marks::of(found, self.volume.id)? else { return Ok(None) };
        if !complete {
            zvol.marks.remove(NOTED);
        }
        // A guest may have had it.
        if zvol.is_reserved() && !complete {
            let device = Zfs::device(&self.local);
            return Err(HostError(format!(
                "{} is not there yet, so that nobody can tell what was written to {} before this machine stopped; does udev run, and is \
                 volmode of it `dev`?",
                device.display(),
                self.local
            )));
        }
        let points = marks::points(&snapshots);
        Ok(Some(LocalZvol {
            size: zvol.size.unwrap_or(0),
            snapshots: points.ours.iter().map(|point| point.snapshot).collect(),
            received: points.ours.last().is_some_and(|newest| newest.received()),
            held: points.ours.last().is_some_and(|newest| newest.held),
            written: marks::written(&self.host.zfs, &zvol, &points).await?,
            unchanged: None,
            receives: marks::epoch_in(&zvol, RECEIVES),
            reserved: zvol.is_reserved(),
            resume: zvol.resume_token,
        }))
    }

    fn overlay(&self, found: Option<Look>) -> Result<Option<Overlay>, HostError> {
        let Some(Look { zvol, .. }) = marks::of(found, self.volume.id)? else { return Ok(None) };
        let epoch = marks::epoch_in(&zvol, EPOCH)
            .ok_or_else(|| HostError(format!("the zvol {} does not say of which epoch it is", self.overlay)))?;
        Ok(Some(Overlay { epoch, size: zvol.size.unwrap_or(0) }))
    }

    pub(super) async fn set_receives(&self, epoch: Option<Epoch>) -> Result<(), HostError> {
        let zfs = &self.host.zfs;
        match epoch {
            Some(epoch) => zfs.set(&self.local, RECEIVES, &epoch.to_string()).await,
            None => zfs.unset(&self.local, RECEIVES).await,
        }
    }

    /// The planner looked a moment ago; who wrote to it since by hand, or has it open, is found here. ZFS counts what was written when
    /// it syncs, which whoever closes a zvol waits for.
    pub(super) async fn destroy_warm(&self, home: Snapshot) -> Result<(), HostError> {
        let zfs = &self.host.zfs;
        zfs.refuse_in_use(&self.local, "destroyed").await?;
        // After that: who had it open may have written to it until now.
        let Some(Look { zvol, snapshots }) = marks::ours(zfs, &self.local, self.volume.id).await? else { return Ok(()) };
        let points = marks::points(&snapshots);
        if points.ours.last().map(|newest| newest.snapshot) != Some(home) {
            return Err(HostError(format!("the newest snapshot of {} is not {} any more; it is kept", self.local, home.id)));
        }
        let written = marks::written(zfs, &zvol, &points).await?;
        if written > 0 {
            return Err(HostError(format!(
                "{written} bytes were written to {} since its newest snapshot; it is kept",
                self.local
            )));
        }
        self.destroy_local().await
    }

    /// With no snapshots but ours: what somebody else took may be all that is left of something.
    pub(super) async fn destroy_local(&self) -> Result<(), HostError> {
        let zfs = &self.host.zfs;
        let snapshots = zfs.snapshots(&self.local).await?.unwrap_or_default();
        if let Some(foreign) = snapshots.iter().find(|s| s.name.name().parse::<SnapshotId>().is_err()) {
            return Err(HostError(format!(
                "{} is kept for {}, which somebody else took; destroy that first if nobody needs it",
                self.local, foreign.name
            )));
        }
        zfs.destroy_volume(&self.local, &self.volume.id.to_string(), marks::HOLD).await
    }

    /// The planner looked a moment ago.
    pub(super) async fn settle(&self) -> Result<(), HostError> {
        if marks::settle(&self.host.zfs, &self.local, self.volume.id).await? {
            return Ok(());
        }
        Err(HostError(format!("it cannot be shown that nothing was written to {} since its newest snapshot", self.local)))
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

    /// The planner says that nothing is in it any more; where its ledger is an old one there may be, and nowhere else.
    pub(super) async fn remove_overlay(&self) -> Result<(), HostError> {
        let zfs = &self.host.zfs;
        zfs.wait_for_device(&self.overlay).await?;
        if dm::has_writes(Zfs::device(&self.overlay)).await? {
            return Err(HostError(format!(
                "{} has writes of a guest that were not merged, and this host's ledger does not know of them: is it an old one? It is kept; stop the \
                 daemon and put back the newest ledger that there is",
                self.overlay
            )));
        }
        zfs.destroy_volume(&self.overlay, &self.volume.id.to_string(), marks::HOLD).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::{
        node::KernelNode,
        zfs::{SnapshotFacts, VOLUME, Zvol},
    };
    use img_storage_model::{Dataset, Guid, Plane, VolumeId, node::NodeVolume};
    use std::time::Duration;
    use uuid::Uuid;

    /// A copy that ZFS counts so many bytes of, and for which something was noted.
    fn found(volume: VolumeId, reserved: u64, written: u64, noted: &str) -> Look {
        let name = Dataset::new("vmpool/images/nas.tank.vol1").unwrap();
        let newest = SnapshotFacts {
            name: name.at(&SnapshotId(Uuid::from_u128(5)).to_string()).unwrap(),
            guid: Guid(7),
            created_txg: 1,
            holds: 1,
            written: 0,
            referenced: 0,
            taken: true,
        };
        let marks = [(VOLUME, volume.to_string()), (NOTED, noted.to_owned())].map(|(name, value)| (name.to_owned(), value));
        let zvol = Zvol {
            name,
            size: Some(1 << 20),
            block_size: None,
            used: 0,
            referenced: 0,
            written,
            guid: Guid(1),
            created_txg: 1,
            reserved,
            resume_token: None,
            marks: marks.into(),
        };
        Look { zvol, snapshots: vec![newest] }
    }

    #[tokio::test]
    async fn what_was_noted_holds_for_one_count_since_one_snapshot_and_once_the_log_is_in() {
        let host = KernelNode::new(Dataset::new("vmpool/images").unwrap(), Duration::ZERO);
        let volume = NodeVolume { id: VolumeId(Uuid::from_u128(3)), plane: Plane::Kernel, label: "nas.tank.vol1".to_owned() };
        let steps = host.at(&volume).unwrap();
        let written = async |reserved, written, noted, complete| {
            steps.local(Some(found(volume.id, reserved, written, noted)), complete).await.map(|local| local.unwrap().written)
        };
        assert_eq!(written(u64::MAX, 1024, "7:1024", true).await, Ok(0));
        assert_eq!(written(u64::MAX, 1536, "7:1024", true).await, Ok(1536), "ZFS counts more once something was written");
        assert_eq!(written(u64::MAX, 1024, "8:1024", true).await, Ok(1024), "it was noted of another snapshot");
        assert!(written(u64::MAX, 0, "7:1024", false).await.is_err(), "a guest may have had it, and its log is not in it");
        assert_eq!(written(0, 1024, "7:1024", false).await, Ok(1024), "what was noted is not of what the log may bring");
    }
}
