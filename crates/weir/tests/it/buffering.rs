//! Answers that are read ahead of their clients.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::OnceLock;

use tokio::time::Instant;
use weir_testkit::http2::{Frame, Http2};
use weir_testkit::{Client, Folder, Gate, Origin, Response, Server, until};

use crate::{Test, executable};

pub const TESTS: &[Test] = &[
    ("a_slow_client_does_not_hold_its_upstream", a_slow_client_does_not_hold_its_upstream),
    ("without_a_file_the_upstream_waits", without_a_file_the_upstream_waits),
    ("upstreams_choose_their_buffering", upstreams_choose_their_buffering),
    ("what_came_before_a_failure_is_sent", what_came_before_a_failure_is_sent),
    ("a_chunk_comes_whole_out_of_a_file", a_chunk_comes_whole_out_of_a_file),
    ("what_waits_for_clients_is_in_files", what_waits_for_clients_is_in_files),
    ("a_slow_client_does_not_hold_a_key", a_slow_client_does_not_hold_a_key),
    ("a_client_that_leaves_takes_its_upstream_along", a_client_that_leaves),
    ("what_comes_is_sent_at_once", what_comes_is_sent_at_once),
    ("answers_are_read_at_a_rate", answers_are_read_at_a_rate),
    ("answers_become_files", answers_become_files),
    ("only_what_is_whole_becomes_a_file", only_what_is_whole_becomes_a_file),
    ("a_file_that_cannot_be_written_ends_the_answer", a_file_that_cannot_be_written),
];

/// More than sockets take on the way, and than fits into `proxy_buffers`.
const LONG: usize = 24 << 20;

