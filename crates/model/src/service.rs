//! What is deployed, where, and behind what: services, environments, targets and routers as the plan holds them.

use crate::expr::Expr;
use crate::id::{EnvName, ServiceName};
use crate::value::Value;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A service as one deploy sees it: settings of the file, the environment and the deploy already merged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Service {
    /// Its name in the pipeline.
    pub name: ServiceName,
    /// Its name on the platform, where that differs (`name = "myapp_app"`).
    pub platform_name: Option<String>,
    /// Take over instances that run already and carry no label of ours.
    pub adopt: bool,
    /// What runs.
    pub workload: Workload,
    /// The label of the release.
    pub version: Expr,
    /// The port an instance listens on; a local process gets a free one in `$PORT` instead.
    pub port: Option<u16>,
    /// Wanted instances; `None` where what it is made from says it, or what scales it by itself.
    #[serde(default)]
    pub replicas: Option<Expr>,
    /// Environment of each instance; values may be secret texts.
    pub env: BTreeMap<String, Expr>,
    /// How readiness and liveness are asked.
    pub health: Vec<Health>,
    /// Where users reach it.
    pub route: Option<Route>,
    /// How long requests in flight may take to finish before an instance is stopped.
    pub drain_ms: u64,
    /// How many former releases are kept for rollback.
    pub retain: u32,
    /// Settings that only one kind of target reads (resources, placement, mounts, …), already evaluated, by name.
    #[serde(default)]
    pub extra: BTreeMap<String, Value>,
}

/// What an instance is made from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Workload {
    /// A process.
    Command {
        /// Program and arguments; never read by a shell.
        argv: Vec<Expr>,
        /// A file or directory that is copied into the release, and from where the program runs.
        artifact: Option<Expr>,
    },
    /// A container image.
    Image {
        /// Reference with tag or digest.
        reference: Expr,
        /// Arguments instead of those of the image.
        args: Vec<Expr>,
    },
    /// A service of a compose file.
    Compose {
        /// Path of the file, relative to the pipeline's.
        file: String,
        /// Which service of it.
        service: String,
    },
    /// Kubernetes manifests.
    Manifest {
        /// Path or glob, relative to the pipeline's file; `-` is the standard input of the run.
        path: String,
        /// `Deployment/web`, where more than one workload is in them.
        workload: Option<String>,
        /// The image of its container, where that is not what the manifest says.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        image: Option<Expr>,
        /// What stood on the standard input when the run began: a run that is taken up again deploys the same.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        text: Option<String>,
    },
    /// A release that was deployed before and that the target has kept: what `cdpipe rollback` goes back to. All that makes a
    /// release is taken from it, not from the rest of the service.
    Kept(Box<crate::release::ReleaseSpec>),
}

/// One health check.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Health {
    /// What a failure means.
    pub kind: HealthKind,
    /// How it is asked.
    pub check: HealthCheck,
    /// Between two questions.
    pub every_ms: u64,
    /// How long one answer may take.
    pub timeout_ms: u64,
    /// Consecutive misses that make an instance unready.
    pub failures: u32,
    /// How long a new instance may take to become ready.
    pub within_ms: u64,
}

/// What a failed check means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HealthKind {
    /// It gets no traffic.
    Ready,
    /// It is restarted.
    Live,
}

/// How health is asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HealthCheck {
    /// GET answers 2xx or 3xx.
    Http {
        /// Path with its leading slash.
        path: String,
    },
    /// Exits 0 in the instance's place. Shell text.
    Command {
        /// The shell text.
        script: String,
    },
    /// The port accepts a connection.
    Tcp,
}

/// Where users reach a service.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Route {
    /// The service it belongs to.
    pub service: ServiceName,
    /// Host header, if the listener is shared.
    pub host: Option<String>,
    /// Path prefix, if the host is shared.
    pub path: Option<String>,
    /// `HOST:PORT` or `:PORT` the router listens on, for routers that listen.
    pub listen: Option<String>,
    /// The router's own object (a VirtualService, an include file), where it has a name.
    pub object: Option<String>,
}

/// An environment: a target, its router and its variables.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Environment {
    /// Its name.
    pub name: EnvName,
    /// Where instances run.
    pub target: TargetSpec,
    /// How users' traffic is steered; `None` only if the service has no route.
    pub traffic: Option<TrafficSpec>,
    /// `vars`: part of the environment of every `run` step and instance there.
    pub vars: BTreeMap<String, Expr>,
    /// When nothing may be changed there.
    pub freezes: Vec<Freeze>,
    /// Production-like: reachable only through a gate in delivery mode.
    pub protected: bool,
}

/// A target by kind and settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TargetSpec {
    /// Which.
    pub kind: TargetKind,
    /// Its settings, evaluated, by name.
    pub settings: BTreeMap<String, Value>,
}

/// The kinds of targets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TargetKind {
    /// Processes on this machine.
    Local,
    /// A Docker engine.
    Docker,
    /// Docker Swarm.
    Swarm,
    /// A Kubernetes cluster.
    Kubernetes,
    /// Machines over SSH.
    Hosts,
}

impl TargetKind {
    /// All of them.
    pub const ALL: [TargetKind; 5] =
        [TargetKind::Local, TargetKind::Docker, TargetKind::Swarm, TargetKind::Kubernetes, TargetKind::Hosts];

    /// The word of the language.
    pub fn as_str(self) -> &'static str {
        match self {
            TargetKind::Local => "local",
            TargetKind::Docker => "docker",
            TargetKind::Swarm => "swarm",
            TargetKind::Kubernetes => "kubernetes",
            TargetKind::Hosts => "hosts",
        }
    }
}

/// A router by kind and settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrafficSpec {
    /// Which.
    pub kind: TrafficKind,
    /// Its settings, evaluated, by name.
    pub settings: BTreeMap<String, Value>,
}

/// The kinds of routers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrafficKind {
    /// The built-in proxy.
    Proxy,
    /// nginx, by a generated include.
    Nginx,
    /// HAProxy, by its runtime socket.
    Haproxy,
    /// A Kubernetes Service's selector.
    Service,
    /// An Istio VirtualService.
    Istio,
    /// A Gateway API HTTPRoute.
    Gateway,
    /// The share of replicas: no router at all.
    Replicas,
}

impl TrafficKind {
    /// All of them.
    pub const ALL: [TrafficKind; 7] = [
        TrafficKind::Proxy,
        TrafficKind::Nginx,
        TrafficKind::Haproxy,
        TrafficKind::Service,
        TrafficKind::Istio,
        TrafficKind::Gateway,
        TrafficKind::Replicas,
    ];

    /// The word of the language.
    pub fn as_str(self) -> &'static str {
        match self {
            TrafficKind::Proxy => "proxy",
            TrafficKind::Nginx => "nginx",
            TrafficKind::Haproxy => "haproxy",
            TrafficKind::Service => "service",
            TrafficKind::Istio => "istio",
            TrafficKind::Gateway => "gateway",
            TrafficKind::Replicas => "replicas",
        }
    }
}

/// A weekly window in which nothing may be changed: `Fri 16:00 .. Mon 08:00 Europe/Madrid`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Freeze {
    /// As it was written.
    pub text: String,
    /// Start: weekday (0 = Monday) times 1440 plus minute of the day, local time.
    pub from_minute_of_week: u32,
    /// End, the same way; before the start when the window spans the turn of the week.
    pub to_minute_of_week: u32,
    /// IANA time zone.
    pub zone: String,
}
