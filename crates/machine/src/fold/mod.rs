//! The fold: what each record does to the state. Nothing is decided here, so a journal means the same to every later version.

mod actions;
mod nodes;
mod signals;
mod steps;
mod timers;
mod verdicts;

use crate::deploy;
use crate::state::{ApprovalState, Cursor, DeployState, Frame, State, StepRun, UndoState, Work};
use actions::{intent, returned};
use cdpipe_model::NodeId;
use cdpipe_model::action::{Action, ActionKind, Block, StepRef};
use cdpipe_model::observe::Role;
use cdpipe_model::plan::{NodeKind, Plan, Step, StepKind};
use cdpipe_model::program::ProgramStep;
use cdpipe_model::record::{Record, TimerId, TimerPurpose};
pub(crate) use nodes::undoable;
use nodes::{node_finished, node_started, opened, undo_started};
use signals::signalled;
use steps::{step_finished, step_started};
use timers::{fired, timer_set};
use verdicts::verdict;

/// Index that marks the samples of a gate, which belong to no step.
pub(crate) const GATE_SAMPLE: u32 = u32::MAX;

/// Index that marks what a gate finds where the stages behind it deploy.
pub(crate) const GATE_LOOK: u32 = u32::MAX - 1;

pub(crate) fn apply(state: &mut State, plan: &Plan, record: &Record) {
    match record {
        Record::Opened { at_ms, resumed, .. } => opened(state, *at_ms, *resumed),
        Record::TimerFired { at_ms, timer } => {
            state.now_ms = state.now_ms.max(*at_ms);
            state.clear_timer(timer);
            fired(state, plan, timer);
            state.mark(timer.node);
        }
        Record::Returned { at_ms, action, result } => {
            state.now_ms = state.now_ms.max(*at_ms);
            returned(state, plan, *action, result);
        }
        Record::Signalled { at_ms, signal } => {
            state.now_ms = state.now_ms.max(*at_ms);
            signalled(state, plan, signal);
        }
        Record::NodeStarted { node, attempt } => node_started(state, plan, *node, *attempt),
        Record::NodeFinished { node, outcome, reason } => node_finished(state, plan, *node, *outcome, reason),
        Record::StepStarted { step, attempt } => step_started(state, plan, step, *attempt),
        Record::StepFinished { step, outcome, reason } => step_finished(state, plan, step, *outcome, reason),
        Record::Intent { action } => intent(state, plan, action),
        Record::CancelAsked { action } => {
            state.cancel_asked.insert(*action);
        }
        Record::Programmed { step, program } => {
            if let Some(deploy) = deploy_mut(state, step) {
                let side = |id: Option<cdpipe_model::ReleaseId>| {
                    let release =
                        program.seen.releases.iter().find(|release| Some(&release.id) == id.as_ref());
                    release.map(|release| release.instances.clone()).unwrap_or_default()
                };
                deploy.candidate = side(Some(program.candidate_id()));
                deploy.stable = side(program.stable.as_ref().map(|spec| spec.id()));
                // A leftover of the candidate is swept first, so it doesn't count as the candidate's.
                if program.steps.iter().any(
                    |step| matches!(step, ProgramStep::Sweep { release } if *release == program.candidate_id()),
                ) {
                    deploy.candidate.clear();
                }
                deploy.table.clone_from(&program.seen.table);
                deploy.program = Some(program.clone());
            }
        }
        Record::ProgramAt { step, pc } => {
            if let Some(deploy) = deploy_mut(state, step) {
                deploy.cursor = Cursor { pc: Some(*pc), ..Cursor::default() };
                deploy.skip_soak = false;
                deploy::arrive(deploy);
            }
            clear(state, step.node, TimerPurpose::Soak);
        }
        Record::TimerSet { timer, due_ms } => {
            state.set_timer(timer.clone(), *due_ms);
            timer_set(state, plan, timer, *due_ms);
        }
        Record::TimerCleared { timer } => state.clear_timer(timer),
        Record::ApprovalAsked { node, by, quorum, effect_hash, expires_at_ms } => {
            state.asking.insert(*node);
            let is_gate = matches!(plan.node(*node).map(|node| &node.kind), Some(NodeKind::Gate(_)));
            if let Some(work) = state.work_mut(Some(*node)) {
                let asked = ApprovalState {
                    by: by.clone(),
                    quorum: *quorum,
                    given: Default::default(),
                    expired: false,
                    expires_at_ms: *expires_at_ms,
                    effect_hash: effect_hash.clone(),
                };
                // What it would let pass is another thing by now: those who had approved are asked again.
                let void = work.gate.approvals.iter_mut().find(|before| {
                    is_gate
                        && before.by == *by
                        && before.quorum == *quorum
                        && before.effect_hash != *effect_hash
                });
                match void {
                    Some(before) => *before = asked,
                    None => work.gate.approvals.push(asked),
                }
                if let Some(deploy) = current_deploy(work) {
                    deploy.cursor.approval_asked = true;
                }
            }
            state.arm_expiry(*node);
        }
        Record::Verdict { step, samples, findings } => verdict(state, plan, step, samples, findings),
        Record::Undoing { step, reason, outcome, program } => {
            if let Some(deploy) = deploy_mut(state, step) {
                deploy.undo = Some(UndoState {
                    steps: program.clone(),
                    reason: reason.clone(),
                    outcome: *outcome,
                    timed_out: false,
                    ended: None,
                });
                deploy.cursor = Cursor::default();
                deploy.watch = None;
            }
            for purpose in [TimerPurpose::Sample, TimerPurpose::Soak, TimerPurpose::DeployTimeout] {
                clear(state, step.node, purpose);
            }
        }
        Record::UndoStarted { node, reason, late } => undo_started(state, plan, *node, reason, *late),
        Record::HookStarted { node, hook } => {
            if node.is_none() {
                let worst =
                    state.worst.as_ref().map_or(cdpipe_model::Outcome::Succeeded, |(worst, _)| *worst);
                state.tail_answers.get_or_insert(worst);
            }
            if let Some(work) = state.work_mut(*node) {
                work.hook_open = true;
                work.hooks_run.insert(*hook);
                work.frames.push(Frame { block: Block::Hook(*hook), index: 0, step: None, ended: None });
            }
        }
        Record::HookFinished { node, hook, .. } => {
            if let Some(work) = state.work_mut(*node) {
                work.frames.retain(|frame| frame.block != Block::Hook(*hook));
                work.hook_open = false;
                work.next_hook = work.next_hook.max(hook + 1);
            }
            state.wake_rollbacks();
        }
        Record::Suspended { .. } => {}
        Record::RunFinished { outcome, reason } => state.ended = Some((*outcome, reason.clone())),
    }
}

