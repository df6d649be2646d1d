//! The actions that a step of a program is made of.

use super::table::{is_routed, leaving, preview_table, table_for};
use super::{QUICK_MS, ROUTED_MS};
use crate::state::DeployState;
use cdpipe_model::action::{ActionKind, Block};
use cdpipe_model::observe::{Instance, Role, RouteTable};
use cdpipe_model::plan::{Approval, Deploy, Plan};
use cdpipe_model::program::{Program, ProgramStep, Routing};
use cdpipe_model::release::ReleaseSpec;
use cdpipe_model::strategy::OldRelease;
use std::collections::BTreeMap;

/// Time to start instances, not counting their way to readiness.
const START_MS: u64 = 5 * 60_000;

/// Beyond the time a port gives itself, so that its own answer comes first.
const GRACE_MS: u64 = 10_000;

/// What comes next in a program step.
#[allow(clippy::large_enum_variant, reason = "it lives for one decision, and an action is what it mostly is")]
pub(crate) enum Micro<'a> {
    Act { kind: ActionKind, deadline_ms: u64 },
    Block(Block),
    Soak { ms: u64 },
    Approve(&'a Approval),
}

pub(super) fn within_ms(spec: &ReleaseSpec) -> u64 {
    spec.health.iter().map(|health| health.within_ms).max().unwrap_or(60_000)
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

pub(super) fn sequence<'a>(
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
            act(ActionKind::AwaitRouted { environment: environment(), table: Box::new(table) }, ROUTED_MS),
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
        ProgramStep::Heal { side, count } => {
            let Some(release) = release(*side) else { return Vec::new() };
            let (release, canary_env) = (Box::new(release.clone()), BTreeMap::new());
            let ensure =
                ActionKind::Ensure { environment: environment(), release, count: *count, canary_env };
            let back = Routing::Weighted { candidate_bp: 0, rules: false };
            // Only what has changed moves the route, and what was moved is seen to be so: the action after it stands where the cursor is.
            let moved = |at: u32| {
                let table = table_for(spec, deploy, &back, &[]).filter(|_| routed);
                let changed = table.clone().filter(|_| deploy.table != table);
                let mut steps = route(changed, &deploy.table);
                steps[1] = route(table, &deploy.table).pop().flatten().filter(|_| deploy.cursor.micro == at);
                steps
            };
            let mut steps = vec![act(ensure, START_MS)];
            steps.extend(moved(2));
            steps.push(ready(*side, *count, 0));
            steps.extend(moved(5));
            steps
        }
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
            let Some(table) = preview_table(plan, spec, deploy, *open) else { return Vec::new() };
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
                let undo = *side == Role::Stable;
                let fence = program.seen.fence.filter(|_| !undo);
                let policy = crate::strategy::roll_policy(&spec.strategy, *count, undo, spec.service.retain);
                let release = Box::new(release.clone());
                vec![act(
                    ActionKind::Roll { environment: environment(), release, count: *count, fence, policy },
                    spec.timeout_ms,
                )]
            }
            None => Vec::new(),
        },
    }
}
