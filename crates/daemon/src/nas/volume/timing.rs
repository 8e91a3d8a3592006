//! When a volume's transfers are due, and whether it is their turn.

use super::{Actor, RESEND_EVERY};
use crate::nas::turns::{Urgency, Way};
use img_storage_model::{
    attribute::AttributeFrom,
    messages::Want,
    nas::{self, Authority, Decision, Facts, NasChange},
    schedule,
};
use jiff::Timestamp;

impl Actor {
    /// Takes up what the newest report says about what is not home.
    pub(super) fn look_at_report(&mut self) {
        let now = self.nas.clock.now();
        let clean = self.report.as_ref().and_then(|r| schedule::clean_at(&self.record, r));
        // A clock that was set back makes this worthless.
        self.clean = clean.max(self.clean).filter(|at| *at <= now);
    }

    /// When the next write-back is due, and what says so.
    pub(super) fn next_due(&self) -> Option<(Timestamp, AttributeFrom)> {
        let effective = self.nas.effective(&self.record.attributes);
        schedule::next_due(self.record.mapping.as_ref()?, self.clean, &effective, self.nas.clock.now())
    }

    /// Whether a write-back is due. Where the node has said that it would be empty, it is asked whether that is still so instead.
    pub(super) fn due(&mut self) -> bool {
        // What is due at once is due at the time that was asked: the clock is looked at after that.
        let due = self.next_due();
        let now = self.nas.clock.now();
        let late = due.is_some_and(|(at, _)| at <= now);
        let wanted = self.record.mapping.as_ref().is_some_and(|m| m.sync_now);
        if !late || wanted || !self.is_clean() {
            return late;
        }
        if self.sent.is_none_or(|at| at.elapsed() >= RESEND_EVERY)
            && let Some(assign) = self.record.assign.clone()
        {
            self.send(assign);
        }
        false
    }

    /// Whether the node has, by its newest word, nothing that is not home.
    pub(super) fn is_clean(&self) -> bool {
        self.report.as_ref().is_some_and(|r| schedule::clean_at(&self.record, r).is_some())
    }

    /// Whether a copy may begin; otherwise what it waits for is noted.
    pub(super) fn may_copy(&mut self) -> bool {
        if nas::copies(&self.record) != Some(false) {
            return true;
        }
        let Some(m) = &self.record.mapping else { return false };
        // A node that is away would only keep others waiting.
        let due = m.since;
        !self.nas.peers.is_away(&m.node) && self.take_turn(Way::ToNode, Urgency { may_wait: true, due })
    }

    /// Lets what would begin a transfer wait for its turn.
    pub(super) fn in_turn(&mut self, decision: Decision) -> Decision {
        let now = self.nas.clock.now();
        let begins = match &decision {
            Decision::Record(NasChange::BackRound | NasChange::BackOrder) => Some(Urgency { may_wait: true, due: now }),
            Decision::Record(NasChange::Order { last }) => {
                let due = self.next_due().map_or(now, |(at, _)| at);
                Some(Urgency { may_wait: !last, due })
            }
            Decision::Do(step) if step.begins_back() => Some(Urgency { may_wait: true, due: now }),
            _ => None,
        };
        match begins {
            Some(urgency) if !self.take_turn(Way::FromNode, urgency) => {}
            Some(_) => return decision,
            None => {}
        }
        match (&self.in_line, &decision) {
            (Some(why), _) if begins.is_some() || matches!(decision, Decision::Wait(_) | Decision::Rest) => {
                Decision::Wait(why.clone())
            }
            _ => decision,
        }
    }

    fn take_turn(&mut self, way: Way, urgency: Urgency) -> bool {
        self.claims = true;
        let turn = self.nas.turns.take(self.record.id, way, urgency, self.nas.sync_workers());
        self.in_line = turn.err();
        self.in_line.is_none()
    }

    /// Keeps the place of a transfer that is under way, and gives up one that is not needed.
    pub(super) fn settle_turn(&mut self, facts: &Facts) {
        match self.under_way(facts) {
            Some(way) => self.nas.turns.keep(self.record.id, way),
            None if self.claims => {}
            None => self.nas.leave_the_line(self.record.id),
        }
    }

    /// The transfer that is under way. One that cannot go on keeps nobody waiting.
    fn under_way(&self, facts: &Facts) -> Option<Way> {
        let m = self.record.mapping.as_ref()?;
        let held_up = self.report.as_ref().is_some_and(|r| r.stuck.is_some());
        if held_up || self.nas.peers.is_away(&m.node) {
            return None;
        }
        if nas::copies(&self.record) == Some(true) {
            return Some(Way::ToNode);
        }
        let back = match m.authority {
            Authority::Node => m.want == Want::Remote && facts.back_begun(),
            Authority::MaybeNas => true,
            Authority::Nas | Authority::MaybeNode => false,
        };
        (m.push.is_some() || back).then_some(Way::FromNode)
    }
}
