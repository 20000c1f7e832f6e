//! How it ends: QUIT, TERM, a worker that dies, logs that are rotated, and running without a master or privileges.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use weir_testkit::{Client, Folder, Gate, Origin, RaisedAtEnd, Server, Socket, until, within};

use crate::{Test, executable};

pub const TESTS: &[Test] = &[
    ("quit_waits_for_what_is_open", quit_waits_for_what_is_open),
    ("a_signal_needs_nothing_but_the_pid", a_signal_needs_nothing_but_the_pid),
    ("quit_lets_a_request_end", quit_lets_a_request_end),
    ("quit_ends_handshakes_in_time", quit_ends_handshakes_in_time),
    ("term_ends_at_once", term_ends_at_once),
    ("lines_held_back_are_written_at_the_end", lines_held_back_are_written_at_the_end),
    ("a_killed_worker_costs_no_connection", a_killed_worker_costs_no_connection),
    ("logs_are_reopened_after_their_rotation", logs_are_reopened_after_their_rotation),
    ("a_reload_opens_the_logs_again", a_reload_opens_the_logs_again),
    ("an_upgrade_costs_no_request_and_no_tunnel", an_upgrade_costs_no_request_and_no_tunnel),
    ("a_stray_list_of_sockets_closes_no_log", a_stray_list_of_sockets_closes_no_log),
    ("it_serves_without_a_master", it_serves_without_a_master),
    ("without_a_master_nothing_is_left_behind", without_a_master_nothing_is_left_behind),
    (
        "a_folder_is_given_to_the_worker_with_what_else_it_is",
        a_folder_is_given_to_the_worker_with_what_else_it_is,
    ),
    ("it_serves_without_privileges", it_serves_without_privileges),
    (
        "the_soft_limit_of_descriptors_is_no_bound_on_threads",
        the_soft_limit_of_descriptors_is_no_bound_on_threads,
    ),
];

const CONF: &str = "
    {main}
    error_log logs/error.log info;
    events {}
    http {
        access_log logs/access.log;
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

fn names(origin: &Origin, main: &str, text: &str) -> [(&'static str, String); 3] {
    [("origin", origin.address().to_string()), ("main", main.into()), ("text", text.into())]
}

fn start(origin: &Origin) -> Server {
    Server::start(&executable(), CONF, &names(origin, "", "here"))
}

#[track_caller]
fn asked(server: &Server) -> String {
    Client::connect(server.address()).ask(GET).text()
}

#[track_caller]
fn refused(server: &Server) {
    until("connections are refused", || Client::try_connect(server.address()).is_err());
}

fn quit_waits_for_what_is_open() {
    let origin = Origin::echoing();
    let mut server = start(&origin);
    let mut tunnel = Socket::connect(server.address(), "/tunnel");
    tunnel.echo_of("before");
    let mut idle = Client::connect(server.address());
    assert_eq!(idle.ask(GET).text(), "here");
    server.signal(Signal::SIGQUIT);
    idle.closed();
    refused(&server);
    assert!(server.runs());
    tunnel.echo_of("after");
    tunnel.close();
    assert_eq!(server.exit().code(), Some(0));
    assert!(!server.folder().path().join("logs/nginx.pid").exists());
}

fn a_signal_needs_nothing_but_the_pid() {
    let origin = Origin::echoing();
    let mut server = start(&origin);
    assert_eq!(asked(&server), "here");
    // What a start would make or open does not matter for it.
    let conf = CONF.replace("access.log;", "access.log; client_body_temp_path no/such/folder;");
    server.configure(&conf, &names(&origin, "", "here"));
    assert_eq!(server.call(&["-t"]).code, Some(1));
    let called = server.call(&["-s", "stop"]);
    assert_eq!((called.code, called.stderr.as_str()), (Some(0), ""));
    assert_eq!(server.exit().code(), Some(0));
}

fn quit_lets_a_request_end() {
    let gate = Gate::default();
    let held = gate.clone();
    let origin = Origin::start(move |visit| {
        visit.request()?;
        held.wait();
        visit.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlate")
    });
    let mut server = start(&origin);
    let mut client = Client::connect(server.address());
    client.send("GET /proxied HTTP/1.1\r\nHost: a.example\r\n\r\n");
    origin.visited(1);
    server.signal(Signal::SIGQUIT);
    refused(&server);
    assert!(server.runs());
    gate.open();
    let response = client.response();
    assert_eq!((response.status, response.text().as_str()), (200, "late"));
    assert_eq!(response.header("Connection"), Some("close"));
    client.closed();
    assert_eq!(server.exit().code(), Some(0));
}

fn quit_ends_handshakes_in_time() {
    const CONF: &str = "
        worker_shutdown_timeout 50ms;
        error_log logs/error.log info;
        events {}
        http {
            ssl_certificate {certs}/example.com.crt;
            ssl_certificate_key {certs}/example.com.key;
            server { listen {listen} ssl; return 200 'here'; }
        }";
    let certs = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/certs").to_owned();
    let mut server = Server::start(&executable(), CONF, &[("certs", certs)]);
    // It says nothing, and was accepted before the one that is answered.
    let silent = Client::connect(server.address());
    assert_eq!(Client::connect_tls(server.address()).ask(GET).text(), "here");
    server.signal(Signal::SIGQUIT);
    assert_eq!(server.exit().code(), Some(0));
    drop(silent);
}

fn term_ends_at_once() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let origin = Origin::echoing();
        let mut server = start(&origin);
        let mut tunnel = Socket::connect(server.address(), "/tunnel");
        tunnel.echo_of("before");
        server.signal(signal);
        assert!(tunnel.try_receive().is_err());
        assert_eq!(server.exit().code(), Some(0));
        refused(&server);
    }
}

