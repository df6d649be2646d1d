//! The workload that the Swarm rolls by itself: an update at the version that was read, then watching what becomes of it.
//!
//! Going forward the Swarm may turn round by itself (`failure_action = rollback`): it does so also while cdpipe is dead. That is seen
//! and told as `reverted`. The way back is an update to the stable release's own specification with `failure_action = pause`; the
//! engine's "rollback to previous" is never asked for, because repeated after a crash it goes forward again.

use super::seen::{Seen, has_failed, is_live, is_of, is_release, is_workload, label, name_of, wanted_of};
use super::spec::{Form, fence as fence_of};
use super::steps::{running, trouble};
use super::{At, Swarm};
use crate::labels;
use bollard::models::{Service, ServiceUpdateStatusStateEnum as State};
use cdpipe_model::observe::Instance;
use cdpipe_model::release::ReleaseSpec;
use cdpipe_model::strategy::RollPolicy;
use cdpipe_model::{Fault, ReleaseId};
use std::time::{Duration, Instant};

/// Attempts while somebody else writes the service.
const TRIES: u32 = 5;
/// How long a task may find no node that suits it before that is believed.
const NO_NODE_FOR: Duration = Duration::from_secs(8);

/// What a look at the workload says.
enum Look {
    /// So many tasks of the release run.
    Rolling(usize),
    Done,
    Failed(Fault),
}

fn state(service: &Service) -> Option<State> {
    service.update_status.as_ref().and_then(|status| status.state)
}

fn is_turning_back(state: Option<State>) -> bool {
    matches!(state, Some(State::ROLLBACK_STARTED | State::ROLLBACK_PAUSED | State::ROLLBACK_COMPLETED))
}

