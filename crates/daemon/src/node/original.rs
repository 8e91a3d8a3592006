//! What the original's front end asks of a node: which devices it has, and what it is called over iSCSI.
//!
//! The volumes' actors leave here what they last saw ([`Node::saw`]), so that an answer waits for nothing.

use super::Node;
use crate::bus::Foreign;
use img_storage_model::{
    HostName, Selector,
    api::Phase,
    messages::{NodePhase, Report, Want},
    node::{NodeRecord, Truth},
    original::{Action, NodeRequest, OnNode, Reply, devices, node_request, say},
};
use std::sync::PoisonError;

/// What an actor saw of its volume.
pub(crate) struct Seen {
    phase: NodePhase,
    volume: OnNode,
}

fn phase(phase: NodePhase) -> Phase {
    match phase {
        NodePhase::Attaching | NodePhase::Gone => Phase::Attaching,
        NodePhase::Remote => Phase::Remote,
        NodePhase::Copying => Phase::Copying,
        NodePhase::Ready | NodePhase::Switching => Phase::Switching,
        NodePhase::Local => Phase::Local,
        NodePhase::BringingBack | NodePhase::BackReady => Phase::BringingBack,
        NodePhase::Returning => Phase::Returning,
    }
}

impl Node {
    /// Takes a message that no daemon of ours sent.
    pub(super) fn foreign(&self, message: &Foreign) {
        let Some(reply_to) = &message.reply_to else {
            tracing::warn!(user = message.user, "a message that is none of ours and wants no answer was dropped");
            return;
        };
        let reply = match node_request(&message.body) {
            Ok(NodeRequest::Devices) => Reply::Devices(self.devices()),
            Ok(NodeRequest::Initiator) => match img_storage_host::initiator() {
                Ok(name) => Reply::Initiator(name.unwrap_or_else(|| made_up(self.post.name()))),
                Err(why) => {
                    tracing::warn!("{why}");
                    Reply::refused(Action::ListInitiator, say::NO_INITIATOR)
                }
            },
            Err(refusal) => Reply::Refused(refusal),
        };
        self.post.answer(reply_to, reply.encode());
    }

    fn devices(&self) -> std::collections::BTreeMap<String, img_storage_model::original::Device> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        devices(seen.values().map(|seen| seen.volume.clone()).collect())
    }

    /// Notes what there is of a volume.
    pub(super) fn saw(&self, record: &NodeRecord, report: &Report) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let assign = &record.assign;
        let Ok(Selector { pool: Some(pool), name, .. }) = assign.name.parse() else { return };
        if report.phase == NodePhase::Gone {
            seen.remove(&record.volume);
            return;
        }
        let before = seen.get(&record.volume).filter(|s| s.phase == report.phase).and_then(|s| s.volume.since);
        let volume = OnNode {
            nas: assign.nas.clone(),
            pool,
            name,
            size: assign.size.bytes(),
            sync: assign.want == Want::Local || record.truth == Truth::Local,
            phase: phase(report.phase),
            device: report.device.clone(),
            target: assign.export.as_ref().map(img_storage_model::messages::Endpoint::uri),
            progress: report.progress,
            since: before.or_else(|| Some(self.clock.now().as_second())),
        };
        seen.insert(record.volume, Seen { phase: report.phase, volume });
    }
}

/// The name of a node without open-iscsi. The original's front end asks for one before it maps anything, over whatever it is mapped.
fn made_up(node: &HostName) -> String {
    format!("iqn.2026-11.local.img-storage:{node}")
}
