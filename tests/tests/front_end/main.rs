//! A front end in the original's manner, in Python and with its client library, against this program's NAS and nodes as processes of
//! their own with real storage daemons, over a real RabbitMQ with TLS: every request, and every way that one can go wrong there.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod client;

use anyhow::ensure;
use client::FrontEnd;
use img_storage_tests::{
    broker::{Broker, Until},
    processes,
    service::{self, Service},
};
use serde_json::{Value, json};
use std::{collections::BTreeMap, fs, path::PathBuf, time::Duration};
use tokio::time::{Instant, sleep};

const NAS: &str = "nas-0-0";
const NODE: &str = "compute-0-0";
const OTHER: &str = "compute-0-1";
const HOSTS: [&str; 4] = ["frontend", NAS, NODE, OTHER];
/// Of the NAS's exports; other tests have others.
const ADDRESS: &str = "127.0.9.1";

struct Site {
    service: Service,
    broker: Broker,
    /// Each host's certificates, issued once: daemons and front ends read them while the test runs.
    pki: BTreeMap<&'static str, PathBuf>,
    _dir: tempfile::TempDir,
}

impl Site {
    async fn start() -> anyhow::Result<Self> {
        let broker = Broker::start(&HOSTS).await?;
        let dir = tempfile::Builder::new().prefix("front").tempdir()?;
        let mut service = Service::new(service::program()?, dir.path())?;
        let mut issued = BTreeMap::new();
        for host in HOSTS {
            let pki = broker.authority().issue(host, Until::Later)?;
            let path = dir.path().join(format!("{host}.toml"));
            let config = format!(
                "[nas]\naddress = \"{ADDRESS}\"\n[bus]\nhosts = [\"localhost:{}\"]\nheartbeat = \"2s\"\n\
                 [pki]\ndir = \"{}\"\n[cluster]\nnases = [\"{NAS}\"]\nunsigned_orders = true\n",
                broker.port(),
                pki.display()
            );
            fs::write(&path, config)?;
            issued.insert(host, pki);
            let config = path.to_string_lossy();
            let words: &[&str] = match host {
                "frontend" => &["frontend", "--config", &config],
                NAS => &["nas", "--name", NAS, "--config", &config],
                node => &["vm", "--name", node, "--config", &config],
            };
            service.start(words)?;
        }
        service.ready(HOSTS.len()).await?;
        Ok(Site { service, broker, pki: issued, _dir: dir })
    }

    fn front_end(&self, login: &str) -> anyhow::Result<FrontEnd> {
        FrontEnd::start(self.broker.port(), &self.pki["frontend"], login, None)
    }

    /// A node that wants to give orders, and says who it is.
    fn pretender(&self, host: &str) -> anyhow::Result<FrontEnd> {
        FrontEnd::start(self.broker.port(), &self.pki[host], "external", Some(host))
    }

    fn role(host: &str) -> usize {
        HOSTS.iter().position(|h| *h == host).expect("a host")
    }
}

fn recorded(scenario: &str, action: &str) -> String {
    let all: Vec<Value> = serde_json::from_str(include_str!("../../vectors/original-messages.json")).unwrap();
    let of = |m: &&Value| m["from"] == "launcher" && m["scenario"] == scenario && m["json"]["action"] == action;
    all.iter().find(of).unwrap()["body"].as_str().unwrap().to_owned()
}

fn map(zvol: &str, node: &str, sync: bool) -> Value {
    json!({
        "action": "map_zvol", "zpool": "tank", "zvol": zvol, "remotehost": node, "remotepool": "tank", "size": "0.05",
        "sync": sync, "initiator": format!("iqn.1994-05.com.redhat:{node}"),
    })
}

fn unmap(zvol: &str) -> Value {
    json!({"action": "unmap_zvol", "zvol": zvol})
}

fn error(action: &str, why: &str) -> Value {
    json!({"action": action, "status": "error", "error": why})
}

fn success(action: &str) -> Value {
    json!({"action": action, "status": "success"})
}

