//! The plane itself: that it behaves as the real tools were seen to, and that the world's checks catch what they are for.

use crate::{
    HostError, NasHost as _, NodeHost as _, VolumeRef,
    sim::{Fault, Faults, GuestError, SimNas, SimNode, World},
};
use img_storage_model::{
    Epoch, HostName, Plane, Size, SnapshotId, VolumeId,
    attribute::Speed,
    messages::{Endpoint, IscsiLogin, Peer},
    nas::{
        self,
        kernel::{NasFacts, NasStep},
    },
    node::{
        self, JobState,
        Layer::{Local, Remote},
        NodeVolume, StepResult,
        kernel::{NodeFacts, NodeStep, Table},
    },
};
use std::{collections::BTreeMap, time::Duration};
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

const ID: VolumeId = VolumeId(Uuid::from_u128(1));
const E: Epoch = Epoch(1);
const S1: SnapshotId = SnapshotId(Uuid::from_u128(11));
const S2: SnapshotId = SnapshotId(Uuid::from_u128(12));

struct Site {
    world: World,
    nas: SimNas,
    node: SimNode,
}

fn host(name: &str) -> HostName {
    name.parse().unwrap()
}

fn size() -> Size {
    Size::exact(1 << 20).unwrap()
}

fn volume() -> VolumeRef {
    VolumeRef { id: ID, pool: "tank".parse().unwrap(), name: "vol1".parse().unwrap(), plane: Plane::Kernel }
}

fn at_node() -> NodeVolume {
    NodeVolume { id: ID, plane: Plane::Kernel, label: "nas.tank.vol1".to_owned() }
}

fn login(epoch: Epoch) -> IscsiLogin {
    IscsiLogin { user: "u".to_owned(), password: format!("p{epoch}"), serial: format!("s{epoch}") }
}

fn iqn(epoch: Epoch) -> String {
    format!("iqn.e{epoch}")
}

fn export(epoch: Epoch, to: &str) -> NasStep {
    NasStep::Export { epoch, iqn: iqn(epoch), initiator: super::initiator(&host(to)), login: login(epoch) }
}

fn log_in(epoch: Epoch) -> NodeStep {
    let endpoint = Endpoint { host: "nas".to_owned(), port: 3260, export: iqn(epoch), server: host("nas") };
    NodeStep::Login { endpoint, login: login(epoch), size: size() }
}

fn swap(table: Table) -> NodeStep {
    NodeStep::Swap { table, size: size() }
}

fn send(from: Option<SnapshotId>, to: SnapshotId, resume: Option<String>) -> NasStep {
    let peer = Peer { host: host("c0"), address: "c0".to_owned(), dataset: "local/x".to_owned(), epoch: E };
    NasStep::Send { peer, from, to, resume, speed: Speed::UNLIMITED }
}

fn receive(from: SnapshotId, to: SnapshotId) -> NasStep {
    let peer = Peer { host: host("c0"), address: "c0".to_owned(), dataset: "local/x".to_owned(), epoch: E };
    NasStep::Receive { peer, from, to, resume: None, speed: Speed::UNLIMITED }
}

impl Site {
    fn new() -> Self {
        let world = World::new();
        let nas = world.add_nas(&host("nas"), &[]);
        world.add_zfs_pool(&host("nas"), &"tank".parse().unwrap());
        let node = world.add_node(&host("c0"));
        world.add_node(&host("c1"));
        Site { world, nas, node }
    }

    async fn nas(&self, step: NasStep) -> Result<StepResult, HostError> {
        self.nas.run(volume(), step.into()).await
    }

    async fn node(&self, step: NodeStep) -> Result<StepResult, HostError> {
        self.node.run(at_node(), step.into()).await
    }

    async fn at_nas(&self) -> NasFacts {
        match self.nas.observe(volume(), None).await {
            nas::Facts::Kernel(facts) => facts,
            nas::Facts::Qemu(_) => panic!("of another plane"),
        }
    }

