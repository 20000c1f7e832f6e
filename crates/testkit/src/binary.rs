//! The real executable, with a prefix of its own.

use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::{Folder, filled, free_address, until, within};

/// What a call of the executable gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Called {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// A server. It is killed with its workers when it is dropped.
pub struct Server {
    executable: PathBuf,
    folder: Folder,
    address: SocketAddr,
    /// In the foreground.
    child: Option<Child>,
    /// Of the first process.
    pid: i32,
    exited: Option<ExitStatus>,
}

impl Server {
    /// Starts the executable and waits until it takes connections.
    ///
    /// The configuration stands in `conf/nginx.conf` of a temporary prefix; `{listen}` in it is a free address,
    /// `{folder}` the prefix, and the other names are the caller's.
    ///
    /// # Panics
    /// If it does not start.
    #[track_caller]
    pub fn start(executable: &str, conf: &str, names: &[(&str, String)]) -> Self {
        Self::start_as(executable, conf, names, |_, _| {})
    }

    /// The same with a command, and a prefix, that are changed before.
    ///
    /// # Panics
    /// If it does not start.
    #[track_caller]
    pub fn start_as(
        executable: &str,
        conf: &str,
        names: &[(&str, String)],
        change: impl FnOnce(&mut Command, &Folder),
    ) -> Self {
        let folder = Folder::new(&[("logs/.keep", b""), ("html/index.html", b"home\n")]);
        let address = free_address();
        let executable = PathBuf::from(executable);
        write_conf(&folder, address, conf, names);
        let mut command = Command::new(&executable);
        command.args(["-g", "daemon off;", "-p"]).arg(folder.path());
        let output =
            std::fs::File::create(folder.path().join("output")).expect("a file in a temporary folder");
        let errors = output.try_clone().expect("a descriptor");
        command.stdin(Stdio::null()).stdout(output).stderr(errors);
        change(&mut command, &folder);
        let child = command.spawn().expect("the executable under test");
        let pid = child.id() as i32;
        let mut server = Self { executable, folder, address, child: Some(child), pid, exited: None };
        server.takes_connections();
        server
    }

    /// The same in the background, where alone the executable can be upgraded. The test process has to be a
    /// subreaper, so that the server comes back to it.
    ///
    /// # Panics
    /// If it does not start.
    #[track_caller]
    pub fn start_daemon(executable: &str, conf: &str, names: &[(&str, String)]) -> Self {
        let folder = Folder::new(&[("logs/.keep", b""), ("html/index.html", b"home\n")]);
        let address = free_address();
        write_conf(&folder, address, conf, names);
        let mut command = Command::new(executable);
        let null = (Stdio::null(), Stdio::null(), Stdio::null());
        command.arg("-p").arg(folder.path()).stdin(null.0).stdout(null.1).stderr(null.2);
        let status = command.status().expect("the executable under test");
        let executable = executable.into();
        let mut server = Self { executable, folder, address, child: None, pid: 0, exited: None };
        assert!(status.success(), "the server left with {status}: {}", server.log());
        server.pid = within("the server has its pid file", || server.master());
        server.takes_connections();
        server
    }

    #[track_caller]
    fn takes_connections(&mut self) {
        until("the server takes connections", || {
            if let Some(status) = self.ended() {
                panic!("the server left with {status}: {}{}", self.output(), self.log());
            }
            TcpStream::connect(self.address).is_ok()
        });
    }

