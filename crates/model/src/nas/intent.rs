//! What an operator can want of a volume, and whether it can be had: the row is changed here, and the planner does the rest.

use super::{Authority, Mapping, NasLayer, Stage, VolumeRecord};
use crate::{
    Fault, HostName, Plane, RequestId, Size,
    attribute::Changes,
    messages::{DeviceKind, Report, Want},
};
use jiff::Timestamp;

/// So many earlier requests of a volume are remembered.
const REMEMBERED: usize = 16;

/// An operator's wish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Intent {
    /// A node is to have it.
    Map {
        /// The node.
        node: HostName,
        /// On a local copy.
        sync: bool,
        /// How the guest wants it.
        device: DeviceKind,
        /// TCP port for its export.
        port: u16,
    },
    /// Nobody is to have it.
    Unmap {
        /// Cut a connected guest off; and where the NAS has everything, do not wait for a node that is away.
        force: bool,
    },
    /// The NAS is to have everything now.
    Sync,
    /// The guest is to work on the NAS again.
    BringBack,
    /// It is to be longer.
    Resize {
        /// Its new size.
        size: Size,
    },
    /// It is to go.
    Delete,
    /// Its attributes are to be others.
    Attributes {
        /// All, or none.
        changes: Changes,
    },
    /// The front end that fills it has finished.
    Imported {
        /// Everything is in.
        complete: bool,
    },
}

/// Changes the row to what is wanted, or refuses and changes nothing. `reading` says that a reader has the volume.
///
/// # Errors
/// [`crate::FaultKind::Refused`] or [`crate::FaultKind::Invalid`], naming the volume, what stands against it and what to do.
pub fn apply(v: &mut VolumeRecord, intent: &Intent, request: RequestId, now: Timestamp, reading: bool) -> Result<(), Fault> {
    if v.asked == Some(request) || v.asked_before.contains(&request) {
        return Ok(());
    }
    let name = format!("volume {}/{}", v.pool, v.name);
    let busy_with_itself = match (&v.stage, intent) {
        (Stage::Ready, _)
        | (Stage::Importing { .. }, Intent::Imported { .. } | Intent::Delete)
        | (Stage::Deleting, Intent::Delete) => None,
        (Stage::Creating, _) => Some("is being created"),
        (Stage::Importing { .. }, _) => Some("is being filled from an image"),
        (Stage::Deleting, _) => Some("is being deleted"),
    };
    if let Some(why) = busy_with_itself {
        return Err(Fault::refused(format!("{name} {why}")).next("try again when that is over"));
    }
    match intent {
        Intent::Map { node, sync, device, port } => map(v, &name, node, *sync, *device, *port, request, now, reading)?,
        Intent::Unmap { force } => {
            let Some(m) = &mut v.mapping else {
                return Err(Fault::refused(format!("{name} is not mapped")).next("see img-storage list"));
            };
            m.want = Want::Gone;
            m.force |= force;
            m.abandon |= force;
        }
        Intent::Sync => {
            if let Some(m) = &mut v.mapping {
                m.sync_now = matches!(m.authority, Authority::Node | Authority::MaybeNode);
            }
        }
        Intent::BringBack => match &mut v.mapping {
            Some(m) if m.want == Want::Local => m.want = Want::Remote,
            Some(m) if m.want == Want::Gone => {
                return Err(Fault::refused(format!("{name} is being unmapped from {}", m.node)).next("wait for that to end"));
            }
            Some(m) => {
                return Err(Fault::refused(format!("{name} works on the NAS already, for {}", m.node))
                    .next("there is nothing to do; unmap it to take it away from there"));
            }
            None => return Err(Fault::refused(format!("{name} is not mapped")).next("see img-storage list")),
        },
        Intent::Resize { size } => {
            if v.plane == Plane::Qemu {
                not_mapped(v, &name, "resized")?;
            }
            not_read(&name, reading)?;
            if *size < v.size {
                return Err(Fault::refused(format!("{name} is {}; making it {size} would cut off what lies behind", v.size))
                    .next("create a smaller volume and copy what you need"));
            }
            v.size = *size;
        }
        Intent::Delete => {
            not_mapped(v, &name, "deleted")?;
            not_read(&name, reading)?;
            v.stage = Stage::Deleting;
        }
        Intent::Attributes { changes } => v.attributes = v.attributes.changed(changes, now)?,
        Intent::Imported { complete } => match &mut v.stage {
            Stage::Importing { complete: is, .. } if *complete => *is = true,
            Stage::Importing { .. } => v.stage = Stage::Deleting,
            _ => return Err(Fault::refused(format!("{name} is not being filled"))),
        },
    }
    if let Some(before) = v.asked.replace(request) {
        v.asked_before.insert(0, before);
        v.asked_before.truncate(REMEMBERED);
    }
    Ok(())
}

fn not_mapped(v: &VolumeRecord, name: &str, what: &str) -> Result<(), Fault> {
    match &v.mapping {
        Some(m) => Err(Fault::refused(format!("{name} is mapped to {}; it cannot be {what} while mapped", m.node))
            .next(format!("unmap it first: img-storage unmap {}/{}", v.pool, v.name))),
        None => Ok(()),
    }
}

fn not_read(name: &str, reading: bool) -> Result<(), Fault> {
    if reading {
        return Err(Fault::refused(format!("{name} is being exported to a file")).next("try again when that is over"));
    }
    Ok(())
}

