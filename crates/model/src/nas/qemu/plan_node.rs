//! The NAS's planner while the node has, or may still have, the newest writes: write-backs, bring-back and the last return.

use super::{
    NasStep,
    assign::back_export,
    plan::{Decision, Seen},
};
use crate::{
    messages::{NodePhase, Report, Want},
    nas::{Authority, Context, Mapping, NasChange, NasLayer, PushState, never_home},
    node::PushOutcome,
};

pub(super) fn plan_node(m: &Mapping, f: &Seen<'_>, report: Option<&Report>, context: &Context<'_>) -> Decision {
    let back = back_export(m);
    if let Some(r) = report {
        // The pivot that was foreseen did not happen on the node: its guest still works here.
        if !r.pivoted && matches!(r.phase, NodePhase::Remote | NodePhase::Copying | NodePhase::Ready) {
            return Decision::Record(NasChange::Authority(Authority::Nas));
        }
        let ours = f.export.is_some_and(|e| e.names.contains(&back));
        if r.detached && f.export.is_some() && !ours {
            return Decision::Do(NasStep::StopExport);
        }
    }
    if let Some(push) = &m.push {
        return plan_push(m, f, push, report);
    }
    if f.incoming.is_some() {
        return Decision::Do(NasStep::DiscardIncoming);
    }
    if m.want != Want::Remote
        && let Some(decision) = give_back_up(m, f, report)
    {
        return decision;
    }
    let home = m.accepted.as_ref().is_some_and(|a| a.last);
    match m.want {
        Want::Gone => match report {
            Some(r) if r.phase == NodePhase::Gone && !home => Decision::Stuck(never_home(m)),
            // Nobody is to reach the volume through a mapping that is over.
            Some(r) if r.phase == NodePhase::Gone && f.export.is_some() => Decision::Do(NasStep::StopExport),
            Some(r) if r.phase == NodePhase::Gone => Decision::Record(NasChange::Unmapped),
            Some(r) if r.phase == NodePhase::Returning && !home && context.hold_off => {
                Decision::Wait("the last write-back failed; another is ordered in a moment".to_owned())
            }
            Some(r) if r.phase == NodePhase::Returning && !home => Decision::Record(NasChange::Order { last: true }),
            Some(r) if r.phase == NodePhase::Returning => Decision::Wait(format!("{} releases its local copy", m.node)),
            _ => Decision::Wait(format!("{} takes the device away from the guest", m.node)),
        },
        Want::Local if context.due && !context.hold_off && report.is_some_and(|r| r.phase == NodePhase::Local) => {
            Decision::Record(NasChange::Order { last: false })
        }
        Want::Local if report.is_some_and(|r| r.phase == NodePhase::Local) => Decision::Rest,
        Want::Local if report.is_none() => Decision::Wait(format!("waiting for {} to answer", m.node)),
        Want::Local => Decision::Wait(format!("{} takes its local copy up", m.node)),
        Want::Remote => plan_back(m, f, report),
    }
}

fn plan_push(m: &Mapping, f: &Seen<'_>, push: &PushState, report: Option<&Report>) -> Decision {
    let failed = |why: &str| Decision::Record(NasChange::PushFailed { why: why.to_owned() });
    let result = report.and_then(|r| r.pushed.as_ref()).filter(|r| r.push == push.push).map(|r| &r.outcome);
    match f.incoming {
        Some(incoming) if incoming.push != push.push => {
            return Decision::Do(NasStep::DiscardIncoming);
        }
        // What a daemon that died had not written yet is missing, whatever could be read from it before.
        Some(incoming) if push.verified && !incoming.serving => {
            return failed("the incoming file's daemon ended before its time");
        }
        Some(_) if push.verified => return Decision::Do(NasStep::SealIncoming { push: push.push }),
        None if push.verified || matches!(result, Some(PushOutcome::Sent { .. })) => {
            return failed("the incoming file is gone");
        }
        _ => {}
    }
    match (result, f.incoming) {
        (Some(PushOutcome::Failed { why }), _) => failed(why),
        (Some(PushOutcome::Taken(_)), _) => failed("the node took a snapshot as on another plane"),
        (_, None) => Decision::Do(NasStep::CreateIncoming { push: push.push }),
        (_, Some(incoming)) if !incoming.serving => {
            Decision::Do(NasStep::ServeIncoming { push: push.push, peer: m.node.clone(), port: push.port })
        }
        (Some(PushOutcome::Sent { extents, digest, .. }), _) => {
            Decision::Do(NasStep::VerifyIncoming { push: push.push, extents: extents.clone(), digest: digest.clone() })
        }
        (None, _) if report.is_some_and(|r| r.phase == NodePhase::Gone) => failed("the node has ended the mapping"),
        (None, _) => Decision::Wait(format!("{} writes back", m.node)),
    }
}

