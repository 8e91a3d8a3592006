//! A speed limit holds, can be changed while data moves, and keeps nobody from giving up.

use std::{os::unix::fs::FileExt, time::Duration};

use img_storage_model::{
    Epoch,
    attribute::Speed,
    nas::qemu::NasStep,
    node::{
        Job, JobState,
        qemu::{Incremental, Moving, NodeStep, QsdFacts},
    },
};
use tokio::time::{Instant, sleep};

use crate::bed::{Bed, SIZE, free_port, peer, snapshot};
use crate::writer::{History, Writer};

/// A sixteenth of the volume a second.
const LIMIT: u64 = SIZE / 16;
/// What is moved at once, and what a job may be ahead of its limit.
const AHEAD: u64 = 12 << 20;

fn limit() -> Speed {
    Speed::bytes_per_second(LIMIT).expect("a speed")
}

impl Bed {
    /// Fills the NAS's file: holes would be copied in no time.
    fn fill_disk(&self) {
        let file = std::fs::OpenOptions::new().write(true).open(self.disk()).expect("the NAS's file");
        let block: Vec<u8> = (0..1 << 20).map(|n: u32| (n % 251) as u8 | 1).collect();
        for at in (0..SIZE).step_by(block.len()) {
            file.write_all_at(&block, at).expect("written");
        }
        file.sync_all().expect("synced");
    }

    /// Looks on for a while: the job moves, and not faster than it may.
    async fn is_slow(&self, what: &str, begin: Instant, job: impl Fn(&QsdFacts) -> Option<Job>) {
        let mut seen = 0;
        for _ in 0..8 {
            sleep(Duration::from_millis(200)).await;
            let job = job(&self.qsd().await).expect("the job");
            let most = LIMIT * (begin.elapsed().as_millis() as u64) / 1000 + AHEAD;
            assert!(job.done <= most, "{what}: {} bytes are done, {most} may be", job.done);
            assert!(job.done >= seen && job.state == JobState::Running && job.speed == LIMIT, "{what}: {job:?}");
            seen = job.done;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_holds_for_copy_push_and_fill() {
    let bed = Bed::new().await;
    bed.map().await;
    bed.fill_disk();
    bed.node(NodeStep::CreateLocal { epoch: Epoch(1), size: crate::bed::size() }).await;
    bed.node(NodeStep::OpenLocal).await;
    let begin = Instant::now();
    bed.node(NodeStep::StartCopy { speed: limit() }).await;
    bed.is_slow("the copy", begin, |q| q.copy.clone()).await;
    bed.node(NodeStep::SetSpeed { job: Moving::Copy, speed: Speed::UNLIMITED }).await;
    bed.until("copied", |q| q.copy.as_ref().is_some_and(|c| c.state == JobState::Ready && c.speed == 0)).await;
    bed.node(NodeStep::ReserveLocal).await;
    bed.switch().await;

    let (push, port) = (snapshot(1), free_port());
    bed.nas(NasStep::CreateIncoming { push }).await;
    bed.nas(NasStep::ServeIncoming { push, peer: peer(), port }).await;
    bed.node(NodeStep::FreezeBitmap { push }).await;
    bed.node(NodeStep::InsertFleece).await;
    bed.node(NodeStep::OpenSource { full: true }).await;
    bed.node(NodeStep::OpenIncoming { endpoint: bed.endpoint(port, &push.to_string()) }).await;
    let begin = Instant::now();
    bed.node(NodeStep::StartPush { push, full: true, speed: limit() }).await;
    bed.is_slow("the write-back", begin, |q| q.push.as_ref().map(|(_, job)| job.clone())).await;
    bed.node(NodeStep::SetSpeed { job: Moving::Push, speed: Speed::UNLIMITED }).await;
    bed.until("sent", |q| q.push.as_ref().is_some_and(|(_, job)| job.state == JobState::Done)).await;
    // Where nothing runs any more there is nothing to do.
    bed.node(NodeStep::SetSpeed { job: Moving::Push, speed: limit() }).await;
    bed.node(NodeStep::EndPush).await;
    bed.node(NodeStep::RevertBitmap).await;
    bed.nas(NasStep::DiscardIncoming).await;
    assert_eq!(bed.qsd().await.bitmaps.iter().map(|b| b.since).collect::<Vec<_>>(), [Incremental::Pivot]);

    bed.nas(NasStep::CreateOverlay { epoch: Epoch(1) }).await;
    bed.export(1, img_storage_model::nas::NasLayer::Overlay).await;
    bed.node(NodeStep::OpenBack { endpoint: bed.endpoint(bed.port, "e1.back") }).await;
    let begin = Instant::now();
    bed.node(NodeStep::StartBack { full: true, speed: limit() }).await;
    bed.is_slow("the fill", begin, |q| q.back_fill.clone()).await;
    bed.node(NodeStep::CancelBack).await;
    bed.node(NodeStep::Stop { force: true }).await;
}

/// At this speed it would take a quarter of an hour to catch up.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_copy_can_be_given_up_under_a_busy_guest() {
    let bed = Bed::new().await;
    bed.map().await;
    bed.fill_disk();
    let writer = Writer::start(&bed.guest_socket(), History::default()).await;
    writer.writes(50).await;
    bed.node(NodeStep::CreateLocal { epoch: Epoch(1), size: crate::bed::size() }).await;
    bed.node(NodeStep::OpenLocal).await;
    bed.node(NodeStep::StartCopy { speed: Speed::bytes_per_second(Speed::SLOWEST).expect("a speed") }).await;
    // Looking turns it to both sides, from where QEMU does not let it go before it has caught up.
    bed.until("moving", |q| q.copy.as_ref().is_some_and(|c| c.done > 0)).await;
    bed.qsd().await;
    writer.writes(200).await;
    bed.node(NodeStep::CancelCopy).await;
    assert_eq!(bed.qsd().await.copy, None);
    writer.writes(50).await;
    assert_eq!(writer.stop().await.error, None);
    bed.node(NodeStep::Stop { force: true }).await;
}
