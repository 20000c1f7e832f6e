use super::{Dice, feed, same, same_however_cut};
use crate::http1::Known;
use crate::http1::response::{Framing, Head, Invalid, Parsed, Trailers};

const LIMIT: usize = 4096;

/// The status line with what nginx warns of, or why there is none.
fn show(head: &Head, parsed: Result<Parsed, Invalid>) -> Vec<u8> {
    match parsed {
        Ok(Parsed::Partial) => b"partial".to_vec(),
        Ok(Parsed::Headless) => b"upstream sent no valid HTTP/1.0 header".to_vec(),
        Ok(Parsed::Complete(_)) => {
            let warnings: Vec<_> = head.warnings().collect();
            if warnings.is_empty() { head.status_line().to_vec() } else { warnings.join(&b"; "[..]) }
        }
        Err(invalid) => invalid.message.to_vec(),
    }
}

fn whole(wire: &[u8]) -> (Head, Vec<u8>) {
    let mut head = Head::new();
    let parsed = head.parse(wire, LIMIT);
    let shown = show(&head, parsed);
    (head, shown)
}

fn in_pieces(wire: &[u8], limit: usize, cut: impl FnMut(usize) -> usize) -> Vec<u8> {
    let mut head = Head::new();
    let parsed = feed(wire, cut, &Ok(Parsed::Partial), |piece| head.parse(piece, limit));
    show(&head, parsed)
}

