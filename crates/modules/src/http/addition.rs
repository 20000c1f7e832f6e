//! `ngx_http_addition_filter_module`: answers of other locations before and behind a body.

use std::mem;

use weir_engine::contract::{Filter, Install};
use weir_engine::generation::Plan;
use weir_engine::http::subrequest::{Chain, Included};
use weir_engine::http::{Body, Exchange, Response, Source};
use weir_ir::contract::{Conf, Contexts, Directive, Module, Setting, Takes};
use weir_ir::{Fault, Merge};
use weir_syntax::Diagnostic;

use super::types::Types;

pub struct Addition;

type D = Directive<Addition>;

impl Module for Addition {
    const NAME: &'static str = "http_addition_filter";
    type Main = ();
    type Scope = Additions;
    const DIRECTIVES: &'static [Directive<Self>] = &[
        D::scope("add_before_body", Contexts::SCOPES, Takes::ONE, |s, call| {
            s.before.put_with(call, |call| Ok(call.arg(0).into()))
        }),
        D::scope("add_after_body", Contexts::SCOPES, Takes::ONE, |s, call| {
            s.after.put_with(call, |call| Ok(call.arg(0).into()))
        }),
        D::scope("addition_types", Contexts::SCOPES, Takes::ONE_MORE, |s, call| s.types.add(call)),
    ];
}

/// What is added to the bodies of a level.
#[derive(Clone, Debug, Default)]
pub struct Additions {
    before: Setting<Box<[u8]>>,
    after: Setting<Box<[u8]>>,
    types: Types,
}

impl Conf for Additions {
    fn inherit(&mut self, outer: &Self, _: &mut Merge<'_>) -> Result<(), Fault> {
        self.before.inherit(&outer.before);
        self.after.inherit(&outer.after);
        self.types.inherit(&outer.types);
        Ok(())
    }
}

impl Install for Addition {
    fn install(additions: &Additions, plan: &mut Plan<'_, '_>) -> Result<(), Diagnostic> {
        let (before, after) = (additions.before.or(Box::default()), additions.after.or(Box::default()));
        if !before.is_empty() || !after.is_empty() {
            plan.handlers.filters.push(Box::new(Adding {
                before,
                after,
                types: additions.types.or(&["text/html"]),
            }));
        }
        Ok(())
    }
}

/// An empty URI adds nothing.
struct Adding {
    before: Box<[u8]>,
    after: Box<[u8]>,
    types: Types,
}

impl Filter for Adding {
    fn filter(&self, x: &mut Exchange, response: &mut Response) {
        if x.is_subrequest()
            || response.status != 200
            || matches!(response.body, Body::Tunnel(_))
            || !self.types.has(response)
        {
            return;
        }
        response.body_changes();
        let added = |uri: &[u8]| (!uri.is_empty()).then(|| Box::new(Included::later(uri)) as Box<dyn Source>);
        let body = mem::take(&mut response.body).into_source();
        let parts = [added(&self.before), Some(body), added(&self.after)];
        response.body = Body::Stream(Box::new(Chain::new(parts.into_iter().flatten().collect())));
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{Site, check_conf, header};

    #[test]
    fn messages() {
        let refused = |words: &str, message: &str| check_conf(&format!("server {{ {words} }}"), message);
        refused("add_before_body /a; add_before_body /b;", "\"add_before_body\" directive is duplicate");
        refused("add_after_body /a; add_after_body /b;", "\"add_after_body\" directive is duplicate");
        refused("addition_types text/html;", "duplicate MIME type \"text/html\"");
        refused("addition_types a/b A/B;", "duplicate MIME type \"a/b\"");
        refused("addition_types * a/b a/b;", "");
        refused("add_after_body /a; addition_types a/b; addition_types c/d;", "");
    }

    #[test]
    fn bodies_are_added() {
        let site = Site::new(
            "root %DIR%; error_page 404 /lost; server { add_after_body /after; \
             location = / { add_before_body /before; answer 200 text/html $uri; } \
             location = /plain { answer 200 text/plain own; } \
             location = /listed { addition_types TEXT/x; answer 200 text/X own; } \
             location = /parameter { addition_types TEXT/x; answer 200 \"text/X; a=b\" own; } \
             location = /any { addition_types *; answer 200 any/type own; } \
             location = /accepted { answer 202 text/html own; } \
             location = /file.html { add_before_body /file.txt; } \
             location = /none { add_before_body /missing; add_after_body \"\"; answer 200 text/html own; } \
             location = /self { add_after_body /self; answer 200 text/html self; } \
             location = /empty { answer 200 text/html \"\"; } \
             location = /gone { add_before_body /closed; answer 200 text/html own; } \
             location = /closed { return 444; } location = /lost { return 200 lost; } \
             location = /before { add_before_body /before; deny all; return 200 \"$uri \"; } \
             location = /after { internal; return 200 \" $uri\"; } }",
        )
        .with("file.html", "<file>")
        .with("file.txt", "text ".repeat(50_000));
        let body = |uri: &str| {
            let answer = site.raw(format!("GET {uri} HTTP/1.0\r\n\r\n").as_bytes());
            answer.split_once("\r\n\r\n").map_or(String::new(), |(_, body)| body.to_owned())
        };
        for (uri, expected) in [
            ("/", "/before / /after"),
            ("/plain", "own"),
            ("/listed", "own /after"),
            ("/parameter", "own"),
            ("/any", "own /after"),
            ("/accepted", "own"),
            ("/none", "lostown"),
            ("/self", "selfself"),
            ("/empty", " /after"),
        ] {
            assert_eq!(body(uri), expected, "{uri}");
        }
        assert!(body("/file.html") == "text ".repeat(50_000) + "<file> /after");
        assert!(!body("/gone").contains("own"));
        let head = site.ask("HEAD /file.html", "");
        assert!(head.starts_with("HTTP/1.1 200 OK\n") && head.ends_with("\n\n"), "{head}");
        assert_eq!(header(&site.get("/file.html", ""), "Content-Length"), None);
        let etag = site.get("/file.html", "");
        assert!(header(&etag, "ETag").unwrap().starts_with("W/\""), "{etag}");
        let ranged = site.get("/file.html", "Range: bytes=0-1\r\n");
        assert!(ranged.starts_with("HTTP/1.1 200"), "{ranged}");
    }

    #[test]
    fn parts_have_filters_of_their_own() {
        let site = Site::new(
            "charset_map koi8-r utf-8 { C0 D18E; } default_type text/html; server { root %DIR%; \
             location = / { charset utf-8; add_after_body /after.html; answer 200 text/html own; } \
             location = /untold { add_after_body /after.html; answer 200 text/html own; } \
             location = /after.html { source_charset koi8-r; charset koi8-r; sub_filter old new; add_header X y; \
             gzip on; gzip_min_length 0; add_before_body /; } }",
        )
        .with("after.html", b" old \xc0");
        let answer = site.get("/", "Range: bytes=0-1\r\nAccept-Encoding: gzip\r\n");
        assert!(
            answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("own\r\n7\r\n new ю\r\n0\r\n\r\n"),
            "{answer}"
        );
        assert_eq!((header(&answer, "X"), header(&answer, "Content-Encoding")), (None, None));
        let untold = site.get("/untold", "");
        assert!(untold.ends_with("own\r\n6\r\n new \u{fffd}\r\n0\r\n\r\n"), "{untold}");
    }
}
