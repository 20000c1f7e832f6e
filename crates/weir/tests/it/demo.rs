//! `weir demo`, the program itself: what it prints, what the page's socket sees, what is left of it.

use std::io::{BufRead, BufReader, Lines, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use tungstenite::{Message, WebSocket};

pub const TESTS: &[(&str, fn())] = &[
    ("demo_sockets_survive_reloads", demo_sockets_survive_reloads),
    ("demo_ends_with_weir", demo_ends_with_weir),
    ("demo_ends_with_a_killed_master", demo_ends_with_a_killed_master),
    ("demo_prints_a_configuration_that_weir_accepts", demo_prints_a_configuration_that_weir_accepts),
];

const WEIR: &str = env!("CARGO_BIN_EXE_weir");

/// How long an answer may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running demo, with what it printed.
struct Demo {
    child: Child,
    http: SocketAddr,
    https: SocketAddr,
    master: Pid,
    folder: PathBuf,
    log: Lines<BufReader<ChildStderr>>,
}

impl Demo {
    #[track_caller]
    fn start() -> Demo {
        let mut child =
            Command::new(WEIR).arg("demo").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let mut after = |mark: &str| {
            let line = lines.find_map(|line| line.split_once(mark).map(|(_, after)| after.to_owned()));
            line.unwrap_or_else(|| panic!("not printed: {mark}"))
        };
        let address = |url: String| url.split('/').next().unwrap().parse().unwrap();
        let http = address(after("http://"));
        let https = address(after("https://"));
        let master = Pid::from_raw(after("kill -HUP ").parse().unwrap());
        let configuration = after("The configuration is ");
        let configuration = Path::new(configuration.split_once(". ").unwrap().0);
        let folder = configuration.parent().unwrap().to_owned();
        let log = BufReader::new(child.stderr.take().unwrap()).lines();
        Demo { child, http, https, master, folder, log }
    }

    /// Reads on in weir's log until there is a line that ends so.
    #[track_caller]
    fn logs(&mut self, end: &str) {
        assert!(self.log.any(|line| line.unwrap().ends_with(end)), "not logged: {end}");
    }

    fn connect(&self, address: SocketAddr) -> TcpStream {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    #[track_caller]
    fn ws(&self) -> Talk<TcpStream> {
        Talk::start(&format!("ws://{}/ws", self.http), self.connect(self.http))
    }

    #[track_caller]
    fn wss(&self) -> Talk<StreamOwned<ClientConnection, TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.folder.join("cert.pem")).unwrap()).unwrap();
        let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let name = ServerName::from(self.https.ip());
        let tls = ClientConnection::new(Arc::new(config), name).unwrap();
        Talk::start(&format!("wss://{}/ws", self.https), StreamOwned::new(tls, self.connect(self.https)))
    }

    /// Checks that all of it is gone.
    #[track_caller]
    fn ended(self) {
        self.ended_with(0);
    }

    #[track_caller]
    fn ended_with(mut self, code: i32) {
        assert_eq!(self.child.wait().unwrap().code(), Some(code));
        assert_eq!(kill(self.master, None), Err(Errno::ESRCH));
        assert!(!self.folder.exists());
        // The log's other end is held by every process that there was. (Their ports may be another test's by now.)
        assert!(self.log.all(|line| line.is_ok()));
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM);
            let _ = self.child.wait();
        }
    }
}

/// One socket, on which every message must be answered in turn by the same backend.
struct Talk<S> {
    socket: WebSocket<S>,
    backend: String,
    count: u64,
}

impl<S: Read + Write> Talk<S> {
    #[track_caller]
    fn start(url: &str, stream: S) -> Talk<S> {
        let Ok((socket, _)) = tungstenite::client(url, stream) else { panic!("no socket at {url}") };
        let mut talk = Talk { socket, backend: String::new(), count: 0 };
        talk.backend = talk.ask("who?").0;
        talk
    }

    /// Says something and gives back who answers and how often weir was reloaded.
    #[track_caller]
    fn ask(&mut self, text: &str) -> (String, u64) {
        self.socket.send(Message::text(text)).unwrap();
        let answer = self.socket.read().unwrap().into_text().unwrap();
        self.count += 1;
        let (head, echo) = answer.split_once('\n').unwrap();
        let words: Vec<&str> = head.split(' ').collect();
        assert_eq!((words[1], echo), (&*self.count.to_string(), text));
        (words[0].to_owned(), words[2].parse().unwrap())
    }

    /// Goes on talking until it hears of so many reloads.
    #[track_caller]
    fn sees(&mut self, reloads: u64) {
        loop {
            let (backend, seen) = self.ask("still there?");
            assert_eq!(backend, self.backend);
            assert!(seen <= reloads && self.count < 1_000_000, "{seen} reloads");
            if seen == reloads {
                return;
            }
        }
    }
}

fn demo_sockets_survive_reloads() {
    let mut demo = Demo::start();
    let mut page = String::new();
    let mut stream = demo.connect(demo.http);
    stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    stream.read_to_string(&mut page).unwrap();
    assert!(page.contains(&format!("kill -HUP {}<", demo.master)) && !page.contains("{{"), "{page}");

    let (mut ws, mut wss) = (demo.ws(), demo.wss());
    let mut backends = [ws.backend.clone(), wss.backend.clone()];
    backends.sort();
    assert_eq!(backends, ["one", "two"]);
    for reloads in 1..4 {
        kill(demo.master, Signal::SIGHUP).unwrap();
        ws.sees(reloads);
        wss.sees(reloads);
        assert_eq!(demo.ws().ask("new").1, reloads);
    }
    // A refused configuration is no reload, and harms nobody.
    let file = demo.folder.join("nginx.conf");
    let good = std::fs::read(&file).unwrap();
    std::fs::write(&file, "no_such_directive;").unwrap();
    kill(demo.master, Signal::SIGHUP).unwrap();
    demo.logs(&format!("unknown directive \"no_such_directive\" in {}:1", file.display()));
    ws.sees(3);
    std::fs::write(&file, good).unwrap();
    kill(demo.master, Signal::SIGHUP).unwrap();
    wss.sees(4);

    kill(Pid::from_raw(demo.child.id() as i32), Signal::SIGINT).unwrap();
    demo.ended();
}

fn demo_ends_with_weir() {
    let demo = Demo::start();
    kill(demo.master, Signal::SIGQUIT).unwrap();
    demo.ended();
}

fn demo_ends_with_a_killed_master() {
    let demo = Demo::start();
    kill(demo.master, Signal::SIGKILL).unwrap();
    demo.ended_with(1);
}

fn demo_prints_a_configuration_that_weir_accepts() {
    let printed = Command::new(WEIR).args(["demo", "--print-config"]).output().unwrap();
    assert!(printed.status.success());
    let folder = std::env::temp_dir().join(format!("weir-it-{}-print-config", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("nginx.conf"), printed.stdout).unwrap();
    let certificates = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/certs");
    for (from, to) in [("example.com.crt", "cert.pem"), ("example.com.key", "key.pem")] {
        std::fs::copy(certificates.join(from), folder.join(to)).unwrap();
    }
    // The ports that it names may be taken, which is no matter of the file.
    let tested =
        Command::new(WEIR).arg("-p").arg(&folder).args(["-c", "nginx.conf", "-e", "stderr", "-t"]).output();
    let said = String::from_utf8(tested.unwrap().stderr).unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    let file = folder.join("nginx.conf");
    assert!(
        said.starts_with(&format!("weir: the configuration file {} syntax is ok\n", file.display())),
        "{said}"
    );
    assert!(!said.contains("[warn]"), "{said}");
}
