//! A guest's disks that last: files behind a cache that a power cut empties.
//!
//! QEMU reaches a disk through nbdkit, whose cache keeps what is written until the guest asks for a flush. When both are killed
//! the cache is gone, as that of a disk is: what was flushed is in the file, what was not is nowhere.

use super::{image::Image, namespace::Namespace};
use anyhow::{Context as _, ensure};
use std::{
    fs::File,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

/// A disk of a guest.
#[derive(Clone, Debug)]
pub struct Disk {
    file: PathBuf,
}

impl Disk {
    /// The disk in this file.
    pub fn at(file: PathBuf) -> Self {
        Disk { file }
    }

    /// Makes the file, with nothing in it, of so many bytes; it takes room only for what is written.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn create(&self, size: u64) -> anyhow::Result<()> {
        let file = File::create(&self.file).with_context(|| format!("making {}", self.file.display()))?;
        Ok(file.set_len(size)?)
    }

    /// Puts an empty ext4 on it.
    ///
    /// # Errors
    /// When that fails.
    pub fn format(&self) -> anyhow::Result<()> {
        let mut command = Command::new("mkfs.ext4");
        command.args(["-q", "-F", "-E", "lazy_itable_init=1,lazy_journal_init=1"]).arg(&self.file);
        let output = command.output().context("starting mkfs.ext4, of e2fsprogs")?;
        ensure!(output.status.success(), "mkfs.ext4: {}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(())
    }

    /// Where QEMU reaches it.
    pub fn socket(&self) -> PathBuf {
        self.file.with_extension("nbd")
    }

    /// Where its server's process number is, as the namespace sees it.
    pub fn pid_file(&self) -> PathBuf {
        self.file.with_extension("pid")
    }

    /// Starts its server, with an empty cache.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn serve(&self, image: &Image, namespace: &Namespace, dir: &Path) -> anyhow::Result<()> {
        for old in [self.socket(), self.pid_file()] {
            if old.exists() {
                std::fs::remove_file(old)?;
            }
        }
        let part = |path: &str| image.part(&format!("usr/lib/x86_64-linux-gnu/nbdkit/{path}.so"));
        let mut words = vec!["env".to_owned(), format!("TMPDIR={}", dir.display())];
        words.extend(image.program("nbdkit"));
        words.push(format!("--filter={}", part("filters/nbdkit-cache-filter")));
        words.extend(["--unix".to_owned(), self.socket().display().to_string()]);
        words.extend(["--pidfile".to_owned(), self.pid_file().display().to_string()]);
        words.extend([part("plugins/nbdkit-file-plugin"), format!("file={}", self.file.display()), "cache=writeback".to_owned()]);
        namespace.run(&words, Duration::from_secs(20)).await.with_context(|| format!("serving {}", self.file.display()))?;
        Ok(())
    }
}
