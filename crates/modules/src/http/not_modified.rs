//! `ngx_http_not_modified_filter_module`: the conditions of a request (RFC 9110 section 13), judged by what the response
//! says of itself.

use weir_engine::contract::{Filter, Install};
use weir_engine::generation::Plan;
use weir_engine::http::{Body, Exchange, Response};
use weir_engine::http1::{Known, date};
use weir_ir::contract::{Directive, Module};
use weir_ir::http::core::IfModifiedSince;
use weir_syntax::Diagnostic;

pub struct NotModified;

impl Module for NotModified {
    const NAME: &'static str = "http_not_modified_filter";
    type Main = ();
    type Scope = ();
    const DIRECTIVES: &'static [Directive<Self>] = &[];
}

impl Install for NotModified {
    fn install((): &(), plan: &mut Plan<'_, '_>) -> Result<(), Diagnostic> {
        plan.handlers.filters.push(Box::new(NotModified));
        Ok(())
    }
}

impl Filter for NotModified {
    fn filter(&self, x: &mut Exchange, response: &mut Response) {
        if response.status != 200 || x.is_subrequest() || response.disable_not_modified {
            return;
        }
        let conditions = Conditions {
            if_unmodified_since: x.header(Known::IfUnmodifiedSince),
            if_match: x.header(Known::IfMatch),
            if_modified_since: x.header(Known::IfModifiedSince),
            if_none_match: x.header(Known::IfNoneMatch),
        };
        let etag = response.headers.first(Known::ETag);
        match conditions.judge(etag, response.last_modified, x.location().core.if_modified_since) {
            Verdict::Send => {}
            Verdict::Failed => {
                response.headers.clear();
                response.replaced_by = Some(412);
            }
            Verdict::NotModified => {
                if let Body::Stream(mut source) = std::mem::take(&mut response.body) {
                    source.finish(x, false);
                }
                response.status = 304;
                response.status_line = None;
                response.content_type = None;
                response.content_length = None;
                response.allow_ranges = false;
                response.headers.remove(b"Accept-Ranges");
                response.headers.remove(b"Content-Encoding");
            }
        }
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Conditions<'a> {
    if_unmodified_since: Option<&'a [u8]>,
    if_match: Option<&'a [u8]>,
    if_modified_since: Option<&'a [u8]>,
    if_none_match: Option<&'a [u8]>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Send,
    NotModified,
    /// 412
    Failed,
}

impl Conditions<'_> {
    /// `modified` is in seconds since the epoch.
    fn judge(&self, etag: Option<&[u8]>, modified: Option<i64>, mode: IfModifiedSince) -> Verdict {
        // A date that cannot be read is before all others.
        let time = |text: &[u8]| date::parse_http(text).unwrap_or(-1);
        if self.if_unmodified_since.is_some_and(|since| modified.is_none_or(|at| time(since) < at)) {
            return Verdict::Failed;
        }
        if self.if_match.is_some_and(|list| !matches(list, etag, false)) {
            return Verdict::Failed;
        }
        if self.if_modified_since.is_none() && self.if_none_match.is_none() {
            return Verdict::Send;
        }
        let is_modified = |since: &[u8]| match (modified, mode) {
            (None, _) | (_, IfModifiedSince::Off) => true,
            (Some(at), IfModifiedSince::Exact) => time(since) != at,
            (Some(at), IfModifiedSince::Before) => time(since) < at,
        };
        // Both have to say that nothing changed.
        if self.if_modified_since.is_some_and(is_modified)
            || self.if_none_match.is_some_and(|list| !matches(list, etag, true))
        {
            return Verdict::Send;
        }
        Verdict::NotModified
    }
}

/// Whether an entity tag is in a list; `weak` disregards `W/` on both sides.
fn matches(list: &[u8], etag: Option<&[u8]>, weak: bool) -> bool {
    if list == b"*" {
        return true;
    }
    let Some(etag) = etag else { return false };
    let bare = |tag: &[u8]| weak && tag.len() > 2 && tag.starts_with(b"W/");
    let etag = if bare(etag) { &etag[2..] } else { etag };
    let mut rest = list;
    while !rest.is_empty() {
        if bare(rest) {
            rest = &rest[2..];
        }
        if let Some(after) = rest.strip_prefix(etag) {
            rest = trim(after, b" \t");
            if matches!(rest.first(), None | Some(b',')) {
                return true;
            }
        }
        let comma = memchr::memchr(b',', rest).unwrap_or(rest.len());
        rest = trim(&rest[comma..], b" \t,");
    }
    false
}

