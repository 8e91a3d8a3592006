//! The assignment a node gets for a volume: everything it needs, made from the ledger row and the facts.

use super::{Authority, BACK, Mapping, NasFacts, NasLayer, VolumeRecord, plain_export};
use crate::{
    HostName,
    attribute::Speeds,
    messages::{Assign, BackOrder, Endpoint, PushOrder, Want},
};

/// The assignment for the volume's mapped node; its revision is that of the last one sent, plus one if anything differs.
///
/// An endpoint that was given out stays in it while it may come back: a node whose connection broke waits for it.
///
/// While `copy` does not allow it, a copy does not begin: until then the node is to have the volume over the network.
pub fn assignment(
    v: &VolumeRecord,
    facts: &NasFacts,
    nas: &HostName,
    address: &str,
    speeds: Speeds,
    copy: bool,
) -> Option<Assign> {
    let m = v.mapping.as_ref()?;
    let last = v.assign.as_ref().filter(|a| a.epoch == m.epoch);
    let endpoint = |port: u16, export: String| Endpoint { host: address.to_owned(), port, export, server: nas.clone() };
    // An order goes out when its incoming file is there to take it.
    let push = m.push.as_ref().and_then(|p| {
        let serving = facts.incoming.known().copied().flatten().is_some_and(|i| i.push == p.push && i.serving);
        let given = last.and_then(|a| a.push.as_ref()).is_some_and(|o| o.push == p.push && o.endpoint.is_some());
        (serving || given).then(|| PushOrder {
            push: p.push,
            endpoint: Some(endpoint(p.port, p.push.to_string())),
            last: p.last,
            full: m.base_unsure,
        })
    });
    let mut next = Assign {
        volume: v.id,
        name: format!("{}/{}", v.pool, v.name),
        nas: nas.clone(),
        size: v.size,
        epoch: m.epoch,
        revision: last.map_or(0, |a| a.revision),
        want: if copies(v) == Some(false) && !copy { Want::Remote } else { m.want },
        device: m.device,
        force: m.force,
        export: export_of(m, facts, last).map(|name| endpoint(m.port, name)),
        granted: matches!(m.authority, Authority::MaybeNode | Authority::Node),
        push,
        accepted: m.accepted.as_ref().map(|a| a.push),
        release: match m.want {
            Want::Gone => m.authority == Authority::Node && m.push.is_none() && m.accepted.as_ref().is_some_and(|a| a.last),
            _ => m.authority == Authority::Nas && m.layer == NasLayer::Disk,
        },
        back: back_of(m, facts, last).map(|granted| BackOrder { endpoint: endpoint(m.port, back_export(m)), granted }),
        speeds,
        asked: None,
        proof: None,
    };
    if last != Some(&next) {
        next.revision = last.map_or(m.revision_floor + 1, |a| a.revision + 1);
    }
    Some(next)
}

/// Whether the volume is to be copied to its node: `Some(false)` when that has not been ordered yet, `Some(true)` when it has.
pub fn copies(v: &VolumeRecord) -> Option<bool> {
    let m = v.mapping.as_ref().filter(|m| m.want == Want::Local)?;
    let ordered = v.assign.as_ref().is_some_and(|a| a.epoch == m.epoch && a.want == Want::Local);
    match m.authority {
        Authority::Nas => Some(ordered),
        // The permission to pivot was given: it goes on.
        Authority::MaybeNode => Some(true),
        Authority::Node | Authority::MaybeNas => None,
    }
}

/// The name of the overlay's export of this mapping.
pub(super) fn back_export(m: &Mapping) -> String {
    format!("{}.{BACK}", plain_export(m.epoch))
}

/// The name of the export the guest is to work on.
fn export_of(m: &Mapping, facts: &NasFacts, last: Option<&Assign>) -> Option<String> {
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
fn back_of(m: &Mapping, facts: &NasFacts, last: Option<&Assign>) -> Option<bool> {
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
