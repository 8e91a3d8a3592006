//! Whose turn it is to move data: at most so many transfers run at once in each direction.
//!
//! Copies to nodes and what comes home stand in lines of their own: a copy of hours must not keep write-backs waiting, which the
//! lag depends on. In a line the last write-back of an unmap comes first, and otherwise who should have begun the longest ago.
//! What had begun before this daemon did counts too, and goes on whether there is room or not.

use img_storage_model::VolumeId;
use jiff::Timestamp;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
};

/// The direction of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// A copy.
    ToNode,
    /// A write-back, or what had changed before a bring-back.
    FromNode,
}

/// How urgent a transfer is; the smallest goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Urgency {
    /// Nobody waits for its end to have the volume elsewhere.
    pub may_wait: bool,
    /// When it should have begun.
    pub due: Timestamp,
}

#[derive(Debug, Default)]
struct Line {
    running: BTreeSet<VolumeId>,
    waiting: BTreeMap<VolumeId, Urgency>,
    order: BTreeSet<(Urgency, VolumeId)>,
}

impl Line {
    fn stop_waiting(&mut self, volume: VolumeId) -> Option<Urgency> {
        let urgency = self.waiting.remove(&volume)?;
        self.order.remove(&(urgency, volume));
        Some(urgency)
    }

    fn next(&self, most: usize) -> impl Iterator<Item = VolumeId> {
        let free = most.saturating_sub(self.running.len());
        self.order.iter().take(free).map(|(_, volume)| *volume)
    }
}

/// The lines of a NAS.
#[derive(Debug, Default)]
pub(crate) struct Turns(Mutex<[Line; 2]>);

impl Turns {
    fn lines(&self) -> MutexGuard<'_, [Line; 2]> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a transfer begin when it is its turn; otherwise it stands in line from now on, and this says what for.
    pub fn take(&self, volume: VolumeId, way: Way, urgency: Urgency, most: usize) -> Result<(), String> {
        let line = &mut self.lines()[way as usize];
        if line.running.contains(&volume) {
            return Ok(());
        }
        // Who waits does not lose its place by asking again.
        let urgency = line.stop_waiting(volume).map_or(urgency, |before| before.min(urgency));
        line.waiting.insert(volume, urgency);
        line.order.insert((urgency, volume));
        if line.next(most).any(|next| next == volume) {
            line.stop_waiting(volume);
            line.running.insert(volume);
            return Ok(());
        }
        let way = if way == Way::ToNode { "to nodes" } else { "from nodes" };
        Err(match most {
            1 => format!("waits for the transfer {way} that is under way to end"),
            _ => format!("waits for one of {most} transfers {way} to end"),
        })
    }

    /// A transfer runs that had begun before.
    pub fn keep(&self, volume: VolumeId, way: Way) {
        for (at, line) in self.lines().iter_mut().enumerate() {
            line.stop_waiting(volume);
            if at == way as usize {
                line.running.insert(volume);
            } else {
                line.running.remove(&volume);
            }
        }
    }

    /// The volume has no transfer and wants none; says whether that makes room for another.
    pub fn leave(&self, volume: VolumeId) -> bool {
        let mut left = false;
        for line in self.lines().iter_mut() {
            left |= line.running.remove(&volume) | line.stop_waiting(volume).is_some();
        }
        left
    }

    /// Those whose turn it is.
    pub fn next(&self, most: usize) -> Vec<VolumeId> {
        self.lines().iter().flat_map(|line| line.next(most)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn volume(n: u128) -> VolumeId {
        VolumeId(Uuid::from_u128(n))
    }

    fn at(second: i64) -> Urgency {
        Urgency { may_wait: true, due: Timestamp::from_second(second).unwrap() }
    }

    #[test]
    fn the_latest_goes_first_and_the_last_write_back_before_it() {
        let turns = Turns::default();
        turns.take(volume(1), Way::FromNode, at(50), 1).unwrap();
        for (n, urgency) in [(2, at(40)), (3, at(30)), (4, Urgency { may_wait: false, ..at(60) })] {
            let why = turns.take(volume(n), Way::FromNode, urgency, 1).unwrap_err();
            assert!(why.contains("waits for"), "{why}");
        }
        // The other direction is not in the way.
        turns.take(volume(9), Way::ToNode, at(70), 1).unwrap();
        for expected in [4, 3, 2] {
            assert!(turns.next(1).is_empty());
            let running = turns.lines()[Way::FromNode as usize].running.first().copied().unwrap();
            assert!(turns.leave(running));
            assert_eq!(turns.next(1), [volume(expected)]);
            for n in [2, 3, 4].into_iter().filter(|n| *n != expected && turns.lines()[1].waiting.contains_key(&volume(*n))) {
                turns.take(volume(n), Way::FromNode, at(35), 1).unwrap_err();
            }
            turns.take(volume(expected), Way::FromNode, at(99), 1).unwrap();
        }
        assert!(turns.leave(volume(2)) && !turns.leave(volume(2)));
    }

    #[test]
    fn what_had_begun_goes_on_and_counts() {
        let turns = Turns::default();
        (1..=3).for_each(|n| turns.keep(volume(n), Way::FromNode));
        assert_eq!(turns.take(volume(4), Way::FromNode, at(1), 3).unwrap_err(), "waits for one of 3 transfers from nodes to end");
        turns.leave(volume(1));
        turns.take(volume(4), Way::FromNode, at(1), 3).unwrap();
        // Fewer may run from now on.
        turns.take(volume(5), Way::FromNode, at(0), 2).unwrap_err();
        assert!(turns.leave(volume(2)) && turns.next(2).is_empty());
        // A volume is in one line at a time.
        turns.keep(volume(3), Way::ToNode);
        assert_eq!(turns.next(2), [volume(5)]);
    }
}
