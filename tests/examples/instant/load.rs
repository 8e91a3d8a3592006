//! A front end that asks without a rest, and tells how long the answers took.

use super::Site;
use anyhow::{Context as _, bail, ensure};
use img_storage_daemon::{
    clock::{Clock, Ids},
    frontend::Desk,
    tasks::Running,
};
use img_storage_model::{
    HostName, Size, VolumeId, VolumeName,
    api::{Answer, HostView, Phase, Request, VolumeView},
    messages::{DeviceKind, Role},
};
use serde_json::json;
use std::{
    collections::BTreeSet,
    io::BufRead as _,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{task::JoinSet, time::sleep};

/// An answer that has not come by then never will.
const PATIENCE: Duration = Duration::from_secs(120);
/// Volumes mapped at once.
const TOGETHER: usize = 200;
/// Times a single request is made.
const ROUNDS: usize = 60;

struct Load {
    desk: Arc<Desk>,
    nas: HostName,
    nodes: Vec<HostName>,
    _running: Running,
}

fn median(mut times: Vec<Duration>) -> (f64, f64) {
    times.sort_unstable();
    let ms = |t: Option<&Duration>| t.map_or(f64::NAN, |t| t.as_secs_f64() * 1e3);
    (ms(times.get(times.len() / 2)), ms(times.last()))
}

impl Load {
    async fn begin(site: &Site) -> anyhow::Result<Self> {
        let member = site.join(&site.frontend).await?;
        let (desk, running) = Desk::start(member, Clock::System, Ids::random(), PathBuf::new(), site.cluster());
        let load = Load { desk, nas: site.nas.clone(), nodes: site.nodes.clone(), _running: running };
        load.present(&site.nodes.iter().chain([&site.nas]).cloned().collect(), None).await?;
        Ok(load)
    }

    /// Waits until all of them are there, and were heard of since a moment.
    async fn present(&self, hosts: &BTreeSet<HostName>, since: Option<Instant>) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            let heard = |h: &HostView| since.is_none_or(|since| h.heard <= since.elapsed().as_secs());
            let there = |h: &HostView| !h.away && h.role != Role::Frontend && heard(h);
            let seen: BTreeSet<HostName> = self.desk.hosts().await.into_iter().filter(there).map(|h| h.name).collect();
            if seen.is_superset(hosts) {
                return Ok(());
            }
            ensure!(begun.elapsed() < PATIENCE, "{} of {} hosts are there", seen.len(), hosts.len());
            sleep(Duration::from_millis(20)).await;
        }
    }

    async fn ask(&self, request: Request) -> anyhow::Result<Answer> {
        Ok(self.desk.ask(&self.nas, self.desk.id(), request, PATIENCE).await?)
    }

    async fn create(&self, from: usize, to: usize) -> anyhow::Result<Vec<VolumeId>> {
        let mut made = Vec::new();
        for n in from..to {
            let request = Request::Create {
                pool: None,
                name: VolumeName::new(format!("vol{n}"))?,
                size: Size::exact(1 << 20)?,
                import: false,
            };
            match self.ask(request).await? {
                Answer::Volume { volume } => made.push(volume.id),
                other => bail!("{other:?}"),
            }
        }
        Ok(made)
    }

    async fn map(&self, volume: VolumeId, node: &HostName, sync: bool) -> anyhow::Result<Duration> {
        let begun = Instant::now();
        let answer = self.ask(Request::Map { volume, node: node.clone(), sync, device: DeviceKind::Nbd }).await?;
        let took = begun.elapsed();
        ensure!(matches!(&answer, Answer::Volume { volume } if volume.device.is_some()), "{answer:?}");
        Ok(took)
    }

    async fn unmap(&self, volume: VolumeId) -> anyhow::Result<Duration> {
        let begun = Instant::now();
        self.ask(Request::Unmap { volume, force: false }).await?;
        Ok(begun.elapsed())
    }

    async fn volumes(&self) -> anyhow::Result<Vec<VolumeView>> {
        Ok(self.desk.volumes(None).await?)
    }

    async fn until_local(&self, volume: VolumeId) -> anyhow::Result<()> {
        let begun = Instant::now();
        while !self.volumes().await?.iter().any(|v| v.id == volume && v.phase == Phase::Local) {
            ensure!(begun.elapsed() < PATIENCE, "it does not become local");
            sleep(Duration::from_millis(2)).await;
        }
        Ok(())
    }

    async fn list(&self, what: &str) -> anyhow::Result<()> {
        let mut times = Vec::new();
        for _ in 0..20 {
            let begun = Instant::now();
            self.volumes().await?;
            times.push(begun.elapsed());
        }
        tell(what, median(times));
        Ok(())
    }

    async fn one_by_one(&self, what: &str, volume: VolumeId, sync: bool, rounds: usize) -> anyhow::Result<()> {
        let (mut maps, mut unmaps) = (Vec::new(), Vec::new());
        for round in 0..rounds {
            maps.push(self.map(volume, &self.nodes[round % self.nodes.len()], sync).await?);
            if sync {
                self.until_local(volume).await?;
            }
            unmaps.push(self.unmap(volume).await?);
        }
        tell(what, median(maps));
        tell(&format!("un{what}"), median(unmaps));
        Ok(())
    }

    /// All at once, over all nodes; how many a second.
    async fn at_once(self: &Arc<Self>, volumes: &[VolumeId], unmap: bool) -> anyhow::Result<f64> {
        let begun = Instant::now();
        let mut asked = JoinSet::new();
        for (n, volume) in volumes.iter().copied().enumerate() {
            let (load, node) = (Arc::clone(self), self.nodes[n % self.nodes.len()].clone());
            asked.spawn(async move { if unmap { load.unmap(volume).await } else { load.map(volume, &node, false).await } });
        }
        while let Some(done) = asked.join_next().await {
            done??;
        }
        Ok(volumes.len() as f64 / begun.elapsed().as_secs_f64())
    }
}

