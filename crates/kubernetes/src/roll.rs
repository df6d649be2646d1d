//! The workload that the platform rolls by itself.

use crate::client::Session;
use crate::follow::{Follow, Seen};
use crate::found::{self, fence, has, instances, is_ready};
use crate::given;
use crate::kind::{self, Kind, Workload, progress};
use crate::pods::{self, Pace, Patience};
use crate::scale;
use crate::steps::delete;
use crate::target::Kubernetes;
use crate::workload::{Count, of_service, stale, what};
use cdpipe_model::Fault;
use cdpipe_model::observe::Instance;
use cdpipe_model::ports::Call;
use cdpipe_model::release::ReleaseSpec;
use cdpipe_model::strategy::RollPolicy;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DeleteParams, Preconditions};
use std::time::Duration;
use tokio::time::Instant;

impl Kubernetes {
    pub(crate) async fn roll_now(
        &self,
        call: Call<'_>,
        spec: &ReleaseSpec,
        count: u32,
        policy: &RollPolicy,
        seen: Option<u64>,
    ) -> Result<Vec<Instance>, Fault> {
        let session = self.cluster.session(call).await?;
        self.apply_secret(&session, spec).await?;
        self.apply_companions(&session, spec).await?;
        let (kind, name) = given::place(spec)?;
        let named = kind::get(&session, kind, &name).await?;
        let is_scaled = scale::wanted(&session, named.iter().collect()).await?.is_some();
        let count_of = |there: Option<&Workload>| match given::scales_itself(spec) {
            true => Count::AsItScales,
            false if is_scaled && there.is_some() => Count::AsItScales,
            false => Count::Exactly(count),
        };
        let applied = self
            .apply(&session, spec, (kind, &name), Some(policy), |there| {
                if let Some(there) = there
                    && !has(there, spec)
                    && seen.is_some_and(|seen| seen != fence(there))
                {
                    return Err(Fault::new(
                        "moved",
                        format!("someone else has changed the {} since it was looked at", there.title()),
                    )
                    .help("see who did (`kubectl rollout history`), then run again"));
                }
                Ok(Some(count_of(there)))
            })
            .await?;
        let roll = Roll { spec, kind, name: &name, policy, applied };
        let instances = self.await_rolled(&session, &roll).await?;
        Self::end_others(&session, spec, (kind, &name)).await?;
        Ok(instances)
    }

    /// Another strategy may have left Deployments of single releases: what rolls has taken their place.
    async fn end_others(
        session: &Session<'_>,
        spec: &ReleaseSpec,
        (kind, name): (Kind, &str),
    ) -> Result<(), Fault> {
        let place = (kind, name.to_owned());
        for other in found::workloads(session, &of_service(&spec.service), Some(&place)).await? {
            let is_it = other.kind == kind && other.name() == name;
            if !is_it && other.replicas() > 0 {
                stale(&other, session.call)?;
                delete(session, other.kind, other.name()).await?;
            }
        }
        Ok(())
    }

