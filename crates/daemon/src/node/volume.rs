//! The actor of one volume on a node: observe, plan, make durable, do, look again; and tell the NAS.

use super::{Mail, Node};
use crate::{
    retry::Retry,
    steps::{self, CARRIED, HELD, OBSERVE_DEADLINE, Repeats},
};
use img_storage_model::{
    HostName,
    messages::{Assign, Body, KernelReport, NodePhase, Report},
    node::{self, Decision, Facts, Going, JobState, Lies, NodeChange, NodeRecord, NodeVolume, Step, Truth, kernel::Zvols},
};
use jiff::Timestamp;
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};

/// How often a volume is looked at when nothing happens.
const LOOK_EVERY: Duration = Duration::from_secs(3);
/// How often the NAS hears of progress.
const PROGRESS_EVERY: Duration = Duration::from_millis(500);
/// How often the NAS hears of a volume that does not change.
const REPORT_EVERY: Duration = Duration::from_secs(10);

pub(crate) struct Actor {
    node: Arc<Node>,
    record: NodeRecord,
    mail: mpsc::UnboundedReceiver<Mail>,
    retry: Retry,
    /// Jobs that failed or stand still; unlike `retry` it is over only when they got somewhere.
    setback: Retry,
    /// The row is new, or a change could not be made durable and may be durable all the same: it is written before anything else.
    unsure: bool,
    last: Option<(Report, Instant)>,
    /// The NAS's clock in its newest assignment, and as it was when the host was last looked at.
    asked: Option<Timestamp>,
    looked: Option<Timestamp>,
    tell: bool,
    closely: u32,
    repeats: Repeats<Step>,
    /// When the volume's zvols were last looked at.
    zvols_at: Instant,
    /// What is planned with has them from an earlier look.
    carried: bool,
}

impl Actor {
    pub(super) fn new(node: Arc<Node>, record: NodeRecord, durable: bool, mail: mpsc::UnboundedReceiver<Mail>) -> Self {
        Actor {
            node,
            record,
            mail,
            retry: Retry::default(),
            setback: Retry::default(),
            unsure: !durable,
            last: None,
            asked: None,
            looked: None,
            tell: true,
            closely: 0,
            repeats: Repeats::default(),
            zvols_at: Instant::now(),
            carried: false,
        }
    }

    /// Runs as long as the daemon.
    pub(super) async fn live(mut self) {
        // Writing something down changes nothing on the host: what was seen before still counts.
        let mut kept = None;
        // Of facts that are over, what goes into the next ones.
        let mut zvols = None;
        loop {
            while let Ok(mail) = self.mail.try_recv() {
                self.read(mail).await;
            }
            if self.unsure {
                match self.node.store.put(&self.record).await {
                    Ok(()) => self.unsure = false,
                    Err(fault) => {
                        let pause = self.retry.failed(fault.to_string(), self.node.clock.now());
                        if !self.rest(pause).await {
                            return;
                        }
                        continue;
                    }
                }
            }
            let facts = match kept.take() {
                Some(facts) => facts,
                None => self.observe(zvols.take()).await,
            };
            if phase_is_good(&self.record, &facts) {
                self.setback.well();
            }
            let decision = node::plan(&self.record, &facts);
            if self.carried && !is_sure(&decision, self.record.has_ended()) {
                self.carried = false;
                continue;
            }
            self.node.shelf.note(&self.record, &decision);
            let open = match decision {
                Decision::Do(step) => {
                    self.report(&facts);
                    if let Some(left) = self.retry.holds().max(self.setback.holds().filter(|_| step.begins_anew())) {
                        self.rest(left.min(HELD)).await
                    } else {
                        if let Some(why) = node::setback(&facts).filter(|_| step.takes_up()) {
                            self.setback.failed(why.to_owned(), self.node.clock.now());
                        }
                        self.closely = 0;
                        let leaves = step.leaves_zvols();
                        let open = self.run(step).await;
                        zvols = Some(facts).filter(|_| leaves).and_then(Facts::into_zvols);
                        open
                    }
                }
                Decision::Record(change) => match self.record(change).await {
                    Ok(()) => {
                        kept = Some(facts);
                        true
                    }
                    Err(why) => self.not_recorded(why, &facts).await,
                },
                Decision::Wait(_) | Decision::Rest => {
                    self.repeats.rest();
                    self.retry.well();
                    self.report(&facts);
                    let pause = self.look_again(&facts);
                    let open = self.rest(pause).await;
                    // How far the merge is is all there is to see.
                    zvols = Some(facts).filter(Facts::merging).and_then(Facts::into_zvols);
                    open
                }
                Decision::Stuck(why) => {
                    self.retry.stuck(why, self.node.clock.now());
                    self.report(&facts);
                    self.rest(LOOK_EVERY).await
                }
            };
            if !open {
                return;
            }
        }
    }