fn lines_held_back_are_written_at_the_end() {
    const END: &[Signal] = &[Signal::SIGTERM];
    for (main, tunnelled, signals) in [
        ("", false, END),
        ("", false, &[Signal::SIGINT]),
        ("", false, &[Signal::SIGQUIT]),
        ("master_process off;", false, END),
        // The tunnel holds up the first, and the second does not wait for it.
        ("", true, &[Signal::SIGQUIT, Signal::SIGTERM]),
    ] {
        let origin = Origin::echoing();
        let conf = CONF.replace("access.log;", "access.log combined buffer=64k;");
        // The end of one of several threads does not drop what all of them share.
        let main = format!("worker_processes 32; {main}");
        let mut server = Server::start(&executable(), &conf, &names(&origin, &main, "here"));
        let _tunnel = tunnelled.then(|| Socket::connect(server.address(), "/tunnel"));
        // A line is written behind its response, but before the next one on its connection.
        let mut client = Client::connect(server.address());
        for path in ["/held", "/next"] {
            client.ask(format!("GET {path} HTTP/1.1\r\nHost: a.example\r\n\r\n"));
        }
        assert_eq!(server.folder().read("logs/access.log"), "");
        for signal in signals {
            server.signal(*signal);
            refused(&server);
        }
        assert_eq!(server.exit().code(), Some(0));
        assert!(server.folder().read("logs/access.log").contains("GET /held "), "{main} {signals:?}");
    }
}

fn a_killed_worker_costs_no_connection() {
    let origin = Origin::echoing();
    let server = start(&origin);
    for _ in 0..3 {
        let worker = server.worker();
        let state = |letter: &str| {
            let stat = std::fs::read_to_string(format!("/proc/{worker}/stat")).unwrap_or_default();
            stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with(letter))
        };
        // Stopped first, so that whoever connects now is certainly not accepted by it.
        kill(Pid::from_raw(worker), Signal::SIGSTOP).expect("the worker is there");
        until("the worker is stopped", || state("T"));
        let mut waiting: Vec<_> = (0..10).map(|_| Client::connect(server.address())).collect();
        for client in &mut waiting {
            client.send(GET);
        }
        kill(Pid::from_raw(worker), Signal::SIGKILL).expect("the worker is there");
        for client in &mut waiting {
            assert_eq!(client.response().text(), "here");
        }
        assert_ne!(server.worker(), worker);
        server.logged(&format!("worker process {worker} exited on signal 9"));
    }
}

