//! nginx by one generated include at http level.
//!
//! A change is: under a lock, if nobody else has changed the file, write it, test it, reload, or put the old one back. Then it is
//! *seen*: a small server of the include says which generation answers, and of the workers that were there before, none takes new
//! connections any more. Those that are on their way out end with their last request; that is what a drain waits for.

mod include;
mod processes;
#[cfg(test)]
mod tests;

use crate::bounds::{bounded, may_change, moved, not_routed, within};
use crate::change::{Change, take_back};
use cdpipe_model::event::Stream;
use cdpipe_model::fault::Fault;
use cdpipe_model::id::ReleaseId;
use cdpipe_model::observe::{Instance, RouteTable};
use cdpipe_model::ports::{Call, PortResult, Router};
use cdpipe_model::service::Route;
use cdpipe_model::transport::{Endpoint, Transport};
use include::{END, Found, Include, STATUS_HOST};
use processes::{Seen, Worker};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// How often a wait looks.
const LOOK_EVERY: Duration = Duration::from_millis(60);
/// How often a drain looks: each look is a command where nginx lives.
const DRAIN_LOOK_EVERY: Duration = Duration::from_millis(150);
/// Consecutive answers of the wanted generation.
const ANSWERS: u32 = 3;
/// The same where nginx's processes can't be seen: then only time tells that the old ones take nothing any more.
const BLIND_ANSWERS: u32 = 20;
/// How long one answer of the status server may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);
/// How long the status server may miss answers before it is believed that nobody is there.
const MISSED_FOR: Duration = Duration::from_secs(3);
/// How often a write begins anew because somebody else was first.
const ATTEMPTS: u32 = 5;

/// Where nginx is and how it is asked.
#[derive(Debug, Clone)]
pub struct NginxConfig {
    /// Path of the include, as the transport understands it.
    pub config: String,
    /// `HOST:PORT` of loopback, where the include says which generation is in force.
    pub status: String,
    /// How a configuration is tested.
    pub test: Vec<String>,
    /// How it is reloaded.
    pub reload: Vec<String>,
    /// How long nginx may take to put a new configuration in force.
    pub settle: Duration,
}

/// Steers traffic through an nginx.
pub struct NginxRouter {
    config: NginxConfig,
    transport: Arc<dyn Transport>,
}

/// What the status server says.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Status {
    generation: String,
    pid: u32,
}

/// Whether a generation is in force.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Force {
    /// It is, and no other takes connections.
    Yes,
    /// Not yet; why, for people.
    No(String),
}

impl NginxRouter {
    /// `transport` leads to where nginx runs.
    pub fn new(config: NginxConfig, transport: Arc<dyn Transport>) -> Self {
        Self { config, transport }
    }

    fn name(&self) -> String {
        format!("nginx on {}", self.transport.place())
    }

    async fn found(&self, call: Call<'_>) -> Result<Found, Fault> {
        let bytes = self.transport.read(call, &self.config.config).await?;
        Include::read(bytes.as_deref(), &self.config.config, &self.config.status)
    }

    /// Which generation answers now, and by which worker; `None` if nobody answers as one of ours.
    async fn status(&self, call: Call<'_>, address: &str) -> Result<Option<Status>, Fault> {
        let request = format!("GET / HTTP/1.0\r\nHost: {STATUS_HOST}\r\nConnection: close\r\n\r\n");
        let to = Endpoint::Tcp(address.to_owned());
        match self.transport.exchange(within(call, ANSWER_WITHIN), &to, request.as_bytes()).await {
            Ok(answer) => Ok(parse_status(&String::from_utf8_lossy(&answer))),
            Err(fault) if fault.kind == "unreachable" || fault.kind == "timed-out" => Ok(None),
            Err(fault) => Err(fault),
        }
    }

