//! The layer between a daemon and its host that makes verbs fail, hang, stop half way and take the daemon with them.
//!
//! Every verb of every host is numbered in the order they begin. A plan says what becomes of which number; a run is repeated by
//! repeating its plan. A crash cannot be done here: the harness is told through a channel, and the verb never returns.

use super::World;
use crate::{HostError, LocalCopies, NasHost, NodeHost, VolumeRef, Work};
use img_storage_model::{
    Fact, HostName, VolumeId,
    messages::{DeviceKind, Holder, PoolReport},
    nas,
    node::{self, NodeVolume, StepResult},
};
use std::{
    collections::BTreeMap,
    fmt::Debug,
    future::{Future, pending},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{sync::mpsc, time::Instant};

/// What becomes of a verb.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing is done, and it fails.
    ErrorBefore,
    /// It is done, but it says that it failed.
    ErrorAfter,
    /// Nothing is done, and it says that it succeeded, as some tools do.
    Lie,
    /// Its first parts are done, and it fails.
    ErrorMid(u32),
    /// It never returns, nothing is done.
    Hang,
    /// It is done, but never returns.
    HangAfter,
    /// The daemon is killed before.
    CrashBefore,
    /// The daemon is killed after its first parts.
    CrashMid(u32),
    /// The daemon is killed after it was done, before it knows.
    CrashAfter,
    /// It is done; afterwards the host cannot be looked at for so many seconds.
    Blind(u32),
    /// The node's storage daemon of the volume is killed after it.
    KillNode,
    /// The NAS's export of the volume is killed before it.
    LoseExport,
    /// The NAS's export of the volume is killed after it.
    KillExport,
    /// The daemon of the volume's incoming file is killed after it.
    KillIncoming,
    /// Before it, the volume's jobs that are not over fail.
    FailJobs,
    /// The nodes lose their power after it.
    RebootNodes,
    /// The NASes lose their power after it.
    RebootNases,
    /// The nodes are cut off the data network after it, for so many seconds.
    Cut(u32),
}

/// A verb that was begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effect {
    /// On which host.
    pub host: HostName,
    /// Which volume.
    pub volume: VolumeId,
    /// What.
    pub step: String,
    /// How many parts it had; 0 when it did not end.
    pub parts: u32,
}

/// The daemon of a host is to be killed now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Crash {
    /// Which.
    pub host: HostName,
    /// Its machine loses its power.
    pub machine: bool,
}

/// The plan of faults of a run, and the record of its verbs. Shared by all hosts.
#[derive(Clone)]
pub struct Faults(Arc<Inner>);

struct Inner {
    world: World,
    crash: mpsc::UnboundedSender<Crash>,
    state: Mutex<Plan>,
}

#[derive(Default)]
struct Plan {
    faults: BTreeMap<usize, Fault>,
    effects: Vec<Effect>,
    blind: BTreeMap<HostName, Instant>,
    quiet: bool,
}

impl Faults {
    /// A plan: what becomes of which verb, counted from 0. The receiver hears of daemons to be killed.
    pub fn new(world: &World, faults: BTreeMap<usize, Fault>) -> (Self, mpsc::UnboundedReceiver<Crash>) {
        let (crash, crashes) = mpsc::unbounded_channel();
        let state = Mutex::new(Plan { faults, ..Plan::default() });
        (Faults(Arc::new(Inner { world: world.clone(), crash, state })), crashes)
    }

    /// Plans another fault.
    pub fn plan(&self, number: usize, fault: Fault) {
        self.lock().faults.insert(number, fault);
    }

    /// The verbs so far.
    pub fn effects(&self) -> Vec<Effect> {
        self.lock().effects.clone()
    }

    /// From now on nothing fails any more.
    pub fn stop(&self) {
        let mut plan = self.lock();
        plan.quiet = true;
        plan.blind.clear();
    }

    /// A node between its daemon and the world.
    pub fn node(&self, name: &HostName) -> FaultyNode {
        FaultyNode { inner: Box::new(self.0.world.add_node(name)), faults: self.clone(), name: name.clone() }
    }

    /// A NAS between its daemon and the world; it must have been added to the world before.
    pub fn nas(&self, host: super::SimNas) -> FaultyNas {
        FaultyNas { name: host.name.clone(), inner: Box::new(host), faults: self.clone() }
    }

