//! `weir demo`: a page, two WebSocket backends and a certificate, to see a socket survive reloads without configuring
//! anything.
//!
//! This process is only the backends and a supervisor. weir itself is a child, started as a service manager would start it
//! and reading a configuration file as anybody's, so what is shown is what is shipped:
//!
//! ```text
//! weir demo  - - - starts - - ->  weir -p FOLDER -c nginx.conf    (master)
//!    one :9001 <--+                     `-- worker
//!    two :9002 <--+------ ws ------------------+   :8080 http, :8443 https  <---- browser
//! ```

mod backend;

use std::fs::{self, Permissions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::{Pid, mkdtemp};
use rcgen::CertifiedKey;
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::{Handle, Signals};

const CONFIGURATION: &str = include_str!("nginx.conf");
const PAGE: &str = include_str!("page.html");

/// The ports that the configuration names, used where they are free.
const HTTP: u16 = 8080;
const HTTPS: u16 = 8443;
const BACKENDS: [(&str, u16); 2] = [("one", 9001), ("two", 9002)];

/// What stands before a port in the configuration.
const LOOPBACK: &str = "127.0.0.1:";

/// How often weir is started when somebody else takes its ports in the moment after they were found free.
const ATTEMPTS: usize = 5;

/// How long the first answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Serves until a signal or the end of weir; or prints the configuration. Gives back the exit code.
pub fn run(print_config: bool) -> i32 {
    let done = if print_config {
        io::stdout().write_all(CONFIGURATION.as_bytes()).map_err(Into::into)
    } else {
        serve()
    };
    match done {
        Ok(()) => 0,
        Err(error) => {
            let _ = writeln!(io::stderr(), "weir demo: {error:#}");
            1
        }
    }
}

fn serve() -> anyhow::Result<()> {
    // Before anything is there that a signal would leave behind.
    let mut signals =
        Signals::new([SIGCHLD, SIGINT, SIGTERM, SIGQUIT, SIGHUP]).context("signals cannot be caught")?;
    let reloads = Arc::new(AtomicU64::new(0));
    let mut ports = Vec::new();
    for (name, port) in BACKENDS {
        let listener = bind(port).with_context(|| format!("no port for backend {name}"))?;
        ports.push((port, listener.local_addr()?.port()));
        backend::serve(name, listener, reloads.clone())
            .with_context(|| format!("backend {name} cannot start"))?;
    }
    let folder = Folder::new().context("no temporary folder")?;
    certify(&folder.0).context("no certificate")?;
    let html = folder.0.join("html");
    fs::create_dir(&html).and_then(|()| open_up(&html, 0o755)).context("no folder for the page")?;

    let mut weir = Weir::start(&folder.0, &ports, &reloads, &signals.handle())?;
    if let Err(error) = weir.welcome(&folder.0) {
        weir.terminate();
        let _ = weir.child.wait();
        return Err(error);
    }
    announce(&weir, &folder.0);

    let mut ending = false;
    // Ends when weir has ended.
    for signal in signals.forever() {
        if signal == SIGCHLD {
            if weir.is_over().context("weir has been lost")? {
                // A master that was killed leaves its worker behind, which would serve on.
                weir.signal_all(Signal::SIGTERM);
            }
            continue;
        }
        if ending {
            // Asked twice: no more waiting.
            weir.signal_all(Signal::SIGKILL);
            break;
        }
        ending = true;
        weir.terminate();
    }
    let status = weir.child.wait().context("weir has been lost")?;
    ensure!(ending || status.success(), "weir ended by itself: {status}");
    Ok(())
}

/// weir, as it runs.
struct Weir {
    child: Child,
    http: u16,
    https: u16,
}

impl Weir {
    /// Starts weir and comes back when it has its sockets and a worker. `handle` is closed at its end.
    fn start(
        folder: &Path,
        backends: &[(u16, u16)],
        reloads: &Arc<AtomicU64>,
        handle: &Handle,
    ) -> anyhow::Result<Weir> {
        for attempt in 0..ATTEMPTS {
            let [http, https] = free([HTTP, HTTPS].map(|port| if attempt == 0 { port } else { 0 }))?;
            let ports = [&[(HTTP, http), (HTTPS, https)], backends].concat();
            fs::write(folder.join("nginx.conf"), configuration(&ports)).context("no configuration file")?;
            let (started, has_started) = mpsc::channel();
            let mut child = spawn(folder).context("weir cannot be started")?;
            let stderr = child.stderr.take().context("weir has no standard error")?;
            let (reloads, handle) = (reloads.clone(), handle.clone());
            let follower = thread::Builder::new().spawn(move || follow(stderr, &started, &reloads, &handle));
            if let Err(error) = follower {
                child.kill()?;
                return Err(error.into());
            }
            if has_started.recv().is_ok() {
                return Ok(Weir { child, http, https });
            }
            child.wait()?;
        }
        bail!("weir does not start");
    }

    /// Writes the page, which needs to know the process, and asks for it as a browser would.
    fn welcome(&self, folder: &Path) -> anyhow::Result<()> {
        let page = PAGE
            .replace("{{pid}}", &self.child.id().to_string())
            .replace("{{http}}", &format!("http://{LOOPBACK}{}/", self.http))
            .replace("{{https}}", &format!("https://{LOOPBACK}{}/", self.https))
            .replace("{{configuration}}", &escaped(&folder.join("nginx.conf").display().to_string()));
        let index = folder.join("html/index.html");
        fs::write(&index, page).and_then(|()| open_up(&index, 0o644)).context("no page")?;
        let mut stream =
            TcpStream::connect((Ipv4Addr::LOCALHOST, self.http)).context("weir does not listen")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(stream, "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).context("weir does not answer")?;
        let status = answer.lines().next().unwrap_or_default();
        // A worker of root's runs as another user, who may be kept out of a private folder for temporary files.
        ensure!(
            status.ends_with(" 200 OK"),
            "weir cannot serve the page: {status} (is {} readable for everybody?)",
            folder.display()
        );
        Ok(())
    }

    /// Asks weir to end at once.
    fn terminate(&self) {
        // One that has ended already needs no signal; its number is not given away before it is waited for.
        let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM);
    }

    /// Whether the master has ended. It is not waited for, so that its number stays its own.
    fn is_over(&self) -> nix::Result<bool> {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        let status = waitid(Id::Pid(Pid::from_raw(self.child.id() as i32)), flags)?;
        Ok(status != WaitStatus::StillAlive)
    }

    /// Signals what there is of weir, which has a process group of its own.
    fn signal_all(&self, signal: Signal) {
        // It is no failure that nothing is left of it.
        let _ = killpg(Pid::from_raw(self.child.id() as i32), signal);
    }
}

/// This executable as a server that stays in the foreground, out of reach of the terminal's Ctrl-C: that one is for the
/// demo, which then ends everything in order.
fn spawn(folder: &Path) -> io::Result<Child> {
    Command::new("/proc/self/exe")
        .arg0(std::env::args_os().next().unwrap_or_else(|| "weir".into()))
        .arg("-p")
        .arg(folder)
        .args(["-c", "nginx.conf", "-e", "stderr", "-g", "daemon off;"])
        .process_group(0)
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
}

/// Passes on what weir logs, and learns from it that a worker has started and that the configuration was reloaded.
fn follow(stderr: ChildStderr, started: &Sender<()>, reloads: &AtomicU64, handle: &Handle) {
    let mut stderr = BufReader::new(stderr);
    let mut line = Vec::new();
    let mut running = false;
    // It ends when no process of weir's is left to write.
    while matches!(stderr.read_until(b'\n', &mut line), Ok(1..)) {
        let _ = io::stderr().write_all(&line);
        let text = String::from_utf8_lossy(&line);
        if text.contains(": start worker process ") && !running {
            running = true;
            // Its receiver has gone once it knows.
            let _ = started.send(());
        } else if text.trim_end().ends_with(": reconfigured") {
            reloads.fetch_add(1, Ordering::Relaxed);
        }
        line.clear();
    }
    if running {
        handle.close();
    }
}

fn announce(weir: &Weir, folder: &Path) {
    let (http, https, pid, folder) = (weir.http, weir.https, weir.child.id(), folder.display());
    let text = format!(
        "\n\
         weir is running. Open the page:\n\n    \
             http://{LOOPBACK}{http}/\n    \
             https://{LOOPBACK}{https}/     (its certificate is self-signed: the browser will ask)\n\n\
         Reload weir and see that the page's WebSocket goes on:\n\n    \
             kill -HUP {pid}\n\n\
         The configuration is {folder}/nginx.conf. Ctrl-C ends the demo.\n\n"
    );
    let mut stdout = io::stdout().lock();
    // Nobody has to read it.
    let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
}

/// A listener on the port if it is free, else on any.
fn bind(port: u16) -> io::Result<TcpListener> {
    let any = |_| TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
    TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).or_else(any)
}

