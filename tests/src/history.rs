//! What was written, and therefore what each block may contain: now, after a crash, or at some point in time.
//!
//! Everything that happens gets the next number of one clock. A write is known by the number of its issue; its effect falls
//! between that and its acknowledgement. From this follows what a reader may see, and whether an image as a whole is what
//! the disk was at *one* instant: after the issue of every write that is in it, and before the acknowledgement of every write
//! that is not.

use crate::stamp::{self, Bad};
use std::{fs::File, io, os::unix::fs::FileExt as _};

/// Not acknowledged, as far as we know.
const NEVER: u64 = u64::MAX;

/// A place on the disk that did not contain what it must.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A write is not there that must be.
    #[error("lost: offset {offset} must have write {must} ({why}) or a later one; it has write {found}")]
    Lost {
        /// Where.
        offset: u64,
        /// The write.
        must: u64,
        /// Why it must be there.
        why: &'static str,
        /// What is there.
        found: u64,
    },
    /// A write is there that cannot be: it was never issued, or it had been found not to have taken effect.
    #[error("from nowhere: offset {offset} has write {found}, which cannot be there")]
    Impossible {
        /// Where.
        offset: u64,
        /// What is there.
        found: u64,
    },
    /// No write of ours looks like this.
    #[error("corrupt: offset {offset}: {bad}")]
    Corrupt {
        /// Where.
        offset: u64,
        /// What is wrong.
        bad: Bad,
    },
    /// The blocks are not of one point in time.
    #[error(
        "not a point in time: write {newer} at offset {newer_at} is in it, but offset {older_at} lacks a write that was acknowledged \
         (event {acknowledged}) before that was issued"
    )]
    Mixed {
        /// A write that is there.
        newer: u64,
        /// Its place.
        newer_at: u64,
        /// The place of what is not there.
        older_at: u64,
        /// When that was acknowledged.
        acknowledged: u64,
    },
}

#[derive(Clone, Copy, Debug)]
struct Write {
    issued: u64,
    acknowledged: u64,
}

#[derive(Clone, Debug, Default)]
struct Block {
    /// Ascending. Before them all is write 0, the initial contents.
    writes: Vec<Write>,
    /// A request is under way on it.
    busy: bool,
    /// A write's fate is unknown: its connection broke.
    doubtful: bool,
}

/// An image is what the disk was at some instant after event `from` and before event `to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The issue of the newest write that is in it.
    pub from: u64,
    /// The acknowledgement of the oldest write that is not in it.
    pub to: u64,
}

impl Cut {
    /// Whether everything acknowledged before `event` is in it.
    pub fn has_all_before(self, event: u64) -> bool {
        self.to >= event
    }
}

/// The history of a set of blocks. Blocks are numbered; where they lie is [`History::offset`].
#[derive(Clone, Debug)]
pub struct History {
    run: u64,
    block: u32,
    offsets: Vec<u64>,
    blocks: Vec<Block>,
    stamped: bool,
    clock: u64,
    durable: u64,
}

impl History {
    /// Nothing was written yet; every block at `offsets` (ascending) is zero, or when `stamped` has stamp 0 of this run.
    pub fn new(run: u64, block: u32, offsets: Vec<u64>, stamped: bool) -> Self {
        assert!(block >= stamp::SMALLEST && offsets.is_sorted());
        let blocks = vec![Block::default(); offsets.len()];
        History { run, block, offsets, blocks, stamped, clock: 0, durable: 0 }
    }

    /// The run's number, part of every stamp.
    pub fn run(&self) -> u64 {
        self.run
    }

    /// A block's length.
    pub fn block_size(&self) -> u32 {
        self.block
    }

    /// How many blocks there are.
    pub fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// Where a block lies.
    pub fn offset(&self, index: usize) -> u64 {
        self.offsets[index]
    }

