//! The world itself: that it behaves as the real planes were seen to, and that its checks catch what they are for.

use super::{Fault, Faults, FaultyNas, GuestError, SimNas, SimNode, World};
use crate::{NasHost as _, NodeHost as _, VolumeRef};
use img_storage_model::{
    Epoch, HostName, Plane, Size, SnapshotId, VolumeId,
    attribute::Speed,
    messages::{DeviceKind, Endpoint},
    nas::{self, NasLayer, qemu::NasStep},
    node::{
        JobState, Layer, NodeVolume, StepResult,
        qemu::{Incremental, NodeStep},
    },
};
use std::{collections::BTreeMap, time::Duration};
use tokio::time::sleep;
use uuid::Uuid;

struct Site {
    world: World,
    nas: SimNas,
    node: SimNode,
    volume: VolumeRef,
}

const ID: VolumeId = VolumeId(Uuid::from_u128(1));
const PUSH: SnapshotId = SnapshotId(Uuid::from_u128(2));

fn host(name: &str) -> HostName {
    name.parse().unwrap()
}

fn end(port: u16, export: &str) -> Endpoint {
    Endpoint { host: "nas".to_owned(), port, export: export.to_owned(), server: host("nas") }
}

fn size() -> Size {
    Size::exact(1 << 20).unwrap()
}

impl Site {
    fn new() -> Self {
        let world = World::new();
        let pool: img_storage_model::PoolName = "tank".parse().unwrap();
        let nas = world.add_nas(&host("nas"), std::slice::from_ref(&pool));
        let node = world.add_node(&host("c0"));
        Site { world, nas, node, volume: VolumeRef { id: ID, pool, name: "vol1".parse().unwrap(), plane: Plane::Qemu } }
    }

    async fn nas(&self, step: NasStep) -> Result<StepResult, crate::HostError> {
        self.nas.run(self.volume.clone(), step.into()).await
    }

    async fn node(&self, step: NodeStep) -> Result<StepResult, crate::HostError> {
        self.node.run(at_node(), step.into()).await
    }

    async fn nodes(&self, steps: impl IntoIterator<Item = NodeStep>) {
        for step in steps {
            self.node(step).await.unwrap();
        }
    }

    fn export(epoch: u64, peer: &str) -> NasStep {
        let (epoch, name) = (Epoch(epoch), format!("e{epoch}"));
        NasStep::StartExport { epoch, name, peer: host(peer), port: 7, layer: NasLayer::Disk }
    }

    async fn attached(&self) {
        self.nas(NasStep::CreateDisk { size: size() }).await.unwrap();
        self.nas(Self::export(1, "c0")).await.unwrap();
        let start = NodeStep::Start { epoch: Epoch(1), over: Layer::Remote, endpoint: Some(end(7, "e1")) };
        self.nodes([start, NodeStep::AddGuest { device: DeviceKind::Nbd }]).await;
        self.world.guest_connect(&host("c0"), ID).unwrap();
    }

    async fn copying(&self) {
        self.attached().await;
        let create = NodeStep::CreateLocal { epoch: Epoch(1), size: size() };
        self.nodes([create, NodeStep::OpenLocal, NodeStep::StartCopy { speed: Speed::UNLIMITED }]).await;
    }

    async fn local(&self) {
        self.copying().await;
        sleep(Duration::from_secs(1)).await;
        let bitmap = NodeStep::AddBitmap { since: Incremental::Pivot };
        self.nodes([NodeStep::CompleteCopy, bitmap, NodeStep::FinalizeCopy, NodeStep::DetachRemote]).await;
        self.nas(NasStep::StopExport).await.unwrap();
    }

    async fn write(&self, block: usize) -> Result<u64, GuestError> {
        self.world.guest_write(&host("c0"), ID, block).await
    }

    /// A push up to its digest.
    async fn pushed(&self) -> StepResult {
        self.nas(NasStep::CreateIncoming { push: PUSH }).await.unwrap();
        self.nas(NasStep::ServeIncoming { push: PUSH, peer: host("c0"), port: 8 }).await.unwrap();
        let open = NodeStep::OpenIncoming { endpoint: end(8, &PUSH.to_string()) };
        let start = NodeStep::StartPush { push: PUSH, full: false, speed: Speed::UNLIMITED };
        self.nodes([NodeStep::FreezeBitmap { push: PUSH }, NodeStep::InsertFleece]).await;
        self.nodes([NodeStep::OpenSource { full: false }, open, start]).await;
        sleep(Duration::from_secs(1)).await;
        self.node(NodeStep::DigestPush { push: PUSH, full: false }).await.unwrap()
    }

