//! The NAS's planner of the kernel plane while the node has, or may still have, the newest writes: the last difference to it,
//! write-backs, bring-back and the last return.

use super::{
    NasStep, Zvol,
    plan::{Decision, Seen, exported, peer, send, streaming},
};
use crate::{
    messages::{KernelReport, NodePhase, Report, Want},
    nas::{Authority, Context, Mapping, NasChange, PushState, VolumeRecord, never_home},
    node::PushOutcome,
    snapshot::newest_common,
};

pub(super) fn plan_node(
    v: &VolumeRecord,
    m: &Mapping,
    f: &Seen<'_>,
    zvol: &Zvol,
    report: Option<&Report>,
    context: &Context<'_>,
) -> Decision {
    let Some(r) = report else {
        return Decision::Wait(format!("waiting for {} to answer", m.node));
    };
    if r.phase == NodePhase::Gone && m.want == Want::Gone {
        if m.accepted.as_ref().is_none_or(|a| !a.last) {
            return Decision::Stuck(never_home(m));
        }
        return match f.exports.first() {
            Some(export) => Decision::Do(NasStep::Unexport { epoch: export.epoch }),
            None if f.stream.is_some() => Decision::Do(NasStep::EndStream),
            None => Decision::Record(NasChange::Unmapped),
        };
    }
    // Who attached, or copied, may have said so before the pivot, in a word that came late.
    if !r.pivoted && r.phase == NodePhase::Attaching {
        return Decision::Stuck(format!(
            "{} has the newest writes, and does not know of them any more: is its ledger an old one? Nothing is ended; stop its \
             daemon and put back the newest ledger that there is",
            m.node
        ));
    }
    let Some(kernel) = &r.kernel else {
        return Decision::Wait(format!("waiting for {} to see its local copy", m.node));
    };
    if r.detached {
        // Before anything is received: nobody may write to what is received into.
        let back = m.want == Want::Remote && r.phase == NodePhase::BringingBack;
        if let Some(export) = f.exports.first().filter(|_| !back) {
            return Decision::Do(NasStep::Unexport { epoch: export.epoch });
        }
    } else if r.phase == NodePhase::Switching {
        // After a reboot of this NAS its guest waits for the disk under the overlay.
        return exported(v, m, f, context).unwrap_or_else(|| plan_base(m, f, zvol, kernel, context));
    } else if r.phase != NodePhase::BringingBack {
        return Decision::Wait(format!("{} finishes the switch", m.node));
    }
    if let Some(push) = &m.push {
        return plan_push(m, f, zvol, push, r, kernel, context);
    }
    if f.stream.is_some() {
        return Decision::Do(NasStep::EndStream);
    }
    if m.copying.back && m.want != Want::Remote {
        return give_back_up(m, r);
    }
    if let Some(oldest) = superfluous(m, zvol) {
        return Decision::Do(oldest);
    }
    match m.want {
        Want::Gone => plan_return(m, r, context),
        Want::Local if r.phase != NodePhase::Local => Decision::Wait(format!("{} takes its local copy up", m.node)),
        Want::Local if context.due && !context.hold_off => Decision::Record(NasChange::Order { last: false }),
        Want::Local => Decision::Rest,
        Want::Remote => plan_back(v, m, f, r, kernel, context),
    }
}

/// The guest writes to its overlay: the last difference goes to the node.
fn plan_base(m: &Mapping, f: &Seen<'_>, zvol: &Zvol, kernel: &KernelReport, context: &Context<'_>) -> Decision {
    let Some(base) = m.copying.base else {
        // Not before the overlay is seen to take the writes: what came after the snapshot would be in neither.
        return if kernel.overlaid {
            Decision::Record(NasChange::Base)
        } else {
            Decision::Wait(format!("{} moves its guest to the overlay", m.node))
        };
    };
    if zvol.point(base).is_some() && zvol.written > 0 {
        return Decision::Stuck(format!(
            "{} bytes were written to the volume here after {} took over; nothing is ended",
            zvol.written, m.node
        ));
    }
    if let Some(decision) = streaming(f, context) {
        return decision;
    }
    let common = newest_common(&zvol.points(), &kernel.snapshots);
    if !kernel.receives && common.is_none_or(|c| c.id != base) {
        return Decision::Wait(format!("{} makes ready for the last difference", m.node));
    }
    send(m, zvol, kernel, common, base, context)
        .unwrap_or_else(|| Decision::Wait(format!("{} merges what was written meanwhile", m.node)))
}

