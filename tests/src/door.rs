//! A door before the socket of a daemon: while it is shut nobody answers there, while it is stuck nobody gets an answer.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

const SHUT: u8 = 0;
const OPEN: u8 = 1;
const STUCK: u8 = 2;
/// How soon a change of the door is noticed.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Stands before a Unix socket. Whoever comes through it keeps their connection until one side or the door ends it.
#[derive(Debug)]
pub struct Door {
    path: PathBuf,
    behind: PathBuf,
    state: Arc<AtomicU8>,
}

impl Door {
    /// An open door at `path` before the socket of `endpoint` (`unix://…`).
    ///
    /// # Errors
    /// When `endpoint` is no `unix://…`, or there can be no socket at `path`.
    pub fn before(endpoint: &str, path: PathBuf) -> std::io::Result<Self> {
        let behind = endpoint.strip_prefix("unix://").ok_or(ErrorKind::InvalidInput)?;
        let mut door = Self { path, behind: PathBuf::from(behind), state: Arc::new(AtomicU8::new(SHUT)) };
        door.open()?;
        Ok(door)
    }

    /// Where it is, as an endpoint.
    pub fn endpoint(&self) -> String {
        format!("unix://{}", self.path.display())
    }

    /// Lets everybody through; who came while it was stuck gets answers now.
    ///
    /// # Errors
    /// When there can be no socket at its path.
    pub fn open(&mut self) -> std::io::Result<()> {
        if self.state.load(Ordering::SeqCst) != SHUT {
            self.state.store(OPEN, Ordering::SeqCst);
            return Ok(());
        }
        let _ = std::fs::remove_file(&self.path);
        let listener = UnixListener::bind(&self.path)?;
        listener.set_nonblocking(true)?;
        // Of its own for each opening, so that what was cut at a closing stays cut.
        self.state = Arc::new(AtomicU8::new(OPEN));
        let (state, behind) = (Arc::clone(&self.state), self.behind.clone());
        std::thread::spawn(move || {
            while state.load(Ordering::SeqCst) != SHUT {
                match listener.accept() {
                    Ok((client, _)) => join(client, &behind, &state),
                    Err(_) => std::thread::sleep(LOOK_AGAIN / 4),
                }
            }
        });
        Ok(())
    }

    /// Takes connections and what they send, and passes nothing on.
    pub fn stick(&self) {
        self.state.store(STUCK, Ordering::SeqCst);
    }

    /// Cuts every connection; the socket is gone.
    pub fn shut(&self) {
        self.state.store(SHUT, Ordering::SeqCst);
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.shut();
    }
}

fn join(client: UnixStream, behind: &Path, state: &Arc<AtomicU8>) {
    let joined = || -> std::io::Result<()> {
        client.set_nonblocking(false)?;
        let server = UnixStream::connect(behind)?;
        for (from, to) in [(client.try_clone()?, server.try_clone()?), (server, client.try_clone()?)] {
            from.set_read_timeout(Some(LOOK_AGAIN))?;
            let state = Arc::clone(state);
            std::thread::spawn(move || pass(from, to, &state));
        }
        Ok(())
    };
    // Who can't be joined is cut off by the drop of `client`.
    let _ = joined();
}

/// Until one side has said all it has to say; the other may go on.
fn pass(mut from: UnixStream, mut to: UnixStream, state: &AtomicU8) {
    let mut bytes = [0; 16 * 1024];
    loop {
        match state.load(Ordering::SeqCst) {
            SHUT => break,
            STUCK => std::thread::sleep(LOOK_AGAIN),
            _ => match from.read(&mut bytes) {
                Ok(0) => {
                    let _ = to.shutdown(Shutdown::Write);
                    return;
                }
                Ok(count) if to.write_all(&bytes[..count]).is_err() => break,
                Ok(_) => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(_) => break,
            },
        }
    }
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}
