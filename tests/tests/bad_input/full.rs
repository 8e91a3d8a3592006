//! Full disks. Each test mounts small file systems below its own directory, and is left out where that is not allowed.

use super::bed::{Bed, idle, tool, until};
use img_storage_host::nbd::Nbd;
use img_storage_model::api::{Phase, VolumeView};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

const PATIENCE: Duration = Duration::from_secs(20);

/// A mounted file system in memory.
struct Small(PathBuf);

impl Small {
    fn mount(path: &Path, size: &str) -> Option<Self> {
        fs::create_dir_all(path).unwrap();
        let done = Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={size},mode=700"), "none"]).arg(path).output();
        if done.as_ref().is_ok_and(|output| output.status.success()) {
            return Some(Small(path.to_owned()));
        }
        println!("left out: no file system may be mounted here: {done:?}");
        None
    }

    fn resize(&self, size: u64) {
        tool("mount", &["-o", &format!("remount,size={size}"), self.0.to_str().unwrap()]);
    }

    fn used(&self) -> u64 {
        let stat = rustix::fs::statvfs(&self.0).unwrap();
        (stat.f_blocks - stat.f_bfree) * stat.f_frsize
    }

    /// No more than this is free.
    fn leave(&self, bytes: u64) {
        self.resize(self.used() + bytes);
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // A storage daemon may need a moment to let go.
        for _ in 0..100 {
            if Command::new("umount").arg(&self.0).output().is_ok_and(|output| output.status.success()) {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        println!("{} stays mounted", self.0.display());
    }
}

/// `up` with these pools; the mounts go after it.
async fn bed_with(nas: &str, local: Option<&str>) -> Option<(Bed, Small)> {
    let mut bed = idle();
    let tank = bed.path("tank");
    let small = match local {
        None => Small::mount(&tank, nas)?,
        Some(size) => Small::mount(&bed.path("scratch"), size)?,
    };
    let scratch = bed.text("scratch");
    fs::write(bed.path("config.toml"), format!("[nas.pools]\ntank = {tank:?}\n[vm]\npool = {scratch:?}\n")).unwrap();
    let config = bed.text("config.toml");
    bed.up(&["--config", &config, "--frequency", "1s"]).await;
    Some((bed, small))
}

/// Everything ends before the file system is unmounted.
fn end(mut bed: Bed, small: Small) {
    bed.service.kill_all();
    drop(small);
}

fn socket(view: &VolumeView) -> PathBuf {
    view.device.as_ref().unwrap().split_once("socket=").unwrap().1.into()
}

fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed * 2 + 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    };
    (0..length).map(|_| next()).collect()
}

#[tokio::test]
async fn an_import_that_meets_a_full_pool_fails_and_leaves_nothing() {
    let Some((bed, small)) = bed_with("96M", None).await else { return };
    let image = bed.text("image.raw");
    fs::write(&image, noise(1, 64 << 20)).unwrap();
    bed.ok(&["create", "other", "--size", "1M"]).await;
    let free = small.used();
    // There is room when it begins, and none any more when it is under way.
    let disk = small.0.join("vol1/disk.raw");
    let (ran, ()) = tokio::join!(async { bed.service.run(&["create", "vol1", "--from", &image]).await.unwrap() }, async {
        until("begun", PATIENCE, || disk.exists()).await;
        small.leave(8 << 20);
    });
    super::bed::complains(&ran, 1, &["tank/vol1", "image.raw", "No space left", "create it again"]);
    assert!(!ran.stderr.contains("stays"), "{}", ran.stderr);
    let left = bed.ok(&["list", "-o", "csv"]).await;
    assert!(!left.contains("vol1") && left.contains("other"), "{left}");
    assert!(!small.0.join("vol1").exists());
    assert!(small.used() <= free + (64 << 10), "{} bytes are taken", small.used());
    // Too small from the beginning: refused before a byte moves.
    bed.refused(&["create", "vol1", "--from", &image], 1, &["tank/vol1", "64M", "room"]).await;
    bed.refused(&["create", "vol1", "--size", "64M"], 1, &["tank/vol1", "64M", "room"]).await;
    // With room it works.
    small.resize(96 << 20);
    bed.ok(&["create", "vol1", "--from", &image]).await;
    assert!(fs::read(&disk).unwrap() == fs::read(&image).unwrap());
    // An export that meets a full disk leaves nothing either.
    let out = Small::mount(&bed.path("out"), "16M").unwrap();
    let target = bed.text("out/x.raw");
    bed.refused(&["export", "vol1", &target], 1, &["tank/vol1", &target, "No space left"]).await;
    assert_eq!(fs::read_dir(&out.0).unwrap().count(), 0);
    drop(out);
    end(bed, small);
}

/// Writes all of the volume, in pieces, and puts it on stable storage.
async fn fill(guest: &Nbd, data: &[u8]) {
    for (n, piece) in data.chunks(1 << 20).enumerate() {
        guest.write((n as u64) << 20, piece).await.unwrap();
    }
    guest.flush().await.unwrap();
}

