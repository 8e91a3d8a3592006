//! Asks the NASes on behalf of an operator, and knows which hosts there are.

use super::transfers::Transfers;
use crate::{
    bus::{Delivery, Member, Post},
    clock::{Clock, Ids},
    cluster::Cluster,
    tasks::{Running, Tasks},
};
use img_storage_model::{
    Fault, HostName, PoolName, RequestId, Selector,
    api::{Answer, HostView, Request, VolumeView},
    messages::{Body, Envelope, Hello, Role, VERSION},
    original::{Refusal, Reply},
};
use jiff::Timestamp;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::{Instant, timeout},
};

/// A question is sent again this often until it is answered; the NAS answers it once.
const ASK_AGAIN: Duration = Duration::from_secs(2);
/// A NAS may take so long to list its volumes.
const LIST_WITHIN: Duration = Duration::from_secs(10);
/// A host not heard of for so long is away.
const AWAY_AFTER: i64 = 15;

struct Known {
    hello: Hello,
    heard: Timestamp,
    away: bool,
}

type Answered = Result<Box<Answer>, Fault>;

/// The front end's place on the bus.
pub struct Desk {
    me: Weak<Desk>,
    pub(super) post: Post,
    pub(super) clock: Clock,
    ids: Ids,
    pub(super) tasks: Tasks,
    pub(super) transfers: Transfers,
    pub(super) credentials: PathBuf,
    started: Timestamp,
    cluster: Cluster,
    hosts: Mutex<BTreeMap<HostName, Known>>,
    waiting: Mutex<BTreeMap<RequestId, Vec<oneshot::Sender<Answered>>>>,
    /// Questions that were sent more than once: a NAS may be at work on them.
    repeated: Mutex<BTreeSet<RequestId>>,
}

