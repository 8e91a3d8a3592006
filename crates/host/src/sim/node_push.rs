//! A node's verbs for write-backs: bitmaps, the point in time, the transfer.

use super::{
    Done,
    graph::{Conn, SimBitmap, SimJob, Source, every},
    node::SimNode,
    refuse,
    state::{BLOCK_BYTES, digest},
};
use crate::HostError;
use img_storage_model::{
    Extent, Extents, SnapshotId, VolumeId,
    attribute::Speed,
    node::{
        JobState, Layer, StepResult,
        qemu::{Incremental, NodeStep},
    },
};
use std::collections::{BTreeMap, BTreeSet};
use tokio::time::Instant;

/// Few, so that the digests of supersets are tested too.
const MOST_EXTENTS: usize = 3;

impl SimNode {
    pub(super) async fn push_step(&self, volume: VolumeId, step: NodeStep) -> Result<StepResult, HostError> {
        match step {
            NodeStep::FreezeBitmap { push } => self.freeze(volume, push).await?,
            NodeStep::InsertFleece => self.insert_fleece(volume).await?,
            NodeStep::OpenSource { full } => {
                self.on(volume, |v| {
                    let qsd = v.process()?;
                    // What was written between the freezing and the point in time belongs to it: the recording bitmap too.
                    let marked = (!full).then(|| qsd.marked());
                    if qsd.source.is_none() {
                        qsd.source = Some(Source { marked });
                    }
                    Ok(())
                })
                .await?;
            }
            NodeStep::OpenIncoming { endpoint } => {
                self.world
                    .part(|s| {
                        s.behind(&self.name, &endpoint)?;
                        s.node(&self.name, volume).process()?.incoming = Some(Conn::to(&endpoint));
                        Ok(())
                    })
                    .await?;
            }
            NodeStep::StartPush { push, full, speed } => self.start_push(volume, push, full, speed).await?,
            NodeStep::DigestPush { full, .. } => return self.digest_push(volume, full).await,
            NodeStep::EndPush => self.end_push(volume).await?,
            NodeStep::DropBitmap { since } => {
                self.on(volume, |v| {
                    v.process()?.bitmaps.retain(|b| b.since != since);
                    Ok(())
                })
                .await?;
            }
            NodeStep::RevertBitmap => {
                self.on(volume, |v| {
                    let qsd = v.process()?;
                    if let (Some(frozen), Some(recording)) = (qsd.frozen(), qsd.recording()) {
                        let newer = std::mem::take(&mut qsd.bitmaps[recording].dirty);
                        qsd.bitmaps[frozen].dirty.extend(newer);
                        qsd.bitmaps[frozen].recording = true;
                        qsd.bitmaps.remove(recording);
                    }
                    Ok(())
                })
                .await?;
            }
            _ => return refuse("not a step of a write-back"),
        }
        Ok(StepResult::Done)
    }

    async fn freeze(&self, volume: VolumeId, push: SnapshotId) -> Done {
        self.on(volume, |v| {
            let since = Incremental::Snapshot(push);
            let qsd = v.process()?;
            let Some(recording) = qsd.recording() else { return refuse("no bitmap records") };
            if qsd.bitmaps[recording].since == since {
                return Ok(());
            }
            if qsd.frozen().is_some() {
                return refuse("a bitmap is frozen already");
            }
            qsd.bitmaps[recording].recording = false;
            qsd.bitmaps.push(SimBitmap { since, recording: true, dirty: BTreeSet::new() });
            Ok(())
        })
        .await
    }

    async fn insert_fleece(&self, volume: VolumeId) -> Done {
        self.on(volume, |v| {
            let qsd = v.process()?;
            if qsd.top != Layer::Local || qsd.back_mirror.is_some() {
                return refuse("the guest does not work on the local copy alone");
            }
            if qsd.fleece.is_none() {
                qsd.leftovers = true;
            }
            Ok(())
        })
        .await?;
        self.on(volume, |v| {
            let qsd = v.process()?;
            qsd.leftovers = false;
            qsd.fleece.get_or_insert_with(BTreeMap::new);
            Ok(())
        })
        .await
    }

    async fn start_push(&self, volume: VolumeId, push: SnapshotId, full: bool, speed: Speed) -> Done {
        self.on(volume, |v| {
            let size = v.local.as_ref().map_or(0, |l| l.size);
            let qsd = v.process()?;
            if let Some((running, _)) = &qsd.push {
                return if *running == push { Ok(()) } else { refuse("another push runs") };
            }
            let (Some(source), Some(_)) = (&qsd.source, &qsd.incoming) else {
                return refuse("the point in time or the incoming file is not open");
            };
            let todo = match &source.marked {
                _ if full => every(size),
                Some(marked) => marked.clone(),
                None => return refuse("there is no bitmap of what to push"),
            };
            qsd.push = Some((push, SimJob::new(todo, Instant::now(), speed)));
            Ok(())
        })
        .await
    }

    async fn digest_push(&self, volume: VolumeId, full: bool) -> Result<StepResult, HostError> {
        self.on(volume, |_| Ok(())).await?;
        self.on(volume, |v| {
            let size = v.local.as_ref().map_or(0, |l| l.size);
            let qsd = v.process()?;
            if qsd.broken {
                return refuse("the point in time is broken");
            }
            let Some((_, job)) = qsd.push.as_ref().filter(|(_, job)| job.is(&JobState::Done)) else {
                return refuse("the push is not over");
            };
            let moved = job.total as u64 * BLOCK_BYTES;
            let marked = match qsd.source.as_ref().map(|s| &s.marked) {
                Some(_) if full => every(size),
                Some(Some(marked)) => marked.clone(),
                _ => return refuse("the point in time is not open"),
            };
            let ranges = marked.iter().map(|b| Extent { offset: *b as u64 * BLOCK_BYTES, length: BLOCK_BYTES });
            let extents = Extents::new(ranges.collect()).coalesced(MOST_EXTENTS);
            let digest = digest(&extents, |block| v.point_in_time(block));
            Ok(StepResult::Digest { extents, digest, moved })
        })
        .await
    }

    async fn end_push(&self, volume: VolumeId) -> Done {
        self.on(volume, |v| {
            let qsd = v.process()?;
            qsd.push = None;
            qsd.incoming = None;
            Ok(())
        })
        .await?;
        self.on(volume, |v| {
            v.process()?.source = None;
            Ok(())
        })
        .await?;
        self.on(volume, |v| {
            let qsd = v.process()?;
            qsd.leftovers |= qsd.fleece.take().is_some();
            qsd.broken = false;
            Ok(())
        })
        .await?;
        self.on(volume, |v| {
            v.process()?.leftovers = false;
            Ok(())
        })
        .await
    }
}
