//! `kill -9` in every phase, under a guest that checks every block.

use std::time::Duration;

use img_storage_model::{
    Epoch,
    attribute::Speed,
    messages::DeviceKind,
    nas::{NasLayer, qemu::NasStep},
    node::{
        JobState, Layer, StepResult,
        qemu::{Incremental, NodeStep},
    },
};

use crate::bed::{Bed, free_port, peer, size, snapshot};
use crate::writer::{History, Writer};

impl Bed {
    async fn start_over(&self, over: Layer) {
        let endpoint = (over == Layer::Remote).then(|| self.endpoint(self.port, "e1"));
        self.node(NodeStep::Start { epoch: Epoch(1), over, endpoint }).await;
        self.node(NodeStep::AddGuest { device: DeviceKind::Nbd }).await;
    }

    /// Kills the node's storage daemon; what the guest has been told until then.
    async fn node_dies(&self, writer: Writer) -> History {
        self.kill("run", "");
        let mut history = writer.stop().await;
        assert!(history.error.take().is_some(), "the guest noticed");
        let facts = self.node_facts().await;
        assert_eq!(facts.qsd.known(), Some(&None));
        history
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_nodes_daemon_dies_before_the_pivot() {
    let bed = Bed::new().await;
    bed.map().await;
    let writer = Writer::start(&bed.guest_socket(), History::default()).await;
    writer.writes(300).await;
    let history = bed.node_dies(writer).await;
    history.check_all("NAS, remote", &bed.read_disk());

    bed.start_over(Layer::Remote).await;
    let writer = Writer::start(&bed.guest_socket(), history).await;
    bed.node(NodeStep::CreateLocal { epoch: Epoch(1), size: size() }).await;
    bed.node(NodeStep::OpenLocal).await;
    bed.node(NodeStep::StartCopy { speed: Speed::UNLIMITED }).await;
    writer.writes(50).await;
    let history = bed.node_dies(writer).await;
    history.check_all("NAS, copying", &bed.read_disk());

    bed.node(NodeStep::RemoveLocal).await;
    bed.start_over(Layer::Remote).await;
    let writer = Writer::start(&bed.guest_socket(), history).await;
    bed.copy_to_ready().await;
    writer.writes(200).await;
    let history = bed.node_dies(writer).await;
    history.check_all("NAS, ready", &bed.read_disk());
    history.check_all("local, ready", &bed.read_local());

    bed.node(NodeStep::RemoveLocal).await;
    bed.start_over(Layer::Remote).await;
    let writer = Writer::start(&bed.guest_socket(), history).await;
    bed.copy_to_ready().await;
    bed.node(NodeStep::CompleteCopy).await;
    bed.node(NodeStep::AddBitmap { since: Incremental::Pivot }).await;
    let history = bed.node_dies(writer).await;
    history.check_all("NAS, pending", &bed.read_disk());
    history.check_all("local, pending", &bed.read_local());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_nodes_daemon_dies_after_the_pivot() {
    let bed = Bed::new().await;
    let writer = bed.map_local().await;
    let history = bed.node_dies(writer).await;
    history.check_all("local", &bed.read_local());
    bed.start_over(Layer::Local).await;
    assert!(bed.qsd().await.bitmaps.is_empty());
    bed.node(NodeStep::AddBitmap { since: Incremental::Unknown }).await;
    let writer = Writer::start(&bed.guest_socket(), history).await;
    // In the middle of a push, with all its pieces in place.
    let push = snapshot(1);
    bed.nas(NasStep::CreateIncoming { push }).await;
    bed.node(NodeStep::FreezeBitmap { push }).await;
    bed.node(NodeStep::InsertFleece).await;
    writer.writes(100).await;
    let history = bed.node_dies(writer).await;
    history.check_all("local, pushing", &bed.read_local());
    bed.start_over(Layer::Local).await;
    assert!(bed.qsd().await.snapshotting.leftovers, "the scratch file is seen");
    bed.node(NodeStep::EndPush).await;
    assert_eq!(bed.qsd().await.snapshotting, Default::default());
    bed.nas(NasStep::DiscardIncoming).await;

    bed.node(NodeStep::AddBitmap { since: Incremental::Unknown }).await;
    let writer = Writer::start(&bed.guest_socket(), history).await;
    writer.writes(100).await;
    bed.push(snapshot(2), false, true).await;
    bed.accept(snapshot(2), Incremental::Unknown).await;
    writer.writes(100).await;
    let disk = bed.read_disk();
    let history = writer.stop().await;
    assert_eq!(history.error, None);
    history.check_moment("full push", &disk, 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_nas_dies_and_comes_back_while_the_guest_works_on_it() {
    let bed = Bed::new().await;
    bed.map().await;
    let writer = Writer::start(&bed.guest_socket(), History::default()).await;
    writer.writes(300).await;
    for copying in [false, true] {
        if copying {
            bed.node(NodeStep::CreateLocal { epoch: Epoch(1), size: size() }).await;
            bed.node(NodeStep::OpenLocal).await;
            bed.node(NodeStep::StartCopy { speed: Speed::UNLIMITED }).await;
        }
        bed.kill("nas", ".x");
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(bed.nas_facts().await.export.known(), Some(&None));
        bed.export(1, NasLayer::Disk).await;
        writer.writes(300).await;
        eprintln!("the guest waited {:?}", writer.pause());
    }
    let facts = bed.until("ready or stopped", |q| q.copy.as_ref().is_some_and(|copy| !matches!(copy.state, JobState::Running)));
    let state = facts.await.copy.map(|copy| copy.state);
    eprintln!("the copy is {state:?}");
    if matches!(state, Some(JobState::Paused(_))) {
        bed.node(NodeStep::ResumeCopy).await;
    }
    bed.until("copied", |q| q.copy.as_ref().is_some_and(|copy| copy.state == JobState::Ready)).await;
    bed.switch().await;
    writer.writes(100).await;
    let history = writer.stop().await;
    assert_eq!(history.error, None);
    history.check_all("local", &bed.read_local());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_nas_dies_during_a_push() {
    let bed = Bed::new().await;
    let writer = bed.map_local().await;
    writer.pause();
    let push = snapshot(1);
    let port = free_port();
    bed.nas(NasStep::CreateIncoming { push }).await;
    bed.nas(NasStep::ServeIncoming { push, peer: peer(), port }).await;
    bed.node(NodeStep::FreezeBitmap { push }).await;
    bed.node(NodeStep::InsertFleece).await;
    bed.node(NodeStep::OpenSource { full: false }).await;
    bed.node(NodeStep::OpenIncoming { endpoint: bed.endpoint(port, &push.to_string()) }).await;
    bed.kill("nas", ".i");
    bed.node(NodeStep::StartPush { push, full: false, speed: Speed::UNLIMITED }).await;
    bed.until("failed", |q| q.push.as_ref().is_some_and(|(_, job)| matches!(job.state, JobState::Failed(_)))).await;
    assert!(bed.try_node(NodeStep::DigestPush { push, full: false }).await.is_err());
    bed.node(NodeStep::EndPush).await;
    bed.node(NodeStep::RevertBitmap).await;
    bed.nas(NasStep::DiscardIncoming).await;
    bed.push(snapshot(2), false, false).await;
    bed.nas(NasStep::SealIncoming { push: snapshot(2) }).await;
    // A commit that is cut off is done again.
    for _ in 0..3 {
        let commit = bed.try_nas(NasStep::CommitPending { push: snapshot(2) });
        let _ = tokio::time::timeout(Duration::from_millis(15), commit).await;
    }
    bed.accept(snapshot(2), Incremental::Pivot).await;
    let disk = bed.read_disk();
    writer.writes(100).await;
    eprintln!("pause: {:?}", writer.pause());
    let history = writer.stop().await;
    assert_eq!(history.error, None);
    history.check_moment("NAS", &disk, 600);
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_are_given_up_under_a_busy_guest() {
    let bed = Bed::new().await;
    bed.map().await;
    let writer = Writer::start(&bed.guest_socket(), History::default()).await;
    // Before 8.2 a copy under such a guest crawls, and is given up when it has caught up.
    let rounds = if std::env::var_os("IMG_STORAGE_TEST_QEMU").is_some() { 3 } else { 12 };
    for round in 0..rounds {
        bed.node(NodeStep::CreateLocal { epoch: Epoch(1), size: size() }).await;
        bed.node(NodeStep::OpenLocal).await;
        bed.node(NodeStep::StartCopy { speed: Speed::UNLIMITED }).await;
        if round % 3 == 1 {
            writer.writes(30).await;
            let _ = bed.qsd().await;
        } else if round % 3 == 2 {
            bed.until("copied", |q| q.copy.as_ref().is_some_and(|copy| copy.state == JobState::Ready)).await;
        }
        bed.node(NodeStep::CancelCopy).await;
        bed.node(NodeStep::RemoveLocal).await;
        writer.writes(10).await;
    }
    let history = writer.stop().await;
    assert_eq!(history.error, None);
    bed.node(NodeStep::Stop { force: true }).await;
    bed.nas(NasStep::StopExport).await;
    history.check_all("NAS", &bed.read_disk());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_nas_dies_while_the_guest_comes_back() {
    let bed = Bed::new().await;
    let writer = bed.map_local().await;
    bed.push(snapshot(1), false, false).await;
    bed.accept(snapshot(1), Incremental::Pivot).await;
    writer.writes(100).await;
    for round in 0..4 {
        bed.back_to_ready().await;
        if round % 2 == 0 {
            bed.kill("nas", ".x");
            writer.writes(50).await;
            let failed = |q: &img_storage_model::node::qemu::QsdFacts| {
                q.back_mirror.as_ref().is_some_and(|job| matches!(job.state, JobState::Failed(_)))
            };
            bed.until("seen as failed", failed).await;
        }
        bed.node(NodeStep::CancelBack).await;
        let facts = bed.qsd().await;
        assert_eq!((facts.top, facts.back, facts.back_mirror, facts.back_fill), (Layer::Local, None, None, None));
        bed.nas(NasStep::StopExport).await;
        bed.nas(NasStep::RemoveOverlay).await;
        writer.writes(50).await;
    }
    bed.push(snapshot(2), false, false).await;
    bed.accept(snapshot(2), Incremental::Snapshot(snapshot(1))).await;
    let disk = bed.read_disk();
    let history = writer.stop().await;
    assert_eq!(history.error, None);
    history.check_moment("NAS", &disk, 700);
    history.check_all("local", &bed.read_local());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_nas_dies_while_it_folds_the_overlay_in() {
    let bed = Bed::new().await;
    let writer = bed.map_local().await;
    bed.push(snapshot(1), false, false).await;
    bed.accept(snapshot(1), Incremental::Pivot).await;
    bed.back_to_ready().await;
    bed.node(NodeStep::CompleteBack).await;
    bed.node(NodeStep::FinalizeBack).await;
    bed.node(NodeStep::RemoveLocal).await;
    writer.writes(100).await;
    let stages: [&[NasStep]; 3] = [&[], &[NasStep::StartCommit], &[NasStep::StartCommit, NasStep::CompleteCommit]];
    for steps in stages {
        for step in steps {
            if *step == NasStep::CompleteCommit {
                let caught_up = async || {
                    let export = bed.nas_facts().await.export.known().cloned().flatten();
                    export.and_then(|e| e.commit).is_some_and(|c| c.state == JobState::Ready)
                };
                while !caught_up().await {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
            bed.nas(step.clone()).await;
        }
        bed.kill("nas", ".x");
        bed.export(1, NasLayer::Overlay).await;
        writer.writes(100).await;
    }
    let history = writer.stop().await;
    assert_eq!(history.error, None);
    bed.node(NodeStep::Stop { force: true }).await;
    bed.nas(NasStep::StopExport).await;
    // The overlay is still the newest; a new export shows what is in it.
    bed.export(1, NasLayer::Overlay).await;
    let endpoint = Some(bed.endpoint(bed.port, "e1.back"));
    bed.node(NodeStep::Start { epoch: Epoch(1), over: Layer::Remote, endpoint }).await;
    bed.node(NodeStep::AddGuest { device: DeviceKind::Nbd }).await;
    let reader =
        img_storage_host::nbd::Nbd::unix(&bed.guest_socket(), "disk", &[], Duration::from_secs(10)).await.expect("reads");
    let disk = reader.read(0, 32 << 20).await.expect("reads");
    let rest = reader.read(32 << 20, 32 << 20).await.expect("reads");
    history.check_all("overlay", &[disk, rest].concat());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_the_way_stays() {
    let bed = Bed::new().await;
    let stranger = bed.dir.path().join("pool/vol1");
    std::fs::create_dir(&stranger).expect("directory");
    std::fs::write(stranger.join("disk.raw"), "precious").expect("write");
    assert_eq!(bed.nas_facts().await.disk.known(), Some(&None));
    let error = bed.try_nas(NasStep::CreateDisk { size: size() }).await.expect_err("refused").to_string();
    assert!(error.contains("in the way"), "{error}");
    bed.nas(NasStep::RemoveDisk).await;
    for step in [NasStep::GrowDisk { size: size() }, NasStep::SyncDisk, NasStep::CreateOverlay { epoch: Epoch(1) }] {
        assert!(bed.try_nas(step).await.is_err());
    }
    assert_eq!(std::fs::read_to_string(stranger.join("disk.raw")).expect("read"), "precious");

    let local = bed.local();
    std::fs::create_dir(local.parent().expect("a directory")).expect("directory");
    std::fs::write(&local, "precious").expect("write");
    assert!(bed.node.look(bed.volume.id).await.local.known().is_none(), "not taken for absent");
    assert!(bed.try_node(NodeStep::CreateLocal { epoch: Epoch(1), size: size() }).await.is_err());
    assert!(bed.try_node(NodeStep::RemoveLocal).await.is_err());
    assert_eq!(std::fs::read_to_string(&local).expect("read"), "precious");
    let much = img_storage_model::Size::exact(1 << 45).expect("size");
    std::fs::remove_dir_all(&stranger).expect("remove");
    let error = bed.try_nas(NasStep::CreateDisk { size: much }).await.expect_err("no room").to_string();
    assert!(error.contains("make room"), "{error}");
    let verified = bed.try_nas(NasStep::VerifyIncoming {
        push: snapshot(1),
        extents: Default::default(),
        digest: img_storage_model::messages::ContentDigest(String::new()),
    });
    assert!(!matches!(verified.await, Ok(StepResult::Verified(true))));
}
