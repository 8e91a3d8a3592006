//! The guest's device: its table, its overlay, what guests write and read through it, and merges that go on by themselves.

use super::Kernel;
use crate::sim::{
    BLOCK, RECONNECT,
    guest::{GuestError, Try},
    state::{BLOCK_BYTES, State},
};
use img_storage_model::{
    Epoch, Fact, HostName, VolumeId,
    messages::Writes,
    node::{
        Layer,
        kernel::{Device as DeviceFacts, Merge, Overlay, Table},
    },
};
use std::{collections::BTreeMap, time::Duration};
use tokio::time::Instant;

/// How long a device is busy after a write although nobody has it open.
const BUSY: Duration = Duration::from_millis(15);
/// One write in so many is followed by a flush, and only then is anything answered for good.
const FLUSH_EVERY: u64 = 3;

/// A persistent overlay of device-mapper: its exceptions survive reboots; what was not flushed may not.
pub struct Cow {
    pub epoch: Epoch,
    pub capacity: usize,
    pub data: BTreeMap<usize, u64>,
    stable: BTreeMap<usize, u64>,
    /// A merge into the NAS's zvol has begun.
    pub merging_home: bool,
    /// It ran full: for good, also after a reboot. Nothing is read through it or merged any more.
    pub invalid: bool,
}

impl Cow {
    pub fn new(epoch: Epoch, capacity: usize) -> Self {
        Cow { epoch, capacity, data: BTreeMap::new(), stable: BTreeMap::new(), merging_home: false, invalid: false }
    }

    pub fn fact(&self) -> Overlay {
        Overlay { epoch: self.epoch, size: self.capacity as u64 * BLOCK_BYTES }
    }

    /// What its disk shows: of one that ran full nothing can be told.
    pub fn has_writes(&self) -> bool {
        self.invalid || !self.data.is_empty()
    }

    pub fn flush(&mut self) {
        self.stable.clone_from(&self.data);
    }

    pub fn lose_power(&mut self) {
        let stable = self.stable.clone();
        self.data.retain(|block, version| stable.get(block) == Some(version) || *version % 2 == 1);
        for (block, version) in stable {
            self.data.entry(block).or_insert(version);
        }
        self.flush();
    }

    /// As far as it goes: other blocks are empty.
    pub fn as_copy(&self) -> Vec<u64> {
        let length = self.data.last_key_value().map_or(0, |(block, _)| block + 1);
        (0..length).map(|block| self.data.get(&block).copied().unwrap_or(0)).collect()
    }
}

/// A write that no flush followed yet.
struct Unflushed {
    block: usize,
    version: u64,
    /// How often the NAS's power had been cut, when it is only there.
    power: Option<u64>,
}

/// The device-mapper device.
pub struct Device {
    pub process: u64,
    pub epoch: Epoch,
    pub table: Table,
    /// Loaded, and to be the table when it goes on.
    pub inactive: Option<Table>,
    pub size: u64,
    pub suspended: bool,
    pub guest: bool,
    /// Of a merge: how much there was of it.
    total: usize,
    next: Instant,
    merge_failed: bool,
    /// Whoever wrote last has not let go of it yet.
    pub busy_until: Instant,
    unflushed: Vec<Unflushed>,
    /// What the guest was told is written, flushed or not.
    completed: BTreeMap<usize, u64>,
    /// How often it was written to.
    writes: u64,
}

impl Device {
    pub fn new(process: u64, epoch: Epoch, size: u64, now: Instant) -> Self {
        Device {
            process,
            epoch,
            table: Table::Linear(Layer::Remote),
            inactive: None,
            size,
            suspended: true,
            guest: false,
            total: 0,
            next: now,
            merge_failed: false,
            busy_until: now,
            unflushed: Vec::new(),
            completed: BTreeMap::new(),
            writes: 0,
        }
    }

    /// As the kernel counts; no other device has this one's number.
    pub fn writes(&self) -> Writes {
        Writes { boot: "sim".to_owned(), device: self.process, count: self.writes }
    }

