//! The verbs of a node on the qemu plane.
//!
//! Per volume there is one storage daemon with this graph (in brackets: only at times):
//!
//! ```text
//! guest ─ top (throttle, without limits: stays for the mapping's life, carries the bitmaps wb.*)
//!          └ [mf, mfback: a mirror] ─ [cbw: the point in time of a push; its old blocks in fl, read through snap]
//!             ├ nas.EXPORT     the NAS, waits for it when it is away
//!             ├ back.EXPORT    the NAS just after bring-back, through the relay, until it is replaced by nas.EXPORT
//!             └ local          the local copy
//! ```
//! Connections that must not wait have no reconnect delay: `inc` (the incoming file) and `back.EXPORT`, `back2.EXPORT`. A break
//! there must fail the job: whatever answers afterwards may be a fresh, empty file under the same name.
//!
//! Those lead through a second process, `VOLUME.b`, a relay to the NAS's incoming file or overlay; see [`relay`].

mod back;
mod copy;
mod files;
mod push;
mod relay;
mod users;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use img_storage_model::{
    Epoch, Fact, VolumeId,
    attribute::Speed,
    messages::{DeviceKind, Endpoint, Holder, PoolReport},
    node::{
        self, Job, JobState, Layer, NodeVolume, StepResult,
        qemu::{Bitmap, Incremental, Moving, NodeFacts, NodeStep, QsdFacts, Snapshotting},
    },
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::graph::Graph;
use super::session::Session;
use super::{Daemons, GRACE, boxed, during, file_node, knock, pool_report};
use crate::nbd::{Nbd, NbdError};
use crate::qsd::Qsd;
use crate::{HostError, NodeHost, Work};
use files::Local;

/// The guest's export, and its name.
const GUEST: &str = "disk";
/// How long a guest's requests wait for a NAS that is away before they fail.
const PATIENCE: u32 = 60;
/// How long a storage daemon that serves a guest may try to connect, in seconds, with its monitor held: somebody answered just now.
const OPEN: u32 = 5;
/// How long a NAS may take to flush before its connection is closed; then it is tried again.
const FLUSH: Duration = Duration::from_secs(10);
/// The export through which it is flushed.
const FLUSHED: &str = "flushed";
const GRANULARITY: u32 = 65536;

/// A node of the qemu plane.
#[derive(Debug, Clone)]
pub struct QemuNode {
    plane: Daemons,
    pool_name: Arc<str>,
    pool: PathBuf,
    guest_group: Option<u32>,
    aio: &'static str,
}

/// What a storage daemon was started for.
#[derive(Debug, Serialize, Deserialize)]
struct Mark {
    volume: VolumeId,
    epoch: Epoch,
}

impl QemuNode {
    /// A node that keeps local copies in the directory `pool`. Members of `guest_group` may connect to the guests' sockets.
    pub async fn new(plane: Daemons, pool_name: &str, pool: impl Into<PathBuf>, guest_group: Option<u32>) -> Self {
        let aio = plane.asynchronous_io().await;
        let pool = pool.into();
        if let Err(error) = files::Local::sweep(&pool) {
            tracing::warn!("what an earlier daemon left stays: {error}");
        }
        Self { plane, pool_name: pool_name.into(), pool, guest_group, aio }
    }

    fn qsd(&self, volume: VolumeId) -> Qsd {
        self.plane.qsd(volume, "")
    }

    fn local(&self, volume: VolumeId) -> Local {
        Local::new(&self.pool, volume)
    }

    /// What is there of a volume.
    pub async fn look(&self, volume: VolumeId) -> NodeFacts {
        let local = self.local(volume);
        let file = local.look();
        let qsd = match self.look_at_daemon(volume, &local).await {
            Ok(facts) => Fact::Known(facts),
            Err(error) => Fact::Unknown(error.to_string()),
        };
        NodeFacts { qsd, local: file }
    }

    async fn look_at_daemon(&self, volume: VolumeId, local: &Local) -> Result<Option<QsdFacts>, HostError> {
        let qsd = self.qsd(volume);
        let Some(mut session) = Session::find(&qsd).await? else { return Ok(None) };
        let mark: Mark = qsd.mark().map_err(during("tell what the storage daemon was started for"))?;
        let mut graph = session.graph().await?;
        if let Fact::Known(Some(file)) = local.look() {
            copy::converge(&mut session, &mut graph, file.size).await?;
        }
        let mut facts = facts(&graph, mark.epoch, local.scratch().exists())?;
        // What goes through a relay that leads nowhere, or is not there, reaches no NAS: it is no way back, and only to be cancelled.
        if facts.back.is_some() && !relay::leads_to_a_nas(&self.plane.qsd(volume, ".b")) {
            facts.back = Some("nowhere".to_owned());
        }
        Ok(Some(facts))
    }

