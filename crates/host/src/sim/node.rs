//! A node's verbs: the process, the guest's device and the copy. The others are in [`super::node_push`] and [`super::node_back`].

use super::{
    Done, World,
    graph::{Conn, LocalCopy, NodeVolume, Qsd, SimBitmap, SimJob, every},
    nas_state::Target,
    refuse,
    state::{State, blocks, pool_report},
};
use crate::{HostError, LocalCopies, NodeHost, Work};
use img_storage_model::{
    Epoch, Fact, HostName, Plane, VolumeId,
    messages::{DeviceKind, Endpoint, Holder, PoolReport},
    nas::NasLayer,
    node::{
        self, JobState, Layer, StepResult,
        qemu::{Moving, NodeFacts, NodeStep},
    },
};
use std::collections::BTreeSet;
use tokio::time::Instant;

/// A node of the world.
#[derive(Clone)]
pub struct SimNode {
    pub(super) world: World,
    pub(super) name: HostName,
}

impl SimNode {
    /// Its iSCSI name.
    #[must_use]
    pub fn initiator(name: &HostName) -> String {
        super::kernel::initiator(name)
    }

    pub(super) fn look(&self, volume: VolumeId) -> NodeFacts {
        self.world.with(|s| s.node(&self.name, volume).facts())
    }
}

impl NodeHost for SimNode {
    fn observe(&self, volume: node::NodeVolume, carried: Option<node::kernel::Zvols>) -> Work<'_, node::Facts> {
        Box::pin(async move {
            match volume.plane {
                Plane::Qemu => node::Facts::Qemu(self.look(volume.id)),
                Plane::Kernel => {
                    let mut facts = self.look_kernel(volume.id, &volume.label);
                    if let Some(zvols) = carried {
                        (facts.local, facts.overlay) = (Fact::Known(zvols.local), Fact::Known(zvols.overlay));
                    }
                    node::Facts::Kernel(facts)
                }
            }
        })
    }

    fn run(&self, volume: node::NodeVolume, step: node::Step) -> Work<'_, Result<StepResult, HostError>> {
        Box::pin(async move {
            match step {
                node::Step::Qemu(step) => self.step(volume.id, step).await,
                node::Step::Kernel(step) => self.kernel_step(volume.id, step).await,
            }
        })
    }

    fn device(&self, volume: &node::NodeVolume, kind: DeviceKind) -> String {
        let volume = volume.id;
        match kind {
            DeviceKind::Nbd => format!("nbd+unix:///{volume}?socket=sim"),
            DeviceKind::VhostUserBlk => format!("sim-{volume}"),
            DeviceKind::Block => format!("/dev/mapper/{volume}"),
        }
    }

    fn users(&self, volume: node::NodeVolume) -> Work<'_, Result<Vec<Holder>, HostError>> {
        Box::pin(async move {
            let connected = self.world.with(|s| s.connected(&self.name, volume.id).is_ok());
            let guest = Holder { pid: Some(4242), command: Some("guest".to_owned()) };
            Ok(if connected { vec![guest] } else { Vec::new() })
        })
    }

    fn pools(&self) -> Work<'_, Vec<PoolReport>> {
        Box::pin(async { vec![pool_report("local", Plane::Qemu)] })
    }

    fn copies(&self) -> Work<'_, Result<LocalCopies, HostError>> {
        Box::pin(async { Ok(self.kernel_copies()) })
    }
}

impl NodeVolume {
    pub(super) fn process(&mut self) -> Done<&mut Qsd> {
        self.qsd.as_mut().ok_or_else(|| HostError("no storage daemon runs for this volume".to_owned()))
    }

    fn refuse_used(&self, force: bool) -> Done {
        match &self.qsd {
            Some(qsd) if qsd.guest == Some(true) && !force => refuse("in use by guest pid 4242"),
            _ => Ok(()),
        }
    }
}

