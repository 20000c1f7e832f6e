//! `ngx_http_fastcgi_module`: passes requests to applications that speak FastCGI, PHP's above all.

mod params;
mod split;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use weir_engine::contract::{Install, Variable};
use weir_engine::generation::{Build, ContentHandler, Plan};
use weir_engine::http::{Exchange, Response, Template};
use weir_engine::http1::{Known, response::Head};
use weir_engine::upstream::exchange::{RequestLength, next};
use weir_engine::upstream::{Protocol, Settings, Target, Whom, Wire, Written};
use weir_ir::address::{self, Form};
use weir_ir::lowering::{Call, Fault, Merge};
use weir_ir::program::ScopeKind;
use weir_ir::{Conf, Contexts, Directive, Module, Regex, Setting, Takes};
use weir_syntax::{Diagnostic, Level};

use super::dav;
use super::passing::attempts::whom;
use super::passing::{Common, Names, cache, response};
use params::{Param, Params};

pub struct FastCgi;

type D = Directive<FastCgi>;

const SCOPES: Contexts = Contexts::SCOPES;
const PASS: Contexts = Contexts::LOCATION.or(Contexts::LOCATION_IF);

impl Module for FastCgi {
    const NAME: &'static str = "http_fastcgi";
    type Main = cache::Paths;
    type Scope = Passing;
    const DIRECTIVES: &'static [D] = &[
        D::scope("fastcgi_pass", PASS, Takes::ONE, pass),
        D::scope("fastcgi_index", SCOPES, Takes::ONE, |s, c| s.index.put(c, c.arg(0).into())),
        D::scope("fastcgi_split_path_info", SCOPES, Takes::ONE, split::read),
        D::scope("fastcgi_param", SCOPES, Takes::TWO_THREE, params::read),
        D::scope("fastcgi_keep_conn", SCOPES, Takes::FLAG, |s, c| s.keep_conn.flag(c)),
        D::scope("fastcgi_catch_stderr", SCOPES, Takes::ONE, |s, c| {
            s.catch_stderr.push(c.arg(0).into());
            Ok(())
        }),
        D::scope("fastcgi_bind", SCOPES, Takes::ONE_TWO, |s, c| s.common.attempts.bind(c)),
        D::scope("fastcgi_pass_request_headers", SCOPES, Takes::FLAG, |s, c| {
            s.common.pass_request_headers.flag(c)
        }),
        D::scope("fastcgi_pass_request_body", SCOPES, Takes::FLAG, |s, c| s.common.pass_request_body.flag(c)),
        D::scope("fastcgi_request_buffering", SCOPES, Takes::FLAG, |s, c| s.common.request_buffering.flag(c)),
        D::scope("fastcgi_pass_header", SCOPES, Takes::ONE, |s, c| s.common.pass_header(c)),
        D::scope("fastcgi_hide_header", SCOPES, Takes::ONE, |s, c| s.common.hide_header(c)),
        D::scope("fastcgi_connect_timeout", SCOPES, Takes::ONE, |s, c| {
            s.common.attempts.connect_timeout.msec(c)
        }),
        D::scope("fastcgi_send_timeout", SCOPES, Takes::ONE, |s, c| s.common.attempts.send_timeout.msec(c)),
        D::scope("fastcgi_read_timeout", SCOPES, Takes::ONE, |s, c| s.common.attempts.read_timeout.msec(c)),
        D::scope("fastcgi_next_upstream", SCOPES, Takes::ONE_MORE, |s, c| {
            s.common.attempts.add_next_upstream(&FAILURES, c)
        }),
        D::scope("fastcgi_next_upstream_tries", SCOPES, Takes::ONE, |s, c| {
            s.common.attempts.next_tries.number(c)
        }),
        D::scope("fastcgi_next_upstream_timeout", SCOPES, Takes::ONE, |s, c| {
            s.common.attempts.next_timeout.msec(c)
        }),
        D::scope("fastcgi_intercept_errors", SCOPES, Takes::FLAG, |s, c| s.common.intercept_errors.flag(c)),
        D::scope("fastcgi_ignore_client_abort", SCOPES, Takes::FLAG, |s, c| {
            s.common.ignore_client_abort.flag(c)
        }),
        D::scope("fastcgi_socket_keepalive", SCOPES, Takes::FLAG, |s, c| {
            s.common.attempts.socket_keepalive.flag(c)
        }),
        D::scope("fastcgi_socket_rcvbuf", SCOPES, Takes::ONE, |s, c| s.common.attempts.socket_rcvbuf.size(c)),
        D::scope("fastcgi_socket_sndbuf", SCOPES, Takes::ONE, |s, c| s.common.attempts.socket_sndbuf.size(c)),
        D::scope("fastcgi_buffer_size", SCOPES, Takes::ONE, |s, c| s.common.buffers.head.size(c)),
        D::scope("fastcgi_buffering", SCOPES, Takes::FLAG, |s, c| s.common.buffers.on.flag(c)),
        D::scope("fastcgi_buffers", SCOPES, Takes::TWO, |s, c| {
            s.common.buffers.body.put_with(c, |c| c.buffers())
        }),
        D::scope("fastcgi_busy_buffers_size", SCOPES, Takes::ONE, |s, c| s.common.buffers.busy.size(c))
            .accepted("all that has come is offered to the client at once"),
        D::scope("fastcgi_max_temp_file_size", SCOPES, Takes::ONE, |s, c| {
            s.common.buffers.max_temp_file_size.size(c)
        }),
        D::scope("fastcgi_temp_file_write_size", SCOPES, Takes::ONE, |s, c| {
            s.common.buffers.temp_file_write_size.size(c)
        }),
        D::scope("fastcgi_temp_path", SCOPES, Takes::ONE_TO_FOUR, |s, c| {
            s.common.buffers.temp_path.put_with(c, weir_ir::http::core::temp_path)
        }),
        D::scope("fastcgi_limit_rate", SCOPES, Takes::ONE, |s, c| {
            s.common.buffers.limit_rate.put_with(c, weir_ir::http::core::size_template)
        }),
        D::scope("fastcgi_store", SCOPES, Takes::ONE, |s, c| s.common.store(NAMES, c)),
        D::scope("fastcgi_store_access", SCOPES, Takes::ONE_TO_THREE, |s, c| {
            s.common.buffers.store_access.put_with(c, dav::access)
        }),
        D::scope("fastcgi_send_lowat", SCOPES, Takes::ONE, |s, c| {
            s.common.once.size(c)?;
            c.warn("\"fastcgi_send_lowat\" is not supported, ignored");
            Ok(())
        })
        .accepted("it has no effect on Linux"),
        D::main("fastcgi_cache_path", Contexts::HTTP, Takes::TWO_MORE, |paths, c| {
            paths.add(FastCgi::NAME, c)
        }),
        D::scope("fastcgi_cache", SCOPES, Takes::ONE, |s, c| s.common.cache_zone(NAMES, c)),
        D::scope("fastcgi_cache_key", SCOPES, Takes::ONE, |s, c| {
            s.common.cache.key.put_with(c, |c| c.template(0))
        }),
        D::scope("fastcgi_cache_valid", SCOPES, Takes::ONE_MORE, |s, c| s.common.cache.add_valid(c)),
        D::scope("fastcgi_cache_min_uses", SCOPES, Takes::ONE, |s, c| s.common.cache.min_uses.number(c)),
        D::scope("fastcgi_cache_max_range_offset", SCOPES, Takes::ONE, |s, c| {
            s.common.cache.max_range_offset.offset(c)
        }),
        D::scope("fastcgi_cache_use_stale", SCOPES, Takes::ONE_MORE, |s, c| {
            s.common.cache.add_use_stale(&FAILURES, c)
        }),
        D::scope("fastcgi_cache_methods", SCOPES, Takes::ONE_MORE, |s, c| s.common.cache.add_methods(c)),
        D::scope("fastcgi_cache_bypass", SCOPES, Takes::ONE_MORE, |s, c| s.common.cache.add_bypass(c)),
        D::scope("fastcgi_no_cache", SCOPES, Takes::ONE_MORE, |s, c| s.common.cache.add_no_cache(c)),
        D::scope("fastcgi_cache_lock", SCOPES, Takes::FLAG, |s, c| s.common.cache.lock.flag(c)),
        D::scope("fastcgi_cache_lock_timeout", SCOPES, Takes::ONE, |s, c| {
            s.common.cache.lock_timeout.msec(c)
        }),
        D::scope("fastcgi_cache_lock_age", SCOPES, Takes::ONE, |s, c| s.common.cache.lock_age.msec(c)),
        D::scope("fastcgi_cache_revalidate", SCOPES, Takes::FLAG, |s, c| s.common.cache.revalidate.flag(c)),
        D::scope("fastcgi_cache_background_update", SCOPES, Takes::FLAG, |s, c| {
            s.common.cache.background_update.flag(c)
        }),
        D::scope("fastcgi_ignore_headers", SCOPES, Takes::ONE_MORE, |s, c| s.common.cache.add_ignored(c)),
        D::scope("fastcgi_force_ranges", SCOPES, Takes::FLAG, |s, c| s.common.force_ranges.flag(c)),
    ];
}

