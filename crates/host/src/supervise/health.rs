//! Asking an instance how it is, from where it lives.
//!
//! One success makes a check good, `failures` misses in a row make it bad. Until the first success it is asked more often than `every`,
//! so that a deploy does not wait for a clock. A liveness check may miss as it likes for its first `within`.

use super::child::Starter;
use super::reaper::Reaper;
use crate::process;
use crate::state::InstanceConfig;
use cdpipe_model::service::{Health as Check, HealthCheck, HealthKind};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use rustix::process::Signal;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// First pause between questions to an instance that has not answered yet; it doubles up to `every`.
const FIRST_PAUSE: Duration = Duration::from_millis(25);

/// An instance that can't be asked anything counts as ready when it has run for so long.
const UPTIME: Duration = Duration::from_secs(1);

/// What a question or several of them say.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// All readiness checks are good.
    Ready,
    /// It was ready, and is no longer.
    NotReady(String),
    /// It is not ready yet, for this reason.
    Missed(String),
    /// It must be restarted.
    Dead(String),
}

/// The checks of one process. Dropping it ends them.
pub(super) struct Health {
    reports: mpsc::Receiver<Report>,
    /// Readiness checks, whether each is good.
    good: Vec<bool>,
    ready: bool,
    _asking: JoinSet<()>,
}

struct Report {
    /// Index among the readiness checks; `None` for a liveness check.
    ready_check: Option<usize>,
    state: State,
}

enum State {
    Good,
    Missed(String),
    Bad(String),
}

impl Health {
    /// Begins to ask.
    pub(super) fn begin(config: &InstanceConfig, starter: Starter, at: SocketAddr, reaper: Reaper) -> Self {
        // Few checks and a reader that is always there: the bound is never what slows them.
        let (sender, reports) = mpsc::channel(16);
        let mut asking = JoinSet::new();
        let mut checks = config.health.clone();
        if !checks.iter().any(|check| check.kind == HealthKind::Ready) && config.listens {
            checks.push(Check {
                kind: HealthKind::Ready,
                check: HealthCheck::Tcp,
                every_ms: 1_000,
                timeout_ms: 1_000,
                failures: 3,
                within_ms: 60_000,
            });
        }
        let mut good = Vec::new();
        for check in checks {
            let ready_check = (check.kind == HealthKind::Ready).then(|| {
                good.push(false);
                good.len() - 1
            });
            let asker = Asker { check, at, starter: starter.clone(), reaper: reaper.clone() };
            asking.spawn(asker.ask_on(ready_check, sender.clone()));
        }
        if good.is_empty() {
            good.push(false);
            asking.spawn(async move {
                tokio::time::sleep(UPTIME).await;
                let _ = sender.send(Report { ready_check: Some(0), state: State::Good }).await;
                // The channel must not end: that it is silent from here on is the answer.
                std::future::pending::<()>().await;
            });
        }
        Self { reports, good, ready: false, _asking: asking }
    }

    /// The next thing that changes.
    pub(super) async fn next(&mut self) -> Verdict {
        loop {
            let Some(report) = self.reports.recv().await else { return std::future::pending().await };
            match (report.ready_check, report.state) {
                (None, State::Bad(reason)) => return Verdict::Dead(reason),
                (None, State::Missed(reason)) => return Verdict::Missed(reason),
                (None, State::Good) => {}
                (Some(check), state) => {
                    self.good[check] = matches!(state, State::Good);
                    let ready = self.good.iter().all(|good| *good);
                    let was = std::mem::replace(&mut self.ready, ready);
                    match (was, ready, state) {
                        (false, true, _) => return Verdict::Ready,
                        (true, false, State::Bad(reason) | State::Missed(reason)) => {
                            return Verdict::NotReady(reason);
                        }
                        (false, false, State::Bad(reason) | State::Missed(reason)) => {
                            return Verdict::Missed(reason);
                        }
                        _ => {}
                    }
                }
            }
        }
    }
}

struct Asker {
    check: Check,
    at: SocketAddr,
    starter: Starter,
    reaper: Reaper,
}

