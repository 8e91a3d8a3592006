//! A node's verbs on the kernel plane.

use super::{
    Session, Volume, blocks,
    dm::{Cow, Device},
    zvol::Partial,
};
use crate::{
    LocalCopies,
    sim::{
        Done, SimNode, refuse,
        state::{State, pool_report},
    },
};
use img_storage_model::{
    Epoch, Fact, Plane, Size, SnapshotId, VolumeId,
    messages::{Endpoint, IscsiLogin, Writes},
    node::{
        Layer, StepResult,
        kernel::{Disk, LocalZvol, NodeFacts, NodeStep, Session as SessionFacts, Table},
    },
    snapshot::Snapshot,
};
use std::time::Duration;
use tokio::time::sleep;

/// How long a login to a target that is not there takes.
const UNKNOWN_TARGET: Duration = Duration::from_secs(121);
/// How long after a login its disk is there.
const LATE_DISK: Duration = Duration::from_millis(30);

impl SimNode {
    pub(in crate::sim) fn look_kernel(&self, volume: VolumeId, label: &str) -> NodeFacts {
        self.world.with(|s| {
            let cut = s.is_cut(&self.name);
            let v = s.kernel.volume(&self.name, volume);
            let device = v.device.as_ref().map_or(Fact::Known(None), |d| d.fact(v.overlay.as_ref()));
            let local = v.local.as_ref().map(|l| LocalZvol {
                size: l.size(),
                snapshots: l.points.iter().map(|p| p.snapshot).collect(),
                received: l.newest().is_some_and(|p| !p.taken && !p.held),
                held: l.newest().is_some_and(|p| p.held),
                written: l.written(),
                unchanged: (l.written() > 0 && !l.receiving && !v.device.as_ref().is_some_and(|d| d.uses(Layer::Local)))
                    .then(|| l.unchanged()),
                receives: l.receives,
                resume: l.partial.as_ref().filter(|_| !l.receiving).map(Partial::token),
                reserved: l.reserved,
            });
            let overlay = v.overlay.as_ref().map(Cow::fact);
            let session = s.kernel.nodes.get(&self.name).and_then(|n| n.get(&volume)?.session.as_ref());
            let session = session.map(|session| SessionFacts {
                iqn: session.iqn.clone(),
                up: s.kernel.reach(&self.name, cut, session).is_ok(),
                disk: session.disk.as_ref().map(|(serial, size)| Disk { serial: serial.clone(), size: *size }),
            });
            NodeFacts {
                session: Fact::Known(session),
                device,
                local: Fact::Known(local),
                overlay: Fact::Known(overlay),
                dataset: format!("local/{label}"),
            }
        })
    }

    /// The whole length counts, whatever was written: what goes for room then depends on the order alone.
    pub(in crate::sim) fn kernel_copies(&self) -> LocalCopies {
        self.world.with(|s| {
            let room = pool_report("local", Plane::Kernel);
            let volumes = s.kernel.nodes.get(&self.name).into_iter().flatten();
            let used = volumes.filter_map(|(volume, v)| Some((*volume, v.local.as_ref()?.size()))).collect();
            LocalCopies { size: room.size, free: if s.is_full(&self.name) { 0 } else { room.free }, used }
        })
    }

    /// One part of a step on what the node has of the volume.
    async fn kernel<R>(&self, volume: VolumeId, f: impl FnOnce(&mut Volume) -> Done<R>) -> Done<R> {
        self.world.part(|s| f(s.kernel.volume(&self.name, volume))).await
    }

    pub(in crate::sim) async fn kernel_step(&self, volume: VolumeId, step: NodeStep) -> Done<StepResult> {
        match step {
            NodeStep::Login { endpoint, login, size } => self.login(volume, endpoint, login, size).await?,
            NodeStep::Logout | NodeStep::Rescan { .. } => self.session_step(volume, &step).await?,
            NodeStep::CreateDevice { epoch, table, size } => self.create_device(volume, epoch, table, size).await?,
            NodeStep::Swap { table, size } => self.swap(volume, table, size).await?,
            NodeStep::Move { writes, size } => self.move_device(volume, writes, size).await?,
            NodeStep::ResumeDevice => {
                self.kernel(volume, |v| {
                    if let Some(device) = &mut v.device {
                        (device.inactive, device.suspended) = (None, false);
                    }
                    Ok(())
                })
                .await?;
            }
            NodeStep::RemoveDevice { force } => self.remove_device(volume, force).await?,
            NodeStep::FlushRemote => self.flush_remote(volume).await?,
            NodeStep::CreateOverlay { .. } | NodeStep::RemoveOverlay => self.overlay_step(volume, &step).await?,
            NodeStep::TakeSnapshot { snapshot } => {
                self.take_snapshot(volume, snapshot).await?;
                self.zvol_step(volume, NodeStep::HoldSnapshot { snapshot }).await?;
            }
            NodeStep::CloseLocal => {
                self.zvol_step(volume, NodeStep::ReserveLocal).await?;
                self.zvol_step(volume, NodeStep::SetReceives { epoch: None }).await?;
            }
            NodeStep::DestroyWarm { home } => self.destroy_warm(volume, home).await?,
            _ => self.zvol_step(volume, step).await?,
        }
        Ok(StepResult::Done)
    }

