//! A simulated target, router and shell, and a driver that runs the machine against them under virtual time.

use super::plans::{one_deploy, route};
use crate::Machine;
use cdpipe_model::action::{Action, ActionKind, ActionResult, Answer};
use cdpipe_model::id::InstanceId;
use cdpipe_model::measure::Sample;
use cdpipe_model::observe::{Instance, Observation, ObservedRelease, RouteTable};
use cdpipe_model::record::{Record, RunHeader};
use cdpipe_model::release::{Artifact, ReleaseSpec};
use cdpipe_model::strategy::{OldRelease, Sticky, Strategy};
use cdpipe_model::{Fault, Outcome, ReleaseId, Value};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A target, a router and commands that do at once what they are asked, and check that what they are asked is allowed.
#[derive(Clone, Default)]
pub(super) struct World {
    pub(super) releases: Vec<ObservedRelease>,
    pub(super) table: Option<RouteTable>,
    pub(super) preview: Option<RouteTable>,
    /// The table that the router was last seen to follow.
    pub(super) observed: Option<RouteTable>,
    pub(super) commands: Vec<String>,
    pub(super) locked: bool,
    pub(super) error_rate: BTreeMap<ReleaseId, f64>,
    pub(super) no_data: bool,
    /// Fewest ready instances that users could reach at any time since the first route.
    pub(super) fewest_serving: Option<usize>,
    pub(super) closing_allowed: bool,
    pub(super) next_instance: u32,
    pub(super) never_ready: Option<String>,
    pub(super) failing_command: Option<String>,
}

impl World {
    pub(super) fn with_stable(spec: &ReleaseSpec, count: u32) -> Self {
        let mut world = World::default();
        world.ensure(spec, count, false);
        for release in &mut world.releases {
            release.instances.iter_mut().for_each(|instance| instance.ready = true);
        }
        let members = world.releases[0].instances.iter().map(|instance| cdpipe_model::observe::Member {
            instance: instance.id.clone(),
            address: instance.address.clone().unwrap(),
        });
        let members = members.collect();
        world.table = Some(RouteTable {
            route: route(),
            entries: vec![cdpipe_model::observe::RouteEntry {
                release: spec.id(),
                role: cdpipe_model::observe::Role::Stable,
                weight_bp: 10_000,
                members,
            }],
            rules: Vec::new(),
            sticky: Sticky::None,
        });
        world.observed.clone_from(&world.table);
        world
    }

    pub(super) fn ensure(&mut self, spec: &ReleaseSpec, count: u32, canary: bool) -> Vec<Instance> {
        let id = spec.id();
        if !self.releases.iter().any(|release| release.id == id) {
            self.releases.push(ObservedRelease {
                id: id.clone(),
                spec: spec.clone(),
                wanted: 0,
                instances: Vec::new(),
            });
        }
        let mut next = self.next_instance;
        let release = self.releases.iter_mut().find(|release| release.id == id).unwrap();
        release.wanted = release.wanted.max(count);
        let is_canary = |instance: &Instance| instance.id.0.starts_with("canary-");
        while release.instances.iter().filter(|instance| is_canary(instance) == canary).count()
            < count as usize
        {
            next += 1;
            release.instances.push(Instance {
                id: InstanceId(format!("{}{}-{next}", if canary { "canary-" } else { "" }, spec.version)),
                address: Some(format!("127.0.0.1:{}", 40_000 + next)),
                ready: false,
                reached_at: None,
                restarts: 0,
            });
        }
        release.instances.sort_by_key(is_canary);
        self.next_instance = next;
        self.releases.iter().find(|release| release.id == id).unwrap().instances.clone()
    }

    pub(super) fn check_route(&mut self, table: &RouteTable) {
        let weights: u32 = table.entries.iter().map(|entry| entry.weight_bp).sum();
        if table.entries.is_empty() {
            assert!(self.closing_allowed, "the route was closed");
            return;
        }
        assert_eq!(weights, 10_000, "weights sum to 100 %: {table:?}");
        for entry in &table.entries {
            for member in &entry.members {
                let release =
                    self.releases.iter().find(|release| release.id == entry.release).expect("release exists");
                let instance = release.instances.iter().find(|instance| instance.id == member.instance);
                assert!(
                    instance.is_some_and(|instance| instance.ready),
                    "an unready instance gets users: {member:?}"
                );
            }
        }
        for entry in table.entries.iter().filter(|entry| entry.weight_bp > 0) {
            assert!(!entry.members.is_empty(), "users are sent to nobody: {table:?}");
        }
        for rule in &table.rules {
            assert!(table.entries.iter().any(|entry| entry.release == rule.release));
        }
    }

    pub(super) fn note_serving(&mut self) {
        let Some(table) = &self.table else { return };
        let serving =
            table.entries.iter().filter(|entry| entry.weight_bp > 0).map(|entry| entry.members.len()).sum();
        self.fewest_serving = Some(self.fewest_serving.map_or(serving, |fewest: usize| fewest.min(serving)));
    }

