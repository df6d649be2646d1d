//! The fold of a deploy: where its program stands, and what its actions answered.

use super::micro::next_micro;
use crate::fold::{side_of, step_of};
use crate::state::{DeployState, WatchState};
use cdpipe_model::action::{ActionKind, Answer, StepRef};
use cdpipe_model::expr::Subject;
use cdpipe_model::plan::{Plan, StepKind};
use cdpipe_model::program::ProgramStep;

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

/// An action of the deploy ended without an answer that it was done. It may have been, all the same.
pub(crate) fn unanswered(deploy: &mut DeployState, kind: &ActionKind) {
    // A preview is looked at before it is set, each time.
    if let ActionKind::Route { table, .. } = kind
        && !at_preview(deploy)
    {
        deploy.table_in_doubt = Some((**table).clone());
    }
}

/// An action of the deploy was done.
pub(crate) fn answered(deploy: &mut DeployState, kind: &ActionKind, answer: &Answer) {
    match (kind, answer) {
        (ActionKind::Resolve { .. }, Answer::Resolved(spec)) => {
            deploy.spec = Some((**spec).clone());
            return;
        }
        (ActionKind::Observe { .. }, Answer::Observed(observation)) if deploy.table_in_doubt.is_some() => {
            // Only the table that was in doubt is believed: any other was set by somebody else, and the router says so.
            let doubted = deploy.table_in_doubt.take();
            if observation.table == doubted {
                deploy.table = doubted;
            }
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
