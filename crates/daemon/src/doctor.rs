//! `img-storage doctor`: brings together the ledgers of this host, its configuration and what is to be seen on it, for the
//! comparison in [`img_storage_model::doctor`].
//!
//! It changes nothing: no directory or ledger is made or opened for writing, no lock is taken, nobody is spoken to. A daemon that runs
//! does not notice, and one that is dead is not needed.

use crate::{
    config::Config,
    layout::Layout,
    pki,
    roles::{self, kernel, pools},
    store::{LEDGER, Rows, read},
};
use img_storage_host::{
    HostError, kernel as planes,
    qemu::{Daemons, node::guests_at, see},
};
use img_storage_model::{
    Fault, HostName, Plane, Selector,
    doctor::{self, Ask, Diagnosis, Level, Unseen, files},
    messages::Holder,
    nas::VolumeRecord,
    node::NodeRecord,
};
use serde::Serialize;
use std::{collections::BTreeSet, fs, path::Path, path::PathBuf, time::Duration};

/// What differs only for this long was on its way to something else, while a daemon works.
const MOMENT: Duration = Duration::from_secs(2);

/// What doctor is told.
#[derive(Clone, Debug)]
pub struct Options {
    /// The state directory.
    pub dir: PathBuf,
    /// A configuration file or directory.
    pub config: Option<PathBuf>,
    /// Only this volume.
    pub volume: Option<Selector>,
}

/// A role that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Host {
    /// The host's name.
    pub name: HostName,
    /// `nas` or `vm`.
    pub role: &'static str,
    /// Its daemon's process, when it runs and can be seen.
    pub daemon: Option<u32>,
    /// Volumes in its ledger.
    pub volumes: usize,
}

/// What came out.
#[derive(Clone, Debug, Serialize)]
pub struct Examined {
    /// The roles of this host.
    pub hosts: Vec<Host>,
    /// What was found.
    #[serde(flatten)]
    pub diagnosis: Diagnosis,
}

/// Looks at every role of this host.
///
/// # Errors
/// When there is nothing to look at: no state directory, no ledger in it, no such volume; and for a wrong configuration. What could
/// not be seen of the rest is in what comes out.
pub async fn examine(options: &Options) -> Result<Examined, Fault> {
    let config = Config::read(options.config.as_deref())?;
    let layout = Layout::there(&options.dir)?;
    let ledgers = ledgers(layout.dir())?;
    let mut seen = look(&layout, &config, &ledgers).await;
    if let Some(volume) = &options.volume {
        name(volume, &seen)?;
    }
    if seen.examined.diagnosis.differing() > 0 && seen.examined.hosts.iter().any(|host| host.daemon.is_some()) {
        tokio::time::sleep(MOMENT).await;
        let again = look(&layout, &config, &ledgers).await;
        let first = std::mem::take(&mut seen.examined.diagnosis);
        seen = again;
        seen.examined.diagnosis = first.confirmed_by(seen.examined.diagnosis);
    }
    let mut examined = seen.examined;
    if let Some(volume) = &options.volume {
        examined.diagnosis.limit_to(volume);
    }
    ask(&mut examined.diagnosis).await;
    examined.diagnosis.sort();
    Ok(examined)
}

