//! What changes something: mapped, unmapped and deleted through the same requests that our own front end sends.

use super::{
    super::{Shown, requests::settled},
    Nas,
    lists::FIXED,
    lock,
};
use img_storage_model::{
    Fault, FaultKind, HostName, PoolName, RequestId, Size, VolumeId, VolumeName,
    api::{Answer, AttributesOf, Phase, Request, VolumeView},
    attribute::Changes,
    messages::{DeviceKind, NodePhase},
    nas::Intent,
    original::{MapZvol, NasRequest, Reply, locked, say},
};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::watch,
    time::{Instant, timeout, timeout_at},
};
use uuid::Uuid;

/// So long an answer may take; what is not over then goes on without it.
const WITHIN: Duration = Duration::from_secs(60);
/// Destroying a large volume may take longer.
const DESTROYED_WITHIN: Duration = Duration::from_secs(300);

/// What is asked for on the way to something has an identity of its own, and the same one after a restart.
fn part(id: RequestId, number: u128) -> RequestId {
    RequestId(Uuid::from_u128(id.0.as_u128() ^ number))
}

const CREATION: u128 = 1;
const WITHDRAWAL: u128 = 2;

fn late(doing: Duration, view: Option<&VolumeView>) -> String {
    let stuck = view.and_then(|v| v.stuck.as_ref()).map_or_else(String::new, |t| format!(" ({}: {})", t.host, t.why));
    format!("it is not done within {} s{stuck}, and goes on; img-storage status tells how far it is", doing.as_secs())
}

impl Nas {
    /// Does what is asked, and says what came of it. `again` says that an earlier life of this daemon may have begun with it.
    pub(super) async fn obey(self: &Arc<Self>, id: RequestId, request: NasRequest, again: bool) -> Reply {
        let action = request.action();
        let done = match request {
            NasRequest::Map(map) => return self.map_zvol(id, map, again).await.unwrap_or_else(|why| Reply::refused(action, why)),
            NasRequest::Unmap { zvol } => self.unmap_zvol(id, &zvol, again).await,
            NasRequest::Delete { zpool, zvol } => self.del_zvol(id, &zpool, &zvol, again).await,
            NasRequest::SetVolumeAttributes { zvol, changes } => self.set_volume_attributes(id, &zvol, changes).await,
            NasRequest::SetAttributes { changes } => self.set_nas_attributes(id, changes).await,
            NasRequest::DeleteAttributes { names } => {
                self.set_nas_attributes(id, names.into_iter().map(|name| (name, None)).collect()).await
            }
            NasRequest::List | NasRequest::VolumeAttributes { .. } | NasRequest::Attributes => return self.look(request).await,
        };
        done.map_or_else(|why| Reply::refused(action, why), |()| Reply::Done(action))
    }

    /// Whether the volume's row has taken this request.
    fn taken(&self, volume: VolumeId, id: RequestId) -> bool {
        let record = self.store.volume(volume).ok().flatten();
        record.is_some_and(|r| r.asked == Some(id) || r.asked_before.contains(&id))
    }

    fn view(&self, volume: VolumeId) -> Option<VolumeView> {
        self.entries().get(&volume).map(|e| e.shown.borrow().view.clone())
    }

