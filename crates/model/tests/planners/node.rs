//! The node's planner.

use crate::things::*;
use img_storage_model::{
    Decision, Epoch, Fact,
    attribute::Speed,
    messages::{Assign, BackOrder, NodePhase, PushOrder, Want},
    node::{
        self, JobState, Layer, NodeChange, NodeRecord, PushOutcome, Truth,
        qemu::{Bitmap, Incremental, LocalFile, NodeFacts, NodeStep, QsdFacts, Snapshotting},
    },
};
use proptest::prelude::*;

pub fn record(assign: Assign, truth: Truth) -> NodeRecord {
    NodeRecord { truth, local: Some(E), ..NodeRecord::new(assign) }
}

pub fn file() -> LocalFile {
    LocalFile { epoch: E, size: size().bytes(), reserved: true }
}

fn qsd(top: Layer) -> QsdFacts {
    QsdFacts { guest: true, ..QsdFacts::started(E, top, (top == Layer::Remote).then(|| "e3".to_owned())) }
}

fn bitmap(since: Incremental, recording: bool) -> Bitmap {
    Bitmap { since, recording, dirty: 65536 }
}

/// On the local copy, with these bitmaps.
fn on_local(bitmaps: &[Bitmap]) -> QsdFacts {
    QsdFacts { bitmaps: bitmaps.to_vec(), ..qsd(Layer::Local) }
}

pub fn copying(state: JobState) -> QsdFacts {
    QsdFacts { local: true, copy: Some(job(state)), ..qsd(Layer::Remote) }
}

fn back(mirror: JobState, fill: JobState) -> QsdFacts {
    QsdFacts {
        back: Some("e3.back".to_owned()),
        back_mirror: Some(job(mirror)),
        back_fill: Some(job(fill)),
        ..on_local(&[bitmap(Incremental::Pivot, true)])
    }
}

pub fn decide(record: &NodeRecord, qsd: Option<QsdFacts>, local: Option<LocalFile>) -> node::qemu::Decision {
    node::qemu::plan(record, &NodeFacts { qsd: Fact::Known(qsd), local: Fact::Known(local) })
}

fn waits(decision: &node::qemu::Decision) -> bool {
    matches!(decision, Decision::Wait(_))
}

#[test]
fn before_the_pivot() {
    let remote = |want| record(assign(want), Truth::Remote);
    let start = NodeStep::Start { epoch: E, over: Layer::Remote, endpoint: Some(endpoint("e3")) };
    assert_eq!(decide(&remote(Want::Remote), None, None), Decision::Do(start.clone()));
    assert_eq!(decide(&remote(Want::Remote), Some(qsd(Layer::Remote)), None), Decision::Rest);
    let bare = QsdFacts { guest: false, ..qsd(Layer::Remote) };
    assert!(matches!(decide(&remote(Want::Local), Some(bare), None), Decision::Do(NodeStep::AddGuest { .. })));
    let create = NodeStep::CreateLocal { epoch: E, size: size() };
    assert_eq!(decide(&remote(Want::Local), Some(qsd(Layer::Remote)), None), Decision::Do(create));
    assert_eq!(decide(&remote(Want::Local), Some(qsd(Layer::Remote)), Some(file())), Decision::Do(NodeStep::OpenLocal));
    let open = QsdFacts { local: true, ..qsd(Layer::Remote) };
    assert_eq!(
        decide(&remote(Want::Local), Some(open.clone()), Some(file())),
        Decision::Do(NodeStep::StartCopy { speed: Speed::UNLIMITED })
    );
    assert_eq!(decide(&remote(Want::Remote), Some(open), Some(file())), Decision::Do(NodeStep::CancelCopy));
    let moved = QsdFacts { remote: Some("e3.back".to_owned()), ..qsd(Layer::Remote) };
    let reattach = NodeStep::Reattach { endpoint: endpoint("e3") };
    assert_eq!(decide(&remote(Want::Local), Some(moved), None), Decision::Do(reattach));
}

#[test]
fn a_copy_is_not_begun_over_the_overlays_export() {
    let r = record(Assign { export: Some(endpoint("e3.back")), ..assign(Want::Local) }, Truth::Remote);
    let q = QsdFacts { remote: Some("e3.back".to_owned()), ..qsd(Layer::Remote) };
    assert!(waits(&decide(&r, Some(q), Some(file()))));
}

