//! A Deployment for each release, which cdpipe itself brings up, waits for and takes down.

use crate::canary::{self, made_by};
use crate::client::Session;
use crate::found::{self, Found, instances, is_live, release_of, template};
use crate::manifest;
use crate::pods::{self, Patience};
use crate::roll::progress;
use crate::scale;
use crate::target::{Kubernetes, POLL};
use crate::workload::{deployments, name_of, of_service, replicas, scale_down, stale, what};
use cdpipe_model::observe::Instance;
use cdpipe_model::ports::Call;
use cdpipe_model::release::ReleaseSpec;
use cdpipe_model::strategy::OldRelease;
use cdpipe_model::{Fault, ReleaseId, ServiceName, Value};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, Secret, Service};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::json;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

impl Kubernetes {
    pub(crate) async fn ensure_now(
        &self,
        call: Call<'_>,
        spec: &ReleaseSpec,
        count: u32,
        extra: &BTreeMap<String, Value>,
    ) -> Result<Vec<Instance>, Fault> {
        let session = self.cluster.session(call).await?;
        self.apply_secret(&session, spec).await?;
        let found = Found::read(&session, &spec.service).await?;
        let id = spec.id();
        if !extra.is_empty() {
            self.ensure_canary(&session, spec, count, extra).await?;
            return Ok(Found::read(&session, &spec.service).await?.instances(spec));
        }
        // The Deployment that rolls may have this release: then it is healed there.
        let mut ours = found.of(&id).filter(|one| !canary::makes(one));
        let name = ours.next().map_or_else(|| manifest::side_name(spec), |one| name_of(one).to_owned());
        let applied = self
            .apply(&session, spec, &name, None, |there| {
                let has = there.map_or(0, replicas);
                Ok(Some(has.max(count)))
            })
            .await?;
        if let Some(applied) = applied.filter(|_| name == manifest::side_name(spec)) {
            scale::copy(&session, spec, &applied).await?;
        }
        Ok(Found::read(&session, &spec.service).await?.instances(spec))
    }

    pub(crate) async fn await_ready_now(
        &self,
        call: Call<'_>,
        spec: &ReleaseSpec,
        count: u32,
        may_fail: u32,
    ) -> Result<Vec<Instance>, Fault> {
        let session = self.cluster.session(call).await?;
        let (params, id) = (of_service(&spec.service), spec.id());
        let within = spec.health.iter().map(|health| health.within_ms).max().unwrap_or(60_000);
        let ends = Instant::now() + Duration::from_millis(within);
        let mut patience = Patience::default();
        let mut told = String::new();
        let given = count;
        loop {
            let pods = found::pods(&session, &params).await?;
            let found = instances(&pods, spec);
            let count = self.fewer(&session, spec, given, found.len()).await?;
            let ready = found.iter().filter(|instance| instance.ready).count();
            if ready >= count.saturating_sub(may_fail) as usize {
                return Ok(found);
            }
            let text = format!("{ready} of {count} pods are ready");
            if told != text {
                call.sink.progress(&text);
                told = text;
            }
            if let Some(hopeless) = patience.judge(&pods, &id, may_fail) {
                return Err(pods::not_ready(&session, &self.masker, &what(spec), &hopeless).await);
            }
            if let Some(why) = patience.refused(self.refused(&session, spec, &id).await?) {
                return Err(Fault::new("not-ready", format!("{} gets no pods: {why}", what(spec))).help(
                    "a quota or an admission rule stands in the way; `kubectl describe replicaset` shows more",
                ));
            }
            if Instant::now() >= ends {
                return Err(pods::too_slow(&session, &self.masker, &what(spec), &id, &pods, count).await);
            }
            session.pause(POLL).await?;
        }
    }

