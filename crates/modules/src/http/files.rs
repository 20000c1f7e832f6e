//! What several modules ask of the file system: files as `disable_symlinks` wants them reached, errors by kind, and how
//! nginx's log names them.

use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use weir_engine::contract::Flow;
use weir_engine::http::Exchange;
use weir_engine::open_files::Opened;
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

/// Opens a file, or tells which call failed. It may be open already (`open_file_cache`).
pub(super) fn open(name: &[u8], x: &Exchange) -> Opened {
    let strict = symlinks::of(name, x);
    let Some(files) = &x.location().core.open_files else { return open_anew(name, strict) };
    let look = || match strict {
        None => std::fs::metadata(path(name)),
        Some(strict) => strict.open(name, PLAIN, Mode::empty()).map_err(|(_, error)| error)?.metadata(),
    };
    let way = strict.map(symlinks::Strict::way);
    files.open(name, way, x.reactor.clock().now_ms(), || open_anew(name, strict), look)
}

// Without O_NONBLOCK opening a pipe would wait for its writer.
const PLAIN: OFlag = OFlag::O_RDONLY.union(OFlag::O_NONBLOCK);

fn open_anew(name: &[u8], strict: Option<symlinks::Strict>) -> Opened {
    let file = match strict {
        None => {
            let mut options = File::options();
            options.read(true).custom_flags(PLAIN.bits());
            options.open(path(name)).map_err(|error| ("open()", error))?
        }
        Some(strict) => strict.open(name, PLAIN, Mode::empty())?,
    };
    let metadata = file.metadata().map_err(|error| ("fstat()", error))?;
    Ok((Arc::new(file), metadata))
}

/// Asks for a file's metadata, or tells which call failed.
pub(super) fn metadata(name: &[u8], x: &Exchange) -> Result<Metadata, (&'static str, io::Error)> {
    if x.location().core.open_files.is_none() && symlinks::of(name, x).is_none() {
        return std::fs::metadata(path(name)).map_err(|error| ("stat()", error));
    }
    open(name, x).map(|(_, metadata)| metadata)
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
