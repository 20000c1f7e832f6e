//! Requests that go to FastCGI applications.

use std::collections::BTreeMap;
use std::io;

use weir_engine::upstream::fastcgi::append_record;
use weir_testkit::http2::{Frame, Http2};
use weir_testkit::{Client, Origin, Response, Server, Visit, until};

use crate::{Test, executable};

pub const TESTS: &[Test] = &[
    ("applications_get_parameters_and_a_body", applications_get_parameters_and_a_body),
    ("a_body_goes_to_an_application_as_it_comes", a_body_goes_to_an_application_as_it_comes),
    ("heads_of_applications_become_answers", heads_of_applications_become_answers),
    ("output_may_come_in_any_records", output_may_come_in_any_records),
    ("applications_that_end_early_are_told_apart", applications_that_end_early_are_told_apart),
    ("what_applications_say_of_themselves_is_logged", what_applications_say_is_logged),
    ("connections_to_applications_are_kept_where_both_want", connections_are_kept_where_both_want),
    ("answers_of_applications_are_cached", answers_of_applications_are_cached),
    ("an_application_that_fails_is_replaced", an_application_that_fails_is_replaced),
];

const STDIN: u8 = 5;
const STDOUT: u8 = 6;
const STDERR: u8 = 7;

const CONF: &str = "
    error_log logs/error.log info;
    worker_processes 1;
    events {}
    http {
        log_format line '$request_uri $status $body_bytes_sent';
        access_log logs/access.log line;
        client_max_body_size 0;
        fastcgi_cache_path {folder}/cache keys_zone=one:1m;
        fastcgi_param SCRIPT_NAME $fastcgi_script_name;
        fastcgi_param REQUEST_METHOD $request_method;
        fastcgi_param CONTENT_LENGTH $content_length;
        fastcgi_param EMPTY '';
        fastcgi_param LEFT_OUT '' if_not_empty;
        upstream kept { server {origin}; keepalive 8; }
        upstream both { server {origin}; server {second}; }
        server {
            listen {listen};
            http2 on;
            location / { fastcgi_pass {origin}; fastcgi_read_timeout 20s; }
            location /off/ { fastcgi_pass {origin}; fastcgi_buffering off; }
            location /kept/ { fastcgi_pass kept; fastcgi_keep_conn on; }
            location /closed/ { fastcgi_pass kept; }
            location /streams/ { fastcgi_pass {origin}; fastcgi_request_buffering off; }
            location /caught/ { fastcgi_pass {origin}; fastcgi_catch_stderr 'Fatal error'; }
            location /both/ { fastcgi_pass both; fastcgi_next_upstream error invalid_header http_503; }
            location /cached/ {
                fastcgi_pass {origin};
                fastcgi_cache one;
                fastcgi_cache_key $uri;
                fastcgi_cache_valid 200 302 404 1h;
                add_header X-Cache $upstream_cache_status;
            }
            location /inside/ { internal; return 200 'inside'; }
        }
    }";

fn start(origin: &Origin) -> Server {
    start_two(origin, origin)
}

fn start_two(origin: &Origin, second: &Origin) -> Server {
    let names = [("origin", origin.address().to_string()), ("second", second.address().to_string())];
    Server::start(&executable(), CONF, &names)
}

/// A record of an application's.
fn record(kind: u8, content: &str) -> Vec<u8> {
    let mut out = vec![];
    append_record(kind, content.as_bytes(), &mut out);
    out
}

/// The end of a request, which went well.
fn end() -> Vec<u8> {
    record(3, "\0\0\0\0\0\0\0\0")
}

/// All of an answer.
fn whole(output: &str) -> Vec<u8> {
    [record(STDOUT, output), record(STDOUT, ""), end()].concat()
}

/// An application's end of a connection.
struct Talk<'v> {
    visit: &'v mut Visit,
    unread: Vec<u8>,
}

