//! A role's ledger file: one connection to read, and one to write that many actors share.
//!
//! To be durable costs a wait for the disk, and two hundred volumes that are mapped at once would wait one after the other.
//! So a thread of its own takes the changes that came together and makes them durable in one commit; each change is a
//! savepoint, and one that fails takes no other with it.

use super::{broken, open};
use img_storage_model::Fault;
use rusqlite::Connection;
use std::{
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    thread,
};
use tokio::sync::oneshot;

/// So many changes at most are made durable together.
const TOGETHER: usize = 256;

/// How changes are made durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Commits {
    /// By a thread, those together that come together.
    Grouped,
    /// Each on its own, before anything else goes on: the order of everything is the same in every run.
    Single,
}

type Change = Box<dyn FnOnce(&Connection) -> rusqlite::Result<()> + Send>;

struct Job {
    change: Change,
    done: oneshot::Sender<Result<(), Fault>>,
}

/// A ledger that is open.
pub(super) struct Ledger {
    reading: Mutex<Connection>,
    writing: Arc<Mutex<Connection>>,
    writer: Option<Writer>,
}

struct Writer {
    jobs: mpsc::Sender<Job>,
    thread: thread::JoinHandle<()>,
}

impl Ledger {
    pub(super) fn open(path: &Path, schema: &str, commits: Commits) -> Result<Self, Fault> {
        let writing = Arc::new(Mutex::new(open(path, "FULL", schema)?));
        let reading = Mutex::new(Connection::open(path).and_then(for_reading).map_err(|e| broken("be read", e))?);
        let writer = match commits {
            Commits::Single => None,
            Commits::Grouped => {
                let (sender, jobs) = mpsc::channel();
                let db = Arc::clone(&writing);
                let spawned = thread::Builder::new().name("ledger".to_owned()).spawn(move || write(&db, &jobs));
                let thread = spawned.map_err(|e| Fault::failed(format!("a thread for the ledger could not be started: {e}")))?;
                Some(Writer { jobs: sender, thread })
            }
        };
        Ok(Ledger { reading, writing, writer })
    }

    /// The connection to read from; what is being made durable is not seen yet.
    pub(super) fn read(&self) -> MutexGuard<'_, Connection> {
        lock(&self.reading)
    }

    /// Makes a change durable; whoever waits for it goes on when it is.
    pub(super) async fn change(
        &self,
        change: impl FnOnce(&Connection) -> rusqlite::Result<()> + Send + 'static,
    ) -> Result<(), Fault> {
        let Some(writer) = &self.writer else { return self.change_now(change) };
        let (done, outcome) = oneshot::channel();
        let gone = || broken("be written", "its thread has ended");
        writer.jobs.send(Job { change: Box::new(change), done }).map_err(|_| gone())?;
        outcome.await.unwrap_or_else(|_| Err(gone()))
    }

    /// Makes a change durable while everything else waits: for the start, and where the order must be the same in every run.
    pub(super) fn change_now(&self, change: impl FnOnce(&Connection) -> rusqlite::Result<()>) -> Result<(), Fault> {
        let mut db = lock(&self.writing);
        let all = || -> rusqlite::Result<()> {
            let tx = db.transaction()?;
            change(&tx)?;
            tx.commit()
        };
        all().map_err(|e| broken("be written", e))
    }
}

impl Drop for Ledger {
    /// Whoever ends in peace leaves a file that has everything in it: the last connection to close brings the log home.
    fn drop(&mut self) {
        if let Some(Writer { jobs, thread }) = self.writer.take() {
            drop(jobs);
            let _ = thread.join();
        }
    }
}

fn for_reading(db: Connection) -> rusqlite::Result<Connection> {
    db.busy_timeout(std::time::Duration::from_secs(5))?;
    db.pragma_update(None, "query_only", true)?;
    Ok(db)
}

fn lock(db: &Mutex<Connection>) -> MutexGuard<'_, Connection> {
    db.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes changes until nobody can bring any more.
fn write(db: &Mutex<Connection>, jobs: &mpsc::Receiver<Job>) {
    while let Ok(first) = jobs.recv() {
        let mut together = vec![first];
        together.extend(jobs.try_iter().take(TOGETHER - 1));
        let (waiting, made) = make(&mut lock(db), together);
        for (done, outcome) in waiting {
            let outcome = outcome.and_then(|()| made.clone());
            // Who waited may have been ended.
            let _ = done.send(outcome);
        }
    }
}

type Waiting = Vec<(oneshot::Sender<Result<(), Fault>>, Result<(), Fault>)>;

/// Makes changes together: what became of each on its own, and of their commit.
fn make(db: &mut Connection, together: Vec<Job>) -> (Waiting, Result<(), Fault>) {
    let mut waiting = Vec::with_capacity(together.len());
    let tx = match db.transaction() {
        Ok(tx) => tx,
        Err(why) => {
            waiting.extend(together.into_iter().map(|job| (job.done, Ok(()))));
            return (waiting, Err(broken("be written", why)));
        }
    };
    for job in together {
        let change = job.change;
        let alone = || -> rusqlite::Result<()> {
            tx.execute_batch("savepoint change")?;
            let changed = change(&tx);
            if changed.is_err() {
                tx.execute_batch("rollback to change")?;
            }
            tx.execute_batch("release change")?;
            changed
        };
        let outcome = alone().map_err(|e| broken("be written", e));
        waiting.push((job.done, outcome));
    }
    (waiting, tx.commit().map_err(|e| broken("be written", e)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn what_comes_together_is_durable_and_takes_nothing_with_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("ledger.db");
        let schema = "create table if not exists t (n integer primary key) strict;";
        let ledger = Arc::new(Ledger::open(&path, schema, Commits::Grouped).expect("opens"));
        let insert = |n: i64| move |db: &Connection| db.execute("insert into t (n) values (?1)", [n]).map(drop);
        let mut writers = tokio::task::JoinSet::new();
        for n in 0..500 {
            let ledger = Arc::clone(&ledger);
            // Every fifth is there already, or comes a second time.
            writers.spawn(async move { (n, ledger.change(insert(if n % 5 == 4 { n - 1 } else { n })).await) });
        }
        let mut refused = 0;
        while let Some(done) = writers.join_next().await {
            let (n, outcome) = done.expect("ends");
            refused += usize::from(outcome.is_err());
            assert!(outcome.is_ok() || n % 5 >= 3, "{n}: {outcome:?}");
        }
        assert_eq!(refused, 100, "of each pair one");
        drop(ledger);
        let again = Ledger::open(&path, schema, Commits::Single).expect("opens again");
        let there: i64 = again.read().query_row("select count(*) from t", [], |row| row.get(0)).expect("counted");
        assert_eq!(there, 400);
    }
}
