//! The node's planner on the kernel plane.

use crate::things::*;
use img_storage_model::{
    Decision, Fact, Plane, Size,
    messages::{Assign, BackOrder, Endpoint, IscsiLogin, KernelAssign, NodePhase, PushOrder, Still, Want, Writes},
    node::{
        Layer::{Local, Remote},
        Lies, NodeChange, NodeRecord, PushOutcome, PushResult, Truth,
        kernel::{Device, Disk, LocalZvol, Merge, NodeFacts, NodeStep, Overlay, Session, Table, phase, plan, report},
    },
    snapshot::Snapshot,
};
use proptest::prelude::*;

pub const IQN: &str = "iqn.e3";

pub fn point(n: u8) -> Snapshot {
    Snapshot { id: snapshot(n), guid: 50 + u64::from(n) }
}

fn login() -> IscsiLogin {
    IscsiLogin { user: "u".to_owned(), password: "p".to_owned(), serial: "s3".to_owned() }
}

fn target() -> Endpoint {
    Endpoint { port: 3260, ..endpoint(IQN) }
}

fn ordered(want: Want) -> Assign {
    let kernel = Some(KernelAssign { login: login(), base: None, fresh: false, still: None });
    Assign { plane: Plane::Kernel, export: Some(target()), kernel, ..assign(want) }
}

pub fn row(lies: Lies, want: Want) -> NodeRecord {
    let mut record = NodeRecord::new(ordered(want));
    record.local = Some(E);
    record.apply(NodeChange::Lies(lies), jiff::Timestamp::UNIX_EPOCH);
    record
}

pub fn with(record: NodeRecord, change: impl FnOnce(&mut Assign)) -> NodeRecord {
    let mut record = record;
    change(&mut record.assign);
    record
}

pub fn session(up: bool) -> Session {
    Session { iqn: IQN.to_owned(), up, disk: Some(Disk { serial: "s3".to_owned(), size: size().bytes() }) }
}

pub fn device(table: Table) -> Device {
    let merge = matches!(table, Table::Merge(_)).then_some(Merge { left: 7, total: 9 });
    Device {
        epoch: E,
        table: Ok(table),
        size: size().bytes(),
        suspended: false,
        merge,
        broken: None,
        writes: Some(writes(5)),
        quiet: true,
    }
}

pub fn writes(count: u64) -> Writes {
    Writes { boot: "boot".to_owned(), device: 7, count }
}

pub fn copy(snapshots: &[u8]) -> LocalZvol {
    LocalZvol {
        size: size().bytes(),
        snapshots: snapshots.iter().copied().map(point).collect(),
        received: false,
        held: true,
        written: 0,
        unchanged: None,
        receives: Some(E),
        resume: None,
        reserved: true,
    }
}

const COW: Overlay = Overlay { epoch: E, size: 1 << 31 };

pub fn seen(session: Option<Session>, table: Option<Table>, local: Option<LocalZvol>, overlay: bool) -> NodeFacts {
    NodeFacts {
        session: Fact::Known(session),
        device: Fact::Known(table.map(device)),
        local: Fact::Known(local),
        overlay: Fact::Known(overlay.then_some(COW)),
        dataset: "tank/x".to_owned(),
    }
}

fn create(table: Table) -> Decision<NodeStep, NodeChange> {
    Decision::Do(NodeStep::CreateDevice { epoch: E, table, size: size() })
}

fn swap(table: Table) -> Decision<NodeStep, NodeChange> {
    Decision::Do(NodeStep::Swap { table, size: size() })
}

fn waits(decision: &Decision<NodeStep, NodeChange>) -> bool {
    matches!(decision, Decision::Wait(_))
}

pub fn stuck(decision: &Decision<NodeStep, NodeChange>) -> bool {
    matches!(decision, Decision::Stuck(_))
}

