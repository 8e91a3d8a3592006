//! Help, wrong usage, errors and exit codes.

use crate::support::{World, command, expect, run};
use std::{ffi::OsStr, os::unix::ffi::OsStrExt, path::Path};

const VERBS: [&str; 27] = [
    "up",
    "frontend",
    "nas",
    "vm",
    "status",
    "create",
    "list",
    "show",
    "resize",
    "export",
    "delete",
    "map",
    "unmap",
    "sync",
    "bring-back",
    "set",
    "get",
    "unset",
    "devices",
    "hosts",
    "doctor",
    "rocks",
    "config",
    "pki",
    "broker-setup",
    "completion",
    "openapi",
];

#[test]
fn help_pages() {
    let mut all = run(Path::new("/"), &["--help"]).out;
    for verb in VERBS {
        let ran = run(Path::new("/"), &[verb, "--help"]);
        assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{verb}");
        all.push_str(&format!("\n$ img-storage {verb} --help\n{}", ran.out));
    }
    expect("help.txt", &all);
}

#[test]
fn errors_and_exit_codes() {
    let world = World::new();
    let dir = world.dir.path().display().to_string();
    std::fs::write(world.dir.path().join("there.raw"), "x").unwrap();
    let mut all = String::new();
    for words in [
        "show vol9",
        "show vol1",
        "show a//b",
        "show",
        "frobnicate",
        "resize tank/vol1 big",
        "resize tank/vol1 0",
        "resize tank/vol1 1G --dry-run",
        "create tank/x",
        "create tank/../x --size 1G",
        "create tank/x --size 99999T",
        "create nas-9-9:tank/x --size 1G",
        "create tank/vol1 --size 1G",
        "create tank/x --from missing.qcow2",
        "create tank/x --from .",
        "create tank/x --size 1G --wait local",
        "delete tank/vol1",
        "delete tank/vol2 --yes",
        "unmap tank/vol2 --force",
        "unmap tank/vol1",
        "unmap tank/vol3 --timeout 1",
        "unmap tank/vol3 --timeout 2d",
        "unmap tank/vol3 --wait nowhere",
        "map tank/vol1 compute-0-0 --wait local",
        "map tank/vol1 compute-0-0 --wait deleting",
        "map tank/vol1 compute-9-9 --dry-run",
        "map tank/vol1 compute-0-1 --dry-run",
        "map tank/vol2 compute-0-1",
        "map vol9 compute-0-0",
        "map tank/vol1 compute-0-0 --device floppy",
        "bring-back tank/vol1 --dry-run",
        "set tank/vol1 frequency often",
        "set tank/vol1 frequency 5m upload-speed",
        "set tank/vol1 frequency 5m frequency 6m",
        "set tank/vol1 sync-workers 3",
        "set tank/vol1 note x",
        "set nas-0-0 uploadspeed 1",
        "set nas-0-0 frequency 5m frequncy 5m",
        "set nas-9-9: frequency 5m",
        "set nas-9-9 frequency 5m",
        "set nas-0-0",
        "get tank/vol1 sync-workers",
        "get tank/vol1 colour",
        "unset nas-0-0 colour",
        "export tank/vol1 there.raw",
        "export tank/vol1 nowhere/x.raw",
        "export tank/vol2 out.raw",
        "export tank/vol1 x.raw --wait local",
        "status -o csv",
        "openapi -o csv",
        "list --phase flying",
        "list --watch=0",
        "up --nodes 0",
        "show tank/vol1 --socket nowhere.sock",
    ] {
        let ran = world.run(&words.split(' ').collect::<Vec<_>>());
        assert!(ran.out.is_empty(), "{words}: {ran:?}");
        all.push_str(&format!("$ img-storage {words}\n{}exit {}\n\n", ran.err.replace(&dir, "DIR"), ran.code));
    }
    expect("errors.txt", &all);
}

#[test]
fn no_service_is_exit_5() {
    let dir = tempfile::tempdir().unwrap();
    let ran = run(dir.path(), &["list"]);
    assert_eq!(ran.code, 5, "{ran:?}");
    assert!(ran.err.contains("there is no socket") && ran.err.contains("img-storage up"), "{ran:?}");
    drop(std::os::unix::net::UnixListener::bind(dir.path().join("api.sock")).unwrap());
    let ran = run(dir.path(), &["map", "tank/vol1", "compute-0-0"]);
    assert_eq!((ran.code, ran.err.contains("nobody serves")), (5, true), "{ran:?}");
    let ran = run(dir.path(), &["list", "--socket", &"x".repeat(200)]);
    assert_eq!(ran.code, 2, "{ran:?}");
}

#[test]
fn arguments_that_are_no_text() {
    let ran: crate::support::Ran =
        command(Path::new("/")).args([OsStr::new("show"), OsStr::from_bytes(b"vol\xff")]).output().unwrap().into();
    assert_eq!(ran.code, 2);
    assert_eq!(ran.err.lines().next(), Some("error: argument 2, \"vol\\xFF\", is not UTF-8"));
}

#[test]
fn completion_scripts_know_the_verbs() {
    for shell in ["bash", "zsh", "fish"] {
        let ran = run(Path::new("/"), &["completion", shell]);
        assert_eq!(ran.code, 0);
        assert!(VERBS.iter().all(|verb| ran.out.contains(verb)), "{shell}");
    }
    let bash = run(Path::new("/"), &["completion", "bash"]).out;
    let checked = std::process::Command::new("bash").args(["-n", "-c", &bash]).output().unwrap();
    assert!(checked.status.success(), "{checked:?}");
}

#[test]
fn the_description_needs_no_service() {
    let ran = run(Path::new("/"), &["openapi"]);
    let api: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert!(api["openapi"].as_str().unwrap().starts_with("3.1"));
    assert!(run(Path::new("/"), &["openapi", "-o", "yaml"]).out.contains("openapi: 3.1"));
}
