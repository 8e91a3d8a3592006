//! The kernel plane of a node: devices, sessions, local zvols and overlays, against its ledger.

use super::{
    About, Ask, Diagnosis, Notes,
    shown::{Place, Pool, Zvol, percent},
};
use crate::{
    Epoch, Fact, HostName, Plane, VolumeId,
    messages::Want,
    node::{
        Layer, Lies, NodeRecord, NodeVolume,
        kernel::{self, Table},
    },
    size::human_bytes,
};
use std::collections::BTreeMap;

/// From so much in use an overlay is nearly full, in hundredths.
const NEARLY_FULL: u128 = 80;
/// What the user of the streams needs.
pub const PERMISSIONS: [&str; 12] = [
    "create", "destroy", "hold", "mount", "receive", "release", "rollback", "send", "snapshot", "userprop", "volmode", "snapdev",
];

/// What a node has on the kernel plane.
#[derive(Clone, Debug)]
pub struct Site {
    /// The node.
    pub host: HostName,
    /// Its ledger.
    pub rows: Vec<NodeRecord>,
    /// Where its local copies lie.
    pub place: Place,
    /// The zpools of this host.
    pub zpools: Fact<Vec<Pool>>,
    /// Our device-mapper devices.
    pub devices: Fact<Vec<Device>>,
    /// Our iSCSI sessions.
    pub sessions: Fact<Vec<Session>>,
    /// What was seen of volumes of the ledger that are mapped, or of which there is something.
    pub volumes: BTreeMap<VolumeId, kernel::NodeFacts>,
    /// What the streams' user may do in the place; nothing where that is root.
    pub allowed: Fact<Option<Vec<String>>>,
    /// The streams' user.
    pub user: String,
    /// `iscsid` runs, or starts when it is asked.
    pub iscsid: Fact<bool>,
    /// This machine's iSCSI name.
    pub initiator: Fact<Option<String>>,
}

/// A device-mapper device of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// The volume in its UUID.
    pub volume: Option<VolumeId>,
    /// The epoch in its UUID.
    pub epoch: Option<Epoch>,
    /// Its table, as `dmsetup table` prints it.
    pub table: String,
    /// So many have it open.
    pub open: u32,
    /// A table is loaded besides, which the next `dmsetup resume` puts in.
    pub pending: bool,
    /// Sectors of its overlay that are in use, of how many.
    pub overlay: Option<(u64, u64)>,
}

/// An iSCSI session with a target of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// Its target.
    pub target: String,
    /// The volume in the target's name.
    pub volume: Option<VolumeId>,
    /// The epoch in it.
    pub epoch: Option<Epoch>,
    /// The kernel's word for its state, when it is not logged in.
    pub down: Option<String>,
    /// Where it was told to connect to.
    pub portal: Option<String>,
    /// Its disk's node.
    pub disk: Option<String>,
    /// The kernel's word for the disk's state.
    pub disk_state: Option<String>,
}

/// The volume's whole name.
pub(super) fn full_name(row: &NodeRecord) -> String {
    format!("{}:{}", row.assign.nas, row.assign.name)
}

fn device_of(name: &str) -> Ask {
    Ask::Device(format!("/dev/mapper/{name}"))
}

fn zvol_of(zvol: &Zvol) -> Ask {
    Ask::Device(format!("/dev/zvol/{}", zvol.name))
}

/// A table, in words.
fn in_words(table: Table) -> &'static str {
    match table {
        Table::Linear(Layer::Remote) => "linear over the NAS's disk",
        Table::Linear(Layer::Local) => "linear over the local zvol",
        Table::Overlay(Layer::Remote) => "snapshot: the overlay over the NAS's disk",
        Table::Overlay(Layer::Local) => "snapshot: the overlay over the local zvol",
        Table::Merge(Layer::Remote) => "snapshot-merge: the overlay into the NAS's disk",
        Table::Merge(Layer::Local) => "snapshot-merge: the overlay into the local zvol",
    }
}

