//! What front ends ask of a NAS. A repeated request gets the stored answer, or waits for the one that is being made.

use super::{Nas, Shown, volume::Mail};
use img_storage_model::{
    Epoch, Fault, HostName, Plane, PoolName, RequestId, Selector, Size, VolumeId, VolumeName,
    api::{Answer, Phase, Request, VolumeView},
    attribute::Attributes,
    messages::{Body, DeviceKind, Role},
    nas::{Intent, Stage, VolumeRecord},
    schedule,
};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{oneshot, watch},
    time::timeout,
};

/// How long a node may take to say that it is there, or who uses a device.
const NODE_ANSWERS_WITHIN: Duration = Duration::from_secs(5);
/// A node heard of so many seconds ago is taken to be there.
const FRESH: i64 = 15;
/// What is left of a volume that could not be created is waited for so long.
const CLEARED_WITHIN: Duration = Duration::from_secs(20);
/// An operation is waited for so long before its outcome is no longer reported to who asked; it goes on all the same.
const PATIENCE: Duration = Duration::from_secs(12 * 3600);

impl Nas {
    /// Answers a request, once.
    pub(super) async fn serve(self: Arc<Self>, from: HostName, id: RequestId, request: Request) {
        let answer = match self.store.answer(id) {
            Ok(Some(given)) => given,
            Ok(None) => {
                let remember = !matches!(request, Request::Find { .. } | Request::History { .. } | Request::Attributes { .. });
                let answer = self.answer(&from, id, request).await.map(Box::new);
                if remember && let Err(fault) = self.store.remember(id, &answer, self.clock.now()).await {
                    tracing::warn!("{fault}");
                }
                answer
            }
            Err(fault) => Err(fault),
        };
        self.post.send(&from, Body::Answer { id, answer });
        self.answering().remove(&id);
    }

    pub(super) async fn answer(self: &Arc<Self>, from: &HostName, id: RequestId, request: Request) -> Result<Answer, Fault> {
        match request {
            Request::Find { selector } => Ok(Answer::Volumes { volumes: self.find(selector.as_ref()) }),
            Request::History { volume } => Ok(Answer::History { events: self.journal.history(volume)? }),
            Request::Attributes { of } => self.attributes(of),
            Request::SetAttributes { of, changes, notes } => self.set_attributes(id, of, changes, notes).await,
            Request::Create { pool, name, size, import } => self.create(from, id, pool, name, size, import).await,
            Request::Imported { volume, complete } => {
                let watch = self.intend(volume, id, Intent::Imported { complete }).await?;
                if complete { settled(watch, volume, |s| s.view.phase != Phase::Importing).await } else { gone(watch).await }
            }
            Request::Read { volume } => self.read(from, volume).await,
            Request::ReadDone { volume } => {
                let (mailbox, watch) = self.wake(volume).ok_or_else(|| no_such(volume))?;
                let _ = mailbox.send(Mail::ReadDone);
                let view = watch.borrow().view.clone();
                Ok(Answer::Volume { volume: Box::new(view) })
            }
            Request::Resize { volume, size } => {
                let watch = self.intend(volume, id, Intent::Resize { size }).await?;
                // Of a guest that writes all the time something is always to be done: its node made it longer before what is here came.
                let home = move |s: &Shown| s.view.phase == Phase::Local && s.length.is_some_and(|length| length >= size.bytes());
                settled(watch, volume, move |s| s.at_rest || home(s)).await
            }
            Request::Delete { volume } => gone(self.intend(volume, id, Intent::Delete).await?).await,
            Request::Map { volume, node, sync, device } => self.map(id, volume, node, sync, device).await,
            Request::Unmap { volume, force } => self.unmap(id, volume, force).await,
            Request::Sync { volume } => {
                let asked = self.clock.now();
                let watch = self.intend(volume, id, Intent::Sync).await?;
                settled(watch, volume, move |s| s.behind_since.is_none() || s.home_at.is_some_and(|at| at >= asked)).await
            }
            Request::BringBack { volume } => {
                let watch = self.intend(volume, id, Intent::BringBack).await?;
                let epoch = watch.borrow().view.epoch;
                // Somebody may want otherwise before it is there: then it never will be.
                let given_up = move |v: &VolumeView| {
                    v.sync || v.epoch != epoch || matches!(v.phase, Phase::Unmapped | Phase::Returning | Phase::Deleting)
                };
                let there = |s: &Shown| s.view.phase == Phase::Remote && s.behind_since.is_none();
                match settled(watch, volume, move |s| there(s) || given_up(&s.view)).await? {
                    Answer::Volume { volume } if given_up(&volume) => {
                        let name = format!("volume {}/{}", volume.pool, volume.name);
                        Err(Fault::refused(format!("{name} was not brought back: something else was asked for meanwhile")))
                    }
                    answer => Ok(answer),
                }
            }
        }
    }

