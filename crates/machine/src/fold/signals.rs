//! What people ask of a run.

use super::current_deploy;
use crate::state::{NodePhase, State};
use cdpipe_model::plan::Plan;
use cdpipe_model::record::Signal;
use cdpipe_model::{Fault, NodeId, Outcome};

pub(super) fn signalled(state: &mut State, plan: &Plan, signal: &Signal) {
    match signal {
        Signal::Approve { node, by, person, effect_hash } => {
            let person = if person.is_empty() { by } else { person };
            if let Some(work) = state.work_mut(Some(*node)) {
                for approval in &mut work.gate.approvals {
                    let may = approval.by.is_empty() || approval.by.contains(by);
                    if may && (effect_hash.is_empty() || *effect_hash == approval.effect_hash) {
                        approval.given.insert(person.clone());
                    }
                }
            }
            state.arm_expiry(*node);
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
            } else if let Some(node) = state.node_mut(*node) {
                node.overridden = true;
            }
            state.mark(Some(*node));
        }
        Signal::Pause { .. } => state.paused = true,
        Signal::Continue { .. } => {
            state.paused = false;
            if state.ended.as_ref().is_some_and(|(outcome, _)| *outcome == Outcome::RollbackFailed) {
                super::nodes::undo_again(state);
            }
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
