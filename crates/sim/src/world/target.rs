//! The simulated target.

use super::{Bug, Place, READY_AFTER_MS, Release, State, World};
use crate::finding::FindingKind;
use cdpipe_engine::Clock;
use cdpipe_model::action::RunAction;
use cdpipe_model::expr::{MeasureName, Subject};
use cdpipe_model::id::InstanceId;
use cdpipe_model::objects::{ApplySpec, ObjectWas, Surveyed};
use cdpipe_model::observe::{Instance, Observation, ObservedRelease};
use cdpipe_model::plan::LockKey;
use cdpipe_model::ports::{Call, LockOwner, LockState, PortResult, Target};
use cdpipe_model::release::ReleaseSpec;
use cdpipe_model::strategy::{OldRelease, RollPolicy};
use cdpipe_model::{EnvName, Fault, ServiceName, Value};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// One environment's target.
pub(crate) struct SimTarget {
    pub(crate) world: Arc<World>,
    pub(crate) environment: EnvName,
}

impl SimTarget {
    fn place(&self, service: &ServiceName) -> Place {
        (self.environment.clone(), service.clone())
    }
}

fn seen(releases: &[Release], now_ms: u64) -> Vec<ObservedRelease> {
    releases
        .iter()
        .map(|release| ObservedRelease {
            id: release.id.clone(),
            spec: release.spec.clone(),
            wanted: release.wanted,
            instances: release.instances.iter().map(|instance| instance.seen(now_ms)).collect(),
        })
        .collect()
}

pub(super) fn instances_of(state: &State, place: &Place, spec: &ReleaseSpec, now_ms: u64) -> Vec<Instance> {
    let id = spec.id();
    let releases = state.services.get(place).into_iter().flatten();
    let release = releases.into_iter().find(|release| release.id == id);
    release.into_iter().flat_map(|release| &release.instances).map(|instance| instance.seen(now_ms)).collect()
}

