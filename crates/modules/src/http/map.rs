//! `ngx_http_map_module`: variables whose values are looked up by the value of another text.

use weir_engine::contract::{Evaluate, Install};
use weir_engine::generation::{Build, Plan};
use weir_engine::hash::ConfiguredMap;
use weir_engine::http::{self, Exchange};
use weir_ir::contract::{Conf, Contexts, Directive, Module, Setting, Takes};
use weir_ir::{Call, Fault, Merge, Regex, Template, VariableId};
use weir_syntax::Diagnostic;

pub struct Map;

type D = Directive<Map>;

const HASH: &str = "weir's tables size themselves";

impl Module for Map {
    const NAME: &'static str = "http_map";
    type Main = Maps;
    type Scope = ();
    const DIRECTIVES: &'static [Directive<Self>] = &[
        D::main("map", Contexts::HTTP, Takes::TWO.with_block(), map),
        D::main("map_hash_max_size", Contexts::HTTP, Takes::ONE, |m, c| m.hash_max_size.number(c))
            .accepted(HASH),
        D::main("map_hash_bucket_size", Contexts::HTTP, Takes::ONE, |m, c| m.hash_bucket_size.number(c))
            .accepted(HASH),
    ];
}

/// All maps of the configuration.
#[derive(Clone, Debug, Default)]
pub struct Maps {
    maps: Vec<Table>,
    hash_max_size: Setting<u64>,
    hash_bucket_size: Setting<u64>,
}

impl Conf for Maps {
    fn inherit(&mut self, _: &Self, _: &mut Merge<'_>) -> Result<(), Fault> {
        Ok(())
    }
}

/// One `map` as written.
#[derive(Clone, Debug)]
struct Table {
    source: Template,
    variable: VariableId,
    keys: Keys,
    /// By the numbers in `keys`.
    values: Vec<Template>,
    default: Option<usize>,
    hostnames: bool,
    volatile: bool,
}

/// The keys of a table and where their values stand, all but regexes in lower case.
#[derive(Clone, Debug, Default)]
struct Keys {
    exact: ConfiguredMap<Box<[u8]>, usize>,
    /// `.example.com` for `*.example.com` and `.example.com`.
    leading: ConfiguredMap<Box<[u8]>, usize>,
    /// `www.example.` for `www.example.*`.
    trailing: ConfiguredMap<Box<[u8]>, usize>,
    regexes: Vec<(Regex, usize)>,
}

/// Why a key cannot be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refused {
    /// It is no host name or wildcard.
    Invalid,
    /// It is there already.
    Conflict,
}

impl Keys {
    /// Adds a key that is no regex; with `hostnames` it may be a wildcard.
    fn add(&mut self, key: &[u8], hostnames: bool, value: usize) -> Result<(), Refused> {
        let key = key.to_ascii_lowercase();
        if !hostnames {
            return insert(&mut self.exact, &key, value);
        }
        let stars = memchr::memchr_iter(b'*', &key).count();
        if stars > 1 || key.contains(&0) || memchr::memmem::find(&key, b"..").is_some() {
            return Err(Refused::Invalid);
        }
        if key.len() > 1 && key[0] == b'.' {
            // The bare name is the key's too, unless it is somebody else's.
            if self.exact.contains_key(&key[1..]) || self.leading.contains_key(&key[..]) {
                return Err(Refused::Conflict);
            }
            insert(&mut self.exact, &key[1..], value)?;
            return insert(&mut self.leading, &key, value);
        }
        if key.len() > 2 && key.starts_with(b"*.") {
            return insert(&mut self.leading, &key[1..], value);
        }
        if key.len() > 2 && key.ends_with(b".*") {
            return insert(&mut self.trailing, &key[..key.len() - 1], value);
        }
        if stars > 0 {
            return Err(Refused::Invalid);
        }
        insert(&mut self.exact, &key, value)
    }

    /// The value of a subject: exact, by the longest leading, then the longest trailing wildcard. `low` is in
    /// lower case.
    fn find_plain(&self, low: &[u8]) -> Option<usize> {
        if let Some(value) = self.exact.get(low) {
            return Some(*value);
        }
        if !self.leading.is_empty()
            && let Some(value) = memchr::memchr_iter(b'.', low).find_map(|at| self.leading.get(&low[at..]))
        {
            return Some(*value);
        }
        if self.trailing.is_empty() {
            return None;
        }
        memchr::memrchr_iter(b'.', low).find_map(|at| self.trailing.get(&low[..=at])).copied()
    }
}

