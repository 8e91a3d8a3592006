//! The NAS's planner.

use crate::things::*;
use img_storage_model::{
    Decision, Epoch, Extents, Fact, RequestId, SnapshotId,
    messages::{Assign, ContentDigest, NodePhase, Report, Want},
    nas::{
        self, Accepted, Authority, Context, Mapping, NasChange, NasLayer, PushState, Stage, VolumeRecord,
        qemu::{DiskFile, ExportFacts, IncomingFacts, NasFacts, NasStep},
    },
    node::JobState,
};
use jiff::Timestamp;
use proptest::prelude::*;
use uuid::Uuid;

pub fn facts() -> NasFacts {
    NasFacts {
        disk: Fact::Known(Some(DiskFile { size: size().bytes(), allocated: 0 })),
        export: Fact::Known(None),
        incoming: Fact::Known(None),
        pending: Fact::Known(None),
        overlay: Fact::Known(None),
        reader: Fact::Known(false),
    }
}

fn export(name: &str, over: NasLayer, commit: Option<JobState>) -> ExportFacts {
    let names = vec![name.to_owned()];
    ExportFacts { epoch: E, peer: host("c0"), port: 7, names, over, commit: commit.map(job) }
}

fn exporting(e: ExportFacts) -> NasFacts {
    let overlay = (e.over == NasLayer::Overlay).then_some(E);
    NasFacts { export: Fact::Known(Some(e)), overlay: Fact::Known(overlay), ..facts() }
}

fn incoming(push: SnapshotId, serving: bool) -> NasFacts {
    NasFacts { incoming: Fact::Known(Some(IncomingFacts { push, serving })), ..facts() }
}

/// What the node is told.
pub fn assigned(v: &VolumeRecord, f: NasFacts, copy: bool) -> Option<Assign> {
    let nas = host("nas");
    let terms = nas::Terms { nas: &nas, address: "nas", speeds: Default::default(), copy, password: "" };
    nas::assignment(v, &nas::Facts::Qemu(f), &terms)
}

pub fn pushing(verified: bool, last: bool) -> PushState {
    PushState { push: snapshot(1), ordered: Timestamp::UNIX_EPOCH, last, port: 8, verified }
}

fn decide(v: &VolumeRecord, f: &NasFacts, report: Option<&Report>) -> nas::qemu::Decision {
    nas::qemu::plan(v, f, &Context { report, ..Context::default() })
}

fn waits(decision: &nas::qemu::Decision) -> bool {
    matches!(decision, Decision::Wait(_))
}

#[test]
fn a_volume_is_made_and_destroyed() {
    let new = VolumeRecord { stage: Stage::Creating, ..row(None) };
    let nothing = NasFacts { disk: Fact::Known(None), ..facts() };
    assert_eq!(decide(&new, &nothing, None), Decision::Do(NasStep::CreateDisk { size: size() }));
    assert_eq!(decide(&new, &facts(), None), Decision::Do(NasStep::SyncDisk));
    assert_eq!(decide(&row(None), &facts(), None), Decision::Rest);
    assert!(matches!(decide(&row(None), &nothing, None), Decision::Stuck(_)), "it is not made again");
    let small = NasFacts { disk: Fact::Known(Some(DiskFile { size: 1 << 20, allocated: 0 })), ..facts() };
    assert_eq!(decide(&row(None), &small, None), Decision::Do(NasStep::GrowDisk { size: size() }));
    let doomed = VolumeRecord { stage: Stage::Deleting, ..row(None) };
    assert_eq!(decide(&doomed, &facts(), None), Decision::Do(NasStep::RemoveDisk));
    // What a creation that was cut off left goes too.
    assert_eq!(decide(&doomed, &nothing, None), Decision::Do(NasStep::RemoveDisk));
}

