//! The image that guests boot, and the emulator that runs them: made of Debian's packages by the scripts in `tests/lab/build`,
//! from the sources that apt has on this machine.

use super::cache::Cache;
use anyhow::{Context as _, bail, ensure};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// The release of Debian that the guests are.
const GUESTS: &str = "bookworm";
/// The one that the emulator is of: its QEMU 10 starts a program in an emulated guest in half to a quarter of the time that the guests' own 7.2 takes.
const EMULATOR: &str = "trixie";
/// Who signs it, where Debian keeps that.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// What a guest is started from.
#[derive(Clone, Debug)]
pub struct Image {
    /// `root.erofs`, `vmlinuz`, `initrd.img` and `manifest`.
    pub dir: PathBuf,
    /// The unpacked packages of the emulator.
    pub emulator: PathBuf,
}

/// The files that the lab is made from.
pub fn files() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("lab")
}

impl Image {
    /// The image, built as far as it is not there; that takes minutes and the network.
    ///
    /// # Errors
    /// When it cannot be built; with the end of what the step said that failed.
    pub fn ensure() -> anyhow::Result<Self> {
        Self::make(false)
    }

    /// The image with the newest kernel and ZFS that Debian has: everything is built again.
    ///
    /// # Errors
    /// As [`Image::ensure`].
    pub fn newest() -> anyhow::Result<Self> {
        Self::make(true)
    }

    fn make(again: bool) -> anyhow::Result<Self> {
        let cache = Cache::open()?;
        let build = files().join("build");
        let common = build.join("common.sh");
        let step = |kind: &str, suite: &str, sources: &[PathBuf], more: &[(&str, &Path)], versions: Option<&Path>| {
            let script = build.join(format!("{kind}.sh"));
            let key = key(&[&[common.clone(), script.clone()], sources].concat(), more)?;
            let name = |out: &Path| named(versions.map_or_else(|| out.join("versions"), PathBuf::from).as_path(), &key);
            if let Some(there) = cache.find(kind, &key).filter(|_| !again) {
                return anyhow::Ok(there);
            }
            ensure!(
                rustix::process::geteuid().is_root(),
                "the lab's {kind} is not in {}, and only root can build it: sudo cargo xtask lab build",
                cache.dir().display()
            );
            let apt = Apt::of_this_machine(cache.dir(), suite)?;
            let variables = [&[("SOURCES", apt.sources.as_path()), ("APTOPTS", apt.options.as_path())], more].concat();
            if again {
                cache.rebuild(kind, &key, &script, &variables, name)
            } else {
                cache.product(kind, &key, &script, &variables, name)
            }
        };
        let (dir, emulator) = std::thread::scope(|scope| {
            let emulator = scope.spawn(|| step("emulator", EMULATOR, &[], &[], None));
            let dir = step("kernel", GUESTS, &[], &[], None).and_then(|kernel| {
                let guest = list(&files().join("guest"))?;
                step("root", GUESTS, &guest, &[("KERNEL", &kernel)], Some(&kernel.join("versions")))
            });
            (dir, emulator.join())
        });
        let Ok(emulator) = emulator else { bail!("building the emulator panicked") };
        Ok(Image { dir: dir?, emulator: emulator?.join("root") })
    }

    /// Starts a program of the emulator's packages with the libraries that came with it.
    pub fn program(&self, name: &str) -> Vec<String> {
        let at = |path: &str| self.emulator.join(path).display().to_string();
        let libraries = format!("{}:{}", at("lib/x86_64-linux-gnu"), at("usr/lib/x86_64-linux-gnu"));
        let modules = format!("QEMU_MODULE_DIR={}", at("usr/lib/x86_64-linux-gnu/qemu"));
        let program = at(&format!("usr/bin/{name}"));
        let words =
            ["env".to_owned(), modules, at("lib64/ld-linux-x86-64.so.2"), "--library-path".to_owned(), libraries, program];
        words.to_vec()
    }

    /// A file of the emulator's packages.
    pub fn part(&self, path: &str) -> String {
        self.emulator.join(path).display().to_string()
    }

    /// A file of the image.
    pub fn file(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }
}

/// `VERSION_…_KEY` of a file with versions in one line.
fn named(versions: &Path, key: &str) -> anyhow::Result<String> {
    let text = fs::read_to_string(versions).with_context(|| format!("reading {}", versions.display()))?;
    let words: Vec<String> = text.split_whitespace().map(|word| word.replace('/', "-")).collect();
    ensure!(!words.is_empty(), "{} names no version", versions.display());
    Ok(format!("{}_{key}", words.join("_")))
}

/// The files of a directory, in order.
fn list(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect::<anyhow::Result<Vec<_>>>()?;
    files.sort();
    Ok(files)
}

