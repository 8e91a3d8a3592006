//! What a NAS's ledger keeps for those who ask in the original's words: their open requests, the answers given to them, and what
//! they said that only their lists show.

use super::{NasStore, broken, garbled};
use crate::bus::ReplyTo;
use img_storage_model::{Epoch, Fault, HostName, PoolName, RequestId, VolumeId};
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, params};
use tokio::sync::oneshot;
use uuid::Uuid;

pub(super) const SCHEMA: &str = "
create table if not exists foreign_request (
    id text primary key, queue text not null, message text not null, body blob not null, at integer not null,
    answer blob, sent integer not null default 0) strict;
create index if not exists foreign_asked on foreign_request (queue, message);
create index if not exists foreign_at on foreign_request (at);
create table if not exists foreign_pool (volume text primary key, epoch integer not null, pool text not null) strict;
create table if not exists node (name text primary key) strict;
";

/// Answered requests are kept this long, in seconds, for a repeated message.
const KEEP: i64 = 24 * 3600;

/// A request as it was written down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignRequest {
    /// Ours for it: whatever is done for it carries this.
    pub id: RequestId,
    /// Where its answer goes.
    pub reply_to: ReplyTo,
    /// The message.
    pub body: Vec<u8>,
    /// What was answered, if it was.
    pub answer: Option<Vec<u8>>,
}

/// Whether a message is a new one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Begun {
    /// It is, and is written down.
    New,
    /// It came before and is being carried out.
    UnderWay,
    /// It came before and was answered.
    Answered(Vec<u8>),
}

fn begin(db: &Connection, id: RequestId, to: &ReplyTo, body: &[u8], now: Timestamp) -> rusqlite::Result<Begun> {
    if !to.message.is_empty() {
        let known: Option<Option<Vec<u8>>> = db
            .prepare_cached("select answer from foreign_request where queue = ?1 and message = ?2 and body = ?3")?
            .query_row(params![to.queue, to.message, body], |row| row.get(0))
            .optional()?;
        match known {
            Some(Some(answer)) => return Ok(Begun::Answered(answer)),
            Some(None) => return Ok(Begun::UnderWay),
            None => {}
        }
    }
    db.prepare_cached("delete from foreign_request where at < ?1 and answer is not null")?.execute([now.as_second() - KEEP])?;
    db.prepare_cached("insert into foreign_request (id, queue, message, body, at) values (?1, ?2, ?3, ?4, ?5)")?
        .execute(params![id.to_string(), to.queue, to.message, body, now.as_second()])?;
    Ok(Begun::New)
}

fn id_of(text: &str) -> Option<RequestId> {
    Uuid::try_parse(text).ok().map(RequestId)
}

impl NasStore {
    /// Writes a request down, unless it came before. A message without a number cannot be told from another, and is new.
    ///
    /// # Errors
    /// When the ledger cannot be read or written: then nothing may be done.
    pub async fn foreign_begin(&self, id: RequestId, to: &ReplyTo, body: &[u8], now: Timestamp) -> Result<Begun, Fault> {
        let (to, body) = (to.clone(), body.to_vec());
        let (tell, told) = oneshot::channel();
        let begin = move |db: &Connection| {
            let begun = begin(db, id, &to, &body, now)?;
            // Who asks may have been ended.
            let _ = tell.send(begun);
            Ok(())
        };
        self.0.change(begin).await?;
        told.await.map_err(|_| broken("be written", "it was not said what came of it"))
    }

    /// Writes an answer down before it is given; those given earlier, `sent`, are noted with it.
    ///
    /// # Errors
    /// When the ledger cannot be written.
    pub async fn foreign_end(&self, id: RequestId, answer: &[u8], sent: Vec<RequestId>) -> Result<(), Fault> {
        let answer = answer.to_vec();
        let end = move |db: &Connection| {
            db.prepare_cached("update foreign_request set answer = ?2 where id = ?1")?
                .execute(params![id.to_string(), answer])?;
            for given in sent {
                db.prepare_cached("update foreign_request set sent = 1 where id = ?1")?.execute([given.to_string()])?;
            }
            Ok(())
        };
        self.0.change(end).await
    }