/// What nginx 1.31.5 sent to its client as the status line, or wrote to its error log.
#[rustfmt::skip]
const OBSERVED: &[(&[u8], &[u8])] = &[
    (b"HTTP/1.1 200 OK\r\n\r\n", b"200 OK"),
    (b"HTTP/1.0 200 OK\r\n\r\n", b"200 OK"),
    (b"HTTP/2.0 200 OK\r\n\r\n", b"200 OK"),
    (b"HTTP/99.99 200 OK\r\n\r\n", b"200 OK"),
    (b"HTTP/1.1 200\r\n\r\n", b"200"),
    (b"HTTP/1.1 200 \r\n\r\n", b"200 "),
    (b"HTTP/1.1   200  Fine \r\n\r\n", b"200  Fine "),
    (b"HTTP/1.1 403.1 IIS\r\n\r\n", b"403.1 IIS"),
    (b"HTTP/1.1 099 X\r\n\r\n", b"099 X"),
    (b"HTTP/1.1 000 X\r\n\r\n", b"000 X"),
    (b"HTTP/1.1 999\r\n\r\n", b"999"),
    (b"HTTP/1.1 20\r\n\r\n", b"upstream sent no valid HTTP/1.0 header"),
    (b"HTTP/1.1 2000\r\n\r\n", b"upstream sent no valid HTTP/1.0 header"),
    (b"HTTP/1.1 200x\r\n\r\n", b"upstream sent no valid HTTP/1.0 header"),
    (b"HTTP/1.1 200\tOK\r\n\r\n", b"upstream sent no valid HTTP/1.0 header"),
    (b"HTTP/1.1200 OK\r\n\r\n", b"upstream sent no valid HTTP/1.0 header"),
    (b"HTTP/0.9 200 OK\r\n\r\n", b"upstream sent no valid HTTP/1.0 header"),
    (b"HTTP/1 200 OK\r\n\r\n", b"upstream sent no valid HTTP/1.0 header"),
    (b"HTTP/1.1000 200 OK\r\n\r\n", b"upstream sent no valid HTTP/1.0 header"),
    (b"http/1.1 200 OK\r\n\r\n", b"upstream sent no valid HTTP/1.0 header"),
    (b"ICY 200 OK\r\n\r\n", b"upstream sent no valid HTTP/1.0 header"),
    (b"hello\r\n\r\n", b"upstream sent no valid HTTP/1.0 header"),
    (b"HTTP/1.1 200 a\rb\r\n\r\n", b"upstream sent no valid HTTP/1.0 header"),
    (b"HTTP/1.1 200 \xff\x01\r\n\r\n", b"200 \xff\x01"),
    (b"HTTP/1.1 200 OK\n\n", b"200 OK"),
    (b"HTTP/1.1 200 OK\nX: y\n\n", b"200 OK"),
    (b"HTTP/1.1 200 OK\r\nX: y", b"partial"),
    (b"HTTP/1.1 20", b"partial"),
    (b"", b"partial"),
    (b"HTTP/1.0 103 Early Hints\r\n\r\n", b"upstream sent HTTP/1.0 response with early hints"),
    (b"HTTP/1.1 200 OK\r\nX: y\r\n\r\n", b"200 OK"),
    (b"HTTP/1.1 200 OK\r\nX y: z\r\n\r\n", b"upstream sent invalid header: \"X\\x20...\""),
    (b"HTTP/1.1 200 OK\r\nX : z\r\n\r\n", b"upstream sent invalid header: \"X\\x20...\""),
    (b"HTTP/1.1 200 OK\r\n X: z\r\n\r\n", b"upstream sent invalid header: \"\\x20...\""),
    (b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n", b"upstream sent invalid header: \"\\x20...\""),
    (b"HTTP/1.1 200 OK\r\n: a\r\n\r\n", b"upstream sent invalid header: \"\\x3a...\""),
    (b"HTTP/1.1 200 OK\r\nX: a\x00b\r\n\r\n", b"upstream sent invalid header: \"X: a\\x00...\""),
    (b"HTTP/1.1 200 OK\r\nX: a\rb\r\n\r\n", b"upstream sent invalid header: \"X: a\\x0d...\""),
    (b"HTTP/1.1 200 OK\r\nX\r\n\r\n", b"200 OK"),
    (b"HTTP/1.1 200 OK\r\nX(: a\r\n\r\n", b"200 OK"),
    (b"HTTP/1.1 200 OK\r\nx_y: a\r\n\r\n", b"200 OK"),
    (b"HTTP/1.1 200 OK\r\nHTTP/1.1 200 OK\r\nX: y\r\n\r\n", b"200 OK"),
    (b"HTTP/1.1 200 OK\r\nHTTPS/1: y\r\n\r\n", b"200 OK"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b"200 OK"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", b"upstream sent invalid \"Content-Length\" header: \"Content-Length: x\""),
    (b"HTTP/1.1 200 OK\r\nContent-Length: \r\n\r\n", b"upstream sent invalid \"Content-Length\" header: \"Content-Length: \""),
    (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", b"upstream sent invalid \"Content-Length\" header: \"Content-Length: -1\""),
    (b"HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\n", b"upstream sent invalid \"Content-Length\" header: \"Content-Length: +1\""),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 1, 1\r\n\r\n", b"upstream sent invalid \"Content-Length\" header: \"Content-Length: 1, 1\""),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 9223372036854775808\r\n\r\n", b"upstream sent invalid \"Content-Length\" header: \"Content-Length: 9223372036854775808\""),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\ncontent-length: 0\r\n\r\n", b"upstream sent duplicate header line: \"content-length: 0\", previous value: \"Content-Length: 0\""),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", b"upstream sent unknown \"Transfer-Encoding\": \"gzip\""),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n", b"upstream sent unknown \"Transfer-Encoding\": \"chunked, chunked\""),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\n", b"upstream sent unknown \"Transfer-Encoding\": \"identity\""),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding:\r\n\r\n", b"upstream sent unknown \"Transfer-Encoding\": \"\""),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", b"upstream sent duplicate header line: \"Transfer-Encoding: chunked\", previous value: \"Transfer-Encoding: chunked\""),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n", b"upstream sent \"Content-Length\" and \"Transfer-Encoding\" headers at the same time"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n", b"upstream sent \"Content-Length\" and \"Transfer-Encoding\" headers at the same time"),
    (b"HTTP/1.1 200 OK\r\nServer: a\r\nServer: b\r\n\r\n", b"upstream sent duplicate header line: \"Server: b\", previous value: \"Server: a\", ignored"),
    (b"HTTP/1.1 200 OK\r\nDate: a\r\nDate: b\r\n\r\n", b"upstream sent duplicate header line: \"Date: b\", previous value: \"Date: a\", ignored"),
    (b"HTTP/1.1 200 OK\r\nContent-Type: a\r\nContent-Type: b\r\n\r\n", b"upstream sent duplicate header line: \"Content-Type: b\", previous value: \"Content-Type: a\", ignored"),
    (b"HTTP/1.1 200 OK\r\nLocation: /a\r\nlocation: /b\r\n\r\n", b"upstream sent duplicate header line: \"location: /b\", previous value: \"Location: /a\", ignored"),
    (b"HTTP/1.1 200 OK\r\nETag: a\r\nETag: b\r\n\r\n", b"upstream sent duplicate header line: \"ETag: b\", previous value: \"ETag: a\", ignored"),
    (b"HTTP/1.1 200 OK\r\nLast-Modified: a\r\nLast-Modified: b\r\n\r\n", b"upstream sent duplicate header line: \"Last-Modified: b\", previous value: \"Last-Modified: a\", ignored"),
    (b"HTTP/1.1 200 OK\r\nExpires: a\r\nExpires: b\r\n\r\n", b"upstream sent duplicate header line: \"Expires: b\", previous value: \"Expires: a\", ignored"),
    (b"HTTP/1.1 200 OK\r\nRefresh: a\r\nRefresh: b\r\n\r\n", b"upstream sent duplicate header line: \"Refresh: b\", previous value: \"Refresh: a\", ignored"),
    (b"HTTP/1.1 200 OK\r\nStatus: 200\r\nStatus: 200\r\n\r\n", b"upstream sent duplicate header line: \"Status: 200\", previous value: \"Status: 200\", ignored"),
    (b"HTTP/1.1 200 OK\r\nX-Accel-Expires: 1\r\nX-Accel-Expires: 2\r\n\r\n", b"upstream sent duplicate header line: \"X-Accel-Expires: 2\", previous value: \"X-Accel-Expires: 1\", ignored"),
    (b"HTTP/1.1 200 OK\r\nX-Accel-Limit-Rate: 1\r\nX-Accel-Limit-Rate: 2\r\n\r\n", b"upstream sent duplicate header line: \"X-Accel-Limit-Rate: 2\", previous value: \"X-Accel-Limit-Rate: 1\", ignored"),
    (b"HTTP/1.1 200 OK\r\nSet-Cookie: a\r\nSet-Cookie: b\r\n\r\n", b"200 OK"),
    (b"HTTP/1.1 200 OK\r\nCache-Control: a\r\nCache-Control: b\r\n\r\n", b"200 OK"),
    (b"HTTP/1.1 200 OK\r\nVary: a\r\nVary: b\r\n\r\n", b"200 OK"),
    (b"HTTP/1.1 200 OK\r\nConnection: close\r\nConnection: keep-alive\r\n\r\n", b"200 OK"),
    (b"HTTP/1.1 200 OK\r\nWWW-Authenticate: a\r\nWWW-Authenticate: b\r\n\r\n", b"200 OK"),
    (b"HTTP/1.1 200 OK\r\nLink: a\r\nLink: a\r\n\r\n", b"200 OK"),
];

