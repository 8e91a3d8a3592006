//! What doctor makes of facts: one row of a table each, from a host that is in order.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

#[path = "../common/mod.rs"]
mod common;
mod files;
mod nas;
mod node;

pub use common::{E, assign, host, snapshot, volume};
use img_storage_model::{
    Dataset, Epoch, Fact, Plane, Size, VolumeId,
    doctor::{
        Diagnosis, Finding, Level, Zvol,
        shown::{OUR_HOLD, Place, Pool, Snapshot},
    },
    messages::{DeviceKind, Want},
    nas::{Authority, Mapping, Stage, VolumeRecord},
};
use jiff::Timestamp;
use uuid::Uuid;

pub const SIZE: u64 = 64 << 20;

pub fn mapping(want: Want, authority: Authority) -> Mapping {
    Mapping { node: host("node1"), device: DeviceKind::Block, port: 3260, ..common::mapping(want, authority) }
}

pub fn row(plane: Plane, mapping: Option<Mapping>) -> VolumeRecord {
    VolumeRecord { plane, size: Size::exact(SIZE).unwrap(), assign: None, ..common::row(mapping) }
}

pub fn dataset(name: &str) -> Dataset {
    Dataset::new(name).unwrap()
}

pub fn zvol(name: &str, snapshots: &[u8]) -> Zvol {
    let ours = |n: &u8| Snapshot { name: snapshot(*n).to_string(), ours: true, holds: vec![OUR_HOLD.to_owned()] };
    Zvol {
        name: dataset(name),
        mark: Some(volume().to_string()),
        overlay: None,
        size: SIZE,
        used: SIZE,
        written: 0,
        snapshots: snapshots.iter().map(ours).collect(),
        resume: false,
    }
}

pub fn foreign(name: &str) -> Snapshot {
    Snapshot { name: name.to_owned(), ours: false, holds: Vec::new() }
}

pub fn place(name: &str, zvols: Vec<Zvol>) -> Place {
    Place { dataset: dataset(name), room: Fact::Known(Some((50, 50))), zvols: Fact::Known(zvols) }
}

pub fn pools(name: &str) -> Fact<Vec<Pool>> {
    Fact::Known(vec![Pool { name: name.to_owned(), health: "ONLINE".to_owned(), read_only: false }])
}

/// What differs, in one line each.
pub fn lines(found: &Diagnosis) -> Vec<String> {
    let differs = found.findings.iter().filter(|f| f.level == Level::Differs);
    differs.map(|f| format!("{}: {}", f.thing, f.is)).collect()
}

/// The one thing that differs; it says what should be and what to do.
pub fn only(found: &Diagnosis) -> &Finding {
    let differs: Vec<&Finding> = found.findings.iter().filter(|f| f.level == Level::Differs).collect();
    let [one] = differs.as_slice() else { panic!("not one: {:#?}", lines(found)) };
    assert!(!one.is.is_empty() && !one.should_be.is_empty() && !one.next.is_empty(), "{one:#?}");
    assert!(![&one.thing, &one.is, &one.should_be, &one.next].iter().any(|said| said.contains("  ")), "a gap: {one:#?}");
    assert!(found.unseen.is_empty(), "{:?}", found.unseen);
    one
}

#[test]
fn what_lasts_counts_and_one_volume_is_one_volume() {
    let finding = |thing: &str, is: &str, volume: Option<&str>, stranger| Finding {
        level: Level::Differs,
        host: host("nas"),
        volume: volume.map(str::to_owned),
        thing: thing.to_owned(),
        is: is.to_owned(),
        should_be: "not so".to_owned(),
        held_by: Vec::new(),
        next: String::new(),
        ask: None,
        stranger,
    };
    let look = |findings| Diagnosis { findings, unseen: Vec::new() };
    let one = finding("export a", "7 bytes", Some("nas:tank/vol1"), false);
    let later = finding("export a", "9 bytes", Some("nas:tank/vol1"), false);
    let moment = finding("export b", "there", Some("nas:tank/vol1"), false);
    let lasting = look(vec![one, moment.clone()]).confirmed_by(look(vec![later.clone()]));
    assert_eq!(lasting.findings, std::slice::from_ref(&later));
    let pool = finding("pool tank", "DEGRADED", None, false);
    let all = vec![
        later.clone(),
        pool.clone(),
        finding("zvol x", "unknown", None, true),
        finding("x", "", Some("nas:tank/vol2"), false),
    ];
    for name in ["vol1", "tank/vol1", "nas:tank/vol1"] {
        let mut limited = look(all.clone());
        limited.limit_to(&name.parse().unwrap());
        assert_eq!(limited.findings, [later.clone(), pool.clone()], "{name}");
    }
}

#[test]
fn a_dead_daemon_is_said_and_one_that_cannot_be_seen_is_not_dead() {
    let daemon = |running| img_storage_model::doctor::daemon(&host("nas"), "NAS", &running, "img-storage-nas");
    assert_eq!(daemon(Fact::Known(Some(7))), Diagnosis::default());
    assert!(only(&daemon(Fact::Known(None))).next.contains("journalctl -u img-storage-nas"));
    let blind = daemon(Fact::Unknown("not root".to_owned()));
    assert_eq!((blind.findings.len(), blind.unseen.len()), (0, 1));
}