/// The list of steps that a block names.
pub(crate) fn steps_of(plan: &Plan, node: Option<NodeId>, block: Block) -> &[Step] {
    let Some(id) = node else {
        return match block {
            Block::Hook(hook) => plan.hooks.get(hook as usize).map_or(&[], |hook| &hook.steps),
            _ => &[],
        };
    };
    let Some(node) = plan.node(id) else { return &[] };
    let (main, hooks) = match &node.kind {
        NodeKind::Stage(stage) => (&stage.steps, &stage.hooks),
        NodeKind::Gate(gate) => (&gate.checks, &gate.hooks),
    };
    let deploy = |index: u32| match main.get(index as usize).map(|step| &step.kind) {
        Some(StepKind::Deploy(deploy)) => Some(deploy),
        _ => None,
    };
    match block {
        Block::Main => main,
        Block::Hook(hook) => hooks.get(hook as usize).map_or(&[], |hook| &hook.steps),
        Block::Verify(index) => deploy(index).map_or(&[], |deploy| &deploy.verify),
        Block::Validate(index) => deploy(index).map_or(&[], |deploy| &deploy.validate),
        Block::Undo(index) => match main.get(index as usize).map(|step| &step.kind) {
            Some(StepKind::Undo { steps }) => steps,
            _ => &[],
        },
    }
}

/// The step that a reference names.
pub(crate) fn step_of<'a>(plan: &'a Plan, step: &StepRef) -> Option<&'a Step> {
    steps_of(plan, step.node, step.block).get(step.index as usize)
}

/// Who waits for an action.
pub(crate) enum Place {
    Lock,
    Unlock,
    GateSample,
    GateLook,
    DeployWatch(u32),
    Deploy(u32),
    UndoFlag,
    Unapply,
    StepWatch,
    Step,
}

pub(crate) fn place(state: &State, plan: &Plan, action: &Action) -> Place {
    let step = &action.step;
    match &action.kind {
        ActionKind::Lock { .. } => return Place::Lock,
        ActionKind::Unlock { .. } => return Place::Unlock,
        ActionKind::Unapply { .. } => return Place::Unapply,
        ActionKind::Measure { .. } if step.index == GATE_SAMPLE => return Place::GateSample,
        ActionKind::Observe { .. } if step.index == GATE_LOOK => return Place::GateLook,
        _ => {}
    }
    let work = state.work(step.node);
    if step.block == Block::Main
        && let Some(Step { kind: StepKind::Deploy(_), .. }) = step_of(plan, step)
    {
        let watching =
            work.and_then(|work| work.deploys.get(&step.index)).is_some_and(|deploy| deploy.watch.is_some());
        return match action.kind {
            ActionKind::Measure { .. } if watching => Place::DeployWatch(step.index),
            _ => Place::Deploy(step.index),
        };
    }
    let undoing = work.is_some_and(|work| work.undo.as_ref().is_some_and(|undo| !undo.ended));
    match action.kind {
        ActionKind::SetFlag { .. } if undoing && step.block == Block::Main => Place::UndoFlag,
        ActionKind::Measure { .. } => Place::StepWatch,
        _ => Place::Step,
    }
}

/// Which side of a deploy a release is.
pub(crate) fn side_of(deploy: &DeployState, release: &cdpipe_model::ReleaseId) -> Option<Role> {
    let program = deploy.program.as_ref()?;
    if *release == program.candidate_id() {
        return Some(Role::Candidate);
    }
    program.stable.as_ref().filter(|spec| spec.id() == *release).map(|_| Role::Stable)
}

fn clear(state: &mut State, node: Option<NodeId>, purpose: TimerPurpose) {
    state.clear_timer(&TimerId { node, purpose });
}

fn deploy_mut<'a>(state: &'a mut State, step: &StepRef) -> Option<&'a mut DeployState> {
    state.work_mut(step.node)?.deploys.get_mut(&step.index)
}

/// The deploy under way in a node, if its main frame stands at one.
fn current_deploy(work: &mut Work) -> Option<&mut DeployState> {
    let index = work.undo.as_ref().and_then(|undo| undo.queue.front().copied()).or_else(|| {
        let main = work.frames.first()?;
        (main.block == Block::Main && main.step.is_some()).then_some(main.index)
    })?;
    work.deploys.get_mut(&index)
}

fn active_step(state: &mut State, node: Option<NodeId>) -> Option<&mut StepRun> {
    state.work_mut(node)?.frames.last_mut()?.step.as_mut()
}
