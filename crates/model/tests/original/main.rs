//! The original's messages: each recorded one means what it meant, each recorded answer is one of ours, and whatever else comes is
//! answered.

mod rows;

use img_storage_model::original::{Action, MapZvol, NasRequest, NodeRequest, Refusal, Reply, nas_request, node_request, say};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// The recording: what the original's front end and daemons said to each other.
fn recorded() -> Vec<Value> {
    serde_json::from_str(include_str!("../../../../tests/vectors/original-messages.json")).unwrap()
}

fn asked(to: &str) -> Vec<(String, Vec<u8>)> {
    let from_launcher = |m: &Value| m["from"] == "launcher" && m["to"] == to;
    let text = |v: &Value| v.as_str().unwrap().to_owned();
    recorded().iter().filter(|m| from_launcher(m)).map(|m| (text(&m["scenario"]), text(&m["body"]).into_bytes())).collect()
}

fn texts(pairs: &[(&str, Option<&str>)]) -> BTreeMap<String, Option<String>> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), value.map(str::to_owned))).collect()
}

#[test]
fn every_recorded_request_to_a_nas_means_what_it_meant() {
    let zvol = |name: &str| name.parse().unwrap();
    let map = NasRequest::Map(MapZvol {
        zpool: "tank".parse().unwrap(),
        zvol: zvol("dv1"),
        remotehost: "compute-0-0".parse().unwrap(),
        remotepool: None,
        size: "10G".parse().unwrap(),
        sync: false,
        initiator: "iqn.1994-05.com.redhat:compute-0-0".to_owned(),
    });
    let values = [("nextsync", Some("5")), ("frequency", Some("30")), ("downloadspeed", Some("5M")), ("uploadspeed", None)];
    let expected: Vec<(&str, Result<NasRequest, Refusal>)> = vec![
        ("16-attrs", Ok(NasRequest::DeleteAttributes { names: vec!["note".to_owned(), "uploadspeed".to_owned()] })),
        ("05-del-while-mapped", Ok(NasRequest::Delete { zpool: "tank".parse().unwrap(), zvol: zvol("dv1") })),
        ("15-unsupported-action", Err(Refusal { action: None, why: "action_unsupported".to_owned() })),
        ("16-attrs", Ok(NasRequest::Attributes)),
        ("17-zvolattrs", Ok(NasRequest::VolumeAttributes { zvol: zvol("nosuch") })),
        ("03-list", Ok(NasRequest::List)),
        ("02-map-direct-new", Ok(map)),
        (
            "16-attrs",
            Ok(NasRequest::SetAttributes {
                changes: texts(&[("note", Some("x")), ("frequency", Some("120")), ("uploadspeed", Some("10M"))]),
            }),
        ),
        ("17-zvolattrs", Ok(NasRequest::SetVolumeAttributes { zvol: zvol("dv2"), changes: texts(&values) })),
        ("17-zvolattrs", Ok(NasRequest::SetVolumeAttributes { zvol: zvol("dv2"), changes: texts(&[("frequency", None)]) })),
        ("06-unmap-direct", Ok(NasRequest::Unmap { zvol: zvol("dv1") })),
    ];
    let asked = asked("nas");
    assert_eq!(asked.len(), expected.len());
    for ((scenario, body), (name, request)) in asked.iter().zip(expected) {
        assert_eq!((scenario.as_str(), nas_request(body)), (name, request));
    }
}

#[test]
fn every_recorded_request_to_a_node_means_what_it_meant() {
    let asked: Vec<_> = asked("compute").iter().map(|(_, body)| node_request(body)).collect();
    assert_eq!(asked, [Err(Refusal::unsupported()), Ok(NodeRequest::Devices), Ok(NodeRequest::Initiator)]);
}

#[test]
fn every_recorded_answer_is_one_that_we_can_give() {
    let zvol = |name: &str| name.parse().unwrap();
    let (dv1, nosuch) = (zvol("dv1"), zvol("nosuch"));
    let ours: Vec<Value> = [
        Reply::Refused(Refusal::unsupported()),
        Reply::Initiator("iqn.1994-05.com.redhat:compute-0-0".to_owned()),
        Reply::Done(Action::DelAttrs),
        Reply::Done(Action::SetAttrs),
        Reply::Done(Action::SetZvolAttrs),
        Reply::Done(Action::DelZvol),
        Reply::Done(Action::UnmapZvol),
        Reply::Mapped { bdev: "/dev/sdb".to_owned() },
        Reply::refused(Action::DelZvol, say::still_mapped(&dv1)),
        Reply::refused(Action::DelZvol, say::not_found(&nosuch)),
        Reply::refused(Action::MapZvol, say::already_mapped()),
        Reply::refused(Action::MapZvol, say::unknown_host(&"no-such-host".parse().unwrap())),
        Reply::refused(Action::UnmapZvol, say::not_mapped(&dv1)),
        Reply::refused(Action::UnmapZvol, say::not_found(&nosuch)),
    ]
    .iter()
    .map(|reply| serde_json::from_slice(&reply.encode()).unwrap())
    .collect();
    let mut seen = 0;
    for message in recorded().iter().filter(|m| m["to"] == "launcher") {
        let answer = &message["json"];
        // These have contents, which `rows` compares, or a text of Python's, which ours are clearer than.
        let with_contents = answer["body"].is_array() || answer["body"].is_object() || answer["attrs"].is_object();
        if with_contents || message["scenario"] == "17-zvolattrs" && answer["status"] == "error" {
            continue;
        }
        assert!(ours.contains(answer), "{answer}");
        seen += 1;
    }
    assert_eq!(seen, ours.len() + 1);
}

