//! Lines held back in memory (`buffer=`, `flush=`), one buffer a file for all threads.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{SystemTime, UNIX_EPOCH};

use weir_engine::errorlog::{Holding, LogFile};
use weir_engine::timer::Timers;

use super::{Complaint, File};

/// How a file is buffered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Buffering {
    /// Bytes.
    pub size: usize,
    /// Milliseconds that a line waits at most.
    pub flush: Option<u64>,
}

/// A buffered log. Lines never leave it torn: the buffer is written whenever the next line would not fit.
pub(super) struct Buffered {
    file: File,
    buffering: Buffering,
    lines: Mutex<Vec<u8>>,
    me: Weak<Buffered>,
}

impl Buffered {
    pub(super) fn open(file: Arc<LogFile>, buffering: Buffering) -> Arc<Self> {
        let buffered = Arc::new_cyclic(|me| Buffered {
            file: File { file: Arc::clone(&file), complained_at: AtomicU64::new(0) },
            buffering,
            lines: Mutex::default(),
            me: Weak::clone(me),
        });
        let held: Weak<Buffered> = Arc::downgrade(&buffered);
        file.hold(held);
        buffered
    }

    /// Whether this is the buffer of that file, of that kind.
    pub(super) fn fits(&self, file: &Arc<LogFile>, buffering: Buffering) -> bool {
        Arc::ptr_eq(&self.file.file, file) && self.buffering == buffering
    }

    /// Takes a whole line. One that is longer than the buffer is written right away.
    pub(super) fn write(&self, line: &[u8], second: u64, timers: &Timers) -> Result<(), Complaint> {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let size = self.buffering.size;
        let mut result = Ok(());
        if line.len() > size - lines.len() {
            result = self.write_out(&mut lines, second);
        }
        if line.len() > size {
            return result.and(self.file.write(line, second));
        }
        if lines.is_empty() {
            // Grown once, to its final size; given back only with the log.
            lines.reserve_exact(size);
            self.flush_later(timers);
        }
        lines.extend_from_slice(line);
        result
    }

    fn write_out(&self, lines: &mut Vec<u8>, second: u64) -> Result<(), Complaint> {
        if lines.is_empty() {
            return Ok(());
        }
        let result = self.file.write(lines, second);
        lines.clear();
        result
    }

    /// Writes the buffer when its first line has waited long enough.
    fn flush_later(&self, timers: &Timers) {
        let Some(flush) = self.buffering.flush else { return };
        let (me, timers) = (Weak::clone(&self.me), timers.clone());
        tokio::task::spawn_local(async move {
            timers.sleep(flush).await;
            if let Some(me) = me.upgrade() {
                me.flush();
            }
        });
    }
}

impl Holding for Buffered {
    #[expect(
        clippy::disallowed_methods,
        reason = "a flush comes from a timer or a signal, with no request at hand"
    )]
    fn flush(&self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        // There is no request whose error log could tell of a failure.
        let _ = self.write_out(&mut lines, now);
    }
}

impl Drop for Buffered {
    fn drop(&mut self) {
        self.flush();
    }
}
