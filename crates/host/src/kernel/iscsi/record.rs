//! open-iscsi's records of targets: files of `key = value`, at `TARGET/ADDRESS,PORT,GROUP/INTERFACE`.

use super::Wanted;
use crate::{
    HostError,
    kernel::{during, fault, names},
};
use std::{
    fs::{self, Permissions},
    io::Write,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

/// The targets with records in any of the places.
pub(super) fn targets(places: &[PathBuf], prefix: &str) -> Result<Vec<String>, HostError> {
    let mut found = Vec::new();
    for place in places {
        found.extend(names(place)?.unwrap_or_default().into_iter().filter(|name| name.starts_with(prefix)));
    }
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// The file of the record of a target; nothing where there is none. We make one for each, as each has one portal.
pub(super) fn find(places: &[PathBuf], target: &str) -> Result<Option<PathBuf>, HostError> {
    for place in places {
        let dir = place.join(target);
        for portal in names(&dir)?.unwrap_or_default() {
            let at = dir.join(portal);
            if at.is_file() {
                return Ok(Some(at));
            }
            if let Some(interface) = names(&at)?.and_then(|names| names.into_iter().next()) {
                return Ok(Some(at.join(interface)));
            }
        }
    }
    Ok(None)
}

/// What a record of ours says. One login attempt takes at most a third of the time there is for all.
pub(super) fn settings(wanted: &Wanted, deadline: Duration) -> Vec<(&'static str, String)> {
    let seconds = |time: Duration| time.as_secs().to_string();
    vec![
        ("node.startup", "manual".to_owned()),
        ("node.conn[0].startup", "manual".to_owned()),
        ("node.leading_login", "No".to_owned()),
        ("node.session.auth.authmethod", "CHAP".to_owned()),
        ("node.session.auth.username", wanted.chap.user.clone()),
        ("node.session.auth.password", wanted.chap.password.clone()),
        ("node.session.timeo.replacement_timeout", seconds(wanted.replacement_timeout)),
        ("node.conn[0].timeo.noop_out_interval", seconds(wanted.noop.0)),
        ("node.conn[0].timeo.noop_out_timeout", seconds(wanted.noop.1)),
        // The default is to try for 8 times 15 s. With 0 a target that refuses us fails at once; it is tried again by who wants it. A
        // session that was logged in once is tried for ever either way.
        ("node.conn[0].timeo.login_timeout", seconds((deadline / 3).clamp(Duration::from_secs(2), Duration::from_secs(15)))),
        ("node.session.initial_login_retry_max", "0".to_owned()),
    ]
}

/// Sets keys of a record, and closes it to others than root.
pub(super) fn edit(file: &Path, settings: &[(&str, String)]) -> Result<(), HostError> {
    let what = || format!("cannot edit the iSCSI record {}", file.display());
    if let Some((key, _)) = settings.iter().find(|(_, value)| value.chars().any(|c| c.is_control()) || value.trim() != value) {
        return Err(fault(what(), format_args!("the value for {key} has blanks around it or control characters"), ""));
    }
    let text = fs::read_to_string(file).map_err(during(what()))?;
    let text = edited(&text, settings);
    let mut open = fs::OpenOptions::new().write(true).truncate(true).open(file).map_err(during(what()))?;
    open.set_permissions(Permissions::from_mode(0o600)).map_err(during(what()))?;
    open.write_all(text.as_bytes()).map_err(during(what()))
}

fn edited(text: &str, settings: &[(&str, String)]) -> String {
    let is_set = |line: &&str| line.split_once('=').is_some_and(|(key, _)| settings.iter().any(|(ours, _)| *ours == key.trim()));
    let (end, rest): (Vec<&str>, Vec<&str>) =
        text.lines().filter(|line| !is_set(line)).partition(|line| line.starts_with("# END"));
    let ours = settings.iter().map(|(key, value)| format!("{key} = {value}"));
    let lines: Vec<String> = rest.into_iter().map(str::to_owned).chain(ours).chain(end.into_iter().map(str::to_owned)).collect();
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_replace_what_was_there_and_stay_within_the_record() {
        let text = "# BEGIN RECORD 2.1.8\nnode.name = x\nnode.startup = automatic\n# END RECORD\n";
        let new = edited(text, &[("node.startup", "manual".into()), ("node.session.auth.password", "a=b".into())]);
        let expected =
            "# BEGIN RECORD 2.1.8\nnode.name = x\nnode.startup = manual\nnode.session.auth.password = a=b\n# END RECORD\n";
        assert_eq!(new, expected);
        assert_eq!(edited(&new, &[("node.session.auth.password", "a=b".into())]).lines().count(), 5);
    }

    /// As open-iscsi made it, with our settings in it.
    const RECORD: &str = include_str!("../../../tests/transcripts/iscsi-record.txt");

    #[test]
    fn a_record_of_open_iscsi_stays_one() {
        let wanted = Wanted {
            target: "iqn.2026-11.org.img-storage:nas.v.e2".into(),
            portal: "10.77.0.2:3260".parse().unwrap(),
            chap: super::super::Chap { user: "img-storage-e2".into(), password: "fedcba9876543210".into() },
            replacement_timeout: Duration::from_secs(600),
            noop: (Duration::from_secs(5), Duration::from_secs(5)),
        };
        let new = edited(RECORD, &settings(&wanted, Duration::from_secs(18)));
        let changed: Vec<&str> = new.lines().filter(|line| !RECORD.lines().any(|old| old == *line)).collect();
        assert_eq!(changed, ["node.session.auth.username = img-storage-e2", "node.session.auth.password = fedcba9876543210"]);
        assert_eq!(new.lines().count(), RECORD.lines().count());
        assert!(new.starts_with("# BEGIN RECORD 2.1.8\n") && new.ends_with("\n# END RECORD\n"));
    }
}
