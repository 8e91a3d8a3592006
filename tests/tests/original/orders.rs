//! What each order does, and every way that it is refused.

use crate::bed::{Bed, NAS, NODE, OTHER, del, error, host, map, success, unmap};
use img_storage_host::sim::Fault;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::sleep;

#[tokio::test(start_paused = true)]
async fn a_volume_goes_to_its_node_and_home_again() {
    let mut bed = Bed::new().await;
    let mapped = bed.ask(NAS, map("vm1", NODE, true)).await;
    assert_eq!((&mapped["action"], &mapped["status"]), (&json!("zvol_mapped"), &json!("success")), "{mapped}");
    let volume = Bed::volume(&mapped["bdev"]);

    // Answered as soon as the device can be used; the copy goes on.
    let row = bed.row("vm1").await.unwrap();
    assert_eq!((&row["is_sending"], &row["is_delete_remote"]), (&json!(1), &json!(1)), "{row}");
    assert_eq!((&row["remotehost"], &row["remotepool"], &row["locked"]), (&json!(NODE), &json!("tank2"), &json!("vm1")));
    assert!(row["iscsi_target"].is_string() && row["time"].is_number(), "{row}");
    let entry = bed.device(NODE, "vm1").await;
    assert_eq!((&entry["status"], &entry["sync"], &entry["device"]), (&json!("snapshot"), &json!("sync"), &mapped["bdev"]));
    assert_eq!(bed.ask(NAS, map("vm1", NODE, true)).await, error("zvol_mapped", "ZVol vm1 is busy"));
    assert_eq!(bed.ask(NAS, unmap("vm1")).await, error("zvol_unmapped", "ZVol vm1 is busy"));
    assert_eq!(bed.ask(NAS, del("vm1")).await, error("zvol_deleted", "ZVol vm1 is busy"));

    let row = bed.until("vm1", |row| row["locked"].is_null()).await;
    assert_eq!((&row["iscsi_target"], &row["is_sending"], &row["remotepool"]), (&Value::Null, &Value::Null, &json!("tank2")));
    assert!(row["nextsync"].is_number(), "{row}");
    assert_eq!(bed.device(NODE, "vm1").await["status"], "linear");
    assert_eq!(bed.ask(NAS, map("vm1", OTHER, false)).await, error("zvol_mapped", "Error when mapping zvol: already mapped"));
    assert_eq!(bed.ask(NAS, del("vm1")).await, error("zvol_deleted", "Error deleting zvol vm1: is mapped"));

    // A guest writes, and is off.
    assert!(bed.world.guest_connect(&host(NODE), volume).is_some());
    for block in 0..100 {
        bed.world.guest_write(&host(NODE), volume, block).await.unwrap();
    }
    let in_use = bed.ask(NAS, unmap("vm1")).await;
    let why = in_use["error"].as_str().unwrap();
    assert!(why.starts_with("Error detaching iSCSI target from compute node: ") && why.contains("4242"), "{why}");
    bed.world.guest_disconnect(&host(NODE), volume);

    // Answered when the device is gone; what the NAS lacks is on its way.
    assert_eq!(bed.ask(NAS, unmap("vm1")).await, success("zvol_unmapped"));
    let row = bed.row("vm1").await.unwrap();
    assert_eq!((&row["is_sending"], &row["is_delete_remote"], &row["locked"]), (&json!(0), &json!(1), &json!("vm1")), "{row}");
    assert!(row["time"].is_number());
    assert_eq!(bed.ask(NAS, map("vm1", OTHER, false)).await, error("zvol_mapped", "ZVol vm1 is busy"));
    assert_eq!(bed.ask(NAS, unmap("vm1")).await, error("zvol_unmapped", "ZVol vm1 is busy"));
    assert_eq!(bed.device(NODE, "vm1").await, Value::Null);
    bed.until("vm1", |row| row["remotehost"].is_null() && row["locked"].is_null()).await;
    assert_eq!(bed.world.check_final(volume, None), Ok(()));

    // And to another node, over the network.
    assert_eq!(bed.ask(NAS, map("vm1", OTHER, false)).await["status"], "success");
    let row = bed.row("vm1").await.unwrap();
    assert_eq!((&row["remotehost"], &row["remotepool"], &row["locked"]), (&json!(OTHER), &Value::Null, &Value::Null));
    assert_eq!(bed.ask(NAS, unmap("vm1")).await, success("zvol_unmapped"));
    bed.world.expect_delete(volume);
    assert_eq!(bed.ask(NAS, del("vm1")).await, success("zvol_deleted"));
    assert_eq!(bed.row("vm1").await, None);
    assert_eq!(bed.world.violations(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_away_is_unavailable() {
    let mut bed = Bed::new().await;
    assert_eq!(bed.ask(NAS, map("vm1", NODE, false)).await["status"], "success");
    bed.kill(NODE).await;
    let unavailable = "Compute node compute-0-0 is unavailable";
    // The NAS has not noticed yet: it heard of that node a moment ago.
    assert_eq!(bed.ask(NAS, map("vm2", NODE, false)).await, error("zvol_mapped", unavailable));
    let row = bed.until("vm2", |row| row["locked"].is_null()).await;
    assert_eq!(row["remotehost"], Value::Null, "nothing of it stays");
    assert_eq!(bed.ask(NAS, map("vm2", NODE, true)).await, error("zvol_mapped", unavailable));
    assert_eq!(bed.ask(NAS, unmap("vm1")).await, error("zvol_unmapped", unavailable));
    assert_eq!(bed.row("vm1").await.unwrap()["remotehost"], NODE, "it is mapped as before");
    // Also when the NAS itself was started after that.
    bed.kill(NAS).await;
    bed.start(NAS);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(bed.ask(NAS, map("vm2", NODE, false)).await, error("zvol_mapped", unavailable));
    assert_eq!(bed.ask(NAS, unmap("vm1")).await, error("zvol_unmapped", unavailable));
    assert_eq!(bed.ask(NAS, map("vm3", "no-such-host", false)).await, error("zvol_mapped", "Host no-such-host is unknown"));
    // Back again, it does what it is asked.
    bed.start(NODE);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(bed.ask(NAS, unmap("vm1")).await, success("zvol_unmapped"));
    assert_eq!(bed.ask(NAS, map("vm2", NODE, false)).await["status"], "success");
    // A NAS runs no guests.
    let answer = bed.ask(NAS, map("vm4", NAS, false)).await;
    assert!(answer["error"].as_str().unwrap().contains(NAS), "{answer}");
}

#[tokio::test(start_paused = true)]
async fn a_node_that_does_not_get_on_is_not_waited_for_for_ever() {
    let mut bed = Bed::new().await;
    assert_eq!(bed.ask(NAS, map("vm1", OTHER, false)).await["status"], "success");
    for after in 0..400 {
        bed.fail(after, Fault::ErrorBefore);
    }
    let mut stuck = bed.send(NAS, map("vm2", NODE, false).to_string().as_bytes());
    // Nobody is kept waiting by that.
    assert_eq!(bed.ask(NAS, map("vm1", NODE, false)).await, error("zvol_mapped", "Error when mapping zvol: already mapped"));
    assert!(stuck.silent());
    let answer = stuck.answer().await;
    assert_eq!((&answer["action"], &answer["status"]), (&json!("zvol_mapped"), &json!("error")), "{answer}");
}

#[tokio::test(start_paused = true)]
async fn names_are_one_over_all_pools() {
    let mut bed = Bed::new().await;
    let mut fast = map("vm1", NODE, false);
    fast["zpool"] = json!("fast");
    assert_eq!(bed.ask(NAS, fast).await["status"], "success");
    for message in [map("vm1", NODE, false), del("vm1")] {
        let answer = bed.ask(NAS, message).await;
        let why = answer["error"].as_str().unwrap();
        assert!(why.contains("zpool") && why.contains("vm1 is in pool fast of nas-0-0, not in tank"), "{why}");
    }
    let mut nowhere = map("vm2", NODE, false);
    nowhere["zpool"] = json!("nosuch");
    let why = bed.ask(NAS, nowhere).await["error"].as_str().unwrap().to_owned();
    assert!(why.contains("zpool") && why.contains("nosuch") && why.contains("tank"), "{why}");
    assert_eq!(bed.row("vm2").await, None);
}

#[tokio::test(start_paused = true)]
async fn of_two_at_once_one_is_done() {
    let mut bed = Bed::new().await;
    let body = map("vm1", NODE, false).to_string();
    let mut both = [bed.send(NAS, body.as_bytes()), bed.send(NAS, body.as_bytes())];
    let mut answers = Vec::new();
    for question in &mut both {
        answers.push(question.answer().await);
    }
    answers.sort_by_key(|a| a["status"] == "error");
    assert_eq!(answers[0]["status"], "success");
    assert!(answers[1] == error("zvol_mapped", "ZVol vm1 is busy"), "{answers:?}");
    // Others are not held up by one that takes its time.
    let mut many: Vec<_> =
        (0..20).map(|n| bed.send(NAS, map(&format!("many{n}"), NODE, n % 2 == 0).to_string().as_bytes())).collect();
    for question in &mut many {
        assert_eq!(question.answer().await["status"], "success");
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_that_comes_twice_is_done_once() {
    let mut bed = Bed::new().await;
    let body = map("vm1", NODE, false).to_string();
    let mut first = bed.send(NAS, body.as_bytes());
    let mut again = bed.send_as(NAS, first.reply_to.clone(), body.as_bytes());
    // They share a queue, on which the one answer comes.
    let answer = again.answer().await;
    assert_eq!(answer["status"], "success");
    assert!(first.silent() && again.silent());
    // Later, it is the stored one: it would be refused if it were news.
    let mut late = bed.send_as(NAS, first.reply_to.clone(), body.as_bytes());
    assert_eq!(late.answer().await, answer);
    assert_eq!(bed.ask(NAS, map("vm1", NODE, false)).await["status"], "error");
    // Another message of the same number is another message.
    let mut other = bed.send_as(NAS, first.reply_to.clone(), unmap("vm1").to_string().as_bytes());
    assert_eq!(other.answer().await, success("zvol_unmapped"));
    let mut later = bed.send_as(NAS, first.reply_to.clone(), body.as_bytes());
    assert_eq!(later.answer().await, answer);
    assert_eq!(bed.row("vm1").await.unwrap()["remotehost"], Value::Null, "it was not mapped anew");
}

#[tokio::test(start_paused = true)]
async fn whatever_comes_is_answered() {
    let mut bed = Bed::new().await;
    for to in [NAS, NODE] {
        for body in [&b""[..], b"{", b"\xff", b"[]", b"null", b"7", b"{}", b"{\"action\": 7}", b"{\"action\": \"\"}"] {
            let answer = bed.ask_bytes(to, body).await;
            assert_eq!(answer["status"], "error", "{body:?}: {answer}");
            assert!(answer["error"].as_str().is_some_and(|why| !why.is_empty()), "{body:?}: {answer}");
        }
        for action in ["map_zvol", "unmap_zvol", "del_zvol", "get_zvol_attrs", "set_zvol_attrs", "set_attrs", "del_attrs"] {
            let answer = bed.ask(to, json!({"action": action})).await;
            assert_eq!(answer["status"], "error", "{action}: {answer}");
        }
    }
    for (action, to) in [("list_dev", NAS), ("list_initiator", NAS), ("list_zvols", NODE), ("map_zvol", NODE)] {
        assert_eq!(bed.ask(to, json!({"action": action})).await, json!({"status": "error", "error": "action_unsupported"}));
    }
    // Nobody waits for an answer without a queue, so nothing is done.
    assert_eq!(bed.ask(NAS, json!({"action": "list_zvols"})).await["body"], json!([]));
}

#[tokio::test(start_paused = true)]
async fn where_only_signed_orders_count_it_says_so() {
    let mut bed = Bed::new().await;
    bed.kill(NAS).await;
    bed.unsigned_orders = false;
    bed.start(NAS);
    let answer = bed.ask(NAS, map("vm1", NODE, false)).await;
    assert_eq!(answer["status"], "error");
    assert!(answer["error"].as_str().unwrap().starts_with("nas-0-0 takes signed orders only"), "{answer}");
    bed.kill(NAS).await;
    bed.unsigned_orders = true;
    bed.start(NAS);
    assert_eq!(bed.ask(NAS, json!({"action": "list_zvols"})).await["body"], json!([]));
}
