//! `ngx_http_v2_module`: who is spoken to in HTTP/2, and within which bounds. The engine does it, through hyper.

use weir_engine::contract::{Install, Variable};
use weir_engine::generation::Plan;
use weir_engine::http::Exchange;
use weir_engine::http1::Version;
use weir_engine::http2::{ChunkSize, Settings};
use weir_ir::contract::Once;
use weir_ir::http::core::pool_size;
use weir_ir::program::ScopeKind;
use weir_ir::{Call, Conf, Contexts, Directive, Fault, Merge, Module, Setting, Takes};
use weir_syntax::Diagnostic;

pub struct V2;

/// `http2_extended_connect`, which nginx has not: WebSocket over HTTP/2 (RFC 8441).
pub struct ExtendedConnect;

type D = Directive<V2>;

const HTTP_SERVER: Contexts = Contexts::HTTP_SERVER;
const SCOPES: Contexts = Contexts::SCOPES;

/// A window's upper bound.
const MAX_WINDOW: u64 = (1 << 31) - 1;
/// What a frame's length can say.
const MAX_FRAME: u64 = (1 << 24) - 1;

impl Module for V2 {
    const NAME: &'static str = "http_v2";
    type Main = Once;
    type Scope = V2Conf;
    const DIRECTIVES: &'static [D] = &[
        D::scope("http2", HTTP_SERVER, Takes::FLAG, |s, c| s.enabled.flag(c)),
        D::main("http2_recv_buffer_size", Contexts::HTTP, Takes::ONE, recv_buffer_size)
            .accepted("what is read stays in no buffer of its own"),
        D::scope("http2_pool_size", HTTP_SERVER, Takes::ONE, |s, c| s.once.read(c, pool_size))
            .accepted("memory comes from no pool"),
        D::scope("http2_max_concurrent_streams", HTTP_SERVER, Takes::ONE, |s, c| s.streams.number(c)),
        D::scope("http2_max_concurrent_pushes", HTTP_SERVER, Takes::ONE, obsolete).accepted(OBSOLETE),
        D::scope("http2_max_requests", HTTP_SERVER, Takes::ONE, |_, c| replaced(c, "keepalive_requests"))
            .accepted(OBSOLETE),
        D::scope("http2_max_field_size", HTTP_SERVER, Takes::ONE, |_, c| replaced(c, HEADER_BUFFERS))
            .accepted(OBSOLETE),
        D::scope("http2_max_header_size", HTTP_SERVER, Takes::ONE, |_, c| replaced(c, HEADER_BUFFERS))
            .accepted(OBSOLETE),
        D::scope("http2_body_preread_size", HTTP_SERVER, Takes::ONE, |s, c| {
            s.preread.put_with(c, body_preread_size)
        }),
        D::scope("http2_streams_index_size", HTTP_SERVER, Takes::ONE, |s, c| s.once.read(c, index_size))
            .accepted("streams are found without it"),
        D::scope("http2_recv_timeout", HTTP_SERVER, Takes::ONE, |_, c| replaced(c, "client_header_timeout"))
            .accepted(OBSOLETE),
        D::scope("http2_idle_timeout", HTTP_SERVER, Takes::ONE, |_, c| replaced(c, "keepalive_timeout"))
            .accepted(OBSOLETE),
        D::scope("http2_chunk_size", SCOPES, Takes::ONE, |s, c| s.chunk.put_with(c, chunk_size)),
        D::scope("http2_push_preload", SCOPES, Takes::FLAG, obsolete).accepted(OBSOLETE),
        D::scope("http2_push", SCOPES, Takes::ONE, obsolete).accepted(OBSOLETE),
    ];
}

const OBSOLETE: &str = "obsolete in nginx too, with a warning";
const HEADER_BUFFERS: &str = "large_client_header_buffers";

fn obsolete(_: &mut V2Conf, call: &mut Call<'_>) -> Result<(), Fault> {
    let name = String::from_utf8_lossy(call.name());
    call.warn(format!("the \"{name}\" directive is obsolete, ignored"));
    Ok(())
}

