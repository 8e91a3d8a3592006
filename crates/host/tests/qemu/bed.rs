//! A NAS and a node on this machine, with real storage daemons between which TLS with real certificates is spoken.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use img_storage_host::qemu::{Daemons, nas::QemuNas, node::QemuNode};
use img_storage_host::{HostError, NodeHost, VolumeRef};
use img_storage_model::{
    Epoch, Fact, HostName, Plane, Size, SnapshotId, VolumeId,
    attribute::Speed,
    messages::{DeviceKind, Endpoint},
    nas::{
        NasLayer,
        qemu::{NasFacts, NasStep},
    },
    node::NodeVolume,
    node::{
        Job, JobState, Layer, StepResult,
        qemu::{NodeFacts, NodeStep, QsdFacts},
    },
};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use uuid::Uuid;

use crate::writer::{History, Writer};

pub const SIZE: u64 = 64 << 20;
const ORGANIZATION: &str = "img-storage";

fn certificates(dir: &Path, hosts: &[&str]) {
    let key = KeyPair::generate().expect("key");
    let mut ca = CertificateParams::new(Vec::new()).expect("parameters");
    ca.distinguished_name.push(DnType::OrganizationName, ORGANIZATION);
    ca.distinguished_name.push(DnType::CommonName, "authority");
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let certificate = ca.self_signed(&key).expect("signed").pem();
    let issuer = Issuer::new(ca, key);
    for host in hosts {
        let at = dir.join(host);
        std::fs::create_dir_all(&at).expect("directory");
        std::fs::write(at.join("ca-cert.pem"), &certificate).expect("write");
        let key = KeyPair::generate().expect("key");
        let mut params = CertificateParams::new(vec![(*host).to_owned()]).expect("parameters");
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, ORGANIZATION);
        params.distinguished_name.push(DnType::CommonName, *host);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let signed = params.signed_by(&key, &issuer).expect("signed").pem();
        for role in ["server", "client"] {
            std::fs::write(at.join(format!("{role}-cert.pem")), &signed).expect("write");
            std::fs::write(at.join(format!("{role}-key.pem")), key.serialize_pem()).expect("write");
        }
    }
}

pub struct Bed {
    pub dir: tempfile::TempDir,
    pub nas: QemuNas,
    pub node: QemuNode,
    pub volume: VolumeRef,
    pub port: u16,
}

pub fn snapshot(n: u128) -> SnapshotId {
    SnapshotId(Uuid::from_u128(n))
}

pub fn peer() -> HostName {
    "node-0".parse().expect("name")
}

pub fn size() -> Size {
    Size::exact(SIZE).expect("size")
}

impl Bed {
    pub async fn new() -> Self {
        let dir = tempfile::tempdir().expect("directory");
        certificates(dir.path(), &["nas-0", "node-0", "node-1"]);
        for (name, host, pool) in [("pool", "nas-0", "tank"), ("local", "node-0", "local")] {
            img_storage_host::qemu::pool::claim(&dir.path().join(name), host, pool).expect("a pool");
        }
        let pools = BTreeMap::from([("tank".parse().expect("name"), dir.path().join("pool"))]);
        let nas = QemuNas::new(plane(dir.path(), "nas-0", "nas"), pools, "127.0.0.1", 20000..=29999).await;
        let node = QemuNode::new(plane(dir.path(), "node-0", "run"), "local", dir.path().join("local"), None).await;
        let volume = VolumeRef {
            id: VolumeId(Uuid::now_v7()),
            pool: "tank".parse().expect("name"),
            name: "vol1".parse().expect("name"),
            plane: Plane::Qemu,
        };
        let port = free_port();
        Self { dir, nas, node, volume, port }
    }

    /// Another node on the same pools.
    pub async fn node_named(&self, name: &str) -> QemuNode {
        QemuNode::new(plane(self.dir.path(), name, &format!("run-{name}")), "local", self.dir.path().join("local"), None).await
    }

    /// The volume as the node's host knows it by.
    pub fn at_node(&self) -> NodeVolume {
        NodeVolume { id: self.volume.id, plane: Plane::Qemu, label: "nas-0.tank.vol1".to_owned() }
    }

    pub fn endpoint(&self, port: u16, export: &str) -> Endpoint {
        Endpoint { host: "127.0.0.1".into(), port, export: export.into(), server: "nas-0".parse().expect("name") }
    }