#[test]
fn the_pivot_is_allowed_then_written_down_then_done() {
    let waiting = record(assign(Want::Local), Truth::Remote);
    let granted = record(Assign { granted: true, ..assign(Want::Local) }, Truth::Remote);
    assert!(waits(&decide(&waiting, Some(copying(JobState::Ready)), Some(file()))));
    assert_eq!(decide(&granted, Some(copying(JobState::Ready)), Some(file())), Decision::Do(NodeStep::CompleteCopy));
    let unreserved = LocalFile { reserved: false, ..file() };
    assert_eq!(decide(&granted, Some(copying(JobState::Ready)), Some(unreserved)), Decision::Do(NodeStep::ReserveLocal));
    let bitmap_first = NodeStep::AddBitmap { since: Incremental::Pivot };
    assert_eq!(decide(&granted, Some(copying(JobState::Pending)), Some(file())), Decision::Do(bitmap_first));
    let pending = QsdFacts { bitmaps: vec![bitmap(Incremental::Pivot, true)], ..copying(JobState::Pending) };
    let local = Decision::Record(NodeChange::Truth(Truth::Local));
    assert_eq!(decide(&granted, Some(pending.clone()), Some(file())), local);
    let pivoted = NodeRecord { truth: Truth::Local, ..granted };
    assert_eq!(decide(&pivoted, Some(pending), Some(file())), Decision::Do(NodeStep::FinalizeCopy));
    // It was written down but did not happen: the guest works on the NAS.
    let remote = Decision::Record(NodeChange::Truth(Truth::Remote));
    assert_eq!(decide(&pivoted, Some(copying(JobState::Failed("no".to_owned()))), Some(file())), remote);
}

#[test]
fn what_the_local_copy_holds_is_taken_up_again() {
    let r = record(assign(Want::Local), Truth::Local);
    let start = NodeStep::Start { epoch: E, over: Layer::Local, endpoint: None };
    assert_eq!(decide(&r, None, Some(file())), Decision::Do(start));
    assert!(matches!(decide(&r, None, None), Decision::Stuck(_)));
    let unknown = NodeStep::AddBitmap { since: Incremental::Unknown };
    assert_eq!(decide(&r, Some(on_local(&[])), Some(file())), Decision::Do(unknown));
}

#[test]
fn a_write_back_goes_step_by_step() {
    let order = PushOrder { push: snapshot(1), endpoint: Some(endpoint("push")), last: false, full: false };
    let r = record(Assign { push: Some(order), ..assign(Want::Local) }, Truth::Local);
    let steps = |q: QsdFacts| decide(&r, Some(q), Some(file()));
    let old = bitmap(Incremental::Pivot, true);
    let frozen = [Bitmap { recording: false, ..old }, bitmap(Incremental::Snapshot(snapshot(1)), true)];
    assert_eq!(steps(on_local(&[old])), Decision::Do(NodeStep::FreezeBitmap { push: snapshot(1) }));
    assert_eq!(steps(on_local(&frozen)), Decision::Do(NodeStep::InsertFleece));
    let at = |s: Snapshotting| QsdFacts { snapshotting: s, ..on_local(&frozen) };
    let fleece = Snapshotting { fleece: true, ..Snapshotting::default() };
    assert_eq!(steps(at(fleece)), Decision::Do(NodeStep::OpenSource { full: false }));
    let source = Snapshotting { source: true, ..fleece };
    assert_eq!(steps(at(source)), Decision::Do(NodeStep::OpenIncoming { endpoint: endpoint("push") }));
    let incoming = Snapshotting { incoming: true, ..source };
    assert_eq!(
        steps(at(incoming)),
        Decision::Do(NodeStep::StartPush { push: snapshot(1), full: false, speed: Speed::UNLIMITED })
    );
    let moving = |state| QsdFacts { push: Some((snapshot(1), job(state))), ..at(incoming) };
    assert!(waits(&steps(moving(JobState::Running))));
    assert_eq!(steps(moving(JobState::Done)), Decision::Do(NodeStep::DigestPush { push: snapshot(1), full: false }));
    let Decision::Record(NodeChange::Pushed(result)) = steps(moving(JobState::Failed("no".to_owned()))) else { panic!() };
    assert!(matches!(result.outcome, PushOutcome::Failed { .. }));
    let over = NodeRecord { pushed: Some(sent(snapshot(1))), ..r.clone() };
    assert_eq!(decide(&over, Some(moving(JobState::Done)), Some(file())), Decision::Do(NodeStep::EndPush));
    assert!(waits(&decide(&over, Some(on_local(&frozen)), Some(file()))));
    let gone_wrong = NodeRecord { pushed: Some(failed(snapshot(1))), ..r };
    assert_eq!(decide(&gone_wrong, Some(on_local(&frozen)), Some(file())), Decision::Do(NodeStep::RevertBitmap));
}

