//! The run as a whole: which stage or gate may begin, how it comes to its end, and how the run does.

use crate::decide::Decide;
use crate::fold::steps_of;
use crate::state::{Failure, Lock, NodePhase, State, Work};
use cdpipe_model::action::{ActionKind, Block, StepRef};
use cdpipe_model::plan::{Gate, Hook, HookEvent, LockKey, Node, NodeKind, Plan, Stage};
use cdpipe_model::record::{Record, RunHeader, TimerId, TimerPurpose};
use cdpipe_model::{Fault, NodeId, Outcome};

/// How long a lease lasts without renewal.
const LEASE_MS: u64 = 30_000;
/// How long a stage without a timeout waits for its locks.
const LOCK_WAIT_MS: u64 = 24 * 3_600_000;
const UNLOCK_MS: u64 = 30_000;
/// How often a closed window is looked at again.
const WINDOW_LOOK_MS: u64 = 30_000;

/// What a look at a node gave.
#[allow(clippy::large_enum_variant, reason = "it lives for one decision, and a record is what it mostly is")]
enum Look {
    Record(Record),
    /// It waits for something that will mark it.
    Waits,
    /// It could start, but as many stages run as may.
    NoRoom,
}

impl From<Option<Record>> for Look {
    fn from(record: Option<Record>) -> Self {
        record.map_or(Look::Waits, Look::Record)
    }
}

impl State {
    /// Has as many of the waiting stages looked at again as there is room for.
    pub(crate) fn mark_next_ready(&mut self, max_parallel: u32) {
        let mut room = max_parallel.max(1).saturating_sub(self.running_stages);
        while room > 0 {
            let Some(id) = self.ready.pop_front() else { return };
            // One that was skipped meanwhile takes no room.
            if self.node(id).is_some_and(|node| node.phase == NodePhase::Pending) {
                self.mark(Some(id));
                room -= 1;
            }
        }
    }
}

/// The next record that follows from the state, if any does.
pub(crate) fn next(state: &mut State, plan: &Plan, header: &RunHeader) -> Option<Record> {
    if !state.opened || state.ended.is_some() {
        return None;
    }
    while let Some(node) = state.dirty.front().copied() {
        let look = Decide { state, plan, header }.look(node);
        match look {
            Look::Record(record) => return Some(record),
            Look::Waits => {}
            Look::NoRoom => {
                if let Some(id) = node {
                    state.ready.push_back(id);
                }
            }
        }
        state.dirty.pop_front();
        state.is_dirty.remove(&node);
    }
    None
}

/// How the run ends as things stand, and why.
pub(crate) fn run_outcome(state: &State) -> (Outcome, Option<Fault>) {
    if let Some(fault) = &state.late_failed {
        return (Outcome::RollbackFailed, Some(fault.clone()));
    }
    match &state.worst {
        Some((outcome, id)) => (*outcome, state.node(*id).and_then(|node| node.reason.clone())),
        None => (Outcome::Succeeded, None),
    }
}

/// How a node ends as things stand, and why; `None` while its own steps go on.
pub(crate) fn ending(work: &Work) -> Option<(Outcome, Option<Fault>)> {
    let ended = work.ended.as_ref()?;
    if let Some(undo) = work.undo.as_ref().filter(|undo| !undo.late) {
        let asked = work.undo_asked.is_some() && ended.is_ok();
        if let Some(fault) = &undo.failed {
            return Some((Outcome::RollbackFailed, Some(fault.clone())));
        }
        if undo.ended && asked {
            return Some((Outcome::RolledBack, Some(undo.reason.clone())));
        }
        if undo.ended
            && let Err((Outcome::Failed | Outcome::TimedOut, fault)) = ended
        {
            return Some((Outcome::RolledBack, Some(fault.clone())));
        }
    }
    Some(match ended {
        Ok(()) => (Outcome::Succeeded, None),
        Err((outcome, fault)) => (*outcome, Some(fault.clone())),
    })
}

