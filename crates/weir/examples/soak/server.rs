//! The server under test, and what can be seen of it from outside.

use std::fmt;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::signal::Signal;
use tokio::time::Instant;
use weir_testkit::{Client, Origin, PATIENCE, Server, free_address, until};

use crate::tally::{Kind, Tally};

const CONF: &str = "
    worker_processes 2;
    error_log logs/error.log error;
    events { worker_connections 4096; }
    http {
        access_log logs/access.log;
        proxy_cache_path {folder}/cache keys_zone=one:1m inactive=10s max_size=8m;
        upstream steady { server {steady}; keepalive 16; keepalive_timeout 10s; }
        upstream faulty { server {faulty} max_fails=0; keepalive 16; keepalive_timeout 10s; }
        upstream next {
            server {faulty} max_fails=0;
            server {steady} max_fails=0;
            keepalive 16;
            keepalive_timeout 10s;
        }
        upstream secure { server {secure}; keepalive 16; keepalive_timeout 10s; }
        upstream framed { server {framed}; keepalive 16; keepalive_timeout 10s; }
        proxy_http_version 1.1;
        proxy_set_header Connection '';
        server {
            listen {listen};
            listen {tls} ssl;
            http2 on;
            ssl_certificate {certs}/example.com.crt;
            ssl_certificate_key {certs}/example.com.key;
            client_max_body_size 8m;
            location /steady/ { proxy_pass http://steady; }
            location /unbuffered/ {
                proxy_pass http://steady;
                proxy_buffering off;
                proxy_request_buffering off;
            }
            location /faulty/ { proxy_pass http://faulty; }
            location /impatient/ { proxy_pass http://faulty; proxy_read_timeout 300ms; }
            location /secure/ { proxy_pass https://secure/; }
            location /framed/ { proxy_pass http://framed/; proxy_http_version 2; }
            location /next/ {
                proxy_pass http://next;
                proxy_next_upstream error timeout invalid_header;
            }
            location /cached/ {
                proxy_pass http://faulty;
                proxy_cache one;
                proxy_cache_valid 200 3s;
                proxy_cache_lock on;
                proxy_cache_use_stale updating error timeout;
                proxy_cache_background_update on;
            }
            location /tunnel/ {
                proxy_pass http://{echo};
                proxy_set_header Upgrade $http_upgrade;
                proxy_set_header Connection upgrade;
            }
            location /status { stub_status; access_log off; }
        }
    }";

/// The same upstreams behind another server, which speaks TLS, and HTTP/2.
const BEYOND: &str = "
    error_log logs/error.log error;
    events { worker_connections 4096; }
    http {
        access_log off;
        proxy_http_version 1.1;
        proxy_set_header Connection '';
        server {
            listen {listen};
            listen {secure} ssl;
            http2 on;
            keepalive_requests 100;
            ssl_certificate {certs}/example.com.crt;
            ssl_certificate_key {certs}/example.com.key;
            client_max_body_size 8m;
            location /steady/ { proxy_pass http://{steady}; }
            location /faulty/ { proxy_pass http://{faulty}; }
        }
    }";

#[derive(Clone, Copy)]
pub struct Addresses {
    pub plain: SocketAddr,
    pub tls: SocketAddr,
}

pub struct Soaked {
    server: Server,
    _beyond: Server,
    tls: SocketAddr,
    worker: i32,
    /// Connections of its own, for the status.
    looks: AtomicU64,
}

/// What is looked at before and after.
pub struct State {
    pub descriptors: usize,
    /// In KiB.
    pub rss: u64,
    /// Of stub_status: active, accepted, handled, requests, reading, writing, waiting.
    status: [u64; 7],
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} descriptors, RSS {} KiB", self.descriptors, self.rss)?;
        let [active, accepted, handled, requests, reading, writing, waiting] = self.status;
        if accepted > 0 {
            write!(f, ", active {active}, accepted {accepted}, handled {handled}, requests {requests}")?;
            write!(f, ", reading {reading}, writing {writing}, waiting {waiting}")?;
        }
        Ok(())
    }
}

impl Soaked {
    pub fn start(binary: &str, steady: &Origin, faulty: &Origin, echo: &Origin) -> Self {
        let tls = free_address();
        let certs = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/certs");
        let secure = free_address();
        let mut names = vec![
            ("steady", steady.address().to_string()),
            ("faulty", faulty.address().to_string()),
            ("secure", secure.to_string()),
            ("certs", certs.into()),
        ];
        let beyond = Server::start(binary, BEYOND, &names);
        names.extend([
            ("framed", beyond.address().to_string()),
            ("echo", echo.address().to_string()),
            ("tls", tls.to_string()),
        ]);
        let server = Server::start(binary, CONF, &names);
        // Workers may be of another user.
        fs::set_permissions(server.folder().path(), fs::Permissions::from_mode(0o777)).expect("a folder");
        let worker = server.worker();
        let soaked = Self { server, _beyond: beyond, tls, worker, looks: AtomicU64::new(0) };
        // The connection that found it listening counts as well.
        until("the server is at rest", || {
            soaked.whole_state().status[..2] == [1, 1 + soaked.looks.load(Ordering::Relaxed)]
        });
        soaked
    }

    pub fn addresses(&self) -> Addresses {
        Addresses { plain: self.server.address(), tls: self.tls }
    }

    /// By turns a reload of the configuration, and log files that are opened anew.
    pub fn disturb(&self, turn: u64) {
        if turn.is_multiple_of(2) {
            return self.server.signal(Signal::SIGHUP);
        }
        let logs = self.server.folder().path().join("logs");
        // Where one is not there yet that was asked for before, it goes on under its name.
        let _ = fs::rename(logs.join("error.log"), logs.join(format!("error.log.{turn}")));
        let _ = fs::remove_file(logs.join("access.log"));
        self.server.signal(Signal::SIGUSR1);
    }

    /// What /proc knows.
    pub fn state(&self) -> State {
        let process = format!("/proc/{}", self.worker);
        let about = fs::read_to_string(format!("{process}/status")).unwrap_or_default();
        let rss = about.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        State {
            descriptors: fs::read_dir(format!("{process}/fd")).map_or(0, Iterator::count),
            rss: rss.and_then(|rss| rss.split_ascii_whitespace().next()?.parse().ok()).unwrap_or(0),
            status: [0; 7],
        }
    }

    /// What the worker has open.
    fn descriptors(&self) -> String {
        let Ok(all) = fs::read_dir(format!("/proc/{}/fd", self.worker)) else { return String::new() };
        let names = all.flatten().filter_map(|fd| fs::read_link(fd.path()).ok());
        names.map(|name| name.display().to_string()).collect::<Vec<_>>().join(" ")
    }

    /// The same with what the server itself tells.
    pub fn whole_state(&self) -> State {
        self.looks.fetch_add(1, Ordering::Relaxed);
        let request = "GET /status HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
        let text = Client::connect(self.server.address()).ask(request).text();
        let mut numbers = text.split_ascii_whitespace().filter_map(|word| word.parse().ok());
        State { status: std::array::from_fn(|_| numbers.next().unwrap_or(0)), ..self.state() }
    }

    /// Waits until the server has got rid of all that there was; says what remains, and what else is not as it was.
    pub fn settle(&self, before: &State, grown: u64, tally: &Tally) -> Vec<String> {
        let began = Instant::now();
        let looks = self.looks.load(Ordering::Relaxed);
        let mut wrong = vec![];
        let after = loop {
            let after = self.whole_state();
            // Its own connection is the one active, and has a descriptor in neither.
            let quiet = after.status[0] == 1 && after.descriptors <= before.descriptors;
            if quiet || began.elapsed() > PATIENCE {
                if !quiet {
                    wrong.push(format!("not let go of: {after}: {}", self.descriptors()));
                }
                break after;
            }
            std::thread::sleep(std::time::Duration::from_millis(200));
        };
        println!("before: {before}\nafter:  {after}");
        let mut check = |is: bool, what: String| {
            if !is {
                wrong.push(what);
            }
        };
        let [_, accepted, handled, requests, reading, writing, waiting] = after.status;
        check((reading, writing, waiting) == (0, 1, 0), format!("not idle: {after}"));
        check(accepted == handled, format!("{accepted} accepted, {handled} handled"));
        let looked = self.looks.load(Ordering::Relaxed) - looks;
        let (accepted, connected) = (accepted - before.status[1], tally.count(Kind::Connected) + looked);
        check(accepted == connected, format!("{connected} connections made, {accepted} accepted"));
        let asked = tally.count(Kind::Asked) + looked;
        let answered =
            asked - tally.count(Kind::Left) - tally.count(Kind::Again) - tally.count(Kind::Excused);
        let requests = requests - before.status[3];
        // Whether a request has come whose client left at once is not known, nor what nonsense counts for.
        let most = asked + tally.count(Kind::Nonsense);
        check(
            (answered..=most).contains(&requests),
            format!("{requests} requests counted of {answered} to {most}"),
        );
        let most = grown + (grown / 8).max(4096);
        check(
            after.rss <= most,
            format!("memory grew from {grown} to {} KiB under the same load", after.rss),
        );
        check(self.server.workers() == [self.worker], "the worker is another".into());
        let left = files(&self.server.folder().path().join("proxy_temp"));
        check(left == 0, format!("{left} temporary files left"));
        let logged = self.logged();
        check(!logged.is_empty(), "no error log".into());
        wrong.extend(logged.iter().flat_map(|log| alarms(log)).map(Into::into));
        wrong
    }

    /// All error logs, those that were put aside too.
    fn logged(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.server.folder().path().join("logs")) else { return vec![] };
        let is_one = |path: &Path| path.file_name().is_some_and(|n| n.as_bytes().starts_with(b"error.log"));
        let paths = entries.flatten().map(|entry| entry.path()).filter(|path| is_one(path));
        paths.filter_map(|path| fs::read(path).ok()).map(|log| String::from_utf8_lossy(&log).into()).collect()
    }
}

/// The lines of an error log that no fault of a client or an upstream is an excuse for.
fn alarms(log: &str) -> impl Iterator<Item = &str> {
    log.lines().filter(|line| ["panicked", "[alert]", "[emerg]"].iter().any(|alarm| line.contains(alarm)))
}

/// How many files there are below a folder.
fn files(folder: &Path) -> usize {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    let count = |path: &Path| if path.is_dir() { files(path) } else { 1 };
    entries.flatten().map(|entry| count(&entry.path())).sum()
}