#[test]
fn a_volume_is_attached_and_its_disk_is_looked_at_before_it_is_used() {
    let record = row(Lies::Remote, Want::Remote);
    let log_in = Decision::Do(NodeStep::Login { endpoint: target(), login: login(), size: size() });
    assert_eq!(plan(&record, &seen(None, None, None, false)), log_in);
    assert_eq!(plan(&record, &seen(Some(session(true)), None, None, false)), create(Table::Linear(Remote)));
    let other = Session { disk: Some(Disk { serial: "s2".to_owned(), size: size().bytes() }), ..session(true) };
    assert!(stuck(&plan(&record, &seen(Some(other), None, None, false))), "another's disk is not used");
    let short = Session { disk: Some(Disk { serial: "s3".to_owned(), size: 1 << 20 }), ..session(true) };
    assert_eq!(plan(&record, &seen(Some(short), None, None, false)), Decision::Do(NodeStep::Rescan { size: size() }));
    let old = Session { iqn: "iqn.e2".to_owned(), ..session(true) };
    assert_eq!(plan(&record, &seen(Some(old), None, None, false)), Decision::Do(NodeStep::Logout));
    let late = Session { disk: None, ..session(true) };
    assert_eq!(plan(&record, &seen(Some(late), None, None, false)), log_in, "its disk is waited for");
    let unexported = with(row(Lies::Remote, Want::Remote), |a| a.export = None);
    assert!(waits(&plan(&unexported, &seen(None, None, None, false))));
    assert_eq!(plan(&record, &seen(Some(session(true)), Some(Table::Linear(Remote)), None, false)), Decision::Rest);
}

#[test]
fn the_switch_is_written_down_before_the_table_changes() {
    let granted = with(row(Lies::Remote, Want::Local), |a| a.granted = true);
    let f = |local, overlay| seen(Some(session(true)), Some(Table::Linear(Remote)), Some(local), overlay);
    let ungranted = row(Lies::Remote, Want::Local);
    assert!(waits(&plan(&ungranted, &f(copy(&[1]), false))));
    let thin = LocalZvol { reserved: false, ..copy(&[1]) };
    assert_eq!(plan(&granted, &f(thin, false)), Decision::Do(NodeStep::ReserveLocal));
    assert_eq!(plan(&granted, &f(copy(&[1]), false)), Decision::Do(NodeStep::CreateOverlay { epoch: E, size: size() }));
    assert_eq!(plan(&granted, &f(copy(&[1]), true)), Decision::Record(NodeChange::Lies(Lies::OverRemote)));
    let away = seen(Some(session(false)), Some(Table::Linear(Remote)), Some(copy(&[1])), true);
    assert!(waits(&plan(&granted, &away)), "not while the NAS is away");
    let over = row(Lies::OverRemote, Want::Local);
    assert_eq!(plan(&over, &f(copy(&[1]), true)), swap(Table::Overlay(Remote)));
}

#[test]
fn the_overlay_is_merged_when_the_base_is_there_and_nobody_can_send_any_more() {
    let base = |id: u8| with(row(Lies::OverRemote, Want::Local), |a| a.kernel.as_mut().unwrap().base = Some(point(id)));
    let f = |local| seen(Some(session(true)), Some(Table::Overlay(Remote)), Some(local), true);
    assert!(waits(&plan(&base(2), &f(copy(&[1])))));
    assert_eq!(plan(&base(2), &f(copy(&[1, 2]))), Decision::Do(NodeStep::SetReceives { epoch: None }));
    let quiet = LocalZvol { receives: None, ..copy(&[1, 2]) };
    assert_eq!(plan(&base(2), &f(quiet.clone())), Decision::Record(NodeChange::Lies(Lies::MergingLocal)));
    let back = |id| Decision::Do(NodeStep::RollBackLocal { to: snapshot(id) });
    assert!(stuck(&plan(&base(2), &f(LocalZvol { written: 1, ..quiet }))), "an old ledger would not know of the merge");
    assert_eq!(plan(&base(2), &f(LocalZvol { written: 1, ..copy(&[1, 2]) })), back(2), "what is in it is not the guest's");
    assert_eq!(plan(&base(2), &f(LocalZvol { reserved: false, ..copy(&[1, 2]) })), Decision::Do(NodeStep::ReserveLocal));
    assert_eq!(plan(&base(2), &f(LocalZvol { written: 1, ..copy(&[1]) })), back(1), "it would receive nothing as it is");
    let other = Snapshot { guid: 1, ..point(2) };
    assert!(waits(&plan(&base(2), &f(LocalZvol { snapshots: vec![point(1), other], ..copy(&[]) }))), "a name is not enough");
}