    /// Carries a step out.
    ///
    /// # Errors
    /// When it could not be done; what became of it is found by looking.
    pub async fn carry_out(&self, volume: VolumeId, step: NodeStep) -> Result<StepResult, HostError> {
        let (qsd, relay) = (self.qsd(volume), self.plane.qsd(volume, ".b"));
        let at = Steps { host: self, volume, qsd, relay, local: self.local(volume) };
        match step {
            NodeStep::Start { epoch, over, endpoint } => at.start(epoch, over, endpoint.as_ref()).await?,
            NodeStep::Stop { force } => at.stop(force).await?,
            NodeStep::AddGuest { device } => at.add_guest(device).await?,
            NodeStep::RemoveGuest { force } => at.remove_guest(force).await?,
            NodeStep::Reattach { endpoint } => at.reattach(&endpoint).await?,
            NodeStep::CreateLocal { epoch, size } => at.create_local(epoch, size.bytes()).await?,
            NodeStep::RemoveLocal => at.remove_local().await?,
            NodeStep::OpenLocal => at.open_local().await?,
            NodeStep::StartCopy { speed } => at.start_copy(speed).await?,
            NodeStep::SetSpeed { job, speed } => at.set_speed(job, speed).await?,
            NodeStep::ResumeCopy => at.resume_copy().await?,
            NodeStep::CancelCopy => at.cancel_copy().await?,
            NodeStep::ReserveLocal => at.reserve_local().await?,
            NodeStep::CompleteCopy => at.session().await?.complete("copy").await?,
            NodeStep::AddBitmap { since } => at.add_bitmap(since).await?,
            NodeStep::FinalizeCopy => at.session().await?.finalize("copy").await?,
            NodeStep::DetachRemote => at.detach_remote().await?,
            NodeStep::FreezeBitmap { push } => at.freeze_bitmap(push).await?,
            NodeStep::InsertFleece => at.insert_fleece().await?,
            NodeStep::OpenSource { full } => at.open_source(full).await?,
            NodeStep::OpenIncoming { endpoint } => at.open_incoming(&endpoint).await?,
            NodeStep::StartPush { push, full, speed } => at.start_push(push, full, speed).await?,
            NodeStep::DigestPush { full, .. } => return at.digest_push(full).await,
            NodeStep::EndPush => at.end_push().await?,
            NodeStep::DropBitmap { since } => at.drop_bitmap(since).await?,
            NodeStep::RevertBitmap => at.revert_bitmap().await?,
            NodeStep::OpenBack { endpoint } => at.open_back(&endpoint).await?,
            NodeStep::StartBack { full, speed } => at.start_back(full, speed).await?,
            NodeStep::CompleteBack => at.complete_back().await?,
            NodeStep::FinalizeBack => at.finalize_back().await?,
            NodeStep::CancelBack => at.cancel_back().await?,
        }
        Ok(StepResult::Done)
    }

    /// The socket a guest connects to.
    fn socket(&self, volume: VolumeId, kind: DeviceKind) -> PathBuf {
        self.qsd(volume).dir().join(match kind {
            DeviceKind::VhostUserBlk => "vhost.sock",
            DeviceKind::Nbd | DeviceKind::Block => "guest.sock",
        })
    }
}

/// Who is connected to the guest's sockets in the directory of a storage daemon.
///
/// # Errors
/// When that cannot be told.
pub async fn guests_at(dir: &std::path::Path) -> Result<Vec<Holder>, HostError> {
    users::of(&["guest.sock", "vhost.sock"].map(|name| dir.join(name))).await
}

impl NodeHost for QemuNode {
    fn observe(&self, volume: NodeVolume, _: Option<node::kernel::Zvols>) -> Work<'_, node::Facts> {
        boxed(async move { node::Facts::Qemu(self.look(volume.id).await) })
    }

