//! From a plan to the things that carry it out: which target, router, runner and so on stand behind each name.

mod docker;
mod hosts;
mod kubernetes;
mod routers;
mod swarm;

pub(crate) use kubernetes::{cluster_of as cluster, source_of};

use crate::failure::{self, Failure};
use cdpipe_engine::Ports;
use cdpipe_host::{HostRunner, HostSecrets, Local, LocalConfig, Masker, Policy, RunnerConfig};
use cdpipe_integrations::Integrations;
use cdpipe_model::plan::{NodeKind, Plan, Step, StepKind};
use cdpipe_model::ports::{Router, Target};
use cdpipe_model::service::{Environment, TargetKind, TrafficKind, TrafficSpec};
use cdpipe_model::{EnvName, Fault, Value};
use cdpipe_probe::Probes;
use cdpipe_proxy::ProxyRouter;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How long a command may take to end after it was asked to.
const COMMAND_GRACE: Duration = Duration::from_secs(5);

/// The rim of one run.
pub(crate) struct Wiring {
    /// What the engine acts through.
    pub ports: Ports,
}

impl Wiring {
    /// The target of an environment that the plan uses.
    pub(crate) fn target(&self, environment: &EnvName) -> Result<&Arc<dyn Target>, Fault> {
        self.ports.targets.get(environment).ok_or_else(|| {
            Fault::new("no-target", format!("environment `{environment}` is not part of what the plan uses"))
        })
    }
}

/// What every target and router is made with.
pub(crate) struct Site<'a> {
    /// What is to be carried out.
    pub plan: &'a Plan,
    /// Folder of the pipeline's file: paths in it are relative to this.
    pub base: &'a Path,
    /// The project's state folder.
    pub state: &'a Path,
    /// Our own binary, for the processes that outlive us.
    pub program: &'a Path,
    /// Keeps secrets out of output.
    pub masker: &'a Masker,
    /// Variables that no process of ours inherits: sources of secrets.
    pub hidden_env: &'a [String],
}

/// Wires the plan of the pipeline at `file` to this machine. Starts nothing.
pub(crate) fn wire(plan: &Plan, file: &Path, state: &Path) -> Result<Wiring, Failure> {
    let base = file.parent().unwrap_or(Path::new("/")).to_owned();
    let program = std::env::current_exe().map_err(|error| {
        Failure::new(&failure::CANNOT_RUN, format!("cdpipe does not find its own program: {error}"))
    })?;
    let masker = Masker::default();
    let secrets = HostSecrets::new(plan.secrets.clone(), base.clone(), masker.clone());
    let hidden_env = secrets.variables();
    let needed = environments(plan);
    let mut targets: BTreeMap<EnvName, Arc<dyn Target>> = BTreeMap::new();
    let mut routers: BTreeMap<EnvName, Arc<dyn Router>> = BTreeMap::new();
    let site = Site { plan, base: &base, state, program: &program, masker: &masker, hidden_env: &hidden_env };
    for (name, environment) in plan.environments.iter().filter(|(name, _)| needed.contains(*name)) {
        targets.insert(name.clone(), target(environment, &site)?);
        if let Some(traffic) = &environment.traffic
            && let Some(router) = router(environment, traffic, &site)?
        {
            routers.insert(name.clone(), router);
        }
    }
    let runner = HostRunner::new(
        RunnerConfig {
            base: base.clone(),
            commands: commands_dir(state),
            supervisor: program.clone(),
            grace: COMMAND_GRACE,
            hidden_env,
        },
        masker.clone(),
    );
    let ports = Ports {
        targets,
        routers,
        measurer: Arc::new(Probes::new(base.clone())),
        runner: Arc::new(runner),
        messenger: Arc::new(Integrations::new(base)),
        secrets: Arc::new(secrets),
    };
    Ok(Wiring { ports })
}

/// Where the instances of an environment run.
fn target(environment: &Environment, site: &Site<'_>) -> Result<Arc<dyn Target>, Failure> {
    match environment.target.kind {
        TargetKind::Local => Ok(local(environment, site)),
        TargetKind::Docker => Ok(docker::containers(environment, site)),
        TargetKind::Hosts => hosts::target(environment, site),
        TargetKind::Swarm => Ok(swarm::target(environment, site)),
        TargetKind::Kubernetes => Ok(kubernetes::target(environment, site)),
    }
}

