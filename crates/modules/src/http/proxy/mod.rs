//! `ngx_http_proxy_module`: passes requests to HTTP servers.

mod cookie;
#[cfg(test)]
mod names;
mod redirect;
mod request;
mod ssl;
mod v2;

use std::borrow::Cow;
use std::sync::Arc;

use cookie::Attribute;
use weir_engine::contract::{Install, Variable};
use weir_engine::generation::{Build, ContentHandler, Plan};
use weir_engine::http::{Exchange, Response, Template};
use weir_engine::http1::{Field, Known, response::Head};
use weir_engine::upstream::exchange::{RequestLength, next};
use weir_engine::upstream::{
    Hidden, Protocol, RequestHead, Settings, Target, Unresolved, Upstream, Whom, Wire, Written,
};
use weir_ir::address::{self, Authority, Form, Host};
use weir_ir::lowering::{Call, Fault, Merge};
use weir_ir::program::{LocationMatch, ScopeKind};
use weir_ir::{Conf, Contexts, Directive, Module, Setting, Takes};
use weir_syntax::{Diagnostic, Level};

use super::dav;
use super::passing::attempts::group;
use super::passing::{Common, Names, cache, response};
use redirect::Rewrites;
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
        D::scope("proxy_bind", SCOPES, Takes::ONE_TWO, |s, c| s.common.attempts.bind(c)),
        D::scope("proxy_set_header", SCOPES, Takes::TWO, set_header),
        D::scope("proxy_set_body", SCOPES, Takes::ONE, |s, c| s.set_body.put_with(c, |c| c.template(0))),
        D::scope("proxy_method", SCOPES, Takes::ONE, |s, c| s.method.put_with(c, |c| c.template(0))),
        D::scope("proxy_http_version", SCOPES, Takes::ONE, http_version),
        D::scope("proxy_pass_request_headers", SCOPES, Takes::FLAG, |s, c| {
            s.common.pass_request_headers.flag(c)
        }),
        D::scope("proxy_pass_request_body", SCOPES, Takes::FLAG, |s, c| s.common.pass_request_body.flag(c)),
        D::scope("proxy_request_buffering", SCOPES, Takes::FLAG, |s, c| s.common.request_buffering.flag(c)),
        D::scope("proxy_pass_header", SCOPES, Takes::ONE, |s, c| s.common.pass_header(c)),
        D::scope("proxy_pass_trailers", SCOPES, Takes::FLAG, |s, c| s.pass_trailers.flag(c)),
        D::scope("proxy_hide_header", SCOPES, Takes::ONE, |s, c| s.common.hide_header(c)),
        D::scope("proxy_connect_timeout", SCOPES, Takes::ONE, |s, c| {
            s.common.attempts.connect_timeout.msec(c)
        }),
        D::scope("proxy_send_timeout", SCOPES, Takes::ONE, |s, c| s.common.attempts.send_timeout.msec(c)),
        D::scope("proxy_read_timeout", SCOPES, Takes::ONE, |s, c| s.common.attempts.read_timeout.msec(c)),
        D::scope("proxy_next_upstream", SCOPES, Takes::ONE_MORE, |s, c| {
            s.common.attempts.add_next_upstream(&FAILURES, c)
        }),
        D::scope("proxy_next_upstream_tries", SCOPES, Takes::ONE, |s, c| {
            s.common.attempts.next_tries.number(c)
        }),
        D::scope("proxy_next_upstream_timeout", SCOPES, Takes::ONE, |s, c| {
            s.common.attempts.next_timeout.msec(c)
        }),
        D::scope("proxy_intercept_errors", SCOPES, Takes::FLAG, |s, c| s.common.intercept_errors.flag(c)),
        D::scope("proxy_ignore_client_abort", SCOPES, Takes::FLAG, |s, c| {
            s.common.ignore_client_abort.flag(c)
        }),
        D::scope("proxy_socket_keepalive", SCOPES, Takes::FLAG, |s, c| {
            s.common.attempts.socket_keepalive.flag(c)
        }),
        D::scope("proxy_socket_rcvbuf", SCOPES, Takes::ONE, |s, c| s.common.attempts.socket_rcvbuf.size(c)),
        D::scope("proxy_socket_sndbuf", SCOPES, Takes::ONE, |s, c| s.common.attempts.socket_sndbuf.size(c)),
        D::scope("proxy_buffer_size", SCOPES, Takes::ONE, |s, c| s.common.buffers.head.size(c)),
        D::scope("proxy_buffering", SCOPES, Takes::FLAG, |s, c| s.common.buffers.on.flag(c)),
        D::scope("proxy_buffers", SCOPES, Takes::TWO, |s, c| {
            s.common.buffers.body.put_with(c, |c| c.buffers())
        }),
        D::scope("proxy_busy_buffers_size", SCOPES, Takes::ONE, |s, c| s.common.buffers.busy.size(c))
            .accepted("all that has come is offered to the client at once"),
        D::scope("proxy_max_temp_file_size", SCOPES, Takes::ONE, |s, c| {
            s.common.buffers.max_temp_file_size.size(c)
        }),
        D::scope("proxy_temp_file_write_size", SCOPES, Takes::ONE, |s, c| {
            s.common.buffers.temp_file_write_size.size(c)
        }),
        D::scope("proxy_temp_path", SCOPES, Takes::ONE_TO_FOUR, |s, c| {
            s.common.buffers.temp_path.put_with(c, weir_ir::http::core::temp_path)
        }),
        D::scope("proxy_limit_rate", SCOPES, Takes::ONE, |s, c| {
            s.common.buffers.limit_rate.put_with(c, weir_ir::http::core::size_template)
        }),
        D::scope("proxy_store", SCOPES, Takes::ONE, |s, c| s.common.store(NAMES, c)),
        D::scope("proxy_store_access", SCOPES, Takes::ONE_TO_THREE, |s, c| {
            s.common.buffers.store_access.put_with(c, dav::access)
        }),
        D::scope("proxy_send_lowat", SCOPES, Takes::ONE, |s, c| {
            s.common.once.size(c)?;
            c.warn("\"proxy_send_lowat\" is not supported, ignored");
            Ok(())
        })
        .accepted("it has no effect on Linux"),
        D::scope("proxy_headers_hash_max_size", SCOPES, Takes::ONE, |s, c| s.common.once.number(c))
            .accepted("weir's tables size themselves"),
        D::scope("proxy_headers_hash_bucket_size", SCOPES, Takes::ONE, |s, c| s.common.once.number(c))
            .accepted("weir's tables size themselves"),
        D::main("proxy_cache_path", Contexts::HTTP, Takes::TWO_MORE, |paths, c| paths.add(Proxy::NAME, c)),
        D::scope("proxy_cache", SCOPES, Takes::ONE, |s, c| s.common.cache_zone(NAMES, c)),
        D::scope("proxy_cache_key", SCOPES, Takes::ONE, |s, c| {
            s.common.cache.key.put_with(c, |c| c.template(0))
        }),
        D::scope("proxy_cache_valid", SCOPES, Takes::ONE_MORE, |s, c| s.common.cache.add_valid(c)),
        D::scope("proxy_cache_min_uses", SCOPES, Takes::ONE, |s, c| s.common.cache.min_uses.number(c)),
        D::scope("proxy_cache_max_range_offset", SCOPES, Takes::ONE, |s, c| {
            s.common.cache.max_range_offset.offset(c)
        }),
        D::scope("proxy_cache_use_stale", SCOPES, Takes::ONE_MORE, |s, c| {
            s.common.cache.add_use_stale(&FAILURES, c)
        }),
        D::scope("proxy_cache_methods", SCOPES, Takes::ONE_MORE, |s, c| s.common.cache.add_methods(c)),
        D::scope("proxy_cache_bypass", SCOPES, Takes::ONE_MORE, |s, c| s.common.cache.add_bypass(c)),
        D::scope("proxy_cache_purge", SCOPES, Takes::ONE_MORE, |s, c| s.common.cache.add_purge(c)),
        D::scope("proxy_no_cache", SCOPES, Takes::ONE_MORE, |s, c| s.common.cache.add_no_cache(c)),
        D::scope("proxy_cache_lock", SCOPES, Takes::FLAG, |s, c| s.common.cache.lock.flag(c)),
        D::scope("proxy_cache_lock_timeout", SCOPES, Takes::ONE, |s, c| s.common.cache.lock_timeout.msec(c)),
        D::scope("proxy_cache_lock_age", SCOPES, Takes::ONE, |s, c| s.common.cache.lock_age.msec(c)),
        D::scope("proxy_cache_revalidate", SCOPES, Takes::FLAG, |s, c| s.common.cache.revalidate.flag(c)),
        D::scope("proxy_cache_convert_head", SCOPES, Takes::FLAG, |s, c| s.common.cache.convert_head.flag(c)),
        D::scope("proxy_cache_background_update", SCOPES, Takes::FLAG, |s, c| {
            s.common.cache.background_update.flag(c)
        }),
        D::scope("proxy_ignore_headers", SCOPES, Takes::ONE_MORE, |s, c| s.common.cache.add_ignored(c)),
        D::scope("proxy_force_ranges", SCOPES, Takes::FLAG, |s, c| s.common.force_ranges.flag(c)),
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

