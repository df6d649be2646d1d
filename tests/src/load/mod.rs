//! Requests at a constant rate, whatever becomes of them.
//!
//! A closed loop (ask, wait, ask again) goes quiet just when a server stalls, so it cannot see the stall. Here each
//! request has a time at which it is due, and is sent then, answered or not those before it; latency counts from when
//! it was due. The load runs on a thread of its own, so that a test may block without disturbing it.
//!
//! Nothing is tried again. Taking a kept-alive connection that the server has closed already is no retry: nothing was
//! sent on it.

mod attempt;
mod connections;
mod kinds;
mod record;
mod report;
mod socket;
mod timeline;

pub use kinds::{Kind, Mix};
pub use record::{Failure, FailureKind, Record};
pub use report::{Named, NotAllowed, Report};
pub use timeline::Timeline;

use connections::Connections;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

/// The most requests of one load; each one's record stays in memory.
pub const REQUEST_LIMIT: u64 = 1_000_000;
/// The fastest arrival rate, each second.
pub const RATE_LIMIT_PER_S: u32 = 20_000;
/// The longest load.
pub const LENGTH_LIMIT: Duration = Duration::from_secs(3_600);

/// What is sent where, how fast and for how long.
#[derive(Debug, Clone)]
pub struct Load {
    /// Loopback only.
    pub target: SocketAddr,
    /// What requests name as their host; by default the target's address.
    pub host: Option<String>,
    /// Arrivals each second, 1 to [`RATE_LIMIT_PER_S`].
    pub rate_per_s: u32,
    /// When arrivals end by themselves, at most [`LENGTH_LIMIT`].
    pub length: Duration,
    /// Which kinds of request, in which proportion.
    pub mix: Mix,
    /// Chooses kinds and payloads; the same seed gives the same requests.
    pub seed: u64,
    /// How long an answer may take over what its kind takes by nature.
    pub patience: Duration,
    /// Requests unanswered at one time; one that is due beyond it is recorded as [`FailureKind::Crowded`].
    pub in_flight_limit: usize,
    /// Kept-alive connections that wait for their next request.
    pub idle_limit: usize,
}

impl Load {
    /// Forty requests a second of every kind, for up to ten minutes.
    pub fn on(target: SocketAddr) -> Self {
        Self {
            target,
            host: None,
            rate_per_s: 40,
            length: Duration::from_secs(600),
            mix: Mix::every_kind(),
            seed: 1,
            patience: Duration::from_secs(10),
            in_flight_limit: 2_000,
            idle_limit: 64,
        }
    }

    fn host(&self) -> String {
        self.host.clone().unwrap_or_else(|| self.target.to_string())
    }

    /// Begins to send, on a thread of its own.
    ///
    /// # Errors
    /// When the target is not loopback, a bound is passed, or the thread cannot be made.
    pub fn start(self) -> Result<Running, LoadError> {
        if !self.target.ip().is_loopback() {
            return Err(LoadError::NotLoopback(self.target));
        }
        let requests = self.length.as_secs_f64() * f64::from(self.rate_per_s);
        let bounded = (1..=RATE_LIMIT_PER_S).contains(&self.rate_per_s)
            && self.length <= LENGTH_LIMIT
            && requests <= REQUEST_LIMIT as f64;
        if !bounded {
            return Err(LoadError::TooMuch { rate_per_s: self.rate_per_s, length: self.length });
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let clock = Clock::starting_now();
        let thread = std::thread::Builder::new()
            .name("load".to_owned())
            .spawn(move || runtime.block_on(send_all(Arc::new(self), clock, stopped)))?;
        Ok(Running { clock, stop, thread })
    }
}

/// A load that cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Only this machine may be loaded.
    #[error("a load is for loopback addresses only, found {0}")]
    NotLoopback(SocketAddr),
    /// Rate, length or their product passes its bound.
    #[error(
        "a load of {rate_per_s} requests/s for {length:?} is out of bounds: at most {RATE_LIMIT_PER_S}/s, \
         {LENGTH_LIMIT:?} and {REQUEST_LIMIT} requests in all"
    )]
    TooMuch {
        /// What was asked.
        rate_per_s: u32,
        /// What was asked.
        length: Duration,
    },
    /// The thread could not be made.
    #[error("cannot start the load's thread: {0}")]
    Thread(#[from] std::io::Error),
    /// The load's thread panicked: a bug here.
    #[error("the load's own thread failed")]
    Lost,
}

