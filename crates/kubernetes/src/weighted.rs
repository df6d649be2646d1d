//! The routers `gateway` and `istio`: shares and matches in an HTTPRoute or a VirtualService that somebody else has made.
//!
//! Each release has a Service of its own, `SERVICE-RELEASE`; the rules of the route that name the Service `SERVICE` name those instead.
//! The rules as they were are kept in an annotation of the route, and a closed route has them back exactly. What cdpipe wrote follows from
//! those and the table alone, so that any other rules are somebody's.

use crate::client::{Cluster, Session};
use crate::manifest::{self, MANAGER, SERVICE};
use crate::router::endpoints;
use crate::rules::{self, Kind, Ours};
use cdpipe_model::observe::{Instance, RouteTable};
use cdpipe_model::ports::{Call, PortResult, Router};
use cdpipe_model::service::Route;
use cdpipe_model::{Fault, ReleaseId};
use k8s_openapi::api::core::v1::Service;
use kube::Api;
use kube::api::{
    ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams, PostParams,
};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// Between two looks.
const POLL: Duration = Duration::from_millis(200);
/// From what the API server says to what the proxies do, where nobody says that they do it.
const SETTLE: Duration = Duration::from_secs(1);
/// Others may write between our look and our change; more often than this is no accident.
const TRIES: usize = 10;
const TABLE: &str = "cdpipe.dev/table";
/// The rules as they were before cdpipe changed them.
const RULES: &str = "cdpipe.dev/rules";
/// On a Service of one release: the route that uses it.
const ROUTE: &str = "cdpipe.dev/route";

/// HTTPRoutes or VirtualServices of one namespace of a cluster.
#[derive(Debug)]
pub struct WeightedRouter {
    cluster: Arc<Cluster>,
    kind: Kind,
}

/// What a route is now.
struct Seen {
    object: DynamicObject,
    /// Without our changes.
    rules: Vec<Value>,
    /// With them.
    table: Option<RouteTable>,
}

impl WeightedRouter {
    /// HTTPRoutes of the Gateway API. Nothing is asked until it is used.
    pub fn gateway(cluster: Arc<Cluster>) -> Self {
        Self { cluster, kind: Kind::HttpRoute }
    }

    /// VirtualServices of Istio. Nothing is asked until it is used.
    pub fn istio(cluster: Arc<Cluster>) -> Self {
        Self { cluster, kind: Kind::VirtualService }
    }

