//! Where a run is, as far as a reporter has to know: a fold over events.

use crate::serving::Serving;
use cdpipe_model::action::{Action, ActionKind, ActionResult, Answer, Block, StepRef};
use cdpipe_model::event::Event;
use cdpipe_model::measure::Sample;
use cdpipe_model::plan::{Node, NodeKind, Plan, Step, StepKind};
use cdpipe_model::program::{Program, ProgramStep};
use cdpipe_model::record::{Finding, Record, RunHeader, Signal, TimerId, TimerPurpose};
use cdpipe_model::{ActionId, EnvName, Fault, NodeId, Outcome};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use unicode_width::UnicodeWidthStr as _;

/// Output lines that are kept for each stage, to be shown if it fails.
pub const TAIL_LINES: usize = 30;

/// The state of a run as a person wants to know it.
#[derive(Debug, Clone, Default)]
pub struct RunState {
    /// What is run.
    pub header: Option<Arc<RunHeader>>,
    /// Columns of the longest name of a stage or gate: looked at for every line, so counted once.
    pub(crate) longest_name_columns: usize,
    /// When this process took the run, milliseconds since 1970.
    pub opened_at_ms: u64,
    /// Whether it had been begun before.
    pub resumed: bool,
    /// The newest time seen.
    pub now_ms: u64,
    /// By node.
    pub nodes: Vec<NodeState>,
    /// Actions under way.
    pub actions: BTreeMap<ActionId, Action>,
    /// Timers that are set, and when they are due.
    pub timers: BTreeMap<TimerId, u64>,
    /// Hooks under way: the node, and the index.
    pub hooks: Vec<(Option<NodeId>, u32)>,
    /// What serves.
    pub serving: Serving,
    /// Whether somebody asked to start nothing new.
    pub paused: bool,
    /// What it waits for, if it gave its process back.
    pub suspended: Option<String>,
    /// How it ended, and why.
    pub finished: Option<(Outcome, Option<Fault>)>,
    /// Rollbacks that were begun.
    pub rollbacks: u32,
}

/// A stage or a gate.
#[derive(Debug, Clone, Default)]
pub struct NodeState {
    /// When its current attempt began, milliseconds since 1970.
    pub started_at_ms: Option<u64>,
    /// From 1.
    pub attempt: u32,
    /// How and when it ended, and why.
    pub finished: Option<Finished>,
    /// The steps under way, newest last.
    pub steps: Vec<StepRef>,
    /// The deploy under way, or the last one.
    pub deploy: Option<DeployState>,
    /// What its deploys without a router did, by main step: to tell what serves when they are taken back.
    pub programs: BTreeMap<u32, Box<Program>>,
    /// What was measured last, and what the rules said.
    pub verdict: Option<Verdict>,
    /// The approval that is asked for.
    pub approval: Option<Approval>,
    /// Last lines of output.
    pub tail: VecDeque<String>,
    /// How far an action is.
    pub progress: Option<String>,
    /// Why its last step failed: so that the same is not told twice.
    pub told: Option<Fault>,
}

/// How a node ended.
#[derive(Debug, Clone)]
pub struct Finished {
    /// How.
    pub outcome: Outcome,
    /// When, milliseconds since 1970.
    pub at_ms: u64,
    /// Why, where it is not success.
    pub reason: Option<Fault>,
}

/// A deploy.
#[derive(Debug, Clone)]
pub struct DeployState {
    /// The deploy's step.
    pub step: StepRef,
    /// Where.
    pub environment: EnvName,
    /// What is done.
    pub program: Box<Program>,
    /// Index of the step under way.
    pub pc: usize,
    /// When that step began, milliseconds since 1970.
    pub pc_since_ms: u64,
    /// The candidate's share as it was observed, in basis points.
    pub candidate_bp: Option<u32>,
    /// Instances that are ready, of those wanted, while it waits for them.
    pub ready: Option<String>,
    /// Why it goes back, and what is done for it.
    pub undoing: Option<(Fault, Vec<ProgramStep>)>,
}

/// What a watch found last.
#[derive(Debug, Clone)]
pub struct Verdict {
    /// When, milliseconds since 1970.
    pub at_ms: u64,
    /// What was measured.
    pub samples: Vec<Sample>,
    /// What each rule that did not pass said.
    pub findings: Vec<Finding>,
}

/// An approval that is asked for.
#[derive(Debug, Clone)]
pub struct Approval {
    /// Who may give it; empty means anyone.
    pub by: Vec<String>,
    /// How many.
    pub quorum: u32,
    /// The persons who gave it already.
    pub given: Vec<String>,
    /// What it is bound to.
    pub effect_hash: String,
    /// When it expires, milliseconds since 1970.
    pub expires_at_ms: Option<u64>,
}