async fn holds(guest: &Nbd, data: &[u8]) {
    for (n, piece) in data.chunks(1 << 20).enumerate() {
        assert!(guest.read((n as u64) << 20, 1 << 20).await.unwrap() == piece, "MiB {n} is not what was written");
    }
}

/// The pool is full at one of two moments: while the write-back comes in, or when it is folded into the volume.
async fn write_back_into_a_full_pool(free: u64) {
    let Some((bed, small)) = bed_with("200M", None).await else { return };
    bed.ok(&["create", "vol1", "--size", "32M"]).await;
    bed.ok(&["map", "vol1", "compute-0-0", "--sync", "--wait", "local"]).await;
    let home = |v: &VolumeView| v.dirty == Some(0) && v.stuck.is_none() && v.lag.is_none_or(|lag| lag <= 5);
    let view = bed.service.until_it("vol1", "at rest", PATIENCE, home).await.unwrap();
    let guest = Nbd::unix(&socket(&view), "disk", &[], PATIENCE).await.unwrap();
    small.leave(free);
    let first = noise(3, 32 << 20);
    fill(&guest, &first).await;
    let before = bed.service.volume("vol1").await.unwrap().write_backs;
    let said =
        |v: &VolumeView| v.stuck.as_ref().is_some_and(|t| t.why.contains("No space left")) && v.lag.is_some_and(|lag| lag >= 3);
    let view = bed.service.until_it("vol1", "said to lack room", PATIENCE, said).await.unwrap();
    assert_eq!(view.phase, Phase::Local, "{view:?}");
    assert!(view.stuck.as_ref().unwrap().next_try.is_some(), "it is not tried again: {view:?}");
    let shown = bed.ok(&["status"]).await;
    assert!(shown.contains("vol1") && shown.contains("No space left"), "{shown}");
    // The guest reads and writes as before, and the lag grows.
    holds(&guest, &first).await;
    let second = noise(4, 32 << 20);
    fill(&guest, &second).await;
    let lag = view.lag.unwrap();
    bed.service.until_it("vol1", "further behind", PATIENCE, |v| v.lag.is_some_and(|now| now > lag)).await.unwrap();
    // With room it goes on by itself.
    small.resize(200 << 20);
    let limit = Duration::from_secs(40);
    let view = bed.service.until_it("vol1", "home again", limit, |v| home(v) && v.write_backs > before).await.unwrap();
    assert_eq!(view.phase, Phase::Local);
    holds(&guest, &second).await;
    guest.disconnect().await;
    bed.ok(&["unmap", "vol1"]).await;
    assert!(fs::read(small.0.join("vol1/disk.raw")).unwrap() == second, "the volume is not what was written");
    let names: Vec<_> = fs::read_dir(small.0.join("vol1")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "{names:?}");
    end(bed, small);
}

#[tokio::test]
async fn a_write_back_that_meets_a_full_pool_waits_for_room() {
    write_back_into_a_full_pool(8 << 20).await;
}

#[tokio::test]
async fn a_write_back_that_cannot_be_folded_in_waits_for_room() {
    write_back_into_a_full_pool(44 << 20).await;
}

#[tokio::test]
async fn a_node_without_room_works_on_the_nas_until_there_is_some() {
    let Some((bed, small)) = bed_with("", Some("16M")).await else { return };
    let image = bed.text("image.raw");
    fs::write(&image, noise(5, 32 << 20)).unwrap();
    bed.ok(&["create", "vol1", "--from", &image]).await;
    // It can be used at once.
    bed.ok(&["map", "vol1", "compute-0-0", "--sync"]).await;
    let says = |v: &VolumeView| v.stuck.as_ref().is_some_and(|t| t.why.contains("room") && t.why.contains("scratch"));
    let view = bed.service.until_it("vol1", "said to lack room", PATIENCE, says).await.unwrap();
    assert_eq!(view.phase, Phase::Remote, "{view:?}");
    assert_eq!(view.stuck.as_ref().unwrap().host.as_str(), "compute-0-0");
    let shown = bed.ok(&["status"]).await;
    assert!(shown.contains("vol1") && shown.contains("room"), "{shown}");
    let guest = Nbd::unix(&socket(&view), "disk", &[], PATIENCE).await.unwrap();
    let data = noise(6, 32 << 20);
    fill(&guest, &data).await;
    holds(&guest, &data).await;
    // Waiting for it is not endless.
    let ran = bed.run(&["map", "vol2", "compute-0-1", "--size", "32M", "--sync", "--wait", "local", "--timeout", "2s"]).await;
    assert_eq!(ran.code, 4, "{ran:?}");
    assert!(ran.stderr.contains("vol2") && ran.stderr.contains("room"), "{ran:?}");
    bed.ok(&["unmap", "vol2"]).await;
    // Room: it goes on by itself.
    small.resize(96 << 20);
    bed.service.until("vol1", Phase::Local, Duration::from_secs(40)).await.unwrap();
    holds(&guest, &data).await;
    guest.disconnect().await;
    bed.ok(&["unmap", "vol1"]).await;
    assert!(fs::read(bed.path("tank/vol1/disk.raw")).unwrap() == data);
    end(bed, small);
}