impl Target for SimTarget {
    fn resolve<'a>(&'a self, call: Call<'a>, spec: &'a ReleaseSpec) -> PortResult<'a, ReleaseSpec> {
        Box::pin(self.world.carry(call, move |_, _| Ok(crate::given::resolved(spec))))
    }

    fn observe<'a>(
        &'a self,
        call: Call<'a>,
        service: &'a ServiceName,
        _platform_name: Option<&'a str>,
    ) -> PortResult<'a, Observation> {
        Box::pin(async move {
            let place = self.place(service);
            let measures = self.world.measures(&call);
            let node = call.step.node;
            let given = Arc::clone(&self.world.given);
            self.world
                .carry(call, move |state, now_ms| {
                    let releases = state.services.get(&place).map(Vec::as_slice).unwrap_or_default();
                    let mut observed = seen(releases, now_ms);
                    if measures {
                        for release in &mut observed {
                            let side = if state.good.contains(&(place.clone(), release.id.clone())) {
                                Subject::Stable
                            } else {
                                Subject::Candidate
                            };
                            ail(release, |measure| given.measured(node, side, measure));
                        }
                    }
                    Ok(Observation {
                        releases: observed,
                        unmanaged: Vec::new(),
                        table: None,
                        fence: None,
                        autoscaled: None,
                    })
                })
                .await
        })
    }

    fn survey<'a>(&'a self, call: Call<'a>, spec: &'a ApplySpec) -> PortResult<'a, Surveyed> {
        Box::pin(
            self.world
                .carry(call, move |_, _| Ok(Surveyed { files: spec.files.clone(), objects: Vec::new() })),
        )
    }

    fn apply_set<'a>(
        &'a self,
        call: Call<'a>,
        _spec: &'a ApplySpec,
        _objects: &'a [ObjectWas],
    ) -> PortResult<'a, ()> {
        Box::pin(self.world.carry(call, move |_, _| Ok(())))
    }

    fn take_back_set<'a>(
        &'a self,
        call: Call<'a>,
        _spec: &'a ApplySpec,
        _objects: &'a [ObjectWas],
    ) -> PortResult<'a, ()> {
        Box::pin(self.world.carry(call, move |_, _| Ok(())))
    }

    fn ensure<'a>(
        &'a self,
        call: Call<'a>,
        spec: &'a ReleaseSpec,
        count: u32,
        extra_env: &'a BTreeMap<String, Value>,
    ) -> PortResult<'a, Vec<Instance>> {
        Box::pin(async move {
            let place = self.place(&spec.service);
            let canary = !extra_env.is_empty();
            let never = self.world.given.never_ready(call.step.node);
            let too_early = self.world.bug == Some(Bug::ReadyTooEarly);
            self.world
                .carry(call, move |state, now_ms| {
                    let id = spec.id();
                    let good = state.good.contains(&(place.clone(), id.clone()));
                    let releases = state.services.entry(place.clone()).or_default();
                    if !releases.iter().any(|release| release.id == id) {
                        releases.push(Release {
                            id: id.clone(),
                            spec: spec.clone(),
                            wanted: 0,
                            instances: Vec::new(),
                        });
                    }
                    let find = |release: &&mut Release| release.id == id;
                    let there = releases.iter_mut().find(find).map_or(0, |release| {
                        release.wanted = release.wanted.max(count);
                        release.instances.iter().filter(|instance| instance.canary == canary).count()
                    });
                    let ready_at_ms = (good || !never).then_some(now_ms + READY_AFTER_MS);
                    for _ in there..count as usize {
                        let instance = state.new_instance(spec, ready_at_ms, canary);
                        let releases = state.services.entry(place.clone()).or_default();
                        if let Some(release) = releases.iter_mut().find(find) {
                            release.instances.push(instance);
                            release.instances.sort_by_key(|instance| instance.canary);
                        }
                    }
                    let mut answer = instances_of(state, &place, spec, now_ms);
                    if too_early {
                        answer.iter_mut().for_each(|instance| instance.ready = true);
                    }
                    Ok(answer)
                })
                .await
        })
    }

    fn await_ready<'a>(
        &'a self,
        call: Call<'a>,
        spec: &'a ReleaseSpec,
        count: u32,
        may_fail: u32,
    ) -> PortResult<'a, Vec<Instance>> {
        Box::pin(async move {
            let place = self.place(&spec.service);
            let too_early = self.world.bug == Some(Bug::ReadyTooEarly);
            let within_ms = spec.health.iter().map(|health| health.within_ms).max().unwrap_or(60_000);
            let give_up_ms = self.world.now_ms() + within_ms;
            // The call is hit once; after that it looks again and again, as a health check does.
            let mut answer = {
                let place = place.clone();
                self.world
                    .carry(call, move |state, now_ms| Ok(instances_of(state, &place, spec, now_ms)))
                    .await?
            };
            loop {
                if too_early {
                    answer.iter_mut().for_each(|instance| instance.ready = true);
                }
                let ready = answer.iter().filter(|instance| instance.ready).count();
                if ready + may_fail as usize >= count as usize {
                    return Ok(answer);
                }
                let now_ms = self.world.now_ms();
                let next_ms = {
                    let state = self.world.state();
                    let releases = state.services.get(&place).into_iter().flatten();
                    releases
                        .flat_map(|release| &release.instances)
                        .filter_map(|instance| instance.ready_at_ms)
                        .filter(|ready_ms| *ready_ms > now_ms)
                        .min()
                };
                if now_ms >= give_up_ms {
                    let failed = format!("{ready} of {count} instances are ready");
                    return Err(Fault::new("not-ready", failed)
                        .details(["simulated: the test says `fails = true`".to_owned()]));
                }
                tokio::select! {
                    biased;
                    () = call.cancel.cancelled() => return Err(Fault::new("cancelled", "it was stopped")),
                    () = self.world.clock.sleep_until(next_ms.unwrap_or(give_up_ms).min(give_up_ms)) => {}
                }
                answer = instances_of(&self.world.state(), &place, spec, self.world.now_ms());
            }
        })
    }

    fn stop<'a>(
        &'a self,
        call: Call<'a>,
        spec: &'a ReleaseSpec,
        instances: &'a [Instance],
        old: Option<OldRelease>,
        _retain: u32,
    ) -> PortResult<'a, Vec<Instance>> {
        Box::pin(async move {
            let place = self.place(&spec.service);
            let given = Arc::clone(&self.world.given);
            let forgets = self.world.bug == Some(Bug::StopForgets);
            if self.world.bug == Some(Bug::StopRefuses) {
                return Err(Fault::new("test", "nothing can be stopped here"));
            }
            self.world
                .carry(call, move |state, now_ms| {
                    let id = spec.id();
                    let before = state.reachable(&place, &given, now_ms);
                    let there: Vec<InstanceId> = state
                        .services
                        .get(&place)
                        .into_iter()
                        .flatten()
                        .filter(|release| release.id == id)
                        .flat_map(|release| &release.instances)
                        .map(|instance| instance.id.clone())
                        .collect();
                    let going: Vec<InstanceId> = there
                        .into_iter()
                        .filter(|id| instances.is_empty() || instances.iter().any(|named| named.id == *id))
                        .collect();
                    check_unrouted(state, &place, &going, now_ms);
                    let releases = state.services.entry(place.clone()).or_default();
                    if let Some(release) =
                        releases.iter_mut().find(|release| release.id == id).filter(|_| !forgets)
                    {
                        release.instances.retain(|instance| !going.contains(&instance.id));
                        release.wanted = u32::try_from(release.instances.len()).unwrap_or(u32::MAX);
                    }
                    if old == Some(OldRelease::Remove) && !forgets {
                        releases.retain(|release| release.id != id);
                    }
                    let what = format!("{} is stopped", spec.version);
                    state.check_served(&place, &given, before, now_ms, &what);
                    Ok(instances_of(state, &place, spec, now_ms))
                })
                .await
        })
    }

    fn roll<'a>(
        &'a self,
        call: Call<'a>,
        spec: &'a ReleaseSpec,
        count: u32,
        policy: &'a RollPolicy,
        _fence: Option<u64>,
    ) -> PortResult<'a, Vec<Instance>> {
        Box::pin(self.world.roll(call, self.place(&spec.service), spec, count, policy))
    }

    fn exec<'a>(
        &'a self,
        call: Call<'a>,
        _spec: &'a ReleaseSpec,
        _instance: &'a Instance,
        run: &'a RunAction,
    ) -> PortResult<'a, BTreeMap<String, String>> {
        self.world.command(call, run)
    }

    fn logs<'a>(
        &'a self,
        _call: Call<'a>,
        _service: &'a ServiceName,
        _instance: &'a Instance,
        _lines: usize,
    ) -> PortResult<'a, Vec<String>> {
        Box::pin(std::future::ready(Ok(Vec::new())))
    }

    fn lock<'a>(
        &'a self,
        call: Call<'a>,
        key: &'a LockKey,
        owner: &'a LockOwner,
        lease: Duration,
    ) -> PortResult<'a, u64> {
        Box::pin(async move {
            let lease_ms = u64::try_from(lease.as_millis()).unwrap_or(u64::MAX);
            self.world
                .carry(call, move |state, now_ms| {
                    let held = state.locks.get(key).filter(|held| held.expires_ms > now_ms);
                    if let Some(held) = held.filter(|held| held.owner.run != owner.run) {
                        let message = format!("it is held by run {}", held.owner.run);
                        return Err(Fault::new("locked", message).transient());
                    }
                    let ours = held.is_some();
                    let since_ms = held.map_or(now_ms, |held| held.since_ms);
                    let epoch = state.epochs.entry(key.clone()).or_default();
                    *epoch += u64::from(!ours);
                    let epoch = *epoch;
                    let expires_ms = now_ms.saturating_add(lease_ms);
                    state
                        .locks
                        .insert(key.clone(), LockState { owner: owner.clone(), since_ms, expires_ms, epoch });
                    Ok(epoch)
                })
                .await
        })
    }

    fn unlock<'a>(&'a self, call: Call<'a>, key: &'a LockKey, owner: &'a LockOwner) -> PortResult<'a, ()> {
        let stays = self.world.bug == Some(Bug::LockStays);
        Box::pin(self.world.carry(call, move |state, _| {
            if state.locks.get(key).is_some_and(|held| held.owner.run == owner.run) && !stays {
                state.locks.remove(key);
            }
            Ok(())
        }))
    }

    fn lock_owner<'a>(&'a self, call: Call<'a>, key: &'a LockKey) -> PortResult<'a, Option<LockState>> {
        Box::pin(self.world.carry(call, move |state, _| Ok(state.locks.get(key).cloned())))
    }
}