    pub async fn try_nas(&self, step: NasStep) -> Result<StepResult, HostError> {
        timed(format!("{step:?}"), self.nas.carry_out(&self.volume, step)).await
    }

    pub async fn try_node(&self, step: NodeStep) -> Result<StepResult, HostError> {
        timed(format!("{step:?}"), self.node.carry_out(self.volume.id, step)).await
    }

    /// Does a step twice: any may be repeated.
    pub async fn nas(&self, step: NasStep) -> StepResult {
        let first = self.try_nas(step.clone()).await.expect("step");
        self.nas.carry_out(&self.volume, step).await.expect("repeated step");
        first
    }

    /// Does a step twice: any may be repeated.
    pub async fn node(&self, step: NodeStep) -> StepResult {
        let first = self.try_node(step.clone()).await.expect("step");
        self.node.carry_out(self.volume.id, step).await.expect("repeated step");
        first
    }

    pub async fn nas_facts(&self) -> NasFacts {
        self.nas.look(&self.volume).await
    }

    pub async fn node_facts(&self) -> NodeFacts {
        timed("observe", self.node.look(self.volume.id)).await
    }

    /// The node's storage daemon, which must run.
    pub async fn qsd(&self) -> QsdFacts {
        match self.node_facts().await.qsd {
            Fact::Known(qsd) => qsd.expect("running"),
            Fact::Unknown(why) => panic!("{why}"),
        }
    }

