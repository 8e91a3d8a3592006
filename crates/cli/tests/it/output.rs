//! Tables and the other formats.

use crate::support::{World, command, expect};
use std::{
    io::{BufRead, BufReader},
    process::Stdio,
};

/// Times in UTC to the letter: the only thing that differs from run to run.
fn timeless(text: &str) -> String {
    let time = |word: &str| {
        let bare = word.trim_matches(|c: char| !c.is_ascii_alphanumeric());
        if bare.len() > 18 && bare.ends_with('Z') && bare.contains('T') { word.replace(bare, "TIME") } else { word.to_owned() }
    };
    text.split_inclusive([' ', '\n', ','])
        .map(|part| {
            let cut = part.len() - part.chars().last().map_or(0, |c| if " \n,".contains(c) { 1 } else { 0 });
            time(&part[..cut]) + &part[cut..]
        })
        .collect()
}

#[test]
fn what_is_shown() {
    let world = World::new();
    let mut all = String::new();
    for words in [
        "list",
        "list -o wide",
        "list vol1",
        "list --node compute-0-1 --phase copying",
        "list --nas nas-9-9",
        "list -o csv",
        "list tank/vol1 -o json",
        "list tank/vol1 -o yaml",
        "status",
        "hosts",
        "hosts -o wide",
        "hosts -o csv",
        "devices",
        "devices compute-0-0",
        "show tank/vol2",
        "show tank/vol3 --events 1",
        "show fast/vol1 -o csv",
        "map tank/vol1 compute-0-0 --sync --dry-run",
        "map vol8 compute-0-0 --size 1G --dry-run",
        "unmap tank/vol2 --force --dry-run",
        "delete tank/vol1 --dry-run",
        "sync tank/vol2 --dry-run",
        "sync tank/vol1 --dry-run",
        "bring-back tank/vol2 --dry-run",
        "resize tank/vol1 50G --dry-run",
        "create x --size 35G --dry-run",
        "delete tank/vol1 --dry-run -o json",
    ] {
        let ran = world.run(&words.split(' ').collect::<Vec<_>>());
        assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{words}");
        all.push_str(&format!("$ img-storage {words}\n{}\n", timeless(&ran.out)));
    }
    expect("shown.txt", &all);
    assert!(world.fake.asked.lock().unwrap().iter().all(|(_, r)| matches!(r, img_storage_model::api::Request::History { .. })));
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let world = World::new();
    {
        let mut volumes = world.fake.volumes.lock().unwrap();
        let one = volumes[1].clone();
        volumes.extend(std::iter::repeat_n(one, 5000));
    }
    let mut child = command(world.dir.path()).arg("list").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::with_capacity(64, child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

#[test]
fn watching_shows_it_again() {
    let world = World::new();
    for words in [["list", "--watch=1"], ["status", "--watch=1"]] {
        let mut child = command(world.dir.path()).args(words).stdout(Stdio::piped()).spawn().unwrap();
        let first = if words[0] == "list" { "VOLUME" } else { "img-storage" };
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        assert_eq!(lines.filter(|l| l.starts_with(first)).take(2).count(), 2);
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

/// Runs a command on a terminal of 60 columns.
fn on_a_terminal(world: &World, words: &str, typed: &str, colour: bool) -> Option<(i32, String)> {
    let line = format!("stty cols 60 rows 20; exec {} {words}", env!("CARGO_BIN_EXE_img-storage"));
    let mut script = std::process::Command::new("script");
    script
        .args(["-qec", &line, "/dev/null"])
        .env("IMG_STORAGE_DIR", world.dir.path())
        .env("SHELL", "/bin/sh")
        .env("TERM", "xterm");
    if colour {
        script.env_remove("NO_COLOR")
    } else {
        script.env("NO_COLOR", "1")
    };
    let mut child = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().ok()?;
    let mut stdin = child.stdin.take().unwrap();
    std::io::Write::write_all(&mut stdin, typed.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    drop(stdin);
    Some((output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stdout).replace("\r\n", "\n")))
}

#[test]
fn on_a_terminal_tables_fit_and_destruction_is_asked_about() {
    let world = World::new();
    let Some((code, text)) = on_a_terminal(&world, "list", "", false) else { return };
    assert_eq!(code, 0, "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 60) && !text.contains('\x1b'), "{text}");
    let (_, text) = on_a_terminal(&world, "list", "", true).unwrap();
    assert!(text.contains("\x1b[1mVOLUME") && text.contains("\x1b[31m"), "{text:?}");
    let (code, text) = on_a_terminal(&world, "delete tank/vol1", "n\n", false).unwrap();
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("will be destroyed") && text.contains("[y/N]"), "{text}");
    assert_eq!(world.fake.volumes.lock().unwrap().len(), 4);
    let (code, text) = on_a_terminal(&world, "delete tank/vol1", "y\n", false).unwrap();
    assert_eq!(code, 0, "{text}");
    assert_eq!(world.fake.volumes.lock().unwrap().len(), 3);
    std::fs::write(world.dir.path().join("disk.raw"), vec![1; 1 << 20]).unwrap();
    let from = world.dir.path().join("disk.raw");
    let (code, text) = on_a_terminal(&world, &format!("create tank/new --from {}", from.display()), "", false).unwrap();
    assert!(code == 0 && text.contains("33%"), "{text:?}");
}