    /// How it ended, if it has.
    fn ended(&mut self) -> Option<ExitStatus> {
        if self.exited.is_none() {
            self.exited = match &mut self.child {
                Some(child) => child.try_wait().ok().flatten(),
                None => match waitpid(Pid::from_raw(self.pid), Some(WaitPidFlag::WNOHANG)) {
                    Ok(WaitStatus::Exited(_, code)) => Some(ExitStatus::from_raw(code << 8)),
                    Ok(WaitStatus::Signaled(_, signal, _)) => Some(ExitStatus::from_raw(signal as i32)),
                    Ok(_) | Err(_) => None,
                },
            };
        }
        self.exited
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn folder(&self) -> &Folder {
        &self.folder
    }

    /// Writes another configuration, with the same names as at the start.
    pub fn configure(&self, conf: &str, names: &[(&str, String)]) {
        write_conf(&self.folder, self.address, conf, names);
    }

    /// Calls the executable with the server's prefix.
    ///
    /// # Panics
    /// If it cannot be called.
    pub fn call(&self, options: &[&str]) -> Called {
        let mut command = Command::new(&self.executable);
        command.arg("-p").arg(self.folder.path()).args(options).stdin(Stdio::null());
        let output = command.output().expect("the executable under test");
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Called { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// The pid of the first process: the master, where there is one.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// The pid in the pid file.
    pub fn master(&self) -> Option<i32> {
        self.folder.read("logs/nginx.pid").trim().parse().ok()
    }

    /// The pids of its workers.
    pub fn workers(&self) -> Vec<i32> {
        children(self.pid())
    }

    /// The one worker.
    ///
    /// # Panics
    /// If there is not exactly one in the end.
    #[track_caller]
    pub fn worker(&self) -> i32 {
        within("there is one worker", || match self.workers()[..] {
            [worker] => Some(worker),
            _ => None,
        })
    }

    /// # Panics
    /// If there is no such process any more.
    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).expect("the server is there");
    }

    /// Reloads by `-s reload`, which waits for the verdict.
    pub fn reload(&self) -> Called {
        self.call(&["-s", "reload"])
    }

    /// The error log so far.
    pub fn log(&self) -> String {
        self.folder.read("logs/error.log")
    }

    /// What was written to the standard streams.
    pub fn output(&self) -> String {
        self.folder.read("output")
    }

    /// Waits until the error log has this text.
    ///
    /// # Panics
    /// If it never has.
    #[track_caller]
    pub fn logged(&self, text: &str) {
        until(&format!("logged: {text}"), || self.log().contains(text));
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// If it does not end.
    #[track_caller]
    pub fn exit(&mut self) -> ExitStatus {
        within("the server ends", || self.ended())
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        self.ended().is_none()
    }
}

/// Kills a process and its children. It is stopped first, so that it starts none between the look and the kill.
fn kill_with_children(pid: i32) {
    let _ = kill(Pid::from_raw(pid), Signal::SIGSTOP);
    let children = children(pid);
    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    for child in children {
        kill_with_children(child);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // One that took over in an upgrade may have outlived the first process.
        let successor = self.master().filter(|pid| *pid != self.pid);
        if self.pid != 0 && self.runs() {
            kill_with_children(self.pid);
            let _ = match &mut self.child {
                Some(child) => child.wait().map(drop).is_ok(),
                None => waitpid(Pid::from_raw(self.pid), None).is_ok(),
            };
        }
        if let Some(pid) = successor {
            kill_with_children(pid);
        }
        if std::thread::panicking() {
            eprintln!("-- error log\n{}-- output\n{}", self.log(), self.output());
        }
    }
}

fn write_conf(folder: &Folder, address: SocketAddr, conf: &str, names: &[(&str, String)]) {
    let own = [("listen", address.to_string()), ("folder", folder.path().display().to_string())];
    folder.write("conf/nginx.conf", filled(&filled(conf, names), &own));
}

/// The processes whose parent is this one.
fn children(parent: i32) -> Vec<i32> {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{parent}/task")) else { return vec![] };
    let of_thread = |thread: std::fs::DirEntry| {
        std::fs::read_to_string(Path::new(&thread.path()).join("children")).unwrap_or_default()
    };
    let listed: Vec<String> = threads.flatten().map(of_thread).collect();
    listed.iter().flat_map(|list| list.split_ascii_whitespace()).filter_map(|pid| pid.parse().ok()).collect()
}
