//! `ngx_http_stub_status_module`: how many connections and requests there are.

use weir_engine::contract::{Content, Flow, Install, Step, Variable};
use weir_engine::generation::Plan;
use weir_engine::http::{Exchange, Response, variables};
use weir_engine::http1::Method;
use weir_engine::reactor::{Count, Counts};
use weir_ir::contract::{Contexts, Directive, Module, Takes};
use weir_syntax::Diagnostic;

use super::shown::Shown;

pub struct StubStatus;

impl Module for StubStatus {
    const NAME: &'static str = "http_stub_status";
    type Main = ();
    type Scope = Shown;
    const DIRECTIVES: &'static [Directive<Self>] = &[
        // Before 1.7.5 it took an argument, which never meant anything.
        Directive::<StubStatus>::scope(
            "stub_status",
            Contexts::SERVER.or(Contexts::LOCATION),
            Takes::of(0, 1),
            |shown, _| shown.set(),
        ),
    ];
}

const fn counter(name: &'static str, get: weir_engine::contract::Get) -> Variable {
    Variable::new(name, get)
}

impl Install for StubStatus {
    const VARIABLES: &'static [Variable] = &[
        counter("connections_active", |x, out| variables::number(read(x, |c| &c.active), out)),
        counter("connections_reading", |x, out| variables::number(read(x, |c| &c.reading), out)),
        counter("connections_writing", |x, out| variables::number(read(x, |c| &c.writing), out)),
        counter("connections_waiting", |x, out| variables::number(read(x, |c| &c.waiting), out)),
    ];

    fn install(shown: &Shown, plan: &mut Plan<'_, '_>) -> Result<(), Diagnostic> {
        shown.install(plan, Status);
        Ok(())
    }
}

fn read(x: &Exchange, count: impl Fn(&Counts) -> &Count) -> u64 {
    x.reactor.counters.sum(count)
}

struct Status;

impl Content for Status {
    fn respond<'a>(&'a self, x: &'a mut Exchange) -> Step<'a> {
        if !matches!(x.method, Method::Get | Method::Head) {
            return Step::Now(Flow::Answer(405));
        }
        let text = format!(
            "Active connections: {} \nserver accepts handled requests\n {} {} {} \nReading: {} Writing: {} Waiting: {} \n",
            read(x, |c| &c.active),
            read(x, |c| &c.accepted),
            read(x, |c| &c.handled),
            read(x, |c| &c.requests),
            read(x, |c| &c.reading),
            read(x, |c| &c.writing),
            read(x, |c| &c.waiting),
        );
        let response = Response::with_body(200, &b"text/plain"[..], text.into_bytes());
        Step::Now(Flow::Respond(Box::new(response)))
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{Site, code};

    #[test]
    fn counters() {
        let site = Site::new(
            "server { listen 80; location /s { stub_status; location /s/x { } } location / { answer 200 a b; } }",
        );
        site.get("/", "");
        let response = site
            .raw(b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET /s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        let expected = "Active connections: 1 \nserver accepts handled requests\n 2 2 3 \nReading: 0 Writing: 1 Waiting: 0 \n";
        assert!(response.ends_with(expected), "{response}");
        assert_eq!(code(&site.raw(b"POST /s HTTP/1.0\r\n\r\n")), "405");
        assert_eq!(code(&site.get("/s/x", "")), "404");
    }
}
