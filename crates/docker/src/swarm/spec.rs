//! From a release to the service of a Swarm that runs it.
//!
//! What was read from a compose file or found running (`Artifact::Document`) is a service's JSON as the engine's API has it; it is the
//! base, and what the pipeline says goes over it.

use super::{At, Swarm};
use crate::images::{Reference, is_unreachable, registry_digest};
use crate::labels;
use bollard::auth::DockerCredentials;
use bollard::models::{
    EndpointPortConfig, EndpointPortConfigProtocolEnum, EndpointPortConfigPublishModeEnum, EndpointSpec,
    EndpointSpecModeEnum, HealthConfig, ImageInspect, Limit, Mount, MountType, NetworkAttachmentConfig,
    ResourceObject, ServiceSpec, ServiceSpecMode, ServiceSpecModeReplicated, ServiceSpecRollbackConfig,
    ServiceSpecRollbackConfigFailureActionEnum, ServiceSpecRollbackConfigOrderEnum, ServiceSpecUpdateConfig,
    ServiceSpecUpdateConfigFailureActionEnum, ServiceSpecUpdateConfigOrderEnum, TaskSpecContainerSpec,
    TaskSpecContainerSpecConfigs, TaskSpecContainerSpecFile, TaskSpecContainerSpecFile1,
    TaskSpecContainerSpecSecrets, TaskSpecLogDriver, TaskSpecPlacement, TaskSpecResources,
    TaskSpecRestartPolicy, TaskSpecRestartPolicyConditionEnum,
};
use cdpipe_model::ports::expose;
use cdpipe_model::release::{Artifact, ReleaseSpec};
use cdpipe_model::service::{Health, HealthCheck, HealthKind};
use cdpipe_model::strategy::{Count, FailureAction, Order, RollPolicy, RollingBack};
use cdpipe_model::{Fault, Value};
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

/// Which of the two forms a service of ours has.
pub(super) const FORM: &str = "cdpipe.form";
/// The epoch of the lock under which it was written.
pub(super) const EPOCH: &str = "cdpipe.epoch";
/// What a service's document begins with that was found running.
pub(super) const FOUND: &str = "swarm:";

const NANOS_PER_MS: u64 = 1_000_000;
/// A failure after a task runs is seen only while it is monitored; 0 would be the engine's own 5 s.
const LEAST_MONITOR_MS: u64 = 500;
/// How long the registry of an image may take to name its digest.
const REGISTRY_WITHIN: Duration = Duration::from_secs(20);
/// Before a task that ended is started again.
const RESTART_DELAY_MS: u64 = 1_000;

