//! `ngx_http_charset_filter_module`: tells the charset of texts, and recodes them from one to another.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use weir_engine::contract::{Filter, Install};
use weir_engine::generation::{Build, Plan};
use weir_engine::http::template::Reference;
use weir_engine::http::{Exchange, Response};
use weir_engine::http1::{Known, Method};
use weir_ir::contract::{Conf, Contexts, Directive, Module, Setting, Takes};
use weir_ir::{Call, Fault, Merge, VariableId};
use weir_syntax::{Diagnostic, Level};

use super::body::{self, Transform};
use super::types::Types;

pub struct Charset;

type D = Directive<Charset>;

const SCOPES: Contexts = Contexts::SCOPES;
const SCOPES_IF: Contexts = SCOPES.or(Contexts::LOCATION_IF);
const TYPES: [&str; 6] = [
    "text/html",
    "text/xml",
    "text/plain",
    "text/vnd.wap.wml",
    "application/javascript",
    "application/rss+xml",
];

impl Module for Charset {
    const NAME: &'static str = "http_charset_filter";
    type Main = Charsets;
    type Scope = Settings;
    const DIRECTIVES: &'static [Directive<Self>] = &[
        D::scope("charset", SCOPES_IF, Takes::ONE, |s, c| {
            s.charset.put_with(c, |c| if c.arg(0) == b"off" { Ok(Choice::Off) } else { choice(c) })
        }),
        D::scope("source_charset", SCOPES_IF, Takes::ONE, |s, c| s.source.put_with(c, choice)),
        D::scope("override_charset", SCOPES_IF, Takes::FLAG, |s, c| s.overrides.flag(c)),
        D::scope("charset_types", SCOPES, Takes::ONE_MORE, |s, c| s.types.add(c)),
        D::main("charset_map", Contexts::HTTP, Takes::TWO.with_block(), Charsets::map),
    ];
}

/// Which charset: by the index of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Choice {
    Off,
    Named(usize),
    Variable(VariableId),
}

fn choice(call: &mut Call<'_>) -> Result<Choice, Fault> {
    if call.arg(0).starts_with(b"$") {
        let name = call.variable_name(0)?;
        return Ok(Choice::Variable(call.variable(&name)));
    }
    let name = call.arg(0);
    Ok(Choice::Named(call.main_of::<Charset>().add(name)))
}

/// All charsets that the configuration names, and the maps between them.
#[derive(Clone, Debug, Default)]
pub struct Charsets {
    names: Vec<Box<[u8]>>,
    maps: Vec<Map>,
}

impl Conf for Charsets {
    fn inherit(&mut self, _: &Self, _: &mut Merge<'_>) -> Result<(), Fault> {
        Ok(())
    }
}

/// A `charset_map`, there and back.
#[derive(Clone, Debug)]
struct Map {
    src: usize,
    dst: usize,
    there: Arc<Table>,
    back: Arc<Table>,
}

/// How bytes become others.
#[derive(Debug)]
enum Table {
    Bytes(Box<[u8; 256]>),
    ToUtf8(Vec<Vec<u8>>),
    FromUtf8(HashMap<u32, u8>),
}

impl Charsets {
    fn index(&self, name: &[u8]) -> Option<usize> {
        self.names.iter().position(|known| known.eq_ignore_ascii_case(name))
    }

    fn add(&mut self, name: &[u8]) -> usize {
        self.index(name).unwrap_or_else(|| {
            self.names.push(name.into());
            self.names.len() - 1
        })
    }

    fn table(&self, src: usize, dst: usize) -> Option<&Arc<Table>> {
        self.maps.iter().find_map(|map| match (map.src, map.dst) {
            there if there == (src, dst) => Some(&map.there),
            back if back == (dst, src) => Some(&map.back),
            _ => None,
        })
    }

