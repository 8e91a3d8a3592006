//! The node's planner after the pivot: the local copy is the truth.
//!
//! From here on it is forward only. The local file is destroyed in one place, under `release`, which the NAS gives when it
//! holds a verified snapshot taken after the guest was off.

use super::{
    Incremental, LocalFile, Moving, NodeStep, QsdFacts,
    plan::{Decision, back_is_ready},
};
use crate::{
    messages::{PushOrder, Want},
    node::{Job, JobState, Layer, NodeChange, NodeRecord, PushOutcome, PushResult, Truth},
};

/// Whether what a bitmap records is all that differs from what the NAS holds.
pub(super) fn trusted(record: &NodeRecord, since: Incremental) -> bool {
    match since {
        Incremental::Unknown => false,
        Incremental::Pivot => record.assign.accepted.is_none(),
        Incremental::Snapshot(snapshot) => record.assign.accepted == Some(snapshot),
    }
}

pub(super) fn plan_local(record: &NodeRecord, qsd: Option<&QsdFacts>, local: Option<LocalFile>) -> Decision {
    let assign = &record.assign;
    let release = assign.release && assign.want == Want::Gone;
    let Some(qsd) = qsd else {
        return match (local, release) {
            (Some(_), true) => Decision::Do(NodeStep::RemoveLocal),
            (None, true) => Decision::Record(NodeChange::Ended { warm: false, home: None }),
            (Some(_), false) => Decision::Do(NodeStep::Start { epoch: assign.epoch, over: Layer::Local, endpoint: None }),
            (None, false) => {
                Decision::Stuck("the local copy, which holds the newest writes, is not in the pool any more".to_owned())
            }
        };
    };
    if let Some(copy) = &qsd.copy {
        return match copy.state {
            JobState::Pending | JobState::Done => Decision::Do(NodeStep::FinalizeCopy),
            // The pivot that the ledger foresaw did not happen: the guest still works on the NAS volume.
            _ => Decision::Record(NodeChange::Truth(Truth::Remote)),
        };
    }
    if qsd.top == Layer::Remote {
        return Decision::Record(NodeChange::Truth(Truth::Remote));
    }
    if qsd.bitmaps.is_empty() {
        return Decision::Do(NodeStep::AddBitmap { since: Incremental::Unknown });
    }
    if qsd.epoch != assign.epoch {
        return Decision::Stuck(format!("the storage daemon serves epoch {}, the mapping is epoch {}", qsd.epoch, assign.epoch));
    }
    if qsd.remote.is_some() {
        return Decision::Do(NodeStep::DetachRemote);
    }
    if release {
        if let Some(dirty) = qsd.recording().filter(|b| b.dirty > 0) {
            return Decision::Stuck(format!(
                "{} bytes were written after the last write-back; the local copy is kept",
                dirty.dirty
            ));
        }
        return Decision::Do(NodeStep::Stop { force: assign.force });
    }
    match (assign.want, qsd.guest) {
        (Want::Gone, true) => {
            return Decision::Do(NodeStep::RemoveGuest { force: assign.force });
        }
        (Want::Local | Want::Remote, false) => {
            return Decision::Do(NodeStep::AddGuest { device: assign.device });
        }
        _ => {}
    }
    if let Some(decision) = plan_back(record, qsd) {
        return decision;
    }
    plan_push(record, qsd)
}

/// Bring-back: nothing, or a step of it. A push that is under way ends first.
fn plan_back(record: &NodeRecord, qsd: &QsdFacts) -> Option<Decision> {
    let wanted = record.assign.back.as_ref().filter(|_| record.assign.want == Want::Remote);
    let begun = qsd.back.is_some() || qsd.back_mirror.is_some() || qsd.back_fill.is_some();
    let failed = |job: &Option<Job>| matches!(job.as_ref().map(|j| &j.state), Some(JobState::Failed(_)));
    let Some(order) = wanted else {
        return begun.then_some(Decision::Do(NodeStep::CancelBack));
    };
    if !begun {
        if pieces(qsd) || qsd.frozen().is_some() {
            return None;
        }
        return Some(Decision::Do(NodeStep::OpenBack { endpoint: order.endpoint.clone() }));
    }
    if qsd.back.as_ref() != Some(&order.endpoint.export) || failed(&qsd.back_mirror) || failed(&qsd.back_fill) {
        return Some(Decision::Do(NodeStep::CancelBack));
    }
    if qsd.back_mirror.is_none() || qsd.back_fill.is_none() {
        let full = qsd.bitmaps.iter().any(|b| !trusted(record, b.since));
        return Some(Decision::Do(NodeStep::StartBack { full, speed: record.assign.speeds.upload }));
    }
    let speed = record.assign.speeds.upload;
    if qsd.back_fill.as_ref().is_some_and(|fill| fill.state == JobState::Running && fill.speed != speed.get()) {
        return Some(Decision::Do(NodeStep::SetSpeed { job: Moving::Back, speed }));
    }
    if !back_is_ready(qsd) {
        return Some(Decision::Wait("moving the guest back to the NAS".to_owned()));
    }
    Some(match qsd.back_mirror.as_ref().map(|j| &j.state) {
        Some(JobState::Pending) => Decision::Record(NodeChange::Truth(Truth::Remote)),
        _ if order.granted => Decision::Do(NodeStep::CompleteBack),
        _ => Decision::Wait(format!("everything is on both sides; waiting for {} to allow the switch", record.assign.nas)),
    })
}

