//! device-mapper: the device a guest has, which stays the same while what lies under it changes.
//!
//! A device is ours when its UUID has our prefix. All of ours have one target that covers them whole, so a table is one
//! [`Layer`]. Devices are named by number everywhere: a number means one device as long as it is held, a path may come to mean
//! another.
//!
//! A daemon that dies between suspending and resuming leaves a guest hanging; [`State::suspended`] and [`State::pending`] show
//! it. Where the tables allow it ([`Order::LoadFirst`]) a swap therefore does not suspend in a step of its own: to resume a running
//! device that has a table pending is one call to the kernel, which suspends, swaps and resumes.

mod cow;
mod cut;
mod parse;
mod spot;
mod swap;

pub use cow::has_writes;
pub use spot::{Count, Spot};
pub use swap::{Order, Swapped};

use super::{block::Number, program, until};
use crate::{HostError, exec};
use std::{ffi::OsStr, fmt, path::PathBuf, time::Duration};

/// How long device-mapper may take to look.
const LOOK: Duration = Duration::from_secs(15);
/// How long it may take to change something: a suspend waits for what the guest has under way, and that for a slow NAS.
const CHANGE: Duration = Duration::from_secs(60);

/// What lies under a device of ours, all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// The device itself.
    Linear {
        /// Over this, from its beginning.
        device: Number,
    },
    /// Reads what was not written since from `origin`; writes go to `overlay`. Survives a reboot (`P`).
    Snapshot {
        /// What is under it.
        origin: Number,
        /// Where writes go.
        overlay: Number,
        /// How much is copied up for a write, in sectors; what the overlay was made with counts more.
        chunk: u32,
    },
    /// As a snapshot, while the overlay is put into `origin`.
    SnapshotMerge {
        /// What is under it, and is written.
        origin: Number,
        /// What is merged.
        overlay: Number,
        /// As with the snapshot.
        chunk: u32,
    },
}

impl Layer {
    /// The table of a device of `sectors`.
    fn table(&self, sectors: u64) -> String {
        match self {
            Self::Linear { device } => format!("0 {sectors} linear {device} 0"),
            Self::Snapshot { origin, overlay, chunk } => format!("0 {sectors} snapshot {origin} {overlay} P {chunk}"),
            Self::SnapshotMerge { origin, overlay, chunk } => format!("0 {sectors} snapshot-merge {origin} {overlay} P {chunk}"),
        }
    }
}

/// What lies under a device, as its live table says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Table {
    /// One layer over the whole device.
    Layer {
        /// Which.
        layer: Layer,
        /// Bytes.
        size: u64,
    },
    /// None: the device was made and never got one. I/O on it fails.
    None,
    /// Something that we do not make; the lines of the table.
    Other(String),
}

/// How far an overlay is used, or merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overlay {
    /// In order.
    Used {
        /// Sectors in use, its own bookkeeping among them.
        allocated: u64,
        /// Sectors it has.
        total: u64,
        /// Sectors of bookkeeping. An overlay being merged is done when as many are allocated, see [`Overlay::is_merged`].
        bookkeeping: u64,
    },
    /// Of no use any more, for good: it was full, or could not be read or written. What was written to it and not merged is lost to
    /// the device.
    Invalid,
    /// Full; the next write makes it invalid.
    Overflow,
    /// Merging stopped at an error. The overlay still has everything.
    MergeFailed,
}

impl Overlay {
    /// Whether there is nothing in it (any more).
    pub fn is_merged(self) -> bool {
        matches!(self, Self::Used { allocated, bookkeeping, .. } if allocated == bookkeeping)
    }
}

/// What is to be seen of a device of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// Its name in `/dev/mapper`.
    pub name: String,
    /// Its UUID, with our prefix.
    pub uuid: String,
    /// Its number.
    pub number: Number,
    /// How many hold it: processes, mounts, devices over it.
    pub open: u32,
    /// Whether it is suspended: everything on it waits. At rest a sign of a daemon killed in the middle.
    pub suspended: bool,
    /// Whether a table was loaded and not taken into use ([`Dm::clear`] drops it). It holds its devices.
    pub pending: bool,
    /// Whether it has a table in use.
    pub live: bool,
    /// Whether it cannot be written.
    pub read_only: bool,
}

/// The device-mapper of this host, and which of its devices are ours.
#[derive(Clone, Debug)]
pub struct Dm {
    program: PathBuf,
    prefix: String,
}

impl Dm {
    /// Devices whose UUID begins with `prefix` are ours; no other is touched.
    pub fn new(prefix: impl Into<String>) -> Self {
        Self { program: program("dmsetup"), prefix: prefix.into() }
    }

    /// Where a device is, from when it is made until it is removed.
    pub fn path(name: &str) -> PathBuf {
        PathBuf::from("/dev/mapper").join(name)
    }

