//! The local copy's file, with its mark beside it: `POOL/VOLUME/{local.raw, mark, fleece.qcow2}`.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};

use img_storage_model::{Epoch, Fact, VolumeId, node::LocalFile};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::HostError;
use crate::qemu::{during, enough_room, look_at, pool, read_mark, remove, sync_parent, write_mark};

#[derive(Debug, Serialize, Deserialize)]
struct Mark {
    volume: VolumeId,
    epoch: Epoch,
    /// Room was reserved for every block, or this file system cannot do that.
    #[serde(default)]
    reserved: bool,
}

/// The place of a local copy.
#[derive(Debug, Clone)]
pub(super) struct Local {
    pool: PathBuf,
    dir: PathBuf,
    volume: VolumeId,
}

impl Local {
    pub(super) fn new(pool: &Path, volume: VolumeId) -> Self {
        Self { pool: pool.to_owned(), dir: pool.join(volume.to_string()), volume }
    }

    pub(super) fn file(&self) -> PathBuf {
        self.dir.join("local.raw")
    }

    /// Where the old blocks of a point in time go.
    pub(super) fn scratch(&self) -> PathBuf {
        self.dir.join("fleece.qcow2")
    }

    fn mark(&self) -> PathBuf {
        self.dir.join("mark")
    }

    pub(super) fn look(&self) -> Fact<Option<LocalFile>> {
        match self.find() {
            Ok(found) => Fact::Known(found),
            Err(error) => Fact::Unknown(error.0),
        }
    }

    fn find(&self) -> Result<Option<LocalFile>, HostError> {
        // Without its pool mounted, everything would look gone.
        pool::is_there(&self.pool).map_err(during(format!("look into the pool {}", self.pool.display())))?;
        let file = self.file();
        let Some((size, _)) = look_at(&file).map_err(during(format!("look at {}", file.display())))? else {
            return Ok(None);
        };
        let mark: Option<Mark> = read_mark(&self.mark()).map_err(during(format!("read {}", self.mark().display())))?;
        match mark {
            Some(mark) if mark.volume == self.volume => Ok(Some(LocalFile { epoch: mark.epoch, size, reserved: mark.reserved })),
            _ => Err(HostError(format!("{} has no mark of ours; look at what it is and move it away", file.display()))),
        }
    }

    pub(super) fn create(&self, epoch: Epoch, size: u64) -> Result<(), HostError> {
        let file = self.file();
        match self.find()? {
            Some(found) if (found.epoch, found.size) == (epoch, size) => return Ok(()),
            Some(found) => {
                let path = file.display();
                return Err(HostError(format!("{path} is in the way: epoch {}, {} bytes", found.epoch, found.size)));
            }
            None => {}
        }
        enough_room(&self.pool, size)?;
        let make = || {
            fs::create_dir_all(&self.dir)?;
            write_mark(&self.mark(), &Mark { volume: self.volume, epoch, reserved: false })?;
            let new = self.dir.join("local.new");
            let sparse = File::create(&new)?;
            sparse.set_len(size)?;
            sparse.sync_all()?;
            fs::rename(&new, &file)?;
            sync_parent(&file)?;
            sync_parent(&self.dir)
        };
        make().map_err(during(format!("create {}", file.display())))
    }

    /// Removes the file, the scratch file and the mark, in that order: what is left at any moment is still recognised.
    pub(super) fn destroy(&self) -> Result<(), HostError> {
        let mark: Option<Mark> = read_mark(&self.mark()).map_err(during(format!("read {}", self.mark().display())))?;
        if mark.is_none() {
            self.find()?;
            return Ok(());
        }
        let unmake = || {
            remove(&self.file())?;
            remove(&self.dir.join("local.new"))?;
            remove(&self.scratch())?;
            sync_parent(&self.file())?;
            remove(&self.mark())?;
            fs::remove_dir(&self.dir)?;
            sync_parent(&self.dir)
        };
        unmake().map_err(during(format!("remove {}", self.dir.display())))
    }

    /// Reserves room for every block; what is in the file stays as it is.
    pub(super) fn reserve(&self) -> Result<(), HostError> {
        let file = self.file();
        let found = self.find()?.ok_or_else(|| HostError(format!("{} is not there", file.display())))?;
        if found.reserved {
            return Ok(());
        }
        let fill = || {
            let open = OpenOptions::new().write(true).open(&file)?;
            match fallocate(&open, FallocateFlags::KEEP_SIZE, 0, found.size) {
                // This file system gives every write a new place; reserving the old ones would be of no use.
                Err(Errno::OPNOTSUPP) => tracing::info!(file = %file.display(), "the file system cannot reserve room"),
                other => other?,
            }
            open.sync_all()?;
            write_mark(&self.mark(), &Mark { volume: self.volume, epoch: found.epoch, reserved: true })
        };
        fill().map_err(during(format!("reserve room for {}", file.display())))
    }

    /// Puts the file on stable storage, whoever wrote it.
    pub(super) fn sync(&self) -> Result<(), HostError> {
        let file = self.file();
        match File::open(&file) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            opened => opened.and_then(|file| file.sync_all()).map_err(during(format!("sync {}", file.display()))),
        }
    }
}