#[test]
fn after_a_reboot_the_device_is_put_up_as_the_ledger_says() {
    for (lies, table) in [
        (Lies::OverRemote, Table::Overlay(Remote)),
        (Lies::MergingLocal, Table::Merge(Local)),
        (Lies::Local, Table::Linear(Local)),
        (Lies::OverLocal, Table::Overlay(Local)),
        (Lies::MergingRemote, Table::Merge(Remote)),
    ] {
        let record = row(lies, Want::Local);
        assert_eq!(plan(&record, &seen(Some(session(true)), None, Some(copy(&[1])), true)), create(table), "{lies:?}");
        if lies != Lies::Local {
            let gone = plan(&record, &seen(Some(session(true)), None, Some(copy(&[1])), false));
            assert!(stuck(&gone), "{lies:?} without its overlay: {gone:?}");
        }
    }
    let no_copy = plan(&row(Lies::Local, Want::Local), &seen(None, None, None, false));
    assert!(stuck(&no_copy), "the newest writes were there: {no_copy:?}");
}

#[test]
fn a_merge_goes_to_its_end_whatever_is_wanted() {
    for want in [Want::Local, Want::Remote, Want::Gone] {
        let record = row(Lies::MergingLocal, want);
        let mut f = seen(Some(session(true)), Some(Table::Merge(Local)), Some(copy(&[1])), true);
        assert_eq!(plan(&record, &f), Decision::Do(NodeStep::Logout), "{want:?}");
        f.session = Fact::Known(None);
        assert!(waits(&plan(&record, &f)));
        let at = |merge| Fact::Known(Some(Device { merge, ..device(Table::Merge(Local)) }));
        f.device = at(None);
        assert_eq!(plan(&record, &f), swap(Table::Merge(Local)), "one that stopped is begun again");
        f.device = at(Some(Merge { left: 0, total: 9 }));
        assert_eq!(plan(&record, &f), Decision::Record(NodeChange::Lies(Lies::Local)));
    }
}

#[test]
fn a_write_back_is_a_snapshot_and_goes_when_it_is_superfluous() {
    let f = |local| seen(None, Some(Table::Linear(Local)), Some(local), false);
    let order = PushOrder { push: snapshot(2), endpoint: None, last: false, full: false };
    let mut record = with(row(Lies::Local, Want::Local), |a| a.push = Some(order));
    assert_eq!(plan(&record, &f(copy(&[1]))), Decision::Do(NodeStep::TakeSnapshot { snapshot: snapshot(2) }));
    for snapshots in [&[1][..], &[1, 2]] {
        let newest = snapshot(*snapshots.last().unwrap());
        let free = LocalZvol { held: false, ..copy(snapshots) };
        let hold = Decision::Do(NodeStep::HoldSnapshot { snapshot: newest });
        assert_eq!(
            plan(&record, &f(free)),
            hold,
            "what came is what the next difference begins with; what was taken is held before it is told"
        );
    }
    let taken = PushResult { push: snapshot(2), outcome: PushOutcome::Taken(point(2)) };
    assert_eq!(plan(&record, &f(copy(&[1, 2]))), Decision::Record(NodeChange::Pushed(taken.clone())));
    record.pushed = Some(taken);
    assert!(waits(&plan(&record, &f(copy(&[1, 2])))));
    let home = with(row(Lies::Local, Want::Local), |a| a.accepted = Some(snapshot(2)));
    assert_eq!(plan(&home, &f(copy(&[1, 2]))), Decision::Do(NodeStep::DropSnapshot { snapshot: snapshot(1) }));
    assert_eq!(plan(&home, &f(copy(&[2]))), Decision::Rest);
}

