//! The lab: three virtual machines with the kernel's own storage, on this machine, in a network that nobody else sees.
//!
//! A [`Lab`] is an image ([`image`], kept in a [`cache`]), a [`namespace`] in which everything runs, and the guests `nas`, `node1`
//! and `node2` ([`guest`]), each with a disk for its root and one for a pool ([`disk`]), with the program under test and keys on
//! a third ([`ship`]). Commands go in by [`ssh`], orders to QEMU by [`qmp`]. `tests/tests/lab` has the scenarios, `cargo xtask lab`
//! is for hand work, `docs/testing.md` says how to use it.

pub mod accelerator;
pub mod cache;
pub mod cluster;
pub mod disk;
pub mod guest;
pub mod image;
pub mod namespace;
pub mod qmp;
pub mod ship;
pub mod ssh;

pub use guest::Guest;
pub use ssh::Output;

use crate::broker::Place;
use accelerator::Accelerator;
use anyhow::{Context as _, ensure};
use image::Image;
use namespace::Namespace;
use rustix::fs::{FlockOperation, flock};
use serde_json::json;
use std::{
    fs::{self, File},
    io::ErrorKind,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::Arc,
};

/// The guests' names.
pub const GUESTS: [&str; 3] = ["nas", "node1", "node2"];
/// What the machine that runs the lab is called in its networks.
pub const HOST: &str = "host";
/// How the directories of labs are called.
const PREFIX: &str = "img-storage-lab-";
/// What in a lab's directory says what is needed to find it again.
const STATE: &str = "lab.json";

/// Where somebody is in one of the two networks. They are the same in every lab: each has its own.
pub fn address(net: &str, name: &str) -> String {
    let subnet = if net == "data" { 77 } else { 78 };
    let last = GUESTS.iter().position(|guest| *guest == name).map_or(1, |index| index + 2);
    format!("10.{subnet}.0.{last}")
}

/// What all guests of a lab have in common.
pub struct Setting {
    image: Image,
    namespace: Namespace,
    /// Disks, sockets and keys; short, because of the sockets.
    dir: PathBuf,
    /// Consoles.
    logs: PathBuf,
    accelerator: Accelerator,
    processors: u32,
    /// In MiB.
    memory: u32,
}

/// How a lab is made.
#[derive(Debug)]
pub struct Options {
    /// The program that the guests get; none is there without.
    pub program: Option<PathBuf>,
    /// Where consoles are written.
    pub logs: PathBuf,
    /// It stays when its maker ends, until [`Lab::down`].
    pub stay: bool,
}

/// Three guests that run.
pub struct Lab {
    guests: [Guest; 3],
    setting: Arc<Setting>,
    stay: bool,
}

impl Lab {
    /// Makes a lab and starts its guests, from nothing: fresh disks, fresh keys.
    ///
    /// # Errors
    /// When something is missing on this machine, or a guest does not start.
    pub async fn up(options: &Options) -> anyhow::Result<Self> {
        sweep();
        let image = tokio::task::spawn_blocking(Image::ensure).await??;
        fs::create_dir_all(&options.logs)?;
        let dir = tempfile::Builder::new().prefix(PREFIX).tempdir_in("/var/tmp")?;
        let namespace = Namespace::new(&dir.path().join("lock"))?;
        namespace.network().await?;
        let accelerator = Accelerator::of_this_machine(&image, &namespace).await;
        ship::make(dir.path(), options.program.as_deref())?;
        let setting = Setting {
            image,
            namespace,
            dir: dir.path().to_owned(),
            logs: options.logs.canonicalize()?,
            accelerator,
            // Six emulated processors on two real ones wait for each other.
            processors: number("IMG_STORAGE_LAB_PROCESSORS", 1),
            memory: number("IMG_STORAGE_LAB_MEMORY", 1024),
        };
        // Until it is up it ends with this function, whatever happens.
        let mut lab = Self::of(setting, false);
        // From here on it is the lab's own, to be removed with it.
        let _ = dir.keep();
        lab.remember()?;
        lab.start().await?;
        if options.stay {
            lab.setting.namespace.stay()?;
            lab.stay = true;
        }
        Ok(lab)
    }

    fn of(setting: Setting, stay: bool) -> Self {
        let setting = Arc::new(setting);
        Lab { guests: GUESTS.map(|name| Guest::new(name, setting.clone())), setting, stay }
    }

    async fn start(&self) -> anyhow::Result<()> {
        for guest in &self.guests {
            let _ = fs::remove_file(guest.console());
            guest.create_disks()?;
        }
        let [nas, node1, node2] = &self.guests;
        tokio::try_join!(nas.start(), node1.start(), node2.start())?;
        Ok(())
    }

