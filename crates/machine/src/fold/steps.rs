//! Steps begin and end.

use super::{clear, step_of, steps_of};
use crate::state::{DeployState, Frame, State, StepRun, WatchState};
use cdpipe_model::action::{ActionResult, Answer, Block, StepRef};
use cdpipe_model::plan::{NodeKind, Plan, StepKind};
use cdpipe_model::record::TimerPurpose;
use cdpipe_model::{Fault, Outcome};

pub(super) fn step_started(state: &mut State, plan: &Plan, step: &StepRef, attempt: u32) {
    let is_deploy = matches!(step_of(plan, step).map(|step| &step.kind), Some(StepKind::Deploy(_)));
    let is_watch = matches!(step_of(plan, step).map(|step| &step.kind), Some(StepKind::Watch(_)));
    if matches!(step_of(plan, step).map(|step| &step.kind), Some(StepKind::Rollback { .. })) {
        state.rollbacks.insert(step.node);
    }
    let Some(work) = state.work_mut(step.node) else { return };
    if work.frames.last().is_none_or(|frame| frame.block != step.block) {
        work.frames.push(Frame { block: step.block, index: 0, step: None, ended: None });
    }
    if let Some(frame) = work.frames.last_mut() {
        frame.index = step.index;
        frame.step =
            Some(StepRun { attempt, watch: is_watch.then(WatchState::default), ..StepRun::default() });
    }
    if is_deploy {
        work.deploys.insert(step.index, DeployState::default());
    }
}

pub(super) fn step_finished(
    state: &mut State,
    plan: &Plan,
    step: &StepRef,
    outcome: Outcome,
    reason: &Option<Fault>,
) {
    if matches!(step_of(plan, step).map(|step| &step.kind), Some(StepKind::Rollback { .. })) {
        state.rollbacks.remove(&step.node);
    }
    // Others may wait for what is decided after this step.
    if !state.rollbacks.is_empty() || !state.late_undos.is_empty() {
        state.wake_rollbacks();
    }
    if step.block == Block::Main
        && matches!(step_of(plan, step).map(|step| &step.kind), Some(StepKind::Deploy(_)))
    {
        // They are of this deploy alone: the next one of the stage has a time of its own.
        clear(state, step.node, TimerPurpose::DeployTimeout);
        clear(state, step.node, TimerPurpose::UndoTimeout);
    }
    state.effects += 1;
    let number = state.effects;
    let last = steps_of(plan, step.node, step.block).len() as u64 <= u64::from(step.index) + 1;
    let outputs = {
        let Some(work) = state.work_mut(step.node) else { return };
        if let Some(undo) = &mut work.undo
            && !undo.ended
            && step.block == Block::Main
            && undo.queue.front() == Some(&step.index)
        {
            undo.queue.pop_front();
            undo.flag_action = None;
            undo.block_ended = None;
            if outcome == Outcome::RollbackFailed {
                undo.failed = undo.failed.take().or_else(|| reason.clone());
                undo.failed_steps.push(step.index);
            }
            if undo.queue.is_empty() && !undo.late {
                undo.ended = true;
            }
            state.mark(step.node);
            return;
        }
        let Some(frame) = work.frames.last_mut().filter(|frame| frame.block == step.block) else { return };
        let run = frame.step.take();
        if outcome == Outcome::Succeeded {
            if step.block == Block::Main {
                work.effects.insert(step.index, number);
            }
            frame.index = step.index + 1;
            if last {
                frame.ended = Some(Ok(()));
            }
        } else {
            let fault = reason.clone().unwrap_or_else(|| Fault::new("failed", "the step failed"));
            frame.ended = Some(Err((outcome, fault)));
        }
        let ended = frame.ended.clone();
        match (step.block, ended) {
            (Block::Main, Some(ended)) => work.ended = Some(ended),
            (Block::Verify(index) | Block::Validate(index), Some(ended)) => {
                work.frames.pop();
                if let Some(deploy) = work.deploys.get_mut(&index) {
                    deploy.cursor.block_ended = Some(ended);
                }
            }
            (Block::Undo(_), Some(ended)) => {
                work.frames.pop();
                if let Some(undo) = &mut work.undo {
                    undo.block_ended = Some(ended);
                }
            }
            _ => {}
        }
        match run.and_then(|run| run.returned) {
            Some(ActionResult::Done(Answer::Exited { outputs })) if outcome == Outcome::Succeeded => outputs,
            _ => return,
        }
    };
    let Some(id) = step.node else { return };
    let Some(NodeKind::Stage(stage)) = plan.node(id).map(|node| &node.kind) else { return };
    let Some(node) = state.node_mut(id) else { return };
    for declared in &stage.outputs {
        if let Some(text) = outputs.get(&declared.name)
            && let Ok(value) = crate::output::read(text, &declared.ty)
        {
            node.outputs.insert(declared.name.clone(), value);
        }
    }
}
