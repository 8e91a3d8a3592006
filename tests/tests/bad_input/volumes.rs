//! Orders that a volume's state forbids, dry runs, and requests that come twice.

use super::bed::up;
use img_storage_host::nbd::Nbd;
use serde_json::json;
use std::{path::Path, time::Duration};

const PATIENCE: Duration = Duration::from_secs(20);

#[tokio::test]
async fn what_a_volumes_state_forbids_is_refused() {
    let bed = up(&[]).await;
    bed.ok(&["create", "vol1", "--size", "4M"]).await;

    bed.refused(&["create", "vol1", "--size", "8M"], 3, &["tank/vol1", "exists"]).await;
    bed.refused(&["create", "vol1", "--size", "8M", "--dry-run"], 3, &["tank/vol1"]).await;
    bed.refused(&["unmap", "vol1"], 3, &["tank/vol1", "not mapped", "img-storage"]).await;
    bed.refused(&["unmap", "vol1", "--dry-run"], 3, &["tank/vol1", "not mapped", "img-storage"]).await;
    bed.refused(&["unmap", "vol1", "--force", "--yes"], 3, &["tank/vol1", "not mapped"]).await;
    bed.refused(&["bring-back", "vol1"], 3, &["tank/vol1", "not mapped"]).await;
    bed.refused(&["resize", "vol1", "2M"], 3, &["tank/vol1", "4M", "2M"]).await;
    bed.refused(&["resize", "vol1", "2M", "--dry-run"], 3, &["tank/vol1", "4M"]).await;
    bed.refused(&["delete", "vol1"], 2, &["tank/vol1", "--yes"]).await;
    for dry in [&[][..], &["--dry-run"]] {
        bed.refused(&[&["map", "vol1", "compute-7-7"], dry].concat(), 5, &["compute-7-7", "img-storage hosts"]).await;
        bed.refused(&[&["map", "vol1", "nas-0-0"], dry].concat(), 3, &["nas-0-0", "NAS", "img-storage hosts"]).await;
        bed.refused(&[&["map", "vol1", "frontend"], dry].concat(), 3, &["frontend", "front end"]).await;
    }

    let device = bed.ok(&["map", "vol1", "compute-0-0"]).await;
    for node in ["compute-0-0", "compute-0-1"] {
        bed.refused(&["map", "vol1", node], 3, &["tank/vol1", "compute-0-0", "unmap"]).await;
        bed.refused(&["map", "vol1", node, "--dry-run"], 3, &["tank/vol1", "compute-0-0", "unmap"]).await;
    }
    for dry in [&[][..], &["--dry-run"]] {
        bed.refused(&[&["delete", "vol1", "--yes"], dry].concat(), 3, &["tank/vol1", "compute-0-0", "unmap"]).await;
        bed.refused(&[&["resize", "vol1", "8M"], dry].concat(), 3, &["tank/vol1", "compute-0-0", "unmap"]).await;
        bed.refused(&[&["resize", "vol1", "2M"], dry].concat(), 3, &["tank/vol1"]).await;
        bed.refused(&[&["export", "vol1", &bed.text("x.raw")], dry].concat(), 3, &["tank/vol1", "compute-0-0", "unmap"]).await;
        bed.refused(&[&["bring-back", "vol1"], dry].concat(), 3, &["tank/vol1"]).await;
    }
    assert!(!bed.path("x.raw").exists() && !bed.path("x.raw.part").exists());

    // A client on the device is named; only --force cuts it off.
    let socket = device.trim().split_once("socket=").unwrap().1.to_owned();
    let client = Nbd::unix(Path::new(&socket), "disk", &[], PATIENCE).await.unwrap();
    client.write(0, &[7; 65536]).await.unwrap();
    client.flush().await.unwrap();
    let pid = format!("pid {}", std::process::id());
    bed.refused(&["unmap", "vol1"], 3, &["tank/vol1", "compute-0-0", "bad_input", &pid, "--force"]).await;
    bed.refused(&["unmap", "vol1", "--force"], 2, &["tank/vol1", "--yes"]).await;
    client.write(65536, &[8; 65536]).await.unwrap();
    bed.ok(&["unmap", "vol1", "--force", "--yes"]).await;
    assert!(client.read(0, 512).await.is_err(), "the client was not cut off");
    let disk = std::fs::read(bed.state("pools/nas-0-0/tank/vol1/disk.raw")).unwrap();
    assert!(disk[..65536].iter().all(|b| *b == 7), "what was flushed before is lost");
    bed.refused(&["unmap", "vol1"], 3, &["tank/vol1", "not mapped"]).await;

    // On a local copy the same.
    bed.ok(&["map", "vol1", "compute-0-1", "--sync", "--wait", "local"]).await;
    bed.refused(&["map", "vol1", "compute-0-0"], 3, &["tank/vol1", "compute-0-1", "unmap"]).await;
    bed.refused(&["delete", "vol1", "--yes"], 3, &["tank/vol1", "compute-0-1", "unmap"]).await;
    bed.refused(&["resize", "vol1", "8M"], 3, &["tank/vol1", "compute-0-1", "unmap"]).await;
    bed.ok(&["unmap", "vol1"]).await;
    assert_eq!(std::fs::read(bed.state("pools/nas-0-0/tank/vol1/disk.raw")).unwrap(), disk);
}

