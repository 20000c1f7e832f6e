//! What is sent when there is nothing else to send: `error_page`, or the plain page of a status.

use std::borrow::Cow;

use weir_syntax::Level;

use crate::contract::Flow;
use crate::generation::Generation;
use crate::http::phases::Restart;
use crate::http::response::split_charset;
use crate::http::{Exchange, Response};
use crate::http1::request::Head;
use crate::http1::uri::{Escape, escape};
use crate::http1::{Browser, Known, Method, status};
use weir_ir::LocationId;
use weir_ir::http::core::ServerTokens;

/// weir's version, as it names itself.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Makes the answer of a status: an error page where one is configured, else the plain page.
pub(crate) fn answer(x: &mut Exchange, code: u16) -> Flow {
    if matches!(code, 408 | 444 | 499) || code == 400 && x.body.is_cut() {
        // No page and no answer: the connection is closed.
        return Flow::Respond(Box::new(Response { unsent: true, ..Response::new(code) }));
    }
    // After these nobody knows where the next request would begin, or the client has to be rid of.
    if matches!(code, 400 | 413 | 414 | 494..=497 | 500 | 501) {
        x.keepalive = false;
    }
    x.debug(|| format!("http special response: {code}, \"{}\"", x.shown_uri()));
    // It was of what is not sent now, but for its charset, which in nginx becomes that of the plain page.
    let answer_type = x.answer_type.take();
    x.answer_ranges = None;
    let core = &x.location().core;
    if code >= 300 && !x.error_page && x.redirects_left > 0 && !core.error_pages.is_empty() {
        // Whether there may be another one is decided where this one is looked for.
        x.error_page = !core.recursive_error_pages;
        if let Some(flow) = follow_error_page(x, code) {
            return flow;
        }
    }
    // Whether anything is wrong with what came of the body is told before the page is sent.
    x.discard_body_input();
    // The page of this code takes the place of whatever another error page was to say.
    x.err_status = 0;
    // These were of the body that is not sent; an error page would have kept them.
    x.answer_headers.remove(b"ETag");
    x.answer_headers.remove(b"Accept-Ranges");
    x.answer_headers.remove(b"Last-Modified");
    if matches!(code, 301 | 302)
        && let Some(to) = x.redirect_target.take_if(|_| refreshes(&x.generation, x.location, &x.head))
    {
        return refresh(x, &to);
    }
    let mut page = plain(x, code);
    page.charset = answer_type.and_then(|named| Some(Cow::Owned(split_charset(&named)?.1.to_vec())));
    Flow::Respond(Box::new(page))
}

/// `msie_refresh`, and a client that it is for.
fn refreshes(generation: &Generation, location: LocationId, head: &Head) -> bool {
    generation.location(location).core.msie_refresh
        && head.first(Known::UserAgent).is_some_and(|agent| Browser::of(agent).msie)
}

/// A page that sends an Internet Explorer on, in place of a redirect.
fn refresh(x: &mut Exchange, to: &[u8]) -> Flow {
    let mut page = b"<html><head><meta http-equiv=\"Refresh\" content=\"0; URL=".to_vec();
    escape(to, Escape::Refresh, &mut page);
    page.extend_from_slice(b"\"></head><body></body></html>\r\n");
    x.err_status = 0;
    x.redirect_target = None;
    Flow::Respond(Box::new(Response::with_body(200, &b"text/html"[..], page)))
}

fn follow_error_page(x: &mut Exchange, code: u16) -> Option<Flow> {
    let generation = std::sync::Arc::clone(&x.generation);
    let core = &generation.location(x.location).core;
    let page = core.error_pages.iter().find(|page| page.code == code)?;
    x.err_status = page.overwrite.unwrap_or(shown_code(code));
    if !matches!(page.overwrite, Some(0 | 200)) {
        x.body.refuse();
    }
    let target = page.target.value(x);
    Some(match target.first() {
        Some(b'/') => {
            let args = (!page.args.is_empty()).then(|| page.args.clone());
            let (path, args) = match (memchr::memchr(b'?', &target), args) {
                (Some(at), None) if page.target.as_literal().is_none() => {
                    (target[..at].to_vec(), Some(target[at + 1..].to_vec()))
                }
                (_, args) => (target, args),
            };
            become_get(x);
            x.internal_redirect(path, args.unwrap_or_default())
        }
        Some(b'@') => x.named_redirect(&target),
        Some(_) | None => {
            let status = match page.overwrite {
                Some(code @ (301 | 302 | 303 | 307 | 308)) => code,
                Some(_) | None => 302,
            };
            if refreshes(&x.generation, x.location, &x.head) {
                return Some(refresh(x, &target));
            }
            x.err_status = status;
            let mut response = plain(x, status);
            response.location = Some(Cow::Owned(target));
            Flow::Respond(Box::new(response))
        }
    })
}

