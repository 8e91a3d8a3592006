//! A node's ledger: its assignments and which of its copies are the truth.

use super::{broken, garbled, open};
use img_storage_model::{Fault, node::NodeRecord};
use rusqlite::{Connection, params};
use std::{
    path::Path,
    sync::{Mutex, PoisonError},
};

const SCHEMA: &str = "create table if not exists volume (id text primary key, record text not null) strict;";

/// The ledger of a node.
pub struct NodeStore(Mutex<Connection>);

impl NodeStore {
    /// Opens or makes the ledger.
    ///
    /// # Errors
    /// When the file is damaged or cannot be written; it is left as it is.
    pub fn open(path: &Path) -> Result<Self, Fault> {
        open(path, "FULL", SCHEMA).map(|db| NodeStore(Mutex::new(db)))
    }

    /// Every volume this node has ever had, with what it must remember of it.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn volumes(&self) -> Result<Vec<NodeRecord>, Fault> {
        let db = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut query = db.prepare("select record from volume order by id").map_err(|e| broken("be read", e))?;
        let rows = query.query_map([], |row| row.get::<_, String>(0)).map_err(|e| broken("be read", e))?;
        rows.map(|row| {
            let text = row.map_err(|e| garbled(&db, e))?;
            serde_json::from_str(&text).map_err(|e| garbled(&db, e))
        })
        .collect()
    }

    /// Makes a row durable.
    ///
    /// # Errors
    /// When the ledger cannot be written.
    pub fn put(&self, record: &NodeRecord) -> Result<(), Fault> {
        let text = serde_json::to_string(record).map_err(|e| broken("be written", e))?;
        let db = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        db.prepare_cached(
            "insert into volume (id, record) values (?1, ?2) on conflict (id) do update set record = excluded.record",
        )
        .and_then(|mut q| q.execute(params![record.volume.to_string(), text]))
        .map(drop)
        .map_err(|e| broken("be written", e))
    }
}
