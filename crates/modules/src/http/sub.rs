//! `ngx_http_sub_filter_module`: replaces texts in responses.

use std::io;

use weir_engine::contract::{Filter, Install};
use weir_engine::generation::Plan;
use weir_engine::http::{Exchange, Response, Template};
use weir_engine::http1::Method;
use weir_ir::contract::{Conf, Contexts, Directive, Module, Setting, Takes};
use weir_ir::{Call, Fault, Merge};
use weir_syntax::Diagnostic;

use super::body::{self, Transform};
use super::types::Types;

pub struct Sub;

type D = Directive<Sub>;

const SCOPES: Contexts = Contexts::SCOPES;

impl Module for Sub {
    const NAME: &'static str = "http_sub_filter";
    type Main = ();
    type Scope = Settings;
    const DIRECTIVES: &'static [Directive<Self>] = &[
        D::scope("sub_filter", SCOPES, Takes::TWO, Settings::add),
        D::scope("sub_filter_types", SCOPES, Takes::ONE_MORE, |s, c| s.types.add(c)),
        D::scope("sub_filter_once", SCOPES, Takes::FLAG, |s, c| s.once.flag(c)),
        D::scope("sub_filter_last_modified", SCOPES, Takes::FLAG, |s, c| s.last_modified.flag(c)),
    ];
}

/// A text to look for in any case, and what takes its place.
#[derive(Clone, Debug)]
struct Pair {
    text: weir_ir::Template,
    with: weir_ir::Template,
}

/// What a level replaces.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    pairs: Vec<Pair>,
    types: Types,
    once: Setting<bool>,
    last_modified: Setting<bool>,
}

impl Conf for Settings {
    fn inherit(&mut self, outer: &Self, _: &mut Merge<'_>) -> Result<(), Fault> {
        if self.pairs.is_empty() {
            self.pairs.clone_from(&outer.pairs);
        }
        self.types.inherit(&outer.types);
        self.once.inherit(&outer.once);
        self.last_modified.inherit(&outer.last_modified);
        Ok(())
    }
}

impl Settings {
    fn add(&mut self, call: &mut Call<'_>) -> Result<(), Fault> {
        if call.arg(0).is_empty() {
            return Err(call.fail("empty search pattern"));
        }
        if self.pairs.len() == 255 {
            return Err(call.fail("number of search patterns exceeds 255"));
        }
        self.pairs.push(Pair { text: call.template(0)?, with: call.template(1)? });
        Ok(())
    }
}

impl Install for Sub {
    fn install(settings: &Settings, plan: &mut Plan<'_, '_>) -> Result<(), Diagnostic> {
        if !settings.pairs.is_empty() {
            let ready = |pair: &Pair| (plan.template(&pair.text), plan.template(&pair.with));
            let pairs = settings.pairs.iter().map(ready).collect();
            plan.handlers.filters.push(Box::new(Substituting {
                pairs,
                types: settings.types.or(&["text/html"]),
                once: settings.once.or(true),
                last_modified: settings.last_modified.or(false),
            }));
        }
        Ok(())
    }
}

struct Substituting {
    pairs: Vec<(Template, Template)>,
    types: Types,
    once: bool,
    last_modified: bool,
}

impl Filter for Substituting {
    fn filter(&self, x: &mut Exchange, response: &mut Response) {
        if response.content_length == Some(0) || !self.types.has(response) {
            return;
        }
        let pairs = self.pairs.iter().map(|(text, with)| (text.value(x), with.value(x)));
        let pairs: Vec<_> = pairs.filter(|(text, _)| !text.is_empty()).collect();
        if pairs.is_empty() {
            return;
        }
        response.content_length = None;
        if self.last_modified {
            response.weaken_etag();
        } else {
            response.clear_validators();
        }
        // A body that is not sent is not read either.
        if x.method != Method::Head {
            body::transform(Substitute::new(pairs, self.once), x, response);
        }
    }
}

/// Bytes that are looked through at once.
const PIECE: usize = 16 * 1024;

struct Text {
    text: Vec<u8>,
    with: Vec<u8>,
    /// It is not looked for any more.
    done: bool,
}

struct Substitute {
    texts: Vec<Text>,
    once: bool,
    /// Whether a text begins with that byte.
    starts: [bool; 256],
    /// What was taken and is not out yet: the start of a text perhaps, or more than there was room for.
    held: Vec<u8>,
    /// Something of `held` was not looked at.
    unread: bool,
}

/// What stands at a place.
enum Found {
    Nothing,
    /// The start of this text, as far as there is more.
    Start,
    Text(usize),
}

impl Substitute {
    fn new(pairs: Vec<(Vec<u8>, Vec<u8>)>, once: bool) -> Self {
        let mut starts = [false; 256];
        for (text, _) in &pairs {
            starts[usize::from(text[0].to_ascii_lowercase())] = true;
            starts[usize::from(text[0].to_ascii_uppercase())] = true;
        }
        let texts = pairs.into_iter().map(|(text, with)| Text { text, with, done: false }).collect();
        Self { texts, once, starts, held: vec![], unread: false }
    }

    /// The first of the texts that begins with `rest`, or might.
    fn at(&self, rest: &[u8]) -> Found {
        for (index, Text { text, .. }) in self.texts.iter().enumerate().filter(|(_, text)| !text.done) {
            let length = text.len().min(rest.len());
            if rest[..length].eq_ignore_ascii_case(&text[..length]) {
                return if length == text.len() { Found::Text(index) } else { Found::Start };
            }
        }
        Found::Nothing
    }

