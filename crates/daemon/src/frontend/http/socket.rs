//! The unix socket: for its owner alone, and never two daemons on one.

use img_storage_model::Fault;
use rustix::{
    fs::{FlockOperation, Mode, fchmod, flock},
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with},
};
use std::{
    fs::{File, OpenOptions},
    io::ErrorKind,
    os::unix::{
        fs::{FileTypeExt, OpenOptionsExt},
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
};

/// A bound socket; gone from the file system when dropped.
#[derive(Debug)]
pub struct Socket {
    path: PathBuf,
    listener: Option<UnixListener>,
    /// Held for life; tells a socket of a dead process from a live one without a race between two that start.
    _lock: File,
}

impl Socket {
    /// Binds `path` with mode 0600; a socket that a dead process left behind is replaced.
    ///
    /// # Errors
    /// [`img_storage_model::FaultKind::Refused`] when somebody serves it, or when something else than a socket is there;
    /// [`img_storage_model::FaultKind::Invalid`] for a path longer than a socket's may be.
    pub fn bind(path: &Path) -> Result<Self, Fault> {
        let shown = path.display();
        let address = SocketAddrUnix::new(path).map_err(|_| {
            Fault::invalid(format!("the socket path {shown} is {} bytes long; at most 107 are possible", path.as_os_str().len()))
                .next("choose a shorter one with --dir or --socket")
        })?;
        let failed = |what: &str, error: std::io::Error| Fault::failed(format!("cannot {what} {shown}: {error}"));
        let busy =
            || Fault::refused(format!("another img-storage serves {shown}")).next("stop it, or give this one another --dir");
        let mut lock_path = path.as_os_str().to_owned();
        lock_path.push(".lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&lock_path)
            .map_err(|error| failed("open the lock of", error))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(busy()),
            Err(error) => return Err(failed("lock", error.into())),
        }
        match std::fs::symlink_metadata(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(failed("look at", error)),
            Ok(there) if !there.file_type().is_socket() => {
                return Err(Fault::refused(format!("{shown} is there and is no socket")).next("move it away"));
            }
            Ok(_) => match UnixStream::connect(path) {
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                    std::fs::remove_file(path).map_err(|error| failed("remove the stale socket", error))?;
                }
                Ok(_) => return Err(busy()),
                Err(error) => return Err(failed("tell who serves", error)),
            },
        }
        let bound = || -> std::io::Result<UnixListener> {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let fd = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
            // Linux gives the socket's file the mode of the unbound socket: there is no moment in which others could connect.
            fchmod(&fd, Mode::RUSR | Mode::WUSR)?;
            bind(&fd, &address)?;
            listen(&fd, 128)?;
            Ok(fd.into())
        };
        let listener = bound().map_err(|error| failed("serve", error))?;
        Ok(Socket { path: path.to_owned(), listener: Some(listener), _lock: lock })
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The listener, once.
    pub(super) fn listener(&mut self) -> Result<tokio::net::UnixListener, Fault> {
        let listener = self.listener.take().ok_or_else(|| Fault::failed("the socket is served already"))?;
        tokio::net::UnixListener::from_std(listener)
            .map_err(|error| Fault::failed(format!("cannot serve {}: {error}", self.path.display())))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use img_storage_model::FaultKind;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.sock");
        drop(UnixListener::bind(&path).unwrap());
        let socket = Socket::bind(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let again = Socket::bind(&path).unwrap_err();
        assert_eq!(again.kind, FaultKind::Refused, "{again}");
        drop(socket);
        assert!(!path.exists());
        let foreign = UnixListener::bind(&path).unwrap();
        assert_eq!(Socket::bind(&path).unwrap_err().kind, FaultKind::Refused);
        drop(foreign);
        drop(Socket::bind(&path).unwrap());
    }

    #[test]
    fn what_is_no_socket_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.sock");
        std::fs::write(&path, "precious").unwrap();
        assert_eq!(Socket::bind(&path).unwrap_err().kind, FaultKind::Refused);
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
        let long = dir.path().join("x".repeat(120));
        let fault = Socket::bind(&long).unwrap_err();
        assert_eq!(fault.kind, FaultKind::Invalid, "{fault}");
    }
}
