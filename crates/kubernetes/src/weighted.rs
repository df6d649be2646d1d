//! The routers `gateway` and `istio`: shares and matches in an HTTPRoute or a VirtualService that somebody else has made.
//!
//! The rules of the route that name the Service `SERVICE` name each release instead, as `backends` makes it known.
//! The rules as they were are kept in an annotation of the route, and a closed route has them back exactly. What cdpipe wrote follows from
//! those and the table alone, so that any other rules are somebody's.

use crate::client::{Cluster, Session};
use crate::manifest::{self, EPOCH, MANAGER};
use crate::rules::{self, Kind, Ours};
use crate::workload::fenced;
use cdpipe_model::observe::{Instance, RouteTable};
use cdpipe_model::ports::{Call, PortResult, Router};
use cdpipe_model::service::Route;
use cdpipe_model::{Fault, ReleaseId};
use kube::Api;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, PostParams};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Between two looks.
pub(crate) const POLL: Duration = Duration::from_millis(200);
/// Others may write between our look and our change; more often than this is no accident.
pub(crate) const TRIES: usize = 10;
const TABLE: &str = "cdpipe.dev/table";
/// The rules as they were before cdpipe changed them.
const RULES: &str = "cdpipe.dev/rules";

/// HTTPRoutes or VirtualServices of one namespace of a cluster.
#[derive(Debug)]
pub struct WeightedRouter {
    cluster: Arc<Cluster>,
    kind: Kind,
    /// The DestinationRule whose subsets the releases are; without one each has a Service of its own.
    pub(crate) destination_rule: Option<String>,
    /// From what the API server says to what the proxies do, where nobody says that they do it.
    pub(crate) settle: Duration,
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
    /// How long proxies get by default to do what was written.
    pub const SETTLE: Duration = Duration::from_secs(1);

    /// HTTPRoutes of the Gateway API. `settle` is how long proxies get to do what was written. Nothing is asked until it is used.
    pub fn gateway(cluster: Arc<Cluster>, settle: Duration) -> Self {
        Self { cluster, kind: Kind::HttpRoute, destination_rule: None, settle }
    }

