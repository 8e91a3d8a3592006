//! Streams of snapshots between a NAS and a node, block by block as time passes.
//!
//! A stream belongs to the NAS daemon that runs it and ends with it, or when a host or the network goes; what had arrived stays
//! with its token. What was in flight when its daemon was killed may still arrive.

use super::zvol::{Partial, Zvol, differing};
use crate::{
    VolumeRef,
    sim::{
        Done, SimNas,
        graph::SimJob,
        refuse,
        state::{BLOCK_BYTES, State},
    },
};
use img_storage_model::{
    HostName, SnapshotId, VolumeId,
    attribute::Speed,
    messages::Peer,
    nas::kernel::{NasStep, Stream, Way},
    node::{JobState, StepResult},
    snapshot::Snapshot,
};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// How long a connection that leads nowhere is tried.
const NO_ROUTE: Duration = Duration::from_secs(3);
/// So many blocks are on the way at once.
const IN_FLIGHT: usize = 2;

/// A stream that a daemon runs, or one that nobody has any more.
pub struct SimStream {
    pub way: Way,
    pub node: HostName,
    pub to: Snapshot,
    pub job: SimJob,
    data: Vec<u64>,
    began: Instant,
    ended: Option<Instant>,
}

impl SimStream {
    pub fn fact(&self) -> Stream {
        Stream { way: self.way, to: self.to.id, job: self.job.fact() }
    }

    /// Its daemon is gone, or ends it: what is in flight may still arrive.
    pub fn is_nearly_over(&self) -> bool {
        self.job.is(&JobState::Running) && self.job.todo.len() <= IN_FLIGHT
    }
}

/// Makes a zvol ready to take a stream; what is still to come.
fn begin_receive(zvol: &mut Zvol, from: Option<Snapshot>, to: Snapshot, data: &[u64], resume: Option<&str>) -> Done {
    if zvol.receiving {
        return refuse("the dataset is busy: another receive runs");
    }
    let resumes = zvol.partial.as_ref().is_some_and(|p| p.to == to && Some(p.token().as_str()) == resume);
    if !resumes {
        // What is left of another stream is aborted first.
        zvol.partial = None;
        if zvol.newest().map(|p| p.snapshot) != from {
            return refuse("most recent snapshot of the destination does not match the incremental source");
        }
        if from.is_some() && zvol.modified() {
            return refuse("destination has been modified since most recent snapshot");
        }
        let base = zvol.newest().map(|p| p.data.clone()).unwrap_or_default();
        let todo = differing(&base, data).collect();
        let mut received = base;
        received.resize(data.len(), 0);
        zvol.partial = Some(Partial { from, to, todo, data: received });
    }
    zvol.receiving = true;
    Ok(())
}

impl State {
    fn begin_send(
        &mut self,
        nas: &HostName,
        volume: &VolumeRef,
        peer: &Peer,
        (from, to): (Option<SnapshotId>, SnapshotId),
        resume: Option<&str>,
    ) -> Done<(Snapshot, Vec<u64>)> {
        let place = (volume.pool.clone(), volume.name.clone());
        let zvol = self.kernel_nas(nas).zvols.get(&place).filter(|z| z.mark == volume.id);
        let Some(zvol) = zvol else { return refuse("the zvol is not there") };
        let Some(point) = zvol.point(to).cloned() else { return refuse("the snapshot to send is not there") };
        let from = match from.map(|id| zvol.point(id).map(|p| p.snapshot)) {
            Some(None) => return refuse("the snapshot to send from is not there"),
            from => from.flatten(),
        };
        let (now, full) = (self.log.now, self.is_full(&peer.host));
        let v = self.kernel.volume(&peer.host, volume.id);
        match &mut v.local {
            _ if full => return refuse("out of space"),
            None if from.is_some() => return refuse("destination does not exist"),
            None => {
                let mut local = Zvol::new(volume.id, point.data.len(), now);
                local.receives = Some(peer.epoch);
                v.local = Some(local);
            }
            Some(local) if local.receives != Some(peer.epoch) => {
                return refuse(format!("{} does not take streams of epoch {}", peer.host, peer.epoch));
            }
            Some(_) => {}
        }
        let Some(local) = &mut v.local else { return refuse("destination does not exist") };
        begin_receive(local, from, point.snapshot, &point.data, resume)?;
        Ok((point.snapshot, point.data))
    }

    fn begin_fetch(
        &mut self,
        nas: &HostName,
        volume: &VolumeRef,
        peer: &Peer,
        (from, to): (SnapshotId, SnapshotId),
        resume: Option<&str>,
    ) -> Done<(Snapshot, Vec<u64>)> {
        let local = self.kernel.volume(&peer.host, volume.id).local.as_ref();
        let Some(local) = local else { return refuse("the local copy is not there") };
        let (Some(from), Some(to)) = (local.point(from).map(|p| p.snapshot), local.point(to).cloned()) else {
            return refuse("the snapshots to send are not there");
        };
        let place = (volume.pool.clone(), volume.name.clone());
        let Some(zvol) = self.kernel_nas(nas).zvols.get_mut(&place).filter(|z| z.mark == volume.id) else {
            return refuse("the zvol is not there");
        };
        begin_receive(zvol, Some(from), to.snapshot, &to.data, resume)?;
        Ok((to.snapshot, to.data))
    }

