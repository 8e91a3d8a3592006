//! Warm copies: the local zvols of mappings that are over, kept so that the next start here moves the difference only.
//!
//! They are nobody's truth, and yet one may be the only copy there is, when a ledger was restored from a backup that is older than
//! the last mapping. So nothing goes because of what is not known: its newest snapshot must be one that the NAS has had, by its identity and
//! as this node's ledger remembers it, and nothing may have been written since. What cannot be shown to be so stays, and says why.

use super::{LocalZvol, NodeStep, plan::Decision};
use crate::{
    Fault, Size, VolumeId,
    node::{Going, NodeChange, NodeRecord},
    size::{NoBytes, human_bytes, parse_bytes},
    snapshot::Snapshot,
};
use jiff::Timestamp;
use serde::Deserialize;
use std::{cmp::Reverse, fmt, str::FromStr};

/// The newest snapshot of a local copy whose mapping ends with the guest's writes on the NAS, where the NAS is known to have it: by
/// what this mapping brought, or by what was known before it. That the ledger says so little of it is no proof: it may be an old one.
pub(super) fn home_of(record: &NodeRecord, local: &LocalZvol) -> Option<Snapshot> {
    let newest = *local.snapshots.last()?;
    let before = record.warm.as_ref().is_some_and(|warm| warm.home == Some(newest));
    (local.written == 0 && (before || came_home(record, local, newest))).then_some(newest)
}

/// Why a copy that a mapping finds is not to be overwritten: it may be the only one.
pub(super) fn kept_back(record: &NodeRecord, local: &LocalZvol) -> Option<String> {
    let newest = *local.snapshots.last()?;
    // A guest had it: who has no guest has no need of room. What it wrote since is nowhere else, whatever came home before, and a ledger
    // that does not know of the guest is an old one.
    if local.reserved && local.written > 0 {
        let written = human_bytes(local.written);
        return Some(format!(
            "{written} were written to it since its newest snapshot, and this ledger knows of no guest that did"
        ));
    }
    let warm = record.warm.as_ref()?;
    let home = warm.home == Some(newest) || came_home(record, local, newest);
    warm.stays.clone().or_else(|| (!home).then(|| format!("{} is not known to have its newest snapshot", record.assign.nas)))
}

/// The NAS has the newest snapshot, or had it when it was the newest there: it sent it, or took it in.
fn came_home(record: &NodeRecord, local: &LocalZvol, newest: Snapshot) -> bool {
    local.received || record.assign.accepted == Some(newest.id) || record.base() == Some(newest)
}

/// The mapping is over, and nothing but the local copy can be left of it.
pub(super) fn plan_kept(record: &NodeRecord, local: Option<&LocalZvol>) -> Decision {
    let Some(warm) = record.kept() else { return Decision::Rest };
    let Some(local) = local else {
        return if warm.going.is_some() { Decision::Record(NodeChange::WarmGone) } else { Decision::Rest };
    };
    if warm.going.is_none() {
        // Nobody writes to it before it is reserved again: it is to take the room of what it holds, and no more. That it is reserved shows
        // that a guest had it, for as long as that is of use.
        return if local.reserved && local.written == 0 { Decision::Do(NodeStep::UnreserveLocal) } else { Decision::Rest };
    }
    // A stream that was under way when the mapping ended may have brought another snapshot since, or made the copy.
    // Without any nothing was ever complete in it, or its removal was cut off in the last moment.
    if local.snapshots.is_empty() {
        return Decision::Do(NodeStep::DestroyLocal);
    }
    if local.receives.is_some() {
        return Decision::Do(NodeStep::SetReceives { epoch: None });
    }
    let newest = local.snapshots.last().copied().filter(|s| warm.home == Some(*s) || came_home(record, local, *s));
    match newest {
        Some(_) if local.written > 0 => Decision::Record(NodeChange::Stays(format!(
            "{} were written to it since its newest snapshot; see what that is, then destroy it by hand",
            human_bytes(local.written)
        ))),
        Some(home) => Decision::Do(NodeStep::DestroyWarm { home }),
        None => Decision::Record(NodeChange::Stays(format!(
            "{} is not known to have its newest snapshot, so that it may be the only copy; save what is in it, or make sure that nobody needs it, and destroy it by hand",
            record.assign.nas
        ))),
    }
}

