//! Signals, reloads, upgrades and deaths, as seen from outside.

use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;

use nix::sys::signal::{Signal as Number, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use weir::args::Signal;
use weir::pidfile;
use weir::privileges;
use weir::signaller;
use weir_engine::errorlog::Log;
use weir_testkit::{PATIENCE, free_address, until};

use crate::stand_in::pid_file;

pub const TESTS: &[(&str, fn())] = &[
    ("a_reload_is_answered_and_keeps_the_worker", a_reload_is_answered_and_keeps_the_worker),
    (
        "a_dead_worker_is_replaced_and_no_connection_refused",
        a_dead_worker_is_replaced_and_no_connection_refused,
    ),
    ("reloads_leave_nothing_open", reloads_leave_nothing_open),
    ("a_fatal_worker_stays_away_until_a_reload", a_fatal_worker_stays_away_until_a_reload),
    ("another_environment_takes_another_worker", another_environment_takes_another_worker),
    ("unix_sockets_and_pid_file_go_with_the_master", unix_sockets_and_pid_file_go_with_the_master),
    ("logs_are_reopened_in_both_processes", logs_are_reopened_in_both_processes),
    ("an_upgrade_serves_all_along", an_upgrade_serves_all_along),
    ("an_upgrade_can_be_taken_back", an_upgrade_can_be_taken_back),
    ("a_worker_keeps_no_privileges", a_worker_keeps_no_privileges),
    ("the_command_line_prints_and_exits_as_nginx", the_command_line_prints_and_exits_as_nginx),
    ("a_second_server_fails_on_the_terminal", a_second_server_fails_on_the_terminal),
];

/// What a worker says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Answer {
    pid: i32,
    generation: u64,
    who: String,
}

impl Answer {
    fn read(mut from: impl Read) -> Answer {
        let mut line = String::new();
        from.read_to_string(&mut line).unwrap();
        let mut words = line.trim_end_matches('\n').split(' ');
        let mut word = || words.next().unwrap().to_owned();
        Answer { pid: word().parse().unwrap(), generation: word().parse().unwrap(), who: word() }
    }
}

/// A master in the background with a folder of its own; what is left of it is killed in the end.
struct Server {
    folder: PathBuf,
    address: SocketAddr,
}

