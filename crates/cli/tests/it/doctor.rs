//! `doctor` on a real `up`, with its daemon alive, and killed.

use crate::support::{Ran, command, expect, run};
use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// Everything on one machine, in a directory; with its storage daemons it ends when this is dropped.
struct Up {
    dir: tempfile::TempDir,
    daemon: Child,
}

impl Up {
    fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("doc").tempdir().unwrap();
        fs::write(dir.path().join("empty.toml"), "").unwrap();
        let state = dir.path().join("s");
        fs::create_dir(&state).unwrap();
        let log = fs::File::create(dir.path().join("log")).unwrap();
        let mut up = command(&state);
        // It needs the programs of QEMU.
        up.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        let daemon =
            up.args(["up", "--nodes", "1", "--config", "../empty.toml"]).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let up = Up { dir, daemon };
        let begun = Instant::now();
        while run(&up.state(), &["hosts", "-o", "csv"]).out.lines().count() < 4 {
            let log = fs::read_to_string(up.dir.path().join("log")).unwrap_or_default();
            assert!(begun.elapsed() < Duration::from_secs(60), "not ready: {log}");
            std::thread::sleep(Duration::from_millis(50));
        }
        up
    }

    fn state(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    fn ok(&self, words: &str) {
        let ran = run(&self.state(), &words.split(' ').collect::<Vec<_>>());
        assert_eq!(ran.code, 0, "{words}: {ran:?}");
    }

    /// What doctor says, which changes nothing of what it looks at.
    fn doctor(&self, words: &[&str]) -> Ran {
        let mut doctor = command(&self.state());
        doctor.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        doctor.args(["doctor", "--config", "../empty.toml"]).args(words).output().unwrap().into()
    }

    /// The processes of its storage daemons, by directory.
    fn servers(&self) -> BTreeMap<PathBuf, String> {
        let mut found = BTreeMap::new();
        for host in ["nas-0-0", "compute-0-0"] {
            for place in fs::read_dir(self.state().join(host).join("run")).into_iter().flatten().flatten() {
                if let Ok(pid) = fs::read_to_string(place.path().join("pid")) {
                    found.insert(place.path(), pid.trim().to_owned());
                }
            }
        }
        found
    }

    /// A text without what differs from run to run.
    fn timeless(&self, text: &str) -> String {
        let dir = self.dir.path().canonicalize().unwrap();
        let mut text =
            text.replace(&dir.display().to_string(), "DIR").replace(&format!("daemon {}", self.daemon.id()), "daemon PID");
        for pid in self.servers().values() {
            text = text.replace(&format!("process {pid} "), "process PID ");
        }
        let mut number = 0;
        while let Some(at) = text.as_bytes().windows(36).position(is_identity) {
            number += 1;
            let identity = text[at..at + 36].to_owned();
            text = text.replace(&identity, &format!("ID-{number}"));
        }
        text
    }
}

fn is_identity(window: &[u8]) -> bool {
    window
        .iter()
        .enumerate()
        .all(|(at, byte)| if [8, 13, 18, 23].contains(&at) { *byte == b'-' } else { byte.is_ascii_hexdigit() })
}

fn kill(pid: &str) {
    let _ = Command::new("kill").args(["-9", pid]).status();
    let begun = Instant::now();
    // One that nobody waits for stays as a name.
    let lives = || fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty());
    while lives() && begun.elapsed() < Duration::from_secs(10) {
        std::thread::sleep(Duration::from_millis(10));
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        self.servers().values().for_each(|pid| kill(pid));
    }
}

/// Every file and directory below, with its contents, times, rights and number.
fn tree(dir: &Path) -> BTreeMap<PathBuf, (Vec<u8>, [i64; 6])> {
    let mut found = BTreeMap::new();
    let mut open = vec![dir.to_owned()];
    while let Some(path) = open.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        if meta.is_dir() {
            open.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        let contents = if meta.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
        let numbers =
            [meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec(), meta.mode().into(), meta.ino().cast_signed()];
        found.insert(path, (contents, numbers));
    }
    found
}

