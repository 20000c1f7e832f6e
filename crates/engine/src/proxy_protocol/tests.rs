use std::rc::Rc;

use super::*;
use crate::io::pair::{paused, reactor, sockets};
use crate::timer::Timers;

fn version1_header(source: &str, source_port: u16, server: &str, server_port: u16) -> Header {
    Header {
        source: source.as_bytes().into(),
        source_port,
        server: server.as_bytes().into(),
        server_port,
        tlvs: Box::default(),
    }
}

/// Version 2 with the two bytes that say of what.
fn version2_of(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
    let len = u16::try_from(body.len()).unwrap().to_be_bytes();
    [SIGNATURE, &[command, family], &len, body].concat()
}

#[track_caller]
fn check(bytes: &[u8], expected: Result<(usize, Option<Header>), Broken<'_>>) {
    assert_eq!(parse(bytes), expected, "{}", bytes.escape_ascii());
}

#[test]
fn lines() {
    let tcp4 = b"PROXY TCP4 192.0.2.1 192.0.2.2 123 5678\r\n";
    check(tcp4, Ok((tcp4.len(), Some(version1_header("192.0.2.1", 123, "192.0.2.2", 5678)))));
    let more = [tcp4, &b"GET / HTTP/1.1\r\n"[..]].concat();
    check(&more, Ok((tcp4.len(), Some(version1_header("192.0.2.1", 123, "192.0.2.2", 5678)))));
    let tcp6 = b"PROXY TCP6 2001:Db8::1 :: 0 65535\r\n";
    check(tcp6, Ok((tcp6.len(), Some(version1_header("2001:Db8::1", 0, "::", 65535)))));
    check(b"PROXY UNKNOWN\r\n", Ok((15, None)));
    check(b"PROXY UNKNOWN 1 2\r3\n\r\n\r\n", Ok((22, None)));
    // As in nginx, an address is what looks like one.
    check(b"PROXY TCP4  . 1 2\r\n", Ok((19, Some(version1_header("", 1, ".", 2)))));
}

#[test]
fn broken_lines() {
    for line in [
        "",
        "GET / HTTP/1.1",
        "PROXY",
        "PROXY ",
        "PROXY UNKNOWN",
        "PROXY UDP4 1.1.1.1 1.1.1.1 1 1",
        "PROXY TCP5 1.1.1.1 1.1.1.1 1 1",
        "PROXY TCP4\t1.1.1.1 1.1.1.1 1 1",
        "PROXY TCP4 x 1.1.1.1 1 1",
        "PROXY TCP4 1.1.1.1 1.1.1.1 1",
        "PROXY TCP4 1.1.1.1 1.1.1.1 1 65536",
        "PROXY TCP4 1.1.1.1 1.1.1.1 -1 1",
        "PROXY TCP4 1.1.1.1 1.1.1.1 1  1",
        "PROXY TCP4 1.1.1.1 1.1.1.1 1 1 ",
    ] {
        check(line.as_bytes(), Err(Broken::Line(line.as_bytes())));
        check(format!("{line}\n").as_bytes(), Err(Broken::Line(line.as_bytes())));
    }
    let whole = b"PROXY TCP4 192.0.2.1 192.0.2.2 123 5678\r\n";
    for end in 0..whole.len() {
        check(&whole[..end], Err(Broken::Line(&whole[..end.min(39)])));
    }
    check(&SIGNATURE[..4], Err(Broken::Line(b"")));
}

#[test]
fn version_2() {
    let inet = [192, 0, 2, 1, 192, 0, 2, 2, 0, 123, 22, 46];
    let header = version1_header("192.0.2.1", 123, "192.0.2.2", 5678);
    let whole = version2_of(0x21, 0x11, &inet);
    check(&whole, Ok((28, Some(header.clone()))));
    let with_tlvs = Header { tlvs: b"\x05\0\x01a"[..].into(), ..header };
    let bytes = version2_of(0x21, 0x11, &[&inet[..], b"\x05\0\x01a"].concat());
    check(&[&bytes[..], b"GET"].concat(), Ok((32, Some(with_tlvs))));
    let mut inet6 = [0u8; 36];
    (inet6[0], inet6[1], inet6[15], inet6[31], inet6[33], inet6[35]) = (0x20, 1, 1, 2, 3, 4);
    check(&version2_of(0x21, 0x21, &inet6), Ok((52, Some(version1_header("2001::1", 3, "::2", 4)))));
    // LOCAL, UDP, unix, unspecified: nothing is told, whatever else is said.
    for (command, family) in [(0x20, 0x11), (0x20, 0), (0x22, 0x11), (0x21, 0x12), (0x21, 0x31), (0x21, 0x01)]
    {
        check(&version2_of(command, family, b"abc"), Ok((19, None)));
    }
    check(&version2_of(0x11, 0x11, &inet), Err(Broken::Version(1)));
    check(&version2_of(0x21, 0x11, &inet[1..]), Err(Broken::NoAddresses));
    check(&version2_of(0x21, 0x21, &inet), Err(Broken::NoAddresses));
    for end in FIXED..whole.len() {
        check(&whole[..end], Err(Broken::TooLarge));
    }
}

