//! The life of the storage daemon, and the copy to the local disk up to the pivot.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use img_storage_model::{
    Epoch,
    attribute::Speed,
    messages::{DeviceKind, Endpoint},
    node::{JobState, Layer, qemu::Incremental},
};
use serde_json::json;

use super::{
    GRACE, GRANULARITY, GUEST, Mark, PATIENCE, Steps, bitmap_name, connect, connection, disconnect, during, file_node, goes_on,
    knock, layer, ours, put_top_on, throttle, users,
};
use crate::HostError;
use crate::qemu::graph::Graph;
use crate::qemu::session::Session;
use crate::qsd::QsdError;

/// An object in the process that says: the copy writes on both sides. QEMU does not tell.
const BOTH_SIDES: &str = "copy.both-sides";
/// With this much left (or less than a sixty-fourth) the copy turns to both sides.
const LITTLE: u64 = 64 << 20;

fn both_sides() -> serde_json::Value {
    json!({"qom-type": "throttle-group", "id": BOTH_SIDES})
}

fn writes_on_both_sides(graph: &Graph) -> bool {
    graph.objects.iter().any(|object| object == BOTH_SIDES)
}

/// Lets a copy in the background turn to both sides once it has little left or has moved as much as there is: under a busy guest
/// it would never catch up otherwise. Until then it is not ready, whatever QEMU says. This is the one thing that looking does.
pub(super) async fn converge(session: &mut Session, graph: &mut Graph, size: u64) -> Result<(), HostError> {
    if writes_on_both_sides(graph) {
        return Ok(());
    }
    let Some(copy) = graph.jobs.get_mut("copy") else { return Ok(()) };
    let left = copy.total.saturating_sub(copy.done);
    let near = left <= LITTLE.max(copy.total / 64) || copy.done >= size;
    let caught_up = copy.state == JobState::Ready;
    if caught_up {
        copy.state = JobState::Running;
    }
    if caught_up || (near && copy.state == JobState::Running && copy.done > 0) {
        // May be said twice; the object comes after, so that it never says too much.
        let change = json!({"id": "copy", "type": "mirror", "copy-mode": "write-blocking"});
        session.call("block-job-change", change).await?;
        session.call("object-add", both_sides()).await?;
    }
    Ok(())
}

