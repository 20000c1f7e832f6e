//! What is sent when there is nothing else to send: `error_page`, or the plain page of a status.

use std::borrow::Cow;

use weir_ir::LocationId;
use weir_syntax::Level;

use crate::contract::Flow;
use crate::http::phases::Restart;
use crate::http::{Exchange, Response};
use crate::http1::{Known, Method, status};
use weir_ir::http::core::ServerTokens;

/// weir's version, as it names itself.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What an answer without content leads to.
pub(crate) enum Answer {
    Response(Box<Response>),
    Restart,
}

/// Makes the answer of a status: an error page where one is configured, else the plain page.
pub(crate) fn answer(x: &mut Exchange, code: u16) -> Answer {
    if matches!(code, 408 | 444 | 499) {
        // No page and no answer: the connection is closed.
        return Answer::Response(Box::new(Response { unsent: true, ..Response::new(code) }));
    }
    // After these nobody knows where the next request would begin, or the client has to be rid of.
    if matches!(code, 400 | 413 | 414 | 494..=497 | 500 | 501) {
        x.keepalive = false;
    }
    let follow = !x.error_page || x.location().core.recursive_error_pages;
    if follow
        && x.redirects_left > 0
        && code >= 300
        && let Some(answer) = follow_error_page(x, code)
    {
        return answer;
    }
    // The page of this code takes the place of whatever another error page was to say.
    x.err_status = 0;
    // These were of the body that is not sent; an error page would have kept them.
    x.answer_headers.remove(b"ETag");
    x.answer_headers.remove(b"Accept-Ranges");
    Answer::Response(Box::new(plain(x, code)))
}

fn follow_error_page(x: &mut Exchange, code: u16) -> Option<Answer> {
    let generation = std::sync::Arc::clone(&x.generation);
    let core = &generation.location(x.location).core;
    let page = core.error_pages.iter().find(|page| page.code == code)?;
    x.error_page = true;
    x.err_status = page.overwrite.unwrap_or(shown_code(code));
    let target = page.target.value(x);
    match target.first() {
        Some(b'/') => {
            let args = (!page.args.is_empty()).then(|| page.args.clone());
            let (path, args) = match (memchr::memchr(b'?', &target), args) {
                (Some(at), None) if page.target.as_literal().is_none() => {
                    (target[..at].to_vec(), Some(target[at + 1..].to_vec()))
                }
                (_, args) => (target, args),
            };
            become_get(x);
            if !x.take_redirect() {
                return None;
            }
            x.redirect(path, args);
            Some(Answer::Restart)
        }
        Some(b'@') => {
            let Some(id) = named(x, &target) else {
                let name = String::from_utf8_lossy(&target).into_owned();
                x.log(Level::Error, format_args!("could not find named location \"{name}\""));
                return Some(Answer::Response(Box::new(plain(x, 500))));
            };
            if !x.take_redirect() {
                return None;
            }
            x.redirect_named(id);
            Some(Answer::Restart)
        }
        Some(_) | None => {
            let status = match page.overwrite {
                Some(code @ (301 | 302 | 303 | 307 | 308)) => code,
                Some(_) | None => 302,
            };
            x.err_status = status;
            let mut response = plain(x, status);
            response.location = Some(Cow::Owned(target));
            Some(Answer::Response(Box::new(response)))
        }
    }
}

/// The code that a client sees where it differs from the internal one.
fn shown_code(code: u16) -> u16 {
    if matches!(code, 494..=497) { 400 } else { code }
}

fn become_get(x: &mut Exchange) {
    if x.method != Method::Head {
        x.method = Method::Get;
        x.method_name = Some(b"GET");
    }
}

/// The named location of the present server.
pub fn named(x: &Exchange, name: &[u8]) -> Option<LocationId> {
    x.server().children.named(name)
}

/// The plain page of a status, in nginx's form.
pub fn plain(x: &mut Exchange, code: u16) -> Response {
    let core = &x.location().core;
    let padded = core.msie_padding
        && x.head.version() >= crate::http1::Version::HTTP_10
        && code >= 400
        && x.header(Known::UserAgent).is_some_and(|agent| crate::http1::Browser::of(agent).msie);
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
    /// Counts a redirect; false where it was one too many, which is then logged.
    pub fn take_redirect(&mut self) -> bool {
        if self.redirects_left == 0 {
            let uri = String::from_utf8_lossy(&self.uri).into_owned();
            self.log(
                Level::Error,
                format_args!(
                    "rewrite or internal redirection cycle while internally redirecting to \"{uri}\""
                ),
            );
            return false;
        }
        self.redirects_left -= 1;
        true
    }

    /// Goes on at another path, or ends where that is one redirect too many.
    pub fn internal_redirect(&mut self, uri: Vec<u8>, args: Vec<u8>) -> Flow {
        if self.redirects_left == 0 {
            let shown = String::from_utf8_lossy(&uri);
            self.log(
                Level::Error,
                format_args!(
                    "rewrite or internal redirection cycle while internally redirecting to \"{shown}\""
                ),
            );
            return Flow::Answer(500);
        }
        self.redirects_left -= 1;
        self.redirect(uri, Some(args));
        Flow::Redirect
    }

    /// Goes on in the named location of that name, or ends where there is none or that is one redirect too many.
    pub fn named_redirect(&mut self, name: &[u8]) -> Flow {
        let shown = String::from_utf8_lossy(name);
        if self.redirects_left == 0 {
            self.log(
                Level::Error,
                format_args!(
                    "rewrite or internal redirection cycle while redirect to named location \"{shown}\""
                ),
            );
            return Flow::Answer(500);
        }
        self.redirects_left -= 1;
        let Some(id) = named(self, name) else {
            self.log(Level::Error, format_args!("could not find named location \"{shown}\""));
            return Flow::Answer(500);
        };
        self.redirect_named(id);
        Flow::Redirect
    }

    /// Starts again in a named location of the server. The caller returns [`crate::contract::Flow::Redirect`].
    pub fn redirect_named(&mut self, id: LocationId) {
        self.restart = Restart::Named(id);
        self.internal = true;
        self.clear_extensions();
    }
}
