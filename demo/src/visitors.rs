//! A gentle load that stands for the shop's users.
//!
//! It is open-loop: a visitor comes when it is time, whether or not the ones before have been answered, as real users
//! do. It never tries again, so what it counts is what a user would have met.

use crate::VERSION_HEADER;
use bytes::Bytes;
use http::{Request, Uri};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

/// The fastest that visitors come, each second: enough to see a canary's share, too little to hurt anything.
pub const RATE_LIMIT_PER_S: u32 = 500;
/// Visitors that wait for an answer at one time; more count as failures instead of piling up.
const WAITING_LIMIT: usize = 1_024;
/// The patience of a visitor.
const PATIENCE: Duration = Duration::from_secs(10);

/// What visitors do.
#[derive(Debug, Clone)]
pub struct Visits {
    /// Scheme, host and port; `http` only.
    pub url: Uri,
    /// Visitors each second, 1 to [`RATE_LIMIT_PER_S`].
    pub rate_per_s: u32,
    /// For how long they come.
    pub length: Duration,
    /// The paths they ask for, in turn.
    pub paths: Vec<String>,
    /// How long the first visitor waits for the shop to open, asking `/` again and again; zero for not at all.
    pub wait: Duration,
    /// How often a line in between is written; none for only the last.
    pub every: Option<Duration>,
    /// Each comes over a connection of its own, as people who don't know one another do. Otherwise one that is idle is used
    /// again; a server that closes it at that very moment resets the request (RFC 9112, 9.3.1), and a visitor never tries again.
    pub new_connections: bool,
}

/// What became of the visitors so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Good answers by the version that gave them.
    pub by_version: BTreeMap<String, u64>,
    /// Failures by what happened.
    pub failures: BTreeMap<String, u64>,
}

/// A visit that cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum VisitError {
    /// The URL or a path cannot be asked for.
    #[error("cannot visit `{0}`; expected a URL such as http://127.0.0.1:8080 and paths such as /")]
    Url(String),
    /// Nobody answered while the first visitor waited.
    #[error("nobody answered at {url} within {waited:?}: {last}")]
    Closed {
        /// What was asked.
        url: String,
        /// For how long.
        waited: Duration,
        /// The last failure.
        last: String,
    },
}

impl Tally {
    /// How many answers were good.
    pub fn good(&self) -> u64 {
        self.by_version.values().sum()
    }

    /// How many visits failed.
    pub fn failed(&self) -> u64 {
        self.failures.values().sum()
    }

    fn add(&mut self, outcome: Result<String, String>) {
        let (table, key) = match outcome {
            Ok(version) => (&mut self.by_version, version),
            Err(failure) => (&mut self.failures, failure),
        };
        *table.entry(key).or_default() += 1;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = |count| if count == 1 { "" } else { "s" };
        let (good, failed) = (self.good(), self.failed());
        write!(f, "{good} answer{}", plural(good))?;
        for (i, (version, count)) in self.by_version.iter().enumerate() {
            write!(f, "{} {version} {count}", if i == 0 { ":" } else { "," })?;
        }
        if failed == 0 {
            return f.write_str("; no failures");
        }
        write!(f, "; {failed} failure{}", plural(failed))?;
        for (i, (failure, count)) in self.failures.iter().enumerate() {
            write!(f, "{} {count} × {failure}", if i == 0 { ":" } else { "," })?;
        }
        Ok(())
    }
}

type Visitor = Client<HttpConnector, Empty<Bytes>>;

