//! Tunnels: messages of all sizes both ways, ends of stream, and a side that does not read.

use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use weir_engine::contract::{AnyInstall, Filter, Install};
use weir_engine::generation::Plan;
use weir_engine::http::{Body, Exchange, Response};
use weir_engine::io::Io;
use weir_ir::{Directive, Module};
use weir_testkit::{
    Client, Gate, Message, Modules, Origin, Server, Site, Socket, Visit, free_address, until, within,
};

use crate::{Test, executable};

pub const TESTS: &[Test] = &[
    ("messages_of_all_sizes_pass_both_ways", messages_of_all_sizes_pass_both_ways),
    ("messages_pass_where_the_origin_speaks_tls", messages_pass_where_the_origin_speaks_tls),
    ("the_end_of_one_side_comes_after_all_its_bytes", the_end_of_one_side_comes_after_all_its_bytes),
    (
        "a_client_that_is_gone_before_the_upgrade_is_logged",
        a_client_that_is_gone_before_the_upgrade_is_logged,
    ),
    ("a_client_that_does_not_read_is_not_buffered_for", a_client_that_does_not_read_is_not_buffered_for),
    ("an_origin_that_does_not_read_is_not_buffered_for", an_origin_that_does_not_read_is_not_buffered_for),
    ("what_breaks_a_tunnel_is_logged", what_breaks_a_tunnel_is_logged),
    ("small_messages_do_not_wait_for_acknowledgements", small_messages_do_not_wait_for_acknowledgements),
];

const CONF: &str = "
    error_log logs/error.log info;
    events {}
    http {
        access_log logs/access.log;
        server {
            listen {listen} {tls};
            ssl_certificate {certs}/example.com.crt;
            ssl_certificate_key {certs}/example.com.key;
            location / {
                proxy_pass http://{origin};
                proxy_http_version 1.1;
                proxy_set_header Upgrade $http_upgrade;
                proxy_set_header Connection upgrade;
            }
        }
    }";

#[track_caller]
fn start(origin: &Origin, tls: bool) -> Server {
    start_with(CONF, origin, tls)
}

#[track_caller]
fn start_with(conf: &str, origin: &Origin, tls: bool) -> Server {
    let certs = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/certs");
    let tls = if tls { "ssl" } else { "" };
    let names = [("origin", origin.address().to_string()), ("certs", certs.into()), ("tls", tls.into())];
    Server::start(&executable(), conf, &names)
}

fn messages_of_all_sizes_pass_both_ways() {
    let origin = Origin::echoing();
    for tls in [false, true] {
        let server = start(&origin, tls);
        let mut socket = if tls {
            Socket::connect_tls(server.address(), "/")
        } else {
            Socket::connect(server.address(), "/")
        };
        for size in [0, 1, 125, 126, 127, 16_383, 16_384, 65_535, 65_536, 1 << 20, 16 << 20] {
            let bytes: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
            socket.send(bytes.clone());
            let back = socket.receive();
            assert!(back == Message::binary(bytes), "{size} bytes came back as {}", back.len());
        }
        socket.send(Message::Ping(vec![1, 2].into()));
        assert_eq!(socket.receive(), Message::Pong(vec![1, 2].into()));
        socket.close();
    }
}

