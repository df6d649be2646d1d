//! The machine against a small simulated world: invariants after every effect, a fault at every action, a fold at every position.

use crate::Machine;
use cdpipe_model::action::{Action, ActionKind, ActionResult, Answer, Block};
use cdpipe_model::expr::{Expr, MeasureName, MetricRef, Op, Subject, Symbol};
use cdpipe_model::id::InstanceId;
use cdpipe_model::measure::Sample;
use cdpipe_model::observe::{Instance, Observation, ObservedRelease, RouteTable};
use cdpipe_model::plan::{
    Approval, Concurrency, Deploy, Gate, Hook, HookEvent, LockKey, Mode, Need, NoData, Node, NodeKind,
    OnInterrupt, Plan, Retry, Rule, RuleAction, Run, SourcePos, Stage, Step, StepKind, Watch,
};
use cdpipe_model::record::{GitFacts, JOURNAL_VERSION, Record, RunHeader, Signal};
use cdpipe_model::release::{Artifact, ReleaseSpec};
use cdpipe_model::service::{
    Environment, Route, Service, TargetKind, TargetSpec, TrafficKind, TrafficSpec, Workload,
};
use cdpipe_model::strategy::{
    BlueGreen, Canary, CanaryStep, Count, Hold, OldRelease, Order, Rolling, Sticky, Strategy,
};
use cdpipe_model::{Fault, NodeId, Outcome, ReleaseId, RunId, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

// ---------------------------------------------------------------- plans

fn step(kind: StepKind) -> Step {
    Step {
        label: String::new(),
        kind,
        timeout_ms: 60_000,
        retry: Retry::default(),
        on_interrupt: OnInterrupt::Ask,
        at: SourcePos::default(),
    }
}

fn run(script: &str) -> Step {
    step(StepKind::Run(Run {
        script: script.to_owned(),
        args: Vec::new(),
        env: BTreeMap::new(),
        dir: None,
        stdin: None,
        image: None,
        environment: None,
    }))
}

fn route() -> Route {
    Route { service: "web".into(), host: None, path: None, listen: Some(":8080".into()), object: None }
}

fn service(version: &str, replicas: i64) -> Service {
    Service {
        name: "web".into(),
        platform_name: None,
        adopt: false,
        workload: Workload::Command { argv: vec![Expr::text(format!("./web-{version}"))], artifact: None },
        version: Expr::text(version),
        port: None,
        replicas: Expr::Value(Value::Int(replicas)),
        env: BTreeMap::new(),
        health: Vec::new(),
        route: Some(route()),
        drain_ms: 1_000,
        retain: 5,
        extra: BTreeMap::new(),
    }
}

fn metric(subject: Subject) -> Expr {
    let measure = MeasureName::Named { set: "shop".into(), name: "error_rate".into() };
    Expr::Symbol(Symbol::Metric(MetricRef { subject, measure }))
}

fn watch() -> Watch {
    let when = Expr::Binary(
        Op::Gt,
        Box::new(metric(Subject::Candidate)),
        Box::new(Expr::Value(Value::Percent(5.0))),
    );
    Watch {
        every_ms: 1_000,
        for_ms: None,
        rules: vec![Rule {
            action: RuleAction::Rollback,
            when,
            for_ms: None,
            text: "candidate.error_rate > 5%".into(),
            at: SourcePos::default(),
        }],
        after_ms: 3_000,
        no_data: NoData::Hold,
        hold_for_ms: 10_000,
    }
}

fn deploy(version: &str, replicas: i64, strategy: Strategy) -> Deploy {
    Deploy {
        service: service(version, replicas),
        environment: "here".into(),
        strategy,
        verify: vec![run("smoke")],
        watch: Some(watch()),
        validate: vec![run("validate")],
        timeout_ms: 600_000,
        rollback_timeout_ms: 600_000,
    }
}

fn strategies() -> Vec<Strategy> {
    let canary_step = |weight_bp| CanaryStep { weight_bp, hold: Hold::For { ms: 2_000 } };
    let rolling = |order| {
        Strategy::Rolling(Rolling {
            batch: Count::Instances(2),
            pause_ms: 1_000,
            monitor_ms: 500,
            order,
            max_failures_percent: 20.0,
            max_unavailable: None,
            max_surge: None,
        })
    };
    vec![
        rolling(Order::StartFirst),
        rolling(Order::StopFirst),
        Strategy::BlueGreen(BlueGreen { keep_old_ms: 5_000, old: OldRelease::Stop, preview: None }),
        Strategy::Canary(Canary {
            instances: None,
            env: BTreeMap::new(),
            rules: vec![cdpipe_model::strategy::RouteMatch::Header {
                name: "canary".into(),
                value: "true".into(),
            }],
            steps: vec![canary_step(1_000), canary_step(5_000)],
            sticky: Sticky::Cookie,
        }),
        Strategy::Recreate,
    ]
}

fn stage(steps: Vec<Step>, hooks: Vec<Hook>) -> NodeKind {
    let locks = steps
        .iter()
        .any(|step| matches!(step.kind, StepKind::Deploy(_)))
        .then(|| LockKey::Service { environment: "here".into(), service: "web".into() })
        .into_iter()
        .collect();
    NodeKind::Stage(Box::new(Stage {
        steps,
        timeout_ms: None,
        retry: Retry::default(),
        locks,
        outputs: Vec::new(),
        hooks,
        undo_on_failure: false,
    }))
}

fn node(id: u32, needs: &[u32], kind: NodeKind) -> Node {
    Node {
        id: NodeId(id),
        name: format!("n{id}"),
        needs: needs.iter().map(|need| Need { node: NodeId(*need), optional: false }).collect(),
        when: None,
        kind,
        at: SourcePos::default(),
    }
}

fn header(nodes: Vec<Node>, hooks: Vec<Hook>) -> Arc<RunHeader> {
    let environment = Environment {
        name: "here".into(),
        target: TargetSpec { kind: TargetKind::Local, settings: BTreeMap::new() },
        traffic: Some(TrafficSpec { kind: TrafficKind::Proxy, settings: BTreeMap::new() }),
        vars: BTreeMap::new(),
        freezes: Vec::new(),
        protected: false,
    };
    Arc::new(RunHeader {
        journal_version: JOURNAL_VERSION,
        cdpipe_version: "0.0.0".into(),
        run: RunId("r1".into()),
        started_at_ms: 0,
        started_by: "test".into(),
        file: "test.cd".into(),
        texts: Vec::new(),
        plan: Plan {
            name: "test".into(),
            mode: Mode::Delivery,
            max_parallel: 4,
            concurrency: Concurrency::Queue,
            sources: Vec::new(),
            inputs: BTreeMap::new(),
            secrets: BTreeMap::new(),
            environments: BTreeMap::from([("here".into(), environment)]),
            metrics: BTreeMap::new(),
            flags: BTreeMap::new(),
            nodes,
            hooks,
            hash: "sha256:test".into(),
        },
        git: GitFacts::default(),
    })
}

fn one_deploy(strategy: Strategy, replicas: i64) -> Arc<RunHeader> {
    let deploy = step(StepKind::Deploy(Box::new(deploy("v2", replicas, strategy))));
    header(vec![node(0, &[], stage(vec![deploy], Vec::new()))], Vec::new())
}

// ---------------------------------------------------------------- the world

/// A target, a router and commands that do at once what they are asked, and check that what they are asked is allowed.
#[derive(Clone, Default)]
struct World {
    releases: Vec<ObservedRelease>,
    table: Option<RouteTable>,
    drained: BTreeSet<InstanceId>,
    commands: Vec<String>,
    locked: bool,
    error_rate: BTreeMap<ReleaseId, f64>,
    no_data: bool,
    /// Fewest ready instances that users could reach at any time since the first route.
    fewest_serving: Option<usize>,
    closing_allowed: bool,
    next_instance: u32,
    never_ready: Option<String>,
    failing_command: Option<String>,
}

impl World {
    fn with_stable(spec: &ReleaseSpec, count: u32) -> Self {
        let mut world = World::default();
        world.ensure(spec, count);
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
        world
    }

    fn ensure(&mut self, spec: &ReleaseSpec, count: u32) -> Vec<Instance> {
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
        while release.instances.len() < count as usize {
            next += 1;
            release.instances.push(Instance {
                id: InstanceId(format!("{}-{next}", spec.version)),
                address: Some(format!("127.0.0.1:{}", 40_000 + next)),
                ready: false,
                restarts: 0,
            });
        }
        self.next_instance = next;
        self.releases.iter().find(|release| release.id == id).unwrap().instances.clone()
    }

    fn check_route(&mut self, table: &RouteTable) {
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

    fn note_serving(&mut self) {
        let Some(table) = &self.table else { return };
        let serving =
            table.entries.iter().filter(|entry| entry.weight_bp > 0).map(|entry| entry.members.len()).sum();
        self.fewest_serving = Some(self.fewest_serving.map_or(serving, |fewest: usize| fewest.min(serving)));
    }

    fn perform(&mut self, action: &Action) -> ActionResult {
        let done = ActionResult::Done;
        match &action.kind {
            ActionKind::Resolve { spec, .. } => done(Answer::Resolved(spec.clone())),
            ActionKind::Observe { .. } => done(Answer::Observed(Box::new(Observation {
                releases: self.releases.clone(),
                unmanaged: Vec::new(),
                table: self.table.clone(),
                fence: None,
            }))),
            ActionKind::Ensure { release, count, .. } => {
                done(Answer::Instances(self.ensure(release, *count)))
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
            ActionKind::Route { table, .. } => {
                self.check_route(table);
                self.table = Some((**table).clone());
                self.note_serving();
                done(Answer::Nothing)
            }
            ActionKind::AwaitRouted { table, .. } => {
                assert_eq!(self.table.as_ref(), Some(&**table));
                done(Answer::Nothing)
            }
            ActionKind::AwaitDrained { instances, .. } => {
                for instance in instances {
                    self.assert_unrouted(&instance.id);
                    self.drained.insert(instance.id.clone());
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
            ActionKind::Lock { .. } => {
                assert!(!self.locked, "the lock is taken twice");
                self.locked = true;
                done(Answer::Locked { epoch: 1 })
            }
            ActionKind::Unlock { .. } => {
                self.locked = false;
                done(Answer::Nothing)
            }
            other => panic!("unexpected action {other:?}"),
        }
    }

    fn assert_unrouted(&self, instance: &InstanceId) {
        let routed = self.table.iter().flat_map(|table| &table.entries).flat_map(|entry| &entry.members);
        assert!(
            !routed.into_iter().any(|member| member.instance == *instance),
            "{instance} goes while it gets users"
        );
    }

    fn serving(&self) -> Vec<(ReleaseId, u32, usize)> {
        let entries = self.table.iter().flat_map(|table| &table.entries);
        entries.map(|entry| (entry.release.clone(), entry.weight_bp, entry.members.len())).collect()
    }
}

/// Runs to the end; `interfere` may answer an action in the world's place, or send signals.
struct Driver {
    machine: Machine,
    world: World,
    now_ms: u64,
    journal: Vec<Record>,
    actions: u32,
}

impl Driver {
    fn new(header: &Arc<RunHeader>, world: World) -> Self {
        Self {
            machine: Machine::new(Arc::clone(header)),
            world,
            now_ms: 1_000,
            journal: Vec::new(),
            actions: 0,
        }
    }

    fn feed(&mut self, input: Record) {
        self.journal.extend(self.machine.accept(input));
    }

    fn open(&mut self) {
        self.feed(Record::Opened { at_ms: self.now_ms, by: "test".into(), resumed: false });
    }

    /// One action or one timer; false when there is nothing to do.
    fn turn(&mut self, interfere: &mut dyn FnMut(u32, &Action, &mut World) -> Option<ActionResult>) -> bool {
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

    fn run(
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

fn spec_of(header: &Arc<RunHeader>, world: &World) -> (ReleaseSpec, ReleaseSpec) {
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

fn prepared(strategy: Strategy, replicas: u32) -> (Arc<RunHeader>, World, ReleaseSpec, ReleaseSpec) {
    let exclusive = matches!(strategy, Strategy::Recreate);
    let header = one_deploy(strategy, i64::from(replicas));
    let (stable, candidate) = spec_of(&header, &World::default());
    let mut world = World::with_stable(&stable, replicas);
    world.closing_allowed = exclusive;
    (header, world, stable, candidate)
}

// ---------------------------------------------------------------- tests

#[test]
fn every_strategy_brings_the_candidate_in() {
    for strategy in strategies() {
        for replicas in [1, 3, 6] {
            let (header, world, stable, candidate) = prepared(strategy.clone(), replicas);
            let mut driver = Driver::new(&header, world);
            assert_eq!(driver.run(&mut |_, _, _| None), Outcome::Succeeded, "{strategy:?}");
            assert_eq!(driver.world.serving(), vec![(candidate.id(), 10_000, replicas as usize)]);
            let old = driver.world.releases.iter().find(|release| release.id == stable.id());
            assert!(old.is_none_or(|old| old.instances.is_empty()), "the old release is gone");
            assert_eq!(driver.world.commands, ["smoke", "validate"]);
            assert!(!driver.world.locked);
            let floor = match &strategy {
                Strategy::Rolling(rolling) if rolling.order == Order::StopFirst => replicas.saturating_sub(2),
                Strategy::Recreate => 0,
                _ => replicas,
            };
            // A canary's share is served by fewer, but all of stable stays until the promotion.
            assert!(driver.world.fewest_serving.unwrap() >= floor as usize, "{strategy:?} {replicas}");
        }
    }
}

#[test]
fn a_first_deploy_needs_no_stable_and_its_failure_leaves_nothing() {
    for strategy in strategies() {
        let header = one_deploy(strategy.clone(), 2);
        let mut driver = Driver::new(&header, World { closing_allowed: true, ..World::default() });
        assert_eq!(driver.run(&mut |_, _, _| None), Outcome::Succeeded, "{strategy:?}");
        assert_eq!(driver.world.serving().len(), 1);

        let world =
            World { closing_allowed: true, failing_command: Some("validate".into()), ..World::default() };
        let mut driver = Driver::new(&header, world);
        assert_eq!(driver.run(&mut |_, _, _| None), Outcome::Failed, "{strategy:?}");
        assert!(driver.world.releases.is_empty(), "{:?}", driver.world.releases);
        assert!(driver.world.serving().is_empty());
    }
}

#[test]
fn a_release_that_serves_already_is_left_alone() {
    for strategy in strategies() {
        let header = one_deploy(strategy, 3);
        let (_, candidate) = spec_of(&header, &World::default());
        let mut driver = Driver::new(&header, World::with_stable(&candidate, 3));
        let before = driver.world.serving();
        assert_eq!(
            driver.run(&mut |_, action, _| {
                assert!(
                    !action.kind.is_effect()
                        || matches!(action.kind, ActionKind::Lock { .. } | ActionKind::Unlock { .. }),
                    "{action:?}"
                );
                None
            }),
            Outcome::Succeeded
        );
        assert_eq!(driver.world.serving(), before);
    }
}

#[test]
fn whatever_action_fails_the_end_is_the_new_state_or_the_old_one() {
    for strategy in strategies() {
        let (header, world, stable, candidate) = prepared(strategy.clone(), 3);
        let mut clean = Driver::new(&header, world.clone());
        clean.run(&mut |_, _, _| None);
        for failing in 1..=clean.actions {
            let mut driver = Driver::new(&header, world.clone());
            let mut failed_unlock = false;
            let outcome = driver.run(&mut |at, action, _| {
                if at != failing {
                    return None;
                }
                failed_unlock = matches!(action.kind, ActionKind::Unlock { .. });
                match action.kind {
                    // A measurement that fails is no data, which holds; it is not a failure.
                    ActionKind::Measure { .. } => None,
                    _ => Some(ActionResult::Failed(Fault::new("test", "injected"))),
                }
            });
            let serving = driver.world.serving();
            let context = format!("{strategy:?}, action {failing}: {outcome}, {serving:?}");
            match outcome {
                Outcome::Succeeded => assert_eq!(serving, vec![(candidate.id(), 10_000, 3)], "{context}"),
                Outcome::RolledBack | Outcome::Failed => {
                    assert_eq!(serving, vec![(stable.id(), 10_000, 3)], "{context}");
                    assert!(
                        driver.world.releases.iter().all(|r| r.id == stable.id() || r.instances.is_empty()),
                        "{context}"
                    );
                }
                other => panic!("{other}: {context}"),
            }
            assert!(failed_unlock || !driver.world.locked, "{context}: a lock stays");
        }
    }
}

#[test]
fn a_cancel_at_any_moment_goes_back() {
    for strategy in strategies() {
        let (header, world, stable, candidate) = prepared(strategy.clone(), 2);
        let mut clean = Driver::new(&header, world.clone());
        clean.run(&mut |_, _, _| None);
        for at in 1..clean.actions {
            let mut driver = Driver::new(&header, world.clone());
            driver.open();
            while driver.actions < at && driver.turn(&mut |_, _, _| None) {}
            let now_ms = driver.now_ms;
            driver.feed(Record::Signalled {
                at_ms: now_ms,
                signal: Signal::Cancel { by: "me".into(), reason: String::new() },
            });
            while driver.turn(&mut |_, _, _| None) {}
            let serving = driver.world.serving();
            match driver.machine.outcome() {
                Some(Outcome::Cancelled) => {
                    assert_eq!(serving, vec![(stable.id(), 10_000, 2)], "{strategy:?} {at}")
                }
                Some(Outcome::Succeeded) => {
                    assert_eq!(serving, vec![(candidate.id(), 10_000, 2)], "{strategy:?} {at}")
                }
                other => panic!("{other:?} {strategy:?} {at}"),
            }
            assert!(!driver.world.locked);
        }
    }
}

#[test]
fn a_bad_release_goes_back_by_itself() {
    for strategy in strategies() {
        let (header, mut world, stable, candidate) = prepared(strategy.clone(), 2);
        world.error_rate.insert(candidate.id(), 9.0);
        let mut driver = Driver::new(&header, world);
        assert_eq!(driver.run(&mut |_, _, _| None), Outcome::RolledBack, "{strategy:?}");
        assert_eq!(driver.world.serving(), vec![(stable.id(), 10_000, 2)]);
        let reason = driver.journal.iter().rev().find_map(|record| match record {
            Record::NodeFinished { reason, .. } => reason.clone(),
            _ => None,
        });
        let text = reason.unwrap().message;
        assert!(text.contains("candidate.error_rate was 9%"), "{text}");
    }
}

#[test]
fn silence_holds_and_then_goes_back() {
    let (header, mut world, stable, _) = prepared(strategies().remove(3), 2);
    world.no_data = true;
    let mut driver = Driver::new(&header, world);
    assert_eq!(driver.run(&mut |_, _, _| None), Outcome::RolledBack);
    assert_eq!(driver.world.serving(), vec![(stable.id(), 10_000, 2)]);
    assert!(driver.now_ms > 10_000, "it held first");
}

#[test]
fn an_undo_that_fails_leaves_the_candidate_and_says_so() {
    // Recreate: stable was stopped and does not come back.
    let (header, mut world, _, _) = prepared(Strategy::Recreate, 2);
    world.failing_command = Some("smoke".into());
    world.never_ready = None;
    let mut driver = Driver::new(&header, world);
    let outcome = driver.run(&mut |_, action, world| {
        if let ActionKind::Run(_) = action.kind {
            world.never_ready = Some("v1".into());
        }
        None
    });
    assert_eq!(outcome, Outcome::RollbackFailed);
    assert!(!driver.world.locked);
}

#[test]
fn a_fold_at_any_position_is_the_same_run() {
    for strategy in strategies() {
        let (header, mut world, stable, candidate) = prepared(strategy.clone(), 3);
        for bad in [false, true] {
            if bad {
                world.error_rate.insert(candidate.id(), 9.0);
            }
            let mut clean = Driver::new(&header, world.clone());
            let expected = clean.run(&mut |_, _, _| None);
            for crash_at in 1..clean.actions {
                let mut first = Driver::new(&header, world.clone());
                first.open();
                while first.actions < crash_at && first.turn(&mut |_, _, _| None) {}
                // The engine dies here. What was in flight may or may not have been done.
                for done in [false, true] {
                    let mut second = Driver::new(&header, first.world.clone());
                    if done && let Some(action) = first.machine.in_flight().next().cloned() {
                        // Locks are the lease's business; a second take of our own is a renewal.
                        if !matches!(action.kind, ActionKind::Lock { .. } | ActionKind::Run(_)) {
                            second.world.perform(&action);
                        }
                    }
                    for record in &first.journal {
                        second.machine.apply(record);
                    }
                    assert_eq!(
                        first.machine.in_flight().collect::<Vec<_>>(),
                        second.machine.in_flight().collect::<Vec<_>>()
                    );
                    second.now_ms = first.now_ms + 60_000;
                    second.feed(Record::Opened {
                        at_ms: first.now_ms + 60_000,
                        by: "again".into(),
                        resumed: true,
                    });
                    let mut turns = 0;
                    while second.turn(&mut |_, _, _| None) {
                        turns += 1;
                        assert!(turns < 5_000, "{strategy:?} crash at {crash_at}");
                    }
                    assert_eq!(
                        second.machine.outcome(),
                        Some(expected),
                        "{strategy:?} crash at {crash_at} {done}"
                    );
                    let serves = if bad { stable.id() } else { candidate.id() };
                    assert_eq!(second.world.serving(), vec![(serves, 10_000, 3)], "{strategy:?} {crash_at}");
                }
            }
        }
    }
}

#[test]
fn stages_follow_the_graph_and_its_limit() {
    let nodes = vec![
        node(0, &[], stage(vec![run("a")], Vec::new())),
        node(1, &[0], stage(vec![run("b")], Vec::new())),
        node(2, &[0], stage(vec![run("fails")], Vec::new())),
        node(3, &[1, 2], stage(vec![run("never")], Vec::new())),
        node(4, &[1], stage(vec![run("c")], Vec::new())),
    ];
    let on = |event: HookEvent, script: &str| Hook { events: vec![event], steps: vec![run(script)] };
    let header = header(
        nodes,
        vec![on(HookEvent::Success, "no"), on(HookEvent::Failure, "hook"), on(HookEvent::Always, "always")],
    );
    let world = World { failing_command: Some("fails".into()), ..World::default() };
    let mut driver = Driver::new(&header, world);
    assert_eq!(driver.run(&mut |_, _, _| None), Outcome::Failed);
    let ran: BTreeSet<_> = driver.world.commands.iter().map(String::as_str).collect();
    assert_eq!(ran, BTreeSet::from(["a", "b", "fails", "c", "hook", "always"]));
    assert_eq!(driver.machine.node_outcome(NodeId(3)), Some(Outcome::Skipped));
}

#[test]
fn a_gate_waits_for_its_people() {
    let gate = NodeKind::Gate(Box::new(Gate {
        approvals: vec![Approval {
            by: vec!["ops".into(), "dev".into()],
            quorum: 2,
            expires_ms: Some(60_000),
            always: false,
        }],
        metrics: Vec::new(),
        checks: Vec::new(),
        windows: Vec::new(),
        timeout_ms: None,
        hooks: Vec::new(),
    }));
    let header =
        header(vec![node(0, &[], gate), node(1, &[0], stage(vec![run("go")], Vec::new()))], Vec::new());
    let mut driver = Driver::new(&header, World::default());
    driver.open();
    assert_eq!(driver.machine.waiting().as_deref(), Some("2 approvals of n0 by ops, dev"));
    let approve = |by: &str| Record::Signalled {
        at_ms: 2_000,
        signal: Signal::Approve { node: NodeId(0), by: by.into() },
    };
    driver.feed(approve("mallory"));
    driver.feed(approve("ops"));
    driver.feed(approve("ops"));
    assert_eq!(driver.machine.waiting().as_deref(), Some("approval of n0 by ops, dev"));
    driver.feed(approve("dev"));
    while driver.turn(&mut |_, _, _| None) {}
    assert_eq!(driver.machine.outcome(), Some(Outcome::Succeeded));
    assert_eq!(driver.world.commands, ["go"]);

    let mut driver = Driver::new(&header, World::default());
    assert_eq!(driver.run(&mut |_, _, _| None), Outcome::TimedOut, "nobody came");
    assert!(driver.world.commands.is_empty());
}

#[test]
fn a_later_failure_takes_a_finished_stage_back() {
    for strategy in strategies() {
        let deploy = step(StepKind::Deploy(Box::new(deploy("v2", 2, strategy.clone()))));
        let undo = step(StepKind::Undo { steps: vec![run("undo migration")] });
        let nodes = vec![
            node(0, &[], stage(vec![run("migrate"), undo, deploy], Vec::new())),
            node(1, &[0], stage(vec![run("e2e")], Vec::new())),
        ];
        let hook = Hook {
            events: vec![HookEvent::Failure],
            steps: vec![step(StepKind::Rollback { stage: NodeId(0) }), run("tell")],
        };
        let header = header(nodes, vec![hook]);
        let (stable, _) = spec_of(&header, &World::default());
        let mut world = World::with_stable(&stable, 2);
        world.closing_allowed = true;
        world.failing_command = Some("e2e".into());
        let mut driver = Driver::new(&header, world);
        assert_eq!(driver.run(&mut |_, _, _| None), Outcome::Failed, "{strategy:?}");
        assert_eq!(driver.world.serving(), vec![(stable.id(), 10_000, 2)], "{strategy:?}");
        assert_eq!(driver.machine.node_outcome(NodeId(0)), Some(Outcome::RolledBack));
        let tail = &driver.world.commands[driver.world.commands.len() - 2..];
        assert_eq!(tail, ["undo migration", "tell"], "{strategy:?}");
        assert!(!driver.world.locked);
    }
}

#[test]
fn a_step_is_tried_again_as_often_as_it_says() {
    let mut flaky = run("flaky");
    flaky.retry = Retry { more: 2, delay_ms: 1_000, max_delay_ms: 10_000 };
    let header = header(vec![node(0, &[], stage(vec![flaky], Vec::new()))], Vec::new());
    let mut left = 2;
    let mut driver = Driver::new(&header, World::default());
    let outcome = driver.run(&mut |_, action, _| {
        matches!(action.kind, ActionKind::Run(_)).then_some(())?;
        left -= 1;
        (left >= 0).then(|| ActionResult::Failed(Fault::new("command-failed", "no")))
    });
    assert_eq!(outcome, Outcome::Succeeded);
    assert!(driver.now_ms >= 1_000 + 1_000 + 2_000, "1 s, then 2 s");
    assert_eq!(driver.journal.iter().filter(|r| matches!(r, Record::StepStarted { .. })).count(), 3);
}

#[test]
fn ten_thousand_stages_cost_little_each() {
    let nodes = (0..10_000).map(|id| {
        let needs: Vec<u32> = if id >= 10 { vec![id - 10, id / 2] } else { Vec::new() };
        node(id, &needs, stage(vec![run("true")], Vec::new()))
    });
    let header = header(nodes.collect(), Vec::new());
    let mut driver = Driver::new(&header, World::default());
    driver.open();
    let mut turns = 0_u64;
    while driver.turn(&mut |_, _, _| None) {
        turns += 1;
    }
    assert_eq!(driver.machine.outcome(), Some(Outcome::Succeeded));
    assert_eq!(turns, 10_000);
    // Started, step started, intent, returned, step finished, node finished.
    assert_eq!(driver.journal.len(), 60_000 + 2);
    let _ = Block::Main;
}