impl Talk<'_> {
    fn new(visit: &mut Visit) -> Talk<'_> {
        Talk { visit, unread: vec![] }
    }

    /// The next record; none when the server has closed.
    fn record(&mut self) -> io::Result<Option<(u8, Vec<u8>)>> {
        loop {
            if let [1, kind, 0, 1, high, low, padding, 0, rest @ ..] = &self.unread[..] {
                let (kind, length) = (*kind, usize::from(u16::from_be_bytes([*high, *low])));
                let whole = length + usize::from(*padding);
                if rest.len() >= whole {
                    let content = rest[..length].to_vec();
                    self.unread.drain(..8 + whole);
                    return Ok(Some((kind, content)));
                }
            }
            let came = self.visit.some()?;
            if came.is_empty() {
                assert!(self.unread.is_empty(), "no record: {:?}", self.unread);
                return Ok(None);
            }
            self.unread.extend(came);
        }
    }

    /// The flags of a request, and its parameters.
    fn begin(&mut self) -> io::Result<Option<(u8, BTreeMap<String, String>)>> {
        let Some((1, begin)) = self.record()? else { return Ok(None) };
        let mut all = vec![];
        loop {
            match self.record()? {
                Some((4, content)) if content.is_empty() => break,
                Some((4, content)) => all.extend(content),
                other => panic!("no parameters: {other:?}"),
            }
        }
        let mut params = BTreeMap::new();
        let mut rest = &all[..];
        let length = |rest: &mut &[u8]| {
            let n = if rest[0] < 128 { 1 } else { 4 };
            let (bytes, behind) = rest.split_at(n);
            *rest = behind;
            bytes.iter().fold(0, |sum, byte| sum << 8 | usize::from(byte & 0x7f))
        };
        while !rest.is_empty() {
            let (name, value) = (length(&mut rest), length(&mut rest));
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            params.insert(text(&rest[..name]), text(&rest[name..name + value]));
            rest = &rest[name + value..];
        }
        Ok(Some((begin[2], params)))
    }

    /// A request with its body.
    fn request(&mut self) -> io::Result<Option<(u8, BTreeMap<String, String>, Vec<u8>)>> {
        let Some((flags, params)) = self.begin()? else { return Ok(None) };
        let mut body = vec![];
        loop {
            match self.record()? {
                Some((STDIN, content)) if content.is_empty() => return Ok(Some((flags, params, body))),
                Some((STDIN, content)) => body.extend(content),
                other => panic!("no body: {other:?}"),
            }
        }
    }
}

/// An application that answers each request with what `say` makes of its flags, parameters and body.
fn application(
    say: impl Fn(u8, &BTreeMap<String, String>, &[u8]) -> Vec<u8> + Send + Sync + 'static,
) -> Origin {
    Origin::start(move |visit| {
        let mut talk = Talk::new(visit);
        while let Some((flags, params, body)) = talk.request()? {
            let said = say(flags, &params, &body);
            talk.visit.send(said)?;
            if flags == 0 {
                return Ok(());
            }
        }
        Ok(())
    })
}