fn insert(table: &mut ConfiguredMap<Box<[u8]>, usize>, key: &[u8], value: usize) -> Result<(), Refused> {
    if table.contains_key(key) {
        return Err(Refused::Conflict);
    }
    table.insert(key.into(), value);
    Ok(())
}

fn map(conf: &mut Maps, call: &mut Call<'_>) -> Result<(), Fault> {
    // nginx settles the sizes at the first map: a size that is named later is a duplicate.
    for size in [&mut conf.hash_max_size, &mut conf.hash_bucket_size] {
        if !size.is_set() {
            size.replace(0);
        }
    }
    let source = call.template(0)?;
    let name = call.variable_name(1)?;
    let variable = call.declare(&name, true)?;
    let mut table = Table {
        source,
        variable,
        keys: Keys::default(),
        values: vec![],
        default: None,
        hostnames: false,
        volatile: false,
    };
    call.entries(|entry| table.read(entry))?;
    conf.maps.push(table);
    Ok(())
}

impl Table {
    fn read(&mut self, entry: &mut Call<'_>) -> Result<(), Fault> {
        let key = entry.name();
        match (entry.args().len(), key) {
            (0, b"hostnames") => {
                self.hostnames = true;
                return Ok(());
            }
            (0, b"volatile") => {
                self.volatile = true;
                return Ok(());
            }
            (1, _) => {}
            _ => return Err(entry.fail("invalid number of the map parameters")),
        }
        let value = entry.template(0)?;
        self.values.push(value);
        let value = self.values.len() - 1;
        let refused = match key {
            b"default" if self.default.is_some() => {
                return Err(entry.fail("duplicate default map parameter"));
            }
            b"default" => {
                self.default = Some(value);
                return Ok(());
            }
            [b'~', b'*', pattern @ ..] => {
                self.keys.regexes.push((Regex::compile(pattern, true, entry)?, value));
                return Ok(());
            }
            [b'~', pattern @ ..] => {
                self.keys.regexes.push((Regex::compile(pattern, false, entry)?, value));
                return Ok(());
            }
            [b'\\', rest @ ..] => self.keys.add(rest, self.hostnames, value).map_err(|r| (r, rest)),
            key => self.keys.add(key, self.hostnames, value).map_err(|r| (r, key)),
        };
        let Err((refused, key)) = refused else { return Ok(()) };
        Err(entry.fail(match refused {
            Refused::Invalid => [b"invalid hostname or wildcard \"", key, b"\""].concat(),
            // By then nginx has the key in lower case.
            Refused::Conflict => [b"conflicting parameter \"", &*key.to_ascii_lowercase(), b"\""].concat(),
        }))
    }
}

impl Install for Map {
    fn prepare(maps: &Maps, build: &mut Build<'_>) -> Result<(), Diagnostic> {
        for table in &maps.maps {
            let lookup = Lookup {
                source: build.template(&table.source),
                keys: table.keys.clone(),
                values: table.values.iter().map(|value| build.template(value)).collect(),
                default: table.default,
                hostnames: table.hostnames,
            };
            build.define(table.variable, Box::new(lookup), table.volatile);
        }
        Ok(())
    }

    fn install((): &(), _: &mut Plan<'_, '_>) -> Result<(), Diagnostic> {
        Ok(())
    }
}

/// A map, ready.
struct Lookup {
    source: http::Template,
    keys: Keys,
    values: Vec<http::Template>,
    default: Option<usize>,
    hostnames: bool,
}

