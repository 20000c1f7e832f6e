//! Compresses responses: what `gzip`, `brotli` and `zstd` have in common, and which of them a client gets.

use std::io;

use weir_engine::contract::{Filter, Install};
use weir_engine::generation::Plan;
use weir_engine::http::{Exchange, Response};
use weir_engine::http1::{Known, Method};
use weir_ir::contract::{Directive, Module, Once, Setting};
use weir_ir::{Call, Fault};
use weir_syntax::Diagnostic;

use super::body::Transform;
use super::types::Types;
use super::{brotli, gzip, gzip_ok, zstd};

/// Has no directives: it chooses among the codings that other modules configure.
pub struct Compress;

impl Module for Compress {
    const NAME: &'static str = "http_compress";
    type Main = ();
    type Scope = ();
    const DIRECTIVES: &'static [Directive<Self>] = &[];
}

impl Install for Compress {
    fn install(_: &(), plan: &mut Plan<'_, '_>) -> Result<(), Diagnostic> {
        // What a client likes equally well goes by this order: the smallest result first, as a rule.
        let codings = [brotli::coding(plan), zstd::coding(plan), gzip::coding(plan)];
        let codings: Vec<_> = codings.into_iter().flatten().collect();
        if !codings.is_empty() {
            plan.handlers.filters.push(Box::new(Compressing { codings }));
        }
        Ok(())
    }
}

/// What a level says of any coding.
#[derive(Clone, Debug, Default)]
pub(super) struct Settings {
    pub(super) enable: Setting<bool>,
    pub(super) types: Types,
    pub(super) min_length: Setting<u64>,
    pub(super) once: Once,
}

impl Settings {
    pub(super) fn inherit(&mut self, outer: &Self) {
        self.enable.inherit(&outer.enable);
        self.types.inherit(&outer.types);
        self.min_length.inherit(&outer.min_length);
    }

    /// The coding, if it is on here.
    pub(super) fn with(&self, coding: impl FnOnce() -> Box<dyn Coding>) -> Option<Configured> {
        self.enable.or(false).then(|| Configured {
            types: self.types.or(&["text/html"]),
            min_length: self.min_length.or(20),
            coding: coding(),
        })
    }
}

/// The power of 2 that a size is, if it is one of these.
pub(super) fn power(
    call: &Call<'_>,
    mut exponents: std::ops::RangeInclusive<u8>,
) -> Result<Option<u8>, Fault> {
    let size = call.size()?;
    Ok(exponents.find(|bits| size == 1 << bits))
}

/// A level of compression within nginx's bounds.
pub(super) fn level(call: &Call<'_>, least: u64, most: u64) -> Result<u8, Fault> {
    let level = call.number()?;
    if (least..=most).contains(&level) {
        return Ok(level as u8);
    }
    Err(call.under(call.fail(format!("value must be between {least} and {most}")), 0))
}

/// A coding of a level, ready.
pub(super) struct Configured {
    types: Types,
    min_length: u64,
    coding: Box<dyn Coding>,
}

pub(super) trait Coding: Send + Sync {
    /// As `Content-Encoding` says it.
    fn name(&self) -> &'static str;

    /// How much the client likes it, in thousandths; 0 is not at all.
    fn weight(&self, x: &mut Exchange, response: &Response) -> u16 {
        let _ = response;
        weight(x, self.name())
    }

    /// Sends a body of that length, if it is known, through an encoder.
    fn encode(&self, length: Option<u64>, x: &mut Exchange, response: &mut Response);
}

struct Compressing {
    /// By preference.
    codings: Vec<Configured>,
}

impl Filter for Compressing {
    fn filter(&self, x: &mut Exchange, response: &mut Response) {
        let length = response.content_length;
        if !matches!(response.status, 200 | 403 | 404)
            || response.headers.first(Known::ContentEncoding).is_some_and(|coding| !coding.is_empty())
        {
            return;
        }
        let mut varies = false;
        let mut best: Option<(&dyn Coding, u16)> = None;
        for Configured { types, min_length, coding } in &self.codings {
            if length.is_some_and(|length| length < *min_length) || !types.has(response) {
                continue;
            }
            varies = true;
            let weight = coding.weight(x, response);
            if weight > best.map_or(0, |(_, weight)| weight) {
                best = Some((&**coding, weight));
            }
        }
        if varies {
            gzip_ok::varies(x);
        }
        let Some((coding, _)) = best else { return };
        response.headers.push(b"Content-Encoding", coding.name().as_bytes());
        response.body_changes();
        // A body that is not sent is not compressed either.
        if x.method != Method::Head {
            coding.encode(length, x, response);
        }
    }
}

