//! What `/sys` tells of a device without starting a program.

use super::Dm;
use crate::{
    HostError,
    kernel::{block::Number, blocking, names, text},
};
use std::path::Path;

/// A device of ours, as `/sys` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spot {
    /// Its UUID.
    pub uuid: String,
    /// Whether it is suspended.
    pub suspended: bool,
    /// What was written through it; nothing where the kernel does not count that, or does not tell devices apart.
    pub count: Option<Count>,
}

/// How much was written through a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count {
    /// Which device since the host started (`diskseq`): no other ever has it.
    pub device: u64,
    /// Its writes and discards. Kernels before 6.3 count those that begin, later ones those that end.
    pub writes: u64,
    /// Writes and discards under way.
    pub under_way: u64,
}

/// Has the kernel count what is written through a device. Linux 6.1 counts it for every device of device-mapper and says that it does not; later ones
/// do as they say. Where it cannot be told, nothing is concluded from what is counted.
pub(super) fn have_counted(number: Number) {
    let switch = format!("/sys/dev/block/{number}/queue/iostats");
    if let Err(why) = std::fs::write(&switch, "1") {
        tracing::debug!("{switch}: {why}");
    }
}

/// What `/sys` counts of a device (`Documentation/block/stat.rst` of Linux; `inflight` has reads and writes).
fn count(dir: &Path) -> Result<Option<Count>, HostError> {
    let of = |file: &str| text(&dir.join(file));
    // Before the writes: what ends in between is seen in them, or here.
    let (counts, device, inflight) = (of("queue/iostats")?, of("diskseq")?, of("inflight")?);
    let stat = of("stat")?;
    let field = |line: &Option<String>, at: usize| line.as_ref()?.split_ascii_whitespace().nth(at)?.parse::<u64>().ok();
    let all = || {
        let (device, under_way) = (device.as_ref()?.trim().parse().ok()?, field(&inflight, 1)?);
        Some(Count { device, writes: field(&stat, 4)? + field(&stat, 11)?, under_way })
    };
    Ok(if counts.as_deref().map(str::trim) == Some("1") { all() } else { None })
}

impl Dm {
    /// As [`Dm::find`], without what only the program can tell.
    ///
    /// # Errors
    /// As [`Dm::find`].
    pub async fn spot(&self, name: &str) -> Result<Option<Spot>, HostError> {
        let wanted = name.to_owned();
        let look = move || spot(Path::new("/sys/block"), &wanted);
        let found = blocking(format!("cannot look for the device {name}"), super::LOOK, look).await?;
        match found {
            Some(other) if !other.uuid.starts_with(&self.prefix) => Err(self.not_ours(name, &other.uuid)),
            found => Ok(found),
        }
    }
}

fn spot(devices: &Path, wanted: &str) -> Result<Option<Spot>, HostError> {
    let all = names(devices)?.ok_or_else(|| HostError(format!("{} is not there; is /sys mounted?", devices.display())))?;
    for device in all.iter().filter(|device| device.starts_with("dm-")) {
        let dir = devices.join(device);
        let of = |file: &str| text(&dir.join(file));
        if of("dm/name")?.as_deref() != Some(wanted) {
            continue;
        }
        // One that goes while it is looked at is gone.
        let (Some(uuid), Some(suspended)) = (of("dm/uuid")?, of("dm/suspended")?) else { continue };
        return Ok(Some(Spot { uuid, suspended: suspended != "0", count: count(&dir)? }));
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_device_is_found_by_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let add = |device: &str, files: &[(&str, &str)]| {
            for (file, text) in files {
                let path = dir.path().join(device).join(file);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
        };
        add("sda", &[("dev", "8:0\n")]);
        add("dm-0", &[("dm/name", "vg-root\n"), ("dm/uuid", "LVM-x\n"), ("dm/suspended", "0\n")]);
        add("dm-1", &[("dm/name", "a.b.c\n"), ("dm/uuid", "IMG-STORAGE-1-e2\n"), ("dm/suspended", "1\n")]);
        let found = spot(dir.path(), "a.b.c").unwrap().unwrap();
        assert_eq!(found, Spot { uuid: "IMG-STORAGE-1-e2".to_owned(), suspended: true, count: None });
        // As Linux 6.1 shows them.
        let stat = "     137        0     8864       93       21        0      168      250        1      264      343        4        0 2097152 3 0 0";
        let counted = [("queue/iostats", "1\n"), ("diskseq", "27\n"), ("inflight", "       3        1\n"), ("stat", stat)];
        add("dm-1", &counted);
        let count = || spot(dir.path(), "a.b.c").unwrap().unwrap().count;
        assert_eq!(count(), Some(Count { device: 27, writes: 25, under_way: 1 }));
        add("dm-1", &[("queue/iostats", "0\n")]);
        assert_eq!(count(), None, "nothing is counted");
        add("dm-1", &[("queue/iostats", "1\n"), ("stat", "     137        0     8864       93       21\n")]);
        assert_eq!(count(), None, "a kernel that does not count discards");
        assert_eq!(spot(dir.path(), "a.b").unwrap(), None);
        assert!(spot(&dir.path().join("none"), "a.b.c").is_err(), "no /sys is no absence");
    }
}
