//! The interpreter of one deploy: resolve, observe, compile the strategy, then carry the program out step by step; on any trouble
//! carry out the undo the same way.
//!
//! A program step is a short fixed sequence of actions (`micro`): a route is *set* and then *observed to be set*; instances that go
//! are taken out of the route, observed to be out, drained, and only then stopped.

use crate::apply::{side_of, step_of};
use crate::decide::Decide;
use crate::state::{DeployState, Failure, WatchState, Work};
use crate::strategy::{self, ALL_BP};
use cdpipe_model::action::{ActionKind, Answer, Block, StepRef};
use cdpipe_model::expr::{Subject, Symbol};
use cdpipe_model::id::InstanceId;
use cdpipe_model::observe::{Instance, Member, Role, RouteEntry, RouteRule, RouteTable};
use cdpipe_model::plan::{Approval, Deploy, Mode, Plan, StepKind};
use cdpipe_model::program::{Program, ProgramStep, Routing};
use cdpipe_model::record::{Record, TimerId, TimerPurpose};
use cdpipe_model::release::ReleaseSpec;
use cdpipe_model::service::{Environment, Route, TrafficKind};
use cdpipe_model::strategy::{OldRelease, RouteMatch, Sticky, Strategy};
use cdpipe_model::{Fault, Outcome};
use std::collections::BTreeMap;

/// Time for things that should be quick, and whose length no setting bounds.
const QUICK_MS: u64 = 30_000;
/// Time to find an artifact, which may have to be downloaded.
const RESOLVE_MS: u64 = 10 * 60_000;
/// Time to start instances, not counting their way to readiness.
const START_MS: u64 = 5 * 60_000;
/// Beyond the time a port gives itself, so that its own answer comes first.
const GRACE_MS: u64 = 10_000;
/// First wait before a transient fault of an undo is tried again; it doubles up to the longest.
const UNDO_RETRY_MS: u64 = 500;
const UNDO_RETRY_MAX_MS: u64 = 15_000;

/// What comes next in a program step.
#[allow(clippy::large_enum_variant, reason = "it lives for one decision, and an action is what it mostly is")]
pub(crate) enum Micro<'a> {
    Act { kind: ActionKind, deadline_ms: u64 },
    Block(Block),
    Soak { ms: u64 },
    Approve(&'a Approval),
}

// ---------------------------------------------------------------- fold

/// The program stands at a new step.
pub(crate) fn arrive(deploy: &mut DeployState) {
    let at = deploy.cursor.pc.unwrap_or(0);
    let done = at as usize >= deploy.steps().len();
    if let Some(undo) = &mut deploy.undo {
        if done {
            undo.ended = Some(Ok(()));
        }
        return;
    }
    if done {
        deploy.ended = Some(Ok(()));
        return;
    }
    deploy.begun = deploy.begun.max(at + 1);
    match deploy.steps().get(at as usize) {
        Some(ProgramStep::Promote) => deploy.promoted = true,
        Some(ProgramStep::WatchOn) => deploy.watch = Some(WatchState::default()),
        Some(ProgramStep::WatchOff) => deploy.watch = None,
        _ => {}
    }
}

/// Remembers which action of the step is under way, so that its answer moves on from there.
pub(crate) fn note_micro(plan: &Plan, step: &StepRef, deploy: &mut DeployState, kind: &ActionKind) {
    if let ActionKind::Route { .. } = kind
        && let Some(ProgramStep::Route(routing)) =
            deploy.cursor.pc.and_then(|pc| deploy.steps().get(pc as usize))
    {
        deploy.routing = Some(routing.clone());
    }
    let Some(StepKind::Deploy(spec)) = step_of(plan, step).map(|step| &step.kind) else { return };
    if let Some((at, _)) = next_micro(plan, spec, step.index, deploy) {
        deploy.cursor.micro = at;
    }
}

fn at_preview(deploy: &DeployState) -> bool {
    let at = deploy.cursor.pc.and_then(|pc| deploy.steps().get(pc as usize));
    matches!(at, Some(ProgramStep::Preview { .. }))
}