#[test]
fn a_frozen_bitmap_goes_only_when_the_newer_one_is_enough() {
    let frozen = [bitmap(Incremental::Pivot, false), bitmap(Incremental::Snapshot(snapshot(1)), true)];
    let r = |accepted| record(Assign { accepted, ..assign(Want::Local) }, Truth::Local);
    let drop = Decision::Do(NodeStep::DropBitmap { since: Incremental::Pivot });
    assert_eq!(decide(&r(Some(snapshot(1))), Some(on_local(&frozen)), Some(file())), drop);
    assert_eq!(decide(&r(Some(snapshot(0))), Some(on_local(&frozen)), Some(file())), Decision::Do(NodeStep::RevertBitmap));
    assert_eq!(decide(&r(None), Some(on_local(&frozen)), Some(file())), Decision::Do(NodeStep::RevertBitmap));
}

#[test]
fn what_is_not_recorded_since_what_the_nas_holds_moves_whole() {
    for (since, accepted, full) in [
        (Incremental::Pivot, None, false),
        (Incremental::Pivot, Some(snapshot(0)), true),
        (Incremental::Unknown, None, true),
        (Incremental::Snapshot(snapshot(0)), Some(snapshot(0)), false),
        (Incremental::Snapshot(snapshot(0)), Some(snapshot(2)), true),
        (Incremental::Snapshot(snapshot(0)), None, true),
    ] {
        let order = PushOrder { push: snapshot(1), endpoint: Some(endpoint("push")), last: true, full: false };
        let r = record(Assign { push: Some(order), accepted, ..assign(Want::Gone) }, Truth::Local);
        let q = on_local(&[bitmap(since, false), bitmap(Incremental::Snapshot(snapshot(1)), true)]);
        let q = QsdFacts { guest: false, ..q };
        assert_eq!(decide(&r, Some(q), Some(file())), Decision::Do(NodeStep::OpenSource { full }), "{since:?} {accepted:?}");
    }
}

#[test]
fn the_way_back() {
    let order = |granted| Some(BackOrder { endpoint: endpoint("e3.back"), granted });
    let r = |granted| record(Assign { back: order(granted), export: None, ..assign(Want::Remote) }, Truth::Local);
    let pivot = on_local(&[bitmap(Incremental::Pivot, true)]);
    let open = NodeStep::OpenBack { endpoint: endpoint("e3.back") };
    assert_eq!(decide(&r(false), Some(pivot.clone()), Some(file())), Decision::Do(open));
    let opened = QsdFacts { back: Some("e3.back".to_owned()), ..pivot };
    assert_eq!(
        decide(&r(false), Some(opened), Some(file())),
        Decision::Do(NodeStep::StartBack { full: false, speed: Speed::UNLIMITED })
    );
    let ready = back(JobState::Ready, JobState::Done);
    assert!(waits(&decide(&r(false), Some(ready.clone()), Some(file()))));
    assert_eq!(decide(&r(true), Some(ready), Some(file())), Decision::Do(NodeStep::CompleteBack));
    let pending = back(JobState::Pending, JobState::Done);
    let remote = Decision::Record(NodeChange::Truth(Truth::Remote));
    assert_eq!(decide(&r(true), Some(pending.clone()), Some(file())), remote);
    let written = NodeRecord { truth: Truth::Remote, ..r(true) };
    assert_eq!(decide(&written, Some(pending.clone()), Some(file())), Decision::Do(NodeStep::FinalizeBack));
    // Also when it is to be unmapped meanwhile: until it is done, the newest writes may still become local ones.
    let unmapped = NodeRecord { assign: Assign { want: Want::Gone, force: true, ..r(true).assign }, ..written.clone() };
    assert_eq!(decide(&unmapped, Some(pending.clone()), Some(file())), Decision::Do(NodeStep::FinalizeBack));
    let facts = NodeFacts { qsd: Fact::Known(Some(pending)), local: Fact::Known(Some(file())) };
    assert_eq!(node::qemu::phase(&written, &facts), NodePhase::Switching, "it can still fail");
    let broken = back(JobState::Failed("no".to_owned()), JobState::Done);
    assert_eq!(decide(&r(true), Some(broken.clone()), Some(file())), Decision::Do(NodeStep::CancelBack));
    for written in [written, unmapped] {
        let local = Decision::Record(NodeChange::Truth(Truth::Local));
        assert_eq!(decide(&written, Some(broken.clone()), Some(file())), local);
    }
}

