//! The proxy's side of the control socket, and the admin listener.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::Serialize;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, sleep, timeout};

use super::protocol::{
    Call, Drain, MAX_MESSAGE_BYTES, Metrics, Outcome, PROTOCOL_VERSION, Pong, Put, Refusal, RefusalCode,
    Request, Requests, Response, Selection, State,
};
use crate::keeper::Keeper;
use crate::plane::Plane;

/// Control connections served at once; more wait.
const MAX_CONNECTIONS: usize = 64;
/// A message that has begun must have come, or gone, whole by then.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);
/// A control connection without a call.
const IDLE_TIMEOUT: Duration = Duration::from_secs(300);
/// Longest wait for a drain.
const MAX_WAIT: Duration = Duration::from_secs(3_600);
/// How often a wait looks.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// How long a cut is repeated until it has hit what was just being chosen.
const CUT_TIMEOUT: Duration = Duration::from_secs(2);

/// What control calls act on.
#[derive(Debug)]
pub(crate) struct Control {
    pub(crate) plane: Arc<Plane>,
    pub(crate) keeper: Keeper,
    /// Told when somebody asks the proxy to stop.
    pub(crate) shutdown: Notify,
    /// Set at the first moment of the end, so that nobody who asks takes a proxy that goes for one that stays.
    pub(crate) stopping: AtomicBool,
}

