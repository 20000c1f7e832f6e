//! A body without bytes is framed as none, whatever holds it.

use std::sync::Arc;

use weir_engine::contract::{AnyInstall, Content, Flow, Install, Step};
use weir_engine::generation::{ContentHandler, Plan};
use weir_engine::http::response::FilePart;
use weir_engine::http::{Body, Exchange, Response};
use weir_ir::contract::{Conf, Contexts, Directive, Module, Takes};
use weir_ir::{Fault, Merge};
use weir_syntax::Diagnostic;
use weir_testkit::{Client, Modules, Site};

/// `empty bytes|file;` answers with no bytes, whose number it does not tell.
struct Empty;

#[derive(Clone, Debug, Default)]
struct Kind(String);

impl Conf for Kind {
    fn inherit(&mut self, _: &Self, _: &mut Merge<'_>) -> Result<(), Fault> {
        Ok(())
    }
}

impl Module for Empty {
    const NAME: &'static str = "empty";
    type Main = ();
    type Scope = Kind;
    const DIRECTIVES: &'static [Directive<Self>] =
        &[Directive::<Empty>::scope("empty", Contexts::LOCATION, Takes::ONE, |kind, call| {
            kind.0 = call.text(0);
            Ok(())
        })];
}

impl Install for Empty {
    fn install(kind: &Kind, plan: &mut Plan<'_, '_>) -> Result<(), Diagnostic> {
        let answers = Answers { file: kind.0 == "file" };
        plan.handlers.handler = Some(ContentHandler::Content(Arc::new(answers)));
        Ok(())
    }
}

struct Answers {
    file: bool,
}

impl Content for Answers {
    fn respond<'a>(&'a self, _: &'a mut Exchange) -> Step<'a> {
        let body = if self.file {
            let file = std::fs::File::open("/dev/null").expect("the null device");
            Body::File(FilePart { file: Arc::new(file), offset: 0, length: 0 })
        } else {
            Body::Bytes(b""[..].into())
        };
        Step::Now(Flow::Respond(Box::new(Response { body, ..Response::new(200) })))
    }
}

const HTTP: &[&dyn AnyInstall] = &[&Empty];

#[test]
fn no_bytes_are_no_chunk() {
    let http = "server {
        listen {listen};
        location /bytes { empty bytes; }
        location /file { empty file; }
    }";
    let site = Site::start(Modules { http: HTTP, upstream: &[] }, http, &[]);
    for path in ["/bytes", "/file"] {
        let mut client = Client::connect(site.address());
        client.send(format!("GET {path} HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n"));
        let answer = client.last_words();
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        assert!(head.contains("\r\nTransfer-Encoding: chunked\r\n"), "{head}");
        assert_eq!(body, "0\r\n\r\n");
    }
}
