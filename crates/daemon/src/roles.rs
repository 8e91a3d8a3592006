//! The roles, each on its own or all in one process.
//!
//! A role gets its ledger, its host verbs and a place on the bus, and knows nothing of who else shares its process.

pub(crate) mod kernel;
pub(crate) mod pools;

use crate::{
    bus::{self, Exchange, Member, amqp},
    clock::{Clock, Ids},
    cluster::Cluster,
    config::Config,
    frontend::{Desk, http},
    layout::{Layout, Lock, fits},
    nas::{self, Nas},
    node::{self, Node},
    pki::{self, Pki},
    store::{Commits, JOURNAL, Journal, LEDGER, NasStore, NodeStore},
    tasks::Running,
};
use img_storage_host::{
    net,
    planes::{NasPlanes, NodePlanes},
    qemu::{Daemons, nas::QemuNas, node::QemuNode},
};
use img_storage_model::{Fault, HostName, Interval, Plane, attribute::Defaults, messages::Role};
use pools::{check_nas, check_node, claim, is_new, nas_pools, node_pool};
use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{
    net::UnixListener,
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};

/// The longest a step may take before it is given up and looked at again.
const STEP_DEADLINE: Duration = Duration::from_secs(60);
/// How old the NAS's copy may get when nothing is configured, in seconds.
pub(crate) const FREQUENCY: u64 = 60;
/// Where exports listen: below the ports that the kernel gives to outgoing connections.
const PORTS: std::ops::RangeInclusive<u16> = 20_000..=29_999;
/// The name of a node's pool for local copies.
const LOCAL_POOL: &str = "local";
/// How many nodes `up` runs when nothing is configured.
pub(crate) const NODES: u16 = 2;

/// What `up` is told.
#[derive(Clone, Debug)]
pub struct UpOptions {
    /// The state directory.
    pub dir: PathBuf,
    /// How many nodes to run.
    pub nodes: Option<u16>,
    /// How old the NAS's copy may get.
    pub frequency: Option<Interval>,
    /// A configuration file.
    pub config: Option<PathBuf>,
}

/// What a single role is told.
#[derive(Clone, Debug)]
pub struct RoleOptions {
    /// The state directory.
    pub dir: PathBuf,
    /// The host's name.
    pub name: Option<HostName>,
    /// The socket of the bus; without it, the one in the state directory.
    pub bus: Option<PathBuf>,
    /// How old the NAS's copy may get.
    pub frequency: Option<Interval>,
    /// A configuration file.
    pub config: Option<PathBuf>,
}

fn named(given: Option<&HostName>, configured: Option<&HostName>, default: &str) -> Result<HostName, Fault> {
    given.or(configured).map_or_else(|| HostName::new(default), |name| Ok(name.clone()))
}

fn frontend_name(config: &Config) -> Result<HostName, Fault> {
    named(None, config.frontend.name.as_ref(), "frontend")
}

fn cluster(config: &Config) -> Result<Cluster, Fault> {
    Ok(config.cluster(&frontend_name(config)?, &named(None, config.nas.name.as_ref(), "nas-0-0")?))
}

/// Where a host's certificates come from.
enum Credentials {
    /// A CA of this machine's own.
    Made(Box<Pki>),
    /// They were made elsewhere, and lie in this directory.
    Issued(PathBuf),
}

impl Credentials {
    fn open(layout: &Layout, config: &Config) -> Result<Self, Fault> {
        match config.issued() {
            Some(dir) => Ok(Credentials::Issued(dir.to_owned())),
            None if config.bus.is_some() => Err(Fault::invalid("[bus] is configured without [pki] dir")
                .next("nothing was started; name the directory of the certificates that were issued for this host")),
            None => Ok(Credentials::Made(Box::new(Pki::open(&layout.pki())?))),
        }
    }

    fn of(&self, host: &HostName) -> Result<PathBuf, Fault> {
        match self {
            Credentials::Made(pki) => pki.host(host),
            Credentials::Issued(dir) => pki::issued(dir).map(|()| dir.clone()),
        }
    }
}

/// A role's place on the bus, and what makes an end of it.
struct Place {
    member: Member,
    over: Option<oneshot::Receiver<Fault>>,
}

/// Joins the bus: over the broker when one is configured, otherwise over the socket that a front end on this machine serves.
async fn join(layout: &Layout, config: &Config, socket: Option<PathBuf>, name: &HostName) -> Result<Place, Fault> {
    match (config.broker()?, socket) {
        (Some(settings), None) => {
            settings.check()?;
            let amqp::Joined { member, over } = amqp::join(settings, name).await?;
            Ok(Place { member, over: Some(over) })
        }
        (_, socket) => {
            let member = bus::socket::join(&socket.unwrap_or_else(|| layout.bus_socket()), name).await?;
            Ok(Place { member, over: None })
        }
    }
}

