//! `weir --directives`: every directive and what it means here, as tab-separated lines.

use std::collections::HashMap;
use std::fmt::Write;

use weir_ir::AnyModule;
use weir_ir::contract::{Declared, Standing};
use weir_ir::table::{self, Row};

/// A header line, then a line each: module, directive, contexts, syntax, default, standing, reason.
pub fn table() -> String {
    let declared = declared();
    let by_name: HashMap<(&str, &str), Standing> =
        declared.iter().map(|(module, d)| ((*module, d.name), d.standing)).collect();
    let mut out = String::from("module\tdirective\tcontexts\tsyntax\tdefault\tstanding\treason\n");
    for row in table::rows() {
        let standing = match (row.module, row.name) {
            // Reading files is not a module's business here.
            ("conf_file", "include") => Some(&Standing::Supported),
            (_, name) => by_name.get(&(home(&row), name)),
        };
        let (standing, reason) = match standing {
            Some(Standing::Supported) => ("supported", ""),
            Some(Standing::Accepted(reason)) => ("accepted", *reason),
            None => ("known", "nginx has it, weir does not yet: a configuration with it is refused"),
        };
        // Writing to a string cannot fail.
        let _ = writeln!(
            out,
            "{}\t{}\t{}\t{}\t{}\t{standing}\t{reason}",
            row.module,
            row.name,
            row.context_names(),
            row.syntax,
            row.default
        );
    }
    for (module, directive) in declared.iter().filter(|(module, d)| row(module, d).is_none()) {
        let (standing, reason) = match directive.standing {
            Standing::Supported => ("supported", "nginx itself has none of that name"),
            Standing::Accepted(reason) => ("accepted", reason),
        };
        let contexts = directive.contexts.names().join(", ");
        let _ = writeln!(out, "{module}\t{}\t{contexts}\t\t\t{standing}\t{reason}", directive.name);
    }
    out
}

/// Every directive that is declared, with its module's name.
fn declared() -> Vec<(&'static str, Declared)> {
    let core: Vec<&'static dyn AnyModule> = weir_ir::core::MODULES.to_vec();
    let modules = core.into_iter().chain(super::http_modules()).chain(super::upstream_modules());
    modules.flat_map(|module| module.directives().into_iter().map(|d| (module.name(), d))).collect()
}

/// The module that has a row's directive here: small ones are put together, and what nginx's core has of compression
/// stands beside those who ask for it.
fn home(row: &Row) -> &'static str {
    match row.module {
        "log" | "regex" | "thread_pool" | "http" | "event_openssl_cache" => "nginx",
        "epoll" => "event",
        "http_core" if row.name.starts_with("gzip_") => "http_gzip_ok",
        "http_copy_filter" => "http_core",
        other => other,
    }
}

/// nginx's row for a directive that a module declares.
fn row(module: &str, directive: &Declared) -> Option<Row> {
    table::find(directive.name).find(|row| home(row) == module)
}

#[cfg(test)]
mod tests {
    use weir_ir::{Contexts, Takes};

    use super::*;

    /// Directives of its commercial version that stand in modules which it has.
    const COMMERCIAL: &[(&str, &str)] = &[("http_upstream", "queue"), ("http_proxy", "proxy_cache_purge")];

    /// Modules that nginx does not have.
    const OWN: &[&str] = &[
        "http_websocket_origins",
        "http_v2_extended_connect",
        "http_brotli",
        "http_zstd",
        "http_upstream_hc",
    ];

    fn takes(row: &Row) -> Takes {
        let (block, count) = match row.takes.strip_prefix("block ") {
            Some(count) => (true, count),
            None => (false, row.takes),
        };
        let number = |text: &str| text.parse().unwrap();
        // `0 1-2` is 0, or 1 to 2.
        let (least, most) = match (count, count.strip_suffix('+')) {
            ("on|off", _) => (1, 1),
            (_, Some(least)) => (number(least), u8::MAX),
            (count, None) => {
                let mut bounds = count.split([' ', '-']).map(number);
                let least = bounds.next().unwrap();
                (least, bounds.next_back().unwrap_or(least))
            }
        };
        let takes = Takes::of(least, most);
        if block { takes.with_block() } else { takes }
    }

    #[test]
    fn contexts_and_arguments_are_those_of_nginx() {
        let mut wrong = vec![];
        for (module, directive) in declared() {
            let Some(row) = row(module, &directive) else {
                if !OWN.contains(&module) && !COMMERCIAL.contains(&(module, directive.name)) {
                    wrong.push(format!("{module} {} is in no row", directive.name));
                }
                continue;
            };
            if row.contexts() != directive.contexts || takes(&row) != directive.takes {
                let (contexts, takes) = (directive.contexts.names(), directive.takes);
                wrong.push(format!("{row:?}, but {contexts:?} {takes:?}"));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    #[test]
    fn no_two_modules_claim_a_name_in_one_context() {
        let mut claimed: HashMap<&str, Contexts> = HashMap::new();
        for (module, directive) in declared() {
            let before = claimed.entry(directive.name).or_insert(Contexts(0));
            assert!(!before.meets(directive.contexts), "{module} {}", directive.name);
            *before = *before | directive.contexts;
        }
    }

    /// The standing of a directive in the printed table.
    #[track_caller]
    fn check(module: &str, name: &str, expected: &str) {
        let table = table();
        let start = format!("{module}\t{name}\t");
        let line = table.lines().find(|line| line.starts_with(&start)).unwrap();
        assert_eq!(line.split('\t').nth(5), Some(expected), "{line}");
    }

    #[test]
    fn names_of_several_modules_are_told_apart() {
        check("http_core", "server", "supported");
        check("http_upstream", "server", "supported");
        check("stream_core", "server", "known");
        check("http_core", "keepalive_timeout", "supported");
        check("http_upstream_keepalive", "keepalive_timeout", "supported");
        check("http_log", "access_log", "supported");
        check("stream_log", "access_log", "known");
        check("log", "error_log", "supported");
        check("http_core", "error_log", "supported");
        check("conf_file", "include", "supported");
        check("event", "accept_mutex", "accepted");
    }

    #[test]
    fn every_line_has_all_fields() {
        for line in table().lines() {
            assert_eq!(line.split('\t').count(), 7, "{line}");
        }
    }
}
