//! The target `docker`: containers of one engine.
//!
//! An instance is a container with a name that follows from environment, service, release and number. What is there is asked of the
//! engine each time; the release itself travels as a label, so that it can be brought back. Plain Docker can't fence: two owners of one
//! lock could both write. So the lease is longer than any request's deadline, and what an owner of before has left is found by its labels.

mod body;
mod ensure;
mod exec;
mod found;
mod network;
mod ready;
mod steps;
mod stop;

use crate::client::{Engine, Session};
use crate::{images, labels, lock};
use cdpipe_host::Masker;
use cdpipe_model::action::RunAction;
use cdpipe_model::observe::{Instance, Observation};
use cdpipe_model::plan::LockKey;
use cdpipe_model::ports::{BoxFuture, Call, LockOwner, LockState, PortResult, Probe, Target};
use cdpipe_model::release::{Artifact, ReleaseSpec};
use cdpipe_model::strategy::OldRelease;
use cdpipe_model::{EnvName, Fault, InstanceId, ServiceName, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

/// How instances are reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Publish {
    /// Each has a port of its own on this address of the engine's machine: for routers outside of the engine.
    On(String),
    /// By its name on the network: for routers in a container there.
    Network,
}

/// What the target of one environment needs to know.
#[derive(Debug, Clone)]
pub struct ContainersConfig {
    /// Which engine.
    pub engine: Engine,
    /// Which environment.
    pub environment: EnvName,
    /// The network that instances join; made if it is not there.
    pub network: String,
    /// How instances are reached.
    pub publish: Publish,
    /// Services whose containers of before are taken over.
    pub adopt: BTreeSet<ServiceName>,
    /// The folder of Docker's own `config.json`.
    pub docker_config: PathBuf,
}

/// Containers of a Docker engine.
#[derive(Debug, Clone)]
pub struct Containers {
    config: ContainersConfig,
    masker: Masker,
}

impl Containers {
    /// The target of one environment. Nothing is asked until it is used.
    pub fn new(config: ContainersConfig, masker: Masker) -> Self {
        Self { config, masker }
    }

    /// How many containers of a release run, or will when they are started, with this extra environment: those that `ensure` counts.
    ///
    /// # Errors
    /// If the engine can't be asked.
    pub async fn running_with(
        &self,
        call: Call<'_>,
        spec: &ReleaseSpec,
        extra_env: &BTreeMap<String, Value>,
    ) -> Result<u32, Fault> {
        let count = move |session| async move {
            let found = self.of_release(&session, spec).await?;
            let same = found.iter().filter(|found| found.is_up() && found.extra() == *extra_env).count();
            Ok(u32::try_from(same).unwrap_or(u32::MAX))
        };
        self.config.engine.patiently(call, count).await
    }

    /// Ids of the containers of a service that have an extra environment.
    ///
    /// # Errors
    /// If the engine can't be asked.
    pub async fn canaries(&self, call: Call<'_>, service: &ServiceName) -> Result<Vec<InstanceId>, Fault> {
        let ours =
            [(labels::ENVIRONMENT, self.config.environment.as_str()), (labels::SERVICE, service.as_str())];
        let look = |session| async move { self.labelled(&session, &ours).await };
        let found = self.config.engine.patiently(call, look).await?;
        let canaries = found.into_iter().filter(|found| !found.extra().is_empty());
        Ok(canaries.map(|found| InstanceId(found.name)).collect())
    }

    async fn resolve_image(&self, session: Session<'_>, spec: &ReleaseSpec) -> Result<ReleaseSpec, Fault> {
        let mut resolved = spec.clone();
        match &mut resolved.artifact {
            Artifact::Image { reference, digest, .. } => {
                let (config, masker) = (&self.config.docker_config, &self.masker);
                match digest {
                    // A release that is brought back is what it was, wherever its tag points now.
                    Some(digest) => {
                        images::pinned(&session, reference, Some(digest), config, masker).await?;
                    }
                    None => *digest = Some(images::resolve(&session, reference, config, masker).await?),
                }
                Ok(resolved)
            }
            Artifact::Command { .. } | Artifact::Document { .. } => Err(not_an_image(spec)),
        }
    }
}

fn not_an_image(spec: &ReleaseSpec) -> Fault {
    Fault::new(
        "artifact-unsupported",
        format!("the target docker runs images, and {} has none", spec.service),
    )
    .help("give the service an `image`")
}