    fn map(&mut self, call: &mut Call<'_>) -> Result<(), Fault> {
        let (from, to) = (call.arg(0), call.arg(1));
        let (src, dst) = (self.add(from), self.add(to));
        let both = |start: &str, between: &[u8]| {
            call.fail([start.as_bytes(), b" \"", from, b"\"", between, b"\"", to, b"\""].concat())
        };
        if src == dst {
            return Err(both("\"charset_map\" between the same charsets", b" and "));
        }
        if from.eq_ignore_ascii_case(b"utf-8") {
            return Err(
                call.fail("\"charset_map\" with \"utf-8\" charset should be given in the second column")
            );
        }
        if self.table(src, dst).is_some() {
            return Err(both("duplicate \"charset_map\" between", b" and "));
        }
        let (there, back) = if to.eq_ignore_ascii_case(b"utf-8") { utf8_map(call)? } else { byte_map(call)? };
        self.maps.push(Map { src, dst, there: Arc::new(there), back: Arc::new(back) });
        Ok(())
    }
}

/// A number of hexadecimal digits that is a byte.
fn byte(text: &[u8]) -> Option<u8> {
    let text = std::str::from_utf8(text).ok().filter(|text| !text.starts_with('+'))?;
    u8::try_from(u64::from_str_radix(text, 16).ok()?).ok()
}

/// The first column of a line of a map.
fn first(entry: &Call<'_>) -> Result<u8, Fault> {
    if entry.args().len() != 1 {
        return Err(entry.fail("invalid parameters number"));
    }
    let name = entry.name();
    byte(name).ok_or_else(|| entry.fail([b"invalid value \"", name, b"\""].concat()))
}

fn byte_map(call: &mut Call<'_>) -> Result<(Table, Table), Fault> {
    let ascii = std::array::from_fn(|byte| if byte < 128 { byte as u8 } else { b'?' });
    let (mut there, mut back) = (ascii, ascii);
    call.entries(|entry| {
        let src = first(entry)?;
        let dst = byte(entry.arg(0)).ok_or_else(|| entry.fail_at(0, "invalid value"))?;
        there[usize::from(src)] = dst;
        back[usize::from(dst)] = src;
        Ok(())
    })?;
    Ok((Table::Bytes(there.into()), Table::Bytes(back.into())))
}

fn utf8_map(call: &mut Call<'_>) -> Result<(Table, Table), Fault> {
    let mut there: Vec<_> = (0..=255).map(|byte: u8| vec![if byte < 128 { byte } else { b'?' }]).collect();
    let mut back = HashMap::new();
    call.entries(|entry| {
        let src = first(entry)?;
        let pairs: Option<Vec<u8>> =
            entry.arg(0).chunks(2).map(|pair| byte(pair).filter(|_| pair.len() == 2)).collect();
        let decoded =
            pairs.filter(|bytes| (1..=3).contains(&bytes.len())).and_then(|bytes| match decode(&bytes) {
                Decoded::Character(character @ ..=0xffff, _) => Some((bytes, character)),
                _ => None,
            });
        let (bytes, character) = decoded.ok_or_else(|| entry.fail_at(0, "invalid value"))?;
        there[usize::from(src)] = bytes;
        back.insert(character, src);
        Ok(())
    })?;
    Ok((Table::ToUtf8(there), Table::FromUtf8(back)))
}

/// What bytes begin with that are not ASCII; the number is that of the bytes it takes.
enum Decoded {
    Character(u32, usize),
    Invalid(usize),
    Incomplete,
}

/// As nginx reads UTF-8: a sequence that breaks off takes the byte that breaks it along.
fn decode(bytes: &[u8]) -> Decoded {
    let (start, least, follow) = match bytes[0] {
        lead @ 0xf0..=0xf7 => (lead & 7, 0x1_0000, 3),
        lead @ 0xe0..=0xef => (lead & 15, 0x800, 2),
        lead @ 0xc2..=0xdf => (lead & 31, 0x80, 1),
        _ => return Decoded::Invalid(1),
    };
    let Some(rest) = bytes.get(1..=follow) else { return Decoded::Incomplete };
    if let Some(at) = rest.iter().position(u8::is_ascii) {
        return Decoded::Invalid(at + 2);
    }
    let character = rest.iter().fold(u32::from(start), |all, byte| all << 6 | u32::from(byte & 0x3f));
    match character {
        ..=0x10_ffff if character >= least => Decoded::Character(character, follow + 1),
        _ => Decoded::Invalid(follow + 1),
    }
}

/// What a level says of charsets.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    charset: Setting<Choice>,
    source: Setting<Choice>,
    overrides: Setting<bool>,
    types: Types,
}

impl Conf for Settings {
    // What is set at two levels has to fit together.
    const EVERY_LEVEL: bool = true;