fn tell(what: &str, (median, worst): (f64, f64)) {
    println!("{}", json!({"what": what, "median": median, "worst": worst}));
}

/// Maps, unmaps and lists, alone and together, with more and more volumes there.
pub async fn load(site: &Site) -> anyhow::Result<()> {
    let load = Arc::new(Load::begin(site).await?);
    let mut volumes = load.create(0, 1).await?;
    let first = volumes[0];
    load.one_by_one("warm", first, false, 10).await?;
    load.list("list 1").await?;
    load.one_by_one("map", first, false, ROUNDS).await?;
    load.one_by_one("sync map", first, true, ROUNDS / 2).await?;
    volumes.extend(load.create(volumes.len(), TOGETHER).await?);
    // Who watches the daemons' processor time reads it where these lines come out.
    tell("begin", (0.0, 0.0));
    let (mut maps, mut unmaps) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        maps.push(load.at_once(&volumes, false).await?);
        unmaps.push(load.at_once(&volumes, true).await?);
    }
    tell("end", (5.0 * TOGETHER as f64, 0.0));
    for (what, mut rates) in [("maps a second", maps), ("unmaps a second", unmaps)] {
        rates.sort_by(f64::total_cmp);
        tell(what, (rates[rates.len() / 2], rates[0]));
    }
    for many in [1000, 10_000] {
        volumes.extend(load.create(volumes.len(), many).await?);
        load.list(&format!("list {many}")).await?;
        load.one_by_one(&format!("map of {many}"), first, false, ROUNDS).await?;
    }
    Ok(())
}

/// A volume on every node; then the broker is stopped and started by who reads `ready` and writes a line. How long until every
/// node is back and every volume's state known.
pub async fn swarm(site: &Site) -> anyhow::Result<()> {
    let load = Arc::new(Load::begin(site).await?);
    let volumes = load.create(0, site.nodes.len()).await?;
    for (some, nodes) in volumes.chunks(50).zip(site.nodes.chunks(50)) {
        let mut asked = JoinSet::new();
        for (volume, node) in some.iter().copied().zip(nodes.iter().cloned()) {
            let load = Arc::clone(&load);
            asked.spawn(async move { load.map(volume, &node, false).await });
        }
        while let Some(done) = asked.join_next().await {
            done??;
        }
    }
    tell("ready", (volumes.len() as f64, 0.0));
    tokio::task::spawn_blocking(|| std::io::stdin().lock().read_line(&mut String::new())).await?.context("the broker's start")?;
    let begun = Instant::now();
    load.present(&site.nodes.iter().chain([&site.nas]).cloned().collect(), Some(begun)).await?;
    let back = begun.elapsed();
    // Everything goes on: every volume can be unmapped.
    for some in volumes.chunks(100) {
        load.at_once(some, true).await?;
    }
    let ms = |t: Duration| t.as_secs_f64() * 1e3;
    tell("back", (ms(back), ms(begun.elapsed())));
    Ok(())
}
