//! What is there: services, their tasks, and the releases that are kept.

use super::At;
use super::spec::{EPOCH, FORM, FOUND, fence};
use crate::labels;
use base64_of::decode;
use bollard::models::{Config, ConfigSpec, Service, Task, TaskState};
use bollard::query_parameters::ListTasksOptionsBuilder;
use cdpipe_model::id::InstanceId;
use cdpipe_model::observe::{Instance, Observation, ObservedRelease};
use cdpipe_model::release::{Artifact, ReleaseSpec};
use cdpipe_model::{Fault, ReleaseId, ServiceName};
use std::collections::{BTreeMap, HashMap};

/// The kind of a config that keeps a release.
const KEPT: &str = "release";

/// A service of ours, or one that is to be taken over.
pub(super) struct Seen {
    pub(super) service: Service,
    pub(super) tasks: Vec<Task>,
}

/// The label of a service; `""` if it has none.
pub(super) fn label<'a>(service: &'a Service, key: &str) -> &'a str {
    let labels = service.spec.as_ref().and_then(|spec| spec.labels.as_ref());
    labels.and_then(|labels| labels.get(key)).map_or("", String::as_str)
}

pub(super) fn name_of(service: &Service) -> &str {
    service.spec.as_ref().and_then(|spec| spec.name.as_deref()).unwrap_or_default()
}

pub(super) fn wanted_of(service: &Service) -> u32 {
    let mode = service.spec.as_ref().and_then(|spec| spec.mode.as_ref());
    let replicas = mode.and_then(|mode| mode.replicated.as_ref()).and_then(|replicated| replicated.replicas);
    u32::try_from(replicas.unwrap_or(1)).unwrap_or(0)
}

pub(super) fn is_workload(service: &Service) -> bool {
    label(service, FORM) == "workload"
}

/// Whether the Swarm wants it to run, or to come to run.
pub(super) fn is_live(task: &Task) -> bool {
    matches!(
        task.desired_state,
        Some(
            TaskState::NEW
                | TaskState::ALLOCATED
                | TaskState::PENDING
                | TaskState::ASSIGNED
                | TaskState::ACCEPTED
                | TaskState::PREPARING
                | TaskState::READY
                | TaskState::STARTING
                | TaskState::RUNNING
        )
    ) && !has_failed(task)
}

pub(super) fn state_of(task: &Task) -> Option<&TaskState> {
    task.status.as_ref().and_then(|status| status.state.as_ref())
}

/// A task runs once its container is healthy.
pub(super) fn is_running(task: &Task) -> bool {
    is_live(task) && state_of(task) == Some(&TaskState::RUNNING)
}

pub(super) fn has_failed(task: &Task) -> bool {
    // A task that ended with 0 has ended all the same: one that obeys the signal after its health check failed looks like this.
    matches!(
        state_of(task),
        Some(TaskState::FAILED | TaskState::REJECTED | TaskState::ORPHANED | TaskState::COMPLETE)
    )
}

/// The task's own words for what went wrong.
pub(super) fn error_of(task: &Task) -> Option<String> {
    let status = task.status.as_ref()?;
    status.err.clone().filter(|error| !error.is_empty())
}

/// The release of a task; `""` for one that was there before cdpipe.
pub(super) fn release_of(task: &Task) -> &str {
    let container = task.spec.as_ref().and_then(|spec| spec.container_spec.as_ref());
    let labels = container.and_then(|container| container.labels.as_ref());
    labels.and_then(|labels| labels.get(labels::RELEASE)).map_or("", String::as_str)
}

/// Whether a task is of this release.
pub(super) fn is_of(task: &Task, spec: &ReleaseSpec) -> bool {
    let release = release_of(task);
    if release.is_empty() { is_found(spec) } else { release == spec.id().as_str() }
}

fn is_found(spec: &ReleaseSpec) -> bool {
    matches!(&spec.artifact, Artifact::Document { source, .. } if source.starts_with(FOUND))
}

