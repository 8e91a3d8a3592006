//! When a write-back is due, and how old the NAS's copy is.

use crate::{
    Interval,
    nas::{Authority, Mapping},
};
use jiff::{SignedDuration, Timestamp};

/// From when on the NAS's copy lacks writes: the newest snapshot's time, or the pivot's. `None` while the NAS has authority.
pub fn behind_since(m: &Mapping) -> Option<Timestamp> {
    if m.authority != Authority::Node && m.authority != Authority::MaybeNas {
        return None;
    }
    m.accepted.as_ref().map(|a| a.at).or(m.pivoted_at)
}

/// The age of the newest snapshot on the NAS, in seconds: what a node's death would cost.
pub fn lag_seconds(m: &Mapping, now: Timestamp) -> Option<u64> {
    behind_since(m).map(|t| u64::try_from(now.duration_since(t).as_secs()).unwrap_or(0))
}

/// When the next write-back is due; `None` when none will be. A clock that was set back makes it due at once.
pub fn next_due(m: &Mapping, frequency: Interval, now: Timestamp) -> Option<Timestamp> {
    let since = behind_since(m)?;
    if m.sync_now || since > now {
        return Some(now);
    }
    SignedDuration::try_from(frequency.duration()).ok().and_then(|d| since.checked_add(d).ok())
}
