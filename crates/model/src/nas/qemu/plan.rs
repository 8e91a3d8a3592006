//! The NAS's planner of the qemu plane: `(ledger row, facts, the node's report) → next step`.
//!
//! This file has the volume's own life and the mapping while the NAS has authority; [`super::plan_node`] has the rest.
//! Reports count only when they answer the newest assignment (same epoch, same revision): an old one that
//! comes late can then never be taken for news.

use super::{
    ExportFacts, IncomingFacts, NasFacts, NasStep,
    assign::back_export,
    plain_export,
    plan_node::{plan_maybe_nas, plan_node},
    step::IMPORT,
};
use crate::{
    Fact, HostName, SnapshotId,
    messages::{NodePhase, Report, Want},
    nas::{Authority, Context, Mapping, NasChange, NasLayer, Stage, VolumeRecord},
    node::{JobState, StepResult},
};

/// A NAS's decision.
pub type Decision = crate::Decision<NasStep, NasChange>;

/// The facts, when all are known.
pub(super) struct Seen<'a> {
    pub disk: bool,
    pub size: u64,
    pub export: Option<&'a ExportFacts>,
    pub incoming: Option<IncomingFacts>,
    pub pending: Option<SnapshotId>,
    pub overlay: bool,
    pub reader: bool,
}

fn seen(facts: &NasFacts) -> Result<Seen<'_>, String> {
    fn known<'f, T>(what: &str, fact: &'f Fact<T>) -> Result<&'f T, String> {
        match fact {
            Fact::Known(value) => Ok(value),
            Fact::Unknown(why) => Err(format!("{what} cannot be looked at: {why}")),
        }
    }
    let disk = known("the volume's file", &facts.disk)?;
    Ok(Seen {
        disk: disk.is_some(),
        size: disk.map_or(0, |d| d.size),
        export: known("the export", &facts.export)?.as_ref(),
        incoming: *known("the incoming file", &facts.incoming)?,
        pending: *known("the pending file", &facts.pending)?,
        overlay: known("the overlay", &facts.overlay)?.is_some(),
        reader: *known("the reader's export", &facts.reader)?,
    })
}

/// What to do next about one volume.
pub fn plan(v: &VolumeRecord, facts: &NasFacts, context: &Context<'_>) -> Decision {
    let f = match seen(facts) {
        Ok(f) => f,
        Err(why) => return Decision::Stuck(why),
    };
    match &v.stage {
        Stage::Creating => {
            return if f.disk { Decision::Do(NasStep::SyncDisk) } else { Decision::Do(NasStep::CreateDisk { size: v.size }) };
        }
        Stage::Importing { peer, port, complete, .. } => return plan_import(v, &f, peer, *port, *complete),
        Stage::Deleting => return plan_delete(&f),
        Stage::Ready => {}
    }
    if !f.disk {
        return Decision::Stuck(format!("the file of volume {}/{} is not in the pool any more", v.pool, v.name));
    }
    match (&context.reader, f.reader) {
        (None, true) => return Decision::Do(NasStep::StopReader),
        // While a write-back is half folded in, the volume's file is no point in time.
        (Some((peer, port)), false) if f.pending.is_none() => {
            return Decision::Do(NasStep::StartReader { peer: peer.clone(), port: *port });
        }
        _ => {}
    }
    let Some(m) = &v.mapping else {
        return plan_unmapped(v, &f);
    };
    let report = v.answered(context.report);
    if let Some(push) = f.pending {
        let accepted = m.accepted.as_ref().is_some_and(|a| a.push == push);
        return match &m.push {
            _ if accepted => Decision::Do(NasStep::RemovePending { push }),
            Some(p) if p.push == push && f.reader => {
                Decision::Wait("a reader is copying the volume; the write-back waits".to_owned())
            }
            Some(p) if p.push == push => Decision::Do(NasStep::CommitPending { push }),
            _ => Decision::Stuck(format!("write-back {push} is complete but the ledger does not know it")),
        };
    }
    match m.authority {
        Authority::Nas | Authority::MaybeNode => plan_nas(v, m, &f, report),
        Authority::Node => plan_node(m, &f, report, context),
        Authority::MaybeNas => plan_maybe_nas(m, &f, report),
    }
}

fn plan_import(v: &VolumeRecord, f: &Seen<'_>, peer: &HostName, port: u16, complete: bool) -> Decision {
    let name = format!("{}.{IMPORT}", plain_export(v.epoch));
    match f.export {
        Some(_) if complete => Decision::Do(NasStep::StopExport),
        None if complete => Decision::Do(NasStep::SyncDisk),
        _ if !f.disk => Decision::Do(NasStep::CreateDisk { size: v.size }),
        None => Decision::Do(NasStep::StartExport { epoch: v.epoch, name, peer: peer.clone(), port, layer: NasLayer::Disk }),
        Some(_) => Decision::Wait(format!("{peer} is filling it")),
    }
}

