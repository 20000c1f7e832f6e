//! `error_log`: where messages go and from which level on.

use std::sync::Arc;

use weir_syntax::Level;

use crate::core::syslog::Syslog;
use crate::lowering::{Call, Fault};

/// One `error_log`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErrorLog {
    pub target: Target,
    /// The least severe level that is written.
    pub level: Level,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    Stderr,
    /// Absolute path.
    File(Arc<str>),
    Syslog(Arc<Syslog>),
}

pub(crate) fn read(call: &mut Call<'_>) -> Result<ErrorLog, Fault> {
    let target = match call.arg(0) {
        b"stderr" | b"" => Target::Stderr,
        text if text.starts_with(b"syslog:") => Target::Syslog(Syslog::read(call)?),
        text if text.starts_with(b"memory:") => {
            return Err(call.fail("the \"memory:\" log is known but not supported by weir yet"));
        }
        _ => {
            let path = call.path(0);
            Target::File(call.open_file(path))
        }
    };
    let mut level = None;
    // The parts of debugging that nginx tells apart are one here.
    let mut parts = false;
    for index in 1..call.args().len() {
        let word = call.arg(index);
        if let Some(found) = Level::of_word(word) {
            if level.is_some() || parts {
                return Err(call.fail_at(index, "duplicate log level"));
            }
            level = Some(found);
        } else if PARTS.contains(&word) && level.is_none() {
            parts = true;
        } else {
            return Err(call.fail_at(index, "invalid log level"));
        }
    }
    let default = if parts { Level::Debug } else { Level::Error };
    Ok(ErrorLog { target, level: level.unwrap_or(default) })
}

/// What may be asked for of the debugging messages alone.
const PARTS: [&[u8]; 7] = [
    b"debug_core",
    b"debug_alloc",
    b"debug_mutex",
    b"debug_event",
    b"debug_http",
    b"debug_mail",
    b"debug_stream",
];
