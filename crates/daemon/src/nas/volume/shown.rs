//! What an actor shows of its volume.

use super::{Actor, SILENCE};
use crate::{
    nas::{
        Shown,
        view::{self, Seen},
    },
    retry::Retry,
};
use img_storage_model::{
    messages::{Endpoint, Progress},
    nas::{Facts, Stage},
};

impl Actor {
    pub(super) fn show_now(&self) {
        let shown = self.make_shown(None);
        self.shown.send_replace(shown);
    }

    pub(super) fn show(&self, facts: &Facts) {
        let shown = self.make_shown(Some(facts));
        self.shown.send_replace(shown);
    }

    fn make_shown(&self, facts: Option<&Facts>) -> Shown {
        let host = self.nas.post.name();
        let node = self.record.mapping.as_ref().map(|m| &m.node);
        let reported = self.report.as_ref().and_then(|r| r.stuck.clone()).zip(node).map(|(why, node)| {
            let mut retry = Retry::default();
            retry.stuck(why, self.nas.clock.now());
            retry.trouble(node)
        });
        let away = node.filter(|n| self.nas.peers.is_away(n)).map(|node| {
            let mut retry = Retry::default();
            retry.stuck(format!("{node} is not connected; its guests go on without it"), self.nas.clock.now());
            retry.trouble(node)
        });
        let stuck = self
            .retry
            .trouble(host)
            .or(reported.flatten())
            .or(self.setback.trouble(host))
            .or(self.push_retry.trouble(host))
            .or(away.flatten());
        let seen = Seen {
            allocated: self.allocated,
            report: self.report.as_ref(),
            rate: self.rate.per_second(),
            frequency: Some(self.nas.effective(&self.record.attributes).frequency.duration().as_secs()),
            clean_at: self.clean,
            // A node that is silent may have written since.
            clean: self.is_clean() && self.heard.is_some_and(|at| at.elapsed() < SILENCE),
            due: self.next_due(),
            in_line: self.in_line.clone(),
            last_write_back: self.last_write_back.clone(),
            write_backs: self.write_backs,
            stuck,
            waiting: self.waiting.clone(),
            progress: facts.and_then(Facts::stream).map(|s| Progress { done: s.job.done, total: s.job.total }),
        };
        let mut shown = view::show(&self.record, host, &seen);
        shown.failed = self.failed.clone();
        shown.unread = self.unread.clone();
        shown.at_rest = self.at_rest;
        shown.length = facts.and_then(Facts::length);
        shown.served = facts.and_then(|f| self.served(f));
        shown
    }

    /// Where an importing or reading front end finds the contents.
    fn served(&self, facts: &Facts) -> Option<Endpoint> {
        let endpoint = |port: u16, export: String| Endpoint {
            host: self.nas.config.address.clone(),
            port,
            export,
            server: self.nas.post.name().clone(),
        };
        match (&self.record.stage, &self.reader) {
            (Stage::Importing { port, complete: false, .. }, _) => Some(endpoint(*port, facts.import()?.to_owned())),
            (Stage::Ready, Some((_, port))) if facts.reader() == Some(true) => Some(endpoint(*port, "reader".to_owned())),
            _ => None,
        }
    }
}
