//! What doctor looks at on a node.

use super::KernelNode;
use crate::{
    HostError,
    kernel::{
        dm,
        iscsi::{self, State},
        marks,
        see::{self, fact},
        text,
        zfs::Allowed,
    },
};
use img_storage_model::{
    Fact, HostName, Plane, VolumeId,
    doctor::node::{Device, Session, Site},
    node::{NodeRecord, NodeVolume},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

/// Where `iscsiadm` finds `iscsid`: in the kernel's table of sockets, also when systemd listens for it.
const ISCSID: &str = "@ISCSIADM_ABSTRACT_NAMESPACE";

impl KernelNode {
    /// Everything of this plane on this node, beside what its ledger says. `user` is who the NAS's streams run as.
    pub async fn see(&self, host: HostName, rows: Vec<NodeRecord>, user: &str) -> Site {
        let place = see::place(&self.zfs, &self.within).await;
        let (devices, sessions) = (self.see_devices().await, self.see_sessions().await);
        let mut there: BTreeSet<VolumeId> = BTreeSet::new();
        there.extend(devices.iter().flatten().filter_map(|device| device.volume));
        there.extend(sessions.iter().flatten().filter_map(|session| session.volume));
        let marks = place.zvols.known().into_iter().flatten().filter_map(|zvol| zvol.mark.as_deref()?.parse().ok());
        there.extend(marks.map(VolumeId));
        // Of what is over, and of which nothing is to be seen, there is nothing to say.
        let mut volumes = BTreeMap::new();
        for row in rows.iter().filter(|row| row.assign.plane == Plane::Kernel) {
            if !row.has_ended() || there.contains(&row.volume) {
                volumes.insert(row.volume, self.look(&NodeVolume::from(&row.assign), None).await);
            }
        }
        Site {
            host,
            rows,
            zpools: see::pools(&self.zfs).await,
            devices: fact(devices),
            sessions: fact(sessions),
            volumes,
            allowed: self.see_rights(user).await,
            user: user.to_owned(),
            iscsid: fact(text(Path::new("/proc/net/unix")).map(|table| table.unwrap_or_default().contains(ISCSID))),
            initiator: fact(crate::initiator()),
            place,
        }
    }

    async fn see_devices(&self) -> Result<Vec<Device>, HostError> {
        let mut found = Vec::new();
        for state in self.dm.list().await? {
            let overlay = match self.dm.overlay(&state.name).await? {
                Some(dm::Overlay::Used { allocated, total, .. }) => Some((allocated, total)),
                _ => None,
            };
            found.push(Device {
                volume: marks::volume(&state.uuid),
                epoch: marks::epoch(&state.uuid),
                table: self.dm.lines(&state.name).await?,
                open: state.open,
                pending: state.pending,
                overlay,
                name: state.name,
            });
        }
        Ok(found)
    }

    async fn see_sessions(&self) -> Result<Vec<Session>, HostError> {
        let mut found = Vec::new();
        for session in self.iscsi.sessions().await? {
            let disk: Option<iscsi::Disk> = self.iscsi.find_disk(&session, 0).await?;
            let down = match &session.state {
                State::LoggedIn => None,
                State::Failed => Some("FAILED".to_owned()),
                State::Free => Some("FREE".to_owned()),
                State::Other(word) => Some(word.clone()),
            };
            found.push(Session {
                volume: marks::volume(&session.target),
                epoch: marks::epoch(&session.target),
                down,
                portal: session.portal.map(|portal| portal.to_string()),
                disk_state: disk.as_ref().map(|disk| disk.state.clone()),
                disk: disk.map(|disk| disk.path.display().to_string()),
                target: session.target,
            });
        }
        Ok(found)
    }

    async fn see_rights(&self, user: &str) -> Fact<Option<Vec<String>>> {
        if user == "root" {
            return Fact::Known(None);
        }
        fact(self.zfs.allowed(&self.within).await.map(|all| Some(rights(&all, user))))
    }
}

/// What a user may do, as far as it was said to them or to everybody. Sets of permissions are taken apart.
fn rights(all: &[Allowed], user: &str) -> Vec<String> {
    let who = format!("user {user}");
    let given = all.iter().filter(|right| right.who == who || right.who == "everyone");
    let mut found: Vec<String> = Vec::new();
    for permission in given.flat_map(|right| &right.permissions) {
        let set = all.iter().filter(|right| right.who == *permission).flat_map(|right| right.permissions.iter().cloned());
        found.extend(set);
        found.push(permission.clone());
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use img_storage_model::Dataset;

    #[test]
    fn sets_of_permissions_count() {
        let on = Dataset::new("pool/images").expect("a name");
        let allowed = |who: &str, what: &[&str]| Allowed {
            who: who.to_owned(),
            on: on.clone(),
            permissions: what.iter().map(|&w| w.to_owned()).collect(),
        };
        let all = [
            allowed("user img-storage", &["@s", "hold"]),
            allowed("@s", &["send"]),
            allowed("user eve", &["destroy"]),
            allowed("everyone", &["mount"]),
        ];
        assert_eq!(rights(&all, "img-storage"), ["send", "@s", "hold", "mount"]);
    }
}
