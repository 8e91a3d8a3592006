//! What is told and kept of what happened to a volume.

use super::Actor;
use img_storage_model::{
    api::WriteBack,
    nas::{Authority, NasChange},
    node::PushOutcome,
};
use jiff::Timestamp;

impl Actor {
    /// Keeps the history, and the figures of write-backs.
    pub(super) fn note(&mut self, change: &NasChange, now: Timestamp) {
        let push = self.record.mapping.as_ref().and_then(|m| m.push.clone());
        let node = self.record.mapping.as_ref().map_or_else(String::new, |m| m.node.to_string());
        let what = match change {
            NasChange::Created => "created".to_owned(),
            NasChange::Grant(_) => format!("copied, with nothing written since; {node} may switch to its local copy"),
            NasChange::Authority(Authority::MaybeNode) => format!("copied; {node} may switch to its local copy"),
            NasChange::Authority(Authority::Node) => format!("{node} has the newest writes, on its local copy"),
            NasChange::Authority(Authority::MaybeNas) => format!("everything is here too; {node} may switch back"),
            NasChange::Authority(Authority::Nas) => "the newest writes are here".to_owned(),
            NasChange::Order { last } => format!("write-back ordered from {node}{}", if *last { ", the last one" } else { "" }),
            NasChange::BackRound | NasChange::BackOrder => format!("write-back ordered from {node}, to bring the guest back"),
            NasChange::Streamed { moved, took_ms } => {
                self.streamed = Some(*moved);
                format!("{} streamed in {took_ms} ms", img_storage_model::size::human_bytes(*moved))
            }
            NasChange::Fresh(true) => {
                format!("what {node} kept has no snapshot in common with the volume any more: it goes, and everything is copied")
            }
            NasChange::Base => format!("last difference for {node}"),
            NasChange::Back(true) => format!("{node} may let its guest write to an overlay"),
            NasChange::Back(false) => "not brought back".to_owned(),
            NasChange::Verified => "write-back verified".to_owned(),
            NasChange::PushFailed { why } => {
                self.push_retry.failed(why.clone(), now);
                format!("write-back failed: {why}")
            }
            NasChange::Accepted => {
                self.push_retry.well();
                let moved = self.report.as_ref().and_then(|r| r.pushed.as_ref()).and_then(|p| match &p.outcome {
                    PushOutcome::Sent { moved, .. } => Some(*moved),
                    PushOutcome::Taken(_) => self.streamed,
                    PushOutcome::Failed { .. } => None,
                });
                if let Some(push) = push {
                    let took = u64::try_from(now.duration_since(push.ordered).as_millis()).ok();
                    self.last_write_back = Some(WriteBack { snapshot: push.push, at: push.ordered, moved, took_ms: took });
                    self.write_backs += 1;
                    let bytes = moved.map_or_else(String::new, |m| format!(" of {}", img_storage_model::size::human_bytes(m)));
                    format!("write-back{bytes} came home in {} ms", took.unwrap_or(0))
                } else {
                    "write-back came home".to_owned()
                }
            }
            NasChange::Unmapped => format!("unmapped from {node}"),
            NasChange::GiveUp => "given up".to_owned(),
            NasChange::Layer(_) => "what came back is folded into the volume".to_owned(),
            NasChange::Deleted | NasChange::NewPort | NasChange::Round | NasChange::RoundDone | NasChange::Fresh(false) => return,
        };
        tracing::info!(volume = %self.record.name, epoch = %self.record.epoch, "{what}");
        self.nas.journal.note(self.record.id, now, &what);
    }
}
