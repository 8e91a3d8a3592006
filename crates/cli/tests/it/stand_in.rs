//! `packaging/rocks`: plain `rocks …` reaches this program, and the cluster's own rocks command gets everything else.

use crate::support::{Ran, World};
use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Says what it was given, and ends as nothing else does.
const CLUSTERS_OWN: &str = "#!/bin/sh\nprintf 'own:'\nprintf ' [%s]' \"$@\"\necho\nexit 7\n";

/// A world, and directories in it for a search path: in `first`, the stand-in.
struct Place {
    world: World,
}

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_img-storage")).parent().unwrap()
}

fn stand_in() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging/rocks")
}

impl Place {
    fn new() -> Self {
        let place = Place { world: World::new() };
        fs::create_dir(place.dir("first")).unwrap();
        std::os::unix::fs::symlink(stand_in(), place.dir("first").join("rocks")).unwrap();
        place
    }

    fn dir(&self, name: &str) -> PathBuf {
        self.world.dir.path().join(name)
    }

    /// Makes a directory with a rocks command. Another process writes it: were it open here for writing when another test starts a
    /// program, it could not be run.
    fn with(&self, name: &str, text: &str) -> PathBuf {
        let (from, to) = (self.dir(&format!("{name}.txt")), self.dir(name).join("rocks"));
        fs::write(&from, text).unwrap();
        assert!(Command::new("install").args(["-D", "-m", "755"]).args([from, to]).status().unwrap().success());
        self.dir(name)
    }

    fn rocks(&self, dirs: &[&Path], words: &[&str]) -> Ran {
        let first = self.dir("first");
        let path = std::env::join_paths([first.as_path()].iter().chain(dirs).chain(&[Path::new("/usr/bin"), Path::new("/bin")]));
        let mut command = Command::new(first.join("rocks"));
        command.env_clear().env("PATH", path.unwrap()).env("IMG_STORAGE_DIR", self.world.dir.path());
        command.current_dir(self.world.dir.path()).stdin(Stdio::null()).args(words);
        command.output().unwrap().into()
    }
}

/// All of the program's commands, as it tells them itself.
fn commands(place: &Place) -> Vec<String> {
    let said = place.world.run(&["rocks", "nothing"]).err;
    let commands: Vec<String> = said.split_once("commands are: ").unwrap().1.trim().split(", ").map(str::to_owned).collect();
    assert!(commands.len() >= 9, "{said}");
    commands
}

#[test]
fn every_storage_command_is_carried_out_here() {
    let place = Place::new();
    let own = place.with("own", CLUSTERS_OWN);
    for command in commands(&place) {
        let words: Vec<&str> = command.split(' ').chain(["help"]).collect();
        let ran = place.rocks(&[program(), &own], &words);
        assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{command}");
        assert!(ran.out.starts_with(&format!("rocks {command} {{")), "{command}: {}", ran.out);
        let as_one = place.rocks(&[program(), &own], &[&command, "help"]);
        assert_eq!((as_one.code, as_one.out), (0, ran.out), "{command}");
    }
    for line in [
        &["list", "host", "storagemap", "nas-0-0", "output-col=zvol,state"][..],
        &["list", "host", "storagemap"],
        &["set", "host", "storageattr", "nas-0-0", "note", "two words and a *"],
        &["list", "host", "storageattr", "nas-0-0"],
    ] {
        let ran = place.rocks(&[program(), &own], line);
        let plain = place.world.run(&[&["rocks"], line].concat());
        assert_eq!((ran.code, &ran.out, &ran.err), (plain.code, &plain.out, &plain.err), "{line:?}");
        assert!(line.len() == 3 || ran.code == 0, "{line:?}: {ran:?}");
    }
    let kept = place.rocks(&[program(), &own], &["list", "host", "storageattr", "nas-0-0"]);
    assert!(kept.out.contains("two words and a *"), "{}", kept.out);
}

#[test]
fn everything_else_goes_to_the_clusters_own() {
    let place = Place::new();
    let own = place.with("own", CLUSTERS_OWN);
    for (line, shown) in [
        (&["list", "host"][..], " [list] [host]"),
        (&["list", "host", "storagemaps", "a b", "", "*"], " [list] [host] [storagemaps] [a b] [] [*]"),
        (&["add", "host", "compute-0-0", "storagemap"], " [add] [host] [compute-0-0] [storagemap]"),
        (&["help"], " [help]"),
        (&[], " []"),
    ] {
        // Whichever copies of the stand-in come between, and wherever the program is.
        let copy = stand_in().parent().unwrap().to_owned();
        for dirs in [&[program(), &own][..], &[own.as_path(), program()], &[copy.as_path(), Path::new("relative"), &own]] {
            let ran = place.rocks(dirs, line);
            assert_eq!((ran.code, ran.err.as_str()), (7, ""), "{line:?}");
            assert_eq!(ran.out, format!("own:{shown}\n"), "{line:?}");
        }
    }
}

#[test]
fn without_rocks_it_is_the_rocks_command() {
    let place = Place::new();
    // Neither a directory of that name nor what cannot be run is one.
    fs::create_dir_all(place.dir("odd").join("rocks")).unwrap();
    let dull = place.with("dull", CLUSTERS_OWN);
    fs::set_permissions(dull.join("rocks"), fs::Permissions::from_mode(0o644)).unwrap();
    let dirs = [place.dir("odd"), dull, program().to_owned()];
    let dirs: Vec<&Path> = dirs.iter().map(PathBuf::as_path).collect();
    let ran = place.rocks(&dirs, &["list", "host", "storagemap", "nas-0-0"]);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    let ran = place.rocks(&dirs, &["list", "network"]);
    assert!(ran.code == 2 && ran.err.contains("invalid rocks command \"list network\""), "{ran:?}");
    let ran = place.rocks(&dirs, &["help"]);
    assert!(ran.code == 0 && ran.err.is_empty() && ran.out.starts_with("usage: rocks COMMAND"), "{ran:?}");
    let ran = place.rocks(&dirs, &[]);
    assert!(ran.code == 2 && ran.out.is_empty() && ran.err.starts_with("usage: rocks COMMAND"), "{ran:?}");
    let ran = place.rocks(&[], &["list", "host", "storagemap", "nas-0-0"]);
    assert!(ran.code == 127 && ran.err.contains("img-storage is not on the search path"), "{ran:?}");
}

#[test]
fn its_help_names_every_command_and_where_the_rest_goes() {
    let place = Place::new();
    let alone = place.rocks(&[], &["--help"]);
    assert_eq!((alone.code, alone.err.as_str()), (0, ""));
    assert!(alone.out.contains("There is no other rocks command"), "{}", alone.out);
    let own = place.with("own", CLUSTERS_OWN);
    let beside = place.rocks(&[&own], &["-h"]);
    assert!(beside.out.contains(&format!("that of {}.", own.join("rocks").display())), "{}", beside.out);
    for command in commands(&place) {
        let (verb, noun) = command.rsplit_once(' ').unwrap();
        let line =
            alone.out.lines().find(|line| line.trim().starts_with(verb)).unwrap_or_else(|| panic!("no line for {command}"));
        assert!(line.split(' ').any(|word| word == noun), "{command}: {line}");
    }
}
