//! The kernel plane of a node.

use crate::*;
use img_storage_model::{
    doctor::{
        Ask,
        node::{Device, PERMISSIONS, Session, Site, examine},
    },
    messages::{Assign, Endpoint},
    node::{
        Layer::Remote,
        Lies, NodeChange, NodeRecord,
        kernel::{self, LocalZvol, NodeFacts, Overlay, Table},
    },
    snapshot,
};

const LABEL: &str = "nas.tank.vol1";

fn record(lies: Lies, want: Want) -> NodeRecord {
    let export = Endpoint { host: "nas".to_owned(), port: 3260, export: "iqn.e3".to_owned(), server: host("nas") };
    let size = Size::exact(SIZE).unwrap();
    let mut record =
        NodeRecord::new(Assign { size, device: DeviceKind::Block, export: Some(export), plane: Plane::Kernel, ..assign(want) });
    record.local = Some(E);
    record.apply(NodeChange::Lies(lies), jiff::Timestamp::UNIX_EPOCH);
    record
}

fn device(table: Table) -> kernel::Device {
    kernel::Device {
        epoch: E,
        table: Ok(table),
        size: SIZE,
        suspended: false,
        merge: None,
        broken: None,
        writes: None,
        quiet: true,
    }
}

fn session() -> Session {
    Session {
        target: "iqn.e3".to_owned(),
        volume: Some(volume()),
        epoch: Some(E),
        down: None,
        portal: Some("10.0.0.2:3260".to_owned()),
        disk: Some("/dev/sda".to_owned()),
        disk_state: Some("running".to_owned()),
    }
}

fn copy() -> LocalZvol {
    let newest = snapshot::Snapshot { id: crate::snapshot(1), guid: 1 };
    LocalZvol {
        size: SIZE,
        snapshots: vec![newest],
        received: true,
        held: false,
        written: 0,
        unchanged: None,
        receives: None,
        resume: None,
        reserved: true,
    }
}

/// A node on which a row's guest has what the ledger says.
fn site(lies: Lies, want: Want) -> Site {
    let table = lies.table();
    let on_nas = matches!(table, Table::Linear(Remote) | Table::Overlay(Remote) | Table::Merge(Remote));
    let is_local = !matches!(lies, Lies::Remote | Lies::OverRemote);
    let overlaid = !matches!(lies, Lies::Remote | Lies::Local);
    let seen = kernel::Session { iqn: "iqn.e3".to_owned(), up: true, disk: None };
    let facts = NodeFacts {
        session: Fact::Known(on_nas.then_some(seen)),
        device: Fact::Known(Some(device(table))),
        local: Fact::Known(is_local.then(copy)),
        overlay: Fact::Known(overlaid.then_some(Overlay { epoch: E, size: 2 * SIZE })),
        dataset: format!("vmpool/images/{LABEL}"),
    };
    Site {
        host: host("node1"),
        rows: vec![record(lies, want)],
        place: place("vmpool/images", Vec::new()),
        zpools: pools("vmpool"),
        devices: Fact::Known(vec![Device {
            name: LABEL.to_owned(),
            volume: Some(volume()),
            epoch: Some(E),
            table: "0 1 linear 8:0 0".to_owned(),
            open: 0,
            pending: false,
            overlay: overlaid.then_some((1, 100)),
        }]),
        sessions: Fact::Known(if on_nas { vec![session()] } else { Vec::new() }),
        volumes: [(volume(), facts)].into(),
        allowed: Fact::Known(Some(PERMISSIONS.map(str::to_owned).into())),
        user: "img-storage".to_owned(),
        iscsid: Fact::Known(true),
        initiator: Fact::Known(Some("iqn.1993-08.org.debian:01:node1".to_owned())),
    }
}

fn with(lies: Lies, change: impl FnOnce(&mut NodeFacts)) -> Diagnosis {
    let mut site = site(lies, Want::Local);
    change(site.volumes.get_mut(&volume()).unwrap());
    examine(&site)
}

fn on_device(lies: Lies, change: impl FnOnce(&mut kernel::Device)) -> Diagnosis {
    with(lies, |f| {
        let Fact::Known(Some(device)) = &mut f.device else { panic!() };
        change(device);
    })
}

/// Somebody has the device open.
fn open(site: &mut Site) {
    let Fact::Known(devices) = &mut site.devices else { panic!() };
    devices[0].open = 1;
}

