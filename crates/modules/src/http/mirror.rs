//! `ngx_http_mirror_module`: requests are sent to other locations too, whose answers nobody sees.

use weir_engine::contract::{Check, Flow, Install, Step};
use weir_engine::generation::Plan;
use weir_engine::http::Exchange;
use weir_ir::contract::{Conf, Contexts, Directive, Module, Setting, Takes};
use weir_ir::{Call, Fault, Merge};
use weir_syntax::Diagnostic;

pub struct Mirror;

type D = Directive<Mirror>;

impl Module for Mirror {
    const NAME: &'static str = "http_mirror";
    type Main = ();
    type Scope = Mirrors;
    const DIRECTIVES: &'static [Directive<Self>] = &[
        D::scope("mirror", Contexts::SCOPES, Takes::ONE, Mirrors::add),
        D::scope("mirror_request_body", Contexts::SCOPES, Takes::FLAG, |s, call| s.request_body.flag(call)),
    ];
}

/// Where the requests of a level go too.
#[derive(Clone, Debug, Default)]
pub struct Mirrors {
    /// None are `off`.
    uris: Setting<Vec<Box<[u8]>>>,
    request_body: Setting<bool>,
}

impl Mirrors {
    fn add(&mut self, call: &mut Call<'_>) -> Result<(), Fault> {
        let uri = call.arg(0);
        match self.uris.get() {
            None if uri == b"off" => self.uris.replace(vec![]),
            None => self.uris.replace(vec![uri.into()]),
            Some(uris) if uri == b"off" || uris.is_empty() => return Err(call.duplicate()),
            Some(uris) => {
                let more = [uris.as_slice(), &[uri.into()]].concat();
                self.uris.replace(more);
            }
        }
        Ok(())
    }
}

impl Conf for Mirrors {
    fn inherit(&mut self, outer: &Self, _: &mut Merge<'_>) -> Result<(), Fault> {
        self.uris.inherit(&outer.uris);
        self.request_body.inherit(&outer.request_body);
        Ok(())
    }
}

impl Install for Mirror {
    fn install(mirrors: &Mirrors, plan: &mut Plan<'_, '_>) -> Result<(), Diagnostic> {
        let uris = mirrors.uris.or(vec![]);
        if !uris.is_empty() {
            let request_body = mirrors.request_body.or(true);
            plan.handlers.precontent.push(Box::new(Mirroring { uris, request_body }));
        }
        Ok(())
    }
}

struct Mirroring {
    uris: Vec<Box<[u8]>>,
    /// The body is read first, so that all have it.
    request_body: bool,
}

impl Check for Mirroring {
    fn check<'a>(&'a self, x: &'a mut Exchange) -> Step<'a> {
        if x.is_subrequest() {
            return Step::Now(Flow::Decline);
        }
        if !self.request_body || !x.body.exists() {
            return Step::Now(self.mirror(x));
        }
        Step::Later(Box::pin(async move {
            match x.read_body().await {
                Ok(()) => self.mirror(x),
                Err(error) => Flow::Answer(error.0),
            }
        }))
    }
}

impl Mirroring {
    fn mirror(&self, x: &mut Exchange) -> Flow {
        for uri in &self.uris {
            match x.subrequest(uri, &x.args) {
                Ok(mut part) => {
                    part.with_method_of(x);
                    x.spawn(part);
                }
                Err(code) => return Flow::Answer(code),
            }
        }
        Flow::Decline
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{Site, check_conf};

    #[test]
    fn messages() {
        let refused = |words: &str, message: &str| check_conf(&format!("server {{ {words} }}"), message);
        refused("mirror off; mirror /a;", "\"mirror\" directive is duplicate");
        refused("mirror /a; mirror off;", "\"mirror\" directive is duplicate");
        refused("mirror off; mirror off;", "\"mirror\" directive is duplicate");
        refused(
            "mirror_request_body on; mirror_request_body on;",
            "\"mirror_request_body\" directive is duplicate",
        );
        refused(
            "mirror_request_body 1;",
            "invalid value \"1\" in \"mirror_request_body\" directive, it must be \"on\" or \"off\"",
        );
        refused("mirror /a; mirror /b; location / { mirror off; }", "");
    }

    #[test]
    fn others_are_asked_too() {
        let site = Site::new(
            "log_format m \"$uri $args $request_method $request_uri $request_body $status\"; server { mirror /m/1; \
             location / { answer 200 text/plain own; } location /off { mirror off; answer 200 text/plain own; } \
             location /bare { mirror /m/3; mirror_request_body off; answer 200 text/plain own; } \
             location /m/ { internal; mirror /m/2; log_subrequest on; access_log %DIR%/m.log m; \
             answer 202 text/plain unseen; } }",
        );
        assert_eq!(site.short("/a?b"), "200 own");
        assert_eq!(site.read("m.log"), "/m/1 b GET /a?b - 202\n");
        assert_eq!(site.short("/off?c"), "200 own");
        let post = |path: &str| {
            let request = format!(
                "POST {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 4\r\n\r\nbody"
            );
            assert!(site.raw(request.as_bytes()).ends_with("own"));
        };
        post("/p");
        post("/bare");
        let lines = "/m/1 b GET /a?b - 202\n/m/1 - POST /p body 202\n/m/3 - POST /bare - 202\n";
        assert_eq!(site.read("m.log"), lines);
    }
}
