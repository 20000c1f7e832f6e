//! Clients: honest and impatient, fast and slow, over HTTP/1, TLS and HTTP/2, and tunnels.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::Duration;

use tokio::time::Instant;
use weir_testkit::http2::{END_STREAM, Frame, Http2};
use weir_testkit::{Client, Message, Socket};

use crate::backends::{BAD, GOOD, body};
use crate::judge::{Asked, Due, due, judge};
use crate::rng::Rng;
use crate::server::Addresses;
use crate::tally::{Kind, Tally};

/// How long an idle connection may be used again after a reload. What a client sends later may be lost, and is sent again;
/// for how long the server thinks that nothing came, the client knows no better than that it is since its request before.
const IDLE: Duration = Duration::from_secs(1);

/// A request that asks for something, where, and what is to come of it.
fn wish(rng: &mut Rng) -> Asked {
    let nonce = rng.next();
    let (location, manner, nonce, size) = match rng.below(10) {
        0..=3 => (*rng.of(&["steady", "unbuffered"]), *rng.of(&GOOD), nonce, rng.size()),
        4 if rng.one_in(2) => {
            (*rng.of(&["secure/steady", "framed/steady"]), *rng.of(&GOOD), nonce, rng.size())
        }
        4 => {
            let manners = ["reset", "nothing", "field", "reset-body", "short", "chunks-end", "chunks-bad"];
            (*rng.of(&["secure/faulty", "framed/faulty"]), *rng.of(&manners), nonce, rng.size())
        }
        5..=7 => {
            let manner = *rng.of(&BAD);
            let stalls = matches!(manner, "silent" | "late-body" | "open-close");
            let size = if manner == "long" { rng.below(2_000) as usize } else { rng.size() };
            (if stalls { "impatient" } else { "faulty" }, manner, nonce, size)
        }
        // What the first upstream spoils, the second makes good.
        8 => {
            let manners = ["reset", "nothing", "two-lengths", "no-length", "both", "field", "flood"];
            ("next", *rng.of(&manners), nonce, rng.size())
        }
        _ => {
            let manner =
                *rng.of(&["length", "chunked", "close", "short", "reset-body", "chunks-end", "nothing"]);
            let key = rng.below(16);
            ("cached", manner, key, (key * key * 700) as usize)
        }
    };
    let due = if location == "next" { Due::Whole } else { due(manner) };
    let line = format!("/{location}/{manner}/{size}/{nonce:016x}");
    Asked { line, nonce, size, sent: 0, due, at: Instant::now() }
}

/// The bytes of a request. One that may be sent to another upstream, or be answered from a cache, is a GET.
fn request(asked: &mut Asked, rng: &mut Rng) -> Vec<u8> {
    let mut head = format!(" {} HTTP/1.1\r\nHost: a.example\r\n", asked.line);
    let fixed = asked.line.starts_with("/next/") || asked.line.starts_with("/cached/");
    if fixed || !rng.one_in(3) {
        return format!("GET{head}\r\n").into_bytes();
    }
    let body = body(asked.nonce, rng.size() / 4);
    asked.sent = body.len();
    if rng.one_in(3) {
        let mut bytes = format!("POST{head}Transfer-Encoding: chunked\r\n\r\n").into_bytes();
        for chunk in body.chunks(10_000) {
            bytes.extend([format!("{:x}\r\n", chunk.len()).as_bytes(), chunk, b"\r\n"].concat());
        }
        bytes.extend(b"0\r\n\r\n");
        return bytes;
    }
    let _ = write!(head, "Content-Length: {}\r\n\r\n", body.len());
    [b"POST", head.as_bytes(), &body].concat()
}

/// One that says nothing of its own manner, so that several can be sent ahead.
fn steady(rng: &mut Rng) -> Asked {
    loop {
        let asked = wish(rng);
        if asked.line.starts_with("/steady/") && asked.size < 100_000 {
            return asked;
        }
    }
}

pub fn http1(mut rng: Rng, server: Addresses, tally: &Tally, over: &AtomicBool) {
    while !over.load(Ordering::Relaxed) {
        let began = Instant::now();
        tally.add(Kind::Connected);
        let client = if rng.one_in(5) {
            Client::try_connect_tls(server.tls)
        } else {
            Client::try_connect(server.plain)
        };
        let done = client.and_then(|client| match rng.below(30) {
            0 => nonsense(client, &mut rng, tally),
            1 | 2 => pipeline(client, &mut rng, tally),
            _ => conversation(client, &mut rng, tally),
        });
        if let Err(error) = done {
            tally.offence(Kind::Lost, began, format!("a connection: {error}"));
        }
    }
}

