//! The target `local`: processes on this machine, reached by the file system.
//!
//! Each instance has a supervisor (see `supervise`) that outlives cdpipe. This side only writes down what should be, starts
//! supervisors, asks them to stop, and reads what they say; it keeps nothing in memory, so any cdpipe can take over from any other.

mod ensure;
mod exec;
mod ready;
mod serve;
mod start;
mod stop;
mod units;

pub use serve::{Changing, Packed, PackedContent, PackedEntry, Serve};
pub use units::Units;

use crate::artifact::{Manifest, Place};
use crate::durable::{FileLock, make_folder};
use crate::lease::Leases;
use crate::mask::Masker;
use crate::runner::Shell;
use crate::state::{EnvironmentState, ReleaseRecord, ReleaseState, ServiceState};
use crate::supervise::log::last_lines;
use cdpipe_model::action::RunAction;
use cdpipe_model::observe::{Instance, Observation, ObservedRelease};
use cdpipe_model::plan::LockKey;
use cdpipe_model::ports::{Call, LockOwner, LockState, PortResult, Target};
use cdpipe_model::release::{Artifact, ReleaseSpec};
use cdpipe_model::strategy::OldRelease;
use cdpipe_model::{EnvName, Fault, ServiceName, Value};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// How supervisors behave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Pause before the first restart; it doubles with each crash in a row.
    pub backoff_first_ms: u64,
    /// Longest pause before a restart.
    pub backoff_max_ms: u64,
    /// A process that ran for so long has not crashed at the start: pauses begin anew.
    pub stable_after_ms: u64,
    /// So many crashes in a row without being ready are a crash loop.
    pub crash_loop: u32,
    /// Size of a log file; two are kept for each instance.
    pub log_limit_bytes: u64,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            backoff_first_ms: 250,
            backoff_max_ms: 30_000,
            stable_after_ms: 30_000,
            crash_loop: 3,
            log_limit_bytes: 8 << 20,
        }
    }
}

impl Policy {
    /// Pause after so many crashes in a row.
    pub(crate) fn backoff(&self, crashes: u32) -> Duration {
        let doubled = 1_u64.checked_shl(crashes.saturating_sub(1)).unwrap_or(u64::MAX);
        Duration::from_millis(self.backoff_first_ms.saturating_mul(doubled).min(self.backoff_max_ms))
    }
}

/// What the local target of one environment needs to know.
#[derive(Debug, Clone)]
pub struct LocalConfig {
    /// Folder for the state of this environment; made if it is not there.
    pub state: PathBuf,
    /// Which environment.
    pub environment: EnvName,
    /// Folder that paths in the pipeline are relative to.
    pub base: PathBuf,
    /// The binary that knows the hidden subcommands of `supervise`: cdpipe itself, or a helper of a test.
    pub supervisor: PathBuf,
    /// How supervisors behave.
    pub policy: Policy,
}

/// Processes on this machine.
#[derive(Debug)]
pub struct Local {
    config: LocalConfig,
    state: EnvironmentState,
    leases: Leases,
    masker: Masker,
    shell: Shell,
    /// Address that instances listen on; loopback if nothing is said.
    listen: Option<IpAddr>,
    /// How it is where it works for a cdpipe on another machine.
    serve: Option<Serve>,
}

impl Local {
    /// The target of one environment. Nothing is touched until it is used.
    pub fn new(config: LocalConfig, masker: Masker) -> Self {
        let state = EnvironmentState::new(config.state.clone());
        let leases = Leases::new(state.locks());
        let shell = Shell::new(masker.clone());
        Self { config, state, leases, masker, shell, listen: None, serve: None }
    }

    async fn remove_service(&self, call: Call<'_>, service: &ServiceName) -> Result<usize, Fault> {
        let state = self.state.service(service)?;
        if !state.folder().exists() {
            return Ok(0);
        }
        let lock = self.change(call, service, &state).await?;
        let mut ended = 0;
        for (release, record) in state.releases()? {
            ended += self.end_release(call, &release, record).await?;
        }
        crate::durable::remove_folder(state.folder())?;
        drop(lock);
        Ok(ended)
    }