impl At<'_> {
    /// All services of ours for this service, with their tasks.
    pub(super) async fn seen(&self, service: &ServiceName) -> Result<Vec<Seen>, Fault> {
        let environment = &self.swarm.config.environment;
        let labels =
            vec![format!("{}={service}", labels::SERVICE), format!("{}={environment}", labels::ENVIRONMENT)];
        let services = self.services(labels).await?;
        let ids = services.iter().filter_map(|service| service.id.clone()).collect();
        let mut tasks = self.tasks(ids).await?;
        Ok(services
            .into_iter()
            .map(|service| {
                let (own, rest) = std::mem::take(&mut tasks)
                    .into_iter()
                    .partition(|task: &Task| task.service_id == service.id);
                tasks = rest;
                Seen { service, tasks: own }
            })
            .collect())
    }

    /// Tasks of these services, the newest first.
    pub(super) async fn tasks(&self, services: Vec<String>) -> Result<Vec<Task>, Fault> {
        if services.is_empty() {
            return Ok(Vec::new());
        }
        let filters = HashMap::from([("service".to_owned(), services)]);
        let options = ListTasksOptionsBuilder::default().filters(&filters).build();
        let mut tasks = self.session.ask("list tasks", self.session.api.list_tasks(Some(options))).await?;
        tasks.sort_by(|a, b| b.created_at.cmp(&a.created_at).then_with(|| a.id.cmp(&b.id)));
        Ok(tasks)
    }

    pub(super) async fn observe(
        &self,
        service: &ServiceName,
        platform_name: Option<&str>,
    ) -> Result<Observation, Fault> {
        let base = platform_name.unwrap_or(service.as_str());
        let nodes = self.nodes().await?;
        let mut seen = self.seen(service).await?;
        seen.sort_by(|a, b| a.service.created_at.cmp(&b.service.created_at));
        let mut releases: Vec<ObservedRelease> = Vec::new();
        let mut observation = Observation::default();
        for config in self.kept(service).await? {
            if let Some(spec) = kept_spec(&config) {
                releases.push(ObservedRelease { id: spec.id(), spec, wanted: 0, instances: Vec::new() });
            }
        }
        if let Some(found) = self.service(base).await?
            && !is_workload(&found)
        {
            let tasks = self.tasks(found.id.clone().into_iter().collect()).await?;
            observation.unmanaged.push(base.to_owned());
            observation.fence = Some(fence(found.spec.as_ref()));
            if let Some(spec) = adopted(service, platform_name, &found) {
                let workload = Seen { service: found, tasks };
                let instances = workload_instances(&workload, &spec, &nodes);
                let wanted = wanted_of(&workload.service);
                releases.insert(0, ObservedRelease { id: spec.id(), spec, wanted, instances });
            }
        }
        for one in &seen {
            let Ok(spec) = serde_json::from_str::<ReleaseSpec>(label(&one.service, labels::SPEC)) else {
                observation.unmanaged.push(name_of(&one.service).to_owned());
                continue;
            };
            if is_workload(&one.service) {
                observation.fence = Some(fence(one.service.spec.as_ref()));
                add(&mut releases, &spec);
                let mut elsewhere = 0_u32;
                let total = wanted_of(&one.service);
                for release in &mut releases {
                    let instances = workload_instances(one, &release.spec, &nodes);
                    if release.id != spec.id() {
                        // In the middle of a roll: what still runs of the old one is wanted until the new one is there.
                        let running = u32::try_from(instances.len()).unwrap_or(u32::MAX);
                        release.wanted += running;
                        elsewhere += running;
                    }
                    release.instances.extend(instances);
                }
                if let Some(release) = releases.iter_mut().find(|release| release.id == spec.id()) {
                    release.wanted += total.saturating_sub(elsewhere);
                }
            } else {
                add(&mut releases, &spec);
                if let Some(release) = releases.iter_mut().find(|release| release.id == spec.id()) {
                    release.wanted += wanted_of(&one.service);
                    release.instances.push(instance(one, &nodes));
                }
            }
        }
        observation.releases = releases;
        Ok(observation)
    }

    // -- releases that are kept --

    async fn kept(&self, service: &ServiceName) -> Result<Vec<Config>, Fault> {
        let environment = &self.swarm.config.environment;
        let mut kept = self
            .configs(vec![
                format!("{}={KEPT}", labels::KIND),
                format!("{}={service}", labels::SERVICE),
                format!("{}={environment}", labels::ENVIRONMENT),
            ])
            .await?;
        sort_by_use(&mut kept);
        Ok(kept)
    }

    /// Keeps what a release is made from, as the newest one unless it is only gone back to. Answers whether this very effect has been here
    /// before.
    pub(super) async fn keep(&self, spec: &ReleaseSpec, back: bool) -> Result<bool, Fault> {
        let kept = self.kept(&spec.service).await?.into_iter().filter(|config| keeps(config, spec));
        let mut name = kept.filter_map(|config| config.spec?.name).next().unwrap_or_else(|| kept_name(spec));
        let effect = self.session.call.effect.to_string();
        let labels = HashMap::from([
            (labels::KIND.to_owned(), KEPT.to_owned()),
            (labels::SERVICE.to_owned(), spec.service.to_string()),
            (labels::ENVIRONMENT.to_owned(), self.swarm.config.environment.to_string()),
            (labels::RELEASE.to_owned(), spec.id().to_string()),
            (labels::EFFECT.to_owned(), effect.clone()),
            (EPOCH.to_owned(), self.session.call.epoch.to_string()),
        ]);
        let json = serde_json::to_string(spec)
            .map_err(|error| Fault::new("internal", format!("a release cannot be written down: {error}")))?;
        for _ in 0..5 {
            match self.config(&name).await? {
                None => {
                    let data = Some(base64_of::encode(json.as_bytes()));
                    let config = ConfigSpec {
                        name: Some(name.clone()),
                        labels: Some(labels.clone()),
                        data,
                        templating: None,
                    };
                    if self.create_config(config).await? {
                        return Ok(false);
                    }
                }
                Some(config) => {
                    let known = config.spec.as_ref().and_then(|spec| spec.labels.as_ref());
                    let place = known.and_then(|known| known.get(labels::ENVIRONMENT));
                    if place.is_some_and(|place| place != self.swarm.config.environment.as_str()) {
                        // The same release is kept by another environment of this Swarm, which must not lose it.
                        name = kept_name_in(spec, self.swarm.config.environment.as_str());
                        continue;
                    }
                    if known.and_then(|known| known.get(labels::EFFECT)) == Some(&effect) {
                        return Ok(true);
                    }
                    if back {
                        return Ok(false);
                    }
                    if self.relabel(&config, labels.clone()).await? {
                        return Ok(false);
                    }
                }
            }
        }
        Err(Fault::new("moved", format!("somebody else writes the Swarm config {name} all the time")))
    }

    /// By its labels: another environment may keep the same release.
    pub(super) async fn forget(&self, spec: &ReleaseSpec) -> Result<(), Fault> {
        for config in self.kept(&spec.service).await? {
            if keeps(&config, spec)
                && let Some(name) = config.spec.as_ref().and_then(|spec| spec.name.as_deref())
            {
                self.delete_config(name).await?;
            }
        }
        Ok(())
    }

    /// Forgets the releases of which nothing runs, the longest unused first, but for the newest `retain`.
    pub(super) async fn prune(&self, service: &ServiceName, retain: u32) -> Result<(), Fault> {
        let running: Vec<String> = {
            let seen = self.seen(service).await?;
            seen.iter().map(|seen| label(&seen.service, labels::RELEASE).to_owned()).collect()
        };
        let kept = self.kept(service).await?;
        let idle: Vec<&Config> = kept
            .iter()
            .filter(|config| kept_spec(config).is_some_and(|spec| !running.contains(&spec.id().to_string())))
            .collect();
        let excess = idle.len().saturating_sub(retain as usize);
        for config in idle.into_iter().take(excess) {
            if let Some(name) = config.spec.as_ref().and_then(|spec| spec.name.as_deref()) {
                self.delete_config(name).await?;
            }
        }
        Ok(())
    }

    /// Every service and config of ours for this service.
    pub(super) async fn remove(&self, service: &ServiceName) -> Result<usize, Fault> {
        let mut ended = 0;
        for seen in self.seen(service).await? {
            ended += seen.tasks.iter().filter(|task| is_live(task)).count();
            self.delete(name_of(&seen.service)).await?;
        }
        for config in self.kept(service).await? {
            if let Some(name) = config.spec.as_ref().and_then(|spec| spec.name.as_deref()) {
                self.delete_config(name).await?;
            }
        }
        Ok(ended)
    }

    /// Instances of a release as they are now: those without an extra environment first.
    pub(super) async fn instances(&self, spec: &ReleaseSpec) -> Result<Vec<Instance>, Fault> {
        let nodes = self.nodes().await?;
        let id = spec.id().to_string();
        let seen = self.seen(&spec.service).await?;
        let mut found: Vec<((bool, usize, String), Instance)> = Vec::new();
        for one in &seen {
            if is_workload(&one.service) {
                found.extend(
                    workload_instances(one, spec, &nodes)
                        .into_iter()
                        .map(|instance| ((false, 0, instance.id.to_string()), instance)),
                );
            } else if label(&one.service, labels::RELEASE) == id {
                let name = name_of(&one.service).to_owned();
                let extra = !label(&one.service, labels::EXTRA).is_empty();
                found.push(((extra, name.len(), name), instance(one, &nodes)));
            }
        }
        found.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(found.into_iter().map(|(_, instance)| instance).collect())
    }
}

