//! Runs one case: a prefix, a server, the steps in order, and the transcript they leave.

use crate::Result;
use crate::clock::Deadline;
use crate::http2;
use crate::normal::Normal;
use crate::origin::Origin;
use crate::server::Server;
use crate::steps::{Step, Take, Verb, parse};
use crate::wire::{End, Kind, Wire};
use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

/// What every case is run with.
pub struct Setup {
    pub binary: PathBuf,
    /// Certificates and the like, put at `certs` into every prefix.
    pub certificates: PathBuf,
    /// How long one step may take.
    pub limit: Duration,
    pub keep: bool,
}

/// The time of every file of a case: 2024-01-02 03:04:05 UTC, so that ETag and Last-Modified are known.
const FILE_TIME: Duration = Duration::from_secs(1_704_164_645);

/// How often in a row `until` wants to see its text: the workers of an old configuration may still
/// answer a few requests after the new ones have begun.
const IN_A_ROW: usize = 30;

/// The transcript of the case in that folder.
pub fn run(case: &Path, setup: &Setup) -> Result<String> {
    let steps = parse(&fs::read_to_string(case.join("steps.txt"))?)?;
    let mut attempt = 0;
    loop {
        attempt += 1;
        let mut site = Site::new(case, &steps, setup)?;
        match site.play(&steps) {
            // Another process took a port between its choice and its use.
            Err(e) if attempt < 3 && e.to_string().contains("Address already in use") => {}
            Err(e) => return Err(format!("{e}{}", site.last_words()).into()),
            Ok(()) => return Ok(std::mem::take(&mut site.transcript)),
        }
    }
}

struct Site<'a> {
    case: &'a Path,
    setup: &'a Setup,
    prefix: PathBuf,
    normal: Normal,
    server: Option<Server>,
    origins: HashMap<String, Origin>,
    listeners: HashMap<String, TcpListener>,
    wires: HashMap<String, Wire>,
    transcript: String,
}

impl<'a> Site<'a> {
    fn new(case: &'a Path, steps: &[Step], setup: &'a Setup) -> Result<Self> {
        let prefix = new_prefix()?;
        let normal = Normal { prefix: prefix.display().to_string(), ports: ports(case, steps)? };
        let site = Self {
            case,
            setup,
            prefix,
            normal,
            server: None,
            origins: HashMap::new(),
            listeners: HashMap::new(),
            wires: HashMap::new(),
            transcript: String::new(),
        };
        for folder in ["logs", "html"] {
            fs::create_dir(site.prefix.join(folder))?;
        }
        symlink(&setup.binary, site.prefix.join("nginx"))?;
        copy_tree(&setup.certificates, &site.prefix.join("certs"))?;
        if case.join("files").is_dir() {
            copy_tree(&case.join("files"), &site.prefix)?;
        }
        if case.join("nginx.conf").is_file() {
            site.configure("nginx.conf")?;
        }
        Ok(site)
    }

