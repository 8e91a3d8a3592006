//! The node's planner of the qemu plane: `(ledger row, facts) → next step`.
//!
//! Before the pivot everything converges down: the NAS has it all and the local file may be thrown away. After it, see
//! [`super::plan_local`].

use super::{
    Incremental, LocalFile, Moving, NodeFacts, NodeStep, QsdFacts,
    plan_local::{plan_local, trusted},
};
use crate::{
    Fact,
    messages::{NodePhase, Progress, Report, Want},
    nas::qemu::plain_export,
    node::{Job, JobState, Layer, NodeChange, NodeRecord, PushOutcome, PushResult, StepResult, Truth},
};

/// A node's decision.
pub type Decision = crate::Decision<NodeStep, NodeChange>;

/// What to do next about one volume on this node.
pub fn plan(record: &NodeRecord, facts: &NodeFacts) -> Decision {
    let qsd = match &facts.qsd {
        Fact::Known(qsd) => qsd.as_ref(),
        Fact::Unknown(why) => {
            return Decision::Stuck(format!("the storage daemon cannot be looked at: {why}"));
        }
    };
    let local = match &facts.local {
        Fact::Known(local) => *local,
        Fact::Unknown(why) => {
            return Decision::Stuck(format!("the local pool cannot be looked at: {why}"));
        }
    };
    if record.has_ended() && qsd.is_none() {
        return Decision::Rest;
    }
    if record.truth == Truth::Local {
        return plan_local(record, qsd, local);
    }
    let assign = &record.assign;
    if let Some(qsd) = qsd
        && qsd.epoch != assign.epoch
    {
        return Decision::Do(NodeStep::Stop { force: true });
    }
    // Whatever is wanted: a pivot back that is written down is done first, or was not one.
    if let Some(qsd) = qsd.filter(|q| q.top == Layer::Local) {
        match (&qsd.back_mirror, &qsd.copy) {
            (Some(mirror), _) if matches!(mirror.state, JobState::Pending | JobState::Done) => {
                return Decision::Do(NodeStep::FinalizeBack);
            }
            (None, Some(copy)) if copy.state != JobState::Done => {}
            // The guest still works, or works already, on the local copy.
            _ => return Decision::Record(NodeChange::Truth(Truth::Local)),
        }
    }
    match assign.want {
        Want::Gone => match qsd {
            Some(qsd) if qsd.guest => Decision::Do(NodeStep::RemoveGuest { force: assign.force }),
            Some(_) => Decision::Do(NodeStep::Stop { force: assign.force }),
            None => match local {
                Some(file) => throw_away(record, file),
                None => Decision::Record(NodeChange::Ended { warm: false, home: None }),
            },
        },
        Want::Remote | Want::Local => plan_remote(record, qsd, local),
    }
}

