//! The NAS's planner on the kernel plane.

use crate::{
    kernel_node::{point, writes},
    things::*,
};
use img_storage_model::{
    Decision, Epoch, Fact, Plane,
    messages::{IscsiLogin, KernelReport, NodePhase, Peer, Report, Want},
    nas::{
        self, Accepted, Authority, Context, Mapping, NasChange, PushState, Stage, VolumeRecord,
        kernel::{Copying, Export, Held, NasFacts, NasStep, Round, Stream, Way, Zvol, iqn},
    },
    node::{JobState, PushOutcome, PushResult, StepResult},
};
use jiff::Timestamp;
use proptest::prelude::*;

pub fn mapped(m: Mapping) -> VolumeRecord {
    VolumeRecord { plane: Plane::Kernel, ..row(Some(m)) }
}

fn unmapped() -> VolumeRecord {
    VolumeRecord { plane: Plane::Kernel, ..row(None) }
}

pub fn zvol(snapshots: &[u8]) -> Zvol {
    Zvol {
        size: size().bytes(),
        allocated: 0,
        snapshots: snapshots.iter().map(|n| Held { snapshot: point(*n), held: true }).collect(),
        written: 0,
        foreign: None,
        resume: None,
    }
}

fn export(epoch: Epoch) -> Export {
    let iqn = iqn("nas", volume(), epoch);
    Export { epoch, iqn, initiator: Some("iqn.c0".to_owned()), complete: true, session: false }
}

pub fn facts(zvol: Zvol, exported: bool) -> NasFacts {
    NasFacts {
        zvol: Fact::Known(Some(zvol)),
        exports: Fact::Known(exported.then(|| export(E)).into_iter().collect()),
        import: Fact::Known(None),
        reader: Fact::Known(false),
        stream: None,
    }
}

pub fn streaming(f: NasFacts, way: Way, to: u8, state: JobState) -> NasFacts {
    NasFacts { stream: Some(Stream { way, to: snapshot(to), job: job(state) }), ..f }
}

pub fn told(phase: NodePhase, pivoted: bool, snapshots: &[u8]) -> Report {
    let kernel = KernelReport {
        dataset: "tank/x".to_owned(),
        receives: matches!(phase, NodePhase::Copying | NodePhase::Switching),
        snapshots: snapshots.iter().map(|n| point(*n)).collect(),
        resume: None,
        overlaid: matches!(phase, NodePhase::Switching | NodePhase::BringingBack),
        writes: None,
    };
    let detached = pivoted && matches!(phase, NodePhase::Local | NodePhase::Returning | NodePhase::BringingBack);
    Report { detached, kernel: Some(kernel), ..report(phase, pivoted) }
}

pub fn decide(v: &VolumeRecord, f: &NasFacts, report: Option<&Report>) -> nas::kernel::Decision {
    let context = Context { report, nas: "nas", initiator: Some("iqn.c0"), password: "secret", ..Context::default() };
    nas::kernel::plan(v, f, &context)
}

fn waits(decision: &nas::kernel::Decision) -> bool {
    matches!(decision, Decision::Wait(_))
}

fn stuck(decision: &nas::kernel::Decision) -> bool {
    matches!(decision, Decision::Stuck(_))
}

fn peer() -> Peer {
    Peer { host: host("c0"), address: "c0".to_owned(), dataset: "tank/x".to_owned(), epoch: E }
}

fn send(from: Option<u8>, to: u8) -> nas::kernel::Decision {
    let (from, to) = (from.map(snapshot), snapshot(to));
    Decision::Do(NasStep::Send { peer: peer(), from, to, resume: None, speed: Default::default() })
}

pub fn copying(copying: Copying) -> VolumeRecord {
    mapped(Mapping { copying, ..mapping(Want::Local, Authority::Nas) })
}