/// How much the client likes a coding, in thousandths; 0 is not at all.
pub(super) fn weight(x: &Exchange, coding: &str) -> u16 {
    // What becomes a part of another answer is compressed with that.
    if x.is_subrequest() {
        return 0;
    }
    x.header(Known::AcceptEncoding).map_or(0, |value| weight_in(value, coding))
}

/// The weight of a coding in an `Accept-Encoding`, in thousandths; 0 where it is not named or cannot be read.
fn weight_in(value: &[u8], coding: &str) -> u16 {
    let named = value.split(|byte| *byte == b',').find_map(|item| {
        let (name, weight) = match memchr::memchr(b';', item) {
            Some(at) => (&item[..at], Some(item[at + 1..].trim_ascii())),
            None => (item, None),
        };
        name.trim_ascii().eq_ignore_ascii_case(coding.as_bytes()).then_some(weight)
    });
    match named {
        None => 0,
        Some(None | Some(b"")) => 1000,
        Some(Some([b'q' | b'Q', b'=', weight @ ..])) => weight_of(weight).unwrap_or(0),
        Some(Some(_)) => 0,
    }
}

/// A weight of 0 to 1 with at most three decimals.
fn weight_of(weight: &[u8]) -> Option<u16> {
    let (whole, decimals) = match weight {
        [whole, b'.', decimals @ ..] if decimals.len() <= 3 => (whole, decimals),
        [whole] => (whole, &b""[..]),
        _ => return None,
    };
    let digits = [&[*whole], decimals, &b"000"[decimals.len()..]].concat();
    let weight: u16 = std::str::from_utf8(&digits).ok()?.parse().ok()?;
    (weight <= 1000).then_some(weight)
}

/// What turns bytes into fewer. Each call appends up to the capacity of `out`.
pub(super) trait Encoder: 'static {
    /// Gives how many bytes were taken.
    fn push(&mut self, input: &[u8], out: &mut Vec<u8>) -> io::Result<usize>;
    /// Whether all that was taken came out.
    fn flush(&mut self, out: &mut Vec<u8>) -> io::Result<bool>;
    /// Whether the end came out.
    fn end(&mut self, out: &mut Vec<u8>) -> io::Result<bool>;
}

/// A body on its way through an encoder.
pub(super) struct Encoding<E> {
    encoder: E,
    ratio: Ratio,
    /// Bytes were taken that nothing came out of yet.
    dirty: bool,
    /// The body was compressed to its end.
    over: bool,
}

impl<E: Encoder> Encoding<E> {
    pub(super) fn new(coding: &'static str, encoder: E) -> Self {
        Self { encoder, ratio: Ratio { coding, from: 0, to: 0 }, dirty: false, over: false }
    }

    fn run<T>(
        &mut self,
        out: &mut Vec<u8>,
        step: impl FnOnce(&mut E, &mut Vec<u8>) -> io::Result<T>,
    ) -> io::Result<T> {
        let before = out.len();
        let result = step(&mut self.encoder, out)?;
        self.ratio.to += (out.len() - before) as u64;
        Ok(result)
    }
}

impl<E: Encoder> Transform for Encoding<E> {
    fn push(&mut self, input: &[u8], out: &mut Vec<u8>) -> io::Result<usize> {
        self.dirty = true;
        let taken = self.run(out, |encoder, out| encoder.push(input, out))?;
        self.ratio.from += taken as u64;
        Ok(taken)
    }

    fn flush(&mut self, out: &mut Vec<u8>) -> io::Result<()> {
        if self.dirty {
            self.dirty = !self.run(out, E::flush)?;
        }
        Ok(())
    }

    fn end(&mut self, out: &mut Vec<u8>) -> io::Result<bool> {
        self.over = self.run(out, E::end)?;
        Ok(self.over)
    }

    fn finish(&mut self, x: &mut Exchange) {
        if self.over {
            *x.extension_mut() = self.ratio;
        }
    }
}

/// Bytes before and after.
#[derive(Clone, Copy, Default)]
struct Ratio {
    coding: &'static str,
    from: u64,
    to: u64,
}

