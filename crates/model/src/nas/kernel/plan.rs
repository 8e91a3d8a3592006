//! The NAS's planner of the kernel plane: `(ledger row, facts, the node's report) → next step`.
//!
//! This file has the volume's own life and the mapping while the NAS has authority: the export, and the streams that bring the
//! node's copy near; [`super::plan_node`] has the rest.

use super::{
    Export, NasFacts, NasStep, Stream, Way, Zvol,
    assign::{iqn, login},
    plan_node::{plan_maybe_nas, plan_node},
};
use crate::{
    Fact, HostName, SnapshotId,
    messages::{KernelReport, NodePhase, Peer, Report, Still, Want},
    nas::{
        Authority, Context, Mapping, NasChange, Stage, VolumeRecord,
        qemu::{ExportFacts, IMPORT, plain_export},
    },
    node::{JobState, StepResult},
    snapshot::{Snapshot, newest_common},
};

/// A NAS's decision.
pub type Decision = crate::Decision<NasStep, NasChange>;

/// So many of an unmapped volume's snapshots are kept: nodes that had it before may have one of them in common.
const KEPT: usize = 3;

/// The facts, when all are known.
pub(super) struct Seen<'a> {
    pub zvol: Option<&'a Zvol>,
    pub exports: &'a [Export],
    pub import: Option<&'a ExportFacts>,
    pub reader: bool,
    pub stream: Option<&'a Stream>,
}

fn seen(facts: &NasFacts) -> Result<Seen<'_>, String> {
    fn known<'f, T>(what: &str, fact: &'f Fact<T>) -> Result<&'f T, String> {
        match fact {
            Fact::Known(value) => Ok(value),
            Fact::Unknown(why) => Err(format!("{what} cannot be looked at: {why}")),
        }
    }
    Ok(Seen {
        zvol: known("the zvol", &facts.zvol)?.as_ref(),
        exports: known("the exports", &facts.exports)?,
        import: known("the import", &facts.import)?.as_ref(),
        reader: *known("the reader's export", &facts.reader)?,
        stream: facts.stream.as_ref(),
    })
}

/// What to do next about one volume.
pub fn plan(v: &VolumeRecord, facts: &NasFacts, context: &Context<'_>) -> Decision {
    let f = match seen(facts) {
        Ok(f) => f,
        Err(why) => return Decision::Stuck(why),
    };
    match &v.stage {
        Stage::Creating if f.zvol.is_some() => return Decision::Do(NasStep::SyncZvol),
        Stage::Creating => return Decision::Do(NasStep::CreateZvol { size: v.size }),
        Stage::Importing { peer, port, complete, .. } => return plan_import(v, &f, peer, *port, *complete),
        Stage::Deleting => return plan_delete(&f),
        Stage::Ready => {}
    }
    let Some(zvol) = f.zvol else {
        return Decision::Stuck(format!("the zvol of volume {}/{} is not in the pool any more", v.pool, v.name));
    };
    if f.import.is_some() {
        return Decision::Do(NasStep::StopImport);
    }
    match (&context.reader, f.reader) {
        (None, true) => return Decision::Do(NasStep::StopReader),
        // While a stream is taken in, the zvol is no point in time.
        (Some((peer, port)), false) if f.stream.is_none_or(|s| s.way == Way::ToNode) => {
            return Decision::Do(NasStep::StartReader { peer: peer.clone(), port: *port });
        }
        _ => {}
    }
    let Some(m) = &v.mapping else {
        return plan_unmapped(v, &f, zvol);
    };
    if let Some(old) = f.exports.iter().find(|e| e.epoch != m.epoch) {
        return Decision::Do(NasStep::Unexport { epoch: old.epoch });
    }
    let report = v.answered(context.report);
    match m.authority {
        Authority::Nas | Authority::MaybeNode => plan_nas(v, m, &f, zvol, report, context),
        Authority::Node => plan_node(v, m, &f, zvol, report, context),
        Authority::MaybeNas => plan_maybe_nas(v, m, &f, report, context),
    }
}

fn plan_import(v: &VolumeRecord, f: &Seen<'_>, peer: &HostName, port: u16, complete: bool) -> Decision {
    let name = format!("{}.{IMPORT}", plain_export(v.epoch));
    match f.import {
        Some(_) if complete => Decision::Do(NasStep::StopImport),
        None if complete => Decision::Do(NasStep::SyncZvol),
        _ if f.zvol.is_none() => Decision::Do(NasStep::CreateZvol { size: v.size }),
        None => Decision::Do(NasStep::StartImport { epoch: v.epoch, name, peer: peer.clone(), port }),
        Some(_) => Decision::Wait(format!("{peer} is filling it")),
    }
}

fn plan_delete(f: &Seen<'_>) -> Decision {
    match f.exports.first() {
        Some(export) => Decision::Do(NasStep::Unexport { epoch: export.epoch }),
        None if f.import.is_some() => Decision::Do(NasStep::StopImport),
        None if f.reader => Decision::Do(NasStep::StopReader),
        None if f.stream.is_some() => Decision::Do(NasStep::EndStream),
        None if f.zvol.is_some() => Decision::Do(NasStep::DestroyZvol),
        // Seen, and not only said by who destroyed it.
        None => Decision::Record(NasChange::Deleted),
    }
}

