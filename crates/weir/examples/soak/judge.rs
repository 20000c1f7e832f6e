//! Whether an answer is the one that was asked for.

use std::io;

use tokio::time::Instant;
use weir_testkit::{Client, Response};

use crate::backends::{GARBAGE, body, joined};
use crate::tally::{Kind, Tally};

/// What may come of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// 200, and all of it.
    Whole,
    /// 200 and the beginning of it, as a beginning.
    Cut,
    /// 502, or 504 where the upstream was slow to go wrong.
    Refused,
    /// Bytes that are no answer, which nginx takes for one of HTTP/0.9.
    Garbage,
}

/// What comes of a manner, before other upstreams are asked.
pub fn due(manner: &str) -> Due {
    match manner {
        "late-body" | "reset-body" | "short" | "reset-close" | "chunks-end" | "chunks-bad" | "open-close" => {
            Due::Cut
        }
        "silent" | "reset" | "nothing" | "two-lengths" | "no-length" | "both" | "field" | "flood" => {
            Due::Refused
        }
        "garbage" => Due::Garbage,
        _ => Due::Whole,
    }
}

/// A request, as far as its answer depends on it.
#[derive(Clone, Debug)]
pub struct Asked {
    pub line: String,
    pub nonce: u64,
    /// Bytes wanted, and sent.
    pub size: usize,
    pub sent: usize,
    pub due: Due,
    pub at: Instant,
}

/// Counts an answer; whether the connection can be used again.
pub fn judge(asked: &Asked, answer: io::Result<Response>, client: &Client, tally: &Tally) -> bool {
    match answer {
        Ok(response) => {
            let keep = response.header("Connection") != Some("close");
            let refused = matches!(response.status, 502 | 504) && asked.due != Due::Whole;
            if refused {
                let other = response.header("X-Nonce").is_some();
                if other {
                    tally.offence(
                        Kind::MixedUp,
                        asked.at,
                        format!("{} refused with {}", asked.line, response.head),
                    );
                } else {
                    tally.add(Kind::Refused);
                }
            } else if response.status != 200 {
                tally.offence(Kind::WrongStatus, asked.at, format!("{}: {}", asked.line, response.head));
            } else if !is_own(asked, &response.head) || response.body != body(asked.nonce, asked.size) {
                let what = format!("{}: {} {} bytes", asked.line, response.head, response.body.len());
                tally.offence(Kind::MixedUp, asked.at, what);
            } else if asked.due == Due::Whole {
                tally.add(Kind::Whole);
            } else {
                tally.offence(Kind::WrongStatus, asked.at, format!("{} has got a whole answer", asked.line));
            }
            keep
        }
        Err(error) => {
            cut_off(asked, &error, client.unread(), tally);
            false
        }
    }
}

fn cut_off(asked: &Asked, error: &io::Error, unread: &[u8], tally: &Tally) {
    if asked.due == Due::Garbage && GARBAGE.starts_with(unread) {
        return tally.add(Kind::Cut);
    }
    let end = unread.windows(4).position(|w| w == b"\r\n\r\n");
    let ended = matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
    );
    let (head, part) = unread.split_at(end.map_or(unread.len(), |end| end + 4));
    let head = String::from_utf8_lossy(head);
    let line = &asked.line;
    if !ended || end.is_none() || asked.due != Due::Cut {
        let what = format!("{line}: {error} after {} bytes: {head}", unread.len());
        return tally.offence(Kind::Lost, asked.at, what);
    }
    let chunked = head.contains("\r\nTransfer-Encoding: chunked\r\n");
    let part = if chunked { joined(part) } else { part.to_vec() };
    let own = head.starts_with("HTTP/1.1 200 ") && is_own(asked, &head);
    if own && part.len() <= asked.size && part == body(asked.nonce, part.len()) {
        tally.add(Kind::Cut);
    } else {
        tally.offence(Kind::MixedUp, asked.at, format!("{line}: {head} {} bytes", part.len()));
    }
}

fn is_own(asked: &Asked, head: &str) -> bool {
    // What came over HTTP/2 has its names in lower case.
    let head = head.to_ascii_lowercase();
    let has = |field: String| head.contains(&field);
    has(format!("\r\nx-nonce: {:016x}\r\n", asked.nonce)) && has(format!("\r\nx-got: {}\r\n", asked.sent))
}
