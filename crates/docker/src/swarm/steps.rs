//! What cdpipe does step by step: instances start, get ready, and go, each a Swarm service of one task.

use super::At;
use super::seen::{
    Seen, error_of, has_failed, is_live, is_of, is_release, is_running, is_workload, label, name_of,
    state_of, wanted_of,
};
use super::spec::{EPOCH, Form};
use crate::labels;
use bollard::models::{Service, ServiceSpec, Task, TaskState};
use cdpipe_model::observe::Instance;
use cdpipe_model::release::ReleaseSpec;
use cdpipe_model::strategy::OldRelease;
use cdpipe_model::{Fault, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// Ports of a node that instances get: below those that systems hand out by themselves. A task that a Swarm starts again has its
/// service's port, so a router finds it where it was.
const PORTS: std::ops::Range<u16> = 30_000..32_768;
/// How long a task may find no node that suits it before that is believed.
const NO_NODE_FOR: Duration = Duration::from_secs(8);
/// Lines of a log that explain a failure.
const LOG_LINES: usize = 10;
/// Attempts while somebody else writes the same service.
const TRIES: u32 = 10;

/// Why tasks do not come up.
#[derive(Default)]
pub(super) struct Trouble {
    /// Instances that failed for good, by the service and slot.
    pub(super) failed: BTreeSet<(String, i64)>,
    /// Newest first: task, and what it says.
    pub(super) errors: Vec<(String, String)>,
    /// No node suits.
    pub(super) no_node: Option<String>,
}

/// What is wrong with the tasks of a release. `patient`: a task that ended once may come up when it is started again.
pub(super) fn trouble(seen: &[Seen], spec: &ReleaseSpec, since: Option<&str>, patient: bool) -> Trouble {
    let mut trouble = Trouble::default();
    for one in seen {
        let mut falls: BTreeMap<i64, u32> = BTreeMap::new();
        for task in one.tasks.iter().filter(|task| is_of(task, spec)) {
            if since.is_some_and(|since| task.created_at.as_deref().is_some_and(|at| at < since)) {
                continue;
            }
            let slot = task.slot.unwrap_or(0);
            let error = error_of(task);
            if has_failed(task) {
                let fallen = falls.entry(slot).or_default();
                *fallen += 1;
                let hopeless = matches!(state_of(task), Some(TaskState::REJECTED | TaskState::COMPLETE))
                    || error.as_deref().is_some_and(|error| error.contains("unhealthy"));
                if hopeless || *fallen >= 2 || !patient {
                    trouble.failed.insert((name_of(&one.service).to_owned(), slot));
                }
                let text =
                    error.unwrap_or_else(|| "its health check failed, or it ended by itself".to_owned());
                let name = format!("{}.{slot}", name_of(&one.service));
                trouble.errors.push((task.id.clone().unwrap_or_default(), format!("{name}: {text}")));
            } else if is_live(task) && state_of(task) == Some(&TaskState::PENDING) && error.is_some() {
                trouble.no_node = error;
            }
        }
    }
    trouble
}

impl At<'_> {
    pub(super) fn check_epoch(&self, service: &Service) -> Result<(), Fault> {
        let there: u64 = label(service, EPOCH).parse().unwrap_or(0);
        let ours = self.session.call.epoch;
        if there <= ours {
            return Ok(());
        }
        Err(Fault::new(
            "stale-epoch",
            format!(
                "{} was changed by run {}, which took the lock later than this one (epoch {there}, ours is {ours})",
                name_of(service),
                label(service, labels::RUN)
            ),
        )
        .help("this run lost its lock while it was away; nothing more is done by it"))
    }

    /// Has a service so many tasks, everything else as it is, in the name of this effect.
    pub(super) async fn scale(&self, name: &str, wanted: impl Fn(&Service) -> u32) -> Result<(), Fault> {
        let effect = self.session.call.effect.as_str();
        for _ in 0..TRIES {
            let Some(service) = self.service(name).await? else { return Ok(()) };
            self.check_epoch(&service)?;
            let count = wanted(&service);
            if count == wanted_of(&service) {
                return Ok(());
            }
            let mut spec: ServiceSpec = service.spec.clone().unwrap_or_default();
            if let Some(replicated) = spec.mode.as_mut().and_then(|mode| mode.replicated.as_mut()) {
                replicated.replicas = Some(i64::from(count));
            }
            let said = spec.labels.get_or_insert_default();
            said.insert(EPOCH.to_owned(), self.session.call.epoch.to_string());
            said.insert(labels::RUN.to_owned(), labels::run_of(effect).to_owned());
            said.insert(labels::EFFECT.to_owned(), effect.to_owned());
            if self.update(&service, spec).await? {
                return Ok(());
            }
        }
        Err(Fault::new("moved", format!("somebody else writes the service {name} all the time")))
    }

    pub(super) async fn ensure(
        &self,
        spec: &ReleaseSpec,
        count: u32,
        extra_env: &BTreeMap<String, Value>,
    ) -> Result<Vec<Instance>, Fault> {
        let id = spec.id();
        self.keep(spec, false).await?;
        let extra = match extra_env.is_empty() {
            true => String::new(),
            false => serde_json::to_string(extra_env).map_err(|error| {
                Fault::new("internal", format!("an environment cannot be written down: {error}"))
            })?,
        };
        let seen = self.seen(&spec.service).await?;
        for one in &seen {
            self.check_epoch(&one.service)?;
        }
        let workload = seen.iter().find(|one| is_workload(&one.service) && is_release(&one.service, &id));
        if let Some(workload) = workload.filter(|_| extra.is_empty()) {
            self.scale(name_of(&workload.service), |there| wanted_of(there).max(count)).await?;
            return self.instances(spec).await;
        }
        let ours: Vec<&Seen> =
            seen.iter().filter(|one| !is_workload(&one.service) && is_release(&one.service, &id)).collect();
        let mut there = 0;
        for one in ours.iter().filter(|one| label(&one.service, labels::EXTRA) == extra) {
            self.scale(name_of(&one.service), |_| 1).await?;
            there += 1;
        }
        let mut numbers: BTreeSet<u32> =
            ours.iter().filter_map(|one| name_of(&one.service).rsplit_once('-')?.1.parse().ok()).collect();
        let mut taken = if there < count { self.ports_taken().await? } else { BTreeSet::new() };
        while there < count {
            let number = (1..).find(|number| !numbers.contains(number)).unwrap_or(u32::MAX);
            numbers.insert(number);
            let port = spec.port.and_then(|_| {
                let environment = &self.swarm.config.environment;
                port_of(&format!("{environment} {} {id} {number}", spec.service), &taken)
            });
            taken.extend(port);
            let form = Form::Instance { number, port, extra_env };
            let service = self.service_spec(spec, &form).await?;
            let name = service.name.clone().unwrap_or_default();
            match self.create(service).await {
                // Asked twice while the engine was away: it is there, and the next look counts it. The same release in another environment
                // of this Swarm has the same names: that one is not ours, and the next number may be free.
                Err(fault) if fault.kind == "conflict" => {
                    if self.service(&name).await?.is_some_and(|there| !self.is_ours(&there, spec)) {
                        continue;
                    }
                }
                result => result?,
            }
            there += 1;
            self.session
                .call
                .sink
                .progress(&format!("{there} of {count} instances of {} are started", spec.version));
        }
        self.instances(spec).await
    }

    /// Whether a service is one of this release in this environment.
    fn is_ours(&self, service: &Service, spec: &ReleaseSpec) -> bool {
        label(service, labels::ENVIRONMENT) == self.swarm.config.environment.as_str()
            && label(service, labels::SERVICE) == spec.service.as_str()
            && is_release(service, &spec.id())
    }

    /// Ports that services of this Swarm have on its nodes.
    async fn ports_taken(&self) -> Result<BTreeSet<u16>, Fault> {
        let all = self.services(Vec::new()).await?;
        Ok(all
            .iter()
            .filter_map(|service| service.spec.as_ref()?.endpoint_spec.as_ref()?.ports.as_ref())
            .flatten()
            .filter_map(|port| u16::try_from(port.published_port?).ok())
            .collect())
    }

    pub(super) async fn await_ready(
        &self,
        spec: &ReleaseSpec,
        count: u32,
        may_fail: u32,
    ) -> Result<Vec<Instance>, Fault> {
        let within_ms = spec.health.iter().map(|health| health.within_ms).max().unwrap_or(60_000);
        let within = Duration::from_millis(within_ms);
        let begun = Instant::now();
        let mut said = usize::MAX;
        loop {
            let seen = self.seen(&spec.service).await?;
            let ready = running(&seen, spec);
            if ready != said {
                said = ready;
                self.session
                    .call
                    .sink
                    .progress(&format!("{ready} of {count} instances of {} are ready", spec.version));
            }
            let trouble = trouble(&seen, spec, None, true);
            let (all, may_fail) = (count as usize, may_fail as usize);
            let nowhere = trouble.no_node.is_some() && begun.elapsed() >= NO_NODE_FOR;
            let late = begun.elapsed() >= within || self.session.left() < Duration::from_secs(1);
            // Who may fail is waited for as long as it may still come: a good batch is whole.
            let coming = all.saturating_sub(ready + lost(&seen, spec, &trouble));
            let enough = ready + may_fail >= all;
            if ready >= all || (enough && (coming == 0 || nowhere || late)) {
                return self.instances(spec).await;
            }
            let clear = !enough && trouble.failed.len() > may_fail;
            if clear || nowhere || late {
                return Err(self.not_ready(spec, ready, count, &trouble, late && !clear).await);
            }
            self.pause("waiting for instances to be ready").await?;
        }
    }

    /// The tasks' own words and the last lines of the log.
    pub(super) async fn not_ready(
        &self,
        spec: &ReleaseSpec,
        ready: usize,
        count: u32,
        trouble: &Trouble,
        late: bool,
    ) -> Fault {
        let why = match (&trouble.no_node, trouble.errors.first()) {
            (Some(why), _) => format!(": {why}"),
            (None, Some((_, why))) => format!(": {why}"),
            (None, None) if late => " in time".to_owned(),
            (None, None) => String::new(),
        };
        let mut details: Vec<String> = Vec::new();
        for (_, error) in trouble.errors.iter().take(3) {
            if !details.contains(error) {
                details.push(error.clone());
            }
        }
        if let Some((task, _)) = trouble.errors.first() {
            let lines = self.task_log(task, LOG_LINES).await.unwrap_or_default();
            details.extend(lines.into_iter().map(|line| format!("| {line}")));
        }
        let text =
            format!("{ready} of {count} instances of {} {} became ready{why}", spec.service, spec.version);
        Fault::new("not-ready", self.swarm.masker.mask(&text).into_owned())
            .details(details.iter().map(|line| self.swarm.masker.mask(line).into_owned()))
    }

    pub(super) async fn stop(
        &self,
        spec: &ReleaseSpec,
        instances: &[Instance],
        old: Option<OldRelease>,
        retain: u32,
    ) -> Result<Vec<Instance>, Fault> {
        let id = spec.id();
        let seen = self.seen(&spec.service).await?;
        let mut going: Vec<String> = Vec::new();
        for one in &seen {
            let name = name_of(&one.service);
            if is_workload(&one.service) {
                let own = one.tasks.iter().any(|task| is_live(task) && is_of(task, spec));
                let others = one.tasks.iter().any(|task| is_live(task) && !is_of(task, spec));
                self.check_epoch(&one.service)?;
                if !instances.is_empty() {
                    let named = instances
                        .iter()
                        .filter(|instance| instance.id.as_str().starts_with(&format!("{name}.")))
                        .count();
                    let fewer = u32::try_from(named).unwrap_or(u32::MAX);
                    let effect = self.session.call.effect.as_str();
                    self.scale(name, |there| without(there, fewer, effect)).await?;
                } else if (own || is_release(&one.service, &id)) && !others {
                    self.scale(name, |_| 0).await?;
                    self.gone(std::slice::from_ref(&name.to_owned()), spec).await?;
                    if old != Some(OldRelease::ScaleToZero) {
                        self.delete(name).await?;
                    }
                }
            } else if is_release(&one.service, &id)
                && (instances.is_empty() || instances.iter().any(|instance| instance.id.as_str() == name))
            {
                self.check_epoch(&one.service)?;
                self.scale(name, |_| 0).await?;
                going.push(name.to_owned());
            }
        }
        self.gone(&going, spec).await?;
        for name in &going {
            self.delete(name).await?;
        }
        if old == Some(OldRelease::Remove) {
            self.forget(spec).await?;
        }
        if old.is_some() {
            self.prune(&spec.service, retain).await?;
        }
        self.instances(spec).await
    }

    /// Waits until no task of these services has a container any more; the Swarm asks them to end, and kills them after the drain.
    async fn gone(&self, names: &[String], spec: &ReleaseSpec) -> Result<(), Fault> {
        let until = Instant::now() + Duration::from_millis(spec.drain_ms) + Duration::from_secs(15);
        while !names.is_empty() && Instant::now() < until {
            let seen = self.seen(&spec.service).await?;
            let there = seen
                .iter()
                .filter(|one| names.iter().any(|name| name == name_of(&one.service)))
                .flat_map(|one| &one.tasks)
                .any(has_container);
            if !there {
                return Ok(());
            }
            self.pause("waiting for instances to end").await?;
        }
        Ok(())
    }
}

