//! Active checks of servers: who is passed over, for how long, and what of it a reload keeps.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use weir_testkit::http2::{END_HEADERS, END_STREAM, Frame, Http2};
use weir_testkit::{Client, Gate, Origin, Server, Socket, free_address, until};

use crate::{Test, executable};

pub const TESTS: &[Test] = &[
    ("a_server_that_is_not_well_is_passed_over", a_server_that_is_not_well_is_passed_over),
    ("a_server_that_is_not_there_is_not_well", a_server_that_is_not_there_is_not_well),
    ("checks_ask_as_the_location_does", checks_ask_as_the_location_does),
    ("an_answer_has_to_pass_all_tests", an_answer_has_to_pass_all_tests),
    ("a_body_comes_in_time", a_body_comes_in_time),
    ("a_server_waits_for_its_first_check", a_server_waits_for_its_first_check),
    ("what_was_found_is_kept_over_a_reload", what_was_found_is_kept_over_a_reload),
    ("checks_end_with_their_configuration", checks_end_with_their_configuration),
    ("a_websocket_is_opened_and_pinged", a_websocket_is_opened_and_pinged),
    ("connections_of_checks_may_be_kept", connections_of_checks_may_be_kept),
    (
        "a_kept_connection_that_its_server_closes_says_nothing",
        a_kept_connection_that_its_server_closes_says_nothing,
    ),
    ("what_checks_are_answered_is_not_stored", what_checks_are_answered_is_not_stored),
    ("checks_speak_tls_where_the_location_does", checks_speak_tls_where_the_location_does),
    ("checks_speak_http2_where_the_location_does", checks_speak_http2_where_the_location_does),
];

