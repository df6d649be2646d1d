//! What can be set from outside: bounds, timeouts and headers, each with its default.

use std::net::SocketAddr;
use std::path::PathBuf;

/// Bounds and timeouts of the data plane. Every one is a promise in docs/proxy.md.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Client connections open at once; one more is answered 503. Default 10 000.
    pub max_connections: usize,
    /// Bytes of a request's head (request line and headers). Default 65 536.
    pub max_request_head_bytes: usize,
    /// Bytes of an answer's head. Default 65 536.
    pub max_response_head_bytes: usize,
    /// Idle connections kept to one member by one worker. Default 512.
    pub max_idle_upstreams_per_worker: usize,
    /// Members tried for one request, the first included. Default 3.
    pub max_attempts: usize,
    /// Opening a connection to a member. Default 2 000.
    pub connect_timeout_ms: u64,
    /// From the first byte of a request's head to its last. Default 10 000.
    pub request_head_timeout_ms: u64,
    /// A client connection without a request. Default 75 000.
    pub keep_alive_timeout_ms: u64,
    /// From the request's last byte to the answer's head. Default 60 000.
    pub response_head_timeout_ms: u64,
    /// A request or answer body in which nothing moves, streams included. Default 300 000.
    pub body_idle_timeout_ms: u64,
    /// An upgraded connection on which nothing moves. Default 3 600 000.
    pub upgraded_idle_timeout_ms: u64,
    /// An idle connection to a member. Default 50 000.
    pub upstream_idle_timeout_ms: u64,
    /// Requests in flight at SIGTERM get this long. Default 30 000.
    pub shutdown_timeout_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            max_connections: 10_000,
            max_request_head_bytes: 65_536,
            max_response_head_bytes: 65_536,
            max_idle_upstreams_per_worker: 512,
            max_attempts: 3,
            connect_timeout_ms: 2_000,
            request_head_timeout_ms: 10_000,
            keep_alive_timeout_ms: 75_000,
            response_head_timeout_ms: 60_000,
            body_idle_timeout_ms: 300_000,
            upgraded_idle_timeout_ms: 3_600_000,
            upstream_idle_timeout_ms: 50_000,
            shutdown_timeout_ms: 30_000,
        }
    }
}

/// How one proxy runs.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// Holds the state file, the control socket, the pid file and the log. Made with mode 0700 if it is not there.
    pub state_dir: PathBuf,
    /// Threads that carry traffic. Default: one for each core.
    pub workers: usize,
    /// Answers say which release they come from in `x-cdpipe-release`. Default true.
    pub release_header: bool,
    /// Also serves `/metrics` and `/healthz` here, over plain HTTP. Default none.
    pub admin_listen: Option<SocketAddr>,
    /// Become the leader of a session of its own, so that the terminal it was started from can not take it down.
    pub own_session: bool,
    /// Bounds and timeouts.
    pub limits: Limits,
}

impl ServeOptions {
    /// The defaults, for this state directory.
    pub fn new(state_dir: impl Into<PathBuf>) -> ServeOptions {
        ServeOptions {
            state_dir: state_dir.into(),
            workers: std::thread::available_parallelism().map_or(1, usize::from),
            release_header: true,
            admin_listen: None,
            own_session: false,
            limits: Limits::default(),
        }
    }
}
