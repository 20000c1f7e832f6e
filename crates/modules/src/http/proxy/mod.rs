//! `ngx_http_proxy_module`: passes requests to HTTP servers.

mod cookie;
#[cfg(test)]
mod names;
mod redirect;
mod request;
mod response;
mod ssl;
mod v2;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use cookie::Attribute;
use weir_engine::contract::{Install, Variable};
use weir_engine::generation::{Build, ContentHandler, Plan};
use weir_engine::http::{Exchange, Response, Template};
use weir_engine::http1::{Known, response::Head};
use weir_engine::io::ConnectOptions;
use weir_engine::upstream::exchange::{RequestLength, next};
use weir_engine::upstream::{
    Hidden, Protocol, RequestHead, Settings, Target, Unresolved, Upstream, Whom, Wire, Written,
};
use weir_ir::address::{self, Authority, Form, Host};
use weir_ir::lowering::{Call, Fault, Merge};
use weir_ir::program::{LocationMatch, ScopeKind};
use weir_ir::{Conf, Contexts, Directive, Module, Once, Setting, Takes};
use weir_syntax::{Diagnostic, Level};

use super::buffers::{Buffers, Store};
use super::{cache, dav};
use request::Way;

pub use redirect::Redirect;

pub struct Proxy;

type D = Directive<Proxy>;

const SCOPES: Contexts = Contexts::SCOPES;
const PASS: Contexts = Contexts::LOCATION.or(Contexts::LOCATION_IF).or(Contexts::LIMIT_EXCEPT);

