//! What a worker may do: its user and groups, limits, priority and folder, set once before it reads anything.

use std::ffi::CString;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::{Gid, Group, Uid, User, chdir, geteuid, initgroups, setgid, setuid};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};
use weir_engine::errorlog::{Level, Log};

use crate::message::{bytes_path, path_bytes};
use crate::wire::{Malformed, Reader, Writer};

/// Whom the worker becomes, looked up by the master while it can still read the user database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
}

/// All that a worker changes about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// `None` when the master has no privileges to give away.
    pub account: Option<Account>,
    /// It may use addresses of others (`proxy_bind … transparent`).
    pub transparent: bool,
    /// `worker_priority`; 0 leaves it.
    pub priority: i32,
    /// `worker_rlimit_nofile`
    pub nofile: Option<u64>,
    /// `worker_rlimit_core`, bytes.
    pub core: Option<u64>,
    /// `working_directory`
    pub working_directory: Option<PathBuf>,
}

/// The worker cannot be what it was told to be; logged already. nginx exits with 2, which also means: do not respawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fatal;

/// The exit code of a worker that must not be respawned.
pub const FATAL_EXIT: i32 = 2;

/// The warning for `user` where there is nothing to drop; the configuration adds where it stands.
pub const USER_IGNORED: &str =
    "the \"user\" directive makes sense only if the master process runs with super-user privileges, ignored";

/// Whether `user` has a meaning: the effective user is root.
pub fn privileged() -> bool {
    geteuid().is_root()
}

/// Looks up a user and a group; without a group's name, the group of the same name as nginx does.
///
/// # Errors
/// nginx's text, and the error of the lookup where there is one.
pub fn account(user: &str, group: Option<&str>) -> Result<Account, (String, Option<Errno>)> {
    let uid = lookup("getpwnam", user, User::from_name(user))?.uid;
    let group = group.unwrap_or(user);
    let gid = lookup("getgrnam", group, Group::from_name(group))?.gid;
    Ok(Account { name: user.to_owned(), uid: uid.as_raw(), gid: gid.as_raw() })
}

/// The account of workers where the configuration names none.
///
/// # Errors
/// As for [`account`].
pub fn default_account() -> Result<Account, (String, Option<Errno>)> {
    if !crate::paths::GROUP.is_empty() {
        return account(crate::paths::USER, Some(crate::paths::GROUP));
    }
    let user = lookup("getpwnam", crate::paths::USER, User::from_name(crate::paths::USER))?;
    Ok(Account { name: user.name, uid: user.uid.as_raw(), gid: user.gid.as_raw() })
}

fn lookup<T>(call: &str, name: &str, found: Result<Option<T>, Errno>) -> Result<T, (String, Option<Errno>)> {
    match found {
        Ok(Some(entry)) => Ok(entry),
        Ok(None) => Err((format!("{call}(\"{name}\") failed"), None)),
        Err(error) => Err((format!("{call}(\"{name}\") failed"), Some(error))),
    }
}

impl Identity {
    /// Becomes it. What nginx only complains about is logged and passed over.
    ///
    /// # Errors
    /// If privileges could not be dropped or the folder not entered; the worker must exit with [`FATAL_EXIT`].
    pub fn assume(&self, log: &Log) -> Result<(), Fatal> {
        if self.priority != 0
            && let Err(error) = crate::sys::set_priority(self.priority)
        {
            log.write_errno(Level::Alert, error, format_args!("setpriority({}) failed", self.priority));
        }
        limit(log, Resource::RLIMIT_NOFILE, "RLIMIT_NOFILE", self.nofile);
        limit(log, Resource::RLIMIT_CORE, "RLIMIT_CORE", self.core);
        if let Some(account) = &self.account
            && geteuid().is_root()
        {
            drop_privileges(log, account, self.transparent)?;
        }
        // Changing the user has cleared it; without it there would be no core dumps.
        if let Err(error) = prctl::set_dumpable(true) {
            log.write_errno(Level::Alert, error, "prctl(PR_SET_DUMPABLE) failed");
        }
        if let Some(folder) = &self.working_directory {
            enter(log, folder)?;
        }
        Ok(())
    }

