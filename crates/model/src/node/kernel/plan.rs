//! The node's planner of the kernel plane: `(ledger row, facts) → next step`.
//!
//! While the guest's writes lie on the NAS everything converges down, and the local copy may be thrown away; after that, see
//! [`super::plan_local`]. The ledger says where the writes lie ([`Lies`]) before the device's table says so, and a table is never
//! changed but to the one the ledger names, or to the other of the two of [`Lies::Moving`].

use super::{
    Device, LocalZvol, NodeFacts, NodeStep, Overlay, Session, Table,
    plan_local::{moving, plan_local},
    warm::{home_of, kept_back, plan_kept},
};
use crate::{
    Fact, Size,
    messages::{Endpoint, IscsiLogin, Want},
    node::{Layer, Lies, NodeChange, NodeRecord, PushOutcome, PushResult, Truth},
};

/// A node's decision.
pub type Decision = crate::Decision<NodeStep, NodeChange>;

/// The facts, when all are known.
#[derive(Clone, Copy)]
pub(super) struct Seen<'a> {
    pub session: Option<&'a Session>,
    pub device: Option<&'a Device>,
    pub local: Option<&'a LocalZvol>,
    pub overlay: Option<&'a Overlay>,
}

fn seen(facts: &NodeFacts) -> Result<Seen<'_>, String> {
    fn known<'f, T>(what: &str, fact: &'f Fact<Option<T>>) -> Result<Option<&'f T>, String> {
        match fact {
            Fact::Known(value) => Ok(value.as_ref()),
            Fact::Unknown(why) => Err(format!("{what} cannot be looked at: {why}")),
        }
    }
    Ok(Seen {
        session: known("the iSCSI session", &facts.session)?,
        device: known("the guest's device", &facts.device)?,
        local: known("the local copy", &facts.local)?,
        overlay: known("the overlay", &facts.overlay)?,
    })
}

/// What to do next about one volume on this node.
pub fn plan(record: &NodeRecord, facts: &NodeFacts) -> Decision {
    let f = match seen(facts) {
        Ok(f) => f,
        Err(why) => return Decision::Stuck(why),
    };
    if let Some(decision) = settle(record, &f) {
        return decision;
    }
    if record.has_ended() && f.session.is_none() && f.device.is_none() && f.overlay.is_none() {
        return plan_kept(record, f.local);
    }
    if let Some(device) = f.device {
        // The NAS says its word again. Until then nothing that was meant for an earlier mapping is done to this one.
        if device.epoch > record.assign.epoch {
            return Decision::Stuck(format!(
                "the guest's device is of epoch {}, and this host's ledger knows of none newer than {}: is it an old one? Waiting for {}",
                device.epoch, record.assign.epoch, record.assign.nas
            ));
        }
        match &device.table {
            Err(what) => return Decision::Stuck(format!("the guest's device has a table that is not ours: {what}")),
            // What the guest works on wins over what was remembered: a table is only ever put up after the ledger named it, or said that it is moving, so
            // that this is a ledger from a backup.
            Ok(table) if record.lies == Lies::Remote && *table != Table::Linear(Layer::Remote) && !is_merged(device, *table) => {
                return Decision::Record(NodeChange::Lies(Lies::of(*table)));
            }
            Ok(_) => {}
        }
    }
    match record.lies {
        Lies::Remote => plan_remote(record, &f),
        Lies::Moving => moving(record, &f),
        _ => plan_local(record, &f),
    }
}

/// Everything the overlay had is on the NAS: the table is about to be made plain.
fn is_merged(device: &Device, table: Table) -> bool {
    table == Table::Merge(Layer::Remote) && device.merge.is_some_and(|m| m.left == 0)
}

