//! Troubles of the kernel plane that no daemon of ours has a part in, and what is left of a volume.

use super::Kernel;
use crate::sim::{World, state::State};
use img_storage_model::{HostName, VolumeId, node::JobState};
use tokio::time::Instant;

impl State {
    /// A node loses its power: sessions, devices and what was not flushed are gone.
    pub(in crate::sim) fn reboot_kernel_node(&mut self, node: &HostName) {
        let now = self.log.now;
        for v in self.kernel.nodes.entry(node.clone()).or_default().values_mut() {
            (v.session, v.device) = (None, None);
            v.local.iter_mut().for_each(|l| l.lose_power(now));
            v.overlay.iter_mut().for_each(super::dm::Cow::lose_power);
        }
        let streams = self.kernel.nases.values_mut().flat_map(|nas| nas.streams.values_mut());
        for stream in streams.filter(|s| s.node == *node && s.job.is(&JobState::Running)) {
            stream.job.state = JobState::Failed("connection lost".to_owned());
        }
        let volumes: Vec<VolumeId> = self.kernel.nodes.get(node).map(|n| n.keys().copied().collect()).unwrap_or_default();
        for volume in volumes {
            if let Some((_, zvol)) = self.kernel.zvol_of_mut(volume) {
                zvol.receiving = false;
            }
            self.check_kept(volume, &format!("{node} lost its power"));
        }
    }

    /// A NAS loses its power: targets and streams are gone, and what was not flushed; sessions wait.
    pub(in crate::sim) fn reboot_kernel_nas(&mut self, nas: &HostName) {
        let now = self.log.now;
        let volumes: Vec<VolumeId> = self.kernel_nas(nas).streams.keys().copied().collect();
        for volume in volumes {
            self.drop_stream(nas, volume);
        }
        let machine = self.kernel_nas(nas);
        machine.power += 1;
        machine.targets.clear();
        machine.imports.clear();
        machine.readers.clear();
        machine.orphans.clear();
        let mut volumes = Vec::new();
        for zvol in machine.zvols.values_mut() {
            zvol.lose_power(now);
            volumes.push(zvol.mark);
        }
        for v in self.kernel.nodes.values_mut().flat_map(|n| n.values_mut()) {
            v.device.iter_mut().for_each(super::dm::Device::forget_unflushed);
            v.local.iter_mut().for_each(|l| l.receiving = false);
        }
        for volume in volumes {
            self.check_readable(volume, "the NAS lost its power");
            self.check_kept(volume, "the NAS lost its power");
        }
    }

    /// Sessions notice whether they lead anywhere.
    pub(in crate::sim) fn settle_sessions(&mut self) {
        let now: Instant = self.log.now;
        for node in self.kernel.nodes.keys().cloned().collect::<Vec<_>>() {
            let cut = self.is_cut(&node);
            for volume in self.kernel.volumes() {
                let session = self.kernel.nodes.get(&node).and_then(|n| n.get(&volume)?.session.as_ref());
                let up = session.is_some_and(|session| self.kernel.reach(&node, cut, session).is_ok());
                if let Some(session) = self.kernel.nodes.get_mut(&node).and_then(|n| n.get_mut(&volume)?.session.as_mut()) {
                    session.lost = if up { None } else { Some(session.lost.unwrap_or(now)) };
                }
            }
        }
    }

    /// ZFS syncs from time to time.
    pub(in crate::sim) fn sync_zvols(&mut self) {
        let now = self.log.now;
        let homes = self.kernel.nases.values_mut().flat_map(|nas| nas.zvols.values_mut());
        let locals = self.kernel.nodes.values_mut().flat_map(|n| n.values_mut()).filter_map(|v| v.local.as_mut());
        for zvol in homes.chain(locals) {
            zvol.tick(now);
        }
    }
}

impl World {
    /// So many blocks were streamed between hosts so far.
    pub fn streamed(&self) -> u64 {
        self.with(|s| s.kernel.streamed)
    }

    /// The local copies on a node.
    pub fn local_copies(&self, node: &HostName) -> Vec<VolumeId> {
        self.with(|s| {
            let volumes = s.kernel.nodes.get(node).into_iter().flatten();
            volumes.filter(|(_, v)| v.local.is_some()).map(|(volume, _)| *volume).collect()
        })
    }

    /// What a node's local copy holds.
    pub fn local_contents(&self, node: &HostName, volume: VolumeId) -> Option<Vec<u64>> {
        self.with(|s| s.kernel.volume(node, volume).local.as_ref().map(|local| local.data.clone()))
    }

