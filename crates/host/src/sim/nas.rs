//! A NAS's verbs.

use super::{
    Done, World,
    graph::SimJob,
    nas_state::{Dir, ExportProcess, Incoming, NasMachine},
    refuse,
    state::{State, blocks, digest, pool_report},
};
use crate::{HostError, NasHost, VolumeRef, Work};
use img_storage_model::{
    Extents, Fact, HostName, Plane,
    messages::PoolReport,
    nas::{
        self, NasLayer,
        qemu::{BACK, DiskFile, ExportFacts, IncomingFacts, NasFacts, NasStep},
    },
    node::StepResult,
};
use std::collections::BTreeMap;

/// A NAS of the world.
#[derive(Clone)]
pub struct SimNas {
    pub(super) world: World,
    pub(super) name: HostName,
}

impl SimNas {
    pub(super) fn look(&self, volume: &VolumeRef) -> NasFacts {
        self.world.with(|s| s.machine(&self.name).facts(volume))
    }
}

impl NasHost for SimNas {
    fn observe(&self, volume: VolumeRef, carried: Option<nas::kernel::Zvol>) -> Work<'_, nas::Facts> {
        Box::pin(async move {
            match volume.plane {
                Plane::Qemu => nas::Facts::Qemu(self.look(&volume)),
                Plane::Kernel => {
                    let mut facts = self.look_kernel(&volume);
                    if let Some(zvol) = carried {
                        facts.zvol = Fact::Known(Some(zvol));
                    }
                    nas::Facts::Kernel(facts)
                }
            }
        })
    }

    fn run(&self, volume: VolumeRef, step: nas::Step) -> Work<'_, Result<StepResult, HostError>> {
        Box::pin(async move {
            match step {
                nas::Step::Qemu(step) => self.step(&volume, step).await,
                nas::Step::Kernel(step) => self.kernel_step(&volume, step).await,
            }
        })
    }

    fn pools(&self) -> Work<'_, Vec<PoolReport>> {
        Box::pin(async move {
            self.world.with(|s| {
                let zfs: Vec<_> = s.kernel_nas(&self.name).pools.iter().map(|p| pool_report(p.as_str(), Plane::Kernel)).collect();
                let files = s.machine(&self.name).pools.iter().map(|p| pool_report(p.as_str(), Plane::Qemu));
                files.chain(zfs).collect()
            })
        })
    }

    fn free_port(&self) -> Result<u16, HostError> {
        self.world.with(|s| {
            let machine = s.machine(&self.name);
            loop {
                machine.last_port = if machine.last_port >= 60_000 { 10_800 } else { machine.last_port + 1 };
                if machine.listener(machine.last_port).is_none() {
                    return Ok(machine.last_port);
                }
            }
        })
    }
}

impl State {
    pub(super) fn machine(&mut self, nas: &HostName) -> &mut NasMachine {
        self.nases.0.entry(nas.clone()).or_insert_with(|| NasMachine {
            pools: Vec::new(),
            dirs: BTreeMap::new(),
            last_port: 10_800,
        })
    }
}

impl NasMachine {
    fn facts(&self, volume: &VolumeRef) -> NasFacts {
        let place = (volume.pool.clone(), volume.name.clone());
        let none = Dir::default();
        // What is another's, or nobody's, is not looked at further.
        let dir = self.dirs.get(&place).filter(|d| d.mark == Some(volume.id)).unwrap_or(&none);
        let disk = dir.disk.as_ref().map(|d| {
            let bytes = |blocks: usize| blocks as u64 * super::state::BLOCK_BYTES;
            DiskFile { size: bytes(d.len()), allocated: bytes(d.iter().filter(|v| **v > 0).count()) }
        });
        let export = dir.export.as_ref().map(|e| ExportFacts {
            epoch: e.epoch,
            peer: e.peer.clone(),
            port: e.port,
            names: e.names.keys().cloned().collect(),
            over: e
                .names
                .iter()
                .find(|(name, _)| name.ends_with(&format!(".{BACK}")))
                .or(e.names.iter().next())
                .map_or(NasLayer::Disk, |(_, layer)| *layer),
            commit: e.commit.as_ref().map(SimJob::fact),
        });
        let incoming = dir.incoming.as_ref().map(|i| IncomingFacts { push: i.push, serving: i.server.is_some() });
        NasFacts {
            disk: Fact::Known(disk),
            export: Fact::Known(export),
            incoming: Fact::Known(incoming),
            pending: Fact::Known(dir.pending.as_ref().map(|(push, _)| *push)),
            overlay: Fact::Known(dir.overlay.as_ref().map(|o| o.epoch)),
            reader: Fact::Known(dir.reader.is_some()),
        }
    }

