//! The target `swarm`: one long-lived service that the Swarm rolls by itself (`roll`), or, where a router must know every instance,
//! services of one task each that cdpipe starts and stops (`steps`).
//!
//! The two forms of a service `web`:
//! - the *workload*, a Swarm service `web`, changed with its own update mechanism and never with the engine's "previous" rollback;
//! - *instances*, Swarm services `web-RELEASE-N` with one task each: which of several tasks of one service a Swarm ends when it is
//!   scaled down is its own choice, and only an instance that has been drained may go.
//!
//! Every release has a Swarm config `cdpipe-web-RELEASE` with what it is made from, so that it can be brought back.
//!
//! Invariants: every write is made at the version index that was read before; a write under an older lock than the last one is
//! refused (`stale-epoch`); the label of a task says its release and nothing that differs between two runs, so that going back
//! replaces no task that never changed.

mod exec;
mod lease;
mod node;
mod roll;
mod seen;
mod spec;
mod steps;

use crate::client::{Engine, Session};
use crate::containers::{Containers, ContainersConfig, Publish};
use cdpipe_host::Masker;
use cdpipe_model::action::RunAction;
use cdpipe_model::observe::{Instance, Observation};
use cdpipe_model::plan::LockKey;
use cdpipe_model::ports::{BoxFuture, Call, LockOwner, LockState, PortResult, Probe, Target};
use cdpipe_model::release::ReleaseSpec;
use cdpipe_model::strategy::{OldRelease, RollPolicy};
use cdpipe_model::{EnvName, Fault, ServiceName, Value};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// Between two looks at what a Swarm does.
const LOOK_EVERY: Duration = Duration::from_millis(150);

/// What a Swarm is made with.
#[derive(Debug, Clone)]
pub struct SwarmConfig {
    /// A manager of it.
    pub engine: Engine,
    /// The overlay network that services join.
    pub network: Option<String>,
    /// The environment; part of every label.
    pub environment: EnvName,
    /// Folder of the pipeline's file: a compose file is relative to this.
    pub base: PathBuf,
    /// The folder of Docker's own `config.json`.
    pub docker_config: PathBuf,
    /// The network of `run "…" { image = … }` on the manager's engine; made if it is not there.
    pub steps_network: String,
}

/// Services of a Docker Swarm.
#[derive(Debug, Clone)]
pub struct Swarm {
    config: SwarmConfig,
    masker: Masker,
}

impl Swarm {
    /// A target; nothing is asked yet.
    pub fn new(config: SwarmConfig, masker: Masker) -> Self {
        Self { config, masker }
    }

    /// Containers for single commands: they run on the manager's own engine, not as services.
    fn steps(&self) -> Containers {
        let config = ContainersConfig {
            engine: self.config.engine.clone(),
            environment: self.config.environment.clone(),
            network: self.config.steps_network.clone(),
            publish: Publish::Network,
            adopt: std::collections::BTreeSet::new(),
            docker_config: self.config.docker_config.clone(),
        };
        Containers::new(config, self.masker.clone())
    }

    /// The name of the workload, and what the names of all else begin with.
    fn base_of(spec: &ReleaseSpec) -> &str {
        spec.platform_name.as_deref().unwrap_or(spec.service.as_str())
    }
}

/// What every function here works with: the target, and one call's session.
struct At<'a> {
    swarm: &'a Swarm,
    session: Session<'a>,
}

impl At<'_> {
    /// Waits a moment, or less if the call is cancelled or over.
    async fn pause(&self, what: &str) -> Result<(), Fault> {
        if self.session.left() < LOOK_EVERY {
            return Err(Fault::new("timed-out", format!("{what}, and the time for it is over")));
        }
        tokio::select! {
            () = self.session.call.cancel.cancelled() => Err(crate::client::cancelled()),
            () = tokio::time::sleep(LOOK_EVERY) => Ok(()),
        }
    }
}

/// Does `work` with a session, again while the engine is away.
macro_rules! with {
    ($self:ident, $call:ident, |$at:ident| $work:expr) => {
        Box::pin(async move {
            $self
                .config
                .engine
                .patiently($call, |session| async move {
                    let $at = At { swarm: $self, session };
                    $work
                })
                .await
        })
    };
}

