//! The router `service`: which release the selector of a Service names. Routed means that the EndpointSlices say so.

use crate::client::{Cluster, Session};
use crate::found;
use crate::manifest::{self, EPOCH, MANAGER, RELEASE};
use crate::workload::fenced;
use cdpipe_model::observe::{Instance, Role, RouteTable};
use cdpipe_model::ports::{Call, PortResult, Router};
use cdpipe_model::service::Route;
use cdpipe_model::{Fault, ReleaseId};
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use kube::api::{ListParams, Patch, PatchParams};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// Between two looks at the EndpointSlices.
const POLL: Duration = Duration::from_millis(200);
/// What the selector names while the route is closed.
const NOBODY: &str = "none";
const TABLE: &str = "cdpipe.dev/table";

/// Services of one namespace of a cluster.
#[derive(Debug)]
pub struct ServiceRouter {
    cluster: Arc<Cluster>,
    settle: Duration,
}

impl ServiceRouter {
    /// How long nodes get by default to do what the EndpointSlices say: a kube-proxy collects changes for a second.
    pub const SETTLE: Duration = Duration::from_secs(2);

    /// The router. `settle` is how long nodes get to do what the EndpointSlices say, since none of them says that it does. Nothing is
    /// asked until it is used.
    pub fn new(cluster: Arc<Cluster>, settle: Duration) -> Self {
        Self { cluster, settle }
    }
}

fn name(route: &Route) -> String {
    manifest::rolling_name(&route.service, route.object.as_deref())
}

async fn read(session: &Session<'_>, route: &Route) -> Result<Option<Service>, Fault> {
    let api: Api<Service> = Api::namespaced(session.client(), session.namespace());
    let name = name(route);
    session.ask(&format!("read the Service {name}"), || api.get_opt(&name)).await
}

/// The table that was written, as long as the selector is the one that it means.
fn table(service: &Service) -> Option<RouteTable> {
    let text = service.metadata.annotations.as_ref()?.get(TABLE)?;
    let table: RouteTable = serde_json::from_str(text).ok()?;
    let selector = service.spec.as_ref()?.selector.as_ref()?.get(RELEASE)?;
    (selector == release(&table)).then_some(table)
}

fn release(table: &RouteTable) -> &str {
    let serves = table.entries.iter().max_by_key(|entry| entry.weight_bp);
    serves.map_or(NOBODY, |entry| entry.release.as_str())
}

/// The port users use, and the port of the pods.
fn ports(table: &RouteTable) -> Option<(u16, u16)> {
    let member = table.entries.iter().flat_map(|entry| &entry.members).next()?;
    let target = member.address.rsplit_once(':')?.1.parse().ok()?;
    let listen = table.route.listen.as_deref().and_then(|listen| listen.rsplit(':').next()?.parse().ok());
    Some((listen.unwrap_or(target), target))
}

fn whole(table: &RouteTable) -> Result<(), Fault> {
    if table.entries.iter().filter(|entry| entry.weight_bp > 0).count() > 1 || !table.rules.is_empty() {
        return Err(Fault::new("unsupported", "the selector of a Service knows neither shares nor rules")
            .help("use `blue_green` or `rolling`"));
    }
    Ok(())
}

/// Addresses that get traffic.
async fn endpoints(session: &Session<'_>, name: &str) -> Result<BTreeSet<String>, Fault> {
    let slices: Api<EndpointSlice> = Api::namespaced(session.client(), session.namespace());
    let params = ListParams::default().labels(&format!("kubernetes.io/service-name={name}"));
    let slices = session.ask("list EndpointSlices", || slices.list(&params)).await?.items;
    Ok(slices
        .into_iter()
        .flat_map(|slice| slice.endpoints.into_iter())
        .filter(|endpoint| {
            endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true)
        })
        .flat_map(|endpoint| endpoint.addresses)
        .collect())
}

/// Waits until a Service sends to every pod of a release that is ready, at least to one; `alone` says that it sends to no others. Which
/// pods there are may change meanwhile: some die, an autoscaler adds others.
///
/// # Errors
/// `not-routed` where it does not in time.
pub(crate) async fn await_pods(
    session: &Session<'_>,
    name: &str,
    release: &ReleaseId,
    alone: bool,
) -> Result<(), Fault> {
    let params = ListParams::default().labels(&format!("{RELEASE}={release}"));
    loop {
        let pods = found::pods(session, &params).await?;
        let ip = |pod: &Pod| pod.status.as_ref().and_then(|status| status.pod_ip.clone());
        let ready = |pod: &&Pod| found::is_live(pod, release) && found::is_ready(pod);
        let all: BTreeSet<String> = pods.iter().filter_map(ip).collect();
        let wanted: BTreeSet<String> = pods.iter().filter(ready).filter_map(ip).collect();
        let there = endpoints(session, name).await?;
        let here = there.intersection(&all).count();
        if here > 0 && there.is_superset(&wanted) && (!alone || here == there.len()) {
            return Ok(());
        }
        let text = format!(
            "the EndpointSlices of {name} have {} addresses, {here} of them of {release}, which has {} ready",
            there.len(),
            wanted.len()
        );
        if session.left() < POLL * 5 {
            return Err(Fault::new("not-routed", format!("the Service {name} is not as it should be in time: {text}"))
                .help(format!("`kubectl get endpointslices -l kubernetes.io/service-name={name}` shows them; its selector must match the pods")));
        }
        session.call.sink.progress(&text);
        session.pause(POLL).await?;
    }
}

