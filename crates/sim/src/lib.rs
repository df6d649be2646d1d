//! The simulated world behind `cdpipe test`: targets, routers, commands, messages and measurements that exist in memory alone, under
//! virtual time, with faults where one wants them.
//!
//! Uses `model`, `machine`, `engine` (the very engine that runs pipelines, on a clock that jumps) and what `check` says of `test` blocks.
//! Deliberately not here: any decision about a pipeline, how anything looks on a screen, and any use in production: no command but `test`
//! reaches this crate, and nothing here opens a file, a socket or a process.
//!
//! Invariants: the world outlives engines, as the real one does; a run with the same plan, the same `Given` and the same `Case` goes the
//! same way; the real clock is never read.
//!
//! Where to find what: `given` is what a run begins with, `case` what goes wrong in it, `drive` plays it, `world` is what it acts on,
//! `expect` judges a test, `explore` tries every case there is.

mod case;
mod clock;
mod drive;
mod expect;
mod explore;
mod finding;
mod given;
mod journal;
mod trace;
mod world;

#[cfg(test)]
mod tests;

pub use case::{Case, Crash, Fault, FaultKind};
pub use clock::EPOCH_MS;
pub use drive::{End, Ending, Simulator};
pub use expect::{Unmet, judge};
pub use explore::{Exploration, Explored, Found, explore};
pub use finding::{Finding, FindingKind};
pub use given::Given;
pub use trace::{Line, Note, Trace};