/// How much room a node's warm copies may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Quota {
    /// So many bytes; with 0 none is kept.
    Bytes(u64),
    /// So many hundredths of the room that there is for local copies in all, used or not.
    Percent(u8),
}

impl Quota {
    /// In bytes, of a pool with so much room in all.
    pub fn bytes(self, pool: u64) -> u64 {
        match self {
            Quota::Bytes(bytes) => bytes,
            Quota::Percent(percent) => pool / 100 * u64::from(percent),
        }
    }
}

impl Default for Quota {
    fn default() -> Self {
        Quota::Percent(20)
    }
}

impl FromStr for Quota {
    type Err = Fault;

    /// `100G`, `20%`, `0` or `none`.
    fn from_str(text: &str) -> Result<Self, Fault> {
        let trimmed = text.trim();
        let no_quota = || {
            Fault::invalid(format!("{text:?} is no room for warm copies"))
                .next("write it as a size such as 100G, as a share of the pool such as 20%, or as \"none\"")
        };
        if trimmed == "none" {
            return Ok(Quota::Bytes(0));
        }
        if let Some(percent) = trimmed.strip_suffix('%') {
            return percent.parse().ok().filter(|p| *p <= 100).map(Quota::Percent).ok_or_else(no_quota);
        }
        parse_bytes(trimmed).map(Quota::Bytes).map_err(|_: NoBytes| no_quota())
    }
}

impl TryFrom<String> for Quota {
    type Error = Fault;
    fn try_from(text: String) -> Result<Self, Fault> {
        text.parse()
    }
}

impl fmt::Display for Quota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Quota::Bytes(0) => f.pad("none"),
            Quota::Bytes(bytes) => f.pad(&human_bytes(*bytes)),
            Quota::Percent(percent) => f.pad(&format!("{percent}%")),
        }
    }
}

/// A warm copy that is there, for the choice of what goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Of which volume.
    pub volume: VolumeId,
    /// When its mapping ended.
    pub since: Timestamp,
    /// Bytes of the pool that it takes, snapshots included.
    pub used: u64,
    /// It is to go already: its room counts as free.
    pub going: bool,
    /// It was to go and cannot: it counts, and is not chosen again.
    pub stays: bool,
}

/// Which of the warm copies are to go, those that were used longest ago first: as many as take more than `quota` bytes, and then as
/// many as it takes to have the bytes that a local copy `lacks` which is about to be made.
pub fn surplus(kept: &[Kept], quota: u64, lacks: u64) -> Vec<(VolumeId, Going)> {
    let mut total: u64 = kept.iter().filter(|k| !k.going).map(|k| k.used).sum();
    let mut freed: u64 = kept.iter().filter(|k| k.going).map(|k| k.used).sum();
    let mut choice: Vec<&Kept> = kept.iter().filter(|k| !k.going && !k.stays).collect();
    choice.sort_by_key(|k| Reverse((k.since, k.volume)));
    let mut gone = Vec::new();
    while let Some(oldest) = choice.pop() {
        // With a quota of nothing not even an empty one is kept.
        let why = match () {
            () if total > quota || quota == 0 => Going::Quota,
            () if freed < lacks => Going::Room,
            () => break,
        };
        total -= oldest.used;
        freed += oldest.used;
        gone.push((oldest.volume, why));
    }
    gone
}

/// Bytes that the pool must still have for a local copy of a volume that takes `used` of them already: for its contents, which a snapshot
/// holds; for every block once more, which is given its place before the guest works there; and for the overlay.
pub fn needs(size: Size, used: u64) -> u64 {
    size.bytes().saturating_sub(used) + size.bytes() + size.bytes() / 16 + needs_overlay(size)
}

/// Bytes that the pool must still have for the overlay of a volume, all of which has its place.
pub fn needs_overlay(size: Size) -> u64 {
    size.bytes() + size.bytes() / 16
}