impl Target for Swarm {
    fn resolve<'a>(&'a self, call: Call<'a>, spec: &'a ReleaseSpec) -> PortResult<'a, ReleaseSpec> {
        with!(self, call, |at| {
            at.must_be_manager().await?;
            at.resolve(spec).await
        })
    }

    fn observe<'a>(
        &'a self,
        call: Call<'a>,
        service: &'a ServiceName,
        platform_name: Option<&'a str>,
    ) -> PortResult<'a, Observation> {
        with!(self, call, |at| at.observe(service, platform_name).await)
    }

    fn ensure<'a>(
        &'a self,
        call: Call<'a>,
        spec: &'a ReleaseSpec,
        count: u32,
        extra_env: &'a BTreeMap<String, Value>,
    ) -> PortResult<'a, Vec<Instance>> {
        with!(self, call, |at| at.ensure(spec, count, extra_env).await)
    }

    fn await_ready<'a>(
        &'a self,
        call: Call<'a>,
        spec: &'a ReleaseSpec,
        count: u32,
        may_fail: u32,
    ) -> PortResult<'a, Vec<Instance>> {
        with!(self, call, |at| at.await_ready(spec, count, may_fail).await)
    }

    fn stop<'a>(
        &'a self,
        call: Call<'a>,
        spec: &'a ReleaseSpec,
        instances: &'a [Instance],
        old: Option<OldRelease>,
        retain: u32,
    ) -> PortResult<'a, Vec<Instance>> {
        with!(self, call, |at| at.stop(spec, instances, old, retain).await)
    }

    fn roll<'a>(
        &'a self,
        call: Call<'a>,
        spec: &'a ReleaseSpec,
        count: u32,
        policy: &'a RollPolicy,
        fence: Option<u64>,
    ) -> PortResult<'a, Vec<Instance>> {
        with!(self, call, |at| at.roll(spec, count, policy, fence).await)
    }

    fn remove<'a>(&'a self, call: Call<'a>, service: &'a ServiceName) -> PortResult<'a, usize> {
        with!(self, call, |at| at.remove(service).await)
    }

    fn run_image<'a>(
        &'a self,
        call: Call<'a>,
        run: &'a RunAction,
    ) -> PortResult<'a, BTreeMap<String, String>> {
        Box::pin(async move { self.steps().run_image(call, run).await })
    }

    fn probe_image<'a>(&'a self, call: Call<'a>) -> BoxFuture<'a, Probe> {
        Box::pin(async move { self.steps().probe_image(call).await })
    }

    fn stop_image<'a>(&'a self, call: Call<'a>) -> BoxFuture<'a, ()> {
        Box::pin(async move { self.steps().stop_image(call).await })
    }

    fn exec<'a>(
        &'a self,
        call: Call<'a>,
        spec: &'a ReleaseSpec,
        instance: &'a Instance,
        run: &'a RunAction,
    ) -> PortResult<'a, BTreeMap<String, String>> {
        Box::pin(async move {
            // A command is not done again because the engine went away in the middle of it.
            let at = At { swarm: self, session: self.config.engine.session(call).await? };
            at.exec(spec, instance, run).await
        })
    }

    fn logs<'a>(
        &'a self,
        call: Call<'a>,
        service: &'a ServiceName,
        instance: &'a Instance,
        lines: usize,
    ) -> PortResult<'a, Vec<String>> {
        with!(self, call, |at| at.logs(service, instance, lines).await)
    }

    fn lock<'a>(
        &'a self,
        call: Call<'a>,
        key: &'a LockKey,
        owner: &'a LockOwner,
        lease: Duration,
    ) -> PortResult<'a, u64> {
        with!(self, call, |at| lease::take(&at, key, owner, lease).await)
    }

    fn unlock<'a>(&'a self, call: Call<'a>, key: &'a LockKey, owner: &'a LockOwner) -> PortResult<'a, ()> {
        with!(self, call, |at| lease::give_back(&at, key, owner).await)
    }

    fn lock_owner<'a>(&'a self, call: Call<'a>, key: &'a LockKey) -> PortResult<'a, Option<LockState>> {
        with!(self, call, |at| lease::owner(&at, key).await)
    }
}