#[test]
fn as_nginx() {
    for (wire, expected) in OBSERVED {
        same_however_cut(wire, expected, |cut| in_pieces(wire, LIMIT, cut));
    }
}

/// nginx takes spaces between the digits of a status, and `CR CR LF` for a line end.
#[test]
fn stricter_than_nginx() {
    same(&whole(b"HTTP/1.1 2 00 OK\r\n\r\n").1, b"upstream sent no valid HTTP/1.0 header", b"");
    let wire = b"HTTP/1.1 200 OK\r\nX: a\r\r\n\r\n";
    same(&whole(wire).1, b"upstream sent invalid header: \"X: a\\x0d...\"", wire);
}

#[test]
fn any_bytes_in_any_pieces() {
    let mut dice = Dice(2);
    for _ in 0..60 {
        for (wire, _) in OBSERVED {
            let wire = dice.mangle(wire);
            let (_, expected) = whole(&wire);
            same(&in_pieces(&wire, LIMIT, |len| dice.roll(len + 1)), &expected, &wire);
        }
    }
}

#[test]
fn heads_are_bounded() {
    let wire =
        |len: usize| format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\nbody", "x".repeat(len - 24)).into_bytes();
    assert_eq!(Head::new().parse(&wire(64), 64), Ok(Parsed::Complete(64)));
    for step in [1, 64, 1000] {
        same(&in_pieces(&wire(64), 64, |_| step), b"200 OK", b"");
        same(&in_pieces(&wire(65), 64, |_| step), b"upstream sent too big header", b"");
        same(&in_pieces(&wire(9000), 8999, |_| step), b"upstream sent too big header", b"");
        same(&in_pieces(&wire(9000), 9000, |_| step), b"200 OK", b"");
    }
}

