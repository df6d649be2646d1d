//! What a release is on a cluster: a workload, and a Secret where it has secrets.

use crate::given::{self, Document};
use crate::kind::{Kind, Workload};
use crate::{adopt, found};
use cdpipe_model::release::{Artifact, ReleaseSpec};
use cdpipe_model::service::{Health, HealthCheck, HealthKind};
use cdpipe_model::strategy::RollPolicy;
use cdpipe_model::{Fault, ServiceName, Value};
use serde_json::{Map, Value as Json, json};
use std::collections::BTreeMap;

/// Who applies.
pub(crate) const MANAGER: &str = "cdpipe";
/// Names the service.
pub(crate) const SERVICE: &str = "cdpipe.dev/service";
/// Names the release; part of each template.
pub(crate) const RELEASE: &str = "cdpipe.dev/release";
/// Names the Deployment: what its selector matches.
pub(crate) const WORKLOAD: &str = "cdpipe.dev/workload";
/// Annotation of each template: the release as JSON, secrets by name.
pub(crate) const SPEC: &str = "cdpipe.dev/spec";
/// Annotation: the epoch of the lock under which it was written last.
pub(crate) const EPOCH: &str = "cdpipe.dev/epoch";
/// Annotation: releases that did not stay because they failed, by their ids. Their templates are kept by the cluster like any other.
pub(crate) const FAILED: &str = "cdpipe.dev/failed";
/// Annotation: what was there before cdpipe took it over, as a release.
pub(crate) const ADOPTED: &str = "cdpipe.dev/adopted";
const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
pub(crate) const CONTAINER: &str = "app";
/// Longest time a pod goes on serving after it was told to end, so that whoever still sends to it hears of it.
const LONGEST_PAUSE_S: u64 = 5;

/// The Deployment that rolls.
pub(crate) fn rolling_name(service: &ServiceName, platform_name: Option<&str>) -> String {
    platform_name.unwrap_or(service.as_str()).replace('_', "-").to_lowercase()
}

/// The Deployment of one release beside others.
pub(crate) fn side_name(spec: &ReleaseSpec) -> String {
    format!("{}-{}", rolling_name(&spec.service, spec.platform_name.as_deref()), spec.id())
}

/// Whether a thing of this name is ours.
pub(crate) fn is_ours(labels: Option<&BTreeMap<String, String>>) -> bool {
    labels.and_then(|labels| labels.get(MANAGED_BY)).is_some_and(|manager| manager == MANAGER)
}

/// The labels of everything that is made for a service.
pub(crate) fn ours(service: &ServiceName) -> BTreeMap<String, String> {
    [(MANAGED_BY, MANAGER), (SERVICE, service.as_str())]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
}

/// How many, how, and on what condition.
pub(crate) struct Wanted<'a> {
    pub(crate) kind: Kind,
    pub(crate) name: &'a str,
    /// `None` leaves it to whatever scales the workload.
    pub(crate) replicas: Option<u32>,
    pub(crate) policy: Option<&'a RollPolicy>,
    pub(crate) retain: u32,
    pub(crate) epoch: u64,
    /// Releases that failed here.
    pub(crate) failed: Vec<String>,
    /// What is there of that name.
    pub(crate) seen: Option<&'a Workload>,
}

/// The workload as it is applied.
///
/// # Errors
/// `artifact-unfit` if no pods can be made from the release; `internal`.
pub(crate) fn workload(spec: &ReleaseSpec, wanted: &Wanted<'_>) -> Result<Json, Fault> {
    let document = given::document(spec)?;
    let mut manifest = match &document {
        Some(document) if given::is_found(spec) => as_it_was(document),
        Some(document) => from_document(spec, document, wanted)?,
        None => from_image(spec, wanted)?,
    };
    manifest["metadata"]["name"] = json!(wanted.name);
    manifest["metadata"]["annotations"][EPOCH] = json!(wanted.epoch.to_string());
    if !wanted.failed.is_empty() {
        manifest["metadata"]["annotations"][FAILED] = json!(wanted.failed.join(","));
    }
    if let Some(replicas) = wanted.replicas.filter(|_| wanted.kind != Kind::DaemonSet) {
        manifest["spec"]["replicas"] = json!(replicas);
    }
    if let Some(version) = wanted.seen.and_then(|seen| seen.metadata.resource_version.as_ref()) {
        manifest["metadata"]["resourceVersion"] = json!(version);
    }
    Ok(manifest)
}

