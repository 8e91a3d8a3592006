//! The tasks of one daemon: they all end, at once and wherever they are, when it is dropped.

use std::{
    future::Future,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::task::JoinSet;

/// Spawns tasks into one set.
#[derive(Clone, Default)]
pub struct Tasks(Arc<Mutex<JoinSet<()>>>);

impl Tasks {
    /// Starts a task.
    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let mut set = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while set.try_join_next().is_some() {}
        set.spawn(work);
    }

    fn stop(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
    }
}

/// A running daemon. Dropping it is as good as kill -9: nothing is said, nothing is tidied up.
pub struct Running(Tasks);

impl Running {
    /// The daemon whose tasks these are.
    pub fn new(tasks: Tasks) -> Self {
        Running(tasks)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.stop();
    }
}