    fn inherit(&mut self, outer: &Self, merge: &mut Merge<'_>) -> Result<(), Fault> {
        self.types.inherit(&outer.types);
        self.overrides.inherit(&outer.overrides);
        self.charset.inherit(&outer.charset);
        self.source.inherit(&outer.source);
        let (Some(Choice::Named(dst)), Some(Choice::Named(src))) = (self.charset.get(), self.source.get())
        else {
            return Ok(());
        };
        let charsets = merge.main_of::<Charset>();
        if src == dst || charsets.table(*src, *dst).is_some() {
            return Ok(());
        }
        let message = no_map(&charsets.names[*src], &charsets.names[*dst]);
        Err(merge.fail_nowhere(message))
    }
}

/// Whether clients are told that content of a type is UTF-8 at the level being compiled, whatever its maker says.
pub(super) fn tells_utf8(media_type: &str, plan: &Plan<'_, '_>) -> bool {
    let settings = plan.scope().confs.get::<Charset>();
    let Some(Choice::Named(index)) = settings.charset.get() else { return false };
    let charsets = plan.build.kept::<Charsets>("").unwrap_or_default();
    charsets.names[*index].eq_ignore_ascii_case(b"utf-8")
        && settings.types.or(&TYPES).names(media_type.as_bytes())
}

fn no_map(src: &[u8], dst: &[u8]) -> Vec<u8> {
    [b"no \"charset_map\" between the charsets \"", src, b"\" and \"", dst, b"\""].concat()
}

impl Install for Charset {
    fn prepare(charsets: &Charsets, build: &mut Build<'_>) -> Result<(), Diagnostic> {
        // Upstreams may name any charset that is known here, whatever a level says.
        if !charsets.names.is_empty() {
            build.keep("", Arc::new(charsets.clone()));
        }
        Ok(())
    }

    fn install(settings: &Settings, plan: &mut Plan<'_, '_>) -> Result<(), Diagnostic> {
        let charsets = plan.build.kept::<Charsets>("");
        let charset = settings.charset.or(Choice::Off);
        if charsets.is_none() && charset == Choice::Off {
            return Ok(());
        }
        let charsets = charsets.unwrap_or_default();
        let ready = |choice: Choice| match choice {
            Choice::Off => Ready::Off,
            Choice::Named(index) => Ready::Named(charsets.names[index].clone()),
            Choice::Variable(id) => Ready::Variable(plan.build.reference(id)),
        };
        plan.handlers.filters.push(Box::new(Telling {
            charset: ready(charset),
            source: ready(settings.source.or(Choice::Off)),
            overrides: settings.overrides.or(false),
            types: settings.types.or(&TYPES),
            charsets,
        }));
        Ok(())
    }
}

/// A choice, ready.
enum Ready {
    Off,
    Named(Box<[u8]>),
    Variable(Reference),
}

impl Ready {
    fn name(&self, x: &Exchange) -> Option<Cow<'_, [u8]>> {
        match self {
            Ready::Off => None,
            Ready::Named(name) => Some(Cow::Borrowed(name)),
            Ready::Variable(variable) => {
                let mut name = vec![];
                (variable.append(x, &mut name) && !name.is_empty()).then_some(Cow::Owned(name))
            }
        }
    }
}

struct Telling {
    charset: Ready,
    source: Ready,
    overrides: bool,
    types: Types,
    charsets: Arc<Charsets>,
}

impl Filter for Telling {
    fn filter(&self, x: &mut Exchange, response: &mut Response) {
        let (_, in_type) = response.media_type();
        let given = response.charset.as_deref().or(in_type).filter(|name| !name.is_empty());
        let Some(dst) = self.destination(x, response, given.is_some()) else { return };
        let Some(src) = given.map(Cow::Borrowed).or_else(|| self.source.name(x)) else {
            tell(x, response, &dst);
            return;
        };
        let indices = (self.charsets.index(&src), self.charsets.index(&dst));
        let table = match indices {
            (Some(src), Some(dst)) if src == dst => None,
            (Some(src), Some(dst)) => {
                if response.headers.first(Known::ContentEncoding).is_some_and(|coding| !coding.is_empty()) {
                    return;
                }
                let table = self.charsets.table(src, dst).map(Arc::clone);
                if table.is_none() {
                    log_no_map(x, &self.charsets.names[src], &self.charsets.names[dst]);
                    return;
                }
                table
            }
            (None, None) if src.get(..dst.len()).is_some_and(|start| start.eq_ignore_ascii_case(&dst)) => {
                // A charset that no one knows stays where the upstream named it.
                if in_type.is_none() {
                    tell(x, response, &dst);
                }
                return;
            }
            _ => {
                log_no_map(x, &src, &dst);
                return;
            }
        };
        if in_type.is_some() {
            let media = response.media_type().0.to_vec();
            response.set_content_type(&media);
            response.upstream_type = false;
        }
        tell(x, response, &dst);
        if let Some(table) = table {
            recode(table, x, response);
        }
    }
}

