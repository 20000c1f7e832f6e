//! `ngx_http_tunnel_module`: passes what clients send behind a CONNECT to the host that they name, or to one that is given.

use std::sync::Arc;

use weir_engine::contract::Install;
use weir_engine::generation::{ContentHandler, Plan};
use weir_engine::http::{Exchange, Response, Template};
use weir_engine::http1::{Method, response::Head};
use weir_engine::upstream::exchange::{RequestLength, next};
use weir_engine::upstream::{Protocol, RequestHead, Settings, Target, Upstream, Whom, Written};
use weir_ir::address::{self, Form};
use weir_ir::lowering::{Call, Fault, Merge};
use weir_ir::program::ScopeKind;
use weir_ir::{Conf, Contexts, Directive, Module, Once, Takes};
use weir_syntax::{Diagnostic, Level};

use super::passing::attempts::{Attempts, whom};

pub struct Tunnel;

type D = Directive<Tunnel>;

const SCOPES: Contexts = Contexts::SCOPES;
const PASS: Contexts = Contexts::SERVER.or(Contexts::LOCATION).or(Contexts::LOCATION_IF);

impl Module for Tunnel {
    const NAME: &'static str = "http_tunnel";
    type Main = ();
    type Scope = Passing;
    const DIRECTIVES: &'static [D] = &[
        D::scope("tunnel_pass", PASS, Takes::of(0, 1), pass),
        D::scope("tunnel_bind", SCOPES, Takes::ONE_TWO, |s, c| s.attempts.bind(c)),
        D::scope("tunnel_socket_keepalive", SCOPES, Takes::FLAG, |s, c| s.attempts.socket_keepalive.flag(c)),
        D::scope("tunnel_socket_rcvbuf", SCOPES, Takes::ONE, |s, c| s.attempts.socket_rcvbuf.size(c)),
        D::scope("tunnel_socket_sndbuf", SCOPES, Takes::ONE, |s, c| s.attempts.socket_sndbuf.size(c)),
        D::scope("tunnel_connect_timeout", SCOPES, Takes::ONE, |s, c| s.attempts.connect_timeout.msec(c)),
        D::scope("tunnel_send_timeout", SCOPES, Takes::ONE, |s, c| s.attempts.send_timeout.msec(c)),
        D::scope("tunnel_send_lowat", SCOPES, Takes::ONE, |s, c| {
            s.once.size(c)?;
            c.warn("\"tunnel_send_lowat\" is not supported, ignored");
            Ok(())
        })
        .accepted("it has no effect on Linux"),
        D::scope("tunnel_buffer_size", SCOPES, Takes::ONE, |s, c| s.once.size(c))
            .accepted("tunnels copy through memory of their thread"),
        D::scope("tunnel_read_timeout", SCOPES, Takes::ONE, |s, c| s.attempts.read_timeout.msec(c)),
        D::scope("tunnel_next_upstream", SCOPES, Takes::ONE_MORE, |s, c| {
            s.attempts.add_next_upstream(&FAILURES, c)
        }),
        D::scope("tunnel_next_upstream_tries", SCOPES, Takes::ONE, |s, c| s.attempts.next_tries.number(c)),
        D::scope("tunnel_next_upstream_timeout", SCOPES, Takes::ONE, |s, c| s.attempts.next_timeout.msec(c)),
    ];
}

/// Where `tunnel_pass` leads.
#[derive(Clone, Debug)]
enum Pass {
    /// An upstream known at load.
    Known(usize),
    Computed(weir_ir::Template),
}

/// The module's settings at one level.
#[derive(Clone, Debug, Default)]
pub struct Passing {
    pass: Option<Pass>,
    attempts: Attempts,
    once: Once,
}

/// Of `tunnel_next_upstream`.
const FAILURES: [(&str, u32); 3] = [("error", next::ERROR), ("timeout", next::TIMEOUT), ("off", next::OFF)];

impl Conf for Passing {
    const EVERY_LEVEL: bool = true;

    fn inherit(&mut self, outer: &Self, merge: &mut Merge<'_>) -> Result<(), Fault> {
        self.attempts.inherit(&outer.attempts);
        // Blocks without a name of their own pass where their location does.
        if self.pass.is_none() && matches!(merge.kind(), ScopeKind::If | ScopeKind::LimitExcept) {
            self.pass.clone_from(&outer.pass);
        }
        Ok(())
    }
}

fn pass(passing: &mut Passing, call: &mut Call<'_>) -> Result<(), Fault> {
    if passing.pass.is_some() {
        return Err(call.duplicate());
    }
    call.allow_connect();
    if call.args().is_empty() {
        passing.pass = Some(Pass::Computed(weir_ir::Template::parse(b"$host:$request_port", call)?));
        return Ok(());
    }
    if memchr::memchr(b'$', call.arg(0)).is_some() {
        passing.pass = Some(Pass::Computed(call.template(0)?));
        return Ok(());
    }
    let authority = address::parse(call.arg(0), Form { listen: false, uri: false }).map_err(|reason| {
        let shown = call.text(0);
        call.under(call.fail(format!("{reason} in upstream \"{shown}\"")), 0)
    })?;
    passing.pass = Some(Pass::Known(call.upstream_of(&authority, 0)?));
    Ok(())
}