    async fn login(&self, volume: VolumeId, endpoint: Endpoint, login: IscsiLogin, size: Size) -> Done {
        self.kernel(volume, |v| match &v.session {
            Some(session) if session.iqn != endpoint.export => refuse("logged in to another target of the volume"),
            _ => Ok(()),
        })
        .await?;
        let new = Session { iqn: endpoint.export, login, disk: None, lost: None };
        let iqn = new.iqn.clone();
        let found = self
            .world
            .part(|s| {
                let cut = s.is_cut(&self.name);
                let there = s.kernel.nases.values().any(|nas| nas.targets.contains_key(&iqn));
                let reached = s.kernel.reach(&self.name, cut, &new).map(drop);
                let v = s.kernel.volume(&self.name, volume);
                match (&v.session, reached) {
                    (Some(_), _) => Ok(true),
                    (None, Ok(())) => {
                        v.session = Some(new);
                        Ok(true)
                    }
                    (None, Err(_)) if cut || !there => Ok(false),
                    (None, Err(why)) => refuse(why),
                }
            })
            .await?;
        if !found {
            sleep(UNKNOWN_TARGET).await;
            return refuse("iscsiadm: login failed (8)");
        }
        sleep(LATE_DISK).await;
        self.world.part(|s| s.see_disk(&self.name, volume)).await?;
        self.kernel(volume, |v| {
            let session = v.session.as_ref();
            let long_enough = session
                .and_then(|s| s.disk.as_ref())
                .is_some_and(|(serial, bytes)| session.is_some_and(|s| s.login.serial == *serial) && *bytes >= size.bytes());
            if long_enough { Ok(()) } else { refuse("the disk is not there, is too short or is another") }
        })
        .await
    }

    async fn session_step(&self, volume: VolumeId, step: &NodeStep) -> Done {
        match step {
            NodeStep::Rescan { .. } => self.world.part(|s| s.see_disk(&self.name, volume)).await,
            _ => {
                self.kernel(volume, |v| {
                    if v.device.as_ref().is_some_and(|d| d.uses(Layer::Remote)) {
                        return refuse("the disk is in use by the guest's device");
                    }
                    v.session = None;
                    Ok(())
                })
                .await
            }
        }
    }

    async fn create_device(&self, volume: VolumeId, epoch: Epoch, table: Table, size: Size) -> Done {
        self.world
            .part(|s| {
                let (process, now) = (s.log.process(), s.log.now);
                let v = s.kernel.volume(&self.name, volume);
                if let Some(device) = &v.device {
                    let same = device.epoch == epoch && device.table == table;
                    return if same { Ok(()) } else { refuse("the device exists") };
                }
                v.can_carry(table, size)?;
                let mut device = Device::new(process, epoch, size.bytes(), now);
                device.go_on(table, v.overlay.as_mut(), now);
                v.device = Some(device);
                s.check_view(&self.name, volume, table, "puts up");
                Ok(())
            })
            .await?;
        self.kernel(volume, |_| Ok(())).await
    }

    /// Suspend, which waits for what is under way and flushes; load; go on.
    async fn swap(&self, volume: VolumeId, table: Table, size: Size) -> Done {
        loop {
            let suspended = self
                .world
                .part(|s| {
                    let there = s.kernel.device(&self.name, volume).map(|d| d.suspended);
                    let Some(suspended) = there else { return refuse("there is no device") };
                    if !suspended && s.flush_device(&self.name, volume).is_err() {
                        return Ok(false);
                    }
                    if let Some(device) = s.kernel.device_mut(&self.name, volume) {
                        device.suspended = true;
                    }
                    Ok(true)
                })
                .await?;
            if suspended {
                break;
            }
            self.world.change().await;
        }
        let loaded = self
            .kernel(volume, |v| {
                let can = v.can_carry(table, size);
                if let Some(device) = &mut v.device {
                    device.inactive = can.is_ok().then_some(table);
                    // On any failure it goes on as it was.
                    device.suspended = can.is_ok();
                }
                can
            })
            .await;
        loaded?;
        self.world
            .part(|s| {
                let now = s.log.now;
                let v = s.kernel.volume(&self.name, volume);
                let Some(device) = &mut v.device else { return refuse("there is no device") };
                device.size = size.bytes();
                device.go_on(table, v.overlay.as_mut(), now);
                s.check_view(&self.name, volume, table, "moves to");
                Ok(())
            })
            .await
    }