    fn lock(&self) -> MutexGuard<'_, Plan> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, host: &HostName, volume: VolumeId, step: &impl Debug) -> (usize, Option<Fault>) {
        let mut plan = self.lock();
        let number = plan.effects.len();
        plan.effects.push(Effect { host: host.clone(), volume, step: format!("{step:?}"), parts: 0 });
        let fault = if plan.quiet { None } else { plan.faults.get(&number).copied() };
        drop(plan);
        let with = fault.map_or(String::new(), |f| format!(" with {f:?}"));
        self.0.world.note(format!("#{number} {host} {step:?}{with}"));
        (number, fault)
    }

    fn end(&self, number: usize, began: Instant) {
        let parts = began.elapsed().as_millis() / super::PART.as_millis();
        self.lock().effects[number].parts = u32::try_from(parts).unwrap_or(u32::MAX);
    }

    async fn crash<T>(&self, host: &HostName) -> T {
        self.0.world.note(format!("CRASH of the daemon on {host}"));
        let _ = self.0.crash.send(Crash { host: host.clone(), machine: false });
        pending().await
    }

    fn blind(&self, host: &HostName) -> bool {
        self.lock().blind.get(host).is_some_and(|until| Instant::now() < *until)
    }

    async fn run(
        &self,
        host: &HostName,
        volume: VolumeId,
        step: &(impl Debug + Sync),
        work: impl Future<Output = Result<StepResult, HostError>>,
    ) -> Result<StepResult, HostError> {
        let (number, fault) = self.begin(host, volume, step);
        let failed = || Err(HostError("a fault of the simulation".to_owned()));
        let some_parts = |parts: u32| super::PART * parts + super::PART / 2;
        let began = Instant::now();
        match fault {
            Some(Fault::ErrorBefore) => return failed(),
            Some(Fault::Lie) => return Ok(StepResult::Done),
            Some(Fault::FailJobs) => self.0.world.fail_jobs(volume),
            Some(Fault::LoseExport) => self.0.world.kill_export(volume),
            Some(Fault::Hang) => return pending().await,
            Some(Fault::CrashBefore) => return self.crash(host).await,
            Some(Fault::ErrorMid(parts)) => {
                let _ = tokio::time::timeout(some_parts(parts), work).await;
                return failed();
            }
            Some(Fault::CrashMid(parts)) => {
                let _ = tokio::time::timeout(some_parts(parts), work).await;
                return self.crash(host).await;
            }
            _ => {}
        }
        let result = work.await;
        self.end(number, began);
        if let Err(why) = &result {
            self.0.world.note(format!("#{number} failed: {why}"));
        }
        let world = &self.0.world;
        match fault {
            Some(Fault::ErrorAfter) => return failed(),
            Some(Fault::HangAfter) => return pending().await,
            Some(Fault::CrashAfter) => return self.crash(host).await,
            Some(Fault::Blind(seconds)) => {
                let until = Instant::now() + Duration::from_secs(u64::from(seconds));
                self.lock().blind.insert(host.clone(), until);
            }
            Some(Fault::KillNode) => {
                for node in world.nodes() {
                    world.kill_node_daemon(&node, volume);
                }
            }
            Some(Fault::RebootNodes | Fault::RebootNases) => {
                let hosts = if fault == Some(Fault::RebootNodes) { world.nodes() } else { world.nases() };
                for host in hosts {
                    let _ = self.0.crash.send(Crash { host, machine: true });
                }
            }
            Some(Fault::KillExport) => world.kill_export(volume),
            Some(Fault::KillIncoming) => world.kill_incoming(volume),
            Some(Fault::Cut(seconds)) => {
                let world = world.clone();
                world.cut_all(true);
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_secs(u64::from(seconds))).await;
                    world.cut_all(false);
                });
            }
            _ => {}
        }
        result
    }
}

/// A node that may fail.
pub struct FaultyNode {
    inner: Box<dyn NodeHost>,
    faults: Faults,
    name: HostName,
}

impl NodeHost for FaultyNode {
    fn observe(&self, volume: NodeVolume, carried: Option<node::kernel::Zvols>) -> Work<'_, node::Facts> {
        Box::pin(async move {
            let mut facts = self.inner.observe(volume, carried).await;
            if self.faults.blind(&self.name) {
                let why = "a fault of the simulation".to_owned();
                match &mut facts {
                    node::Facts::Qemu(facts) => facts.qsd = Fact::Unknown(why),
                    node::Facts::Kernel(facts) => facts.device = Fact::Unknown(why),
                }
            }
            facts
        })
    }

    fn run(&self, volume: NodeVolume, step: node::Step) -> Work<'_, Result<StepResult, HostError>> {
        Box::pin(async move {
            let id = volume.id;
            let work = self.inner.run(volume, step.clone());
            self.faults.run(&self.name, id, &step, work).await
        })
    }

    fn device(&self, volume: &NodeVolume, kind: DeviceKind) -> String {
        self.inner.device(volume, kind)
    }

    fn users(&self, volume: NodeVolume) -> Work<'_, Result<Vec<Holder>, HostError>> {
        self.inner.users(volume)
    }

    fn pools(&self) -> Work<'_, Vec<PoolReport>> {
        self.inner.pools()
    }

    fn copies(&self) -> Work<'_, Result<LocalCopies, HostError>> {
        Box::pin(async move {
            if self.faults.blind(&self.name) {
                return Err(HostError("a fault of the simulation".to_owned()));
            }
            self.inner.copies().await
        })
    }
}

impl Drop for FaultyNas {
    fn drop(&mut self) {
        self.faults.0.world.end_streams(&self.name);
    }
}

/// A NAS that may fail. Its streams end with it, as those of a daemon that is killed.
pub struct FaultyNas {
    inner: Box<dyn NasHost>,
    faults: Faults,
    name: HostName,
}

impl NasHost for FaultyNas {
    fn observe(&self, volume: VolumeRef, carried: Option<nas::kernel::Zvol>) -> Work<'_, nas::Facts> {
        Box::pin(async move {
            let mut facts = self.inner.observe(volume, carried).await;
            if self.faults.blind(&self.name) {
                let why = "a fault of the simulation".to_owned();
                match &mut facts {
                    nas::Facts::Qemu(facts) => facts.export = Fact::Unknown(why),
                    nas::Facts::Kernel(facts) => facts.exports = Fact::Unknown(why),
                }
            }
            facts
        })
    }

    fn run(&self, volume: VolumeRef, step: nas::Step) -> Work<'_, Result<StepResult, HostError>> {
        Box::pin(async move {
            let id = volume.id;
            let work = self.inner.run(volume, step.clone());
            self.faults.run(&self.name, id, &step, work).await
        })
    }

    fn pools(&self) -> Work<'_, Vec<PoolReport>> {
        self.inner.pools()
    }

    fn free_port(&self) -> Result<u16, HostError> {
        self.inner.free_port()
    }
}
