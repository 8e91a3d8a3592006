//! ZFS: zvols, their snapshots, and our marks on them.
//!
//! A zvol is ours when its user property [`VOLUME`] is set on itself; a value that it inherits is somebody's mistake and
//! counts for nothing. ZFS itself protects no zvol in use: it renames, rolls back and receives into an exported one, and
//! `destroy -r` of one takes the snapshots before it finds that it is busy. So nothing here is recursive, and what destroys
//! looks first who holds the device.

mod change;
mod destroy;
mod look;
mod parse;
mod reserve;

use super::{fault, program};
use crate::{HostError, exec};
use img_storage_model::{Dataset, Guid, Snapshot};
use std::{collections::BTreeMap, ffi::OsStr, path::PathBuf, time::Duration};

pub use change::NewVolume;
pub(in crate::kernel) use change::PASSING;
pub use look::Look;

/// The user property that makes a zvol ours: the identity of its volume.
pub const VOLUME: &str = "img-storage:volume";
/// The user property of a snapshot that was taken on this host: streams do not carry it.
pub const TAKEN: &str = "img-storage:taken";
/// What the names of all our user properties begin with.
pub const OURS: &str = "img-storage:";

/// How long ZFS may take to look: it waits for the pool while that writes a transaction group.
const LOOK: Duration = Duration::from_secs(30);
/// How long it may take to change something small.
const CHANGE: Duration = Duration::from_secs(60);
/// How long it may take to destroy or roll back: it waits for the pool to note everything that is freed.
const DESTROY: Duration = Duration::from_secs(300);

/// A pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Its name.
    pub name: String,
    /// Bytes of its disks; redundancy is not deducted.
    pub size: u64,
    /// Bytes of these that are allocated.
    pub allocated: u64,
    /// Bytes of these that are free.
    pub free: u64,
    /// `ONLINE` when all is well; `DEGRADED`, `FAULTED`, `SUSPENDED` and others.
    pub health: String,
    /// Whether nothing can be written to it.
    pub read_only: bool,
}

/// The room that a dataset has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Bytes in use by it and what lies in it.
    pub used: u64,
    /// Bytes that can still be written, quotas and reservations considered.
    pub available: u64,
}

/// A zvol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zvol {
    /// Its name.
    pub name: Dataset,
    /// Bytes that a guest sees. Nothing while a first stream into it is not complete.
    pub size: Option<u64>,
    /// Bytes of one block.
    pub block_size: Option<u64>,
    /// Bytes of the pool that it takes, snapshots and reservation included.
    pub used: u64,
    /// Bytes that it refers to.
    pub referenced: u64,
    /// Bytes written since its newest snapshot. 0 is the proof that nothing was.
    pub written: u64,
    /// Its identity: another zvol of the same name has another.
    pub guid: Guid,
    /// The transaction group in which it came to be.
    pub created_txg: u64,
    /// Bytes of the pool that are kept for it. Where they are as many as it has, every block of it has its place.
    pub reserved: u64,
    /// With what a stream into it that was cut off can be continued.
    pub resume_token: Option<String>,
    /// Our user properties that are set on itself, by their whole names.
    pub marks: BTreeMap<String, String>,
}

impl Zvol {
    /// The volume that it is of, when it is ours.
    pub fn volume(&self) -> Option<&str> {
        self.marks.get(VOLUME).map(String::as_str)
    }

    /// Whether every block of it has its place in the pool, so that no write to it can meet a full one.
    pub fn is_reserved(&self) -> bool {
        self.size.is_some_and(|size| reserve::holds_all(self.reserved, size))
    }
}

/// A snapshot of a zvol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotFacts {
    /// Its name.
    pub name: Snapshot,
    /// Its identity, the same wherever it was sent.
    pub guid: Guid,
    /// The transaction group it was taken in: the order in time of the snapshots of one zvol.
    pub created_txg: u64,
    /// How many holds it has.
    pub holds: u64,
    /// Bytes written between the snapshot before and this one.
    pub written: u64,
    /// Bytes that it refers to.
    pub referenced: u64,
    /// It has [`TAKEN`]; told by [`Zfs::look`] alone.
    pub taken: bool,
}

/// What somebody may do with a dataset, from `zfs allow`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allowed {
    /// `user NAME`, `group NAME`, `everyone`, or the name of a set of permissions.
    pub who: String,
    /// On which dataset it was said.
    pub on: Dataset,
    /// The permissions, sorted.
    pub permissions: Vec<String>,
}

/// The ZFS of this host.
#[derive(Clone, Debug)]
pub struct Zfs {
    zfs: PathBuf,
    zpool: PathBuf,
    marks: Vec<String>,
}

