//! Pool directories: ours by their mark, or empty and made ours. Anything else is somebody's.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{read_mark, write_mark};

const MARK: &str = ".img-storage-pool";
/// What a claim that was cut off leaves behind.
const UNFINISHED_MARK: &str = ".img-storage-pool.new";

#[derive(Debug, Serialize, Deserialize)]
struct Mark {
    host: String,
    pool: String,
}

/// Why a directory cannot be a pool.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// It has other things in it, or is another host's.
    #[error("{path} cannot be the pool {pool} of {host}: {why}; it was left as it is", path = path.display())]
    NotOurs {
        /// The directory.
        path: PathBuf,
        /// The pool it was to be.
        pool: String,
        /// The host that wants it.
        host: String,
        /// What stands against it.
        why: String,
    },
    /// It cannot be looked at or made.
    #[error("the pool directory {path} cannot be used: {source}", path = path.display())]
    Io {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Whether `path` can be or is the directory of `host`'s pool `pool`; makes and changes nothing.
///
/// # Errors
/// As [`claim`].
pub fn check(path: &Path, host: &str, pool: &str) -> Result<(), PoolError> {
    look(path, host, pool).map(drop)
}

/// The name of a volume or local copy that lies in the pool `path`, when there is one.
///
/// # Errors
/// When the directory cannot be read.
pub fn anything_in(path: &Path) -> Result<Option<String>, PoolError> {
    let bad = |source| PoolError::Io { path: path.to_owned(), source };
    for entry in fs::read_dir(path).map_err(bad)? {
        let entry = entry.map_err(bad)?;
        if entry.path().join("mark").is_file() {
            return Ok(Some(entry.file_name().to_string_lossy().into_owned()));
        }
    }
    Ok(None)
}

/// Whether a claimed pool is there to be looked into: a file system that is not mounted leaves an empty directory, in which
/// everything would look gone.
///
/// # Errors
/// When the mark cannot be read or is not there.
pub(super) fn is_there(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path.join(MARK)) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(io::Error::other(format!("its mark {MARK} is not there; is its file system mounted?")))
        }
        Err(error) => Err(error),
    }
}

/// Makes sure that `path` is the directory of `host`'s pool `pool`: made, or empty and marked now, or marked before.
///
/// # Errors
/// [`PoolError::NotOurs`] for a directory with other things in it, or another host's or pool's mark. Nothing is changed then.
pub fn claim(path: &Path, host: &str, pool: &str) -> Result<(), PoolError> {
    if look(path, host, pool)? {
        return Ok(());
    }
    let bad = |source| PoolError::Io { path: path.to_owned(), source };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(bad)?;
    write_mark(&path.join(MARK), &Mark { host: host.to_owned(), pool: pool.to_owned() }).map_err(bad)
}

/// Whether the directory has our mark already; one that is not there or empty has none.
fn look(path: &Path, host: &str, pool: &str) -> Result<bool, PoolError> {
    let bad = |source| PoolError::Io { path: path.to_owned(), source };
    let not_ours = |why: String| PoolError::NotOurs { path: path.to_owned(), pool: pool.to_owned(), host: host.to_owned(), why };
    match fs::metadata(path) {
        Ok(meta) if !meta.is_dir() => return Err(not_ours("it is no directory".to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(bad(error)),
        Ok(_) => {}
    }
    match read_mark::<Mark>(&path.join(MARK)) {
        Ok(Some(mark)) if mark.host == host && mark.pool == pool => return Ok(true),
        Ok(Some(mark)) => return Err(not_ours(format!("it is the pool {} of {}", mark.pool, mark.host))),
        Err(error) => return Err(not_ours(format!("its mark {MARK} cannot be read: {error}"))),
        Ok(None) => {}
    }
    let mut others = fs::read_dir(path)
        .map_err(bad)?
        .filter_map(Result::ok)
        .map(|e| e.file_name())
        .filter(|n| n != "lost+found" && n != UNFINISHED_MARK);
    if let Some(other) = others.next() {
        return Err(not_ours(format!("it is not empty (there is {}) and has no mark of ours", other.to_string_lossy())));
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_is_claimed_once_and_foreign_directories_stay_as_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let pool = dir.path().join("a/b");
        claim(&pool, "nas", "tank").unwrap();
        claim(&pool, "nas", "tank").unwrap();
        assert!(claim(&pool, "other", "tank").unwrap_err().to_string().contains("the pool tank of nas"));
        let foreign = dir.path().join("home");
        fs::create_dir(&foreign).unwrap();
        fs::write(foreign.join("thesis.tex"), "x").unwrap();
        assert!(claim(&foreign, "nas", "tank").unwrap_err().to_string().contains("thesis.tex"));
        assert_eq!(fs::read_dir(&foreign).unwrap().count(), 1);
        assert!(claim(&foreign.join("thesis.tex"), "nas", "tank").is_err());
    }
}