/// Without the bytes of `set` at the start.
fn trim<'t>(text: &'t [u8], set: &[u8]) -> &'t [u8] {
    let length = text.iter().take_while(|byte| set.contains(byte)).count();
    &text[length..]
}

#[cfg(test)]
mod tests {
    use weir_testkit::Folder;

    use super::*;
    use crate::testing::Site;

    #[test]
    fn lists_of_tags() {
        for (list, etag, weak, expected) in [
            ("*", None, false, true),
            ("\"a\"", None, false, false),
            ("\"a\"", Some("\"a\""), false, true),
            ("\"b\", \"a\"", Some("\"a\""), false, true),
            ("\"b\",\t\"a\" , \"c\"", Some("\"a\""), false, true),
            ("W/\"a\"", Some("\"a\""), false, false),
            ("W/\"a\"", Some("\"a\""), true, true),
            ("\"a\"", Some("W/\"a\""), true, true),
            ("\"a\"", Some("W/\"a\""), false, false),
            ("\"a\"x", Some("\"a\""), false, false),
            ("", Some("\"a\""), false, false),
            ("\"a", Some("\"a\""), false, false),
        ] {
            assert_eq!(matches(list.as_bytes(), etag.map(str::as_bytes), weak), expected, "{list}");
        }
    }

    #[test]
    fn verdicts() {
        const TIME: &[u8] = b"Fri, 13 Jul 2012 11:01:20 GMT";
        const LATER: &[u8] = b"Fri, 13 Jul 2012 11:01:21 GMT";
        let at = Some(0x5000_0000);
        let since = |t| Conditions { if_modified_since: Some(t), ..Conditions::default() };
        let unmodified = |t| Conditions { if_unmodified_since: Some(t), ..Conditions::default() };
        let (exact, before) = (IfModifiedSince::Exact, IfModifiedSince::Before);
        for (conditions, modified, mode, expected) in [
            (since(TIME), at, exact, Verdict::NotModified),
            (since(LATER), at, exact, Verdict::Send),
            (since(LATER), at, before, Verdict::NotModified),
            (since(b"never"), at, before, Verdict::Send),
            (since(TIME), at, IfModifiedSince::Off, Verdict::Send),
            (since(TIME), None, exact, Verdict::Send),
            (unmodified(TIME), at, exact, Verdict::Send),
            (unmodified(LATER), at, exact, Verdict::Send),
            (unmodified(b"never"), at, exact, Verdict::Failed),
            (unmodified(TIME), None, exact, Verdict::Failed),
        ] {
            assert_eq!(conditions.judge(None, modified, mode), expected, "{conditions:?}");
        }
    }

    #[test]
    fn responses() {
        let folder = Folder::new(&[("a.html", b"hello")]);
        folder.set_modified("a.html", 0x5000_0000);
        let site = Site::new(&format!(
            "server {{ root {}; location /e {{ error_page 412 /r; }} location /r {{ return 200 page; }} }}",
            folder.path().display()
        ));
        let ask = |header: &str| site.ask("GET /a.html", &format!("{header}\r\n"));
        assert_eq!(
            ask("If-None-Match: W/\"50000000-5\""),
            "HTTP/1.1 304 Not Modified\nLast-Modified: Fri, 13 Jul 2012 11:01:20 GMT\nETag: \"50000000-5\"\n\n"
        );
        let failed = ask("If-Match: \"other\"");
        assert!(
            failed.starts_with("HTTP/1.1 412 Precondition Failed\nContent-Type: text/html\n"),
            "{failed}"
        );
        assert!(!failed.contains("ETag") && !failed.contains("Last-Modified"), "{failed}");
        assert!(site.ask("GET /r", "If-Match: \"x\"\r\n").starts_with("HTTP/1.1 412"));
    }
}