/// Nobody goes who still gets users.
fn check_unrouted(state: &mut State, place: &Place, going: &[InstanceId], now_ms: u64) {
    let tables = state
        .routes
        .iter()
        .filter(|((environment, route), _)| *environment == place.0 && route.service == place.1)
        .flat_map(|(_, routed)| [routed.told.as_ref(), routed.live(now_ms)])
        .flatten();
    let gets_users = tables
        .flat_map(|table| &table.entries)
        .flat_map(|entry| &entry.members)
        .find(|member| going.contains(&member.instance))
        .map(|member| member.instance.to_string());
    if let Some(instance) = gets_users {
        let text = format!("{instance} is stopped while users are sent to it");
        state.find(FindingKind::UnreadyServes, place, now_ms, text);
    }
}

/// Makes instances look as the test says that they are while they are measured.
fn ail(release: &mut ObservedRelease, given: impl Fn(&MeasureName) -> Option<Value>) {
    let all = release.instances.len();
    let count = |value: f64| -> usize {
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "clamped to the number of instances"
        )]
        let count = value.round().clamp(0.0, all as f64) as usize;
        count
    };
    if let Some(share) = given(&MeasureName::Ready).as_ref().and_then(Value::magnitude) {
        #[allow(clippy::cast_precision_loss, reason = "a count of instances")]
        let ready = count(share * all as f64 / 100.0);
        release.instances.iter_mut().skip(ready).for_each(|instance| instance.ready = false);
    }
    if let Some(failed) = given(&MeasureName::Failed).as_ref().and_then(Value::magnitude) {
        for instance in release.instances.iter_mut().rev().take(count(failed)) {
            instance.ready = false;
            instance.restarts += 1;
        }
    }
}
