//! A deploy goes back.

use super::QUICK_MS;
use super::micro::{Micro, next_micro};
use super::table::is_routed;
use crate::decide::Decide;
use crate::state::{DeployState, Work};
use crate::strategy::{self};
use cdpipe_model::action::StepRef;
use cdpipe_model::observe::Role;
use cdpipe_model::plan::Deploy;
use cdpipe_model::record::{Record, TimerId, TimerPurpose};
use cdpipe_model::release::ReleaseSpec;
use cdpipe_model::{Fault, NodeId, Outcome};

/// The fault of instances that had all the time they may take: it was a wait of its own, and a person should know now.
const NOT_READY: &str = "not-ready";

/// How often an action of an undo is tried whose fault is said not to go away. Who says so may be wrong, and what is at stake is a person
/// who is called at night; what an undo does can be done again.
pub(crate) const UNDO_TRIES: u32 = 4;

/// How often the look that begins the taking back of a stage that had ended is tried: for about a minute and a half. It has no undo yet
/// whose deadline could end it.
const LOOK_TRIES: u32 = 10;

/// First wait before a fault of an undo is tried again; it doubles up to the longest.
const UNDO_RETRY_MS: u64 = 500;

const UNDO_RETRY_MAX_MS: u64 = 15_000;

impl Decide<'_> {
    /// The next thing of a program that goes back.
    pub(super) fn deploy_undo(
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
            return Some(self.rollback_failed(step, spec, deploy, undo, &fault));
        }
        if deploy.cursor.action.is_some() {
            return None;
        }
        if let Some((outcome, fault)) = &deploy.cursor.failed {
            // The way back is worth several attempts; only its own deadline ends them, or a fault that does not go away.
            let doubtful = fault.kind != NOT_READY && deploy.cursor.retries.saturating_add(1) < UNDO_TRIES;
            let again = fault.transient || *outcome == Outcome::TimedOut || doubtful;
            if !again {
                return Some(self.rollback_failed(step, spec, deploy, undo, fault));
            }
            return self.undo_retry(step.node, deploy.cursor.retries, deploy.cursor.retry_at_ms);
        }
        if deploy.table_in_doubt.is_some() {
            return Some(self.intent(step, self.observe(spec), QUICK_MS));
        }
        let Some(pc) = deploy.cursor.pc else { return Some(Record::ProgramAt { step: step.clone(), pc: 0 }) };
        match next_micro(self.plan, spec, step.index, deploy).map(|(_, micro)| micro) {
            Some(Micro::Act { kind, deadline_ms }) => Some(self.intent(step, kind, deadline_ms)),
            // An undo holds nothing else.
            Some(_) | None => Some(Record::ProgramAt { step: step.clone(), pc: pc + 1 }),
        }
    }

    /// The wait before something of a way back is tried again; `None` while it is under way.
    pub(crate) fn undo_retry(
        &self,
        node: Option<NodeId>,
        failed: u32,
        retry_at_ms: Option<u64>,
    ) -> Option<Record> {
        if retry_at_ms.is_some() {
            return None;
        }
        let wait_ms = (UNDO_RETRY_MS << failed.min(8)).min(UNDO_RETRY_MAX_MS);
        let timer = TimerId { node, purpose: TimerPurpose::Retry };
        Some(Record::TimerSet { timer, due_ms: self.state.now_ms + wait_ms })
    }

    pub(super) fn rollback_failed(
        &self,
        step: &StepRef,
        spec: &Deploy,
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
            let line = |what: &str, release: &ReleaseSpec, ready: usize| {
                let place = format!("{} in {}", spec.service.name, spec.environment);
                format!("{place}: {what} {} ({}): {ready} ready", release.version, release.id())
            };
            fault = fault.details([line("candidate", &program.candidate, count(Role::Candidate))]);
            if let Some(stable) = &program.stable {
                fault = fault.details([line("stable", stable, count(Role::Stable))]);
            }
        }
        fault = fault.help(format!("a person is needed now: mend what is in the way, then `cdpipe resume {}` tries the way back again", self.header.run));
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
                if deploy.cursor.retries.saturating_add(1) < LOOK_TRIES {
                    return self.undo_retry(step.node, deploy.cursor.retries, deploy.cursor.retry_at_ms);
                }
                return Some(self.step_finished(step, Outcome::RollbackFailed, Some(fault.clone())));
            }
            let Some(observation) = &deploy.observation else {
                return Some(self.intent(step, self.observe(spec), QUICK_MS));
            };
            let candidate = program.candidate_id();
            let serves =
                strategy::stable_of(observation, &candidate).is_some_and(|stable| stable.id == candidate);
            // After an undo that failed halfway the old release may serve again already.
            let halfway = deploy.undo_again
                && match (strategy::stable_of(observation, &candidate), &program.stable) {
                    (Some(serving), Some(stable)) => serving.id == stable.id(),
                    (None, _) => true,
                    (Some(_), None) => false,
                };
            if !serves && !halfway && !program.steps.is_empty() {
                let fault = Fault::new(
                    "superseded",
                    format!("{} in {} serves another release by now", spec.service.name, spec.environment),
                )
                .help("nothing was taken back; roll back by hand with `cdpipe rollback` if it must be");
                return Some(self.step_finished(step, Outcome::RollbackFailed, Some(fault)));
            }
        }
        let exclusive = strategy::is_exclusive(&spec.strategy);
        let begun = if deploy.undo_again { deploy.begun as usize } else { program.steps.len() };
        let forward = &program.steps[..begun.min(program.steps.len())];
        let steps = strategy::undo(program, forward, exclusive, is_routed(self.plan, spec));
        if steps.is_empty() {
            return Some(self.step_finished(step, Outcome::RolledBack, Some(reason)));
        }
        Some(Record::Undoing { step: step.clone(), reason, outcome: Outcome::RolledBack, program: steps })
    }
}
