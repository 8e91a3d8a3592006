//! A cluster in the guests: a front end and a NAS with a ZFS pool on `nas`, a node each on `node1` and `node2`, a broker between them.

mod writer;

pub use writer::{Known, Writer, holds};

use crate::{
    broker::{Broker, Until},
    lab::{Guest, Lab, Output},
};
use anyhow::ensure;
use serde_json::Value;
use std::time::{Duration, Instant};
use tokio::sync::Mutex;

/// The state directory of every role.
pub const DIR: &str = "/var/lib/img-storage-state";
/// The volume; the only one where nothing else is said.
pub const VOLUME: &str = "tank/vol1";
/// Its device on every node.
pub const DEVICE: &str = "/dev/mapper/nas.tank.vol1";
/// Its zvol on the NAS.
pub const ZVOL: &str = "/dev/zvol/tank/vol1";
/// The NAS's other pool, which is a directory.
pub const SHELF: &str = "/var/lib/img-storage-state-shelf";
/// How long something may take that was asked for; the guests are emulated.
pub const DONE: Duration = Duration::from_secs(240);

/// The device of a volume on every node.
pub fn device(volume: &str) -> String {
    format!("/dev/mapper/nas.{}", volume.replace('/', "."))
}

/// A running cluster.
pub struct Cluster<'l> {
    lab: &'l Lab,
    broker: Mutex<Broker>,
}

impl<'l> Cluster<'l> {
    /// Sets everything up as `docs/kernel-plane.md` says, and starts the daemons.
    pub async fn start(lab: &'l Lab) -> anyhow::Result<Self> {
        let broker = Broker::start_in(lab.broker_place(), &["frontend", "nas", "node1", "node2"]).await?;
        let cluster = Cluster { lab, broker: Mutex::new(broker) };
        cluster.clear().await?;
        let nas = lab.guest("nas")?;
        nas.check(
            "zpool create tank /dev/disk/by-id/virtio-data; install -d -m 700 /etc/img-storage/ssh
             install -m 600 /var/lib/img-storage/.ssh/id_ed25519 /etc/img-storage/ssh/
             ssh-keyscan -t ed25519 node1 node2 10.77.0.3 10.77.0.4 > /etc/img-storage/ssh/known_hosts 2> /dev/null",
        )
        .await?;
        cluster.configure(nas, "frontend", "").await?;
        let pools = format!("[nas.zfs]\ntank = \"tank\"\n[nas.pools]\nshelf = \"{SHELF}\"\n");
        cluster.configure(nas, "nas", &format!("[nas]\nname = \"nas\"\ndata_address = \"10.77.0.2\"\n{pools}")).await?;
        for name in ["node1", "node2"] {
            let node = lab.guest(name)?;
            node.check(
                "zpool create vmpool /dev/disk/by-id/virtio-data; zfs create vmpool/images
                 zfs allow -u img-storage create,destroy,hold,mount,receive,release,rollback,send,snapshot,userprop,volmode,snapdev vmpool/images
                 key=$(cat /opt/lab/stream.pub); echo \"restrict,command=\\\"img-storage stream --within vmpool/images\\\" $key\" \
                 > /var/lib/img-storage/.ssh/authorized_keys",
            )
            .await?;
            cluster.configure(node, name, &format!("[vm]\nname = \"{name}\"\nzfs = \"vmpool/images\"\n")).await?;
        }
        for name in ["nas", "node1", "node2"] {
            // What an operator has set up has been on the disk for long when the power goes.
            cluster.guest(name)?.check("sync").await?;
            cluster.begin(name).await?;
        }
        let here = format!("test $(img-storage --dir {DIR} hosts -o csv | grep -c ,false,) = 4");
        if let Err(error) = nas.wait_for(&here, DONE).await {
            return Err(error.context(cluster.logs().await));
        }
        Ok(cluster)
    }

    async fn configure(&self, guest: &Guest, host: &str, more: &str) -> anyhow::Result<()> {
        let (pki, port) = {
            let broker = self.broker.lock().await;
            (broker.authority().issue(host, Until::Later)?, broker.port())
        };
        guest.check(&format!("install -d -m 700 /etc/img-storage /etc/img-storage/{host}-pki")).await?;
        for file in ["ca-cert.pem", "client-cert.pem", "client-key.pem", "server-cert.pem", "server-key.pem"] {
            guest.put(&pki.join(file), &format!("/etc/img-storage/{host}-pki/{file}")).await?;
        }
        let config = format!(
            "frequency = \"20s\"\n[bus]\nhosts = [\"host:{port}\"]\nheartbeat = \"10s\"\n[pki]\ndir = \"/etc/img-storage/{host}-pki\"\n\
             [cluster]\nnases = [\"nas\"]\n{more}"
        );
        guest.check(&format!("cat > /etc/img-storage/{host}.toml <<'END'\n{config}END")).await?;
        Ok(())
    }

    /// Starts the daemons of a guest.
    pub async fn begin(&self, name: &str) -> anyhow::Result<()> {
        let roles: &[(&str, &str)] = match name {
            "nas" => &[("frontend", "frontend"), ("nas", "nas")],
            node => &[(node, "vm")],
        };
        for (host, role) in roles {
            self.start_one(name, host, role).await?;
        }
        Ok(())
    }

