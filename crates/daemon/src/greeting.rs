//! Saying hello to the front ends, for as long as a daemon runs: by that they know that it is there.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};
use tokio::time::sleep;

/// How often a daemon that has nothing to say says that it is there.
const HELLO_EVERY: Duration = Duration::from_secs(5);
/// The first pause before a front end that is not there is greeted again.
const HELLO_AGAIN: Duration = Duration::from_millis(300);

/// Greetings, and whether one came back.
#[derive(Debug, Default)]
pub struct Greeting {
    away: AtomicBool,
}

impl Greeting {
    /// A front end is not on the bus.
    pub fn came_back(&self) {
        self.away.store(true, Ordering::Relaxed);
    }

    /// Has the front ends greeted, for ever. One that is only just starting is greeted soon; one that stays away, less and less often.
    pub async fn go_on(&self, greet: impl Fn()) {
        let mut again = HELLO_AGAIN;
        loop {
            self.away.store(false, Ordering::Relaxed);
            greet();
            sleep(again).await;
            if self.away.load(Ordering::Relaxed) {
                again = (again * 2).min(HELLO_EVERY / 2);
            } else {
                sleep(HELLO_EVERY - again).await;
                again = HELLO_AGAIN;
            }
        }
    }
}
