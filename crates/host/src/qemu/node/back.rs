//! Bringing the guest back onto the NAS while it runs.
//!
//! From the mirror's start every write goes to both sides; what had changed before is filled in from the bitmaps, which are read
//! after that start, so that every write is in the one or the other.
//!
//! The way to the NAS leads through a relay (see [`super::relay`]). A mirror that writes on both sides cannot be cancelled under a
//! busy guest, only told to end when it has caught up (see [`Session::abandon`]), and with a NAS that is gone it never would. Then
//! the relay is replaced by one that leads nowhere, where everything succeeds.

use img_storage_model::{
    attribute::Speed,
    messages::Endpoint,
    node::{JobState, Layer},
};
use serde_json::json;

use super::{PATIENCE, Steps, back_of, bitmap_name, connect, layer, merged, ours, put_top_on};
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
        let nodes = [format!("back2.{}", endpoint.export), format!("back.{}", endpoint.export)];
        if nodes.iter().all(|node| graph.has(node)) {
            return Ok(());
        }
        self.close_back(&mut session).await?;
        let graph = session.graph().await?;
        let note = self.endpoint_note();
        write_mark(&note, endpoint).map_err(during(format!("write {}", note.display())))?;
        let relay = self.lead_to(endpoint).await?;
        for node in nodes {
            session.add(&graph, &node, relay.clone()).await?;
        }
        Ok(())
    }

    pub(super) async fn start_back(&self, full: bool, speed: Speed) -> Result<(), HostError> {
        let mut session = self.session().await?;
        let graph = session.graph().await?;
        let export = back_of(&graph).ok_or_else(|| HostError("the connections to the NAS's overlay are not open".into()))?;
        if !graph.jobs.contains_key("back") {
            let mirror = json!({
                "job-id": "back", "device": "top", "replaces": "local", "target": format!("back.{export}"), "sync": "none",
                "copy-mode": "write-blocking", "filter-node-name": "mfback",
                "on-source-error": "stop", "on-target-error": "stop", "auto-finalize": false, "auto-dismiss": false,
            });
            session.call("blockdev-mirror", mirror).await?;
        }
        if graph.jobs.contains_key("backfill") {
            return Ok(());
        }
        let mut fill = json!({
            "job-id": "backfill", "device": "local", "target": format!("back2.{export}"), "sync": "full",
            "on-source-error": "report", "on-target-error": "report", "auto-dismiss": false, "speed": speed.get(),
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
        // While the guest is still held: on the mirror's way it would get errors when the NAS's daemon is dead.
        let pending = graph.jobs.get("back").is_some_and(|job| job.state == JobState::Pending);
        if let Some(export) = back_of(&graph).filter(|_| pending) {
            self.connect_to_stay(&mut session, &graph, export).await?;
        }
        session.finalize("back").await?;
        let graph = session.graph().await?;
        let (Layer::Remote, Some(export)) = layer(&graph)? else {
            return Err(HostError("the guest still works on the local copy".into()));
        };
        // The way through the relay, which may not wait, is replaced by a connection that does.
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
        match session.job("back").await?.map(|job| job.state) {
            None | Some(JobState::Done | JobState::Failed(_) | JobState::Pending) => session.abandon("back", false).await?,
            Some(_) if self.quiet() => session.abandon("back", true).await?,
            Some(_) => {
                // Whatever the NAS is like: what still goes there is of no use to anybody.
                self.lead_nowhere().await?;
                session.abandon_when_it_goes_on("back").await?;
            }
        }
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

    /// Ends the relay, so that nothing waits for the NAS behind it, and closes the connections to it.
    pub(super) async fn close_back(&self, session: &mut Session) -> Result<(), HostError> {
        self.stop_relay().await?;
        let graph = session.graph().await?;
        for prefix in ["back.", "back2."] {
            let nodes: Vec<String> = graph.named(prefix).map(|export| format!("{prefix}{export}")).collect();
            for node in nodes {
                session.remove(&graph, &node).await?;
            }
        }
        Ok(())
    }
}
