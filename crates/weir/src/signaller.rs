//! `-s`: sends a signal to the running master and, for a reload, waits for how it ends.

use std::io::{self, Write};
use std::path::Path;

use nix::sys::signal;
use nix::unistd::Pid;
use weir_engine::errorlog::{Level, Log};

use crate::args::Signal;
use crate::master::machine::Signal as Master;
use crate::pidfile;
use crate::verdict::{Verdict, Waiting};

/// Sends the signal to the process of the pid file and gives back the exit code. What went wrong is logged in nginx's
/// words; the diagnostics of a refused configuration go to `stderr`.
pub fn send(asked: Signal, pid_file: &Path, log: &Log, stderr: &mut impl Write) -> i32 {
    log.write(Level::Notice, "signal process started");
    let pid = match pidfile::read(pid_file) {
        Ok(pid) => pid,
        Err(unreadable) => {
            unreadable.write(pid_file, log);
            return 1;
        }
    };
    let (number, waiting) = match asked {
        Signal::Stop => (Master::Terminate, None),
        Signal::Quit => (Master::Quit, None),
        Signal::Reopen => (Master::Reopen, None),
        Signal::Reload => (Master::Reload, Waiting::on(pid)),
    };
    let number = number.number();
    let sent = signal::Signal::try_from(number).and_then(|signal| signal::kill(Pid::from_raw(pid), signal));
    if let Err(error) = sent {
        log.write_errno(Level::Alert, error, format_args!("kill({pid}, {number}) failed"));
        return 1;
    }
    match waiting.map(Waiting::wait) {
        None | Some(Verdict::Accepted) => 0,
        Some(Verdict::Refused(diagnostics)) => {
            // The exit code says it as well.
            let _: io::Result<()> = stderr.write_all(&diagnostics);
            1
        }
        Some(Verdict::Unknown) => {
            log.write(Level::Alert, format_args!("process {pid} did not say how the reload ended"));
            1
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Folder, memory};

    #[test]
    fn what_cannot_be_signalled_is_logged() {
        let folder = Folder::new();
        let path = folder.path("pid");
        #[track_caller]
        fn check(path: &Path, expected: &str) {
            let (log, lines) = memory(Level::Info);
            let mut stderr = Vec::new();
            assert_eq!(send(Signal::Reload, path, &log, &mut stderr), 1);
            let path = path.display().to_string();
            let expected = expected.replace("PATH", &path);
            assert_eq!(lines.take(), ["[notice] signal process started".to_owned(), expected]);
        }
        check(&path, "[error] open() \"PATH\" failed (2: No such file or directory)");
        std::fs::write(&path, "abc").unwrap();
        check(&path, "[error] invalid PID number \"abc\" in \"PATH\"");
        // Above the largest pid that Linux gives.
        std::fs::write(&path, "4194305\n").unwrap();
        check(&path, "[alert] kill(4194305, 1) failed (3: No such process)");
    }
}
