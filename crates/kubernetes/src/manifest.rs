//! What a release is on a cluster: a Deployment, and a Secret where it has secrets.

use cdpipe_model::release::{Artifact, ReleaseSpec};
use cdpipe_model::service::{Health, HealthCheck, HealthKind};
use cdpipe_model::strategy::RollPolicy;
use cdpipe_model::{Fault, ReleaseId, ServiceName, Value};
use serde_json::{Map, json};
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
const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
const CONTAINER: &str = "app";
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
    pub(crate) name: &'a str,
    pub(crate) replicas: u32,
    pub(crate) policy: Option<&'a RollPolicy>,
    pub(crate) retain: u32,
    pub(crate) epoch: u64,
    pub(crate) resource_version: Option<String>,
}

/// The Deployment as it is applied.
///
/// # Errors
/// `artifact-unfit` if the service is not made from an image; `internal`.
pub(crate) fn deployment(spec: &ReleaseSpec, wanted: &Wanted<'_>) -> Result<serde_json::Value, Fault> {
    let release = spec.id();
    let ours = |more: &[(&str, &str)]| -> Map<String, serde_json::Value> {
        let fixed = [(MANAGED_BY, MANAGER), (SERVICE, spec.service.as_str()), (RELEASE, release.as_str())];
        let pairs = fixed.iter().chain(more).map(|(name, value)| ((*name).to_owned(), json!(value)));
        pairs.collect()
    };
    let mut labels = ours(&[(WORKLOAD, wanted.name)]);
    if let Some(Value::Map(given)) = spec.extra.get("labels") {
        for (name, value) in given {
            labels.entry(name.clone()).or_insert_with(|| json!(value.to_string()));
        }
    }
    let drain_s = spec.drain_ms.div_ceil(1000);
    let pause_s = drain_s.min(LONGEST_PAUSE_S);
    let text = serde_json::to_string(spec)
        .map_err(|error| Fault::new("internal", format!("a release cannot be written down: {error}")))?;
    let mut pod = json!({"containers": [container(spec, &release, pause_s)?], "terminationGracePeriodSeconds": drain_s + pause_s});
    if drain_s == 0 {
        pod["terminationGracePeriodSeconds"] = json!(1);
    }
    let within_s = spec.health.iter().map(|health| health.within_ms).max().unwrap_or(60_000).div_ceil(1000);
    let monitor_s = wanted.policy.map_or(0, |policy| policy.monitor_ms.div_ceil(1000));
    let strategy = wanted.policy.map_or_else(
        || json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}),
        |policy| json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": policy.max_surge, "maxUnavailable": policy.max_unavailable}}),
    );
    let mut manifest = json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": wanted.name,
            "labels": ours(&[]),
            "annotations": {EPOCH: wanted.epoch.to_string()},
        },
        "spec": {
            "replicas": wanted.replicas,
            "revisionHistoryLimit": wanted.retain,
            "minReadySeconds": monitor_s,
            "progressDeadlineSeconds": within_s.max(1) + monitor_s,
            "selector": {"matchLabels": {SERVICE: spec.service.as_str(), WORKLOAD: wanted.name}},
            "strategy": strategy,
            "template": {"metadata": {"labels": labels, "annotations": {SPEC: text}}, "spec": pod},
        },
    });
    if let Some(version) = &wanted.resource_version {
        manifest["metadata"]["resourceVersion"] = json!(version);
    }
    Ok(manifest)
}

fn container(spec: &ReleaseSpec, release: &ReleaseId, pause_s: u64) -> Result<serde_json::Value, Fault> {
    let Artifact::Image { reference, digest, args } = &spec.artifact else {
        return Err(Fault::new(
            "artifact-unfit",
            format!(
                "{} is not made from an `image`, and this version makes no pods from anything else",
                spec.service
            ),
        )
        .help("give the service an `image`"));
    };
    let image = match digest {
        Some(digest) => format!("{}@{digest}", reference.split('@').next().unwrap_or(reference)),
        None => reference.clone(),
    };
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
    let mut container = json!({"name": CONTAINER, "image": image, "env": env});
    if !args.is_empty() {
        container["args"] = json!(args);
    }
    if let Some(port) = spec.port {
        container["ports"] = json!([{"containerPort": port}]);
    }
    if pause_s > 0 {
        container["lifecycle"] = json!({"preStop": {"sleep": {"seconds": pause_s}}});
    }
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
    Ok(container)
}

fn probe(spec: &ReleaseSpec, health: &Health) -> Result<serde_json::Value, Fault> {
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

fn resources(spec: &ReleaseSpec) -> Option<serde_json::Value> {
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
pub(crate) fn secret(spec: &ReleaseSpec, values: &BTreeMap<String, String>) -> serde_json::Value {
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
) -> serde_json::Value {
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
