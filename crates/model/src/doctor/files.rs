//! The qemu plane, of a NAS and of a node: files in pools, and the storage daemons over them, against the ledgers.

use super::{About, Ask, Diagnosis, Notes, nas, node};
use crate::{
    Epoch, Fact, HostName, Plane, PoolName, SnapshotId, VolumeId,
    messages::Want,
    nas::{Authority, Stage, VolumeRecord},
    node::{NodeRecord, Truth},
};
use std::collections::BTreeMap;

/// What a NAS has on the qemu plane.
#[derive(Clone, Debug)]
pub struct NasSite {
    /// The NAS.
    pub host: HostName,
    /// Its ledger.
    pub rows: Vec<VolumeRecord>,
    /// What is in its pools.
    pub pools: BTreeMap<PoolName, Fact<Vec<Home>>>,
    /// Its storage daemons' places.
    pub daemons: Fact<Vec<Server>>,
}

/// What a node has on the qemu plane.
#[derive(Clone, Debug)]
pub struct NodeSite {
    /// The node.
    pub host: HostName,
    /// Its ledger.
    pub rows: Vec<NodeRecord>,
    /// What is in its pool.
    pub pool: Fact<Vec<Home>>,
    /// Its storage daemons' places.
    pub daemons: Fact<Vec<Server>>,
}

/// A directory in a pool: of a volume on a NAS, of a local copy on a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Home {
    /// Its path.
    pub path: String,
    /// Its name.
    pub name: String,
    /// The volume in its mark; none where there is no mark of ours.
    pub mark: Option<VolumeId>,
    /// Length of the volume's file, when there is one.
    pub size: Option<u64>,
    /// Write-backs that are being taken in.
    pub incoming: Vec<SnapshotId>,
    /// Write-backs that are complete and not part of the volume yet.
    pub pending: Vec<SnapshotId>,
    /// Overlays of bring-backs.
    pub overlays: Vec<Epoch>,
}

/// The place of a storage daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// Its directory.
    pub dir: String,
    /// The volume.
    pub volume: VolumeId,
    /// What it is for.
    pub purpose: Purpose,
    /// The mapping it was started for, on a NAS.
    pub epoch: Option<Epoch>,
    /// Its process; none where only the directory with its sockets is left.
    pub pid: Option<u32>,
}

/// What a storage daemon is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A NAS's export to a node.
    Export,
    /// It takes a write-back in, or a new volume's contents.
    Incoming,
    /// It serves a reader.
    Reader,
    /// A guest's device on a node.
    Guest,
    /// A node's way to the NAS for a write-back or a bring-back.
    Relay,
}

impl Server {
    fn thing(&self) -> String {
        format!("storage daemon {}", self.dir)
    }

    fn process(&self) -> Option<String> {
        self.pid.map(|pid| format!("process {pid} (qemu-storage-daemon)"))
    }
}

/// What differs on a NAS.
pub fn examine_nas(site: &NasSite) -> Diagnosis {
    let mut notes = Notes::on(&site.host);
    for (pool, homes) in &site.pools {
        let Some(homes) = notes.see(format!("the pool {pool}"), homes) else { continue };
        for home in homes {
            let known = site.rows.iter().any(|row| row.pool == *pool && row.name.as_str() == home.name);
            unknown(&mut notes, home, known);
        }
    }
    let daemons = notes.see("the storage daemons", &site.daemons);
    for server in daemons.into_iter().flatten() {
        if !site.rows.iter().any(|row| row.id == server.volume) {
            nobodys(&mut notes, server);
        }
    }
    for row in &site.rows {
        let name = nas::full_name(&site.host, row);
        let about = About::Volume(&name);
        if row.plane == Plane::Qemu {
            match site.pools.get(&row.pool) {
                Some(homes) => on_disk(&mut notes, about, row, homes.known().unwrap_or(&Vec::new()), homes.known().is_some()),
                None => {
                    let is = format!("the configuration has no pool {} in [nas.pools]", row.pool);
                    let next = "give the pool its directory again, and restart the daemon; the volume is where it was";
                    notes.differs(about, format!("pool {}", row.pool), is, "the ledger has a volume in it", next);
                }
            }
        }
        if let Some(all) = daemons {
            served(&mut notes, about, row, all);
        }
    }
    notes.all.sort();
    notes.all
}

/// A directory in a pool that no row of the ledger stands for.
fn unknown(notes: &mut Notes<'_>, home: &Home, known: bool) {
    let thing = format!("directory {}", home.path);
    match home.mark {
        _ if known => {}
        Some(volume) => {
            let is = format!("its mark says it is volume {volume}, which the ledger does not know");
            let next = "it may be the only copy of something: look what it is before anything else, as when the ledger was restored \
                        from an older backup";
            notes.differs(About::Stranger, thing, is, "every volume in a pool of ours is in the ledger", next);
        }
        None => {
            notes.note(About::Stranger, thing, "it has no mark of ours, and is left alone");
        }
    }
}

