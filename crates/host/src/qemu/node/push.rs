//! Writing back: a point in time of the running guest, sent to the NAS's incoming file.
//!
//! The bitmap that was recording is frozen first, then the point in time is taken; so what a push moves is what *both* bitmaps
//! mark: a write between the two moments belongs to the point in time and is only in the newer one.

use img_storage_model::{
    SnapshotId,
    attribute::Speed,
    extents,
    messages::Endpoint,
    node::{JobState, StepResult, qemu::Incremental},
};
use serde_json::json;
use std::time::Duration;

use super::{GRANULARITY, Steps, bitmap_name, during, file_node, merged, ours, put_top_on};
use crate::HostError;
use crate::digest::digest;
use crate::exec;
use crate::nbd::{Nbd, bitmap_context};
use crate::qemu::graph::Graph;
use crate::qemu::{QUICK, remove};

/// Marks what moves.
const MARKED: &str = "push";
/// Stands in its place when everything moves; it marks nothing.
const EVERYTHING: &str = "push.full";
/// The export for the digest.
const DIGEST: &str = "digest";
/// For one read of the digest.
const READ: Duration = Duration::from_secs(60);

/// The node that a push reads and the name of its bitmap, when they are there.
pub(super) fn source(graph: &Graph) -> Option<(&'static str, &'static str)> {
    ["snap", "top"]
        .into_iter()
        .flat_map(|node| [(node, MARKED), (node, EVERYTHING)])
        .find(|(node, bitmap)| graph.has_bitmap(node, bitmap))
}

fn source_for(graph: &Graph, full: bool) -> Result<&'static str, HostError> {
    match source(graph) {
        Some((node, bitmap)) if (bitmap == EVERYTHING) == full => Ok(node),
        Some((_, bitmap)) => Err(HostError(format!("the point in time was opened with the bitmap {bitmap:?}, not for this"))),
        None => Err(HostError("the point in time is not open".into())),
    }
}

