//! A guest that writes nothing is moved to its local copy at once, without an overlay: when that is right, and what is known of it after an accident.

use crate::{
    kernel_nas::{self, copying, decide, facts, told, zvol},
    kernel_node::{any_row, any_seen, copy, point, row, seen, session, stuck, with, writes},
    things::*,
};
use img_storage_model::{
    Decision, Epoch, Fact, Size,
    messages::{KernelReport, NodePhase, Report, Still, Want},
    nas::{
        self, Authority, NasChange,
        kernel::{Copying, NasStep, Zvol},
    },
    node::{
        Layer::{Local, Remote},
        Lies, NodeChange, NodeRecord, StepResult, Truth,
        kernel::{LocalZvol, NodeFacts, NodeStep, Table, plan, report},
    },
};
use jiff::Timestamp;
use proptest::prelude::*;

/// Snapshot 1 was everything when the device had been written to five times, as the one of [`seen`] was.
fn still() -> Still {
    Still { snapshot: point(1), writes: writes(5) }
}

fn granted() -> NodeRecord {
    with(row(Lies::Remote, Want::Local), |a| {
        a.granted = true;
        a.kernel.as_mut().unwrap().still = Some(still());
    })
}

fn moving() -> NodeRecord {
    let mut record = granted();
    record.apply(NodeChange::Move(still()), Timestamp::UNIX_EPOCH);
    record
}

fn on(table: Table, local: LocalZvol) -> NodeFacts {
    seen(Some(session(true)), Some(table), Some(local), false)
}

/// Nothing can be streamed into it any more.
fn closed() -> LocalZvol {
    LocalZvol { receives: None, ..copy(&[1]) }
}

fn written(f: NodeFacts, count: u64) -> NodeFacts {
    let Fact::Known(Some(device)) = f.device else { panic!() };
    NodeFacts {
        device: Fact::Known(Some(img_storage_model::node::kernel::Device { writes: Some(writes(count)), ..device })),
        ..f
    }
}

#[test]
fn the_nas_counts_once_more_before_it_says_that_nothing_was_written() {
    let v = copying(Copying { rounds: 1, ..Default::default() });
    let counted = |count: Option<u64>| {
        let r = told(NodePhase::Copying, false, &[1]);
        Report { kernel: r.kernel.map(|k| KernelReport { writes: count.map(writes), ..k }), ..r }
    };
    let count = NasStep::CountWritten { still: still() };
    assert_eq!(decide(&v, &facts(zvol(&[1]), true), Some(&counted(Some(5)))), Decision::Do(count.clone()));
    let pivot = NasChange::Authority(Authority::MaybeNode);
    assert_eq!(
        decide(&v, &facts(zvol(&[1]), true), Some(&counted(None))),
        Decision::Record(pivot.clone()),
        "something is under way"
    );
    let some = facts(Zvol { written: 9, ..zvol(&[1]) }, true);
    assert_eq!(decide(&v, &some, Some(&counted(Some(5)))), Decision::Record(pivot.clone()), "what was written is known already");
    let after = |v, result| nas::kernel::after(v, &count, &result);
    assert_eq!(after(&v, StepResult::Written(0)), Some(NasChange::Grant(still())));
    assert_eq!(after(&v, StepResult::Written(9)), Some(pivot));
    assert_eq!(after(&v, StepResult::Written(1 << 30)), None, "another round");
    assert_eq!(after(&v, StepResult::Done), None, "a tool that did nothing proves nothing");
    let mut gone = v.clone();
    gone.mapping.as_mut().unwrap().want = Want::Gone;
    assert_eq!(after(&gone, StepResult::Written(0)), None, "it was asked for something else meanwhile");
    let failed = |v, step| nas::kernel::after_error(v, step);
    assert_eq!(failed(&v, &count), Some(NasChange::Authority(Authority::MaybeNode)), "by way of the overlay, then");
    assert_eq!(failed(&gone, &count), None);
    let mut given = v;
    given.apply(&NasChange::Grant(still()), Timestamp::UNIX_EPOCH, || unreachable!());
    assert_eq!(given.mapping.as_ref().unwrap().authority, Authority::MaybeNode);
    // What makes it longer is in no snapshot that the node has.
    given.size = Size::exact(2 * size().bytes()).unwrap();
    assert!(!matches!(decide(&given, &facts(zvol(&[1]), true), Some(&counted(Some(5)))), Decision::Do(NasStep::GrowZvol { .. })));
    given.mapping.as_mut().unwrap().copying.still = None;
    assert!(matches!(decide(&given, &facts(zvol(&[1]), true), Some(&counted(Some(5)))), Decision::Do(NasStep::GrowZvol { .. })));
    assert!(kernel_nas::decide(&gone, &facts(zvol(&[1]), true), Some(&counted(Some(5)))) != Decision::Do(count));
}

