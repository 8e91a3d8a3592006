//! A volume's directory in its pool: `POOL/NAME/{mark, disk.raw, incoming-UUID.qcow2, pending-UUID.qcow2, overlay-EPOCH.qcow2}`.
//!
//! The mark says whose directory it is; the other names say what each file is for, and change by rename alone.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};

use img_storage_model::{Epoch, SnapshotId, VolumeId, nas::qemu::DiskFile};
use serde::{Deserialize, Serialize};

use crate::qemu::{during, enough_room, look_at, pool, read_mark, remove, sync_parent, write_mark};
use crate::{HostError, VolumeRef};

#[derive(Debug, Serialize, Deserialize)]
struct Mark {
    volume: VolumeId,
}

/// The directory of one volume.
#[derive(Debug, Clone)]
pub(super) struct Home {
    pool: PathBuf,
    dir: PathBuf,
    volume: VolumeId,
}

/// What lies beside the disk.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Beside {
    pub(super) incoming: Vec<SnapshotId>,
    pub(super) pending: Vec<SnapshotId>,
    pub(super) overlay: Vec<Epoch>,
}

impl Home {
    pub(super) fn new(pool: &Path, volume: &VolumeRef) -> Self {
        Self { pool: pool.to_owned(), dir: pool.join(volume.name.as_str()), volume: volume.id }
    }

    pub(super) fn disk(&self) -> PathBuf {
        self.dir.join("disk.raw")
    }

    pub(super) fn incoming(&self, push: SnapshotId) -> PathBuf {
        self.dir.join(format!("incoming-{}.qcow2", push.0))
    }

    pub(super) fn pending(&self, push: SnapshotId) -> PathBuf {
        self.dir.join(format!("pending-{}.qcow2", push.0))
    }

    pub(super) fn overlay(&self, epoch: Epoch) -> PathBuf {
        self.dir.join(format!("overlay-{epoch}.qcow2"))
    }

    fn mark(&self) -> PathBuf {
        self.dir.join("mark")
    }

    /// Whether the directory is this volume's. What is another's, or nobody's, is not looked at further.
    fn is_ours(&self) -> Result<bool, HostError> {
        pool::is_there(&self.pool).map_err(during(format!("look into the pool {}", self.pool.display())))?;
        let mark: Option<Mark> = read_mark(&self.mark()).map_err(during(format!("read {}", self.mark().display())))?;
        Ok(mark.is_some_and(|mark| mark.volume == self.volume))
    }

    pub(super) fn look(&self) -> Result<Option<DiskFile>, HostError> {
        if !self.is_ours()? {
            return Ok(None);
        }
        let disk = self.disk();
        let found = look_at(&disk).map_err(during(format!("look at {}", disk.display())))?;
        Ok(found.map(|(size, allocated)| DiskFile { size, allocated }))
    }

    pub(super) fn beside(&self) -> Result<Beside, HostError> {
        let mut found = Beside::default();
        if !self.is_ours()? {
            return Ok(found);
        }
        let what = || format!("look into {}", self.dir.display());
        for entry in fs::read_dir(&self.dir).map_err(during(what()))? {
            let name = entry.map_err(during(what()))?.file_name();
            let Some(name) = name.to_str().and_then(|name| name.strip_suffix(".qcow2")) else { continue };
            let snapshot = |uuid: &str| format!("IMG-STORAGE-{uuid}").parse::<SnapshotId>().ok();
            found.incoming.extend(name.strip_prefix("incoming-").and_then(snapshot));
            found.pending.extend(name.strip_prefix("pending-").and_then(snapshot));
            found.overlay.extend(name.strip_prefix("overlay-").and_then(|epoch| epoch.parse().ok().map(Epoch)));
        }
        Ok(found)
    }

    pub(super) fn create(&self, size: u64) -> Result<(), HostError> {
        let disk = self.disk();
        if let Some(found) = self.look()? {
            return match found.size == size {
                true => Ok(()),
                false => Err(HostError(format!("{} is in the way: {} bytes long, not {size}", disk.display(), found.size))),
            };
        }
        if self.dir.exists() && !self.is_ours()? {
            // A creation that was cut off may have left an unfinished mark.
            let unfinished = |entry: &fs::DirEntry| entry.file_name() == "mark.new";
            let empty = fs::read_dir(&self.dir).is_ok_and(|entries| entries.flatten().all(|entry| unfinished(&entry)));
            if !empty {
                let why = "is in the way and has no mark of this volume; look at what it is and move it away";
                return Err(HostError(format!("{} {why}", self.dir.display())));
            }
        }
        enough_room(&self.pool, size)?;
        let make = || {
            fs::create_dir_all(&self.dir)?;
            write_mark(&self.mark(), &Mark { volume: self.volume })?;
            let new = self.dir.join("disk.new");
            let sparse = File::create(&new)?;
            sparse.set_len(size)?;
            sparse.sync_all()?;
            fs::rename(&new, &disk)?;
            sync_parent(&disk)?;
            sync_parent(&self.dir)
        };
        make().map_err(during(format!("create {}", disk.display())))
    }

    pub(super) fn grow(&self, size: u64) -> Result<(), HostError> {
        let disk = self.ours(self.disk())?;
        let grow = || {
            let file = OpenOptions::new().write(true).open(&disk)?;
            if file.metadata()?.len() < size {
                file.set_len(size)?;
            }
            file.sync_all()
        };
        grow().map_err(during(format!("make {} longer", disk.display())))
    }

    /// Puts one of the files, and its name, on stable storage.
    pub(super) fn sync(&self, file: &Path) -> Result<(), HostError> {
        let sync = || {
            File::open(file)?.sync_all()?;
            sync_parent(file)
        };
        sync().map_err(during(format!("put {} on stable storage", file.display())))
    }

    /// Renames the directory first: from then on the name is free, whatever happens. What an earlier try renamed goes too.
    pub(super) fn destroy(&self) -> Result<(), HostError> {
        let doomed = self.pool.join(format!(".deleted-{}", self.volume));
        let ours = self.is_ours()?;
        let unmake = || -> std::io::Result<()> {
            if doomed.exists() {
                fs::remove_dir_all(&doomed)?;
            }
            if ours {
                fs::rename(&self.dir, &doomed)?;
                sync_parent(&self.dir)?;
                fs::remove_dir_all(&doomed)?;
            }
            Ok(())
        };
        unmake().map_err(during(format!("remove {}", self.dir.display())))
    }

    /// A path in the directory, which must be this volume's.
    pub(super) fn ours(&self, path: PathBuf) -> Result<PathBuf, HostError> {
        if self.is_ours()? {
            Ok(path)
        } else {
            Err(HostError(format!("{} has no mark of this volume; nothing is done to it", self.dir.display())))
        }
    }

    pub(super) fn remove(&self, path: PathBuf) -> Result<(), HostError> {
        if !self.is_ours()? {
            return Ok(());
        }
        let gone = || {
            remove(&path)?;
            sync_parent(&path)
        };
        gone().map_err(during(format!("remove {}", path.display())))
    }

    /// A name for a file that is being made; it gets its own when it is whole.
    pub(super) fn unfinished(&self) -> PathBuf {
        self.dir.join("new")
    }
}
