//! Going into the background (`daemon on`), before there is a thread or a runtime.

use std::fs::File;

use nix::sys::stat::{Mode, umask};
use nix::unistd;
use weir_engine::errorlog::{Level, Log, LogFile};

/// Already logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failed;

/// Goes on in a child with its own session, the null device as standard input and output, and no umask; the calling
/// process exits with 0. The working folder stays, as in nginx. Standard error stays until [`redirect_stderr`].
///
/// Only the calling thread goes on, so nothing may have started another.
///
/// # Errors
/// If the process cannot be forked or the null device not be opened.
pub fn detach(log: &Log) -> Result<(), Failed> {
    let keep_folder = true;
    let keep_streams = true;
    unistd::daemon(keep_folder, keep_streams).map_err(|error| {
        log.write_errno(Level::Emerg, error, "fork() failed");
        Failed
    })?;
    umask(Mode::empty());
    let null = File::options().read(true).write(true).open("/dev/null").map_err(|error| {
        log.write_error(Level::Emerg, &error, "open(\"/dev/null\") failed");
        Failed
    })?;
    let moved = [("STDIN", unistd::dup2_stdin(&null)), ("STDOUT", unistd::dup2_stdout(&null))];
    for (name, result) in moved {
        result.map_err(|error| {
            log.write_errno(Level::Emerg, error, format_args!("dup2({name}) failed"));
            Failed
        })?;
    }
    Ok(())
}

/// Sends standard error to the error log, where what libraries print belongs once nobody watches the terminal.
///
/// # Errors
/// If the descriptor cannot be duplicated.
pub fn redirect_stderr(to: &LogFile, log: &Log) -> Result<(), Failed> {
    let moved = to.duplicate().and_then(|file| Ok(unistd::dup2_stderr(file)?));
    moved.map_err(|error| {
        log.write_error(Level::Alert, &error, "dup2(STDERR_FILENO) failed");
        Failed
    })
}
