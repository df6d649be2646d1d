//! Processes of a machine: the target `local`, the command runner, and where secrets come from.
//!
//! Uses `model` and nothing else of ours. Linux only: it asks `/proc`, and uses pidfds, subreapers and parent death signals.
//!
//! - `local` is the target. It only writes down what should be, and reads what is; the crate `hosts` runs it on other machines.
//! - `supervise` is the other side: the small process that each instance has, which outlives cdpipe.
//! - `state` is what they share: files, and nothing but files.
//! - `runner` runs `run` steps through `commands`, the small process that each run with commands has, which outlives its engine.
//! - `secrets` resolves secrets, `mask` keeps them out of output.
//! - `lease` holds locks.
//! - `transport` reaches files, programs and sockets for routers that live here.
//!
//! Deliberately not here: what should run where and when (`machine`), the journal (`engine`), traffic (`proxy`), containers.
//!
//! Invariants: nothing is kept in memory between two calls. A record appears whole or not at all. An instance is there exactly as long
//! as its supervisor holds its lock. A process is signalled only through a handle that was checked to be the one that is meant, or by
//! whoever has not reaped it yet. Values of secrets are in memory and in the environment of the process that needs them; never in a
//! file, never in an argument.

mod artifact;
mod clock;
pub mod commands;
mod durable;
mod encoding;
mod lease;
mod lines;
mod local;
mod mask;
mod process;
mod resolve;
mod runner;
mod secrets;
mod state;
pub mod supervise;
mod transport;

pub use lease::Leases;
pub use lines::Lines;
pub use local::{Changing, Local, LocalConfig, Packed, PackedContent, PackedEntry, Policy, Serve, Units};
pub use mask::{MASK, MaskStream, Masker, SHORTEST_BYTES};
pub use runner::{HostRunner, RunnerConfig, read_outputs};
pub use secrets::HostSecrets;
pub use transport::LocalTransport;
