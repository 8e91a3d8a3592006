//! The ledgers: what no host can show, in SQLite, durable before anything is done because of it.
//!
//! One file a role (`ledger.db`, WAL, `synchronous=FULL`, one writer), and beside it `journal.db`: steps and events for
//! people, written without waiting for the disk because nothing is decided by them.

mod foreign;
mod journal;
mod ledger;
mod nas;
mod node;
mod still;

pub use foreign::{Begun, ForeignRequest};
pub use journal::Journal;
pub use ledger::Commits;
pub use nas::NasStore;
pub use node::NodeStore;
pub use still::{Rows, read};

use img_storage_model::Fault;
use rusqlite::Connection;
use serde::de::DeserializeOwned;
use std::path::Path;

/// A role's ledger in its directory.
pub const LEDGER: &str = "ledger.db";
/// A role's journal in its directory.
pub const JOURNAL: &str = "journal.db";
/// The version of the ledgers' tables.
const VERSION: i64 = 1;

/// Opens a database and checks that it is whole.
fn open(path: &Path, sync: &str, schema: &str) -> Result<Connection, Fault> {
    let damaged = |why: String| damaged(&path.display().to_string(), why);
    let db = Connection::open(path).map_err(|e| damaged(e.to_string()))?;
    let setup = || -> rusqlite::Result<(String, i64)> {
        db.busy_timeout(std::time::Duration::from_secs(5))?;
        db.pragma_update(None, "journal_mode", "WAL")?;
        db.pragma_update(None, "synchronous", sync)?;
        let whole = db.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        let version = db.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        Ok((whole, version))
    };
    let (whole, version) = setup().map_err(|e| damaged(e.to_string()))?;
    if whole != "ok" {
        return Err(damaged(whole));
    }
    if version > VERSION {
        return Err(damaged(format!("it was written by a newer img-storage (version {version} of the tables)")));
    }
    // A ledger that turns out to be damaged further on is left as it is: nothing is written that is there already.
    let mark = || if version == VERSION { Ok(()) } else { db.pragma_update(None, "user_version", VERSION) };
    db.execute_batch(schema).and_then(|()| mark()).map_err(|e| damaged(e.to_string()))?;
    Ok(db)
}

/// The records that a query gives.
fn records<T: DeserializeOwned>(db: &Connection, query: &str) -> Result<Vec<T>, Fault> {
    let mut query = db.prepare(query).map_err(|e| broken("be read", e))?;
    let rows = query.query_map([], |row| row.get::<_, String>(0)).map_err(|e| broken("be read", e))?;
    rows.map(|row| {
        let text = row.map_err(|e| garbled(db, e))?;
        serde_json::from_str(&text).map_err(|e| garbled(db, e))
    })
    .collect()
}

/// A file that cannot be taken for what it should be.
fn damaged(path: &str, why: impl std::fmt::Display) -> Fault {
    if path.ends_with(JOURNAL) {
        return Fault::failed(format!("the journal {path} cannot be used: {why}"))
            .next("nothing was changed; it has only history: move it away and start again");
    }
    Fault::failed(format!("the ledger {path} cannot be used: {why}"))
        .next("nothing was changed; restore the file from a backup (sqlite3 FILE .recover may save what is left)")
}

/// A row that is not one of ours.
fn garbled(db: &Connection, why: impl std::fmt::Display) -> Fault {
    damaged(db.path().unwrap_or("of this host"), format!("a row cannot be understood: {why}"))
}

/// An error while reading or writing a ledger.
fn broken(what: &str, why: impl std::fmt::Display) -> Fault {
    Fault::failed(format!("the ledger could not {what}: {why}")).next("see whether the disk is full or failing")
}
