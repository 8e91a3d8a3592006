//! A node's verbs for bringing the guest back onto the NAS.

use super::{
    Done,
    graph::{Conn, SimJob, every},
    node::SimNode,
    refuse,
};
use img_storage_model::{
    VolumeId,
    attribute::Speed,
    messages::Endpoint,
    node::{JobState, Layer, qemu::NodeStep},
};
use std::collections::BTreeSet;
use tokio::time::Instant;

impl SimNode {
    pub(super) async fn back_step(&self, volume: VolumeId, step: NodeStep) -> Done {
        match step {
            NodeStep::OpenBack { endpoint } => self.open_back(volume, endpoint).await,
            NodeStep::StartBack { full, speed } => self.start_back(volume, full, speed).await,
            NodeStep::CompleteBack => self.complete_back(volume).await,
            NodeStep::FinalizeBack => self.finalize_back(volume).await,
            _ => self.cancel_back(volume).await,
        }
    }

    async fn open_back(&self, volume: VolumeId, endpoint: Endpoint) -> Done {
        self.world
            .part(|s| {
                s.behind(&self.name, &endpoint)?;
                let qsd = s.node(&self.name, volume).process()?;
                if qsd.top != Layer::Local || qsd.fleece.is_some() {
                    return refuse("the guest does not work on the local copy alone");
                }
                qsd.back.get_or_insert_with(|| Conn::to(&endpoint));
                Ok(())
            })
            .await?;
        self.world
            .part(|s| {
                s.behind(&self.name, &endpoint)?;
                s.node(&self.name, volume).process()?.back2 = true;
                Ok(())
            })
            .await
    }

    async fn start_back(&self, volume: VolumeId, full: bool, speed: Speed) -> Done {
        self.on(volume, |v| {
            let qsd = v.process()?;
            if qsd.back.is_none() || !qsd.back2 {
                return refuse("the overlay is not open");
            }
            let mirror = || SimJob { state: JobState::Ready, ..SimJob::new(BTreeSet::new(), Instant::now(), Speed::UNLIMITED) };
            qsd.back_mirror.get_or_insert_with(mirror);
            Ok(())
        })
        .await?;
        self.on(volume, |v| {
            let size = v.local.as_ref().map_or(0, |l| l.size);
            let qsd = v.process()?;
            if qsd.back_mirror.is_none() {
                return refuse("the mirror is not there");
            }
            let todo = if full { every(size) } else { qsd.marked() };
            qsd.back_fill.get_or_insert_with(|| SimJob::new(todo, Instant::now(), speed));
            Ok(())
        })
        .await
    }

    async fn complete_back(&self, volume: VolumeId) -> Done {
        self.world
            .part(|s| {
                let cut = s.nodes.get(&self.name).is_some_and(|n| n.cut);
                let Some(v) = s.nodes.get_mut(&self.name).and_then(|n| n.volumes.get_mut(&volume)) else {
                    return refuse("no storage daemon runs for this volume");
                };
                let qsd = v.process()?;
                let (Some(mirror), Some(fill), Some(conn)) = (&mut qsd.back_mirror, &qsd.back_fill, &qsd.back) else {
                    return refuse("bring-back has not begun");
                };
                match mirror.state {
                    JobState::Pending | JobState::Done => return Ok(()),
                    JobState::Ready if fill.is(&JobState::Done) => {}
                    _ => return refuse("not everything is on the NAS"),
                }
                mirror.state = match s.nases.target(&self.name, cut, conn) {
                    Ok(_) => JobState::Pending,
                    Err(why) => JobState::Failed(why),
                };
                if mirror.is(&JobState::Pending) { Ok(()) } else { refuse("the mirror failed") }
            })
            .await
    }

    async fn finalize_back(&self, volume: VolumeId) -> Done {
        self.world
            .part(|s| {
                let qsd = s.node(&self.name, volume).process()?;
                match qsd.back_mirror.as_mut() {
                    Some(mirror) if mirror.is(&JobState::Pending) => mirror.state = JobState::Done,
                    Some(mirror) if !mirror.is(&JobState::Done) => return refuse("the mirror is not pending"),
                    None if qsd.top == Layer::Local => return refuse("there is no mirror"),
                    _ => return Ok(()),
                }
                qsd.top = Layer::Remote;
                qsd.remote = qsd.back.clone();
                if let Some(conn) = qsd.remote.clone() {
                    s.move_onto(&self.name, volume, &conn.endpoint, "pivots back to the NAS");
                }
                Ok(())
            })
            .await?;
        self.on(volume, |v| {
            let qsd = v.process()?;
            qsd.back_mirror = None;
            Ok(())
        })
        .await?;
        self.on(volume, |v| {
            let qsd = v.process()?;
            qsd.back_fill = None;
            Ok(())
        })
        .await?;
        self.on(volume, |v| {
            let qsd = v.process()?;
            qsd.back = None;
            qsd.back2 = false;
            qsd.local = false;
            Ok(())
        })
        .await?;
        self.on(volume, |v| {
            v.process()?.bitmaps.clear();
            Ok(())
        })
        .await
    }

    async fn cancel_back(&self, volume: VolumeId) -> Done {
        self.on(volume, |v| {
            let qsd = v.process()?;
            if qsd.back_mirror.as_ref().is_some_and(|m| m.is(&JobState::Done)) {
                return refuse("the guest works on the NAS already");
            }
            qsd.back_mirror = None;
            Ok(())
        })
        .await?;
        self.on(volume, |v| {
            v.process()?.back_fill = None;
            Ok(())
        })
        .await?;
        self.on(volume, |v| {
            let qsd = v.process()?;
            qsd.back = None;
            qsd.back2 = false;
            Ok(())
        })
        .await
    }
}
