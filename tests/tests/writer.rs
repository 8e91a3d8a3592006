//! The verifying writer itself, against a real storage daemon: it passes over what is right, and sees what is not.

use img_storage_host::qsd::Qsd;
use img_storage_model::Extent;
use img_storage_tests::{
    history::Violation,
    processes,
    writer::{Device, Load, Trouble, Writer},
};
use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

const SIZE: u64 = 16 << 20;

struct Disk {
    dir: tempfile::TempDir,
    qsd: Qsd,
}

impl Disk {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        File::create(dir.path().join("disk.raw")).and_then(|f| f.set_len(SIZE)).expect("a file");
        let qsd = Qsd::new("qemu-storage-daemon", dir.path().join("qsd"));
        Disk { dir, qsd }
    }

    fn image(&self) -> PathBuf {
        self.dir.path().join("disk.raw")
    }

    async fn start(&self) -> Device {
        let socket = self.dir.path().join("guest.sock");
        let args = [
            "--blockdev".to_owned(),
            format!("driver=file,node-name=disk,filename={}", self.image().display()),
            "--nbd-server".to_owned(),
            format!("addr.type=unix,addr.path={}", socket.display()),
            "--export".to_owned(),
            "type=nbd,id=guest,node-name=disk,name=guest,writable=on".to_owned(),
        ];
        self.qsd.start(&1, &args).await.expect("it starts");
        format!("nbd+unix:///guest?socket={}", socket.display()).parse().expect("a device")
    }

    fn pid(&self) -> u32 {
        let pid = fs::read_to_string(self.qsd.dir().join("pid")).expect("a pid file");
        pid.trim().parse().expect("a number")
    }

    fn kill(&self) {
        processes::kill_and_wait(self.pid());
    }

    /// Does something to the file while no write to it is half done.
    fn while_still<T>(&self, work: impl FnOnce() -> T) -> T {
        let pid = self.pid();
        processes::hold(pid);
        let result = work();
        processes::resume(pid);
        result
    }
}

fn whole() -> [Extent; 1] {
    [Extent { offset: 0, length: SIZE }]
}

fn copy(from: &Path) -> File {
    let to = from.with_extension("copy");
    fs::copy(from, &to).expect("copied");
    File::open(to).expect("opened")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_server_that_comes_back_is_passed_over() {
    let disk = Disk::new();
    let device = disk.start().await;
    let writer = Writer::new(1, 4096, &whole());
    let run = tokio::spawn(Arc::clone(&writer).run(device.clone(), Load::default()));
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(300)).await;
        disk.kill();
        disk.start().await;
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    writer.stop();
    run.await.expect("ends").expect("finds nothing wrong");
    writer.check_all(&device, Duration::from_secs(10), false).await.expect("all is there");
    let figures = writer.figures();
    eprintln!("{figures:?}");
    assert!(figures.writes > 100 && figures.reads > 50 && figures.flushes > 5 && figures.outages >= 2, "{figures:?}");
    let before = writer.now();
    let cut = writer.cut(&copy(&disk.image())).expect("read").expect("a disk nobody writes is a point in time");
    assert!(cut.has_all_before(before));
    disk.qsd.stop(Duration::from_secs(5)).await.expect("stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_seen() {
    let disk = Disk::new();
    let device = disk.start().await;
    let writer = Writer::new(2, 4096, &whole());
    let run = tokio::spawn(Arc::clone(&writer).run(device.clone(), Load::default()));
    tokio::time::sleep(Duration::from_millis(200)).await;
    // Half of the disk as it is now, half as it is later.
    let early = disk.while_still(|| fs::read(disk.image()).expect("read"));
    tokio::time::sleep(Duration::from_millis(500)).await;
    let mixed = disk.while_still(|| copy(&disk.image()));
    File::options()
        .write(true)
        .open(disk.image().with_extension("copy"))
        .and_then(|f| f.write_all_at(&early[..(SIZE / 2) as usize], 0))
        .expect("written");
    let seen = writer.cut(&mixed).expect("read").expect_err("a mixture");
    assert!(matches!(seen, Violation::Mixed { .. }), "{seen}");
    // The disk thrown back under the writer.
    let image = File::options().write(true).open(disk.image()).expect("opened");
    disk.while_still(|| image.write_all_at(&early, 0).expect("written"));
    let seen = tokio::time::timeout(Duration::from_secs(20), run).await.expect("soon").expect("ends").expect_err("seen");
    assert!(matches!(seen, Trouble::Violation(Violation::Lost { .. })), "{seen}");
    disk.qsd.stop(Duration::from_secs(5)).await.expect("stops");
}