fn map_with(field: &str, value: Value) -> Value {
    let mut message = json!({
        "action": "map_zvol", "zpool": "tank", "zvol": "dv1", "remotehost": "compute-0-0", "remotepool": null, "size": "10",
        "sync": false, "initiator": "iqn.1994-05.com.redhat:compute-0-0",
    });
    message[field] = value;
    message
}

fn map(message: &Value) -> Result<MapZvol, String> {
    match nas_request(message.to_string().as_bytes()) {
        Ok(NasRequest::Map(map)) => Ok(map),
        Ok(other) => panic!("{other:?}"),
        Err(refusal) => {
            assert_eq!(refusal.action, Some(Action::MapZvol));
            Err(refusal.why)
        }
    }
}

#[test]
fn sizes_are_gigabytes() {
    for (given, bytes) in [
        (json!("10"), 10 << 30),
        (json!(10), 10 << 30),
        (json!(" 35 "), 35 << 30),
        (json!("1.5"), 3 << 29),
        (json!(0.5), 1 << 29),
        (json!(10.0), 10 << 30),
        (json!("10.000000000"), 10 << 30),
        (json!("007"), 7 << 30),
    ] {
        assert_eq!(map(&map_with("size", given.clone())).unwrap().size.bytes(), bytes, "{given}");
    }
    for bad in [
        json!(0),
        json!("0"),
        json!("0.0"),
        json!(-1),
        json!("-5"),
        json!("1e3"),
        json!(1e30),
        json!("ten"),
        json!(""),
        json!("."),
        json!("1."),
        json!(".5"),
        json!("10G"),
        json!("0.000001"),
        json!("99999999999999999999999999"),
        json!(99_999_999),
        json!(true),
        json!(null),
        json!([10]),
        json!({"GB": 10}),
        json!("١٠"),
    ] {
        let why = map(&map_with("size", bad.clone())).expect_err(&bad.to_string());
        assert!(why.starts_with("the field size is wrong: "), "{bad}: {why}");
    }
}

#[test]
fn what_is_wrong_names_its_field() {
    for (field, value) in [
        ("zpool", json!("tank/sub")),
        ("zpool", json!("")),
        ("zpool", json!(7)),
        ("zpool", json!(null)),
        ("zvol", json!("../../etc/passwd")),
        ("zvol", json!("a b")),
        ("zvol", json!("x".repeat(300))),
        ("zvol", json!(["dv1"])),
        ("remotehost", json!("no such host")),
        ("remotehost", json!(null)),
        ("remotepool", json!("a/b")),
        ("remotepool", json!(false)),
        ("sync", json!("yes")),
        ("sync", json!(2)),
        ("sync", json!(null)),
        ("initiator", json!("iqn 1")),
        ("initiator", json!(5)),
        ("initiator", json!("i".repeat(300))),
    ] {
        let why = map(&map_with(field, value.clone())).expect_err(&value.to_string());
        assert!(why.starts_with(&format!("the field {field} is wrong: ")) && why.len() < 400, "{field} {value}: {why}");
    }
    for field in ["zpool", "zvol", "remotehost", "remotepool", "size", "sync"] {
        let mut message = map_with("ignored", json!({}));
        message.as_object_mut().unwrap().remove(field);
        assert_eq!(map(&message).unwrap_err(), format!("the field {field} is missing"));
    }
    for nobody in [json!(null), json!("")] {
        assert_eq!(map(&map_with("initiator", nobody)).unwrap_err(), "Error when setting up: no initiator specified");
    }
    // As the original's own command writes it.
    assert!(map(&map_with("sync", json!(1))).unwrap().sync);
    assert!(!map(&map_with("sync", json!(0))).unwrap().sync);
}