/// Time as a load counts it: since its start. All times of a [`Report`] and a [`Timeline`] are of this kind.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    began: Instant,
    began_unix_ms: u128,
}

impl Clock {
    fn starting_now() -> Self {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { began: Instant::now(), began_unix_ms: unix.as_millis() }
    }

    #[cfg(test)]
    pub(crate) fn of_unix_ms(began_unix_ms: u128) -> Self {
        Self { began: Instant::now(), began_unix_ms }
    }

    /// Time since the start.
    pub fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// The load's time of an instant; zero for one before its start.
    pub fn at(&self, instant: Instant) -> Duration {
        instant.saturating_duration_since(self.began)
    }

    /// The load's time of a wall-clock time, in milliseconds of Unix time, as a program prints it.
    pub fn at_unix_ms(&self, unix_ms: u128) -> Duration {
        Duration::from_millis(u64::try_from(unix_ms.saturating_sub(self.began_unix_ms)).unwrap_or(u64::MAX))
    }
}

/// A load under way. Dropped, it stops unheard.
#[derive(Debug)]
pub struct Running {
    clock: Clock,
    stop: oneshot::Sender<()>,
    thread: std::thread::JoinHandle<(Vec<Record>, Duration)>,
}

impl Running {
    /// The time all its records are in.
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// Ends the arrivals now, waits until each request in flight is answered or out of patience, and reports.
    ///
    /// # Errors
    /// [`LoadError::Lost`] when the load's thread panicked.
    pub fn stop(self) -> Result<Report, LoadError> {
        // Its arrivals may have ended by themselves.
        let _ = self.stop.send(());
        let (records, arrivals_ended) = self.thread.join().map_err(|_| LoadError::Lost)?;
        Ok(Report::new(records, arrivals_ended))
    }

    /// Waits for the arrivals' own end, then reports.
    ///
    /// # Errors
    /// [`LoadError::Lost`] when the load's thread panicked.
    pub fn wait(self) -> Result<Report, LoadError> {
        let (records, arrivals_ended) = self.thread.join().map_err(|_| LoadError::Lost)?;
        drop(self.stop);
        Ok(Report::new(records, arrivals_ended))
    }
}

/// Sends until the time is over or the other end of `stopped` is used or dropped.
async fn send_all(
    load: Arc<Load>,
    clock: Clock,
    mut stopped: oneshot::Receiver<()>,
) -> (Vec<Record>, Duration) {
    let connections = Arc::new(Connections::new(load.target, load.idle_limit));
    let mut in_flight = JoinSet::new();
    let mut records = Vec::new();
    let gap_ns = 1_000_000_000 / u64::from(load.rate_per_s);
    for index in 0..REQUEST_LIMIT {
        let due = Duration::from_nanos(gap_ns * index);
        if due >= load.length {
            break;
        }
        let is_due = tokio::time::sleep_until((clock.began + due).into());
        tokio::pin!(is_due);
        let stop = loop {
            tokio::select! {
                biased;
                _ = &mut stopped => break true,
                () = &mut is_due => break false,
                Some(done) = in_flight.join_next() => records.push(finished(done)),
            }
        };
        if stop {
            break;
        }
        let record = Record::due(index, load.mix.choose(load.seed, index), due);
        if in_flight.len() < load.in_flight_limit {
            in_flight.spawn(attempt::attempt(Arc::clone(&load), clock, Arc::clone(&connections), record));
        } else {
            let detail = format!("not sent: {} requests were unanswered already", in_flight.len());
            records.push(record.never_sent(clock.now(), Failure { kind: FailureKind::Crowded, detail }));
        }
    }
    let arrivals_ended = clock.now();
    // Each attempt has its own deadline, so this ends.
    while let Some(done) = in_flight.join_next().await {
        records.push(finished(done));
    }
    records.sort_unstable_by_key(|record| record.index);
    (records, arrivals_ended)
}

/// The record of an attempt. One that panicked must not vanish from the count: it ends the load as lost.
fn finished(done: Result<Record, tokio::task::JoinError>) -> Record {
    match done {
        Ok(record) => record,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
