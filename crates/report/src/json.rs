//! One JSON object a line for programs: flat, stable, and only ever growing. Documented in docs/operations.md.

use crate::Reporter;
use crate::state::RunState;
use crate::summary;
use cdpipe_model::action::{ActionKind, ActionResult};
use cdpipe_model::event::{Event, Stream};
use cdpipe_model::plan::NodeKind;
use cdpipe_model::record::{Record, Signal};
use cdpipe_model::{Fault, NodeId};
use serde_json::{Value, json};
use std::io::Write;

/// Writes lines to a stream.
pub struct JsonLines<W> {
    out: W,
    state: RunState,
}

impl<W: Write + Send> JsonLines<W> {
    /// Writes to `out`. `state` is that of the run before the first event.
    pub fn new(out: W, state: RunState) -> Self {
        Self { out, state }
    }

    /// The stream.
    pub fn into_inner(self) -> W {
        self.out
    }

    fn write(&mut self, value: &Value) {
        let _ = writeln!(self.out, "{value}").and_then(|()| self.out.flush());
    }
}

impl<W: Write + Send> Reporter for JsonLines<W> {
    fn event(&mut self, now_ms: u64, event: &Event) {
        let value = of(&self.state, now_ms, event);
        self.state.apply(now_ms, event);
        if let Some(value) = value {
            self.write(&value);
        }
    }

    fn finish(&mut self, now_ms: u64) {
        let serving: Vec<Value> = self
            .state
            .serving
            .iter()
            .map(|(environment, service, shares)| {
                let shares: Vec<Value> = shares
                    .iter()
                    .map(|(version, share)| {
                        json!({
                            "release": share.release.0,
                            "version": version,
                            "percent": f64::from(share.weight_bp) / 100.0,
                        })
                    })
                    .collect();
                json!({ "environment": environment.0, "service": service.0, "releases": shares })
            })
            .collect();
        let value = json!({
            "type": "closed",
            "at_ms": now_ms,
            "outcome": self.state.finished.as_ref().map(|(outcome, _)| outcome.as_str()),
            "waiting": self.state.suspended,
            "exit_code": summary::exit_code(&self.state),
            "serving": serving,
        });
        self.write(&value);
    }
}

/// The object for an event, given the state before it; `None` for what only machines inside need.
fn of(before: &RunState, now_ms: u64, event: &Event) -> Option<Value> {
    match event {
        Event::Opened(header) => Some(json!({
            "type": "run",
            "version": 1,
            "at_ms": now_ms,
            "run": header.run.0,
            "pipeline": header.plan.name,
            "file": header.file,
            "plan_hash": header.plan.hash,
            "started_at_ms": header.started_at_ms,
            "started_by": header.started_by,
            "cdpipe_version": header.cdpipe_version,
            "git": { "sha": header.git.sha, "branch": header.git.branch, "tag": header.git.tag },
            "nodes": header.plan.nodes.iter().map(|node| json!({
                "name": node.name,
                "kind": if matches!(node.kind, NodeKind::Gate(_)) { "gate" } else { "stage" },
            })).collect::<Vec<_>>(),
        })),
        Event::Record { seq, at_ms, record } => {
            let mut value = record_fields(before, record)?;
            value["seq"] = json!(seq);
            value["at_ms"] = json!((*at_ms).max(before.now_ms));
            Some(value)
        }
        Event::Output { step, stream, line } => Some(json!({
            "type": "output",
            "at_ms": now_ms.max(before.now_ms),
            "node": step.node.map(|node| before.name(Some(node))),
            "stream": match stream { Stream::Stdout => "stdout", Stream::Stderr => "stderr" },
            "line": line,
        })),
        Event::Progress { step, text, .. } => Some(json!({
            "type": "progress",
            "at_ms": now_ms.max(before.now_ms),
            "node": step.node.map(|node| before.name(Some(node))),
            "text": text,
        })),
        Event::Closed => None,
    }
}

fn fault(fault: Option<&Fault>) -> Value {
    fault.map_or(Value::Null, |fault| {
        json!({ "kind": fault.kind, "message": fault.message, "help": fault.help, "details": fault.details })
    })
}

