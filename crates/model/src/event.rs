//! What reporters see: every journal record as it becomes durable, and what is too small to journal. One closed enum; reporters are
//! folds over it. A reporter may drop events, and can never fail or slow a run.

use crate::action::StepRef;
use crate::id::ActionId;
use crate::record::{Record, RunHeader};
use std::sync::Arc;

/// One event of a run.
#[derive(Debug, Clone)]
pub enum Event {
    /// A run begins or is resumed.
    Opened(Arc<RunHeader>),
    /// A record became durable.
    Record {
        /// Its number in the journal, from 1.
        seq: u64,
        /// Milliseconds since 1970.
        at_ms: u64,
        /// What it says.
        record: Arc<Record>,
    },
    /// A line of a command's output, masked.
    Output {
        /// Of which step.
        step: StepRef,
        /// Which stream.
        stream: Stream,
        /// Without its line end.
        line: String,
    },
    /// How far an action is.
    Progress {
        /// Of which step.
        step: StepRef,
        /// Which action.
        action: ActionId,
        /// For people: `2 of 3 ready`.
        text: String,
    },
    /// The engine lets go of the run: it is finished, suspended or interrupted.
    Closed,
}

/// A stream of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}