    /// Takes the lock under which a service is changed, refuses an owner of before, and clears away what a killed cdpipe left half done.
    async fn change(
        &self,
        call: Call<'_>,
        name: &ServiceName,
        service: &ServiceState,
    ) -> Result<FileLock, Fault> {
        make_folder(&service.releases_folder())?;
        let lock = FileLock::wait(&service.lock(), call.deadline, call.cancel).await?;
        self.fence(call, name)?;
        service.sweep();
        Ok(lock)
    }

    /// Refuses a run whose lock someone else has taken since. Looked at under the lock of the service, so what an owner of before still
    /// writes comes before anything that the new one does, or not at all. Epoch 0 says that the caller works without a lock.
    fn fence(&self, call: Call<'_>, service: &ServiceName) -> Result<(), Fault> {
        let environment = self.config.environment.clone();
        let newest = self.leases.epoch(&LockKey::Service { environment, service: service.clone() })?;
        if call.epoch == 0 || call.epoch >= newest {
            return Ok(());
        }
        Err(Fault::new(
            "stale-epoch",
            format!(
                "the lock of {service} in {} was taken by someone else since (epoch {newest}, ours is {}): nothing was changed",
                self.config.environment, call.epoch
            ),
        )
        .help("a newer run owns this service: look at `cdpipe status`"))
    }

    fn place<'a>(
        &'a self,
        spec: &'a ReleaseSpec,
        files: Option<&'a std::path::Path>,
    ) -> Result<(Place<'a>, &'a [String]), Fault> {
        match &spec.artifact {
            Artifact::Command { argv, path, digest } => Ok((
                Place {
                    base: &self.config.base,
                    written: path.as_deref(),
                    uploaded: self.uploaded(path.as_deref(), digest.as_deref()),
                    copied: files,
                },
                argv,
            )),
            Artifact::Image { .. } | Artifact::Document { .. } => Err(Fault::new(
                "artifact-unfit",
                format!("the target local runs processes, and {} is not made from a `command`", spec.service),
            )
            .help("give the service a `command`, or deploy it to a target that runs containers")),
        }
    }

    fn resolve_now(&self, spec: &ReleaseSpec) -> Result<ReleaseSpec, Fault> {
        if matches!(&spec.artifact, Artifact::Command { digest: Some(_), .. }) {
            // It was made concrete before: a release to go back to. What it was made from may have changed since.
            return match self.release(spec)? {
                Some(_) => Ok(spec.clone()),
                None => Err(Fault::new(
                    "release-gone",
                    format!("release {} of {} is not kept here any more", spec.id(), spec.service),
                )
                .help(
                    "deploy that version again with `cdpipe run`; `retain` says how many releases are kept",
                )),
            };
        }
        let (place, argv) = self.place(spec, None)?;
        let Some(name) = argv.first() else {
            return Err(Fault::new("program-missing", format!("the command of {} is empty", spec.service)));
        };
        // The artifact first: without it the program can't be there either, and that would be the worse message.
        let digest = match place.source() {
            Some(source) => Some(Manifest::of(&source)?.digest()),
            None => None,
        };
        let program = place.program(name)?;
        let digest = match digest {
            Some(digest) => Some(digest),
            // A program of the pipeline's own folder is part of what the release is; one from PATH belongs to the machine.
            None if name.contains('/') => Some(Manifest::of(&program)?.digest()),
            None => None,
        };
        let artifact =
            Artifact::Command { argv: argv.to_vec(), path: place.written.map(str::to_owned), digest };
        Ok(ReleaseSpec { artifact, ..spec.clone() })
    }

    fn observe_now(&self, service: &ServiceName) -> Result<Observation, Fault> {
        let state = self.state.service(service)?;
        let mut releases = Vec::new();
        for (release, record) in state.releases()? {
            let instances = instances(&release)?;
            releases.push(ObservedRelease {
                id: record.spec.id(),
                wanted: record.wanted,
                spec: record.spec,
                instances,
            });
        }
        Ok(Observation { releases, unmanaged: Vec::new(), table: None, fence: None, autoscaled: None })
    }

    /// The release as it is kept here.
    fn release(&self, spec: &ReleaseSpec) -> Result<Option<(ReleaseState, ReleaseRecord)>, Fault> {
        let release = self.state.service(&spec.service)?.release(&spec.id())?;
        Ok(release.record()?.map(|record| (release, record)))
    }
}