fn plan_unmapped(v: &VolumeRecord, f: &Seen<'_>, zvol: &Zvol) -> Decision {
    match f.exports.first() {
        Some(export) => Decision::Do(NasStep::Unexport { epoch: export.epoch }),
        None if f.stream.is_some() => Decision::Do(NasStep::EndStream),
        None if zvol.resume.is_some() => Decision::Do(NasStep::DiscardReceived),
        None if zvol.size < v.size.bytes() => Decision::Do(NasStep::GrowZvol { size: v.size }),
        None => match zvol.snapshots.first() {
            Some(oldest) if zvol.snapshots.len() > KEPT => Decision::Do(NasStep::DropSnapshot { snapshot: oldest.snapshot.id }),
            _ => Decision::Rest,
        },
    }
}

/// Makes sure that the node can log in: nothing when it can.
pub(super) fn exported(v: &VolumeRecord, m: &Mapping, f: &Seen<'_>, context: &Context<'_>) -> Option<Decision> {
    let export = f.exports.iter().find(|e| e.epoch == m.epoch);
    if export.is_some_and(|e| e.complete) {
        return None;
    }
    let Some(initiator) = context.initiator else {
        return Some(Decision::Wait(format!("{} has not said its iSCSI name; is open-iscsi installed there?", m.node)));
    };
    Some(Decision::Do(NasStep::Export {
        epoch: m.epoch,
        iqn: iqn(context.nas, v.id, m.epoch),
        initiator: initiator.to_owned(),
        login: login(v, m, context.password),
    }))
}

/// The NAS has the newest writes (the node may have been allowed to pivot).
fn plan_nas(
    v: &VolumeRecord,
    m: &Mapping,
    f: &Seen<'_>,
    zvol: &Zvol,
    report: Option<&Report>,
    context: &Context<'_>,
) -> Decision {
    if report.is_some_and(|r| r.pivoted) {
        return match m.authority {
            Authority::MaybeNode => Decision::Record(NasChange::Authority(Authority::Node)),
            _ => Decision::Stuck(format!(
                "{} says that it has the newest writes, this ledger says that they are here; nothing is ended",
                m.node
            )),
        };
    }
    // A stream to a node that is not to have it, or that does not listen.
    let wanted = m.want == Want::Local && report.is_none_or(|r| r.kernel.as_ref().is_some_and(|k| k.receives));
    if f.stream.is_some() && !wanted {
        return Decision::Do(NasStep::EndStream);
    }
    if m.want == Want::Gone {
        let gone = report.is_some_and(|r| r.phase == NodePhase::Gone) || (m.abandon && m.authority == Authority::Nas);
        if !gone {
            return Decision::Wait(format!("{} lets go of it", m.node));
        }
        return match f.exports.first() {
            Some(export) => Decision::Do(NasStep::Unexport { epoch: export.epoch }),
            None => Decision::Record(NasChange::Unmapped),
        };
    }
    if zvol.size < v.size.bytes() && !m.keeps_size() {
        return Decision::Do(NasStep::GrowZvol { size: v.size });
    }
    if let Some(decision) = exported(v, m, f, context) {
        return decision;
    }
    match (m.want, report) {
        // The node has stored that it is to stay here: it can no longer pivot.
        (Want::Remote, Some(r)) if m.authority == Authority::MaybeNode && r.phase == NodePhase::Remote => {
            Decision::Record(NasChange::Authority(Authority::Nas))
        }
        (Want::Remote, Some(r)) if r.phase == NodePhase::Remote => Decision::Rest,
        (Want::Remote, _) => Decision::Wait(format!("{} attaches it", m.node)),
        (_, Some(r)) if r.phase == NodePhase::Copying && m.authority == Authority::Nas => plan_copy(m, f, zvol, r, context),
        _ => Decision::Wait(format!("{} makes ready for its local copy", m.node)),
    }
}

/// Rounds of snapshots to the node, each a difference to the one before, until what is left is small.
fn plan_copy(m: &Mapping, f: &Seen<'_>, zvol: &Zvol, report: &Report, context: &Context<'_>) -> Decision {
    let Some(kernel) = report.kernel.as_ref().filter(|k| k.receives) else {
        return Decision::Wait(format!("{} makes ready for its local copy", m.node));
    };
    if let Some(decision) = streaming(f, context) {
        return decision;
    }
    let common = newest_common(&zvol.points(), &kernel.snapshots);
    // What the node kept of an earlier mapping cannot be built on: it goes, there, and everything is copied.
    let useless = !kernel.snapshots.is_empty() && kernel.snapshots.last() != common.as_ref();
    match (m.copying.fresh, useless) {
        (false, true) => return Decision::Record(NasChange::Fresh(true)),
        (true, _) if !kernel.snapshots.is_empty() => {
            return Decision::Wait(format!("{} removes a local copy that nothing can be built on", m.node));
        }
        (true, _) => return Decision::Record(NasChange::Fresh(false)),
        (false, false) => {}
    }
    match m.copying.round {
        Some(round) => send(m, zvol, kernel, common, round, context).unwrap_or(Decision::Record(NasChange::RoundDone)),
        None => {
            let newest = zvol.snapshots.last().map(|s| s.snapshot);
            match (common.filter(|_| common == newest && m.copying.nearly_there(zvol.written)), &kernel.writes) {
                // Perhaps that is all there is, and the guest need not be led over an overlay.
                (Some(common), Some(writes)) if zvol.written == 0 => {
                    Decision::Do(NasStep::CountWritten { still: Still { snapshot: common, writes: writes.clone() } })
                }
                (Some(_), _) => Decision::Record(NasChange::Authority(Authority::MaybeNode)),
                (None, _) => Decision::Record(NasChange::Round),
            }
        }
    }
}

