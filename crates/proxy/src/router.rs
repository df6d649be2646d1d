//! The `Router` port for the built-in proxy.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use cdpipe_model::event::Stream;
use cdpipe_model::fault::Fault;
use cdpipe_model::id::ReleaseId;
use cdpipe_model::observe::{Instance, RouteTable};
use cdpipe_model::ports::{Call, PortResult, Router};
use cdpipe_model::service::Route;
use tokio::time::{Instant, sleep};

use crate::control::client::{ClientError, ProxyClient};
use crate::control::protocol::{Expect, PutRoute, Refusal, RefusalCode, Selection};
use crate::daemon::{Start, StartError, ensure_running};
use crate::state;
use crate::table::route_name;

/// How often a wait for the table looks.
const LOOK_EVERY: Duration = Duration::from_millis(25);
/// A drain is waited for in stretches of this length, so that it can be cancelled and says how far it is.
const STRETCH_MS: u64 = 500;
/// How long a proxy may take until it answers, with what one before it may take to go (its shutdown timeout).
const START_TIMEOUT_MS: u64 = 40_000;

/// Steers traffic through the built-in proxy of one state directory, which it starts when it is needed.
#[derive(Clone, Debug)]
pub struct ProxyRouter {
    start: Start,
}

impl ProxyRouter {
    /// `program` is run as `PROGRAM proxy --state STATE_DIR` when no proxy answers; it is cdpipe itself.
    pub fn new(program: impl Into<PathBuf>, state_dir: impl Into<PathBuf>) -> ProxyRouter {
        ProxyRouter {
            start: Start {
                program: program.into(),
                state_dir: state_dir.into(),
                timeout_ms: START_TIMEOUT_MS,
            },
        }
    }

    fn client(&self) -> ProxyClient {
        ProxyClient::new(&self.start.state_dir)
    }

    async fn running(&self) -> Result<ProxyClient, Fault> {
        ensure_running(&self.start).await.map_err(start_fault)
    }

    /// What the proxy serves, or would serve if it ran. Starts nothing: a plan must not change anything.
    async fn table_of(&self, route: &Route) -> Result<Option<RouteTable>, Fault> {
        match self.client().get().await {
            Ok(state) => Ok(state.table.find(route).map(|fenced| fenced.table.clone())),
            Err(ClientError::NotRunning { .. }) => {
                let path = self.start.state_dir.join(state::FILE);
                let table = state::load(&self.start.state_dir).map_err(|what| {
                    Fault::new(
                        "router-state",
                        format!("the proxy's table in {} can not be read: {what}", path.display()),
                    )
                    .help("restore the file, or move it away to start with no routes")
                })?;
                Ok(table.and_then(|table| table.find(route).map(|fenced| fenced.table.clone())))
            }
            Err(error) => Err(client_fault(&error)),
        }
    }
}

