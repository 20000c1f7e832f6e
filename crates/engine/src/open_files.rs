//! Files that stay open from one request to the next (`open_file_cache`): descriptors, what is known of the files, and errors.
//!
//! One cache serves all threads; its lock is held for looking up only. As in nginx a file that is replaced is served as it was
//! until its entry is no longer valid, and what nobody asks for is let go when others are asked for.

use std::collections::{BTreeMap, HashMap};
use std::fs::{File, Metadata};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

/// A file, or the call that failed.
pub type Opened = Result<(Arc<File>, Metadata), (&'static str, io::Error)>;

/// What is kept of a name.
#[derive(Debug)]
pub enum Looked {
    Valid(Opened),
    /// It may have been replaced since.
    Stale(Arc<File>, Metadata),
    Unknown,
}

/// What a level says of its cache. Times are milliseconds.
#[derive(Debug)]
pub struct OpenFiles {
    pub cache: Arc<Cache>,
    pub valid: u64,
    /// A file that is asked for less often is not kept open.
    pub min_uses: u64,
    /// Errors are kept, too.
    pub errors: bool,
}

#[derive(Debug)]
pub struct Cache {
    max: usize,
    /// Milliseconds without use.
    inactive: u64,
    entries: Mutex<Entries>,
}

#[derive(Debug, Default)]
struct Entries {
    by_name: HashMap<Arc<[u8]>, Entry>,
    /// Names by their last use.
    by_use: BTreeMap<u64, Arc<[u8]>>,
    /// Counts uses.
    last: u64,
}

#[derive(Debug)]
struct Entry {
    name: Arc<[u8]>,
    uses: u64,
    /// Its place in the order of use.
    used: u64,
    accessed: u64,
    /// When it was looked at last.
    created: u64,
    /// How the path was followed (`disable_symlinks`).
    way: Way,
    found: Found,
}

#[derive(Clone, Debug)]
enum Found {
    /// Not asked for often enough.
    Closed,
    File(Arc<File>, Metadata),
    Failed(&'static str, i32),
}

/// How a path is followed, so that what was reached in one way is not taken for what is in another: whose links, and from where.
pub type Way = Option<(bool, usize)>;

impl Cache {
    pub fn new(max: usize, inactive: u64) -> Self {
        Self { max, inactive, entries: Mutex::default() }
    }
}

impl OpenFiles {
    /// What is kept of a name, and whether that is to be looked at again.
    pub fn look(&self, name: &[u8], way: Way, now: u64) -> Looked {
        let Some((found, created)) = self.lock().touch(name, way, now) else { return Looked::Unknown };
        let valid = now.saturating_sub(created) < self.valid;
        match found {
            Found::File(file, metadata) if valid => Looked::Valid(Ok((file, metadata))),
            Found::File(file, metadata) => Looked::Stale(file, metadata),
            Found::Failed(call, code) if valid => {
                Looked::Valid(Err((call, io::Error::from_raw_os_error(code))))
            }
            Found::Failed(..) | Found::Closed => Looked::Unknown,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Entries> {
        self.cache.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps what was found of a name, and lets go of one or two that nobody asks for.
    pub fn keep(&self, name: &[u8], way: Way, now: u64, opened: &Opened) {
        let mut entries = self.lock();
        let found = match opened {
            Ok((file, metadata)) => Some(Found::File(Arc::clone(file), metadata.clone())),
            Err((call, error)) if self.errors => error.raw_os_error().map(|code| Found::Failed(call, code)),
            Err(_) => None,
        };
        match found {
            None => entries.remove(name),
            Some(found) => {
                if !entries.by_name.contains_key(name) {
                    if entries.by_name.len() >= self.cache.max {
                        entries.remove_oldest(u64::MAX);
                    }
                    entries.add(name, now);
                }
                if let Some(entry) = entries.by_name.get_mut(name) {
                    let often = entry.uses >= self.min_uses || matches!(found, Found::Failed(..));
                    entry.found = if often { found } else { Found::Closed };
                    (entry.created, entry.accessed, entry.way) = (now, now, way);
                }
            }
        }
        for _ in 0..2 {
            entries.remove_oldest(now.saturating_sub(self.cache.inactive));
        }
    }
}

impl Entries {
    /// Counts a use of the name; what is known of it, and since when.
    fn touch(&mut self, name: &[u8], way: Way, now: u64) -> Option<(Found, u64)> {
        let entry = self.by_name.get_mut(name)?;
        self.last += 1;
        self.by_use.remove(&entry.used);
        self.by_use.insert(self.last, Arc::clone(&entry.name));
        (entry.used, entry.accessed) = (self.last, now);
        entry.uses += 1;
        (entry.way == way).then(|| (entry.found.clone(), entry.created))
    }

    fn add(&mut self, name: &[u8], now: u64) {
        self.last += 1;
        let name: Arc<[u8]> = name.into();
        self.by_use.insert(self.last, Arc::clone(&name));
        let entry = Entry {
            name: Arc::clone(&name),
            uses: 1,
            used: self.last,
            accessed: now,
            created: now,
            way: None,
            found: Found::Closed,
        };
        self.by_name.insert(name, entry);
    }

    fn remove(&mut self, name: &[u8]) {
        if let Some(entry) = self.by_name.remove(name) {
            self.by_use.remove(&entry.used);
        }
    }

    /// Removes what was not used for the longest time, unless it was used after that time.
    fn remove_oldest(&mut self, before: u64) {
        let Some((_, name)) = self.by_use.first_key_value() else { return };
        if self.by_name.get(name).is_some_and(|entry| entry.accessed < before) {
            let name = Arc::clone(name);
            self.remove(&name);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::fs;
    use std::os::unix::fs::MetadataExt;
    use std::path::Path;

    use weir_testkit::Folder;

    use super::*;

    struct Asked {
        files: OpenFiles,
        folder: Folder,
        opened: Cell<u32>,
    }

    impl Asked {
        fn new(max: usize, min_uses: u64, errors: bool) -> Self {
            let cache = Arc::new(Cache::new(max, 100));
            let folder = Folder::new(&[("a", b"one"), ("b", b"two"), ("c", b"three")]);
            let files = OpenFiles { cache, valid: 10, min_uses, errors };
            Self { files, folder, opened: Cell::new(0) }
        }

        /// The length of a file, or the error as a negative number; whether one was opened, and whether it was looked at again.
        fn ask(&self, name: &str, now: u64) -> (i64, u32, u32) {
            let path = self.folder.path().join(name);
            let kept = self.files.look(name.as_bytes(), None, now);
            let (valid, stale) = (matches!(kept, Looked::Valid(_)), matches!(kept, Looked::Stale(..)));
            let found = match kept {
                Looked::Valid(found) => found,
                Looked::Stale(file, before) => match fs::metadata(&path) {
                    Ok(now) if now.ino() == before.ino() => Ok((file, now)),
                    _ => self.open(&path),
                },
                Looked::Unknown => self.open(&path),
            };
            if !valid {
                self.files.keep(name.as_bytes(), None, now, &found);
            }
            let length = match found {
                Ok((_, metadata)) => metadata.len() as i64,
                Err((_, error)) => -i64::from(error.raw_os_error().unwrap_or(0)),
            };
            (length, self.opened.take(), u32::from(stale))
        }

        fn open(&self, path: &Path) -> Opened {
            self.opened.set(self.opened.get() + 1);
            let file = File::open(path).map_err(|error| ("open()", error))?;
            let metadata = file.metadata().map_err(|error| ("fstat()", error))?;
            Ok((Arc::new(file), metadata))
        }

        fn replace(&self, name: &str, text: &str) {
            self.folder.write("new", text);
            fs::rename(self.folder.path().join("new"), self.folder.path().join(name)).unwrap();
        }
    }

    #[test]
    fn a_file_is_what_it_was_until_it_is_looked_at_again() {
        let asked = Asked::new(9, 1, false);
        assert_eq!(asked.ask("a", 0), (3, 1, 0));
        assert_eq!(asked.ask("a", 9), (3, 0, 0));
        asked.replace("a", "other");
        assert_eq!(asked.ask("a", 9), (3, 0, 0));
        assert_eq!(asked.ask("a", 10), (5, 1, 1));
        // The same file with another length is not opened anew.
        asked.folder.write("a", "x");
        assert_eq!(asked.ask("a", 19), (5, 0, 0));
        assert_eq!(asked.ask("a", 20), (1, 0, 1));
        assert_eq!(asked.ask("a", 29), (1, 0, 0));
    }

    #[test]
    fn errors_are_kept_where_that_is_asked_for() {
        for errors in [false, true] {
            let asked = Asked::new(9, 1, errors);
            assert_eq!(asked.ask("none", 0), (-2, 1, 0));
            assert_eq!(asked.ask("none", 1), (-2, u32::from(!errors), 0));
            asked.folder.write("none", "now");
            assert_eq!(asked.ask("none", 11), (3, 1, 0));
            fs::remove_file(asked.folder.path().join("none")).unwrap();
            assert_eq!(asked.ask("none", 12), (3, 0, 0));
            assert_eq!(asked.ask("none", 30), (-2, 1, 1));
        }
    }

    #[test]
    fn what_is_seldom_asked_for_is_not_kept_open() {
        let asked = Asked::new(9, 3, false);
        for (now, opened) in [(0, 1), (1, 1), (2, 1), (3, 0), (4, 0)] {
            assert_eq!(asked.ask("a", now), (3, opened, 0), "{now}");
        }
        // After a while without use its uses are counted anew.
        asked.ask("b", 200);
        assert_eq!(asked.ask("a", 201), (3, 1, 0));
    }

    #[test]
    fn no_more_are_open_than_may_be() {
        let asked = Asked::new(2, 1, false);
        for name in ["a", "b", "a", "c"] {
            asked.ask(name, 0);
        }
        let open = || asked.files.lock().by_name.len();
        assert_eq!(open(), 2);
        assert_eq!((asked.ask("a", 1), asked.ask("c", 1)), ((3, 0, 0), (5, 0, 0)));
        assert_eq!(asked.ask("b", 1), (3, 1, 0));
        // One or two go whenever a file is opened that nobody asked for in time.
        asked.ask("b", 500);
        assert_eq!(open(), 1);
    }

    #[test]
    fn another_way_is_another_file() {
        let asked = Asked::new(9, 1, false);
        asked.ask("a", 0);
        assert!(matches!(asked.files.look(b"a", None, 1), Looked::Valid(Ok(_))));
        assert!(matches!(asked.files.look(b"a", Some((false, 0)), 1), Looked::Unknown));
    }
}
