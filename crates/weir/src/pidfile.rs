//! The pid file (`pid`): written by the master, moved aside while the executable is upgraded, removed at the end.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use weir_engine::errorlog::{Level, Log};

/// The longest text of a pid that is read, as in nginx: 20 digits and a line ending.
const LONGEST: u64 = 22;

/// Already logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failed;

/// Writes this process into the file; in a test of the configuration it is only opened, and created if missing.
///
/// # Errors
/// If the file cannot be opened or written, as `open() "…" failed` at level emerg.
pub fn create(path: &Path, test: bool, log: &Log) -> Result<(), Failed> {
    let opened = File::options().read(true).write(true).create(true).truncate(!test).mode(0o644).open(path);
    let mut file = opened.map_err(|error| {
        log.write_error(Level::Emerg, &error, format_args!("open() \"{}\" failed", path.display()));
        Failed
    })?;
    if test {
        return Ok(());
    }
    writeln!(file, "{}", std::process::id()).map_err(|error| {
        log.write_error(Level::Crit, &error, format_args!("pwrite() \"{}\" failed", path.display()));
        Failed
    })
}

/// Removes the file; a failure is only worth an alert.
pub fn remove(path: &Path, log: &Log) {
    if let Err(error) = fs::remove_file(path) {
        log.write_error(Level::Alert, &error, format_args!("unlink() \"{}\" failed", path.display()));
    }
}

/// Where the file stands while a new executable has the name.
pub fn old_name(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".oldbin");
    name.into()
}

/// Why there is no process to signal.
#[derive(Debug)]
pub enum Unreadable {
    Open(io::Error),
    Read(io::Error),
    /// What stood there instead of a number.
    Invalid(Vec<u8>),
}

impl Unreadable {
    /// Logs it in nginx's words.
    pub fn write(&self, path: &Path, log: &Log) {
        let path = path.display();
        match self {
            Unreadable::Open(error) => {
                log.write_error(Level::Error, error, format_args!("open() \"{path}\" failed"));
            }
            Unreadable::Read(error) => {
                log.write_error(Level::Crit, error, format_args!("pread() \"{path}\" failed"));
            }
            Unreadable::Invalid(text) => {
                let text = String::from_utf8_lossy(text);
                log.write(Level::Error, format_args!("invalid PID number \"{text}\" in \"{path}\""));
            }
        }
    }
}

/// The process named in the file.
///
/// # Errors
/// See [`Unreadable`]. Zero is refused, too: a signal to it would go to our own process group.
pub fn read(path: &Path) -> Result<i32, Unreadable> {
    let file = File::open(path).map_err(Unreadable::Open)?;
    let mut text = Vec::new();
    file.take(LONGEST).read_to_end(&mut text).map_err(Unreadable::Read)?;
    while let Some(b'\r' | b'\n') = text.last() {
        text.pop();
    }
    let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    let number =
        if digits { std::str::from_utf8(&text).ok().and_then(|text| text.parse().ok()) } else { None };
    match number {
        Some(pid) if pid > 0 => Ok(pid),
        _ => Err(Unreadable::Invalid(text)),
    }
}

/// Renames between the name and its `.oldbin`.
///
/// # Errors
/// Those of `rename(2)`.
pub fn rename(from: &Path, to: &Path) -> Result<(), Errno> {
    fs::rename(from, to).map_err(|error| error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Folder, memory};

    #[test]
    fn the_file_holds_this_process_until_it_is_removed() {
        let folder = Folder::new();
        let (log, lines) = memory(Level::Info);
        let path = folder.path("pid");
        fs::write(&path, "99999999999\n").unwrap();
        create(&path, false, &log).unwrap();
        assert_eq!(read(&path).unwrap(), std::process::id() as i32);
        remove(&path, &log);
        assert!(lines.take().is_empty());
        remove(&path, &log);
        assert_eq!(
            lines.take(),
            [format!("[alert] unlink() \"{}\" failed (2: No such file or directory)", path.display())]
        );
    }

    #[test]
    fn a_test_leaves_the_content_alone() {
        let folder = Folder::new();
        let (log, lines) = memory(Level::Info);
        let path = folder.path("pid");
        create(&path, true, &log).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"");
        fs::write(&path, "12\n").unwrap();
        create(&path, true, &log).unwrap();
        assert_eq!(read(&path).unwrap(), 12);
        let missing = folder.path("no/pid");
        assert_eq!(create(&missing, true, &log), Err(Failed));
        let text = format!("[emerg] open() \"{}\" failed (2: No such file or directory)", missing.display());
        assert_eq!(lines.take(), [text]);
    }

    #[test]
    fn what_is_no_pid_is_quoted() {
        let folder = Folder::new();
        let path = folder.path("pid");
        for (text, quoted) in
            [("", ""), ("\n", ""), ("abc\n", "abc"), ("-1", "-1"), ("0", "0"), ("12 ", "12 ")]
        {
            fs::write(&path, text).unwrap();
            let (log, lines) = memory(Level::Info);
            read(&path).unwrap_err().write(&path, &log);
            let text = format!("[error] invalid PID number \"{quoted}\" in \"{}\"", path.display());
            assert_eq!(lines.take(), [text]);
        }
        for text in ["123", "123\n", "123\r\n"] {
            fs::write(&path, text).unwrap();
            assert_eq!(read(&path).unwrap(), 123);
        }
    }

    #[test]
    fn the_old_name_is_a_suffix() {
        assert_eq!(old_name(Path::new("/run/nginx.pid")), Path::new("/run/nginx.pid.oldbin"));
    }
}
