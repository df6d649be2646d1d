//! Stages and gates begin and end, and are taken back.

use super::{clear, steps_of};
use crate::state::{Back, Cursor, Frame, GateMetricState, Lock, NodePhase, Relock, StageUndo, State, Work};
use cdpipe_model::action::Block;
use cdpipe_model::plan::{NodeKind, Plan, StepKind};
use cdpipe_model::record::TimerPurpose;
use cdpipe_model::{Fault, NodeId, Outcome};
use std::collections::VecDeque;

pub(super) fn opened(state: &mut State, at_ms: u64, resumed: bool) {
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

pub(super) fn node_started(state: &mut State, plan: &Plan, id: NodeId, attempt: u32) {
    let is_stage = matches!(plan.node(id).map(|node| &node.kind), Some(NodeKind::Stage(_)));
    let metrics = match plan.node(id).map(|node| &node.kind) {
        Some(NodeKind::Gate(gate)) => vec![GateMetricState::default(); gate.metrics.len()],
        _ => Vec::new(),
    };
    let now_ms = state.now_ms;
    let Some(node) = state.node_mut(id) else { return };
    let again = node.phase == NodePhase::Running;
    node.phase = NodePhase::Running;
    node.attempt = attempt;
    let mut work = Work::default();
    work.gate.metrics = metrics;
    work.gate.overridden = std::mem::take(&mut node.overridden);
    work.gate.begun_ms = (!is_stage).then_some(now_ms);
    work.frames.push(Frame { block: Block::Main, index: 0, step: None, ended: None });
    node.work = Some(Box::new(work));
    if again {
        // What the attempt before had set says nothing of this one.
        state.clear_timers_of(Some(id));
    }
    if is_stage && !again {
        state.running_stages += 1;
    }
    state.mark(Some(id));
}

pub(super) fn node_finished(
    state: &mut State,
    plan: &Plan,
    id: NodeId,
    outcome: Outcome,
    reason: &Option<Fault>,
) {
    let is_stage = matches!(plan.node(id).map(|node| &node.kind), Some(NodeKind::Stage(_)));
    let Some(node) = state.node_mut(id) else { return };
    let ran = node.phase == NodePhase::Running;
    node.phase = NodePhase::Finished;
    node.outcome = Some(outcome);
    node.reason.clone_from(reason);
    if let Some(work) = &mut node.work {
        let by_people =
            outcome == Outcome::Succeeded && !work.gate.overridden && !work.gate.approvals.is_empty();
        node.approved = by_people.then(|| Box::new(std::mem::take(&mut work.gate.seen)));
        let undoable = !work.deploys.is_empty()
            || !work.flags_were.is_empty()
            || work.applied.values().any(|applied| applied.begun)
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
    if !state.rollbacks.is_empty() {
        state.wake_rollbacks();
    }
    // An output of this stage may be part of what an approval lets pass.
    state.asking.remove(&id);
    for asking in state.asking.clone() {
        state.mark(Some(asking));
    }
    if state.finished == state.nodes.len() {
        state.mark(None);
    }
}

/// Main steps of a stage that can be taken back as things stand, newest first.
pub(crate) fn undoable(plan: &Plan, node: NodeId, work: &Work) -> VecDeque<u32> {
    let reached =
        work.frames.iter().find(|frame| frame.block == Block::Main).map_or(u32::MAX, |frame| frame.index);
    let mut queue = VecDeque::new();
    for (step, index) in steps_of(plan, Some(node), Block::Main).iter().zip(0_u32..) {
        let undoable = match &step.kind {
            StepKind::Deploy(_) => work
                .deploys
                .get(&index)
                .is_some_and(|deploy| deploy.ended == Some(Ok(())) && deploy.undo.is_none()),
            StepKind::Flag(_) => work.flags_were.contains_key(&index),
            StepKind::Apply(_) => {
                work.applied.get(&index).is_some_and(|applied| applied.done && applied.back.is_none())
            }
            StepKind::Undo { .. } => index < reached,
            _ => false,
        };
        if undoable {
            queue.push_front(index);
        }
    }
    queue
}

pub(super) fn undo_started(state: &mut State, plan: &Plan, node: NodeId, reason: &Fault, late: bool) {
    let Some(work) = state.work_mut(Some(node)) else { return };
    if !late && work.ended.is_none() {
        // It is under way: it stops first.
        work.undo_asked = Some(reason.clone());
        work.stop.get_or_insert((Outcome::Cancelled, reason.clone()));
        state.late_undos.insert(node);
        state.mark(Some(node));
        return;
    }
    let queue = undoable(plan, node, work);
    begin_undo(state, node, reason, late, queue);
}

fn begin_undo(state: &mut State, node: NodeId, reason: &Fault, late: bool, queue: VecDeque<u32>) {
    let Some(work) = state.work_mut(Some(node)) else { return };
    let ended = queue.is_empty();
    if late {
        if work.lock == Lock::Released {
            work.lock = Lock::None;
        }
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
        failed_steps: Vec::new(),
        flag_action: None,
        block_ended: None,
        relock: Relock::default(),
    });
    if late {
        state.late_undos.insert(node);
    }
    state.mark(Some(node));
    state.wake_rollbacks();
}

/// The run had ended because a rollback failed: what could not be taken back is tried again.
pub(super) fn undo_again(state: &mut State) {
    state.ended = None;
    state.late_failed = None;
    state.tail_answers = None;
    for at in 0..state.nodes.len() {
        let id = NodeId(u32::try_from(at).unwrap_or(u32::MAX));
        let node = &mut state.nodes[at];
        let Some(work) = node.work.as_deref_mut().filter(|_| node.phase == NodePhase::Finished) else {
            continue;
        };
        let mut queue = VecDeque::new();
        for (index, deploy) in &mut work.deploys {
            if deploy.undo.as_ref().is_some_and(|undo| undo.ended != Some(Ok(()))) {
                deploy.undo = None;
                deploy.undo_again = true;
                queue.push_front(*index);
            }
        }
        for (index, applied) in &mut work.applied {
            if matches!(applied.back, Some(Back::Ended(Err(_)))) {
                applied.back = None;
                queue.push_front(*index);
            }
        }
        let mut reason = node.reason.clone();
        if let Some(undo) = work.undo.take() {
            // Steps that were taken back left the queue; what failed is known by its own state, or by having been tried.
            for index in undo.queue.into_iter().chain(undo.failed_steps) {
                if !queue.contains(&index) {
                    queue.push_back(index);
                }
            }
            reason = Some(undo.reason);
        }
        if queue.is_empty() {
            continue;
        }
        let mut newest_first: Vec<u32> = queue.into_iter().collect();
        newest_first.sort_unstable_by(|a, b| b.cmp(a));
        let reason = reason.unwrap_or_else(|| Fault::new("rollback", "it is tried again"));
        begin_undo(state, id, &reason, true, newest_first.into());
    }
    state.mark(None);
}