impl RunState {
    /// The plan, once the run is opened.
    pub fn plan(&self) -> Option<&Plan> {
        self.header.as_ref().map(|header| &header.plan)
    }

    /// The plan's node of this id.
    pub fn node(&self, id: NodeId) -> Option<&Node> {
        self.plan()?.node(id)
    }

    /// The name of a node; the pipeline's for none.
    pub fn name(&self, id: Option<NodeId>) -> &str {
        match id {
            Some(id) => self.node(id).map_or("?", |node| node.name.as_str()),
            None => self.plan().map_or("?", |plan| plan.name.as_str()),
        }
    }

    /// The plan's step that is meant.
    pub fn step(&self, at: &StepRef) -> Option<&Step> {
        let plan = self.plan()?;
        let node = at.node.and_then(|id| plan.node(id));
        let main = |index: u32| match node.map(|node| &node.kind) {
            Some(NodeKind::Stage(stage)) => stage.steps.get(index as usize),
            Some(NodeKind::Gate(gate)) => gate.checks.get(index as usize),
            None => None,
        };
        let inner = match at.block {
            Block::Main => return main(at.index),
            Block::Verify(deploy) => match &main(deploy)?.kind {
                StepKind::Deploy(deploy) => &deploy.verify,
                _ => return None,
            },
            Block::Validate(deploy) => match &main(deploy)?.kind {
                StepKind::Deploy(deploy) => &deploy.validate,
                _ => return None,
            },
            Block::Undo(undo) => match &main(undo)?.kind {
                StepKind::Undo { steps } => steps,
                _ => return None,
            },
            Block::Hook(hook) => {
                let hooks = match node.map(|node| &node.kind) {
                    Some(NodeKind::Stage(stage)) => &stage.hooks,
                    Some(NodeKind::Gate(gate)) => &gate.hooks,
                    None => &plan.hooks,
                };
                &hooks.get(hook as usize)?.steps
            }
        };
        inner.get(at.index as usize)
    }

    /// A few words for a step.
    pub fn label(&self, at: &StepRef) -> String {
        self.step(at).map_or_else(|| "a step".to_owned(), |step| step.label.clone())
    }

    /// What a hook answers to: `on rollback or failure`.
    pub fn hook_label(&self, node: Option<NodeId>, hook: u32) -> String {
        let hooks = match node.and_then(|id| self.node(id)).map(|node| &node.kind) {
            Some(NodeKind::Stage(stage)) => Some(&stage.hooks),
            Some(NodeKind::Gate(gate)) => Some(&gate.hooks),
            None => self.plan().map(|plan| &plan.hooks),
        };
        let events = hooks
            .and_then(|hooks| hooks.get(hook as usize))
            .map(|hook| hook.events.iter().map(|event| event.as_str()).collect::<Vec<_>>().join(" or "));
        format!("on {}", events.unwrap_or_default())
    }

    /// Folds an event.
    pub fn apply(&mut self, now_ms: u64, event: &Event) {
        match event {
            Event::Opened(header) => {
                self.now_ms = now_ms;
                if self.nodes.is_empty() {
                    self.nodes = vec![NodeState::default(); header.plan.nodes.len()];
                }
                if self.opened_at_ms == 0 {
                    self.opened_at_ms = now_ms;
                }
                let columns = header.plan.nodes.iter().map(|node| node.name.width()).max();
                self.longest_name_columns = columns.unwrap_or(0);
                self.header = Some(Arc::clone(header));
            }
            Event::Record { at_ms, record, .. } => {
                self.now_ms = self.now_ms.max(*at_ms);
                self.record(*at_ms, record);
            }
            Event::Output { step, line, .. } => {
                if let Some(node) = self.node_state(step.node) {
                    if node.tail.len() == TAIL_LINES {
                        node.tail.pop_front();
                    }
                    node.tail.push_back(crate::style::clean(line));
                }
            }
            Event::Progress { step, action, text } => {
                let waits_for_ready =
                    matches!(self.actions.get(action).map(|a| &a.kind), Some(ActionKind::AwaitReady { .. }));
                if let Some(node) = self.node_state(step.node) {
                    node.progress = Some(text.clone());
                    if waits_for_ready && let Some(deploy) = &mut node.deploy {
                        deploy.ready = Some(text.clone());
                    }
                }
            }
            Event::Closed => self.now_ms = self.now_ms.max(now_ms),
        }
    }

    fn node_state(&mut self, node: Option<NodeId>) -> Option<&mut NodeState> {
        self.nodes.get_mut(node?.0 as usize)
    }

