//! How fast something goes: bytes per second over the last few seconds.

use std::{collections::VecDeque, time::Duration};
use tokio::time::Instant;

/// How far back it looks.
const WINDOW: Duration = Duration::from_secs(3);

/// Recent readings of a growing number of bytes.
#[derive(Debug, Default)]
pub struct Rate(VecDeque<(Instant, u64)>);

impl Rate {
    /// So many bytes were done at that time.
    pub fn at(&mut self, done: u64, now: Instant) {
        if self.0.back().is_some_and(|(_, last)| *last > done) {
            self.0.clear();
        }
        self.0.push_back((now, done));
        while self.0.len() > 2 && self.0.front().is_some_and(|(at, _)| now.duration_since(*at) > WINDOW) {
            self.0.pop_front();
        }
    }

    /// Bytes per second, once there are two readings apart.
    pub fn per_second(&self) -> Option<u64> {
        let (first, last) = (self.0.front()?, self.0.back()?);
        let millis = last.0.duration_since(first.0).as_millis();
        (millis >= 50).then(|| u64::try_from(u128::from(last.1 - first.1) * 1000 / millis).unwrap_or(u64::MAX))
    }
}