const NAMES: Names = Names { module: FastCgi::NAME, prefix: "fastcgi" };

const SCHEME: &str = "fastcgi://";

/// Of `fastcgi_next_upstream` and `fastcgi_cache_use_stale`.
const FAILURES: [(&str, u32); 11] = [
    ("error", next::ERROR),
    ("timeout", next::TIMEOUT),
    ("invalid_header", next::INVALID_HEADER),
    ("non_idempotent", next::NON_IDEMPOTENT),
    ("http_500", next::HTTP_500),
    ("http_503", next::HTTP_503),
    ("http_403", next::HTTP_403),
    ("http_404", next::HTTP_404),
    ("http_429", next::HTTP_429),
    ("updating", next::UPDATING),
    ("off", next::OFF),
];

/// Headers that are hidden unless `fastcgi_pass_header` names them.
const HIDDEN: [&str; 6] = [
    "status",
    "x-accel-expires",
    "x-accel-redirect",
    "x-accel-limit-rate",
    "x-accel-buffering",
    "x-accel-charset",
];

/// Where `fastcgi_pass` leads.
#[derive(Clone, Debug)]
struct Pass {
    to: Whither,
    defaults: params::Defaults,
}

#[derive(Clone, Debug)]
enum Whither {
    /// An upstream known at load.
    Known(usize),
    Computed(weir_ir::Template),
}