    /// A moment between what happened and what will.
    pub fn now(&mut self) -> u64 {
        self.tick()
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// Takes up to `most` blocks from `first` on that lie one behind the other and have nothing under way; gives how many.
    pub fn reserve(&mut self, first: usize, most: usize) -> usize {
        let mut taken = 0;
        while taken < most && first + taken < self.blocks.len() {
            let index = first + taken;
            let adjoins = taken == 0 || self.offsets[index] == self.offsets[index - 1] + u64::from(self.block);
            if !adjoins || self.blocks[index].busy || self.blocks[index].doubtful {
                break;
            }
            self.blocks[index].busy = true;
            taken += 1;
        }
        taken
    }

    /// Gives reserved blocks back.
    pub fn release(&mut self, first: usize, count: usize) {
        for block in &mut self.blocks[first..first + count] {
            block.busy = false;
        }
    }

    /// A write to reserved blocks is about to be sent; gives its number.
    pub fn issue(&mut self, first: usize, count: usize) -> u64 {
        let issued = self.tick();
        for block in &mut self.blocks[first..first + count] {
            block.writes.push(Write { issued, acknowledged: NEVER });
        }
        issued
    }

    /// It was acknowledged.
    pub fn acknowledge(&mut self, first: usize, count: usize) {
        let now = self.tick();
        for block in &mut self.blocks[first..first + count] {
            if let Some(last) = block.writes.last_mut() {
                last.acknowledged = now;
            }
        }
    }

    /// Nobody knows what became of it.
    pub fn doubt(&mut self, first: usize, count: usize) {
        for block in &mut self.blocks[first..first + count] {
            block.doubtful = true;
        }
    }

    /// A flush that was sent at `event` was acknowledged: what was acknowledged before it is on stable storage.
    pub fn flushed(&mut self, event: u64) {
        self.durable = self.durable.max(event);
    }

    /// Checks what a reader found in a reserved block, which nobody else has under way: the last write, exactly.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check_read(&self, index: usize, bytes: &[u8]) -> Result<(), Violation> {
        let found = self.sequence(index, bytes)?;
        let last = self.blocks[index].writes.last().map_or(0, |w| w.issued);
        match found.cmp(&last) {
            std::cmp::Ordering::Equal => Ok(()),
            std::cmp::Ordering::Less => {
                Err(Violation::Lost { offset: self.offsets[index], must: last, why: "acknowledged", found })
            }
            std::cmp::Ordering::Greater => Err(Violation::Impossible { offset: self.offsets[index], found }),
        }
    }

