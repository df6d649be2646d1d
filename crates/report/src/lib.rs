//! How a run looks: to a person at a terminal, in a log, to a program, in CI, to Prometheus.
//!
//! Uses `model`, indicatif for drawing on a terminal, serde_json. Deliberately not here: the run itself. A reporter sees events and
//! nothing else; it may drop some of them, and can never fail or slow a run: an error of its stream is swallowed, and whoever drives
//! it does so from a thread of its own, behind a bounded queue.
//!
//! Invariants: every reporter is a fold over [`cdpipe_model::event::Event`]; what it shows is a function of the events and of the
//! time handed in with them; all of them tell the same facts in the same words ([`facts`]).

pub mod ci;
pub mod facts;
pub mod json;
pub mod plain;
pub mod prometheus;
pub mod serving;
pub mod state;
pub mod style;
pub mod summary;
pub mod terminal;
pub mod words;

use cdpipe_model::event::Event;

/// Shows a run while it goes on.
pub trait Reporter: Send {
    /// Takes an event. `now_ms` is the wall clock, milliseconds since 1970; records carry their own time.
    fn event(&mut self, now_ms: u64, event: &Event);

    /// Time passes; called a few times a second.
    fn tick(&mut self, _now_ms: u64) {}

    /// Nothing more comes. Leaves the stream in order.
    fn finish(&mut self, _now_ms: u64) {}
}
