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
    /// The initiators that are logged in without an ACL.
    pub dynamic: Vec<String>,
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
            dynamic: Vec::new(),
        };
        if !target.group {
            return Ok(Some(target));
        }
        let is_on = |path: &str| Ok::<_, HostError>(text(&dir.join(path))?.is_some_and(|text| text == "1"));
        target.enabled = is_on("enable")?;
        target.authentication = is_on("attrib/authentication")?;
        target.open_to_all = is_on("attrib/generate_node_acls")?;
        // Each is ended by a line feed and a zero byte.
        let dynamic = text(&dir.join("dynamic_sessions"))?.unwrap_or_default();
        target.dynamic = dynamic.split(['\n', '\0']).filter(|name| !name.is_empty()).map(str::to_owned).collect();
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

/// Where targetcli keeps what it restores at a boot.
const SAVED: [&str; 2] = ["/etc/rtslib-fb-target/saveconfig.json", "/etc/target/saveconfig.json"];

impl Lio {
    /// The targets of ours that targetcli has saved, as it does with all when it is left. They would come back at the next boot by
    /// themselves, as they were: with an initiator that may since have been locked out, before any daemon of ours can see to it.
    ///
    /// # Errors
    /// When it cannot be told.
    pub fn saved_by_targetcli(&self) -> Result<Vec<String>, HostError> {
        let mut found = Vec::new();
        for path in SAVED.map(Path::new) {
            if let Some(text) = text(path)? {
                found.extend(
                    self.saved_in(&text).map_err(|why| HostError(format!("{} cannot be understood: {why}", path.display())))?,
                );
            }
        }
        Ok(found)
    }

    fn saved_in(&self, text: &str) -> serde_json::Result<Vec<String>> {
        #[derive(serde::Deserialize)]
        struct Saved {
            #[serde(default)]
            targets: Vec<Name>,
        }
        #[derive(serde::Deserialize)]
        struct Name {
            wwn: String,
        }
        let saved: Saved = serde_json::from_str(text)?;
        Ok(saved.targets.into_iter().map(|target| target.wwn).filter(|name| name.starts_with(&self.targets)).collect())
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::symlink};

    const TARGET: &str = "iqn.2024-01.test.trial:v1";

    /// A configfs as it was recorded, in a directory.
    fn recorded() -> (tempfile::TempDir, Lio) {
        let dir = tempfile::tempdir().unwrap();
        for line in include_str!("../../../tests/transcripts/lio-session.txt").lines() {
            let (path, link, value) = match line.split_once('\t') {
                Some((path, value)) => (path, false, value),
                None => line.split_once(" -> ").map(|(path, to)| (path, true, to)).unwrap(),
            };
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            if link {
                symlink(value, &path).unwrap();
            } else {
                let before = fs::read_to_string(&path).unwrap_or_default();
                fs::write(&path, format!("{before}{value}\n")).unwrap();
            }
        }
        let lio = Lio::new(dir.path(), "iqn.2024-01.test.trial:", "trial-");
        (dir, lio)
    }

