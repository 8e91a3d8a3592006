//! A site: one NAS, some nodes, their daemons and the bus; and the operator who asks things of them.

use super::{
    act,
    mail::{self, Mail},
    plan::{Plan, Trouble},
};
use img_storage_daemon::{
    bus::{Delivery, Exchange, Post, ReplyTo},
    clock::{Clock, Ids},
    cluster::Cluster,
    nas::{self, Nas},
    node::{self, Node},
    store::{Commits, Journal, NasStore, NodeStore},
    tasks::Running,
};
use img_storage_host::sim::{Crash, Faults, SimNas, SimNode, World};
use img_storage_model::{
    Fault, HostName, Interval, Plane, RequestId, VolumeId,
    api::{Answer, Request, VolumeView},
    attribute::Defaults,
    messages::{Body, Hello, Role},
    node::kernel::Quota,
};
use jiff::Timestamp;
use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep, timeout},
};

/// Scenarios of the kernel plane begin with this.
pub const KERNEL: &str = "k-";
/// The longest a step may take before its daemon gives it up.
const STEP_DEADLINE: Duration = Duration::from_secs(5);
/// How long a killed daemon stays away.
const AWAY: Duration = Duration::from_millis(700);
/// How long it takes to put a ledger back and to start the machine.
const RESTORED: Duration = Duration::from_secs(10);
/// How long an operator waits before asking the same again.
const ASK_AGAIN: Duration = Duration::from_secs(10);
/// The original's front end has its answer within this.
const ANSWERED_WITHIN: Duration = Duration::from_secs(120);
/// Everything that is asked for must be reached within this much virtual time.
const PATIENCE: Duration = Duration::from_secs(3600);

type Waiting = Arc<Mutex<BTreeMap<RequestId, oneshot::Sender<Result<Box<Answer>, Fault>>>>>;

/// One run's hosts, daemons and operator.
pub struct Site {
    /// The hosts.
    pub world: World,
    /// What goes wrong on them.
    pub faults: Faults,
    /// The NAS.
    pub nas: HostName,
    /// The nodes.
    pub nodes: Vec<HostName>,
    host: SimNas,
    exchange: Arc<Exchange>,
    mail: Arc<Mail>,
    clock: Clock,
    ids: Ids,
    seed: u64,
    dir: PathBuf,
    daemons: Mutex<BTreeMap<HostName, Running>>,
    starts: AtomicU64,
    boots: AtomicU64,
    warm: Quota,
    waiting: Waiting,
    front: Post,
    foreign: AtomicU64,
}

/// A host's ledger as it was: the database's files.
pub struct Backup(Vec<(PathBuf, Vec<u8>)>);

pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A host's name.
pub fn host(name: &str) -> HostName {
    HostName::new(name).unwrap_or_else(|_| unreachable!("the simulation's names are good"))
}

impl Site {
    /// A site with all daemons started.
    ///
    /// # Errors
    /// When a ledger cannot be made in `dir`.
    pub fn new(plan: &Plan, dir: PathBuf) -> Result<(Arc<Self>, mpsc::UnboundedReceiver<Crash>), Fault> {
        let world = World::new();
        let nas = host("nas");
        let pool = img_storage_model::PoolName::new("tank")?;
        let kernel = plan.scenario.starts_with(KERNEL);
        let sim_nas = world.add_nas(&nas, if kernel { &[] } else { std::slice::from_ref(&pool) });
        if kernel {
            world.add_zfs_pool(&nas, &pool);
        }
        let nodes = vec![host("node-a"), host("node-b")];
        for node in &nodes {
            world.add_node(node);
        }
        let faults = match &plan.trouble {
            Trouble::Effect(number, fault) => BTreeMap::from([(*number, *fault)]),
            _ => BTreeMap::new(),
        };
        let (faults, crashes) = Faults::new(&world, faults);
        let mail = Arc::new(Mail::new(plan));
        let exchange = Exchange::tapped(mail::tap(Arc::clone(&mail), world.clone()));
        let member = exchange.join(&host("front"))?;
        let waiting = Waiting::default();
        let clock = Clock::simulated(Timestamp::UNIX_EPOCH + jiff::SignedDuration::from_hours(500_000));
        tokio::spawn(open_mail(member.inbox, Arc::clone(&waiting), member.post.clone(), clock));
        let site = Arc::new(Site {
            world,
            faults,
            nas,
            nodes,
            host: sim_nas,
            exchange,
            mail,
            clock,
            ids: Ids::seeded(plan.seed ^ 0xf407),
            seed: plan.seed,
            dir,
            daemons: Mutex::default(),
            starts: AtomicU64::new(0),
            boots: AtomicU64::new(0),
            warm: if plan.scenario == "k-quota" { Quota::Bytes(act::SIZE * 3 / 2) } else { Quota::default() },
            waiting,
            front: member.post,
            foreign: AtomicU64::new(0),
        });
        site.start(&site.nas)?;
        for node in &site.nodes {
            site.start(node)?;
        }
        Ok((site, crashes))
    }