/// What a service is to be, beyond its release.
pub(super) enum Form<'a> {
    /// The one that the Swarm rolls.
    Workload { count: u32, policy: &'a RollPolicy },
    /// One task of a release, by its number, with a fixed port of its node.
    Instance { number: u32, port: Option<u16>, extra_env: &'a BTreeMap<String, Value> },
}

impl At<'_> {
    /// Finds the digest of the image.
    pub(super) async fn resolve(&self, spec: &ReleaseSpec) -> Result<ReleaseSpec, Fault> {
        let mut spec = spec.clone();
        // Better found here than halfway through.
        for name in texts(&spec, "secrets").keys() {
            self.secret_id(name).await?;
        }
        for name in texts(&spec, "configs").keys() {
            self.config_id(name).await?;
        }
        match &mut spec.artifact {
            // A release that is brought back is what it was, wherever its tag points now.
            Artifact::Image { digest: Some(_), .. } => {}
            Artifact::Image { reference, digest, .. } => *digest = Some(self.digest(reference).await?),
            Artifact::Document { source, json, .. } if json.is_empty() => {
                let mut service = super::super::compose::read(&self.swarm.config.base, source)?;
                let container = service.task_template.as_mut().and_then(|task| task.container_spec.as_mut());
                if let Some(image) = container.and_then(|container| container.image.as_mut()) {
                    let digest = self.digest(image).await?;
                    *image = self.pinned(image, Some(&digest)).await?;
                }
                *json = serde_json::to_string(&service).map_err(|error| unwritable(&error))?;
            }
            Artifact::Document { .. } => {}
            Artifact::Command { .. } => {
                return Err(Fault::new(
                    "artifact-unsupported",
                    format!("`{}` is a command, and a Swarm runs images", spec.service),
                )
                .help("give the service an `image` or `compose`; its `command` is then the arguments"));
            }
        }
        Ok(spec)
    }

    /// What the registry says of the image, or else what the engine has.
    async fn digest(&self, reference: &str) -> Result<String, Fault> {
        if let Some((_, digest)) = reference.split_once('@') {
            return Ok(digest.to_owned());
        }
        let credentials = self.credentials(reference).await?;
        let asked = self.session.api.inspect_registry_image(reference, credentials);
        let refused =
            match self.session.ask_within("ask the registry for an image", REGISTRY_WITHIN, asked).await {
                Ok(found) => match found.descriptor.digest {
                    Some(digest) => return Ok(digest),
                    None => Fault::new("artifact-missing", "the registry names no digest"),
                },
                Err(fault) => fault,
            };
        let here = self.session.api.inspect_image(reference);
        let here = self.session.ask_for("inspect an image", here).await?;
        if let Some(image) = &here
            && let Some(digest) = registry_digest(image, &Reference::parse(reference))
        {
            // The same release as if the registry had answered, and any node that can reach it has the image.
            self.session.call.sink.progress(&format!(
                "the image {reference} is the one that this engine has from its registry: {}",
                self.swarm.masker.mask(&refused.message)
            ));
            return Ok(digest);
        }
        match here.and_then(|image| image.id) {
            // Built here and pushed nowhere.
            Some(id) => Ok(id),
            None if refused.transient => Err(refused),
            None => {
                let fault = Fault::new("artifact-missing", format!("there is no image {reference}"))
                    .details([self.swarm.masker.mask(&refused.message).into_owned()]);
                Err(match is_unreachable(&refused.message) {
                    true => fault
                        .help("see whether its registry is up and can be reached from the engine")
                        .transient(),
                    false => fault.help("push it, or mend its name; nothing was changed"),
                })
            }
        }
    }

    /// Who we are to the registry of an image; the Swarm passes it on to the nodes that pull.
    pub(super) async fn credentials(&self, reference: &str) -> Result<Option<DockerCredentials>, Fault> {
        crate::credentials::of(&self.swarm.config.docker_config, reference, &self.swarm.masker).await
    }

    /// The image as a task names it: by digest. One that only the engine has is named by its id.
    async fn pinned(&self, reference: &str, digest: Option<&str>) -> Result<String, Fault> {
        let Some(digest) = digest else { return Ok(reference.to_owned()) };
        if reference.contains('@') {
            return Ok(reference.to_owned());
        }
        let here = self.session.ask_for("inspect an image", self.session.api.inspect_image(digest)).await?;
        if here.is_some_and(|image| is_only_here(&image, reference, digest)) {
            return Ok(digest.to_owned());
        }
        Ok(format!("{}@{digest}", without_tag(reference)))
    }

    /// The service that runs this release.
    pub(super) async fn service_spec(
        &self,
        spec: &ReleaseSpec,
        form: &Form<'_>,
    ) -> Result<ServiceSpec, Fault> {
        let base = Swarm::base_of(spec);
        let found = matches!(&spec.artifact, Artifact::Document { source, .. } if source.starts_with(FOUND));
        let mut service = match &spec.artifact {
            Artifact::Document { json, .. } => serde_json::from_str(json).map_err(|error| {
                Fault::new("state-unreadable", format!("release {} cannot be read: {error}", spec.id()))
            })?,
            Artifact::Image { .. } | Artifact::Command { .. } => ServiceSpec::default(),
        };
        let mut task = service.task_template.take().unwrap_or_default();
        // What was found running stays as it is, word for word: its tasks are not to be replaced.
        if !found {
            let container = task.container_spec.take().unwrap_or_default();
            task.container_spec = Some(self.container(spec, form, container).await?);
            task.resources = resources(spec).or(task.resources.take());
            let restart = task.restart_policy.get_or_insert(TaskSpecRestartPolicy {
                condition: Some(TaskSpecRestartPolicyConditionEnum::ANY),
                delay: Some(nanos(RESTART_DELAY_MS)),
                ..TaskSpecRestartPolicy::default()
            });
            if let Some(said) = text(spec, "restart") {
                restart.condition = Some(match said.as_str() {
                    "never" => TaskSpecRestartPolicyConditionEnum::NONE,
                    "on_failure" => TaskSpecRestartPolicyConditionEnum::ON_FAILURE,
                    _ => TaskSpecRestartPolicyConditionEnum::ANY,
                });
            }
            let mut logs: HashMap<String, String> = texts(spec, "logs")
                .into_iter()
                .map(|(name, value)| (name.replace('_', "-"), value))
                .collect();
            if !logs.is_empty() {
                let name = logs.remove("driver").unwrap_or_else(|| "json-file".to_owned());
                task.log_driver = Some(TaskSpecLogDriver { name: Some(name), options: Some(logs) });
            }
            if let Some(constraints) = list(spec, "placement") {
                let placement =
                    TaskSpecPlacement { constraints: Some(constraints), ..TaskSpecPlacement::default() };
                task.placement = Some(placement);
            }
            let mut networks = task.networks.take().or(service.networks.take()).unwrap_or_default();
            if let Some(network) = &self.swarm.config.network
                && !networks.iter().any(|joined| joined.target.as_ref() == Some(network))
            {
                networks
                    .push(NetworkAttachmentConfig { target: Some(network.clone()), ..Default::default() });
            }
            if let Form::Instance { .. } = form {
                // Whoever asks the network for the service finds every instance.
                for network in &mut networks {
                    network.aliases.get_or_insert_default().push(base.to_owned());
                }
            }
            task.networks = (!networks.is_empty()).then_some(networks);
            service.endpoint_spec = Some(endpoint(spec, form, service.endpoint_spec.take()));
        }
        service.task_template = Some(task);
        let (name, count) = match form {
            Form::Workload { count, policy } => {
                update_configs(&mut service, policy);
                (base.to_owned(), *count)
            }
            Form::Instance { number, .. } => (format!("{base}-{}-{number}", spec.id()), 1),
        };
        service.name = Some(name);
        service.mode = Some(ServiceSpecMode {
            replicated: Some(ServiceSpecModeReplicated { replicas: Some(i64::from(count)) }),
            ..ServiceSpecMode::default()
        });
        let mut labels = service.labels.take().unwrap_or_default();
        labels.extend(texts(spec, "labels"));
        labels.extend(self.labels(spec, form)?);
        service.labels = Some(labels);
        Ok(service)
    }

    /// What every service of ours carries.
    fn labels(&self, spec: &ReleaseSpec, form: &Form<'_>) -> Result<HashMap<String, String>, Fault> {
        let call = &self.session.call;
        let (form, extra) = match form {
            Form::Workload { .. } => ("workload", String::new()),
            Form::Instance { extra_env, .. } if extra_env.is_empty() => ("instance", String::new()),
            Form::Instance { extra_env, .. } => {
                ("instance", serde_json::to_string(extra_env).map_err(|error| unwritable(&error))?)
            }
        };
        let json = serde_json::to_string(spec).map_err(|error| unwritable(&error))?;
        let pairs = [
            (labels::ENVIRONMENT, self.swarm.config.environment.to_string()),
            (labels::SERVICE, spec.service.to_string()),
            (labels::RELEASE, spec.id().to_string()),
            (labels::RUN, labels::run_of(call.effect.as_str()).to_owned()),
            (labels::EFFECT, call.effect.to_string()),
            (labels::SPEC, json),
            (labels::EXTRA, extra),
            (EPOCH, call.epoch.to_string()),
            (FORM, form.to_owned()),
        ];
        Ok(pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
    }

    async fn secret_id(&self, name: &str) -> Result<String, Fault> {
        let found = self.session.ask_for("inspect a secret", self.session.api.inspect_secret(name)).await?;
        found.and_then(|secret| secret.id).ok_or_else(|| missing("secret", name))
    }

    async fn config_id(&self, name: &str) -> Result<String, Fault> {
        self.config(name).await?.and_then(|config| config.id).ok_or_else(|| missing("config", name))
    }

    async fn container(
        &self,
        spec: &ReleaseSpec,
        form: &Form<'_>,
        mut container: TaskSpecContainerSpec,
    ) -> Result<TaskSpecContainerSpec, Fault> {
        if let Artifact::Image { reference, digest, args } = &spec.artifact {
            container.image = Some(self.pinned(reference, digest.as_deref()).await?);
            container.args = (!args.is_empty()).then(|| args.clone());
        }
        let mut env: BTreeMap<String, String> = BTreeMap::new();
        for pair in container.env.take().unwrap_or_default() {
            let (key, value) = pair.split_once('=').unwrap_or((&pair, ""));
            env.insert(key.to_owned(), value.to_owned());
        }
        let none = BTreeMap::new();
        let extra = if let Form::Instance { extra_env, .. } = form { *extra_env } else { &none };
        for (key, value) in spec.env.iter().chain(extra) {
            env.insert(key.clone(), expose(value, self.session.call.secrets).await?);
        }
        env.insert("CDPIPE_RELEASE".to_owned(), spec.id().to_string());
        container.env = Some(env.into_iter().map(|(key, value)| format!("{key}={value}")).collect());
        let mut labels = container.labels.take().unwrap_or_default();
        labels.extend(texts(spec, "labels"));
        labels.insert(labels::ENVIRONMENT.to_owned(), self.swarm.config.environment.to_string());
        labels.insert(labels::SERVICE.to_owned(), spec.service.to_string());
        labels.insert(labels::RELEASE.to_owned(), spec.id().to_string());
        container.labels = Some(labels);
        container.stop_grace_period = Some(nanos(spec.drain_ms));
        container.user = text(spec, "user").or(container.user.take());
        container.dir = text(spec, "workdir").or(container.dir.take());
        container.stop_signal = text(spec, "stop_signal").or(container.stop_signal.take());
        container.command = list(spec, "entrypoint").or(container.command.take());
        if let Some(said) = list(spec, "mounts") {
            container.mounts = Some(said.iter().map(|text| mount(text)).collect::<Result<_, _>>()?);
        }
        if let Some(health) = health(spec) {
            container.health_check = Some(health);
        }
        for (name, path) in texts(spec, "secrets") {
            let id = self.secret_id(&name).await?;
            container.secrets.get_or_insert_default().push(TaskSpecContainerSpecSecrets {
                file: Some(TaskSpecContainerSpecFile {
                    name: Some(path),
                    uid: Some("0".to_owned()),
                    gid: Some("0".to_owned()),
                    mode: Some(0o400),
                }),
                secret_id: Some(id),
                secret_name: Some(name),
            });
        }
        for (name, path) in texts(spec, "configs") {
            let id = self.config_id(&name).await?;
            container.configs.get_or_insert_default().push(TaskSpecContainerSpecConfigs {
                file: Some(TaskSpecContainerSpecFile1 {
                    name: Some(path),
                    uid: Some("0".to_owned()),
                    gid: Some("0".to_owned()),
                    mode: Some(0o444),
                }),
                config_id: Some(id),
                config_name: Some(name),
                ..TaskSpecContainerSpecConfigs::default()
            });
        }
        // A compose file names them; the Swarm wants their ids too.
        for secret in container.secrets.iter_mut().flatten().filter(|secret| secret.secret_id.is_none()) {
            let name = secret.secret_name.clone().unwrap_or_default();
            secret.secret_id = Some(self.secret_id(&name).await?);
        }
        for config in container.configs.iter_mut().flatten().filter(|config| config.config_id.is_none()) {
            let name = config.config_name.clone().unwrap_or_default();
            config.config_id = Some(self.config_id(&name).await?);
        }
        Ok(container)
    }
}

/// Whether an image is named by its id because no registry has it: with some stores of images the id is the registry's digest as well.
fn is_only_here(image: &ImageInspect, reference: &str, digest: &str) -> bool {
    image.id.as_deref() == Some(digest)
        && registry_digest(image, &Reference::parse(reference)).as_deref() != Some(digest)
}

/// `SOURCE:PATH` or `SOURCE:PATH:ro`; the source is a volume or an absolute path.
fn mount(text: &str) -> Result<Mount, Fault> {
    let mut parts = text.split(':');
    let (source, path, mode, more) = (parts.next(), parts.next(), parts.next(), parts.next());
    let (Some(source), Some(path), None | Some("ro" | "rw"), None) = (source, path, mode, more) else {
        return Err(Fault::new("bad-value", format!("`{text}` is no mount"))
            .help("write `SOURCE:PATH` or `SOURCE:PATH:ro`; the source is a volume or an absolute path"));
    };
    let typ = if source.starts_with('/') { MountType::BIND } else { MountType::VOLUME };
    Ok(Mount {
        source: Some(source.to_owned()),
        target: Some(path.to_owned()),
        typ: Some(typ),
        read_only: Some(mode == Some("ro")),
        ..Mount::default()
    })
}

fn missing(what: &str, name: &str) -> Fault {
    Fault::new("artifact-missing", format!("the Swarm has no {what} `{name}`"))
        .help(format!("make it: `docker {what} create {name} FILE`"))
}

fn unwritable(error: &serde_json::Error) -> Fault {
    Fault::new("internal", format!("a release cannot be written down: {error}"))
}

pub(super) fn nanos(ms: u64) -> i64 {
    i64::try_from(ms.saturating_mul(NANOS_PER_MS)).unwrap_or(i64::MAX)
}

/// The fence of a service: its specification, whatever the Swarm notes about its state beside it.
pub(super) fn fence(spec: Option<&ServiceSpec>) -> u64 {
    // Maps of the API have no order; JSON values do.
    let value = spec.and_then(|spec| serde_json::to_value(spec).ok());
    labels::fnv(&value.map(|value| value.to_string()).unwrap_or_default())
}

/// `host:5000/shop:1.0` is `host:5000/shop`.
fn without_tag(reference: &str) -> &str {
    match reference.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => name,
        _ => reference,
    }
}

