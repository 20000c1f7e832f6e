//! Sends a request to its upstream: the head, and the body as it was stored or as it comes.

use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll};

use weir_syntax::Level;

use super::{Asking, Attempt, Failure, Settings, client_gone, log_timeout, next, poll_client_gone};
use crate::http::Exchange;
use crate::http::request_body::RequestBody;
use crate::http1::body::{ChunkHead, LAST_CHUNK};
use crate::io::Block;

impl Attempt {
    /// Whether the upstream has answered while it is still sent to; what became of reading is kept.
    fn poll_early(&mut self, cx: &mut Context<'_>, x: &mut Exchange, settings: &Settings) -> bool {
        if self.line.io.poll_read_ready(cx).is_ready()
            && let Poll::Ready(read) = self.poll_head(cx, x, settings)
        {
            self.early = Some(read);
        }
        self.early.is_some()
    }
}

/// How a write ended.
enum Sent {
    All,
    Answered,
    Timeout,
    ClientGone,
    Failed(io::Error),
}

impl Asking<'_> {
    /// Sends the request. An upstream that answers before it has all of it is listened to, unless it only says that it
    /// is going to.
    pub(super) async fn send(&mut self, x: &mut Exchange, attempt: &mut Attempt) -> Result<(), Failure> {
        let already = x.upstream_states.last().map_or(0, |s| s.bytes_sent) as usize;
        let mut rest = &self.request[already..];
        if !rest.is_empty() {
            // Nearly always it is taken whole, and nothing has to be set up for waiting.
            match attempt.line.io.try_write(rest) {
                Ok(n) => {
                    rest = &rest[n..];
                    if let Some(state) = x.upstream_states.last_mut() {
                        state.bytes_sent += n as u64;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(send_failed(x, attempt, &error)),
            }
        }
        if !rest.is_empty() && !self.write(x, attempt, &mut rest).await? {
            return Ok(());
        }
        if self.streams {
            if !self.send_streaming(x, attempt).await? {
                return Ok(());
            }
        } else if self.protocol.settings().pass_request_body
            && !self.protocol.replaces_body()
            && !self.send_stored(x, attempt).await?
        {
            return Ok(());
        }
        attempt.sent = true;
        Ok(())
    }

    /// Writes all of `bytes`; false where the upstream began to answer meanwhile.
    async fn write(
        &self,
        x: &mut Exchange,
        attempt: &mut Attempt,
        bytes: &mut &[u8],
    ) -> Result<bool, Failure> {
        let settings = self.protocol.settings();
        let timer = &self.timer;
        let mut written = 0;
        let result = poll_fn(|cx| {
            loop {
                let io = &mut attempt.line.io;
                let polled = match bytes.is_empty() {
                    false => io.poll_write(cx, bytes),
                    // What the session holds of it is not sent yet.
                    true => io.poll_flush(cx).map_ok(|()| 0),
                };
                match polled {
                    Poll::Ready(Ok(_)) if bytes.is_empty() => return Poll::Ready(Sent::All),
                    Poll::Ready(Ok(n)) => {
                        *bytes = &bytes[n..];
                        written += n as u64;
                        timer.clear();
                    }
                    Poll::Ready(Err(error)) => return Poll::Ready(Sent::Failed(error)),
                    Poll::Pending => break,
                }
            }
            if attempt.line.io.has_taken() || timer.deadline().is_none() {
                timer.set_about(settings.send_timeout);
            }
            if attempt.poll_early(cx, x, settings) {
                return Poll::Ready(Sent::Answered);
            }
            if poll_client_gone(x, cx, settings) {
                return Poll::Ready(Sent::ClientGone);
            }
            timer.poll_expired(cx).map(|()| Sent::Timeout)
        })
        .await;
        timer.clear();
        if let Some(state) = x.upstream_states.last_mut() {
            state.bytes_sent += written;
        }
        match result {
            Sent::All => Ok(true),
            Sent::Answered => Ok(false),
            Sent::ClientGone => Err(client_gone(x, "sending request to upstream")),
            Sent::Timeout => {
                log_timeout(x, "sending request to upstream");
                Err(Failure::of(next::TIMEOUT, attempt.cached))
            }
            Sent::Failed(error) => Err(send_failed(x, attempt, &error)),
        }
    }

    async fn send_stored(&self, x: &mut Exchange, attempt: &mut Attempt) -> Result<bool, Failure> {
        let Some(length) = x.body.stored().map(|stored| stored.len()) else { return Ok(true) };
        let mut offset = 0;
        while offset < length {
            let mut block = Block::small();
            let got = x.body.stored().map_or(Ok(0), |stored| stored.read_at(offset, &mut block));
            let n = match got {
                Ok(n) if n > 0 => n,
                Ok(_) => return Err(Failure::end(500)),
                Err(error) => {
                    x.log_error(Level::Crit, Some(&error), "reading the request body failed");
                    return Err(Failure::end(500));
                }
            };
            offset += n as u64;
            let mut bytes = &block[..n];
            if !self.write(x, attempt, &mut bytes).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn send_streaming(&mut self, x: &mut Exchange, attempt: &mut Attempt) -> Result<bool, Failure> {
        if let Err(error) = x.send_continue().await {
            return Err(Failure::end(error.0));
        }
        let mut piece = Vec::new();
        let mut framed = Vec::new();
        while !x.body.is_over() {
            piece.clear();
            let settings = self.protocol.settings();
            let event = poll_fn(|cx| {
                if let Poll::Ready(result) = x.poll_body_piece(cx, &mut piece) {
                    return Poll::Ready(Some(result));
                }
                if attempt.poll_early(cx, x, settings) { Poll::Ready(None) } else { Poll::Pending }
            });
            match event.await {
                Some(Ok(())) => {}
                Some(Err(error)) => return Err(Failure::end(error.0)),
                None => return Ok(false),
            }
            framed.clear();
            append_piece(&piece, &x.body, &mut framed);
            let mut bytes: &[u8] = &framed;
            if !self.write(x, attempt, &mut bytes).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

fn send_failed(x: &Exchange, attempt: &Attempt, error: &io::Error) -> Failure {
    x.log_while(Level::Error, Some(error), "send() failed", "sending request to upstream");
    Failure::of(next::ERROR, attempt.cached)
}

/// Appends a part of a request's body as it is framed for the upstream, the end behind the last one.
pub(super) fn append_piece(piece: &[u8], body: &RequestBody, out: &mut Vec<u8>) {
    if !body.is_chunked() {
        out.extend_from_slice(piece);
        return;
    }
    if !piece.is_empty() {
        out.extend_from_slice(ChunkHead::new(piece.len() as u64).as_ref());
        out.extend_from_slice(piece);
        out.extend_from_slice(b"\r\n");
    }
    if body.is_over() {
        out.extend_from_slice(LAST_CHUNK);
    }
}
