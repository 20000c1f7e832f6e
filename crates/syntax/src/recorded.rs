//! Answers of the outside, kept, so that another process reads the very same configuration.
//!
//! The master reads files as root; the worker, which may not, replays what the master was answered. A recording is a
//! table from a kind of question and a key to a list of byte strings or an error number. Files are two kinds of it,
//! others (addresses of a name, for one) go through [`Recorded::record`] as well.
//!
//! ```text
//! "weir-rec" version:u32  count:u32  count * { kind key tag:u8 answer }        all numbers little-endian
//! kind, key, string = length:u32 bytes      answer = count:u32 count * string (tag 0) | errno:i32 (tag 1)
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use nom::bytes::complete::tag;
use nom::combinator::{all_consuming, map_res, verify};
use nom::multi::{length_count, length_data};
use nom::number::complete::{le_i32, le_u8, le_u32};
use nom::sequence::preceded;
use nom::{IResult, Parser};

use crate::Files;
use crate::files::EIO;

const MAGIC: &[u8] = b"weir-rec";
const VERSION: u32 = 1;

const READ: &str = "read";
const GLOB: &str = "glob";

/// A list of byte strings, or the operating system's error number.
type Answer = Result<Vec<Arc<[u8]>>, i32>;

/// Answers by kind and key, either being recorded over other [`Files`] or replayed.
pub struct Recorded<'f> {
    /// Who answers what is not known yet; nobody in a replay.
    files: Option<&'f dyn Files>,
    answers: Mutex<BTreeMap<(String, Vec<u8>), Answer>>,
}

/// The bytes are not a recording of this version.
#[derive(Debug, PartialEq, Eq)]
pub struct Malformed;

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("malformed recording of a configuration")
    }
}

impl std::error::Error for Malformed {}

impl<'f> Recorded<'f> {
    /// Records what `files` answers. Each question is asked once.
    pub fn over(files: &'f dyn Files) -> Recorded<'f> {
        Recorded { files: Some(files), answers: Mutex::default() }
    }

    /// Replays what [`to_bytes`](Recorded::to_bytes) wrote.
    pub fn from_bytes(bytes: &[u8]) -> Result<Recorded<'static>, Malformed> {
        let (_, entries) = all_consuming(entries).parse(bytes).map_err(|_| Malformed)?;
        Ok(Recorded { files: None, answers: Mutex::new(entries.into_iter().collect()) })
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        let mut out = MAGIC.to_vec();
        number(&mut out, VERSION as usize);
        number(&mut out, answers.len());
        for ((kind, key), answer) in &*answers {
            string(&mut out, kind.as_bytes());
            string(&mut out, key);
            match answer {
                Ok(strings) => {
                    out.push(0);
                    number(&mut out, strings.len());
                    strings.iter().for_each(|bytes| string(&mut out, bytes));
                }
                Err(errno) => {
                    out.push(1);
                    out.extend_from_slice(&errno.to_le_bytes());
                }
            }
        }
        out
    }

    /// The known answer, or that of `ask`, which is then kept. A replay never asks: what was not recorded is an
    /// error. An error without a number of the operating system is kept as `EIO`.
    pub fn record(
        &self,
        kind: &str,
        key: &[u8],
        ask: impl FnOnce() -> io::Result<Vec<Arc<[u8]>>>,
    ) -> io::Result<Vec<Arc<[u8]>>> {
        if let Some(known) = self.replay(kind, key) {
            return known;
        }
        if self.files.is_none() {
            let key = String::from_utf8_lossy(key);
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!("{kind} of \"{key}\" was not recorded"),
            ));
        }
        let answer = ask().map_err(|error| error.raw_os_error().unwrap_or(EIO));
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.insert((kind.to_string(), key.to_vec()), answer.clone());
        answer.map_err(io::Error::from_raw_os_error)
    }

    /// The answer if it is known.
    pub fn replay(&self, kind: &str, key: &[u8]) -> Option<io::Result<Vec<Arc<[u8]>>>> {
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = answers.get(&(kind.to_string(), key.to_vec()))?.clone();
        Some(answer.map_err(io::Error::from_raw_os_error))
    }

    fn ask<T>(&self, question: impl FnOnce(&dyn Files) -> io::Result<T>) -> io::Result<T> {
        match self.files {
            Some(files) => question(files),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }
}

impl Files for Recorded<'_> {
    fn read(&self, path: &[u8]) -> io::Result<Arc<[u8]>> {
        let answer = self.record(READ, path, || self.ask(|files| Ok(vec![files.read(path)?])))?;
        answer.into_iter().next().ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    fn glob(&self, pattern: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        let answer = self.record(GLOB, pattern, || {
            self.ask(|files| Ok(files.glob(pattern)?.into_iter().map(Arc::from).collect()))
        })?;
        Ok(answer.iter().map(|path| path.to_vec()).collect())
    }
}

