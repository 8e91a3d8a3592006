//! Names and sizes.

use super::bed::{complains, idle, up};
use std::{ffi::OsString, os::unix::ffi::OsStringExt as _};

#[tokio::test]
async fn bad_names_and_sizes_are_wrong_usage() {
    let bed = up(&[]).await;
    bed.ok(&["create", "vol1", "--size", "1M"]).await;
    let long = "a".repeat(300);
    let names = [
        ("", "empty"),
        (long.as_str(), "300 bytes"),
        ("../x", ".."),
        ("..", "begin"),
        (".", "begin"),
        ("/etc/passwd", "empty"),
        ("tank/../../x", "'/'"),
        ("a/b/c", "'/'"),
        ("a b", "' '"),
        ("a\nb", "'\\n'"),
        ("a;reboot", "';'"),
        ("$(reboot)", "'$'"),
        ("`reboot`", "'`'"),
        ("a|b", "'|'"),
        ("a&", "'&'"),
        ("*", "'*'"),
        ("vol1'; drop table volume; --", "';'"),
        ("vol1\" or \"1\"=\"1", "'\"'"),
        ("näme", "'ä'"),
        ("vol1,file.driver=nbd", "','"),
        ("a%00b", "'%'"),
        ("nas-0-0:", "empty"),
        (":tank/vol1", "empty"),
        ("nas-0-0:tank:vol1", "':'"),
    ];
    for (name, why) in names {
        let why = if why == "';'" && name.starts_with("vol1'") { "'\\''" } else { why };
        bed.refused(&["create", name, "--size", "1M"], 2, &[why]).await;
    }
    for name in [names[0].0, names[2].0, names[10].0, names[16].0] {
        for verb in
            [&["map"][..], &["unmap"], &["delete", "--yes"], &["resize"], &["show"], &["sync"], &["bring-back"], &["export"]]
        {
            let mut words = verb.to_vec();
            words.push(name);
            match verb[0] {
                "map" => words.push("compute-0-0"),
                "resize" => words.push("2M"),
                "export" => words.push("x.raw"),
                _ => {}
            }
            complains(&bed.run(&words).await, 2, &["VOLUME"]);
        }
        complains(&bed.run(&["map", "vol1", name]).await, 2, &["host name"]);
    }
    // A leading dash is a flag, unless it is said to be none.
    bed.refused(&["create", "-rf", "--size", "1M"], 2, &["-r"]).await;
    bed.refused(&["create", "--size", "1M", "--", "-rf"], 2, &["-rf", "begin"]).await;
    let odd = OsString::from_vec(b"a\xffb".to_vec());
    bed.refused(&["create".into(), odd.clone(), "--size".into(), "1M".into()], 2, &["UTF-8", "xFF"]).await;
    bed.refused(&["create".into(), "vol2".into(), "--from".into(), odd], 2, &["UTF-8"]).await;

    for (size, why) in [
        ("0", "size 0"),
        ("0G", "size 0"),
        ("-1", "-1"),
        ("10EB", "64T"),
        ("65T", "64T"),
        ("10X", "10X"),
        ("", "no size"),
        ("1e9", "1e9"),
        ("99999999999999999999999999", "64T"),
        ("NaN", "NaN"),
    ] {
        let size = format!("--size={size}");
        bed.refused(&["create", "vol2", &size], 2, &[why]).await;
        bed.refused(&["map", "vol2", "compute-0-0", &size], 2, &[why]).await;
    }
    for size in ["0", "10EB", "10X", ""] {
        bed.refused(&["resize", "vol1", size], 2, &["SIZE"]).await;
    }
    bed.refused(&["create", "vol2", "--size", "-1"], 2, &["-1"]).await;
    bed.refused(&["create", "vol2"], 2, &["--size"]).await;
    // Parsed, but more than there is room for: tried, failed, nothing left.
    bed.refused(&["create", "vol2", "--size", "64T"], 1, &["tank/vol2", "64T", "room"]).await;
    bed.refused(&["create", "nosuch/vol2", "--size", "1M"], 1, &["pool nosuch", "img-storage hosts"]).await;
    bed.refused(&["create", "nosuch:vol2", "--size", "1M"], 1, &["nosuch", "img-storage hosts"]).await;
    for words in
        [&["show", "nosuch"][..], &["delete", "nosuch", "--yes"], &["map", "nosuch", "compute-0-0"], &["unmap", "nosuch"]]
    {
        bed.refused(words, 1, &["nosuch", "img-storage list"]).await;
    }
    for words in
        [&["list", "--phase", "asleep"][..], &["map", "vol1", "compute-0-0", "--wait=asleep"], &["unmap", "vol1", "--timeout=2d"]]
    {
        bed.refused(words, 2, &[]).await;
    }
}

#[tokio::test]
async fn without_a_front_end_every_verb_says_so() {
    let bed = idle();
    for words in [
        &["status"][..],
        &["list"],
        &["show", "vol1"],
        &["devices"],
        &["hosts"],
        &["create", "vol1", "--size", "1M"],
        &["map", "vol1", "compute-0-0"],
        &["unmap", "vol1"],
        &["sync", "vol1"],
        &["bring-back", "vol1"],
        &["resize", "vol1", "2M"],
        &["export", "vol1", "x.raw"],
        &["delete", "vol1", "--yes"],
    ] {
        complains(&bed.run(words).await, 5, &["api.sock", "img-storage up"]);
    }
    let nowhere = bed.text("nowhere");
    complains(&bed.run(&["list", "--dir", &nowhere]).await, 5, &[&nowhere]);
    assert!(!bed.path("nowhere").exists());
    // Somebody who does not speak our language, and nobody behind a socket.
    drop(std::os::unix::net::UnixListener::bind(bed.path("dead.sock")).unwrap());
    complains(&bed.run(&["list", "--socket", &bed.text("dead.sock")]).await, 5, &["dead.sock"]);
    let deep = bed.text(&"d".repeat(120));
    complains(&bed.run(&["list", "--dir", &deep]).await, 2, &["shorter"]);
}