    /// The requests that are not answered, or whose answer may not have been given; oldest first.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn foreign_open(&self) -> Result<Vec<ForeignRequest>, Fault> {
        let db = self.0.read();
        let mut query = db
            .prepare(
                "select id, queue, message, body, answer from foreign_request where answer is null or sent = 0 order by rowid",
            )
            .map_err(|e| broken("be read", e))?;
        let rows = query.query_map([], |row| {
            let reply_to = ReplyTo { queue: row.get(1)?, message: row.get(2)? };
            Ok((row.get::<_, String>(0)?, reply_to, row.get(3)?, row.get(4)?))
        });
        rows.map_err(|e| broken("be read", e))?
            .map(|row| {
                let (id, reply_to, body, answer) = row.map_err(|e| garbled(&db, e))?;
                let id = id_of(&id).ok_or_else(|| garbled(&db, format!("{id} is no request's id")))?;
                Ok(ForeignRequest { id, reply_to, body, answer })
            })
            .collect()
    }

    /// Remembers which pool of its node a volume was asked to be copied to, in this mapping.
    ///
    /// # Errors
    /// When the ledger cannot be written.
    pub async fn foreign_pool(&self, volume: VolumeId, epoch: Epoch, pool: &PoolName) -> Result<(), Fault> {
        let (epoch, pool) = (i64::try_from(epoch.0).unwrap_or(i64::MAX), pool.clone());
        let note = move |db: &Connection| {
            db.prepare_cached("delete from foreign_pool where volume not in (select id from volume)")?.execute([])?;
            db.prepare_cached("insert or replace into foreign_pool (volume, epoch, pool) values (?1, ?2, ?3)")?
                .execute(params![volume.to_string(), epoch, pool.as_str()])
                .map(drop)
        };
        self.0.change(note).await
    }

    /// All of those.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn foreign_pools(&self) -> Result<Vec<(VolumeId, Epoch, String)>, Fault> {
        let db = self.0.read();
        let mut query = db.prepare("select volume, epoch, pool from foreign_pool").map_err(|e| broken("be read", e))?;
        let rows = query.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?, row.get(2)?)));
        rows.map_err(|e| broken("be read", e))?
            .map(|row| {
                let (volume, epoch, pool) = row.map_err(|e| garbled(&db, e))?;
                let volume = id_of(&volume).ok_or_else(|| garbled(&db, format!("{volume} is no volume's id")))?;
                Ok((VolumeId(volume.0), Epoch(u64::try_from(epoch).unwrap_or(0)), pool))
            })
            .collect()
    }

    /// Remembers that there is a node of this name.
    ///
    /// # Errors
    /// When the ledger cannot be written.
    pub async fn know_node(&self, name: &HostName) -> Result<(), Fault> {
        let name = name.clone();
        let note = move |db: &Connection| db.execute("insert or ignore into node (name) values (?1)", [name.as_str()]).map(drop);
        self.0.change(note).await
    }

    /// Whether there ever was a node of this name.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn knows_node(&self, name: &HostName) -> Result<bool, Fault> {
        let found = self.0.read().query_row("select 1 from node where name = ?1", [name.as_str()], |_| Ok(())).optional();
        found.map(|found| found.is_some()).map_err(|e| broken("be read", e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(dir: &tempfile::TempDir) -> NasStore {
        NasStore::open(&dir.path().join("ledger.db"), crate::store::Commits::Grouped).unwrap()
    }

    fn to(message: &str) -> ReplyTo {
        ReplyTo { queue: "amq.gen-1".to_owned(), message: message.to_owned() }
    }

    fn id(n: u128) -> RequestId {
        RequestId(Uuid::from_u128(n))
    }

    #[tokio::test]
    async fn a_repeated_message_is_known_and_another_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(&dir);
        let now = Timestamp::now();
        assert_eq!(store.foreign_begin(id(1), &to("7"), b"map", now).await.unwrap(), Begun::New);
        assert_eq!(store.foreign_begin(id(2), &to("7"), b"map", now).await.unwrap(), Begun::UnderWay);
        assert_eq!(store.foreign_begin(id(3), &to("8"), b"map", now).await.unwrap(), Begun::New);
        assert_eq!(store.foreign_begin(id(4), &to("7"), b"unmap", now).await.unwrap(), Begun::New);
        store.foreign_end(id(1), b"mapped", Vec::new()).await.unwrap();
        assert_eq!(store.foreign_begin(id(5), &to("7"), b"map", now).await.unwrap(), Begun::Answered(b"mapped".to_vec()));
        // Without a number nobody can tell.
        assert_eq!(store.foreign_begin(id(6), &to(""), b"map", now).await.unwrap(), Begun::New);
        assert_eq!(store.foreign_begin(id(7), &to(""), b"map", now).await.unwrap(), Begun::New);
    }

    #[tokio::test]
    async fn what_may_not_have_been_answered_is_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let now = Timestamp::now();
        {
            let store = store(&dir);
            for n in 1..=3 {
                store.foreign_begin(id(n), &to(&n.to_string()), b"map", now).await.unwrap();
            }
            store.foreign_end(id(1), b"one", Vec::new()).await.unwrap();
            store.foreign_end(id(2), b"two", vec![id(1)]).await.unwrap();
        }
        let open: Vec<_> = store(&dir).foreign_open().unwrap().into_iter().map(|r| (r.id, r.answer)).collect();
        assert_eq!(open, [(id(2), Some(b"two".to_vec())), (id(3), None)]);
    }

    #[tokio::test]
    async fn answered_ones_are_forgotten_after_a_day_and_open_ones_never() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(&dir);
        let old = Timestamp::from_second(1_000_000).unwrap();
        store.foreign_begin(id(1), &to("1"), b"map", old).await.unwrap();
        store.foreign_begin(id(2), &to("2"), b"map", old).await.unwrap();
        store.foreign_end(id(1), b"one", Vec::new()).await.unwrap();
        let later = Timestamp::from_second(1_000_000 + KEEP + 1).unwrap();
        store.foreign_begin(id(3), &to("3"), b"map", later).await.unwrap();
        assert_eq!(store.foreign_open().unwrap().iter().map(|r| r.id).collect::<Vec<_>>(), [id(2), id(3)]);
    }
}