    /// VirtualServices of Istio, with the subsets of this DestinationRule if one is named. `settle` is how long proxies get to do what
    /// was written. Nothing is asked until it is used.
    pub fn istio(cluster: Arc<Cluster>, destination_rule: Option<String>, settle: Duration) -> Self {
        Self { cluster, kind: Kind::VirtualService, destination_rule, settle }
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

    fn ours<'a>(&self, session: &'a Session<'_>, service: &'a str) -> Ours<'a> {
        Ours { service, namespace: session.namespace(), subsets: self.destination_rule.is_some() }
    }

    async fn read(&self, session: &Session<'_>, route: &Route) -> Result<Option<Seen>, Fault> {
        let (api, name) = (self.api(session), name(route));
        let what = format!("read the {} {name}", self.word());
        let Some(object) = session.ask(&what, || api.get_opt(&name)).await? else { return Ok(None) };
        let service = manifest::rolling_name(&route.service, None);
        let ours = self.ours(session, &service);
        let now = object.data["spec"][self.kind.rules()].as_array().cloned().unwrap_or_default();
        let note = |name: &str| object.metadata.annotations.as_ref().and_then(|all| all.get(name));
        let (Some(table), Some(kept)) = (note(TABLE), note(RULES)) else {
            return Ok(Some(Seen { object, rules: now, table: None }));
        };
        let kept: Option<Vec<Value>> = serde_json::from_str(kept).ok();
        let table: Option<RouteTable> = serde_json::from_str(table).ok();
        // An earlier run may have been told of a DestinationRule, or of none.
        let is_what_we_wrote = |kept: &[Value], table: &RouteTable| {
            [true, false]
                .into_iter()
                .any(|subsets| rules::render(self.kind, kept, &Ours { subsets, ..ours }, table) == now)
        };
        match (kept, table) {
            (Some(kept), Some(table)) if is_what_we_wrote(&kept, &table) => {
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

    async fn apply_now(
        &self,
        call: Call<'_>,
        wanted: &RouteTable,
        seen: Option<&RouteTable>,
    ) -> Result<(), Fault> {
        let session = self.cluster.session(call).await?;
        let (api, name) = (self.api(&session), name(&wanted.route));
        let service = manifest::rolling_name(&wanted.route.service, None);
        let ours = self.ours(&session, &service);
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
            fenced(&there.object.metadata, call)?;
            let port = rules::port(self.kind, &there.rules, &ours);
            self.make_backends(&session, wanted, port, &ours).await?;
            let mut object = there.object.clone();
            object.data["spec"][self.kind.rules()] =
                json!(rules::render(self.kind, &there.rules, &ours, wanted));
            let notes = object.metadata.annotations.get_or_insert_default();
            for note in [TABLE, RULES, EPOCH] {
                notes.remove(note);
            }
            if target.is_some() {
                notes.insert(TABLE.to_owned(), text(wanted)?);
                notes.insert(RULES.to_owned(), text(&there.rules)?);
                notes.insert(EPOCH.to_owned(), call.epoch.to_string());
            }
            let params = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
            let what = format!("write the {} {name}", self.word());
            match session.ask(&what, || api.replace(&name, &params, &object)).await {
                Ok(_) => return Ok(()),
                Err(fault) if fault.kind == "conflict" => session.pause(POLL).await?,
                Err(fault) => return Err(fault),
            }
        }
        Err(Fault::new("conflict", format!("the {} {name} changes all the time", self.word())).transient())
    }

    /// Removes the backends of releases that the route does not name any more. Not before proxies have had the time to hear of it: one
    /// that still sends to a backend which is gone answers 503.
    async fn prune(&self, session: &Session<'_>, route: &Route) -> Result<(), Fault> {
        let table = self.read(session, route).await?.and_then(|seen| seen.table);
        let service = manifest::rolling_name(&route.service, None);
        self.prune_backends(session, route, table.as_ref(), &self.ours(session, &service)).await
    }

    /// Waits until whoever looks after the route has said of this very generation that it took it. Istio says nothing of a
    /// VirtualService unless it was told to.
    async fn await_taken(&self, session: &Session<'_>, name: &str) -> Result<(), Fault> {
        let api = self.api(session);
        loop {
            let what = format!("read the {} {name}", self.word());
            let Some(object) = session.ask(&what, || api.get_opt(name)).await? else { return Ok(()) };
            let generation = object.metadata.generation.unwrap_or(0);
            let said = match self.kind {
                Kind::HttpRoute => taken(&object.data, generation),
                Kind::VirtualService => reconciled(&object.data, generation),
            };
            match said {
                Ok(()) => return Ok(()),
                Err(why) if session.left() < POLL * 5 => {
                    return Err(Fault::new(
                        "not-routed",
                        format!("the {} {name} was not taken in time: {why}", self.word()),
                    )
                    .help(format!(
                        "`kubectl get {} {name} -o yaml` shows its conditions",
                        self.word().to_lowercase()
                    )));
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

/// Whether the proxies have a VirtualService of this generation, as far as Istio says: only one that reports its status says
/// anything at all.
fn reconciled(data: &Value, generation: i64) -> Result<(), String> {
    let conditions = data["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let Some(condition) = conditions.iter().find(|one| one["type"] == "Reconciled") else { return Ok(()) };
    // Numbers of 64 bits are strings in what Istio writes.
    let number = |value: &Value| value.as_i64().or_else(|| value.as_str()?.parse().ok());
    let of =
        number(&condition["observedGeneration"]).or_else(|| number(&data["status"]["observedGeneration"]));
    if of.is_some_and(|of| of < generation) {
        return Err("Istio has not looked at it yet".to_owned());
    }
    if condition["status"] != "True" {
        let why = condition["message"].as_str().unwrap_or_default();
        return Err(format!("not every proxy has it: {why}"));
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
                session.pause(self.settle).await?;
                return self.prune(&session, &table.route).await;
            }
            let service = manifest::rolling_name(&table.route.service, None);
            self.await_backends(&session, table, &self.ours(&session, &service)).await?;
            self.await_taken(&session, &name(&table.route)).await?;
            session.pause(self.settle).await
        })
    }

    fn await_drained<'a>(
        &'a self,
        call: Call<'a>,
        route: &'a Route,
        _release: &'a ReleaseId,
        _instances: &'a [Instance],
        drain: Duration,
    ) -> PortResult<'a, ()> {
        Box::pin(async move {
            let session = self.cluster.session(call).await?;
            // Nobody counts requests in flight: they get the whole time.
            session.pause(drain).await?;
            self.prune(&session, route).await
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

    #[test]
    fn what_istio_says_of_a_route_counts_only_where_it_says_anything() {
        let said = |status: Value| reconciled(&json!({"status": status}), 2);
        assert!(said(json!({})).is_ok());
        let of = |generation: Value, status: &str| {
            let condition =
                json!({"type": "Reconciled", "status": status, "message": "1/2 proxies up to date."});
            said(json!({"observedGeneration": generation, "conditions": [condition]}))
        };
        assert!(of(json!("1"), "True").is_err());
        assert!(of(json!("2"), "True").is_ok());
        assert_eq!(of(json!(2), "False"), Err("not every proxy has it: 1/2 proxies up to date.".into()));
    }
}