/// Lengths of what fits into memory: a text is below 4 GiB, which the parser refuses else.
fn number(out: &mut Vec<u8>, number: usize) {
    out.extend_from_slice(&(number as u32).to_le_bytes());
}

fn string(out: &mut Vec<u8>, bytes: &[u8]) {
    number(out, bytes.len());
    out.extend_from_slice(bytes);
}

fn entries(input: &[u8]) -> IResult<&[u8], Vec<((String, Vec<u8>), Answer)>> {
    let head = (tag(MAGIC), verify(le_u32, |&version| version == VERSION));
    preceded(head, length_count(le_u32, ((text, bytes), answer))).parse(input)
}

fn text(input: &[u8]) -> IResult<&[u8], String> {
    map_res(bytes, String::from_utf8).parse(input)
}

fn bytes(input: &[u8]) -> IResult<&[u8], Vec<u8>> {
    length_data(le_u32).map(<[u8]>::to_vec).parse(input)
}

fn answer(input: &[u8]) -> IResult<&[u8], Answer> {
    match le_u8(input)? {
        (rest, 0) => length_count(le_u32, length_data(le_u32).map(Arc::from)).map(Ok).parse(rest),
        (rest, 1) => le_i32.map(Err).parse(rest),
        (rest, _) => Err(nom::Err::Error(nom::error::Error::new(rest, nom::error::ErrorKind::Alt))),
    }
}

#[cfg(test)]
mod tests {
    use super::{Malformed, Recorded};
    use crate::{Files, Memory};

    fn files() -> Memory {
        Memory::new().with("/a", b"text \0\xff").with("/empty", "").with("/d/x", "1").with("/d/y", "2")
    }

    fn recording() -> Vec<u8> {
        let files = files();
        let recorded = Recorded::over(&files);
        let _ =
            (recorded.read(b"/a"), recorded.read(b"/empty"), recorded.read(b"/d"), recorded.read(b"/none"));
        let _ = (recorded.glob(b"/d/*"), recorded.glob(b"/none/*"));
        let _ = recorded.record("dns", b"one", || Ok(vec![b"1.2.3.4"[..].into(), b"::1"[..].into()]));
        recorded.to_bytes()
    }

    #[test]
    fn a_replay_answers_the_same() {
        let replayed = Recorded::from_bytes(&recording()).expect("just recorded");
        for path in [&b"/a"[..], b"/empty", b"/d", b"/none"] {
            let (is, should) = (replayed.read(path), files().read(path));
            let errno = |error: std::io::Error| error.raw_os_error();
            assert_eq!(is.map_err(errno), should.map_err(errno));
        }
        for pattern in [&b"/d/*"[..], b"/none/*"] {
            assert_eq!(replayed.glob(pattern).ok(), files().glob(pattern).ok());
        }
        let names = replayed.replay("dns", b"one").expect("recorded").expect("recorded as success");
        assert_eq!(names, [b"1.2.3.4"[..].into(), b"::1"[..].into()] as [std::sync::Arc<[u8]>; 2]);
        assert_eq!(replayed.to_bytes(), recording());
    }

    #[test]
    fn a_replay_asks_nobody() {
        let replayed = Recorded::from_bytes(&recording()).expect("just recorded");
        assert!(replayed.replay("dns", b"two").is_none());
        let answer = replayed.record("dns", b"two", || panic!("asked"));
        assert_eq!(answer.expect_err("unknown").to_string(), "dns of \"two\" was not recorded");
        assert!(replayed.read(b"/other").is_err());
    }

    #[test]
    fn a_question_is_asked_once() {
        let files = files();
        let recorded = Recorded::over(&files);
        let first = recorded.record("dns", b"x", || Err(std::io::Error::other("no number")));
        assert_eq!(first.expect_err("as asked").raw_os_error(), Some(5));
        let second = recorded.record("dns", b"x", || panic!("asked twice"));
        assert_eq!(second.expect_err("as kept").raw_os_error(), Some(5));
    }

    #[test]
    fn what_is_cut_or_changed_is_refused_or_read_but_never_panics() {
        let bytes = recording();
        for len in 0..bytes.len() {
            assert_eq!(Recorded::from_bytes(&bytes[..len]).err(), Some(Malformed), "{len}");
        }
        assert!(Recorded::from_bytes(&[&bytes[..], b"x"].concat()).is_err());
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 0xff;
            let read = Recorded::from_bytes(&changed);
            assert!(at >= 12 || read.is_err(), "magic or version at {at}");
        }
    }
}
