//! What scales and guards a Deployment from outside: a HorizontalPodAutoscaler and PodDisruptionBudgets that somebody else has made.
//!
//! An autoscaler is followed, never fought. Deployments of single releases have names that change with each release, so each gets a copy
//! of what the user made for one of them, or for the Deployment that would roll (which need not be there). Copies belong to their
//! Deployment and go with it.

use crate::client::Session;
use crate::given;
use crate::kind::Workload;
use crate::manifest::{self, MANAGER, RELEASE, SERVICE, WORKLOAD};
use cdpipe_model::Fault;
use cdpipe_model::release::ReleaseSpec;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::{ListParams, Patch, PatchParams};
use serde_json::{Value, json};
use std::collections::BTreeMap;

const DEPLOYMENT: &str = "Deployment";

/// The Deployment that would roll.
fn rolling(spec: &ReleaseSpec) -> String {
    let place = given::place(spec).map(|(_, name)| name);
    place.unwrap_or_else(|_| manifest::rolling_name(&spec.service, spec.platform_name.as_deref()))
}

fn autoscalers(session: &Session<'_>) -> Api<HorizontalPodAutoscaler> {
    Api::namespaced(session.client(), session.namespace())
}

async fn all(session: &Session<'_>) -> Result<Vec<HorizontalPodAutoscaler>, Fault> {
    let (api, params) = (autoscalers(session), ListParams::default());
    Ok(session.ask("list HorizontalPodAutoscalers", || api.list(&params)).await?.items)
}

/// The workload of this kind that an autoscaler scales.
fn scaled<'a>(autoscaler: &'a HorizontalPodAutoscaler, kind: &str) -> Option<&'a str> {
    let target = &autoscaler.spec.as_ref()?.scale_target_ref;
    (target.kind == kind).then_some(target.name.as_str())
}

/// Whether an autoscaler scales one of these workloads, and to how many then: none of those that have no pods, which are left alone.
///
/// # Errors
/// If the cluster can't be asked.
pub(crate) async fn wanted(session: &Session<'_>, workloads: Vec<&Workload>) -> Result<Option<u32>, Fault> {
    let running: Vec<&Workload> = workloads.into_iter().filter(|one| one.replicas() > 0).collect();
    if running.is_empty() {
        return Ok(None);
    }
    let all = all(session).await?;
    Ok(running
        .into_iter()
        .filter(|one| all.iter().any(|each| scaled(each, one.kind.as_str()) == Some(one.name())))
        .map(Workload::replicas)
        .max())
}

/// Whether this is a Deployment that cdpipe makes of a service, or would.
fn is_of_service(name: &str, rolling: &str) -> bool {
    name.strip_prefix(rolling)
        .is_some_and(|rest| rest.is_empty() || rest.strip_prefix('-').is_some_and(is_release))
}

