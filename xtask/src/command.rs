//! Running other programs: what they print goes on, and is kept.

use anyhow::{Context as _, ensure};
use rustix::process::{Pid, Signal, kill_process_group};
use std::{
    io::{BufRead as _, BufReader, Read, Write as _},
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{Command, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

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
    let shown = line(command);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn().with_context(|| format!("starting `{shown}`"))?;
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
                print!("{text}");
                let _ = std::io::stdout().flush();
                printed.push_str(&text);
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                late = true;
                println!("`{shown}` takes longer than {} s and is ended", limit.as_secs());
                if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
                    let _ = kill_process_group(group, Signal::KILL);
                }
                break;
            }
        }
    }
    let status = child.wait()?;
    Ok(Watched { success: status.success() && !late, printed })
}
