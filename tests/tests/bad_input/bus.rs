//! A process that may open the bus's socket and misbehaves there.

use super::bed::{Bed, up};
use serde_json::{Value, json};
use std::{
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    time::Duration,
};

struct Client {
    stream: UnixStream,
    lines: BufReader<UnixStream>,
}

impl Client {
    /// Sends the first line; gives what is answered, nothing when it is hung up.
    fn open(bed: &Bed, first: &[u8]) -> (Self, Option<Value>) {
        let stream = UnixStream::connect(bed.state("bus.sock")).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let lines = BufReader::new(stream.try_clone().unwrap());
        let mut client = Client { stream, lines };
        client.send(first);
        let answer = client.line();
        (client, answer)
    }

    fn join(bed: &Bed, name: &str) -> Self {
        let (client, answer) = Self::open(bed, format!("{name:?}\n").as_bytes());
        assert_eq!(answer, Some(Value::Null));
        client
    }

    fn send(&mut self, bytes: &[u8]) {
        // It may have been hung up already.
        let _ = self.stream.write_all(bytes);
    }

    fn say(&mut self, message: &Value) {
        self.send(format!("{message}\n").as_bytes());
    }

    fn line(&mut self) -> Option<Value> {
        let mut line = String::new();
        match self.lines.read_line(&mut line) {
            Ok(0) | Err(_) => None,
            Ok(_) => Some(serde_json::from_str(&line).unwrap()),
        }
    }

    /// Says something to which the NAS answers, to know that it has taken what was said before.
    fn settle(&mut self, name: &str) {
        let query = "01900000-0000-7000-8000-0000000000ff";
        self.say(&json!({"v": 1, "from": name, "to": "nas-0-0", "body": {"kind": "request", "id": query, "request": {"action": "find", "selector": null}}}));
        while let Some(line) = self.line() {
            if line[1]["body"]["id"] == query {
                return;
            }
        }
        panic!("no answer from the NAS");
    }
}

#[tokio::test]
async fn strangers_on_the_bus_change_nothing() {
    let bed = up(&[]).await;
    bed.ok(&["create", "vol1", "--size", "1M"]).await;
    bed.ok(&["create", "vol2", "--size", "1M"]).await;
    bed.ok(&["map", "vol2", "compute-0-0"]).await;
    let (before, kept) = (bed.volumes().await, bed.kept());
    let volumes = before["volumes"].as_array().unwrap();
    let ids: Vec<&str> = volumes.iter().map(|v| v["id"].as_str().unwrap()).collect();
    let unchanged = async |what: &str| {
        assert_eq!(bed.volumes().await, before, "{what}");
        assert_eq!(bed.kept(), kept, "{what}");
        let hosts = bed.ok(&["hosts", "-o", "json"]).await;
        let hosts: Value = serde_json::from_str(&hosts).unwrap();
        for host in ["frontend", "nas-0-0", "compute-0-0", "compute-0-1"] {
            let there = |h: &Value| h["name"] == host && h["away"] == false;
            assert!(hosts["hosts"].as_array().unwrap().iter().any(there), "{what}: {host} in {hosts}");
        }
    };

    // First lines that are no name.
    let long = vec![b'"'; 20 << 20];
    for first in [&b"\n"[..], b"{}\n", b"\x00\xff\xfe\n", b"\"../x\"\n", b"\"\"\n", b"7\n", &long] {
        let (_, answer) = Client::open(&bed, first);
        assert_eq!(answer, None, "{:?}", &first[..first.len().min(20)]);
    }
    unchanged("bad names").await;

    for taken in ["nas-0-0", "frontend", "compute-0-0"] {
        let (mut client, answer) = Client::open(&bed, format!("{taken:?}\n").as_bytes());
        assert_eq!(answer.unwrap()["kind"], "refused", "{taken}");
        assert_eq!(client.line(), None, "a refused name stays connected");
    }
    unchanged("names that are taken").await;

    let delete = |v: u64, from: &str, to: &str, volume: &str, id: u8| {
        let id = format!("01900000-0000-7000-8000-0000000000{id:02x}");
        json!({"v": v, "from": from, "to": to, "body": {"kind": "request", "id": id, "request": {"action": "delete", "volume": volume}}})
    };
    for garbage in [
        &b"\n"[..],
        b"{\n",
        b"null\n",
        b"\x00\x01\x02\n",
        b"[1,2,3]\n",
        br#"{"v":1,"from":"evil","to":"nas-0-0","body":{"kind":"explode"}}"#,
    ] {
        let mut evil = Client::join(&bed, "evil");
        evil.send(garbage);
        evil.send(b"\n");
        // Whether it is hung up or heard further on: nothing comes of it.
        evil.say(&json!({"v": 99, "from": "evil", "to": "nas-0-0", "body": {"kind": "explode"}}));
        drop(evil);
        // Its name is free again.
        let freed = std::time::Instant::now();
        while Client::open(&bed, b"\"evil\"\n").1 != Some(Value::Null) {
            assert!(freed.elapsed() < Duration::from_secs(5), "the name stays taken");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    unchanged("garbage").await;

    let mut evil = Client::join(&bed, "stranger");
    for (n, id) in (1..).zip(&ids) {
        evil.say(&delete(1, "frontend", "nas-0-0", id, n));
        evil.say(&delete(99, "stranger", "nas-0-0", id, 10 + n));
        evil.say(&delete(1, "stranger", "compute-0-0", id, 20 + n));
        evil.say(&delete(1, "stranger", "frontend", id, 30 + n));
        evil.say(&delete(1, "stranger", "nowhere", id, 40 + n));
        // In its own name, but it is no front end.
        evil.say(&delete(1, "stranger", "nas-0-0", id, 50 + n));
        evil.say(&json!({"v": 1, "from": "stranger", "to": "nas-0-0", "body": {"kind": "request",
            "id": format!("01900000-0000-7000-8000-0000000000{:02x}", 60 + n),
            "request": {"action": "unmap", "volume": id, "force": true}}}));
        // An assignment in the NAS's name, and one in its own of a volume that is another's.
        for nas in ["nas-0-0", "stranger"] {
            evil.say(&json!({"v": 1, "from": "stranger", "to": "compute-0-0", "body": {"kind": "assign",
                "volume": ids[1], "name": "tank/vol2", "nas": nas, "size": 1 << 20, "epoch": 9, "revision": 9, "want": "gone",
                "device": "nbd", "force": true, "export": null, "granted": false, "push": null, "accepted": null,
                "release": true, "back": null}}));
        }
        // A report about a mapping that it has not.
        evil.say(&json!({"v": 1, "from": "stranger", "to": "nas-0-0", "body": {"kind": "report",
            "volume": id, "epoch": 1, "revision": 99, "phase": "gone", "pivoted": false, "detached": true, "attached": null,
            "device": null, "progress": null, "dirty": null, "pushed": null, "stuck": null, "notice": null}}));
    }
    evil.settle("stranger");
    tokio::time::sleep(Duration::from_millis(300)).await;
    unchanged("a stranger").await;
    drop(evil);
    // And everything still works.
    bed.ok(&["unmap", "vol2"]).await;
    bed.ok(&["delete", "vol2", "--yes"]).await;
}