    pub fn encode(&self, to: &mut Writer) {
        to.option(self.account.as_ref(), |to, account| {
            to.bytes(account.name.as_bytes()).u32(account.uid).u32(account.gid);
        });
        to.u8(u8::from(self.transparent)).i64(i64::from(self.priority));
        for limit in [self.nofile, self.core] {
            to.option(limit, |to, limit| {
                to.u64(limit);
            });
        }
        to.option(self.working_directory.as_deref(), |to, folder| {
            to.bytes(path_bytes(folder));
        });
    }

    /// # Errors
    /// Anything that [`Identity::encode`] would not write.
    pub fn decode(from: &mut Reader<'_>) -> Result<Identity, Malformed> {
        Ok(Identity {
            account: from.option(|from| {
                let name = String::from_utf8(from.bytes()?.to_vec()).map_err(|_| Malformed)?;
                Ok(Account { name, uid: from.u32()?, gid: from.u32()? })
            })?,
            transparent: match from.u8()? {
                0 => false,
                1 => true,
                _ => return Err(Malformed),
            },
            priority: i32::try_from(from.i64()?).map_err(|_| Malformed)?,
            nofile: from.option(Reader::u64)?,
            core: from.option(Reader::u64)?,
            working_directory: from.option(|from| from.bytes().map(bytes_path))?,
        })
    }
}

/// Sets the soft and the hard limit; a failure is only worth an alert.
pub fn limit(log: &Log, resource: Resource, name: &str, limit: Option<u64>) {
    let Some(limit) = limit else { return };
    if let Err(error) = setrlimit(resource, limit, limit) {
        log.write_errno(Level::Alert, error, format_args!("setrlimit({name}, {limit}) failed"));
    }
}

/// Groups before the user, since afterwards there is no right to change them.
fn drop_privileges(log: &Log, account: &Account, transparent: bool) -> Result<(), Fatal> {
    let gid = Gid::from_raw(account.gid);
    if let Err(error) = setgid(gid) {
        log.write_errno(Level::Emerg, error, format_args!("setgid({}) failed", account.gid));
        return Err(Fatal);
    }
    let groups = CString::new(account.name.as_str()).map_err(|_| Errno::EINVAL);
    if let Err(error) = groups.and_then(|name| initgroups(&name, gid)) {
        // nginx goes on with whatever groups root had; a server that keeps them has not dropped its privileges.
        log.write_errno(
            Level::Emerg,
            error,
            format_args!("initgroups({}, {}) failed", account.name, account.gid),
        );
        return Err(Fatal);
    }
    // Root keeps all its rights anyway.
    let keeps = transparent && account.uid != 0;
    if keeps && let Err(error) = prctl::set_keepcaps(true) {
        log.write_errno(Level::Emerg, error, "prctl(PR_SET_KEEPCAPS, 1) failed");
        return Err(Fatal);
    }
    if let Err(error) = setuid(Uid::from_raw(account.uid)) {
        log.write_errno(Level::Emerg, error, format_args!("setuid({}) failed", account.uid));
        return Err(Fatal);
    }
    if keeps {
        let right = CapabilitySet::NET_RAW;
        let sets = CapabilitySets { effective: right, permitted: right, inheritable: CapabilitySet::empty() };
        if let Err(error) = set_capabilities(None, sets) {
            log.write_error(Level::Emerg, &error.into(), "capset() failed");
            return Err(Fatal);
        }
    }
    Ok(())
}

fn enter(log: &Log, folder: &Path) -> Result<(), Fatal> {
    chdir(folder).map_err(|error| {
        log.write_errno(Level::Alert, error, format_args!("chdir(\"{}\") failed", folder.display()));
        Fatal
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_travels() {
        let identity = Identity {
            account: Some(Account { name: "www".into(), uid: 33, gid: 34 }),
            transparent: true,
            priority: -5,
            nofile: Some(65_536),
            core: None,
            working_directory: Some("/var/tmp".into()),
        };
        for identity in [identity, Identity::default()] {
            let mut writer = Writer::default();
            identity.encode(&mut writer);
            let mut reader = Reader(&writer.0);
            assert_eq!(Identity::decode(&mut reader), Ok(identity));
            assert_eq!(reader.end(), Ok(()));
        }
    }

    #[test]
    fn accounts_are_looked_up_or_refused_in_nginx_words() {
        let root = account("root", None).unwrap();
        assert_eq!((root.uid, root.gid), (0, 0));
        assert_eq!(account("no-such-user", None), Err(("getpwnam(\"no-such-user\") failed".into(), None)));
        assert_eq!(account("root", Some("no-such")), Err(("getgrnam(\"no-such\") failed".into(), None)));
    }
}