/// A storage daemon of a volume that the ledger does not know.
fn nobodys(notes: &mut Notes<'_>, server: &Server) {
    match server.process() {
        Some(process) => {
            let next = "see what it has open (ls -l /proc/PID/fd) and who is connected, before it is ended";
            let is = "it runs for a volume that the ledger does not know";
            notes.differs(About::Stranger, server.thing(), is, "none", next).held_by([process]);
        }
        None => {
            notes.note(About::Stranger, server.thing(), "its process is gone; its sockets are left, and lead nowhere");
        }
    }
}

fn on_disk(notes: &mut Notes<'_>, about: About<'_>, row: &VolumeRecord, homes: &[Home], seen: bool) {
    let home = homes.iter().find(|home| home.name == row.name.as_str());
    let thing =
        home.map_or_else(|| format!("volume file of {}/{}", row.pool, row.name), |home| format!("{}/disk.raw", home.path));
    if !seen || row.stage != Stage::Ready {
        return;
    }
    let Some(home) = home.filter(|home| home.mark == Some(row.id)) else {
        let is = match home {
            None => "its directory is not in the pool".to_owned(),
            Some(Home { mark: Some(other), .. }) => format!("the directory's mark says that it is volume {other}"),
            Some(_) => "the directory has no mark of ours".to_owned(),
        };
        let next = "find the directory (its file mark names the volume) and put it back while the daemon is stopped; while a node has \
                    the volume, its local copy is the only one";
        notes.differs(about, thing, is, format!("the data of volume {}", row.id), next);
        return;
    };
    let mapping = row.mapping.as_ref();
    let (wanted, here) = (row.size.bytes(), mapping.is_none_or(|m| m.authority == Authority::Nas));
    match home.size {
        None => {
            let next = "nothing of ours removes it without its directory; look for it before anything else";
            notes.differs(about, thing.clone(), "the file is not there", "the volume's data", next);
        }
        Some(size) if size > wanted || (size < wanted && here) => {
            let next = "the daemon makes a shorter one longer when it runs; a longer one is not touched: img-storage resize to that size \
                        makes the two agree";
            notes.differs(about, thing.clone(), format!("{size} bytes long"), format!("{wanted} bytes, by the ledger"), next);
        }
        Some(_) => {}
    }
    let push = mapping.and_then(|m| m.push.as_ref()).map(|p| p.push);
    let accepted = mapping.and_then(|m| m.accepted.as_ref()).map(|a| a.push);
    for (kind, all) in [("incoming", &home.incoming), ("pending", &home.pending)] {
        for id in all.iter().filter(|id| Some(**id) != push && Some(**id) != accepted) {
            let is = format!("a write-back ({kind}) that the ledger does not know of");
            let next = "the daemon discards what is incoming and finishes what is pending when it runs";
            notes.differs(about, format!("{}/{kind}-{}.qcow2", home.path, id.0), is, "none", next);
        }
    }
    for epoch in home.overlays.iter().filter(|epoch| mapping.is_none_or(|m| m.epoch != **epoch)) {
        let next = "the daemon removes it when it runs; not by hand: it may have writes of a bring-back";
        let is = "an overlay of a mapping that is over";
        notes.differs(about, format!("{}/overlay-{epoch}.qcow2", home.path), is, "none", next);
    }
}

/// The storage daemons of a NAS's volume.
fn served(notes: &mut Notes<'_>, about: About<'_>, row: &VolumeRecord, all: &[Server]) {
    let of = |purpose| all.iter().find(move |s| s.volume == row.id && s.purpose == purpose);
    let running = |purpose| of(purpose).filter(|s| s.pid.is_some());
    if let Some(server) = running(Purpose::Reader).filter(|_| !row.lent) {
        let next = "the daemon ends it when it runs";
        notes.differs(about, server.thing(), "it serves a reader", "nobody reads, by the ledger", next).held_by(server.process());
    }
    if row.plane != Plane::Qemu || row.stage != Stage::Ready {
        return;
    }
    let mapping = row.mapping.as_ref();
    let needed = mapping.is_some_and(|m| m.want != Want::Gone && m.authority != Authority::Node);
    match (running(Purpose::Export), mapping) {
        (Some(server), None) => {
            let next = "the daemon ends it when it runs";
            notes
                .differs(about, server.thing(), "it exports the volume", "no export: it is not mapped", next)
                .held_by(server.process());
        }
        (Some(server), Some(m)) if server.epoch.is_some_and(|epoch| epoch != m.epoch) => {
            let next = "the daemon ends it when it runs; who is connected is of an older mapping";
            notes
                .differs(about, server.thing(), "it exports an older mapping", format!("epoch {}, for {}", m.epoch, m.node), next)
                .held_by(server.process());
        }
        (None, Some(m)) if needed => {
            let thing = of(Purpose::Export).map_or_else(|| format!("export of epoch {}", m.epoch), Server::thing);
            let next = "the daemon starts it when it runs; the node connects again by itself, and its guest waits so long";
            notes.differs(about, thing, "no storage daemon runs", format!("it exports the volume to {}", m.node), next);
        }
        _ => {}
    }
    if let Some(server) = running(Purpose::Incoming).filter(|_| mapping.is_none_or(|m| m.push.is_none())) {
        let next = "the daemon ends it when it runs";
        notes
            .differs(about, server.thing(), "it takes a write-back in", "none is under way, by the ledger", next)
            .held_by(server.process());
    }
}