#[test]
fn the_local_copy_goes_when_it_came_home_and_not_before() {
    let kept = record(assign(Want::Gone), Truth::Local);
    let released = record(Assign { release: true, ..assign(Want::Gone) }, Truth::Local);
    let q = QsdFacts { guest: false, ..on_local(&[bitmap(Incremental::Pivot, true)]) };
    assert!(waits(&decide(&kept, Some(q.clone()), Some(file()))));
    assert!(matches!(decide(&kept, None, Some(file())), Decision::Do(NodeStep::Start { over: Layer::Local, .. })));
    assert!(matches!(decide(&released, Some(q.clone()), Some(file())), Decision::Stuck(_)), "something was written since");
    let clean = QsdFacts { bitmaps: vec![Bitmap { dirty: 0, ..q.bitmaps[0] }], ..q };
    assert_eq!(decide(&released, Some(clean), Some(file())), Decision::Do(NodeStep::Stop { force: false }));
    assert_eq!(decide(&released, None, Some(file())), Decision::Do(NodeStep::RemoveLocal));
    assert_eq!(decide(&released, None, None), Decision::Record(NodeChange::Ended { warm: false, home: None }));
}

#[test]
fn a_local_copy_the_ledger_does_not_know_is_left_alone() {
    for want in [Want::Gone, Want::Remote, Want::Local] {
        let r = NodeRecord { local: None, ..record(Assign { release: true, ..assign(want) }, Truth::Remote) };
        assert!(matches!(decide(&r, None, Some(file())), Decision::Stuck(_)), "{want:?}");
    }
}

#[test]
fn an_ended_mapping_starts_nothing() {
    let r = NodeRecord { ended: Some(E), ..record(assign(Want::Remote), Truth::Remote) };
    assert_eq!(decide(&r, None, None), Decision::Rest);
    assert_eq!(decide(&r, None, Some(file())), Decision::Rest);
}

prop_compose! {
    fn any_bitmaps()(bitmaps in proptest::collection::vec((any_since(), any::<bool>(), 0u64..2), 0..3)) -> Vec<Bitmap> {
        bitmaps.into_iter().map(|(since, recording, dirty)| Bitmap { since, recording, dirty }).collect()
    }
}

prop_compose! {
    fn any_qsd()(
        epoch in any_epoch(),
        top in prop_oneof![Just(Layer::Remote), Just(Layer::Local)],
        remote in proptest::option::of(any_export()),
        flags in any::<(bool, bool, bool, bool, bool, bool, bool)>(),
        copy in proptest::option::of(any_job()),
        bitmaps in any_bitmaps(),
        push in proptest::option::of((any_snapshot(), any_job())),
        back in proptest::option::of(any_export()),
        jobs in (proptest::option::of(any_job()), proptest::option::of(any_job())),
    ) -> QsdFacts {
        let (local, guest, fleece, broken, source, incoming, leftovers) = flags;
        QsdFacts {
            epoch, top, local, guest, copy, bitmaps, push,
            remote: remote.map(|e| e.export),
            snapshotting: Snapshotting { fleece, broken, source, incoming, leftovers },
            back: back.map(|e| e.export),
            back_mirror: jobs.0,
            back_fill: jobs.1,
        }
    }
}

prop_compose! {
    fn any_record()(
        assign in any_assign(),
        truth in prop_oneof![Just(Truth::Remote), Just(Truth::Local)],
        local in proptest::option::of(any_epoch()),
        ended in proptest::option::of(Just(Epoch(2))),
        pushed in proptest::option::of(any_pushed()),
    ) -> NodeRecord {
        NodeRecord { truth, local, ended, pushed, ..NodeRecord::new(assign) }
    }
}