impl At<'_> {
    pub(super) async fn roll(
        &self,
        spec: &ReleaseSpec,
        count: u32,
        policy: &RollPolicy,
        fence: Option<u64>,
    ) -> Result<Vec<Instance>, Fault> {
        let begun_before = self.keep(spec, policy.undo).await?;
        self.write(spec, count, policy, fence, begun_before).await?;
        self.follow(spec, count, policy).await?;
        self.end_instances(spec).await?;
        self.prune(&spec.service, policy.retain).await?;
        self.instances(spec).await
    }

    /// Has the service be of this release, if it is not already.
    async fn write(
        &self,
        spec: &ReleaseSpec,
        count: u32,
        policy: &RollPolicy,
        fence: Option<u64>,
        begun_before: bool,
    ) -> Result<(), Fault> {
        let name = Swarm::base_of(spec);
        let effect = self.session.call.effect.to_string();
        let wanted = self.service_spec(spec, &Form::Workload { count, policy }).await?;
        for attempt in 0..TRIES {
            let Some(service) = self.service(name).await? else {
                if fence.is_some() {
                    return Err(moved(name, "removed it"));
                }
                match self.create(wanted.clone()).await {
                    Err(fault) if fault.kind == "conflict" => continue,
                    result => return result,
                }
            };
            self.check_epoch(&service)?;
            let owner = label(&service, labels::SERVICE);
            let place = label(&service, labels::ENVIRONMENT);
            if !owner.is_empty()
                && (owner != spec.service.as_str() || place != self.swarm.config.environment.as_str())
            {
                return Err(Fault::new(
                    "unmanaged",
                    format!("the Swarm service {name} is that of {owner} in {place}"),
                )
                .help("give one of the two another `name`"));
            }
            let turned = begun_before && !policy.undo && is_turning_back(state(&service));
            if is_release(&service, &spec.id()) {
                let resting = !matches!(state(&service), Some(State::PAUSED | State::ROLLBACK_PAUSED));
                let ours = label(&service, labels::EFFECT) == effect;
                if ours || (resting && wanted_of(&service) == count && policy.undo) {
                    return Ok(());
                }
            } else if turned {
                // Written before a crash, and turned round by the Swarm meanwhile: what follows sees it.
                return Ok(());
            }
            if fence.is_some_and(|fence| !may_write(&service, &spec.id(), labels::run_of(&effect), fence)) {
                return Err(moved(name, &changed_by(&service)));
            }
            if self.update(&service, wanted.clone()).await? {
                return Ok(());
            }
            self.session
                .call
                .sink
                .progress(&format!("{name} was written by somebody else; looking again ({})", attempt + 1));
        }
        Err(moved(name, "writes it all the time"))
    }

    /// Waits for the end of the roll.
    async fn follow(&self, spec: &ReleaseSpec, count: u32, policy: &RollPolicy) -> Result<(), Fault> {
        let name = Swarm::base_of(spec);
        let begun = Instant::now();
        let mut steady_since: Option<Instant> = None;
        let mut said = String::new();
        let mut ours: Option<u64> = None;
        loop {
            let seen = self.workload(spec).await?;
            let Some(seen) = seen else { return Err(moved(name, "removed it")) };
            if is_release(&seen.service, &spec.id()) {
                // From the first look on it is what we wrote, unless somebody else writes.
                let now = fence_of(seen.service.spec.as_ref());
                if *ours.get_or_insert(now) != now {
                    return Err(moved(name, &changed_by(&seen.service)));
                }
            }
            let look = self.look(&seen, spec, count, policy, begun).await?;
            let status = match &look {
                Look::Failed(fault) => return Err(fault.clone()),
                Look::Done => {
                    let fresh = state(&seen.service).is_none() && !policy.undo;
                    let since = *steady_since.get_or_insert_with(Instant::now);
                    // Nobody monitors a service that was just made but we.
                    if !fresh || since.elapsed() >= Duration::from_millis(policy.monitor_ms) {
                        return Ok(());
                    }
                    format!("{count} of {count} tasks run {}, monitored", spec.version)
                }
                Look::Rolling(ready) => {
                    steady_since = None;
                    format!("{ready} of {count} tasks run {}", spec.version)
                }
            };
            if status != said {
                self.session.call.sink.progress(&status);
                said = status;
            }
            self.pause("the Swarm was rolling").await?;
        }
    }

    async fn workload(&self, spec: &ReleaseSpec) -> Result<Option<Seen>, Fault> {
        let Some(service) = self.service(Swarm::base_of(spec)).await? else { return Ok(None) };
        let tasks = self.tasks(service.id.clone().into_iter().collect()).await?;
        Ok(Some(Seen { service, tasks }))
    }

    async fn look(
        &self,
        seen: &Seen,
        spec: &ReleaseSpec,
        count: u32,
        policy: &RollPolicy,
        begun: Instant,
    ) -> Result<Look, Fault> {
        let state = state(&seen.service);
        let one = std::slice::from_ref(seen);
        let ready = running(one, spec);
        if !is_release(&seen.service, &spec.id()) {
            return Ok(match state {
                Some(State::ROLLBACK_STARTED) => {
                    self.session.call.sink.progress("the Swarm goes back by itself");
                    Look::Rolling(ready)
                }
                Some(State::ROLLBACK_COMPLETED | State::ROLLBACK_PAUSED) if !policy.undo => {
                    let trouble = trouble(one, spec, None, false);
                    let fault = self.not_ready(spec, 0, count, &trouble, false).await;
                    let whole = state == Some(State::ROLLBACK_COMPLETED);
                    let end = if whole {
                        "the Swarm went back by itself"
                    } else {
                        "the Swarm went back by itself, and stopped halfway"
                    };
                    let why = match trouble.errors.first() {
                        Some((_, why)) => why.clone(),
                        None => said_of(&seen.service),
                    };
                    let why = self.swarm.masker.mask(&why).into_owned();
                    Look::Failed(
                        Fault::new(
                            "reverted",
                            format!("{} {} did not hold, and {end}: {why}", spec.service, spec.version),
                        )
                        .details(fault.details),
                    )
                }
                _ => Look::Failed(moved(name_of(&seen.service), &changed_by(&seen.service))),
            });
        }
        let others = seen.tasks.iter().any(|task| is_live(task) && !is_of(task, spec));
        let live = seen.tasks.iter().filter(|task| is_live(task) && is_of(task, spec)).count();
        let at_rest =
            matches!(state, None | Some(State::EMPTY | State::COMPLETED | State::ROLLBACK_COMPLETED));
        if at_rest && ready == count as usize && live == count as usize && !others {
            return Ok(Look::Done);
        }
        let since = seen.service.updated_at.as_deref().filter(|_| state.is_some());
        let trouble = trouble(one, spec, since, policy.undo);
        if matches!(state, Some(State::PAUSED | State::ROLLBACK_PAUSED)) {
            // The hold is a change of the service too, and newer than what led to it.
            let trouble = super::steps::trouble(one, spec, None, policy.undo);
            let mut fault = self.not_ready(spec, ready, count, &trouble, false).await;
            fault.message = format!("the Swarm holds the roll: {}", fault.message);
            return Ok(Look::Failed(fault));
        }
        if trouble.no_node.is_some() && begun.elapsed() >= NO_NODE_FOR {
            return Ok(Look::Failed(self.not_ready(spec, ready, count, &trouble, false).await));
        }
        // A service that was just made has no update that the Swarm would give up.
        let made_now = state.is_none() && !others && !policy.undo;
        #[allow(clippy::cast_precision_loss, reason = "a count of tasks")]
        let share = 100.0 * trouble.failed.len() as f64 / f64::from(count.max(1));
        if made_now && share > policy.max_failures_percent {
            return Ok(Look::Failed(self.not_ready(spec, ready, count, &trouble, false).await));
        }
        if policy.undo
            && at_rest
            && seen.tasks.iter().filter(|task| is_of(task, spec) && has_failed(task)).count()
                > 4 * count as usize
        {
            return Ok(Look::Failed(self.not_ready(spec, ready, count, &trouble, false).await));
        }
        Ok(Look::Rolling(ready))
    }

    /// Instances of other releases that were stepped: the workload serves now.
    async fn end_instances(&self, spec: &ReleaseSpec) -> Result<(), Fault> {
        for one in self.seen(&spec.service).await? {
            if !is_workload(&one.service) {
                self.scale(name_of(&one.service), |_| 0).await?;
                self.delete(name_of(&one.service)).await?;
            }
        }
        Ok(())
    }
}