    async fn verified(&self, sent: StepResult) -> bool {
        let StepResult::Digest { extents, digest, .. } = sent else { panic!() };
        self.nas(NasStep::VerifyIncoming { push: PUSH, extents, digest }).await == Ok(StepResult::Verified(true))
    }

    fn violations(&self) -> usize {
        self.world.violations().len()
    }
}

#[tokio::test(start_paused = true)]
async fn a_guest_waits_for_its_export_and_is_locked_out_of_anothers() {
    let site = Site::new();
    site.attached().await;
    site.write(3).await.unwrap();
    site.world.kill_export(ID);
    let (written, ()) = tokio::join!(site.write(3), async {
        sleep(Duration::from_secs(30)).await;
        site.nas(Site::export(1, "c0")).await.unwrap();
    });
    written.unwrap();
    site.nas(NasStep::StopExport).await.unwrap();
    site.nas(Site::export(2, "c1")).await.unwrap();
    assert_eq!(site.write(3).await, Err(GuestError::Io));
    assert_eq!(site.violations(), 0, "{:?}", site.world.violations());
}

#[tokio::test(start_paused = true)]
async fn a_guest_is_held_while_a_pivot_waits_and_then_goes_on_over_there() {
    let site = Site::new();
    site.copying().await;
    for block in 0..16 {
        site.write(block).await.unwrap();
        sleep(Duration::from_millis(30)).await;
    }
    site.node(NodeStep::CompleteCopy).await.unwrap();
    let (written, ()) = tokio::join!(site.write(5), async {
        sleep(Duration::from_millis(500)).await;
        site.node(NodeStep::FinalizeCopy).await.unwrap();
    });
    written.unwrap();
    assert!(site.world.longest_hold() >= Duration::from_millis(400));
    assert!(site.world.check_final(ID, Some(&host("c0"))).is_ok());
    assert!(site.world.check_final(ID, None).is_err(), "the last write is on the local copy alone");
    assert_eq!(site.violations(), 0, "{:?}", site.world.violations());
}

#[tokio::test(start_paused = true)]
async fn a_push_is_the_point_in_time_whatever_is_written_meanwhile() {
    let site = Site::new();
    site.local().await;
    for block in [1, 2, 9] {
        site.write(block).await.unwrap();
    }
    let writing = async {
        for block in [2, 1, 9, 4] {
            sleep(Duration::from_millis(40)).await;
            site.write(block).await.unwrap();
        }
    };
    let (sent, ()) = tokio::join!(site.pushed(), writing);
    assert!(site.verified(sent).await);
    site.nas(NasStep::SealIncoming { push: PUSH }).await.unwrap();
    site.nas(NasStep::CommitPending { push: PUSH }).await.unwrap();
    site.nas(NasStep::RemovePending { push: PUSH }).await.unwrap();
    assert_eq!(site.violations(), 0, "{:?}", site.world.violations());
    assert!(site.world.check_final(ID, None).is_err(), "it is older than the newest writes");
}

#[tokio::test(start_paused = true)]
async fn what_a_killed_daemon_had_taken_in_is_not_whole() {
    let site = Site::new();
    site.local().await;
    for block in (0..8).rev() {
        site.write(block).await.unwrap();
    }
    let sent = site.pushed().await;
    site.world.kill_incoming(ID);
    assert!(site.nas(NasStep::SealIncoming { push: PUSH }).await.is_err());
    site.nas(NasStep::ServeIncoming { push: PUSH, peer: host("c0"), port: 8 }).await.unwrap();
    assert!(!site.verified(sent).await);
    // Whoever uses it nevertheless is found out.
    site.nas(NasStep::SealIncoming { push: PUSH }).await.unwrap();
    assert!(site.violations() > 0);
}

