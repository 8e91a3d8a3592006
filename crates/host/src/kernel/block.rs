//! Block devices: what they are, and who holds them.

mod holders;

pub use holders::{Holder, holders, holders_at};

use super::{blocking, during, fault, text};
use crate::HostError;
use std::{
    fmt, fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

/// How long the kernel may take to tell about a device.
const LOOK: Duration = Duration::from_secs(10);
/// The unit in which the kernel counts a device's size, whatever its blocks are.
pub const SECTOR: u64 = 512;

/// The kernel's number of a block device. As long as the device is there no other has it; after that it may be given again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Number {
    /// Which driver.
    pub major: u32,
    /// Which of its devices.
    pub minor: u32,
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

impl FromStr for Number {
    type Err = HostError;
    fn from_str(text: &str) -> Result<Self, HostError> {
        let parsed = text.trim().split_once(':').and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
        let (major, minor) = parsed.ok_or_else(|| HostError(format!("{text:?} is no device number (MAJOR:MINOR)")))?;
        Ok(Self { major, minor })
    }
}

impl Number {
    fn of(raw: u64) -> Self {
        Self { major: rustix::fs::major(raw), minor: rustix::fs::minor(raw) }
    }

    /// Its directory in `/sys`.
    fn sysfs(self) -> PathBuf {
        format!("/sys/dev/block/{self}").into()
    }

    /// The kernel's name of it (`sda`, `dm-3`, `zd16`); nothing when there is no such device now.
    ///
    /// # Errors
    /// When it cannot be told.
    pub fn name(self) -> Result<Option<String>, HostError> {
        match fs::read_link(self.sysfs()) {
            Ok(target) => Ok(target.file_name().map(|name| name.to_string_lossy().into_owned())),
            Err(why) if super::is_gone(&why) => Ok(None),
            Err(why) => Err(fault(format_args!("cannot look at the block device {self}"), why, "")),
        }
    }
}

/// The number of the block device that a path leads to; nothing where there is nothing.
///
/// # Errors
/// When it cannot be told, and for what is no block device.
pub fn number(path: &Path) -> Result<Option<Number>, HostError> {
    match fs::metadata(path) {
        Ok(meta) if meta.file_type().is_block_device() => Ok(Some(Number::of(meta.rdev()))),
        Ok(_) => Err(HostError(format!("{} is no block device; something put a file in its place", path.display()))),
        Err(why) if super::is_gone(&why) => Ok(None),
        Err(why) => Err(fault(format_args!("cannot look at {}", path.display()), why, "")),
    }
}

/// What the kernel tells about a block device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// Its number.
    pub number: Number,
    /// The kernel's name (`sda`, `dm-3`, `zd16`).
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// Whether it cannot be written.
    pub read_only: bool,
    /// The serial number of a SCSI disk (VPD page 0x80), as [`serial`] reads it.
    pub serial: Option<String>,
}

/// Looks at a block device; nothing when it is not there.
///
/// # Errors
/// When it cannot be told.
pub fn look(number: Number) -> Result<Option<Block>, HostError> {
    let dir = number.sysfs();
    let Some(name) = number.name()? else { return Ok(None) };
    let (Some(size), Some(ro)) = (text(&dir.join("size"))?, text(&dir.join("ro"))?) else { return Ok(None) };
    let sectors: u64 = size.parse().map_err(during(format_args!("the size of {name} is {size:?}")))?;
    Ok(Some(Block { number, name, size: sectors * SECTOR, read_only: ro != "0", serial: serial(number)? }))
}

/// The serial number of a SCSI disk, from page 0x80 of its vital product data as the kernel read it when it found the disk.
/// Nothing for what has none.
///
/// # Errors
/// When it cannot be read.
pub fn serial(number: Number) -> Result<Option<String>, HostError> {
    let path = number.sysfs().join("device/vpd_pg80");
    match fs::read(&path) {
        Ok(page) => Ok(in_page_80(&page)),
        // A disk that has no such page says so when it is read.
        Err(why) if super::is_gone(&why) || why.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error()) => Ok(None),
        Err(why) => Err(fault(format_args!("cannot read {}", path.display()), why, "")),
    }
}

/// Page 0x80: device type, page, length in two bytes, then the serial number, which may be padded.
fn in_page_80(page: &[u8]) -> Option<String> {
    let length = usize::from(u16::from_be_bytes([*page.get(2)?, *page.get(3)?]));
    let serial = page.get(4..)?.get(..length)?;
    let text = std::str::from_utf8(serial).ok()?.trim_matches([' ', '\0']);
    (page[1] == 0x80 && !text.is_empty()).then(|| text.to_owned())
}

/// Makes sure that everything that was written to a device has reached what keeps it.
///
/// # Errors
/// Naming the device; what became of the writes is not known then.
pub async fn flush(path: PathBuf, deadline: Duration) -> Result<(), HostError> {
    let what = format!("cannot flush {}", path.display());
    let said = what.clone();
    // A read-only descriptor will do, and its closing does not make udev look at the device again.
    let work = move || fs::File::open(&path).and_then(|device| device.sync_all()).map_err(during(said));
    blocking(what, deadline, work).await
}