#[test]
fn a_mapping_is_exported_and_allowed_to_pivot() {
    let v = row(Some(mapping(Want::Local, Authority::Nas)));
    assert!(matches!(decide(&v, &facts(), None), Decision::Do(NasStep::StartExport { layer: NasLayer::Disk, .. })));
    let f = exporting(export("e3", NasLayer::Disk, None));
    assert!(waits(&decide(&v, &f, Some(&report(NodePhase::Copying, false)))));
    let allow = Decision::Record(NasChange::Authority(Authority::MaybeNode));
    assert_eq!(decide(&v, &f, Some(&report(NodePhase::Ready, false))), allow);
    let v = row(Some(mapping(Want::Local, Authority::MaybeNode)));
    let took = Decision::Record(NasChange::Authority(Authority::Node));
    assert_eq!(decide(&v, &f, Some(&report(NodePhase::Switching, true))), took);
    let v = row(Some(mapping(Want::Local, Authority::Node)));
    let attached = Report { detached: false, ..report(NodePhase::Local, true) };
    assert!(!matches!(decide(&v, &f, Some(&attached)), Decision::Do(NasStep::StopExport)));
    assert_eq!(decide(&v, &f, Some(&report(NodePhase::Local, true))), Decision::Do(NasStep::StopExport));
    assert_eq!(decide(&v, &facts(), Some(&report(NodePhase::Local, true))), Decision::Rest);
}

#[test]
fn another_epochs_export_ends() {
    let v = row(Some(mapping(Want::Remote, Authority::Nas)));
    let old = ExportFacts { epoch: Epoch(2), ..export("e2", NasLayer::Disk, None) };
    assert_eq!(decide(&v, &exporting(old), None), Decision::Do(NasStep::StopExport));
    let other = ExportFacts { peer: host("c1"), ..export("e3", NasLayer::Disk, None) };
    assert_eq!(decide(&v, &exporting(other), None), Decision::Do(NasStep::StopExport));
}

#[test]
fn an_unmap_waits_for_the_node_unless_the_nas_has_everything_and_is_told_not_to() {
    let f = exporting(export("e3", NasLayer::Disk, None));
    let gone = report(NodePhase::Gone, false);
    let v = row(Some(mapping(Want::Gone, Authority::Nas)));
    assert!(waits(&decide(&v, &f, None)));
    assert_eq!(decide(&v, &f, Some(&gone)), Decision::Do(NasStep::StopExport));
    assert_eq!(decide(&v, &facts(), Some(&gone)), Decision::Record(NasChange::Unmapped));
    let abandoned = |authority| row(Some(Mapping { abandon: true, ..mapping(Want::Gone, authority) }));
    assert_eq!(decide(&abandoned(Authority::Nas), &f, None), Decision::Do(NasStep::StopExport));
    for authority in [Authority::MaybeNode, Authority::Node, Authority::MaybeNas] {
        assert!(waits(&decide(&abandoned(authority), &f, None)), "{authority:?} may hold the newest writes elsewhere");
    }
}

#[test]
fn a_write_back_comes_in_step_by_step() {
    let at = |verified| row(Some(Mapping { push: Some(pushing(verified, false)), ..mapping(Want::Local, Authority::Node) }));
    let (new, verified) = (at(false), at(true));
    let local = report(NodePhase::Local, true);
    let create = NasStep::CreateIncoming { push: snapshot(1) };
    assert_eq!(decide(&new, &facts(), Some(&local)), Decision::Do(create));
    let serve = NasStep::ServeIncoming { push: snapshot(1), peer: host("c0"), port: 8 };
    assert_eq!(decide(&new, &incoming(snapshot(1), false), Some(&local)), Decision::Do(serve));
    assert!(waits(&decide(&new, &incoming(snapshot(1), true), Some(&local))));
    let done = Report { pushed: Some(sent(snapshot(1))), ..local.clone() };
    let digest = ContentDigest("d".to_owned());
    let verify = NasStep::VerifyIncoming { push: snapshot(1), extents: Extents::whole(1 << 20), digest };
    assert_eq!(decide(&new, &incoming(snapshot(1), true), Some(&done)), Decision::Do(verify));
    let seal = NasStep::SealIncoming { push: snapshot(1) };
    assert_eq!(decide(&verified, &incoming(snapshot(1), true), Some(&done)), Decision::Do(seal));
    let pending = NasFacts { pending: Fact::Known(Some(snapshot(1))), ..facts() };
    let commit = NasStep::CommitPending { push: snapshot(1) };
    assert_eq!(decide(&verified, &pending, Some(&done)), Decision::Do(commit.clone()));
    assert_eq!(nas::qemu::after(&verified, &commit, &img_storage_model::node::StepResult::Done), Some(NasChange::Accepted));
    let mut taken = verified;
    taken.apply(&NasChange::Accepted, Timestamp::UNIX_EPOCH, || unreachable!());
    assert_eq!(decide(&taken, &pending, Some(&done)), Decision::Do(NasStep::RemovePending { push: snapshot(1) }));
}