impl Router for ProxyRouter {
    fn observe<'a>(&'a self, call: Call<'a>, route: &'a Route) -> PortResult<'a, Option<RouteTable>> {
        Box::pin(bounded(call, self.table_of(route)))
    }

    fn apply<'a>(
        &'a self,
        call: Call<'a>,
        table: &'a RouteTable,
        seen: Option<&'a RouteTable>,
    ) -> PortResult<'a, ()> {
        Box::pin(bounded(call, async move {
            let put = PutRoute { table: table.clone(), expect: Expect::Seen(seen.cloned()) };
            self.running()
                .await?
                .put(vec![put], Vec::new(), call.epoch, owner(call))
                .await
                .map_err(|e| client_fault(&e))?;
            Ok(())
        }))
    }

    fn await_routed<'a>(&'a self, call: Call<'a>, table: &'a RouteTable) -> PortResult<'a, ()> {
        Box::pin(bounded(call, async move {
            let client = self.running().await?;
            loop {
                let state = client.get().await.map_err(|e| client_fault(&e))?;
                // The proxy puts a table in force for all its workers before it says so.
                if state.table.find(&table.route).is_some_and(|fenced| fenced.table == *table) {
                    return Ok(());
                }
                sleep(LOOK_EVERY).await;
            }
        }))
    }

    fn await_drained<'a>(
        &'a self,
        call: Call<'a>,
        route: &'a Route,
        release: &'a ReleaseId,
        instances: &'a [Instance],
        drain: Duration,
    ) -> PortResult<'a, ()> {
        Box::pin(bounded(call, async move {
            let client = match self.client().ping().await {
                Ok(_) => self.client(),
                // A proxy that is gone has nothing in flight.
                Err(ClientError::NotRunning { .. }) => return Ok(()),
                Err(error) => return Err(client_fault(&error)),
            };
            let what = Selection {
                service: route.service.as_str().to_owned(),
                route: Some(route.clone()),
                release: release.as_str().to_owned(),
                instances: (!instances.is_empty())
                    .then(|| instances.iter().map(|instance| instance.id.as_str().to_owned()).collect()),
            };
            let deadline = Instant::now() + drain;
            loop {
                let left_ms = u64::try_from(deadline.saturating_duration_since(Instant::now()).as_millis())
                    .unwrap_or(u64::MAX);
                let now = client
                    .wait_drained(what.clone(), left_ms.min(STRETCH_MS))
                    .await
                    .map_err(|e| client_fault(&e))?;
                if now.routed {
                    return Err(Fault::new(
                        "still-routed",
                        format!(
                            "release {release} of service {} is still in the proxy's table, so it can not drain",
                            route.service
                        ),
                    ));
                }
                if now.done() {
                    return Ok(());
                }
                if left_ms == 0 {
                    call.sink.output(
                        Stream::Stderr,
                        &format!(
                            "release {release} of service {}: {} requests ({} upgraded connections) did not end within {} ms and are cut",
                            route.service,
                            now.in_flight,
                            now.upgraded,
                            drain.as_millis()
                        ),
                    );
                    break;
                }
                call.sink
                    .progress(&format!("draining release {release}: {} requests in flight", now.in_flight));
            }
            let after = client.cut(what).await.map_err(|e| client_fault(&e))?;
            if after.in_flight > 0 {
                return Err(Fault::new(
                    "not-drained",
                    format!(
                        "release {release} of service {} has {} requests in flight after they were cut",
                        route.service, after.in_flight
                    ),
                )
                .transient());
            }
            Ok(())
        }))
    }

    fn requests<'a>(
        &'a self,
        call: Call<'a>,
        route: &'a Route,
    ) -> PortResult<'a, Option<BTreeMap<ReleaseId, u64>>> {
        Box::pin(bounded(call, async move {
            match self.client().requests(route.service.as_str(), Some(route)).await {
                Ok(requests) => Ok(Some(
                    requests.releases.into_iter().map(|(id, count)| (ReleaseId(id), count)).collect(),
                )),
                Err(ClientError::NotRunning { .. }) => Ok(None),
                Err(error) => Err(client_fault(&error)),
            }
        }))
    }

    /// The route's port is free then; a proxy without routes is ended.
    fn forget<'a>(&'a self, call: Call<'a>, route: &'a Route) -> PortResult<'a, ()> {
        Box::pin(bounded(call, async move {
            let client = self.client();
            match client.put(Vec::new(), vec![route.clone()], call.epoch, owner(call)).await {
                Ok(_) => {}
                Err(ClientError::NotRunning { .. }) => return Ok(()),
                Err(error) => return Err(client_fault(&error)),
            }
            if client.get().await.map_err(|error| client_fault(&error))?.table.routes.is_empty() {
                client.shutdown().await.map_err(|error| client_fault(&error))?;
            }
            Ok(())
        }))
    }

    fn numbers<'a>(
        &'a self,
        call: Call<'a>,
        route: &'a Route,
        release: Option<&'a ReleaseId>,
    ) -> PortResult<'a, Option<String>> {
        Box::pin(bounded(call, async move {
            let text = self.client().metrics().await.map_err(|error| client_fault(&error))?;
            Ok(Some(numbers(&text, route.service.as_str(), &route_name(route), release)))
        }))
    }
}