fn plan_push(
    m: &Mapping,
    f: &Seen<'_>,
    zvol: &Zvol,
    push: &PushState,
    r: &Report,
    kernel: &KernelReport,
    context: &Context<'_>,
) -> Decision {
    let failed = |why: &str| Decision::Record(NasChange::PushFailed { why: why.to_owned() });
    let taken = match r.pushed.as_ref().filter(|p| p.push == push.push).map(|p| &p.outcome) {
        Some(PushOutcome::Taken(snapshot)) => *snapshot,
        Some(PushOutcome::Failed { why }) => return failed(why),
        Some(PushOutcome::Sent { .. }) => return failed("the node sent it as on another plane"),
        None => return Decision::Wait(format!("{} takes a snapshot", m.node)),
    };
    if let Some(decision) = streaming(f, context) {
        return decision;
    }
    match zvol.point(push.push) {
        Some(held) if held.snapshot != taken => {
            return Decision::Stuck(format!("snapshot {} here is not the node's of that name; nothing is ended", push.push));
        }
        Some(held) if !held.held => return Decision::Do(NasStep::Hold { snapshot: push.push }),
        Some(_) => return Decision::Record(NasChange::Accepted),
        None => {}
    }
    if !kernel.snapshots.contains(&taken) {
        return failed("the snapshot is gone from the node");
    }
    if f.reader {
        return Decision::Wait("a reader is copying the volume; the write-back waits".to_owned());
    }
    let Some(common) = newest_common(&zvol.points(), &kernel.snapshots) else {
        return Decision::Stuck(format!(
            "no snapshot of this volume is also on {}: there is nothing to send a difference from; the local copy is kept, \
             and the documentation of the kernel plane says how to send it whole",
            m.node
        ));
    };
    if zvol.written > 0 {
        return Decision::Stuck(format!(
            "{} bytes were written to the volume here while {} has it: nothing is received over them; \
             find who wrote, then `zfs rollback` to its newest IMG-STORAGE snapshot",
            zvol.written, m.node
        ));
    }
    if let Some(foreign) = &zvol.foreign {
        return Decision::Stuck(format!("nothing can be received over snapshot {foreign}, which is newer than ours; destroy it"));
    }
    if zvol.snapshots.last().map(|s| s.snapshot) != Some(common) {
        return Decision::Stuck(format!(
            "the newest snapshot here is not on {}: nothing is received over it; the local copy is kept",
            m.node
        ));
    }
    Decision::Do(NasStep::Receive {
        peer: peer(m, kernel, context),
        from: common.id,
        to: push.push,
        resume: zvol.resume.clone(),
        speed: context.speeds.upload,
    })
}

/// Our oldest snapshot, when the newest that came home makes it superfluous.
fn superfluous(m: &Mapping, zvol: &Zvol) -> Option<NasStep> {
    let accepted = m.accepted.as_ref()?.push;
    let home = zvol.snapshots.iter().position(|s| s.snapshot.id == accepted)?;
    (home > 1).then(|| NasStep::DropSnapshot { snapshot: zvol.snapshots[0].snapshot.id })
}

fn plan_return(m: &Mapping, r: &Report, context: &Context<'_>) -> Decision {
    let last = m.accepted.as_ref().is_some_and(|a| a.last);
    match r.phase {
        NodePhase::Returning if last => Decision::Wait(format!("{} lets go of its local copy", m.node)),
        NodePhase::Returning if context.hold_off => {
            Decision::Wait("the last write-back failed; another is ordered in a moment".to_owned())
        }
        NodePhase::Returning => Decision::Record(NasChange::Order { last: true }),
        _ => Decision::Wait(format!("{} takes the device away from the guest", m.node)),
    }
}

/// Bring-back: write-backs until little is left, the overlay, what lies under it, and the permission to merge it here.
fn plan_back(v: &VolumeRecord, m: &Mapping, f: &Seen<'_>, r: &Report, kernel: &KernelReport, context: &Context<'_>) -> Decision {
    if !m.copying.back {
        return match r.phase {
            NodePhase::Local
                if r.dirty.is_some_and(|d| m.copying.back_rounds > 0 && m.copying.nearly_there(d))
                    || m.copying.back_rounds >= super::ROUNDS =>
            {
                Decision::Record(NasChange::Back(true))
            }
            NodePhase::Local if context.hold_off => {
                Decision::Wait("a write-back failed; another is ordered in a moment".to_owned())
            }
            NodePhase::Local => Decision::Record(NasChange::BackRound),
            _ => Decision::Wait(format!("{} takes its local copy up", m.node)),
        };
    }
    if r.phase == NodePhase::Local && context.due && !context.hold_off {
        // The overlay may take long, as where the node's pool has no room for it: what can come home meanwhile does.
        return Decision::Record(NasChange::Order { last: false });
    }
    if r.phase != NodePhase::BringingBack || !kernel.overlaid {
        return Decision::Wait(format!("{} moves its guest to the overlay", m.node));
    }
    let home = m.copying.back_push.is_some() && m.copying.back_push == m.accepted.as_ref().map(|a| a.push);
    if !home {
        return if context.hold_off {
            Decision::Wait("a write-back failed; another is ordered in a moment".to_owned())
        } else {
            Decision::Record(NasChange::BackOrder)
        };
    }
    exported(v, m, f, context).unwrap_or(Decision::Record(NasChange::Authority(Authority::MaybeNas)))
}

/// It is not to come back any more: the node merges the overlay into its local copy.
fn give_back_up(m: &Mapping, r: &Report) -> Decision {
    // The newest assignment does not order it any more, which this report answers.
    if matches!(r.phase, NodePhase::Local | NodePhase::Returning) {
        Decision::Record(NasChange::Back(false))
    } else {
        Decision::Wait(format!("{} merges what was written meanwhile", m.node))
    }
}

/// The node merges its overlay into the volume here, or may have begun to. Forward only.
pub(super) fn plan_maybe_nas(
    v: &VolumeRecord,
    m: &Mapping,
    f: &Seen<'_>,
    report: Option<&Report>,
    context: &Context<'_>,
) -> Decision {
    if report.is_some_and(|r| !r.pivoted) {
        return Decision::Record(NasChange::Authority(Authority::Nas));
    }
    // The node has stored that it is not to come back, and did not begin to: it can no longer pivot.
    if m.want != Want::Remote && report.is_some_and(|r| r.phase != NodePhase::BringingBack) {
        return Decision::Record(NasChange::Authority(Authority::Node));
    }
    exported(v, m, f, context).unwrap_or_else(|| Decision::Wait(format!("{} moves its guest back", m.node)))
}