/// The upstream is a server of the same weir, which speaks TLS.
const TWICE: &str = "
    error_log logs/error.log info;
    events {}
    http {
        proxy_set_header Upgrade $http_upgrade;
        proxy_set_header Connection upgrade;
        server {
            listen {listen} {tls};
            listen {behind} ssl;
            ssl_certificate {certs}/example.com.crt;
            ssl_certificate_key {certs}/example.com.key;
            location / {
                proxy_pass https://{behind}/origin;
                proxy_ssl_verify on;
                proxy_ssl_name example.com;
                proxy_ssl_trusted_certificate {certs}/example.com.crt;
            }
            location /origin { proxy_pass http://{origin}; }
        }
    }";

fn messages_pass_where_the_origin_speaks_tls() {
    let origin = Origin::echoing();
    let server = start_with(&TWICE.replace("{behind}", &free_address().to_string()), &origin, false);
    let mut sockets: Vec<Socket> = (0..3).map(|_| Socket::connect(server.address(), "/")).collect();
    for socket in &mut sockets {
        for size in [0, 125, 126, 16_384, 65_536, 4 << 20] {
            let bytes: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
            socket.send(bytes.clone());
            let back = socket.receive();
            assert!(back == Message::binary(bytes), "{size} bytes came back as {}", back.len());
        }
    }
    server.reload();
    for socket in &mut sockets {
        socket.echo_of("after a reload");
        socket.close();
    }
}

const UPGRADE: &str = "GET / HTTP/1.1\r\nHost: a.example\r\nConnection: upgrade\r\nUpgrade: raw\r\n\r\n";
const SWITCHING: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: raw\r\n\r\n";

/// Answers the upgrade; what follows are bytes.
fn upgraded(visit: &mut Visit) -> io::Result<()> {
    visit.head()?;
    visit.send(SWITCHING)
}

#[track_caller]
fn upgrade(server: &Server) -> Client {
    let mut client = Client::connect(server.address());
    assert_eq!(client.ask(UPGRADE).status, 101);
    client
}

fn the_end_of_one_side_comes_after_all_its_bytes() {
    let bytes: Vec<u8> = (0..3_000_000).map(|at| (at % 251) as u8).collect();
    let sent = Arc::new(bytes);
    let to_send = Arc::clone(&sent);
    let downwards = Origin::start(move |visit| {
        upgraded(visit)?;
        visit.send(&*to_send)?;
        visit.finish()?;
        visit.stall()
    });
    let server = start(&downwards, false);
    assert!(upgrade(&server).rest() == *sent);

    let ended = Gate::default();
    let gate = ended.clone();
    let upwards = Origin::start(move |visit| {
        upgraded(visit)?;
        visit.stall()?;
        gate.open();
        Ok(())
    });
    let server = start(&upwards, false);
    let mut client = upgrade(&server);
    client.send(&*sent).finish();
    ended.wait();
    let received = upwards.received().concat();
    let start = received.len() - sent.len();
    assert!(received[start..] == *sent);
    client.closed();
}

/// How much is offered to a side that does not read.
const FLOOD: usize = 96 << 20;
/// What kernel buffers on the way may hold; a proxy that buffers would take all of [`FLOOD`].
const IN_FLIGHT: usize = FLOOD / 2;
/// By how many bytes a worker may grow meanwhile.
const GROWTH: usize = 4 << 20;
/// Without any byte taken for so long, nobody takes one.
const STANDSTILL: Duration = Duration::from_millis(700);

/// Sends until nothing goes any more; gives back how much went.
fn flood(mut stream: &std::net::TcpStream) -> io::Result<usize> {
    let chunk = vec![b'x'; 65_536];
    let before = stream.write_timeout()?;
    stream.set_write_timeout(Some(STANDSTILL))?;
    let mut sent = 0;
    while sent < FLOOD {
        match stream.write(&chunk) {
            Ok(written) => sent += written,
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => break,
            Err(e) => return Err(e),
        }
    }
    stream.set_write_timeout(before)?;
    Ok(sent)
}

/// Anonymous memory of a process, in bytes.
fn memory(pid: i32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the process");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("its memory");
    line.trim().trim_end_matches(" kB").parse::<usize>().expect("kilobytes") << 10
}

#[track_caller]
fn check_flood(sent: usize, before: usize, after: usize) {
    assert!(sent < IN_FLIGHT, "{sent} bytes went to a side that does not read");
    assert!(after < before + GROWTH, "{before} bytes of memory became {after}");
}

fn a_client_that_is_gone_before_the_upgrade_is_logged() {
    let gone = Gate::default();
    let gate = gone.clone();
    let origin = Origin::start(move |visit| {
        visit.head()?;
        gate.wait();
        visit.send(SWITCHING)
    });
    let conf = CONF.replace("location / {", "location / { proxy_ignore_client_abort on;");
    let server = start_with(&conf, &origin, false);
    let mut client = Client::connect(server.address());
    client.send(UPGRADE);
    origin.visited(1);
    client.reset();
    gone.open();
    until("the request is logged", || server.folder().read("logs/access.log").contains("HTTP/1.1\" 101 "));
}

fn a_client_that_does_not_read_is_not_buffered_for() {
    let (sent, stands) = (Arc::new(AtomicUsize::new(0)), Gate::default());
    let (count, gate) = (Arc::clone(&sent), stands.clone());
    let origin = Origin::start(move |visit| {
        upgraded(visit)?;
        count.store(flood(visit.tcp())?, Ordering::SeqCst);
        gate.open();
        visit.finish()?;
        visit.stall()
    });
    let server = start(&origin, false);
    let before = memory(server.worker());
    let mut client = upgrade(&server);
    stands.wait();
    let sent = sent.load(Ordering::SeqCst);
    check_flood(sent, before, memory(server.worker()));
    assert_eq!(client.rest().len(), sent);
}

fn an_origin_that_does_not_read_is_not_buffered_for() {
    let (read, total) = (Gate::default(), Arc::new(AtomicUsize::new(0)));
    let ended = Gate::default();
    let (gate, end, count) = (read.clone(), ended.clone(), Arc::clone(&total));
    let origin = Origin::start(move |visit| {
        upgraded(visit)?;
        gate.wait();
        let mut chunk = vec![0; 65_536];
        loop {
            match visit.tcp().read(&mut chunk)? {
                0 => {
                    end.open();
                    return Ok(());
                }
                read => count.fetch_add(read, Ordering::SeqCst),
            };
        }
    });
    let server = start(&origin, false);
    let before = memory(server.worker());
    let mut client = upgrade(&server);
    let sent = flood(client.tcp()).expect("bytes to the server");
    check_flood(sent, before, memory(server.worker()));
    client.finish();
    read.open();
    ended.wait();
    assert_eq!(total.load(Ordering::SeqCst), sent);
}

fn what_breaks_a_tunnel_is_logged() {
    #[track_caller]
    fn check(
        directive: &str,
        level: &str,
        message: &str,
        serve: fn(&mut Visit) -> io::Result<()>,
        visit: fn(Client),
    ) {
        let origin = Origin::start(serve);
        let conf = CONF.replace("proxy_http_version 1.1;", directive);
        let certs = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/certs");
        let address = origin.address().to_string();
        let names = [("origin", address.clone()), ("certs", certs.into()), ("tls", String::new())];
        let server = Server::start(&executable(), &conf, &names);
        // On a busy machine the answer may come too late, too, and is another fault then.
        visit(within("an upgrade in time", || {
            let mut client = Client::connect(server.address());
            (client.ask(UPGRADE).status == 101).then_some(client)
        }));
        let told = format!(
            "{message} while proxying upgraded connection, client: 127.0.0.1, server: , \
             request: \"GET / HTTP/1.1\", upstream: \"http://{address}/\", host: \"a.example\""
        );
        server.logged(&told);
        let log = server.log();
        let line = log.lines().find(|line| line.contains(&told)).expect("it was there");
        assert!(line.contains(&format!("[{level}]")) && line.contains(": *"), "{line}");
    }
    let resets = |visit: &mut Visit| {
        upgraded(visit)?;
        visit.reset_at_end();
        Ok(())
    };
    let stalls = |visit: &mut Visit| {
        upgraded(visit)?;
        visit.stall()
    };
    let broken = "recv() failed (104: Connection reset by peer)";
    check("", "error", broken, resets, |mut client| client.closed());
    check("", "info", broken, stalls, Client::reset);
    let silent = "upstream timed out (110: Connection timed out)";
    check("proxy_read_timeout 100ms;", "info", silent, stalls, |mut client| client.closed());
}

/// Looks at the two sockets of each tunnel that begins.
struct Onlooker;

/// Whether `TCP_NODELAY` was set towards client and upstream.
static SEEN: Mutex<Vec<(bool, bool)>> = Mutex::new(vec![]);

impl Module for Onlooker {
    const NAME: &'static str = "onlooker";
    type Main = ();
    type Scope = ();
    const DIRECTIVES: &'static [Directive<Self>] = &[];
}

impl Install for Onlooker {
    fn install((): &(), plan: &mut Plan<'_, '_>) -> Result<(), weir_syntax::Diagnostic> {
        plan.handlers.filters.push(Box::new(Onlooker));
        Ok(())
    }
}

impl Filter for Onlooker {
    fn filter(&self, x: &mut Exchange, response: &mut Response) {
        if let Body::Tunnel(tunnel) = &response.body {
            let nodelay =
                |io: &Io| io.socket().expect("a socket").options().tcp_nodelay().expect("a socket option");
            SEEN.lock().expect("no panic").push((nodelay(&x.client.io), nodelay(&tunnel.upstream)));
        }
    }
}

fn small_messages_do_not_wait_for_acknowledgements() {
    let origin = Origin::start(|visit| {
        while visit.head()?.starts_with("GET /plain ") {
            visit.send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nplain")?;
        }
        visit.send(SWITCHING)?;
        visit.stall()
    });
    let http = "
        upstream u { server {origin}; keepalive 4; }
        server {
            listen {listen};
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $http_connection;
            location / { proxy_pass http://u; }
            location /off { tcp_nodelay off; proxy_pass http://u; }
        }";
    let modules = weir_modules::HTTP.iter().copied().chain([&Onlooker as &dyn AnyInstall]).collect();
    let modules = Modules { http: Vec::leak(modules), upstream: weir_modules::UPSTREAM };
    let site = Site::start(modules, http, &[("origin", origin.address().to_string())]);
    // On a connection that is new and on one that has served before, which is not to matter.
    for (path, before, connections, expected) in
        [("/", false, 1, true), ("/", true, 2, true), ("/off", false, 3, false), ("/off", true, 4, false)]
    {
        let mut client = Client::connect(site.address());
        if before {
            let plain = "GET /plain HTTP/1.1\r\nHost: a.example\r\n\r\n";
            assert_eq!(client.ask(plain).text(), "plain");
        }
        assert_eq!(client.ask(UPGRADE.replace("GET /", &format!("GET {path}"))).status, 101);
        let seen = SEEN.lock().expect("no panic").pop();
        assert_eq!(
            (seen, origin.connections()),
            (Some((expected, expected)), connections),
            "{path} {before}"
        );
    }
}
