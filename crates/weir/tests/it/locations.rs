//! Random servers with random locations: the one that is found is the one that nginx's rules name.
//!
//! The rules stand here once more, without any index: what is compared are two readings of them. With nginx as the
//! executable under test it is nginx's own reading.

use std::fmt::Write;

use weir_testkit::{Client, Server};

use crate::{Test, executable};

pub const TESTS: &[Test] =
    &[("locations_are_found_as_nginx_finds_them", locations_are_found_as_nginx_finds_them)];

/// Servers in one configuration, and requests to each.
const SERVERS: u64 = 300;
const REQUESTS: usize = 24;

/// Numbers that look random and are the same each time (xorshift64*).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % bound
    }

    fn one_of<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }

    /// A path without repeated slashes, which would be merged.
    fn path(&mut self, start: &str, longest: usize) -> String {
        let mut path = start.to_owned();
        for _ in 0..self.below(longest + 1) {
            let next = *self.one_of(&['a', 'b', '/']);
            if next != '/' || !path.ends_with('/') {
                path.push(next);
            }
        }
        path
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Exact,
    Prefix,
    /// `^~`
    Final,
    Regex,
}

#[derive(Debug)]
struct Location {
    number: usize,
    kind: Kind,
    /// Of a regex: a text that is looked for, at the end where it ends in `$`.
    name: String,
    /// Passes to an upstream, so that the name without its slash is redirected.
    passes: bool,
    children: Vec<Location>,
}

impl Location {
    fn matches(&self, path: &str) -> bool {
        match self.name.strip_suffix('$') {
            Some(end) => path.ends_with(end),
            None => path.contains(&self.name),
        }
    }
}

fn level(random: &mut Random, start: &str, depth: usize, count: &mut usize) -> Vec<Location> {
    let mut level: Vec<Location> = vec![];
    for _ in 0..random.below(6) {
        let kind = *random.one_of(&[Kind::Exact, Kind::Prefix, Kind::Prefix, Kind::Final, Kind::Regex]);
        let name = match kind {
            Kind::Regex => (*random.one_of(&["a$", "/$", "/a", "/b", "ab", "/b/", "b$"])).to_owned(),
            Kind::Exact | Kind::Prefix | Kind::Final => random.path(start, 4),
        };
        let same = |other: &Location| {
            other.name == name
                && (other.kind == Kind::Exact) == (kind == Kind::Exact)
                && (other.kind == Kind::Regex) == (kind == Kind::Regex)
        };
        if level.iter().any(same) {
            continue;
        }
        *count += 1;
        let number = *count;
        let passes = random.below(2) == 0;
        // What is inside begins as it does, by its text even where that is a regex.
        let inside = kind != Kind::Exact && depth > 0 && name.starts_with('/') && !name.ends_with('$');
        let children = if inside { self::level(random, &name, depth - 1, count) } else { vec![] };
        level.push(Location { number, kind, name, passes, children });
    }
    level
}

fn written(level: &[Location], text: &mut String) {
    for location in level {
        let sign = match location.kind {
            Kind::Exact => "= ",
            Kind::Prefix => "",
            Kind::Final => "^~ ",
            Kind::Regex => "~ ",
        };
        let _ = write!(text, "location {sign}\"{}\" {{ return 200 '{}'; ", location.name, location.number);
        // nginx takes no URI behind the address here in a regex; without one all kinds are alike.
        if location.passes {
            text.push_str("proxy_pass http://127.0.0.1:1; ");
        }
        written(&location.children, text);
        text.push_str("}\n");
    }
}

/// How a search among locations ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Found {
    /// This is it.
    Final(usize),
    /// The client is to add a slash.
    Redirect,
    /// This, unless a regex further out says otherwise.
    Prefix(usize),
    Nothing,
}

/// nginx's rules, read off its documentation of `location` and its search.
fn search(level: &[Location], path: &str) -> Found {
    let plain = |location: &&Location| location.kind != Kind::Regex;
    if let Some(exact) = level.iter().find(|l| l.kind == Kind::Exact && l.name == path) {
        return Found::Final(exact.number);
    }
    let prefixes = level.iter().filter(|l| matches!(l.kind, Kind::Prefix | Kind::Final));
    let longest = prefixes.filter(|l| path.starts_with(&l.name)).max_by_key(|l| l.name.len());
    let itself = longest.is_some_and(|l| l.name == path);
    let slash = format!("{path}/");
    if !itself && level.iter().filter(plain).any(|l| l.passes && l.name == slash) {
        return Found::Redirect;
    }
    let mut found = Found::Nothing;
    if let Some(prefix) = longest {
        found = match search(&prefix.children, path) {
            Found::Nothing => Found::Prefix(prefix.number),
            Found::Prefix(inner) => Found::Prefix(inner),
            last @ (Found::Final(_) | Found::Redirect) => return last,
        };
    }
    if longest.is_none_or(|l| l.kind != Kind::Final)
        && let Some(regex) = level.iter().find(|l| l.kind == Kind::Regex && l.matches(path))
    {
        return Found::Final(deepest(regex, path));
    }
    found
}

/// Only regexes are found inside a regex.
fn deepest(regex: &Location, path: &str) -> usize {
    let inner = regex.children.iter().find(|l| l.kind == Kind::Regex && l.matches(path));
    inner.map_or(regex.number, |inner| deepest(inner, path))
}

fn locations_are_found_as_nginx_finds_them() {
    let mut random = Random(0x5eed);
    let mut conf = String::from(
        "error_log logs/error.log crit; events {} http { root nowhere; server_names_hash_max_size 4096;\n",
    );
    let mut servers = vec![];
    for number in 0..SERVERS {
        let mut count = 0;
        let locations = level(&mut random, "/", 2, &mut count);
        let mut text = format!("server {{ listen {{listen}}; server_name s{number};\n");
        written(&locations, &mut text);
        text.push_str("}\n");
        conf.push_str(&text);
        servers.push((locations, text));
    }
    conf.push('}');
    let server = Server::start(&executable(), &conf, &[]);
    let mut wrong = vec![];
    let mut kinds = [0; 4];
    for (number, (locations, text)) in servers.iter().enumerate() {
        let mut client = Client::connect(server.address());
        for _ in 0..REQUESTS {
            let path = random.path("/", 6);
            let response = client.ask(format!("GET {path} HTTP/1.1\r\nHost: s{number}\r\n\r\n"));
            let expected = search(locations, &path);
            let (kind, as_expected) = match expected {
                Found::Final(n) => (0, response.status == 200 && response.text() == n.to_string()),
                Found::Redirect => (1, response.status == 301),
                Found::Prefix(n) => (2, response.status == 200 && response.text() == n.to_string()),
                Found::Nothing => (3, response.status == 404),
            };
            kinds[kind] += 1;
            if !as_expected {
                wrong.push(format!(
                    "{path}: {expected:?}, but {} {}\n{text}",
                    response.status,
                    if response.status == 200 { response.text() } else { String::new() }
                ));
            }
        }
    }
    assert!(kinds.iter().all(|count| *count > 50), "too little of a kind: {kinds:?}");
    wrong.sort_by_key(String::len);
    assert!(
        wrong.is_empty(),
        "{} wrong, the shortest:\n{}",
        wrong.len(),
        wrong[..wrong.len().min(5)].join("\n")
    );
}
