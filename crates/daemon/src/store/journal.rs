//! The journal: what was done and what happened, for people. Losing its last lines in a crash costs nobody anything.

use super::{broken, open};
use img_storage_model::{Fault, VolumeId, api::Event};
use jiff::Timestamp;
use rusqlite::{Connection, params};
use std::{
    path::Path,
    sync::{Mutex, PoisonError},
};

const SCHEMA: &str = "
create table if not exists event (volume text not null, at integer not null, what text not null) strict;
create index if not exists event_volume on event (volume, at);
";

/// Events kept per volume.
const KEEP: i64 = 1000;
/// Events kept in all, those of deleted volumes too.
const KEEP_IN_ALL: i64 = 1_000_000;

/// So often, in rows written, old ones are looked for.
const TRIM_EVERY: i64 = 100;

/// Removes what is too much of a volume, and what is older than anybody asks for.
fn trim(db: &Connection, volume: VolumeId) -> rusqlite::Result<()> {
    db.execute(
        "delete from event where volume = ?1 and rowid not in (select rowid from event where volume = ?1 order by rowid desc limit ?2)",
        params![volume.to_string(), KEEP],
    )?;
    db.execute("delete from event where rowid <= (select max(rowid) from event) - ?1", [KEEP_IN_ALL]).map(drop)
}

/// Steps and events of the volumes of one role.
pub struct Journal(Mutex<Connection>);

impl Journal {
    /// Opens or makes the journal.
    ///
    /// # Errors
    /// When the file is damaged or cannot be written.
    pub fn open(path: &Path) -> Result<Self, Fault> {
        open(path, "OFF", SCHEMA).map(|db| Journal(Mutex::new(db)))
    }

    /// Notes something. A journal that cannot be written is said in the log; the work goes on.
    pub fn note(&self, volume: VolumeId, now: Timestamp, what: &str) {
        let db = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let noted = db
            .prepare_cached("insert into event (volume, at, what) values (?1, ?2, ?3)")
            .and_then(|mut q| q.insert(params![volume.to_string(), now.as_millisecond(), what]))
            .and_then(|row| if row % TRIM_EVERY == 0 { trim(&db, volume) } else { Ok(()) });
        if let Err(why) = noted {
            tracing::warn!("the journal could not be written: {why}");
        }
    }

    /// What happened to a volume, oldest first.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub fn history(&self, volume: VolumeId) -> Result<Vec<Event>, Fault> {
        let db = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let all = || -> rusqlite::Result<Vec<Event>> {
            trim(&db, volume)?;
            let mut query = db.prepare_cached("select at, what from event where volume = ?1 order by rowid")?;
            let rows = query.query_map([volume.to_string()], |row| {
                let at = Timestamp::from_millisecond(row.get(0)?).unwrap_or(Timestamp::UNIX_EPOCH);
                Ok(Event { at, what: row.get(1)? })
            })?;
            rows.collect()
        };
        all().map_err(|e| broken("be read", e))
    }
}
