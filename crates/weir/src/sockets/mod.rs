//! Listening sockets: opened by the master, kept by address over reloads, inherited over an upgrade of the executable.
//!
//! Each address has a group of SO_REUSEPORT sockets, one for each reactor thread, so that the kernel spreads
//! connections without a lock. SO_REUSEPORT would also let a second server of the same user join the port unnoticed,
//! so the first socket of a group is bound without it, fails where nginx's would, and gets the option before `listen`.
//! A socket that stays configured is never closed, since that would reset what waits in its queue; a group only grows.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use socket2::{Domain, SockAddr, SockRef, Socket, Type};
use weir_engine::errorlog::{Level, Log};

use crate::message::{bytes_path, path_bytes};
use crate::sys::{TcpOption, set_tcp_option};

/// The variable in which a master tells the executable that follows it which descriptors are listening.
pub const INHERITED: &str = "NGINX";

/// How often an address in use is tried, and how long is waited in between.
const TRIES: u32 = 5;
pub const PAUSE: Duration = Duration::from_millis(500);

/// What is listened on; shown as nginx shows it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    Ip(SocketAddr),
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Ip(address) => address.fmt(f),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// `so_keepalive=`; zero leaves the system's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeepAlive {
    pub on: bool,
    /// Seconds.
    pub idle: i32,
    /// Seconds.
    pub interval: i32,
    pub count: i32,
}

/// One address to listen on, with the parameters of its `listen` directive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenSpec {
    pub address: Address,
    /// `backlog=`
    pub backlog: i32,
    /// How many sockets share the address: one for each reactor thread. A unix socket is always a single one.
    pub sockets: usize,
    /// `rcvbuf=`, bytes.
    pub receive_buffer: Option<usize>,
    /// `sndbuf=`, bytes.
    pub send_buffer: Option<usize>,
    /// `ipv6only=`; without a meaning for other addresses.
    pub ipv6_only: bool,
    /// `deferred`
    pub deferred: bool,
    /// `fastopen=`
    pub fast_open: Option<i32>,
    /// `so_keepalive=`
    pub keep_alive: Option<KeepAlive>,
}

impl ListenSpec {
    /// An address with the defaults of `listen`.
    pub fn new(address: Address) -> ListenSpec {
        ListenSpec {
            address,
            backlog: 511,
            sockets: 1,
            receive_buffer: None,
            send_buffer: None,
            ipv6_only: true,
            deferred: false,
            fast_open: None,
            keep_alive: None,
        }
    }

    fn group_size(&self) -> usize {
        match self.address {
            Address::Ip(_) => self.sockets.max(1),
            Address::Unix(_) => 1,
        }
    }
}

/// The sockets of one address.
#[derive(Clone, Debug)]
pub struct Group {
    pub address: Address,
    pub sockets: Vec<Arc<OwnedFd>>,
    /// What `listen` was called with; `None` for inherited ones, whose parameters are unknown.
    backlog: Option<i32>,
    deferred: Option<bool>,
}

/// Whether the sockets are to be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Run,
    /// `-t`: an address in use is no error, since the server under test may well be running.
    Test,
}

/// Already logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failed;

/// All listening sockets of a configuration. Clones share the sockets; the last one to go closes them.
#[derive(Clone, Debug, Default)]
pub struct Listeners {
    pub groups: Vec<Group>,
}

impl Listeners {
    /// Opens what is missing for `specs` and takes the rest from `self`, which stays as it was whatever happens.
    ///
    /// `pause` waits [`PAUSE`] before another try.
    ///
    /// # Errors
    /// If an address cannot be bound; logged in nginx's words.
    pub fn open(
        &self,
        specs: &[ListenSpec],
        mode: Mode,
        log: &Log,
        mut pause: impl FnMut(),
    ) -> Result<Listeners, Failed> {
        let mut opened: Vec<Option<Group>> = specs
            .iter()
            .map(|spec| self.groups.iter().find(|group| group.address == spec.address).cloned())
            .collect();
        for _ in 0..TRIES {
            let mut in_use = false;
            for (spec, group) in specs.iter().zip(&mut opened) {
                match fill(group, spec, mode, log) {
                    Ok(()) => {}
                    Err(Failure::InUse) => in_use |= mode == Mode::Run,
                    Err(Failure::Fatal) => return Err(Failed),
                }
            }
            if !in_use {
                let listeners = Listeners { groups: opened.into_iter().flatten().collect() };
                return Ok(listeners);
            }
            log.write(Level::Notice, "try again to bind() after 500ms");
            pause();
        }
        log.write(Level::Emerg, "still could not bind()");
        Err(Failed)
    }