impl Router for ServiceRouter {
    fn observe<'a>(&'a self, call: Call<'a>, route: &'a Route) -> PortResult<'a, Option<RouteTable>> {
        Box::pin(async move {
            let session = self.cluster.session(call).await?;
            Ok(read(&session, route).await?.as_ref().and_then(table))
        })
    }

    fn apply<'a>(
        &'a self,
        call: Call<'a>,
        wanted: &'a RouteTable,
        seen: Option<&'a RouteTable>,
    ) -> PortResult<'a, ()> {
        Box::pin(async move {
            whole(wanted)?;
            let session = self.cluster.session(call).await?;
            let name = name(&wanted.route);
            let there = read(&session, &wanted.route).await?;
            if let Some(service) = &there {
                if !manifest::is_ours(service.metadata.labels.as_ref()) {
                    return Err(Fault::new(
                        "unmanaged",
                        format!("the Service {name} is there and was not made by cdpipe"),
                    )
                    .help("name another one with `traffic service { name = … }`, or delete it"));
                }
                fenced(&service.metadata, call)?;
                let now = table(service);
                let is_for =
                    |table: &RouteTable, role: Role| table.entries.iter().any(|entry| entry.role == role);
                if is_for(wanted, Role::Candidate)
                    && now.as_ref().is_some_and(|now| is_for(now, Role::Stable))
                {
                    return Err(Fault::new(
                        "route-unfit",
                        format!("the Service {name} is where users come in, so it can't be a preview"),
                    )
                    .help("name another one in `preview`"));
                }
                if now.as_ref() != seen && now.as_ref() != Some(wanted) {
                    return Err(Fault::new(
                        "moved",
                        format!("someone else has changed the selector of the Service {name} since it was looked at"),
                    )
                    .help("see who did (`kubectl get service -o yaml --show-managed-fields`), then run again"));
                }
            }
            let text = serde_json::to_string(wanted).map_err(|error| {
                Fault::new("internal", format!("a table cannot be written down: {error}"))
            })?;
            let mut manifest =
                manifest::service(&name, &wanted.route.service, release(wanted), ports(wanted), &text);
            manifest["metadata"]["annotations"][EPOCH] = serde_json::json!(call.epoch.to_string());
            if ports(wanted).is_none()
                && let Some(kept) = there.as_ref().and_then(|there| there.spec.as_ref()?.ports.clone())
            {
                // A closed route keeps its ports.
                manifest["spec"]["ports"] = serde_json::json!(kept);
            }
            if manifest["spec"].get("ports").is_none() {
                // Nothing was there and nobody is to get anything.
                return Ok(());
            }
            if let Some(version) = there.and_then(|there| there.metadata.resource_version) {
                manifest["metadata"]["resourceVersion"] = serde_json::json!(version);
            }
            let api: Api<Service> = Api::namespaced(session.client(), session.namespace());
            let (params, patch) = (PatchParams::apply(MANAGER), Patch::Apply(manifest));
            let what = format!("apply the Service {name}");
            match session.ask(&what, || api.patch(&name, &params, &patch)).await {
                // Somebody has written between our look and our change, or the answer to that was lost: looked at again, within the time.
                Err(fault) if fault.kind == "conflict" => {
                    session.pause(POLL).await?;
                    self.apply(Call { deadline: session.left(), ..call }, wanted, seen).await
                }
                written => written.map(drop),
            }
        })
    }

    fn await_routed<'a>(&'a self, call: Call<'a>, table: &'a RouteTable) -> PortResult<'a, ()> {
        Box::pin(async move {
            let session = self.cluster.session(call).await?;
            let name = name(&table.route);
            if let Some(entry) = table.entries.iter().find(|entry| entry.weight_bp > 0) {
                await_pods(&session, &name, &entry.release, true).await?;
                return session.pause(self.settle).await;
            }
            while !endpoints(&session, &name).await?.is_empty() {
                call.sink.progress(&format!("the EndpointSlices of {name} have addresses still"));
                session.pause(POLL).await?;
            }
            Ok(())
        })
    }

    fn await_drained<'a>(
        &'a self,
        call: Call<'a>,
        _route: &'a Route,
        _release: &'a ReleaseId,
        _instances: &'a [Instance],
        drain: Duration,
    ) -> PortResult<'a, ()> {
        Box::pin(async move {
            // Nobody counts requests in flight: they get the whole time.
            self.cluster.session(call).await?.pause(drain).await
        })
    }

    fn requests<'a>(
        &'a self,
        _call: Call<'a>,
        _route: &'a Route,
    ) -> PortResult<'a, Option<BTreeMap<ReleaseId, u64>>> {
        Box::pin(async { Ok(None) })
    }
}