fn replaced(call: &mut Call<'_>, by: &str) -> Result<(), Fault> {
    let name = String::from_utf8_lossy(call.name());
    call.warn(format!("the \"{name}\" directive is obsolete, use the \"{by}\" directive instead"));
    Ok(())
}

fn recv_buffer_size(once: &mut Once, call: &mut Call<'_>) -> Result<(), Fault> {
    once.read(call, |call| match call.size()? {
        ..=16 => Err(call.refuse("value is too small")),
        _ => Ok(()),
    })
}

fn index_size(call: &mut Call<'_>) -> Result<(), Fault> {
    if call.number()?.is_power_of_two() { Ok(()) } else { Err(call.refuse("must be a power of two")) }
}

fn body_preread_size(call: &mut Call<'_>) -> Result<u64, Fault> {
    match call.size()? {
        size @ ..=MAX_WINDOW => Ok(size),
        _ => Err(call.fail(format!("the maximum body preread buffer size is {MAX_WINDOW}"))),
    }
}

fn chunk_size(call: &mut Call<'_>) -> Result<u64, Fault> {
    match call.size()? {
        0 => Err(call.fail("the http2 chunk size cannot be zero")),
        size => Ok(size.min(MAX_FRAME)),
    }
}

/// What a level says.
#[derive(Clone, Debug, Default)]
pub struct V2Conf {
    enabled: Setting<bool>,
    streams: Setting<u64>,
    preread: Setting<u64>,
    chunk: Setting<u64>,
    once: Once,
}

impl Conf for V2Conf {
    fn inherit(&mut self, outer: &Self, _: &mut Merge<'_>) -> Result<(), Fault> {
        let Self { enabled, streams, preread, chunk, once: _ } = self;
        enabled.inherit(&outer.enabled);
        streams.inherit(&outer.streams);
        preread.inherit(&outer.preread);
        chunk.inherit(&outer.chunk);
        Ok(())
    }
}

impl Install for V2 {
    const VARIABLES: &'static [Variable] = &[Variable::new("http2", http2)];

    fn install(conf: &V2Conf, plan: &mut Plan<'_, '_>) -> Result<(), Diagnostic> {
        if let Some(chunk) = conf.chunk.get() {
            plan.handlers.attach(ChunkSize(*chunk as usize));
        }
        if !matches!(plan.kind(), ScopeKind::Server) {
            return Ok(());
        }
        let extended_connect = plan.scope().confs.get::<ExtendedConnect>().on.or(false);
        let defaults = Settings::default();
        let of = |setting: &Setting<u64>, default: u32| {
            setting.get().map_or(default, |value| u32::try_from(*value).unwrap_or(u32::MAX))
        };
        plan.handlers.attach(Settings {
            enabled: conf.enabled.or(false),
            max_concurrent_streams: of(&conf.streams, defaults.max_concurrent_streams),
            body_preread_size: of(&conf.preread, defaults.body_preread_size),
            extended_connect,
        });
        Ok(())
    }
}

/// `$http2`: how it came to be HTTP/2.
fn http2(x: &Exchange, out: &mut Vec<u8>) -> bool {
    if x.head.version() == Version::HTTP_20 {
        out.extend_from_slice(if x.connection.tls.is_some() { b"h2" } else { b"h2c" });
    }
    true
}

impl Module for ExtendedConnect {
    const NAME: &'static str = "http_v2_extended_connect";
    type Main = ();
    type Scope = Enabled;
    const DIRECTIVES: &'static [Directive<Self>] =
        &[Directive::<Self>::scope("http2_extended_connect", HTTP_SERVER, Takes::FLAG, |s, c| s.on.flag(c))];
}

/// Whether streams may become tunnels.
#[derive(Clone, Debug, Default)]
pub struct Enabled {
    on: Setting<bool>,
}

impl Conf for Enabled {
    fn inherit(&mut self, outer: &Self, _: &mut Merge<'_>) -> Result<(), Fault> {
        self.on.inherit(&outer.on);
        Ok(())
    }
}

impl Install for ExtendedConnect {
    /// `V2` has it among what a server says.
    fn install(_: &Enabled, _: &mut Plan<'_, '_>) -> Result<(), Diagnostic> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
