//! A Deployment for each release, which cdpipe itself brings up, waits for and takes down.

use crate::canary::{self, made_by};
use crate::client::Session;
use crate::follow::{Follow, Seen};
use crate::found::{self, Found, belongs, has, instances};
use crate::given;
use crate::kind::{Kind, Workload, progress};
use crate::manifest;
use crate::pods::{self, Pace, Patience};
use crate::scale;
use crate::target::{Kubernetes, POLL};
use crate::workload::{Count, of_service, scale_down, stale, what};
use cdpipe_model::observe::Instance;
use cdpipe_model::ports::Call;
use cdpipe_model::release::ReleaseSpec;
use cdpipe_model::strategy::OldRelease;
use cdpipe_model::{Fault, ServiceName, Value};
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
        self.apply_companions(&session, spec).await?;
        // The workload that rolls may have this release: then it is healed there.
        let (kind, name) = self.place_of(&session, spec).await?;
        if !extra.is_empty() {
            self.ensure_canary(&session, spec, count, extra).await?;
            return Ok(instances(&found::pods_of(&session, spec).await?, spec));
        }
        let applied = self
            .apply(&session, spec, (kind, &name), None, |there| {
                let has = there.map_or(0, Workload::replicas);
                Ok(Some(match given::scales_itself(spec) && (has > 0 || kind == Kind::DaemonSet) {
                    true => Count::AsItScales,
                    false => Count::Exactly(has.max(count)),
                }))
            })
            .await?;
        if let Some(applied) =
            applied.filter(|_| kind == Kind::Deployment && name == manifest::side_name(spec))
        {
            scale::copy(&session, spec, &applied).await?;
        }
        Ok(instances(&found::pods_of(&session, spec).await?, spec))
    }

    pub(crate) async fn await_ready_now(
        &self,
        call: Call<'_>,
        spec: &ReleaseSpec,
        count: u32,
        may_fail: u32,
    ) -> Result<Vec<Instance>, Fault> {
        let session = self.cluster.session(call).await?;
        let within = spec.health.iter().map(|health| health.within_ms).max().unwrap_or(60_000);
        let ends = Instant::now() + Duration::from_millis(within);
        let (kind, name) = self.place_of(&session, spec).await?;
        let (mut follow, mut pace) = (Follow::new(&session, kind, &name), Pace::default());
        let mut there = follow.read(&session).await?;
        let mut patience = Patience::default();
        let mut told = String::new();
        let is_scaled = match &there {
            Seen::As(one) => scale::wanted(&session, vec![one]).await?.is_some(),
            Seen::Gone | Seen::Same => false,
        };
        let given = count;
        // Of how many readiness was told by the workload when its pods were looked at last.
        let mut looked_at = None;
        loop {
            let (said, has, why) = match &there {
                Seen::As(one) => (one.ready(), one.replicas(), progress(one, 0).refused),
                Seen::Gone | Seen::Same => (0, 0, None),
            };
            // An autoscaler may have said meanwhile that fewer are enough.
            let count = match given::scales_itself(spec) {
                true if has > 0 => has,
                false if is_scaled && has > 0 => given.min(has),
                _ => given,
            };
            let enough = count.saturating_sub(may_fail);
            // Pods of a canary are another Deployment's.
            let may_be_enough = said >= enough.min(has.max(1));
            let is_late = Instant::now() >= ends;
            if looked_at.is_none() || is_late || pace.is_over() || (may_be_enough && looked_at != Some(said))
            {
                let pods = found::pods_of(&session, spec).await?;
                let found = instances(&pods, spec);
                let ready = found.iter().filter(|instance| instance.ready).count();
                if ready >= enough as usize {
                    return Ok(found);
                }
                if let Some(hopeless) = patience.judge(&pods, spec, may_fail) {
                    return Err(pods::not_ready(&session, &self.masker, &what(spec), &hopeless).await);
                }
                if is_late {
                    return Err(pods::too_slow(&session, &self.masker, &what(spec), spec, &pods, count).await);
                }
                looked_at = Some(said);
                pace.looked(pods.len());
            }
            let text = format!("{said} of {count} pods are ready");
            if told != text {
                call.sink.progress(&text);
                told = text;
            }
            if let Some(why) = patience.refused(why) {
                return Err(Fault::new("not-ready", format!("{} gets no pods: {why}", what(spec))).help(
                    "a quota or an admission rule stands in the way; `kubectl describe replicaset` shows more",
                ));
            }
            let pause = pace.left().min(ends.saturating_duration_since(Instant::now()));
            match follow.next(&session, pause).await? {
                Seen::Same => {}
                now => there = now,
            }
        }
    }

    /// The workload that has this release: its own, or the one that rolls.
    async fn place_of(&self, session: &Session<'_>, spec: &ReleaseSpec) -> Result<(Kind, String), Fault> {
        let name = spec.platform_name.as_deref();
        let workloads = match given::is_found(spec) {
            true => self.found(session, &spec.service, name).await?.0.workloads,
            false => {
                let place = self.rolls_at(&spec.service, name);
                found::workloads(session, &of_service(&spec.service), place.as_ref()).await?
            }
        };
        match workloads.iter().find(|one| has(one, spec) && !canary::makes(one)) {
            Some(one) => Ok((one.kind, one.name().to_owned())),
            None => beside(spec),
        }
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
        let (found, _) = self.found(&session, &spec.service, spec.platform_name.as_deref()).await?;
        for workload in found.of(spec) {
            stale(workload, call)?;
        }
        if !going.is_empty() && old.is_none() {
            return self.shrink(&session, spec, &found, going).await;
        }
        self.end_canary(&session, spec, &found).await?;
        let ours = found.of(spec).filter(|one| !canary::makes(one));
        let places: Vec<(Kind, String)> = ours.map(|one| (one.kind, one.name().to_owned())).collect();
        let remove = old == Some(OldRelease::Remove);
        for (kind, name) in &places {
            if remove || *kind == Kind::DaemonSet {
                delete(&session, *kind, name).await?;
            } else {
                self.apply(&session, spec, (*kind, name), None, |there| {
                    Ok(there.filter(|there| there.replicas() > 0).map(|_| Count::Exactly(0)))
                })
                .await?;
            }
        }
        self.await_gone(&session, spec, |left| left.is_empty()).await?;
        if remove {
            delete_secret(&session, spec).await?;
        }
        // What is removed takes no place among those that are kept.
        prune(&session, spec, if remove { retain } else { retain.max(1) - 1 }).await?;
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
        let mut left = there.len().saturating_sub(going.len());
        let mine = || found.pods.iter().filter(|pod| belongs(pod, spec) && found::goes_on(pod));
        for one in found.of(spec) {
            let has = made_by(one, spec, mine());
            let stay = has.saturating_sub(made_by(one, spec, found.pods.iter().filter(is_going)));
            let wanted = u32::try_from(stay).unwrap_or(u32::MAX);
            match canary::makes(one) {
                _ if stay == has => {}
                true if stay == 0 => self.end_canary(session, spec, found).await?,
                // Its template has variables that nobody knows here.
                true => scale_down(session, one.name(), wanted).await?,
                // Whatever scales it has the last word.
                false if given::scales_itself(spec) => left += has - stay,
                false => {
                    let decide = |there: Option<&Workload>| {
                        Ok(there.filter(|there| there.replicas() > wanted).map(|_| Count::Exactly(wanted)))
                    };
                    self.apply(session, spec, (one.kind, one.name()), None, decide).await?;
                }
            }
        }
        self.await_gone(session, spec, |there| there.len() <= left).await
    }

    /// Waits until no more pods of a release are there than `enough` says, also none that are on their way out.
    async fn await_gone(
        &self,
        session: &Session<'_>,
        spec: &ReleaseSpec,
        enough: impl Fn(&[Pod]) -> bool,
    ) -> Result<Vec<Instance>, Fault> {
        loop {
            let pods = found::pods_of(session, spec).await?;
            if enough(&pods) {
                return Ok(instances(&pods, spec));
            }
            session.call.sink.progress(&format!("{} pods are there still", pods.len()));
            session.pause(POLL).await?;
        }
    }

    pub(crate) async fn remove_now(&self, call: Call<'_>, service: &ServiceName) -> Result<usize, Fault> {
        let session = self.cluster.session(call).await?;
        let (found, _) = Found::read(&session, service, None, None, false).await?;
        for workload in &found.workloads {
            stale(workload, call)?;
            delete(&session, workload.kind, workload.name()).await?;
        }
        let params = of_service(service);
        let secrets: Api<Secret> = Api::namespaced(session.client(), session.namespace());
        let ours = session.ask("list Secrets", || secrets.list(&params)).await?.items;
        for secret in ours.into_iter().filter(|secret| manifest::is_ours(secret.metadata.labels.as_ref())) {
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

/// Where a release stands beside others.
fn beside(spec: &ReleaseSpec) -> Result<(Kind, String), Fault> {
    let (kind, name) = given::place(spec)?;
    if given::is_found(spec) {
        return Ok((kind, name));
    }
    if kind != Kind::Deployment {
        return Err(Fault::new(
            "artifact-unfit",
            format!("two releases side by side are two Deployments, and {} {name} is none", kind.as_str()),
        )
        .help(format!("deploy {} by `rolling`, which the cluster does by itself", spec.service)));
    }
    Ok((kind, manifest::side_name(spec)))
}

pub(crate) async fn delete(session: &Session<'_>, kind: Kind, name: &str) -> Result<(), Fault> {
    let (api, params) = (kind.api(session), DeleteParams::background());
    session
        .ask_for(&format!("delete the {} {name}", kind.as_str()), || api.delete(name, &params))
        .await
        .map(drop)
}

async fn delete_secret(session: &Session<'_>, spec: &ReleaseSpec) -> Result<(), Fault> {
    if !spec.env.values().any(|value| matches!(value, Value::Secret(_))) {
        return Ok(());
    }
    let secrets: Api<Secret> = Api::namespaced(session.client(), session.namespace());
    let (name, params) = (manifest::side_name(spec), DeleteParams::default());
    session.ask_for(&format!("delete the Secret {name}"), || secrets.delete(&name, &params)).await.map(drop)
}

/// Deletes kept releases beside the one that was stopped, with their secrets, the oldest first, until `retain` are left.
async fn prune(session: &Session<'_>, stopped: &ReleaseSpec, retain: u32) -> Result<(), Fault> {
    let (api, params) = (Kind::Deployment.api(session), of_service(&stopped.service));
    let listed = session.ask("list Deployments", || api.list(&params)).await?.items;
    let mut kept = Vec::new();
    for one in listed {
        let one = Workload::read(Kind::Deployment, one)?;
        if one.replicas() == 0 && !has(&one, stopped) {
            kept.push(one);
        }
    }
    kept.sort_by_key(|one| one.metadata.creation_timestamp.as_ref().map(|at| at.0));
    let beyond = kept.len().saturating_sub(retain as usize);
    for one in kept.iter().take(beyond) {
        stale(one, session.call)?;
        delete(session, Kind::Deployment, one.name()).await?;
        if let Some(spec) = found::spec_of(&one.template) {
            delete_secret(session, &spec).await?;
        }
    }
    Ok(())
}
