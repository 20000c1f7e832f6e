//! The client's response made of the upstream's head.

use std::borrow::Cow;
use std::sync::Arc;

use weir_engine::http::{Exchange, Response};
use weir_engine::http1::response::Head;
use weir_engine::http1::{Field, Known, KnownSet};
use weir_engine::http1::{date, status};
use weir_engine::upstream::Hidden;
use weir_engine::upstream::exchange::ignore;

use super::Common;

/// What of an upstream's head goes on.
pub(crate) struct Rules {
    /// What stays.
    hidden: Arc<Hidden>,
    /// Bits of what is not obeyed.
    ignored: u32,
    force_ranges: bool,
}

/// Headers that are between the upstream and us, or that we write ourselves.
const OWN: [Known; 4] = [Known::Connection, Known::KeepAlive, Known::TransferEncoding, Known::ContentLength];

/// What of an upstream's head, and of the fields behind its body, does not go on as it is.
/// `defaults` stay unless `…_pass_header` names them.
pub(crate) fn hidden(common: &Common, defaults: &[&str]) -> Hidden {
    let mut hidden = Hidden { known: KnownSet::of(&OWN), names: vec![] };
    let passed = |name: &[u8]| common.pass_headers.iter().any(|p| **p == *name);
    let defaults = defaults.iter().map(|name| name.as_bytes());
    let names = defaults.chain(common.hide_headers.iter().map(|name| &**name));
    for name in names.filter(|name| !passed(name)) {
        match Known::of(name) {
            Known::Other => hidden.names.push(name.into()),
            known => hidden.known.insert(known),
        }
    }
    hidden
}

impl Rules {
    pub(crate) fn compile(common: &Common, hidden: Arc<Hidden>) -> Self {
        Self { hidden, ignored: common.cache.ignore_headers, force_ranges: common.force_ranges.or(false) }
    }

    /// Where the upstream sends the request on, and what of its head goes along.
    pub(crate) fn redirect(&self, x: &mut Exchange, head: &Head) -> Option<Vec<u8>> {
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

    /// `place` adds a field that names a place or sets a cookie to the response, as the client is to have it.
    #[inline]
    pub(crate) fn make(
        &self,
        x: &mut Exchange,
        head: &Head,
        place: impl Fn(&Exchange, &Field, &mut Response),
    ) -> Box<Response> {
        let mut response = x.new_response(head.status());
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
                Known::Location | Known::Refresh | Known::SetCookie => place(x, field, &mut response),
                _ => response.headers.copy(head, field),
            }
        }
        // What an upstream before this one said of the type was of a content that this one takes the place of.
        if response.content_type.is_some() {
            x.answer_type = None;
        }
        response
    }
}