    /// Writes down what [`Lab::attach`] needs.
    fn remember(&self) -> anyhow::Result<()> {
        let Setting { image, namespace, dir, logs, accelerator, processors, memory } = &*self.setting;
        let (first, started) = namespace.identity();
        let state = json!({"image": image.dir, "emulator": image.emulator, "first": first, "started": started, "logs": logs,
            "kvm": *accelerator == Accelerator::Kvm, "processors": processors, "memory": memory});
        Ok(fs::write(dir.join(STATE), state.to_string())?)
    }

    /// The lab in this directory, made by another program.
    ///
    /// # Errors
    /// When there is none, or it has ended.
    pub fn attach(dir: &Path) -> anyhow::Result<Self> {
        let path = dir.join(STATE);
        let state: serde_json::Value =
            serde_json::from_slice(&fs::read(&path).with_context(|| format!("reading {}", path.display()))?)?;
        let text =
            |name: &str| state[name].as_str().map(PathBuf::from).with_context(|| format!("{} has no {name}", path.display()));
        let whole = |name: &str| state[name].as_u64().with_context(|| format!("{} has no {name}", path.display()));
        let setting = Setting {
            image: Image { dir: text("image")?, emulator: text("emulator")? },
            namespace: Namespace::of(whole("first")?.try_into()?, whole("started")?)?,
            dir: dir.to_owned(),
            logs: text("logs")?,
            accelerator: if state["kvm"] == true { Accelerator::Kvm } else { Accelerator::Emulation },
            processors: whole("processors")?.try_into()?,
            memory: whole("memory")?.try_into()?,
        };
        Ok(Self::of(setting, true))
    }

    /// A guest.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn guest(&self, name: &str) -> anyhow::Result<&Guest> {
        let found = self.guests.iter().find(|guest| guest.name() == name);
        found.with_context(|| format!("there is no guest {name}; there are {}", GUESTS.join(", ")))
    }

    /// All guests: the NAS first.
    pub fn guests(&self) -> &[Guest; 3] {
        &self.guests
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.setting.dir
    }

    /// Where its consoles are.
    pub fn logs(&self) -> &Path {
        &self.setting.logs
    }

    /// How its guests are run.
    pub fn accelerator(&self) -> Accelerator {
        self.setting.accelerator
    }

    /// The namespace in which it runs.
    pub fn namespace(&self) -> &Namespace {
        &self.setting.namespace
    }

    /// Where a broker runs that the guests reach, by the name `host`.
    pub fn broker_place(&self) -> Place {
        // RabbitMQ looks itself up in /proc, by the number that it has in the namespace.
        let mut wrapper = self.setting.namespace.words();
        wrapper.extend(["unshare", "--mount-proc"].map(str::to_owned));
        Place { wrapper, address: Ipv4Addr::new(10, 77, 0, 1), name: HOST.to_owned() }
    }

    /// Ends it, as by a power cut, and removes its disks.
    ///
    /// # Errors
    /// When a process does not end.
    pub fn down(self) -> anyhow::Result<()> {
        self.setting.namespace.end()?;
        remove(&self.setting.dir)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !self.stay {
            let _ = self.setting.namespace.end();
            let _ = remove(&self.setting.dir);
        }
    }
}

fn remove(dir: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error).with_context(|| format!("removing {}", dir.display())),
        _ => Ok(()),
    }
}

/// Removes the directories of labs whose processes are gone: whoever made them was killed.
fn sweep() {
    for entry in fs::read_dir("/var/tmp").into_iter().flatten().flatten() {
        let ours = entry.file_name().to_string_lossy().starts_with(PREFIX);
        // A lab's first process holds the lock for as long as it lives; one that is being made has no lock yet.
        let Some(lock) = ours.then(|| File::open(entry.path().join("lock")).ok()).flatten() else { continue };
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn number(variable: &str, default: u32) -> u32 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Fails unless this machine can run a lab; says what it cannot.
///
/// # Errors
/// When it is not root, or has no taps.
pub fn possible() -> anyhow::Result<()> {
    ensure!(rustix::process::geteuid().is_root(), "the lab needs root, for namespaces, bridges and taps: sudo cargo xtask …");
    ensure!(fs::exists("/dev/net/tun")?, "the lab needs /dev/net/tun, for the guests' network; load the module tun");
    // A sandbox may have the device and not the right to use it.
    let words = ["--net", "--pid", "--fork", "ip", "tuntap", "add", "dev", "lab-try", "mode", "tap"];
    let tried = std::process::Command::new("unshare").args(words).output().context("starting unshare")?;
    let said = String::from_utf8_lossy(&tried.stderr);
    ensure!(tried.status.success(), "no tap can be made in a namespace here, which the guests' network needs: {}", said.trim());
    Ok(())
}
