//! A real disk image: an ext4 file system with files of this machine, made without being root, and one large file whose blocks
//! a writer may use without the file system noticing.

use crate::{command, packages};
use anyhow::{Context as _, ensure};
use img_storage_model::Extent;
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Write as _,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Command,
};

/// Where real files come from.
const SOURCES: [&str; 3] = ["/usr/share", "/usr/lib", "/usr/bin"];
/// Bytes of real files that are taken at most.
const FILES: u64 = 360 << 20;
/// The smallest and the largest file that are taken; tens of thousands of tiny ones would take longer than all the rest.
const LENGTHS: std::ops::Range<u64> = 16 << 10..24 << 20;
/// The file for the writer.
const PLAYGROUND: &str = "guest.data";
/// Its size.
const PLAYGROUND_SIZE: u64 = 128 << 20;
/// The image's size.
pub const SIZE: u64 = 640 << 20;

/// An image and what is in it.
pub struct DiskImage {
    /// The file.
    pub path: PathBuf,
    /// A digest for each file in it, by its path there, but for the writer's.
    pub files: BTreeMap<PathBuf, blake3::Hash>,
    /// The bytes of those files.
    pub bytes: u64,
    /// Where the writer may write.
    pub areas: Vec<Extent>,
}

fn tool(name: &str) -> anyhow::Result<Command> {
    Ok(Command::new(packages::find(name).with_context(|| format!("there is no {name}"))?))
}

impl DiskImage {
    /// Makes it in `dir`.
    ///
    /// # Errors
    /// When there is no room or a tool fails.
    pub fn make(dir: &Path) -> anyhow::Result<Self> {
        let tree = dir.join("tree");
        fs::create_dir_all(&tree)?;
        let (mut files, mut bytes) = (BTreeMap::new(), 0);
        for source in SOURCES {
            take(Path::new(source), &tree, &mut files, &mut bytes)?;
        }
        let mut playground = File::create(tree.join(PLAYGROUND))?;
        let filling = vec![0xa5; 1 << 20];
        for _ in 0..PLAYGROUND_SIZE / filling.len() as u64 {
            playground.write_all(&filling)?;
        }
        drop(playground);
        let path = dir.join("disk.img");
        File::create(&path)?.set_len(SIZE)?;
        let mut mkfs = tool("mkfs.ext4")?;
        command::output(mkfs.args(["-q", "-F", "-b", "4096", "-m", "0", "-L", "img-storage", "-d"]).arg(&tree).arg(&path))?;
        fs::remove_dir_all(&tree)?;
        let areas = extents(&path)?;
        Ok(DiskImage { path, files, bytes, areas })
    }

    /// Checks the file system in a copy of the image, and every file in it but the writer's, by its digest.
    ///
    /// # Errors
    /// What is not as it was.
    pub fn check(&self, copy: &Path, scratch: &Path) -> anyhow::Result<()> {
        command::output(tool("e2fsck")?.args(["-f", "-n"]).arg(copy)).context("the file system is damaged")?;
        let tree = scratch.join("found");
        fs::create_dir(&tree)?;
        // Its exit status says nothing, and not being root it complains of owners: the files are what counts.
        let dump = format!("rdump / {}", tree.display());
        let _ = tool("debugfs")?.args(["-R", &dump]).arg(copy).output()?;
        for (file, digest) in &self.files {
            let found = digest_of(&tree.join(file)).with_context(|| format!("{} is not in the copy", file.display()))?;
            ensure!(found == *digest, "{} is not what it was", file.display());
        }
        fs::remove_dir_all(&tree)?;
        Ok(())
    }
}

fn digest_of(file: &Path) -> anyhow::Result<blake3::Hash> {
    let mut hasher = blake3::Hasher::new();
    std::io::copy(&mut File::open(file)?, &mut hasher)?;
    Ok(hasher.finalize())
}

/// Copies regular files below `source` to the same place below `tree`, until there are enough.
fn take(source: &Path, tree: &Path, files: &mut BTreeMap<PathBuf, blake3::Hash>, bytes: &mut u64) -> anyhow::Result<()> {
    let mut entries: Vec<_> = fs::read_dir(source).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    entries.sort();
    for path in entries {
        let Ok(meta) = fs::symlink_metadata(&path) else { continue };
        let odd = path.to_string_lossy().chars().any(|c| c.is_whitespace() || c.is_control() || c == '"');
        if meta.is_dir() {
            take(&path, tree, files, bytes)?;
        } else if meta.is_file() && LENGTHS.contains(&meta.len()) && *bytes + meta.len() <= FILES && !odd && meta.nlink() == 1 {
            let relative = path.strip_prefix("/")?.to_owned();
            let target = tree.join(&relative);
            fs::create_dir_all(target.parent().unwrap_or(tree))?;
            if fs::copy(&path, &target).is_ok() {
                files.insert(relative, digest_of(&target)?);
                *bytes += meta.len();
            }
        }
    }
    Ok(())
}

/// Where the writer's file lies in the image.
fn extents(image: &Path) -> anyhow::Result<Vec<Extent>> {
    let request = format!("dump_extents -l /{PLAYGROUND}");
    let text = command::output(tool("debugfs")?.args(["-R", &request]).arg(image))?;
    let areas: Vec<Extent> = text.lines().filter_map(extent).collect();
    let found: u64 = areas.iter().map(|area| area.length).sum();
    ensure!(found == PLAYGROUND_SIZE, "debugfs shows {found} bytes of the file for the writer, not {PLAYGROUND_SIZE}: {text}");
    Ok(areas)
}

/// A leaf extent as debugfs prints it: `level/of  entry/of  first - last  first - last  length`, the second range on the disk.
fn extent(line: &str) -> Option<Extent> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [.., from, dash, _, length] = words[..] else { return None };
    let (from, length): (u64, u64) = (from.parse().ok()?, length.parse().ok()?);
    (dash == "-").then_some(Extent { offset: from * 4096, length: length * 4096 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_are_read_as_debugfs_prints_them() {
        let text =
            "Level Entries       Logical          Physical Length Flags\n 1/ 1   1/  3     0 - 30719  67584 - 98303  30720 \n";
        let found: Vec<_> = text.lines().filter_map(extent).collect();
        assert_eq!(found, [Extent { offset: 67584 * 4096, length: 30720 * 4096 }]);
    }
}
