//! What an upstream hints at before it answers (103), on its way to the client.

use std::task::{Context, Poll};

use weir_syntax::Level;

use super::{READING_HEAD, Settings};
use crate::http::Exchange;
use crate::http1::request::Version;
use crate::http1::response::Head;

impl Exchange {
    /// Sends the fields of a 103 on, where `early_hints` says so. `length` is that of all hints of this upstream.
    pub(super) fn hint(&mut self, head: &Head, length: usize, settings: &Settings) {
        let Some(hidden) = settings.pass_early_hints.as_ref().filter(|_| head.status() == 103) else {
            return;
        };
        if length > settings.buffer_size {
            self.log_while(Level::Info, None, "upstream sent too big early hints", READING_HEAD);
            return;
        }
        let wanted = !self.is_subrequest()
            && !self.post_action
            // Hyper sends no head before that of the answer.
            && (Version::HTTP_11..Version::HTTP_20).contains(&self.head.version())
            && self.location().core.early_hints.iter().any(|condition| condition.is_true(self));
        let name_of = |field: &crate::http1::Field| head.get(field.name);
        let mut fields = head.fields().iter().filter(|f| !hidden.hides(f.known, name_of(f))).peekable();
        if !wanted || fields.peek().is_none() {
            return;
        }
        let hints = &mut self.early_hints;
        hints.extend(b"HTTP/1.1 103 Early Hints\r\n");
        for field in fields {
            for part in [head.get(field.name), b": ", head.get(field.value), b"\r\n"] {
                hints.extend(part);
            }
        }
        hints.extend(b"\r\n");
    }

    /// Writes what was hinted at as far as the client takes it; the answer comes behind the rest.
    pub(super) fn poll_hints(&mut self, cx: &mut Context<'_>) {
        let io = &mut self.client.io;
        while !self.early_hints.is_empty() {
            match io.poll_write(cx, &self.early_hints) {
                Poll::Ready(Ok(n)) => {
                    self.sent += n as u64;
                    self.early_hints.consume(n);
                }
                // That it is gone is found by whoever sends the answer.
                Poll::Ready(Err(_)) => self.early_hints.clear(),
                Poll::Pending => return,
            }
            // Nothing follows it at once.
            let _ = io.poll_flush(cx);
        }
    }
}