    /// Applies the parameters that may change while listening; what fails is logged and ignored, as in nginx.
    pub fn configure(&mut self, specs: &[ListenSpec], log: &Log) {
        for spec in specs {
            if let Some(group) = self.groups.iter_mut().find(|group| group.address == spec.address) {
                configure(group, spec, log);
            }
        }
    }

    /// Takes over the sockets that [`INHERITED`] lists as `3;4;`, which works once a process. What is no
    /// socket of a stream is left out with a message.
    pub fn inherit(list: &[u8], log: &Log) -> Listeners {
        let shown = String::from_utf8_lossy(list);
        log.write(Level::Notice, format_args!("using inherited sockets from \"{shown}\""));
        let numbers = numbers(list, log);
        let mut listeners = Listeners::default();
        for (number, fd) in numbers.iter().zip(crate::sys::inherited_sockets(&numbers)) {
            match fd.and_then(name_of) {
                Ok((address, fd)) => listeners.add(address, fd),
                Err(error) => {
                    let text = format!("getsockname() of the inherited socket #{number} failed");
                    log.write_errno(Level::Crit, error, text);
                }
            }
        }
        listeners
    }

    fn add(&mut self, address: Address, fd: OwnedFd) {
        let fd = Arc::new(fd);
        match self.groups.iter_mut().find(|group| group.address == address) {
            Some(group) => group.sockets.push(fd),
            None => {
                self.groups.push(Group { address, sockets: vec![fd], backlog: None, deferred: None });
            }
        }
    }

    /// Removes the files of the unix sockets that `self` has and `next` has not.
    pub fn unlink_except(&self, next: &Listeners, log: &Log) {
        for group in &self.groups {
            let Address::Unix(path) = &group.address else { continue };
            if next.groups.iter().any(|other| other.address == group.address) {
                continue;
            }
            // As in nginx, who stops says nothing of it.
            if !next.groups.is_empty() {
                log.write(Level::Warn, format_args!("deleting socket {}", path.display()));
            }
            if let Err(error) = std::fs::remove_file(path) {
                log.write_error(Level::Emerg, &error, format_args!("unlink() {} failed", path.display()));
            }
        }
    }

    /// Every socket.
    pub fn sockets(&self) -> impl Iterator<Item = &Arc<OwnedFd>> {
        self.groups.iter().flat_map(|group| &group.sockets)
    }
}

impl Group {
    /// How the group is named to the worker: the address as text.
    pub fn description(&self) -> Vec<u8> {
        match &self.address {
            Address::Ip(address) => address.to_string().into_bytes(),
            Address::Unix(path) => [b"unix:", path_bytes(path)].concat(),
        }
    }
}

/// Reads [`Group::description`].
pub fn described(description: &[u8]) -> Option<Address> {
    Some(match description.strip_prefix(b"unix:") {
        Some(path) => Address::Unix(bytes_path(path)),
        None => Address::Ip(std::str::from_utf8(description).ok()?.parse().ok()?),
    })
}

/// The value of [`INHERITED`] for descriptors that stay open over `exec`.
pub fn inheritance(numbers: impl IntoIterator<Item = RawFd>) -> String {
    numbers.into_iter().map(|number| format!("{number};")).collect()
}

fn numbers(list: &[u8], log: &Log) -> Vec<RawFd> {
    let mut numbers = Vec::new();
    let mut rest = list;
    while let Some(end) = rest.iter().position(|byte| matches!(byte, b':' | b';')) {
        let digits = rest[..end].iter().all(u8::is_ascii_digit);
        let number =
            std::str::from_utf8(&rest[..end]).ok().filter(|_| digits).and_then(|text| text.parse().ok());
        let Some(number) = number else {
            invalid_number(rest, ", ignoring the rest of the variable", log);
            return numbers;
        };
        numbers.push(number);
        rest = &rest[end + 1..];
    }
    if !rest.is_empty() {
        invalid_number(rest, ", ignoring", log);
    }
    numbers
}