    /// Suspend; look how much was written; load, where that is right; go on.
    async fn move_device(&self, volume: VolumeId, writes: Writes, size: Size) -> Done {
        let table = Table::Linear(Layer::Local);
        self.kernel(volume, |v| {
            v.can_carry(table, size)?;
            let Some(device) = &mut v.device else { return refuse("there is no device") };
            device.suspended = true;
            Ok(())
        })
        .await?;
        self.kernel(volume, |v| {
            let Some(device) = &mut v.device else { return refuse("there is no device") };
            device.inactive = (device.writes() == writes).then_some(table);
            Ok(())
        })
        .await?;
        self.world
            .part(|s| {
                let now = s.log.now;
                let v = s.kernel.volume(&self.name, volume);
                let Some(device) = &mut v.device else { return refuse("there is no device") };
                if device.inactive.is_none() {
                    device.suspended = false;
                    return Ok(());
                }
                device.size = size.bytes();
                device.go_on(table, v.overlay.as_mut(), now);
                s.check_view(&self.name, volume, table, "moves to");
                Ok(())
            })
            .await
    }

    async fn remove_device(&self, volume: VolumeId, force: bool) -> Done {
        if force {
            // What waits for a target that is gone is told so; else the device would wait with it.
            self.world
                .part(|s| {
                    let cut = s.is_cut(&self.name);
                    let session = s.kernel.nodes.get(&self.name).and_then(|n| n.get(&volume)?.session.as_ref());
                    if session.is_some_and(|session| s.kernel.reach(&self.name, cut, session).is_err()) {
                        s.kernel.volume(&self.name, volume).session = None;
                    }
                    Ok(())
                })
                .await?;
        }
        // As `dmsetup remove --retry` does. Who is cut off is not waited for: it may write for ever. But what is under way is.
        let busy = |s: &mut State| {
            let written = s.kernel.device(&self.name, volume).is_some_and(|d| d.busy_until > s.log.now && !d.guest);
            if force { s.waits_for_nas(&self.name, volume) } else { written }
        };
        while self.world.with(busy) {
            self.world.change().await;
        }
        self.world
            .part(|s| {
                let now = s.log.now;
                let v = s.kernel.volume(&self.name, volume);
                let Some(device) = &v.device else { return Ok(()) };
                if device.guest && !force {
                    return refuse("in use by guest pid 4242");
                }
                // Whoever closes a zvol waits for it to be synced.
                if let Some(local) = v.local.as_mut().filter(|_| device.uses(Layer::Local)) {
                    local.sync(now);
                }
                v.device = None;
                Ok(())
            })
            .await
    }

    async fn flush_remote(&self, volume: VolumeId) -> Done {
        while self.world.part(|s| Ok(s.flush_device(&self.name, volume).is_err())).await? {
            self.world.change().await;
        }
        Ok(())
    }

    async fn overlay_step(&self, volume: VolumeId, step: &NodeStep) -> Done {
        self.world
            .part(|s| {
                let (full, room) = (s.is_full(&self.name), s.kernel.overlays_hold);
                let v = s.kernel.volume(&self.name, volume);
                match step {
                    NodeStep::CreateOverlay { epoch, size } => match &v.overlay {
                        Some(cow) if cow.epoch == *epoch => Ok(()),
                        Some(_) => refuse("an overlay of another epoch is there"),
                        None if full => refuse("out of space"),
                        None => {
                            v.overlay = Some(Cow::new(*epoch, room.unwrap_or(blocks(*size) + 8)));
                            Ok(())
                        }
                    },
                    _ if v.device.as_ref().is_some_and(Device::uses_overlay) => refuse("the overlay is in use"),
                    _ if v.overlay.as_ref().is_some_and(Cow::has_writes) => refuse("the overlay has writes that were not merged"),
                    _ => {
                        v.overlay = None;
                        s.check_kept(volume, &format!("{} destroyed the overlay", self.name));
                        Ok(())
                    }
                }
            })
            .await
    }

    async fn take_snapshot(&self, volume: VolumeId, snapshot: SnapshotId) -> Done {
        self.world
            .part(|s| {
                let (guid, now) = (s.log.process() + 7000, s.log.now);
                let Some(local) = &mut s.kernel.volume(&self.name, volume).local else {
                    return refuse("there is no local copy");
                };
                if local.point(snapshot).is_some() {
                    return Ok(());
                }
                local.take(Snapshot { id: snapshot, guid }, now);
                let data = local.data.clone();
                s.check_point(volume, &data, &format!("{} takes a snapshot", self.name));
                Ok(())
            })
            .await
    }