    /// The table is the live one from now on.
    pub fn go_on(&mut self, table: Table, overlay: Option<&mut Cow>, now: Instant) {
        (self.table, self.inactive, self.suspended, self.merge_failed) = (table, None, false, false);
        self.next = now + BLOCK;
        if let Some(cow) = overlay {
            self.total = cow.data.len();
            cow.merging_home = match table {
                Table::Merge(Layer::Remote) => true,
                Table::Linear(_) => false,
                _ => cow.merging_home,
            };
        }
    }

    pub fn uses(&self, layer: Layer) -> bool {
        let (Table::Linear(on) | Table::Overlay(on) | Table::Merge(on)) = self.table;
        on == layer
    }

    pub fn uses_overlay(&self) -> bool {
        !matches!(self.table, Table::Linear(_))
    }

    pub fn fact(&self, overlay: Option<&Cow>) -> Fact<Option<DeviceFacts>> {
        let left = overlay.map_or(0, |cow| cow.data.len());
        let bytes = |blocks: usize| blocks as u64 * BLOCK_BYTES;
        let invalid = overlay.is_some_and(|cow| cow.invalid) && self.uses_overlay();
        let merging = matches!(self.table, Table::Merge(_)) && !self.merge_failed && !invalid;
        Fact::Known(Some(DeviceFacts {
            epoch: self.epoch,
            table: Ok(self.table),
            size: self.size,
            suspended: self.suspended,
            merge: merging.then(|| Merge { left: bytes(left), total: bytes(self.total.max(left)) }),
            broken: invalid.then(|| "Invalid".to_owned()),
            writes: Some(self.writes()),
            quiet: self.table == Table::Linear(Layer::Remote) && !self.suspended,
        }))
    }

    /// A NAS lost its power: what was only there may be gone, and the guest cannot know.
    pub fn forget_unflushed(&mut self) {
        self.completed.clear();
    }
}

/// Where a request ends up.
enum Place {
    Overlay,
    Origin(Layer),
}

fn place(table: Table, overlay: Option<&Cow>, block: usize) -> Place {
    let has = overlay.is_some_and(|cow| cow.data.contains_key(&block));
    match table {
        Table::Linear(layer) => Place::Origin(layer),
        Table::Overlay(_) => Place::Overlay,
        Table::Merge(_) if has => Place::Overlay,
        Table::Merge(layer) => Place::Origin(layer),
    }
}

impl Kernel {
    pub fn device_mut(&mut self, node: &HostName, volume: VolumeId) -> Option<&mut Device> {
        self.nodes.get_mut(node)?.get_mut(&volume)?.device.as_mut()
    }

    pub fn device(&self, node: &HostName, volume: VolumeId) -> Option<&Device> {
        self.nodes.get(node)?.get(&volume)?.device.as_ref()
    }

    /// Whether the NAS's disk answers; where it does not, whether it has been away for long.
    fn remote(&self, node: &HostName, volume: VolumeId, cut: bool, now: Instant) -> Result<Epoch, bool> {
        let session = self.nodes.get(node).and_then(|n| n.get(&volume)?.session.as_ref()).ok_or(true)?;
        match self.reach(node, cut, session) {
            Ok((_, target)) => Ok(target.epoch),
            Err(_) => Err(session.lost.is_some_and(|lost| now.duration_since(lost) >= RECONNECT)),
        }
    }
}

fn waits<T>(gave_up: bool) -> Result<Try<T>, GuestError> {
    if gave_up { Err(GuestError::Io) } else { Ok(Try::Held(false)) }
}

impl State {
    /// Something on the device waits for a NAS that is away, and is not told yet that it failed.
    pub(super) fn waits_for_nas(&self, node: &HostName, volume: VolumeId) -> bool {
        let asks = |d: &Device| d.uses(Layer::Remote) && (d.guest || matches!(d.table, Table::Merge(_)));
        let away = self.kernel.remote(node, volume, self.is_cut(node), self.log.now);
        self.kernel.device(node, volume).is_some_and(asks) && away == Err(false)
    }

