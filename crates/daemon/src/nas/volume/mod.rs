//! The actor of one volume on its NAS: observe, plan, make durable, do, look again.
//!
//! It alone changes the volume's row and touches the volume on the host. Everything it learns comes by mail: the node's reports
//! and the operator's intents; a long step does not keep it from reading them.

mod history;
mod mail;
mod shown;
mod timing;

use super::{Nas, Shown};
use crate::{
    rate::Rate,
    retry::Retry,
    steps::{self, CARRIED, HELD, OBSERVE_DEADLINE, Repeats},
};
use img_storage_model::{
    Fault, HostName, Plane, RequestId,
    api::WriteBack,
    messages::{Assign, Body, Report, Role, Want},
    nas::{self, Context, Decision, Facts, Intent, NasChange, Stage, Step, Terms, VolumeRecord, kernel::Zvol},
    node::{JobState, StepResult},
};
use jiff::Timestamp;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep, timeout},
};

/// How often a mapped volume is looked at when nothing happens.
const LOOK_EVERY: Duration = Duration::from_secs(3);
/// How often an assignment is sent again that the node has not answered, or cannot do what it says.
const RESEND_EVERY: Duration = Duration::from_secs(3);
/// A node that has not said anything about its volume for so long is sent the assignment again, to which it answers.
const SILENCE: Duration = Duration::from_secs(15);

/// What an actor gets.
pub(crate) enum Mail {
    /// From the node.
    Report { from: HostName, report: Box<Report> },
    /// A host came (back).
    Restarted { host: HostName, role: Role, started: Timestamp },
    /// The bus is there (again): whether the node got its assignment is not known.
    Connected,
    /// From an operator; answered when it is durable or refused.
    Intent { request: RequestId, intent: Box<Intent>, reply: oneshot::Sender<Result<(), Fault>> },
    /// A front end wants to read the volume.
    Read { peer: HostName, port: u16, reply: oneshot::Sender<Result<(), Fault>> },
    /// It has read it.
    ReadDone,
    /// What counts for it has changed, or it is its turn.
    Look,
}

pub(crate) struct Actor {
    nas: Arc<Nas>,
    record: VolumeRecord,
    mail: mpsc::UnboundedReceiver<Mail>,
    shown: watch::Sender<Shown>,
    report: Option<Report>,
    reader: Option<(HostName, u16)>,
    /// When the reader's process began.
    lent_to: Option<Timestamp>,
    retry: Retry,
    push_retry: Retry,
    /// Live commits that failed; unlike `retry` it is over only when one got through.
    setback: Retry,
    waiting: Option<String>,
    allocated: Option<u64>,
    rate: Rate,
    last_write_back: Option<WriteBack>,
    write_backs: u64,
    /// Bytes of the last stream.
    streamed: Option<u64>,
    /// When the node last had nothing that is not home.
    clean: Option<Timestamp>,
    /// It has asked for a turn since it last looked.
    claims: bool,
    /// What it waits for to have its turn.
    in_line: Option<String>,
    sent: Option<Instant>,
    heard: Option<Instant>,
    /// The node was asked for its iSCSI name.
    asked_name: Option<Instant>,
    /// When which host was told that it has a mapping that is over.
    told_over: BTreeMap<HostName, Instant>,
    failed: Option<Fault>,
    unread: Option<Fault>,
    at_rest: bool,
    /// So often a transfer that runs was looked at.
    closely: u32,
    repeats: Repeats<Step>,
    /// When the zvol was last looked at.
    zvol_at: Instant,
    /// What is planned with has it from an earlier look.
    carried: bool,
    over: bool,
}

impl Actor {
    pub(super) fn new(
        nas: Arc<Nas>,
        record: VolumeRecord,
        mail: mpsc::UnboundedReceiver<Mail>,
        shown: watch::Sender<Shown>,
    ) -> Self {
        Actor {
            nas,
            record,
            mail,
            shown,
            report: None,
            reader: None,
            lent_to: None,
            retry: Retry::default(),
            push_retry: Retry::default(),
            setback: Retry::default(),
            waiting: None,
            allocated: None,
            rate: Rate::default(),
            last_write_back: None,
            write_backs: 0,
            streamed: None,
            clean: None,
            claims: false,
            in_line: None,
            sent: None,
            heard: None,
            asked_name: None,
            told_over: BTreeMap::new(),
            failed: None,
            unread: None,
            at_rest: false,
            closely: 0,
            repeats: Repeats::default(),
            zvol_at: Instant::now(),
            carried: false,
            over: false,
        }
    }

