//! `ngx_http_geo_module`: variables whose values depend on the client's address.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use weir_engine::contract::{Evaluate, Get, Install};
use weir_engine::generation::{Build, Plan};
use weir_engine::http::{self, Exchange};
use weir_engine::http1::Known;
use weir_ir::address::Address;
use weir_ir::cidr::{self, Cidr};
use weir_ir::contract::{Conf, Contexts, Directive, Module, Takes};
use weir_ir::{Call, Fault, Merge, Part, Template, VariableId};
use weir_syntax::Diagnostic;

use super::forwarded;

/// Stands for clients without an IPv4 or IPv6 address.
const NONE: u32 = u32::MAX;

pub struct Geo;

type D = Directive<Geo>;

impl Module for Geo {
    const NAME: &'static str = "http_geo";
    type Main = Geos;
    type Scope = ();
    const DIRECTIVES: &'static [Directive<Self>] =
        &[D::main("geo", Contexts::HTTP, Takes::ONE_TWO.with_block(), geo)];
}

/// All blocks of the configuration.
#[derive(Clone, Debug, Default)]
pub struct Geos(Vec<Block>);

impl Conf for Geos {
    fn inherit(&mut self, _: &Self, _: &mut Merge<'_>) -> Result<(), Fault> {
        Ok(())
    }
}

#[derive(Clone, Debug)]
struct Block {
    /// The variable that holds the address; the client's own where there is none.
    source: Option<VariableId>,
    variable: VariableId,
    table: Table,
    proxies: Vec<Cidr>,
    recursive: bool,
    volatile: bool,
}

type Value = Box<[u8]>;

#[derive(Clone, Debug)]
enum Table {
    Networks(Networks),
    Ranges(Ranges),
}

/// Networks of both families.
#[derive(Clone, Debug, Default)]
struct Networks {
    v4: Prefixes<u32>,
    v6: Prefixes<u128>,
    /// Something was entered, so that it is too late for `ranges`.
    started: bool,
}

/// Values by network, the longest mask first.
#[derive(Clone, Debug)]
struct Prefixes<A> {
    by_mask: Vec<(A, HashMap<A, Value>)>,
}

impl<A> Default for Prefixes<A> {
    fn default() -> Self {
        Self { by_mask: vec![] }
    }
}

impl<A> Prefixes<A>
where
    A: Copy + Ord + std::hash::Hash + std::ops::BitAnd<Output = A>,
{
    fn find(&self, address: A) -> Option<&Value> {
        self.by_mask.iter().find_map(|(mask, values)| values.get(&(address & *mask)))
    }

    /// Sets a network's value; gives what its first address had where the network was there already.
    fn insert(&mut self, address: A, mask: A, value: Value) -> Option<Value> {
        // Longer masks are the larger numbers.
        let at = self.by_mask.partition_point(|(m, _)| *m > mask);
        if self.by_mask.get(at).is_none_or(|(m, _)| *m != mask) {
            self.by_mask.insert(at, (mask, HashMap::new()));
        }
        let known = self.by_mask[at].1.contains_key(&address);
        let old = known.then(|| self.find(address).cloned()).flatten();
        self.by_mask[at].1.insert(address, value);
        old
    }

    fn remove(&mut self, address: A, mask: A) -> bool {
        let values = self.by_mask.iter_mut().find(|(m, _)| *m == mask);
        values.is_some_and(|(_, values)| values.remove(&address).is_some())
    }
}

/// IPv4 ranges, cut at multiples of 65536 as nginx does it, which its messages show; sorted within each.
#[derive(Clone, Debug, Default)]
struct Ranges {
    default: Option<Value>,
    blocks: HashMap<u16, Vec<Span>>,
}

/// Addresses `start..=end` of a block.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Span {
    start: u16,
    end: u16,
    value: Value,
}