/// An action of the deploy was done.
pub(crate) fn answered(deploy: &mut DeployState, kind: &ActionKind, answer: &Answer) {
    match (kind, answer) {
        (ActionKind::Resolve { .. }, Answer::Resolved(spec)) => {
            deploy.spec = Some((**spec).clone());
            return;
        }
        (ActionKind::Observe { .. }, Answer::Observed(observation)) if at_preview(deploy) => {
            deploy.preview.clone_from(&observation.table);
        }
        (ActionKind::Observe { .. }, Answer::Observed(observation)) => {
            if let Some(program) = &deploy.program {
                // Looked at again before a late undo.
                let instances = |id: &cdpipe_model::ReleaseId| {
                    let release = observation.releases.iter().find(|release| release.id == *id);
                    release.map(|release| release.instances.clone()).unwrap_or_default()
                };
                deploy.candidate = instances(&program.candidate_id());
                deploy.stable = program.stable.as_ref().map(|spec| instances(&spec.id())).unwrap_or_default();
                deploy.table.clone_from(&observation.table);
            }
            deploy.observation = Some((**observation).clone());
            return;
        }
        (ActionKind::Measure { .. }, Answer::Samples(samples)) => {
            let values = samples.iter().filter_map(|sample| {
                let mut metric = sample.metric.clone();
                metric.subject = Subject::Baseline;
                Some((metric, sample.value.clone()?))
            });
            deploy.baseline = Some(values.collect());
            return;
        }
        (
            ActionKind::Ensure { release, .. }
            | ActionKind::AwaitReady { release, .. }
            | ActionKind::Stop { release, .. }
            | ActionKind::Roll { release, .. },
            Answer::Instances(instances),
        ) => {
            if let Some(side) = side_of(deploy, &release.id()) {
                deploy.instances_mut(side).clone_from(instances);
            }
        }
        (ActionKind::Route { table, .. }, _) if at_preview(deploy) => {
            deploy.preview = Some((**table).clone())
        }
        (ActionKind::Route { table, .. }, _) => deploy.table = Some((**table).clone()),
        _ => {}
    }
    deploy.cursor.micro += 1;
    deploy.cursor.retries = 0;
}

// ---------------------------------------------------------------- actions of a step

fn environment<'a>(plan: &'a Plan, deploy: &Deploy) -> Option<&'a Environment> {
    plan.environments.get(&deploy.environment)
}

/// Whether users are steered by a router that has a table.
fn is_routed(plan: &Plan, deploy: &Deploy) -> bool {
    deploy.service.route.is_some()
        && environment(plan, deploy)
            .and_then(|environment| environment.traffic.as_ref())
            .is_some_and(|traffic| traffic.kind != TrafficKind::Replicas)
}

fn within_ms(spec: &ReleaseSpec) -> u64 {
    spec.health.iter().map(|health| health.within_ms).max().unwrap_or(60_000)
}

fn ready_bp(part: usize, whole: usize) -> u32 {
    if whole == 0 {
        return 0;
    }
    // Rounded to the nearest; at most 10,000 by construction.
    u32::try_from((part * 2 * ALL_BP as usize + whole) / (2 * whole)).unwrap_or(ALL_BP)
}

/// The table that these shares mean with the instances there are, less those that are about to go.
fn table_for(
    spec: &Deploy,
    deploy: &DeployState,
    routing: &Routing,
    leaving: &[InstanceId],
) -> Option<RouteTable> {
    let route = spec.service.route.clone()?;
    let program = deploy.program.as_ref()?;
    let candidate = program.candidate_id();
    let stable = program.stable.as_ref().map(ReleaseSpec::id).filter(|stable| *stable != candidate);
    let members = |side: Role| -> Vec<Member> {
        let staying = || deploy.instances(side).iter().filter(|instance| !leaving.contains(&instance.id));
        let member = |instance: &Instance| {
            Some(Member { instance: instance.id.clone(), address: instance.address.clone()? })
        };
        let ready: Vec<_> = staying().filter(|instance| instance.ready).filter_map(member).collect();
        // None is ready: a request that may fail is better than one that must.
        if ready.is_empty() { staying().filter_map(member).collect() } else { ready }
    };
    let (strategy_rules, sticky) = match &spec.strategy {
        Strategy::Canary(canary) => (canary.rules.as_slice(), canary.sticky),
        _ => (&[] as &[RouteMatch], Sticky::None),
    };
    let (candidate_bp, with_rules) = match routing {
        Routing::Closed => return Some(RouteTable::closed(route)),
        Routing::Weighted { candidate_bp, rules } => (*candidate_bp, *rules && !strategy_rules.is_empty()),
        Routing::ByInstances => {
            let (new, old) = (members(Role::Candidate).len(), members(Role::Stable).len());
            (ready_bp(new, new + old), false)
        }
    };
    let candidate_bp = if stable.is_none() { ALL_BP } else { candidate_bp };
    let mut entries = Vec::new();
    if let Some(stable) = stable.filter(|_| candidate_bp < ALL_BP) {
        entries.push(RouteEntry {
            release: stable,
            role: Role::Stable,
            weight_bp: ALL_BP - candidate_bp,
            members: members(Role::Stable),
        });
    }
    if candidate_bp > 0 || with_rules {
        // Whoever has all users is what serves now.
        let role = if candidate_bp == ALL_BP { Role::Stable } else { Role::Candidate };
        let members = members(Role::Candidate);
        entries.push(RouteEntry { release: candidate.clone(), role, weight_bp: candidate_bp, members });
    }
    let rules = strategy_rules
        .iter()
        .filter(|_| with_rules)
        .map(|matches| RouteRule { matches: matches.clone(), release: candidate.clone() })
        .collect();
    let sticky = if candidate_bp == ALL_BP || candidate_bp == 0 { Sticky::None } else { sticky };
    Some(RouteTable { route, entries, rules, sticky })
}