/// Requests one after the other.
fn conversation(mut client: Client, rng: &mut Rng, tally: &Tally) -> io::Result<()> {
    let mut used: Option<Instant> = None;
    for _ in 0..=rng.below(8) {
        let mut asked = wish(rng);
        let bytes = request(&mut asked, rng);
        asked.at = Instant::now();
        tally.add(Kind::Asked);
        let sent = client.try_send(&bytes);
        if rng.one_in(20) {
            sleep(Duration::from_micros(rng.below(5_000)));
            tally.add(Kind::Left);
            client.reset();
            return Ok(());
        }
        // A slow client; what it does not take has to be put somewhere.
        if asked.size > 1 << 20 {
            sleep(Duration::from_millis(rng.below(500)));
        }
        let answer = client.try_response();
        if let Some(used) = used.filter(|_| answer.is_err() && client.unread().is_empty()) {
            if used.elapsed() > IDLE {
                tally.add(Kind::Again);
                return Ok(());
            }
            let _ = write!(asked.line, ", {} ms after the one before", used.elapsed().as_millis());
        }
        // Answers come also where the request is not taken whole.
        let answer = answer.map_err(|error| sent.err().unwrap_or(error));
        if !judge(&asked, answer, &client, tally) {
            return Ok(());
        }
        used = Some(asked.at);
    }
    Ok(())
}

/// Requests that do not wait for each other's answers.
fn pipeline(mut client: Client, rng: &mut Rng, tally: &Tally) -> io::Result<()> {
    let mut all: Vec<_> = (0..2 + rng.below(4)).map(|_| steady(rng)).collect();
    let bytes: Vec<_> = all.iter_mut().map(|asked| request(asked, rng)).collect();
    for _ in &all {
        tally.add(Kind::Asked);
    }
    client.try_send(&bytes.concat())?;
    for asked in all {
        let answer = client.try_response();
        if !judge(&asked, answer, &client, tally) {
            break;
        }
    }
    Ok(())
}

/// What is no request, or not all of one.
fn nonsense(mut client: Client, rng: &mut Rng, tally: &Tally) -> io::Result<()> {
    tally.add(Kind::Nonsense);
    let began = Instant::now();
    if rng.one_in(2) {
        client.try_send(b"GET /steady/length/10/1 HTTP/1.1\r\nHost: a")?;
        client.reset();
        return Ok(());
    }
    let line = *rng.of(&[
        "\x16\x03\x01",
        "GET\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        "G\0T / HTTP/1.1\r\n\r\n",
    ]);
    client.try_send(line.as_bytes())?;
    match client.try_response() {
        Ok(response) if response.status == 400 => {}
        Ok(response) => tally.offence(Kind::WrongStatus, began, format!("{line:?}: {}", response.head)),
        Err(error) => tally.offence(Kind::Lost, began, format!("{line:?}: {error}")),
    }
    Ok(())
}

pub fn http2(mut rng: Rng, server: Addresses, tally: &Tally, over: &AtomicBool) {
    while !over.load(Ordering::Relaxed) {
        let began = Instant::now();
        tally.add(Kind::Connected);
        if let Err(error) = streams(&mut rng, server, tally) {
            tally.offence(Kind::Lost, began, format!("a connection of HTTP/2: {error}"));
        }
    }
}

/// A stream that is open.
struct Stream {
    asked: Asked,
    status: String,
    body: Vec<u8>,
}

/// Several streams at a time, several times.
fn streams(rng: &mut Rng, server: Addresses, tally: &Tally) -> io::Result<()> {
    let mut connection = Http2::try_connect(server.plain)?;
    let (mut next, mut used) = (1, Instant::now());
    for _ in 0..=rng.below(8) {
        let began = Instant::now();
        let mut open = BTreeMap::new();
        for _ in 0..=rng.below(8) {
            let mut asked = wish(rng);
            // The end of one is no end of a stream over HTTP/2.
            if asked.due == Due::Garbage || asked.size > 200_000 {
                continue;
            }
            tally.add(Kind::Asked);
            let frames = if asked.line.starts_with("/steady/") && rng.one_in(3) {
                let body = body(asked.nonce, rng.below(16_000) as usize);
                asked.sent = body.len();
                [Frame::post(next, &asked.line).bytes(), Frame::data(next, END_STREAM, &body).bytes()]
                    .concat()
            } else {
                Frame::get(next, &asked.line).bytes()
            };
            // A connection that is gone is seen when it is read.
            let _ = connection.try_send(&frames);
            if rng.one_in(20) {
                tally.add(Kind::Left);
                let _ = connection.try_send(&Frame::reset(next, 8).bytes());
            } else {
                open.insert(next, Stream { asked, status: String::new(), body: vec![] });
            }
            next += 2;
        }
        if !answers(&mut connection, open, used, tally)? {
            return Ok(());
        }
        used = began;
    }
    Ok(())
}