#[test]
fn a_headless_answer_is_all_body() {
    let mut head = Head::new();
    assert_eq!(head.parse(b"HTT", LIMIT), Ok(Parsed::Partial));
    assert_eq!(head.parse(b"Q!", LIMIT), Ok(Parsed::Headless));
    assert_eq!(head.raw(), b"HTT");
}

#[test]
fn interim_heads_come_before_the_answer() {
    let mut head = Head::new();
    let early = b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n";
    assert_eq!(
        head.parse(&[early.as_slice(), b"HTTP/1.1 200 OK\r\n\r\n"].concat(), LIMIT),
        Ok(Parsed::Complete(early.len()))
    );
    assert!(head.is_interim() && head.has(Known::Link));
    head.reset();
    assert_eq!(head.parse(b"HTTP/1.1 200 OK\r\n\r\n", LIMIT), Ok(Parsed::Complete(19)));
    assert!(!head.is_interim() && !head.has(Known::Link));
}

#[track_caller]
fn check_framing(status: &str, fields: &str, to_head: bool, expected: Framing, keeps_alive: bool) {
    let (head, _) = whole(format!("HTTP/1.1 {status}\r\n{fields}\r\n").as_bytes());
    assert_eq!((head.framing(to_head), head.keeps_alive()), (expected, keeps_alive), "{status} {fields}");
}

#[test]
fn framing() {
    check_framing("200", "", false, Framing::UntilClose, true);
    check_framing("200", "Content-Length: 5\r\n", false, Framing::Length(5), true);
    check_framing("200", "Content-Length: 5\r\n", true, Framing::Empty, true);
    check_framing("200", "Content-Length: 0\r\n", false, Framing::Empty, true);
    check_framing("200", "Transfer-Encoding: chunked\r\n", false, Framing::Chunked, true);
    check_framing("204", "Content-Length: 5\r\n", false, Framing::Empty, true);
    check_framing("304", "Transfer-Encoding: chunked\r\nConnection: close\r\n", false, Framing::Empty, false);
    check_framing("101", "Upgrade: websocket\r\n", false, Framing::Tunnel, false);
    check_framing("200", "Connection: x-Close\r\nContent-Length: 1\r\n", false, Framing::Length(1), false);
    check_framing("200", "Connection: keep-alive\r\nContent-Length: 1\r\n", false, Framing::Length(1), true);
    let (head, _) = whole(b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n\r\n");
    assert!(!head.keeps_alive());
}

#[test]
fn trailers() {
    let mut trailers = Trailers::default();
    assert_eq!(trailers.parse(b"A: b\r\nServer:", 100), Ok(Parsed::Partial));
    assert_eq!(trailers.parse(b" c\r\n\r\nHTTP", 100), Ok(Parsed::Complete(6)));
    let found: Vec<_> =
        trailers.fields().iter().map(|field| (trailers.get(field.name), trailers.get(field.value))).collect();
    assert_eq!(found, [(b"A".as_slice(), b"b".as_slice()), (b"Server", b"c")]);

    let message =
        |wire: &[u8], limit| Trailers::default().parse(wire, limit).map_err(|bad| bad.message.into_owned());
    assert_eq!(message(b"A: b\r\n\r\n", 8), Ok(Parsed::Complete(8)));
    assert_eq!(message(b"A: b\r\n\r\n", 7), Err(b"upstream sent too big trailers".to_vec()));
    assert_eq!(message(b"A b\r\n\r\n", 99), Err(b"upstream sent invalid trailer: \"A\\x20...\"".to_vec()));
}

/// Found by fuzzing: bytes beyond the limit decided what the answer was.
#[test]
fn nothing_beyond_the_limit_is_looked_at() {
    for step in [1, 2] {
        same(&in_pieces(b"HH", 1, |_| step), b"upstream sent too big header", b"HH");
        same(&in_pieces(b"HTTP/1.1 200 OK\r\n\x00", 17, |_| step * 9), b"upstream sent too big header", b"");
    }
}

#[test]
fn fields_are_the_same_however_they_are_cut() {
    let wire = b"HTTP/1.1 200 OK\r\nx-plain-name: and its value\r\nserver: weir\r\n\r\n";
    let (mut whole, mut cut) = (Head::new(), Head::new());
    assert_eq!(whole.parse(wire, LIMIT), Ok(Parsed::Complete(wire.len())));
    for piece in wire.chunks(3) {
        assert!(cut.parse(piece, LIMIT).is_ok());
    }
    assert_eq!(cut.fields(), whole.fields());
}
