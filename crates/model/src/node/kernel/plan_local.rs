//! The node's planner of the kernel plane while this node has the newest writes, in the overlay or on its local copy; or may have them, while its guest
//! is moved at once.
//!
//! From the pivot on it is forward only. Whatever is wanted meanwhile, an overlay is merged first; and while one has writes, the
//! device is never put up without it.

use super::{
    LocalZvol, NodeStep, Table,
    plan::{Decision, Seen, attach, bring, fitting, take_down, unwritten},
};
use crate::{
    Size,
    messages::{Still, Want},
    node::{Layer, Lies, NodeChange, NodeRecord, PushOutcome, PushResult},
};

/// The device is, or was, to be moved to the local copy in one step: where it lies shows whether it was. What is written to the copy is written by
/// its guest alone; without a device that is what shows it.
pub(super) fn moving(record: &NodeRecord, f: &Seen<'_>) -> Decision {
    let lies = |lies| Decision::Record(NodeChange::Lies(lies));
    let Some(device) = f.device else {
        return moved(record, f);
    };
    if device.epoch != record.assign.epoch {
        return Decision::Stuck(format!(
            "the guest's device is of epoch {}, the mapping is epoch {}",
            device.epoch, record.assign.epoch
        ));
    }
    // Whoever was to go on with it was stopped half way.
    if device.suspended {
        return Decision::Do(NodeStep::ResumeDevice);
    }
    match device.table {
        Ok(Table::Linear(Layer::Local)) => lies(Lies::Local),
        Ok(Table::Linear(Layer::Remote)) => {
            let there = f.session.is_some_and(|session| session.up) && record.assign.want == Want::Local;
            let same = |still: &&Still| {
                let has_all = |local: &LocalZvol| local.snapshots.last() == Some(&still.snapshot) && local.written == 0;
                f.local.is_some_and(has_all) && device.writes.as_ref() == Some(&still.writes)
            };
            match (record.still.as_ref().filter(same), Size::exact(device.size)) {
                (Some(still), Ok(size)) if there => Decision::Do(NodeStep::Move { writes: still.writes.clone(), size }),
                _ => lies(Lies::Remote),
            }
        }
        _ => Decision::Stuck(
            "the guest's device is neither on the NAS's volume nor on the local copy; nothing is changed".to_owned(),
        ),
    }
}

/// The device is gone, as after a power cut.
fn moved(record: &NodeRecord, f: &Seen<'_>) -> Decision {
    let (Some(still), Some(local)) = (&record.still, f.local) else {
        return Decision::Stuck("the local copy, which may hold the newest writes, is not in the pool any more".to_owned());
    };
    let newest = local.snapshots.last() == Some(&still.snapshot);
    // It takes no streams while it may be the truth, and nothing came since.
    if local.receives.is_some() || (!newest && local.received) {
        return Decision::Stuck(
            "something came to the local copy after the ledger says that it may be the truth: is it an old one? Nothing is ended"
                .to_owned(),
        );
    }
    match (newest, local.written, local.unchanged) {
        (true, 0, _) => Decision::Record(NodeChange::Lies(Lies::Remote)),
        // ZFS counts some by itself after a power cut.
        (true, _, None) => Decision::Stuck("it cannot be told yet whether the guest wrote to the local copy".to_owned()),
        _ => Decision::Record(NodeChange::Lies(Lies::Local)),
    }
}