/// What steers the traffic of an environment; `None` where nothing does.
fn router(
    environment: &Environment,
    traffic: &TrafficSpec,
    site: &Site<'_>,
) -> Result<Option<Arc<dyn Router>>, Failure> {
    match traffic.kind {
        TrafficKind::Proxy => {
            let setting = |name: &str| traffic.settings.get(name).and_then(Value::as_str);
            if let Some(host) = setting("host") {
                return hosts::proxy(environment, host, setting("dir"), site).map(Some);
            }
            let dir = proxy_dir(environment, site.base, site.state);
            Ok(Some(Arc::new(ProxyRouter::new(site.program.to_owned(), dir))))
        }
        TrafficKind::Nginx => routers::nginx(environment, traffic, site).map(Some),
        TrafficKind::Haproxy => routers::haproxy(environment, traffic, site).map(Some),
        // The platform's own names find every ready instance; there is nobody to be told.
        TrafficKind::Replicas => Ok(None),
        TrafficKind::Service => Ok(Some(kubernetes::service(environment, traffic, site))),
        TrafficKind::Gateway => Ok(Some(kubernetes::gateway(environment, traffic, site))),
        TrafficKind::Istio => Ok(Some(kubernetes::istio(environment, traffic, site))),
    }
}

fn local(environment: &Environment, site: &Site<'_>) -> Arc<dyn Target> {
    let config = LocalConfig {
        state: local_dir(environment, site.base, site.state),
        environment: environment.name.clone(),
        base: site.base.to_owned(),
        supervisor: site.program.to_owned(),
        policy: Policy::default(),
    };
    Arc::new(Local::new(config, site.masker.clone()))
}

/// Where the supervisors of commands keep what became of them.
pub(crate) fn commands_dir(state: &Path) -> PathBuf {
    state.join("commands")
}

/// Where the local target of an environment keeps its state.
fn local_dir(environment: &Environment, base: &Path, state: &Path) -> PathBuf {
    match environment.target.settings.get("dir").and_then(Value::as_str) {
        Some(dir) => base.join(dir),
        None => state.join("local").join(environment.name.as_str()),
    }
}

/// Where the proxy of an environment keeps its state.
fn proxy_dir(environment: &Environment, base: &Path, state: &Path) -> PathBuf {
    let settings = environment.traffic.as_ref().map(|traffic| &traffic.settings);
    match settings.and_then(|settings| settings.get("dir")).and_then(Value::as_str) {
        Some(dir) => base.join(dir),
        None => state.join("proxy"),
    }
}

/// Environments that a step of the plan touches.
fn environments(plan: &Plan) -> BTreeSet<EnvName> {
    let mut found = BTreeSet::new();
    each_step(plan, &mut |step| match &step.kind {
        StepKind::Deploy(deploy) => {
            found.insert(deploy.environment.clone());
        }
        StepKind::Apply(apply) => {
            found.insert(apply.environment.clone());
        }
        StepKind::Run(run) | StepKind::Exec(run) => found.extend(run.environment.clone()),
        _ => {}
    });
    for node in &plan.nodes {
        if let NodeKind::Gate(gate) = &node.kind {
            found.extend(gate.metrics.iter().filter_map(|metric| metric.environment.clone()));
        }
    }
    found
}

/// Every step of the plan, wherever it stands.
pub(crate) fn each_step(plan: &Plan, visit: &mut dyn FnMut(&Step)) {
    fn walk(steps: &[Step], visit: &mut dyn FnMut(&Step)) {
        for step in steps {
            visit(step);
            match &step.kind {
                StepKind::Deploy(deploy) => {
                    walk(&deploy.verify, visit);
                    walk(&deploy.validate, visit);
                }
                StepKind::Undo { steps } => walk(steps, visit),
                _ => {}
            }
        }
    }
    for node in &plan.nodes {
        match &node.kind {
            NodeKind::Stage(stage) => {
                walk(&stage.steps, visit);
                stage.hooks.iter().for_each(|hook| walk(&hook.steps, visit));
            }
            NodeKind::Gate(gate) => {
                walk(&gate.checks, visit);
                gate.hooks.iter().for_each(|hook| walk(&hook.steps, visit));
            }
        }
    }
    plan.hooks.iter().for_each(|hook| walk(&hook.steps, visit));
}

/// The same, to change them.
pub(crate) fn each_step_mut(plan: &mut Plan, visit: &mut dyn FnMut(&mut Step)) {
    fn walk(steps: &mut [Step], visit: &mut dyn FnMut(&mut Step)) {
        for step in steps {
            visit(step);
            match &mut step.kind {
                StepKind::Deploy(deploy) => {
                    walk(&mut deploy.verify, visit);
                    walk(&mut deploy.validate, visit);
                }
                StepKind::Undo { steps } => walk(steps, visit),
                _ => {}
            }
        }
    }
    for node in &mut plan.nodes {
        match &mut node.kind {
            NodeKind::Stage(stage) => {
                walk(&mut stage.steps, visit);
                stage.hooks.iter_mut().for_each(|hook| walk(&mut hook.steps, visit));
            }
            NodeKind::Gate(gate) => {
                walk(&mut gate.checks, visit);
                gate.hooks.iter_mut().for_each(|hook| walk(&mut hook.steps, visit));
            }
        }
    }
    plan.hooks.iter_mut().for_each(|hook| walk(&mut hook.steps, visit));
}