/// The longest unused first: one that is brought in again is written again, and is not as old as its first time.
fn sort_by_use(kept: &mut [Config]) {
    let used = |config: &Config| config.updated_at.clone().or_else(|| config.created_at.clone());
    kept.sort_by_key(used);
}

fn add(releases: &mut Vec<ObservedRelease>, spec: &ReleaseSpec) {
    if !releases.iter().any(|release| release.id == spec.id()) {
        releases.push(ObservedRelease {
            id: spec.id(),
            spec: spec.clone(),
            wanted: 0,
            instances: Vec::new(),
        });
    }
}

fn kept_name(spec: &ReleaseSpec) -> String {
    let base: String = super::Swarm::base_of(spec).chars().take(40).collect();
    format!("cdpipe-{base}-{}", spec.id())
}

/// The name where another environment has that one already. A config's name has 64 characters at most.
fn kept_name_in(spec: &ReleaseSpec, environment: &str) -> String {
    let base: String = super::Swarm::base_of(spec).chars().take(30).collect();
    format!("cdpipe-{base}-{}-{:08x}", spec.id(), labels::fnv(environment) >> 32)
}

fn keeps(config: &Config, spec: &ReleaseSpec) -> bool {
    kept_spec(config).is_some_and(|kept| kept.id() == spec.id())
}

