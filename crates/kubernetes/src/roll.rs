//! The Deployment that the platform rolls by itself.

use crate::client::Session;
use crate::follow::{Follow, Seen};
use crate::found::{self, Found, fence, instances, release_of, template};
use crate::manifest;
use crate::pods::{self, Pace, Patience, of_release};
use crate::scale;
use crate::steps::delete;
use crate::target::Kubernetes;
use crate::workload::{deployments, name_of, of_service, replicas, stale, what};
use cdpipe_model::Fault;
use cdpipe_model::observe::Instance;
use cdpipe_model::ports::Call;
use cdpipe_model::release::ReleaseSpec;
use cdpipe_model::strategy::RollPolicy;
use k8s_openapi::api::apps::v1::Deployment;

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
        let name = manifest::rolling_name(&spec.service, spec.platform_name.as_deref());
        let id = spec.id();
        let all = Found::read(&session, &spec.service).await?.deployments;
        let named: Vec<&Deployment> = all.iter().filter(|one| name_of(one) == name).collect();
        let is_scaled = scale::wanted(&session, named).await?.is_some();
        let applied = self
            .apply(&session, spec, &name, Some(policy), |there| {
                let Some(there) = there else { return Ok(Some(count)) };
                let ours = release_of(template(there)).as_ref() == Some(&id);
                if !ours && seen.is_some_and(|seen| seen != fence(there)) {
                    return Err(Fault::new(
                        "moved",
                        format!("someone else has changed the Deployment {name} since it was looked at"),
                    )
                    .help("see who did (`kubectl rollout history`), then run again"));
                }
                Ok(Some(if is_scaled { replicas(there) } else { count }))
            })
            .await?;
        let instances = self.await_rolled(&session, spec, &name, applied.as_ref().map(fence)).await?;
        Self::end_others(&session, spec, &name).await?;
        Ok(instances)
    }

    /// Another strategy may have left Deployments of single releases: what rolls has taken their place.
    async fn end_others(session: &Session<'_>, spec: &ReleaseSpec, name: &str) -> Result<(), Fault> {
        let (api, params) = (deployments(session), of_service(&spec.service));
        let all = session.ask("list Deployments", || api.list(&params)).await?.items;
        for other in all.iter().filter(|one| name_of(one) != name && replicas(one) > 0) {
            stale(other, session.call)?;
            delete(session, name_of(other)).await?;
        }
        Ok(())
    }

    /// Waits until the Deployment has this release and no other pods.
    async fn await_rolled(
        &self,
        session: &Session<'_>,
        spec: &ReleaseSpec,
        name: &str,
        applied: Option<u64>,
    ) -> Result<Vec<Instance>, Fault> {
        let (id, mine) = (spec.id(), of_release(spec));
        let gone = || Fault::new("moved", format!("the Deployment {name} was deleted while it was rolling"));
        let (mut follow, mut pace) = (Follow::<Deployment>::new(session, name), Pace::default());
        let Seen::As(mut there) = follow.read(session).await? else { return Err(gone()) };
        let mut patience = Patience::default();
        let mut told = String::new();
        loop {
            stale(&there, session.call)?;
            if release_of(template(&there)).as_ref() != Some(&id)
                || applied.is_some_and(|applied| applied != fence(&there))
            {
                return Err(Fault::new(
                    "moved",
                    format!("someone else has changed the Deployment {name} while it was rolling"),
                )
                .help("see who did (`kubectl rollout history`), then run again"));
            }
            // An autoscaler may change its mind meanwhile.
            let count = replicas(&there);
            let progress = progress(&there, count);
            if progress.done {
                return Ok(instances(&found::pods(session, &mine).await?, spec));
            }
            if told != progress.text {
                session.call.sink.progress(&progress.text);
                told = progress.text;
                pace.gets_on();
            }
            if let Some(why) = patience.refused(progress.refused) {
                return Err(Fault::new("not-ready", format!("{} gets no pods: {why}", what(spec)))
                    .help("a quota or an admission rule stands in the way; `kubectl describe replicaset` shows more"));
            }
            // What keeps it from getting on only its pods tell.
            if progress.too_slow || pace.is_over() {
                let pods = found::pods(session, &mine).await?;
                if let Some(hopeless) = patience.judge(&pods, &id, 0) {
                    return Err(pods::not_ready(session, &self.masker, &what(spec), &hopeless).await);
                }
                if progress.too_slow {
                    return Err(pods::too_slow(session, &self.masker, &what(spec), &id, &pods, count).await);
                }
                pace.looked();
            }
            match follow.next(session, pace.left()).await? {
                Seen::As(now) => there = now,
                Seen::Gone => return Err(gone()),
                Seen::Same => {}
            }
        }
    }
}

/// How far the controller of a Deployment says it is.
pub(crate) struct Progress {
    pub(crate) done: bool,
    too_slow: bool,
    /// Pods can't be made.
    pub(crate) refused: Option<String>,
    text: String,
}

pub(crate) fn progress(deployment: &Deployment, count: u32) -> Progress {
    let wanted = i32::try_from(count).unwrap_or(i32::MAX);
    let status = deployment.status.clone().unwrap_or_default();
    let seen = status.observed_generation.unwrap_or(0) >= deployment.metadata.generation.unwrap_or(0);
    let number = |count: Option<i32>| count.unwrap_or(0);
    let (updated, all, available) =
        (number(status.updated_replicas), number(status.replicas), number(status.available_replicas));
    let condition = |kind: &str, value: &str| {
        let conditions = status.conditions.iter().flatten();
        seen.then(|| conditions.into_iter().find(|one| one.type_ == kind && one.status == value)).flatten()
    };
    let refused = condition("ReplicaFailure", "True")
        .map(|one| one.message.clone().unwrap_or_else(|| one.reason.clone().unwrap_or_default()));
    let too_slow = condition("Progressing", "False")
        .is_some_and(|one| one.reason.as_deref() == Some("ProgressDeadlineExceeded"));
    Progress {
        done: seen && updated == wanted && all == wanted && available == wanted,
        too_slow,
        refused,
        text: format!(
            "{updated} of {count} pods are new, {available} serve, {} are old",
            (all - updated).max(0)
        ),
    }
}