#[tokio::test(start_paused = true)]
async fn destroying_the_only_copy_is_found_out() {
    let site = Site::new();
    site.local().await;
    site.write(1).await.unwrap();
    assert!(site.node(NodeStep::Stop { force: false }).await.is_err(), "the guest is connected");
    assert!(site.node(NodeStep::RemoveLocal).await.is_err(), "it is open");
    site.node(NodeStep::Stop { force: true }).await.unwrap();
    site.node(NodeStep::RemoveLocal).await.unwrap();
    assert!(site.world.violations().iter().any(|v| v.contains("released a local copy")));
    site.nas(NasStep::RemoveDisk).await.unwrap();
    assert!(site.world.violations().iter().any(|v| v.contains("nobody wanted destroyed")));
}

#[tokio::test(start_paused = true)]
async fn two_writers_are_found_out() {
    let site = Site::new();
    site.local().await;
    site.write(1).await.unwrap();
    site.nas(Site::export(2, "c1")).await.unwrap();
    site.write(1).await.unwrap();
    assert!(site.world.violations().iter().any(|v| v.contains("two writers")));
}

#[tokio::test(start_paused = true)]
async fn what_has_another_mark_is_left_alone() {
    let site = Site::new();
    site.nas(NasStep::CreateDisk { size: size() }).await.unwrap();
    let other = VolumeRef { id: VolumeId(Uuid::from_u128(9)), ..site.volume.clone() };
    assert!(site.nas.run(other.clone(), NasStep::CreateDisk { size: size() }.into()).await.is_err());
    site.nas.run(other, NasStep::RemoveDisk.into()).await.unwrap();
    assert!(site.world.has_file(ID));
    site.world.put_foreign_local(&host("c0"), ID);
    assert!(site.node(NodeStep::CreateLocal { epoch: Epoch(1), size: size() }).await.is_err());
    assert!(site.node(NodeStep::RemoveLocal).await.is_err());
    assert!(site.node.look(ID).local.known().is_none());
}

fn at_node() -> NodeVolume {
    NodeVolume { id: ID, plane: Plane::Qemu, label: "nas.tank.vol1".to_owned() }
}

/// What is known of the export through a host that may fail.
async fn exported(nas: &FaultyNas, site: &Site) -> Option<bool> {
    match nas.observe(site.volume.clone(), None).await {
        nas::Facts::Qemu(facts) => facts.export.known().map(Option::is_some),
        nas::Facts::Kernel(_) => None,
    }
}

#[tokio::test(start_paused = true)]
async fn a_fault_happens_where_it_was_planned() {
    let site = Site::new();
    let plan = BTreeMap::from([(1, Fault::ErrorAfter), (2, Fault::CrashMid(1)), (3, Fault::Blind(5))]);
    let (faults, mut crashes) = Faults::new(&site.world, plan);
    let nas = faults.nas(site.nas.clone());
    let step = |step: NasStep| nas.run(site.volume.clone(), step.into());
    step(NasStep::CreateDisk { size: size() }).await.unwrap();
    assert!(step(Site::export(1, "c0")).await.is_err());
    assert!(exported(&nas, &site).await == Some(true), "it was done all the same");
    let crashed = tokio::time::timeout(Duration::from_secs(1), step(NasStep::CreateIncoming { push: PUSH })).await;
    assert!(crashed.is_err(), "it never returns");
    assert_eq!(crashes.recv().await.map(|c| c.host), Some(host("nas")));
    step(NasStep::SyncDisk).await.unwrap();
    assert!(exported(&nas, &site).await.is_none());
    sleep(Duration::from_secs(6)).await;
    assert!(exported(&nas, &site).await.is_some());
    assert_eq!(faults.effects().len(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_copy_that_lost_its_nas_pauses_and_goes_on() {
    let site = Site::new();
    site.copying().await;
    sleep(Duration::from_millis(100)).await;
    site.world.cut(&host("c0"), true);
    sleep(Duration::from_secs(90)).await;
    let state = async || {
        let facts = site.node.look(ID);
        facts.qsd.known().unwrap().as_ref().unwrap().copy.as_ref().unwrap().state.clone()
    };
    assert!(matches!(state().await, JobState::Paused(_)));
    site.world.cut(&host("c0"), false);
    site.node(NodeStep::ResumeCopy).await.unwrap();
    sleep(Duration::from_secs(1)).await;
    assert_eq!(state().await, JobState::Ready);
}