fn plan_remote(record: &NodeRecord, f: &Seen<'_>) -> Decision {
    let assign = &record.assign;
    if let Some(device) = f.device.filter(|d| d.epoch != assign.epoch) {
        return take_down(device, true);
    }
    if assign.want == Want::Gone || record.has_ended() {
        return plan_gone(record, f);
    }
    if let Some(decision) = attach(record, f) {
        return decision;
    }
    let wanted = Table::Linear(Layer::Remote);
    match f.device {
        // It goes first: nothing is in it, or else (an old ledger) the bare disk would lack what is.
        None if f.overlay.is_some() => return Decision::Do(NodeStep::RemoveOverlay),
        None => return Decision::Do(NodeStep::CreateDevice { epoch: assign.epoch, table: wanted, size: assign.size }),
        Some(device) => {
            if let Some(decision) = bring(record, f, device, wanted) {
                return decision;
            }
        }
    }
    if assign.want == Want::Local {
        return plan_copy(record, f);
    }
    if f.overlay.is_some() {
        return Decision::Do(NodeStep::RemoveOverlay);
    }
    match f.local {
        Some(local) if record.local.is_some() && local.receives.is_some() => Decision::Do(NodeStep::SetReceives { epoch: None }),
        _ => Decision::Rest,
    }
}

/// The way to the NAS's disk: nothing when it is there and is the right one.
pub(super) fn attach(record: &NodeRecord, f: &Seen<'_>) -> Option<Decision> {
    let assign = &record.assign;
    let Some((endpoint, login)) = export(record) else {
        return Some(Decision::Wait(format!("waiting for {} to export the volume", assign.nas)));
    };
    // The NAS makes its volume longer only while it has the newest writes.
    let at_home = record.lies == Lies::Remote;
    let size = if at_home { assign.size } else { Size::MIN };
    let log_in = || Decision::Do(NodeStep::Login { endpoint: endpoint.clone(), login: login.clone(), size });
    let session = match f.session {
        Some(session) if session.iqn != endpoint.export => return Some(Decision::Do(NodeStep::Logout)),
        Some(session) => session,
        None => return Some(log_in()),
    };
    match &session.disk {
        Some(disk) if disk.serial != login.serial => Some(Decision::Stuck(format!(
            "the disk of {} has the serial number {:?}, not {:?}; it is not used",
            session.iqn, disk.serial, login.serial
        ))),
        Some(disk) if at_home && disk.size < assign.size.bytes() && session.up => {
            Some(Decision::Do(NodeStep::Rescan { size: assign.size }))
        }
        Some(_) => None,
        // Whoever has it open waits for the target to come back; the session tries by itself.
        None if !session.up && f.device.is_some() => None,
        None => Some(log_in()),
    }
}

/// Where the NAS exports the volume, and what to log in with.
fn export(record: &NodeRecord) -> Option<(&Endpoint, &IscsiLogin)> {
    record.assign.export.as_ref().zip(record.assign.kernel.as_ref().map(|k| &k.login))
}

/// Gives a device that is there the table it is to have: nothing when it has.
pub(super) fn bring(record: &NodeRecord, f: &Seen<'_>, device: &Device, wanted: Table) -> Option<Decision> {
    let is = device.table.as_ref().ok().copied()?;
    if let Some(why) = device.broken.as_ref().filter(|_| matches!(is, Table::Overlay(_) | Table::Merge(_))) {
        return Some(Decision::Stuck(format!("the overlay of the guest's device takes no more writes: {why}; nothing is ended")));
    }
    // It gets longer on one layer, not on the way to another.
    let present = Size::exact(device.size).unwrap_or(record.assign.size);
    if is == wanted {
        if device.suspended {
            return Some(Decision::Do(NodeStep::ResumeDevice));
        }
        // A merge stops for good at its first error, until its table is put in anew.
        if matches!(wanted, Table::Merge(_)) && device.merge.is_none() {
            return Some(Decision::Do(NodeStep::Swap { table: wanted, size: present }));
        }
        let size = fitting(record, f, wanted);
        let longer = device.size < size.bytes() && matches!(wanted, Table::Linear(_));
        return longer.then_some(Decision::Do(NodeStep::Swap { table: wanted, size }));
    }
    use Layer::{Local, Remote};
    let follows = match (is, wanted) {
        (Table::Linear(Remote), Table::Overlay(Remote))
        | (Table::Overlay(_), Table::Merge(Local))
        | (Table::Linear(Local), Table::Overlay(Local))
        | (Table::Overlay(Local), Table::Merge(Remote)) => true,
        (Table::Merge(from), Table::Linear(to)) => from == to && device.merge.is_some_and(|m| m.left == 0),
        _ => false,
    };
    Some(if follows {
        Decision::Do(NodeStep::Swap { table: wanted, size: present })
    } else {
        Decision::Stuck(format!("the guest's device is {is:?}, and the ledger says {wanted:?}; nothing is changed"))
    })
}