/// How the Swarm is to roll and to go back. What the pipeline says wins over what a compose file says.
fn update_configs(service: &mut ServiceSpec, policy: &RollPolicy) {
    use ServiceSpecRollbackConfigFailureActionEnum as BackAction;
    use ServiceSpecUpdateConfigFailureActionEnum as Action;
    let forward = RollingBack {
        batch: Count::Instances(policy.batch),
        pause_ms: policy.pause_ms,
        monitor_ms: policy.monitor_ms,
        order: policy.order,
        max_failures_percent: policy.max_failures_percent,
        failure_action: FailureAction::Pause,
    };
    let back = policy.back.as_ref();
    // Going back by an update of ours: as the Swarm would by itself, where the pipeline says how.
    let way = back.filter(|_| policy.undo).unwrap_or(&forward);
    let written = service.update_config.take().and_then(|config| config.failure_action);
    let action = match (policy.undo, policy.failure_action) {
        (true, _) if way.failure_action == FailureAction::Continue => Action::CONTINUE,
        (true, _) => Action::PAUSE,
        (false, Some(FailureAction::Rollback)) => Action::ROLLBACK,
        (false, Some(FailureAction::Pause)) => Action::PAUSE,
        (false, Some(FailureAction::Continue)) => Action::CONTINUE,
        (false, None) => written.unwrap_or(Action::ROLLBACK),
    };
    service.update_config = Some(ServiceSpecUpdateConfig {
        parallelism: Some(i64::from(way.batch.of(policy.batch))),
        delay: Some(nanos(way.pause_ms)),
        failure_action: Some(action),
        monitor: Some(nanos(way.monitor_ms.max(LEAST_MONITOR_MS))),
        max_failure_ratio: Some(way.max_failures_percent / 100.0),
        order: Some(match way.order {
            Order::StartFirst => ServiceSpecUpdateConfigOrderEnum::START_FIRST,
            Order::StopFirst => ServiceSpecUpdateConfigOrderEnum::STOP_FIRST,
        }),
    });
    if back.is_none() && service.rollback_config.is_some() {
        return;
    }
    let way = back.cloned().unwrap_or(RollingBack { pause_ms: 0, ..forward });
    service.rollback_config = Some(ServiceSpecRollbackConfig {
        parallelism: Some(i64::from(way.batch.of(policy.batch))),
        delay: Some(nanos(way.pause_ms)),
        failure_action: Some(match way.failure_action {
            FailureAction::Continue => BackAction::CONTINUE,
            FailureAction::Pause | FailureAction::Rollback => BackAction::PAUSE,
        }),
        monitor: Some(nanos(way.monitor_ms.max(LEAST_MONITOR_MS))),
        max_failure_ratio: Some(way.max_failures_percent / 100.0),
        order: Some(match way.order {
            Order::StartFirst => ServiceSpecRollbackConfigOrderEnum::START_FIRST,
            Order::StopFirst => ServiceSpecRollbackConfigOrderEnum::STOP_FIRST,
        }),
    });
}

