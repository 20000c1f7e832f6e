//! What only the whole tree of a server shows: locations written twice.

use weir_syntax::Diagnostic;

use crate::lowering::Merge;
use crate::program::{LocationId, LocationMatch, ScopeKind};

/// Tells locations of one level that match the same.
pub(crate) fn check(merge: &mut Merge<'_>) {
    for server in merge.http().servers.clone() {
        check_level(server, merge);
    }
}

/// As nginx goes about it: by name, inner levels before their own, a prefix with and without `^~` being the same. What
/// is inside of a regex is not looked at, and of named locations the first holds.
fn check_level(outer: LocationId, merge: &mut Merge<'_>) {
    let http = merge.http();
    let children = http.scope(outer).children.iter();
    let mut fixed: Vec<(Vec<u8>, bool, LocationId)> = children
        .filter_map(|id| match &http.scope(*id).kind {
            ScopeKind::Location(LocationMatch::Exact(name)) => Some((name.clone(), false, *id)),
            ScopeKind::Location(LocationMatch::Prefix(name) | LocationMatch::PrefixFinal(name)) => {
                Some((name.clone(), true, *id))
            }
            _ => None,
        })
        .collect();
    fixed.sort();
    for (_, _, id) in &fixed {
        check_level(*id, merge);
    }
    for pair in fixed.windows(2) {
        let [(name, prefix, _), (other, other_prefix, id)] = pair else { continue };
        if name == other && prefix == other_prefix {
            let at = &merge.http().scope(*id).position;
            let place = format!("\" in {}:{}", at.file, at.line);
            let message = [&b"duplicate location \""[..], name, place.as_bytes()].concat();
            merge.state.diagnostics.push(Diagnostic::emerg(message));
        }
    }
}
