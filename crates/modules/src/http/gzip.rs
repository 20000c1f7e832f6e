//! `ngx_http_gzip_filter_module`: compresses responses.

use std::io;

use flate2::{Compression, FlushCompress, Status};
use weir_engine::contract::{Install, Variable};
use weir_engine::generation::Plan;
use weir_engine::http::{Exchange, Response};
use weir_ir::contract::{Conf, Contexts, Directive, Module, Setting, Takes};
use weir_ir::{Call, Fault, Merge};
use weir_syntax::Diagnostic;

use super::body;
use super::compress::{self, Coding, Configured, Encoder, Encoding, power};
use super::gzip_ok::Acceptance;

pub struct Gzip;

type D = Directive<Gzip>;

const SCOPES: Contexts = Contexts::SCOPES;

impl Module for Gzip {
    const NAME: &'static str = "http_gzip_filter";
    type Main = ();
    type Scope = Settings;
    const DIRECTIVES: &'static [Directive<Self>] = &[
        D::scope("gzip", SCOPES.or(Contexts::LOCATION_IF), Takes::FLAG, |s, c| s.common.enable.flag(c)),
        D::scope("gzip_buffers", SCOPES, Takes::TWO, |s, c| s.common.once.buffers(c))
            .accepted("a response is compressed through one small buffer"),
        D::scope("gzip_types", SCOPES, Takes::ONE_MORE, |s, c| s.common.types.add(c)),
        D::scope("gzip_comp_level", SCOPES, Takes::ONE, |s, c| {
            s.level.put_with(c, |c| compress::level(c, 1, 9))
        }),
        D::scope("gzip_window", SCOPES, Takes::ONE, |s, c| s.window.put_with(c, window)),
        D::scope("gzip_hash", SCOPES, Takes::ONE, |s, c| s.common.once.read(c, hash))
            .accepted("the compressor sizes its tables itself"),
        D::scope("postpone_gzipping", SCOPES, Takes::ONE, |s, c| s.common.once.size(c))
            .accepted("what is complete in memory is compressed in one go"),
        D::scope("gzip_no_buffer", SCOPES, Takes::FLAG, |s, c| s.common.once.flag(c))
            .accepted("nothing is held back while more is waited for"),
        D::scope("gzip_min_length", SCOPES, Takes::ONE, |s, c| s.common.min_length.size(c)),
    ];
}

/// What a level says of compression.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    common: compress::Settings,
    level: Setting<u8>,
    /// As a power of 2.
    window: Setting<u8>,
}

impl Conf for Settings {
    fn inherit(&mut self, outer: &Self, _: &mut Merge<'_>) -> Result<(), Fault> {
        self.common.inherit(&outer.common);
        self.level.inherit(&outer.level);
        self.window.inherit(&outer.window);
        Ok(())
    }
}

fn window(call: &mut Call<'_>) -> Result<u8, Fault> {
    let refused = call.refuse("must be 512, 1k, 2k, 4k, 8k, 16k, or 32k");
    power(call, 9..=15)?.ok_or_else(|| call.under(refused, 0))
}

fn hash(call: &mut Call<'_>) -> Result<u8, Fault> {
    let refused = call.refuse("must be 512, 1k, 2k, 4k, 8k, 16k, 32k, 64k, or 128k");
    power(call, 9..=17)?.ok_or_else(|| call.under(refused, 0))
}

impl Install for Gzip {
    const VARIABLES: &'static [Variable] =
        &[Variable::new("gzip_ratio", |x, out| compress::ratio(x, NAME, out))];

    fn install(_: &Settings, _: &mut Plan<'_, '_>) -> Result<(), Diagnostic> {
        Ok(())
    }
}

const NAME: &str = "gzip";

/// What the level being compiled says of it.
pub(super) fn coding(plan: &Plan<'_, '_>) -> Option<Configured> {
    let settings = plan.scope().confs.get::<Gzip>();
    settings.common.with(|| {
        Box::new(Deflating {
            level: settings.level.or(1),
            window: settings.window.or(15),
            acceptance: Acceptance::of(plan),
        })
    })
}