    /// A change could not be made durable. A guest that is held for it goes on as before.
    async fn not_recorded(&mut self, why: String, facts: &Facts) -> bool {
        self.unsure = true;
        let pause = self.retry.failed(why.clone(), self.node.clock.now());
        if let Some(step) = node::retreat(facts) {
            self.setback.failed(why, self.node.clock.now());
            if !self.run(step).await {
                return false;
            }
        }
        self.report(facts);
        self.rest(pause).await
    }

    /// Looks at the host; `zvols` are carried over for a while. Not when mail came: what the NAS asks is answered by what was seen after it asked, all of it.
    async fn observe(&mut self, zvols: Option<Zvols>) -> Facts {
        let young = !self.tell && self.looked == self.asked && self.zvols_at.elapsed() < CARRIED;
        let zvols = zvols.filter(|_| young);
        self.carried = zvols.is_some();
        if zvols.is_none() {
            (self.looked, self.zvols_at) = (self.asked, Instant::now());
        }
        let looked = timeout(OBSERVE_DEADLINE, self.node.host.observe(self.volume(), zvols)).await;
        looked.unwrap_or_else(|_| Facts::unknown(self.record.assign.plane, &steps::unanswered()))
    }

    fn volume(&self) -> NodeVolume {
        NodeVolume::from(&self.record.assign)
    }

    /// When to look again without being told anything: soon and then less soon while a job runs.
    fn look_again(&mut self, facts: &Facts) -> Duration {
        let job = facts.job();
        let moving = facts.merging() || job.is_some_and(|j| matches!(j.state, JobState::Running));
        let unsettled = moving || job.is_some();
        self.closely = if unsettled { self.closely.saturating_add(1) } else { 0 };
        match (moving, unsettled) {
            (true, _) => Duration::from_millis(u64::from(self.closely * 5).clamp(5, 100)),
            (false, true) => Duration::from_millis(500),
            _ => LOOK_EVERY,
        }
    }

    /// Waits for mail, or `at_most` so long; false when the daemon ends.
    async fn rest(&mut self, at_most: Duration) -> bool {
        let mail = if self.record.has_ended() && self.retry.why().is_none() {
            self.mail.recv().await
        } else {
            tokio::select! {
                biased;
                mail = self.mail.recv() => mail,
                () = sleep(at_most) => return true,
            }
        };
        match mail {
            Some(mail) => {
                self.read(mail).await;
                true
            }
            None => false,
        }
    }

    async fn run(&mut self, step: Step) -> bool {
        let bulk = step.is_bulk();
        let bytes = if bulk { self.record.assign.size.bytes() } else { 0 };
        let deadline = self.node.config.step_deadline + steps::bulk(bytes);
        tracing::debug!(volume = %self.record.assign.name, epoch = %self.record.assign.epoch, ?step);
        let node = Arc::clone(&self.node);
        let mut work = Box::pin(timeout(deadline, node.host.run(self.volume(), step.clone())));
        let done = loop {
            tokio::select! {
                biased;
                done = &mut work => break done,
                mail = self.mail.recv() => match mail {
                    Some(mail) => self.read(mail).await,
                    None => return false,
                },
            }
        };
        match done {
            Ok(Ok(result)) => {
                self.repeats.done(&step, &mut self.retry, self.node.clock.now());
                if let Some(change) = node::after(&self.record, &step, &result)
                    && let Err(why) = self.record(change).await
                {
                    self.retry.failed(why, self.node.clock.now());
                }
            }
            Ok(Err(why)) => self.step_failed(&step, &why.to_string()).await,
            Err(_) => self.step_failed(&step, &steps::late(&step, deadline)).await,
        }
        true
    }

