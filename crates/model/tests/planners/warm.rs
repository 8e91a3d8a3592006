//! What becomes of warm copies: which go, and that none goes which may be the only copy.

use crate::{
    kernel_node::{copy, device, point, row, seen, session, stuck, with},
    things::*,
};
use img_storage_model::{
    Decision, Epoch, Fact, VolumeId,
    messages::{NodePhase, Want},
    node::{
        Going,
        Layer::{Local, Remote},
        Lies, NodeChange, NodeRecord, Truth, Warm,
        kernel::{self, Kept, LocalZvol, NodeStep, Quota, Table, needs, plan, surplus},
    },
};
use jiff::Timestamp;
use proptest::prelude::*;
use uuid::Uuid;

/// A mapping that was over when the NAS had snapshot 1.
fn over() -> NodeRecord {
    let mut record = with(row(Lies::Remote, Want::Gone), |a| a.granted = true);
    record.apply(NodeChange::Ended { warm: true, home: Some(point(1)) }, Timestamp::UNIX_EPOCH);
    record
}

fn going() -> NodeRecord {
    let mut record = over();
    record.apply(NodeChange::Going(Going::Quota), Timestamp::UNIX_EPOCH);
    record
}

fn kept(snapshots: &[u8]) -> LocalZvol {
    LocalZvol { receives: None, reserved: false, ..copy(snapshots) }
}

fn next(record: &NodeRecord, local: Option<LocalZvol>) -> Decision<NodeStep, NodeChange> {
    plan(record, &seen(None, None, local, false))
}

fn stays(decision: &Decision<NodeStep, NodeChange>) -> bool {
    matches!(decision, Decision::Record(NodeChange::Stays(_)))
}

#[test]
fn a_warm_copy_gives_back_what_it_does_not_use_and_goes_when_it_is_to() {
    assert_eq!(next(&over(), Some(kept(&[1]))), Decision::Rest);
    let reserved = LocalZvol { reserved: true, ..kept(&[1]) };
    assert_eq!(next(&over(), Some(reserved)), Decision::Do(NodeStep::UnreserveLocal));
    assert_eq!(next(&going(), Some(kept(&[0, 1]))), Decision::Do(NodeStep::DestroyWarm { home: point(1) }));
    assert_eq!(next(&going(), Some(kept(&[1]))), Decision::Do(NodeStep::DestroyWarm { home: point(1) }), "cut off half way");
    assert_eq!(next(&going(), Some(kept(&[]))), Decision::Do(NodeStep::DestroyLocal), "cut off in the last moment");
    assert_eq!(next(&going(), None), Decision::Record(NodeChange::WarmGone));
    let mut gone = going();
    gone.apply(NodeChange::WarmGone, Timestamp::UNIX_EPOCH);
    assert_eq!((next(&gone, None), gone.local), (Decision::Rest, Some(E)));
}

#[test]
fn what_may_be_the_only_copy_stays_and_says_why() {
    assert!(stays(&next(&going(), Some(kept(&[1, 2])))), "a snapshot that the NAS is not known to have");
    assert!(stays(&next(&going(), Some(LocalZvol { written: 1, ..kept(&[1]) }))));
    let another = img_storage_model::snapshot::Snapshot { guid: 9, ..point(1) };
    assert!(stays(&next(&going(), Some(LocalZvol { snapshots: vec![another], ..kept(&[]) }))), "a name is not enough");
    let old = NodeRecord { warm: Some(Warm { going: Some(Going::Quota), ..Warm::default() }), ..over() };
    assert!(stays(&next(&old, Some(kept(&[1])))), "a row that says nothing of what is home");
    // What came in a stream after the end is the NAS's, and so is what it accepted.
    let late = LocalZvol { received: true, ..kept(&[1, 2]) };
    assert_eq!(next(&going(), Some(late)), Decision::Do(NodeStep::DestroyWarm { home: point(2) }));
    let accepted = with(old, |a| a.accepted = Some(snapshot(1)));
    assert_eq!(next(&accepted, Some(kept(&[1]))), Decision::Do(NodeStep::DestroyWarm { home: point(1) }));
    let mut stayed = going();
    stayed.apply(NodeChange::Stays("x".to_owned()), Timestamp::UNIX_EPOCH);
    assert_eq!(next(&stayed, Some(kept(&[1, 2]))), Decision::Rest, "nobody asks again");
}

