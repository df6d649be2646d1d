//! The interpreter of one deploy: resolve, observe, compile the strategy, then carry the program out step by step; on any trouble
//! carry out the undo the same way.
//!
//! A program step is a short fixed sequence of actions (`micro`): a route is *set* and then *observed to be set*; instances that go
//! are taken out of the route, observed to be out, drained, and only then stopped.

mod answer;
mod micro;
mod table;
mod undo;

pub(crate) use undo::UNDO_TRIES;

use crate::decide::Decide;
use crate::state::{DeployState, Failure, Work};
use crate::strategy::{self};
pub(crate) use answer::{answered, arrive, note_micro, unanswered};
use cdpipe_model::action::{ActionKind, Block, StepRef};
use cdpipe_model::expr::{Subject, Symbol};
use cdpipe_model::observe::{Observation, Role};
use cdpipe_model::plan::{Approval, Deploy, Mode};
use cdpipe_model::program::ProgramStep;
use cdpipe_model::record::{Record, TimerId, TimerPurpose};
use cdpipe_model::release::ReleaseSpec;
use cdpipe_model::strategy::Strategy;
use cdpipe_model::value::Value;
use cdpipe_model::{Fault, Outcome};
use micro::{Micro, next_micro};
use table::{environment, is_routed};

/// Time for things that should be quick, and whose length no setting bounds.
const QUICK_MS: u64 = 30_000;

/// Time until a route that was written is seen to be in use. A platform's controllers that have lost their API server for a moment may
/// sleep for half a minute before they look for it again.
const ROUTED_MS: u64 = 90_000;

/// Time to find an artifact, which may have to be downloaded.
const RESOLVE_MS: u64 = 10 * 60_000;

impl Decide<'_> {
    /// What comes next for the deploy at `step`; `None` if it waits for something.
    pub(crate) fn deploy(&self, work: &Work, step: &StepRef, spec: &Deploy) -> Option<Record> {
        let deploy = work.deploys.get(&step.index)?;
        if let Some(undo) = &deploy.undo {
            return self.deploy_undo(deploy, undo, step, spec);
        }
        if let Some(trouble) = trouble(work, deploy, spec.timeout_ms) {
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
        if let Some(fault) = step.node.and_then(|id| self.approval_outdated(id, spec, deploy)) {
            return Some(self.step_finished(step, Outcome::Failed, Some(fault)));
        }
        let replicas = match self.wanted(step, spec, candidate, observation) {
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
            return self.cancel_awaited(action);
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

    /// Asks a read to stop, and a roll of the platform: the roll to stable replaces it wherever it stands. Any other effect is left to
    /// come to its end, which its deadline bounds.
    fn cancel_awaited(&self, action: cdpipe_model::ActionId) -> Option<Record> {
        let awaited =
            self.state.in_flight.get(&action).is_some_and(|action| {
                !action.kind.is_effect() || matches!(action.kind, ActionKind::Roll { .. })
            });
        (awaited && !self.state.cancel_asked.contains(&action)).then_some(Record::CancelAsked { action })
    }

    pub(crate) fn observe(&self, spec: &Deploy) -> ActionKind {
        ActionKind::Observe {
            environment: spec.environment.clone(),
            service: spec.service.name.clone(),
            platform_name: spec.service.platform_name.clone(),
            route: spec.service.route.clone().filter(|_| is_routed(self.plan, spec)),
        }
    }

    fn wanted(
        &self,
        step: &StepRef,
        spec: &Deploy,
        candidate: &ReleaseSpec,
        seen: &Observation,
    ) -> Result<u32, Fault> {
        crate::release::wanted(spec, candidate, seen, &|expr| self.value(step, expr))
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
fn trouble(work: &Work, deploy: &DeployState, timeout_ms: u64) -> Option<Failure> {
    if deploy.ended == Some(Ok(())) {
        return None;
    }
    let of_block = || deploy.cursor.block_ended.as_ref().and_then(|ended| ended.as_ref().err());
    let failed = deploy.cursor.failed.as_ref().or_else(of_block);
    // What was cancelled was cancelled for a reason, and that is what the deploy fails by.
    failed
        .filter(|(outcome, _)| *outcome != Outcome::Cancelled)
        .cloned()
        .or_else(|| told_to_stop(work, deploy, timeout_ms))
        .or_else(|| failed.cloned())
}

/// What stops a deploy from outside of its program.
fn told_to_stop(work: &Work, deploy: &DeployState, timeout_ms: u64) -> Option<Failure> {
    if let Some(findings) = deploy.watch.as_ref().and_then(|watch| watch.breach.as_ref()) {
        let text = findings.iter().map(|finding| finding.text.as_str()).collect::<Vec<_>>().join("; ");
        return Some((Outcome::Failed, Fault::new("watch-breach", text)));
    }
    if let Some(stop) = &work.stop {
        return Some(stop.clone());
    }
    if deploy.timed_out {
        #[allow(clippy::cast_precision_loss, reason = "for a person")]
        let within = Value::Duration(timeout_ms as f64);
        let text = format!("the deploy took longer than its timeout of {within}");
        return Some((Outcome::TimedOut, Fault::new("timed-out", text)));
    }
    if let Some(rejected) = &work.gate.rejected {
        return Some((Outcome::Failed, rejected.clone()));
    }
    if work.gate.approvals.iter().any(|approval| approval.expired) {
        return Some((Outcome::TimedOut, Fault::new("expired", "nobody approved in time")));
    }
    None
}
