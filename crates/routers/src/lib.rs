//! The routers `nginx` and `haproxy`: what a route table means in their words, and seeing that it has taken effect.
//!
//! Uses `model` alone. Files, commands and sockets are reached through `model::transport::Transport`, so the same router works on
//! this machine, in a container, or over SSH, and knows not which it is.
//!
//! - `nginx::include` is text in, text out: route tables to one include file and back. `nginx::processes` reads which workers there are.
//! - `haproxy::runtime` is the same for the answers of HAProxy's runtime socket; `haproxy::weights` turns shares into its weights.
//!
//! Deliberately not here: how a place is reached, who may deploy, when a route changes, starting or installing nginx or HAProxy.
//!
//! Invariants: nothing is kept in memory between two calls, so a call after a crash finds what the one before left. A table that is
//! claimed to be in force was seen to be. What somebody else has changed is never overwritten.

mod bounds;
mod change;
mod haproxy;
mod hash;
mod nginx;
#[cfg(test)]
mod place;

pub use haproxy::{HaproxyConfig, HaproxyRouter};
pub use nginx::{NginxConfig, NginxRouter};
