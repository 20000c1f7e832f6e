//! Files that are made in one place and moved to another, and calls of the file system that fail, as the log tells them.

use std::fmt;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use nix::errno::Errno;

/// A call that failed: `CALL "PATH" failed`.
#[derive(Debug)]
pub struct Failed {
    pub call: &'static str,
    pub path: PathBuf,
    /// Where a call has two of them.
    to: Option<PathBuf>,
    pub error: io::Error,
}

impl Failed {
    pub fn of(call: &'static str, path: impl Into<PathBuf>, error: io::Error) -> Self {
        Self { call, path: path.into(), to: None, error }
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} \"{}\"", self.call, self.path.display())?;
        if let Some(to) = &self.to {
            write!(f, " to \"{}\"", to.display())?;
        }
        f.write_str(" failed")
    }
}

/// A file that is to be somewhere else.
#[derive(Clone, Debug)]
pub struct Moving {
    pub from: PathBuf,
    pub to: PathBuf,
    pub access: Option<u32>,
    /// Seconds since the epoch.
    pub modified: Option<i64>,
    /// Directories that are missing are made, and are accessible as a file of this mode is.
    pub create_path: Option<u32>,
}

/// Whoever may read a directory may search it.
pub fn of_directory(access: u32) -> u32 {
    access | (access & 0o444) >> 2
}

impl Moving {
    /// # Errors
    /// Those of the file system.
    pub fn run(&self) -> Result<(), Failed> {
        let Self { from, to, .. } = self;
        if let Some(seconds) = self.modified.and_then(|seconds| u64::try_from(seconds).ok()) {
            let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            let set = File::open(from).and_then(|file| file.set_modified(time));
            set.map_err(|error| Failed::of("utimes()", from, error))?;
        }
        if let Some(access) = self.access {
            let set = fs::set_permissions(from, Permissions::from_mode(access));
            set.map_err(|error| Failed::of("chmod()", from, error))?;
        }
        let mut renamed = fs::rename(from, to);
        if let (Err(error), Some(access), Some(folder)) = (&renamed, self.create_path, to.parent())
            && error.kind() == io::ErrorKind::NotFound
        {
            let made = DirBuilder::new().recursive(true).mode(of_directory(access)).create(folder);
            made.map_err(|error| Failed::of("mkdir()", to, error))?;
            renamed = fs::rename(from, to);
        }
        match renamed {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
                copy(from, to)?;
                fs::remove_file(from).map_err(|error| Failed::of("unlink()", from, error))
            }
            Err(error) => Err(Failed { to: Some(to.clone()), ..Failed::of("rename()", from, error) }),
        }
    }
}

/// Copies a file with its mode and time, under a name of its own until it is whole.
///
/// # Errors
/// Those of the file system.
pub fn copy(from: &Path, to: &Path) -> Result<(), Failed> {
    static NUMBER: AtomicU32 = AtomicU32::new(1);
    let mut name = to.as_os_str().to_owned();
    name.push(format!(
        ".{:05}{:05}",
        std::process::id() % 100_000,
        NUMBER.fetch_add(1, Ordering::Relaxed) % 100_000
    ));
    let temporary = PathBuf::from(name);
    let copied = copy_contents(from, &temporary, to)
        .and_then(|()| fs::rename(&temporary, to).map_err(|error| Failed::of("rename()", &temporary, error)));
    if copied.is_err() {
        // It may not even have come about.
        let _ = fs::remove_file(&temporary);
    }
    copied
}

/// `shown` is what messages call it.
fn copy_contents(from: &Path, to: &Path, shown: &Path) -> Result<(), Failed> {
    // Without O_NONBLOCK opening a pipe would wait for its writer.
    let source = File::options().read(true).custom_flags(nix::libc::O_NONBLOCK).open(from);
    let mut source = source.map_err(|error| Failed::of("open()", from, error))?;
    let metadata = source.metadata().map_err(|error| Failed::of("fstat()", from, error))?;
    if !metadata.is_file() {
        return Err(Failed::of("read()", from, Errno::EINVAL.into()));
    }
    let target = File::options().write(true).create_new(true).mode(metadata.mode() & 0o777).open(to);
    let mut target = target.map_err(|error| Failed::of("open()", shown, error))?;
    io::copy(&mut source, &mut target).map_err(|error| Failed::of("write()", shown, error))?;
    let modified = metadata.modified().and_then(|time| target.set_modified(time));
    modified.map_err(|error| Failed::of("utimes()", shown, error))
}
