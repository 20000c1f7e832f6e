//! Which server and which location a request belongs to.

use weir_ir::http::HttpCore;
use weir_ir::http::server_name::ServerName;
use weir_ir::program::{Http, LocationMatch, ScopeKind};
use weir_ir::{LocationId, Regex};

use crate::generation::Generation;
use crate::hash::ConfiguredMap;
use crate::http::Exchange;

/// The names of the servers of one address.
#[derive(Default)]
pub struct ServerNames {
    exact: ConfiguredMap<Box<[u8]>, LocationId>,
    /// `.example.com` for `*.example.com`.
    leading: ConfiguredMap<Box<[u8]>, LocationId>,
    /// `www.example.` for `www.example.*`.
    trailing: ConfiguredMap<Box<[u8]>, LocationId>,
    regexes: Vec<(Regex, LocationId)>,
    /// There is one server and no captures to make: nothing has to be looked up.
    single: bool,
}

impl ServerNames {
    pub(crate) fn new(http: &Http, servers: &[LocationId]) -> Self {
        let mut names = Self::default();
        for server in servers {
            for name in &http.scope(*server).confs.get::<HttpCore>().server_names {
                // The first server to claim a name keeps it.
                match name {
                    ServerName::Exact(n) => {
                        names.exact.entry(n.as_bytes().into()).or_insert(*server);
                    }
                    ServerName::Leading(n) => {
                        names.leading.entry(n.as_bytes().into()).or_insert(*server);
                    }
                    ServerName::Dot(n) => {
                        names.exact.entry(n.as_bytes()[1..].into()).or_insert(*server);
                        names.leading.entry(n.as_bytes().into()).or_insert(*server);
                    }
                    ServerName::Trailing(n) => {
                        names.trailing.entry(n.as_bytes().into()).or_insert(*server);
                    }
                    ServerName::Regex(regex) => names.regexes.push((regex.clone(), *server)),
                }
            }
        }
        names.single = servers.len() == 1 && names.regexes.is_empty();
        names
    }

    /// Finds a server without a regex: exact, then the longest leading, then the longest trailing wildcard.
    pub fn find_plain(&self, host: &[u8]) -> Option<LocationId> {
        if let Some(server) = self.exact.get(host) {
            return Some(*server);
        }
        if !self.leading.is_empty() {
            let dots = memchr::memchr_iter(b'.', host);
            let found = dots.filter(|at| *at > 0).find_map(|at| self.leading.get(&host[at..]));
            if let Some(server) = found {
                return Some(*server);
            }
        }
        if !self.trailing.is_empty() {
            let mut dots = memchr::memrchr_iter(b'.', host).filter(|at| at + 1 < host.len());
            if let Some(server) = dots.find_map(|at| self.trailing.get(&host[..=at])) {
                return Some(*server);
            }
        }
        None
    }

    /// The first server one of whose regular expressions matches.
    pub fn find_regex(&self, host: &[u8]) -> Option<(&Regex, LocationId)> {
        self.regexes.iter().find(|(regex, _)| regex.is_match(host)).map(|(regex, server)| (regex, *server))
    }
}

/// The server that has a host among its names at an address; a regex that decided comes along for its captures.
pub fn find<'g>(
    generation: &'g Generation,
    address: usize,
    host: &[u8],
) -> Option<(LocationId, Option<&'g Regex>)> {
    let names = &generation.addresses[address].names;
    if names.single {
        return None;
    }
    // A request without a host asks for the name "".
    if let Some(server) = names.find_plain(host) {
        return Some((server, None));
    }
    if host.is_empty() {
        return None;
    }
    names.find_regex(host).map(|(regex, server)| (server, Some(regex)))
}

/// The locations of one level.
#[derive(Default)]
pub struct Locations {
    exact: ConfiguredMap<Box<[u8]>, LocationId>,
    /// Sorted by name; each knows the next shorter one that it begins with.
    prefixes: Vec<Prefix>,
    regexes: Vec<(Regex, LocationId)>,
    /// Exact and prefix locations whose names end in a slash, by the name without it; the exact one first.
    slashed: ConfiguredMap<Box<[u8]>, Vec<LocationId>>,
    named: ConfiguredMap<Box<[u8]>, LocationId>,
}

struct Prefix {
    name: Box<[u8]>,
    id: LocationId,
    /// `^~`
    last: bool,
    parent: Option<usize>,
}

/// The outcome of a search among locations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    Location(LocationId),
    /// Only with a slash behind it: the client is sent there.
    Redirect(LocationId),
    None,
}

