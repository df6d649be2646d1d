//! How single releases are backends of a route: each by a Service of its own, `SERVICE-RELEASE`, or as a subset of a DestinationRule that
//! somebody else has made, whose host is the Service of all of them.

use crate::client::Session;
use crate::manifest::{self, MANAGER, SERVICE};
use crate::router::await_pods;
use crate::rules::{self, Ours};
use crate::weighted::{POLL, TRIES, WeightedRouter};
use cdpipe_model::observe::RouteTable;
use cdpipe_model::service::Route;
use cdpipe_model::{Fault, ReleaseId};
use k8s_openapi::api::core::v1::Service;
use kube::Api;
use kube::api::{
    ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams, PostParams,
};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// On a Service of one release: the route that uses it.
const ROUTE: &str = "cdpipe.dev/route";

fn services(session: &Session<'_>) -> Api<Service> {
    Api::namespaced(session.client(), session.namespace())
}

fn destination_rules(session: &Session<'_>) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk("networking.istio.io", "v1", "DestinationRule");
    let resource = ApiResource::from_gvk_with_plural(&kind, "destinationrules");
    Api::namespaced_with(session.client(), session.namespace(), &resource)
}

impl WeightedRouter {
    /// Has each release of the table be a backend, and waits until it has addresses.
    pub(crate) async fn make_backends(
        &self,
        session: &Session<'_>,
        table: &RouteTable,
        port: Option<u16>,
        ours: &Ours<'_>,
    ) -> Result<(), Fault> {
        let is_new = match &self.destination_rule {
            Some(name) => {
                let wanted: Vec<&ReleaseId> = table.entries.iter().map(|entry| &entry.release).collect();
                self.edit_subsets(session, name, |subsets| {
                    let before = subsets.len();
                    for release in &wanted {
                        let subset = rules::subset(release);
                        if !subsets.iter().any(|one| one["name"] == subset["name"]) {
                            subsets.push(subset);
                        }
                    }
                    subsets.len() != before
                })
                .await?
            }
            None => self.make_services(session, table, port, ours).await?,
        };
        self.await_backends(session, table, ours).await?;
        if is_new {
            // A proxy must know a backend before it is sent there.
            session.pause(self.settle).await?;
        }
        Ok(())
    }

    async fn make_services(
        &self,
        session: &Session<'_>,
        table: &RouteTable,
        port: Option<u16>,
        ours: &Ours<'_>,
    ) -> Result<bool, Fault> {
        let api = services(session);
        let mut is_new = false;
        for entry in &table.entries {
            let name = ours.of(&entry.release);
            let target =
                entry.members.iter().find_map(|member| member.address.rsplit_once(':')?.1.parse().ok());
            let Some(target) = target else { continue };
            let there = session.ask(&format!("read the Service {name}"), || api.get_opt(&name)).await?;
            let known = there.and_then(|there| there.spec?.ports).unwrap_or_default();
            let port = port.unwrap_or(target);
            if known.iter().any(|one| one.port == i32::from(port)) {
                continue;
            }
            let mut wanted = manifest::service(
                &name,
                &table.route.service,
                entry.release.as_str(),
                Some((port, target)),
                "",
            );
            wanted["metadata"]["annotations"] = json!({ROUTE: table.route.object});
            // Istio takes the protocol from the name.
            let protocol = if known.is_empty() { "http".to_owned() } else { format!("http-{port}") };
            wanted["spec"]["ports"][0]["name"] = json!(protocol);
            if let Some(ports) = wanted["spec"]["ports"].as_array_mut() {
                // Until the route has the new one in use, proxies send to the one of before.
                ports.extend(known.iter().map(|one| {
                    json!({"name": one.name, "port": one.port, "targetPort": one.target_port, "protocol": one.protocol})
                }));
            }
            let (params, patch) = (PatchParams::apply(MANAGER), Patch::Apply(wanted));
            session.ask(&format!("apply the Service {name}"), || api.patch(&name, &params, &patch)).await?;
            is_new = true;
        }
        Ok(is_new)
    }

    /// Waits until every release of the table has its pods among the addresses of its Service.
    pub(crate) async fn await_backends(
        &self,
        session: &Session<'_>,
        table: &RouteTable,
        ours: &Ours<'_>,
    ) -> Result<(), Fault> {
        for entry in table.entries.iter().filter(|entry| !entry.members.is_empty()) {
            if ours.subsets {
                await_pods(session, ours.service, &entry.release, false).await?;
            } else {
                await_pods(session, &ours.of(&entry.release), &entry.release, true).await?;
            }
        }
        Ok(())
    }

    /// Removes what no release of the table needs any more.
    pub(crate) async fn prune_backends(
        &self,
        session: &Session<'_>,
        route: &Route,
        table: Option<&RouteTable>,
        ours: &Ours<'_>,
    ) -> Result<(), Fault> {
        let used = || table.into_iter().flat_map(|table| &table.entries).map(|entry| &entry.release);
        if let Some(name) = &self.destination_rule {
            let used: Vec<Value> = used().map(|release| rules::subset(release)["name"].clone()).collect();
            self.edit_subsets(session, name, |subsets| {
                let before = subsets.len();
                subsets.retain(|one| !rules::is_our_subset(one) || used.contains(&one["name"]));
                subsets.len() != before
            })
            .await?;
        }
        // Also beside a DestinationRule: an earlier run may not have been told of it.
        let used: BTreeSet<String> =
            used().filter(|_| !ours.subsets).map(|release| ours.of(release)).collect();
        let api = services(session);
        let params = ListParams::default().labels(&format!("{SERVICE}={}", route.service));
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

    /// Changes the subsets of a DestinationRule; `edit` says whether it changed any. What was no list before is none after, once nothing
    /// is in it.
    async fn edit_subsets(
        &self,
        session: &Session<'_>,
        name: &str,
        edit: impl Fn(&mut Vec<Value>) -> bool,
    ) -> Result<bool, Fault> {
        let api = destination_rules(session);
        for _ in 0..TRIES {
            let what = format!("read the DestinationRule {name}");
            let Some(mut object) = session.ask(&what, || api.get_opt(name)).await? else {
                return Err(Fault::new("route-missing", format!("there is no DestinationRule {name}")).help(
                    "make one whose host is the Service that the VirtualService names; cdpipe adds a subset for each release",
                ));
            };
            let mut subsets = object.data["spec"]["subsets"].as_array().cloned().unwrap_or_default();
            if !edit(&mut subsets) {
                return Ok(false);
            }
            match object.data["spec"].as_object_mut() {
                Some(spec) if subsets.is_empty() => drop(spec.remove("subsets")),
                _ => object.data["spec"]["subsets"] = json!(subsets),
            }
            let params = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
            let what = format!("write the DestinationRule {name}");
            match session.ask(&what, || api.replace(name, &params, &object)).await {
                Ok(_) => return Ok(true),
                Err(fault) if fault.kind == "conflict" => session.pause(POLL).await?,
                Err(fault) => return Err(fault),
            }
        }
        Err(Fault::new("conflict", format!("the DestinationRule {name} changes all the time")).transient())
    }
}