impl Install for Tunnel {
    fn install(passing: &Passing, plan: &mut Plan<'_, '_>) -> Result<(), Diagnostic> {
        let Some(pass) = &passing.pass else { return Ok(()) };
        let settings = Settings { tunnels_with: Some(200), ..passing.attempts.settings(plan) };
        let to = match pass {
            Pass::Known(upstream) => To::Known(plan.build.upstream(*upstream)),
            Pass::Computed(template) => To::Computed(plan.template(template)),
        };
        plan.handlers.handler = Some(ContentHandler::Upstream(Arc::new(Handler { to, settings })));
        Ok(())
    }
}

/// Where a location's requests go.
enum To {
    Known(Arc<Upstream>),
    Computed(Template),
}

struct Handler {
    to: To,
    settings: Settings,
}

fn target(group: Arc<Upstream>) -> Target {
    Target { group, scheme: "", tls: false }
}

impl Protocol for Handler {
    fn settings(&self) -> &Settings {
        &self.settings
    }

    fn target(&self, x: &mut Exchange) -> Result<Whom, u16> {
        if x.method != Method::Connect {
            return Err(405);
        }
        x.keepalive = false;
        let template = match &self.to {
            To::Known(group) => return Ok(Whom::Known(target(Arc::clone(group)))),
            To::Computed(template) => template,
        };
        let text = template.value(x);
        let authority = address::parse(&text, Form { listen: false, uri: false }).map_err(|reason| {
            let text = String::from_utf8_lossy(&text);
            x.log(Level::Info, format_args!("{reason} in upstream \"{text}\""));
            500_u16
        })?;
        whom(x, authority, "")
    }

    /// None: what the client sends is for whom it is connected to.
    fn request(&self, _: &mut Exchange, _: RequestLength, _: &mut Vec<u8>) -> Result<Written, u16> {
        Ok(Written { uri: 0..0, to_head: false })
    }

    /// It has no settings for HTTP/2.
    fn request_head(&self, _: &mut Exchange, _: RequestLength, _: &mut Vec<u8>) -> Result<RequestHead, u16> {
        Err(500)
    }

    fn cache_key(&self, _: &mut Exchange, _: &'static str, _: &mut Vec<u8>) {}

    fn response(&self, x: &mut Exchange, head: &Head) -> Box<Response> {
        x.new_response(head.status())
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{Site, check_conf, code};

    #[test]
    fn messages() {
        check_conf(
            "upstream u { server 127.0.0.1:1; } server { tunnel_pass u; location / { tunnel_pass; } }",
            "",
        );
        check_conf("server { location / { if ($host) { tunnel_pass $host:1; } } }", "");
        for (conf, message) in [
            ("tunnel_pass; tunnel_pass 127.0.0.1:1;", "\"tunnel_pass\" directive is duplicate"),
            ("tunnel_pass 127.0.0.1:0;", "invalid port in upstream \"127.0.0.1:0\""),
            ("tunnel_pass 127.0.0.1:1/a;", "invalid host in upstream \"127.0.0.1:1/a\""),
            ("tunnel_pass 127.0.0.1;", "no port in upstream \"127.0.0.1\" in /conf/nginx.conf:1"),
            ("tunnel_pass $nothing:1;", "unknown \"nothing\" variable"),
            ("tunnel_next_upstream http_500;", "invalid value \"http_500\""),
            ("tunnel_send_lowat 1;", "\"tunnel_send_lowat\" is not supported, ignored"),
            ("tunnel_read_timeout a;", "\"tunnel_read_timeout\" directive invalid value"),
        ] {
            check_conf(&format!("server {{ {conf} }}"), message);
        }
    }

    #[test]
    fn who_is_let_through() {
        let site = Site::new(
            "server { server_name a; location / { tunnel_pass 127.0.0.1:1; } location /x { return 204; } }
             server { server_name b; }
             server { server_name c; tunnel_pass $arg_none; }
             server { server_name d; tunnel_pass name.example; }
             upstream name.example { server 127.0.0.1:1; }",
        );
        let ask = |host: &str| {
            code(&site.raw(format!("CONNECT {host}:9 HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes()))
                .to_owned()
        };
        assert_eq!(ask("a"), "502");
        assert_eq!(ask("b"), "405");
        assert_eq!(ask("c"), "500");
        assert_eq!(ask("d"), "502");
        assert_eq!(code(&site.get("/", "")), "405");
        assert_eq!(code(&site.get("/x", "")), "204");
        let log = site.log();
        assert!(
            log.contains(&"client sent CONNECT method while reading client request headers".to_owned()),
            "{log:?}"
        );
        assert!(log.contains(&"no host in upstream \"\"".to_owned()), "{log:?}");
    }
}