impl Locations {
    pub(crate) fn new(http: &Http, outer: LocationId) -> Self {
        let mut locations = Self::default();
        // nginx finds nothing but regexes inside a regex.
        let in_regex = matches!(&http.scope(outer).kind, ScopeKind::Location(LocationMatch::Regex(_)));
        for id in &http.scope(outer).children {
            let ScopeKind::Location(pattern) = &http.scope(*id).kind else { continue };
            if in_regex && !matches!(pattern, LocationMatch::Regex(_)) {
                continue;
            }
            if let LocationMatch::Exact(name) | LocationMatch::Prefix(name) | LocationMatch::PrefixFinal(name) =
                pattern
                && let Some(bare) = name.strip_suffix(b"/").filter(|bare| !bare.is_empty())
            {
                let same: &mut Vec<_> = locations.slashed.entry(bare.into()).or_default();
                let at = if matches!(pattern, LocationMatch::Exact(_)) { 0 } else { same.len() };
                same.insert(at, *id);
            }
            match pattern {
                LocationMatch::Exact(name) => {
                    locations.exact.insert(name.as_slice().into(), *id);
                }
                LocationMatch::Prefix(name) | LocationMatch::PrefixFinal(name) => {
                    let last = matches!(pattern, LocationMatch::PrefixFinal(_));
                    locations.prefixes.push(Prefix {
                        name: name.as_slice().into(),
                        id: *id,
                        last,
                        parent: None,
                    });
                }
                LocationMatch::Regex(regex) => locations.regexes.push((regex.clone(), *id)),
                LocationMatch::Named(name) => {
                    locations.named.insert(name.as_slice().into(), *id);
                }
            }
        }
        locations.prefixes.sort_by(|a, b| a.name.cmp(&b.name));
        for at in 0..locations.prefixes.len() {
            let mut candidate = at.checked_sub(1);
            while let Some(before) = candidate {
                if locations.prefixes[at].name.starts_with(&locations.prefixes[before].name) {
                    break;
                }
                candidate = locations.prefixes[before].parent;
            }
            locations.prefixes[at].parent = candidate;
        }
        locations
    }

    pub fn named(&self, name: &[u8]) -> Option<LocationId> {
        self.named.get(name).copied()
    }

    fn longest_prefix(&self, uri: &[u8]) -> Option<&Prefix> {
        let mut at = self.prefixes.partition_point(|p| &*p.name <= uri).checked_sub(1);
        while let Some(index) = at {
            let prefix = &self.prefixes[index];
            if uri.starts_with(&prefix.name) {
                return Some(prefix);
            }
            at = prefix.parent;
        }
        None
    }

    fn with_slash(&self, generation: &Generation, uri: &[u8]) -> Option<LocationId> {
        let same = self.slashed.get(uri)?;
        let redirects = |id: &LocationId| generation.location(*id).handlers.auto_redirect;
        if same.iter().any(redirects) { same.first().copied() } else { None }
    }
}

/// Finds the location of a path below a level: exact, the longest prefix, then regular expressions in order
/// unless the prefix forbids it; nested ones the same way (nginx: `location`).
pub fn location(x: &Exchange, level: LocationId) -> Found {
    let generation = &x.generation;
    let locations = &generation.location(level).children;
    if let Some(id) = locations.exact.get(&x.uri[..]) {
        return Found::Location(*id);
    }
    let prefix = locations.longest_prefix(&x.uri);
    // Before anything inside the prefix is looked at; a prefix of the very same name is the request's own.
    if prefix.is_none_or(|prefix| *prefix.name != x.uri[..])
        && let Some(id) = locations.with_slash(generation, &x.uri)
    {
        return Found::Redirect(id);
    }
    let mut found = Found::None;
    let mut regexes = true;
    if let Some(prefix) = prefix {
        regexes = !prefix.last;
        found = Found::Location(prefix.id);
        match location(x, prefix.id) {
            Found::None => {}
            inner @ (Found::Location(_) | Found::Redirect(_)) => {
                // A nested prefix is only a better prefix: this level's regexes are still to be asked.
                if is_final(generation, inner) {
                    return inner;
                }
                found = inner;
            }
        }
    }
    if regexes {
        for (regex, id) in &locations.regexes {
            if x.matches(regex, &x.uri) {
                return match location(x, *id) {
                    Found::None => Found::Location(*id),
                    inner @ (Found::Location(_) | Found::Redirect(_)) => inner,
                };
            }
        }
    }
    found
}

/// Whether a nested result ends the search: an exact match, a regex, or a redirect.
fn is_final(generation: &Generation, found: Found) -> bool {
    match found {
        Found::Location(id) => match &generation.location(id).kind {
            ScopeKind::Location(LocationMatch::Prefix(_) | LocationMatch::PrefixFinal(_)) => false,
            ScopeKind::Location(
                LocationMatch::Exact(_) | LocationMatch::Regex(_) | LocationMatch::Named(_),
            )
            | ScopeKind::Http
            | ScopeKind::Server
            | ScopeKind::If
            | ScopeKind::LimitExcept => true,
        },
        Found::Redirect(_) => true,
        Found::None => false,
    }
}
