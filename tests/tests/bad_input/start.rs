//! Daemons that must not start: pools that are not ours, a directory that is in use, ledgers that are damaged, configurations that
//! are wrong.

use super::bed::{Bed, complains, idle, tree, up};
use img_storage_tests::service::Ran;
use std::{fs, time::Duration};

/// A daemon that must end by itself, soon.
async fn ends(bed: &Bed, words: &[&str]) -> Ran {
    bed.service.run_within(words, Duration::from_secs(20)).await.unwrap()
}

#[tokio::test]
async fn a_pool_directory_that_is_not_ours_is_left_alone() {
    let bed = idle();
    let (home, other, file) = (bed.path("home"), bed.path("other"), bed.path("file"));
    fs::create_dir(&home).unwrap();
    fs::write(home.join("thesis.tex"), "years of work").unwrap();
    fs::create_dir(&other).unwrap();
    fs::write(other.join(".img-storage-pool"), r#"{"host":"nas-9-9","pool":"tank"}"#).unwrap();
    fs::create_dir(other.join("vol1")).unwrap();
    fs::write(&file, "a file").unwrap();
    let broken = bed.path("broken");
    fs::create_dir(&broken).unwrap();
    fs::write(broken.join(".img-storage-pool"), "{").unwrap();
    let before = tree(bed.dir.path());
    for (dir, why) in [(&home, "thesis.tex"), (&other, "nas-9-9"), (&file, "no directory"), (&broken, "mark")] {
        let shown = dir.to_str().unwrap();
        let fresh = bed.text("fresh");
        for config in [format!("[nas.pools]\ntank = {shown:?}\n"), format!("[nas.pools]\na = {fresh:?}\ntank = {shown:?}\n")] {
            fs::write(bed.path("config.toml"), config).unwrap();
            complains(&ends(&bed, &["up", "--config", &bed.text("config.toml")]).await, 3, &[shown, "tank", why]);
            assert!(!bed.path("fresh").exists(), "a pool was made although another is refused");
        }
    }
    // A node's pool the same.
    fs::create_dir_all(bed.path("scratch/compute-0-1")).unwrap();
    fs::write(bed.path("scratch/compute-0-1/data"), "somebody's").unwrap();
    fs::write(bed.path("config.toml"), format!("[vm]\npool = {:?}\n", bed.text("scratch"))).unwrap();
    let ran = ends(&bed, &["up", "--config", &bed.text("config.toml")]).await;
    complains(&ran, 3, &["scratch/compute-0-1", "data"]);
    let ours =
        |name: &std::path::PathBuf| ["logs", "s", "config.toml", "scratch"].iter().any(|own| name.starts_with(bed.path(own)));
    let mut after = tree(bed.dir.path());
    after.retain(|name, _| !ours(name));
    let mut before = before;
    before.retain(|name, _| !ours(name));
    assert_eq!(after, before);
    assert_eq!(fs::read(bed.path("scratch/compute-0-1/data")).unwrap(), b"somebody's");
    // Two pools of one directory.
    fs::create_dir(bed.path("one")).unwrap();
    fs::write(bed.path("config.toml"), format!("[nas.pools]\na = {0:?}\nb = {0:?}\n", bed.text("one"))).unwrap();
    complains(&ends(&bed, &["up", "--config", &bed.text("config.toml")]).await, 3, &["one"]);
}

#[tokio::test]
async fn a_directory_is_used_by_one_only() {
    let mut bed = up(&[]).await;
    bed.ok(&["create", "vol1", "--size", "1M"]).await;
    bed.ok(&["map", "vol1", "compute-0-0", "--sync", "--wait", "local"]).await;
    let dir = bed.service.dir().to_str().unwrap().to_owned();
    let pid = format!("pid {}", bed.service.pid(0));
    for role in [&["up"][..], &["frontend"]] {
        bed.refused(&[role, &["--dir", &dir]].concat(), 3, &[&dir, &pid]).await;
    }
    for role in [&["nas", "--name", "nas-0-0"][..], &["vm", "--name", "compute-0-0"]] {
        bed.refused(&[role, &["--dir", &dir]].concat(), 3, &[role[2]]).await;
    }
    // The first goes on, and after it another one takes everything up again.
    bed.ok(&["sync", "vol1"]).await;
    bed.service.terminate().await.unwrap();
    bed.service.kill(0).unwrap();
    bed.service.restart(0).unwrap();
    bed.service.ready(4).await.unwrap();
    bed.ok(&["unmap", "vol1"]).await;
    bed.service.terminate().await.unwrap();

    // A NAS alone holds its own part; `up` does not work on that beside it.
    let mut alone = idle();
    alone.service.start(&["nas"]).unwrap();
    let dir = alone.service.dir().to_owned();
    super::bed::until("locked", Duration::from_secs(10), || {
        fs::read_to_string(dir.join("nas-0-0/lock")).is_ok_and(|t| !t.is_empty())
    })
    .await;
    let ran = ends(&alone, &["up"]).await;
    complains(&ran, 3, &["nas-0-0", &format!("pid {}", alone.service.pid(0))]);
    assert!(alone.service.ended(0).unwrap().is_none(), "the first ended");
}

#[tokio::test]
async fn a_damaged_ledger_is_said_and_left_as_it_is() {
    let mut bed = up(&[]).await;
    bed.ok(&["create", "vol1", "--size", "1M"]).await;
    bed.ok(&["map", "vol1", "compute-0-0", "--sync", "--wait", "local"]).await;
    bed.service.terminate().await.unwrap();
    for daemon in bed.service.storage_daemons().unwrap() {
        img_storage_tests::processes::kill_and_wait(daemon.pid);
    }
    let kept = bed.kept();
    type Damage = fn(&mut Vec<u8>);
    let damages: [(&str, Damage); 7] = [
        ("header", |b| b[..16].fill(0xff)),
        ("everything", |b| b.fill(0x55)),
        ("a page", |b| b[4096..4096 + 200].fill(0xff)),
        ("half", |b| b.truncate(b.len() / 2 + 100)),
        ("all of it cut off", |b| b.clear()),
        ("a newer version", |b| b[60..64].copy_from_slice(&99u32.to_be_bytes())),
        ("contents", |b| {
            for at in 0..b.len() - 8 {
                if &b[at..at + 8] == b"\"volume\"" || &b[at..at + 7] == b"\"stage\"" {
                    b[at + 1] = b'X';
                }
            }
        }),
    ];
    for part in ["nas-0-0/ledger.db", "compute-0-0/ledger.db", "nas-0-0/journal.db", "compute-0-0/journal.db"] {
        let path = bed.state(part);
        let good = fs::read(&path).unwrap();
        for (what, damage) in &damages {
            if part.ends_with("journal.db") && matches!(*what, "contents" | "all of it cut off") {
                continue; // nothing is decided by it
            }
            let mut bad = good.clone();
            damage(&mut bad);
            if bad == good {
                panic!("{part}: {what} changes nothing");
            }
            fs::write(&path, &bad).unwrap();
            let ran = ends(&bed, &["up"]).await;
            assert_ne!(ran.code, 0, "{part} {what}");
            complains(&ran, 1, &[part]);
            assert!(fs::read(&path).unwrap() == bad, "{part} with {what} was changed");
            assert_eq!(bed.kept(), kept, "{part} {what}");
            fs::write(&path, &good).unwrap();
            for beside in ["-wal", "-shm"] {
                let _ = fs::remove_file(bed.state(&format!("{part}{beside}")));
            }
        }
        // A directory in its place, and a ledger that was removed beside what it was about.
        let aside = bed.path("aside.db");
        fs::rename(&path, &aside).unwrap();
        if part.ends_with("ledger.db") {
            complains(&ends(&bed, &["up"]).await, 1, &[part]);
            assert!(!path.exists(), "{part} was made anew");
        }
        fs::create_dir(&path).unwrap();
        complains(&ends(&bed, &["up"]).await, 1, &[part]);
        fs::remove_dir(&path).unwrap();
        fs::rename(&aside, &path).unwrap();
    }
    // With the right ledgers nothing is lost.
    bed.service.kill(0).unwrap();
    bed.service.restart(0).unwrap();
    bed.service.ready(4).await.unwrap();
    bed.service.until("vol1", img_storage_model::api::Phase::Local, Duration::from_secs(20)).await.unwrap();
    bed.ok(&["unmap", "vol1"]).await;
}

#[tokio::test]
async fn a_wrong_configuration_starts_nothing() {
    let bed = idle();
    let dir = bed.text("never");
    let path = bed.text("config.toml");
    for (text, why) in [
        ("frequncy = \"60s\"\n", "frequncy"),
        ("[nas]\nadress = \"127.0.0.1\"\n", "adress"),
        ("[nsa]\nname = \"x\"\n", "nsa"),
        ("frequency = \"often\"\n", "often"),
        ("frequency = \"0s\"\n", "line 1"),
        ("frequency = 60\n", "line 1"),
        ("[nas]\nname = \"../x\"\n", "line 2"),
        ("[nas]\naddress = \"everywhere\"\n", "line 2"),
        ("[nas.pools]\n\"a/b\" = \"/x\"\n", "a/b"),
        ("[vm]\nnodes = -1\n", "line 2"),
        ("[vm]\nnodes = 100000\n", "line 2"),
        ("[vm\n", "line 1"),
        ("frequency = \"60s\"\nfrequency = \"70s\"\n", "frequency"),
        ("\u{0}", "line 1"),
    ] {
        fs::write(&path, text).unwrap();
        for role in ["up", "frontend", "nas", "vm"] {
            complains(&ends(&bed, &[role, "--dir", &dir, "--config", &path]).await, 2, &["config.toml", why]);
        }
    }
    fs::write(&path, b"\xff\xfe").unwrap();
    complains(&ends(&bed, &["up", "--dir", &dir, "--config", &path]).await, 2, &["config.toml"]);
    complains(&ends(&bed, &["up", "--dir", &dir, "--config", &bed.text("nosuch.toml")]).await, 2, &["nosuch.toml"]);
    complains(&ends(&bed, &["up", "--dir", &dir, "--config", bed.dir.path().to_str().unwrap()]).await, 2, &["cannot be read"]);
    for (flag, value) in [("--nodes", "0"), ("--nodes", "-1"), ("--nodes", "65"), ("--frequency", "0"), ("--frequency", "x")] {
        complains(&ends(&bed, &["up", "--dir", &dir, &format!("{flag}={value}")]).await, 2, &[flag, value]);
    }
    // Sockets would not fit into what the kernel takes: said before anything is made.
    let deep = bed.text(&"d".repeat(70));
    complains(&ends(&bed, &["up", "--dir", &deep]).await, 2, &[&deep, "shorter"]);
    assert!(!bed.path("never").exists() && !bed.path(&"d".repeat(70)).exists());
    fs::write(bed.path("file"), "x").unwrap();
    complains(&ends(&bed, &["up", "--dir", &bed.text("file")]).await, 1, &["file", "--dir"]);
    // Two hosts of one name.
    fs::write(&path, "[nas]\nname = \"compute-0-0\"\n").unwrap();
    complains(&ends(&bed, &["up", "--dir", &dir, "--config", &path]).await, 2, &["compute-0-0"]);
    fs::write(&path, "[vm]\nnodes = 0\n").unwrap();
    complains(&ends(&bed, &["up", "--dir", &dir, "--config", &path]).await, 2, &["nodes"]);
}
