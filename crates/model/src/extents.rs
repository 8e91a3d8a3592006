//! Sets of byte ranges of a volume, and their coalescing.
//!
//! A write-back is verified by a digest over the ranges that moved. Both sides hold equal contents at that point in time
//! *everywhere*, so a superset of the ranges is as good; closing the smallest gaps keeps the list short enough for a message.

use serde::{Deserialize, Serialize};

/// `length` bytes from `offset` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// First byte.
    pub offset: u64,
    /// Bytes; never 0 in [`Extents`].
    pub length: u64,
}

impl Extent {
    /// The byte after the last one.
    pub fn end(self) -> u64 {
        self.offset.saturating_add(self.length)
    }
}

/// Ascending ranges that neither touch nor overlap.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<Extent>", into = "Vec<Extent>")]
pub struct Extents(Vec<Extent>);

/// The most ranges one message carries.
pub const MOST: usize = 4096;

impl Extents {
    /// Sorts and merges ranges; empty ones vanish.
    pub fn new(mut ranges: Vec<Extent>) -> Self {
        ranges.retain(|r| r.length > 0);
        ranges.sort_by_key(|r| r.offset);
        let mut merged: Vec<Extent> = Vec::with_capacity(ranges.len());
        for range in ranges {
            match merged.last_mut() {
                Some(last) if range.offset <= last.end() => last.length = last.end().max(range.end()) - last.offset,
                _ => merged.push(range),
            }
        }
        Extents(merged)
    }

    /// The whole of a volume.
    pub fn whole(size: u64) -> Self {
        Self::new(vec![Extent { offset: 0, length: size }])
    }

    /// At most `most` ranges (at least 1) that cover these, by closing the smallest gaps.
    #[must_use]
    pub fn coalesced(self, most: usize) -> Self {
        let most = most.max(1);
        if self.0.len() <= most {
            return self;
        }
        let mut gaps: Vec<(u64, usize)> = self.0.windows(2).enumerate().map(|(i, w)| (w[1].offset - w[0].end(), i)).collect();
        let close = self.0.len() - most;
        gaps.select_nth_unstable(close - 1);
        let mut closed = vec![false; self.0.len()];
        for (_, before) in &gaps[..close] {
            closed[*before] = true;
        }
        let mut merged: Vec<Extent> = Vec::with_capacity(most);
        for (i, range) in self.0.iter().enumerate() {
            match merged.last_mut() {
                Some(last) if closed[i - 1] => last.length = range.end() - last.offset,
                _ => merged.push(*range),
            }
        }
        Extents(merged)
    }

    /// The ranges, ascending.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Extent> + '_ {
        self.0.iter().copied()
    }

    /// How many bytes they cover.
    pub fn bytes(&self) -> u64 {
        self.0.iter().map(|r| r.length).sum()
    }

    /// Whether they cover nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The byte after the last range; 0 when empty.
    pub fn end(&self) -> u64 {
        self.0.last().map_or(0, |r| r.end())
    }
}

impl From<Extents> for Vec<Extent> {
    fn from(extents: Extents) -> Self {
        extents.0
    }
}

impl TryFrom<Vec<Extent>> for Extents {
    type Error = String;
    fn try_from(ranges: Vec<Extent>) -> Result<Self, String> {
        let ordered = ranges.windows(2).all(|w| w[0].end() < w[1].offset);
        if ordered && ranges.iter().all(|r| r.length > 0 && r.offset.checked_add(r.length).is_some()) {
            Ok(Extents(ranges))
        } else {
            Err("ranges are not ascending, apart and non-empty".to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn arbitrary() -> impl Strategy<Value = Vec<Extent>> {
        proptest::collection::vec((0u64..2000, 0u64..50), 0..60)
            .prop_map(|v| v.into_iter().map(|(offset, length)| Extent { offset, length }).collect())
    }

    proptest! {
        #[test]
        fn coalescing_covers_everything_with_few_ranges(ranges in arbitrary(), most in 1usize..20) {
            let extents = Extents::new(ranges.clone());
            let few = extents.clone().coalesced(most);
            prop_assert!(few.iter().len() <= most.max(1));
            for r in ranges.iter().filter(|r| r.length > 0) {
                prop_assert!(few.iter().any(|e| e.offset <= r.offset && e.end() >= r.end()));
            }
            prop_assert!(few.bytes() >= extents.bytes());
            prop_assert_eq!(few.end(), extents.end());
            prop_assert_eq!(Extents::try_from(Vec::from(few.clone())), Ok(few));
        }
    }
}
