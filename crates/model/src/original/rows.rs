//! Our phases in the original's words: the rows of `list_zvols` and the entries of `list_dev`.

use crate::{
    HostName, PoolName, VolumeName,
    api::{Phase, VolumeView},
    messages::Progress,
};
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;

/// A row of `list_zvols`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// The volume.
    pub zvol: String,
    /// Its pool.
    pub zpool: String,
    /// What serves it to its node; nothing once the node works on its own copy.
    pub iscsi_target: Option<String>,
    /// Its node.
    pub remotehost: Option<String>,
    /// The pool there that its copy is in.
    pub remotepool: Option<String>,
    /// A transfer is under way: 1 from NAS to node, 0 from node to NAS.
    pub is_sending: Option<u8>,
    /// 0 for a transfer that leaves the node its copy.
    pub is_delete_remote: Option<u8>,
    /// When the transfer began, in seconds since 1970.
    pub time: Option<i64>,
    /// When the next write-back is due, in seconds since 1970.
    pub nextsync: Option<i64>,
    /// The volume's own frequency, in seconds.
    pub frequency: Value,
    /// The volume's name while it can be given no other order.
    pub locked: Option<String>,
}

/// What a row needs that a [`VolumeView`] does not say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Behind {
    /// The pool on the node.
    pub remotepool: Option<String>,
    /// A request in the original's words is being carried out for it.
    pub working: bool,
    /// When the next write-back is due, in seconds since 1970.
    pub nextsync: Option<i64>,
    /// The volume's own frequency.
    pub frequency: Option<String>,
}

/// Whether the original would take no order for a volume in this phase: something moves that it would hold a lock for. A copy
/// that is stuck is no reason, for then it could never be given up; neither is a node that has not said yet how things are.
pub fn locked(view: &VolumeView) -> bool {
    match view.phase {
        Phase::Unmapped | Phase::Attaching | Phase::Local => false,
        Phase::Remote => view.sync && view.stuck.is_none(),
        Phase::Copying => view.stuck.is_none(),
        Phase::Creating | Phase::Importing | Phase::Switching | Phase::BringingBack | Phase::Returning | Phase::Deleting => true,
    }
}

impl Row {
    /// A volume as the original would list it.
    pub fn new(view: &VolumeView, behind: Behind) -> Self {
        let transfer = match view.phase {
            // The original marks its sending so, too.
            Phase::Copying => Some((1, 1)),
            // The copy is about to begin, or waits for its turn.
            Phase::Remote if view.sync => Some((1, 1)),
            Phase::Returning if view.transfer_since.is_some() => Some((0, 1)),
            Phase::BringingBack => Some((0, 0)),
            Phase::Local if view.transfer_since.is_some() => Some((0, 0)),
            _ => None,
        };
        let text = |name: &dyn std::fmt::Display| name.to_string();
        Row {
            zvol: view.name.to_string(),
            zpool: view.pool.to_string(),
            iscsi_target: view.export.clone(),
            remotehost: view.node.as_ref().map(|n| text(n)),
            remotepool: behind.remotepool.filter(|_| view.node.is_some()),
            is_sending: transfer.map(|t| t.0),
            is_delete_remote: transfer.map(|t| t.1),
            time: view.transfer_since.filter(|_| transfer.is_some()).map(jiff::Timestamp::as_second),
            nextsync: behind.nextsync,
            frequency: match behind.frequency {
                Some(text) => text.parse::<i64>().map_or(Value::from(text), Value::from),
                None => Value::Null,
            },
            locked: (behind.working || locked(view)).then(|| view.name.to_string()),
        }
    }

    /// The word the original's command has for it.
    pub fn state(&self) -> &'static str {
        match (&self.remotehost, self.is_sending, self.is_delete_remote) {
            (None, ..) => "unmapped",
            (Some(_), Some(1), _) => "NAS->VM",
            (Some(_), Some(_), Some(0)) => "NAS<-VM sched",
            (Some(_), Some(_), _) => "NAS<-VM",
            (Some(_), None, _) => "mapped",
        }
    }
}