    /// Starts one daemon.
    pub async fn start_one(&self, name: &str, host: &str, role: &str) -> anyhow::Result<()> {
        let guest = self.guest(name)?;
        let command = format!("img-storage {role} --name {host} --dir {DIR}-{host} --config /etc/img-storage/{host}.toml");
        // What it said before it was killed is worth reading, too.
        guest.spawn(host, &format!("bash -c 'ln -sfn {DIR}-frontend {DIR}; {command} >> /run/lab/{host}.all 2>&1'")).await?;
        Ok(())
    }

    /// Kills the daemon of a host with -9, and waits until the process is gone; for 5 s, as one that waits for a disk dies later.
    pub async fn kill(&self, name: &str) -> anyhow::Result<()> {
        let kill = format!(
            "p=$(pgrep -f -- '[-]-name {name} ') || exit 0; kill -9 $p || true
             for pid in $p; do for i in $(seq 50); do test -d /proc/$pid || break; sleep .1; done; done"
        );
        self.guest(name)?.check(&kill).await.map(drop)
    }

    /// After a guest was started again: its pool, and the daemons.
    pub async fn after_boot(&self, name: &str) -> anyhow::Result<()> {
        let pool = if name == "nas" { "tank" } else { "vmpool" };
        self.guest(name)?.check(&format!("zpool list {pool} > /dev/null 2>&1 || zpool import -f {pool}")).await?;
        self.begin(name).await
    }

    /// A guest.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn guest(&self, name: &str) -> anyhow::Result<&'l Guest> {
        self.lab.guest(name)
    }

    /// Asks as the operator does.
    pub async fn ask(&self, words: &str) -> anyhow::Result<String> {
        let asked = self.guest("nas")?.check_within(&format!("img-storage --dir {DIR} {words}"), DONE).await;
        match asked {
            Ok(said) => Ok(said),
            Err(error) => Err(error.context(self.logs().await)),
        }
    }

    /// Asks what may be refused.
    pub async fn try_ask(&self, words: &str) -> anyhow::Result<Output> {
        self.guest("nas")?.run_within(&format!("img-storage --dir {DIR} {words}"), DONE).await
    }

    /// Stops the broker.
    pub async fn broker_away(&self) -> anyhow::Result<()> {
        self.broker.lock().await.stop().await
    }

    /// Starts it again.
    pub async fn broker_back(&self) -> anyhow::Result<()> {
        self.broker.lock().await.resume().await
    }

    /// Waits until the volume is said to be stuck, with one of these words in the reason.
    pub async fn stuck(&self, words: &[&str]) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            let view = self.view().await?;
            let volume = if view["phase"].is_null() { &view["volume"] } else { &view };
            if volume["stuck"]["why"].as_str().is_some_and(|why| words.iter().any(|word| why.contains(word))) {
                return Ok(());
            }
            if begun.elapsed() > DONE {
                ensure!(false, "{VOLUME} is not said to be stuck by {words:?}: {view}\n{}", self.logs().await);
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// What is shown of the volume.
    ///
    /// # Errors
    /// When it cannot be asked for.
    pub async fn view(&self) -> anyhow::Result<Value> {
        self.view_of(VOLUME).await
    }

    /// What is shown of any volume.
    ///
    /// # Errors
    /// When it cannot be asked for.
    pub async fn view_of(&self, volume: &str) -> anyhow::Result<Value> {
        let said = self.guest("nas")?.check(&format!("img-storage --dir {DIR} show {volume} -o json")).await?;
        Ok(serde_json::from_str(&said)?)
    }

    /// Waits until the volume is in a phase, with its device if it has a node.
    pub async fn until(&self, phase: &str) -> anyhow::Result<()> {
        self.until_of(VOLUME, phase).await
    }

    /// As [`Cluster::until`], of any volume.
    pub async fn until_of(&self, name: &str, phase: &str) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            // A daemon that was killed a moment ago does not answer.
            let view = self.view_of(name).await.unwrap_or(Value::Null);
            let volume = if view["phase"].is_null() { &view["volume"] } else { &view };
            let there = volume["node"].is_null() || volume["device"].is_string();
            if volume["phase"] == phase && there && volume["stuck"].is_null() {
                return Ok(());
            }
            if begun.elapsed() > DONE {
                let logs = self.logs().await;
                ensure!(false, "{name} is not {phase} after {} s: {view}\n{logs}", DONE.as_secs());
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// The end of every daemon's log.
    pub async fn logs(&self) -> String {
        let mut all = String::new();
        for guest in self.lab.guests() {
            let said = guest
                .run("for f in /run/lab/*.all; do echo \"--- $f\"; tail -n 25 $f; done; dmsetup table; zfs list -t all")
                .await;
            all.push_str(&format!("=== {}\n{}", guest.name(), said.map_or_else(|e| e.to_string(), |o| o.stdout)));
        }
        all
    }

    /// Ends the daemons and forgets what they and the writers noted; also of a scenario that failed.
    async fn clear(&self) -> anyhow::Result<()> {
        for guest in self.lab.guests() {
            let daemons = "pkill -9 -x img-storage; pkill -9 -f '[w]rite.sh'; rm -rf /run/lab /var/lib/writer-*.notes";
            guest.run(&format!("{daemons}; rm -rf {DIR} {DIR}-*; true")).await?;
        }
        Ok(())
    }

    /// Ends the cluster; pools and devices are cleared away before the next scenario.
    pub async fn end(self) -> anyhow::Result<()> {
        self.clear().await
    }
}
