//! Starting the worker and the executable that follows in an upgrade, each with exactly the environment and the
//! descriptors that it shall have.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use nix::unistd::{self, AccessFlags, access};
use socket2::{Domain, SockRef, Type};

use crate::sockets::{INHERITED, inheritance};

/// What follows the program's name in the title of a worker; it is also how the executable knows that it is one.
const WORKER: &str = ": worker process";

/// Names and values.
pub type Variables = Vec<(OsString, OsString)>;

/// The environment of workers: `TZ` and what `env` names, either with a value or with the one it has in `ours`.
pub fn environment(directives: &[Vec<u8>], ours: &[(OsString, OsString)]) -> Variables {
    let mut variables = Variables::new();
    let mut add = |directive: &[u8]| {
        let (name, value) = match directive.iter().position(|&byte| byte == b'=') {
            Some(at) => (&directive[..at], Some(OsString::from_vec(directive[at + 1..].to_vec()))),
            None => (directive, None),
        };
        let name = OsStr::from_bytes(name);
        let value =
            value.or_else(|| ours.iter().find(|(other, _)| other == name).map(|(_, value)| value.clone()));
        // The first one counts, as for getenv(3).
        if let Some(value) = value
            && !variables.iter().any(|(other, _)| other == name)
        {
            variables.push((name.to_owned(), value));
        }
    };
    directives.iter().for_each(|directive| add(directive));
    add(b"TZ");
    variables
}

/// Starts a worker of this same executable, whatever its file is by now, with `channel` as its standard input.
///
/// # Errors
/// Those of `fork(2)` and `execve(2)`.
pub fn worker(program: &str, variables: &Variables, channel: OwnedFd) -> io::Result<i32> {
    let child = Command::new("/proc/self/exe")
        .arg0(format!("{program}{WORKER}"))
        .env_clear()
        .envs(variables.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::from(channel))
        .spawn()?;
    Ok(child.id() as i32)
}

/// The name before the colon if this process was started by [`worker`].
pub fn worker_program(arguments: &[Vec<u8>]) -> Option<String> {
    let [title] = arguments else { return None };
    let program = title.strip_suffix(WORKER.as_bytes())?;
    Some(String::from_utf8_lossy(program).into_owned())
}

/// The channel of a worker, which leaves the null device as standard input.
///
/// # Errors
/// If standard input is no unix stream socket, which it is only for a worker.
pub fn take_channel() -> io::Result<UnixStream> {
    let stdin = io::stdin();
    let socket = SockRef::from(&stdin);
    if socket.domain()? != Domain::UNIX || socket.r#type()? != Type::STREAM {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "standard input is not a channel"));
    }
    let channel = stdin.as_fd().try_clone_to_owned()?;
    unistd::dup2_stdin(File::open("/dev/null")?)?;
    Ok(channel.into())
}

/// Starts the executable of the same name as this one with the same arguments and the listening sockets. A name without
/// a slash is looked for in `path`, as the shell did that started this one; nginx would not find it.
///
/// # Errors
/// Those of `dup(2)`, `fork(2)` and `execve(2)`.
pub fn new_binary(
    arguments: &[Vec<u8>],
    variables: &Variables,
    path: &OsStr,
    sockets: impl Iterator<Item = Arc<OwnedFd>>,
) -> io::Result<i32> {
    let Some((name, arguments)) = arguments.split_first() else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    // Duplicates are not closed on exec; here they live until the new process has its own.
    let passed = sockets.map(|socket| unistd::dup(&*socket)).collect::<Result<Vec<OwnedFd>, _>>()?;
    let child = Command::new(located(name, path))
        .arg0(OsStr::from_bytes(name))
        .args(arguments.iter().map(|argument| OsStr::from_bytes(argument)))
        .env_clear()
        .envs(variables.iter().map(|(name, value)| (name, value)))
        .env(INHERITED, inheritance(passed.iter().map(|socket| socket.as_raw_fd())))
        .spawn()?;
    Ok(child.id() as i32)
}

fn located(name: &[u8], path: &OsStr) -> PathBuf {
    let name = Path::new(OsStr::from_bytes(name));
    if name.components().count() > 1 || name.is_absolute() || name.starts_with(".") {
        return name.to_owned();
    }
    let mut candidates = std::env::split_paths(path).map(|folder| folder.join(name));
    candidates.find(|file| access(file, AccessFlags::X_OK).is_ok()).unwrap_or_else(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(directives: &[&str], expected: &[(&str, &str)]) {
        let pair = |&(name, value): &(&str, &str)| (OsString::from(name), OsString::from(value));
        let ours: Variables = [("PATH", "/bin"), ("TZ", "UTC"), ("SECRET", "x")].iter().map(pair).collect();
        let directives: Vec<Vec<u8>> = directives.iter().map(|text| text.as_bytes().to_vec()).collect();
        let expected: Variables = expected.iter().map(pair).collect();
        assert_eq!(environment(&directives, &ours), expected);
    }

    #[test]
    fn only_the_time_zone_and_what_is_named_is_passed_on() {
        check(&[], &[("TZ", "UTC")]);
        check(&["PATH"], &[("PATH", "/bin"), ("TZ", "UTC")]);
        check(&["A=b=c", "NONE", "EMPTY="], &[("A", "b=c"), ("EMPTY", ""), ("TZ", "UTC")]);
        check(&["TZ=CET"], &[("TZ", "CET")]);
        check(&["A=1", "A=2"], &[("A", "1"), ("TZ", "UTC")]);
    }

    #[test]
    fn a_bare_name_is_looked_for_where_the_shell_found_it() {
        let path = OsStr::new("/no/such/folder:/bin");
        assert_eq!(located(b"sh", path), Path::new("/bin/sh"));
        for name in ["./sh", "a/sh", "/x/sh", "no-such-program"] {
            assert_eq!(located(name.as_bytes(), path), Path::new(name));
        }
    }

    #[test]
    fn a_worker_knows_itself_by_its_title() {
        let of = |words: &[&str]| {
            worker_program(&words.iter().map(|word| word.as_bytes().to_vec()).collect::<Vec<_>>())
        };
        assert_eq!(of(&["nginx: worker process"]), Some("nginx".into()));
        assert_eq!(of(&["nginx"]), None);
        assert_eq!(of(&["nginx: worker process", "-t"]), None);
    }
}
