//! The fold: what each record does to the state. Nothing is decided here, so a journal means the same to every later version.

use crate::deploy;
use crate::state::{
    ApprovalState, Cursor, DeployState, FlagWas, Frame, GateMetricState, Lock, NodePhase, Soak, StageUndo,
    State, StepRun, UndoState, WatchState, Work,
};
use cdpipe_model::action::{Action, ActionKind, ActionResult, Answer, Block, StepRef};
use cdpipe_model::expr::Subject;
use cdpipe_model::observe::Role;
use cdpipe_model::plan::{NodeKind, Plan, Step, StepKind};
use cdpipe_model::program::ProgramStep;
use cdpipe_model::record::{Record, RuleVerdict, Signal, TimerId, TimerPurpose};
use cdpipe_model::{ActionId, Fault, NodeId, Outcome};

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
    DeployWatch(u32),
    Deploy(u32),
    UndoFlag,
    StepWatch,
    Step,
}

/// Index that marks the samples of a gate, which belong to no step.
pub(crate) const GATE_SAMPLE: u32 = u32::MAX;

pub(crate) fn place(state: &State, plan: &Plan, action: &Action) -> Place {
    let step = &action.step;
    match &action.kind {
        ActionKind::Lock { .. } => return Place::Lock,
        ActionKind::Unlock { .. } => return Place::Unlock,
        ActionKind::Measure { .. } if step.index == GATE_SAMPLE => return Place::GateSample,
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
        Record::ApprovalAsked { node, by, quorum, expires_at_ms, .. } => {
            if let Some(work) = state.work_mut(Some(*node)) {
                work.gate.approvals.push(ApprovalState {
                    by: by.clone(),
                    quorum: *quorum,
                    given: Default::default(),
                    expired: false,
                });
                if let Some(deploy) = current_deploy(work) {
                    deploy.cursor.approval_asked = true;
                }
            }
            if let Some(due_ms) = expires_at_ms {
                state.set_timer(
                    TimerId { node: Some(*node), purpose: TimerPurpose::ApprovalExpires },
                    *due_ms,
                );
            }
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
            if let Some(work) = state.work_mut(*node) {
                work.hook_open = true;
                work.frames.push(Frame { block: Block::Hook(*hook), index: 0, step: None, ended: None });
            }
        }
        Record::HookFinished { node, hook, .. } => {
            if let Some(work) = state.work_mut(*node) {
                work.frames.retain(|frame| frame.block != Block::Hook(*hook));
                work.hook_open = false;
                work.next_hook = hook + 1;
            }
        }
        Record::Suspended { .. } => {}
        Record::RunFinished { outcome, reason } => state.ended = Some((*outcome, reason.clone())),
    }
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

fn opened(state: &mut State, at_ms: u64, resumed: bool) {
    state.now_ms = state.now_ms.max(at_ms);
    state.opened = true;
    for at in 0..state.nodes.len() {
        let id = NodeId(u32::try_from(at).unwrap_or(u32::MAX));
        let node = &state.nodes[at];
        let late = node.work.as_ref().is_some_and(|work| work.undo.is_some());
        if (node.phase == NodePhase::Pending && node.needs_left == 0)
            || node.phase == NodePhase::Running
            || late
        {
            state.mark(Some(id));
        }
    }
    state.mark(None);
    if !resumed {
        return;
    }
    // Nobody watched meanwhile, so time that should have been watched starts again.
    let mut soaking = Vec::new();
    for (at, node) in state.nodes.iter_mut().enumerate() {
        let Some(work) = &mut node.work else { continue };
        for deploy in work.deploys.values_mut().filter(|deploy| deploy.cursor.soak.is_some()) {
            deploy.cursor.soak = None;
            soaking.push(NodeId(u32::try_from(at).unwrap_or(u32::MAX)));
            if let Some(watch) = &mut deploy.watch {
                watch.held_since_ms.clear();
                watch.judged_at_ms = None;
            }
        }
    }
    for node in soaking {
        clear(state, Some(node), TimerPurpose::Soak);
    }
}

fn node_started(state: &mut State, plan: &Plan, id: NodeId, attempt: u32) {
    let is_stage = matches!(plan.node(id).map(|node| &node.kind), Some(NodeKind::Stage(_)));
    let metrics = match plan.node(id).map(|node| &node.kind) {
        Some(NodeKind::Gate(gate)) => vec![GateMetricState::default(); gate.metrics.len()],
        _ => Vec::new(),
    };
    let Some(node) = state.node_mut(id) else { return };
    let again = node.phase == NodePhase::Running;
    node.phase = NodePhase::Running;
    node.attempt = attempt;
    let mut work = Work::default();
    work.gate.metrics = metrics;
    work.frames.push(Frame { block: Block::Main, index: 0, step: None, ended: None });
    node.work = Some(Box::new(work));
    if is_stage && !again {
        state.running_stages += 1;
    }
    state.mark(Some(id));
}

fn node_finished(state: &mut State, plan: &Plan, id: NodeId, outcome: Outcome, reason: &Option<Fault>) {
    let is_stage = matches!(plan.node(id).map(|node| &node.kind), Some(NodeKind::Stage(_)));
    let Some(node) = state.node_mut(id) else { return };
    let ran = node.phase == NodePhase::Running;
    node.phase = NodePhase::Finished;
    node.outcome = Some(outcome);
    node.reason.clone_from(reason);
    if let Some(work) = &mut node.work {
        let undoable = !work.deploys.is_empty()
            || !work.flags_were.is_empty()
            || steps_of(plan, Some(id), Block::Main)
                .iter()
                .any(|step| matches!(step.kind, StepKind::Undo { .. }));
        if !undoable {
            node.work = None;
        }
    }
    if outcome != Outcome::Succeeded {
        node.outputs.clear();
    }
    if is_stage && ran {
        state.running_stages -= 1;
    }
    state.finished += 1;
    if outcome > Outcome::Succeeded && state.worst.as_ref().is_none_or(|(worst, _)| outcome >= *worst) {
        state.worst = Some((outcome, id));
    }
    if ran {
        state.clear_timers_of(Some(id));
    }
    let dependents = state.dependents.get_mut(id.0 as usize).map(std::mem::take).unwrap_or_default();
    for dependent in &dependents {
        let Some(node) = state.node_mut(*dependent) else { continue };
        node.needs_left = node.needs_left.saturating_sub(1);
        if node.needs_left == 0 {
            state.mark(Some(*dependent));
        }
    }
    if let Some(slot) = state.dependents.get_mut(id.0 as usize) {
        *slot = dependents;
    }
    state.mark_next_ready(plan.max_parallel);
    if state.finished == state.nodes.len() {
        state.mark(None);
    }
}

fn step_started(state: &mut State, plan: &Plan, step: &StepRef, attempt: u32) {
    let is_deploy = matches!(step_of(plan, step).map(|step| &step.kind), Some(StepKind::Deploy(_)));
    let is_watch = matches!(step_of(plan, step).map(|step| &step.kind), Some(StepKind::Watch(_)));
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

fn step_finished(state: &mut State, plan: &Plan, step: &StepRef, outcome: Outcome, reason: &Option<Fault>) {
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

fn intent(state: &mut State, plan: &Plan, action: &Action) {
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
        Place::StepWatch => {
            if let Some(watch) = active_step(state, action.step.node).and_then(|run| run.watch.as_mut()) {
                watch.sampling = id;
                watch.sample_due = false;
            }
        }
        Place::Step => {
            if let Some(run) = active_step(state, action.step.node) {
                run.action = id;
                run.returned = None;
            }
        }
    }
    state.in_flight.insert(action.id, action.clone());
}

fn active_step(state: &mut State, node: Option<NodeId>) -> Option<&mut StepRun> {
    state.work_mut(node)?.frames.last_mut()?.step.as_mut()
}

fn set_lock(state: &mut State, node: Option<NodeId>, lock: Lock) {
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
fn late_undo_ended(state: &mut State, node: Option<NodeId>, failed: Option<Fault>) {
    if let Some(node) = node.and_then(|id| state.node_mut(id))
        && failed.is_none()
    {
        node.outcome = Some(Outcome::RolledBack);
    }
    if failed.is_some() {
        state.late_failed = state.late_failed.take().or(failed);
    }
    for at in 0..state.nodes.len() {
        if state.nodes[at].phase == NodePhase::Running {
            state.mark(Some(NodeId(u32::try_from(at).unwrap_or(u32::MAX))));
        }
    }
    state.mark(None);
}

fn failure(result: &ActionResult) -> (Outcome, Fault) {
    match result {
        ActionResult::Done(_) => (Outcome::Failed, Fault::new("internal", "unexpected answer")),
        ActionResult::Failed(fault) => (Outcome::Failed, fault.clone()),
        ActionResult::TimedOut(fault) => (Outcome::TimedOut, fault.clone()),
        ActionResult::Cancelled => (Outcome::Cancelled, Fault::new("cancelled", "it was cancelled")),
        ActionResult::Unknown(fault) => (Outcome::Failed, fault.clone()),
    }
}

fn returned(state: &mut State, plan: &Plan, id: ActionId, result: &ActionResult) {
    let Some(action) = state.in_flight.remove(&id) else { return };
    state.cancel_asked.remove(&id);
    let node = action.step.node;
    state.mark(node);
    match place(state, plan, &action) {
        Place::Lock => match result {
            ActionResult::Done(_) => set_lock(state, node, Lock::Held),
            other => {
                set_lock(state, node, Lock::None);
                let (outcome, fault) = failure(other);
                let Some(work) = state.work_mut(node) else { return };
                match &mut work.undo {
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
                    other => deploy.cursor.failed = Some(failure(other)),
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
            if let Some(run) = active_step(state, node)
                && run.action == Some(id)
            {
                run.action = None;
                run.returned = Some(result.clone());
            }
        }
    }
}

fn samples(result: &ActionResult) -> Vec<cdpipe_model::measure::Sample> {
    match result {
        ActionResult::Done(Answer::Samples(samples)) => samples.clone(),
        // The question could not be asked at all: no sample, so every rule is without data.
        _ => Vec::new(),
    }
}

fn timer_set(state: &mut State, plan: &Plan, timer: &TimerId, due_ms: u64) {
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
            let in_undo = current_deploy(work).is_some_and(|deploy| match &deploy.undo {
                Some(undo) if undo.ended.is_none() => {
                    deploy.cursor.retry_at_ms = Some(due_ms);
                    deploy.cursor.retries += 1;
                    true
                }
                _ => false,
            });
            if in_undo {
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
fn waiting_step<'a>(work: &'a mut Work, plan: &Plan, node: Option<NodeId>) -> Option<&'a mut StepRun> {
    let frame = work.frames.last_mut()?;
    let step = steps_of(plan, node, frame.block).get(frame.index as usize)?;
    matches!(step.kind, StepKind::Wait { .. } | StepKind::Watch(_)).then_some(frame.step.as_mut()?)
}

fn fired(state: &mut State, plan: &Plan, timer: &TimerId) {
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
                approval.expired = !approval.is_given();
            }
        }
        // Marked already: the window is looked at again.
        TimerPurpose::Window | TimerPurpose::HoldFor => {}
    }
}

fn signalled(state: &mut State, plan: &Plan, signal: &Signal) {
    match signal {
        Signal::Approve { node, by } => {
            if let Some(work) = state.work_mut(Some(*node)) {
                for approval in &mut work.gate.approvals {
                    if approval.by.is_empty() || approval.by.contains(by) {
                        approval.given.insert(by.clone());
                    }
                }
            }
            state.mark(Some(*node));
        }
        Signal::Reject { node, by, reason } => {
            if let Some(work) = state.work_mut(Some(*node)) {
                let mut text = format!("rejected by {by}");
                if !reason.is_empty() {
                    text = format!("{text}: {reason}");
                }
                work.gate.rejected = Some(Fault::new("rejected", text));
            }
            state.mark(Some(*node));
        }
        Signal::Override { node, .. } => {
            if let Some(work) = state.work_mut(Some(*node)) {
                work.gate.overridden = true;
            }
            state.mark(Some(*node));
        }
        Signal::Pause { .. } => state.paused = true,
        Signal::Continue { .. } => {
            state.paused = false;
            for at in 0..state.nodes.len() {
                if state.nodes[at].phase != NodePhase::Finished && state.nodes[at].needs_left == 0 {
                    state.mark(Some(NodeId(u32::try_from(at).unwrap_or(u32::MAX))));
                }
            }
            state.mark(None);
        }
        Signal::Promote { node, full, .. } => {
            if let Some(deploy) = state.work_mut(Some(*node)).and_then(current_deploy) {
                deploy.skip_soak = true;
                deploy.skip_all_soaks |= *full;
            }
            state.mark(Some(*node));
        }
        Signal::Retry { node, .. } => {
            // A failed stage of a run that has not ended yet: it and what was skipped because of it begin again.
            crate::schedule::reopen(state, plan, *node);
        }
        Signal::Cancel { by, reason } => {
            let mut text = format!("cancelled by {by}");
            if !reason.is_empty() {
                text = format!("{text}: {reason}");
            }
            let fault = Fault::new("cancelled", text);
            state.cancelled = Some(fault.clone());
            for at in 0..state.nodes.len() {
                let node = &mut state.nodes[at];
                if node.phase == NodePhase::Finished {
                    continue;
                }
                if let Some(work) = &mut node.work {
                    work.stop.get_or_insert((Outcome::Cancelled, fault.clone()));
                }
                state.mark(Some(NodeId(u32::try_from(at).unwrap_or(u32::MAX))));
            }
            state.mark(None);
        }
    }
}

fn verdict(
    state: &mut State,
    plan: &Plan,
    step: &StepRef,
    samples: &[cdpipe_model::measure::Sample],
    findings: &[cdpipe_model::record::Finding],
) {
    let now_ms = state.now_ms;
    if step.index == GATE_SAMPLE {
        gate_verdict(state, plan, step, findings);
        return;
    }
    let is_deploy = matches!(step_of(plan, step).map(|step| &step.kind), Some(StepKind::Deploy(_)));
    let every_ms = match step_of(plan, step).map(|step| &step.kind) {
        Some(StepKind::Deploy(deploy)) => deploy.watch.as_ref().map_or(0, |watch| watch.every_ms),
        Some(StepKind::Watch(watch)) => watch.every_ms,
        _ => 0,
    };
    let Some(work) = state.work_mut(step.node) else { return };
    let mut gap = false;
    let watch = if is_deploy {
        let Some(deploy) = work.deploys.get_mut(&step.index) else { return };
        let promoted = deploy.promoted;
        let Some(watch) = deploy.watch.as_mut() else { return };
        if !promoted {
            for sample in samples.iter().filter(|sample| sample.metric.subject == Subject::Stable) {
                if let Some(value) = &sample.value {
                    watch.last_stable.insert(sample.metric.clone(), value.clone());
                }
            }
        }
        gap = watch.judged_at_ms.is_some_and(|before| now_ms.saturating_sub(before) > 2 * every_ms + 5_000);
        watch
    } else {
        let run = work.frames.last_mut().and_then(|frame| frame.step.as_mut());
        let Some(watch) = run.and_then(|run| run.watch.as_mut()) else { return };
        watch
    };
    watch.samples = None;
    watch.judged_at_ms = Some(now_ms);
    let holding: std::collections::BTreeSet<u32> = findings
        .iter()
        .filter(|finding| finding.verdict != RuleVerdict::NoData)
        .map(|finding| finding.rule)
        .collect();
    watch.held_since_ms.retain(|rule, _| holding.contains(rule));
    for rule in holding {
        watch.held_since_ms.entry(rule).or_insert(now_ms);
    }
    if findings.iter().any(|finding| finding.verdict == RuleVerdict::NoData) {
        watch.hold_since_ms.get_or_insert(now_ms);
    } else {
        watch.hold_since_ms = None;
    }
    if findings.iter().any(|finding| finding.verdict == RuleVerdict::Breach) {
        watch.breach =
            Some(findings.iter().filter(|finding| finding.verdict == RuleVerdict::Breach).cloned().collect());
    }
    if gap && let Some(deploy) = work.deploys.get_mut(&step.index) {
        // More than two polls were missed: what was watched before does not count.
        deploy.cursor.soak = None;
        clear(state, step.node, TimerPurpose::Soak);
    }
}

/// A condition has held since the first of an unbroken row of samples in which it held.
fn gate_verdict(state: &mut State, plan: &Plan, step: &StepRef, findings: &[cdpipe_model::record::Finding]) {
    let now_ms = state.now_ms;
    let Some(NodeKind::Gate(gate)) = step.node.and_then(|id| plan.node(id)).map(|node| &node.kind) else {
        return;
    };
    let Some(work) = state.work_mut(step.node) else { return };
    work.gate.samples = None;
    work.gate.sampled = true;
    for ((metric, spec), rule) in work.gate.metrics.iter_mut().zip(&gate.metrics).zip(0_u32..) {
        let held =
            findings.iter().any(|finding| finding.rule == rule && finding.verdict == RuleVerdict::Pending);
        if held {
            let since_ms = *metric.held_since_ms.get_or_insert(now_ms);
            metric.done |= now_ms.saturating_sub(since_ms) >= spec.for_ms;
        } else {
            metric.held_since_ms = None;
        }
    }
}

fn undo_started(state: &mut State, plan: &Plan, node: NodeId, reason: &Fault, late: bool) {
    let Some(work) = state.work_mut(Some(node)) else { return };
    let reached =
        work.frames.iter().find(|frame| frame.block == Block::Main).map_or(u32::MAX, |frame| frame.index);
    let mut queue = std::collections::VecDeque::new();
    for (step, index) in steps_of(plan, Some(node), Block::Main).iter().zip(0_u32..) {
        let undoable = match &step.kind {
            StepKind::Deploy(_) => {
                work.deploys.get(&index).is_some_and(|deploy| deploy.ended == Some(Ok(())))
            }
            StepKind::Flag(_) => work.flags_were.contains_key(&index),
            StepKind::Undo { .. } => index < reached,
            _ => false,
        };
        if undoable {
            queue.push_front(index);
        }
    }
    let ended = queue.is_empty() && !late;
    if late {
        work.lock = Lock::None;
        for deploy in work.deploys.values_mut() {
            deploy.observation = None;
            deploy.cursor = Cursor::default();
        }
    }
    work.undo = Some(StageUndo {
        queue,
        reason: reason.clone(),
        failed: None,
        late,
        ended,
        flag_action: None,
        block_ended: None,
    });
    state.mark(Some(node));
}

/// Which side of a deploy a release is.
pub(crate) fn side_of(deploy: &DeployState, release: &cdpipe_model::ReleaseId) -> Option<Role> {
    let program = deploy.program.as_ref()?;
    if *release == program.candidate_id() {
        return Some(Role::Candidate);
    }
    program.stable.as_ref().filter(|spec| spec.id() == *release).map(|_| Role::Stable)
}
