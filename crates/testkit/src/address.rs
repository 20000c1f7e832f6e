//! Addresses that nobody else listens on.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU8, Ordering};

/// A loopback address that is free now and stays so: the port is the kernel's choice, and the IP is of this process and
/// call alone, so that no other program binds it in between.
///
/// # Panics
/// If nothing can be bound, or after 250 calls.
pub fn free_address() -> SocketAddr {
    static NEXT: AtomicU8 = AtomicU8::new(2);
    let second = NEXT.fetch_add(1, Ordering::Relaxed);
    assert!(second > 1, "out of addresses");
    let [_, _, high, low] = std::process::id().to_be_bytes();
    let listener = TcpListener::bind((Ipv4Addr::new(127, second, high, low | 1), 0)).expect("a free port");
    listener.local_addr().expect("the address of a bound socket")
}