    fn deploy_environment(&self, step: &StepRef) -> Option<EnvName> {
        match &self.step(step)?.kind {
            StepKind::Deploy(deploy) => Some(deploy.environment.clone()),
            _ => None,
        }
    }

    fn record(&mut self, at_ms: u64, record: &Record) {
        match record {
            Record::Opened { at_ms, resumed, .. } => {
                self.now_ms = *at_ms;
                self.opened_at_ms = *at_ms;
                self.resumed = *resumed;
                self.suspended = None;
                self.finished = None;
            }
            Record::Returned { at_ms, action, result } => {
                self.now_ms = self.now_ms.max(*at_ms);
                if let Some(action) = self.actions.remove(action) {
                    self.returned(&action, result);
                }
            }
            Record::TimerFired { at_ms, timer } => {
                self.now_ms = self.now_ms.max(*at_ms);
                self.timers.remove(timer);
            }
            Record::Signalled { at_ms, signal } => {
                self.now_ms = self.now_ms.max(*at_ms);
                self.signalled(signal);
            }
            Record::NodeStarted { node, attempt } => {
                let now = self.now_ms;
                if let Some(state) = self.node_state(Some(*node)) {
                    *state =
                        NodeState { started_at_ms: Some(now), attempt: *attempt, ..NodeState::default() };
                }
            }
            Record::NodeFinished { node, outcome, reason } => {
                let now = self.now_ms;
                if let Some(state) = self.node_state(Some(*node)) {
                    state.finished = Some(Finished { outcome: *outcome, at_ms: now, reason: reason.clone() });
                    state.steps.clear();
                    state.approval = None;
                    state.progress = None;
                }
            }
            Record::StepStarted { step, .. } => {
                if let Some(node) = self.node_state(step.node) {
                    node.steps.retain(|other| other != step);
                    node.steps.push(step.clone());
                    node.progress = None;
                }
            }
            Record::StepFinished { step, outcome, reason } => {
                let environment = self.deploy_environment(step);
                let mut deployed = None;
                let mut lost = None;
                let mut taken_back = None;
                if let Some(node) = self.node_state(step.node) {
                    node.steps.retain(|other| other != step);
                    if step.block == Block::Main
                        && matches!(outcome, Outcome::RolledBack | Outcome::RollbackFailed)
                        && let Some(finished) = &mut node.finished
                    {
                        // Taken back after it had ended; one step that can't be is what counts.
                        if *outcome == Outcome::RollbackFailed {
                            finished.reason.clone_from(reason);
                            finished.outcome = *outcome;
                        } else if finished.outcome != Outcome::RollbackFailed {
                            finished.outcome = *outcome;
                        }
                    }
                    if *outcome == Outcome::RolledBack && step.block == Block::Main {
                        taken_back = node.programs.remove(&step.index);
                    }
                    if reason.is_some() && *outcome != Outcome::Succeeded {
                        node.told = reason.clone();
                    }
                    // With a router the routes that were observed say what serves.
                    if let Some(deploy) = &node.deploy
                        && deploy.step == *step
                        && deploy.program.seen.table.is_none()
                        && deploy.candidate_bp.is_none()
                    {
                        match outcome {
                            Outcome::Succeeded => deployed = Some(deploy.program.clone()),
                            Outcome::RollbackFailed => lost = Some(deploy.program.clone()),
                            _ => {}
                        }
                    }
                }
                if let (Some(environment), Some(program)) = (&environment, lost) {
                    self.serving.unknown(environment, &program);
                }
                if let (Some(environment), Some(program)) = (&environment, taken_back) {
                    self.serving.taken_back(environment, &program);
                }
                if let (Some(environment), Some(program)) = (environment, deployed) {
                    if let Some(node) = self.node_state(step.node) {
                        node.programs.insert(step.index, program.clone());
                    }
                    self.serving.deployed(&environment, &program);
                }
            }
            Record::Intent { action } => {
                self.actions.insert(action.id, action.clone());
            }
            Record::CancelAsked { .. } => {}
            Record::Programmed { step, program } => {
                let environment = self.deploy_environment(step).unwrap_or_else(|| "?".into());
                self.serving.programmed(&environment, program);
                let now = self.now_ms;
                if let Some(node) = self.node_state(step.node) {
                    node.deploy = Some(DeployState {
                        step: step.clone(),
                        environment,
                        program: program.clone(),
                        pc: 0,
                        pc_since_ms: now,
                        candidate_bp: None,
                        ready: None,
                        undoing: None,
                    });
                }
            }
            Record::ProgramAt { step, pc } => {
                let now = self.now_ms;
                if let Some(node) = self.node_state(step.node) {
                    node.progress = None;
                    if let Some(deploy) = &mut node.deploy {
                        deploy.pc = *pc as usize;
                        deploy.pc_since_ms = now;
                    }
                }
            }
            Record::TimerSet { timer, due_ms } => {
                self.timers.insert(timer.clone(), *due_ms);
            }
            Record::TimerCleared { timer } => {
                self.timers.remove(timer);
            }
            Record::ApprovalAsked { node, by, quorum, expires_at_ms, effect_hash } => {
                let approval = Approval {
                    by: by.clone(),
                    quorum: *quorum,
                    given: Vec::new(),
                    effect_hash: effect_hash.clone(),
                    expires_at_ms: *expires_at_ms,
                };
                if let Some(state) = self.node_state(Some(*node)) {
                    state.approval = Some(approval);
                }
            }
            Record::Verdict { step, samples, findings } => {
                let verdict = Verdict {
                    at_ms: self.now_ms.max(at_ms),
                    samples: samples.clone(),
                    findings: findings.clone(),
                };
                if let Some(node) = self.node_state(step.node) {
                    node.verdict = Some(verdict);
                }
            }
            Record::Undoing { step, reason, program, .. } => {
                self.rollbacks += 1;
                let now = self.now_ms;
                if let Some(node) = self.node_state(step.node) {
                    node.told = Some(reason.clone());
                    if let Some(deploy) = &mut node.deploy {
                        deploy.undoing = Some((reason.clone(), program.clone()));
                        deploy.pc_since_ms = now;
                        deploy.pc = 0;
                    }
                }
            }
            Record::UndoStarted { node, reason, .. } => {
                if let Some(state) = self.node_state(Some(*node)) {
                    state.told = Some(reason.clone());
                }
            }
            Record::HookStarted { node, hook } => self.hooks.push((*node, *hook)),
            Record::HookFinished { node, hook, .. } => self.hooks.retain(|open| open != &(*node, *hook)),
            Record::Suspended { waiting } => self.suspended = Some(waiting.clone()),
            Record::RunFinished { outcome, reason } => self.finished = Some((*outcome, reason.clone())),
        }
    }