#[test]
fn a_write_back_that_is_not_whole_is_not_used() {
    let at = |verified| row(Some(Mapping { push: Some(pushing(verified, false)), ..mapping(Want::Local, Authority::Node) }));
    let given_up = |d: nas::qemu::Decision| matches!(d, Decision::Record(NasChange::PushFailed { .. }));
    let done = Report { pushed: Some(sent(snapshot(1))), ..report(NodePhase::Local, true) };
    let wrong = Report { pushed: Some(failed(snapshot(1))), ..report(NodePhase::Local, true) };
    assert!(given_up(decide(&at(false), &incoming(snapshot(1), true), Some(&wrong))));
    assert!(given_up(decide(&at(false), &facts(), Some(&done))), "its file is gone");
    assert!(given_up(decide(&at(true), &incoming(snapshot(1), false), Some(&done))), "its daemon died before it was sealed");
    let other = incoming(snapshot(2), true);
    assert_eq!(decide(&at(false), &other, Some(&done)), Decision::Do(NasStep::DiscardIncoming));
    let strange = NasFacts { pending: Fact::Known(Some(snapshot(2))), ..facts() };
    assert!(matches!(decide(&at(false), &strange, Some(&done)), Decision::Stuck(_)), "nobody knows it: it is kept");
}

#[test]
fn the_local_copy_is_released_after_the_last_write_back_only() {
    let release = |m: Mapping| assigned(&row(Some(m)), facts(), true).unwrap().release;
    let accepted = |last| Some(Accepted { push: snapshot(1), at: Timestamp::UNIX_EPOCH, last });
    let m = mapping(Want::Gone, Authority::Node);
    assert!(!release(m.clone()));
    assert!(!release(Mapping { accepted: accepted(false), ..m.clone() }));
    assert!(release(Mapping { accepted: accepted(true), ..m.clone() }));
    assert!(!release(Mapping { accepted: accepted(true), push: Some(pushing(false, true)), ..m.clone() }));
    for authority in [Authority::MaybeNode, Authority::MaybeNas] {
        assert!(!release(Mapping { authority, accepted: accepted(true), ..m.clone() }));
    }
    assert!(!release(Mapping { layer: NasLayer::Overlay, ..mapping(Want::Remote, Authority::Nas) }));
    assert!(release(mapping(Want::Remote, Authority::Nas)));
}