    pub(in crate::sim) fn kernel_write(
        &mut self,
        node: &HostName,
        volume: VolumeId,
        block: usize,
        version: u64,
    ) -> Result<Try<()>, GuestError> {
        let (cut, now) = (self.is_cut(node), self.log.now);
        let remote = self.kernel.remote(node, volume, cut, now);
        let v = self.kernel.volume(node, volume);
        let Some(device) = &mut v.device else { return Err(GuestError::Gone) };
        if device.suspended {
            return Ok(Try::Held(true));
        }
        let overlaid = device.uses_overlay();
        if v.overlay.as_ref().is_some_and(|cow| cow.invalid && overlaid) {
            return Err(GuestError::Io);
        }
        let mut unflushed = Unflushed { block, version, power: None };
        let old = match place(device.table, v.overlay.as_ref(), block) {
            Place::Overlay => {
                let cow = v.overlay.as_mut().ok_or(GuestError::Io)?;
                if cow.data.len() >= cow.capacity && !cow.data.contains_key(&block) {
                    cow.invalid = true;
                    self.log.say(format!("TROUBLE the overlay on {node} ran full"));
                    return Err(GuestError::Io);
                }
                cow.data.insert(block, version).unwrap_or(0)
            }
            Place::Origin(Layer::Local) => v.local.as_mut().ok_or(GuestError::Io)?.write(block, version),
            Place::Origin(Layer::Remote) => match remote {
                Err(gave_up) => return waits(gave_up),
                Ok(epoch) => {
                    let newest = self.history(volume).epoch;
                    if epoch < newest {
                        self.log.violation(format!("two writers: {node} writes at epoch {epoch} while {newest} is exported"));
                    }
                    let Some((power, zvol)) = self.kernel.zvol_of_mut(volume) else { return Err(GuestError::Io) };
                    unflushed.power = Some(power);
                    zvol.write(block, version)
                }
            },
        };
        if let Some(device) = self.kernel.device_mut(node, volume) {
            device.unflushed.push(unflushed);
            device.writes += 1;
            device.busy_until = now + BUSY;
            let last = device.completed.entry(block).or_default();
            *last = version.max(*last);
        }
        if old > version {
            self.log.violation(format!("{node} wrote {version} over the newer {old} in block {block}"));
        }
        self.check_readable(volume, "a guest wrote");
        Ok(Try::Done(()))
    }

    /// After some writes the guest flushes, and is told that all of them are done.
    pub(in crate::sim) fn kernel_acknowledge(
        &mut self,
        node: &HostName,
        volume: VolumeId,
        version: u64,
    ) -> Result<Try<()>, GuestError> {
        if !version.is_multiple_of(FLUSH_EVERY) {
            return Ok(Try::Done(()));
        }
        let device = self.kernel.device(node, volume).ok_or(GuestError::Gone)?;
        if device.suspended {
            return Ok(Try::Held(true));
        }
        let epoch = device.epoch;
        if let Err(gave_up) = self.flush_device(node, volume) {
            return waits(gave_up);
        }
        let flushed = self.kernel.device_mut(node, volume).map(|d| std::mem::take(&mut d.unflushed)).unwrap_or_default();
        let history = self.history(volume);
        for write in flushed {
            history.ack(write.block, write.version);
        }
        if epoch < history.epoch {
            let newer = history.epoch;
            self.log.violation(format!("two writers: {node} of epoch {epoch} was answered while epoch {newer} is exported"));
        }
        Ok(Try::Done(()))
    }

