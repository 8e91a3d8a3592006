//! The life of the storage daemon, and the copy to the local disk up to the pivot.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use img_storage_model::{
    Epoch,
    messages::{DeviceKind, Endpoint},
    node::{Incremental, JobState, Layer},
};
use serde_json::json;

use super::{
    GRACE, GRANULARITY, GUEST, Mark, PATIENCE, Steps, bitmap_name, connect, connection, disconnect, during, file_node, goes_on,
    knock, layer, ours, put_top_on, throttle, users,
};
use crate::HostError;
use crate::qemu::session::Session;
use crate::qsd::QsdError;

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
        self.local.sync()
    }

    async fn nobody_connected(&self) -> Result<(), HostError> {
        let sockets = [DeviceKind::Nbd, DeviceKind::VhostUserBlk].map(|kind| self.host.socket(self.volume, kind));
        match users::of(&sockets).await?.first() {
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
                DeviceKind::Nbd => {
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
        fs::set_permissions(socket, fs::Permissions::from_mode(0o660))
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
        let old: Vec<String> = ["nas.", "back.", "back2."]
            .iter()
            .flat_map(|prefix| graph.named(prefix).map(move |export| format!("{prefix}{export}")))
            .filter(|old| *old != node)
            .collect();
        for old in old {
            disconnect(&mut session, &graph, &old).await?;
        }
        Ok(())
    }

    pub(super) async fn remove_local(&self) -> Result<(), HostError> {
        if let Some(mut session) = Session::find(&self.qsd).await?
            && session.graph().await?.has("local")
        {
            return Err(HostError("the local copy is open in the volume's storage daemon; it stays".into()));
        }
        self.local.destroy()
    }

    pub(super) async fn open_local(&self) -> Result<(), HostError> {
        let mut session = self.session().await?;
        let graph = session.graph().await?;
        Ok(session.add(&graph, "local", self.local_node()).await?)
    }

    pub(super) async fn start_copy(&self) -> Result<(), HostError> {
        let mut session = self.session().await?;
        let graph = session.graph().await?;
        if graph.jobs.contains_key("copy") {
            return Ok(());
        }
        let source = graph.under("top").ok_or_else(|| HostError("the guest's device lies on nothing".into()))?;
        let job = json!({
            "job-id": "copy", "device": "top", "replaces": source, "target": "local", "sync": "full",
            "copy-mode": "write-blocking", "filter-node-name": "mf", "on-source-error": "stop", "on-target-error": "stop",
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
        session.cancel("copy").await?;
        let graph = session.graph().await?;
        session.remove(&graph, "local").await?;
        for bitmap in ours(&graph) {
            session.remove_bitmap(&graph, "top", &bitmap_name(bitmap.since)).await?;
        }
        Ok(())
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
            disconnect(&mut session, &graph, &node).await?;
        }
        Ok(())
    }
}
