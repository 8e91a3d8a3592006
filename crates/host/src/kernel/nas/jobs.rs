//! The streams that this daemon runs, one a volume. They end with it; what has arrived stays, and is gone on with.

use crate::{
    HostError,
    kernel::{
        marks,
        stream::{Peer, Streams},
    },
};
use img_storage_model::{
    Dataset, Epoch, SnapshotId, VolumeId,
    nas::kernel::{Stream, Way},
    node::{Job, JobState, StepResult},
    stream::{ResumeToken, Source},
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::task::AbortHandle;

/// Between what a stream goes.
#[derive(Clone, Debug)]
pub(super) struct Ends {
    pub(super) volume: VolumeId,
    pub(super) way: Way,
    pub(super) here: Dataset,
    pub(super) there: Dataset,
    pub(super) peer: Peer,
    pub(super) epoch: Epoch,
}

/// A stream to be.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) ends: Ends,
    pub(super) from: Option<SnapshotId>,
    pub(super) to: SnapshotId,
    pub(super) resume: Option<String>,
    pub(super) speed: u64,
}

/// A stream that is over sooner is not worth the question how long it will be.
const SOON: Duration = Duration::from_secs(1);

/// What is known of a stream.
struct Shown {
    job: Job,
    moved: u64,
    took_ms: u64,
}

struct Running {
    way: Way,
    to: SnapshotId,
    shown: Arc<Mutex<Shown>>,
    task: AbortHandle,
}

impl Drop for Running {
    fn drop(&mut self) {
        // Its programs die with it.
        self.task.abort();
    }
}

/// The streams of this daemon.
#[derive(Default)]
pub(super) struct Jobs(Mutex<BTreeMap<VolumeId, Running>>);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Jobs {
    pub(super) fn look(&self, volume: VolumeId) -> Option<Stream> {
        let running = lock(&self.0);
        let running = running.get(&volume)?;
        Some(Stream { way: running.way, to: running.to, job: lock(&running.shown).job.clone() })
    }

    /// Begins a stream; nothing to do when the same one is there.
    pub(super) fn begin(&self, streams: Streams, plan: Plan) -> Result<(), HostError> {
        let mut all = lock(&self.0);
        let (volume, way, to) = (plan.ends.volume, plan.ends.way, plan.to);
        if let Some(running) = all.get(&volume) {
            if running.way == way && running.to == to {
                return Ok(());
            }
            return Err(HostError(format!("a stream of {} is under way for this volume; end it first", running.to)));
        }
        let job = Job { state: JobState::Running, done: 0, total: 0, speed: plan.speed };
        let shown = Arc::new(Mutex::new(Shown { job, moved: 0, took_ms: 0 }));
        let task = tokio::spawn(run(streams, plan, Arc::clone(&shown))).abort_handle();
        all.insert(volume, Running { way, to, shown, task });
        Ok(())
    }

    pub(super) fn set_speed(&self, volume: VolumeId, speed: u64) {
        if let Some(running) = lock(&self.0).get(&volume) {
            lock(&running.shown).job.speed = speed;
        }
    }

    /// Ends a stream and forgets it; tells what it took when it was done.
    pub(super) fn end(&self, volume: VolumeId) -> StepResult {
        let ended = lock(&self.0).remove(&volume);
        let Some(running) = ended else { return StepResult::Done };
        let shown = lock(&running.shown);
        match shown.job.state {
            JobState::Done => StepResult::Streamed { moved: shown.moved, took_ms: shown.took_ms },
            _ => StepResult::Done,
        }
    }
}

async fn run(streams: Streams, plan: Plan, shown: Arc<Mutex<Shown>>) {
    let done = transfer(&streams, &plan, &shown).await;
    let mut shown = lock(&shown);
    match done {
        Ok((moved, took_ms)) => {
            (shown.moved, shown.took_ms) = (moved, took_ms);
            shown.job.state = JobState::Done;
        }
        Err(error) => shown.job.state = JobState::Failed(error.0),
    }
}

async fn transfer(streams: &Streams, plan: &Plan, shown: &Mutex<Shown>) -> Result<(u64, u64), HostError> {
    let Ends { volume, way, here, there, peer, epoch } = &plan.ends;
    let (source, target) = match way {
        Way::ToNode => (here, there),
        Way::FromNode => (there, here),
    };
    let to = marks::at(source, plan.to)?;
    let from = plan.from.map(|id| marks::at(source, id)).transpose()?;
    let what = Source::Snapshot { from: from.clone(), to: to.clone() };
    let resume = plan.resume.clone().map(ResumeToken::new).transpose().map_err(|why| HostError(why.to_string()))?;
    // Only to be shown, and not worth waiting for.
    let estimate = async {
        tokio::time::sleep(SOON).await;
        let total = match way {
            Way::ToNode => streams.local.estimate(&what).await,
            Way::FromNode => streams.estimate_pull(peer, *volume, &what).await,
        };
        let mut shown = lock(shown);
        shown.job.total = total.map_or(0, |total| total.max(shown.job.done));
    };
    let progress = |bytes| {
        let mut shown = lock(shown);
        shown.job.done = bytes;
        // How long it is is not known before it was asked.
        if shown.job.total > 0 {
            shown.job.total = shown.job.total.max(bytes);
        }
    };
    let stream = async {
        let what = (from.as_ref(), &to, resume);
        match way {
            Way::ToNode => streams.push(peer, (*volume, *epoch), what, target, progress).await,
            Way::FromNode => streams.pull(peer, *volume, what, target, progress).await,
        }
    };
    tokio::pin!(stream);
    let moved = tokio::select! {
        moved = &mut stream => moved,
        () = estimate => stream.await,
    }?;
    if let Some(discarded) = &moved.discarded {
        tracing::warn!(%volume, "{discarded}");
    }
    Ok((moved.bytes, u64::try_from(moved.took.as_millis()).unwrap_or(u64::MAX)))
}