#[test]
fn a_volume_is_made_and_destroyed() {
    let nothing = NasFacts { zvol: Fact::Known(None), ..facts(zvol(&[]), false) };
    let new = VolumeRecord { stage: Stage::Creating, ..unmapped() };
    assert_eq!(decide(&new, &nothing, None), Decision::Do(NasStep::CreateZvol { size: size() }));
    assert_eq!(decide(&new, &facts(zvol(&[]), false), None), Decision::Do(NasStep::SyncZvol));
    assert!(stuck(&decide(&unmapped(), &nothing, None)), "it is not made again");
    let doomed = VolumeRecord { stage: Stage::Deleting, ..unmapped() };
    assert_eq!(decide(&doomed, &facts(zvol(&[1]), true), None), Decision::Do(NasStep::Unexport { epoch: E }));
    assert_eq!(decide(&doomed, &facts(zvol(&[1]), false), None), Decision::Do(NasStep::DestroyZvol));
    assert_eq!(decide(&doomed, &nothing, None), Decision::Record(NasChange::Deleted), "once it is seen to be gone");
    let crowded = facts(zvol(&[1, 2, 3, 4]), false);
    assert_eq!(decide(&unmapped(), &crowded, None), Decision::Do(NasStep::DropSnapshot { snapshot: snapshot(1) }));
    assert_eq!(decide(&unmapped(), &facts(zvol(&[1, 2, 3]), false), None), Decision::Rest);
    let cut_off = Zvol { resume: Some("t".to_owned()), ..zvol(&[1]) };
    assert_eq!(decide(&unmapped(), &facts(cut_off, false), None), Decision::Do(NasStep::DiscardReceived));
}

#[test]
fn a_node_that_does_not_know_of_its_newest_writes_is_not_waited_for_in_silence() {
    let v = mapped(mapping(Want::Local, Authority::Node));
    let old = told(NodePhase::Attaching, false, &[1, 2]);
    assert!(stuck(&decide(&v, &facts(zvol(&[1]), false), Some(&old))));
}

#[test]
fn a_mapping_is_exported_to_its_initiator_with_the_secrets_of_its_epoch() {
    let v = mapped(mapping(Want::Remote, Authority::Nas));
    let f = facts(zvol(&[]), false);
    let serial = format!("{}e3", volume().0.simple());
    let login = IscsiLogin { user: "img-storage-e3".to_owned(), password: "secret".to_owned(), serial };
    let made = Decision::Do(NasStep::Export { epoch: E, iqn: iqn("nas", volume(), E), initiator: "iqn.c0".to_owned(), login });
    assert_eq!(decide(&v, &f, None), made);
    let half = NasFacts { exports: Fact::Known(vec![Export { complete: false, ..export(E) }]), ..f.clone() };
    assert_eq!(decide(&v, &half, None), made, "one that was cut off in the making is completed");
    let unnamed = nas::kernel::plan(&v, &f, &Context::default());
    assert!(waits(&unnamed), "it does not let in just anybody: {unnamed:?}");
    let old = NasFacts { exports: Fact::Known(vec![export(Epoch(2)), export(E)]), ..f };
    assert_eq!(decide(&v, &old, None), Decision::Do(NasStep::Unexport { epoch: Epoch(2) }));
    assert_eq!(decide(&v, &facts(zvol(&[]), true), Some(&told(NodePhase::Remote, false, &[]))), Decision::Rest);
}