/// Ports that are free now, the wished ones if possible.
fn free(wished: [u16; 2]) -> io::Result<[u16; 2]> {
    // Both are held until both are known, so that they differ.
    let [one, other] = wished.map(bind);
    let (one, other) = (one?, other?);
    Ok([one.local_addr()?.port(), other.local_addr()?.port()])
}

/// The configuration with the ports that were found in place of those that it names.
fn configuration(ports: &[(u16, u16)]) -> String {
    let mut text = String::with_capacity(CONFIGURATION.len());
    for (number, part) in CONFIGURATION.split(LOOPBACK).enumerate() {
        if number == 0 {
            text.push_str(part);
            continue;
        }
        let end = part.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(part.len());
        let (port, rest) = part.split_at(end);
        let found = ports.iter().find(|(wish, _)| *port == wish.to_string());
        text.push_str(LOOPBACK);
        text.push_str(&found.map_or_else(|| port.to_owned(), |(_, port)| port.to_string()));
        text.push_str(rest);
    }
    text
}

/// Writes `cert.pem` and `key.pem` for the names that this machine has for itself.
fn certify(folder: &Path) -> anyhow::Result<()> {
    let names = ["localhost", "127.0.0.1", "::1"].map(String::from);
    let CertifiedKey { cert, signing_key } = rcgen::generate_simple_self_signed(names)?;
    fs::write(folder.join("cert.pem"), cert.pem())?;
    let mut key =
        fs::File::options().write(true).create_new(true).mode(0o600).open(folder.join("key.pem"))?;
    key.write_all(signing_key.serialize_pem().as_bytes())?;
    Ok(())
}

