//! Backends that fail, in each way that is known: what clients are answered, what is logged, and that nothing of it stays.

use std::fs;
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use weir_testkit::http2::{END_STREAM, Frame, Http2};
use weir_testkit::{Client, Gate, Origin, Server, Visit, free_address, until};

use crate::{Test, executable};

mod disks;
mod storm;

pub const TESTS: &[Test] = &[
    ("each_fault_has_its_answer", each_fault_has_its_answer),
    ("each_fault_has_its_answer_over_http2", each_fault_has_its_answer_over_http2),
    ("who_does_not_connect_is_not_waited_for", who_does_not_connect),
    ("who_does_not_read_is_not_waited_for", who_does_not_read),
    ("who_floods_is_not_listened_to_for_longer", who_floods),
    ("full_disks_are_told_and_left", disks::full_disks),
    ("ten_thousand_faults_leave_nothing_behind", storm::ten_thousand_faults),
];

/// What a backend does when it has said what it says.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Then {
    Close,
    Stall,
    Reset,
    /// Says this, again and again.
    Repeat(&'static str),
}

const RST_STREAM: u8 = 3;

/// What a client gets.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Got {
    /// A whole answer; the connection goes on.
    Whole(u16),
    /// An answer that is cut off with the connection.
    Cut(u16),
    /// What the backend said, without a head.
    Raw,
}
use Got::{Cut, Raw, Whole};
use Then::{Close, Repeat, Reset, Stall};

struct Fault {
    name: &'static str,
    says: &'static str,
    then: Then,
    got: Got,
    told: &'static str,
}

const fn fault(name: &'static str, says: &'static str, then: Then, got: Got, told: &'static str) -> Fault {
    Fault { name, says, then, got, told }
}

const HEAD_LATE: &str =
    "upstream timed out (110: Connection timed out) while reading response header from upstream";
const BODY_LATE: &str = "upstream timed out (110: Connection timed out) while reading upstream";
const HEAD_RESET: &str =
    "recv() failed (104: Connection reset by peer) while reading response header from upstream";
const BODY_RESET: &str = " failed (104: Connection reset by peer) while reading upstream";
const HEAD_CLOSED: &str =
    "upstream prematurely closed connection while reading response header from upstream";
const BODY_CLOSED: &str = "upstream prematurely closed connection while reading upstream";
const MORE: &str = "upstream sent more data than specified in \"Content-Length\" header while reading";
const BAD_CHUNKS: &str = "upstream sent invalid chunked response while reading upstream";
const BIG: &str = "upstream sent too big header while reading response header from upstream";
const NO_HEAD: &str = "upstream sent no valid HTTP/1.0 header while reading response header from upstream";

