//! Whether a run went as a test expects.

use crate::drive::{End, Ending};
use crate::given::Given;
use cdpipe_check::testing::{Expectation, Expected};
use cdpipe_model::action::{Block, StepRef};
use cdpipe_model::plan::{Hook, NodeKind, Plan, Step, StepKind};
use cdpipe_model::record::Record;
use cdpipe_model::value::{format_duration_ms, trim_number};
use cdpipe_model::{NodeId, Outcome};
use std::collections::BTreeMap;

/// An expectation that was not met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unmet {
    /// What was expected: `stage production == rolled_back`.
    pub expected: String,
    /// What was found instead.
    pub found: String,
}

/// Judges one expectation.
///
/// # Errors
/// What was expected and what was found.
pub fn judge(expectation: &Expectation, given: &Given, ending: &Ending) -> Result<(), Unmet> {
    let unmet = |found: String| Err(Unmet { expected: expectation.text.clone(), found });
    match &expectation.what {
        Expected::Outcome { node: None, outcome, within_ms } => {
            let found = match &ending.end {
                End::Finished(found) => {
                    return outcome_of(*found, ending.took_ms, *outcome, *within_ms).or_else(unmet);
                }
                End::Waiting(waiting) => format!("the run waits for {waiting}"),
                End::Stuck(why) => format!("the run came to no end: {why}"),
            };
            unmet(found)
        }
        Expected::Outcome { node: Some(name), outcome, within_ms } => {
            for node in given.plan().nodes.iter().filter(|node| is_named(&node.name, name)) {
                let judged = match ended(ending, node.id) {
                    Some((found, took_ms, why)) => outcome_of(found, took_ms, *outcome, *within_ms)
                        .map_err(|text| if why.is_empty() { text } else { format!("{text}: {why}") }),
                    None => Err(match &ending.end {
                        End::Waiting(waiting) => format!("it has not ended: the run waits for {waiting}"),
                        End::Stuck(why) => format!("it has not ended: {why}"),
                        End::Finished(_) => "it has not ended".to_owned(),
                    }),
                };
                if let Err(text) = judged {
                    let text = if node.name == *name { text } else { format!("{}: {text}", node.name) };
                    return unmet(text);
                }
            }
            Ok(())
        }
        Expected::Traffic { service, environment, shares } => {
            let none = BTreeMap::new();
            let found = ending.traffic.get(&(environment.clone(), service.clone())).unwrap_or(&none);
            let share =
                |of: &BTreeMap<String, f64>, version: &String| of.get(version).copied().unwrap_or(0.0);
            let same = shares
                .keys()
                .chain(found.keys())
                .all(|version| (share(shares, version) - share(found, version)).abs() < 0.01);
            if same { Ok(()) } else { unmet(shares_text(found)) }
        }
        Expected::Ran(text) => {
            let ran = what_ran(given.plan(), ending);
            if ran.iter().any(|what| what.contains(text.as_str())) {
                return Ok(());
            }
            let last: Vec<&str> = ran.iter().map(String::as_str).collect();
            unmet(match last.as_slice() {
                [] => "nothing ran".to_owned(),
                all => format!("it did not run; what ran is {}", all.join(", ")),
            })
        }
    }
}

/// `build` also names every stage of its matrix.
fn is_named(node: &str, name: &str) -> bool {
    node == name || node.strip_prefix(name).is_some_and(|rest| rest.starts_with('['))
}

fn outcome_of(found: Outcome, took_ms: u64, outcome: Outcome, within_ms: Option<u64>) -> Result<(), String> {
    #[allow(clippy::cast_precision_loss, reason = "a duration for people")]
    let text = |ms: u64| format_duration_ms(ms as f64);
    if found != outcome {
        return Err(found.to_string());
    }
    match within_ms {
        Some(within_ms) if took_ms > within_ms => Err(format!("{found} after {}", text(took_ms))),
        _ => Ok(()),
    }
}

/// How a stage ended, how long it took from its first beginning, and why.
fn ended(ending: &Ending, id: NodeId) -> Option<(Outcome, u64, String)> {
    let mut began_ms = None;
    let mut found = None;
    for (at_ms, record) in &ending.trace.records {
        match &**record {
            Record::NodeStarted { node, .. } if *node == id => {
                began_ms.get_or_insert(*at_ms);
            }
            Record::NodeFinished { node, outcome, reason } if *node == id => {
                let why = reason.as_ref().map(|fault| fault.message.clone()).unwrap_or_default();
                found = Some((*outcome, at_ms.saturating_sub(began_ms.unwrap_or(*at_ms)), why));
            }
            _ => {}
        }
    }
    found
}

/// `v1.0.0 90%, v2.0.0 10%`.
fn shares_text(shares: &BTreeMap<String, f64>) -> String {
    if shares.is_empty() {
        return "nothing serves".to_owned();
    }
    let each: Vec<String> =
        shares.iter().map(|(version, share)| format!("\"{version}\" = {}%", trim_number(*share))).collect();
    format!("{{ {} }}", each.join(", "))
}

/// Labels of the hooks and steps that ran, in order, each once.
fn what_ran(plan: &Plan, ending: &Ending) -> Vec<String> {
    let mut ran: Vec<String> = Vec::new();
    for (_, record) in &ending.trace.records {
        let labels: Vec<String> = match &**record {
            Record::HookStarted { node, hook } => {
                let hook = hooks(plan, *node).get(*hook as usize);
                let events = hook.map(|hook| hook.events.as_slice()).unwrap_or_default();
                events.iter().map(|event| format!("on {}", event.as_str())).collect()
            }
            Record::StepStarted { step, .. } => {
                step_of(plan, step).map(|step| step.label.clone()).into_iter().collect()
            }
            _ => Vec::new(),
        };
        for label in labels {
            if !ran.contains(&label) {
                ran.push(label);
            }
        }
    }
    ran
}

fn hooks(plan: &Plan, node: Option<NodeId>) -> &[Hook] {
    match node {
        None => &plan.hooks,
        Some(id) => match plan.node(id).map(|node| &node.kind) {
            Some(NodeKind::Stage(stage)) => &stage.hooks,
            Some(NodeKind::Gate(gate)) => &gate.hooks,
            None => &[],
        },
    }
}

fn step_of<'a>(plan: &'a Plan, at: &StepRef) -> Option<&'a Step> {
    let main: &[Step] = match at.node {
        None => &[],
        Some(id) => match &plan.node(id)?.kind {
            NodeKind::Stage(stage) => &stage.steps,
            NodeKind::Gate(gate) => &gate.checks,
        },
    };
    let deploy = |index: u32| match &main.get(index as usize)?.kind {
        StepKind::Deploy(deploy) => Some(&**deploy),
        _ => None,
    };
    let steps = match at.block {
        Block::Main => main,
        Block::Verify(index) => &deploy(index)?.verify,
        Block::Validate(index) => &deploy(index)?.validate,
        Block::Undo(index) => match &main.get(index as usize)?.kind {
            StepKind::Undo { steps } => steps,
            _ => return None,
        },
        Block::Hook(hook) => &hooks(plan, at.node).get(hook as usize)?.steps,
    };
    steps.get(at.index as usize)
}
