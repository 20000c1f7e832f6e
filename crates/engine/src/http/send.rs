//! A response onto an HTTP/1 connection: its head in nginx's order, its body framed, in as few writes as can be.
//! Bodies over HTTP/2 go the same way, without framing.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::task::{Context, Poll, ready};

use weir_syntax::Level;

use crate::disk::{self, Reader};
use crate::http::response::{FilePart, Source, TURN};
use crate::http::{Body, Exchange, Headers, Response};
use crate::http1::body::{CHUNK_END, ChunkHead, LAST_CHUNK_HEAD};
use crate::http1::request::Version;
use crate::http1::{Known, Method, date, status, unbreak};
use crate::http2;
use crate::io::{Buf, Io};
use crate::settings::CoreSettings;
use weir_ir::http::core::ServerTokens;

/// Up to here a body is copied behind its head, so that both are one segment and one TLS record.
const JOINED: usize = 4096;
/// Up to here the first bytes of a source that postpones them wait for more.
const POSTPONED: usize = 1460;
/// Files up to this size are read rather than handed to `sendfile`.
const SMALL_FILE: u64 = 16 * 1024;
/// Files above this size do not fill the send buffer as far as it grows.
const LARGE_FILE: u64 = 256 * 1024;

/// Why a response could not be sent whole.
#[derive(Debug)]
pub enum SendError {
    /// The client is gone or takes nothing for `send_timeout`.
    Client(io::Error),
    Timeout,
    /// The body failed at its source, which has logged why.
    Body,
}

/// Sends a response; what was sent stays in the exchange for the log.
///
/// # Errors
/// The connection cannot be used any further.
pub async fn send(x: &mut Exchange, mut response: Box<Response>) -> Result<(), SendError> {
    if !x.early_hints.is_empty() {
        let mut hints = std::mem::take(&mut x.early_hints);
        flush(x, &mut hints).await?;
    }
    if matches!(x.client.io, Io::Stream(_)) {
        // Boxed, so that what waits for a client of HTTP/1.1 is not larger for it.
        return Box::pin(http2::send(x, response)).await;
    }
    if x.head.version() < Version::HTTP_10 || response.headless {
        let mut body = std::mem::take(&mut response.body);
        // An HTTP/0.9 client gets the body alone, as others do of an upstream that speaks HTTP/0.9.
        if x.method == Method::Head {
            unsent(x, &mut body);
        }
        x.status = response.status;
        x.keepalive = false;
        x.response = Some(response);
        return transmit(x, &mut Buf::new(), &mut body).await;
    }
    let mut body = body_to_send(x, &mut response);
    frame(x, &mut response, &body);
    let mut head = x.take_buf();
    write_head(x, &response, head.tail());
    x.debug(|| String::from_utf8_lossy(&head).into_owned());
    x.status = response.status;
    x.response = Some(response);
    if let Body::Tunnel(tunnel) = body {
        x.upgraded = Some(tunnel);
        body = Body::Empty;
    }
    let sent = transmit(x, &mut head, &mut body).await;
    x.keep_buf(head);
    sent
}

/// The body that goes out with a response.
#[inline(always)]
pub(crate) fn body_to_send(x: &mut Exchange, response: &mut Response) -> Body {
    let mut body = std::mem::take(&mut response.body);
    // A chunk of no bytes would be the last one.
    if matches!(&body, Body::Bytes(bytes) if bytes.is_empty())
        || matches!(&body, Body::File(part) if part.length == 0)
    {
        body = Body::Empty;
    }
    if matches!(response.status, 204 | 304)
        || x.method == Method::Head
        || (100..200).contains(&response.status)
    {
        unsent(x, &mut body);
    }
    body
}

/// Takes away a body that is not to be sent; a tunnel is none.
fn unsent(x: &mut Exchange, body: &mut Body) {
    // One that no one will pull is told so.
    if let Body::Stream(source) = body {
        source.finish(x, false);
    }
    if !matches!(body, Body::Tunnel(_)) {
        *body = Body::Empty;
    }
}

/// Takes away what a response of its status does not say.
#[inline(always)]
pub(crate) fn trim(response: &mut Response) {
    if !matches!(response.status, 200 | 206 | 304) {
        response.last_modified = None;
    }
    if response.status == 204 {
        // An upstream's says what it says.
        if !response.upstream_type {
            response.content_type = None;
        }
        response.content_length = None;
        response.last_modified = None;
    }
}