impl State {
    /// What a connection reads, when it leads somewhere.
    pub(super) fn behind(&self, node: &HostName, endpoint: &Endpoint) -> Done<Vec<u64>> {
        let cut = self.nodes.get(node).is_some_and(|n| n.cut);
        match self.nases.target(node, cut, &Conn::to(endpoint)) {
            Ok(target) => Ok(self.nases.contents(&target)),
            Err(why) => refuse(why),
        }
    }

    /// The guest's device lies on this connection from now on.
    pub(super) fn move_onto(&mut self, node: &HostName, volume: VolumeId, endpoint: &Endpoint, doing: &str) {
        let cut = self.nodes.get(node).is_some_and(|n| n.cut);
        match self.nases.target(node, cut, &Conn::to(endpoint)) {
            Ok(Target::Export(_, _, NasLayer::Disk)) => {}
            // The pivot back happens also while the overlay's export is away for a moment.
            _ => self.nases.enliven(volume),
        }
        let contents = self.nases.readable(volume).unwrap_or_default();
        self.check_complete(volume, &contents, &format!("{node} {doing}"));
    }

    /// The guest's device lies on the local copy from now on.
    pub(super) fn move_local(&mut self, node: &HostName, volume: VolumeId, doing: &str) {
        if let Some(local) = &self.node(node, volume).local {
            let contents = local.data.clone();
            self.check_complete(volume, &contents, &format!("{node} {doing}"));
        }
    }
}

impl SimNode {
    /// One part of a step on what the node has of the volume.
    pub(super) async fn on<R>(&self, volume: VolumeId, f: impl FnOnce(&mut NodeVolume) -> Done<R>) -> Done<R> {
        self.world.part(|s| f(s.node(&self.name, volume))).await
    }

    async fn step(&self, volume: VolumeId, step: NodeStep) -> Result<StepResult, HostError> {
        match step {
            NodeStep::Start { epoch, over, endpoint } => self.start(volume, epoch, over, endpoint).await?,
            NodeStep::Stop { force } => self.stop(volume, force).await?,
            NodeStep::AddGuest { .. } => self.add_guest(volume).await?,
            NodeStep::RemoveGuest { force } => {
                self.on(volume, |v| {
                    v.refuse_used(force)?;
                    if let Some(qsd) = &mut v.qsd {
                        qsd.guest = None;
                    }
                    Ok(())
                })
                .await?;
            }
            NodeStep::Reattach { endpoint } => self.reattach(volume, endpoint).await?,
            NodeStep::CreateLocal { .. } | NodeStep::RemoveLocal | NodeStep::OpenLocal | NodeStep::ReserveLocal => {
                self.local_step(volume, step).await?;
            }
            NodeStep::StartCopy { .. }
            | NodeStep::ResumeCopy
            | NodeStep::CancelCopy
            | NodeStep::CompleteCopy
            | NodeStep::FinalizeCopy
            | NodeStep::DetachRemote => self.copy_step(volume, step).await?,
            NodeStep::SetSpeed { job, speed } => {
                self.on(volume, |v| {
                    let qsd = v.process()?;
                    let job = match job {
                        Moving::Copy => qsd.copy.as_mut(),
                        Moving::Push => qsd.push.as_mut().map(|(_, job)| job),
                        Moving::Back => qsd.back_fill.as_mut(),
                    };
                    if let Some(job) = job {
                        job.speed = speed;
                    }
                    Ok(())
                })
                .await?;
            }
            NodeStep::AddBitmap { since } => {
                self.on(volume, |v| {
                    let qsd = v.process()?;
                    if qsd.bitmaps.iter().all(|b| b.since != since) {
                        qsd.bitmaps.push(SimBitmap { since, recording: true, dirty: BTreeSet::new() });
                    }
                    Ok(())
                })
                .await?;
            }
            NodeStep::OpenBack { .. }
            | NodeStep::StartBack { .. }
            | NodeStep::CompleteBack
            | NodeStep::FinalizeBack
            | NodeStep::CancelBack => self.back_step(volume, step).await?,
            _ => return self.push_step(volume, step).await,
        }
        Ok(StepResult::Done)
    }

