//! Actions are begun and come back.

use super::{Place, active_step, clear, place};
use crate::deploy::{self, UNDO_TRIES};
use crate::state::{Applied, Back, FlagWas, Lock, NodePhase, Relock, State};
use cdpipe_model::action::{Action, ActionKind, ActionResult, Answer, Block};
use cdpipe_model::objects::{ApplySpec, Surveyed};
use cdpipe_model::plan::Plan;
use cdpipe_model::record::TimerPurpose;
use cdpipe_model::{ActionId, EnvName, Fault, NodeId, Outcome};

pub(super) fn intent(state: &mut State, plan: &Plan, action: &Action) {
    state.last_action = state.last_action.max(action.id.0);
    let id = Some(action.id);
    match place(state, plan, action) {
        Place::Lock => set_lock(state, action.step.node, Lock::Taking),
        Place::Unlock => set_lock(state, action.step.node, Lock::Releasing),
        Place::GateSample => {
            if let Some(work) = state.work_mut(action.step.node) {
                work.gate.sampling = id;
                work.gate.sample_due = false;
            }
        }
        Place::GateLook => {
            if let Some(work) = state.work_mut(action.step.node) {
                work.gate.looking = id;
            }
        }
        Place::DeployWatch(index) => {
            let watch = state.work_mut(action.step.node).and_then(|work| work.deploys.get_mut(&index));
            if let Some(watch) = watch.and_then(|deploy| deploy.watch.as_mut()) {
                watch.sampling = id;
                watch.sample_due = false;
            }
            clear(state, action.step.node, TimerPurpose::Sample);
        }
        Place::Deploy(index) => {
            if let Some(deploy) =
                state.work_mut(action.step.node).and_then(|work| work.deploys.get_mut(&index))
            {
                deploy::note_micro(plan, &action.step, deploy, &action.kind);
                deploy.cursor.action = id;
                deploy.cursor.retry_at_ms = None;
            }
        }
        Place::UndoFlag => {
            if let Some(undo) = state.work_mut(action.step.node).and_then(|work| work.undo.as_mut()) {
                undo.flag_action = id;
            }
        }
        Place::Unapply => {
            if let Some(applied) = applied(state, action) {
                applied.back = Some(Back::UnderWay);
            }
        }
        Place::StepWatch => {
            if let Some(watch) = active_step(state, action.step.node).and_then(|run| run.watch.as_mut()) {
                watch.sampling = id;
                watch.sample_due = false;
            }
        }
        Place::Step => {
            if let ActionKind::Apply { .. } = &action.kind
                && let Some(applied) = applied(state, action)
            {
                applied.begun = true;
            }
            if let Some(run) = active_step(state, action.step.node) {
                run.action = id;
                run.returned = None;
            }
        }
    }
    state.in_flight.insert(action.id, action.clone());
}

/// The set that a main step applies.
fn applied<'a>(state: &'a mut State, action: &Action) -> Option<&'a mut Applied> {
    let step = &action.step;
    let work = state.work_mut(step.node).filter(|_| step.block == Block::Main)?;
    work.applied.get_mut(&step.index)
}

pub(super) fn set_lock(state: &mut State, node: Option<NodeId>, lock: Lock) {
    let Some(work) = state.work_mut(node) else { return };
    work.lock = lock;
    if lock == Lock::Released
        && let Some(undo) = &mut work.undo
        && undo.late
        && undo.queue.is_empty()
    {
        undo.ended = true;
        let failed = undo.failed.clone();
        late_undo_ended(state, node, failed);
    }
}

/// A hook somewhere waits for it.
pub(super) fn late_undo_ended(state: &mut State, node: Option<NodeId>, failed: Option<Fault>) {
    // One that takes itself back in a hook has not ended yet.
    if let Some(node) =
        node.and_then(|id| state.node_mut(id)).filter(|node| node.phase == NodePhase::Finished)
    {
        node.outcome = Some(if failed.is_some() { Outcome::RollbackFailed } else { Outcome::RolledBack });
        if failed.is_some() {
            node.reason.clone_from(&failed);
        }
    }
    crate::schedule::find_worst(state);
    if failed.is_some() {
        state.late_failed = state.late_failed.take().or(failed);
    }
    state.mark(node);
    state.wake_rollbacks();
}

pub(super) fn failure(result: &ActionResult) -> (Outcome, Fault) {
    match result {
        ActionResult::Done(_) => (Outcome::Failed, Fault::new("internal", "unexpected answer")),
        ActionResult::Failed(fault) => (Outcome::Failed, fault.clone()),
        ActionResult::TimedOut(fault) => (Outcome::TimedOut, fault.clone()),
        ActionResult::Cancelled => (Outcome::Cancelled, Fault::new("cancelled", "it was cancelled")),
        ActionResult::Unknown(fault) => (Outcome::Failed, fault.clone()),
    }
}

