//! Every recorded conversation of the original's front end, played against our daemons.

use crate::bed::{Bed, NAS, NODE, error, map, unmap};
use serde_json::{Value, json};

fn recorded() -> Vec<Value> {
    serde_json::from_str(include_str!("../../vectors/original-messages.json")).unwrap()
}

/// A recorded message of the front end.
fn asked(scenario: &str, action: &str) -> (String, Vec<u8>) {
    let of = |m: &&Value| m["from"] == "launcher" && m["scenario"] == scenario && m["json"]["action"] == action;
    let all = recorded();
    let message = all.iter().find(of).unwrap_or_else(|| panic!("{scenario} {action}"));
    (message["routing_key"].as_str().unwrap().to_owned(), message["body"].as_str().unwrap().as_bytes().to_vec())
}

/// The recorded answer to the front end.
fn answered(scenario: &str, action: Option<&str>, status: &str) -> Value {
    let of = |m: &&Value| {
        m["to"] == "launcher"
            && m["scenario"] == scenario
            && m["json"]["action"].as_str() == action
            && m["json"]["status"] == status
    };
    let all = recorded();
    all.iter().find(of).map(|m| m["json"].clone()).unwrap_or_else(|| panic!("{scenario} {action:?}"))
}

/// Without what differs from host to host: targets, devices, initiators and times. That they are there, and of what kind, stays.
fn plain(mut value: Value) -> Value {
    fn walk(value: &mut Value) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    match name.as_str() {
                        "iscsi_target" | "target" | "device" | "bdev" if value.is_string() => *value = json!("DEVICE"),
                        "time" | "nextsync" if value.is_number() => *value = json!("TIME"),
                        "body" if value.as_str().is_some_and(|text| text.starts_with("iqn.")) => *value = json!("IQN"),
                        _ => walk(value),
                    }
                }
            }
            Value::Array(values) => values.iter_mut().for_each(walk),
            _ => {}
        }
    }
    walk(&mut value);
    value
}

#[tokio::test(start_paused = true)]
async fn every_recorded_answer_is_given() {
    let mut bed = Bed::new().await;
    for (asks, answers, status) in [
        (("01-launcher-list_initiator", "list_initiator"), ("01-launcher-list_initiator", Some("zvol_list")), "success"),
        (("02-map-direct-new", "map_zvol"), ("02-map-direct-new", Some("zvol_mapped")), "success"),
        (("03-list", "list_zvols"), ("03-list", Some("zvol_list")), "success"),
        (("03-list", "list_dev"), ("03-list", Some("dev_list")), "success"),
        // The same message as at first, of which the recording has just one.
        (("02-map-direct-new", "map_zvol"), ("04-map-already-mapped", Some("zvol_mapped")), "error"),
        (("05-del-while-mapped", "del_zvol"), ("05-del-while-mapped", Some("zvol_deleted")), "error"),
        (("06-unmap-direct", "unmap_zvol"), ("06-unmap-direct", Some("zvol_unmapped")), "success"),
        (("06-unmap-direct", "unmap_zvol"), ("08-unmap-not-mapped", Some("zvol_unmapped")), "error"),
        (("05-del-while-mapped", "del_zvol"), ("10-del", Some("zvol_deleted")), "success"),
        (("15-unsupported-action", "frobnicate"), ("15-unsupported-action", None), "error"),
    ] {
        let (to, body) = asked(asks.0, asks.1);
        let answer = bed.ask_bytes(&to, &body).await;
        assert_eq!(plain(answer), plain(answered(answers.0, answers.1, status)), "{asks:?}");
    }
    let answer = bed.ask(NAS, unmap("nosuch")).await;
    assert_eq!(answer, answered("09-unmap-unknown", Some("zvol_unmapped"), "error"));
    let answer = bed.ask(NAS, json!({"action": "del_zvol", "zpool": "tank", "zvol": "nosuch"})).await;
    assert_eq!(answer, answered("11-del-unknown", Some("zvol_deleted"), "error"));
    let mut unknown: Value = serde_json::from_slice(&asked("02-map-direct-new", "map_zvol").1).unwrap();
    unknown["remotehost"] = json!("no-such-host");
    let answer = bed.ask(NAS, unknown).await;
    assert_eq!(answer, answered("12-map-unknown-host", Some("zvol_mapped"), "error"));
    // Nothing was changed by that; the original leaves a new volume behind.
    assert_eq!(bed.row("dv1").await, None);
    for to in [NAS, NODE] {
        let answer = bed.ask(to, json!({"action": "frobnicate"})).await;
        assert_eq!(answer, answered("15-unsupported-action", None, "error"));
    }
}

