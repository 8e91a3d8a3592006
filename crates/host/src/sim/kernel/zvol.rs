//! A zvol: contents that a power cut can take back, snapshots, and what a receive that was cut off left.
//!
//! There are three versions of its contents: what is read, what survives a power cut (flushed, or in a transaction group that was
//! synced), and what ZFS has counted in `written` (synced only, so that the figure is seconds old).

use crate::sim::state::BLOCK_BYTES;
use img_storage_model::{Epoch, SnapshotId, VolumeId, snapshot::Snapshot};
use std::{collections::BTreeSet, time::Duration};
use tokio::time::Instant;

/// How often ZFS syncs by itself.
const TRANSACTION_GROUP: Duration = Duration::from_secs(5);

/// A snapshot.
#[derive(Clone)]
pub struct Point {
    pub snapshot: Snapshot,
    pub held: bool,
    /// It was taken here, and did not come in a stream.
    pub taken: bool,
    pub data: Vec<u64>,
}

/// What a receive that did not end has so far.
#[derive(Clone)]
pub struct Partial {
    pub from: Option<Snapshot>,
    pub to: Snapshot,
    pub todo: BTreeSet<usize>,
    pub data: Vec<u64>,
}

impl Partial {
    pub fn token(&self) -> String {
        format!("1-{}-{}", self.to.guid, self.todo.len())
    }
}

/// A zvol with our mark.
pub struct Zvol {
    pub mark: VolumeId,
    pub data: Vec<u64>,
    stable: Vec<u64>,
    counted: Vec<u64>,
    synced: Instant,
    pub points: Vec<Point>,
    pub partial: Option<Partial>,
    /// A receive into it runs now.
    pub receiving: bool,
    pub receives: Option<Epoch>,
    pub reserved: bool,
    /// ZFS wrote something of its own to it since the newest snapshot.
    pub touched: bool,
    /// ZFS noted something about its log since, after a power cut: that counts as written, and is nothing that was.
    pub noted: bool,
}

/// In how many blocks two contents differ; one that is shorter has zeroes there.
pub fn differing<'a>(one: &'a [u64], other: &'a [u64]) -> impl Iterator<Item = usize> + use<'a> {
    let at = |data: &[u64], block: usize| data.get(block).copied().unwrap_or(0);
    (0..one.len().max(other.len())).filter(move |block| at(one, *block) != at(other, *block))
}

impl Zvol {
    pub fn new(mark: VolumeId, blocks: usize, now: Instant) -> Self {
        let zeroes = vec![0; blocks];
        Zvol {
            mark,
            data: zeroes.clone(),
            stable: zeroes.clone(),
            counted: zeroes,
            synced: now,
            points: Vec::new(),
            partial: None,
            receiving: false,
            receives: None,
            reserved: false,
            touched: false,
            noted: false,
        }
    }

    pub fn size(&self) -> u64 {
        self.data.len() as u64 * BLOCK_BYTES
    }

    /// Writes a block; what was there.
    pub fn write(&mut self, block: usize, version: u64) -> u64 {
        self.data.get_mut(block).map_or(0, |place| std::mem::replace(place, version))
    }

    pub fn flush(&mut self) {
        self.stable.clone_from(&self.data);
    }

    /// A transaction group ends.
    pub fn sync(&mut self, now: Instant) {
        self.flush();
        self.counted.clone_from(&self.data);
        self.synced = now;
    }

    pub fn tick(&mut self, now: Instant) {
        if now.duration_since(self.synced) >= TRANSACTION_GROUP {
            self.sync(now);
        }
    }

    /// The power goes: of what was not put on stable storage, some is there and some is not.
    pub fn lose_power(&mut self, now: Instant) {
        for (block, version) in self.data.iter_mut().enumerate() {
            if self.stable.get(block) != Some(version) && *version % 2 == 0 {
                *version = self.stable.get(block).copied().unwrap_or(0);
            }
        }
        self.receiving = false;
        self.noted = true;
        self.sync(now);
    }

    pub fn newest(&self) -> Option<&Point> {
        self.points.last()
    }

    pub fn point(&self, id: SnapshotId) -> Option<&Point> {
        self.points.iter().find(|p| p.snapshot.id == id)
    }

    fn since_newest(&self, contents: &[u64]) -> u64 {
        let newest = self.newest().map_or(&[] as &[u64], |p| p.data.as_slice());
        differing(contents, newest).count() as u64 * BLOCK_BYTES
    }

    /// What ZFS says was written since the newest snapshot.
    pub fn written(&self) -> u64 {
        self.since_newest(&self.counted) + if self.touched { 12 << 10 } else { 0 } + if self.noted { 1 << 10 } else { 0 }
    }

    /// All that ZFS counts as written is what it noted.
    pub fn unchanged(&self) -> bool {
        self.noted && !self.modified()
    }

    /// Something was written since the newest snapshot: a receive refuses.
    pub fn modified(&self) -> bool {
        self.touched || self.since_newest(&self.data) > 0
    }

    /// Takes a snapshot, which syncs. To hold it is another command.
    pub fn take(&mut self, snapshot: Snapshot, now: Instant) {
        self.sync(now);
        (self.touched, self.noted) = (false, false);
        self.points.push(Point { snapshot, held: false, taken: true, data: self.data.clone() });
    }

    /// Takes the contents, and nothing newer, back to a snapshot. What was noted of the log stays.
    pub fn roll_back(&mut self, id: SnapshotId, now: Instant) -> bool {
        let Some(at) = self.points.iter().position(|p| p.snapshot.id == id) else { return false };
        self.points.truncate(at + 1);
        self.data = self.points[at].data.clone();
        self.touched = false;
        self.sync(now);
        true
    }

    /// What was received becomes its contents and its newest snapshot.
    pub fn received(&mut self, now: Instant) -> Result<(), String> {
        self.receiving = false;
        let Some(partial) = &self.partial else { return Err("nothing was received".to_owned()) };
        if partial.from.is_some() && (self.modified() || self.newest().map(|p| p.snapshot) != partial.from) {
            return Err("destination has been modified since most recent snapshot".to_owned());
        }
        let partial = self.partial.take().unwrap_or_else(|| unreachable!("it was there a moment ago"));
        self.data.clone_from(&partial.data);
        (self.touched, self.noted) = (false, false);
        self.points.push(Point { snapshot: partial.to, held: false, taken: false, data: partial.data });
        self.sync(now);
        Ok(())
    }

    /// That it is longer is in no snapshot yet.
    pub fn grow(&mut self, blocks: usize) {
        self.touched |= self.data.len() < blocks;
        for contents in [&mut self.data, &mut self.stable, &mut self.counted] {
            if contents.len() < blocks {
                contents.resize(blocks, 0);
            }
        }
    }
}