/// What was there before cdpipe: its template has nothing of ours, so that it is the same template.
fn as_it_was(document: &Document) -> Json {
    let mut manifest = document.workload.clone();
    manifest["metadata"] = json!({});
    manifest
}

fn from_image(spec: &ReleaseSpec, wanted: &Wanted<'_>) -> Result<Json, Fault> {
    let drain_s = spec.drain_ms.div_ceil(1000);
    let pause_s = drain_s.min(LONGEST_PAUSE_S);
    let Artifact::Image { reference, digest, args } = &spec.artifact else {
        return Err(Fault::new(
            "artifact-unfit",
            format!("{} is made from a command, and pods are made from images", spec.service),
        )
        .help("give the service an `image` or a `manifest`"));
    };
    let mut container = container(spec)?;
    container["name"] = json!(CONTAINER);
    container["image"] = json!(match digest {
        Some(digest) => format!("{}@{digest}", reference.split('@').next().unwrap_or(reference)),
        None => reference.clone(),
    });
    if !args.is_empty() {
        container["args"] = json!(args);
    }
    if let Some(port) = spec.port {
        container["ports"] = json!([{"containerPort": port}]);
    }
    if pause_s > 0 {
        container["lifecycle"] = json!({"preStop": {"sleep": {"seconds": pause_s}}});
    }
    let grace_s = if drain_s == 0 { 1 } else { drain_s + pause_s };
    let pod = json!({"containers": [container], "terminationGracePeriodSeconds": grace_s});
    let mut manifest = json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"labels": marks(spec, None)},
        "spec": {
            "revisionHistoryLimit": wanted.retain,
            "minReadySeconds": monitor_s(wanted),
            "progressDeadlineSeconds": within_s(spec) + monitor_s(wanted),
            "strategy": rolling_update(wanted.policy.map_or((1, 0), |policy| (policy.max_surge, policy.max_unavailable))),
            "template": {"metadata": {}, "spec": pod},
        },
    });
    mark(&mut manifest, spec, wanted, json!({"matchLabels": {}}))?;
    Ok(manifest)
}

/// What a user wrote, with what cdpipe puts into it.
fn from_document(spec: &ReleaseSpec, document: &Document, wanted: &Wanted<'_>) -> Result<Json, Fault> {
    let mut manifest = document.workload.clone();
    for (name, value) in marks(spec, None) {
        manifest["metadata"]["labels"][name] = value;
    }
    let template = given::template(document, spec, &container(spec)?)?;
    let own = &mut manifest["spec"];
    own["template"] = template;
    let mut set = |field: &str, value: Json| {
        if own.get(field).is_none() {
            own[field] = value;
        }
    };
    set("revisionHistoryLimit", json!(wanted.retain));
    if wanted.kind == Kind::Deployment {
        set("progressDeadlineSeconds", json!(within_s(spec) + monitor_s(wanted)));
    }
    if monitor_s(wanted) > 0 {
        own["minReadySeconds"] = json!(monitor_s(wanted));
    }
    if let Some(policy) = wanted.policy {
        let (surge, unavailable) = (policy.max_surge, policy.max_unavailable);
        match wanted.kind {
            Kind::Deployment => own["strategy"] = rolling_update((surge, unavailable)),
            // It takes one or the other.
            Kind::DaemonSet if unavailable > 0 => own["updateStrategy"] = rolling_update((0, unavailable)),
            Kind::DaemonSet => own["updateStrategy"] = rolling_update((surge.max(1), 0)),
            Kind::StatefulSet => {
                // From the last pod to the first, all of them; a pod has a name of its own, so none can be there twice.
                own["updateStrategy"] = json!({"type": "RollingUpdate", "rollingUpdate": {"partition": 0}});
                if unavailable > 1 {
                    own["updateStrategy"]["rollingUpdate"]["maxUnavailable"] = json!(unavailable);
                }
            }
        }
    }
    let selector = own["selector"].take();
    mark(&mut manifest, spec, wanted, selector)?;
    Ok(manifest)
}