/// The table of the preview: the candidate alone, or closed.
fn preview_table(spec: &Deploy, deploy: &DeployState, open: bool) -> Option<RouteTable> {
    let Strategy::BlueGreen(settings) = &spec.strategy else { return None };
    let listen = settings.preview.clone()?;
    let route = Route { listen: Some(listen), object: None, ..spec.service.route.clone()? };
    if !open {
        return Some(RouteTable::closed(route));
    }
    let mut table = table_for(spec, deploy, &Routing::Weighted { candidate_bp: ALL_BP, rules: false }, &[])?;
    table.entries.iter_mut().for_each(|entry| entry.role = Role::Candidate);
    Some(RouteTable { route, ..table })
}

/// Instances that go when `count` stay: unready ones first, then the last of the list, where targets name canaries.
fn leaving(instances: &[Instance], count: u32) -> Vec<Instance> {
    let excess = instances.len().saturating_sub(count as usize);
    let mut order: Vec<_> = instances.iter().enumerate().collect();
    order.sort_by_key(|(at, instance)| (instance.ready, std::cmp::Reverse(*at)));
    order.into_iter().take(excess).map(|(_, instance)| instance.clone()).collect()
}

/// The next action of the current step at or after the cursor's position, with its position.
pub(crate) fn next_micro<'a>(
    plan: &Plan,
    spec: &Deploy,
    index: u32,
    deploy: &'a DeployState,
) -> Option<(u32, Micro<'a>)> {
    let program = deploy.program.as_ref()?;
    let step = deploy.steps().get(deploy.cursor.pc? as usize)?;
    let sequence = sequence(plan, spec, index, deploy, program, step);
    sequence
        .into_iter()
        .zip(0_u32..)
        .skip(deploy.cursor.micro as usize)
        .find_map(|(micro, at)| micro.map(|micro| (at, micro)))
}

