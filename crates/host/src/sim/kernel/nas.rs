//! A NAS's verbs on the kernel plane.

use super::{Import, Nas, Target, blocks, stream, zvol::Zvol};
use crate::{
    VolumeRef,
    sim::{Done, SimNas, nas_state::Place, refuse, state::State},
};
use img_storage_model::{
    Fact,
    nas::{
        kernel::{Export, Held, NasFacts, NasStep, Zvol as ZvolFacts},
        qemu::ExportFacts,
    },
    node::StepResult,
    snapshot::Snapshot,
};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// How long after its making a zvol's device node is there.
const LATE_DEVICE: Duration = Duration::from_millis(40);

fn place(volume: &VolumeRef) -> Place {
    (volume.pool.clone(), volume.name.clone())
}

impl Nas {
    fn zvol(&mut self, volume: &VolumeRef) -> Done<&mut Zvol> {
        match self.zvols.get_mut(&place(volume)) {
            Some(zvol) if zvol.mark == volume.id => Ok(zvol),
            Some(_) => refuse(format!("{}/{} has another mark", volume.pool, volume.name)),
            None => refuse(format!("{}/{} is not there", volume.pool, volume.name)),
        }
    }

    fn facts(&self, volume: &VolumeRef) -> NasFacts {
        let zvol = self.zvols.get(&place(volume)).filter(|z| z.mark == volume.id);
        let exports = self.targets.iter().filter(|(_, t)| t.volume == volume.id).map(|(iqn, t)| Export {
            epoch: t.epoch,
            iqn: iqn.clone(),
            initiator: t.initiator.clone(),
            complete: t.complete,
            session: false,
        });
        let import = self.imports.get(&volume.id).map(|i| ExportFacts {
            epoch: i.epoch,
            peer: i.peer.clone(),
            port: i.port,
            names: vec![i.name.clone()],
            over: img_storage_model::nas::NasLayer::Disk,
            commit: None,
        });
        NasFacts {
            zvol: Fact::Known(zvol.map(|z| ZvolFacts {
                size: z.size(),
                allocated: z.data.iter().filter(|v| **v > 0).count() as u64 * crate::sim::state::BLOCK_BYTES,
                snapshots: z.points.iter().map(|p| Held { snapshot: p.snapshot, held: p.held }).collect(),
                written: if z.unchanged() && !self.in_use(volume) { 0 } else { z.written() },
                foreign: None,
                resume: z.partial.as_ref().filter(|_| !z.receiving).map(super::zvol::Partial::token),
            })),
            exports: Fact::Known(exports.collect()),
            import: Fact::Known(import),
            reader: Fact::Known(self.readers.contains_key(&volume.id)),
            stream: self.streams.get(&volume.id).map(stream::SimStream::fact),
        }
    }

    /// Somebody has the zvol open.
    fn in_use(&self, volume: &VolumeRef) -> bool {
        self.targets.values().any(|t| t.volume == volume.id)
            || self.imports.contains_key(&volume.id)
            || self.readers.contains_key(&volume.id)
            || self.streams.contains_key(&volume.id)
    }
}

impl SimNas {
    pub(in crate::sim) fn look_kernel(&self, volume: &VolumeRef) -> NasFacts {
        self.world.with(|s| s.kernel_nas(&self.name).facts(volume))
    }

    /// One part of a step, followed by the checks.
    async fn kernel<R>(&self, volume: &VolumeRef, what: &str, f: impl FnOnce(&mut Nas, Instant) -> Done<R>) -> Done<R> {
        self.world
            .part(|s| {
                let now = s.log.now;
                let result = f(s.kernel_nas(&self.name), now);
                let doing = format!("{} {what}", self.name);
                s.check_readable(volume.id, &doing);
                s.check_kept(volume.id, &doing);
                result
            })
            .await
    }