fn plan_delete(f: &Seen<'_>) -> Decision {
    if f.export.is_some() {
        Decision::Do(NasStep::StopExport)
    } else if f.reader {
        Decision::Do(NasStep::StopReader)
    } else if f.incoming.is_some() {
        Decision::Do(NasStep::DiscardIncoming)
    } else {
        // Also where there is no file: a creation that was cut off leaves a directory with our mark.
        Decision::Do(NasStep::RemoveDisk)
    }
}

fn plan_unmapped(v: &VolumeRecord, f: &Seen<'_>) -> Decision {
    if f.export.is_some() {
        Decision::Do(NasStep::StopExport)
    } else if f.incoming.is_some() {
        Decision::Do(NasStep::DiscardIncoming)
    } else if let Some(push) = f.pending {
        Decision::Stuck(format!("write-back {push} is complete but no mapping knows it"))
    } else if f.overlay {
        Decision::Stuck("an overlay is here that no mapping knows".to_owned())
    } else if f.size < v.size.bytes() {
        Decision::Do(NasStep::GrowDisk { size: v.size })
    } else {
        Decision::Rest
    }
}

/// The NAS has the newest writes (the node may have been allowed to pivot).
fn plan_nas(v: &VolumeRecord, m: &Mapping, f: &Seen<'_>, report: Option<&Report>) -> Decision {
    if m.authority == Authority::MaybeNode && report.is_some_and(|r| r.pivoted) {
        return Decision::Record(NasChange::Authority(Authority::Node));
    }
    if m.authority == Authority::Nas && report.is_some_and(|r| r.pivoted) {
        return Decision::Stuck(format!(
            "{} says that it has the newest writes, this ledger says that they are here; nothing is ended",
            m.node
        ));
    }
    // The end of the live commit was written down but failed: the guest's writes still go to the overlay.
    let unfolded = |e: &ExportFacts| {
        e.over == NasLayer::Overlay && e.commit.as_ref().is_none_or(|c| !matches!(c.state, JobState::Pending | JobState::Done))
    };
    if m.layer == NasLayer::Disk && f.export.is_some_and(unfolded) {
        return Decision::Record(NasChange::Layer(NasLayer::Overlay));
    }
    let gone = report.is_some_and(|r| r.phase == NodePhase::Gone) || (m.abandon && m.authority == Authority::Nas);
    if m.want == Want::Gone && gone && m.layer == NasLayer::Disk {
        return match f.export {
            Some(export) if export.commit.as_ref().is_some_and(|c| c.state == JobState::Pending) => {
                Decision::Do(NasStep::FinalizeCommit)
            }
            Some(_) => Decision::Do(NasStep::StopExport),
            None if f.overlay => Decision::Do(NasStep::RemoveOverlay),
            None if f.incoming.is_some() => Decision::Do(NasStep::DiscardIncoming),
            None => Decision::Record(NasChange::Unmapped),
        };
    }
    let plain = plain_export(m.epoch);
    let back = back_export(m);
    let Some(export) = f.export else {
        if f.overlay && m.layer == NasLayer::Disk {
            return Decision::Do(NasStep::RemoveOverlay);
        }
        if f.size < v.size.bytes() && m.layer == NasLayer::Disk {
            return Decision::Do(NasStep::GrowDisk { size: v.size });
        }
        // A node that still works on the overlay's name finds it again; it is moved over below.
        let told = v.assign.as_ref().and_then(|a| a.export.as_ref()).is_some_and(|e| e.export == back);
        let on_back = told || report.is_some_and(|r| r.attached.as_ref() == Some(&back));
        let name = if m.layer == NasLayer::Overlay || on_back { back } else { plain };
        return Decision::Do(NasStep::StartExport { epoch: m.epoch, name, peer: m.node.clone(), port: m.port, layer: m.layer });
    };
    if export.epoch != m.epoch || export.peer != m.node || export.port != m.port {
        return Decision::Do(NasStep::StopExport);
    }
    if f.incoming.is_some() {
        return Decision::Do(NasStep::DiscardIncoming);
    }
    match (m.layer, export.commit.as_ref().map(|c| &c.state)) {
        (NasLayer::Overlay, None) if f.reader => return Decision::Wait("a reader is copying the volume".to_owned()),
        (NasLayer::Overlay, None) => return Decision::Do(NasStep::StartCommit),
        (NasLayer::Overlay, Some(JobState::Ready)) => return Decision::Do(NasStep::CompleteCommit),
        (NasLayer::Overlay, Some(JobState::Pending)) => {
            return Decision::Record(NasChange::Layer(NasLayer::Disk));
        }
        (NasLayer::Overlay, Some(JobState::Failed(_) | JobState::Paused(_))) => {
            return Decision::Do(NasStep::EndCommit);
        }
        // A commit that is over without the ledger's word cannot be; if it is, the file has everything.
        (NasLayer::Overlay, Some(JobState::Done)) => {
            return Decision::Record(NasChange::Layer(NasLayer::Disk));
        }
        (NasLayer::Overlay, Some(JobState::Running)) => {
            return Decision::Wait("folding what came back into the volume".to_owned());
        }
        (NasLayer::Disk, Some(_)) => return Decision::Do(NasStep::FinalizeCommit),
        (NasLayer::Disk, None) => {}
    }
    if !export.names.contains(&plain) {
        return Decision::Do(NasStep::AddExport { name: plain });
    }
    // Told to move and not there yet when the export died: what its guest wrote last can be flushed by the old name alone.
    if report.is_some_and(|r| r.attached.as_ref() == Some(&back)) && !export.names.contains(&back) {
        return Decision::Do(NasStep::AddExport { name: back });
    }
    if export.names.contains(&back) {
        return match report {
            Some(r) if r.attached.as_ref() == Some(&plain) || r.phase == NodePhase::Gone => {
                Decision::Do(NasStep::RemoveExport { name: back })
            }
            _ => Decision::Wait(format!("{} moves to the volume's own export", m.node)),
        };
    }
    if f.overlay {
        return Decision::Do(NasStep::RemoveOverlay);
    }
    match m.want {
        Want::Gone => Decision::Wait(format!("{} lets go of it", m.node)),
        Want::Local if m.authority == Authority::Nas && report.is_some_and(|r| r.phase == NodePhase::Ready) => {
            Decision::Record(NasChange::Authority(Authority::MaybeNode))
        }
        Want::Local => Decision::Wait(format!("{} copies it", m.node)),
        // The node has stored that it is to stay here: it can no longer pivot.
        Want::Remote if m.authority == Authority::MaybeNode && report.is_some_and(|r| r.phase == NodePhase::Remote) => {
            Decision::Record(NasChange::Authority(Authority::Nas))
        }
        Want::Remote if report.is_some_and(|r| r.phase == NodePhase::Remote) => Decision::Rest,
        Want::Remote => Decision::Wait(format!("{} attaches it", m.node)),
    }
}