impl Module for Proxy {
    const NAME: &'static str = "http_proxy";
    type Main = cache::Paths;
    type Scope = Passing;
    const DIRECTIVES: &'static [D] = &[
        D::scope("proxy_pass", PASS, Takes::ONE, pass),
        D::scope("proxy_redirect", SCOPES, Takes::ONE_TWO, redirect::read),
        D::scope("proxy_cookie_domain", SCOPES, Takes::ONE_TWO, |s, c| {
            cookie::read(Attribute::Domain, &mut s.cookie_domains, c)
        }),
        D::scope("proxy_cookie_path", SCOPES, Takes::ONE_TWO, |s, c| {
            cookie::read(Attribute::Path, &mut s.cookie_paths, c)
        }),
        D::scope("proxy_cookie_flags", SCOPES, Takes::ONE_TO_FOUR, |s, c| {
            cookie::read_flags(&mut s.cookie_flags, c)
        }),
        D::scope("proxy_bind", SCOPES, Takes::ONE_TWO, |s, c| bind(&mut s.bind, c)),
        D::scope("proxy_set_header", SCOPES, Takes::TWO, set_header),
        D::scope("proxy_set_body", SCOPES, Takes::ONE, |s, c| s.set_body.put_with(c, |c| c.template(0))),
        D::scope("proxy_method", SCOPES, Takes::ONE, |s, c| s.method.put_with(c, |c| c.template(0))),
        D::scope("proxy_http_version", SCOPES, Takes::ONE, http_version),
        D::scope("proxy_pass_request_headers", SCOPES, Takes::FLAG, |s, c| s.pass_request_headers.flag(c)),
        D::scope("proxy_pass_request_body", SCOPES, Takes::FLAG, |s, c| s.pass_request_body.flag(c)),
        D::scope("proxy_request_buffering", SCOPES, Takes::FLAG, |s, c| s.request_buffering.flag(c)),
        D::scope("proxy_pass_header", SCOPES, Takes::ONE, |s, c| {
            s.pass_headers.push(c.arg(0).to_ascii_lowercase().into());
            Ok(())
        }),
        D::scope("proxy_pass_trailers", SCOPES, Takes::FLAG, |s, c| s.pass_trailers.flag(c)),
        D::scope("proxy_hide_header", SCOPES, Takes::ONE, |s, c| {
            s.hide_headers.push(c.arg(0).to_ascii_lowercase().into());
            Ok(())
        }),
        D::scope("proxy_connect_timeout", SCOPES, Takes::ONE, |s, c| s.connect_timeout.msec(c)),
        D::scope("proxy_send_timeout", SCOPES, Takes::ONE, |s, c| s.send_timeout.msec(c)),
        D::scope("proxy_read_timeout", SCOPES, Takes::ONE, |s, c| s.read_timeout.msec(c)),
        D::scope("proxy_next_upstream", SCOPES, Takes::ONE_MORE, next_upstream),
        D::scope("proxy_next_upstream_tries", SCOPES, Takes::ONE, |s, c| s.next_tries.number(c)),
        D::scope("proxy_next_upstream_timeout", SCOPES, Takes::ONE, |s, c| s.next_timeout.msec(c)),
        D::scope("proxy_intercept_errors", SCOPES, Takes::FLAG, |s, c| s.intercept_errors.flag(c)),
        D::scope("proxy_ignore_client_abort", SCOPES, Takes::FLAG, |s, c| s.ignore_client_abort.flag(c)),
        D::scope("proxy_socket_keepalive", SCOPES, Takes::FLAG, |s, c| s.socket_keepalive.flag(c)),
        D::scope("proxy_socket_rcvbuf", SCOPES, Takes::ONE, |s, c| s.socket_rcvbuf.size(c)),
        D::scope("proxy_socket_sndbuf", SCOPES, Takes::ONE, |s, c| s.socket_sndbuf.size(c)),
        D::scope("proxy_buffer_size", SCOPES, Takes::ONE, |s, c| s.buffers.head.size(c)),
        D::scope("proxy_buffering", SCOPES, Takes::FLAG, |s, c| s.buffers.on.flag(c)),
        D::scope("proxy_buffers", SCOPES, Takes::TWO, |s, c| s.buffers.body.put_with(c, |c| c.buffers())),
        D::scope("proxy_busy_buffers_size", SCOPES, Takes::ONE, |s, c| s.buffers.busy.size(c))
            .accepted("all that has come is offered to the client at once"),
        D::scope("proxy_max_temp_file_size", SCOPES, Takes::ONE, |s, c| s.buffers.max_temp_file_size.size(c)),
        D::scope("proxy_temp_file_write_size", SCOPES, Takes::ONE, |s, c| {
            s.buffers.temp_file_write_size.size(c)
        }),
        D::scope("proxy_temp_path", SCOPES, Takes::ONE_TO_FOUR, |s, c| {
            s.buffers.temp_path.put_with(c, weir_ir::http::core::temp_path)
        }),
        D::scope("proxy_limit_rate", SCOPES, Takes::ONE, |s, c| {
            s.buffers.limit_rate.put_with(c, weir_ir::http::core::size_template)
        }),
        D::scope("proxy_store", SCOPES, Takes::ONE, store),
        D::scope("proxy_store_access", SCOPES, Takes::ONE_TO_THREE, |s, c| {
            s.buffers.store_access.put_with(c, dav::access)
        }),
        D::scope("proxy_send_lowat", SCOPES, Takes::ONE, |s, c| {
            s.once.size(c)?;
            c.warn("\"proxy_send_lowat\" is not supported, ignored");
            Ok(())
        })
        .accepted("it has no effect on Linux"),
        D::scope("proxy_headers_hash_max_size", SCOPES, Takes::ONE, |s, c| s.once.number(c))
            .accepted("weir's tables size themselves"),
        D::scope("proxy_headers_hash_bucket_size", SCOPES, Takes::ONE, |s, c| s.once.number(c))
            .accepted("weir's tables size themselves"),
        D::main("proxy_cache_path", Contexts::HTTP, Takes::TWO_MORE, |paths, c| paths.add(Proxy::NAME, c)),
        D::scope("proxy_cache", SCOPES, Takes::ONE, cache_zone),
        D::scope("proxy_cache_key", SCOPES, Takes::ONE, |s, c| s.cache.key.put_with(c, |c| c.template(0))),
        D::scope("proxy_cache_valid", SCOPES, Takes::ONE_MORE, |s, c| s.cache.add_valid(c)),
        D::scope("proxy_cache_min_uses", SCOPES, Takes::ONE, |s, c| s.cache.min_uses.number(c)),
        D::scope("proxy_cache_max_range_offset", SCOPES, Takes::ONE, |s, c| {
            s.cache.max_range_offset.offset(c)
        }),
        D::scope("proxy_cache_use_stale", SCOPES, Takes::ONE_MORE, |s, c| {
            s.cache.add_use_stale(&FAILURES, c)
        }),
        D::scope("proxy_cache_methods", SCOPES, Takes::ONE_MORE, |s, c| s.cache.add_methods(c)),
        D::scope("proxy_cache_bypass", SCOPES, Takes::ONE_MORE, |s, c| s.cache.add_bypass(c)),
        D::scope("proxy_cache_purge", SCOPES, Takes::ONE_MORE, |s, c| s.cache.add_purge(c)),
        D::scope("proxy_no_cache", SCOPES, Takes::ONE_MORE, |s, c| s.cache.add_no_cache(c)),
        D::scope("proxy_cache_lock", SCOPES, Takes::FLAG, |s, c| s.cache.lock.flag(c)),
        D::scope("proxy_cache_lock_timeout", SCOPES, Takes::ONE, |s, c| s.cache.lock_timeout.msec(c)),
        D::scope("proxy_cache_lock_age", SCOPES, Takes::ONE, |s, c| s.cache.lock_age.msec(c)),
        D::scope("proxy_cache_revalidate", SCOPES, Takes::FLAG, |s, c| s.cache.revalidate.flag(c)),
        D::scope("proxy_cache_convert_head", SCOPES, Takes::FLAG, |s, c| s.cache.convert_head.flag(c)),
        D::scope("proxy_cache_background_update", SCOPES, Takes::FLAG, |s, c| {
            s.cache.background_update.flag(c)
        }),
        D::scope("proxy_ignore_headers", SCOPES, Takes::ONE_MORE, |s, c| s.cache.add_ignored(c)),
        D::scope("proxy_force_ranges", SCOPES, Takes::FLAG, |s, c| s.force_ranges.flag(c)),
        D::scope("proxy_ssl_session_reuse", SCOPES, Takes::FLAG, |s, c| s.ssl.session_reuse.flag(c)),
        D::scope("proxy_ssl_protocols", SCOPES, Takes::ONE_MORE, |s, c| s.ssl.protocols.add(c)),
        D::scope("proxy_ssl_ciphers", SCOPES, Takes::ONE, |s, c| s.ssl.ciphers.put(c, c.text(0).into())),
        D::scope("proxy_ssl_name", SCOPES, Takes::ONE, |s, c| s.ssl.name.put_with(c, |c| c.template(0))),
        D::scope("proxy_ssl_server_name", SCOPES, Takes::FLAG, |s, c| s.ssl.server_name.flag(c)),
        D::scope("proxy_ssl_verify", SCOPES, Takes::FLAG, |s, c| s.ssl.verify.flag(c)),
        D::scope("proxy_ssl_verify_depth", SCOPES, Takes::ONE, |s, c| s.ssl.verify_depth.number(c)),
        D::scope("proxy_ssl_trusted_certificate", SCOPES, Takes::ONE, |s, c| {
            s.ssl.trusted_certificate.put(c, super::openssl::path(c))
        }),
        D::scope("proxy_ssl_crl", SCOPES, Takes::ONE, |s, c| s.ssl.crl.put(c, super::openssl::path(c))),
        D::scope("proxy_ssl_certificate", SCOPES, Takes::ONE, |s, c| {
            s.ssl.certificate.put_with(c, ssl::File::read)
        }),
        D::scope("proxy_ssl_certificate_key", SCOPES, Takes::ONE, |s, c| {
            s.ssl.certificate_key.put_with(c, ssl::File::read)
        }),
        D::scope("proxy_ssl_certificate_cache", SCOPES, Takes::ONE_TO_THREE, |s, c| {
            s.ssl.certificate_cache.put_with(c, ssl::CertificateCache::read)
        }),
        D::scope("proxy_ssl_password_file", SCOPES, Takes::ONE, |s, c| {
            s.ssl.passwords.put_with(c, ssl::passwords)
        }),
        D::scope("proxy_ssl_conf_command", SCOPES, Takes::TWO, |s, c| {
            s.ssl.conf_commands.push((c.text(0), c.text(1)));
            Ok(())
        }),
    ];
}