struct Deflating {
    level: u8,
    window: u8,
    acceptance: Acceptance,
}

impl Coding for Deflating {
    fn name(&self) -> &'static str {
        NAME
    }

    fn weight(&self, x: &mut Exchange, response: &Response) -> u16 {
        if !self.acceptance.holds(x, response) {
            return 0;
        }
        // nginx reads more out of the field than its grammar has.
        compress::weight(x, NAME).max(1)
    }

    fn encode(&self, length: Option<u64>, x: &mut Exchange, response: &mut Response) {
        let encoder = Deflate::new(self.level, window_for(length, self.window));
        body::transform(Encoding::new(NAME, encoder), x, response);
    }
}

/// The window for a body of that length: a small one needs less memory.
fn window_for(length: Option<u64>, most: u8) -> u8 {
    let Some(length) = length.filter(|length| *length > 0) else { return most };
    // zlib looks back 262 bytes less than its window is large.
    (length.saturating_add(262).ilog2() as u8 + 1).clamp(9, most)
}

struct Deflate(flate2::Compress);

impl Deflate {
    fn new(level: u8, window: u8) -> Self {
        // At level 1 zlib-rs leaves a third more than zlib does, at 2 less, and is still the faster one.
        Self(flate2::Compress::new_gzip(Compression::new(level.max(2).into()), window))
    }

    fn run(&mut self, input: &[u8], out: &mut Vec<u8>, flush: FlushCompress) -> io::Result<(usize, Status)> {
        let before = self.0.total_in();
        let status = self.0.compress_vec(input, out, flush).map_err(io::Error::other)?;
        Ok(((self.0.total_in() - before) as usize, status))
    }
}

impl Encoder for Deflate {
    fn push(&mut self, input: &[u8], out: &mut Vec<u8>) -> io::Result<usize> {
        Ok(self.run(input, out, FlushCompress::None)?.0)
    }

    fn flush(&mut self, out: &mut Vec<u8>) -> io::Result<bool> {
        self.run(b"", out, FlushCompress::Sync)?;
        // Without room left there may be more to come.
        Ok(out.len() < out.capacity())
    }

    fn end(&mut self, out: &mut Vec<u8>) -> io::Result<bool> {
        Ok(self.run(b"", out, FlushCompress::Finish)?.1 == Status::StreamEnd)
    }
}

#[cfg(test)]
mod tests {
    use weir_testkit::Folder;

    use super::*;
    use crate::http::body::tests::{pulled, pushed};
    use crate::http::gunzip::Inflate;
    use crate::testing::{Site, check_conf, header};

    #[test]
    fn messages() {
        check_conf(
            "gzip on; gzip_types * a/b; gzip_comp_level 9; gzip_window 4k; gzip_hash 128k; gzip_buffers 4 8k;
             postpone_gzipping 1k; gzip_no_buffer on; gzip_min_length 1k;",
            "",
        );
        for (conf, message) in [
            ("gzip 1;", "invalid value \"1\" in \"gzip\" directive, it must be \"on\" or \"off\""),
            ("gzip_comp_level 0;", "value must be between 1 and 9"),
            ("gzip_comp_level 10;", "value must be between 1 and 9"),
            ("gzip_comp_level a;", "\"gzip_comp_level\" directive invalid number"),
            ("gzip_window 64k;", "\"gzip_window\" directive must be 512, 1k, 2k, 4k, 8k, 16k, or 32k"),
            ("gzip_hash 3k;", "\"gzip_hash\" directive must be 512, 1k, 2k, 4k, 8k, 16k, 32k, 64k, or 128k"),
            ("gzip_buffers 0 4k;", "\"gzip_buffers\" directive invalid value"),
            ("gzip_types text/HTML;", "duplicate MIME type \"text/html\""),
            ("gzip_types a/b; gzip_types A/B;", "duplicate MIME type \"a/b\""),
            ("gzip_min_length 1g;", "\"gzip_min_length\" directive invalid value"),
            ("postpone_gzipping 1; postpone_gzipping 1;", "\"postpone_gzipping\" directive is duplicate"),
        ] {
            check_conf(conf, message);
        }
    }

