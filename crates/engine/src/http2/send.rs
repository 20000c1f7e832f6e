//! A response onto a stream: its head in nginx's order, its body as it comes, its trailers.

use aws_lc_rs::digest;
use bytes::BytesMut;
use hyper::header::{
    CONTENT_LENGTH, CONTENT_TYPE, DATE, HeaderName, HeaderValue, LAST_MODIFIED, LOCATION, SERVER, VARY,
};
use hyper::{HeaderMap, Response as Head, StatusCode};
use weir_syntax::Level;

use super::ChunkSize;
use crate::http::exchange::Tunnel;
use crate::http::send::{SendError, body_to_send, completes, server, transmit, trim, write_origin};
use crate::http::{Body, Exchange, Headers, Response, base64_encode};
use crate::http1::{Known, date, status, unbreak};
use crate::io::{Buf, Io};

/// Bytes before each frame's payload.
const FRAME: u64 = 9;

/// The key that a client of HTTP/1.1 would have sent with its upgrade, kept until the answer to it.
pub(super) struct Key(pub(super) String);

/// Sends a response; what was sent stays in the exchange for the log.
pub(crate) async fn send(x: &mut Exchange, mut response: Box<Response>) -> Result<(), SendError> {
    let mut body = match body_to_send(x, &mut response) {
        Body::Tunnel(tunnel) if x.remembered::<Key>().is_some() => bridge(x, &mut response, tunnel),
        // Nobody asked for one; so what the upstream says cannot be told.
        Body::Tunnel(_) => instead(&mut response, 502),
        // To the client any success is a tunnel.
        mut body if (200..300).contains(&response.status) && x.remembered::<Key>().is_some() => {
            if let Body::Stream(source) = &mut body {
                source.finish(x, false);
            }
            instead(&mut response, 501)
        }
        body => body,
    };
    trim(&mut response);
    let (head, length) = head(x, &response);
    let frame = x.location().attached::<ChunkSize>().copied().unwrap_or_default().0;
    x.status = response.status;
    x.response = Some(response);
    let Io::Stream(stream) = &x.client.io else { return Err(SendError::Body) };
    stream.respond(head, length, frame);
    if let Body::Tunnel(tunnel) = body {
        x.upgraded = Some(tunnel);
        body = Body::Empty;
    }
    // What was hinted at is no body.
    let hinted = std::mem::take(&mut x.sent);
    let sent = transmit(x, &mut Buf::new(), &mut body).await;
    let frames = x.body_sent.div_ceil(frame as u64);
    // What the head takes when it is compressed only hyper knows.
    x.sent += hinted + length + FRAME * frames;
    if sent.is_ok() {
        let trailers = trailers(x);
        if let Io::Stream(stream) = &x.client.io {
            stream.end(trailers);
        }
    }
    sent
}

/// Makes 200 of an upstream's 101, once it has shown that it means the upgrade that it was asked for.
fn bridge(x: &Exchange, response: &mut Response, tunnel: Box<Tunnel>) -> Body {
    let accepts = x.remembered::<Key>().is_some_and(|key| {
        let expected = accept_of(&key.0);
        let mut values = response.headers.all(b"sec-websocket-accept");
        response.status == 101 && values.next() == Some(expected.as_bytes()) && values.next().is_none()
    });
    if !accepts {
        x.log(Level::Error, "upstream sent no valid \"Sec-WebSocket-Accept\" to an upgrade");
        return instead(response, 502);
    }
    response.status = 200;
    response.content_length = None;
    for name in [&b"upgrade"[..], b"connection", b"sec-websocket-accept"] {
        response.headers.remove(name);
    }
    Body::Tunnel(tunnel)
}

/// An answer of that status and no more.
fn instead(response: &mut Response, status: u16) -> Body {
    response.clear();
    response.status = status;
    response.content_length = Some(0);
    Body::Empty
}

/// What a server answers to a key (RFC 6455 section 4.2.2).
fn accept_of(key: &str) -> String {
    let salted = format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    base64_encode(digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, salted.as_bytes()).as_ref())
}