pub(super) fn returned(state: &mut State, plan: &Plan, id: ActionId, result: &ActionResult) {
    let Some(action) = state.in_flight.remove(&id) else { return };
    state.cancel_asked.remove(&id);
    let node = action.step.node;
    state.mark(node);
    match place(state, plan, &action) {
        Place::Lock => match result {
            ActionResult::Done(_) => {
                if let Some(undo) = state.work_mut(node).and_then(|work| work.undo.as_mut()) {
                    undo.relock = Relock::default();
                }
                set_lock(state, node, Lock::Held);
            }
            other => {
                set_lock(state, node, Lock::None);
                let (outcome, fault) = failure(other);
                let Some(work) = state.work_mut(node) else { return };
                match &mut work.undo {
                    Some(undo)
                        if undo.late
                            && matches!(other, ActionResult::Failed(_))
                            && undo.relock.tries.saturating_add(1) < UNDO_TRIES =>
                    {
                        undo.relock.tries += 1;
                        undo.relock.failed = true;
                    }
                    Some(undo) if undo.late => {
                        undo.failed = Some(fault.clone());
                        undo.ended = true;
                        late_undo_ended(state, node, Some(fault));
                    }
                    _ => {
                        let stop = work.stop.clone();
                        work.ended = Some(Err(stop.unwrap_or((outcome, fault))));
                    }
                }
            }
        },
        // A lock that can't be given back ends with its lease.
        Place::Unlock => set_lock(state, node, Lock::Released),
        Place::GateSample => {
            if let Some(work) = state.work_mut(node)
                && work.gate.sampling == Some(id)
            {
                work.gate.sampling = None;
                work.gate.samples = Some(samples(result));
            }
        }
        Place::GateLook => {
            if let (Some(work), ActionKind::Observe { environment, service, .. }) =
                (state.work_mut(node), &action.kind)
                && work.gate.looking == Some(id)
            {
                work.gate.looking = None;
                let seen = match result {
                    ActionResult::Done(Answer::Observed(seen)) => crate::approval::seen(seen),
                    // Who can't be asked now is asked when the stage begins; nothing can be said of a difference.
                    _ => crate::approval::nothing_known(),
                };
                work.gate.seen.insert((environment.clone(), service.clone()), seen);
            }
        }
        Place::DeployWatch(index) => {
            let deploy = state.work_mut(node).and_then(|work| work.deploys.get_mut(&index));
            if let Some(watch) = deploy.and_then(|deploy| deploy.watch.as_mut())
                && watch.sampling == Some(id)
            {
                watch.sampling = None;
                watch.samples = Some(samples(result));
            }
        }
        Place::Deploy(index) => {
            if let Some(deploy) = state.work_mut(node).and_then(|work| work.deploys.get_mut(&index))
                && deploy.cursor.action == Some(id)
            {
                deploy.cursor.action = None;
                match result {
                    ActionResult::Done(answer) => deploy::answered(deploy, &action.kind, answer),
                    other => {
                        deploy::unanswered(deploy, &action.kind);
                        deploy.cursor.failed = Some(failure(other));
                    }
                }
            }
        }
        Place::UndoFlag => {
            if let Some(undo) = state.work_mut(node).and_then(|work| work.undo.as_mut()) {
                // `Some` of an action that is no longer in flight says that it came back.
                if !matches!(result, ActionResult::Done(_)) {
                    undo.failed = Some(failure(result).1);
                }
            }
        }
        Place::Unapply => {
            if let Some(applied) = applied(state, &action) {
                let ended = match result {
                    ActionResult::Done(_) => Ok(()),
                    other => Err(failure(other).1),
                };
                applied.back = Some(Back::Ended(ended));
            }
        }
        Place::StepWatch => {
            if let Some(watch) = active_step(state, node).and_then(|run| run.watch.as_mut())
                && watch.sampling == Some(id)
            {
                watch.sampling = None;
                watch.samples = Some(samples(result));
            }
        }
        Place::Step => {
            if let (ActionKind::SetFlag { provider, flag, .. }, ActionResult::Done(Answer::FlagWas(value))) =
                (&action.kind, result)
                && action.step.block == Block::Main
                && let Some(work) = state.work_mut(node)
            {
                let was =
                    FlagWas { provider: (**provider).clone(), flag: flag.clone(), value: value.clone() };
                work.flags_were.insert(action.step.index, was);
            }
            if let (ActionKind::Apply { .. }, ActionResult::Done(_)) = (&action.kind, result)
                && let Some(applied) = applied(state, &action)
            {
                applied.done = true;
            }
            if let (ActionKind::Survey { environment, spec }, ActionResult::Done(Answer::Surveyed(found))) =
                (&action.kind, result)
            {
                surveyed(state, &action, environment, spec, found);
            } else if let Some(run) = active_step(state, node)
                && run.action == Some(id)
            {
                run.action = None;
                run.returned = Some(result.clone());
            }
        }
    }
}

/// What an `apply` will change is known: it goes on with that.
fn surveyed(state: &mut State, action: &Action, environment: &EnvName, spec: &ApplySpec, found: &Surveyed) {
    let step = &action.step;
    if step.block == Block::Main
        && let Some(work) = state.work_mut(step.node)
    {
        let spec = ApplySpec { files: found.files.clone(), ..spec.clone() };
        let applied = Applied {
            environment: environment.clone(),
            spec,
            objects: found.objects.clone(),
            begun: false,
            done: false,
            back: None,
        };
        work.applied.insert(step.index, applied);
    }
    if let Some(run) = active_step(state, step.node)
        && run.action == Some(action.id)
    {
        run.action = None;
        run.surveyed = (step.block != Block::Main).then(|| Box::new(found.clone()));
    }
}

pub(super) fn samples(result: &ActionResult) -> Vec<cdpipe_model::measure::Sample> {
    match result {
        ActionResult::Done(Answer::Samples(samples)) => samples.clone(),
        // The question could not be asked at all: no sample, so every rule is without data.
        _ => Vec::new(),
    }
}
