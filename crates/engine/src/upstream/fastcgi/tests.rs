use std::future::poll_fn;

use super::*;
use crate::io::pair::{Kind, pair, reactor};

fn record(kind: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![];
    append_record(kind, content, &mut out);
    out
}

#[test]
fn records_are_padded_to_eight_bytes() {
    assert_eq!(record(STDOUT, b""), [1, 6, 0, 1, 0, 0, 0, 0]);
    assert_eq!(record(STDOUT, b"12345678").len(), 16);
    assert_eq!(record(STDIN, b"abc"), *b"\x01\x05\0\x01\0\x03\x05\0abc\0\0\0\0\0");
    assert_eq!(record(STDIN, &[b'x'; 65535])[4..7], [0xff, 0xff, 1]);
}

#[test]
fn a_body_goes_in_pieces() {
    #[track_caller]
    fn check(length: usize, last: bool, lengths: &[usize]) {
        let mut out = vec![];
        append_stdin(&vec![b'x'; length], last, &mut out);
        let (mut rest, mut found) = (&out[..], vec![]);
        while let [1, STDIN, 0, 1, high, low, padding, 0, ..] = rest {
            let length = usize::from(u16::from_be_bytes([*high, *low]));
            found.push(length);
            rest = &rest[HEADER + length + usize::from(*padding)..];
        }
        assert_eq!((found, rest), (lengths.to_vec(), &[][..]));
    }
    check(0, false, &[]);
    check(0, true, &[0]);
    check(5, false, &[5]);
    check(PIECE, true, &[PIECE, 0]);
    check(2 * PIECE + 1, true, &[PIECE, PIECE, 1, 0]);
}

#[test]
fn output_is_what_records_of_it_have() {
    let end = record(END_REQUEST, &[0; 8]);
    let whole = [
        record(STDERR, b"oops\n"),
        record(STDOUT, b"out"),
        record(STDERR, b""),
        record(STDERR, b"again"),
        record(STDOUT, &[b'y'; 300]),
        record(STDOUT, b""),
        end.clone(),
    ]
    .concat();
    let output = [&b"out"[..], &[b'y'; 300]].concat();
    for piece in [1, 2, 3, 7, 8, 9, 64, whole.len()] {
        let (mut records, mut found) = (Records::default(), vec![]);
        for part in whole.chunks(piece) {
            let mut part = part.to_vec();
            let n = records.take(&mut part);
            found.extend_from_slice(&part[..n]);
        }
        assert_eq!(found, output, "{piece}");
        assert_eq!(records.stderr, b"oops\nagain", "{piece}");
        assert!(records.stdout_closed && records.request_ended && !records.beyond, "{piece}");
        assert_eq!(records.take(&mut end.clone()), 0);
        assert!(records.beyond);
    }
}

#[test]
fn what_no_record_begins_with() {
    #[track_caller]
    fn check(header: [u8; 8], expected: &str) {
        let mut records = Records::default();
        assert_eq!(records.take(&mut header.clone()), 0);
        assert_eq!(records.fault.map(|fault| fault.to_string()).as_deref(), Some(expected));
    }
    check([2, 6, 0, 1, 0, 0, 0, 0], "upstream sent unsupported FastCGI protocol version: 2");
    check([1, 5, 0, 1, 0, 0, 0, 0], "upstream sent invalid FastCGI record type: 5");
    check([1, 6, 3, 1, 0, 0, 0, 0], "upstream sent unexpected FastCGI request id high byte: 3");
    check([1, 6, 0, 2, 0, 0, 0, 0], "upstream sent unexpected FastCGI request id low byte: 2");
}

/// What reading says of a peer that sends this and closes, before a head was read and behind it.
async fn read(keep: bool, answers: bool, sent: &[u8]) -> (String, Option<String>, bool) {
    let (near, far) = pair(Kind::Tcp).await;
    assert!(far.try_write(sent).is_ok_and(|n| n == sent.len()));
    drop(far);
    let mut application = Application::new(near, keep);
    if answers {
        application.begin_body();
    }
    let (mut block, mut said) = ([0; 64], String::new());
    loop {
        match poll_fn(|cx| application.poll_read(cx, &mut block)).await {
            Ok(0) => break,
            Ok(n) => said.push_str(&String::from_utf8_lossy(&block[..n])),
            Err(error) => {
                said.push_str(&error.to_string());
                break;
            }
        }
    }
    let fault = application.fault_of_end(true).map(|fault| fault.to_string());
    (said, fault, application.into_idle().is_some())
}

