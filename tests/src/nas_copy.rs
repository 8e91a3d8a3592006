//! What the NAS holds of a volume while nothing runs: what a recovery would go by, made into one file to look at.

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

/// The files of a volume on its NAS.
#[derive(Clone, Debug)]
pub struct NasCopy {
    dir: PathBuf,
    /// A complete write-back that is perhaps not in the disk's file yet.
    pub pending: Option<PathBuf>,
    /// What a guest wrote, or is about to write, while it came back.
    pub overlay: Option<PathBuf>,
}

impl NasCopy {
    /// Looks at `pools/NAS/POOL/VOLUME` under a state directory.
    ///
    /// # Errors
    /// When it cannot be read, or has two files where one is expected.
    pub fn of(state: &Path, nas: &str, pool: &str, volume: &str) -> anyhow::Result<Self> {
        let dir = state.join("pools").join(nas).join(pool).join(volume);
        let mut copy = NasCopy { dir: dir.clone(), pending: None, overlay: None };
        for entry in fs::read_dir(&dir).with_context(|| format!("looking into {}", dir.display()))? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if !name.ends_with(".qcow2") {
                continue;
            }
            let place = match name.split('-').next() {
                Some("pending") => &mut copy.pending,
                Some("overlay") => &mut copy.overlay,
                _ => continue,
            };
            ensure!(place.is_none(), "two files of a kind in {}: {name}", dir.display());
            *place = Some(path);
        }
        Ok(copy)
    }

    /// The disk's file.
    pub fn disk(&self) -> PathBuf {
        self.dir.join("disk.raw")
    }

    /// The disk with a complete write-back laid over it, when there is one.
    ///
    /// # Errors
    /// When the tools fail.
    pub fn newest(&self) -> anyhow::Result<File> {
        self.under(self.pending.as_deref())
    }

    /// The disk with what came back laid over it.
    ///
    /// # Errors
    /// When there is none, or the tools fail.
    pub fn brought_back(&self) -> anyhow::Result<File> {
        ensure!(self.overlay.is_some(), "there is no overlay in {}", self.dir.display());
        self.under(self.overlay.as_deref())
    }

    fn under(&self, layer: Option<&Path>) -> anyhow::Result<File> {
        let Some(layer) = layer else { return Ok(File::open(self.disk())?) };
        let file = |path: &Path| json!({"driver": "file", "filename": path});
        let chain: Value =
            json!({"driver": "qcow2", "file": file(layer), "backing": {"driver": "raw", "file": file(&self.disk())}});
        let merged = tempfile::NamedTempFile::new_in(&self.dir)?;
        let mut command = Command::new("qemu-img");
        // Nothing runs: locks that are held belong to nobody, and nothing is written.
        command.args(["convert", "-U", "-O", "raw"]).arg(format!("json:{chain}")).arg(merged.path());
        let output = command.output().context("starting qemu-img")?;
        ensure!(output.status.success(), "{} cannot be read: {}", layer.display(), String::from_utf8_lossy(&output.stderr));
        Ok(merged.reopen()?)
    }
}