/// The head, and about how many bytes it has in its frame.
fn head(x: &Exchange, response: &Response) -> (Head<()>, u64) {
    let mut fields = Fields::new(x, FIELDS);
    fields.length = FRAME + 1;
    let core = &x.location().core;
    if !response.server_given {
        fields.put(SERVER, HeaderValue::from_static(server(core.server_tokens)));
    }
    if !response.date_given {
        fields.set(DATE, x.reactor.clock().http_date().as_ref());
    }
    if let Some(content_type) = &response.content_type {
        match &response.charset {
            Some(charset) => fields.set(CONTENT_TYPE, &[&content_type[..], b"; charset=", charset].concat()),
            None => fields.set(CONTENT_TYPE, content_type),
        }
    }
    if let Some(length) = response.content_length {
        fields.set(CONTENT_LENGTH, itoa::Buffer::new().format(length).as_bytes());
    }
    if let Some(time) = response.last_modified
        && response.headers.first(Known::LastModified).is_none()
    {
        fields.set(LAST_MODIFIED, date::http(time).as_ref());
    }
    if let Some(location) = &response.location {
        let mut target = vec![];
        if completes(core, response) {
            write_origin(x, &mut target);
        }
        target.extend_from_slice(location);
        unbreak(&mut target);
        fields.set(LOCATION, &target);
    }
    if response.vary_encoding {
        fields.set(VARY, b"Accept-Encoding");
    }
    fields.add(&response.headers);
    let mut head = Head::new(());
    *head.status_mut() =
        StatusCode::from_u16(status::shown(response.status)).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    *head.headers_mut() = fields.map;
    (head, fields.length)
}

/// Those of the body's source, and those that were added on the way.
fn trailers(x: &Exchange) -> Option<HeaderMap> {
    let added = x.response.as_ref().and_then(|response| response.trailers.as_deref());
    if let Some(added) = added.filter(|_| !has_no_body(x)) {
        added.append(x);
    }
    let trailers = x.trailers();
    let trailers = trailers.as_ref()?;
    let mut fields = Fields::new(x, 0);
    fields.add(trailers);
    Some(fields.map).filter(|map| !map.is_empty())
}

/// Whether no response to the request has a body, so that nothing can be behind it.
fn has_no_body(x: &Exchange) -> bool {
    x.method == crate::http1::Method::Head || matches!(x.status, 204 | 304) || x.upgraded.is_some()
}

/// Fields that a head usually has no more of.
const FIELDS: usize = 16;
/// Bytes that the values of a head usually have.
const VALUES: usize = 256;

/// Fields as hyper takes them.
struct Fields<'x> {
    x: &'x Exchange,
    map: HeaderMap,
    /// The memory of all values.
    values: BytesMut,
    length: u64,
}

impl<'x> Fields<'x> {
    fn new(x: &'x Exchange, many: usize) -> Self {
        let (map, values) = (HeaderMap::with_capacity(many), BytesMut::with_capacity(VALUES));
        Self { x, map, values, length: 0 }
    }

    fn set(&mut self, name: HeaderName, value: &[u8]) {
        self.values.extend_from_slice(value);
        match HeaderValue::from_maybe_shared(self.values.split().freeze()) {
            Ok(value) => self.put(name, value),
            Err(_) => self.refuse(name.as_str().as_bytes()),
        }
    }

    fn put(&mut self, name: HeaderName, value: HeaderValue) {
        self.length += (name.as_str().len() + value.len() + 2) as u64;
        self.map.append(name, value);
    }

    fn add(&mut self, fields: &Headers) {
        for (name, value) in fields.iter() {
            match HeaderName::from_bytes(name) {
                Ok(name) => self.set(name, value),
                Err(_) => self.refuse(name),
            }
        }
    }

    /// A field with bytes that HTTP/2 does not carry stays behind.
    fn refuse(&self, name: &[u8]) {
        let name = String::from_utf8_lossy(name);
        self.x.log(Level::Warn, format_args!("header \"{name}\" cannot be sent over HTTP/2"));
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_example_of_rfc_6455() {
        assert_eq!(super::accept_of("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }
}