/// Ports as written, and one of the node for the port that the service listens on.
fn endpoint(spec: &ReleaseSpec, form: &Form<'_>, written: Option<EndpointSpec>) -> EndpointSpec {
    let mut endpoint = written.unwrap_or_default();
    let mut ports = endpoint.ports.take().unwrap_or_default();
    if let Form::Instance { .. } = form {
        // Two releases at a time: a port that is fixed for the service can be had by one only.
        ports.clear();
    }
    if let Some(port) = spec.port
        && !ports.iter().any(|known| known.target_port == Some(i64::from(port)))
    {
        let published_port = match form {
            Form::Instance { port: Some(port), .. } => Some(i64::from(*port)),
            _ => None,
        };
        ports.push(EndpointPortConfig {
            protocol: Some(EndpointPortConfigProtocolEnum::TCP),
            target_port: Some(i64::from(port)),
            published_port,
            publish_mode: Some(EndpointPortConfigPublishModeEnum::HOST),
            ..EndpointPortConfig::default()
        });
    }
    let meshed = ports.iter().any(|port| port.publish_mode != Some(EndpointPortConfigPublishModeEnum::HOST));
    endpoint.mode.get_or_insert(if meshed { EndpointSpecModeEnum::VIP } else { EndpointSpecModeEnum::DNSRR });
    endpoint.ports = Some(ports);
    endpoint
}

