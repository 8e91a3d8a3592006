//! Waits for a volume, and shows meanwhile how far it is.

use crate::{client::Client, meter::Meter, rows};
use img_storage_daemon::frontend::{TransferId, TransferView, http::wire};
use img_storage_model::{
    Fault, FaultKind, Selector,
    api::{Phase, VolumeView},
    messages::Progress,
    size::human_bytes,
};
use jiff::Timestamp;
use std::{future::Future, time::Duration};
use tokio::time::Instant;

/// The longest an order or a wait takes.
pub const DAY: Duration = Duration::from_secs(86_400);

/// Seconds that a trouble must have lasted before it is taken for one that waits for the operator.
const PASSING: i64 = 10;

/// What a volume passes on the way from mapped to local.
fn rung(phase: Phase) -> Option<u8> {
    match phase {
        Phase::Attaching => Some(1),
        Phase::Remote => Some(2),
        Phase::Copying => Some(3),
        Phase::Switching => Some(4),
        Phase::Local => Some(5),
        _ => None,
    }
}

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// The guest's device can be used.
    Usable,
    /// The phase; on the way up to local also a later one.
    Phase(Phase),
}

impl Goal {
    /// Whether it is reached, or why it never will be.
    fn check(self, v: &VolumeView) -> Result<bool, Fault> {
        let name = v.full_name();
        let wanted = match self {
            Goal::Usable if v.device.is_some() && rung(v.phase).is_some_and(|r| r > 1) => return Ok(true),
            Goal::Usable => Phase::Remote,
            Goal::Phase(phase) => phase,
        };
        let reached = match (rung(wanted), rung(v.phase)) {
            (Some(wanted), Some(is)) => is >= wanted && self != Goal::Usable,
            _ => wanted == v.phase,
        };
        if reached {
            return Ok(true);
        }
        let settled = |since: Timestamp| Timestamp::now().as_second() - since.as_second() >= PASSING;
        if let Some(trouble) = v.stuck.as_ref().filter(|t| t.next_try.is_none() && settled(t.since)) {
            return Err(Fault::failed(format!("{name} is stuck on {}: {}", trouble.host, trouble.why))
                .next(format!("img-storage show {name} tells what happened")));
        }
        if rung(wanted).is_some() && matches!(v.phase, Phase::Unmapped | Phase::Returning | Phase::Deleting) {
            return Err(Fault::failed(format!("{name} is {}; it will not become {wanted}", v.phase))
                .next(format!("img-storage show {name} tells what happened")));
        }
        if rung(wanted).is_some_and(|r| r > 2) && !v.sync && rung(v.phase).is_some() {
            return Err(Fault::invalid(format!("{name} is not mapped with --sync, so it will not become {wanted}"))
                .next("map it with --sync, or do not wait"));
        }
        Ok(false)
    }
}

/// Waits before the next question: what is soon over is told soon, and what takes long is not asked for all the time.
async fn rest(begun: Instant, deadline: Instant) {
    let pause = (begun.elapsed() / 10).clamp(Duration::from_millis(50), Duration::from_secs(1));
    tokio::time::sleep(pause.min(deadline.saturating_duration_since(Instant::now()))).await;
}

/// Polls a volume until the goal is reached.
pub async fn volume(client: &Client, view: VolumeView, goal: Goal, deadline: Instant) -> Result<VolumeView, Fault> {
    let name = view.full_name();
    let selector: Selector = name.parse()?;
    let mut meter = Meter::new(name.clone());
    let begun = Instant::now();
    let mut now = view.clone();
    loop {
        if goal.check(&now)? {
            meter.end();
            return Ok(now);
        }
        show(&mut meter, &now);
        if Instant::now() >= deadline {
            return Err(unfinished(&now));
        }
        rest(begun, deadline).await;
        now = match client.volume(&selector).await {
            Ok(found) if found.id == view.id => found,
            Ok(_) => return Err(gone(&name)),
            // Whose filling failed is gone for a reason.
            Err(fault) if fault.kind == FaultKind::NotFound && fault.message.contains("could not be filled") => {
                return Err(Fault::failed(fault.message).next(fault.next));
            }
            Err(fault) if fault.kind == FaultKind::NotFound => return Err(gone(&name)),
            Err(fault) => return Err(fault),
        };
    }
}

fn gone(name: &str) -> Fault {
    Fault::failed(format!("{name} is gone: it was deleted, or could not be filled")).next("the front end's log tells why")
}