#[test]
fn what_is_no_request_is_refused_with_a_reason() {
    for (body, why) in [
        (&b""[..], "the message is no JSON: "),
        (b"{", "the message is no JSON: "),
        (b"\xff\xfe", "the message is no JSON: "),
        (b"null", "the message is no JSON object"),
        (b"[]", "the message is no JSON object"),
        (b"\"map_zvol\"", "the message is no JSON object"),
        (b"{}", "the field action is missing"),
        (b"{\"action\": null}", "the field action is wrong: null is no string"),
        (b"{\"action\": [\"map_zvol\"]}", "the field action is wrong: "),
        (b"{\"action\": \"MAP_ZVOL\"}", "action_unsupported"),
        (b"{\"action\": \"\"}", "action_unsupported"),
        (b"{\"action\": \"list_dev\"}", "action_unsupported"),
    ] {
        let refusal = nas_request(body).unwrap_err();
        assert!(refusal.action.is_none() && refusal.why.starts_with(why), "{refusal:?}");
    }
    assert_eq!(node_request(b"{\"action\": \"map_zvol\"}"), Err(Refusal::unsupported()));
    let long = vec![b' '; img_storage_model::original::LONGEST + 1];
    assert!(nas_request(&long).unwrap_err().why.contains("long"));
    let deep = "[".repeat(100_000);
    assert!(nas_request(format!("{{\"action\": {deep}").as_bytes()).is_err());
}

#[test]
fn attributes_are_text_numbers_or_nothing() {
    let why = |message: &Value| nas_request(message.to_string().as_bytes()).unwrap_err().why;
    for (message, says) in [
        (json!({"action": "set_zvol_attrs"}), "the field zvol is missing"),
        (json!({"action": "set_zvol_attrs", "zvol": "v", "frequency": 1.5}), "the field frequency is wrong: "),
        (json!({"action": "set_zvol_attrs", "zvol": "v", "nextsync": true}), "the field nextsync is wrong: "),
        (json!({"action": "set_attrs"}), "the field attrs is missing"),
        (json!({"action": "set_attrs", "attrs": []}), "the field attrs is wrong: "),
        (json!({"action": "set_attrs", "attrs": {"note": {}}}), "the field attrs.note is wrong: "),
        (json!({"action": "set_attrs", "attrs": {"": "x"}}), "the field attrs is wrong: "),
        (json!({"action": "set_attrs", "attrs": {"note": "x".repeat(2000)}}), "the field attrs.note is wrong: "),
        (json!({"action": "del_attrs", "attrs": {"note": 1}}), "the field attrs is wrong: "),
        (json!({"action": "del_attrs", "attrs": [1]}), "the field attrs is wrong: "),
        (json!({"action": "get_zvol_attrs", "zvol": null}), "the field zvol is wrong: "),
    ] {
        assert!(why(&message).starts_with(says), "{message}: {}", why(&message));
    }
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,20}".prop_map(Value::from),
        "[a-z0-9-]{1,8}".prop_map(Value::from),
        "[0-9.]{1,6}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map("[a-z]{1,6}", inner, 0..4).prop_map(|m| json!(m)),
        ]
    })
}

const ACTIONS: [&str; 11] = [
    "map_zvol",
    "unmap_zvol",
    "del_zvol",
    "list_zvols",
    "get_zvol_attrs",
    "set_zvol_attrs",
    "get_attrs",
    "set_attrs",
    "del_attrs",
    "list_initiator",
    "list_dev",
];
const FIELDS: [&str; 12] = [
    "zpool",
    "zvol",
    "remotehost",
    "remotepool",
    "size",
    "sync",
    "initiator",
    "attrs",
    "frequency",
    "nextsync",
    "downloadspeed",
    "uploadspeed",
];

/// What is answered to a refusal is one JSON object that says so.
fn answered(refusal: Refusal) {
    let answer: Value = serde_json::from_slice(&Reply::Refused(refusal).encode()).unwrap();
    assert_eq!(answer["status"], "error");
    assert!(answer["error"].as_str().is_some_and(|why| !why.is_empty()), "{answer}");
}

proptest! {
    #[test]
    fn no_bytes_are_left_without_an_answer(body in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Err(refusal) = nas_request(&body) { answered(refusal) }
        if let Err(refusal) = node_request(&body) { answered(refusal) }
    }

    #[test]
    fn no_message_is_left_without_an_answer(
        action in proptest::sample::select(ACTIONS.to_vec()),
        fields in proptest::collection::btree_map(proptest::sample::select(FIELDS.to_vec()), value(), 0..8),
    ) {
        let mut message = json!(fields);
        message["action"] = action.into();
        if let Err(refusal) = nas_request(message.to_string().as_bytes()) { answered(refusal) }
        if let Err(refusal) = node_request(message.to_string().as_bytes()) { answered(refusal) }
    }

    #[test]
    fn a_size_that_is_taken_is_that_many_gigabytes(whole in 0u64..70_000, part in 0u32..1000) {
        let text = format!("{whole}.{part:03}");
        if let Ok(map) = map(&map_with("size", text.clone().into())) {
            let wanted = u128::from(whole) * 1000 + u128::from(part);
            let got = (u128::from(map.size.bytes()) * 1000) >> 30;
            prop_assert!(got.abs_diff(wanted) <= 1, "{text}: {}", map.size.bytes());
        }
    }
}