/// The Swarm asks inside the task's container, with what the image has: `sh`, and `wget` or `curl` for HTTP, `nc` for a port. Without a
/// port there is nothing to ask it on, and the check of the compose file or of the image stands.
fn health(spec: &ReleaseSpec) -> Option<HealthConfig> {
    let ready = spec.health.iter().find(|health| health.kind == HealthKind::Ready);
    let Health { check, every_ms, timeout_ms, failures, within_ms, .. } = ready.or(spec.health.first())?;
    let script = match check {
        HealthCheck::Command { script } => script.clone(),
        HealthCheck::Http { path } => {
            let port = spec.port?;
            let url = format!("'http://127.0.0.1:{port}{}'", path.replace('\'', "%27"));
            format!(
                "if command -v wget >/dev/null; then wget -q -O /dev/null {url}; else curl -fsS -o /dev/null {url}; fi"
            )
        }
        HealthCheck::Tcp => format!("nc -z 127.0.0.1 {}", spec.port?),
    };
    Some(HealthConfig {
        test: Some(vec!["CMD-SHELL".to_owned(), script]),
        interval: Some(nanos(*every_ms)),
        timeout: Some(nanos(*timeout_ms)),
        retries: Some(i64::from(*failures)),
        // While it starts a miss does not count.
        start_period: Some(nanos(*within_ms)),
        start_interval: None,
    })
}

