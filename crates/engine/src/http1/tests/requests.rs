use super::{Dice, feed, observed, same, same_however_cut};
use crate::http1::request::{Head, Limits, Method, Parsed, Persistence};
use crate::http1::{Known, Reject, Version};

fn show(head: &Head, parsed: Result<Parsed, Reject>) -> Vec<u8> {
    let judged = parsed.and_then(|parsed| match parsed {
        Parsed::Complete(_) => head.judge_connect(false).map(|()| parsed),
        Parsed::Partial => Ok(parsed),
    });
    match judged {
        Ok(Parsed::Partial) => b"partial".to_vec(),
        Ok(Parsed::Complete(_)) => {
            let len = head.raw().len().to_string();
            let parts = [
                head.method_name(),
                head.protocol().unwrap_or_default(),
                head.path(),
                head.args(),
                head.unparsed_uri(),
                head.host(),
                len.as_bytes(),
            ];
            parts.join(&b'|')
        }
        Err(reject) => [reject.status.to_string().as_bytes(), &reject.message].join(&b' '),
    }
}

fn whole(wire: &[u8], limits: &Limits) -> (Head, Vec<u8>) {
    let mut head = Head::new();
    let parsed = head.parse(wire, limits);
    let shown = show(&head, parsed);
    (head, shown)
}

fn in_pieces(wire: &[u8], limits: &Limits, cut: impl FnMut(usize) -> usize) -> Vec<u8> {
    let mut head = Head::new();
    let parsed = feed(wire, cut, &Ok(Parsed::Partial), |piece| head.parse(piece, limits));
    show(&head, parsed)
}

#[track_caller]
fn check(wire: &[u8], limits: &Limits, expected: &[u8]) {
    same_however_cut(wire, expected, |cut| in_pieces(wire, limits, cut));
}

const LENIENT: Limits = Limits {
    header_buffer: 1024,
    large_buffers: 4,
    large_buffer: 8192,
    max_headers: 1000,
    merge_slashes: false,
    ignore_invalid_headers: false,
    underscores_in_headers: true,
};

const TIGHT: Limits = Limits {
    header_buffer: 100,
    large_buffers: 2,
    large_buffer: 512,
    max_headers: 5,
    merge_slashes: true,
    ignore_invalid_headers: true,
    underscores_in_headers: false,
};

fn default_tables() -> impl Iterator<Item = &'static (&'static [u8], &'static [u8])> {
    [observed::REQUEST_LINES, observed::TARGETS, observed::HOSTS, observed::FIELDS, observed::FRAMING]
        .into_iter()
        .flatten()
}

#[test]
fn as_nginx_with_default_settings() {
    for (wire, expected) in default_tables() {
        check(wire, &Limits::default(), expected);
    }
}

#[test]
fn as_nginx_with_lenient_settings() {
    for (wire, expected) in observed::LENIENT {
        check(wire, &LENIENT, expected);
    }
}

/// `<p*3>` as `ppp`.
fn expand(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut parts = text.split('<');
    out.extend(parts.next().unwrap_or_default().bytes());
    for part in parts {
        let (run, rest) = part.split_once('>').expect("a run is closed");
        let (byte, count) = run.split_once('*').expect("a run has a count");
        let unit = if byte == "r" { "\r\n" } else { byte };
        let len: usize = count.parse().expect("a count is a number");
        out.extend(unit.bytes().cycle().take(len));
        out.extend(rest.bytes());
    }
    out
}

#[test]
fn as_nginx_with_tight_limits() {
    for (wire, expected) in observed::LARGE {
        check(&expand(wire), &TIGHT, &expand(expected));
    }
}

/// RFC 9112 section 2.2 wants bare CR refused; nginx takes `CR CR LF` for a line end.
#[test]
fn stricter_than_nginx_on_bare_cr() {
    let limits = Limits::default();
    let expected = b"400 client sent invalid header line: \"X: a\\x0d...\"";
    check(b"GET / HTTP/1.1\r\nHost: h\r\nX: a\r\r\n\r\n", &limits, expected);
    check(
        b"GET / HTTP/1.1\r\nHost: h\r\nX\r\r\n\r\n",
        &limits,
        b"400 client sent invalid header line: \"X\\x0d...\"",
    );
}

#[test]
fn any_bytes_in_any_pieces() {
    let mut dice = Dice(1);
    for _ in 0..40 {
        for (wire, _) in default_tables() {
            let wire = dice.mangle(wire);
            for limits in [&Limits::default(), &LENIENT, &TIGHT] {
                let (_, expected) = whole(&wire, limits);
                same(&in_pieces(&wire, limits, |len| dice.roll(len + 1)), &expected, &wire);
            }
        }
    }
}

#[test]
fn a_head_is_used_again() {
    let mut head = Head::new();
    let limits = Limits::default();
    let wire = b"GET /a/../b?c HTTP/1.1\r\nHost: H\r\nX_y: z\r\nCookie: a\r\nConnection: close\r\n\r\nPOST /";
    assert_eq!(head.parse(wire, &limits), Ok(Parsed::Complete(wire.len() - 6)));
    assert!(!head.keeps_alive() && head.has(Known::Cookie));
    assert_eq!(head.ignored().collect::<Vec<_>>(), [b"X_y: z"]);
    head.reset();
    assert!(head.is_empty() && !head.has_line() && head.path().is_empty() && head.host().is_empty());
    assert_eq!(head.parse(&wire[wire.len() - 6..], &limits), Ok(Parsed::Partial));
    assert_eq!(head.parse(b"x HTTP/1.1\r\nHost: i\r\n\r\n", &limits), Ok(Parsed::Complete(23)));
    assert_eq!((head.method(), head.path(), head.host()), (Method::Post, b"/x".as_slice(), b"i".as_slice()));
    assert!(head.keeps_alive() && !head.has(Known::Cookie) && head.ignored().next().is_none());
}