#[test]
fn differences_go_to_the_node_until_little_is_left() {
    let at_node = |snapshots: &[u8]| told(NodePhase::Copying, false, snapshots);
    let first = copying(Copying::default());
    let round = |id| copying(Copying { round: Some(snapshot(id)), ..Default::default() });
    assert_eq!(decide(&first, &facts(zvol(&[]), true), Some(&at_node(&[]))), Decision::Record(NasChange::Round));
    let take = Decision::Do(NasStep::TakeSnapshot { snapshot: snapshot(1) });
    assert_eq!(decide(&round(1), &facts(zvol(&[]), true), Some(&at_node(&[]))), take);
    assert_eq!(decide(&round(1), &facts(zvol(&[1]), true), Some(&at_node(&[]))), send(None, 1));
    assert_eq!(decide(&round(2), &facts(zvol(&[1, 2]), true), Some(&at_node(&[1]))), send(Some(1), 2));
    let running = streaming(facts(zvol(&[1]), true), Way::ToNode, 1, JobState::Running);
    assert!(waits(&decide(&round(1), &running, Some(&at_node(&[])))));
    let over = streaming(facts(zvol(&[1]), true), Way::ToNode, 1, JobState::Done);
    assert_eq!(decide(&round(1), &over, Some(&at_node(&[1]))), Decision::Do(NasStep::EndStream));
    assert_eq!(decide(&round(1), &facts(zvol(&[1]), true), Some(&at_node(&[1]))), Decision::Record(NasChange::RoundDone));
    let done = |last| copying(Copying { rounds: 1, last, ..Default::default() });
    let pivot = Decision::Record(NasChange::Authority(Authority::MaybeNode));
    assert_eq!(decide(&done(None), &facts(zvol(&[1]), true), Some(&at_node(&[1]))), pivot);
    let much = facts(Zvol { written: 1 << 30, ..zvol(&[1]) }, true);
    let slow = Some(Round { moved: 1 << 30, took_ms: 60_000 });
    assert_eq!(decide(&done(slow), &much, Some(&at_node(&[1]))), Decision::Record(NasChange::Round));
    let fast = Some(Round { moved: 4 << 30, took_ms: 2_000 });
    assert_eq!(decide(&done(fast), &much, Some(&at_node(&[1]))), pivot, "a second is short enough");
}

#[test]
fn a_kept_copy_is_built_on_or_goes_first() {
    let at_node = |snapshots: &[u8]| told(NodePhase::Copying, false, snapshots);
    let v = |fresh| copying(Copying { fresh, ..Default::default() });
    let f = facts(zvol(&[2, 3]), true);
    assert_eq!(decide(&v(false), &f, Some(&at_node(&[1, 2]))), Decision::Record(NasChange::Round), "2 is common");
    assert_eq!(decide(&v(false), &f, Some(&at_node(&[1]))), Decision::Record(NasChange::Fresh(true)));
    assert_eq!(decide(&v(false), &f, Some(&at_node(&[2, 4]))), Decision::Record(NasChange::Fresh(true)), "4 is nowhere else");
    assert!(waits(&decide(&v(true), &f, Some(&at_node(&[1])))), "the node destroys it, not a stream");
    assert_eq!(decide(&v(true), &f, Some(&at_node(&[]))), Decision::Record(NasChange::Fresh(false)));
}

#[test]
fn authority_does_not_come_back_because_of_an_old_word() {
    // It was sent before the pivot and came after the word that told of it.
    let v = mapped(mapping(Want::Local, Authority::Node));
    for phase in [NodePhase::Remote, NodePhase::Copying] {
        let decision = decide(&v, &facts(zvol(&[1]), true), Some(&told(phase, false, &[1])));
        assert!(waits(&decision), "{decision:?}");
    }
    let maybe = mapped(mapping(Want::Local, Authority::MaybeNode));
    let pivoted = told(NodePhase::Switching, true, &[1]);
    assert_eq!(decide(&maybe, &facts(zvol(&[1]), true), Some(&pivoted)), Decision::Record(NasChange::Authority(Authority::Node)));
    let remote = mapped(mapping(Want::Remote, Authority::Nas));
    assert!(stuck(&decide(&remote, &facts(zvol(&[1]), true), Some(&pivoted))), "two truths are not decided here");
}

