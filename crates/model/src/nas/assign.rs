//! The assignment a node gets for a volume: everything it needs, made from the ledger row and the facts.

use super::{Authority, Facts, NasLayer, VolumeRecord, kernel, qemu};
use crate::{
    HostName,
    attribute::Speeds,
    messages::{Assign, BackOrder, Endpoint, PushOrder, Want},
};

/// What an assignment says besides what the row and the facts do.
#[derive(Clone, Copy, Debug)]
pub struct Terms<'a> {
    /// This NAS.
    pub nas: &'a HostName,
    /// Where its exports are reached.
    pub address: &'a str,
    /// How fast the transfers may be.
    pub speeds: Speeds,
    /// A copy may begin; until then the node is to have the volume over the network.
    pub copy: bool,
    /// The iSCSI secret of this mapping.
    pub password: &'a str,
}

/// The assignment for the volume's mapped node; its revision is that of the last one sent, plus one if anything differs.
pub fn assignment(v: &VolumeRecord, facts: &Facts, terms: &Terms<'_>) -> Option<Assign> {
    let m = v.mapping.as_ref()?;
    let last = v.assign.as_ref().filter(|a| a.epoch == m.epoch);
    let at = |port: u16, export: String| Endpoint { host: terms.address.to_owned(), port, export, server: terms.nas.clone() };
    let order = |p: &super::PushState, endpoint| PushOrder { push: p.push, endpoint, last: p.last, full: m.base_unsure };
    let (export, push, back) = match facts {
        Facts::Qemu(facts) => (
            qemu::assign::export_of(m, facts, last).map(|name| at(m.port, name)),
            // An order goes out when its incoming file is there to take it.
            m.push
                .as_ref()
                .filter(|p| qemu::assign::takes(p, facts, last))
                .map(|p| order(p, Some(at(p.port, p.push.to_string())))),
            qemu::assign::back_of(m, facts, last)
                .map(|granted| BackOrder { endpoint: at(m.port, qemu::assign::back_export(m)), granted }),
        ),
        Facts::Kernel(facts) => {
            let target = at(kernel::ISCSI_PORT, kernel::iqn(terms.nas.as_str(), v.id, m.epoch));
            let given = last.is_some_and(|a| a.export.is_some());
            (
                (kernel::assign::served(m, facts) || given).then(|| target.clone()),
                m.push.as_ref().map(|p| PushOrder { full: false, ..order(p, None) }),
                kernel::assign::back_of(m).map(|granted| BackOrder { endpoint: target, granted }),
            )
        }
    };
    let mut next = Assign {
        volume: v.id,
        name: format!("{}/{}", v.pool, v.name),
        nas: terms.nas.clone(),
        size: last.map(|a| a.size).filter(|_| m.keeps_size()).unwrap_or(v.size),
        epoch: m.epoch,
        revision: last.map_or(0, |a| a.revision),
        want: if copies(v) == Some(false) && !terms.copy { Want::Remote } else { m.want },
        device: m.device,
        force: m.force,
        export,
        granted: matches!(m.authority, Authority::MaybeNode | Authority::Node),
        push,
        accepted: m.accepted.as_ref().map(|a| a.push),
        release: match m.want {
            Want::Gone => m.authority == Authority::Node && m.push.is_none() && m.accepted.as_ref().is_some_and(|a| a.last),
            _ => m.authority == Authority::Nas && m.layer == NasLayer::Disk,
        },
        back,
        speeds: terms.speeds,
        asked: None,
        plane: v.plane,
        kernel: match facts {
            Facts::Qemu(_) => None,
            Facts::Kernel(facts) => Some(kernel::assign::extra(v, m, facts, terms.password)),
        },
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
