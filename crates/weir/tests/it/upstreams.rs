//! Peers that fail, that are backups, that have weights.

use std::net::SocketAddr;

use weir_testkit::{Client, Gate, Origin, Response, Server, free_address, until};

use crate::{Test, executable};

pub const TESTS: &[Test] = &[
    ("a_dead_peer_is_asked_once_and_passed_over", a_dead_peer_is_asked_once_and_passed_over),
    ("a_peer_without_max_fails_is_asked_again", a_peer_without_max_fails_is_asked_again),
    ("a_failed_peer_is_asked_again_after_its_timeout", a_failed_peer_is_asked_again_after_its_timeout),
    ("a_backup_answers_only_where_nobody_else_does", a_backup_answers_only_where_nobody_else_does),
    ("weights_are_smooth", weights_are_smooth),
    ("without_live_peers_it_is_a_bad_gateway", without_live_peers_it_is_a_bad_gateway),
    ("a_peer_that_breaks_off_is_replaced", a_peer_that_breaks_off_is_replaced),
    ("a_request_that_changes_things_is_not_repeated", a_request_that_changes_things_is_not_repeated),
    ("a_body_that_went_to_one_peer_goes_to_no_other_in_part", a_body_that_went_to_one_peer),
    ("a_kept_connection_comes_from_the_address_that_is_asked_for", a_kept_connection_comes_from),
    ("a_client_that_leaves_ends_the_exchange", a_client_that_leaves_ends_the_exchange),
    ("a_client_that_leaves_may_be_ignored", a_client_that_leaves_may_be_ignored),
    ("an_idle_connection_has_the_time_of_its_group", an_idle_connection_has_the_time_of_its_group),
    ("a_worker_keeps_the_right_to_addresses_of_others", a_worker_keeps_the_right_to_addresses_of_others),
];

