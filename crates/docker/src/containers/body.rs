//! What a container is made from: pure.

use super::{Containers, Publish};
use crate::labels;
use bollard::models::{
    ContainerCreateBody, EndpointSettings, HealthConfig, HostConfig, HostConfigLogConfig, NetworkingConfig,
    PortBinding, RestartPolicy, RestartPolicyNameEnum,
};
use cdpipe_model::release::{Artifact, ReleaseSpec};
use cdpipe_model::service::{HealthCheck, HealthKind};
use cdpipe_model::{EffectId, Fault, Value};
use std::collections::{BTreeMap, HashMap};

const NANOS_PER_MS: i64 = 1_000_000;

/// What is known only when it is made.
pub(super) struct Making<'a> {
    pub(super) spec: &'a ReleaseSpec,
    pub(super) image: String,
    /// Resolved, `NAME=VALUE`.
    pub(super) env: Vec<String>,
    pub(super) extra: &'a BTreeMap<String, Value>,
    pub(super) effect: &'a EffectId,
}

impl Containers {
    /// `ENVIRONMENT-SERVICE-RELEASE-NUMBER`; those with an extra environment have a `c` before their number.
    pub(super) fn name(&self, spec: &ReleaseSpec, canary: bool, number: u32) -> String {
        let mark = if canary { "c" } else { "" };
        format!("{}-{}-{}-{mark}{number}", self.config.environment, spec.service, spec.id())
    }

    pub(super) fn body(
        &self,
        making: &Making<'_>,
        name: &str,
        host_port: u16,
    ) -> Result<ContainerCreateBody, Fault> {
        let spec = making.spec;
        let id = spec.id();
        let json = |value: Result<String, serde_json::Error>| {
            value
                .map_err(|error| Fault::new("internal", format!("a release cannot be written down: {error}")))
        };
        let mut all: HashMap<String, String> = map(spec, "labels")
            .map(|map| map.iter().map(|(name, value)| (name.clone(), value.to_string())).collect())
            .unwrap_or_default();
        for (label, value) in [
            (labels::ENVIRONMENT, self.config.environment.to_string()),
            (labels::SERVICE, spec.service.to_string()),
            (labels::RELEASE, id.to_string()),
            (labels::RUN, labels::run_of(making.effect.as_str()).to_owned()),
            (labels::EFFECT, making.effect.to_string()),
            (labels::SPEC, json(serde_json::to_string(spec))?),
            (labels::EXTRA, json(serde_json::to_string(making.extra))?),
        ] {
            all.insert(label.to_owned(), value);
        }
        let mut env = making.env.clone();
        env.push(format!("CDPIPE_RELEASE={id}"));
        env.push(format!("CDPIPE_SERVICE={}", spec.service));
        env.push(format!("CDPIPE_ENVIRONMENT={}", self.config.environment));
        env.push(format!("CDPIPE_INSTANCE={name}"));
        if let Some(port) = spec.port
            && !spec.env.contains_key("PORT")
        {
            env.push(format!("PORT={port}"));
        }
        let port = spec.port.map(|port| format!("{port}/tcp"));
        let bindings = match (&port, &self.config.publish) {
            (Some(port), Publish::On(address)) => {
                let binding =
                    PortBinding { host_ip: Some(address.clone()), host_port: Some(host_port.to_string()) };
                Some(HashMap::from([(port.clone(), Some(vec![binding]))]))
            }
            _ => None,
        };
        let endpoint =
            EndpointSettings { aliases: Some(vec![spec.service.to_string()]), ..Default::default() };
        let args = match &spec.artifact {
            Artifact::Image { args, .. } => args.clone(),
            _ => Vec::new(),
        };
        Ok(ContainerCreateBody {
            image: Some(making.image.clone()),
            env: Some(env),
            labels: Some(all),
            cmd: (!args.is_empty()).then_some(args),
            entrypoint: list(spec, "entrypoint"),
            user: text(spec, "user"),
            working_dir: text(spec, "workdir"),
            stop_signal: text(spec, "stop_signal"),
            exposed_ports: port.map(|port| vec![port]),
            healthcheck: healthcheck(spec),
            host_config: Some(host_config(spec, &self.config.network, bindings)?),
            networking_config: Some(NetworkingConfig {
                endpoints_config: Some(HashMap::from([(self.config.network.clone(), endpoint)])),
            }),
            ..Default::default()
        })
    }
}