    #[tokio::test]
    async fn an_export_in_use_is_seen_whole() {
        let (dir, lio) = recorded();
        let (targets, backstores) = lio.list().await.unwrap();
        let number = Number { major: 230, minor: 0 };
        let backstore = Backstore {
            name: "trial-v1".into(),
            device: Some("/dev/zvol/tank/v1".into()),
            number: Some(number),
            serial: Some("serial-v1".into()),
            enabled: true,
        };
        assert_eq!(backstores, [backstore]);
        let target = Target {
            name: TARGET.into(),
            group: true,
            enabled: true,
            authentication: true,
            open_to_all: false,
            portals: vec!["10.77.0.2:3260".parse().unwrap()],
            luns: vec![Lun { number: 0, backstore: Some("trial-v1".into()) }],
            acls: vec![Acl {
                initiator: "iqn.1993-08.org.debian:01:node1".into(),
                user: Some("user1".into()),
                luns: vec![0],
                session: Some(Login { state: "TARG_SESS_STATE_LOGGED_IN".into(), from: vec!["10.77.0.3".into()] }),
            }],
            dynamic: Vec::new(),
        };
        assert_eq!(targets, [target]);
        assert!(targets[0].acls[0].session.as_ref().unwrap().is_logged_in());
        assert_eq!(backstores_on(dir.path(), number).unwrap(), ["iblock_7300/trial-v1"]);
        assert_eq!(backstores_on(dir.path(), Number { major: 230, minor: 16 }).unwrap(), [""; 0]);
        // As the kernel writes them: a line feed and a zero byte after each.
        fs::write(lio.group_dir(TARGET).join("dynamic_sessions"), "iqn.a\n\0iqn.b\n\0").unwrap();
        assert_eq!(lio.target(TARGET).await.unwrap().unwrap().dynamic, ["iqn.a", "iqn.b"]);
    }

    #[tokio::test]
    async fn half_of_an_export_is_seen_as_such() {
        let (dir, lio) = recorded();
        let group = dir.path().join("iscsi").join(TARGET).join("tpgt_1");
        fs::remove_dir_all(group.join("acls")).unwrap();
        fs::remove_file(group.join("lun/lun_0/backstore")).unwrap();
        fs::write(dir.path().join("core/iblock_7300/trial-v1/enable"), "0\n").unwrap();
        let target = lio.target(TARGET).await.unwrap().unwrap();
        assert_eq!((target.acls.len(), &target.luns[..]), (0, &[Lun { number: 0, backstore: None }][..]));
        let backstore = lio.backstore("trial-v1").await.unwrap().unwrap();
        assert_eq!((backstore.enabled, backstore.number), (false, None));
        fs::remove_dir_all(&group).unwrap();
        assert!(!lio.target(TARGET).await.unwrap().unwrap().group);
        assert_eq!(lio.target("iqn.2024-01.test.trial:none").await, Ok(None));
    }

    #[tokio::test]
    async fn what_is_not_ours_is_neither_listed_nor_touched() {
        let (dir, _) = recorded();
        let lio = Lio::new(dir.path(), "iqn.2024-01.test.other:", "other-");
        assert_eq!(lio.list().await, Ok((Vec::new(), Vec::new())));
        for (target, backstore) in
            [(TARGET, "other-v1"), ("iqn.2024-01.test.other:v1", "trial-v1"), ("iqn.2024-01.test.other:/..", "other-x")]
        {
            let error = lio.withdraw(target, backstore).await.unwrap_err();
            assert!(error.0.contains("is not ours"), "{error}");
        }
        assert!(Lio::new(dir.path(), "", "").withdraw(TARGET, "trial-v1").await.is_err(), "no prefix is no licence");
        assert!(dir.path().join("core/iblock_7300/trial-v1/enable").exists());
    }

    #[test]
    fn what_targetcli_saved_of_ours() {
        let lio = Lio::new("/none", "iqn.2024-01.test.trial:", "trial-");
        let text = r#"{"fabric_modules": [], "storage_objects": [{"name": "trial-v1", "plugin": "block"}],
            "targets": [{"fabric": "iscsi", "tpgs": [], "wwn": "iqn.2024-01.test.trial:v1"}, {"wwn": "iqn.2003-01.org.other:x"}]}"#;
        assert_eq!(lio.saved_in(text).unwrap(), ["iqn.2024-01.test.trial:v1"]);
        assert_eq!(lio.saved_in("{}").unwrap(), [""; 0]);
        assert!(lio.saved_in("").is_err());
    }

    #[test]
    fn a_missing_session_is_none() {
        let none = "No active iSCSI Session for Initiator Endpoint: iqn.1993-08.org.debian:01:node1\n";
        assert_eq!(session_in(none), None);
    }
}
