//! Tree to checked pipeline to plan: names, structure, types, units, lints and capabilities, all read from one schema table.
//!
//! Uses `syntax`, `model`, petgraph (the DAG), regex, jiff (time zone names) and sha2 (hashes of sources and plans). Deliberately
//! not here: reading files, the environment, the clock or a repository (they are handed in: a loader closure and [`Inputs`]), how
//! a diagnostic looks on a screen, and anything that acts.
//!
//! Invariants: [`check`] never stops at the first error and never panics; what a keyword means is said once, in [`schema`];
//! everything that [`plan`] needs is in [`Checked`] and [`Inputs`], so the same two give the same plan, hash included.

mod api;
mod build;
mod checker;
mod codes;
mod dag;
mod explain;
mod expr;
mod names;
pub mod schema;
mod scope;
mod scripts;
mod secrets;
mod shell;
mod sources;
mod structure;
mod suggest;
pub mod testing;
mod unused;
mod values;
mod window;

pub use api::{Checked, GitFacts, Inputs, Param, Program, check, plan, seal};
pub use codes::codes;
pub use explain::{error_pages, explain, reference_pages};
pub use scripts::{Script, scripts};
pub use sources::{Source, Sources};
