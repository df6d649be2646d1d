//! What a machine runs, seen on the machine itself: processes by the target `local`, images by the target `docker` on its own engine. What
//! a release is made from says which. Locks and epochs are those of `local` for both: a container is changed under the same lock of its
//! service, and an owner of before is refused there.

use crate::protocol::Reply;
use crate::ssh::ContainersThere;
use cdpipe_docker::{Containers, ContainersConfig, Engine, Publish};
use cdpipe_host::{Local, Masker};
use cdpipe_model::action::RunAction;
use cdpipe_model::observe::{Instance, Observation};
use cdpipe_model::ports::{Call, Target};
use cdpipe_model::release::{Artifact, ReleaseSpec};
use cdpipe_model::strategy::OldRelease;
use cdpipe_model::{EnvName, Fault, InstanceId, ServiceName, Value};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// Both targets of a machine.
pub(crate) struct Here {
    pub(crate) local: Local,
    containers: Option<Containers>,
}

impl Here {
    /// With an engine where one is named; `base` is what relative paths of a socket start at.
    pub(crate) fn new(
        local: Local,
        containers: Option<&ContainersThere>,
        environment: &EnvName,
        listen: IpAddr,
        base: &Path,
        masker: &Masker,
    ) -> Self {
        let containers = containers.map(|there| {
            let config = ContainersConfig {
                engine: Engine::new(Some(&there.engine), None, base),
                environment: environment.clone(),
                network: there.network.clone(),
                publish: Publish::On(listen.to_string()),
                adopt: there.adopt.iter().cloned().collect(),
                docker_config: docker_config(),
            };
            Containers::new(config, masker.clone())
        });
        Self { local, containers }
    }

    /// Who runs this release; `None` for processes.
    fn engine_of(&self, spec: &ReleaseSpec) -> Result<Option<&Containers>, Fault> {
        match (&spec.artifact, &self.containers) {
            (Artifact::Image { .. }, None) => Err(Fault::new(
                "artifact-unfit",
                format!("{} is made from an image, and nothing says which engine runs it", spec.service),
            )
            .help("set `engine` of the target")),
            (Artifact::Image { .. }, containers) => Ok(containers.as_ref()),
            _ => Ok(None),
        }
    }

    pub(crate) async fn resolve(&self, call: Call<'_>, spec: &ReleaseSpec) -> Result<ReleaseSpec, Fault> {
        match self.engine_of(spec)? {
            Some(containers) => containers.resolve(call, spec).await.map_err(of_here),
            None => self.local.resolve(call, spec).await,
        }
    }

    pub(crate) async fn observe(
        &self,
        call: Call<'_>,
        service: &ServiceName,
        platform_name: Option<&str>,
    ) -> Result<Reply, Fault> {
        let mut observation = self.local.observe(call, service, None).await?;
        if let Some(containers) = &self.containers {
            let Observation { releases, unmanaged, .. } =
                containers.observe(call, service, platform_name).await.map_err(of_here)?;
            observation.releases.extend(releases);
            observation.unmanaged.extend(unmanaged);
        }
        Ok(Reply::Observed { observation, canaries: self.canaries(call, service).await? })
    }

    async fn canaries(&self, call: Call<'_>, service: &ServiceName) -> Result<Vec<InstanceId>, Fault> {
        let mut found = self.local.canaries(service)?;
        if let Some(containers) = &self.containers {
            found.extend(containers.canaries(call, service).await.map_err(of_here)?);
        }
        Ok(found)
    }

    async fn instances(
        &self,
        call: Call<'_>,
        spec: &ReleaseSpec,
        instances: Vec<Instance>,
    ) -> Result<Reply, Fault> {
        Ok(Reply::Instances { instances, canaries: self.canaries(call, &spec.service).await? })
    }

    pub(crate) async fn survey(
        &self,
        call: Call<'_>,
        spec: &ReleaseSpec,
        extra_env: &BTreeMap<String, Value>,
    ) -> Result<Reply, Fault> {
        let running = match self.engine_of(spec)? {
            Some(containers) => containers.running_with(call, spec, extra_env).await.map_err(of_here)?,
            None => u32::try_from(self.local.running_with(spec, extra_env)?.len()).unwrap_or(u32::MAX),
        };
        Ok(Reply::Surveyed { running, wants_upload: self.local.wants_upload(spec)? })
    }