fn unfinished(v: &VolumeView) -> Fault {
    let name = v.full_name();
    let note = rows::note(v, Timestamp::now());
    let note = if note.is_empty() { note } else { format!(" ({note})") };
    Fault::unfinished(format!("{name} is still {}{note}; it goes on", v.phase))
        .next(format!("img-storage show {name} tells how far it is"))
}

fn show(meter: &mut Meter, v: &VolumeView) {
    meter.show(&v.phase.to_string(), v.progress, v.rate);
    if let Some(trouble) = &v.stuck {
        meter.note(&format!("stuck on {}: {}", trouble.host, trouble.why));
    } else if let Some(notice) = &v.notice {
        meter.note(notice);
    }
}

/// Gives an order that is answered at its end, and shows meanwhile how far the volume is.
pub async fn order(client: &Client, view: &VolumeView, verb: &str, order: &impl wire::Order) -> Result<wire::Outcome, Fault> {
    let mut answer = std::pin::pin!(client.order(view, verb, order));
    let mut meter = Meter::new(view.full_name());
    let selector: Selector = view.full_name().parse()?;
    let mut wait = Duration::from_millis(300);
    loop {
        let watched = look(client, &selector, wait);
        tokio::select! {
            biased;
            answer = &mut answer => return answer,
            seen = watched => if let Ok(seen) = seen { show(&mut meter, &seen) },
        }
        wait = Duration::from_secs(1);
    }
}

async fn look(client: &Client, selector: &Selector, after: Duration) -> Result<VolumeView, Fault> {
    tokio::time::sleep(after).await;
    client.volume(selector).await
}

/// Follows an export to its end.
pub async fn transfer(client: &Client, id: TransferId, what: &str, deadline: Instant) -> Result<TransferView, Fault> {
    let path = format!(
        "/api/transfers/{}",
        serde_json::to_value(id).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
    );
    let mut meter = Meter::new(what.to_owned());
    let begun = Instant::now();
    loop {
        let seen: TransferView = client.get(&path).await?;
        match seen.finished {
            Some(Ok(())) => return Ok(seen),
            Some(Err(fault)) => return Err(fault),
            None => meter.show("exporting", Some(Progress { done: seen.done, total: seen.total }), None),
        }
        if Instant::now() >= deadline {
            let (done, total) = (human_bytes(seen.done), human_bytes(seen.total));
            return Err(Fault::unfinished(format!("{what}: {done} of {total} are written; it goes on")));
        }
        rest(begun, deadline).await;
    }
}

/// Runs a verb's work.
pub fn block_on<T>(work: impl Future<Output = Result<T, crate::stop::Stop>>) -> Result<T, crate::stop::Stop> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Fault::failed(format!("cannot start: {error}")))?;
    runtime.block_on(work)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(phase: Phase, sync: bool, stuck_for: Option<i64>) -> VolumeView {
        let since = stuck_for.map(|s| (Timestamp::now() - jiff::SignedDuration::from_secs(s)).to_string());
        serde_json::from_value(serde_json::json!({
            "id": "00000000-0000-0000-0000-000000000001", "nas": "nas-0-0", "pool": "tank", "name": "vol1", "size": 1 << 20,
            "phase": phase, "epoch": 1, "sync": sync, "write_backs": 0, "created": "2026-01-01T00:00:00Z",
            "stuck": since.map(|since| serde_json::json!({ "host": "compute-0-0", "why": "x", "since": since })),
        }))
        .unwrap()
    }

    #[test]
    fn goals_are_reached_missed_or_waited_for() {
        let check = |goal, phase, sync, stuck| Goal::Phase(goal).check(&view(phase, sync, stuck)).map_err(|fault| fault.kind);
        assert_eq!(check(Phase::Remote, Phase::Local, true, None), Ok(true));
        assert_eq!(check(Phase::Unmapped, Phase::Returning, true, None), Ok(false));
        assert_eq!(check(Phase::Unmapped, Phase::Unmapped, false, None), Ok(true));
        assert_eq!(check(Phase::Local, Phase::Copying, true, None), Ok(false));
        assert_eq!(check(Phase::Local, Phase::Unmapped, false, None), Err(FaultKind::Failed));
        assert_eq!(check(Phase::Local, Phase::Remote, false, None), Err(FaultKind::Invalid));
        assert_eq!(check(Phase::Local, Phase::Copying, true, Some(1)), Ok(false));
        assert_eq!(check(Phase::Local, Phase::Copying, true, Some(60)), Err(FaultKind::Failed));
    }
}
