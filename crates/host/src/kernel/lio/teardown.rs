//! Taking an export away: those who use it first, then each thing before what it stands on.
//!
//! The kernel answers "busy" for a moment after a session has ended, so removing is tried again, within a bound. What is not there
//! any more was removed by an attempt before.

use super::Lio;
use crate::{
    HostError,
    kernel::{fault, is_gone, names, text},
};
use rustix::io::Errno;
use std::{
    fs, io,
    path::Path,
    thread::sleep,
    time::{Duration, Instant},
};

/// How long something may stay busy.
const BUSY: Duration = Duration::from_secs(20);
const AGAIN: Duration = Duration::from_millis(20);

impl Lio {
    /// Ends the sessions of a target and lets nobody in.
    pub(super) fn shut(&self, target: &str) -> Result<(), HostError> {
        let group = self.group_dir(target);
        if names(&group)?.is_none() {
            return Ok(());
        }
        // Disabling ends the sessions and stops logins; without the ACLs, enabling it again lets nobody in either.
        let enable = group.join("enable");
        if text(&enable)?.is_some_and(|text| text == "1") {
            again(&enable, "disable", || fs::write(&enable, "0"))?;
        }
        for initiator in names(&group.join("acls"))?.unwrap_or_default() {
            remove_acl(&group.join("acls").join(initiator))?;
        }
        Ok(())
    }

    pub(super) fn take_away(&self, target: &str, backstore: &str) -> Result<(), HostError> {
        self.shut(target)?;
        let group = self.group_dir(target);
        for lun in names(&group.join("lun"))?.unwrap_or_default() {
            let dir = group.join("lun").join(lun);
            if dir.is_dir() {
                remove_links(&dir)?;
                remove_dir(&dir)?;
            }
        }
        for portal in names(&group.join("np"))?.unwrap_or_default() {
            remove_dir(&group.join("np").join(portal))?;
        }
        remove_dir(&group)?;
        remove_dir(&self.target_dir(target))?;
        remove_dir(&self.backstore_dir(backstore))
    }
}

/// Removes an ACL, which ends the session of its initiator.
pub(super) fn remove_acl(acl: &Path) -> Result<(), HostError> {
    for name in names(acl)?.unwrap_or_default().into_iter().filter(|name| name.starts_with("lun_")) {
        let dir = acl.join(name);
        remove_links(&dir)?;
        remove_dir(&dir)?;
    }
    remove_dir(acl)
}

fn remove_links(dir: &Path) -> Result<(), HostError> {
    for name in names(dir)?.unwrap_or_default() {
        let path = dir.join(name);
        if fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_symlink()) {
            again(&path, "remove", || fs::remove_file(&path))?;
        }
    }
    Ok(())
}

pub(super) fn remove_dir(dir: &Path) -> Result<(), HostError> {
    again(dir, "remove", || fs::remove_dir(dir))
}

fn again(path: &Path, what: &str, mut act: impl FnMut() -> io::Result<()>) -> Result<(), HostError> {
    let end = Instant::now() + BUSY;
    loop {
        match act() {
            Ok(()) => return Ok(()),
            Err(why) if is_gone(&why) => return Ok(()),
            Err(why) if is_busy(&why) && Instant::now() < end => sleep(AGAIN),
            Err(why) => return Err(fault(format_args!("cannot {what} {}", path.display()), why, "")),
        }
    }
}

fn is_busy(error: &io::Error) -> bool {
    error.raw_os_error().is_some_and(|code| [Errno::BUSY, Errno::AGAIN].iter().any(|errno| errno.raw_os_error() == code))
}