/// Where `proxy_pass` leads.
#[derive(Clone, Debug)]
enum Pass {
    /// An upstream known at load, with what replaces the location's prefix.
    Known { upstream: usize, scheme: Scheme, place: Place, uri: Box<[u8]> },
    /// Decided for each request.
    Computed(weir_ir::Template),
}

/// `$proxy_host` and `$proxy_port`.
#[derive(Clone, Debug, Default)]
pub struct Place {
    host: Box<[u8]>,
    port: Box<[u8]>,
    /// As answers of it are known by in a cache.
    authority: Box<[u8]>,
}

impl Place {
    fn of(authority: &Authority, default_port: u16) -> Self {
        if let Host::Unix(path) = &authority.host {
            let authority = format!("unix:{path}:").into_bytes().into();
            return Self { host: b"localhost"[..].into(), port: Box::default(), authority };
        }
        let port = authority.port.unwrap_or(default_port).to_string();
        let host = match authority.port {
            Some(port) if port != default_port => format!("{}:{port}", authority.host_text),
            Some(_) | None => authority.host_text.to_string(),
        };
        let host: Box<[u8]> = host.into_bytes().into();
        Self { authority: host.clone(), host, port: port.into_bytes().into() }
    }
}

/// `proxy_bind`, where it is not `off`.
#[derive(Clone, Debug, Hash)]
pub(crate) struct Bind {
    pub from: weir_ir::Template,
    /// The address need not be the machine's own.
    pub transparent: bool,
}

