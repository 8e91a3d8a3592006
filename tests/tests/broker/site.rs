//! A cluster on one machine: a front end, a NAS and two nodes, each a process of its own, that reach each other over a broker only.

use anyhow::{Context as _, bail, ensure};
use img_storage_model::{
    Extent,
    api::{Phase, VolumeView},
};
use img_storage_tests::{
    broker::{Broker, Proxy, Until},
    service::{self, Service},
    writer::{Device, Load, Trouble, Writer},
};
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant},
};

pub const NAS: &str = "nas-0-0";
pub const NODES: [&str; 2] = ["compute-0-0", "compute-0-1"];
/// Every host, in the order of the processes; and another NAS of the cluster, which is away.
pub const SITE: [&str; 4] = ["frontend", NAS, NODES[0], NODES[1]];
pub const OTHER_NAS: &str = "nas-0-1";
const BLOCK: u32 = 4096;
/// Where the guest writes.
const AREAS: [Extent; 2] = [Extent { offset: 0, length: 4 << 20 }, Extent { offset: 50 << 20, length: 4 << 20 }];
/// How long something may take that was asked for.
pub const DONE: Duration = Duration::from_secs(60);

pub struct Site {
    pub service: Service,
    /// One for each host, between it and the broker.
    pub proxies: Vec<Proxy>,
    dir: tempfile::TempDir,
}

impl Site {
    /// Starts the processes; `address` is the NAS's own on the loopback network.
    pub async fn start(broker: &Broker, address: &str) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("site").tempdir()?;
        let mut site = Site { service: Service::new(service::program()?, dir.path())?, proxies: Vec::new(), dir };
        for host in SITE {
            let proxy = Proxy::to(broker.port()).await?;
            let config = site.config(host, host, broker, proxy.port(), address)?;
            site.proxies.push(proxy);
            let config = config.to_string_lossy();
            let words: &[&str] = match host {
                "frontend" => &["frontend", "--config", &config],
                NAS => &["nas", "--name", NAS, "--frequency", "2s", "--config", &config],
                node => &["vm", "--name", node, "--config", &config],
            };
            site.service.start(words)?;
        }
        site.service.ready(SITE.len()).await?;
        Ok(site)
    }

    /// Writes a configuration for a host, with the certificates of `who`.
    pub fn config(&self, file: &str, who: &str, broker: &Broker, port: u16, address: &str) -> anyhow::Result<PathBuf> {
        let path = self.dir.path().join(format!("{file}.toml"));
        let pki = broker.authority().issue(who, Until::Later)?;
        fs::write(
            &path,
            format!(
                "[nas]\naddress = \"{address}\"\n[bus]\nhosts = [\"localhost:{port}\"]\nheartbeat = \"2s\"\n\
                 [pki]\ndir = \"{}\"\n[cluster]\nnases = [\"{NAS}\", \"{OTHER_NAS}\"]\n",
                pki.display()
            ),
        )?;
        Ok(path)
    }

    /// A place for files of the test.
    pub fn scratch(&self) -> &Path {
        self.dir.path()
    }

    /// The volume's file on the NAS.
    pub fn disk(&self, volume: &str) -> PathBuf {
        self.service.dir().join("pools").join(NAS).join("tank").join(volume).join("disk.raw")
    }

    pub fn log(&self, host: &str) -> String {
        let role = SITE.iter().position(|h| *h == host).expect("a host");
        fs::read_to_string(self.service.log(role)).unwrap_or_default()
    }

    /// Waits until a host's log has something more than it had in `before`.
    pub async fn says(&self, host: &str, before: &str, what: &str) -> anyhow::Result<()> {
        let begun = Instant::now();
        while !self.log(host).get(before.len()..).unwrap_or_default().contains(what) {
            ensure!(begun.elapsed() < DONE, "{host} does not say {what:?}:\n{}", self.service.log_tail());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// An error when a daemon has ended.
    pub fn all_run(&mut self) -> anyhow::Result<()> {
        for (role, host) in SITE.iter().enumerate() {
            if let Some(code) = self.service.ended(role)? {
                bail!("{host} ended by itself with {code}:\n{}", self.service.log_tail());
            }
        }
        Ok(())
    }

    /// Begins to ask for something.
    pub fn ask(&self, words: &[&str]) -> Asked {
        let words: Vec<String> = words.iter().map(|&w| w.to_owned()).collect();
        let mut command = tokio::process::Command::new(self.service.program());
        command.args(&words).env("IMG_STORAGE_DIR", self.service.dir()).stdin(Stdio::null()).kill_on_drop(true);
        Asked(tokio::spawn(async move {
            let output = tokio::time::timeout(DONE, command.output()).await.context("it does not end")??;
            ensure!(output.status.success(), "`{}`: {}", words.join(" "), String::from_utf8_lossy(&output.stderr).trim());
            Ok(())
        }))
    }

    /// Asks until it is done, as an operator would whose network fails now and then.
    pub async fn insist(&mut self, words: &[&str]) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            let Err(why) = self.ask(words).answer().await else { return Ok(()) };
            // It was done, and the answer was lost.
            let over = ["not mapped", " already", "there is no volume"].iter().any(|said| why.to_string().contains(said));
            if over {
                return Ok(());
            }
            self.all_run()?;
            ensure!(begun.elapsed() < DONE, "{why:#}\n{}", self.service.log_tail());
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }

    pub async fn until(&self, volume: &str, phase: Phase) -> anyhow::Result<VolumeView> {
        let mapped = |v: &VolumeView| v.phase == phase && v.stuck.is_none() && (v.node.is_none() || v.device.is_some());
        self.service.until_it(volume, &format!("in phase {phase}"), DONE, mapped).await
    }
}

