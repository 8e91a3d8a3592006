//! What an operator set is obeyed, on several volumes at once.

use super::{
    guest::Guest,
    plan::{Plan, Trouble},
    site::{Site, host},
};
use img_storage_model::{
    Size, VolumeId, VolumeName,
    api::{Answer, AttributesOf, Phase, Request, VolumeView},
    attribute::Changes,
    messages::DeviceKind,
};
use std::{future::Future, sync::Arc, time::Duration};
use tokio::time::sleep;

const BLOCKS: u64 = 16;

/// Runs in virtual time on a site where nothing goes wrong.
fn simulate<F: Future<Output = ()>>(play: impl FnOnce(Arc<Site>) -> F) {
    let dir = tempfile::tempdir().expect("a directory");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
    runtime.block_on(async {
        let plan = Plan { scenario: String::new(), trouble: Trouble::None, seed: 1 };
        let (site, _crashes) = Site::new(&plan, dir.path().to_owned()).expect("a site");
        play(Arc::clone(&site)).await;
        assert!(site.world.violations().is_empty(), "{:?}", site.world.violations());
    });
}

async fn set(site: &Site, of: AttributesOf, changes: &[(&str, Option<&str>)]) {
    let changes: Changes = changes.iter().map(|(key, value)| ((*key).to_owned(), value.map(str::to_owned))).collect();
    site.ask(Request::SetAttributes { of, changes, notes: false }).await.expect("set");
}

async fn local(site: &Site, count: usize) -> Vec<VolumeId> {
    let mut volumes = Vec::new();
    for n in 0..count {
        let (name, size) =
            (VolumeName::new(format!("vol{n}")).expect("a name"), Size::exact(BLOCKS * Size::GRAIN).expect("a size"));
        let created = site.ask(Request::Create { pool: None, name, size, import: false }).await;
        let Ok(Answer::Volume { volume }) = created else { panic!("{created:?}") };
        let map = Request::Map { volume: volume.id, node: site.nodes[n % 2].clone(), sync: true, device: DeviceKind::Nbd };
        site.ask(map).await.expect("mapped");
        volumes.push(volume.id);
    }
    volumes
}

async fn views(site: &Site) -> Vec<VolumeView> {
    match site.ask(Request::Find { selector: None }).await {
        Ok(Answer::Volumes { volumes }) => volumes,
        other => panic!("{other:?}"),
    }
}

/// Looks on until all are as wanted; gives the most that moved data at once, and whether one said what it waited for.
async fn most_at_once(site: &Site, waits: &str, is_over: impl Fn(&VolumeView) -> bool) -> (usize, bool) {
    let (mut most, mut said) = (0, false);
    for _ in 0..20_000 {
        let views = views(site).await;
        most = most.max(views.iter().filter(|v| v.progress.is_some()).count());
        said |= views.iter().any(|v| v.notice.as_deref() == Some(waits));
        if views.iter().all(&is_over) {
            return (most, said);
        }
        sleep(Duration::from_millis(50)).await;
    }
    panic!("it does not end: {:#?}", views(site).await);
}

#[test]
fn no_more_transfers_run_at_once_than_may() {
    simulate(|site| async move {
        set(&site, AttributesOf::Nas, &[("sync-workers", Some("2")), ("frequency", Some("1h"))]).await;
        let volumes = local(&site, 6).await;
        let copied = most_at_once(&site, "waits for one of 2 transfers to nodes to end", |v| v.phase == Phase::Local).await;
        assert_eq!(copied, (2, true));
        let guests: Vec<Guest> = volumes
            .iter()
            .enumerate()
            .map(|(n, volume)| Guest::start(&site.world, &site.nodes[n % 2], *volume, BLOCKS as usize, n as u64))
            .collect();
        sleep(Duration::from_secs(5)).await;
        // All of them are due at the same moment.
        set(&site, AttributesOf::Nas, &[("sync-workers", Some("3")), ("nextsync", Some("+1s")), ("uploadspeed", Some("128K"))])
            .await;
        let home = most_at_once(&site, "waits for one of 3 transfers from nodes to end", |v| v.write_backs > 0).await;
        assert_eq!(home, (3, true));
        drop(guests);
    });
}

