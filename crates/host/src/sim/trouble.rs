//! Troubles that no daemon of ours has a part in: storage daemons killed, machines restarted, networks cut, disks full.

use super::{World, nas_state::Dir};
use img_storage_model::{HostName, VolumeId, node::JobState};

impl World {
    /// Kills the node's storage daemon of a volume: the graph, its bitmaps and its jobs are gone.
    pub fn kill_node_daemon(&self, node: &HostName, volume: VolumeId) {
        self.with(|s| {
            if s.node(node, volume).qsd.take().is_some() {
                s.log.say(format!("TROUBLE the storage daemon of {node} was killed"));
            }
        });
    }

    /// Kills every storage daemon of a node.
    pub fn kill_node_daemons(&self, node: &HostName) {
        let volumes: Vec<VolumeId> = self.with(|s| s.nodes.get(node).map_or(Vec::new(), |n| n.volumes.keys().copied().collect()));
        for volume in volumes {
            self.kill_node_daemon(node, volume);
        }
    }

    /// Kills every export.
    pub fn kill_exports(&self) {
        for volume in self.with(|s| s.histories.keys().copied().collect::<Vec<_>>()) {
            self.kill_export(volume);
        }
    }

    /// Kills the daemon of every incoming file.
    pub fn kill_incomings(&self) {
        for volume in self.with(|s| s.histories.keys().copied().collect::<Vec<_>>()) {
            self.kill_incoming(volume);
        }
    }

    /// Kills the daemon that exports a volume, on whatever NAS it is.
    pub fn kill_export(&self, volume: VolumeId) {
        self.remove_targets(volume);
        self.with(|s| {
            for (name, dir) in s.nases.dirs_mut().filter(|(_, d)| d.mark == Some(volume)) {
                if dir.export.take().is_some() {
                    s.log.say(format!("TROUBLE the export of {name} was killed"));
                }
            }
            s.check_readable(volume, "the export was killed");
        });
    }

    /// Kills the daemon of a volume's incoming file: the file lacks some of what was written to it.
    pub fn kill_incoming(&self, volume: VolumeId) {
        self.with(|s| {
            for (name, dir) in s.nases.dirs_mut().filter(|(_, d)| d.mark == Some(volume)) {
                if damage(dir) {
                    s.log.say(format!("TROUBLE the incoming file's daemon of {name} was killed"));
                }
            }
        });
    }

    /// The volume's jobs fail that are not over, on its NAS and on every node; what a pivot held goes on where it was.
    pub fn fail_jobs(&self, volume: VolumeId) {
        self.with(|s| {
            s.log.say("TROUBLE the jobs fail".to_owned());
            s.kernel.fail_streams(volume);
            let qsds = s.nodes.values_mut().filter_map(|n| n.volumes.get_mut(&volume)?.qsd.as_mut());
            let jobs = qsds.flat_map(|q| {
                let push = q.push.as_mut().map(|(_, job)| job);
                [q.copy.as_mut(), push, q.back_mirror.as_mut(), q.back_fill.as_mut()]
            });
            let commits = s.nases.dirs_mut().filter(|(_, d)| d.mark == Some(volume));
            let commits = commits.filter_map(|(_, d)| d.export.as_mut()?.commit.as_mut());
            for job in jobs.flatten().chain(commits).filter(|job| !job.is(&JobState::Done)) {
                job.state = JobState::Failed("a fault of the simulation".to_owned());
            }
        });
    }

    /// Cuts a node off the data network, or connects it again.
    pub fn cut(&self, node: &HostName, cut: bool) {
        self.with(|s| {
            s.nodes.entry(node.clone()).or_default().cut = cut;
            s.log.say(format!("TROUBLE {node} is {}", if cut { "cut off" } else { "connected again" }));
        });
    }

    /// The names of all nodes.
    pub fn nodes(&self) -> Vec<HostName> {
        self.with(|s| s.nodes.keys().cloned().collect())
    }

    /// The names of all NASes.
    pub fn nases(&self) -> Vec<HostName> {
        self.with(|s| s.nases.0.keys().cloned().collect())
    }

    /// Cuts all nodes off, or connects them again.
    pub fn cut_all(&self, cut: bool) {
        for node in self.nodes() {
            self.cut(&node, cut);
        }
    }

    /// Leaves a node's pool without room, or gives it some.
    pub fn fill_disk(&self, node: &HostName, full: bool) {
        self.with(|s| s.nodes.entry(node.clone()).or_default().full = full);
    }

