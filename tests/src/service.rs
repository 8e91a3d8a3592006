//! The program's processes under control: its roles, its command line, and the storage daemons that it started.
//!
//! All of them are found by what they were started with, ended by their process ids, and gone when [`Service`] is dropped.

use crate::processes;
use anyhow::{Context as _, bail, ensure};
use img_storage_model::api::{Phase, VolumeView};
use std::{
    ffi::OsStr,
    fs::{self, File},
    os::unix::{fs::DirBuilderExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
};

/// The most a short command may take.
const SHORT: Duration = Duration::from_secs(60);

/// Where the program is: `IMG_STORAGE_BIN`, or beside the test that asks, where cargo builds it.
///
/// # Errors
/// When it was not built.
pub fn program() -> anyhow::Result<PathBuf> {
    if let Some(path) = std::env::var_os("IMG_STORAGE_BIN") {
        return Ok(path.into());
    }
    let exe = std::env::current_exe().context("where this program is")?;
    let found = exe.ancestors().skip(1).take(2).map(|dir| dir.join("img-storage")).find(|path| path.is_file());
    found.context("the program is not built; run `cargo build --workspace --bins` first, or set IMG_STORAGE_BIN")
}

/// How a command ended.
#[derive(Clone, Debug)]
pub struct Ran {
    /// The command line, without the program.
    pub command: String,
    /// Its exit code; -1 when a signal ended it.
    pub code: i32,
    /// What it printed.
    pub stdout: String,
    /// What it complained about.
    pub stderr: String,
    /// How long it took.
    pub took: Duration,
}

impl Ran {
    /// Its output, when it succeeded.
    ///
    /// # Errors
    /// What it said, when not.
    pub fn ok(self) -> anyhow::Result<String> {
        ensure!(self.code == 0, "`img-storage {}` failed with {}: {}", self.command, self.code, self.stderr.trim());
        Ok(self.stdout)
    }
}

struct Role {
    words: Vec<String>,
    child: Child,
}

/// The daemons of one state directory.
pub struct Service {
    program: PathBuf,
    dir: PathBuf,
    logs: PathBuf,
    wrapper: Vec<String>,
    roles: Vec<Role>,
    keep: bool,
}

impl Service {
    /// Nothing runs yet. The state directory is `dir/s`, short because sockets are in it; logs are in `dir/logs`.
    ///
    /// # Errors
    /// When directories cannot be made.
    pub fn new(program: PathBuf, dir: &Path) -> anyhow::Result<Self> {
        let (state, logs) = (dir.join("s"), dir.join("logs"));
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&state)?;
        fs::create_dir_all(&logs)?;
        Ok(Service { program, dir: state.canonicalize()?, logs, wrapper: Vec::new(), roles: Vec::new(), keep: false })
    }

    /// Starts daemons through another program, such as `unshare`.
    pub fn wrap(&mut self, words: &[&str]) {
        self.wrapper = words.iter().map(|&word| word.to_owned()).collect();
    }

    /// The state directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The program.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Leaves everything running when dropped.
    pub fn keep(&mut self) {
        self.keep = true;
    }

    /// Starts a role: `up`, `frontend`, `nas` or `vm`, with its arguments.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&mut self, words: &[&str]) -> anyhow::Result<()> {
        let name = words.iter().filter(|w| !w.starts_with('-')).take(2).copied().collect::<Vec<_>>().join("-").replace('/', "_");
        let log = File::options().create(true).append(true).open(self.logs.join(format!("{name}.log")))?;
        let mut command = match self.wrapper.split_first() {
            Some((first, rest)) => {
                let mut command = Command::new(first);
                command.args(rest).arg(&self.program);
                command
            }
            None => Command::new(&self.program),
        };
        command
            .args(words)
            .arg("--dir")
            .arg(&self.dir)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0);
        let child = command.spawn().with_context(|| format!("starting {}", self.program.display()))?;
        self.roles.push(Role { words: words.iter().map(|&w| w.to_owned()).collect(), child });
        Ok(())
    }

    /// The daemons, by number, with the words they were started with.
    pub fn roles(&self) -> Vec<String> {
        self.roles.iter().map(|role| role.words.join(" ")).collect()
    }

    /// The process id of a daemon.
    pub fn pid(&self, role: usize) -> u32 {
        self.roles[role].child.id()
    }

    /// Kills a daemon with -9.
    ///
    /// # Errors
    /// When that cannot be done.
    pub fn kill(&mut self, role: usize) -> anyhow::Result<()> {
        let child = &mut self.roles[role].child;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Starts a killed daemon again.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn restart(&mut self, role: usize) -> anyhow::Result<()> {
        let words = self.roles.remove(role).words;
        self.start(&words.iter().map(String::as_str).collect::<Vec<_>>())?;
        let last = self.roles.pop().context("just started")?;
        self.roles.insert(role, last);
        Ok(())
    }

    /// A daemon that has ended by itself, with its exit code.
    ///
    /// # Errors
    /// When that cannot be told.
    pub fn ended(&mut self, role: usize) -> anyhow::Result<Option<i32>> {
        Ok(self.roles[role].child.try_wait()?.map(|status| status.code().unwrap_or(-1)))
    }

    /// Waits until the front end answers and knows of so many hosts.
    ///
    /// # Errors
    /// When that takes more than half a minute, or a daemon ends; with the end of the logs.
    pub async fn ready(&mut self, hosts: usize) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            if self.dir.join("api.sock").exists() {
                let ran = self.run(&["hosts", "-o", "json"]).await?;
                let known: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap_or_default();
                let there = known["hosts"].as_array().map_or(0, |all| all.iter().filter(|h| h["away"] == false).count());
                if ran.code == 0 && there >= hosts {
                    return Ok(());
                }
            }
            for role in 0..self.roles.len() {
                if let Some(code) = self.ended(role)? {
                    bail!("`img-storage {}` ended with {code}:\n{}", self.roles[role].words.join(" "), self.log_tail());
                }
            }
            ensure!(begun.elapsed() < Duration::from_secs(30), "the daemons are not ready after 30 s:\n{}", self.log_tail());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The end of every log.
    pub fn log_tail(&self) -> String {
        let mut all = String::new();
        let logs = fs::read_dir(&self.logs).into_iter().flatten().flatten();
        for log in logs {
            let text = fs::read_to_string(log.path()).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            all.push_str(&format!("--- {}\n", log.file_name().to_string_lossy()));
            for line in &lines[lines.len().saturating_sub(30)..] {
                all.push_str(line);
                all.push('\n');
            }
        }
        all
    }

    /// Runs a command of the CLI.
    ///
    /// # Errors
    /// When it cannot be started or does not end in time.
    pub async fn run<W: AsRef<OsStr>>(&self, words: &[W]) -> anyhow::Result<Ran> {
        self.run_within(words, SHORT).await
    }

    /// The same, for a command that may take long.
    ///
    /// # Errors
    /// When it cannot be started or does not end in time.
    pub async fn run_within<W: AsRef<OsStr>>(&self, words: &[W], limit: Duration) -> anyhow::Result<Ran> {
        let shown = words.iter().map(|w| w.as_ref().to_string_lossy()).collect::<Vec<_>>().join(" ");
        let begun = Instant::now();
        let mut command = tokio::process::Command::new(&self.program);
        command.args(words).env("IMG_STORAGE_DIR", &self.dir).stdin(Stdio::null()).kill_on_drop(true);
        let output = tokio::time::timeout(limit, command.output())
            .await
            .with_context(|| format!("`img-storage {shown}` did not end within {limit:?}:\n{}", self.log_tail()))??;
        Ok(Ran {
            command: shown,
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            took: begun.elapsed(),
        })
    }

    /// A volume as the front end shows it.
    ///
    /// # Errors
    /// When it cannot be had.
    pub async fn volume(&self, name: &str) -> anyhow::Result<VolumeView> {
        let ran = self.run(&["show", name, "-o", "json"]).await?;
        Ok(serde_json::from_str(&ran.ok()?)?)
    }

    /// Asks the front end directly, without a program being started; its answer, whatever it is.
    ///
    /// # Errors
    /// When nobody answers.
    pub async fn ask(&self, method: &str, path: &str, body: &str) -> std::io::Result<String> {
        let mut stream = UnixStream::connect(self.dir.join("api.sock")).await?;
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        let (_, body) = answer.split_once("\r\n\r\n").ok_or_else(|| std::io::Error::other("no HTTP"))?;
        Ok(body.to_owned())
    }

    /// A volume as the front end shows it, asked directly: quick enough to watch short phases. `None` when nobody answers.
    pub async fn view(&self, name: &str) -> Option<VolumeView> {
        let path = format!("/api/volumes/{name}");
        let answer = tokio::time::timeout(Duration::from_secs(1), self.ask("GET", &path, "")).await.ok()?.ok()?;
        serde_json::from_str(&answer).ok()
    }

    /// The phase a volume is in.
    pub async fn glance(&self, name: &str) -> Option<Phase> {
        self.view(name).await.map(|view| view.phase)
    }

    /// Waits until a volume is in a phase.
    ///
    /// # Errors
    /// When it is not in time; with what it is instead.
    pub async fn until(&self, name: &str, phase: Phase, limit: Duration) -> anyhow::Result<VolumeView> {
        self.until_it(name, &format!("in phase {phase}"), limit, |v| v.phase == phase && v.stuck.is_none()).await
    }

    /// Waits until something is true of a volume; an answer that cannot be had is waited for too.
    ///
    /// # Errors
    /// When it is not in time; with what is the case instead.
    pub async fn until_it(
        &self,
        name: &str,
        what: &str,
        limit: Duration,
        is: impl Fn(&VolumeView) -> bool,
    ) -> anyhow::Result<VolumeView> {
        let begun = Instant::now();
        loop {
            let now = self.volume(name).await;
            match now {
                Ok(view) if is(&view) => return Ok(view),
                now if begun.elapsed() > limit => {
                    bail!("{name} is not {what} after {limit:?}, but {now:?}:\n{}", self.log_tail())
                }
                _ => tokio::time::sleep(Duration::from_millis(25)).await,
            }
        }
    }

    /// The storage daemons that run for this state directory.
    ///
    /// # Errors
    /// When processes cannot be listed.
    pub fn storage_daemons(&self) -> anyhow::Result<Vec<processes::StorageDaemon>> {
        processes::storage_daemons(&self.dir)
    }

    /// Ends everything, the storage daemons too: what a power failure would do, but for what is in the page cache.
    pub fn kill_all(&mut self) {
        for role in &mut self.roles {
            let _ = role.child.kill();
            let _ = role.child.wait();
        }
        // One that was being started when its daemon died is found at the second look.
        for _ in 0..2 {
            for daemon in self.storage_daemons().unwrap_or_default() {
                processes::kill_and_wait(daemon.pid);
            }
        }
    }

    /// Asks the daemons to end, and waits for that. Storage daemons stay.
    ///
    /// # Errors
    /// When one does not end within ten seconds.
    pub async fn terminate(&mut self) -> anyhow::Result<()> {
        for role in &self.roles {
            processes::terminate(role.child.id());
        }
        let begun = Instant::now();
        for role in 0..self.roles.len() {
            while self.ended(role)?.is_none() {
                ensure!(begun.elapsed() < Duration::from_secs(10), "`{}` does not end", self.roles[role].words.join(" "));
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        Ok(())
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if !self.keep {
            self.kill_all();
        }
    }
}