#[track_caller]
fn check_tlv(tlvs: &[u8], name: &str, expected: Result<Option<&str>, TlvFault<'_>>) {
    let header = Header { tlvs: tlvs.into(), ..Header::default() };
    let mut out = vec![];
    let found = header.tlv(name, &mut out).map(|found| found.then(|| String::from_utf8(out).unwrap()));
    assert_eq!(found, expected.map(|found| found.map(str::to_owned)), "{name}");
}

#[test]
fn values() {
    let ssl = b"\x07\x01\x02\x03\x04\x21\0\x07TLSv1.2\x22\0\x03cn1";
    let tlvs =
        [&b"\x01\0\x02h2\x02\0\0\xae\0\x03foo\x05\0\x02id\x20\0"[..], &[ssl.len() as u8], ssl].concat();
    for (name, value) in [
        ("alpn", Some("h2")),
        ("0x1", Some("h2")),
        ("0x0001", Some("h2")),
        ("authority", Some("")),
        ("0xae", Some("foo")),
        ("0xAE", Some("foo")),
        ("0x1ae", None),
        ("unique_id", Some("id")),
        ("netns", None),
        ("ssl", Some(str::from_utf8(ssl).unwrap())),
        ("ssl_verify", Some("16909060")),
        ("ssl_version", Some("TLSv1.2")),
        ("ssl_cn", Some("cn1")),
        ("ssl_0x22", Some("cn1")),
        ("ssl_key_alg", None),
    ] {
        check_tlv(&tlvs, name, Ok(value));
    }
    for name in ["foo", "ssl_foo", "version", "ssl_alpn", "", "ssl_"] {
        check_tlv(&tlvs, name, Err(TlvFault::Unknown(name)));
    }
    for name in ["0x", "0xg", "ssl_0x+1", "0x11111111111111111"] {
        check_tlv(&tlvs, name, Err(TlvFault::Invalid(name)));
    }
    check_tlv(b"", "ssl_foo", Ok(None));
    check_tlv(b"\x20\0\x04abcd", "ssl_verify", Ok(None));
    // Only what comes before the value has to be whole.
    check_tlv(b"\x01\0\x01a\x02\0", "alpn", Ok(Some("a")));
    for broken in [&b"\x01\0\x01a\x02\0"[..], b"\x01\0\x01a\x02\0\x01", b"\x01\0"] {
        check_tlv(broken, "authority", Err(TlvFault::Broken));
    }
    check_tlv(b"\x20\0\x07abcde\x21\0", "ssl_cn", Err(TlvFault::Broken));
}

fn write(socket: &Socket, bytes: &[u8]) {
    assert_eq!(socket.try_write(bytes).unwrap(), bytes.len());
}

async fn outcome(socket: &Socket, limit: usize, timers: &Timers) -> Result<Option<Header>, String> {
    let timer = timers.register();
    timer.set_in(1000);
    read(socket, limit, &timer).await.map_err(|failure| match failure {
        Failure::Closed => "closed".into(),
        Failure::Late => "late".into(),
        Failure::Read(error) => error.to_string(),
        Failure::Broken(message) => message.unwrap_or_default(),
    })
}

const LINE: &[u8] = b"PROXY TCP4 1.1.1.1 2.2.2.2 3 4\r\n";

#[test]
fn what_follows_stays_where_it_is() {
    reactor(|timers| async move {
        for tcp in [true, false] {
            for rest in ["GET /", ""] {
                let (server, client) = sockets(tcp).await;
                // The header comes after it was waited for.
                let (server, timers) = (Rc::new(server), timers.clone());
                let waiting = Rc::clone(&server);
                let reading =
                    tokio::task::spawn_local(async move { outcome(&waiting, LINE.len() + 2, &timers).await });
                tokio::task::yield_now().await;
                write(&client, &[LINE, rest.as_bytes()].concat());
                let header = version1_header("1.1.1.1", 3, "2.2.2.2", 4);
                assert_eq!(reading.await.unwrap(), Ok(Some(header)));
                write(&client, b"!");
                let mut got = vec![];
                while !got.ends_with(b"!") {
                    let mut bytes = [0; 64];
                    let n = poll_fn(|cx| server.poll_read(cx, &mut bytes)).await.unwrap();
                    got.extend_from_slice(&bytes[..n]);
                }
                assert_eq!(got, format!("{rest}!").into_bytes());
            }
        }
    });
}

#[test]
fn no_more_is_looked_at_than_the_limit() {
    reactor(|timers| async move {
        let (server, client) = sockets(false).await;
        write(&client, LINE);
        let told = outcome(&server, LINE.len() - 1, &timers).await;
        assert_eq!(told, Err("broken header: \"PROXY TCP4 1.1.1.1 2.2.2.2 3 4\"".into()));
        for (limit, expected) in [(115, Err("header is too large".into())), (116, Ok(None))] {
            let (server, client) = sockets(false).await;
            write(&client, &version2_of(0x20, 0, &[0; 100]));
            assert_eq!(outcome(&server, limit, &timers).await, expected);
        }
    });
}

#[test]
fn who_says_nothing_is_closed() {
    paused(|timers| async move {
        let (server, client) = sockets(false).await;
        assert_eq!(outcome(&server, 100, &timers).await, Err("late".into()));
        drop(client);
        assert_eq!(outcome(&server, 100, &timers).await, Err("closed".into()));
    });
}
