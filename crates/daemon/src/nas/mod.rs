//! The NAS daemon: owns volumes, decides, exports, keeps the truth about who has which volume.
//!
//! One actor a volume ([`volume`]) is the only one to change that volume's row and to touch it on the host. [`Nas`] receives from
//! the bus and hands on: requests to [`requests`], reports to the volume's actor. What everybody may look at is the shown state
//! beside each mailbox.

mod original;
mod peers;
mod requests;
mod settings;
mod turns;
mod view;
mod volume;

use crate::{
    bus::{Delivery, Member, Post},
    clock::{Clock, Ids},
    cluster::Cluster,
    greeting::Greeting,
    store::{Journal, NasStore},
    tasks::{Running, Tasks},
};
use img_storage_host::{NasHost, VolumeRef};
use img_storage_model::{
    Epoch, Fault, HostName, Plane, RequestId, VolumeId,
    api::{VolumeView, WarmCopy},
    attribute::{AttributeFrom, Attributes, Defaults, NasAttributes},
    messages::{Body, Envelope, Hello, Holder, NodePhase, Report, Role, VERSION},
    nas::{Authority, Stage, VolumeRecord},
};
use jiff::Timestamp;
use peers::Peers;
pub(crate) use requests::no_guests;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::sync::{mpsc, oneshot, watch};
use turns::{Turns, Way};

/// What a NAS daemon is told at its start.
pub struct Config {
    /// Whose orders it takes, and whom it says hello to.
    pub cluster: Cluster,
    /// Where nodes reach its exports.
    pub address: String,
    /// What counts where no attribute was set.
    pub defaults: Defaults,
    /// The longest a step may take before it is given up and looked at again.
    pub step_deadline: Duration,
    /// Identity of the machine's boot.
    pub boot: String,
}

/// The machine was rebooted: writes that no flush followed may be gone, and a guest's local copy may have them.
fn rebooted(record: &mut VolumeRecord, store: &NasStore) -> Result<(), Fault> {
    let Some(mapping) = &mut record.mapping else { return Ok(()) };
    if mapping.authority != Authority::Node && !mapping.base_unsure {
        mapping.base_unsure = true;
        store.put_now(record)?;
    }
    Ok(())
}

/// What is shown of a volume.
#[derive(Clone, Debug)]
pub(crate) struct Shown {
    pub view: VolumeView,
    /// What carries its data.
    pub plane: Plane,
    /// From when on the NAS lacks writes.
    pub behind_since: Option<Timestamp>,
    /// The node says that the NAS lacks nothing.
    pub clean: bool,
    /// What was set of it.
    pub attributes: Attributes,
    /// When the next write-back is due, and what says so.
    pub due: Option<(Timestamp, AttributeFrom)>,
    /// Everything wanted of an unmapped volume is done.
    pub at_rest: bool,
    /// Length of the volume here, in bytes, where it was just seen.
    pub length: Option<u64>,
    /// Where a front end that fills or reads it finds the contents.
    pub served: Option<img_storage_model::messages::Endpoint>,
    /// The newest write-back that came home was taken after this.
    pub home_at: Option<Timestamp>,
    /// A failed intent, for who waits for it.
    pub failed: Option<Fault>,
    /// Why the volume could not be served to a reader.
    pub unread: Option<Fault>,
    /// Where the node says it is.
    pub at_node: Option<NodePhase>,
}

/// A node's word on who uses a device.
type Told = Result<Vec<Holder>, String>;

struct Entry {
    shown: watch::Sender<Shown>,
    mailbox: mpsc::UnboundedSender<volume::Mail>,
    /// Given to the actor when it is first needed: ten thousand sleeping volumes have no actor.
    asleep: Option<(Box<VolumeRecord>, mpsc::UnboundedReceiver<volume::Mail>)>,
}