    /// The end of the server's log, for the message about a step that went wrong.
    fn last_words(&self) -> String {
        let log = self.normal.file(&fs::read(self.prefix.join("logs/error.log")).unwrap_or_default());
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(5)..].iter().map(|line| format!("\n    log: {line}")).collect()
    }

    fn configure(&self, file: &str) -> Result<()> {
        let text = fs::read(self.case.join(file))?;
        Ok(fs::write(self.prefix.join("nginx.conf"), self.normal.fill(&text))?)
    }

    fn deadline(&self) -> Deadline {
        Deadline::after(self.setup.limit)
    }

    fn play(&mut self, steps: &[Step]) -> Result<()> {
        let waits = steps.first().is_some_and(|s| s.verb == Verb::NoStart);
        if self.prefix.join("nginx.conf").is_file() && !waits {
            self.server = Some(Server::start(&self.prefix, self.deadline())?);
        }
        for step in steps {
            self.step(step).map_err(|e| format!("line {}: {}: {e}", step.line, step.text))?;
        }
        if let Some(server) = self.server.take() {
            self.wires.clear();
            server.stop(self.deadline())?;
        }
        Ok(())
    }

    /// What a step recorded, under the step as its heading.
    fn record(&mut self, step: &Step, text: &str, end: End) {
        let gap = if text.is_empty() || text.ends_with('\n') || end != End::Open { "" } else { "\n" };
        let mark = end.mark();
        let newline = if mark.is_empty() { "" } else { "\n" };
        self.transcript.push_str(&format!("== {}\n{text}{mark}{gap}{newline}", step.text));
    }

    fn step(&mut self, step: &Step) -> Result<()> {
        let deadline = self.deadline();
        match &step.verb {
            Verb::NoStart => {}
            Verb::Start => self.server = Some(Server::start(&self.prefix, deadline)?),
            Verb::Ask { http2, port, method, uri, headers, body } => {
                let (port, body) = (self.port(port)?, body.as_deref());
                let headers = self.normal.fill(headers);
                let (bytes, end) = if *http2 {
                    (http2::ask(port, method, uri, &headers, body, self.setup.limit)?, End::Open)
                } else {
                    let mut wire = Wire::connect(port)?;
                    wire.send(&request(method, uri, &headers, body), deadline)?;
                    wire.take(deadline, |_| None)?
                };
                let kind = if method == "HEAD" { Kind::ResponseHead } else { Kind::Response };
                let text = self.normal.messages(&bytes, kind);
                self.record(step, &text, end);
            }
            Verb::Connect { name, port, tls } => {
                let port = self.port(port)?;
                let wire = match tls {
                    None => Wire::connect(port)?,
                    Some(tls) => Wire::connect_tls(port, tls, &self.prefix.join("certs/example.com.crt"))?,
                };
                self.wires.insert(name.clone(), wire);
            }
            Verb::Send { name, bytes } => {
                let bytes = self.normal.fill(bytes);
                self.wire(name)?.send(&bytes, deadline)?;
            }
            Verb::Recv { name, take } => {
                let wire = self.wire(name)?;
                let (kind, (bytes, end)) = match take {
                    Take::Response => (Some(Kind::Response), wire.message(deadline, Kind::Response)?),
                    Take::Head => (Some(Kind::ResponseHead), wire.message(deadline, Kind::ResponseHead)?),
                    Take::Request => (Some(Kind::Request), wire.message(deadline, Kind::Request)?),
                    Take::All => (Some(Kind::Response), wire.take(deadline, |_| None)?),
                    Take::Bytes(n) => (None, wire.take(deadline, |b| (b.len() >= *n).then_some(*n))?),
                    Take::Until(text) => (None, wire.take(deadline, |b| end_of(text, b))?),
                };
                let text = match kind {
                    Some(kind) => self.normal.messages(&bytes, kind),
                    None => self.normal.text(&bytes),
                };
                self.record(step, &text, end);
            }
            Verb::Shut { name } => self.wire(name)?.shut()?,
            Verb::Close { name } => {
                self.wires.remove(name).ok_or_else(|| format!("no connection {name}"))?;
            }
            Verb::Backend { name, port, manual } => {
                let port = self.port(port)?;
                if *manual {
                    self.listeners.insert(name.clone(), TcpListener::bind(("127.0.0.1", port))?);
                } else {
                    self.origins.insert(name.clone(), Origin::listen(port)?);
                }
            }
            Verb::Reply { name, after, bytes } => {
                let bytes = self.normal.fill(bytes);
                self.origin(name)?.reply(*after, bytes);
            }
            Verb::Accept { backend, name } => {
                let listener = self.listeners.get(backend).ok_or_else(|| format!("no backend {backend}"))?;
                let wire = Wire::new(accept(listener, deadline)?);
                self.wires.insert(name.clone(), wire);
            }
            Verb::Received { name } => {
                let mut text = String::new();
                for received in self.origin(name)?.received() {
                    text.push_str(&format!("-- on connection {}\n", received.connection));
                    text.push_str(&self.normal.messages(&received.bytes, Kind::Request));
                    if !text.ends_with('\n') {
                        text.push('\n');
                    }
                }
                self.record(step, &text, End::Open);
            }
            Verb::Conf { file } => self.configure(file)?,
            Verb::File { path, text } => {
                let path = self.prefix.join(path);
                fs::write(&path, self.normal.fill(text))?;
                settle(&path)?;
            }
            Verb::Cat { path, lines } => {
                let path = self.prefix.join(path);
                let read = || fs::read(&path).unwrap_or_default();
                let count = |text: &[u8]| text.iter().filter(|b| **b == b'\n').count();
                if !deadline.poll(|| path.exists() && count(&read()) >= *lines) {
                    return Err(format!("not that many lines: {}", self.normal.file(&read())).into());
                }
                let text = self.normal.file(&read());
                self.record(step, &text, End::Open);
            }
            Verb::Move { from, to } => fs::rename(self.prefix.join(from), self.prefix.join(to))?,
            Verb::Signal { name } => {
                self.server.as_ref().ok_or("the server is not running")?.signal(name)?;
            }
            Verb::Wait { path, text } => {
                let path = self.prefix.join(path);
                let text = self.normal.fill(text.as_bytes());
                let holds = |bytes: Vec<u8>| bytes.windows(text.len()).any(|w| w == text);
                if !deadline.poll(|| fs::read(&path).is_ok_and(holds)) {
                    return Err("it never held that text".into());
                }
            }
            Verb::Until { port, uri, text } => {
                let port = self.port(port)?;
                let mut seen = 0;
                let get = request("GET", uri, b"", None);
                let done = deadline.poll(|| {
                    let holds = answer(port, &get, deadline)
                        .is_ok_and(|bytes| bytes.windows(text.len()).any(|w| w == text.as_bytes()));
                    seen = if holds { seen + 1 } else { 0 };
                    seen >= IN_A_ROW
                });
                if !done {
                    return Err("no lasting answer with that text".into());
                }
            }
            Verb::Exit => {
                let mut server = self.server.take().ok_or("the server is not running")?;
                let status = server.wait(deadline)?;
                self.record(step, &format!("{status}\n"), End::Open);
            }
            Verb::Run { args } => {
                let text = self.run_binary(args)?;
                self.record(step, &text, End::Open);
            }
        }
        Ok(())
    }

    fn run_binary(&self, args: &[String]) -> Result<String> {
        let args = args
            .iter()
            .map(|a| String::from_utf8(self.normal.fill(a.as_bytes())))
            .collect::<std::result::Result<Vec<_>, _>>()?;
        let (stdout, stderr) = (self.prefix.join("run.stdout"), self.prefix.join("run.stderr"));
        let mut child = Command::new(self.prefix.join("nginx"))
            .args(args)
            .current_dir(&self.prefix)
            .stdin(Stdio::null())
            .stdout(File::create(&stdout)?)
            .stderr(File::create(&stderr)?)
            .spawn()?;
        let mut status = None;
        self.deadline().poll(|| {
            status = child.try_wait().ok().flatten();
            status.is_some()
        });
        let Some(status) = status else {
            child.kill()?;
            child.wait()?;
            return Err("it did not end".into());
        };
        let mut text = format!("{status}\n");
        for (name, path) in [("stdout", stdout), ("stderr", stderr)] {
            let printed = self.normal.file(&fs::read(path)?);
            if !printed.is_empty() {
                text.push_str(&format!("{name}:\n{printed}"));
            }
        }
        Ok(text)
    }

    fn port(&self, name: &str) -> Result<u16> {
        Ok(self.normal.port(name).ok_or_else(|| format!("no port {name}"))?)
    }

    fn wire(&mut self, name: &str) -> Result<&mut Wire> {
        Ok(self.wires.get_mut(name).ok_or_else(|| format!("no connection {name}"))?)
    }

    fn origin(&self, name: &str) -> Result<&Origin> {
        Ok(self.origins.get(name).ok_or_else(|| format!("no backend {name}"))?)
    }
}