#[tokio::test(start_paused = true)]
async fn the_recorded_attributes_are_kept() {
    let mut bed = Bed::new().await;
    let (_, get) = asked("16-attrs", "get_attrs");
    let theirs = answered("16-attrs", Some("get_attrs"), "success");
    let ours = bed.ask_bytes(NAS, &get).await;
    let names = |answer: &Value| answer["attrs"].as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&ours), names(&theirs));
    for name in ["img_sync_workers", "frontend_name", "name", "frequency"] {
        assert_eq!(ours["attrs"][name], theirs["attrs"][name], "{name}");
    }
    let set = asked("16-attrs", "set_attrs").1;
    assert_eq!(bed.ask_bytes(NAS, &set).await, answered("16-attrs", Some("set_attrs"), "success"));
    let ours = bed.ask_bytes(NAS, &get).await["attrs"].clone();
    assert_eq!((&ours["note"], &ours["frequency"], &ours["uploadspeed"]), (&json!("x"), &json!("120"), &json!("10M")));
    let del = asked("16-attrs", "del_attrs").1;
    assert_eq!(bed.ask_bytes(NAS, &del).await, answered("16-attrs", Some("del_attrs"), "success"));
    let ours = bed.ask_bytes(NAS, &get).await["attrs"].clone();
    assert_eq!((&ours["note"], &ours["frequency"], &ours["uploadspeed"]), (&Value::Null, &json!("120"), &Value::Null));
    for (attrs, says) in [
        (json!({"frequency": "often"}), "frequency"),
        (json!({"frequency": 0}), "frequency"),
        (json!({"img_sync_workers": "-1"}), "sync-workers"),
        (json!({"uploadspeed": "fast"}), "upload-speed"),
        (json!({"name": "nas-1-1"}), "attrs.name"),
    ] {
        let answer = bed.ask(NAS, json!({"action": "set_attrs", "attrs": attrs})).await;
        assert_eq!((&answer["action"], &answer["status"]), (&json!("set_attrs"), &json!("error")), "{answer}");
        assert!(answer["error"].as_str().unwrap().contains(says), "{answer}");
    }

    // Of a volume.
    assert_eq!(bed.ask(NAS, map("dv2", NODE, false)).await["status"], "success");
    let get = json!({"action": "get_zvol_attrs", "zvol": "dv2"});
    let none = json!({"zvol": "dv2", "frequency": null, "nextsync": null, "downloadspeed": null, "uploadspeed": null});
    assert_eq!(bed.ask(NAS, get.clone()).await["body"], none);
    let set = asked("17-zvolattrs", "set_zvol_attrs").1;
    assert_eq!(bed.ask_bytes(NAS, &set).await, answered("17-zvolattrs", Some("set_zvol_attrs"), "success"));
    assert_eq!(bed.ask(NAS, get.clone()).await, answered("17-zvolattrs", Some("get_zvol_attrs"), "success"));
    assert_eq!(bed.row("dv2").await.unwrap()["frequency"], 30);
    let clear = json!({"action": "set_zvol_attrs", "zvol": "dv2", "frequency": null});
    assert_eq!(bed.ask(NAS, clear).await, answered("17-zvolattrs", Some("set_zvol_attrs"), "success"));
    let ours = bed.ask(NAS, get).await["body"].clone();
    assert_eq!((&ours["frequency"], &ours["downloadspeed"]), (&Value::Null, &json!("5M")));
    // Where the original says what Python said, and where it set attributes of nothing.
    let (_, get) = asked("17-zvolattrs", "get_zvol_attrs");
    assert_eq!(bed.ask_bytes(NAS, &get).await, error("get_zvol_attrs", "ZVol nosuch not found in database"));
    let set = json!({"action": "set_zvol_attrs", "zvol": "nosuch", "frequency": 30});
    assert_eq!(bed.ask(NAS, set).await, error("set_zvol_attrs", "ZVol nosuch not found in database"));
    let answer = bed.ask(NAS, json!({"action": "set_zvol_attrs", "zvol": "dv2", "frequency": "x"})).await;
    assert!(answer["error"].as_str().unwrap().contains("frequency"), "{answer}");
}