fn ask(server: &Server, path: &str) {
    Client::connect(server.address()).ask(format!("GET {path} HTTP/1.1\r\nHost: a.example\r\n\r\n"));
}

fn rotate(folder: &Folder) {
    for name in ["access.log", "error.log"] {
        let path = folder.path().join("logs").join(name);
        std::fs::rename(&path, path.with_extension("1")).expect("the log is there");
    }
}

fn logs_are_reopened_after_their_rotation() {
    let origin = Origin::echoing();
    let server = start(&origin);
    let ask = |path: &str| ask(&server, path);
    ask("/first");
    let folder = server.folder();
    until("the first line", || folder.read("logs/access.log").contains("GET /first "));
    let owner = |name: &str| std::fs::metadata(folder.path().join(name)).map(|m| m.uid()).ok();
    rotate(folder);
    // Without the signal the old files go on.
    ask("/second");
    until("the second line", || folder.read("logs/access.1").contains("GET /second "));
    server.signal(Signal::SIGUSR1);
    until("the logs are back", || owner("logs/access.log").is_some() && owner("logs/error.log").is_some());
    // Both processes write to the new ones in the end; what comes in between may still go to the old.
    until("a line in the new log", || {
        ask("/third");
        folder.read("logs/access.log").contains("GET /third ")
    });
    let old = folder.read("logs/access.1");
    ask("/fourth");
    until("the last line", || folder.read("logs/access.log").contains("GET /fourth "));
    assert_eq!(folder.read("logs/access.1"), old);
    assert!(!old.contains("/fourth"));
}

fn a_reload_opens_the_logs_again() {
    for main in ["", "master_process off;"] {
        let origin = Origin::echoing();
        let mut server = Server::start(&executable(), CONF, &names(&origin, main, "old"));
        ask(&server, "/first");
        until("the first line", || server.folder().read("logs/access.log").contains("GET /first "));
        rotate(server.folder());
        server.configure(CONF, &names(&origin, main, "new"));
        server.signal(Signal::SIGHUP);
        until("the reload has taken effect", || asked(&server) == "new");
        until("a line in the new log", || {
            ask(&server, "/second");
            server.folder().read("logs/access.log").contains("GET /second ")
        });
        let old = server.folder().read("logs/access.1");
        assert!(old.contains("GET /first "));
        let log = server.folder().path().join("logs/error.log");
        until("nobody holds the old error log", || {
            let mut all = server.workers().into_iter().chain([server.pid()]);
            all.all(|pid| std::fs::read_link(format!("/proc/{pid}/fd/2")).is_ok_and(|file| file == log))
        });
        ask(&server, "/third");
        server.signal(Signal::SIGQUIT);
        assert_eq!(server.exit().code(), Some(0));
        assert!(server.folder().read("logs/access.log").contains("GET /third "));
        assert_eq!(server.folder().read("logs/access.1"), old);
        // The last words of whoever serves.
        assert!(server.log().contains(": exiting\n"), "{main}");
        assert!(!server.folder().read("logs/error.1").contains(": exiting\n"), "{main}");
    }
}

