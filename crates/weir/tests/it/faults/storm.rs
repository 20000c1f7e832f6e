//! Faults of all kinds at a time, and whether anything is left of them.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use nix::sys::signal::Signal;
use weir_testkit::http2::{END_HEADERS, END_STREAM, Frame, Http2};
use weir_testkit::{Client, NameServer, Origin, Server, free_address, until};

use super::{
    Cut, Deaf, FAULTS, Fault, LOCATIONS, RST_STREAM, Repeat, WELL, Whole, open_to_all, outcome, request, wish,
};
use crate::executable;

const MANY: usize = 10_000;
const CLIENTS: usize = 24;
/// What `max_conns` allows, which is more than all clients need.
const CONNECTIONS: usize = 64;
/// Of each fault, in the cache.
const KEYS: usize = 4;

const HEADERS: u8 = 1;

const CONF: &str = "
    error_log logs/error.log error;
    worker_processes 2;
    events {}
    http {
        access_log off;
        proxy_cache_path {folder}/cache keys_zone=one:1m;
        upstream kept { server {origin} max_fails=0 max_conns=64; keepalive 8; keepalive_timeout 1s; }
        upstream shared { server {http2} max_fails=0 max_conns=64; keepalive 8; keepalive_timeout 1s; }
        upstream next { server {origin} max_fails=0; server {steady} max_fails=0 backup; }
        server {
            listen {listen};
            http2 on;
            proxy_set_header Connection '';
            proxy_connect_timeout 200ms;
            proxy_read_timeout 100ms;
            {locations}
            location /http2/ { proxy_pass http://shared; proxy_http_version 2; }
            location /refused/ { proxy_pass http://{refused}; }
            location /deaf/ { proxy_pass http://{deaf}; }
            location /names/ {
                resolver {names} ipv6=off;
                resolver_timeout 200ms;
                rewrite ^/names/(.*)$ / break;
                proxy_pass http://$1.example;
            }
            location /kept/hold { proxy_pass http://kept; proxy_read_timeout 1h; }
            location /http2/hold { proxy_pass http://shared; proxy_http_version 2; proxy_read_timeout 1h; }
            location /status { stub_status; }
        }
    }";

const PLACES: [&str; 6] = ["direct", "kept", "unbuffered", "next", "cached", "stored"];

/// What a name server says to each of the names.
const NAMES: [(&str, &str); 5] = [
    ("silent", "silence"),
    ("failing", "code 2"),
    ("missing", "code 3"),
    ("mistaken", "wrong 60 127.0.0.1"),
    ("endless", "truncated"),
];

/// How the backends are.
#[derive(Default)]
struct Health {
    /// What went wrong so far.
    faults: AtomicUsize,
    /// They answer, or hold what they are to hold.
    well: AtomicBool,
    held: AtomicUsize,
}

impl Health {
    fn is_well(&self) -> bool {
        self.well.load(Ordering::SeqCst)
    }

    fn fault(&self) -> usize {
        self.faults.fetch_add(1, Ordering::SeqCst)
    }

    fn hold(&self) {
        self.held.fetch_add(1, Ordering::SeqCst);
    }
}

fn backend(health: &Arc<Health>) -> Origin {
    let health = Arc::clone(health);
    Origin::start(move |visit| {
        while let Some(request) = visit.request()? {
            visit.forget();
            let wish = wish(&request);
            if wish == "hold" {
                health.hold();
                return visit.stall();
            }
            match Fault::named(wish).filter(|_| !health.is_well()) {
                Some(fault) => {
                    health.fault();
                    return fault.commit(visit);
                }
                None => visit.send(WELL)?,
            }
        }
        Ok(())
    })
}

/// One of HTTP/2, whose faults take turns; when it is well it holds all that comes.
fn http2_backend(health: &Arc<Health>) -> Origin {
    let health = Arc::clone(health);
    Origin::start(move |visit| {
        visit.forget();
        let mut peer = Http2::serve(visit.tcp().try_clone()?, &[])?;
        while let Some(frame) = peer.try_frame()? {
            if frame.kind != HEADERS {
                continue;
            }
            if health.is_well() {
                health.hold();
                continue;
            }
            let stream = frame.stream;
            let head = |length| {
                Frame::headers(stream, END_HEADERS, &[(":status", "200"), ("content-length", length)])
            };
            let begun = Frame::data(stream, 0, b"begun");
            let number = health.fault();
            let (says, ends) = match number % 9 {
                0 => (vec![], false),
                1 | 2 => (vec![], true),
                3 => (vec![Frame::reset(stream, 2)], false),
                4 => (vec![Frame::goaway(0, 0)], true),
                5 => (vec![head("9"), begun, Frame::reset(stream, 2)], false),
                6 => (vec![head("4"), Frame::data(stream, END_STREAM, b"more than four")], false),
                7 => (vec![head("9"), begun], true),
                _ => (vec![Frame::headers(stream, END_HEADERS, &[(":status", "103"), ("x", "y")])], false),
            };
            peer.try_send(&says.iter().flat_map(Frame::bytes).collect::<Vec<_>>())?;
            if ends {
                if number % 9 == 2 {
                    visit.reset_at_end();
                }
                return Ok(());
            }
        }
        Ok(())
    })
}

/// Numbers that look like chance, the same in each run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        // Knuth's MMIX; its upper bits are good.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound
    }

    fn fault(&mut self) -> &'static Fault {
        loop {
            let fault = &FAULTS[self.below(FAULTS.len())];
            // These cost as much as twenty others.
            if !matches!(fault.then, Repeat(_)) || self.below(20) == 0 {
                return fault;
            }
        }
    }

    fn path(&mut self, place: &str, fault: &Fault) -> String {
        match place {
            "cached" => format!("/cached/{}?{}", fault.name, self.below(KEYS)),
            _ => format!("/{place}/{}", fault.name),
        }
    }
}

/// Asks for faults until there were enough.
fn ask_for_faults(address: SocketAddr, dice: &mut Dice, health: &Health) {
    let mut client = Client::connect(address);
    while health.faults.load(Ordering::SeqCst) < MANY {
        let place = PLACES[dice.below(PLACES.len())];
        let fault = dice.fault();
        let path = dice.path(place, fault);
        let (line, allowed) = match dice.below(16) {
            0 => {
                ask_over_http2(address, dice);
                continue;
            }
            1 => {
                health.fault();
                let (name, _) = NAMES[dice.below(NAMES.len())];
                (format!("GET /names/{name}"), vec![Whole(502)])
            }
            2 => {
                health.fault();
                let place = ["refused", "deaf"][dice.below(2)];
                (format!("GET /{place}/"), vec![Whole(502)])
            }
            3 => ("GET /http2/".to_owned(), vec![Whole(502), Cut(200), Whole(200)]),
            4 => {
                // One who does not wait for it.
                let mut leaver = Client::connect(address);
                leaver.send(request(&format!("GET {path}"), ""));
                leaver.reset();
                continue;
            }
            5 => (format!("POST {path}"), vec![fault.got]),
            // Another backend makes it good where no answer has begun, be it for lateness.
            _ if place == "next" => (format!("GET {path}"), vec![fault.got, Whole(200)]),
            _ => (format!("GET {path}"), vec![fault.got]),
        };
        // A body that needs a file.
        let body = if line.starts_with("POST") { "x".repeat(40_000) } else { String::new() };
        client.send(request(&line, &body));
        let (got, goes_on) = outcome(&mut client);
        // Any head may be late.
        assert!(got == Whole(504) || allowed.contains(&got), "{line}: {got:?}");
        if !goes_on {
            client = Client::connect(address);
        }
    }
}

/// Several faults at a time on one connection, which now and then is left before they are over.
fn ask_over_http2(address: SocketAddr, dice: &mut Dice) {
    let mut client = Http2::connect(address);
    let mut streams: BTreeSet<u32> = (0..6).map(|n| 2 * n + 1).collect();
    for stream in &streams {
        let (place, fault) = (PLACES[dice.below(PLACES.len())], dice.fault());
        client.say(&Frame::get(*stream, &dice.path(place, fault)));
    }
    if dice.below(4) == 0 {
        return;
    }
    while !streams.is_empty() {
        let frame = client.frame().expect("the connection outlives its streams");
        if frame.kind == RST_STREAM || frame.flags & END_STREAM != 0 {
            streams.remove(&frame.stream);
        }
    }
}

/// The numbers of stub_status: active, accepted, handled, requests, reading, writing, waiting.
fn counts(server: &Server) -> Vec<u64> {
    let request = "GET /status HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let text = Client::connect(server.address()).ask(request).text();
    text.split_ascii_whitespace().filter_map(|word| word.parse().ok()).collect()
}

fn descriptors(server: &Server) -> usize {
    fs::read_dir(format!("/proc/{}/fd", server.worker())).map_or(0, Iterator::count)
}

/// The names of all files below a folder.
fn files(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return vec![] };
    let paths = entries.flatten().map(|entry| entry.path());
    let names = paths.flat_map(|path| match path.is_dir() {
        true => files(&path),
        false => path.file_name().map(|name| name.to_string_lossy().into_owned()).into_iter().collect(),
    });
    names.collect()
}

/// All connections of a backend are free again: as many requests as it may have reach it at a time, and no more.
#[track_caller]
fn all_are_free(server: &Server, health: &Health, place: &str) {
    health.held.store(0, Ordering::SeqCst);
    let line = format!("GET /{place}/hold");
    let holding: Vec<_> = (0..CONNECTIONS)
        .map(|_| {
            let mut client = Client::connect(server.address());
            client.send(request(&line, ""));
            client
        })
        .collect();
    until(&format!("{CONNECTIONS} requests are held in {place}"), || {
        health.held.load(Ordering::SeqCst) == CONNECTIONS
    });
    let mut more = Client::connect(server.address());
    assert_eq!(more.ask(request(&line, "")).status, 502);
    drop((holding, more));
}

pub(super) fn ten_thousand_faults() {
    let health = Arc::new(Health::default());
    let (origin, http2, steady) = (backend(&health), http2_backend(&health), Origin::saying("ok"));
    let deaf = Deaf::listen();
    let name_server = NameServer::start(|asked, _| {
        let said = NAMES.iter().find(|(name, _)| asked.contains(&format!(" {name}.")));
        said.map_or("code 3", |(_, says)| says).to_owned()
    });
    let names = [
        ("locations", LOCATIONS.to_owned()),
        ("origin", origin.address().to_string()),
        ("http2", http2.address().to_string()),
        ("steady", steady.address().to_string()),
        ("refused", free_address().to_string()),
        ("deaf", deaf.address().to_string()),
        ("names", name_server.address().to_string()),
    ];
    let mut server = Server::start_as(&executable(), CONF, &names, |_, folder| open_to_all(folder.path()));
    until("the server is at rest", || counts(&server)[0] == 1);
    let before = descriptors(&server);
    thread::scope(|scope| {
        for seed in 0..CLIENTS {
            let (address, health) = (server.address(), &health);
            scope.spawn(move || ask_for_faults(address, &mut Dice(seed as u64), health));
        }
    });
    // A few that name servers are asked by may stay.
    until("all connections are gone", || {
        let counts = counts(&server);
        let idle = counts[0] == 1 && counts[4..] == [0, 1, 0] && counts[1] == counts[2];
        idle && descriptors(&server) <= before + 8
    });
    let folder = server.folder().path();
    until("temporary files are gone", || {
        files(&folder.join("proxy_temp")).is_empty() && files(&folder.join("client_body_temp")).is_empty()
    });
    // Neither a cache nor a store has what was not whole.
    let cached = files(&folder.join("cache"));
    assert!(cached.iter().all(|name| name.len() == 32), "{cached:?}");
    let is_whole = |name: &String| Fault::named(name).is_some_and(|fault| fault.got == Whole(200));
    let stored = files(&folder.join("data"));
    assert!(!stored.is_empty() && stored.iter().all(is_whole), "{stored:?}");
    health.well.store(true, Ordering::SeqCst);
    for fault in FAULTS {
        for key in 0..KEYS {
            let line = format!("GET /cached/{}?{key}", fault.name);
            until(&format!("{line} waits for nobody"), || {
                let answer = Client::connect(server.address()).ask(request(&line, ""));
                [200, 304].contains(&answer.status)
            });
        }
    }
    all_are_free(&server, &health, "kept");
    all_are_free(&server, &health, "http2");
    until("nobody is left", || counts(&server)[0] == 1);
    let log = server.log();
    assert!(["panicked", "[alert]", "[emerg]"].iter().all(|alarm| !log.contains(alarm)), "{log}");
    // No task holds it up.
    server.signal(Signal::SIGQUIT);
    assert!(server.exit().success());
}
