//! Starting short programs: the only place in the product that does.
//!
//! A program that we start runs in a process group of its own, so that whatever it starts ends with it; it is killed when
//! its deadline passes or when the caller loses interest (drops the future). What it prints is kept up to a bound. Its
//! exit status is reported, never interpreted from the text it printed: a caller that wants to know *why* looks at the
//! host again.

mod pipe;

pub use pipe::{Piped, Program, pipe};

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};

/// What is kept of a program's standard output; the rest is read and dropped.
pub const STDOUT_LIMIT: usize = 64 << 20;
/// What is kept of the end of a program's standard error.
pub const STDERR_LIMIT: usize = 16 << 10;

/// What every program is started with. Messages are to be the same everywhere; and device-mapper's library is to make and remove
/// nodes itself, at once: it would else wait for udev, 2 s for a device in the lab, and depend on its rules.
const ENVIRONMENT: [(&str, &str); 2] = [("LC_ALL", "C"), ("DM_DISABLE_UDEV", "1")];

/// What a program that ended well printed.
#[derive(Debug, Clone)]
pub struct Output {
    /// Its standard output, at most [`STDOUT_LIMIT`] bytes.
    pub stdout: Vec<u8>,
    /// Whether standard output was longer than what was kept.
    pub truncated: bool,
    /// The end of its standard error.
    pub stderr: String,
}

/// The command line of a program, for messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandLine(Vec<OsString>);

impl CommandLine {
    /// Remembers a program and its arguments.
    pub fn new<A: AsRef<OsStr>>(program: &Path, args: &[A]) -> Self {
        let mut words = vec![program.as_os_str().to_owned()];
        words.extend(args.iter().map(|arg| arg.as_ref().to_owned()));
        Self(words)
    }
}

impl fmt::Display for CommandLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, word) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(" ")?;
            }
            let word = word.to_string_lossy();
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+@%".contains(c);
            if !word.is_empty() && word.chars().all(plain) {
                f.write_str(&word)?;
            } else {
                write!(f, "'{}'", word.replace('\'', r"'\''"))?;
            }
        }
        Ok(())
    }
}

/// Why a program did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// It could not be started at all.
    #[error("cannot start {program}: {source}; is the package that has it installed?", program = program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It ended with a failure.
    #[error("`{command}` failed with {status}{}", tail(stderr))]
    Failed {
        /// The whole command.
        command: CommandLine,
        /// How it ended.
        status: ExitStatus,
        /// The last lines of its standard error.
        stderr: String,
    },
    /// It did not end in time and was killed.
    #[error("`{command}` was killed: it had not ended after {after:?}{}", tail(stderr))]
    Deadline {
        /// The whole command.
        command: CommandLine,
        /// The time it had.
        after: Duration,
        /// The last lines of its standard error.
        stderr: String,
    },
    /// Its output or its end could not be read.
    #[error("lost track of `{command}`: {source}")]
    Lost {
        /// The whole command.
        command: CommandLine,
        /// What the system said.
        source: io::Error,
    },
}

fn tail(stderr: &str) -> String {
    let lines: Vec<&str> = stderr.lines().filter(|line| !line.trim().is_empty()).collect();
    let last = lines[lines.len().saturating_sub(4)..].join(" / ");
    if last.is_empty() { String::new() } else { format!(": {last}") }
}

/// Runs `program` to its end and returns what it printed; a status other than success is an error.
///
/// # Errors
/// Naming the command, how it ended and the last lines of its standard error.
pub async fn run<A: AsRef<OsStr>>(program: impl AsRef<Path>, args: &[A], deadline: Duration) -> Result<Output, ExecError> {
    run_watched(program, args, deadline, |_| {}).await
}

/// As [`run`], for programs whose exit status is an answer.
///
/// # Errors
/// When it did not start or did not end in time.
pub async fn run_to_status<A: AsRef<OsStr>>(
    program: impl AsRef<Path>,
    args: &[A],
    deadline: Duration,
) -> Result<(ExitStatus, Output), ExecError> {
    finish(program.as_ref(), args, deadline, |_| {}).await
}

