//! Rows to begin from, of a volume of the qemu plane that is mapped to the node c0.

use img_storage_model::{
    Epoch, HostName, Plane, RequestId, Size, SnapshotId, VolumeId,
    messages::{Assign, DeviceKind, Endpoint, Want},
    nas::{Authority, Mapping, NasLayer, Stage, VolumeRecord},
};
use jiff::Timestamp;
use uuid::Uuid;

/// The mapping's epoch in every table.
pub const E: Epoch = Epoch(3);

pub fn host(name: &str) -> HostName {
    name.parse().unwrap()
}

pub fn size() -> Size {
    Size::exact(1 << 30).unwrap()
}

pub fn volume() -> VolumeId {
    VolumeId(Uuid::from_u128(1))
}

pub fn snapshot(n: u8) -> SnapshotId {
    SnapshotId(Uuid::from_u128(100 + u128::from(n)))
}

pub fn endpoint(export: &str) -> Endpoint {
    Endpoint { host: "nas".to_owned(), port: 7, export: export.to_owned(), server: host("nas") }
}

pub fn assign(want: Want) -> Assign {
    Assign {
        volume: volume(),
        name: "tank/vol1".to_owned(),
        nas: host("nas"),
        size: size(),
        epoch: E,
        revision: 5,
        want,
        device: DeviceKind::Nbd,
        force: false,
        export: Some(endpoint("e3")),
        granted: false,
        push: None,
        accepted: None,
        release: false,
        back: None,
        speeds: Default::default(),
        asked: None,
        plane: Default::default(),
        kernel: None,
        proof: None,
    }
}

pub fn mapping(want: Want, authority: Authority) -> Mapping {
    Mapping {
        node: host("c0"),
        epoch: E,
        device: DeviceKind::Nbd,
        request: RequestId(Uuid::from_u128(9)),
        since: Timestamp::UNIX_EPOCH,
        want,
        force: false,
        abandon: false,
        port: 7,
        revision_floor: 0,
        authority,
        pivoted_at: None,
        layer: NasLayer::Disk,
        push: None,
        accepted: None,
        sync_now: false,
        copying: Default::default(),
        base_unsure: false,
    }
}

pub fn row(mapping: Option<Mapping>) -> VolumeRecord {
    VolumeRecord {
        id: volume(),
        pool: "tank".parse().unwrap(),
        name: "vol1".parse().unwrap(),
        plane: Plane::Qemu,
        size: size(),
        created: Timestamp::UNIX_EPOCH,
        stage: Stage::Ready,
        epoch: E,
        asked: None,
        asked_before: Vec::new(),
        lent: false,
        attributes: Default::default(),
        assign: mapping.is_some().then(|| assign(Want::Remote)),
        mapping,
    }
}
