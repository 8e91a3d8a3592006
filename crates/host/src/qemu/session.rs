//! One connection to a storage daemon and the few verbs the steps are made of. Each looks before it acts.

use std::time::Duration;

use img_storage_model::node::{Job, JobState};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::graph::{self, Graph};
use crate::HostError;
use crate::qmp::{Qmp, QmpError, Version};
use crate::qsd::{Found, Qsd};

/// For one command. Some wait until requests in flight have ended, which may wait for a NAS.
const ANSWER: Duration = Duration::from_secs(70);
/// For a job to reach a state that needs no more data to move.
const TURN: Duration = Duration::from_secs(60);
const TICK: Duration = Duration::from_millis(1);

impl From<QmpError> for HostError {
    fn from(error: QmpError) -> Self {
        HostError(error.to_string())
    }
}

pub(super) struct Session {
    qmp: Qmp,
}

impl Session {
    /// Connects to a daemon that must run.
    pub(super) async fn with(qsd: &Qsd) -> Result<Self, HostError> {
        Self::find(qsd).await?.ok_or_else(|| HostError(format!("no storage daemon runs in {}", qsd.dir().display())))
    }

    /// Connects to a daemon that may be gone.
    pub(super) async fn find(qsd: &Qsd) -> Result<Option<Self>, HostError> {
        match qsd.find().await {
            Found::Running(qmp) => Ok(Some(Self { qmp })),
            Found::Gone => Ok(None),
            Found::Unknown(why) => Err(HostError(why)),
        }
    }

    /// Whether a mirror can begin in the background and turn to writing on both sides later (QEMU 8.2).
    pub(super) fn mirrors_can_change(&self) -> bool {
        self.qmp.version() >= Version { major: 8, minor: 2, micro: 0 }
    }

    pub(super) async fn call(&mut self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        let begin = Instant::now();
        let answer = self.qmp.execute(command, arguments, ANSWER).await;
        tracing::trace!(command, took = ?begin.elapsed(), ok = answer.is_ok(), "qmp");
        answer
    }

    pub(super) async fn graph(&mut self) -> Result<Graph, HostError> {
        let answers = [
            self.call("x-debug-query-block-graph", json!({})).await?,
            self.call("query-named-block-nodes", json!({"flat": true})).await?,
            self.call("query-jobs", json!({})).await?,
            self.call("query-block-jobs", json!({})).await?,
            self.call("query-block-exports", json!({})).await?,
            self.call("qom-list", json!({"path": "/objects"})).await?,
        ];
        Graph::read(&answers).map_err(|error| HostError(error.to_string()))
    }

    /// Adds a node unless it is there.
    pub(super) async fn add(&mut self, graph: &Graph, node: &str, mut options: Value) -> Result<(), QmpError> {
        if graph.has(node) {
            return Ok(());
        }
        options["node-name"] = node.into();
        self.call("blockdev-add", options).await.map(drop)
    }

    /// Removes a node if it is there.
    pub(super) async fn remove(&mut self, graph: &Graph, node: &str) -> Result<(), QmpError> {
        if graph.has(node) {
            self.call("blockdev-del", json!({"node-name": node})).await?;
        }
        Ok(())
    }

    /// Removes an object if it is there.
    pub(super) async fn remove_object(&mut self, graph: &Graph, id: &str) -> Result<(), QmpError> {
        if graph.objects.iter().any(|object| object == id) {
            self.call("object-del", json!({"id": id})).await?;
        }
        Ok(())
    }

    /// Removes a bitmap if it is there.
    pub(super) async fn remove_bitmap(&mut self, graph: &Graph, node: &str, bitmap: &str) -> Result<(), QmpError> {
        if graph.has_bitmap(node, bitmap) {
            self.call("block-dirty-bitmap-remove", json!({"node": node, "name": bitmap})).await?;
        }
        Ok(())
    }