impl Drop for Site<'_> {
    fn drop(&mut self) {
        self.server = None;
        if self.setup.keep {
            eprintln!("{}: kept {}", self.case.display(), self.prefix.display());
        } else if let Err(e) = fs::remove_dir_all(&self.prefix) {
            eprintln!("{}: cannot remove {}: {e}", self.case.display(), self.prefix.display());
        }
    }
}

/// A request that the server closes after, with what the case did not say itself.
fn request(method: &str, uri: &str, headers: &[u8], body: Option<&[u8]>) -> Vec<u8> {
    let lower = format!("\r\n{}", String::from_utf8_lossy(headers).to_ascii_lowercase());
    let has = |name: &str| lower.contains(&format!("\r\n{name}:"));
    let mut out = format!("{method} {uri} HTTP/1.1\r\n").into_bytes();
    if !has("host") {
        out.extend_from_slice(b"Host: localhost\r\n");
    }
    out.extend_from_slice(headers);
    if !has("connection") {
        out.extend_from_slice(b"Connection: close\r\n");
    }
    if let Some(body) = body
        && !has("content-length")
        && !has("transfer-encoding")
    {
        out.extend_from_slice(format!("Content-Length: {}\r\n", body.len()).as_bytes());
    }
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(body.unwrap_or_default());
    out
}