const NAMES: Names = Names { module: Proxy::NAME, prefix: "proxy" };

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
    common: Common,
    redirects: Setting<Vec<Redirect>>,
    cookie_domains: Setting<Vec<cookie::Replace>>,
    cookie_paths: Setting<Vec<cookie::Replace>>,
    cookie_flags: Setting<Vec<cookie::Flags>>,
    set_headers: Vec<(Box<[u8]>, weir_ir::Template)>,
    set_body: Setting<weir_ir::Template>,
    method: Setting<weir_ir::Template>,
    http_version: Setting<HttpVersion>,
    pass_trailers: Setting<bool>,
    ssl: ssl::Ssl,
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

/// Headers that are hidden unless `proxy_pass_header` names them.
const HIDDEN: [&str; 8] = [
    "date",
    "server",
    "x-pad",
    "x-accel-expires",
    "x-accel-redirect",
    "x-accel-limit-rate",
    "x-accel-buffering",
    "x-accel-charset",
];

impl Conf for Passing {
    const EVERY_LEVEL: bool = true;

    fn inherit(&mut self, outer: &Self, merge: &mut Merge<'_>) -> Result<(), Fault> {
        macro_rules! settings {
            ($($field:ident),* $(,)?) => { $(self.$field.inherit(&outer.$field);)* };
        }
        settings!(
            redirects,
            cookie_domains,
            cookie_paths,
            cookie_flags,
            set_body,
            method,
            http_version,
            pass_trailers
        );
        if self.set_headers.is_empty() {
            self.set_headers.clone_from(&outer.set_headers);
        }
        // Blocks without a name of their own pass where their location does.
        if self.pass.is_none() && matches!(merge.kind(), ScopeKind::If | ScopeKind::LimitExcept) {
            self.pass.clone_from(&outer.pass);
        }
        let paths = merge.main_of::<Proxy>().clone();
        self.common.inherit(&outer.common, NAMES, &paths, merge)?;
        if self.pass.is_some() {
            self.common.buffers.make_temp_path("proxy_temp", merge)?;
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
        let tls = self.ssl.compile(plan);
        let version = self.http_version.or(HttpVersion::Http11);
        let http2 = version == HttpVersion::Http2;
        // What a connection may bring of heads is told when it is opened.
        let head = http2.then(|| self.common.buffers.head());
        let opened_by = (tls.as_ref().map(|tls| tls.client.identity()), head);
        Settings {
            wire: if http2 { Wire::Http2 } else { Wire::Http1 },
            chunks: version != HttpVersion::Http10,
            pass_trailers: self.pass_trailers.or(false).then(|| Arc::clone(hidden)),
            pass_early_hints: Some(Arc::clone(hidden)),
            tls,
            ..self.common.settings(NAMES, opened_by, plan)
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
        let hidden = Arc::new(response::hidden(&passing.common, &HIDDEN));
        let handler = Handler {
            request: request::Rules::compile(passing, plan),
            settings: passing.settings(&hidden, plan),
            rewrites: Rewrites::compile(passing, plan),
            cookies: cookie::Rules::compile(
                &passing.cookie_domains,
                &passing.cookie_paths,
                &passing.cookie_flags,
                plan,
            ),
            response: response::Rules::compile(&passing.common, hidden),
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
    rewrites: Rewrites,
    cookies: Option<cookie::Rules>,
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

    /// Adds `Location`, `Refresh` or `Set-Cookie` as the client is to have it.
    fn place(&self, x: &Exchange, head: &Head, field: &Field, response: &mut Response) {
        let (name, value) = (head.get(field.name), head.get(field.value));
        if field.known == Known::SetCookie {
            return match self.cookies.as_ref().and_then(|rules| rules.apply(x, value)) {
                Some(changed) => response.headers.push_known(field.known, name, &changed),
                None => response.headers.copy(head, field),
            };
        }
        let way = self.way(x);
        match self.rewrites.apply(x, field.known, value, way.host, way.uri) {
            // A path that a rule made is a redirect within this server and is completed as our own are.
            Cow::Owned(path) if field.known == Known::Location && path.starts_with(b"/") => {
                response.location = Some(Cow::Owned(path));
            }
            // One that the upstream sent means what it means there.
            value => response.headers.push_known(field.known, name, &value),
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
        self.response.make(x, head, |x, field, response| self.place(x, head, field, response))
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