    pub(super) async fn transaction(&mut self, actions: Vec<(&str, Value)>) -> Result<(), QmpError> {
        let actions: Vec<Value> = actions.into_iter().map(|(kind, data)| json!({"type": kind, "data": data})).collect();
        self.call("transaction", json!({"actions": actions})).await.map(drop)
    }

    /// Removes an export, cutting clients off, and waits until it is gone.
    pub(super) async fn remove_export(&mut self, id: &str) -> Result<(), HostError> {
        let end = Instant::now() + TURN;
        let mut asked = false;
        loop {
            let exports = self.call("query-block-exports", json!({})).await?;
            let found = exports.as_array().into_iter().flatten().find(|export| export["id"] == id);
            let Some(found) = found else { return Ok(()) };
            if !asked && found["shutting-down"] != true {
                self.call("block-export-del", json!({"id": id, "mode": "hard"})).await?;
                asked = true;
                continue;
            }
            if Instant::now() > end {
                return Err(HostError(format!("the export {id} is not gone after {TURN:?}: its clients' requests do not end")));
            }
            sleep(TICK).await;
        }
    }

    /// A job as it is now.
    pub(super) async fn job(&mut self, id: &str) -> Result<Option<Job>, HostError> {
        let jobs = self.call("query-jobs", json!({})).await?;
        let block_jobs = self.call("query-block-jobs", json!({})).await?;
        let mut jobs = graph::read_jobs(&jobs, &block_jobs).map_err(|error| HostError(error.to_string()))?;
        Ok(jobs.remove(id))
    }

    /// Waits until a job is over; `None` when it is not there (any more).
    async fn over(&mut self, id: &str) -> Result<Option<JobState>, HostError> {
        let end = Instant::now() + TURN;
        loop {
            match self.job(id).await?.map(|job| job.state) {
                Some(state @ (JobState::Done | JobState::Failed(_))) => return Ok(Some(state)),
                None => return Ok(None),
                Some(state) if Instant::now() > end => {
                    return Err(HostError(format!("the job {id} is still {state:?} after {TURN:?}")));
                }
                Some(_) => sleep(TICK).await,
            }
        }
    }

    /// Lets a job go on at another speed (0: no limit), unless it is not there or over.
    pub(super) async fn set_speed(&mut self, id: &str, speed: u64) -> Result<(), HostError> {
        match self.job(id).await? {
            Some(job) if !matches!(job.state, JobState::Done | JobState::Failed(_)) && job.speed != speed => {}
            _ => return Ok(()),
        }
        match self.call("block-job-set-speed", json!({"device": id, "speed": speed})).await {
            // It may have ended just now.
            Err(error) if !error.is_refusal() => Err(error.into()),
            _ => Ok(()),
        }
    }

    pub(super) async fn dismiss(&mut self, id: &str) -> Result<(), QmpError> {
        self.call("job-dismiss", json!({"id": id})).await.map(drop)
    }

    /// Lets a pending job take effect, waits until it is over and dismisses it. Nothing is to be done when it is not there.
    pub(super) async fn finalize(&mut self, id: &str) -> Result<(), HostError> {
        match self.job(id).await?.map(|job| job.state) {
            None => return Ok(()),
            Some(JobState::Pending) => drop(self.call("job-finalize", json!({"id": id})).await?),
            Some(JobState::Done) => {}
            Some(state) => return Err(HostError(format!("the job {id} is {state:?} and cannot be finalized"))),
        }
        match self.over(id).await? {
            Some(JobState::Failed(why)) => {
                self.dismiss(id).await?;
                Err(HostError(format!("the job {id} failed at its end: {why}")))
            }
            Some(_) => Ok(self.dismiss(id).await?),
            None => Ok(()),
        }
    }

    /// Ends a job by force and dismisses it. For mirrors see [`Session::abandon`].
    pub(super) async fn cancel(&mut self, id: &str) -> Result<(), HostError> {
        match self.job(id).await?.map(|job| job.state) {
            None => return Ok(()),
            Some(JobState::Done | JobState::Failed(_)) => {}
            Some(_) => match self.call("job-cancel", json!({"id": id})).await {
                // It may have ended by itself just now.
                Ok(_) | Err(QmpError::Refused { .. }) => {}
                Err(error) => return Err(error.into()),
            },
        }
        if self.over(id).await?.is_some() {
            self.dismiss(id).await?;
        }
        Ok(())
    }

