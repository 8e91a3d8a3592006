//! When a write-back is due, and how old the NAS's copy is.

use crate::{
    Plane,
    attribute::{AttributeFrom, Effective, NextSync},
    messages::{NodePhase, Report},
    nas::{Authority, Mapping, VolumeRecord},
};
use jiff::{SignedDuration, Timestamp};

/// ZFS counts what was written when it syncs, some seconds later.
const COUNTED_LATE: SignedDuration = SignedDuration::from_secs(10);

/// From when on the NAS's copy lacks writes: the newest snapshot's time, or the pivot's. `None` while the NAS has authority.
///
/// `clean` is when the node was last seen to have nothing that the NAS lacks.
pub fn behind_since(m: &Mapping, clean: Option<Timestamp>) -> Option<Timestamp> {
    if m.authority != Authority::Node && m.authority != Authority::MaybeNas {
        return None;
    }
    let home = m.accepted.as_ref().map(|a| a.at).or(m.pivoted_at)?;
    Some(clean.map_or(home, |clean| home.max(clean)))
}

/// When the node's report proves that it had nothing which the NAS lacks, by the NAS's own clock: the node looked later than the
/// NAS asked. `None` when it does not prove that.
pub fn clean_at(v: &VolumeRecord, report: &Report) -> Option<Timestamp> {
    let (m, assign) = (v.mapping.as_ref()?, v.assign.as_ref()?);
    let answers = report.epoch == m.epoch && assign.epoch == m.epoch && report.revision == assign.revision;
    let local = m.authority == Authority::Node && report.pivoted && report.phase == NodePhase::Local;
    // What its bitmaps begin with may not be what the NAS has.
    let known = m.push.is_none() && !m.base_unsure;
    let clean = report.asked.filter(|_| answers && local && known && report.dirty == Some(0))?;
    match v.plane {
        Plane::Qemu => Some(clean),
        Plane::Kernel => clean.checked_sub(COUNTED_LATE).ok(),
    }
}

/// The age of the newest snapshot on the NAS, in seconds: what a node's death would cost.
pub fn lag_seconds(since: Timestamp, now: Timestamp) -> u64 {
    u64::try_from(now.duration_since(since).as_secs()).unwrap_or(0)
}

/// When the next write-back is due, and what says so; `None` when none will be. A clock that was set back makes it due at once.
///
/// A time that was set counts until something came home that was taken after it.
pub fn next_due(
    m: &Mapping,
    clean: Option<Timestamp>,
    effective: &Effective,
    now: Timestamp,
) -> Option<(Timestamp, AttributeFrom)> {
    let since = behind_since(m, clean)?;
    if m.sync_now || since > now {
        return Some((now, AttributeFrom::Schedule));
    }
    let [own, of_nas] = effective.next_sync.map(|next| next.map(NextSync::due).filter(|due| *due > since));
    if let Some(due) = own {
        return Some((due, AttributeFrom::Volume));
    }
    if let Some(due) = of_nas {
        return Some((due, AttributeFrom::Nas));
    }
    let due = SignedDuration::try_from(effective.frequency.duration()).ok().and_then(|d| since.checked_add(d).ok())?;
    Some((due, AttributeFrom::Schedule))
}