/// Text as HTML.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A folder that goes away with all that is in it.
struct Folder(PathBuf);

impl Folder {
    fn new() -> anyhow::Result<Folder> {
        let folder = Folder(mkdtemp(&std::env::temp_dir().join("weir-demo-XXXXXX"))?);
        open_up(&folder.0, 0o755)?;
        Ok(folder)
    }
}

/// Lets everybody read, whatever the umask: workers of a master that runs as root are somebody else.
fn open_up(path: &Path, mode: u32) -> io::Result<()> {
    fs::set_permissions(path, Permissions::from_mode(mode))
}

impl Drop for Folder {
    fn drop(&mut self) {
        // There is nobody left to tell.
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_replaced_at_once_and_only_where_they_are_ports() {
        assert_eq!(configuration(&[]), CONFIGURATION);
        let text = configuration(&[(HTTP, HTTPS), (HTTPS, 20000), (9001, 9002), (9002, 20001)]);
        let after = |text: &'static str| move |line: &&str| line.trim_start().starts_with(text);
        let words = |text: &'static str, all: &str| -> Vec<String> {
            all.lines()
                .filter(after(text))
                .filter_map(|line| line.split_whitespace().nth(1))
                .map(str::to_owned)
                .collect()
        };
        assert_eq!(words("listen ", &text), ["127.0.0.1:8443;", "127.0.0.1:20000"]);
        assert_eq!(words("server ", &text), ["127.0.0.1:9002", "127.0.0.1:20001", "{"]);
    }

    #[test]
    fn every_port_that_may_be_replaced_is_in_the_configuration() {
        for port in [HTTP, HTTPS].into_iter().chain(BACKENDS.map(|(_, port)| port)) {
            assert_eq!(CONFIGURATION.matches(&format!("{LOOPBACK}{port}")).count(), 1, "{port}");
        }
    }

    #[test]
    fn the_folder_goes_away_with_its_content() {
        let folder = Folder::new().unwrap();
        certify(&folder.0).unwrap();
        let path = folder.0.clone();
        assert_eq!(fs::metadata(path.join("key.pem")).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o755);
        drop(folder);
        assert!(!path.exists());
    }

    #[test]
    fn a_path_is_text_on_the_page() {
        assert_eq!(escaped("/tmp/a<b>&\"c"), "/tmp/a&lt;b&gt;&amp;&quot;c");
    }
}
