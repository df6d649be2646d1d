//! What a watch or a gate made of its samples.

use super::{GATE_SAMPLE, clear, step_of};
use crate::state::State;
use cdpipe_model::action::StepRef;
use cdpipe_model::expr::Subject;
use cdpipe_model::plan::{NodeKind, Plan, StepKind};
use cdpipe_model::record::{RuleVerdict, TimerPurpose};

pub(super) fn verdict(
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
    let missed = |judged_at_ms: Option<u64>| is_gap(judged_at_ms, now_ms, every_ms);
    let gap;
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
        gap = missed(watch.judged_at_ms);
        watch
    } else {
        let Some(run) = work.frames.last_mut().and_then(|frame| frame.step.as_mut()) else { return };
        let Some(watch) = run.watch.as_mut() else { return };
        gap = missed(watch.judged_at_ms);
        if gap {
            run.wait_until_ms = None;
            run.wait_due = false;
        }
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
    if gap {
        // What was watched before does not count.
        if is_deploy && let Some(deploy) = work.deploys.get_mut(&step.index) {
            deploy.cursor.soak = None;
        }
        clear(state, step.node, TimerPurpose::Soak);
    }
}

/// Whether more than two looks were missed since the last one: nobody watched in between.
fn is_gap(judged_at_ms: Option<u64>, now_ms: u64, every_ms: u64) -> bool {
    judged_at_ms.is_some_and(|before| now_ms.saturating_sub(before) > 2 * every_ms + 5_000)
}

/// A condition has held since the first of an unbroken row of samples in which it held.
pub(super) fn gate_verdict(
    state: &mut State,
    plan: &Plan,
    step: &StepRef,
    findings: &[cdpipe_model::record::Finding],
) {
    let now_ms = state.now_ms;
    let Some(NodeKind::Gate(gate)) = step.node.and_then(|id| plan.node(id)).map(|node| &node.kind) else {
        return;
    };
    let Some(work) = state.work_mut(step.node) else { return };
    work.gate.samples = None;
    work.gate.sampled = true;
    let judged_at_ms = work.gate.judged_at_ms.replace(now_ms);
    for ((metric, spec), rule) in work.gate.metrics.iter_mut().zip(&gate.metrics).zip(0_u32..) {
        let held =
            findings.iter().any(|finding| finding.rule == rule && finding.verdict == RuleVerdict::Pending);
        if is_gap(judged_at_ms, now_ms, spec.every_ms) {
            metric.held_since_ms = None;
        }
        if held {
            let since_ms = *metric.held_since_ms.get_or_insert(now_ms);
            metric.done |= now_ms.saturating_sub(since_ms) >= spec.for_ms;
        } else {
            metric.held_since_ms = None;
        }
    }
}