#[test]
fn the_guest_goes_back_only_over_what_is_home() {
    let order = |granted| Some(BackOrder { endpoint: target(), granted });
    let back = |granted, accepted| {
        with(row(Lies::OverLocal, Want::Remote), |a| {
            a.back = order(granted);
            a.accepted = Some(snapshot(accepted));
        })
    };
    let f = |session, local| seen(session, Some(Table::Overlay(Local)), Some(local), true);
    let local = with(row(Lies::Local, Want::Remote), |a| a.back = order(false));
    let on_local = |overlay| seen(None, Some(Table::Linear(Local)), Some(copy(&[1])), overlay);
    assert_eq!(plan(&local, &on_local(false)), Decision::Do(NodeStep::CreateOverlay { epoch: E, size: size() }));
    assert_eq!(plan(&local, &on_local(true)), Decision::Record(NodeChange::Lies(Lies::OverLocal)));
    let ordered = with(local, |a| a.push = Some(PushOrder { push: snapshot(2), endpoint: None, last: false, full: false }));
    assert_eq!(
        plan(&ordered, &on_local(false)),
        Decision::Do(NodeStep::TakeSnapshot { snapshot: snapshot(2) }),
        "for want of an overlay"
    );
    assert!(stuck(&plan(&back(true, 1), &f(None, copy(&[1, 2])))), "its newest snapshot is not home");
    let log_in = Decision::Do(NodeStep::Login { endpoint: target(), login: login(), size: Size::MIN });
    assert_eq!(plan(&back(true, 2), &f(None, copy(&[2]))), log_in);
    let ready = f(Some(session(true)), copy(&[2]));
    assert_eq!(plan(&back(true, 2), &ready), Decision::Record(NodeChange::Home(point(2))), "for when the mapping ends");
    let mut known = back(true, 2);
    known.apply(NodeChange::Home(point(2)), jiff::Timestamp::UNIX_EPOCH);
    assert_eq!(plan(&known, &ready), Decision::Record(NodeChange::Lies(Lies::MergingRemote)));
    let given_up = with(back(false, 2), |a| a.back = None);
    assert_eq!(plan(&given_up, &f(None, copy(&[2]))), Decision::Record(NodeChange::Lies(Lies::MergingLocal)));
    let merged = Device { merge: Some(Merge { left: 0, total: 3 }), ..device(Table::Merge(Remote)) };
    let merged = NodeFacts { device: Fact::Known(Some(merged)), ..ready };
    assert_eq!(plan(&row(Lies::MergingRemote, Want::Remote), &merged), Decision::Do(NodeStep::FlushRemote));
}

#[test]
fn a_volume_gets_longer_on_one_layer_and_not_on_the_way_to_another() {
    let longer = Size::exact(2 << 30).unwrap();
    let grown = |lies, want| with(row(lies, want), |a| a.size = longer);
    let on = |table, local| seen(Some(session(true)), Some(table), Some(local), true);
    let f = seen(Some(session(true)), Some(Table::Linear(Remote)), None, false);
    assert_eq!(plan(&grown(Lies::Remote, Want::Remote), &f), Decision::Do(NodeStep::Rescan { size: longer }));
    // With the newest writes here the NAS's disk stays as it is.
    assert_eq!(plan(&grown(Lies::OverRemote, Want::Local), &on(Table::Linear(Remote), copy(&[1]))), swap(Table::Overlay(Remote)));
    assert_eq!(plan(&grown(Lies::MergingLocal, Want::Local), &on(Table::Overlay(Remote), copy(&[1]))), swap(Table::Merge(Local)));
    let local = |size: Size| LocalZvol { size: size.bytes(), ..copy(&[1]) };
    let f = |local| seen(None, Some(Table::Linear(Local)), Some(local), false);
    let record = grown(Lies::Local, Want::Local);
    assert_eq!(plan(&record, &f(local(size()))), Decision::Do(NodeStep::GrowLocal { size: longer }));
    let swapped = Decision::Do(NodeStep::Swap { table: Table::Linear(Local), size: longer });
    assert_eq!(plan(&record, &f(local(longer))), swapped);
}

