//! The node daemon: attaches volumes, moves guests between remote and local, reports what it sees.
//!
//! One actor a volume ([`volume`]) is the only one to touch it on this host. Assignments come from the volume's NAS, whole; the newest
//! is durable before anything is done about it.

mod original;
mod volume;
mod warm;

use crate::{
    bus::{Delivery, Member, Post},
    clock::Clock,
    cluster::Cluster,
    greeting::Greeting,
    store::{Journal, NodeStore},
    tasks::{Running, Tasks},
};
use img_storage_host::NodeHost;
use img_storage_model::{
    Fault, HostName, Plane, RequestId, VolumeId,
    messages::{Assign, Body, Envelope, Hello, Role, VERSION},
    node::{Going, NodeRecord, NodeVolume, kernel::Quota},
};
use jiff::Timestamp;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::sync::mpsc;

/// What a node daemon is told at its start.
pub struct Config {
    /// Whose volumes it takes, and whom it says hello to.
    pub cluster: Cluster,
    /// The data planes it serves.
    pub planes: Vec<Plane>,
    /// Its iSCSI name.
    pub initiator: Option<String>,
    /// Where NAS servers reach it for data; without it, by its name.
    pub address: Option<String>,
    /// The longest a step may take before it is given up and looked at again.
    pub step_deadline: Duration,
    /// How much room warm copies may take.
    pub warm: Quota,
}

/// A node daemon.
pub struct Node {
    pub(crate) config: Config,
    pub(crate) host: Arc<dyn NodeHost>,
    pub(crate) store: NodeStore,
    pub(crate) journal: Journal,
    pub(crate) post: Post,
    pub(crate) clock: Clock,
    tasks: Tasks,
    started: Timestamp,
    greeting: Greeting,
    actors: Mutex<BTreeMap<VolumeId, (NodeVolume, mpsc::UnboundedSender<Mail>)>>,
    seen: Mutex<BTreeMap<VolumeId, original::Seen>>,
    shelf: warm::Shelf,
}

/// What a volume's actor gets.
pub(crate) enum Mail {
    /// The NAS's word.
    Assign(Box<Assign>),
    /// The NAS came (back): tell it how things are.
    Report,
    /// The warm copy is to go, where there is one; `by` is the NAS that says so.
    Drop { why: Going, by: Option<HostName> },
}