/// A NAS daemon.
pub struct Nas {
    pub(crate) config: Config,
    pub(crate) host: Arc<dyn NasHost>,
    pub(crate) store: NasStore,
    pub(crate) journal: Journal,
    pub(crate) post: Post,
    pub(crate) clock: Clock,
    pub(crate) ids: Ids,
    pub(crate) peers: Peers,
    pub(crate) turns: Turns,
    settings: Mutex<NasAttributes>,
    setting: tokio::sync::Mutex<()>,
    tasks: Tasks,
    secret: [u8; 32],
    started: Timestamp,
    greeting: Greeting,
    entries: Mutex<BTreeMap<VolumeId, Entry>>,
    queries: Mutex<BTreeMap<RequestId, (HostName, oneshot::Sender<Told>)>>,
    answering: Mutex<BTreeSet<RequestId>>,
    original: original::Original,
}

impl Nas {
    /// Starts the daemon; it runs until the returned value is dropped.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn start(
        config: Config,
        host: Arc<dyn NasHost>,
        store: NasStore,
        journal: Journal,
        member: Member,
        clock: Clock,
        ids: Ids,
    ) -> Result<Running, Fault> {
        let mut records = store.volumes()?;
        let secret = store.secret()?;
        let settings = store.attributes()?;
        if store.booted(&config.boot)? {
            for record in &mut records {
                rebooted(record, &store)?;
            }
        }
        let tasks = Tasks::default();
        let started = clock.now();
        let nas = Arc::new(Nas {
            config,
            host,
            store,
            journal,
            post: member.post,
            clock,
            ids,
            peers: Peers::default(),
            turns: Turns::default(),
            settings: Mutex::new(settings),
            setting: tokio::sync::Mutex::default(),
            tasks: tasks.clone(),
            secret,
            started,
            greeting: Greeting::default(),
            entries: Mutex::default(),
            queries: Mutex::default(),
            answering: Mutex::default(),
            original: original::Original::default(),
        });
        // Those that begin now find them in their places.
        for record in &records {
            if img_storage_model::nas::copies(record) == Some(true) {
                nas.turns.keep(record.id, Way::ToNode);
            } else if record.mapping.as_ref().is_some_and(|m| m.push.is_some()) {
                nas.turns.keep(record.id, Way::FromNode);
            }
        }
        for record in records {
            let rests = record.stage == Stage::Ready && record.mapping.is_none() && !record.lent;
            let id = record.id;
            nas.enter(record);
            if !rests {
                nas.wake(id);
            }
        }
        nas.resume()?;
        tasks.spawn(Arc::clone(&nas).receive(member.inbox));
        tasks.spawn(Arc::clone(&nas).greet());
        Ok(Running::new(tasks))
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<VolumeId, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a volume on the books, asleep.
    fn enter(&self, record: VolumeRecord) {
        let (mailbox, mail) = mpsc::unbounded_channel();
        let (shown, _) = watch::channel(view::at_rest(&record, self.post.name()));
        self.original.entered(&record.name, record.id);
        self.entries().insert(record.id, Entry { shown, mailbox, asleep: Some((Box::new(record), mail)) });
    }

    /// The volume's mailbox and what it shows; its actor runs from here on.
    fn wake(self: &Arc<Self>, id: VolumeId) -> Option<(mpsc::UnboundedSender<volume::Mail>, watch::Receiver<Shown>)> {
        let mut entries = self.entries();
        let entry = entries.get_mut(&id)?;
        if let Some((record, mail)) = entry.asleep.take() {
            let actor = volume::Actor::new(Arc::clone(self), *record, mail, entry.shown.clone());
            self.tasks.spawn(actor.live());
        }
        Some((entry.mailbox.clone(), entry.shown.subscribe()))
    }

    fn forget(self: &Arc<Self>, id: VolumeId) {
        let gone = self.entries().remove(&id);
        if let Some(entry) = gone {
            self.original.left(&entry.shown.borrow().view.name, id);
        }
        self.leave_the_line(id);
    }

    async fn receive(self: Arc<Self>, mut inbox: mpsc::UnboundedReceiver<Delivery>) {
        while let Some(delivery) = inbox.recv().await {
            match delivery {
                Delivery::Message(message) if message.v == VERSION => self.take(message),
                Delivery::Message(message) => {
                    tracing::warn!(from = %message.from, "a message of version {} was dropped", message.v)
                }
                Delivery::Unroutable(message) => self.returned(&message),
                Delivery::Foreign(message) => self.foreign(message),
                Delivery::Unsent { message, why } => self.unsent(&message, why),
                Delivery::Connected => self.connected(),
            }
        }
    }

    fn returned(self: &Arc<Self>, message: &Envelope) {
        self.peers.away(&message.to);
        if self.config.cluster.is_frontend(&message.to) {
            self.greeting.came_back();
        }
        if let Body::WhoUses { query, .. } = &message.body {
            self.told(&message.to, *query, Err(format!("{} is not connected", message.to)));
        }
    }

    fn unsent(&self, message: &Envelope, why: String) {
        if let Body::WhoUses { query, .. } = &message.body {
            self.told(&message.to, *query, Err(why));
        }
    }

    /// The bus is there (again): nodes say what they hold, and are told what they are to hold.
    fn connected(self: &Arc<Self>) {
        self.give_again();
        for host in &self.config.cluster.frontends {
            self.hello(host, false);
        }
        for node in self.nodes() {
            self.hello(&node, true);
        }
        for entry in self.entries().values().filter(|e| e.asleep.is_none()) {
            let _ = entry.mailbox.send(volume::Mail::Connected);
        }
    }

    fn nodes(&self) -> BTreeSet<HostName> {
        self.entries().values().filter_map(|e| e.shown.borrow().view.node.clone()).collect()
    }

    fn take(self: &Arc<Self>, message: Envelope) {
        let from = message.from;
        match message.body {
            Body::Hello(hello) if hello.role == Role::Frontend && !self.config.cluster.is_frontend(&from) => {
                tracing::warn!(%from, "a hello of somebody who is no front end of this cluster was refused");
            }
            Body::Hello(hello) => {
                let restarted = self.peers.heard(&from, &hello, self.clock.now());
                if restarted && hello.role == Role::Node {
                    self.know(&from);
                }
                if hello.reply {
                    self.hello(&from, false);
                }
                if hello.role == Role::Node {
                    self.tell_deleted(&from, &hello.warm);
                }
                if restarted {
                    self.tell_those_of(&from, hello.role, hello.started);
                }
            }
            Body::Report(report) => {
                self.peers.seen(&from, self.clock.now());
                self.report(&from, *report);
            }
            Body::Users { query, holders } => self.told(&from, query, holders),
            // A node may ask only for what concerns itself, and there is nothing of that among the requests.
            Body::Request { id, .. } if !self.config.cluster.is_frontend(&from) => {
                tracing::warn!(%from, "a request from somebody who is not the front end was refused");
                let me = self.post.name();
                let fault = Fault::refused(format!(
                    "{me} takes orders from {} only, not from {from}",
                    self.config.cluster.frontend_names()
                ))
                .next(format!("see that [cluster] frontends, or [frontend] name, has it where {me} runs"));
                self.post.send(&from, Body::Answer { id, answer: Err(fault) });
            }
            Body::Request { id, request } => {
                if self.answering().insert(id) {
                    let nas = Arc::clone(self);
                    self.tasks.spawn(async move { nas.serve(from, id, *request).await });
                }
            }
            Body::Assign(_) | Body::Deleted { .. } | Body::WhoUses { .. } | Body::Answer { .. } => {
                tracing::warn!(%from, "a message that is not for a NAS was dropped");
            }
        }
    }

    fn answering(&self) -> MutexGuard<'_, BTreeSet<RequestId>> {
        self.answering.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells a node which of the volumes that it keeps copies of were deleted.
    fn tell_deleted(&self, node: &HostName, warm: &[WarmCopy]) {
        if warm.is_empty() {
            return;
        }
        match self.store.deleted(warm.iter().filter(|copy| copy.nas == *self.post.name()).map(|copy| copy.volume)) {
            Ok(volumes) if volumes.is_empty() => {}
            Ok(volumes) => self.post.send(node, Body::Deleted { volumes }),
            Err(fault) => tracing::warn!("{node} asks about the copies it keeps: {fault}"),
        }
    }

    /// A volume is gone: nodes that keep a copy of it hear so. Those that are away ask when they are back.
    pub(crate) fn was_deleted(&self, volume: VolumeId) {
        for node in self.peers.nodes() {
            self.post.send(&node, Body::Deleted { volumes: vec![volume] });
        }
    }

    /// A host came (back): its volumes' actors look again.
    fn tell_those_of(self: &Arc<Self>, host: &HostName, role: Role, started: Timestamp) {
        let concerned: Vec<VolumeId> = self.entries().iter().filter(|(_, e)| e.asleep.is_none()).map(|(id, _)| *id).collect();
        for id in concerned {
            if let Some((mailbox, _)) = self.wake(id) {
                let _ = mailbox.send(volume::Mail::Restarted { host: host.clone(), role, started });
            }
        }
    }

    fn report(self: &Arc<Self>, from: &HostName, report: Report) {
        match self.wake(report.volume) {
            Some((mailbox, _)) => {
                let _ = mailbox.send(volume::Mail::Report { from: from.clone(), report: Box::new(report) });
            }
            None => tracing::warn!(%from, volume = %report.volume, "a report of a volume that is not ours was dropped"),
        }
    }

    fn told(&self, by: &HostName, query: RequestId, holders: Told) {
        let mut queries = self.queries.lock().unwrap_or_else(PoisonError::into_inner);
        if queries.get(&query).is_none_or(|(asked, _)| asked != by) {
            return;
        }
        if let Some((_, waiting)) = queries.remove(&query) {
            // Who asked may have given up.
            let _ = waiting.send(holders);
        }
    }

    /// Says hello to one.
    fn hello(self: &Arc<Self>, to: &HostName, reply: bool) {
        let (nas, to) = (Arc::clone(self), to.clone());
        self.tasks.spawn(async move {
            let pools = nas.host.pools().await;
            let planes: BTreeSet<Plane> = pools.iter().map(|p| p.plane).collect();
            let planes = planes.iter().map(ToString::to_string).collect();
            let hello = Hello {
                initiator: None,
                role: Role::Nas,
                version: env!("CARGO_PKG_VERSION").to_owned(),
                pools,
                planes,
                addresses: vec![nas.config.address.clone()],
                warm: Vec::new(),
                started: nas.started,
                reply,
            };
            nas.post.send(&to, Body::Hello(hello));
        });
    }

    async fn greet(self: Arc<Self>) {
        for node in self.nodes() {
            self.hello(&node, true);
        }
        self.greeting
            .go_on(|| {
                for host in &self.config.cluster.frontends {
                    self.hello(host, false);
                }
            })
            .await;
    }

    /// What a node can show of a mapping that this NAS gave it, and nobody can make up.
    pub(crate) fn proof(&self, volume: VolumeId, node: &HostName, epoch: Epoch) -> String {
        blake3::keyed_hash(&self.secret, format!("{volume} {epoch} {node}").as_bytes()).to_hex().to_string()
    }

    /// The secret with which a node logs in to an export of a mapping: 16 letters, as many initiators want 12 to 16.
    pub(crate) fn password(&self, volume: VolumeId, node: &HostName, epoch: Epoch) -> String {
        let hash = blake3::keyed_hash(&self.secret, format!("iscsi {volume} {epoch} {node}").as_bytes());
        hash.to_hex()[..16].to_owned()
    }

    fn volume_ref(record: &VolumeRecord) -> VolumeRef {
        VolumeRef { id: record.id, pool: record.pool.clone(), name: record.name.clone(), plane: record.plane }
    }
}
