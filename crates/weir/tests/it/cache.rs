//! Caches: what outlives clients, reloads and processes, and what is not believed.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;

use weir_testkit::http2::{END_HEADERS, END_STREAM, Frame, Http2};
use weir_testkit::{Client, Folder, Gate, Origin, Response, Server, until, within};

use crate::{Test, executable};

pub const TESTS: &[Test] = &[
    ("a_client_that_leaves_does_not_keep_others_from_the_answer", a_client_that_leaves),
    ("one_request_asks_for_all", one_request_asks_for_all),
    ("who_comes_first_asks_for_the_others", who_comes_first_asks_for_the_others),
    ("what_is_kept_outlives_reloads_and_the_server", what_is_kept_outlives_reloads_and_the_server),
    ("files_that_are_none_are_not_believed", files_that_are_none_are_not_believed),
    ("what_breaks_off_is_not_kept", what_breaks_off_is_not_kept),
    ("a_cache_does_not_move_with_a_reload", a_cache_does_not_move_with_a_reload),
    ("what_was_purged_is_fetched_again", what_was_purged_is_fetched_again),
    ("a_purger_removes_files", a_purger_removes_files),
    ("a_renewal_lasts_until_it_is_kept", a_renewal_lasts_until_it_is_kept),
    ("what_was_answered_is_there_for_others", what_was_answered_is_there_for_others),
    ("what_http2_answered_is_there_for_others", what_http2_answered_is_there_for_others),
    ("what_follows_an_answer_keeps_nobody_from_it", what_follows_an_answer_keeps_nobody_from_it),
    ("what_is_on_its_way_is_purged_too", what_is_on_its_way_is_purged_too),
    ("a_slow_client_of_an_error_holds_no_key", a_slow_client_of_an_error_holds_no_key),
    ("what_nobody_takes_is_logged_as_a_whole", what_nobody_takes_is_logged_as_a_whole),
    ("answers_in_place_of_an_upstreams_are_timed", answers_in_place_of_an_upstreams_are_timed),
];