    /// Ends a mirror that has not taken effect, whatever its state, and dismisses it.
    ///
    /// A mirror that writes on both sides must not be cancelled by force while a client's write is under way: QEMU (7.2 and 10.0)
    /// then writes into memory it has freed, and mostly dies of it. One that has caught up can be told to end without effect,
    /// which lets writes finish; one that has not must catch up first, as fast as it can. `by_force`: there can be no such write.
    pub(super) async fn abandon(&mut self, id: &str, by_force: bool) -> Result<(), HostError> {
        let end = Instant::now() + TURN;
        if !by_force {
            self.set_speed(id, 0).await?;
        }
        loop {
            match self.job(id).await?.map(|job| job.state) {
                None => return Ok(()),
                Some(JobState::Done | JobState::Failed(_)) => return Ok(self.dismiss(id).await?),
                // Nothing is under way: the client is held.
                Some(JobState::Pending) => return self.cancel(id).await,
                Some(_) if by_force => return self.cancel(id).await,
                Some(JobState::Ready) => {
                    match self.call("block-job-cancel", json!({"device": id, "force": false})).await {
                        // While it stands still for a moment it takes no orders.
                        Err(error) if !error.is_refusal() => return Err(error.into()),
                        _ => {}
                    }
                }
                Some(JobState::Running) => {}
                Some(JobState::Paused(why)) => {
                    let hint = "it is given up when it can go on, or when no guest is connected";
                    return Err(HostError(format!("the job {id} stands still ({why}) and cannot be cancelled: {hint}")));
                }
            }
            if Instant::now() > end {
                let hint = "it is given up when it has, or when no guest is connected";
                return Err(HostError(format!("the job {id} has not caught up and cannot be cancelled before: {hint}")));
            }
            sleep(TICK).await;
        }
    }

    /// As [`Session::abandon`] without force, for a mirror whose target has begun to answer again: it may stop on what had failed
    /// before, and is then sent on.
    pub(super) async fn abandon_when_it_goes_on(&mut self, id: &str) -> Result<(), HostError> {
        let end = Instant::now() + TURN;
        loop {
            match self.job(id).await?.map(|job| job.state) {
                Some(JobState::Paused(_)) if Instant::now() < end => {
                    let resumed = self.call("block-job-resume", json!({"device": id})).await;
                    if let Err(error) = resumed
                        && !error.is_refusal()
                    {
                        return Err(error.into());
                    }
                    sleep(TICK * 20).await;
                }
                _ => match self.abandon(id, false).await {
                    Err(_) if Instant::now() < end => sleep(TICK * 20).await,
                    other => return other,
                },
            }
        }
    }

    /// Tells a mirror or commit that has caught up to complete, and waits until it is pending.
    pub(super) async fn complete(&mut self, id: &str) -> Result<(), HostError> {
        let end = Instant::now() + TURN;
        let mut asked = false;
        loop {
            match self.job(id).await?.map(|job| job.state) {
                Some(JobState::Pending | JobState::Done) => return Ok(()),
                Some(JobState::Failed(why)) => return Err(HostError(format!("the job {id} failed while completing: {why}"))),
                None => return Err(HostError(format!("there is no job {id}"))),
                Some(JobState::Ready) if !asked => match self.call("job-complete", json!({"id": id})).await {
                    Ok(_) => asked = true,
                    // While it stands still for a moment it takes no orders.
                    Err(error) if error.is_refusal() && Instant::now() < end => sleep(TICK).await,
                    Err(error) => return Err(error.into()),
                },
                Some(JobState::Ready | JobState::Running) if asked && Instant::now() < end => sleep(TICK).await,
                Some(state) => return Err(HostError(format!("the job {id} is {state:?} and does not complete"))),
            }
        }
    }
}
