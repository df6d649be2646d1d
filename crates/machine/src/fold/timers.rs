//! Timers are set and fire.

use super::{current_deploy, steps_of};
use crate::state::{Soak, State, StepRun, Work};
use cdpipe_model::plan::{Plan, StepKind};
use cdpipe_model::record::{TimerId, TimerPurpose};
use cdpipe_model::{Fault, NodeId, Outcome};

pub(super) fn timer_set(state: &mut State, plan: &Plan, timer: &TimerId, due_ms: u64) {
    let Some(work) = state.work_mut(timer.node) else { return };
    match timer.purpose {
        TimerPurpose::Soak => {
            if let Some(run) = waiting_step(work, plan, timer.node) {
                run.wait_until_ms = Some(due_ms);
            } else if let Some(deploy) = current_deploy(work) {
                deploy.cursor.soak = Some(Soak { due_ms, due: false });
            }
        }
        TimerPurpose::Retry => {
            let late = match &mut work.undo {
                Some(undo) if undo.relock.failed => {
                    undo.relock.retry_at_ms = Some(due_ms);
                    return;
                }
                undo => undo.as_ref().is_some_and(|undo| undo.late && !undo.ended),
            };
            let in_undo = current_deploy(work).filter(|deploy| match &deploy.undo {
                Some(undo) => undo.ended.is_none(),
                // The look before it.
                None => late && deploy.cursor.failed.is_some(),
            });
            if let Some(deploy) = in_undo {
                deploy.cursor.retry_at_ms = Some(due_ms);
                deploy.cursor.retries += 1;
                return;
            }
            match work
                .frames
                .last_mut()
                .filter(|frame| frame.ended.is_none())
                .and_then(|frame| frame.step.as_mut())
            {
                Some(run) => {
                    run.retry_at_ms = Some(due_ms);
                    run.returned = None;
                }
                None => work.retry_at_ms = Some(due_ms),
            }
        }
        _ => {}
    }
}

/// The step under way, if it is a `wait` or a watch that stands alone.
pub(super) fn waiting_step<'a>(
    work: &'a mut Work,
    plan: &Plan,
    node: Option<NodeId>,
) -> Option<&'a mut StepRun> {
    let frame = work.frames.last_mut()?;
    let step = steps_of(plan, node, frame.block).get(frame.index as usize)?;
    matches!(step.kind, StepKind::Wait { .. } | StepKind::Watch(_)).then_some(frame.step.as_mut()?)
}

pub(super) fn fired(state: &mut State, plan: &Plan, timer: &TimerId) {
    let now_ms = state.now_ms;
    let Some(work) = state.work_mut(timer.node) else { return };
    match timer.purpose {
        TimerPurpose::NodeTimeout => {
            let what = timer.node.and_then(|id| plan.node(id)).map_or("it", |node| node.name.as_str());
            let fault = Fault::new("timed-out", format!("{what} took longer than its timeout"));
            work.stop.get_or_insert((Outcome::TimedOut, fault));
        }
        TimerPurpose::DeployTimeout => {
            if let Some(deploy) = current_deploy(work) {
                deploy.timed_out = true;
            }
        }
        TimerPurpose::UndoTimeout => {
            if let Some(undo) = current_deploy(work).and_then(|deploy| deploy.undo.as_mut()) {
                undo.timed_out = true;
            }
        }
        TimerPurpose::Soak => {
            if let Some(run) = waiting_step(work, plan, timer.node) {
                run.wait_due = true;
            } else if let Some(soak) = current_deploy(work).and_then(|deploy| deploy.cursor.soak.as_mut()) {
                soak.due = true;
            }
        }
        TimerPurpose::Sample => {
            let step_watch = work
                .frames
                .last_mut()
                .and_then(|frame| frame.step.as_mut())
                .and_then(|run| run.watch.as_mut());
            if let Some(watch) = step_watch {
                watch.sample_due = true;
            } else if let Some(watch) = current_deploy(work).and_then(|deploy| deploy.watch.as_mut()) {
                watch.sample_due = true;
            } else {
                work.gate.sample_due = true;
            }
        }
        TimerPurpose::Retry => {
            if let Some(undo) = &mut work.undo
                && undo.relock.retry_at_ms.take().is_some()
            {
                undo.relock.failed = false;
                return;
            }
            if let Some(deploy) = current_deploy(work)
                && deploy.cursor.retry_at_ms.take().is_some()
            {
                deploy.cursor.failed = None;
                return;
            }
            let run = work.frames.last_mut().and_then(|frame| frame.step.as_mut());
            match run.filter(|run| run.retry_at_ms.is_some()) {
                Some(run) => run.retry_due = true,
                None => work.retry_due = true,
            }
        }
        TimerPurpose::ApprovalExpires => {
            for approval in &mut work.gate.approvals {
                let due = approval.expires_at_ms.is_some_and(|due_ms| due_ms <= now_ms);
                approval.expired |= due && !approval.is_given();
            }
            if let Some(node) = timer.node {
                state.arm_expiry(node);
            }
        }
        // Marked already: the window is looked at again.
        TimerPurpose::Window => {}
    }
}
