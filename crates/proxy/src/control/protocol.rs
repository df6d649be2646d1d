//! What is said over the control socket.

use std::collections::BTreeMap;
use std::fmt;

use cdpipe_model::observe::RouteTable;
use cdpipe_model::service::Route;
use serde::{Deserialize, Serialize};

use crate::table::ProxyTable;

/// Version of the protocol. A proxy outlives the `cdpipe` that started it, so this changes only when an old one can not be
/// spoken to any more.
pub const PROTOCOL_VERSION: u32 = 1;
/// Longest message in bytes, either way.
pub const MAX_MESSAGE_BYTES: usize = 16 * 1024 * 1024;

/// One call.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Request {
    /// [`PROTOCOL_VERSION`] of the caller.
    pub v: u32,
    /// What is asked.
    #[serde(flatten)]
    pub call: Call,
}

/// What can be asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Call {
    /// Whether it is there. Answers [`Pong`].
    Ping,
    /// What it serves. Answers [`State`].
    Get,
    /// Changes routes, all of them at one moment or none. Answers [`Put`].
    Put {
        /// The routes to add or replace.
        routes: Vec<PutRoute>,
        /// Routes to take out of the table.
        #[serde(default)]
        remove: Vec<Route>,
        /// Whose change this is: a number that grows with each owner of the service's lock.
        epoch: u64,
        /// Who changes it, such as the id of a run.
        owner: String,
    },
    /// What is in flight. Answers [`Drain`].
    Drained(Selection),
    /// Waits until nothing is routed there and nothing is in flight, at most so long. Answers [`Drain`] either way.
    WaitDrained {
        /// On what.
        #[serde(flatten)]
        what: Selection,
        /// Milliseconds, at most an hour.
        timeout_ms: u64,
    },
    /// Ends what is still in flight there. Refused while the table routes there. Answers [`Drain`].
    Cut(Selection),
    /// Requests each release of this service got. Answers [`Requests`].
    Requests {
        /// The service.
        service: String,
        /// Only by this route; none means by all of them.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        route: Option<Route>,
    },
    /// Prometheus text. Answers [`Metrics`].
    Metrics,
    /// Stops as SIGTERM does. Answers [`Pong`], then goes.
    Shutdown,
}

/// One route to put.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PutRoute {
    /// What to serve.
    pub table: RouteTable,
    /// What the caller believes is served now.
    pub expect: Expect,
}

/// What a caller believes of a route before it changes it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Expect {
    /// Whatever is there.
    Anything,
    /// This, or already what is being put; anything else is `moved`. A route that is not there can not have been moved.
    Seen(Option<RouteTable>),
}

/// A release, or some of its instances.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selection {
    /// The service.
    pub service: String,
    /// Only by this route; none means by all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<Route>,
    /// The release.
    pub release: String,
    /// Only these instances of it; none means all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instances: Option<Vec<String>>,
}

impl Selection {
    /// Whether this instance of the release is selected.
    pub fn covers(&self, instance: &str) -> bool {
        self.instances.as_ref().is_none_or(|wanted| wanted.iter().any(|w| w == instance))
    }
}

/// It is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pong {
    /// Its process.
    pub pid: u32,
    /// The version of cdpipe it is.
    pub version: String,
    /// Revision of the table in force.
    pub revision: u64,
    /// It is stopping: nothing new is accepted.
    pub stopping: bool,
}

/// What it serves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// The table in force.
    pub table: ProxyTable,
    /// In flight, by service, route and release.
    pub loads: Vec<ReleaseLoad>,
    /// Client connections open.
    pub connections: u64,
}

/// What is in flight on one release of one route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseLoad {
    /// The service.
    pub service: String,
    /// The route, such as `127.0.0.1:8080` or `shop.example.com@127.0.0.1:8080/api`.
    pub route: String,
    /// The release.
    pub release: String,
    /// `stable`, `candidate`, or `retired` when no table names it any more.
    pub role: String,
    /// Requests in flight, upgraded connections included.
    pub in_flight: u64,
    /// Upgraded connections.
    pub upgraded: u64,
}

/// The change is in force and on disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Put {
    /// Revision of the table in force.
    pub revision: u64,
}

/// How far a drain is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    /// The table can still send requests there.
    pub routed: bool,
    /// Requests in flight there, upgraded connections included.
    pub in_flight: u64,
    /// Upgraded connections there.
    pub upgraded: u64,
}

impl Drain {
    /// Nothing is in flight and nothing will be.
    pub fn done(&self) -> bool {
        !self.routed && self.in_flight == 0
    }
}

/// Requests that ended, by release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requests {
    /// Release id to count, in all roles.
    pub releases: BTreeMap<String, u64>,
}

/// Everything that is counted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metrics {
    /// Prometheus text format, version 0.0.4.
    pub text: String,
}

/// One answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Response {
    /// [`PROTOCOL_VERSION`] of the proxy.
    pub v: u32,
    /// What the call answers.
    #[serde(flatten)]
    pub result: Outcome,
}

/// Whether a call did what it was asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It did; the shape depends on the call.
    Ok(serde_json::Value),
    /// It did not, and nothing has changed.
    Error(Refusal),
}

/// Why a call was not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// What kind.
    pub code: RefusalCode,
    /// One sentence: what happened, what was expected, what was found.
    pub message: String,
    /// With `stale`: the epoch in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    /// With `stale`: who wrote last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
}

impl Refusal {
    pub(crate) fn new(code: RefusalCode, message: impl Into<String>) -> Refusal {
        Refusal { code, message: message.into(), epoch: None, owner: None }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// Kinds of [`Refusal`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalCode {
    /// A newer owner has written.
    Stale,
    /// The route is neither as the caller saw it nor as it wants it.
    Moved,
    /// Somebody else listens there.
    PortInUse,
    /// The address can not be listened on.
    BindFailed,
    /// The table can not be served.
    Invalid,
    /// The state can not be written; the old table stays in force.
    StateUnwritable,
    /// It can not be cut while it is routed to.
    StillRouted,
    /// Another version of the protocol.
    Version,
    /// Not a message of this protocol.
    BadMessage,
    /// The proxy is going.
    Stopping,
}
