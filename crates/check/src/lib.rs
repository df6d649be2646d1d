//! Tree to checked pipeline to plan: names, structure, types, units, lints and capabilities, all read from one schema table.
//!
//! Uses `syntax`, `model`, petgraph (the DAG), regex, jiff (time zone names) and sha2 (hashes of sources and plans). Deliberately
//! not here: reading files, the environment, the clock or a repository (they are handed in: a loader closure and [`Inputs`]), how
//! a diagnostic looks on a screen, and anything that acts.
//!
//! Invariants: [`check`] never stops at the first error and never panics; what a keyword means is said once, in [`schema`];
//! everything that [`plan`] needs is in [`Checked`] and [`Inputs`], so the same two give the same plan, hash included.

mod api;
pub mod schema;
mod sources;

pub use api::{Checked, GitFacts, Inputs, Program, check, plan};
pub use sources::{Source, Sources};
