//! Making an export: every step is done where it is not done yet, so that a half-made one is completed by the same code.

use super::{Chap, Export, Lio, make_dir, portal_name, teardown};
use crate::{
    HostError,
    kernel::{
        block::{self},
        fault, names, text,
    },
};
use std::{fs, io, os::unix::fs::symlink, path::Path};

impl Lio {
    pub(super) fn build(&self, export: &Export) -> Result<(), HostError> {
        self.build_backstore(export)?;
        let group = self.group_dir(&export.target);
        for dir in [self.root.join("iscsi"), self.target_dir(&export.target), group.clone()] {
            make(&dir)?;
        }
        // Before anybody can log in. The kernel lets in whoever has an ACL, and without this everybody.
        for (name, value) in [("authentication", "1"), ("generate_node_acls", "0"), ("demo_mode_write_protect", "1")] {
            put_if_other(&group.join("attrib").join(name), value)?;
        }
        self.put_out_others(export)?;
        let lun = group.join("lun/lun_0");
        make(&lun)?;
        match link_of(&lun)? {
            None => link(&self.backstore_dir(&export.backstore), &lun.join("backstore"))?,
            Some(found) if found == export.backstore => {}
            Some(found) => {
                return Err(HostError(format!(
                    "LUN 0 of {} leads to {found}, not to {}; withdraw it first",
                    export.target, export.backstore
                )));
            }
        }
        self.build_acl(export, &lun)?;
        self.build_portals(export)?;
        put_if_other(&group.join("enable"), "1")
    }

    fn build_backstore(&self, export: &Export) -> Result<(), HostError> {
        let dir = self.backstore_dir(&export.backstore);
        let path = export.device.display();
        if let Some(found) = self.read_backstore(&export.backstore)?
            && found.enabled
        {
            let other = |what: &str, is: &dyn std::fmt::Debug| {
                Err(HostError(format!(
                    "the backstore {} has the {what} {is:?} and not that of {path}; withdraw it first",
                    export.backstore
                )))
            };
            // The number says which device it really has open: a zvol may have been made again under the same name.
            let now = block::number(&export.device)?;
            return match found {
                _ if found.number != now => other("device", &found.number),
                _ if found.serial.as_deref() != Some(&export.serial) => other("serial number", &found.serial),
                _ => Ok(()),
            };
        }
        if block::number(&export.device)?.is_none() {
            return Err(HostError(format!("there is no device {path} to be exported; is its pool imported?")));
        }
        for dir in [self.root.join("core"), self.root.join("core").join(super::ADAPTER), dir.clone()] {
            make(&dir)?;
        }
        put(&dir.join("control"), &format!("udev_path={path}"))?;
        put(&dir.join("udev_path"), &path.to_string())?;
        put(&dir.join("enable"), "1").map_err(|error| {
            HostError(format!("{error}: {path} cannot be opened for the export; `img-storage doctor` shows who holds it"))
        })?;
        // It has to be there before anybody can see the disk.
        put(&dir.join("wwn/vpd_unit_serial"), &export.serial)
    }

    /// Whoever is not the one initiator, or is it with other credentials, is put out with its session.
    fn put_out_others(&self, export: &Export) -> Result<(), HostError> {
        let acls = self.group_dir(&export.target).join("acls");
        for initiator in names(&acls)?.unwrap_or_default() {
            let dir = acls.join(&initiator);
            if initiator != export.initiator || credentials(&dir)?.is_some_and(|found| found != export.chap) {
                teardown::remove_acl(&dir)?;
            }
        }
        Ok(())
    }

    fn build_acl(&self, export: &Export, lun: &Path) -> Result<(), HostError> {
        let dir = self.group_dir(&export.target).join("acls").join(&export.initiator);
        make(&dir)?;
        if credentials(&dir)?.as_ref() != Some(&export.chap) {
            put(&dir.join("auth/userid"), &export.chap.user)?;
            put(&dir.join("auth/password"), &export.chap.password)
                .map_err(|error| HostError(error.0.replace(&export.chap.password, "…")))?;
        }
        let mapped = dir.join("lun_0");
        make(&mapped)?;
        if link_of(&mapped)?.is_none() {
            link(lun, &mapped.join("lun"))?;
        }
        Ok(())
    }

    fn build_portals(&self, export: &Export) -> Result<(), HostError> {
        let np = self.group_dir(&export.target).join("np");
        let wanted: Vec<String> = export.portals.iter().map(portal_name).collect();
        for found in names(&np)?.unwrap_or_default() {
            if !wanted.contains(&found) {
                teardown::remove_dir(&np.join(found))?;
            }
        }
        for name in wanted {
            make(&np.join(&name))
                .map_err(|error| HostError(format!("{error}; is the address one of this host, and the port free?")))?;
        }
        Ok(())
    }
}

/// The credentials of an ACL; nothing while it has none. The kernel shows what is not set as `NULL`.
fn credentials(acl: &Path) -> Result<Option<Chap>, HostError> {
    let read =
        |name: &str| Ok::<_, HostError>(text(&acl.join("auth").join(name))?.filter(|text| !text.is_empty() && text != "NULL"));
    Ok(match (read("userid")?, read("password")?) {
        (None, None) => None,
        (user, password) => Some(Chap { user: user.unwrap_or_default(), password: password.unwrap_or_default() }),
    })
}

fn make(dir: &Path) -> Result<(), HostError> {
    make_dir(dir).map_err(|why| fault(format_args!("cannot make {}", dir.display()), why, ""))
}

fn link(to: &Path, at: &Path) -> Result<(), HostError> {
    match symlink(to, at) {
        Err(why) if why.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(why) => Err(fault(format_args!("cannot link {} to {}", at.display(), to.display()), why, "")),
        Ok(()) => Ok(()),
    }
}

/// What the link in a LUN's directory leads to.
fn link_of(dir: &Path) -> Result<Option<String>, HostError> {
    super::facts::link_in(dir)
}

fn put(path: &Path, value: &str) -> Result<(), HostError> {
    use io::Write;
    // One write, as configfs wants it; nothing is created in its place.
    let write = || fs::OpenOptions::new().write(true).open(path)?.write_all(value.as_bytes());
    write().map_err(|why| fault(format_args!("cannot write {value:?} to {}", path.display()), why, ""))
}

/// Some attributes cannot be written while the group is enabled, and need not be when they are right.
fn put_if_other(path: &Path, value: &str) -> Result<(), HostError> {
    if text(path)?.as_deref() == Some(value) { Ok(()) } else { put(path, value) }
}
