//! The shop: a small, real web service for the quickstart to deploy, and the gentle load that stands for its users.
//!
//! It behaves as a well-made service behind a proxy does: it says when it is ready, counts its own requests in
//! Prometheus text, names its release on every answer, and on SIGTERM finishes what it has begun. With a
//! [`fault::Fault`] it is a release that goes bad in one of the ways releases do.
//!
//! It may use tokio, hyper and clap, and nothing of cdpipe: what the quickstart deploys must not know its deployer, or
//! the quickstart would show less than it claims. Deliberately not here: TLS, HTTP/2, storage, any address but the one
//! asked for.
//!
//! Invariants: an injected error never touches `/health` or `/metrics`; label values of metrics come from closed sets;
//! every body that is read and every wait has a bound.

pub mod durations;
pub mod fault;
pub mod metrics;
pub mod server;
pub mod visitors;
pub mod websocket;

mod pages;
mod service;
mod streams;

/// The header in which every answer names the release that gave it.
pub const RELEASE_HEADER: &str = "x-cdpipe-release";
/// The header in which every answer names the version of the shop that gave it.
pub const VERSION_HEADER: &str = "x-shop-version";
/// A request that carries this header gets it back on its answer, so that a client can tell answers apart.
pub const REQUEST_ID_HEADER: &str = "x-request-id";
