//! Reads the head of an answer.

use std::future::poll_fn;
use std::io;
use std::ops::Range;
use std::task::{Context, Poll, ready};

use weir_syntax::Level;

use super::{
    Asking, Attempt, Failure, READING_HEAD, Settings, Wire, client_gone, log_timeout, next, poll_client_gone,
};
use crate::http::Exchange;
use crate::http1::response::{Head, Parsed};
use crate::io::{Block, Io};
use crate::upstream::fastcgi;

/// Bytes of heads that are read at a turn.
const TURN: usize = 64 * 1024;

impl Attempt {
    /// Reads until the head of the answer is complete, heads that another follows passed over.
    pub(super) fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        x: &mut Exchange,
        settings: &Settings,
    ) -> Poll<Read> {
        let mut taken = 0;
        loop {
            // Whoever waits holds no block.
            if let Err(error) = ready!(self.line.io.poll_read_ready(cx)) {
                return Poll::Ready(Read::Failed(error));
            }
            let mut block = Block::small();
            // Where the body is read at a rate, as little of it comes with the head as in nginx.
            let paced = settings.buffers.rate.is_some() && settings.buffer_size < block.len();
            let most = if paced { settings.buffer_size } else { block.len() };
            let polled = self.line.io.poll_read(cx, &mut block[..most]);
            if let Io::FastCgi(application) = &mut self.line.io
                && let Some(said) = application.take_stderr()
                && heed(x, &said, settings)
            {
                return Poll::Ready(Read::Invalid);
            }
            match ready!(polled) {
                Ok(0) => return Poll::Ready(Read::Closed),
                Ok(n) => {
                    self.received += n as u64;
                    taken += n;
                    let head = self.head.get_or_insert_with(|| x.reactor.take_head());
                    let read = match &settings.wire {
                        Wire::FastCgi { .. } => parse_output(head, x, block, n, settings),
                        Wire::Http1 | Wire::Http2 => parse(head, x, block, n, settings, &mut self.hinted),
                    };
                    if let Some(read) = read {
                        return Poll::Ready(read);
                    }
                    // Heads that others follow may come as fast as they are read: the thread has others to see to,
                    // and this request its deadline.
                    if taken >= TURN {
                        cx.waker().wake_by_ref();
                        return Poll::Pending;
                    }
                }
                Err(error) => match error.downcast::<fastcgi::Fault>() {
                    Ok(fault) => {
                        x.log_while(Level::Error, None, fault, READING_HEAD);
                        return Poll::Ready(Read::Invalid);
                    }
                    Err(error) => return Poll::Ready(Read::Failed(error)),
                },
            }
        }
    }
}

impl Asking<'_> {
    /// Reads the head of the answer; with it comes what was read behind it.
    pub(super) async fn head(&self, x: &mut Exchange, attempt: &mut Attempt) -> Result<Answered, Failure> {
        let settings = self.protocol.settings();
        let timer = &self.timer;
        let result = poll_fn(|cx| {
            if let Some(read) = attempt.early.take() {
                return Poll::Ready(read);
            }
            if let Poll::Ready(read) = attempt.poll_head(cx, x, settings) {
                return Poll::Ready(read);
            }
            if !x.early_hints.is_empty() {
                x.poll_hints(cx);
            }
            if timer.deadline().is_none() {
                timer.set_about(settings.read_timeout);
            }
            if poll_client_gone(x, cx, settings) {
                return Poll::Ready(Read::ClientGone);
            }
            timer.poll_expired(cx).map(|()| Read::Timeout)
        })
        .await;
        timer.clear();
        let received = attempt.received;
        let now = x.reactor.clock().now_ms();
        if let Some(state) = x.upstream_states.last_mut() {
            state.bytes_received = received;
        }
        let head = attempt.head.take().unwrap_or_default();
        match result {
            Read::Head(block, raw) => {
                if let Some(state) = x.upstream_states.last_mut() {
                    state.header_time = Some(now.saturating_sub(attempt.started));
                    state.status = head.status();
                    state.bytes_received -= raw.len() as u64;
                }
                x.keep_upstream_headers(&head);
                Ok(Answered { head, block, raw, headless: false })
            }
            Read::Headless(block, raw) => {
                let (block, raw) = put_back(&head, block, raw);
                if let Some(state) = x.upstream_states.last_mut() {
                    state.header_time = Some(now.saturating_sub(attempt.started));
                    state.status = 200;
                    state.bytes_received -= raw.len() as u64;
                }
                Ok(Answered { head, block: Some(block), raw, headless: true })
            }
            Read::Closed => {
                x.log_while(Level::Error, None, "upstream prematurely closed connection", READING_HEAD);
                Err(Failure::of(next::ERROR, attempt.cached && received == 0))
            }
            Read::Failed(error) => {
                x.log_while(Level::Error, Some(&error), "recv() failed", READING_HEAD);
                Err(Failure::of(next::ERROR, attempt.cached && received == 0))
            }
            Read::Timeout => {
                log_timeout(x, READING_HEAD);
                Err(Failure::of(next::TIMEOUT, attempt.cached))
            }
            Read::Invalid => {
                // nginx reads no more than there is room for.
                if let Some(state) = x.upstream_states.last_mut() {
                    state.bytes_received = received.min(settings.buffer_size as u64);
                }
                Err(Failure::of(next::INVALID_HEADER, attempt.cached))
            }
            Read::ClientGone => Err(client_gone(x, READING_HEAD)),
        }
    }
}

