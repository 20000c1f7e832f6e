//! Temporary files as nginx names them: ten digits below a directory, with levels of subdirectories of their last ones.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use weir_ir::program::PathSpec;

use crate::files::{Failed, Moving};

/// How long the name of a temporary file is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// It goes at once; what was opened stays usable.
    Never,
    /// As long as the value lives.
    WhileOpen,
    Forever,
}

/// An open temporary file.
#[derive(Debug)]
pub struct TempFile {
    pub file: File,
    name: Box<str>,
    /// The name is still its own, and goes with it.
    remove: AtomicBool,
}

impl TempFile {
    /// Makes a file that did not exist, and the subdirectories that it needs.
    ///
    /// # Errors
    /// Those of `open(2)` and `mkdir(2)`.
    pub fn create(below: &PathSpec, keep: Keep) -> Result<Self, Failed> {
        Self::numbered(keep, |number| name(below, number), below.levels[0] != 0)
    }

    /// Makes a file that did not exist beside the one of that path: its name with a dot and ten digits.
    ///
    /// # Errors
    /// Those of `open(2)`.
    pub fn beside(path: &str) -> Result<Self, Failed> {
        Self::numbered(Keep::WhileOpen, |number| format!("{path}.{number:010}"), false)
    }

    fn numbered(keep: Keep, name: impl Fn(u32) -> String, makes_folders: bool) -> Result<Self, Failed> {
        static NUMBER: AtomicU32 = AtomicU32::new(1);
        // What an earlier process left behind is leapt over.
        const LEAP: u32 = 123_456;
        loop {
            let name = name(NUMBER.fetch_add(1, Ordering::Relaxed));
            let mut opened = open(&name);
            if opened.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::NotFound) && makes_folders {
                let folder = Path::new(&name).parent().unwrap_or(Path::new("/"));
                let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
                made.map_err(|error| Failed::of("mkdir()", folder, error))?;
                opened = open(&name);
            }
            match opened {
                Ok(file) => {
                    if keep == Keep::Never {
                        std::fs::remove_file(&name).map_err(|error| Failed::of("unlink()", &name, error))?;
                    }
                    let remove = AtomicBool::new(keep == Keep::WhileOpen);
                    return Ok(Self { file, name: name.into(), remove });
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    NUMBER.fetch_add(LEAP, Ordering::Relaxed);
                }
                Err(error) => return Err(Failed::of("open()", name, error)),
            }
        }
    }

    /// Moves it. Its name is nobody's then, or another process's already. It touches the disk.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn place(&self, moving: Moving) -> Result<(), Failed> {
        Moving { from: self.name().into(), ..moving }.run()?;
        self.remove.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// The absolute path, whether it is still there or not.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        if *self.remove.get_mut() {
            // Whoever the file was made for may have moved it away.
            let _ = std::fs::remove_file(&*self.name);
        }
    }
}

fn open(name: &str) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(name)
}

fn name(below: &PathSpec, number: u32) -> String {
    self::below(below, &format!("{number:010}"))
}

/// The path of a file with that name, below the levels that its last characters are.
pub(crate) fn below(below: &PathSpec, digits: &str) -> String {
    let mut path = below.path.to_string();
    let mut end = digits.len();
    for level in below.levels.iter().take_while(|level| **level != 0) {
        let start = end.saturating_sub(usize::from(*level));
        path.push('/');
        path.push_str(&digits[start..end]);
        end = start;
    }
    path.push('/');
    path.push_str(digits);
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(levels: [u8; 3], number: u32, expected: &str) {
        assert_eq!(name(&PathSpec { path: "/t".into(), levels, position: None }, number), expected);
    }

    #[test]
    fn names() {
        check([0; 3], 12, "/t/0000000012");
        check([1, 2, 0], 1234, "/t/4/23/0000001234");
        check([3, 3, 3], u32::MAX, "/t/295/967/294/4294967295");
    }

    #[test]
    fn names_are_there_as_long_as_they_are_kept() {
        let below = std::env::temp_dir().join(format!("weir-temp-file-{}", std::process::id()));
        let spec = PathSpec { path: below.to_string_lossy().into(), levels: [1, 0, 0], position: None };
        for (keep, open, after) in
            [(Keep::Never, false, false), (Keep::WhileOpen, true, false), (Keep::Forever, true, true)]
        {
            let made = TempFile::create(&spec, keep).unwrap();
            let name = made.name().to_string();
            assert_eq!(Path::new(&name).exists(), open, "{keep:?}");
            drop(made);
            assert_eq!(Path::new(&name).exists(), after, "{keep:?}");
        }
        std::fs::remove_dir_all(below).unwrap();
    }

    #[test]
    fn a_name_that_was_left_is_somebody_elses() {
        let below = std::env::temp_dir().join(format!("weir-temp-file-left-{}", std::process::id()));
        std::fs::create_dir_all(&below).unwrap();
        let to = below.join("placed");
        let made = TempFile::beside(&to.to_string_lossy()).unwrap();
        let name = made.name().to_string();
        let (from, create_path) = (Default::default(), None);
        made.place(Moving { from, to: to.clone(), access: None, modified: None, create_path }).unwrap();
        std::fs::write(&name, "of another process").unwrap();
        drop(made);
        assert!(Path::new(&name).exists() && to.exists());
        std::fs::remove_dir_all(below).unwrap();
    }
}
