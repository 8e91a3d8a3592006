//! The kernel plane in memory: zvols, iSCSI targets and sessions, device-mapper devices and streams, with the traps that the real
//! tools were seen to have.
//!
//! Who owns what: `zvol` contents and snapshots, `nas` and `node` the verbs of the two sides, `dm` the guest's device, `stream` what
//! moves snapshots between hosts, `trouble` power cuts and what is removed by hand.
//!
//! ZFS protects nothing that is in use: a receive into a zvol with a guest on it succeeds here too. A power cut loses what was
//! neither flushed nor synced, and `written` is seconds old.

mod dm;
mod nas;
mod node;
mod stream;
#[cfg(test)]
mod tests;
mod trouble;
mod zvol;

use super::{nas_state::Place, state::State};
use dm::{Cow, Device};
use img_storage_model::{
    Epoch, HostName, PoolName, Size, VolumeId,
    messages::{Endpoint, IscsiLogin},
    node::kernel::Table,
};
use std::collections::{BTreeMap, BTreeSet};
use stream::SimStream;
use tokio::time::Instant;
use zvol::Zvol;

/// Every host's part of the plane.
#[derive(Default)]
pub(super) struct Kernel {
    pub nases: BTreeMap<HostName, Nas>,
    pub nodes: BTreeMap<HostName, BTreeMap<VolumeId, Volume>>,
    /// So many blocks were streamed.
    pub streamed: u64,
    /// Overlays are made with room for so many blocks, instead of for the whole volume.
    pub overlays_hold: Option<usize>,
}

/// A NAS's machine.
#[derive(Default)]
pub(super) struct Nas {
    pub pools: Vec<PoolName>,
    pub zvols: BTreeMap<Place, Zvol>,
    /// By their names.
    pub targets: BTreeMap<String, Target>,
    pub imports: BTreeMap<VolumeId, Import>,
    pub readers: BTreeMap<VolumeId, (HostName, u16)>,
    pub streams: BTreeMap<VolumeId, SimStream>,
    /// Streams whose daemon is gone, and whose last bytes are on the way.
    orphans: Vec<(VolumeId, SimStream)>,
    /// How often its power was cut: what had not been flushed then is not there.
    power: u64,
}

/// An iSCSI target with its backstore and access list.
pub(super) struct Target {
    pub place: Place,
    pub volume: VolumeId,
    pub epoch: Epoch,
    pub initiator: Option<String>,
    pub login: Option<IscsiLogin>,
    pub complete: bool,
}

/// The storage daemon through which a front end fills a zvol.
pub(super) struct Import {
    pub epoch: Epoch,
    pub name: String,
    pub peer: HostName,
    pub port: u16,
}

/// What a node has of a volume.
#[derive(Default)]
pub(super) struct Volume {
    pub session: Option<Session>,
    pub device: Option<Device>,
    pub local: Option<Zvol>,
    pub overlay: Option<Cow>,
}

/// A login, which stays while its target is away.
pub(super) struct Session {
    pub iqn: String,
    pub login: IscsiLogin,
    /// Serial number and length, as the disk said when it was last looked at.
    pub disk: Option<(String, u64)>,
    pub lost: Option<Instant>,
}

/// The iSCSI name of a node of the world.
pub(super) fn initiator(node: &HostName) -> String {
    format!("iqn.1993-08.org.debian:01:{node}")
}

impl Kernel {
    /// What the node has of the volume.
    pub fn volume(&mut self, node: &HostName, volume: VolumeId) -> &mut Volume {
        self.nodes.entry(node.clone()).or_default().entry(volume).or_default()
    }

    fn zvol_of(&self, volume: VolumeId) -> Option<(&HostName, &Nas, &Zvol)> {
        self.nases.iter().find_map(|(name, nas)| Some((name, nas, nas.zvols.values().find(|z| z.mark == volume)?)))
    }

    pub fn zvol_of_mut(&mut self, volume: VolumeId) -> Option<(u64, &mut Zvol)> {
        self.nases.values_mut().find_map(|nas| {
            let power = nas.power;
            Some((power, nas.zvols.values_mut().find(|z| z.mark == volume)?))
        })
    }

    /// Whether the volume is one of this plane.
    pub fn has(&self, volume: VolumeId) -> bool {
        self.zvol_of(volume).is_some() || self.nodes.values().any(|n| n.contains_key(&volume))
    }

    /// A merge into the NAS's zvol has begun: that is no point in time.
    fn merging_home(&self, volume: VolumeId) -> bool {
        self.nodes.values().filter_map(|n| n.get(&volume)?.overlay.as_ref()).any(|cow| cow.merging_home)
    }