/// What a role's host verbs need: its storage daemons' directory and its certificates.
fn plane(dir: &Path, pki: &Credentials, name: &HostName) -> Result<Daemons, Fault> {
    Ok(Daemons::new(dir.join("run"), pki.of(name)?, pki::ORGANISATION))
}

/// The address by which nodes reach a NAS's exports: this host's, and not necessarily the one its name leads to.
///
/// # Errors
/// [`img_storage_model::FaultKind::Invalid`] when it is none of this host's, or it is not clear which.
pub(crate) fn data_address(config: &Config) -> Result<IpAddr, Fault> {
    let here = || net::addresses().map_err(|e| Fault::failed(e.to_string()));
    let list = |all: &[IpAddr]| all.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    match (config.nas.data_address(), config.nas.data_network) {
        (None, None) if config.is_for_many() => {
            Err(Fault::invalid("[nas] data_address is not given: nodes on other hosts could not reach this NAS's exports")
                .next(format!("nothing was started; this host's addresses are {}", list(&here()?))))
        }
        (None, None) => Ok(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        (Some(address), _) => {
            // Every address of 127.0.0.0/8 leads here, listed or not.
            let here = here()?;
            if address.is_loopback() || here.contains(&address) {
                return Ok(address);
            }
            Err(Fault::invalid(format!("[nas] data_address {address} is no address of this host"))
                .next(format!("nothing was started; its addresses are {}", list(&here))))
        }
        (None, Some(network)) => {
            let here = here()?;
            let within: Vec<IpAddr> = here.iter().copied().filter(|a| network.contains(*a)).collect();
            match within.as_slice() {
                [one] => Ok(*one),
                [] => Err(Fault::invalid(format!("[nas] data_network {network} has no address of this host"))
                    .next(format!("nothing was started; its addresses are {}", list(&here)))),
                several => Err(Fault::invalid(format!("[nas] data_network {network} has several addresses of this host"))
                    .next(format!("nothing was started; give one of them as data_address: {}", list(several)))),
            }
        }
    }
}

/// What counts where no attribute was set.
fn defaults(config: &Config, frequency: Option<Interval>) -> Result<Defaults, Fault> {
    let frequency = frequency.or(config.frequency).map_or_else(|| Interval::seconds(FREQUENCY), Ok)?;
    let built_in = Defaults::of(frequency);
    Ok(Defaults {
        frequency,
        download_speed: config.download_speed.unwrap_or(built_in.download_speed),
        upload_speed: config.upload_speed.unwrap_or(built_in.upload_speed),
        sync_workers: config.sync_workers.unwrap_or(built_in.sync_workers),
    })
}

/// Whether a front end could be started here with this configuration; starts and makes nothing but the state directory.
///
/// # Errors
/// What stands against it.
pub fn check_frontend(dir: &Path, config: &Config) -> Result<(), Fault> {
    check_role(dir, config, &frontend_name(config)?, Role::Frontend).map(drop)
}

/// The same for a NAS: also its pools and its data address.
///
/// # Errors
/// What stands against it.
pub fn check_nas_here(dir: &Path, config: &Config) -> Result<(), Fault> {
    let name = named(None, config.nas.name.as_ref(), "nas-0-0")?;
    data_address(config)?;
    check_nas(&check_role(dir, config, &name, Role::Nas)?, config, &name)
}

/// The same for a node: also its pool.
///
/// # Errors
/// What stands against it.
pub fn check_vm(dir: &Path, config: &Config) -> Result<(), Fault> {
    let name = named(None, config.vm.name.as_ref(), "compute-0-0")?;
    check_node(&check_role(dir, config, &name, Role::Node)?, config, &name)
}

fn check_role(dir: &Path, config: &Config, name: &HostName, role: Role) -> Result<Layout, Fault> {
    fits(dir, name, role)?;
    config.broker()?.map_or(Ok(()), |settings| settings.check())?;
    config.issued().map_or(Ok(()), pki::issued)?;
    Layout::new(dir)
}

async fn start_nas(
    layout: &Layout,
    config: &Config,
    frequency: Option<Interval>,
    name: &HostName,
    pki: &Credentials,
    member: Member,
) -> Result<Running, Fault> {
    let dir = layout.host(name)?;
    let pools = nas_pools(layout, config, name)?;
    for (pool, path) in &pools {
        claim(path, name, pool.as_str())?;
    }
    let address = data_address(config)?;
    let daemons = plane(&dir, pki, name)?;
    let kernel = kernel::nas(config, name, &dir, address, daemons.clone(), is_new(&dir)).await?;
    let store = NasStore::open(&dir.join(LEDGER), Commits::Grouped)?;
    let journal = Journal::open(&dir.join(JOURNAL))?;
    let host = NasPlanes { qemu: QemuNas::new(daemons, pools, &address.to_string(), PORTS).await, kernel };
    let settings = nas::Config {
        cluster: cluster(config)?,
        address: address.to_string(),
        defaults: defaults(config, frequency)?,
        step_deadline: STEP_DEADLINE,
        boot: img_storage_host::boot_id(),
    };
    Nas::start(settings, Arc::new(host), store, journal, member, Clock::System, Ids::random())
}

async fn start_node(
    layout: &Layout,
    config: &Config,
    name: &HostName,
    pki: &Credentials,
    member: Member,
) -> Result<Running, Fault> {
    let dir = layout.host(name)?;
    let pool = node_pool(layout, config, name)?;
    claim(&pool, name, LOCAL_POOL)?;
    let kernel = kernel::node(config, is_new(&dir)).await?;
    let store = NodeStore::open(&dir.join(LEDGER), Commits::Grouped)?;
    let journal = Journal::open(&dir.join(JOURNAL))?;
    let planes = [Some(Plane::Qemu), kernel.as_ref().map(|_| Plane::Kernel)].into_iter().flatten().collect();
    let host = NodePlanes { qemu: QemuNode::new(plane(&dir, pki, name)?, LOCAL_POOL, pool, None).await, kernel };
    let initiator = img_storage_host::initiator().map_err(|error| Fault::failed(error.0))?;
    let settings = node::Config {
        cluster: cluster(config)?,
        planes,
        initiator,
        address: config.vm.data_address.map(|address| address.to_string()),
        step_deadline: STEP_DEADLINE,
        warm: config.vm.warm_copies.unwrap_or_default(),
    };
    Node::start(settings, Arc::new(host), store, journal, member, Clock::System)
}

/// The front end's part of a process.
struct Front {
    desk: Arc<Desk>,
    _running: Running,
    _http: tokio::task::JoinHandle<()>,
}

async fn start_frontend(
    layout: &Layout,
    config: &Config,
    name: &HostName,
    pki: &Credentials,
    member: Member,
) -> Result<Front, Fault> {
    let (desk, running) = Desk::start(member, Clock::System, Ids::random(), pki.of(name)?, cluster(config)?);
    let http = http::serve(Arc::clone(&desk) as Arc<dyn http::Office>, &layout.api_socket()).await?;
    Ok(Front { desk, _running: running, _http: http })
}

/// Serves the bus of this machine to roles in other processes.
fn serve_bus(layout: &Layout, exchange: &Arc<Exchange>) -> Result<(), Fault> {
    let socket = layout.bus_socket();
    // The directory is locked by this process: a socket that is there is a dead one's.
    let _ = fs::remove_file(&socket);
    let bad = |e: std::io::Error| Fault::failed(format!("the bus socket {} cannot be served: {e}", socket.display()));
    let listener = UnixListener::bind(&socket).map_err(bad)?;
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o600)).map_err(bad)?;
    tokio::spawn(bus::socket::serve(Arc::clone(exchange), listener));
    Ok(())
}

