//! What is on the engine: containers as they are, and what a service looks like made of them.

use super::{Containers, Publish};
use crate::client::Session;
use crate::labels;
use bollard::models::{ContainerInspectResponse, ContainerStateStatusEnum, HealthStatusEnum, MountPoint};
use bollard::query_parameters::{InspectContainerOptions, ListContainersOptions};
use cdpipe_model::observe::{Instance, Observation, ObservedRelease};
use cdpipe_model::release::{Artifact, ReleaseSpec};
use cdpipe_model::{Fault, InstanceId, ReleaseId, ServiceName, Value};
use futures_util::future::try_join_all;
use std::collections::{BTreeMap, HashMap};

/// One container.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) name: String,
    pub(super) labels: HashMap<String, String>,
    pub(super) state: ContainerStateStatusEnum,
    pub(super) exit_code: i64,
    pub(super) oom_killed: bool,
    pub(super) error: String,
    /// Of the image's or the service's own check, which the engine asks; `None` where there is none.
    pub(super) health: Option<HealthStatusEnum>,
    pub(super) health_said: Option<String>,
    pub(super) restarts: u32,
    pub(super) restarts_by_itself: bool,
    pub(super) created: String,
    pub(super) finished: String,
    /// On the network.
    pub(super) ip: Option<String>,
    /// Published ports by `PORT/tcp`.
    pub(super) published: HashMap<String, String>,
    /// The ports that it publishes when it runs, in order.
    ports: Vec<u16>,
    pub(super) image: String,
    pub(super) image_id: String,
    pub(super) env: Vec<String>,
    pub(super) cmd: Vec<String>,
    /// How it was made, in the words of a service.
    made_with: BTreeMap<String, Value>,
}

impl Found {
    /// It should be there and serve: also one that was never started, because its start was cut short.
    pub(super) fn is_wanted(&self) -> bool {
        self.is_up() || self.state == ContainerStateStatusEnum::CREATED
    }

    /// It runs, or will again by itself.
    pub(super) fn is_up(&self) -> bool {
        matches!(
            self.state,
            ContainerStateStatusEnum::RUNNING
                | ContainerStateStatusEnum::RESTARTING
                | ContainerStateStatusEnum::PAUSED
        )
    }

    pub(super) fn is_running(&self) -> bool {
        self.state == ContainerStateStatusEnum::RUNNING
    }

    /// It was there before cdpipe, and carries no label of ours.
    pub(super) fn is_adopted(&self) -> bool {
        !self.labels.contains_key(labels::SERVICE)
    }

    pub(super) fn label(&self, name: &str) -> &str {
        self.labels.get(name).map_or("", String::as_str)
    }

    pub(super) fn extra(&self) -> BTreeMap<String, Value> {
        serde_json::from_str(self.label(labels::EXTRA)).unwrap_or_default()
    }

    fn spec(&self) -> Option<ReleaseSpec> {
        serde_json::from_str(self.label(labels::SPEC)).ok()
    }

    /// Of its name: what it counts in its release.
    pub(super) fn number(&self) -> u32 {
        let last = self.name.rsplit('-').next().unwrap_or_default();
        last.trim_start_matches('c').parse().unwrap_or(u32::MAX)
    }

