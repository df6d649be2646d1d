//! The targets `docker` and `swarm`.
//!
//! Uses `model`, and of `host` only the masker. `client` (connection, versions, errors, deadlines), `lock` and `credentials` are for both.
//!
//! Invariants: every request to the engine ends by its call's deadline; everything that is made carries labels by which it is found again
//! ([`labels`]); what can be done twice is done again when the engine was away.

pub mod client;
pub mod labels;
pub mod lock;
