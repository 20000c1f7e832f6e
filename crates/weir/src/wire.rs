//! Bytes of the messages between master and worker: little-endian numbers and length-prefixed strings, bounds checked.
//!
//! Both ends are the same executable, except while one is being upgraded; the version byte of the channel says so. A
//! [`Reader`] never panics and never allocates more than what it was given.

use std::fmt;

/// Bytes that are not what the reader expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("malformed message")
    }
}

impl std::error::Error for Malformed {}

/// Builds a message.
#[derive(Debug, Default)]
pub struct Writer(pub Vec<u8>);

impl Writer {
    pub fn u8(&mut self, value: u8) -> &mut Self {
        self.0.push(value);
        self
    }

    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    pub fn i64(&mut self, value: i64) -> &mut Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    pub fn bytes(&mut self, value: &[u8]) -> &mut Self {
        self.u64(value.len() as u64);
        self.0.extend_from_slice(value);
        self
    }

    /// Presence and then the value.
    pub fn option<T>(&mut self, value: Option<T>, write: impl FnOnce(&mut Self, T)) -> &mut Self {
        self.u8(u8::from(value.is_some()));
        if let Some(value) = value {
            write(self, value);
        }
        self
    }
}

/// Takes a message apart.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(Malformed)?;
        self.0 = rest;
        Ok(*taken)
    }

    pub fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    pub fn u32(&mut self) -> Result<u32, Malformed> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub fn i64(&mut self) -> Result<i64, Malformed> {
        Ok(i64::from_le_bytes(self.array()?))
    }

    pub fn bytes(&mut self) -> Result<&'a [u8], Malformed> {
        let length = self.u64()?;
        self.take(usize::try_from(length).map_err(|_| Malformed)?)
    }

    pub fn option<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, Malformed>,
    ) -> Result<Option<T>, Malformed> {
        match self.u8()? {
            0 => Ok(None),
            1 => read(self).map(Some),
            _ => Err(Malformed),
        }
    }

    /// Nothing may be left over.
    pub fn end(self) -> Result<(), Malformed> {
        if self.0.is_empty() { Ok(()) } else { Err(Malformed) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut writer = Writer::default();
        writer.u8(7).u32(1 << 20).u64(1 << 40).i64(-5).bytes(b"abc").option(None::<u8>, |w, v| {
            w.u8(v);
        });
        let mut reader = Reader(&writer.0);
        assert_eq!(reader.u8(), Ok(7));
        assert_eq!(reader.u32(), Ok(1 << 20));
        assert_eq!(reader.u64(), Ok(1 << 40));
        assert_eq!(reader.i64(), Ok(-5));
        assert_eq!(reader.bytes(), Ok(&b"abc"[..]));
        assert_eq!(reader.option(Reader::u8), Ok(None));
        assert_eq!(reader.end(), Ok(()));
    }

    #[test]
    fn lengths_are_not_believed() {
        assert_eq!(Reader(&u64::MAX.to_le_bytes()).bytes(), Err(Malformed));
        assert_eq!(Reader(&[1, 2, 3]).u32(), Err(Malformed));
        assert_eq!(Reader(&[2]).option(Reader::u8), Err(Malformed));
        assert_eq!(Reader(&[2]).end(), Err(Malformed));
    }
}
