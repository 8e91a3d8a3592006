//! The kernel plane of a NAS: zvols, exports, snapshots, pools and keys, against its ledger.

use super::{
    About, Ask, Diagnosis, Notes,
    shown::{Place, Pool, Zvol},
};
use crate::{
    Dataset, Epoch, Fact, HostName, Plane, PoolName, VolumeId,
    messages::Want,
    nas::{Authority, Mapping, Stage, VolumeRecord, kernel::iqn},
    size::human_bytes,
};
use std::collections::BTreeMap;

/// Zvols have whole blocks of this many bytes.
const BLOCK: u64 = 16 << 10;
/// So many of an unmapped volume's snapshots are kept by the daemon.
const KEPT: usize = 3;

/// What a NAS has on the kernel plane.
#[derive(Clone, Debug)]
pub struct Site {
    /// The NAS.
    pub host: HostName,
    /// Its ledger.
    pub rows: Vec<VolumeRecord>,
    /// Its pools.
    pub pools: BTreeMap<PoolName, Place>,
    /// The zpools of this host.
    pub zpools: Fact<Vec<Pool>>,
    /// Our exports; nothing where the kernel's target is not loaded.
    pub exports: Fact<Option<Vec<Export>>>,
    /// Our targets that targetcli has saved.
    pub saved: Fact<Vec<String>>,
    /// The key and the known hosts that streams need, each with what is wrong with it.
    pub ssh: Vec<(String, Fact<Option<String>>)>,
}

/// An export of ours, whole or what is left of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// Its target, or its backstore where only that is left.
    pub name: String,
    /// The volume in its name.
    pub volume: Option<VolumeId>,
    /// The epoch in its name.
    pub epoch: Option<Epoch>,
    /// Every piece is there and it is open for logins.
    pub complete: bool,
    /// Initiators without an ACL are let in.
    pub open_to_all: bool,
    /// Who is let in.
    pub admits: Vec<Admitted>,
    /// Who is logged in without an ACL.
    pub dynamic: Vec<String>,
}

/// An initiator that is let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admitted {
    /// Its name.
    pub initiator: String,
    /// Where its session comes from, when it has one.
    pub session: Option<String>,
}

impl Export {
    fn sessions(&self) -> impl Iterator<Item = String> + '_ {
        let admitted = self.admits.iter().filter_map(|a| Some((a.initiator.as_str(), a.session.as_deref()?)));
        let named = admitted.map(|(initiator, from)| format!("iSCSI session of {initiator} from {from}"));
        named.chain(self.dynamic.iter().map(|initiator| format!("iSCSI session of {initiator}, which has no ACL")))
    }
}

/// The volume's whole name.
pub(super) fn full_name(host: &HostName, row: &VolumeRecord) -> String {
    format!("{host}:{}/{}", row.pool, row.name)
}

fn device(zvol: &Dataset) -> Ask {
    Ask::Device(format!("/dev/zvol/{zvol}"))
}

/// What differs.
pub fn examine(site: &Site) -> Diagnosis {
    let mut notes = Notes::on(&site.host);
    let places: Vec<&Place> = site.pools.values().collect();
    notes.pools(&site.zpools, &places);
    for (file, wrong) in &site.ssh {
        if let Some(Some(why)) = notes.see(file.clone(), wrong) {
            let next = "make it as docs/kernel-plane.md says; until then nothing is copied to a node or brought home";
            notes.differs(About::Host, file.clone(), why.clone(), "streams of snapshots go by ssh with it", next);
        }
    }
    let exports = notes.see("the exports (LIO)", &site.exports).cloned();
    if let Some(None) = exports {
        let next =
            "modprobe -a target_core_mod iscsi_target_mod, and mount configfs at /sys/kernel/config; then start the daemon";
        notes.differs(About::Host, "the kernel's iSCSI target", "it is not loaded", "it is there for the exports", next);
    }
    let exports = exports.map(Option::unwrap_or_default);
    for (pool, place) in &site.pools {
        let zvols = notes.see(format!("the zvols in {}", place.dataset), &place.zvols);
        if let Some(zvols) = zvols {
            strangers(&mut notes, site, pool, zvols);
        }
    }
    for row in site.rows.iter().filter(|row| row.plane == Plane::Kernel) {
        Volume::of(site, row, exports.as_deref()).examine(&mut notes);
    }
    let exports = exports.unwrap_or_default();
    unknown_exports(&mut notes, site, &exports);
    twins(&mut notes, site, &exports);
    if let Some(saved) = notes.see("what targetcli saved", &site.saved) {
        for target in saved {
            let next = "take it out: targetcli saveconfig when no export of ours is there, or edit saveconfig.json; and \
                        targetcli set global auto_save_on_exit=false";
            let is = "targetcli saved it: it comes back at the next boot as it was, for whoever had it then";
            let row = site.rows.iter().find(|row| target.contains(&row.id.0.simple().to_string()));
            let name = row.map(|row| full_name(&site.host, row));
            let about = name.as_deref().map_or(About::Stranger, About::Volume);
            notes.differs(about, format!("target {target}"), is, "only the NAS daemon makes targets of ours", next);
        }
    }
    notes.all.sort();
    notes.all
}

