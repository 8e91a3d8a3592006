//! One `qemu-storage-daemon` process per exported or mapped volume.
//!
//! The process is the data path of a guest, so it must outlive us: it runs in a session of its own, speaks to a log file
//! and not to us, and everything needed to find it again is in its directory: `qmp.sock` (control), `pid`, `mark` (what it
//! was started for), `log`. A pid file alone proves nothing: a process is ours when its command line names our pid file.
//!
//! A process that answers its control socket has done everything its command line asks for: QEMU reads the options in order
//! and serves the socket afterwards.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};

use crate::qmp::{Qmp, QmpError};

/// The kernel's limit for the path of a unix socket.
pub const SOCKET_PATH_LIMIT: usize = 107;
/// How long a start may take; connecting to a NAS is part of it.
const START: Duration = Duration::from_secs(15);
/// How long a busy monitor may take to greet us.
const GREETING: Duration = Duration::from_secs(5);
/// How long a killed process may take to be gone.
const DEATH: Duration = Duration::from_secs(10);
const TICK: Duration = Duration::from_millis(2);

/// Why a storage daemon could not be handled.
#[derive(Debug, thiserror::Error)]
pub enum QsdError {
    /// The socket's path does not fit into what the kernel takes.
    #[error(
        "the socket path {path} is {length} bytes long and the kernel takes {SOCKET_PATH_LIMIT}; choose a shorter run directory",
        path = path.display()
    )]
    PathTooLong {
        /// The path.
        path: PathBuf,
        /// Its length.
        length: usize,
    },
    /// Something about the directory or the process table.
    #[error("cannot {what} {path}: {source}", path = path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A process of this directory lives already.
    #[error("the storage daemon of {dir} runs already (pid {pid}); stop it first", dir = dir.display())]
    Runs {
        /// The directory.
        dir: PathBuf,
        /// The process.
        pid: i32,
    },
    /// It ended while starting.
    #[error("the storage daemon of {dir} did not start ({status}): {log}", dir = dir.display())]
    Died {
        /// The directory.
        dir: PathBuf,
        /// How it ended.
        status: String,
        /// The end of its log.
        log: String,
    },
    /// It was too slow and was killed.
    #[error("the storage daemon of {dir} was not ready after {START:?} and was killed: {log}", dir = dir.display())]
    Slow {
        /// The directory.
        dir: PathBuf,
        /// The end of its log.
        log: String,
    },
    /// It cannot be ended.
    #[error("the storage daemon of {dir} (pid {pid}) does not end, not even killed; its disk or network hangs", dir = dir.display())]
    Immortal {
        /// The directory.
        dir: PathBuf,
        /// The process.
        pid: i32,
    },
    /// Its control socket.
    #[error(transparent)]
    Qmp(#[from] QmpError),
}

/// What was found in the place of a storage daemon.
#[derive(Debug)]
pub enum Found {
    /// It runs and answers.
    Running(Qmp),
    /// There is no such process.
    Gone,
    /// It cannot be told, or the process lives and does not answer.
    Unknown(String),
}

/// The place of one storage daemon: its directory.
#[derive(Debug, Clone)]
pub struct Qsd {
    dir: PathBuf,
    program: PathBuf,
}