/// The module's settings at one level.
#[derive(Clone, Debug, Default)]
pub struct Passing {
    pass: Option<Pass>,
    common: Common,
    index: Setting<Box<[u8]>>,
    split: Setting<Regex>,
    params: Vec<Param>,
    keep_conn: Setting<bool>,
    catch_stderr: Vec<Box<[u8]>>,
}

impl Conf for Passing {
    const EVERY_LEVEL: bool = true;

    fn inherit(&mut self, outer: &Self, merge: &mut Merge<'_>) -> Result<(), Fault> {
        self.index.inherit(&outer.index);
        self.split.inherit(&outer.split);
        self.keep_conn.inherit(&outer.keep_conn);
        // Lists are taken over whole or not at all.
        if self.params.is_empty() {
            self.params.clone_from(&outer.params);
        }
        if self.catch_stderr.is_empty() {
            self.catch_stderr.clone_from(&outer.catch_stderr);
        }
        // Its block has no name of its own and passes where its location does; an `if` goes on with all of that anyway.
        if self.pass.is_none() && matches!(merge.kind(), ScopeKind::LimitExcept) {
            self.pass.clone_from(&outer.pass);
        }
        let paths = merge.main_of::<FastCgi>().clone();
        self.common.inherit(&outer.common, NAMES, &paths, merge)?;
        if self.common.cache.is_on() && !self.common.cache.key.is_set() {
            merge.warn("no \"fastcgi_cache_key\" for \"fastcgi_cache\"");
        }
        if self.pass.is_some() {
            self.common.buffers.make_temp_path("fastcgi_temp", merge)?;
        }
        Ok(())
    }
}

fn pass(passing: &mut Passing, call: &mut Call<'_>) -> Result<(), Fault> {
    if passing.pass.is_some() {
        return Err(call.duplicate());
    }
    let to = if memchr::memchr(b'$', call.arg(0)).is_some() {
        Whither::Computed(call.template(0)?)
    } else {
        let authority =
            address::parse(call.arg(0), Form { listen: false, uri: false }).map_err(|reason| {
                let shown = call.text(0);
                call.under(call.fail(format!("{reason} in upstream \"{shown}\"")), 0)
            })?;
        Whither::Known(call.upstream_of(&authority, 0)?)
    };
    passing.pass = Some(Pass { to, defaults: params::Defaults::read(call)? });
    Ok(())
}

