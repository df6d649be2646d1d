//! The words that every part of cdpipe shares: values and expressions, the plan, the step program of a deploy, actions and their
//! results, journal records, events, capabilities, and the ports that the rim implements.
//!
//! Uses nothing of ours. Deliberately not here: how a text becomes a plan (`check`), what a strategy does (`machine`), anything
//! that acts (`engine` and the targets). No clock, no I/O: time, randomness and observations arrive as inputs.
//!
//! Invariants: everything that is journaled is `Serialize + Deserialize` and holds secrets by name, never by value; every name
//! of a quantity ends in its unit; every port call carries a deadline.

pub mod action;
pub mod capability;
pub mod event;
pub mod expr;
pub mod fault;
pub mod id;
pub mod measure;
pub mod objects;
pub mod observe;
pub mod outcome;
pub mod plan;
pub mod ports;
pub mod program;
pub mod record;
pub mod release;
pub mod secret;
pub mod service;
pub mod strategy;
pub mod transport;
pub mod value;

pub use fault::Fault;
pub use id::{ActionId, EffectId, EnvName, InstanceId, NodeId, ReleaseId, RunId, ServiceName};
pub use outcome::Outcome;
pub use value::{Type, Value};
