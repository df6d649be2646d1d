//! Ports that nobody listens on.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

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
        match take(port) {
            Ok(_) => return Ok(port),
            Err(error) => last = error.into(),
        }
    }
    Err(last)
}

/// Binds the port without listening on it. Another thread may fork a child in this very moment, which keeps the socket
/// until its exec: a port that is only bound, by a socket that shares, can be listened on all the same.
fn take(port: u16) -> rustix::io::Result<OwnedFd> {
    let socket =
        rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    rustix::net::bind(&socket, &SocketAddr::from(([127, 0, 0, 1], port)))?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    #[test]
    fn ports_differ_and_can_be_listened_on() {
        let (a, b) = (super::free().unwrap(), super::free().unwrap());
        assert_ne!(a, b);
        std::net::TcpListener::bind(("127.0.0.1", a)).unwrap();
    }

    #[test]
    fn a_port_that_is_listened_on_is_not_free_and_one_that_is_only_bound_can_be_listened_on() {
        let port = super::free().unwrap();
        let address = ("127.0.0.1", port);
        let listener = std::net::TcpListener::bind(address).unwrap();
        assert!(super::take(port).is_err());
        drop(listener);
        let kept = super::take(port).unwrap();
        std::net::TcpListener::bind(address).unwrap();
        drop(kept);
    }
}
