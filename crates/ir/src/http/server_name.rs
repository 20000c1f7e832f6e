//! `server_name`: the names that a server answers to.

use std::collections::HashSet;

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
    /// What a name in lower case is, which may be none that any host has.
    fn of(name: &str) -> Self {
        if name.len() > 1 && name.starts_with('.') {
            ServerName::Dot(name.into())
        } else if name.len() > 2 && name.starts_with("*.") {
            ServerName::Leading(name[1..].into())
        } else if name.len() > 2 && name.ends_with(".*") {
            ServerName::Trailing(name[..name.len() - 1].into())
        } else {
            ServerName::Exact(name.into())
        }
    }

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
        let name = call.arg(index);
        let bad = match name.first() {
            Some(b'*') => name.len() < 3 || name[1] != b'.',
            Some(b'.') => name.len() < 2,
            _ => false,
        };
        if bad {
            let message = [b"server name \"", name, b"\" is invalid"].concat();
            return Err(call.under(call.fail(message), index));
        }
        if name.contains(&b'/') {
            call.warn([b"server name \"", name, b"\" has suspicious symbols"].concat());
        }
        let [b'~', pattern @ ..] = name else {
            let name = call.text(index).to_ascii_lowercase();
            core.server_names.push(if name == "$hostname" {
                ServerName::Exact(call.world().hostname().to_ascii_lowercase().into())
            } else {
                ServerName::of(&name)
            });
            continue;
        };
        if pattern.is_empty() {
            return Err(call.fail_at(index, "empty regex in server name"));
        }
        let caseless = pattern.iter().any(u8::is_ascii_uppercase);
        let regex = Regex::compile(pattern, caseless, call).map_err(|f| call.under(f, index))?;
        core.server_names.push(ServerName::Regex(regex));
    }
    Ok(())
}

/// The names of one address, as far as they have been met.
#[derive(Debug, Default)]
pub(crate) struct Claimed<'n> {
    exact: HashSet<&'n str>,
    /// What stands behind the first dot.
    leading: HashSet<&'n str>,
    trailing: HashSet<&'n str>,
}

/// Why a name is not claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unclaimed {
    /// It is neither a name nor a wildcard.
    Invalid,
    /// Another server has it.
    Conflict,
}

impl<'n> Claimed<'n> {
    /// Gives a name to whoever asks first. nginx looks into names only here, where several servers share an address.
    pub(crate) fn claim(&mut self, name: &'n ServerName) -> Result<(), Unclaimed> {
        let text = match name {
            ServerName::Regex(_) => return Ok(()),
            ServerName::Exact(t) | ServerName::Leading(t) | ServerName::Dot(t) | ServerName::Trailing(t) => {
                &**t
            }
        };
        let stars = text.matches('*').count();
        let spare = match name {
            ServerName::Exact(_) | ServerName::Regex(_) => 0,
            ServerName::Dot(_) => 1,
            // Their own is not in the text.
            ServerName::Leading(_) | ServerName::Trailing(_) => 0,
        };
        if stars > spare || text.contains("..") || text.contains('\0') {
            return Err(Unclaimed::Invalid);
        }
        let free = match name {
            ServerName::Regex(_) => true,
            ServerName::Exact(text) => self.exact.insert(text),
            ServerName::Leading(text) => self.leading.insert(&text[1..]),
            ServerName::Dot(text) => self.exact.insert(&text[1..]) && self.leading.insert(&text[1..]),
            ServerName::Trailing(text) => self.trailing.insert(text),
        };
        if free { Ok(()) } else { Err(Unclaimed::Conflict) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The last of some names of one address.
    #[track_caller]
    fn check(names: &[&str], expected: Result<(), Unclaimed>) {
        let names: Vec<ServerName> = names.iter().map(|name| ServerName::of(name)).collect();
        let mut claimed = Claimed::default();
        let results: Vec<_> = names.iter().map(|name| claimed.claim(name)).collect();
        assert_eq!(results.last(), Some(&expected), "{names:?}");
    }

    #[test]
    fn names_conflict_as_in_nginx() {
        const CONFLICT: Result<(), Unclaimed> = Err(Unclaimed::Conflict);
        check(&["a", "a"], CONFLICT);
        check(&["a", ".a"], CONFLICT);
        check(&[".a", "a"], CONFLICT);
        check(&["*.a", ".a"], CONFLICT);
        check(&[".a", "*.a"], CONFLICT);
        check(&["a", "*.a"], Ok(()));
        check(&["a.*", "a.*"], CONFLICT);
        check(&["a", "a.*"], Ok(()));
        check(&["", ""], CONFLICT);
        check(&[".*", ".*"], CONFLICT);
        for name in
            ["a*", "*.*", "..", "a..b", "a.*.b", "*.a.*", "a.**", "*.*.a", "..a", "*..a", "a*b", ".*.*"]
        {
            check(&[name], Err(Unclaimed::Invalid));
        }
        for name in [".*", ".*.a", "a.", ".a.*"] {
            check(&[name], Ok(()));
        }
    }
}
