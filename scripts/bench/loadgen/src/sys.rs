//! Thin wrappers over libc: sockets and epoll.
use std::io;
use std::net::{SocketAddr, SocketAddrV4};
use std::os::fd::RawFd;

pub fn raise_nofile() {
    unsafe {
        let mut r: libc::rlimit = std::mem::zeroed();
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut r) == 0 && r.rlim_cur < r.rlim_max {
            r.rlim_cur = r.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &r);
        }
    }
}

fn sin(a: &SocketAddrV4) -> libc::sockaddr_in {
    let mut s: libc::sockaddr_in = unsafe { std::mem::zeroed() };
    s.sin_family = libc::AF_INET as u16;
    s.sin_port = a.port().to_be();
    s.sin_addr.s_addr = u32::from_ne_bytes(a.ip().octets());
    s
}

pub fn v4(a: &str) -> SocketAddrV4 {
    match a.parse::<SocketAddr>().unwrap_or_else(|_| panic!("bad address {a}")) {
        SocketAddr::V4(v) => v,
        _ => panic!("IPv4 only: {a}"),
    }
}

pub fn listen(a: &str) -> RawFd {
    let a = v4(a);
    unsafe {
        let fd = libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC, 0);
        assert!(fd >= 0);
        let one: libc::c_int = 1;
        let p = &one as *const _ as *const libc::c_void;
        libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, p, 4);
        libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_REUSEPORT, p, 4);
        let s = sin(&a);
        if libc::bind(fd, &s as *const _ as *const libc::sockaddr, std::mem::size_of_val(&s) as u32) != 0 {
            panic!("bind {a}: {}", io::Error::last_os_error());
        }
        if libc::listen(fd, 4096) != 0 {
            panic!("listen {a}: {}", io::Error::last_os_error());
        }
        fd
    }
}

pub fn nodelay(fd: RawFd) {
    let one: libc::c_int = 1;
    unsafe {
        libc::setsockopt(
            fd,
            libc::IPPROTO_TCP,
            libc::TCP_NODELAY,
            &one as *const _ as *const libc::c_void,
            4,
        );
    }
}

pub fn set_nonblock(fd: RawFd) {
    unsafe {
        let f = libc::fcntl(fd, libc::F_GETFL);
        libc::fcntl(fd, libc::F_SETFL, f | libc::O_NONBLOCK);
    }
}

/// Blocking connect (loopback), optional source address.  The socket stays blocking.
pub fn connect(a: &SocketAddrV4, src: Option<&str>) -> io::Result<RawFd> {
    unsafe {
        let fd = libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        if let Some(ip) = src {
            let one: libc::c_int = 1;
            // IP_BIND_ADDRESS_NO_PORT
            libc::setsockopt(fd, libc::IPPROTO_IP, 24, &one as *const _ as *const libc::c_void, 4);
            let s = sin(&v4(&format!("{ip}:0")));
            libc::bind(fd, &s as *const _ as *const libc::sockaddr, std::mem::size_of_val(&s) as u32);
        }
        let s = sin(a);
        if libc::connect(fd, &s as *const _ as *const libc::sockaddr, std::mem::size_of_val(&s) as u32) != 0 {
            let e = io::Error::last_os_error();
            libc::close(fd);
            return Err(e);
        }
        nodelay(fd);
        Ok(fd)
    }
}

pub fn set_timeout(fd: RawFd, secs: i64) {
    let tv = libc::timeval { tv_sec: secs as _, tv_usec: 0 };
    unsafe {
        libc::setsockopt(
            fd,
            libc::SOL_SOCKET,
            libc::SO_RCVTIMEO,
            &tv as *const _ as *const libc::c_void,
            std::mem::size_of_val(&tv) as u32,
        );
        libc::setsockopt(
            fd,
            libc::SOL_SOCKET,
            libc::SO_SNDTIMEO,
            &tv as *const _ as *const libc::c_void,
            std::mem::size_of_val(&tv) as u32,
        );
    }
}

pub fn close(fd: RawFd) {
    unsafe {
        libc::close(fd);
    }
}

#[inline]
pub fn recv(fd: RawFd, b: &mut [u8]) -> isize {
    unsafe { libc::recv(fd, b.as_mut_ptr() as *mut libc::c_void, b.len(), 0) }
}

#[inline]
pub fn send(fd: RawFd, b: &[u8]) -> isize {
    unsafe { libc::send(fd, b.as_ptr() as *const libc::c_void, b.len(), libc::MSG_NOSIGNAL) }
}

pub fn send_all_blocking(fd: RawFd, mut b: &[u8]) -> io::Result<()> {
    while !b.is_empty() {
        let n = send(fd, b);
        if n <= 0 {
            let e = io::Error::last_os_error();
            if e.kind() == io::ErrorKind::WouldBlock {
                let mut p = libc::pollfd { fd, events: libc::POLLOUT, revents: 0 };
                unsafe { libc::poll(&mut p, 1, 5000) };
                continue;
            }
            return Err(e);
        }
        b = &b[n as usize..];
    }
    Ok(())
}

pub fn would_block() -> bool {
    let e = io::Error::last_os_error();
    matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

pub struct Epoll {
    fd: RawFd,
    pub evs: Vec<libc::epoll_event>,
}
impl Epoll {
    pub fn new() -> Epoll {
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        assert!(fd >= 0);
        Epoll { fd, evs: vec![unsafe { std::mem::zeroed() }; 512] }
    }
    pub fn add(&self, fd: RawFd, tok: u64, ev: u32) {
        let mut e = libc::epoll_event { events: ev, u64: tok };
        let r = unsafe { libc::epoll_ctl(self.fd, libc::EPOLL_CTL_ADD, fd, &mut e) };
        assert!(r == 0, "epoll_ctl add: {}", io::Error::last_os_error());
    }
    pub fn modify(&self, fd: RawFd, tok: u64, ev: u32) {
        let mut e = libc::epoll_event { events: ev, u64: tok };
        unsafe { libc::epoll_ctl(self.fd, libc::EPOLL_CTL_MOD, fd, &mut e) };
    }
    pub fn wait(&mut self, ms: i32) -> usize {
        let n = unsafe { libc::epoll_wait(self.fd, self.evs.as_mut_ptr(), self.evs.len() as i32, ms) };
        if n < 0 {
            0
        } else {
            n as usize
        }
    }
}

pub const IN: u32 = libc::EPOLLIN as u32;
pub const OUT: u32 = libc::EPOLLOUT as u32;

pub fn find(h: &[u8], n: &[u8]) -> Option<usize> {
    h.windows(n.len()).position(|w| w == n)
}

/// Value of a header (case-insensitive name) in a raw header block.
pub fn header<'a>(block: &'a [u8], name: &str) -> Option<&'a [u8]> {
    for line in block.split(|&c| c == b'\n') {
        if line.len() > name.len()
            && line[name.len()] == b':'
            && line[..name.len()].eq_ignore_ascii_case(name.as_bytes())
        {
            let mut v = &line[name.len() + 1..];
            while let [b' ' | b'\t', r @ ..] = v {
                v = r;
            }
            while let [r @ .., b'\r' | b' '] = v {
                v = r;
            }
            return Some(v);
        }
    }
    None
}