const EVERY: [Lies; 6] = [Lies::Remote, Lies::OverRemote, Lies::MergingLocal, Lies::Local, Lies::OverLocal, Lies::MergingRemote];

#[test]
fn what_is_in_order_is_not_spoken_of() {
    for lies in EVERY {
        assert_eq!(examine(&site(lies, Want::Local)), Diagnosis::default(), "{lies:?}");
    }
    let mut used = site(Lies::Local, Want::Local);
    open(&mut used);
    let used = examine(&used);
    assert_eq!((used.differing(), used.findings[0].ask.clone()), (0, Some(Ask::Device(format!("/dev/mapper/{LABEL}")))));
    assert!(used.findings[0].is.contains("0 1 linear 8:0 0"), "the table, as dmsetup has it");
}

#[test]
fn devices() {
    for lies in EVERY {
        assert!(only(&with(lies, |f| f.device = Fact::Known(None))).is.contains("not there"), "{lies:?}");
    }
    let waiting = |f: &mut Site| f.rows[0].assign.export = None;
    let mut not_yet = site(Lies::Remote, Want::Local);
    waiting(&mut not_yet);
    not_yet.volumes.get_mut(&volume()).unwrap().device = Fact::Known(None);
    assert_eq!(examine(&not_yet), Diagnosis::default(), "it is not exported yet");
    let other = on_device(Lies::OverRemote, |d| d.table = Ok(Table::Linear(Remote)));
    assert!(only(&other).is.contains("linear over the NAS's disk") && only(&other).should_be.contains("overlay"));
    assert!(only(&on_device(Lies::Local, |d| d.table = Err("0 1 zero".to_owned()))).is.contains("0 1 zero"));
    assert!(only(&on_device(Lies::Local, |d| d.epoch = Epoch(2))).is.contains("epoch 2"));
    assert!(only(&on_device(Lies::Local, |d| d.suspended = true)).is.contains("suspended"));
    assert!(only(&on_device(Lies::OverRemote, |d| d.broken = Some("it is full".to_owned()))).is.contains("no more writes"));
    for (suspended, says) in [(false, "a table is loaded"), (true, "suspended")] {
        let mut half = site(Lies::Local, Want::Local);
        let Fact::Known(devices) = &mut half.devices else { panic!() };
        devices[0].pending = true;
        if let Fact::Known(Some(device)) = &mut half.volumes.get_mut(&volume()).unwrap().device {
            device.suspended = suspended;
        }
        assert!(only(&examine(&half)).is.contains(says));
    }
    for (used, differs) in [(79, 0), (80, 1)] {
        let mut filling = site(Lies::OverRemote, Want::Local);
        let Fact::Known(devices) = &mut filling.devices else { panic!() };
        devices[0].overlay = Some((used, 100));
        assert_eq!(examine(&filling).differing(), differs);
    }
    let mut busy = site(Lies::Remote, Want::Gone);
    open(&mut busy);
    assert_eq!(only(&examine(&busy)).ask, Some(Ask::Device(format!("/dev/mapper/{LABEL}"))));
    let mut unknown = site(Lies::Local, Want::Local);
    let Fact::Known(devices) = &mut unknown.devices else { panic!() };
    devices.push(Device { name: "x".to_owned(), volume: None, ..devices[0].clone() });
    assert!(only(&examine(&unknown)).stranger);
}

#[test]
fn sessions() {
    let put = |lies, session: Session| {
        let mut site = site(lies, Want::Local);
        site.sessions = Fact::Known(vec![session]);
        examine(&site)
    };
    assert!(only(&put(Lies::Local, session())).should_be.contains("local copy"));
    assert!(only(&put(Lies::Remote, Session { epoch: Some(Epoch(2)), ..session() })).should_be.contains("epoch 3"));
    assert!(only(&put(Lies::Remote, Session { volume: None, ..session() })).stranger);
    let down = put(Lies::Remote, Session { down: Some("FAILED".to_owned()), ..session() });
    assert!(only(&down).is.contains("REOPEN") && only(&down).next.contains("10.0.0.2:3260"));
    assert_eq!(only(&down).ask, Some(Ask::Device("/dev/sda".to_owned())));
    assert!(only(&put(Lies::Remote, Session { disk_state: Some("blocked".to_owned()), ..session() })).is.contains("blocked"));
    for lies in [Lies::Remote, Lies::OverRemote, Lies::MergingRemote] {
        assert_eq!(only(&with(lies, |f| f.session = Fact::Known(None))).is, "there is none", "{lies:?}");
    }
}