#[test]
fn a_guest_that_wrote_nothing_needs_no_overlay() {
    let f = |local| on(Table::Linear(Remote), local);
    let thin = LocalZvol { reserved: false, ..copy(&[1]) };
    assert_eq!(plan(&granted(), &f(thin.clone())), Decision::Do(NodeStep::CloseLocal));
    assert_eq!(plan(&granted(), &f(LocalZvol { receives: None, ..thin })), Decision::Do(NodeStep::ReserveLocal));
    assert_eq!(plan(&granted(), &f(copy(&[1]))), Decision::Do(NodeStep::SetReceives { epoch: None }));
    assert_eq!(plan(&granted(), &f(closed())), Decision::Record(NodeChange::Move(still())));
    let go = Decision::Do(NodeStep::Move { writes: writes(5), size: size() });
    assert_eq!(plan(&moving(), &f(closed())), go);
    let lies = |lies| Decision::Record(NodeChange::Lies(lies));
    assert_eq!(plan(&moving(), &on(Table::Linear(Local), closed())), lies(Lies::Local));

    // What it wrote meanwhile is in no snapshot: it goes by way of the overlay.
    let overlay = Decision::Do(NodeStep::CreateOverlay { epoch: E, size: size() });
    assert_eq!(plan(&granted(), &written(f(copy(&[1])), 6)), overlay);
    assert_eq!(plan(&moving(), &written(f(closed()), 6)), lies(Lies::Remote));
    let other = LocalZvol { snapshots: vec![point(1), point(2)], ..copy(&[]) };
    assert_eq!(plan(&granted(), &f(other)), overlay, "another snapshot");
    let away = seen(Some(session(false)), Some(Table::Linear(Remote)), Some(closed()), false);
    assert!(plan(&granted(), &away) != Decision::Record(NodeChange::Move(still())), "what is under way would be waited for");
    assert_eq!(plan(&moving(), &away), lies(Lies::Remote));
    assert_eq!(plan(&with(moving(), |a| a.want = Want::Gone), &f(closed())), lies(Lies::Remote));
}

#[test]
fn where_its_writes_are_is_seen_after_an_accident() {
    let lies = |lies| Decision::Record(NodeChange::Lies(lies));
    let rebooted = |local| seen(None, None, Some(local), false);
    assert_eq!(plan(&moving(), &rebooted(closed())), lies(Lies::Remote), "nothing is in the copy that the NAS has not");
    let written = LocalZvol { written: 1, unchanged: Some(false), ..closed() };
    assert_eq!(plan(&moving(), &rebooted(written.clone())), lies(Lies::Local));
    assert!(stuck(&plan(&moving(), &rebooted(LocalZvol { unchanged: None, ..written }))), "it may be ZFS's own");
    let received = LocalZvol { snapshots: vec![point(1), point(2)], received: true, ..closed() };
    assert!(stuck(&plan(&moving(), &rebooted(received))), "an old ledger: a copy was made since");
    assert!(stuck(&plan(&moving(), &rebooted(copy(&[1])))), "an old ledger: one is made");
    let later = LocalZvol { snapshots: vec![point(1), point(2)], ..closed() };
    assert_eq!(plan(&moving(), &rebooted(later)), lies(Lies::Local), "an old ledger: a write-back was taken since");
    // What ZFS itself counts after a power cut says nothing.
    let noted = LocalZvol { written: 1 << 10, unchanged: Some(true), ..closed() };
    assert_eq!(plan(&moving(), &rebooted(noted)), Decision::Do(NodeStep::SettleLocal));
    assert!(stuck(&plan(&moving(), &seen(None, None, None, false))));
    let halfway = |table| {
        let f = on(table, closed());
        let Fact::Known(Some(device)) = f.device else { panic!() };
        NodeFacts { device: Fact::Known(Some(img_storage_model::node::kernel::Device { suspended: true, ..device })), ..f }
    };
    for table in [Table::Linear(Remote), Table::Linear(Local)] {
        assert_eq!(plan(&moving(), &halfway(table)), Decision::Do(NodeStep::ResumeDevice));
    }
    assert!(stuck(&plan(&moving(), &on(Table::Overlay(Remote), closed()))));
    let lost = seen(Some(session(true)), Some(Table::Linear(Remote)), None, false);
    assert_eq!(plan(&moving(), &lost), lies(Lies::Remote), "the guest is on the NAS, whatever became of the copy");
    let told = report(&moving(), &on(Table::Linear(Local), closed()), "x", None);
    assert_eq!((told.phase, told.pivoted, told.kernel.unwrap().receives), (NodePhase::Switching, false, false));
}

