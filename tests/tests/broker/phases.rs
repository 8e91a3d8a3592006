//! The broker goes away and comes back in every phase of a volume's life, by its administrator or by `kill -9`, while a guest
//! writes and verifies.

use crate::site::{DONE, Guest, NODES, SITE, Site};
use img_storage_model::api::Phase;
use img_storage_tests::broker::Broker;
use std::time::{Duration, Instant};

const VOLUME: &str = "vol1";

struct World {
    broker: Broker,
    site: Site,
    guest: Guest,
    outages: u32,
    longest: Duration,
}

impl World {
    /// The broker is gone for a while, and everybody finds it again. The guest does not notice.
    async fn outage(&mut self, with_guest: bool) {
        self.outages += 1;
        if self.outages.is_multiple_of(2) {
            self.broker.kill();
        } else {
            self.broker.stop().await.unwrap();
        }
        if with_guest {
            self.guest.works().await.unwrap();
        }
        self.broker.resume().await.unwrap();
        let begun = Instant::now();
        self.site.service.ready(SITE.len()).await.unwrap();
        self.longest = self.longest.max(begun.elapsed());
        self.site.all_run().unwrap();
    }

    async fn glimpse(&self, phase: Phase) {
        let begun = Instant::now();
        while self.site.service.glance(VOLUME).await != Some(phase) {
            assert!(begun.elapsed() < DONE, "never in phase {phase}:\n{}", self.site.service.log_tail());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_broker_is_away_in_every_phase() {
    let mut hosts = SITE.to_vec();
    hosts.push(crate::site::OTHER_NAS);
    let broker = Broker::start(&hosts).await.unwrap();
    let site = Site::start(&broker, "127.77.200.1").await.unwrap();
    let mut world = World { broker, site, guest: Guest::new(1), outages: 0, longest: Duration::ZERO };

    // While it is created and mapped: what was asked for is done once, however often it is asked.
    let created = world.site.ask(&["create", VOLUME, "--size", "64M"]);
    world.outage(false).await;
    let _ = created.answer().await;
    world.site.insist(&["create", VOLUME, "--size", "64M"]).await.unwrap();
    let mapped = world.site.ask(&["map", VOLUME, NODES[0]]);
    world.outage(false).await;
    let _ = mapped.answer().await;
    world.site.insist(&["map", VOLUME, NODES[0]]).await.unwrap();
    let view = world.site.until(VOLUME, Phase::Remote).await.unwrap();
    world.guest.on(&view).await.unwrap();

    // While it is remote, while it is copied, and while it is local and written back now and then.
    world.outage(true).await;
    world.site.insist(&["map", VOLUME, NODES[0], "--sync"]).await.unwrap();
    world.outage(true).await;
    world.site.until(VOLUME, Phase::Local).await.unwrap();
    world.outage(true).await;
    let before = world.guest.now();
    world.site.insist(&["sync", VOLUME]).await.unwrap();
    world.guest.works().await.unwrap();

    // On the way back while the guest works, and when it is off.
    let back = world.site.ask(&["bring-back", VOLUME]);
    world.outage(true).await;
    let _ = back.answer().await;
    world.site.insist(&["bring-back", VOLUME]).await.unwrap();
    world.site.until(VOLUME, Phase::Remote).await.unwrap();
    world.guest.works().await.unwrap();
    world.site.insist(&["map", VOLUME, NODES[0], "--sync"]).await.unwrap();
    world.site.until(VOLUME, Phase::Local).await.unwrap();
    world.guest.works().await.unwrap();
    world.guest.off().await.unwrap();
    let all = world.guest.now();
    assert!(before < all);
    let unmapped = world.site.ask(&["unmap", VOLUME]);
    world.glimpse(Phase::Returning).await;
    world.outage(false).await;
    let _ = unmapped.answer().await;
    world.site.insist(&["unmap", VOLUME]).await.unwrap();
    world.site.until(VOLUME, Phase::Unmapped).await.unwrap();
    world.guest.check(&world.site.disk(VOLUME), all).unwrap();

    // Without a broker an operator hears that, soon; what was not asked is not done.
    world.broker.stop().await.unwrap();
    let ran = world.site.service.run(&["delete", VOLUME, "--yes"]).await.unwrap();
    assert_eq!(ran.code, 5, "{}", ran.stderr);
    assert!(ran.stderr.contains("broker") && ran.took < Duration::from_secs(5), "after {:?}: {}", ran.took, ran.stderr);
    world.broker.resume().await.unwrap();
    world.site.service.ready(SITE.len()).await.unwrap();
    world.site.until(VOLUME, Phase::Unmapped).await.unwrap();
    world.site.insist(&["delete", VOLUME, "--yes"]).await.unwrap();
    assert!(!world.site.disk(VOLUME).exists() && world.site.service.storage_daemons().unwrap().is_empty());
    println!("{} outages; everybody was back {:.1} s after the broker at most", world.outages, world.longest.as_secs_f64());
}
