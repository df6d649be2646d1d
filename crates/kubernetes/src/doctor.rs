//! Whether a cluster can be used, and for what. Asks, and changes nothing.

use crate::client::{Cluster, Session};
use crate::kind::Kind;
use crate::objects::{self, Manifest};
use crate::scale;
use cdpipe_model::Fault;
use cdpipe_model::ports::{BoxFuture, Call};
use cdpipe_model::service::TrafficKind;
use futures_util::StreamExt as _;
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use k8s_openapi::api::core::v1::Namespace;
use kube::Api;
use kube::api::PostParams;
use kube::core::{ApiResource, GroupVersionKind};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

/// What is done with a workload.
const WORKLOAD: &[&str] = &["get", "list", "watch", "create", "patch", "delete"];
/// Questions at a time.
const AT_A_TIME: usize = 16;

/// What a pipeline does on a cluster.
#[derive(Debug, Default)]
pub struct Wants {
    /// It deploys services.
    pub deploys: bool,
    /// Their variables hold secrets.
    pub secrets: bool,
    /// Two releases of a service stand side by side for a while.
    pub beside: bool,
    /// It runs commands inside instances.
    pub exec: bool,
    /// It runs commands in images of their own.
    pub jobs: bool,
    /// It forwards ports.
    pub forwards: bool,
    /// What steers traffic, and the name of its object, where that must be there.
    pub traffic: Option<(TrafficKind, Option<String>)>,
    /// Whether releases are subsets of a DestinationRule.
    pub subsets: bool,
    /// What it applies.
    pub manifests: Vec<Manifest>,
    /// What its services are made from, with all that comes with them.
    pub services: Vec<Manifest>,
}

/// How a line is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// As it should be.
    Good,
    /// It is not there, and may not have to be.
    Missing,
    /// A run would fail by it.
    Bad,
}

/// One thing that was looked at.
#[derive(Debug)]
pub struct Line {
    /// `kubeconfig`, `server`, `namespace`, `rights` or `router`.
    pub what: &'static str,
    /// How it is.
    pub health: Health,
    /// In words.
    pub text: String,
    /// What to do about it; may have several lines.
    pub help: Option<String>,
}

/// All that was found.
#[derive(Debug, Default)]
pub struct Checkup {
    /// In order.
    pub lines: Vec<Line>,
    /// The context that is not there, and those that are.
    pub unknown_context: Option<(String, Vec<String>)>,
    /// Rights that are missing, as `verb resource`.
    pub missing: Vec<String>,
}

/// A right, and where it is needed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Right {
    /// `None` for what is in no namespace.
    namespace: Option<String>,
    group: String,
    resource: String,
    verb: &'static str,
}

impl Right {
    /// `patch deployments.apps`.
    fn text(&self) -> String {
        match self.group.as_str() {
            "" => format!("{} {}", self.verb, self.resource),
            group => format!("{} {}.{group}", self.verb, self.resource),
        }
    }
}

impl Checkup {
    fn say(&mut self, what: &'static str, health: Health, text: impl Into<String>) {
        self.lines.push(Line { what, health, text: text.into(), help: None });
    }

    fn fault(&mut self, what: &'static str, fault: Fault) {
        self.lines.push(Line { what, health: Health::Bad, text: fault.message, help: fault.help });
    }
}

/// Looks at a cluster, as far as it gets.
pub async fn examine(cluster: &Cluster, call: Call<'_>, wants: &Wants) -> Checkup {
    let mut found = Checkup::default();
    match cluster.contexts() {
        Ok((from, context, contexts)) => {
            if let Some(context) = context.filter(|context| !contexts.contains(context)) {
                let text = format!("{from} has no context `{context}`");
                found.say("kubeconfig", Health::Bad, text);
                found.unknown_context = Some((context, contexts));
                return found;
            }
            found.say("kubeconfig", Health::Good, from);
        }
        // In a pod of the cluster there is none, and none is needed.
        Err(_) if std::env::var_os("KUBERNETES_SERVICE_HOST").is_some() => {
            found.say("kubeconfig", Health::Good, "the account of this pod");
        }
        Err(fault) => {
            found.fault("kubeconfig", fault);
            return found;
        }
    }
    let session = match cluster.session(call).await {
        Ok(session) => session,
        Err(fault) => {
            found.fault("kubeconfig", fault);
            return found;
        }
    };
    let client = session.client();
    match session.ask("say its version", || client.apiserver_version()).await {
        Ok(version) => {
            let text = format!("{} is Kubernetes {}", session.server(), version.git_version);
            found.say("server", Health::Good, text);
        }
        Err(fault) => {
            found.fault("server", fault);
            return found;
        }
    }
    namespace(&session, wants, &mut found).await;
    if let Err(fault) = rights(&session, wants, &mut found).await {
        found.fault("rights", fault);
    }
    if let Some((kind, name)) = &wants.traffic {
        router(&session, *kind, name.as_deref(), &mut found).await;
    }
    found
}