    pub(super) fn find(&self, selector: Option<&Selector>) -> Vec<VolumeView> {
        let now = self.clock.now();
        let entries = self.entries();
        let shown = entries.values().map(|e| e.shown.borrow());
        shown
            .filter(|s| selector.is_none_or(|sel| sel.matches(&s.view.nas, &s.view.pool, &s.view.name)))
            .map(|s| {
                let mut view = s.view.clone();
                view.lag = s.behind_since.map(|t| if s.clean { 0 } else { schedule::lag_seconds(t, now) });
                view
            })
            .collect()
    }

    /// Hands an intent to the volume's actor; what it shows from then on is after that.
    pub(super) async fn intend(
        self: &Arc<Self>,
        volume: VolumeId,
        request: RequestId,
        intent: Intent,
    ) -> Result<watch::Receiver<Shown>, Fault> {
        let (mailbox, watch) = self.wake(volume).ok_or_else(|| no_such(volume))?;
        let (reply, answer) = oneshot::channel();
        let over = || Fault::not_found("the volume was deleted meanwhile");
        mailbox.send(Mail::Intent { request, intent: Box::new(intent), reply }).map_err(|_| over())?;
        answer.await.map_err(|_| over())??;
        Ok(watch)
    }

    async fn create(
        self: &Arc<Self>,
        from: &HostName,
        id: RequestId,
        pool: Option<PoolName>,
        name: VolumeName,
        size: Size,
        import: bool,
    ) -> Result<Answer, Fault> {
        let (pool, plane) = self.pool_for(pool).await?;
        let known = {
            let entries = self.entries();
            let mut shown = entries.values().map(|e| e.shown.borrow());
            shown.find(|s| s.view.pool == pool && s.view.name == name).map(|s| s.view.clone())
        };
        let volume = match known {
            Some(view) => {
                // A request that was taken before a restart is not taken twice.
                let same = self.store.volumes()?.into_iter().any(|r| r.id == view.id && r.asked == Some(id));
                if !same {
                    return Err(Fault::refused(format!("volume {pool}/{name} exists already on {}", self.post.name()))
                        .next("choose another name, or delete it first"));
                }
                view.id
            }
            None => {
                let now = self.clock.now();
                let stage = if import {
                    let port = self.host.free_port().map_err(|e| Fault::failed(e.to_string()))?;
                    Stage::Importing { peer: from.clone(), session: self.peers.session(from), port, complete: false }
                } else {
                    Stage::Creating
                };
                let volume = VolumeId(self.ids.fresh(now));
                let epoch = Epoch(u64::from(import));
                let record = VolumeRecord {
                    id: volume,
                    pool: pool.clone(),
                    name: name.clone(),
                    plane,
                    size,
                    created: now,
                    stage,
                    epoch,
                    asked: Some(id),
                    asked_before: Vec::new(),
                    lent: false,
                    attributes: Attributes::default(),
                    assign: None,
                    mapping: None,
                };
                self.store.put(&record).await?;
                self.enter(record);
                volume
            }
        };
        let (_, watch) = self.wake(volume).ok_or_else(|| no_such(volume))?;
        let over = watch.clone();
        let made = if import { served(watch).await } else { settled(watch, volume, |s| s.view.phase != Phase::Creating).await };
        if let Err(fault) = made {
            // Who reads that it failed finds nothing of it any more.
            let _ = timeout(CLEARED_WITHIN, gone(over)).await;
            let what = format!("volume {pool}/{name} of {size} could not be created on {}", self.post.name());
            let next = if fault.next.is_empty() { "mend the cause and create it again" } else { &fault.next };
            return Err(Fault::new(fault.kind, format!("{what}: {}", fault.message)).next(next));
        }
        made
    }

