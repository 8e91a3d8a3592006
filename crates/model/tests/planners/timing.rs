//! When a write-back is due, what proves that none is needed, and what a node is told of speeds.

use crate::{
    nas::{assigned, facts},
    node::{copying, decide, file, record},
    things::*,
};
use img_storage_model::{
    Decision, Interval,
    attribute::{AttributeFrom, Attributes, Changes, Defaults, Effective, Speed, Speeds, effective},
    messages::{Assign, NodePhase, Report, Want},
    nas::{self, Accepted, Authority, Mapping, VolumeRecord},
    node::{
        JobState, Truth,
        qemu::{Moving, NodeStep},
    },
    schedule::{behind_since, clean_at, next_due},
};
use jiff::Timestamp;
use proptest::prelude::*;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_000_000 + second).unwrap()
}

fn set(own: &[(&str, &str)], of_nas: &[(&str, &str)], now: Timestamp) -> Effective {
    let attributes = |all: &[(&str, &str)]| {
        let changes: Changes = all.iter().map(|(k, v)| ((*k).to_owned(), Some((*v).to_owned()))).collect();
        Attributes::default().changed(&changes, now).unwrap()
    };
    effective(&attributes(own), &attributes(of_nas), &Defaults::of(Interval::seconds(60).unwrap()))
}

fn local() -> Mapping {
    Mapping { pivoted_at: Some(at(0)), ..mapping(Want::Local, Authority::Node) }
}

#[test]
fn due_by_the_frequency_or_by_the_time_that_was_set() {
    let m = local();
    let due = |m: &Mapping, clean, e: &Effective, now| next_due(m, clean, e, now);
    let plain = set(&[], &[], at(0));
    assert_eq!(due(&m, None, &plain, at(10)), Some((at(60), AttributeFrom::Schedule)));
    assert_eq!(due(&m, None, &set(&[("frequency", "5s")], &[("frequency", "9s")], at(0)), at(1)).unwrap().0, at(5));
    let home = Mapping { accepted: Some(Accepted { push: snapshot(1), at: at(30), last: false }), ..m.clone() };
    assert_eq!(due(&home, None, &plain, at(40)).unwrap().0, at(90));
    // What was clean at some time counts as brought home then, but never as earlier than what was.
    assert_eq!(due(&home, Some(at(50)), &plain, at(55)).unwrap().0, at(110));
    assert_eq!(due(&home, Some(at(20)), &plain, at(55)).unwrap().0, at(90));
    // A time that was set counts instead, sooner or later, until something came home after it.
    let later = set(&[("next-sync", "+10m")], &[], at(0));
    assert_eq!(due(&m, None, &later, at(100)), Some((at(600), AttributeFrom::Volume)));
    let after = Mapping { accepted: Some(Accepted { push: snapshot(1), at: at(601), last: false }), ..m.clone() };
    assert_eq!(due(&after, None, &later, at(602)), Some((at(661), AttributeFrom::Schedule)));
    assert_eq!(due(&m, Some(at(600)), &later, at(602)).unwrap().1, AttributeFrom::Schedule);
    // One in the past is due at once, and the volume's own counts before the NAS's.
    let both = set(&[("nextsync", "5")], &[("nextsync", "+10m")], at(7));
    assert_eq!(due(&m, None, &both, at(8)), Some((at(7), AttributeFrom::Volume)));
    assert_eq!(due(&m, Some(at(7)), &both, at(8)), Some((at(607), AttributeFrom::Nas)));
    // A clock that was set back, and an operator who wants it now.
    assert_eq!(due(&m, None, &plain, at(-5)).unwrap().0, at(-5));
    assert_eq!(due(&Mapping { sync_now: true, ..m.clone() }, None, &later, at(3)).unwrap().0, at(3));
    let nas = Mapping { authority: Authority::Nas, ..m };
    assert_eq!(due(&nas, Some(at(5)), &plain, at(10)), None);
    assert_eq!(behind_since(&nas, Some(at(5))), None);
}

/// A row that has sent what the report answers.
fn answered(m: Mapping) -> VolumeRecord {
    VolumeRecord { assign: Some(assign(Want::Local)), ..row(Some(m)) }
}

fn clean_report() -> Report {
    Report { dirty: Some(0), asked: Some(at(5)), ..report(NodePhase::Local, true) }
}

