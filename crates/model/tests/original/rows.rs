//! Rows and entries, beside the recorded ones.

use super::recorded;
use img_storage_model::{
    api::{Phase, VolumeView},
    messages::Progress,
    original::{Behind, OnNode, Reply, Row, VolumeAttributes, devices},
};
use serde_json::{Value, json};
use std::collections::BTreeMap;

fn view(phase: Phase, fields: Value) -> VolumeView {
    let mut all = json!({
        "id": "00000000-0000-0000-0000-000000000001", "nas": "nas-0-0", "pool": "tank", "name": "dv1", "size": 10u64 << 30,
        "phase": phase, "epoch": 1, "sync": false, "write_backs": 0, "created": "2026-01-01T00:00:00Z",
    });
    for (name, value) in fields.as_object().unwrap() {
        all[name] = value.clone();
    }
    serde_json::from_value(all).unwrap()
}

fn row(phase: Phase, fields: Value) -> Row {
    Row::new(&view(phase, fields), Behind { remotepool: Some("local".to_owned()), ..Behind::default() })
}

const TARGET: &str = "iqn.2003-01.org.linux-iscsi.nas-0-0.x8664:sn.a4bf66d75959";

fn recorded_answer(scenario: &str, action: &str) -> Value {
    let all = recorded();
    all.iter()
        .find(|m| m["to"] == "launcher" && m["scenario"] == scenario && m["json"]["action"] == action)
        .map(|m| m["json"].clone())
        .unwrap()
}

#[test]
fn a_row_is_the_recorded_one() {
    let mapped = view(Phase::Remote, json!({"node": "compute-0-0", "export": TARGET, "device": "/dev/sdb"}));
    let ours = Reply::Volumes(vec![Row::new(&mapped, Behind::default())]).encode();
    assert_eq!(serde_json::from_slice::<Value>(&ours).unwrap(), recorded_answer("03-list", "zvol_list"));
}

#[test]
fn an_entry_is_the_recorded_one() {
    let mapped = view(Phase::Remote, json!({"node": "compute-0-0", "export": TARGET, "device": "/dev/sdb"}));
    let ours = Reply::Devices(devices(vec![OnNode::of(&mapped)])).encode();
    assert_eq!(serde_json::from_slice::<Value>(&ours).unwrap(), recorded_answer("03-list", "dev_list"));
}

#[test]
fn a_volumes_attributes_are_the_recorded_ones() {
    let values = [("frequency", "30"), ("nextsync", "5"), ("downloadspeed", "5M")];
    let values: BTreeMap<String, String> = values.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
    let ours = Reply::VolumeAttributes(VolumeAttributes::new("dv2", &values)).encode();
    let all = recorded();
    let theirs = all.iter().find(|m| m["json"]["action"] == "get_zvol_attrs" && m["json"]["status"] == "success").unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&ours).unwrap(), theirs["json"]);
}

#[test]
fn the_phases_in_the_originals_words() {
    let at = "2026-11-22T12:00:00Z";
    let seconds = 1_795_348_800;
    for (phase, fields, sending, deleting, time, locked, word) in [
        (Phase::Unmapped, json!({}), None, None, None, false, "unmapped"),
        (Phase::Creating, json!({}), None, None, None, true, "unmapped"),
        (Phase::Attaching, json!({"node": "n"}), None, None, None, false, "mapped"),
        (Phase::Remote, json!({"node": "n"}), None, None, None, false, "mapped"),
        (
            Phase::Remote,
            json!({"node": "n", "sync": true, "transfer_since": at}),
            Some(1),
            Some(1),
            Some(seconds),
            true,
            "NAS->VM",
        ),
        (Phase::Copying, json!({"node": "n", "transfer_since": at}), Some(1), Some(1), Some(seconds), true, "NAS->VM"),
        (Phase::Switching, json!({"node": "n", "transfer_since": at}), None, None, None, true, "mapped"),
        (Phase::Local, json!({"node": "n"}), None, None, None, false, "mapped"),
        (Phase::Local, json!({"node": "n", "transfer_since": at}), Some(0), Some(0), Some(seconds), false, "NAS<-VM sched"),
        (Phase::BringingBack, json!({"node": "n"}), Some(0), Some(0), None, true, "NAS<-VM sched"),
        (Phase::Returning, json!({"node": "n", "transfer_since": at}), Some(0), Some(1), Some(seconds), true, "NAS<-VM"),
        (Phase::Returning, json!({"node": "n"}), None, None, None, true, "mapped"),
    ] {
        let row = row(phase, fields.clone());
        let is = (row.is_sending, row.is_delete_remote, row.time, row.locked.is_some(), row.state());
        assert_eq!(is, (sending, deleting, time, locked, word), "{phase} {fields}");
        assert_eq!(row.remotepool.is_some(), row.remotehost.is_some());
    }
    // What does not get on can be given up.
    let stuck = json!({"host": "n", "why": "the pool is full", "since": at});
    assert!(row(Phase::Copying, json!({"node": "n", "stuck": stuck})).locked.is_none());
}

#[test]
fn a_nodes_devices_have_the_originals_names() {
    let local = |name: &str, nas: &str, phase: Phase| {
        let mut volume = OnNode::of(&view(phase, json!({"node": "n", "device": "d", "sync": true, "name": name, "nas": nas})));
        volume.progress = Some(Progress { done: 1 << 30, total: 10 << 30 });
        volume.since = Some(7);
        volume
    };
    let direct = |name: &str, target: &str| {
        OnNode::of(&view(Phase::Remote, json!({"node": "n", "device": format!("/dev/{name}"), "export": target, "name": name})))
    };
    let not_yet = OnNode::of(&view(Phase::Attaching, json!({"node": "n", "name": "not-yet"})));
    let all = devices(vec![
        direct("b", "nbds://1/b"),
        direct("a", "nbds://2/a"),
        local("vm1", "nas-0-0", Phase::Copying),
        local("vm2", "nas-0-0", Phase::Switching),
        local("vm3", "nas-0-0", Phase::Local),
        local("twin", "nas-0-0", Phase::Local),
        local("twin", "nas-0-1", Phase::Local),
        local("volume1", "nas-0-0", Phase::Local),
        not_yet,
    ]);
    assert_eq!(
        serde_json::to_value(&all).unwrap(),
        json!({
            "volume0": {"device": "b", "sync": "iscsi", "target": "nbds://1/b"},
            "volume2": {"device": "a", "sync": "iscsi", "target": "nbds://2/a"},
            "vm1": {"device": "d", "sync": "sync", "status": "snapshot", "size": 10, "synced": "18874368/20971520 0"},
            "vm2": {"device": "d", "sync": "sync", "status": "snapshot-merge", "size": 10, "synced": "18874368/20971520 0",
                    "started": 1, "time": 7},
            "vm3": {"device": "d", "sync": "sync", "status": "linear", "size": 10},
            "nas-0-0:tank/twin": {"device": "d", "sync": "sync", "status": "linear", "size": 10},
            "nas-0-1:tank/twin": {"device": "d", "sync": "sync", "status": "linear", "size": 10},
            "volume1": {"device": "d", "sync": "sync", "status": "linear", "size": 10},
        })
    );
}