    /// Looks through what is held, until a text may have begun or there is no room.
    fn run(&mut self, out: &mut Vec<u8>) {
        let room = out.capacity();
        let held = std::mem::take(&mut self.held);
        let (mut copied, mut at) = (0, 0);
        self.unread = false;
        loop {
            let Some(skip) = held[at..].iter().position(|byte| self.starts[usize::from(*byte)]) else {
                at = held.len();
                break;
            };
            at += skip;
            match self.at(&held[at..]) {
                Found::Nothing => at += 1,
                Found::Start => break,
                Found::Text(index) => {
                    out.extend_from_slice(&held[copied..at]);
                    let text = &mut self.texts[index];
                    out.extend_from_slice(&text.with);
                    text.done = self.once;
                    at += text.text.len();
                    copied = at;
                    if out.len() >= room {
                        self.unread = true;
                        break;
                    }
                }
            }
        }
        out.extend_from_slice(&held[copied..at]);
        self.held = held;
        self.held.drain(..at);
    }
}

impl Transform for Substitute {
    // Many short texts may each become a long one.
    const BOUNDED: bool = false;

    fn push(&mut self, input: &[u8], out: &mut Vec<u8>) -> io::Result<usize> {
        if self.unread {
            self.run(out);
        }
        if self.unread {
            return Ok(0);
        }
        let taken = input.len().min(PIECE);
        self.held.extend_from_slice(&input[..taken]);
        self.run(out);
        Ok(taken)
    }

    fn flush(&mut self, _: &mut Vec<u8>) -> io::Result<()> {
        // What is held may be the start of a text.
        Ok(())
    }

    fn end(&mut self, out: &mut Vec<u8>) -> io::Result<bool> {
        if self.unread {
            self.run(out);
        }
        if !self.unread {
            out.append(&mut self.held);
        }
        Ok(!self.unread)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::body::tests::pulled;
    use crate::testing::{Site, check_conf, header};

    #[test]
    fn messages() {
        check_conf("sub_filter a b; sub_filter $uri $host; sub_filter_types *; sub_filter_once off;", "");
        for (conf, message) in [
            ("sub_filter '' b;", "empty search pattern"),
            ("sub_filter a;", "invalid number of arguments in \"sub_filter\" directive"),
            ("sub_filter_types text/html;", "duplicate MIME type \"text/html\""),
            ("sub_filter_once on; sub_filter_once on;", "\"sub_filter_once\" directive is duplicate"),
            (
                "sub_filter_last_modified 1;",
                "invalid value \"1\" in \"sub_filter_last_modified\" directive, it must be \"on\" or \"off\"",
            ),
        ] {
            check_conf(conf, message);
        }
        check_conf(&"sub_filter a b;".repeat(256), "number of search patterns exceeds 255");
    }

    #[test]
    fn texts() {
        for (pairs, once, body, expected) in [
            (&[("ab", "X")][..], true, "abab", "Xab"),
            (&[("ab", "X")], false, "aabABb", "aXXb"),
            (&[("ab", "")], false, "xaby", "xy"),
            (&[("aab", "X")], false, "aaab", "aX"),
            (&[("a", "1"), ("b", "2")], true, "bbaa", "2b1a"),
            // The first of the list wins, wherever it ends.
            (&[("abc", "1"), ("ab", "2")], false, "abcabd", "12d"),
            (&[("ab", "2"), ("abc", "1")], false, "abc", "2c"),
            // What might have become a text at the end is not looked at again.
            (&[("abcd", "1"), ("bc", "2")], false, "abc", "abc"),
            (&[("abcd", "1"), ("bc", "2")], false, "abcx", "a2x"),
        ] {
            for size in [1, 2, 100] {
                let pairs = pairs.iter().map(|(text, with)| ((*text).into(), (*with).into())).collect();
                let got = pulled(body.as_bytes(), size, Substitute::new(pairs, once));
                assert_eq!(String::from_utf8(got).unwrap(), expected, "{body} in pieces of {size}");
            }
        }
        // Much is made of little, a bounded part at a time.
        let pairs = vec![(b"a".to_vec(), vec![b'b'; 5000])];
        assert_eq!(pulled(&[b'a'; 1000], 1000, Substitute::new(pairs, false)), vec![b'b'; 5_000_000]);
    }

    #[test]
    fn responses() {
        let site = Site::new(
            "sub_filter '$arg_x' '[$arg_y]'; server {
                location / { answer 200 text/html 'One two, One two'; }
                location /all { sub_filter_once off; answer 200 text/html 'One two, One two'; }
                location /plain { answer 200 text/plain 'One two'; }
                location /kept { sub_filter_last_modified on; add_header ETag '\"x\"'; answer 200 text/html One; }
                location /gone { add_header ETag '\"x\"'; answer 200 text/html One; }
             }",
        );
        for (uri, expected) in [
            ("/?x=ONE&y=1", "[1] two, One two"),
            ("/all?x=ONE&y=1", "[1] two, [1] two"),
            ("/plain?x=ONE&y=1", "One two"),
            ("/all", "One two, One two"),
        ] {
            assert!(site.short(uri).replace("\r\n", "").contains(expected), "{uri}");
        }
        let kept = site.get("/kept?x=o", "");
        assert_eq!(header(&kept, "ETag"), Some("W/\"x\""));
        assert!(header(&kept, "Last-Modified").is_some() && header(&kept, "Content-Length").is_none());
        let gone = site.get("/gone?x=o", "");
        assert!(header(&gone, "Last-Modified").is_none() && header(&gone, "ETag").is_none());
    }
}