#[test]
fn only_what_is_known_to_be_home_is_remembered_as_such() {
    let ended = |record: &NodeRecord, local| match next(record, Some(local)) {
        Decision::Record(NodeChange::Ended { warm: true, home }) => home,
        other => panic!("{other:?}"),
    };
    let gone = |granted| with(row(Lies::Remote, Want::Gone), |a| a.granted = granted);
    assert_eq!(ended(&gone(false), kept(&[1])), None, "that it is not known to have been used is no proof");
    let before = NodeRecord { warm: Some(Warm { home: Some(point(1)), ..Warm::default() }), ..gone(false) };
    assert_eq!(ended(&before, kept(&[1])), Some(point(1)), "as it was before");
    assert_eq!(ended(&before, kept(&[1, 2])), None);
    assert_eq!(ended(&gone(false), LocalZvol { written: 1, ..kept(&[1]) }), None);
    assert_eq!(ended(&gone(true), kept(&[1])), None, "it was permitted to switch, and its ledger may be an old one");
    assert_eq!(ended(&gone(true), LocalZvol { received: true, ..kept(&[1]) }), Some(point(1)));
}

#[test]
fn what_was_found_to_be_perhaps_the_only_copy_is_not_overwritten_by_a_new_mapping() {
    let at = |stays: Option<&str>| {
        let warm = Some(Warm { stays: stays.map(str::to_owned), home: Some(point(1)), ..Warm::default() });
        let record = with(row(Lies::Remote, Want::Local), |a| a.kernel.as_mut().unwrap().fresh = true);
        NodeRecord { warm, ..record }
    };
    let next =
        |record: &NodeRecord, local| plan(record, &seen(Some(session(true)), Some(Table::Linear(Remote)), Some(local), false));
    assert_eq!(next(&at(None), kept(&[1])), Decision::Do(NodeStep::DestroyLocal));
    assert!(stuck(&next(&at(Some("x")), kept(&[1]))));
    assert!(stuck(&next(&at(None), kept(&[1, 2]))), "its newest snapshot is not known to be home");
    let mut dirty = at(Some("x"));
    dirty.assign.kernel.as_mut().unwrap().fresh = false;
    assert!(stuck(&next(&dirty, LocalZvol { written: 1, ..kept(&[1]) })));
    let mut used = at(Some("x"));
    used.apply(NodeChange::Ended { warm: true, home: None }, Timestamp::UNIX_EPOCH);
    assert!(used.warm.as_ref().unwrap().stays.is_some(), "a mapping that stayed on the NAS proves nothing");
    used.apply(NodeChange::Ended { warm: true, home: Some(point(1)) }, Timestamp::UNIX_EPOCH);
    assert!(used.warm.unwrap().stays.is_none());
    assert_eq!(next(&dirty, kept(&[1])), Decision::Do(NodeStep::SetReceives { epoch: Some(E) }), "built on, nothing is lost");
}

#[test]
fn what_a_guest_wrote_that_this_ledger_knows_nothing_of_is_not_rolled_back() {
    let used = LocalZvol { reserved: true, written: 1, ..kept(&[1]) };
    let noted = LocalZvol { unchanged: Some(true), ..used.clone() };
    assert_eq!(next(&over(), Some(noted)), Decision::Do(NodeStep::SettleLocal), "no guest wrote that");
    assert_eq!(next(&over(), Some(used.clone())), Decision::Rest, "it stays reserved, which shows that a guest had it");
    let new = row(Lies::Remote, Want::Local);
    let home = Some(Warm { home: Some(point(1)), ..Warm::default() });
    for mut record in [new.clone(), NodeRecord { warm: home, ..new }] {
        record.assign.accepted = Some(point(1).id);
        let next = |local| plan(&record, &seen(Some(session(true)), Some(Table::Linear(Remote)), Some(local), false));
        assert!(stuck(&next(used.clone())), "its newest snapshot came home, and what was written since did not");
        let by_hand = LocalZvol { reserved: false, ..used.clone() };
        assert_eq!(next(by_hand), Decision::Do(NodeStep::RollBackLocal { to: point(1).id }), "nobody's guest");
    }
}