fn kept_spec(config: &Config) -> Option<ReleaseSpec> {
    let data = config.spec.as_ref()?.data.as_deref()?;
    serde_json::from_slice(&decode(data)?).ok()
}

/// What runs already, as a release of its own.
fn adopted(service: &ServiceName, platform_name: Option<&str>, found: &Service) -> Option<ReleaseSpec> {
    let spec = found.spec.as_ref()?;
    let container = spec.task_template.as_ref().and_then(|task| task.container_spec.as_ref());
    let image = container.and_then(|container| container.image.clone()).unwrap_or_default();
    let plain = image.split('@').next().unwrap_or_default();
    let version =
        plain.rsplit_once(':').filter(|(_, tag)| !tag.contains('/')).map_or("found", |(_, tag)| tag);
    // Maps of the API have no order; JSON values do, and the id of the release is made from this.
    let json = serde_json::to_value(spec).ok()?.to_string();
    Some(ReleaseSpec {
        service: service.clone(),
        platform_name: platform_name.map(str::to_owned),
        version: version.to_owned(),
        artifact: Artifact::Document { source: format!("{FOUND}{}", name_of(found)), json, replicas: None },
        port: None,
        env: BTreeMap::new(),
        health: Vec::new(),
        drain_ms: 10_000,
        extra: BTreeMap::new(),
    })
}

fn restarts(tasks: &[Task]) -> u32 {
    u32::try_from(tasks.iter().filter(|task| has_failed(task)).count()).unwrap_or(u32::MAX)
}

fn address_of(task: &Task, service: &Service, nodes: &BTreeMap<String, String>) -> Option<String> {
    let node = nodes.get(task.node_id.as_deref()?)?;
    let taken = task.status.as_ref().and_then(|status| status.port_status.as_ref());
    let wanted = service.spec.as_ref().and_then(|spec| spec.endpoint_spec.as_ref());
    let of = |ports: Option<&Vec<bollard::models::EndpointPortConfig>>| {
        ports?.iter().find_map(|port| port.published_port.filter(|port| *port > 0))
    };
    let port = of(taken.and_then(|taken| taken.ports.as_ref()))
        .or(of(wanted.and_then(|wanted| wanted.ports.as_ref())))?;
    Some(format!("{node}:{port}"))
}

