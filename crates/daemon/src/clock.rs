//! Time and identities, as the daemons get them; both can be replaced by deterministic ones for the simulation.

use jiff::{SignedDuration, Timestamp};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::time::Instant;
use uuid::Uuid;

/// Wall-clock time. The simulated one follows tokio's (paused) time from a fixed start.
#[derive(Clone, Copy, Debug)]
pub enum Clock {
    /// The machine's.
    System,
    /// A start, and the tokio instant it was at.
    Simulated(Timestamp, Instant),
}

impl Clock {
    /// A clock that begins at `start` now and moves with tokio's time.
    pub fn simulated(start: Timestamp) -> Self {
        Clock::Simulated(start, Instant::now())
    }

    /// The time.
    pub fn now(&self) -> Timestamp {
        match self {
            Clock::System => Timestamp::now(),
            Clock::Simulated(start, at) => SignedDuration::try_from(at.elapsed()).map_or(*start, |d| *start + d),
        }
    }
}

/// Where new identities come from.
#[derive(Clone, Debug)]
pub struct Ids(Arc<Mutex<StdRng>>);

impl Ids {
    /// Unpredictable ones.
    pub fn random() -> Self {
        Ids(Arc::new(Mutex::new(StdRng::from_rng(&mut rand::rng()))))
    }

    /// The same ones for the same seed.
    pub fn seeded(seed: u64) -> Self {
        Ids(Arc::new(Mutex::new(StdRng::seed_from_u64(seed))))
    }

    /// A new identity (UUID v7), made at `now`.
    pub fn fresh(&self, now: Timestamp) -> Uuid {
        let random: [u8; 10] = self.0.lock().unwrap_or_else(PoisonError::into_inner).random();
        let millis = u64::try_from(now.as_millisecond()).unwrap_or(0);
        uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid()
    }
}
