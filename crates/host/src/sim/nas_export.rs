//! A NAS's verbs for its exports, the overlay of a bring-back and the reader.

use super::{
    Done, SimNas,
    graph::SimJob,
    nas_state::{ExportProcess, Overlay},
    refuse,
};
use crate::VolumeRef;
use img_storage_model::{
    attribute::Speed,
    nas::{NasLayer, qemu::NasStep},
    node::JobState,
};
use std::collections::BTreeMap;

impl SimNas {
    pub(super) async fn export_step(&self, volume: &VolumeRef, step: NasStep) -> Done {
        match step {
            NasStep::StartExport { epoch, name, peer, port, layer } => {
                self.on_machine(volume, "starts the export", |m| {
                    let dir = m.dir(volume)?;
                    dir.file()?;
                    if let Some(e) = &dir.export {
                        let same = e.epoch == epoch && e.peer == peer && e.port == port && e.names.get(&name) == Some(&layer);
                        return if same { Ok(()) } else { refuse("another export runs") };
                    }
                    if layer == NasLayer::Overlay && dir.overlay.is_none() {
                        return refuse("the overlay is not there");
                    }
                    m.refuse_taken(port)?;
                    let names = BTreeMap::from([(name, layer)]);
                    m.dir(volume)?.export = Some(ExportProcess { epoch, peer, port, names, commit: None });
                    Ok(())
                })
                .await?;
                self.world.with(|s| {
                    let history = s.history(volume.id);
                    history.epoch = history.epoch.max(epoch);
                });
                Ok(())
            }
            NasStep::StopExport => {
                self.on_machine(volume, "ends the export", |m| {
                    if let Ok(dir) = m.dir(volume) {
                        dir.export = None;
                    }
                    Ok(())
                })
                .await
            }
            NasStep::AddExport { name } => {
                self.on(volume, "adds an export", |dir| {
                    dir.process()?.names.entry(name).or_insert(NasLayer::Disk);
                    Ok(())
                })
                .await
            }
            NasStep::RemoveExport { name } => {
                self.on(volume, "removes an export", |dir| {
                    dir.process()?.names.remove(&name);
                    Ok(())
                })
                .await
            }
            NasStep::CreateOverlay { epoch } => {
                self.on(volume, "makes the overlay", |dir| {
                    dir.file()?;
                    match &dir.overlay {
                        Some(overlay) if overlay.epoch != epoch => refuse("an overlay of another epoch is there"),
                        Some(_) => Ok(()),
                        None => {
                            dir.overlay = Some(Overlay { epoch, blocks: BTreeMap::new(), live: false });
                            Ok(())
                        }
                    }
                })
                .await
            }
            NasStep::RemoveOverlay => {
                self.on(volume, "removes the overlay", |dir| {
                    if dir.export.as_ref().is_some_and(|e| e.names.values().any(|l| *l == NasLayer::Overlay)) {
                        return refuse("the overlay is in use");
                    }
                    dir.overlay = None;
                    Ok(())
                })
                .await
            }
            NasStep::StartReader { peer, port } => {
                self.on_machine(volume, "serves a reader", |m| {
                    m.dir(volume)?.file()?;
                    if m.dir(volume)?.reader.is_none() {
                        m.refuse_taken(port)?;
                        m.dir(volume)?.reader = Some((peer, port));
                    }
                    Ok(())
                })
                .await
            }
            NasStep::StopReader => {
                self.on(volume, "ends the reader's export", |dir| {
                    dir.reader = None;
                    Ok(())
                })
                .await
            }
            _ => self.commit_step(volume, step).await,
        }
    }

    async fn commit_step(&self, volume: &VolumeRef, step: NasStep) -> Done {
        let now = tokio::time::Instant::now();
        match step {
            NasStep::StartCommit => {
                self.on(volume, "starts the live commit", |dir| {
                    let Some(overlay) = &dir.overlay else { return refuse("the overlay is not there") };
                    let todo = overlay.blocks.keys().copied().collect();
                    let process = dir.process()?;
                    if !process.names.values().any(|l| *l == NasLayer::Overlay) {
                        return refuse("nothing is exported from the overlay");
                    }
                    process.commit.get_or_insert_with(|| SimJob::new(todo, now, Speed::UNLIMITED));
                    // The NAS takes it for the truth from here on, whether a guest has come to it yet or not.
                    dir.overlay.iter_mut().for_each(|overlay| overlay.live = true);
                    Ok(())
                })
                .await?;
                self.world.with(|s| {
                    let contents = s.nases.readable(volume.id).unwrap_or_default();
                    s.check_complete(volume.id, &contents, &format!("{} folds the overlay in", self.name));
                });
                Ok(())
            }
            NasStep::CompleteCommit => {
                self.on(volume, "completes the live commit", |dir| {
                    let patch = dir.overlay.as_ref().map(|o| o.blocks.clone()).unwrap_or_default();
                    let Some(commit) = &mut dir.process()?.commit else { return refuse("there is no commit") };
                    match commit.state {
                        JobState::Pending | JobState::Done => return Ok(()),
                        JobState::Ready => {}
                        _ => return refuse("the commit is not ready"),
                    }
                    commit.state = JobState::Pending;
                    commit.todo.clear();
                    for (block, version) in patch {
                        dir.file()?[block] = version;
                    }
                    Ok(())
                })
                .await
            }
            NasStep::FinalizeCommit => {
                self.on(volume, "finalizes the live commit", |dir| {
                    let Some(commit) = &mut dir.process()?.commit else { return Ok(()) };
                    match commit.state {
                        JobState::Pending => commit.state = JobState::Done,
                        JobState::Done => return Ok(()),
                        _ => return refuse("the commit is not pending"),
                    }
                    dir.process()?.names.values_mut().for_each(|layer| *layer = NasLayer::Disk);
                    if let Some(overlay) = &mut dir.overlay {
                        overlay.live = false;
                    }
                    Ok(())
                })
                .await?;
                self.on(volume, "dismisses the live commit", |dir| {
                    dir.process()?.commit = None;
                    Ok(())
                })
                .await
            }
            _ => {
                self.on(volume, "ends a failed commit", |dir| match &dir.process()?.commit {
                    Some(job) if job.is(&JobState::Done) => refuse("the commit is over and well"),
                    _ => {
                        dir.process()?.commit = None;
                        Ok(())
                    }
                })
                .await
            }
        }
    }
}
