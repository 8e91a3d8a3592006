//! What guests do: they connect to the device, write and read, and remember what they were told.

use super::{World, graph::Conn, jobs::gave_up, state::State};
use img_storage_model::{
    HostName, VolumeId,
    messages::Endpoint,
    node::{JobState, Layer},
};
use std::time::Duration;
use tokio::time::Instant;

/// How long a write takes between reaching the disk and being answered.
const ANSWER: Duration = Duration::from_micros(300);

/// Why a guest's request failed. Nothing is known about a write that failed: it may be there or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestError {
    /// There is no device, or it went away.
    Gone,
    /// An I/O error: the NAS was away for longer than the device waits.
    Io,
}

/// A request that is done, or waits.
pub(super) enum Try<T> {
    Done(T),
    /// Waits; `true` when a pivot holds it.
    Held(bool),
}

impl World {
    /// Connects the guest to its device; nothing when there is none. Gives the device's incarnation.
    pub fn guest_connect(&self, node: &HostName, volume: VolumeId) -> Option<u64> {
        self.with(|s| {
            if let Some(device) = s.kernel.device_mut(node, volume) {
                device.guest = true;
                return Some(device.process);
            }
            let qsd = s.node(node, volume).qsd.as_mut()?;
            *qsd.guest.as_mut()? = true;
            Some(qsd.process)
        })
    }

    /// Disconnects the guest.
    pub fn guest_disconnect(&self, node: &HostName, volume: VolumeId) {
        self.with(|s| {
            if let Some(device) = s.kernel.device_mut(node, volume) {
                device.guest = false;
            }
            if let Some(guest) = s.node(node, volume).qsd.as_mut().and_then(|q| q.guest.as_mut()) {
                *guest = false;
            }
        });
    }

    /// Writes a new version to a block of the connected device; the version, once it is answered.
    ///
    /// # Errors
    /// When there is no device, it goes away, or the NAS does not come back in time.
    pub async fn guest_write(&self, node: &HostName, volume: VolumeId, block: usize) -> Result<u64, GuestError> {
        let (process, version) = self.with(|s| {
            let process = s.connected(node, volume)?;
            Ok((process, s.history(volume).issue(block)))
        })?;
        let mut held = None;
        loop {
            match self.with(|s| s.apply(node, volume, process, block, version))? {
                Try::Done(()) => {
                    tokio::time::sleep(ANSWER).await;
                    if let Try::Done(()) = self.with(|s| s.acknowledge(node, volume, process, block, version))? {
                        return Ok(version);
                    }
                }
                Try::Held(pivot) => self.wait(&mut held, pivot).await,
            }
            self.was_held(&mut held);
        }
    }

    /// Reads a block of the connected device; it must have everything that was answered before.
    ///
    /// # Errors
    /// As [`World::guest_write`].
    pub async fn guest_read(&self, node: &HostName, volume: VolumeId, block: usize) -> Result<u64, GuestError> {
        let (process, least) = self.with(|s| {
            let process = s.connected(node, volume)?;
            Ok((process, s.history(volume).newest_acked(block)))
        })?;
        let mut held = None;
        loop {
            match self.with(|s| s.fetch(node, volume, process, block))? {
                Try::Done(version) => {
                    if version < least {
                        self.with(|s| {
                            s.log.violation(format!("{node} read {version} from block {block}; {least} had been answered"));
                        });
                    }
                    return Ok(version);
                }
                Try::Held(pivot) => self.wait(&mut held, pivot).await,
            }
            self.was_held(&mut held);
        }
    }

    /// A front end fills a block of a volume that is being imported. It counts once [`World::imported`] says so.
    ///
    /// # Errors
    /// Where the endpoint leads to nothing.
    pub fn fill(&self, from: &HostName, endpoint: &Endpoint, volume: VolumeId, block: usize) -> Result<(), String> {
        self.with(|s| {
            if s.kernel.has(volume) {
                s.kernel.lets_fill(from, endpoint, volume)?;
                let version = s.history(volume).issue(block);
                s.kernel.zvol_of_mut(volume).map(|(_, zvol)| zvol.write(block, version));
                return Ok(());
            }
            let target = s.nases.target(from, false, &Conn::to(endpoint))?;
            let version = s.history(volume).issue(block);
            s.nases.write(&target, block, version);
            Ok(())
        })
    }