/// How long the device can be with a table: as long as it is to be, or as what it lies on.
pub(super) fn fitting(record: &NodeRecord, f: &Seen<'_>, table: Table) -> Size {
    let under = match table.layer() {
        Layer::Remote => f.session.and_then(|s| s.disk.as_ref()).map(|disk| disk.size),
        Layer::Local => f.local.map(|local| local.size),
    };
    let under = under.and_then(|bytes| Size::exact(bytes - bytes % Size::GRAIN).ok());
    under.map_or(record.assign.size, |under| under.min(record.assign.size))
}

/// The local copy is filled by the NAS's streams; when it is nearly there, authority passes.
fn plan_copy(record: &NodeRecord, f: &Seen<'_>) -> Decision {
    let assign = &record.assign;
    match (record.local, f.local) {
        (None, Some(local)) => return unknown(local),
        (None, None) => return Decision::Record(NodeChange::Local(assign.epoch)),
        (Some(_), Some(local)) => {
            let overwritten = local.written > 0 || fresh(record);
            if let Some(why) = kept_back(record, local).filter(|_| overwritten) {
                return Decision::Stuck(format!("the local copy here would be overwritten, and may be the only one: {why}"));
            }
            if fresh(record) && !local.snapshots.is_empty() {
                return Decision::Do(NodeStep::DestroyLocal);
            }
            if let Some(decision) = at_once(record, f, local).or_else(|| prepare(record, local)) {
                return decision;
            }
        }
        (Some(_), None) => return Decision::Wait("copying to the local pool".to_owned()),
    }
    let Some(local) = f.local.filter(|l| assign.granted && !l.snapshots.is_empty()) else {
        return Decision::Wait("copying to the local pool".to_owned());
    };
    if !local.reserved {
        return Decision::Do(NodeStep::ReserveLocal);
    }
    match f.overlay {
        Some(overlay) if overlay.epoch != assign.epoch => Decision::Do(NodeStep::RemoveOverlay),
        Some(_) if !f.session.is_some_and(|s| s.up) => Decision::Wait(format!("the disk of {} is away", assign.nas)),
        Some(_) => Decision::Record(NodeChange::Lies(Lies::OverRemote)),
        None => Decision::Do(NodeStep::CreateOverlay { epoch: assign.epoch, size: assign.size }),
    }
}

/// Where the local copy is all that the volume has, and nothing is written any more, the guest need not be led over an overlay: nothing where that
/// is not so, or not known.
fn at_once(record: &NodeRecord, f: &Seen<'_>, local: &LocalZvol) -> Option<Decision> {
    let assign = &record.assign;
    let still = assign.kernel.as_ref().and_then(|k| k.still.as_ref()).filter(|_| assign.granted)?;
    let device = f.device.filter(|device| device.writes.as_ref() == Some(&still.writes) && device.size <= local.size)?;
    let there = f.session.is_some_and(|session| session.up);
    if local.snapshots.last() != Some(&still.snapshot) || local.written > 0 || f.overlay.is_some() || !there {
        return None;
    }
    // No late stream may touch what is about to be the truth.
    Some(match (local.reserved, local.receives) {
        (false, Some(_)) => Decision::Do(NodeStep::CloseLocal),
        (false, None) => Decision::Do(NodeStep::ReserveLocal),
        (true, Some(_)) => Decision::Do(NodeStep::SetReceives { epoch: None }),
        (true, None) if device.suspended => Decision::Do(NodeStep::ResumeDevice),
        (true, None) => Decision::Record(NodeChange::Move(still.clone())),
    })
}