/// The code that a client sees where it differs from the internal one.
fn shown_code(code: u16) -> u16 {
    if matches!(code, 494..=497) { 400 } else { code }
}

/// What is not asked for its head alone goes on as a GET.
pub(crate) fn become_get(x: &mut Exchange) {
    if x.method != Method::Head {
        x.method = Method::Get;
        x.method_name = Some(b"GET");
    }
}

/// The plain page of a status, in nginx's form.
pub fn plain(x: &mut Exchange, code: u16) -> Response {
    let core = &x.location().core;
    let padded = core.msie_padding
        && x.head.version() >= crate::http1::Version::HTTP_10
        && code >= 400
        && x.header(Known::UserAgent).is_some_and(|agent| Browser::of(agent).msie);
    let signature: Cow<'_, str> = match core.server_tokens {
        ServerTokens::On | ServerTokens::Build => Cow::Owned(format!("weir/{VERSION}")),
        ServerTokens::Off => Cow::Borrowed("weir"),
    };
    let mut page = Vec::new();
    status::write_page(code, &signature, padded, &mut page);
    if page.is_empty() {
        let mut response = Response::new(shown_code(code));
        response.content_length = Some(0);
        return response;
    }
    Response::with_body(shown_code(code), &b"text/html"[..], page)
}

impl Exchange {
    /// Counts a redirect; false where that ends a cycle, which is then logged.
    pub(crate) fn take_redirect(&mut self, doing: &str, to: &[u8]) -> bool {
        self.redirects_left = self.redirects_left.saturating_sub(1);
        if self.redirects_left == 0 {
            let to = String::from_utf8_lossy(to);
            self.log(
                Level::Error,
                format_args!("rewrite or internal redirection cycle while {doing} \"{to}\""),
            );
        }
        self.redirects_left > 0
    }

    /// Starts the phases again at another path (`ngx_http_internal_redirect`), or ends where that is one redirect too many.
    pub fn internal_redirect(&mut self, uri: Vec<u8>, args: Vec<u8>) -> Flow {
        if !self.take_redirect("internally redirecting to", &uri) {
            return Flow::Answer(500);
        }
        self.set_uri(uri);
        self.args = args;
        self.internal = true;
        self.valid_location = true;
        self.uri_below_alias = false;
        self.restart = Restart::ServerRewrite;
        self.clear_extensions();
        self.debug(|| format!("internal redirect: \"{}\"", self.shown_uri()));
        Flow::Redirect
    }

    /// Goes on in the named location of that name, or ends where there is none or that is one redirect too many.
    pub fn named_redirect(&mut self, name: &[u8]) -> Flow {
        if !self.take_redirect("redirect to named location", name) {
            return Flow::Answer(500);
        }
        if self.uri.is_empty() {
            // A request that was refused before its path was read.
            let name = String::from_utf8_lossy(name);
            let message = format!("empty URI in redirect to named location \"{name}\"");
            self.log_while(Level::Error, None, message, self.head.reading());
            return Flow::Answer(500);
        }
        let Some(id) = self.server().children.named(name) else {
            let name = String::from_utf8_lossy(name);
            self.log(Level::Error, format_args!("could not find named location \"{name}\""));
            return Flow::Answer(500);
        };
        self.restart = Restart::Named(id);
        self.internal = true;
        self.clear_extensions();
        self.debug(|| {
            let name = String::from_utf8_lossy(name);
            format!("using location: {name} \"{}\"", self.shown_uri())
        });
        Flow::Redirect
    }
}