    /// A front end was told that its import is done: what it wrote is there to stay.
    pub fn imported(&self, volume: VolumeId) {
        self.with(|s| s.history(volume).ack_all());
    }

    /// A front end reads a block.
    ///
    /// # Errors
    /// Where the endpoint leads to nothing.
    pub fn read(&self, from: &HostName, endpoint: &Endpoint, block: usize) -> Result<u64, String> {
        self.with(|s| {
            if let Some(copy) = s.kernel.read_by(from, endpoint) {
                return copy.get(block).copied().ok_or_else(|| "there is no such block".to_owned());
            }
            let target = s.nases.target(from, false, &Conn::to(endpoint))?;
            s.nases.contents(&target).get(block).copied().ok_or_else(|| "there is no such block".to_owned())
        })
    }

    /// What is wrong with a copy that a front end has read: it ought to be a point in time.
    ///
    /// # Errors
    /// What does not fit together.
    pub fn check_read(&self, volume: VolumeId, copy: &[u64]) -> Result<(), String> {
        self.with(|s| s.history(volume).point_in_time(copy))
    }

    async fn wait(&self, held: &mut Option<Instant>, pivot: bool) {
        if pivot {
            held.get_or_insert_with(Instant::now);
        }
        self.change().await;
    }

    fn was_held(&self, held: &mut Option<Instant>) {
        if let Some(since) = held {
            let held = since.elapsed();
            self.with(|s| s.log.longest_hold = s.log.longest_hold.max(held));
        }
    }
}

impl State {
    /// The process whose device the guest is connected to.
    pub(super) fn connected(&mut self, node: &HostName, volume: VolumeId) -> Result<u64, GuestError> {
        if let Some(device) = self.kernel.device(node, volume) {
            return if device.guest { Ok(device.process) } else { Err(GuestError::Gone) };
        }
        let qsd = self.node(node, volume).qsd.as_ref().ok_or(GuestError::Gone)?;
        if qsd.guest == Some(true) { Ok(qsd.process) } else { Err(GuestError::Gone) }
    }

    fn still(&mut self, node: &HostName, volume: VolumeId, process: u64) -> Result<(), GuestError> {
        if self.connected(node, volume)? == process { Ok(()) } else { Err(GuestError::Gone) }
    }

