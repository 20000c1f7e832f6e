//! The server under test: a process of its own, with its own prefix.

use crate::Result;
use crate::clock::Deadline;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

/// Ends its whole process group when it is dropped.
pub struct Server {
    child: Child,
    prefix: PathBuf,
}

impl Server {
    /// Starts in the foreground; ready once the pid file is written, which is after all sockets are bound.
    pub fn start(prefix: &Path, deadline: Deadline) -> Result<Self> {
        let errors = prefix.join("stderr");
        let child = Command::new(prefix.join("nginx"))
            .arg("-p")
            .arg(format!("{}/", prefix.display()))
            .args(["-e", "logs/error.log", "-c", "nginx.conf", "-g", "daemon off; pid nginx.pid;"])
            .current_dir(prefix)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&errors)?)
            .process_group(0)
            .spawn()?;
        let mut server = Self { child, prefix: prefix.to_owned() };
        let pid_file = prefix.join("nginx.pid");
        let mut gone = None;
        let ready = deadline.poll(|| {
            gone = server.child.try_wait().ok().flatten();
            gone.is_some() || std::fs::read(&pid_file).is_ok_and(|pid| pid.ends_with(b"\n"))
        });
        match gone {
            Some(status) => Err(format!("the server ended at start: {status}\n{}", server.said()).into()),
            None if !ready => Err(format!("the server wrote no pid file\n{}", server.said()).into()),
            None => Ok(server),
        }
    }

    /// What it printed and logged, for a message.
    fn said(&self) -> String {
        ["stderr", "logs/error.log"]
            .iter()
            .filter_map(|f| std::fs::read(self.prefix.join(f)).ok())
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .collect()
    }

    pub fn signal(&self, name: &str) -> Result<()> {
        let signal: Signal = format!("SIG{name}").parse().map_err(|_| format!("no signal {name}"))?;
        Ok(kill(self.pid(), signal)?)
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    pub fn wait(&mut self, deadline: Deadline) -> Result<ExitStatus> {
        let mut status = None;
        deadline.poll(|| {
            status = self.child.try_wait().ok().flatten();
            status.is_some()
        });
        status.ok_or_else(|| "the server did not end".into())
    }

    /// A fast shutdown, as at the end of every case.
    pub fn stop(mut self, deadline: Deadline) -> Result<()> {
        self.signal("TERM")?;
        let status = self.wait(deadline)?;
        if status.success() { Ok(()) } else { Err(format!("the server ended with {status}").into()) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The group outlives its leader if a worker does, so this is right after an orderly end too;
        // without any process left it fails, as it should.
        let _ = killpg(self.pid(), Signal::SIGKILL);
        let _ = self.child.wait();
    }
}
