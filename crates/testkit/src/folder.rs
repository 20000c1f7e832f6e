//! A folder that goes with its test.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, UNIX_EPOCH};

/// A folder of files that is removed in the end.
pub struct Folder(PathBuf);

impl Folder {
    /// A folder with these files, by relative path.
    ///
    /// # Panics
    /// If it cannot be made.
    pub fn new(files: &[(&str, &[u8])]) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = Self(std::env::temp_dir().join(format!("weir-test-{}-{number}", std::process::id())));
        std::fs::create_dir_all(&folder.0).expect("a temporary folder");
        for (name, content) in files {
            folder.write(name, content);
        }
        folder
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Writes a file, with the folders on its way.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        std::fs::create_dir_all(path.parent().expect("a name below the folder")).expect("a folder");
        std::fs::write(&path, content).expect("a file in a temporary folder");
        path
    }

    /// Sets when a file was modified, in seconds since the epoch.
    ///
    /// # Panics
    /// If there is no such file.
    pub fn set_modified(&self, name: &str, unix: u64) {
        let file =
            std::fs::File::options().write(true).open(self.0.join(name)).expect("a file of the folder");
        file.set_modified(UNIX_EPOCH + Duration::from_secs(unix)).expect("a time");
    }

    /// A file's text, empty where there is none.
    pub fn read(&self, name: &str) -> String {
        std::fs::read(self.0.join(name)).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
