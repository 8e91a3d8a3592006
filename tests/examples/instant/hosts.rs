//! Hosts whose every step is done at once and only in memory: what is measured on them is our own time.
//!
//! They show the facts a real host would show, without contents, jobs that take time, or failures; those are the simulation's
//! (`img_storage_host::sim`) and the real planes'.

use img_storage_host::{HostError, LocalCopies, NasHost, NodeHost, VolumeRef, Work, other_plane};
use img_storage_model::{
    Extents, Fact, Plane, VolumeId,
    messages::{ContentDigest, DeviceKind, Holder, PoolReport},
    nas::{
        self,
        qemu::{DiskFile, ExportFacts, IncomingFacts, NasFacts, NasStep},
    },
    node::{
        self, Job, JobState, Layer, NodeVolume, StepResult,
        qemu::{Bitmap, Incremental, LocalFile, NodeFacts, NodeStep, QsdFacts, Snapshotting},
    },
};
use std::{
    collections::BTreeMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU16, Ordering},
    },
};

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn no_digest() -> ContentDigest {
    ContentDigest(blake3_of_nothing())
}

/// The digest of no extents.
fn blake3_of_nothing() -> String {
    "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262".to_owned()
}

fn pool(name: &str) -> Vec<PoolReport> {
    vec![PoolReport { name: name.to_owned(), size: 1 << 50, free: 1 << 49, plane: Default::default() }]
}

/// A NAS in memory.
#[derive(Default)]
pub struct InstantNas {
    volumes: Mutex<BTreeMap<VolumeId, NasFacts>>,
    ports: AtomicU16,
}

fn nothing_on_nas() -> NasFacts {
    NasFacts {
        disk: Fact::Known(None),
        export: Fact::Known(None),
        incoming: Fact::Known(None),
        pending: Fact::Known(None),
        overlay: Fact::Known(None),
        reader: Fact::Known(false),
    }
}

impl NasHost for InstantNas {
    fn observe(&self, volume: VolumeRef, _: Option<nas::kernel::Zvol>) -> Work<'_, nas::Facts> {
        Box::pin(async move { nas::Facts::Qemu(lock(&self.volumes).get(&volume.id).cloned().unwrap_or_else(nothing_on_nas)) })
    }

    fn run(&self, volume: VolumeRef, step: nas::Step) -> Work<'_, Result<StepResult, HostError>> {
        Box::pin(async move {
            let nas::Step::Qemu(step) = step else { return Err(other_plane(Plane::Kernel)) };
            let mut volumes = lock(&self.volumes);
            let facts = volumes.entry(volume.id).or_insert_with(nothing_on_nas);
            match step {
                NasStep::CreateDisk { size } | NasStep::GrowDisk { size } => {
                    facts.disk = Fact::Known(Some(DiskFile { size: size.bytes(), allocated: 0 }));
                }
                NasStep::RemoveDisk => *facts = nothing_on_nas(),
                NasStep::StartExport { epoch, name, peer, port, layer } => {
                    let export = ExportFacts { epoch, peer, port, names: vec![name], over: layer, commit: None };
                    facts.export = Fact::Known(Some(export));
                }
                NasStep::StopExport => facts.export = Fact::Known(None),
                NasStep::CreateIncoming { push } => facts.incoming = Fact::Known(Some(IncomingFacts { push, serving: false })),
                NasStep::ServeIncoming { push, .. } => {
                    facts.incoming = Fact::Known(Some(IncomingFacts { push, serving: true }));
                }
                NasStep::VerifyIncoming { .. } => return Ok(StepResult::Verified(true)),
                NasStep::SealIncoming { push } => {
                    (facts.incoming, facts.pending) = (Fact::Known(None), Fact::Known(Some(push)));
                }
                NasStep::DiscardIncoming => facts.incoming = Fact::Known(None),
                NasStep::RemovePending { .. } => facts.pending = Fact::Known(None),
                NasStep::SyncDisk | NasStep::CommitPending { .. } | NasStep::StopReader => {}
                other => return Err(HostError(format!("the bench's NAS cannot {other:?}"))),
            }
            Ok(StepResult::Done)
        })
    }

    fn pools(&self) -> Work<'_, Vec<PoolReport>> {
        Box::pin(async { pool("tank") })
    }

    fn free_port(&self) -> Result<u16, HostError> {
        Ok(20_000 + self.ports.fetch_add(1, Ordering::Relaxed) % 10_000)
    }
}

/// A node in memory.
#[derive(Default)]
pub struct InstantNode(Mutex<BTreeMap<VolumeId, NodeFacts>>);

