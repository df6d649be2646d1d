//! The deciding half of a run: strategies as step programs, the one interpreter, the ready queue, the undo stack, gate verdicts.
//!
//! Uses `model` and nothing else of ours. Deliberately not here: a clock, randomness, I/O, tokio. Time and observations arrive as
//! records, so the same code runs in production, under a virtual clock in `cdpipe test`, and again from a journal.
//!
//! Shape: an input record goes in (`accept`), decisions come out, and the state is nothing but the fold of all records (`apply`). A
//! resume folds the journal with `apply`, which never decides; so a newer version of this crate cannot change the past of a run.
//!
//! Where to find what: `strategy/` compiles a deploy to a program, `deploy` carries it out, `apply` is that of manifests, `steps` runs lists of steps, `watch` judges
//! samples, `schedule` starts and ends stages and gates, `approval` says what an
//! approval is bound to, `fold` is the fold, `state` what it folds into.

mod apply;
mod approval;
mod decide;
mod deploy;
mod fold;
mod output;
pub mod release;
mod schedule;
mod state;
mod steps;
pub mod strategy;
mod symbols;
#[cfg(test)]
mod tests;
mod watch;
mod window;

use cdpipe_model::action::Action;
use cdpipe_model::observe::Instance;
use cdpipe_model::plan::{NodeKind, Plan, StepKind};
use cdpipe_model::record::{Record, RunHeader, TimerId, TimerPurpose};
use cdpipe_model::{ActionId, EnvName, NodeId, Outcome};
use state::{NodeState, State};
use std::sync::Arc;

/// The state of one run.
pub struct Machine {
    header: Arc<RunHeader>,
    state: State,
}

impl Machine {
    /// A run before its first record.
    pub fn new(header: Arc<RunHeader>) -> Self {
        let plan = &header.plan;
        let mut state = State { dependents: vec![Vec::new(); plan.nodes.len()], ..State::default() };
        for node in &plan.nodes {
            let needs_left = u32::try_from(node.needs.len()).unwrap_or(u32::MAX);
            state.nodes.push(NodeState { needs_left, ..NodeState::default() });
            for need in &node.needs {
                if let Some(dependents) = state.dependents.get_mut(need.node.0 as usize) {
                    dependents.push(node.id);
                }
            }
        }
        Self { header, state }
    }

    /// What is run.
    pub fn header(&self) -> &Arc<RunHeader> {
        &self.header
    }

    fn plan(&self) -> &Plan {
        &self.header.plan
    }

    /// Folds a record of the journal. Decides nothing and emits nothing.
    pub fn apply(&mut self, record: &Record) {
        fold::apply(&mut self.state, &self.header.plan, record);
    }

    /// Takes an input (`Opened`, `TimerFired`, `Returned`, `Signalled`), decides what follows, and answers the input and all decisions in
    /// order, already applied. The caller makes them durable before it does the actions among them.
    pub fn accept(&mut self, input: Record) -> Vec<Record> {
        self.apply(&input);
        let mut records = vec![input];
        let header = Arc::clone(&self.header);
        while let Some(record) = schedule::next(&mut self.state, &header.plan, &header) {
            self.apply(&record);
            records.push(record);
        }
        records
    }

    /// Actions whose intent is recorded and that have not returned, oldest first.
    pub fn in_flight(&self) -> impl Iterator<Item = &Action> {
        self.state.in_flight.values()
    }

    /// Instances that deploys under way work with, by environment.
    pub fn instances(&self) -> impl Iterator<Item = (&EnvName, &Instance)> {
        self.state.nodes.iter().zip(&self.plan().nodes).flat_map(|(state, node)| {
            let steps = match &node.kind {
                NodeKind::Stage(stage) => stage.steps.as_slice(),
                NodeKind::Gate(_) => &[],
            };
            let deploys = state.work.iter().flat_map(|work| &work.deploys);
            deploys.flat_map(move |(index, deploy)| {
                let environment = match steps.get(*index as usize).map(|step| &step.kind) {
                    Some(StepKind::Deploy(deploy)) => Some(&deploy.environment),
                    _ => None,
                };
                let both = deploy.candidate.iter().chain(&deploy.stable);
                environment
                    .into_iter()
                    .flat_map(move |name| both.clone().map(move |instance| (name, instance)))
            })
        })
    }

    /// Whether an action was asked to stop and has not returned yet.
    pub fn is_cancel_asked(&self, action: ActionId) -> bool {
        self.state.cancel_asked.contains(&action)
    }

    /// The timer that is due first: when (milliseconds since 1970), and which. O(log n).
    pub fn next_timer(&self) -> Option<(u64, &TimerId)> {
        self.state.timers.first().map(|(due_ms, timer)| (*due_ms, timer))
    }

    /// The latest time that a record told of, milliseconds since 1970; 0 before the first.
    pub fn now_ms(&self) -> u64 {
        self.state.now_ms
    }

    /// How the run ended, once it has.
    pub fn outcome(&self) -> Option<Outcome> {
        self.state.ended.as_ref().map(|(outcome, _)| *outcome)
    }

    /// How a stage or gate ended, once it has.
    pub fn node_outcome(&self, node: NodeId) -> Option<Outcome> {
        self.state.node(node)?.outcome
    }

    /// What the run waits for if only a person can move it on: nothing is in flight, no timer but that of an expiry.
    pub fn waiting(&self) -> Option<String> {
        let only_expiry = |timer: &TimerId| {
            matches!(
                timer.purpose,
                TimerPurpose::ApprovalExpires | TimerPurpose::NodeTimeout | TimerPurpose::DeployTimeout
            )
        };
        if self.state.ended.is_some()
            || !self.state.in_flight.is_empty()
            || !self.state.timers.iter().all(|(_, timer)| only_expiry(timer))
        {
            return None;
        }
        let mut waiting = Vec::new();
        for (node, plan) in self.state.nodes.iter().zip(&self.plan().nodes) {
            let Some(work) = &node.work else { continue };
            for approval in
                work.gate.approvals.iter().filter(|approval| !approval.is_given() && !approval.expired)
            {
                let by = if approval.by.is_empty() { "anyone".to_owned() } else { approval.by.join(", ") };
                let more = approval.quorum.max(1) as usize - approval.given.len();
                waiting.push(if more > 1 {
                    format!("{more} approvals of {} by {by}", plan.name)
                } else {
                    format!("approval of {} by {by}", plan.name)
                });
            }
        }
        if waiting.is_empty() && self.state.paused {
            waiting.push("`cdpipe resume`, because it was paused".to_owned());
        }
        (!waiting.is_empty()).then(|| waiting.join("; "))
    }
}
