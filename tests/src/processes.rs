//! Processes, looked at and ended one by one.

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// A storage daemon of one state directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StorageDaemon {
    /// The process.
    pub pid: u32,
    /// The host it belongs to: the first part of its directory below the state directory.
    pub host: String,
    /// Its own directory.
    pub dir: PathBuf,
}

/// The storage daemons whose pid files lie under `state`.
///
/// # Errors
/// When processes cannot be listed.
pub fn storage_daemons(state: &Path) -> anyhow::Result<Vec<StorageDaemon>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("listing processes")? {
        let Ok(pid) = entry?.file_name().to_string_lossy().parse::<u32>() else { continue };
        let line = match fs::read(format!("/proc/{pid}/cmdline")) {
            Ok(line) => line,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Err(error.into()),
            Err(_) => continue,
        };
        let words: Vec<String> = line.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
        let is = words.iter().take(2).any(|word| word.ends_with("qemu-storage-daemon"));
        let Some(file) = words.windows(2).find(|pair| pair[0] == "--pidfile").filter(|_| is).map(|pair| Path::new(&pair[1]))
        else {
            continue;
        };
        if let (Ok(below), Some(dir)) = (file.strip_prefix(state), file.parent()) {
            let host = below.components().next().map(|c| c.as_os_str().to_string_lossy().into_owned()).unwrap_or_default();
            found.push(StorageDaemon { pid, host, dir: dir.to_owned() });
        }
    }
    found.sort_by(|a, b| (&a.host, &a.dir).cmp(&(&b.host, &b.dir)));
    Ok(found)
}

fn process(pid: u32) -> Option<Pid> {
    i32::try_from(pid).ok().and_then(Pid::from_raw)
}

/// Whether a process runs; one that has ended and was not waited for does not.
pub fn runs(pid: u32) -> bool {
    process(pid).is_some_and(|p| test_kill_process(p).is_ok())
        && fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty())
}

/// Kills a process with -9 and waits until it is gone, but for ten seconds at most.
pub fn kill_and_wait(pid: u32) {
    if let Some(process) = process(pid) {
        let _ = kill_process(process, Signal::KILL);
    }
    let begun = Instant::now();
    while runs(pid) && begun.elapsed() < Duration::from_secs(10) {
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Holds a process still until [`resume`].
pub fn stop(pid: u32) {
    if let Some(process) = process(pid) {
        let _ = kill_process(process, Signal::STOP);
    }
}

/// Holds a process still until [`resume`], and waits until none of its threads runs any more, not even in a system call that
/// it had begun; but for ten seconds at most.
pub fn hold(pid: u32) {
    stop(pid);
    let begun = Instant::now();
    while moves(pid) && begun.elapsed() < Duration::from_secs(10) {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Whether a thread of a process is not stopped.
fn moves(pid: u32) -> bool {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return false };
    tasks.flatten().any(|task| {
        let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        // The name before the state is in brackets and may itself have some.
        stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with(['T', 't', 'Z', 'X']))
    })
}

/// Lets a process that was stopped go on.
pub fn resume(pid: u32) {
    if let Some(process) = process(pid) {
        let _ = kill_process(process, Signal::CONT);
    }
}

/// Whether a process of this program runs that was told a path below `dir`.
///
/// # Errors
/// When processes cannot be listed.
pub fn names_path(program: &str, dir: &Path) -> anyhow::Result<bool> {
    let dir = dir.as_os_str().as_encoded_bytes();
    for entry in fs::read_dir("/proc").context("listing processes")? {
        let path = entry?.path().join("cmdline");
        let Ok(line) = fs::read(path) else { continue };
        let first = line.split(|byte| *byte == 0).next().unwrap_or_default();
        if first.ends_with(program.as_bytes()) && line.windows(dir.len()).any(|part| part == dir) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Asks a process to end.
pub fn terminate(pid: u32) {
    if let Some(process) = process(pid) {
        let _ = kill_process(process, Signal::TERM);
    }
}

/// The resident memory of a process in bytes: what it alone uses, and with what it shares.
///
/// # Errors
/// When it cannot be read.
pub fn memory(pid: u32) -> anyhow::Result<(u64, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).context("reading a process's memory")?;
    let field = |name: &str| {
        text.lines()
            .filter_map(|line| line.strip_prefix(name)?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok())
            .sum::<u64>()
            << 10
    };
    Ok((field("Private_Clean:") + field("Private_Dirty:"), field("Rss:")))
}