impl Visits {
    /// Sends the visitors until their time is over or `stop` is ready. `say` gets the tally now and then, if asked,
    /// with the time since the first visitor.
    ///
    /// # Errors
    /// When nothing could be asked at all; a failed visit is part of the tally.
    pub async fn run(
        &self,
        stop: impl Future<Output = ()>,
        mut say: impl FnMut(Duration, &Tally),
    ) -> Result<Tally, VisitError> {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let idle_limit = if self.new_connections { 0 } else { usize::MAX };
        let visitor = Client::builder(TokioExecutor::new())
            .retry_canceled_requests(false)
            .pool_max_idle_per_host(idle_limit)
            .build(connector);
        let urls = self.urls()?;
        let (Some(first), paths) = (urls.first(), urls.len()) else {
            return Err(VisitError::Url(String::new()));
        };
        tokio::pin!(stop);
        tokio::select! {
            open = self.wait_until_open(&visitor, first) => open?,
            () = &mut stop => return Ok(Tally::default()),
        }

        let mut tally = Tally::default();
        let mut waiting = JoinSet::new();
        let began = Instant::now();
        let gap = Duration::from_secs(1) / self.rate_per_s.clamp(1, RATE_LIMIT_PER_S);
        let mut arrivals = tokio::time::interval(gap);
        // Late visitors still come: leaving them out would hide just the moments that matter.
        arrivals.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let end = tokio::time::sleep(self.length);
        // An hour's tick for "never" keeps the loop below in one piece.
        let mut reports = tokio::time::interval(self.every.unwrap_or(Duration::from_secs(3_600)).max(gap));
        reports.reset();
        tokio::pin!(end);
        let mut came = 0;
        loop {
            tokio::select! {
                biased;
                () = &mut stop => break,
                () = &mut end => break,
                Some(outcome) = waiting.join_next() => tally.add(flatten(outcome)),
                _ = arrivals.tick() => {
                    let url = urls[came % paths].clone();
                    came += 1;
                    if waiting.len() < WAITING_LIMIT {
                        waiting.spawn(visit(visitor.clone(), url));
                    } else {
                        tally.add(Err("too many were waiting already".to_owned()));
                    }
                }
                _ = reports.tick(), if self.every.is_some() => say(began.elapsed(), &tally),
            }
        }
        // Each visit has its own deadline, so this ends.
        while let Some(outcome) = waiting.join_next().await {
            tally.add(flatten(outcome));
        }
        Ok(tally)
    }

    fn urls(&self) -> Result<Vec<Uri>, VisitError> {
        let wrong = || VisitError::Url(self.url.to_string());
        let authority =
            self.url.authority().filter(|_| self.url.scheme_str() == Some("http")).ok_or_else(wrong)?;
        self.paths
            .iter()
            .map(|path| {
                let url =
                    Uri::builder().scheme("http").authority(authority.clone()).path_and_query(path.as_str());
                url.build()
                    .ok()
                    .filter(|_| path.starts_with('/'))
                    .ok_or_else(|| VisitError::Url(path.clone()))
            })
            .collect()
    }

    async fn wait_until_open(&self, visitor: &Visitor, url: &Uri) -> Result<(), VisitError> {
        let began = Instant::now();
        while !self.wait.is_zero() {
            match visit(visitor.clone(), url.clone()).await {
                Ok(_) => break,
                Err(last) if began.elapsed() >= self.wait => {
                    return Err(VisitError::Closed { url: url.to_string(), waited: self.wait, last });
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
        Ok(())
    }
}

fn flatten(outcome: Result<Result<String, String>, tokio::task::JoinError>) -> Result<String, String> {
    outcome.unwrap_or_else(|error| Err(error.to_string()))
}

/// One visit: the version that answered, or what a user would say happened.
async fn visit(visitor: Visitor, url: Uri) -> Result<String, String> {
    let asked = async {
        let request = Request::get(url).body(Empty::new()).map_err(|error| error.to_string())?;
        let response = visitor.request(request).await.map_err(|error| plainly(&error))?;
        let (status, headers) = (response.status(), response.headers().clone());
        response.into_body().collect().await.map_err(|_| "answer cut short".to_owned())?;
        if !status.is_success() {
            return Err(status.as_u16().to_string());
        }
        let version = headers.get(VERSION_HEADER).and_then(|version| version.to_str().ok());
        Ok(version.unwrap_or("unknown version").to_owned())
    };
    tokio::time::timeout(PATIENCE, asked).await.unwrap_or_else(|_| Err("no answer in time".to_owned()))
}

/// The innermost cause, in the system's words, without its number.
fn plainly(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    let text = innermost.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::Tally;

    #[test]
    fn a_tally_is_one_calm_line() {
        let mut tally = Tally::default();
        assert_eq!(tally.to_string(), "0 answers; no failures");
        tally.add(Ok("v1".into()));
        assert_eq!(tally.to_string(), "1 answer: v1 1; no failures");
        for outcome in [Ok("v2".into()), Ok("v1".into()), Err("500".into()), Err("500".into())] {
            tally.add(outcome);
        }
        tally.add(Err("connection refused".into()));
        assert_eq!(tally.to_string(), "3 answers: v1 2, v2 1; 3 failures: 2 × 500, 1 × connection refused");
    }
}
