//! Who holds a block device: the answer to "device busy", for a person, and the check before something is destroyed.
//!
//! Five kinds, because the kernel has no one list: descriptors of processes, devices stacked on it, mounts, swap, and
//! backstores of the iSCSI target, which hold a device without any process.

use super::{LOOK, Number, number};
use crate::{
    HostError,
    kernel::{blocking, fault, lio, names, text},
};
use std::{fmt, fs, path::Path};

/// One that holds a device.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Holder {
    /// A process that has it open.
    Process {
        /// Which.
        pid: u32,
        /// Its command's name.
        command: String,
    },
    /// A device stacked on it or on a partition of it: device-mapper, LVM, a RAID, a loop.
    Device {
        /// The kernel's name of it.
        name: String,
        /// What device-mapper or LVM calls it, or the file a loop is over.
        known_as: Option<String>,
    },
    /// It is mounted.
    Mount {
        /// Where.
        at: String,
    },
    /// It is swapped to.
    Swap,
    /// It is exported by the kernel's iSCSI target.
    Backstore {
        /// Which, as `iblock_0/NAME`.
        name: String,
    },
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process { pid, command } => write!(f, "process {pid} ({command})"),
            Self::Device { name, known_as: Some(known) } => write!(f, "device {name} ({known})"),
            Self::Device { name, known_as: None } => write!(f, "device {name}"),
            Self::Mount { at } => write!(f, "the mount at {at}"),
            Self::Swap => f.write_str("the kernel, as swap"),
            Self::Backstore { name } => write!(f, "the iSCSI target, as {name}"),
        }
    }
}

/// Everybody who holds a device, or a partition of it. A process of another user is seen only by root.
///
/// # Errors
/// When it cannot be told.
pub async fn holders(device: Number) -> Result<Vec<Holder>, HostError> {
    blocking(format!("cannot tell who holds the block device {device}"), LOOK, move || all(device)).await
}

/// Everybody who holds what a path leads to, in words; nobody holds what is not there.
///
/// # Errors
/// When it cannot be told.
pub async fn holders_at(path: &Path) -> Result<Vec<String>, HostError> {
    match number(path)? {
        Some(device) => Ok(holders(device).await?.iter().map(ToString::to_string).collect()),
        None => Ok(Vec::new()),
    }
}

fn all(device: Number) -> Result<Vec<Holder>, HostError> {
    let mut found = Vec::new();
    let mut numbers = vec![device];
    if let Some(name) = device.name()? {
        let dir = Path::new("/sys/class/block").join(&name);
        stacked(&dir, &mut found)?;
        for part in names(&dir)?.unwrap_or_default() {
            let part = dir.join(part);
            if part.join("partition").exists() {
                stacked(&part, &mut found)?;
                numbers.extend(text(&part.join("dev"))?.and_then(|dev| dev.parse::<Number>().ok()));
            }
        }
        loops(&numbers, &mut found)?;
    }
    processes(&numbers, &mut found)?;
    let mounts = text(Path::new("/proc/self/mountinfo"))?.unwrap_or_default();
    found.extend(mounted(&mounts, &numbers));
    let swaps = text(Path::new("/proc/swaps"))?.unwrap_or_default();
    let swapped = |line: &str| line.split_whitespace().next().is_some_and(|path| is_one(Path::new(path), &numbers));
    if swaps.lines().skip(1).any(swapped) {
        found.push(Holder::Swap);
    }
    found.extend(lio::backstores_on(Path::new(lio::ROOT), device)?.into_iter().map(|name| Holder::Backstore { name }));
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

fn is_one(path: &Path, numbers: &[Number]) -> bool {
    number(path).ok().flatten().is_some_and(|number| numbers.contains(&number))
}

fn stacked(dir: &Path, found: &mut Vec<Holder>) -> Result<(), HostError> {
    for name in names(&dir.join("holders"))?.unwrap_or_default() {
        let mapped = Path::new("/sys/class/block").join(&name).join("dm");
        // Its names mean something to whoever knows who gave them.
        let of_lvm = text(&mapped.join("uuid"))?.is_some_and(|uuid| uuid.starts_with("LVM-"));
        let known_as = text(&mapped.join("name"))?.map(|name| if of_lvm { format!("LVM's {name}") } else { name });
        found.push(Holder::Device { name, known_as });
    }
    Ok(())
}

/// Loops are not in the list of holders.
fn loops(numbers: &[Number], found: &mut Vec<Holder>) -> Result<(), HostError> {
    for name in names(Path::new("/sys/block"))?.unwrap_or_default() {
        if let Some(file) = text(&Path::new("/sys/block").join(&name).join("loop/backing_file"))?
            && is_one(Path::new(&file), numbers)
        {
            found.push(Holder::Device { name, known_as: Some(file) });
        }
    }
    Ok(())
}

fn processes(numbers: &[Number], found: &mut Vec<Holder>) -> Result<(), HostError> {
    let listed =
        names(Path::new("/proc"))?.ok_or_else(|| fault("cannot list the processes", "/proc is not there", "mount it"))?;
    for pid in listed.iter().filter_map(|name| name.parse::<u32>().ok()) {
        let dir = Path::new("/proc").join(pid.to_string());
        // A process may end at any moment, and others' are closed to us when we are not root.
        let Ok(descriptors) = fs::read_dir(dir.join("fd")) else { continue };
        let holds = |path: &Path| {
            // Only what can be a device is looked at: a look at a file on a dead network file system would not come back.
            let target = fs::read_link(path).unwrap_or_default();
            target.to_string_lossy().contains("/dev/") && is_one(path, numbers)
        };
        if descriptors.filter_map(Result::ok).any(|entry| holds(&entry.path())) {
            let command = text(&dir.join("comm")).ok().flatten().unwrap_or_default();
            found.push(Holder::Process { pid, command });
        }
    }
    Ok(())
}

/// The mounts of these devices in `/proc/self/mountinfo`: `ID PARENT MAJOR:MINOR ROOT WHERE …`.
fn mounted(table: &str, numbers: &[Number]) -> Vec<Holder> {
    let at = |line: &str| {
        let mut words = line.split(' ').skip(2);
        let number: Number = words.next()?.parse().ok()?;
        let at = words.nth(1)?.to_owned();
        numbers.contains(&number).then_some(Holder::Mount { at })
    };
    table.lines().filter_map(at).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_found_by_number() {
        let table = "22 1 0:20 / /sys rw,nosuid - sysfs sysfs rw\n36 1 253:4 / /srv/my\\040disk rw,relatime shared:1 - ext4 /dev/mapper/x rw\n";
        let found = mounted(table, &["253:4".parse().unwrap()]);
        assert_eq!(found, [Holder::Mount { at: "/srv/my\\040disk".into() }]);
        assert_eq!(mounted(table, &["253:5".parse().unwrap()]), []);
    }

    #[tokio::test]
    async fn nobody_holds_what_is_not_there() {
        let number = Number { major: 4000, minor: 4000 };
        assert_eq!(holders(number).await, Ok(Vec::new()));
    }
}
