//! Every directive that nginx has, so that one which weir lacks is refused by name and never skipped.

use crate::contract::Contexts;

/// A directive of nginx as its documentation and source declare it.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Without `ngx_` and `_module`.
    pub module: &'static str,
    pub name: &'static str,
    contexts: &'static str,
    /// `1`, `1-3`, `2+`, `on|off`, `block 0`.
    pub takes: &'static str,
    pub syntax: &'static str,
    pub default: &'static str,
}

impl Row {
    /// The contexts of this table's families; other families (`stream`, `mail`) have no bit yet.
    pub fn contexts(&self) -> Contexts {
        let bit = |name: &str| match name {
            "main" => Contexts::MAIN,
            "events" => Contexts::EVENTS,
            "http" => Contexts::HTTP,
            "server" => Contexts::SERVER,
            "location" => Contexts::LOCATION,
            "if in server" => Contexts::SERVER_IF,
            "if in location" => Contexts::LOCATION_IF,
            "limit_except" => Contexts::LIMIT_EXCEPT,
            "upstream" => Contexts::UPSTREAM,
            "any" => Contexts(u32::MAX),
            _ => Contexts(0),
        };
        self.contexts.split(',').fold(Contexts(0), |all, name| all | bit(name))
    }

    /// The contexts as words, `http, server, location`.
    pub fn context_names(&self) -> String {
        self.contexts.replace(',', ", ")
    }
}

/// All rows in nginx's order of modules.
pub fn rows() -> impl Iterator<Item = Row> {
    include_str!("nginx.tsv").lines().skip(1).filter_map(|line| {
        let mut fields = line.split('\t');
        Some(Row {
            module: fields.next()?,
            name: fields.next()?,
            contexts: fields.next()?,
            takes: fields.next()?,
            syntax: fields.next()?,
            default: fields.next().unwrap_or(""),
        })
    })
}

/// The rows of that name; a name may belong to several modules.
pub fn find(name: &str) -> impl Iterator<Item = Row> + '_ {
    rows().filter(move |row| row.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_whole() {
        assert_eq!(rows().count(), 784);
        for row in rows() {
            assert!(!row.name.is_empty() && !row.context_names().is_empty(), "{row:?}");
        }
    }
}