    /// Runs until the volume is deleted.
    pub(super) async fn live(mut self) {
        // Writing something down changes nothing on the host: what was seen before still counts.
        let mut kept = None;
        // Of facts that are over, what goes into the next ones.
        let mut zvol = None;
        while !self.over {
            while let Ok(mail) = self.mail.try_recv() {
                self.read(mail).await;
            }
            self.at_rest = false;
            let facts = match kept.take() {
                Some(facts) => facts,
                None => self.observe(zvol.take()).await,
            };
            (self.claims, self.in_line) = (false, None);
            self.look_at_report();
            if let Err(fault) = self.kept_up(&facts).await {
                self.pause(fault.to_string()).await;
                continue;
            }
            let decision = self.plan(&facts);
            if self.carried && matches!(decision, Decision::Stuck(_)) {
                // That something is wrong is not concluded from what was seen before.
                self.carried = false;
                continue;
            }
            let decision = self.in_turn(decision);
            self.settle_turn(&facts);
            match decision {
                Decision::Do(step) => {
                    self.waiting = None;
                    self.show(&facts);
                    if let Some(left) = self.retry.holds().max(self.setback.holds().filter(|_| step.begins_anew())) {
                        self.rest(left.min(HELD)).await;
                    } else {
                        if let Some(why) = facts.setback().filter(|_| step.takes_up()) {
                            self.setback.failed(why, self.nas.clock.now());
                        }
                        let leaves = step.leaves_zvol(&facts);
                        self.run(step).await;
                        zvol = Some(facts).filter(|_| leaves).and_then(Facts::into_zvol);
                    }
                }
                Decision::Record(change) => match self.record(&change).await {
                    Ok(()) => kept = Some(facts),
                    Err(fault) => self.pause(fault.to_string()).await,
                },
                Decision::Wait(why) => {
                    self.repeats.rest();
                    self.retry.well();
                    self.waiting = Some(why);
                    self.show(&facts);
                    let pause = self.look_again(&facts);
                    self.rest(pause).await;
                    let carries = facts.stream().is_some() || self.record.awaits_word();
                    zvol = Some(facts).filter(|_| carries).and_then(Facts::into_zvol);
                }
                Decision::Stuck(why) => {
                    self.retry.stuck(why, self.nas.clock.now());
                    self.show(&facts);
                    self.rest(LOOK_EVERY).await;
                }
                Decision::Rest => {
                    self.repeats.rest();
                    self.retry.well();
                    self.waiting = None;
                    self.at_rest = true;
                    self.show(&facts);
                    let pause = self.look_again(&facts);
                    self.rest(pause).await;
                }
            }
        }
        self.nas.forget(self.record.id);
    }

    /// Brings what others are to know up to date with what is seen.
    async fn kept_up(&mut self, facts: &Facts) -> Result<(), Fault> {
        self.taken_back(facts).await?;
        self.assign(facts).await
    }

    /// Looks at the host; `zvol` is carried over for a while.
    async fn observe(&mut self, zvol: Option<Zvol>) -> Facts {
        let zvol = zvol.filter(|_| self.zvol_at.elapsed() < CARRIED);
        self.carried = zvol.is_some();
        if zvol.is_none() {
            self.zvol_at = Instant::now();
        }
        let looked = timeout(OBSERVE_DEADLINE, self.nas.host.observe(Nas::volume_ref(&self.record), zvol)).await;
        let facts = looked.unwrap_or_else(|_| Facts::unknown(self.record.plane, &steps::unanswered()));
        self.allocated = facts.allocated().or(self.allocated);
        facts
    }

    fn plan(&mut self, facts: &Facts) -> Decision {
        let due = self.due();
        let node = self.record.mapping.as_ref().map(|m| &m.node);
        let (initiator, peer_address) = node.map_or((None, None), |node| self.nas.peers.reached(node));
        self.ask_name(initiator.is_none());
        let password = self.password();
        let context = Context {
            report: self.report.as_ref(),
            due,
            hold_off: self.push_retry.holds().is_some(),
            reader: self.reader.clone(),
            nas: self.nas.post.name().as_str(),
            initiator: initiator.as_deref(),
            peer_address: peer_address.as_deref(),
            password: &password,
            speeds: self.nas.effective(&self.record.attributes).speeds,
        };
        nas::plan(&self.record, facts, &context)
    }

