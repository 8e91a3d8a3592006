//! The original's commands.

use crate::support::{World, expect, run};
use img_storage_model::api::{Phase, Request};
use std::path::Path;

fn words(line: &str) -> Vec<&str> {
    std::iter::once("rocks").chain(line.split(' ')).collect()
}

#[test]
fn what_they_show() {
    let world = World::new();
    {
        let mut volumes = world.fake.volumes.lock().unwrap();
        for volume in volumes.iter_mut().filter(|v| v.node.is_some() && v.phase != Phase::Local) {
            volume.export = Some(format!("nbds://10.1.1.1:10809/e{}", volume.id.0.as_u128()));
        }
        let copying = volumes.iter_mut().find(|v| v.phase == Phase::Copying).unwrap();
        // In the middle of a second, so that the command's start does not matter.
        copying.transfer_since = Some(crate::support::ago(1925));
    }
    let mut all = String::new();
    for line in [
        "list host storagemap nas-0-0",
        "list host storagemap nas=nas-0-0 output-header=no output-col=zvol,state",
        "list host storagemap nas-0-0 -o csv",
        "list host storagedev compute-0-0",
        "list host storagedev compute-0-1",
        "list host storagedev compute-0-0 json=yes",
        "set host storageattr nas-0-0 frequency 300",
        "set host storageattr nas-0-0 note x",
        "list host storageattr nas-0-0",
        "set host storageattr nas-0-0 note None",
        "list host storageattr nas-0-0 -o json",
        "set host zvolattr nas-0-0 vol2 frequency 900",
        "set host zvolattr nas-0-0 vol2 uploadspeed 10m",
        "list host zvolattr nas-0-0 vol2",
        "set host zvolattr nas-0-0 vol2 frequency None",
        "list host zvolattr zvol=vol2 nas-0-0 -o json",
        "add host storagemap nas-0-0 tank vol1 compute-0-0 35",
        "add host storagemap nas-0-0 tank new compute-0-0 1 img_sync=yes remotepool=tank2",
        "remove host storagemap nas-0-0 vol2",
        "remove host storageimg nas-0-0 tank vol2",
        "add host storagemap help",
    ] {
        let ran = world.run(&words(line));
        assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{line}");
        let out: Vec<&str> = ran.out.lines().collect();
        let timeless = out.join("\n").replace("0:32:06", "0:32:05");
        all.push_str(&format!("$ img-storage rocks {line}\n{timeless}{}", if out.is_empty() { "" } else { "\n" }));
    }
    expect("rocks.txt", &all);
}

#[test]
fn what_they_ask_for() {
    let world = World::new();
    let ran = world.run(&words("add host storagemap nas-0-0 tank new compute-0-0 1.5 img_sync=yes"));
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(ran.out.lines().next(), Some("mapping  nas-0-0 : tank / new  on  compute-0-0"));
    assert_eq!(ran.out.lines().nth(1), Some("nbd+unix:///e3?socket=/run/img-storage/new.sock"));
    let asked = world.fake.asked.lock().unwrap();
    let [(_, Request::Create { pool, size, .. }), (_, Request::Map { sync: true, node, .. })] = asked.as_slice() else {
        panic!("{asked:?}")
    };
    assert_eq!((pool.as_ref().map(ToString::to_string), size.bytes()), (Some("tank".to_owned()), 3 << 29));
    assert_eq!(node.as_str(), "compute-0-0");
}

#[test]
fn wrong_usage_says_how_they_are_used() {
    let world = World::new();
    let mut all = String::new();
    for line in [
        "add host storagemap nas-0-0 tank vol1 compute-0-0",
        "add host storagemap nas-0-0 tank vol1 compute-0-0 35 more",
        "add host storagemap nas-0-0 tank/sub vol1 compute-0-0 35",
        "add host storagemap nas-0-0 tank vol1 compute-0-0 0",
        "add host storagemap nas-0-0 tank vol1 compute-0-0 35G",
        "add host storagemap nas-0-0 tank vol1 compute-0-0 35 img_sync=perhaps",
        "add host storagemap nas-0-0 tank vol1 compute-0-0 35 remotepool=a/b",
        "remove host storagemap nas-0-0",
        "remove host storagemap nas-0-0 nosuch",
        "remove host storagemap nas-0-0 vol1",
        "remove host storageimg nas-0-0 tank vol2",
        "list host storagemap",
        "list host storagemap nas-9-9",
        "list host storagedev nas-0-0",
        "list host storageattr",
        "set host storageattr nas-0-0 frequency",
        "set host storageattr nas-0-0 frequency often",
        "set host zvolattr nas-0-0 vol2 colour red",
        "list host",
        "frobnicate",
    ] {
        let ran = world.run(&words(line));
        all.push_str(&format!("$ img-storage rocks {line}\n{}{}exit {}\n\n", ran.out, ran.err, ran.code));
    }
    expect("rocks-errors.txt", &all);
    assert_eq!(run(Path::new("/"), &["rocks"]).code, 2);
}