    pub(crate) async fn ensure(
        &self,
        call: Call<'_>,
        spec: &ReleaseSpec,
        count: u32,
        extra_env: &BTreeMap<String, Value>,
    ) -> Result<Reply, Fault> {
        let instances = match self.engine_of(spec)? {
            Some(containers) => {
                let _changing = self.local.changing(call, &spec.service).await?;
                containers.ensure(call, spec, count, extra_env).await.map_err(of_here)?
            }
            None => self.local.ensure(call, spec, count, extra_env).await?,
        };
        self.local.prune_uploads();
        self.instances(call, spec, instances).await
    }

    pub(crate) async fn await_ready(
        &self,
        call: Call<'_>,
        spec: &ReleaseSpec,
        count: u32,
        may_fail: u32,
    ) -> Result<Reply, Fault> {
        let instances = match self.engine_of(spec)? {
            Some(containers) => containers.await_ready(call, spec, count, may_fail).await.map_err(of_here)?,
            None => self.local.await_ready(call, spec, count, may_fail).await?,
        };
        self.instances(call, spec, instances).await
    }

    pub(crate) async fn stop(
        &self,
        call: Call<'_>,
        spec: &ReleaseSpec,
        chosen: &[Instance],
        old: Option<OldRelease>,
        retain: u32,
    ) -> Result<Reply, Fault> {
        let instances = match self.engine_of(spec)? {
            Some(containers) => {
                let _changing = self.local.changing(call, &spec.service).await?;
                containers.stop(call, spec, chosen, old, retain).await.map_err(of_here)?
            }
            None => self.local.stop(call, spec, chosen, old, retain).await?,
        };
        self.instances(call, spec, instances).await
    }

    pub(crate) async fn remove(&self, call: Call<'_>, service: &ServiceName) -> Result<Reply, Fault> {
        let mut count = 0;
        if let Some(containers) = &self.containers {
            let _changing = self.local.changing(call, service).await?;
            count += containers.remove(call, service).await.map_err(of_here)?;
        }
        count += self.local.remove(call, service).await?;
        self.local.prune_uploads();
        Ok(Reply::Count { count })
    }

    pub(crate) async fn exec(
        &self,
        call: Call<'_>,
        spec: &ReleaseSpec,
        instance: &Instance,
        run: &RunAction,
    ) -> Result<Reply, Fault> {
        let outputs = match self.engine_of(spec)? {
            Some(containers) => containers.exec(call, spec, instance, run).await.map_err(of_here)?,
            None => self.local.exec(call, spec, instance, run).await?,
        };
        Ok(Reply::Outputs { outputs })
    }

    /// Of a process, and if none has that name, of a container.
    pub(crate) async fn logs(
        &self,
        call: Call<'_>,
        service: &ServiceName,
        instance: &Instance,
        lines: usize,
    ) -> Result<Reply, Fault> {
        let lines = match (self.local.logs(call, service, instance, lines).await, &self.containers) {
            (Err(fault), Some(containers)) if fault.kind == "log-missing" => {
                containers.logs(call, service, instance, lines).await.map_err(of_here)?
            }
            (answer, _) => answer?,
        };
        Ok(Reply::Lines { lines })
    }
}

/// What the engine's own target says, where it is about a setting that has another name on machines.
fn of_here(fault: Fault) -> Fault {
    match fault.kind.as_str() {
        "engine-unreachable" => fault.help(
            "start Docker there (`systemctl start docker`), or say with `engine` of the target where it answers",
        ),
        "engine-forbidden" => fault.help(
            "let the user on that machine join the group `docker`, or set `sudo = true` of the target",
        ),
        _ => fault,
    }
}

/// Where Docker's own command line keeps its configuration on this machine, for the user that the agent works as.
fn docker_config() -> PathBuf {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("DOCKER_CONFIG")
        .or_else(|| set("HOME").map(|home| home.join(".docker")))
        .unwrap_or_else(|| PathBuf::from("/root/.docker"))
}
