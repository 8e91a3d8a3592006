//! What a node on the kernel plane tells its NAS.

use super::{LocalZvol, NodeFacts, Table};
use crate::{
    Fact,
    messages::{KernelReport, NodePhase, Report, Want},
    node::{Layer, Lies, NodeRecord, Truth},
};

fn known<T>(fact: &Fact<Option<T>>) -> Option<&T> {
    fact.known().and_then(Option::as_ref)
}

/// The phase the facts and the ledger show.
pub fn phase(record: &NodeRecord, facts: &NodeFacts) -> NodePhase {
    let device = known(&facts.device).filter(|d| d.epoch == record.assign.epoch);
    let gone = record.assign.want == Want::Gone;
    match record.lies {
        Lies::Remote if record.has_ended() => {
            let left = known(&facts.session).is_some() || known(&facts.device).is_some();
            if left { NodePhase::Attaching } else { NodePhase::Gone }
        }
        Lies::Moving | Lies::OverRemote | Lies::MergingLocal => NodePhase::Switching,
        Lies::OverLocal | Lies::MergingRemote => NodePhase::BringingBack,
        Lies::Local if gone && device.is_none() => NodePhase::Returning,
        Lies::Remote | Lies::Local if device.is_none() => NodePhase::Attaching,
        Lies::Local => NodePhase::Local,
        Lies::Remote if receives(record, known(&facts.local)) => NodePhase::Copying,
        Lies::Remote => NodePhase::Remote,
    }
}

/// Whether the NAS's streams are welcome: while the NAS has, or had until the overlay came, everything.
fn receives(record: &NodeRecord, local: Option<&LocalZvol>) -> bool {
    let before = match record.lies {
        Lies::Remote => record.assign.want == Want::Local && record.local.is_some(),
        Lies::OverRemote => true,
        _ => false,
    };
    before && local.is_none_or(|l| l.receives == Some(record.assign.epoch))
}

/// What this node tells the NAS. `device` is what a guest would use; `stuck` what the actor could not get past.
pub fn report(record: &NodeRecord, facts: &NodeFacts, device: &str, stuck: Option<String>) -> Report {
    let (session, local) = (known(&facts.session), known(&facts.local));
    let mapped = known(&facts.device).filter(|d| d.epoch == record.assign.epoch);
    let table = mapped.and_then(|d| d.table.as_ref().ok());
    // Before it is seen whether the device was moved nobody is told that it was.
    let pivoted = record.truth == Truth::Local && record.lies != Lies::Moving;
    let looked = facts.session.known().is_some() && facts.device.known().is_some();
    let plain = facts.device.known().is_some_and(|d| d.as_ref().is_none_or(|d| d.table == Ok(Table::Linear(Layer::Local))));
    let off_nas = match table {
        Some(table) => table.layer() == Layer::Local,
        None => matches!(record.lies, Lies::MergingLocal | Lies::Local | Lies::OverLocal),
    };
    let newest_is_home = local.is_some_and(|l| {
        let base = record.base().map(|b| b.id);
        l.snapshots.last().is_some_and(|s| Some(s.id) == record.assign.accepted.or(base))
    });
    Report {
        volume: record.volume,
        epoch: record.assign.epoch,
        revision: record.assign.revision,
        phase: phase(record, facts),
        pivoted,
        detached: pivoted && looked && session.is_none() && off_nas,
        attached: session.filter(|s| s.up).map(|s| s.iqn.clone()),
        device: mapped.filter(|d| d.table.is_ok() && !d.suspended).map(|_| device.to_owned()),
        progress: mapped.and_then(|d| d.merge).map(super::Merge::progress),
        // While an overlay is in place, or was when the local copy was looked at, its writes are counted nowhere.
        dirty: local.filter(|_| pivoted && newest_is_home && plain).map(|l| l.written),
        pushed: record.pushed.clone(),
        asked: None,
        proof: record.assign.proof.clone(),
        stuck,
        notice: None,
        kernel: facts.local.known().map(|_| KernelReport {
            dataset: facts.dataset.clone(),
            receives: receives(record, local),
            snapshots: local.map(|l| l.snapshots.clone()).unwrap_or_default(),
            resume: local.and_then(|l| l.resume.clone()),
            overlaid: matches!(table, Some(Table::Overlay(_))) && !mapped.is_some_and(|d| d.suspended),
            writes: mapped.filter(|d| d.quiet && record.lies == Lies::Remote).and_then(|d| d.writes.clone()),
        }),
    }
}
