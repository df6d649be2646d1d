//! What targets and routers can do, as data: `check` asks before anything runs, `plan` shows what follows, and the guarantees page
//! is printed from it.

use crate::service::{TargetKind, TrafficKind};
use crate::strategy::StrategyKind;
use serde::{Deserialize, Serialize};

/// How well something is supported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Support {
    /// Exactly as written.
    Exact,
    /// Nearly; `plan` warns with this sentence.
    Approximate(&'static str),
    /// Not at all; `check` refuses with this sentence.
    Refused(&'static str),
}

/// What a router can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouterCapabilities {
    /// Which.
    pub kind: TrafficKind,
    /// Shares by weight.
    pub weights: bool,
    /// Rules by header.
    pub header_rules: bool,
    /// Rules by cookie.
    pub cookie_rules: bool,
    /// A user stays on a release by cookie.
    pub sticky_cookie: bool,
    /// A user stays on a release by client address.
    pub sticky_client_address: bool,
    /// It says how many requests are in flight for an instance.
    pub observes_drain: bool,
    /// It counts requests for each release.
    pub counts_requests: bool,
    /// It can show the candidate alone somewhere else.
    pub preview: bool,
    /// Targets it can stand before.
    pub targets: &'static [TargetKind],
}

/// Whether a target runs a command in a container of its own: `run "…" { image = … }`.
pub fn runs_images(target: TargetKind) -> bool {
    match target {
        TargetKind::Docker | TargetKind::Swarm | TargetKind::Kubernetes => true,
        TargetKind::Local | TargetKind::Hosts => false,
    }
}

/// Every router.
pub const ROUTERS: [RouterCapabilities; 7] = [
    RouterCapabilities {
        kind: TrafficKind::Proxy,
        weights: true,
        header_rules: true,
        cookie_rules: true,
        sticky_cookie: true,
        sticky_client_address: true,
        observes_drain: true,
        counts_requests: true,
        preview: true,
        targets: &[TargetKind::Local, TargetKind::Docker, TargetKind::Swarm, TargetKind::Hosts],
    },
    RouterCapabilities {
        kind: TrafficKind::Nginx,
        weights: true,
        header_rules: true,
        cookie_rules: true,
        sticky_cookie: false,
        sticky_client_address: true,
        observes_drain: false,
        counts_requests: false,
        preview: true,
        targets: &[TargetKind::Local, TargetKind::Docker, TargetKind::Swarm, TargetKind::Hosts],
    },
    RouterCapabilities {
        kind: TrafficKind::Haproxy,
        weights: true,
        // A runtime socket makes no rules, and its hash of addresses knows servers, not releases.
        header_rules: false,
        cookie_rules: false,
        sticky_cookie: false,
        sticky_client_address: false,
        observes_drain: true,
        counts_requests: true,
        preview: false,
        targets: &[TargetKind::Local, TargetKind::Docker, TargetKind::Swarm, TargetKind::Hosts],
    },
    RouterCapabilities {
        kind: TrafficKind::Service,
        weights: false,
        header_rules: false,
        cookie_rules: false,
        sticky_cookie: false,
        sticky_client_address: false,
        observes_drain: false,
        counts_requests: false,
        preview: true,
        targets: &[TargetKind::Kubernetes],
    },
    RouterCapabilities {
        kind: TrafficKind::Istio,
        weights: true,
        header_rules: true,
        cookie_rules: true,
        sticky_cookie: false,
        sticky_client_address: false,
        observes_drain: false,
        counts_requests: false,
        preview: false,
        targets: &[TargetKind::Kubernetes],
    },
    RouterCapabilities {
        kind: TrafficKind::Gateway,
        weights: true,
        header_rules: true,
        cookie_rules: false,
        sticky_cookie: false,
        sticky_client_address: false,
        observes_drain: false,
        counts_requests: false,
        preview: false,
        targets: &[TargetKind::Kubernetes],
    },
    RouterCapabilities {
        kind: TrafficKind::Replicas,
        weights: false,
        header_rules: false,
        cookie_rules: false,
        sticky_cookie: false,
        sticky_client_address: false,
        observes_drain: false,
        counts_requests: false,
        preview: false,
        targets: &[TargetKind::Docker, TargetKind::Swarm, TargetKind::Kubernetes, TargetKind::Hosts],
    },
];

/// Targets that this version carries out; `check`, `graph` and `test` know all of them.
pub const DRIVEN_TARGETS: &[TargetKind] =
    &[TargetKind::Local, TargetKind::Docker, TargetKind::Swarm, TargetKind::Hosts, TargetKind::Kubernetes];

/// Routers that this version carries out.
pub const DRIVEN_ROUTERS: &[TrafficKind] = &[
    TrafficKind::Proxy,
    TrafficKind::Nginx,
    TrafficKind::Haproxy,
    TrafficKind::Service,
    TrafficKind::Istio,
    TrafficKind::Gateway,
    TrafficKind::Replicas,
];

/// What this router can do.
pub fn router(kind: TrafficKind) -> &'static RouterCapabilities {
    let at = match kind {
        TrafficKind::Proxy => 0,
        TrafficKind::Nginx => 1,
        TrafficKind::Haproxy => 2,
        TrafficKind::Service => 3,
        TrafficKind::Istio => 4,
        TrafficKind::Gateway => 5,
        TrafficKind::Replicas => 6,
    };
    &ROUTERS[at]
}

