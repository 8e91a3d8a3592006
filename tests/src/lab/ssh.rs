//! Commands in a guest, over one connection that stays open.
//!
//! The connection is made inside the lab's network; whoever uses it afterwards reaches it by its socket in the lab's directory,
//! and never by an address, which outside would mean another machine.

use super::{address, namespace::Namespace};
use anyhow::{Context as _, bail, ensure};
use img_storage_host::exec;
use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// What a command in a guest printed, and how it ended.
#[derive(Clone, Debug)]
pub struct Output {
    /// The exit code: 124 or 137 when it did not end in its time.
    pub code: i32,
    /// What it printed.
    pub stdout: String,
    /// What it complained about; the end of it.
    pub stderr: String,
    /// How long it took, with the way there and back.
    pub took: Duration,
}

/// The way into one guest.
#[derive(Clone, Debug)]
pub struct Ssh {
    guest: String,
    dir: PathBuf,
}

impl Ssh {
    /// The way into a guest of the lab in `dir`.
    pub fn new(guest: &str, dir: &Path) -> Self {
        Ssh { guest: guest.to_owned(), dir: dir.to_owned() }
    }

    fn socket(&self) -> PathBuf {
        self.dir.join(format!("{}.ssh", self.guest))
    }

    fn login(&self) -> String {
        format!("root@{}", address("control", &self.guest))
    }

    /// Whether there is a connection.
    pub fn is_open(&self) -> bool {
        self.socket().exists()
    }

    /// Opens the connection; one that is open is left.
    ///
    /// # Errors
    /// When the guest does not let us in.
    pub async fn open(&self, namespace: &Namespace) -> anyhow::Result<()> {
        if self.is_open() {
            return Ok(());
        }
        let file = |name: &str| self.dir.join(name).display().to_string();
        let log = file(&format!("{}.ssh.log", self.guest));
        // It goes to the background when it is in; its output must not be ours then.
        let script = format!(
            "exec ssh -F none -f -N -M -S '{}' -i '{}' -o IdentitiesOnly=yes -o BatchMode=yes -o ConnectTimeout=15 -o UserKnownHostsFile='{}' \
             -o GlobalKnownHostsFile=none -o StrictHostKeyChecking=yes -o ServerAliveInterval=10 -o ServerAliveCountMax=6 {} \
             > '{log}' 2>&1 < /dev/null",
            self.socket().display(),
            file("root"),
            file("known_hosts"),
            self.login(),
        );
        let opened = namespace.run(&["sh", "-c", &script], Duration::from_secs(30)).await;
        let said = || fs::read_to_string(&log).unwrap_or_default();
        opened.with_context(|| format!("opening a connection to {}: {}", self.guest, said().trim()))?;
        Ok(())
    }

    /// Forgets the connection, as the guest is not there any more.
    pub async fn close(&self) {
        if self.is_open() {
            let mut words = self.words("ssh");
            words.extend(["-O", "exit", "lab"].map(str::to_owned));
            let _ = exec::run(&words[0], &words[1..], Duration::from_secs(5)).await;
            let _ = fs::remove_file(self.socket());
        }
    }

    /// The command that uses the connection, and never makes one.
    pub fn words(&self, program: &str) -> Vec<String> {
        let socket = format!("ControlPath={}", self.socket().display());
        let words =
            [program, "-F", "none", "-o", &socket, "-o", "ControlMaster=no", "-o", "ProxyCommand=false", "-o", "BatchMode=yes"];
        words.map(str::to_owned).to_vec()
    }

    /// What `ssh` is told so that a person can type in the guest.
    pub fn interactive(&self, command: &[String]) -> Vec<String> {
        let mut words = self.words("ssh");
        words.push(self.login());
        words.extend_from_slice(command);
        words
    }

    /// Runs a script of bash in the guest; there it is ended when its time is over.
    ///
    /// # Errors
    /// When it cannot be run there, or the guest does not answer.
    pub async fn run(&self, script: &str, limit: Duration) -> anyhow::Result<Output> {
        let begun = Instant::now();
        ensure!(self.is_open(), "there is no connection to {}: it does not run, or was not waited for", self.guest);
        let mut words = self.words("ssh");
        let seconds = limit.as_secs().max(1);
        words.extend([self.login(), format!("exec timeout -k 5 {seconds} bash -c {}", quote(script))]);
        // The guest's own limit comes first: when this one is reached it is the guest or the way there that hangs.
        let (status, output) = exec::run_to_status(&words[0], &words[1..], limit + Duration::from_secs(20)).await?;
        let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout).into_owned(), output.stderr);
        match status.code() {
            Some(255) if !Path::new(&self.socket()).exists() => {
                bail!("the connection to {} was cut: {}", self.guest, stderr.trim())
            }
            Some(code) => Ok(Output { code, stdout, stderr, took: begun.elapsed() }),
            None => bail!("ssh to {} was killed: {status}", self.guest),
        }
    }

    /// Copies a file into the guest.
    ///
    /// # Errors
    /// When that fails.
    pub async fn put(&self, file: &Path, to: &str, limit: Duration) -> anyhow::Result<()> {
        self.copy(&file.display().to_string(), &format!("{}:{to}", self.login()), limit).await
    }

    /// Copies a file out of the guest.
    ///
    /// # Errors
    /// When that fails.
    pub async fn get(&self, file: &str, to: &Path, limit: Duration) -> anyhow::Result<()> {
        self.copy(&format!("{}:{file}", self.login()), &to.display().to_string(), limit).await
    }

    async fn copy(&self, from: &str, to: &str, limit: Duration) -> anyhow::Result<()> {
        ensure!(self.is_open(), "there is no connection to {}", self.guest);
        let mut words = self.words("scp");
        words.extend(["-q", "-p", from, to].map(str::to_owned));
        exec::run(&words[0], &words[1..], limit).await?;
        Ok(())
    }
}

/// A text as one word of a shell.
pub fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}
