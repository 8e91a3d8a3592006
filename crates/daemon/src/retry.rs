//! What failed, since when, and when it is tried again.

use img_storage_model::{HostName, api::Trouble};
use jiff::{SignedDuration, Timestamp};
use std::time::Duration;
use tokio::time::Instant;

/// The first pause after a failure.
const FIRST: Duration = Duration::from_millis(200);
/// The longest.
const LONGEST: Duration = Duration::from_secs(30);

/// The failures of one volume's steps since the last success.
#[derive(Clone, Debug, Default)]
pub struct Retry {
    attempts: u32,
    trouble: Option<(Timestamp, String)>,
    next: Option<(Instant, Timestamp)>,
}

impl Retry {
    /// A step failed at `now`; gives the pause before the next try.
    pub fn failed(&mut self, why: String, now: Timestamp) -> Duration {
        let pause = FIRST.saturating_mul(1 << self.attempts.min(10)).min(LONGEST);
        self.attempts += 1;
        let since = self.trouble.as_ref().map_or(now, |(since, _)| *since);
        self.trouble = Some((since, why));
        self.next = SignedDuration::try_from(pause).ok().map(|p| (Instant::now() + pause, now + p));
        pause
    }

    /// Something cannot go on by itself.
    pub fn stuck(&mut self, why: String, now: Timestamp) {
        let since = self.trouble.as_ref().map_or(now, |(since, _)| *since);
        self.trouble = Some((since, why));
        self.next = None;
    }

    /// A step went well.
    pub fn well(&mut self) {
        *self = Self::default();
    }

    /// How long the next try is still to be waited for, if it is; a wall clock that is set does not matter.
    pub fn holds(&self) -> Option<Duration> {
        let left = self.next?.0.saturating_duration_since(Instant::now());
        (!left.is_zero()).then_some(left)
    }

    /// For the operator.
    pub fn trouble(&self, host: &HostName) -> Option<Trouble> {
        let (since, why) = self.trouble.clone()?;
        Some(Trouble { host: host.clone(), why, since, next_try: self.next.map(|(_, at)| at) })
    }

    /// What is wrong, if anything.
    pub fn why(&self) -> Option<&str> {
        self.trouble.as_ref().map(|(_, why)| why.as_str())
    }
}