impl Node {
    /// Starts the daemon; it runs until the returned value is dropped.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn start(
        config: Config,
        host: Arc<dyn NodeHost>,
        store: NodeStore,
        journal: Journal,
        member: Member,
        clock: Clock,
    ) -> Result<Running, Fault> {
        let records = store.volumes()?;
        let tasks = Tasks::default();
        let started = clock.now();
        let node = Arc::new(Node {
            config,
            host,
            store,
            journal,
            post: member.post,
            clock,
            tasks: tasks.clone(),
            started,
            greeting: Greeting::default(),
            actors: Mutex::default(),
            seen: Mutex::default(),
            shelf: warm::Shelf::default(),
        });
        let nases: BTreeSet<HostName> = records.iter().filter(|r| !r.has_ended()).map(|r| r.assign.nas.clone()).collect();
        for record in records {
            node.begin(record, true);
        }
        tasks.spawn(Arc::clone(&node).receive(member.inbox));
        tasks.spawn(Arc::clone(&node).keep_warm());
        tasks.spawn(Arc::clone(&node).greet(nases));
        Ok(Running::new(tasks))
    }

    /// Starts a volume's actor; a row that is not durable yet is made so before anything else.
    fn begin(self: &Arc<Self>, record: NodeRecord, durable: bool) {
        let (mailbox, mail) = mpsc::unbounded_channel();
        let known = (NodeVolume::from(&record.assign), mailbox);
        self.actors.lock().unwrap_or_else(PoisonError::into_inner).insert(record.volume, known);
        self.tasks.spawn(volume::Actor::new(Arc::clone(self), record, durable, mail).live());
    }

    async fn receive(self: Arc<Self>, mut inbox: mpsc::UnboundedReceiver<Delivery>) {
        while let Some(delivery) = inbox.recv().await {
            match delivery {
                Delivery::Message(message) if message.v == VERSION => self.take(message),
                Delivery::Message(message) => {
                    tracing::warn!(from = %message.from, "a message of version {} was dropped", message.v)
                }
                // The NAS is away: everything is told again when it is back.
                Delivery::Unroutable(message) => {
                    if self.config.cluster.is_frontend(&message.to) {
                        self.greeting.came_back();
                    }
                }
                Delivery::Foreign(message) => self.foreign(&message),
                Delivery::Unsent { .. } => {}
                Delivery::Connected => self.connected(),
            }
        }
    }

    /// The bus is there (again): what was reported may be lost.
    fn connected(self: &Arc<Self>) {
        for host in self.config.cluster.frontends.iter().chain(self.config.cluster.nases.iter().flatten()) {
            self.hello(host);
        }
        self.report_all();
    }

    fn report_all(&self) {
        for (_, mailbox) in self.actors.lock().unwrap_or_else(PoisonError::into_inner).values() {
            let _ = mailbox.send(Mail::Report);
        }
    }

    fn take(self: &Arc<Self>, message: Envelope) {
        let from = message.from;
        match message.body {
            Body::Hello(Hello { role: Role::Nas, .. }) | Body::Assign(_) | Body::Deleted { .. } | Body::WhoUses { .. }
                if !self.config.cluster.is_nas(&from) =>
            {
                tracing::warn!(%from, "a message of somebody who is no NAS of this cluster was refused; see [cluster] nases");
            }
            Body::Hello(hello) => {
                if hello.reply {
                    self.hello(&from);
                }
                if hello.role == Role::Nas {
                    self.report_all();
                }
            }
            Body::Assign(assign) => self.assigned(&from, *assign),
            Body::Deleted { volumes } => {
                for volume in volumes {
                    self.drop_warm(volume, Going::Deleted, Some(&from));
                }
            }
            Body::WhoUses { volume, query } => self.who_uses(from, volume, query),
            Body::Report(_) | Body::Users { .. } | Body::Request { .. } | Body::Answer { .. } => {
                tracing::warn!(%from, "a message that is not for a node was dropped");
            }
        }
    }

    fn assigned(self: &Arc<Self>, from: &HostName, assign: Assign) {
        if assign.nas != *from {
            tracing::warn!(%from, volume = %assign.volume, "an assignment in another NAS's name was dropped");
            return;
        }
        let known = self.actors.lock().unwrap_or_else(PoisonError::into_inner).get(&assign.volume).cloned();
        match known {
            Some((_, mailbox)) => {
                let _ = mailbox.send(Mail::Assign(Box::new(assign)));
            }
            None => self.begin(NodeRecord::new(assign), false),
        }
    }

    fn who_uses(self: &Arc<Self>, from: HostName, volume: VolumeId, query: RequestId) {
        let node = Arc::clone(self);
        self.tasks.spawn(async move {
            let known = node.actors.lock().unwrap_or_else(PoisonError::into_inner).get(&volume).map(|(known, _)| known.clone());
            let holders = match known {
                Some(known) => node.host.users(known).await.map_err(|e| e.to_string()),
                // Of a volume that never was here nobody has a device.
                None => Ok(Vec::new()),
            };
            node.post.send(&from, Body::Users { query, holders });
        });
    }

    /// Asks a volume's actor to let go of its warm copy.
    fn drop_warm(&self, volume: VolumeId, why: Going, by: Option<&HostName>) {
        let known = self.actors.lock().unwrap_or_else(PoisonError::into_inner).get(&volume).cloned();
        if let Some((_, mailbox)) = known {
            let _ = mailbox.send(Mail::Drop { why, by: by.cloned() });
        }
    }

    fn hello(self: &Arc<Self>, to: &HostName) {
        let (node, to) = (Arc::clone(self), to.clone());
        self.tasks.spawn(async move {
            let pools = node.host.pools().await;
            let hello = Hello {
                role: Role::Node,
                version: env!("CARGO_PKG_VERSION").to_owned(),
                pools,
                planes: node.config.planes.iter().map(ToString::to_string).collect(),
                initiator: node.config.initiator.clone(),
                addresses: node.config.address.iter().cloned().collect(),
                warm: node.shelf.warm(node.config.cluster.is_nas(&to).then_some(&to)),
                started: node.started,
                reply: false,
            };
            node.post.send(&to, Body::Hello(hello));
        });
    }

    async fn greet(self: Arc<Self>, nases: BTreeSet<HostName>) {
        for nas in &nases {
            self.hello(nas);
        }
        self.greeting
            .go_on(|| {
                for host in &self.config.cluster.frontends {
                    self.hello(host);
                }
            })
            .await;
    }
}
