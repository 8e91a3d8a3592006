//! What is to be seen of the target.

use super::{ADAPTER, Lio};
use crate::{
    HostError,
    kernel::{
        block::{self, Number},
        names, text,
    },
};
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

/// A backstore of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backstore {
    /// Its name.
    pub name: String,
    /// The path it was made with.
    pub device: Option<PathBuf>,
    /// The device it has open, whatever the path leads to by now.
    pub number: Option<Number>,
    /// The serial number it shows.
    pub serial: Option<String>,
    /// Whether it has its device; otherwise it is half-made.
    pub enabled: bool,
}

/// A target of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its name (IQN).
    pub name: String,
    /// Whether its portal group is there at all; otherwise the rest is empty.
    pub group: bool,
    /// Whether initiators can log in.
    pub enabled: bool,
    /// Whether they must authenticate.
    pub authentication: bool,
    /// Whether those without an ACL are let in; never so in an export that is complete.
    pub open_to_all: bool,
    /// Where it listens, in the kernel's order.
    pub portals: Vec<SocketAddr>,
    /// Its LUNs.
    pub luns: Vec<Lun>,
    /// Who is let in.
    pub acls: Vec<Acl>,
}

/// A LUN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lun {
    /// Its number.
    pub number: u64,
    /// The backstore it leads to; none in a half-made one.
    pub backstore: Option<String>,
}

/// An initiator that is let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acl {
    /// Its name.
    pub initiator: String,
    /// The user it has to be by CHAP.
    pub user: Option<String>,
    /// The LUNs that it sees.
    pub luns: Vec<u64>,
    /// Its session, if it has one.
    pub session: Option<Login>,
}

/// A session of an initiator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// The kernel's word for its state: `TARG_SESS_STATE_LOGGED_IN` and others.
    pub state: String,
    /// The addresses that its connections come from.
    pub from: Vec<String>,
}

impl Login {
    /// Whether it can do I/O now.
    pub fn is_logged_in(&self) -> bool {
        self.state.ends_with("LOGGED_IN")
    }
}

impl Lio {
    pub(super) fn read_all(&self, part: &str) -> Result<(Vec<Target>, Vec<Backstore>), HostError> {
        let (mut targets, mut backstores) = (Vec::new(), Vec::new());
        for name in names(&self.root.join("iscsi"))?.unwrap_or_default() {
            if name.starts_with(&self.targets) && name.contains(part) {
                targets.extend(self.read_target(&name)?);
            }
        }
        for name in names(&self.root.join("core").join(ADAPTER))?.unwrap_or_default() {
            if name.starts_with(&self.backstores) && name.contains(part) {
                backstores.extend(self.read_backstore(&name)?);
            }
        }
        Ok((targets, backstores))
    }

    pub(super) fn read_backstore(&self, name: &str) -> Result<Option<Backstore>, HostError> {
        let dir = self.backstore_dir(name);
        if names(&dir)?.is_none() {
            return Ok(None);
        }
        let not_empty = |text: &String| !text.is_empty();
        let serial = text(&dir.join("wwn/vpd_unit_serial"))?;
        let enabled = text(&dir.join("enable"))?.is_some_and(|text| text == "1");
        Ok(Some(Backstore {
            name: name.to_owned(),
            device: text(&dir.join("udev_path"))?.filter(not_empty).map(PathBuf::from),
            number: if enabled { text(&dir.join("info"))?.as_deref().and_then(number_in) } else { None },
            serial: serial.map(|text| value_of(&text).to_owned()).filter(not_empty),
            enabled,
        }))
    }