async fn namespace(session: &Session<'_>, wants: &Wants, found: &mut Checkup) {
    let name = session.namespace();
    let api: Api<Namespace> = Api::all(session.client());
    match session.ask(&format!("read the namespace {name}"), || api.get_opt(name)).await {
        Ok(Some(_)) => found.say("namespace", Health::Good, format!("{name} is there")),
        Ok(None) => {
            let all = wants.manifests.iter().chain(&wants.services);
            let comes = all.into_iter().any(|one| one.kind == "Namespace" && one.name == name);
            match comes {
                true => found.say("namespace", Health::Good, format!("{name} comes with what is applied")),
                false => found.lines.push(Line {
                    what: "namespace",
                    health: Health::Bad,
                    text: format!("there is no namespace {name}"),
                    help: Some(format!(
                        "make it: `kubectl create namespace {name}`, or name another one in the target"
                    )),
                }),
            }
        }
        Err(fault) if fault.kind == "forbidden" => {
            let text =
                format!("whether {name} is there may not be asked; it is if its rights below are good");
            found.say("namespace", Health::Missing, text);
        }
        Err(fault) => found.fault("namespace", fault),
    }
}

/// What each thing needs: group, resource, verbs.
fn table(wants: &Wants) -> Vec<(&'static str, &'static str, &'static [&'static str])> {
    let mut all: Vec<(&str, &str, &[&str])> = Vec::new();
    if wants.deploys {
        all.extend([
            ("apps", "deployments", WORKLOAD),
            ("apps", "replicasets", &["list"]),
            // What scales and guards the workloads is followed.
            ("autoscaling", "horizontalpodautoscalers", &["list"]),
            ("policy", "poddisruptionbudgets", &["list"]),
            ("", "pods", &["list", "patch"]),
            ("", "pods/log", &["get"]),
            ("", "events", &["list"]),
            ("", "secrets", &["list", "delete"]),
            ("coordination.k8s.io", "leases", &["get", "create", "update"]),
        ]);
    }
    for one in &wants.services {
        match Kind::of(&one.kind).filter(|_| one.group() == "apps") {
            // On the way back a pod of the failed release stands in the way of the others.
            Some(Kind::StatefulSet) => {
                all.extend([("apps", "statefulsets", WORKLOAD), ("", "pods", &["delete"][..])]);
            }
            Some(Kind::DaemonSet) => all.push(("apps", "daemonsets", WORKLOAD)),
            Some(Kind::Deployment) | None => continue,
        }
        all.push(("apps", "controllerrevisions", &["list"]));
    }
    if wants.secrets {
        all.push(("", "secrets", &["create", "patch"]));
    }
    if wants.exec {
        all.push(("", "pods/exec", &["get", "create"]));
    }
    if wants.forwards {
        all.push(("", "pods/portforward", &["get", "create"]));
    }
    if wants.jobs {
        all.extend([
            ("batch", "jobs", &["get", "create", "delete"][..]),
            ("", "pods", &["get", "list"]),
            ("", "pods/log", &["get"]),
            ("", "secrets", &["create", "patch"]),
        ]);
    }
    if !wants.manifests.is_empty() {
        all.extend([
            ("", "pods", &["get", "list"][..]),
            ("", "pods/log", &["get"]),
            ("", "events", &["list"]),
            ("apps", "replicasets", &["list"]),
        ]);
    }
    if wants.subsets {
        all.push(("networking.istio.io", "destinationrules", &["get", "update"]));
    }
    match wants.traffic.as_ref().map(|(kind, _)| *kind) {
        Some(TrafficKind::Service) => all.extend([
            ("", "services", &["get", "list", "create", "patch", "delete"][..]),
            ("discovery.k8s.io", "endpointslices", &["list"]),
        ]),
        Some(TrafficKind::Gateway) => all.extend([
            ("", "services", &["get", "list", "create", "patch", "delete"][..]),
            ("discovery.k8s.io", "endpointslices", &["list"]),
            ("gateway.networking.k8s.io", "httproutes", &["get", "update"]),
        ]),
        Some(TrafficKind::Istio) => all.extend([
            ("", "services", &["get", "list", "create", "patch", "delete"][..]),
            ("discovery.k8s.io", "endpointslices", &["list"]),
            ("networking.istio.io", "virtualservices", &["get", "update"]),
        ]),
        _ => {}
    }
    all
}