fn resources(spec: &ReleaseSpec) -> Option<TaskSpecResources> {
    let Some(Value::Map(said)) = spec.extra.get("resources") else { return None };
    #[allow(clippy::cast_possible_truncation, reason = "processors are checked to be few")]
    let nano_cpus =
        |name: &str| said.get(name).and_then(Value::magnitude).map(|cpus| (cpus * 1_000_000_000.0) as i64);
    let bytes = |name: &str| match said.get(name) {
        Some(Value::Size(bytes)) => i64::try_from(*bytes).ok(),
        _ => None,
    };
    Some(TaskSpecResources {
        limits: Some(Limit {
            nano_cpus: nano_cpus("cpu_limit").or(nano_cpus("cpu")),
            memory_bytes: bytes("memory_limit").or(bytes("memory")),
            ..Limit::default()
        }),
        reservations: Some(ResourceObject {
            nano_cpus: nano_cpus("cpu"),
            memory_bytes: bytes("memory"),
            ..ResourceObject::default()
        }),
        ..TaskSpecResources::default()
    })
}

fn texts(spec: &ReleaseSpec, name: &str) -> BTreeMap<String, String> {
    match spec.extra.get(name) {
        Some(Value::Map(map)) => map.iter().map(|(key, value)| (key.clone(), value.to_string())).collect(),
        _ => BTreeMap::new(),
    }
}

fn text(spec: &ReleaseSpec, name: &str) -> Option<String> {
    spec.extra.get(name).map(Value::to_string)
}

fn list(spec: &ReleaseSpec, name: &str) -> Option<Vec<String>> {
    match spec.extra.get(name) {
        Some(Value::List(values)) => Some(values.iter().map(Value::to_string).collect()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_of_a_registry_is_named_by_its_repository_also_where_its_id_is_its_digest() {
        let image = |repo_digests: &[&str]| ImageInspect {
            id: Some("sha256:ff".to_owned()),
            repo_digests: Some(repo_digests.iter().map(|text| (*text).to_owned()).collect()),
            ..Default::default()
        };
        let pushed = image(&["ghcr.io/acme/web@sha256:ff"]);
        assert!(!is_only_here(&pushed, "ghcr.io/acme/web:1", "sha256:ff"));
        assert!(is_only_here(&pushed, "acme/web:1", "sha256:ff"), "another registry has it");
        assert!(is_only_here(&image(&[]), "web:1", "sha256:ff"), "built here");
        assert!(!is_only_here(&image(&[]), "web:1", "sha256:00"));
    }
}
