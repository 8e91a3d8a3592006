use super::*;
use proptest::prelude::*;
use uuid::Uuid;

fn now() -> Timestamp {
    "2030-01-01T00:00:00Z".parse().unwrap()
}

fn changes(all: &[(&str, Option<&str>)]) -> Changes {
    all.iter().map(|(key, value)| ((*key).to_owned(), value.map(str::to_owned))).collect()
}

fn request(n: u128) -> RequestId {
    RequestId(Uuid::from_u128(n))
}

fn defaults() -> Defaults {
    Defaults::of(Interval::seconds(60).unwrap())
}

#[test]
fn names_of_ours_and_of_the_original() {
    for key in AttributeKey::ALL {
        assert_eq!(key.name().parse::<AttributeKey>().unwrap(), key);
        assert_eq!(key.original().parse::<AttributeKey>().unwrap(), key);
    }
    let fault = "frequncy".parse::<AttributeKey>().unwrap_err();
    assert!(fault.message.contains("frequncy") && fault.next.contains("upload-speed"), "{fault}");
}

#[test]
fn every_bad_value_names_its_attribute_and_changes_nothing() {
    let before = Attributes::default().changed(&changes(&[("frequency", Some("5m"))]), now()).unwrap();
    for (key, value) in [
        ("frequency", "often"),
        ("frequency", "0"),
        ("nextsync", "later"),
        ("download-speed", "0"),
        ("downloadspeed", "fast"),
        ("uploadspeed", "1K"),
        ("upload-speed", ""),
    ] {
        let all = changes(&[("frequency", Some("9m")), (key, Some(value))]);
        let fault = before.changed(&all, now()).unwrap_err();
        assert!(fault.message.starts_with(&key.parse::<AttributeKey>().unwrap().to_string()), "{key}={value}: {fault}");
    }
    let of_a_nas = before.changed(&changes(&[("sync-workers", Some("3"))]), now()).unwrap_err();
    assert!(of_a_nas.message.contains("of a NAS"), "{of_a_nas}");
    let unknown = before.changed(&changes(&[("note", Some("x"))]), now()).unwrap_err();
    assert!(unknown.message.contains("no attribute"), "{unknown}");
    let twice = before.changed(&changes(&[("next-sync", Some("now")), ("nextsync", Some("5"))]), now()).unwrap_err();
    assert!(twice.message.contains("twice"), "{twice}");
}

#[test]
fn a_value_is_inherited_until_it_is_set_and_again_once_it_is_not() {
    let nas = Attributes::default();
    let nas = nas.changed(&changes(&[("frequency", Some("10m")), ("uploadspeed", Some("10M"))]), now()).unwrap();
    let own = changes(&[("uploadspeed", Some("unlimited")), ("next-sync", Some("+1h"))]);
    let own = Attributes::default().changed(&own, now()).unwrap();
    let nas = NasAttributes { attributes: nas, ..NasAttributes::default() };
    let seen = |own: &Attributes| -> Vec<(String, Option<String>, AttributeFrom)> {
        views(Some(own), &nas, &defaults(), None).into_iter().map(|v| (v.key, v.value, v.from)).collect()
    };
    let view = |key: &str, value: &str, from| (key.to_owned(), Some(value.to_owned()), from);
    assert_eq!(
        seen(&own),
        [
            view("frequency", "10m", AttributeFrom::Nas),
            view("next-sync", "2030-01-01T01:00:00Z", AttributeFrom::Volume),
            view("download-speed", "unlimited", AttributeFrom::Default),
            view("upload-speed", "unlimited", AttributeFrom::Volume),
        ]
    );
    let unset = own.changed(&changes(&[("upload-speed", None), ("nextsync", None)]), now()).unwrap();
    assert_eq!(seen(&unset)[1], ("next-sync".to_owned(), None, AttributeFrom::Schedule));
    assert_eq!(seen(&unset)[3], view("upload-speed", "10M", AttributeFrom::Nas));
    assert_eq!(effective(&unset, &nas.attributes, &defaults()).speeds.upload.get(), 10 << 20);
    assert!(unset.is_empty());
}

#[test]
fn notes_are_kept_only_for_who_says_so() {
    let nas = NasAttributes::default();
    let all = changes(&[("note", Some("x")), ("frequency", Some("120")), ("img_sync_workers", Some("8"))]);
    assert!(nas.changed(&all, false, request(1), now()).unwrap_err().message.contains("\"note\""));
    let nas = nas.changed(&all, true, request(1), now()).unwrap();
    let seen = views(None, &nas, &defaults(), None);
    assert_eq!(seen[0].number, Some(120));
    assert_eq!((seen[4].number, seen[4].from), (Some(8), AttributeFrom::Nas));
    assert_eq!((seen[5].key.as_str(), seen[5].value.as_deref(), seen[5].from), ("note", Some("x"), AttributeFrom::Note));
    let gone = nas.changed(&changes(&[("note", None), ("frequency", None)]), true, request(2), now()).unwrap();
    assert!(gone.notes.is_empty() && gone.attributes.frequency.is_none());
    for (name, text) in [("", "x"), ("a b", "x"), ("näme", "x"), ("n", "a\0b"), ("n", &"x".repeat(2000)), (&"n".repeat(65), "x")]
    {
        assert!(nas.changed(&changes(&[(name, Some(text))]), true, request(3), now()).is_err(), "{name:?}");
    }
    let many = (0..101).map(|n| (format!("n{n}"), Some(String::new()))).collect();
    assert!(nas.changed(&many, true, request(4), now()).unwrap_err().message.contains("at most"));
}

#[test]
fn a_request_changes_a_nas_once() {
    let first = NasAttributes::default().changed(&changes(&[("frequency", Some("1m"))]), false, request(1), now()).unwrap();
    let second = first.changed(&changes(&[("frequency", Some("2m"))]), false, request(2), now()).unwrap();
    let late = second.changed(&changes(&[("frequency", Some("1m"))]), false, request(1), now()).unwrap();
    assert_eq!(late, second);
}

#[test]
fn a_row_of_an_older_ledger_is_understood() {
    assert_eq!(serde_json::from_str::<NasAttributes>("{}").unwrap(), NasAttributes::default());
    let nas = NasAttributes::default().changed(&changes(&[("nextsync", Some("5"))]), true, request(1), now()).unwrap();
    let text = serde_json::to_string(&nas).unwrap();
    assert_eq!(serde_json::from_str::<NasAttributes>(&text).unwrap(), nas);
}

proptest! {
    #[test]
    fn no_change_panics_and_what_is_refused_changes_nothing(
        key in "frequency|nextsync|next-sync|downloadspeed|upload-speed|sync-workers|[a-z]{0,6}|.{0,8}",
        value in proptest::option::of("[0-9]{1,12}[smhdkMGT]?|unlimited|now|\\+[0-9]{1,3}m|.{0,20}"),
        notes in any::<bool>(),
    ) {
        let all = Changes::from([(key, value)]);
        let _ = Attributes::default().changed(&all, now());
        if let Ok(next) = NasAttributes::default().changed(&all, notes, request(1), now()) {
            // What was accepted can be written down and read again.
            let text = serde_json::to_string(&next).unwrap();
            prop_assert_eq!(serde_json::from_str::<NasAttributes>(&text).unwrap(), next.clone());
            // And what is shown of it can be given again.
            for view in views(None, &next, &defaults(), None) {
                let again = Changes::from([(view.key.clone(), view.value.clone())]);
                prop_assert!(NasAttributes::default().changed(&again, true, request(2), now()).is_ok(), "{:?}", view);
            }
        }
    }
}
