//! What an actor does with its mail: the node's reports, the operator's intents, and readers.

use super::{Actor, Mail, RESEND_EVERY};
use crate::rate::Rate;
use img_storage_model::{
    Fault, HostName, RequestId,
    attribute::Speeds,
    messages::{Assign, Body, DeviceKind, NodePhase, Report, Role, Want},
    nas::{self, Authority, Facts, Intent, NasChange, Stage, VolumeRecord},
};
use tokio::time::Instant;

impl Actor {
    pub(super) async fn read(&mut self, mail: Mail) {
        match mail {
            Mail::Report { from, report } => self.reported(&from, *report).await,
            Mail::Restarted { host, role, started } => {
                if self.record.mapping.as_ref().is_some_and(|m| m.node == host) {
                    self.sent = None;
                    self.report = None;
                }
                let importer = matches!(&self.record.stage, Stage::Importing { peer, session, complete: false, .. }
                    if *peer == host && session.is_some_and(|session| session != started));
                if role == Role::Frontend && importer && self.record(&NasChange::GiveUp).await.is_err() {
                    tracing::warn!(volume = %self.record.name, "its import was broken off, which could not be recorded");
                }
                let reader = self.reader.as_ref().is_some_and(|(peer, _)| *peer == host);
                if reader && self.nas.peers.session(&host) != self.lent_to {
                    self.reader = None;
                }
            }
            Mail::Connected => (self.sent, self.heard) = (None, None),
            Mail::Intent { request, intent, reply } => {
                let answer = self.intend(request, &intent).await;
                // Who asked may have given up.
                let _ = reply.send(answer);
            }
            Mail::Read { peer, port, reply } => {
                let answer = self.lend(peer, port).await;
                let _ = reply.send(answer);
            }
            Mail::ReadDone => self.reader = None,
            Mail::Look => {}
        }
    }

    async fn intend(&mut self, request: RequestId, intent: &Intent) -> Result<(), Fault> {
        let mut next = self.record.clone();
        let now = self.nas.clock.now();
        nas::apply(&mut next, intent, request, now, self.reader.is_some())?;
        if next != self.record {
            self.nas.store.put(&next).await?;
            self.record = next;
            self.nas.journal.note(self.record.id, now, &asked(intent));
            self.retry.well();
            self.push_retry.well();
            // Who waits for this intent must not be shown what was before it.
            self.waiting = None;
            self.at_rest = false;
            self.show_now();
        }
        Ok(())
    }

    /// Notes that no reader has it any more.
    pub(super) async fn taken_back(&mut self, facts: &Facts) -> Result<(), Fault> {
        if self.record.lent && self.reader.is_none() && facts.reader() == Some(false) {
            let next = VolumeRecord { lent: false, ..self.record.clone() };
            self.nas.store.put(&next).await?;
            self.record = next;
        }
        Ok(())
    }

    async fn lend(&mut self, peer: HostName, port: u16) -> Result<(), Fault> {
        let name = format!("volume {}/{}", self.record.pool, self.record.name);
        if self.reader.is_some() {
            return Err(Fault::refused(format!("{name} is being exported to a file already")).next("wait for that to end"));
        }
        match &self.record.mapping {
            _ if self.record.stage != Stage::Ready => Err(Fault::refused(format!("{name} is not ready"))),
            Some(m) if m.authority != Authority::Node || m.want != Want::Local => {
                Err(Fault::refused(format!("{name} is in use on {} over the network; its copy here is no point in time", m.node))
                    .next("unmap it, or move it to a local copy with map --sync, and export then"))
            }
            _ => {
                // A daemon that starts again must know that there is an export to end.
                let next = VolumeRecord { lent: true, ..self.record.clone() };
                self.nas.store.put(&next).await?;
                self.record = next;
                self.lent_to = self.nas.peers.session(&peer);
                self.reader = Some((peer, port));
                self.unread = None;
                self.show_now();
                Ok(())
            }
        }
    }