    async fn start(&self, volume: VolumeId, epoch: Epoch, over: Layer, endpoint: Option<Endpoint>) -> Done {
        self.world
            .part(|s| {
                if let Some(qsd) = &s.node(&self.name, volume).qsd {
                    let same = qsd.epoch == epoch && qsd.top == over;
                    return if same { Ok(()) } else { refuse("another storage daemon runs for this volume") };
                }
                let process = s.log.process();
                let mut qsd = Qsd::new(process, epoch, over);
                match over {
                    Layer::Remote => {
                        let Some(endpoint) = endpoint else { return refuse("no endpoint given") };
                        s.behind(&self.name, &endpoint)?;
                        s.move_onto(&self.name, volume, &endpoint, "starts over the NAS");
                        qsd.remote = Some(Conn::to(&endpoint));
                    }
                    Layer::Local if s.node(&self.name, volume).local.is_none() => return refuse("there is no local copy"),
                    Layer::Local => s.move_local(&self.name, volume, "starts over the local copy"),
                }
                s.node(&self.name, volume).qsd = Some(qsd);
                Ok(())
            })
            .await
    }

    async fn stop(&self, volume: VolumeId, force: bool) -> Done {
        self.on(volume, |v| {
            v.refuse_used(force)?;
            v.qsd = None;
            Ok(())
        })
        .await
    }

    async fn add_guest(&self, volume: VolumeId) -> Done {
        self.on(volume, |v| {
            v.process()?.guest.get_or_insert(false);
            Ok(())
        })
        .await
    }

    async fn reattach(&self, volume: VolumeId, endpoint: Endpoint) -> Done {
        self.world
            .part(|s| {
                let qsd = s.node(&self.name, volume).process()?;
                if qsd.top != Layer::Remote || qsd.copy.is_some() {
                    return refuse("the device does not lie on the NAS alone");
                }
                // What the guest wrote last is flushed by the old connection, or the device stays where it is.
                let old = qsd.remote.as_ref().map(|c| c.endpoint.clone());
                if let Some(old) = old {
                    s.behind(&self.name, &old)?;
                }
                s.behind(&self.name, &endpoint)?;
                s.move_onto(&self.name, volume, &endpoint, "moves to another export");
                s.node(&self.name, volume).process()?.remote = Some(Conn::to(&endpoint));
                Ok(())
            })
            .await
    }

    async fn local_step(&self, volume: VolumeId, step: NodeStep) -> Done {
        match step {
            NodeStep::CreateLocal { epoch, size } => {
                self.world
                    .part(|s| {
                        let full = s.nodes.get(&self.name).is_some_and(|n| n.full);
                        let v = s.node(&self.name, volume);
                        match &v.local {
                            _ if v.foreign => refuse("a file without our mark is in the way"),
                            Some(l) if l.epoch == epoch && l.size == size.bytes() => Ok(()),
                            Some(_) => refuse("a file of another mark is in the way"),
                            None if full => refuse("the pool lacks the room"),
                            None => {
                                let data = vec![0; blocks(size.bytes())];
                                v.local = Some(LocalCopy { epoch, size: size.bytes(), reserved: false, data });
                                Ok(())
                            }
                        }
                    })
                    .await
            }
            NodeStep::RemoveLocal => {
                self.world
                    .part(|s| {
                        let v = s.node(&self.name, volume);
                        if v.foreign || v.qsd.as_ref().is_some_and(|q| q.local) {
                            return refuse("the local copy is in use or not ours");
                        }
                        let Some(local) = v.local.take() else { return Ok(()) };
                        s.check_released(&self.name, volume, &local.data);
                        s.check_kept(volume, &format!("{} removed its local copy", self.name));
                        Ok(())
                    })
                    .await
            }
            NodeStep::OpenLocal => {
                self.on(volume, |v| {
                    if v.local.is_none() {
                        return refuse("there is no local copy");
                    }
                    v.process()?.local = true;
                    Ok(())
                })
                .await
            }
            _ => {
                self.world
                    .part(|s| {
                        let full = s.nodes.get(&self.name).is_some_and(|n| n.full);
                        match &mut s.node(&self.name, volume).local {
                            Some(local) if full && !local.reserved => refuse("the pool lacks the room"),
                            Some(local) => {
                                local.reserved = true;
                                Ok(())
                            }
                            None => refuse("there is no local copy"),
                        }
                    })
                    .await
            }
        }
    }