/// Takes the answers to all streams; whether the connection goes on. It was used last at that time.
fn answers(
    connection: &mut Http2,
    mut open: BTreeMap<u32, Stream>,
    used: Instant,
    tally: &Tally,
) -> io::Result<bool> {
    let mut goes_on = true;
    while !open.is_empty() {
        let Some(frame) = connection.try_frame()? else {
            if used.elapsed() > IDLE && open.values().all(|stream| stream.status.is_empty()) {
                open.values().for_each(|_| tally.add(Kind::Again));
                return Ok(false);
            }
            return Err(io::Error::other(format!("closed before {} answers", open.len())));
        };
        let said = frame.to_string();
        if said.starts_with("GOAWAY") {
            goes_on = false;
            let last = frame.payload.first_chunk().map_or(0, |last| u32::from_be_bytes(*last));
            // Nothing was done for those.
            while open.last_entry().is_some_and(|entry| *entry.key() > last) {
                open.pop_last();
                tally.add(Kind::Again);
            }
            continue;
        }
        if said.starts_with("DATA") && !frame.payload.is_empty() {
            let more = frame.payload.len() as u32;
            let windows =
                [Frame::window(0, more), Frame::window(frame.stream, more)].map(|frame| frame.bytes());
            // The server may have closed after its last answer.
            let _ = connection.try_send(&windows.concat());
        }
        let Some(stream) = open.get_mut(&frame.stream) else { continue };
        match said.split(' ').next() {
            Some("HEADERS") => stream.status = said.split(' ').nth(2).unwrap_or_default().into(),
            Some("DATA") => stream.body.extend_from_slice(&frame.payload),
            _ => {}
        }
        let reset = said.starts_with("RST_STREAM");
        if reset || frame.flags & END_STREAM != 0 {
            let Some(stream) = open.remove(&frame.stream) else { continue };
            judge_stream(&stream, reset, tally);
        }
    }
    Ok(goes_on)
}

fn judge_stream(stream: &Stream, reset: bool, tally: &Tally) {
    let Stream { asked, status, body: got } = stream;
    let what = || format!("{} over HTTP/2: {status}, {} bytes, reset {reset}", asked.line, got.len());
    let own = got.len() <= asked.size && *got == body(asked.nonce, got.len());
    match (asked.due, status.as_str(), reset) {
        (Due::Cut | Due::Refused, "other", false) => tally.add(Kind::Refused),
        (_, "200", _) if !own => tally.offence(Kind::MixedUp, asked.at, what()),
        (Due::Whole, "200", false) if got.len() == asked.size => tally.add(Kind::Whole),
        (Due::Cut, "200" | "", true) => tally.add(Kind::Cut),
        (Due::Whole, "200" | "", _) => tally.offence(Kind::Lost, asked.at, what()),
        _ => tally.offence(Kind::WrongStatus, asked.at, what()),
    }
}

/// Tunnels one after the other, each of which lives over some reloads.
pub fn tunnels(mut rng: Rng, server: Addresses, tally: &Tally, over: &AtomicBool) {
    while !over.load(Ordering::Relaxed) {
        let began = Instant::now();
        tally.add(Kind::Connected);
        tally.add(Kind::Asked);
        if let Err(error) = tunnel(&mut rng, server, tally, over) {
            tally.offence(Kind::Lost, began, format!("a tunnel: {error}"));
        }
    }
}

fn tunnel(rng: &mut Rng, server: Addresses, tally: &Tally, over: &AtomicBool) -> io::Result<()> {
    let mut socket = Socket::try_connect(server.plain, "/tunnel/")?;
    let began = Instant::now();
    let end = began + Duration::from_millis(100 + rng.below(60_000));
    while Instant::now() < end && !over.load(Ordering::Relaxed) {
        // Several at a time only where the sockets on the way hold them: nobody reads meanwhile.
        let (count, most) = if rng.one_in(4) { (1, 2 << 20) } else { (1 + rng.below(4), 20_000) };
        let sent: Vec<_> =
            (0..count).map(|_| Message::binary(body(rng.next(), rng.size().min(most)))).collect();
        for message in &sent {
            socket.try_send(message.clone())?;
        }
        for message in sent {
            if socket.try_receive()? != message {
                tally.offence(Kind::MixedUp, began, "a message of a tunnel");
                return Ok(());
            }
            tally.add(Kind::Message);
        }
        sleep(Duration::from_millis(rng.below(50)));
    }
    tally.add(Kind::Tunnel);
    // Some just go.
    if rng.one_in(2) { Ok(()) } else { socket.try_close() }
}