    /// A node whose iSCSI name is not known, as after a start of this daemon, is asked for it until it answers.
    fn ask_name(&mut self, unknown: bool) {
        let node = self.record.mapping.as_ref().filter(|_| unknown && self.record.plane == Plane::Kernel).map(|m| &m.node);
        if let Some(node) = node
            && self.asked_name.is_none_or(|at| at.elapsed() >= RESEND_EVERY)
        {
            self.nas.hello(node, true);
            self.asked_name = Some(Instant::now());
        }
    }

    /// The iSCSI secret of this mapping: nobody need remember it.
    fn password(&self) -> String {
        let mapping = self.record.mapping.as_ref().filter(|_| self.record.plane == Plane::Kernel);
        mapping.map_or_else(String::new, |m| self.nas.password(self.record.id, &m.node, m.epoch))
    }

    /// When to look again without being told anything.
    fn look_again(&mut self, facts: &Facts) -> Duration {
        if facts.job().is_some_and(|job| job.state == JobState::Running) {
            self.closely = self.closely.saturating_add(1);
            // A stream soon and then less soon: there may be many, and hundreds of exports to look through each time.
            let pause = if facts.stream().is_some() { u64::from(self.closely * 20).min(250) } else { 50 };
            return Duration::from_millis(pause);
        }
        self.closely = 0;
        let now = self.nas.clock.now();
        let due = self.next_due().map(|(at, _)| at);
        let until = due.filter(|at| *at > now).and_then(|at| Duration::try_from(at.duration_since(now)).ok());
        until.map_or(LOOK_EVERY, |d| d.clamp(Duration::from_millis(20), LOOK_EVERY))
    }

    /// Waits for mail, or `at_most` so long. A volume at rest needs no looking at.
    async fn rest(&mut self, at_most: Duration) {
        let at_rest = self.record.mapping.is_none()
            && self.record.stage == Stage::Ready
            && self.reader.is_none()
            && self.retry.why().is_none();
        let mail = if at_rest {
            self.mail.recv().await
        } else {
            tokio::select! {
                biased;
                mail = self.mail.recv() => mail,
                () = sleep(at_most) => return,
            }
        };
        match mail {
            Some(mail) => self.read(mail).await,
            None => self.over = true,
        }
    }

    async fn pause(&mut self, why: String) {
        let pause = self.retry.failed(why, self.nas.clock.now());
        self.show_now();
        let until = Instant::now() + pause;
        while !self.over && Instant::now() < until {
            self.rest(until.saturating_duration_since(Instant::now())).await;
        }
    }

    fn deadline(&self, step: &Step) -> Duration {
        let bulk = step.is_bulk();
        let bytes = if bulk { self.record.size.bytes() } else { 0 };
        self.nas.config.step_deadline + steps::bulk(bytes)
    }

    async fn run(&mut self, step: Step) {
        let deadline = self.deadline(&step);
        tracing::debug!(volume = %self.record.name, epoch = %self.record.epoch, ?step);
        let nas = Arc::clone(&self.nas);
        let mut work = Box::pin(timeout(deadline, nas.host.run(Nas::volume_ref(&self.record), step.clone())));
        let done = loop {
            tokio::select! {
                biased;
                done = &mut work => break done,
                mail = self.mail.recv() => match mail {
                    Some(mail) => self.read(mail).await,
                    None => break (&mut work).await,
                },
            }
        };
        match done {
            Ok(Ok(result)) => {
                self.repeats.done(&step, &mut self.retry, self.nas.clock.now());
                self.finished(&step, &result).await;
            }
            Ok(Err(why)) => self.step_failed(&step, &why.to_string()).await,
            Err(_) => self.step_failed(&step, &steps::late(&step, deadline)).await,
        }
    }

    async fn finished(&mut self, step: &Step, result: &StepResult) {
        if let Some(change) = nas::after(&self.record, step, result)
            && let Err(fault) = self.record(&change).await
        {
            self.retry.failed(fault.to_string(), self.nas.clock.now());
        }
    }

