//! What comes of a page: its texts, and the answers of the subrequests that it asks for, in their order.

use std::io;
use std::mem;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use weir_engine::http::{Exchange, Headers, Source};
use weir_syntax::Level;

use super::run::{Piece, Run, Stop, doing};
use super::{Pages, SharedRef};

/// Bytes of a page that are looked through at once.
const PIECE: usize = 16 * 1024;
/// Bytes of a page that are read ahead of what is sent, and subrequests that run at the same time.
const AHEAD: usize = 64 * 1024;
const PARTS: usize = 16;
/// Bytes that are read before other connections have their turn.
const TURN: usize = 256 * 1024;

pub(super) struct Page {
    body: Box<dyn Source>,
    run: Run,
    /// How the body of the page ended.
    ended: Option<io::Result<()>>,
}

impl Page {
    pub(super) fn new(body: Box<dyn Source>, pages: Arc<Pages>, shared: SharedRef) -> Self {
        Self { body, run: Run::new(pages, shared), ended: None }
    }

    /// Whether enough is there to be sent first.
    fn is_full(&self) -> bool {
        let (mut bytes, mut parts) = (0, 0);
        for piece in &self.run.pieces {
            match piece {
                Piece::Text { bytes: text, .. } => bytes += text.len(),
                Piece::Part(_) | Piece::Set { .. } => parts += 1,
            }
        }
        bytes >= AHEAD || parts >= PARTS
    }

    /// Reads on, as far as the page is there and there is room for what comes of it.
    fn read(&mut self, x: &mut Exchange, cx: &mut Context<'_>) -> io::Result<()> {
        let mut turn = 0;
        while self.ended.is_none() && !self.run.waits && !self.is_full() {
            if turn >= TURN {
                cx.waker().wake_by_ref();
                break;
            }
            match self.body.poll_ready(x, cx) {
                Poll::Ready(Ok(true)) => {
                    let data = self.body.data();
                    let piece = &data[..data.len().min(PIECE)];
                    let taken = self.run.take(x, piece).map_err(|_| failed())?;
                    self.body.consume(taken);
                    turn += taken;
                }
                Poll::Ready(Ok(false)) => self.ended = Some(Ok(())),
                Poll::Ready(Err(error)) => self.ended = Some(Err(error)),
                Poll::Pending => break,
            }
        }
        Ok(())
    }

    /// Lets subrequests run as far as they can before it is their turn.
    fn start(&mut self, x: &Exchange, cx: &mut Context<'_>) -> io::Result<()> {
        for piece in &mut self.run.pieces {
            if let Piece::Part(part) | Piece::Set { part, .. } = piece
                && let Poll::Ready(Err(error)) = part.poll_head(x, cx)
            {
                return Err(error);
            }
        }
        Ok(())
    }

    /// Lets go of a piece that is over.
    fn pop(&mut self) {
        self.run.pieces.pop_front();
        // What is waited for is always the last.
        self.run.waits &= !self.run.pieces.is_empty();
    }
}

/// What went wrong is in the log.
fn failed() -> io::Error {
    io::ErrorKind::InvalidData.into()
}

impl Source for Page {
    fn poll_ready(&mut self, x: &mut Exchange, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        loop {
            self.read(x, cx)?;
            self.start(x, cx)?;
            match self.run.pieces.front_mut() {
                Some(Piece::Text { .. }) => return Poll::Ready(Ok(true)),
                Some(Piece::Part(part)) => {
                    if ready!(part.poll_ready(x, cx))? {
                        return Poll::Ready(Ok(true));
                    }
                    self.pop();
                }
                Some(set @ Piece::Set { .. }) => {
                    if let Some((name, value)) = ready!(poll_set(set, x, cx))?
                        && self.run.shared.borrow_mut().set(&name, value).is_err()
                    {
                        Stop::too_much(x);
                        return Poll::Ready(Err(failed()));
                    }
                    self.pop();
                }
                None => match self.ended.take() {
                    Some(ended) => {
                        self.ended = Some(Ok(()));
                        return Poll::Ready(ended.map(|()| false));
                    }
                    None => return Poll::Pending,
                },
            }
        }
    }