    /// The volume's directory, if it is ours.
    pub(super) fn dir(&mut self, volume: &VolumeRef) -> Done<&mut Dir> {
        match self.dirs.get_mut(&(volume.pool.clone(), volume.name.clone())) {
            Some(dir) if dir.mark == Some(volume.id) => Ok(dir),
            Some(_) => refuse(format!("{}/{} has another mark", volume.pool, volume.name)),
            None => refuse(format!("{}/{} is not there", volume.pool, volume.name)),
        }
    }

    pub(super) fn refuse_taken(&self, port: u16) -> Done {
        match self.listener(port) {
            Some((pool, name)) => refuse(format!("port {port} is taken by {pool}/{name}")),
            None => Ok(()),
        }
    }
}

impl Dir {
    pub(super) fn file(&mut self) -> Done<&mut Vec<u64>> {
        self.disk.as_mut().ok_or_else(|| HostError("the volume's file is not there".to_owned()))
    }

    pub(super) fn process(&mut self) -> Done<&mut ExportProcess> {
        self.export.as_mut().ok_or_else(|| HostError("the volume is not exported".to_owned()))
    }

    fn coming(&mut self, push: &img_storage_model::SnapshotId) -> Done<&mut Incoming> {
        self.incoming
            .as_mut()
            .filter(|i| i.push == *push)
            .ok_or_else(|| HostError(format!("the incoming file of {push} is not there")))
    }
}

impl SimNas {
    /// One part of a step on the volume's directory, followed by the checks.
    pub(super) async fn on<R>(&self, volume: &VolumeRef, what: &str, f: impl FnOnce(&mut Dir) -> Done<R>) -> Done<R> {
        self.on_machine(volume, what, |m| f(m.dir(volume)?)).await
    }

    pub(super) async fn on_machine<R>(
        &self,
        volume: &VolumeRef,
        what: &str,
        f: impl FnOnce(&mut NasMachine) -> Done<R>,
    ) -> Done<R> {
        self.world
            .part(|s| {
                let result = f(s.machine(&self.name));
                let doing = format!("{} {what}", self.name);
                s.check_readable(volume.id, &doing);
                s.check_kept(volume.id, &doing);
                result
            })
            .await
    }

    async fn step(&self, volume: &VolumeRef, step: NasStep) -> Result<StepResult, HostError> {
        match step {
            NasStep::VerifyIncoming { push, extents, digest: wanted } => {
                self.on(volume, "verifies", |_| Ok(())).await?;
                let have = self
                    .on(volume, "verifies", |dir| {
                        if dir.coming(&push)?.server.is_none() {
                            return refuse("the incoming file is not served");
                        }
                        let patch = dir.coming(&push)?.blocks.clone();
                        let contents = dir.patched(&patch).unwrap_or_default();
                        Ok(digest(&extents, |block| contents.get(block).copied().unwrap_or(0)))
                    })
                    .await?;
                return Ok(StepResult::Verified(have == wanted && inside(&extents, volume, self)));
            }
            NasStep::CreateDisk { .. } | NasStep::GrowDisk { .. } | NasStep::SyncDisk | NasStep::RemoveDisk => {
                self.disk_step(volume, step).await?;
            }
            NasStep::CreateIncoming { .. }
            | NasStep::ServeIncoming { .. }
            | NasStep::SealIncoming { .. }
            | NasStep::DiscardIncoming
            | NasStep::CommitPending { .. }
            | NasStep::RemovePending { .. } => self.incoming_step(volume, step).await?,
            _ => self.export_step(volume, step).await?,
        }
        Ok(StepResult::Done)
    }

    async fn disk_step(&self, volume: &VolumeRef, step: NasStep) -> Done {
        match step {
            NasStep::CreateDisk { size } => {
                let place = (volume.pool.clone(), volume.name.clone());
                self.on_machine(volume, "makes the directory", |m| {
                    if !m.pools.contains(&volume.pool) {
                        return refuse(format!("there is no pool {}", volume.pool));
                    }
                    m.dirs.entry(place).or_insert_with(|| Dir { mark: Some(volume.id), ..Dir::default() });
                    m.dir(volume).map(drop)
                })
                .await?;
                self.on(volume, "makes the file", |dir| {
                    dir.disk.get_or_insert_with(|| vec![0; blocks(size.bytes())]);
                    Ok(())
                })
                .await
            }
            NasStep::GrowDisk { size } => {
                self.on(volume, "grows the file", |dir| {
                    dir.file()?;
                    dir.grow(size.bytes());
                    Ok(())
                })
                .await
            }
            NasStep::RemoveDisk => {
                self.world
                    .part(|s| {
                        let machine = s.machine(&self.name);
                        let place = (volume.pool.clone(), volume.name.clone());
                        if machine.dirs.get(&place).is_none_or(|d| d.mark != Some(volume.id)) {
                            return Ok(());
                        }
                        let dir = machine.dir(volume)?;
                        if dir.export.is_some() || !dir.ports().is_empty() {
                            return refuse("the volume is in use");
                        }
                        if dir.incoming.is_some() || dir.pending.is_some() || dir.overlay.is_some() {
                            s.log.say(format!("{} removes files beside the volume's", self.name));
                        }
                        s.machine(&self.name).dirs.remove(&place);
                        if s.history(volume.id).acked > 0 && !s.log.may_go.contains(&volume.id) {
                            s.log.violation(format!("{} destroyed a volume nobody wanted destroyed", self.name));
                        }
                        Ok(())
                    })
                    .await
            }
            _ => self.on(volume, "syncs", |dir| dir.file().map(drop)).await,
        }
    }