    fn word(&self) -> &'static str {
        match self.kind {
            Kind::HttpRoute => "HTTPRoute",
            Kind::VirtualService => "VirtualService",
        }
    }

    fn api(&self, session: &Session<'_>) -> Api<DynamicObject> {
        let (group, plural) = match self.kind {
            Kind::HttpRoute => ("gateway.networking.k8s.io", "httproutes"),
            Kind::VirtualService => ("networking.istio.io", "virtualservices"),
        };
        let kind = GroupVersionKind::gvk(group, "v1", self.word());
        let resource = ApiResource::from_gvk_with_plural(&kind, plural);
        Api::namespaced_with(session.client(), session.namespace(), &resource)
    }

    async fn read(&self, session: &Session<'_>, route: &Route) -> Result<Option<Seen>, Fault> {
        let (api, name) = (self.api(session), name(route));
        let what = format!("read the {} {name}", self.word());
        let Some(object) = session.ask(&what, || api.get_opt(&name)).await? else { return Ok(None) };
        let service = manifest::rolling_name(&route.service, None);
        let ours = Ours { service: &service, namespace: session.namespace() };
        let now = object.data["spec"][self.kind.rules()].as_array().cloned().unwrap_or_default();
        let note = |name: &str| object.metadata.annotations.as_ref().and_then(|all| all.get(name));
        let (Some(table), Some(kept)) = (note(TABLE), note(RULES)) else {
            return Ok(Some(Seen { object, rules: now, table: None }));
        };
        let kept: Option<Vec<Value>> = serde_json::from_str(kept).ok();
        let table: Option<RouteTable> = serde_json::from_str(table).ok();
        match (kept, table) {
            (Some(kept), Some(table)) if rules::render(self.kind, &kept, &ours, &table) == now => {
                Ok(Some(Seen { object, rules: kept, table: Some(table) }))
            }
            // Somebody has applied rules that name the service itself, most likely those of before.
            _ if rules::names_us(self.kind, &now, &ours) => {
                Ok(Some(Seen { object, rules: now, table: None }))
            }
            _ => Err(self.moved(&name, &service)),
        }
    }

    fn moved(&self, name: &str, service: &str) -> Fault {
        Fault::new(
            "moved",
            format!("someone else has changed the rules of the {} {name} since cdpipe wrote them", self.word()),
        )
        .help(format!(
            "see who did (`kubectl get --show-managed-fields`); cdpipe takes over any rules that have the backend `{service}` again"
        ))
    }

    /// Has each of these releases a Service of its own, and waits until it has addresses.
    async fn services(
        &self,
        session: &Session<'_>,
        table: &RouteTable,
        seen: &Seen,
        ours: &Ours<'_>,
    ) -> Result<(), Fault> {
        let api: Api<Service> = Api::namespaced(session.client(), session.namespace());
        let mut is_new = false;
        for entry in &table.entries {
            let name = ours.of(&entry.release);
            let target =
                entry.members.iter().find_map(|member| member.address.rsplit_once(':')?.1.parse().ok());
            let Some(target) = target else { continue };
            let port: u16 = rules::port(self.kind, &seen.rules, ours).unwrap_or(target);
            if session.ask(&format!("read the Service {name}"), || api.get_opt(&name)).await?.is_some() {
                continue;
            }
            let ports = Some((port, target));
            let mut wanted =
                manifest::service(&name, &table.route.service, entry.release.as_str(), ports, "");
            wanted["metadata"]["annotations"] = json!({ROUTE: table.route.object});
            // Istio takes the protocol from the name.
            wanted["spec"]["ports"][0]["name"] = json!("http");
            let (params, patch) = (PatchParams::apply(MANAGER), Patch::Apply(wanted));
            session.ask(&format!("apply the Service {name}"), || api.patch(&name, &params, &patch)).await?;
            is_new = true;
        }
        self.await_members(session, table, ours).await?;
        if is_new {
            // A proxy must know a backend before it is sent there.
            session.pause(SETTLE).await?;
        }
        Ok(())
    }

    async fn await_members(
        &self,
        session: &Session<'_>,
        table: &RouteTable,
        ours: &Ours<'_>,
    ) -> Result<(), Fault> {
        for entry in &table.entries {
            let host = |address: &str| {
                address.rsplit_once(':').map(|(host, _)| host.trim_matches(['[', ']']).to_owned())
            };
            let wanted: BTreeSet<String> =
                entry.members.iter().filter_map(|member| host(&member.address)).collect();
            let name = ours.of(&entry.release);
            while !endpoints(session, &name).await?.is_superset(&wanted) {
                session
                    .call
                    .sink
                    .progress(&format!("the EndpointSlices of {name} have not all addresses yet"));
                session.pause(POLL).await?;
            }
        }
        Ok(())
    }

    /// Deletes Services of releases that no table names any more.
    async fn prune(
        &self,
        session: &Session<'_>,
        ours: &Ours<'_>,
        route: &Route,
        tables: &[Option<&RouteTable>],
    ) -> Result<(), Fault> {
        let api: Api<Service> = Api::namespaced(session.client(), session.namespace());
        let params = ListParams::default().labels(&format!("{SERVICE}={}", route.service));
        let used: BTreeSet<String> = tables
            .iter()
            .flatten()
            .flat_map(|table| table.entries.iter().map(|entry| ours.of(&entry.release)))
            .collect();
        for service in session.ask("list Services", || api.list(&params)).await?.items {
            let name = service.metadata.name.unwrap_or_default();
            let is_ours = manifest::is_ours(service.metadata.labels.as_ref())
                && service.metadata.annotations.as_ref().and_then(|all| all.get(ROUTE))
                    == route.object.as_ref();
            if is_ours && !used.contains(&name) {
                let delete = DeleteParams::default();
                session.ask_for(&format!("delete the Service {name}"), || api.delete(&name, &delete)).await?;
            }
        }
        Ok(())
    }

    async fn apply_now(
        &self,
        call: Call<'_>,
        wanted: &RouteTable,
        seen: Option<&RouteTable>,
    ) -> Result<(), Fault> {
        let session = self.cluster.session(call).await?;
        let (api, name) = (self.api(&session), name(&wanted.route));
        let service = manifest::rolling_name(&wanted.route.service, None);
        let ours = Ours { service: &service, namespace: session.namespace() };
        let open = |table: &RouteTable| !table.entries.is_empty();
        let (seen, target) = (seen.filter(|seen| open(seen)), Some(wanted).filter(|wanted| open(wanted)));
        for _ in 0..TRIES {
            let Some(there) = self.read(&session, &wanted.route).await? else {
                if target.is_none() {
                    return Ok(());
                }
                return Err(Fault::new("route-missing", format!("there is no {} {name}", self.word())).help(
                    format!("make one whose rules have the backend `{service}`; cdpipe changes only those backends"),
                ));
            };
            if there.table.as_ref() != seen && there.table.as_ref() != target {
                return Err(self.moved(&name, &service));
            }
            if !rules::names_us(self.kind, &there.rules, &ours) {
                return Err(Fault::new(
                    "route-unfit",
                    format!("no rule of the {} {name} has the backend `{service}`", self.word()),
                )
                .help("name the service in one of its rules"));
            }
            self.services(&session, wanted, &there, &ours).await?;
            let mut object = there.object.clone();
            object.data["spec"][self.kind.rules()] =
                json!(rules::render(self.kind, &there.rules, &ours, wanted));
            let notes = object.metadata.annotations.get_or_insert_default();
            notes.remove(TABLE);
            notes.remove(RULES);
            if target.is_some() {
                notes.insert(TABLE.to_owned(), text(wanted)?);
                notes.insert(RULES.to_owned(), text(&there.rules)?);
            }
            let params = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
            let what = format!("write the {} {name}", self.word());
            match session.ask(&what, || api.replace(&name, &params, &object)).await {
                Ok(_) => return self.prune(&session, &ours, &wanted.route, &[seen, target]).await,
                Err(fault) if fault.kind == "conflict" => session.pause(POLL).await?,
                Err(fault) => return Err(fault),
            }
        }
        Err(Fault::new("conflict", format!("the {} {name} changes all the time", self.word())).transient())
    }

    /// Waits until each Gateway has said of this very generation that it took it. Istio says nothing of a VirtualService.
    async fn await_taken(&self, session: &Session<'_>, name: &str) -> Result<(), Fault> {
        let api = self.api(session);
        loop {
            let what = format!("read the {} {name}", self.word());
            let Some(object) = session.ask(&what, || api.get_opt(name)).await? else { return Ok(()) };
            let said = taken(&object.data, object.metadata.generation.unwrap_or(0));
            match said {
                Ok(()) => return Ok(()),
                Err(why) if session.left() < POLL * 5 => {
                    return Err(Fault::new(
                        "not-routed",
                        format!("no Gateway has taken the {} {name} in time: {why}", self.word()),
                    )
                    .help(format!("`kubectl get httproute {name} -o yaml` shows its conditions")));
                }
                Err(why) => session.call.sink.progress(&why),
            }
            session.pause(POLL).await?;
        }
    }
}

