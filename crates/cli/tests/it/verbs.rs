//! What the verbs do.

use crate::support::World;
use img_storage_model::{
    api::{Phase, Request},
    messages::DeviceKind,
};
use std::{
    io::{Read, Write},
    os::unix::net::UnixListener,
    time::Instant,
};

fn asked(world: &World) -> Vec<Request> {
    world.fake.asked.lock().unwrap().iter().map(|(_, request)| request.clone()).collect()
}

const DEVICE: &str = "nbd+unix:///e3?socket=/run/img-storage/vol1.sock\n";

#[test]
fn map_prints_the_device_alone() {
    let world = World::new();
    let ran = world.run(&["map", "tank/vol1", "compute-0-0"]);
    assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (0, DEVICE, ""));
    let volume = world.fake.volumes.lock().unwrap()[1].id;
    assert_eq!(
        asked(&world),
        [Request::Map { volume, node: "compute-0-0".parse().unwrap(), sync: false, device: DeviceKind::Nbd }]
    );
}

#[test]
fn map_follows_the_copy() {
    let world = World::new();
    let ran = world.run(&[
        "map",
        "nas-0-0:tank/vol1",
        "compute-0-0",
        "--no-sync",
        "--sync",
        "--wait",
        "local",
        "--device",
        "vhost-user-blk",
    ]);
    assert_eq!((ran.code, ran.out.as_str()), (0, DEVICE), "{ran:?}");
    assert!(ran.err.starts_with("nas-0-0:tank/vol1: copying ") && ran.err.ends_with("is local on compute-0-0\n"), "{ran:?}");
    assert!(matches!(asked(&world)[0], Request::Map { sync: true, device: DeviceKind::VhostUserBlk, .. }));
    assert_eq!(world.fake.volumes.lock().unwrap()[1].phase, Phase::Local);
}

#[test]
fn map_creates_what_is_not_there_and_leaves_what_is() {
    let world = World::new();
    let ran = world.run(&["map", "fast/new", "compute-0-0", "--size", "1G", "-o", "json"]);
    assert_eq!((ran.code, ran.err.as_str()), (0, "created nas-0-0:fast/new of 1G\n"), "{ran:?}");
    let shown: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!((&shown["phase"], &shown["size"]), (&"remote".into(), &(1u64 << 30).into()));
    let ran = world.run(&["map", "tank/vol1", "compute-0-0", "--size", "1G"]);
    assert_eq!((ran.code, ran.out.as_str()), (0, DEVICE));
    assert!(ran.err.contains("exists and is 35G"), "{ran:?}");
}

#[test]
fn create_waits_for_the_image() {
    let world = World::new();
    std::fs::write(world.dir.path().join("disk.raw"), vec![1; 3 << 20]).unwrap();
    let ran = world.run(&["create", "tank/new", "--from", "disk.raw"]);
    assert_eq!((ran.code, ran.out.as_str()), (0, "nas-0-0:tank/new is created, 3M\n"), "{ran:?}");
    assert!(ran.err.contains("importing 0% (0 of 3M)"), "{ran:?}");
    let ran = world.run(&["create", "tank/other", "--from", "disk.raw", "--no-wait"]);
    assert_eq!(ran.code, 0);
    assert!(ran.err.contains("is being filled"), "{ran:?}");
    let ran = world.run(&["create", "tank/empty", "--size", "35G"]);
    assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (0, "nas-0-0:tank/empty is created, 35G\n", ""));
}

#[test]
fn export_tells_how_it_ended() {
    let world = World::new();
    let ran = world.run(&["export", "tank/vol1", "out.qcow2"]);
    assert_eq!((ran.code, ran.out.as_str()), (0, "nas-0-0:tank/vol1 is in out.qcow2, qcow2\n"), "{ran:?}");
    let ran = world.run(&["export", "tank/vol2", "out.raw"]);
    assert_eq!((ran.code, ran.out.as_str()), (1, ""), "{ran:?}");
    assert!(ran.err.contains("the disk is full"), "{ran:?}");
}

#[test]
fn the_others_say_what_they_did() {
    let world = World::new();
    for (words, said) in [
        ("sync tank/vol2", "nas-0-0:tank/vol2 is up to date on nas-0-0\n"),
        ("bring-back tank/vol2", "nas-0-0:tank/vol2 is on nas-0-0 again\n"),
        ("unmap tank/vol2", "nas-0-0:tank/vol2 is unmapped\n"),
        ("resize tank/vol2 20G", "nas-0-0:tank/vol2 is 20G now\n"),
        ("delete tank/vol2 --yes", "nas-0-0:tank/vol2 is deleted\n"),
        ("unmap fast/vol1 --force --yes", "nas-0-0:fast/vol1 is unmapped\n"),
    ] {
        let ran = world.run(&words.split(' ').collect::<Vec<_>>());
        assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (0, said, ""), "{words}");
    }
}

#[test]
fn what_is_not_over_in_time_is_exit_4_and_no_wait_is_fine() {
    let world = World::new();
    let begun = Instant::now();
    let ran = world.run(&["unmap", "tank/vol3", "--timeout", "2s"]);
    assert_eq!(ran.code, 4, "{ran:?}");
    assert!(ran.err.contains("copying 42% (42G of 100G), 118M/s, 8m left") && ran.err.contains("goes on"), "{ran:?}");
    assert!((2..6).contains(&begun.elapsed().as_secs()));
    let ran = world.run(&["unmap", "tank/vol3", "--no-wait"]);
    assert_eq!((ran.code, ran.out.as_str()), (0, ""), "{ran:?}");
    assert!(ran.err.contains("is under way"), "{ran:?}");
}

/// A front end that breaks off in the middle of an order: the command asks again, with the same request id.
#[test]
fn an_order_is_repeated_with_its_id() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("api.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let server = std::thread::spawn(move || {
        let mut bodies = Vec::new();
        for turn in 0..3 {
            let (mut stream, _) = listener.accept().unwrap();
            let mut read = Vec::new();
            let mut buffer = [0; 4096];
            let body = loop {
                let count = stream.read(&mut buffer).unwrap();
                read.extend_from_slice(&buffer[..count]);
                let text = String::from_utf8_lossy(&read).into_owned();
                if let Some((head, body)) = text.split_once("\r\n\r\n") {
                    let length = head.lines().find_map(|l| l.to_lowercase().strip_prefix("content-length: ").map(str::to_owned));
                    if body.len() >= length.map_or(0, |l| l.parse().unwrap()) {
                        break body.to_owned();
                    }
                }
            };
            let answer = match turn {
                0 => serde_json::to_string(&crate::support::volumes()[1]).unwrap(),
                1 => {
                    bodies.push(body);
                    continue;
                }
                _ => {
                    bodies.push(body);
                    r#"{"dry_run":false,"would":[],"volume":null,"transfer":null}"#.to_owned()
                }
            };
            write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{answer}", answer.len()).unwrap();
        }
        bodies
    });
    let ran = crate::support::run(dir.path(), &["delete", "tank/vol1", "--yes"]);
    assert_eq!((ran.code, ran.out.as_str()), (0, "nas-0-0:tank/vol1 is deleted\n"), "{ran:?}");
    let bodies = server.join().unwrap();
    assert_eq!(bodies[0], bodies[1]);
    let body: serde_json::Value = serde_json::from_str(&bodies[0]).unwrap();
    assert!(body["id"].is_string() && body["expect"].is_string(), "{body}");
}
