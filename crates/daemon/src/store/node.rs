//! A node's ledger: its assignments and which of its copies are the truth.

use super::{Commits, broken, ledger::Ledger, records};
use img_storage_model::{Fault, node::NodeRecord};
use rusqlite::params;
use std::path::Path;

const SCHEMA: &str = "create table if not exists volume (id text primary key, record text not null) strict;";

/// Every volume.
pub(super) const VOLUMES: &str = "select record from volume order by id";

/// The ledger of a node.
pub struct NodeStore(Ledger);

impl NodeStore {
    /// Opens or makes the ledger.
    ///
    /// # Errors
    /// When the file is damaged or cannot be written; it is left as it is.
    pub fn open(path: &Path, commits: Commits) -> Result<Self, Fault> {
        Ledger::open(path, SCHEMA, commits).map(NodeStore)
    }

    /// Every volume this node has ever had, with what it must remember of it.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn volumes(&self) -> Result<Vec<NodeRecord>, Fault> {
        records(&self.0.read(), VOLUMES)
    }

    /// Makes a row durable.
    ///
    /// # Errors
    /// When the ledger cannot be written.
    pub async fn put(&self, record: &NodeRecord) -> Result<(), Fault> {
        let text = serde_json::to_string(record).map_err(|e| broken("be written", e))?;
        let id = record.volume.to_string();
        let write = move |db: &rusqlite::Connection| {
            db.prepare_cached(
                "insert into volume (id, record) values (?1, ?2) on conflict (id) do update set record = excluded.record",
            )?
            .execute(params![id, text])
            .map(drop)
        };
        self.0.change(write).await
    }
}
