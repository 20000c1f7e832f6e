//! For the tests of this crate: a log to look into and a folder that goes away.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use weir_engine::errorlog::{Level, Log, Output, Sink, Target};

#[derive(Default)]
pub struct Lines(Mutex<Vec<String>>);

impl Lines {
    /// What was logged since the last call, without time and process.
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

impl Sink for Lines {
    fn write(&self, level: Level, line: &[u8]) {
        let line = String::from_utf8_lossy(line);
        let message = line.split_once(": ").map_or(&*line, |(_, message)| message);
        self.0.lock().unwrap().push(format!("[{}] {message}", level.word()));
    }
}

/// A log that keeps its lines.
pub fn memory(level: Level) -> (Log, Arc<Lines>) {
    let lines = Arc::new(Lines::default());
    (Log::new("weir", vec![Output { level, target: Target::Sink(lines.clone()) }]), lines)
}

/// A folder of this test alone, removed when dropped.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Folder {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("weir-test-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
