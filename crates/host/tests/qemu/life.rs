//! Whole lives, without accidents.

use img_storage_host::NodeHost;
use img_storage_model::{
    Epoch, SnapshotId,
    attribute::Speed,
    messages::DeviceKind,
    nas::{NasLayer, qemu::NasStep},
    node::{
        JobState, Layer, StepResult,
        qemu::{Incremental, NodeStep},
    },
};

use crate::bed::{Bed, free_port, peer, snapshot};
use crate::writer::{History, Writer};

impl Bed {
    /// One write-back up to where both sides have it, and the NAS has verified it.
    pub async fn push(&self, push: SnapshotId, last: bool, full: bool) {
        let port = free_port();
        self.nas(NasStep::CreateIncoming { push }).await;
        self.nas(NasStep::ServeIncoming { push, peer: peer(), port }).await;
        self.node(NodeStep::FreezeBitmap { push }).await;
        if !last {
            self.node(NodeStep::InsertFleece).await;
        }
        self.node(NodeStep::OpenSource { full }).await;
        self.node(NodeStep::OpenIncoming { endpoint: self.endpoint(port, &push.to_string()) }).await;
        self.node(NodeStep::StartPush { push, full, speed: Speed::UNLIMITED }).await;
        let facts = self.until("sent", |q| q.push.as_ref().is_some_and(|(_, job)| job.state != JobState::Running)).await;
        assert_eq!(facts.push.as_ref().map(|(id, job)| (*id, job.state.clone())), Some((push, JobState::Done)));
        let s = facts.snapshotting;
        assert_eq!((s.fleece, s.source, s.incoming, s.leftovers), (!last, true, true, false));
        let StepResult::Digest { extents, digest, moved } = self.node(NodeStep::DigestPush { push, full }).await else {
            panic!("no digest")
        };
        eprintln!("moved {moved} bytes, {} ranges", extents.iter().len());
        let wrong = img_storage_model::messages::ContentDigest("0".repeat(64));
        let verify = |digest| NasStep::VerifyIncoming { push, extents: extents.clone(), digest };
        assert_eq!(self.nas(verify(wrong)).await, StepResult::Verified(false));
        assert_eq!(self.nas(verify(digest)).await, StepResult::Verified(true));
    }

    /// What follows a verified write-back on both sides.
    pub async fn accept(&self, push: SnapshotId, before: Incremental) {
        self.nas(NasStep::SealIncoming { push }).await;
        assert_eq!(self.nas_facts().await.pending.known(), Some(&Some(push)));
        self.nas(NasStep::CommitPending { push }).await;
        self.nas(NasStep::RemovePending { push }).await;
        self.node(NodeStep::EndPush).await;
        self.node(NodeStep::DropBitmap { since: before }).await;
        let facts = self.qsd().await;
        assert_eq!(facts.snapshotting, Default::default());
        assert_eq!(facts.bitmaps.iter().map(|b| b.since).collect::<Vec<_>>(), [Incremental::Snapshot(push)]);
    }

    pub fn read_disk(&self) -> Vec<u8> {
        std::fs::read(self.disk()).expect("the NAS's file")
    }