#[test]
fn a_mapping_does_not_end_before_the_newest_writes_are_home() {
    let gone = report(NodePhase::Gone, false);
    let accepted = |last| Some(Accepted { push: snapshot(1), at: Timestamp::UNIX_EPOCH, last });
    let exported = exporting(export("e3", NasLayer::Disk, None));
    // Also by force, which has no say in what a node has: its disk is the only one with them.
    for m in [
        mapping(Want::Gone, Authority::Node),
        Mapping { accepted: accepted(false), ..mapping(Want::Gone, Authority::Node) },
        Mapping { force: true, abandon: true, ..mapping(Want::Gone, Authority::Node) },
    ] {
        for f in [facts(), exported.clone()] {
            let Decision::Stuck(why) = decide(&row(Some(m.clone())), &f, Some(&gone)) else { panic!("it ended: {m:?}") };
            assert!(why.contains("never came home") && why.contains("img-storage doctor"), "{why}");
        }
    }
    // A write-back under way is given up first.
    let under_way = Mapping { push: Some(pushing(false, true)), ..mapping(Want::Gone, Authority::Node) };
    let f = incoming(snapshot(1), true);
    assert!(matches!(decide(&row(Some(under_way)), &f, Some(&gone)), Decision::Record(NasChange::PushFailed { .. })));
    let home = row(Some(Mapping { accepted: accepted(true), ..mapping(Want::Gone, Authority::Node) }));
    assert_eq!(decide(&home, &exported, Some(&gone)), Decision::Do(NasStep::StopExport));
    assert_eq!(decide(&home, &facts(), Some(&gone)), Decision::Record(NasChange::Unmapped));
}

#[test]
fn a_mapping_that_is_taken_up_again_counts_on_from_far_ahead() {
    let adopted = |pivoted, revision| {
        let mut v = row(None);
        let newer = Report { epoch: Epoch(E.0 + 1), revision, ..report(NodePhase::Local, pivoted) };
        let taken = nas::adopt(&mut v, &host("c0"), &newer, RequestId(Uuid::from_u128(1)), Timestamp::UNIX_EPOCH, 7);
        taken.then(|| v.mapping.unwrap().revision_floor)
    };
    assert!(adopted(true, 7).is_some_and(|floor| floor > 1 << 20), "the node may have words that this ledger does not know");
    assert_eq!(adopted(false, 7), None, "it has nothing that the NAS has not");
    assert_eq!(adopted(true, u64::MAX), None, "no ledger has it, and none could go on from there");
}

#[test]
fn the_way_back_and_the_overlay() {
    let v = row(Some(mapping(Want::Remote, Authority::Node)));
    let local = report(NodePhase::Local, true);
    assert_eq!(decide(&v, &facts(), Some(&local)), Decision::Do(NasStep::CreateOverlay { epoch: E }));
    let f = exporting(export("e3.back", NasLayer::Overlay, None));
    assert!(waits(&decide(&v, &f, Some(&report(NodePhase::BringingBack, true)))));
    let allow = Decision::Record(NasChange::Authority(Authority::MaybeNas));
    assert_eq!(decide(&v, &f, Some(&report(NodePhase::BackReady, true))), allow);
    let maybe = row(Some(mapping(Want::Remote, Authority::MaybeNas)));
    assert!(waits(&decide(&maybe, &f, Some(&report(NodePhase::BackReady, true)))));
    assert!(waits(&decide(&maybe, &f, Some(&report(NodePhase::Switching, false)))), "it can still fail");
    let nas = Decision::Record(NasChange::Authority(Authority::Nas));
    assert_eq!(decide(&maybe, &f, Some(&report(NodePhase::Remote, false))), nas);
    let overlay = |layer| row(Some(Mapping { layer, ..mapping(Want::Remote, Authority::Nas) }));
    let folding = |state| exporting(export("e3.back", NasLayer::Overlay, state));
    let on = overlay(NasLayer::Overlay);
    assert_eq!(decide(&on, &folding(None), None), Decision::Do(NasStep::StartCommit));
    assert_eq!(decide(&on, &folding(Some(JobState::Ready)), None), Decision::Do(NasStep::CompleteCommit));
    let folded = Decision::Record(NasChange::Layer(NasLayer::Disk));
    assert_eq!(decide(&on, &folding(Some(JobState::Pending)), None), folded);
    let written = overlay(NasLayer::Disk);
    assert_eq!(decide(&written, &folding(Some(JobState::Pending)), None), Decision::Do(NasStep::FinalizeCommit));
    // It was written down but failed: the overlay has the newest writes still.
    let back_on = Decision::Record(NasChange::Layer(NasLayer::Overlay));
    assert_eq!(decide(&written, &folding(Some(JobState::Failed("no".to_owned()))), None), back_on);
    assert_eq!(decide(&written, &folding(None), None), back_on);
}

