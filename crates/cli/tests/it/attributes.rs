//! `set`, `get` and `unset`.

use crate::support::World;
use img_storage_model::api::{AttributesOf, Request};

#[test]
fn a_volume_inherits_what_is_not_set_of_it() {
    let world = World::new();
    let set = world.run(&["set", "nas-0-0", "frequency", "10m", "img_sync_workers", "8"]);
    assert_eq!((set.code, set.err.as_str()), (0, ""), "{set:?}");
    assert_eq!(set.out, "frequency of nas-0-0 is 10m now (nas)\nsync-workers of nas-0-0 is 8 now (nas)\n");
    let set = world.run(&["set", "tank/vol1", "uploadspeed", "10m", "next-sync", "2030-01-01T03:00:00Z"]);
    assert_eq!(
        set.out,
        "next-sync of nas-0-0:tank/vol1 is 2030-01-01T03:00:00Z now (volume)\nupload-speed of nas-0-0:tank/vol1 is 10M now (volume)\n"
    );
    let got = world.run(&["get", "tank/vol1"]);
    let cells: Vec<Vec<&str>> = got.out.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(
        cells,
        [
            ["ATTRIBUTE", "VALUE", "FROM"],
            ["frequency", "10m", "nas"],
            ["next-sync", "2030-01-01T03:00:00Z", "volume"],
            ["download-speed", "unlimited", "default"],
            ["upload-speed", "10M", "volume"],
        ]
    );
    let unset = world.run(&["unset", "tank/vol1", "upload-speed", "nextsync"]);
    assert!(unset.out.contains("upload-speed of nas-0-0:tank/vol1 is unlimited now (default)"), "{unset:?}");
    assert!(unset.out.contains("next-sync of nas-0-0:tank/vol1 is not set now"), "{unset:?}");
    for (key, value) in [("frequency", "10m\n"), ("uploadspeed", "unlimited\n"), ("next-sync", "\n")] {
        assert_eq!(world.run(&["get", "tank/vol1", key]).out, value, "{key}");
    }
    assert_eq!(world.run(&["get", "nas-0-0:", "sync-workers"]).out, "8\n");
}

#[test]
fn every_format_has_the_number_too() {
    let world = World::new();
    world.run(&["set", "tank/vol1", "upload-speed", "1.5G"]);
    let json: serde_json::Value = serde_json::from_str(&world.run(&["get", "tank/vol1", "-o", "json"]).out).unwrap();
    assert_eq!(
        json["attributes"][3],
        serde_json::json!({"key": "upload-speed", "value": "1536M", "number": 3u64 << 29, "from": "volume"})
    );
    let yaml = world.run(&["get", "tank/vol1", "frequency", "-o", "yaml"]).out;
    assert_eq!(yaml, "attributes:\n- from: default\n  key: frequency\n  number: 60\n  value: 1m\n");
    let csv = world.run(&["get", "tank/vol1", "-o", "csv"]).out;
    assert_eq!(csv.lines().next(), Some("attribute,value,number,from"));
    assert_eq!(csv.lines().nth(4), Some("upload-speed,1536M,1610612736,volume"));
    let set = world.run(&["set", "nas-0-0", "sync-workers", "2", "-o", "json"]).out;
    assert_eq!(serde_json::from_str::<serde_json::Value>(&set).unwrap()["attributes"][4]["number"], 2);
}

#[test]
fn a_dry_run_checks_and_changes_nothing() {
    let world = World::new();
    let ran = world.run(&["set", "tank/vol1", "frequency", "5m", "--dry-run"]);
    assert_eq!(
        (ran.code, ran.out.as_str()),
        (0, "would set frequency of nas-0-0:tank/vol1 to 5m (now 1m, default)\n"),
        "{ran:?}"
    );
    let ran = world.run(&["unset", "nas-0-0", "nextsync", "--dry-run"]);
    assert_eq!(ran.out, "would unset next-sync of nas-0-0 (now nothing)\n", "{ran:?}");
    for bad in [["tank/vol1", "frequency", "0"], ["nas-0-0", "colour", "red"], ["tank/vol1", "sync-workers", "2"]] {
        let ran = world.run(&["set", bad[0], bad[1], bad[2], "--dry-run"]);
        assert!(ran.code == 2 && ran.err.contains(bad[1]), "{ran:?}");
    }
    let asked = world.fake.asked.lock().unwrap();
    assert!(asked.iter().all(|(_, request)| !matches!(request, Request::SetAttributes { .. })));
}

#[test]
fn a_name_that_can_be_both_is_asked_about() {
    let world = World::new();
    assert_eq!(world.run(&["create", "tank/nas-0-0", "--size", "1G"]).code, 0);
    let ran = world.run(&["set", "nas-0-0", "frequency", "5m"]);
    assert!(ran.code == 2 && ran.err.contains("write nas-0-0: for the NAS"), "{ran:?}");
    assert_eq!(world.run(&["set", "nas-0-0:", "frequency", "5m"]).code, 0);
    assert_eq!(world.run(&["set", "tank/nas-0-0", "frequency", "6m"]).code, 0);
    let asked = world.fake.asked.lock().unwrap();
    let of = asked.iter().filter_map(|(_, request)| match request {
        Request::SetAttributes { of, notes: false, .. } => Some(*of),
        _ => None,
    });
    assert!(matches!(of.collect::<Vec<_>>().as_slice(), [AttributesOf::Nas, AttributesOf::Volume(_)]));
}