fn sequence<'a>(
    plan: &Plan,
    spec: &Deploy,
    index: u32,
    deploy: &'a DeployState,
    program: &'a Program,
    step: &'a ProgramStep,
) -> Vec<Option<Micro<'a>>> {
    let environment = || spec.environment.clone();
    let routed = is_routed(plan, spec);
    let release = |side: Role| match side {
        Role::Candidate => Some(&program.candidate),
        Role::Stable => program.stable.as_ref(),
    };
    let act = |kind: ActionKind, deadline_ms: u64| Some(Micro::Act { kind, deadline_ms });
    let route = |table: Option<RouteTable>, seen: &Option<RouteTable>| -> Vec<Option<Micro<'a>>> {
        let Some(table) = table else { return vec![None, None] };
        let seen = seen.clone().map(Box::new);
        vec![
            act(
                ActionKind::Route { environment: environment(), table: Box::new(table.clone()), seen },
                QUICK_MS,
            ),
            act(ActionKind::AwaitRouted { environment: environment(), table: Box::new(table) }, QUICK_MS),
        ]
    };
    let drained = |release: &ReleaseSpec, instances: Vec<Instance>| -> Option<Micro<'a>> {
        let route = spec.service.route.clone().filter(|_| routed && !instances.is_empty())?;
        act(
            ActionKind::AwaitDrained {
                environment: environment(),
                route,
                release: release.id(),
                instances,
                drain_ms: spec.service.drain_ms,
            },
            spec.service.drain_ms + GRACE_MS,
        )
    };
    let stop = |release: &ReleaseSpec, instances: Vec<Instance>, old: Option<OldRelease>| {
        act(
            ActionKind::Stop {
                environment: environment(),
                release: Box::new(release.clone()),
                instances,
                old,
                retain: spec.service.retain,
            },
            spec.service.drain_ms + QUICK_MS,
        )
    };
    let ready = |side: Role, count: u32, may_fail: u32| {
        let release = release(side)?;
        act(
            ActionKind::AwaitReady {
                environment: environment(),
                release: Box::new(release.clone()),
                count,
                may_fail,
            },
            within_ms(release) + GRACE_MS,
        )
    };
    match step {
        ProgramStep::Ensure { side, count, .. } => match release(*side) {
            Some(release) => {
                // The canary's environment is filled in by whoever can evaluate it.
                let (release, canary_env) = (Box::new(release.clone()), BTreeMap::new());
                vec![act(
                    ActionKind::Ensure { environment: environment(), release, count: *count, canary_env },
                    START_MS,
                )]
            }
            None => Vec::new(),
        },
        ProgramStep::Ready { side, count, may_fail } => vec![ready(*side, *count, *may_fail)],
        ProgramStep::Settled { side, count } => vec![ready(*side, *count, 0)],
        ProgramStep::Route(routing) if routed => route(table_for(spec, deploy, routing, &[]), &deploy.table),
        ProgramStep::Route(_) | ProgramStep::WatchOn | ProgramStep::WatchOff | ProgramStep::Promote => {
            Vec::new()
        }
        ProgramStep::Shrink { side, count } => {
            let going = leaving(deploy.instances(*side), *count);
            let Some(release) = release(*side).filter(|_| !going.is_empty()) else { return Vec::new() };
            let ids: Vec<_> = going.iter().map(|instance| instance.id.clone()).collect();
            let in_force =
                deploy.routing.clone().unwrap_or(Routing::Weighted { candidate_bp: 0, rules: false });
            let mut steps = if routed && in_force != Routing::Closed {
                route(table_for(spec, deploy, &in_force, &ids), &deploy.table)
            } else {
                vec![None, None]
            };
            steps.push(drained(release, going.clone()));
            steps.push(stop(release, going, None));
            steps
        }
        ProgramStep::Retire { side, old } => match release(*side) {
            Some(release) => {
                vec![drained(release, deploy.instances(*side).clone()), stop(release, Vec::new(), Some(*old))]
            }
            None => Vec::new(),
        },
        ProgramStep::Sweep { release } => match program.seen.releases.iter().find(|seen| seen.id == *release)
        {
            Some(stray) => vec![
                drained(&stray.spec, stray.instances.clone()),
                stop(&stray.spec, Vec::new(), Some(OldRelease::Remove)),
            ],
            None => Vec::new(),
        },
        ProgramStep::Preview { open } => {
            let Some(table) = preview_table(spec, deploy, *open) else { return Vec::new() };
            let observe = ActionKind::Observe {
                environment: environment(),
                service: spec.service.name.clone(),
                platform_name: spec.service.platform_name.clone(),
                route: Some(table.route.clone()),
            };
            let mut steps = vec![act(observe, QUICK_MS)];
            steps.extend(route(Some(table), &deploy.preview));
            steps
        }
        ProgramStep::Verify => vec![Some(Micro::Block(Block::Verify(index)))],
        ProgramStep::Validate => vec![Some(Micro::Block(Block::Validate(index)))],
        ProgramStep::Soak { ms, .. } => vec![Some(Micro::Soak { ms: *ms })],
        ProgramStep::Approve(approval) => vec![Some(Micro::Approve(approval))],
        ProgramStep::Roll { side, count } => match release(*side) {
            Some(release) => {
                let fence = program.seen.fence;
                let release = Box::new(release.clone());
                vec![act(
                    ActionKind::Roll { environment: environment(), release, count: *count, fence },
                    spec.timeout_ms,
                )]
            }
            None => Vec::new(),
        },
    }
}

// ---------------------------------------------------------------- decisions