async fn row(front: &mut FrontEnd, zvol: &str) -> anyhow::Result<Option<Value>> {
    let answer = front.ask(NAS, &json!({"action": "list_zvols"})).await?;
    Ok(answer["body"].as_array().into_iter().flatten().find(|row| row["zvol"] == zvol).cloned())
}

async fn until(front: &mut FrontEnd, zvol: &str, wanted: impl Fn(&Value) -> bool) -> anyhow::Result<Value> {
    let begun = Instant::now();
    loop {
        let row = row(front, zvol).await?;
        if let Some(row) = row.as_ref().filter(|row| wanted(row)) {
            return Ok(row.clone());
        }
        ensure!(begun.elapsed() < Duration::from_secs(60), "{zvol} is {row:?}");
        sleep(Duration::from_millis(50)).await;
    }
}

/// Every request that there is, in the recording's words where it has it.
async fn every_request(front: &mut FrontEnd) -> anyhow::Result<()> {
    let initiator = front.ask_text(NODE, &recorded("01-launcher-list_initiator", "list_initiator")).await?;
    assert_eq!((&initiator["action"], &initiator["status"]), (&json!("zvol_list"), &json!("success")));
    assert!(initiator["body"].as_str().unwrap().starts_with("iqn."));
    let order = recorded("02-map-direct-new", "map_zvol");
    let mapped = front.ask_text(NAS, &order).await?;
    assert_eq!((&mapped["action"], &mapped["status"]), (&json!("zvol_mapped"), &json!("success")), "{mapped}");
    let row = row(front, "dv1").await?.unwrap();
    assert_eq!((&row["remotehost"], &row["locked"], &row["remotepool"]), (&json!(NODE), &Value::Null, &Value::Null));
    let devices = front.ask(NODE, &json!({"action": "list_dev"})).await?;
    assert_eq!((&devices["node_type"], &devices["body"]["volume0"]["device"]), (&json!("mixed"), &mapped["bdev"]), "{devices}");
    assert_eq!(front.ask_text(NAS, &order).await?, error("zvol_mapped", "Error when mapping zvol: already mapped"));
    let del = recorded("05-del-while-mapped", "del_zvol");
    assert_eq!(front.ask_text(NAS, &del).await?, error("zvol_deleted", "Error deleting zvol dv1: is mapped"));
    let off = recorded("06-unmap-direct", "unmap_zvol");
    assert_eq!(front.ask_text(NAS, &off).await?, success("zvol_unmapped"));
    assert_eq!(front.ask_text(NAS, &off).await?, error("zvol_unmapped", "ZVol dv1 is not mapped"));

    let set = json!({"action": "set_zvol_attrs", "zvol": "dv1", "frequency": 30, "downloadspeed": "5M", "bogus": 1});
    assert_eq!(front.ask(NAS, &set).await?, success("set_zvol_attrs"));
    let attributes = front.ask(NAS, &json!({"action": "get_zvol_attrs", "zvol": "dv1"})).await?;
    assert_eq!((&attributes["body"]["frequency"], &attributes["body"]["downloadspeed"]), (&json!(30), &json!("5M")));
    assert_eq!(front.ask_text(NAS, &recorded("16-attrs", "set_attrs")).await?, success("set_attrs"));
    let attributes = front.ask_text(NAS, &recorded("16-attrs", "get_attrs")).await?;
    let attrs = &attributes["attrs"];
    assert_eq!((&attrs["note"], &attrs["frequency"], &attrs["name"]), (&json!("x"), &json!("120"), &json!(NAS)));
    assert_eq!(front.ask_text(NAS, &recorded("16-attrs", "del_attrs")).await?, success("del_attrs"));

    assert_eq!(front.ask_text(NAS, &del).await?, success("zvol_deleted"));
    assert_eq!(front.ask_text(NAS, &del).await?, error("zvol_deleted", "ZVol dv1 not found in database"));
    let mut unknown: Value = serde_json::from_str(&order)?;
    unknown["remotehost"] = json!("no-such-host");
    assert_eq!(front.ask(NAS, &unknown).await?, error("zvol_mapped", "Host no-such-host is unknown"));
    for to in [NAS, NODE, "frontend"] {
        let unsupported = front.ask_text(to, &recorded("15-unsupported-action", "frobnicate")).await?;
        assert_eq!(unsupported, json!({"status": "error", "error": "action_unsupported"}));
        for body in ["", "{", "null", "[1]", "{\"action\": 7}", "\u{0}\u{ff}"] {
            let answer = front.ask_text(to, body).await?;
            assert_eq!(answer["status"], "error", "{to} {body:?}: {answer}");
        }
    }
    let missing = front.ask(NAS, &json!({"action": "map_zvol", "zpool": "tank"})).await?;
    assert_eq!(missing, error("zvol_mapped", "the field zvol is missing"));
    assert_eq!(front.ask("no-such-host", &json!({"action": "list_dev"})).await?, json!({"unroutable": true}));
    Ok(())
}