/// `proxy_http_version`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HttpVersion {
    Http10,
    Http11,
    Http2,
}

/// The module's settings at one level.
#[derive(Clone, Debug, Default)]
pub struct Passing {
    pass: Option<Pass>,
    redirects: Setting<Vec<Redirect>>,
    bind: Setting<Option<Bind>>,
    cookie_domains: Setting<Vec<cookie::Replace>>,
    cookie_paths: Setting<Vec<cookie::Replace>>,
    cookie_flags: Setting<Vec<cookie::Flags>>,
    set_headers: Vec<(Box<[u8]>, weir_ir::Template)>,
    set_body: Setting<weir_ir::Template>,
    method: Setting<weir_ir::Template>,
    http_version: Setting<HttpVersion>,
    pass_request_headers: Setting<bool>,
    pass_request_body: Setting<bool>,
    request_buffering: Setting<bool>,
    pass_headers: Vec<Box<[u8]>>,
    hide_headers: Vec<Box<[u8]>>,
    pass_trailers: Setting<bool>,
    connect_timeout: Setting<u64>,
    send_timeout: Setting<u64>,
    read_timeout: Setting<u64>,
    next_upstream: Setting<u32>,
    next_tries: Setting<u64>,
    next_timeout: Setting<u64>,
    intercept_errors: Setting<bool>,
    ignore_client_abort: Setting<bool>,
    socket_keepalive: Setting<bool>,
    socket_rcvbuf: Setting<u64>,
    socket_sndbuf: Setting<u64>,
    buffers: Buffers,
    force_ranges: Setting<bool>,
    cache: cache::Settings,
    ssl: ssl::Ssl,
    once: Once,
}

/// Of `proxy_next_upstream` and `proxy_cache_use_stale`.
const FAILURES: [(&str, u32); 13] = [
    ("error", next::ERROR),
    ("timeout", next::TIMEOUT),
    ("invalid_header", next::INVALID_HEADER),
    ("non_idempotent", next::NON_IDEMPOTENT),
    ("http_500", next::HTTP_500),
    ("http_502", next::HTTP_502),
    ("http_503", next::HTTP_503),
    ("http_504", next::HTTP_504),
    ("http_403", next::HTTP_403),
    ("http_404", next::HTTP_404),
    ("http_429", next::HTTP_429),
    ("updating", next::UPDATING),
    ("off", next::OFF),
];

impl Conf for Passing {
    const EVERY_LEVEL: bool = true;