/// What differs on a node.
pub fn examine_node(site: &NodeSite) -> Diagnosis {
    let mut notes = Notes::on(&site.host);
    let homes = notes.see("the pool for local copies", &site.pool);
    let daemons = notes.see("the storage daemons", &site.daemons);
    for home in homes.into_iter().flatten() {
        let known = site.rows.iter().any(|row| row.volume.to_string() == home.name);
        unknown(&mut notes, home, known);
    }
    for server in daemons.into_iter().flatten() {
        if !site.rows.iter().any(|row| row.volume == server.volume) {
            nobodys(&mut notes, server);
        }
    }
    for row in site.rows.iter().filter(|row| row.assign.plane == Plane::Qemu) {
        let name = node::full_name(row);
        let about = About::Volume(&name);
        if let Some(homes) = homes {
            local(&mut notes, about, row, homes);
        }
        if let Some(all) = daemons {
            guest(&mut notes, about, row, all);
        }
    }
    notes.all.sort();
    notes.all
}

fn local(notes: &mut Notes<'_>, about: About<'_>, row: &NodeRecord, homes: &[Home]) {
    let home = homes.iter().find(|home| home.name == row.volume.to_string());
    let thing = home.map_or_else(|| format!("local copy {}", row.volume), |home| format!("{}/local.raw", home.path));
    match (home.and_then(|home| home.size), row.truth) {
        (None, Truth::Local) => {
            let next = "as long as the guest's storage daemon runs it has the file open (ls -l /proc/PID/fd): end nothing, and save it \
                        from there";
            notes.differs(about, thing, "it is not there", "the newest writes of the volume", next);
        }
        (Some(_), _) if row.local.is_none() => {
            let next = "it may be the only copy of something, and is left alone: compare it with the NAS's before anything else";
            notes.differs(about, thing, "a local copy that the ledger does not know", "none", next);
        }
        (Some(size), Truth::Local) if size < row.assign.size.bytes() => {
            let should = format!("{} bytes", row.assign.size.bytes());
            let next = "somebody cut it off; end nothing and save what there is";
            notes.differs(about, thing, format!("{size} bytes long"), should, next);
        }
        _ => {}
    }
}

fn guest(notes: &mut Notes<'_>, about: About<'_>, row: &NodeRecord, all: &[Server]) {
    let of = all.iter().find(|s| s.volume == row.volume && s.purpose == Purpose::Guest);
    let needed = !row.has_ended() && row.assign.want != Want::Gone && (row.truth == Truth::Local || row.assign.export.is_some());
    match of.filter(|s| s.pid.is_some()) {
        None if needed => {
            let thing = of.map_or_else(|| format!("storage daemon of {}", row.volume), Server::thing);
            let next = "the node daemon starts it when it runs; guests connect again, or have to be started again";
            notes.differs(about, thing, "none runs: the guest has no device", "it serves the guest's device", next);
        }
        None => {}
        Some(server) if row.has_ended() => {
            let next = "the daemon ends it when it runs; who is connected is of a mapping that is over";
            notes
                .differs(about, server.thing(), "it runs", "none: the mapping is over", next)
                .held_by(server.process())
                .ask(Ask::Sockets(server.dir.clone()));
        }
        Some(server) if row.assign.want == Want::Gone => {
            let finding = notes.note(about, server.thing(), "the volume is being unmapped, and its device is in use");
            finding.next =
                "end who is named, and the unmap goes on by itself; img-storage unmap --force cuts them off".to_owned();
            finding.ask(Ask::Sockets(server.dir.clone()));
        }
        Some(server) => {
            let is = format!("in use; process {} serves it", server.pid.unwrap_or_default());
            notes.note(about, server.thing(), is).ask(Ask::Sockets(server.dir.clone()));
        }
    }
}