const CONF: &str = "
    error_log logs/error.log info;
    worker_processes 1;
    events {}
    http {
        proxy_cache_path {folder}/cache keys_zone=one:1m;
        upstream u { server {origin}; keepalive 8; }
        upstream single { server {origin} max_conns=1; keepalive 8; }
        server {
            listen {listen};
            http2 on;
            proxy_set_header Connection '';
            proxy_read_timeout 20s;
            location / { proxy_pass http://single; }
            location /many/ { proxy_pass http://u; }
            location /memory/ { proxy_pass http://single; proxy_max_temp_file_size 0; }
            location /off/ { proxy_pass http://single; proxy_buffering off; }
            location /ignored/ {
                proxy_pass http://single;
                proxy_buffering off;
                proxy_ignore_headers X-Accel-Buffering;
            }
            location /cached/ {
                proxy_pass http://u;
                proxy_cache one;
                proxy_cache_valid 1h;
                proxy_cache_lock on;
                proxy_cache_lock_timeout 1h;
                proxy_cache_lock_age 1h;
                add_header X-Cache $upstream_cache_status;
            }
            location /stored/ {
                proxy_pass http://u;
                proxy_store {folder}/data$uri;
                proxy_store_access user:rw group:r all:r;
            }
            location /kept/ { proxy_pass http://u; root {folder}/kept; proxy_store on; }
            location /paced { proxy_pass http://u; proxy_buffer_size 1k; proxy_limit_rate $arg_rate; }
        }
    }";

#[track_caller]
fn start(origin: &Origin) -> Server {
    let server = Server::start(&executable(), CONF, &[("origin", origin.address().to_string())]);
    // Workers may be of another user.
    fs::set_permissions(server.folder().path(), fs::Permissions::from_mode(0o777)).unwrap();
    server
}

fn request(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
}

#[track_caller]
fn get(server: &Server, path: &str) -> Response {
    Client::connect(server.address()).ask(request(path))
}

/// [`LONG`] bytes that show where they are from.
fn body() -> &'static [u8] {
    static BODY: OnceLock<Vec<u8>> = OnceLock::new();
    BODY.get_or_init(|| (0..LONG as u32 / 4).flat_map(u32::to_be_bytes).collect())
}

/// Answers with a long body, and with a short one to `/small`.
fn long_and_short(fields: &'static str) -> Origin {
    Origin::start(move |visit| {
        while let Some(request) = visit.request()? {
            let body = if request.contains("/small") { b"small" } else { body() };
            visit.send(format!("HTTP/1.1 200 OK\r\n{fields}Content-Length: {}\r\n\r\n", body.len()))?;
            visit.send(body)?;
        }
        Ok(())
    })
}

/// A client that has asked, and takes nothing.
fn slow(server: &Server, path: &str) -> Client {
    let mut client = Client::connect(server.address());
    client.send(request(path));
    client
}

const SPOOLED: &str = "an upstream response is buffered to a temporary file";

#[track_caller]
fn check_held(path: &str, fields: &'static str, held: bool) {
    let origin = long_and_short(fields);
    let server = start(&origin);
    let mut client = slow(&server, path);
    origin.visited(1);
    if held {
        assert_eq!(get(&server, "/small").status, 502, "{path}");
    } else {
        // There may be one connection, and it is free although nobody takes the answer.
        until("the connection is free", || get(&server, "/small").text() == "small");
        assert_eq!(origin.connections(), 1);
    }
    assert!(client.response().body == body(), "{path}");
    assert_eq!(server.log().contains(SPOOLED), !held, "{path}: {}", server.log());
}

fn a_slow_client_does_not_hold_its_upstream() {
    check_held("/x", "", false);
    let origin = long_and_short("");
    let server = start(&origin);
    let mut client = slow(&server, "/x");
    server.logged(SPOOLED);
    let log = server.log();
    let line = log.lines().find(|line| line.contains(SPOOLED)).unwrap_or_default();
    let file = format!("{SPOOLED} {}/proxy_temp/", server.folder().path().display());
    for part in
        [" [warn] ", &file, " while reading upstream, client: 127.0.0.1, ", "request: \"GET /x HTTP/1.1\""]
    {
        assert!(line.contains(part), "{part}: {line}");
    }
    // A file that is read has no name.
    let name = line.split_once(&format!("{SPOOLED} ")).and_then(|(_, rest)| rest.split(' ').next());
    assert!(name.is_some_and(|name| !Path::new(name).exists()), "{line}");
    assert!(client.response().body == body());
}

fn without_a_file_the_upstream_waits() {
    check_held("/memory/", "", true);
    check_held("/off/", "", true);
}

fn upstreams_choose_their_buffering() {
    check_held("/x", "X-Accel-Buffering: no\r\n", true);
    check_held("/off/", "X-Accel-Buffering: yes\r\n", false);
    check_held("/ignored/", "X-Accel-Buffering: yes\r\n", true);
}

fn what_came_before_a_failure_is_sent() {
    for framing in ["Content-Length: 90000000\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n1800000\r\n"] {
        let origin = Origin::start(move |visit| {
            visit.request()?;
            visit.send(format!("HTTP/1.1 200 OK\r\n{framing}"))?;
            visit.send(body())
        });
        let server = start(&origin);
        let mut client = slow(&server, "/x");
        server.logged("upstream prematurely closed connection while reading upstream");
        let all = client.rest();
        let start = all.windows(4).position(|w| w == b"\r\n\r\n").unwrap_or(0) + 4;
        let got = if framing.starts_with('T') { joined(&all[start..]) } else { all[start..].to_vec() };
        assert!(got == body(), "{framing}: {}", got.len());
    }
}

/// The data of chunks that may have no end.
fn joined(mut chunks: &[u8]) -> Vec<u8> {
    let mut data = vec![];
    while let Some(line) = chunks.windows(2).position(|w| w == b"\r\n") {
        let size = usize::from_str_radix(&String::from_utf8_lossy(&chunks[..line]), 16).unwrap();
        let end = (line + 2 + size).min(chunks.len());
        data.extend_from_slice(&chunks[line + 2..end]);
        chunks = chunks.get(end + 2..).unwrap_or_default();
    }
    data
}

fn a_chunk_comes_whole_out_of_a_file() {
    let origin = Origin::start(|visit| {
        while visit.request()?.is_some() {
            visit.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1800000\r\n")?;
            visit.send(body())?;
            visit.send("\r\n0\r\n\r\n")?;
        }
        Ok(())
    });
    let server = start(&origin);
    let mut client = slow(&server, "/x");
    server.logged(SPOOLED);
    assert!(client.response().body == body());
    let mut client = slow(&server, "/cached/x");
    origin.visited(2);
    assert_eq!(get(&server, "/cached/x").header("X-Cache"), Some("HIT"));
    assert!(client.response().body == body());
}

/// KiB of the worker that are in memory.
#[track_caller]
fn resident(server: &Server) -> usize {
    let about = fs::read_to_string(format!("/proc/{}/status", server.worker())).unwrap();
    let line = about.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_ascii_whitespace().next().unwrap().parse().unwrap()
}

#[track_caller]
fn check_resident(server: &Server, path: &str, told: bool) {
    const STREAMS: usize = 40;
    let length = 1 << 20;
    let spooled = || server.log().matches(SPOOLED).count();
    let told_before = spooled();
    // It takes nothing of its answers.
    let mut client = Http2::connect(server.address());
    client.say(&Frame::settings(&[(4, 0)]));
    let number = |n: usize| 2 * n as u32 + 1;
    let mut before = 0;
    for n in 0..STREAMS {
        client.say(&Frame::get(number(n), &format!("{path}{n}")));
        assert_eq!(client.hears(), format!("HEADERS {} 200", number(n)));
        match told {
            true => until("there is a file", || spooled() - told_before > n),
            false => assert!(get(server, &format!("{path}{n}")).body == body()[..length]),
        }
        if n == 0 {
            before = resident(server);
        }
    }
    // About as much as `proxy_buffers`, and what the C library keeps of what was there for a while.
    until("little is in memory", || resident(server) < before + STREAMS * 320);
    for n in [0, STREAMS - 1] {
        for stream in [0, number(n)] {
            client.say(&Frame::window(stream, length as u32));
        }
        assert!(client.data(number(n), length) == body()[..length], "{path}{n}");
    }
}

fn what_waits_for_clients_is_in_files() {
    const SHORT: usize = 200_000;
    let origin = Origin::start(|visit| {
        while let Some(request) = visit.request()? {
            let length = if request.contains("short") { SHORT } else { 1 << 20 };
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
            visit.send([head.as_bytes(), &body()[..length]].concat())?;
        }
        Ok(())
    });
    let server = start(&origin);
    check_resident(&server, "/many/long", true);
    check_resident(&server, "/cached/long", false);
    // One that would have room goes there later.
    let spooled = || server.log().matches(SPOOLED).count();
    let before = spooled();
    let mut client = Http2::connect(server.address());
    client.say(&Frame::settings(&[(4, 0)]));
    client.say(&Frame::get(1, "/many/short"));
    until("there is a file", || spooled() > before);
    assert_eq!(client.hears(), "HEADERS 1 200");
    for stream in [0, 1] {
        client.say(&Frame::window(stream, SHORT as u32));
    }
    assert!(client.data(1, SHORT) == body()[..SHORT]);
}

fn a_slow_client_does_not_hold_a_key() {
    let origin = long_and_short("");
    let server = start(&origin);
    let mut client = slow(&server, "/cached/x");
    origin.visited(1);
    let second = get(&server, "/cached/x");
    assert_eq!(second.header("X-Cache"), Some("HIT"));
    assert!(second.body == body());
    let first = client.response();
    assert_eq!(first.header("X-Cache"), Some("MISS"));
    assert!(first.body == body());
    assert_eq!(origin.connections(), 1);
    // Nothing of it is said, for the file is the cache's own.
    assert!(!server.log().contains(SPOOLED));
}

fn a_client_that_leaves() {
    let left = Gate::default();
    let seen = left.clone();
    let origin = Origin::start(move |visit| {
        visit.request()?;
        visit.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", 2 * LONG))?;
        // Ends when the server lets go, be it before all of this is sent.
        let ended = visit.send(body()).and_then(|()| visit.stall());
        seen.open();
        ended
    });
    let server = start(&origin);
    let client = slow(&server, "/x");
    server.logged(SPOOLED);
    client.reset();
    left.wait();
}

fn what_comes_is_sent_at_once() {
    for (path, fields) in
        [("/x", "Content-Type: text/event-stream\r\n"), ("/off/", ""), ("/cached/x", ""), ("/stored/x", "")]
    {
        let gate = Gate::default();
        let opened = gate.clone();
        let origin = Origin::start(move |visit| {
            visit.request()?;
            visit.send(format!("HTTP/1.1 200 OK\r\n{fields}Content-Length: 10\r\n\r\nfirst"))?;
            opened.wait();
            visit.send("after")
        });
        let server = start(&origin);
        let mut client = slow(&server, path);
        let mut got = String::new();
        while !got.ends_with("\r\n\r\nfirst") {
            got.push_str(&String::from_utf8_lossy(&client.bytes(1)));
        }
        gate.open();
        assert_eq!(client.rest(), b"after", "{path}");
    }
}

fn answers_are_read_at_a_rate() {
    let text = "x".repeat(10_000);
    let origin = Origin::saying(&text);
    let server = start(&origin);
    let took = |rate| {
        let began = Instant::now();
        assert_eq!(get(&server, &format!("/paced?rate={rate}")).text(), text);
        began.elapsed().as_millis()
    };
    // A second's bytes are read at most, a buffer of them at once, and each read pauses for as long as its bytes take. On a
    // busy machine one may be later than that, but never earlier.
    for (rate, least, most) in
        [("4k", 2_000, 8_000), ("10k", 700, 8_000), ("0", 0, 1_000), ("much", 0, 1_000)]
    {
        until(&format!("at {rate} a second"), || {
            let took = took(rate);
            assert!(took >= least, "{took} ms at {rate} a second");
            took < most
        });
    }
    assert!(server.log().contains("invalid size \"much\""), "{}", server.log());
}

const DATED: &str = "Last-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\n";

fn answers_become_files() {
    let origin = long_and_short(DATED);
    let server = start(&origin);
    let folder = server.folder().path();
    for path in ["stored/a/b", "stored/a/small", "kept/small"] {
        assert_eq!(get(&server, &format!("/{path}")).status, 200);
        let (below, mode) = if path.starts_with('s') { ("data", 0o644) } else { ("kept", 0o600) };
        let file = folder.join(below).join(path);
        // It takes its place while the client gets the rest.
        until("the file is there", || file.exists());
        let expected = if path.ends_with("small") { b"small" } else { body() };
        assert!(fs::read(&file).unwrap() == expected, "{path}");
        let about = fs::metadata(&file).unwrap();
        assert_eq!((about.permissions().mode() & 0o777, about.mtime()), (mode, 1_767_225_600), "{path}");
    }
    let folders = fs::metadata(folder.join("data/stored/a")).unwrap();
    assert_eq!(folders.permissions().mode() & 0o777, 0o755);
    // A client that takes nothing, and one that leaves, change nothing of it.
    let mut client = slow(&server, "/stored/slow");
    until("the file is there", || folder.join("data/stored/slow").exists());
    assert!(client.response().body == body());
    let mut client = slow(&server, "/stored/left");
    client.bytes(1);
    client.reset();
    until("the file is there", || folder.join("data/stored/left").exists());
    assert_eq!(files(&folder.join("proxy_temp")), 0);
}

/// How many files there are below a folder.
fn files(folder: &Path) -> usize {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    let count = |path: &Path| if path.is_dir() { files(path) } else { 1 };
    entries.flatten().map(|entry| count(&entry.path())).sum()
}

fn only_what_is_whole_becomes_a_file() {
    let origin = Origin::start(|visit| {
        let request = visit.request()?.unwrap_or_default();
        visit.send(match request.split(' ').nth(1) {
            Some("/stored/short") => "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort",
            Some("/stored/created") => "HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\nhi",
            Some("/stored/chunked") => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n",
            Some("/stored/missing") => "HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nhi",
            Some("/stored/empty") => "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            Some("/stored/unbuffered") => {
                "HTTP/1.1 200 OK\r\nX-Accel-Buffering: no\r\nContent-Length: 2\r\n\r\nhi"
            }
            Some("/stored/closed") => "HTTP/1.1 200 OK\r\n\r\nuntil the end",
            _ => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
        })
    });
    let server = start(&origin);
    for (name, kept) in [
        ("short", None),
        ("created", None),
        ("chunked", None),
        ("missing", None),
        ("unbuffered", None),
        ("empty", Some("")),
        ("closed", Some("until the end")),
        ("whole", Some("hi")),
    ] {
        Client::connect(server.address()).send(request(&format!("/stored/{name}"))).rest();
        let file = server.folder().path().join("data/stored").join(name);
        if let Some(text) = kept {
            until("the file is there", || file.exists());
            assert_eq!(fs::read_to_string(&file).unwrap(), text, "{name}");
        }
        assert_eq!(file.exists(), kept.is_some(), "{name}");
    }
    until("temporary files are gone", || files(&server.folder().path().join("proxy_temp")) == 0);
}

/// Files of the server have at most some MiB, which works for any user, and fails as a full disk does.
fn a_file_that_cannot_be_written() {
    let scripts = Folder::new(&[]);
    let script = format!("#!/bin/sh\nulimit -f 12000\ntrap '' XFSZ\nexec {} \"$@\"\n", executable());
    let script = scripts.write("limited", script);
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let origin = long_and_short("");
    let names = [("origin", origin.address().to_string())];
    let server = Server::start(&script.to_string_lossy(), CONF, &names);
    fs::set_permissions(server.folder().path(), fs::Permissions::from_mode(0o777)).unwrap();
    for path in ["/x", "/cached/x", "/stored/x"] {
        let mut client = slow(&server, path);
        let of_path = format!("request: \"GET {path} HTTP/1.1\"");
        until("the failure is told", || {
            let told = " failed (27: File too large) while reading upstream, client: 127.0.0.1";
            let log = server.log();
            log.lines().any(|l| l.contains("[crit]") && l.contains(told) && l.contains(&of_path))
        });
        // What comes is right as far as it goes.
        let (head, got) = client.cut_off();
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{path}: {head}");
        assert!(got.len() < LONG && body().starts_with(&got), "{path}: {}", got.len());
    }
    // A folder that is no folder any more.
    let folder = server.folder().path().join("proxy_temp");
    fs::remove_dir_all(&folder).unwrap();
    fs::write(&folder, "").unwrap();
    let mut client = slow(&server, "/x");
    server.logged(" failed (20: Not a directory) while reading upstream, client: 127.0.0.1");
    assert!(server.log().contains(&format!("open() \"{}/", folder.display())), "{}", server.log());
    assert!(client.last_words().len() < LONG);
    assert_eq!(get(&server, "/small").text(), "small");
}