    pub(super) fn of(inspected: ContainerInspectResponse, network: &str) -> Self {
        let state = inspected.state.unwrap_or_default();
        let config = inspected.config.unwrap_or_default();
        let host = inspected.host_config.unwrap_or_default();
        let settings = inspected.network_settings.unwrap_or_default();
        let networks = settings.networks.unwrap_or_default();
        let ip =
            networks.get(network).or_else(|| networks.values().next()).and_then(|end| end.ip_address.clone());
        let policy = host.restart_policy.and_then(|policy| policy.name);
        // What it was made with stays when it restarts, and is there before it runs. Ports that the engine chose are only in its settings.
        let mut published = HashMap::new();
        let bound = host.port_bindings.iter().flatten();
        let mut ports: Vec<u16> =
            bound.filter_map(|(port, _)| port.strip_suffix("/tcp")?.parse().ok()).collect();
        ports.sort_unstable();
        for ports in [settings.ports, host.port_bindings].into_iter().flatten() {
            for (port, bindings) in ports {
                if let Some(binding) = bindings.unwrap_or_default().into_iter().next()
                    && let Some(host_port) = binding.host_port.filter(|port| !port.is_empty() && port != "0")
                {
                    let address =
                        binding.host_ip.filter(|ip| !ip.is_empty() && ip != "0.0.0.0" && ip != "::");
                    let address = address.unwrap_or_else(|| "127.0.0.1".to_owned());
                    published.insert(port, format!("{address}:{host_port}"));
                }
            }
        }
        let mounts: Vec<Value> = inspected.mounts.iter().flatten().filter_map(mount).collect();
        let mut made_with = BTreeMap::new();
        if !mounts.is_empty() {
            made_with.insert("mounts".to_owned(), Value::List(mounts));
        }
        if let Some(entrypoint) = config.entrypoint.filter(|entrypoint| !entrypoint.is_empty()) {
            let entrypoint = entrypoint.into_iter().map(Value::Str).collect();
            made_with.insert("entrypoint".to_owned(), Value::List(entrypoint));
        }
        for (name, text) in [("user", config.user), ("workdir", config.working_dir)] {
            if let Some(text) = text.filter(|text| !text.is_empty()) {
                made_with.insert(name.to_owned(), Value::Str(text));
            }
        }
        use bollard::models::RestartPolicyNameEnum as Policy;
        let health = state.health;
        Self {
            name: inspected.name.unwrap_or_default().trim_start_matches('/').to_owned(),
            labels: config.labels.unwrap_or_default(),
            state: state.status.unwrap_or(ContainerStateStatusEnum::EMPTY),
            exit_code: state.exit_code.unwrap_or(0),
            oom_killed: state.oom_killed.unwrap_or(false),
            error: state.error.unwrap_or_default(),
            health_said: health.as_ref().and_then(|health| {
                let last = health.log.as_ref()?.last()?;
                let said = last.output.clone().unwrap_or_default();
                Some(said.trim().lines().last().unwrap_or_default().to_owned())
            }),
            health: health
                .and_then(|health| health.status)
                .filter(|status| !matches!(status, HealthStatusEnum::NONE | HealthStatusEnum::EMPTY)),
            restarts: inspected.restart_count.and_then(|count| u32::try_from(count).ok()).unwrap_or(0),
            restarts_by_itself: matches!(
                policy,
                Some(Policy::ALWAYS | Policy::UNLESS_STOPPED | Policy::ON_FAILURE)
            ),
            created: inspected.created.map(|at| at.to_string()).unwrap_or_default(),
            finished: state.finished_at.unwrap_or_default(),
            ip: ip.filter(|ip| !ip.is_empty()),
            published,
            ports,
            image: config.image.unwrap_or_default(),
            image_id: inspected.image.unwrap_or_default(),
            env: config.env.unwrap_or_default(),
            cmd: config.cmd.unwrap_or_default(),
            made_with,
        }
    }
}

impl Containers {
    /// All containers with these labels, also those that do not run.
    pub(super) async fn labelled(
        &self,
        session: &Session<'_>,
        labels: &[(&str, &str)],
    ) -> Result<Vec<Found>, Fault> {
        let labels = labels
            .iter()
            .map(
                |(name, value)| if value.is_empty() { (*name).to_owned() } else { format!("{name}={value}") },
            )
            .collect();
        self.listed(session, HashMap::from([("label".to_owned(), labels)])).await
    }

    async fn listed(
        &self,
        session: &Session<'_>,
        filters: HashMap<String, Vec<String>>,
    ) -> Result<Vec<Found>, Fault> {
        let options = ListContainersOptions { all: true, filters: Some(filters), ..Default::default() };
        let listed = session.ask("list containers", session.api.list_containers(Some(options))).await?;
        let ids: Vec<String> = listed.into_iter().filter_map(|container| container.id).collect();
        // One that is removed in the meantime is gone.
        let mut found: Vec<Found> = try_join_all(ids.iter().map(|id| self.container(session, id)))
            .await?
            .into_iter()
            .flatten()
            .collect();
        found.sort_by(|one, other| {
            let key = |found: &Found| (found.extra().len(), found.number(), found.name.clone());
            key(one).cmp(&key(other))
        });
        Ok(found)
    }

    /// One container by name or id.
    pub(super) async fn container(&self, session: &Session<'_>, name: &str) -> Result<Option<Found>, Fault> {
        let inspected = session
            .ask_for(
                "look at a container",
                session.api.inspect_container(name, None::<InspectContainerOptions>),
            )
            .await?;
        Ok(inspected.map(|inspected| Found::of(inspected, &self.config.network)))
    }

    /// The containers of a release, adopted ones among them.
    pub(super) async fn of_release(
        &self,
        session: &Session<'_>,
        spec: &ReleaseSpec,
    ) -> Result<Vec<Found>, Fault> {
        let id = spec.id();
        let labels = [
            (labels::ENVIRONMENT, self.config.environment.as_str()),
            (labels::SERVICE, spec.service.as_str()),
            (labels::RELEASE, id.as_str()),
        ];
        let mut found = self.labelled(session, &labels).await?;
        if self.config.adopt.contains(&spec.service) {
            let name = spec.platform_name.as_deref().unwrap_or(spec.service.as_str());
            let others = self.unmanaged(session, name).await?;
            found.extend(others.into_iter().filter(|other| adopted(other, &spec.service, name).id() == id));
        }
        Ok(found)
    }

    /// Containers of that name that carry no label of ours.
    async fn unmanaged(&self, session: &Session<'_>, name: &str) -> Result<Vec<Found>, Fault> {
        let pattern = format!("^/?{}$", name.replace('.', "\\."));
        let found = self.listed(session, HashMap::from([("name".to_owned(), vec![pattern])])).await?;
        Ok(found.into_iter().filter(Found::is_adopted).collect())
    }