    async fn step_failed(&mut self, step: &Step, why: &str) {
        tracing::warn!(volume = %self.record.name, epoch = %self.record.epoch, "{}: {why}", steps::verb(step));
        if step.lends() {
            // Who wants to read it is told; the volume's own life goes on.
            self.reader = None;
            self.unread = Some(Fault::failed(why));
            self.show_now();
            return;
        }
        self.retry.failed(why.to_owned(), self.nas.clock.now());
        if let Some(change) = nas::after_error(&self.record, step, why) {
            if change == NasChange::GiveUp {
                self.failed = Some(Fault::failed(why));
            }
            if let Err(fault) = self.record(&change).await {
                self.retry.failed(fault.to_string(), self.nas.clock.now());
            }
        }
    }

    /// Makes a change durable, then takes it up.
    async fn record(&mut self, change: &NasChange) -> Result<(), Fault> {
        let now = self.nas.clock.now();
        if *change == NasChange::Deleted {
            self.nas.store.remove(self.record.id, self.record.asked, now).await?;
            if self.record.plane == Plane::Kernel {
                self.nas.was_deleted(self.record.id);
            }
            self.over = true;
            return Ok(());
        }
        let mut next = self.record.clone();
        let port = match change {
            NasChange::Order { .. } | NasChange::NewPort if self.record.plane == Plane::Qemu => {
                self.nas.host.free_port().map_err(|e| Fault::failed(e.to_string()))?
            }
            _ => 0,
        };
        next.apply(change, now, || (img_storage_model::SnapshotId(self.nas.ids.fresh(now)), port));
        self.nas.store.put(&next).await?;
        self.note(change, now);
        self.record = next;
        if *change == NasChange::Layer(img_storage_model::nas::NasLayer::Disk) {
            self.setback.well();
        }
        if matches!(change, NasChange::Authority(_) | NasChange::Grant(_) | NasChange::Unmapped) {
            self.clean = None;
        }
        if matches!(change, NasChange::Streamed { .. }) {
            self.setback.well();
            // The node looks at what arrived, and tells; what it said of its snapshots before is old.
            if let Some(report) = &mut self.report {
                report.kernel = None;
            }
            if let Some(assign) = self.record.assign.clone() {
                self.send(assign);
            }
        }
        if *change == NasChange::Unmapped {
            self.setback.well();
            self.report = None;
            self.retry.well();
            self.push_retry.well();
            (self.last_write_back, self.write_backs) = (None, 0);
        }
        Ok(())
    }

    /// Brings the node's assignment up to date, and sends it when it is new or was not answered.
    async fn assign(&mut self, facts: &Facts) -> Result<(), Fault> {
        let speeds = self.nas.effective(&self.record.attributes).speeds;
        let copy = self.may_copy();
        let password = self.password();
        let terms = Terms { nas: self.nas.post.name(), address: &self.nas.config.address, speeds, copy, password: &password };
        let Some(next) = nas::assignment(&self.record, facts, &terms) else {
            self.sent = None;
            return Ok(());
        };
        // A node can do nothing with a mapping that has no export yet.
        if self.record.assign.is_none() && next.export.is_none() && next.want != Want::Gone && !next.granted {
            return Ok(());
        }
        if self.record.assign.as_ref() != Some(&next) {
            let mut record = self.record.clone();
            record.assign = Some(next.clone());
            self.nas.store.put(&record).await?;
            self.record = record;
            self.send(next);
            return Ok(());
        }
        let answers = |r: &Report| r.epoch == next.epoch && r.revision == next.revision;
        let answered = self.report.as_ref().is_some_and(|r| answers(r) && (next.kernel.is_none() || r.kernel.is_some()));
        let silent = self.heard.is_none_or(|at| at.elapsed() >= SILENCE);
        if (!answered || silent) && self.sent.is_none_or(|at| at.elapsed() >= RESEND_EVERY) {
            self.send(next);
        }
        Ok(())
    }

    fn send(&mut self, mut assign: Assign) {
        self.sent = Some(Instant::now());
        assign.asked = Some(self.nas.clock.now());
        if let Some(mapping) = &self.record.mapping {
            assign.proof = Some(self.nas.proof(assign.volume, &mapping.node, assign.epoch));
            self.nas.post.send(&mapping.node, Body::Assign(Box::new(assign)));
        }
    }
}
