//! `server_name`: the names that a server answers to.

use crate::http::core::Core;
use crate::lowering::{Call, Fault};
use crate::regex::Regex;

/// A name of a server; all but the regex in lower case.
#[derive(Clone, Debug, PartialEq)]
pub enum ServerName {
    Exact(Box<str>),
    /// `*.example.com`, kept as `.example.com`.
    Leading(Box<str>),
    /// `.example.com`: the name and everything below it.
    Dot(Box<str>),
    /// `www.example.*`, kept as `www.example.`.
    Trailing(Box<str>),
    Regex(Regex),
}

impl ServerName {
    /// As in `$server_name` and in messages.
    pub fn shown(&self) -> String {
        match self {
            ServerName::Exact(name) | ServerName::Dot(name) => name.to_string(),
            ServerName::Leading(name) => format!("*{name}"),
            ServerName::Trailing(name) => format!("{name}*"),
            ServerName::Regex(regex) => format!("~{}", String::from_utf8_lossy(regex.source())),
        }
    }
}

pub(crate) fn read(core: &mut Core, call: &mut Call<'_>) -> Result<(), Fault> {
    for index in 0..call.args().len() {
        let text = call.text(index);
        let bad_wildcard = text.starts_with('*') && !text.starts_with("*.")
            || text.ends_with('*') && !text.ends_with(".*")
            || text.len() > 1 && text[1..text.len() - 1].contains('*')
            || text.starts_with('*') && text.ends_with('*');
        if text.starts_with('~') {
            if text.len() == 1 {
                let fault = call.fail("empty regex in server name \"~\"".to_string());
                return Err(call.under(fault, index));
            }
            let pattern = &call.arg(index)[1..];
            let caseless = pattern.iter().any(u8::is_ascii_uppercase);
            let regex = Regex::compile(pattern, caseless, call).map_err(|f| call.under(f, index))?;
            core.server_names.push(ServerName::Regex(regex));
            continue;
        }
        if bad_wildcard || text == "." || text.contains('*') && text.len() < 3 {
            let fault = call.fail(format!("server name \"{text}\" is invalid"));
            return Err(call.under(fault, index));
        }
        if text.contains('/') {
            call.warn(format!("server name \"{text}\" has suspicious symbols"));
        }
        let name = text.to_lowercase();
        core.server_names.push(if let Some(tail) = name.strip_prefix('*') {
            ServerName::Leading(tail.into())
        } else if let Some(head) = name.strip_suffix('*') {
            ServerName::Trailing(head.into())
        } else if name.starts_with('.') {
            ServerName::Dot(name.into())
        } else if name == "$hostname" {
            ServerName::Exact(call.world().hostname().to_lowercase().into())
        } else {
            ServerName::Exact(name.into())
        });
    }
    Ok(())
}