/// The next hook that names this event and has not run.
fn unrun_hook(work: &Work, hooks: &[Hook], event: HookEvent) -> Option<u32> {
    let mut hooks = hooks.iter().zip(0_u32..).filter(|(_, at)| !work.hooks_run.contains(at));
    hooks.find(|(hook, _)| hook.events.contains(&event)).map(|(_, at)| at)
}

/// The next hook that answers how a late undo of a stage ended.
fn late_hook(work: &Work, hooks: &[Hook]) -> Option<u32> {
    let undo = work.undo.as_ref().filter(|undo| undo.late && undo.ended)?;
    let event = if undo.failed.is_some() { HookEvent::RollbackFailed } else { HookEvent::Rollback };
    unrun_hook(work, hooks, event)
}

/// A failed stage, and what was skipped because of it, begin again.
pub(crate) fn reopen(state: &mut State, plan: &Plan, id: NodeId) {
    let again = |state: &State, id: NodeId, first: bool| {
        state.node(id).is_some_and(|node| {
            node.phase == NodePhase::Finished
                && match node.outcome {
                    Some(Outcome::Succeeded) | None => false,
                    Some(Outcome::Skipped) => !first,
                    Some(Outcome::Cancelled) if node.attempt == 0 => !first,
                    Some(_) => first,
                }
        })
    };
    if !again(state, id, true) {
        return;
    }
    if state.ended.take().is_some() {
        // A run that had ended goes on: what comes of it is answered anew.
        state.cancelled = None;
        state.late_failed = None;
        state.tail = Work::default();
        state.tail_answers = None;
    }
    let mut queue = vec![id];
    let mut reopened = Vec::new();
    while let Some(id) = queue.pop() {
        if reopened.contains(&id) {
            continue;
        }
        reopened.push(id);
        if let Some(dependents) = state.dependents.get(id.0 as usize) {
            queue.extend(dependents.iter().copied().filter(|dependent| again(state, *dependent, false)));
        }
    }
    for id in &reopened {
        if let Some(node) = state.node_mut(*id) {
            *node = crate::state::NodeState { attempt: node.attempt, ..Default::default() };
        }
        state.finished -= 1;
    }
    for id in &reopened {
        let left = plan.node(*id).map_or(0, |node| {
            node.needs
                .iter()
                .filter(|need| state.node(need.node).is_some_and(|n| n.phase != NodePhase::Finished))
                .count()
        });
        if let Some(node) = state.node_mut(*id) {
            node.needs_left = u32::try_from(left).unwrap_or(u32::MAX);
        }
        state.mark(Some(*id));
    }
    find_worst(state);
}

/// The worst outcome, after one has become better.
pub(crate) fn find_worst(state: &mut State) {
    state.worst = state
        .nodes
        .iter()
        .zip(0_u32..)
        .filter_map(|(node, at)| Some((node.outcome?, NodeId(at))))
        .filter(|(outcome, _)| *outcome > Outcome::Succeeded)
        .max();
}