#[test]
fn the_living_the_dead_and_what_somebody_did_by_hand() {
    let mut up = Up::start();
    for words in
        ["create vol1 --size 16M", "create vol2 --size 16M", "map vol1 compute-0-0 --sync --wait local", "map vol2 compute-0-0"]
    {
        up.ok(words);
    }
    let begun = Instant::now();
    // What was under way when the device was there ends in a moment.
    let well = loop {
        let ran = up.doctor(&[]);
        if ran.code == 0 || begun.elapsed() > Duration::from_secs(30) {
            break ran;
        }
    };
    assert_eq!((well.code, well.out.as_str()), (0, ""), "{well:?}");
    let mut all = format!("$ img-storage doctor\n{}exit {}\n", up.timeless(&well.err), well.code);

    // From here on nobody but doctor could change anything.
    let pid = up.daemon.id().to_string();
    up.daemon.kill().unwrap();
    up.daemon.wait().unwrap();
    let state = up.state();
    let before = tree(&state);
    let dead = up.doctor(&[]);
    assert_eq!(dead.code, 6, "{dead:?}");
    assert!(!dead.err.contains(&format!("daemon {pid}")), "a number in a file is no daemon: {dead:?}");
    assert!(tree(&state) == before, "doctor changed something");
    all.push_str(&format!("\n$ img-storage doctor\n{}{}exit {}\n", dead.out, dead.err, dead.code));

    let tank = state.join("pools/nas-0-0/tank");
    fs::rename(tank.join("vol1/disk.raw"), up.dir.path().join("somewhere")).unwrap();
    fs::File::options().write(true).open(tank.join("vol2/disk.raw")).unwrap().set_len(32 << 20).unwrap();
    fs::create_dir(tank.join("lost")).unwrap();
    fs::write(tank.join("lost/mark"), r#"{"volume":"00000000-0000-0000-0000-000000000007"}"#).unwrap();
    fs::create_dir(tank.join("iso")).unwrap();
    let servers = up.servers();
    servers.iter().filter(|(dir, _)| dir.extension().is_some_and(|e| e == "x")).for_each(|(_, pid)| kill(pid));
    let before = tree(&state);
    for words in [&[][..], &["tank/vol1"], &["vol2", "-o", "csv"], &["vol1", "-o", "json"], &["vol1", "-o", "yaml"], &["vol9"]] {
        let ran = up.doctor(words);
        assert_eq!(ran.code, if words == ["vol9"] { 1 } else { 6 }, "{words:?}: {ran:?}");
        all.push_str(&format!(
            "\n$ img-storage doctor {}\n{}exit {}\n",
            words.join(" "),
            up.timeless(&(ran.out + &ran.err)),
            ran.code
        ));
    }
    assert!(tree(&state) == before, "doctor changed something");

    // What it cannot look at it does not take for absent, and says so.
    fs::remove_file(tank.join(".img-storage-pool")).unwrap();
    fs::write(state.join("compute-0-0/ledger.db"), "no ledger").unwrap();
    let blind = up.doctor(&[]);
    assert!(blind.out.contains("could not be seen: the pool tank, on nas-0-0"), "{blind:?}");
    assert!(blind.out.contains("could not be seen: the ledger of compute-0-0"), "{blind:?}");
    assert!(!blind.out.contains("disk.raw") && blind.err.contains("2 could not be seen"), "{blind:?}");
    expect("doctor.txt", &all);
}

#[test]
fn where_there_is_nothing_to_look_at() {
    let dir = tempfile::tempdir().unwrap();
    let ran = run(dir.path(), &["doctor"]);
    assert!(ran.code == 1 && ran.err.contains("no ledger of a NAS or a node"), "{ran:?}");
    let nowhere = dir.path().join("nowhere");
    let ran = run(dir.path(), &["doctor", "--dir", &nowhere.display().to_string()]);
    assert!(ran.code == 1 && ran.err.contains("there is no state directory") && !nowhere.exists(), "{ran:?}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}
