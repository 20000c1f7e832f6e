//! `ngx_http_brotli_filter_module` and `ngx_http_brotli_static_module` of google/ngx_brotli: compression with Brotli.

use std::io;

use brotli::enc::StandardAlloc;
use brotli::enc::encode::{
    BrotliEncoderOperation as Operation, BrotliEncoderParameter as Parameter,
    BrotliEncoderStateStruct as State,
};
use weir_engine::contract::{Install, Variable};
use weir_engine::generation::Plan;
use weir_engine::http::{Exchange, Response};
use weir_ir::contract::{Conf, Contexts, Directive, Module, Setting, Takes};
use weir_ir::{Call, Fault, Merge};
use weir_syntax::Diagnostic;

use super::body;
use super::compress::{self, Coding, Configured, Encoder, Encoding, power};
use super::precompressed::{self, When};

pub struct Brotli;

type D = Directive<Brotli>;

const SCOPES: Contexts = Contexts::SCOPES;

impl Module for Brotli {
    const NAME: &'static str = "http_brotli";
    type Main = ();
    type Scope = Settings;
    const DIRECTIVES: &'static [Directive<Self>] = &[
        D::scope("brotli", SCOPES.or(Contexts::LOCATION_IF), Takes::FLAG, |s, c| s.common.enable.flag(c)),
        D::scope("brotli_buffers", SCOPES, Takes::TWO, |s, c| s.common.once.buffers(c))
            .accepted("a response is compressed through one small buffer"),
        D::scope("brotli_types", SCOPES, Takes::ONE_MORE, |s, c| s.common.types.add(c)),
        D::scope("brotli_comp_level", SCOPES, Takes::ONE, |s, c| {
            s.quality.put_with(c, |c| compress::level(c, 0, 11))
        }),
        D::scope("brotli_window", SCOPES, Takes::ONE, |s, c| s.window.put_with(c, window)),
        D::scope("brotli_min_length", SCOPES, Takes::ONE, |s, c| s.common.min_length.size(c)),
        D::scope("brotli_static", SCOPES, Takes::ONE, |s, c| s.files.one_of(c, precompressed::WORDS)),
    ];
}

/// What a level says of it.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    common: compress::Settings,
    quality: Setting<u8>,
    /// As a power of 2.
    window: Setting<u8>,
    files: Setting<When>,
}

impl Conf for Settings {
    fn inherit(&mut self, outer: &Self, _: &mut Merge<'_>) -> Result<(), Fault> {
        self.common.inherit(&outer.common);
        self.quality.inherit(&outer.quality);
        self.window.inherit(&outer.window);
        self.files.inherit(&outer.files);
        Ok(())
    }
}

/// The windows that there are, as powers of 2.
const LEAST: u8 = 10;
const MOST: u8 = 24;

fn window(call: &mut Call<'_>) -> Result<u8, Fault> {
    let refused =
        call.refuse("must be 1k, 2k, 4k, 8k, 16k, 32k, 64k, 128k, 256k, 512k, 1m, 2m, 4m, 8m or 16m");
    power(call, LEAST..=MOST)?.ok_or_else(|| call.under(refused, 0))
}

impl Install for Brotli {
    const VARIABLES: &'static [Variable] =
        &[Variable::new("brotli_ratio", |x, out| compress::ratio(x, NAME, out))];

    fn install(_: &Settings, _: &mut Plan<'_, '_>) -> Result<(), Diagnostic> {
        Ok(())
    }
}

pub(super) const NAME: &str = "br";

/// What the level being compiled says of it.
pub(super) fn coding(plan: &Plan<'_, '_>) -> Option<Configured> {
    let settings = plan.scope().confs.get::<Brotli>();
    settings
        .common
        .with(|| Box::new(Brotlying { quality: settings.quality.or(6), window: settings.window.or(19) }))
}

/// Whether files that lie there compressed are sent.
pub(super) fn files(plan: &Plan<'_, '_>) -> When {
    plan.scope().confs.get::<Brotli>().files.or(When::Off)
}

struct Brotlying {
    quality: u8,
    window: u8,
}

impl Coding for Brotlying {
    fn name(&self) -> &'static str {
        NAME
    }

    fn encode(&self, length: Option<u64>, x: &mut Exchange, response: &mut Response) {
        let encoder = Encode::new(self.quality, window_for(self.quality, length, self.window));
        body::transform(Encoding::new(NAME, encoder), x, response);
    }
}

/// The window for a body of that length: a small one needs less memory.
fn window_for(quality: u8, length: Option<u64>, most: u8) -> u8 {
    let bits = match length {
        None | Some(0) => most,
        Some(length) => (length - 1).checked_ilog2().map_or(0, |bits| bits as u8 + 1).clamp(LEAST, most),
    };
    // Below that the crate has nothing but its slowest search for these, which takes twenty times as long.
    if matches!(quality, 5..=8) { bits.max(17) } else { bits }
}

struct Encode(State<StandardAlloc>);