/// A command under way.
pub struct Asked(tokio::task::JoinHandle<anyhow::Result<()>>);

impl Asked {
    pub async fn answer(self) -> anyhow::Result<()> {
        self.0.await?
    }
}

/// A guest that writes, and verifies what it reads.
pub struct Guest {
    writer: Arc<Writer>,
    load: Option<tokio::task::JoinHandle<Result<(), Trouble>>>,
}

impl Guest {
    pub fn new(seed: u64) -> Self {
        Guest { writer: Writer::new(seed, BLOCK, &AREAS), load: None }
    }

    pub async fn on(&mut self, view: &VolumeView) -> anyhow::Result<()> {
        let device: Device = view.device.as_ref().context("no device")?.parse()?;
        let load = Load { depth: 2, longest: 8, flush_every: 30, rest: Duration::from_millis(4), ..Load::default() };
        self.load = Some(tokio::spawn(Arc::clone(&self.writer).run(device, load)));
        self.works().await
    }

    /// It writes, and nothing is wrong with what it reads.
    pub async fn works(&mut self) -> anyhow::Result<()> {
        let written = self.writer.figures().writes;
        let begun = Instant::now();
        while self.writer.figures().writes < written + 5 {
            if let Some(load) = self.load.take_if(|load| load.is_finished()) {
                load.await?.context("the guest")?;
                bail!("the guest ended by itself");
            }
            ensure!(begun.elapsed() < DONE, "the guest cannot write");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let refused = self.writer.figures().refused;
        ensure!(refused == 0, "the guest got {refused} errors");
        Ok(())
    }

    pub async fn off(&mut self) -> anyhow::Result<()> {
        self.writer.stop();
        if let Some(load) = self.load.take() {
            tokio::time::timeout(DONE, load).await.context("the guest does not end")??.context("the guest")?;
        }
        Ok(())
    }

    /// A moment; what was acknowledged before it must be in every copy from then on.
    pub fn now(&self) -> u64 {
        self.writer.now()
    }

    /// Everything that was acknowledged before an event is in a file, which is what the disk was at one moment.
    pub fn check(&self, file: &Path, before: u64) -> anyhow::Result<()> {
        let cut = self.writer.cut(&File::open(file)?)??;
        ensure!(cut.has_all_before(before), "{} lacks acknowledged writes ({cut:?})", file.display());
        Ok(())
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.writer.stop();
        if let Some(load) = &self.load {
            load.abort();
        }
    }
}