    #[test]
    fn windows() {
        for (length, expected) in
            [(None, 15), (Some(0), 15), (Some(20), 9), (Some(250), 10), (Some(762), 11), (Some(1 << 20), 15)]
        {
            assert_eq!(window_for(length, 15), expected, "{length:?}");
        }
        assert_eq!(window_for(Some(1 << 20), 9), 9);
    }

    #[test]
    fn bodies() {
        let noise: Vec<u8> = (0..300_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        for (window, body) in [(15, &noise[..]), (9, &noise[..1000]), (15, b""), (15, &[b'x'; 200_000])] {
            let compressed = pushed(body, Encoding::new(NAME, Deflate::new(6, window)));
            assert_eq!(pushed(&compressed, Inflate::new()), body);
            // With pauses, at each of which all that was taken comes out.
            let compressed = pulled(body, 40_000, Encoding::new(NAME, Deflate::new(1, window)));
            assert_eq!(pulled(&compressed, 5_000, Inflate::new()), body);
        }
        assert!(pushed(&[b'x'; 200_000], Encoding::new(NAME, Deflate::new(1, 15))).len() < 2000);
    }

    #[test]
    fn the_lowest_level_is_worth_it() {
        let text: String =
            (0..2000).map(|n| format!("{{\"id\":{},\"name\":\"n{n}\"}},", n * 7919 % 10_007)).collect();
        let length = |level| pushed(text.as_bytes(), Encoding::new(NAME, Deflate::new(level, 15))).len();
        // zlib's level 1 makes 16 % more of it than its level 6.
        assert!(length(1) * 100 < length(6) * 125, "{} {}", length(1), length(6));
    }

    #[test]
    fn responses() {
        let folder = Folder::new(&[
            ("a.html", b"0123456789012345678901234567890"),
            ("small.html", b"x"),
            ("a.gif", b"0123456789012345678901234567890"),
        ]);
        folder.set_modified("a.html", 0x5000_0000);
        let site = Site::new(&format!(
            "gzip on; log_format r '$status $gzip_ratio'; access_log logs/r r;
             server {{ root {}; location /not {{ gzip off; }} location /weak.html {{ add_header ETag x; alias {0}/a.html; }} }}",
            folder.path().display()
        ));
        let gzip = "Accept-Encoding: gzip\r\n";
        let answer = site.ask("HEAD /a.html", gzip);
        assert_eq!(
            answer,
            "HTTP/1.1 200 OK\nContent-Type: text/html\nLast-Modified: Fri, 13 Jul 2012 11:01:20 GMT\n\
             ETag: W/\"50000000-1f\"\nContent-Encoding: gzip\n\n"
        );
        for (path, more, expected) in [
            ("/a.html", "", true),
            ("/a.html", "Range: bytes=0-3\r\n", true),
            ("/small.html", "", false),
            ("/a.gif", "", false),
            ("/none", "", true),
            ("/not", "", false),
            ("/a.html", "If-None-Match: \"50000000-1f\"\r\n", false),
        ] {
            let answer = site.get(path, &format!("{gzip}{more}"));
            assert_eq!(header(&answer, "Content-Encoding").is_some(), expected, "{path} {more}");
            assert_eq!(header(&answer, "Transfer-Encoding").is_some(), expected, "{path} {more}");
        }
        assert_eq!(header(&site.get("/weak.html", gzip), "ETag"), None);
        let log = site.read("logs/r");
        let lines: Vec<_> = log.lines().collect();
        assert_eq!(lines[0], "200 -");
        assert!(lines[1].starts_with("200 0.") || lines[1].starts_with("200 1."), "{log}");
        assert_eq!(lines[3], "200 -");
        assert!(lines[5].starts_with("404 1."), "{log}");
    }
}
