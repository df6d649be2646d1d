//! Lists of steps: the stage's own, `verify`, `validate`, `undo` and hooks all run the same way.

use crate::decide::Decide;
use crate::fold::steps_of;
use crate::state::{Failure, Frame, Lock, NodePhase, StepRun, Work};
use cdpipe_model::action::{ActionKind, ActionResult, Answer, Block, RunAction, StepRef};
use cdpipe_model::expr::{Expr, Symbol};
use cdpipe_model::observe::Role;
use cdpipe_model::plan::{FlagProvider, HttpStep, NodeKind, Notify, OnInterrupt, Retry, Run, Step, StepKind};
use cdpipe_model::record::{Record, TimerId, TimerPurpose};
use cdpipe_model::{EnvName, Fault, NodeId, Outcome, Value};
use std::collections::BTreeMap;

/// Where taking a stage back stands.
#[allow(clippy::large_enum_variant, reason = "it lives for one decision")]
enum TakeBack {
    Next(Record),
    Waits,
    /// Nothing is left to do; why not all of it was taken back.
    Over(Option<Fault>),
}

impl Decide<'_> {
    /// Goes on with this list if it is the active one, else begins it.
    pub(crate) fn frame_or_start(&self, work: &Work, node: Option<NodeId>, block: Block) -> Option<Record> {
        match work.frames.last() {
            Some(frame) if frame.block == block => self.frame(work, node, None),
            _ => Some(Record::StepStarted { step: StepRef { node, block, index: 0 }, attempt: 1 }),
        }
    }

    /// What comes next in the active list; `None` if it waits or has ended. With `abort` it comes to its end as soon as what is under
    /// way has returned.
    pub(crate) fn frame(&self, work: &Work, node: Option<NodeId>, abort: Option<Failure>) -> Option<Record> {
        let frame = work.frames.last().filter(|frame| frame.ended.is_none())?;
        let step_ref = StepRef { node, block: frame.block, index: frame.index };
        let step = steps_of(self.plan, node, frame.block).get(frame.index as usize)?;
        // A hook is what runs after a cancel, and an undo is what a cancel asks for, so neither is stopped by it.
        let goes_on = matches!(frame.block, Block::Hook(_) | Block::Undo(_));
        let stop = abort.or_else(|| work.stop.clone().filter(|_| !goes_on));
        let Some(run) = &frame.step else {
            if let Some((outcome, fault)) = stop {
                return Some(self.step_finished(&step_ref, outcome, Some(fault)));
            }
            if self.state.paused && frame.block == Block::Main {
                return None;
            }
            return Some(Record::StepStarted { step: step_ref, attempt: 1 });
        };
        if let StepKind::Deploy(deploy) = &step.kind {
            return self.deploy(work, &step_ref, deploy);
        }
        if let Some(record) = self.apply_back(work, &step_ref, run, stop.as_ref()) {
            return record;
        }
        if let Some(action) = run.action {
            let asked = self.state.cancel_asked.contains(&action);
            return (stop.is_some() && !asked).then_some(Record::CancelAsked { action });
        }
        if let Some(result) = &run.returned {
            return Some(self.step_returned(work, step, &step_ref, run, result, stop));
        }
        if let Some((outcome, fault)) = stop {
            return Some(self.step_failed(work, &step_ref, outcome, fault));
        }
        if run.retry_at_ms.is_some() {
            return run.retry_due.then(|| Record::StepStarted { step: step_ref, attempt: run.attempt + 1 });
        }
        self.step_begin(work, frame, run, step, &step_ref)
    }

    fn step_returned(
        &self,
        work: &Work,
        step: &Step,
        step_ref: &StepRef,
        run: &StepRun,
        result: &ActionResult,
        stop: Option<Failure>,
    ) -> Record {
        let (outcome, fault) = match result {
            ActionResult::Done(answer) => match self.check_outputs(step_ref, answer) {
                Ok(()) => return self.step_finished(step_ref, Outcome::Succeeded, None),
                Err(fault) => (Outcome::Failed, fault),
            },
            ActionResult::Failed(fault) => (Outcome::Failed, fault.clone()),
            ActionResult::TimedOut(fault) => (Outcome::TimedOut, fault.clone()),
            ActionResult::Cancelled => (Outcome::Cancelled, Fault::new("cancelled", "it was cancelled")),
            ActionResult::Unknown(_) if step.on_interrupt == OnInterrupt::Retry && stop.is_none() => {
                // The setting says that doing it twice does no harm.
                return Record::StepStarted { step: step_ref.clone(), attempt: run.attempt + 1 };
            }
            ActionResult::Unknown(fault) => (Outcome::Failed, fault.clone()),
        };
        if let Some((outcome, reason)) = stop {
            return self.step_failed(work, step_ref, outcome, reason);
        }
        if run.attempt <= step.retry.more && !matches!(result, ActionResult::Unknown(_)) {
            let timer = TimerId { node: step_ref.node, purpose: TimerPurpose::Retry };
            let due_ms = self.state.now_ms + backoff_ms(step.retry, run.attempt);
            return Record::TimerSet { timer, due_ms };
        }
        if let StepKind::Notify(_) = step.kind {
            return self.not_sent(step_ref, fault);
        }
        self.step_failed(work, step_ref, outcome, fault)
    }

    /// A message that can't be sent fails nothing: its step has succeeded, and says why nobody got it.
    fn not_sent(&self, step: &StepRef, fault: Fault) -> Record {
        self.step_finished(step, Outcome::Succeeded, Some(fault))
    }

    fn check_outputs(&self, step: &StepRef, answer: &Answer) -> Result<(), Fault> {
        let (Answer::Exited { outputs }, Some(id)) = (answer, step.node) else { return Ok(()) };
        match self.plan.node(id).map(|node| &node.kind) {
            Some(NodeKind::Stage(stage)) => crate::output::check(outputs, &stage.outputs),
            _ => Ok(()),
        }
    }

    fn step_begin(
        &self,
        work: &Work,
        frame: &Frame,
        run: &StepRun,
        step: &Step,
        step_ref: &StepRef,
    ) -> Option<Record> {
        let act = |kind: Result<ActionKind, Fault>, deadline_ms: u64| {
            Some(match kind {
                Ok(kind) => self.intent(step_ref, kind, deadline_ms),
                Err(fault) => self.step_finished(step_ref, Outcome::Failed, Some(fault)),
            })
        };
        match &step.kind {
            // Handled by the caller.
            StepKind::Deploy(_) => None,
            StepKind::Run(spec) => act(self.run_action(step_ref, spec).map(ActionKind::Run), step.timeout_ms),
            StepKind::Exec(spec) => act(self.exec_action(work, frame, step_ref, spec), step.timeout_ms),
            StepKind::Http(spec) => act(self.http_action(step_ref, spec), step.timeout_ms),
            StepKind::Apply(spec) => act(self.apply_action(work, run, step_ref, spec), step.timeout_ms),
            StepKind::Flag(spec) => {
                let kind = (|| {
                    let provider = self.plan.flags.get(&spec.provider).ok_or_else(|| {
                        Fault::new("internal", format!("the plan has no flag provider `{}`", spec.provider))
                    })?;
                    let provider = Box::new(self.flag_provider(step_ref, provider)?);
                    let flag = self.text(step_ref, &spec.flag)?;
                    let value = Some(self.text(step_ref, &spec.value)?);
                    Ok(ActionKind::SetFlag { provider, flag, value })
                })();
                act(kind, step.timeout_ms)
            }
            StepKind::Notify(spec) => Some(match self.notify_action(step_ref, spec) {
                Ok(kind) => self.intent(step_ref, kind, step.timeout_ms),
                Err(fault) => self.not_sent(step_ref, fault),
            }),
            StepKind::Wait { ms } => match run.wait_until_ms {
                None => {
                    let timer = TimerId { node: step_ref.node, purpose: TimerPurpose::Soak };
                    Some(Record::TimerSet { timer, due_ms: self.state.now_ms + ms })
                }
                Some(_) => run.wait_due.then(|| self.step_finished(step_ref, Outcome::Succeeded, None)),
            },
            StepKind::Watch(watch) => self.watch_step(work, run, step_ref, watch),
            StepKind::Rollback { stage, more } => {
                self.rollback_stages(step_ref, std::iter::once(*stage).chain(more.iter().copied()))
            }
            // It says how to take back what came before it; going forward there is nothing to do.
            StepKind::Undo { .. } => Some(self.step_finished(step_ref, Outcome::Succeeded, None)),
        }
    }

    /// `rollback stage X` in a hook: stages that are under way are stopped, and all that these stages did is taken back, newest first.
    fn rollback_stages(&self, step: &StepRef, targets: impl Iterator<Item = NodeId>) -> Option<Record> {
        let (mut waits, mut failed) = (false, None);
        for target in targets {
            match self.take_back(step.node, target) {
                TakeBack::Next(record) => return Some(record),
                TakeBack::Waits => waits = true,
                TakeBack::Over(fault) => failed = failed.or(fault),
            }
        }
        if waits {
            return None;
        }
        let outcome = if failed.is_some() { Outcome::RollbackFailed } else { Outcome::Succeeded };
        Some(self.step_finished(step, outcome, failed))
    }

    fn take_back(&self, from: Option<NodeId>, target: NodeId) -> TakeBack {
        let Some(node) = self.state.node(target) else { return TakeBack::Over(None) };
        let reason = || match from {
            Some(id) => {
                let why =
                    self.state.work(from).and_then(crate::schedule::ending).and_then(|(_, fault)| fault);
                let name = self.plan.node(id).map_or("", |node| node.name.as_str());
                Fault::new(
                    "rollback",
                    why.map_or_else(
                        || format!("{name} asked for it"),
                        |why| format!("{name} asked for it: {}", why.message),
                    ),
                )
            }
            None => crate::schedule::run_outcome(self.state)
                .1
                .unwrap_or_else(|| Fault::new("rollback", "a later stage failed")),
        };
        let start = |late| TakeBack::Next(Record::UndoStarted { node: target, reason: reason(), late });
        let work = match (node.phase, node.work.as_deref()) {
            (NodePhase::Pending, _) => {
                return TakeBack::Next(Record::NodeFinished {
                    node: target,
                    outcome: Outcome::Skipped,
                    reason: Some(reason()),
                });
            }
            (_, None) => return TakeBack::Over(None),
            (_, Some(work)) => work,
        };
        let running = node.phase == NodePhase::Running;
        if running && work.ended.is_none() {
            let is_stage = matches!(self.plan.node(target).map(|node| &node.kind), Some(NodeKind::Stage(_)));
            return match work.undo_asked {
                None if is_stage => start(false),
                None => TakeBack::Over(None),
                Some(_) => TakeBack::Waits,
            };
        }
        match &work.undo {
            None if running && work.undo_asked.is_some() => TakeBack::Waits,
            None if matches!(work.lock, Lock::Taking | Lock::Releasing) => TakeBack::Waits,
            // Between two attempts: the next one must not begin.
            None if running && !work.hook_open => start(true),
            None if crate::fold::undoable(self.plan, target, work).is_empty() => TakeBack::Over(None),
            // A hook of its own has something under way: that comes to its end first.
            None if running && from != Some(target) && !self.state.rollbacks.contains(&Some(target)) => {
                TakeBack::Waits
            }
            None => start(true),
            // What answers it comes first, unless that waits for a rollback itself.
            Some(undo)
                if undo.ended && (self.late_over(target) || self.state.rollbacks.contains(&Some(target))) =>
            {
                TakeBack::Over(undo.failed.clone())
            }
            Some(_) => TakeBack::Waits,
        }
    }

    fn values(
        &self,
        step: &StepRef,
        exprs: &BTreeMap<String, Expr>,
    ) -> Result<BTreeMap<String, Value>, Fault> {
        exprs.iter().map(|(key, expr)| Ok((key.clone(), self.value(step, expr)?))).collect()
    }

    fn run_action(&self, step: &StepRef, spec: &Run) -> Result<RunAction, Fault> {
        let mut env = self.values(step, &spec.env)?;
        for (arg, number) in spec.args.iter().zip(1..) {
            env.insert(format!("CDPIPE_ARG_{number}"), self.value(step, arg)?);
        }
        let outputs = match step.node.and_then(|id| self.plan.node(id)).map(|node| &node.kind) {
            Some(NodeKind::Stage(stage)) => stage.outputs.iter().map(|output| output.name.clone()).collect(),
            _ => Vec::new(),
        };
        Ok(RunAction {
            script: spec.script.clone(),
            env,
            dir: spec.dir.clone(),
            stdin: spec.stdin.as_ref().map(|expr| self.value(step, expr)).transpose()?,
            image: spec.image.as_ref().map(|expr| self.text(step, expr)).transpose()?,
            environment: spec.environment.clone(),
            outputs,
        })
    }

    fn exec_action(
        &self,
        work: &Work,
        frame: &Frame,
        step: &StepRef,
        spec: &Run,
    ) -> Result<ActionKind, Fault> {
        let nowhere =
            || Fault::new("no-candidate", "`exec` runs inside a candidate instance, and there is none");
        let (Block::Verify(index) | Block::Validate(index)) = frame.block else { return Err(nowhere()) };
        let deploy = work.deploys.get(&index).ok_or_else(nowhere)?;
        let program = deploy.program.as_ref().ok_or_else(nowhere)?;
        let instances = deploy.instances(Role::Candidate);
        let instance =
            instances.iter().find(|instance| instance.ready).or(instances.first()).ok_or_else(nowhere)?;
        Ok(ActionKind::Exec {
            environment: self.deploy_environment(step, index).ok_or_else(nowhere)?,
            release: Box::new(program.candidate.clone()),
            instance: instance.clone(),
            run: self.run_action(step, spec)?,
        })
    }

    fn deploy_environment(&self, step: &StepRef, index: u32) -> Option<EnvName> {
        match &steps_of(self.plan, step.node, Block::Main).get(index as usize)?.kind {
            StepKind::Deploy(deploy) => Some(deploy.environment.clone()),
            _ => None,
        }
    }

    fn http_action(&self, step: &StepRef, spec: &HttpStep) -> Result<ActionKind, Fault> {
        let mut url = self.value(step, &spec.url)?;
        if let Value::Str(path) = &url
            && path.starts_with('/')
        {
            use cdpipe_model::expr::{DeployFact, Subject};
            let base = self
                .scope(step)
                .lookup(&Symbol::Deploy(Subject::Candidate, DeployFact::Url))
                .ok_or_else(|| {
                    Fault::new(
                        "no-candidate",
                        format!("http {path:?} is asked of the candidate, and there is none"),
                    )
                })?;
            url = Value::Str(format!("{base}{path}"));
        }
        Ok(ActionKind::Http {
            method: spec.method.clone(),
            url,
            headers: self.values(step, &spec.headers)?,
            body: spec.body.as_ref().map(|expr| self.value(step, expr)).transpose()?,
            expect_status: spec.expect_status.clone(),
            expect_body: spec.expect_body.as_ref().map(|expr| self.text(step, expr)).transpose()?,
        })
    }

    fn notify_action(&self, step: &StepRef, spec: &Notify) -> Result<ActionKind, Fault> {
        let mut fields = BTreeMap::new();
        fields.insert("pipeline".to_owned(), self.plan.name.clone());
        fields.insert("run".to_owned(), self.header.run.0.clone());
        let outcome = match step.node {
            Some(id) => {
                if let Some(node) = self.plan.node(id) {
                    fields.insert("stage".to_owned(), node.name.clone());
                }
                self.state.work(step.node).and_then(crate::schedule::ending).map(|(outcome, _)| outcome)
            }
            None => Some(crate::schedule::run_outcome(self.state).0),
        };
        if let Some(outcome) = outcome {
            fields.insert("outcome".to_owned(), outcome.as_str().to_owned());
        }
        if let Some(reason) = self.scope(step).reason {
            fields.insert("reason".to_owned(), reason);
        }
        Ok(ActionKind::Notify {
            channel: spec.channel,
            url: self.value(step, &spec.url)?,
            text: self.text(step, &spec.text)?,
            headers: self.values(step, &spec.headers)?,
            fields,
        })
    }

    /// The provider with its expressions evaluated.
    fn flag_provider(&self, step: &StepRef, provider: &FlagProvider) -> Result<FlagProvider, Fault> {
        let known = |expr: &Expr| self.value(step, expr).map(Expr::Value);
        Ok(match provider {
            FlagProvider::Http { url, method, headers, body, read_url, read_path } => FlagProvider::Http {
                url: known(url)?,
                method: method.clone(),
                headers: headers
                    .iter()
                    .map(|(key, expr)| Ok((key.clone(), known(expr)?)))
                    .collect::<Result<_, Fault>>()?,
                body: body.as_ref().map(known).transpose()?,
                read_url: read_url.as_ref().map(known).transpose()?,
                read_path: read_path.clone(),
            },
            FlagProvider::Redis { url, key } => FlagProvider::Redis { url: known(url)?, key: key.clone() },
            FlagProvider::File { path } => FlagProvider::File { path: path.clone() },
        })
    }

    /// Takes back what a stage did, newest first; `None` if it waits.
    pub(crate) fn stage_undo(&self, work: &Work, id: NodeId) -> Option<Record> {
        let undo = work.undo.as_ref()?;
        let node = Some(id);
        let stage = match self.plan.node(id).map(|node| &node.kind) {
            Some(NodeKind::Stage(stage)) => stage,
            _ => return None,
        };
        if undo.late
            && let Some(record) = self.relock(work, undo, id, stage)
        {
            return record;
        }
        let index = *undo.queue.front()?;
        if (undo.late || work.undo_asked.is_some()) && !self.is_newest(work, id, index) {
            return None;
        }
        let step_ref = StepRef { node, block: Block::Main, index };
        let step = stage.steps.get(index as usize)?;
        match &step.kind {
            StepKind::Deploy(deploy) => self.deploy_take_back(work, &step_ref, deploy, undo.late),
            StepKind::Flag(_) => {
                let was = work.flags_were.get(&index)?;
                match undo.flag_action {
                    Some(action) if self.state.in_flight.contains_key(&action) => None,
                    Some(_) => {
                        let outcome =
                            if undo.failed.is_some() { Outcome::RollbackFailed } else { Outcome::RolledBack };
                        Some(self.step_finished(&step_ref, outcome, undo.failed.clone()))
                    }
                    None => {
                        let kind = ActionKind::SetFlag {
                            provider: Box::new(was.provider.clone()),
                            flag: was.flag.clone(),
                            value: was.value.clone(),
                        };
                        Some(self.intent(&step_ref, kind, step.timeout_ms))
                    }
                }
            }
            StepKind::Apply(_) => self.apply_take_back(work, &step_ref),
            StepKind::Undo { steps } => match &undo.block_ended {
                Some(Ok(())) => Some(self.step_finished(&step_ref, Outcome::RolledBack, None)),
                Some(Err((_, fault))) => {
                    Some(self.step_finished(&step_ref, Outcome::RollbackFailed, Some(fault.clone())))
                }
                None if steps.is_empty() => Some(self.step_finished(&step_ref, Outcome::RolledBack, None)),
                None => self.frame_or_start(work, node, Block::Undo(index)),
            },
            _ => Some(self.step_finished(&step_ref, Outcome::RolledBack, None)),
        }
    }

    /// Whether no other stage that is taken back has done something newer that is still there.
    fn is_newest(&self, work: &Work, id: NodeId, index: u32) -> bool {
        let when = |work: &Work, index: u32| work.effects.get(&index).copied().unwrap_or(0);
        let mine = when(work, index);
        !self.state.late_undos.iter().filter(|other| **other != id).any(|other| {
            let Some(theirs) = self.state.work(Some(*other)) else { return false };
            let Some(undo) = &theirs.undo else {
                // It is being stopped: what it did last is newer than anything that has ended.
                return theirs.undo_asked.is_some();
            };
            !undo.ended && undo.queue.front().is_some_and(|index| when(theirs, *index) > mine)
        })
    }

    /// Around a late undo: the locks are taken before it and given back after it. `None` says: go on with the undo itself.
    fn relock(
        &self,
        work: &Work,
        undo: &crate::state::StageUndo,
        id: NodeId,
        stage: &cdpipe_model::plan::Stage,
    ) -> Option<Option<Record>> {
        match (work.lock, undo.queue.is_empty()) {
            (Lock::Held, false) => None,
            (Lock::Taking | Lock::Releasing, _) => Some(None),
            (Lock::None | Lock::Released, false) if undo.relock.failed => {
                Some(self.undo_retry(Some(id), undo.relock.tries - 1, undo.relock.retry_at_ms))
            }
            (Lock::None | Lock::Released, false) => {
                // Only when it is its turn: else two stages that share a lock could wait for each other.
                let turn = undo.queue.front().is_some_and(|index| self.is_newest(work, id, *index));
                Some(turn.then(|| self.lock_intent(id, stage)))
            }
            (Lock::None | Lock::Released, true) => Some(None),
            (Lock::Held, true) => Some(Some(self.unlock_intent(id, stage))),
        }
    }
}

/// Wait before attempt `failed + 1`: the first delay, doubled each time, up to the longest.
fn backoff_ms(retry: Retry, failed: u32) -> u64 {
    let doubled = retry.delay_ms.saturating_mul(1 << failed.saturating_sub(1).min(20));
    doubled.min(retry.max_delay_ms)
}
