//! Disks without room: for answers that are read ahead, for bodies of requests, for caches and for answers that are stored.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::statvfs::statvfs;
use weir_testkit::{Client, Folder, Origin, Server, until};

use super::{open_to_all, request};
use crate::executable;

const CONF: &str = "
    error_log logs/error.log info;
    worker_processes 1;
    events {}
    http {
        proxy_temp_path {folder}/full/answers;
        client_body_temp_path {folder}/full/bodies;
        proxy_cache_path {folder}/full/cache keys_zone=one:1m use_temp_path=off;
        server {
            listen {listen} sndbuf=32k;
            client_max_body_size 0;
            location / { proxy_pass http://{origin}; }
            location /streamed/ { proxy_pass http://{origin}; proxy_request_buffering off; }
            location /cached/ {
                proxy_pass http://{origin};
                proxy_cache one;
                proxy_cache_valid 1h;
                proxy_cache_lock on;
                proxy_cache_lock_timeout 1h;
                proxy_cache_lock_age 1h;
                add_header X-Cache $upstream_cache_status;
            }
            location /stored/ { proxy_pass http://{origin}; proxy_store {folder}/full/stored$uri; }
            location /moved/ {
                proxy_pass http://{origin};
                proxy_store {folder}/full/stored$uri;
                proxy_temp_path {folder}/roomy;
            }
        }
    }";

/// Of answers: more than the disk has, and sockets take on the way.
const LONG: usize = 16 << 20;

/// A server whose disk has 1 MiB.
struct Cramped {
    server: Server,
    /// The disk, as this process sees it.
    disk: PathBuf,
    /// There is one. Else its files have 1 MiB each, which works for any user.
    mounted: bool,
}

/// Whether file systems can be mounted that only a server sees.
fn may_mount() -> bool {
    let place = Folder::new(&[]);
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", "mount -t tmpfs none \"$0\""]).arg(place.path());
    command.output().is_ok_and(|output| output.status.success())
}

impl Cramped {
    fn start(origin: &Origin) -> Self {
        let mounted = may_mount();
        let executable = executable();
        // The fourth argument is the prefix.
        let script = if mounted {
            format!(
                "#!/bin/sh\nexec unshare --mount sh -c 'mount -t tmpfs -o size=1m,mode=777 none \"$4/full\" && \
                 exec \"$0\" \"$@\"' {executable} \"$@\"\n"
            )
        } else {
            format!("#!/bin/sh\nulimit -f 2048\ntrap '' XFSZ\nexec {executable} \"$@\"\n")
        };
        let scripts = Folder::new(&[]);
        let script = scripts.write("cramped", script);
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("a script of ours");
        let names = [("origin", origin.address().to_string())];
        let server = Server::start_as(&script.to_string_lossy(), CONF, &names, |_, folder| {
            folder.write("full/.keep", "");
            open_to_all(&folder.path().join("full"));
            open_to_all(folder.path());
        });
        let seen = server.folder().path().join("full");
        let disk = match mounted {
            true => PathBuf::from(format!("/proc/{}/root{}", server.pid(), seen.display())),
            false => seen,
        };
        Self { server, disk, mounted }
    }

    fn ask(&self, line: &str) -> Client {
        let mut client = Client::connect(self.server.address());
        client.send(format!("{line} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"));
        client
    }

    /// Waits until it is told of a request that there was no room.
    #[track_caller]
    fn told(&self, line: &str) {
        let error = if self.mounted { "(28: No space left on device)" } else { "(27: File too large)" };
        let of_request = format!("request: \"{line} HTTP/1.1\"");
        until(&format!("{line}: {error} is told"), || {
            let log = self.server.log();
            log.lines().any(|l| l.contains("[crit]") && l.contains(error) && l.contains(&of_request))
        });
    }

    /// The files on the disk.
    fn files(&self) -> Vec<PathBuf> {
        let mut files = vec![];
        collect(&self.disk, &mut files);
        files.retain(|file| !file.ends_with(".keep"));
        files
    }
}

fn collect(folder: &Path, into: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.is_dir() { collect(&path, into) } else { into.push(path) }
    }
}

/// What came is the beginning of the long answer, or all of it.
#[track_caller]
fn is_right(client: &mut Client) {
    let (head, body) = client.cut_off();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(body.len() <= LONG && body.iter().all(|byte| *byte == b'x'), "{}", body.len());
}

pub(super) fn full_disks() {
    let brief = Arc::new(AtomicBool::new(false));
    let is_brief = Arc::clone(&brief);
    let origin = Origin::start(move |visit| {
        visit.request()?;
        visit.forget();
        let length = if is_brief.load(Ordering::SeqCst) { 5 } else { LONG };
        visit.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n"))?;
        visit.send(vec![b'x'; length])
    });
    let cramped = Cramped::start(&origin);
    // Nobody takes these before there is no room left.
    for line in ["GET /slow", "GET /cached/slow", "GET /stored/slow"] {
        let mut client = cramped.ask(line);
        cramped.told(line);
        is_right(&mut client);
    }
    // Who fetches an answer that cannot be kept does not keep the others from it.
    let line = "GET /cached/all";
    let waiting = [(); 4].map(|()| {
        let mut client = cramped.ask(line);
        std::thread::spawn(move || is_right(&mut client))
    });
    for client in waiting {
        client.join().expect("an answer");
    }
    cramped.told(line);
    for line in ["GET /stored/x", "GET /moved/x"] {
        is_right(&mut cramped.ask(line));
        cramped.told(line);
    }
    brief.store(true, Ordering::SeqCst);
    // A body that has no room is answered for at once; one that needs none goes on.
    let body = "x".repeat(3 << 20);
    let mut client = Client::connect(cramped.server.address());
    client.send(request("POST /body", &body));
    let answer = client.response();
    assert_eq!((answer.status, answer.header("Connection")), (500, Some("close")));
    drop(client);
    cramped.told("POST /body");
    let answer = Client::connect(cramped.server.address()).ask(request("POST /streamed/", &body));
    assert_eq!((answer.status, answer.text().as_str()), (200, "xxxxx"));
    // Nothing of all that is left, nor kept open, and no key waits for anything.
    until("the files are gone", || cramped.files().is_empty());
    if cramped.mounted {
        until("there is room", || {
            statvfs(&cramped.disk).is_ok_and(|disk| disk.blocks() - disk.blocks_free() < 8)
        });
    }
    for path in ["all", "slow"] {
        let line = format!("GET /cached/{path}");
        for known in ["MISS", "HIT"] {
            until(&format!("{line} is kept"), || {
                cramped.ask(&line).response().header("X-Cache") == Some(known)
            });
        }
    }
    assert_eq!(cramped.files().len(), 2);
    assert!(!cramped.server.log().contains("panicked"));
}