    pub fn read_local(&self) -> Vec<u8> {
        std::fs::read(self.local()).expect("the local file")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn out_and_home_again() {
    let bed = Bed::new().await;
    bed.map().await;
    let facts = bed.qsd().await;
    assert_eq!((facts.epoch, facts.top, facts.remote.as_deref(), facts.guest), (Epoch(1), Layer::Remote, Some("e1"), true));
    let writer = Writer::start(&bed.guest_socket(), History::default()).await;
    writer.writes(500).await;
    writer.pause();
    bed.copy_to_ready().await;
    eprintln!("pause while copying: {:?}", writer.pause());
    bed.switch().await;
    eprintln!("pause at the switch: {:?}", writer.pause());
    writer.writes(1000).await;

    bed.push(snapshot(1), false, false).await;
    writer.writes(500).await;
    bed.accept(snapshot(1), Incremental::Pivot).await;
    eprintln!("pause during the push: {:?}", writer.pause());
    let first = bed.read_disk();
    bed.push(snapshot(2), false, false).await;
    bed.accept(snapshot(2), Incremental::Snapshot(snapshot(1))).await;
    let second = bed.read_disk();

    // One that fails: the NAS's side goes away, and nothing is lost.
    let push = snapshot(3);
    bed.nas(NasStep::CreateIncoming { push }).await;
    bed.node(NodeStep::FreezeBitmap { push }).await;
    bed.node(NodeStep::InsertFleece).await;
    bed.node(NodeStep::OpenSource { full: false }).await;
    writer.writes(300).await;
    bed.node(NodeStep::EndPush).await;
    bed.node(NodeStep::RevertBitmap).await;
    bed.nas(NasStep::DiscardIncoming).await;
    let bitmaps: Vec<_> = bed.qsd().await.bitmaps.iter().map(|b| (b.since, b.recording)).collect();
    assert_eq!(bitmaps, [(Incremental::Snapshot(snapshot(2)), true)]);

    let history = writer.stop().await;
    assert_eq!(history.error, None);
    let moment = history.check_moment("first push", &first, 1500);
    history.check_moment("second push", &second, moment);
    bed.node(NodeStep::RemoveGuest { force: false }).await;
    bed.push(snapshot(4), true, false).await;
    bed.accept(snapshot(4), Incremental::Snapshot(snapshot(2))).await;
    history.check_all("local", &bed.read_local());
    history.check_all("NAS", &bed.read_disk());
    assert_eq!(bed.qsd().await.bitmaps[0].dirty, 0);
    bed.node(NodeStep::Stop { force: false }).await;
    bed.node(NodeStep::RemoveLocal).await;
    let facts = bed.node_facts().await;
    assert_eq!((facts.qsd.known(), facts.local.known()), (Some(&None), Some(&None)));
    bed.nas(NasStep::RemoveDisk).await;
    let facts = bed.nas_facts().await;
    assert_eq!((facts.disk.known(), facts.export.known(), facts.incoming.known()), (Some(&None), Some(&None), Some(&None)));
    assert_eq!(std::fs::read_dir(bed.dir.path().join("pool")).expect("pool").count(), 1, "the mark alone");
    assert_eq!(std::fs::read_dir(bed.dir.path().join("local")).expect("pool").count(), 1, "the mark alone");
}

#[tokio::test(flavor = "multi_thread")]
async fn back_onto_the_nas_under_the_guest() {
    let bed = Bed::new().await;
    bed.map().await;
    let writer = Writer::start(&bed.guest_socket(), History::default()).await;
    writer.writes(500).await;
    bed.copy_to_ready().await;
    bed.switch().await;
    writer.writes(1000).await;
    bed.push(snapshot(1), false, false).await;
    bed.accept(snapshot(1), Incremental::Pivot).await;
    let point = bed.read_disk();
    writer.writes(1000).await;
    writer.pause();

    bed.nas(NasStep::CreateOverlay { epoch: Epoch(1) }).await;
    bed.export(1, NasLayer::Overlay).await;
    assert_eq!(bed.nas_facts().await.export.known().cloned().flatten().map(|e| e.over), Some(NasLayer::Overlay));
    let endpoint = bed.endpoint(bed.port, "e1.back");
    bed.node(NodeStep::OpenBack { endpoint: endpoint.clone() }).await;
    // Once for nothing, and once to the end.
    bed.node(NodeStep::StartBack { full: false, speed: Speed::UNLIMITED }).await;
    bed.node(NodeStep::CancelBack).await;
    assert_eq!(bed.qsd().await.back, None);
    bed.node(NodeStep::OpenBack { endpoint }).await;
    assert_eq!(bed.qsd().await.back.as_deref(), Some("e1.back"));
    bed.node(NodeStep::StartBack { full: false, speed: Speed::UNLIMITED }).await;
    let is = |job: &Option<img_storage_model::node::Job>, state| job.as_ref().is_some_and(|j| j.state == state);
    bed.until("on both sides", |q| is(&q.back_mirror, JobState::Ready) && is(&q.back_fill, JobState::Done)).await;
    writer.writes(500).await;
    assert!(bed.read_disk() == point, "until the pivot the volume's file is the last snapshot");
    bed.node(NodeStep::CompleteBack).await;
    bed.until("pending", |q| is(&q.back_mirror, JobState::Pending)).await;
    bed.node(NodeStep::FinalizeBack).await;
    eprintln!("pause while coming back: {:?}", writer.pause());
    let facts = bed.qsd().await;
    assert_eq!((facts.top, facts.remote.as_deref(), facts.local), (Layer::Remote, Some("e1.back"), false));
    assert!(facts.bitmaps.is_empty() && facts.back.is_none() && facts.back_mirror.is_none() && facts.back_fill.is_none());
    bed.node(NodeStep::RemoveLocal).await;

    // The NAS folds the overlay into the file under the guest, and the guest moves over.
    bed.nas(NasStep::StartCommit).await;
    loop {
        let export = bed.nas_facts().await.export.known().cloned().flatten().expect("exported");
        if is(&export.commit, JobState::Ready) {
            break;
        }
        assert!(!matches!(export.commit.as_ref().map(|c| &c.state), Some(JobState::Failed(_)) | None), "{export:?}");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    bed.nas(NasStep::CompleteCommit).await;
    bed.nas(NasStep::FinalizeCommit).await;
    let export = bed.nas_facts().await.export.known().cloned().flatten().expect("exported");
    assert_eq!((export.over, export.commit), (NasLayer::Disk, None));
    writer.writes(300).await;
    bed.nas(NasStep::AddExport { name: "e1".into() }).await;
    bed.node(NodeStep::Reattach { endpoint: bed.endpoint(bed.port, "e1") }).await;
    assert_eq!(bed.qsd().await.remote.as_deref(), Some("e1"));
    bed.nas(NasStep::RemoveExport { name: "e1.back".into() }).await;
    bed.nas(NasStep::RemoveOverlay).await;
    writer.writes(300).await;
    eprintln!("pause while folding: {:?}", writer.pause());
    let history = writer.stop().await;
    assert_eq!(history.error, None);
    bed.node(NodeStep::RemoveGuest { force: false }).await;
    bed.node(NodeStep::Stop { force: false }).await;
    bed.nas(NasStep::StopExport).await;
    history.check_all("NAS", &bed.read_disk());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_is_not_wanted_any_more() {
    let bed = Bed::new().await;
    bed.map().await;
    let writer = Writer::start(&bed.guest_socket(), History::default()).await;
    writer.writes(200).await;
    bed.copy_to_ready().await;
    bed.node(NodeStep::CancelCopy).await;
    bed.node(NodeStep::RemoveLocal).await;
    bed.copy_to_ready().await;
    bed.node(NodeStep::CompleteCopy).await;
    bed.node(NodeStep::AddBitmap { since: Incremental::Pivot }).await;
    bed.node(NodeStep::CancelCopy).await;
    let facts = bed.qsd().await;
    assert_eq!((facts.top, facts.local, facts.copy, facts.bitmaps.len()), (Layer::Remote, false, None, 0));
    writer.writes(200).await;
    let history = writer.stop().await;
    assert_eq!(history.error, None);
    bed.node(NodeStep::Stop { force: true }).await;
    bed.nas(NasStep::StopExport).await;
    history.check_all("NAS", &bed.read_disk());
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_stay_out() {
    let bed = Bed::new().await;
    bed.map().await;
    let stranger = bed.node_named("node-1").await;
    let endpoint = Some(bed.endpoint(bed.port, "e1"));
    let start = NodeStep::Start { epoch: Epoch(1), over: Layer::Remote, endpoint };
    let error = stranger.carry_out(bed.volume.id, start).await.expect_err("kept out");
    eprintln!("{error}");
    let old = bed.endpoint(bed.port, "e0");
    let error = bed.try_node(NodeStep::Reattach { endpoint: old }).await.expect_err("no such export");
    eprintln!("{error}");
    // The guest did not notice, and the right way is still open.
    let writer = Writer::start(&bed.guest_socket(), History::default()).await;
    writer.writes(100).await;
    let history = writer.stop().await;
    assert_eq!(history.error, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_uses_a_device_is_named() {
    let bed = Bed::new().await;
    bed.map().await;
    assert_eq!(bed.node.users(bed.at_node()).await.expect("users"), []);
    let device = bed.node.device(&bed.at_node(), DeviceKind::Nbd);
    let mut guest = std::process::Command::new("qemu-img")
        .args(["bench", "-w", "-f", "raw", "-c", "100000000", &device])
        .stdout(std::process::Stdio::null())
        .spawn()
        .expect("qemu-img runs");
    let mut users = Vec::new();
    for _ in 0..500 {
        users = bed.node.users(bed.at_node()).await.expect("users");
        if !users.is_empty() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert_eq!((users.len(), users[0].pid, users[0].command.as_deref()), (1, Some(guest.id()), Some("qemu-img")));
    let error = bed.try_node(NodeStep::RemoveGuest { force: false }).await.expect_err("in use").to_string();
    assert!(error.contains("qemu-img pid"), "{error}");
    assert!(bed.try_node(NodeStep::Stop { force: false }).await.is_err());
    bed.node(NodeStep::RemoveGuest { force: true }).await;
    assert!(!guest.wait().expect("ends").success());
    bed.node(NodeStep::AddGuest { device: DeviceKind::VhostUserBlk }).await;
    assert!(std::path::Path::new(&bed.node.device(&bed.at_node(), DeviceKind::VhostUserBlk)).exists());
    bed.node(NodeStep::Stop { force: false }).await;
}
