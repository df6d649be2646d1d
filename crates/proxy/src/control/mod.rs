//! The control socket: how `cdpipe` tells a proxy what to serve and asks what it does.
//!
//! A Unix socket of mode 0600 in the state directory; one JSON object a line each way, each with the protocol's version;
//! messages are bounded and every call has a deadline on both sides.

pub mod client;
pub mod protocol;
pub(crate) mod server;
pub(crate) mod socket;