impl Control {
    /// Serves the control socket for ever.
    pub(crate) async fn listen(self: Arc<Self>, listener: UnixListener) {
        let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let Ok(permit) = room.clone().acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let control = self.clone();
                    tokio::spawn(async move {
                        if let Err(error) = control.converse(stream).await {
                            tracing::debug!(%error, "a control connection broke");
                        }
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "a control connection could not be accepted");
                    sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    async fn converse(&self, stream: UnixStream) -> io::Result<()> {
        let mut stream = BufReader::new(stream);
        loop {
            match timeout(IDLE_TIMEOUT, stream.fill_buf()).await {
                Ok(Ok(bytes)) if !bytes.is_empty() => {}
                _ => return Ok(()),
            }
            let mut line = Vec::new();
            timeout(
                MESSAGE_TIMEOUT,
                (&mut stream).take(MAX_MESSAGE_BYTES as u64 + 1).read_until(b'\n', &mut line),
            )
            .await??;
            let whole = line.last() == Some(&b'\n');
            let result = if whole {
                self.answer(&line).await
            } else if line.len() > MAX_MESSAGE_BYTES {
                Err(Refusal::new(
                    RefusalCode::BadMessage,
                    format!("the message is longer than {MAX_MESSAGE_BYTES} bytes"),
                ))
            } else {
                return Ok(());
            };
            let result = result.map_or_else(Outcome::Error, Outcome::Ok);
            let mut answer = serde_json::to_vec(&Response { v: PROTOCOL_VERSION, result })?;
            answer.push(b'\n');
            timeout(MESSAGE_TIMEOUT, stream.get_mut().write_all(&answer)).await??;
            if !whole {
                return Ok(());
            }
        }
    }

    async fn answer(&self, line: &[u8]) -> Result<serde_json::Value, Refusal> {
        #[derive(serde::Deserialize)]
        struct Version {
            v: u32,
        }
        let bad = |error: serde_json::Error| {
            Refusal::new(RefusalCode::BadMessage, format!("the message can not be read: {error}"))
        };
        // The version first: what follows it may have another shape.
        let Version { v } = serde_json::from_slice(line).map_err(bad)?;
        if v != PROTOCOL_VERSION {
            return Err(Refusal::new(
                RefusalCode::Version,
                format!(
                    "this proxy is cdpipe {} and speaks version {PROTOCOL_VERSION} of the control protocol, found version {v}",
                    env!("CARGO_PKG_VERSION")
                ),
            ));
        }
        let Request { call, .. } = serde_json::from_slice(line).map_err(bad)?;
        match call {
            Call::Ping => value(&self.pong()),
            Call::Get => value(&self.state().await),
            Call::Put { routes, remove, epoch, owner } => {
                value(&Put { revision: self.keeper.put(routes, remove, epoch, &owner).await? })
            }
            Call::Drained(what) => value(&self.drain_of(&what)),
            Call::WaitDrained { what, timeout_ms } => {
                let deadline = Instant::now() + Duration::from_millis(timeout_ms).min(MAX_WAIT);
                value(&self.wait(&what, deadline, || ()).await)
            }
            Call::Cut(what) => {
                if self.drain_of(&what).routed {
                    return Err(Refusal::new(
                        RefusalCode::StillRouted,
                        format!(
                            "release {} of service {} is still routed to: take it out of the table first",
                            what.release, what.service
                        ),
                    ));
                }
                let cut = || {
                    let (_, members) = self.plane.load(&what);
                    self.plane.shared.conns.cut(&members);
                };
                value(&self.wait(&what, Instant::now() + CUT_TIMEOUT, cut).await)
            }
            Call::Requests { service, route } => {
                value(&Requests { releases: self.plane.requests(&service, route.as_ref()) })
            }
            Call::Metrics => value(&Metrics { text: self.plane.metrics() }),
            Call::Shutdown => {
                self.stopping.store(true, Ordering::SeqCst);
                self.shutdown.notify_one();
                value(&self.pong())
            }
        }
    }

    fn pong(&self) -> Pong {
        Pong {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            revision: self.plane.shared.routing.current().table.revision,
            stopping: self.stopping.load(Ordering::SeqCst),
        }
    }

    async fn state(&self) -> State {
        State {
            table: self.keeper.table().await,
            loads: self.plane.loads(),
            connections: self.plane.shared.conns.open() as u64,
        }
    }

    /// The table is asked before the counters: a count of zero after "not routed" stays zero.
    fn drain_of(&self, what: &Selection) -> Drain {
        let routed = self.plane.shared.routing.current().routes_to(what);
        let (load, _) = self.plane.load(what);
        Drain { routed, in_flight: load.in_flight, upgraded: load.upgraded }
    }

    async fn wait(&self, what: &Selection, deadline: Instant, mut before_each_look: impl FnMut()) -> Drain {
        loop {
            before_each_look();
            let drain = self.drain_of(what);
            if drain.done() || Instant::now() >= deadline {
                return drain;
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Serves `/metrics` and `/healthz` over plain HTTP for ever, one request a connection.
    pub(crate) async fn listen_admin(self: Arc<Self>, listener: TcpListener) {
        let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let Ok(permit) = room.clone().acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let control = self.clone();
                    tokio::spawn(async move {
                        let _ = timeout(MESSAGE_TIMEOUT, control.admin(stream)).await;
                        drop(permit);
                    });
                }
                Err(_) => sleep(Duration::from_millis(50)).await,
            }
        }
    }

    async fn admin(&self, stream: TcpStream) -> io::Result<()> {
        let mut stream = BufReader::new(stream);
        let mut head = (&mut stream).take(16_384);
        let mut first = String::new();
        head.read_line(&mut first).await?;
        let mut line = String::new();
        // The rest of the head is read, so that closing does not reset the connection.
        while head.read_line(&mut line).await? > 2 {
            line.clear();
        }
        let mut words = first.split(' ');
        let (method, path) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
        let (status, kind, text) = match (method, path) {
            ("GET" | "HEAD", "/metrics") => {
                ("200 OK", "text/plain; version=0.0.4; charset=utf-8", self.plane.metrics())
            }
            ("GET" | "HEAD", "/healthz") if self.stopping.load(Ordering::SeqCst) => {
                ("503 Service Unavailable", "text/plain", "stopping\n".to_owned())
            }
            ("GET" | "HEAD", "/healthz") => ("200 OK", "text/plain", "ok\n".to_owned()),
            _ => ("404 Not Found", "text/plain", "expected GET /metrics or GET /healthz\n".to_owned()),
        };
        let mut answer = format!(
            "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
            text.len()
        );
        if method != "HEAD" {
            answer.push_str(&text);
        }
        stream.get_mut().write_all(answer.as_bytes()).await?;
        stream.get_mut().shutdown().await
    }
}

fn value<T: Serialize>(answer: &T) -> Result<serde_json::Value, Refusal> {
    serde_json::to_value(answer).map_err(|error| {
        Refusal::new(RefusalCode::BadMessage, format!("the answer can not be written: {error}"))
    })
}
