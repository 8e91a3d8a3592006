//! Requests in the words of the original's front end. It waits for its answer for ever, so everything that names a queue gets one.
//!
//! What changes something is written down before anything is done ([`crate::store::Begun`]), with a request id of ours under which it
//! is carried out as any other request; its answer is written down before it is given. A daemon that starts again takes up what it
//! finds unanswered, and gives the answers once more that it may not have given. [`orders`] carries out, [`lists`] only looks.

mod lists;
mod orders;

use super::Nas;
use crate::{
    bus::{Foreign, ReplyTo},
    store::{Begun, ForeignRequest},
};
use img_storage_model::{
    Epoch, Fault, HostName, RequestId, VolumeId, VolumeName,
    api::VolumeView,
    original::{NasRequest, Refusal, Reply, nas_request, say},
};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// An answer given so short a time before the bus broke may not have got through.
const UNSURE: Duration = Duration::from_secs(60);
/// The user that the original's hosts share on the broker.
const SHARED_USER: &str = "img-storage";
/// So many bytes of those are kept: a long list that got lost is soon asked for again.
const KEPT: usize = 1 << 20;

/// What a NAS keeps in memory for such requests.
#[derive(Default)]
pub struct Original {
    /// Volumes that one is being carried out for, by name: the original knows no two of the same.
    working: Mutex<BTreeSet<VolumeName>>,
    /// Answers that were given and are not noted as such.
    sent: Mutex<Vec<RequestId>>,
    /// The answers of late.
    given: Mutex<VecDeque<(Instant, ReplyTo, Vec<u8>)>>,
    /// The pools of nodes that volumes were asked to be copied to.
    pools: Mutex<BTreeMap<VolumeId, (Epoch, String)>>,
    /// Volumes by what the original knows of them.
    names: Mutex<BTreeMap<VolumeName, BTreeSet<VolumeId>>>,
}

impl Original {
    /// There is a volume of this name.
    pub(super) fn entered(&self, name: &VolumeName, id: VolumeId) {
        lock(&self.names).entry(name.clone()).or_default().insert(id);
    }