    /// What a reader of the NAS's copy gets, and must be a point in time.
    pub fn readable(&self, volume: VolumeId) -> Option<Vec<u64>> {
        let (_, _, zvol) = self.zvol_of(volume)?;
        match zvol.newest() {
            Some(newest) if self.merging_home(volume) => Some(newest.data.clone()),
            _ => Some(zvol.data.clone()),
        }
    }

    /// Every copy on the NAS from which contents could be had.
    pub fn copies(&self, volume: VolumeId) -> Vec<Vec<u64>> {
        let Some((_, _, zvol)) = self.zvol_of(volume) else { return Vec::new() };
        zvol.points.iter().map(|p| p.data.clone()).chain([zvol.data.clone()]).collect()
    }

    /// What nodes have, overlays too.
    pub fn node_copies(&self, volume: VolumeId) -> Vec<Vec<u64>> {
        let mut copies = Vec::new();
        for v in self.nodes.values().filter_map(|n| n.get(&volume)) {
            copies.extend(v.local.as_ref().map(|l| l.data.clone()));
            copies.extend(v.overlay.as_ref().map(Cow::as_copy));
        }
        copies
    }

    /// What the guest's device shows with a table, were the network there.
    fn view(&self, node: &HostName, volume: VolumeId, table: Table) -> Vec<u64> {
        use img_storage_model::node::Layer;
        let Some(v) = self.nodes.get(node).and_then(|n| n.get(&volume)) else { return Vec::new() };
        let (Table::Linear(layer) | Table::Overlay(layer) | Table::Merge(layer)) = table;
        let mut contents = match layer {
            Layer::Local => v.local.as_ref().map(|l| l.data.clone()).unwrap_or_default(),
            Layer::Remote => self.zvol_of(volume).map(|(_, _, z)| z.data.clone()).unwrap_or_default(),
        };
        if let (Table::Overlay(_) | Table::Merge(_), Some(cow)) = (table, &v.overlay) {
            for (block, version) in &cow.data {
                if let Some(place) = contents.get_mut(*block) {
                    *place = *version;
                }
            }
        }
        contents
    }

    /// The target that a node's session leads to now, or why it leads nowhere.
    pub fn reach(&self, node: &HostName, cut: bool, session: &Session) -> Result<(&HostName, &Target), String> {
        if cut {
            return Err("no route to host".to_owned());
        }
        let found = self.nases.iter().find_map(|(name, nas)| Some((name, nas.targets.get(&session.iqn)?)));
        let (name, target) = found.ok_or("there is no such target")?;
        match (&target.initiator, &target.login) {
            (Some(let_in), Some(login)) if target.complete && *let_in == initiator(node) && *login == session.login => {
                Ok((name, target))
            }
            _ => Err("the target lets nobody in".to_owned()),
        }
    }

    /// Whether a front end may fill the volume through an endpoint.
    pub fn lets_fill(&self, from: &HostName, endpoint: &Endpoint, volume: VolumeId) -> Result<(), String> {
        let import = self.nases.values().find_map(|nas| nas.imports.get(&volume)).ok_or("connection refused")?;
        let same = import.name == endpoint.export && import.port == endpoint.port && import.peer == *from;
        if same { Ok(()) } else { Err(format!("no export {} for {from}", endpoint.export)) }
    }

    /// What a front end reads at an endpoint; nothing where this plane serves none there.
    pub fn read_by(&self, from: &HostName, endpoint: &Endpoint) -> Option<&[u64]> {
        let reads = |reader: &(HostName, u16)| reader.0 == *from && reader.1 == endpoint.port && endpoint.export == "reader";
        let volumes = self.nases.values().flat_map(|nas| &nas.readers);
        let volume = volumes.into_iter().find(|(_, reader)| reads(reader))?.0;
        self.zvol_of(*volume).map(|(_, _, zvol)| zvol.data.as_slice())
    }

    /// All volumes with anything on a node.
    pub fn volumes(&self) -> BTreeSet<VolumeId> {
        self.nodes.values().flat_map(|n| n.keys().copied()).collect()
    }
}

impl State {
    /// The node is cut off the data network.
    fn is_cut(&self, node: &HostName) -> bool {
        self.nodes.get(node).is_some_and(|n| n.cut)
    }

    fn is_full(&self, node: &HostName) -> bool {
        self.nodes.get(node).is_some_and(|n| n.full)
    }

    pub(super) fn kernel_nas(&mut self, nas: &HostName) -> &mut Nas {
        self.kernel.nases.entry(nas.clone()).or_default()
    }

    /// The guest's device shows this from now on: it must have everything.
    fn check_view(&mut self, node: &HostName, volume: VolumeId, table: Table, doing: &str) {
        let view = self.kernel.view(node, volume, table);
        self.check_complete(volume, &view, &format!("{node} {doing} {table:?}"));
    }
}

/// How many blocks a size has.
fn blocks(size: Size) -> usize {
    super::state::blocks(size.bytes())
}
