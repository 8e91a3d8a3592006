//! The program's roles as processes of their own over a broker: a volume's life, connections cut in the middle of it, and
//! hosts that do what they must not.

use crate::{
    bed::{Stranger, broker, envelope, host},
    site::{DONE, Guest, NAS, NODES, OTHER_NAS, SITE, Site},
    trouble::delete_queues_of,
};
use img_storage_model::{
    RequestId, Size, VolumeId,
    api::{Phase, Request, VolumeView},
    messages::{Assign, Body, Endpoint, Envelope, Hello, Role, Want},
};
use img_storage_tests::broker::{Authority, Broker, Until};
use lapin::BasicProperties;
use std::{fs, process::Stdio, time::Duration};
use uuid::Uuid;

#[tokio::test(flavor = "multi_thread")]
async fn a_life_over_a_broker() {
    let broker = broker().await;
    let mut site = Site::start(&broker, "127.77.201.1").await.unwrap();
    let mut guest = Guest::new(2);
    site.insist(&["create", "vol1", "--size", "64M"]).await.unwrap();
    site.insist(&["map", "vol1", NODES[0], "--sync"]).await.unwrap();
    let view = site.until("vol1", Phase::Local).await.unwrap();
    guest.on(&view).await.unwrap();
    site.insist(&["sync", "vol1"]).await.unwrap();
    guest.works().await.unwrap();
    in_flight(&mut site, &mut guest, &broker).await;
    forged(&mut site, &broker).await;
    guest.works().await.unwrap();
    same_names(&mut site, &broker).await;
    guest.works().await.unwrap();
    guest.off().await.unwrap();
    let all = guest.now();
    site.insist(&["unmap", "vol1"]).await.unwrap();
    site.until("vol1", Phase::Unmapped).await.unwrap();
    guest.check(&site.disk("vol1"), all).unwrap();
    site.insist(&["delete", "vol1", "--yes"]).await.unwrap();
    assert!(site.service.storage_daemons().unwrap().is_empty());
}

/// Connections are cut, and queues deleted, with messages of every kind in flight.
async fn in_flight(site: &mut Site, guest: &mut Guest, broker: &Broker) {
    site.insist(&["create", "vol2", "--size", "16M"]).await.unwrap();
    for round in 0..4u64 {
        for words in [&["map", "vol2", NODES[1], "--sync"][..], &["sync", "vol2"], &["unmap", "vol2"]] {
            let asked = site.ask(words);
            for host in 0..SITE.len() {
                tokio::time::sleep(Duration::from_millis(7 * round + 3)).await;
                site.proxies[host].cut();
            }
            let _ = asked.answer().await;
            site.insist(words).await.unwrap();
        }
        site.until("vol2", Phase::Unmapped).await.unwrap();
        guest.works().await.unwrap();
    }
    for host in [NAS, NODES[0], "frontend"] {
        let before = site.log(host);
        delete_queues_of(broker, host).await;
        site.says(host, &before, "the broker is back").await.unwrap();
        site.insist(&["sync", "vol1"]).await.unwrap();
    }
    site.insist(&["delete", "vol2", "--yes"]).await.unwrap();
    site.all_run().unwrap();
}

fn signed(user: &str) -> BasicProperties {
    BasicProperties::default().with_user_id(user.into()).with_type("img-storage".into())
}

async fn say(stranger: &Stranger, user: &str, message: &Envelope) {
    let body = serde_json::to_vec(message).unwrap();
    assert!(stranger.send(message.to.as_str(), &body, signed(user)).await.unwrap(), "{message:?} reached nobody");
}

/// The view of a volume without what changes by itself.
fn steady(view: VolumeView) -> serde_json::Value {
    let mut value = serde_json::to_value(view).unwrap();
    let moving =
        ["lag", "allocated", "dirty", "notice", "last_write_back", "write_backs", "progress", "rate", "home", "next_sync"];
    for field in moving {
        value.as_object_mut().unwrap().remove(field);
    }
    value
}