    /// Waits until the workload has this release and no other pods.
    async fn await_rolled(&self, session: &Session<'_>, roll: &Roll<'_>) -> Result<Vec<Instance>, Fault> {
        let spec = roll.spec;
        let title = format!("{} {}", roll.kind.as_str(), roll.name);
        let gone = || Fault::new("moved", format!("the {title} was deleted while it was rolling"));
        let mut pace = Pace::default();
        let (mut follow, mut there) = match &roll.applied {
            Some(applied) => (Follow::written(session, applied), Box::new(applied.clone())),
            None => {
                let mut follow = Follow::new(session, roll.kind, roll.name);
                let Seen::As(there) = follow.read(session).await? else { return Err(gone()) };
                (follow, there)
            }
        };
        let applied = roll.applied.as_ref().map(fence);
        let mut patience = Patience::default();
        let mut told = String::new();
        let mut moved_on = Instant::now();
        loop {
            stale(&there, session.call)?;
            let others = !given::is_found(spec) && !has(&there, spec);
            if others || applied.is_some_and(|applied| applied != fence(&there)) {
                return Err(Fault::new(
                    "moved",
                    format!("someone else has changed the {title} while it was rolling"),
                )
                .help("see who did (`kubectl rollout history`), then run again"));
            }
            // An autoscaler may change its mind meanwhile.
            let count = there.replicas();
            let progress = progress(&there, count);
            if progress.done {
                return Ok(instances(&found::pods_of(session, spec).await?, spec));
            }
            if told != progress.text {
                session.call.sink.progress(&progress.text);
                told = progress.text;
                pace.gets_on();
                moved_on = Instant::now();
            }
            if let Some(why) = patience.refused(progress.refused) {
                return Err(Fault::new("not-ready", format!("{} gets no pods: {why}", what(spec)))
                    .help("a quota or an admission rule stands in the way; `kubectl describe replicaset` shows more"));
            }
            // Only a Deployment has a deadline of its own. Its verdict may be that of the template of before, which stays until pods of the
            // new one come: it counts once it has not got on for as long here, too.
            let says_so = roll.kind != Kind::Deployment || progress.too_slow;
            let late = says_so && moved_on.elapsed() >= roll.within();
            // What keeps it from getting on only its pods tell.
            if late || pace.is_over() {
                let pods = found::pods_of(session, spec).await?;
                if let Some(hopeless) = patience.judge(&pods, spec, 0) {
                    return Err(pods::not_ready(session, &self.masker, &what(spec), &hopeless).await);
                }
                if late {
                    return Err(pods::too_slow(session, &self.masker, &what(spec), spec, &pods, count).await);
                }
                if roll.kind == Kind::StatefulSet {
                    Self::end_broken(session, &there, spec).await?;
                }
                pace.looked(pods.len());
            }
            match follow.next(session, pace.left()).await? {
                Seen::As(now) => there = now,
                Seen::Gone => return Err(gone()),
                Seen::Same => {}
            }
        }
    }

    /// A StatefulSet waits for a pod that is not ready, also where it is one of another release that never will be: its controller
    /// does not replace it, so we end it.
    async fn end_broken(session: &Session<'_>, there: &Workload, spec: &ReleaseSpec) -> Result<(), Fault> {
        let pods = found::pods(session, &of_service(&spec.service)).await?;
        let owner = there.metadata.uid.as_ref();
        let broken = pods.iter().filter(|pod| {
            pod.metadata.owner_references.iter().flatten().any(|one| Some(&one.uid) == owner)
                && pod.metadata.deletion_timestamp.is_none()
                && !found::belongs(pod, spec)
                && !is_ready(pod)
                && pods::hopeless(pod).is_some()
        });
        let api: Api<Pod> = Api::namespaced(session.client(), session.namespace());
        for pod in broken {
            let name = pod.metadata.name.as_deref().unwrap_or_default();
            let preconditions = Preconditions { uid: pod.metadata.uid.clone(), resource_version: None };
            let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
            match session.ask_for(&format!("end the pod {name}"), || api.delete(name, &params)).await {
                // It is another one by now.
                Err(fault) if fault.kind != "conflict" => return Err(fault),
                _ => {}
            }
        }
        Ok(())
    }
}

/// What is rolled, and how.
struct Roll<'a> {
    spec: &'a ReleaseSpec,
    kind: Kind,
    name: &'a str,
    policy: &'a RollPolicy,
    /// As it was written.
    applied: Option<Workload>,
}

impl Roll<'_> {
    /// How long nothing may change.
    fn within(&self) -> Duration {
        let within = self.spec.health.iter().map(|health| health.within_ms).max().unwrap_or(60_000);
        let drain = self.spec.drain_ms;
        Duration::from_millis(within + drain + self.policy.monitor_ms)
    }
}