    pub(super) fn perform(&mut self, action: &Action) -> ActionResult {
        let done = ActionResult::Done;
        match &action.kind {
            ActionKind::Resolve { spec, .. } => done(Answer::Resolved(spec.clone())),
            ActionKind::Observe { route: Some(asked), .. } if *asked != route() => {
                done(Answer::Observed(Box::new(Observation {
                    table: self.preview.clone(),
                    ..Observation::default()
                })))
            }
            ActionKind::Route { table, seen, .. } if table.route != route() => {
                // Done already is fine: that is a resume.
                let done_already = self.preview.as_ref() == Some(&**table);
                assert!(done_already || seen.as_deref() == self.preview.as_ref(), "set on what was not seen");
                self.preview = Some((**table).clone());
                done(Answer::Nothing)
            }
            ActionKind::AwaitRouted { table, .. } if table.route != route() => done(Answer::Nothing),
            ActionKind::Observe { .. } => done(Answer::Observed(Box::new(Observation {
                releases: self.releases.clone(),
                unmanaged: Vec::new(),
                table: self.table.clone(),
                fence: None,
                autoscaled: None,
            }))),
            ActionKind::Ensure { release, count, canary_env, .. } => {
                done(Answer::Instances(self.ensure(release, *count, !canary_env.is_empty())))
            }
            ActionKind::AwaitReady { release, count, may_fail, .. } => {
                let never = self.never_ready.as_deref() == Some(release.version.as_str());
                let id = release.id();
                let Some(found) = self.releases.iter_mut().find(|release| release.id == id) else {
                    return ActionResult::Failed(Fault::new("not-ready", "no such release"));
                };
                if !never {
                    found.instances.iter_mut().for_each(|instance| instance.ready = true);
                }
                let ready = found.instances.iter().filter(|instance| instance.ready).count();
                if ready + (*may_fail as usize) < *count as usize {
                    return ActionResult::Failed(Fault::new(
                        "not-ready",
                        format!("{ready} of {count} ready"),
                    ));
                }
                done(Answer::Instances(found.instances.clone()))
            }
            ActionKind::Route { table, seen, .. } => {
                self.check_route(table);
                let done_already = self.table.as_ref() == Some(&**table);
                if !done_already && seen.as_deref() != self.table.as_ref() {
                    return ActionResult::Failed(Fault::new("moved", "somebody else changed the route"));
                }
                self.table = Some((**table).clone());
                self.note_serving();
                done(Answer::Nothing)
            }
            ActionKind::AwaitRouted { table, .. } => {
                assert_eq!(self.table.as_ref(), Some(&**table));
                self.observed.clone_from(&self.table);
                done(Answer::Nothing)
            }
            ActionKind::AwaitDrained { instances, .. } => {
                for instance in instances {
                    self.assert_unrouted(&instance.id);
                }
                done(Answer::Nothing)
            }
            ActionKind::Stop { release, instances, old, .. } => {
                let id = release.id();
                let going: Vec<InstanceId> = match self.releases.iter().find(|release| release.id == id) {
                    None => Vec::new(),
                    Some(found) if instances.is_empty() => {
                        found.instances.iter().map(|i| i.id.clone()).collect()
                    }
                    Some(_) => instances.iter().map(|instance| instance.id.clone()).collect(),
                };
                for instance in &going {
                    self.assert_unrouted(instance);
                }
                if let Some(found) = self.releases.iter_mut().find(|release| release.id == id) {
                    found.instances.retain(|instance| !going.contains(&instance.id));
                    found.wanted = u32::try_from(found.instances.len()).unwrap();
                }
                if *old == Some(OldRelease::Remove) {
                    self.releases.retain(|release| release.id != id);
                }
                let left = self.releases.iter().find(|release| release.id == id);
                done(Answer::Instances(left.map(|release| release.instances.clone()).unwrap_or_default()))
            }
            ActionKind::Measure { requests, .. } => done(Answer::Samples(
                requests
                    .iter()
                    .map(|request| Sample {
                        metric: request.metric.clone(),
                        value: (!self.no_data).then(|| {
                            let id = ReleaseId(request.scope.release.clone());
                            Value::Percent(self.error_rate.get(&id).copied().unwrap_or(0.0))
                        }),
                        asked: "test".into(),
                        note: None,
                    })
                    .collect(),
            )),
            ActionKind::Run(run) => {
                self.commands.push(run.script.clone());
                if self.failing_command.as_deref() == Some(run.script.as_str()) {
                    return ActionResult::Failed(Fault::new(
                        "command-failed",
                        format!("{} exited with 1", run.script),
                    ));
                }
                done(Answer::Exited { outputs: BTreeMap::new() })
            }
            ActionKind::Lock { keys, .. } => {
                assert!(!self.locked || keys.is_empty(), "the lock is taken twice");
                self.locked |= !keys.is_empty();
                done(Answer::Locked { epoch: 1 })
            }
            ActionKind::Unlock { keys } => {
                self.locked &= keys.is_empty();
                done(Answer::Nothing)
            }
            other => panic!("unexpected action {other:?}"),
        }
    }

