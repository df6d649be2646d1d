//! A port for an instance: free where it listens, its own as long as the supervisor lives, the same after each restart if possible.
//!
//! Ports are taken from below the kernel's range for outgoing connections. Inside it, a connection of anybody could take the port in
//! the moment between two starts, and a health check could connect to itself. Between supervisors a port is reserved by an abstract
//! socket of its number: that lives in the same network namespace as the port, and ends with its holder.

use std::io;
use std::net::{IpAddr, TcpListener};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::time::{SystemTime, UNIX_EPOCH};

/// Lowest port that is tried; below it are those that people choose.
const LOWEST: u16 = 20_000;

/// How many ports are tried before the kernel is asked for any.
const TRIES: u32 = 200;

/// A port that no other supervisor has.
#[derive(Debug)]
pub(super) struct Port {
    number: u16,
    listen: IpAddr,
    // Its existence is the reservation.
    _reservation: UnixListener,
}

impl Port {
    /// Takes the preferred port if it is free, else another one.
    ///
    /// # Errors
    /// If there is none.
    pub(super) fn choose(listen: IpAddr, preferred: Option<u16>) -> io::Result<Self> {
        if let Some(port) = preferred.and_then(|number| Self::take(listen, number)) {
            return Ok(port);
        }
        let ceiling = outgoing_range_begin().max(LOWEST + 1);
        let span = u32::from(ceiling - LOWEST);
        let mut number = seed();
        for _ in 0..TRIES {
            number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let offset = u16::try_from((number >> 33) % u64::from(span)).unwrap_or_default();
            if let Some(port) = Self::take(listen, LOWEST + offset) {
                return Ok(port);
            }
        }
        // Nearly all are taken, or the range is tiny: any port is better than none.
        for _ in 0..TRIES {
            let number = TcpListener::bind((listen, 0))?.local_addr()?.port();
            if let Some(port) = Self::take(listen, number) {
                return Ok(port);
            }
        }
        Err(io::Error::from(io::ErrorKind::AddrInUse))
    }

    fn take(listen: IpAddr, number: u16) -> Option<Self> {
        let name = SocketAddr::from_abstract_name(format!("cdpipe-port-{number}")).ok()?;
        let reservation = UnixListener::bind_addr(&name).ok()?;
        is_free(listen, number).then_some(Self { number, listen, _reservation: reservation })
    }

    /// Its number.
    pub(super) fn number(&self) -> u16 {
        self.number
    }

    /// Whether an instance could listen on it now: someone else may have taken it while the instance was down.
    pub(super) fn is_free(&self) -> bool {
        is_free(self.listen, self.number)
    }
}

/// Whether one could listen there. Rust's listener sets SO_REUSEADDR, so connections that linger from before are no obstacle.
fn is_free(listen: IpAddr, number: u16) -> bool {
    TcpListener::bind((listen, number)).is_ok()
}

fn outgoing_range_begin() -> u16 {
    std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")
        .ok()
        .and_then(|text| text.split_whitespace().next()?.parse().ok())
        .unwrap_or(32_768)
}

/// Where to begin looking: different for each supervisor, and of no other meaning.
fn seed() -> u64 {
    let nanos =
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::from(since.subsec_nanos()));
    (u64::from(std::process::id()) << 32) ^ nanos
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    #[test]
    fn two_supervisors_never_get_the_same_port() {
        let ports: Vec<Port> = (0..50).map(|_| Port::choose(HERE, None).expect("a port")).collect();
        let mut numbers: Vec<u16> = ports.iter().map(Port::number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), 50);
        assert_ne!(Port::choose(HERE, Some(ports[0].number())).expect("another").number(), ports[0].number());
    }

    #[test]
    fn a_port_that_someone_listens_on_is_left_alone() {
        let number = Port::choose(HERE, None).expect("a port").number();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, number)).expect("is free");
        assert_ne!(Port::choose(HERE, Some(number)).expect("another").number(), number);
        drop(listener);
        assert_eq!(Port::choose(HERE, Some(number)).expect("the same").number(), number);
    }
}