    async fn step_failed(&mut self, step: &Step, why: &str) {
        tracing::warn!(volume = %self.record.assign.name, epoch = %self.record.assign.epoch, "{}: {why}", steps::verb(step));
        self.retry.failed(why.to_owned(), self.node.clock.now());
        if let Some(change) = node::after_error(&self.record, step, why) {
            if let Err(why) = self.record(change).await {
                self.retry.failed(why, self.node.clock.now());
            } else {
                // The push is given up; taking it apart need not wait.
                self.retry.well();
            }
        }
    }

    /// Makes a change durable, then takes it up.
    async fn record(&mut self, change: NodeChange) -> Result<(), String> {
        let what = match &change {
            NodeChange::Truth(Truth::Local) => "the local copy is the truth".to_owned(),
            NodeChange::Truth(Truth::Remote) => "the NAS is the truth".to_owned(),
            NodeChange::Local(epoch) => format!("a local copy is made for epoch {epoch}"),
            NodeChange::Pushed(result) => format!("write-back {} ended: {}", result.push, ending(&result.outcome)),
            NodeChange::Lies(lies) => format!("the guest's writes: {lies:?}"),
            NodeChange::Move(_) => "nothing is written: the guest moves to the local copy at once".to_owned(),
            NodeChange::Home(newest) => format!("the NAS has {}, the newest of the local copy", newest.id),
            NodeChange::Ended { warm: false, .. } => "the mapping is over".to_owned(),
            NodeChange::Ended { warm: true, .. } => "the mapping is over; the local copy is kept for the next time".to_owned(),
            NodeChange::Going(why) => format!("the copy kept for the next time goes: {why}"),
            NodeChange::Stays(why) => format!("the copy kept for the next time was to go, and stays: {why}"),
            NodeChange::WarmGone => "the copy kept for the next time is gone".to_owned(),
        };
        let mut next = self.record.clone();
        next.apply(change, self.node.clock.now());
        self.node.store.put(&next).await.map_err(|fault| fault.to_string())?;
        self.record = next;
        tracing::info!(volume = %self.record.assign.name, epoch = %self.record.assign.epoch, "{what}");
        self.node.journal.note(self.record.volume, self.node.clock.now(), &what);
        Ok(())
    }

    async fn read(&mut self, mail: Mail) {
        match mail {
            Mail::Assign(assign) => self.assigned(*assign).await,
            Mail::Report => self.tell = true,
            Mail::Drop { why, by } => self.drop_warm(why, by).await,
        }
    }

    /// Writes down that the warm copy is to go. Of a mapping that lasts nothing is; who asks, asks again.
    async fn drop_warm(&mut self, why: Going, by: Option<HostName>) {
        let Some(warm) = self.record.kept() else { return };
        let theirs = by.is_none_or(|nas| nas == self.record.assign.nas);
        if theirs
            && warm.going.is_none()
            && warm.stays.is_none()
            && let Err(why) = self.record(NodeChange::Going(why)).await
        {
            self.unsure = true;
            tracing::warn!(volume = %self.record.assign.name, "{why}");
        }
    }

    async fn assigned(&mut self, mut assign: Assign) {
        self.tell = true;
        let asked = assign.asked.take();
        let known = &self.record.assign;
        if assign.nas != known.nas && !self.record.has_ended() {
            tracing::warn!(volume = %known.name, "an assignment from {} was dropped: the volume is {}'s", assign.nas, known.nas);
            return;
        }
        // Of whoever is its NAS now; a mapping that is over is asked for nothing.
        if assign.epoch >= known.epoch {
            self.asked = asked;
        }
        let newer = (assign.epoch, assign.revision) > (known.epoch, known.revision);
        // What is the truth here stays with its own mapping until it came home.
        let another = assign.epoch != known.epoch && self.record.truth == Truth::Local;
        if !newer || another {
            return;
        }
        let mut next = self.record.clone();
        next.assign = assign;
        match self.node.store.put(&next).await {
            Ok(()) => {
                if self.record.assign.want != next.assign.want {
                    self.setback.well();
                }
                self.record = next;
                self.retry.well();
            }
            Err(fault) => tracing::error!("an assignment could not be stored and was dropped: {fault}"),
        }
    }