#[test]
fn how_output_ends() {
    reactor(|_| ends());
}

async fn ends() {
    let end = record(END_REQUEST, &[0; 8]);
    let stdout = record(STDOUT, b"");
    let out = record(STDOUT, b"out");
    async fn check(keep: bool, answers: bool, sent: &[&[u8]], said: &str, fault: &str, idle: bool) {
        let found = read(keep, answers, &sent.concat()).await;
        assert_eq!(found, (said.to_owned(), Some(format!("upstream prematurely closed {fault}")), idle));
    }
    for keep in [false, true] {
        check(keep, true, &[&out, &stdout, &end], "out", "FastCGI stdout", keep).await;
        check(keep, true, &[&out, &end], "out", "FastCGI request", keep).await;
        check(keep, true, &[&out], "out", "connection", false).await;
        // What comes behind the end makes it no connection for others.
        check(keep, true, &[&out, &end, &out], "out", "FastCGI request", false).await;
        let closed = "upstream prematurely closed FastCGI stdout";
        check(keep, false, &[&stdout], closed, "FastCGI stdout", false).await;
        let unexpected = "upstream sent unexpected FastCGI record: 3";
        check(keep, false, &[&end], unexpected, "FastCGI request", keep).await;
    }
    let bad = [2, 6, 0, 1, 0, 0, 0, 0];
    let (said, ..) = read(false, true, &[&out[..], &bad].concat()).await;
    assert_eq!(said, "outupstream sent unsupported FastCGI protocol version: 2");
}

#[test]
fn heads_have_their_status_in_a_field() {
    #[track_caller]
    fn check(fields: &str, expected: Result<(u16, &str), &str>) {
        for piece in [1, 5, 1000] {
            let mut head = Head::new();
            let input = format!("{fields}\r\nbody");
            let mut taken = 0;
            let parsed = loop {
                let end = input.len().min(taken + piece);
                match parse(&mut head, &input.as_bytes()[taken..end], 4096) {
                    Ok(Parsed::Partial) => taken = end,
                    Ok(Parsed::Complete(n)) => break Ok(taken + n),
                    Ok(Parsed::Headless) => panic!("a status line was given"),
                    Err(invalid) => break Err(String::from_utf8(invalid.message.into_owned()).unwrap()),
                }
            };
            assert_eq!(parsed.clone().err().as_deref(), expected.err());
            if let Ok((status, line)) = expected {
                assert_eq!(parsed, Ok(input.len() - 4));
                assert_eq!(head.status(), status);
                assert_eq!(String::from_utf8_lossy(head.status_line()), line);
                assert_eq!(head.first(Known::ContentType), Some(&b"a/b"[..]));
            }
        }
    }
    let plain = "Content-Type: a/b\r\n";
    check(plain, Ok((200, "200 OK")));
    check("Content-Type: a/b\n", Ok((200, "200 OK")));
    check(&format!("{plain}Location: /x\r\n"), Ok((302, "302 Moved Temporarily")));
    check(&format!("Status: 404 Not Here\r\n{plain}"), Ok((404, "404 Not Here")));
    check(&format!("{plain}Status: 201\r\nLocation: /x\r\n"), Ok((201, "201 Created")));
    check(&format!("{plain}Status: 299\r\n"), Ok((299, "299 ")));
    check(&format!("Status: ok\r\n{plain}"), Err("upstream sent invalid status \"ok\""));
    check(&format!("Status: 20\r\n{plain}"), Err("upstream sent invalid status \"20\""));
    check(&format!("a b: c\r\n{plain}"), Err("upstream sent invalid header: \"a\\x20...\""));
    check(&"x: y\r\n".repeat(1000), Err("upstream sent too big header"));
}
