//! A network that swallows everything: connections stay, and nothing answers any more. The guest works on its local copy and needs
//! no NAS; whoever opens its disk then must not wait for one.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use img_storage_host::nbd::Nbd;
use img_storage_model::{
    Epoch,
    attribute::Speed,
    messages::DeviceKind,
    nas::{NasLayer, qemu::NasStep},
    node::{
        JobState, Layer,
        qemu::{Incremental, NodeStep},
    },
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use crate::bed::{Bed, free_port, peer, size, snapshot};
use crate::writer::{History, Writer};

/// To open the guest's disk and read from it.
const AT_ONCE: Duration = Duration::from_secs(1);
/// What the NAS says first: `NBDMAGIC`, `IHAVEOPT` and its flags.
const GREETING: usize = 18;

/// The way to the NAS, which can fall silent.
struct Way {
    port: u16,
    /// How many bytes from the NAS get through on each connection; with none, nothing to it does either.
    through: watch::Sender<usize>,
    task: JoinHandle<()>,
}

impl Way {
    async fn to(nas: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listens");
        let port = listener.local_addr().expect("an address").port();
        let (through, limit) = watch::channel(usize::MAX);
        let task = tokio::spawn(async move {
            let mut carried = JoinSet::new();
            loop {
                let (client, _) = listener.accept().await.expect("accepts");
                drop(carried.spawn(carry(client, nas, limit.clone())));
            }
        });
        Self { port, through, task }
    }

    /// From now on nothing gets through, and nobody is told.
    fn falls_silent(&self) {
        self.through.send_replace(0);
    }

    /// What was sent meanwhile arrives.
    fn comes_back(&self) {
        self.through.send_replace(usize::MAX);
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Carries one connection. While it is silent the sockets stay open and take nothing, as with a network that is gone.
async fn carry(client: TcpStream, nas: u16, limit: watch::Receiver<usize>) {
    let Ok(nas) = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], nas))).await else { return };
    let ((mut from_client, mut to_client), (mut from_nas, mut to_nas)) = (client.into_split(), nas.into_split());
    let mut open = limit.clone();
    let there = async {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let n = from_client.read(&mut buffer).await?;
            if n == 0 {
                return io::Result::Ok(());
            }
            drop(open.wait_for(|limit| *limit > 0).await);
            to_nas.write_all(&buffer[..n]).await?;
        }
    };
    let mut open = limit;
    let back = async {
        let (mut buffer, mut carried) = (vec![0; 64 << 10], 0);
        loop {
            let n = from_nas.read(&mut buffer).await?;
            if n == 0 {
                return io::Result::Ok(());
            }
            let mut sent = 0;
            while sent < n {
                let limit = open.wait_for(|limit| *limit > carried).await.map_or(0, |limit| *limit);
                let part = (n - sent).min(limit.saturating_sub(carried));
                to_client.write_all(&buffer[sent..sent + part]).await?;
                (sent, carried) = (sent + part, carried + part);
            }
        }
    };
    let _ = tokio::select! { done = there => done, done = back => done };
}

/// A port at which connections are not even taken, and what keeps it so.
async fn deaf() -> (u16, (TcpListener, Vec<TcpStream>)) {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a port");
    let listener = socket.listen(1).expect("listens");
    let address = listener.local_addr().expect("an address");
    let mut waiting = Vec::new();
    while let Ok(stream) = tokio::time::timeout(Duration::from_millis(300), TcpStream::connect(address)).await {
        waiting.push(stream.expect("connects"));
    }
    (address.port(), (listener, waiting))
}

impl Bed {
    /// A guest on the NAS.
    async fn map_over_a_way(&self) -> Way {
        self.nas(NasStep::CreateDisk { size: size() }).await;
        self.nas(NasStep::SyncDisk).await;
        self.export(1, NasLayer::Disk).await;
        let way = Way::to(self.port).await;
        let endpoint = Some(self.endpoint(way.port, "e1"));
        self.node(NodeStep::Start { epoch: Epoch(1), over: Layer::Remote, endpoint }).await;
        self.node(NodeStep::AddGuest { device: DeviceKind::Nbd }).await;
        way
    }

    /// Opens the guest's disk again and again while a step is carried out: never does that take long. How the step went, and how long it took.
    async fn while_opened_anew(&self, step: NodeStep) -> (Result<(), String>, Duration) {
        let begin = Instant::now();
        let name = format!("{step:?}");
        let mut work = std::pin::pin!(self.try_node(step));
        loop {
            let opened = async {
                tokio::time::sleep(Duration::from_millis(100)).await;
                let begin = Instant::now();
                let disk = Nbd::unix(&self.guest_socket(), "disk", &[], AT_ONCE).await.expect("opens");
                drop(disk.read(0, 4096).await.expect("reads"));
                disk.disconnect().await;
                assert!(begin.elapsed() < AT_ONCE, "{name}: opening the disk took {:?}", begin.elapsed());
            };
            let mut opened = std::pin::pin!(opened);
            tokio::select! {
                biased;
                () = &mut opened => {}
                result = &mut work => {
                    opened.await;
                    return (result.map(drop).map_err(|why| why.to_string()), begin.elapsed());
                }
            }
        }
    }