    async fn at_node(&self) -> NodeFacts {
        match self.node.observe(at_node(), None).await {
            node::Facts::Kernel(facts) => facts,
            node::Facts::Qemu(_) => panic!("of another plane"),
        }
    }

    async fn write(&self, block: usize) -> Result<u64, GuestError> {
        self.world.guest_write(&host("c0"), ID, block).await
    }

    /// Several writes, the last of which is followed by a flush.
    async fn write_all(&self, blocks: impl IntoIterator<Item = usize>) {
        for block in blocks {
            self.write(block).await.unwrap();
        }
        while !self.write(15).await.unwrap().is_multiple_of(3) {}
    }

    async fn mapped(&self) {
        self.nas(NasStep::CreateZvol { size: size() }).await.unwrap();
        self.nas(export(E, "c0")).await.unwrap();
        self.node(log_in(E)).await.unwrap();
        self.node(NodeStep::CreateDevice { epoch: E, table: Table::Linear(Remote), size: size() }).await.unwrap();
        self.world.guest_connect(&host("c0"), ID).unwrap();
    }

    async fn streamed(&self) -> JobState {
        loop {
            sleep(Duration::from_millis(20)).await;
            match self.at_nas().await.stream.unwrap().job.state {
                JobState::Running => {}
                state => return state,
            }
        }
    }

    async fn copied(&self) {
        self.mapped().await;
        self.write_all([1, 2, 3]).await;
        self.nas(NasStep::TakeSnapshot { snapshot: S1 }).await.unwrap();
        self.nas(send(None, S1, None)).await.unwrap();
        assert_eq!(self.streamed().await, JobState::Done);
        self.nas(NasStep::EndStream).await.unwrap();
    }

    async fn over_remote(&self) {
        self.copied().await;
        self.node(NodeStep::CreateOverlay { epoch: E, size: size() }).await.unwrap();
        self.write_all([4]).await;
        self.node(swap(Table::Overlay(Remote))).await.unwrap();
        self.write_all([2, 5]).await;
        self.nas(NasStep::TakeSnapshot { snapshot: S2 }).await.unwrap();
        self.nas(send(Some(S1), S2, None)).await.unwrap();
        assert_eq!(self.streamed().await, JobState::Done);
        self.nas(NasStep::EndStream).await.unwrap();
    }

    async fn merged(&self) {
        while self.at_node().await.device.known().unwrap().as_ref().unwrap().merge.unwrap().left > 0 {
            sleep(Duration::from_millis(20)).await;
        }
    }

    async fn local(&self) {
        self.over_remote().await;
        self.node(swap(Table::Merge(Local))).await.unwrap();
        self.node(NodeStep::Logout).await.unwrap();
        self.write_all([6, 2]).await;
        self.merged().await;
        self.node(swap(Table::Linear(Local))).await.unwrap();
        self.node(NodeStep::RemoveOverlay).await.unwrap();
    }

    fn is_well(&self) {
        assert_eq!(self.world.violations(), Vec::<String>::new());
    }

