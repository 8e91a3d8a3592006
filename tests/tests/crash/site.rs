//! The processes of one life: a front end, a NAS and two nodes, each a process of its own, and their storage daemons.

use crate::plan::{Moment, Teller, Victim};
use anyhow::{Context as _, bail, ensure};
use img_storage_model::api::VolumeView;
use img_storage_tests::{
    processes,
    service::{self, Service},
};
use std::{
    fs,
    io::{Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

pub const NAS: &str = "nas-0-0";
pub const NODES: [&str; 2] = ["compute-0-0", "compute-0-1"];
/// How old the NAS's copy may get.
const FREQUENCY: &str = "3s";
/// The name of the one volume.
pub const VOLUME: &str = "vol1";

const FRONTEND_ROLE: usize = 0;
const NAS_ROLE: usize = 1;
const NODE_ROLES: [usize; 2] = [2, 3];

/// The processes.
pub struct Site {
    service: Service,
    dir: tempfile::TempDir,
}

impl Site {
    /// Starts the daemons. Every life's NAS has an address of its own: what would have the port of a storage daemon that was killed,
    /// before it is started again, is another life's.
    pub fn start(seed: u64) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("crash").tempdir()?;
        let mut service = Service::new(service::program()?, dir.path())?;
        // Every step is told before it is done: that is what moments are found by.
        service.env("IMG_STORAGE_LOG", "info,img_storage_daemon=debug");
        let config = dir.path().join("nas.toml");
        let [low, high, ..] = seed.to_le_bytes();
        fs::write(&config, format!("[nas]\naddress = \"127.77.{high}.{low}\"\n"))?;
        service.start(&["frontend"])?;
        service.start(&["nas", "--name", NAS, "--frequency", FREQUENCY, "--config", &config.to_string_lossy()])?;
        for node in NODES {
            service.start(&["vm", "--name", node])?;
        }
        Ok(Site { service, dir })
    }

    pub async fn ready(&mut self) -> anyhow::Result<()> {
        self.service.ready(NODES.len() + 2).await
    }

    /// A place for files of the test.
    pub fn scratch(&self) -> &Path {
        self.dir.path()
    }

    /// The volume's directory on the NAS.
    pub fn home(&self) -> PathBuf {
        self.service.dir().join("pools").join(NAS).join("tank").join(VOLUME)
    }

    fn log(&self, teller: Teller, node: usize) -> PathBuf {
        self.service.log(match teller {
            Teller::Nas => NAS_ROLE,
            Teller::Node => NODE_ROLES[node],
        })
    }

    /// Begins to listen for a moment; what was said before does not count.
    pub fn listen(&self, moment: Moment, node: usize) -> Ear {
        let path = self.log(moment.teller, node);
        let heard = fs::metadata(&path).map_or(0, |m| m.len());
        Ear { path, heard, rest: String::new(), says: moment.says }
    }

    /// Whether the NAS has written down that the node has the newest writes.
    pub fn node_has_authority(&self) -> bool {
        let text = fs::read_to_string(self.log(Teller::Nas, 0)).unwrap_or_default();
        let word = |line: &str| {
            if line.contains("on its local copy") && line.contains("has the newest writes") || line.contains("may switch back") {
                Some(true)
            } else if line.contains("the newest writes are here") || line.contains("may switch to its local copy") {
                Some(false)
            } else {
                line.contains("unmapped from").then_some(false)
            }
        };
        text.lines().rev().find_map(word).unwrap_or(false)
    }

    /// Runs a command of the CLI beside what else happens.
    pub fn ask(&self, words: &[&str]) -> Asked {
        let words: Vec<String> = words.iter().map(|&w| w.to_owned()).collect();
        let mut command = tokio::process::Command::new(self.service.program());
        command.args(&words).env("IMG_STORAGE_DIR", self.service.dir()).stdin(Stdio::null()).kill_on_drop(true);
        Asked(tokio::spawn(async move {
            let output = tokio::time::timeout(Duration::from_secs(90), command.output()).await;
            let output = output.with_context(|| format!("`{}` did not end", words.join(" ")))??;
            if output.status.success() {
                return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
            }
            bail!("`{}`: {}", words.join(" "), String::from_utf8_lossy(&output.stderr).trim())
        }))
    }

    /// The volume, when the front end knows; `None` when it says that there is none.
    pub async fn volume(&self) -> anyhow::Result<Option<VolumeView>> {
        let listed = self.service.run_within(&["list", "-o", "json"], Duration::from_secs(30)).await?.ok()?;
        let mut listed: serde_json::Value = serde_json::from_str(&listed)?;
        let volumes: Vec<VolumeView> = serde_json::from_value(listed["volumes"].take())?;
        Ok(volumes.into_iter().next())
    }

    fn storage_daemons(&self, host: &str) -> anyhow::Result<Vec<u32>> {
        Ok(self.service.storage_daemons()?.into_iter().filter(|d| d.host == host).map(|d| d.pid).collect())
    }

    /// Every storage daemon there is.
    pub fn all_storage_daemons(&self) -> anyhow::Result<Vec<String>> {
        Ok(self.service.storage_daemons()?.into_iter().map(|d| format!("{} pid {}", d.dir.display(), d.pid)).collect())
    }

    /// Kills them with -9, as good as at once.
    pub fn kill(&mut self, victims: &[Victim], node: usize) -> anyhow::Result<()> {
        // The processes are found before the first is killed.
        let mut pids = Vec::new();
        for victim in victims {
            pids.extend(match victim {
                Victim::NasQsd => self.storage_daemons(NAS)?,
                Victim::NodeQsd => self.storage_daemons(NODES[node])?,
                _ => Vec::new(),
            });
        }
        for role in daemons(victims, node) {
            self.service.kill(role)?;
        }
        for pid in pids {
            processes::kill_and_wait(pid);
        }
        Ok(())
    }

    /// Starts the killed daemons again; storage daemons are theirs to start.
    pub fn restart(&mut self, victims: &[Victim], node: usize) -> anyhow::Result<()> {
        for role in daemons(victims, node) {
            self.service.restart(role)?;
        }
        Ok(())
    }

    /// An error when a daemon has ended by itself.
    pub fn all_daemons_run(&mut self) -> anyhow::Result<()> {
        for (role, name) in self.service.roles().into_iter().enumerate() {
            if let Some(code) = self.service.ended(role)? {
                bail!("`img-storage {name}` ended by itself with {code}");
            }
        }
        Ok(())
    }

    /// Holds the NAS daemon still, when it is not dead, and lets it go on when dropped. What it started ends first.
    pub async fn hold_nas(&mut self) -> anyhow::Result<Held> {
        let alive = self.service.ended(NAS_ROLE)?.is_none();
        let held = Held(alive.then(|| self.service.pid(NAS_ROLE)));
        if let Some(pid) = held.0 {
            processes::stop(pid);
        }
        let begun = Instant::now();
        while processes::names_path("qemu-img", self.service.dir())? {
            ensure!(begun.elapsed() < Duration::from_secs(20), "a qemu-img of the NAS does not end");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(held)
    }

    /// Files and directories that have to do with a volume, but for the logs.
    pub fn left_over(&self, id: &str) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut ahead = vec![self.service.dir().to_owned()];
        while let Some(dir) = ahead.pop() {
            for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
                let path = entry.path();
                let name = entry.file_name().to_string_lossy().into_owned();
                if name.contains(id) || name == VOLUME {
                    found.push(path);
                } else if entry.file_type().is_ok_and(|t| t.is_dir()) {
                    ahead.push(path);
                }
            }
        }
        found
    }

    /// Copies the logs.
    pub fn keep_logs(&self, to: &Path) -> anyhow::Result<()> {
        if to.exists() {
            fs::remove_dir_all(to)?;
        }
        fs::create_dir_all(to)?;
        for log in fs::read_dir(self.service.logs())? {
            let log = log?;
            fs::copy(log.path(), to.join(log.file_name()))?;
        }
        Ok(())
    }
}