    /// Starts a host's daemon.
    ///
    /// # Errors
    /// When its ledger cannot be read, or it runs already.
    pub fn start(&self, name: &HostName) -> Result<(), Fault> {
        let member = self.exchange.join(name)?;
        let ledger = self.dir.join(format!("{name}.db"));
        let journal = Journal::open(&self.dir.join(format!("{name}.journal.db")))?;
        let running = if *name == self.nas {
            let config = nas::Config {
                boot: format!("boot {}", self.boots.load(Ordering::Relaxed)),
                cluster: Cluster { unsigned_orders: true, ..Cluster::of([host("front")], [self.nas.clone()]) },
                address: name.to_string(),
                defaults: Defaults::of(Interval::seconds(60)?),
                step_deadline: STEP_DEADLINE,
            };
            let ids = Ids::seeded(self.seed.wrapping_mul(1000) + self.starts.fetch_add(1, Ordering::Relaxed));
            let host = Arc::new(self.faults.nas(self.host.clone()));
            Nas::start(config, host, NasStore::open(&ledger, Commits::Single)?, journal, member, self.clock, ids)?
        } else {
            let config = node::Config {
                cluster: Cluster::of([host("front")], [self.nas.clone()]),
                planes: vec![Plane::Qemu, Plane::Kernel],
                initiator: Some(SimNode::initiator(name)),
                address: None,
                step_deadline: STEP_DEADLINE,
                warm: self.warm,
            };
            let host = Arc::new(self.faults.node(name));
            Node::start(config, host, NodeStore::open(&ledger, Commits::Single)?, journal, member, self.clock)?
        };
        lock(&self.daemons).insert(name.clone(), running);
        Ok(())
    }

    /// Kills a host's daemon and starts it again after a while.
    pub async fn restart(&self, name: &HostName) {
        let killed = lock(&self.daemons).remove(name).is_some();
        if !killed {
            return;
        }
        sleep(AWAY).await;
        self.world.note(format!("the daemon of {name} starts again"));
        if let Err(fault) = self.start(name) {
            self.world.note(format!("VIOLATION the daemon of {name} does not start: {fault}"));
        }
    }

    /// A host's daemon is away while something is done.
    pub async fn while_away<R>(&self, name: &HostName, what: impl Future<Output = R>) -> R {
        lock(&self.daemons).remove(name);
        self.world.note(format!("the daemon of {name} is away"));
        let done = what.await;
        // A fault may have had it started again meanwhile.
        let back = self.start(name);
        self.world.note(format!("the daemon of {name} is back: {back:?}"));
        done
    }

    /// Kills a host's daemon for as long as nobody here starts it; a fault that is about to start it again comes first.
    async fn stop(&self, name: &HostName) {
        while lock(&self.daemons).remove(name).is_none() {
            sleep(AWAY).await;
        }
        sleep(AWAY).await;
    }

