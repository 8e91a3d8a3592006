//! Making and changing zvols and snapshots.

use super::{CHANGE, DESTROY, OURS, SnapshotFacts, TAKEN, VOLUME, Zfs, Zvol};
use crate::{
    HostError, exec,
    kernel::{
        block::{self, Number},
        until,
    },
};
use img_storage_model::{Dataset, Guid, Snapshot};
use std::time::Duration;

/// How long udev may take to make the node of a zvol; on a loaded host it is behind by seconds.
const NODE: Duration = Duration::from_secs(30);

/// How long somebody may hold a device who only passes by.
pub(in crate::kernel) const PASSING: Duration = Duration::from_secs(3);

/// What a zvol is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewVolume {
    /// Bytes; a multiple of the block size.
    pub size: u64,
    /// Whether it takes only the room that is written. Otherwise all of it is reserved.
    pub sparse: bool,
    /// Bytes of one block, a power of two; it can never be changed. 16 KiB when not given.
    pub block_size: Option<u64>,
    /// The identity of the volume, for [`VOLUME`].
    pub volume: String,
    /// More marks: user properties of ours by their whole names.
    pub marks: Vec<(String, String)>,
}

/// Small differences and fast merges; see the notes on the kernel plane for the measurements.
const BLOCK_SIZE: u64 = 16 << 10;

impl Zfs {
    /// Makes a zvol with its marks, in one step. Its snapshots get no device nodes, and its partitions neither.
    ///
    /// # Errors
    /// When it cannot be made, or is there and has another volume's mark, or none, or another size.
    pub async fn create(&self, name: &Dataset, new: &NewVolume) -> Result<(), HostError> {
        let block = format!("volblocksize={}", new.block_size.unwrap_or(BLOCK_SIZE));
        let size = new.size.to_string();
        let mark = format!("{VOLUME}={}", new.volume);
        let mut args = vec!["create", "-V", &size, "-o", &block, "-o", "snapdev=hidden", "-o", "volmode=dev", "-o", &mark];
        if new.sparse {
            args.push("-s");
        }
        let marks: Vec<String> =
            new.marks.iter().map(|(key, value)| our(key).map(|key| format!("{key}={value}"))).collect::<Result<_, _>>()?;
        for mark in &marks {
            args.extend(["-o", mark]);
        }
        args.push(name.as_str());
        let Err(error) = self.run(&args, CHANGE).await else { return Ok(()) };
        match self.volume(name).await? {
            Some(found) if found.volume() != Some(&new.volume) => Err(HostError(format!(
                "{name} is there already and is not of the volume {} ({}); it is left alone",
                new.volume,
                found.volume().map_or_else(|| "it has no mark of ours".to_owned(), |id| format!("it is of the volume {id}"))
            ))),
            Some(found) if found.size != Some(new.size) => Err(HostError(format!(
                "{name} is there already with {:?} bytes instead of {}; destroy or grow it first",
                found.size, new.size
            ))),
            Some(_) => Ok(()),
            None => Err(error),
        }
    }