/// Where `text` first ends in `bytes`.
fn end_of(text: &str, bytes: &[u8]) -> Option<usize> {
    bytes.windows(text.len()).position(|w| w == text.as_bytes()).map(|at| at + text.len())
}

fn answer(port: u16, request: &[u8], deadline: Deadline) -> Result<Vec<u8>> {
    let mut wire = Wire::connect(port)?;
    wire.send(request, deadline)?;
    Ok(wire.take(deadline, |_| None)?.0)
}

fn accept(listener: &TcpListener, deadline: Deadline) -> Result<std::net::TcpStream> {
    listener.set_nonblocking(true)?;
    let mut stream = None;
    deadline.poll(|| {
        stream = listener.accept().ok();
        stream.is_some()
    });
    let (stream, _) = stream.ok_or("nobody connected")?;
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A folder of a length that is the same in every run, since its name is part of what is measured in bytes.
fn new_prefix() -> Result<PathBuf> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = PathBuf::from(format!("/tmp/wc-{:08}-{:04}", std::process::id(), number % 10_000));
        match fs::create_dir(&path) {
            Ok(()) => {
                fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
                return Ok(path);
            }
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(format!("{}: {e}", path.display()).into()),
        }
    }
}

/// A free port for every name that the case uses.
fn ports(case: &Path, steps: &[Step]) -> Result<Vec<(u16, String)>> {
    let mut names = HashSet::new();
    for entry in fs::read_dir(case)? {
        let path = entry?.path();
        if path.is_file() {
            let text = String::from_utf8_lossy(&fs::read(&path)?).into_owned();
            names
                .extend(text.split("%%PORT_").skip(1).filter_map(|t| Some(t.split_once("%%")?.0.to_owned())));
        }
    }
    for step in steps {
        match &step.verb {
            Verb::Ask { port, .. }
            | Verb::Connect { port, .. }
            | Verb::Backend { port, .. }
            | Verb::Until { port, .. } => {
                names.insert(port.clone());
            }
            _ => {}
        }
    }
    let mut names: Vec<String> = names.into_iter().collect();
    names.sort();
    names.into_iter().map(|name| Ok((free_port()?, name))).collect()
}

/// Never the same one twice in a run; below the range that the kernel takes for outgoing connections.
fn free_port() -> Result<u16> {
    static NEXT: Mutex<Option<u16>> = Mutex::new(None);
    let mut next = NEXT.lock().map_err(|_| "a case ended while it chose a port")?;
    for _ in 0..20_000 {
        // Runs beside this one begin somewhere else.
        let port = next.unwrap_or(12_000 + (std::process::id() * 37 % 20_000) as u16);
        *next = Some(if port >= 31_999 { 12_000 } else { port + 1 });
        if TcpListener::bind(("0.0.0.0", port)).is_ok() {
            return Ok(port);
        }
    }
    Err("no free port".into())
}

fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target)?;
            settle(&target)?;
        }
    }
    Ok(())
}

fn settle(path: &Path) -> Result<()> {
    let file = File::options().write(true).open(path)?;
    file.set_permissions(fs::Permissions::from_mode(0o644))?;
    Ok(file.set_modified(SystemTime::UNIX_EPOCH + FILE_TIME)?)
}