fn host_config(
    spec: &ReleaseSpec,
    network: &str,
    bindings: Option<HashMap<String, Option<Vec<PortBinding>>>>,
) -> Result<HostConfig, Fault> {
    let resources = map(spec, "resources");
    let resource = |name: &str| resources.and_then(|map| map.get(name));
    let size = |name: &str| match resource(name) {
        Some(Value::Size(bytes)) => i64::try_from(*bytes).ok(),
        _ => None,
    };
    let number = |name: &str| match resource(name) {
        Some(Value::Number(number)) => Some(*number),
        Some(Value::Int(number)) => Some(*number as f64),
        _ => None,
    };
    let log = map(spec, "logs").map(|map| {
        let mut options: HashMap<String, String> =
            map.iter().map(|(name, value)| (name.replace('_', "-"), value.to_string())).collect();
        let driver = options.remove("driver").unwrap_or_else(|| "json-file".to_owned());
        HostConfigLogConfig { typ: Some(driver), config: Some(options) }
    });
    Ok(HostConfig {
        network_mode: Some(network.to_owned()),
        port_bindings: bindings,
        binds: list(spec, "mounts"),
        restart_policy: Some(restart(text(spec, "restart").as_deref())?),
        nano_cpus: number("cpu_limit").or(number("cpu")).map(|cpus| (cpus * 1e9) as i64),
        memory: size("memory_limit").or(size("memory")),
        memory_reservation: size("memory_limit").and(size("memory")),
        log_config: log,
        ..Default::default()
    })
}

fn restart(name: Option<&str>) -> Result<RestartPolicy, Fault> {
    let name = match name.unwrap_or("unless-stopped") {
        "unless-stopped" | "unless_stopped" => RestartPolicyNameEnum::UNLESS_STOPPED,
        "always" => RestartPolicyNameEnum::ALWAYS,
        "on-failure" | "on_failure" => RestartPolicyNameEnum::ON_FAILURE,
        "no" | "never" => RestartPolicyNameEnum::NO,
        other => return Err(Fault::new("bad-value", format!("`{other}` is no restart policy"))),
    };
    Ok(RestartPolicy { name: Some(name), maximum_retry_count: None })
}

/// A readiness command is asked by the engine itself, inside.
fn healthcheck(spec: &ReleaseSpec) -> Option<HealthConfig> {
    let ready = spec.health.iter().filter(|health| health.kind == HealthKind::Ready);
    ready
        .filter_map(|health| match &health.check {
            HealthCheck::Command { script } => {
                let nanos = |ms: u64| i64::try_from(ms).ok().map(|ms| ms.saturating_mul(NANOS_PER_MS));
                Some(HealthConfig {
                    test: Some(vec!["CMD-SHELL".to_owned(), script.clone()]),
                    interval: nanos(health.every_ms),
                    timeout: nanos(health.timeout_ms),
                    retries: Some(i64::from(health.failures)),
                    start_period: nanos(health.within_ms),
                    start_interval: None,
                })
            }
            _ => None,
        })
        .next()
}

fn map<'a>(spec: &'a ReleaseSpec, name: &str) -> Option<&'a BTreeMap<String, Value>> {
    match spec.extra.get(name) {
        Some(Value::Map(map)) => Some(map),
        _ => None,
    }
}

fn text(spec: &ReleaseSpec, name: &str) -> Option<String> {
    spec.extra.get(name).map(Value::to_string)
}

fn list(spec: &ReleaseSpec, name: &str) -> Option<Vec<String>> {
    match spec.extra.get(name) {
        Some(Value::List(items)) => Some(items.iter().map(Value::to_string).collect()),
        _ => None,
    }
}