    /// Restarts a node's machine: every storage daemon there is gone. The caller stops our daemon.
    pub fn restart_node(&self, node: &HostName) {
        self.with(|s| {
            s.log.say(format!("TROUBLE {node} restarts"));
            s.reboot_kernel_node(node);
            for volume in s.nodes.entry(node.clone()).or_default().volumes.values_mut() {
                volume.qsd = None;
            }
        });
    }

    /// Restarts a NAS's machine, as [`World::restart_node`].
    pub fn restart_nas(&self, nas: &HostName) {
        self.with(|s| {
            s.log.say(format!("TROUBLE {nas} restarts"));
            s.reboot_kernel_nas(nas);
            for dir in s.machine(nas).dirs.values_mut() {
                damage(dir);
                dir.export = None;
                dir.reader = None;
            }
        });
    }

    /// Puts a file without our mark where the node would have its local copy of the volume.
    pub fn put_foreign_local(&self, node: &HostName, volume: VolumeId) {
        self.with(|s| s.node(node, volume).foreign = true);
    }

    /// What is wrong with the copy of the side that holds the newest writes: it ought to have every answered one.
    ///
    /// # Errors
    /// What it lacks.
    pub fn check_final(&self, volume: VolumeId, local_on: Option<&HostName>) -> Result<(), String> {
        self.with(|s| {
            let copy = match local_on {
                Some(node) => s.node(node, volume).local.as_ref().map(|l| l.data.clone()),
                None => s.readable(volume),
            };
            let copy = copy.ok_or("the copy is not there")?;
            s.history(volume).complete(&copy)
        })
    }

    /// The newest answered version of each block.
    pub fn newest(&self, volume: VolumeId, blocks: usize) -> Vec<u64> {
        self.with(|s| (0..blocks).map(|b| s.history(volume).newest_acked(b)).collect())
    }

    /// Whether the NAS's copy has everything that was answered when [`World::newest`] was asked.
    ///
    /// # Errors
    /// What it lacks.
    pub fn check_holds(&self, volume: VolumeId, newest: &[u64]) -> Result<(), String> {
        let copy = self.with(|s| s.readable(volume)).ok_or("the NAS has no copy")?;
        match newest.iter().zip(&copy).position(|(wanted, have)| have < wanted) {
            Some(block) => Err(format!("the NAS has {} in block {block} and lacks {}", copy[block], newest[block])),
            None => Ok(()),
        }
    }

    /// What is left of a volume that is not mapped, besides its file.
    pub fn leftovers(&self, volume: VolumeId) -> Vec<String> {
        self.with(|s| {
            let mut left = s.kernel.leftovers(volume);
            for (name, node) in &s.nodes {
                let Some(v) = node.volumes.get(&volume) else { continue };
                left.extend(v.qsd.is_some().then(|| format!("a storage daemon on {name}")));
                left.extend(v.local.is_some().then(|| format!("a local copy on {name}")));
            }
            for (name, dir) in s.nases.dirs_mut().filter(|(_, d)| d.mark == Some(volume)) {
                left.extend(dir.export.is_some().then(|| format!("an export on {name}")));
                left.extend(dir.reader.is_some().then(|| format!("a reader's export on {name}")));
                left.extend(dir.incoming.is_some().then(|| format!("an incoming file on {name}")));
                left.extend(dir.pending.is_some().then(|| format!("a pending file on {name}")));
                left.extend(dir.overlay.is_some().then(|| format!("an overlay on {name}")));
            }
            left
        })
    }

    /// Whether the volume's file is there.
    pub fn has_file(&self, volume: VolumeId) -> bool {
        self.with(|s| s.readable(volume).is_some())
    }

    /// How many writes to the volume were answered.
    pub fn answered(&self, volume: VolumeId) -> u64 {
        self.with(|s| s.history(volume).acked)
    }
}

/// The incoming file's daemon is killed; the later half of what it wrote is lost.
fn damage(dir: &mut Dir) -> bool {
    let Some(incoming) = &mut dir.incoming else {
        return false;
    };
    if incoming.server.take().is_none() {
        return false;
    }
    let kept = incoming.unflushed.len() / 2;
    for block in incoming.unflushed.drain(..).skip(kept) {
        incoming.blocks.remove(&block);
    }
    true
}