async fn rights(session: &Session<'_>, wants: &Wants, found: &mut Checkup) -> Result<(), Fault> {
    let mut rights: BTreeSet<Right> = BTreeSet::new();
    for (group, resource, verbs) in table(wants) {
        rights.extend(verbs.iter().map(|verb| Right {
            namespace: Some(session.namespace().to_owned()),
            group: group.to_owned(),
            resource: resource.to_owned(),
            verb,
        }));
    }
    for (group, resource) in scale::copied_kinds(session, wants.beside).await? {
        rights.extend(["create", "patch"].into_iter().map(|verb| Right {
            namespace: Some(session.namespace().to_owned()),
            group: group.to_owned(),
            resource: resource.to_owned(),
            verb,
        }));
    }
    for (group, resource, namespace) in objects::places(session, &wants.manifests).await? {
        rights.extend(["get", "create", "patch", "update", "delete"].into_iter().map(|verb| Right {
            namespace: namespace.clone(),
            group: group.clone(),
            resource: resource.clone(),
            verb,
        }));
    }
    for (group, resource, namespace) in objects::places(session, &wants.services).await? {
        rights.extend(["create", "patch"].into_iter().map(|verb| Right {
            namespace: namespace.clone(),
            group: group.clone(),
            resource: resource.clone(),
            verb,
        }));
    }
    if rights.is_empty() {
        return Ok(());
    }
    let api: Api<SelfSubjectAccessReview> = Api::all(session.client());
    let mut asked: Vec<BoxFuture<'_, Result<Option<Right>, Fault>>> = Vec::new();
    for right in &rights {
        let api = &api;
        asked.push(Box::pin(async move {
            let review = review(right);
            let params = PostParams::default();
            let answer = session.ask("say what is allowed", || api.create(&params, &review)).await?;
            Ok((!answer.status.is_some_and(|status| status.allowed)).then(|| right.clone()))
        }));
    }
    let answers: Vec<Result<Option<Right>, Fault>> =
        futures_util::stream::iter(asked).buffered(AT_A_TIME).collect().await;
    let missing: Vec<Right> =
        answers.into_iter().collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect();
    if missing.is_empty() {
        let text = format!("all {} that the pipeline needs are given", rights.len());
        found.say("rights", Health::Good, text);
        return Ok(());
    }
    found.missing = missing.iter().map(Right::text).collect();
    let mut said = BTreeSet::new();
    let words: Vec<&str> =
        found.missing.iter().filter(|text| said.insert(text.as_str())).map(String::as_str).collect();
    let text = format!("{} of {} are missing: {}", missing.len(), rights.len(), words.join(", "));
    let who = who(session).await;
    let help = format!("have somebody apply this:\n{}", roles(&missing, who.as_deref()));
    found.lines.push(Line { what: "rights", health: Health::Bad, text, help: Some(help) });
    Ok(())
}

fn review(right: &Right) -> SelfSubjectAccessReview {
    let (resource, subresource) = match right.resource.split_once('/') {
        Some((resource, sub)) => (resource.to_owned(), Some(sub.to_owned())),
        None => (right.resource.clone(), None),
    };
    SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec {
            resource_attributes: Some(ResourceAttributes {
                group: Some(right.group.clone()),
                resource: Some(resource),
                subresource,
                verb: Some(right.verb.to_owned()),
                namespace: right.namespace.clone(),
                ..ResourceAttributes::default()
            }),
            ..SelfSubjectAccessReviewSpec::default()
        },
        ..SelfSubjectAccessReview::default()
    }
}

/// Who we are to the cluster, where it says so.
async fn who(session: &Session<'_>) -> Option<String> {
    let api: Api<SelfSubjectReview> = Api::all(session.client());
    let (params, review) = (PostParams::default(), SelfSubjectReview::default());
    let answer = session.ask("say who we are", || api.create(&params, &review)).await.ok()?;
    answer.status?.user_info?.username
}