    /// Puts everything under the device on stable storage. Fails when the NAS is away, saying whether for long.
    pub(super) fn flush_device(&mut self, node: &HostName, volume: VolumeId) -> Result<(), bool> {
        let (cut, now) = (self.is_cut(node), self.log.now);
        let table = self.kernel.device(node, volume).map(|d| d.table).ok_or(true)?;
        let mut power = None;
        if matches!(table, Table::Linear(Layer::Remote) | Table::Merge(Layer::Remote)) {
            self.kernel.remote(node, volume, cut, now)?;
            let (times, zvol) = self.kernel.zvol_of_mut(volume).ok_or(true)?;
            zvol.flush();
            power = Some(times);
        }
        let v = self.kernel.volume(node, volume);
        if let Some(local) =
            v.local.as_mut().filter(|_| matches!(table, Table::Linear(Layer::Local) | Table::Merge(Layer::Local)))
        {
            local.flush();
        }
        if let Some(cow) = v.overlay.as_mut().filter(|_| !matches!(table, Table::Linear(_))) {
            cow.flush();
        }
        if let Some(device) = &mut v.device {
            // What was lost with the NAS's power is not there to be flushed.
            device.unflushed.retain(|w| w.power.is_none() || w.power == power);
            device.unflushed.iter_mut().for_each(|w| w.power = None);
        }
        Ok(())
    }

    pub(in crate::sim) fn kernel_read(
        &mut self,
        node: &HostName,
        volume: VolumeId,
        block: usize,
    ) -> Result<Try<u64>, GuestError> {
        let (cut, now) = (self.is_cut(node), self.log.now);
        let remote = self.kernel.remote(node, volume, cut, now);
        let v = self.kernel.volume(node, volume);
        let device = v.device.as_ref().ok_or(GuestError::Gone)?;
        if device.suspended {
            return Ok(Try::Held(true));
        }
        if v.overlay.as_ref().is_some_and(|cow| cow.invalid && device.uses_overlay()) {
            return Err(GuestError::Io);
        }
        let (Table::Linear(layer) | Table::Overlay(layer) | Table::Merge(layer)) = device.table;
        let overlay = v.overlay.as_ref().filter(|_| device.uses_overlay()).and_then(|cow| cow.data.get(&block).copied());
        let least = device.completed.get(&block).copied().unwrap_or(0);
        let found = match (overlay, layer) {
            (Some(version), _) => Some(version),
            (None, Layer::Local) => v.local.as_ref().and_then(|l| l.data.get(block).copied()),
            (None, Layer::Remote) => match remote {
                Err(gave_up) => return waits(gave_up),
                Ok(_) => self.kernel.zvol_of_mut(volume).and_then(|(_, z)| z.data.get(block).copied()),
            },
        };
        let version = found.ok_or(GuestError::Io)?;
        if version < least {
            self.log.violation(format!("{node} read {version} from block {block}, where it had written {least}"));
        }
        Ok(Try::Done(version))
    }

    /// Every merge goes on.
    pub(in crate::sim) fn advance_merges(&mut self) {
        let now = self.log.now;
        let all: Vec<(HostName, VolumeId)> =
            self.kernel.nodes.iter().flat_map(|(node, all)| all.keys().map(|id| (node.clone(), *id))).collect();
        for (node, volume) in all {
            while self.merge_block(&node, volume, now) {}
        }
    }

    fn merge_block(&mut self, node: &HostName, volume: VolumeId, now: Instant) -> bool {
        let cut = self.is_cut(node);
        let remote = self.kernel.remote(node, volume, cut, now);
        let v = self.kernel.volume(node, volume);
        let (Some(device), Some(cow)) = (&mut v.device, &mut v.overlay) else { return false };
        let Table::Merge(into) = device.table else { return false };
        if device.suspended || device.merge_failed || device.next > now || cow.data.is_empty() || cow.invalid {
            return false;
        }
        device.next += BLOCK;
        if let (Layer::Remote, Err(gave_up)) = (into, remote) {
            // The kernel gives a merge up at its first error, until the table is loaded anew.
            device.merge_failed = gave_up;
            return true;
        }
        let Some((block, version)) = cow.data.pop_last() else { return false };
        cow.stable.remove(&block);
        if into == Layer::Local {
            if let Some(local) = &mut v.local {
                local.write(block, version);
                local.flush();
            }
        } else if let Some((_, zvol)) = self.kernel.zvol_of_mut(volume) {
            zvol.write(block, version);
            zvol.flush();
        }
        true
    }
}
