//! The acting half of a run: journal, dispatcher, timers, locks, signals, event fan-out, and the registry of runs.
//!
//! Uses `model` and `machine`, tokio and SQLite. Deliberately not here: any decision about a pipeline (`machine` makes them), any target,
//! router or protocol (they implement the ports of `model`), any text for a terminal (`report` folds events). The wall clock is read
//! behind `Clock` and in `store`, nowhere else, so that a simulation brings its own time.
//!
//! Invariants:
//! - Append, then act: nothing is done whose intent is not durable, and intents of effects on targets survive a power cut. A journal that
//!   refuses stops the run.
//! - One engine drives a run; every append proves it.
//! - Whatever comes back becomes a record or stays in the inbox; whatever is ambiguous after a crash is probed, never guessed.
//! - Reporters and output logs may lose; they can't fail, slow or stop a run.
//! - Every wait has a deadline and every queue a bound.
//!
//! Where to find what: `store/` keeps it, `dispatch` is the loop, `act` is one action from start to result, `perform` maps actions to
//! ports, `leases` holds locks, `events` and `output` tell others.

mod act;
mod builtin;
mod clock;
mod dispatch;
mod engine;
mod events;
mod journal;
mod leases;
mod locks;
mod output;
mod perform;
mod ports;
mod store;
#[cfg(test)]
mod tests;
mod wake;

pub use act::{Ask, Verdict};
pub use clock::{Clock, SystemClock};
pub use engine::{Engine, Options, Past, RunEnd};
pub use events::{Delivery, Fanout, Reporter};
pub use journal::{Batch, Journal, Letter, MemoryJournal, Status};
pub use locks::{MemoryLocks, NamedLocks, QUEUE_SILENCE_MS};
pub use output::{MAX_LINE_BYTES, MAX_OUTPUT_BYTES, OutputLine, OutputLog, OutputReader};
pub use ports::Ports;
pub use store::{
    NamedLockState, Owner, Process, Pruned, Retention, RunJournal, RunState, RunSummary, Store, StoreError,
    Unlocked,
};