#[test]
fn the_base_is_taken_when_the_overlay_is_in_place() {
    let v = |base: Option<u8>| {
        let copying = Copying { base: base.map(snapshot), ..Default::default() };
        mapped(Mapping { copying, ..mapping(Want::Local, Authority::Node) })
    };
    let switching = |overlaid, snapshots: &[u8]| {
        let r = told(NodePhase::Switching, true, snapshots);
        Report { kernel: r.kernel.map(|k| KernelReport { overlaid, ..k }), ..r }
    };
    let f = |z| facts(z, true);
    assert!(waits(&decide(&v(None), &f(zvol(&[1])), Some(&switching(false, &[1])))));
    assert_eq!(decide(&v(None), &f(zvol(&[1])), Some(&switching(true, &[1]))), Decision::Record(NasChange::Base));
    let take = Decision::Do(NasStep::TakeSnapshot { snapshot: snapshot(2) });
    assert_eq!(decide(&v(Some(2)), &f(zvol(&[1])), Some(&switching(true, &[1]))), take);
    assert_eq!(decide(&v(Some(2)), &f(zvol(&[1, 2])), Some(&switching(true, &[1]))), send(Some(1), 2));
    let written = f(Zvol { written: 512, ..zvol(&[1, 2]) });
    assert!(stuck(&decide(&v(Some(2)), &written, Some(&switching(true, &[1])))), "somebody wrote here");
    // The node has it all: its session goes, then the export.
    let local = told(NodePhase::Local, true, &[1, 2]);
    assert_eq!(decide(&v(Some(2)), &f(zvol(&[1, 2])), Some(&local)), Decision::Do(NasStep::Unexport { epoch: E }));
}

fn pushing(push: u8, last: bool) -> PushState {
    PushState { push: snapshot(push), ordered: Timestamp::UNIX_EPOCH, last, port: 0, verified: false }
}

#[test]
fn a_write_back_is_fetched_held_and_accepted() {
    let v = mapped(Mapping { push: Some(pushing(2, false)), ..mapping(Want::Local, Authority::Node) });
    let taken = |n: u8| PushResult { push: snapshot(2), outcome: PushOutcome::Taken(point(n)) };
    let r = Report { pushed: Some(taken(2)), ..told(NodePhase::Local, true, &[1, 2]) };
    let fetch = NasStep::Receive { peer: peer(), from: snapshot(1), to: snapshot(2), resume: None, speed: Default::default() };
    let f = |z| facts(z, false);
    assert!(waits(&decide(&v, &f(zvol(&[1])), Some(&told(NodePhase::Local, true, &[1])))));
    assert_eq!(decide(&v, &f(zvol(&[1])), Some(&r)), Decision::Do(fetch));
    let written = f(Zvol { written: 512, ..zvol(&[1]) });
    assert!(stuck(&decide(&v, &written, Some(&r))), "nothing is received over what somebody wrote");
    let foreign = f(Zvol { foreign: Some("daily".to_owned()), ..zvol(&[1]) });
    assert!(stuck(&decide(&v, &foreign, Some(&r))));
    assert!(stuck(&decide(&v, &f(zvol(&[1, 3])), Some(&r))), "3 is not on the node");
    assert!(stuck(&decide(&v, &f(zvol(&[4])), Some(&r))), "there is no difference to send");
    let loose = Zvol { snapshots: vec![Held { snapshot: point(2), held: false }], ..zvol(&[]) };
    assert_eq!(decide(&v, &f(loose), Some(&r)), Decision::Do(NasStep::Hold { snapshot: snapshot(2) }));
    assert_eq!(decide(&v, &f(zvol(&[1, 2])), Some(&r)), Decision::Record(NasChange::Accepted));
    let forged = Report { pushed: Some(taken(9)), ..r };
    assert!(stuck(&decide(&v, &f(zvol(&[1, 2])), Some(&forged))), "a name alone is not enough");
}

#[test]
fn what_came_home_makes_older_snapshots_superfluous() {
    let accepted = Some(Accepted { push: snapshot(3), at: Timestamp::UNIX_EPOCH, last: false });
    let v = mapped(Mapping { accepted, ..mapping(Want::Local, Authority::Node) });
    let r = told(NodePhase::Local, true, &[3]);
    let drop = Decision::Do(NasStep::DropSnapshot { snapshot: snapshot(1) });
    assert_eq!(decide(&v, &facts(zvol(&[1, 2, 3]), false), Some(&r)), drop);
    assert_eq!(decide(&v, &facts(zvol(&[2, 3]), false), Some(&r)), Decision::Rest);
}