/// Decides how the client finds the end of the body.
fn frame(x: &mut Exchange, response: &mut Response, body: &Body) {
    if response.close {
        x.keepalive = false;
    }
    trim(response);
    if response.status == 204 {
        return;
    }
    let bodiless = matches!(response.status, 304 | 100..200)
        || x.method == Method::Head
        || matches!(body, Body::Tunnel(_));
    if bodiless || (response.content_length.is_some() && response.trailers.is_none()) {
        return;
    }
    if x.head.version() >= Version::HTTP_11 && x.location().core.chunked_transfer_encoding {
        response.content_length = None;
        x.chunked = true;
    } else if response.content_length.is_none() {
        x.keepalive = false;
    }
}

fn write_head(x: &Exchange, response: &Response, out: &mut Vec<u8>) {
    match &response.status_line {
        Some(line) => {
            out.extend_from_slice(b"HTTP/1.1 ");
            out.extend_from_slice(line);
            out.extend_from_slice(b"\r\n");
        }
        None => status::write_line(response.status, out),
    }
    let core = &x.location().core;
    if !response.server_given {
        write_server(core.server_tokens, out);
    }
    if !response.date_given {
        field(b"Date: ", x.reactor.clock().http_date().as_ref(), out);
    }
    if let Some(content_type) = &response.content_type {
        out.extend_from_slice(b"Content-Type: ");
        out.extend_from_slice(content_type);
        if let Some(charset) = &response.charset {
            out.extend_from_slice(b"; charset=");
            out.extend_from_slice(charset);
        }
        out.extend_from_slice(b"\r\n");
    }
    if let Some(length) = response.content_length {
        field(b"Content-Length: ", itoa::Buffer::new().format(length).as_bytes(), out);
    }
    if let Some(time) = response.last_modified
        && response.headers.first(Known::LastModified).is_none()
    {
        field(b"Last-Modified: ", date::http(time).as_ref(), out);
    }
    // Only a target that is completed has a place of its own; others stand among the other fields.
    let completed = completes(core, response);
    if let Some(location) = response.location.as_ref().filter(|_| completed) {
        let start = out.len();
        out.extend_from_slice(b"Location: ");
        write_origin(x, out);
        out.extend_from_slice(location);
        end_line(start, out);
    }
    if x.chunked {
        out.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
    }
    if response.status == 101 {
        out.extend_from_slice(b"Connection: upgrade\r\n");
    } else if x.keepalive {
        out.extend_from_slice(b"Connection: keep-alive\r\n");
        if core.keepalive_header > 0 {
            field(b"Keep-Alive: timeout=", itoa::Buffer::new().format(core.keepalive_header).as_bytes(), out);
        }
    } else {
        out.extend_from_slice(b"Connection: close\r\n");
    }
    if response.vary_encoding {
        out.extend_from_slice(b"Vary: Accept-Encoding\r\n");
    }
    if let Some(location) = response.location.as_ref().filter(|_| !completed) {
        let start = out.len();
        out.extend_from_slice(b"Location: ");
        out.extend_from_slice(location);
        end_line(start, out);
    }
    response.headers.write(out);
    out.extend_from_slice(b"\r\n");
}

macro_rules! server {
    () => {
        concat!("weir/", env!("CARGO_PKG_VERSION"))
    };
}

fn write_server(tokens: ServerTokens, out: &mut Vec<u8>) {
    match tokens {
        ServerTokens::On | ServerTokens::Build => {
            out.extend_from_slice(concat!("Server: ", server!(), "\r\n").as_bytes());
        }
        ServerTokens::Off => out.extend_from_slice(b"Server: weir\r\n"),
    }
}

/// What `Server` says.
pub(crate) const fn server(tokens: ServerTokens) -> &'static str {
    match tokens {
        ServerTokens::On | ServerTokens::Build => server!(),
        ServerTokens::Off => "weir",
    }
}

/// Whether the target of a redirect is made absolute.
pub(crate) fn completes(core: &CoreSettings, response: &Response) -> bool {
    core.absolute_redirect && response.location.as_ref().is_some_and(|l| l.starts_with(b"/"))
}