/// What differs.
pub fn examine(site: &Site) -> Diagnosis {
    let mut notes = Notes::on(&site.host);
    notes.pools(&site.zpools, &[&site.place]);
    host(&mut notes, site);
    let known = |volume: Option<VolumeId>| volume.is_some_and(|v| site.rows.iter().any(|row| row.volume == v));
    if let Some(zvols) = notes.see(format!("the zvols in {}", site.place.dataset), &site.place.zvols) {
        for zvol in zvols.iter().filter(|zvol| zvol.mark.is_some()) {
            stranger(&mut notes, site, zvol);
        }
    }
    if let Some(devices) = notes.see("the device-mapper devices (dmsetup)", &site.devices) {
        for device in devices.iter().filter(|device| !known(device.volume)) {
            let is = format!("the ledger does not know its volume; table: {}", device.table);
            let next = "see who has it open and what it lies on, before it is removed: an overlay under it may have writes that are \
                        nowhere else";
            notes
                .differs(About::Stranger, format!("device {}", device.name), is, "every device of ours is in the ledger", next)
                .ask(device_of(&device.name));
        }
    }
    if let Some(sessions) = notes.see("the iSCSI sessions", &site.sessions) {
        for session in sessions {
            examine_session(&mut notes, site, session);
        }
    }
    for row in site.rows.iter().filter(|row| row.assign.plane == Plane::Kernel) {
        if let Some(facts) = site.volumes.get(&row.volume) {
            Volume { site, row, facts, name: full_name(row), label: NodeVolume::from(&row.assign).label }.examine(&mut notes);
        }
    }
    notes.all.sort();
    notes.all
}

fn host(notes: &mut Notes<'_>, site: &Site) {
    if let Some(Some(allowed)) = notes.see(format!("what {} may do (zfs allow)", site.user), &site.allowed) {
        let lacking: Vec<&str> = PERMISSIONS.into_iter().filter(|p| !allowed.iter().any(|a| a == p)).collect();
        if !lacking.is_empty() {
            let (user, dataset) = (&site.user, &site.place.dataset);
            let is = format!("{user} may not {}", lacking.join(", "));
            let next = format!("zfs allow -u {user} {} {dataset}", lacking.join(","));
            notes.differs(About::Host, format!("dataset {dataset}"), is, "it may, for the NAS's streams run as it", next);
        }
    }
    if let Some(false) = notes.see("iscsid", &site.iscsid) {
        let next = "systemctl enable --now iscsid (open-iscsi); sessions that lost their NAS do not come back without it";
        notes.differs(About::Host, "iscsid", "it does not run", "it runs, or is started when it is asked", next);
    }
    match notes.see("this machine's iSCSI name", &site.initiator) {
        Some(None) => {
            let next = "install open-iscsi, or make one with iscsi-iname in /etc/iscsi/initiatorname.iscsi";
            let thing = "/etc/iscsi/initiatorname.iscsi";
            notes.differs(About::Host, thing, "this machine has no iSCSI name", "one that no other machine has", next);
        }
        // What installers and images leave behind, before a machine got its own.
        Some(Some(name))
            if name.ends_with(":01:default") || name.ends_with("01.com.example:node") || !name.starts_with("iqn.") =>
        {
            let next = "iscsi-iname makes one; then restart iscsid and the node daemon";
            notes.differs(About::Host, format!("initiator {name}"), "an example's name", "one that no other machine has", next);
        }
        _ => {}
    }
}

/// Zvols with our mark that the ledger does not know as a local copy or overlay.
fn stranger(notes: &mut Notes<'_>, site: &Site, zvol: &Zvol) {
    let row = site.rows.iter().find(|row| zvol.mark.as_deref() == Some(&row.volume.to_string()));
    let label = row.map(|row| NodeVolume::from(&row.assign).label);
    let leaf = zvol.name.leaf();
    // What a row of the ledger stands for is looked at with the row.
    if label.is_some_and(|label| leaf == label || leaf.strip_suffix("-overlay") == Some(&label)) {
        return;
    }
    let what = if zvol.overlay.is_some() { "an overlay" } else { "a local copy" };
    let is = format!(
        "{what} that the ledger does not know (volume {}); {} in use, {} snapshots",
        zvol.mark.as_deref().unwrap_or_default(),
        human_bytes(zvol.used),
        zvol.snapshots.len()
    );
    let next = "it may be the only copy of something, and is left alone. Compare its newest IMG-STORAGE snapshot's guid (zfs get guid) \
                with the NAS's; only what is there, with nothing written since, is superfluous";
    notes
        .differs(About::Stranger, format!("zvol {}", zvol.name), is, "every zvol with our mark is in the ledger", next)
        .ask(zvol_of(zvol));
}