/// A short word for what files contain and what else goes in, by name.
fn key(files: &[PathBuf], more: &[(&str, &Path)]) -> anyhow::Result<String> {
    let mut hasher = blake3::Hasher::new();
    for file in files {
        let text = fs::read(file).with_context(|| format!("reading {}", file.display()))?;
        hasher.update(file.file_name().unwrap_or_default().as_encoded_bytes()).update(&text.len().to_le_bytes()).update(&text);
    }
    for (name, path) in more {
        hasher.update(name.as_bytes()).update(path.file_name().unwrap_or_default().as_encoded_bytes());
    }
    Ok(hasher.finalize().to_hex()[..12].to_owned())
}

/// What apt is told: this machine's mirrors of Debian and its settings for reaching them.
struct Apt {
    sources: PathBuf,
    options: PathBuf,
}

impl Apt {
    fn of_this_machine(dir: &Path, suite: &str) -> anyhow::Result<Self> {
        let output = |program: &str, words: &[&str]| {
            let output = Command::new(program).args(words).output().with_context(|| format!("starting {program}"))?;
            ensure!(output.status.success(), "{program} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
            anyhow::Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        };
        let targets =
            output("apt-get", &["indextargets", "--format", "$(ORIGIN)|$(REPO_URI)|$(CODENAME)", "Created-By: Packages"])?;
        let sources = sources(&targets, suite, Path::new(KEYRING).exists());
        ensure!(!sources.is_empty(), "apt has no source of Debian on this machine; add one, then: apt-get update");
        let settings = output("apt-config", &["dump", "--format", "%F \"%v\";%n", "Acquire"])?;
        let (place, options) = (dir.join(format!("{suite}.list")), dir.join("apt.conf"));
        write(&place, &sources)?;
        write(&options, &reaching(&settings))?;
        Ok(Apt { sources: place, options })
    }
}

/// Sources of a release, where this machine gets its own from: another release's mirror has it too.
fn sources(targets: &str, suite: &str, keyring: bool) -> String {
    let signed = if keyring { format!("[signed-by={KEYRING}] ") } else { String::new() };
    let mut lines: Vec<String> = Vec::new();
    for target in targets.lines() {
        let mut fields = target.split('|');
        let (Some("Debian"), Some(uri), Some(codename)) = (fields.next(), fields.next(), fields.next()) else { continue };
        let release = match codename.split_once('-') {
            Some((_, pocket @ ("updates" | "security"))) => format!("{suite}-{pocket}"),
            Some(_) => continue,
            None => suite.to_owned(),
        };
        let line = format!("deb {signed}{uri} {release} main contrib\n");
        if !lines.contains(&line) {
            lines.push(line);
        }
    }
    lines.concat()
}

/// The settings that say how a mirror is reached and trusted; what apt shows and keeps is none of the guests' business.
fn reaching(settings: &str) -> String {
    let ours = ["http", "https", "ftp", "Check-", "Retries", "Max-", "Min-", "Force", "Queue"];
    let is_ours = |line: &&str| {
        let name = line.strip_prefix("Acquire::").unwrap_or_default();
        ours.iter().any(|start| name.starts_with(start))
    };
    settings.lines().filter(is_ours).map(|line| format!("{line}\n")).collect()
}

/// Writes a file as a whole: two builds may do it at once.
fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    let mut file = tempfile::NamedTempFile::new_in(path.parent().context("a file in a directory")?)?;
    std::io::Write::write_all(&mut file, text.as_bytes())?;
    // apt reads it as a user of its own.
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    file.as_file().set_permissions(mode)?;
    file.persist(path).with_context(|| format!("writing {}", path.display()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_those_of_debian_for_the_release_of_the_guests() {
        let targets = "Debian|http://mirror/debian/|trixie\nDebian|http://mirror/debian/|trixie-updates\n\
                       Debian|http://mirror/security|trixie-security\nDebian|http://mirror/debian/|trixie\n\
                       Debian Backports|http://mirror/debian/|trixie-backports\nElse|http://else/|stable\n";
        let expected = "deb http://mirror/debian/ bookworm main contrib\ndeb http://mirror/debian/ bookworm-updates main contrib\n\
                        deb http://mirror/security bookworm-security main contrib\n";
        assert_eq!(sources(targets, "bookworm", false), expected);
        assert!(sources(targets, "trixie", true).starts_with("deb [signed-by=/usr/share/keyrings/"));
    }

    #[test]
    fn of_the_settings_of_apt_those_stay_that_reach_a_mirror() {
        let settings = "Acquire \"\";\nAcquire::http::Proxy \"http://proxy:3128\";\nAcquire::IndexTargets::deb \"\";\n\
                        Acquire::Check-Valid-Until \"false\";\nAcquire::Languages:: \"none\";\n";
        assert_eq!(reaching(settings), "Acquire::http::Proxy \"http://proxy:3128\";\nAcquire::Check-Valid-Until \"false\";\n");
    }
}
