//! The qemu plane.

use crate::*;
use img_storage_model::{
    doctor::files::{Home, NasSite, NodeSite, Purpose, Server, examine_nas, examine_node},
    messages::{Assign, Endpoint},
    node::{NodeRecord, Truth},
};

fn home() -> Home {
    Home { path: "/p/vol1".to_owned(), name: "vol1".to_owned(), mark: Some(volume()), size: Some(SIZE), ..Home::default() }
}

fn server(purpose: Purpose, pid: Option<u32>) -> Server {
    Server { dir: "/run/x".to_owned(), volume: volume(), purpose, epoch: Some(E), pid }
}

fn nas(mapping: Option<Mapping>, homes: Vec<Home>, daemons: Vec<Server>) -> Diagnosis {
    examine_nas(&NasSite {
        host: host("nas"),
        rows: vec![row(Plane::Qemu, mapping)],
        pools: [("tank".parse().unwrap(), Fact::Known(homes))].into(),
        daemons: Fact::Known(daemons),
    })
}

#[test]
fn files_of_a_nas() {
    assert_eq!(nas(None, vec![home()], vec![]), Diagnosis::default());
    assert!(only(&nas(None, vec![], vec![])).is.contains("not in the pool"));
    assert!(only(&nas(None, vec![Home { size: None, ..home() }], vec![])).is.contains("not there"));
    assert!(only(&nas(None, vec![Home { mark: None, ..home() }], vec![])).is.contains("no mark"));
    for size in [SIZE - 1, SIZE + 1] {
        assert_eq!(only(&nas(None, vec![Home { size: Some(size), ..home() }], vec![])).is, format!("{size} bytes long"));
    }
    let lone = Home { name: "old".to_owned(), mark: Some(VolumeId(Uuid::from_u128(8))), ..home() };
    assert!(only(&nas(None, vec![home(), lone], vec![])).next.contains("only copy"));
    let theirs = nas(None, vec![home(), Home { name: "iso".to_owned(), mark: None, ..home() }], vec![]);
    assert_eq!((theirs.differing(), theirs.findings.len()), (0, 1), "a note");
    assert!(only(&nas(None, vec![Home { incoming: vec![snapshot(1)], ..home() }], vec![])).thing.contains("incoming-"));
    assert!(only(&nas(None, vec![Home { overlays: vec![E], ..home() }], vec![])).thing.contains("overlay-3"));
    let unmounted = NasSite {
        host: host("nas"),
        rows: vec![row(Plane::Qemu, None)],
        pools: [("tank".parse().unwrap(), Fact::Unknown("is its file system mounted?".to_owned()))].into(),
        daemons: Fact::Known(Vec::new()),
    };
    let found = examine_nas(&unmounted);
    assert_eq!((found.findings.len(), found.unseen.len()), (0, 1), "not looked at is not gone");
}

#[test]
fn storage_daemons_of_a_nas() {
    let remote = || Some(mapping(Want::Remote, Authority::Nas));
    let running = |purpose| vec![server(purpose, Some(7))];
    assert_eq!(nas(remote(), vec![home()], running(Purpose::Export)), Diagnosis::default());
    for gone in [vec![], vec![server(Purpose::Export, None)]] {
        assert_eq!(only(&nas(remote(), vec![home()], gone)).is, "no storage daemon runs");
    }
    let left = nas(None, vec![home()], running(Purpose::Export));
    assert_eq!(only(&left).held_by, ["process 7 (qemu-storage-daemon)"]);
    let old = Server { epoch: Some(Epoch(2)), ..server(Purpose::Export, Some(7)) };
    assert!(only(&nas(remote(), vec![home()], vec![old])).should_be.contains("epoch 3"));
    assert!(only(&nas(None, vec![home()], running(Purpose::Reader))).is.contains("reader"));
    assert!(only(&nas(None, vec![home()], running(Purpose::Incoming))).is.contains("write-back"));
    let nobodys = Server { volume: VolumeId(Uuid::from_u128(8)), ..server(Purpose::Export, Some(7)) };
    assert!(only(&nas(None, vec![home()], vec![nobodys])).stranger);
}

#[test]
fn a_node() {
    let assign = |want| Assign {
        volume: volume(),
        name: "tank/vol1".to_owned(),
        nas: host("nas"),
        size: Size::exact(SIZE).unwrap(),
        epoch: E,
        revision: 5,
        want,
        device: DeviceKind::Nbd,
        force: false,
        export: Some(Endpoint { host: "nas".to_owned(), port: 7, export: "e3".to_owned(), server: host("nas") }),
        granted: false,
        push: None,
        accepted: None,
        release: false,
        back: None,
        speeds: Default::default(),
        asked: None,
        plane: Plane::Qemu,
        kernel: None,
        proof: None,
    };
    let examine = |change: &dyn Fn(&mut NodeRecord), homes: Vec<Home>, daemons: Vec<Server>| {
        let mut row = NodeRecord::new(assign(Want::Local));
        (row.truth, row.local) = (Truth::Local, Some(E));
        change(&mut row);
        let (pool, daemons) = (Fact::Known(homes), Fact::Known(daemons));
        examine_node(&NodeSite { host: host("node1"), rows: vec![row], pool, daemons })
    };
    let copy = || vec![Home { name: volume().to_string(), ..home() }];
    let serving = || vec![server(Purpose::Guest, Some(7))];
    let well = examine(&|_| {}, copy(), serving());
    assert_eq!((well.differing(), well.findings.len()), (0, 1), "a note of who uses it");
    assert!(only(&examine(&|_| {}, vec![], serving())).should_be.contains("newest writes"));
    assert!(only(&examine(&|_| {}, copy(), vec![server(Purpose::Guest, None)])).is.contains("no device"));
    assert!(only(&examine(&|row| row.local = None, copy(), serving())).next.contains("only copy"));
    let over = |row: &mut NodeRecord| (row.truth, row.ended) = (Truth::Remote, Some(E));
    assert!(only(&examine(&over, vec![], serving())).should_be.contains("over"));
    assert_eq!(examine(&over, vec![], vec![]), Diagnosis::default());
    let stray = Home { name: Uuid::from_u128(8).to_string(), mark: Some(VolumeId(Uuid::from_u128(8))), ..home() };
    assert!(only(&examine(&|_| {}, [copy(), vec![stray]].concat(), serving())).stranger);
}