    fn run(&self, volume: NodeVolume, step: node::Step) -> Work<'_, Result<StepResult, HostError>> {
        boxed(async move {
            match step {
                node::Step::Qemu(step) => self.carry_out(volume.id, step).await,
                node::Step::Kernel(_) => Err(crate::other_plane(img_storage_model::Plane::Kernel)),
            }
        })
    }

    fn device(&self, volume: &NodeVolume, kind: DeviceKind) -> String {
        let socket = self.socket(volume.id, kind);
        match kind {
            DeviceKind::VhostUserBlk => socket.display().to_string(),
            DeviceKind::Nbd | DeviceKind::Block => format!("nbd+unix:///{GUEST}?socket={}", socket.display()),
        }
    }

    fn users(&self, volume: NodeVolume) -> Work<'_, Result<Vec<Holder>, HostError>> {
        boxed(async move {
            let sockets = [DeviceKind::Nbd, DeviceKind::VhostUserBlk].map(|kind| self.socket(volume.id, kind));
            users::of(&sockets).await
        })
    }

    fn pools(&self) -> Work<'_, Vec<PoolReport>> {
        boxed(async move { vec![pool_report(&self.pool_name, &self.pool)] })
    }

    fn copies(&self) -> Work<'_, Result<crate::LocalCopies, HostError>> {
        boxed(async { Ok(crate::LocalCopies::default()) })
    }
}

/// The steps on one volume.
struct Steps<'a> {
    host: &'a QemuNode,
    volume: VolumeId,
    qsd: Qsd,
    relay: Qsd,
    local: Local,
}

impl Steps<'_> {
    async fn set_speed(&self, job: Moving, speed: Speed) -> Result<(), HostError> {
        let mut session = self.session().await?;
        let ids = match job {
            Moving::Copy => vec!["copy".to_owned()],
            Moving::Back => vec!["backfill".to_owned()],
            Moving::Push => session.graph().await?.jobs.into_keys().filter(|id| id.starts_with("push-")).collect(),
        };
        for id in ids {
            session.set_speed(&id, speed.get()).await?;
        }
        Ok(())
    }

    async fn session(&self) -> Result<Session, HostError> {
        Session::with(&self.qsd).await
    }
}

fn throttle(below: &str) -> Value {
    json!({"driver": "throttle", "node-name": "top", "throttle-group": "unlimited", "discard": "ignore", "file": below})
}

/// Moves `top` onto another node: one moment for the guest.
async fn put_top_on(session: &mut Session, graph: &Graph, below: &str) -> Result<(), HostError> {
    if graph.under("top") != Some(below) {
        session.call("blockdev-reopen", json!({"options": [throttle(below)]})).await?;
    }
    Ok(())
}

/// A connection to an export as node options. With `delay` 0 a break is an error at once.
fn connection(endpoint: &Endpoint, credentials: &str, delay: u32) -> Value {
    json!({
        "driver": "nbd", "export": endpoint.export, "discard": "unmap", "reconnect-delay": delay,
        "server": {"type": "inet", "host": endpoint.host, "port": endpoint.port.to_string(), "keep-alive": true},
        "tls-creds": credentials, "tls-hostname": endpoint.server,
    })
}

/// Opens a connection as `node`, with the certificate as it is in its file now.
async fn connect(
    host: &QemuNode,
    session: &mut Session,
    graph: &Graph,
    node: &str,
    endpoint: &Endpoint,
    delay: u32,
) -> Result<(), HostError> {
    if graph.has(node) {
        return Ok(());
    }
    let credentials = format!("tls.{node}");
    session.remove_object(graph, &credentials).await?;
    knock(endpoint).await?;
    session.call("object-add", host.plane.client(&credentials)).await?;
    let mut options = connection(endpoint, &credentials, delay);
    options["open-timeout"] = OPEN.into();
    let opened = session.add(graph, node, options).await;
    opened.map_err(during(format!("open the export {} of {}", endpoint.export, endpoint.server)))
}

/// Closes a connection to a NAS. QEMU flushes what it closes, with its monitor held for as long as the NAS takes; so it is flushed
/// before, as a guest would, and nothing is left to be waited for.
async fn disconnect(qsd: &Qsd, session: &mut Session, graph: &Graph, node: &str) -> Result<(), HostError> {
    if graph.has(node) {
        flush(qsd, session, node).await?;
    }
    session.remove(graph, node).await?;
    Ok(session.remove_object(graph, &format!("tls.{node}")).await?)
}

async fn flush(qsd: &Qsd, session: &mut Session, node: &str) -> Result<(), HostError> {
    session.remove_export(FLUSHED).await?;
    let export = json!({"type": "nbd", "id": FLUSHED, "name": FLUSHED, "node-name": node, "writable": false});
    session.call("block-export-add", export).await?;
    let socket = qsd.dir().join("guest.sock");
    let flushed = async {
        let nas = Nbd::unix(&socket, FLUSHED, &[], FLUSH).await?;
        nas.flush().await?;
        nas.disconnect().await;
        Ok(())
    };
    match flushed.await {
        Err(NbdError::Deadline { .. }) => Err(HostError(format!(
            "the NAS does not answer over the connection {node} within {FLUSH:?}; see whether it is up and the network leads there"
        ))),
        // On one that broke nothing can be flushed any more.
        Ok(()) | Err(_) => session.remove_export(FLUSHED).await,
    }
}