impl Server {
    #[track_caller]
    fn start(name: &str, more: &str) -> Server {
        let folder = std::env::temp_dir().join(format!("weir-it-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        let address = free_address();
        let server = Server { folder, address };
        server.configure(more);
        std::os::unix::fs::symlink(std::env::current_exe().unwrap(), server.folder.join("it")).unwrap();
        let launcher = server.command(&["-e", "stderr"]).env("SECRET", "x").status().unwrap();
        assert!(launcher.success());
        server
    }

    /// The program as it is called for this server.
    fn command(&self, options: &[&str]) -> Command {
        let mut command = Command::new(self.folder.join("it"));
        command.arg("-p").arg(&self.folder).args(options);
        command
    }

    /// Calls it; exit code, standard output, standard error.
    fn call(&self, options: &[&str]) -> (i32, String, String) {
        let output = self.command(options).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    }

    fn configure(&self, more: &str) {
        std::fs::write(self.folder.join("conf"), format!("listen {}\n{more}\n", self.address)).unwrap();
    }

    #[track_caller]
    fn ask(&self) -> Answer {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Answer::read(stream)
    }

    fn master(&self) -> i32 {
        pidfile::read(&pid_file(&self.folder)).unwrap()
    }

    /// Signals the master without reading the configuration; exit code and what is printed.
    fn signal(&self, signal: Signal) -> (i32, String) {
        let mut stderr = Vec::new();
        let log = Log::new("it", Vec::new());
        let code = signaller::send(signal, &pid_file(&self.folder), &log, &mut stderr);
        (code, String::from_utf8(stderr).unwrap())
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("error.log")).unwrap()
    }

    #[track_caller]
    fn logged(&self, text: &str) {
        assert!(self.log().contains(text), "not logged: {text}\n{}", self.log());
    }

    /// Ends it and checks that it leaves with 0 and without its pid file.
    #[track_caller]
    fn stop(self, signal: Signal) {
        let master = self.master();
        assert_eq!(self.signal(signal), (0, String::new()));
        exited(master);
        assert!(!pid_file(&self.folder).exists());
        assert!(TcpStream::connect(self.address).is_err());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        for file in [pid_file(&self.folder), self.folder.join("pid.oldbin")] {
            if let Ok(pid) = pidfile::read(&file) {
                let _ = kill(Pid::from_raw(pid), Number::SIGTERM);
            }
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

#[track_caller]
fn exited(pid: i32) {
    assert_eq!(waitpid(Pid::from_raw(pid), None), Ok(WaitStatus::Exited(Pid::from_raw(pid), 0)));
}

fn send(pid: i32, signal: Number) {
    kill(Pid::from_raw(pid), signal).unwrap();
}

fn a_reload_is_answered_and_keeps_the_worker() {
    let server = Server::start("reload", "");
    let first = server.ask();
    assert_eq!(first.generation, 1);
    for generation in 2..6 {
        assert_eq!(server.signal(Signal::Reload), (0, String::new()));
        assert_eq!(server.ask(), Answer { generation, ..first.clone() });
    }
    server.configure("refuse unknown directive \"x\"");
    let refused = (1, "it: [emerg] unknown directive \"x\"\nexplained\n".to_owned());
    assert_eq!(server.signal(Signal::Reload), refused);
    server.logged("[emerg] ");
    server.configure("refuse-late no such key");
    assert_eq!(server.signal(Signal::Reload), (1, "no such key\n".to_owned()));
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    server.configure(&format!("listen {}", taken.local_addr().unwrap()));
    let (code, text) = server.signal(Signal::Reload);
    assert_eq!(code, 1);
    assert!(text.contains("failed (98: Address already in use)\n"), "{text}");
    assert!(text.ends_with("it: [emerg] still could not bind()\n"), "{text}");
    assert_eq!(server.ask(), Answer { generation: 5, ..first.clone() });
    server.logged("signal 1 (SIGHUP) received from ");
    let title = std::fs::read(format!("/proc/{}/cmdline", server.master())).unwrap();
    assert!(title.starts_with(b"it: master process /"), "{}", String::from_utf8_lossy(&title));
    let title = std::fs::read(format!("/proc/{}/cmdline", first.pid)).unwrap();
    assert_eq!(title, b"it: worker process\0");
    let environment = std::fs::read(format!("/proc/{}/environ", first.pid)).unwrap();
    assert!(!environment.windows(6).any(|name| name == b"SECRET"));
    server.stop(Signal::Stop);
}

fn reloads_leave_nothing_open() {
    let server = Server::start("flat", "");
    let worker = server.ask().pid;
    let open = |pid: i32| std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    // The first reload has what every later one has.
    assert_eq!(server.signal(Signal::Reload).0, 0);
    let master = server.master();
    let before = open(master);
    for _ in 0..30 {
        assert_eq!(server.signal(Signal::Reload).0, 0);
    }
    assert_eq!(server.ask(), Answer { pid: worker, generation: 32, who: String::new() });
    until("descriptors in flight are closed", || open(master) <= before);
    server.stop(Signal::Quit);
}

fn a_dead_worker_is_replaced_and_no_connection_refused() {
    let server = Server::start("respawn", "");
    let mut last = server.ask();
    for _ in 0..3 {
        send(last.pid, Number::SIGKILL);
        // Whoever was in the queue of the dead worker's sockets waits for the next worker.
        let next = server.ask();
        assert_ne!(next.pid, last.pid);
        assert_eq!(next.generation, 1);
        server.logged(&format!("worker process {} exited on signal 9\n", last.pid));
        server.logged(&format!("start worker process {}\n", next.pid));
        last = next;
    }
    server.stop(Signal::Quit);
}

fn a_fatal_worker_stays_away_until_a_reload() {
    let server = Server::start("fatal", "");
    let first = server.ask();
    server.configure("fatal");
    let (code, text) = server.signal(Signal::Reload);
    assert_eq!((code, text.as_str()), (1, "the worker process was lost while loading the configuration\n"));
    let fatal = format!("worker process {} exited with fatal code 2 and cannot be respawned\n", first.pid);
    until("the master gives up", || server.log().contains(&fatal));
    server.configure("");
    assert_eq!(server.signal(Signal::Reload).0, 0);
    assert_eq!(server.ask().generation, 3);
    server.stop(Signal::Stop);
}

fn another_environment_takes_another_worker() {
    let server = Server::start("replace", "env WHO=one");
    let first = server.ask();
    assert_eq!(first.who, "one");
    server.configure("env WHO=two");
    assert_eq!(server.signal(Signal::Reload).0, 0);
    until("the old worker is gone", || {
        server.log().contains(&format!("worker process {} exited with code 0\n", first.pid))
    });
    let second = server.ask();
    assert_eq!((second.generation, second.who.as_str()), (2, "two"));
    assert_ne!(second.pid, first.pid);
    server.stop(Signal::Quit);
}

fn unix_sockets_and_pid_file_go_with_the_master() {
    let path = std::env::temp_dir().join(format!("weir-it-{}.sock", std::process::id()));
    let listen = format!("listen unix:{}", path.display());
    let server = Server::start("unix", &listen);
    assert_eq!(Answer::read(UnixStream::connect(&path).unwrap()).generation, 1);
    server.configure("");
    assert_eq!(server.signal(Signal::Reload).0, 0);
    assert!(!path.exists());
    server.configure(&listen);
    assert_eq!(server.signal(Signal::Reload).0, 0);
    assert_eq!(Answer::read(UnixStream::connect(&path).unwrap()).generation, 3);
    server.stop(Signal::Quit);
    assert!(!path.exists());
}

fn logs_are_reopened_in_both_processes() {
    let server = Server::start("reopen", "");
    server.ask();
    let rotated = server.folder.join("error.log.1");
    std::fs::rename(server.folder.join("error.log"), &rotated).unwrap();
    assert_eq!(server.signal(Signal::Reopen).0, 0);
    let new = server.folder.join("error.log");
    until("the worker writes to the new log", || {
        std::fs::read_to_string(&new).is_ok_and(|text| text.contains("worker reopened\n"))
    });
    let old = std::fs::read_to_string(&rotated).unwrap();
    assert!(old.ends_with(": reopening logs\n"), "{old}");
    server.stop(Signal::Quit);
}

/// Starts the upgrade and gives back the old and the new master.
fn upgrade(server: &Server) -> (i32, i32) {
    let old = server.master();
    send(old, Number::SIGUSR2);
    until("the new master has written its pid", || {
        pidfile::read(&pid_file(&server.folder)).is_ok_and(|pid| pid != old)
    });
    assert_eq!(pidfile::read(&server.folder.join("pid.oldbin")).unwrap(), old);
    (old, server.master())
}

fn an_upgrade_serves_all_along() {
    let server = Server::start("upgrade", "");
    let first = server.ask();
    let (old, new) = upgrade(&server);
    // The new master ignores another upgrade while its parent lives.
    send(new, Number::SIGUSR2);
    until("it says so", || server.log().contains("the changing binary signal is ignored"));
    send(old, Number::SIGQUIT);
    exited(old);
    assert!(!server.folder.join("pid.oldbin").exists());
    for _ in 0..20 {
        assert_ne!(server.ask().pid, first.pid);
    }
    assert_eq!(server.signal(Signal::Reload), (0, String::new()));
    assert_eq!(server.ask().generation, 2);
    assert_eq!(server.master(), new);
    server.stop(Signal::Quit);
}

fn an_upgrade_can_be_taken_back() {
    let server = Server::start("downgrade", "");
    let first = server.ask();
    let (old, new) = upgrade(&server);
    send(old, Number::SIGWINCH);
    until("the old worker is gone", || {
        server.log().contains(&format!("worker process {} exited with code 0\n", first.pid))
    });
    assert_ne!(server.ask().pid, first.pid);
    send(old, Number::SIGHUP);
    send(new, Number::SIGQUIT);
    until("the pid file is back", || pidfile::read(&pid_file(&server.folder)).is_ok_and(|pid| pid == old));
    server.logged(&format!("new binary process {new} exited with code 0\n"));
    assert_ne!(server.ask().pid, first.pid);
    server.stop(Signal::Quit);
}

fn a_worker_keeps_no_privileges() {
    let server = Server::start("privileges", "limits");
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.ask().pid)).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_ascii_whitespace().map(str::to_owned).collect::<Vec<String>>()
    };
    if privileges::privileged() {
        let account = privileges::default_account().unwrap();
        assert_eq!(field("Uid:"), vec![account.uid.to_string(); 4]);
        assert_eq!(field("Gid:"), vec![account.gid.to_string(); 4]);
        assert_eq!(field("Groups:"), [account.gid.to_string()]);
        assert_eq!(field("CapEff:"), ["0000000000000000"]);
    } else {
        assert_eq!(field("Uid:"), vec![nix::unistd::geteuid().to_string(); 4]);
    }
    let worker = server.ask().pid;
    let limits = std::fs::read_to_string(format!("/proc/{worker}/limits")).unwrap();
    let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert_eq!(files.split_ascii_whitespace().collect::<Vec<_>>()[3..5], ["99", "99"]);
    assert_eq!(std::fs::read_link(format!("/proc/{worker}/cwd")).unwrap(), PathBuf::from("/"));
    server.stop(Signal::Quit);
}

fn the_command_line_prints_and_exits_as_nginx() {
    let server = Server::start("options", "");
    server.ask();
    #[track_caller]
    fn check(server: &Server, options: &[&str], code: i32, stdout: &str, stderr: &str) {
        assert_eq!(server.call(options), (code, stdout.to_owned(), stderr.to_owned()), "{options:?}");
    }
    let conf = server.folder.join("conf").display().to_string();
    let ok = format!("it: the configuration file {conf} syntax is ok\n");
    let passed = format!("it: configuration file {conf} test is successful\n");
    let failed = format!("it: configuration file {conf} test failed\n");
    let log = server.folder.join("first.log").display().to_string();
    let file = ["-c", "conf", "-e", &log];
    let with = |more: &[&'static str]| -> Vec<&str> { [&file[..], more].concat() };
    check(&server, &with(&["-t"]), 0, "", &format!("{ok}{passed}"));
    check(&server, &with(&["-tq"]), 0, "", "");
    let dump = format!("# configuration file conf:\nlisten {}\n\n\n", server.address);
    check(&server, &with(&["-qT"]), 0, &dump, "");
    check(&server, &["-v"], 0, "", "weir version: weir/0.1.0\n");
    check(&server, &["-x"], 1, "", "it: invalid option: \"x\"\n");
    check(&server, &with(&["-s", "reload"]), 0, "", "");
    server.configure("refuse bad");
    check(&server, &with(&["-t"]), 1, "", &format!("it: [emerg] bad\nexplained\n{failed}"));
    check(&server, &with(&["-tq"]), 1, "", &format!("it: [emerg] bad\nexplained\n{failed}"));
    check(&server, &with(&["-s", "reload"]), 1, "", "it: [emerg] bad\nexplained\n");
    check(&server, &["-e", "/no/log", "-v", "-s", "reload"], 0, "", "weir version: weir/0.1.0\n");
    let (code, _, stderr) = server.call(&["-e", "/no/log", "-t"]);
    let alert = "it: [alert] could not open error log file: open() \"/no/log\" failed (2: No such file or directory)\n";
    assert!(code == 1 && stderr.starts_with(alert), "{stderr}");
    server.configure("");
    check(&server, &["-c", "conf", "--directives"], 1, "", "it: invalid option: \"-\"\n");
    server.stop(Signal::Quit);
}

fn a_second_server_fails_on_the_terminal() {
    let server = Server::start("second", "");
    let log = server.folder.join("first.log").display().to_string();
    let (code, stdout, stderr) = server.call(&["-e", &log]);
    let line = format!("it: [emerg] bind() to {} failed (98: Address already in use)\n", server.address);
    let last = "it: [emerg] still could not bind()\n";
    assert_eq!((code, stdout, stderr), (1, String::new(), format!("{}{last}", line.repeat(5))));
    server.ask();
    server.stop(Signal::Quit);
}