impl Qsd {
    /// The place `dir`; nothing is touched yet.
    pub fn new(program: impl Into<PathBuf>, dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), program: program.into() }
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The path of a socket in the directory, checked against the kernel's limit.
    pub fn socket(&self, name: &str) -> Result<PathBuf, QsdError> {
        let path = self.dir.join(name);
        let length = path.as_os_str().len();
        if length > SOCKET_PATH_LIMIT { Err(QsdError::PathTooLong { path, length }) } else { Ok(path) }
    }

    /// Looks for the process and, when it runs, connects to it.
    pub async fn find(&self) -> Found {
        // The directory exists from before a start until after a verified end.
        match fs::symlink_metadata(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Found::Gone,
            Err(error) => return Found::Unknown(format!("cannot look at {}: {error}", self.dir.display())),
            Ok(_) => {}
        }
        match self.process() {
            Err(error) => Found::Unknown(error.to_string()),
            Ok(None) => Found::Gone,
            Ok(Some(pid)) => match self.connect().await {
                Ok(qmp) => Found::Running(qmp),
                // It may have ended between the two looks.
                Err(error) => match self.process() {
                    Ok(None) => Found::Gone,
                    _ => Found::Unknown(format!("process {} lives but: {error}", pid.as_raw_nonzero())),
                },
            },
        }
    }

    /// Its process, as the process table shows it; nothing is said to it.
    ///
    /// # Errors
    /// When processes cannot be listed.
    pub fn pid(&self) -> Result<Option<u32>, QsdError> {
        Ok(self.process()?.map(|pid| pid.as_raw_nonzero().get().unsigned_abs()))
    }

    /// Connects to the control socket.
    pub async fn connect(&self) -> Result<Qmp, QsdError> {
        Ok(Qmp::connect(&self.socket("qmp.sock")?, GREETING).await?)
    }

    /// What the process was started for, as [`Qsd::start`] was told.
    pub fn mark<T: DeserializeOwned>(&self) -> Result<T, QsdError> {
        let path = self.dir.join("mark");
        fs::read(&path).and_then(|text| serde_json::from_slice(&text).map_err(io::Error::other)).map_err(|source| QsdError::Io {
            what: "read the mark",
            path,
            source,
        })
    }

    /// Starts the process with the options `args` and returns once it answers.
    pub async fn start(&self, mark: &impl Serialize, args: &[String]) -> Result<Qmp, QsdError> {
        let socket = self.socket("qmp.sock")?;
        if let Some(pid) = self.scan()? {
            return Err(QsdError::Runs { dir: self.dir.clone(), pid: pid.as_raw_nonzero().get() });
        }
        self.prepare(mark).map_err(|source| QsdError::Io { what: "set up", path: self.dir.clone(), source })?;
        let log_path = self.dir.join("log");
        let open = || {
            let log = fs::OpenOptions::new().create(true).append(true).open(&log_path)?;
            Ok((log.try_clone()?, log))
        };
        let (out, err) = open().map_err(|source| QsdError::Io { what: "open", path: log_path.clone(), source })?;
        let mut child = Command::new("setsid")
            .arg(&self.program)
            .arg("--pidfile")
            .arg(self.pid_file())
            .args(["--chardev", &format!("socket,id=qmp,path={},server=on,wait=off", commas(&socket))])
            .args(["--monitor", "chardev=qmp"])
            .args(args)
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()
            .map_err(|source| QsdError::Io { what: "start", path: self.program.clone(), source })?;
        self.until_ready(&mut child, &socket).await
        // Dropping a tokio child that was not killed leaves the process alone.
    }

    async fn until_ready(&self, child: &mut Child, socket: &Path) -> Result<Qmp, QsdError> {
        let end = Instant::now() + START;
        loop {
            if let Ok(Some(status)) = child.try_wait() {
                return Err(QsdError::Died { dir: self.dir.clone(), status: status.to_string(), log: self.log_tail() });
            }
            if socket.exists() {
                // Until its options are done it accepts nothing; a greeting is the sign that they are.
                match Qmp::connect(socket, end.saturating_duration_since(Instant::now()).min(GREETING)).await {
                    Ok(qmp) => {
                        self.open_to_guests(socket)?;
                        return Ok(qmp);
                    }
                    Err(error) => tracing::trace!(%error, "not ready yet"),
                }
            }
            if Instant::now() >= end {
                let _ = child.kill().await;
                return Err(QsdError::Slow { dir: self.dir.clone(), log: self.log_tail() });
            }
            sleep(TICK).await;
        }
    }

    /// Ends the process: by its own means within `grace`, else killed. It is gone, and its directory too, when this returns.
    pub async fn stop(&self, grace: Duration) -> Result<(), QsdError> {
        if let Some(pid) = self.scan()? {
            let end = Instant::now() + grace;
            match Qmp::connect(&self.socket("qmp.sock")?, grace.min(GREETING)).await {
                // The answer and the end of the process race; what counts is the end.
                Ok(mut qmp) => match qmp.execute("quit", json!({}), grace).await {
                    Ok(_) | Err(QmpError::Broken { .. }) => {}
                    Err(error) => tracing::warn!(%error, dir = %self.dir.display(), "the storage daemon does not quit"),
                },
                Err(error) => tracing::warn!(%error, dir = %self.dir.display(), "the storage daemon does not answer"),
            }
            if !self.ended(pid, end).await? {
                tracing::warn!(pid = pid.as_raw_nonzero(), dir = %self.dir.display(), "killing the storage daemon");
                self.kill(pid)?;
                if !self.ended(pid, Instant::now() + DEATH).await? {
                    return Err(QsdError::Immortal { dir: self.dir.clone(), pid: pid.as_raw_nonzero().get() });
                }
            }
        }
        match fs::remove_dir_all(&self.dir) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(QsdError::Io { what: "remove", path: self.dir.clone(), source })
            }
            _ => Ok(()),
        }
    }

    async fn ended(&self, pid: Pid, end: Instant) -> Result<bool, QsdError> {
        loop {
            if !self.is_ours(pid)? {
                return Ok(true);
            }
            if Instant::now() >= end {
                return Ok(false);
            }
            sleep(TICK).await;
        }
    }

    /// Kills the process, held by a descriptor so that its number cannot become another's in between.
    fn kill(&self, pid: Pid) -> Result<(), QsdError> {
        let Ok(held) = pidfd_open(pid, PidfdFlags::empty()) else { return Ok(()) };
        if self.is_ours(pid)? {
            let _ = pidfd_send_signal(held, Signal::KILL);
        }
        Ok(())
    }

    fn prepare(&self, mark: &impl Serialize) -> io::Result<()> {
        match fs::remove_dir_all(&self.dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        fs::write(self.dir.join("mark"), serde_json::to_vec(mark).map_err(io::Error::other)?)
    }

    /// Lets others reach the sockets in the directory that are meant for them, once the control socket is closed to them.
    fn open_to_guests(&self, control: &Path) -> Result<(), QsdError> {
        let set = |path: &Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(|source| QsdError::Io {
                what: "set the permissions of",
                path: path.to_owned(),
                source,
            })
        };
        set(control, 0o600)?;
        set(&self.dir, 0o711)
    }

    /// The process of this directory: by the pid file, else by looking at all processes.
    fn process(&self) -> Result<Option<Pid>, QsdError> {
        let noted = fs::read_to_string(self.pid_file()).ok().and_then(|text| text.trim().parse().ok()).and_then(Pid::from_raw);
        match noted {
            Some(pid) if self.is_ours(pid)? => Ok(Some(pid)),
            _ => self.scan(),
        }
    }

    fn scan(&self) -> Result<Option<Pid>, QsdError> {
        let failed = |source| QsdError::Io { what: "list", path: "/proc".into(), source };
        for entry in fs::read_dir("/proc").map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw) else { continue };
            if self.is_ours(pid)? {
                return Ok(Some(pid));
            }
        }
        Ok(None)
    }

    fn is_ours(&self, pid: Pid) -> Result<bool, QsdError> {
        let path = PathBuf::from(format!("/proc/{}/cmdline", pid.as_raw_nonzero()));
        match fs::read(&path) {
            Ok(line) => Ok(names(&line, &self.pid_file())),
            Err(error) if gone(&error) => Ok(false),
            Err(source) => Err(QsdError::Io { what: "read", path, source }),
        }
    }

    fn pid_file(&self) -> PathBuf {
        self.dir.join("pid")
    }

    fn log_tail(&self) -> String {
        let text = fs::read(self.dir.join("log")).unwrap_or_default();
        let text = String::from_utf8_lossy(&text[text.len().saturating_sub(4096)..]).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(4)..].join(" / ")
    }
}

