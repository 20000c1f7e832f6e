//! Logs whose paths have variables in them (`access_log logs/$host.log`).

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use weir_engine::errorlog::LogFile;
use weir_engine::http::template::Segment;
use weir_engine::http::{Exchange, Template};
use weir_syntax::Level;

use super::super::files;
use super::super::symlinks::{self, Strict};
use super::{Complaint, File, LOGGING};

/// A log whose path depends on the request.
pub(super) struct Varying {
    pub path: Template,
    pub complained_at: Arc<AtomicU64>,
}

impl Varying {
    /// Where the request's line goes; nowhere if the request has no root, or what it says leads elsewhere.
    pub(super) fn of(&self, x: &Exchange) -> Option<Varied> {
        let mut file = x.file()?;
        // As in nginx a directory that is not there keeps whoever makes hosts up from filling the disk with logs.
        let whole = file.path.len() == file.root;
        file.path.truncate(file.root);
        let is_directory = files::metadata(&file.path, x)
            .map_err(|(_, error)| error)
            .and_then(|root| if root.is_dir() || whole { Ok(()) } else { Err(Errno::ENOTDIR.into()) });
        if let Err(error) = is_directory {
            let shown = String::from_utf8_lossy(&file.path);
            let message = format_args!("testing \"{shown}\" existence failed");
            x.log_while(Level::Error, Some(&error), message, LOGGING);
            return None;
        }
        let (mut path, mut climbs) = (Vec::new(), false);
        self.path.each(x, |segment| match segment {
            Segment::Literal(text) => path.extend_from_slice(text),
            Segment::Value(value) => {
                climbs |= value.split(|b| *b == b'/').any(|part| part == b"..");
                path.extend_from_slice(value);
            }
            Segment::Missing => {}
        });
        if climbs {
            let shown = String::from_utf8_lossy(&path);
            let message = format_args!("access_log \"{shown}\" has \"..\" in a variable");
            x.log_while(Level::Error, None, message, LOGGING);
            return None;
        }
        let complained_at = Arc::clone(&self.complained_at);
        Some(Varied { strict: symlinks::of(&path, x), path, complained_at })
    }
}

/// Such a log with its path, opened for a line.
#[derive(Clone)]
pub(super) struct Varied {
    path: Vec<u8>,
    strict: Option<Strict>,
    complained_at: Arc<AtomicU64>,
}

impl Varied {
    pub(super) fn write(&self, line: &[u8], second: u64) -> Result<(), Complaint> {
        let path = files::path(&self.path);
        let file = match self.strict {
            None => LogFile::open(path).map_err(|error| ("open()", error)),
            Some(strict) => {
                let flags = OFlag::O_WRONLY | OFlag::O_APPEND | OFlag::O_CREAT;
                let file = strict.open(&self.path, flags, Mode::from_bits_truncate(0o644));
                file.map(|file| LogFile::new(path, file))
            }
        };
        let file = file.map_err(|(call, error)| Complaint {
            level: Level::Crit,
            message: format!("{call} \"{}\" failed", String::from_utf8_lossy(&self.path)),
            error: Some(error),
        })?;
        File { file: Arc::new(file), complained_at: Arc::clone(&self.complained_at) }.write(line, second)
    }
}