    async fn map_zvol(self: &Arc<Self>, id: RequestId, map: MapZvol, again: bool) -> Result<Reply, String> {
        let MapZvol { zpool, zvol, remotehost: node, remotepool, size, sync, initiator: _ } = map;
        let _held = self.hold(&zvol)?;
        let deadline = Instant::now() + WITHIN;
        let named = self.named(&zvol);
        let volume = match named.as_slice() {
            [] => {
                self.there(&node).await?;
                self.made(id, &zpool, &zvol, size, deadline).await?
            }
            [view] if view.pool != zpool => return Err(self.elsewhere(&zpool, view)),
            [view] => {
                let ours = again && [id, part(id, CREATION)].into_iter().any(|id| self.taken(view.id, id));
                if !ours && locked(view) {
                    return Err(say::busy(&zvol));
                }
                if !ours && view.node.is_some() {
                    return Err(say::already_mapped());
                }
                if view.phase == Phase::Creating { self.made(id, &zpool, &zvol, size, deadline).await? } else { view.id }
            }
            several => return Err(self.several(&zvol, several)),
        };
        if self.view(volume).is_some_and(|v| v.node.is_none()) {
            self.there(&node).await?;
        }
        if let (Some(pool), true) = (remotepool, sync)
            && let Some(view) = self.view(volume).filter(|v| v.node.is_none())
        {
            let epoch = view.epoch.next();
            match self.store.foreign_pool(volume, epoch, &pool).await {
                Ok(()) => drop(lock(&self.original.pools).insert(volume, (epoch, pool.to_string()))),
                Err(fault) => tracing::warn!("which pool was asked for will not be shown: {fault}"),
            }
        }
        let me = self.post.name().clone();
        let request = Request::Map { volume, node: node.clone(), sync, device: DeviceKind::Nbd };
        let answer = tokio::select! {
            answer = timeout_at(deadline, self.answer(&me, id, request)) => answer,
            () = self.lost(volume, &node) => {
                // As the original does: nothing of it was begun on the node, and nothing stays.
                let withdrawn = async {
                    let watch = self.intend(volume, part(id, WITHDRAWAL), Intent::Unmap { force: true }).await?;
                    settled(watch, volume, |s| s.view.node.is_none()).await
                };
                // Who hears that the node is unavailable finds the volume free.
                match timeout_at(deadline, withdrawn).await {
                    Ok(Ok(_)) => {}
                    Ok(Err(fault)) => tracing::warn!(%volume, "a mapping to {node}, which is gone, could not be withdrawn: {fault}"),
                    Err(_) => tracing::warn!(%volume, "a mapping to {node}, which is gone, is not withdrawn yet"),
                }
                return Err(say::unavailable(&node));
            }
        };
        match answer {
            Ok(Ok(Answer::Volume { volume })) => match volume.device {
                Some(bdev) => Ok(Reply::Mapped { bdev }),
                None => Err(say::not_attached("it was unmapped meanwhile")),
            },
            Ok(Ok(_)) => Err(say::not_attached("it was answered as another question")),
            Ok(Err(fault)) if fault.kind == FaultKind::Unreachable => Err(self.absent(&node).await),
            // Somebody else was quicker.
            Ok(Err(fault)) if fault.kind == FaultKind::Refused => match self.view(volume) {
                Some(view) if locked(&view) => Err(say::busy(&zvol)),
                Some(view) if view.node.is_some() => Err(say::already_mapped()),
                _ => Err(say::not_attached(fault)),
            },
            Ok(Err(fault)) => Err(say::not_attached(fault)),
            Err(_) => Err(say::not_attached(late(WITHIN, self.view(volume).as_ref()))),
        }
    }

    /// A new volume, or the one that this request was making before a restart.
    async fn made(
        self: &Arc<Self>,
        id: RequestId,
        zpool: &PoolName,
        zvol: &VolumeName,
        size: Size,
        deadline: Instant,
    ) -> Result<VolumeId, String> {
        let me = self.post.name().clone();
        let request = Request::Create { pool: Some(zpool.clone()), name: zvol.clone(), size, import: false };
        match timeout_at(deadline, self.answer(&me, part(id, CREATION), request)).await {
            Ok(Ok(Answer::Volume { volume })) => Ok(volume.id),
            Ok(Ok(_)) => Err(format!("ZVol {zvol} could not be created")),
            Ok(Err(fault)) if fault.kind == FaultKind::NotFound => Err(format!("the field zpool is wrong: {fault}")),
            Ok(Err(fault)) => Err(fault.to_string()),
            Err(_) => Err(format!("ZVol {zvol} could not be created yet: {}", late(WITHIN, None))),
        }
    }

    fn elsewhere(&self, zpool: &PoolName, view: &VolumeView) -> String {
        format!("the field zpool is wrong: ZVol {} is in pool {} of {}, not in {zpool}", view.name, view.pool, self.post.name())
    }

    /// Makes sure that a node is there.
    async fn there(self: &Arc<Self>, node: &HostName) -> Result<(), String> {
        match self.reach(node).await {
            Ok(()) => Ok(()),
            Err(fault) if fault.kind == FaultKind::Unreachable => Err(self.absent(node).await),
            Err(fault) => Err(fault.to_string()),
        }
    }

    /// What is said of a node that is not there: it is away, or there is no such host.
    async fn absent(&self, node: &HostName) -> String {
        let known = self.peers.role(node).is_some() || self.store.knows_node(node).unwrap_or(true);
        let known = known || self.entries().values().any(|e| e.shown.borrow().view.node.as_ref() == Some(node));
        if known || img_storage_host::resolves(node.as_str()).await { say::unavailable(node) } else { say::unknown_host(node) }
    }