fn record_fields(before: &RunState, record: &Record) -> Option<Value> {
    let name = |node: &Option<NodeId>| node.map(|node| before.name(Some(node)).to_owned());
    Some(match record {
        Record::Opened { by, resumed, .. } => json!({ "type": "opened", "by": by, "resumed": resumed }),
        Record::NodeStarted { node, attempt } => {
            json!({ "type": "node_started", "node": name(&Some(*node)), "attempt": attempt })
        }
        Record::NodeFinished { node, outcome, reason } => {
            let state = before.nodes.get(node.0 as usize);
            let started = state.and_then(|state| state.started_at_ms);
            json!({
                "type": "node_finished",
                "node": name(&Some(*node)),
                "outcome": outcome.as_str(),
                "duration_ms": started.map(|started| before.now_ms.saturating_sub(started)),
                "reason": fault(reason.as_ref()),
            })
        }
        Record::StepStarted { step, attempt } => json!({
            "type": "step_started",
            "node": name(&step.node),
            "step": before.label(step),
            "attempt": attempt,
        }),
        Record::StepFinished { step, outcome, reason } => json!({
            "type": "step_finished",
            "node": name(&step.node),
            "step": before.label(step),
            "outcome": outcome.as_str(),
            "reason": fault(reason.as_ref()),
        }),
        Record::Programmed { step, program } => json!({
            "type": "deploy",
            "node": name(&step.node),
            "service": program.candidate.service.0,
            "candidate": { "release": program.candidate_id().0, "version": program.candidate.version },
            "stable": program.stable.as_ref().map(|spec| json!({ "release": spec.id().0, "version": spec.version })),
            "steps": program.steps.iter().map(|step| crate::words::step(program, step)).collect::<Vec<_>>(),
            "notes": program.notes,
        }),
        Record::Returned { action, result, .. } => {
            let action = before.actions.get(action)?;
            let ActionResult::Done(_) = result else { return None };
            let ActionKind::AwaitRouted { environment, table } = &action.kind else { return None };
            json!({
                "type": "routed",
                "node": name(&action.step.node),
                "environment": environment.0,
                "service": table.service().0,
                "releases": table.entries.iter().map(|entry| json!({
                    "release": entry.release.0,
                    "role": entry.role.as_str(),
                    "percent": f64::from(entry.weight_bp) / 100.0,
                })).collect::<Vec<_>>(),
            })
        }
        Record::Verdict { step, samples, findings } => json!({
            "type": "verdict",
            "node": name(&step.node),
            "samples": samples.iter().map(|sample| json!({
                "metric": sample.metric.to_string(),
                "value": sample.value.as_ref().map(ToString::to_string),
                "magnitude": sample.value.as_ref().and_then(cdpipe_model::Value::magnitude),
                "asked": sample.asked,
                "note": sample.note,
            })).collect::<Vec<_>>(),
            "findings": findings.iter().map(|finding| json!({
                "rule": finding.rule,
                "verdict": finding.verdict,
                "text": finding.text,
            })).collect::<Vec<_>>(),
        }),
        Record::Undoing { step, reason, outcome, .. } => json!({
            "type": "rollback",
            "node": name(&step.node),
            "outcome": outcome.as_str(),
            "reason": fault(Some(reason)),
        }),
        Record::UndoStarted { node, reason, late } => json!({
            "type": "undo_started",
            "node": name(&Some(*node)),
            "late": late,
            "reason": fault(Some(reason)),
        }),
        Record::ApprovalAsked { node, by, quorum, effect_hash, expires_at_ms } => json!({
            "type": "approval_asked",
            "node": name(&Some(*node)),
            "by": by,
            "quorum": quorum,
            "effect_hash": effect_hash,
            "expires_at_ms": expires_at_ms,
        }),
        Record::Signalled { signal, .. } => {
            let (what, node, by, reason) = match signal {
                Signal::Approve { node, by, .. } => ("approve", Some(*node), by, None),
                Signal::Reject { node, by, reason } => ("reject", Some(*node), by, Some(reason)),
                Signal::Pause { by } => ("pause", None, by, None),
                Signal::Continue { by } => ("continue", None, by, None),
                Signal::Promote { node, by, .. } => ("promote", Some(*node), by, None),
                Signal::Retry { node, by } => ("retry", Some(*node), by, None),
                Signal::Cancel { by, reason } => ("cancel", None, by, Some(reason)),
                Signal::Override { node, by, reason } => ("override", Some(*node), by, Some(reason)),
            };
            json!({ "type": "signal", "signal": what, "node": name(&node), "by": by, "reason": reason })
        }
        Record::HookStarted { node, hook } => {
            json!({ "type": "hook_started", "node": name(node), "hook": before.hook_label(*node, *hook) })
        }
        Record::HookFinished { node, hook, failed } => json!({
            "type": "hook_finished",
            "node": name(node),
            "hook": before.hook_label(*node, *hook),
            "failed": fault(failed.as_ref()),
        }),
        Record::Suspended { waiting } => json!({ "type": "suspended", "waiting": waiting }),
        Record::RunFinished { outcome, reason } => {
            json!({ "type": "run_finished", "outcome": outcome.as_str(), "reason": fault(reason.as_ref()) })
        }
        Record::ProgramAt { .. }
        | Record::TimerFired { .. }
        | Record::TimerSet { .. }
        | Record::TimerCleared { .. }
        | Record::Intent { .. }
        | Record::CancelAsked { .. } => return None,
    })
}