    /// How many pods are to be ready: fewer than wanted where an autoscaler has said so meanwhile.
    async fn fewer(
        &self,
        session: &Session<'_>,
        spec: &ReleaseSpec,
        count: u32,
        there: usize,
    ) -> Result<u32, Fault> {
        if there >= count as usize {
            return Ok(count);
        }
        let (api, params, id) = (deployments(session), of_service(&spec.service), spec.id());
        let all = session.ask("list Deployments", || api.list(&params)).await?.items;
        let mine =
            all.iter().filter(|one| release_of(template(one)).as_ref() == Some(&id) && !canary::makes(one));
        Ok(scale::wanted(session, mine.collect()).await?.map_or(count, |wanted| wanted.min(count)))
    }

    /// Why the Deployment of a release can't make pods.
    async fn refused(
        &self,
        session: &Session<'_>,
        spec: &ReleaseSpec,
        id: &ReleaseId,
    ) -> Result<Option<String>, Fault> {
        let (api, params) = (deployments(session), of_service(&spec.service));
        let all = session.ask("list Deployments", || api.list(&params)).await?.items;
        Ok(all
            .iter()
            .filter(|one| release_of(template(one)).as_ref() == Some(id))
            .find_map(|one| progress(one, 0).refused))
    }

    pub(crate) async fn stop_now(
        &self,
        call: Call<'_>,
        spec: &ReleaseSpec,
        going: &[Instance],
        old: Option<OldRelease>,
        retain: u32,
    ) -> Result<Vec<Instance>, Fault> {
        let session = self.cluster.session(call).await?;
        let found = Found::read(&session, &spec.service).await?;
        let id = spec.id();
        for deployment in found.of(&id) {
            stale(deployment, call)?;
        }
        if !going.is_empty() && old.is_none() {
            return self.shrink(&session, spec, &found, going).await;
        }
        self.end_canary(&session, spec, &found).await?;
        let ours = found.of(&id).filter(|one| !canary::makes(one));
        let names: Vec<String> = ours.map(|one| name_of(one).to_owned()).collect();
        let remove = old == Some(OldRelease::Remove);
        for name in &names {
            if remove {
                delete(&session, name).await?;
            } else {
                self.apply(&session, spec, name, None, |there| {
                    Ok(there.filter(|there| replicas(there) > 0).map(|_| 0))
                })
                .await?;
            }
        }
        self.await_gone(&session, spec, |left| left.is_empty()).await?;
        if remove {
            delete_secret(&session, spec).await?;
        }
        prune(&session, &spec.service, &id, retain).await?;
        Ok(Vec::new())
    }

    /// Fewer pods: these go first.
    async fn shrink(
        &self,
        session: &Session<'_>,
        spec: &ReleaseSpec,
        found: &Found,
        going: &[Instance],
    ) -> Result<Vec<Instance>, Fault> {
        let pods: Api<Pod> = Api::namespaced(session.client(), session.namespace());
        let there = found.instances(spec);
        let going: Vec<&Instance> =
            going.iter().filter(|one| there.iter().any(|other| other.id == one.id)).collect();
        let cost =
            json!({"metadata": {"annotations": {"controller.kubernetes.io/pod-deletion-cost": "-100"}}});
        for instance in &going {
            let (name, patch) = (instance.id.as_str(), Patch::Merge(&cost));
            let params = PatchParams::default();
            session.ask_for(&format!("mark the pod {name}"), || pods.patch(name, &params, &patch)).await?;
        }
        let is_going = |pod: &&Pod| {
            let name = pod.metadata.name.as_deref().unwrap_or_default();
            going.iter().any(|instance| instance.id.as_str() == name)
        };
        let id = spec.id();
        for one in found.of(&id) {
            let has = made_by(one, found.pods.iter().filter(|pod| is_live(pod, &id)));
            let stay = has.saturating_sub(made_by(one, found.pods.iter().filter(is_going)));
            let wanted = u32::try_from(stay).unwrap_or(u32::MAX);
            match canary::makes(one) {
                _ if stay == has => {}
                true if stay == 0 => self.end_canary(session, spec, found).await?,
                // Its template has variables that nobody knows here.
                true => scale_down(session, name_of(one), wanted).await?,
                false => {
                    let decide = |there: Option<&Deployment>| {
                        Ok(there.filter(|there| replicas(there) > wanted).map(|_| wanted))
                    };
                    self.apply(session, spec, name_of(one), None, decide).await?;
                }
            }
        }
        let left = there.len().saturating_sub(going.len());
        self.await_gone(session, spec, |there| there.len() <= left).await
    }