/// Takes the overlay of a bring-back away that is not wanted any more, once the node has let go of it.
fn give_back_up(m: &Mapping, f: &Seen<'_>, report: Option<&Report>) -> Option<Decision> {
    let exported = f.export.is_some_and(|e| e.names.contains(&back_export(m)));
    if !exported && !f.overlay {
        return None;
    }
    // Also while nothing is exported: a mirror that outlived the overlay would take the next one for it.
    let holds = [NodePhase::BringingBack, NodePhase::BackReady, NodePhase::Switching];
    let let_go = report.is_some_and(|r| !holds.contains(&r.phase));
    Some(match (let_go, exported) {
        (false, _) => Decision::Wait(format!("{} lets go of the overlay", m.node)),
        (true, true) => Decision::Do(NasStep::StopExport),
        (true, false) => Decision::Do(NasStep::RemoveOverlay),
    })
}

/// Bring-back before the node is allowed to pivot.
fn plan_back(m: &Mapping, f: &Seen<'_>, report: Option<&Report>) -> Decision {
    let name = back_export(m);
    match f.export {
        Some(export) if export.epoch != m.epoch || !export.names.contains(&name) => {
            return if report.is_some_and(|r| r.detached) {
                Decision::Do(NasStep::StopExport)
            } else {
                Decision::Wait(format!("{} finishes the switch", m.node))
            };
        }
        Some(_) => {}
        None if !f.overlay => return Decision::Do(NasStep::CreateOverlay { epoch: m.epoch }),
        // The same overlay again, never a new one: the node's mirror finds its way back to the name and takes what it has
        // written to be there. It is, since every write was on stable storage before it was answered.
        None => {
            return Decision::Do(NasStep::StartExport {
                epoch: m.epoch,
                name,
                peer: m.node.clone(),
                port: m.port,
                layer: NasLayer::Overlay,
            });
        }
    }
    match report {
        Some(r) if r.phase == NodePhase::BackReady => Decision::Record(NasChange::Authority(Authority::MaybeNas)),
        _ => Decision::Wait(format!("{} moves the guest back", m.node)),
    }
}

/// The node was allowed to pivot back: the overlay is kept whatever happens, until the node says what it did.
pub(super) fn plan_maybe_nas(m: &Mapping, f: &Seen<'_>, report: Option<&Report>) -> Decision {
    // While it switches, the pivot is written down there, but may still fail.
    if report.is_some_and(|r| !r.pivoted && r.phase != NodePhase::Switching) {
        return Decision::Record(NasChange::Authority(Authority::Nas));
    }
    // The node has stored that it is not to come back, and has let go of the overlay: it can no longer pivot.
    if m.want != Want::Remote
        && report.is_some_and(|r| {
            r.pivoted && !matches!(r.phase, NodePhase::BringingBack | NodePhase::BackReady | NodePhase::Switching)
        })
    {
        return Decision::Record(NasChange::Authority(Authority::Node));
    }
    if f.export.is_none() {
        let name = back_export(m);
        return Decision::Do(NasStep::StartExport {
            epoch: m.epoch,
            name,
            peer: m.node.clone(),
            port: m.port,
            layer: NasLayer::Overlay,
        });
    }
    Decision::Wait(format!("{} switches back", m.node))
}