/// As [`run`]; `watch` sees each piece of standard output as it arrives (for programs that print their progress).
///
/// # Errors
/// As [`run`].
pub async fn run_watched<A: AsRef<OsStr>>(
    program: impl AsRef<Path>,
    args: &[A],
    deadline: Duration,
    watch: impl FnMut(&[u8]),
) -> Result<Output, ExecError> {
    let program = program.as_ref();
    let (status, output) = finish(program, args, deadline, watch).await?;
    if status.success() {
        Ok(output)
    } else {
        Err(ExecError::Failed { command: CommandLine::new(program, args), status, stderr: output.stderr })
    }
}

async fn finish<A: AsRef<OsStr>>(
    program: &Path,
    args: &[A],
    deadline: Duration,
    mut watch: impl FnMut(&[u8]),
) -> Result<(ExitStatus, Output), ExecError> {
    let command = CommandLine::new(program, args);
    let mut child = Command::new(program)
        .args(args)
        .envs(ENVIRONMENT)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|source| ExecError::Start { program: program.to_owned(), source })?;
    let mut group = Group::of(&child);
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (mut kept, mut truncated, mut errors) = (Vec::new(), false, Vec::new());
    let whole = async {
        let out = each_piece(stdout, |piece| {
            watch(piece);
            let room = STDOUT_LIMIT - kept.len();
            truncated |= piece.len() > room;
            kept.extend_from_slice(&piece[..piece.len().min(room)]);
        });
        let err = each_piece(stderr, |piece| keep_tail(&mut errors, piece));
        tokio::try_join!(out, err)?;
        child.wait().await
    };
    let ended = tokio::time::timeout(deadline, whole).await;
    let stderr = String::from_utf8_lossy(&errors).into_owned();
    match ended {
        Err(_) => Err(ExecError::Deadline { command, after: deadline, stderr }),
        Ok(Err(source)) => Err(ExecError::Lost { command, source }),
        Ok(Ok(status)) => {
            group.ended();
            Ok((status, Output { stdout: kept, truncated, stderr }))
        }
    }
}

async fn each_piece(pipe: Option<impl AsyncRead + Unpin>, mut take: impl FnMut(&[u8])) -> io::Result<()> {
    let Some(mut pipe) = pipe else { return Ok(()) };
    let mut buffer = vec![0; 16 << 10];
    loop {
        match pipe.read(&mut buffer).await? {
            0 => return Ok(()),
            n => take(&buffer[..n]),
        }
    }
}

fn keep_tail(kept: &mut Vec<u8>, piece: &[u8]) {
    kept.extend_from_slice(piece);
    if kept.len() > STDERR_LIMIT {
        kept.drain(..kept.len() - STDERR_LIMIT);
    }
}

/// Kills a whole process group unless told that its leader was waited for (after which its number may belong to another).
struct Group(Option<Pid>);

impl Group {
    fn of(child: &Child) -> Self {
        Self(child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw))
    }

    fn ended(&mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(pid) = self.0 {
            // It may have ended by itself in this instant; there is nothing else to do about a failure either.
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn output_is_captured() {
        let out = run("sh", &["-c", "echo out; echo err >&2"], LONG).await.expect("runs");
        assert_eq!((out.stdout.as_slice(), out.stderr.as_str()), (b"out\n".as_slice(), "err\n"));
    }

    #[tokio::test]
    async fn a_failure_shows_the_command_the_status_and_the_last_lines() {
        let error = run("sh", &["-c", "echo first; echo last >&2; exit 3"], LONG).await.expect_err("fails").to_string();
        assert_eq!(error, "`sh -c 'echo first; echo last >&2; exit 3'` failed with exit status: 3: last");
    }

    #[tokio::test]
    async fn the_deadline_kills_the_whole_group() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let file = dir.path().join("grandchild");
        let script = format!("(sleep 30 & echo $! > {}; wait) & wait", file.display());
        let error = run("sh", &["-c", &script], Duration::from_millis(300)).await.expect_err("killed");
        assert!(matches!(error, ExecError::Deadline { .. }), "{error}");
        let pid = std::fs::read_to_string(&file).expect("grandchild started");
        let stat = format!("/proc/{}/cmdline", pid.trim());
        let gone = || std::fs::read(&stat).map_or(true, |line| line.is_empty());
        for _ in 0..200 {
            if gone() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("the grandchild lives on");
    }

    #[tokio::test]
    async fn a_missing_program_is_named() {
        let error = run("no-such-program", &["x"], LONG).await.expect_err("missing").to_string();
        assert!(error.starts_with("cannot start no-such-program"), "{error}");
    }
}