/// A host with a good certificate says what it has no business to say.
async fn forged(site: &mut Site, broker: &Broker) {
    let node = Stranger::connect(broker, NODES[1]).await;
    let nas = Stranger::connect(broker, OTHER_NAS).await;
    let view = site.service.volume("vol1").await.unwrap();
    let (volume, epoch) = (view.id, view.epoch);
    let before = steady(view);
    let logs = SITE.map(|host| site.log(host));
    let id = |n| RequestId(Uuid::from_u128(n));

    // A node asks for another node's volume, and for its end.
    let map = Request::Map { volume, node: host(NODES[1]), sync: false, device: Default::default() };
    for (n, request) in [(1, map), (2, Request::Unmap { volume, force: true }), (3, Request::Delete { volume })] {
        let body = Body::Request { id: id(n), request: Box::new(request) };
        say(&node, NODES[1], &envelope(NODES[1], NAS, body.clone())).await;
        // The same in the front end's name, which the broker does not vouch for.
        say(&node, NODES[1], &envelope("frontend", NAS, body)).await;
    }
    // It says that the volume is gone from where it is, in its own name and in that node's.
    let report: serde_json::Value = serde_json::json!({
        "volume": volume, "epoch": epoch, "revision": 99, "phase": "gone", "pivoted": false, "detached": true,
        "attached": null, "device": null, "progress": null, "dirty": null, "pushed": null, "stuck": null, "notice": null
    });
    let report = Body::Report(serde_json::from_value(report).unwrap());
    say(&node, NODES[1], &envelope(NODES[1], NAS, report.clone())).await;
    say(&node, NODES[1], &envelope(NODES[0], NAS, report)).await;
    // It says that it is a NAS, and has the volume for somebody.
    let hello = Hello {
        initiator: None,
        role: Role::Nas,
        version: "9".to_owned(),
        pools: Vec::new(),
        addresses: Vec::new(),
        planes: Vec::new(),
        warm: Vec::new(),
        started: jiff::Timestamp::now(),
        reply: true,
    };
    say(&node, NODES[1], &envelope(NODES[1], "frontend", Body::Hello(hello))).await;
    let other = VolumeId(Uuid::from_u128(4711));
    say(&node, NODES[1], &envelope(NODES[1], NODES[0], assign(other, NODES[1], epoch.0))).await;
    // Another NAS of the cluster takes the volume away, in its own name and in the right one's.
    say(&nas, OTHER_NAS, &envelope(OTHER_NAS, NODES[0], assign(volume, OTHER_NAS, epoch.0 + 1))).await;
    say(&nas, OTHER_NAS, &envelope(OTHER_NAS, NODES[0], assign(volume, NAS, epoch.0 + 1))).await;
    say(&nas, OTHER_NAS, &envelope(NAS, NODES[0], assign(volume, NAS, epoch.0 + 1))).await;

    // Each is refused, and that is in the log of who got it.
    let [frontend, at_nas, at_node, _] = &logs;
    for (host, before, said) in [
        (NAS, at_nas, "was sent by the user compute-0-1"),
        (NAS, at_nas, "a request from somebody who is not the front end"),
        ("frontend", frontend, "is no NAS of this cluster"),
        (NODES[0], at_node, "is no NAS of this cluster"),
        (NODES[0], at_node, "in another NAS's name"),
        (NODES[0], at_node, "was sent by the user nas-0-1"),
        (NODES[0], at_node, "the volume is nas-0-0's"),
        (NAS, at_nas, "a report about a volume"),
    ] {
        site.says(host, before, said).await.unwrap();
    }
    // And nothing is changed by it.
    site.insist(&["sync", "vol1"]).await.unwrap();
    assert_eq!(steady(site.service.volume("vol1").await.unwrap()), before);
    assert!(!site.service.dir().join(NODES[0]).join("run").join(other.to_string()).exists());
    let daemons = site.service.storage_daemons().unwrap();
    let on = |host: &str| daemons.iter().filter(|d| d.host == host).count();
    assert_eq!((on(NODES[0]), on(NODES[1])), (1, 0));

    // The front end itself, twice with one id: it is done once.
    let frontend = Stranger::connect(broker, "frontend").await;
    let create =
        Request::Create { pool: None, name: "twice".parse().unwrap(), size: Size::exact(1 << 20).unwrap(), import: false };
    let request = envelope("frontend", NAS, Body::Request { id: id(9), request: Box::new(create) });
    say(&frontend, "frontend", &request).await;
    say(&frontend, "frontend", &request).await;
    let made = site.until("twice", Phase::Unmapped).await.unwrap();
    say(&frontend, "frontend", &request).await;
    site.insist(&["sync", "vol1"]).await.unwrap();
    assert_eq!(site.service.volume("twice").await.unwrap().id, made.id);
    // A node that says it has the newest writes of a volume that was never given to it does not get it.
    let before = site.log(NAS);
    let held = serde_json::json!({
        "volume": made.id, "epoch": 50, "revision": 1, "phase": "local", "pivoted": true, "detached": true, "attached": null,
        "device": null, "progress": null, "dirty": 0, "pushed": null, "stuck": null, "notice": null, "proof": "00"
    });
    say(&node, NODES[1], &envelope(NODES[1], NAS, Body::Report(serde_json::from_value(held).unwrap()))).await;
    site.says(NAS, &before, "a report about a volume").await.unwrap();
    assert_eq!(site.service.volume("twice").await.unwrap().phase, Phase::Unmapped);
    site.insist(&["delete", "twice", "--yes"]).await.unwrap();
}

