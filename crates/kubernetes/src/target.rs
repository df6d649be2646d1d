//! The port `Target`.

use crate::client::Cluster;
use crate::forward::Forwards;
use crate::found::Found;
use crate::workload::deployments;
use crate::{canary, exec, lock, manifest, objects, pods, scale};
use cdpipe_host::Masker;
use cdpipe_model::action::RunAction;
use cdpipe_model::objects::{ApplySpec, ObjectWas, Surveyed};
use cdpipe_model::observe::{Instance, Observation};
use cdpipe_model::plan::LockKey;
use cdpipe_model::ports::{BoxFuture, Call, LockOwner, LockState, PortResult, Probe, Target};
use cdpipe_model::release::{Artifact, ReleaseSpec};
use cdpipe_model::strategy::{OldRelease, RollPolicy};
use cdpipe_model::{Fault, ServiceName, Value};
use kube::api::ListParams;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Between two looks at what the cluster does.
pub(crate) const POLL: Duration = Duration::from_millis(300);

/// Deployments in one namespace of a cluster.
#[derive(Debug)]
pub struct Kubernetes {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) masker: Masker,
    /// Folder of the pipeline's file: paths of manifests are relative to it.
    pub(crate) base: PathBuf,
    /// How pods are reached that can't be reached from here; `None` where they can.
    forwards: Option<Forwards>,
}

impl Kubernetes {
    /// The target. Nothing is asked until it is used.
    pub fn new(cluster: Arc<Cluster>, masker: Masker, base: PathBuf) -> Self {
        Self { cluster, masker, base, forwards: None }
    }

    /// The same, with pods reached through the API server: from where their addresses are not routed.
    #[must_use]
    pub fn forwarding(mut self) -> Self {
        self.forwards = Some(Forwards::default());
        self
    }

    /// Instances with where they are reached from here.
    async fn reached(&self, found: Result<Vec<Instance>, Fault>) -> Result<Vec<Instance>, Fault> {
        let mut found = found?;
        if let Some(forwards) = &self.forwards {
            forwards.reach(&self.cluster, &mut found).await?;
        }
        Ok(found)
    }
}