fn examine_session(notes: &mut Notes<'_>, site: &Site, session: &Session) {
    let row = session.volume.and_then(|volume| site.rows.iter().find(|row| row.volume == volume));
    let name = row.map(full_name);
    let about = name.as_deref().map_or(About::Stranger, About::Volume);
    let thing = format!("iSCSI session with {}", session.target);
    let disk = session.disk.as_ref().map(|disk| Ask::Device(disk.clone()));
    let portal = session.portal.as_deref().unwrap_or("its NAS");
    let log_out =
        format!("the daemon ends it when it runs; by hand, when nobody has its disk: iscsiadm -m node -T {} -u", session.target);
    let needless = match row {
        None => Some("none: the ledger does not know its volume".to_owned()),
        Some(row) if session.epoch != Some(row.assign.epoch) => Some(format!("only that of epoch {}", row.assign.epoch)),
        Some(row) if row.has_ended() => Some("none: the mapping is over".to_owned()),
        Some(row) if matches!(row.lies, Lies::Local | Lies::MergingLocal) => {
            Some("none: the guest works on the local copy".to_owned())
        }
        Some(_) => None,
    };
    if let Some(should) = needless {
        let is =
            session.down.as_ref().map_or_else(|| "logged in".to_owned(), |state| format!("it is {state}, and tries for ever"));
        notes.differs(about, thing, is, should, log_out).ask = disk;
    } else if let Some(state) = &session.down {
        let is = format!("it is {state} (iscsiadm: REOPEN): {portal} does not answer, or lets us in no more; the guest waits");
        let next = format!("see that {portal} is reached, and that the export is there: img-storage doctor on the NAS");
        notes.differs(about, thing, is, "logged in", next).ask = disk;
    } else if let Some(state) = session.disk_state.as_ref().filter(|state| *state != "running") {
        let next = "dmesg says what the kernel has against it; it comes back with its session";
        notes.differs(about, thing, format!("its disk is {state}"), "running", next).ask = disk;
    }
}

/// One volume of the ledger.
struct Volume<'a> {
    site: &'a Site,
    row: &'a NodeRecord,
    facts: &'a kernel::NodeFacts,
    name: String,
    label: String,
}

