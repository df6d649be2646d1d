//! The client of the control socket.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cdpipe_model::service::Route;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};

use super::protocol::{
    Call, Drain, MAX_MESSAGE_BYTES, Metrics, Outcome, PROTOCOL_VERSION, Pong, Put, PutRoute, Refusal,
    Request, Requests, Response, Selection, State,
};
use super::socket;

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody answers on the socket.
    #[error("the proxy of {} does not answer: {error}", directory.display())]
    NotRunning {
        /// Its state directory.
        directory: PathBuf,
        /// What connecting said.
        error: io::Error,
    },
    /// The connection broke within the call; whether the call was done is not known.
    #[error("the proxy went away within the call: {0}")]
    Broken(io::Error),
    /// No answer in time; whether the call was done is not known.
    #[error("the proxy did not answer within {0} ms")]
    Deadline(u64),
    /// The proxy said no; nothing has changed.
    #[error("{0}")]
    Refused(Refusal),
    /// The answer can not be read.
    #[error("the proxy's answer can not be read: {0}")]
    BadAnswer(String),
}

/// Speaks to the proxy of one state directory. Holds no connection: each call makes its own, so a proxy that was restarted
/// between two calls is no error.
#[derive(Clone, Debug)]
pub struct ProxyClient {
    directory: PathBuf,
    timeout_ms: u64,
}

impl ProxyClient {
    /// Default deadline of a call in milliseconds.
    pub const DEFAULT_TIMEOUT_MS: u64 = 10_000;

    /// A client for the proxy of this state directory. Does not look whether it runs.
    pub fn new(state_dir: impl Into<PathBuf>) -> ProxyClient {
        ProxyClient { directory: state_dir.into(), timeout_ms: Self::DEFAULT_TIMEOUT_MS }
    }

    /// With this deadline for each call, in milliseconds; waiting calls get it on top of what they wait.
    #[must_use]
    pub fn with_timeout_ms(mut self, timeout_ms: u64) -> ProxyClient {
        self.timeout_ms = timeout_ms;
        self
    }

    /// The state directory.
    pub fn state_dir(&self) -> &Path {
        &self.directory
    }

    /// Whether it is there.
    ///
    /// # Errors
    /// [`ClientError`]; `NotRunning` if there is no proxy.
    pub async fn ping(&self) -> Result<Pong, ClientError> {
        self.call(Call::Ping, 0).await
    }

    /// What it serves.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn get(&self) -> Result<State, ClientError> {
        self.call(Call::Get, 0).await
    }

    /// Adds or replaces routes and takes out others, all at one moment or none. When this returns, no request is chosen by
    /// the old table any more and the new one is on disk.
    ///
    /// # Errors
    /// [`ClientError`]; `Refused` with `stale`, `moved`, `port_in_use`, `bind_failed`, `invalid` or `state_unwritable`.
    pub async fn put(
        &self,
        routes: Vec<PutRoute>,
        remove: Vec<Route>,
        epoch: u64,
        owner: &str,
    ) -> Result<Put, ClientError> {
        self.call(Call::Put { routes, remove, epoch, owner: owner.to_owned() }, 0).await
    }

    /// What is in flight on a release or some of its instances.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn drained(&self, what: Selection) -> Result<Drain, ClientError> {
        self.call(Call::Drained(what), 0).await
    }

    /// Waits until nothing is routed there and nothing is in flight; look at [`Drain::done`] whether that came true in time.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn wait_drained(&self, what: Selection, timeout_ms: u64) -> Result<Drain, ClientError> {
        self.call(Call::WaitDrained { what, timeout_ms }, timeout_ms).await
    }

    /// Ends what is still in flight there: answers that had not begun get 503, others are reset.
    ///
    /// # Errors
    /// [`ClientError`]; `Refused` with `still_routed` while the table routes there.
    pub async fn cut(&self, what: Selection) -> Result<Drain, ClientError> {
        self.call(Call::Cut(what), 0).await
    }

    /// Requests that each release of a service got since the proxy started, by one route or by all.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn requests(&self, service: &str, route: Option<&Route>) -> Result<Requests, ClientError> {
        self.call(Call::Requests { service: service.to_owned(), route: route.cloned() }, 0).await
    }

    /// Everything that is counted, as Prometheus text.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn metrics(&self) -> Result<String, ClientError> {
        Ok(self.call::<Metrics>(Call::Metrics, 0).await?.text)
    }

    /// Has it stop as SIGTERM does; it answers at once and drains afterwards.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn shutdown(&self) -> Result<Pong, ClientError> {
        self.call(Call::Shutdown, 0).await
    }

    async fn call<T: DeserializeOwned>(&self, call: Call, more_ms: u64) -> Result<T, ClientError> {
        let timeout_ms = self.timeout_ms.saturating_add(more_ms);
        match tokio::time::timeout(Duration::from_millis(timeout_ms), self.exchange(call)).await {
            Ok(result) => result,
            Err(_) => Err(ClientError::Deadline(timeout_ms)),
        }
    }

    async fn exchange<T: DeserializeOwned>(&self, call: Call) -> Result<T, ClientError> {
        let stream = socket::connect(&self.directory)
            .await
            .map_err(|error| ClientError::NotRunning { directory: self.directory.clone(), error })?;
        let bad = |error: serde_json::Error| ClientError::BadAnswer(error.to_string());
        let mut line = serde_json::to_vec(&Request { v: PROTOCOL_VERSION, call }).map_err(bad)?;
        line.push(b'\n');
        let mut stream = BufReader::new(stream);
        stream.get_mut().write_all(&line).await.map_err(ClientError::Broken)?;
        let mut answer = Vec::new();
        (&mut stream)
            .take(MAX_MESSAGE_BYTES as u64 + 1)
            .read_until(b'\n', &mut answer)
            .await
            .map_err(ClientError::Broken)?;
        if answer.last() != Some(&b'\n') {
            return Err(ClientError::Broken(io::ErrorKind::UnexpectedEof.into()));
        }
        let response: Response = serde_json::from_slice(&answer).map_err(bad)?;
        match response.result {
            Outcome::Ok(value) => serde_json::from_value(value).map_err(bad),
            Outcome::Error(refusal) => Err(ClientError::Refused(refusal)),
        }
    }
}
