//! The kernel plane of a NAS.

use crate::*;
use img_storage_model::{
    doctor::{
        Ask,
        nas::{Admitted, Export, Site, examine},
    },
    nas::{Accepted, PushState, kernel::iqn},
};

fn site(mapping: Option<Mapping>, zvols: Vec<Zvol>, exports: Vec<Export>) -> Site {
    Site {
        host: host("nas"),
        rows: vec![row(Plane::Kernel, mapping)],
        pools: [("tank".parse().unwrap(), place("tank", zvols))].into(),
        zpools: pools("tank"),
        exports: Fact::Known(Some(exports)),
        saved: Fact::Known(Vec::new()),
        ssh: vec![("ssh key /k".to_owned(), Fact::Known(None))],
    }
}

fn export(epoch: Epoch) -> Export {
    Export {
        name: iqn("nas", volume(), epoch),
        volume: Some(volume()),
        epoch: Some(epoch),
        complete: true,
        open_to_all: false,
        admits: vec![Admitted { initiator: "iqn.n1".to_owned(), session: Some("10.0.0.3 (LOGGED_IN)".to_owned()) }],
        dynamic: Vec::new(),
    }
}

fn remote() -> Option<Mapping> {
    Some(mapping(Want::Remote, Authority::Nas))
}

/// The node has it, and a first write-back came home.
fn local() -> Option<Mapping> {
    let accepted = Some(Accepted { push: snapshot(2), at: Timestamp::UNIX_EPOCH, last: false });
    Some(Mapping { accepted, ..mapping(Want::Local, Authority::Node) })
}

fn vol1(snapshots: &[u8]) -> Zvol {
    zvol("tank/vol1", snapshots)
}

#[test]
fn what_is_in_order_is_not_spoken_of() {
    for (m, exports) in [(None, vec![]), (remote(), vec![export(E)]), (local(), vec![])] {
        assert_eq!(examine(&site(m, vec![vol1(&[1, 2])], exports)), Diagnosis::default());
    }
    let switching = Mapping { copying: Default::default(), ..mapping(Want::Local, Authority::Node) };
    for exports in [vec![], vec![export(E)]] {
        assert_eq!(
            examine(&site(Some(switching.clone()), vec![Zvol { written: 7, ..vol1(&[1]) }], exports)),
            Diagnosis::default()
        );
    }
    // The node merges into it.
    let merging = Mapping { authority: Authority::MaybeNas, ..local().unwrap() };
    assert_eq!(lines(&examine(&site(Some(merging), vec![Zvol { written: 7, ..vol1(&[2]) }], vec![export(E)]))), [""; 0]);
    // Others' zvols are others'.
    let theirs = Zvol { mark: None, ..zvol("tank/home", &[]) };
    assert_eq!(examine(&site(None, vec![vol1(&[]), theirs], vec![])), Diagnosis::default());
}

#[test]
fn zvols() {
    let missing = site(None, vec![], vec![]);
    assert!(only(&examine(&missing)).is.contains("no such zvol"));
    let mut coming = missing.clone();
    coming.rows[0].stage = Stage::Creating;
    assert_eq!(examine(&coming), Diagnosis::default());
    let found = examine(&site(None, vec![Zvol { mark: None, ..vol1(&[]) }], vec![]));
    assert_eq!(only(&found).is, "it has no mark of ours");
    for (size, differs) in [(SIZE - 16384, true), (SIZE + 16384, true), (SIZE + 512, false)] {
        let found = examine(&site(None, vec![Zvol { size, ..vol1(&[]) }], vec![]));
        assert_eq!(found.differing() == 1, differs, "{size}: {:?}", lines(&found));
    }
    let lone = Zvol { mark: Some("x".to_owned()), ..zvol("tank/old", &[1]) };
    let found = examine(&site(None, vec![vol1(&[]), lone], vec![]));
    let one = only(&found);
    assert!(one.stranger && one.next.contains("only copy") && !one.next.contains("destroy"), "{one:?}");
    assert_eq!(one.ask, Some(Ask::Device("/dev/zvol/tank/old".to_owned())));
    let mut elsewhere = site(None, vec![], vec![]);
    elsewhere.pools.clear();
    assert!(only(&examine(&elsewhere)).is.contains("[nas.zfs]"));
}

#[test]
fn exports() {
    let with = |m, exports| examine(&site(m, vec![vol1(&[1, 2])], exports));
    let left = with(None, vec![export(E)]);
    assert_eq!(only(&left).held_by, ["iSCSI session of iqn.n1 from 10.0.0.3 (LOGGED_IN)"]);
    assert!(only(&with(remote(), vec![])).thing.ends_with(&iqn("nas", volume(), E)), "missing");
    assert!(only(&with(remote(), vec![export(Epoch(2)), export(E)])).is.contains("older"));
    assert!(only(&with(local(), vec![export(E)])).should_be.contains("local copy"));
    assert!(only(&with(remote(), vec![Export { complete: false, ..export(E) }])).is.contains("half-made"));
    let mut two = export(E);
    two.admits.push(Admitted { initiator: "iqn.evil".to_owned(), session: None });
    assert!(only(&with(remote(), vec![two])).is.contains("iqn.n1, iqn.evil"));
    let dynamic = Export { dynamic: vec!["iqn.evil".to_owned()], ..export(E) };
    let found = with(remote(), vec![dynamic]);
    assert!(only(&found).held_by.iter().any(|who| who.contains("iqn.evil, which has no ACL")));
    assert!(only(&with(remote(), vec![Export { open_to_all: true, ..export(E) }])).is.contains("everybody"));
    let other = VolumeId(Uuid::from_u128(5));
    let unknown = Export { volume: Some(other), name: iqn("nas", other, E), ..export(E) };
    assert!(only(&with(remote(), vec![export(E), unknown])).stranger);
    let of_another_nas = Export { volume: Some(other), name: iqn("nas-7", other, E), ..export(E) };
    assert_eq!(with(remote(), vec![export(E), of_another_nas]), Diagnosis::default());
    // Being unmapped: it stays until the node let go.
    assert_eq!(with(Some(mapping(Want::Gone, Authority::Nas)), vec![]), Diagnosis::default());
    let mut saved = site(None, vec![vol1(&[])], vec![]);
    saved.saved = Fact::Known(vec![iqn("nas", volume(), E)]);
    let found = examine(&saved);
    assert_eq!(only(&found).volume.as_deref(), Some("nas:tank/vol1"));
    assert!(only(&found).is.contains("targetcli saved it"));
}