/// Zvols with our mark that the ledger does not know.
fn strangers(notes: &mut Notes<'_>, site: &Site, pool: &PoolName, zvols: &[Zvol]) {
    for zvol in zvols {
        let Some(mark) = &zvol.mark else {
            if zvol.snapshots.iter().any(|s| s.ours && !s.holds.is_empty()) {
                let next =
                    "find out what it is: received by hand, or a volume whose mark was taken away; nothing of it is destroyed";
                let is = "snapshots of ours are held in a zvol without our mark";
                notes.differs(About::Stranger, format!("zvol {}", zvol.name), is, "a mark, or no holds of ours", next);
            }
            continue;
        };
        let known = site.rows.iter().any(|row| row.pool == *pool && row.name.as_str() == zvol.name.leaf());
        if !known {
            let is = format!(
                "its mark says it is volume {mark}, which the ledger does not know; {} in use, {} snapshots",
                human_bytes(zvol.used),
                zvol.snapshots.len()
            );
            let next = format!(
                "it may be the only copy of something: look what it is before anything else; if the ledger was restored from an older \
                 backup, `img-storage create {pool}/NEW --from /dev/zvol/{}` takes its contents in as a new volume",
                zvol.name
            );
            notes
                .differs(About::Stranger, format!("zvol {}", zvol.name), is, "every zvol with our mark is in the ledger", next)
                .ask(device(&zvol.name));
        }
    }
}

/// Exports of volumes that the ledger does not know. Those of another NAS on this machine have its name.
fn unknown_exports(notes: &mut Notes<'_>, site: &Site, exports: &[Export]) {
    for export in exports {
        let known = export.volume.is_some_and(|volume| site.rows.iter().any(|row| row.id == volume));
        let is_target = export.name.starts_with("iqn.");
        let mine =
            export.volume.zip(export.epoch).is_none_or(|(v, e)| !is_target || export.name == iqn(site.host.as_str(), v, e));
        if !known && mine {
            let next = "see who is logged in and what they have; when it is nobody's, take it away with targetcli, and see that it \
                        is not saved there";
            notes
                .differs(About::Stranger, format!("export {}", export.name), "the ledger has no such volume", "no export", next)
                .held_by(export.sessions());
        }
    }
}

/// Two nodes that go by one initiator's name: the export of the one lets the other in.
fn twins(notes: &mut Notes<'_>, site: &Site, exports: &[Export]) {
    let mut nodes: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for export in exports {
        let mapping = site.rows.iter().find(|row| Some(row.id) == export.volume).and_then(|row| row.mapping.as_ref());
        if let (Some(mapping), [one]) = (mapping.filter(|m| Some(m.epoch) == export.epoch), export.admits.as_slice()) {
            nodes.entry(&one.initiator).or_default().push(mapping.node.as_str());
        }
    }
    for (initiator, mut nodes) in nodes {
        nodes.sort_unstable();
        nodes.dedup();
        if nodes.len() > 1 {
            let is = format!("{} have the same InitiatorName", nodes.join(" and "));
            let next = "machines that were cloned have it; give each its own in /etc/iscsi/initiatorname.iscsi (iscsi-iname makes \
                        one), unmap what it has, and restart iscsid and the node daemon there";
            notes.differs(About::Host, format!("initiator {initiator}"), is, "every node has one of its own", next);
        }
    }
}

/// One volume of the ledger.
struct Volume<'a> {
    row: &'a VolumeRecord,
    name: String,
    nas: &'a HostName,
    place: Option<&'a Place>,
    exports: Option<Vec<&'a Export>>,
}

impl<'a> Volume<'a> {
    fn of(site: &'a Site, row: &'a VolumeRecord, exports: Option<&'a [Export]>) -> Self {
        Volume {
            row,
            name: full_name(&site.host, row),
            nas: &site.host,
            place: site.pools.get(&row.pool),
            exports: exports.map(|all| all.iter().filter(|e| e.volume == Some(row.id)).collect()),
        }
    }