impl Telling {
    /// The charset that the client shall have, be it what the answer is a part of.
    fn destination<'d>(&'d self, x: &'d Exchange, response: &Response, given: bool) -> Option<Cow<'d, [u8]>> {
        if x.is_subrequest() {
            return x.main_charset().map(Cow::Borrowed);
        }
        if response.content_type.as_ref().is_none_or(|name| name.is_empty()) {
            return None;
        }
        if let Some(name) = response.override_charset.as_deref().filter(|name| !name.is_empty()) {
            if self.charsets.index(name).is_none() {
                let name = String::from_utf8_lossy(name);
                x.log(Level::Error, format_args!("unknown charset \"{name}\" to override"));
                return None;
            }
            return Some(Cow::Owned(name.to_vec()));
        }
        let wanted = if given { self.overrides } else { self.types.has(response) };
        wanted.then(|| self.charset.name(x)).flatten()
    }
}

fn log_no_map(x: &Exchange, src: &[u8], dst: &[u8]) {
    x.log(Level::Error, String::from_utf8_lossy(&no_map(src, dst)));
}

fn tell(x: &Exchange, response: &mut Response, charset: &[u8]) {
    if x.is_subrequest() {
        return;
    }
    // Old browsers took the charset of a redirect for that of the page behind it.
    let told = !matches!(response.status, 301 | 302);
    response.charset = told.then(|| Cow::Owned(charset.to_vec()));
}

fn recode(table: Arc<Table>, x: &mut Exchange, response: &mut Response) {
    match &*table {
        Table::Bytes(_) => {}
        Table::ToUtf8(_) | Table::FromUtf8(_) => response.content_length = None,
    }
    if x.method != Method::Head {
        body::transform(Recode { table, cut: vec![] }, x, response);
    }
}

/// Bytes that are recoded at once.
const PIECE: usize = 16 * 1024;

struct Recode {
    table: Arc<Table>,
    /// A character of which bytes are still to come.
    cut: Vec<u8>,
}

impl Transform for Recode {
    fn push(&mut self, input: &[u8], out: &mut Vec<u8>) -> io::Result<usize> {
        let input = &input[..input.len().min(PIECE)];
        match &*self.table {
            Table::Bytes(table) => out.extend(input.iter().map(|byte| table[usize::from(*byte)])),
            Table::ToUtf8(table) => input.iter().for_each(|byte| out.extend(&table[usize::from(*byte)])),
            Table::FromUtf8(table) => {
                self.cut.extend_from_slice(input);
                let taken = from_utf8(table, &self.cut, out);
                self.cut.drain(..taken);
            }
        }
        Ok(input.len())
    }

    fn flush(&mut self, _: &mut Vec<u8>) -> io::Result<()> {
        Ok(())
    }

    fn end(&mut self, _: &mut Vec<u8>) -> io::Result<bool> {
        Ok(true)
    }
}

