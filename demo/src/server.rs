//! The life of one shop: bind, become ready, accept, drain.

use crate::fault::{ErrorSpread, Fault};
use crate::metrics::Metrics;
use crate::service;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

/// More connections than this wait in the kernel's own, bounded, queue.
const CONNECTION_LIMIT: usize = 4_096;
/// How long a connection may stay silent between requests. Longer than a proxy keeps idle connections, so that it is
/// always the proxy that closes and a request never meets a connection that closes at the same moment.
const IDLE_LIMIT: Duration = Duration::from_secs(120);

/// How a shop is set up.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where it listens; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The version it says it is.
    pub version: String,
    /// The release id that its deployer gave it.
    pub release: String,
    /// How long requests in flight may take to finish once the shop was told to stop.
    pub drain: Duration,
    /// What is wrong with it.
    pub fault: Fault,
}

/// Why a shop could not open.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address is taken or not ours.
    #[error("cannot listen on {address}: {source}; choose another with --port or $PORT")]
    Listen {
        /// The address that was asked for.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
}

/// How a shop ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It was told to stop.
    Drained {
        /// How long that took.
        took: Duration,
        /// How many connections were still busy when the time was up.
        cut: usize,
    },
    /// Its fault `crash-after` came due: everything in flight was cut.
    Crashed,
}

/// Where a shop stands in its life, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    Starting,
    Ready,
    Draining,
    /// The time to drain is up: sockets close politely.
    Closing,
    Crashed,
}

/// What every connection of a shop shares.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) metrics: Metrics,
    pub(crate) errors: ErrorSpread,
    pub(crate) started: Instant,
    pub(crate) phase: watch::Sender<Phase>,
}

/// Held by whatever must finish before the shop may end.
#[derive(Debug, Clone)]
pub(crate) struct Busy(#[expect(dead_code, reason = "its drop is what is waited for")] mpsc::Sender<()>);

/// A shop that has its port but serves nobody yet.
#[derive(Debug)]
pub struct Shop {
    listener: TcpListener,
    shared: Arc<Shared>,
}

impl Shop {
    /// Takes the port.
    ///
    /// # Errors
    /// When the port is taken or the address is not ours.
    pub async fn bind(config: Config) -> Result<Self, ServeError> {
        let address = config.listen;
        let listener =
            TcpListener::bind(address).await.map_err(|source| ServeError::Listen { address, source })?;
        let shared = Shared {
            metrics: Metrics::new(&config.version, &config.release),
            errors: ErrorSpread::new(config.fault.errors_per_10k),
            started: Instant::now(),
            phase: watch::Sender::new(Phase::Starting),
            config,
        };
        Ok(Self { listener, shared: Arc::new(shared) })
    }

    /// Where it listens, with the real port.
    pub fn address(&self) -> SocketAddr {
        self.listener.local_addr().unwrap_or(self.shared.config.listen)
    }

    /// Serves until `stop` is ready, then finishes what is in flight, for as long as the configured drain at most.
    pub async fn run(self, stop: impl Future<Output = ()>) -> Ended {
        let Self { listener, shared } = self;
        let fault = shared.config.fault.clone();
        let crash = async {
            match fault.crash_after {
                Some(after) => tokio::time::sleep(after).await,
                None => std::future::pending().await,
            }
        };
        let become_ready = async {
            tokio::time::sleep(fault.slow_start).await;
            if !fault.never_healthy {
                shared.phase.send_replace(Phase::Ready);
            }
            std::future::pending::<()>().await;
        };
        tokio::pin!(stop, crash, become_ready);
        if fault.slow_start.is_zero() && !fault.never_healthy {
            shared.phase.send_replace(Phase::Ready);
        }

        let (busy, mut all_done) = mpsc::channel(1);
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                () = &mut stop => break,
                () = &mut crash => {
                    shared.phase.send_replace(Phase::Crashed);
                    return Ended::Crashed;
                }
                () = &mut become_ready => {}
                accepted = listener.accept(), if connections.len() < CONNECTION_LIMIT => match accepted {
                    Ok((stream, _)) => {
                        connections.spawn(serve(stream, Arc::clone(&shared), Busy(busy.clone())));
                    }
                    // Out of descriptors, say: a pause lets some come free, where a tight loop would only burn.
                    Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                },
                Some(_) = connections.join_next() => {}
            }
        }

        let told = Instant::now();
        // Who is connected already, in the kernel's queue, was promised an answer: closing now would reset them.
        while let Ok(Ok((stream, _))) = tokio::time::timeout(Duration::ZERO, listener.accept()).await {
            connections.spawn(serve(stream, Arc::clone(&shared), Busy(busy.clone())));
        }
        drop(listener);
        shared.phase.send_replace(Phase::Draining);
        drop(busy);
        let cut = match tokio::time::timeout(shared.config.drain, all_done.recv()).await {
            Ok(_) => 0,
            Err(_) => {
                shared.phase.send_replace(Phase::Closing);
                // Long enough for a socket's close frame, short enough for nobody to wait for.
                let _ = tokio::time::timeout(Duration::from_millis(100), all_done.recv()).await;
                while connections.try_join_next().is_some() {}
                connections.len()
            }
        };
        Ended::Drained { took: told.elapsed(), cut }
    }
}

async fn serve(stream: TcpStream, shared: Arc<Shared>, busy: Busy) {
    // Without it a small answer may wait for the acknowledgement of the one before.
    let _ = stream.set_nodelay(true);
    let mut phase = shared.phase.subscribe();
    let service = service_fn(|request| service::answer(Arc::clone(&shared), busy.clone(), request));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE_LIMIT)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    tokio::pin!(connection);
    let draining = async {
        // The sender lives as long as `shared`, so this cannot fail.
        let _ = phase.wait_for(|phase| *phase >= Phase::Draining).await;
    };
    // What goes wrong on one connection (a client that left, garbage on the line) concerns nobody else.
    tokio::select! {
        _ = connection.as_mut() => {}
        () = draining => {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
}