/// What happened to a range that was added to a block.
enum Added {
    Fresh,
    /// The very same range had this value.
    Replaced(Value),
    /// It lies across the edge of this one.
    Overlaps(u16, u16),
}

fn add_span(spans: &mut Vec<Span>, new: Span) -> Added {
    let Some(at) = spans.iter().rposition(|span| new.end >= span.start) else {
        spans.insert(0, new);
        return Added::Fresh;
    };
    let span = spans[at].clone();
    if new.start > span.end {
        spans.insert(at + 1, new);
        return Added::Fresh;
    }
    if new.start == span.start && new.end == span.end {
        spans[at].value = new.value;
        return Added::Replaced(span.value);
    }
    if new.start < span.start || new.end > span.end {
        return Added::Overlaps(span.start, span.end);
    }
    // The new range is cut out of the one around it.
    let before =
        (new.start > span.start).then(|| Span { end: new.start - 1, value: span.value.clone(), ..span });
    let after = (new.end < span.end).then(|| Span { start: new.end + 1, end: span.end, value: span.value });
    spans.splice(at..=at, before.into_iter().chain([new]).chain(after));
    Added::Fresh
}

impl Ranges {
    fn find(&self, address: u32) -> Option<&Value> {
        let low = address as u16;
        let spans = self.blocks.get(&((address >> 16) as u16));
        let span = spans.and_then(|spans| spans.iter().find(|s| (s.start..=s.end).contains(&low)));
        span.map(|span| &span.value).or(self.default.as_ref())
    }
}

/// The blocks that a range touches, with its first and last address in each.
fn pieces(start: u32, end: u32) -> impl Iterator<Item = (u16, u16, u16)> {
    let (first, last) = ((start >> 16) as u16, (end >> 16) as u16);
    (first..=last).map(move |block| {
        let from = if block == first { start as u16 } else { 0 };
        let to = if block == last { end as u16 } else { u16::MAX };
        (block, from, to)
    })
}

fn geo(conf: &mut Geos, call: &mut Call<'_>) -> Result<(), Fault> {
    let mut source = None;
    if call.args().len() == 2 {
        let name = call.variable_name(0)?;
        source = Some(call.variable(&name));
    }
    let name = call.variable_name(call.args().len() - 1)?;
    let variable = call.declare(&name, true)?;
    let mut block = Block {
        source,
        variable,
        table: Table::Networks(Networks::default()),
        proxies: vec![],
        recursive: false,
        volatile: false,
    };
    call.entries(|entry| block.read(entry))?;
    conf.0.push(block);
    Ok(())
}

impl Block {
    fn read(&mut self, entry: &mut Call<'_>) -> Result<(), Fault> {
        match (entry.args().len(), entry.name(), &mut self.table) {
            (0, b"ranges", Table::Networks(networks)) if networks.started => {
                Err(entry.fail("the \"ranges\" directive must be the first directive inside \"geo\" block"))
            }
            (0, b"ranges", table) => {
                if matches!(table, Table::Networks(_)) {
                    *table = Table::Ranges(Ranges::default());
                }
                Ok(())
            }
            (0, b"proxy_recursive", _) => {
                self.recursive = true;
                Ok(())
            }
            (0, b"volatile", _) => {
                self.volatile = true;
                Ok(())
            }
            (1, b"proxy", _) => {
                self.proxies.push(network(entry.arg(0), entry)?);
                Ok(())
            }
            (1, _, Table::Networks(networks)) => networks.read(entry),
            (1, _, Table::Ranges(ranges)) => ranges.read(entry),
            _ => Err(entry.fail("invalid number of the geo parameters")),
        }
    }
}

fn network(text: &[u8], entry: &mut Call<'_>) -> Result<Cidr, Fault> {
    // nginx takes the highest address for no address, but for that word alone.
    let parsed = Cidr::parse(text).filter(|_| !text.starts_with(b"255.255.255.255/"));
    let Some((network, low)) = parsed else {
        return Err(entry.fail([b"invalid network \"", text, b"\""].concat()));
    };
    if low {
        entry.warn([b"low address bits of ", text, b" are meaningless"].concat());
    }
    Ok(network)
}