fn an_upgrade_costs_no_request_and_no_tunnel() {
    let origin = Origin::echoing();
    // Without it an idle connection is closed at once, as nginx does, and a request may just be on its way.
    let conf = CONF.replace("http {", "http { keepalive_min_timeout 5s;");
    let mut server = Server::start_daemon(&executable(), &conf, &names(&origin, "", "here"));
    let old = server.pid();
    assert_eq!(asked(&server), "here");
    let mut tunnel = Socket::connect(server.address(), "/tunnel");
    tunnel.echo_of("before");
    let (answers, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let new = std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            let mut client = Client::connect(server.address());
            while !stop.load(Ordering::SeqCst) {
                let response = client.ask(GET);
                assert_eq!(response.text(), "here");
                answers.fetch_add(1, Ordering::SeqCst);
                if response.header("Connection") == Some("close") {
                    client = Client::connect(server.address());
                }
            }
        });
        let stopping = RaisedAtEnd(&stop);
        let goes_on = |what: &str| {
            let before = answers.load(Ordering::SeqCst);
            until(what, || answers.load(Ordering::SeqCst) > before + 100 || client.is_finished());
        };
        server.signal(Signal::SIGUSR2);
        let new = within("the new master has its pid file", || server.master().filter(|pid| *pid != old));
        goes_on("requests beside two masters");
        server.signal(Signal::SIGQUIT);
        goes_on("requests while the old one ends");
        tunnel.echo_of("while the old one ends");
        until("the old one accepts nothing", || server.log().contains("gracefully shutting down"));
        goes_on("requests to the new one");
        drop(stopping);
        client.join().expect("no request failed");
        new
    });
    assert!(server.runs());
    tunnel.close();
    assert_eq!(server.exit().code(), Some(0));
    assert_eq!(asked(&server), "here");
    assert_eq!(server.master(), Some(new));
    kill(Pid::from_raw(new), Signal::SIGQUIT).expect("the new master is there");
    // It came to the test process when its parent ended.
    assert_eq!(waitpid(Pid::from_raw(new), None), Ok(WaitStatus::Exited(Pid::from_raw(new), 0)));
}

fn a_stray_list_of_sockets_closes_no_log() {
    let origin = Origin::echoing();
    // One of these is the error log, the first that is opened.
    let server = Server::start_as(&executable(), CONF, &names(&origin, "", "here"), |command, _| {
        command.env("NGINX", "3;4;5;6;7;8;9;");
    });
    assert_eq!(asked(&server), "here");
    let failed = |number: u32| format!("getsockname() of the inherited socket #{number} failed (");
    assert_eq!((3..=9).find(|number| !server.log().contains(&failed(*number))), None, "{}", server.log());
    assert!(server.log().contains("failed (88: Socket operation on non-socket)"));
}

fn it_serves_without_a_master() {
    let origin = Origin::echoing();
    let main = "master_process off;";
    let mut server = Server::start(&executable(), CONF, &names(&origin, main, "old"));
    assert_eq!(asked(&server), "old");
    assert_eq!(server.workers(), []);
    let mut tunnel = Socket::connect(server.address(), "/tunnel");
    tunnel.echo_of("before");
    server.configure(CONF, &names(&origin, main, "new"));
    server.signal(Signal::SIGHUP);
    until("the reload has taken effect", || asked(&server) == "new");
    tunnel.echo_of("after a reload");
    server.signal(Signal::SIGQUIT);
    refused(&server);
    tunnel.echo_of("after the end began");
    tunnel.close();
    assert_eq!(server.exit().code(), Some(0));
}

fn without_a_master_nothing_is_left_behind() {
    let origin = Origin::echoing();
    let conf = CONF.replace("listen {listen};", "listen {listen}; listen unix:{folder}/{socket};");
    let with = |socket: &str, pid: &str| {
        let main = format!("master_process off; pid logs/{pid};");
        let [origin, main, text] = names(&origin, &main, socket);
        [origin, main, text, ("socket", socket.into())]
    };
    for signal in [Signal::SIGTERM, Signal::SIGQUIT] {
        let mut server = Server::start(&executable(), &conf, &with("one", "nginx.pid"));
        assert_eq!(asked(&server), "one");
        let there =
            |server: &Server, names: [&str; 4]| names.map(|name| server.folder().path().join(name).exists());
        let names = ["one", "logs/nginx.pid", "two", "logs/pid"];
        assert_eq!(there(&server, names), [true, true, false, false]);
        server.configure(&conf, &with("two", "pid"));
        server.signal(Signal::SIGHUP);
        until("the reload has taken effect", || asked(&server) == "two");
        until("the files are the new ones", || there(&server, names) == [false, false, true, true]);
        assert_eq!(server.folder().read("logs/pid"), format!("{}\n", server.pid()));
        server.signal(signal);
        assert_eq!(server.exit().code(), Some(0));
        assert_eq!(there(&server, names), [false; 4]);
    }
}

