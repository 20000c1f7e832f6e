//! `error_log`: where messages go and from which level on.

use std::sync::Arc;

use weir_syntax::Level;

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
}

pub(crate) fn read(call: &mut Call<'_>) -> Result<ErrorLog, Fault> {
    let target = match call.arg(0) {
        b"stderr" => Target::Stderr,
        text if text.starts_with(b"syslog:") => {
            return Err(call.fail("\"error_log syslog:\" is known but not supported by weir yet"));
        }
        text if text.starts_with(b"memory:") => {
            return Err(call.fail("nginx was built without debug support"));
        }
        _ => {
            let path = call.path(0);
            Target::File(call.open_file(path))
        }
    };
    let mut level = None;
    for index in 1..call.args().len() {
        let text = call.text(index);
        let found = match text.as_str() {
            "emerg" => Level::Emerg,
            "alert" => Level::Alert,
            "crit" => Level::Crit,
            "error" => Level::Error,
            "warn" => Level::Warn,
            "notice" => Level::Notice,
            "info" => Level::Info,
            "debug" | "debug_core" | "debug_alloc" | "debug_mutex" | "debug_event" | "debug_http"
            | "debug_mail" | "debug_stream" => Level::Debug,
            _ => {
                let fault = call.fail(format!("invalid log level \"{text}\""));
                return Err(call.under(fault, index));
            }
        };
        if level.is_some() && found != Level::Debug {
            let fault = call.fail(format!("duplicate log level \"{text}\""));
            return Err(call.under(fault, index));
        }
        level = Some(found);
    }
    Ok(ErrorLog { target, level: level.unwrap_or(Level::Error) })
}
