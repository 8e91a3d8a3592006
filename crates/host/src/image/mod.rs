//! Disk image files that people bring: what they are, and whether all of them is there.
//!
//! A file from elsewhere is hostile until shown otherwise. Formats that can name *other* files (backing files, external data,
//! VMDK descriptors) would make us read what its sender wishes, so the format is told from the file's own first bytes by us,
//! headers that refer elsewhere are refused before QEMU sees them, and QEMU is always told the format and gets the file as a
//! plain path, never as a name it may interpret.

mod transfer;

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::exec::{self, ExecError};
use crate::qsd::commas;

pub use transfer::{Served, export, import};

/// How long looking at a header may take.
const LOOK: Duration = Duration::from_secs(60);
/// How long checking all the tables of an image may take.
const CHECK: Duration = Duration::from_secs(1800);

/// Formats that are taken in and given out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageFormat {
    /// The disk's bytes.
    Raw,
    /// QEMU's.
    Qcow2,
    /// VMware's, one sparse file (monolithicSparse or streamOptimized).
    Vmdk,
    /// Hyper-V's.
    Vhdx,
}

impl ImageFormat {
    /// QEMU's name for it.
    pub fn driver(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vmdk => "vmdk",
            Self::Vhdx => "vhdx",
        }
    }
}

/// What an image file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageInfo {
    /// Its format.
    pub format: ImageFormat,
    /// The disk's size in bytes.
    pub virtual_size: u64,
    /// The bytes it takes on disk now.
    pub actual_size: u64,
}

/// Why a file is not taken, or could not be.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// It cannot be read.
    #[error("cannot {what} {path}: {source}", path = path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is not something we take.
    #[error("{path} {why}", path = path.display())]
    Refused {
        /// The file.
        path: PathBuf,
        /// What it is, and what to do.
        why: String,
    },
    /// A tool failed.
    #[error(transparent)]
    Tool(#[from] ExecError),
}

/// Looks at an image file: its format, its size, and that all of it is there.
///
/// # Errors
/// [`ImageError::Refused`] for what we do not take, saying what to do.
pub async fn inspect(path: &Path) -> Result<ImageInfo, ImageError> {
    let failed = |what| move |source| ImageError::Io { what, path: path.to_owned(), source };
    let refused = |why: String| ImageError::Refused { path: path.to_owned(), why };
    let path = &std::fs::canonicalize(path).map_err(failed("find"))?;
    let meta = std::fs::metadata(path).map_err(failed("look at"))?;
    let kind = meta.file_type();
    if kind.is_dir() {
        return Err(refused("is a directory; name the image file in it".into()));
    }
    if kind.is_block_device() || kind.is_char_device() {
        return Err(refused("is a device; copy it into a file first".into()));
    }
    if !kind.is_file() {
        return Err(refused("is not a regular file".into()));
    }
    if meta.len() == 0 {
        return Err(refused("is empty".into()));
    }
    let file = File::open(path).map_err(failed("open"))?;
    let mut head = vec![0; 4096];
    let read = read_up_to(&file, &mut head).map_err(failed("read"))?;
    head.truncate(read);
    let format = recognise(&head, meta.len()).map_err(refused)?;
    let virtual_size = if format == ImageFormat::Raw {
        meta.len().next_multiple_of(512)
    } else {
        let looked = exec::run("qemu-img", &["info", "--output=json", "--image-opts", &options(format, path)], LOOK).await;
        let output = match looked {
            Err(ExecError::Failed { stderr, .. }) => {
                let last = stderr.lines().last().unwrap_or_default();
                return Err(refused(format!("is damaged or cut off (qemu-img info: {last}); fetch it again")));
            }
            looked => looked?,
        };
        let info = json(&output.stdout).map_err(failed("understand what qemu-img says of"))?;
        check_info(&info).map_err(refused)?;
        check(format, path, meta.len(), cluster(&head)).await?;
        info["virtual-size"].as_u64().ok_or_else(|| refused("has no size that qemu-img can tell".into()))?
    };
    Ok(ImageInfo { format, virtual_size, actual_size: meta.blocks() * 512 })
}