fn rolling_update((surge, unavailable): (u32, u32)) -> Json {
    json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}})
}

fn within_s(spec: &ReleaseSpec) -> u64 {
    spec.health.iter().map(|health| health.within_ms).max().unwrap_or(60_000).div_ceil(1000).max(1)
}

fn monitor_s(wanted: &Wanted<'_>) -> u64 {
    wanted.policy.map_or(0, |policy| policy.monitor_ms.div_ceil(1000))
}

/// Our labels; of a template with the workload that it belongs to.
fn marks(spec: &ReleaseSpec, workload: Option<&str>) -> Map<String, Json> {
    let release = spec.id();
    let fixed = [(MANAGED_BY, MANAGER), (SERVICE, spec.service.as_str()), (RELEASE, release.as_str())];
    let pairs = fixed.into_iter().chain(workload.map(|name| (WORKLOAD, name)));
    pairs.map(|(name, value)| (name.to_owned(), json!(value))).collect()
}

/// Puts labels and annotations on the template, and a selector that finds it: that of what is there, since none can be changed, or
/// `selector` with ours.
fn mark(manifest: &mut Json, spec: &ReleaseSpec, wanted: &Wanted<'_>, selector: Json) -> Result<(), Fault> {
    let selector = match wanted.seen {
        Some(seen) => seen.spec["selector"].clone(),
        None => {
            let mut selector = selector;
            selector["matchLabels"][SERVICE] = json!(spec.service.as_str());
            selector["matchLabels"][WORKLOAD] = json!(wanted.name);
            selector
        }
    };
    let metadata = &mut manifest["spec"]["template"]["metadata"];
    let mut labels = marks(spec, Some(wanted.name));
    let matched = selector["matchLabels"].as_object().cloned().unwrap_or_default();
    for (name, value) in
        matched.into_iter().chain(metadata["labels"].as_object().cloned().unwrap_or_default())
    {
        labels.entry(name).or_insert(value);
    }
    if let Some(Value::Map(given)) = spec.extra.get("labels") {
        for (name, value) in given {
            labels.entry(name.clone()).or_insert_with(|| json!(value.to_string()));
        }
    }
    // The same release keeps its template to the letter, or its pods would be replaced by the same.
    let same = wanted.seen.filter(|seen| found::release_of(&seen.template).as_ref() == Some(&spec.id()));
    let kept =
        same.and_then(|seen| seen.template.metadata.as_ref()?.annotations.as_ref()?.get(SPEC).cloned());
    let text = match kept {
        Some(kept) => kept,
        None => serde_json::to_string(spec)
            .map_err(|error| Fault::new("internal", format!("a release cannot be written down: {error}")))?,
    };
    metadata["labels"] = Json::Object(labels);
    metadata["annotations"][SPEC] = json!(text);
    manifest["spec"]["selector"] = selector;
    if let Some(seen) = wanted.seen {
        let before = match is_ours(seen.metadata.labels.as_ref()) {
            true => seen.annotation(ADOPTED).map(str::to_owned),
            false => Some(adopt::text(&spec.service, spec.platform_name.as_deref(), seen)?),
        };
        if let Some(before) = before {
            manifest["metadata"]["annotations"][ADOPTED] = json!(before);
        }
    }
    Ok(())
}

/// What the pipeline says of the container, whatever its image.
fn container(spec: &ReleaseSpec) -> Result<Json, Fault> {
    let release = spec.id();
    let mut env = vec![
        json!({"name": "CDPIPE_RELEASE", "value": release.as_str()}),
        json!({"name": "CDPIPE_SERVICE", "value": spec.service.as_str()}),
    ];
    for (name, value) in &spec.env {
        env.push(match value {
            Value::Secret(_) => {
                json!({"name": name, "valueFrom": {"secretKeyRef": {"name": side_name(spec), "key": name}}})
            }
            plain => json!({"name": name, "value": plain.to_string()}),
        });
    }
    let mut container = json!({"env": env});
    for health in &spec.health {
        let field = match health.kind {
            HealthKind::Ready => "readinessProbe",
            HealthKind::Live => "livenessProbe",
        };
        container[field] = probe(spec, health)?;
    }
    if let Some(resources) = resources(spec) {
        container["resources"] = resources;
    }
    if let Some(Value::List(words)) = spec.extra.get("entrypoint") {
        container["command"] = words.iter().map(|word| json!(word.to_string())).collect();
    }
    if let Some(folder) = spec.extra.get("workdir") {
        container["workingDir"] = json!(folder.to_string());
    }
    if let Some(context) = user(spec)? {
        container["securityContext"] = context;
    }
    Ok(container)
}

