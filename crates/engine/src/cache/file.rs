//! A cached answer as a file, in nginx's own layout: a header of fixed size, the key in a line of its own, the answer's head
//! as it was received, the body.
//!
//! The layout is kept so that scripts which find files by the MD5 of their keys and read the line `KEY: …` go on to work, and
//! so that what nginx cached is still there for weir.

use std::fs::{DirBuilder, File, Metadata};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use weir_ir::program::PathSpec;

use super::Key;
use crate::disk::Caller;
use crate::files::{Failed, Moving};
use crate::temp_file::TempFile;

/// Of the layout; files of another one are not ours to read.
const VERSION: u64 = 5;
/// Bytes of the header of fixed size.
pub const FIXED: usize = 336;
/// Bytes of a file that are read at first.
const FIRST: usize = 4096;
const KEY_LINE: &[u8] = b"\nKEY: ";
/// Bytes of an `ETag`, and of a `Vary`, that the header has room for.
pub const ROOM: usize = 128;

/// What is known of a cached answer beside its head and its body. Times are seconds since the epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Until then it is fresh.
    pub valid: i64,
    /// Seconds that it may be used behind that time while it is updated, and while it cannot be.
    pub updating: i64,
    pub error: i64,
    /// Of the answer; −1 where it has none.
    pub last_modified: i64,
    /// When it was received.
    pub date: i64,
    pub crc32: u32,
    /// Where the answer's head begins, and its body.
    pub head_start: u16,
    pub body_start: u16,
    pub etag: Vec<u8>,
    pub vary: Vec<u8>,
    /// Of the request's fields that `vary` names.
    pub variant: Key,
}

/// Where the head begins behind a key of that length.
pub fn head_start(key: usize) -> usize {
    FIXED + KEY_LINE.len() + key + 1
}

impl Header {
    fn fixed(&self) -> [u8; FIXED] {
        let mut out = [0; FIXED];
        let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &VERSION.to_ne_bytes());
        for (index, time) in
            [self.valid, self.updating, self.error, self.last_modified, self.date].iter().enumerate()
        {
            put(8 + index * 8, &time.to_ne_bytes());
        }
        put(48, &self.crc32.to_ne_bytes());
        put(54, &self.head_start.to_ne_bytes());
        put(56, &self.body_start.to_ne_bytes());
        for (at, text) in [(58, &self.etag), (187, &self.vary)] {
            // What has no room is left out.
            if text.len() <= ROOM {
                put(at, &[text.len() as u8]);
                put(at + 1, text);
            }
        }
        put(316, &self.variant);
        out
    }

    /// Reads the header of fixed size; `None` where it is none of this layout.
    fn of_fixed(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; FIXED] = bytes.first_chunk()?;
        let number = |at: usize| bytes[at..at + 8].try_into().map_or(0, i64::from_ne_bytes);
        let short = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        let text = |at: usize| Some(bytes.get(at + 1..at + 1 + usize::from(bytes[at]))?.to_vec());
        if number(0) != VERSION as i64 || usize::from(bytes[187]) > ROOM || usize::from(bytes[58]) > ROOM {
            return None;
        }
        Some(Self {
            valid: number(8),
            updating: number(16),
            error: number(24),
            last_modified: number(32),
            date: number(40),
            crc32: bytes[48..52].try_into().map_or(0, u32::from_ne_bytes),
            head_start: short(54),
            body_start: short(56),
            etag: text(58)?,
            vary: text(187)?,
            variant: bytes[316..332].try_into().ok()?,
        })
    }

    /// All that stands before the body.
    pub fn write(&self, key: &[u8], head: &[u8]) -> Vec<u8> {
        [&self.fixed(), KEY_LINE, key, b"\n", head].concat()
    }
}

/// The path of a key's file.
pub fn path(below: &PathSpec, key: &Key) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = |byte: &u8| [byte >> 4, byte & 15].map(|digit| char::from(DIGITS[usize::from(digit)]));
    let name: String = key.iter().flat_map(digits).collect();
    crate::temp_file::below(below, &name)
}

