//! The kernel plane: ZFS, the kernel's iSCSI target, open-iscsi, device-mapper, block devices, and streams between hosts.
//!
//! [`nas::KernelNas`] and [`node::KernelNode`] carry out the steps of the model, by the verbs of the other modules. In those is no
//! planner and no memory: each verb looks, does one thing where it is not done yet, and looks again.
//!
//! What holds for all of them:
//! - Every verb ends: programs have deadlines ([`crate::exec`]), and so has work on `/sys`, which the kernel may hold up
//!   (`blocking`). A verb whose deadline passed may still take effect; look again.
//! - Every verb can be repeated: where its work is done it does nothing and succeeds.
//! - A program that says it succeeded is believed: who asked for a step looks again at what it changes, and takes one that changed
//!   nothing for a failure. What one that failed has done is looked for here.
//! - Nothing is concluded from what a program wrote to its standard error. Whether a thing is there is found by listing what
//!   it would be in; when that fails, it could not be told, which is an error and never absence.
//! - What does not have our mark is not touched: ZFS user properties, the prefix of IQNs and backstores, the prefix of
//!   device-mapper UUIDs.

pub mod block;
pub mod dm;
pub mod iscsi;
pub mod lio;
pub mod marks;
pub mod nas;
pub mod node;
mod see;
pub mod stream;
pub mod zfs;

use crate::HostError;
use std::{
    fmt::Display,
    io,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::time::{Instant, sleep};

/// Where programs of administrators are, for users whose `PATH` does not say so.
const SBIN: [&str; 3] = ["/usr/sbin", "/sbin", "/usr/local/sbin"];

/// The path of a program, looked for in `PATH` and where administrators' programs are; its bare name where it is nowhere, so
/// that starting it fails and says which package is missing.
pub fn program(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).filter(|dir| dir.is_absolute()).chain(SBIN.map(PathBuf::from));
    places.map(|dir| dir.join(name)).find(|file| file.is_file()).unwrap_or_else(|| name.into())
}

/// An error: what was tried and on what, why it failed, and what to do next.
fn fault(what: impl Display, why: impl Display, next: &str) -> HostError {
    HostError(if next.is_empty() { format!("{what}: {why}") } else { format!("{what}: {why}; {next}") })
}

/// As [`fault`], for `map_err`, where what to do next is to look at the error.
fn during<E: Display>(what: impl Display) -> impl FnOnce(E) -> HostError {
    move |why| fault(what, why, "")
}

/// Runs what may be held up in the kernel on a thread of its own. After the deadline the thread is left behind: it cannot
/// be stopped, and whether what it does takes effect is to be looked at.
async fn blocking<T: Send + 'static>(
    what: impl Display,
    deadline: Duration,
    work: impl FnOnce() -> Result<T, HostError> + Send + 'static,
) -> Result<T, HostError> {
    match tokio::time::timeout(deadline, tokio::task::spawn_blocking(work)).await {
        Ok(Ok(done)) => done,
        Ok(Err(why)) => Err(fault(what, why, "")),
        Err(_) => Err(fault(
            what,
            format_args!("the kernel has not answered within {deadline:?}"),
            "look at dmesg for what it waits for",
        )),
    }
}

/// Looks again and again until there is something, or the time is over (nothing then). A look that fails ends it.
async fn until<T, F: Future<Output = Result<Option<T>, HostError>>>(
    deadline: Duration,
    mut look: impl FnMut() -> F,
) -> Result<Option<T>, HostError> {
    let end = Instant::now() + deadline;
    let mut pause = Duration::from_millis(2);
    loop {
        if let Some(found) = look().await? {
            return Ok(Some(found));
        }
        if Instant::now() >= end {
            return Ok(None);
        }
        sleep(pause).await;
        pause = (pause * 3 / 2).min(Duration::from_millis(50));
    }
}

/// The text of a small file of `/sys` or `/proc`, without its last newline; nothing where there is no such file.
fn text(path: &Path) -> Result<Option<String>, HostError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).trim_end_matches(['\n', '\0']).to_owned())),
        Err(why) if is_gone(&why) => Ok(None),
        Err(why) => Err(fault(format_args!("cannot read {}", path.display()), why, "")),
    }
}

/// The names in a directory, sorted; nothing where there is no such directory.
fn names(path: &Path) -> Result<Option<Vec<String>>, HostError> {
    let failed = |why: io::Error| fault(format_args!("cannot list {}", path.display()), why, "");
    let entries = match std::fs::read_dir(path) {
        Err(why) if is_gone(&why) => return Ok(None),
        entries => entries.map_err(failed)?,
    };
    let mut names = Vec::new();
    for entry in entries {
        match entry {
            Ok(entry) => names.push(entry.file_name().to_string_lossy().into_owned()),
            Err(why) if is_gone(&why) => return Ok(None),
            Err(why) => return Err(failed(why)),
        }
    }
    names.sort_unstable();
    Ok(Some(names))
}

/// The kernel's ways to say that a thing is not, or no longer, there.
pub(crate) fn is_gone(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let codes = [Errno::NOENT, Errno::NODEV, Errno::NXIO, Errno::NOTDIR, Errno::SRCH];
    error.raw_os_error().is_some_and(|code| codes.iter().any(|errno| errno.raw_os_error() == code))
}