impl Asker {
    async fn ask_on(self, ready_check: Option<usize>, reports: mpsc::Sender<Report>) {
        let since = Instant::now();
        let every = Duration::from_millis(self.check.every_ms.max(1));
        let grace = Duration::from_millis(self.check.within_ms);
        let mut pause = FIRST_PAUSE.min(every);
        let mut misses = 0_u32;
        let mut succeeded = false;
        loop {
            let state = match self.ask().await {
                Ok(()) => {
                    misses = 0;
                    succeeded = true;
                    Some(State::Good)
                }
                Err(reason) => {
                    misses = misses.saturating_add(1);
                    // A readiness check that was never met has only missed, however long it goes on: whether the
                    // last miss before a deadline is counted must not depend on the millisecond it came in.
                    let settled = succeeded || (ready_check.is_none() && since.elapsed() >= grace);
                    let enough = self.check.failures.max(1);
                    if misses >= enough && settled {
                        Some(State::Bad(format!("{reason} ({enough} times in a row)")))
                    } else if succeeded {
                        // One miss of an instance that was good says nothing yet.
                        None
                    } else {
                        Some(State::Missed(reason))
                    }
                }
            };
            if let Some(state) = state
                && reports.send(Report { ready_check, state }).await.is_err()
            {
                return;
            }
            if succeeded {
                pause = every;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(every);
        }
    }

    async fn ask(&self) -> Result<(), String> {
        let timeout = Duration::from_millis(self.check.timeout_ms.max(1));
        let late = || format!("{} did not answer within {}", self.name(), Seconds(timeout));
        match &self.check.check {
            HealthCheck::Http { path } => match tokio::time::timeout(timeout, get(self.at, path)).await {
                Ok(answer) => answer.map_err(|reason| format!("{}: {reason}", self.name())),
                Err(_) => Err(late()),
            },
            HealthCheck::Tcp => match tokio::time::timeout(timeout, connect(self.at)).await {
                Ok(answer) => answer.map(|_stream| ()).map_err(|reason| format!("{}: {reason}", self.name())),
                Err(_) => Err(late()),
            },
            HealthCheck::Command { script } => self.command(script, timeout).await,
        }
    }

    fn name(&self) -> String {
        match &self.check.check {
            HealthCheck::Http { path } => format!("GET http://{}{path}", self.at),
            HealthCheck::Tcp => format!("tcp {}", self.at),
            HealthCheck::Command { .. } => "the health command".to_owned(),
        }
    }

    async fn command(&self, script: &str, timeout: Duration) -> Result<(), String> {
        let child = self
            .starter
            .command(Path::new("/bin/sh"), ["-ec", script])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| format!("the health command could not be started: {error}"))?;
        let exit = self.reaper.expect(child.id());
        // Ends with this future, also when the check is dropped because the instance ended.
        let mut group = KillOnDrop(Some(child.id()));
        let ended = tokio::time::timeout(timeout, exit).await;
        if ended.is_ok() {
            // It was collected: its id may belong to someone else by now.
            group.0 = None;
        }
        match ended {
            Err(_) => Err(format!("the health command did not end within {}", Seconds(timeout))),
            Ok(Ok(status)) => match (status.exit_status(), status.terminating_signal()) {
                (Some(0), _) => Ok(()),
                (Some(code), _) => Err(format!("the health command ended with exit status {code}")),
                (None, signal) => Err(format!(
                    "the health command was killed by {}",
                    process::signal_name(signal.unwrap_or_default())
                )),
            },
            Ok(Err(_)) => Err("the health command was lost".to_owned()),
        }
    }
}

struct KillOnDrop(Option<u32>);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            process::signal_group(group, Signal::KILL);
        }
    }
}

struct Seconds(Duration);

impl std::fmt::Display for Seconds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&cdpipe_model::value::format_duration_ms(self.0.as_secs_f64() * 1000.0))
    }
}

async fn connect(at: SocketAddr) -> Result<TcpStream, String> {
    let stream = TcpStream::connect(at).await.map_err(|error| reason(&error))?;
    // Where nobody listens, a connection from the same port number can connect to itself.
    match (stream.local_addr(), stream.peer_addr()) {
        (Ok(local), Ok(peer)) if local == peer => Err("nobody listens".to_owned()),
        _ => Ok(stream),
    }
}

fn reason(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        std::io::ErrorKind::ConnectionReset => "connection reset".to_owned(),
        _ => error.to_string(),
    }
}

async fn get(at: SocketAddr, path: &str) -> Result<(), String> {
    let stream = connect(at).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    let request = hyper::Request::get(path)
        .header("host", at.to_string())
        .header("user-agent", concat!("cdpipe/", env!("CARGO_PKG_VERSION"), " (health)"))
        .header("connection", "close")
        .body(Empty::<bytes::Bytes>::new())
        .map_err(|error| error.to_string())?;
    let answer = sender.send_request(request);
    tokio::pin!(answer, connection);
    let answer = tokio::select! {
        answer = &mut answer => answer,
        // The connection can end in the same moment in which the answer is there.
        ended = &mut connection => match ended {
            Ok(()) => answer.await,
            Err(error) => Err(error),
        },
    };
    let status = answer.map_err(|error| format!("no answer: {error}"))?.status();
    if status.is_success() || status.is_redirection() { Ok(()) } else { Err(format!("answered {status}")) }
}
