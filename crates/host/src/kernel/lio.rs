//! The kernel's iSCSI target (LIO), by its configfs: exports of block devices, each to one initiator.
//!
//! An export is a backstore over a device, and a target with one portal group, one LUN and one ACL. It is ours when the target's
//! name and the backstore's begin with our prefixes; nothing else is touched. All our backstores are under one adapter
//! ([`ADAPTER`]), so that looking at or making an export costs the same however many there are.
//!
//! Who is let in is fixed before the portal group is enabled: only the initiator with an ACL, and only by CHAP. An export made
//! again for another initiator, or with other credentials, first puts the one before out: its session ends when its ACL goes.

mod build;
mod facts;
mod teardown;

pub use facts::{Acl, Backstore, Login, Lun, Target, backstores_on};

use super::{blocking, fault};
use crate::HostError;
use std::{
    fmt, fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

/// Where the kernel shows it, once `target_core_mod` is loaded and configfs is mounted.
pub const ROOT: &str = "/sys/kernel/config/target";
/// The adapter our backstores are under. The number is far from those that targetcli gives out, which counts from 0.
pub const ADAPTER: &str = "iblock_7300";

/// How long a look may take.
const LOOK: Duration = Duration::from_secs(15);
/// How long making an export may take; it opens the device.
const MAKE: Duration = Duration::from_secs(30);
/// How long taking one away may take: the kernel waits for what a session has under way.
const TAKE_AWAY: Duration = Duration::from_secs(60);

/// What is to be exported, and to whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// The name of the backstore, with our prefix.
    pub backstore: String,
    /// The device.
    pub device: PathBuf,
    /// The serial number that the initiator is to see (VPD page 0x80), by which it knows the disk.
    pub serial: String,
    /// The target's name, with our prefix.
    pub target: String,
    /// Where it listens.
    pub portals: Vec<SocketAddr>,
    /// The one initiator that is let in.
    pub initiator: String,
    /// How it shows that it is the one.
    pub chap: Chap,
}

/// A user and password for CHAP. The password is not shown by `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Chap {
    /// At most 255 bytes; none of them white space.
    pub user: String,
    /// 12 to 16 bytes for initiators that keep to the book; none of them white space.
    pub password: String,
}

impl fmt::Debug for Chap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Chap({}, …)", self.user)
    }
}

/// The iSCSI target of this host, and what of it is ours.
#[derive(Clone, Debug)]
pub struct Lio {
    root: PathBuf,
    targets: String,
    backstores: String,
}

impl Lio {
    /// Targets whose names begin with `targets` and backstores whose names begin with `backstores` are ours. `root` is [`ROOT`],
    /// but in tests.
    pub fn new(root: impl Into<PathBuf>, targets: impl Into<String>, backstores: impl Into<String>) -> Self {
        Self { root: root.into(), targets: targets.into(), backstores: backstores.into() }
    }

    /// Whether this host has the kernel's target and its iSCSI side, both ready to use.
    ///
    /// # Errors
    /// Saying what is missing and how to get it.
    pub async fn ready(&self) -> Result<(), HostError> {
        let lio = self.clone();
        let work = move || match fs::symlink_metadata(lio.root.join("iscsi")) {
            Ok(_) => Ok(()),
            // The directory is made by who uses it; that loads the module.
            Err(_) => make_dir(&lio.root.join("iscsi")).map_err(|why| {
                let next = "load target_core_mod and iscsi_target_mod (modprobe) and mount configfs at /sys/kernel/config";
                fault("this host has no iSCSI target", why, next)
            }),
        };
        blocking("cannot look for the iSCSI target of this host", LOOK, work).await
    }

    /// Everything of ours: whole exports and what was left of half ones.
    ///
    /// # Errors
    /// When it cannot be told.
    pub async fn list(&self) -> Result<(Vec<Target>, Vec<Backstore>), HostError> {
        let lio = self.clone();
        blocking("cannot list the exports of this host", LOOK, move || lio.read_all("")).await
    }