fn told_twice(what: &str, key: &[u8], value: &[u8], old: &[u8]) -> Vec<u8> {
    [what.as_bytes(), b" \"", key, b"\", value: \"", value, b"\", old value: \"", old, b"\""].concat()
}

impl Networks {
    fn read(&mut self, entry: &mut Call<'_>) -> Result<(), Fault> {
        self.started = true;
        let (name, value) = (entry.name(), entry.arg(0));
        let deletes = name == b"delete";
        let text = if deletes { value } else { name };
        let networks = if name == b"default" {
            vec![Cidr::V4 { address: 0, mask: 0 }, Cidr::V6 { address: 0, mask: 0 }]
        } else {
            vec![network(text, entry)?]
        };
        for network in networks {
            if deletes {
                let found = match network {
                    Cidr::V4 { address, mask } => self.v4.remove(address, mask),
                    Cidr::V6 { address, mask } => self.v6.remove(address, mask),
                    Cidr::Unix => false,
                };
                if !found {
                    entry.warn([b"no network \"", text, b"\" to delete"].concat());
                }
                continue;
            }
            let old = match network {
                Cidr::V4 { address, mask } => self.v4.insert(address, mask, value.into()),
                Cidr::V6 { address, mask } => self.v6.insert(address, mask, value.into()),
                Cidr::Unix => None,
            };
            if let Some(old) = old {
                entry.warn(told_twice("duplicate network", text, value, &old));
            }
        }
        Ok(())
    }

    fn find(&self, address: Option<IpAddr>) -> Option<&Value> {
        match address.map(cidr::unmapped) {
            Some(IpAddr::V4(ip)) => self.v4.find(ip.into()),
            Some(IpAddr::V6(ip)) => self.v6.find(ip.into()),
            None => self.v4.find(NONE),
        }
    }
}

impl Ranges {
    fn read(&mut self, entry: &mut Call<'_>) -> Result<(), Fault> {
        let (name, value) = (entry.name(), entry.arg(0));
        if name == b"default" {
            if let Some(old) = &self.default {
                entry.warn(
                    [b"duplicate default geo range value: \"", value, b"\", old value: \"", old, b"\""]
                        .concat(),
                );
            }
            self.default = Some(value.into());
            return Ok(());
        }
        let deletes = name == b"delete";
        let text = if deletes { value } else { name };
        let Some((start, end)) = range(text) else {
            return Err(entry.fail([b"invalid range \"", text, b"\""].concat()));
        };
        if deletes {
            self.delete(start, end, text, entry);
            return Ok(());
        }
        for (block, from, to) in pieces(start, end) {
            let spans = self.blocks.entry(block).or_default();
            match add_span(spans, Span { start: from, end: to, value: value.into() }) {
                Added::Fresh => {}
                Added::Replaced(old) => entry.warn(told_twice("duplicate range", text, value, &old)),
                Added::Overlaps(from, to) => {
                    let ip = |low: u16| std::net::Ipv4Addr::from(u32::from(block) << 16 | u32::from(low));
                    let shown = format!("\" overlaps \"{}-{}\"", ip(from), ip(to));
                    return Err(entry.fail([b"range \"", text, shown.as_bytes()].concat()));
                }
            }
        }
        Ok(())
    }

    fn delete(&mut self, start: u32, end: u32, text: &[u8], entry: &mut Call<'_>) {
        let mut missing = false;
        for (block, from, to) in pieces(start, end) {
            let spans = self.blocks.entry(block).or_default();
            match spans.iter().position(|span| span.start == from && span.end == to) {
                Some(at) => {
                    spans.remove(at);
                }
                None => missing = true,
            }
        }
        if missing {
            entry.warn([b"no address range \"", text, b"\" to delete"].concat());
        }
    }
}