    /// The pool for a new volume, and what carries its data there.
    async fn pool_for(&self, wanted: Option<PoolName>) -> Result<(PoolName, Plane), Fault> {
        let reports = self.host.pools().await;
        let pools: Vec<String> = reports.iter().map(|p| p.name.clone()).collect();
        let nas = self.post.name();
        let found = wanted
            .as_ref()
            .map_or(reports.first().filter(|_| pools.len() == 1), |wanted| reports.iter().find(|p| p.name == wanted.as_str()));
        match (wanted, found) {
            (_, Some(report)) => Ok((PoolName::new(report.name.clone())?, report.plane)),
            (Some(pool), None) => {
                Err(Fault::not_found(format!("{nas} has no pool {pool}")).next(format!("its pools are: {}", pools.join(", "))))
            }
            (None, None) => Err(Fault::invalid(format!("{nas} has {} pools", pools.len()))
                .next(format!("name one of them, POOL/NAME: {}", pools.join(", ")))),
        }
    }

    async fn read(self: &Arc<Self>, from: &HostName, volume: VolumeId) -> Result<Answer, Fault> {
        let (mailbox, watch) = self.wake(volume).ok_or_else(|| no_such(volume))?;
        let port = self.host.free_port().map_err(|e| Fault::failed(e.to_string()))?;
        let (reply, answer) = oneshot::channel();
        let over = || Fault::not_found("the volume was deleted meanwhile");
        mailbox.send(Mail::Read { peer: from.clone(), port, reply }).map_err(|_| over())?;
        answer.await.map_err(|_| over())??;
        served(watch).await
    }

    async fn map(
        self: &Arc<Self>,
        id: RequestId,
        volume: VolumeId,
        node: HostName,
        sync: bool,
        device: DeviceKind,
    ) -> Result<Answer, Fault> {
        let mapped = self.wake(volume).ok_or_else(|| no_such(volume))?.1.borrow().view.node.clone();
        if mapped.is_none() {
            self.reach(&node).await?;
            self.serves(&node, volume)?;
        }
        let port = self.host.free_port().map_err(|e| Fault::failed(e.to_string()))?;
        let watch = self.intend(volume, id, Intent::Map { node, sync, device, port }).await?;
        settled(watch, volume, |s| s.view.device.is_some() || s.view.phase == Phase::Unmapped).await
    }

    /// Makes sure that a node can serve the plane of a volume.
    pub(super) fn serves(&self, node: &HostName, volume: VolumeId) -> Result<(), Fault> {
        let plane = self.entries().get(&volume).ok_or_else(|| no_such(volume))?.shown.borrow().plane;
        let planes = self.peers.planes(node);
        if planes.iter().any(|p| *p == plane.to_string()) {
            return Ok(());
        }
        let what = match plane {
            Plane::Kernel => "the kernel plane (ZFS, iSCSI and device-mapper)",
            Plane::Qemu => "the qemu plane (storage daemons)",
        };
        let next =
            format!("nothing was changed; set up {what} on {node}, or map it to a node that img-storage hosts shows with it");
        Err(Fault::refused(format!("{node} does not serve {what}, on which the volume is")).next(next))
    }

    /// Makes sure that a node is there before anything is changed.
    pub(super) async fn reach(self: &Arc<Self>, node: &HostName) -> Result<(), Fault> {
        let nothing_changed = "nothing was changed; see img-storage hosts";
        let role = match self.peers.present(node, self.clock.now(), FRESH) {
            Some(role) => role,
            None => {
                let mut changes = self.peers.changes();
                self.peers.try_again(node);
                self.hello(node, true);
                let heard = timeout(NODE_ANSWERS_WITHIN, async {
                    while !self.peers.unroutable(node) && changes.changed().await.is_ok() {
                        if let Some(role) = self.peers.present(node, self.clock.now(), FRESH) {
                            return Some(role);
                        }
                    }
                    None
                });
                let unknown = || Fault::unreachable(format!("host {node} is unknown or not connected")).next(nothing_changed);
                heard.await.unwrap_or(None).ok_or_else(unknown)?
            }
        };
        if role == Role::Node { Ok(()) } else { Err(no_guests(node, role)) }
    }