#[test]
fn what_is_local_is_kept_for_the_next_time_when_it_is_home() {
    let over = |release, accepted| {
        with(row(Lies::Local, Want::Gone), |a| {
            a.release = release;
            a.accepted = Some(snapshot(accepted));
        })
    };
    let f = |local| seen(None, None, Some(local), false);
    assert!(waits(&plan(&over(false, 1), &f(copy(&[1])))));
    assert_eq!(plan(&over(true, 1), &f(copy(&[1]))), Decision::Record(NodeChange::Ended { warm: true, home: Some(point(1)) }));
    assert!(stuck(&plan(&over(true, 1), &f(LocalZvol { written: 1, ..copy(&[1]) }))), "written after it");
    assert!(stuck(&plan(&over(true, 1), &f(copy(&[1, 2])))), "a newer one is not home");
}

#[test]
fn an_overlay_that_is_left_goes_before_the_bare_disk_is_put_up() {
    for want in [Want::Remote, Want::Local] {
        let record = row(Lies::Remote, want);
        let at = |overlay| plan(&record, &seen(Some(session(true)), None, None, overlay));
        assert_eq!(at(true), Decision::Do(NodeStep::RemoveOverlay), "which fails where there is something in it");
        assert_eq!(at(false), Decision::Do(NodeStep::CreateDevice { epoch: E, table: Table::Linear(Remote), size: size() }));
    }
}

#[test]
fn what_an_earlier_mapping_left_is_used_or_goes() {
    let f = |local| seen(Some(session(true)), Some(Table::Linear(Remote)), Some(local), false);
    let record = row(Lies::Remote, Want::Local);
    let old = LocalZvol { receives: None, ..copy(&[1]) };
    assert_eq!(plan(&record, &f(old.clone())), Decision::Do(NodeStep::SetReceives { epoch: Some(E) }));
    let dirty = LocalZvol { written: 9, reserved: false, ..old.clone() };
    assert_eq!(plan(&record, &f(dirty)), Decision::Do(NodeStep::RollBackLocal { to: snapshot(1) }));
    let touched = LocalZvol { written: 9, reserved: false, ..copy(&[1]) };
    assert_eq!(plan(&record, &f(touched)), Decision::Do(NodeStep::RollBackLocal { to: snapshot(1) }), "it would receive nothing");
    let fresh = with(row(Lies::Remote, Want::Local), |a| a.kernel.as_mut().unwrap().fresh = true);
    assert_eq!(plan(&fresh, &f(old.clone())), Decision::Do(NodeStep::DestroyLocal));
    let unknown = NodeRecord { local: None, ..row(Lies::Remote, Want::Local) };
    assert!(stuck(&plan(&unknown, &f(old))), "the ledger does not know it");
    assert_eq!(plan(&unknown, &f(copy(&[]))), Decision::Do(NodeStep::DestroyLocal), "nothing was ever complete in it");
}

fn any_table() -> impl Strategy<Value = Table> {
    let layer = prop_oneof![Just(Local), Just(Remote)];
    (layer, 0..3).prop_map(|(layer, kind)| match kind {
        0 => Table::Linear(layer),
        1 => Table::Overlay(layer),
        _ => Table::Merge(layer),
    })
}

fn any_lies() -> impl Strategy<Value = Lies> {
    prop_oneof![6 => any_table().prop_map(Lies::of), 1 => Just(Lies::Moving)]
}

prop_compose! {
    fn any_device()(
        epoch in any_epoch(), table in proptest::option::weighted(0.95, any_table()), flags in any::<(bool, bool, bool)>(),
        left in proptest::option::of(0u64..3), count in proptest::option::of(5u64..7), quiet in any::<bool>(),
    ) -> Device {
        let (suspended, broken, short) = flags;
        Device {
            epoch,
            table: table.ok_or_else(|| "crypt".to_owned()),
            size: if short { 1 << 20 } else { size().bytes() },
            suspended,
            merge: left.filter(|_| matches!(table, Some(Table::Merge(_)))).map(|left| Merge { left, total: 3 }),
            broken: broken.then(|| "Invalid".to_owned()),
            writes: count.map(writes),
            quiet,
        }
    }
}