/// `first-last`, IPv4. nginx takes 255.255.255.255 for no address.
fn range(text: &[u8]) -> Option<(u32, u32)> {
    let dash = memchr::memchr(b'-', text)?;
    let address = |text| match cidr::ip(text)? {
        IpAddr::V4(ip) => Some(u32::from(ip)).filter(|ip| *ip != NONE),
        IpAddr::V6(_) => None,
    };
    let (start, end) = (address(&text[..dash])?, address(&text[dash + 1..])?);
    (start <= end).then_some((start, end))
}

impl Install for Geo {
    fn prepare(geos: &Geos, build: &mut Build<'_>) -> Result<(), Diagnostic> {
        for block in &geos.0 {
            let source = match (block.source, build.builtin("binary_remote_addr")) {
                (Some(id), _) => Source::Text(build.template(&Template { parts: vec![Part::Variable(id)] })),
                (None, Some(own)) => Source::Binary(own.get),
                (None, None) => return Err(Diagnostic::emerg("unknown \"binary_remote_addr\" variable")),
            };
            let ready = Ready {
                source,
                table: block.table.clone(),
                proxies: block.proxies.clone(),
                recursive: block.recursive,
            };
            build.define(block.variable, Box::new(ready), block.volatile);
        }
        Ok(())
    }

    fn install((): &(), _: &mut Plan<'_, '_>) -> Result<(), Diagnostic> {
        Ok(())
    }
}

struct Ready {
    source: Source,
    table: Table,
    proxies: Vec<Cidr>,
    recursive: bool,
}

enum Source {
    Text(http::Template),
    /// The client's address in network order.
    Binary(Get),
}

impl Ready {
    fn address(&self, x: &Exchange) -> Option<IpAddr> {
        let address = match &self.source {
            // What is no address is not replaced by what a proxy says.
            Source::Text(text) => Some(cidr::ip(&text.value(x))?),
            Source::Binary(get) => {
                let mut bytes = Vec::with_capacity(16);
                get(x, &mut bytes);
                match <[u8; 4]>::try_from(bytes.as_slice()) {
                    Ok(v4) => Some(IpAddr::from(v4)),
                    Err(_) => <[u8; 16]>::try_from(bytes.as_slice()).ok().map(IpAddr::from),
                }
            }
        };
        if self.proxies.is_empty() {
            return address;
        }
        let lists: Vec<&[u8]> = x.head.all(Known::XForwardedFor).collect();
        let peer = match address {
            Some(ip) => Address::Ip(SocketAddr::new(ip, 0)),
            None => Address::Unix("".into()),
        };
        forwarded::client(&peer, &lists, &self.proxies, self.recursive).map(|named| named.ip()).or(address)
    }
}