/// What a stream that is there asks for: nothing when there is none.
pub(super) fn streaming(f: &Seen<'_>, context: &Context<'_>) -> Option<Decision> {
    let stream = f.stream?;
    Some(match &stream.job.state {
        JobState::Running if stream.job.speed != context.speed(stream.way).get() => {
            Decision::Do(NasStep::SetSpeed { speed: context.speed(stream.way) })
        }
        JobState::Running | JobState::Ready | JobState::Pending => Decision::Wait(match stream.way {
            Way::ToNode => "sending to the node".to_owned(),
            Way::FromNode => "fetching the write-back".to_owned(),
        }),
        JobState::Done | JobState::Failed(_) | JobState::Paused(_) => Decision::Do(NasStep::EndStream),
    })
}

/// Brings one snapshot to the node: nothing when it is there.
pub(super) fn send(
    m: &Mapping,
    zvol: &Zvol,
    kernel: &KernelReport,
    common: Option<Snapshot>,
    to: SnapshotId,
    context: &Context<'_>,
) -> Option<Decision> {
    match zvol.point(to) {
        None => return Some(Decision::Do(NasStep::TakeSnapshot { snapshot: to })),
        // What the node is to have in common with this volume is kept from the moment that it is sent.
        Some(taken) if !taken.held => return Some(Decision::Do(NasStep::Hold { snapshot: to })),
        Some(_) => {}
    }
    if common.is_some_and(|c| c.id == to) {
        return None;
    }
    // What the node has and the NAS has not cannot be built on, and is not thrown away by a stream.
    if common.is_none() && !kernel.snapshots.is_empty() {
        return Some(Decision::Stuck(format!(
            "the local copy on {} has no snapshot in common with this volume; nothing is ended",
            m.node
        )));
    }
    Some(Decision::Do(NasStep::Send {
        peer: peer(m, kernel, context),
        from: common.map(|c| c.id),
        to,
        resume: kernel.resume.clone(),
        speed: context.speeds.download,
    }))
}

pub(super) fn peer(m: &Mapping, kernel: &KernelReport, context: &Context<'_>) -> Peer {
    let address = context.peer_address.map_or_else(|| m.node.to_string(), str::to_owned);
    Peer { host: m.node.clone(), address, dataset: kernel.dataset.clone(), epoch: m.epoch }
}

/// The ledger change that a finished step calls for.
pub fn after(v: &VolumeRecord, step: &NasStep, result: &StepResult) -> Option<NasChange> {
    match (step, result) {
        (NasStep::SyncZvol, _) if v.stage != Stage::Ready => Some(NasChange::Created),
        (NasStep::EndStream, StepResult::Streamed { moved, took_ms }) => {
            v.mapping.is_some().then_some(NasChange::Streamed { moved: *moved, took_ms: *took_ms })
        }
        (NasStep::CountWritten { still }, StepResult::Written(bytes)) => {
            let m = v.mapping.as_ref().filter(|m| m.authority == Authority::Nas && m.want == Want::Local)?;
            match bytes {
                0 => Some(NasChange::Grant(still.clone())),
                // Else another round, once it is looked at again.
                some => m.copying.nearly_there(*some).then_some(NasChange::Authority(Authority::MaybeNode)),
            }
        }
        _ => None,
    }
}

/// The ledger change that a failed step calls for.
pub fn after_error(v: &VolumeRecord, step: &NasStep) -> Option<NasChange> {
    if matches!(step, NasStep::CountWritten { .. }) {
        // Then by way of the overlay.
        let copies = v.mapping.as_ref().is_some_and(|m| m.authority == Authority::Nas && m.want == Want::Local);
        return copies.then_some(NasChange::Authority(Authority::MaybeNode));
    }
    (v.stage == Stage::Creating || matches!(v.stage, Stage::Importing { complete: false, .. })).then_some(NasChange::GiveUp)
}

/// Why a stream does not get on: it is tried again, with growing pauses.
pub fn setback(facts: &NasFacts) -> Option<String> {
    match &facts.stream.as_ref()?.job.state {
        JobState::Failed(why) | JobState::Paused(why) => Some(why.clone()),
        _ => None,
    }
}
