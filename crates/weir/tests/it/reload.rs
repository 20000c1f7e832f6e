//! Reloads under load: nobody who has a connection notices.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use nix::sys::signal::Signal;
use weir_testkit::{Client, Gate, Message, Modules, Origin, RaisedAtEnd, Server, Site, Socket, until};

use crate::{Test, executable};

pub const TESTS: &[Test] = &[
    ("tunnels_do_not_notice_reloads", tunnels_do_not_notice_reloads),
    ("keepalive_clients_lose_no_request_to_reloads", keepalive_clients_lose_no_request_to_reloads),
    ("a_changed_configuration_takes_effect", a_changed_configuration_takes_effect),
    (
        "an_idle_connection_that_may_stay_is_sent_away_by_its_next_response",
        an_idle_connection_that_may_stay_is_sent_away_by_its_next_response,
    ),
    ("a_refused_configuration_changes_nothing", a_refused_configuration_changes_nothing),
    ("a_request_in_flight_ends_on_its_configuration", a_request_in_flight_ends_on_its_configuration),
    (
        "a_kept_connection_is_as_the_configuration_wants_it_now",
        a_kept_connection_is_as_the_configuration_wants_it_now,
    ),
];

const RELOADS: usize = 20;

const CONF: &str = "
    error_log logs/error.log info;
    worker_rlimit_nofile 65536;
    events { worker_connections 60000; }
    http {
        server {
            listen {listen};
            location / { return 200 '{text}'; }
            location /proxied { proxy_pass http://{origin}; }
            location /tunnel {
                proxy_pass http://{origin};
                proxy_http_version 1.1;
                proxy_set_header Upgrade $http_upgrade;
                proxy_set_header Connection upgrade;
            }
        }
    }";

const GET: &str = "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n";

fn names(origin: &Origin, text: &str) -> [(&'static str, String); 2] {
    [("origin", origin.address().to_string()), ("text", text.to_owned())]
}

#[track_caller]
fn asked(server: &Server) -> String {
    Client::connect(server.address()).ask(GET).text()
}

/// How many tunnels: `WEIR_TEST_TUNNELS`, 200 without it.
fn tunnels() -> usize {
    std::env::var("WEIR_TEST_TUNNELS").ok().and_then(|n| n.parse().ok()).unwrap_or(200)
}

fn tunnels_do_not_notice_reloads() {
    const THREADS: usize = 4;
    let origin = Origin::echoing();
    let server = Server::start(&executable(), CONF, &names(&origin, "0"));
    let worker = server.worker();
    let share = tunnels().div_ceil(THREADS);
    let (open, rounds, stop) = (Barrier::new(THREADS + 1), AtomicUsize::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..THREADS)
            .map(|thread| {
                let (server, open, rounds, stop) = (&server, &open, &rounds, &stop);
                scope.spawn(move || {
                    let mut sockets: Vec<Socket> =
                        (0..share).map(|_| Socket::connect(server.address(), "/tunnel")).collect();
                    open.wait();
                    for round in 0.. {
                        let text = |index: usize| format!("{thread} {index} {round}");
                        for (index, socket) in sockets.iter_mut().enumerate() {
                            socket.send(text(index));
                        }
                        for (index, socket) in sockets.iter_mut().enumerate() {
                            assert_eq!(socket.receive(), Message::text(text(index)));
                        }
                        rounds.fetch_add(1, Ordering::SeqCst);
                        if stop.load(Ordering::SeqCst) {
                            break;
                        }
                    }
                    sockets.iter_mut().for_each(Socket::close);
                })
            })
            .collect();
        open.wait();
        let stopping = RaisedAtEnd(&stop);
        for reload in 1..=RELOADS {
            let before = rounds.load(Ordering::SeqCst);
            server.configure(CONF, &names(&origin, &reload.to_string()));
            server.signal(Signal::SIGHUP);
            until("the reload has taken effect", || asked(&server) == reload.to_string());
            until("messages go on", || {
                rounds.load(Ordering::SeqCst) > before || clients.iter().any(|client| client.is_finished())
            });
        }
        drop(stopping);
        for client in clients {
            client.join().expect("no tunnel was closed and no message lost");
        }
    });
    assert_eq!(server.workers(), [worker]);
    assert_eq!(origin.connections(), THREADS * share);
}

fn keepalive_clients_lose_no_request_to_reloads() {
    let origin = Origin::saying("proxied");
    let server = Server::start(&executable(), CONF, &names(&origin, "0"));
    let worker = server.worker();
    let (answers, closes, stop) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let clients: Vec<_> = ["/", "/proxied", "/", "/proxied"]
            .map(|path| {
                let (server, answers, closes, stop) = (&server, &answers, &closes, &stop);
                scope.spawn(move || {
                    let request = format!("GET {path} HTTP/1.1\r\nHost: a.example\r\n\r\n");
                    let mut client = Client::connect(server.address());
                    while !stop.load(Ordering::SeqCst) {
                        let response = client.ask(&request);
                        assert_eq!(response.status, 200, "{}", response.head);
                        answers.fetch_add(1, Ordering::SeqCst);
                        if response.header("Connection") == Some("close") {
                            client.closed();
                            client = Client::connect(server.address());
                            closes.fetch_add(1, Ordering::SeqCst);
                        }
                    }
                })
            })
            .into_iter()
            .collect();
        let stopping = RaisedAtEnd(&stop);
        for reload in 1..=RELOADS {
            server.configure(CONF, &names(&origin, &reload.to_string()));
            let before = answers.load(Ordering::SeqCst);
            assert_eq!(server.reload().code, Some(0));
            assert_eq!(asked(&server), reload.to_string());
            until("requests go on", || {
                answers.load(Ordering::SeqCst) > before + 8
                    || clients.iter().any(|client| client.is_finished())
            });
        }
        drop(stopping);
        for client in clients {
            client.join().expect("no request failed");
        }
    });
    assert!(closes.into_inner() >= 4, "clients of old configurations are sent away");
    assert_eq!(server.workers(), [worker]);
}

