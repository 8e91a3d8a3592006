//! The node's warm copies together: how much they take, which of them go, and what others are told of them.
//!
//! The volumes' actors leave here what stands on the shelf ([`Shelf::note`]); what it takes is what ZFS says. The choice is
//! [`surplus`]'s, and the actors carry it out, each after having looked for itself: here nothing is destroyed.

use super::Node;
use crate::steps::OBSERVE_DEADLINE;
use img_storage_host::LocalCopies;
use img_storage_model::{
    HostName, Plane, Size, VolumeId,
    api::WarmCopy,
    messages::Want,
    node::{
        Decision, Going, Lies, NodeRecord, Step, Warm,
        kernel::{Kept, NodeStep, needs, needs_overlay, surplus},
    },
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    sync::Notify,
    time::{Instant, timeout},
};

/// How often the copies are looked at when nothing happens, and their NASes asked whether the volumes are still there.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// How long ZFS may take to free what was destroyed, before more is destroyed for want of room.
const FREED_WITHIN: Duration = Duration::from_secs(10);

/// What a volume has to do with the room of warm copies.
#[derive(Clone, PartialEq, Eq)]
enum Stand {
    /// Its mapping is over, and it may have a warm copy.
    Kept { nas: HostName, name: String, warm: Warm },
    /// It is to get a local copy, of this size.
    Coming(Size),
    /// It is to get an overlay, of this size.
    Switching(Size),
}

/// All of them.
#[derive(Default)]
pub(super) struct Shelf {
    stands: Mutex<BTreeMap<VolumeId, Stand>>,
    seen: Mutex<Vec<WarmCopy>>,
    changed: Notify,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shelf {
    /// Notes what an actor has just decided about its volume.
    pub(super) fn note(&self, record: &NodeRecord, next: &Decision) {
        // Until its room is given back it takes more than it is going to.
        if matches!(next, Decision::Do(Step::Kernel(NodeStep::UnreserveLocal))) {
            return;
        }
        let assign = &record.assign;
        let mapped = assign.plane == Plane::Kernel && !record.has_ended();
        let coming = mapped && assign.want == Want::Local && record.lies == Lies::Remote;
        let overlay = mapped && matches!(next, Decision::Do(Step::Kernel(NodeStep::CreateOverlay { .. })));
        let stand = match record.kept() {
            Some(warm) => Some(Stand::Kept { nas: assign.nas.clone(), name: assign.name.clone(), warm }),
            None if overlay => Some(Stand::Switching(assign.size)),
            None => coming.then_some(Stand::Coming(assign.size)),
        };
        let mut stands = lock(&self.stands);
        let before = match &stand {
            Some(stand) => stands.insert(record.volume, stand.clone()),
            None => stands.remove(&record.volume),
        };
        if before != stand {
            self.changed.notify_one();
        }
    }

    /// The copies as they were last looked at: those of one NAS's volumes, or all.
    pub(super) fn warm(&self, nas: Option<&HostName>) -> Vec<WarmCopy> {
        lock(&self.seen).iter().filter(|copy| nas.is_none_or(|nas| *nas == copy.nas)).cloned().collect()
    }

    /// Those of the rows that the host shows a copy of.
    fn seen(&self, copies: &LocalCopies) -> Vec<WarmCopy> {
        let stands = lock(&self.stands);
        let found = stands.iter().filter_map(|(volume, stand)| match (stand, copies.used.get(volume)) {
            (Stand::Kept { nas, name, warm }, Some(used)) => Some(WarmCopy {
                volume: *volume,
                nas: nas.clone(),
                name: name.clone(),
                used: *used,
                since: warm.since,
                going: warm.going,
                stays: warm.stays.clone(),
            }),
            _ => None,
        });
        found.collect()
    }

    /// Bytes that local copies will need which are about to be made.
    fn needed(&self, copies: &LocalCopies) -> u64 {
        let used = |volume: &VolumeId| copies.used.get(volume).copied().unwrap_or(0);
        let stands = lock(&self.stands);
        let need = |(volume, stand): (&VolumeId, &Stand)| match stand {
            Stand::Coming(size) => needs(*size, used(volume)),
            Stand::Switching(size) => needs_overlay(*size),
            Stand::Kept { .. } => 0,
        };
        stands.iter().map(need).sum()
    }

    fn is_bare(&self) -> bool {
        !lock(&self.stands).values().any(|stand| matches!(stand, Stand::Kept { .. }))
    }
}

impl Node {
    /// Looks at the warm copies whenever something may have changed, for as long as the daemon runs.
    pub(super) async fn keep_warm(self: Arc<Self>) {
        let mut asked: BTreeMap<HostName, Instant> = BTreeMap::new();
        let mut made_room: Option<Instant> = None;
        loop {
            let lacking = self.sort_out(&mut made_room).await;
            let nases: BTreeSet<HostName> = lock(&self.shelf.seen).iter().map(|copy| copy.nas.clone()).collect();
            for nas in nases {
                if asked.get(&nas).is_none_or(|at| at.elapsed() >= LOOK_EVERY) {
                    // Its answer says which of the volumes were deleted.
                    self.hello(&nas);
                    asked.insert(nas, Instant::now());
                }
            }
            let _ = timeout(if lacking { FREED_WITHIN } else { LOOK_EVERY }, self.shelf.changed.notified()).await;
        }
    }

    /// Has those go that are too many; says whether there is still too little room for what is to come.
    async fn sort_out(&self, made_room: &mut Option<Instant>) -> bool {
        if self.shelf.is_bare() {
            lock(&self.shelf.seen).clear();
            return false;
        }
        let copies = match timeout(OBSERVE_DEADLINE, self.host.copies()).await {
            Ok(Ok(copies)) => copies,
            Ok(Err(error)) => {
                tracing::warn!(%error, "the copies that are kept cannot be looked at; none goes");
                return false;
            }
            Err(_) => {
                tracing::warn!("the copies that are kept cannot be looked at in time; none goes");
                return false;
            }
        };
        let seen = self.shelf.seen(&copies);
        let kept: Vec<Kept> = seen
            .iter()
            .map(|copy| Kept {
                volume: copy.volume,
                since: copy.since,
                used: copy.used,
                going: copy.going.is_some(),
                stays: copy.stays.is_some(),
            })
            .collect();
        *lock(&self.shelf.seen) = seen;
        let lacks = self.shelf.needed(&copies).saturating_sub(copies.free);
        // What went a moment ago may not be free yet.
        let wait = made_room.is_some_and(|at| at.elapsed() < FREED_WITHIN);
        for (volume, why) in surplus(&kept, self.config.warm.bytes(copies.size), if wait { 0 } else { lacks }) {
            if why == Going::Room {
                *made_room = Some(Instant::now());
            }
            self.drop_warm(volume, why, None);
        }
        lacks > 0
    }
}