/// The ledger change that a finished step calls for.
pub fn after(v: &VolumeRecord, step: &NasStep, result: &StepResult) -> Option<NasChange> {
    let push = v.mapping.as_ref().and_then(|m| m.push.as_ref());
    match (step, result) {
        (NasStep::SyncDisk, _) if v.stage != Stage::Ready => Some(NasChange::Created),
        (NasStep::RemoveDisk, _) if v.stage == Stage::Deleting => Some(NasChange::Deleted),
        (NasStep::VerifyIncoming { push: p, .. }, StepResult::Verified(same)) if push.is_some_and(|s| s.push == *p) => {
            Some(if *same {
                NasChange::Verified
            } else {
                NasChange::PushFailed { why: "what arrived is not what the node sent; nothing of it was used".to_owned() }
            })
        }
        (NasStep::CommitPending { push: p }, _) if push.is_some_and(|s| s.push == *p) => Some(NasChange::Accepted),
        _ => None,
    }
}

/// The ledger change that a failed step calls for: a write-back that cannot be taken in is given up and ordered anew.
pub fn after_error(v: &VolumeRecord, step: &NasStep, why: &str) -> Option<NasChange> {
    if v.stage == Stage::Creating || matches!(v.stage, Stage::Importing { complete: false, .. }) {
        return Some(NasChange::GiveUp);
    }
    if matches!(step, NasStep::StartExport { .. }) && v.assign.is_none() {
        return Some(NasChange::NewPort);
    }
    let taking = matches!(step, NasStep::CreateIncoming { .. } | NasStep::ServeIncoming { .. } | NasStep::VerifyIncoming { .. });
    let pushing = v.mapping.as_ref().is_some_and(|m| m.push.as_ref().is_some_and(|p| !p.verified));
    (taking && pushing).then(|| NasChange::PushFailed { why: why.to_owned() })
}

/// Why a live commit of an overlay failed or stands still.
pub fn setback(facts: &NasFacts) -> Option<String> {
    match &facts.export.known()?.as_ref()?.commit.as_ref()?.state {
        JobState::Failed(why) | JobState::Paused(why) => Some(format!("what came back cannot be folded into the volume: {why}")),
        _ => None,
    }
}