    /// Tells the NAS how things are, when that is news.
    fn report(&mut self, facts: &Facts) {
        let device = self.node.host.device(&self.volume(), self.record.assign.device);
        let stuck = self.retry.why().or(self.setback.why()).map(str::to_owned);
        let report = match (facts.seen(), &self.last) {
            // What cannot be seen is no news; that it cannot be seen is.
            (false, None) => return,
            (false, Some((last, _))) => Report { stuck, ..last.clone() },
            (true, _) => Report { asked: self.looked, ..node::report(&self.record, facts, &device, stuck) },
        };
        self.node.saw(&self.record, &report);
        let due = match &self.last {
            None => true,
            Some((last, at)) => {
                let quiet = |r: &Report| {
                    let kernel = r.kernel.clone().map(|kernel| KernelReport { writes: None, ..kernel });
                    Report { progress: None, dirty: None, asked: None, kernel, ..r.clone() }
                };
                let moved = last.progress != report.progress || last.dirty != report.dirty;
                quiet(last) != quiet(&report) || (moved && at.elapsed() >= PROGRESS_EVERY) || at.elapsed() >= REPORT_EVERY
            }
        };
        let over =
            report.phase == NodePhase::Gone && !self.tell && self.last.as_ref().is_some_and(|(l, _)| l.phase == NodePhase::Gone);
        if (due || self.tell) && !over {
            self.tell = false;
            self.node.post.send(&self.record.assign.nas, Body::Report(Box::new(report.clone())));
            self.last = Some((report, Instant::now()));
        }
    }
}

/// Whether a decision may be made while the zvols are not looked at anew: not that something is wrong, nor that nothing is left to do or of use, nor
/// that the local copy is not the truth.
fn is_sure(decision: &Decision, ended: bool) -> bool {
    match decision {
        Decision::Do(step) => !step.is_final(),
        Decision::Record(NodeChange::Lies(Lies::Remote)) => false,
        Decision::Record(_) | Decision::Wait(_) => true,
        Decision::Rest => !ended,
        Decision::Stuck(_) => false,
    }
}

/// Nothing is left of what went wrong with a copy or bring-back.
fn phase_is_good(record: &NodeRecord, facts: &Facts) -> bool {
    matches!(node::phase(record, facts), NodePhase::Ready | NodePhase::Local | NodePhase::BackReady | NodePhase::Gone)
        && node::setback(facts).is_none()
        && facts.seen()
}

fn ending(outcome: &node::PushOutcome) -> String {
    match outcome {
        node::PushOutcome::Sent { moved, .. } => format!("{moved} bytes sent"),
        node::PushOutcome::Taken(_) => "a snapshot is taken".to_owned(),
        node::PushOutcome::Failed { why } => why.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use img_storage_model::node::kernel::NodeStep;

    #[test]
    fn nothing_is_destroyed_given_up_or_left_by_what_was_seen_before() {
        let given_up = Decision::Record(NodeChange::Lies(Lies::Remote));
        for decision in [Decision::Do(NodeStep::DestroyLocal.into()), Decision::Stuck("something".to_owned()), given_up] {
            assert!(!is_sure(&decision, false) && !is_sure(&decision, true), "{decision:?}");
        }
        assert!(is_sure(&Decision::Rest, false));
        assert!(!is_sure(&Decision::Rest, true), "it is looked at no more from then on");
        for decision in [Decision::Do(NodeStep::Logout.into()), Decision::Wait("for something".to_owned())] {
            assert!(is_sure(&decision, false), "{decision:?}");
        }
    }
}
