//! What several modules ask of the file system: files as `disable_symlinks` wants them reached, errors by kind, and how
//! nginx's log names them.

use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use tokio::task::spawn_blocking;
use weir_engine::contract::{Flow, Step};
use weir_engine::disk::Caller;
use weir_engine::http::Exchange;
use weir_engine::open_files::{Looked, Opened};
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
pub(super) async fn open(name: &[u8], x: &Exchange) -> Opened {
    let opening = match Opening::of(name, x) {
        ControlFlow::Continue(opening) => opening,
        ControlFlow::Break(kept) => return kept,
    };
    let opened = match opening.run(name, Caller::Reactor) {
        opened if waits(&opened) => opening.wait(name).await,
        opened => opened,
    };
    opening.keep(name, opened, x)
}

/// Opens the file that the path leads to and goes on with it: at once, unless the file has to be waited for. A path that ends
/// with a slash is for others.
pub(super) fn with_open<'a>(
    x: &'a mut Exchange,
    then: impl FnOnce(&[u8], Opened, &mut Exchange) -> Flow + 'a,
) -> Step<'a> {
    if x.uri.ends_with(b"/") {
        return Step::Now(Flow::Decline);
    }
    let Some(name) = x.file() else { return Step::Now(Flow::Answer(500)) };
    let name = name.path;
    let opening = match Opening::of(&name, x) {
        ControlFlow::Continue(opening) => opening,
        ControlFlow::Break(kept) => return Step::Now(then(&name, kept, x)),
    };
    let opened = opening.run(&name, Caller::Reactor);
    if !waits(&opened) {
        let opened = opening.keep(&name, opened, x);
        return Step::Now(then(&name, opened, x));
    }
    Step::Later(Box::pin(async move {
        let opened = opening.wait(&name).await;
        let opened = opening.keep(&name, opened, x);
        then(&name, opened, x)
    }))
}

fn waits(opened: &Opened) -> bool {
    opened.as_ref().is_err_and(|(_, error)| error.kind() == io::ErrorKind::WouldBlock)
}

/// A file that is about to be opened.
#[derive(Clone)]
struct Opening {
    strict: Option<symlinks::Strict>,
    /// It is open already, but may have been replaced.
    stale: Option<(Arc<File>, Metadata)>,
}

impl Opening {
    /// How it is to be opened, or what is kept of an earlier time.
    fn of(name: &[u8], x: &Exchange) -> ControlFlow<Opened, Self> {
        let strict = symlinks::of(name, x);
        let mut stale = None;
        if let Some(files) = &x.location().core.open_files {
            let way = strict.map(symlinks::Strict::way);
            match files.look(name, way, x.reactor.clock().now_ms()) {
                Looked::Valid(kept) => return ControlFlow::Break(kept),
                Looked::Stale(file, metadata) => stale = Some((file, metadata)),
                Looked::Unknown => {}
            }
        }
        ControlFlow::Continue(Self { strict, stale })
    }

    fn run(&self, name: &[u8], caller: Caller) -> Opened {
        let at = path(name);
        let call = |error| ("open()", error);
        if caller == Caller::Reactor && self.strict.is_some() {
            // What the whole path leads to is at hand for one who goes it step by step.
            caller.reach(at).map(drop).or_else(|error| match error.kind() {
                io::ErrorKind::WouldBlock => Err(call(error)),
                _ => Ok(()),
            })?;
        }
        if let Some((file, before)) = &self.stale {
            let reached = match self.strict {
                None => caller.reach(at),
                Some(strict) => strict.open(name, PLAIN, Mode::empty()).map_err(|(_, error)| error),
            };
            match reached.and_then(|file| file.metadata()) {
                Ok(now) if (now.dev(), now.ino()) == (before.dev(), before.ino()) => {
                    return Ok((Arc::clone(file), now));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(call(error)),
                Ok(_) | Err(_) => {}
            }
        }
        let file = match self.strict {
            None => caller.open(at).map_err(call)?,
            Some(strict) => strict.open(name, PLAIN, Mode::empty())?,
        };
        let metadata = file.metadata().map_err(|error| ("fstat()", error))?;
        Ok((Arc::new(file), metadata))
    }

    async fn wait(&self, name: &[u8]) -> Opened {
        let (opening, name) = (self.clone(), name.to_vec());
        let opened = spawn_blocking(move || opening.run(&name, Caller::Pool)).await;
        opened.unwrap_or_else(|error| Err(("open()", io::Error::other(error))))
    }

    /// Keeps what was found for later, where that is asked for.
    fn keep(&self, name: &[u8], opened: Opened, x: &Exchange) -> Opened {
        if let Some(files) = &x.location().core.open_files {
            let way = self.strict.map(symlinks::Strict::way);
            files.keep(name, way, x.reactor.clock().now_ms(), &opened);
        }
        opened
    }
}

// Without O_NONBLOCK opening a pipe would wait for its writer.
const PLAIN: OFlag = OFlag::O_RDONLY.union(OFlag::O_NONBLOCK);

/// Asks for a file's metadata, or tells which call failed. The kernel has no way to say that this has to be waited for.
pub(super) fn metadata(name: &[u8], x: &Exchange) -> Result<Metadata, (&'static str, io::Error)> {
    if x.location().core.open_files.is_none() && symlinks::of(name, x).is_none() {
        return std::fs::metadata(path(name)).map_err(|error| ("stat()", error));
    }
    let opened = match Opening::of(name, x) {
        ControlFlow::Continue(opening) => opening.keep(name, opening.run(name, Caller::Pool), x),
        ControlFlow::Break(kept) => kept,
    };
    opened.map(|(_, metadata)| metadata)
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