/// The file as an image for QEMU, with nothing left to guess.
fn options(format: ImageFormat, path: &Path) -> String {
    format!("driver={},file.driver=file,file.filename={}", format.driver(), commas(path))
}

fn read_up_to(file: &File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], filled as u64)? {
            0 => break,
            n => filled += n,
        }
    }
    Ok(filled)
}

fn json(text: &[u8]) -> io::Result<Value> {
    serde_json::from_slice(text).map_err(io::Error::other)
}

/// Tells the format from the first bytes (up to 4 KiB) of a file, or why it is refused.
fn recognise(head: &[u8], length: u64) -> Result<ImageFormat, String> {
    let has = |at: usize, magic: &[u8]| head.get(at..).is_some_and(|rest| rest.starts_with(magic));
    if has(0, b"QFI\xfb") {
        return qcow2(head, length).map(|()| ImageFormat::Qcow2);
    }
    if has(0, b"KDMV") {
        return vmdk(head).map(|()| ImageFormat::Vmdk);
    }
    if has(0, b"vhdxfile") {
        return Ok(ImageFormat::Vhdx);
    }
    let archive = "unpack it and give us what is in it";
    let convert = "convert it with `qemu-img convert -O qcow2` where you trust it";
    let others: [(usize, &[u8], &str, &str); 14] = [
        (0, b"COWD", "an old VMware COW disk", convert),
        (0, b"conectix", "a VHD (Virtual PC) image", convert),
        (0, b"QED\0", "a QED image", convert),
        (0x40, b"\x7f\x10\xda\xbe", "a VirtualBox image", convert),
        (0, b"WithoutFreeSpace", "a Parallels image", convert),
        (0, b"WithouFreSpacExt", "a Parallels image", convert),
        (0, b"LUKS\xba\xbe", "encrypted (LUKS)", "decrypt it first"),
        (0, b"\x1f\x8b", "compressed (gzip)", archive),
        (0, b"\xfd7zXZ\0", "compressed (xz)", archive),
        (0, b"\x28\xb5\x2f\xfd", "compressed (zstd)", archive),
        (0, b"BZh", "compressed (bzip2)", archive),
        (0, b"PK\x03\x04", "a zip archive", archive),
        (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", archive),
        (257, b"ustar", "a tar archive (an OVA is one)", archive),
    ];
    if let Some((_, _, what, hint)) = others.iter().find(|(at, magic, ..)| has(*at, magic)) {
        return Err(format!("is {what}; {hint}"));
    }
    if head.windows(21).any(|w| w.eq_ignore_ascii_case(b"# disk descriptorfile")) {
        return Err("is a VMDK descriptor, whose data is in other files; \
             make one file of it with `qemu-img convert -O qcow2` where you trust it"
            .into());
    }
    Ok(ImageFormat::Raw)
}

fn number<const N: usize>(head: &[u8], at: usize) -> Option<[u8; N]> {
    head.get(at..at + N)?.try_into().ok()
}

/// Refuses qcow2 headers that refer elsewhere, before QEMU reads them.
fn qcow2(head: &[u8], length: u64) -> Result<(), String> {
    let cut = || format!("is a qcow2 image cut off after {length} bytes; fetch it again");
    let u32_at = |at| number(head, at).map(u32::from_be_bytes).ok_or_else(cut);
    let u64_at = |at| number(head, at).map(u64::from_be_bytes).ok_or_else(cut);
    let version = u32_at(4)?;
    if version != 2 && version != 3 {
        return Err(format!("is a qcow image of version {version}; 2 and 3 are understood"));
    }
    if u64_at(8)? != 0 || u32_at(16)? != 0 {
        return Err("depends on a backing file; flatten it first with `qemu-img convert -O qcow2`".into());
    }
    if u32_at(32)? != 0 {
        return Err("is encrypted; decrypt it first with `qemu-img convert`".into());
    }
    if version == 3 {
        // dirty, corrupt, external data file, compression type, extended L2 entries
        let features = u64_at(72)?;
        if features & 4 != 0 {
            return Err("keeps its data in another file; flatten it first with `qemu-img convert -O qcow2`".into());
        }
        if features & 2 != 0 {
            return Err("is marked as corrupt; repair it with `qemu-img check -r all` where it came from".into());
        }
        if features & !0b11111 != 0 {
            return Err(format!("needs qcow2 features ({features:#x}) that are not understood"));
        }
    }
    Ok(())
}

/// The cluster size in a qcow2 header.
fn cluster(head: &[u8]) -> u64 {
    number(head, 20).map(u32::from_be_bytes).and_then(|bits| 1u64.checked_shl(bits)).unwrap_or(0)
}

/// Refuses sparse VMDK files that are only a cover for a descriptor or a difference to a parent.
fn vmdk(head: &[u8]) -> Result<(), String> {
    let u64_at = |at| number(head, at).map(u64::from_le_bytes).ok_or("is a VMDK image cut off in its header".to_owned());
    if u64_at(12)? == 0 {
        return Err("is a VMDK file without data of its own; make one file of it with `qemu-img convert -O qcow2`".into());
    }
    let text = String::from_utf8_lossy(head);
    let parent = text.lines().find_map(|line| line.trim().strip_prefix("parentCID=")).map(str::trim);
    if parent.is_some_and(|cid| !cid.eq_ignore_ascii_case("ffffffff")) || text.contains("parentFileNameHint") {
        return Err("is a VMDK snapshot that depends on a parent; flatten it first with `qemu-img convert -O qcow2`".into());
    }
    Ok(())
}

/// The same questions once more, answered by QEMU.
fn check_info(info: &Value) -> Result<(), String> {
    let specific = &info["format-specific"]["data"];
    if info.get("backing-filename").is_some() || info.get("full-backing-filename").is_some() {
        return Err("depends on a backing file; flatten it first with `qemu-img convert -O qcow2`".into());
    }
    if specific.get("data-file").is_some() {
        return Err("keeps its data in another file; flatten it first with `qemu-img convert -O qcow2`".into());
    }
    if info["encrypted"].as_bool() == Some(true) || specific.get("encrypt").is_some() {
        return Err("is encrypted; decrypt it first with `qemu-img convert`".into());
    }
    Ok(())
}

/// Checks an image's tables, and that the file has everything they refer to.
async fn check(format: ImageFormat, path: &Path, length: u64, cluster: u64) -> Result<(), ImageError> {
    let refused = |why: String| Err(ImageError::Refused { path: path.to_owned(), why });
    let arguments = ["check", "--output=json", "--image-opts", &options(format, path)];
    let (status, output) = exec::run_to_status("qemu-img", &arguments, CHECK).await?;
    // 3: clusters that nobody uses; 63: the format has no check.
    if !matches!(status.code(), Some(0 | 3 | 63)) {
        let last = output.stderr.lines().last().unwrap_or_default().to_owned();
        return refused(format!("is damaged or cut off (qemu-img check: {status} {last}); fetch it again"));
    }
    let end = json(&output.stdout).ok().and_then(|report| report["image-end-offset"].as_u64()).unwrap_or(0);
    if format == ImageFormat::Qcow2 && length < end {
        // The last cluster of a good file need not be whole, when it is a table or compressed data; plain data must be.
        let needed = if length + cluster <= end { end } else { last_data(format, path).await? };
        if length < needed {
            return refused(format!("is cut off: {length} bytes long, and its tables refer to {needed}; fetch it again"));
        }
    }
    Ok(())
}

/// The end of the last plain data in the file.
async fn last_data(format: ImageFormat, path: &Path) -> Result<u64, ImageError> {
    let arguments = ["map", "--output=json", "--image-opts", &options(format, path)];
    let output = exec::run("qemu-img", &arguments, CHECK).await?;
    let failed = |source| ImageError::Io { what: "understand the map of", path: path.to_owned(), source };
    let map = json(&output.stdout).map_err(failed)?;
    let pieces = map.as_array().into_iter().flatten();
    let plain = pieces.filter(|piece| piece["data"] == true && piece["compressed"] != true);
    Ok(plain.filter_map(|piece| Some(piece["offset"].as_u64()? + piece["length"].as_u64()?)).max().unwrap_or(0))
}

#[cfg(test)]
mod tests;