/// The key that a file's name stands for.
pub fn key_of(name: &[u8]) -> Option<Key> {
    let name = name.get(name.len().checked_sub(32)?..)?;
    let mut key = Key::default();
    for (byte, pair) in key.iter_mut().zip(name.chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(key)
}

/// Temporary files in a cache's own folders end in a dot and ten digits.
pub fn is_temporary(name: &[u8]) -> bool {
    name.len() > 42 && name[name.len() - 11] == b'.'
}

/// A file that was opened, with all that stands before its body.
#[derive(Debug)]
pub struct Opened {
    pub file: Arc<File>,
    pub length: u64,
    pub id: u64,
    pub disk: u64,
    pub header: Header,
    /// What stands before the body; with that, where it came along.
    pub start: Vec<u8>,
    /// When the file was changed last, in seconds and nanoseconds since the epoch.
    changed: (i64, i64),
}

impl Opened {
    /// Whether it is the file of that key.
    fn is_of(&self, key: &[u8], crc32: u32) -> bool {
        let start = head_start(key.len());
        self.header.crc32 == crc32
            && usize::from(self.header.head_start) == start
            && self.start[FIXED + KEY_LINE.len()..].starts_with(key)
    }

    /// Whether one that was kept open is that key's and as it was: neither removed, nor replaced, nor written to.
    pub fn is_still(&self, key: &[u8], crc32: u32) -> bool {
        let same = |about: &Metadata| {
            about.nlink() > 0 && about.len() == self.length && changed(about) == self.changed
        };
        self.is_of(key, crc32) && self.file.metadata().as_ref().is_ok_and(same)
    }
}

fn changed(about: &Metadata) -> (i64, i64) {
    (about.ctime(), about.ctime_nsec())
}

/// Why a file is not to be used.
#[derive(Debug)]
pub enum Unusable {
    /// There is none.
    Absent,
    /// It is not at hand for who may not wait.
    Waits,
    Failed(io::Error),
    /// It is not what its name says, for this reason.
    Foreign(&'static str),
}

impl From<io::Error> for Unusable {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(nix::libc::ENOENT | nix::libc::ENOTDIR) => Self::Absent,
            _ if error.kind() == io::ErrorKind::WouldBlock => Self::Waits,
            _ => Self::Failed(error),
        }
    }
}

/// Opens the file of a key.
///
/// # Errors
/// There is none, or it is not that key's, or the caller would have to wait.
pub fn open(path: &str, key: &[u8], crc32: u32, caller: Caller) -> Result<Opened, Unusable> {
    let file = caller.open(Path::new(path))?;
    let about = file.metadata()?;
    let length = about.len();
    let head_start = head_start(key.len());
    // Most heads are in the first read, and small bodies.
    let first = usize::try_from(length).map_or(FIRST, |length| length.min(FIRST.max(head_start)));
    let mut start = vec![0; first];
    let read = fill(&file, &mut start, 0, caller)?;
    start.truncate(read);
    if read < head_start {
        return Err(Unusable::Foreign("is too small"));
    }
    let header = Header::of_fixed(&start).ok_or(Unusable::Foreign("version mismatch"))?;
    let body_start = usize::from(header.body_start);
    let (id, disk, changed) = (about.ino(), disk(&about), changed(&about));
    let mut opened = Opened { file: Arc::new(file), length, id, disk, header, start, changed };
    if !opened.is_of(key, crc32) {
        return Err(Unusable::Foreign("has md5 collision"));
    }
    let start = &mut opened.start;
    if body_start < head_start || body_start as u64 > length {
        return Err(Unusable::Foreign("has too long header"));
    }
    if start.len() < body_start {
        let read = start.len();
        start.resize(body_start, 0);
        let rest = fill(&opened.file, &mut start[read..], read as u64, caller)?;
        if read + rest < body_start {
            return Err(Unusable::Foreign("is too small"));
        }
    }
    if (start.len() as u64) < length {
        start.truncate(body_start);
    }
    Ok(opened)
}