    pub(super) fn assert_unrouted(&self, instance: &InstanceId) {
        assert_eq!(self.observed, self.table, "{instance} goes before the router was seen to follow");
        let shown = self.preview.iter().flat_map(|table| &table.entries).flat_map(|entry| &entry.members);
        assert!(
            !shown.into_iter().any(|member| member.instance == *instance),
            "{instance} goes while it is previewed"
        );
        let routed = self.table.iter().flat_map(|table| &table.entries).flat_map(|entry| &entry.members);
        assert!(
            !routed.into_iter().any(|member| member.instance == *instance),
            "{instance} goes while it gets users"
        );
    }

    pub(super) fn serving(&self) -> Vec<(ReleaseId, u32, usize)> {
        let entries = self.table.iter().flat_map(|table| &table.entries);
        entries.map(|entry| (entry.release.clone(), entry.weight_bp, entry.members.len())).collect()
    }
}

/// Runs to the end; `interfere` may answer an action in the world's place, or send signals.
pub(super) struct Driver {
    pub(super) machine: Machine,
    pub(super) world: World,
    pub(super) now_ms: u64,
    pub(super) journal: Vec<Record>,
    pub(super) actions: u32,
}

impl Driver {
    pub(super) fn new(header: &Arc<RunHeader>, world: World) -> Self {
        Self {
            machine: Machine::new(Arc::clone(header)),
            world,
            now_ms: 1_000,
            journal: Vec::new(),
            actions: 0,
        }
    }

    pub(super) fn feed(&mut self, input: Record) {
        self.journal.extend(self.machine.accept(input));
    }

    pub(super) fn open(&mut self) {
        self.feed(Record::Opened { at_ms: self.now_ms, by: "test".into(), resumed: false });
    }

    /// One action or one timer; false when there is nothing to do.
    pub(super) fn turn(
        &mut self,
        interfere: &mut dyn FnMut(u32, &Action, &mut World) -> Option<ActionResult>,
    ) -> bool {
        if self.machine.outcome().is_some() {
            return false;
        }
        let action = self.machine.in_flight().next().cloned();
        if let Some(action) = action {
            self.actions += 1;
            let result = match interfere(self.actions, &action, &mut self.world) {
                Some(result) => result,
                None => self.world.perform(&action),
            };
            self.now_ms += 10;
            self.feed(Record::Returned { at_ms: self.now_ms, action: action.id, result });
            return true;
        }
        let Some((due_ms, timer)) = self.machine.next_timer().map(|(due_ms, timer)| (due_ms, timer.clone()))
        else {
            return false;
        };
        self.now_ms = self.now_ms.max(due_ms);
        self.feed(Record::TimerFired { at_ms: self.now_ms, timer });
        true
    }

    pub(super) fn run(
        &mut self,
        interfere: &mut dyn FnMut(u32, &Action, &mut World) -> Option<ActionResult>,
    ) -> Outcome {
        self.open();
        let mut turns = 0;
        while self.turn(interfere) {
            turns += 1;
            assert!(turns < 5_000, "it does not end: {:#?}", &self.journal[self.journal.len() - 20..]);
        }
        self.machine.outcome().unwrap_or_else(|| {
            panic!("it stands still: waiting {:?}, {:#?}", self.machine.waiting(), self.journal.last())
        })
    }
}

pub(super) fn spec_of(header: &Arc<RunHeader>, world: &World) -> (ReleaseSpec, ReleaseSpec) {
    // The candidate's spec as the machine makes it, by running up to the first Ensure.
    let mut driver = Driver::new(header, world.clone());
    driver.open();
    loop {
        let action = driver.machine.in_flight().next().cloned().expect("it resolves first");
        if let ActionKind::Resolve { spec, .. } = &action.kind {
            let stable = ReleaseSpec {
                version: "v1".into(),
                artifact: Artifact::Command { argv: vec!["./web-v1".into()], path: None, digest: None },
                ..(**spec).clone()
            };
            return (stable, (**spec).clone());
        }
        driver.turn(&mut |_, _, _| None);
    }
}

pub(super) fn prepared(
    strategy: Strategy,
    replicas: u32,
) -> (Arc<RunHeader>, World, ReleaseSpec, ReleaseSpec) {
    let exclusive = matches!(strategy, Strategy::Recreate);
    let header = one_deploy(strategy, i64::from(replicas));
    let (stable, candidate) = spec_of(&header, &World::default());
    let mut world = World::with_stable(&stable, replicas);
    world.closing_allowed = exclusive;
    (header, world, stable, candidate)
}