fn pieces(qsd: &QsdFacts) -> bool {
    let s = qsd.snapshotting;
    s.fleece || s.source || s.incoming || s.leftovers || qsd.push.is_some()
}

fn plan_push(record: &NodeRecord, qsd: &QsdFacts) -> Decision {
    let Some(order) = &record.assign.push else {
        return settle(record, qsd);
    };
    if let Some(result) = record.pushed.as_ref().filter(|r| r.push == order.push) {
        return match result.outcome {
            _ if pieces(qsd) => Decision::Do(NodeStep::EndPush),
            PushOutcome::Failed { .. } if qsd.frozen().is_some() => Decision::Do(NodeStep::RevertBitmap),
            _ => Decision::Wait(format!("waiting for {} to verify the write-back", record.assign.nas)),
        };
    }
    let ours = qsd.recording().is_some_and(|b| b.since == Incremental::Snapshot(order.push));
    let strange = qsd.push.as_ref().is_some_and(|(push, _)| *push != order.push);
    if !ours || strange {
        // Leftovers of a push that was given up go first.
        return match qsd.frozen() {
            _ if pieces(qsd) => Decision::Do(NodeStep::EndPush),
            Some(frozen) if newest_is_accepted(record, qsd) => Decision::Do(NodeStep::DropBitmap { since: frozen.since }),
            Some(_) => Decision::Do(NodeStep::RevertBitmap),
            None if order.endpoint.is_some() => Decision::Do(NodeStep::FreezeBitmap { push: order.push }),
            None => Decision::Wait(format!("waiting for {} to take the write-back", record.assign.nas)),
        };
    }
    transfer(record, qsd, order)
}

fn transfer(record: &NodeRecord, qsd: &QsdFacts, order: &PushOrder) -> Decision {
    let failed =
        |why: String| Decision::Record(NodeChange::Pushed(PushResult { push: order.push, outcome: PushOutcome::Failed { why } }));
    let Some(frozen) = qsd.frozen() else {
        return failed("the record of changed blocks of this write-back is gone".to_owned());
    };
    let full = order.full || !trusted(record, frozen.since);
    let s = qsd.snapshotting;
    if s.broken {
        return failed("the point in time broke: the guest wrote more than the scratch file could take".to_owned());
    }
    if !order.last && !s.fleece {
        return if s.leftovers || s.source || qsd.push.is_some() {
            Decision::Do(NodeStep::EndPush)
        } else {
            Decision::Do(NodeStep::InsertFleece)
        };
    }
    if !s.source {
        return Decision::Do(NodeStep::OpenSource { full });
    }
    match &qsd.push {
        None if s.incoming => Decision::Do(NodeStep::StartPush { push: order.push, full, speed: record.assign.speeds.upload }),
        None => match &order.endpoint {
            Some(endpoint) => Decision::Do(NodeStep::OpenIncoming { endpoint: endpoint.clone() }),
            None => failed("the NAS took its incoming file away".to_owned()),
        },
        Some((_, job)) => match &job.state {
            JobState::Done => Decision::Do(NodeStep::DigestPush { push: order.push, full }),
            JobState::Failed(why) => failed(why.clone()),
            JobState::Paused(why) => failed(format!("the transfer stopped: {why}")),
            JobState::Running if job.speed != record.assign.speeds.upload.get() => {
                Decision::Do(NodeStep::SetSpeed { job: Moving::Push, speed: record.assign.speeds.upload })
            }
            JobState::Running | JobState::Ready | JobState::Pending => Decision::Wait("writing back".to_owned()),
        },
    }
}

fn newest_is_accepted(record: &NodeRecord, qsd: &QsdFacts) -> bool {
    match (qsd.recording().map(|b| b.since), record.assign.accepted) {
        (Some(Incremental::Snapshot(newest)), Some(accepted)) => newest == accepted,
        _ => false,
    }
}

/// No push is ordered: the last one was accepted, or given up by the NAS.
fn settle(record: &NodeRecord, qsd: &QsdFacts) -> Decision {
    match qsd.frozen() {
        _ if pieces(qsd) => Decision::Do(NodeStep::EndPush),
        Some(frozen) if newest_is_accepted(record, qsd) => Decision::Do(NodeStep::DropBitmap { since: frozen.since }),
        Some(_) => Decision::Do(NodeStep::RevertBitmap),
        None if record.assign.want == Want::Local => Decision::Rest,
        None => Decision::Wait(format!("waiting for {}", record.assign.nas)),
    }
}
