//! Where things are under one state directory, and who may use it: one process a role.

use img_storage_host::qsd::SOCKET_PATH_LIMIT;
use img_storage_model::{Fault, HostName, messages::Role};
use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

/// Paths under a state directory.
#[derive(Clone, Debug)]
pub struct Layout {
    dir: PathBuf,
}

impl Layout {
    /// The layout of `dir`, which is made when it is not there, for its owner alone.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new(dir: &Path) -> Result<Self, Fault> {
        make(dir)?;
        let dir = dir.canonicalize().map_err(|e| bad(dir, e))?;
        Ok(Layout { dir })
    }

    /// The layout of a directory that is there; nothing is made.
    ///
    /// # Errors
    /// [`img_storage_model::FaultKind::NotFound`] when it is not there, and when it cannot be told.
    pub fn there(dir: &Path) -> Result<Self, Fault> {
        match dir.canonicalize() {
            Ok(dir) => Ok(Layout { dir }),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                Err(Fault::not_found(format!("there is no state directory {}", dir.display()))
                    .next("give the one that the daemons of this host have, with --dir"))
            }
            Err(e) => Err(bad(dir, e)),
        }
    }

    /// The front end's API.
    pub fn api_socket(&self) -> PathBuf {
        self.dir.join("api.sock")
    }

    /// The embedded bus.
    pub fn bus_socket(&self) -> PathBuf {
        self.dir.join("bus.sock")
    }

    /// The certificates.
    pub fn pki(&self) -> PathBuf {
        self.dir.join("pki")
    }

    /// The directory that holds the pools of a NAS.
    pub fn pools(&self, nas: &HostName) -> PathBuf {
        self.dir.join("pools").join(nas.as_str())
    }

    /// A host's own directory, made when it is not there: ledgers and storage daemons.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn host(&self, host: &HostName) -> Result<PathBuf, Fault> {
        let dir = self.dir.join(host.as_str());
        make(&dir)?;
        Ok(dir)
    }

    /// The directory itself.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

/// Whether a host's sockets have room in what the kernel takes for a path. Otherwise everything would start and no volume could
/// be mapped.
///
/// # Errors
/// [`img_storage_model::FaultKind::Invalid`], when not.
pub fn fits(dir: &Path, host: &HostName, role: Role) -> Result<(), Fault> {
    // The longest there is: a volume's identity, the storage daemon's purpose, the socket.
    let longest = match role {
        Role::Nas => format!("/{host}/run/01234567-89ab-cdef-0123-456789abcdef.i/verify.sock"),
        Role::Node => format!("/{host}/run/01234567-89ab-cdef-0123-456789abcdef/guest.sock"),
        Role::Frontend => "/bus.sock".to_owned(),
    };
    let real = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    let (length, most) = (real.as_os_str().len(), SOCKET_PATH_LIMIT.saturating_sub(longest.len()));
    if length <= most {
        return Ok(());
    }
    let shown = real.display();
    Err(Fault::invalid(format!(
        "the state directory {shown} is {length} bytes long, and the sockets of {host} leave room for {most}"
    ))
    .next("nothing was made; choose a shorter one with --dir"))
}

fn make(dir: &Path) -> Result<(), Fault> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|e| bad(dir, e))
}

fn bad(path: &Path, why: impl std::fmt::Display) -> Fault {
    Fault::failed(format!("{} cannot be used: {why}", path.display()))
        .next("choose another directory with --dir, or mend its permissions")
}

/// Holds a directory for one process.
pub struct Lock(#[allow(dead_code, reason = "held, not read")] File);

impl Lock {
    /// Takes the lock `dir/lock`.
    ///
    /// # Errors
    /// [`img_storage_model::FaultKind::Refused`] when another process has it, naming that.
    pub fn take(dir: &Path) -> Result<Self, Fault> {
        let path = dir.join("lock");
        let mut options = fs::OpenOptions::new();
        let mut file =
            options.read(true).write(true).create(true).truncate(false).mode(0o600).open(&path).map_err(|e| bad(&path, e))?;
        match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut holder = String::new();
                let pid = file.read_to_string(&mut holder).ok().map(|_| holder.trim()).filter(|p| !p.is_empty());
                return Err(Fault::refused(format!(
                    "{} is in use by another img-storage process{}",
                    dir.display(),
                    pid.map_or_else(String::new, |p| format!(" (pid {p})"))
                ))
                .next("stop that one first, or choose another directory with --dir"));
            }
            Err(why) => return Err(bad(&path, why)),
        }
        file.set_len(0).and_then(|()| write!(file, "{}", std::process::id())).map_err(|e| bad(&path, e))?;
        Ok(Lock(file))
    }
}
