//! What several modules ask of the file system: files as `disable_symlinks` wants them reached, errors by kind, and how
//! nginx's log names them.

use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use weir_engine::contract::Flow;
use weir_engine::http::Exchange;
use weir_syntax::Level;

use super::symlinks;

pub(super) fn path(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}

/// What kind of failure it was to reach a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// There is no such file.
    Missing,
    /// It may not be reached.
    Forbidden,
    /// Something is wrong.
    Broken,
}

impl Reach {
    pub(super) fn of(error: &io::Error) -> Self {
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOENT | Errno::ENOTDIR | Errno::ENAMETOOLONG) => Reach::Missing,
            Some(Errno::EACCES | Errno::EMLINK | Errno::ELOOP) => Reach::Forbidden,
            _ => Reach::Broken,
        }
    }
}

/// Opens a file, or tells which call failed.
pub(super) fn open(name: &[u8], x: &Exchange) -> Result<(File, Metadata), (&'static str, io::Error)> {
    // Without O_NONBLOCK opening a pipe would wait for its writer.
    let file = match symlinks::of(name, x) {
        None => {
            let mut options = File::options();
            options.read(true).custom_flags(nix::libc::O_NONBLOCK);
            options.open(path(name)).map_err(|error| ("open()", error))?
        }
        Some(strict) => strict.open(name, OFlag::O_RDONLY | OFlag::O_NONBLOCK, Mode::empty())?,
    };
    let metadata = file.metadata().map_err(|error| ("fstat()", error))?;
    Ok((file, metadata))
}

/// Asks for a file's metadata, or tells which call failed.
pub(super) fn metadata(name: &[u8], x: &Exchange) -> Result<Metadata, (&'static str, io::Error)> {
    match symlinks::of(name, x) {
        None => std::fs::metadata(path(name)).map_err(|error| ("stat()", error)),
        Some(_) => open(name, x).map(|(_, metadata)| metadata),
    }
}

/// Asks for a file's metadata where it is expected that it may not be there; any other failure is logged.
pub(super) fn stat(name: &[u8], x: &Exchange) -> Option<Metadata> {
    match metadata(name, x) {
        Ok(metadata) => Some(metadata),
        Err((call, error)) => {
            if Reach::of(&error) != Reach::Missing {
                let shown = String::from_utf8_lossy(name);
                x.log_error(Level::Crit, Some(&error), format_args!("{call} \"{shown}\" failed"));
            }
            None
        }
    }
}

/// The answer for a directory that cannot be opened, which is logged.
pub(super) fn not_opened(directory: &[u8], error: &io::Error, x: &Exchange) -> Flow {
    let (level, code) = match Reach::of(error) {
        Reach::Missing => (Level::Error, 404),
        Reach::Forbidden if error.kind() == io::ErrorKind::PermissionDenied => (Level::Error, 403),
        Reach::Forbidden | Reach::Broken => (Level::Crit, 500),
    };
    let shown = String::from_utf8_lossy(directory);
    x.log_error(level, Some(error), format_args!("opendir() \"{shown}\" failed"));
    Flow::Answer(code)
}
