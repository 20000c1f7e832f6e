//! Upstreams: by the path they are asked for, `/LOCATION/MANNER/SIZE/NONCE`, they answer or go wrong in that manner.

use std::io;
use std::sync::Arc;

use weir_testkit::{Origin, Visit};

use crate::tally::{Kind, Tally};

/// A body that shows, wherever one looks, whose it is.
pub fn body(nonce: u64, size: usize) -> Vec<u8> {
    use std::io::Write;
    let mut body = Vec::with_capacity(size + 32);
    for block in 0..size.div_ceil(32) {
        let _ = writeln!(body, "{nonce:016x}{block:015x}");
    }
    body.truncate(size);
    body
}

/// The data of chunks, which need not be all.
pub fn joined(mut chunks: &[u8]) -> Vec<u8> {
    let mut data = vec![];
    while let Some(line) = chunks.windows(2).position(|w| w == b"\r\n") {
        let size = usize::from_str_radix(&String::from_utf8_lossy(&chunks[..line]), 16).unwrap_or(0);
        let end = (line + 2 + size).min(chunks.len());
        data.extend_from_slice(&chunks[line + 2..end]);
        chunks = chunks.get(end + 2..).unwrap_or_default();
    }
    data
}

/// What a client asks for.
pub struct Wish {
    pub manner: String,
    pub size: usize,
    pub nonce: u64,
}

/// The wish in a path.
fn wish(path: &str) -> Option<Wish> {
    let mut words = path.rsplit('/');
    let nonce = u64::from_str_radix(words.next()?, 16).ok()?;
    let size = words.next()?.parse().ok()?;
    Some(Wish { manner: words.next()?.into(), size, nonce })
}

/// Manners of answering well, and badly.
pub const GOOD: [&str; 4] = ["length", "chunked", "close", "pieces"];
pub const BAD: [&str; 18] = [
    "silent",
    "late-body",
    "reset",
    "nothing",
    "reset-body",
    "short",
    "reset-close",
    "chunks-end",
    "chunks-bad",
    "long",
    "two-lengths",
    "no-length",
    "both",
    "garbage",
    "field",
    "flood",
    "open",
    "open-close",
];

/// Requests that one connection carries.
const REQUESTS: usize = 100;

/// An upstream that answers well whatever the manner: what another one would have spoilt is whole here.
pub fn steady(tally: &Arc<Tally>) -> Origin {
    start(tally, false)
}

pub fn faulty(tally: &Arc<Tally>) -> Origin {
    start(tally, true)
}

fn start(tally: &Arc<Tally>, faulty: bool) -> Origin {
    let tally = Arc::clone(tally);
    Origin::start(move |visit| {
        for count in 1.. {
            let Some(request) = visit.request()? else { break };
            visit.forget();
            let path = request.split(' ').nth(1).unwrap_or_default();
            let Some(wish) = wish(path) else {
                return visit.send("HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n");
            };
            let fields = fields(&wish, &request);
            if faulty && BAD.contains(&&*wish.manner) {
                tally.add(Kind::Fault);
                if !fault(visit, &wish, &fields)? {
                    break;
                }
            } else if !answer(visit, &wish, &fields, count == REQUESTS)? {
                break;
            }
        }
        Ok(())
    })
}

/// Fields of every answer: whose it is, and how much of the request's body came, which is the nonce's as well.
fn fields(wish: &Wish, request: &str) -> String {
    let (head, sent) = request.split_once("\r\n\r\n").unwrap_or((request, ""));
    let chunked = head.to_ascii_lowercase().contains("\r\ntransfer-encoding: chunked");
    let sent = if chunked { joined(sent.as_bytes()) } else { sent.as_bytes().to_vec() };
    let got = if sent == body(wish.nonce, sent.len()) { sent.len().to_string() } else { "other".into() };
    format!("HTTP/1.1 200 OK\r\nX-Nonce: {:016x}\r\nX-Got: {got}\r\n", wish.nonce)
}

