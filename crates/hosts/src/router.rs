//! The built-in proxy on a machine. Both sides of it: here a router that has the agent asked, there the agent with the very router that
//! this machine would use for its own proxy. The proxy is a process of the machine's own and outlives every connection.

use crate::hosts::Hosts;
use crate::protocol::{Reply, Request, RouterAsk};
use cdpipe_model::observe::{Instance, RouteTable};
use cdpipe_model::ports::{Call, PortResult, Router};
use cdpipe_model::service::Route;
use cdpipe_model::{Fault, ReleaseId};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Makes the router of a machine's own proxy: from the program that becomes the proxy, and the folder of its state.
pub type ProxyThere = fn(&Path, &Path) -> Arc<dyn Router>;

/// Where the proxy keeps its state, below the folder of the target.
const DIR: &str = "proxy";

/// The built-in proxy of one machine.
pub struct HostRouter {
    hosts: Arc<Hosts>,
    dir: Option<String>,
}

impl HostRouter {
    /// On the first machine of these; make one for it alone. `dir` is where the proxy keeps its state there, by default below the folder
    /// of the target.
    pub fn new(hosts: Arc<Hosts>, dir: Option<String>) -> Self {
        Self { hosts, dir }
    }

    async fn ask(&self, call: Call<'_>, ask: RouterAsk) -> Result<Reply, Fault> {
        let request = Request::Router { dir: self.dir.clone(), ask: Box::new(ask) };
        let answer = self.hosts.ask_first_twice(call, request).await;
        answer.map_err(|fault| {
            let message = format!("the proxy on {}: {}", self.hosts.first_name(), fault.message);
            Fault { message, ..fault }
        })
    }

    async fn nothing(&self, call: Call<'_>, ask: RouterAsk) -> Result<(), Fault> {
        match self.ask(call, ask).await? {
            Reply::Nothing => Ok(()),
            _ => Err(crate::hosts::strange()),
        }
    }
}

impl Router for HostRouter {
    fn observe<'a>(&'a self, call: Call<'a>, route: &'a Route) -> PortResult<'a, Option<RouteTable>> {
        Box::pin(async move {
            match self.ask(call, RouterAsk::Observe { route: route.clone() }).await? {
                Reply::Table { table } => Ok(table),
                _ => Err(crate::hosts::strange()),
            }
        })
    }

    fn apply<'a>(
        &'a self,
        call: Call<'a>,
        table: &'a RouteTable,
        seen: Option<&'a RouteTable>,
    ) -> PortResult<'a, ()> {
        Box::pin(self.nothing(call, RouterAsk::Apply { table: table.clone(), seen: seen.cloned() }))
    }

    fn await_routed<'a>(&'a self, call: Call<'a>, table: &'a RouteTable) -> PortResult<'a, ()> {
        Box::pin(self.nothing(call, RouterAsk::AwaitRouted { table: table.clone() }))
    }

    fn await_drained<'a>(
        &'a self,
        call: Call<'a>,
        route: &'a Route,
        release: &'a ReleaseId,
        instances: &'a [Instance],
        drain: Duration,
    ) -> PortResult<'a, ()> {
        let ask = RouterAsk::AwaitDrained {
            route: route.clone(),
            release: release.clone(),
            instances: instances.to_vec(),
            drain_ms: u64::try_from(drain.as_millis()).unwrap_or(u64::MAX),
        };
        Box::pin(self.nothing(call, ask))
    }

    fn requests<'a>(
        &'a self,
        call: Call<'a>,
        route: &'a Route,
    ) -> PortResult<'a, Option<BTreeMap<ReleaseId, u64>>> {
        Box::pin(async move {
            match self.ask(call, RouterAsk::Requests { route: route.clone() }).await? {
                Reply::Requests { releases } => Ok(releases),
                _ => Err(crate::hosts::strange()),
            }
        })
    }

    fn numbers<'a>(
        &'a self,
        call: Call<'a>,
        route: &'a Route,
        release: Option<&'a ReleaseId>,
    ) -> PortResult<'a, Option<String>> {
        Box::pin(async move {
            let ask = RouterAsk::Numbers { route: route.clone(), release: release.cloned() };
            match self.ask(call, ask).await? {
                Reply::Numbers { text } => Ok(text),
                _ => Err(crate::hosts::strange()),
            }
        })
    }

    fn forget<'a>(&'a self, call: Call<'a>, route: &'a Route) -> PortResult<'a, ()> {
        Box::pin(self.nothing(call, RouterAsk::Forget { route: route.clone() }))
    }
}

/// The agent's side; `base` is the folder of the target.
pub(crate) async fn serve(
    call: Call<'_>,
    proxy: ProxyThere,
    base: &Path,
    dir: Option<&str>,
    ask: RouterAsk,
) -> Result<Reply, Fault> {
    let program = std::env::current_exe().map_err(|error| {
        Fault::new("internal", format!("the agent does not find its own program: {error}"))
    })?;
    let router = proxy(&program, &base.join(dir.unwrap_or(DIR)));
    match ask {
        RouterAsk::Observe { route } => Ok(Reply::Table { table: router.observe(call, &route).await? }),
        RouterAsk::Apply { table, seen } => {
            router.apply(call, &table, seen.as_ref()).await?;
            Ok(Reply::Nothing)
        }
        RouterAsk::AwaitRouted { table } => {
            router.await_routed(call, &table).await?;
            Ok(Reply::Nothing)
        }
        RouterAsk::AwaitDrained { route, release, instances, drain_ms } => {
            let drain = Duration::from_millis(drain_ms);
            router.await_drained(call, &route, &release, &instances, drain).await?;
            Ok(Reply::Nothing)
        }
        RouterAsk::Requests { route } => {
            Ok(Reply::Requests { releases: router.requests(call, &route).await? })
        }
        RouterAsk::Numbers { route, release } => {
            Ok(Reply::Numbers { text: router.numbers(call, &route, release.as_ref()).await? })
        }
        RouterAsk::Forget { route } => {
            router.forget(call, &route).await?;
            Ok(Reply::Nothing)
        }
    }
}