    /// It is not there any more.
    pub(super) fn left(&self, name: &VolumeName, id: VolumeId) {
        let mut names = lock(&self.names);
        if let Some(volumes) = names.get_mut(name) {
            volumes.remove(&id);
            if volumes.is_empty() {
                names.remove(name);
            }
        }
        drop(names);
        lock(&self.pools).remove(&id);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A volume's name, held while a request for it is carried out.
struct Held {
    nas: Arc<Nas>,
    zvol: VolumeName,
}

impl Drop for Held {
    fn drop(&mut self) {
        lock(&self.nas.original.working).remove(&self.zvol);
    }
}

impl Nas {
    /// Takes up what an earlier life of this daemon left unanswered.
    pub(super) fn resume(self: &Arc<Self>) -> Result<(), Fault> {
        lock(&self.original.pools)
            .extend(self.store.foreign_pools()?.into_iter().map(|(volume, epoch, pool)| (volume, (epoch, pool))));
        for ForeignRequest { id, reply_to, body, answer } in self.store.foreign_open()? {
            match (answer, nas_request(&body)) {
                (Some(answer), _) => self.give(Some(id), &reply_to, answer),
                (None, Ok(request)) => {
                    tracing::info!(
                        queue = reply_to.queue,
                        action = request.action().answer(),
                        "an open request is taken up again"
                    );
                    let nas = Arc::clone(self);
                    self.tasks.spawn(async move { nas.carry_out(id, reply_to, request, true).await });
                }
                // It was understood when it was written down, by another version then.
                (None, Err(refusal)) => {
                    let nas = Arc::clone(self);
                    self.tasks.spawn(async move { nas.end(id, &reply_to, &Reply::Refused(refusal)).await });
                }
            }
        }
        Ok(())
    }

    /// Takes a message that no daemon of ours sent.
    pub(super) fn foreign(self: &Arc<Self>, message: Foreign) {
        let Some(reply_to) = message.reply_to else {
            tracing::warn!(user = message.user, "a message that is none of ours and wants no answer was dropped");
            return;
        };
        if let Err(why) = self.may_ask(message.user.as_deref()) {
            tracing::warn!(user = message.user, "a request in the original's words was refused: {why}");
            return self.give(None, &reply_to, Reply::Refused(Refusal { action: None, why }).encode());
        }
        match nas_request(&message.body) {
            Err(refusal) => self.give(None, &reply_to, Reply::Refused(refusal).encode()),
            Ok(request) if request.only_looks() => {
                let nas = Arc::clone(self);
                self.tasks.spawn(async move {
                    let answer = nas.look(request).await.encode();
                    nas.give(None, &reply_to, answer);
                });
            }
            Ok(request) => {
                let nas = Arc::clone(self);
                self.tasks.spawn(async move { nas.begin(reply_to, message.body, request).await });
            }
        }
    }

    /// Remembers that there is such a node, for when it is away.
    pub(super) fn know(self: &Arc<Self>, node: &HostName) {
        let (nas, node) = (Arc::clone(self), node.clone());
        self.tasks.spawn(async move {
            if let Err(fault) = nas.store.know_node(&node).await {
                tracing::warn!("{node} is not remembered: {fault}");
            }
        });
    }

    /// The original's front end does not sign what it sends; who does must be a front end.
    fn may_ask(&self, user: Option<&str>) -> Result<(), String> {
        let me = self.post.name();
        match user.filter(|user| *user != SHARED_USER) {
            None if self.config.cluster.unsigned_orders => Ok(()),
            None => Err(format!(
                "{me} takes signed orders only; unsigned_orders = true in [cluster] of its configuration changes that"
            )),
            Some(user) if HostName::new(user).is_ok_and(|host| self.config.cluster.is_frontend(&host)) => Ok(()),
            Some(user) => Err(format!("{me} takes orders from front ends only, not from {user}")),
        }
    }

    async fn begin(self: Arc<Self>, reply_to: ReplyTo, body: Vec<u8>, request: NasRequest) {
        let now = self.clock.now();
        let id = RequestId(self.ids.fresh(now));
        match self.store.foreign_begin(id, &reply_to, &body, now).await {
            Ok(Begun::New) => self.carry_out(id, reply_to, request, false).await,
            Ok(Begun::UnderWay) => {}
            Ok(Begun::Answered(answer)) => self.give(None, &reply_to, answer),
            // Nothing is done that is not written down.
            Err(fault) => self.give(None, &reply_to, Reply::refused(request.action(), fault.to_string()).encode()),
        }
    }

    async fn carry_out(self: Arc<Self>, id: RequestId, reply_to: ReplyTo, request: NasRequest, again: bool) {
        let reply = self.obey(id, request, again).await;
        self.end(id, &reply_to, &reply).await;
    }

    async fn end(&self, id: RequestId, reply_to: &ReplyTo, reply: &Reply) {
        let answer = reply.encode();
        let sent = std::mem::take(&mut *lock(&self.original.sent));
        if let Err(fault) = self.store.foreign_end(id, &answer, sent).await {
            tracing::warn!("an answer could not be written down; it will be given again after a restart: {fault}");
        }
        self.give(Some(id), reply_to, answer);
    }

    fn give(&self, id: Option<RequestId>, reply_to: &ReplyTo, answer: Vec<u8>) {
        self.post.answer(reply_to, answer.clone());
        if let Some(id) = id {
            lock(&self.original.sent).push(id);
        }
        let mut given = lock(&self.original.given);
        given.push_back((Instant::now(), reply_to.clone(), answer));
        let mut bytes: usize = given.iter().map(|(_, _, answer)| answer.len()).sum();
        while given.front().is_some_and(|(at, ..)| bytes > KEPT || at.elapsed() > UNSURE) {
            bytes -= given.pop_front().map_or(0, |(_, _, answer)| answer.len());
        }
    }

    /// The bus was away and is back: who asked may still wait for an answer that went under with it.
    pub(super) fn give_again(&self) {
        for (at, reply_to, answer) in lock(&self.original.given).iter() {
            if at.elapsed() <= UNSURE {
                self.post.answer(reply_to, answer.clone());
            }
        }
    }

    /// Holds a volume's name, unless somebody does.
    fn hold(self: &Arc<Self>, zvol: &VolumeName) -> Result<Held, String> {
        let free = lock(&self.original.working).insert(zvol.clone());
        if free { Ok(Held { nas: Arc::clone(self), zvol: zvol.clone() }) } else { Err(say::busy(zvol)) }
    }

    /// The volumes of a name, in whatever pools.
    fn named(&self, zvol: &VolumeName) -> Vec<VolumeView> {
        let volumes = lock(&self.original.names).get(zvol).cloned().unwrap_or_default();
        let entries = self.entries();
        volumes.iter().filter_map(|id| entries.get(id)).map(|e| e.shown.borrow().view.clone()).collect()
    }

    /// The only volume of a name; the original knows no pools here.
    fn one_named(&self, zvol: &VolumeName) -> Result<VolumeView, String> {
        let mut named = self.named(zvol);
        match named.len() {
            0 => Err(say::not_found(zvol)),
            1 => Ok(named.swap_remove(0)),
            _ => Err(self.several(zvol, &named)),
        }
    }

    fn several(&self, zvol: &VolumeName, named: &[VolumeView]) -> String {
        let names: Vec<String> = named.iter().map(|v| format!("{}/{}", v.pool, v.name)).collect();
        format!(
            "the field zvol is wrong: {zvol} can be any of {} on {}; name it more fully to img-storage",
            names.join(" and "),
            self.post.name()
        )
    }
}