#[test]
fn what_zfs_noted_after_a_power_cut_is_put_right_before_anything_else() {
    let noted = LocalZvol { written: 1, unchanged: Some(true), ..copy(&[1, 2]) };
    let f = |local| seen(Some(session(true)), None, Some(local), true);
    for lies in [Lies::Remote, Lies::OverRemote, Lies::MergingLocal, Lies::Local, Lies::OverLocal, Lies::MergingRemote] {
        let record = row(lies, Want::Local);
        let settled = Decision::Do(NodeStep::SettleLocal);
        assert_eq!(plan(&record, &f(noted.clone())), settled, "{lies:?}");
        for other in [
            LocalZvol { written: 0, ..noted.clone() },
            LocalZvol { unchanged: None, ..noted.clone() },
            LocalZvol { unchanged: Some(false), ..noted.clone() },
        ] {
            assert_ne!(plan(&record, &f(other)), settled, "{lies:?}");
        }
    }
    let unknown = NodeRecord { local: None, ..row(Lies::Remote, Want::Local) };
    assert!(!matches!(plan(&unknown, &f(noted)), Decision::Do(NodeStep::SettleLocal)), "it is not this ledger's");
}

#[test]
fn a_device_that_is_newer_than_the_ledger_is_left_alone_until_the_nas_says_its_word_again() {
    let under_a_guest = |record: &NodeRecord| plan(record, &seen(None, Some(Table::Linear(Local)), Some(copy(&[1, 2])), false));
    let before = |record: NodeRecord| with(record, |a| a.epoch = Epoch(E.0 - 1));
    let mut ended = before(row(Lies::Remote, Want::Gone));
    ended.apply(NodeChange::Ended { warm: true, home: Some(point(1)) }, Timestamp::UNIX_EPOCH);
    for old in [ended.clone(), before(row(Lies::Local, Want::Gone)), before(row(Lies::Remote, Want::Remote))] {
        assert!(stuck(&under_a_guest(&old)), "it is not of the mapping that this ledger knows: {:?}", under_a_guest(&old));
    }
    let again = NodeRecord { assign: row(Lies::Remote, Want::Local).assign, ..ended };
    assert_eq!(under_a_guest(&again), Decision::Record(NodeChange::Lies(Lies::Local)));
}

#[test]
fn a_row_of_an_older_program_is_read() {
    let mut json = serde_json::to_value(over()).unwrap();
    json.as_object_mut().unwrap().remove("warm");
    let row: NodeRecord = serde_json::from_value(json).unwrap();
    assert_eq!((row.warm.clone(), row.kept()), (None, Some(Warm::default())));
}

fn id(n: u8) -> VolumeId {
    VolumeId(Uuid::from_u128(u128::from(n)))
}

fn there(n: u8, since: i64, used: u64) -> Kept {
    Kept { volume: id(n), since: Timestamp::from_second(since).unwrap(), used, going: false, stays: false }
}

#[test]
fn what_was_used_longest_ago_goes_first() {
    let three = [there(1, 30, 10), there(2, 10, 10), there(3, 20, 10)];
    assert_eq!(surplus(&three, 30, 0), []);
    assert_eq!(surplus(&three, 29, 0), [(id(2), Going::Quota)]);
    assert_eq!(surplus(&three, 10, 0), [(id(2), Going::Quota), (id(3), Going::Quota)]);
    assert_eq!(surplus(&three, 30, 11), [(id(2), Going::Room), (id(3), Going::Room)]);
    assert_eq!(surplus(&three, 20, 15), [(id(2), Going::Quota), (id(3), Going::Room)]);
    assert_eq!(surplus(&[there(1, 1, 0)], 0, 0), [(id(1), Going::Quota)], "none is none");
    let leaves = [Kept { going: true, ..there(1, 1, 10) }, there(2, 2, 10)];
    assert_eq!(surplus(&leaves, 10, 10), [], "what goes already is enough");
    let held = [Kept { stays: true, ..there(1, 1, 10) }, there(2, 2, 10)];
    assert_eq!(surplus(&held, 10, 0), [(id(2), Going::Quota)], "what cannot go counts");
}