    pub(super) async fn see(
        &self,
        session: Session<'_>,
        service: &ServiceName,
        platform_name: Option<&str>,
    ) -> Result<Observation, Fault> {
        let ours =
            [(labels::ENVIRONMENT, self.config.environment.as_str()), (labels::SERVICE, service.as_str())];
        let mut releases: Vec<(String, ReleaseId, ReleaseSpec, Vec<Found>)> = Vec::new();
        let mut add = |id: ReleaseId, spec: ReleaseSpec, found: Found| match releases
            .iter_mut()
            .find(|(_, known, _, _)| *known == id)
        {
            Some((created, _, _, all)) => {
                if found.created < *created {
                    created.clone_from(&found.created);
                }
                all.push(found);
            }
            None => releases.push((found.created.clone(), id, spec, vec![found])),
        };
        for found in self.labelled(&session, &ours).await? {
            let id = ReleaseId::from(found.label(labels::RELEASE));
            if let Some(spec) = found.spec() {
                add(id, spec, found);
            }
        }
        let name = platform_name.unwrap_or(service.as_str());
        let mut unmanaged = Vec::new();
        for found in self.unmanaged(&session, name).await? {
            if self.config.adopt.contains(service) {
                let spec = adopted(&found, service, name);
                add(spec.id(), spec, found);
            } else {
                unmanaged.push(format!("container {}", found.name));
            }
        }
        releases.sort_by(|one, other| one.0.cmp(&other.0));
        let mut observed = Vec::new();
        for (_, id, spec, found) in releases {
            let wanted = found.iter().filter(|found| found.is_wanted()).count();
            let instances = self.instances(&session, &spec, &found).await?;
            observed.push(ObservedRelease {
                id,
                spec,
                wanted: u32::try_from(wanted).unwrap_or(u32::MAX),
                instances,
            });
        }
        Ok(Observation { releases: observed, unmanaged, table: None, fence: None, autoscaled: None })
    }

    /// Those that should serve, and whether they may.
    pub(super) async fn instances(
        &self,
        session: &Session<'_>,
        spec: &ReleaseSpec,
        found: &[Found],
    ) -> Result<Vec<Instance>, Fault> {
        let wanted = found.iter().filter(|found| found.is_wanted());
        let asked = wanted.map(|found| async move {
            Instance {
                id: InstanceId(found.name.clone()),
                address: self.address(spec, found),
                reached_at: match self.config.publish {
                    Publish::On(_) => None,
                    Publish::Network => self.asked_at(spec, found),
                },
                ready: self.is_ready_now(session, spec, found).await,
                restarts: found.restarts,
            }
        });
        Ok(futures_util::future::join_all(asked).await)
    }

    /// Where the router finds it.
    pub(super) fn address(&self, spec: &ReleaseSpec, found: &Found) -> Option<String> {
        let port = spec.port?;
        match &self.config.publish {
            Publish::On(_) => found.published.get(&format!("{port}/tcp")).cloned(),
            Publish::Network => Some(format!("{}:{port}", found.name)),
        }
    }

    /// Where it is asked whether it is healthy: its published address, or its own on the network.
    pub(super) fn asked_at(&self, spec: &ReleaseSpec, found: &Found) -> Option<String> {
        let port = spec.port?;
        let published = found.published.get(&format!("{port}/tcp")).cloned();
        published.or_else(|| Some(format!("{}:{port}", found.ip.as_ref()?)))
    }
}

/// `SOURCE:PATH` or `SOURCE:PATH:ro`.
fn mount(point: &MountPoint) -> Option<Value> {
    let source = point.name.as_ref().filter(|name| !name.is_empty()).or(point.source.as_ref())?;
    let path = point.destination.as_ref()?;
    let only = if point.rw == Some(false) { ":ro" } else { "" };
    Some(Value::Str(format!("{source}:{path}{only}")))
}

/// The tag of an image, or the whole reference where it has none.
fn tag(image: &str) -> &str {
    match image.rsplit_once(':') {
        Some((_, tag)) if !tag.contains('/') => tag,
        _ => image,
    }
}

/// A container that was there before as a release: made from what it is. It keeps its name and is stopped and started; more of its kind
/// are made with what is here.
fn adopted(found: &Found, service: &ServiceName, name: &str) -> ReleaseSpec {
    let env = found.env.iter().filter_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        Some((name.to_owned(), Value::Str(value.to_owned())))
    });
    ReleaseSpec {
        service: service.clone(),
        platform_name: (name != service.as_str()).then(|| name.to_owned()),
        version: tag(&found.image).to_owned(),
        artifact: Artifact::Image {
            reference: found.image.clone(),
            digest: Some(found.image_id.clone()),
            args: found.cmd.clone(),
        },
        // As it was made and not as it is: a container that stands still publishes nothing, and is the same release.
        port: found.ports.first().copied(),
        env: env.collect(),
        health: Vec::new(),
        drain_ms: 10_000,
        extra: found.made_with.clone(),
    }
}