    async fn unmap(self: &Arc<Self>, id: RequestId, volume: VolumeId, force: bool) -> Result<Answer, Fault> {
        let (_, watch) = self.wake(volume).ok_or_else(|| no_such(volume))?;
        let view = watch.borrow().view.clone();
        if let (Some(node), false) = (&view.node, force || view.phase == Phase::Returning) {
            self.nobody_uses(volume, node, &view).await?;
        }
        let watch = self.intend(volume, id, Intent::Unmap { force }).await?;
        let epoch = view.epoch;
        settled(watch, volume, move |s| s.view.phase == Phase::Unmapped || s.view.epoch != epoch).await
    }

    /// Refuses where a guest has the device open, naming it.
    pub(super) async fn nobody_uses(self: &Arc<Self>, volume: VolumeId, node: &HostName, view: &VolumeView) -> Result<(), Fault> {
        let name = format!("volume {}/{}", view.pool, view.name);
        let query = RequestId(self.ids.fresh(self.clock.now()));
        let (reply, told) = oneshot::channel();
        self.queries.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert(query, (node.clone(), reply));
        self.post.send(node, Body::WhoUses { volume, query });
        let told = timeout(NODE_ANSWERS_WITHIN, told).await;
        self.queries.lock().unwrap_or_else(std::sync::PoisonError::into_inner).remove(&query);
        let force = format!("or cut it off: img-storage unmap --force {}/{}", view.pool, view.name);
        match told {
            Ok(Ok(Ok(holders))) if holders.is_empty() => Ok(()),
            Ok(Ok(Ok(holders))) => {
                let by: Vec<String> = holders.iter().map(ToString::to_string).collect();
                Err(Fault::refused(format!("{name} is in use on {node} by {}", by.join(" and ")))
                    .next(format!("stop the guest {force}")))
            }
            Ok(Ok(Err(why))) => Err(Fault::refused(format!("whether {name} is in use on {node} cannot be told: {why}"))
                .next(format!("see that the guest is off and its node is up, {force}"))),
            Ok(Err(_)) | Err(_) => Err(Fault::unreachable(format!("{node}, which has {name}, does not answer"))
                .next(format!("nothing was changed; bring it up, {force}"))),
        }
    }
}

/// A volume cannot be mapped to a host of this role.
pub(crate) fn no_guests(host: &HostName, role: Role) -> Fault {
    let role = match role {
        Role::Nas => "a NAS",
        Role::Frontend => "the front end",
        Role::Node => "a node",
    };
    Fault::refused(format!("host {host} runs no guests: it is {role}"))
        .next("nothing was changed; img-storage hosts shows the nodes")
}

pub(super) fn no_such(volume: VolumeId) -> Fault {
    Fault::not_found(format!("there is no volume {volume}")).next("see img-storage list")
}

/// Waits until what is shown is as wanted.
pub(super) async fn settled(
    mut watch: watch::Receiver<Shown>,
    volume: VolumeId,
    wanted: impl Fn(&Shown) -> bool,
) -> Result<Answer, Fault> {
    let wait = async {
        loop {
            {
                let shown = watch.borrow_and_update();
                if let Some(fault) = &shown.failed {
                    return Err(fault.clone());
                }
                if wanted(&shown) {
                    return Ok(Answer::Volume { volume: Box::new(shown.view.clone()) });
                }
            }
            watch.changed().await.map_err(|_| no_such(volume))?;
        }
    };
    timeout(PATIENCE, wait)
        .await
        .unwrap_or_else(|_| Err(Fault::unfinished("it takes longer than this NAS waits for; it goes on")))
}

/// Waits until the volume's contents are served to who asked.
async fn served(mut watch: watch::Receiver<Shown>) -> Result<Answer, Fault> {
    let wait = async {
        loop {
            {
                let shown = watch.borrow_and_update();
                if let Some(fault) = shown.failed.as_ref().or(shown.unread.as_ref()) {
                    return Err(fault.clone());
                }
                if let Some(endpoint) = &shown.served {
                    return Ok(Answer::Served { volume: Box::new(shown.view.clone()), endpoint: endpoint.clone() });
                }
            }
            watch.changed().await.map_err(|_| Fault::failed("the volume went away before it could be served"))?;
        }
    };
    timeout(PATIENCE, wait).await.unwrap_or_else(|_| Err(Fault::unfinished("it takes longer than this NAS waits for")))
}

/// Waits until the volume is gone.
async fn gone(mut watch: watch::Receiver<Shown>) -> Result<Answer, Fault> {
    while watch.changed().await.is_ok() {}
    Ok(Answer::Deleted)
}