fn assign(volume: VolumeId, nas: &str, epoch: u64) -> Body {
    let export = Endpoint { host: "127.0.0.1".to_owned(), port: 9, export: "x".to_owned(), server: host(nas) };
    let assign: Assign = serde_json::from_value(serde_json::json!({
        "volume": volume, "name": "tank/x", "nas": nas, "size": Size::exact(64 << 20).unwrap(), "epoch": epoch, "revision": 99,
        "want": Want::Gone, "device": "nbd", "force": true, "export": export, "granted": false, "push": null, "accepted": null,
        "release": true, "back": null
    }))
    .unwrap();
    Body::Assign(Box::new(assign))
}

/// A second daemon of a name, and daemons whose certificates are not what they should be: none of them starts.
async fn same_names(site: &mut Site, broker: &Broker) {
    let pki = site.scratch().join("elsewhere");
    let stranger = Authority::new(&pki).unwrap();
    let good = site.config("second", NODES[0], broker, broker.port(), "127.77.201.2").unwrap();
    let with = |file: &str, dir: &std::path::Path| {
        let path = site.scratch().join(format!("{file}.toml"));
        let text = fs::read_to_string(&good).unwrap();
        let old = text.lines().find(|l| l.starts_with("dir = ")).unwrap().to_owned();
        fs::write(&path, text.replace(&old, &format!("dir = \"{}\"", dir.display()))).unwrap();
        path
    };
    let incomplete = site.scratch().join("incomplete");
    fs::create_dir_all(&incomplete).unwrap();
    let cases = [
        (good.clone(), 3, NODES[0]),
        (with("stranger", &stranger.issue(NODES[0], Until::Later).unwrap()), 3, "certificate"),
        (with("expired", &broker.authority().issue(NODES[0], Until::Yesteryear).unwrap()), 3, "CertificateExpired"),
        (with("another", &broker.authority().issue(NODES[1], Until::Later).unwrap()), 3, NODES[1]),
        (with("unknown", &broker.authority().issue("compute-9-9", Until::Later).unwrap()), 3, "EXTERNAL"),
        (with("incomplete", &incomplete), 2, "ca-cert.pem"),
    ];
    let mut ends = Vec::new();
    for (config, code, named) in cases {
        let dir = tempfile::tempdir_in(site.scratch()).unwrap();
        let mut command = tokio::process::Command::new(site.service.program());
        command.args(["vm", "--name", NODES[0], "--config"]).arg(&config).arg("--dir").arg(dir.path());
        command.stdin(Stdio::null()).kill_on_drop(true);
        ends.push(tokio::spawn(async move {
            let output = tokio::time::timeout(DONE, command.output()).await.expect("it ends").unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(code), "{}: {said}", config.display());
            let last = said.lines().filter(|l| l.contains("error:")).collect::<String>();
            assert!(last.contains(named) && !said.contains("panicked"), "{}: {said}", config.display());
            drop(dir);
        }));
    }
    for end in ends {
        end.await.unwrap();
    }
    site.all_run().unwrap();
}
