//! Addresses that nobody else listens on.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};

/// A loopback address that is free now and stays so: the port is the kernel's choice, and the IP is of this process and
/// call alone, so that no other program binds it in between.
///
/// # Panics
/// If nothing can be bound, or after 500 calls.
pub fn free_address() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(4);
    let call = NEXT.fetch_add(1, Ordering::Relaxed);
    let second = u8::try_from(call / 2).expect("more addresses");
    let [_, _, high, low] = std::process::id().to_be_bytes();
    let last = low & !1 | (call % 2) as u8;
    let listener = TcpListener::bind((Ipv4Addr::new(127, second, high, last), 0)).expect("a free port");
    listener.local_addr().expect("the address of a bound socket")
}
