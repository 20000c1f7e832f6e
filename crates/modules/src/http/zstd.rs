//! `ngx_http_zstd_filter_module` and `ngx_http_zstd_static_module` of tokers/zstd-nginx-module: compression with Zstandard.

use std::io;

use weir_engine::contract::{Install, Variable};
use weir_engine::generation::Plan;
use weir_engine::http::{Body, Exchange, Response};
use weir_ir::contract::{Conf, Contexts, Directive, Module, Setting, Takes};
use weir_ir::{Call, Fault, Merge, value};
use weir_syntax::Diagnostic;
use zstd::stream::raw::{self, CParameter, InBuffer, Operation, OutBuffer};

use super::body::{self, Broken};
use super::compress::{self, Coding, Configured, Encoder, Encoding};
use super::precompressed::{self, When};

pub struct Zstd;

type D = Directive<Zstd>;

const SCOPES: Contexts = Contexts::SCOPES;

impl Module for Zstd {
    const NAME: &'static str = "http_zstd";
    type Main = ();
    type Scope = Settings;
    const DIRECTIVES: &'static [Directive<Self>] = &[
        D::scope("zstd", SCOPES.or(Contexts::LOCATION_IF), Takes::FLAG, |s, c| s.common.enable.flag(c)),
        D::scope("zstd_buffers", SCOPES, Takes::TWO, |s, c| s.common.once.buffers(c))
            .accepted("a response is compressed through one small buffer"),
        D::scope("zstd_types", SCOPES, Takes::ONE_MORE, |s, c| s.common.types.add(c)),
        D::scope("zstd_comp_level", SCOPES, Takes::ONE, |s, c| s.level.put_with(c, level)),
        D::scope("zstd_min_length", SCOPES, Takes::ONE, |s, c| s.common.min_length.size(c)),
        D::scope("zstd_static", SCOPES, Takes::ONE, |s, c| s.files.one_of(c, precompressed::WORDS)),
    ];
}

/// What a level says of it.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    common: compress::Settings,
    level: Setting<i32>,
    files: Setting<When>,
}

impl Conf for Settings {
    fn inherit(&mut self, outer: &Self, _: &mut Merge<'_>) -> Result<(), Fault> {
        self.common.inherit(&outer.common);
        self.level.inherit(&outer.level);
        self.files.inherit(&outer.files);
        Ok(())
    }
}

fn level(call: &mut Call<'_>) -> Result<i32, Fault> {
    let (sign, digits) = match call.arg(0) {
        [b'-', digits @ ..] => (-1, digits),
        digits => (1, digits),
    };
    let number = value::number(digits).ok_or_else(|| call.under(call.refuse("invalid number"), 0))?;
    let levels = zstd::compression_level_range();
    match i32::try_from(number).map(|level| sign * level) {
        Ok(level) if level != 0 && levels.contains(&level) => Ok(level),
        _ => {
            let (least, most) = (levels.start(), levels.end());
            let message = format!("zstd compress level must between {least} and {most} excluding 0");
            Err(call.under(call.fail(message), 0))
        }
    }
}

impl Install for Zstd {
    const VARIABLES: &'static [Variable] = &[Variable::new("zstd_ratio", |x, out| {
        let Some(thousandths) = compress::thousandths(x, NAME) else { return false };
        out.extend_from_slice(format!("{}.{:03}", thousandths / 1000, thousandths % 1000).as_bytes());
        true
    })];

    fn install(_: &Settings, _: &mut Plan<'_, '_>) -> Result<(), Diagnostic> {
        Ok(())
    }
}

pub(super) const NAME: &str = "zstd";

/// What the level being compiled says of it.
pub(super) fn coding(plan: &Plan<'_, '_>) -> Option<Configured> {
    let settings = plan.scope().confs.get::<Zstd>();
    settings.common.with(|| Box::new(Zstding { level: settings.level.or(1) }))
}

/// Whether files that lie there compressed are sent.
pub(super) fn files(plan: &Plan<'_, '_>) -> When {
    plan.scope().confs.get::<Zstd>().files.or(When::Off)
}

struct Zstding {
    level: i32,
}

