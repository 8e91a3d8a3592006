//! Where a lab's processes run: a namespace of processes and one of the network, both without a name.
//!
//! The first process in them waits for the end of its standard input, which the lab's owner holds. When the owner ends, however
//! it ends, that process ends, the kernel kills every other one in the namespace, and the network with its bridges and taps is
//! gone with the last of them. Nothing has to be cleaned up, and nothing can be forgotten. A lab for hand work is told to stay
//! when it is up, and not before.

use super::GUESTS;
use anyhow::{Context as _, bail, ensure};
use img_storage_host::exec;
use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// The first process: it holds the lock, says its number as this machine sees it, and waits; also for the processes that others
/// leave to it, which would stay as zombies.
const FIRST: &str = r#"exec 9< "$1" 3<&0 && flock -n 9 || exit 1
read -r pid _ < /proc/self/stat && echo "$pid"
exec > /dev/null
(read -r word <&3 && exec sleep infinity) &
wait $!"#;

/// The namespaces of one lab.
#[derive(Debug)]
pub struct Namespace {
    /// The first process in it, as this machine sees it.
    first: u32,
    /// When it started, so that another process of that number is not taken for it.
    started: u64,
    /// The first process's parent, and what it waits on; none when it outlives its owner.
    held: Mutex<Option<(Child, ChildStdin)>>,
}

impl Namespace {
    /// Makes one that holds the lock on `lock`. It ends with this program, unless it is told to stay.
    ///
    /// # Errors
    /// When this machine does not allow it.
    pub fn new(lock: &Path) -> anyhow::Result<Self> {
        File::create(lock)?;
        // In a session of its own: what a terminal tells its owner is none of its business.
        let mut command = Command::new("setsid");
        command.args(["unshare", "--net", "--pid", "--fork", "--kill-child", "sh", "-c", FIRST, "lab"]).arg(lock);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("starting setsid, of util-linux")?;
        let mut said = String::new();
        BufReader::new(child.stdout.take().context("its output")?).read_line(&mut said)?;
        let Ok(first) = said.trim().parse() else {
            let error = child.stderr.take().map(std::io::read_to_string).transpose()?.unwrap_or_default();
            let _ = child.wait();
            bail!("this machine gives the lab no namespaces (it takes root): {}", error.trim());
        };
        let started = start_time(first).context("the first process of the lab's namespace ended at once")?;
        let stdin = child.stdin.take().context("its input")?;
        Ok(Namespace { first, started, held: Mutex::new(Some((child, stdin))) })
    }

    /// The one whose first process this is.
    ///
    /// # Errors
    /// When it has ended.
    pub fn of(first: u32, started: u64) -> anyhow::Result<Self> {
        ensure!(start_time(first) == Some(started), "the lab has ended");
        Ok(Namespace { first, started, held: Mutex::new(None) })
    }

    /// From now on it outlives this program.
    ///
    /// # Errors
    /// When it has ended.
    pub fn stay(&self) -> anyhow::Result<()> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((_, mut stdin)) = held {
            stdin.write_all(b"stay\n").context("the lab has ended")?;
        }
        Ok(())
    }

    /// The first process and when it started, to find it again.
    pub fn identity(&self) -> (u32, u64) {
        (self.first, self.started)
    }

    /// Whether it still is.
    pub fn lives(&self) -> bool {
        start_time(self.first) == Some(self.started)
    }

    /// What to put before a command that is to run in it.
    pub fn words(&self) -> Vec<String> {
        ["nsenter", "--target", &self.first.to_string(), "--net", "--pid", "--"].map(str::to_owned).to_vec()
    }

    /// Runs a short command in it; what it printed.
    ///
    /// # Errors
    /// When it fails or does not end in time.
    pub async fn run(&self, words: &[impl AsRef<str>], deadline: Duration) -> anyhow::Result<String> {
        // A number is used again: nothing may run in what only seems to be the lab's namespace.
        ensure!(self.lives(), "the lab has ended");
        let own = self.words();
        let all: Vec<&str> = own.iter().map(String::as_str).chain(words.iter().map(AsRef::as_ref)).collect();
        let output = exec::run(all[0], &all[1..], deadline).await?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Makes the two networks and a port in each for every guest: `data` is what is tested, `control` stays when it is cut.
    ///
    /// # Errors
    /// When this machine does not allow it.
    pub async fn network(&self) -> anyhow::Result<()> {
        let mut script = "set -e; ip link set lo up\n".to_owned();
        for net in ["data", "control"] {
            let host = super::address(net, super::HOST);
            script += &format!("ip link add {net} type bridge stp_state 0 forward_delay 0; ip addr add {host}/24 dev {net}\n");
            for guest in GUESTS {
                let port = port(net, guest);
                script += &format!("ip tuntap add dev {port} mode tap; ip link set {port} master {net} up\n");
            }
            script += &format!("ip link set {net} up\n");
        }
        self.run(&["sh", "-c", &script], Duration::from_secs(20)).await.context("making the lab's network")?;
        Ok(())
    }

    /// Ends everything in it, and waits until it is gone.
    ///
    /// # Errors
    /// When it does not go.
    pub fn end(&self) -> anyhow::Result<()> {
        if self.lives() {
            crate::processes::kill_and_wait(self.first);
        }
        let begun = Instant::now();
        while fs::exists(format!("/proc/{}", self.first))? && self.lives() {
            ensure!(begun.elapsed() < Duration::from_secs(20), "process {} of the lab does not end", self.first);
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let held = self.held.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((mut child, stdin)) = held {
            drop(stdin);
            let _ = child.wait();
        }
    }
}

/// The name of a guest's port in a network; an interface's name has 15 letters at most.
pub fn port(net: &str, guest: &str) -> String {
    format!("{guest}-{net}")
}

/// When a process that runs started, in ticks since the machine did.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    if matches!(*fields.first()?, "Z" | "X") {
        return None;
    }
    fields.get(19)?.parse().ok()
}