    fn inherit(&mut self, outer: &Self, merge: &mut Merge<'_>) -> Result<(), Fault> {
        macro_rules! settings {
            ($($field:ident),* $(,)?) => { $(self.$field.inherit(&outer.$field);)* };
        }
        settings!(
            redirects,
            bind,
            cookie_domains,
            cookie_paths,
            cookie_flags,
            set_body,
            method,
            http_version,
            pass_request_headers,
            pass_request_body,
            pass_trailers,
            request_buffering,
            connect_timeout,
            send_timeout,
            read_timeout,
            next_upstream,
            next_tries,
            next_timeout,
            intercept_errors,
            ignore_client_abort,
            socket_keepalive,
            socket_rcvbuf,
            socket_sndbuf,
            force_ranges,
        );
        // Lists are taken over whole or not at all.
        for (own, outer) in
            [(&mut self.pass_headers, &outer.pass_headers), (&mut self.hide_headers, &outer.hide_headers)]
        {
            if own.is_empty() {
                own.clone_from(outer);
            }
        }
        if self.set_headers.is_empty() {
            self.set_headers.clone_from(&outer.set_headers);
        }
        // Blocks without a name of their own pass where their location does.
        if self.pass.is_none() && matches!(merge.kind(), ScopeKind::If | ScopeKind::LimitExcept) {
            self.pass.clone_from(&outer.pass);
        }
        // Of a cache and a store the inner one counts.
        if self.buffers.store.get().is_some_and(|store| *store != Store::Off) {
            self.cache.turn_off();
        }
        if self.cache.is_on() {
            self.buffers.store.replace(Store::Off);
        }
        self.buffers.inherit(&outer.buffers, "proxy", merge)?;
        self.cache.inherit(&outer.cache);
        let paths = merge.main_of::<Proxy>().clone();
        self.cache.check("proxy_cache", &paths, merge)?;
        if self.pass.is_some() {
            self.buffers.make_temp_path("proxy_temp", merge)?;
        }
        self.ssl.inherit(&outer.ssl);
        match &self.pass {
            Some(Pass::Computed(_)) => self.ssl.prepare(merge),
            Some(Pass::Known { scheme, .. }) if scheme.is_tls() => self.ssl.prepare(merge),
            Some(Pass::Known { .. }) | None => Ok(()),
        }
    }
}

impl Passing {
    /// The upstream that the level's requests are passed to, where that is known before them.
    pub(crate) fn group(&self) -> Option<usize> {
        if let Some(Pass::Known { upstream, .. }) = &self.pass { Some(*upstream) } else { None }
    }

    fn settings(&self, hidden: &Arc<Hidden>, plan: &Plan<'_, '_>) -> Settings {
        let bind = self.bind.get().and_then(Option::as_ref);
        let socket = ConnectOptions {
            keepalive: self.socket_keepalive.or(false),
            receive_buffer: self.socket_rcvbuf.get().map(|n| *n as usize),
            send_buffer: self.socket_sndbuf.get().map(|n| *n as usize),
            transparent: bind.is_some_and(|bind| bind.transparent),
            ..ConnectOptions::default()
        };
        let mut opened_by = DefaultHasher::new();
        (&socket, bind).hash(&mut opened_by);
        let tls = self.ssl.compile(plan);
        tls.as_ref().map(|tls| tls.client.identity()).hash(&mut opened_by);
        let version = self.http_version.or(HttpVersion::Http11);
        let http2 = version == HttpVersion::Http2;
        // What a connection may bring of heads is told when it is opened.
        http2.then(|| self.buffers.head()).hash(&mut opened_by);
        Settings {
            connect_timeout: self.connect_timeout.or(60_000),
            send_timeout: self.send_timeout.or(60_000),
            read_timeout: self.read_timeout.or(60_000),
            next_upstream: match self.next_upstream.or(next::ERROR | next::TIMEOUT) {
                bits if bits & next::OFF != 0 => next::OFF,
                bits => bits & !next::UPDATING,
            },
            next_upstream_tries: self.next_tries.or(0),
            next_upstream_timeout: self.next_timeout.or(0),
            request_buffering: self.request_buffering.or(true),
            wire: if http2 { Wire::Http2 } else { Wire::Http1 },
            chunks: version != HttpVersion::Http10,
            pass_request_body: self.pass_request_body.or(true),
            buffer_size: self.buffers.head(),
            buffering: self.buffers.on.or(true),
            buffers: Arc::new(self.buffers.compile(plan)),
            ignore_client_abort: self.ignore_client_abort.or(false),
            intercept_errors: self.intercept_errors.or(false),
            socket,
            bind: bind.map(|bind| Arc::new(plan.template(&bind.from))),
            pass_trailers: self.pass_trailers.or(false).then(|| Arc::clone(hidden)),
            pass_early_hints: Some(Arc::clone(hidden)),
            opened_by: opened_by.finish(),
            tls,
            ignore_headers: self.cache.ignore_headers,
            tunnels_with: None,
            cache: self.cache.compile(Proxy::NAME, "proxy", plan),
            store: self.buffers.compile_store(plan).map(Arc::new),
        }
    }
}