fn nothing_on_node() -> NodeFacts {
    NodeFacts { qsd: Fact::Known(None), local: Fact::Known(None) }
}

fn job(state: JobState) -> Option<Job> {
    Some(Job { state, done: 0, total: 0, speed: 0 })
}

/// What a step makes of a running storage daemon.
fn change(qsd: &mut QsdFacts, step: NodeStep) -> Result<StepResult, HostError> {
    match step {
        NodeStep::AddGuest { .. } => qsd.guest = true,
        NodeStep::RemoveGuest { .. } => qsd.guest = false,
        NodeStep::OpenLocal => qsd.local = true,
        NodeStep::StartCopy { .. } | NodeStep::ResumeCopy => qsd.copy = job(JobState::Ready),
        NodeStep::CompleteCopy => qsd.copy = job(JobState::Pending),
        NodeStep::CancelCopy => (qsd.copy, qsd.local, qsd.bitmaps) = (None, false, Vec::new()),
        NodeStep::FinalizeCopy => (qsd.copy, qsd.top) = (None, Layer::Local),
        NodeStep::AddBitmap { since } => qsd.bitmaps.push(Bitmap { since, recording: true, dirty: 0 }),
        NodeStep::DropBitmap { since } => qsd.bitmaps.retain(|b| b.since != since),
        NodeStep::DetachRemote => qsd.remote = None,
        NodeStep::FreezeBitmap { push } => {
            for bitmap in &mut qsd.bitmaps {
                bitmap.recording = false;
            }
            qsd.bitmaps.push(Bitmap { since: Incremental::Snapshot(push), recording: true, dirty: 0 });
        }
        NodeStep::InsertFleece => qsd.snapshotting.fleece = true,
        NodeStep::OpenSource { .. } => qsd.snapshotting.source = true,
        NodeStep::OpenIncoming { .. } => qsd.snapshotting.incoming = true,
        NodeStep::StartPush { push, .. } => qsd.push = job(JobState::Done).map(|job| (push, job)),
        NodeStep::DigestPush { .. } => {
            return Ok(StepResult::Digest { extents: Extents::default(), digest: no_digest(), moved: 0 });
        }
        NodeStep::EndPush => (qsd.push, qsd.snapshotting) = (None, Snapshotting::default()),
        other => return Err(HostError(format!("the bench's node cannot {other:?}"))),
    }
    Ok(StepResult::Done)
}

impl NodeHost for InstantNode {
    fn observe(&self, volume: NodeVolume, _: Option<node::kernel::Zvols>) -> Work<'_, node::Facts> {
        Box::pin(async move { node::Facts::Qemu(lock(&self.0).get(&volume.id).cloned().unwrap_or_else(nothing_on_node)) })
    }

    fn run(&self, volume: NodeVolume, step: node::Step) -> Work<'_, Result<StepResult, HostError>> {
        Box::pin(async move {
            let node::Step::Qemu(step) = step else { return Err(other_plane(Plane::Kernel)) };
            let volume = volume.id;
            let mut volumes = lock(&self.0);
            let facts = volumes.entry(volume).or_insert_with(nothing_on_node);
            match step {
                NodeStep::Start { epoch, over, endpoint } => {
                    let qsd = QsdFacts::started(epoch, over, endpoint.map(|e| e.export));
                    facts.qsd = Fact::Known(Some(qsd));
                }
                NodeStep::Stop { .. } => facts.qsd = Fact::Known(None),
                NodeStep::CreateLocal { epoch, size } => {
                    facts.local = Fact::Known(Some(LocalFile { epoch, size: size.bytes(), reserved: true }));
                }
                NodeStep::RemoveLocal => facts.local = Fact::Known(None),
                NodeStep::ReserveLocal => {}
                step => match &mut facts.qsd {
                    Fact::Known(Some(qsd)) => return change(qsd, step),
                    _ => return Err(HostError(format!("there is no storage daemon for {step:?}"))),
                },
            }
            let rests = *facts == nothing_on_node();
            if rests {
                volumes.remove(&volume);
            }
            Ok(StepResult::Done)
        })
    }

    fn device(&self, volume: &NodeVolume, _: DeviceKind) -> String {
        format!("nbd+unix:///disk?socket=/nowhere/{}", volume.id)
    }

    fn users(&self, _: NodeVolume) -> Work<'_, Result<Vec<Holder>, HostError>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn pools(&self) -> Work<'_, Vec<PoolReport>> {
        Box::pin(async { pool("local") })
    }

    fn copies(&self) -> Work<'_, Result<LocalCopies, HostError>> {
        Box::pin(async { Ok(LocalCopies::default()) })
    }
}