/// Makes the local copy ready to take this epoch's streams: nothing when it is.
fn prepare(record: &NodeRecord, local: &LocalZvol) -> Option<Decision> {
    let epoch = record.assign.epoch;
    if local.snapshots.is_empty() && local.resume.is_none() {
        return Some(Decision::Do(NodeStep::DestroyLocal));
    }
    if let Some(decision) = unwritten(local) {
        return Some(decision);
    }
    (local.receives != Some(epoch)).then_some(Decision::Do(NodeStep::SetReceives { epoch: Some(epoch) }))
}

/// Takes a local copy back to its newest snapshot that does not have the newest writes, and could receive nothing as it is: a mapping
/// that is over wrote to it after its last snapshot was home, or somebody did, as ZFS itself does when it sets a size that fails.
pub(super) fn unwritten(local: &LocalZvol) -> Option<Decision> {
    let newest = local.snapshots.last().filter(|_| local.written > 0)?;
    Some(Decision::Do(NodeStep::RollBackLocal { to: newest.id }))
}

/// After a power cut ZFS counts as written what it noted of a copy's log. Who asks whether anything was written would ask in vain from then on, and
/// a copy that is in use cannot be told about: so it is noted first.
fn settle(record: &NodeRecord, f: &Seen<'_>) -> Option<Decision> {
    let noted = f.local.is_some_and(|local| record.local.is_some() && local.unchanged == Some(true) && local.written > 0);
    noted.then_some(Decision::Do(NodeStep::SettleLocal))
}

/// The NAS, which is the truth, has nothing that the local copy could be built on.
fn fresh(record: &NodeRecord) -> bool {
    record.truth == Truth::Remote && !record.assign.granted && record.assign.kernel.as_ref().is_some_and(|k| k.fresh)
}

/// A local copy that the ledger does not know: without a snapshot nothing was ever complete in it, and no guest had it.
fn unknown(local: &LocalZvol) -> Decision {
    if local.snapshots.is_empty() {
        return Decision::Do(NodeStep::DestroyLocal);
    }
    Decision::Stuck("a local copy is here that the ledger does not know; it is left alone".to_owned())
}

pub(super) fn take_down(device: &Device, force: bool) -> Decision {
    // What is suspended cannot be closed by who waits for it.
    if device.suspended && !force { Decision::Do(NodeStep::ResumeDevice) } else { Decision::Do(NodeStep::RemoveDevice { force }) }
}

/// Nothing is to be left but what helps the next time.
fn plan_gone(record: &NodeRecord, f: &Seen<'_>) -> Decision {
    if let Some(device) = f.device {
        return take_down(device, record.assign.force || record.has_ended());
    }
    if f.session.is_some() {
        return Decision::Do(NodeStep::Logout);
    }
    if f.overlay.is_some() {
        return Decision::Do(NodeStep::RemoveOverlay);
    }
    match (f.local, record.local) {
        _ if record.has_ended() => Decision::Rest,
        (Some(local), None) => unknown(local),
        (Some(local), Some(_)) if local.snapshots.is_empty() => Decision::Do(NodeStep::DestroyLocal),
        (Some(local), Some(_)) if local.receives.is_some() => Decision::Do(NodeStep::SetReceives { epoch: None }),
        (Some(local), Some(_)) => Decision::Record(NodeChange::Ended { warm: true, home: home_of(record, local) }),
        // A stream that was under way when the NAS heard of the end may still make one: then it is known.
        (None, made) => Decision::Record(NodeChange::Ended { warm: made.is_some(), home: None }),
    }
}

/// The ledger change that a finished step calls for.
pub fn after(record: &NodeRecord, step: &NodeStep) -> Option<NodeChange> {
    match step {
        // Everything is in the NAS's volume, on stable storage.
        NodeStep::FlushRemote if record.lies == Lies::MergingRemote => Some(NodeChange::Lies(Lies::Remote)),
        _ => None,
    }
}

/// The ledger change that a failed step calls for.
pub fn after_error(record: &NodeRecord, step: &NodeStep, why: &str) -> Option<NodeChange> {
    let NodeStep::TakeSnapshot { snapshot } = step else { return None };
    let order = record.assign.push.as_ref().filter(|order| order.push == *snapshot)?;
    Some(NodeChange::Pushed(PushResult { push: order.push, outcome: PushOutcome::Failed { why: why.to_owned() } }))
}