/// Whether this strategy means the same there, by target and router. Settings of the strategy are looked at separately, with `router`.
pub fn support(strategy: StrategyKind, target: TargetKind, traffic: Option<TrafficKind>) -> Support {
    if let Some(kind) = traffic
        && !router(kind).targets.contains(&target)
    {
        return Support::Refused("this router cannot stand before this target");
    }
    match (strategy, target, traffic) {
        (StrategyKind::Canary, _, None) => {
            Support::Refused("a canary needs a router that can send a share of the users")
        }
        (StrategyKind::Canary, _, Some(TrafficKind::Service)) => {
            Support::Refused("a Service's selector knows no shares: use istio, gateway or replicas")
        }
        (StrategyKind::Canary, _, Some(TrafficKind::Replicas)) => {
            Support::Approximate("the share is that of the replicas, so it moves in steps of one instance")
        }
        (StrategyKind::BlueGreen, _, Some(TrafficKind::Replicas)) => {
            Support::Refused("without a router there is no moment at which all users switch")
        }
        (StrategyKind::BlueGreen, _, None) => {
            Support::Refused("blue_green needs a router that can switch all users at once")
        }
        (StrategyKind::Recreate, _, Some(TrafficKind::Istio | TrafficKind::Gateway)) => Support::Approximate(
            "while neither release runs, the route is as it was before cdpipe changed it",
        ),
        // Before a Swarm, a router that keeps a list of instances would not hear of tasks that the platform starts by itself: there
        // cdpipe takes the steps, each instance a Swarm service of its own.
        (
            StrategyKind::Rolling,
            TargetKind::Swarm,
            Some(TrafficKind::Proxy | TrafficKind::Nginx | TrafficKind::Haproxy),
        ) => Support::Exact,
        (
            StrategyKind::Rolling,
            TargetKind::Kubernetes,
            Some(TrafficKind::Service | TrafficKind::Istio | TrafficKind::Gateway),
        ) => Support::Refused(
            "this router names each release, and a Deployment that rolls has two at a time: leave `traffic` out and have a Service \
             of yours select the label `cdpipe.dev/service`",
        ),
        (StrategyKind::Rolling, TargetKind::Swarm | TargetKind::Kubernetes, _) => Support::Approximate(
            "the platform rolls by itself; progress is watched and the whole is undone at once",
        ),
        _ => Support::Exact,
    }
}

/// The routers before a target that can do something, as a help names them.
pub fn routers_that(target: TargetKind, can: impl Fn(&RouterCapabilities) -> bool) -> Vec<TrafficKind> {
    let driven = ROUTERS.iter().filter(|router| DRIVEN_ROUTERS.contains(&router.kind));
    driven
        .filter(|router| router.targets.contains(&target) && can(router))
        .map(|router| router.kind)
        .collect()
}

/// Settings and blocks of a service that not every target reads, and the targets that do.
pub const SERVICE_SETTINGS: &[(&str, &[TargetKind])] = &[
    ("mounts", &[TargetKind::Docker, TargetKind::Swarm, TargetKind::Hosts]),
    ("restart", &[TargetKind::Docker, TargetKind::Swarm, TargetKind::Hosts]),
    ("user", &[TargetKind::Docker, TargetKind::Swarm, TargetKind::Kubernetes, TargetKind::Hosts]),
    ("workdir", &[TargetKind::Docker, TargetKind::Swarm, TargetKind::Kubernetes, TargetKind::Hosts]),
    ("stop_signal", &[TargetKind::Docker, TargetKind::Swarm, TargetKind::Hosts]),
    ("entrypoint", &[TargetKind::Docker, TargetKind::Swarm, TargetKind::Kubernetes, TargetKind::Hosts]),
    ("placement", &[TargetKind::Swarm]),
    ("labels", &[TargetKind::Docker, TargetKind::Swarm, TargetKind::Kubernetes, TargetKind::Hosts]),
    ("logs", &[TargetKind::Docker, TargetKind::Swarm, TargetKind::Hosts]),
    ("resources", &[TargetKind::Docker, TargetKind::Swarm, TargetKind::Kubernetes, TargetKind::Hosts]),
    ("secrets", &[TargetKind::Swarm]),
    ("configs", &[TargetKind::Swarm]),
];

/// Why this setting of `rolling` means nothing on a target, where it means nothing.
pub fn rolling_setting(
    target: TargetKind,
    traffic: Option<TrafficKind>,
    setting: &str,
) -> Option<&'static str> {
    match (target, setting) {
        (TargetKind::Swarm, "failure_action" | "rollback_config") if traffic.is_some() => {
            Some("before a router cdpipe takes the steps itself, and goes back as it came")
        }
        (TargetKind::Swarm, _) => None,
        (_, "failure_action" | "rollback_config") => Some(
            "only a Swarm rolls and goes back by settings of its own; here cdpipe goes back when too many fail",
        ),
        (TargetKind::Kubernetes, "pause") => Some(
            "a Deployment has no pause between batches; `monitor` is how long each new pod must be ready",
        ),
        (TargetKind::Kubernetes, "max_failures") => {
            Some("a Deployment waits until each of its pods is ready")
        }
        _ => None,
    }
}
