//! Connections to the target, kept alive between requests.

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use tokio::net::TcpStream;

/// One HTTP/1.1 connection.
pub(super) type Connection = SendRequest<Full<Bytes>>;

/// The idle ones of a target, a bounded number.
#[derive(Debug)]
pub(super) struct Connections {
    target: SocketAddr,
    idle_limit: usize,
    idle: Mutex<Vec<Connection>>,
}

impl Connections {
    pub(super) fn new(target: SocketAddr, idle_limit: usize) -> Self {
        Self { target, idle_limit, idle: Mutex::default() }
    }

    /// An idle connection that the server has not closed.
    pub(super) async fn take_idle(&self) -> Option<Connection> {
        loop {
            // The one used last first: it is the least likely to be closed for idleness at this moment.
            let mut connection = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop()?;
            if connection.ready().await.is_ok() {
                return Some(connection);
            }
        }
    }

    /// Keeps a connection for the next request; the answer's body must have been read to its end.
    pub(super) fn keep(&self, connection: Connection) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < self.idle_limit && !connection.is_closed() {
            idle.push(connection);
        }
    }

    /// A new connection, or what the system said.
    pub(super) async fn open(&self) -> Result<Connection, String> {
        let stream = TcpStream::connect(self.target).await.map_err(|error| error.to_string())?;
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        let (sender, driver) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| describe(&error))?;
        // What goes wrong on the connection is told to the request on it, too.
        tokio::spawn(async move {
            let _ = driver.with_upgrades().await;
        });
        Ok(sender)
    }
}

/// An error with its causes, outermost first.
pub(super) fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