    /// Waits until no more pods of a release are there than `enough` says, also none that are on their way out.
    async fn await_gone(
        &self,
        session: &Session<'_>,
        spec: &ReleaseSpec,
        enough: impl Fn(&[&Pod]) -> bool,
    ) -> Result<Vec<Instance>, Fault> {
        let (params, id) = (of_service(&spec.service), spec.id());
        loop {
            let pods = found::pods(session, &params).await?;
            let mine: Vec<&Pod> = pods
                .iter()
                .filter(|pod| {
                    pod.metadata.labels.as_ref().and_then(|all| all.get(manifest::RELEASE)) == Some(&id.0)
                })
                .collect();
            if enough(&mine) {
                return Ok(instances(&pods, spec));
            }
            session.call.sink.progress(&format!("{} pods are there still", mine.len()));
            session.pause(POLL).await?;
        }
    }

    pub(crate) async fn remove_now(&self, call: Call<'_>, service: &ServiceName) -> Result<usize, Fault> {
        let session = self.cluster.session(call).await?;
        let found = Found::read(&session, service).await?;
        for deployment in &found.deployments {
            stale(deployment, call)?;
            delete(&session, name_of(deployment)).await?;
        }
        let params = of_service(service);
        let secrets: Api<Secret> = Api::namespaced(session.client(), session.namespace());
        for secret in session.ask("list Secrets", || secrets.list(&params)).await?.items {
            let name = secret.metadata.name.unwrap_or_default();
            let delete = DeleteParams::default();
            session.ask_for(&format!("delete the Secret {name}"), || secrets.delete(&name, &delete)).await?;
        }
        let routes: Api<Service> = Api::namespaced(session.client(), session.namespace());
        let ours = session.ask("list Services", || routes.list(&params)).await?.items;
        for route in ours.into_iter().filter(|route| manifest::is_ours(route.metadata.labels.as_ref())) {
            let name = route.metadata.name.unwrap_or_default();
            let delete = DeleteParams::default();
            session.ask_for(&format!("delete the Service {name}"), || routes.delete(&name, &delete)).await?;
        }
        while !found::pods(&session, &params).await?.is_empty() {
            session.pause(POLL).await?;
        }
        Ok(found.pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).count())
    }
}

pub(crate) async fn delete(session: &Session<'_>, name: &str) -> Result<(), Fault> {
    let (api, params) = (deployments(session), DeleteParams::background());
    session.ask_for(&format!("delete the Deployment {name}"), || api.delete(name, &params)).await.map(drop)
}

async fn delete_secret(session: &Session<'_>, spec: &ReleaseSpec) -> Result<(), Fault> {
    if !spec.env.values().any(|value| matches!(value, Value::Secret(_))) {
        return Ok(());
    }
    let secrets: Api<Secret> = Api::namespaced(session.client(), session.namespace());
    let (name, params) = (manifest::side_name(spec), DeleteParams::default());
    session.ask_for(&format!("delete the Secret {name}"), || secrets.delete(&name, &params)).await.map(drop)
}

/// Deletes kept releases beside the one that was stopped, the oldest first, until `retain` are left.
async fn prune(
    session: &Session<'_>,
    service: &ServiceName,
    stopped: &ReleaseId,
    retain: u32,
) -> Result<(), Fault> {
    let (api, params) = (deployments(session), of_service(service));
    let mut kept = session.ask("list Deployments", || api.list(&params)).await?.items;
    kept.retain(|one| replicas(one) == 0 && release_of(template(one)).as_ref() != Some(stopped));
    kept.sort_by_key(|one| one.metadata.creation_timestamp.as_ref().map(|at| at.0));
    let beyond = (kept.len() + 1).saturating_sub(retain.max(1) as usize);
    for one in kept.iter().take(beyond) {
        delete(session, name_of(one)).await?;
    }
    Ok(())
}