/// An entry of `list_dev`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Device {
    /// What the guest uses.
    pub device: String,
    /// `snapshot` while it is copied here, `snapshot-merge` while it changes over, `linear` on the local copy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<&'static str>,
    /// GB, of volumes with a local copy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// `sync` with a local copy, `iscsi` without.
    pub sync: &'static str,
    /// What it is served by on the NAS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Sectors left and in all, and 0: it is over when the first is the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub synced: Option<String>,
    /// 1 while it changes over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started: Option<u8>,
    /// Since when, in seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time: Option<i64>,
}

/// A volume on a node, as an entry is made from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OnNode {
    /// Its NAS.
    pub nas: HostName,
    /// Its pool there.
    pub pool: PoolName,
    /// Its name.
    pub name: VolumeName,
    /// Bytes.
    pub size: u64,
    /// With a local copy, or on the way to one.
    pub sync: bool,
    /// Where it is.
    pub phase: Phase,
    /// What the guest uses; a volume without it is not listed.
    pub device: Option<String>,
    /// What it is served by on the NAS.
    pub target: Option<String>,
    /// Of the copy.
    pub progress: Option<Progress>,
    /// Since when it is in its phase, in seconds since 1970.
    pub since: Option<i64>,
}

impl OnNode {
    /// From what a NAS shows.
    pub fn of(view: &VolumeView) -> Self {
        OnNode {
            nas: view.nas.clone(),
            pool: view.pool.clone(),
            name: view.name.clone(),
            size: view.size.bytes(),
            sync: view.sync || matches!(view.phase, Phase::Local | Phase::BringingBack),
            phase: view.phase,
            device: view.device.clone(),
            target: view.export.clone(),
            progress: view.progress,
            since: view.transfer_since.map(jiff::Timestamp::as_second),
        }
    }
}

const SECTOR: u64 = 512;

fn entry(volume: &OnNode, device: &str) -> Device {
    let device = device.strip_prefix("/dev/").unwrap_or(device).to_owned();
    let target = volume.target.clone();
    if !volume.sync {
        return Device { device, status: None, size: None, sync: "iscsi", target, synced: None, started: None, time: None };
    }
    let (status, merging) = match volume.phase {
        Phase::Switching | Phase::BringingBack => ("snapshot-merge", true),
        Phase::Local | Phase::Returning => ("linear", false),
        _ => ("snapshot", false),
    };
    let synced = volume
        .progress
        .filter(|_| status != "linear")
        .map(|p| format!("{}/{} 0", p.total.saturating_sub(p.done) / SECTOR, volume.size / SECTOR));
    Device {
        device,
        status: Some(status),
        size: Some(volume.size >> 30),
        sync: "sync",
        target,
        synced,
        started: merging.then_some(1),
        time: volume.since.filter(|_| merging),
    }
}

/// The entries of a node's volumes by the original's names: a volume's own with a local copy (in full where several have it), and
/// `volume0`, `volume1`, … without.
pub fn devices(mut volumes: Vec<OnNode>) -> BTreeMap<String, Device> {
    volumes.retain(|v| v.device.is_some());
    volumes.sort_by(|a, b| (&a.target, &a.name, &a.nas).cmp(&(&b.target, &b.name, &b.nas)));
    let mut entries = BTreeMap::new();
    for volume in volumes.iter().filter(|v| v.sync) {
        let several = volumes.iter().filter(|v| v.sync && v.name == volume.name).count() > 1;
        let OnNode { nas, pool, name, device, .. } = volume;
        let name = if several { format!("{nas}:{pool}/{name}") } else { name.to_string() };
        entries.insert(name, entry(volume, device.as_deref().unwrap_or_default()));
    }
    for volume in volumes.iter().filter(|v| !v.sync) {
        let free = (0..).map(|n: u32| format!("volume{n}")).find(|name| !entries.contains_key(name));
        entries.insert(free.unwrap_or_default(), entry(volume, volume.device.as_deref().unwrap_or_default()));
    }
    entries
}