fn a_changed_configuration_takes_effect() {
    let origin = Origin::saying("proxied");
    let server = Server::start(&executable(), CONF, &names(&origin, "old"));
    let mut kept = Client::connect(server.address());
    assert_eq!(kept.ask(GET).text(), "old");
    server.configure(CONF, &names(&origin, "new"));
    let called = server.reload();
    assert_eq!((called.code, called.stdout.as_str(), called.stderr.as_str()), (Some(0), "", ""));
    assert_eq!(asked(&server), "new");
    // It was idle, so it is closed; nothing is sent to it.
    kept.closed();
    server.logged("signal 1 (SIGHUP) received from ");
}

fn an_idle_connection_that_may_stay_is_sent_away_by_its_next_response() {
    let origin = Origin::saying("proxied");
    let conf = CONF.replacen("http {", "http {\n    keepalive_min_timeout 60s;", 1);
    assert_ne!(conf, CONF);
    let server = Server::start(&executable(), &conf, &names(&origin, "old"));
    let mut kept = Client::connect(server.address());
    let old = kept.ask(GET);
    assert_eq!((old.text(), old.header("Connection")), ("old".into(), Some("keep-alive")));
    server.configure(&conf, &names(&origin, "new"));
    assert_eq!(server.reload().code, Some(0));
    assert_eq!(asked(&server), "new");
    let new = kept.ask(GET);
    assert_eq!((new.text(), new.header("Connection")), ("new".into(), Some("close")));
    kept.closed();
}

fn a_refused_configuration_changes_nothing() {
    let origin = Origin::saying("proxied");
    let server = Server::start(&executable(), CONF, &names(&origin, "old"));
    let worker = server.worker();
    let mut kept = Client::connect(server.address());
    assert_eq!(kept.ask(GET).text(), "old");
    let bad = CONF.replace("return 200", "retrun 200");
    server.configure(&bad, &names(&origin, "new"));
    let called = server.reload();
    let path = server.folder().path().join("conf/nginx.conf").display().to_string();
    let line = 1 + bad.lines().position(|line| line.contains("retrun")).expect("the bad line");
    let message = format!("[emerg] unknown directive \"retrun\" in {path}:{line}\n");
    assert_eq!(called.code, Some(1));
    assert!(called.stderr.contains(&message), "{}", called.stderr);
    // The command line fails before it signals anybody; a signal from elsewhere is told in the log.
    server.signal(Signal::SIGHUP);
    server.logged(message.trim_start_matches("[emerg] "));
    assert_eq!(asked(&server), "old");
    assert_eq!(kept.ask(GET).text(), "old");
    assert_eq!(server.workers(), [worker]);
}

fn a_request_in_flight_ends_on_its_configuration() {
    let gate = Gate::default();
    let held = gate.clone();
    let origin = Origin::start(move |visit| {
        visit.request()?;
        visit.send("HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf")?;
        held.wait();
        visit.send("half")
    });
    let conf =
        CONF.replace("proxy_pass http://{origin}; }", "proxy_pass http://{origin}; proxy_buffering off; }");
    let server = Server::start(&executable(), &conf, &names(&origin, "old"));
    let mut client = Client::connect(server.address());
    client.send("GET /proxied HTTP/1.1\r\nHost: a.example\r\n\r\n");
    origin.visited(1);
    server.configure(CONF, &names(&origin, "new"));
    assert_eq!(server.reload().code, Some(0));
    assert_eq!(asked(&server), "new");
    gate.open();
    assert_eq!(client.response().text(), "halfhalf");
}

fn a_kept_connection_is_as_the_configuration_wants_it_now() {
    #[track_caller]
    fn check(pool: &str) {
        let origin = Origin::saying("here");
        let names = [("origin", origin.address().to_string()), ("pool", pool.to_owned())];
        let http = |location: &str| {
            format!(
                "upstream u {{ server {{origin}}; {{pool}} }}
                server {{ listen {{listen}}; location / {{ proxy_pass http://u; {location} }} }}"
            )
        };
        let modules = Modules { http: weir_modules::HTTP, upstream: weir_modules::UPSTREAM };
        let mut site = Site::start(modules, &http(""), &names);
        let asked = |site: &Site| {
            let request = "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n";
            assert_eq!(Client::connect(site.address()).ask(request).text(), "here");
            origin.connections()
        };
        assert_eq!((asked(&site), asked(&site)), (1, 1), "{pool}");
        // One that is opened in the same way stays over a reload, one that is not goes out of use.
        let reloads =
            [("proxy_read_timeout 1m;", 1), ("proxy_bind 127.0.0.2;", 2), ("proxy_socket_keepalive on;", 3)];
        for (location, connections) in reloads {
            site.reload(&http(location), &names);
            assert_eq!((asked(&site), asked(&site)), (connections, connections), "{pool} {location}");
        }
    }
    check("keepalive 4;");
    check("keepalive 4 local;");
}