/// A port that nobody has, looked for from a place that follows from who wants it: two deploys that look at one time would both find the
/// first one free, and a Swarm starts a task on a port that is taken only once it is given back.
fn port_of(wants: &str, taken: &BTreeSet<u16>) -> Option<u16> {
    let span = PORTS.end - PORTS.start;
    let first = u16::try_from(labels::fnv(wants) % u64::from(span)).unwrap_or(0);
    (0..span).map(|step| PORTS.start + (first + step) % span).find(|port| !taken.contains(port))
}

/// How many tasks a service has without so many of them. What this effect has written already is not done a second time: its answer was
/// lost, or it is gone on with.
fn without(service: &Service, fewer: u32, effect: &str) -> u32 {
    let there = wanted_of(service);
    if label(service, labels::EFFECT) == effect { there } else { there.saturating_sub(fewer) }
}

pub(super) fn running(seen: &[Seen], spec: &ReleaseSpec) -> usize {
    seen.iter().flat_map(|one| &one.tasks).filter(|task| is_running(task) && is_of(task, spec)).count()
}

/// How many instances failed for good, and have not come up all the same.
fn lost(seen: &[Seen], spec: &ReleaseSpec, trouble: &Trouble) -> usize {
    let runs = |(name, slot): &&(String, i64)| {
        let services = seen.iter().filter(|one| name_of(&one.service) == name);
        services
            .flat_map(|one| &one.tasks)
            .any(|task| task.slot.unwrap_or(0) == *slot && is_running(task) && is_of(task, spec))
    };
    trouble.failed.iter().filter(|failed| !runs(failed)).count()
}