    /// Waits for the node of a zvol, which is not there yet when ZFS says that the zvol is.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn wait_for_device(&self, name: &Dataset) -> Result<Number, HostError> {
        let path = Self::device(name);
        let found = until(NODE, || {
            let path = path.clone();
            async move { block::number(&path) }
        });
        found.await?.ok_or_else(|| {
            HostError(format!(
                "{} is not there {NODE:?} after the zvol was; does udev run, and is volmode of {name} `dev`?",
                path.display()
            ))
        })
    }

    /// Ends the transaction group: everything that was written to the pool is on stable storage, and counted.
    ///
    /// # Errors
    /// When it did not end.
    pub async fn sync(&self, of: &Dataset) -> Result<(), HostError> {
        let (pool, _) = of.as_str().split_once('/').unwrap_or((of.as_str(), ""));
        super::output(exec::run(&self.zpool, &["sync", pool], CHANGE).await).map(drop)
    }

    /// Takes a snapshot, with the mark [`TAKEN`]; nothing to do when there is one of this name.
    ///
    /// # Errors
    /// When there is none afterwards.
    pub async fn snapshot(&self, snapshot: &Snapshot) -> Result<(), HostError> {
        let mark = format!("{TAKEN}=here");
        let Err(error) = self.run(&["snapshot", "-o", &mark, &snapshot.to_string()], CHANGE).await else { return Ok(()) };
        self.find_snapshot(snapshot).await?.map(drop).ok_or(error)
    }

    /// One snapshot; nothing when it, or its zvol, is not there.
    ///
    /// # Errors
    /// When it cannot be told.
    pub async fn find_snapshot(&self, snapshot: &Snapshot) -> Result<Option<SnapshotFacts>, HostError> {
        Ok(self.snapshots(snapshot.dataset()).await?.and_then(|all| all.into_iter().find(|found| found.name == *snapshot)))
    }

    /// Holds a snapshot by a tag: nobody can destroy it until it is released.
    ///
    /// # Errors
    /// When it is not held afterwards.
    pub async fn hold(&self, snapshot: &Snapshot, tag: &str) -> Result<(), HostError> {
        let Err(error) = self.run(&["hold", tag, &snapshot.to_string()], CHANGE).await else { return Ok(()) };
        if self.holds(snapshot).await?.iter().any(|held| held == tag) { Ok(()) } else { Err(error) }
    }

    /// Releases our hold by this tag; nothing to do when there is none, or no such snapshot.
    ///
    /// # Errors
    /// When it is still held by the tag.
    pub async fn release(&self, snapshot: &Snapshot, tag: &str) -> Result<(), HostError> {
        let Err(error) = self.run(&["release", tag, &snapshot.to_string()], CHANGE).await else { return Ok(()) };
        if self.find_snapshot(snapshot).await?.is_none_or(|found| found.holds == 0) {
            return Ok(());
        }
        if self.holds(snapshot).await?.iter().any(|held| held == tag) { Err(error) } else { Ok(()) }
    }

    /// Sets a user property of ours on a zvol itself.
    ///
    /// # Errors
    /// When it is not set afterwards.
    pub async fn set(&self, name: &Dataset, property: &str, value: &str) -> Result<(), HostError> {
        let assignment = format!("{}={value}", our(property)?);
        self.run(&["set", &assignment, name.as_str()], CHANGE).await.map(drop)
    }

    /// Removes a user property of ours from a zvol.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub async fn unset(&self, name: &Dataset, property: &str) -> Result<(), HostError> {
        self.run(&["inherit", our(property)?, name.as_str()], CHANGE).await.map(drop)
    }

    /// Makes a zvol larger, while it is in use or not; nothing to do when it has this size.
    ///
    /// # Errors
    /// When it would become smaller, or does not have the size afterwards.
    pub async fn grow(&self, name: &Dataset, size: u64) -> Result<(), HostError> {
        let have = self.must(name).await?.size;
        match have {
            Some(have) if have == size => return Ok(()),
            Some(have) if have > size => {
                return Err(HostError(format!(
                    "{name} has {have} bytes and cannot be made smaller, to {size}: what is beyond would be lost"
                )));
            }
            _ => {}
        }
        let done = self.run(&["set", &format!("volsize={size}"), name.as_str()], CHANGE).await;
        match self.must(name).await?.size {
            Some(now) if now == size => Ok(()),
            now => Err(done.err().unwrap_or_else(|| HostError(format!("{name} has {now:?} bytes instead of {size}")))),
        }
    }

    /// Gives a zvol another name in the same pool. The guid says which one is meant: repeated after it was done, it sees so.
    ///
    /// # Errors
    /// When the zvol does not have the name afterwards.
    pub async fn rename(&self, from: &Dataset, to: &Dataset, guid: Guid) -> Result<(), HostError> {
        let done = match self.volume(from).await? {
            Some(found) if found.guid == guid => self.run(&["rename", from.as_str(), to.as_str()], CHANGE).await.map(drop),
            _ => Ok(()),
        };
        match self.volume(to).await? {
            Some(found) if found.guid == guid => Ok(()),
            found => Err(done.err().unwrap_or_else(|| {
                HostError(format!(
                    "{from} cannot be renamed to {to}: the zvol {guid} is under neither name{}",
                    found.map_or_else(String::new, |other| format!(", and {to} is the zvol {}", other.guid))
                ))
            })),
        }
    }

    /// Puts a zvol back to its newest snapshot, which has to be this one: what was written since is lost, which is for the
    /// caller to know. Nobody may have the device open.
    ///
    /// # Errors
    /// When there are newer snapshots (they are destroyed by nothing here), when the device is in use, or when it failed.
    pub async fn rollback(&self, snapshot: &Snapshot, guid: Guid) -> Result<(), HostError> {
        let name = snapshot.dataset();
        let all = self.snapshots(name).await?.unwrap_or_default();
        match all.last() {
            Some(newest) if newest.name == *snapshot && newest.guid == guid => {}
            newest => {
                return Err(HostError(format!(
                    "{name} cannot be put back to {snapshot} ({guid}): its newest snapshot is {}",
                    newest.map_or_else(|| "none".to_owned(), |newest| format!("{} ({})", newest.name, newest.guid))
                )));
            }
        }
        self.refuse_in_use(name, "put back").await?;
        self.run(&["rollback", &snapshot.to_string()], DESTROY).await?;
        match self.must(name).await?.written {
            0 => Ok(()),
            // That can be bookkeeping of the zvol's log.
            _ if self.is_as(snapshot).await == Some(true) => Ok(()),
            written => Err(HostError(format!(
                "{written} bytes were written to {name} after it was put back to {snapshot}; who uses it?"
            ))),
        }
    }

    /// Drops what a stream that was cut off has brought, so that another one can begin; nothing to do where there is nothing.
    ///
    /// # Errors
    /// When it is still there.
    pub async fn discard_partial(&self, name: &Dataset) -> Result<(), HostError> {
        if self.volume(name).await?.is_none_or(|volume| volume.resume_token.is_none()) {
            return Ok(());
        }
        let done = self.run(&["receive", "-A", name.as_str()], DESTROY).await;
        match self.volume(name).await? {
            Some(left) if left.resume_token.is_some() => {
                Err(done.err().unwrap_or_else(|| HostError(format!("the partial stream in {name} does not go away"))))
            }
            _ => Ok(()),
        }
    }

    pub(super) async fn must(&self, name: &Dataset) -> Result<Zvol, HostError> {
        self.volume(name).await?.ok_or_else(|| HostError(format!("there is no zvol {name} on this host")))
    }

    /// Says who holds the device of a zvol, if anybody does.
    pub(in crate::kernel) async fn refuse_in_use(&self, name: &Dataset, what: &str) -> Result<(), HostError> {
        let path = Self::device(name);
        let Some(number) = block::number(&path)? else { return Ok(()) };
        // udev has a look at a device now and then, and is soon done.
        let free = until(PASSING, || async move { Ok(block::holders(number).await?.is_empty().then_some(())) }).await?;
        let holders = if free.is_some() { Vec::new() } else { block::holders(number).await? };
        if holders.is_empty() {
            return Ok(());
        }
        let held: Vec<String> = holders.iter().map(ToString::to_string).collect();
        Err(HostError(format!("{name} is not {what} because it is in use: {}; end that first", held.join(", "))))
    }
}

pub(super) fn our(property: &str) -> Result<&str, HostError> {
    let fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.:".contains(c);
    if property.starts_with(OURS) && property.chars().all(fine) {
        return Ok(property);
    }
    Err(HostError(format!(
        "{property:?} is no user property of ours: those begin with {OURS:?} and have small letters and digits"
    )))
}