    fn is_caught(&self, what: &str) {
        let found = self.world.violations();
        assert!(found.iter().any(|v| v.contains(what)), "{what:?} is not among {found:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_guest_moves_to_its_local_copy_and_back_without_losing_anything() {
    let site = Site::new();
    site.local().await;
    site.write_all([7]).await;
    site.world.check_final(ID, Some(&host("c0"))).unwrap_err();
    site.node(NodeStep::CreateOverlay { epoch: E, size: size() }).await.unwrap();
    site.node(swap(Table::Overlay(Local))).await.unwrap();
    site.write_all([8]).await;
    site.node(NodeStep::TakeSnapshot { snapshot: S1 }).await.unwrap();
    let s3 = SnapshotId(Uuid::from_u128(13));
    site.node(NodeStep::TakeSnapshot { snapshot: s3 }).await.unwrap();
    site.nas(NasStep::Unexport { epoch: E }).await.unwrap();
    site.nas(receive(S2, s3)).await.unwrap();
    assert_eq!(site.streamed().await, JobState::Done);
    site.nas(NasStep::EndStream).await.unwrap();
    site.nas(export(E, "c0")).await.unwrap();
    site.node(log_in(E)).await.unwrap();
    site.node(swap(Table::Merge(Remote))).await.unwrap();
    site.write_all([9]).await;
    site.merged().await;
    site.node(NodeStep::FlushRemote).await.unwrap();
    site.node(swap(Table::Linear(Remote))).await.unwrap();
    site.write_all([10]).await;
    site.world.check_final(ID, None).unwrap();
    site.is_well();
}

#[tokio::test(start_paused = true)]
async fn the_bare_disk_under_an_overlay_lacks_what_was_written() {
    let site = Site::new();
    site.over_remote().await;
    site.world.restart_node(&host("c0"));
    site.node(log_in(E)).await.unwrap();
    site.node(NodeStep::CreateDevice { epoch: E, table: Table::Linear(Remote), size: size() }).await.unwrap();
    site.is_caught("lacks writes");
}

#[tokio::test(start_paused = true)]
async fn a_merge_that_had_begun_is_no_plain_overlay_any_more() {
    let site = Site::new();
    site.over_remote().await;
    site.node(swap(Table::Merge(Local))).await.unwrap();
    sleep(Duration::from_millis(50)).await;
    site.world.restart_node(&host("c0"));
    // What the ledger says is right, and what was there before is not.
    site.node(log_in(E)).await.unwrap();
    site.node(NodeStep::CreateDevice { epoch: E, table: Table::Merge(Local), size: size() }).await.unwrap();
    site.is_well();
    site.node(NodeStep::RemoveDevice { force: true }).await.unwrap();
    site.node(NodeStep::CreateDevice { epoch: E, table: Table::Overlay(Remote), size: size() }).await.unwrap();
    site.is_caught("lacks writes");
}

#[tokio::test(start_paused = true)]
async fn an_overlay_that_has_the_only_writes_stays_and_a_copy_that_has_is_missed() {
    let site = Site::new();
    site.over_remote().await;
    site.node(NodeStep::RemoveOverlay).await.unwrap_err();
    site.node(NodeStep::RemoveDevice { force: true }).await.unwrap();
    site.node(NodeStep::RemoveOverlay).await.unwrap_err();
    site.is_well();
    let site = Site::new();
    site.local().await;
    site.node(NodeStep::DestroyLocal).await.unwrap_err();
    site.node(NodeStep::RemoveDevice { force: true }).await.unwrap();
    site.node(NodeStep::DestroyLocal).await.unwrap();
    site.is_caught("released a local copy");
}

#[tokio::test(start_paused = true)]
async fn zfs_protects_nothing_that_is_in_use_but_what_was_written() {
    let site = Site::new();
    site.local().await;
    // The guest's copy still takes streams: only what was written since stands against one.
    let s3 = SnapshotId(Uuid::from_u128(13));
    site.nas(NasStep::TakeSnapshot { snapshot: s3 }).await.unwrap();
    site.nas(send(Some(S2), s3, None)).await.unwrap_err();
    site.node(NodeStep::SetReceives { epoch: None }).await.unwrap();
    let refused = site.nas(send(Some(S2), s3, None)).await.unwrap_err();
    assert!(refused.0.contains("does not take streams"), "{refused}");
    // A volume with snapshots is not destroyed under whoever has it, and keeps them.
    site.nas(NasStep::DestroyZvol).await.unwrap_err();
    assert_eq!(site.at_nas().await.zvol.known().unwrap().as_ref().unwrap().snapshots.len(), 3);
    site.is_well();
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_was_cut_goes_on_where_it_was() {
    let site = Site::new();
    site.mapped().await;
    site.write_all(0..15).await;
    site.nas(NasStep::TakeSnapshot { snapshot: S1 }).await.unwrap();
    site.nas(send(None, S1, None)).await.unwrap();
    sleep(Duration::from_millis(150)).await;
    site.world.cut(&host("c0"), true);
    assert!(matches!(site.streamed().await, JobState::Failed(_)));
    site.nas(NasStep::EndStream).await.unwrap();
    site.world.cut(&host("c0"), false);
    let before = site.world.streamed();
    assert!(before > 3, "{before}");
    let local = site.at_node().await.local.known().cloned().unwrap().unwrap();
    assert!(local.snapshots.is_empty(), "half a snapshot is none");
    site.nas(send(None, S1, local.resume)).await.unwrap();
    assert_eq!(site.streamed().await, JobState::Done);
    assert_eq!(site.world.streamed(), 16, "nothing is sent twice");
    site.is_well();
}

#[tokio::test(start_paused = true)]
async fn a_stream_ends_with_its_daemon_and_what_is_in_flight_arrives_late() {
    let site = Site::new();
    site.mapped().await;
    site.write_all(0..15).await;
    site.nas(NasStep::TakeSnapshot { snapshot: S1 }).await.unwrap();
    let (faults, _crashes) = Faults::new(&site.world, BTreeMap::new());
    let daemon = faults.nas(site.nas.clone());
    daemon.run(volume(), send(None, S1, None).into()).await.unwrap();
    sleep(Duration::from_millis(100)).await;
    drop(daemon);
    assert_eq!(site.at_nas().await.stream, None);
    let resume = site.at_node().await.local.known().cloned().unwrap().unwrap().resume;
    assert!(resume.is_some());
    let daemon = faults.nas(site.nas.clone());
    daemon.run(volume(), send(None, S1, resume).into()).await.unwrap();
    while site.at_nas().await.stream.unwrap().job.done < 10 << 16 {
        sleep(Duration::from_millis(5)).await;
    }
    drop(daemon);
    sleep(Duration::from_millis(200)).await;
    assert_eq!(site.at_node().await.local.known().cloned().unwrap().unwrap().snapshots.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_login_to_nothing_hangs_and_a_stranger_is_not_let_in() {
    let site = Site::new();
    site.nas(NasStep::CreateZvol { size: size() }).await.unwrap();
    let began = Instant::now();
    site.node(log_in(E)).await.unwrap_err();
    assert!(began.elapsed() > Duration::from_secs(120));
    site.nas(export(E, "c1")).await.unwrap();
    let refused = timeout(Duration::from_secs(5), site.node(log_in(E))).await.unwrap().unwrap_err();
    assert!(refused.0.contains("nobody"), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn a_new_epoch_locks_the_old_one_out_and_who_forgets_that_is_caught() {
    let site = Site::new();
    site.mapped().await;
    site.write_all([1]).await;
    site.nas(NasStep::Unexport { epoch: E }).await.unwrap();
    site.nas(export(Epoch(2), "c1")).await.unwrap();
    assert_eq!(site.write(2).await, Err(GuestError::Io), "after a while");
    site.is_well();
    let site = Site::new();
    site.mapped().await;
    site.nas(export(Epoch(2), "c1")).await.unwrap();
    site.write(2).await.unwrap();
    site.is_caught("two writers");
}

#[tokio::test(start_paused = true)]
async fn a_power_cut_loses_what_was_not_flushed_and_nothing_else() {
    let site = Site::new();
    site.mapped().await;
    site.write_all([1, 2]).await;
    site.write(3).await.unwrap();
    site.write(4).await.unwrap();
    site.world.restart_nas(&host("nas"));
    site.is_well();
    site.world.check_final(ID, None).unwrap();
    let held = timeout(Duration::from_secs(1), site.write(5)).await;
    assert!(held.is_err(), "its session waits for the target");
    site.nas(export(E, "c0")).await.unwrap();
    site.write(5).await.unwrap();
    site.is_well();
}

#[tokio::test(start_paused = true)]
async fn what_was_written_is_counted_late_and_at_once_by_a_snapshot() {
    let site = Site::new();
    site.local().await;
    site.node(NodeStep::TakeSnapshot { snapshot: SnapshotId(Uuid::from_u128(14)) }).await.unwrap();
    site.write(1).await.unwrap();
    let written = async || site.at_node().await.local.known().cloned().unwrap().unwrap().written;
    assert_eq!(written().await, 0);
    sleep(Duration::from_secs(6)).await;
    assert_eq!(written().await, 1 << 16);
}

#[tokio::test(start_paused = true)]
async fn a_merge_over_the_network_stops_for_good_at_an_error_until_it_is_loaded_anew() {
    let site = Site::new();
    site.copied().await;
    site.node(NodeStep::CreateOverlay { epoch: E, size: size() }).await.unwrap();
    site.node(swap(Table::Overlay(Remote))).await.unwrap();
    site.write_all([1, 2, 3, 4, 5, 6]).await;
    site.node(swap(Table::Merge(Remote))).await.unwrap();
    site.world.cut(&host("c0"), true);
    sleep(Duration::from_secs(70)).await;
    site.world.cut(&host("c0"), false);
    let merge = async || site.at_node().await.device.known().cloned().unwrap().unwrap().merge;
    assert_eq!(merge().await, None);
    site.node(swap(Table::Merge(Remote))).await.unwrap();
    assert!(merge().await.is_some());
    site.merged().await;
    site.node(NodeStep::FlushRemote).await.unwrap();
    site.node(swap(Table::Linear(Remote))).await.unwrap();
    site.world.check_final(ID, None).unwrap();
    site.is_well();
}

#[tokio::test(start_paused = true)]
async fn a_swap_that_was_cut_off_goes_on_as_it_was_when_it_is_told_to() {
    let site = Site::new();
    site.copied().await;
    site.node(NodeStep::CreateOverlay { epoch: E, size: size() }).await.unwrap();
    let (faults, _crashes) = Faults::new(&site.world, BTreeMap::from([(0, Fault::ErrorMid(2))]));
    let node = faults.node(&host("c0"));
    node.run(at_node(), swap(Table::Overlay(Remote)).into()).await.unwrap_err();
    let device = async || site.at_node().await.device.known().cloned().unwrap().unwrap();
    assert!(device().await.suspended && device().await.table == Ok(Table::Linear(Remote)));
    assert!(timeout(Duration::from_secs(1), site.write(1)).await.is_err(), "the guest waits");
    site.node(NodeStep::ResumeDevice).await.unwrap();
    assert!(!device().await.suspended && device().await.table == Ok(Table::Linear(Remote)));
    site.write(1).await.unwrap();
    site.is_well();
}

#[tokio::test(start_paused = true)]
async fn a_device_that_is_cut_off_does_not_wait_for_a_target_that_is_gone() {
    let site = Site::new();
    site.mapped().await;
    site.nas(NasStep::Unexport { epoch: E }).await.unwrap();
    sleep(Duration::from_secs(1)).await;
    assert!(site.world.with(|s| s.waits_for_nas(&host("c0"), ID)), "a write is under way");
    timeout(Duration::from_secs(1), site.node(NodeStep::RemoveDevice { force: true })).await.unwrap().unwrap();
    let left = site.at_node().await;
    assert_eq!((left.device.known(), left.session.known()), (Some(&None), Some(&None)));
    site.is_well();
}

#[tokio::test(start_paused = true)]
async fn an_overlay_that_ran_full_stays_so() {
    let site = Site::new();
    site.world.overlays_hold(Some(3));
    site.over_remote().await;
    let broken = async || site.at_node().await.device.known().cloned().unwrap().unwrap().broken.is_some();
    assert!(!broken().await);
    assert_eq!(site.write(7).await, Err(GuestError::Io));
    assert_eq!(site.write(2).await, Err(GuestError::Io), "nothing goes through it any more");
    site.world.restart_node(&host("c0"));
    site.node(log_in(E)).await.unwrap();
    site.node(NodeStep::CreateDevice { epoch: E, table: Table::Overlay(Remote), size: size() }).await.unwrap();
    assert!(broken().await && site.world.ran_full(&host("c0"), ID));
    site.world.overlays_hold(None);
    assert!(!broken().await);
    site.node(swap(Table::Merge(Local))).await.unwrap();
    site.merged().await;
    site.node(swap(Table::Linear(Local))).await.unwrap();
    site.is_well();
}