impl Evaluate for Ready {
    fn evaluate(&self, x: &Exchange, out: &mut Vec<u8>) -> bool {
        let address = self.address(x);
        let value = match &self.table {
            Table::Networks(networks) => networks.find(address),
            Table::Ranges(ranges) => ranges.find(match address.map(cidr::unmapped) {
                Some(IpAddr::V4(ip)) => ip.into(),
                Some(IpAddr::V6(_)) | None => NONE,
            }),
        };
        if let Some(value) = value {
            out.extend_from_slice(value);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{Site, told};

    #[test]
    fn messages() {
        let check = |block: &str, expected: &[&str]| {
            assert_eq!(told(&format!("geo $g {{ {block} }}"), &[]), expected, "{block}");
        };
        check("a;", &["invalid number of the geo parameters"]);
        check("a b c;", &["invalid number of the geo parameters"]);
        check("a b;", &["invalid network \"a\""]);
        check("1.1.1.1/33 b;", &["invalid network \"1.1.1.1/33\""]);
        check("1.1.1.1/24 b;", &["low address bits of 1.1.1.1/24 are meaningless"]);
        check("1.1.1.1 b; 1.1.1.1 c;", &["duplicate network \"1.1.1.1\", value: \"c\", old value: \"b\""]);
        check("default b; default c;", &["duplicate network \"default\", value: \"c\", old value: \"b\""; 2]);
        check("delete 1.1.1.1;", &["no network \"1.1.1.1\" to delete"]);
        check("1.1.1.1 b; delete 1.1.1.1;", &[]);
        check("proxy x;", &["invalid network \"x\""]);
        check(
            "default b; ranges;",
            &["the \"ranges\" directive must be the first directive inside \"geo\" block"],
        );
        check("ranges; 1.1.1.1 b;", &["invalid range \"1.1.1.1\""]);
        check("ranges; 1.1.1.2-1.1.1.1 b;", &["invalid range \"1.1.1.2-1.1.1.1\""]);
        check(
            "ranges; default b; default c;",
            &["duplicate default geo range value: \"c\", old value: \"b\""],
        );
        check(
            "ranges; 1.1.1.1-1.1.1.2 b; 1.1.1.1-1.1.1.2 c;",
            &["duplicate range \"1.1.1.1-1.1.1.2\", value: \"c\", old value: \"b\""],
        );
        check(
            "ranges; 1.1.1.1-1.2.1.2 b; 1.2.1.1-1.2.1.3 c;",
            &["range \"1.2.1.1-1.2.1.3\" overlaps \"1.2.0.0-1.2.1.2\""],
        );
        check("ranges; delete 1.1.1.1-1.1.1.2;", &["no address range \"1.1.1.1-1.1.1.2\" to delete"]);
    }

    #[track_caller]
    fn check(block: &str, address: &str, expected: &str) {
        let conf = format!("geo $arg_a $g {{ {block} }} server {{ return 200 \"[$g]\"; }}");
        assert_eq!(
            Site::new(&conf).short(&format!("/?a={address}")),
            format!("200 [{expected}]"),
            "{address}"
        );
    }

    #[test]
    fn networks() {
        let block = "default d; 10.0.0.0/8 ten; 10.1.0.0/16 one; 10.1.1.1 host; 2001:db8::/32 six; 255.255.255.255 none;";
        for (address, expected) in [
            ("10.2.0.0", "ten"),
            ("10.1.2.3", "one"),
            ("10.1.1.1", "host"),
            ("::ffff:10.1.1.1", "host"),
            ("2001:db8::1", "six"),
            ("::1", "d"),
            ("1.1.1.1", "d"),
            ("x", "none"),
            ("", "none"),
        ] {
            check(block, address, expected);
        }
        check("10.0.0.0/8 ten;", "1.1.1.1", "");
    }

    #[test]
    fn ranges() {
        let block = "ranges; default d; 10.0.0.0-10.2.255.255 a; 10.1.0.5-10.1.0.9 b; 10.1.0.7-10.1.0.9 c;";
        for (address, expected) in [
            ("10.0.0.0", "a"),
            ("10.2.255.255", "a"),
            ("10.3.0.0", "d"),
            ("10.1.0.4", "a"),
            ("10.1.0.5", "b"),
            ("10.1.0.6", "b"),
            ("10.1.0.7", "c"),
            ("10.1.0.9", "c"),
            ("10.1.0.10", "a"),
            ("::1", "d"),
        ] {
            check(block, address, expected);
        }
    }

    #[test]
    fn proxies() {
        let site = Site::new(
            "geo $g { default d; 127.0.0.1 local; 1.1.1.1 client; proxy 127.0.0.0/8; proxy_recursive; } \
             server { return 200 $g; }",
        );
        assert_eq!(site.short("/"), "200 local");
        assert!(site.ask("GET /", "X-Forwarded-For: 1.1.1.1, 127.0.0.2\r\n").ends_with("\n\nclient"));
    }
}