    /// Whoever looked after a local copy that stays has saved what is in it, and destroys it by hand.
    pub fn destroy_by_hand(&self, node: &HostName, volume: VolumeId) {
        self.with(|s| {
            s.kernel.volume(node, volume).local = None;
            s.log.say(format!("the local copy on {node} is destroyed by hand"));
        });
    }

    /// Nobody can tell any more that the NAS lacks writes, and guests begin anew with what it has: every ledger is older than they are.
    pub fn forget_newer(&self, volume: VolumeId) {
        self.with(|s| {
            let copy = s.readable(volume).unwrap_or_default();
            s.history(volume).forget_newer(&copy);
        });
    }

    /// From now on overlays are made with room for so many blocks: they run full. With none they are as they should be, and those that
    /// ran full are as whoever mends one by hand leaves it: it has room, and its header says that it is good.
    pub fn overlays_hold(&self, blocks: Option<usize>) {
        self.with(|s| {
            s.kernel.overlays_hold = blocks;
            for cow in s.kernel.nodes.values_mut().flat_map(|n| n.values_mut()).filter_map(|v| v.overlay.as_mut()) {
                if blocks.is_none() {
                    (cow.invalid, cow.capacity) = (false, usize::from(u16::MAX));
                }
            }
        });
    }

    /// Whether an overlay of the volume on a node ran full.
    pub fn ran_full(&self, node: &HostName, volume: VolumeId) -> bool {
        self.with(|s| s.kernel.volume(node, volume).overlay.as_ref().is_some_and(|cow| cow.invalid))
    }

    /// How long the guest's device is, in bytes.
    pub fn device_size(&self, node: &HostName, volume: VolumeId) -> Option<u64> {
        self.with(|s| s.kernel.device(node, volume).map(|d| d.size))
    }

    /// Takes the volume's targets away by hand.
    pub(in crate::sim) fn remove_targets(&self, volume: VolumeId) {
        self.with(|s| {
            for nas in s.kernel.nases.values_mut() {
                nas.targets.retain(|_, t| t.volume != volume);
            }
        });
    }

    /// The NAS's daemon is killed: its streams end.
    pub(in crate::sim) fn end_streams(&self, nas: &HostName) {
        self.with(|s| {
            let volumes: Vec<VolumeId> = s.kernel.nases.get(nas).map(|n| n.streams.keys().copied().collect()).unwrap_or_default();
            for volume in volumes {
                s.drop_stream(nas, volume);
            }
        });
    }
}

impl Kernel {
    /// The volume's streams that are not over fail.
    pub fn fail_streams(&mut self, volume: VolumeId) {
        let mut receivers = Vec::new();
        for nas in self.nases.values_mut() {
            if let Some(stream) = nas.streams.get_mut(&volume).filter(|s| s.job.is(&JobState::Running)) {
                stream.job.state = JobState::Failed("a fault of the simulation".to_owned());
                receivers.push(stream.node.clone());
            }
        }
        for node in receivers {
            if let Some(local) = self.nodes.get_mut(&node).and_then(|n| n.get_mut(&volume)?.local.as_mut()) {
                local.receiving = false;
            }
            if let Some((_, zvol)) = self.zvol_of_mut(volume) {
                zvol.receiving = false;
            }
        }
    }

    /// What is left of a volume that is not mapped, besides its zvol and copies kept for the next time.
    pub fn leftovers(&self, volume: VolumeId) -> Vec<String> {
        let mut left = Vec::new();
        for (name, v) in self.nodes.iter().filter_map(|(name, n)| Some((name, n.get(&volume)?))) {
            left.extend(v.session.is_some().then(|| format!("a session on {name}")));
            left.extend(v.device.is_some().then(|| format!("a device on {name}")));
            left.extend(v.overlay.is_some().then(|| format!("an overlay on {name}")));
        }
        for (name, nas) in &self.nases {
            left.extend(nas.targets.values().any(|t| t.volume == volume).then(|| format!("a target on {name}")));
            left.extend(nas.readers.contains_key(&volume).then(|| format!("a reader's export on {name}")));
            left.extend(nas.streams.contains_key(&volume).then(|| format!("a stream of {name}")));
            let partial = nas.zvols.values().any(|z| z.mark == volume && z.partial.is_some());
            left.extend(partial.then(|| format!("a half-received snapshot on {name}")));
        }
        left
    }
}
