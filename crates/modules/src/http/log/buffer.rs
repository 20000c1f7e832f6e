//! Lines held back in memory (`buffer=`, `flush=`), one buffer a file for all threads.

use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{SystemTime, UNIX_EPOCH};

use flate2::Compression;
use flate2::write::GzEncoder;
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
    /// Each piece that is written is compressed at this level, a gzip file of its own behind those before it.
    pub gzip: Option<u32>,
}

/// A buffered log. Lines never leave it torn: the buffer is written whenever the next line would not fit.
pub(super) struct Buffered {
    file: File,
    buffering: Buffering,
    held: Mutex<Held>,
    me: Weak<Buffered>,
}

/// What is held back.
#[derive(Default)]
struct Held {
    lines: Vec<u8>,
    /// When the first line has waited long enough, in milliseconds since the epoch, which all threads count alike.
    due: Option<u64>,
}

impl Buffered {
    pub(super) fn open(file: Arc<LogFile>, buffering: Buffering) -> Arc<Self> {
        let buffered = Arc::new_cyclic(|me| Buffered {
            file: File { file: Arc::clone(&file), complained_at: Arc::default() },
            buffering,
            held: Mutex::default(),
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
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let size = self.buffering.size;
        let mut result = Ok(());
        if line.len() > size - held.lines.len() {
            result = self.write_out(&mut held, second);
        }
        if line.len() > size {
            return result.and(self.put(line, second));
        }
        let now = timers.clock().unix_ms();
        if held.lines.is_empty() {
            // Grown once, to its final size; given back only with the log.
            held.lines.reserve_exact(size);
            held.due = self.buffering.flush.map(|flush| now.saturating_add(flush));
            self.flush_later(timers);
        }
        held.lines.extend_from_slice(line);
        // The thread whose timer should have done it may have ended before the others.
        if held.due.is_some_and(|due| due <= now) {
            result = result.and(self.write_out(&mut held, second));
        }
        result
    }

    fn write_out(&self, held: &mut Held, second: u64) -> Result<(), Complaint> {
        if held.lines.is_empty() {
            return Ok(());
        }
        let result = self.put(&held.lines, second);
        held.lines.clear();
        result
    }

    fn put(&self, lines: &[u8], second: u64) -> Result<(), Complaint> {
        let Some(level) = self.buffering.gzip else { return self.file.write(lines, second) };
        let mut gzip = GzEncoder::new(Vec::new(), Compression::new(level));
        // Writing to memory does not fail.
        let packed = gzip.write_all(lines).and_then(|()| gzip.finish()).unwrap_or_default();
        self.file.write(&packed, second)
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
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        // There is no request whose error log could tell of a failure.
        let _ = self.write_out(&mut held, now);
    }
}

impl Drop for Buffered {
    fn drop(&mut self) {
        self.flush();
    }
}

#[cfg(test)]
mod tests {
    use weir_engine::timer::{Clock, runtime};
    use weir_testkit::Folder;

    use super::*;

    #[test]
    fn lines_do_not_wait_for_the_timer_of_a_thread_that_ended() {
        let folder = Folder::new(&[]);
        let file = Arc::new(LogFile::open(folder.path().join("a.log")).unwrap());
        let buffered = Buffered::open(file, Buffering { size: 1024, flush: Some(5_000), gzip: None });
        let write = |at: u64, line: &str, expected: &str| {
            let written = runtime().unwrap().block_on(async {
                buffered.write(line.as_bytes(), at / 1000, &Timers::new(Clock::fixed(at)))
            });
            assert!(written.is_ok());
            assert_eq!(folder.read("a.log"), expected);
        };
        write(1_000, "1\n", "");
        write(5_000, "2\n", "");
        write(6_000, "3\n", "1\n2\n3\n");
        write(6_500, "4\n", "1\n2\n3\n");
    }
}
