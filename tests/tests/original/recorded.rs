//! Every recorded conversation of the original's front end, played against our daemons.

use crate::bed::{Bed, NAS, NODE, unmap};
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
