//! Bringing the guest back onto the NAS while it runs.
//!
//! From the mirror's start every write goes to both sides; what had changed before is filled in from the bitmaps, which are read
//! after that start, so that every write is in the one or the other.

use img_storage_model::{
    messages::Endpoint,
    node::{JobState, Layer},
};
use serde_json::json;

use super::{PATIENCE, Steps, back_of, bitmap_name, connect, disconnect, layer, merged, ours, put_top_on};
use crate::HostError;
use crate::qemu::graph::Graph;
use crate::qemu::session::Session;
use crate::qemu::{during, read_mark, write_mark};

/// Marks what is to be filled in.
const FILL: &str = "fill";

impl Steps<'_> {
    pub(super) async fn open_back(&self, endpoint: &Endpoint) -> Result<(), HostError> {
        let mut session = self.session().await?;
        let graph = session.graph().await?;
        let note = self.endpoint_note();
        write_mark(&note, endpoint).map_err(during(format!("write {}", note.display())))?;
        for node in [format!("back2.{}", endpoint.export), format!("back.{}", endpoint.export)] {
            connect(self.host, &mut session, &graph, &node, endpoint, 0).await?;
        }
        Ok(())
    }

    pub(super) async fn start_back(&self, full: bool) -> Result<(), HostError> {
        let mut session = self.session().await?;
        let graph = session.graph().await?;
        let export = back_of(&graph).ok_or_else(|| HostError("the connections to the NAS's overlay are not open".into()))?;
        if !graph.jobs.contains_key("back") {
            let mirror = json!({
                "job-id": "back", "device": "top", "replaces": "local", "target": format!("back.{export}"), "sync": "none",
                "copy-mode": "write-blocking", "filter-node-name": "mfback",
                "on-source-error": "report", "on-target-error": "report", "auto-finalize": false, "auto-dismiss": false,
            });
            session.call("blockdev-mirror", mirror).await?;
        }
        if graph.jobs.contains_key("backfill") {
            return Ok(());
        }
        let mut fill = json!({
            "job-id": "backfill", "device": "local", "target": format!("back2.{export}"), "sync": "full",
            "on-source-error": "report", "on-target-error": "report", "auto-dismiss": false,
        });
        if !full {
            // An older one was merged before a mirror that may not be this one.
            session.remove_bitmap(&graph, "local", FILL).await?;
            session.transaction(merged(&graph, "local", FILL)).await?;
            fill["sync"] = "bitmap".into();
            fill["bitmap"] = FILL.into();
            fill["bitmap-mode"] = "never".into();
        }
        session.call("blockdev-backup", fill).await?;
        Ok(())
    }

    pub(super) async fn complete_back(&self) -> Result<(), HostError> {
        let mut session = self.session().await?;
        match session.job("backfill").await?.map(|job| job.state) {
            Some(JobState::Done) => session.complete("back").await,
            state => Err(HostError(format!("what had changed before is not on the NAS yet ({state:?})"))),
        }
    }

    pub(super) async fn finalize_back(&self) -> Result<(), HostError> {
        let mut session = self.session().await?;
        let graph = session.graph().await?;
        // While the guest is still held: on the connection of the mirror it would get errors when the NAS's daemon is dead.
        if let Some(export) = back_of(&graph).filter(|_| graph.jobs.get("back").is_some_and(|job| job.state == JobState::Pending)) {
            self.connect_to_stay(&mut session, &graph, export).await?;
        }
        session.finalize("back").await?;
        let graph = session.graph().await?;
        let (Layer::Remote, Some(export)) = layer(&graph)? else {
            return Err(HostError("the guest still works on the local copy".into()));
        };
        // The connection that may not wait is replaced by one that does.
        if graph.under("top").is_some_and(|node| node.starts_with("back.")) {
            let node = self.connect_to_stay(&mut session, &graph, &export).await?;
            put_top_on(&mut session, &graph, &node).await?;
        }
        session.cancel("backfill").await?;
        session.remove(&graph, "local").await?;
        self.close_back(&mut session).await?;
        // Last: they say that this step is not over.
        for bitmap in ours(&graph) {
            session.remove_bitmap(&graph, "top", &bitmap_name(bitmap.since)).await?;
        }
        Ok(())
    }

    pub(super) async fn cancel_back(&self) -> Result<(), HostError> {
        let mut session = self.session().await?;
        session.cancel("backfill").await?;
        session.cancel("back").await?;
        let graph = session.graph().await?;
        session.remove_bitmap(&graph, "local", FILL).await?;
        self.close_back(&mut session).await
    }

    /// Opens the connection that waits for the NAS when it is away; gives its node.
    async fn connect_to_stay(&self, session: &mut Session, graph: &Graph, export: &str) -> Result<String, HostError> {
        let note = self.endpoint_note();
        let endpoint: Option<Endpoint> = read_mark(&note).map_err(during(format!("read {}", note.display())))?;
        let endpoint = endpoint.ok_or_else(|| HostError(format!("{} is gone", note.display())))?;
        let node = format!("nas.{export}");
        connect(self.host, session, graph, &node, &endpoint, PATIENCE).await?;
        Ok(node)
    }

    /// Where the overlay is served, kept beside the process that uses it: the step that needs it comes after the pivot.
    fn endpoint_note(&self) -> std::path::PathBuf {
        self.qsd.dir().join("back")
    }

    async fn close_back(&self, session: &mut Session) -> Result<(), HostError> {
        let graph = session.graph().await?;
        for prefix in ["back.", "back2."] {
            let nodes: Vec<String> = graph.named(prefix).map(|export| format!("{prefix}{export}")).collect();
            for node in nodes {
                disconnect(session, &graph, &node).await?;
            }
        }
        Ok(())
    }
}