impl Zfs {
    /// Looks also for these user properties of ours (with their whole names), besides [`VOLUME`].
    pub fn new<'a>(marks: impl IntoIterator<Item = &'a str>) -> Self {
        let mut marks: Vec<String> = marks.into_iter().chain([VOLUME]).map(str::to_owned).collect();
        marks.sort_unstable();
        marks.dedup();
        Self { zfs: program("zfs"), zpool: program("zpool"), marks }
    }

    /// Where the node of a zvol is, once udev has made it.
    pub fn device(name: &Dataset) -> PathBuf {
        PathBuf::from("/dev/zvol").join(name.as_str())
    }

    /// The pools that are imported on this host.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub async fn pools(&self) -> Result<Vec<Pool>, HostError> {
        let lines = self.zpool(&["list", "-Hp", "-o", "size,allocated,free,health,readonly,name"]).await?;
        parse::pools(&lines).map_err(|why| unreadable("the list of pools", &why))
    }

    /// The room of a dataset; nothing when there is none of this name.
    ///
    /// # Errors
    /// When it cannot be told.
    pub async fn room(&self, of: &Dataset) -> Result<Option<Room>, HostError> {
        let asked = self.run(&["list", "-Hp", "-o", "used,available", of.as_str()], LOOK).await;
        let Some(lines) = self.or_absent(of, asked).await? else { return Ok(None) };
        parse::room(&lines).map(Some).map_err(|why| unreadable(of, &why))
    }

    /// The zvols in a dataset, at any depth, with their properties.
    ///
    /// # Errors
    /// When they cannot be listed, as when there is no such dataset.
    pub async fn volumes(&self, below: &Dataset) -> Result<Vec<Zvol>, HostError> {
        let properties = self.properties();
        let lines = self.run(&["get", "-Hp", "-r", "-t", "volume", "-o", FIELDS, &properties, below.as_str()], LOOK).await?;
        parse::volumes(&lines).map_err(|why| unreadable(format_args!("the list of zvols in {below}"), &why))
    }

    /// The zvol of this name; nothing when there is none.
    ///
    /// # Errors
    /// When it cannot be told, and when the name is a file system's.
    pub async fn volume(&self, name: &Dataset) -> Result<Option<Zvol>, HostError> {
        let properties = self.properties();
        let asked = self.run(&["get", "-Hp", "-t", "volume", "-o", FIELDS, &properties, name.as_str()], LOOK).await;
        let Some(lines) = self.or_absent(name, asked).await? else { return Ok(None) };
        let mut found = parse::volumes(&lines).map_err(|why| unreadable(name, &why))?;
        match found.pop() {
            Some(volume) if found.is_empty() => Ok(Some(volume)),
            _ => {
                Err(HostError(format!("{name} is no zvol but something else; img-storage leaves it alone: choose another name")))
            }
        }
    }

    /// The snapshots of a zvol, oldest first; nothing when there is no such zvol.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub async fn snapshots(&self, of: &Dataset) -> Result<Option<Vec<SnapshotFacts>>, HostError> {
        let asked =
            self.run(&["list", "-Hp", "-d", "1", "-t", "snapshot", "-o", SNAPSHOTS, "-s", "createtxg", of.as_str()], LOOK).await;
        let Some(lines) = self.or_absent(of, asked).await? else { return Ok(None) };
        parse::snapshots(&lines).map(Some).map_err(|why| unreadable(format_args!("the list of snapshots of {of}"), &why))
    }

    /// The snapshots of everything in a dataset, at any depth, oldest first.
    ///
    /// # Errors
    /// When they cannot be listed, as when there is no such dataset.
    pub async fn snapshots_below(&self, below: &Dataset) -> Result<Vec<SnapshotFacts>, HostError> {
        let lines = self.run(&["list", "-Hp", "-r", "-t", "snapshot", "-o", SNAPSHOTS, below.as_str()], LOOK).await?;
        parse::snapshots(&lines).map_err(|why| unreadable(format_args!("the list of snapshots in {below}"), &why))
    }

    /// The tags by which a snapshot is held.
    ///
    /// # Errors
    /// When it cannot be told, as when there is no such snapshot.
    pub async fn holds(&self, snapshot: &Snapshot) -> Result<Vec<String>, HostError> {
        let lines = self.run(&["holds", "-H", &snapshot.to_string()], LOOK).await?;
        parse::holds(&lines).map_err(|why| unreadable(format_args!("the list of holds of {snapshot}"), &why))
    }

    /// Bytes written to a zvol since this snapshot of it.
    ///
    /// # Errors
    /// When it cannot be told, as when there is no such snapshot.
    pub async fn written_since(&self, snapshot: &Snapshot) -> Result<u64, HostError> {
        let property = format!("written@{}", snapshot.name());
        let text = self.run(&["get", "-Hp", "-o", "value", &property, snapshot.dataset().as_str()], LOOK).await?;
        text.trim().parse().map_err(|_| unreadable(format_args!("what was written since {snapshot}"), text.trim()))
    }

    /// Whether a zvol is shown to hold what its snapshot holds: a stream of the difference has nothing in it. Nothing, where that cannot be told:
    /// somebody has the zvol open, or ZFS has not made its device, which it does when it has put the log into it. While this looks,
    /// which takes a moment, nobody else can open it.
    pub async fn is_as(&self, snapshot: &Snapshot) -> Option<bool> {
        let of = snapshot.dataset();
        if !Self::device(of).exists() {
            return None;
        }
        let stream = exec::run(&self.zfs, &["send", "-i", &snapshot.to_string(), of.as_str()], LOOK).await.ok()?;
        Some(!stream.truncated && parse::changes_nothing(&stream.stdout))
    }

    /// Who may do what with a dataset, besides root: what was said on it and on what it lies in.
    ///
    /// # Errors
    /// When it cannot be told.
    pub async fn allowed(&self, on: &Dataset) -> Result<Vec<Allowed>, HostError> {
        let lines = self.run(&["allow", on.as_str()], LOOK).await?;
        Ok(parse::allowed(&lines))
    }

    fn properties(&self) -> String {
        let native = [
            "volsize",
            "volblocksize",
            "used",
            "referenced",
            "written",
            "guid",
            "createtxg",
            "refreservation",
            "receive_resume_token",
        ];
        native.into_iter().chain(self.marks.iter().map(String::as_str)).collect::<Vec<_>>().join(",")
    }

    /// Tells a dataset that is not there from one that could not be looked at: when the look failed, what it would lie in is listed.
    async fn or_absent(&self, name: &Dataset, asked: Result<String, HostError>) -> Result<Option<String>, HostError> {
        let error = match asked {
            Ok(text) => return Ok(Some(text)),
            Err(error) => error,
        };
        if self.exists(name).await? { Err(error) } else { Ok(None) }
    }

    /// The names of a dataset and of what lies right in it.
    async fn children(&self, of: &Dataset) -> Result<Vec<String>, HostError> {
        let args = ["list", "-H", "-o", "name", "-d", "1", "-t", "filesystem,volume", of.as_str()];
        Ok(self.run(&args, LOOK).await?.lines().map(str::to_owned).collect())
    }

    /// Whether there is a dataset of this name, whatever it is.
    async fn exists(&self, name: &Dataset) -> Result<bool, HostError> {
        let Some(mut place) = name.parent() else {
            return Ok(self.pools().await?.iter().any(|pool| pool.name == name.as_str()));
        };
        loop {
            match self.children(&place).await {
                Ok(all) => return Ok(all.iter().any(|line| line == name.as_str())),
                Err(error) => match place.parent() {
                    // What it would lie in may not be there either.
                    Some(parent) if !Box::pin(self.exists(&place)).await? => place = parent,
                    None if !Box::pin(self.exists(&place)).await? => {
                        return Err(fault(
                            format_args!("cannot look for {name}"),
                            format_args!("the pool {place} is not imported on this host"),
                            "import it with zpool import",
                        ));
                    }
                    _ => return Err(error),
                },
            }
        }
    }

    async fn run<A: AsRef<OsStr>>(&self, args: &[A], deadline: Duration) -> Result<String, HostError> {
        output(exec::run(&self.zfs, args, deadline).await)
    }

    async fn zpool(&self, args: &[&str]) -> Result<String, HostError> {
        output(exec::run(&self.zpool, args, LOOK).await)
    }
}

/// The columns that [`parse::snapshots`] reads.
const SNAPSHOTS: &str = "guid,createtxg,userrefs,written,referenced,name";
/// The columns that [`parse::volumes`] reads.
const FIELDS: &str = "name,property,value,source";

fn output(ended: Result<exec::Output, exec::ExecError>) -> Result<String, HostError> {
    let output = ended.map_err(|error| HostError(error.to_string()))?;
    if output.truncated {
        return Err(HostError("ZFS printed more than can be kept; are there millions of snapshots?".to_owned()));
    }
    String::from_utf8(output.stdout).map_err(|_| HostError("ZFS printed what is no UTF-8".to_owned()))
}

fn unreadable(what: impl std::fmt::Display, why: &str) -> HostError {
    HostError(format!("{what} cannot be understood: {why}"))
}