    fn begin_stream(&mut self, nas: &HostName, volume: &VolumeRef, step: &NasStep) -> Done {
        if let Some(running) = self.kernel_nas(nas).streams.get(&volume.id) {
            let same = matches!(step, NasStep::Send { to, .. } | NasStep::Receive { to, .. } if *to == running.to.id);
            return if same { Ok(()) } else { refuse("another stream runs") };
        }
        let (way, peer, speed, (to, data)) = match step {
            NasStep::Send { peer, from, to, resume, speed } => {
                (Way::ToNode, peer, *speed, self.begin_send(nas, volume, peer, (*from, *to), resume.as_deref())?)
            }
            NasStep::Receive { peer, from, to, resume, speed } => {
                (Way::FromNode, peer, *speed, self.begin_fetch(nas, volume, peer, (*from, *to), resume.as_deref())?)
            }
            _ => return refuse("not a step that begins a stream"),
        };
        let (now, node) = (self.log.now, peer.host.clone());
        let todo = self.receiver(nas, &node, volume.id, way).and_then(|z| z.partial.as_ref().map(|p| p.todo.clone()));
        let job = SimJob::new(todo.unwrap_or_default(), now, speed);
        let stream = SimStream { way, node, to, job, data, began: now, ended: None };
        self.kernel_nas(nas).streams.insert(volume.id, stream);
        Ok(())
    }

    fn receiver(&mut self, nas: &HostName, node: &HostName, volume: VolumeId, way: Way) -> Option<&mut Zvol> {
        match way {
            Way::ToNode => self.kernel.nodes.get_mut(node)?.get_mut(&volume)?.local.as_mut(),
            Way::FromNode => self.kernel.nases.get_mut(nas)?.zvols.values_mut().find(|z| z.mark == volume),
        }
    }

    /// Every stream goes on.
    pub(in crate::sim) fn advance_streams(&mut self) {
        for nas in self.kernel.nases.keys().cloned().collect::<Vec<_>>() {
            let streams = std::mem::take(&mut self.kernel_nas(&nas).streams);
            let orphans = std::mem::take(&mut self.kernel_nas(&nas).orphans);
            for (volume, mut stream) in streams {
                self.go_on(&nas, volume, &mut stream);
                self.kernel_nas(&nas).streams.insert(volume, stream);
            }
            for (volume, mut stream) in orphans {
                self.go_on(&nas, volume, &mut stream);
                if stream.job.is(&JobState::Running) {
                    self.kernel_nas(&nas).orphans.push((volume, stream));
                } else {
                    self.log.say(format!("a stream that nobody has any more ended: {:?}", stream.job.state));
                }
            }
        }
    }

    fn go_on(&mut self, nas: &HostName, volume: VolumeId, stream: &mut SimStream) {
        let now = self.log.now;
        while stream.job.is(&JobState::Running) && stream.job.next <= now {
            stream.job.next += stream.job.pace();
            let full = self.is_full(&stream.node) && stream.way == Way::ToNode;
            let cut = self.is_cut(&stream.node);
            let Some(zvol) = self.receiver(nas, &stream.node, volume, stream.way).filter(|z| z.receiving) else {
                stream.job.state = JobState::Failed("the other end is gone".to_owned());
                return;
            };
            if cut || (full && !zvol.reserved) {
                zvol.receiving = false;
                stream.job.state = JobState::Failed(if cut { "connection lost" } else { "out of space" }.to_owned());
                return;
            }
            let block = stream.job.todo.pop_first();
            if let Some((block, partial)) = block.zip(zvol.partial.as_mut()) {
                partial.todo.remove(&block);
                partial.data[block] = stream.data[block];
                self.kernel.streamed += 1;
                continue;
            }
            stream.ended = Some(now);
            stream.job.state = match zvol.received(now) {
                Ok(()) => JobState::Done,
                Err(why) => JobState::Failed(why),
            };
            if stream.way == Way::FromNode && stream.job.is(&JobState::Done) {
                let data = stream.data.clone();
                self.check_point(volume, &data, &format!("{nas} has received a snapshot"));
                self.check_kept(volume, &format!("{nas} has received a snapshot"));
            }
        }
    }

    /// A stream loses its daemon, or is ended by it.
    pub(super) fn drop_stream(&mut self, nas: &HostName, volume: VolumeId) -> Option<SimStream> {
        let stream = self.kernel_nas(nas).streams.remove(&volume)?;
        if stream.is_nearly_over() {
            self.kernel_nas(nas).orphans.push((volume, stream));
            return None;
        }
        if stream.job.is(&JobState::Running)
            && let Some(zvol) = self.receiver(nas, &stream.node, volume, stream.way)
        {
            zvol.receiving = false;
        }
        Some(stream)
    }
}

impl SimNas {
    pub(super) async fn stream_step(&self, volume: &VolumeRef, step: NasStep) -> Done<StepResult> {
        match &step {
            NasStep::Send { peer, .. } | NasStep::Receive { peer, .. } => {
                if self.world.part(|s| Ok(s.is_cut(&peer.host))).await? {
                    sleep(NO_ROUTE).await;
                    return refuse(format!("{}: no route to host", peer.address));
                }
                self.world.part(|s| s.begin_stream(&self.name, volume, &step)).await?;
                Ok(StepResult::Done)
            }
            NasStep::SetSpeed { speed } => self.set_speed(volume, *speed).await,
            _ => {
                self.world
                    .part(|s| {
                        let ended = s.drop_stream(&self.name, volume.id).filter(|stream| stream.job.is(&JobState::Done));
                        Ok(ended.map_or(StepResult::Done, |stream| {
                            let took = stream.ended.unwrap_or(stream.began).duration_since(stream.began);
                            let took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
                            StepResult::Streamed { moved: stream.job.total as u64 * BLOCK_BYTES, took_ms }
                        }))
                    })
                    .await
            }
        }
    }

    async fn set_speed(&self, volume: &VolumeRef, speed: Speed) -> Done<StepResult> {
        self.world
            .part(|s| {
                if let Some(stream) = s.kernel_nas(&self.name).streams.get_mut(&volume.id) {
                    stream.job.speed = speed;
                }
                Ok(StepResult::Done)
            })
            .await
    }
}