/// Recodes all but a character that is cut off at the end, and tells how many bytes that was.
fn from_utf8(table: &HashMap<u32, u8>, bytes: &[u8], out: &mut Vec<u8>) -> usize {
    let mut at = 0;
    while at < bytes.len() {
        let ascii = bytes[at..].iter().position(|byte| !byte.is_ascii()).unwrap_or(bytes.len() - at);
        out.extend_from_slice(&bytes[at..at + ascii]);
        at += ascii;
        if at == bytes.len() {
            break;
        }
        match decode(&bytes[at..]) {
            Decoded::Character(character, length) => {
                match table.get(&character) {
                    Some(byte) => out.push(*byte),
                    None => out.extend_from_slice(format!("&#{character};").as_bytes()),
                }
                at += length;
            }
            Decoded::Invalid(length) => {
                out.push(b'?');
                at += length;
            }
            Decoded::Incomplete => break,
        }
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::body::tests::pulled;
    use crate::testing::{Site, check_conf, header};

    #[test]
    fn messages() {
        check_conf(
            "charset_map koi8-r utf-8 { E1 D0B0; } charset utf-8; source_charset KOI8-R; override_charset on;
             charset_types *; server { charset $host; location / { charset off; } }",
            "",
        );
        for (conf, message) in [
            ("charset a; charset b;", "\"charset\" directive is duplicate"),
            (
                "charset a; source_charset b; server { }",
                "no \"charset_map\" between the charsets \"b\" and \"a\"",
            ),
            ("charset_map a A { }", "\"charset_map\" between the same charsets \"a\" and \"A\""),
            (
                "charset_map utf-8 a { }",
                "\"charset_map\" with \"utf-8\" charset should be given in the second column",
            ),
            ("charset_map a b { } charset_map b a { }", "duplicate \"charset_map\" between \"b\" and \"a\""),
            ("charset_map a b { 1; }", "invalid parameters number"),
            ("charset_map a b { 100 1; }", "invalid value \"100\""),
            ("charset_map a b { 1 x; }", "invalid value \"x\""),
            ("charset_map a utf-8 { 80 41; }", "invalid value \"41\""),
            ("charset_map a utf-8 { 80 D0B; }", "invalid value \"D0B\""),
            ("charset_map a utf-8 { 80 F0908080; }", "invalid value \"F0908080\""),
        ] {
            check_conf(conf, message);
        }
    }

    const MAPS: &str = "charset_map B A { 58 59; } charset_map win utf-8 { C0 D090; C1 E282AC; }";

    #[test]
    fn recoding() {
        let site = Site::new(&format!(
            "{MAPS} server {{
                location /a {{ charset A; source_charset B; answer 200 text/html 'aXYb'; }}
                location /b {{ charset B; source_charset A; answer 200 text/html 'aXYb'; }}
                location /w {{ charset win; source_charset utf-8; answer 200 text/html 'aА€é𐀀\u{80}b'; }}
             }}",
        ));
        let body = |uri| site.get(uri, "").split_once("\r\n\r\n").unwrap().1.replace("\r\n", "|");
        assert_eq!(body("/a"), "aYYb");
        assert_eq!(body("/b"), "aXXb");
        // The bytes of that charset are no text here.
        assert_eq!(body("/w"), "18|a\u{fffd}\u{fffd}&#233;&#65536;&#128;b|0||");
    }

    #[test]
    fn pieces_of_utf8() {
        let table = Arc::new(Table::FromUtf8([(0x410, 0xc0), (0x20ac, 0xc1)].into()));
        for (text, expected) in [
            ("aА€b\u{10000}".as_bytes(), &b"a\xc0\xc1b&#65536;"[..]),
            (b"a\xd0A\xff\xc0\x80", b"a????"),
            (b"a\xe2\x82", b"a"),
        ] {
            for size in [1, 100] {
                let recode = Recode { table: Arc::clone(&table), cut: vec![] };
                assert_eq!(pulled(text, size, recode), expected, "{text:?}");
            }
        }
    }

    #[test]
    fn telling() {
        let site = Site::new(&format!(
            "{MAPS} charset UTF-8; map $arg_c $c {{ default $arg_c; }} server {{
                location /html {{ answer 200 text/html x; }}
                location /gif {{ answer 200 image/gif x; }}
                location /off {{ charset off; answer 200 text/html x; }}
                location /var {{ charset $c; answer 200 text/html x; }}
                location /js {{ charset_types image/gif; answer 200 application/javascript x; }}
                location /301 {{ answer 301 text/html x; }}
             }}",
        ));
        for (uri, expected) in [
            ("/html", "text/html; charset=utf-8"),
            ("/gif", "image/gif"),
            ("/off", "text/html"),
            ("/var?c=koi", "text/html; charset=koi"),
            ("/js", "application/javascript"),
            ("/301", "text/html"),
        ] {
            let got = site.get(uri, "");
            assert_eq!(header(&got, "Content-Type").map(str::to_owned), Some(expected.to_owned()), "{uri}");
        }
    }
}