fn a_folder_is_given_to_the_worker_with_what_else_it_is() {
    const OTHERS: u32 = 7;
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let conf = CONF.replace("access_log ", "proxy_cache_path cache keys_zone=z:1m; access_log ");
    let folder = |folder: &Folder| folder.path().join("cache");
    let origin = Origin::echoing();
    let server = Server::start_as(&executable(), &conf, &names(&origin, "", "here"), |_, prefix| {
        std::fs::create_dir(folder(prefix)).expect("a new folder");
        chown(folder(prefix), None, Some(OTHERS)).expect("a folder for others");
        std::fs::set_permissions(folder(prefix), PermissionsExt::from_mode(0o550)).expect("its mode");
    });
    let found = std::fs::metadata(folder(server.folder())).expect("the folder");
    assert_ne!(found.uid(), 0);
    assert_eq!((found.gid(), found.mode() & 0o777), (OTHERS, 0o750));
}

fn it_serves_without_privileges() {
    const NOBODY: u32 = 65534;
    let origin = Origin::echoing();
    // Nobody may not be able to reach the executable where it was built.
    let copy = Folder::new(&[]);
    let program = copy.path().join("nginx");
    // By another process: one that another test starts meanwhile would inherit the copy open for writing.
    let copied = Command::new("cp").arg(executable()).arg(&program).status();
    assert!(copied.is_ok_and(|status| status.success()), "no copy of the executable");
    let root = nix::unistd::geteuid().is_root();
    let program = program.display().to_string();
    let names = names(&origin, "user nobody;", "here");
    let server = Server::start_as(&program, CONF, &names, |command, folder| {
        if root {
            command.uid(NOBODY).gid(NOBODY);
            for path in [folder.path().to_owned(), folder.path().join("logs")] {
                chown(path, Some(NOBODY), Some(NOBODY)).expect("a folder for nobody");
            }
        }
    });
    assert_eq!(asked(&server), "here");
    let owner = |pid: i32| std::fs::metadata(format!("/proc/{pid}")).expect("the process").uid();
    let expected = if root { NOBODY } else { nix::unistd::geteuid().as_raw() };
    assert_eq!((owner(server.pid()), owner(server.worker())), (expected, expected));
    let warning = "nginx: [warn] the \"user\" directive makes sense only if the master process runs with super-user \
                   privileges, ignored in ";
    assert!(server.output().contains(warning), "{}", server.output());
    server.signal(Signal::SIGHUP);
    server.logged("signal 1 (SIGHUP) received from ");
    assert_eq!(asked(&server), "here");
}

fn the_soft_limit_of_descriptors_is_no_bound_on_threads() {
    let origin = Origin::echoing();
    let folder = Folder::new(&[]);
    folder.write("limited", format!("#!/bin/sh\nulimit -Sn 40\nexec '{}' \"$@\"\n", executable()));
    let limited = folder.path().join("limited");
    std::fs::set_permissions(&limited, PermissionsExt::from_mode(0o755)).expect("a script");
    let names = names(&origin, "worker_processes 50;", "here");
    let server = Server::start(&limited.display().to_string(), CONF, &names);
    assert_eq!(asked(&server), "here");
    assert!(server.log().contains("getrlimit(RLIMIT_NOFILE): 40:"), "{}", server.log());
}
