//! What of balancing and of tunnels a reload, and servers that come and go, leave as it is.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use weir_testkit::{Client, Gate, Origin, Response, Server, Socket, free_address, until};

use crate::{Test, executable};

pub const TESTS: &[Test] = &[
    (
        "tunnels_of_a_server_that_is_gone_end_where_they_are_to",
        tunnels_of_a_server_that_is_gone_end_where_they_are_to,
    ),
    ("tunnels_of_a_sick_server_end_where_they_are_to", tunnels_of_a_sick_server_end_where_they_are_to),
    ("tunnels_last_until_a_check_fails", tunnels_last_until_a_check_fails),
    ("the_fewest_connections_are_counted_over_reloads", the_fewest_connections_are_counted_over_reloads),
    ("a_websocket_stays_with_its_server", a_websocket_stays_with_its_server),
    ("requests_wait_in_their_order", requests_wait_in_their_order),
    ("who_waits_too_long_or_leaves_is_not_served", who_waits_too_long_or_leaves_is_not_served),
    ("the_end_of_a_tunnel_is_waited_for", the_end_of_a_tunnel_is_waited_for),
];

const CONF: &str = "
    worker_processes 2;
    error_log logs/error.log notice;
    events {}
    http {
        upstream u { zone u 64k; {group} }
        map $http_upgrade $connection_upgrade { default upgrade; '' ''; }
        server {
            listen {listen};
            location / {
                proxy_pass http://u;
                proxy_set_header Upgrade $http_upgrade;
                proxy_set_header Connection $connection_upgrade;
                {more}
            }
        }
    }";