fn daemons(victims: &[Victim], node: usize) -> Vec<usize> {
    let role = |victim: &Victim| match victim {
        Victim::Frontend => Some(FRONTEND_ROLE),
        Victim::Nas => Some(NAS_ROLE),
        Victim::Node => Some(NODE_ROLES[node]),
        Victim::NasQsd | Victim::NodeQsd => None,
    };
    victims.iter().filter_map(role).collect()
}

/// A daemon that is held still.
pub struct Held(Option<u32>);

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(pid) = self.0 {
            processes::resume(pid);
        }
    }
}

/// A command under way; killed when dropped.
pub struct Asked(tokio::task::JoinHandle<anyhow::Result<String>>);

impl Asked {
    pub fn is_over(&self) -> bool {
        self.0.is_finished()
    }

    /// What it printed, when it succeeded.
    pub async fn answer(mut self) -> anyhow::Result<String> {
        (&mut self.0).await?
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Listens to a log for a moment.
pub struct Ear {
    path: PathBuf,
    heard: u64,
    rest: String,
    says: &'static str,
}

impl Ear {
    /// Whether it was told since the last look.
    pub fn hears(&mut self) -> anyhow::Result<bool> {
        if self.says.is_empty() {
            return Ok(true);
        }
        let length = fs::metadata(&self.path)?.len();
        if length <= self.heard {
            return Ok(false);
        }
        let mut file = fs::File::open(&self.path)?;
        file.seek(SeekFrom::Start(self.heard))?;
        let mut bytes = Vec::new();
        self.heard += u64::try_from(file.read_to_end(&mut bytes)?)?;
        self.rest.push_str(&String::from_utf8_lossy(&bytes));
        let found = self
            .rest
            .match_indices(self.says)
            .any(|(at, said)| self.rest[at + said.len()..].chars().next().is_none_or(|next| !next.is_ascii_alphanumeric()));
        let whole = self.rest.rfind('\n').map_or(0, |end| end + 1);
        self.rest.drain(..whole);
        Ok(found)
    }
}