    /// Until the bus cannot reach the node that has not even begun with the volume.
    async fn lost(&self, volume: VolumeId, node: &HostName) {
        let mut changes = self.peers.changes();
        loop {
            let waits = self.view(volume).is_some_and(|v| v.phase == Phase::Attaching && v.node.as_ref() == Some(node));
            if waits && self.peers.is_away(node) {
                return;
            }
            if changes.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    async fn unmap_zvol(self: &Arc<Self>, id: RequestId, zvol: &VolumeName, again: bool) -> Result<(), String> {
        let view = self.one_named(zvol)?;
        let ours = again && self.taken(view.id, id);
        if ours && (view.node.is_none() || !matches!(view.phase, Phase::Returning)) {
            return Ok(());
        }
        if view.node.is_none() {
            return Err(say::not_mapped(zvol));
        }
        let _held = self.hold(zvol)?;
        let view = self.view(view.id).ok_or_else(|| say::not_found(zvol))?;
        let Some(node) = &view.node else { return Err(say::not_mapped(zvol)) };
        if !ours {
            if locked(&view) {
                return Err(say::busy(zvol));
            }
            self.peers.try_again(node);
            if let Err(fault) = self.nobody_uses(view.id, node, &view).await {
                let away = fault.kind == FaultKind::Unreachable || self.peers.unroutable(node);
                return Err(if away { say::unavailable(node) } else { say::not_detached(fault) });
            }
        }
        let watch = self.intend(view.id, id, Intent::Unmap { force: false }).await.map_err(say::not_detached)?;
        let epoch = view.epoch;
        // The guest's device is gone; what a local copy has that the NAS lacks goes home after the answer.
        let off =
            move |s: &Shown| s.view.phase == Phase::Unmapped || s.view.epoch != epoch || s.at_node == Some(NodePhase::Returning);
        match timeout(WITHIN, until(watch, off)).await {
            Ok(()) => Ok(()),
            Err(_) => Err(say::not_detached(late(WITHIN, self.view(view.id).as_ref()))),
        }
    }

    async fn set_volume_attributes(self: &Arc<Self>, id: RequestId, zvol: &VolumeName, changes: Changes) -> Result<(), String> {
        let view = self.one_named(zvol)?;
        if changes.is_empty() {
            return Ok(());
        }
        self.changed(id, AttributesOf::Volume(view.id), changes).await
    }

    async fn set_nas_attributes(self: &Arc<Self>, id: RequestId, changes: Changes) -> Result<(), String> {
        match changes.keys().find(|name| FIXED.contains(&name.as_str())) {
            Some(name) => Err(format!("the field attrs.{name} is wrong: {name} is in the configuration of {}", self.post.name())),
            None => self.changed(id, AttributesOf::Nas, changes).await,
        }
    }

    async fn changed(self: &Arc<Self>, id: RequestId, of: AttributesOf, changes: Changes) -> Result<(), String> {
        let me = self.post.name().clone();
        let done = self.answer(&me, id, Request::SetAttributes { of, changes, notes: true }).await;
        done.map(drop).map_err(|fault| fault.to_string())
    }

    async fn del_zvol(self: &Arc<Self>, id: RequestId, zpool: &PoolName, zvol: &VolumeName, again: bool) -> Result<(), String> {
        if again && matches!(self.store.answer(id), Ok(Some(Ok(_)))) {
            return Ok(());
        }
        let _held = self.hold(zvol)?;
        let named = self.named(zvol);
        let view = match (named.iter().find(|v| v.pool == *zpool), named.first()) {
            (Some(view), _) => view,
            (None, Some(other)) => return Err(self.elsewhere(zpool, other)),
            (None, None) => return Err(say::not_found(zvol)),
        };
        let ours = again && self.taken(view.id, id);
        if !ours && locked(view) {
            return Err(say::busy(zvol));
        }
        if view.node.is_some() {
            return Err(say::still_mapped(zvol));
        }
        let me = self.post.name().clone();
        match timeout(DESTROYED_WITHIN, self.answer(&me, id, Request::Delete { volume: view.id })).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(Fault { kind: FaultKind::NotFound, .. })) => Err(say::not_found(zvol)),
            Ok(Err(fault)) => Err(match self.view(view.id) {
                Some(view) if view.node.is_some() => say::still_mapped(zvol),
                Some(view) if locked(&view) => say::busy(zvol),
                _ => say::not_deleted(zvol, fault),
            }),
            Err(_) => Err(say::not_deleted(zvol, late(DESTROYED_WITHIN, self.view(view.id).as_ref()))),
        }
    }
}

/// Waits until what is shown is as wanted, or nothing is shown any more.
async fn until(mut watch: watch::Receiver<Shown>, wanted: impl Fn(&Shown) -> bool) {
    while !wanted(&watch.borrow_and_update()) {
        if watch.changed().await.is_err() {
            return;
        }
    }
}