pub(super) fn plan_local(record: &NodeRecord, f: &Seen<'_>) -> Decision {
    let assign = &record.assign;
    let wanted = record.lies.table();
    let settled = record.lies == Lies::Local;
    if settled && assign.want == Want::Gone {
        return plan_return(record, f);
    }
    let needs_nas = matches!(wanted, Table::Overlay(Layer::Remote) | Table::Merge(Layer::Remote));
    if needs_nas && let Some(decision) = attach(record, f) {
        return decision;
    }
    let needs_local = wanted != Table::Overlay(Layer::Remote);
    if needs_local && f.local.is_none() && record.lies != Lies::MergingRemote {
        return Decision::Stuck("the local copy, which holds the newest writes, is not in the pool any more".to_owned());
    }
    if !settled && f.overlay.is_none() {
        return Decision::Stuck("the overlay, which holds the newest writes, is not in the pool any more".to_owned());
    }
    let Some(device) = f.device else {
        let size = fitting(record, f, wanted);
        return Decision::Do(NodeStep::CreateDevice { epoch: assign.epoch, table: wanted, size });
    };
    if device.epoch != assign.epoch {
        return Decision::Stuck(format!(
            "the guest's device is of epoch {}, the mapping is epoch {}",
            device.epoch, assign.epoch
        ));
    }
    if let Some(decision) = bring(record, f, device, wanted) {
        return decision;
    }
    let merged = device.merge.is_some_and(|m| m.left == 0);
    match record.lies {
        Lies::OverRemote => over_remote(record, f),
        Lies::MergingLocal if merged => Decision::Record(NodeChange::Lies(Lies::Local)),
        // A long merge does not keep the NAS's export.
        Lies::MergingLocal if f.session.is_some() => Decision::Do(NodeStep::Logout),
        Lies::MergingLocal => Decision::Wait("merging what was written meanwhile into the local copy".to_owned()),
        Lies::OverLocal => over_local(record, f),
        Lies::MergingRemote if merged => Decision::Do(NodeStep::FlushRemote),
        Lies::MergingRemote => Decision::Wait("merging what was written meanwhile into the NAS's volume".to_owned()),
        Lies::Local | Lies::Remote | Lies::Moving => on_local(record, f),
    }
}

/// The guest writes to the overlay; the NAS's last difference is on its way.
fn over_remote(record: &NodeRecord, f: &Seen<'_>) -> Decision {
    let base = record.assign.kernel.as_ref().and_then(|k| k.base);
    // While it takes streams, all that the guest wrote is in the overlay and on the NAS.
    if let Some(decision) = f.local.filter(|local| local.receives.is_some()).and_then(unwritten) {
        return decision;
    }
    match (base, f.local) {
        (Some(base), Some(local)) if local.snapshots.last() == Some(&base) => {
            if local.written > 0 {
                // Once it takes none the ledger is about to say that the merge began: an old one would not know that it did.
                return Decision::Stuck(
                    "something is in the local copy that is newer than what came; the overlay is kept".to_owned(),
                );
            }
            if !local.reserved {
                return Decision::Do(NodeStep::ReserveLocal);
            }
            // No late stream may touch what is about to be the truth.
            if local.receives.is_some() {
                return Decision::Do(NodeStep::SetReceives { epoch: None });
            }
            Decision::Record(NodeChange::Lies(Lies::MergingLocal))
        }
        (_, Some(local)) if local.receives != Some(record.assign.epoch) => {
            Decision::Do(NodeStep::SetReceives { epoch: Some(record.assign.epoch) })
        }
        _ => Decision::Wait(format!("waiting for the last difference from {}", record.assign.nas)),
    }
}

/// The guest works on the local copy.
fn on_local(record: &NodeRecord, f: &Seen<'_>) -> Decision {
    let assign = &record.assign;
    let Some(local) = f.local else {
        return Decision::Stuck("the local copy, which holds the newest writes, is not in the pool any more".to_owned());
    };
    if f.session.is_some() {
        return Decision::Do(NodeStep::Logout);
    }
    if local.size < assign.size.bytes() {
        return Decision::Do(NodeStep::GrowLocal { size: assign.size });
    }
    if assign.want == Want::Remote && assign.back.is_some() {
        let ordered = assign.push.as_ref().is_some_and(|order| record.pushed.as_ref().is_none_or(|r| r.push != order.push));
        return match f.overlay {
            Some(overlay) if overlay.epoch != assign.epoch => Decision::Do(NodeStep::RemoveOverlay),
            Some(_) => Decision::Record(NodeChange::Lies(Lies::OverLocal)),
            // Where there is no room for one, what is written comes home all the same.
            None if ordered => push(record, local),
            None => Decision::Do(NodeStep::CreateOverlay { epoch: assign.epoch, size: assign.size }),
        };
    }
    if f.overlay.is_some() {
        return Decision::Do(NodeStep::RemoveOverlay);
    }
    push(record, local)
}