/// Onto a local copy, and home.
async fn copied(front: &mut FrontEnd) -> anyhow::Result<()> {
    let mapped = front.ask(NAS, &map("vm1", NODE, true)).await?;
    assert_eq!(mapped["status"], "success", "{mapped}");
    until(front, "vm1", |row| row["locked"].is_null() && row["iscsi_target"].is_null()).await?;
    let devices = front.ask(NODE, &json!({"action": "list_dev"})).await?;
    let device = &devices["body"]["vm1"];
    assert_eq!((&device["status"], &device["device"]), (&json!("linear"), &mapped["bdev"]), "{devices}");
    assert_eq!(front.ask(NAS, &unmap("vm1")).await?, success("zvol_unmapped"));
    until(front, "vm1", |row| row["remotehost"].is_null() && row["locked"].is_null()).await?;
    Ok(())
}

/// A NAS that is killed with an order in its hands, and a node that is away.
async fn trouble(site: &mut Site, front: &mut FrontEnd) -> anyhow::Result<()> {
    let (nas, node) = (Site::role(NAS), Site::role(OTHER));
    // The node does nothing for the moment, so that the order stays open.
    processes::hold(site.service.pid(node));
    front.send(NAS, &map("vm2", OTHER, false).to_string()).await?;
    let mut second = site.front_end("plain")?;
    until(&mut second, "vm2", |row| row["remotehost"] == OTHER && row["locked"] == "vm2").await?;
    site.service.kill(nas)?;
    processes::resume(site.service.pid(node));
    site.service.restart(nas)?;
    let mapped = front.result().await?;
    assert_eq!((&mapped["action"], &mapped["status"]), (&json!("zvol_mapped"), &json!("success")), "{mapped}");
    assert_eq!(front.ask(NAS, &unmap("vm2")).await?, success("zvol_unmapped"));

    let refused = site.pretender(NODE)?.ask(NAS, &json!({"action": "del_zvol", "zpool": "tank", "zvol": "vm2"})).await?;
    assert!(refused["error"].as_str().is_some_and(|why| why.contains("front ends only")), "{refused}");
    assert!(row(front, "vm2").await?.is_some());

    site.service.kill(node)?;
    let away = format!("Compute node {OTHER} is unavailable");
    assert_eq!(front.ask(NAS, &map("vm2", OTHER, false)).await?, error("zvol_mapped", &away));
    let row = row(front, "vm2").await?.unwrap();
    assert_eq!(row["remotehost"], Value::Null, "{row}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_originals_front_end_is_served() {
    let mut site = Site::start().await.unwrap();
    let outcome = async {
        for login in ["external", "plain"] {
            every_request(&mut site.front_end(login)?).await?;
        }
        let mut front = site.front_end("external")?;
        copied(&mut front).await?;
        trouble(&mut site, &mut front).await
    };
    if let Err(why) = outcome.await {
        panic!("{why:#}\n{}", site.service.log_tail());
    }
}
