//! One request over HTTP/2, without TLS, through hyper. The response is written as HTTP/1.1 would have it, so that all that is
//! known of those holds for it.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io::{self, Write as _};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::client::conn::http2;
use hyper::rt::{Executor, Read, ReadBufCursor, Write};
use hyper::{HeaderMap, Request, Response};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::Result;

/// The body of a request: a frame that may wait to be sent, or none.
struct Sent(Option<Bytes>);

impl Body for Sent {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<std::result::Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.take().map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }
}

/// Sends a request and gives the response; an error of the protocol stands in its place.
pub fn ask(
    port: u16,
    method: &str,
    uri: &str,
    headers: &[u8],
    body: Option<&[u8]>,
    limit: Duration,
) -> Result<Vec<u8>> {
    let mut request = Request::builder().method(method).uri(format!("http://localhost{uri}"));
    for line in String::from_utf8(headers.to_vec())?.lines() {
        let (name, value) = line.split_once(": ").ok_or("a header line without a value")?;
        request = request.header(name, value);
    }
    let request = request.body(Sent(body.map(|bytes| Bytes::from(bytes.to_vec()))))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let asked = async {
        let stream = TcpStream::connect(("127.0.0.1", port)).await?;
        let (mut sender, connection) = http2::handshake(Local, Stream(stream)).await?;
        let driven = tokio::task::spawn_local(connection);
        let text = match sender.send_request(request).await {
            Ok(response) => read(response).await,
            Err(error) => told(&error),
        };
        drop(sender);
        driven.abort();
        Ok(text)
    };
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async { tokio::time::timeout(limit, asked).await? })
}

/// What broke a stream, without hyper's words for it.
fn told(error: &hyper::Error) -> Vec<u8> {
    let cause = std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string);
    format!("[{cause}]\r\n").into_bytes()
}

async fn read(response: Response<Incoming>) -> Vec<u8> {
    let mut text = format!("HTTP/1.1 {} over HTTP/2\r\n", response.status().as_u16()).into_bytes();
    fields(response.headers(), &mut text);
    text.extend_from_slice(b"\r\n");
    let mut body = pin!(response.into_body());
    while let Some(frame) = poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
        match frame.map(Frame::into_data) {
            Ok(Ok(bytes)) => text.extend_from_slice(&bytes),
            Ok(Err(frame)) => {
                text.extend_from_slice(b"\r\n[trailers]\r\n");
                fields(&frame.into_trailers().unwrap_or_default(), &mut text);
            }
            Err(error) => {
                text.extend_from_slice(b"\r\n");
                text.extend_from_slice(&told(&error));
                break;
            }
        }
    }
    text
}

/// Names as HTTP/1.1 spells them.
fn fields(fields: &HeaderMap, text: &mut Vec<u8>) {
    for (name, value) in fields {
        let words = name.as_str().split('-').map(|word| {
            let (first, rest) = word.split_at(word.len().min(1));
            first.to_ascii_uppercase() + rest
        });
        // A Vec takes everything.
        let _ = write!(text, "{}: ", words.collect::<Vec<_>>().join("-"));
        text.extend_from_slice(value.as_bytes());
        text.extend_from_slice(b"\r\n");
    }
}

/// Hyper's tasks are this thread's.
#[derive(Clone)]
struct Local;

impl<F: Future + 'static> Executor<F> for Local {
    fn execute(&self, task: F) {
        tokio::task::spawn_local(async { drop(task.await) });
    }
}

/// tokio's socket as hyper wants it.
struct Stream(TcpStream);

impl Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut into: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let mut bytes = [0; 16384];
        let room = bytes.len().min(into.remaining());
        let mut read = ReadBuf::new(&mut bytes[..room]);
        ready!(Pin::new(&mut self.0).poll_read(cx, &mut read))?;
        into.put_slice(read.filled());
        Poll::Ready(Ok(()))
    }
}

impl Write for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
