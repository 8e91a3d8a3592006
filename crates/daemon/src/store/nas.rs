//! A NAS's ledger: its volumes and the answers it has given.

use super::{Commits, broken, foreign, garbled, ledger::Ledger, records};
use img_storage_model::{Fault, RequestId, VolumeId, api::Answer, attribute::NasAttributes, nas::VolumeRecord};
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, params};
use std::path::Path;

const SCHEMA: &str = "
create table if not exists volume (id text primary key, pool text not null, name text not null, record text not null, unique (pool, name)) strict;
create table if not exists deleted (id text primary key, at integer not null) strict;
create table if not exists attributes (only integer primary key check (only = 1), record text not null) strict;
create table if not exists boot (id text not null) strict;
create table if not exists secret (bytes blob not null) strict;
create table if not exists answer (request text primary key, at integer not null, answer text not null) strict;
create index if not exists answer_at on answer (at);
";

/// Every volume.
pub(super) const VOLUMES: &str = "select record from volume order by pool, name";

/// Answers are kept this long, in seconds; a front end asks again within minutes or never.
const KEEP_ANSWERS: i64 = 24 * 3600;

/// The ledger of a NAS.
pub struct NasStore(pub(super) Ledger);

/// An answer as it was given.
pub type Given = Result<Box<Answer>, Fault>;

impl NasStore {
    /// Opens or makes the ledger.
    ///
    /// # Errors
    /// When the file is damaged or cannot be written; it is left as it is.
    pub fn open(path: &Path, commits: Commits) -> Result<Self, Fault> {
        Ledger::open(path, &format!("{SCHEMA}{}", foreign::SCHEMA), commits).map(NasStore)
    }

    /// Every volume.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn volumes(&self) -> Result<Vec<VolumeRecord>, Fault> {
        records(&self.0.read(), VOLUMES)
    }

    /// One volume.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn volume(&self, id: VolumeId) -> Result<Option<VolumeRecord>, Fault> {
        let db = self.0.read();
        let row = db.query_row("select record from volume where id = ?1", [id.to_string()], |row| row.get::<_, String>(0));
        let text = row.optional().map_err(|e| broken("be read", e))?;
        text.map(|t| serde_json::from_str(&t).map_err(|e| garbled(&db, e))).transpose()
    }

    /// Makes a volume's row durable, whether it is new or not.
    ///
    /// # Errors
    /// When the ledger cannot be written, or another volume has the pool and name.
    pub async fn put(&self, record: &VolumeRecord) -> Result<(), Fault> {
        self.0.change(row(record)?).await
    }

    /// The same while everything waits, for the daemon's start.
    ///
    /// # Errors
    /// As [`NasStore::put`].
    pub fn put_now(&self, record: &VolumeRecord) -> Result<(), Fault> {
        self.0.change_now(row(record)?)
    }

    /// Removes a volume's row, and in the same instant remembers that it was deleted, for ever, and the answer to who asked for that.
    ///
    /// # Errors
    /// When the ledger cannot be written.
    pub async fn remove(&self, volume: VolumeId, asked: Option<RequestId>, now: Timestamp) -> Result<(), Fault> {
        let deleted = asked.map(|request| Ok((request, answer(&Ok(Box::new(Answer::Deleted)))?))).transpose()?;
        let removal = move |db: &Connection| {
            db.execute("delete from volume where id = ?1", [volume.to_string()])?;
            db.execute("insert or ignore into deleted (id, at) values (?1, ?2)", params![volume.to_string(), now.as_second()])?;
            deleted.map_or(Ok(()), |(request, text)| give(db, request, &text, now))
        };
        self.0.change(removal).await
    }

    /// Which of these were deleted here. One that is neither there nor among these is unknown: it may be newer than this ledger.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn deleted(&self, volumes: impl IntoIterator<Item = VolumeId>) -> Result<Vec<VolumeId>, Fault> {
        let db = self.0.read();
        let mut query = db.prepare_cached("select 1 from deleted where id = ?1").map_err(|e| broken("be read", e))?;
        let mut found = Vec::new();
        for volume in volumes {
            if query.exists([volume.to_string()]).map_err(|e| broken("be read", e))? {
                found.push(volume);
            }
        }
        Ok(found)
    }

    /// What was set of the NAS.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn attributes(&self) -> Result<NasAttributes, Fault> {
        let db = self.0.read();
        let text: Option<String> =
            db.query_row("select record from attributes", [], |row| row.get(0)).optional().map_err(|e| broken("be read", e))?;
        text.map_or_else(|| Ok(NasAttributes::default()), |text| serde_json::from_str(&text).map_err(|e| garbled(&db, e)))
    }

    /// Makes what was set of the NAS durable.
    ///
    /// # Errors
    /// When the ledger cannot be written.
    pub async fn put_attributes(&self, attributes: &NasAttributes) -> Result<(), Fault> {
        let text = serde_json::to_string(attributes).map_err(|e| broken("be written", e))?;
        let write = |db: &Connection| {
            db.execute(
                "insert into attributes (only, record) values (1, ?1) on conflict (only) do update set record = excluded.record",
                [text],
            )
            .map(drop)
        };
        self.0.change(write).await
    }

    /// Notes the machine's boot; says whether it is another one than last time.
    ///
    /// # Errors
    /// When the ledger cannot be read or written.
    pub fn booted(&self, boot: &str) -> Result<bool, Fault> {
        let last: Option<String> = (self.0.read())
            .query_row("select id from boot", [], |row| row.get(0))
            .optional()
            .map_err(|e| broken("be read", e))?;
        if last.as_deref() == Some(boot) {
            return Ok(false);
        }
        self.0.change_now(|db| {
            db.execute_batch("delete from boot")?;
            db.execute("insert into boot (id) values (?1)", [boot]).map(drop)
        })?;
        Ok(last.is_some())
    }

    /// What this NAS knows and nobody else; made once. It is part of every backup of the ledger.
    ///
    /// # Errors
    /// When the ledger cannot be read or written.
    pub fn secret(&self) -> Result<[u8; 32], Fault> {
        let known: Option<Vec<u8>> = (self.0.read())
            .query_row("select bytes from secret", [], |row| row.get(0))
            .optional()
            .map_err(|e| broken("be read", e))?;
        if let Some(known) = known {
            return known.try_into().map_err(|_| broken("be understood", "the secret is damaged"));
        }
        let fresh: [u8; 32] = rand::random();
        self.0.change_now(|db| db.execute("insert into secret (bytes) values (?1)", [&fresh[..]]).map(drop))?;
        Ok(fresh)
    }

    /// The answer that was given to a request, if it was.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn answer(&self, request: RequestId) -> Result<Option<Given>, Fault> {
        let text: Option<String> = (self.0.read())
            .query_row("select answer from answer where request = ?1", [request.to_string()], |row| row.get(0))
            .optional()
            .map_err(|e| broken("be read", e))?;
        text.map(|t| serde_json::from_str(&t).map_err(|e| broken("be understood", e))).transpose()
    }

    /// Remembers an answer before it is given.
    ///
    /// # Errors
    /// When the ledger cannot be written.
    pub async fn remember(&self, request: RequestId, given: &Given, now: Timestamp) -> Result<(), Fault> {
        let text = answer(given)?;
        self.0.change(move |db| give(db, request, &text, now)).await
    }
}