#[test]
fn the_guest_comes_back_when_everything_under_its_overlay_is_home() {
    let v = |copying| mapped(Mapping { copying, ..mapping(Want::Remote, Authority::Node) });
    let f = facts(zvol(&[2]), false);
    let local = Report { dirty: Some(1), ..told(NodePhase::Local, true, &[2]) };
    assert_eq!(decide(&v(Copying::default()), &f, Some(&local)), Decision::Record(NasChange::BackRound));
    let rounds = Copying { back_rounds: 1, ..Default::default() };
    assert_eq!(decide(&v(rounds), &f, Some(&local)), Decision::Record(NasChange::Back(true)));
    let back = Copying { back: true, ..Default::default() };
    assert!(waits(&decide(&v(back.clone()), &f, Some(&local))));
    let due = Context { report: Some(&local), nas: "nas", due: true, ..Context::default() };
    let meanwhile = nas::kernel::plan(&v(back.clone()), &f, &due);
    assert_eq!(meanwhile, Decision::Record(NasChange::Order { last: false }), "the overlay may take long");
    let over = told(NodePhase::BringingBack, true, &[2]);
    assert_eq!(decide(&v(back.clone()), &f, Some(&over)), Decision::Record(NasChange::BackOrder));
    let home = |accepted| {
        let accepted = Some(Accepted { push: snapshot(accepted), at: Timestamp::UNIX_EPOCH, last: false });
        let copying = Copying { back_push: Some(snapshot(2)), ..back.clone() };
        mapped(Mapping { copying, accepted, ..mapping(Want::Remote, Authority::Node) })
    };
    assert_eq!(decide(&home(1), &f, Some(&over)), Decision::Record(NasChange::BackOrder), "an older one is not enough");
    assert!(matches!(decide(&home(2), &f, Some(&over)), Decision::Do(NasStep::Export { .. })));
    let granted = Decision::Record(NasChange::Authority(Authority::MaybeNas));
    assert_eq!(decide(&home(2), &facts(zvol(&[2]), true), Some(&over)), granted);
}

#[test]
fn a_stream_that_is_over_is_remembered_by_what_it_took() {
    let v = mapped(mapping(Want::Local, Authority::Nas));
    let done = StepResult::Streamed { moved: 7, took_ms: 9 };
    let change = NasChange::Streamed { moved: 7, took_ms: 9 };
    assert_eq!(nas::kernel::after(&v, &NasStep::EndStream, &done), Some(change.clone()));
    assert_eq!(nas::kernel::after(&v, &NasStep::EndStream, &StepResult::Done), None);
    let mut v = v;
    v.apply(&change, Timestamp::UNIX_EPOCH, || unreachable!());
    assert_eq!(v.mapping.unwrap().copying.last, Some(Round { moved: 7, took_ms: 9 }));
}

prop_compose! {
    fn any_zvol()(
        snapshots in proptest::sample::subsequence(vec![0u8, 1, 2], 0..=3), written in 0u64..2, foreign in any::<bool>(),
        resume in any::<bool>(), short in any::<bool>(), held in any::<bool>(),
    ) -> Zvol {
        let all = zvol(&snapshots);
        Zvol {
            size: if short { 1 << 20 } else { size().bytes() },
            snapshots: all.snapshots.iter().map(|s| Held { held, ..*s }).collect(),
            written,
            foreign: foreign.then(|| "daily".to_owned()),
            resume: resume.then(|| "token".to_owned()),
            ..all
        }
    }
}

prop_compose! {
    fn any_facts()(
        zvol in proptest::option::weighted(0.9, any_zvol()),
        exports in proptest::collection::vec((any_epoch(), any::<bool>()), 0..3),
        reader in any::<bool>(),
        stream in proptest::option::of((any::<bool>(), any_snapshot(), any_job())),
    ) -> NasFacts {
        let exports = exports.into_iter().map(|(epoch, complete)| Export { complete, ..export(epoch) }).collect();
        let way = |to_node| if to_node { Way::ToNode } else { Way::FromNode };
        let stream = stream.map(|(to_node, to, job)| Stream { way: way(to_node), to, job });
        let import = Fact::Known(None);
        NasFacts { zvol: Fact::Known(zvol), exports: Fact::Known(exports), import, reader: Fact::Known(reader), stream }
    }
}