impl Evaluate for Lookup {
    fn evaluate(&self, x: &Exchange, out: &mut Vec<u8>) -> bool {
        let mut subject = self.source.value(x);
        if self.hostnames && subject.last() == Some(&b'.') {
            subject.pop();
        }
        let found = if subject.iter().any(u8::is_ascii_uppercase) {
            self.keys.find_plain(&subject.to_ascii_lowercase())
        } else {
            self.keys.find_plain(&subject)
        };
        let found = found.or_else(|| {
            let mut regexes = self.keys.regexes.iter().filter(|_| !subject.is_empty());
            regexes.find(|(regex, _)| x.matches(regex, &subject)).map(|(_, value)| *value)
        });
        if let Some(value) = found.or(self.default) {
            self.values[value].append(x, out);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{Site, check_conf};

    #[track_caller]
    fn refused(block: &str, message: &str) {
        check_conf(&format!("map $uri $m {{ {block} }}"), message);
    }

    #[test]
    fn messages() {
        refused("a;", "invalid number of the map parameters");
        refused("a b c;", "invalid number of the map parameters");
        refused("a b {}", "unexpected \"{\"");
        refused("volatile x;", "");
        refused("default a; default b;", "duplicate default map parameter");
        refused("a b; A c;", "conflicting parameter \"a\"");
        refused("hostnames; .a.b c; a.b d;", "conflicting parameter \"a.b\"");
        refused("hostnames; a.b c; .a.b d;", "conflicting parameter \".a.b\"");
        refused("hostnames; .a.b c; *.a.b d;", "conflicting parameter \"*.a.b\"");
        refused("hostnames; *.a c; .a d;", "conflicting parameter \".a\"");
        refused("hostnames; a*b c;", "invalid hostname or wildcard \"a*b\"");
        refused("hostnames; a..b c;", "invalid hostname or wildcard \"a..b\"");
        refused("hostnames; *.* c;", "invalid hostname or wildcard \"*.*\"");
        refused("hostnames; * c;", "invalid hostname or wildcard \"*\"");
        refused("hostnames; . c; \"\" d; .* e;", "");
        refused("~( c;", "pcre2_compile() failed: missing closing parenthesis in \"(\"");
        refused("a $none;", "unknown \"none\" variable");
        check_conf("map a b { }", "invalid variable name \"b\"");
        check_conf("map a $ { }", "invalid variable name \"$\"");
        check_conf("map a $uri { }", "the duplicate \"uri\" variable");
        let late = "map $uri $m { } map_hash_max_size 1;";
        check_conf(late, "\"map_hash_max_size\" directive is duplicate");
    }

    #[track_caller]
    fn check(block: &str, subject: &str, expected: &str) {
        let conf = format!("map $arg_s $m {{ {block} }} server {{ return 200 \"[$m]\"; }}");
        assert_eq!(
            Site::new(&conf).short(&format!("/?s={subject}")),
            format!("200 [{expected}]"),
            "{subject}"
        );
    }

    #[test]
    fn plain_keys() {
        let block = "default d; \"\" none; a 1; B 2; \\default 3; \\~x 4; *.z 5; \\\\y 6;";
        check(block, "a", "1");
        check(block, "A", "1");
        check(block, "b", "2");
        check(block, "", "none");
        check(block, "q", "d");
        check(block, "default", "3");
        check(block, "~x", "4");
        check(block, "b.z", "d");
        check("a 1;", "q", "");
    }

    #[test]
    fn hostnames() {
        let block = "hostnames; default d; a.b 1; *.a.b 2; *.c.a.b 3; .dot 4; www.* 5; www.x.* 6;";
        for (subject, expected) in [
            ("a.b", "1"),
            ("a.b.", "1"),
            ("q.a.b", "2"),
            ("Q.R.a.b", "2"),
            ("q.c.a.b", "3"),
            ("c.a.b", "2"),
            ("dot", "4"),
            ("x.dot", "4"),
            ("www.q", "5"),
            ("www.x.y", "6"),
            ("www.x", "5"),
            ("www", "d"),
            ("qa.b", "d"),
        ] {
            check(block, subject, expected);
        }
    }

    #[test]
    fn regexes_and_templates() {
        let block = "~^A(.) up$1; ~*^a(?<rest>.*)$ low-$rest; ab plain; ~c $arg_t;";
        check(block, "AB", "plain");
        check(block, "AC", "upC");
        check(block, "acd", "low-cd");
        check(block, "c&t=T", "T");
    }

    #[test]
    fn values_are_kept_unless_volatile() {
        let ask = |volatile: &str| {
            let conf = format!(
                "map $a $m {{ {volatile} 1 one; 2 two; }} server {{ set $a 1; set $b $m; set $a 2; return 200 $b$m; }}"
            );
            Site::new(&conf).short("/")
        };
        assert_eq!((ask(""), ask("volatile;")), ("200 oneone".into(), "200 onetwo".into()));
    }
}