/// The key that stands in a file, and when its answer came.
///
/// # Errors
/// It cannot be read, or has none.
pub fn key_and_date(path: &str) -> io::Result<(Vec<u8>, i64)> {
    let file = File::open(path)?;
    let mut start = vec![0; 4096];
    let read = fill(&file, &mut start, 0, Caller::Pool)?;
    start.truncate(read);
    let none = || io::Error::from(io::ErrorKind::InvalidData);
    let header = Header::of_fixed(&start).ok_or_else(none)?;
    let end = usize::from(header.head_start);
    if start.len() < end {
        let read = start.len();
        start.resize(end, 0);
        fill(&file, &mut start[read..], read as u64, Caller::Pool)?;
    }
    // The line ends before the head.
    let key = start.get(FIXED + KEY_LINE.len()..end.saturating_sub(1)).ok_or_else(none)?;
    Ok((key.to_vec(), header.date))
}

fn fill(file: &File, into: &mut [u8], from: u64, caller: Caller) -> io::Result<usize> {
    let mut read = 0;
    while read < into.len() {
        match caller.read(file, &mut into[read..], from + read as u64) {
            Ok(0) => break,
            Ok(n) => read += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(read)
}

/// Bytes that a file takes on its disk.
fn disk(about: &Metadata) -> u64 {
    let taken = about.blocks() * 512;
    let length = about.len();
    // Some file systems tell of blocks that they only mean to use.
    if length < taken && taken < length + 8 * about.blksize() { taken } else { length }
}

/// Bytes that a file takes on its disk, by its name.
pub fn disk_of(path: &Path) -> io::Result<(u64, u64)> {
    let about = path.metadata()?;
    Ok((about.len(), disk(&about)))
}

/// Writes another header into a file, unless it was replaced meanwhile.
///
/// # Errors
/// Those of the file system.
pub fn update(path: &str, id: u64, length: u64, header: &Header) -> io::Result<()> {
    let file = match File::options().read(true).write(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let about = file.metadata()?;
    let mut fixed = [0; FIXED];
    if about.ino() != id || about.len() != length || fill(&file, &mut fixed, 0, Caller::Pool)? < FIXED {
        return Ok(());
    }
    let same = |found: Header| {
        (found.last_modified, found.crc32, found.head_start, found.body_start)
            == (header.last_modified, header.crc32, header.head_start, header.body_start)
    };
    if Header::of_fixed(&fixed).is_some_and(same) {
        file.write_all_at(&header.fixed(), 0)?;
    }
    Ok(())
}

/// What became of a file that was written.
#[derive(Clone, Copy, Debug)]
pub struct Stored {
    pub id: u64,
    pub disk: u64,
}

/// Makes a temporary file beside the one of that path.
///
/// # Errors
/// Those of the file system.
pub fn beside(path: &str) -> Result<TempFile, Failed> {
    match TempFile::beside(path) {
        Err(failed) if failed.error.kind() == io::ErrorKind::NotFound => {
            let folder = Path::new(path).parent().unwrap_or(Path::new("/"));
            let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
            made.map_err(|error| Failed::of("mkdir()", folder, error))?;
            TempFile::beside(path)
        }
        made => made,
    }
}

/// Puts a file that is whole in its place, over another that may be there.
///
/// # Errors
/// Those of the file system.
pub fn place(file: &TempFile, path: &str) -> Result<Stored, Failed> {
    let (from, to) = (PathBuf::new(), path.into());
    file.place(Moving { from, to, access: None, modified: None, create_path: Some(0o600) })?;
    let about = Path::new(path).metadata().map_err(|error| Failed::of("stat()", path, error))?;
    Ok(Stored { id: about.ino(), disk: disk(&about) })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn header(key: &[u8], head: &[u8]) -> Header {
        let start = head_start(key.len());
        Header {
            valid: 1_700_000_000,
            updating: 1,
            error: 2,
            last_modified: -1,
            date: 1_600_000_000,
            crc32: 7,
            head_start: start as u16,
            body_start: (start + head.len()) as u16,
            etag: b"\"tag\"".to_vec(),
            vary: b"Accept".to_vec(),
            variant: [9; 16],
        }
    }

    #[test]
    fn names() {
        let below = PathSpec { path: "/c".into(), levels: [1, 2, 0], position: None };
        let key = crate::md5::Md5::of(b"http://a/");
        let path = path(&below, &key);
        let name = path.rsplit('/').next().unwrap();
        assert_eq!(path, format!("/c/{}/{}/{name}", &name[31..], &name[29..31]));
        assert_eq!(key_of(path.as_bytes()), Some(key));
        assert_eq!(key_of(b"/c/short"), None);
        assert_eq!(key_of(&[b'x'; 40]), None);
        assert!(is_temporary(format!("{path}.0000000001").as_bytes()) && !is_temporary(path.as_bytes()));
    }

    #[test]
    fn what_is_written_is_read_and_nothing_else() {
        let folder = std::env::temp_dir().join(format!("weir-cache-file-{}", std::process::id()));
        let path = folder.join("a/name").to_string_lossy().into_owned();
        let (key, head) = (&b"http://a/"[..], &b"HTTP/1.1 200 OK\r\n\r\n"[..]);
        let header = header(key, head);
        let made = beside(&path).unwrap();
        (&made.file).write_all(&header.write(key, head)).unwrap();
        (&made.file).write_all(b"body").unwrap();
        assert!(matches!(open(&path, key, 7, Caller::Pool), Err(Unusable::Absent)));
        let stored = place(&made, &path).unwrap();
        let opened = open(&path, key, 7, Caller::Pool).unwrap();
        assert_eq!((&opened.header, opened.id), (&header, stored.id));
        assert!(
            opened.start.ends_with(&[head, b"body"].concat()) && opened.length == opened.start.len() as u64
        );
        // Another key with the same digest, another sum, a file cut short, a file of something else.
        assert!(matches!(
            open(&path, b"http://b/", 7, Caller::Pool),
            Err(Unusable::Foreign("has md5 collision"))
        ));
        assert!(matches!(open(&path, key, 8, Caller::Pool), Err(Unusable::Foreign("has md5 collision"))));
        // What is kept open is that file and no other, for as long as it stays as it is.
        let replaced = open(&path, key, 7, Caller::Pool).unwrap();
        let again = beside(&path).unwrap();
        (&again.file).write_all(&header.write(key, head)).unwrap();
        (&again.file).write_all(b"body").unwrap();
        assert!(
            replaced.is_still(key, 7) && !replaced.is_still(b"http://b/", 7) && !replaced.is_still(key, 8)
        );
        let stored = place(&again, &path).unwrap();
        assert!(!replaced.is_still(key, 7));
        let written = open(&path, key, 7, Caller::Pool).unwrap();
        assert!(written.is_still(key, 7));
        File::options().write(true).open(&path).unwrap().set_len(written.length + 1).unwrap();
        assert!(!written.is_still(key, 7));
        File::options().write(true).open(&path).unwrap().set_len(written.length).unwrap();
        let opened = open(&path, key, 7, Caller::Pool).unwrap();
        let other = Header { valid: 5, ..header.clone() };
        update(&path, stored.id, opened.length, &other).unwrap();
        assert_eq!(open(&path, key, 7, Caller::Pool).unwrap().header, other);
        update(&path, stored.id + 1, opened.length, &header).unwrap();
        assert_eq!(open(&path, key, 7, Caller::Pool).unwrap().header, other);
        File::options().write(true).open(&path).unwrap().set_len(opened.length - 5).unwrap();
        assert!(matches!(open(&path, key, 7, Caller::Pool), Err(Unusable::Foreign("has too long header"))));
        std::fs::write(&path, b"x").unwrap();
        assert!(matches!(open(&path, key, 7, Caller::Pool), Err(Unusable::Foreign("is too small"))));
        std::fs::write(&path, [b'x'; 500]).unwrap();
        assert!(matches!(open(&path, key, 7, Caller::Pool), Err(Unusable::Foreign("version mismatch"))));
        std::fs::remove_dir_all(folder).unwrap();
    }
}
