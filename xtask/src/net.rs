//! Just enough network for readiness checks: a free loopback port, one HTTP GET, one line of talk. Loopback only, always
//! with a deadline.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

/// How long one try of a readiness check may take.
const ONE_TRY: Duration = Duration::from_millis(500);

/// A port on 127.0.0.1 that nobody listens on now.
///
/// # Errors
/// The machine has no free port.
pub(crate) fn free_port() -> Result<u16, String> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .map(|address| address.port())
        .map_err(|error| format!("no free port on 127.0.0.1: {error}"))
}

/// Whether nobody listens on this loopback port now.
pub(crate) fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

/// Sends `request` to a loopback port and answers with the first bytes that come back.
pub(crate) fn talk(port: u16, request: &str) -> Option<String> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = TcpStream::connect_timeout(&address, ONE_TRY).ok()?;
    stream.set_read_timeout(Some(ONE_TRY)).ok()?;
    stream.set_write_timeout(Some(ONE_TRY)).ok()?;
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = [0; 1024];
    let count = stream.read(&mut answer).ok()?;
    Some(String::from_utf8_lossy(&answer[..count]).into_owned())
}

/// Sends `request` to a Unix socket and answers with the first bytes that come back.
pub(crate) fn talk_unix(path: &std::path::Path, request: &str) -> Option<String> {
    let mut stream = std::os::unix::net::UnixStream::connect(path).ok()?;
    stream.set_read_timeout(Some(ONE_TRY)).ok()?;
    stream.set_write_timeout(Some(ONE_TRY)).ok()?;
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = [0; 1024];
    let count = stream.read(&mut answer).ok()?;
    Some(String::from_utf8_lossy(&answer[..count]).into_owned())
}

/// The status of a GET, `None` while there is no answer.
pub(crate) fn http_status(port: u16, path: &str) -> Option<u16> {
    let answer = talk(port, &format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"))?;
    answer.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()
}

/// Asks `ready` again and again until it says yes, `gone` says that there is no hope, or the time is up.
pub(crate) fn until(
    within: Duration,
    mut ready: impl FnMut() -> bool,
    mut gone: impl FnMut() -> bool,
) -> bool {
    let deadline = Instant::now() + within;
    while Instant::now() < deadline {
        if ready() {
            return true;
        }
        if gone() || crate::sys::interrupted() {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    ready()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_of_a_real_answer_and_of_none() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 512];
            let count = stream.read(&mut request).unwrap();
            stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap();
            String::from_utf8_lossy(&request[..count]).into_owned()
        });
        assert_eq!(http_status(port, "/-/ready"), Some(204));
        assert!(server.join().unwrap().starts_with("GET /-/ready HTTP/1.1\r\n"));
        assert_eq!(http_status(port, "/"), None);
    }
}
