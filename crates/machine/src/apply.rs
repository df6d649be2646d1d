//! `apply`: a look at what is there, then the change, and the way back to what was there. The look is journaled before anything changes,
//! so the way back is known whenever the engine dies.

use crate::decide::Decide;
use crate::state::{Applied, Back, Failure, StepRun, Work};
use cdpipe_model::action::{ActionKind, ActionResult, Block, StepRef};
use cdpipe_model::objects::{ApplySpec, Was, set_name};
use cdpipe_model::plan::Apply;
use cdpipe_model::record::Record;
use cdpipe_model::{Fault, Outcome, Value};

/// How long a set may take to be as it was, at least; its own `timeout` if that is longer.
const BACK_MS: u64 = 300_000;

impl Decide<'_> {
    /// The look, or if there was one the change.
    pub(crate) fn apply_action(
        &self,
        work: &Work,
        run: &StepRun,
        step: &StepRef,
        plan: &Apply,
    ) -> Result<ActionKind, Fault> {
        let environment = plan.environment.clone();
        if let Some(applied) = applied(work, step) {
            let (spec, objects) = (Box::new(applied.spec.clone()), applied.objects.clone());
            return Ok(ActionKind::Apply { environment, spec, objects });
        }
        let mut spec = Box::new(self.apply_spec(step, plan)?);
        Ok(match &run.surveyed {
            Some(found) => {
                spec.files.clone_from(&found.files);
                ActionKind::Apply { environment, spec, objects: found.objects.clone() }
            }
            None => ActionKind::Survey { environment, spec },
        })
    }

    fn apply_spec(&self, step: &StepRef, plan: &Apply) -> Result<ApplySpec, Fault> {
        let path = self.text(step, &plan.path)?;
        let set = match &plan.set {
            Some(set) => set_name(set, ""),
            None => {
                let target =
                    self.plan.environments.get(&plan.environment).map(|place| &place.target.settings);
                let namespace =
                    target.and_then(|all| all.get("namespace")).and_then(Value::as_str).unwrap_or("");
                let whole = format!("{}/{}/{namespace}/{path}", self.plan.name, plan.environment);
                set_name(&format!("{}-{}", self.plan.name, plan.environment), &whole)
            }
        };
        let node = step.node.and_then(|id| self.plan.node(id)).map_or("", |node| node.name.as_str());
        let place = match step.block {
            Block::Main => String::new(),
            Block::Verify(of) => format!("verify-{of}/"),
            Block::Validate(of) => format!("validate-{of}/"),
            Block::Undo(of) => format!("undo-{of}/"),
            Block::Hook(of) => format!("hook-{of}/"),
        };
        let mark = format!("{}/{node}/{place}{}", self.header.run, step.index);
        let files = plan.files.clone();
        Ok(ApplySpec { path, set, mark, force: plan.force, prune: plan.prune, files })
    }

    /// What the step does while the set that it has begun to apply is taken back. The outer `None` says that it is not.
    pub(crate) fn apply_back(
        &self,
        work: &Work,
        step: &StepRef,
        run: &StepRun,
        stop: Option<&Failure>,
    ) -> Option<Option<Record>> {
        let applied = applied(work, step)?;
        let ended = match applied.back.as_ref()? {
            Back::UnderWay => return Some(None),
            Back::Ended(ended) => ended,
        };
        let (outcome, why) = match (stop, &run.returned) {
            (Some(stop), _) => stop.clone(),
            (None, Some(ActionResult::TimedOut(fault))) => (Outcome::TimedOut, fault.clone()),
            (None, Some(ActionResult::Failed(fault) | ActionResult::Unknown(fault))) => {
                (Outcome::Failed, fault.clone())
            }
            (None, _) => (Outcome::Cancelled, Fault::new("cancelled", "it was cancelled")),
        };
        Some(Some(match ended {
            Ok(()) => {
                let anything = applied.objects.iter().any(|object| object.was != Was::Absent);
                let outcome = match outcome {
                    Outcome::Cancelled => Outcome::Cancelled,
                    _ if anything => Outcome::RolledBack,
                    outcome => outcome,
                };
                self.step_finished(step, outcome, Some(why))
            }
            Err(fault) => {
                self.step_finished(step, Outcome::RollbackFailed, Some(self.not_back(fault, &why.message)))
            }
        }))
    }

    /// A step is over that did not succeed; a set that it has begun to apply is taken back first.
    pub(crate) fn step_failed(&self, work: &Work, step: &StepRef, outcome: Outcome, fault: Fault) -> Record {
        match applied(work, step) {
            Some(applied) if applied.begun && applied.back.is_none() => self.unapply(step, applied),
            _ => self.step_finished(step, outcome, Some(fault)),
        }
    }

    /// Takes back a set that had been applied, as part of undoing its stage.
    pub(crate) fn apply_take_back(&self, work: &Work, step: &StepRef) -> Option<Record> {
        let applied = applied(work, step)?;
        match &applied.back {
            None => Some(self.unapply(step, applied)),
            Some(Back::UnderWay) => None,
            Some(Back::Ended(Ok(()))) => Some(self.step_finished(step, Outcome::RolledBack, None)),
            Some(Back::Ended(Err(fault))) => {
                let why = work.undo.as_ref().map_or("", |undo| undo.reason.message.as_str());
                let fault = self.not_back(fault, why);
                Some(self.step_finished(step, Outcome::RollbackFailed, Some(fault)))
            }
        }
    }

    fn unapply(&self, step: &StepRef, applied: &Applied) -> Record {
        let kind = ActionKind::Unapply {
            environment: applied.environment.clone(),
            spec: Box::new(applied.spec.clone()),
            objects: applied.objects.clone(),
        };
        let own = crate::fold::step_of(self.plan, step).map_or(0, |step| step.timeout_ms);
        self.intent(step, kind, own.max(BACK_MS))
    }

    fn not_back(&self, fault: &Fault, why: &str) -> Fault {
        Fault {
            kind: "rollback-failed".to_owned(),
            message: format!(
                "not everything is as it was: {}; it was taken back because {why}",
                fault.message
            ),
            help: Some(format!(
                "a person is needed now: {}; `cdpipe resume {}` tries the way back again",
                fault.help.as_deref().unwrap_or("mend what is in the way"),
                self.header.run
            )),
            ..fault.clone()
        }
    }
}

fn applied<'a>(work: &'a Work, step: &StepRef) -> Option<&'a Applied> {
    work.applied.get(&step.index).filter(|_| step.block == Block::Main)
}