impl Volume<'_> {
    fn about(&self) -> About<'_> {
        About::Volume(&self.name)
    }

    /// A guest is to have its device now.
    fn is_needed(&self) -> bool {
        !self.row.has_ended()
            && self.row.assign.want != Want::Gone
            && (self.row.lies != Lies::Remote || self.row.assign.export.is_some())
    }

    fn raw(&self) -> Option<&Device> {
        self.site.devices.known().and_then(|all| all.iter().find(|d| d.name == self.label))
    }

    fn examine(&self, notes: &mut Notes<'_>) {
        let of = |what: &str| format!("{what} of {}", self.name);
        if let Some(device) = notes.see(of("the device"), &self.facts.device) {
            match device {
                Some(device) => self.device(notes, device),
                None if self.is_needed() => {
                    let is = "it is not there: a guest that had it open has none any more";
                    let next = "the node daemon puts it up again from its ledger when it runs; never by hand: an overlay may have \
                                writes that the bare disk lacks";
                    notes.differs(self.about(), self.thing(), is, in_words(self.row.lies.table()), next);
                }
                None => {}
            }
        }
        if let Some(None) = notes.see(of("the iSCSI session"), &self.facts.session) {
            let table = self.row.lies.table();
            if self.is_needed()
                && matches!(table, Table::Linear(Layer::Remote) | Table::Overlay(_) | Table::Merge(Layer::Remote))
                && table != Table::Overlay(Layer::Local)
            {
                let next = "the node daemon logs in when it runs; if it does run, its log says why it cannot: see img-storage doctor \
                            on the NAS for the export";
                let target = self.row.assign.export.as_ref().map_or("the NAS", |export| export.export.as_str());
                let thing = format!("iSCSI session with {target}");
                notes.differs(self.about(), thing, "there is none", "logged in: the guest's writes go there", next);
            }
        }
        self.local(notes);
        self.overlay(notes);
    }

    fn thing(&self) -> String {
        format!("device /dev/mapper/{}", self.label)
    }

    fn device(&self, notes: &mut Notes<'_>, device: &kernel::Device) {
        let (row, about, thing) = (self.row, self.about(), self.thing());
        let ask = device_of(&self.label);
        let (raw, open) = self.raw().map_or(("", 0), |d| (d.table.as_str(), d.open));
        let table = |words: &str| if raw.is_empty() { words.to_owned() } else { format!("{words}; dmsetup table: {raw}") };
        if row.has_ended() && device.epoch <= row.assign.epoch {
            let next = "the daemon removes it when it runs and nobody has it open: end who is named, then it goes by itself";
            notes.differs(about, thing, table("it is there"), "none: the mapping is over", next).ask(ask);
            return;
        }
        if row.assign.want == Want::Gone && open > 0 {
            let next = "end who is named, and the unmap goes on by itself; img-storage unmap --force cuts them off";
            let is = format!("the volume is being unmapped, and {open} have it open");
            notes.differs(about, thing, is, "closed", next).ask(ask);
            return;
        }
        if device.epoch > row.assign.epoch {
            let next = "this host's ledger is older than the device: is it from a backup? The guest is current; end nothing, and remove \
                        nothing, until the ledger that was last in use is back";
            let should = format!("epoch {}", row.assign.epoch);
            notes.differs(about, thing, table(&format!("it is of epoch {}", device.epoch)), should, next).ask(ask);
            return;
        }
        if device.epoch != row.assign.epoch {
            let should = format!("epoch {}", row.assign.epoch);
            let next = "end who is named: they work on a mapping that is over; the daemon then makes the device anew";
            notes.differs(about, thing, table(&format!("it is of epoch {}", device.epoch)), should, next).ask(ask);
            return;
        }
        let wanted = row.lies.table();
        match &device.table {
            Err(what) => {
                let next =
                    "somebody loaded it by hand; the daemon changes nothing here. Do not remove it while an overlay has writes";
                let is = format!("a table that is none of ours: {what}");
                notes.differs(about, thing.clone(), is, in_words(wanted), next).ask(ask.clone());
            }
            // On its way it is the one or the other.
            Ok(Table::Linear(_)) if row.lies == Lies::Moving => {}
            Ok(is) if *is != wanted => {
                let next =
                    "when the daemon runs it goes on from what the device is, or says why not; do not load a table by hand";
                notes.differs(about, thing.clone(), table(in_words(*is)), in_words(wanted), next).ask(ask.clone());
            }
            Ok(_) => {}
        }
        if device.suspended {
            let next = "the daemon lets it go on when it runs; by hand: dmsetup clear, then dmsetup resume";
            notes.differs(about, thing.clone(), "suspended: everybody on it waits", "running", next).ask(ask.clone());
        }
        // One that is suspended is about to have it, or was left so: that was said.
        if self.raw().is_some_and(|d| d.pending) && !device.suspended {
            let next = format!(
                "a change of tables was cut off, or is under way: the daemon drops it before the next one. It holds what it names open until then; if it stays: dmsetup clear {}. Never dmsetup resume, which puts it in",
                self.label
            );
            notes.differs(about, thing.clone(), "a table is loaded that is not in use", "its own table alone", next);
        }
        let fill = self.raw().and_then(|d| d.overlay);
        if let Some(why) = &device.broken {
            let next = "its writes cannot be merged any more. The device stays as it is: save what can be read from it before anything else";
            notes.differs(about, thing.clone(), format!("its overlay takes no more writes: {why}"), "an overlay with room", next);
        } else if let Some((used, total)) = fill.filter(|(used, total)| percent(*used, *total) >= NEARLY_FULL) {
            let next = format!(
                "once it is full it is invalid for good: give it room at once, zfs set volsize=… {0}-overlay (dmsetup status \
                 shows when it has it), and see why it is not merged",
                self.facts.dataset
            );
            let is = format!("its overlay is {}% full", percent(used, total));
            notes.differs(about, thing.clone(), is, "less than 80%", next);
        }
        if open > 0 {
            notes.note(about, thing, table("in use")).ask(ask);
        }
    }

    fn local(&self, notes: &mut Notes<'_>) {
        let row = self.row;
        let Some(local) = notes.see(format!("the local copy of {}", self.name), &self.facts.local) else { return };
        let thing = format!("zvol {}", self.facts.dataset);
        let about = self.about();
        let zvol = self.site.place.zvols.known().and_then(|all| all.iter().find(|z| z.name.as_str() == self.facts.dataset));
        match local {
            None if matches!(row.lies, Lies::Moving | Lies::MergingLocal | Lies::Local | Lies::OverLocal) => {
                let next = "zpool status and zpool history tell what became of it; as long as the device is there its guest may still \
                            read it: end nothing";
                notes.differs(about, thing, "it is not there", "the newest writes of the volume", next);
            }
            None => {}
            Some(local) if row.local.is_none() => {
                let is = format!(
                    "a local copy that the ledger does not know: {} snapshots, {} written since",
                    local.snapshots.len(),
                    human_bytes(local.written)
                );
                let next = "it may be the only copy of something, and is left alone. Compare its newest IMG-STORAGE snapshot's guid \
                            (zfs get guid) with the NAS's; only what is there, with nothing written since, is superfluous";
                let finding = notes.differs(about, thing, is, "none of which the ledger does not know", next);
                finding.ask(Ask::Device(format!("/dev/zvol/{}", self.facts.dataset)));
            }
            Some(local) => {
                let copying = matches!(row.lies, Lies::Remote | Lies::OverRemote) && row.assign.want == Want::Local;
                if local.resume.is_some() && !copying {
                    let next = format!(
                        "nothing is lost; before the next mapping it goes by itself, by hand: zfs receive -A {}",
                        self.facts.dataset
                    );
                    notes.differs(about, thing.clone(), "a receive was cut off half way", "none is under way", next);
                }
                let newest = local.snapshots.last().copied();
                let warm = row.kept().unwrap_or_default();
                let unproven = warm.home.is_none() || warm.home != newest;
                if row.has_ended() && (warm.stays.is_some() || local.written > 0 || unproven) {
                    let is = format!(
                        "a local copy of a mapping that is over, {} written since its newest snapshot{}",
                        human_bytes(local.written),
                        warm.stays.map_or_else(String::new, |why| format!("; {why}"))
                    );
                    let next = "it may be the only copy: compare its newest IMG-STORAGE snapshot (zfs get guid) with those of the volume \
                                on its NAS before anything is done with it, and save what is in it if they differ";
                    notes.differs(about, thing, is, "what the NAS is known to have", next);
                } else if row.has_ended() {
                    let used = zvol.map_or(0, |z| z.used);
                    notes.note(
                        about,
                        thing,
                        format!("a warm copy, {}: the next start here moves the difference", human_bytes(used)),
                    );
                }
            }
        }
        if let Some(zvol) = zvol {
            notes.held_by_others(about, zvol);
        }
    }

    fn overlay(&self, notes: &mut Notes<'_>) {
        let row = self.row;
        let Some(overlay) = notes.see(format!("the overlay of {}", self.name), &self.facts.overlay) else { return };
        let thing = format!("zvol {}-overlay", self.facts.dataset);
        let ask = Ask::Device(format!("/dev/zvol/{}-overlay", self.facts.dataset));
        let settled = matches!(row.lies, Lies::Remote | Lies::Moving | Lies::Local);
        match overlay {
            None if !settled => {
                let next = "zpool history tells what became of it; as long as the device is there its guest may still read it: end nothing";
                notes.differs(self.about(), thing, "it is not there", "the newest writes of the volume", next);
            }
            Some(overlay) if overlay.epoch != row.assign.epoch || row.has_ended() => {
                let is = format!("an overlay of epoch {} was left over", overlay.epoch);
                let next = "the daemon removes it when the ledger says that it was merged; by hand only after a look at what it has: \
                            writes in it are nowhere else";
                notes.differs(self.about(), thing, is, "none", next).ask(ask);
            }
            Some(_) if row.lies == Lies::Local && row.assign.want == Want::Local => {
                let next = "it was merged; the daemon removes it when it runs";
                notes.differs(self.about(), thing, "an overlay was left over", "none", next).ask(ask);
            }
            _ => {}
        }
    }
}
