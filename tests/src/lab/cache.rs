//! What is costly to build and is kept, outside the checkout: each product in a directory of its own, whose name says what it
//! was made from. A product is there as a whole or not at all, and two who want the same one build it once.

use anyhow::{Context as _, bail, ensure};
use rustix::fs::{FlockOperation, flock};
use std::{
    fs::{self, File},
    io::ErrorKind,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

/// The directory of all products.
#[derive(Clone, Debug)]
pub struct Cache(PathBuf);

/// The end of a step's output that is shown when it fails, in lines.
const SHOWN: usize = 60;
/// How many products of a kind are kept.
const KEPT: usize = 4;

impl Cache {
    /// `$XDG_CACHE_HOME/img-storage/lab`, or the same below `~/.cache`.
    ///
    /// # Errors
    /// When nothing says where a cache may be, or it cannot be made.
    pub fn open() -> anyhow::Result<Self> {
        let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let base = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")));
        let dir = base.context("neither XDG_CACHE_HOME nor HOME says where to keep the lab's images")?.join("img-storage/lab");
        fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        Ok(Cache(dir))
    }

    /// Where it is.
    pub fn dir(&self) -> &Path {
        &self.0
    }

    /// The product of this kind whose name ends like this; the newest when there are several.
    pub fn find(&self, kind: &str, ending: &str) -> Option<PathBuf> {
        let entries = fs::read_dir(self.0.join(kind)).ok()?;
        let ours = entries.flatten().filter(|entry| entry.file_name().to_string_lossy().ends_with(ending));
        ours.max_by_key(|entry| entry.metadata().and_then(|m| m.modified()).ok()).map(|entry| entry.path())
    }

    /// The product of this kind whose name ends like this, built if it is not there. `script` gets the directories `OUT` and
    /// `WORK` with `variables`; `name` gives what was made its name, which must end like this.
    ///
    /// # Errors
    /// When it cannot be built; with the end of what the script said.
    pub fn product(
        &self,
        kind: &str,
        ending: &str,
        script: &Path,
        variables: &[(&str, &Path)],
        name: impl FnOnce(&Path) -> anyhow::Result<String>,
    ) -> anyhow::Result<PathBuf> {
        if let Some(there) = self.find(kind, ending) {
            return Ok(there);
        }
        let _lock = self.lock(kind)?;
        if let Some(there) = self.find(kind, ending) {
            return Ok(there);
        }
        self.build(kind, ending, script, variables, name)
    }

    /// Builds a product even if there is one of that name's ending.
    ///
    /// # Errors
    /// As [`Cache::product`].
    pub fn rebuild(
        &self,
        kind: &str,
        ending: &str,
        script: &Path,
        variables: &[(&str, &Path)],
        name: impl FnOnce(&Path) -> anyhow::Result<String>,
    ) -> anyhow::Result<PathBuf> {
        let _lock = self.lock(kind)?;
        self.build(kind, ending, script, variables, name)
    }

    /// With the lock of the kind held.
    fn build(
        &self,
        kind: &str,
        ending: &str,
        script: &Path,
        variables: &[(&str, &Path)],
        name: impl FnOnce(&Path) -> anyhow::Result<String>,
    ) -> anyhow::Result<PathBuf> {
        let begun = Instant::now();
        println!("lab: {kind} is being built; this is done once, and kept in {}", self.0.display());
        // Nobody else builds it, so what lies there was left by one that was cut off.
        let unfinished = self.0.join(format!("{kind}.unfinished"));
        remove(&unfinished)?;
        let (out, work) = (unfinished.join("out"), unfinished.join("work"));
        fs::create_dir_all(&out)?;
        fs::create_dir_all(&work)?;
        let log = self.0.join(format!("{kind}.log"));
        let file = File::create(&log)?;
        let mut command = Command::new("nice");
        command.args(["-n", "5", "bash"]).arg(script).env("OUT", &out).env("WORK", &work).env("LC_ALL", "C.UTF-8");
        command.envs(variables.iter().copied()).stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let status = command.status().with_context(|| format!("starting {}", script.display()))?;
        let said = String::from_utf8_lossy(&fs::read(&log).unwrap_or_default()).into_owned();
        if !status.success() {
            bail!("{} ended with {status}; the end of {}:\n{}", script.display(), log.display(), tail(&said, SHOWN));
        }
        let name = name(&out)?;
        ensure!(name.ends_with(ending), "the product {name} of {kind} is not called as it is looked for: {ending}");
        let place = self.0.join(kind).join(&name);
        fs::create_dir_all(self.0.join(kind))?;
        remove(&place)?;
        fs::rename(&out, &place).with_context(|| format!("putting {} in its place", place.display()))?;
        remove(&unfinished)?;
        self.prune(kind);
        for line in said.lines().filter(|line| line.starts_with("lab: ")) {
            println!("{line}");
        }
        println!("lab: {kind} is built, in {} s", begun.elapsed().as_secs());
        Ok(place)
    }

    /// Removes the oldest products of a kind. Several stay: other checkouts, and labs that run, have theirs among them.
    fn prune(&self, kind: &str) {
        let mut all: Vec<PathBuf> = fs::read_dir(self.0.join(kind)).into_iter().flatten().flatten().map(|e| e.path()).collect();
        all.sort_by_key(|path| std::cmp::Reverse(fs::metadata(path).and_then(|m| m.modified()).ok()));
        for old in all.iter().skip(KEPT) {
            let _ = fs::remove_dir_all(old);
        }
    }

    fn lock(&self, kind: &str) -> anyhow::Result<File> {
        let path = self.0.join(format!("{kind}.lock"));
        let file = File::options().create(true).append(true).open(&path)?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            println!("lab: somebody else builds {kind}; waiting");
            flock(&file, FlockOperation::LockExclusive).with_context(|| format!("locking {}", path.display()))?;
        }
        Ok(file)
    }
}

/// The last lines of a text.
pub fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Removes a directory that may not be there.
fn remove(dir: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error).with_context(|| format!("removing {}", dir.display())),
        _ => Ok(()),
    }
}
