//! What a WebDAV request does to the file system; it runs where it may wait for the disk.

use std::fs::{self, DirBuilder, File, Metadata};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use weir_engine::files::{self, Failed, Moving, of_directory};
use weir_syntax::Level;

/// The work of one request.
pub(super) enum Work {
    Put(Moving),
    Delete {
        path: PathBuf,
        directory: bool,
    },
    MakeDirectory {
        path: PathBuf,
        mode: u32,
    },
    Copy {
        from: PathBuf,
        to: PathBuf,
        moves: bool,
        /// The URIs end in a slash.
        collection: bool,
        overwrite: bool,
        /// The mode of directories on the way to a moved file.
        access: u32,
        uri: String,
        /// The message for a destination that is a collection where none is meant.
        not_into: String,
    },
}

/// Why a request failed, for the log and for the client.
#[derive(Debug)]
pub(super) struct Trouble {
    pub level: Level,
    pub error: Option<io::Error>,
    /// Empty where there is nothing to say.
    pub message: String,
    pub code: u16,
}

impl Trouble {
    /// `CALL "PATH" failed`, with the status that the error means; `missing` is the one of a path that is not there.
    pub(super) fn of(call: &str, path: &Path, error: io::Error, missing: u16) -> Self {
        let (level, code) = match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOENT | Errno::ENOTDIR | Errno::ENAMETOOLONG) => (Level::Error, missing),
            Some(Errno::EACCES | Errno::EPERM) => (Level::Error, 403),
            Some(Errno::EEXIST) => (Level::Error, 405),
            Some(Errno::ENOSPC) => (Level::Crit, 507),
            _ => (Level::Crit, 500),
        };
        let message = format!("{call} \"{}\" failed", path.display());
        Self { level, error: Some(error), message, code }
    }

    fn refused(code: u16, error: Option<Errno>, message: String) -> Self {
        Self { level: Level::Error, error: error.map(io::Error::from), message, code }
    }

    fn broken(call: &str, path: &Path, error: io::Error) -> Self {
        Self { level: Level::Crit, code: 500, ..Self::of(call, path, error, 500) }
    }

    /// The work itself broke off, which is logged where that happened.
    pub(super) fn of_ours() -> Self {
        Self { level: Level::Crit, error: None, message: String::new(), code: 500 }
    }
}

impl From<Failed> for Trouble {
    fn from(failed: Failed) -> Self {
        let full = failed.call == "write()" && failed.error.raw_os_error() == Some(Errno::ENOSPC as i32);
        let (message, code) = (failed.to_string(), if full { 507 } else { 500 });
        Self { level: Level::Crit, error: Some(failed.error), message, code }
    }
}

impl Work {
    /// The status of success.
    pub(super) fn run(self) -> Result<u16, Trouble> {
        match self {
            Work::Put(moving) => {
                let there = fs::metadata(&moving.to);
                if there.as_ref().is_ok_and(Metadata::is_dir) {
                    let message = format!("\"{}\" could not be created", moving.to.display());
                    return Err(Trouble::refused(409, Some(Errno::EISDIR), message));
                }
                moving.run()?;
                Ok(if there.is_ok() { 204 } else { 201 })
            }
            Work::Delete { path, directory } => delete(&path, directory).map(|()| 204),
            Work::MakeDirectory { path, mode } => match DirBuilder::new().mode(mode).create(&path) {
                Ok(()) => Ok(201),
                Err(error) => Err(Trouble::of("mkdir()", &path, error, 409)),
            },
            Work::Copy { from, to, moves, collection, mut overwrite, access, uri, not_into } => {
                let mut directory = false;
                match fs::symlink_metadata(&to) {
                    Ok(there) if there.is_dir() && !collection => {
                        return Err(Trouble::refused(409, None, not_into));
                    }
                    Ok(_) if !overwrite => {
                        let message = format!("\"{}\" could not be created", to.display());
                        return Err(Trouble::refused(412, Some(Errno::EEXIST), message));
                    }
                    Ok(there) => directory = there.is_dir(),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => overwrite = false,
                    Err(error) => return Err(Trouble::of("lstat()", &to, error, 404)),
                }
                // With its slash it is a directory, or nothing.
                let source =
                    fs::symlink_metadata(&from).map_err(|error| Trouble::of("lstat()", &from, error, 404))?;
                if !source.is_dir() {
                    if moves {
                        let create_path = Some(access);
                        Moving { from, to, access: None, modified: None, create_path }.run()?;
                    } else {
                        files::copy(&from, &to)?;
                    }
                    return Ok(204);
                }
                if !collection {
                    return Err(Trouble::refused(400, None, format!("\"{uri}\" is collection")));
                }
                let from = super::bare(&from);
                if overwrite {
                    delete(&to, directory)?;
                }
                if moves && fs::rename(from, &to).is_ok() {
                    return Ok(201);
                }
                copy_directory(from, &to, &source)?;
                if moves {
                    delete(from, true)?;
                }
                Ok(201)
            }
        }
    }
}

fn delete(path: &Path, directory: bool) -> Result<(), Trouble> {
    // Symbolic links are removed, never followed.
    let (call, result) =
        if directory { ("rmdir()", fs::remove_dir_all(path)) } else { ("unlink()", fs::remove_file(path)) };
    result.map_err(|error| Trouble::of(call, path, error, 404))
}

/// Copies a directory with all files and directories in it; links and what else there is stay behind.
fn copy_directory(from: &Path, to: &Path, source: &Metadata) -> Result<(), Trouble> {
    DirBuilder::new()
        .mode(of_directory(source.mode() & 0o777))
        .create(to)
        .map_err(|error| Trouble::of("mkdir()", to, error, 404))?;
    let entries = fs::read_dir(from).map_err(|error| Trouble::broken("opendir()", from, error))?;
    for entry in entries {
        let entry = entry.map_err(|error| Trouble::broken("readdir()", from, error))?;
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        let metadata = entry.metadata().map_err(|error| Trouble::broken("lstat()", &from, error))?;
        if metadata.is_dir() {
            copy_directory(&from, &to, &metadata)?;
        } else if metadata.is_file() {
            files::copy(&from, &to)?;
        }
    }
    let made = File::open(to).and_then(|directory| directory.set_modified(source.modified()?));
    made.map_err(|error| Trouble::broken("utimes()", to, error))
}