    /// A write-back up to where the node is to connect.
    async fn push_begins(&self, n: u128) -> Way {
        let (push, port) = (snapshot(n), free_port());
        self.nas(NasStep::CreateIncoming { push }).await;
        self.nas(NasStep::ServeIncoming { push, peer: peer(), port }).await;
        self.node(NodeStep::FreezeBitmap { push }).await;
        self.node(NodeStep::InsertFleece).await;
        self.node(NodeStep::OpenSource { full: false }).await;
        Way::to(port).await
    }

    /// The write-back is given up while nothing answers.
    async fn push_ends(&self) {
        let (ended, took) = self.while_opened_anew(NodeStep::EndPush).await;
        assert_eq!(ended, Ok(()));
        assert!(took < Duration::from_secs(5), "the write-back was given up after {took:?}");
        self.node(NodeStep::RevertBitmap).await;
        self.nas(NasStep::DiscardIncoming).await;
        assert_eq!(self.qsd().await.snapshotting, Default::default());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_back_into_silence_holds_nobody_up() {
    let bed = Bed::new().await;
    let writer = bed.map_local().await;

    // Nobody answers, or somebody who says nothing, or the network goes when the greeting has come.
    let (deaf, _waiting) = deaf().await;
    for through in [None, Some(0), Some(GREETING)] {
        let way = bed.push_begins(1).await;
        way.through.send_replace(through.unwrap_or_default());
        let port = if through.is_some() { way.port } else { deaf };
        let endpoint = bed.endpoint(port, &snapshot(1).to_string());
        let (opened, took) = bed.while_opened_anew(NodeStep::OpenIncoming { endpoint }).await;
        let why = opened.expect_err("there is no NAS");
        assert!(why.contains("nas-0") && why.contains(&format!("127.0.0.1:{port}")), "{why}");
        assert!(took < Duration::from_secs(20), "{took:?}: {why}");
        bed.push_ends().await;
    }

    // It goes while blocks move.
    let way = bed.push_begins(2).await;
    writer.writes(100).await;
    bed.node(NodeStep::OpenIncoming { endpoint: bed.endpoint(way.port, &snapshot(2).to_string()) }).await;
    way.falls_silent();
    bed.node(NodeStep::StartPush { push: snapshot(2), full: false, speed: Speed::UNLIMITED }).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(bed.qsd().await.push.is_some_and(|(_, job)| job.state == JobState::Running));
    bed.push_ends().await;

    // It goes when all have moved.
    let way = bed.push_begins(3).await;
    bed.node(NodeStep::OpenIncoming { endpoint: bed.endpoint(way.port, &snapshot(3).to_string()) }).await;
    bed.node(NodeStep::StartPush { push: snapshot(3), full: false, speed: Speed::UNLIMITED }).await;
    bed.until("sent", |q| q.push.as_ref().is_some_and(|(_, job)| job.state == JobState::Done)).await;
    way.falls_silent();
    bed.push_ends().await;

    // And the next one moves everything.
    bed.push(snapshot(4), false, false).await;
    bed.accept(snapshot(4), Incremental::Pivot).await;
    let disk = bed.read_disk();
    writer.writes(100).await;
    let history = writer.stop().await;
    assert_eq!(history.error, None);
    history.check_moment("NAS", &disk, 700);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_network_goes_at_the_switch() {
    let bed = Bed::new().await;
    let way = bed.map_over_a_way().await;
    let writer = Writer::start(&bed.guest_socket(), History::default()).await;
    writer.writes(100).await;
    bed.copy_to_ready().await;
    bed.node(NodeStep::CompleteCopy).await;
    bed.node(NodeStep::AddBitmap { since: Incremental::Pivot }).await;
    bed.node(NodeStep::FinalizeCopy).await;
    way.falls_silent();
    let (detached, took) = bed.while_opened_anew(NodeStep::DetachRemote).await;
    let why = detached.expect_err("the NAS does not answer");
    assert!(why.contains("nas.e1"), "{why}");
    assert!(took < Duration::from_secs(20), "{took:?}: {why}");
    writer.writes(100).await;
    way.comes_back();
    bed.node(NodeStep::DetachRemote).await;
    assert_eq!((bed.qsd().await.top, bed.qsd().await.remote), (Layer::Local, None));
    let history = writer.stop().await;
    assert_eq!(history.error, None);
    history.check_all("local", &bed.read_local());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_does_not_outlive_what_it_was_for() {
    let bed = Bed::new().await;
    let writer = bed.map_local().await;
    let way = bed.push_begins(1).await;
    bed.node(NodeStep::OpenIncoming { endpoint: bed.endpoint(way.port, &snapshot(1).to_string()) }).await;
    let relay = bed.dir.path().join("run").join(format!("{}.b", bed.volume.id));
    assert!(relay.exists());
    bed.kill("run", "");
    assert!(writer.stop().await.error.is_some(), "the guest noticed");
    while bed.node_facts().await.qsd.known() != Some(&None) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    bed.node(NodeStep::RemoveLocal).await;
    assert!(!relay.exists());
}
