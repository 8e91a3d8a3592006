//! A NAS and two nodes; and somebody who asks them things in the original's words.

use img_storage_daemon::{
    bus::{Exchange, ReplyTo},
    clock::{Clock, Ids},
    cluster::Cluster,
    nas::{self, Nas},
    node::{self, Node},
    store::{Commits, Journal, NasStore, NodeStore},
    tasks::Running,
};
use img_storage_host::sim::{Fault, Faults, SimNas, World};
use img_storage_model::{HostName, Interval, PoolName, VolumeId, attribute::Defaults};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};

pub const NAS: &str = "nas-0-0";
pub const NODE: &str = "compute-0-0";
pub const OTHER: &str = "compute-0-1";
/// Nobody waits longer for an answer.
const PATIENCE: Duration = Duration::from_secs(600);

pub fn host(name: &str) -> HostName {
    name.parse().unwrap()
}

/// The hosts, their daemons, and the bus between them.
pub struct Bed {
    pub world: World,
    faults: Faults,
    sim_nas: SimNas,
    exchange: Arc<Exchange>,
    clock: Clock,
    dir: tempfile::TempDir,
    daemons: BTreeMap<String, Running>,
    asked: u64,
    /// Of daemons that are started from now on.
    pub unsigned_orders: bool,
}

impl Bed {
    pub async fn new() -> Self {
        let world = World::new();
        let pools: Vec<PoolName> = ["tank", "fast"].iter().map(|p| p.parse().unwrap()).collect();
        let sim_nas = world.add_nas(&host(NAS), &pools);
        for node in [NODE, OTHER] {
            world.add_node(&host(node));
        }
        let (faults, _crashes) = Faults::new(&world, BTreeMap::new());
        let clock = Clock::simulated(Timestamp::from_second(1_795_349_390).unwrap());
        let shm = std::path::Path::new("/dev/shm");
        let dir = if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() }.unwrap();
        let mut bed = Bed {
            world,
            faults,
            sim_nas,
            exchange: Exchange::new(),
            clock,
            dir,
            daemons: BTreeMap::new(),
            asked: 0,
            unsigned_orders: true,
        };
        for name in [NAS, NODE, OTHER] {
            bed.start(name);
        }
        // They greet each other.
        sleep(Duration::from_secs(1)).await;
        bed
    }

    pub fn start(&mut self, name: &str) {
        let (nas, me) = (host(NAS), host(name));
        let member = self.exchange.join(&me).unwrap();
        let ledger = self.dir.path().join(format!("{name}.db"));
        let journal = Journal::open(&self.dir.path().join(format!("{name}.journal.db"))).unwrap();
        let cluster = Cluster { unsigned_orders: self.unsigned_orders, ..Cluster::of([host("frontend")], [nas.clone()]) };
        let step_deadline = Duration::from_secs(5);
        let running = if me == nas {
            let frequency = Interval::seconds(300).unwrap();
            let defaults = Defaults { sync_workers: "8".parse().unwrap(), ..Defaults::of(frequency) };
            let config = nas::Config { boot: "boot".to_owned(), cluster, address: name.to_owned(), defaults, step_deadline };
            let store = NasStore::open(&ledger, Commits::Single).unwrap();
            let host = Arc::new(self.faults.nas(self.sim_nas.clone()));
            Nas::start(config, host, store, journal, member, self.clock, Ids::random()).unwrap()
        } else {
            let store = NodeStore::open(&ledger, Commits::Single).unwrap();
            let config = node::Config {
                cluster,
                planes: vec![img_storage_model::Plane::Qemu],
                initiator: None,
                address: None,
                step_deadline,
                warm: Default::default(),
            };
            Node::start(config, Arc::new(self.faults.node(&me)), store, journal, member, self.clock).unwrap()
        };
        self.daemons.insert(name.to_owned(), running);
    }

    /// Kills a daemon; its name is free when this returns.
    pub async fn kill(&mut self, name: &str) {
        self.daemons.remove(name).unwrap();
        sleep(Duration::from_millis(1)).await;
    }

    /// Lets a verb of a host fail that begins after so many others.
    pub fn fail(&self, after: usize, fault: Fault) {
        self.faults.plan(self.faults.effects().len() + after, fault);
    }

    /// Sends bytes, and waits for what comes on a queue of its own.
    pub fn send(&mut self, to: &str, body: &[u8]) -> Question {
        self.asked += 1;
        let reply_to = ReplyTo { queue: format!("amq.gen-{}", self.asked), message: (1 << 60 | self.asked).to_string() };
        self.send_as(to, reply_to, body)
    }

    pub fn send_as(&self, to: &str, reply_to: ReplyTo, body: &[u8]) -> Question {
        Question { answers: self.exchange.ask(&host(to), reply_to.clone(), body.to_vec()), reply_to }
    }

    /// Asks and waits for the answer.
    pub async fn ask(&mut self, to: &str, message: Value) -> Value {
        self.send(to, message.to_string().as_bytes()).answer().await
    }

    pub async fn ask_bytes(&mut self, to: &str, body: &[u8]) -> Value {
        self.send(to, body).answer().await
    }

    /// The row of a volume.
    pub async fn row(&mut self, zvol: &str) -> Option<Value> {
        let answer = self.ask(NAS, json!({"action": "list_zvols"})).await;
        assert_eq!((&answer["action"], &answer["status"]), (&json!("zvol_list"), &json!("success")));
        answer["body"].as_array().unwrap().iter().find(|row| row["zvol"] == zvol).cloned()
    }

    /// Waits until a volume's row is as wanted.
    pub async fn until(&mut self, zvol: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let mut last = None;
        for _ in 0..2000 {
            last = self.row(zvol).await;
            if let Some(row) = last.as_ref().filter(|row| wanted(row)) {
                return row.clone();
            }
            sleep(Duration::from_millis(20)).await;
        }
        panic!("{zvol} is {last:?}")
    }

    /// The entry of a device on a node.
    pub async fn device(&mut self, node: &str, name: &str) -> Value {
        self.ask(node, json!({"action": "list_dev"})).await["body"][name].clone()
    }

    /// The identity that a device's name has.
    pub fn volume(bdev: &Value) -> VolumeId {
        let text = bdev.as_str().unwrap();
        let uuid = text.rsplit('/').next().unwrap().split('?').next().unwrap();
        VolumeId(uuid.parse().unwrap())
    }
}