    /// A host's ledger as it is now.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn back_up(&self, name: &HostName) -> Result<Backup, String> {
        self.stop(name).await;
        let mut files = Vec::new();
        for path in self.ledger_files(name).into_iter().filter(|path| path.exists()) {
            let bytes = std::fs::read(&path).map_err(|e| format!("the ledger of {name} cannot be read: {e}"))?;
            files.push((path, bytes));
        }
        self.world.note(format!("the ledger of {name} is backed up"));
        self.start(name).map_err(|fault| fault.to_string())?;
        Ok(Backup(files))
    }

    /// A host comes back with a ledger from a backup; with its machine, so that nothing is there but what lies on its disks.
    ///
    /// # Errors
    /// When its daemon does not start with it.
    pub async fn restore(&self, name: &HostName, backup: &Backup, machine: bool) -> Result<(), String> {
        self.stop(name).await;
        let gone = self.ledger_files(name).into_iter().filter(|path| path.exists()).try_for_each(std::fs::remove_file);
        let put = gone.and_then(|()| backup.0.iter().try_for_each(|(path, bytes)| std::fs::write(path, bytes)));
        put.map_err(|e| format!("the ledger of {name} cannot be put back: {e}"))?;
        if machine {
            // That takes longer than any message is under way.
            sleep(RESTORED).await;
        }
        self.world.note(format!("{name} comes back with a ledger from a backup, its machine restarted: {machine}"));
        if machine && *name == self.nas {
            self.boots.fetch_add(1, Ordering::Relaxed);
            self.world.restart_nas(name);
        } else if machine {
            self.world.restart_node(name);
        }
        self.start(name).map_err(|fault| fault.to_string())
    }

    fn ledger_files(&self, name: &HostName) -> Vec<PathBuf> {
        ["", "-wal", "-shm"].iter().map(|end| self.dir.join(format!("{name}.db{end}"))).collect()
    }

    /// Restarts a host's machine, and its daemon with it.
    pub async fn reboot(&self, name: &HostName) {
        if *name == self.nas {
            self.boots.fetch_add(1, Ordering::Relaxed);
            self.world.restart_nas(name);
        } else {
            self.world.restart_node(name);
        }
        self.restart(name).await;
    }

    /// The time.
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// How many messages were sent.
    pub fn messages(&self) -> usize {
        self.mail.sent()
    }

    /// What was wrong with how many there were at once.
    pub fn storm(&self) -> Option<String> {
        self.mail.storm()
    }

    /// From now on nothing goes wrong any more.
    pub fn quiet(&self) {
        self.faults.stop();
        self.mail.quiet();
        self.world.cut_all(false);
        for node in &self.nodes {
            self.world.fill_disk(node, false);
        }
    }

    /// Asks the NAS, again and again with the same identity, until it answers.
    ///
    /// # Errors
    /// The NAS's fault, or that there was no answer.
    pub async fn ask(&self, request: Request) -> Result<Answer, Fault> {
        let id = RequestId(self.ids.fresh(self.clock.now()));
        let (reply, mut answer) = oneshot::channel();
        lock(&self.waiting).insert(id, reply);
        let asked = Instant::now();
        while asked.elapsed() < PATIENCE {
            self.front.send(&self.nas, Body::Request { id, request: Box::new(request.clone()) });
            if let Ok(answered) = timeout(ASK_AGAIN, &mut answer).await {
                return answered.unwrap_or_else(|_| Err(Fault::unreachable("the simulation ends"))).map(|a| *a);
            }
        }
        Err(Fault::unreachable("no answer in time"))
    }

    /// Asks the NAS as the original's front end does: once, and the first answer counts.
    ///
    /// # Errors
    /// That there was none: the NAS was not there, or was killed with the message in its hands.
    pub async fn ask_as_original(&self, message: &str) -> Result<String, String> {
        let number = self.foreign.fetch_add(1, Ordering::Relaxed).to_string();
        let reply_to = ReplyTo { queue: format!("amq.gen-{number}"), message: number };
        let mut answers = self.exchange.ask(&self.nas, reply_to, message.as_bytes().to_vec());
        self.world.note(format!("asked: {message}"));
        let answer = timeout(ANSWERED_WITHIN, answers.recv()).await.ok().flatten();
        let answer = answer.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        self.world.note(format!("answered: {answer:?}"));
        answer.ok_or_else(|| "no answer".to_owned())
    }

    /// The volume as the NAS shows it.
    pub async fn find(&self, volume: VolumeId) -> Option<VolumeView> {
        match self.ask(Request::Find { selector: None }).await {
            Ok(Answer::Volumes { volumes }) => volumes.into_iter().find(|v| v.id == volume),
            _ => None,
        }
    }

    /// Waits until the volume is shown as wanted.
    ///
    /// # Errors
    /// What it was instead, when time is up.
    pub async fn until(&self, volume: VolumeId, what: &str, goal: impl Fn(&VolumeView) -> bool) -> Result<(), String> {
        let began = Instant::now();
        let mut last = None;
        let mut pause = Duration::from_millis(100);
        while began.elapsed() < PATIENCE {
            if let Some(view) = self.find(volume).await {
                if goal(&view) {
                    return Ok(());
                }
                last = Some(view);
            }
            sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(20));
        }
        Err(format!("not {what} after {} s; it is {last:?}", PATIENCE.as_secs()))
    }

    /// Asks for something until it is so. A refusal is asked again, as an operator would, unless the goal is reached.
    ///
    /// # Errors
    /// When it is not so in time.
    pub async fn want(&self, volume: VolumeId, request: Request, goal: impl Fn(&VolumeView) -> bool) -> Result<(), String> {
        let began = Instant::now();
        loop {
            let fault = match self.ask(request.clone()).await {
                Ok(_) => return self.until(volume, &format!("{request:?}"), goal).await,
                Err(fault) => fault,
            };
            self.world.note(format!("refused: {fault}"));
            if self.find(volume).await.is_some_and(|view| goal(&view)) {
                return Ok(());
            }
            if began.elapsed() > PATIENCE {
                return Err(format!("{request:?}: {fault}"));
            }
            sleep(Duration::from_secs(2)).await;
        }
    }
}

async fn open_mail(mut inbox: mpsc::UnboundedReceiver<Delivery>, waiting: Waiting, post: Post, clock: Clock) {
    let started = clock.now();
    while let Some(delivery) = inbox.recv().await {
        let Delivery::Message(message) = delivery else { continue };
        match message.body {
            Body::Answer { id, answer } => {
                if let Some(reply) = lock(&waiting).remove(&id) {
                    // Who asked may have given up.
                    let _ = reply.send(answer);
                }
            }
            Body::Hello(hello) if hello.reply => {
                let hello = Hello {
                    initiator: None,
                    role: Role::Frontend,
                    version: "sim".to_owned(),
                    pools: Vec::new(),
                    planes: Vec::new(),
                    addresses: Vec::new(),
                    warm: Vec::new(),
                    started,
                    reply: false,
                };
                post.send(&message.from, Body::Hello(hello));
            }
            _ => {}
        }
    }
}