/// How the upstream is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scheme {
    Http,
    Https,
}

impl Scheme {
    fn text(self) -> &'static str {
        match self {
            Self::Http => "http://",
            Self::Https => "https://",
        }
    }

    fn port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }

    fn is_tls(self) -> bool {
        self == Self::Https
    }

    /// Splits `http://rest`.
    fn split(url: &[u8]) -> Option<(Self, &[u8])> {
        [Self::Http, Self::Https].into_iter().find_map(|scheme| {
            let (head, rest) = url.split_at_checked(scheme.text().len())?;
            head.eq_ignore_ascii_case(scheme.text().as_bytes()).then_some((scheme, rest))
        })
    }

    fn target(self, group: Arc<Upstream>) -> Target {
        Target { group, scheme: self.text(), tls: self.is_tls() }
    }
}

fn pass(passing: &mut Passing, call: &mut Call<'_>) -> Result<(), Fault> {
    if passing.pass.is_some() {
        return Err(call.duplicate());
    }
    let url = call.arg(0);
    if memchr::memchr(b'$', url).is_some() {
        let template = call.template(0)?;
        passing.pass = Some(Pass::Computed(template));
        return Ok(());
    }
    let Some((scheme, rest)) = Scheme::split(url) else {
        return Err(call.under(call.fail("invalid URL prefix"), 0));
    };
    let authority = address::parse(rest, Form { listen: false, uri: true }).map_err(|reason| {
        let shown = String::from_utf8_lossy(rest);
        call.under(call.fail(format!("{reason} in upstream \"{shown}\"")), 0)
    })?;
    let location = call.location();
    let named = match &call.http().scope(location).kind {
        ScopeKind::Location(LocationMatch::Regex(_) | LocationMatch::Named(_))
        | ScopeKind::If
        | ScopeKind::LimitExcept => false,
        ScopeKind::Location(_) | ScopeKind::Http | ScopeKind::Server => true,
    };
    if !named && !authority.uri.is_empty() {
        return Err(call.fail(
            "\"proxy_pass\" cannot have URI part in location given by regular expression, or inside named location, \
             or inside \"if\" statement, or inside \"limit_except\" block",
        ));
    }
    let upstream = call.upstream_of(&authority, scheme.port())?;
    passing.pass = Some(Pass::Known {
        upstream,
        scheme,
        place: Place::of(&authority, scheme.port()),
        uri: with_slash(&authority.uri),
    });
    Ok(())
}

/// A URI that begins with its arguments gets the path `/`.
fn with_slash(uri: &[u8]) -> Box<[u8]> {
    if uri.first() == Some(&b'?') { [b"/", uri].concat().into() } else { uri.into() }
}

fn store(passing: &mut Passing, call: &mut Call<'_>) -> Result<(), Fault> {
    let cached = passing.cache.is_on();
    passing.buffers.store.put_with(call, |call| match Store::read(call)? {
        Store::On | Store::At(_) if cached => Err(call.refuse("is incompatible with \"proxy_cache\"")),
        store => Ok(store),
    })
}

fn cache_zone(passing: &mut Passing, call: &mut Call<'_>) -> Result<(), Fault> {
    let stored = passing.buffers.store.get().is_some_and(|store| *store != Store::Off);
    if stored && !passing.cache.is_set() && call.arg(0) != b"off" {
        return Err(call.refuse("is incompatible with \"proxy_store\""));
    }
    passing.cache.set_zone(Proxy::NAME, call)
}

fn set_header(passing: &mut Passing, call: &mut Call<'_>) -> Result<(), Fault> {
    let value = call.template(1)?;
    passing.set_headers.push((call.arg(0).into(), value));
    Ok(())
}

fn http_version(passing: &mut Passing, call: &mut Call<'_>) -> Result<(), Fault> {
    passing.http_version.put_with(call, |call| match call.arg(0) {
        b"1.0" => Ok(HttpVersion::Http10),
        b"1.1" => Ok(HttpVersion::Http11),
        b"2" => Ok(HttpVersion::Http2),
        _ => {
            let fault = call.fail(format!("invalid value \"{}\"", call.text(0)));
            Err(call.under(fault, 0))
        }
    })
}