#[test]
fn machines_that_were_cloned() {
    let mut both = site(remote(), vec![vol1(&[]), zvol("tank/vol2", &[])], vec![export(E)]);
    let id = VolumeId(Uuid::from_u128(2));
    let there = Mapping { node: host("node2"), ..remote().unwrap() };
    both.rows.push(VolumeRecord { id, name: "vol2".parse().unwrap(), ..row(Plane::Kernel, Some(there)) });
    let Fact::Known(zvols) = &mut both.pools.get_mut(&"tank".parse().unwrap()).unwrap().zvols else { panic!() };
    zvols[1].mark = Some(id.to_string());
    let Fact::Known(Some(exports)) = &mut both.exports else { panic!() };
    exports.push(Export { volume: Some(id), name: iqn("nas", id, E), ..export(E) });
    assert_eq!(only(&examine(&both)).is, "node1 and node2 have the same InitiatorName");
}

#[test]
fn writes_and_snapshots() {
    let with = |m, zvol| examine(&site(m, vec![zvol], vec![]));
    let written = with(local(), Zvol { written: 4096, ..vol1(&[1, 2]) });
    assert_eq!(only(&written).ask, Some(Ask::Device("/dev/zvol/tank/vol1".to_owned())));
    assert!(only(&written).next.contains("zfs rollback"));
    let mut newer = vol1(&[1, 2]);
    newer.snapshots.push(foreign("hourly"));
    assert_eq!(only(&with(local(), newer.clone())).thing, "snapshot tank/vol1@hourly");
    let unmapped = with(None, newer.clone());
    assert_eq!((unmapped.differing(), unmapped.findings.len()), (0, 1), "a note");
    newer.snapshots.rotate_right(1);
    assert_eq!(with(local(), newer), Diagnosis::default(), "an older one is in nobody's way");
    assert!(only(&with(local(), vol1(&[1]))).thing.ends_with(&snapshot(2).to_string()), "what came home is gone");
    let mut held = vol1(&[1, 2]);
    held.snapshots[0].holds.push("backup".to_owned());
    assert_eq!(only(&with(None, held)).held_by, ["zfs hold backup"]);
    let half = Zvol { resume: true, ..vol1(&[1, 2]) };
    assert!(only(&with(None, half.clone())).next.contains("zfs receive -A"));
    let push = PushState { push: snapshot(3), ordered: Timestamp::UNIX_EPOCH, last: false, port: 0, verified: false };
    let pushing = Mapping { push: Some(push), ..local().unwrap() };
    let found = with(Some(pushing), half);
    assert_eq!((found.differing(), found.findings.len()), (0, 1), "it goes on");
    let taken = Zvol { mark: None, ..zvol("tank/copy", &[1]) };
    assert!(only(&examine(&site(None, vec![vol1(&[]), taken], vec![]))).is.contains("without our mark"));
}

#[test]
fn the_host() {
    let well = site(None, vec![vol1(&[])], vec![]);
    let mut ill = well.clone();
    ill.zpools = Fact::Known(vec![Pool { name: "tank".to_owned(), health: "DEGRADED".to_owned(), read_only: false }]);
    assert_eq!(only(&examine(&ill)).is, "it is DEGRADED");
    ill.zpools = Fact::Known(Vec::new());
    assert!(only(&examine(&ill)).next.contains("zpool import tank"));
    let mut full = well.clone();
    full.pools.values_mut().for_each(|place| place.room = Fact::Known(Some((95, 5))));
    assert!(only(&examine(&full)).is.starts_with("95% is in use"));
    let mut keyless = well.clone();
    keyless.ssh[0].1 = Fact::Known(Some("it is not there".to_owned()));
    assert_eq!(only(&examine(&keyless)).thing, "ssh key /k");
    let mut bare = well.clone();
    bare.exports = Fact::Known(None);
    assert!(only(&examine(&bare)).next.contains("modprobe"));
    // What cannot be seen is said, and nothing is said to be missing.
    let blind = || Fact::Unknown("not root".to_owned());
    let mut unseen = Site { zpools: Fact::Unknown("no".to_owned()), exports: Fact::Unknown("no".to_owned()), ..well };
    unseen.saved = Fact::Unknown("no".to_owned());
    unseen.rows[0].mapping = remote();
    unseen.pools.values_mut().for_each(|place| (place.room, place.zvols) = (blind(), Fact::Unknown("no".to_owned())));
    let found = examine(&unseen);
    assert_eq!((found.findings.len(), found.unseen.len()), (0, 5), "{found:#?}");
}