const CONF: &str = "
    error_log logs/error.log info;
    worker_processes 4;
    events {}
    http {
        proxy_cache_path {path} levels=1:2 keys_zone=one:1m use_temp_path={temp};
        server {
            listen {listen};
            proxy_cache one;
            proxy_cache_valid 1h;
            proxy_cache_key $uri;
            proxy_cache_lock on;
            proxy_cache_lock_timeout 1h;
            proxy_cache_lock_age 1h;
            add_header X-Cache $upstream_cache_status;
            location / { proxy_pass http://{origin}; }
        }
    }";

#[track_caller]
fn start(origin: &Origin, folder: &Folder, temp: &str) -> Server {
    Server::start(&executable(), CONF, &names(origin.address(), folder, temp))
}

fn names(origin: SocketAddr, folder: &Folder, temp: &str) -> [(&'static str, String); 3] {
    let path = folder.path().join("cache").to_string_lossy().into_owned();
    [("origin", origin.to_string()), ("path", path), ("temp", temp.to_owned())]
}

const GET: &str = "GET /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";

#[track_caller]
fn get(server: &Server) -> Response {
    Client::connect(server.address()).ask(GET)
}

#[track_caller]
fn check(server: &Server, status: &str, body: &str) {
    let response = get(server);
    assert_eq!((response.header("X-Cache"), &*response.text()), (Some(status), body));
}

/// The MD5 of `/x`, as nginx's users find it.
fn file(folder: &Folder) -> PathBuf {
    folder.path().join("cache/9/de/cc8755609ad61864910f145119713de9")
}

fn a_client_that_leaves() {
    const LENGTH: usize = 1_000_000;
    for (temp, begun) in [("on", true), ("off", true), ("on", false)] {
        let (gate, folder) = (Gate::default(), Folder::new(&[]));
        let opened = gate.clone();
        let origin = Origin::start(move |visit| {
            visit.request()?;
            if !begun {
                opened.wait();
            }
            visit.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\nbegun"))?;
            opened.wait();
            visit.send("x".repeat(LENGTH - 5))
        });
        let server = start(&origin, &folder, temp);
        let mut client = Client::connect(server.address());
        client.send(GET);
        origin.visited(1);
        if begun {
            client.bytes(5);
        }
        client.reset();
        let second = thread::spawn({
            let address = server.address();
            move || Client::connect(address).ask(GET)
        });
        gate.open();
        let second = second.join().unwrap();
        assert_eq!(second.header("X-Cache"), Some("HIT"));
        assert_eq!(second.text(), format!("begun{}", "x".repeat(LENGTH - 5)));
        assert_eq!(origin.connections(), 1);
    }
}

fn one_request_asks_for_all() {
    let (gate, folder) = (Gate::default(), Folder::new(&[]));
    let opened = gate.clone();
    let origin = Origin::start(move |visit| {
        visit.request()?;
        opened.wait();
        visit.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    });
    let server = start(&origin, &folder, "on");
    let address = server.address();
    let clients: Vec<_> =
        (0..20).map(|_| thread::spawn(move || Client::connect(address).ask(GET).text())).collect();
    origin.visited(1);
    gate.open();
    assert!(clients.into_iter().all(|client| client.join().unwrap() == "ok"));
    assert_eq!(origin.connections(), 1);
}

/// The files of a cache that has just begun are not known: each key is looked for on the disk first.
fn who_comes_first_asks_for_the_others() {
    let folder = Folder::new(&[]);
    let origin = Origin::start(|visit| {
        let request = visit.request()?.unwrap_or_default();
        let query = request.split(['?', ' ']).nth(2).unwrap_or_default();
        visit.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{query}", query.len()))
    });
    let conf = CONF.replace("worker_processes 4", "worker_processes 1");
    let server = Server::start(&executable(), &conf, &names(origin.address(), &folder, "on"));
    let mut clients: Vec<_> = (0..8).map(|_| Client::connect(server.address())).collect();
    for round in 0..100 {
        for (number, client) in clients.iter_mut().enumerate() {
            client.send(format!("GET /{round}?{number} HTTP/1.1\r\nHost: a\r\n\r\n"));
        }
        let answers: Vec<_> = clients.iter_mut().map(|client| client.response().text()).collect();
        assert_eq!(answers, ["0"; 8], "{round}");
    }
}

fn what_is_kept_outlives_reloads_and_the_server() {
    let (origin, folder) = (Origin::saying("text"), Folder::new(&[]));
    let server = start(&origin, &folder, "on");
    check(&server, "MISS", "text");
    check(&server, "HIT", "text");
    assert_eq!(server.reload().code, Some(0));
    check(&server, "HIT", "text");
    drop(server);
    let server = start(&origin, &folder, "on");
    check(&server, "HIT", "text");
    let kept = fs::read(file(&folder)).unwrap();
    let find = |text: &str| kept.windows(text.len()).any(|bytes| bytes == text.as_bytes());
    assert!(find("\nKEY: /x\nHTTP/1.1 200 OK\r\n"));
    assert_eq!(origin.connections(), 1);
}

fn files_that_are_none_are_not_believed() {
    let (origin, folder) = (Origin::saying("text"), Folder::new(&[]));
    let server = start(&origin, &folder, "off");
    check(&server, "MISS", "text");
    // The lock lets the next one wait until the file is there.
    check(&server, "HIT", "text");
    let (path, kept) = (file(&folder), fs::read(file(&folder)).unwrap());
    let mut cut = kept.clone();
    cut.pop();
    let mut other_key = kept.clone();
    let key = kept.windows(6).position(|bytes| bytes == b"\nKEY: ").unwrap() + 6;
    other_key[key + 1] = b'y';
    for (bytes, logged) in [
        (&b"junk"[..], "is too small"),
        (&[0; 1000][..], "version mismatch"),
        (&other_key[..], "has md5 collision"),
        (&cut[..], "contains invalid header"),
    ] {
        fs::write(&path, bytes).unwrap();
        check(&server, "MISS", "text");
        server.logged(&format!("cache file \"{}\" {logged}", path.display()));
        until("the file is replaced", || get(&server).header("X-Cache") == Some("HIT"));
    }
}

fn what_breaks_off_is_not_kept() {
    let folder = Folder::new(&[]);
    let origin = Origin::start(|visit| {
        visit.request()?;
        visit.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
    });
    let server = start(&origin, &folder, "on");
    for times in 1..=2 {
        let mut client = Client::connect(server.address());
        assert!(client.send(GET).last_words().contains("X-Cache: MISS"));
        assert_eq!(origin.connections(), times);
    }
    assert!(!file(&folder).exists());
}

fn a_cache_does_not_move_with_a_reload() {
    let (origin, folder, other) = (Origin::saying("text"), Folder::new(&[]), Folder::new(&[]));
    let server = start(&origin, &folder, "on");
    check(&server, "MISS", "text");
    server.configure(CONF, &names(origin.address(), &other, "on"));
    assert_eq!(server.reload().code, Some(1));
    check(&server, "HIT", "text");
}

fn ask(server: &Server, line: &str, more: &str) -> Response {
    let request = format!("{line} HTTP/1.1\r\nHost: a\r\n{more}Connection: close\r\n\r\n");
    Client::connect(server.address()).ask(request)
}

fn purging(origin: &Origin, folder: &Folder, purger: &str) -> (Server, String) {
    let conf = CONF
        .replace("use_temp_path={temp};", &format!("{purger}; map $request_method $purges {{ PURGE 1; }}"))
        .replace("proxy_cache one;", "proxy_cache one; proxy_cache_purge $purges $arg_purge;");
    (Server::start(&executable(), &conf, &names(origin.address(), folder, "")), conf)
}

fn what_was_purged_is_fetched_again() {
    let folder = Folder::new(&[]);
    let origin = Origin::start(|visit| {
        while let Some(request) = visit.request()? {
            let vary = if request.starts_with("GET /v") { "Vary: X-Kind\r\n" } else { "" };
            visit.send(format!("HTTP/1.1 200 OK\r\n{vary}Content-Length: 2\r\n\r\nok"))?;
        }
        Ok(())
    });
    let (server, conf) = purging(&origin, &folder, "");
    let get = |path: &str, more: &str| {
        let answer = ask(&server, &format!("GET {path}"), more);
        answer.header("X-Cache").unwrap_or("-").to_owned()
    };
    let twice = |path: &str, more: &str| format!("{} {}", get(path, more), get(path, more));
    let purge = |path: &str| ask(&server, &format!("PURGE {path}"), "").status;
    assert_eq!(purge("/x"), 404);
    assert_eq!(twice("/x", ""), "MISS HIT");
    assert_eq!((purge("/y"), purge("/x"), purge("/x")), (404, 204, 404));
    assert_eq!(twice("/x", ""), "MISS HIT");
    // Whatever the method is.
    assert_eq!(get("/x?purge=0", ""), "HIT");
    assert_eq!(ask(&server, "GET /x?purge=1", "").status, 204);
    assert_eq!(twice("/x", ""), "MISS HIT");
    // All kinds of an answer.
    for kind in ["X-Kind: a\r\n", "X-Kind: b\r\n"] {
        assert_eq!(twice("/v", kind), "MISS HIT");
    }
    assert_eq!(purge("/v"), 204);
    // What comes within the same second is not told from what came before.
    for kind in ["X-Kind: b\r\n", "X-Kind: a\r\n"] {
        assert_eq!(get("/v", kind), "MISS");
        until("it is kept again", || get("/v", kind) == "HIT");
    }
    for path in ["/a/1", "/a/2", "/b"] {
        assert_eq!(twice(path, ""), "MISS HIT");
    }
    assert_eq!((purge("/a/*"), purge("/none/*")), (204, 204));
    assert_eq!((get("/a/1", ""), get("/b", "")), ("MISS".into(), "HIT".into()));
    // It is remembered for what was not asked for yet.
    server.configure(&conf, &names(origin.address(), &folder, ""));
    assert_eq!(server.reload().code, Some(0), "{}", server.log());
    assert_eq!((get("/a/2", ""), get("/b", "")), ("MISS".into(), "HIT".into()));
    until("it is kept again", || get("/a/2", "") == "HIT");
    assert_eq!(purge("/*"), 204);
    assert_eq!(get("/b", ""), "MISS");
}

fn a_purger_removes_files() {
    let folder = Folder::new(&[]);
    let origin = Origin::saying("ok");
    let (server, _) =
        purging(&origin, &folder, "purger=on purger_files=2 purger_sleep=1 purger_threshold=10");
    for n in 0..9 {
        ask(&server, &format!("GET /y{n}"), "");
    }
    check(&server, "MISS", "ok");
    let file = file(&folder);
    until("it is stored", || file.exists());
    assert_eq!(ask(&server, "PURGE /z*", "").status, 204);
    assert_eq!(ask(&server, "PURGE /x*", "").status, 204);
    until("it is gone", || !file.exists());
    assert_eq!(ask(&server, "GET /y3", "").header("X-Cache"), Some("HIT"));
}

/// Lets what is kept have expired.
fn expire(file: &Path) {
    let file = File::options().write(true).open(file).unwrap();
    // Where nginx has the time until which it is fresh.
    file.write_all_at(&1_i64.to_ne_bytes(), 8).unwrap();
}

fn a_renewal_lasts_until_it_is_kept() {
    let (gate, folder) = (Gate::default(), Folder::new(&[]));
    let opened = gate.clone();
    let origin = Origin::start(move |visit| {
        visit.request()?;
        visit.send("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n")?;
        if visit.number == 0 {
            return visit.send("old");
        }
        opened.wait();
        visit.send("new")
    });
    let conf = CONF.replace(
        "proxy_cache_lock on;",
        "proxy_cache_use_stale updating; proxy_cache_background_update on;
         access_log logs/access.log; log_subrequest on;",
    );
    let server = Server::start(&executable(), &conf, &names(origin.address(), &folder, "on"));
    check(&server, "MISS", "old");
    let kept = file(&folder);
    until("it is stored", || kept.exists());
    expire(&kept);
    check(&server, "STALE", "old");
    // The request around the renewal is logged when that is over.
    until("the head of the renewal is here", || server.folder().read("logs/access.log").lines().count() == 2);
    for _ in 0..10 {
        check(&server, "UPDATING", "old");
    }
    gate.open();
    until("the new one is stored", || get(&server).text() == "new");
    check(&server, "HIT", "new");
    assert_eq!(origin.connections(), 2);
}

fn what_was_answered_is_there_for_others() {
    let (folder, long) = (Folder::new(&[]), "x".repeat(100_000));
    let origin = Origin::start(move |visit| {
        let request = visit.request()?.unwrap_or_default();
        if request.contains("If-Modified-Since") {
            return visit.send("HTTP/1.1 304 Not Modified\r\n\r\n");
        }
        visit.send("HTTP/1.1 200 OK\r\nLast-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\n")?;
        visit.send(match request.get(..6) {
            Some("GET /a") => "Content-Length: 5\r\n\r\nshort".to_owned(),
            Some("GET /b") => "Content-Length: 0\r\n\r\n".to_owned(),
            Some("GET /c") => "Transfer-Encoding: chunked\r\n\r\n5\r\nshort\r\n0\r\n\r\n".to_owned(),
            Some("GET /d") => format!("Vary: X-Kind\r\nContent-Length: 100000\r\n\r\n{long}"),
            _ => format!("\r\n{long}"),
        })
    });
    let conf = CONF.replace("proxy_cache_lock on;", "proxy_cache_revalidate on;").replace("levels=1:2", "");
    let server = Server::start(&executable(), &conf, &names(origin.address(), &folder, "on"));
    let get = |path: &str| ask(&server, &format!("GET {path}"), "").header("X-Cache").map(str::to_owned);
    for n in 0..60 {
        let path = format!("/{}{n}", ["a", "b", "c", "d", "e"][n % 5]);
        let statuses = [get(&path), get(&path)];
        assert_eq!(statuses.each_ref().map(Option::as_deref), [Some("MISS"), Some("HIT")], "{path}");
    }
    for entry in fs::read_dir(folder.path().join("cache")).unwrap() {
        expire(&entry.unwrap().path());
    }
    for n in 0..60 {
        let path = format!("/{}{n}", ["a", "b", "c", "d", "e"][n % 5]);
        let statuses = [get(&path), get(&path)];
        assert_eq!(statuses.each_ref().map(Option::as_deref), [Some("REVALIDATED"), Some("HIT")], "{path}");
    }
}

fn what_http2_answered_is_there_for_others() {
    const END: [u8; 2] = [END_STREAM, 0];
    let folder = Folder::new(&[]);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let origin = listener.local_addr().unwrap();
    let (go_on, waits) = mpsc::channel();
    thread::spawn(move || {
        // The stream ends with the last byte, or some time behind it.
        for end in END.into_iter().cycle() {
            let mut peer = Http2::accept(&listener, &[]);
            peer.frame();
            let fields = [(":status", "200"), ("content-length", "9000")];
            peer.say(&Frame::headers(1, END_HEADERS, &fields));
            peer.say(&Frame::data(1, end, &[b'x'; 9000]));
            if waits.recv().is_err() {
                return;
            }
            if end == 0 {
                peer.say(&Frame::data(1, END_STREAM, b""));
            }
        }
    });
    let conf = CONF.replace("proxy_cache_lock on;", "proxy_http_version 2;");
    let server = Server::start(&executable(), &conf, &names(origin, &folder, "on"));
    for n in 0..20 {
        let request = GET.replace("/x", &format!("/{n}"));
        assert_eq!(Client::connect(server.address()).ask(&request).header("X-Cache"), Some("MISS"));
        let mut next = Client::connect(server.address());
        next.send(&request);
        go_on.send(()).unwrap();
        assert_eq!(next.response().header("X-Cache"), Some("HIT"), "{n}");
    }
}

fn what_follows_an_answer_keeps_nobody_from_it() {
    let (gate, folder) = (Gate::default(), Folder::new(&[]));
    let opened = gate.clone();
    let origin = Origin::start(move |visit| {
        let request = visit.request()?.unwrap_or_default();
        if request.starts_with("GET /late") {
            opened.wait();
        }
        let (_, framed) = request.split_once("framed").unwrap_or_default();
        let framing = match framed.as_bytes().first() {
            Some(b'1') => "Content-Length: 5\r\n\r\nshort",
            Some(b'2') => "Transfer-Encoding: chunked\r\n\r\n5\r\nshort\r\n0\r\n\r\n",
            _ => "\r\nshort",
        };
        visit.send(format!("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n{framing}"))
    });
    let conf = CONF.replace(
        "location / {",
        "location /page/ { proxy_pass http://{origin}/; proxy_cache_key $uri; add_after_body /late; }
        location /alone/ { proxy_pass http://{origin}/; proxy_cache_key /page$uri_of; }
        location /late { proxy_cache off; proxy_pass http://{origin}; }
        location / {",
    );
    let conf = conf.replace("server {", "map $uri $uri_of { ~^/alone(.*)$ $1; } server {");
    let server = Server::start(&executable(), &conf, &names(origin.address(), &folder, "on"));
    let pages = ["framed1", "framed2", "framed3"].map(|name| {
        let mut page = Client::connect(server.address());
        page.send(format!("GET /page/{name} HTTP/1.0\r\n\r\n"));
        let mut begun = vec![];
        while !begun.ends_with(b"short") {
            begun.extend(page.bytes(1));
        }
        let alone = ask(&server, &format!("GET /alone/{name}"), "");
        assert_eq!((alone.header("X-Cache"), &*alone.text()), (Some("HIT"), "short"), "{name}");
        page
    });
    gate.open();
    for mut page in pages {
        assert_eq!(page.rest(), b"short");
    }
}

fn what_is_on_its_way_is_purged_too() {
    let (gate, folder) = (Gate::default(), Folder::new(&[]));
    let opened = gate.clone();
    let origin = Origin::start(move |visit| {
        visit.request()?;
        visit.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfirst")?;
        opened.wait();
        visit.send("after")
    });
    let conf = CONF
        .replace("http {", "http { map $request_method $purges { PURGE 1; }")
        .replace("proxy_cache_lock on;", "proxy_cache_purge $purges;");
    let server = Server::start(&executable(), &conf, &names(origin.address(), &folder, "on"));
    let mut client = Client::connect(server.address());
    let mut got = String::new();
    client.send(GET);
    while !got.ends_with("\r\n\r\nfirst") {
        got.push_str(&String::from_utf8_lossy(&client.bytes(1)));
    }
    assert_eq!(ask(&server, "PURGE /x", "").status, 404);
    gate.open();
    assert_eq!(client.rest(), b"after");
    until("it is stored", || file(&folder).exists());
    check(&server, "MISS", "firstafter");
}

fn a_slow_client_of_an_error_holds_no_key() {
    const LONG: usize = 24 << 20;
    let page = vec![b'x'; LONG];
    let (origin, folder) = (Origin::saying("text"), Folder::new(&[("page", &page)]));
    let conf = CONF.replace(
        "location / {",
        "error_page 400 =418 /page;
         location = /page { root {root}; proxy_cache off; }
         location / {
             proxy_cache_methods POST; proxy_http_version 1.1; proxy_request_buffering off;",
    );
    let mut all = names(origin.address(), &folder, "on").to_vec();
    all.push(("root", folder.path().to_string_lossy().into_owned()));
    let server = Server::start(&executable(), &conf, &all);
    let broken = "POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nno chunk\r\n";
    let mut clients: Vec<_> = (0..2).map(|_| Client::connect(server.address())).collect();
    for client in &mut clients {
        let head = String::from_utf8_lossy(&client.send(broken).bytes(12)).into_owned();
        assert_eq!(head, "HTTP/1.1 418");
    }
    assert_eq!(origin.connections(), 0);
}

fn what_nobody_takes_is_logged_as_a_whole() {
    const LENGTH: usize = 100_000;
    let (gate, folder) = (Gate::default(), Folder::new(&[]));
    let opened = gate.clone();
    let origin = Origin::start(move |visit| {
        let request = visit.request()?.unwrap_or_default();
        visit.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\nbegun"))?;
        if request.starts_with("GET /left") {
            opened.wait();
        }
        visit.send("x".repeat(LENGTH - 5))
    });
    let conf = CONF.replace(
        "server {",
        "log_format t '$request_method $upstream_response_time $upstream_response_length $upstream_bytes_received';
         access_log logs/access.log t;
         server {",
    );
    let server = Server::start(&executable(), &conf, &names(origin.address(), &folder, "on"));
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n".len();
    let logged = |method: &str| {
        let log = within("it is logged", || {
            let log = server.folder().read("logs/access.log");
            log.ends_with('\n').then_some(log)
        });
        let line = log.lines().last().unwrap_or_default().to_owned();
        let words: Vec<_> = line.split(' ').collect();
        let [of, time, length, received] = words[..] else { panic!("{line}") };
        assert!(time.parse::<f64>().is_ok(), "{line}");
        assert_eq!((of, length, received), (method, &*LENGTH.to_string(), &*(LENGTH + head).to_string()));
    };
    assert!(Client::connect(server.address()).send("HEAD /x HTTP/1.0\r\n\r\n").rest().ends_with(b"\r\n\r\n"));
    logged("HEAD");
    fs::write(server.folder().path().join("logs/access.log"), "").unwrap();
    let mut client = Client::connect(server.address());
    client.send("GET /left HTTP/1.0\r\n\r\n").bytes(5);
    client.reset();
    gate.open();
    logged("GET");
}

fn answers_in_place_of_an_upstreams_are_timed() {
    let folder = Folder::new(&[]);
    let origin = Origin::start(|visit| {
        let request = visit.request()?.unwrap_or_default();
        visit.send(match request.split(' ').nth(1) {
            Some("/missing") => "HTTP/1.1 404 Not Found\r\nContent-Length: 9\r\n\r\nnot there",
            Some("/sent") => "HTTP/1.1 200 OK\r\nX-Accel-Redirect: /text\r\n\r\n",
            _ if visit.number == 0 => {
                "HTTP/1.1 200 OK\r\nLast-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\nContent-Length: 3\r\n\r\nold"
            }
            _ if visit.number == 1 => "HTTP/1.1 304 Not Modified\r\n\r\n",
            _ => "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nbusy",
        })
    });
    let conf = CONF.replace(
        "server {",
        "log_format t '$uri $upstream_cache_status $upstream_response_time';
         access_log logs/access.log t;
         proxy_cache_revalidate on;
         proxy_cache_use_stale http_503;
         proxy_intercept_errors on;
         server {
             error_page 404 /text;
             location = /text { return 200 text; }",
    );
    let server = Server::start(&executable(), &conf, &names(origin.address(), &folder, "on"));
    check(&server, "MISS", "old");
    let kept = file(&folder);
    until("it is stored", || kept.exists());
    for (lines, status) in [(2, "REVALIDATED"), (3, "STALE")] {
        expire(&kept);
        check(&server, status, "old");
        until("it is over", || server.folder().read("logs/access.log").lines().count() == lines);
    }
    ask(&server, "GET /missing", "");
    ask(&server, "GET /sent", "");
    let log = within("all is logged", || {
        let log = server.folder().read("logs/access.log");
        (log.ends_with('\n') && log.lines().count() == 5).then_some(log)
    });
    for line in log.lines() {
        assert!(line.rsplit(' ').next().is_some_and(|time| time.parse::<f64>().is_ok()), "{log}");
    }
}
