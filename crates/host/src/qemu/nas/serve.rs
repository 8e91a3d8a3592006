//! The exports of a volume: to its node, to a reader, and through an overlay while a guest comes back.

use img_storage_model::{Epoch, HostName, SnapshotId, nas::NasLayer};
use serde_json::{Value, json};

use super::{Mark, Steps, one};
use crate::HostError;
use crate::exec;
use crate::qemu::session::Session;
use crate::qemu::{GRACE, QUICK, during, file_node};
use crate::qsd::Qsd;

/// The export for a reader.
const READER: &str = "reader";

impl Steps<'_> {
    /// Options that let one host in over TLS.
    pub(super) fn gate(&self, peer: &HostName, port: u16) -> Result<Vec<(&'static str, Value)>, HostError> {
        self.host.plane.gate(&self.host.listen, peer, port)
    }

    /// The volume's file as a node.
    pub(super) fn disk_node(&self, writable: bool) -> Result<Value, HostError> {
        let file = file_node(&self.home.ours(self.home.disk())?, self.host.aio, writable);
        Ok(json!({"driver": "raw", "node-name": "disk", "discard": "unmap", "read-only": !writable, "file": file}))
    }

    pub(super) async fn start(&self, qsd: &Qsd, mark: &Mark, args: Vec<(&'static str, Value)>) -> Result<(), HostError> {
        let args: Vec<String> = args.iter().flat_map(|(option, value)| [(*option).to_owned(), value.to_string()]).collect();
        qsd.start(mark, &args).await.map_err(during("serve the volume"))?;
        Ok(())
    }

    pub(super) async fn start_export(
        &self,
        epoch: Epoch,
        name: &str,
        peer: HostName,
        port: u16,
        layer: NasLayer,
    ) -> Result<(), HostError> {
        if let Some(found) = self.look_at_export().await? {
            if found.epoch == epoch && found.peer == peer && found.names.iter().any(|have| have == name) {
                return Ok(());
            }
            return Err(HostError(format!(
                "the volume is exported for epoch {} to {}; stop that first",
                found.epoch, found.peer
            )));
        }
        let mut args = self.gate(&peer, port)?;
        args.push(("--blockdev", self.disk_node(true)?));
        let mut export = json!({"type": "nbd", "id": name, "name": name, "node-name": "disk", "writable": true});
        if layer == NasLayer::Overlay {
            args.push(("--blockdev", self.overlay_node(epoch)?));
            export["node-name"] = "overlay".into();
            // What a guest is told to be written here, its node has forgotten.
            export["writethrough"] = true.into();
        }
        args.push(("--export", export));
        self.start(&self.export, &Mark { volume: self.volume, epoch, peer, port, push: None }, args).await
    }

    fn overlay_node(&self, epoch: Epoch) -> Result<Value, HostError> {
        let path = self.home.ours(self.home.overlay(epoch))?;
        let file = file_node(&path, self.host.aio, true);
        Ok(json!({"driver": "qcow2", "node-name": "overlay", "discard": "unmap", "file": file, "backing": "disk"}))
    }

    pub(super) async fn stop_export(&self) -> Result<(), HostError> {
        self.export.stop(GRACE).await.map_err(during("stop the volume's export"))?;
        if self.home.look()?.is_some() {
            self.home.sync(&self.home.disk())?;
        }
        for epoch in self.home.beside()?.overlay {
            self.home.sync(&self.home.overlay(epoch))?;
        }
        Ok(())
    }

    pub(super) async fn add_export(&self, name: &str) -> Result<(), HostError> {
        let mut session = self.session().await?;
        if !session.graph().await?.exports.contains_key(name) {
            let export = json!({"type": "nbd", "id": name, "name": name, "node-name": "disk", "writable": true});
            session.call("block-export-add", export).await?;
        }
        Ok(())
    }

    pub(super) async fn remove_export(&self, name: &str) -> Result<(), HostError> {
        match Session::find(&self.export).await? {
            Some(mut session) => session.remove_export(name).await,
            None => Ok(()),
        }
    }

    pub(super) async fn remove_disk(&self) -> Result<(), HostError> {
        for qsd in [&self.export, &self.incoming, &self.reader] {
            if Session::find(qsd).await?.is_some() {
                return Err(HostError("the volume is still served; it is not removed".into()));
            }
        }
        self.home.destroy()
    }

    pub(super) async fn start_reader(&self, peer: HostName, port: u16) -> Result<(), HostError> {
        if Session::find(&self.reader).await?.is_some() {
            return Ok(());
        }
        let mut args = self.gate(&peer, port)?;
        args.push(("--blockdev", self.disk_node(false)?));
        args.push(("--export", json!({"type": "nbd", "id": READER, "name": READER, "node-name": "disk", "writable": false})));
        let mark = Mark { volume: self.volume, epoch: Epoch(0), peer, port, push: None };
        self.start(&self.reader, &mark, args).await
    }

    pub(super) async fn stop_reader(&self) -> Result<(), HostError> {
        self.reader.stop(GRACE).await.map_err(during("stop the reader's export"))
    }

    /// Makes an empty qcow2 file over the volume's file, which gets its name when it is whole.
    pub(super) async fn layer_over_disk(&self, path: &std::path::Path) -> Result<(), HostError> {
        let new = self.home.ours(self.home.unfinished())?;
        let name = new.to_string_lossy().into_owned();
        let arguments = ["create", "-q", "-f", "qcow2", "-F", "raw", "-b", "disk.raw", &name];
        exec::run(&self.host.plane.qemu_img, &arguments, QUICK).await.map_err(during("make a layer over the volume"))?;
        // Whole before it has its name: after a loss of power that may be all there is of it.
        self.home.sync(&new)?;
        std::fs::rename(&new, path).map_err(during(format!("create {}", path.display())))?;
        self.home.sync(path)
    }

    pub(super) async fn create_overlay(&self, epoch: Epoch) -> Result<(), HostError> {
        match one("overlay", &self.home.beside()?.overlay)? {
            Some(found) if found == epoch => Ok(()),
            Some(found) => Err(HostError(format!("an overlay of epoch {found} is in the way"))),
            None => self.layer_over_disk(&self.home.overlay(epoch)).await,
        }
    }

    pub(super) async fn remove_overlay(&self) -> Result<(), HostError> {
        if let Some(mut session) = Session::find(&self.export).await?
            && session.graph().await?.has("overlay")
        {
            return Err(HostError("the overlay is open in the volume's storage daemon; it stays".into()));
        }
        for epoch in self.home.beside()?.overlay {
            self.home.remove(self.home.overlay(epoch))?;
        }
        Ok(())
    }

    pub(super) async fn start_commit(&self) -> Result<(), HostError> {
        let mut session = self.session().await?;
        if session.job("commit").await?.is_none() {
            let commit = json!({
                "job-id": "commit", "device": "overlay", "on-error": "report", "filter-node-name": "cf",
                "auto-finalize": false, "auto-dismiss": false,
            });
            session.call("block-commit", commit).await?;
        }
        Ok(())
    }

    pub(super) async fn finalize_commit(&self) -> Result<(), HostError> {
        let mut session = self.session().await?;
        session.finalize("commit").await?;
        let graph = session.graph().await?;
        Ok(session.remove(&graph, "overlay").await?)
    }

    /// The mark of a daemon that takes a write-back in.
    pub(super) fn incoming_mark(&self, push: SnapshotId, peer: HostName, port: u16) -> Mark {
        Mark { volume: self.volume, epoch: Epoch(0), peer, port, push: Some(push) }
    }
}