impl Target for Kubernetes {
    fn resolve<'a>(&'a self, call: Call<'a>, spec: &'a ReleaseSpec) -> PortResult<'a, ReleaseSpec> {
        Box::pin(async move {
            if !matches!(spec.artifact, Artifact::Image { .. }) {
                return Err(Fault::new(
                    "artifact-unfit",
                    format!(
                        "{} is not made from an `image`, and this version makes no pods from anything else",
                        spec.service
                    ),
                )
                .help("give the service an `image`"));
            }
            // Better found here than halfway through.
            let session = self.cluster.session(call).await?;
            let (api, params) = (deployments(&session), ListParams::default().limit(1));
            session.ask("list Deployments", || api.list(&params)).await?;
            Ok(spec.clone())
        })
    }

    fn observe<'a>(
        &'a self,
        call: Call<'a>,
        service: &'a ServiceName,
        platform_name: Option<&'a str>,
    ) -> PortResult<'a, Observation> {
        Box::pin(async move {
            let session = self.cluster.session(call).await?;
            let found = Found::read(&session, service).await?;
            let (api, name) = (deployments(&session), manifest::rolling_name(service, platform_name));
            let named = session.ask(&format!("read the Deployment {name}"), || api.get_opt(&name)).await?;
            let ours = found.deployments.iter().filter(|one| !canary::makes(one));
            let autoscaled = scale::wanted(&session, ours.collect()).await?;
            let mut seen = Observation { autoscaled, ..found.observation(named.as_ref()) };
            if let Some(forwards) = &self.forwards {
                for release in &mut seen.releases {
                    forwards.reach(&self.cluster, &mut release.instances).await?;
                }
            }
            Ok(seen)
        })
    }

    fn ensure<'a>(
        &'a self,
        call: Call<'a>,
        spec: &'a ReleaseSpec,
        count: u32,
        extra_env: &'a BTreeMap<String, Value>,
    ) -> PortResult<'a, Vec<Instance>> {
        Box::pin(async move { self.reached(self.ensure_now(call, spec, count, extra_env).await).await })
    }

    fn await_ready<'a>(
        &'a self,
        call: Call<'a>,
        spec: &'a ReleaseSpec,
        count: u32,
        may_fail: u32,
    ) -> PortResult<'a, Vec<Instance>> {
        Box::pin(async move { self.reached(self.await_ready_now(call, spec, count, may_fail).await).await })
    }

    fn stop<'a>(
        &'a self,
        call: Call<'a>,
        spec: &'a ReleaseSpec,
        instances: &'a [Instance],
        old: Option<OldRelease>,
        retain: u32,
    ) -> PortResult<'a, Vec<Instance>> {
        Box::pin(async move { self.reached(self.stop_now(call, spec, instances, old, retain).await).await })
    }

    fn roll<'a>(
        &'a self,
        call: Call<'a>,
        spec: &'a ReleaseSpec,
        count: u32,
        policy: &'a RollPolicy,
        fence: Option<u64>,
    ) -> PortResult<'a, Vec<Instance>> {
        Box::pin(async move { self.reached(self.roll_now(call, spec, count, policy, fence).await).await })
    }

    fn reach_again<'a>(&'a self, instances: &'a [Instance]) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            if let Some(forwards) = &self.forwards {
                forwards.again(&self.cluster, instances).await;
            }
        })
    }

    fn remove<'a>(&'a self, call: Call<'a>, service: &'a ServiceName) -> PortResult<'a, usize> {
        Box::pin(self.remove_now(call, service))
    }

    fn survey<'a>(&'a self, call: Call<'a>, spec: &'a ApplySpec) -> PortResult<'a, Surveyed> {
        Box::pin(async move { objects::survey(&self.cluster.session(call).await?, &self.base, spec).await })
    }

    fn apply_set<'a>(
        &'a self,
        call: Call<'a>,
        spec: &'a ApplySpec,
        objects: &'a [ObjectWas],
    ) -> PortResult<'a, ()> {
        Box::pin(async move {
            let session = self.cluster.session(call).await?;
            objects::apply(&session, &self.masker, &self.base, spec, objects).await
        })
    }

    fn take_back_set<'a>(
        &'a self,
        call: Call<'a>,
        spec: &'a ApplySpec,
        objects: &'a [ObjectWas],
    ) -> PortResult<'a, ()> {
        Box::pin(async move {
            let session = self.cluster.session(call).await?;
            objects::take_back(&session, &self.masker, spec, objects).await
        })
    }

    fn run_image<'a>(
        &'a self,
        call: Call<'a>,
        run: &'a RunAction,
    ) -> PortResult<'a, BTreeMap<String, String>> {
        Box::pin(self.run_job(call, run))
    }

    fn probe_image<'a>(&'a self, call: Call<'a>) -> BoxFuture<'a, Probe> {
        Box::pin(async move { self.probe_job(call).await.unwrap_or_else(Probe::Unknown) })
    }

    fn stop_image<'a>(&'a self, call: Call<'a>) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            // What could not be ended now is found by its label.
            let _ = self.stop_job(call).await;
        })
    }

    fn exec<'a>(
        &'a self,
        call: Call<'a>,
        _spec: &'a ReleaseSpec,
        instance: &'a Instance,
        run: &'a RunAction,
    ) -> PortResult<'a, BTreeMap<String, String>> {
        Box::pin(async move {
            let session = self.cluster.session(call).await?;
            exec::exec(&session, &self.masker, instance.id.as_str(), run).await
        })
    }

    fn logs<'a>(
        &'a self,
        call: Call<'a>,
        _service: &'a ServiceName,
        instance: &'a Instance,
        lines: usize,
    ) -> PortResult<'a, Vec<String>> {
        Box::pin(async move {
            let session = self.cluster.session(call).await?;
            let lines = i64::try_from(lines).unwrap_or(i64::MAX);
            pods::log(&session, &self.masker, instance.id.as_str(), lines, false).await
        })
    }

    fn lock<'a>(
        &'a self,
        call: Call<'a>,
        key: &'a LockKey,
        owner: &'a LockOwner,
        lease: Duration,
    ) -> PortResult<'a, u64> {
        Box::pin(async move { lock::take(&self.cluster.session(call).await?, key, owner, lease).await })
    }

    fn unlock<'a>(&'a self, call: Call<'a>, key: &'a LockKey, owner: &'a LockOwner) -> PortResult<'a, ()> {
        Box::pin(async move { lock::give_back(&self.cluster.session(call).await?, key, owner).await })
    }

    fn lock_owner<'a>(&'a self, call: Call<'a>, key: &'a LockKey) -> PortResult<'a, Option<LockState>> {
        Box::pin(async move { lock::owner(&self.cluster.session(call).await?, key).await })
    }
}
