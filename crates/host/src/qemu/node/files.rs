//! The local copy's file, with its mark beside it: `POOL/VOLUME/{local.raw, mark, fleece.qcow2}`.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};

use img_storage_model::{Epoch, Fact, VolumeId, node::qemu::LocalFile};
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

    /// Clears away what a daemon that was killed while it made or removed a local copy has left: directories of ours without one.
    /// Nothing may be done with the pool meanwhile.
    pub(super) fn sweep(pool: &Path) -> Result<(), HostError> {
        let sweep = || -> std::io::Result<()> {
            pool::is_there(pool)?;
            for entry in fs::read_dir(pool)? {
                let name = entry?.file_name();
                let Some(volume) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
                let local = Local::new(pool, VolumeId(volume));
                if look_at(&local.file())?.is_some() {
                    continue;
                }
                match read_mark::<Mark>(&local.mark())? {
                    Some(mark) if mark.volume == local.volume => local.unmake()?,
                    // Not so much as a whole mark: it goes if there is nothing else.
                    None => {
                        let new = local.mark().with_extension("new");
                        if fs::read_dir(&local.dir).is_ok_and(|all| all.flatten().all(|entry| entry.path() == new)) {
                            remove(&new)?;
                            fs::remove_dir(&local.dir)?;
                        }
                    }
                    Some(_) => {}
                }
            }
            Ok(())
        };
        sweep().map_err(during(format!("clear the pool {}", pool.display())))
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
        self.unmake().map_err(during(format!("remove {}", self.dir.display())))
    }

    fn unmake(&self) -> std::io::Result<()> {
        remove(&self.file())?;
        remove(&self.dir.join("local.new"))?;
        remove(&self.scratch())?;
        sync_parent(&self.file())?;
        remove(&self.mark().with_extension("new"))?;
        remove(&self.mark())?;
        fs::remove_dir(&self.dir)?;
        sync_parent(&self.dir)
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

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    #[test]
    fn what_was_cut_off_goes_and_everything_else_stays() {
        let dir = tempfile::tempdir().unwrap();
        pool::claim(dir.path(), "node", "local").unwrap();
        let local = |n: u128| Local::new(dir.path(), VolumeId(Uuid::from_u128(n)));
        let mark = |n: u128, of: u128| {
            fs::create_dir(&local(n).dir).unwrap();
            let mark = Mark { volume: VolumeId(Uuid::from_u128(of)), epoch: Epoch(1), reserved: false };
            write_mark(&local(n).mark(), &mark).unwrap();
        };
        local(1).create(Epoch(1), 1 << 20).unwrap();
        mark(2, 2);
        fs::write(local(2).dir.join("local.new"), "half").unwrap();
        for n in [3, 7] {
            fs::create_dir(&local(n).dir).unwrap();
        }
        fs::write(local(7).dir.join("mark.new"), "{").unwrap();
        // Not ours: another volume's mark, a file of somebody's, a directory with another name.
        mark(4, 5);
        fs::create_dir(&local(6).dir).unwrap();
        fs::write(local(6).dir.join("thesis.tex"), "years").unwrap();
        fs::create_dir(dir.path().join("theirs")).unwrap();
        Local::sweep(dir.path()).unwrap();
        let there = |n: u128| local(n).dir.exists();
        assert_eq!([1, 2, 3, 4, 6, 7].map(there), [true, false, false, true, true, false]);
        assert!(local(1).file().exists() && local(6).dir.join("thesis.tex").exists() && dir.path().join("theirs").exists());
        Local::sweep(&dir.path().join("unmounted")).unwrap_err();
    }
}
