//! What a run would do now: each deploy's program, made from what is there. Reads the targets and changes nothing.

use crate::failure::{self, Failure};
use cdpipe_engine::Ports;
use cdpipe_machine::{release, strategy};
use cdpipe_model::action::{Block, StepRef};
use cdpipe_model::event::Stream;
use cdpipe_model::expr::Expr;
use cdpipe_model::observe::{Instance, Observation, ObservedRelease, Role, RouteEntry, RouteTable};
use cdpipe_model::plan::{Deploy, NodeKind, Plan, StepKind};
use cdpipe_model::ports::{BoxFuture, Call, Cancel, Sink};
use cdpipe_model::program::Program;
use cdpipe_model::release::ReleaseSpec;
use cdpipe_model::strategy::Sticky;
use cdpipe_model::{EffectId, EnvName, Fault, InstanceId, NodeId, ServiceName, Value};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::time::Duration;

/// How long a target may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// A deploy as it would go.
pub(crate) struct Preview {
    /// Its stage.
    pub node: NodeId,
    /// Its step in the stage.
    pub index: u32,
    /// What would be done; or why that can't be said.
    pub program: Result<Program, Fault>,
    /// Whether it is made from what an earlier deploy of this plan will have left, not from what is there.
    pub assumed: bool,
    /// Hash of what was observed, for deploys that are made from it.
    pub seen_hash: Option<String>,
}

/// Looks at every deploy of the plan in an order in which they could run.
pub(crate) async fn preview(plan: &Plan, ports: &Ports) -> Vec<Preview> {
    let mut previews = Vec::new();
    let mut left: BTreeMap<(EnvName, ServiceName), Observation> = BTreeMap::new();
    for node in order(plan) {
        let Some(NodeKind::Stage(stage)) = plan.node(node).map(|node| &node.kind) else { continue };
        for (index, step) in stage.steps.iter().enumerate() {
            let StepKind::Deploy(deploy) = &step.kind else { continue };
            let index = u32::try_from(index).unwrap_or(u32::MAX);
            let place = (deploy.environment.clone(), deploy.service.name.clone());
            let before = left.get(&place).cloned();
            let assumed = before.is_some();
            let at = StepRef { node: Some(node), block: Block::Main, index };
            let result = program_of(plan, ports, deploy, &at, before).await;
            let (program, seen_hash) = match result {
                Ok((program, seen)) => {
                    left.insert(place, after(&program, deploy));
                    (Ok(program), (!assumed).then(|| hash(&seen)))
                }
                Err(fault) => (Err(fault), None),
            };
            previews.push(Preview { node, index, program, assumed, seen_hash });
        }
    }
    previews
}

/// The nodes in an order in which each comes after what it needs, by index among those that could run.
pub(crate) fn order(plan: &Plan) -> Vec<NodeId> {
    let mut done = vec![false; plan.nodes.len()];
    let mut order = Vec::new();
    // A plan has no cycles, so each round takes at least one.
    while order.len() < plan.nodes.len() {
        let before = order.len();
        for node in &plan.nodes {
            let at = node.id.0 as usize;
            let ready = node.needs.iter().all(|need| done.get(need.node.0 as usize).copied().unwrap_or(true));
            if !done.get(at).copied().unwrap_or(true) && ready {
                done[at] = true;
                order.push(node.id);
            }
        }
        if order.len() == before {
            break;
        }
    }
    order
}