    pub(in crate::sim) async fn kernel_step(&self, volume: &VolumeRef, step: NasStep) -> Done<StepResult> {
        match step {
            NasStep::CreateZvol { .. } | NasStep::GrowZvol { .. } | NasStep::SyncZvol | NasStep::DestroyZvol => {
                self.zvol_step(volume, step).await?;
            }
            NasStep::Export { .. } | NasStep::Unexport { .. } => self.target_step(volume, step).await?,
            NasStep::StartImport { .. } | NasStep::StopImport | NasStep::StartReader { .. } | NasStep::StopReader => {
                self.served_step(volume, step).await?;
            }
            NasStep::CountWritten { still } => return self.count_written(volume, still.snapshot).await,
            NasStep::TakeSnapshot { .. } | NasStep::Hold { .. } | NasStep::DropSnapshot { .. } | NasStep::DiscardReceived => {
                let taken = match step {
                    NasStep::TakeSnapshot { snapshot } => Some(snapshot),
                    _ => None,
                };
                self.snapshot_step(volume, step).await?;
                if let Some(snapshot) = taken {
                    self.snapshot_step(volume, NasStep::Hold { snapshot }).await?;
                }
            }
            NasStep::Send { .. } | NasStep::Receive { .. } | NasStep::SetSpeed { .. } | NasStep::EndStream => {
                return self.stream_step(volume, step).await;
            }
        }
        Ok(StepResult::Done)
    }

    async fn count_written(&self, volume: &VolumeRef, since: Snapshot) -> Done<StepResult> {
        self.kernel(volume, "syncs", |nas, now| {
            nas.zvol(volume)?.sync(now);
            Ok(())
        })
        .await?;
        self.kernel(volume, "counts", |nas, _| {
            let zvol = nas.zvol(volume)?;
            match zvol.newest() {
                Some(newest) if newest.snapshot == since => Ok(StepResult::Written(zvol.written())),
                _ => refuse("that is not the newest snapshot"),
            }
        })
        .await
    }

    async fn zvol_step(&self, volume: &VolumeRef, step: NasStep) -> Done {
        match step {
            NasStep::CreateZvol { size } => {
                self.kernel(volume, "makes the zvol", |nas, now| {
                    if !nas.pools.contains(&volume.pool) {
                        return refuse(format!("there is no pool {}", volume.pool));
                    }
                    nas.zvols.entry(place(volume)).or_insert_with(|| Zvol::new(volume.id, blocks(size), now));
                    nas.zvol(volume).map(drop)
                })
                .await?;
                sleep(LATE_DEVICE).await;
                Ok(())
            }
            NasStep::GrowZvol { size } => {
                self.kernel(volume, "grows the zvol", |nas, _| {
                    nas.zvol(volume)?.grow(blocks(size));
                    Ok(())
                })
                .await
            }
            NasStep::DestroyZvol => {
                // The tool itself takes the snapshots before it finds out.
                self.kernel(volume, "looks who has the zvol open", |nas, _| {
                    if nas.in_use(volume) { refuse("the zvol is in use") } else { Ok(()) }
                })
                .await?;
                self.world
                    .part(|s| {
                        let nas = s.kernel_nas(&self.name);
                        let Ok(zvol) = nas.zvol(volume) else { return Ok(()) };
                        zvol.points.clear();
                        s.wanted_gone(volume, &self.name)
                    })
                    .await?;
                self.world
                    .part(|s| {
                        s.kernel_nas(&self.name).zvols.retain(|_, z| z.mark != volume.id);
                        Ok(())
                    })
                    .await
            }
            _ => {
                self.kernel(volume, "syncs", |nas, now| {
                    nas.zvol(volume)?.sync(now);
                    Ok(())
                })
                .await
            }
        }
    }