    /// What of ours has `part` in its name. The others are not looked into, so that this costs the same however many there are.
    ///
    /// # Errors
    /// When it cannot be told.
    pub async fn of(&self, part: &str) -> Result<(Vec<Target>, Vec<Backstore>), HostError> {
        let (lio, wanted) = (self.clone(), part.to_owned());
        blocking(format!("cannot look for the exports of {part}"), LOOK, move || lio.read_all(&wanted)).await
    }

    /// The target of this name; nothing when there is none.
    ///
    /// # Errors
    /// When it cannot be told.
    pub async fn target(&self, name: &str) -> Result<Option<Target>, HostError> {
        let (lio, name) = (self.clone(), name.to_owned());
        blocking(format!("cannot look at the target {name}"), LOOK, move || lio.read_target(&name)).await
    }

    /// The backstore of ours of this name; nothing when there is none.
    ///
    /// # Errors
    /// When it cannot be told.
    pub async fn backstore(&self, name: &str) -> Result<Option<Backstore>, HostError> {
        let (lio, name) = (self.clone(), name.to_owned());
        blocking(format!("cannot look at the backstore {name}"), LOOK, move || lio.read_backstore(&name)).await
    }

    /// Makes an export, or completes it, or changes who is let in. When this returns, the initiator can log in, and no other can: a
    /// session of another initiator, or with other credentials, was ended before.
    ///
    /// # Errors
    /// Naming what is in the way: a backstore over another device or with another serial is not changed while it stands
    /// ([`Lio::withdraw`] first).
    pub async fn export(&self, export: &Export) -> Result<(), HostError> {
        self.refuse_foreign(&export.target, &export.backstore)?;
        let (lio, export) = (self.clone(), export.clone());
        blocking(format!("cannot export {} as {}", export.device.display(), export.target), MAKE, move || lio.build(&export))
            .await
    }

    /// Locks everybody out of a target and ends their sessions; the export itself stays. The fence before a new epoch.
    ///
    /// # Errors
    /// When somebody may still be in.
    pub async fn lock_out(&self, target: &str) -> Result<(), HostError> {
        self.refuse_foreign(target, &self.backstores)?;
        let (lio, target) = (self.clone(), target.to_owned());
        blocking(format!("cannot lock out the sessions of {target}"), TAKE_AWAY, move || lio.shut(&target)).await
    }

    /// Takes an export away, whole or half-made; nothing to do when there is none. Sessions are ended first.
    ///
    /// # Errors
    /// Naming what of it is left.
    pub async fn withdraw(&self, target: &str, backstore: &str) -> Result<(), HostError> {
        self.refuse_foreign(target, backstore)?;
        let (lio, target, backstore) = (self.clone(), target.to_owned(), backstore.to_owned());
        blocking(format!("cannot take the export {target} away"), TAKE_AWAY, move || lio.take_away(&target, &backstore)).await
    }

    fn refuse_foreign(&self, target: &str, backstore: &str) -> Result<(), HostError> {
        let one_word = |name: &str| !name.contains('/') && !name.chars().any(|c| c.is_whitespace() || c.is_control());
        for (kind, name, prefix) in [("target", target, &self.targets), ("backstore", backstore, &self.backstores)] {
            if prefix.is_empty() || !name.starts_with(prefix.as_str()) || !one_word(name) {
                return Err(HostError(format!(
                    "the {kind} {name:?} is not ours: names of ours begin with {prefix:?}; it is left alone"
                )));
            }
        }
        Ok(())
    }

    fn target_dir(&self, target: &str) -> PathBuf {
        self.root.join("iscsi").join(target)
    }

    fn group_dir(&self, target: &str) -> PathBuf {
        self.target_dir(target).join("tpgt_1")
    }

    fn backstore_dir(&self, name: &str) -> PathBuf {
        self.root.join("core").join(ADAPTER).join(name)
    }
}

fn make_dir(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(why) if why.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

/// The kernel's way of writing a portal, in the names of directories.
fn portal_name(portal: &SocketAddr) -> String {
    portal.to_string()
}