#[allow(clippy::too_many_arguments, reason = "one call, with the parts of one intent")]
fn map(
    v: &mut VolumeRecord,
    name: &str,
    node: &HostName,
    sync: bool,
    device: DeviceKind,
    port: u16,
    request: RequestId,
    now: Timestamp,
    reading: bool,
) -> Result<(), Fault> {
    let want = if sync { Want::Local } else { Want::Remote };
    let device = v.plane.device(device)?;
    match &mut v.mapping {
        Some(m) if m.want == Want::Gone => {
            return Err(Fault::refused(format!("{name} is still being unmapped from {}", m.node)).next("wait for that to end"));
        }
        Some(m) if m.node == *node && m.want == Want::Remote && sync && m.device == device => {
            m.want = Want::Local;
            return Ok(());
        }
        Some(m) => {
            let (pool, volume) = (&v.pool, &v.name);
            return Err(Fault::refused(format!("{name} is mapped to {} already", m.node))
                .next(format!("unmap it there first: img-storage unmap {pool}/{volume}")));
        }
        None => {}
    }
    not_read(name, reading)?;
    v.epoch = v.epoch.next();
    v.assign = None;
    v.mapping = Some(Mapping {
        node: node.clone(),
        epoch: v.epoch,
        device,
        request,
        since: now,
        want,
        force: false,
        abandon: false,
        port,
        revision_floor: 0,
        authority: Authority::Nas,
        pivoted_at: None,
        layer: NasLayer::Disk,
        push: None,
        accepted: None,
        sync_now: false,
        copying: Default::default(),
        base_unsure: false,
    });
    Ok(())
}

/// So far ahead of the report that it is taken up by are the revisions of such a mapping: the report may have come late, and the node
/// has words of the same revisions, with other contents, that this ledger does not know.
const AHEAD: u64 = 1 << 20;

/// No ledger gets so far by counting: who says so is not believed, and there is always a next one.
const NEVER: u64 = u64::MAX / 2;

/// Takes up a mapping that the ledger does not know but a node proves: its unsynced local copy is the newest there is, and
/// nobody else may have the volume until it came home.
///
/// That is so when the NAS's ledger was restored from a backup. Only for an unmapped volume and an epoch that this ledger has
/// never given (an old report that comes late has one that it gave); says whether the row was changed.
pub fn adopt(v: &mut VolumeRecord, node: &HostName, report: &Report, request: RequestId, now: Timestamp, port: u16) -> bool {
    if !report.pivoted || v.mapping.is_some() || v.stage != Stage::Ready || report.epoch <= v.epoch || report.revision >= NEVER {
        return false;
    }
    v.epoch = report.epoch;
    v.assign = None;
    v.mapping = Some(Mapping {
        node: node.clone(),
        epoch: report.epoch,
        device: if v.plane == Plane::Kernel { DeviceKind::Block } else { DeviceKind::Nbd },
        request,
        since: now,
        want: Want::Local,
        force: false,
        abandon: false,
        port,
        revision_floor: report.revision + AHEAD,
        authority: Authority::Node,
        pivoted_at: Some(now),
        layer: NasLayer::Disk,
        push: None,
        accepted: None,
        sync_now: false,
        copying: Default::default(),
        base_unsure: true,
    });
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Epoch, VolumeId};
    use uuid::Uuid;

    fn volume() -> VolumeRecord {
        VolumeRecord {
            id: VolumeId(Uuid::from_u128(1)),
            pool: "tank".parse().unwrap(),
            name: "vol1".parse().unwrap(),
            plane: Plane::Qemu,
            size: Size::exact(1 << 30).unwrap(),
            created: Timestamp::UNIX_EPOCH,
            stage: Stage::Ready,
            epoch: Epoch(3),
            asked: None,
            asked_before: Vec::new(),
            lent: false,
            attributes: Default::default(),
            assign: None,
            mapping: None,
        }
    }

    fn ask(v: &mut VolumeRecord, request: u128, intent: &Intent) -> Result<(), Fault> {
        apply(v, intent, RequestId(Uuid::from_u128(request)), Timestamp::UNIX_EPOCH, false)
    }

    fn to(node: &str, sync: bool) -> Intent {
        Intent::Map { node: node.parse().unwrap(), sync, device: DeviceKind::Nbd, port: 1 }
    }

    #[test]
    fn every_mapping_raises_the_epoch_and_a_repeated_request_does_not() {
        let mut v = volume();
        ask(&mut v, 1, &to("c0", false)).unwrap();
        assert_eq!(v.epoch, Epoch(4));
        ask(&mut v, 1, &to("c0", false)).unwrap();
        assert_eq!(v.epoch, Epoch(4));
    }

    #[test]
    fn what_is_mapped_stays_as_it_is() {
        let mut v = volume();
        ask(&mut v, 1, &to("c0", false)).unwrap();
        let before = v.clone();
        let refused = [to("c0", false), to("c1", true), Intent::Delete, Intent::Resize { size: Size::exact(2 << 30).unwrap() }];
        for (n, intent) in (2..).zip(&refused) {
            let fault = ask(&mut v, n, intent).unwrap_err();
            assert!(fault.message.contains("tank/vol1") && fault.message.contains("c0"), "{fault}");
            assert_eq!(v, before);
        }
        ask(&mut v, 9, &to("c0", true)).unwrap();
        assert_eq!(v.mapping.unwrap().want, Want::Local);
    }

    #[test]
    fn a_volume_never_shrinks() {
        let mut v = volume();
        assert!(ask(&mut v, 1, &Intent::Resize { size: Size::exact(1 << 20).unwrap() }).is_err());
        assert_eq!(v.size.bytes(), 1 << 30);
    }
}