/// Answers, and says whether the connection goes on.
fn answer(visit: &mut Visit, wish: &Wish, fields: &str, last: bool) -> io::Result<bool> {
    let body = body(wish.nonce, wish.size);
    let close = if last { "Connection: close\r\n" } else { "" };
    match &*wish.manner {
        "chunked" => {
            visit.send(format!("{fields}{close}Transfer-Encoding: chunked\r\n\r\n"))?;
            for chunk in body.chunks(9_000) {
                visit.send([format!("{:x}\r\n", chunk.len()).as_bytes(), chunk, b"\r\n"].concat())?;
            }
            visit.send("0\r\n\r\n")?;
        }
        "close" => {
            visit.send(format!("{fields}Connection: close\r\n\r\n"))?;
            visit.send(body)?;
            return Ok(false);
        }
        "pieces" => {
            let whole =
                [format!("{fields}{close}Content-Length: {}\r\n\r\n", body.len()).as_bytes(), &body].concat();
            for piece in whole.chunks(whole.len() / 4 + 1) {
                visit.send(piece)?;
                std::thread::yield_now();
            }
        }
        _ => {
            let head = format!("{fields}{close}Content-Length: {}\r\n\r\n", body.len());
            visit.send([head.as_bytes(), &body].concat())?;
        }
    }
    Ok(!last)
}

/// Goes wrong, and says whether the connection goes on.
fn fault(visit: &mut Visit, wish: &Wish, fields: &str) -> io::Result<bool> {
    let body = body(wish.nonce, wish.size);
    // At least a byte is missing.
    let length = format!("{fields}Content-Length: {}\r\n\r\n", body.len() + 1);
    let chunk =
        [format!("{fields}Transfer-Encoding: chunked\r\n\r\n{:x}\r\n", body.len() + 1).as_bytes(), &body]
            .concat();
    let whole = |more: &str| {
        [format!("{fields}{more}Content-Length: {}\r\n\r\n", body.len()).as_bytes(), &body].concat()
    };
    match &*wish.manner {
        "silent" => visit.stall()?,
        "late-body" => {
            visit.send([length.as_bytes(), &body].concat())?;
            visit.stall()?;
        }
        "reset" => visit.reset_at_end(),
        "reset-body" => {
            visit.send([length.as_bytes(), &body].concat())?;
            visit.reset_at_end();
        }
        "short" => visit.send([length.as_bytes(), &body].concat())?,
        "reset-close" => {
            visit.send([format!("{fields}\r\n").as_bytes(), &body].concat())?;
            visit.reset_at_end();
        }
        "chunks-end" => visit.send(chunk)?,
        "chunks-bad" => {
            let chunk = if body.is_empty() { String::new() } else { format!("{:x}\r\n", body.len()) };
            let head = format!("{fields}Transfer-Encoding: chunked\r\n\r\n{chunk}");
            visit.send([head.as_bytes(), &body, b"\r\nnonsense\r\n"].concat())?;
        }
        // What follows is an answer for nobody.
        "long" => {
            let other = "HTTP/1.1 200 OK\r\nX-Nonce: other\r\nContent-Length: 5\r\n\r\nother";
            visit.send([&whole(""), other.as_bytes()].concat())?;
            return Ok(true);
        }
        "two-lengths" => visit.send(whole("Content-Length: 1\r\n"))?,
        "no-length" => visit.send(whole("Content-Length: one\r\n"))?,
        "both" => visit.send(whole("Transfer-Encoding: chunked\r\n"))?,
        "garbage" => visit.send(GARBAGE)?,
        "field" => visit.send(format!("{fields}no colon\r\n\r\n"))?,
        "flood" => {
            visit.send(fields)?;
            (0..10_000).try_for_each(|n| visit.send(format!("X-{n}: {n}\r\n")))?;
        }
        // These never close by themselves.
        "open" => {
            visit.send(whole("Connection: close\r\n"))?;
            visit.stall()?;
        }
        "open-close" => {
            visit.send([format!("{fields}\r\n").as_bytes(), &body].concat())?;
            visit.stall()?;
        }
        _ => {}
    }
    Ok(false)
}

pub const GARBAGE: &[u8] = &[0x16, 3, 1, 0, 0xff, 0, b'\n', b'\r', 0xfe, 7];
