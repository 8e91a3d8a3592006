//! A running service in a directory of its own, and what must not change in it.

use img_storage_tests::service::{Ran, Service, program};
use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io::{Read as _, Write as _},
    os::unix::{fs::MetadataExt as _, net::UnixStream},
    path::{Path, PathBuf},
    time::Duration,
};
use tempfile::TempDir;

/// Every file below a directory with its length and a checksum of its contents; directories with nothing.
pub type Tree = BTreeMap<PathBuf, Option<(u64, u64)>>;

pub struct Bed {
    pub service: Service,
    pub dir: TempDir,
}

/// Nothing runs.
pub fn idle() -> Bed {
    let dir = tempfile::tempdir().unwrap();
    let service = Service::new(program().unwrap(), dir.path()).unwrap();
    Bed { service, dir }
}

/// `up` runs, with these words.
pub async fn up(words: &[&str]) -> Bed {
    let mut bed = idle();
    bed.up(words).await;
    bed
}

impl Bed {
    pub async fn up(&mut self, words: &[&str]) {
        let words: Vec<&str> = ["up"].iter().chain(words).copied().collect();
        self.service.start(&words).unwrap();
        self.service.ready(4).await.unwrap();
    }

    /// A path beside the state directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    pub fn state(&self, name: &str) -> PathBuf {
        self.service.dir().join(name)
    }

    pub async fn run<W: AsRef<OsStr>>(&self, words: &[W]) -> Ran {
        self.service.run(words).await.unwrap()
    }

    /// A command that must succeed.
    pub async fn ok(&self, words: &[&str]) -> String {
        self.run(words).await.ok().unwrap()
    }

    /// All volumes, without what changes by itself.
    pub async fn volumes(&self) -> serde_json::Value {
        let mut all: serde_json::Value = serde_json::from_str(&self.ok(&["list", "-o", "json"]).await).unwrap();
        for volume in all["volumes"].as_array_mut().into_iter().flatten() {
            for field in ["lag", "allocated", "dirty", "notice"] {
                volume.as_object_mut().unwrap().remove(field);
            }
        }
        all
    }

    /// What the service keeps: volumes and local copies.
    pub fn kept(&self) -> Tree {
        let mut all = Tree::new();
        for part in ["pools", "compute-0-0/pool", "compute-0-1/pool", "pki"] {
            all.extend(tree(&self.state(part)));
        }
        all
    }

    /// The command ends with `code`, says on stderr all of `named`, prints nothing and changes nothing.
    pub async fn refused<W: AsRef<OsStr>>(&self, words: &[W], code: i32, named: &[&str]) -> Ran {
        let (volumes, kept) = (self.volumes().await, self.kept());
        let ran = self.run(words).await;
        complains(&ran, code, named);
        assert_eq!(self.volumes().await, volumes, "`{}` changed the list", ran.command);
        assert_eq!(self.kept(), kept, "`{}` changed files", ran.command);
        ran
    }

    /// Asks the API in raw bytes: the status and the body.
    pub fn raw(&self, request: &[u8]) -> (u16, String) {
        let mut stream = UnixStream::connect(self.state("api.sock")).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        // One that is too long is refused before all of it is sent.
        let _ = stream.write_all(request);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer:?}"));
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    pub fn http(&self, method: &str, path: &str, body: &[u8]) -> (u16, serde_json::Value) {
        let head = format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
        let (status, answer) = self.raw(&[head.as_bytes(), body].concat());
        let value = serde_json::from_str(&answer).unwrap_or_else(|_| panic!("{method} {path}: {status} {answer:?}"));
        (status, value)
    }
}

/// The command ended with `code`, said on stderr all of `named`, and printed nothing.
pub fn complains(ran: &Ran, code: i32, named: &[&str]) {
    let Ran { command, stderr, .. } = ran;
    assert_eq!(ran.code, code, "`{command}`: {stderr}");
    assert_eq!(ran.stdout, "", "`{command}` printed something");
    for name in named {
        assert!(stderr.contains(name), "`{command}` does not say {name:?}: {stderr}");
    }
    assert!(!stderr.contains("panicked"), "`{command}`: {stderr}");
    // A hint of ours, or one of the command line's parser.
    let hint = [" next: ", "; ", "tip: ", "Usage: ", "try '--help'"].iter().any(|hint| stderr.contains(hint));
    assert!(hint, "`{command}` gives no next step: {stderr}");
}

pub fn tree(dir: &Path) -> Tree {
    let mut all = Tree::new();
    let Ok(entries) = fs::read_dir(dir) else { return all };
    for entry in entries {
        let path = entry.unwrap().path();
        let meta = fs::symlink_metadata(&path).unwrap();
        if meta.is_dir() {
            all.insert(path.clone(), None);
            all.extend(tree(&path));
        } else {
            let sum = if meta.is_file() { checksum(&path) } else { 0 };
            all.insert(path, Some((meta.len(), sum)));
        }
    }
    all
}

pub fn checksum(path: &Path) -> u64 {
    let mut hasher = DefaultHasher::new();
    fs::read(path).unwrap().hash(&mut hasher);
    hasher.finish()
}

/// The bytes a file takes on disk.
pub fn allocated(path: &Path) -> u64 {
    fs::metadata(path).unwrap().blocks() * 512
}

/// Runs a tool that must succeed.
pub fn tool(name: &str, words: &[&str]) -> String {
    let output = std::process::Command::new(name).args(words).output().unwrap_or_else(|error| panic!("{name}: {error}"));
    assert!(output.status.success(), "{name} {words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Waits until something is so.
pub async fn until(what: &str, limit: Duration, mut is: impl FnMut() -> bool) {
    let begun = std::time::Instant::now();
    while !is() {
        assert!(begun.elapsed() < limit, "not {what} after {limit:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