prop_compose! {
    fn any_told()(
        r in any_report(), snapshots in proptest::sample::subsequence(vec![0u8, 1, 2], 0..=3), kernel in any::<bool>(),
        receives in any::<bool>(), overlaid in any::<bool>(), count in proptest::option::of(5u64..7), taken in proptest::option::of(0u8..3), dirty in proptest::option::of(0u64..9),
    ) -> Report {
        let pushed = taken.map(|n| PushResult { push: snapshot(n), outcome: PushOutcome::Taken(point(n)) }).or(r.pushed);
        let snapshots = snapshots.into_iter().map(point).collect();
        let (dataset, writes) = ("tank/x".to_owned(), count.map(writes));
        let kernel = kernel.then_some(KernelReport { dataset, receives, snapshots, resume: None, overlaid, writes });
        Report { pushed, kernel, dirty, ..r }
    }
}

prop_compose! {
    fn any_row()(
        stage in prop_oneof![8 => Just(Stage::Ready), 1 => Just(Stage::Creating), 1 => Just(Stage::Deleting)],
        want in any_want(),
        authority in prop_oneof![
            Just(Authority::Nas), Just(Authority::MaybeNode), Just(Authority::Node), Just(Authority::MaybeNas),
        ],
        is_mapped in proptest::bool::weighted(0.9),
        abandon in any::<bool>(),
        push in proptest::option::of((0u8..3, any::<bool>())),
        accepted in proptest::option::of((any_snapshot(), any::<bool>())),
        ids in (proptest::option::of(any_snapshot()), proptest::option::of(any_snapshot()), proptest::option::of(any_snapshot())),
        flags in any::<(bool, bool)>(),
        rounds in 0u32..9,
    ) -> VolumeRecord {
        let (round, base, back_push) = ids;
        let (fresh, back) = flags;
        let copying = Copying { round, rounds, last: None, fresh, base, still: None, back, back_rounds: rounds, back_push };
        let accepted = accepted.map(|(push, last)| Accepted { push, at: Timestamp::UNIX_EPOCH, last });
        let push = push.map(|(n, last)| pushing(n, last));
        let m = Mapping { abandon, push, accepted, copying, ..mapping(want, authority) };
        let v = if is_mapped && stage == Stage::Ready { mapped(m) } else { unmapped() };
        VolumeRecord { stage, ..v }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn nothing_is_done_about_what_cannot_be_seen(v in any_row(), f in any_facts(), r in any_told(), which in 0..4) {
        let blind = match which {
            0 => NasFacts { zvol: unseen(), ..f },
            1 => NasFacts { exports: unseen(), ..f },
            2 => NasFacts { import: unseen(), ..f },
            _ => NasFacts { reader: unseen(), ..f },
        };
        prop_assert!(stuck(&decide(&v, &blind, Some(&r))));
    }

    #[test]
    fn an_answer_to_anything_but_the_newest_assignment_is_no_answer(
        v in any_row(), f in any_facts(), r in any_told(), epoch in 0u64..6, revision in 0u64..8,
    ) {
        prop_assume!((Epoch(epoch), revision) != (E, 5));
        let old = Report { epoch: Epoch(epoch), revision, ..r };
        prop_assert_eq!(decide(&v, &f, Some(&old)), decide(&v, &f, None));
    }

    #[test]
    fn authority_moves_by_an_answer_only(v in any_row(), f in any_facts(), r in any_told()) {
        let moved = decide(&v, &f, None);
        prop_assert!(!matches!(moved, Decision::Record(NasChange::Authority(_))), "{:?}", moved);
        if let (Decision::Record(NasChange::Authority(to)), Some(m)) = (decide(&v, &f, Some(&r)), &v.mapping) {
            let home = m.copying.back_push.is_some() && m.copying.back_push == m.accepted.as_ref().map(|a| a.push);
            let well = match (m.authority, to) {
                (Authority::Nas, Authority::MaybeNode) => m.want == Want::Local && r.phase == NodePhase::Copying && !r.pivoted,
                (Authority::MaybeNode, Authority::Node) => r.pivoted,
                (Authority::MaybeNode, Authority::Nas) => !r.pivoted && m.want == Want::Remote,
                (Authority::MaybeNas, Authority::Nas) => !r.pivoted,
                (Authority::Node, Authority::MaybeNas) => m.want == Want::Remote && r.phase == NodePhase::BringingBack && home,
                (Authority::MaybeNas, Authority::Node) => m.want != Want::Remote && r.pivoted,
                _ => false,
            };
            prop_assert!(well, "{:?} to {:?} by {:?}", m.authority, to, r);
        }
    }

    #[test]
    fn whatever_is_seen(v in any_row(), f in any_facts(), r in proptest::option::of(any_told())) {
        let seen = f.zvol.known().and_then(Option::as_ref);
        let points = seen.map(Zvol::points).unwrap_or_default();
        let at_node = r.as_ref().and_then(|r| r.kernel.as_ref()).map(|k| k.snapshots.clone()).unwrap_or_default();
        let m = v.mapping.as_ref();
        match decide(&v, &f, r.as_ref()) {
            Decision::Do(NasStep::DestroyZvol) => {
                prop_assert_eq!(&v.stage, &Stage::Deleting);
                prop_assert!(f.exports.known().unwrap().is_empty() && f.stream.is_none());
            }
            Decision::Do(NasStep::DropSnapshot { snapshot }) => {
                // The newest, and what is newer than that which came home, stay.
                let kept = points.iter().skip_while(|p| p.id != snapshot).skip(1);
                prop_assert!(kept.clone().count() > 0);
                if let Some(m) = m {
                    let accepted = m.accepted.as_ref().unwrap().push;
                    prop_assert!(kept.clone().any(|p| p.id == accepted));
                }
            }
            Decision::Do(NasStep::Receive { from, to, .. }) => {
                let (m, zvol) = (m.unwrap(), seen.unwrap());
                prop_assert!(m.authority == Authority::Node && m.push.as_ref().is_some_and(|p| p.push == to));
                prop_assert!(zvol.written == 0 && zvol.foreign.is_none());
                prop_assert!(points.last().is_some_and(|p| p.id == from && at_node.contains(p)));
                prop_assert!(at_node.iter().any(|p| p.id == to));
                let unused = f.exports.known().unwrap().is_empty() || r.as_ref().is_some_and(|r| !r.detached || r.phase == NodePhase::BringingBack);
                prop_assert!(unused);
            }
            Decision::Do(NasStep::Send { from, to, .. }) => {
                let r = r.unwrap();
                prop_assert!(r.kernel.as_ref().is_some_and(|k| k.receives));
                prop_assert!(points.iter().any(|p| p.id == to));
                match from {
                    Some(from) => prop_assert!(points.iter().any(|p| p.id == from && at_node.contains(p))),
                    None => prop_assert!(at_node.is_empty()),
                }
            }
            Decision::Do(NasStep::Unexport { epoch }) if epoch == E => {
                let over = r.as_ref().is_some_and(|r| r.phase == NodePhase::Gone || r.detached);
                let abandoned = m.is_some_and(|m| m.abandon && m.authority == Authority::Nas);
                prop_assert!(m.is_none() || over || abandoned);
            }
            Decision::Record(NasChange::Unmapped) => {
                let m = m.unwrap();
                let over = r.as_ref().is_some_and(|r| r.phase == NodePhase::Gone) || (m.abandon && m.authority == Authority::Nas);
                prop_assert!(m.want == Want::Gone && over && f.exports.known().unwrap().is_empty());
            }
            Decision::Record(NasChange::Accepted) => {
                let push = m.unwrap().push.as_ref().unwrap().push;
                prop_assert!(seen.unwrap().point(push).is_some_and(|p| p.held));
            }
            Decision::Record(NasChange::Base) => {
                prop_assert!(r.unwrap().kernel.is_some_and(|k| k.overlaid));
            }
            _ => {}
        }
    }
}