#[tokio::test]
async fn a_dry_run_changes_nothing() {
    let bed = up(&[]).await;
    bed.ok(&["create", "vol1", "--size", "4M"]).await;
    bed.ok(&["create", "vol2", "--size", "4M"]).await;
    bed.ok(&["map", "vol2", "compute-0-0", "--sync", "--wait", "local"]).await;
    let image = bed.text("image.raw");
    std::fs::write(&image, vec![1; 1 << 20]).unwrap();
    let target = bed.text("x.qcow2");
    let (before, kept) = (bed.volumes().await, bed.kept());
    for words in [
        &["create", "vol3", "--size", "4M"][..],
        &["create", "vol3", "--from", &image],
        &["map", "vol1", "compute-0-0"],
        &["map", "vol1", "compute-0-0", "--sync", "--wait", "local"],
        &["map", "vol3", "compute-0-0", "--size", "4M"],
        &["unmap", "vol2"],
        &["unmap", "vol2", "--force", "--yes"],
        &["sync", "vol2"],
        &["bring-back", "vol2"],
        &["resize", "vol1", "8M"],
        &["export", "vol1", &target],
        &["delete", "vol1", "--yes"],
    ] {
        let mut words = words.to_vec();
        words.push("--dry-run");
        let said = bed.ok(&words).await;
        assert!(said.contains("would ") || said.contains("nothing to do"), "{words:?}: {said}");
        assert_eq!(bed.volumes().await, before, "{words:?}");
        assert_eq!(bed.kept(), kept, "{words:?}");
        assert!(!bed.path("x.qcow2").exists());
    }
    // What would be refused is refused in a dry run too.
    std::fs::write(&image, b"QFI\xfb").unwrap();
    bed.refused(&["create", "vol3", "--from", &image, "--dry-run"], 3, &["image.raw", "cut off"]).await;
    std::fs::write(&image, vec![1; 2 << 20]).unwrap();
    bed.refused(&["create", "vol3", "--from", &image, "--size", "1M", "--dry-run"], 2, &["image.raw", "2M", "1M"]).await;
}

#[tokio::test]
async fn a_request_that_comes_twice_is_carried_out_once() {
    let mut bed = up(&[]).await;
    let id = |n: u8| format!("01900000-0000-7000-8000-0000000000{n:02x}");
    let create = json!({"id": id(1), "name": "nas-0-0:tank/vol1", "size": 4 << 20}).to_string();
    let first = bed.http("POST", "/api/volumes", create.as_bytes());
    assert_eq!(first.0, 200, "{first:?}");
    assert_eq!(bed.http("POST", "/api/volumes", create.as_bytes()), first);
    let volume = first.1["volume"]["id"].as_str().unwrap().to_owned();

    let at = "/api/volumes/nas-0-0%3Atank%2Fvol1";
    let order = |n: u8, more: serde_json::Value| {
        let mut order = json!({"id": id(n), "expect": volume});
        order.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        order.to_string()
    };
    let map = order(2, json!({"node": "compute-0-0"}));
    // Both at the same time, and again when it is done.
    let (one, other) = std::thread::scope(|scope| {
        let one = scope.spawn(|| bed.http("POST", &format!("{at}/map"), map.as_bytes()));
        let other = scope.spawn(|| bed.http("POST", &format!("{at}/map"), map.as_bytes()));
        (one.join().unwrap(), other.join().unwrap())
    });
    assert_eq!(one.0, 200, "{one:?}");
    assert_eq!(one, other);
    assert_eq!(bed.http("POST", &format!("{at}/map"), map.as_bytes()), one);
    assert_eq!(bed.volumes().await["volumes"][0]["epoch"], 1);
    // The id is not taken for another order.
    let fault = bed.http("POST", &format!("{at}/map"), order(2, json!({"node": "compute-0-1"})).as_bytes());
    assert_eq!((fault.0, &fault.1["kind"]), (400, &json!("invalid")), "{fault:?}");

    let unmap = order(3, json!({}));
    let unmapped = bed.http("POST", &format!("{at}/unmap"), unmap.as_bytes());
    assert_eq!(unmapped.0, 200, "{unmapped:?}");
    assert_eq!(bed.http("POST", &format!("{at}/unmap"), unmap.as_bytes()), unmapped);
    // A front end that was restarted meanwhile knows nothing of it; the NAS's ledger does.
    bed.service.kill(0).unwrap();
    bed.service.restart(0).unwrap();
    bed.service.ready(4).await.unwrap();
    assert_eq!(bed.http("POST", &format!("{at}/map"), map.as_bytes()), one, "the old map is not carried out again");
    assert_eq!(bed.http("POST", &format!("{at}/unmap"), unmap.as_bytes()), unmapped);
    assert_eq!(bed.http("POST", "/api/volumes", create.as_bytes()), first);
    let now = bed.volumes().await;
    assert_eq!((&now["volumes"][0]["phase"], &now["volumes"][0]["epoch"]), (&json!("unmapped"), &json!(1)));

    let delete = order(4, json!({}));
    let deleted = bed.http("POST", &format!("{at}/delete"), delete.as_bytes());
    assert_eq!(deleted.0, 200, "{deleted:?}");
    // The name is another volume's now: the repeated order does not hit that.
    bed.ok(&["create", "vol1", "--size", "1M"]).await;
    assert_eq!(bed.http("POST", &format!("{at}/delete"), delete.as_bytes()), deleted);
    bed.service.kill(0).unwrap();
    bed.service.restart(0).unwrap();
    bed.service.ready(4).await.unwrap();
    assert_eq!(bed.http("POST", &format!("{at}/delete"), delete.as_bytes()), deleted);
    let late = bed.http("POST", &format!("{at}/delete"), order(5, json!({})).as_bytes());
    assert_eq!((late.0, &late.1["kind"]), (404, &json!("not_found")), "{late:?}");
    assert_eq!(bed.volumes().await["volumes"][0]["size"], 1 << 20);
}
