//! What sets a cluster up: `config`, `pki` and `broker-setup`. None of them needs the service.

use crate::support::{Ran, command, run};
use std::{fs, os::unix::fs::PermissionsExt, path::Path};

fn write(dir: &Path, name: &str, text: &str) {
    let path = dir.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// With the configuration in `etc`.
fn configured(dir: &Path, words: &[&str]) -> Ran {
    command(dir).env("IMG_STORAGE_CONFIG", dir.join("etc")).args(words).output().unwrap().into()
}

#[test]
fn config_check_says_what_would_be_used_and_where_it_is_from() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "etc/config.toml", "frequency = \"5m\"\n[nas]\nname = \"nas-0-1\"\n");
    write(dir.path(), "etc/conf.d/10-net.toml", "frequency = \"6m\"\n[nas]\ndata_network = \"127.0.0.0/8\"\n");
    let ran = configured(dir.path(), &["config", "check"]);
    assert_eq!((ran.code, ran.err.as_str()), (0, "the configuration is right\n"), "{ran:?}");
    let row = |key: &str| ran.out.lines().find(|l| l.starts_with(key)).unwrap_or_default().split_whitespace().collect::<Vec<_>>();
    assert_eq!(row("frequency ")[1..], ["\"6m\"", dir.path().join("etc/conf.d/10-net.toml").to_str().unwrap()]);
    assert_eq!(row("sync_workers ")[1..], ["4", "default"]);
    let json = configured(dir.path(), &["config", "check", "-o", "json"]);
    let value: serde_json::Value = serde_json::from_str(&json.out).unwrap();
    assert_eq!(value["files"].as_array().unwrap().len(), 2);
    assert_eq!(configured(dir.path(), &["config", "check", "nas"]).code, 0);

    for (text, says) in [
        ("frequncy = \"1m\"\n", &["10-net.toml", "frequncy"][..]),
        ("[nas]\ndata_network = \"2001:db8:ffff::/48\"\n", &["2001:db8:ffff::/48", "no address of this host", "127.0.0.1"]),
        ("[nas]\ndata_address = \"2001:db8:ffff::1\"\n", &["2001:db8:ffff::1", "no address of this host"]),
        ("[bus]\nhosts = [\"mq\"]\n[pki]\ndir = \"/nonexistent\"\n", &["data_address is not given"]),
        ("[bus]\nhosts = [\"localhost\"]\n[pki]\ndir = \"/nonexistent\"\n", &["/nonexistent"]),
    ] {
        write(dir.path(), "etc/conf.d/10-net.toml", text);
        let ran = configured(dir.path(), &["config", "check", "nas"]);
        assert!(ran.code == 2 && says.iter().all(|word| ran.err.contains(word)), "{text}: {ran:?}");
    }
    let nowhere = run(dir.path(), &["config", "check", "--config", "nowhere.toml"]);
    assert!(nowhere.code == 2 && nowhere.err.contains("nowhere.toml"), "{nowhere:?}");
}

#[test]
fn config_import_makes_one_that_is_right() {
    let dir = tempfile::tempdir().unwrap();
    write(
        dir.path(),
        "imgstorage.conf",
        "[ {\n\"name\" : \"nas-0-0\",\n\"network\" : \"invalid\",\n\"default_pool\" : \"tank\",\n\"img_sync_workers\" : \"8\"\n} ]\n",
    );
    let ran = run(dir.path(), &["config", "import", "imgstorage.conf", "--as", "nas"]);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
    write(dir.path(), "etc/config.toml", &ran.out);
    let checked = configured(dir.path(), &["config", "check", "-o", "csv"]);
    assert!(checked.code == 0 && checked.out.contains("nas.pools.tank,\"\"\"/tank/img-storage\"\"\","), "{checked:?}");
    write(dir.path(), "bad", "name = x");
    let bad = run(dir.path(), &["config", "import", "bad", "--as", "vm"]);
    assert!(bad.code == 2 && bad.err.contains("bad: this is not the original's"), "{bad:?}");
}

#[test]
fn pki_issues_once_and_shows_for_how_long() {
    let dir = tempfile::tempdir().unwrap();
    let init = run(dir.path(), &["pki", "init", "ca"]);
    assert!(init.code == 0 && init.out.starts_with("the CA is in ca, good until 20"), "{init:?}");
    assert_eq!(run(dir.path(), &["pki", "init", "ca"]).code, 3);
    for (kind, name) in [("--nas", "nas-0-0"), ("--node", "compute-0-0"), ("--frontend", "frontend"), ("--broker", "mq")] {
        let ran = run(dir.path(), &["pki", "issue", "ca", kind, name, "--address", "127.0.0.1"]);
        assert!(ran.code == 0 && ran.out.starts_with(&format!("{name} is in ca/{name}, good until 20")), "{ran:?}");
        let again = run(dir.path(), &["pki", "issue", "ca", kind, name]);
        assert!(again.code == 3 && again.err.contains("nothing is written over"), "{again:?}");
    }
    let key = fs::metadata(dir.path().join("ca/compute-0-0/client-key.pem")).unwrap();
    assert_eq!(key.permissions().mode() & 0o777, 0o600);
    assert!(!dir.path().join("ca/compute-0-0/server-key.pem").exists());
    let shown = run(dir.path(), &["pki", "show", "ca"]);
    assert_eq!((shown.code, shown.out.lines().count()), (0, 7), "{shown:?}");
    for bad in [
        &["pki", "issue", "ca"][..],
        &["pki", "issue", "ca", "--node", "a", "--nas", "b"],
        &["pki", "issue", "ca", "--node", "a/b"],
    ] {
        assert_eq!(run(dir.path(), bad).code, 2, "{bad:?}");
    }
    assert_eq!(run(dir.path(), &["pki", "show", "nowhere"]).code, 1);
}

#[test]
fn broker_setup_prints_and_does_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let ran = run(dir.path(), &["broker-setup", "frontend", "nas-0-0"]);
    assert!(ran.code == 0 && ran.err.starts_with("nothing was done"), "{ran:?}");
    assert_eq!(ran.out.matches("set_permissions").count(), 2);
    assert!(ran.out.contains(r"img-storage\.name\.nas-0-0"), "{ran:?}");
    let conf = run(dir.path(), &["broker-setup", "--conf", "/etc/rabbitmq/img-storage"]);
    assert!(conf.out.contains("ssl_cert_login_from = common_name\n"), "{conf:?}");
    assert!(conf.out.contains("= /etc/rabbitmq/img-storage/server-key.pem\n"), "{conf:?}");
    for bad in [&["broker-setup"][..], &["broker-setup", "a b"], &["broker-setup", "--run"]] {
        assert_eq!(run(dir.path(), bad).code, 2, "{bad:?}");
    }
}