async fn program_of(
    plan: &Plan,
    ports: &Ports,
    deploy: &Deploy,
    at: &StepRef,
    before: Option<Observation>,
) -> Result<(Program, Observation), Fault> {
    let eval = |expr: &Expr| -> Result<Value, Fault> {
        // What is known only later stands as its own name.
        expr.eval(&|symbol| Some(Value::Str(format!("<{symbol}>"))))
            .map_err(|error| Fault::new("known-later", format!("`{expr}` is known only later: {error}")))
    };
    let spec = release::release_spec(plan, deploy, &eval)?;
    let environment = plan
        .environments
        .get(&deploy.environment)
        .ok_or_else(|| Fault::new("no-environment", format!("the plan has no `{}`", deploy.environment)))?;
    let target = ports
        .targets
        .get(&deploy.environment)
        .ok_or_else(|| Fault::new("no-target", format!("`{}` has no target", deploy.environment)))?;
    let effect = EffectId("plan/0".to_owned());
    let call = Call {
        effect: &effect,
        step: at,
        deadline: ANSWER_WITHIN,
        sink: &Silent,
        cancel: &Never,
        secrets: &*ports.secrets,
        epoch: 0,
    };
    // An artifact that an earlier stage builds may not be there yet.
    let spec = match target.resolve(call, &spec).await {
        Ok(spec) => spec,
        Err(fault) if fault.kind == "artifact-missing" => spec,
        Err(fault) => return Err(fault),
    };
    let seen = match before {
        Some(seen) => seen,
        None => {
            let name = deploy.service.platform_name.as_deref();
            let mut seen = target.observe(call, &deploy.service.name, name).await?;
            if let (Some(route), Some(router)) =
                (&deploy.service.route, ports.routers.get(&deploy.environment))
            {
                seen.table = router.observe(call, route).await?;
            }
            seen
        }
    };
    if !seen.unmanaged.is_empty() && !deploy.service.adopt {
        return Err(Fault::new(
            "unmanaged",
            format!("{} is there already and was not made by cdpipe", seen.unmanaged.join(", ")),
        )
        .help("remove it, or say `adopt = true` in the service"));
    }
    let replicas = release::wanted(deploy, &spec, &seen, &eval)?;
    let inputs = strategy::Inputs { deploy, environment, candidate: &spec, replicas, seen: &seen };
    Ok((strategy::program(&inputs), seen))
}

/// What will be there if the program does what it should.
fn after(program: &Program, deploy: &Deploy) -> Observation {
    let id = program.candidate_id();
    let instances = (0..program.replicas)
        .map(|n| Instance {
            id: InstanceId(format!("{id}-{n}")),
            address: Some(String::new()),
            ready: true,
            reached_at: None,
            restarts: 0,
        })
        .collect();
    let release = ObservedRelease {
        id: id.clone(),
        spec: program.candidate.clone(),
        wanted: program.replicas,
        instances,
    };
    let table = deploy.service.route.clone().map(|route| RouteTable {
        route,
        entries: vec![RouteEntry { release: id, role: Role::Stable, weight_bp: 10_000, members: Vec::new() }],
        rules: Vec::new(),
        sticky: Sticky::None,
    });
    Observation { releases: vec![release], unmanaged: Vec::new(), table, fence: None, autoscaled: None }
}

/// A hash of what matters of an observation: which releases, how many instances they should have, who gets what. Restarts and
/// addresses come and go.
fn hash(seen: &Observation) -> String {
    let releases: Vec<(&str, u32)> =
        seen.releases.iter().map(|release| (release.id.as_str(), release.wanted)).collect();
    let shares: Option<Vec<(&str, u32)>> = seen
        .table
        .as_ref()
        .map(|table| table.entries.iter().map(|entry| (entry.release.as_str(), entry.weight_bp)).collect());
    let text = serde_json::json!({ "releases": releases, "shares": shares, "unmanaged": seen.unmanaged })
        .to_string();
    digest(text.as_bytes())
}

/// `sha256:` and 64 hex digits.
pub(crate) fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// A runtime for commands that ask targets.
pub(crate) fn ask<T>(call: impl Future<Output = T>) -> Result<T, Failure> {
    crate::drive::install_tls();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(&failure::CANNOT_RUN, format!("no thread can be started: {error}")))?;
    let answer = runtime.block_on(call);
    runtime.shutdown_timeout(Duration::from_millis(100));
    Ok(answer)
}

/// Calls a target outside of a run.
pub(crate) fn call_for<'a>(
    effect: &'a EffectId,
    step: &'a StepRef,
    deadline: Duration,
    secrets: &'a dyn cdpipe_model::ports::Secrets,
) -> Call<'a> {
    Call { effect, step, deadline, sink: &Silent, cancel: &Never, secrets, epoch: 0 }
}

/// Whoever listens to nothing.
struct Silent;

impl Sink for Silent {
    fn output(&self, _stream: Stream, _line: &str) {}
    fn progress(&self, _text: &str) {}
}

/// Whoever never cancels.
struct Never;

impl Cancel for Never {
    fn is_cancelled(&self) -> bool {
        false
    }
    fn cancelled(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::pending())
    }
}

/// The release that a spec describes, for messages.
pub(crate) fn named(spec: &ReleaseSpec) -> String {
    cdpipe_report::words::release(spec)
}