/// Who the container runs as, if the pipeline says it.
///
/// # Errors
/// `artifact-unfit` if it is no number: the cluster does not look into images.
pub(crate) fn user(spec: &ReleaseSpec) -> Result<Option<Json>, Fault> {
    let Some(user) = spec.extra.get("user") else { return Ok(None) };
    let text = user.to_string();
    let (user, group) =
        text.split_once(':').map_or((text.as_str(), None), |(user, group)| (user, Some(group)));
    let number = |part: &str| {
        part.parse::<u32>().map_err(|_| {
            Fault::new(
                "artifact-unfit",
                format!("`user` of {} is `{text}`, and Kubernetes knows users by number", spec.service),
            )
            .help("write `user = \"1000\"` or `user = \"1000:1000\"`")
        })
    };
    let mut context = json!({"runAsUser": number(user)?});
    if let Some(group) = group {
        context["runAsGroup"] = json!(number(group)?);
    }
    Ok(Some(context))
}

fn probe(spec: &ReleaseSpec, health: &Health) -> Result<Json, Fault> {
    let port = || {
        spec.port.ok_or_else(|| {
            Fault::new("port-missing", format!("the health check of {} needs a port", spec.service))
                .help("give the service a `port`")
        })
    };
    let seconds = |ms: u64| ms.div_ceil(1000).max(1);
    let mut probe = match &health.check {
        HealthCheck::Http { path } => json!({"httpGet": {"path": path, "port": port()?}}),
        HealthCheck::Command { script } => json!({"exec": {"command": ["sh", "-c", script]}}),
        HealthCheck::Tcp => json!({"tcpSocket": {"port": port()?}}),
    };
    probe["periodSeconds"] = json!(seconds(health.every_ms));
    probe["timeoutSeconds"] = json!(seconds(health.timeout_ms));
    probe["failureThreshold"] = json!(health.failures);
    if health.kind == HealthKind::Live {
        // It must not be restarted while it may still be starting.
        probe["initialDelaySeconds"] = json!(health.within_ms / 1000);
    }
    Ok(probe)
}

fn resources(spec: &ReleaseSpec) -> Option<Json> {
    let Some(Value::Map(given)) = spec.extra.get("resources") else { return None };
    let mut found = json!({});
    for (name, part, resource) in [
        ("cpu", "requests", "cpu"),
        ("memory", "requests", "memory"),
        ("cpu_limit", "limits", "cpu"),
        ("memory_limit", "limits", "memory"),
    ] {
        let Some(value) = given.get(name).and_then(Value::magnitude) else { continue };
        // Thousandths of a processor; bytes.
        let text = if resource == "cpu" { format!("{:.0}m", value * 1000.0) } else { format!("{value:.0}") };
        found[part][resource] = json!(text);
    }
    Some(found)
}

/// The Secret of a release; `values` are those of the variables that hold secrets.
pub(crate) fn secret(spec: &ReleaseSpec, values: &BTreeMap<String, String>) -> Json {
    json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": side_name(spec),
            "labels": {MANAGED_BY: MANAGER, SERVICE: spec.service.as_str(), RELEASE: spec.id().as_str()},
        },
        "stringData": values,
    })
}

/// The Service whose selector is the route.
pub(crate) fn service(
    name: &str,
    service: &ServiceName,
    release: &str,
    ports: Option<(u16, u16)>,
    table: &str,
) -> Json {
    let mut manifest = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": name,
            "labels": {MANAGED_BY: MANAGER, SERVICE: service.as_str()},
            "annotations": {"cdpipe.dev/table": table},
        },
        "spec": {"selector": {SERVICE: service.as_str(), RELEASE: release}},
    });
    if let Some((port, target)) = ports {
        manifest["spec"]["ports"] =
            json!([{"name": "app", "port": port, "targetPort": target, "protocol": "TCP"}]);
    }
    manifest
}
