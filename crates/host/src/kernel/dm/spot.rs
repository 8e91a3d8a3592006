//! What `/sys` tells of a device without starting a program.

use super::Dm;
use crate::{
    HostError,
    kernel::{blocking, names, text},
};
use std::path::Path;

/// A device of ours, as `/sys` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spot {
    /// Its UUID.
    pub uuid: String,
    /// Whether it is suspended.
    pub suspended: bool,
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
        return Ok(Some(Spot { uuid, suspended: suspended != "0" }));
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
        assert_eq!(found, Spot { uuid: "IMG-STORAGE-1-e2".to_owned(), suspended: true });
        assert_eq!(spot(dir.path(), "a.b").unwrap(), None);
        assert!(spot(&dir.path().join("none"), "a.b.c").is_err(), "no /sys is no absence");
    }
}
