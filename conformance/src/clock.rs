//! The one place of this crate that reads a clock: how long a step may still wait.

use std::time::{Duration, Instant};

/// A moment after which a wait has failed.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(Instant);

impl Deadline {
    pub fn after(limit: Duration) -> Self {
        Self(now() + limit)
    }

    /// What is left, never less than a millisecond, since a socket refuses a timeout of zero.
    pub fn left(self) -> Duration {
        self.0.saturating_duration_since(now()).max(Duration::from_millis(1))
    }

    pub fn is_over(self) -> bool {
        now() >= self.0
    }

    /// Asks `ready` again and again until it says yes (true) or time is up (false).
    pub fn poll(self, mut ready: impl FnMut() -> bool) -> bool {
        loop {
            if ready() {
                return true;
            }
            if self.is_over() {
                return false;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "a test runner waits for other processes in real time")]
fn now() -> Instant {
    Instant::now()
}