const CONF: &str = "
    worker_processes 2;
    error_log logs/error.log notice;
    events {}
    http {
        {http}
        upstream u { zone u 64k; {peers} }
        server {
            listen {listen};
            location / { proxy_pass http://u; {check} }
        }
    }";

fn names(peers: &str, check: &str, http: &str) -> [(&'static str, String); 3] {
    [("peers", peers.to_owned()), ("check", check.to_owned()), ("http", http.to_owned())]
}

#[track_caller]
fn start(peers: &str, check: &str, http: &str) -> Server {
    Server::start(&executable(), CONF, &names(peers, check, http))
}

#[track_caller]
fn reload(server: &Server, peers: &str, check: &str, http: &str) {
    server.configure(CONF, &names(peers, check, http));
    assert_eq!(server.reload().code, Some(0), "{}", server.log());
}

const GET: &str = "GET / HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n";

/// The bodies of that many answers, one after the other; `-` is none.
#[track_caller]
fn answers(server: &Server, count: usize) -> String {
    let one = |_| {
        let answer = Client::connect(server.address()).ask(GET);
        if answer.status == 200 { answer.text() } else { "-".to_owned() }
    };
    (0..count).map(one).collect()
}

/// A server that says its name to everybody, and to checks what it is told to.
struct Patient {
    origin: Origin,
    says: Arc<Mutex<String>>,
    checks: Arc<AtomicUsize>,
    /// Checks are not answered.
    stalls: Arc<AtomicBool>,
}

impl Patient {
    fn new(name: &'static str) -> Self {
        let says = Arc::new(Mutex::new("200 OK\r\nContent-Length: 0\r\n".to_owned()));
        let (checks, stalls) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
        let (said, counted, stalled) = (Arc::clone(&says), Arc::clone(&checks), Arc::clone(&stalls));
        let origin = Origin::start(move |visit| {
            while let Some(request) = visit.request()? {
                if !request.starts_with("GET /health") {
                    visit.send(format!("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{name}"))?;
                    continue;
                }
                counted.fetch_add(1, Ordering::SeqCst);
                if stalled.load(Ordering::SeqCst) {
                    return visit.stall();
                }
                let said = said.lock().unwrap().clone();
                let (head, body) = said.split_once("\r\n\r\n").unwrap_or((said.trim_end(), ""));
                visit.send(format!("HTTP/1.1 {head}\r\n\r\n{body}"))?;
            }
            Ok(())
        });
        Self { origin, says, checks, stalls }
    }

    fn server(&self) -> String {
        format!("server {};", self.origin.address())
    }

    fn says(&self, answer: &str) {
        *self.says.lock().unwrap() = answer.to_owned();
    }

    fn is_sick(&self) {
        self.says("503 Sick\r\nContent-Length: 0\r\n");
    }

    fn is_well(&self) {
        self.says("204 Well\r\n");
    }

    fn checks(&self) -> usize {
        self.checks.load(Ordering::SeqCst)
    }

    fn checked(&self, times: usize) {
        until("it is checked", || self.checks() >= times);
    }
}

fn pair() -> (Patient, Patient, String) {
    let (a, b) = (Patient::new("a"), Patient::new("b"));
    let peers = format!("{} {}", a.server(), b.server());
    (a, b, peers)
}

const QUICK: &str = "health_check uri=/health interval=20ms;";

/// A check that does not wait for long: not for those that are to find a server well, which on a busy machine may take so
/// long.
fn impatient(check: &str) -> String {
    format!("{check} proxy_connect_timeout 1s; proxy_read_timeout 1s;")
}

fn a_server_that_is_not_well_is_passed_over() {
    let (a, _b, peers) = pair();
    let server = start(&peers, "health_check uri=/health interval=20ms fails=2 passes=3;", "");
    assert_eq!(answers(&server, 4), "abab");
    a.is_sick();
    let of = format!("health check \"\" of peer {} in upstream \"u\"", a.origin.address());
    server.logged(&format!("[warn] {}#", server.worker()));
    server.logged(&format!("peer is unhealthy while checking status code, {of}\n"));
    assert_eq!(answers(&server, 4), "bbbb");
    a.is_well();
    server.logged(&format!("peer is healthy, {of}\n"));
    assert_eq!(answers(&server, 4).matches('a').count(), 2);
    // Once for each change, however many checks there were.
    assert_eq!(server.log().matches("peer is ").count(), 2, "{}", server.log());
}

fn a_server_that_is_not_there_is_not_well() {
    let b = Patient::new("b");
    let away = free_address();
    let server = start(&format!("server {away}; {}", b.server()), QUICK, "");
    let of = format!(", health check \"\" of peer {away} in upstream \"u\"\n");
    server.logged(&format!("connect() failed (111: Connection refused) while connecting to upstream{of}"));
    server.logged(&format!("peer is unhealthy while connecting to upstream{of}"));
    assert_eq!(answers(&server, 4), "bbbb");
    // Nobody but checks has asked it.
    assert_eq!(server.log().matches("client: 127.0.0.1").count(), 0, "{}", server.log());
    // One that is silent is no better.
    b.stalls.store(true, Ordering::SeqCst);
    let server = start(&format!("server {away}; {}", b.server()), &impatient(QUICK), "");
    server.logged(
        "upstream timed out (110: Connection timed out) while reading response header from upstream, health",
    );
    server.logged("peer is unhealthy while reading response header from upstream, health");
    assert_eq!(answers(&server, 1), "-");
    server.logged("no live upstreams while connecting to upstream, client: 127.0.0.1");
}

fn checks_ask_as_the_location_does() {
    let a = Patient::new("a");
    let check = "health_check uri=/health?a=b%20c interval=20ms; proxy_set_header X-Check $upstream_addr-$server_port;
        proxy_set_header Host $host; proxy_pass_request_headers on;";
    let server = start(&a.server(), check, "");
    a.checked(1);
    let expected = "GET /health?a=b%20c HTTP/1.1\r\nHost: u\r\nX-Check: -\r\n\r\n";
    until("it is asked so", || a.origin.heard().starts_with(expected));
    drop(server);
    // Elsewhere, for who answers checks on another port.
    let (b, port) = (Patient::new("b"), free_address().port());
    let _doctor = Origin::start_at((Ipv4Addr::UNSPECIFIED, port).into(), |visit| {
        visit.request()?;
        visit.send("HTTP/1.1 503 Sick\r\nContent-Length: 0\r\n\r\n")
    });
    let server = start(&b.server(), &format!("health_check uri=/health interval=20ms port={port};"), "");
    let of = format!("of peer {} in upstream \"u\", port {port}\n", b.origin.address());
    server.logged(&format!("peer is unhealthy while checking status code, health check \"\" {of}"));
    assert_eq!(b.checks(), 0);
}

fn an_answer_has_to_pass_all_tests() {
    let (a, _b, _) = pair();
    let http =
        "match good { status 200; header Content-Type ~ text; header ! X-Bad; body ~ \"all is (well)\";
        require $upstream_http_x_ready; }";
    let check = "health_check uri=/health interval=20ms match=good;";
    a.says("204 None\r\n");
    let server = start(&a.server(), check, http);
    let says = |answer: &str, doing: &str| {
        let before = server.log().len();
        a.says(answer);
        let expected = match doing {
            "" => "peer is healthy, health check \"good\"".to_owned(),
            doing => format!("peer is unhealthy while {doing}, health check \"good\""),
        };
        until(&format!("{expected} after {answer}"), || server.log()[before..].contains(&expected));
    };
    let well = "200 OK\r\nContent-Type: text/plain\r\nX-Ready: 1\r\nContent-Length: 13\r\n\r\nall is well!\n";
    server.logged("peer is unhealthy while checking status code, health check \"good\"");
    says(well, "");
    says(&well.replace("text/plain", "image/png"), "checking header");
    says(well, "");
    says(&well.replace("X-Ready", "X-Bad: 1\r\nX-Ready"), "checking header");
    says(well, "");
    says(&well.replace("well", "ill "), "checking body");
    says(well, "");
    says(&well.replace("X-Ready: 1", "X-Ready: 0"), "checking variables");
    says(
        &well
            .replace("Content-Length: 13\r\n", "Connection: close\r\nTransfer-Encoding: chunked\r\n")
            .replace("\r\n\r\nall is well!\n", "\r\n\r\n6\r\nall is\r\n7\r\n well!\n\r\n0\r\n\r\n"),
        "",
    );
    a.says(&well.replace("13", "99"));
    let server = start(&a.server(), &impatient(check), http);
    server.logged("peer is unhealthy while reading response body from upstream, health check \"good\"");
}

fn a_body_comes_in_time() {
    let origin = Origin::start(|visit| {
        visit.request()?;
        visit.send("HTTP/1.1 200 OK\r\n\r\n")?;
        // A little now and then, for ever.
        loop {
            visit.send("x")?;
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
    });
    let http = "match good { body ~ x; }";
    let peers = format!("server {};", origin.address());
    let server = start(&peers, &impatient("health_check match=good;"), http);
    server.logged("peer is unhealthy while reading response body from upstream, health check \"good\"");
}

fn a_server_waits_for_its_first_check() {
    let gate = Gate::default();
    let held = gate.clone();
    let origin = Origin::start(move |visit| {
        while let Some(request) = visit.request()? {
            if request.starts_with("GET /health") {
                held.wait();
            }
            visit.send("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na")?;
        }
        Ok(())
    });
    let check = "health_check uri=/health mandatory;";
    let server = start(&format!("server {};", origin.address()), check, "");
    origin.visited(1);
    assert_eq!(answers(&server, 2), "--");
    gate.open();
    server.logged("peer is healthy");
    assert_eq!(answers(&server, 2), "aa");
}

fn what_was_found_is_kept_over_a_reload() {
    let (a, b, peers) = pair();
    a.is_sick();
    // None that waits for an answer says anything within this test.
    let server = start(&peers, QUICK, "");
    server.logged("peer is unhealthy");
    assert_eq!(answers(&server, 2), "bb");
    // From here on checks find nothing. That the servers stand elsewhere changes nothing.
    a.stalls.store(true, Ordering::SeqCst);
    b.stalls.store(true, Ordering::SeqCst);
    let turned = format!("{} {}", b.server(), a.server());
    let go_on = |check: &str| {
        reload(&server, &turned, check, "");
        answers(&server, 4)
    };
    assert_eq!(go_on(QUICK), "bbbb");
    // Another check knows nothing of it.
    assert_eq!(go_on("health_check uri=/health?other;").matches('a').count(), 2);
    assert_eq!(go_on("").matches('a').count(), 2);
    assert_eq!(go_on("health_check uri=/health mandatory persistent;"), "----");
    b.stalls.store(false, Ordering::SeqCst);
    go_on("health_check uri=/health?b mandatory persistent;");
    until("one is well", || answers(&server, 4) == "bbbb");
    b.stalls.store(true, Ordering::SeqCst);
    assert_eq!(go_on("health_check uri=/health?b mandatory persistent interval=1h;"), "bbbb");
    assert_eq!(go_on("health_check uri=/health?b mandatory;"), "----");
}

fn checks_end_with_their_configuration() {
    let (a, b, c) = (Patient::new("a"), Patient::new("b"), Patient::new("c"));
    let server = start(&a.server(), QUICK, "");
    a.checked(5);
    reload(&server, &b.server(), QUICK, "");
    let before = a.checks();
    b.checked(20);
    // One may have been on its way.
    assert!(a.checks() <= before + 1, "{} {before}", a.checks());
    // One check for all threads, and no more than it says.
    let once = format!(
        "upstream v {{ zone v 64k; {} }} server {{ listen 127.0.0.1:0; location / {{
        proxy_pass http://v; health_check interval=1h uri=/health; }} }}",
        c.server()
    );
    let once = once.replace("listen 127.0.0.1:0", &format!("listen {}", free_address()));
    reload(&server, &b.server(), QUICK, &once);
    let before = b.checks();
    b.checked(before + 20);
    assert_eq!(c.checks(), 1);
}

fn a_websocket_is_opened_and_pinged() {
    let with_upgrade = "health_check type=websocket uri=/chat interval=20ms mandatory;
        proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade;";
    let (echo, page) = (Origin::echoing(), Origin::saying("page"));
    // Checks ask for it whatever the location does with those who do.
    let plain = "health_check type=websocket uri=/chat interval=20ms mandatory;";
    // It is a handshake of HTTP/1.1.
    let http2 = format!("proxy_http_version 2; {plain}");
    for check in [with_upgrade, plain, &http2] {
        let server = start(&format!("server {};", echo.address()), check, "");
        server.logged(&format!("peer is healthy, health check \"\" of peer {}", echo.address()));
        if check == with_upgrade {
            Socket::connect(server.address(), "/").echo_of("hello");
        }
    }
    let server = start(&format!("server {};", page.address()), with_upgrade, "");
    server.logged("peer is unhealthy while checking status code");
    assert_eq!(answers(&server, 1), "-");
    // One that opens it and then hears nothing.
    let deaf = Origin::start(|visit| {
        let _open = visit.websocket()?;
        visit.stall()
    });
    let server = start(&format!("server {};", deaf.address()), &impatient(with_upgrade), "");
    server.logged("peer is unhealthy while waiting for Pong");
    let liar = Origin::answering(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n",
    );
    let server = start(&format!("server {};", liar.address()), with_upgrade, "");
    server.logged("peer is unhealthy while checking header");
}

fn connections_of_checks_may_be_kept() {
    let a = Patient::new("a");
    let server = start(&a.server(), "health_check uri=/health interval=20ms keepalive_time=1h;", "");
    a.checked(10);
    assert_eq!(a.origin.connections(), 1);
    drop(server);
    // Also where there is more to read.
    let long = Patient::new("long");
    let piece = "x".repeat(0xfff0);
    let body = format!("fff0\r\n{piece}\r\n").repeat(3);
    long.says(&format!("200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{body}0\r\n\r\n"));
    let server = start(&long.server(), "health_check uri=/health interval=20ms keepalive_time=1h;", "");
    long.checked(5);
    assert_eq!(long.origin.connections(), 1);
    drop(server);
    let b = Patient::new("b");
    let _server = start(&b.server(), QUICK, "");
    b.checked(3);
    assert!(b.origin.connections() >= 3);
}

fn a_kept_connection_that_its_server_closes_says_nothing() {
    let origin = Origin::start(|visit| {
        visit.request()?;
        visit.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")?;
        visit.request().map(drop)
    });
    let check = "health_check interval=20ms keepalive_time=1h;";
    let server = start(&format!("server {};", origin.address()), check, "");
    origin.visited(5);
    assert!(!server.log().contains("peer is unhealthy"), "{}", server.log());
}

fn what_checks_are_answered_is_not_stored() {
    let a = Patient::new("a");
    a.says("200 OK\r\nContent-Length: 4\r\n\r\nwell");
    let server = start(&a.server(), &format!("{QUICK} root {{folder}}; proxy_store on;"), "");
    a.checked(5);
    // Nor would it be where the worker may not.
    assert!(
        !server.folder().path().join("health").exists() && !server.log().contains("[crit]"),
        "{}",
        server.log()
    );
}

fn checks_speak_tls_where_the_location_does() {
    let certs = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/certs");
    let (echo, behind) = (Origin::echoing(), free_address());
    let http = format!(
        "server {{ listen {behind} ssl; ssl_certificate {certs}/example.com.crt;
            ssl_certificate_key {certs}/example.com.key;
            location /health {{ return 204; }}
            location /chat {{ proxy_pass http://{}; proxy_set_header Upgrade $http_upgrade;
                proxy_set_header Connection upgrade; }} }}",
        echo.address()
    );
    let conf = CONF.replace("http://u", "https://u");
    let check = |check: &str, name: &str| {
        let more = format!(
            "{check} proxy_ssl_verify on; proxy_ssl_trusted_certificate {certs}/example.com.crt; proxy_ssl_name {name};"
        );
        Server::start(&executable(), &conf, &names(&format!("server {behind};"), &more, &http))
    };
    for kind in
        ["uri=/health;", "uri=/chat type=websocket;", "uri=/chat type=websocket; proxy_http_version 2;"]
    {
        let kind = format!("health_check interval=20ms mandatory {kind}");
        check(&kind, "example.com").logged(&format!("peer is healthy, health check \"\" of peer {behind}"));
        let server = check(&kind, "other.example");
        server.logged("peer is unhealthy while SSL handshaking to upstream, health check");
        server.logged("upstream SSL certificate does not match \"other.example\" while SSL handshaking to upstream, health");
    }
}

fn checks_speak_http2_where_the_location_does() {
    let origin = TcpListener::bind("127.0.0.1:0").expect("a port");
    let peers = format!("server {};", origin.local_addr().expect("an address"));
    let server = start(&peers, "proxy_http_version 2; health_check mandatory;", "");
    let mut peer = Http2::accept(&origin, &[]);
    let asked = peer.frame().expect("a check");
    assert_eq!((asked.kind, asked.stream), (1, 1), "{asked}");
    peer.say(&Frame::headers(1, END_HEADERS | END_STREAM, &[(":status", "200")]));
    server.logged("peer is healthy");
}
