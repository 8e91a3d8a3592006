//! A NAS that is killed while it carries something out: the request is answered all the same.

use crate::bed::{Bed, NAS, NODE, del, map, success, unmap};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::sleep;

/// Asks for something, kills the NAS so many milliseconds later, starts it again, and waits.
async fn interrupted(bed: &mut Bed, message: Value, after: u64) -> Value {
    let mut question = bed.send(NAS, message.to_string().as_bytes());
    sleep(Duration::from_millis(after)).await;
    bed.kill(NAS).await;
    sleep(Duration::from_millis(500)).await;
    bed.start(NAS);
    question.answer().await
}

#[tokio::test(start_paused = true)]
async fn every_order_is_answered_after_a_restart_in_the_middle() {
    // A verb of the simulated hosts takes 5 ms; these moments lie before, in and behind all of them.
    for after in [1, 4, 8, 12, 17, 23, 30, 45, 80] {
        for sync in [false, true] {
            let mut bed = Bed::new().await;
            let mapped = interrupted(&mut bed, map("vm1", NODE, sync), after).await;
            assert_eq!(mapped["status"], "success", "map, sync {sync}, killed after {after} ms: {mapped}");
            let volume = Bed::volume(&mapped["bdev"]);
            // A NAS that has just started hears only after a moment how things are.
            let settled = |row: &Value| row["locked"].is_null() && row["iscsi_target"].is_null() == sync;
            bed.until("vm1", settled).await;

            let unmapped = interrupted(&mut bed, unmap("vm1"), after).await;
            assert_eq!(unmapped, success("zvol_unmapped"), "unmap, sync {sync}, killed after {after} ms");
            bed.until("vm1", |row| row["locked"].is_null() && row["remotehost"].is_null()).await;

            bed.world.expect_delete(volume);
            let deleted = interrupted(&mut bed, del("vm1"), after).await;
            assert_eq!(deleted, success("zvol_deleted"), "del, sync {sync}, killed after {after} ms");
            assert_eq!(bed.row("vm1").await, None);
            assert_eq!(bed.world.violations(), Vec::<String>::new());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_stays_away_is_said_after_a_restart() {
    let mut bed = Bed::new().await;
    let mut question = bed.send(NAS, map("vm1", NODE, false).to_string().as_bytes());
    sleep(Duration::from_millis(2)).await;
    bed.kill(NAS).await;
    bed.kill(NODE).await;
    sleep(Duration::from_millis(500)).await;
    bed.start(NAS);
    let answer = question.answer().await;
    assert_eq!((&answer["action"], &answer["status"]), (&json!("zvol_mapped"), &json!("error")), "{answer}");
}

#[tokio::test(start_paused = true)]
async fn who_has_gone_leaves_nothing_behind() {
    let mut bed = Bed::new().await;
    let question = bed.send(NAS, map("vm1", NODE, false).to_string().as_bytes());
    drop(question);
    // It is done all the same, as the original does it.
    bed.until("vm1", |row| row["remotehost"] == NODE && row["locked"].is_null()).await;
    bed.kill(NAS).await;
    bed.start(NAS);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(bed.ask(NAS, unmap("vm1")).await, success("zvol_unmapped"));
}
