//! What doctor looks at on both sides of the kernel plane. Everything here only looks.

use super::{
    marks,
    zfs::{SnapshotFacts, Zfs},
};
use crate::HostError;
use img_storage_model::{
    Dataset, Fact, SnapshotId,
    doctor::{Zvol, shown},
};
use std::collections::BTreeMap;

/// As a fact.
pub(super) fn fact<T>(found: Result<T, HostError>) -> Fact<T> {
    match found {
        Ok(found) => Fact::Known(found),
        Err(error) => Fact::Unknown(error.0),
    }
}

/// The pools of this host.
pub(super) async fn pools(zfs: &Zfs) -> Fact<Vec<shown::Pool>> {
    fact(zfs.pools().await.map(|all| {
        let shown = |pool: super::zfs::Pool| shown::Pool { name: pool.name, health: pool.health, read_only: pool.read_only };
        all.into_iter().map(shown).collect()
    }))
}

/// A dataset, and the zvols directly in it.
pub(super) async fn place(zfs: &Zfs, dataset: &Dataset) -> shown::Place {
    let room = zfs.room(dataset).await.map(|room| room.map(|room| (room.used, room.available)));
    let zvols = zvols(zfs, dataset).await;
    shown::Place { dataset: dataset.clone(), room: fact(room), zvols: fact(zvols) }
}

async fn zvols(zfs: &Zfs, within: &Dataset) -> Result<Vec<Zvol>, HostError> {
    let mut snapshots: BTreeMap<Dataset, Vec<SnapshotFacts>> = BTreeMap::new();
    for snapshot in zfs.snapshots_below(within).await? {
        snapshots.entry(snapshot.name.dataset().clone()).or_default().push(snapshot);
    }
    let mut found = Vec::new();
    for zvol in zfs.volumes(within).await?.into_iter().filter(|zvol| zvol.name.parent().as_ref() == Some(within)) {
        let all = snapshots.remove(&zvol.name).unwrap_or_default();
        let points = marks::points(&all);
        // Only of what is ours: others' snapshots cost a look each.
        let mut written = zvol.written;
        if zvol.volume().is_some() {
            written = marks::written(zfs, &zvol, &points).await?;
            let newest = points.ours.last().map(|newest| newest.snapshot.id);
            if marks::unchanged(zfs, &zvol.name, newest, written, std::time::Duration::ZERO).await == Some(true) {
                written = 0;
            }
        }
        let mut shown = Vec::new();
        for snapshot in all {
            let ours = snapshot.name.name().parse::<SnapshotId>().is_ok();
            let holds = match snapshot.holds {
                0 => Vec::new(),
                1 if ours => vec![marks::HOLD.to_owned()],
                _ => zfs.holds(&snapshot.name).await?,
            };
            shown.push(shown::Snapshot { name: snapshot.name.name().to_owned(), ours, holds });
        }
        found.push(Zvol {
            mark: zvol.volume().map(str::to_owned),
            overlay: marks::epoch_in(&zvol, marks::EPOCH),
            size: zvol.size.unwrap_or(0),
            used: zvol.used,
            written,
            snapshots: shown,
            resume: zvol.resume_token.is_some(),
            name: zvol.name,
        });
    }
    Ok(found)
}