/// All of them; the answers and the lines are nginx's.
const FAULTS: &[Fault] = &[
    fault("stall", "", Stall, Whole(504), HEAD_LATE),
    fault("stall-line", "HTTP/1.1 20", Stall, Whole(504), HEAD_LATE),
    fault("stall-head", "HTTP/1.1 200 OK\r\nContent-Le", Stall, Whole(504), HEAD_LATE),
    fault("stall-body", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nbegun", Stall, Cut(200), BODY_LATE),
    fault(
        "stall-chunk",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nbegun",
        Stall,
        Cut(200),
        BODY_LATE,
    ),
    fault("stall-close", "HTTP/1.1 200 OK\r\n\r\nbegun", Stall, Cut(200), BODY_LATE),
    fault("reset", "", Reset, Whole(502), HEAD_RESET),
    fault("reset-head", "HTTP/1.1 200 OK\r\nContent-Le", Reset, Whole(502), HEAD_RESET),
    fault("reset-body", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nbegun", Reset, Cut(200), BODY_RESET),
    fault("reset-close", "HTTP/1.1 200 OK\r\n\r\nbegun", Reset, Cut(200), BODY_RESET),
    fault("close", "", Close, Whole(502), HEAD_CLOSED),
    fault("close-head", "HTTP/1.1 200 OK\r\nContent-Le", Close, Whole(502), HEAD_CLOSED),
    fault("short", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort", Close, Cut(200), BODY_CLOSED),
    fault("short-error", "HTTP/1.1 404 No\r\nContent-Length: 9\r\n\r\nshort", Close, Cut(404), BODY_CLOSED),
    fault("long", "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nmore than four", Close, Whole(200), MORE),
    fault("long-none", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nmore", Close, Whole(200), MORE),
    fault("long-304", "HTTP/1.1 304 No\r\n\r\nmore", Close, Whole(304), MORE),
    fault(
        "chunks-bad",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\nnonsense\r\n",
        Close,
        Cut(200),
        BAD_CHUNKS,
    ),
    fault(
        "chunks-huge",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\nhi",
        Close,
        Cut(200),
        BAD_CHUNKS,
    ),
    fault(
        "chunks-end",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n",
        Close,
        Cut(200),
        BODY_CLOSED,
    ),
    fault(
        "chunks-half",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nhi",
        Close,
        Cut(200),
        BODY_CLOSED,
    ),
    fault(
        "chunks-more",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\nmore",
        Close,
        Whole(200),
        "upstream sent data after final chunk while reading upstream",
    ),
    fault("garbage", "\u{16}\u{3}\u{1}\0\n\r\u{7}", Close, Raw, NO_HEAD),
    fault("old", "<html>as in HTTP/0.9</html>", Close, Raw, NO_HEAD),
    fault("old-stall", "<html>as in HTTP/0.9", Stall, Raw, NO_HEAD),
    fault("status", "HTTP/1.1 2x0 OK\r\n\r\n", Close, Raw, NO_HEAD),
    fault(
        "nul",
        "HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 0\r\n\r\n",
        Close,
        Whole(502),
        "upstream sent invalid header: \"X: a\\x00...\" while reading response header from upstream",
    ),
    fault(
        "field",
        "HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        Close,
        Whole(502),
        "upstream sent invalid header: \"no\\x20...\" while reading response header from upstream",
    ),
    fault(
        "length",
        "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nx",
        Close,
        Whole(502),
        "upstream sent invalid \"Content-Length\" header: \"Content-Length: -1\" while reading response header",
    ),
    fault(
        "lengths",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
        Close,
        Whole(502),
        "upstream sent \"Content-Length\" and \"Transfer-Encoding\" headers at the same time while reading",
    ),
    fault("fields", "HTTP/1.1 200 OK\r\n", Repeat("X: yet another field\r\n"), Whole(502), BIG),
    fault("hints", "", Repeat("HTTP/1.1 103 Early Hints\r\nX: y\r\n\r\n"), Whole(504), HEAD_LATE),
    fault("continues", "", Repeat("HTTP/1.1 100 Continue\r\n\r\n"), Whole(504), HEAD_LATE),
];

impl Fault {
    fn named(name: &str) -> Option<&'static Self> {
        FAULTS.iter().find(|fault| fault.name == name)
    }

    fn commit(&self, visit: &mut Visit) -> io::Result<()> {
        visit.send(self.says)?;
        match self.then {
            Close => Ok(()),
            Stall => visit.stall(),
            Reset => {
                visit.reset_at_end();
                Ok(())
            }
            Repeat(text) => {
                let many = text.repeat(100);
                loop {
                    visit.send(&many)?;
                }
            }
        }
    }

    /// As the log of requests has it.
    fn status(&self) -> u16 {
        match self.got {
            Whole(status) | Cut(status) => status,
            Raw => 200,
        }
    }
}

/// The last name in the path of a request.
fn wish(request: &str) -> &str {
    let uri = request.split(' ').nth(1).unwrap_or_default();
    uri.split('?').next().and_then(|path| path.rsplit('/').next()).unwrap_or_default()
}

const WELL: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// Commits the fault that is wished for, and answers anything else.
fn faulty(visit: &mut Visit) -> io::Result<()> {
    while let Some(request) = visit.request()? {
        match Fault::named(wish(&request)) {
            Some(fault) => return fault.commit(visit),
            None => visit.send(WELL)?,
        }
    }
    Ok(())
}

/// Places that have to do with an upstream in each way.
const LOCATIONS: &str = "
        location /direct/ { proxy_pass http://{origin}; }
        location /kept/ { proxy_pass http://kept; }
        location /unbuffered/ {
            proxy_pass http://kept;
            proxy_buffering off;
            proxy_request_buffering off;
        }
        location /next/ { proxy_pass http://next; proxy_next_upstream error timeout invalid_header; }
        location /cached/ {
            proxy_pass http://kept;
            proxy_cache one;
            proxy_cache_valid 200 304 1h;
            proxy_cache_lock on;
            proxy_cache_lock_timeout 1h;
            proxy_cache_lock_age 1h;
        }
        location /stored/ { proxy_pass http://kept; proxy_store {folder}/data$uri; }";

const CONF: &str = "
    error_log logs/error.log warn;
    worker_processes 1;
    events {}
    http {
        log_format ends '$request $status $upstream_status';
        access_log logs/access.log ends;
        proxy_cache_path {folder}/cache keys_zone=one:1m;
        upstream kept { server {origin} max_fails=0 max_conns=64; keepalive 8; keepalive_timeout 1s; }
        upstream next { server {origin} max_fails=0; server {steady} max_fails=0 backup; }
        server {
            listen {listen};
            http2 on;
            proxy_connect_timeout 200ms;
            proxy_send_timeout 200ms;
            proxy_read_timeout 100ms;
            client_max_body_size 16m;
            {locations}
            location /mended { return 200 mended; }
            {more}
        }
    }";

#[track_caller]
fn start(origin: &Origin, steady: &Origin, more: &str) -> Server {
    let names = [
        ("locations", LOCATIONS.to_owned()),
        ("more", more.to_owned()),
        ("origin", origin.address().to_string()),
        ("steady", steady.address().to_string()),
    ];
    Server::start_as(&executable(), CONF, &names, |_, folder| open_to_all(folder.path()))
}

/// Workers may be of another user.
fn open_to_all(folder: &Path) {
    fs::set_permissions(folder, fs::Permissions::from_mode(0o777)).expect("a folder of ours");
}

/// What comes of a request that was sent, and whether the connection goes on.
fn outcome(client: &mut Client) -> (Got, bool) {
    let error = match client.try_response() {
        Ok(response) => return (Whole(response.status), response.header("Connection") != Some("close")),
        Err(error) => error,
    };
    let ends = [ErrorKind::UnexpectedEof, ErrorKind::ConnectionReset, ErrorKind::Other];
    assert!(ends.contains(&error.kind()), "{error} after {:?}", String::from_utf8_lossy(client.unread()));
    let got = client.last_words();
    let status = got.strip_prefix("HTTP/1.1 ").and_then(|got| got.get(..3)?.parse().ok());
    (status.map_or(Raw, Cut), false)
}

fn request(line: &str, body: &str) -> String {
    format!("{line} HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

/// Asks until it goes as expected, by the statuses of the upstreams and what is told of them: on a busy machine any head
/// may be late, which is another fault.
#[track_caller]
fn check(server: &Server, line: &str, body: &str, expected: Got, upstreams: &str, told: &str) {
    let status = match expected {
        Whole(status) | Cut(status) => status,
        Raw => 200,
    };
    let logged = format!("{line} HTTP/1.1 {status} {upstreams}\n");
    let of_request = format!("request: \"{line} HTTP/1.1\"");
    until(&format!("{expected:?}, {logged:?}, {told:?}"), || {
        let mut client = Client::connect(server.address());
        client.send(request(line, body));
        let (got, goes_on) = outcome(&mut client);
        if let Whole(_) = got {
            assert!(goes_on, "{line}");
            assert_eq!(client.ask(request("GET /mended", "")).text(), "mended", "{line}");
        }
        let is_told = server.log().lines().any(|line| line.contains(told) && line.contains(&of_request));
        got == expected && is_told && server.folder().read("logs/access.log").contains(&logged)
    });
}

fn each_fault_has_its_answer() {
    let (origin, steady) = (Origin::start(faulty), Origin::saying("steady"));
    let server = start(&origin, &steady, "");
    std::thread::scope(|scope| {
        for some in FAULTS.chunks(5) {
            let server = &server;
            scope.spawn(move || some.iter().for_each(|fault| has_its_answer(server, fault)));
        }
    });
}

#[track_caller]
fn has_its_answer(server: &Server, fault: &Fault) {
    let (name, status) = (fault.name, fault.status().to_string());
    for place in ["direct", "kept", "unbuffered", "cached", "stored"] {
        check(server, &format!("GET /{place}/{name}"), "", fault.got, &status, fault.told);
    }
    let stored = server.folder().path().join("data/stored").join(name).exists();
    assert!(!stored || fault.got == Whole(200), "{name}");
    if fault.told == BODY_RESET {
        let calls = [("direct", "readv()"), ("unbuffered", "recv()")];
        for (place, call) in calls {
            let of_request = format!("/{place}/{name} HTTP/1.1");
            let log = server.log();
            let mut told = log.lines().filter(|l| l.contains(&of_request) && l.contains(BODY_RESET));
            assert!(told.all(|line| line.contains(&format!("{call}{BODY_RESET}"))), "{log}");
        }
    }
    // Who waits for the key is not forgotten, whatever becomes of who fetches it.
    let mut waiting = [(); 3].map(|()| Client::connect(server.address()));
    for client in &mut waiting {
        client.send(request(&format!("GET /cached/{name}?again"), ""));
    }
    for client in &mut waiting {
        let (got, _) = outcome(client);
        assert!([fault.got, Whole(504)].contains(&got), "{name}: {got:?}");
    }
    // Another backend makes it good, unless the answer has begun or the request may have changed something.
    if fault.status() < 500 {
        check(server, &format!("GET /next/{name}"), "", fault.got, &status, fault.told);
        return;
    }
    check(server, &format!("GET /next/{name}"), "", Whole(200), &format!("{status}, 200"), fault.told);
    check(server, &format!("POST /next/{name}"), "body", fault.got, &status, fault.told);
}

/// What comes on a stream until it is over, in short.
#[track_caller]
fn on_stream(client: &mut Http2, stream: u32, path: &str) -> Vec<String> {
    client.say(&Frame::get(stream, path));
    let mut told = vec![];
    loop {
        let frame = client.frame().expect("a frame of the stream");
        assert_eq!(frame.stream, stream, "{frame}");
        told.push(frame.to_string());
        if frame.kind == RST_STREAM || frame.flags & END_STREAM != 0 {
            return told;
        }
    }
}

fn each_fault_has_its_answer_over_http2() {
    let (origin, steady) = (Origin::start(faulty), Origin::saying("steady"));
    let server = start(&origin, &steady, "");
    let mut client = Http2::connect(server.address());
    let mut streams = (1..).step_by(2);
    for fault in FAULTS {
        for place in ["direct", "unbuffered"] {
            let path = format!("/{place}/{}", fault.name);
            let logged = format!("GET {path} HTTP/2.0 {} ", fault.status());
            let of_request = format!("request: \"GET {path} HTTP/2.0\"");
            // The connection outlives them all.
            until(&format!("{path} fails over HTTP/2"), || {
                let stream = streams.next().expect("a number");
                let told = on_stream(&mut client, stream, &path);
                let head = match fault.status() {
                    status @ (200 | 304 | 404) => format!("HEADERS {stream} {status}"),
                    _ => format!("HEADERS {stream} other"),
                };
                let is_cut = matches!(fault.got, Cut(_)) || fault.got == Raw && fault.then == Stall;
                let last = told.last().map_or("", |last| last);
                let is_told =
                    server.log().lines().any(|line| line.contains(fault.told) && line.contains(&of_request));
                told[0].starts_with(&head)
                    && is_cut == (last == format!("RST_STREAM {stream} code 2"))
                    && is_told
                    && server.folder().read("logs/access.log").contains(&logged)
            });
        }
    }
}

/// Hundredths of a second that the worker has computed.
fn computed(server: &Server) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", server.worker())).expect("a process");
    let (_, fields) = stat.rsplit_once(") ").expect("a name");
    fields.split(' ').skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum()
}

/// Heads that come as fast as they are read keep nobody from looking at the time.
fn who_floods() {
    let (origin, steady) = (Origin::start(faulty), Origin::saying("steady"));
    let server = start(&origin, &steady, "");
    for name in ["hints", "continues"] {
        let before = computed(&server);
        let (got, _) =
            outcome(Client::connect(server.address()).send(request(&format!("GET /direct/{name}"), "")));
        assert_eq!(got, Whole(504));
        let took = computed(&server) - before;
        assert!(took < 80, "{name}: {took} hundredths of a second for a tenth");
    }
}

/// An address where connections are taken by nobody: the queue of those that wait is full.
struct Deaf {
    socket: socket2::Socket,
    _first: TcpStream,
}

impl Deaf {
    fn listen() -> Self {
        let socket =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
        socket.bind(&free_address().into()).expect("a free address");
        socket.listen(0).expect("a listener");
        let address = socket.local_addr().ok().and_then(|address| address.as_socket()).expect("its address");
        Self { socket, _first: TcpStream::connect(address).expect("one that waits") }
    }

    fn address(&self) -> SocketAddr {
        self.socket.local_addr().ok().and_then(|address| address.as_socket()).expect("its address")
    }
}

fn who_does_not_connect() {
    let (origin, steady, deaf) = (Origin::start(faulty), Origin::saying("steady"), Deaf::listen());
    // A TCP connection to where everybody is has no route.
    let peers = [
        (
            "refused",
            free_address().to_string(),
            502,
            "connect() failed (111: Connection refused) while connecting",
        ),
        (
            "deaf",
            deaf.address().to_string(),
            504,
            "upstream timed out (110: Connection timed out) while connecting",
        ),
        (
            "nowhere",
            "255.255.255.255:80".to_owned(),
            502,
            "connect() to 255.255.255.255:80 failed (101: Network is unreachable) while connecting",
        ),
    ];
    let places = peers.iter().map(|(name, address, ..)| {
        format!(
            "location /{name} {{ proxy_pass http://{address}; }}
             location /{name}/body {{ proxy_pass http://{address}; proxy_request_buffering off; }}
             location /{name}/http2 {{ proxy_pass http://{address}; proxy_http_version 2; }}
             location /{name}/cached {{ proxy_pass http://{address}; proxy_cache one; proxy_cache_lock on; }}
             location /{name}/next {{ proxy_pass http://{name}; }}
             location /{name}/off {{ proxy_pass http://{name}; proxy_next_upstream off; }}"
        )
    });
    let groups = peers.iter().map(|(name, address, ..)| {
        format!(
            "upstream {name} {{ server {address} max_fails=0; server {} max_fails=0 backup; }}",
            steady.address()
        )
    });
    let (places, groups) = (places.collect::<String>(), groups.collect::<String>());
    let more = format!("{places} }} {groups} server {{ listen {};", free_address());
    let server = start(&origin, &steady, &more);
    for (name, _, status, told) in &peers {
        let says = status.to_string();
        for place in ["", "/http2", "/cached", "/off"] {
            check(&server, &format!("GET /{name}{place}"), "", Whole(*status), &says, told);
        }
        check(&server, &format!("POST /{name}/body"), "body", Whole(*status), &says, told);
        // Nothing of the request has left, so that it may be repeated, whatever it is.
        check(&server, &format!("POST /{name}/next"), "body", Whole(200), &format!("{status}, 200"), told);
    }
}

fn who_does_not_read() {
    let done = Gate::default();
    let gate = done.clone();
    let origin = Origin::start(move |visit| {
        visit.head()?;
        gate.wait();
        Ok(())
    });
    let steady = Origin::saying("steady");
    let patient = "location /patient/ { proxy_pass http://next; proxy_read_timeout 20s; }";
    let server = start(&origin, &steady, patient);
    // More than sockets take on the way.
    let body = "x".repeat(12 << 20);
    let told = "upstream timed out (110: Connection timed out) while sending request to upstream";
    for line in ["POST /direct/", "POST /unbuffered/", "POST /patient/"] {
        check(&server, line, &body, Whole(504), "504", told);
    }
    check(&server, "PUT /patient/", &body, Whole(200), "504, 200", told);
    done.open();
}
