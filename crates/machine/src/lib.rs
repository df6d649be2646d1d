//! The deciding half of a run: strategies as step programs, the one interpreter, the ready queue, the undo stack, gate verdicts.
//!
//! Uses `model` and nothing else of ours. Deliberately not here: a clock, randomness, I/O, tokio. Time and observations arrive as
//! records, so the same code runs in production, under a virtual clock in `cdpipe test`, and again from a journal.
//!
//! Shape: an input record goes in (`accept`), decisions come out, and the state is nothing but the fold of all records (`apply`). A
//! resume folds the journal with `apply`, which never decides; so a newer version of this crate cannot change the past of a run.

use cdpipe_model::action::Action;
use cdpipe_model::record::{Record, RunHeader, TimerId};
use cdpipe_model::{ActionId, Outcome};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The state of one run.
pub struct Machine {
    header: Arc<RunHeader>,
    in_flight: BTreeMap<ActionId, Action>,
    timers: BTreeSet<(u64, TimerId)>,
}

impl Machine {
    /// A run before its first record.
    pub fn new(header: Arc<RunHeader>) -> Self {
        Self { header, in_flight: BTreeMap::new(), timers: BTreeSet::new() }
    }

    /// What is run.
    pub fn header(&self) -> &Arc<RunHeader> {
        &self.header
    }

    /// Folds a record of the journal. Decides nothing and emits nothing.
    pub fn apply(&mut self, _record: &Record) {}

    /// Takes an input (`Opened`, `TimerFired`, `Returned`, `Signalled`), decides what follows, and answers the input and all decisions in
    /// order, already applied. The caller makes them durable before it does the actions among them.
    pub fn accept(&mut self, input: Record) -> Vec<Record> {
        vec![input]
    }

    /// Actions whose intent is recorded and that have not returned, oldest first.
    pub fn in_flight(&self) -> impl Iterator<Item = &Action> {
        self.in_flight.values()
    }

    /// The timer that is due first: when (milliseconds since 1970), and which. O(log n).
    pub fn next_timer(&self) -> Option<(u64, &TimerId)> {
        self.timers.first().map(|(due_ms, timer)| (*due_ms, timer))
    }

    /// How the run ended, once it has.
    pub fn outcome(&self) -> Option<Outcome> {
        None
    }

    /// What the run waits for if only a person can move it on (an approval, a hold): nothing is in flight but that.
    pub fn waiting(&self) -> Option<String> {
        None
    }
}
