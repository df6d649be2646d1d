//! What targets and routers say is there.

use crate::id::{InstanceId, ReleaseId, ServiceName};
use crate::release::ReleaseSpec;
use crate::strategy::{RouteMatch, Sticky};
use serde::{Deserialize, Serialize};

/// What a target says of one service.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Observation {
    /// Releases that are there, running or kept, in the order in which they were created.
    pub releases: Vec<ObservedRelease>,
    /// Things of that name that carry no label of ours.
    pub unmanaged: Vec<String>,
    /// The router's table for the service's route; `None` if it has none yet.
    pub table: Option<RouteTable>,
    /// The version of what was seen, where the target can fence by it.
    pub fence: Option<u64>,
    /// How many instances an autoscaler of the platform wants of what serves, where there is one: then so many are wanted, whatever the
    /// service says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autoscaled: Option<u32>,
}

/// One release on a target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ObservedRelease {
    /// Which.
    pub id: ReleaseId,
    /// What it is made from, as the target keeps it; needed to bring it back.
    pub spec: ReleaseSpec,
    /// Instances it should have; 0 for one that is kept for a rollback.
    pub wanted: u32,
    /// Instances it has.
    pub instances: Vec<Instance>,
}

impl ObservedRelease {
    /// Instances that may get traffic.
    pub fn ready(&self) -> impl Iterator<Item = &Instance> {
        self.instances.iter().filter(|instance| instance.ready)
    }
}

/// One instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// Which.
    pub id: InstanceId,
    /// `HOST:PORT` it answers on, as its router knows it.
    pub address: Option<String>,
    /// `HOST:PORT` where it is reached from here, where that is another: a router on a network of containers knows it by its name there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reached_at: Option<String>,
    /// Whether it may get traffic.
    pub ready: bool,
    /// How often it was restarted.
    pub restarts: u32,
}

impl Instance {
    /// `HOST:PORT` for whoever asks it from here: probes and smoke tests.
    pub fn asked_at(&self) -> Option<&str> {
        self.reached_at.as_deref().or(self.address.as_deref())
    }
}

/// What a router should do for one service, or does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteTable {
    /// The route.
    pub route: crate::service::Route,
    /// Releases that get traffic. Weights sum to 10,000, or the list is empty: the route is closed and answers 503.
    pub entries: Vec<RouteEntry>,
    /// Requests that go to one release whatever the weights say, first match wins.
    pub rules: Vec<RouteRule>,
    /// Whether a user stays on a release.
    pub sticky: Sticky,
}

/// One release's share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteEntry {
    /// Which.
    pub release: ReleaseId,
    /// Its part in the deploy.
    pub role: Role,
    /// Share in basis points. 0 is possible for a release that only rules reach.
    pub weight_bp: u32,
    /// Instances that get it.
    pub members: Vec<Member>,
}

/// An instance as a router knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Which.
    pub instance: InstanceId,
    /// `HOST:PORT`.
    pub address: String,
}

/// The part a release plays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Serves now.
    Stable,
    /// Is being brought in.
    Candidate,
}

impl Role {
    /// The word of the language.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Stable => "stable",
            Role::Candidate => "candidate",
        }
    }
}

/// Requests that match go to this release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteRule {
    /// Which requests.
    pub matches: RouteMatch,
    /// Where they go.
    pub release: ReleaseId,
}

impl RouteTable {
    /// A closed route: it exists and answers 503.
    pub fn closed(route: crate::service::Route) -> Self {
        Self { route, entries: Vec::new(), rules: Vec::new(), sticky: Sticky::None }
    }

    /// Share of a release in basis points; 0 if it is not in the table.
    pub fn weight_bp(&self, release: &ReleaseId) -> u32 {
        self.entries.iter().find(|entry| entry.release == *release).map_or(0, |entry| entry.weight_bp)
    }

    /// The service the route belongs to.
    pub fn service(&self) -> &ServiceName {
        &self.route.service
    }
}