const CONF: &str = "
    error_log logs/error.log info;
    events {}
    http {
        upstream u { {peers} }
        server {
            listen {listen};
            location / { proxy_pass http://u; }
        }
    }";

/// Peers as the configuration has them, `{a}` and so on being their addresses.
#[track_caller]
fn start(peers: &str, addresses: &[(&str, SocketAddr)]) -> Server {
    let mut names = vec![("peers", peers.to_owned())];
    names.extend(addresses.iter().map(|(name, address)| (*name, address.to_string())));
    Server::start(&executable(), CONF, &names)
}

#[track_caller]
fn get(server: &Server) -> Response {
    Client::connect(server.address()).ask("GET / HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n")
}

/// The bodies of that many answers, one after the other.
#[track_caller]
fn answers(server: &Server, count: usize) -> String {
    (0..count).map(|_| get(server).text()).collect()
}

fn refusals(server: &Server) -> usize {
    server.log().matches("connect() failed (111: Connection refused) while connecting to upstream").count()
}

fn a_dead_peer_is_asked_once_and_passed_over() {
    let live = Origin::saying("b");
    let server = start("server {a}; server {b};", &[("a", free_address()), ("b", live.address())]);
    assert_eq!(answers(&server, 8), "bbbbbbbb");
    assert_eq!(refusals(&server), 1);
    assert_eq!(server.log().matches("upstream server temporarily disabled while connecting").count(), 1);
    let server =
        start("server {a} max_fails=3; server {b};", &[("a", free_address()), ("b", live.address())]);
    assert_eq!(answers(&server, 12), "bbbbbbbbbbbb");
    assert_eq!(refusals(&server), 3);
}

fn a_peer_without_max_fails_is_asked_again() {
    let live = Origin::saying("b");
    let server =
        start("server {a} max_fails=0; server {b};", &[("a", free_address()), ("b", live.address())]);
    assert_eq!(answers(&server, 8), "bbbbbbbb");
    assert!(refusals(&server) >= 4, "{}", server.log());
    assert!(!server.log().contains("temporarily disabled"));
}

fn a_failed_peer_is_asked_again_after_its_timeout() {
    let address = free_address();
    let live = Origin::saying("b");
    let peers = "server {a} max_fails=1 fail_timeout=1s; server {b};";
    let server = start(peers, &[("a", address), ("b", live.address())]);
    assert_eq!(answers(&server, 4), "bbbb");
    let _back = Origin::start_at(address, |visit| {
        while visit.request()?.is_some() {
            visit.send("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na")?;
        }
        Ok(())
    });
    until("the peer is asked again", || get(&server).text() == "a");
    // It is whole again, and has its share.
    assert_eq!(answers(&server, 8).matches('a').count(), 4);
}

fn a_backup_answers_only_where_nobody_else_does() {
    let (live, backup) = (Origin::saying("a"), Origin::saying("b"));
    let peers = "server {b} backup; server {a};";
    let server = start(peers, &[("a", live.address()), ("b", backup.address())]);
    assert_eq!(answers(&server, 4), "aaaa");
    assert_eq!(backup.connections(), 0);
    let address = live.address();
    drop(live);
    assert_eq!(answers(&server, 4), "bbbb");
    assert!(Client::try_connect(address).is_err());
}

fn weights_are_smooth() {
    let (a, b, c) = (Origin::saying("a"), Origin::saying("b"), Origin::saying("c"));
    let addresses = [("a", a.address()), ("b", b.address()), ("c", c.address())];
    #[track_caller]
    fn check(peers: &str, addresses: &[(&str, SocketAddr)], expected: &str) {
        let server = start(peers, addresses);
        assert_eq!(answers(&server, expected.len()), expected, "{peers}");
    }
    check("server {a}; server {b}; server {c};", &addresses, "abcabc");
    check("server {a} weight=3; server {b};", &addresses, "aabaaaba");
    check("server {a} weight=5; server {b}; server {c};", &addresses, "aabacaaaabacaa");
    check("server {a} weight=2; server {b} weight=3; server {c} down;", &addresses, "babab");
}

fn without_live_peers_it_is_a_bad_gateway() {
    let server = start("server {a}; server {b};", &[("a", free_address()), ("b", free_address())]);
    assert_eq!(get(&server).status, 502);
    assert_eq!(refusals(&server), 2);
    assert_eq!(get(&server).status, 502);
    assert_eq!(refusals(&server), 2);
    server.logged("no live upstreams while connecting to upstream");
    // There is nobody to take the place of a single one, so it is asked each time.
    let server = start("server {a};", &[("a", free_address())]);
    assert_eq!((get(&server).status, get(&server).status), (502, 502));
    assert_eq!(refusals(&server), 2);
}

/// An origin that reads a request and breaks the connection.
fn breaking(resets: bool) -> Origin {
    Origin::start(move |visit| {
        visit.request()?;
        if resets {
            visit.reset_at_end();
        }
        Ok(())
    })
}

fn a_peer_that_breaks_off_is_replaced() {
    for resets in [false, true] {
        let (broken, live) = (breaking(resets), Origin::saying("b"));
        let server = start("server {a}; server {b};", &[("a", broken.address()), ("b", live.address())]);
        assert_eq!(answers(&server, 4), "bbbb");
        assert_eq!(broken.connections(), 1);
        let reason = if resets {
            "recv() failed (104: Connection reset by peer) while reading response header from upstream"
        } else {
            "upstream prematurely closed connection while reading response header from upstream"
        };
        assert_eq!(server.log().matches(reason).count(), 1, "{}", server.log());
    }
}

fn a_request_that_changes_things_is_not_repeated() {
    let (broken, live) = (breaking(false), Origin::saying("b"));
    let server = start("server {a}; server {b};", &[("a", broken.address()), ("b", live.address())]);
    let post = "POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 2\r\n\r\nhi";
    assert_eq!(Client::connect(server.address()).ask(post).status, 502);
    assert_eq!(live.connections(), 0);
    assert!(broken.heard().ends_with("\r\n\r\nhi"));
}

const FOLLOW: &str = "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n";

fn a_body_that_went_to_one_peer() {
    #[track_caller]
    fn check(page: &str, fields: &str, status: &str, heard: &str) {
        // It is gone amid the body.
        let first = Origin::start(|visit| visit.head().map(|_| ()));
        let second = Origin::saying("second");
        let conf = CONF.replace(
            "location / { proxy_pass http://u; }",
            "location / { proxy_pass http://u; proxy_request_buffering off; error_page 502 {page}; }
             location /page { proxy_pass http://{second}; {fields} }
             location @page { proxy_pass http://{second}; {fields} }",
        );
        let names = [
            ("peers", format!("server {};", first.address())),
            ("second", second.address().to_string()),
            ("page", page.to_owned()),
            ("fields", fields.to_owned()),
        ];
        let server = Server::start(&executable(), &conf, &names);
        let mut client = Client::connect(server.address());
        client.send("POST / HTTP/1.0\r\nContent-Length: 11\r\n\r\nbegun");
        until("the first peer is gone", || {
            server.log().contains("while reading response header from upstream")
        });
        let answer = client.send(" ended").last_words();
        assert_eq!(&answer[9..12], status, "{page} {fields}");
        let request = second.heard();
        let (head, body) = request.split_once("\r\n\r\n").unwrap_or_default();
        let length = head.lines().find(|line| line.starts_with("Content-Length")).unwrap_or_default();
        assert_eq!(format!("{} {length} {body}", head.split(' ').next().unwrap_or_default()), heard);
    }
    for fields in ["", "proxy_request_buffering off;"] {
        check("= @page", fields, "502", "  ");
        check("= /page", fields, "200", "GET Content-Length: 0 ");
    }
    check("= @page", "proxy_pass_request_body off;", "200", "POST  ");
}

fn a_kept_connection_comes_from() {
    let origin = Origin::start(|visit| {
        let from = visit.tcp().peer_addr()?.ip().to_string();
        while visit.request()?.is_some() {
            visit.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{from}", from.len()))?;
        }
        Ok(())
    });
    let conf = CONF.replace("proxy_pass http://u;", "proxy_pass http://u; proxy_bind $arg_from;");
    let names = [("peers", format!("server {}; keepalive 9;", origin.address()))];
    let server = Server::start(&executable(), &conf, &names);
    for from in ["127.0.0.2", "127.0.0.3", "127.0.0.2", "127.0.0.3"] {
        let request = format!("GET /?from={from} HTTP/1.0\r\n\r\n");
        assert_eq!(Client::connect(server.address()).ask(request).text(), from);
    }
    assert_eq!(origin.connections(), 2);
}

fn a_client_that_leaves_ends_the_exchange() {
    // While a head is waited for, or in the midst of a body; what it sent ahead hides nothing.
    let head = "HTTP/1.1 200 OK\r\n\r\n";
    for (answer, status) in [("", 499), (head, 200), ("HTTP/1.1 200 OK\r\n\r\ndata: 1\n\n", 200)] {
        for ahead in [0, 1_000, 100_000] {
            let left = Gate::default();
            let gate = left.clone();
            let origin = Origin::start(move |visit| {
                visit.request()?;
                visit.send(answer)?;
                visit.stall()?;
                gate.open();
                Ok(())
            });
            // With room for all that is sent ahead: an end behind more than that is not to be seen.
            let conf = CONF
                .replace("server {", "access_log logs/access.log; server {")
                .replace("{listen}", "{listen} rcvbuf=200k");
            let names = [("peers", format!("server {};", origin.address()))];
            let server = Server::start(&executable(), &conf, &names);
            let mut client = Client::connect(server.address());
            client.send(FOLLOW);
            origin.visited(1);
            if !answer.is_empty() {
                client.bytes("HTTP/1.1 200 OK\r\n".len());
            }
            client.send(format!("GET /next HTTP/1.1\r\nX: {}", "y".repeat(ahead)));
            drop(client);
            left.wait();
            server
                .logged("client prematurely closed connection, so upstream connection is closed too while ");
            let line = format!("\"GET / HTTP/1.1\" {status} ");
            until("the request is logged", || server.folder().read("logs/access.log").contains(&line));
        }
    }
}

fn a_client_that_leaves_may_be_ignored() {
    let (gone, left) = (Gate::default(), Gate::default());
    let gates = (gone.clone(), left.clone());
    let origin = Origin::start(move |visit| {
        visit.request()?;
        if visit.number > 0 {
            return visit.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        }
        visit.send("HTTP/1.1 200 OK\r\n\r\ndata: 1\n\n")?;
        gates.0.wait();
        // Nobody has closed this so far.
        visit.tcp().set_nonblocking(true)?;
        let still = visit.tcp().peek(&mut [0]).is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock);
        visit.tcp().set_nonblocking(false)?;
        if still {
            gates.1.open();
        }
        Ok(())
    });
    let conf = CONF.replace("location / {", "location / { proxy_ignore_client_abort on;");
    let names = [("peers", format!("server {};", origin.address()))];
    let server = Server::start(&executable(), &conf, &names);
    let mut client = Client::connect(server.address());
    client.send(FOLLOW).bytes("HTTP/1.1 200 OK\r\n".len());
    drop(client);
    // By the time that these are answered the end has been seen, had anybody looked.
    for _ in 0..3 {
        assert_eq!(get(&server).text(), "ok");
    }
    gone.open();
    left.wait();
}

fn an_idle_connection_has_the_time_of_its_group() {
    let closed = Gate::default();
    let gate = closed.clone();
    let origin = Origin::start(move |visit| {
        visit.request()?;
        visit.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")?;
        visit.stall()?;
        gate.open();
        Ok(())
    });
    // The other group's is longer than anybody waits here.
    let conf = CONF.replace("upstream u", "upstream other { server {a}; keepalive 1; } upstream u");
    let peers = format!("server {}; keepalive 1; keepalive_timeout 1s;", origin.address());
    let names = [("peers", peers), ("a", free_address().to_string())];
    let server = Server::start(&executable(), &conf, &names);
    assert_eq!(get(&server).text(), "ok");
    closed.wait();
}

fn a_worker_keeps_the_right_to_addresses_of_others() {
    const CONF: &str = "
        error_log logs/error.log info;
        events {}
        http {
            server {
                listen {listen};
                location / { proxy_pass http://{listen}/who; proxy_bind 127.0.0.7 transparent; }
                location /who { return 200 $remote_addr; }
            }
        }";
    let server = Server::start(&executable(), CONF, &[]);
    let response = get(&server);
    if weir::privileges::privileged() {
        assert_eq!(response.text(), "127.0.0.7");
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", server.worker())).expect("the process");
        for rights in
            ["CapEff:\t0000000000002000\n", "CapPrm:\t0000000000002000\n", "CapInh:\t0000000000000000\n"]
        {
            assert!(status.contains(rights), "{status}");
        }
    } else {
        assert_eq!(response.status, 500);
        server.logged(
            "setsockopt(IP_TRANSPARENT) failed (1: Operation not permitted) while connecting to upstream",
        );
    }
}