prop_compose! {
    fn any_local()(
        snapshots in proptest::sample::subsequence(vec![0u8, 1, 2], 0..=3), written in 0u64..2,
        receives in proptest::option::of(any_epoch()), resume in any::<bool>(), reserved in any::<bool>(), short in any::<bool>(),
        unchanged in any::<Option<bool>>(),
    ) -> LocalZvol {
        let resume = resume.then(|| "token".to_owned());
        let size = if short { 1 << 20 } else { size().bytes() };
        LocalZvol { size, written, unchanged, receives, resume, reserved, ..copy(&snapshots) }
    }
}

prop_compose! {
    pub fn any_seen()(
        login in proptest::option::of((any::<(bool, bool, bool)>(), any::<bool>())),
        device in proptest::option::of(any_device()),
        local in proptest::option::of(any_local()),
        overlay in proptest::option::of(any_epoch()),
    ) -> NodeFacts {
        let session = login.map(|((up, ours, right), disk)| Session {
            iqn: if ours { IQN } else { "iqn.e2" }.to_owned(),
            up,
            disk: disk.then(|| Disk { serial: if right { "s3" } else { "s2" }.to_owned(), size: size().bytes() }),
        });
        NodeFacts {
            session: Fact::Known(session),
            device: Fact::Known(device),
            local: Fact::Known(local),
            overlay: Fact::Known(overlay.map(|epoch| Overlay { epoch, ..COW })),
            dataset: "tank/x".to_owned(),
        }
    }
}