/// Reads a `…_bind`; `None` is `off`.
pub(super) fn bind(setting: &mut Setting<Option<Bind>>, call: &mut Call<'_>) -> Result<(), Fault> {
    setting.put_with(call, |call| {
        if call.args().len() == 1 && call.arg(0) == b"off" {
            return Ok(None);
        }
        let from = call.template(0)?;
        if from.as_literal().is_some_and(|text| address::local(text).is_none()) {
            let fault = call.fail(format!("invalid address \"{}\"", call.text(0)));
            return Err(call.under(fault, 0));
        }
        let transparent = call.args().len() > 1;
        if transparent {
            if call.arg(1) != b"transparent" {
                return Err(call.invalid_parameter(1));
            }
            call.needs_transparent();
        }
        Ok(Some(Bind { from, transparent }))
    })
}

fn next_upstream(passing: &mut Passing, call: &mut Call<'_>) -> Result<(), Fault> {
    // A second directive of a level adds to the first.
    let mut bits = passing.next_upstream.or(0);
    call.add_bits(&mut bits, &FAILURES)?;
    passing.next_upstream.replace(bits);
    Ok(())
}

impl Install for Proxy {
    const VARIABLES: &'static [Variable] = &[
        Variable::new("proxy_host", |x, out| place(x, out, |place| &place.host)),
        Variable::new("proxy_port", |x, out| place(x, out, |place| &place.port)),
        Variable::new("proxy_add_x_forwarded_for", forwarded_for),
    ];

    fn prepare(paths: &cache::Paths, build: &mut Build<'_>) -> Result<(), Diagnostic> {
        paths.prepare(build)
    }

    fn install(passing: &Passing, plan: &mut Plan<'_, '_>) -> Result<(), Diagnostic> {
        let Some(pass) = &passing.pass else { return Ok(()) };
        let own = matches!(plan.kind(), ScopeKind::Location(_) | ScopeKind::If | ScopeKind::LimitExcept);
        if !own {
            return Ok(());
        }
        let to = match pass {
            Pass::Known { upstream, scheme, place, uri } => {
                plan.handlers.attach(place.clone());
                let group = plan.build.upstream(*upstream);
                To::Known { target: scheme.target(group), place: place.clone(), uri: uri.clone() }
            }
            Pass::Computed(template) => To::Computed(plan.template(template)),
        };
        let hidden = Arc::new(response::hidden(passing));
        let handler = Handler {
            request: request::Rules::compile(passing, plan),
            settings: passing.settings(&hidden, plan),
            response: response::Rules::compile(passing, hidden, plan),
            to,
        };
        if let ScopeKind::Location(pattern) = plan.kind() {
            plan.handlers.auto_redirect = pattern.name().ends_with(b"/");
        }
        plan.handlers.handler = Some(ContentHandler::Upstream(Arc::new(handler)));
        Ok(())
    }
}

fn place(x: &Exchange, out: &mut Vec<u8>, part: impl Fn(&Place) -> &[u8]) -> bool {
    let computed = x.extension::<Computed>().map(|computed| &computed.place);
    match computed.or_else(|| x.location().attached::<Place>()) {
        Some(place) => {
            out.extend_from_slice(part(place));
            true
        }
        None => false,
    }
}

fn forwarded_for(x: &Exchange, out: &mut Vec<u8>) -> bool {
    for value in x.head.all(Known::XForwardedFor) {
        out.extend_from_slice(value);
        out.extend_from_slice(b", ");
    }
    out.extend_from_slice(x.peer().text());
    true
}

/// Where a location's requests go.
enum To {
    Known { target: Target, place: Place, uri: Box<[u8]> },
    Computed(Template),
}

struct Handler {
    to: To,
    request: request::Rules,
    response: response::Rules,
    settings: Settings,
}

/// Where one request goes whose `proxy_pass` has variables.
#[derive(Default)]
struct Computed {
    place: Place,
    uri: Box<[u8]>,
}

impl Handler {
    /// Where a request goes; for one with variables, after [`Protocol::target`] found out.
    fn way<'a>(&'a self, x: &'a Exchange) -> Way<'a> {
        match (&self.to, x.extension::<Computed>()) {
            (To::Computed(_), Some(computed)) => {
                Way { host: &computed.place.host, uri: &computed.uri, computed: true }
            }
            (To::Known { place, uri, .. }, _) => Way { host: &place.host, uri, computed: false },
            (To::Computed(_), None) => Way { host: b"", uri: b"", computed: true },
        }
    }

