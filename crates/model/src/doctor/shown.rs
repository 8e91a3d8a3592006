//! What doctor sees of ZFS, on a NAS and on a node.

use super::{About, Notes};
use crate::{Dataset, Epoch, Fact, size::human_bytes};

/// A zvol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zvol {
    /// Its name.
    pub name: Dataset,
    /// The volume that its mark names, as it stands there; none of a zvol that is nobody's of us.
    pub mark: Option<String>,
    /// The epoch in the mark of an overlay.
    pub overlay: Option<Epoch>,
    /// Bytes that a guest sees.
    pub size: u64,
    /// Bytes it takes.
    pub used: u64,
    /// Bytes written since the newest of our snapshots; everything without one.
    pub written: u64,
    /// Its snapshots, oldest first.
    pub snapshots: Vec<Snapshot>,
    /// A receive was cut off in it.
    pub resume: bool,
}

/// A snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// What is behind the `@`.
    pub name: String,
    /// Its name is one of ours.
    pub ours: bool,
    /// The tags of its holds; of one that only has ours they are not looked for, and it counts as held by us.
    pub holds: Vec<String>,
}

/// A zpool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Its name.
    pub name: String,
    /// The kernel's word for its state.
    pub health: String,
    /// Nothing can be written to it.
    pub read_only: bool,
}

/// The place that our zvols lie in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its dataset.
    pub dataset: Dataset,
    /// Bytes in use and bytes that can be written, quotas considered; nothing where there is no such dataset.
    pub room: Fact<Option<(u64, u64)>>,
    /// The zvols directly in it.
    pub zvols: Fact<Vec<Zvol>>,
}

/// The tag of our holds.
pub const OUR_HOLD: &str = "img-storage";
/// From so much in use a pool is nearly full, in hundredths.
const NEARLY_FULL: u128 = 90;

impl Zvol {
    /// The newest snapshot, when it is somebody else's and there are some of ours.
    pub(super) fn foreign(&self) -> Option<&str> {
        self.snapshots.last().filter(|s| !s.ours && self.snapshots.iter().any(|s| s.ours)).map(|s| s.name.as_str())
    }
}

/// A part of a whole, in words.
pub(super) fn percent(part: u64, whole: u64) -> u128 {
    u128::from(part) * 100 / u128::from(whole.max(1))
}

impl Notes<'_> {
    /// The pools of some places, and their room.
    pub(super) fn pools(&mut self, pools: &Fact<Vec<Pool>>, places: &[&Place]) {
        let seen = self.see("the list of ZFS pools (zpool list)", pools);
        let mut names: Vec<&str> = places.iter().map(|place| place.dataset.pool()).collect();
        names.sort_unstable();
        names.dedup();
        for name in names {
            match seen.map(|all| all.iter().find(|pool| pool.name == name)) {
                None => {}
                Some(None) => {
                    let next = format!("import it: zpool import {name} (zpool import alone lists what can be)");
                    self.differs(About::Host, format!("pool {name}"), "it is not imported on this host", "it is imported", next);
                }
                Some(Some(pool)) if pool.health != "ONLINE" => {
                    let next = format!("zpool status -v {name} names the disk; replace it before anything else fails");
                    self.differs(About::Host, format!("pool {name}"), format!("it is {}", pool.health), "it is ONLINE", next);
                }
                Some(Some(pool)) if pool.read_only => {
                    let next = format!("nothing is copied or brought home into it; zpool status {name}, then import it again");
                    self.differs(About::Host, format!("pool {name}"), "it is read-only", "it can be written", next);
                }
                Some(Some(_)) => {}
            }
        }
        for place in places {
            self.room(place);
        }
    }

    fn room(&mut self, place: &Place) {
        let dataset = &place.dataset;
        match self.see(format!("the room of {dataset}"), &place.room) {
            Some(None) => {
                let next =
                    format!("zpool import, if its pool is not imported; otherwise, on a new host only: zfs create -p {dataset}");
                self.differs(About::Host, format!("dataset {dataset}"), "it is not there", "it is there", next);
            }
            Some(Some((used, free))) if percent(*used, used.saturating_add(*free)) >= NEARLY_FULL => {
                let is = format!("{}% is in use, {} are free", percent(*used, used.saturating_add(*free)), human_bytes(*free));
                let next =
                    "zfs list -o space -r shows what takes the room; on a node, less [vm] warm_copies lets old warm copies go";
                self.differs(About::Host, format!("dataset {dataset}"), is, "less than 90% is in use", next);
            }
            _ => {}
        }
    }

    /// Snapshots of ours that somebody else holds: they cannot be destroyed when they are old.
    pub(super) fn held_by_others(&mut self, about: About<'_>, zvol: &Zvol) {
        for snapshot in zvol.snapshots.iter().filter(|s| s.ours) {
            let others: Vec<&String> = snapshot.holds.iter().filter(|tag| *tag != OUR_HOLD).collect();
            if others.is_empty() {
                continue;
            }
            let name = format!("{}@{}", zvol.name, snapshot.name);
            let next = format!("find out whose it is; when nobody needs it: zfs release {} {name}", others[0]);
            let is = "somebody else holds it: it stays when it is old, and takes room";
            let who = others.iter().map(|tag| format!("zfs hold {tag}"));
            self.differs(about, format!("snapshot {name}"), is, "held by us alone", next).held_by(who);
        }
    }
}
