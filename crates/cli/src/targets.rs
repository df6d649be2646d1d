//! What is deployed where, read from the last run that deployed it: for commands that act outside of a pipeline.

use crate::failure::{self, Failure};
use cdpipe_engine::Store;
use cdpipe_model::action::{Block, StepRef};
use cdpipe_model::plan::{Deploy, LockKey, Plan, StepKind};
use cdpipe_model::ports::LockOwner;
use cdpipe_model::record::RunHeader;
use cdpipe_model::{EffectId, EnvName, RunId, ServiceName};
use std::collections::BTreeSet;
use std::sync::Arc;

/// How many of the newest runs are looked through.
const RUNS_LOOKED_THROUGH: u32 = 500;

/// A step that belongs to no pipeline.
pub(crate) fn no_step() -> StepRef {
    StepRef { node: None, block: Block::Main, index: 0 }
}

/// An effect that belongs to no run.
pub(crate) fn effect(command: &str) -> EffectId {
    EffectId(format!("{command}/{}", std::process::id()))
}

/// In whose name a command holds a lock.
pub(crate) fn lock_owner(command: &str) -> LockOwner {
    LockOwner {
        run: RunId(format!("{command}-{}", std::process::id())),
        who: crate::state::user_at_host(),
        pid: std::process::id(),
    }
}

/// The lock of a service.
pub(crate) fn lock_key(environment: &EnvName, service: &ServiceName) -> LockKey {
    LockKey::Service { environment: environment.clone(), service: service.clone() }
}

/// Every deploy of a plan, in its main steps; the last one of a service and environment stands for it.
pub(crate) fn deploys(plan: &Plan) -> Vec<&Deploy> {
    let mut found: Vec<&Deploy> = Vec::new();
    for node in &plan.nodes {
        let cdpipe_model::plan::NodeKind::Stage(stage) = &node.kind else { continue };
        for step in &stage.steps {
            if let StepKind::Deploy(deploy) = &step.kind {
                found.retain(|other| {
                    other.environment != deploy.environment || other.service.name != deploy.service.name
                });
                found.push(deploy);
            }
        }
    }
    found
}

/// The newest run for which this holds.
pub(crate) fn newest(
    store: &Store,
    fits: impl Fn(&RunHeader) -> bool,
) -> Result<Option<Arc<RunHeader>>, Failure> {
    for run in store.runs(RUNS_LOOKED_THROUGH)? {
        if run.pruned {
            continue;
        }
        let header = store.header(&run.run)?;
        if fits(&header) {
            return Ok(Some(Arc::new(header)));
        }
    }
    Ok(None)
}

/// The newest run that deploys this service to this environment, and the deploy; with names of what there is if there is none.
pub(crate) fn find(
    store: &Store,
    service: &str,
    environment: &str,
) -> Result<(Arc<RunHeader>, Deploy), Failure> {
    let fits = |deploy: &Deploy| {
        deploy.service.name.as_str() == service && deploy.environment.as_str() == environment
    };
    let header = newest(store, |header| deploys(&header.plan).into_iter().any(fits))?;
    if let Some(header) = header
        && let Some(deploy) = deploys(&header.plan).into_iter().find(|deploy| fits(deploy)).cloned()
    {
        return Ok((header, deploy));
    }
    let mut known = BTreeSet::new();
    for run in store.runs(RUNS_LOOKED_THROUGH)?.iter().filter(|run| !run.pruned).take(50) {
        for deploy in deploys(&store.header(&run.run)?.plan) {
            known.insert(format!("{} {}", deploy.service.name, deploy.environment));
        }
    }
    let failure = Failure::new(
        &failure::NOT_POSSIBLE,
        format!("no run has deployed a service `{service}` to an environment `{environment}`"),
    );
    Err(if known.is_empty() {
        failure.help("no run of this project has deployed anything")
    } else {
        failure.help(format!("there is {}", known.into_iter().collect::<Vec<_>>().join("; ")))
    })
}