    /// Looks until something is so.
    pub async fn until(&self, what: &str, is: impl Fn(&QsdFacts) -> bool) -> QsdFacts {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            let facts = self.qsd().await;
            if is(&facts) {
                return facts;
            }
            assert!(Instant::now() < end, "not {what}: {facts:#?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub fn guest_socket(&self) -> PathBuf {
        let device = self.node.device(&self.at_node(), DeviceKind::Nbd);
        device.split_once("socket=").expect("a socket").1.into()
    }

    pub fn disk(&self) -> PathBuf {
        self.dir.path().join("pool/vol1/disk.raw")
    }

    pub fn local(&self) -> PathBuf {
        self.dir.path().join("local").join(self.volume.id.to_string()).join("local.raw")
    }

    /// `kill -9` of the storage daemon whose directory ends so.
    pub fn kill(&self, run: &str, suffix: &str) {
        let file = self.dir.path().join(run).join(format!("{}{suffix}", self.volume.id)).join("pid");
        let pid: i32 = std::fs::read_to_string(&file).expect("pid file").trim().parse().expect("a number");
        let pid = rustix::process::Pid::from_raw(pid).expect("a pid");
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("killed");
        eprintln!("killed {run}{suffix}");
    }

    pub async fn export(&self, epoch: u64, layer: NasLayer) {
        let name = match layer {
            NasLayer::Disk => format!("e{epoch}"),
            NasLayer::Overlay => format!("e{epoch}.back"),
        };
        let step = NasStep::StartExport { epoch: Epoch(epoch), name, peer: peer(), port: self.port, layer };
        // A daemon tries again: the files of a killed process with requests in the kernel stay locked a little longer than it lives.
        let begin = Instant::now();
        while let Err(why) = self.try_nas(step.clone()).await {
            assert!(begin.elapsed() < Duration::from_secs(10), "{why}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// From nothing to a guest on the NAS.
    pub async fn map(&self) {
        self.nas(NasStep::CreateDisk { size: size() }).await;
        self.nas(NasStep::SyncDisk).await;
        let begin = Instant::now();
        let peer = peer();
        let (epoch, port) = (Epoch(1), self.port);
        self.try_nas(NasStep::StartExport { epoch, name: "e1".into(), peer, port, layer: NasLayer::Disk }).await.expect("step");
        let endpoint = Some(self.endpoint(port, "e1"));
        self.try_node(NodeStep::Start { epoch, over: Layer::Remote, endpoint: endpoint.clone() }).await.expect("step");
        self.try_node(NodeStep::AddGuest { device: DeviceKind::Nbd }).await.expect("step");
        eprintln!("map to usable: {:?}", begin.elapsed());
        self.export(1, NasLayer::Disk).await;
        self.node(NodeStep::Start { epoch, over: Layer::Remote, endpoint }).await;
        self.node(NodeStep::AddGuest { device: DeviceKind::Nbd }).await;
    }

    /// From nothing to a guest on its local copy.
    pub async fn map_local(&self) -> Writer {
        self.map().await;
        let writer = Writer::start(&self.guest_socket(), History::default()).await;
        writer.writes(300).await;
        self.copy_to_ready().await;
        self.switch().await;
        writer.writes(300).await;
        writer
    }

    /// From a guest on its local copy, and a snapshot, to both sides having everything.
    pub async fn back_to_ready(&self) {
        self.nas(NasStep::CreateOverlay { epoch: Epoch(1) }).await;
        self.export(1, NasLayer::Overlay).await;
        self.node(NodeStep::OpenBack { endpoint: self.endpoint(self.port, "e1.back") }).await;
        self.node(NodeStep::StartBack { full: false, speed: Speed::UNLIMITED }).await;
        let is = |job: &Option<Job>, state| job.as_ref().is_some_and(|j| j.state == state);
        self.until("on both sides", |q| is(&q.back_mirror, JobState::Ready) && is(&q.back_fill, JobState::Done)).await;
    }

    pub async fn copy_to_ready(&self) {
        self.node(NodeStep::CreateLocal { epoch: Epoch(1), size: size() }).await;
        self.node(NodeStep::OpenLocal).await;
        self.node(NodeStep::StartCopy { speed: Speed::UNLIMITED }).await;
        self.until("copied", |q| q.copy.as_ref().is_some_and(|c| c.state == JobState::Ready)).await;
        self.node(NodeStep::ReserveLocal).await;
    }

    /// From ready to local, and the NAS's export gone.
    pub async fn switch(&self) {
        let begin = Instant::now();
        self.try_node(NodeStep::CompleteCopy).await.expect("step");
        self.try_node(NodeStep::AddBitmap { since: img_storage_model::node::qemu::Incremental::Pivot }).await.expect("step");
        let before = self.qsd().await;
        assert_eq!(before.copy.as_ref().map(|c| &c.state), Some(&JobState::Pending));
        assert_eq!(before.top, Layer::Remote);
        self.try_node(NodeStep::FinalizeCopy).await.expect("step");
        eprintln!("switch: {:?}", begin.elapsed());
        self.node(NodeStep::FinalizeCopy).await;
        self.node(NodeStep::DetachRemote).await;
        self.nas(NasStep::StopExport).await;
        let after = self.qsd().await;
        assert_eq!((after.top, after.remote, after.copy), (Layer::Local, None, None));
    }
}

impl Drop for Bed {
    /// Nothing of a failed test stays behind.
    fn drop(&mut self) {
        for run in ["run", "nas", "run-node-1"] {
            for entry in std::fs::read_dir(self.dir.path().join(run)).into_iter().flatten().flatten() {
                if std::thread::panicking() {
                    let log = std::fs::read_to_string(entry.path().join("log")).unwrap_or_default();
                    eprintln!("{}: {log}", entry.path().display());
                }
                let Ok(text) = std::fs::read_to_string(entry.path().join("pid")) else { continue };
                let Some(pid) = text.trim().parse().ok().and_then(rustix::process::Pid::from_raw) else { continue };
                let line = std::fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default();
                if String::from_utf8_lossy(&line).contains(&*entry.path().to_string_lossy()) {
                    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                }
            }
        }
    }
}

/// The programs in the directory `IMG_STORAGE_TEST_QEMU`, or the host's.
fn plane(dir: &Path, host: &str, run: &str) -> Daemons {
    let mut plane = Daemons::new(dir.join(run), dir.join(host), ORGANIZATION);
    if let Some(programs) = std::env::var_os("IMG_STORAGE_TEST_QEMU").map(PathBuf::from) {
        plane.program = programs.join("qemu-storage-daemon");
        plane.qemu_img = programs.join("qemu-img");
    }
    plane
}

pub fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0)).and_then(|listener| listener.local_addr()).expect("a port").port()
}

async fn timed<T>(what: impl AsRef<str>, work: impl Future<Output = T>) -> T {
    let begin = Instant::now();
    let result = work.await;
    let what = what.as_ref();
    eprintln!("{:8.2} ms  {}", begin.elapsed().as_secs_f64() * 1000.0, &what[..what.len().min(70)]);
    result
}