#[test]
fn room_is_written_as_operators_write_it() {
    for (text, quota) in [
        ("100G", Quota::Bytes(100 << 30)),
        ("0", Quota::Bytes(0)),
        ("none", Quota::Bytes(0)),
        ("20%", Quota::Percent(20)),
        ("0%", Quota::Percent(0)),
    ] {
        assert_eq!(text.parse::<Quota>().unwrap(), quota, "{text}");
    }
    for bad in ["", "%", "101%", "-1%", "1.5%", "much", "20 %x"] {
        assert!(bad.parse::<Quota>().is_err(), "{bad}");
    }
    assert_eq!(Quota::default().bytes(1000), 200);
    assert_eq!(Quota::Percent(100).bytes(u64::MAX), u64::MAX / 100 * 100);
    assert!(needs(size(), 0) > 3 * size().bytes() && needs(size(), u64::MAX) > 2 * size().bytes());
}

prop_compose! {
    fn any_kept()(since in 0i64..4, used in 0u64..20, going in any::<bool>(), stays in any::<bool>()) -> Kept {
        Kept { going, stays, ..there(0, since, used) }
    }
}

proptest! {
    #[test]
    fn no_more_go_than_have_to(all in proptest::collection::vec(any_kept(), 0..8), quota in 0u64..60, lacks in 0u64..60) {
        let all: Vec<Kept> = (0u8..).zip(all).map(|(n, k)| Kept { volume: id(n), ..k }).collect();
        let gone = surplus(&all, quota, lacks);
        let goes = |k: &&Kept| gone.iter().any(|(volume, _)| *volume == k.volume);
        let left: u64 = all.iter().filter(|k| !k.going && !goes(k)).map(|k| k.used).sum();
        let freed: u64 = all.iter().filter(|k| k.going || goes(k)).map(|k| k.used).sum();
        prop_assert!(all.iter().filter(goes).all(|k| !k.going && !k.stays));
        let can = |k: &Kept| !k.going && !k.stays;
        let rest: Vec<&Kept> = all.iter().filter(|k| can(k) && !goes(k)).collect();
        if !rest.is_empty() {
            prop_assert!(left <= quota && quota > 0 && freed >= lacks, "enough went");
        }
        // Without the last of them it would not have been enough, and nothing older was left.
        if let Some((last, _)) = gone.last() {
            let last = all.iter().find(|k| k.volume == *last).unwrap();
            prop_assert!(left + last.used > quota || quota == 0 || freed - last.used < lacks);
            prop_assert!(rest.iter().all(|k| k.since >= last.since));
        }
    }

    #[test]
    fn a_warm_copy_goes_only_when_everything_speaks_for_it(
        snapshots in proptest::sample::subsequence(vec![0u8, 1, 2], 0..=3), flags in any::<(bool, bool, bool, bool, bool)>(),
        home in proptest::option::of(0u8..3), accepted in proptest::option::of(0u8..3), going in any::<bool>(), ended in 1u64..5,
        truth in any::<bool>(),
    ) {
        let (written, received, reserved, used, overlay) = flags;
        let warm = Warm { home: home.map(point), going: going.then_some(Going::Deleted), ..Warm::default() };
        let truth = if truth { Truth::Remote } else { Truth::Local };
        let record = with(over(), |a| a.accepted = accepted.map(snapshot));
        let record = NodeRecord { ended: Some(Epoch(ended)), warm: Some(warm), truth, ..record };
        let local = LocalZvol { written: u64::from(written), received, reserved, ..kept(&snapshots) };
        let mut f = seen(None, None, Some(local), overlay);
        if used {
            f.device = Fact::Known(Some(device(Table::Linear(Local))));
            f.session = Fact::Known(Some(session(true)));
        }
        if let Decision::Do(NodeStep::DestroyWarm { home: named }) = plan(&record, &f) {
            let newest = snapshots.last().copied();
            prop_assert!(going && !written && !used && !overlay && Epoch(ended) >= E && truth == Truth::Remote);
            prop_assert_eq!(newest.map(point), Some(named));
            prop_assert!(received || newest == home || newest == accepted);
        }
    }
}

#[test]
fn an_epoch_of_another_mapping_takes_no_streams() {
    let late = LocalZvol { receives: Some(Epoch(2)), ..copy(&[1]) };
    let f = seen(Some(session(true)), Some(Table::Linear(Remote)), Some(late), false);
    let r = kernel::report(&row(Lies::Remote, Want::Local), &f, "x", None);
    assert_eq!((r.phase, r.kernel.unwrap().receives), (NodePhase::Remote, false));
}
