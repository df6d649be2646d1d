//! Routing tables: what symbolic shares mean with the instances there are.

use crate::state::DeployState;
use crate::strategy::ALL_BP;
use cdpipe_model::id::InstanceId;
use cdpipe_model::observe::{Instance, Member, Role, RouteEntry, RouteRule, RouteTable};
use cdpipe_model::plan::{Deploy, Plan};
use cdpipe_model::program::Routing;
use cdpipe_model::release::ReleaseSpec;
use cdpipe_model::service::{Environment, Route, TrafficKind};
use cdpipe_model::strategy::{RouteMatch, Sticky, Strategy};

pub(super) fn environment<'a>(plan: &'a Plan, deploy: &Deploy) -> Option<&'a Environment> {
    plan.environments.get(&deploy.environment)
}

/// Whether users are steered by a router that has a table.
pub(super) fn is_routed(plan: &Plan, deploy: &Deploy) -> bool {
    deploy.service.route.is_some()
        && environment(plan, deploy)
            .and_then(|environment| environment.traffic.as_ref())
            .is_some_and(|traffic| traffic.kind != TrafficKind::Replicas)
}

pub(super) fn ready_bp(part: usize, whole: usize) -> u32 {
    if whole == 0 {
        return 0;
    }
    // Rounded to the nearest; at most 10,000 by construction.
    u32::try_from((part * 2 * ALL_BP as usize + whole) / (2 * whole)).unwrap_or(ALL_BP)
}

/// The table that these shares mean with the instances there are, less those that are about to go.
pub(super) fn table_for(
    spec: &Deploy,
    deploy: &DeployState,
    routing: &Routing,
    leaving: &[InstanceId],
) -> Option<RouteTable> {
    let route = spec.service.route.clone()?;
    let program = deploy.program.as_ref()?;
    let candidate = program.candidate_id();
    let stable = program.stable.as_ref().map(ReleaseSpec::id).filter(|stable| *stable != candidate);
    let staying = |side: Role, only_ready: bool| -> Vec<Member> {
        let staying = deploy.instances(side).iter().filter(|instance| !leaving.contains(&instance.id));
        let member = |instance: &Instance| {
            Some(Member { instance: instance.id.clone(), address: instance.address.clone()? })
        };
        staying.filter(|instance| instance.ready || !only_ready).filter_map(member).collect()
    };
    let members = |side: Role| {
        let ready = staying(side, true);
        // None is ready: a request that may fail is better than one that must.
        if ready.is_empty() { staying(side, false) } else { ready }
    };
    let (strategy_rules, sticky) = match &spec.strategy {
        Strategy::Canary(canary) => (canary.rules.as_slice(), canary.sticky),
        _ => (&[] as &[RouteMatch], Sticky::None),
    };
    let (candidate_bp, with_rules) = match routing {
        Routing::Closed => return Some(RouteTable::closed(route)),
        Routing::Weighted { candidate_bp, rules } => (*candidate_bp, *rules && !strategy_rules.is_empty()),
        Routing::ByInstances => {
            // A side of which none is ready gets nobody, unless neither has one that is.
            let count = |only_ready| {
                (staying(Role::Candidate, only_ready).len(), staying(Role::Stable, only_ready).len())
            };
            let (new, old) = Some(count(true)).filter(|both| *both != (0, 0)).unwrap_or_else(|| count(false));
            (ready_bp(new, new + old), false)
        }
    };
    let candidate_bp = if stable.is_none() { ALL_BP } else { candidate_bp };
    let mut entries = Vec::new();
    if let Some(stable) = stable.filter(|_| candidate_bp < ALL_BP) {
        entries.push(RouteEntry {
            release: stable,
            role: Role::Stable,
            weight_bp: ALL_BP - candidate_bp,
            members: members(Role::Stable),
        });
    }
    if candidate_bp > 0 || with_rules {
        // Whoever has all users is what serves now.
        let role = if candidate_bp == ALL_BP { Role::Stable } else { Role::Candidate };
        let members = members(Role::Candidate);
        entries.push(RouteEntry { release: candidate.clone(), role, weight_bp: candidate_bp, members });
    }
    let rules = strategy_rules
        .iter()
        .filter(|_| with_rules)
        .map(|matches| RouteRule { matches: matches.clone(), release: candidate.clone() })
        .collect();
    let sticky = if candidate_bp == ALL_BP || candidate_bp == 0 { Sticky::None } else { sticky };
    Some(RouteTable { route, entries, rules, sticky })
}

/// Where the preview is. A router with a listener opens another one; a Service is an object of its own, which the address names.
fn preview_route(plan: &Plan, spec: &Deploy, listen: &str) -> Option<Route> {
    let route = spec.service.route.clone()?;
    let kind = environment(plan, spec)?.traffic.as_ref()?.kind;
    let object = (kind == TrafficKind::Service).then(|| {
        let name = listen.rsplit_once(':').map_or("", |(name, _)| name);
        if name.is_empty() { format!("{}-preview", route.service) } else { name.to_owned() }
    });
    Some(Route { listen: Some(listen.to_owned()), object, ..route })
}

/// The table of the preview: the candidate alone, or closed.
pub(super) fn preview_table(
    plan: &Plan,
    spec: &Deploy,
    deploy: &DeployState,
    open: bool,
) -> Option<RouteTable> {
    let Strategy::BlueGreen(settings) = &spec.strategy else { return None };
    let route = preview_route(plan, spec, settings.preview.as_deref()?)?;
    if !open {
        return Some(RouteTable::closed(route));
    }
    let mut table = table_for(spec, deploy, &Routing::Weighted { candidate_bp: ALL_BP, rules: false }, &[])?;
    table.entries.iter_mut().for_each(|entry| entry.role = Role::Candidate);
    Some(RouteTable { route, ..table })
}

/// Instances that go when `count` stay: unready ones first, then the last of the list, where targets name canaries.
pub(super) fn leaving(instances: &[Instance], count: u32) -> Vec<Instance> {
    let excess = instances.len().saturating_sub(count as usize);
    let mut order: Vec<_> = instances.iter().enumerate().collect();
    order.sort_by_key(|(at, instance)| (instance.ready, std::cmp::Reverse(*at)));
    order.into_iter().take(excess).map(|(_, instance)| instance.clone()).collect()
}