impl Install for FastCgi {
    const VARIABLES: &'static [Variable] = &[
        Variable::new("fastcgi_script_name", split::script_name),
        Variable::new("fastcgi_path_info", split::path_info),
    ];

    fn prepare(paths: &cache::Paths, build: &mut Build<'_>) -> Result<(), Diagnostic> {
        paths.prepare(build)
    }

    fn install(passing: &Passing, plan: &mut Plan<'_, '_>) -> Result<(), Diagnostic> {
        // The variables may be asked for wherever a request is.
        split::attach(passing, plan);
        let Some(Pass { to, defaults }) = &passing.pass else { return Ok(()) };
        let to = match to {
            Whither::Known(upstream) => {
                let group = plan.build.upstream(*upstream);
                To::Known(Target { group, scheme: SCHEME, tls: false })
            }
            Whither::Computed(template) => To::Computed(plan.template(template)),
        };
        let common = &passing.common;
        let keep = passing.keep_conn.or(false);
        let hidden = Arc::new(response::hidden(common, &HIDDEN));
        let params = |defaults| Params::compile(&passing.params, defaults, plan);
        let handler = Handler {
            to,
            params: params(&defaults.usual),
            cached_params: common.cache.is_on().then(|| params(&defaults.cached)),
            pass_headers: common.pass_request_headers.or(true),
            keep,
            response: response::Rules::compile(common, hidden),
            settings: Settings {
                wire: Wire::FastCgi { keep, catch_stderr: passing.catch_stderr.clone().into() },
                // A body needs no length: the end of it is a record.
                chunks: true,
                ..common.settings(NAMES, (), plan)
            },
        };
        if let ScopeKind::Location(pattern) = plan.kind() {
            plan.handlers.auto_redirect = pattern.name().ends_with(b"/");
        }
        plan.handlers.handler = Some(ContentHandler::Upstream(Arc::new(handler)));
        Ok(())
    }
}

/// Where a location's requests go.
enum To {
    Known(Target),
    Computed(Template),
}

struct Handler {
    to: To,
    params: Params,
    /// Those of requests whose answers may be kept.
    cached_params: Option<Params>,
    pass_headers: bool,
    keep: bool,
    response: response::Rules,
    settings: Settings,
}

impl Protocol for Handler {
    fn settings(&self) -> &Settings {
        &self.settings
    }

    fn target(&self, x: &mut Exchange) -> Result<Whom, u16> {
        let template = match &self.to {
            To::Known(target) => return Ok(Whom::Known(target.clone())),
            To::Computed(template) => template,
        };
        let text = template.value(x);
        let authority = address::parse(&text, Form { listen: false, uri: false }).map_err(|reason| {
            let text = String::from_utf8_lossy(&text);
            x.log(Level::Error, format_args!("{reason} in upstream \"{text}\""));
            500_u16
        })?;
        whom(x, authority, SCHEME)
    }

    fn known(&self) -> Option<&Target> {
        if let To::Known(target) = &self.to { Some(target) } else { None }
    }

    fn request(&self, x: &mut Exchange, _: RequestLength, out: &mut Vec<u8>) -> Result<Written, u16> {
        let params = self.cached_params.as_ref().filter(|_| x.is_cacheable()).unwrap_or(&self.params);
        params.write(x, self.keep, self.pass_headers, out)?;
        Ok(Written { uri: 0..0, to_head: false })
    }

    /// What `fastcgi_cache_key` does not say is nothing.
    fn cache_key(&self, _: &mut Exchange, _: &'static str, _: &mut Vec<u8>) {}

    fn response(&self, x: &mut Exchange, head: &Head) -> Box<Response> {
        let mut response =
            self.response.make(x, head, |_, field, response| response.headers.copy(head, field));
        // Of what the application says nothing of, weir does.
        response.date_given &= head.first(Known::Date).is_some();
        response.server_given &= head.first(Known::Server).is_some();
        response
    }

    fn redirect(&self, x: &mut Exchange, head: &Head) -> Option<Vec<u8>> {
        self.response.redirect(x, head)
    }
}
