//! What the actors of a volume have in common on both sides: how long a look and a step may take, and that a step which is done
//! again and again without effect counts as failed.

use crate::retry::Retry;
use jiff::Timestamp;
use std::{fmt::Debug, time::Duration};

/// How long a look at the host may take.
pub const OBSERVE_DEADLINE: Duration = Duration::from_secs(10);
/// How long what was seen of a volume's zvols may be carried over to the next facts.
pub const CARRIED: Duration = Duration::from_secs(3);
/// How often the host is looked at while a step is held back after a failure: what it waits for may be there before its time.
pub const HELD: Duration = Duration::from_secs(1);
/// So many times the same step is done in a row before it is slowed down.
const SAME_STEP: u32 = 3;
/// Bytes per second that steps with bulk data reach at the least.
const SLOWEST: u64 = 5 << 20;

/// Why nothing is known after [`OBSERVE_DEADLINE`].
pub fn unanswered() -> String {
    format!("no answer within {} s", OBSERVE_DEADLINE.as_secs())
}

/// How long a step may take that reads or writes `bytes`, besides the ordinary deadline.
pub fn bulk(bytes: u64) -> Duration {
    Duration::from_secs(bytes / SLOWEST)
}

/// What a step that was not done in time is said to be.
pub fn late(step: &impl Debug, deadline: Duration) -> String {
    format!("{} was not done within {} s", verb(step), deadline.as_secs())
}

/// The step's name, without what it is done with.
pub fn verb(step: &impl Debug) -> String {
    let text = format!("{step:?}");
    text.split([' ', '{']).next().unwrap_or_default().to_owned()
}

/// The last step and how often it was done in a row.
#[derive(Debug)]
pub struct Repeats<S>(Option<(S, u32)>);

impl<S> Default for Repeats<S> {
    fn default() -> Self {
        Repeats(None)
    }
}

impl<S: Clone + Debug + PartialEq> Repeats<S> {
    /// A step went well; one that is done again and again, and seen to change nothing, is a failure too.
    pub fn done(&mut self, step: &S, retry: &mut Retry, now: Timestamp) {
        let before = self.0.take().filter(|(last, _)| last == step).map_or(0, |(_, times)| times);
        let times = before + 1;
        self.0 = Some((step.clone(), times));
        if times < SAME_STEP {
            retry.well();
        } else {
            retry.failed(format!("{} was done {times} times and nothing came of it", verb(step)), now);
        }
    }

    /// Nothing is left to do for now: the next step is the first of its kind.
    pub fn rest(&mut self) {
        self.0 = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use img_storage_model::{Size, nas::qemu::NasStep};

    #[test]
    fn only_the_same_step_in_a_row_is_a_failure() {
        let (mut repeats, mut retry, now) = (Repeats::default(), Retry::default(), Timestamp::UNIX_EPOCH);
        let create = |size| NasStep::CreateDisk { size: Size::exact(size).unwrap() };
        for step in [create(1 << 20), create(1 << 20), create(2 << 20), NasStep::RemoveDisk, create(1 << 20), create(1 << 20)] {
            repeats.done(&step, &mut retry, now);
            assert_eq!(retry.why(), None);
        }
        repeats.rest();
        for _ in 0..2 {
            repeats.done(&NasStep::RemoveDisk, &mut retry, now);
            assert_eq!(retry.why(), None);
        }
        repeats.done(&NasStep::RemoveDisk, &mut retry, now);
        assert_eq!(retry.why(), Some("RemoveDisk was done 3 times and nothing came of it"));
        repeats.done(&create(1 << 20), &mut retry, now);
        assert_eq!(retry.why(), None);
        repeats.done(&create(1 << 20), &mut retry, now);
        repeats.done(&create(1 << 20), &mut retry, now);
        assert_eq!(retry.why(), Some("CreateDisk was done 3 times and nothing came of it"));
    }
}
