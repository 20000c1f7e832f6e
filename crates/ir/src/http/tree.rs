//! What only the whole tree of a server shows: locations written twice.

use std::collections::HashSet;

use weir_syntax::Diagnostic;

use crate::lowering::Merge;
use crate::program::{LocationId, LocationMatch, ScopeKind};

/// Tells locations of one level that match the same.
pub(crate) fn check(merge: &mut Merge<'_>) {
    let servers = merge.http().servers.clone();
    for server in servers {
        check_level(server, merge);
    }
}

fn check_level(outer: LocationId, merge: &mut Merge<'_>) {
    let mut seen: HashSet<(u8, Vec<u8>)> = HashSet::new();
    for child in merge.http().scope(outer).children.clone() {
        let scope = merge.http().scope(child);
        if let ScopeKind::Location(pattern) = &scope.kind {
            // A prefix with and without `^~` is the same location; an exact one is another.
            let key = match pattern {
                LocationMatch::Exact(name) => Some((0, name.clone())),
                LocationMatch::Prefix(name) | LocationMatch::PrefixFinal(name) => Some((1, name.clone())),
                LocationMatch::Named(name) => Some((2, name.clone())),
                LocationMatch::Regex(_) => None,
            };
            if let Some(key) = key {
                let shown = String::from_utf8_lossy(&key.1).into_owned();
                let kind = if key.0 == 2 { "duplicate named location" } else { "duplicate location" };
                let message =
                    format!("{kind} \"{shown}\" in {}:{}", scope.position.file, scope.position.line);
                if !seen.insert(key) {
                    merge.state.diagnostics.push(Diagnostic::emerg(message));
                }
            }
        }
        check_level(child, merge);
    }
}