/// The ledgers in a state directory, with whose they are.
fn ledgers(dir: &Path) -> Result<Vec<(HostName, PathBuf)>, Fault> {
    let bad = |e: std::io::Error| {
        Fault::failed(format!("the state directory {} cannot be looked into: {e}", dir.display()))
            .next("run it as the user that the daemons run as, mostly root")
    };
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(bad)? {
        let path = entry.map_err(bad)?.path();
        let name = path.file_name().and_then(|name| HostName::new(name.to_string_lossy()).ok());
        let Some(name) = name else { continue };
        match fs::metadata(path.join(LEDGER)) {
            Ok(_) => found.push((name, path)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound || e.kind() == std::io::ErrorKind::NotADirectory => {}
            Err(e) => return Err(bad(e)),
        }
    }
    found.sort();
    if found.is_empty() {
        return Err(Fault::not_found(format!("there is no ledger of a NAS or a node in {}", dir.display()))
            .next("give the state directory of this host's daemons with --dir; a front end alone has no ledger"));
    }
    Ok(found)
}

/// One look.
struct Seen {
    examined: Examined,
    /// The whole names of the volumes in the ledgers.
    names: BTreeSet<String>,
}

async fn look(layout: &Layout, config: &Config, ledgers: &[(HostName, PathBuf)]) -> Seen {
    let mut seen = Seen { examined: Examined { hosts: Vec::new(), diagnosis: Diagnosis::default() }, names: BTreeSet::new() };
    for (name, dir) in ledgers {
        let running = img_storage_host::lock::holder(&dir.join("lock"));
        let rows = match read(&dir.join(LEDGER)) {
            Ok(rows) => rows,
            Err(fault) => {
                seen.blind(name, format!("the ledger of {name}, and with it what should be here"), fault.to_string());
                continue;
            }
        };
        let (role, words, unit, volumes) = match &rows {
            Rows::Nas(rows) => ("nas", "NAS", "img-storage@nas", rows.len()),
            Rows::Node(rows) => ("vm", "node", "img-storage@vm", rows.len()),
        };
        seen.add(doctor::daemon(name, words, &running, unit));
        let daemon = running.known().copied().flatten();
        seen.examined.hosts.push(Host { name: name.clone(), role, daemon, volumes });
        match rows {
            Rows::Nas(rows) => {
                seen.names.extend(rows.iter().map(|row| format!("{name}:{}/{}", row.pool, row.name)));
                seen.nas(layout, config, (name, dir), rows).await;
            }
            Rows::Node(rows) => {
                seen.names.extend(rows.iter().map(|row| format!("{}:{}", row.assign.nas, row.assign.name)));
                seen.node(layout, config, (name, dir), rows).await;
            }
        }
    }
    seen
}

impl Seen {
    fn add(&mut self, found: Diagnosis) {
        self.examined.diagnosis.findings.extend(found.findings);
        self.examined.diagnosis.unseen.extend(found.unseen);
    }

    fn blind(&mut self, host: &HostName, what: impl Into<String>, why: impl Into<String>) {
        self.examined.diagnosis.unseen.push(Unseen { host: host.clone(), what: what.into(), why: why.into() });
    }

    fn unless_root(&mut self, host: &HostName) {
        if !rustix::process::geteuid().is_root() {
            let what = "processes of others, device-mapper, and what else only root sees";
            self.blind(host, what, "this is not root; run it as root to see everything");
        }
    }

    async fn nas(&mut self, layout: &Layout, config: &Config, (name, dir): (&HostName, &Path), rows: Vec<VolumeRecord>) {
        match pools::nas_pools(layout, config, name) {
            Ok(pools) => {
                let pools = pools.into_iter().map(|(pool, path)| (pool, see::homes(&path, "disk.raw"))).collect();
                let daemons = see::servers(&dir.join("run"), true);
                let site = files::NasSite { host: name.clone(), rows: rows.clone(), pools, daemons };
                self.add(files::examine_nas(&site));
            }
            Err(fault) => self.blind(name, "the pools", fault.to_string()),
        }
        if config.nas.zfs.is_empty() && rows.iter().all(|row| row.plane == Plane::Qemu) {
            return;
        }
        self.unless_root(name);
        match roles::data_address(config) {
            Ok(address) => {
                let daemons = Daemons::new(dir.join("run"), layout.pki(), pki::ORGANISATION);
                let nas = kernel::nas_of(config, name, dir, address, daemons);
                self.add(doctor::nas::examine(&nas.see(rows).await));
            }
            Err(fault) => self.blind(name, "the kernel plane: where its targets should listen", fault.message),
        }
    }

    async fn node(&mut self, layout: &Layout, config: &Config, (name, dir): (&HostName, &Path), rows: Vec<NodeRecord>) {
        match pools::node_pool(layout, config, name) {
            Ok(pool) => {
                let daemons = see::servers(&dir.join("run"), false);
                let pool = see::homes(&pool, "local.raw");
                let site = files::NodeSite { host: name.clone(), rows: rows.clone(), pool, daemons };
                self.add(files::examine_node(&site));
            }
            Err(fault) => self.blind(name, "the pool for local copies", fault.to_string()),
        }
        match kernel::node_of(config) {
            Some(node) => {
                self.unless_root(name);
                self.add(doctor::node::examine(&node.see(name.clone(), rows, &kernel::stream_user(config)).await));
            }
            None if rows.iter().any(|row| row.assign.plane == Plane::Kernel) => {
                self.blind(name, "the kernel plane, of which the ledger has volumes", "the configuration has no [vm] zfs");
            }
            None => {}
        }
    }
}

/// Makes sure that a name is one volume's.
fn name(volume: &Selector, seen: &Seen) -> Result<(), Fault> {
    let found: Vec<&str> = seen.names.iter().map(String::as_str).filter(|full| doctor::is_meant(volume, full)).collect();
    match found.as_slice() {
        [_] => Ok(()),
        [] => {
            let hosts: Vec<&str> = seen.examined.hosts.iter().map(|host| host.name.as_str()).collect();
            Err(Fault::not_found(format!("there is no volume {volume} in the ledgers here ({})", hosts.join(", ")))
                .next("leave the name away to see everything; a volume is looked at on its NAS and on its node"))
        }
        several => Err(Fault::invalid(format!("{volume} can be any of {}", several.join(", "))).next("name it more fully")),
    }
}

/// Asks for who holds what is in somebody's hands. A note about what nobody uses says nothing.
async fn ask(found: &mut Diagnosis) {
    let mut kept = Vec::new();
    for mut finding in std::mem::take(&mut found.findings) {
        let asked = match finding.ask.take() {
            None => None,
            Some(Ask::Device(path)) => Some((planes::block::holders_at(Path::new(&path)).await, path)),
            Some(Ask::Sockets(dir)) => Some((guests(Path::new(&dir)).await, dir)),
        };
        match asked {
            Some((Ok(holders), _)) if holders.is_empty() && finding.level == Level::Note => continue,
            Some((Ok(holders), _)) => finding.held_by.extend(holders),
            Some((Err(error), what)) => {
                found.unseen.push(Unseen { host: finding.host.clone(), what: format!("who holds {what}"), why: error.0 });
            }
            None => {}
        }
        kept.push(finding);
    }
    found.findings = kept;
}

async fn guests(dir: &Path) -> Result<Vec<String>, HostError> {
    let shown = |holder: Holder| match holder.pid {
        Some(pid) => format!("process {pid} ({})", holder.command.unwrap_or_default()),
        None => "a process that only root, or its owner, can see".to_owned(),
    };
    Ok(guests_at(dir).await?.into_iter().map(shown).collect())
}