impl Decide<'_> {
    /// What comes next for the deploy at `step`; `None` if it waits for something.
    pub(crate) fn deploy(&self, work: &Work, step: &StepRef, spec: &Deploy) -> Option<Record> {
        let deploy = work.deploys.get(&step.index)?;
        if let Some(undo) = &deploy.undo {
            return self.deploy_undo(deploy, undo, step, spec);
        }
        if let Some(trouble) = trouble(work, deploy) {
            return self.deploy_fails(work, deploy, step, spec, trouble);
        }
        if deploy.ended.is_some() {
            return Some(self.step_finished(step, Outcome::Succeeded, None));
        }
        if let Some(record) = self.watch_deploy(work, deploy, step, spec) {
            return Some(record);
        }
        if deploy.cursor.action.is_some() {
            return None;
        }
        if deploy.program.is_none() {
            return self.deploy_prepare(deploy, step, spec);
        }
        self.deploy_advance(work, deploy, step, spec)
    }

    /// Resolve, observe, measure the baseline, compile.
    fn deploy_prepare(&self, deploy: &DeployState, step: &StepRef, spec: &Deploy) -> Option<Record> {
        let timer = TimerId { node: step.node, purpose: TimerPurpose::DeployTimeout };
        if !self.state.timer_due.contains_key(&timer) && !deploy.timed_out {
            return Some(Record::TimerSet { timer, due_ms: self.state.now_ms + spec.timeout_ms });
        }
        let Some(candidate) = &deploy.spec else {
            return Some(match self.release_spec(step, spec) {
                Ok(release) => {
                    let environment = spec.environment.clone();
                    self.intent(
                        step,
                        ActionKind::Resolve { environment, spec: Box::new(release) },
                        RESOLVE_MS,
                    )
                }
                Err(fault) => self.step_finished(step, Outcome::Failed, Some(fault)),
            });
        };
        let Some(observation) = &deploy.observation else {
            return Some(self.intent(step, self.observe(spec), QUICK_MS));
        };
        if !observation.unmanaged.is_empty() && !spec.service.adopt {
            let found = observation.unmanaged.join(", ");
            let fault = Fault::new(
                "unmanaged",
                format!(
                    "{} in {} is there already and was not made by cdpipe: {found}",
                    spec.service.name, spec.environment
                ),
            )
            .help(
                "remove it, or say `adopt = true` in the service to take it over as the first stable release",
            );
            return Some(self.step_finished(step, Outcome::Failed, Some(fault)));
        }
        let replicas = match self.replicas(step, spec) {
            Ok(replicas) => replicas,
            Err(fault) => return Some(self.step_finished(step, Outcome::Failed, Some(fault))),
        };
        let environment = environment(self.plan, spec)?;
        if deploy.baseline.is_none()
            && let Some(requests) = self.baseline_requests(deploy, spec, candidate)
        {
            let kind = ActionKind::Measure { environment: Some(environment.name.clone()), requests };
            return Some(self.intent(step, kind, QUICK_MS));
        }
        let inputs = strategy::Inputs { deploy: spec, environment, candidate, replicas, seen: observation };
        Some(Record::Programmed { step: step.clone(), program: Box::new(strategy::program(&inputs)) })
    }

    /// The next thing of the program that goes forward.
    fn deploy_advance(
        &self,
        work: &Work,
        deploy: &DeployState,
        step: &StepRef,
        spec: &Deploy,
    ) -> Option<Record> {
        let Some(pc) = deploy.cursor.pc else {
            return Some(Record::ProgramAt { step: step.clone(), pc: 0 });
        };
        let onward = Record::ProgramAt { step: step.clone(), pc: pc + 1 };
        if self.state.paused && deploy.cursor.micro == 0 && deploy.cursor.soak.is_none() {
            return None;
        }
        match next_micro(self.plan, spec, step.index, deploy).map(|(_, micro)| micro) {
            None => Some(onward),
            Some(Micro::Act { kind, deadline_ms }) => match self.with_canary_env(deploy, step, spec, kind) {
                Ok(kind) => Some(self.intent(step, kind, deadline_ms)),
                Err(fault) => self.deploy_fails(work, deploy, step, spec, (Outcome::Failed, fault)),
            },
            Some(Micro::Block(block)) => match &deploy.cursor.block_ended {
                Some(Ok(())) => Some(onward),
                // A failed block is trouble, seen before.
                Some(Err(_)) => None,
                None => self.frame_or_start(work, step.node, block),
            },
            Some(Micro::Soak { ms }) => self.soak(deploy, step, spec, ms, onward),
            Some(Micro::Approve(approval)) => self.deploy_approval(work, deploy, step, approval, onward),
        }
    }

    /// Fills in the environment that only canary instances have.
    fn with_canary_env(
        &self,
        deploy: &DeployState,
        step: &StepRef,
        spec: &Deploy,
        mut kind: ActionKind,
    ) -> Result<ActionKind, Fault> {
        let at = deploy.cursor.pc.and_then(|pc| deploy.steps().get(pc as usize));
        if let (Some(ProgramStep::Ensure { canary: true, .. }), Strategy::Canary(canary)) =
            (at, &spec.strategy)
            && let ActionKind::Ensure { canary_env, .. } = &mut kind
        {
            for (key, expr) in &canary.env {
                canary_env.insert(key.clone(), self.value(step, expr)?);
            }
        }
        Ok(kind)
    }

    /// Watched time: it is over when the time has come and a look after that found nothing wrong.
    fn soak(
        &self,
        deploy: &DeployState,
        step: &StepRef,
        spec: &Deploy,
        ms: u64,
        onward: Record,
    ) -> Option<Record> {
        if deploy.skip_soak || deploy.skip_all_soaks {
            return Some(onward);
        }
        let Some(soak) = deploy.cursor.soak else {
            let timer = TimerId { node: step.node, purpose: TimerPurpose::Soak };
            return Some(Record::TimerSet { timer, due_ms: self.state.now_ms + ms });
        };
        let every_ms = spec.watch.as_ref().map_or(0, |watch| watch.every_ms);
        let looked = deploy.watch.as_ref().is_none_or(|watch| {
            watch.hold_since_ms.is_none() && crate::watch::looked_at_end(watch, soak.due_ms, every_ms)
        });
        (soak.due && looked).then_some(onward)
    }

    fn deploy_approval(
        &self,
        work: &Work,
        deploy: &DeployState,
        step: &StepRef,
        approval: &Approval,
        onward: Record,
    ) -> Option<Record> {
        if self.plan.mode == Mode::Deployment && !approval.always {
            return Some(onward);
        }
        if !deploy.cursor.approval_asked {
            return self.ask_approval(step.node?, approval);
        }
        work.gate.approvals.last().is_some_and(crate::state::ApprovalState::is_given).then_some(onward)
    }

    /// Something went wrong: let what is under way come to its end, then go back.
    fn deploy_fails(
        &self,
        work: &Work,
        deploy: &DeployState,
        step: &StepRef,
        spec: &Deploy,
        (outcome, reason): Failure,
    ) -> Option<Record> {
        if let Some(action) = deploy.cursor.action {
            return self.cancel_read(action);
        }
        if let Some(action) = deploy.watch.as_ref().and_then(|watch| watch.sampling)
            && !self.state.cancel_asked.contains(&action)
        {
            return Some(Record::CancelAsked { action });
        }
        if let Some(frame) = work.frames.last()
            && matches!(frame.block, Block::Verify(_) | Block::Validate(_))
            && frame.ended.is_none()
        {
            return self.frame(work, step.node, Some((outcome, reason)));
        }
        let Some(program) = &deploy.program else {
            // Nothing was changed yet.
            return Some(self.step_finished(step, outcome, Some(reason)));
        };
        let forward = &program.steps[..(deploy.begun as usize).min(program.steps.len())];
        let exclusive = strategy::is_exclusive(&spec.strategy);
        let steps = strategy::undo(program, forward, exclusive, is_routed(self.plan, spec));
        if steps.is_empty() {
            return Some(self.step_finished(step, outcome, Some(reason)));
        }
        let outcome = match (outcome, &program.stable) {
            (Outcome::Cancelled, _) => Outcome::Cancelled,
            (outcome, None) => outcome,
            (_, Some(_)) => Outcome::RolledBack,
        };
        Some(Record::Undoing { step: step.clone(), reason, outcome, program: steps })
    }

    /// The next thing of a program that goes back.
    fn deploy_undo(
        &self,
        deploy: &DeployState,
        undo: &crate::state::UndoState,
        step: &StepRef,
        spec: &Deploy,
    ) -> Option<Record> {
        match &undo.ended {
            Some(Ok(())) => return Some(self.step_finished(step, undo.outcome, Some(undo.reason.clone()))),
            Some(Err(fault)) => {
                return Some(self.step_finished(step, Outcome::RollbackFailed, Some(fault.clone())));
            }
            None => {}
        }
        let timer = TimerId { node: step.node, purpose: TimerPurpose::UndoTimeout };
        if !self.state.timer_due.contains_key(&timer) && !undo.timed_out {
            return Some(Record::TimerSet { timer, due_ms: self.state.now_ms + spec.rollback_timeout_ms });
        }
        if undo.timed_out {
            if let Some(action) = deploy.cursor.action {
                return (!self.state.cancel_asked.contains(&action))
                    .then_some(Record::CancelAsked { action });
            }
            let fault = deploy.cursor.failed.as_ref().map_or_else(
                || Fault::new("timed-out", "the rollback took longer than its timeout"),
                |(_, fault)| fault.clone(),
            );
            return Some(self.rollback_failed(step, deploy, undo, &fault));
        }
        if deploy.cursor.action.is_some() {
            return None;
        }
        if let Some((outcome, fault)) = &deploy.cursor.failed {
            // The way back is worth several attempts; only its own deadline ends them, or a fault that will not go away.
            let again = fault.transient || *outcome == Outcome::TimedOut;
            if !again {
                return Some(self.rollback_failed(step, deploy, undo, fault));
            }
            if deploy.cursor.retry_at_ms.is_some() {
                return None;
            }
            let wait_ms = (UNDO_RETRY_MS << deploy.cursor.retries.min(8)).min(UNDO_RETRY_MAX_MS);
            let timer = TimerId { node: step.node, purpose: TimerPurpose::Retry };
            return Some(Record::TimerSet { timer, due_ms: self.state.now_ms + wait_ms });
        }
        let Some(pc) = deploy.cursor.pc else { return Some(Record::ProgramAt { step: step.clone(), pc: 0 }) };
        match next_micro(self.plan, spec, step.index, deploy).map(|(_, micro)| micro) {
            Some(Micro::Act { kind, deadline_ms }) => Some(self.intent(step, kind, deadline_ms)),
            // An undo holds nothing else.
            Some(_) | None => Some(Record::ProgramAt { step: step.clone(), pc: pc + 1 }),
        }
    }

    fn rollback_failed(
        &self,
        step: &StepRef,
        deploy: &DeployState,
        undo: &crate::state::UndoState,
        fault: &Fault,
    ) -> Record {
        let count = |side: Role| deploy.instances(side).iter().filter(|instance| instance.ready).count();
        let mut fault = Fault::new(
            "rollback-failed",
            format!(
                "the rollback did not succeed: {}; it was begun because {}",
                fault.message, undo.reason.message
            ),
        )
        .details(fault.details.iter().cloned());
        if let Some(program) = &deploy.program {
            let line = |what: &str, spec: &ReleaseSpec, ready: usize| {
                format!("{what} {} ({}): {ready} ready", spec.version, spec.id())
            };
            fault = fault.details([line("candidate", &program.candidate, count(Role::Candidate))]);
            if let Some(stable) = &program.stable {
                fault = fault.details([line("stable", stable, count(Role::Stable))]);
            }
        }
        fault = fault
            .help("a person is needed now: see what serves with `cdpipe status`, mend it, then deploy again");
        self.step_finished(step, Outcome::RollbackFailed, Some(fault))
    }

    /// Takes back a deploy that had succeeded, as part of undoing its stage.
    pub(crate) fn deploy_take_back(
        &self,
        work: &Work,
        step: &StepRef,
        spec: &Deploy,
        late: bool,
    ) -> Option<Record> {
        let deploy = work.deploys.get(&step.index)?;
        if let Some(undo) = &deploy.undo {
            return self.deploy_undo(deploy, undo, step, spec);
        }
        if deploy.cursor.action.is_some() {
            return None;
        }
        let program = deploy.program.as_ref()?;
        let reason = work
            .undo
            .as_ref()
            .map_or_else(|| Fault::new("rollback", "asked for"), |undo| undo.reason.clone());
        if late {
            if let Some((_, fault)) = &deploy.cursor.failed {
                return Some(self.step_finished(step, Outcome::RollbackFailed, Some(fault.clone())));
            }
            let Some(observation) = &deploy.observation else {
                return Some(self.intent(step, self.observe(spec), QUICK_MS));
            };
            let candidate = program.candidate_id();
            let serves =
                strategy::stable_of(observation, &candidate).is_some_and(|stable| stable.id == candidate);
            if !serves && !program.steps.is_empty() {
                let fault = Fault::new(
                    "superseded",
                    format!("{} in {} serves another release by now", spec.service.name, spec.environment),
                )
                .help("nothing was taken back; roll back by hand with `cdpipe rollback` if it must be");
                return Some(self.step_finished(step, Outcome::RollbackFailed, Some(fault)));
            }
        }
        let exclusive = strategy::is_exclusive(&spec.strategy);
        let steps = strategy::undo(program, &program.steps, exclusive, is_routed(self.plan, spec));
        if steps.is_empty() {
            return Some(self.step_finished(step, Outcome::RolledBack, Some(reason)));
        }
        Some(Record::Undoing { step: step.clone(), reason, outcome: Outcome::RolledBack, program: steps })
    }

    /// Asks a read to stop; an effect is left to come to its end, which its deadline bounds.
    fn cancel_read(&self, action: cdpipe_model::ActionId) -> Option<Record> {
        let is_read = self.state.in_flight.get(&action).is_some_and(|action| !action.kind.is_effect());
        (is_read && !self.state.cancel_asked.contains(&action)).then_some(Record::CancelAsked { action })
    }

    fn observe(&self, spec: &Deploy) -> ActionKind {
        ActionKind::Observe {
            environment: spec.environment.clone(),
            service: spec.service.name.clone(),
            platform_name: spec.service.platform_name.clone(),
            route: spec.service.route.clone().filter(|_| is_routed(self.plan, spec)),
        }
    }

    fn replicas(&self, step: &StepRef, spec: &Deploy) -> Result<u32, Fault> {
        crate::release::replicas(spec, &|expr| self.value(step, expr))
    }

    /// The release as the plan describes it, with everything that is known by now filled in.
    fn release_spec(&self, step: &StepRef, spec: &Deploy) -> Result<ReleaseSpec, Fault> {
        crate::release::release_spec(self.plan, spec, &|expr| self.value(step, expr))
    }

    fn baseline_requests(
        &self,
        deploy: &DeployState,
        spec: &Deploy,
        candidate: &ReleaseSpec,
    ) -> Option<Vec<cdpipe_model::measure::MeasureRequest>> {
        let watch = spec.watch.as_ref()?;
        let stable = strategy::stable_of(deploy.observation.as_ref()?, &candidate.id())?;
        let mut wanted = std::collections::BTreeSet::new();
        for rule in &watch.rules {
            rule.when.symbols(&mut |symbol| {
                if let Symbol::Metric(metric) = symbol
                    && metric.subject == Subject::Baseline
                {
                    wanted.insert(metric.clone());
                }
            });
        }
        let requests: Vec<_> = wanted
            .into_iter()
            .map(|mut metric| {
                metric.subject = Subject::Stable;
                self.request(
                    metric,
                    spec,
                    Some((&stable.spec, &stable.instances, Role::Stable)),
                    watch.every_ms,
                )
            })
            .collect();
        (!requests.is_empty()).then_some(requests)
    }
}

/// Why the deploy must go back, if it must.
fn trouble(work: &Work, deploy: &DeployState) -> Option<Failure> {
    if deploy.ended == Some(Ok(())) {
        return None;
    }
    if let Some(failure) = &deploy.cursor.failed {
        return Some(failure.clone());
    }
    if let Some(Err(failure)) = &deploy.cursor.block_ended {
        return Some(failure.clone());
    }
    if let Some(findings) = deploy.watch.as_ref().and_then(|watch| watch.breach.as_ref()) {
        let text = findings.iter().map(|finding| finding.text.as_str()).collect::<Vec<_>>().join("; ");
        return Some((Outcome::Failed, Fault::new("watch-breach", text)));
    }
    if let Some(stop) = &work.stop {
        return Some(stop.clone());
    }
    if deploy.timed_out {
        return Some((Outcome::TimedOut, Fault::new("timed-out", "the deploy took longer than its timeout")));
    }
    if let Some(rejected) = &work.gate.rejected {
        return Some((Outcome::Failed, rejected.clone()));
    }
    if work.gate.approvals.iter().any(|approval| approval.expired) {
        return Some((Outcome::TimedOut, Fault::new("expired", "nobody approved in time")));
    }
    None
}
