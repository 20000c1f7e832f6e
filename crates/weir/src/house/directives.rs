//! `weir --directives`: every directive and what it means here, as tab-separated lines.

use std::collections::HashMap;
use std::fmt::Write;

use weir_ir::contract::Standing;
use weir_ir::table;

/// A header line, then a line each: module, directive, contexts, syntax, default, standing, reason.
pub fn table() -> String {
    let mut declared: HashMap<(String, &str), Standing> = HashMap::new();
    let core = weir_ir::core::MODULES.iter().copied();
    for module in core.chain(super::http_modules()).chain(super::upstream_modules()) {
        for directive in module.directives() {
            declared.insert((module.name().to_string(), directive.name), directive.standing);
        }
    }
    let mut out = String::from("module\tdirective\tcontexts\tsyntax\tdefault\tstanding\treason\n");
    for row in table::rows() {
        let known = declared.get(&(row.module.to_string(), row.name)).or_else(|| {
            declared.iter().find(|((_, name), _)| *name == row.name && !is_shared(name)).map(|(_, s)| s)
        });
        let (standing, reason) = match known {
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
    out
}

/// Names that several modules have: one of them does not speak for another.
fn is_shared(name: &str) -> bool {
    table::find(name).count() > 1
}