#[test]
fn the_overlays_name_is_served_until_the_node_has_left_it() {
    let v = row(Some(mapping(Want::Remote, Authority::Nas)));
    let on = |name: &str| Report { attached: Some(name.to_owned()), ..report(NodePhase::Remote, false) };
    // The export died between the word to move and the move: only its old name can flush what the guest wrote last.
    let start = |decision| match decision {
        Decision::Do(NasStep::StartExport { name, layer: NasLayer::Disk, .. }) => name,
        other => panic!("{other:?}"),
    };
    assert_eq!(start(decide(&v, &facts(), Some(&on("e3.back")))), "e3.back");
    assert_eq!(start(decide(&v, &facts(), Some(&on("e3")))), "e3");
    // It was started before the node had told where it is.
    let plain = exporting(export("e3", NasLayer::Disk, None));
    let back_too = Decision::Do(NasStep::AddExport { name: "e3.back".to_owned() });
    assert_eq!(decide(&v, &plain, Some(&on("e3.back"))), back_too);
    let mut process = export("e3", NasLayer::Disk, None);
    process.names.push("e3.back".to_owned());
    let both = exporting(process);
    assert!(waits(&decide(&v, &both, Some(&on("e3.back")))));
    let left = Decision::Do(NasStep::RemoveExport { name: "e3.back".to_owned() });
    assert_eq!(decide(&v, &both, Some(&on("e3"))), left);
    assert_eq!(decide(&v, &plain, Some(&on("e3"))), Decision::Rest);
}

#[test]
fn an_overlay_is_never_replaced_behind_a_mirrors_back() {
    let left = NasFacts { overlay: Fact::Known(Some(E)), ..facts() };
    let ready = report(NodePhase::BackReady, true);
    // Its daemon died: the same overlay is exported again, and the mirror finds in it what it wrote.
    let wanted = row(Some(mapping(Want::Remote, Authority::Node)));
    let start = decide(&wanted, &left, Some(&ready));
    assert!(matches!(start, Decision::Do(NasStep::StartExport { layer: NasLayer::Overlay, .. })));
    // It is not wanted any more: it goes when the node has no mirror that could take another for it.
    for want in [Want::Local, Want::Gone] {
        let v = row(Some(mapping(want, Authority::Node)));
        assert!(waits(&decide(&v, &left, None)) && waits(&decide(&v, &left, Some(&ready))));
        assert_eq!(decide(&v, &left, Some(&report(NodePhase::Local, true))), Decision::Do(NasStep::RemoveOverlay));
    }
}

fn any_facts() -> impl Strategy<Value = NasFacts> {
    let layer = || prop_oneof![Just(NasLayer::Disk), Just(NasLayer::Overlay)];
    let name = prop_oneof![Just("e3"), Just("e3.back"), Just("e2")];
    let process = (any_epoch(), any::<bool>(), proptest::collection::vec(name, 1..3), layer(), proptest::option::of(any_job()));
    (
        any::<(bool, bool)>(),
        proptest::option::of(process),
        proptest::option::of((any_snapshot(), any::<bool>())),
        proptest::option::of(any_snapshot()),
        proptest::option::of(Just(E)),
        any::<bool>(),
    )
        .prop_map(|((disk, small), export, incoming, pending, overlay, reader)| NasFacts {
            disk: Fact::Known(disk.then(|| DiskFile { size: if small { 1 << 20 } else { size().bytes() }, allocated: 0 })),
            export: Fact::Known(export.map(|(epoch, ours, names, over, commit)| ExportFacts {
                epoch,
                peer: host(if ours { "c0" } else { "c1" }),
                port: 7,
                names: names.into_iter().map(str::to_owned).collect(),
                over,
                commit,
            })),
            incoming: Fact::Known(incoming.map(|(push, serving)| IncomingFacts { push, serving })),
            pending: Fact::Known(pending),
            overlay: Fact::Known(overlay),
            reader: Fact::Known(reader),
        })
}

