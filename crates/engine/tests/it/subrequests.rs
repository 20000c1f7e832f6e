//! Subrequests make subrequests, up to a bound.

use std::sync::Arc;

use weir_engine::contract::{AnyInstall, Content, Flow, Install, Step};
use weir_engine::generation::{ContentHandler, Plan};
use weir_engine::http::subrequest::{Chain, Included};
use weir_engine::http::{Body, Exchange, Response};
use weir_ir::contract::{Contexts, Directive, Module, Takes};
use weir_syntax::Diagnostic;
use weir_testkit::{Client, Modules, Site};

/// `nest;` asks for its own path again: `?ask` waits for the answer, else it is sent behind a byte.
struct Nest;

impl Module for Nest {
    const NAME: &'static str = "nest";
    type Main = ();
    type Scope = ();
    const DIRECTIVES: &'static [Directive<Self>] =
        &[Directive::<Nest>::scope("nest", Contexts::LOCATION, Takes::NONE, |(), _| Ok(()))];
}

impl Install for Nest {
    fn install((): &(), plan: &mut Plan<'_, '_>) -> Result<(), Diagnostic> {
        plan.handlers.handler = Some(ContentHandler::Content(Arc::new(Nest)));
        Ok(())
    }
}

impl Content for Nest {
    fn respond<'a>(&'a self, x: &'a mut Exchange) -> Step<'a> {
        let part = match x.subrequest(&x.uri, &x.args) {
            Ok(part) => part,
            Err(code) => return Step::Now(Flow::Answer(code)),
        };
        if x.args == b"ask" {
            return Step::Later(Box::pin(async move {
                // The deepest, which can ask nobody, says 500; those above count from there.
                let status = x.ask(part, |_, answer| answer.status()).await;
                let status = if status == 500 { 200 } else { status + 1 };
                Flow::Respond(Box::new(Response::with_body(status, &b"text/plain"[..], &b"x"[..])))
            }));
        }
        let own = Body::Bytes(b"x"[..].into()).into_source();
        let body = Body::Stream(Box::new(Chain::new(vec![own, Box::new(Included::new(part))])));
        Step::Now(Flow::Respond(Box::new(Response { body, ..Response::new(200) })))
    }
}

const HTTP: &[&dyn AnyInstall] = &[&Nest];

#[test]
fn nesting_has_a_bound() {
    let http = "server { listen {listen}; location / { nest; } }";
    let site = Site::start(Modules { http: HTTP, upstream: &[] }, http, &[]);
    let ask = |args: &str| {
        let mut client = Client::connect(site.address());
        client.send(format!("GET /?{args} HTTP/1.0\r\n\r\n"));
        client.last_words()
    };
    let asked = ask("ask");
    assert!(asked.starts_with("HTTP/1.1 250 "), "{asked}");
    let included = ask("include");
    let (_, body) = included.split_once("\r\n\r\n").expect("a head");
    assert_eq!(body.find('<'), Some(51), "{body}");
    assert!(body.contains("500 Internal Server Error"), "{body}");
}
