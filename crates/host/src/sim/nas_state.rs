//! A NAS's machine: directories with files, and the storage daemons that serve them.

use super::{
    graph::{Conn, SimJob},
    state::blocks,
};
use img_storage_model::{Epoch, HostName, PoolName, SnapshotId, VolumeId, VolumeName, nas::NasLayer};
use std::collections::{BTreeMap, BTreeSet};

/// Blocks of an image that lies over another.
pub(super) type Patch = BTreeMap<usize, u64>;

/// Where a volume is on its NAS.
pub(super) type Place = (PoolName, VolumeName);

/// All NASes.
#[derive(Default)]
pub(super) struct Nases(pub BTreeMap<HostName, NasMachine>);

pub(super) struct NasMachine {
    pub pools: Vec<PoolName>,
    pub dirs: BTreeMap<Place, Dir>,
    pub last_port: u16,
}

/// A volume's directory.
#[derive(Default)]
pub(super) struct Dir {
    /// Our mark; without it the directory is somebody else's.
    pub mark: Option<VolumeId>,
    pub disk: Option<Vec<u64>>,
    pub incoming: Option<Incoming>,
    pub pending: Option<(SnapshotId, Patch)>,
    pub overlay: Option<Overlay>,
    pub export: Option<ExportProcess>,
    pub reader: Option<(HostName, u16)>,
}

/// The file of a write-back, and its daemon.
pub(super) struct Incoming {
    pub push: SnapshotId,
    pub blocks: Patch,
    /// Written since the daemon began; a killed daemon loses some of it.
    pub unflushed: Vec<usize>,
    pub server: Option<(HostName, u16)>,
}

pub(super) struct Overlay {
    pub epoch: Epoch,
    pub blocks: Patch,
    /// A guest works on it: it belongs to the volume's contents.
    pub live: bool,
}

/// The storage daemon that exports a volume.
pub(super) struct ExportProcess {
    pub epoch: Epoch,
    pub peer: HostName,
    pub port: u16,
    pub names: BTreeMap<String, NasLayer>,
    pub commit: Option<SimJob>,
}

/// What a connection leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Export(HostName, Place, NasLayer),
    Incoming(HostName, Place),
    Reader(HostName, Place),
}

impl Dir {
    pub fn patched(&self, patch: &Patch) -> Option<Vec<u64>> {
        let mut copy = self.disk.clone()?;
        for (block, version) in patch {
            if let Some(place) = copy.get_mut(*block) {
                *place = *version;
            }
        }
        Some(copy)
    }

    /// What a reader of this volume gets.
    pub fn readable(&self) -> Option<Vec<u64>> {
        match (&self.overlay, &self.pending) {
            (Some(overlay), _) if overlay.live => self.patched(&overlay.blocks),
            (_, Some((_, patch))) => self.patched(patch),
            _ => self.disk.clone(),
        }
    }

    /// Something has the volume's file open for writing.
    pub fn disk_in_use(&self) -> bool {
        self.export.is_some()
    }
}

impl Nases {
    pub fn add(&mut self, name: &HostName, pools: &[PoolName]) {
        let machine = NasMachine { pools: pools.to_vec(), dirs: BTreeMap::new(), last_port: 10_800 };
        self.0.insert(name.clone(), machine);
    }

    pub fn dirs_mut(&mut self) -> impl Iterator<Item = (&HostName, &mut Dir)> {
        self.0.iter_mut().flat_map(|(name, nas)| nas.dirs.values_mut().map(move |d| (name, d)))
    }

    fn dir_of(&self, volume: VolumeId) -> Option<&Dir> {
        self.0.values().flat_map(|n| n.dirs.values()).find(|d| d.mark == Some(volume))
    }

    pub fn readable(&self, volume: VolumeId) -> Option<Vec<u64>> {
        self.dir_of(volume)?.readable()
    }

    /// Every copy of a volume on its NAS from which its contents could be had.
    pub fn copies(&self, volume: VolumeId) -> Vec<Vec<u64>> {
        let Some(dir) = self.dir_of(volume) else {
            return Vec::new();
        };
        let overlay = dir.overlay.as_ref().and_then(|o| dir.patched(&o.blocks));
        [dir.readable(), overlay].into_iter().flatten().collect()
    }