fn plan_remote(record: &NodeRecord, qsd: Option<&QsdFacts>, local: Option<LocalFile>) -> Decision {
    let assign = &record.assign;
    let Some(qsd) = qsd else {
        // What an earlier copy left behind is no truth, and the NAS has everything in its own copy.
        if let Some(file) = local.filter(|_| assign.release) {
            return throw_away(record, file);
        }
        return match &assign.export {
            Some(endpoint) => {
                Decision::Do(NodeStep::Start { epoch: assign.epoch, over: Layer::Remote, endpoint: Some(endpoint.clone()) })
            }
            None => Decision::Wait(format!("waiting for {} to export the volume", assign.nas)),
        };
    };
    if qsd.back_mirror.is_some()
        || qsd.back_fill.is_some()
        || (qsd.top == Layer::Remote && !qsd.bitmaps.is_empty() && qsd.copy.is_none())
    {
        return Decision::Do(NodeStep::FinalizeBack);
    }
    if !qsd.guest {
        return Decision::Do(NodeStep::AddGuest { device: assign.device });
    }
    if let Some(endpoint) = &assign.export
        && qsd.remote.as_ref() != Some(&endpoint.export)
        && qsd.copy.is_none()
    {
        return Decision::Do(NodeStep::Reattach { endpoint: endpoint.clone() });
    }
    if assign.want == Want::Remote {
        return if qsd.copy.is_some() || qsd.local {
            Decision::Do(NodeStep::CancelCopy)
        } else {
            match local {
                Some(file) if assign.release => throw_away(record, file),
                Some(_) => Decision::Wait(format!("waiting for {} to fold what came back into its copy", assign.nas)),
                None => Decision::Rest,
            }
        };
    }
    let Some(copy) = &qsd.copy else {
        // A copy holds on to its export, and the overlay's goes as soon as it is folded in.
        if qsd.remote.as_ref() != Some(&plain_export(assign.epoch)) {
            return Decision::Wait(format!("waiting for {} to fold what came back into its copy", assign.nas));
        }
        return match local {
            None if record.local != Some(assign.epoch) => Decision::Record(NodeChange::Local(assign.epoch)),
            None => Decision::Do(NodeStep::CreateLocal { epoch: assign.epoch, size: assign.size }),
            Some(file) if record.local != Some(file.epoch) => throw_away(record, file),
            Some(file) if file.size != assign.size.bytes() || file.epoch != assign.epoch => {
                if qsd.local {
                    Decision::Do(NodeStep::CancelCopy)
                } else {
                    Decision::Do(NodeStep::RemoveLocal)
                }
            }
            Some(_) if !qsd.local => Decision::Do(NodeStep::OpenLocal),
            Some(_) => Decision::Do(NodeStep::StartCopy { speed: assign.speeds.download }),
        };
    };
    match &copy.state {
        JobState::Running if copy.speed != assign.speeds.download.get() => {
            Decision::Do(NodeStep::SetSpeed { job: Moving::Copy, speed: assign.speeds.download })
        }
        JobState::Running => Decision::Wait("copying to the local disk".to_owned()),
        JobState::Paused(_) => Decision::Do(NodeStep::ResumeCopy),
        JobState::Failed(_) => Decision::Do(NodeStep::CancelCopy),
        JobState::Ready if local.is_some_and(|file| !file.reserved) => Decision::Do(NodeStep::ReserveLocal),
        JobState::Ready if assign.granted => Decision::Do(NodeStep::CompleteCopy),
        JobState::Ready => Decision::Wait(format!("copied; waiting for {} to allow the switch", assign.nas)),
        JobState::Pending if !qsd.bitmaps.iter().any(|b| b.since == Incremental::Pivot) => {
            Decision::Do(NodeStep::AddBitmap { since: Incremental::Pivot })
        }
        JobState::Pending => Decision::Record(NodeChange::Truth(Truth::Local)),
        // It cannot be done before the ledger says so; the guest works on the local copy all the same.
        JobState::Done => Decision::Record(NodeChange::Truth(Truth::Local)),
    }
}

/// Removes a local file that is not the truth; one that the ledger does not know is left alone.
fn throw_away(record: &NodeRecord, file: LocalFile) -> Decision {
    if record.local == Some(file.epoch) {
        Decision::Do(NodeStep::RemoveLocal)
    } else {
        Decision::Stuck(format!("a local copy of epoch {} is here that the ledger does not know; it is left alone", file.epoch))
    }
}

/// The ledger change that a finished step calls for.
pub fn after(record: &NodeRecord, step: &NodeStep, result: &StepResult) -> Option<NodeChange> {
    match (step, result) {
        (NodeStep::DigestPush { push, .. }, StepResult::Digest { extents, digest, moved }) => {
            let push = record.assign.push.as_ref().map(|order| order.push).filter(|ordered| ordered == push)?;
            let outcome = PushOutcome::Sent { extents: extents.clone(), digest: digest.clone(), moved: *moved };
            Some(NodeChange::Pushed(PushResult { push, outcome }))
        }
        _ => None,
    }
}

/// Why a copy or bring-back does not get on, as the jobs say: it is tried again, with growing pauses.
pub fn setback(facts: &NodeFacts) -> Option<&str> {
    let qsd = facts.qsd.known()?.as_ref()?;
    [&qsd.copy, &qsd.back_mirror, &qsd.back_fill].into_iter().flatten().find_map(|job| match &job.state {
        JobState::Failed(why) | JobState::Paused(why) => Some(why.as_str()),
        _ => None,
    })
}

/// What lets a guest go on that is held for a pivot the ledger cannot take down.
pub fn retreat(facts: &NodeFacts) -> Option<NodeStep> {
    let qsd = facts.qsd.known()?.as_ref()?;
    let held = |job: &Option<Job>| job.as_ref().is_some_and(|j| j.state == JobState::Pending);
    if held(&qsd.copy) {
        Some(NodeStep::CancelCopy)
    } else if held(&qsd.back_mirror) {
        Some(NodeStep::CancelBack)
    } else {
        None
    }
}

/// The ledger change that a failed step calls for: a push is given up at its first error, and the NAS orders another.
pub fn after_error(record: &NodeRecord, step: &NodeStep, why: &str) -> Option<NodeChange> {
    let pushing = matches!(
        step,
        NodeStep::InsertFleece
            | NodeStep::OpenSource { .. }
            | NodeStep::OpenIncoming { .. }
            | NodeStep::StartPush { .. }
            | NodeStep::DigestPush { .. }
    );
    let order = record.assign.push.as_ref().filter(|_| pushing)?;
    Some(NodeChange::Pushed(PushResult { push: order.push, outcome: PushOutcome::Failed { why: why.to_owned() } }))
}