impl Decide<'_> {
    fn look(&self, node: Option<NodeId>) -> Look {
        let Some(id) = node else { return self.tail().into() };
        let (Some(state), Some(plan)) = (self.state.node(id), self.plan.node(id)) else { return Look::Waits };
        match (state.phase, &plan.kind) {
            (NodePhase::Pending, _) if state.needs_left > 0 => Look::Waits,
            (NodePhase::Pending, _) => self.pending(plan, state.attempt),
            (NodePhase::Running, NodeKind::Stage(stage)) => match &state.work {
                Some(work) => self.stage(work, plan, stage, state.attempt).into(),
                None => Look::Waits,
            },
            (NodePhase::Running, NodeKind::Gate(gate)) => match &state.work {
                Some(work) => self.gate(work, plan, gate).into(),
                None => Look::Waits,
            },
            (NodePhase::Finished, _) => match &state.work {
                Some(work) if work.undo.as_ref().is_some_and(|undo| undo.late && !undo.ended) => {
                    self.stage_undo(work, id).into()
                }
                Some(work) => match &plan.kind {
                    NodeKind::Stage(stage) => self.late_hooks(work, id, stage).into(),
                    NodeKind::Gate(_) => Look::Waits,
                },
                None => Look::Waits,
            },
        }
    }

    /// Something whose needs have all ended: skip it, or begin it.
    fn pending(&self, node: &Node, attempt: u32) -> Look {
        let finish = |outcome: Outcome, reason: Option<Fault>| {
            Look::Record(Record::NodeFinished { node: node.id, outcome, reason })
        };
        if let Some(fault) = &self.state.cancelled {
            return finish(Outcome::Cancelled, Some(fault.clone()));
        }
        for need in &node.needs {
            let outcome = self.state.node(need.node).and_then(|needed| needed.outcome);
            let fine = match outcome {
                Some(Outcome::Succeeded) => true,
                Some(Outcome::Skipped) => need.optional,
                _ => false,
            };
            if !fine {
                let name = self.plan.node(need.node).map_or("", |needed| needed.name.as_str());
                let outcome = outcome.map_or("not ended", Outcome::as_str).replace('_', " ");
                return finish(Outcome::Skipped, Some(Fault::new("needs", format!("{name}: {outcome}"))));
            }
        }
        let is_stage = matches!(node.kind, NodeKind::Stage(_));
        if let Some(when) = &node.when {
            let step = StepRef { node: Some(node.id), block: Block::Main, index: 0 };
            match self.value(&step, when) {
                Ok(cdpipe_model::Value::Bool(true)) => {}
                Ok(_) => {
                    return finish(
                        Outcome::Skipped,
                        Some(Fault::new("when", format!("when {when} is false"))),
                    );
                }
                Err(fault) => return finish(Outcome::Failed, Some(fault)),
            }
        }
        if is_stage && self.state.running_stages >= self.plan.max_parallel.max(1) {
            return Look::NoRoom;
        }
        if self.state.paused {
            return Look::Waits;
        }
        Look::Record(Record::NodeStarted { node: node.id, attempt: attempt + 1 })
    }

    /// A stage under way.
    fn stage(&self, work: &Work, node: &Node, stage: &Stage, attempt: u32) -> Option<Record> {
        if work.ended.is_none() {
            if let Some(record) = self.stage_steps(work, node, stage) {
                return record;
            }
        } else if work.lock == Lock::Taking {
            return None;
        }
        // No steps at all: nothing to do is done.
        let nothing = Ok(());
        let ended = work.ended.as_ref().unwrap_or(&nothing);
        if let (Err((_, fault)), true, None) = (ended, stage.undo_on_failure, &work.undo) {
            return Some(Record::UndoStarted { node: node.id, reason: fault.clone(), late: false });
        }
        if let (Some(reason), None) = (&work.undo_asked, &work.undo) {
            return Some(Record::UndoStarted { node: node.id, reason: reason.clone(), late: false });
        }
        if work.undo.as_ref().is_some_and(|undo| !undo.ended) {
            return self.stage_undo(work, node.id);
        }
        match work.lock {
            Lock::Held => return Some(self.unlock_intent(node.id, stage)),
            Lock::Taking | Lock::Releasing => return None,
            Lock::None | Lock::Released => {}
        }
        let (outcome, reason) = ending(work).unwrap_or((Outcome::Succeeded, None));
        let may_retry = matches!(outcome, Outcome::Failed | Outcome::TimedOut)
            && attempt <= stage.retry.more
            && work.undo_asked.is_none()
            && work.undo.as_ref().is_none_or(|undo| !undo.late)
            && self.state.cancelled.is_none();
        if may_retry {
            return match work.retry_at_ms {
                None => {
                    let timer = TimerId { node: Some(node.id), purpose: TimerPurpose::Retry };
                    let wait_ms = stage.retry.delay_ms.saturating_mul(1 << (attempt - 1).min(20));
                    Some(Record::TimerSet {
                        timer,
                        due_ms: self.state.now_ms + wait_ms.min(stage.retry.max_delay_ms),
                    })
                }
                Some(_) => {
                    work.retry_due.then_some(Record::NodeStarted { node: node.id, attempt: attempt + 1 })
                }
            };
        }
        self.hooks(work, Some(node.id), &stage.hooks, outcome).unwrap_or(Some(Record::NodeFinished {
            node: node.id,
            outcome,
            reason,
        }))
    }

    /// Until the steps of a stage have ended. `None`: they have.
    fn stage_steps(&self, work: &Work, node: &Node, stage: &Stage) -> Option<Option<Record>> {
        if stage.steps.is_empty() {
            return None;
        }
        let timer = TimerId { node: Some(node.id), purpose: TimerPurpose::NodeTimeout };
        if let Some(timeout_ms) = stage.timeout_ms
            && work.stop.is_none()
            && !self.state.timer_due.contains_key(&timer)
        {
            return Some(Some(Record::TimerSet { timer, due_ms: self.state.now_ms + timeout_ms }));
        }
        match work.lock {
            Lock::None if !stage.locks.is_empty() && work.stop.is_none() => {
                if let Some(frozen) = self.frozen(node.id, &stage.locks) {
                    return Some(frozen);
                }
                return Some(Some(self.lock_intent(node.id, stage)));
            }
            Lock::Taking => {
                let asked = work.stop.as_ref().and_then(|_| {
                    let is_ours = |action: &&cdpipe_model::action::Action| {
                        action.step.node == Some(node.id) && matches!(action.kind, ActionKind::Lock { .. })
                    };
                    let action = self.state.in_flight.values().find(is_ours)?.id;
                    (!self.state.cancel_asked.contains(&action)).then_some(Record::CancelAsked { action })
                });
                return Some(asked);
            }
            _ => {}
        }
        Some(self.frame(work, Some(node.id), None))
    }

    /// Whether an environment that the stage would change is in a freeze: then it waits. `None`: it is not.
    fn frozen(&self, node: NodeId, locks: &[LockKey]) -> Option<Option<Record>> {
        let frozen = locks.iter().any(|key| match key {
            LockKey::Service { environment, .. } => {
                self.plan.environments.get(environment).is_some_and(|environment| {
                    crate::window::any_open(&environment.freezes, self.state.now_ms)
                })
            }
            LockKey::Named(_) => false,
        });
        frozen.then(|| self.window_timer(node))
    }

    fn window_timer(&self, node: NodeId) -> Option<Record> {
        let timer = TimerId { node: Some(node), purpose: TimerPurpose::Window };
        let set = self.state.timer_due.contains_key(&timer);
        (!set).then(|| Record::TimerSet { timer, due_ms: self.state.now_ms + WINDOW_LOOK_MS })
    }

    pub(crate) fn lock_intent(&self, node: NodeId, stage: &Stage) -> Record {
        let step = StepRef { node: Some(node), block: Block::Main, index: 0 };
        let kind = ActionKind::Lock { keys: stage.locks.clone(), lease_ms: LEASE_MS };
        self.intent(&step, kind, stage.timeout_ms.unwrap_or(LOCK_WAIT_MS))
    }

    pub(crate) fn unlock_intent(&self, node: NodeId, stage: &Stage) -> Record {
        let step = StepRef { node: Some(node), block: Block::Main, index: 0 };
        self.intent(&step, ActionKind::Unlock { keys: stage.locks.clone() }, UNLOCK_MS)
    }

    /// Hooks that answer this outcome, one after the other. Outer `None`: all have run.
    fn hooks(
        &self,
        work: &Work,
        node: Option<NodeId>,
        hooks: &[Hook],
        outcome: Outcome,
    ) -> Option<Option<Record>> {
        if work.hook_open {
            let frame = work.frames.last()?;
            let Block::Hook(hook) = frame.block else { return Some(None) };
            let done = match &frame.ended {
                Some(Ok(())) => Some(None),
                Some(Err((_, fault))) => Some(Some(fault.clone())),
                None if steps_of(self.plan, node, frame.block).is_empty() => Some(None),
                None => None,
            };
            return Some(match done {
                Some(failed) => Some(Record::HookFinished { node, hook, failed }),
                None => self.frame(work, node, None),
            });
        }
        let (_, hook) = hooks
            .iter()
            .zip(0_u32..)
            .skip(work.next_hook as usize)
            .filter(|(_, at)| !work.hooks_run.contains(at))
            .find(|(hook, _)| hook.events.iter().any(|event| event.answers(outcome)))?;
        Some(Some(Record::HookStarted { node, hook }))
    }

    /// Hooks of a stage that was taken back after it had ended, one after the other.
    fn late_hooks(&self, work: &Work, id: NodeId, stage: &Stage) -> Option<Record> {
        if work.hook_open {
            return self.hooks(work, Some(id), &stage.hooks, Outcome::Skipped).flatten();
        }
        let hook = late_hook(work, &stage.hooks)?;
        Some(Record::HookStarted { node: Some(id), hook })
    }

    /// Whether a stage that was taken back after it had ended still is, or has a hook that answers it.
    fn late_open(&self, id: NodeId) -> bool {
        let Some(work) = self.state.work(Some(id)) else { return false };
        let hooks = match self.plan.node(id).map(|node| &node.kind) {
            Some(NodeKind::Stage(stage)) => stage.hooks.as_slice(),
            _ => &[],
        };
        let finished = self.state.node(id).is_some_and(|node| node.phase == NodePhase::Finished);
        finished
            && (work.undo.as_ref().is_some_and(|undo| !undo.ended)
                || work.hook_open
                || late_hook(work, hooks).is_some())
    }

    /// Whether a late undo of this stage, with what answers it, has come to its end.
    pub(crate) fn late_over(&self, id: NodeId) -> bool {
        !self.late_open(id)
    }

    /// A gate under way.
    fn gate(&self, work: &Work, node: &Node, gate: &Gate) -> Option<Record> {
        let result = match self.gate_checks(work, node, gate) {
            Ok(waits) => return waits,
            Err(result) => result,
        };
        let (outcome, reason) = match result {
            Ok(()) => (Outcome::Succeeded, None),
            Err((outcome, fault)) => (outcome, Some(fault)),
        };
        self.hooks(work, Some(node.id), &gate.hooks, outcome).unwrap_or(Some(Record::NodeFinished {
            node: node.id,
            outcome,
            reason,
        }))
    }

    /// `Ok`: it goes on, with a record or waiting. `Err`: how it ended.
    fn gate_checks(
        &self,
        work: &Work,
        node: &Node,
        gate: &Gate,
    ) -> Result<Option<Record>, Result<(), Failure>> {
        let step = StepRef { node: Some(node.id), block: Block::Main, index: 0 };
        let frame_open = work.frames.first().is_some_and(|frame| frame.step.is_some());
        if let Some(stop) = &work.stop {
            return if frame_open {
                Ok(self.frame(work, Some(node.id), None))
            } else {
                Err(Err(stop.clone()))
            };
        }
        if let Some(fault) = &work.gate.rejected {
            return Err(Err((Outcome::Failed, fault.clone())));
        }
        if work.gate.overridden {
            return Err(Ok(()));
        }
        if let Some(Err(failure)) = &work.ended {
            return Err(Err(failure.clone()));
        }
        let timer = TimerId { node: Some(node.id), purpose: TimerPurpose::NodeTimeout };
        if let Some(timeout_ms) = gate.timeout_ms
            && !self.state.timer_due.contains_key(&timer)
        {
            return Ok(Some(Record::TimerSet { timer, due_ms: self.state.now_ms + timeout_ms }));
        }
        let needed: Vec<_> = gate.approvals.iter().filter(|approval| self.needs_person(approval)).collect();
        if let Some(next) = needed.get(work.gate.approvals.len()) {
            if work.gate.looking.is_some() {
                return Ok(None);
            }
            return Ok(self.look_behind(work, node).or_else(|| self.ask_approval(node.id, next)));
        }
        if let Some(record) = self.approval_void(work, node.id, gate) {
            return Ok(Some(record));
        }
        if work.gate.approvals.iter().any(|approval| approval.expired && !approval.is_given()) {
            let fault = Fault::new("expired", "nobody approved in time");
            return Err(Err((Outcome::TimedOut, fault)));
        }
        if let Some(record) = self.gate_metrics(work, &step, gate)? {
            return Ok(record);
        }
        let checks_done = gate.checks.is_empty() || work.ended == Some(Ok(()));
        if !checks_done {
            return Ok(self.frame(work, Some(node.id), None));
        }
        if !work.gate.approvals.iter().all(crate::state::ApprovalState::is_given) {
            return Ok(None);
        }
        if !gate.windows.is_empty() && !crate::window::any_open(&gate.windows, self.state.now_ms) {
            return Ok(self.window_timer(node.id));
        }
        Err(Ok(()))
    }

    /// `Ok(Some(_))`: metrics go on; `Ok(None)`: all have held long enough.
    #[allow(clippy::type_complexity, reason = "the two layers are what the caller tells apart")]
    fn gate_metrics(
        &self,
        work: &Work,
        step: &StepRef,
        gate: &Gate,
    ) -> Result<Option<Option<Record>>, Result<(), Failure>> {
        use cdpipe_model::plan::NoData;
        use cdpipe_model::record::{Finding, RuleVerdict};
        if gate.metrics.iter().zip(&work.gate.metrics).all(|(_, metric)| metric.done) {
            return Ok(None);
        }
        if let Some(samples) = &work.gate.samples {
            let bound = crate::watch::bind(samples);
            let scope = self.scope(step);
            let mut findings = Vec::new();
            for (metric, rule) in gate.metrics.iter().zip(0_u32..) {
                let verdict = metric.when.eval_bool(&|symbol| match symbol {
                    cdpipe_model::expr::Symbol::Metric(metric) => bound.get(metric).cloned(),
                    other => scope.lookup(other),
                });
                match verdict {
                    Ok(true) => findings.push(Finding {
                        rule,
                        verdict: RuleVerdict::Pending,
                        text: metric.text.clone(),
                    }),
                    Ok(false) => {}
                    Err(error) if metric.no_data == NoData::Rollback => {
                        let fault = Fault::new("no-data", format!("{}: {error}", metric.text));
                        return Err(Err((Outcome::Failed, fault)));
                    }
                    Err(_) if metric.no_data == NoData::Pass => {
                        findings.push(Finding {
                            rule,
                            verdict: RuleVerdict::Pending,
                            text: metric.text.clone(),
                        });
                    }
                    Err(error) => findings.push(Finding {
                        rule,
                        verdict: RuleVerdict::NoData,
                        text: format!("{}: {error}", metric.text),
                    }),
                }
            }
            let step = StepRef { index: crate::fold::GATE_SAMPLE, ..step.clone() };
            return Ok(Some(Some(Record::Verdict { step, samples: samples.clone(), findings })));
        }
        if work.gate.sampling.is_some() {
            return Ok(Some(None));
        }
        if work.gate.sample_due || !work.gate.sampled {
            return Ok(Some(Some(self.gate_measure(step, &gate.metrics))));
        }
        let every_ms = gate.metrics.iter().map(|metric| metric.every_ms).min().unwrap_or(30_000);
        Ok(Some(self.set_sample_timer(work, step, every_ms)))
    }

    /// All stages and gates have ended: the hooks of the file, then the end.
    fn tail(&self) -> Option<Record> {
        if self.state.finished < self.state.nodes.len() {
            return None;
        }
        let (outcome, reason) = run_outcome(self.state);
        // The hooks answer how the stages ended; what a hook does about it comes after.
        let worst = self.state.worst.as_ref().map_or(Outcome::Succeeded, |(outcome, _)| *outcome);
        let answered = self.state.tail_answers.unwrap_or(worst);
        let tail = &self.state.tail;
        if !tail.hook_open && self.state.late_undos.iter().any(|id| self.late_open(*id)) {
            return None;
        }
        if let Some(next) = self.hooks(tail, None, &self.plan.hooks, answered) {
            return next;
        }
        // A rollback that a hook asked for may have failed.
        if outcome == Outcome::RollbackFailed
            && let Some(hook) = unrun_hook(tail, &self.plan.hooks, HookEvent::RollbackFailed)
        {
            return Some(Record::HookStarted { node: None, hook });
        }
        Some(Record::RunFinished { outcome, reason })
    }
}
