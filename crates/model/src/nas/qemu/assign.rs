//! What the assignment of a volume on the qemu plane says of its exports.
//!
//! An endpoint that was given out stays in it while it may come back: a node whose connection broke waits for it.

use super::{BACK, NasFacts, plain_export};
use crate::{
    messages::{Assign, Want},
    nas::{Authority, Mapping, NasLayer, PushState},
};

/// The name of the overlay's export of this mapping.
pub(in crate::nas) fn back_export(m: &Mapping) -> String {
    format!("{}.{BACK}", plain_export(m.epoch))
}

/// The name of the export the guest is to work on.
pub(in crate::nas) fn export_of(m: &Mapping, facts: &NasFacts, last: Option<&Assign>) -> Option<String> {
    match m.authority {
        Authority::Node | Authority::MaybeNas => return None,
        Authority::Nas | Authority::MaybeNode => {}
    }
    let plain = plain_export(m.epoch);
    let back = back_export(m);
    let served = |name: &String| {
        facts.export.known().and_then(Option::as_ref).is_some_and(|e| e.epoch == m.epoch && e.names.contains(name))
    };
    let given = |name: &String| last.and_then(|a| a.export.as_ref()).is_some_and(|e| e.export == *name);
    if m.layer == NasLayer::Disk && (served(&plain) || given(&plain)) {
        return Some(plain);
    }
    // After the pivot back the guest is on the overlay's export, until the plain one is there.
    let came_back = m.layer == NasLayer::Overlay || served(&back) || given(&back);
    came_back.then_some(back)
}

/// Whether bring-back is ordered, and whether the node may pivot.
pub(in crate::nas) fn back_of(m: &Mapping, facts: &NasFacts, last: Option<&Assign>) -> Option<bool> {
    match m.authority {
        Authority::MaybeNas => Some(true),
        Authority::Node if m.want == Want::Remote && m.push.is_none() => {
            let name = back_export(m);
            let served =
                facts.export.known().and_then(Option::as_ref).is_some_and(|e| e.epoch == m.epoch && e.names.contains(&name));
            let given = last.and_then(|a| a.back.as_ref()).is_some();
            (served || given).then_some(false)
        }
        _ => None,
    }
}

/// Whether the write-back's order can go out: its incoming file is there to take it, or it was given out before.
pub(in crate::nas) fn takes(push: &PushState, facts: &NasFacts, last: Option<&Assign>) -> bool {
    let serving = facts.incoming.known().copied().flatten().is_some_and(|i| i.push == push.push && i.serving);
    serving || last.and_then(|a| a.push.as_ref()).is_some_and(|o| o.push == push.push && o.endpoint.is_some())
}