    /// The oldest snapshot first, the zvol last.
    async fn destroy_warm(&self, volume: VolumeId, home: Snapshot) -> Done {
        let mut left = true;
        while left {
            left = self
                .kernel(volume, |v| {
                    let used = v.device.as_ref().is_some_and(|d| d.uses(Layer::Local));
                    let Some(local) = &mut v.local else { return Ok(false) };
                    if used || local.receiving {
                        return refuse("the dataset is busy");
                    }
                    if local.newest().map(|p| p.snapshot) != Some(home) || local.modified() {
                        return refuse("it is not what it was");
                    }
                    local.points.remove(0);
                    Ok(!local.points.is_empty())
                })
                .await?;
        }
        self.zvol_step(volume, NodeStep::DestroyLocal).await
    }

    async fn zvol_step(&self, volume: VolumeId, step: NodeStep) -> Done {
        self.world
            .part(|s| {
                let (full, now) = (s.is_full(&self.name), s.log.now);
                let sent = s.kernel.nases.values().find_map(|nas| nas.streams.get(&volume)).map(|stream| stream.to.id);
                let v = s.kernel.volume(&self.name, volume);
                let used = v.device.as_ref().is_some_and(|d| d.uses(Layer::Local));
                let Some(local) = &mut v.local else {
                    return if step == NodeStep::DestroyLocal { Ok(()) } else { refuse("there is no local copy") };
                };
                match step {
                    NodeStep::SetReceives { epoch } => local.receives = epoch,
                    NodeStep::ReserveLocal if full && !local.reserved => {
                        // ZFS then sets the size anew that the zvol has, which is a write.
                        local.touched = true;
                        return refuse("out of space");
                    }
                    NodeStep::ReserveLocal => local.reserved = true,
                    NodeStep::UnreserveLocal => local.reserved = false,
                    NodeStep::GrowLocal { size } => local.grow(blocks(size)),
                    NodeStep::HoldSnapshot { snapshot } => {
                        for point in local.points.iter_mut().filter(|p| p.snapshot.id == snapshot) {
                            point.held = true;
                        }
                    }
                    NodeStep::DropSnapshot { snapshot } if sent == Some(snapshot) => return refuse("the snapshot is being sent"),
                    NodeStep::DropSnapshot { snapshot } => local.points.retain(|p| p.snapshot.id != snapshot),
                    _ if used || local.receiving => return refuse("the dataset is busy"),
                    NodeStep::RollBackLocal { to } => {
                        let lost = local.data.clone();
                        if !local.roll_back(to, now) {
                            return refuse("there is no such snapshot");
                        }
                        s.check_released(&self.name, volume, &lost);
                    }
                    NodeStep::SettleLocal if local.unchanged() => local.noted = false,
                    NodeStep::SettleLocal => return refuse("something was written to it"),
                    NodeStep::DestroyLocal => {
                        let lost = v.local.take().map(|l| l.data).unwrap_or_default();
                        s.check_released(&self.name, volume, &lost);
                    }
                    _ => return refuse("not a step of the local copy"),
                }
                s.check_kept(volume, &format!("{} changed its local copy", self.name));
                Ok(())
            })
            .await
    }
}

impl Volume {
    /// Whether what a table needs is there.
    fn can_carry(&self, table: Table, size: Size) -> Done {
        let (Table::Linear(layer) | Table::Overlay(layer) | Table::Merge(layer)) = table;
        let length = match layer {
            Layer::Remote => self.session.as_ref().and_then(|s| s.disk.as_ref()).map(|(_, bytes)| *bytes),
            Layer::Local => self.local.as_ref().filter(|l| !l.points.is_empty()).map(super::zvol::Zvol::size),
        };
        match length {
            None => refuse("what it is to lie on is not there"),
            Some(bytes) if bytes < size.bytes() => refuse("what it is to lie on is too short"),
            Some(_) if !matches!(table, Table::Linear(_)) && self.overlay.is_none() => refuse("there is no overlay"),
            Some(_) => Ok(()),
        }
    }
}

impl State {
    /// The kernel looks at a session's disk, when its target answers.
    fn see_disk(&mut self, node: &img_storage_model::HostName, volume: VolumeId) -> Done {
        let cut = self.is_cut(node);
        let session = self.kernel.nodes.get(node).and_then(|n| n.get(&volume)?.session.as_ref());
        let Some(session) = session else { return refuse("there is no session") };
        let (nas, serial, place) = match self.kernel.reach(node, cut, session) {
            Ok((nas, target)) => {
                let serial = target.login.as_ref().map(|l| l.serial.clone()).unwrap_or_default();
                (nas.clone(), serial, target.place.clone())
            }
            Err(why) => return refuse(why),
        };
        let length = self.kernel_nas(&nas).zvols.get(&place).map_or(0, super::zvol::Zvol::size);
        if let Some(session) = &mut self.kernel.volume(node, volume).session {
            session.disk = Some((serial, length));
        }
        Ok(())
    }
}