    /// Takes what a block has after a crash as settled. What was acknowledged must be there; whether a write that was not took
    /// effect is decided by what is found. With `only_flushed`, what was acknowledged and not flushed may be gone too.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn settle(&mut self, index: usize, bytes: &[u8], only_flushed: bool) -> Result<(), Violation> {
        let found = self.sequence(index, bytes)?;
        let offset = self.offsets[index];
        let durable = self.durable;
        let now = self.tick();
        let block = &mut self.blocks[index];
        let kept = |w: &&Write| if only_flushed { w.acknowledged < durable } else { w.acknowledged != NEVER };
        let must = block.writes.iter().rev().find(kept).map_or(0, |w| w.issued);
        if found < must {
            let why = if only_flushed { "flushed" } else { "acknowledged" };
            return Err(Violation::Lost { offset, must, why, found });
        }
        if found != 0 && !block.writes.iter().any(|w| w.issued == found) {
            return Err(Violation::Impossible { offset, found });
        }
        block.writes.retain(|w| w.issued <= found || w.acknowledged != NEVER);
        if let Some(last) = block.writes.last_mut().filter(|w| w.issued == found && w.acknowledged == NEVER) {
            last.acknowledged = now;
        }
        block.doubtful = false;
        Ok(())
    }

    /// Blocks whose content is in doubt, as runs of neighbours `(first, count)` of at most `most`.
    pub fn doubtful(&self, most: usize) -> Vec<(usize, usize)> {
        self.runs(most, |block| block.doubtful)
    }

    /// All blocks, as runs of neighbours of at most `most`.
    pub fn all(&self, most: usize) -> Vec<(usize, usize)> {
        self.runs(most, |_| true)
    }

    fn runs(&self, most: usize, wanted: impl Fn(&Block) -> bool) -> Vec<(usize, usize)> {
        let mut runs: Vec<(usize, usize)> = Vec::new();
        for index in (0..self.blocks.len()).filter(|i| wanted(&self.blocks[*i])) {
            match runs.last_mut() {
                Some((first, count))
                    if *first + *count == index
                        && *count < most
                        && self.offsets[index] == self.offsets[index - 1] + u64::from(self.block) =>
                {
                    *count += 1;
                }
                _ => runs.push((index, 1)),
            }
        }
        runs
    }

    /// Whether an image file is what the disk was at one instant, and which.
    ///
    /// # Errors
    /// A file that cannot be read, or the [`Violation`] as its source.
    pub fn cut(&self, image: &File) -> io::Result<Result<Cut, Violation>> {
        let mut whole = (0, 0);
        let mut lacking = (NEVER, 0);
        let mut bytes = vec![0; 256 * self.block as usize];
        for (first, count) in self.all(256) {
            let bytes = &mut bytes[..count * self.block as usize];
            image.read_exact_at(bytes, self.offsets[first])?;
            for (index, bytes) in (first..).zip(bytes.chunks(self.block as usize)) {
                let found = match self.sequence(index, bytes) {
                    Ok(found) => found,
                    Err(violation) => return Ok(Err(violation)),
                };
                let writes = &self.blocks[index].writes;
                let after = writes.partition_point(|w| w.issued <= found);
                if found != 0 && (after == 0 || writes[after - 1].issued != found) {
                    return Ok(Err(Violation::Impossible { offset: self.offsets[index], found }));
                }
                whole = whole.max((found, self.offsets[index]));
                let next = writes[after..].iter().map(|w| w.acknowledged).min().unwrap_or(NEVER);
                lacking = lacking.min((next, self.offsets[index]));
            }
        }
        if whole.0 > lacking.0 {
            let ((newer, newer_at), (acknowledged, older_at)) = (whole, lacking);
            return Ok(Err(Violation::Mixed { newer, newer_at, older_at, acknowledged }));
        }
        Ok(Ok(Cut { from: whole.0, to: lacking.0 }))
    }

    fn sequence(&self, index: usize, bytes: &[u8]) -> Result<u64, Violation> {
        let offset = self.offsets[index];
        let found = stamp::check(bytes, self.run, offset).map_err(|bad| Violation::Corrupt { offset, bad })?;
        match found {
            None if self.stamped => Err(Violation::Corrupt { offset, bad: Bad::Zeroes }),
            found => Ok(found.unwrap_or(0)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    const SIZE: usize = 512;

    fn history() -> History {
        History::new(9, 512, (0..4).map(|n| n * 512).collect(), false)
    }

    fn block(history: &History, index: usize, sequence: u64) -> Vec<u8> {
        let mut bytes = vec![0; SIZE];
        if sequence != 0 {
            stamp::fill(&mut bytes, history.run(), history.offset(index), sequence);
        }
        bytes
    }

    fn image(history: &History, sequences: [u64; 4]) -> File {
        let mut file = tempfile::tempfile().expect("a file");
        for (index, sequence) in sequences.into_iter().enumerate() {
            file.write_all(&block(history, index, sequence)).expect("written");
        }
        file
    }

    fn write(history: &mut History, index: usize) -> u64 {
        assert_eq!(history.reserve(index, 1), 1);
        let sequence = history.issue(index, 1);
        history.acknowledge(index, 1);
        history.release(index, 1);
        sequence
    }

    #[test]
    fn what_was_acknowledged_is_read() {
        let mut history = history();
        let (first, second) = (write(&mut history, 0), write(&mut history, 0));
        assert!(history.check_read(0, &block(&history, 0, second)).is_ok());
        assert!(matches!(history.check_read(0, &block(&history, 0, first)), Err(Violation::Lost { .. })));
        assert!(matches!(history.check_read(0, &block(&history, 0, 0)), Err(Violation::Lost { .. })));
        assert!(matches!(history.check_read(1, &block(&history, 1, second)), Err(Violation::Impossible { .. })));
        assert!(matches!(history.check_read(1, &block(&history, 0, second)), Err(Violation::Corrupt { .. })));
    }

    #[test]
    fn neighbours_are_reserved_once_and_not_across_a_gap() {
        let mut history = History::new(1, 512, vec![0, 512, 4096, 4608], false);
        assert_eq!(history.reserve(0, 4), 2);
        assert_eq!(history.reserve(1, 1), 0);
        assert_eq!(history.reserve(2, 9), 2);
        history.release(0, 2);
        assert_eq!(history.reserve(1, 4), 1);
        assert_eq!(history.all(9), [(0, 2), (2, 2)]);
    }

    #[test]
    fn a_crash_decides_what_became_of_what_was_under_way() {
        let mut history = history();
        let sure = write(&mut history, 0);
        assert_eq!(history.reserve(0, 1), 1);
        let open = history.issue(0, 1);
        history.doubt(0, 1);
        history.release(0, 1);
        assert_eq!(history.reserve(0, 1), 0, "in doubt");
        assert_eq!(history.doubtful(8), [(0, 1)]);
        assert!(matches!(history.clone().settle(0, &block(&history, 0, 0), false), Err(Violation::Lost { .. })));
        let mut kept = history.clone();
        kept.settle(0, &block(&history, 0, open), false).expect("it may have taken effect");
        assert!(kept.check_read(0, &block(&history, 0, open)).is_ok());
        let mut dropped = history.clone();
        dropped.settle(0, &block(&history, 0, sure), false).expect("or not");
        let late = dropped.check_read(0, &block(&history, 0, open));
        assert!(matches!(late, Err(Violation::Impossible { .. })), "but it may not come later");
    }

    #[test]
    fn without_power_only_what_was_flushed_must_be_there() {
        let mut history = history();
        let flushed = write(&mut history, 0);
        let event = history.now();
        history.flushed(event);
        write(&mut history, 0);
        let old = block(&history, 0, flushed);
        assert!(history.clone().settle(0, &old, true).is_ok());
        assert!(history.clone().settle(0, &old, false).is_err());
        assert!(history.clone().settle(0, &block(&history, 0, 0), true).is_err());
    }

    #[test]
    fn an_image_is_of_one_instant_or_not() {
        let mut history = history();
        let (a, b, c) = (write(&mut history, 0), write(&mut history, 1), write(&mut history, 0));
        let cut = |sequences| history.cut(&image(&history, sequences)).expect("read");
        for good in [[0, 0, 0, 0], [a, 0, 0, 0], [a, b, 0, 0], [c, b, 0, 0]] {
            assert!(cut(good).is_ok(), "{good:?}");
        }
        for bad in [[0, b, 0, 0], [c, 0, 0, 0]] {
            assert!(matches!(cut(bad), Err(Violation::Mixed { .. })), "{bad:?}");
        }
        assert!(cut([a, b, 0, 0]).expect("good").has_all_before(b + 1));
        assert!(!cut([a, 0, 0, 0]).expect("good").has_all_before(b + 2));
        assert!(matches!(cut([a, a, 0, 0]), Err(Violation::Impossible { .. })));
    }

    #[test]
    fn writes_under_way_together_may_be_in_an_image_or_not() {
        let mut history = history();
        assert_eq!(history.reserve(0, 2), 2);
        let (a, b) = (history.issue(0, 1), history.issue(1, 1));
        history.acknowledge(1, 1);
        history.acknowledge(0, 1);
        let after = write(&mut history, 2);
        for good in [[0, 0, 0, 0], [a, 0, 0, 0], [0, b, 0, 0], [a, b, after, 0]] {
            assert!(history.cut(&image(&history, good)).expect("read").is_ok(), "{good:?}");
        }
        for bad in [[a, 0, after, 0], [0, b, after, 0]] {
            assert!(history.cut(&image(&history, bad)).expect("read").is_err(), "{bad:?}");
        }
    }
}