fn invalid_number(rest: &[u8], consequence: &str, log: &Log) {
    let rest = String::from_utf8_lossy(rest);
    log.write(
        Level::Emerg,
        format_args!("invalid socket number \"{rest}\" in {INHERITED} environment variable{consequence}"),
    );
}

/// What a socket from elsewhere is bound to.
fn name_of(fd: OwnedFd) -> Result<(Address, OwnedFd), Errno> {
    let socket = SockRef::from(&fd);
    let name = socket.local_addr().map_err(|error| errno(&error))?;
    let address = match (name.as_socket(), name.as_pathname()) {
        (Some(address), _) => Address::Ip(address),
        (None, Some(path)) => Address::Unix(path.to_owned()),
        (None, None) => return Err(Errno::EAFNOSUPPORT),
    };
    match socket.r#type().map_err(|error| errno(&error))? {
        Type::STREAM => Ok((address, fd)),
        _ => Err(Errno::ESOCKTNOSUPPORT),
    }
}

enum Failure {
    InUse,
    Fatal,
}

/// Opens sockets until the group is as large as it shall be.
fn fill(group: &mut Option<Group>, spec: &ListenSpec, mode: Mode, log: &Log) -> Result<(), Failure> {
    let wanted = if mode == Mode::Test { 1 } else { spec.group_size() };
    if let Some(group) = group.as_ref().filter(|group| group.sockets.len() < wanted) {
        // Sockets inherited from elsewhere may lack the option that lets others join.
        for socket in &group.sockets {
            share(&SockRef::from(&**socket), spec, log)?;
        }
    }
    loop {
        let joining = match group {
            Some(group) if group.sockets.len() >= wanted => return Ok(()),
            Some(_) => true,
            None => false,
        };
        let socket = Arc::new(OwnedFd::from(bind(spec, joining, mode, log)?));
        match group {
            Some(group) => group.sockets.push(socket),
            None => {
                *group = Some(Group {
                    address: spec.address.clone(),
                    sockets: vec![socket],
                    backlog: Some(spec.backlog),
                    deferred: Some(false),
                });
            }
        }
    }
}

fn share(socket: &Socket, spec: &ListenSpec, log: &Log) -> Result<(), Failure> {
    match spec.address {
        Address::Ip(_) => {
            complain(socket.set_reuse_port(true), log, "setsockopt(SO_REUSEPORT)", &spec.address)
        }
        Address::Unix(_) => Ok(()),
    }
}

fn complain(result: io::Result<()>, log: &Log, call: &str, address: &Address) -> Result<(), Failure> {
    result.map_err(|error| {
        log.write_error(Level::Emerg, &error, format_args!("{call} {address} failed"));
        Failure::Fatal
    })
}

fn bind(spec: &ListenSpec, joining: bool, mode: Mode, log: &Log) -> Result<Socket, Failure> {
    let address = &spec.address;
    let (domain, name) = match address {
        Address::Ip(ip) => (Domain::for_address(*ip), Ok(SockAddr::from(*ip))),
        Address::Unix(path) => (Domain::UNIX, SockAddr::unix(path)),
    };
    let socket = Socket::new(domain, Type::STREAM.nonblocking().cloexec(), None).map_err(|error| {
        log.write_error(Level::Emerg, &error, format_args!("socket() {address} failed"));
        Failure::Fatal
    })?;
    complain(socket.set_reuse_address(true), log, "setsockopt(SO_REUSEADDR)", address)?;
    if joining {
        share(&socket, spec, log)?;
    }
    if domain == Domain::IPV6
        && let Err(error) = socket.set_only_v6(spec.ipv6_only)
    {
        log.write_error(
            Level::Emerg,
            &error,
            format_args!("setsockopt(IPV6_V6ONLY) {address} failed, ignored"),
        );
    }
    let bound = name.and_then(|name| socket.bind(&name));
    bound.map_err(|error| refused(&error, mode, log, format_args!("bind() to {address} failed")))?;
    if let Address::Unix(path) = address {
        // Whoever may enter the folder may connect.
        if let Err(error) = std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666)) {
            log.write_error(Level::Emerg, &error, format_args!("chmod() \"{}\" failed", path.display()));
        }
        if mode == Mode::Test
            && let Err(error) = std::fs::remove_file(path)
        {
            log.write_error(Level::Emerg, &error, format_args!("unlink() {} failed", path.display()));
        }
    }
    if !joining && mode == Mode::Run {
        share(&socket, spec, log)?;
    }
    let backlog = spec.backlog;
    let listening = socket.listen(backlog);
    listening.map_err(|error| {
        refused(&error, mode, log, format_args!("listen() to {address}, backlog {backlog} failed"))
    })?;
    Ok(socket)
}