/// The phase the facts and the ledger show.
pub fn phase(record: &NodeRecord, facts: &NodeFacts) -> NodePhase {
    let qsd = facts.qsd.known().and_then(Option::as_ref);
    if record.truth == Truth::Local {
        return match qsd {
            Some(q) if q.top == Layer::Remote => NodePhase::Switching,
            _ if record.assign.want == Want::Gone => match qsd {
                Some(q) if q.guest => NodePhase::Local,
                Some(_) => NodePhase::Returning,
                None if record.assign.release => NodePhase::Returning,
                None => NodePhase::Attaching,
            },
            None => NodePhase::Attaching,
            Some(q) if !q.guest => NodePhase::Attaching,
            Some(q) if back_is_ready(q) => NodePhase::BackReady,
            Some(q) if q.back.is_some() => NodePhase::BringingBack,
            Some(_) => NodePhase::Local,
        };
    }
    match qsd {
        None if record.has_ended() => NodePhase::Gone,
        None => NodePhase::Attaching,
        Some(q) if q.epoch != record.assign.epoch => NodePhase::Attaching,
        // The pivot back is written down, but not done: it can still fail.
        Some(q) if q.top == Layer::Local && q.copy.is_none() => NodePhase::Switching,
        Some(q) if !q.guest => NodePhase::Attaching,
        Some(q) => match q.copy.as_ref().map(|c| &c.state) {
            Some(JobState::Ready) if !facts.local.known().copied().flatten().is_some_and(|file| file.reserved) => {
                NodePhase::Copying
            }
            Some(JobState::Ready) => NodePhase::Ready,
            Some(JobState::Pending | JobState::Done) => NodePhase::Switching,
            Some(_) => NodePhase::Copying,
            None => NodePhase::Remote,
        },
    }
}

/// Whether bring-back has everything on both sides.
pub(super) fn back_is_ready(qsd: &QsdFacts) -> bool {
    let is = |job: &Option<Job>, states: &[JobState]| job.as_ref().is_some_and(|j| states.contains(&j.state));
    is(&qsd.back_mirror, &[JobState::Ready, JobState::Pending]) && is(&qsd.back_fill, &[JobState::Done])
}

/// What this node tells the NAS. `device` is what a guest would use; `stuck` what the actor could not get past.
pub fn report(record: &NodeRecord, facts: &NodeFacts, device: &str, stuck: Option<String>) -> Report {
    let qsd = facts.qsd.known().and_then(Option::as_ref);
    let phase = phase(record, facts);
    let job = qsd.and_then(QsdFacts::moving);
    let held_up = qsd.and_then(|q| q.copy.as_ref()).and_then(|copy| match &copy.state {
        JobState::Paused(why) => Some(format!("the copy to the local disk is held up, the guest is not: {why}")),
        _ => None,
    });
    // One that a write-back has made superfluous may still be there, beside the one that counts.
    let lost = |q: &&QsdFacts| !q.bitmaps.is_empty() && !q.bitmaps.iter().any(|b| trusted(record, b.since));
    let untracked = qsd.filter(|_| record.truth == Truth::Local).filter(lost);
    Report {
        volume: record.volume,
        epoch: record.assign.epoch,
        revision: record.assign.revision,
        phase,
        pivoted: record.truth == Truth::Local,
        detached: record.truth == Truth::Local
            && facts.qsd.known().is_some()
            && qsd.is_none_or(|q| q.top == Layer::Local && q.remote.is_none()),
        attached: qsd.filter(|q| q.top == Layer::Remote).and_then(|q| q.remote.clone()),
        device: qsd.filter(|q| q.guest).map(|_| device.to_owned()),
        progress: job.map(|job| Progress { done: job.done, total: job.total }),
        dirty: qsd
            .filter(|_| untracked.is_none() && record.truth == Truth::Local)
            .map(|q| q.bitmaps.iter().map(|b| b.dirty).sum()),
        pushed: record.pushed.clone(),
        asked: None,
        proof: record.assign.proof.clone(),
        kernel: None,
        stuck: held_up.or(stuck),
        notice: if untracked.is_some() {
            Some(format!(
                "the record of changed blocks was lost when the storage daemon stopped uncleanly; the next write-back moves the whole volume ({})",
                record.assign.size
            ))
        } else {
            record.assign.push.as_ref().filter(|order| order.full).map(|_| {
                format!(
                    "{} was rebooted before the switch; this write-back moves the whole volume ({})",
                    record.assign.nas, record.assign.size
                )
            })
        },
    }
}
