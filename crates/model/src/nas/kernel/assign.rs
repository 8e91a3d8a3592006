//! What the assignment of a volume on the kernel plane says besides.

use super::NasFacts;
use crate::{
    Epoch, VolumeId,
    messages::{IscsiLogin, KernelAssign},
    nas::{Authority, Mapping, VolumeRecord},
};

/// The name of a volume's target of an epoch. The prefix is the mark by which our targets are known.
pub fn iqn(nas: &str, volume: VolumeId, epoch: Epoch) -> String {
    format!("iqn.2026-11.org.img-storage:{}.{}.e{epoch}", nas.to_ascii_lowercase(), volume.0.simple())
}

/// What the node logs in with: of this volume and epoch only.
pub(in crate::nas) fn login(v: &VolumeRecord, m: &Mapping, password: &str) -> IscsiLogin {
    let serial = format!("{}e{}", v.id.0.simple(), m.epoch);
    IscsiLogin { user: format!("img-storage-e{}", m.epoch), password: password.to_owned(), serial }
}

/// The export of this epoch can be logged in to.
pub(in crate::nas) fn served(m: &Mapping, facts: &NasFacts) -> bool {
    facts.exports.known().is_some_and(|all| all.iter().any(|e| e.epoch == m.epoch && e.complete))
}

/// The part of the assignment that only this plane has.
pub(in crate::nas) fn extra(v: &VolumeRecord, m: &Mapping, facts: &NasFacts, password: &str) -> KernelAssign {
    let zvol = facts.zvol.known().and_then(Option::as_ref);
    let last = v.assign.as_ref().filter(|a| a.epoch == m.epoch).and_then(|a| a.kernel.as_ref()).and_then(|k| k.base);
    let base = m.copying.base.filter(|_| m.authority != Authority::Nas);
    // What was given out stays, also while it cannot be seen.
    let base = base.and_then(|id| {
        let seen = zvol.and_then(|z| z.point(id)).map(|held| held.snapshot);
        seen.or(last.filter(|given| given.id == id))
    });
    let still = m.copying.still.clone().filter(|_| m.authority != Authority::Nas);
    KernelAssign { login: login(v, m, password), base, fresh: m.copying.fresh, still }
}

/// Whether bring-back is ordered, and whether the node may pivot.
pub(in crate::nas) fn back_of(m: &Mapping) -> Option<bool> {
    match m.authority {
        Authority::MaybeNas => Some(true),
        Authority::Node => m.copying.back.then_some(false),
        Authority::Nas | Authority::MaybeNode => None,
    }
}
