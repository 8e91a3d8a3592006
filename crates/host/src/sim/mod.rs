//! A host in memory: the verbs of [`NasHost`](crate::NasHost) and [`NodeHost`](crate::NodeHost) on a [`World`] of blocks that
//! hold version numbers, so that the real daemons can be run through every failure in virtual time.
//!
//! Two planes side by side: what follows is the qemu plane's, `kernel` has the other's.
//!
//! Who owns what: `state` the NASes' files and processes, `graph` a node's block graph, `history` what guests wrote and were told,
//! `jobs` what moves by itself as time passes, `nas` and `node` the verbs, `guest` the guests' reads and writes, `trouble`
//! processes that die and networks that are cut, `faulty` the layer that makes verbs fail, hang and crash their daemon.
//!
//! The world checks the guarantees whenever contents change, not only at the end; what it finds is in [`World::violations`].
//! It loses what QEMU would lose, and no less: bitmaps and jobs go with their process, raw files keep every write
//! that was answered, and a write-back's file whose daemon was killed lacks blocks.
//!
//! Contents change only inside [`World::with`], which first lets time catch up with the jobs; nothing is spawned, so a run depends
//! on nothing but its seed and the runtime's (paused) clock.

mod faulty;
mod graph;
mod guest;
mod history;
mod jobs;
mod kernel;
mod nas;
mod nas_export;
mod nas_state;
mod node;
mod node_back;
mod node_push;
mod state;
#[cfg(test)]
mod tests;
mod trouble;

pub use faulty::{Crash, Effect, Fault, Faults, FaultyNas, FaultyNode};
pub use guest::GuestError;
pub use nas::SimNas;
pub use node::SimNode;

use crate::HostError;
use img_storage_model::{HostName, PoolName, VolumeId};
use state::State;
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{sync::Notify, time::Instant};

/// How long each part of a verb takes; a verb cut off between two parts leaves the first ones done.
pub const PART: Duration = Duration::from_millis(5);
/// How long a job takes for a block.
pub const BLOCK: Duration = Duration::from_millis(20);
/// How long a guest's request waits for an export that is away before it fails, as the real plane's `reconnect-delay`.
pub const RECONNECT: Duration = Duration::from_secs(60);

/// What a step answers.
type Done<T = ()> = Result<T, HostError>;

fn refuse<T>(why: impl Into<String>) -> Done<T> {
    Err(HostError(why.into()))
}

/// All hosts, their files, processes and network. Cheap to clone; every clone is the same world.
#[derive(Clone)]
pub struct World(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    changed: Notify,
}

impl World {
    /// An empty world.
    #[must_use]
    pub fn new() -> Self {
        World(Arc::new(Inner { state: Mutex::new(State::new(Instant::now())), changed: Notify::new() }))
    }

    /// Adds a NAS with these pools; its address is its name.
    pub fn add_nas(&self, name: &HostName, pools: &[PoolName]) -> SimNas {
        self.with(|s| s.nases.add(name, pools));
        SimNas { world: self.clone(), name: name.clone() }
    }

    /// Adds a node.
    pub fn add_node(&self, name: &HostName) -> SimNode {
        self.with(|s| {
            s.nodes.entry(name.clone()).or_default();
        });
        SimNode { world: self.clone(), name: name.clone() }
    }

    /// Gives a NAS a pool of the kernel plane.
    pub fn add_zfs_pool(&self, nas: &HostName, pool: &PoolName) {
        self.with(|s| s.kernel_nas(nas).pools.push(pool.clone()));
    }

    /// What has been found wrong so far.
    pub fn violations(&self) -> Vec<String> {
        self.with(|s| s.log.violations.clone())
    }

    /// The last things that happened, oldest first.
    pub fn trace(&self) -> Vec<String> {
        self.with(|s| s.log.trace.iter().cloned().collect())
    }

    /// Adds a line to the trace.
    pub fn note(&self, line: impl Into<String>) {
        self.with(|s| s.log.say(line.into()));
    }

    /// Says that the volume is to be destroyed: from now on its file may go.
    pub fn expect_delete(&self, volume: VolumeId) {
        self.with(|s| s.log.may_go.insert(volume));
    }

    /// The longest time a guest's request was held by a pivot.
    pub fn longest_hold(&self) -> Duration {
        self.with(|s| s.log.longest_hold)
    }

    /// Looks at or changes the state, after time has caught up with it.
    fn with<R>(&self, f: impl FnOnce(&mut State) -> R) -> R {
        let result = {
            let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.log.now = Instant::now();
            state.advance();
            let result = f(&mut state);
            state.settle();
            result
        };
        self.0.changed.notify_waiters();
        result
    }

    /// One part of a verb: takes its time, then happens at once.
    async fn part<R>(&self, f: impl FnOnce(&mut State) -> Done<R>) -> Done<R> {
        tokio::time::sleep(PART).await;
        self.with(f)
    }

    /// Until something may have changed.
    async fn change(&self) {
        let _ = tokio::time::timeout(Duration::from_millis(50), self.0.changed.notified()).await;
    }
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}
