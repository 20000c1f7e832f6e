//! Deadlines: they only matter for tests that fail.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How long anything may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(2);

/// Looks again and again until something is so.
///
/// # Panics
/// If it never is.
#[track_caller]
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    within(what, || is_so().then_some(()));
}

/// Looks again and again until there is something, and gives it back.
///
/// # Panics
/// If there never is.
#[track_caller]
pub fn within<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "never: {what}");
        std::thread::sleep(PAUSE);
    }
}

/// Holds a script until the test lets it go on. Copies are the same gate.
#[derive(Clone, Default)]
pub struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    pub fn open(&self) {
        let (open, changed) = &*self.0;
        *open.lock().unwrap_or_else(PoisonError::into_inner) = true;
        changed.notify_all();
    }

    /// # Panics
    /// If it is never opened.
    #[track_caller]
    pub fn wait(&self) {
        let (open, changed) = &*self.0;
        let held = open.lock().unwrap_or_else(PoisonError::into_inner);
        let (held, _) =
            changed.wait_timeout_while(held, PATIENCE, |open| !*open).unwrap_or_else(PoisonError::into_inner);
        assert!(*held, "never: the gate is opened");
    }
}

/// Raises a flag when it is dropped, so that the threads of a test stop also where the test fails.
pub struct RaisedAtEnd<'f>(pub &'f AtomicBool);

impl Drop for RaisedAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}