/// The head of an answer, and what was read behind it.
pub(super) struct Answered {
    pub head: Box<Head>,
    pub block: Option<Block>,
    pub raw: Range<usize>,
    pub headless: bool,
}

/// What was read, behind what the head took in before it was known to be none.
fn put_back(head: &Head, block: Block, raw: Range<usize>) -> (Block, Range<usize>) {
    if head.raw().is_empty() {
        return (block, raw);
    }
    let whole = Block::of_parts(&[head.raw(), &block[raw]]);
    let length = whole.len();
    (whole, 0..length)
}

/// Writes the head of an answer down as it was read.
#[cold]
fn debug_head(head: &Head, x: &Exchange) {
    let text = String::from_utf8_lossy;
    x.debug(|| format!("http proxy status {} \"{}\"", head.status(), text(head.status_line())));
    for field in head.fields() {
        let (name, value) = (head.get(field.name), head.get(field.value));
        x.debug(|| format!("http proxy header: \"{}: {}\"", text(name), text(value)));
    }
    x.debug(|| "http proxy header done".to_owned());
}

pub(super) enum Read {
    Head(Option<Block>, Range<usize>),
    /// An HTTP/0.9 answer: everything is body.
    Headless(Block, Range<usize>),
    Closed,
    Failed(io::Error),
    Timeout,
    Invalid,
    ClientGone,
}

/// Takes what was read for the head; `None` where more is needed.
fn parse(
    head: &mut Head,
    x: &mut Exchange,
    block: Block,
    n: usize,
    settings: &Settings,
    hinted: &mut usize,
) -> Option<Read> {
    let mut from = 0;
    loop {
        match head.parse(&block[from..n], settings.buffer_size) {
            Ok(Parsed::Partial) => return None,
            Ok(Parsed::Complete(taken)) => {
                from += taken;
                for warning in head.warnings() {
                    x.log_while(Level::Warn, None, String::from_utf8_lossy(&warning), READING_HEAD);
                }
                if head.is_interim() {
                    // 100 and its like are between the upstream and us.
                    *hinted += head.raw().len();
                    x.hint(head, *hinted, settings);
                    head.reset();
                    continue;
                }
                if x.debugs {
                    debug_head(head, x);
                }
                let block = (from < n).then_some(block);
                return Some(Read::Head(block, from..n));
            }
            Ok(Parsed::Headless) => {
                x.log_while(Level::Error, None, "upstream sent no valid HTTP/1.0 header", READING_HEAD);
                return Some(Read::Headless(block, from..n));
            }
            Err(invalid) => {
                let message = String::from_utf8_lossy(&invalid.message);
                x.log_while(Level::Error, None, message, READING_HEAD);
                return Some(Read::Invalid);
            }
        }
    }
}

/// The same of an application's output.
fn parse_output(head: &mut Head, x: &Exchange, block: Block, n: usize, settings: &Settings) -> Option<Read> {
    let invalid = match fastcgi::parse(head, &block[..n], settings.buffer_size) {
        Ok(Parsed::Partial) => return None,
        Ok(Parsed::Complete(taken)) => {
            for warning in head.warnings() {
                x.log_while(Level::Warn, None, String::from_utf8_lossy(&warning), READING_HEAD);
            }
            if x.debugs {
                debug_head(head, x);
            }
            return Some(Read::Head((taken < n).then_some(block), taken..n));
        }
        Ok(Parsed::Headless) => "upstream sent invalid header".into(),
        Err(invalid) => String::from_utf8_lossy(&invalid.message).into_owned(),
    };
    x.log_while(Level::Error, None, invalid, READING_HEAD);
    Some(Read::Invalid)
}

/// Logs what an application says of itself; whether that makes its answer invalid.
#[cold]
fn heed(x: &Exchange, said: &[u8], settings: &Settings) -> bool {
    fastcgi::log_stderr(x, said, READING_HEAD);
    let Wire::FastCgi { catch_stderr, .. } = &settings.wire else { return false };
    catch_stderr.iter().any(|text| memchr::memmem::find(said, text).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_head_is_put_back_whole() {
        #[track_caller]
        fn check(before: &[u8], read: usize) {
            let mut head = Head::new();
            assert_eq!(head.parse(before, 4096), Ok(Parsed::Partial));
            let mut block = Block::small();
            block.fill(b'x');
            assert_eq!(head.parse(&block[..read], 4096), Ok(Parsed::Headless));
            let (whole, raw) = put_back(&head, block, 0..read);
            assert!(whole[raw] == *[before, &vec![b'x'; read]].concat(), "{read}");
        }
        check(b"", 5);
        check(b"HT", 5);
        // A block that is full has no room for more.
        check(b"", Block::small().len());
        check(b"HT", Block::small().len());
    }
}