/// The one instance that a service of one task is.
fn instance(seen: &Seen, nodes: &BTreeMap<String, String>) -> Instance {
    let task = seen.tasks.iter().find(|task| is_live(task));
    Instance {
        id: InstanceId(name_of(&seen.service).to_owned()),
        address: task.and_then(|task| address_of(task, &seen.service, nodes)),
        ready: task.is_some_and(is_running),
        reached_at: None,
        restarts: restarts(&seen.tasks),
    }
}

fn workload_instances(seen: &Seen, spec: &ReleaseSpec, nodes: &BTreeMap<String, String>) -> Vec<Instance> {
    let mut live: Vec<&Task> = seen.tasks.iter().filter(|task| is_live(task) && is_of(task, spec)).collect();
    live.sort_by_key(|task| task.slot);
    let instance = |task: &&Task| {
        let slot = task.slot.unwrap_or(0);
        let of_slot: Vec<Task> = seen
            .tasks
            .iter()
            .filter(|other| other.slot == task.slot && is_of(other, spec))
            .cloned()
            .collect();
        Instance {
            id: InstanceId(format!(
                "{}.{slot}.{}",
                name_of(&seen.service),
                task.id.as_deref().unwrap_or_default()
            )),
            address: address_of(task, &seen.service, nodes),
            ready: is_running(task),
            reached_at: None,
            restarts: restarts(&of_slot),
        }
    };
    live.iter().map(instance).collect()
}

/// Whether anything of this id is meant.
pub(super) fn is_release(service: &Service, id: &ReleaseId) -> bool {
    label(service, labels::RELEASE) == id.as_str()
}

/// Base64 as the engine's API has it in a config.
mod base64_of {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

    pub(super) fn encode(bytes: &[u8]) -> String {
        let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
        for chunk in bytes.chunks(3) {
            let word = chunk.iter().fold(0_u32, |word, byte| word << 8 | u32::from(*byte))
                << (8 * (3 - chunk.len()));
            for at in 0..4 {
                let digit = DIGITS[(word >> (18 - 6 * at) & 63) as usize];
                text.push(if at <= chunk.len() { char::from(digit) } else { '=' });
            }
        }
        text
    }

    pub(super) fn decode(text: &str) -> Option<Vec<u8>> {
        cdpipe_model::secret::base64_decode(text)
    }

    #[cfg(test)]
    mod tests {
        #[test]
        fn what_is_encoded_is_decoded() {
            for text in ["", "a", "ab", "abc", "{\"x\": \"ü\"}"] {
                assert_eq!(
                    super::decode(&super::encode(text.as_bytes())).unwrap_or_default(),
                    text.as_bytes()
                );
            }
            assert_eq!(super::encode(b"lock"), "bG9jaw==");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_environments_keep_the_same_release_by_two_names() {
        let mut spec = crate::containers::tests::spec();
        spec.platform_name = Some("a-long-name-".repeat(6));
        let names = [kept_name(&spec), kept_name_in(&spec, "prod"), kept_name_in(&spec, "staging")];
        assert!(names.iter().all(|name| name.len() <= 64), "{names:?}");
        assert_ne!(names[1], names[2]);
        assert_ne!(names[0], names[1]);
    }

    #[test]
    fn a_release_that_was_brought_in_again_is_newer_than_those_after_its_first_time() {
        let config = |id: &str, created: &str, updated: Option<&str>| Config {
            id: Some(id.to_owned()),
            created_at: Some(format!("2026-11-28T{created}:00Z")),
            updated_at: updated.map(|at| format!("2026-11-28T{at}:00Z")),
            ..Default::default()
        };
        let mut kept = [
            config("v3", "12:00", None),
            config("v1", "10:00", Some("13:00")),
            config("v2", "11:00", Some("11:00")),
        ];
        sort_by_use(&mut kept);
        assert_eq!(kept.map(|config| config.id.unwrap()), ["v2", "v3", "v1"]);
    }
}
