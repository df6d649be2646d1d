//! A decider that a test writes: what follows on each input.

use crate::dispatch::Decider;
use cdpipe_model::action::{Action, ActionKind, Block, RunAction, StepRef};
use cdpipe_model::record::{Record, TimerId, TimerPurpose};
use cdpipe_model::{ActionId, NodeId, Outcome};
use std::collections::{BTreeMap, BTreeSet};

pub(super) type Rule = Box<dyn FnMut(&Record) -> Vec<Record> + Send>;

/// Folds as the machine does, as far as the loop looks; what is decided is the rule's.
pub(super) struct Script {
    rule: Rule,
    in_flight: BTreeMap<ActionId, Action>,
    timers: BTreeSet<(u64, TimerId)>,
    outcome: Option<Outcome>,
    pub(super) waiting: Option<String>,
}

impl Script {
    pub(super) fn new(rule: impl FnMut(&Record) -> Vec<Record> + Send + 'static) -> Self {
        Self {
            rule: Box::new(rule),
            in_flight: BTreeMap::new(),
            timers: BTreeSet::new(),
            outcome: None,
            waiting: None,
        }
    }

    /// On opening does all of these at once; ends when they have returned.
    pub(super) fn all(actions: Vec<Action>) -> Self {
        let mut left = actions.len();
        Self::new(move |input| match input {
            Record::Opened { resumed: false, .. } => actions.iter().cloned().map(intent).collect(),
            Record::Returned { .. } => {
                left -= 1;
                if left == 0 { vec![finished()] } else { Vec::new() }
            }
            _ => Vec::new(),
        })
    }

    /// Folds these before the run goes on.
    pub(super) fn with_past(mut self, records: &[Record]) -> Self {
        for record in records {
            self.apply(record);
        }
        self
    }
}

impl Decider for Script {
    fn apply(&mut self, record: &Record) {
        match record {
            Record::Intent { action } => {
                self.in_flight.insert(action.id, action.clone());
            }
            Record::Returned { action, .. } => {
                self.in_flight.remove(action);
            }
            Record::TimerSet { timer, due_ms } => {
                self.timers.retain(|(_, theirs)| theirs != timer);
                self.timers.insert((*due_ms, timer.clone()));
            }
            Record::TimerFired { timer, .. } | Record::TimerCleared { timer } => {
                self.timers.retain(|(_, theirs)| theirs != timer);
            }
            Record::RunFinished { outcome, .. } => self.outcome = Some(*outcome),
            _ => {}
        }
    }

    fn accept(&mut self, input: Record) -> Vec<Record> {
        self.apply(&input);
        let decided = (self.rule)(&input);
        for record in &decided {
            self.apply(record);
        }
        [vec![input], decided].concat()
    }

    fn in_flight(&self) -> Vec<Action> {
        self.in_flight.values().cloned().collect()
    }

    fn next_timer(&self) -> Option<(u64, &TimerId)> {
        self.timers.first().map(|(due_ms, timer)| (*due_ms, timer))
    }

    fn outcome(&self) -> Option<Outcome> {
        self.outcome
    }

    fn waiting(&self) -> Option<String> {
        self.waiting.clone().filter(|_| self.in_flight.is_empty())
    }
}

pub(super) fn step(node: u32) -> StepRef {
    StepRef { node: Some(NodeId(node)), block: Block::Main, index: 0 }
}

pub(super) fn action(id: u64, kind: ActionKind) -> Action {
    Action { id: ActionId(id), step: step(0), deadline_ms: 60_000, kind }
}

/// A command; the world does what its text says.
pub(super) fn run(id: u64, script: &str) -> Action {
    action(id, ActionKind::Run(command(script)))
}

pub(super) fn command(script: &str) -> RunAction {
    RunAction {
        script: script.into(),
        env: BTreeMap::new(),
        dir: None,
        stdin: None,
        image: None,
        environment: None,
        outputs: Vec::new(),
    }
}

pub(super) fn intent(action: Action) -> Record {
    Record::Intent { action }
}

pub(super) fn finished() -> Record {
    Record::RunFinished { outcome: Outcome::Succeeded, reason: None }
}

pub(super) fn timer(node: u32) -> TimerId {
    TimerId { node: Some(NodeId(node)), purpose: TimerPurpose::Soak }
}