impl Steps<'_> {
    pub(super) async fn freeze_bitmap(&self, push: SnapshotId) -> Result<(), HostError> {
        let mut session = self.session().await?;
        let graph = session.graph().await?;
        let new = bitmap_name(Incremental::Snapshot(push));
        if graph.has_bitmap("top", &new) {
            return Ok(());
        }
        let mut actions = vec![("block-dirty-bitmap-add", json!({"node": "top", "name": new, "granularity": GRANULARITY}))];
        for bitmap in ours(&graph).iter().filter(|bitmap| bitmap.recording) {
            actions.push(("block-dirty-bitmap-disable", json!({"node": "top", "name": bitmap_name(bitmap.since)})));
        }
        Ok(session.transaction(actions).await?)
    }

    pub(super) async fn insert_fleece(&self) -> Result<(), HostError> {
        let mut session = self.session().await?;
        let graph = session.graph().await?;
        if graph.under("top") == Some("cbw") {
            return Ok(());
        }
        if !graph.has("fl") {
            let (scratch, size) = (self.local.scratch(), self.size()?);
            remove(&scratch).map_err(during(format!("remove {}", scratch.display())))?;
            let name = scratch.to_string_lossy().into_owned();
            let arguments = ["create", "-q", "-f", "qcow2", "-o", "lazy_refcounts=on", &name, &size.to_string()];
            exec::run(&self.host.plane.qemu_img, &arguments, QUICK).await.map_err(during("make the scratch file"))?;
            let file = file_node(&scratch, self.host.aio, true);
            session.add(&graph, "fl", json!({"driver": "qcow2", "discard": "unmap", "file": file})).await?;
        }
        // The scratch file is the one that gives way: a guest's write never fails for it, nor waits long.
        let filter = json!({
            "driver": "copy-before-write", "file": "local", "target": "fl", "discard": "unmap",
            "on-cbw-error": "break-snapshot", "cbw-timeout": 30,
        });
        session.add(&graph, "cbw", filter).await?;
        put_top_on(&mut session, &graph, "cbw").await
    }

    /// The volume's size, by the local file.
    pub(super) fn size(&self) -> Result<u64, HostError> {
        let file = self.local.file();
        let meta = std::fs::metadata(&file).map_err(during(format!("look at {}", file.display())))?;
        Ok(meta.len())
    }

    pub(super) async fn open_source(&self, full: bool) -> Result<(), HostError> {
        let mut session = self.session().await?;
        let graph = session.graph().await?;
        if source(&graph).is_some() {
            return source_for(&graph, full).map(drop);
        }
        let node = if graph.under("top") == Some("cbw") {
            session.add(&graph, "snap", json!({"driver": "snapshot-access", "file": "cbw"})).await?;
            "snap"
        } else {
            "top"
        };
        // Filled or not there at all: a bitmap that is empty by accident would send nothing and call it everything.
        let actions = if full {
            let bitmap = json!({"node": node, "name": EVERYTHING, "granularity": GRANULARITY, "disabled": true});
            vec![("block-dirty-bitmap-add", bitmap)]
        } else {
            merged(&graph, node, MARKED)
        };
        Ok(session.transaction(actions).await?)
    }

    pub(super) async fn open_incoming(&self, endpoint: &Endpoint) -> Result<(), HostError> {
        if self.session().await?.graph().await?.has("inc") {
            return Ok(());
        }
        // Meanwhile the monitor is left to others.
        let relay = self.lead_to(endpoint).await?;
        let mut session = self.session().await?;
        let graph = session.graph().await?;
        Ok(session.add(&graph, "inc", relay).await?)
    }

    pub(super) async fn start_push(&self, push: SnapshotId, full: bool, speed: Speed) -> Result<(), HostError> {
        let mut session = self.session().await?;
        let graph = session.graph().await?;
        let id = format!("push-{}", push.0);
        if graph.jobs.contains_key(&id) {
            return Ok(());
        }
        let mut job = json!({
            "job-id": id, "device": source_for(&graph, full)?, "target": "inc", "sync": "full",
            "on-source-error": "report", "on-target-error": "report", "auto-dismiss": false, "speed": speed.get(),
        });
        if !full {
            job["sync"] = "bitmap".into();
            job["bitmap"] = MARKED.into();
            job["bitmap-mode"] = "never".into();
        }
        session.call("blockdev-backup", job).await?;
        Ok(())
    }

    pub(super) async fn digest_push(&self, full: bool) -> Result<StepResult, HostError> {
        let mut session = self.session().await?;
        let graph = session.graph().await?;
        let pushed = graph.jobs.iter().find(|(id, _)| id.starts_with("push-")).map(|(_, job)| job);
        let moved = match pushed {
            Some(job) if job.state == JobState::Done => job.done,
            _ => return Err(HostError("the write-back is not over; there is nothing to digest".into())),
        };
        session.remove_export(DIGEST).await?;
        let node = source_for(&graph, full)?;
        let mut export = json!({"type": "nbd", "id": DIGEST, "name": DIGEST, "node-name": node, "writable": false});
        if !full {
            export["bitmaps"] = json!([MARKED]);
        }
        session.call("block-export-add", export).await?;
        // Others may need the monitor meanwhile.
        drop(session);
        let contexts: Vec<String> = if full { Vec::new() } else { vec![bitmap_context(MARKED)] };
        let socket = self.qsd.dir().join("guest.sock");
        let read = async {
            let export = Nbd::unix(&socket, DIGEST, &contexts, READ).await?;
            let ranges = match full {
                true => img_storage_model::Extents::whole(export.info().size),
                false => export.dirty(MARKED).await?.coalesced(extents::MOST),
            };
            let digest = digest(&export, &ranges).await?;
            export.disconnect().await;
            Ok::<_, crate::nbd::NbdError>((ranges, digest))
        };
        let read = read.await;
        self.session().await?.remove_export(DIGEST).await?;
        let (extents, digest) = read.map_err(during("read the point in time"))?;
        Ok(StepResult::Digest { extents, digest, moved })
    }

    pub(super) async fn end_push(&self) -> Result<(), HostError> {
        let mut session = self.session().await?;
        let graph = session.graph().await?;
        // First, so that nothing waits for the NAS behind it; what it has written to is flushed there.
        self.stop_relay().await?;
        let jobs: Vec<&String> = graph.jobs.keys().filter(|id| id.starts_with("push-")).collect();
        for id in jobs {
            session.cancel(id).await?;
        }
        session.remove_export(DIGEST).await?;
        session.remove(&graph, "inc").await?;
        for bitmap in [MARKED, EVERYTHING] {
            session.remove_bitmap(&graph, "top", bitmap).await?;
        }
        session.remove(&graph, "snap").await?;
        if graph.under("top") == Some("cbw") {
            put_top_on(&mut session, &graph, "local").await?;
        }
        session.remove(&graph, "cbw").await?;
        session.remove(&graph, "fl").await?;
        let scratch = self.local.scratch();
        remove(&scratch).map_err(during(format!("remove {}", scratch.display())))
    }

    pub(super) async fn drop_bitmap(&self, since: Incremental) -> Result<(), HostError> {
        let mut session = self.session().await?;
        let graph = session.graph().await?;
        Ok(session.remove_bitmap(&graph, "top", &bitmap_name(since)).await?)
    }

    pub(super) async fn revert_bitmap(&self) -> Result<(), HostError> {
        let mut session = self.session().await?;
        let bitmaps = ours(&session.graph().await?);
        let Some(frozen) = bitmaps.iter().find(|bitmap| !bitmap.recording) else { return Ok(()) };
        // One moment: at no time is a write in no bitmap.
        let target = bitmap_name(frozen.since);
        let mut actions = vec![("block-dirty-bitmap-enable", json!({"node": "top", "name": target}))];
        for bitmap in bitmaps.iter().filter(|bitmap| bitmap.since != frozen.since) {
            let name = bitmap_name(bitmap.since);
            actions.push(("block-dirty-bitmap-merge", json!({"node": "top", "target": target, "bitmaps": [name]})));
            actions.push(("block-dirty-bitmap-remove", json!({"node": "top", "name": name})));
        }
        Ok(session.transaction(actions).await?)
    }
}