/// Roles that give what is missing, to be applied as they are.
fn roles(missing: &[Right], who: Option<&str>) -> String {
    /// Verbs by group and resource.
    type Rules<'r> = BTreeMap<(&'r str, &'r str), Vec<&'r str>>;
    let mut places: BTreeMap<Option<&str>, Rules<'_>> = BTreeMap::new();
    for right in missing {
        let rules = places.entry(right.namespace.as_deref()).or_default();
        rules.entry((right.group.as_str(), right.resource.as_str())).or_default().push(right.verb);
    }
    // One rule for all resources of a group that have the same verbs.
    let mut text = String::new();
    let who = who.unwrap_or("NAME");
    let subject = match who.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':')) {
        Some((namespace, name)) => {
            format!("{{kind: ServiceAccount, name: {name:?}, namespace: {namespace:?}}}")
        }
        None => format!("{{kind: User, name: {who:?}, apiGroup: rbac.authorization.k8s.io}}"),
    };
    for (place, rules) in places {
        let (kind, at) = match place {
            Some(namespace) => ("Role", format!(", namespace: {namespace}")),
            None => ("ClusterRole", String::new()),
        };
        let _ = write!(
            text,
            "---\napiVersion: rbac.authorization.k8s.io/v1\nkind: {kind}\nmetadata: {{name: cdpipe{at}}}\nrules:\n"
        );
        let mut grouped: BTreeMap<(&str, Vec<&str>), Vec<&str>> = BTreeMap::new();
        for ((group, resource), verbs) in rules {
            grouped.entry((group, verbs)).or_default().push(resource);
        }
        for ((group, verbs), resources) in grouped {
            let _ = writeln!(
                text,
                "- {{apiGroups: [{group:?}], resources: [{}], verbs: [{}]}}",
                resources.join(", "),
                verbs.join(", ")
            );
        }
        let _ = write!(
            text,
            "---\napiVersion: rbac.authorization.k8s.io/v1\nkind: {kind}Binding\nmetadata: {{name: cdpipe{at}}}\nroleRef: {{apiGroup: \
             rbac.authorization.k8s.io, kind: {kind}, name: cdpipe}}\nsubjects:\n- {subject}\n"
        );
    }
    text
}

/// Whether what steers traffic is there.
async fn router(session: &Session<'_>, kind: TrafficKind, name: Option<&str>, found: &mut Checkup) {
    let (group, version, word, plural, install) = match kind {
        TrafficKind::Gateway => (
            "gateway.networking.k8s.io",
            "v1",
            "HTTPRoute",
            "httproutes",
            "install the Gateway API's CRDs and a controller",
        ),
        TrafficKind::Istio => {
            ("networking.istio.io", "v1", "VirtualService", "virtualservices", "install Istio")
        }
        _ => return,
    };
    let Some(name) = name else { return };
    let resource = ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, word), plural);
    let api = objects::api(session, &resource, Some(session.namespace()));
    match session.ask(&format!("read the {word} {name}"), || api.get(name)).await {
        Ok(_) => found.say("router", Health::Good, format!("{word} {name} is there")),
        Err(fault) if fault.kind == "not-found" => {
            // Without the kind the server answers in a way of its own.
            let (text, help) = match fault.message.contains("could not find the requested resource") {
                true => (format!("the cluster knows no {word}"), install.to_owned()),
                false => (
                    format!("there is no {word} {name} in {}", session.namespace()),
                    "it is yours: apply it, or correct its name in `traffic`".to_owned(),
                ),
            };
            found.lines.push(Line { what: "router", health: Health::Bad, text, help: Some(help) });
        }
        Err(fault) => found.fault("router", fault),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_becomes_roles_that_can_be_applied() {
        let right = |namespace: Option<&str>, group: &str, resource: &str, verb| Right {
            namespace: namespace.map(str::to_owned),
            group: group.to_owned(),
            resource: resource.to_owned(),
            verb,
        };
        let missing = [
            right(Some("shop"), "apps", "deployments", "get"),
            right(Some("shop"), "apps", "deployments", "patch"),
            right(Some("shop"), "", "pods/log", "get"),
            right(None, "apiextensions.k8s.io", "customresourcedefinitions", "create"),
        ];
        let text = roles(&missing, Some("system:serviceaccount:ci:deployer"));
        let read = crate::objects::manifests("roles.yaml", &text).unwrap();
        let titles: Vec<String> = read.iter().map(Manifest::title).collect();
        assert_eq!(
            titles,
            ["ClusterRole cdpipe", "ClusterRoleBinding cdpipe", "Role cdpipe", "RoleBinding cdpipe"]
        );
        let role = &read[2].object;
        assert_eq!(role["metadata"]["namespace"], "shop");
        assert_eq!(role["rules"][0]["apiGroups"][0], "");
        assert_eq!(role["rules"][0]["resources"][0], "pods/log");
        assert_eq!(role["rules"][1]["verbs"], serde_json::json!(["get", "patch"]));
        assert_eq!(read[3].object["subjects"][0]["kind"], "ServiceAccount");
        assert_eq!(missing[1].text(), "patch deployments.apps");
    }
}