/// Somebody who waits.
pub struct Question {
    pub reply_to: ReplyTo,
    answers: mpsc::UnboundedReceiver<Vec<u8>>,
}

impl Question {
    /// The next thing that comes.
    pub async fn answer(&mut self) -> Value {
        let bytes = timeout(PATIENCE, self.answers.recv()).await.expect("an answer in time").expect("an answer");
        let answer: Value = serde_json::from_slice(&bytes).expect("JSON");
        assert!(answer.is_object(), "{answer}");
        answer
    }

    /// Whether nothing has come.
    pub fn silent(&mut self) -> bool {
        self.answers.try_recv().is_err()
    }
}

/// `map_zvol` as the original's command writes it.
pub fn map(zvol: &str, node: &str, sync: bool) -> Value {
    json!({
        "action": "map_zvol", "zpool": "tank", "zvol": zvol, "remotehost": node, "size": "0.01", "sync": sync,
        "remotepool": if sync { json!("tank2") } else { Value::Null }, "initiator": format!("iqn.1994-05.com.redhat:{node}"),
    })
}

pub fn unmap(zvol: &str) -> Value {
    json!({"action": "unmap_zvol", "zvol": zvol})
}

pub fn del(zvol: &str) -> Value {
    json!({"action": "del_zvol", "zpool": "tank", "zvol": zvol})
}

pub fn error(action: &str, why: &str) -> Value {
    json!({"action": action, "status": "error", "error": why})
}

pub fn success(action: &str) -> Value {
    json!({"action": action, "status": "success"})
}
