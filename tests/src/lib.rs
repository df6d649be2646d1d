//! What the end-to-end tests (and later the benches) stand on: an open-loop load with a strict memory, and a way to run
//! the real `cdpipe` binary in a place of its own and compare what it says, letter by letter.
//!
//! It may use the shop's WebSocket framing and anything outside the workspace; of cdpipe itself it knows only the
//! binary and what the binary prints, as a user does. Deliberately not here: retries of any kind, addresses other than
//! loopback, and mocks.
//!
//! Invariants: every request of a load becomes exactly one record, also the one that could not be sent; every wait has
//! a deadline; a process started for a test ends with it.

pub mod apiserver;
pub mod cases;
pub mod deployed;
pub mod door;
pub mod edge;
pub mod engine;
pub mod lab;
pub mod load;
pub mod moments;
pub mod place;
pub mod ports;
pub mod processes;
pub mod transcript;