/// The writing of a volume's row.
fn row(record: &VolumeRecord) -> Result<impl FnOnce(&Connection) -> rusqlite::Result<()> + Send + 'static, Fault> {
    let text = serde_json::to_string(record).map_err(|e| broken("be written", e))?;
    let (id, pool, name) = (record.id.to_string(), record.pool.clone(), record.name.clone());
    Ok(move |db: &Connection| {
        db.prepare_cached(
            "insert into volume (id, pool, name, record) values (?1, ?2, ?3, ?4) on conflict (id) do update set record = excluded.record",
        )?
        .execute(params![id, pool.as_str(), name.as_str(), text])
        .map(drop)
    })
}

fn answer(given: &Given) -> Result<String, Fault> {
    serde_json::to_string(given).map_err(|e| broken("be written", e))
}

fn give(db: &Connection, request: RequestId, text: &str, now: Timestamp) -> rusqlite::Result<()> {
    db.prepare_cached("delete from answer where at < ?1")?.execute([now.as_second() - KEEP_ANSWERS])?;
    db.prepare_cached("insert or ignore into answer (request, at, answer) values (?1, ?2, ?3)")?
        .execute(params![request.to_string(), now.as_second(), text])
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    #[tokio::test]
    async fn what_was_deleted_is_remembered_and_what_is_unknown_is_not_taken_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let open = || NasStore::open(&dir.path().join("ledger.db"), Commits::Single).unwrap();
        let id = |n| VolumeId(Uuid::from_u128(n));
        let store = open();
        store.remove(id(1), None, Timestamp::UNIX_EPOCH).await.unwrap();
        store.remove(id(1), None, Timestamp::UNIX_EPOCH).await.unwrap();
        drop(store);
        assert_eq!(open().deleted([id(1), id(2)]).unwrap(), [id(1)]);
    }
}