fn name(route: &Route) -> String {
    route.object.clone().unwrap_or_else(|| manifest::rolling_name(&route.service, None))
}

fn text(value: &impl serde::Serialize) -> Result<String, Fault> {
    serde_json::to_string(value)
        .map_err(|error| Fault::new("internal", format!("a route cannot be written down: {error}")))
}

/// Whether the conditions of a route say that all of its parents have taken this generation; else what they say.
fn taken(data: &Value, generation: i64) -> Result<(), String> {
    let parents = data["status"]["parents"].as_array().map(Vec::as_slice).unwrap_or_default();
    if parents.is_empty() {
        return Err("no Gateway has said anything of it".to_owned());
    }
    for parent in parents {
        for kind in ["Accepted", "ResolvedRefs"] {
            let conditions = parent["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
            let condition = conditions
                .iter()
                .find(|one| one["type"] == kind)
                .ok_or_else(|| format!("nothing is said of {kind}"))?;
            if condition["observedGeneration"].as_i64().unwrap_or(0) < generation {
                return Err("the Gateway has not looked at it yet".to_owned());
            }
            if condition["status"] != "True" {
                return Err(format!(
                    "{kind} is false: {}",
                    condition["message"].as_str().unwrap_or_default()
                ));
            }
        }
    }
    Ok(())
}

impl Router for WeightedRouter {
    fn observe<'a>(&'a self, call: Call<'a>, route: &'a Route) -> PortResult<'a, Option<RouteTable>> {
        Box::pin(async move {
            let session = self.cluster.session(call).await?;
            Ok(self.read(&session, route).await?.and_then(|seen| seen.table))
        })
    }

    fn apply<'a>(
        &'a self,
        call: Call<'a>,
        wanted: &'a RouteTable,
        seen: Option<&'a RouteTable>,
    ) -> PortResult<'a, ()> {
        Box::pin(self.apply_now(call, wanted, seen))
    }

    fn await_routed<'a>(&'a self, call: Call<'a>, table: &'a RouteTable) -> PortResult<'a, ()> {
        Box::pin(async move {
            let session = self.cluster.session(call).await?;
            if table.entries.is_empty() {
                // The route is as it was; whether its backends are there is its owner's affair.
                return session.pause(SETTLE).await;
            }
            let service = manifest::rolling_name(&table.route.service, None);
            let ours = Ours { service: &service, namespace: session.namespace() };
            self.await_members(&session, table, &ours).await?;
            if self.kind == Kind::HttpRoute {
                self.await_taken(&session, &name(&table.route)).await?;
            }
            session.pause(SETTLE).await
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_is_taken_when_each_gateway_says_so_of_this_generation() {
        let parent = |generation: i64, resolved: &str| {
            let condition = |kind: &str, status: &str| json!({"type": kind, "status": status, "observedGeneration": generation, "message": "why"});
            json!({"conditions": [condition("Accepted", "True"), condition("ResolvedRefs", resolved)]})
        };
        let said = |parents: Vec<Value>| taken(&json!({"status": {"parents": parents}}), 2);
        assert!(said(vec![]).is_err());
        assert!(said(vec![parent(1, "True")]).is_err());
        assert!(said(vec![parent(2, "True")]).is_ok());
        assert_eq!(
            said(vec![parent(2, "True"), parent(2, "False")]),
            Err("ResolvedRefs is false: why".into())
        );
    }
}