    async fn reported(&mut self, from: &HostName, report: Report) {
        match &self.record.mapping {
            Some(m) if m.node == *from && m.epoch == report.epoch => {
                // A node with an older ledger goes on about an older assignment: it is as if it had not answered.
                if self.record.assign.as_ref().is_none_or(|assign| assign.revision <= report.revision) {
                    self.heard = Some(Instant::now());
                }
                if let Some(progress) = report.progress {
                    self.rate.at(progress.done, Instant::now());
                } else {
                    self.rate = Rate::default();
                }
                // Within an epoch an answer to an older assignment is old news.
                if self.report.as_ref().is_none_or(|r| r.epoch != report.epoch || r.revision <= report.revision) {
                    self.report = Some(report);
                }
            }
            _ => self.stranger(from, &report).await,
        }
    }

    /// A report of a mapping that is over, or that this ledger does not know. Only what this NAS gave is taken up again.
    async fn stranger(&mut self, from: &HostName, report: &Report) {
        let now = self.nas.clock.now();
        let mut next = self.record.clone();
        let request = RequestId(self.nas.ids.fresh(now));
        let given = report.proof.as_ref() == Some(&self.nas.proof(self.record.id, from, report.epoch));
        if report.epoch > self.record.epoch && !given
            || self.record.mapping.as_ref().is_some_and(|m| m.node != *from && m.epoch <= report.epoch)
        {
            tracing::warn!(%from, volume = %self.record.name, "a report about a volume that this host was not given was refused");
            return;
        }
        if let Ok(port) = self.nas.host.free_port()
            && nas::adopt(&mut next, from, report, request, now, port)
        {
            if self.nas.store.put(&next).await.is_ok() {
                self.record = next;
                let what = format!("{from} holds an unsynced local copy of epoch {}: taken up again", report.epoch);
                tracing::warn!(volume = %self.record.name, "{what}");
                self.nas.journal.note(self.record.id, now, &what);
            }
            return;
        }
        // Who cannot let go of it, as of writes that never came home, answers all the same, and is not answered at once for ever.
        let now = Instant::now();
        self.told_over.retain(|_, at| now.duration_since(*at) < RESEND_EVERY);
        if report.phase != NodePhase::Gone && report.epoch <= self.record.epoch && !self.told_over.contains_key(from) {
            self.told_over.insert(from.clone(), now);
            let over = Assign {
                volume: self.record.id,
                name: format!("{}/{}", self.record.pool, self.record.name),
                nas: self.nas.post.name().clone(),
                size: self.record.size,
                epoch: report.epoch,
                revision: report.revision + 1,
                want: Want::Gone,
                device: DeviceKind::default(),
                plane: self.record.plane,
                kernel: None,
                force: true,
                export: None,
                granted: false,
                push: None,
                accepted: None,
                release: false,
                back: None,
                speeds: Speeds::default(),
                asked: None,
                proof: None,
            };
            self.nas.post.send(from, Body::Assign(Box::new(over)));
        }
    }
}

fn asked(intent: &Intent) -> String {
    match intent {
        Intent::Map { node, sync, .. } => format!("asked: map to {node}{}", if *sync { ", on a local copy" } else { "" }),
        Intent::Unmap { force } => format!("asked: unmap{}", if *force { " by force" } else { "" }),
        Intent::Sync => "asked: sync".to_owned(),
        Intent::BringBack => "asked: bring back".to_owned(),
        Intent::Resize { size } => format!("asked: resize to {size}"),
        Intent::Attributes { changes } => {
            let all: Vec<String> = changes
                .iter()
                .map(|(key, value)| value.as_ref().map_or_else(|| format!("{key} not set any more"), |v| format!("{key} = {v}")))
                .collect();
            format!("asked: {}", all.join(", "))
        }
        Intent::Delete => "asked: delete".to_owned(),
        Intent::Imported { complete: true } => "filled from an image".to_owned(),
        Intent::Imported { complete: false } => "its import was broken off".to_owned(),
    }
}
