//! What doctor looks at on a NAS.

use super::{KernelNas, marks};
use crate::{
    HostError,
    kernel::{
        lio::{self, Target},
        see::{self, fact},
    },
};
use img_storage_model::{
    doctor::nas::{Admitted, Export, Site},
    nas::VolumeRecord,
};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::ErrorKind,
    os::unix::fs::MetadataExt as _,
    path::Path,
};

impl KernelNas {
    /// Everything of this plane on this NAS, beside what its ledger says.
    pub async fn see(&self, rows: Vec<VolumeRecord>) -> Site {
        let mut pools = BTreeMap::new();
        for (name, dataset) in &self.pools {
            pools.insert(name.clone(), see::place(&self.zfs, dataset).await);
        }
        let ssh = self.streams.ssh();
        let (key, known_hosts) = (&ssh.key, &ssh.known_hosts);
        Site {
            host: self.name.clone(),
            rows,
            pools,
            zpools: see::pools(&self.zfs).await,
            exports: fact(self.all_exports().await),
            saved: fact(self.lio.saved_by_targetcli()),
            ssh: vec![
                (format!("ssh key {}", key.display()), fact(usable(key, true))),
                (format!("known hosts {}", known_hosts.display()), fact(usable(known_hosts, false))),
            ],
        }
    }

    async fn all_exports(&self) -> Result<Option<Vec<Export>>, HostError> {
        // Looked at, not asked for: to make the directory would load the module.
        if !Path::new(lio::ROOT).join("iscsi").exists() {
            return Ok(None);
        }
        let (targets, backstores) = self.lio.list().await?;
        let mut found: Vec<Export> = targets
            .iter()
            .map(|target| {
                let (volume, epoch) = (marks::volume(&target.name), marks::epoch(&target.name));
                let backstore = volume.zip(epoch).map(|(volume, epoch)| marks::backstore(volume, epoch)).unwrap_or_default();
                let stands = backstores.iter().any(|b| b.name == backstore && b.enabled);
                Export {
                    name: target.name.clone(),
                    volume,
                    epoch,
                    // How many are let in is said by itself.
                    complete: stands && (self.is_whole(target, &backstore) || target.acls.len() != 1 || target.open_to_all),
                    open_to_all: target.open_to_all,
                    admits: admitted(target),
                    dynamic: target.dynamic.clone(),
                }
            })
            .collect();
        for backstore in &backstores {
            let (volume, epoch) = (marks::volume(&backstore.name), marks::epoch(&backstore.name));
            if found.iter().any(|e| (e.volume, e.epoch) == (volume, epoch)) {
                continue;
            }
            found.push(Export {
                name: backstore.name.clone(),
                volume,
                epoch,
                complete: false,
                open_to_all: false,
                admits: Vec::new(),
                dynamic: Vec::new(),
            });
        }
        Ok(Some(found))
    }
}

fn admitted(target: &Target) -> Vec<Admitted> {
    let one = |acl: &lio::Acl| Admitted {
        initiator: acl.initiator.clone(),
        session: acl.session.as_ref().map(|session| format!("{} ({})", session.from.join(", "), session.state)),
    };
    target.acls.iter().map(one).collect()
}

/// What is wrong with a file of ssh's.
fn usable(path: &Path, secret: bool) -> Result<Option<String>, HostError> {
    let failed = |why: std::io::Error| HostError(format!("cannot look at {}: {why}", path.display()));
    let meta = match fs::metadata(path) {
        Err(why) if why.kind() == ErrorKind::NotFound => return Ok(Some("it is not there".to_owned())),
        meta => meta.map_err(failed)?,
    };
    if secret && meta.mode() & 0o077 != 0 {
        return Ok(Some(format!("others may read it (mode {:o}), so ssh does not use it", meta.mode() & 0o777)));
    }
    if meta.len() == 0 {
        return Ok(Some("it is empty".to_owned()));
    }
    File::open(path).map(|_| None).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_key_is_there_is_secret_and_is_not_empty() {
        let dir = tempfile::tempdir().expect("a directory");
        let key = dir.path().join("key");
        let said = |secret| usable(&key, secret).expect("looked at").unwrap_or_default();
        assert_eq!(said(true), "it is not there");
        fs::write(&key, "").expect("written");
        fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).expect("set");
        assert!(said(true).contains("mode 644"));
        assert_eq!(said(false), "it is empty");
        fs::write(&key, "key").expect("written");
        assert_eq!(said(false), "");
    }
}