#[test]
fn a_volume_nobody_writes_to_is_left_in_peace() {
    simulate(|site| async move {
        set(&site, AttributesOf::Nas, &[("frequency", Some("10s"))]).await;
        let volume = local(&site, 1).await[0];
        let guest = Guest::start(&site.world, &host("node-a"), volume, BLOCKS as usize, 7);
        site.until(volume, "brought home", |v| v.write_backs > 1).await.expect("brought home");
        guest.idle(true);
        site.until(volume, "clean", |v| v.lag == Some(0) && v.dirty == Some(0)).await.expect("clean");
        let before = site.find(volume).await.expect("a volume");
        for _ in 0..30 {
            sleep(Duration::from_secs(10)).await;
            let now = site.find(volume).await.expect("a volume");
            assert_eq!((now.write_backs, now.lag, now.phase), (before.write_backs, Some(0), Phase::Local));
        }
        let due = site.find(volume).await.and_then(|v| v.next_sync).expect("a time");
        assert!(due >= site.now() - jiff::SignedDuration::from_secs(5), "what is known to be home is from a moment ago: {due}");
        guest.idle(false);
        site.until(volume, "brought home again", |v| v.write_backs > before.write_backs).await.expect("brought home");
        drop(guest);
    });
}

#[test]
fn a_time_that_was_set_holds_for_one_write_back() {
    simulate(|site| async move {
        set(&site, AttributesOf::Nas, &[("frequency", Some("10s"))]).await;
        let volume = local(&site, 1).await[0];
        let guest = Guest::start(&site.world, &host("node-a"), volume, BLOCKS as usize, 7);
        site.until(volume, "brought home", |v| v.write_backs > 1).await.expect("brought home");
        let at = site.now() + jiff::SignedDuration::from_secs(120);
        set(&site, AttributesOf::Volume(volume), &[("next-sync", Some(&at.to_string()))]).await;
        let before = site.find(volume).await.expect("a volume");
        sleep(Duration::from_secs(100)).await;
        let shown = site.find(volume).await.expect("a volume");
        // One may have been under way when the time was set.
        assert!(shown.write_backs <= before.write_backs + 1 && shown.next_sync == Some(at), "{shown:?}");
        sleep(Duration::from_secs(60)).await;
        let after = site.find(volume).await.expect("a volume");
        assert!(after.write_backs >= shown.write_backs + 3, "{after:?}");
        let home = after.last_write_back.expect("a write-back").at;
        assert!(home > at, "{home}");
        // Whoever asks is told where the time is from.
        let answer = site.ask(Request::Attributes { of: AttributesOf::Volume(volume) }).await.expect("answered");
        let Answer::Attributes { attributes } = answer else { panic!("{answer:?}") };
        assert_eq!(attributes[1].from, img_storage_model::attribute::AttributeFrom::Schedule, "{attributes:?}");
        drop(guest);
    });
}

#[test]
fn what_was_set_outlives_the_daemon_and_a_bad_change_changes_nothing() {
    simulate(|site| async move {
        let volume = local(&site, 1).await[0];
        set(&site, AttributesOf::Nas, &[("frequency", Some("5m")), ("sync-workers", Some("7"))]).await;
        set(&site, AttributesOf::Volume(volume), &[("uploadspeed", Some("10m"))]).await;
        for (of, key, value) in [
            (AttributesOf::Nas, "frequency", "never"),
            (AttributesOf::Nas, "note", "x"),
            (AttributesOf::Volume(volume), "sync-workers", "2"),
        ] {
            let changes = [("uploadspeed".to_owned(), None), (key.to_owned(), Some(value.to_owned()))].into();
            let fault = site.ask(Request::SetAttributes { of, changes, notes: false }).await.expect_err("refused");
            assert!(fault.message.contains(key), "{fault}");
        }
        site.restart(&site.nas).await;
        for (of, key, number) in [
            (AttributesOf::Nas, "sync-workers", 7),
            (AttributesOf::Volume(volume), "frequency", 300),
            (AttributesOf::Volume(volume), "upload-speed", 10 << 20),
        ] {
            let answer = site.ask(Request::Attributes { of }).await.expect("answered");
            let Answer::Attributes { attributes } = answer else { panic!("{answer:?}") };
            let view = attributes.iter().find(|view| view.key == key).expect("an attribute");
            assert_eq!(view.number, Some(number), "{view:?}");
        }
    });
}