prop_compose! {
    fn any_mapping()(
        want in any_want(),
        authority in prop_oneof![
            Just(Authority::Nas), Just(Authority::MaybeNode), Just(Authority::Node), Just(Authority::MaybeNas),
        ],
        overlay in any::<bool>(),
        abandon in any::<bool>(),
        push in proptest::option::of(any::<(bool, bool)>()),
        accepted in proptest::option::of((any_snapshot(), any::<bool>())),
    ) -> Mapping {
        Mapping {
            abandon,
            layer: if overlay && authority == Authority::Nas { NasLayer::Overlay } else { NasLayer::Disk },
            push: push.map(|(verified, last)| pushing(verified, last)),
            accepted: accepted.map(|(push, last)| Accepted { push, at: Timestamp::UNIX_EPOCH, last }),
            ..mapping(want, authority)
        }
    }
}

prop_compose! {
    fn any_row()(
        stage in prop_oneof![
            8 => Just(Stage::Ready),
            1 => Just(Stage::Creating),
            1 => Just(Stage::Deleting),
            1 => any::<bool>().prop_map(|complete| Stage::Importing { peer: host("front"), session: None, port: 6, complete }),
        ],
        mapping in proptest::option::weighted(0.9, any_mapping()),
        assign in any_assign(),
    ) -> VolumeRecord {
        let mapping = mapping.filter(|_| stage == Stage::Ready);
        VolumeRecord { stage, assign: mapping.is_some().then_some(Assign { epoch: E, ..assign }), ..row(mapping) }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn nothing_is_done_about_what_cannot_be_seen(v in any_row(), f in any_facts(), r in any_report(), which in 0..6) {
        let blind = match which {
            0 => NasFacts { disk: unseen(), ..f },
            1 => NasFacts { export: unseen(), ..f },
            2 => NasFacts { incoming: unseen(), ..f },
            3 => NasFacts { pending: unseen(), ..f },
            4 => NasFacts { overlay: unseen(), ..f },
            _ => NasFacts { reader: unseen(), ..f },
        };
        prop_assert!(matches!(decide(&v, &blind, Some(&r)), Decision::Stuck(_)));
    }

    #[test]
    fn an_answer_to_anything_but_the_newest_assignment_is_no_answer(
        v in any_row(), f in any_facts(), r in any_report(), epoch in 0u64..6, revision in 0u64..8, due in any::<bool>(),
    ) {
        prop_assume!((Epoch(epoch), revision) != (E, 5));
        let old = Report { epoch: Epoch(epoch), revision, ..r };
        let with = nas::qemu::plan(&v, &f, &Context { report: Some(&old), due, ..Context::default() });
        let without = nas::qemu::plan(&v, &f, &Context { due, ..Context::default() });
        prop_assert_eq!(with, without);
    }

    #[test]
    fn authority_moves_by_an_answer_only(v in any_row(), f in any_facts(), r in any_report()) {
        let moved = decide(&v, &f, None);
        prop_assert!(!matches!(moved, Decision::Record(NasChange::Authority(_))), "{:?}", moved);
        if let (Decision::Record(NasChange::Authority(to)), Some(m)) = (decide(&v, &f, Some(&r)), &v.mapping) {
            let well = match (m.authority, to) {
                (Authority::Nas, Authority::MaybeNode) => m.want == Want::Local && r.phase == NodePhase::Ready,
                (Authority::MaybeNode, Authority::Node) => r.pivoted,
                (Authority::MaybeNode | Authority::Node | Authority::MaybeNas, Authority::Nas) => !r.pivoted,
                (Authority::Node, Authority::MaybeNas) => m.want == Want::Remote && r.phase == NodePhase::BackReady,
                (Authority::MaybeNas, Authority::Node) => m.want != Want::Remote && r.pivoted,
                _ => false,
            };
            prop_assert!(well, "{:?} to {:?} by {:?}", m.authority, to, r);
        }
    }

    #[test]
    fn whatever_is_seen(v in any_row(), f in any_facts(), r in proptest::option::of(any_report())) {
        let decision = decide(&v, &f, r.as_ref());
        let export = f.export.known().and_then(Option::as_ref);
        let coming = f.incoming.known().copied().flatten();
        let phase = r.as_ref().map(|r| r.phase);
        match (&decision, &v.mapping) {
            (Decision::Do(NasStep::RemoveDisk), _) => prop_assert_eq!(&v.stage, &Stage::Deleting),
            (Decision::Do(NasStep::StopExport), Some(m)) if matches!(m.authority, Authority::Nas | Authority::MaybeNode) => {
                let strange = export.is_some_and(|e| e.epoch != E || e.peer != m.node);
                let over = phase == Some(NodePhase::Gone) || (m.abandon && m.authority == Authority::Nas);
                prop_assert!(strange || (m.want == Want::Gone && over && m.layer == NasLayer::Disk));
            }
            (Decision::Do(NasStep::StopExport), Some(m)) => prop_assert!(m.authority == Authority::Node && r.is_some()),
            (Decision::Do(NasStep::RemoveOverlay), Some(m)) => {
                prop_assert!(m.layer == NasLayer::Disk && m.authority != Authority::MaybeNas);
                prop_assert!(m.authority != Authority::Node || (m.want != Want::Remote && r.is_some()));
                prop_assert!(export.is_none_or(|e| e.over == NasLayer::Disk || e.epoch != E || m.authority == Authority::Node));
            }
            (Decision::Do(NasStep::RemoveOverlay), None) => prop_assert!(false, "an overlay nobody knows is kept"),
            (Decision::Do(NasStep::DiscardIncoming), Some(m)) => {
                let whole = m.push.as_ref().is_some_and(|p| p.verified && coming.is_some_and(|i| i.push == p.push && i.serving));
                prop_assert!(!whole || m.authority != Authority::Node);
            }
            (Decision::Do(NasStep::SealIncoming { push }), Some(m)) => {
                prop_assert!(m.push.as_ref().is_some_and(|p| p.push == *push && p.verified));
                prop_assert!(coming.is_some_and(|i| i.push == *push && i.serving));
            }
            (Decision::Do(NasStep::CommitPending { push }), Some(m)) => {
                prop_assert!(m.push.as_ref().is_some_and(|p| p.push == *push));
            }
            (Decision::Do(NasStep::RemovePending { push }), m) => {
                prop_assert!(m.as_ref().is_some_and(|m| m.accepted.as_ref().is_some_and(|a| a.push == *push)));
            }
            (Decision::Record(NasChange::Unmapped), Some(m)) => {
                let over = phase == Some(NodePhase::Gone) || (m.abandon && m.authority == Authority::Nas);
                prop_assert!(m.want == Want::Gone && over && export.is_none());
                prop_assert!(m.authority != Authority::Node || m.accepted.as_ref().is_some_and(|a| a.last), "not home");
            }
            (Decision::Record(NasChange::Order { .. }), Some(m)) => {
                prop_assert!(m.push.is_none() && m.authority == Authority::Node);
            }
            _ => {}
        }
    }

    #[test]
    fn an_assignment_has_a_higher_revision_when_anything_in_it_changed(v in any_row(), f in any_facts()) {
        let Some(next) = assigned(&v, f, true) else { return Ok(()) };
        let Some(last) = &v.assign else { return Ok(()) };
        prop_assert_eq!(next.revision == last.revision, next == *last);
        prop_assert!(next.revision >= last.revision);
        if let (Some(m), true) = (&v.mapping, next.release) {
            let home = m.authority == Authority::Node && m.want == Want::Gone && m.accepted.as_ref().is_some_and(|a| a.last);
            prop_assert!(home || (m.authority == Authority::Nas && m.layer == NasLayer::Disk));
        }
        prop_assert!(!next.granted || next.back.as_ref().is_none_or(|b| !b.granted));
    }
}
