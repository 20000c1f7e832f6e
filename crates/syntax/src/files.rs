//! What the parser asks of the outside, and an answer from memory.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use crate::glob;

/// Access to configuration files. The parser itself does no IO.
pub trait Files: Send + Sync {
    /// Reads a whole configuration file. nginx reads as many bytes as `fstat` tells, so that a pipe or a device is
    /// empty. An error carries the operating system's number; `EISDIR` and `EIO` count as errors of reading, all
    /// others as errors of opening.
    fn read(&self, path: &[u8]) -> io::Result<Arc<[u8]>>;

    /// The paths that match, as `glob(3)` without flags gives them: sorted; none is an empty list.
    fn glob(&self, pattern: &[u8]) -> io::Result<Vec<Vec<u8>>>;
}

/// Files in memory: path to text.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    files: BTreeMap<Vec<u8>, Arc<[u8]>>,
}

impl Memory {
    pub fn new() -> Memory {
        Memory::default()
    }

    /// Adds or replaces the file at `path`.
    pub fn with(mut self, path: impl Into<Vec<u8>>, text: impl AsRef<[u8]>) -> Memory {
        self.files.insert(path.into(), text.as_ref().into());
        self
    }

    /// Whether a file lies below `path`.
    fn is_directory(&self, path: &[u8]) -> bool {
        let below = [path.strip_suffix(b"/").unwrap_or(path), b"/"].concat();
        self.files.keys().any(|file| file.starts_with(&below))
    }
}

impl Files for Memory {
    fn read(&self, path: &[u8]) -> io::Result<Arc<[u8]>> {
        match self.files.get(path) {
            Some(text) => Ok(text.clone()),
            None if self.is_directory(path) => Err(io::Error::from_raw_os_error(EISDIR)),
            None => Err(io::Error::from_raw_os_error(ENOENT)),
        }
    }

    fn glob(&self, pattern: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        Ok(self.files.keys().filter(|path| glob::matches(pattern, path)).cloned().collect())
    }
}

// The numbers that every Unix shares.
pub(crate) const ENOENT: i32 = 2;
pub(crate) const EIO: i32 = 5;
pub(crate) const EISDIR: i32 = 21;
pub(crate) const EMFILE: i32 = 24;