    /// The same for a file that has routes, and so a server that should answer: one answer that was missed says nothing.
    async fn status_again(&self, call: Call<'_>, address: &str) -> Result<Option<Status>, Fault> {
        let until = Instant::now() + MISSED_FOR.min(call.deadline.mul_f32(0.3));
        loop {
            let status = self.status(call, address).await?;
            if status.is_some() || Instant::now() >= until {
                return Ok(status);
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Every nginx worker of the place; empty where none can be seen.
    async fn processes(&self, call: Call<'_>) -> Result<Vec<Seen>, Fault> {
        let argv = ["sh", "-c", processes::LIST].map(str::to_owned);
        let ran = self.transport.exec(call, &argv, b"").await?;
        Ok(processes::parse(&ran.stdout))
    }

    /// The workers of our nginx, as far as they can be seen: what a drain has to wait for.
    async fn workers(&self, call: Call<'_>, include: &Include) -> Result<Vec<Worker>, Fault> {
        let status = match include.routes.is_empty() {
            true => self.status(call, &include.status).await?,
            false => self.status_again(call, &include.status).await?,
        };
        let all = match status {
            Some(status) => processes::siblings(&self.processes(call).await?, status.pid).unwrap_or_default(),
            None if include.routes.is_empty() => Vec::new(),
            // It does not say which one it is. If there is only one, that is it; if there is none, nothing is in flight.
            None => processes::only(&self.processes(call).await?).ok_or_else(|| {
                Fault::new(
                    "router-unreachable",
                    format!(
                        "nobody answers on {} as the status server of {}, so the workers that serve its routes are not known",
                        include.status,
                        self.name()
                    ),
                )
                .help(format!(
                    "see whether nginx runs and includes {0}; if it does not, remove {0}, and cdpipe writes it anew",
                    self.config.config
                ))
                .transient()
            })?,
        };
        Ok(all.into_iter().map(|seen| seen.worker).collect())
    }

    /// Whether the file is in force: what answers is its generation, several times in a row, and none of the workers before takes
    /// connections.
    async fn in_force(&self, call: Call<'_>, include: &Include) -> Result<Force, Fault> {
        let wanted = include.generation()?;
        let mut needed = ANSWERS;
        let mut answers = 0;
        let mut looked = false;
        while answers < needed {
            match self.status(call, &include.status).await? {
                None => {
                    return Ok(Force::No(format!(
                        "nobody answers as cdpipe's status server on {}",
                        include.status
                    )));
                }
                Some(status) if status.generation != wanted => {
                    return Ok(Force::No(format!("generation {} answers, not {wanted}", status.generation)));
                }
                Some(status) if !looked => {
                    looked = true;
                    let seen = self.processes(call).await?;
                    if processes::siblings(&seen, status.pid).is_none() {
                        needed = BLIND_ANSWERS;
                    }
                    let old =
                        seen.iter().filter(|seen| !seen.quitting && include.replaced.contains(&seen.worker));
                    let old = old.count();
                    if old > 0 {
                        return Ok(Force::No(format!("{old} workers of before still take connections")));
                    }
                }
                Some(_) => {}
            }
            answers += 1;
            if needed == BLIND_ANSWERS {
                sleep(LOOK_EVERY).await;
            }
        }
        Ok(Force::Yes)
    }

    /// Writes the file, tests it, and reloads if that is needed. Answers `false` if somebody else was first.
    async fn change(&self, call: Call<'_>, mark: &str, text: &str, reload: bool) -> Result<bool, Fault> {
        let end = if text.trim_end().ends_with(END) { END } else { "" };
        // Without a reload the file says the same to nginx, and whatever else is wrong with its configuration is not in the way.
        let nothing = ["true".to_owned()];
        let change = Change {
            path: &self.config.config,
            mark,
            text,
            end,
            check: if reload { &self.config.test } else { &nothing },
            reload: if reload { &self.config.reload } else { &[] },
        };
        change.carry_out(call, &*self.transport).await
    }

    async fn set(&self, call: Call<'_>, table: &RouteTable, seen: Option<&RouteTable>) -> Result<(), Fault> {
        let path = &self.config.config;
        for _ in 0..ATTEMPTS {
            let found = self.found(call).await?;
            let fenced = found.include.find(&table.route);
            may_change(fenced.map(|fenced| (&fenced.table, fenced.epoch)), table, seen, call.epoch, path)?;
            let done_already = fenced.is_some_and(|fenced| fenced.table == *table);
            let same_owner = fenced.is_some_and(|fenced| fenced.epoch == call.epoch);
            let in_force = done_already && self.in_force(call, &found.include).await? == Force::Yes;
            if in_force && same_owner {
                return Ok(());
            }
            let mut next = found.include.clone();
            next.status.clone_from(&self.config.status);
            next.put(table, call.epoch);
            if !in_force {
                next.replaced = self.workers(call, &found.include).await?;
            }
            let text = next.text()?;
            if !self.change(call, &found.mark, &text, !in_force).await? {
                continue;
            }
            return if in_force { Ok(()) } else { self.taken(call, &next, &text, &found).await };
        }
        Err(moved(format!("{path} was changed by somebody else {ATTEMPTS} times while it was written")))
    }

    /// Waits until nginx has taken the file; where it does not, the one before is put back.
    async fn taken(&self, call: Call<'_>, next: &Include, text: &str, before: &Found) -> Result<(), Fault> {
        let wanted = next.generation()?;
        let until = Instant::now() + self.config.settle.min(call.deadline.mul_f32(0.7));
        loop {
            let status = self.status(call, &next.status).await?;
            if status.as_ref().is_some_and(|status| status.generation == wanted) {
                return Ok(());
            }
            if Instant::now() >= until {
                break;
            }
            sleep(LOOK_EVERY).await;
        }
        let mark = text.lines().nth(1).unwrap_or_default();
        let path = &self.config.config;
        let back = match &before.text {
            Some(old) => self.change(call, mark, old, true).await,
            None => take_back(call, &*self.transport, path, mark).await,
        };
        let went = match back {
            Ok(true) => format!("{path} is as it was"),
            Ok(false) => format!("{path} was changed by somebody else meanwhile and stays so"),
            Err(fault) => format!("{path} could not be put back ({fault})"),
        };
        Err(Fault::new(
            "not-taken",
            format!(
                "nginx on {} was reloaded and does not serve the new {path} after {} s: nobody on {} says so; {went}",
                self.transport.place(),
                self.config.settle.as_secs(),
                next.status
            ),
        )
        .help(
            "its error log says why: an address that another program listens on, or a configuration that does not include this file",
        ))
    }

    async fn drained(
        &self,
        call: Call<'_>,
        route: &Route,
        release: &ReleaseId,
        instances: &[Instance],
        drain: Duration,
    ) -> Result<(), Fault> {
        let include = self.found(call).await?.include;
        let table = include.find(route).map(|fenced| &fenced.table);
        not_routed(table, release, instances, &self.name())?;
        let until = Instant::now() + drain;
        // Without a look at the processes there is nothing but time to go by.
        let blind = match self.status_again(call, &include.status).await? {
            Some(status) => processes::siblings(&self.processes(call).await?, status.pid).is_none(),
            // When it was written there was a look, or there was none.
            None => include.replaced.is_empty(),
        };
        loop {
            let old = if blind {
                1
            } else {
                let seen = self.processes(call).await?;
                seen.iter().filter(|seen| include.replaced.contains(&seen.worker)).count()
            };
            if old == 0 {
                return Ok(());
            }
            if Instant::now() >= until {
                if !blind {
                    call.sink.output(
                        Stream::Stderr,
                        &format!(
                            "release {release} of service {}: {old} workers of nginx still have connections after {} ms; what is left to this release is cut",
                            route.service,
                            drain.as_millis()
                        ),
                    );
                }
                return Ok(());
            }
            call.sink.progress(&format!(
                "draining release {release}: {old} workers of nginx finish their requests"
            ));
            sleep(DRAIN_LOOK_EVERY.min(until.saturating_duration_since(Instant::now()))).await;
        }
    }
}

impl Router for NginxRouter {
    fn observe<'a>(&'a self, call: Call<'a>, route: &'a Route) -> PortResult<'a, Option<RouteTable>> {
        Box::pin(async move {
            bounded(call, &self.name(), async {
                let found = self.found(call).await?;
                Ok(found.include.find(route).map(|fenced| fenced.table.clone()))
            })
            .await
        })
    }

    fn apply<'a>(
        &'a self,
        call: Call<'a>,
        table: &'a RouteTable,
        seen: Option<&'a RouteTable>,
    ) -> PortResult<'a, ()> {
        Box::pin(async move { bounded(call, &self.name(), self.set(call, table, seen)).await })
    }

    fn await_routed<'a>(&'a self, call: Call<'a>, table: &'a RouteTable) -> PortResult<'a, ()> {
        Box::pin(async move {
            bounded(call, &self.name(), async {
                loop {
                    let include = self.found(call).await?.include;
                    let found = include.find(&table.route).map(|fenced| &fenced.table);
                    if found != Some(table) {
                        return Err(moved(format!(
                            "{} does not hold the table that was written: expected {}, found {}",
                            self.config.config,
                            crate::bounds::shares(Some(table)),
                            crate::bounds::shares(found)
                        )));
                    }
                    match self.in_force(call, &include).await? {
                        Force::Yes => return Ok(()),
                        Force::No(why) => call.sink.progress(&format!("nginx is not there yet: {why}")),
                    }
                    sleep(LOOK_EVERY).await;
                }
            })
            .await
        })
    }

    fn await_drained<'a>(
        &'a self,
        call: Call<'a>,
        route: &'a Route,
        release: &'a ReleaseId,
        instances: &'a [Instance],
        drain: Duration,
    ) -> PortResult<'a, ()> {
        Box::pin(async move {
            bounded(call, &self.name(), self.drained(call, route, release, instances, drain)).await
        })
    }

    fn requests<'a>(
        &'a self,
        _call: Call<'a>,
        _route: &'a Route,
    ) -> PortResult<'a, Option<BTreeMap<ReleaseId, u64>>> {
        // nginx counts connections as a whole, not requests for each release.
        Box::pin(std::future::ready(Ok(None)))
    }
}

/// `cdpipe GENERATION PID` in an answer.
fn parse_status(answer: &str) -> Option<Status> {
    let body = answer.split_once("\r\n\r\n")?.1;
    let mut words = body.split_whitespace();
    (words.next() == Some("cdpipe")).then_some(())?;
    Some(Status { generation: words.next()?.to_owned(), pid: words.next()?.parse().ok()? })
}