    fn about(&self) -> About<'_> {
        About::Volume(&self.name)
    }

    fn examine(&self, notes: &mut Notes<'_>) {
        let row = self.row;
        let Some(place) = self.place else {
            let is = format!("the configuration has no pool {} in [nas.zfs]", row.pool);
            let next = "give the pool its dataset again, and restart the daemon; the volume is where it was";
            notes.differs(self.about(), format!("pool {}", row.pool), is, "the ledger has a volume in it", next);
            return;
        };
        let dataset = place.dataset.child(row.name.as_str()).ok();
        if let (Fact::Known(zvols), Some(dataset)) = (&place.zvols, &dataset) {
            match zvols.iter().find(|zvol| zvol.name == *dataset) {
                None if row.stage == Stage::Ready => {
                    let is = "there is no such zvol";
                    let next = "zfs list -t all and zpool history tell what became of it: renamed, destroyed, or a pool that is not \
                                whole; while a node has the volume its local copy is the only one: leave it";
                    notes.differs(self.about(), format!("zvol {dataset}"), is, "the volume's data", next);
                }
                None => {}
                Some(zvol) if zvol.mark.as_deref() != Some(&row.id.to_string()) => {
                    let is = zvol.mark.as_ref().map_or_else(
                        || "it has no mark of ours".to_owned(),
                        |mark| format!("its mark says that it is volume {mark}"),
                    );
                    let next = "somebody made or renamed it by hand; it is left alone. Find the volume's own zvol in zfs list";
                    notes
                        .differs(self.about(), format!("zvol {dataset}"), is, format!("the mark of volume {}", row.id), next)
                        .ask(device(dataset));
                }
                Some(zvol) => self.zvol(notes, zvol),
            }
        }
        if let (Some(exports), Some(dataset)) = (&self.exports, &dataset) {
            self.exports(notes, exports, dataset);
        }
    }

    fn zvol(&self, notes: &mut Notes<'_>, zvol: &Zvol) {
        let (row, about, thing) = (self.row, self.about(), format!("zvol {}", zvol.name));
        let mapping = row.mapping.as_ref();
        let here = mapping.is_none_or(|m| m.authority == Authority::Nas);
        let (is, wanted) = (zvol.size, row.size.bytes());
        if row.stage == Stage::Ready && (is >= wanted + BLOCK || (is < wanted && here)) {
            let next = if is < wanted {
                "the daemon makes it longer when it runs; look at its log for why it did not"
            } else {
                "somebody made it longer by hand; img-storage resize to that size makes the two agree"
            };
            let (is, wanted) = (format!("{is} bytes long"), format!("{wanted} bytes, by the ledger"));
            notes.differs(about, thing.clone(), is, wanted, next);
        }
        notes.held_by_others(about, zvol);
        if let Some(m) = mapping {
            self.while_mapped(notes, zvol, m, &thing);
        }
        if let Some(foreign) = zvol.foreign() {
            let snapshot = format!("snapshot {}@{foreign}", zvol.name);
            if here {
                notes.note(about, snapshot, "it is somebody else's, and newer than ours; it would be in the way of a write-back");
            } else {
                let next = format!(
                    "nothing can be received over it: zfs destroy {}@{foreign}, after a look at whose job made it; keep such jobs \
                     away from this dataset",
                    zvol.name
                );
                let is = "it is somebody else's, and newer than ours";
                notes.differs(about, snapshot, is, "ours is the newest while a node has the volume", next);
            }
        }
        if zvol.resume {
            match mapping.and_then(|m| m.push.as_ref()) {
                Some(push) => {
                    notes.note(about, thing, format!("a write-back ({}) is half received; it goes on where it was", push.push));
                }
                None => {
                    let next = format!("the daemon gives it up by itself when it runs; by hand: zfs receive -A {}", zvol.name);
                    notes.differs(about, thing, "a receive was cut off half way", "none is under way, by the ledger", next);
                }
            }
        } else if mapping.is_none() && zvol.snapshots.iter().filter(|s| s.ours).count() > KEPT {
            let is = format!("{} snapshots of ours; the daemon keeps {KEPT}", zvol.snapshots.iter().filter(|s| s.ours).count());
            notes.note(about, thing, is);
        }
    }

    fn while_mapped(&self, notes: &mut Notes<'_>, zvol: &Zvol, m: &Mapping, thing: &str) {
        let has = |id: crate::SnapshotId| zvol.snapshots.iter().any(|s| s.name == id.to_string());
        let taken_over = m.authority == Authority::Node && (m.accepted.is_some() || m.copying.base.is_some_and(has));
        if taken_over && zvol.written > 0 && !zvol.resume {
            let next = format!(
                "nothing is received over it, so nothing comes home. First run doctor on {}: if it does not have \
                 the mapping as it is here, this ledger may be an old one, and these the newest writes. Otherwise find who wrote, save what they \
                 need, and go back to the newest of ours, which forgets those writes: zfs rollback {}@IMG-STORAGE-…",
                m.node, zvol.name
            );
            notes
                .differs(
                    self.about(),
                    thing,
                    format!("{} were written to it while {} has the volume", human_bytes(zvol.written), m.node),
                    "nobody writes to it: the newest writes are on the node",
                    next,
                )
                .ask(device(&zvol.name));
        }
        for (id, what) in [
            (m.accepted.as_ref().map(|a| a.push), "the newest that came home"),
            (
                m.copying.base.filter(|_| m.authority == Authority::Node && m.accepted.is_none()),
                "the last before the node took over",
            ),
        ] {
            let Some(id) = id.filter(|id| !has(*id)) else { continue };
            // A base is written down a moment before it is taken.
            if m.accepted.is_none() && !zvol.snapshots.iter().any(|s| s.ours) {
                continue;
            }
            let next = "somebody destroyed or renamed it (zpool history). The local copy on the node is kept; when nothing is left \
                        in common, only a full copy can bring it home";
            let is = "it is not there";
            notes.differs(self.about(), format!("snapshot {}@{id}", zvol.name), is, what, next);
        }
    }

    fn exports(&self, notes: &mut Notes<'_>, exports: &[&Export], dataset: &Dataset) {
        let mapping = self.row.mapping.as_ref();
        for export in exports {
            let thing = format!("export {}", export.name);
            let about = self.about();
            let Some(m) = mapping else {
                let next = "the daemon takes it away when it runs; a guest that is still logged in loses its disk then";
                notes.differs(about, thing, "it is there", "none: the volume is not mapped", next).held_by(export.sessions());
                continue;
            };
            if export.epoch != Some(m.epoch) {
                let should = format!("only that of epoch {}, for {}", m.epoch, m.node);
                let next = "the daemon takes it away when it runs; who is logged in is of an older mapping and must stop";
                notes
                    .differs(about, thing, "it is of an older mapping", should, next)
                    .held_by(export.sessions())
                    .ask(device(dataset));
                continue;
            }
            let settled = m.authority == Authority::Node && m.accepted.is_some() && !m.copying.back;
            if settled {
                let next = "the daemon takes it away when it runs";
                let should = format!("none: {} works on its local copy", m.node);
                notes.differs(about, thing, "it is there", should, next).held_by(export.sessions());
            } else if !export.complete {
                let next = "the daemon completes it when it runs; its log says what is in the way";
                notes
                    .differs(about, thing, "it is half-made: no node can log in", "complete", next)
                    .held_by(export.sessions())
                    .ask(device(dataset));
            } else if export.open_to_all || export.admits.len() != 1 || !export.dynamic.is_empty() {
                let admitted: Vec<&str> = export.admits.iter().map(|a| a.initiator.as_str()).collect();
                let open = if export.open_to_all { "everybody, " } else { "" };
                let is =
                    format!("it lets in {open}{}", if admitted.is_empty() { "nobody".to_owned() } else { admitted.join(", ") });
                let next = "somebody changed it by hand; unmap, or restart the daemon, which makes it anew";
                notes.differs(about, thing, is, format!("{} alone", m.node), next).held_by(export.sessions());
            }
        }
        let Some(m) = mapping else { return };
        let needed = matches!(m.authority, Authority::Nas | Authority::MaybeNode | Authority::MaybeNas)
            && m.want != Want::Gone
            && self.row.stage == Stage::Ready;
        if needed && !exports.iter().any(|e| e.epoch == Some(m.epoch)) {
            let target = iqn(self.nas.as_str(), self.row.id, m.epoch);
            let next = "the daemon makes it when it runs; if it does run, its log says what is in the way: who has the zvol open is \
                        named here";
            notes
                .differs(self.about(), format!("export {target}"), "it is not there", format!("{} works on it", m.node), next)
                .ask(device(dataset));
        }
    }
}
