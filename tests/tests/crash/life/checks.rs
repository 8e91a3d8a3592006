//! The guest of a life, and what must hold between its parts.

use super::{AREAS, BLOCK, CONVERGE, Life, SIZE};
use anyhow::{Context as _, ensure};
use img_storage_tests::{
    stamp,
    writer::{Device, Load, Trouble, blocks_of},
};
use rand::{Rng as _, RngExt as _};
use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::PathBuf,
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant},
};

/// How long cleaning up may go on after the answer.
const TIDY: Duration = Duration::from_secs(10);

impl Life {
    /// What is there of the volume besides its file. The directories of storage daemons do not count, whether they run or not.
    pub(super) fn strangers(&self) -> Vec<String> {
        let mut left: Vec<PathBuf> = self.site.left_over(&self.id);
        left.retain(|path| *path != self.site.home() && !path.parent().is_some_and(|dir| dir.ends_with("run")));
        let beside = fs::read_dir(self.site.home()).into_iter().flatten().flatten().map(|entry| entry.path());
        left.extend(beside.filter(|path| !path.ends_with("disk.raw") && !path.ends_with("mark")));
        left.iter().map(|path| path.display().to_string()).collect()
    }

    pub(super) async fn tidied(&mut self, what: &str, left: impl Fn(&Self) -> anyhow::Result<Vec<String>>) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            let now = left(self)?;
            if now.is_empty() {
                return Ok(());
            }
            self.well().await?;
            ensure!(begun.elapsed() < TIDY, "{what}: not so after {TIDY:?}: {}", now.join(", "));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// While the node has the newest writes, the NAS's file with a pending write-back over it is what the disk was at one
    /// moment, not before event `not_before`.
    pub(super) async fn look_at_nas(&mut self, not_before: u64) -> anyhow::Result<()> {
        let _held = self.site.hold_nas().await?;
        if !self.site.node_has_authority() {
            return Ok(());
        }
        let home = self.site.home();
        let entries = fs::read_dir(&home)?.flatten().map(|entry| entry.path());
        let pending = |path: &PathBuf| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("pending-"));
        let image = match entries.into_iter().find(pending) {
            None => home.join("disk.raw"),
            Some(pending) => {
                let whole = self.site.scratch().join("whole.raw");
                let mut convert = tokio::process::Command::new("qemu-img");
                convert.args(["convert", "-U", "-f", "qcow2", "-O", "raw"]).arg(&pending).arg(&whole);
                let output = convert.stdin(Stdio::null()).kill_on_drop(true).output();
                let output = tokio::time::timeout(Duration::from_secs(30), output).await??;
                ensure!(output.status.success(), "{}: {}", pending.display(), String::from_utf8_lossy(&output.stderr).trim());
                whole
            }
        };
        let cut = self.writer.cut(&File::open(&image)?)?.with_context(|| format!("the NAS's copy ({})", image.display()))?;
        ensure!(cut.has_all_before(not_before), "the NAS's copy is older than the write-back that was asked for ({cut:?})");
        self.account.looks += 1;
        Ok(())
    }

    async fn device(&self) -> anyhow::Result<Device> {
        let view = self.site.volume().await?.context("there is no volume")?;
        view.device.context("the volume has no device")?.parse()
    }

    /// Reads every block through the device. One that is being started again is waited for.
    pub(super) async fn check_device(&mut self) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            let checked = match self.device().await {
                Ok(device) => self.writer.check_all(&device, Duration::from_secs(30), false).await,
                Err(why) if begun.elapsed() > CONVERGE => return Err(why),
                Err(_) => {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            match checked {
                Err(Trouble::Away { .. }) if begun.elapsed() < CONVERGE => tokio::time::sleep(Duration::from_millis(100)).await,
                other => return other.context("looking through the device"),
            }
        }
    }

    pub(super) async fn guest_on(&mut self) -> anyhow::Result<()> {
        let load = Load {
            depth: 4,
            longest: 8,
            flush_every: 30,
            rest: Duration::from_millis(4),
            deadline: CONVERGE,
            patience: CONVERGE,
            ..Load::default()
        };
        let written = self.writer.figures().writes;
        self.load = Some(tokio::spawn(Arc::clone(&self.writer).run(self.device().await?, load)));
        let begun = Instant::now();
        // One that has not begun cannot be told to end.
        while self.writer.figures().writes == written {
            self.well().await?;
            ensure!(begun.elapsed() < CONVERGE, "the guest cannot write");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(())
    }

    pub(super) async fn guest_off(&mut self) -> anyhow::Result<()> {
        self.writer.stop();
        if let Some(mut load) = self.load.take() {
            let ended = tokio::time::timeout(Duration::from_secs(80), &mut load).await;
            load.abort();
            ended.context("the guest does not end")??.context("the guest")?;
        }
        Ok(())
    }

    /// An image with something everywhere: stamps where the guest will write, noise and holes elsewhere.
    pub(super) fn make_image(&mut self) -> anyhow::Result<()> {
        let image = File::create(&self.base)?;
        image.set_len(SIZE)?;
        let mut noise = vec![0; 1 << 20];
        for at in (0..SIZE).step_by(1 << 20) {
            if self.rng.random_range(0..3) > 0 {
                self.rng.fill_bytes(&mut noise);
                image.write_all_at(&noise, at)?;
            }
        }
        let mut block = vec![0; BLOCK as usize];
        for offset in blocks_of(&AREAS, BLOCK) {
            stamp::fill(&mut block, self.plan.seed, offset, 0);
            image.write_all_at(&block, offset)?;
        }
        Ok(())
    }

    /// Where nobody wrote, the volume is what it was at first; and everywhere, when there was no guest yet.
    pub(super) fn compare_with_base(&self) -> anyhow::Result<()> {
        let (base, disk) = (File::open(&self.base)?, File::open(self.site.home().join("disk.raw"))?);
        ensure!(disk.metadata()?.len() == SIZE, "the volume's file is {} bytes long", disk.metadata()?.len());
        let untouched = self.writer.figures().writes == 0;
        let (mut expected, mut found) = (vec![0; 1 << 20], vec![0; 1 << 20]);
        for at in (0..SIZE).step_by(1 << 20) {
            if untouched || !AREAS.iter().any(|area| (area.offset..area.end()).contains(&at)) {
                base.read_exact_at(&mut expected, at)?;
                disk.read_exact_at(&mut found, at)?;
                ensure!(expected == found, "the mebibyte at {at} is not what it was");
            }
        }
        Ok(())
    }
}
