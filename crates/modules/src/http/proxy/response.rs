//! The client's response made of the upstream's head.

use std::borrow::Cow;
use std::sync::Arc;

use weir_engine::generation::Plan;
use weir_engine::http::{Exchange, Response};
use weir_engine::http1::response::Head;
use weir_engine::http1::{Known, KnownSet};
use weir_engine::http1::{date, status};
use weir_engine::upstream::Hidden;
use weir_engine::upstream::exchange::ignore;

use super::redirect::Rewrites;
use super::request::Way;
use super::{Passing, cookie};

/// What of an upstream's head goes on.
pub(super) struct Rules {
    /// What stays.
    hidden: Arc<Hidden>,
    rewrites: Rewrites,
    cookies: Option<cookie::Rules>,
    /// Bits of what is not obeyed.
    ignored: u32,
    force_ranges: bool,
}

/// Headers that are between the upstream and us, or that we write ourselves.
const OWN: [Known; 4] = [Known::Connection, Known::KeepAlive, Known::TransferEncoding, Known::ContentLength];

/// Headers that are hidden unless `proxy_pass_header` names them.
const HIDDEN: [&str; 8] = [
    "date",
    "server",
    "x-pad",
    "x-accel-expires",
    "x-accel-redirect",
    "x-accel-limit-rate",
    "x-accel-buffering",
    "x-accel-charset",
];

/// What of an upstream's head, and of the fields behind its body, does not go on as it is.
pub(super) fn hidden(passing: &Passing) -> Hidden {
    let mut hidden = Hidden { known: KnownSet::of(&OWN), names: vec![] };
    let passed = |name: &[u8]| passing.pass_headers.iter().any(|p| **p == *name);
    let defaults = HIDDEN.iter().map(|name| name.as_bytes());
    let names = defaults.chain(passing.hide_headers.iter().map(|name| &**name));
    for name in names.filter(|name| !passed(name)) {
        match Known::of(name) {
            Known::Other => hidden.names.push(name.into()),
            known => hidden.known.insert(known),
        }
    }
    hidden
}

impl Rules {
    pub(super) fn compile(passing: &Passing, hidden: Arc<Hidden>, plan: &Plan<'_, '_>) -> Self {
        Self {
            hidden,
            rewrites: Rewrites::compile(passing, plan),
            cookies: cookie::Rules::compile(
                &passing.cookie_domains,
                &passing.cookie_paths,
                &passing.cookie_flags,
                plan,
            ),
            ignored: passing.cache.ignore_headers,
            force_ranges: passing.force_ranges.or(false),
        }
    }

    /// Where the upstream sends the request on, and what of its head goes along.
    pub(super) fn redirect(&self, x: &mut Exchange, head: &Head) -> Option<Vec<u8>> {
        let to = head.first(Known::XAccelRedirect)?.to_vec();
        if let Some(charset) = self.charset(head) {
            x.accel_charset = Some(Cow::Owned(charset.to_vec()));
        }
        for field in head.fields() {
            let value = head.get(field.value);
            match field.known {
                Known::ContentType => x.answer_type = Some(Cow::Owned(value.to_vec())),
                Known::AcceptRanges if self.force_ranges => {}
                Known::AcceptRanges if x.is_cacheable() || x.is_cached() => {
                    x.answer_ranges = Some(!x.is_cached());
                }
                Known::SetCookie
                | Known::ContentDisposition
                | Known::CacheControl
                | Known::Expires
                | Known::AcceptRanges => x.answer_headers.push(head.get(field.name), value),
                _ => {}
            }
        }
        Some(to)
    }

    /// What the upstream calls the charset of its answer.
    #[inline]
    fn charset<'h>(&self, head: &'h Head) -> Option<&'h [u8]> {
        head.first(Known::XAccelCharset).filter(|_| self.ignored & ignore::X_ACCEL_CHARSET == 0)
    }

    #[inline]
    pub(super) fn make(
        &self,
        x: &Exchange,
        mut response: Box<Response>,
        head: &Head,
        way: Way<'_>,
    ) -> Box<Response> {
        // What is not cached was not checked against the client's copy by the upstream, or was and is what it is.
        let cacheable = x.is_cacheable();
        response.disable_not_modified = !cacheable;
        if self.force_ranges {
            response.allow_ranges = true;
            response.single_range = !x.is_cached();
        }
        let reason = head.status_line();
        // Nearly every upstream says it in nginx's own words.
        let usual = status::line(head.status()).is_some_and(|line| line.as_bytes() == reason);
        if !reason.is_empty() && !usual {
            response.status_line = Some(Cow::Owned(reason.to_vec()));
        }
        response.content_length = if head.is_chunked() { None } else { head.content_length() };
        // It is obeyed although it does not go on.
        if let Some(charset) = self.charset(head) {
            response.override_charset = Some(Cow::Owned(charset.to_vec()));
        }
        // Where an upstream's are to go on, its silence does too.
        response.date_given = !self.hidden.known.has(Known::Date);
        response.server_given = !self.hidden.known.has(Known::Server);
        for field in head.fields() {
            if self.hidden.known.has(field.known) {
                continue;
            }
            let value = head.get(field.value);
            match field.known {
                Known::Other => {
                    let name = head.get(field.name);
                    if !self.hidden.hides(field.known, name) {
                        response.headers.copy(head, field);
                    }
                }
                Known::ContentType if value.is_empty() => {}
                Known::ContentType => {
                    response.set_content_type(value);
                    response.upstream_type = true;
                }
                // What is kept is cut here, whether the upstream can do that or not.
                Known::AcceptRanges if self.force_ranges => {}
                Known::AcceptRanges if cacheable || x.is_cached() => {
                    response.allow_ranges = true;
                    response.single_range = !x.is_cached();
                }
                Known::LastModified => {
                    response.last_modified = date::parse_http(value);
                    response.headers.copy(head, field);
                }
                Known::Location | Known::Refresh => {
                    let value = self.rewrites.apply(x, field.known, value, way.host, way.uri);
                    match value {
                        // A path that a rule made is a redirect within this server and is completed as our own are.
                        Cow::Owned(path) if field.known == Known::Location && path.starts_with(b"/") => {
                            response.location = Some(Cow::Owned(path));
                        }
                        // One that the upstream sent means what it means there.
                        value => response.headers.push_known(field.known, head.get(field.name), &value),
                    }
                }
                Known::SetCookie => match self.cookies.as_ref().and_then(|rules| rules.apply(x, value)) {
                    Some(changed) => {
                        response.headers.push_known(field.known, head.get(field.name), &changed);
                    }
                    None => response.headers.copy(head, field),
                },
                _ => response.headers.copy(head, field),
            }
        }
        response
    }
}