/// The lines of the proxy's own text that are of this release (of all of the route, if none is named), by the names that all routers have.
fn numbers(text: &str, service: &str, route: &str, release: Option<&ReleaseId>) -> String {
    const NAMES: [(&str, &str); 4] = [
        ("cdpipe_proxy_requests_total{", "requests_total{"),
        ("cdpipe_proxy_connect_errors_total{", "connect_errors_total{"),
        ("cdpipe_proxy_aborted_total{", "aborted_total{"),
        ("cdpipe_proxy_request_duration_seconds_bucket{", "response_time_seconds_bucket{"),
    ];
    let of = format!("service=\"{service}\",route=\"{route}\",release=\"");
    let is_theirs = |labels: &str| {
        let found = labels.strip_prefix(of.as_str()).and_then(|rest| rest.split_once('"'));
        found.is_some_and(|(found, _)| release.is_none_or(|release| release.as_str() == found))
    };
    let mut out = String::new();
    for line in text.lines() {
        for (own, name) in NAMES {
            if let Some(labels) = line.strip_prefix(own)
                && is_theirs(labels)
            {
                out.push_str(name);
                out.push_str(labels);
                out.push('\n');
            }
        }
    }
    out
}

/// The run an effect belongs to: the part of `RUN/NUMBER` before the last slash.
fn owner(call: Call<'_>) -> &str {
    let effect = call.effect.as_str();
    effect.rsplit_once('/').map_or(effect, |(run, _)| run)
}

/// Runs a call until it is done, cancelled, or out of time.
async fn bounded<T>(call: Call<'_>, work: impl Future<Output = Result<T, Fault>>) -> Result<T, Fault> {
    tokio::select! {
        biased;
        done = tokio::time::timeout(call.deadline, work) => done.unwrap_or_else(|_| {
            let ms = call.deadline.as_millis();
            Err(Fault::new("timed-out", format!("the proxy was not where it should be after {ms} ms")).transient())
        }),
        () = call.cancel.cancelled() => Err(Fault::new("cancelled", "cancelled while the proxy was asked")),
    }
}

fn start_fault(error: StartError) -> Fault {
    let text = error.to_string();
    match error {
        StartError::Ended { log, .. } | StartError::Deadline { log, .. } => Fault::new("router-start", text)
            .details(log)
            .help("the lines above are the end of the proxy's log"),
        StartError::Client(error) => client_fault(&error),
        StartError::StateDir { .. } | StartError::Spawn { .. } => Fault::new("router-start", text),
    }
}

fn client_fault(error: &ClientError) -> Fault {
    match error {
        ClientError::Refused(refusal) => refusal_fault(refusal),
        ClientError::NotRunning { .. } | ClientError::Broken(_) | ClientError::Deadline(_) => {
            Fault::new("router-unreachable", error.to_string()).transient()
        }
        ClientError::BadAnswer(_) => Fault::new("router-version", error.to_string())
            .help("the running proxy is of another version: stop it with SIGTERM, it is started again when it is needed"),
    }
}

fn refusal_fault(refusal: &Refusal) -> Fault {
    let fault = |kind| Fault::new(kind, refusal.message.clone());
    match refusal.code {
        RefusalCode::Stale => fault("stale-epoch").help("a newer run owns this service: look at `cdpipe status`"),
        RefusalCode::Moved => fault("moved").help("somebody else changed the route: plan again and look at what serves now"),
        RefusalCode::PortInUse => fault("port-in-use").help("stop that program, or let the route listen somewhere else"),
        RefusalCode::BindFailed => fault("listen-failed").help("let the route listen on an address of this machine"),
        RefusalCode::Invalid => fault("invalid-route"),
        RefusalCode::StateUnwritable => fault("router-state").help("make room in the state directory, or make it writable").transient(),
        RefusalCode::StillRouted => fault("still-routed"),
        RefusalCode::Stopping => fault("router-unreachable").transient(),
        RefusalCode::Version | RefusalCode::BadMessage => fault("router-version")
            .help("the running proxy is of another version: stop it with SIGTERM, it is started again when it is needed"),
    }
}