fn has_container(task: &Task) -> bool {
    matches!(
        state_of(task),
        Some(TaskState::RUNNING | TaskState::STARTING | TaskState::READY | TaskState::PREPARING)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use bollard::models::{ServiceSpecMode, ServiceSpecModeReplicated};
    use std::collections::HashMap;

    #[test]
    fn an_instance_that_came_up_after_all_is_not_lost() {
        let spec = crate::containers::tests::spec();
        let task = |slot, state, wanted| Task {
            slot: Some(slot),
            desired_state: Some(wanted),
            status: Some(bollard::models::TaskStatus { state: Some(state), ..Default::default() }),
            spec: Some(bollard::models::TaskSpec {
                container_spec: Some(bollard::models::TaskSpecContainerSpec {
                    labels: Some(HashMap::from([(labels::RELEASE.to_owned(), spec.id().to_string())])),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        let ended = |slot| task(slot, TaskState::FAILED, TaskState::SHUTDOWN);
        let tasks = vec![
            task(1, TaskState::RUNNING, TaskState::RUNNING),
            ended(1),
            ended(1),
            task(2, TaskState::STARTING, TaskState::RUNNING),
            ended(2),
            ended(2),
            task(3, TaskState::STARTING, TaskState::RUNNING),
        ];
        let named = ServiceSpec { name: Some("web".to_owned()), ..Default::default() };
        let seen = [Seen { service: Service { spec: Some(named), ..Default::default() }, tasks }];
        let trouble = trouble(&seen, &spec, None, true);
        assert_eq!(trouble.failed.len(), 2);
        // Of three, one runs and one is lost: the third is still coming.
        assert_eq!((running(&seen, &spec), lost(&seen, &spec, &trouble)), (1, 1));
    }

    #[test]
    fn those_that_look_for_a_port_at_one_time_find_several() {
        let nobody = BTreeSet::new();
        let found: BTreeSet<u16> =
            (0..8).filter_map(|n| port_of(&format!("prod web r1 {n}"), &nobody)).collect();
        assert_eq!(found.len(), 8, "{found:?}");
        let all: BTreeSet<u16> = PORTS.collect();
        for left in [PORTS.start, PORTS.end - 1] {
            let others = all.iter().copied().filter(|port| *port != left).collect();
            assert_eq!(port_of("prod web r1 1", &others), Some(left));
        }
        assert_eq!(port_of("prod web r1 1", &all), None);
    }

    #[test]
    fn tasks_are_taken_away_once() {
        let service = |effect: &str, replicas| {
            let replicated = Some(ServiceSpecModeReplicated { replicas: Some(replicas) });
            let spec = ServiceSpec {
                labels: Some(HashMap::from([(labels::EFFECT.to_owned(), effect.to_owned())])),
                mode: Some(ServiceSpecMode { replicated, ..Default::default() }),
                ..Default::default()
            };
            Service { spec: Some(spec), ..Default::default() }
        };
        assert_eq!(without(&service("run/4", 5), 2, "run/7"), 3);
        assert_eq!(without(&service("run/7", 3), 2, "run/7"), 3, "its answer was lost");
        assert_eq!(without(&service("run/4", 1), 2, "run/7"), 0);
    }
}