fn is_release(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Name, labels and owner of a copy.
fn copied(meta: &ObjectMeta, spec: &ReleaseSpec, owner: &Workload) -> Value {
    let (release, name) = (spec.id(), meta.name.as_deref().unwrap_or_default());
    let mut labels = manifest::ours(&spec.service);
    labels.insert(RELEASE.to_owned(), release.to_string());
    json!({
        "name": format!("{name}-{release}"),
        "labels": labels,
        "ownerReferences": [{"apiVersion": "apps/v1", "kind": "Deployment", "name": owner.metadata.name, "uid": owner.metadata.uid}],
    })
}

/// A copy of the autoscaler of another Deployment of this service, for this one. `None` where there is nothing to copy, or the user's
/// own scales it already.
fn copy_of(all: &[HorizontalPodAutoscaler], spec: &ReleaseSpec, owner: &Workload) -> Option<Value> {
    let rolling = rolling(spec);
    let mut users =
        all.iter().filter(|one| !manifest::is_ours(one.metadata.labels.as_ref())).collect::<Vec<_>>();
    users.sort_by_key(|one| one.metadata.name.as_deref());
    if users.iter().any(|one| scaled(one, DEPLOYMENT) == Some(owner.name())) {
        return None;
    }
    let source = users
        .into_iter()
        .find(|one| scaled(one, DEPLOYMENT).is_some_and(|name| is_of_service(name, &rolling)))?;
    let mut wanted = source.spec.clone()?;
    wanted.scale_target_ref.name = owner.name().to_owned();
    Some(json!({
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": copied(&source.metadata, spec, owner),
        "spec": wanted,
    }))
}

/// Copies of the disruption budgets that name another release or Deployment of this service. One that covers the new pods by itself is
/// not copied: a pod with two budgets can't be evicted at all.
fn budgets_of(all: &[PodDisruptionBudget], spec: &ReleaseSpec, owner: &Workload) -> Vec<Value> {
    let rolling = rolling(spec);
    let release = spec.id();
    let named = |budget: &&PodDisruptionBudget| -> Option<BTreeMap<String, String>> {
        let mut labels = budget.spec.as_ref()?.selector.as_ref()?.match_labels.clone()?;
        let ours = labels.get(SERVICE).is_none_or(|service| *service == spec.service.0);
        let workload = labels.get(WORKLOAD).is_some_and(|name| is_of_service(name, &rolling));
        let one = labels.contains_key(SERVICE) && labels.contains_key(RELEASE);
        if !ours || !(workload || one) {
            return None;
        }
        for (label, value) in [(WORKLOAD, owner.name()), (RELEASE, release.as_str())] {
            if let Some(there) = labels.get_mut(label) {
                value.clone_into(there);
            }
        }
        Some(labels)
    };
    let users = || all.iter().filter(|one| !manifest::is_ours(one.metadata.labels.as_ref()));
    let covers = |budget: &PodDisruptionBudget| {
        let selector = budget.spec.as_ref().and_then(|spec| spec.selector.as_ref());
        let labels = selector.and_then(|selector| selector.match_labels.as_ref());
        let known = [(SERVICE, spec.service.as_str()), (WORKLOAD, owner.name()), (RELEASE, release.as_str())];
        labels.is_some_and(|labels| {
            labels.iter().all(|(label, value)| known.contains(&(label.as_str(), value.as_str())))
        })
    };
    if users().any(covers) {
        return Vec::new();
    }
    let mut copies = BTreeMap::new();
    for budget in users() {
        let (Some(labels), Some(mut wanted)) = (named(&budget), budget.spec.clone()) else { continue };
        let Some(selector) = &mut wanted.selector else { continue };
        selector.match_labels = Some(labels.clone());
        let copy = json!({
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": copied(&budget.metadata, spec, owner),
            "spec": wanted,
        });
        // Two of the user's that name two releases come to one.
        copies.entry(labels).or_insert(copy);
    }
    copies.into_values().take(1).collect()
}

/// Gives the Deployment of a release its copies.
///
/// # Errors
/// If the cluster can't be asked or refuses them.
pub(crate) async fn copy(session: &Session<'_>, spec: &ReleaseSpec, owner: &Workload) -> Result<(), Fault> {
    let params = PatchParams::apply(MANAGER).force();
    if let Some(copy) = copy_of(&all(session).await?, spec, owner) {
        let (api, name) =
            (autoscalers(session), copy["metadata"]["name"].as_str().unwrap_or_default().to_owned());
        let (what, patch) = (format!("apply the HorizontalPodAutoscaler {name}"), Patch::Apply(copy));
        session.ask(&what, || api.patch(&name, &params, &patch)).await?;
    }
    let api: Api<PodDisruptionBudget> = Api::namespaced(session.client(), session.namespace());
    for copy in budgets_of(&budgets(session).await?, spec, owner) {
        let name = copy["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let (what, patch) = (format!("apply the PodDisruptionBudget {name}"), Patch::Apply(copy));
        session.ask(&what, || api.patch(&name, &params, &patch)).await?;
    }
    Ok(())
}

/// What a release that stands beside another would get copies of: group and resource of what users have made here.
///
/// # Errors
/// If the cluster can't be asked. What may not be listed is none: that right is missed by itself.
pub(crate) async fn copied_kinds(
    session: &Session<'_>,
    beside: bool,
) -> Result<Vec<(&'static str, &'static str)>, Fault> {
    let mut found = Vec::new();
    if !beside {
        return Ok(found);
    }
    let users = |meta: &ObjectMeta| !manifest::is_ours(meta.labels.as_ref());
    if if_seen(all(session).await)?.iter().any(|one| users(&one.metadata)) {
        found.push(("autoscaling", "horizontalpodautoscalers"));
    }
    if if_seen(budgets(session).await)?.iter().any(|one| users(&one.metadata)) {
        found.push(("policy", "poddisruptionbudgets"));
    }
    Ok(found)
}

async fn budgets(session: &Session<'_>) -> Result<Vec<PodDisruptionBudget>, Fault> {
    let api: Api<PodDisruptionBudget> = Api::namespaced(session.client(), session.namespace());
    let params = ListParams::default();
    Ok(session.ask("list PodDisruptionBudgets", || api.list(&params)).await?.items)
}

/// A list, empty where it may not be seen.
fn if_seen<T>(listed: Result<Vec<T>, Fault>) -> Result<Vec<T>, Fault> {
    match listed {
        Err(fault) if fault.kind == "forbidden" => Ok(Vec::new()),
        listed => listed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cdpipe_model::ServiceName;
    use cdpipe_model::release::Artifact;

    fn spec() -> ReleaseSpec {
        ReleaseSpec {
            service: ServiceName::from("web"),
            platform_name: None,
            version: "1".to_owned(),
            artifact: Artifact::Image { reference: "web:1".to_owned(), digest: None, args: Vec::new() },
            port: Some(80),
            env: BTreeMap::new(),
            health: Vec::new(),
            drain_ms: 0,
            extra: BTreeMap::new(),
        }
    }

    fn owner() -> Workload {
        let name = manifest::side_name(&spec());
        let template = json!({"metadata": {}, "spec": {"containers": []}});
        let object = json!({"metadata": {"name": name, "uid": "u1"}, "spec": {"template": template}});
        Workload::read(crate::kind::Kind::Deployment, serde_json::from_value(object).unwrap()).unwrap()
    }

    fn autoscaler(name: &str, of: &str) -> HorizontalPodAutoscaler {
        let target = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": of});
        let spec = json!({"scaleTargetRef": target, "minReplicas": 3, "maxReplicas": 9});
        serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec})).unwrap()
    }

    #[test]
    fn an_autoscaler_of_another_release_is_copied_unless_the_user_has_one_for_this() {
        let other = [autoscaler("not", "web-proxy"), autoscaler("hpa", "web-0123456789ab")];
        let copy = copy_of(&other, &spec(), &owner()).unwrap();
        let release = spec().id();
        assert_eq!(copy["metadata"]["name"], json!(format!("hpa-{release}")));
        assert_eq!(copy["spec"]["scaleTargetRef"]["name"], json!(format!("web-{release}")));
        assert_eq!(
            (&copy["spec"]["minReplicas"], &copy["metadata"]["ownerReferences"][0]["uid"]),
            (&json!(3), &json!("u1"))
        );
        assert!(copy_of(&[autoscaler("hpa", "web")], &spec(), &owner()).is_some());
        assert!(
            copy_of(&[autoscaler("a", "web"), autoscaler("hpa", owner().name())], &spec(), &owner())
                .is_none()
        );
        assert!(copy_of(&[autoscaler("not", "website")], &spec(), &owner()).is_none());
    }

    #[test]
    fn a_budget_is_copied_only_where_it_does_not_cover_the_new_pods_itself() {
        let budget = |labels: Value| -> PodDisruptionBudget {
            let spec = json!({"maxUnavailable": 1, "selector": {"matchLabels": labels}});
            serde_json::from_value(json!({"metadata": {"name": "pdb"}, "spec": spec})).unwrap()
        };
        let copies = |labels: Value| budgets_of(&[budget(labels)], &spec(), &owner());
        assert!(copies(json!({SERVICE: "web"})).is_empty());
        assert!(copies(json!({SERVICE: "other", RELEASE: "0123456789ab"})).is_empty());
        assert!(copies(json!({WORKLOAD: owner().name()})).is_empty());
        let release = spec().id();
        let made = copies(json!({SERVICE: "web", RELEASE: "0123456789ab"}));
        assert_eq!(
            made[0]["spec"]["selector"]["matchLabels"],
            json!({SERVICE: "web", RELEASE: release.as_str()})
        );
        let made = copies(json!({WORKLOAD: "web", "tier": "front"}));
        assert_eq!(
            made[0]["spec"]["selector"]["matchLabels"],
            json!({WORKLOAD: format!("web-{release}"), "tier": "front"})
        );
        assert_eq!(made[0]["spec"]["maxUnavailable"], json!(1));
    }
}