impl Coding for Zstding {
    fn name(&self) -> &'static str {
        NAME
    }

    fn encode(&self, length: Option<u64>, x: &mut Exchange, response: &mut Response) {
        match Encode::new(self.level, length) {
            Ok(encoder) => body::transform(Encoding::new(NAME, encoder), x, response),
            Err(_) => response.body = Body::Stream(Box::new(Broken)),
        }
    }
}

/// The first level whose window would be larger than what clients have to take (RFC 9659).
const WIDE: i32 = 20;
/// The largest window that they take, as a power of 2.
const WINDOW: u32 = 23;

struct Encode(raw::Encoder<'static>);

impl Encode {
    fn new(level: i32, length: Option<u64>) -> io::Result<Self> {
        let mut encoder = raw::Encoder::new(level)?;
        if level >= WIDE {
            encoder.set_parameter(CParameter::WindowLog(WINDOW))?;
        }
        // Known beforehand, it also makes the tables of a small body small.
        encoder.set_pledged_src_size(length)?;
        Ok(Self(encoder))
    }
}

/// Appends what a step has, up to the capacity of `out`.
fn appended<T>(
    out: &mut Vec<u8>,
    step: impl FnOnce(&mut OutBuffer<'_, Vec<u8>>) -> io::Result<T>,
) -> io::Result<T> {
    let at = out.len();
    step(&mut OutBuffer::around_pos(out, at))
}

impl Encoder for Encode {
    fn push(&mut self, input: &[u8], out: &mut Vec<u8>) -> io::Result<usize> {
        let mut input = InBuffer::around(input);
        appended(out, |out| self.0.run(&mut input, out))?;
        Ok(input.pos())
    }

    fn flush(&mut self, out: &mut Vec<u8>) -> io::Result<bool> {
        Ok(appended(out, |out| self.0.flush(out))? == 0)
    }

    fn end(&mut self, out: &mut Vec<u8>) -> io::Result<bool> {
        Ok(appended(out, |out| self.0.finish(out, true))? == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::body::tests::{pulled, pushed};
    use crate::testing::check_conf;

    #[test]
    fn messages() {
        check_conf(
            "zstd on; zstd_types * a/b; zstd_comp_level -5; zstd_buffers 4 8k; zstd_min_length 1k; zstd_static always;
             server { zstd_comp_level 22; location / { if ($uri) { zstd off; } } }",
            "",
        );
        for (conf, message) in [
            ("zstd 1;", "invalid value \"1\" in \"zstd\" directive, it must be \"on\" or \"off\""),
            ("zstd_comp_level 0;", "zstd compress level must between -131072 and 22 excluding 0"),
            ("zstd_comp_level 23;", "zstd compress level must between -131072 and 22 excluding 0"),
            ("zstd_comp_level 99999999999;", "zstd compress level must between -131072 and 22 excluding 0"),
            ("zstd_comp_level a;", "\"zstd_comp_level\" directive invalid number"),
            ("zstd_types text/HTML;", "duplicate MIME type \"text/html\""),
            ("zstd_min_length 1 2;", "invalid number of arguments in \"zstd_min_length\" directive"),
            ("zstd on; zstd on;", "\"zstd\" directive is duplicate"),
        ] {
            check_conf(conf, message);
        }
    }

    #[test]
    fn bodies() {
        let noise: Vec<u8> = (0..300_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        for (level, body) in
            [(1, &noise[..]), (-7, &noise[..]), (12, &noise[..]), (22, &noise[..1000]), (1, b"")]
        {
            for length in [None, Some(body.len() as u64)] {
                let coded = || Encoding::new(NAME, Encode::new(level, length).unwrap());
                let decoded = |bytes: &[u8]| zstd::decode_all(bytes).unwrap();
                assert!(decoded(&pushed(body, coded())) == body, "{level}");
                // With pauses, at each of which all that was taken comes out.
                assert!(decoded(&pulled(body, 40_000, coded())) == body, "{level}");
            }
        }
        assert!(pushed(&[b'x'; 200_000], Encoding::new(NAME, Encode::new(1, None).unwrap())).len() < 200);
    }

    #[test]
    fn no_window_is_wider_than_clients_take() {
        let coded = pushed(&vec![b'x'; 1 << 20], Encoding::new(NAME, Encode::new(22, None).unwrap()));
        // The frame's header: a magic number, flags without a single segment, the window's exponent above 10.
        assert_eq!((coded[4] & 0x20, coded[5] >> 3), (0, 23 - 10));
    }
}