prop_compose! {
    pub fn any_row()(
        assign in any_assign(), lies in any_lies(), base in proptest::option::of(0u8..3), fresh in any::<bool>(),
        exported in any::<bool>(), local in proptest::option::of(any_epoch()), ended in proptest::option::weighted(0.1, any_epoch()),
        pushed in proptest::option::of(0u8..3), given in proptest::option::of((0u8..3, 5u64..7)), by in (0u8..3, 5u64..7),
    ) -> NodeRecord {
        let still = |still: Option<(u8, u64)>| still.map(|(n, count)| Still { snapshot: point(n), writes: writes(count) });
        let kernel = Some(KernelAssign { login: login(), base: base.map(point), fresh, still: still(given) });
        let pushed = pushed.map(|n| PushResult { push: snapshot(n), outcome: PushOutcome::Taken(point(n)) });
        let export = exported.then(target);
        let mut record = NodeRecord::new(Assign { plane: Plane::Kernel, kernel, export, ..assign });
        match lies {
            Lies::Moving => record.apply(NodeChange::Move(still(Some(by)).unwrap()), jiff::Timestamp::UNIX_EPOCH),
            lies => record.apply(NodeChange::Lies(lies), jiff::Timestamp::UNIX_EPOCH),
        }
        NodeRecord { local, ended, pushed, ..record }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn nothing_is_done_about_what_cannot_be_seen(record in any_row(), f in any_seen(), which in 0..4) {
        let blind = match which {
            0 => NodeFacts { session: unseen(), ..f },
            1 => NodeFacts { device: unseen(), ..f },
            2 => NodeFacts { local: unseen(), ..f },
            _ => NodeFacts { overlay: unseen(), ..f },
        };
        prop_assert!(stuck(&plan(&record, &blind)));
    }

    #[test]
    fn the_newest_writes_are_never_thrown_away(record in any_row(), f in any_seen()) {
        let local = f.local.known().and_then(Option::as_ref);
        match plan(&record, &f) {
            Decision::Do(NodeStep::RollBackLocal { .. }) => prop_assert!(matches!(record.lies, Lies::Remote | Lies::OverRemote)),
            Decision::Do(NodeStep::DestroyLocal) => {
                prop_assert_eq!(record.truth, Truth::Remote);
                prop_assert!(record.local.is_some() || local.is_some_and(|l| l.snapshots.is_empty()));
            }
            Decision::Do(NodeStep::RemoveOverlay) => {
                prop_assert!(matches!(record.lies, Lies::Remote | Lies::Local), "{:?}", record.lies);
                let used = f.device.known().and_then(Option::as_ref).is_some_and(|d| matches!(d.table, Ok(Table::Overlay(_))));
                prop_assert!(!used);
            }
            Decision::Do(NodeStep::DropSnapshot { snapshot }) => {
                // One at least is newer, and is home.
                let newer = local.unwrap().snapshots.iter().skip_while(|s| s.id != snapshot).skip(1);
                prop_assert!(newer.clone().any(|s| Some(s.id) == record.assign.accepted));
            }
            Decision::Record(NodeChange::Ended { .. }) if record.truth == Truth::Local => {
                prop_assert!(record.assign.want == Want::Gone && record.assign.release);
                prop_assert!(local.is_none_or(|l| l.written == 0 && l.snapshots.last().map(|s| s.id) == record.assign.accepted));
            }
            _ => {}
        }
    }

    #[test]
    fn a_table_is_put_in_only_as_the_ledger_says(record in any_row(), f in any_seen()) {
        match plan(&record, &f) {
            Decision::Do(NodeStep::CreateDevice { table, epoch, .. }) => {
                prop_assert_eq!(table, record.lies.table());
                prop_assert_eq!(epoch, record.assign.epoch);
            }
            Decision::Do(NodeStep::Swap { table, .. }) => {
                prop_assert_eq!(table, record.lies.table());
                let device = f.device.known().unwrap().as_ref().unwrap();
                // What an overlay has left is never forgotten.
                let merged = device.merge.is_some_and(|m| m.left == 0);
                let forgets = matches!((&device.table, table), (Ok(Table::Merge(_) | Table::Overlay(_)), Table::Linear(_)));
                prop_assert!(!forgets || merged);
            }
            _ => {}
        }
    }

    #[test]
    fn a_disk_is_used_only_when_it_is_the_right_one(record in any_row(), f in any_seen()) {
        if let Decision::Do(NodeStep::CreateDevice { table: Table::Linear(Remote) | Table::Overlay(Remote) | Table::Merge(Remote), .. }) =
            plan(&record, &f)
        {
            let session = f.session.known().unwrap().as_ref().unwrap();
            prop_assert_eq!(session.iqn.as_str(), IQN);
            prop_assert_eq!(session.disk.as_ref().unwrap().serial.as_str(), "s3");
        }
    }

    #[test]
    fn the_merge_begins_only_over_the_base(record in any_row(), f in any_seen()) {
        if record.lies == Lies::OverRemote && plan(&record, &f) == Decision::Record(NodeChange::Lies(Lies::MergingLocal)) {
            let local = f.local.known().unwrap().as_ref().unwrap();
            prop_assert!(local.written == 0 && local.receives.is_none() && local.reserved);
            let base = record.assign.kernel.as_ref().and_then(|k| k.base);
            prop_assert_eq!(local.snapshots.last(), base.as_ref());
        }
    }

    #[test]
    fn what_is_reported_is_what_is_so(record in any_row(), f in any_seen()) {
        let r = report(&record, &f, "/dev/mapper/x", None);
        prop_assert_eq!(r.pivoted, record.truth == Truth::Local && record.lies != Lies::Moving);
        prop_assert_eq!(r.phase, phase(&record, &f));
        prop_assert!(!r.detached || (r.pivoted && f.session == Fact::Known(None)));
        if r.phase == NodePhase::Gone {
            prop_assert!(record.has_ended() && f.session == Fact::Known(None) && f.device == Fact::Known(None));
        }
        // Nobody sends into what is, or is about to be, the truth.
        let kernel = r.kernel.unwrap();
        prop_assert!(!kernel.receives || matches!(record.lies, Lies::Remote | Lies::OverRemote));
        let foreign = f.device.known().unwrap().as_ref().is_some_and(|d| d.epoch != record.assign.epoch);
        prop_assert!(!(foreign && kernel.overlaid));
    }
}