fn refused(error: &io::Error, mode: Mode, log: &Log, message: fmt::Arguments<'_>) -> Failure {
    let in_use = errno(error) == Errno::EADDRINUSE;
    if !in_use || mode == Mode::Run {
        log.write_error(Level::Emerg, error, message);
    }
    if in_use { Failure::InUse } else { Failure::Fatal }
}

fn configure(group: &mut Group, spec: &ListenSpec, log: &Log) {
    let address = &spec.address;
    let ip = matches!(address, Address::Ip(_));
    let check = |result: Result<(), Errno>, call: fmt::Arguments<'_>| {
        if let Err(error) = result {
            log.write_errno(Level::Alert, error, format_args!("{call} {address} failed, ignored"));
        }
    };
    for fd in &group.sockets {
        let socket = SockRef::from(&**fd);
        if let Some(size) = spec.receive_buffer {
            check(plain(socket.set_recv_buffer_size(size)), format_args!("setsockopt(SO_RCVBUF, {size})"));
        }
        if let Some(size) = spec.send_buffer {
            check(plain(socket.set_send_buffer_size(size)), format_args!("setsockopt(SO_SNDBUF, {size})"));
        }
        if let Some(keep_alive) = spec.keep_alive {
            let on = keep_alive.on;
            check(
                plain(socket.set_keepalive(on)),
                format_args!("setsockopt(SO_KEEPALIVE, {})", i32::from(on)),
            );
            for (option, value) in [
                (TcpOption::KeepIdle, keep_alive.idle),
                (TcpOption::KeepInterval, keep_alive.interval),
                (TcpOption::KeepCount, keep_alive.count),
            ] {
                if value != 0 {
                    set(fd.as_fd(), option, value, &check);
                }
            }
        }
        if !ip {
            continue;
        }
        if let Some(length) = spec.fast_open {
            set(fd.as_fd(), TcpOption::FastOpen, length, &check);
        }
        // Accepted connections inherit it, which saves a call for each.
        check(plain(socket.set_tcp_nodelay(true)), format_args!("setsockopt(TCP_NODELAY)"));
        if group.deferred != Some(spec.deferred) {
            let value = i32::from(spec.deferred);
            if let Err(error) = set_tcp_option(fd.as_fd(), TcpOption::DeferAccept, value) {
                let call = format!("setsockopt(TCP_DEFER_ACCEPT, {value}) for {address} failed, ignored");
                log.write_errno(Level::Alert, error, call);
            }
        }
    }
    group.deferred = Some(spec.deferred);
    if group.backlog != Some(spec.backlog) {
        for fd in &group.sockets {
            let backlog = spec.backlog;
            let call = format_args!("listen() to {address}, backlog {backlog} failed, ignored");
            if let Err(error) = SockRef::from(&**fd).listen(backlog) {
                log.write_error(Level::Alert, &error, call);
            }
        }
    }
    group.backlog = Some(spec.backlog);
}

fn set(
    fd: BorrowedFd<'_>,
    option: TcpOption,
    value: i32,
    check: &impl Fn(Result<(), Errno>, fmt::Arguments<'_>),
) {
    check(set_tcp_option(fd, option, value), format_args!("setsockopt({}, {value})", option.name()));
}

fn plain(result: io::Result<()>) -> Result<(), Errno> {
    result.map_err(|error| errno(&error))
}

fn errno(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EINVAL, Errno::from_raw)
}

#[cfg(test)]
mod tests;