impl Encode {
    fn new(quality: u8, window: u8) -> Self {
        let mut state = State::new(StandardAlloc::default());
        state.set_parameter(Parameter::BROTLI_PARAM_QUALITY, quality.into());
        state.set_parameter(Parameter::BROTLI_PARAM_LGWIN, window.into());
        // Input is compressed in blocks of 64 KiB: the best levels would take four times as much at a time, and the
        // thread with it.
        state.set_parameter(Parameter::BROTLI_PARAM_LGBLOCK, 16);
        Self(state)
    }

    /// Takes as much as fits before something has to come out, and appends what comes out.
    fn run(&mut self, operation: Operation, input: &[u8], out: &mut Vec<u8>) -> io::Result<usize> {
        let mut taken = 0;
        while out.len() < out.capacity() {
            if self.0.has_more_output() {
                let mut size = out.capacity() - out.len();
                let output = self.0.take_output(&mut size);
                out.extend_from_slice(&output[..size]);
                continue;
            }
            let (before, mut left) = (taken, input.len() - taken);
            let done = self.0.compress_stream(
                operation,
                &mut left,
                input,
                &mut taken,
                &mut 0,
                &mut [],
                &mut 0,
                &mut None,
                &mut |_, _, _, _| (),
            );
            if !done {
                return Err(io::Error::other("BrotliEncoderCompressStream() failed"));
            }
            if taken == before && !self.0.has_more_output() {
                break;
            }
        }
        Ok(taken)
    }
}

impl Encoder for Encode {
    fn push(&mut self, input: &[u8], out: &mut Vec<u8>) -> io::Result<usize> {
        self.run(Operation::BROTLI_OPERATION_PROCESS, input, out)
    }

    fn flush(&mut self, out: &mut Vec<u8>) -> io::Result<bool> {
        self.run(Operation::BROTLI_OPERATION_FLUSH, b"", out)?;
        Ok(!self.0.has_more_output() && out.len() < out.capacity())
    }

    fn end(&mut self, out: &mut Vec<u8>) -> io::Result<bool> {
        self.run(Operation::BROTLI_OPERATION_FINISH, b"", out)?;
        Ok(self.0.is_finished())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use crate::http::body::tests::{pulled, pushed};
    use crate::testing::check_conf;

    #[test]
    fn messages() {
        check_conf(
            "brotli on; brotli_types * a/b; brotli_comp_level 0; brotli_window 16m; brotli_buffers 4 8k;
             brotli_min_length 1k; brotli_static on; server { location / { if ($uri) { brotli off; } } }",
            "",
        );
        for (conf, message) in [
            ("brotli 1;", "invalid value \"1\" in \"brotli\" directive, it must be \"on\" or \"off\""),
            ("brotli_comp_level 12;", "value must be between 0 and 11"),
            ("brotli_comp_level a;", "\"brotli_comp_level\" directive invalid number"),
            (
                "brotli_window 512;",
                "\"brotli_window\" directive must be 1k, 2k, 4k, 8k, 16k, 32k, 64k, 128k, 256k, 512k, 1m, 2m, 4m, 8m or 16m",
            ),
            ("brotli_buffers 0 4k;", "\"brotli_buffers\" directive invalid value"),
            ("brotli_types text/HTML;", "duplicate MIME type \"text/html\""),
            ("brotli on; brotli on;", "\"brotli\" directive is duplicate"),
        ] {
            check_conf(conf, message);
        }
    }

    #[test]
    fn windows() {
        for (quality, length, expected) in [
            (4, None, 19),
            (4, Some(0), 19),
            (4, Some(1), 10),
            (4, Some(1024), 10),
            (4, Some(1025), 11),
            (4, Some(1 << 30), 19),
            (6, Some(1), 17),
            (6, Some(1 << 30), 19),
        ] {
            assert_eq!(window_for(quality, length, 19), expected, "{quality} {length:?}");
        }
        assert_eq!(window_for(4, Some(1 << 20), 12), 12);
    }

    fn decoded(bytes: &[u8]) -> Vec<u8> {
        let mut out = vec![];
        brotli::Decompressor::new(bytes, 4096).read_to_end(&mut out).unwrap();
        out
    }

    #[test]
    fn bodies() {
        let noise: Vec<u8> = (0..300_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        for (quality, window, body) in [
            (0, 10, &noise[..]),
            (1, 19, &noise[..]),
            (6, 19, &noise[..]),
            (11, 24, &noise[..70_000]),
            (6, 10, b""),
        ] {
            let coded = || Encoding::new(NAME, Encode::new(quality, window));
            assert!(decoded(&pushed(body, coded())) == body, "{quality}");
            // With pauses, at each of which all that was taken comes out.
            assert!(decoded(&pulled(body, 40_000, coded())) == body, "{quality}");
        }
        assert!(pushed(&[b'x'; 200_000], Encoding::new(NAME, Encode::new(6, 19))).len() < 200);
    }
}