#[test]
fn local_copies_and_overlays() {
    for lies in [Lies::MergingLocal, Lies::Local, Lies::OverLocal] {
        assert!(only(&with(lies, |f| f.local = Fact::Known(None))).should_be.contains("newest writes"), "{lies:?}");
    }
    for lies in [Lies::OverRemote, Lies::MergingLocal, Lies::OverLocal, Lies::MergingRemote] {
        assert!(only(&with(lies, |f| f.overlay = Fact::Known(None))).should_be.contains("newest writes"), "{lies:?}");
    }
    let left = Fact::Known(Some(Overlay { epoch: E, size: SIZE }));
    assert!(only(&with(Lies::Local, |f| f.overlay = left.clone())).is.contains("left over"));
    let old = Fact::Known(Some(Overlay { epoch: Epoch(2), size: SIZE }));
    assert!(only(&with(Lies::Remote, |f| f.overlay = old)).is.contains("epoch 2"));
    // One that the ledger has no record of making may be all there is.
    let mut lost = site(Lies::Local, Want::Local);
    lost.rows[0].local = None;
    let found = examine(&lost);
    assert!(only(&found).next.contains("only copy") && !only(&found).next.contains("destroy"));
    let mut lone = site(Lies::Local, Want::Local);
    lone.place = place("vmpool/images", vec![Zvol { mark: Some("x".to_owned()), ..zvol("vmpool/images/y", &[]) }]);
    assert!(only(&examine(&lone)).stranger && !only(&examine(&lone)).next.contains("destroy"));
    let half = with(Lies::Local, |f| f.local = Fact::Known(Some(LocalZvol { resume: Some("t".to_owned()), ..copy() })));
    assert!(only(&half).next.contains("zfs receive -A"));
    // A mapping that is over: a warm copy is no fault, what else is left is one.
    let mut over = site(Lies::Local, Want::Gone);
    over.rows[0].apply(NodeChange::Ended { warm: true, home: copy().snapshots.last().copied() }, jiff::Timestamp::UNIX_EPOCH);
    assert!(only(&examine(&over)).should_be.contains("over"), "the device");
    let facts = over.volumes.get_mut(&volume()).unwrap();
    facts.device = Fact::Known(None);
    let found = examine(&over);
    assert_eq!((found.differing(), found.findings.len()), (0, 1));
    assert!(found.findings[0].is.contains("warm copy"));
    over.rows[0].apply(NodeChange::Ended { warm: true, home: None }, jiff::Timestamp::UNIX_EPOCH);
    assert!(only(&examine(&over)).next.contains("only copy"), "nothing is known of what is in it");
}

#[test]
fn the_host() {
    let well = site(Lies::Remote, Want::Remote);
    let Fact::Known(Some(mut allowed)) = well.allowed.clone() else { panic!() };
    allowed.retain(|permission| permission != "hold" && permission != "send");
    let found = examine(&Site { allowed: Fact::Known(Some(allowed)), ..well.clone() });
    assert_eq!(only(&found).next, "zfs allow -u img-storage hold,send vmpool/images");
    assert_eq!(examine(&Site { allowed: Fact::Known(None), ..well.clone() }), Diagnosis::default(), "root may everything");
    assert_eq!(only(&examine(&Site { iscsid: Fact::Known(false), ..well.clone() })).thing, "iscsid");
    assert!(only(&examine(&Site { initiator: Fact::Known(None), ..well.clone() })).next.contains("iscsi-iname"));
    let mut blind = well;
    blind.devices = Fact::Unknown("no".to_owned());
    blind.sessions = Fact::Unknown("no".to_owned());
    let facts = blind.volumes.get_mut(&volume()).unwrap();
    (facts.device, facts.session) = (Fact::Unknown("no".to_owned()), Fact::Unknown("no".to_owned()));
    (facts.local, facts.overlay) = (Fact::Unknown("no".to_owned()), Fact::Unknown("no".to_owned()));
    let found = examine(&blind);
    assert_eq!((found.findings.len(), found.unseen.len()), (0, 6), "{found:#?}");
}