fn ask(server: &Server, path: &str) -> Response {
    Client::connect(server.address()).ask(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n"))
}

fn applications_get_parameters_and_a_body() {
    const LONG: usize = 200_000;
    let origin = application(|flags, params, body| {
        let text = format!("{flags} {params:?} {}", body.len());
        whole(&format!("Content-Type: text/plain\r\n\r\n{text}"))
    });
    let server = start(&origin);
    let own = "\"HTTP_HOST\": \"a\"";
    let text = ask(&server, "/x?y").text();
    let rest = "\"REQUEST_METHOD\": \"GET\", \"SCRIPT_NAME\": \"/x\"} 0";
    assert_eq!(text, format!("0 {{\"CONTENT_LENGTH\": \"\", \"EMPTY\": \"\", {own}, {rest}"));
    for framing in
        [format!("Content-Length: {LONG}\r\n\r\n"), "Transfer-Encoding: chunked\r\n\r\n30d40\r\n".into()]
    {
        let mut client = Client::connect(server.address());
        client.send(format!("POST /x HTTP/1.1\r\nHost: a\r\n{framing}"));
        client.send(vec![b'x'; LONG]).send("\r\n0\r\n\r\n");
        let text = client.response().text();
        assert!(text.contains("\"CONTENT_LENGTH\": \"200000\""), "{text}");
        assert!(text.ends_with("\"SCRIPT_NAME\": \"/x\"} 200000"), "{text}");
    }
    let mut client = Client::connect(server.address());
    client.send("GET / HTTP/1.1\r\nHost: a\r\nX-One: 1\r\nX_Two: 2\r\nX-Long: ");
    let text = client.ask(format!("{}\r\n\r\n", "y".repeat(300))).text();
    assert!(
        text.contains(&format!("\"HTTP_X_LONG\": \"{}\", \"HTTP_X_ONE\": \"1\"", "y".repeat(300))),
        "{text}"
    );
}

fn a_body_goes_to_an_application_as_it_comes() {
    let origin = Origin::start(|visit| {
        let mut talk = Talk::new(visit);
        talk.begin()?;
        talk.visit.send(record(STDOUT, "X: y\n\n"))?;
        while let Some((STDIN, content)) = talk.record()? {
            if content.is_empty() {
                break;
            }
            talk.visit.send(record(STDOUT, &String::from_utf8_lossy(&content)))?;
        }
        talk.visit.send([record(STDOUT, ""), end()].concat())
    });
    let server = start(&origin);
    let mut client = Client::connect(server.address());
    client.send("POST /streams/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n");
    assert!(client.head().contains("\r\nX: y\r\n"));
    assert_eq!(client.bytes(10), b"5\r\nfirst\r\n");
    assert_eq!(client.send("5\r\nagain\r\n").bytes(10), b"5\r\nagain\r\n");
    assert_eq!(client.send("0\r\n\r\n").bytes(5), b"0\r\n\r\n");
    let mut client = Http2::connect(server.address());
    client.say(&Frame::post(1, "/streams/"));
    client.say(&Frame::data(1, 0, b"first"));
    assert_eq!([client.hears(), client.hears()], ["HEADERS 1 200", "DATA 1 first"]);
    client.say(&Frame::data(1, 1, b"ended"));
    let heard = client.hears();
    assert!(heard.starts_with("DATA 1 ended"), "{heard}");
}

fn heads_of_applications_become_answers() {
    let origin = application(|_, params, _| {
        let output = match params["SCRIPT_NAME"].as_str() {
            "/plain" => "Content-Type: a/b\r\nX-Powered-By: me\r\n\r\ntext",
            "/status" => "Status: 404 Not Here\r\nContent-Type: a/b\r\n\r\ntext",
            "/known" => "Status: 201\n\ntext",
            "/location" => "Location: http://b.example/\r\n\r\n",
            "/accel" => "X-Accel-Redirect: /inside/x\r\n\r\nnobody",
            "/length" => "Content-Length: 4\r\n\r\ntext",
            "/empty" => "Status: 204 No Content\r\n\r\n",
            "/long" => "Content-Length: 4\r\n\r\ntextual",
            _ => "Status: what\r\n\r\n",
        };
        whole(output)
    });
    let server = start(&origin);
    let check = |path: &str, line: &str, body: &str| {
        let answer = ask(&server, path);
        assert_eq!((answer.head.lines().next(), &*answer.text()), (Some(line), body), "{path}");
        assert_eq!(answer.header("Status"), None);
        answer
    };
    let plain = check("/plain", "HTTP/1.1 200 OK", "text");
    assert_eq!((plain.header("Content-Type"), plain.header("X-Powered-By")), (Some("a/b"), Some("me")));
    check("/status", "HTTP/1.1 404 Not Here", "text");
    check("/known", "HTTP/1.1 201 Created", "text");
    let moved = check("/location", "HTTP/1.1 302 Moved Temporarily", "");
    assert_eq!(moved.header("Location"), Some("http://b.example/"));
    check("/accel", "HTTP/1.1 200 OK", "inside");
    assert_eq!(check("/length", "HTTP/1.1 200 OK", "text").header("Content-Length"), Some("4"));
    check("/empty", "HTTP/1.1 204 No Content", "");
    check("/long", "HTTP/1.1 200 OK", "text");
    server
        .logged("upstream sent more data than specified in \"Content-Length\" header while reading upstream");
    assert_eq!(ask(&server, "/none").status, 502);
    server.logged("upstream sent invalid status \"what\" while reading response header from upstream");
}

fn output_may_come_in_any_records() {
    let output = format!("Content-Type: a/b\r\nX-Y: z\r\n\r\n{}", "text".repeat(50));
    let said = output.clone();
    let origin = Origin::start(move |visit| {
        let mut talk = Talk::new(visit);
        let Some((_, params, _)) = talk.request()? else { return Ok(()) };
        let step = params["SCRIPT_NAME"].rsplit('/').next().and_then(|n| n.parse().ok()).unwrap_or(1);
        let mut all = vec![];
        for piece in said.as_bytes().chunks(step) {
            all.extend(record(STDERR, "."));
            all.extend(record(STDOUT, &String::from_utf8_lossy(piece)));
        }
        all.extend([record(STDOUT, ""), end()].concat());
        // In packets that end anywhere.
        for piece in all.chunks(13) {
            talk.visit.send(piece)?;
        }
        Ok(())
    });
    let server = start(&origin);
    for path in ["/1", "/2", "/7", "/40", "/1000", "/off/1", "/off/9", "/off/1000"] {
        let answer = ask(&server, path);
        assert_eq!((answer.status, answer.header("X-Y")), (200, Some("z")), "{path}");
        assert_eq!(answer.text(), "text".repeat(50), "{path}");
    }
}

fn applications_that_end_early_are_told_apart() {
    let head = "Content-Length: 10\r\n\r\nhalf";
    let origin = application(move |_, params, _| {
        let out = |text: &str| record(STDOUT, text);
        match params["SCRIPT_NAME"].rsplit('/').next().unwrap_or_default() {
            "nothing" => vec![],
            "stdout" => [out("X: y\r\n"), out("")].concat(),
            "request" => [out("X: y\r\n"), end()].concat(),
            "version" => b"\x02\x06\0\x01\0\0\0\0".to_vec(),
            "type" => b"\x01\x09\0\x01\0\0\0\0".to_vec(),
            "half-stdout" => [out(head), out(""), end()].concat(),
            "half-request" => [out(head), end()].concat(),
            "half" => out(head),
            // Of a body without a length the end of the connection is the end.
            _ => out("X: y\r\n\r\nopen"),
        }
    });
    let server = start(&origin);
    let reading = "while reading response header from upstream";
    for (name, message) in [
        ("nothing", format!("upstream prematurely closed connection {reading}")),
        ("stdout", format!("upstream prematurely closed FastCGI stdout {reading}")),
        ("request", format!("upstream sent unexpected FastCGI record: 3 {reading}")),
        ("version", format!("upstream sent unsupported FastCGI protocol version: 2 {reading}")),
        ("type", format!("upstream sent invalid FastCGI record type: 9 {reading}")),
    ] {
        assert_eq!(ask(&server, &format!("/{name}")).status, 502, "{name}");
        server.logged(&message);
    }
    for buffering in ["/", "/off/"] {
        for (name, message) in [
            ("half-stdout", "upstream prematurely closed FastCGI stdout while reading upstream"),
            ("half-request", "upstream prematurely closed FastCGI request while reading upstream"),
            ("half", "upstream prematurely closed connection while reading upstream"),
        ] {
            let before = server.log().len();
            let mut client = Client::connect(server.address());
            client.send(format!("GET {buffering}{name} HTTP/1.1\r\nHost: a\r\n\r\n"));
            let (head, body) = client.cut_off();
            assert!(head.starts_with("HTTP/1.1 200 ") && body == b"half", "{name}: {head}");
            until(message, || server.log()[before..].contains(message));
        }
        assert_eq!(ask(&server, &format!("{buffering}open")).text(), "open");
    }
}

fn what_applications_say_is_logged() {
    let origin = application(|_, params, _| {
        let fatal = [record(STDERR, "PHP Fatal error: gone.\r\n"), whole("X: y\r\n\r\ntext")].concat();
        match params["SCRIPT_NAME"].as_str() {
            "/late" => [record(STDOUT, "X: y\r\n\r\nte"), record(STDERR, "late"), whole("xt")].concat(),
            "/only" => [record(STDERR, "only"), end()].concat(),
            _ => fatal,
        }
    });
    let server = start(&origin);
    let said =
        "FastCGI sent in stderr: \"PHP Fatal error: gone\" while reading response header from upstream";
    assert_eq!(ask(&server, "/").text(), "text");
    server.logged(said);
    assert_eq!(ask(&server, "/late").text(), "text");
    server.logged("FastCGI sent in stderr: \"late\" while reading ");
    assert_eq!(ask(&server, "/only").status, 502);
    server.logged("FastCGI sent in stderr: \"only\" while reading response header from upstream");
    let before = server.log().len();
    assert_eq!(ask(&server, "/caught/").status, 502);
    until("it is logged", || server.log()[before..].contains(said));
    assert!(server.log().contains("upstream: \"fastcgi://"));
}

fn connections_are_kept_where_both_want() {
    let origin = application(|flags, params, _| {
        let text = whole(&format!("Content-Length: 1\r\n\r\n{flags}"));
        match params["SCRIPT_NAME"].as_str() {
            "/kept/more" => [text, record(STDOUT, "more")].concat(),
            "/kept/chunked" => whole(&format!("X: y\r\n\r\n{flags}")),
            _ => text,
        }
    });
    let server = start(&origin);
    let mut client = Client::connect(server.address());
    for (path, flags, connections) in [
        ("/kept/", "1", 1),
        ("/kept/", "1", 1),
        ("/kept/chunked", "1", 1),
        ("/kept/more", "1", 1),
        ("/kept/", "1", 2),
        // It takes one that is there, which is the last of its requests.
        ("/closed/", "0", 2),
        ("/kept/", "1", 3),
    ] {
        let answer = client.ask(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n"));
        assert_eq!(answer.text(), flags, "{path}");
        assert_eq!(origin.connections(), connections, "{path}");
    }
}

fn answers_of_applications_are_cached() {
    let origin = application(|_, params, _| {
        let output = match params["SCRIPT_NAME"].as_str() {
            "/cached/lost" => "Status: 404 Lost\r\nContent-Type: a/b\r\n\r\nlost",
            "/cached/moved" => "Location: http://b.example/\r\n\r\n",
            _ => "Content-Type: a/b\r\n\r\nfound",
        };
        whole(output)
    });
    let server = start(&origin);
    for (name, line, body) in [
        ("found", "HTTP/1.1 200 OK", "found"),
        ("lost", "HTTP/1.1 404 Lost", "lost"),
        ("moved", "HTTP/1.1 302 Moved Temporarily", ""),
    ] {
        for cached in ["MISS", "HIT"] {
            let answer = ask(&server, &format!("/cached/{name}"));
            assert_eq!((answer.head.lines().next(), &*answer.text()), (Some(line), body), "{name}");
            if name == "found" {
                assert_eq!(answer.header("X-Cache"), Some(cached));
            }
        }
    }
    assert_eq!(origin.connections(), 3);
}

fn an_application_that_fails_is_replaced() {
    let bad = application(|_, params, _| match params["SCRIPT_NAME"].as_str() {
        "/both/busy" => whole("Status: 503 Busy\r\n\r\n"),
        _ => b"HTTP/1.1 200 OK\r\n\r\n".to_vec(),
    });
    let good = application(|_, _, body| whole(&format!("X: y\r\n\r\n{}", body.len())));
    let server = start_two(&bad, &good);
    for path in ["/both/busy", "/both/other"] {
        let request = format!("PUT {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc");
        let (mut first, mut second) = (Client::connect(server.address()), Client::connect(server.address()));
        assert_eq!([first.ask(&request).text(), second.ask(&request).text()], ["3", "3"], "{path}");
    }
    assert!(bad.connections() > 0);
}