fn names(group: &str, more: &str) -> [(&'static str, String); 2] {
    [("group", group.to_owned()), ("more", more.to_owned())]
}

#[track_caller]
fn start(group: &str, more: &str) -> Server {
    Server::start(&executable(), CONF, &names(group, more))
}

#[track_caller]
fn reload(server: &Server, group: &str) {
    reload_with(server, group, "");
}

#[track_caller]
fn reload_with(server: &Server, group: &str, more: &str) {
    server.configure(CONF, &names(group, more));
    assert_eq!(server.reload().code, Some(0), "{}", server.log());
}

/// An origin that says its name in the first message of a WebSocket and sends the others back, and answers other requests
/// with it.
fn named(name: &'static str) -> Origin {
    Origin::start(move |visit| {
        let mut head = [0; 4096];
        let length = visit.tcp().peek(&mut head)?;
        if head[..length].windows(8).any(|bytes| bytes == b"Upgrade:") {
            let mut socket = visit.websocket()?;
            socket.try_send(name)?;
            return socket.echo();
        }
        visit.request()?;
        // Who wants a WebSocket comes on a connection of its own.
        visit.send(format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 1\r\n\r\n{name}"))
    })
}

/// A tunnel, and where it leads.
fn tunnel(server: &Server) -> (Socket, String) {
    let mut socket = Socket::connect(server.address(), "/");
    let name = socket.receive().to_string();
    (socket, name)
}

fn is_over(socket: &mut Socket) -> bool {
    socket.try_receive().is_err()
}

fn tunnels_of_a_server_that_is_gone_end_where_they_are_to() {
    let (a, b) = (named("a"), named("b"));
    let (at_a, at_b) = (a.address(), b.address());
    let before = format!("server {at_a} down_action=close; server {at_b};");
    for (after, a_ends) in [
        (format!("server {at_a} down; server {at_b};"), false),
        (format!("server {at_a} down down_action=keep; server {at_b};"), false),
        (format!("server {at_a} drain down_action=close; server {at_b};"), false),
        (format!("server {at_a} down down_action=close; server {at_b};"), true),
        (format!("server {at_b};"), true),
    ] {
        let server = start(&before, "");
        // Both threads have some, one of each peer at least.
        let mut tunnels: Vec<_> = (0..8).map(|_| tunnel(&server)).collect();
        reload(&server, &after);
        for (socket, name) in &mut tunnels {
            if name == "a" && a_ends {
                assert!(is_over(socket), "{after}");
            } else {
                socket.echo_of("still here");
            }
        }
        assert!(["a", "b"].iter().all(|name| tunnels.iter().any(|(_, own)| own == name)));
        reload(&server, &before);
        // Nothing is held against one that is back.
        let mut again: Vec<_> = (0..4).map(|_| tunnel(&server)).collect();
        reload(&server, &before);
        assert!(again.iter().any(|(_, name)| name == "a"));
        again.iter_mut().for_each(|(socket, _)| socket.echo_of("back"));
    }
}

/// Says at a port of every address whether servers are well, where it says anything.
fn doctor() -> (Origin, u16, Arc<AtomicBool>) {
    let well = Arc::new(AtomicBool::new(true));
    let is_well = Arc::clone(&well);
    let port = free_address().port();
    let doctor = Origin::start_at((Ipv4Addr::UNSPECIFIED, port).into(), move |visit| {
        while let Some(request) = visit.request()? {
            if request.starts_with("GET /silent") {
                return visit.stall();
            }
            let status = if is_well.load(Ordering::SeqCst) { 204 } else { 503 };
            visit.send(format!("HTTP/1.1 {status} So\r\nContent-Length: 0\r\n\r\n"))?;
        }
        Ok(())
    });
    (doctor, port, well)
}

fn tunnels_of_a_sick_server_end_where_they_are_to() {
    for (action, ends) in [("close", true), ("keep", false)] {
        let (a, b) = (named("a"), named("b"));
        let (_doctor, port, well) = doctor();
        let group = format!("server {} down_action={action}; server {};", a.address(), b.address());
        let check = format!("health_check interval=20ms port={port};");
        let server = start(&group, &check);
        let mut tunnels: Vec<_> = (0..4).map(|_| tunnel(&server)).collect();
        well.store(false, Ordering::SeqCst);
        server.logged(&format!("of peer {} in upstream", a.address()));
        server.logged(&format!("of peer {} in upstream", b.address()));
        for (socket, name) in &mut tunnels {
            if name == "a" && ends {
                until("the tunnel ends", || is_over(socket));
            } else {
                socket.echo_of("still here");
            }
        }
    }
}

fn tunnels_last_until_a_check_fails() {
    let (a, b) = (named("a"), named("b"));
    let (_doctor, port, well) = doctor();
    let group =
        format!("server {} down_action=close; server {} down_action=close;", a.address(), b.address());
    let check = |more: &str| format!("health_check interval=20ms mandatory port={port} {more};");
    let server = start(&group, &check(""));
    let of = |origin: &Origin| format!("peer is healthy, health check \"\" of peer {}", origin.address());
    for origin in [&a, &b] {
        server.logged(&of(origin));
    }
    let mut tunnels: Vec<_> = (0..4).map(|_| tunnel(&server).0).collect();
    // Each of these has not looked when the configuration begins, the last never does.
    for more in [&check(""), &check("persistent uri=/other"), &check("uri=/silent")] {
        reload_with(&server, &group, more);
        tunnels.iter_mut().for_each(|socket| socket.echo_of("still here"));
    }
    assert_eq!(get(&server, "").status, 502);
    // One that finds them well does not speak for the other, but neither does the other yet.
    let both = format!("{} location /b {{ proxy_pass http://u; {} }}", check("uri=/silent"), check(""));
    let before = server.log().len();
    reload_with(&server, &group, &both);
    until("they are looked at", || {
        [&a, &b].iter().all(|origin| server.log()[before..].contains(&of(origin)))
    });
    reload_with(&server, &group, &both.replace("location /b", "location /c"));
    tunnels.iter_mut().for_each(|socket| socket.echo_of("still here"));
    well.store(false, Ordering::SeqCst);
    for socket in &mut tunnels {
        until("the tunnel ends", || is_over(socket));
    }
}

fn the_fewest_connections_are_counted_over_reloads() {
    let (a, b, c) = (named("a"), named("b"), named("c"));
    let server_of = |origin: &Origin| format!("server {};", origin.address());
    let pair = format!("least_conn; {} {}", server_of(&a), server_of(&b));
    let server = start(&pair, "");
    let mut tunnels: Vec<_> = (0..6).map(|_| tunnel(&server)).collect();
    // Three of each; those of one end.
    tunnels.retain(|(_, name)| name == "a");
    assert_eq!(tunnels.len(), 3);
    until("its tunnels are over", || get(&server, "").text() == "b" && get(&server, "").text() == "b");
    for _ in 0..2 {
        // Also where another one comes first.
        reload(&server, &format!("least_conn; {} {} {}", server_of(&c), server_of(&a), server_of(&b)));
        let new: Vec<_> = (0..4).map(|_| tunnel(&server)).collect();
        let names: String = new.iter().map(|(_, name)| name.as_str()).collect();
        assert!(!names.contains('a'), "{names}");
        assert_eq!(names.matches('b').count(), 2, "{names}");
        drop(new);
        until("they are over", || (0..4).all(|_| get(&server, "").text() != "a"));
        reload(&server, &pair);
    }
    tunnels.iter_mut().for_each(|(socket, _)| socket.echo_of("still here"));
}

#[track_caller]
fn get(server: &Server, cookie: &str) -> Response {
    let request = format!("GET / HTTP/1.1\r\nHost: a.example\r\n{cookie}Connection: close\r\n\r\n");
    Client::connect(server.address()).ask(request)
}

fn a_websocket_stays_with_its_server() {
    let (a, b, c) = (named("a"), named("b"), named("c"));
    let group = |origins: &[&Origin]| {
        let servers: String = origins.iter().map(|origin| format!("server {}; ", origin.address())).collect();
        format!("sticky cookie id; {servers}")
    };
    let server = start(&group(&[&a, &b]), "");
    let answer = get(&server, "");
    let (name, set) = (answer.text(), answer.header("Set-Cookie").expect("a cookie").to_owned());
    let cookie = format!("Cookie: {set}\r\n");
    let key = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
               Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let opened = |expected: &str| {
        let mut client = Client::connect(server.address());
        client.send(format!("GET / HTTP/1.1\r\nHost: a.example\r\n{cookie}{key}\r\n"));
        let mut head = client.bytes(12);
        assert_eq!(head, b"HTTP/1.1 101", "{head:?}");
        while !head.ends_with(b"\r\n\r\n") {
            head.extend(client.bytes(1));
        }
        // A short text frame.
        assert_eq!(client.bytes(3), [&[0x81, 1], expected.as_bytes()].concat());
        client
    };
    let mut open = vec![opened(&name), opened(&name)];
    for origins in [&[&b, &a][..], &[&c, &b, &a], &[&a, &c, &b]] {
        reload(&server, &group(origins));
        open.push(opened(&name));
    }
    // While its server is away others take its place, and when that is back it is there.
    let others: Vec<_> = [("a", &a), ("b", &b)].into_iter().filter(|(own, _)| *own != name).collect();
    reload(&server, &group(&[others[0].1]));
    open.push(opened(others[0].0));
    reload(&server, &group(&[&c, &a, &b]));
    open.push(opened(&name));
}

/// An origin that answers with the path, as soon as the gate is open; it tells which paths came.
fn held(gate: &Gate) -> Origin {
    let gate = gate.clone();
    Origin::start(move |visit| {
        while let Some(request) = visit.request()? {
            gate.wait();
            let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
            visit.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{path}", path.len()))?;
        }
        Ok(())
    })
}

fn asking(server: &Server, path: &str) -> Client {
    let mut client = Client::connect(server.address());
    client.send(format!("GET {path} HTTP/1.1\r\nHost: a.example\r\n\r\n"));
    client
}

fn requests_wait_in_their_order() {
    let gate = Gate::default();
    let origin = held(&gate);
    for one_thread in [true, false] {
        let conf =
            if one_thread { CONF.replace("worker_processes 2", "worker_processes 1") } else { CONF.into() };
        let group = format!("server {} max_conns=1; queue 3;", origin.address());
        let server = Server::start(&executable(), &conf, &names(&group, ""));
        let before = origin.connections();
        let mut first = asking(&server, "/0");
        origin.visited(before + 1);
        let mut waiting: Vec<_> = (1..4).map(|n| asking(&server, &format!("/{n}"))).collect();
        if one_thread {
            // Those three were read in the order of their coming; no more find room.
            until("the queue is full", || get(&server, "").status == 502);
            server.logged("upstream queue is full while connecting to upstream, client: 127.0.0.1");
        }
        gate.open();
        assert_eq!(first.response().text(), "/0");
        for (n, client) in waiting.iter_mut().enumerate() {
            assert_eq!(client.response().text(), format!("/{}", n + 1));
        }
        if one_thread {
            let heard = origin.heard();
            let places: Vec<_> = (0..4).map(|n| heard.find(&format!("GET /{n} "))).collect();
            assert!(places.is_sorted() && places[0].is_some(), "{heard}");
        }
        assert_eq!(get(&server, "").text(), "/");
    }
}

fn who_waits_too_long_or_leaves_is_not_served() {
    let gate = Gate::default();
    let origin = held(&gate);
    let group = format!("server {} max_conns=1; queue 1 timeout=300ms;", origin.address());
    // One thread, so that requests are read in the order of their coming.
    let conf = CONF.replace("worker_processes 2", "worker_processes 1");
    let server = Server::start(&executable(), &conf, &names(&group, ""));
    let mut first = asking(&server, "/first");
    origin.visited(1);
    assert_eq!(asking(&server, "/late").response().status, 502);
    server.logged("upstream queue timed out while connecting to upstream, client: 127.0.0.1");
    server.configure(&conf, &names(&group.replace("300ms", "1h"), ""));
    assert_eq!(server.reload().code, Some(0), "{}", server.log());
    drop(asking(&server, "/left"));
    until("its place is free", || {
        server.folder().read("logs/access.log").contains("GET /left HTTP/1.1\" 499")
    });
    let mut last = asking(&server, "/last");
    until("it waits", || get(&server, "").status == 502);
    gate.open();
    assert_eq!((first.response().text(), last.response().text()), ("/first".into(), "/last".into()));
    assert!(!origin.heard().contains("/left") && !origin.heard().contains("/late"), "{}", origin.heard());
}

fn the_end_of_a_tunnel_is_waited_for() {
    let a = named("a");
    let group = format!("server {} max_conns=1;", a.address());
    let server = start(&group, "");
    let (mut socket, _) = tunnel(&server);
    assert_eq!(get(&server, "").status, 502);
    server.logged("no live upstreams while connecting to upstream");
    // A queue that was not there when the tunnel began.
    reload(&server, &format!("{group} queue 9;"));
    let mut waiting = asking(&server, "/");
    socket.echo_of("still here");
    drop(socket);
    assert_eq!(waiting.response().text(), "a");
}
