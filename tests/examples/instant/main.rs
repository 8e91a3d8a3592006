//! Daemons for the bench: the real ones on a real bus, on hosts that do everything at once ([`hosts`]), and a front end that keeps
//! them busy ([`load`]).
//!
//! `instant nas|nodes|load|swarm DIR PORT PKI NAS FRONTEND [NODE…]`: state in DIR, the broker on PORT of this machine, and in PKI a
//! directory of certificates for each host. `load` and `swarm` print their results, a JSON object a line.

#![allow(missing_docs)]

mod hosts;
mod load;

use anyhow::{Context as _, bail};
use hosts::{InstantNas, InstantNode};
use img_storage_daemon::{
    bus::{
        Member,
        amqp::{self, Broker, Login, Settings, Tls},
    },
    clock::{Clock, Ids},
    cluster::Cluster,
    nas::{self, Nas},
    node::{self, Node},
    store::{Commits, Journal, NasStore, NodeStore},
    tasks::Running,
};
use img_storage_model::{HostName, Interval, attribute::Defaults};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

const STEP_DEADLINE: Duration = Duration::from_secs(60);

/// What every role is told.
pub struct Site {
    pub dir: PathBuf,
    port: u16,
    pki: PathBuf,
    pub nas: HostName,
    pub frontend: HostName,
    pub nodes: Vec<HostName>,
}

impl Site {
    pub fn cluster(&self) -> Cluster {
        Cluster::of([self.frontend.clone()], [self.nas.clone()])
    }

    /// A place on the bus, as the product's roles take it: TLS, and a certificate that says who one is.
    pub async fn join(&self, name: &HostName) -> anyhow::Result<Member> {
        let own = self.pki.join(name.as_str());
        let settings = Settings {
            brokers: vec![Broker { host: "localhost".to_owned(), port: self.port }],
            vhost: "img-storage".to_owned(),
            login: Login::External,
            tls: Some(Tls {
                ca: own.join("ca-cert.pem"),
                identity: Some((own.join("client-cert.pem"), own.join("client-key.pem"))),
            }),
            heartbeat: Duration::from_secs(10),
            quit_without_broker: None,
        };
        Ok(amqp::join(settings, name).await?.member)
    }

    fn place(&self, name: &HostName) -> anyhow::Result<PathBuf> {
        let dir = self.dir.join(name.as_str());
        std::fs::create_dir_all(&dir)?;
        Ok(dir)
    }

    async fn nas(&self) -> anyhow::Result<Running> {
        let dir = self.place(&self.nas)?;
        let config = nas::Config {
            cluster: self.cluster(),
            address: "127.0.0.1".to_owned(),
            defaults: Defaults::of(Interval::seconds(3600)?),
            step_deadline: STEP_DEADLINE,
            boot: String::new(),
        };
        let store = NasStore::open(&dir.join("ledger.db"), Commits::Grouped)?;
        let journal = Journal::open(&dir.join("journal.db"))?;
        let member = self.join(&self.nas).await?;
        Ok(Nas::start(config, Arc::new(InstantNas::default()), store, journal, member, Clock::System, Ids::random())?)
    }

    async fn node(&self, name: &HostName) -> anyhow::Result<Running> {
        let dir = self.place(name)?;
        let config = node::Config {
            cluster: self.cluster(),
            planes: vec![img_storage_model::Plane::Qemu],
            initiator: None,
            address: None,
            step_deadline: STEP_DEADLINE,
            warm: Default::default(),
        };
        let store = NodeStore::open(&dir.join("ledger.db"), Commits::Grouped)?;
        let journal = Journal::open(&dir.join("journal.db"))?;
        let member = self.join(name).await?;
        Ok(Node::start(config, Arc::new(InstantNode::default()), store, journal, member, Clock::System)?)
    }
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [role, dir, port, pki, nas, frontend, nodes @ ..] = words.as_slice() else {
        bail!("instant nas|nodes|load|swarm DIR PORT PKI NAS FRONTEND [NODE…]");
    };
    let site = Site {
        dir: Path::new(dir).to_owned(),
        port: port.parse().context("a port")?,
        pki: Path::new(pki).to_owned(),
        nas: HostName::new(nas.as_str())?,
        frontend: HostName::new(frontend.as_str())?,
        nodes: nodes.iter().map(|node| HostName::new(node.as_str())).collect::<Result<_, _>>()?,
    };
    let mut running = Vec::new();
    match role.as_str() {
        "nas" => running.push(site.nas().await?),
        "nodes" => {
            for node in &site.nodes {
                running.push(site.node(node).await?);
            }
        }
        "load" => return load::load(&site).await,
        "swarm" => return load::swarm(&site).await,
        other => bail!("there is no role {other}"),
    }
    // Until the bench ends it.
    std::future::pending::<()>().await;
    drop(running);
    Ok(())
}