#[test]
fn fields_are_found() {
    let wire = b"GET / HTTP/1.1\r\nhOST: h\r\nCookie: a\r\nX-Z: 1\r\ncookie: b\r\nx-z:2\r\n\r\n";
    let (head, _) = whole(wire, &Limits::default());
    assert_eq!(head.first(Known::Cookie), Some(b"a".as_slice()));
    assert_eq!(head.all(Known::Cookie).collect::<Vec<_>>(), [b"a", b"b"]);
    assert_eq!(head.named(b"X-z").collect::<Vec<_>>(), [b"1", b"2"]);
    assert_eq!(head.first(Known::Range), None);
    let names: Vec<_> = head.fields().iter().map(|field| (head.get(field.name), field.known)).collect();
    let expected: [(&[u8], Known); 5] = [
        (b"hOST", Known::Host),
        (b"Cookie", Known::Cookie),
        (b"X-Z", Known::Other),
        (b"cookie", Known::Cookie),
        (b"x-z", Known::Other),
    ];
    assert_eq!(names, expected);
}

#[track_caller]
fn check_uri(target: &str, path: &str, args: &str, quoted: bool) {
    let (head, _) = whole(format!("GET {target} HTTP/1.0\r\n\r\n").as_bytes(), &Limits::default());
    let found = [head.path(), head.args()].map(String::from_utf8_lossy);
    assert_eq!((found, head.is_quoted()), ([path, args].map(Into::into), quoted), "{target}");
}

#[test]
fn paths_and_quoting() {
    check_uri("/a.b/c.tar.gz?d.e", "/a.b/c.tar.gz", "d.e", false);
    check_uri("/a.b/c", "/a.b/c", "", false);
    check_uri("/.a", "/.a", "", true);
    check_uri("/x/../a.%62", "/a.b", "", true);
    check_uri("/a.b+c", "/a.b+c", "", true);
    check_uri("/a.b#c", "/a.b", "", true);
    check_uri("/a.b?c#d", "/a.b", "c", true);
    check_uri("http://h?a", "/", "a", false);
}

#[test]
fn absolute_forms() {
    let (head, _) = whole(b"GET HTTP://B.example:81?a HTTP/1.1\r\nHost: c\r\n\r\n", &Limits::default());
    assert_eq!((head.scheme(), head.host(), head.port()), (b"HTTP".as_slice(), b"b.example".as_slice(), 81));
    assert_eq!((head.unparsed_uri(), head.has_valid_unparsed_uri()), (b"?a".as_slice(), false));
}

#[test]
fn connect() {
    let (head, _) = whole(b"CONNECT B.example:443 HTTP/1.1\r\nHost: c:1\r\n\r\n", &Limits::default());
    assert_eq!((head.method(), head.host(), head.port()), (Method::Connect, &b"b.example"[..], 443));
    assert_eq!((head.path(), head.unparsed_uri()), (&b"/"[..], &b"/"[..]));
    let judge = |wire: &[u8], allowed| {
        let judged = whole(wire, &Limits::default()).0.judge_connect(allowed);
        judged.err().map_or("".into(), |reject| String::from_utf8_lossy(&reject.message).into_owned())
    };
    let body = b"CONNECT b:443 HTTP/1.1\r\nHost: c\r\nContent-Length: 1\r\n\r\n";
    assert_eq!(judge(head.raw(), true), "");
    assert_eq!(judge(body, true), "client sent CONNECT request with body");
    assert_eq!(judge(body, false), "client sent CONNECT method");
    assert_eq!(judge(b"CONNECT b:443 HTTP/1.0\r\n\r\n", true), "client sent CONNECT method");
}

#[test]
fn bodies_and_persistence() {
    let (head, _) =
        whole(b"POST / HTTP/1.0\r\nContent-Length: 12\r\nConnection: Keep-Alive\r\n\r\n", &Limits::default());
    assert_eq!((head.content_length(), head.is_chunked()), (Some(12), false));
    assert!(head.keeps_alive() && head.persistence() == Persistence::KeepAlive);
    let wire = b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: CHUNKED\r\nConnection: x, close\r\n\r\n";
    let (head, _) = whole(wire, &Limits::default());
    assert_eq!((head.content_length(), head.is_chunked()), (None, true));
    assert!(!head.keeps_alive());
    let (head, _) = whole(b"GET / HTTP/1.0\r\nContent-Length: 0\r\n\r\n", &Limits::default());
    assert!(!head.keeps_alive());
}

#[test]
fn refused_requests_can_be_logged() {
    let (head, _) = whole(b"GET /a HTTP/3.0\r\nHost: h\r\n\r\n", &Limits::default());
    assert_eq!((head.request_line(), head.version()), (b"GET /a HTTP/3.0".as_slice(), Version::HTTP_10));
    let (head, _) = whole(b"POST /a\r\n", &Limits::default());
    assert_eq!((head.request_line(), head.version()), (b"POST /a".as_slice(), Version::HTTP_09));
    let (head, _) = whole(b"GET /a HTTP/1.1\r\nX Y: z\r\n", &Limits::default());
    assert_eq!((head.request_line(), head.path()), (b"GET /a HTTP/1.1".as_slice(), b"/a".as_slice()));
}
