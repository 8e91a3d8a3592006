//! The disks that sessions bring.

use crate::{
    HostError,
    kernel::{
        block::{self, Number},
        names, text,
    },
};
use std::path::{Path, PathBuf};

/// A disk on a target, as the kernel of this node has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// The kernel's name (`sda`).
    pub name: String,
    /// Its node.
    pub path: PathBuf,
    /// Its number.
    pub number: Number,
    /// Bytes.
    pub size: u64,
    /// Its serial number (VPD page 0x80): the proof of which export it is.
    pub serial: Option<String>,
    /// Whether it cannot be written.
    pub read_only: bool,
    /// The kernel's word for its state: `running`, or `transport-offline`, `blocked` while the target is away.
    pub state: String,
}

/// The disk of a session with this LUN: `…/sessionN/targetH:C:T/H:C:T:LUN/block/NAME`.
pub(super) fn find(sysfs: &Path, session: u32, lun: u64) -> Result<Option<Disk>, HostError> {
    let device = sysfs.join(format!("class/iscsi_session/session{session}/device"));
    let (is_target, is_lun) = (|name: &String| name.starts_with("target"), |name: &String| name.ends_with(&format!(":{lun}")));
    for target in names(&device)?.unwrap_or_default().into_iter().filter(is_target) {
        let dir = device.join(target);
        for unit in names(&dir)?.unwrap_or_default().into_iter().filter(is_lun) {
            let unit = dir.join(unit);
            if let Some(name) = names(&unit.join("block"))?.and_then(|names| names.into_iter().next()) {
                return look(&unit, name);
            }
        }
    }
    Ok(None)
}

fn look(unit: &Path, name: String) -> Result<Option<Disk>, HostError> {
    let path = Path::new("/dev").join(&name);
    // It counts from when it can be used: it has its node, and that is its own.
    let Some(number) = text(&unit.join("block").join(&name).join("dev"))? else { return Ok(None) };
    let number: Number = number.parse()?;
    if block::number(&path)? != Some(number) {
        return Ok(None);
    }
    let (Some(found), Some(state)) = (block::look(number)?, text(&unit.join("state"))?) else { return Ok(None) };
    Ok(Some(Disk { name, path, number, size: found.size, serial: found.serial, read_only: found.read_only, state }))
}
