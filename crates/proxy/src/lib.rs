//! The built-in reverse proxy: `cdpipe proxy`.
//!
//! # Rule of this crate
//! Uses `model` (route tables and the `Router` port) and nothing else of ours. It knows no pipeline, no release spec and no
//! target: an engine tells it over the control socket what to serve, and it serves that, also while no engine runs.
//!
//! # What is deliberately not in it
//! TLS, HTTP/2, caching, compression, rewriting, health checks of its own (the engine decides who is ready), and any choice
//! of when to switch.
//!
//! # Invariants
//! - A request is counted on its member in the same step that chooses it (`routing`). When a `put` has returned, nothing is
//!   chosen by the old table; when a drain has said zero, nothing is counted any more.
//! - A table is in force only when all its ports are bound and it is on disk (`keeper`, `state`); a change that fails
//!   changes nothing.
//! - A request is sent twice only where nobody can have seen it once (`exchange`).
//! - What ends a message is read one way only; what could be read two ways is refused (`http1`).
//! - Every wait has a deadline (`conns`), every buffer and list a bound (`options`, `table`).
//!
//! # Threads
//! The thread that calls [`serve`] accepts connections, keeps the clock and answers control calls; each worker thread runs its
//! connections on an event loop of its own, and shares with the others only the counters of requests in flight.

mod answer;
mod buffer;
mod connection;
mod conns;
pub mod control;
pub mod daemon;
mod exchange;
mod http1;
mod keeper;
mod metrics;
mod options;
mod plane;
mod pump;
mod router;
mod routing;
mod serve;
mod state;
pub mod table;
mod tunnel;
mod upstream;
mod weights;

pub use control::client::{ClientError, ProxyClient};
pub use daemon::{Start, StartError, ensure_running};
pub use options::{Limits, ServeOptions};
pub use router::ProxyRouter;
pub use serve::{ServeError, serve};
