//! A response onto a stream: its head in nginx's order, its body as it comes, its trailers.

use std::future::poll_fn;
use std::task::{Context, Poll};

use aws_lc_rs::digest;
use weir_syntax::Level;

use super::ChunkSize;
use super::hpack::Fields;
use super::request::OF_HTTP1;
use crate::http::exchange::Tunnel;
use crate::http::send::{
    SendError, body_to_send, completes, poll_client, server, transmit, trim, write_origin,
};
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
    let head = head(x, &response);
    // How long it is when it is compressed is known when it is sent.
    let length =
        FRAME + 1 + head.iter().map(|(name, value)| name.len() + value.len() + 2).sum::<usize>() as u64;
    let frame = x.location().attached::<ChunkSize>().copied().unwrap_or_default().0;
    x.status = response.status;
    x.response = Some(response);
    let Io::Stream(stream) = &x.client.io else { return Err(SendError::Body) };
    stream.respond(status::shown(x.status), head, length, frame);
    if let Body::Tunnel(tunnel) = body {
        x.upgraded = Some(tunnel);
        body = Body::Empty;
    }
    // What was hinted at is no body.
    let hinted = std::mem::take(&mut x.sent);
    let sent = transmit(x, &mut Buf::new(), &mut body).await;
    let frames = x.body_sent.div_ceil(frame as u64);
    x.sent += hinted + length + FRAME * frames;
    if sent.is_ok() {
        let trailers = trailers(x);
        if let Io::Stream(stream) = &x.client.io {
            stream.end(trailers);
        }
        // As in nginx the request is over when all of it is on its way.
        return poll_fn(|cx| poll_taken(x, cx)).await;
    }
    sent
}

fn poll_taken(x: &mut Exchange, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
    let Io::Stream(stream) = &x.client.io else { return Poll::Ready(Ok(())) };
    let taken = stream.poll_taken(cx);
    poll_client(x, cx, taken)
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

/// The fields of the head.
fn head(x: &Exchange, response: &Response) -> Fields {
    let mut fields = Fields::default();
    let core = &x.location().core;
    if !response.server_given {
        fields.push(b"server", server(core.server_tokens).as_bytes());
    }
    if !response.date_given {
        fields.push(b"date", x.reactor.clock().http_date().as_ref());
    }
    if let Some(content_type) = &response.content_type {
        match &response.charset {
            Some(charset) => {
                fields.push(b"content-type", &[&content_type[..], b"; charset=", charset].concat());
            }
            None => fields.push(b"content-type", content_type),
        }
    }
    if let Some(length) = response.content_length {
        fields.push(b"content-length", itoa::Buffer::new().format(length).as_bytes());
    }
    if let Some(time) = response.last_modified
        && response.headers.first(Known::LastModified).is_none()
    {
        fields.push(b"last-modified", date::http(time).as_ref());
    }
    if let Some(location) = &response.location {
        let mut target = vec![];
        if completes(core, response) {
            write_origin(x, &mut target);
        }
        target.extend_from_slice(location);
        unbreak(&mut target);
        fields.push(b"location", &target);
    }
    if response.vary_encoding {
        fields.push(b"vary", b"Accept-Encoding");
    }
    add(x, &response.headers, &mut fields);
    fields
}

/// Those of the body's source, and those that were added on the way.
fn trailers(x: &Exchange) -> Option<Fields> {
    let added = x.response.as_ref().and_then(|response| response.trailers.as_deref());
    if let Some(added) = added.filter(|_| !has_no_body(x)) {
        added.append(x);
    }
    let trailers = x.trailers();
    let mut fields = Fields::default();
    add(x, trailers.as_ref()?, &mut fields);
    Some(fields).filter(|fields| !fields.is_empty())
}

/// Whether no response to the request has a body, so that nothing can be behind it.
fn has_no_body(x: &Exchange) -> bool {
    x.method == crate::http1::Method::Head || matches!(x.status, 204 | 304) || x.upgraded.is_some()
}

/// Adds fields but for those of a connection, which HTTP/2 has not (RFC 9113 section 8.2.2), and such as it does not carry.
fn add(x: &Exchange, from: &Headers, fields: &mut Fields) {
    for (name, value) in from.iter() {
        match carries(name, value) {
            true => fields.push(name, value),
            false if is_of_http1(name) => {}
            false => {
                let name = String::from_utf8_lossy(name);
                x.log(Level::Warn, format_args!("header \"{name}\" cannot be sent over HTTP/2"));
            }
        }
    }
}

fn is_of_http1(name: &[u8]) -> bool {
    OF_HTTP1.iter().any(|(other, _)| name.eq_ignore_ascii_case(other))
}

/// Whether HTTP/2 has such a field.
pub(super) fn carries(name: &[u8], value: &[u8]) -> bool {
    let token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    !name.is_empty()
        && name.iter().all(token)
        && !is_of_http1(name)
        && !value.iter().any(|byte| matches!(byte, 0 | b'\r' | b'\n'))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_example_of_rfc_6455() {
        assert_eq!(super::accept_of("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }
}