    fn data(&self) -> &[u8] {
        match self.run.pieces.front() {
            Some(Piece::Text { bytes, at }) => &bytes[*at..],
            Some(Piece::Part(part)) => part.data(),
            Some(Piece::Set { .. }) | None => &[],
        }
    }

    fn consume(&mut self, n: usize) {
        match self.run.pieces.front_mut() {
            Some(Piece::Text { bytes, at }) => {
                *at += n;
                if *at == bytes.len() {
                    self.pop();
                }
            }
            Some(Piece::Part(part)) => part.consume(n),
            Some(Piece::Set { .. }) | None => {}
        }
    }

    fn is_last(&self) -> bool {
        matches!(self.ended, Some(Ok(())))
            && self.run.pieces.len() == 1
            && matches!(self.run.pieces.front(), Some(Piece::Text { .. }))
            && self.trailers().is_none()
    }

    fn postpones(&self) -> bool {
        match self.run.pieces.front() {
            // What comes slowly is for the client as it comes.
            Some(Piece::Part(part)) if part.is_streaming() => false,
            _ => self.run.pieces.iter().any(|piece| matches!(piece, Piece::Part(_) | Piece::Set { .. })),
        }
    }

    fn read_ahead(&mut self, x: &mut Exchange, cx: &mut Context<'_>) {
        match self.run.pieces.front_mut() {
            Some(Piece::Part(part) | Piece::Set { part, .. }) => part.read_ahead(x, cx),
            Some(Piece::Text { .. }) | None => self.body.read_ahead(x, cx),
        }
    }

    fn ends_with_client(&self) -> bool {
        match self.run.pieces.front() {
            Some(Piece::Part(part) | Piece::Set { part, .. }) => part.ends_with_client(),
            Some(Piece::Text { .. }) => false,
            None => self.body.ends_with_client(),
        }
    }

    fn finish(&mut self, x: &mut Exchange, complete: bool) {
        self.body.finish(x, complete);
        for piece in &mut self.run.pieces {
            if let Piece::Part(part) | Piece::Set { part, .. } = piece {
                part.finish(x, complete);
            }
        }
    }

    fn trailers(&self) -> Option<&Headers> {
        self.body.trailers()
    }
}

/// Reads what is to become a variable's value: nothing where the subrequest failed.
#[expect(clippy::type_complexity, reason = "a name and a value")]
fn poll_set(
    piece: &mut Piece,
    x: &mut Exchange,
    cx: &mut Context<'_>,
) -> Poll<io::Result<Option<(Vec<u8>, Vec<u8>)>>> {
    let Piece::Set { part, name, value, answer } = piece else { return Poll::Ready(Ok(None)) };
    let too_big = |part: &Exchange, length: Option<u64>| {
        let length = length.map_or(String::new(), |length| format!(": {length}"));
        part.log_while(Level::Error, None, format_args!("too big subrequest response{length}"), doing(part));
        Poll::Ready(Err(failed()))
    };
    ready!(part.poll_head(x, cx))?;
    while let Some(answered) = part.answered() {
        let (_, most) = match answer {
            Some(answer) => *answer,
            None => {
                let most = answered.location().core.subrequest_output_buffer_size;
                let length = answered.response.as_ref().and_then(|response| response.content_length);
                if length.is_some_and(|length| length > most) {
                    return too_big(answered, length);
                }
                *answer.insert((answered.status, length.unwrap_or(most)))
            }
        };
        if ready!(part.poll_ready(x, cx))? {
            let data = part.data();
            if let Some(answered) = part.answered()
                && (value.len() + data.len()) as u64 > most
            {
                return too_big(answered, None);
            }
            value.extend_from_slice(data);
            let taken = data.len();
            part.consume(taken);
        }
    }
    let is_value = answer.is_some_and(|(status, _)| status < 300);
    Poll::Ready(Ok(is_value.then(|| (mem::take(name), mem::take(value)))))
}
