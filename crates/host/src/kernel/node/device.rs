//! The guest's device.

use super::{FLUSH, Steps};
use crate::{
    HostError,
    kernel::{
        block::{self, Number},
        dm::{self, Count, Order, Spot},
        marks,
        zfs::Zfs,
    },
};
use img_storage_model::{
    Epoch,
    messages::Writes,
    node::{
        Layer,
        kernel::{Device, Merge, Table},
    },
};

/// How much is copied up for a write, in sectors: one block of a zvol.
const CHUNK: u32 = 32;

/// Nothing where this start of the host cannot be told from another.
fn counted(count: Count) -> Option<Writes> {
    let boot = crate::boot_id();
    (!boot.is_empty()).then_some(Writes { boot, device: count.device, count: count.writes })
}

impl Steps<'_> {
    /// The device that was found, in full.
    pub(super) async fn look_at_device(&self, state: Spot, disk: Option<Number>) -> Result<Device, HostError> {
        let (dm, name) = (&self.host.dm, self.volume.label.as_str());
        let ours = marks::device(self.volume.id, Epoch(0));
        let (part, _) = ours.rsplit_once('e').unwrap_or_default();
        let epoch = marks::epoch(&state.uuid).filter(|_| state.uuid.starts_with(part));
        let epoch = epoch.ok_or_else(|| {
            HostError(format!("the device-mapper device {name} is of another volume ({}); it is left alone", state.uuid))
        })?;
        let (table, size) = match dm.live_table(name).await? {
            dm::Table::Layer { layer, size } => (self.table(layer, disk).await, size),
            dm::Table::None => (Err("it has no table".to_owned()), 0),
            dm::Table::Other(lines) => (Err(lines), 0),
        };
        let writes = state.count.and_then(counted);
        let mut device =
            Device { epoch, table, size, suspended: state.suspended, merge: None, broken: None, writes, quiet: false };
        if matches!(device.table, Ok(Table::Overlay(_) | Table::Merge(_))) {
            match dm.overlay(name).await? {
                Some(dm::Overlay::Used { allocated, bookkeeping, .. }) if matches!(device.table, Ok(Table::Merge(_))) => {
                    let left = allocated.saturating_sub(bookkeeping) * block::SECTOR;
                    device.merge = Some(Merge { left, total: left });
                }
                Some(dm::Overlay::Invalid) => device.broken = Some("it is invalid: it was full, or could not be read".to_owned()),
                Some(dm::Overlay::Overflow) => device.broken = Some("it is full".to_owned()),
                // A merge that stopped at an error is none: it goes on where it was when its table is put in anew.
                Some(dm::Overlay::MergeFailed | dm::Overlay::Used { .. }) | None => {}
            }
        }
        Ok(device)
    }

    /// Whether nothing was written through the device since it was looked at, nor is under way. Kernels that count a write when it begins count it a
    /// moment before they say that it is under way; all that was looked at meanwhile took longer.
    pub(super) async fn is_quiet(&self, device: &Device) -> bool {
        let now = self.host.dm.spot(&self.volume.label).await.ok().flatten().and_then(|spot| spot.count);
        let same = now.is_some_and(|now| now.under_way == 0 && device.writes.is_some() && device.writes == counted(now));
        same && !device.suspended && device.table == Ok(Table::Linear(Layer::Remote))
    }

    /// Nothing was written through the device since both were the same; nor is anything to be flushed, then.
    pub(super) async fn move_device(&self, writes: Writes, size: u64) -> Result<(), HostError> {
        if writes.boot != crate::boot_id() {
            return Err(HostError("what was written was counted before this host was started".to_owned()));
        }
        let layer = self.layer(Table::Linear(Layer::Local)).await?;
        let count = Count { device: writes.device, writes: writes.count, under_way: 0 };
        match self.host.dm.swap_if_still(&self.volume.label, size, &layer, count).await? {
            Some(swapped) => {
                let pause_us = swapped.paused.as_micros();
                tracing::info!(device = self.volume.label, pause_us, "the guest's device goes on, on the local copy");
            }
            None => tracing::info!(device = self.volume.label, "the guest has written meanwhile: its device goes on as it was"),
        }
        Ok(())
    }

    /// What a table means: which of its devices is which.
    async fn table(&self, layer: dm::Layer, disk: Option<Number>) -> Result<Table, String> {
        let of = |name| block::number(&Zfs::device(name)).map_err(|error| error.0);
        let (local, overlay) = (of(&self.local)?, of(&self.overlay)?);
        let under = |number: Number| match number {
            number if Some(number) == local => Ok(Layer::Local),
            number if Some(number) == disk => Ok(Layer::Remote),
            number => match number.name().map_err(|error| error.0)? {
                // A disk whose session is gone: nothing else of ours is one.
                Some(name) if name.starts_with("sd") => Ok(Layer::Remote),
                None => Ok(Layer::Remote),
                Some(name) => Err(format!("it lies on {name}")),
            },
        };
        let over = |number: Number| {
            if overlay.is_none_or(|known| known == number) { Ok(()) } else { Err(format!("its overlay is {number}, not ours")) }
        };
        Ok(match layer {
            dm::Layer::Linear { device } => Table::Linear(under(device)?),
            dm::Layer::Snapshot { origin, overlay, .. } => {
                over(overlay)?;
                Table::Overlay(under(origin)?)
            }
            dm::Layer::SnapshotMerge { origin, overlay, .. } => {
                over(overlay)?;
                Table::Merge(under(origin)?)
            }
        })
    }

    /// The table of the kernel.
    async fn layer(&self, table: Table) -> Result<dm::Layer, HostError> {
        let overlaid = !matches!(table, Table::Linear(_));
        let (device, overlay) = tokio::try_join!(
            async {
                match table.layer() {
                    Layer::Remote => self.disk().await.map(|disk| disk.number),
                    Layer::Local => self.zvol(&self.local).await,
                }
            },
            async { if overlaid { self.zvol(&self.overlay).await.map(Some) } else { Ok(None) } }
        )?;
        Ok(match (table, overlay) {
            (Table::Merge(_), Some(overlay)) => dm::Layer::SnapshotMerge { origin: device, overlay, chunk: CHUNK },
            (_, Some(overlay)) => dm::Layer::Snapshot { origin: device, overlay, chunk: CHUNK },
            (_, None) => dm::Layer::Linear { device },
        })
    }

    pub(super) async fn create_device(&self, epoch: Epoch, table: Table, size: u64) -> Result<(), HostError> {
        let layer = self.layer(table).await?;
        let uuid = marks::device(self.volume.id, epoch);
        self.host.dm.create(&self.volume.label, &uuid, size, &layer).await
    }

    pub(super) async fn swap(&self, table: Table, size: u64) -> Result<(), HostError> {
        let layer = self.layer(table).await?;
        let order = if matches!(table, Table::Merge(_)) { Order::SuspendFirst } else { Order::LoadFirst };
        // What the guest wrote before is not flushed by it any more once it flushes the overlay.
        let below = match table {
            Table::Overlay(Layer::Remote) => Some(self.disk().await?.path),
            Table::Overlay(Layer::Local) => Some(Zfs::device(&self.local)),
            Table::Linear(_) | Table::Merge(_) => None,
        };
        // Most of it now, while an error leaves everything as it was.
        if let Some(path) = &below {
            block::flush(path.clone(), FLUSH).await?;
        }
        let swapped = self.host.dm.swap(&self.volume.label, size, &layer, order).await?;
        tracing::info!(device = self.volume.label, ?table, pause_us = swapped.paused.as_micros(), "the guest's device goes on");
        if let Some(path) = below {
            block::flush(path, FLUSH).await?;
        }
        Ok(())
    }

    pub(super) async fn resume_device(&self) -> Result<(), HostError> {
        let name = &self.volume.label;
        // A table that a killed daemon loaded is not one the ledger may know of.
        self.host.dm.clear(name).await?;
        self.host.dm.resume(name).await
    }
}