/// A process that ended between being listed and being read.
fn gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error())
}

/// Whether a command line (words ended by zero bytes) is that of a storage daemon, or of `setsid` about to become one, that
/// was told to use this pid file. A process that has ended and was not waited for has an empty one.
fn names(cmdline: &[u8], pid_file: &Path) -> bool {
    let words: Vec<&[u8]> = cmdline.split(|byte| *byte == 0).collect();
    let program = words[0].rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    (program.starts_with(b"qemu-storage-daemon") || program == b"setsid")
        && words.windows(2).any(|pair| pair[0] == b"--pidfile" && pair[1] == pid_file.as_os_str().as_bytes())
}

/// A path as the value of one of QEMU's comma-separated options.
pub fn commas(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROGRAM: &str = "qemu-storage-daemon";

    fn words(words: &[&str]) -> Vec<u8> {
        words.iter().flat_map(|word| word.bytes().chain([0])).collect()
    }

    #[test]
    fn only_our_command_line_is_ours() {
        let file = Path::new("/run/x/pid");
        assert!(names(&words(&["/usr/bin/qemu-storage-daemon", "--pidfile", "/run/x/pid", "--x"]), file));
        assert!(!names(&words(&["/usr/bin/qemu-storage-daemon", "--pidfile", "/run/y/pid"]), file));
        assert!(!names(&words(&["vi", "--pidfile", "/run/x/pid"]), file));
        assert!(!names(b"", file));
    }

    #[tokio::test]
    async fn its_whole_life() {
        let dir = tempfile::tempdir().expect("directory");
        let qsd = Qsd::new(PROGRAM, dir.path().join("a,b"));
        assert!(matches!(qsd.find().await, Found::Gone));
        let begin = Instant::now();
        let qmp = qsd.start(&7, &[]).await.expect("starts");
        eprintln!("start took {:?}", begin.elapsed());
        drop(qmp);
        assert!(matches!(qsd.find().await, Found::Running(_)));
        assert_eq!(qsd.mark::<u32>().expect("mark"), 7);
        let again = qsd.start(&8, &[]).await.expect_err("runs already");
        assert!(matches!(again, QsdError::Runs { .. }), "{again}");
        // Even without its pid file and its socket it is found, and is not taken for gone.
        fs::remove_file(qsd.dir().join("pid")).expect("remove");
        assert!(matches!(qsd.find().await, Found::Running(_)));
        fs::remove_file(qsd.dir().join("qmp.sock")).expect("remove");
        assert!(matches!(qsd.find().await, Found::Unknown(_)));
        qsd.stop(Duration::from_secs(1)).await.expect("stops by force");
        assert!(matches!(qsd.find().await, Found::Gone));
        qsd.stop(Duration::from_secs(1)).await.expect("once more");
    }

    #[tokio::test]
    async fn killed_is_gone_and_can_start_again() {
        let dir = tempfile::tempdir().expect("directory");
        let qsd = Qsd::new(PROGRAM, dir.path().join("x"));
        drop(qsd.start(&1, &[]).await.expect("starts"));
        let pid = qsd.process().expect("looks").expect("runs");
        qsd.kill(pid).expect("kills");
        assert!(qsd.ended(pid, Instant::now() + DEATH).await.expect("looks"));
        assert!(matches!(qsd.find().await, Found::Gone));
        drop(qsd.start(&2, &[]).await.expect("starts again"));
        qsd.stop(Duration::from_secs(5)).await.expect("stops");
        assert!(!qsd.dir().exists());
    }

    #[tokio::test]
    async fn a_bad_option_shows_what_qemu_said() {
        let dir = tempfile::tempdir().expect("directory");
        let qsd = Qsd::new(PROGRAM, dir.path().join("x"));
        let args = ["--blockdev".to_owned(), "driver=file,node-name=a,filename=/no/such/file".to_owned()];
        let error = qsd.start(&1, &args).await.expect_err("fails").to_string();
        assert!(error.contains("/no/such/file"), "{error}");
        let deep = Qsd::new(PROGRAM, dir.path().join("x".repeat(120)));
        let error = deep.start(&1, &[]).await.expect_err("too long").to_string();
        assert!(error.contains("shorter run directory"), "{error}");
    }
}