    fn returned(&mut self, action: &Action, result: &ActionResult) {
        let ActionResult::Done(answer) = result else { return };
        let routed = match &action.kind {
            ActionKind::AwaitRouted { environment, table } => Some((environment.clone(), table)),
            _ => None,
        };
        if let Some((environment, table)) = &routed {
            self.serving.routed(environment, table);
        }
        if let Some(deploy) = self.node_state(action.step.node).and_then(|node| node.deploy.as_mut()) {
            if let Some((_, table)) = routed {
                deploy.candidate_bp = Some(table.weight_bp(&deploy.program.candidate_id()));
            }
            if let (ActionKind::AwaitReady { count, .. }, Answer::Instances(instances)) =
                (&action.kind, answer)
            {
                let ready = instances.iter().filter(|instance| instance.ready).count();
                deploy.ready = Some(format!("{ready} of {count} ready"));
            }
        }
    }

    fn signalled(&mut self, signal: &Signal) {
        match signal {
            Signal::Approve { node, by, person, effect_hash } => {
                if let Some(approval) = self.node_state(Some(*node)).and_then(|state| state.approval.as_mut())
                    && (effect_hash.is_empty() || *effect_hash == approval.effect_hash)
                    && (approval.by.is_empty() || approval.by.contains(by))
                {
                    let person = if person.is_empty() { by } else { person };
                    if !approval.given.contains(person) {
                        approval.given.push(person.clone());
                    }
                    let enough = approval.given.len() >= approval.quorum as usize;
                    if enough && let Some(state) = self.node_state(Some(*node)) {
                        state.approval = None;
                    }
                }
            }
            Signal::Reject { node, .. } | Signal::Override { node, .. } => {
                if let Some(state) = self.node_state(Some(*node)) {
                    state.approval = None;
                }
            }
            Signal::Pause { .. } => self.paused = true,
            Signal::Continue { .. } => {
                self.paused = false;
                // Of a run that had ended: rollbacks that failed are tried again.
                for finished in self.nodes.iter_mut().filter_map(|node| node.finished.as_mut()) {
                    if finished.outcome == Outcome::RollbackFailed {
                        finished.outcome = Outcome::RolledBack;
                    }
                }
            }
            Signal::Promote { .. } | Signal::Retry { .. } | Signal::Cancel { .. } => {}
        }
    }

    /// When the soak or wait of a node is over, milliseconds since 1970.
    pub fn soak_due_ms(&self, node: NodeId) -> Option<u64> {
        self.timers.get(&TimerId { node: Some(node), purpose: TimerPurpose::Soak }).copied()
    }
}