prop_compose! {
    fn any_file()(epoch in any_epoch(), same in any::<bool>(), reserved in any::<bool>()) -> LocalFile {
        LocalFile { epoch, size: if same { size().bytes() } else { 1 << 20 }, reserved }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn nothing_is_done_about_what_cannot_be_seen(
        record in any_record(), qsd in proptest::option::of(any_qsd()), local in proptest::option::of(any_file()),
    ) {
        let blind = NodeFacts { qsd: unseen(), local: Fact::Known(local) };
        prop_assert!(matches!(node::qemu::plan(&record, &blind), Decision::Stuck(_)));
        let blind = NodeFacts { qsd: Fact::Known(qsd), local: unseen() };
        prop_assert!(matches!(node::qemu::plan(&record, &blind), Decision::Stuck(_)));
    }

    #[test]
    fn whatever_is_seen(
        record in any_record(), qsd in proptest::option::of(any_qsd()), local in proptest::option::of(any_file()),
    ) {
        let a = &record.assign;
        let Decision::Do(step) = decide(&record, qsd.clone(), local) else { return Ok(()) };
        let pending = |job: Option<&node::Job>| job.is_some_and(|j| matches!(j.state, JobState::Pending | JobState::Done));
        if record.truth == Truth::Remote && matches!(step, NodeStep::Stop { .. } | NodeStep::RemoveGuest { .. }) {
            let on_local = qsd.as_ref().is_some_and(|q| q.top == Layer::Local && q.epoch == a.epoch && q.copy.is_none());
            prop_assert!(!on_local, "what is on the local copy may be the newest");
        }
        match &step {
            NodeStep::RemoveLocal if record.truth == Truth::Local => {
                prop_assert!(a.release && a.want == Want::Gone && qsd.is_none());
            }
            NodeStep::RemoveLocal => {
                prop_assert_eq!(record.local, local.map(|f| f.epoch));
                prop_assert!(qsd.is_none_or(|q| q.copy.is_none() && !q.local && q.top == Layer::Remote));
            }
            NodeStep::Start { over, endpoint, epoch } => {
                prop_assert_eq!(*over == Layer::Local, record.truth == Truth::Local);
                prop_assert!(endpoint.is_some() || *over == Layer::Local);
                prop_assert!(*epoch == a.epoch && qsd.is_none());
                prop_assert!(!record.has_ended());
            }
            NodeStep::AddGuest { .. } => {
                let on = if record.truth == Truth::Local { Layer::Local } else { Layer::Remote };
                prop_assert!(qsd.is_some_and(|q| q.top == on || q.copy.is_some()));
                prop_assert!(a.want != Want::Gone);
            }
            NodeStep::Stop { force: true } | NodeStep::RemoveGuest { force: true } => {
                prop_assert!(a.force || qsd.is_some_and(|q| q.epoch != a.epoch));
            }
            NodeStep::CompleteCopy => prop_assert!(a.granted && a.want == Want::Local && local.is_none_or(|f| f.reserved)),
            NodeStep::CompleteBack => {
                prop_assert!(a.want == Want::Remote && a.back.as_ref().is_some_and(|b| b.granted));
                prop_assert!(qsd.and_then(|q| q.back_fill).is_some_and(|j| j.state == JobState::Done));
            }
            NodeStep::FinalizeCopy => {
                prop_assert!(record.truth == Truth::Local && pending(qsd.as_ref().and_then(|q| q.copy.as_ref())));
            }
            NodeStep::FinalizeBack => prop_assert_eq!(record.truth, Truth::Remote),
            NodeStep::CancelCopy => prop_assert_eq!(record.truth, Truth::Remote),
            NodeStep::CancelBack => prop_assert_eq!(record.truth, Truth::Local),
            NodeStep::DropBitmap { since } => {
                let newest = qsd.as_ref().and_then(|q| q.recording()).map(|b| b.since);
                prop_assert!(newest == a.accepted.map(Incremental::Snapshot) && newest.is_some() && Some(*since) != newest);
            }
            NodeStep::OpenSource { full: false } | NodeStep::StartPush { full: false, .. } | NodeStep::DigestPush { full: false, .. } => {
                let since = qsd.as_ref().and_then(|q| q.frozen()).map(|b| b.since);
                prop_assert_eq!(since, Some(a.accepted.map_or(Incremental::Pivot, Incremental::Snapshot)));
                prop_assert!(a.push.as_ref().is_none_or(|p| !p.full));
            }
            _ => {}
        }
    }

    #[test]
    fn a_report_tells_the_truth_of_the_ledger(
        record in any_record(), qsd in proptest::option::of(any_qsd()), local in proptest::option::of(any_file()),
    ) {
        let facts = NodeFacts { qsd: Fact::Known(qsd), local: Fact::Known(local) };
        let report = node::qemu::report(&record, &facts, "device", None);
        prop_assert_eq!(report.pivoted, record.truth == Truth::Local);
        prop_assert_eq!((report.epoch, report.revision), (record.assign.epoch, record.assign.revision));
        if report.phase == NodePhase::Gone {
            prop_assert!(record.truth == Truth::Remote && record.has_ended());
        }
    }
}