impl Steps<'_> {
    pub(super) async fn start(&self, epoch: Epoch, over: Layer, endpoint: Option<&Endpoint>) -> Result<(), HostError> {
        if let Some(mut session) = Session::find(&self.qsd).await? {
            let mark: Mark = self.qsd.mark().map_err(during("tell what the storage daemon was started for"))?;
            let (running, _) = layer(&session.graph().await?)?;
            if mark.epoch == epoch && running == over {
                return Ok(());
            }
            return Err(HostError(format!(
                "the storage daemon runs for epoch {} on the {:?} copy and was to start for epoch {epoch} on the {over:?} one; \
                 stop it first",
                mark.epoch, running
            )));
        }
        self.stop_relay().await?;
        let start = "start the volume's storage daemon";
        let sockets = ["guest.sock", "vhost.sock"].map(|name| self.qsd.socket(name));
        let [guest, vhost] = sockets;
        let (guest, _) = (guest.map_err(during(start))?, vhost.map_err(during(start))?);
        let mut args = vec![
            ("--object", json!({"qom-type": "throttle-group", "id": "unlimited"})),
            ("--nbd-server", json!({"addr": {"type": "unix", "path": guest}})),
        ];
        let below = match (over, endpoint) {
            (Layer::Remote, None) => return Err(HostError("the NAS has not said where the volume is served".into())),
            (Layer::Remote, Some(endpoint)) => {
                knock(endpoint).await?;
                let node = format!("nas.{}", endpoint.export);
                let credentials = format!("tls.{node}");
                args.push(("--object", self.host.plane.client(&credentials)));
                let mut options = connection(endpoint, &credentials, PATIENCE);
                options["node-name"] = node.as_str().into();
                args.push(("--blockdev", options));
                node
            }
            (Layer::Local, _) => {
                args.push(("--blockdev", self.local_node()));
                "local".to_owned()
            }
        };
        args.push(("--blockdev", throttle(&below)));
        let args: Vec<String> = args.iter().flat_map(|(option, value)| [(*option).to_owned(), value.to_string()]).collect();
        let mark = Mark { volume: self.volume, epoch };
        self.qsd.start(&mark, &args).await.map_err(|error: QsdError| HostError(error.to_string()))?;
        Ok(())
    }

    /// The local file as a node. Discards end here: what was reserved for the guest is not given back, so that no later write
    /// meets a full disk. (Changing that by a reopen when it is reserved leaves the mirror in standby for ever, or ends the daemon.)
    fn local_node(&self) -> serde_json::Value {
        let mut file = file_node(&self.local.file(), self.host.aio, true);
        file["discard"] = "ignore".into();
        json!({"driver": "raw", "node-name": "local", "file": file})
    }

    pub(super) async fn stop(&self, force: bool) -> Result<(), HostError> {
        if !force {
            self.nobody_connected().await?;
        }
        self.qsd.stop(GRACE).await.map_err(during("stop the volume's storage daemon"))?;
        self.stop_relay().await?;
        self.local.sync()
    }

    fn sockets(&self) -> [std::path::PathBuf; 2] {
        [DeviceKind::Nbd, DeviceKind::VhostUserBlk].map(|kind| self.host.socket(self.volume, kind))
    }

    /// Whether no write can be under way.
    pub(super) fn quiet(&self) -> bool {
        users::none(&self.sockets())
    }

    async fn nobody_connected(&self) -> Result<(), HostError> {
        match users::of(&self.sockets()).await?.first() {
            Some(holder) => Err(HostError(format!("the device is in use by {holder}; shut the guest down first"))),
            None => Ok(()),
        }
    }

    pub(super) async fn add_guest(&self, device: DeviceKind) -> Result<(), HostError> {
        let mut session = self.session().await?;
        let socket = self.host.socket(self.volume, device);
        if !session.graph().await?.exports.contains_key(GUEST) {
            let mut export = json!({"id": GUEST, "node-name": "top", "writable": true});
            match device {
                DeviceKind::Nbd | DeviceKind::Block => {
                    export["type"] = "nbd".into();
                    export["name"] = GUEST.into();
                }
                DeviceKind::VhostUserBlk => {
                    export["type"] = "vhost-user-blk".into();
                    export["addr"] = json!({"type": "unix", "path": socket});
                }
            }
            session.call("block-export-add", export).await?;
        }
        self.let_in(&socket).map_err(during(format!("let guests reach {}", socket.display())))
    }

    fn let_in(&self, socket: &Path) -> std::io::Result<()> {
        if let Some(group) = self.host.guest_group {
            chown(socket, None, Some(group))?;
        }
        let mode = if self.host.guest_group.is_some() { 0o660 } else { 0o600 };
        fs::set_permissions(socket, fs::Permissions::from_mode(mode))
    }

    pub(super) async fn remove_guest(&self, force: bool) -> Result<(), HostError> {
        if !force {
            self.nobody_connected().await?;
        }
        self.session().await?.remove_export(GUEST).await
    }

    pub(super) async fn reattach(&self, endpoint: &Endpoint) -> Result<(), HostError> {
        let mut session = self.session().await?;
        let graph = session.graph().await?;
        let node = format!("nas.{}", endpoint.export);
        connect(self.host, &mut session, &graph, &node, endpoint, PATIENCE).await?;
        put_top_on(&mut session, &graph, &node).await?;
        let graph = session.graph().await?;
        let old: Vec<String> = graph.named("nas.").map(|export| format!("nas.{export}")).filter(|old| *old != node).collect();
        for old in old {
            disconnect(&self.qsd, &mut session, &graph, &old).await?;
        }
        self.close_back(&mut session).await
    }

    pub(super) async fn remove_local(&self) -> Result<(), HostError> {
        if let Some(mut session) = Session::find(&self.qsd).await?
            && session.graph().await?.has("local")
        {
            return Err(HostError("the local copy is open in the volume's storage daemon; it stays".into()));
        }
        // It may have outlived the storage daemon that it was for.
        self.stop_relay().await?;
        self.local.destroy()
    }

    pub(super) async fn open_local(&self) -> Result<(), HostError> {
        let mut session = self.session().await?;
        let graph = session.graph().await?;
        Ok(session.add(&graph, "local", self.local_node()).await?)
    }

    pub(super) async fn start_copy(&self, speed: Speed) -> Result<(), HostError> {
        let mut session = self.session().await?;
        let graph = session.graph().await?;
        if graph.jobs.contains_key("copy") {
            return Ok(());
        }
        let source = graph.under("top").ok_or_else(|| HostError("the guest's device lies on nothing".into()))?;
        // In the background it can be given up at any time; it turns to both sides when there is little left.
        session.remove_object(&graph, BOTH_SIDES).await?;
        let mode = if session.mirrors_can_change() {
            "background"
        } else {
            session.call("object-add", both_sides()).await?;
            "write-blocking"
        };
        let job = json!({
            "job-id": "copy", "device": "top", "replaces": source, "target": "local", "sync": "full",
            "copy-mode": mode, "filter-node-name": "mf", "on-source-error": "stop", "on-target-error": "stop",
            // The guest's requests wait behind what the copy has asked for on the same connection: QEMU's own 16 MiB starve it.
            "buf-size": 4 << 20, "speed": speed.get(),
            "auto-finalize": false, "auto-dismiss": false,
        });
        session.call("blockdev-mirror", job).await?;
        Ok(())
    }

    pub(super) async fn resume_copy(&self) -> Result<(), HostError> {
        let mut session = self.session().await?;
        if session.job("copy").await?.is_some_and(|job| matches!(job.state, JobState::Paused(_))) {
            session.call("block-job-resume", json!({"device": "copy"})).await?;
        }
        Ok(())
    }

    pub(super) async fn cancel_copy(&self) -> Result<(), HostError> {
        let mut session = self.session().await?;
        let graph = session.graph().await?;
        if layer(&graph)?.0 == Layer::Local {
            return Err(HostError("the guest works on the local copy already; the copy cannot be cancelled".into()));
        }
        let by_force = !writes_on_both_sides(&graph) || self.quiet();
        session.abandon("copy", by_force).await?;
        let graph = session.graph().await?;
        session.remove_object(&graph, BOTH_SIDES).await?;
        session.remove(&graph, "local").await?;
        for bitmap in ours(&graph) {
            session.remove_bitmap(&graph, "top", &bitmap_name(bitmap.since)).await?;
        }
        Ok(())
    }

    /// Room is reserved at once: a disk that is too full is found before anything is copied.
    pub(super) async fn create_local(&self, epoch: Epoch, size: u64) -> Result<(), HostError> {
        self.local.create(epoch, size)?;
        self.reserve_local().await
    }

    pub(super) async fn reserve_local(&self) -> Result<(), HostError> {
        let local = self.local.clone();
        tokio::task::spawn_blocking(move || local.reserve()).await.map_err(during("reserve room"))?
    }

    pub(super) async fn add_bitmap(&self, since: Incremental) -> Result<(), HostError> {
        let mut session = self.session().await?;
        let graph = session.graph().await?;
        let name = bitmap_name(since);
        if !graph.has_bitmap("top", &name) {
            let bitmap = json!({"node": "top", "name": name, "granularity": GRANULARITY});
            session.call("block-dirty-bitmap-add", bitmap).await?;
        }
        Ok(())
    }

    pub(super) async fn detach_remote(&self) -> Result<(), HostError> {
        let mut session = self.session().await?;
        let graph = session.graph().await?;
        if goes_on(&graph, "copy") {
            return Err(HostError("the copy is not over; the NAS is still needed".into()));
        }
        let nodes: Vec<String> = graph.named("nas.").map(|export| format!("nas.{export}")).collect();
        for node in nodes {
            disconnect(&self.qsd, &mut session, &graph, &node).await?;
        }
        Ok(())
    }
}