impl Target for Containers {
    fn resolve<'a>(&'a self, call: Call<'a>, spec: &'a ReleaseSpec) -> PortResult<'a, ReleaseSpec> {
        Box::pin(self.config.engine.patiently(call, move |session| self.resolve_image(session, spec)))
    }

    fn observe<'a>(
        &'a self,
        call: Call<'a>,
        service: &'a ServiceName,
        platform_name: Option<&'a str>,
    ) -> PortResult<'a, Observation> {
        Box::pin(self.config.engine.patiently(call, move |session| self.see(session, service, platform_name)))
    }

    fn ensure<'a>(
        &'a self,
        call: Call<'a>,
        spec: &'a ReleaseSpec,
        count: u32,
        extra_env: &'a BTreeMap<String, Value>,
    ) -> PortResult<'a, Vec<Instance>> {
        Box::pin(
            self.config
                .engine
                .patiently(call, move |session| self.ensure_containers(session, spec, count, extra_env)),
        )
    }

    fn await_ready<'a>(
        &'a self,
        call: Call<'a>,
        spec: &'a ReleaseSpec,
        count: u32,
        may_fail: u32,
    ) -> PortResult<'a, Vec<Instance>> {
        Box::pin(
            self.config
                .engine
                .patiently(call, move |session| self.wait_until_ready(session, spec, count, may_fail)),
        )
    }

    fn stop<'a>(
        &'a self,
        call: Call<'a>,
        spec: &'a ReleaseSpec,
        instances: &'a [Instance],
        old: Option<OldRelease>,
        retain: u32,
    ) -> PortResult<'a, Vec<Instance>> {
        Box::pin(
            self.config
                .engine
                .patiently(call, move |session| self.stop_containers(session, spec, instances, old, retain)),
        )
    }

    fn remove<'a>(&'a self, call: Call<'a>, service: &'a ServiceName) -> PortResult<'a, usize> {
        Box::pin(self.config.engine.patiently(call, move |session| self.remove_service(session, service)))
    }

    fn run_image<'a>(
        &'a self,
        call: Call<'a>,
        run: &'a RunAction,
    ) -> PortResult<'a, BTreeMap<String, String>> {
        Box::pin(self.run_step(call, run))
    }

    fn probe_image<'a>(&'a self, call: Call<'a>) -> BoxFuture<'a, Probe> {
        Box::pin(async move {
            let probed = self.config.engine.patiently(call, move |session| self.probe_step(session)).await;
            probed.unwrap_or_else(Probe::Unknown)
        })
    }

    fn stop_image<'a>(&'a self, call: Call<'a>) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            // What it could not end is found by its label.
            let _ = self.config.engine.patiently(call, move |session| self.stop_step(session)).await;
        })
    }

    fn exec<'a>(
        &'a self,
        call: Call<'a>,
        spec: &'a ReleaseSpec,
        instance: &'a Instance,
        run: &'a RunAction,
    ) -> PortResult<'a, BTreeMap<String, String>> {
        Box::pin(self.exec_in(call, spec, instance, run))
    }

    fn logs<'a>(
        &'a self,
        call: Call<'a>,
        _service: &'a ServiceName,
        instance: &'a Instance,
        lines: usize,
    ) -> PortResult<'a, Vec<String>> {
        Box::pin(
            self.config
                .engine
                .patiently(call, move |session| self.last_lines(session, instance.id.as_str(), lines)),
        )
    }

    fn lock<'a>(
        &'a self,
        call: Call<'a>,
        key: &'a LockKey,
        owner: &'a LockOwner,
        lease: Duration,
    ) -> PortResult<'a, u64> {
        Box::pin(
            self.config
                .engine
                .patiently(call, move |session| async move { lock::take(&session, key, owner, lease).await }),
        )
    }

    fn unlock<'a>(&'a self, call: Call<'a>, key: &'a LockKey, owner: &'a LockOwner) -> PortResult<'a, ()> {
        Box::pin(
            self.config
                .engine
                .patiently(call, move |session| async move { lock::give_back(&session, key, owner).await }),
        )
    }

    fn lock_owner<'a>(&'a self, call: Call<'a>, key: &'a LockKey) -> PortResult<'a, Option<LockState>> {
        Box::pin(
            self.config
                .engine
                .patiently(call, move |session| async move { lock::owner(&session, key).await }),
        )
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::path::Path;

    /// A target whose engine is asked nothing.
    pub(super) fn target() -> Containers {
        let config = ContainersConfig {
            engine: Engine::new(None, None, Path::new("/")),
            environment: EnvName::from("prod"),
            network: "net".to_owned(),
            publish: Publish::Network,
            adopt: BTreeSet::new(),
            docker_config: PathBuf::new(),
        };
        Containers::new(config, Masker::default())
    }

    pub(crate) fn spec() -> ReleaseSpec {
        ReleaseSpec {
            service: ServiceName::from("web"),
            platform_name: None,
            version: "1".to_owned(),
            artifact: Artifact::Image { reference: "shop:1".to_owned(), digest: None, args: Vec::new() },
            port: None,
            env: BTreeMap::new(),
            health: Vec::new(),
            drain_ms: 1_000,
            extra: BTreeMap::new(),
        }
    }
}