#[test]
fn what_it_was_moved_by_is_remembered_while_the_copy_is_the_truth() {
    let mut record = moving();
    record.apply(NodeChange::Lies(Lies::Local), Timestamp::UNIX_EPOCH);
    assert_eq!((record.truth, record.base()), (Truth::Local, Some(point(1))));
    record.assign.accepted = None;
    let dirty = report(&record, &on(Table::Linear(Local), LocalZvol { written: 9, ..closed() }), "x", None).dirty;
    assert_eq!(dirty, Some(9), "since the snapshot that the NAS has");
    for change in [NodeChange::Lies(Lies::Remote), NodeChange::Ended { warm: true, home: None }] {
        let mut over = record.clone();
        over.apply(change, Timestamp::UNIX_EPOCH);
        assert_eq!((over.truth, over.still), (Truth::Remote, None));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn a_device_is_moved_only_with_the_proof_for_it(record in any_row(), f in any_seen()) {
        let device = f.device.known().and_then(Option::as_ref);
        let local = f.local.known().and_then(Option::as_ref);
        let same = |still: &Still| {
            let (device, local) = (device.unwrap(), local.unwrap());
            device.writes.as_ref() == Some(&still.writes) && device.epoch == record.assign.epoch && !device.suspended
                && device.table == Ok(Table::Linear(Remote)) && device.size <= local.size
                && local.snapshots.last() == Some(&still.snapshot) && local.written == 0
        };
        match plan(&record, &f) {
            Decision::Record(NodeChange::Move(still)) => {
                let local = local.unwrap();
                prop_assert!(record.lies == Lies::Remote && record.assign.granted && record.assign.want == Want::Local);
                prop_assert!(same(&still) && local.receives.is_none() && local.reserved && f.overlay == Fact::Known(None));
            }
            Decision::Do(NodeStep::Move { .. }) => {
                prop_assert!(record.lies == Lies::Moving && same(record.still.as_ref().unwrap()));
            }
            // It becomes the truth or does not by what is seen, and nothing is done meanwhile.
            Decision::Do(step) if record.lies == Lies::Moving => {
                prop_assert!(matches!(step, NodeStep::ResumeDevice | NodeStep::SettleLocal), "{:?}", step);
            }
            Decision::Record(NodeChange::Lies(Lies::Remote)) if record.lies == Lies::Moving => {
                let on_nas = device.is_some_and(|d| d.table == Ok(Table::Linear(Remote)) && d.epoch == record.assign.epoch);
                let nothing = device.is_none() && local.is_some_and(|l| l.written == 0);
                prop_assert!(on_nas || nothing);
            }
            Decision::Record(change) if record.lies == Lies::Moving => {
                prop_assert_eq!(change, NodeChange::Lies(Lies::Local));
                prop_assert!(device.is_none_or(|d| d.table == Ok(Table::Linear(Local)) && d.epoch <= Epoch(record.assign.epoch.0)));
            }
            _ => {}
        }
    }
}