#[test]
fn only_a_certain_word_proves_that_nothing_is_missing() {
    assert_eq!(clean_at(&answered(local()), &clean_report()), Some(at(5)));
    for (why, r) in [
        ("some is dirty", Report { dirty: Some(1), ..clean_report() }),
        ("it cannot tell", Report { dirty: None, ..clean_report() }),
        ("it does not say when", Report { asked: None, ..clean_report() }),
        ("an older assignment", Report { revision: 4, ..clean_report() }),
        ("another mapping", Report { epoch: img_storage_model::Epoch(2), ..clean_report() }),
        ("not on its copy", Report { phase: NodePhase::Attaching, ..clean_report() }),
        ("moving back", Report { phase: NodePhase::BringingBack, ..clean_report() }),
        ("not pivoted", Report { pivoted: false, ..clean_report() }),
    ] {
        assert_eq!(clean_at(&answered(local()), &r), None, "{why}");
    }
    for (why, m) in [
        ("the NAS may have lost what it had", Mapping { base_unsure: true, ..local() }),
        ("it may have pivoted back", Mapping { authority: Authority::MaybeNas, ..local() }),
        ("a write-back is under way", Mapping { push: Some(crate::nas::pushing(false, false)), ..local() }),
    ] {
        assert_eq!(clean_at(&answered(m), &clean_report()), None, "{why}");
    }
}

#[test]
fn a_copy_waits_for_its_turn_and_is_not_taken_back() {
    let want = |v: &VolumeRecord, copy| assigned(v, facts(), copy).map(|a| a.want).unwrap();
    let new = row(Some(mapping(Want::Local, Authority::Nas)));
    assert_eq!((nas::copies(&new), want(&new, false), want(&new, true)), (Some(false), Want::Remote, Want::Local));
    let begun = answered(mapping(Want::Local, Authority::Nas));
    assert_eq!((nas::copies(&begun), want(&begun, false)), (Some(true), Want::Local));
    for authority in [Authority::MaybeNode, Authority::Node, Authority::MaybeNas] {
        let v = row(Some(mapping(Want::Local, authority)));
        assert!(nas::copies(&v) != Some(false) && want(&v, false) == Want::Local, "{authority:?}");
    }
    for wanted in [Want::Remote, Want::Gone] {
        let v = row(Some(mapping(wanted, Authority::Nas)));
        assert_eq!((nas::copies(&v), want(&v, false)), (None, wanted));
    }
}

#[test]
fn a_speed_that_changed_is_told_to_what_runs() {
    let speed = |bytes| Speed::bytes_per_second(bytes).unwrap();
    let speeds = Speeds { download: speed(1 << 20), upload: speed(2 << 20) };
    let r = record(Assign { speeds, ..assign(Want::Local) }, Truth::Remote);
    let set = NodeStep::SetSpeed { job: Moving::Copy, speed: speed(1 << 20) };
    assert_eq!(decide(&r, Some(copying(JobState::Running)), Some(file())), Decision::Do(set));
    let mut slowed = copying(JobState::Running);
    slowed.copy.as_mut().unwrap().speed = 1 << 20;
    assert!(matches!(decide(&r, Some(slowed), Some(file())), Decision::Wait(_)));
    // What does not move needs no speed.
    assert!(matches!(decide(&r, Some(copying(JobState::Ready)), Some(file())), Decision::Wait(_)));
}

proptest! {
    #[test]
    fn a_write_back_is_never_due_before_what_is_home_unless_somebody_wants_it(
        pivot in 0i64..1000, home in proptest::option::of(0i64..1000), clean in proptest::option::of(0i64..1000),
        own in proptest::option::of(0i64..2000), given in 0i64..1000, now in 0i64..2000,
    ) {
        let accepted = home.map(|s| Accepted { push: snapshot(1), at: at(s), last: false });
        let m = Mapping { pivoted_at: Some(at(pivot)), accepted, ..local() };
        let own = own.map(|s| (1_000_000 + s).to_string());
        let pairs: Vec<(&str, &str)> = own.iter().map(|s| ("nextsync", s.as_str())).collect();
        let e = set(&pairs, &[], at(given));
        let clean = clean.map(at);
        let since = behind_since(&m, clean).unwrap();
        let (due, _) = next_due(&m, clean, &e, at(now)).unwrap();
        prop_assert!(due > since || (since > at(now) && due == at(now)));
    }
}