    async fn target_step(&self, volume: &VolumeRef, step: NasStep) -> Done {
        match step {
            NasStep::Export { epoch, iqn, initiator, login } => {
                self.kernel(volume, "makes the target", |nas, _| {
                    nas.zvol(volume)?;
                    let in_use = nas.in_use(volume);
                    if let Some(zvol) = nas.zvols.get_mut(&place(volume)).filter(|z| !in_use && z.unchanged()) {
                        zvol.noted = false;
                    }
                    nas.targets.entry(iqn.clone()).or_insert_with(|| Target {
                        place: place(volume),
                        volume: volume.id,
                        epoch,
                        initiator: None,
                        login: None,
                        complete: false,
                    });
                    Ok(())
                })
                .await?;
                self.world
                    .part(|s| {
                        let Some(target) = s.kernel_nas(&self.name).targets.get_mut(&iqn) else {
                            return refuse("the target is gone again");
                        };
                        (target.initiator, target.login) = (Some(initiator), Some(login));
                        let history = s.history(volume.id);
                        history.epoch = history.epoch.max(epoch);
                        Ok(())
                    })
                    .await?;
                self.kernel(volume, "opens the target", |nas, _| match nas.targets.get_mut(&iqn) {
                    Some(target) => {
                        target.complete = true;
                        Ok(())
                    }
                    None => refuse("the target is gone again"),
                })
                .await
            }
            NasStep::Unexport { epoch } => {
                let of = move |t: &Target| t.volume == volume.id && t.epoch == epoch;
                self.kernel(volume, "locks the target", |nas, _| {
                    for target in nas.targets.values_mut().filter(|t| of(t)) {
                        (target.complete, target.initiator) = (false, None);
                    }
                    Ok(())
                })
                .await?;
                self.kernel(volume, "removes the target", |nas, _| {
                    nas.targets.retain(|_, t| !of(t));
                    Ok(())
                })
                .await
            }
            _ => refuse("not a step of an export"),
        }
    }

    async fn served_step(&self, volume: &VolumeRef, step: NasStep) -> Done {
        self.kernel(volume, "serves", |nas, now| {
            match step {
                NasStep::StartImport { epoch, name, peer, port } => {
                    nas.zvol(volume)?;
                    nas.imports.insert(volume.id, Import { epoch, name, peer, port });
                }
                NasStep::StartReader { peer, port } => {
                    nas.zvol(volume)?;
                    nas.readers.insert(volume.id, (peer, port));
                }
                NasStep::StopImport => {
                    nas.imports.remove(&volume.id);
                    nas.zvol(volume)?.sync(now);
                }
                _ => {
                    nas.readers.remove(&volume.id);
                }
            }
            Ok(())
        })
        .await
    }

    async fn snapshot_step(&self, volume: &VolumeRef, step: NasStep) -> Done {
        self.world
            .part(|s| {
                let (guid, now) = (s.log.process() + 7000, s.log.now);
                let nas = s.kernel_nas(&self.name);
                let sends = nas.streams.get(&volume.id).map(|stream| stream.to.id);
                let zvol = nas.zvol(volume)?;
                match step {
                    NasStep::TakeSnapshot { snapshot } if zvol.point(snapshot).is_none() => {
                        zvol.take(Snapshot { id: snapshot, guid }, now);
                        let data = zvol.data.clone();
                        s.check_point(volume.id, &data, &format!("{} takes a snapshot", self.name));
                        Ok(())
                    }
                    NasStep::Hold { snapshot } => match zvol.points.iter_mut().find(|p| p.snapshot.id == snapshot) {
                        Some(point) => {
                            point.held = true;
                            Ok(())
                        }
                        None => refuse("there is no such snapshot"),
                    },
                    NasStep::DropSnapshot { snapshot } if sends == Some(snapshot) => refuse("the snapshot is being sent"),
                    NasStep::DropSnapshot { snapshot } => {
                        zvol.points.retain(|p| p.snapshot.id != snapshot);
                        s.check_kept(volume.id, &format!("{} drops a snapshot", self.name));
                        Ok(())
                    }
                    NasStep::DiscardReceived if zvol.receiving => refuse("the zvol is being received into"),
                    NasStep::DiscardReceived => {
                        zvol.partial = None;
                        Ok(())
                    }
                    _ => Ok(()),
                }
            })
            .await
    }
}

impl State {
    /// The volume's contents go: somebody must have asked for that.
    fn wanted_gone(&mut self, volume: &VolumeRef, nas: &img_storage_model::HostName) -> Done {
        if self.history(volume.id).acked > 0 && !self.log.may_go.contains(&volume.id) {
            self.log.violation(format!("{nas} destroyed a volume nobody wanted destroyed"));
        }
        Ok(())
    }

    /// A snapshot ought to be a point in time.
    pub(super) fn check_point(&mut self, volume: img_storage_model::VolumeId, copy: &[u64], doing: &str) {
        if let Err(why) = self.history(volume).point_in_time(copy) {
            self.log.violation(format!("{doing}, which is no point in time: {why}"));
        }
    }
}