    async fn incoming_step(&self, volume: &VolumeRef, step: NasStep) -> Done {
        match step {
            NasStep::CreateIncoming { push } => {
                self.on(volume, "makes the incoming file", |dir| {
                    dir.file()?;
                    match &dir.incoming {
                        Some(incoming) if incoming.push != push => refuse("the incoming file of another write-back is there"),
                        Some(_) => Ok(()),
                        None => {
                            dir.incoming = Some(Incoming { push, blocks: BTreeMap::new(), unflushed: Vec::new(), server: None });
                            Ok(())
                        }
                    }
                })
                .await
            }
            NasStep::ServeIncoming { push, peer, port } => {
                self.on_machine(volume, "serves the incoming file", |m| {
                    let server = Some((peer, port));
                    let incoming = m.dir(volume)?.coming(&push)?;
                    if incoming.server.is_some() {
                        return if incoming.server == server { Ok(()) } else { refuse("it is served otherwise") };
                    }
                    m.refuse_taken(port)?;
                    m.dir(volume)?.coming(&push)?.server = server;
                    Ok(())
                })
                .await
            }
            NasStep::SealIncoming { push } => {
                let sealed = self
                    .on(volume, "ends the incoming file's daemon", |dir| {
                        if dir.incoming.is_none() && dir.pending.as_ref().is_some_and(|(p, _)| *p == push) {
                            return Ok(true);
                        }
                        let incoming = dir.coming(&push)?;
                        if incoming.server.take().is_none() {
                            return refuse("the incoming file's daemon is not there to be ended");
                        }
                        incoming.unflushed.clear();
                        if dir.pending.is_some() { refuse("another write-back is pending") } else { Ok(false) }
                    })
                    .await?;
                if sealed {
                    return Ok(());
                }
                self.on(volume, "renames incoming to pending", |dir| {
                    let patch = std::mem::take(&mut dir.coming(&push)?.blocks);
                    dir.incoming = None;
                    dir.pending = Some((push, patch));
                    Ok(())
                })
                .await
            }
            NasStep::DiscardIncoming => {
                self.on_machine(volume, "ends the incoming file's daemon", |m| {
                    if let Ok(dir) = m.dir(volume)
                        && let Some(incoming) = &mut dir.incoming
                    {
                        incoming.server = None;
                        incoming.unflushed.clear();
                    }
                    Ok(())
                })
                .await?;
                self.on_machine(volume, "removes the incoming file", |m| {
                    if let Ok(dir) = m.dir(volume) {
                        dir.incoming = None;
                    }
                    Ok(())
                })
                .await
            }
            NasStep::CommitPending { push } => {
                for half in 0..2 {
                    self.on(volume, "commits the pending file", |dir| {
                        if dir.disk_in_use() || dir.reader.is_some() {
                            return refuse("the volume's file is in use");
                        }
                        let Some((_, patch)) = dir.pending.as_ref().filter(|(p, _)| *p == push) else {
                            return refuse(format!("the pending file of {push} is not there"));
                        };
                        let part: Vec<(usize, u64)> =
                            patch.iter().map(|(b, v)| (*b, *v)).filter(|(b, _)| half == 1 || b % 2 == 0).collect();
                        let file = dir.file()?;
                        for (block, version) in part {
                            file[block] = version;
                        }
                        Ok(())
                    })
                    .await?;
                }
                Ok(())
            }
            NasStep::RemovePending { push } => {
                self.on(volume, "removes the pending file", |dir| {
                    dir.pending.take_if(|(p, _)| *p == push);
                    Ok(())
                })
                .await
            }
            _ => refuse("not a step of the incoming file"),
        }
    }
}

/// Whether the ranges lie within the volume.
fn inside(extents: &Extents, volume: &VolumeRef, nas: &SimNas) -> bool {
    nas.world.with(|s| {
        let disk = s.machine(&nas.name).dir(volume).ok().and_then(|d| d.disk.as_ref().map(Vec::len)).unwrap_or(0);
        extents.end() <= disk as u64 * super::state::BLOCK_BYTES
    })
}
