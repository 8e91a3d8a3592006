//! What guests wrote to a volume, and which of it they were told is done.
//!
//! Every write has a version, unique in its volume; a block's content is the version last written to it. Issue and
//! answer of a write each get an event number, from which follows which copies can be a point in time: a copy is one if there
//! is a moment before which everything in it was issued, and at which nothing that it lacks had been answered.

use img_storage_model::Epoch;

/// One write to a block.
#[derive(Clone, Copy, Debug)]
struct Write {
    version: u64,
    issued: u64,
    acked: Option<u64>,
}

/// All writes to one volume.
#[derive(Debug, Default)]
pub(super) struct History {
    blocks: Vec<Vec<Write>>,
    events: u64,
    version: u64,
    /// The highest epoch whose export has begun.
    pub epoch: Epoch,
    /// How many writes were answered.
    pub acked: u64,
}

impl History {
    fn event(&mut self) -> u64 {
        self.events += 1;
        self.events
    }

    fn block(&mut self, block: usize) -> &mut Vec<Write> {
        if self.blocks.len() <= block {
            self.blocks.resize_with(block + 1, Vec::new);
        }
        &mut self.blocks[block]
    }

    /// A guest issues a write; its version.
    pub fn issue(&mut self, block: usize) -> u64 {
        let issued = self.event();
        self.version += 1;
        let version = self.version;
        self.block(block).push(Write { version, issued, acked: None });
        version
    }

    /// A guest is told that its write is done.
    pub fn ack(&mut self, block: usize, version: u64) {
        let event = self.event();
        self.acked += 1;
        if let Some(write) = self.block(block).iter_mut().rev().find(|w| w.version == version) {
            write.acked = Some(event);
        }
    }

    /// Everything that was written is done.
    pub fn ack_all(&mut self) {
        let event = self.event();
        for write in self.blocks.iter_mut().flatten().filter(|w| w.acked.is_none()) {
            write.acked = Some(event);
            self.acked += 1;
        }
    }

    /// What this copy lacks counts as never answered.
    pub fn forget_newer(&mut self, copy: &[u64]) {
        for (block, writes) in self.blocks.iter_mut().enumerate() {
            let have = copy.get(block).copied().unwrap_or(0);
            for write in writes.iter_mut().filter(|w| w.version > have) {
                write.acked = None;
            }
        }
    }

    /// The newest answered version of a block; 0 when there is none.
    pub fn newest_acked(&self, block: usize) -> u64 {
        self.blocks.get(block).and_then(|w| w.iter().rev().find(|w| w.acked.is_some())).map_or(0, |w| w.version)
    }

    /// Whether this version of this block was answered.
    pub fn is_acked(&self, block: usize, version: u64) -> bool {
        self.find(block, version).is_some_and(|w| w.acked.is_some())
    }

    fn find(&self, block: usize, version: u64) -> Option<Write> {
        let writes = self.blocks.get(block)?;
        writes.binary_search_by_key(&version, |w| w.version).ok().map(|i| writes[i])
    }

    /// What is wrong with a copy that ought to be a point in time.
    pub fn point_in_time(&self, copy: &[u64]) -> Result<(), String> {
        let mut newest = (0, 0);
        for (block, version) in copy.iter().copied().enumerate().filter(|(_, version)| *version > 0) {
            let Some(write) = self.find(block, version) else {
                return Err(format!("block {block} has {version}, which was never written there"));
            };
            newest = newest.max((write.issued, block));
        }
        for (block, writes) in self.blocks.iter().enumerate() {
            let have = copy.get(block).copied().unwrap_or(0);
            let later = writes.partition_point(|w| w.version <= have);
            if let Some(missing) = writes[later..].iter().find(|w| w.acked.is_some())
                && missing.acked.is_some_and(|acked| acked < newest.0)
            {
                return Err(format!(
                    "block {block} has {have} and lacks {}, which was answered before block {} got its {}",
                    missing.version, newest.1, copy[newest.1]
                ));
            }
        }
        Ok(())
    }

    /// What is wrong with a copy that ought to have every answered write.
    pub fn complete(&self, copy: &[u64]) -> Result<(), String> {
        for block in 0..self.blocks.len().max(copy.len()) {
            let (have, acked) = (copy.get(block).copied().unwrap_or(0), self.newest_acked(block));
            if have < acked {
                return Err(format!("block {block} has {have} and lacks the answered {acked}"));
            }
            if have > 0 && self.find(block, have).is_none() {
                return Err(format!("block {block} has {have}, which was never written there"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_in_time_is_closed_under_what_was_answered_before() {
        let mut h = History::default();
        let a = h.issue(0);
        h.ack(0, a);
        let b = h.issue(1);
        h.ack(1, b);
        let c = h.issue(0);
        assert!(h.point_in_time(&[0, 0]).is_ok());
        assert!(h.point_in_time(&[a, 0]).is_ok());
        assert!(h.point_in_time(&[a, b]).is_ok());
        assert!(h.point_in_time(&[0, b]).is_err());
        assert!(h.point_in_time(&[c, b]).is_ok(), "a write not answered may be there");
        assert!(h.point_in_time(&[c, 0]).is_err());
        assert!(h.point_in_time(&[b, 0]).is_err(), "in the wrong place");
        assert!(h.complete(&[c, b]).is_ok() && h.complete(&[a, b]).is_ok() && h.complete(&[a, 0]).is_err());
    }
}