/// What runs of a release: those with the environment of the release itself first, then canaries with more, each by number.
fn instances(release: &ReleaseState) -> Result<Vec<Instance>, Fault> {
    let mut found = Vec::new();
    for instance in release.instances()? {
        if let Some(seen) = instance.observe() {
            let is_canary = instance.config().is_some_and(|config| !config.extra_env.is_empty());
            found.push((is_canary, instance.number(), seen));
        }
    }
    found.sort_by_key(|(is_canary, number, _)| (*is_canary, *number));
    Ok(found.into_iter().map(|(_, _, instance)| instance).collect())
}

/// Runs what waits for the disk where it holds up nobody.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Fault> + Send + 'static,
) -> Result<T, Fault> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Fault::new("internal", format!("a task of the local target ended early: {error}"))),
    }
}

impl Target for Local {
    fn resolve<'a>(&'a self, _call: Call<'a>, spec: &'a ReleaseSpec) -> PortResult<'a, ReleaseSpec> {
        Box::pin(async move {
            let this = self.clone_for_task();
            let spec = spec.clone();
            blocking(move || this.resolve_now(&spec)).await
        })
    }

    fn observe<'a>(
        &'a self,
        _call: Call<'a>,
        service: &'a ServiceName,
        _platform_name: Option<&'a str>,
    ) -> PortResult<'a, Observation> {
        Box::pin(async move { self.observe_now(service) })
    }

    fn ensure<'a>(
        &'a self,
        call: Call<'a>,
        spec: &'a ReleaseSpec,
        count: u32,
        extra_env: &'a BTreeMap<String, Value>,
    ) -> PortResult<'a, Vec<Instance>> {
        Box::pin(self.ensure_instances(call, spec, count, extra_env))
    }

    fn await_ready<'a>(
        &'a self,
        call: Call<'a>,
        spec: &'a ReleaseSpec,
        count: u32,
        may_fail: u32,
    ) -> PortResult<'a, Vec<Instance>> {
        Box::pin(self.wait_until_ready(call, spec, count, may_fail))
    }

    fn stop<'a>(
        &'a self,
        call: Call<'a>,
        spec: &'a ReleaseSpec,
        instances: &'a [Instance],
        old: Option<OldRelease>,
        retain: u32,
    ) -> PortResult<'a, Vec<Instance>> {
        Box::pin(self.stop_instances(call, spec, instances, old, retain))
    }

    fn remove<'a>(&'a self, call: Call<'a>, service: &'a ServiceName) -> PortResult<'a, usize> {
        Box::pin(self.remove_service(call, service))
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
        _call: Call<'a>,
        service: &'a ServiceName,
        instance: &'a Instance,
        lines: usize,
    ) -> PortResult<'a, Vec<String>> {
        Box::pin(async move {
            for (release, _) in self.state.service(service)?.releases()? {
                for candidate in release.instances()? {
                    if candidate.config().is_some_and(|config| config.id == instance.id) {
                        return Ok(last_lines(&candidate.log(), lines));
                    }
                }
            }
            Err(Fault::new(
                "log-missing",
                format!("there is no log of instance {} of {service}", instance.id),
            )
            .help("logs go with the instance; `cdpipe status` shows those that are there"))
        })
    }

    fn lock<'a>(
        &'a self,
        call: Call<'a>,
        key: &'a LockKey,
        owner: &'a LockOwner,
        lease: Duration,
    ) -> PortResult<'a, u64> {
        Box::pin(self.leases.take(key, owner, lease, call.deadline, call.cancel))
    }

    fn unlock<'a>(&'a self, call: Call<'a>, key: &'a LockKey, owner: &'a LockOwner) -> PortResult<'a, ()> {
        Box::pin(self.leases.give_back(key, owner, call.deadline, call.cancel))
    }

    fn lock_owner<'a>(&'a self, _call: Call<'a>, key: &'a LockKey) -> PortResult<'a, Option<LockState>> {
        Box::pin(async move { self.leases.owner(key) })
    }
}

impl Local {
    fn clone_for_task(&self) -> Self {
        Self {
            config: self.config.clone(),
            state: self.state.clone(),
            leases: self.leases.clone(),
            masker: self.masker.clone(),
            shell: self.shell.clone(),
            listen: self.listen,
            serve: self.serve.clone(),
        }
    }
}
