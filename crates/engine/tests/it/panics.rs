//! A panic in a module ends the connection whose request it was handling, and nothing else.

use std::sync::Arc;

use weir_engine::contract::{AnyInstall, Check, Content, Flow, Install, Step};
use weir_engine::generation::{ContentHandler, Plan};
use weir_engine::http::{Exchange, Response};
use weir_ir::contract::{Conf, Contexts, Directive, Module, Takes};
use weir_ir::{Call, Fault, Merge};
use weir_syntax::Diagnostic;
use weir_testkit::{Client, Modules, Site};

/// `probe at_once|waiting|access|filter;` panics there, `probe never;` answers.
struct Probe;

type D = Directive<Probe>;

#[derive(Clone, Debug, Default)]
struct Where(String);

impl Conf for Where {
    fn inherit(&mut self, _: &Self, _: &mut Merge<'_>) -> Result<(), Fault> {
        Ok(())
    }
}

fn probe(conf: &mut Where, call: &mut Call<'_>) -> Result<(), Fault> {
    conf.0 = call.text(0);
    Ok(())
}

impl Module for Probe {
    const NAME: &'static str = "probe";
    type Main = ();
    type Scope = Where;
    const DIRECTIVES: &'static [Directive<Self>] =
        &[D::scope("probe", Contexts::LOCATION, Takes::ONE, probe)];
}

impl Install for Probe {
    fn install(conf: &Where, plan: &mut Plan<'_, '_>) -> Result<(), Diagnostic> {
        if conf.0 == "access" {
            plan.handlers.access.push(Box::new(Panics));
        }
        let answers = Answers { waiting: conf.0 == "waiting", at_once: conf.0 == "at_once" };
        plan.handlers.handler = Some(ContentHandler::Content(Arc::new(answers)));
        Ok(())
    }
}

struct Panics;

impl Check for Panics {
    fn check<'a>(&'a self, _: &'a mut Exchange) -> Step<'a> {
        panic!("a test's own panic in a check");
    }
}

struct Answers {
    waiting: bool,
    at_once: bool,
}

impl Content for Answers {
    fn respond<'a>(&'a self, _: &'a mut Exchange) -> Step<'a> {
        assert!(!self.at_once, "a test's own panic in a handler");
        let answer = || Flow::Respond(Box::new(Response::with_body(200, &b"text/plain"[..], &b"fine"[..])));
        if !self.waiting {
            return Step::Now(answer());
        }
        Step::Later(Box::pin(async move {
            tokio::task::yield_now().await;
            panic!("a test's own panic after waiting");
        }))
    }
}

const HTTP: &[&dyn AnyInstall] = &[&Probe];

#[test]
fn a_panic_ends_its_own_connection_alone() {
    let http = "server {
        listen {listen};
        location / { probe never; }
        location /at_once { probe at_once; }
        location /waiting { probe waiting; }
        location /access { probe access; }
    }";
    let site = Site::start(Modules { http: HTTP, upstream: &[] }, http, &[]);
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: a.example\r\n\r\n");
    let mut bystander = Client::connect(site.address());
    assert_eq!(bystander.ask(get("/")).text(), "fine");
    for path in ["/at_once", "/waiting", "/access"] {
        for _ in 0..3 {
            let mut client = Client::connect(site.address());
            assert_eq!(client.ask(get("/")).text(), "fine");
            client.send(get(path)).closed();
            // The same thread, which has no other, goes on with those who were there and with new ones.
            assert_eq!(bystander.ask(get("/")).text(), "fine");
            assert_eq!(Client::connect(site.address()).ask(get("/")).text(), "fine");
        }
    }
    // What panicked is not counted as open: quitting does not wait for it.
    drop(bystander);
    site.quit();
}
