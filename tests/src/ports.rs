//! Ports that nobody listens on.

use std::net::TcpListener;
use std::sync::atomic::{AtomicU32, Ordering};

/// Below the ports that the system gives to outgoing connections, so none of those takes one between its choice and
/// its use.
const FIRST: u32 = 15_000;
const COUNT: u32 = 16_000;

/// A free port of 127.0.0.1. Each call of this process gives another one; other processes begin elsewhere.
///
/// # Errors
/// When no port in the range is free.
pub fn free() -> std::io::Result<u16> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let mut last = std::io::Error::other("no port was tried");
    for _ in 0..COUNT {
        let offset =
            std::process::id().wrapping_mul(97).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % COUNT;
        // Exact: the sum is below 65,536.
        let port = (FIRST + offset) as u16;
        match TcpListener::bind(("127.0.0.1", port)) {
            Ok(_) => return Ok(port),
            Err(error) => last = error,
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    #[test]
    fn ports_differ_and_can_be_listened_on() {
        let (a, b) = (super::free().unwrap(), super::free().unwrap());
        assert_ne!(a, b);
        assert!(std::net::TcpListener::bind(("127.0.0.1", a)).is_ok());
    }
}