    fn compute(&self, x: &mut Exchange, template: &Template) -> Result<Whom, u16> {
        let url = template.value(x);
        let shown = || String::from_utf8_lossy(&url).into_owned();
        let Some((scheme, rest)) = Scheme::split(&url).filter(|(_, rest)| !rest.is_empty()) else {
            x.log(Level::Error, format_args!("invalid URL prefix in \"{}\"", shown()));
            return Err(500);
        };
        let authority = match address::parse(rest, Form { listen: false, uri: true }) {
            Ok(authority) => authority,
            Err(reason) => {
                let rest = String::from_utf8_lossy(rest).into_owned();
                x.log(Level::Error, format_args!("{reason} in upstream \"{rest}\""));
                return Err(500);
            }
        };
        let port = scheme.port();
        let place = Place::of(&authority, port);
        *x.extension_mut::<Computed>() = Computed { place, uri: with_slash(&authority.uri) };
        Ok(match group(x, &authority, port) {
            Some(group) => Whom::Known(scheme.target(group)),
            None => Whom::Unresolved(Box::new(Unresolved {
                port: authority.port.unwrap_or(port),
                host: authority.host_text,
                scheme: scheme.text(),
                tls: scheme.is_tls(),
            })),
        })
    }
}

/// A group of the configuration by that name, or a group of the one address; none for any other name.
pub(super) fn group(x: &Exchange, authority: &Authority, default_port: u16) -> Option<Arc<Upstream>> {
    let port = authority.port.unwrap_or(default_port);
    let named = |u: &&Arc<Upstream>| {
        u.name.eq_ignore_ascii_case(&authority.host_text)
            && (u.explicit && authority.port.is_none() || u.port == port)
    };
    if let Some(group) = x.generation.upstreams.iter().find(named) {
        return Some(Arc::clone(group));
    }
    let address = match &authority.host {
        Host::Ip(ip) => address::Address::Ip((*ip, port).into()),
        Host::Unix(path) => address::Address::Unix(Arc::clone(path)),
        Host::Any | Host::Name(_) => return None,
    };
    Some(Arc::new(Upstream::of_addresses(&authority.host_text, port, [address])))
}

impl Protocol for Handler {
    fn settings(&self) -> &Settings {
        &self.settings
    }

    fn target(&self, x: &mut Exchange) -> Result<Whom, u16> {
        match &self.to {
            To::Known { target, .. } => Ok(Whom::Known(target.clone())),
            To::Computed(template) => self.compute(x, template),
        }
    }

    fn known(&self) -> Option<&Target> {
        if let To::Known { target, .. } = &self.to { Some(target) } else { None }
    }

    fn request(&self, x: &mut Exchange, length: RequestLength, out: &mut Vec<u8>) -> Result<Written, u16> {
        self.request.write(x, self.way(x), length, out)
    }

    fn request_head(
        &self,
        x: &mut Exchange,
        length: RequestLength,
        body: &mut Vec<u8>,
    ) -> Result<RequestHead, u16> {
        self.request.head(x, self.way(x), length, body)
    }

    fn cache_key(&self, x: &mut Exchange, scheme: &'static str, out: &mut Vec<u8>) {
        out.extend_from_slice(scheme.as_bytes());
        let place = match &self.to {
            To::Known { place, .. } => Some(place),
            To::Computed(_) => x.extension::<Computed>().map(|computed| &computed.place),
        };
        out.extend_from_slice(place.map_or(b"", |place| &place.authority));
        request::write_uri(x, self.way(x), out);
    }

    fn response(&self, x: &mut Exchange, head: &Head) -> Box<Response> {
        let response = x.new_response(head.status());
        let response = self.response.make(x, response, head, self.way(x));
        // What an upstream before this one said of the type was of a content that this one takes the place of.
        if response.content_type.is_some() {
            x.answer_type = None;
        }
        response
    }

    fn redirect(&self, x: &mut Exchange, head: &Head) -> Option<Vec<u8>> {
        self.response.redirect(x, head)
    }

    fn replaces_body(&self) -> bool {
        self.request.replaces_body()
    }
}

#[cfg(test)]
mod tests;