/// How the body was compressed, in thousandths, where it had that coding.
pub(super) fn thousandths(x: &Exchange, coding: &str) -> Option<u128> {
    let ratio = x.extension::<Ratio>().filter(|ratio| ratio.coding == coding && ratio.to > 0)?;
    Some(u128::from(ratio.from) * 1000 / u128::from(ratio.to))
}

/// The same as text, to two decimals, rounded by the third.
pub(super) fn ratio(x: &Exchange, coding: &str, out: &mut Vec<u8>) -> bool {
    let Some(thousandths) = thousandths(x, coding) else { return false };
    let hundredths = (thousandths + 5) / 10;
    out.extend_from_slice(format!("{}.{:02}", hundredths / 100, hundredths % 100).as_bytes());
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Site, header};

    #[test]
    fn weights() {
        for (value, expected) in [
            ("br", 1000),
            ("BR", 1000),
            ("gzip, br", 1000),
            ("gzip,br;q=0.5,x", 500),
            (" br ; Q=0.12", 120),
            ("br;q=1.000", 1000),
            ("br;", 1000),
            ("br;q=0", 0),
            ("br;q=0.000", 0),
            ("br;q=1.001", 0),
            ("br;q=0.0001", 0),
            ("br;q=", 0),
            ("br;q=+1", 0),
            ("br;q=a", 0),
            ("br;x=1", 0),
            ("xbr, brx", 0),
            ("*", 0),
            ("", 0),
        ] {
            assert_eq!(weight_in(value.as_bytes(), "br"), expected, "{value}");
        }
    }

    #[test]
    fn the_coding_that_the_client_likes_best() {
        let site = Site::new(
            "gzip on; brotli on; zstd on; gzip_vary on; gzip_min_length 0; brotli_min_length 0; zstd_min_length 0;
             log_format r '$gzip_ratio $brotli_ratio $zstd_ratio'; access_log logs/r r;
             server {
                location / { answer 200 text/html '0123456789012345678901234567890123456789'; }
                location /types { brotli_types a/b; zstd_min_length 1k; answer 200 a/b '01234567890123456789'; }
                location /off { brotli off; zstd off; answer 200 text/html 01234567890123456789; }
             }",
        );
        for (path, accepts, coding, varies) in [
            ("/", "gzip, deflate, br, zstd", "br", true),
            ("/", "gzip, zstd", "zstd", true),
            ("/", "gzip", "gzip", true),
            ("/", "gzip;q=1.0, br;q=0.9, zstd;q=0.8", "gzip", true),
            ("/", "gzip;q=0.5, br;q=0.5, zstd;q=0.6", "zstd", true),
            ("/", "gzip;q=0, br;q=0", "", true),
            ("/types", "gzip, zstd", "", true),
            ("/types", "gzip, zstd, br", "br", true),
            ("/off", "gzip, br, zstd", "gzip", true),
            ("/off", "br, zstd", "", true),
        ] {
            let answer = site.get(path, &format!("Accept-Encoding: {accepts}\r\n"));
            assert_eq!(header(&answer, "Content-Encoding").unwrap_or(""), coding, "{path} {accepts}");
            assert_eq!(header(&answer, "Vary").is_some(), varies, "{path} {accepts}");
            assert_eq!(header(&answer, "Content-Length").is_none(), !coding.is_empty(), "{path} {accepts}");
        }
        let log = site.read("logs/r");
        let which = |line: &str| line.split(' ').position(|ratio| ratio != "-");
        let lines: Vec<_> = log.lines().map(which).collect();
        let (gzip, brotli, zstd) = (Some(0), Some(1), Some(2));
        assert_eq!(lines, [brotli, zstd, gzip, gzip, zstd, None, None, brotli, gzip, None], "{log}");
    }

    #[test]
    fn parts_are_not_compressed() {
        let folder = weir_testkit::Folder::new(&[("part.html", b"part"), ("part.html.br", b"packed")]);
        let site = Site::new(&format!(
            "brotli on; zstd on; gzip on; brotli_min_length 0; brotli_static on; server {{ root {};
                location / {{ brotli off; zstd off; gzip off; add_after_body /part.html; answer 200 text/html whole+; }}
                location /part {{ }} }}",
            folder.path().display()
        ));
        let answer = site.get("/", "Accept-Encoding: gzip, br, zstd\r\n");
        assert!(
            answer.contains("whole+") && answer.contains("part") && !answer.contains("packed"),
            "{answer}"
        );
    }
}
