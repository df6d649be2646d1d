//! The targets `docker` and `swarm`.
//!
//! Uses `model`, and of `host` only the masker and the reading of `$CDPIPE_OUTPUT`.
//!
//! - `client` (connection, versions, errors, deadlines), `lock`, `labels`, `images` and `credentials` are for both targets.
//! - `containers` is the target `docker`.
//! - `swarm` is the target `swarm`; `compose` reads the part of a Compose file that it takes.
//! - `transport` reaches files and commands inside a container, for routers that run in one.
//!
//! Deliberately not here: what should run where and when (`machine`), and any state beside the engine's own.
//!
//! Invariants: every request to the engine ends by its call's deadline. Everything that is made carries [`labels`] by which it is found
//! again, and a name that follows from what it is, so that making it twice makes it once. What can be done twice is done again when the
//! engine was away. Values of secrets go into the environment of a container and nowhere else.

mod archive;
pub mod client;
mod compose;
pub mod containers;
mod credentials;
mod exec;
pub mod images;
pub mod labels;
pub mod lock;
pub mod swarm;
pub mod transport;

pub use client::Engine;
pub use containers::{Containers, ContainersConfig, Publish};
pub use transport::InContainer;
