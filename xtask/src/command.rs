//! Running other programs: what they print goes on, and is kept.

use anyhow::{Context as _, ensure};
use rustix::process::{Pid, Signal, kill_process_group};
use std::{
    io::{BufRead as _, BufReader, Read, Write as _},
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Mutex, PoisonError, mpsc},
    time::{Duration, Instant},
};

/// The process groups that end when this program is told to.
static GROUPS: Mutex<Vec<Pid>> = Mutex::new(Vec::new());

/// What was started, as a process group of its own.
pub struct Group(Pid);

impl Group {
    /// Takes the group that `child`, started with `process_group(0)`, leads.
    ///
    /// # Errors
    /// When it has no process id.
    pub fn of(child: &Child) -> anyhow::Result<Self> {
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).context("a process id")?;
        GROUPS.lock().unwrap_or_else(PoisonError::into_inner).push(pid);
        Ok(Group(pid))
    }

    /// Kills all of it.
    pub fn kill(&self) {
        let _ = kill_process_group(self.0, Signal::KILL);
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        GROUPS.lock().unwrap_or_else(PoisonError::into_inner).retain(|pid| *pid != self.0);
    }
}

/// From now on Ctrl-C, or being asked to end, ends every group and then this program.
///
/// # Errors
/// When signals cannot be received.
pub fn end_with_all() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::spawn(move || {
        runtime.block_on(crate::demo::interrupted());
        for pid in GROUPS.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let _ = kill_process_group(*pid, Signal::KILL);
        }
        eprintln!("interrupted");
        std::process::exit(130);
    });
    Ok(())
}

/// The workspace's directory.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(|| ".".into(), PathBuf::from)
}

/// A command as a person would type it.
pub fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

/// Cargo, in the workspace.
pub fn cargo(words: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(words).current_dir(root());
    command
}

/// As [`cargo`], for what gives way to what runs beside it.
pub fn nice_cargo(words: &[&str]) -> Command {
    let mut command = Command::new("nice");
    command.args(["-n", "15"]).arg(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())).args(words).current_dir(root());
    command
}

/// Runs a command and gives its standard output.
///
/// # Errors
/// When it cannot be started or fails; with what it said.
pub fn output(command: &mut Command) -> anyhow::Result<String> {
    let shown = line(command);
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("starting `{shown}`"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`{shown}` failed with {}: {}", output.status, said.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// How a command that was watched ended.
pub struct Watched {
    /// It succeeded, in time.
    pub success: bool,
    /// What it printed, both streams.
    pub printed: String,
}

/// Runs a command, passing on what it prints as it comes. One that takes longer than `limit` is killed, with all it started.
///
/// # Errors
/// When it cannot be started.
pub fn watch(command: &mut Command, limit: Duration) -> anyhow::Result<Watched> {
    watch_as("", command, limit)
}

/// As [`watch`], with a word before each line, where it runs beside others.
///
/// # Errors
/// As [`watch`].
pub fn watch_as(word: &str, command: &mut Command, limit: Duration) -> anyhow::Result<Watched> {
    let shown = line(command);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn().with_context(|| format!("starting `{shown}`"))?;
    let group = Group::of(&child)?;
    let (sender, lines) = mpsc::channel();
    let streams: [Option<Box<dyn Read + Send>>; 2] =
        [child.stdout.take().map(|s| Box::new(s) as _), child.stderr.take().map(|s| Box::new(s) as _)];
    for stream in streams.into_iter().flatten() {
        let sender = sender.clone();
        std::thread::spawn(move || {
            let mut reader = BufReader::new(stream);
            let mut text = Vec::new();
            while reader.read_until(b'\n', &mut text).is_ok_and(|read| read > 0) {
                if sender.send(String::from_utf8_lossy(&text).into_owned()).is_err() {
                    return;
                }
                text.clear();
            }
        });
    }
    drop(sender);
    let begun = Instant::now();
    let mut printed = String::new();
    let mut late = false;
    loop {
        match lines.recv_timeout(limit.saturating_sub(begun.elapsed())) {
            Ok(text) => {
                print!("{word}{text}");
                let _ = std::io::stdout().flush();
                printed.push_str(&text);
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                late = true;
                println!("{word}`{shown}` takes longer than {} s and is ended", limit.as_secs());
                group.kill();
                break;
            }
        }
    }
    let status = child.wait()?;
    Ok(Watched { success: status.success() && !late, printed })
}