fn bitmap_name(since: Incremental) -> String {
    match since {
        Incremental::Pivot => "wb.pivot".to_owned(),
        Incremental::Unknown => "wb.unknown".to_owned(),
        Incremental::Snapshot(snapshot) => format!("wb.{}", snapshot.0),
    }
}

fn bitmap_since(name: &str) -> Option<Incremental> {
    match name.strip_prefix("wb.")? {
        "pivot" => Some(Incremental::Pivot),
        "unknown" => Some(Incremental::Unknown),
        uuid => Some(Incremental::Snapshot(format!("IMG-STORAGE-{uuid}").parse().ok()?)),
    }
}

/// Our bitmaps on `top`, oldest first.
fn ours(graph: &Graph) -> Vec<Bitmap> {
    let known =
        |b: &super::graph::BitmapInfo| Some(Bitmap { since: bitmap_since(&b.name)?, recording: b.recording, dirty: b.count });
    graph.bitmaps("top").iter().filter_map(known).collect()
}

/// The export names of the open bring-back connections, when both are open and `top` does not lie on them yet.
fn back_of(graph: &Graph) -> Option<&str> {
    graph.named("back.").find(|export| {
        let node = format!("back.{export}");
        graph.has(&format!("back2.{export}")) && !graph.chain("top").any(|below| below == node)
    })
}

/// A disabled bitmap on `node` with everything that ours mark. Filled or not there at all: one that is empty by accident would
/// move nothing and call it everything.
fn merged(graph: &Graph, node: &str, name: &str) -> Vec<(&'static str, Value)> {
    let sources: Vec<Value> = ours(graph).iter().map(|b| json!({"node": "top", "name": bitmap_name(b.since)})).collect();
    let add = json!({"node": node, "name": name, "granularity": GRANULARITY, "disabled": true});
    let merge = json!({"node": node, "target": name, "bitmaps": sources});
    vec![("block-dirty-bitmap-add", add), ("block-dirty-bitmap-merge", merge)]
}

/// What `top` lies on; for the NAS also the export's name.
fn layer(graph: &Graph) -> Result<(Layer, Option<String>), HostError> {
    let chain: Vec<&str> = graph.chain("top").collect();
    let on = |prefix: &str| chain.iter().find_map(|node| node.strip_prefix(prefix));
    match on("nas.").or_else(|| on("back.")) {
        Some(export) => Ok((Layer::Remote, Some(export.to_owned()))),
        None if chain.contains(&"local") => Ok((Layer::Local, None)),
        None => Err(HostError(format!("the guest's device lies on {chain:?}, which is nothing of ours"))),
    }
}

/// The facts that a graph shows.
fn facts(graph: &Graph, epoch: Epoch, scratch: bool) -> Result<QsdFacts, HostError> {
    let (top, below) = layer(graph)?;
    let job = |id: &str| graph.jobs.get(id).cloned();
    let push = graph.jobs.iter().find_map(|(id, job)| {
        let uuid = id.strip_prefix("push-")?;
        Some((format!("IMG-STORAGE-{uuid}").parse().ok()?, job.clone()))
    });
    let fleece = graph.chain("top").any(|node| node == "cbw");
    let snapshotting = Snapshotting {
        fleece,
        // A point in time that broke cannot be read any more: the transfer fails, and that is what is seen.
        broken: false,
        source: push::source(graph).is_some(),
        incoming: graph.has("inc"),
        leftovers: !fleece && (scratch || ["cbw", "fl", "snap"].iter().any(|node| graph.has(node))),
    };
    Ok(QsdFacts {
        epoch,
        top,
        remote: below.or_else(|| graph.named("nas.").next().map(str::to_owned)),
        local: graph.has("local"),
        guest: graph.exports.contains_key(GUEST),
        copy: job("copy"),
        bitmaps: ours(graph),
        snapshotting,
        push,
        back: back_of(graph).map(str::to_owned),
        // It stands still when the NAS is lost, for it must not end by itself; nobody is to resume it.
        back_mirror: job("back").map(|mirror| match mirror.state {
            JobState::Paused(why) => Job { state: JobState::Failed(why), ..mirror },
            _ => mirror,
        }),
        back_fill: job("backfill"),
    })
}

/// Whether a job is there and has not failed.
fn goes_on(graph: &Graph, id: &str) -> bool {
    graph.jobs.get(id).is_some_and(|job| !matches!(job.state, JobState::Failed(_)))
}