    /// Where a connection leads to now, or why it does not.
    pub fn target(&self, from: &HostName, cut: bool, conn: &Conn) -> Result<Target, String> {
        let end = &conn.endpoint;
        if cut {
            return Err(format!("{}: no route to host", end.host));
        }
        let (name, nas) =
            self.0.iter().find(|(name, _)| name.as_str() == end.host).ok_or_else(|| format!("{}: no such host", end.host))?;
        if *name != end.server {
            return Err(format!("{}: the certificate is for {name}", end.server));
        }
        for (place, dir) in &nas.dirs {
            if let Some(export) = dir.export.as_ref().filter(|e| e.port == end.port) {
                let layer = export.names.get(&end.export).ok_or_else(|| format!("no export {}", end.export))?;
                return match export.peer == *from {
                    true => Ok(Target::Export(name.clone(), place.clone(), *layer)),
                    false => Err(format!("{from} is not let in")),
                };
            }
            if let Some((peer, port)) = &dir.reader
                && *port == end.port
            {
                return match end.export == "reader" && peer == from {
                    true => Ok(Target::Reader(name.clone(), place.clone())),
                    false => Err(format!("no export {} for {from}", end.export)),
                };
            }
            if let Some(incoming) = &dir.incoming
                && let Some((peer, port)) = &incoming.server
                && *port == end.port
            {
                return match incoming.push.to_string() == end.export && peer == from {
                    true => Ok(Target::Incoming(name.clone(), place.clone())),
                    false => Err(format!("no export {} for {from}", end.export)),
                };
            }
        }
        Err(format!("{}:{}: connection refused", end.host, end.port))
    }

    fn dir(&self, target: &Target) -> Option<&Dir> {
        let (Target::Export(nas, place, _) | Target::Incoming(nas, place) | Target::Reader(nas, place)) = target;
        self.0.get(nas)?.dirs.get(place)
    }

    /// The contents behind a connection.
    pub fn contents(&self, target: &Target) -> Vec<u64> {
        let Some(dir) = self.dir(target) else {
            return Vec::new();
        };
        match target {
            Target::Export(_, _, NasLayer::Disk) | Target::Reader(..) => dir.disk.clone(),
            Target::Export(_, _, NasLayer::Overlay) => {
                dir.overlay.as_ref().and_then(|o| dir.patched(&o.blocks)).or_else(|| dir.disk.clone())
            }
            Target::Incoming(..) => dir.incoming.as_ref().and_then(|i| dir.patched(&i.blocks)),
        }
        .unwrap_or_default()
    }

    /// Whether writes to it are held: its commit waits to be finalized.
    pub fn held(&self, target: &Target) -> bool {
        use img_storage_model::node::JobState::Pending;
        matches!(target, Target::Export(..))
            && self.dir(target).and_then(|d| d.export.as_ref()?.commit.as_ref()).is_some_and(|commit| commit.state == Pending)
    }

    /// Writes a block behind a connection; what it was there.
    pub fn write(&mut self, target: &Target, block: usize, version: u64) -> u64 {
        let (Target::Export(nas, place, _) | Target::Incoming(nas, place) | Target::Reader(nas, place)) = target;
        let Some(dir) = self.0.get_mut(nas).and_then(|n| n.dirs.get_mut(place)) else {
            return 0;
        };
        let below = dir.disk.as_ref().and_then(|d| d.get(block).copied()).unwrap_or(0);
        match target {
            Target::Export(_, _, NasLayer::Disk) => {
                if let Some(place) = dir.disk.as_mut().and_then(|d| d.get_mut(block)) {
                    *place = version;
                }
                below
            }
            Target::Export(_, _, NasLayer::Overlay) => {
                let Some(overlay) = &mut dir.overlay else {
                    return below;
                };
                if let Some(commit) = dir.export.as_mut().and_then(|e| e.commit.as_mut()) {
                    commit.todo.insert(block);
                }
                overlay.blocks.insert(block, version).unwrap_or(below)
            }
            Target::Reader(..) => below,
            Target::Incoming(..) => {
                let Some(incoming) = &mut dir.incoming else {
                    return below;
                };
                incoming.unflushed.push(block);
                incoming.blocks.insert(block, version).unwrap_or(below)
            }
        }
    }

    /// A guest works on the volume's overlay from now on.
    pub fn enliven(&mut self, volume: VolumeId) {
        for (_, dir) in self.dirs_mut().filter(|(_, d)| d.mark == Some(volume)) {
            if let Some(overlay) = &mut dir.overlay {
                overlay.live = true;
            }
        }
    }
}

impl NasMachine {
    /// Who listens on a port.
    pub fn listener(&self, port: u16) -> Option<&Place> {
        self.dirs.iter().find(|(_, d)| d.ports().contains(&port)).map(|(place, _)| place)
    }
}

impl Dir {
    pub fn ports(&self) -> BTreeSet<u16> {
        let export = self.export.as_ref().map(|e| e.port);
        let incoming = self.incoming.as_ref().and_then(|i| i.server.as_ref()).map(|(_, port)| *port);
        let reader = self.reader.as_ref().map(|(_, port)| *port);
        [export, incoming, reader].into_iter().flatten().collect()
    }

    pub fn grow(&mut self, bytes: u64) {
        if let Some(disk) = &mut self.disk
            && disk.len() < blocks(bytes)
        {
            disk.resize(blocks(bytes), 0);
        }
    }
}