/// Waits for SIGINT or SIGTERM, or until the bus makes an end.
async fn until_told(what: &str, over: Option<oneshot::Receiver<Fault>>) -> Result<(), Fault> {
    let bad = |e: std::io::Error| Fault::failed(format!("signals cannot be received: {e}"));
    let (mut int, mut term) = (signal(SignalKind::interrupt()).map_err(bad)?, signal(SignalKind::terminate()).map_err(bad)?);
    let over = async {
        match over {
            Some(over) => over.await.unwrap_or_else(|_| Fault::failed("the connection to the broker ended")),
            None => std::future::pending().await,
        }
    };
    tokio::select! { _ = int.recv() => {}, _ = term.recv() => {}, fault = over => return Err(fault) }
    tracing::info!("{what} ends; guests and their devices go on without it, and it takes them up again at its next start");
    Ok(())
}

/// Runs every role on this machine, with the embedded bus, until SIGINT or SIGTERM.
///
/// # Errors
/// When the directory is in use, a ledger is damaged, the configuration is wrong or something cannot be made. Nothing was
/// changed then.
pub async fn up(options: UpOptions) -> Result<(), Fault> {
    let config = Config::read(options.config.as_deref())?;
    let (front_name, nas_name) = (frontend_name(&config)?, named(None, config.nas.name.as_ref(), "nas-0-0")?);
    if config.bus.is_some() {
        return Err(Fault::invalid("[bus] is configured, and `up` runs everything on this machine, without a broker")
            .next("nothing was started; start the roles: img-storage frontend, nas or vm"));
    }
    let nodes = options.nodes.or(config.vm.nodes).unwrap_or(NODES);
    let nodes = (0..nodes).map(|n| HostName::new(format!("compute-0-{n}"))).collect::<Result<Vec<_>, _>>()?;
    let mut hosts = vec![&front_name, &nas_name];
    hosts.extend(&nodes);
    if let Some(twice) = (1..hosts.len()).find(|n| hosts[..*n].contains(&hosts[*n])) {
        return Err(Fault::invalid(format!("two hosts have the name {}", hosts[twice]))
            .next("nothing was started; give [frontend] and [nas] other names, and none of a node"));
    }
    fits(&options.dir, &nas_name, Role::Nas)?;
    nodes.iter().try_for_each(|node| fits(&options.dir, node, Role::Node))?;
    let layout = Layout::new(&options.dir)?;
    // Also of each host, of which a single role may work in this directory.
    let mut locks = vec![Lock::take(layout.dir())?];
    for host in &hosts[1..] {
        locks.push(Lock::take(&layout.host(host)?)?);
    }
    check_nas(&layout, &config, &nas_name)?;
    nodes.iter().try_for_each(|node| check_node(&layout, &config, node))?;
    let pki = Credentials::open(&layout, &config)?;
    let exchange = Exchange::new();
    let front = start_frontend(&layout, &config, &front_name, &pki, exchange.join(&front_name)?).await?;
    serve_bus(&layout, &exchange)?;
    let mut running = vec![start_nas(&layout, &config, options.frequency, &nas_name, &pki, exchange.join(&nas_name)?).await?];
    for name in &nodes {
        running.push(start_node(&layout, &config, name, &pki, exchange.join(name)?).await?);
    }
    drop(pki);
    let nodes = nodes.len();
    // Who reads "ready" may use every host named.
    while front.desk.hosts().await.len() < nodes + 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tracing::info!("ready: {nas_name}, {nodes} nodes, state in {}", layout.dir().display());
    until_told("img-storage up", None).await
}