    async fn copy_step(&self, volume: VolumeId, step: NodeStep) -> Done {
        match step {
            NodeStep::StartCopy { speed } => {
                self.on(volume, |v| {
                    let size = v.local.as_ref().map_or(0, |l| l.size);
                    let qsd = v.process()?;
                    if qsd.copy.is_some() {
                        return Ok(());
                    }
                    if qsd.top != Layer::Remote || !qsd.local {
                        return refuse("the local copy is not open, or already in use");
                    }
                    qsd.copy = Some(SimJob::new(every(size), Instant::now(), speed));
                    Ok(())
                })
                .await
            }
            NodeStep::ResumeCopy => {
                self.on(volume, |v| {
                    let Some(copy) = &mut v.process()?.copy else { return refuse("there is no copy") };
                    if matches!(copy.state, JobState::Paused(_)) {
                        copy.state = JobState::Running;
                        copy.next = Instant::now();
                    }
                    Ok(())
                })
                .await
            }
            NodeStep::CancelCopy => {
                self.on(volume, |v| {
                    if let Some(copy) = &mut v.process()?.copy {
                        if copy.is(&JobState::Done) {
                            return refuse("the copy is over and well");
                        }
                        copy.state = JobState::Failed("cancelled".to_owned());
                    }
                    Ok(())
                })
                .await?;
                self.on(volume, |v| {
                    v.process()?.copy = None;
                    Ok(())
                })
                .await?;
                self.on(volume, |v| {
                    v.process()?.local = false;
                    Ok(())
                })
                .await?;
                self.on(volume, |v| {
                    v.process()?.bitmaps.clear();
                    Ok(())
                })
                .await
            }
            NodeStep::CompleteCopy => self.complete_copy(volume).await,
            NodeStep::FinalizeCopy => {
                self.world
                    .part(|s| {
                        let qsd = s.node(&self.name, volume).process()?;
                        let Some(copy) = &mut qsd.copy else { return Ok(()) };
                        match copy.state {
                            JobState::Done => return Ok(()),
                            JobState::Pending => copy.state = JobState::Done,
                            _ => return refuse("the copy is not pending"),
                        }
                        qsd.top = Layer::Local;
                        s.move_local(&self.name, volume, "pivots to the local copy");
                        Ok(())
                    })
                    .await?;
                self.on(volume, |v| {
                    v.process()?.copy = None;
                    Ok(())
                })
                .await
            }
            _ => {
                self.on(volume, |v| {
                    let qsd = v.process()?;
                    if qsd.top == Layer::Remote {
                        return refuse("the guest works on it");
                    }
                    qsd.remote = None;
                    Ok(())
                })
                .await
            }
        }
    }

    async fn complete_copy(&self, volume: VolumeId) -> Done {
        self.world
            .part(|s| {
                let cut = s.nodes.get(&self.name).is_some_and(|n| n.cut);
                let Some(v) = s.nodes.get_mut(&self.name).and_then(|n| n.volumes.get_mut(&volume)) else {
                    return refuse("no storage daemon runs for this volume");
                };
                let qsd = v.process()?;
                let (Some(copy), Some(conn)) = (&mut qsd.copy, &qsd.remote) else { return refuse("there is no copy") };
                match copy.state {
                    JobState::Pending | JobState::Done => return Ok(()),
                    JobState::Ready => {}
                    _ => return refuse("the copy is not ready"),
                }
                // It cannot drain what waits for a NAS that is away.
                match s.nases.target(&self.name, cut, conn) {
                    Ok(target) if !s.nases.held(&target) => copy.state = JobState::Pending,
                    Ok(_) => return refuse("the NAS holds requests"),
                    Err(why) => return refuse(why),
                }
                Ok(())
            })
            .await
    }
}