fn field(name: &[u8], value: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(name);
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Ends a line that may have come of a variable.
fn end_line(start: usize, out: &mut Vec<u8>) {
    unbreak(&mut out[start..]);
    out.extend_from_slice(b"\r\n");
}

/// `scheme://host[:port]` of absolute redirects: the server's own name where `server_name_in_redirect` says so.
pub(crate) fn write_origin(x: &Exchange, out: &mut Vec<u8>) {
    let core = &x.location().core;
    out.extend_from_slice(x.scheme());
    out.extend_from_slice(b"://");
    if core.server_name_in_redirect {
        out.extend_from_slice(&x.server().core.server_name);
    } else if x.host.is_empty() {
        match &x.connection.local {
            crate::io::Address::Ip(ip) => out.extend_from_slice(ip.ip().to_string().as_bytes()),
            crate::io::Address::Unix(path) => out.extend_from_slice(path.as_bytes()),
        }
    } else {
        out.extend_from_slice(&x.host);
    }
    if core.port_in_redirect {
        let port = x.connection.local.port().unwrap_or(0);
        let usual = if x.connection.tls.is_some() { 443 } else { 80 };
        if port != 0 && port != usual {
            out.push(b':');
            out.extend_from_slice(itoa::Buffer::new().format(port).as_bytes());
        }
    }
}

/// Writes what is left of a timed poll: arms `send_timeout` while the client takes nothing.
pub(crate) fn poll_client<T>(
    x: &mut Exchange,
    cx: &mut Context<'_>,
    poll: Poll<io::Result<T>>,
) -> Poll<Result<T, SendError>> {
    match poll {
        Poll::Ready(Ok(value)) => {
            x.client.timer.clear();
            Poll::Ready(Ok(value))
        }
        Poll::Ready(Err(error)) => Poll::Ready(Err(send_failed(x, error))),
        Poll::Pending => {
            if x.client.io.has_taken() || x.client.timer.deadline().is_none() {
                x.client.timer.set_about(x.location().core.send_timeout);
            }
            if x.client.timer.poll_expired(cx).is_ready() {
                let error = io::Error::from_raw_os_error(nix::libc::ETIMEDOUT);
                x.log_while(Level::Info, Some(&error), "client timed out", sending(x));
                if let Io::Stream(stream) = &x.client.io {
                    stream.time_out();
                }
                return Poll::Ready(Err(SendError::Timeout));
            }
            Poll::Pending
        }
    }
}

pub(crate) async fn transmit(x: &mut Exchange, head: &mut Buf, body: &mut Body) -> Result<(), SendError> {
    let head_length = head.len() as u64;
    let result = match body {
        Body::Empty if x.chunked => {
            write_trailers(x, None, head);
            finish(x, head).await
        }
        Body::Empty | Body::Tunnel(_) => finish(x, head).await,
        Body::Bytes(bytes) => send_bytes(x, head, bytes).await,
        Body::File(part) => send_file(x, head, part).await,
        Body::Stream(source) => {
            let result = send_stream(x, head, &mut **source).await;
            source.finish(x, result.is_ok());
            result
        }
    };
    x.body_sent = x.sent.saturating_sub(head_length);
    result
}

/// Writes all of `head`, and what TLS still holds.
async fn flush(x: &mut Exchange, head: &mut Buf) -> Result<(), SendError> {
    if try_write(x, head)? {
        return Ok(());
    }
    poll_fn(|cx| poll_write_all(x, cx, head)).await
}

/// As [`flush`], with the end of the response.
async fn finish(x: &mut Exchange, rest: &mut Buf) -> Result<(), SendError> {
    say_end(x);
    if try_write(x, rest)? {
        return Ok(());
    }
    poll_fn(|cx| poll_finish(x, cx, rest)).await
}

/// Whether all of `head` is written, which nearly always it is: then nothing has to be set up for waiting.
#[inline(always)]
fn try_write(x: &mut Exchange, head: &mut Buf) -> Result<bool, SendError> {
    if head.is_empty() || x.is_paced() {
        return Ok(false);
    }
    match x.client.io.try_write(head) {
        Ok(n) => {
            x.sent += n as u64;
            head.consume(n);
            Ok(head.is_empty())
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(send_failed(x, error)),
    }
}

fn send_failed(x: &Exchange, error: io::Error) -> SendError {
    x.log_while(Level::Info, Some(&error), "send() failed", sending(x));
    SendError::Client(error)
}

/// What is done while a response is sent, as messages say it.
fn sending(x: &Exchange) -> &'static str {
    if x.upstream_states.is_empty() { "sending response to client" } else { "sending to client" }
}

async fn send_bytes(x: &mut Exchange, head: &mut Buf, bytes: &[u8]) -> Result<(), SendError> {
    let mut end = Buf::new();
    if x.chunked {
        head.extend(ChunkHead::new(bytes.len() as u64).as_ref());
        end.extend(CHUNK_END);
        write_trailers(x, None, &mut end);
    }
    if head.len() + bytes.len() <= JOINED {
        head.extend(bytes);
        head.extend(&end);
        return finish(x, head).await;
    }
    let (mut rest, mut tail) = (bytes, &end[..]);
    poll_fn(|cx| {
        while !(head.is_empty() && rest.is_empty() && tail.is_empty()) {
            let pieces = [IoSlice::new(head), IoSlice::new(rest), IoSlice::new(tail)];
            let mut n = ready!(poll_write_pieces(x, cx, &pieces))?;
            let of_head = n.min(head.len());
            head.consume(of_head);
            n -= of_head;
            let of_rest = n.min(rest.len());
            rest = &rest[of_rest..];
            tail = &tail[n - of_rest..];
        }
        poll_finish(x, cx, head)
    })
    .await
}

async fn send_file(x: &mut Exchange, head: &mut Buf, part: &mut FilePart) -> Result<(), SendError> {
    if x.chunked {
        // A file's length is known, so only a filter that hides it leads here, and it turned the file to a stream.
        head.extend(ChunkHead::new(part.length).as_ref());
    }
    // Only a plain socket takes a file from the kernel; for the others there is no second way to read one.
    let read = matches!(x.client.io, Io::Plain(_)) && !x.location().core.sendfile;
    if part.length <= SMALL_FILE || read {
        return send_read_file(x, head, part).await;
    }
    let (mut offset, end) = (part.offset, part.offset + part.length);
    if let Io::Plain(socket) = &x.client.io
        && part.length > LARGE_FILE
    {
        socket.bound_unsent();
    }
    let together = x.location().core.tcp_nopush;
    loop {
        let turn = offset + disk::bring(&part.file, offset, TURN.min(end - offset)).await;
        poll_fn(|cx| {
            while !head.is_empty() {
                let pace = ready!(x.poll_pace(cx));
                let bytes = up_to(pace, head);
                let poll = match together {
                    true => x.client.io.poll_write_more(cx, bytes),
                    false => x.client.io.poll_write(cx, bytes),
                };
                let n = ready!(poll_client(x, cx, poll))?;
                x.count_sent(n as u64);
                head.consume(n);
            }
            while offset < turn {
                let left = (turn - offset).min(ready!(x.poll_pace(cx)));
                let poll = x.client.io.poll_sendfile(cx, &*part.file, &mut offset, left);
                let n = ready!(poll_client(x, cx, poll))?;
                if n == 0 {
                    x.log(Level::Alert, "the file was truncated while it was sent");
                    // The client gets what there was.
                    let _ = x.client.io.poll_flush(cx);
                    return Poll::Ready(Err(SendError::Body));
                }
                x.count_sent(n as u64);
            }
            if turn == end {
                return Poll::Ready(Ok(()));
            }
            // The disk may take its time before the next.
            let poll = x.client.io.poll_flush(cx);
            poll_client(x, cx, poll)
        })
        .await?;
        if turn == end {
            break;
        }
        // Others have theirs.
        tokio::task::yield_now().await;
    }
    let mut end = Buf::new();
    if x.chunked {
        end.extend(CHUNK_END);
        write_trailers(x, None, &mut end);
    }
    finish(x, &mut end).await
}

/// Reads a file piece by piece and writes it, the first piece behind the head.
async fn send_read_file(x: &mut Exchange, head: &mut Buf, part: &mut FilePart) -> Result<(), SendError> {
    let (mut offset, end) = (part.offset, part.offset + part.length);
    let mut reader = Reader::default();
    loop {
        let room = (end - offset).min(64 * 1024) as usize;
        if room > 0 {
            match reader.fill(&part.file, head, room, offset).await {
                Ok(0) => {
                    x.log(Level::Alert, "the file was truncated while it was sent");
                    return Err(SendError::Body);
                }
                Ok(n) => offset += n as u64,
                Err(error) => {
                    x.log_error(Level::Crit, Some(&error), "pread() failed");
                    return Err(SendError::Body);
                }
            }
        }
        if offset == end && x.chunked {
            head.extend(CHUNK_END);
            write_trailers(x, None, head);
        }
        if offset == end {
            return finish(x, head).await;
        }
        flush(x, head).await?;
    }
}

/// How far the chunk framing of a stream is.
#[derive(Default)]
struct Chunks {
    /// Bytes of the present chunk that are still to be written.
    left: usize,
    /// The last chunk is written, or waits in the buffer.
    over: bool,
    /// Something was written: what the buffer holds is a rest, and comes before anything else.
    started: bool,
    /// It is the source that is waited for.
    starved: bool,
}

/// Pulls a body and writes it as it comes. The head waits for the first bytes, but not for long: it goes out when
/// the source has nothing yet.
async fn send_stream(x: &mut Exchange, head: &mut Buf, source: &mut dyn Source) -> Result<(), SendError> {
    let mut chunks = Chunks::default();
    poll_fn(|cx| {
        chunks.starved = false;
        let sent = poll_stream(x, cx, head, source, &mut chunks);
        if sent.is_pending() && !chunks.starved {
            source.read_ahead(x, cx);
        }
        sent
    })
    .await
}

fn poll_stream(
    x: &mut Exchange,
    cx: &mut Context<'_>,
    head: &mut Buf,
    source: &mut dyn Source,
    chunks: &mut Chunks,
) -> Poll<Result<(), SendError>> {
    loop {
        if chunks.started && !head.is_empty() {
            ready!(poll_write_some(x, cx, head))?;
        }
        match source.poll_ready(x, cx) {
            Poll::Ready(Ok(true)) => ready!(poll_write_piece(x, cx, head, source, chunks))?,
            Poll::Ready(Ok(false)) => {
                if x.chunked && !chunks.over {
                    chunks.over = true;
                    write_trailers(x, source.trailers(), head);
                } else if matches!(x.client.io, Io::Stream(_)) {
                    add_trailers(x, source.trailers());
                }
                return poll_finish(x, cx, head);
            }
            Poll::Ready(Err(_)) => {
                if chunks.started || !source.postpones() {
                    ready!(poll_write_all(x, cx, head))?;
                }
                return Poll::Ready(Err(SendError::Body));
            }
            Poll::Pending => {
                if chunks.started || !source.postpones() {
                    // The body comes in pieces, and each is for the client at once.
                    x.set_nodelay();
                    chunks.started = true;
                    ready!(poll_write_all(x, cx, head))?;
                }
                if source.ends_with_client() && x.poll_client_gone(cx) {
                    x.log_client_gone("reading upstream");
                    let gone = io::ErrorKind::ConnectionAborted.into();
                    return Poll::Ready(Err(SendError::Client(gone)));
                }
                chunks.starved = true;
                return Poll::Pending;
            }
        }
    }
}

fn poll_write_all(x: &mut Exchange, cx: &mut Context<'_>, head: &mut Buf) -> Poll<Result<(), SendError>> {
    ready!(poll_write_some(x, cx, head))?;
    let poll = x.client.io.poll_flush(cx);
    poll_client(x, cx, poll)
}

/// Writes the rest of a response. Where the connection ends with it, TLS says so in the same write.
fn poll_finish(x: &mut Exchange, cx: &mut Context<'_>, rest: &mut Buf) -> Poll<Result<(), SendError>> {
    ready!(poll_write_some(x, cx, rest))?;
    if !x.keepalive && x.upgraded.is_none() {
        x.client.io.end();
    }
    say_end(x);
    let poll = x.client.io.poll_flush(cx);
    poll_client(x, cx, poll)
}

/// Before the last of a response is written: where nothing is waited for between that and the end of its connection, it
/// leaves with the FIN.
fn say_end(x: &mut Exchange) {
    let goes_on = x.keepalive || x.upgraded.is_some() || !x.background.is_empty() || x.is_paced();
    if !goes_on && x.location().core.post_action.is_none() {
        x.client.io.closes();
    }
}

fn add_trailers(x: &Exchange, fields: Option<&Headers>) {
    for (name, value) in fields.into_iter().flat_map(Headers::iter) {
        x.add_trailer(name, value);
    }
}

/// Ends a chunked body, with the trailer fields of its source and those that were added on the way.
fn write_trailers(x: &Exchange, of_source: Option<&Headers>, out: &mut Buf) {
    let added = x.response.as_ref().and_then(|response| response.trailers.as_deref());
    add_trailers(x, of_source);
    if let Some(added) = added {
        added.append(x);
    }
    out.extend(LAST_CHUNK_HEAD);
    for (name, value) in x.trailers().iter().flat_map(|fields| fields.iter()) {
        out.extend(name);
        out.extend(b": ");
        out.extend(value);
        out.extend(b"\r\n");
    }
    out.extend(b"\r\n");
}

/// Writes what the source has, with its chunk framing. What the socket does not take of the framing waits in `head`;
/// what it does not take of the data waits in the source.
fn poll_write_piece(
    x: &mut Exchange,
    cx: &mut Context<'_>,
    head: &mut Buf,
    source: &mut dyn Source,
    chunks: &mut Chunks,
) -> Poll<Result<(), SendError>> {
    if x.chunked && chunks.left == 0 {
        chunks.left = source.data().len();
        head.extend(ChunkHead::new(chunks.left as u64).as_ref());
    }
    let data = source.data();
    // Where it was put aside meanwhile, it comes in other pieces than the one that its chunk began with.
    let length = if x.chunked { data.len().min(chunks.left) } else { data.len() };
    let is_last =
        length == data.len() && source.is_last() && x.response.as_ref().is_none_or(|r| r.trailers.is_none());
    if is_last {
        say_end(x);
    }
    let data = &data[..length];
    let ends: &[u8] = match (x.chunked && length == chunks.left, is_last) {
        (false, _) => b"",
        (true, true) => b"\r\n0\r\n\r\n",
        (true, false) => CHUNK_END,
    };
    let joined = head.len() + length <= JOINED || x.client.io.is_tls();
    let mut of_ends = ends.len();
    let of_data = if joined {
        // One buffer, one segment; with TLS one record.
        head.extend(data);
        length
    } else {
        chunks.started = true;
        let pieces = [IoSlice::new(head), IoSlice::new(data), IoSlice::new(ends)];
        let n = ready!(poll_write_pieces(x, cx, &pieces))?;
        let of_head = n.min(head.len());
        head.consume(of_head);
        let of_data = (n - of_head).min(length);
        of_ends = ends.len() - (n - of_head - of_data);
        of_data
    };
    source.consume(of_data);
    if x.chunked {
        chunks.left -= of_data;
        if chunks.left == 0 {
            chunks.over = is_last;
            head.extend(&ends[ends.len() - of_ends..]);
        }
    }
    if !chunks.started && head.len() < POSTPONED && source.postpones() {
        return Poll::Ready(Ok(()));
    }
    chunks.started = true;
    poll_write_some(x, cx, head)
}

/// Writes without flushing TLS: more is about to come.
fn poll_write_some(x: &mut Exchange, cx: &mut Context<'_>, head: &mut Buf) -> Poll<Result<(), SendError>> {
    while !head.is_empty() {
        let pace = ready!(x.poll_pace(cx));
        let poll = x.client.io.poll_write(cx, up_to(pace, head));
        let n = ready!(poll_client(x, cx, poll))?;
        x.count_sent(n as u64);
        head.consume(n);
    }
    Poll::Ready(Ok(()))
}

/// Writes what it can of the pieces, in their order.
fn poll_write_pieces(
    x: &mut Exchange,
    cx: &mut Context<'_>,
    pieces: &[IoSlice<'_>],
) -> Poll<Result<usize, SendError>> {
    let pace = ready!(x.poll_pace(cx));
    let poll = if pace == u64::MAX {
        x.client.io.poll_write_vectored(cx, pieces)
    } else {
        let first = pieces.iter().find(|piece| !piece.is_empty()).map_or(&[][..], |piece| piece);
        x.client.io.poll_write(cx, up_to(pace, first))
    };
    let n = ready!(poll_client(x, cx, poll))?;
    x.count_sent(n as u64);
    Poll::Ready(Ok(n))
}

fn up_to(pace: u64, bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.len().min(usize::try_from(pace).unwrap_or(usize::MAX))]
}
