//! Writing Deployments: server-side, at the version that was read, under the newest lock.

use crate::client::Session;
use crate::manifest::{self, EPOCH, MANAGER, SERVICE, Wanted};
use crate::target::Kubernetes;
use cdpipe_model::ports::{Call, expose};
use cdpipe_model::release::ReleaseSpec;
use cdpipe_model::strategy::RollPolicy;
use cdpipe_model::{Fault, ServiceName, Value};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::{ListParams, Patch, PatchParams};
use serde_json::json;
use std::collections::BTreeMap;

/// Others may write between our look and our change; more often than this is no accident.
const TRIES: usize = 20;
/// Templates that the platform keeps.
const REVISIONS: u32 = 5;

pub(crate) fn deployments(session: &Session<'_>) -> Api<Deployment> {
    Api::namespaced(session.client(), session.namespace())
}

pub(crate) fn of_service(service: &ServiceName) -> ListParams {
    ListParams::default().labels(&format!("{SERVICE}={service}"))
}

pub(crate) fn stale(deployment: &Deployment, call: Call<'_>) -> Result<(), Fault> {
    let annotations = deployment.metadata.annotations.as_ref();
    let newest: u64 = annotations.and_then(|all| all.get(EPOCH)?.parse().ok()).unwrap_or(0);
    if call.epoch == 0 || call.epoch >= newest {
        return Ok(());
    }
    Err(Fault::new(
        "stale-epoch",
        format!(
            "the lock was taken by someone else since (epoch {newest}, ours is {}): nothing was changed",
            call.epoch
        ),
    )
    .help("a newer run owns this service: look at `cdpipe status`"))
}

pub(crate) fn what(spec: &ReleaseSpec) -> String {
    format!("{} {} ({})", spec.service, spec.version, spec.id())
}

pub(crate) fn replicas(deployment: &Deployment) -> u32 {
    let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    u32::try_from(wanted).unwrap_or(0)
}

pub(crate) fn name_of(deployment: &Deployment) -> &str {
    deployment.metadata.name.as_deref().unwrap_or_default()
}

/// Has a Deployment that was just read have so many pods. It is no apply: whoever else says how many there are would be in its way.
async fn scale(session: &Session<'_>, deployment: &Deployment, count: u32) -> Result<Deployment, Fault> {
    let (api, name) = (deployments(session), name_of(deployment));
    let patch = Patch::Merge(json!({
        "metadata": {"resourceVersion": deployment.metadata.resource_version},
        "spec": {"replicas": count},
    }));
    let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
    session.ask(&format!("scale the Deployment {name}"), || api.patch(name, &params, &patch)).await
}

/// Has a Deployment have at most so many pods; one that is gone has none.
pub(crate) async fn scale_down(session: &Session<'_>, name: &str, count: u32) -> Result<(), Fault> {
    let api = deployments(session);
    let mut last = None;
    for _ in 0..TRIES {
        let seen = session.ask(&format!("read the Deployment {name}"), || api.get_opt(name)).await?;
        let Some(seen) = seen.filter(|seen| replicas(seen) > count) else { return Ok(()) };
        stale(&seen, session.call)?;
        match scale(session, &seen, count).await {
            Ok(_) => return Ok(()),
            Err(fault) if fault.kind == "conflict" => last = Some(fault),
            Err(fault) => return Err(fault),
        }
    }
    Err(last.unwrap_or_else(|| Fault::new("conflict", format!("the Deployment {name} changes all the time"))))
}

impl Kubernetes {
    /// Applies the Secret of a release, if it has secrets.
    pub(crate) async fn apply_secret(&self, session: &Session<'_>, spec: &ReleaseSpec) -> Result<(), Fault> {
        let mut values = BTreeMap::new();
        for (name, value) in spec.env.iter().filter(|(_, value)| matches!(value, Value::Secret(_))) {
            values.insert(name.clone(), expose(value, session.call.secrets).await?);
        }
        if values.is_empty() {
            return Ok(());
        }
        let secrets: Api<Secret> = Api::namespaced(session.client(), session.namespace());
        let (name, patch) = (manifest::side_name(spec), Patch::Apply(manifest::secret(spec, &values)));
        let params = PatchParams::apply(MANAGER).force();
        session
            .ask(&format!("apply the Secret {name}"), || secrets.patch(&name, &params, &patch))
            .await
            .map(drop)
    }

    /// Applies a Deployment at the version at which `decide` saw it. `decide` answers `None` where nothing is to be done.
    /// Answers what is there then.
    pub(crate) async fn apply(
        &self,
        session: &Session<'_>,
        spec: &ReleaseSpec,
        name: &str,
        policy: Option<&RollPolicy>,
        decide: impl Fn(Option<&Deployment>) -> Result<Option<u32>, Fault>,
    ) -> Result<Option<Deployment>, Fault> {
        let api = deployments(session);
        let mut last = None;
        for _ in 0..TRIES {
            let seen = session.ask(&format!("read the Deployment {name}"), || api.get_opt(name)).await?;
            if let Some(seen) = &seen {
                stale(seen, session.call)?;
            }
            let Some(count) = decide(seen.as_ref())? else { return Ok(seen) };
            // How many there are may be another's to say, an autoscaler's for one: it is written beside the rest only as it is.
            let there = seen.as_ref().map_or(count, replicas);
            let wanted = Wanted {
                name,
                replicas: there,
                policy,
                retain: REVISIONS,
                epoch: session.call.epoch,
                resource_version: seen.and_then(|seen| seen.metadata.resource_version),
            };
            let patch = Patch::Apply(manifest::deployment(spec, &wanted)?);
            let params = PatchParams::apply(MANAGER);
            match session
                .ask(&format!("apply the Deployment {name}"), || api.patch(name, &params, &patch))
                .await
            {
                Ok(applied) if there == count => return Ok(Some(applied)),
                Ok(applied) => match scale(session, &applied, count).await {
                    Ok(scaled) => return Ok(Some(scaled)),
                    Err(fault) if fault.kind == "conflict" => last = Some(fault),
                    Err(fault) => return Err(fault),
                },
                Err(fault) if fault.kind == "conflict" => last = Some(fault),
                Err(fault) => return Err(fault),
            }
        }
        Err(last
            .unwrap_or_else(|| Fault::new("conflict", format!("the Deployment {name} changes all the time"))))
    }
}