/// Whether a service is as it was seen. One that this run has brought to the release since then has another fence by that, and its
/// number of tasks is this run's to change.
fn may_write(service: &Service, release: &ReleaseId, run: &str, fence: u64) -> bool {
    fence_of(service.spec.as_ref()) == fence
        || (is_release(service, release) && label(service, labels::RUN) == run)
}

fn said_of(service: &Service) -> String {
    let message = service.update_status.as_ref().and_then(|status| status.message.clone());
    message.unwrap_or_else(|| "more tasks failed than may".to_owned())
}

fn changed_by(service: &Service) -> String {
    let container = service.spec.as_ref().and_then(|spec| spec.task_template.as_ref());
    let image = container
        .and_then(|task| task.container_spec.as_ref())
        .and_then(|container| container.image.as_deref());
    format!("changed it meanwhile (its image is {} now)", image.unwrap_or("unknown"))
}

fn moved(name: &str, what: &str) -> Fault {
    Fault::new("moved", format!("the Swarm service {name} is not as it was seen: somebody else {what}"))
        .help("see who changes it; then run again, and the deploy begins from what is there")
}

#[cfg(test)]
mod tests {
    use super::*;
    use bollard::models::{ServiceSpec, ServiceSpecMode, ServiceSpecModeReplicated};
    use std::collections::HashMap;

    fn service(release: &str, run: &str, replicas: i64) -> Service {
        let labels = [(labels::RELEASE, release), (labels::RUN, run)];
        let labels: HashMap<String, String> =
            labels.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let replicated = Some(ServiceSpecModeReplicated { replicas: Some(replicas) });
        let spec = ServiceSpec {
            labels: Some(labels),
            mode: Some(ServiceSpecMode { replicated, ..Default::default() }),
            ..Default::default()
        };
        Service { spec: Some(spec), ..Default::default() }
    }

    #[test]
    fn what_somebody_else_did_is_seen_also_where_the_release_stays() {
        let seen = service("r1", "before", 3);
        let fence = fence_of(seen.spec.as_ref());
        let may = |service: &Service| may_write(service, &ReleaseId::from("r1"), "now", fence);
        assert!(may(&seen));
        assert!(!may(&service("r1", "before", 5)), "scaled by hand");
        assert!(!may(&service("r0", "before", 3)), "another release");
        assert!(may(&service("r1", "now", 5)), "this run wrote it");
        assert!(!may(&service("r0", "now", 3)), "this run wrote it, and it is no more what it wrote");
    }
}