/// The guest writes to the overlay over the local copy, which goes home.
fn over_local(record: &NodeRecord, f: &Seen<'_>) -> Decision {
    let assign = &record.assign;
    let (Some(back), Some(local)) = (assign.back.as_ref().filter(|_| assign.want == Want::Remote), f.local) else {
        return Decision::Record(NodeChange::Lies(Lies::MergingLocal));
    };
    if back.granted {
        let home = local.snapshots.last().is_some_and(|s| Some(s.id) == assign.accepted) && local.written == 0;
        if !home {
            return Decision::Stuck(format!("{} does not have what the local copy holds; the overlay is kept", assign.nas));
        }
        if let Some(decision) = attach(record, f) {
            return decision;
        }
        // When the mapping ends, nothing else will say so of what is left here.
        let known = record.warm.as_ref().and_then(|warm| warm.home);
        let newest = local.snapshots.last().filter(|newest| known != Some(**newest));
        let merging = NodeChange::Lies(Lies::MergingRemote);
        return Decision::Record(newest.map_or(merging, |newest| NodeChange::Home(*newest)));
    }
    push(record, local)
}

/// Write-backs: a snapshot for the NAS to fetch, and none that it does not need any more.
fn push(record: &NodeRecord, local: &LocalZvol) -> Decision {
    let assign = &record.assign;
    // It is what the next difference begins with, here as on the NAS; and one that was just taken is held before anybody hears of it.
    if let Some(newest) = local.snapshots.last().filter(|_| !local.held) {
        return Decision::Do(NodeStep::HoldSnapshot { snapshot: newest.id });
    }
    if let Some(order) = &assign.push {
        if record.pushed.as_ref().is_some_and(|r| r.push == order.push) {
            return Decision::Wait(format!("waiting for {} to fetch the write-back", assign.nas));
        }
        return match local.snapshots.iter().find(|s| s.id == order.push) {
            Some(taken) => {
                Decision::Record(NodeChange::Pushed(PushResult { push: order.push, outcome: PushOutcome::Taken(*taken) }))
            }
            None => Decision::Do(NodeStep::TakeSnapshot { snapshot: order.push }),
        };
    }
    let home = assign.accepted.and_then(|id| local.snapshots.iter().position(|s| s.id == id));
    match local.snapshots.first() {
        Some(oldest) if home.is_some_and(|at| at > 0) => Decision::Do(NodeStep::DropSnapshot { snapshot: oldest.id }),
        // As after a warm copy's room was given back by a ledger that did not know that it was the truth.
        _ if assign.want == Want::Local && !local.reserved => Decision::Do(NodeStep::ReserveLocal),
        _ if assign.want == Want::Local => Decision::Rest,
        _ => Decision::Wait(format!("waiting for {}", assign.nas)),
    }
}

/// The guest is off: what is local goes home, and is kept for the next time or goes.
fn plan_return(record: &NodeRecord, f: &Seen<'_>) -> Decision {
    let assign = &record.assign;
    if let Some(device) = f.device {
        return match bring(record, f, device, Table::Linear(Layer::Local)) {
            Some(Decision::Do(NodeStep::Swap { .. })) | None => take_down(device, assign.force),
            Some(decision) => decision,
        };
    }
    if f.session.is_some() {
        return Decision::Do(NodeStep::Logout);
    }
    let Some(local) = f.local else {
        return if assign.release {
            Decision::Record(NodeChange::Ended { warm: false, home: None })
        } else {
            Decision::Stuck("the local copy, which holds the newest writes, is not in the pool any more".to_owned())
        };
    };
    if f.overlay.is_some() {
        return Decision::Do(NodeStep::RemoveOverlay);
    }
    if !assign.release {
        return push(record, local);
    }
    let home = local.snapshots.last().filter(|s| Some(s.id) == assign.accepted).copied();
    if local.written > 0 || home.is_none() {
        return Decision::Stuck(format!(
            "{} bytes were written after the last write-back; the local copy is kept",
            local.written
        ));
    }
    Decision::Record(NodeChange::Ended { warm: true, home })
}