impl Desk {
    /// Starts the front end's side of the bus; `credentials` are its certificates, for moving images.
    pub fn start(member: Member, clock: Clock, ids: Ids, credentials: PathBuf, cluster: Cluster) -> (Arc<Self>, Running) {
        let tasks = Tasks::default();
        let desk = Arc::new_cyclic(|me| Desk {
            me: me.clone(),
            post: member.post,
            clock,
            ids,
            tasks: tasks.clone(),
            transfers: Transfers::default(),
            credentials,
            started: clock.now(),
            cluster,
            hosts: Mutex::default(),
            waiting: Mutex::default(),
            repeated: Mutex::default(),
        });
        tasks.spawn(Arc::clone(&desk).receive(member.inbox));
        (desk, Running::new(tasks))
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<HostName, Known>> {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn receive(self: Arc<Self>, mut inbox: mpsc::UnboundedReceiver<Delivery>) {
        while let Some(delivery) = inbox.recv().await {
            match delivery {
                Delivery::Message(Envelope { v: VERSION, from, body, .. }) => match body {
                    Body::Hello(hello) => self.heard(from, hello),
                    Body::Answer { id, answer } => self.answered(id, &answer),
                    _ => tracing::warn!(%from, "a message that is not for a front end was dropped"),
                },
                Delivery::Message(message) => {
                    tracing::warn!(from = %message.from, "a message of version {} was dropped", message.v)
                }
                Delivery::Foreign(message) => {
                    // Nobody asks a front end anything in the original's words; who does waits for an answer all the same.
                    if let Some(reply_to) = &message.reply_to {
                        self.post.answer(reply_to, Reply::Refused(Refusal::unsupported()).encode());
                    }
                }
                Delivery::Unsent { message, why } => self.unsent(&message, &why),
                Delivery::Connected => self.connected(),
                Delivery::Unroutable(message) => {
                    if let Some(host) = self.known().get_mut(&message.to) {
                        host.away = true;
                    }
                    if let Body::Request { id, .. } = message.body {
                        // Asked before, it may have begun.
                        let next = match self.repeated().contains(&id) {
                            false => "nothing was changed by this; start its daemon, or see img-storage hosts",
                            true => "it may have begun with this; start its daemon, and see img-storage list before asking again",
                        };
                        let fault = Fault::unreachable(format!("{} is not connected", message.to)).next(next);
                        self.answered(id, &Err(fault));
                    }
                }
            }
        }
    }

    fn unsent(&self, message: &Envelope, why: &str) {
        if let Body::Request { id, .. } = message.body
            && !self.repeated().contains(&id)
        {
            let fault = Fault::unreachable(format!("{} cannot be asked: {why}", message.to))
                .next("nothing was changed by this; see that the broker runs, and ask again");
            self.answered(id, &Err(fault));
        }
    }

    /// The bus is there (again): NASes hear of it, and answer.
    fn connected(&self) {
        let nases = self.nases();
        for nas in nases.iter().chain(self.cluster.nases.iter().flatten().filter(|nas| !nases.contains(nas))) {
            self.hello(nas, true);
        }
    }

    fn hello(&self, to: &HostName, reply: bool) {
        let hello = Hello {
            initiator: None,
            role: Role::Frontend,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pools: Vec::new(),
            planes: Vec::new(),
            addresses: Vec::new(),
            warm: Vec::new(),
            started: self.started,
            reply,
        };
        self.post.send(to, Body::Hello(hello));
    }

    fn heard(&self, from: HostName, hello: Hello) {
        if hello.role == Role::Nas && !self.cluster.is_nas(&from) {
            tracing::warn!(%from, "a hello of somebody who is no NAS of this cluster was refused; see [cluster] nases");
            return;
        }
        let known = Known { heard: self.clock.now(), away: false, hello };
        let new = known.hello.started;
        let role = known.hello.role;
        let before = self.known().insert(from.clone(), known);
        if role == Role::Nas && before.is_none_or(|b| b.hello.started != new) {
            // It learns of this front end, and whether that was restarted in the middle of something.
            self.hello(&from, false);
        }
    }

    fn repeated(&self) -> MutexGuard<'_, BTreeSet<RequestId>> {
        self.repeated.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answered(&self, id: RequestId, answer: &Answered) {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        for asker in waiting.into_iter().flatten() {
            // An asker whose deadline passed is gone.
            let _ = asker.send(answer.clone());
        }
    }

    /// A fresh request id.
    pub fn id(&self) -> RequestId {
        RequestId(self.ids.fresh(self.clock.now()))
    }

    /// Asks a NAS, again and again until it answers or the deadline passes.
    ///
    /// # Errors
    /// What the NAS says; [`img_storage_model::FaultKind::Unreachable`] when it is not there;
    /// [`img_storage_model::FaultKind::Unfinished`] at the deadline, and then it goes on.
    pub async fn ask(&self, nas: &HostName, id: RequestId, request: Request, deadline: Duration) -> Result<Answer, Fault> {
        let until = Instant::now() + deadline;
        // Declared before the receiver, and so dropped after it.
        let _asker = Asker { desk: self, id };
        let (sender, mut answer) = oneshot::channel();
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).entry(id).or_default().push(sender);
        loop {
            self.post.send(nas, Body::Request { id, request: Box::new(request.clone()) });
            let left = until.saturating_duration_since(Instant::now());
            match timeout(left.min(ASK_AGAIN), &mut answer).await {
                Ok(Ok(answer)) => return answer.map(|a| *a),
                Ok(Err(_)) => return Err(Fault::failed("the front end is ending")),
                Err(_) if Instant::now() < until => {
                    self.repeated().insert(id);
                }
                Err(_) => {
                    return Err(Fault::unfinished(format!("not done within {} s; {nas} goes on with it", deadline.as_secs()))
                        .next("see how far it is: img-storage status"));
                }
            }
        }
    }

    fn nases(&self) -> Vec<HostName> {
        self.known().iter().filter(|(_, k)| k.hello.role == Role::Nas).map(|(name, _)| name.clone()).collect()
    }

    /// Volumes of every NAS that answers, by NAS, pool and name; those being filled with their progress.
    ///
    /// # Errors
    /// [`img_storage_model::FaultKind::Unreachable`] when no NAS answers.
    pub async fn volumes(&self, selector: Option<&Selector>) -> Result<Vec<VolumeView>, Fault> {
        let (volumes, silent) = self.gather(selector).await?;
        match silent.into_iter().next() {
            Some((_, fault)) if volumes.is_empty() => Err(fault),
            Some((nas, fault)) => {
                tracing::warn!("the volumes of {nas} are missing from a list: {fault}");
                Ok(volumes)
            }
            None => Ok(volumes),
        }
    }

    /// Asks every NAS that the selector can mean: its volumes, and those that did not answer.
    async fn gather(&self, selector: Option<&Selector>) -> Result<(Vec<VolumeView>, Vec<(HostName, Fault)>), Fault> {
        let mut nases = self.nases();
        if nases.is_empty() {
            return Err(
                Fault::unreachable("no NAS is connected").next("start one: img-storage nas, or img-storage up for everything")
            );
        }
        if let Some(meant) = selector.and_then(|s| s.nas.as_ref()) {
            nases.retain(|nas| nas == meant);
        }
        let mut asked = JoinSet::new();
        for nas in nases {
            let (Some(desk), selector) = (self.me.upgrade(), selector.cloned()) else { break };
            asked.spawn(async move {
                let answer = desk.ask(&nas, desk.id(), Request::Find { selector }, LIST_WITHIN).await;
                (nas, answer)
            });
        }
        let (mut volumes, mut silent) = (Vec::new(), Vec::new());
        while let Some(answer) = asked.join_next().await {
            match answer {
                Ok((_, Ok(Answer::Volumes { volumes: some }))) => volumes.extend(some),
                Ok((nas, Ok(_))) => silent.push((nas, Fault::failed("a NAS gave an answer to another question"))),
                Ok((nas, Err(fault))) => silent.push((nas, fault)),
                Err(why) => return Err(Fault::failed(why.to_string())),
            }
        }
        volumes.sort_by(|a: &VolumeView, b| (&a.nas, &a.pool, &a.name).cmp(&(&b.nas, &b.pool, &b.name)));
        for volume in &mut volumes {
            self.transfers.overlay(volume);
        }
        Ok((volumes, silent))
    }

    /// The one volume that matches.
    ///
    /// # Errors
    /// [`img_storage_model::FaultKind::NotFound`] (with the reason, when its import failed just now), or
    /// [`img_storage_model::FaultKind::Invalid`] naming the candidates when several match;
    /// [`img_storage_model::FaultKind::Unreachable`] when a NAS that may have it is silent.
    pub async fn one(&self, selector: &Selector) -> Result<VolumeView, Fault> {
        let (mut found, silent) = self.gather(Some(selector)).await?;
        // A NAS that is silent may have the one that is meant: another of the same name must not be taken for it.
        if let Some((nas, fault)) = silent.into_iter().next() {
            return Err(Fault::unreachable(format!("whether {selector} is a volume of {nas} cannot be told: {}", fault.message))
                .next(format!("start the daemon of {nas}, or name the NAS: NAS:POOL/NAME")));
        }
        match found.len() {
            1 => Ok(found.swap_remove(0)),
            0 => match self.transfers.failed_import(selector) {
                Some(fault) => Err(fault),
                None => Err(Fault::not_found(format!("there is no volume {selector}")).next("see img-storage list")),
            },
            _ => {
                let names: Vec<String> = found.iter().map(VolumeView::full_name).collect();
                Err(Fault::invalid(format!("{selector} can be any of {}", names.join(", "))).next("name it more fully"))
            }
        }
    }

    /// The NAS that a new volume goes to.
    ///
    /// # Errors
    /// When none is there, or it is not clear which.
    pub async fn nas_for_new(&self, nas: Option<&HostName>, pool: Option<&PoolName>) -> Result<HostName, Fault> {
        let known = self.known();
        let nases = known.iter().filter(|(name, k)| k.hello.role == Role::Nas && nas.is_none_or(|n| n == *name));
        let fits = |k: &Known| pool.is_none_or(|p| k.hello.pools.iter().any(|q| q.name == p.as_str()));
        let any = nases.clone().next().is_some();
        let fitting: Vec<&HostName> = nases.filter(|(_, k)| fits(k)).map(|(name, _)| name).collect();
        match (fitting.as_slice(), nas, pool) {
            ([one], _, _) => Ok((*one).clone()),
            ([], Some(nas), Some(pool)) if any => Err(Fault::not_found(format!("{nas} has no pool {pool}"))),
            ([], Some(nas), _) => Err(Fault::not_found(format!("there is no NAS {nas}")).next("see img-storage hosts")),
            ([], None, Some(pool)) if any => {
                Err(Fault::not_found(format!("no NAS has a pool {pool}")).next("see img-storage hosts"))
            }
            ([], None, _) => Err(Fault::unreachable("no NAS is connected").next("start one: img-storage nas, or img-storage up")),
            (many, _, _) => {
                let names: Vec<&str> = many.iter().map(|n| n.as_str()).collect();
                Err(Fault::invalid(format!("it could go to any of {}", names.join(", "))).next("name the NAS: NAS:POOL/NAME"))
            }
        }
    }

    /// Every host that was ever heard of.
    pub async fn hosts(&self) -> Vec<HostView> {
        let volumes = self.volumes(None).await.unwrap_or_default();
        let now = self.clock.now();
        let me = HostView {
            name: self.post.name().clone(),
            role: Role::Frontend,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            planes: Vec::new(),
            addresses: Vec::new(),
            pools: Vec::new(),
            heard: 0,
            away: false,
            volumes: 0,
            warm: Vec::new(),
        };
        let known = self.known();
        let others = known.iter().map(|(name, k)| {
            let heard = now.duration_since(k.heard).as_secs();
            let on_it = |v: &&VolumeView| v.nas == *name || v.node.as_ref() == Some(name);
            HostView {
                name: name.clone(),
                role: k.hello.role,
                version: k.hello.version.clone(),
                planes: k.hello.planes.clone(),
                addresses: k.hello.addresses.clone(),
                pools: k.hello.pools.clone(),
                heard: u64::try_from(heard).unwrap_or(0),
                away: k.away || heard > AWAY_AFTER,
                volumes: volumes.iter().filter(on_it).count() as u64,
                warm: k.hello.warm.clone(),
            }
        });
        std::iter::once(me).chain(others).collect()
    }
}

/// Somebody who waits for an answer; takes its place away when it does not any more.
struct Asker<'a> {
    desk: &'a Desk,
    id: RequestId,
}

impl Drop for Asker<'_> {
    fn drop(&mut self) {
        let mut waiting = self.desk.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(askers) = waiting.get_mut(&self.id) {
            askers.retain(|asker| !asker.is_closed());
            if askers.is_empty() {
                waiting.remove(&self.id);
            }
        }
        if !waiting.contains_key(&self.id) {
            self.desk.repeated().remove(&self.id);
        }
    }
}