    fn apply(
        &mut self,
        node: &HostName,
        volume: VolumeId,
        process: u64,
        block: usize,
        version: u64,
    ) -> Result<Try<()>, GuestError> {
        self.still(node, volume, process)?;
        if self.kernel.device(node, volume).is_some() {
            return self.kernel_write(node, volume, block, version);
        }
        let now = self.log.now;
        let Some(machine) = self.nodes.get_mut(node) else {
            return Err(GuestError::Gone);
        };
        let Some(v) = machine.volumes.get_mut(&volume) else {
            return Err(GuestError::Gone);
        };
        let Some(qsd) = &mut v.qsd else {
            return Err(GuestError::Gone);
        };
        if qsd.holds() {
            return Ok(Try::Held(true));
        }
        let mut over = 0;
        match qsd.top {
            Layer::Remote => {
                let conn = qsd.remote.as_ref().ok_or(GuestError::Io)?;
                let target = match self.nases.target(node, machine.cut, conn) {
                    Ok(target) if self.nases.held(&target) => return Ok(Try::Held(true)),
                    Ok(target) => target,
                    Err(_) if gave_up(conn, now) => return Err(GuestError::Io),
                    Err(_) => return Ok(Try::Held(false)),
                };
                over = over.max(self.nases.write(&target, block, version));
                if let (Some(copy), Some(local)) = (&mut qsd.copy, &mut v.local) {
                    match copy.state {
                        JobState::Running | JobState::Ready if machine.full && !local.reserved => {
                            copy.state = JobState::Paused("no space left on device".to_owned());
                            copy.todo.insert(block);
                        }
                        JobState::Running | JobState::Ready => {
                            copy.todo.remove(&block);
                            local.data[block] = version;
                        }
                        _ => {
                            copy.todo.insert(block);
                        }
                    }
                }
            }
            Layer::Local => {
                let local = v.local.as_mut().ok_or(GuestError::Io)?;
                if let Some(fleece) = &mut qsd.fleece {
                    fleece.entry(block).or_insert(local.data[block]);
                }
                over = over.max(std::mem::replace(&mut local.data[block], version));
                if let (Some(mirror), Some(conn)) = (&mut qsd.back_mirror, &qsd.back)
                    && mirror.is(&JobState::Ready)
                {
                    match self.nases.target(node, machine.cut, conn) {
                        Ok(target) => {
                            self.nases.write(&target, block, version);
                            if let Some(fill) = &mut qsd.back_fill {
                                fill.todo.remove(&block);
                            }
                        }
                        Err(why) => mirror.state = JobState::Failed(why),
                    }
                }
            }
        }
        for bitmap in qsd.bitmaps.iter_mut().filter(|b| b.recording) {
            bitmap.dirty.insert(block);
        }
        if over > version {
            self.log.violation(format!("{node} wrote {version} over the newer {over} in block {block}"));
        }
        self.check_readable(volume, "a guest wrote");
        Ok(Try::Done(()))
    }

    /// Tells the guest, unless its answer got lost on the way from the NAS: then the client sends the write again.
    fn acknowledge(
        &mut self,
        node: &HostName,
        volume: VolumeId,
        process: u64,
        block: usize,
        version: u64,
    ) -> Result<Try<()>, GuestError> {
        self.still(node, volume, process)?;
        if self.kernel.device(node, volume).is_some() {
            return self.kernel_acknowledge(node, volume, version);
        }
        let Some(qsd) = self.nodes.get(node).and_then(|n| n.volumes.get(&volume)?.qsd.as_ref()) else {
            return Err(GuestError::Gone);
        };
        if qsd.top == Layer::Remote && qsd.remote.as_ref().is_some_and(|c| c.lost.is_some()) {
            return Ok(Try::Held(false));
        }
        let epoch = qsd.epoch;
        let history = self.history(volume);
        history.ack(block, version);
        if epoch < history.epoch {
            let newer = history.epoch;
            self.log.violation(format!("two writers: {node} of epoch {epoch} was answered while epoch {newer} is exported"));
        }
        Ok(Try::Done(()))
    }

    fn fetch(&mut self, node: &HostName, volume: VolumeId, process: u64, block: usize) -> Result<Try<u64>, GuestError> {
        self.still(node, volume, process)?;
        if self.kernel.device(node, volume).is_some() {
            return self.kernel_read(node, volume, block);
        }
        let now = self.log.now;
        let machine = self.nodes.get(node).ok_or(GuestError::Gone)?;
        let v = machine.volumes.get(&volume).ok_or(GuestError::Gone)?;
        let qsd = v.qsd.as_ref().ok_or(GuestError::Gone)?;
        if qsd.holds() {
            return Ok(Try::Held(true));
        }
        let contents = match qsd.top {
            Layer::Local => v.local.as_ref().map(|l| l.data.clone()).ok_or(GuestError::Io)?,
            Layer::Remote => {
                let conn = qsd.remote.as_ref().ok_or(GuestError::Io)?;
                match self.nases.target(node, machine.cut, conn) {
                    Ok(target) => self.nases.contents(&target),
                    Err(_) if gave_up(conn, now) => return Err(GuestError::Io),
                    Err(_) => return Ok(Try::Held(false)),
                }
            }
        };
        contents.get(block).copied().map(Try::Done).ok_or(GuestError::Io)
    }
}
