//! The outside as the machine answers it, recorded so that the worker is answered the same.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read};
use std::net::{IpAddr, ToSocketAddrs};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use nix::errno::Errno;
use nix::unistd::{Group, User};
use weir_ir::World;
use weir_syntax::{Files, Recorded};

use crate::glob;

/// The machine itself.
pub struct Machine;

impl Files for Machine {
    fn read(&self, path: &[u8]) -> io::Result<Arc<[u8]>> {
        let path = Path::new(OsStr::from_bytes(path));
        let file = fs::File::open(path)?;
        let kind = file.metadata()?;
        if kind.is_dir() {
            return Err(Errno::EISDIR.into());
        }
        let mut bytes = Vec::new();
        // A pipe or a device gives as much as its size says: nothing.
        file.take(kind.len()).read_to_end(&mut bytes)?;
        Ok(bytes.into())
    }

    fn glob(&self, pattern: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        glob::paths(pattern)
    }
}

/// The machine's answers, recorded; or a recording, replayed without a machine.
pub struct Observed<'m> {
    recorded: Recorded<'m>,
}

impl<'m> Observed<'m> {
    pub fn machine(machine: &'m Machine) -> Self {
        Self { recorded: Recorded::over(machine) }
    }

    /// # Errors
    /// The bytes are no recording.
    pub fn replay(bytes: &[u8]) -> Result<Observed<'static>, weir_syntax::Malformed> {
        Ok(Observed { recorded: Recorded::from_bytes(bytes)? })
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        self.recorded.to_bytes()
    }

    fn ids(
        &self,
        kind: &str,
        name: &str,
        ask: impl FnOnce() -> io::Result<[u32; 2]>,
    ) -> io::Result<[u32; 2]> {
        let answer = self.recorded.record(kind, name.as_bytes(), || {
            Ok(ask()?.iter().map(|id| Arc::from(id.to_le_bytes().as_slice())).collect())
        })?;
        let mut ids =
            answer.iter().filter_map(|bytes| Some(u32::from_le_bytes(bytes.as_ref().try_into().ok()?)));
        match (ids.next(), ids.next()) {
            (Some(first), Some(second)) => Ok([first, second]),
            _ => Err(Errno::EINVAL.into()),
        }
    }
}

impl Files for Observed<'_> {
    fn read(&self, path: &[u8]) -> io::Result<Arc<[u8]>> {
        self.recorded.read(path)
    }

    fn glob(&self, pattern: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        self.recorded.glob(pattern)
    }
}

impl World for Observed<'_> {
    fn resolve(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        let answer = self.recorded.record("resolve", host.as_bytes(), || {
            let mut found: Vec<IpAddr> = (host, 0).to_socket_addrs()?.map(|a| a.ip()).collect();
            found.sort_by_key(|ip| ip.is_ipv6());
            found.dedup();
            Ok(found.iter().map(|ip| Arc::from(ip.to_string().as_bytes())).collect())
        })?;
        let addresses = answer.iter().filter_map(|bytes| std::str::from_utf8(bytes).ok()?.parse().ok());
        Ok(addresses.collect())
    }

    fn content(&self, path: &[u8]) -> io::Result<Arc<[u8]>> {
        // A pipe is read to its end, as OpenSSL does.
        let answer = self
            .recorded
            .record("content", path, || Ok(vec![fs::read(Path::new(OsStr::from_bytes(path)))?.into()]))?;
        answer.into_iter().next().ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    fn hostname(&self) -> String {
        let answer = self.recorded.record("hostname", b"", || {
            let name = nix::unistd::gethostname()?;
            Ok(vec![Arc::from(name.as_bytes())])
        });
        let name = answer.ok().and_then(|a| a.into_iter().next());
        name.map(|n| String::from_utf8_lossy(&n).to_lowercase()).unwrap_or_default()
    }

    fn user(&self, name: &str) -> io::Result<(u32, u32)> {
        let [uid, gid] = self.ids("user", name, || {
            let user = User::from_name(name)?.ok_or(Errno::ENOENT)?;
            Ok([user.uid.as_raw(), user.gid.as_raw()])
        })?;
        Ok((uid, gid))
    }

    fn group(&self, name: &str) -> io::Result<u32> {
        let [gid, _] = self.ids("group", name, || {
            let group = Group::from_name(name)?.ok_or(Errno::ENOENT)?;
            Ok([group.gid.as_raw(), 0])
        })?;
        Ok(gid)
    }

    fn privileged(&self) -> bool {
        let answer = self.recorded.record("privileged", b"", || {
            Ok(if crate::privileges::privileged() { vec![Arc::from(&b"yes"[..])] } else { vec![] })
        });
        answer.is_ok_and(|a| !a.is_empty())
    }
}