    /// All devices of ours.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub async fn list(&self) -> Result<Vec<State>, HostError> {
        Ok(self.all().await?.into_iter().filter(|state| state.uuid.starts_with(&self.prefix)).collect())
    }

    /// The device of ours with this name; nothing when no device has it.
    ///
    /// # Errors
    /// When it cannot be told, and when a device that is not ours has the name.
    pub async fn find(&self, name: &str) -> Result<Option<State>, HostError> {
        match self.all().await?.into_iter().find(|state| state.name == name) {
            Some(state) if !state.uuid.starts_with(&self.prefix) => Err(self.not_ours(name, &state.uuid)),
            found => Ok(found),
        }
    }

    fn not_ours(&self, name: &str, uuid: &str) -> HostError {
        HostError(format!(
            "the device-mapper device {name} is not ours (its UUID is {uuid:?}); it is left alone: rename it, or choose another name"
        ))
    }

    /// The table in use of a device of ours; nothing when there is no such device.
    ///
    /// # Errors
    /// When it cannot be told.
    pub async fn table(&self, name: &str) -> Result<Option<Table>, HostError> {
        if self.find(name).await?.is_none() {
            return Ok(None);
        }
        self.live_table(name).await.map(Some)
    }

    /// The table in use of a device that was just found.
    ///
    /// # Errors
    /// When it cannot be told.
    pub(super) async fn live_table(&self, name: &str) -> Result<Table, HostError> {
        let lines = self.run(&["table", name], LOOK).await?;
        parse::table(&lines).map_err(|why| HostError(format!("the table of {name} cannot be understood: {why}")))
    }

    /// The table of a device as `dmsetup` prints it, for people.
    ///
    /// # Errors
    /// When it cannot be had.
    pub async fn lines(&self, name: &str) -> Result<String, HostError> {
        Ok(self.run(&["table", name], LOOK).await?.trim().replace('\n', " / "))
    }

    /// How far the overlay of a device is used; nothing when it has none.
    ///
    /// # Errors
    /// When it cannot be told, or there is no such device.
    pub async fn overlay(&self, name: &str) -> Result<Option<Overlay>, HostError> {
        // To flush for the status would wait for the guest.
        let lines = self.run(&["status", "--noflush", name], LOOK).await?;
        parse::overlay(&lines).map_err(|why| HostError(format!("the status of {name} cannot be understood: {why}")))
    }

    /// Makes a device of `size` bytes, if it is not there yet; its node is there when this returns.
    ///
    /// The program makes the node itself, see [`exec`]: udev's links come later, if at all.
    ///
    /// # Errors
    /// When it cannot be made, or is there and is another one or lies over something else.
    pub async fn create(&self, name: &str, uuid: &str, size: u64, layer: &Layer) -> Result<(), HostError> {
        if !uuid.starts_with(&self.prefix) {
            return Err(HostError(format!("{uuid:?} cannot be the UUID of {name}: it does not begin with {:?}", self.prefix)));
        }
        if !name.starts_with(|c: char| c.is_ascii_alphanumeric())
            || !name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
        {
            return Err(HostError(format!(
                "{name:?} cannot be the name of a device: it is made of letters, digits, '.', '_' and '-'"
            )));
        }
        let table = layer.table(sectors(name, size)?);
        let made = self.run(&["create", name, "--uuid", uuid, "--table", &table], CHANGE).await;
        if let Err(error) = made {
            self.is_as_wanted(name, uuid, &table, &Table::Layer { layer: *layer, size }).await?.ok_or(error)?;
        }
        let path = Self::path(name);
        // A node that somebody left may mean another device.
        let is_ours = |number: &super::block::Number| {
            std::fs::read_to_string(format!("/sys/dev/block/{number}/dm/uuid")).is_ok_and(|found| found.trim() == uuid)
        };
        match until(CHANGE, || async { super::block::number(&path).map(|number| number.filter(is_ours)) }).await? {
            Some(number) => {
                spot::have_counted(number);
                Ok(())
            }
            None => Err(HostError(format!("{} does not come up, or is another device; is /dev a devtmpfs?", path.display()))),
        }
    }

    /// Whether a device that could not be made is there already, as it is wanted: nothing when there is none.
    async fn is_as_wanted(&self, name: &str, uuid: &str, table: &str, wanted: &Table) -> Result<Option<()>, HostError> {
        let Some(state) = self.find(name).await? else { return Ok(None) };
        if state.uuid == uuid && !state.live {
            self.complete(name, table).await?;
        }
        match self.live_table(name).await? {
            found if state.uuid == uuid && found == *wanted => Ok(Some(())),
            found => Err(HostError(format!(
                "the device {name} is there, with the UUID {:?} and the table {found:?} instead of {uuid:?} and {wanted:?}; remove it first",
                state.uuid
            ))),
        }
    }

    /// A device that was made by a daemon that died before it got its table.
    async fn complete(&self, name: &str, table: &str) -> Result<(), HostError> {
        self.run(&["load", name, "--table", table], CHANGE).await?;
        self.run(&["resume", name], CHANGE).await.map(drop)
    }

    /// Holds everything on the device; what is under way is waited for. Nothing happens when it is suspended.
    ///
    /// # Errors
    /// When it is not suspended.
    pub async fn suspend(&self, name: &str) -> Result<(), HostError> {
        let done = self.run(&["suspend", name], CHANGE).await;
        self.expect(name, done, |state| state.suspended).await
    }

    /// Loads a table for later; what the device does is not changed by it. See [`Order`] for when that is right.
    ///
    /// # Errors
    /// When it is not pending then.
    pub async fn load(&self, name: &str, size: u64, layer: &Layer) -> Result<(), HostError> {
        let table = layer.table(sectors(name, size)?);
        self.ours(name).await?;
        self.run(&["load", name, "--table", &table], CHANGE).await.map(drop)
    }

    /// Lets a device go on, with the table that is pending if there is one.
    ///
    /// # Errors
    /// When it does not go on.
    pub async fn resume(&self, name: &str) -> Result<(), HostError> {
        let done = self.run(&["resume", name], CHANGE).await;
        self.expect(name, done, |state| !state.suspended && !state.pending).await
    }

    /// Drops a pending table.
    ///
    /// # Errors
    /// When it is still pending.
    pub async fn clear(&self, name: &str) -> Result<(), HostError> {
        let done = self.run(&["clear", name], CHANGE).await;
        self.expect(name, done, |state| !state.pending).await
    }

    /// Removes a device of ours; nothing to do when it is not there. What is open is not removed.
    ///
    /// # Errors
    /// When it is still there; who holds it is told by [`super::block::holders`].
    pub async fn remove(&self, name: &str) -> Result<(), HostError> {
        let Some(state) = self.find(name).await? else { return self.sweep(name).await };
        if state.suspended {
            if state.pending {
                self.clear(name).await?;
            }
            // What waits on it would wait for ever.
            self.resume(name).await?;
        }
        // It is busy for a moment after it was written; the program tries for five seconds.
        let Err(why) = self.run(&["remove", "--retry", name], CHANGE).await else { return self.sweep(name).await };
        match self.find(name).await? {
            None => self.sweep(name).await,
            Some(left) => {
                let holders = super::block::holders(left.number).await.unwrap_or_default();
                let held: Vec<String> = holders.iter().map(ToString::to_string).collect();
                Err(HostError(format!("the device {name} cannot be removed: {why}; held by: {}", list(&held))))
            }
        }
    }

    /// Takes away the node of a device that is gone, as a removal by somebody's hand leaves it: its number may soon be another's.
    async fn sweep(&self, name: &str) -> Result<(), HostError> {
        let path = Self::path(name);
        if path.symlink_metadata().is_err() {
            return Ok(());
        }
        self.run(&["mknodes", name], CHANGE).await?;
        match path.symlink_metadata() {
            Ok(_) => Err(HostError(format!("{} is left although there is no such device; remove it by hand", path.display()))),
            Err(_) => Ok(()),
        }
    }

    async fn ours(&self, name: &str) -> Result<State, HostError> {
        self.find(name).await?.ok_or_else(|| HostError(format!("there is no device-mapper device {name} on this host")))
    }

    /// What counts is what is to be seen, not how the program ended.
    async fn expect(&self, name: &str, done: Result<String, HostError>, good: impl Fn(&State) -> bool) -> Result<(), HostError> {
        let state = self.ours(name).await?;
        match done {
            _ if good(&state) => Ok(()),
            Err(error) => Err(error),
            Ok(_) => Err(HostError(format!("the device {name} is not as it should be: {state:?}"))),
        }
    }

    async fn all(&self) -> Result<Vec<State>, HostError> {
        const FIELDS: &str = "major,minor,open,suspended,tables_loaded,readonly,uuid,name";
        let args = ["info", "--columns", "--noheadings", "--separator", "|", "-o", FIELDS];
        let lines = self.run(&args, LOOK).await?;
        parse::states(&lines).map_err(|why| HostError(format!("the list of device-mapper devices cannot be understood: {why}")))
    }

    async fn run<A: AsRef<OsStr>>(&self, args: &[A], deadline: Duration) -> Result<String, HostError> {
        let output = exec::run(&self.program, args, deadline).await.map_err(|error| HostError(error.to_string()))?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

fn sectors(name: &str, size: u64) -> Result<u64, HostError> {
    if size == 0 || !size.is_multiple_of(super::block::SECTOR) {
        return Err(HostError(format!("the device {name} cannot have {size} bytes: a size is a number of sectors of 512 bytes")));
    }
    Ok(size / super::block::SECTOR)
}

fn list(words: &[String]) -> impl fmt::Display {
    if words.is_empty() { "nobody that can be seen".to_owned() } else { words.join(", ") }
}