    pub(super) fn read_target(&self, name: &str) -> Result<Option<Target>, HostError> {
        if names(&self.target_dir(name))?.is_none() {
            return Ok(None);
        }
        let dir = self.group_dir(name);
        let mut target = Target {
            name: name.to_owned(),
            group: names(&dir)?.is_some(),
            enabled: false,
            authentication: false,
            open_to_all: false,
            portals: Vec::new(),
            luns: Vec::new(),
            acls: Vec::new(),
        };
        if !target.group {
            return Ok(Some(target));
        }
        let is_on = |path: &str| Ok::<_, HostError>(text(&dir.join(path))?.is_some_and(|text| text == "1"));
        target.enabled = is_on("enable")?;
        target.authentication = is_on("attrib/authentication")?;
        target.open_to_all = is_on("attrib/generate_node_acls")?;
        let portals = names(&dir.join("np"))?.unwrap_or_default();
        target.portals = portals.iter().filter_map(|name| name.parse().ok()).collect();
        for lun in names(&dir.join("lun"))?.unwrap_or_default() {
            let Some(number) = lun_number(&lun) else { continue };
            target.luns.push(Lun { number, backstore: link_in(&dir.join("lun").join(&lun))? });
        }
        for initiator in names(&dir.join("acls"))?.unwrap_or_default() {
            let at = dir.join("acls").join(&initiator);
            let mut luns = Vec::new();
            for lun in names(&at)?.unwrap_or_default() {
                if let Some(number) = lun_number(&lun)
                    && link_in(&at.join(&lun))?.is_some()
                {
                    luns.push(number);
                }
            }
            let user = text(&at.join("auth/userid"))?.filter(|user| !user.is_empty() && user != "NULL");
            let session = text(&at.join("info"))?.as_deref().and_then(session_in);
            target.acls.push(Acl { initiator, user, luns, session });
        }
        Ok(Some(target))
    }
}

/// The number of a `lun_N` directory.
fn lun_number(name: &str) -> Option<u64> {
    name.strip_prefix("lun_")?.parse().ok()
}

/// What the one link in a directory leads to: the last part of it.
pub(super) fn link_in(dir: &Path) -> Result<Option<String>, HostError> {
    for name in names(dir)?.unwrap_or_default() {
        if let Ok(target) = std::fs::read_link(dir.join(&name)) {
            return Ok(target.file_name().map(|name| name.to_string_lossy().into_owned()));
        }
    }
    Ok(None)
}

/// `T10 VPD Unit Serial Number: abc`.
fn value_of(line: &str) -> &str {
    line.split_once(": ").map_or("", |(_, value)| value.trim())
}

/// `… Major: 230 Minor: 16  CLAIMED: IBLOCK`.
fn number_in(info: &str) -> Option<Number> {
    let mut words = info.split_whitespace();
    words.find(|word| *word == "Major:")?;
    let major = words.next()?.parse().ok()?;
    words.find(|word| *word == "Minor:")?;
    Some(Number { major, minor: words.next()?.parse().ok()? })
}

/// What the kernel tells of an ACL's session; it says so in a sentence when there is none.
fn session_in(info: &str) -> Option<Login> {
    let state = info.lines().find_map(|line| line.trim().strip_prefix("Session State: "))?.trim().to_owned();
    let from =
        |line: &str| line.trim().strip_prefix("Address ").and_then(|rest| Some(rest.split_whitespace().next()?.to_owned()));
    Some(Login { state, from: info.lines().filter_map(from).collect() })
}

/// The backstores over a device, of whomever they are, as `iblock_0/NAME`.
///
/// # Errors
/// When it cannot be told. A host without the kernel's target has none.
pub fn backstores_on(root: &Path, device: Number) -> Result<Vec<String>, HostError> {
    let core = root.join("core");
    let mut found = Vec::new();
    for adapter in names(&core)?.unwrap_or_default().into_iter().filter(|name| name.starts_with("iblock_")) {
        for name in names(&core.join(&adapter))?.unwrap_or_default() {
            let dir = core.join(&adapter).join(&name);
            let enabled = text(&dir.join("enable"))?.is_some_and(|text| text == "1");
            if !enabled {
                continue;
            }
            let open = match text(&dir.join("info"))?.as_deref().and_then(number_in) {
                Some(number) => Some(number),
                None => match text(&dir.join("udev_path"))? {
                    Some(path) => block::number(Path::new(&path))?,
                    None => None,
                },
            };
            if open == Some(device) {
                found.push(format!("{adapter}/{name}"));
            }
        }
    }
    Ok(found)
}