/// Runs the front end alone; without a broker it serves the bus for the other roles on this machine.
///
/// # Errors
/// As [`up`].
pub async fn frontend(options: RoleOptions) -> Result<(), Fault> {
    let config = Config::read(options.config.as_deref())?;
    let name = named(options.name.as_ref(), config.frontend.name.as_ref(), "frontend")?;
    fits(&options.dir, &name, Role::Frontend)?;
    let layout = Layout::new(&options.dir)?;
    let _lock = Lock::take(layout.dir())?;
    let place = if config.bus.is_some() {
        join(&layout, &config, None, &name).await?
    } else {
        let exchange = Exchange::new();
        serve_bus(&layout, &exchange)?;
        Place { member: exchange.join(&name)?, over: None }
    };
    let pki = Credentials::open(&layout, &config)?;
    let _front = start_frontend(&layout, &config, &name, &pki, place.member).await?;
    drop(pki);
    tracing::info!("ready: {name}, state in {}", layout.dir().display());
    until_told("the front end", place.over).await
}

/// Runs a NAS alone.
///
/// # Errors
/// As [`up`]; and when another daemon has its name.
pub async fn nas(options: RoleOptions) -> Result<(), Fault> {
    let config = Config::read(options.config.as_deref())?;
    let name = named(options.name.as_ref(), config.nas.name.as_ref(), "nas-0-0")?;
    fits(&options.dir, &name, Role::Nas)?;
    let layout = Layout::new(&options.dir)?;
    let _lock = Lock::take(&layout.host(&name)?)?;
    check_nas(&layout, &config, &name)?;
    let place = join(&layout, &config, options.bus, &name).await?;
    // Not before: it is locked, and the front end that serves the bus may be waiting for it.
    let pki = Credentials::open(&layout, &config)?;
    let _running = start_nas(&layout, &config, options.frequency, &name, &pki, place.member).await?;
    drop(pki);
    tracing::info!("ready: {name}, state in {}", layout.dir().display());
    until_told("the NAS daemon", place.over).await
}

/// Runs a node alone.
///
/// # Errors
/// As [`up`]; and when another daemon has its name.
pub async fn vm(options: RoleOptions) -> Result<(), Fault> {
    let config = Config::read(options.config.as_deref())?;
    let name = named(options.name.as_ref(), config.vm.name.as_ref(), "compute-0-0")?;
    fits(&options.dir, &name, Role::Node)?;
    let layout = Layout::new(&options.dir)?;
    let _lock = Lock::take(&layout.host(&name)?)?;
    check_node(&layout, &config, &name)?;
    let place = join(&layout, &config, options.bus, &name).await?;
    // Not before: it is locked, and the front end that serves the bus may be waiting for it.
    let pki = Credentials::open(&layout, &config)?;
    let _running = start_node(&layout, &config, &name, &pki, place.member).await?;
    drop(pki);
    tracing::info!("ready: {name}, state in {}", layout.dir().display());
    until_told("the node daemon", place.over).await
}
