//! Writing workloads: server-side, at the version that was read, under the newest lock.

use crate::client::Session;
use crate::found::{self, fence, release_of};
use crate::kind::{self, Kind, Workload};
use crate::manifest::{self, EPOCH, MANAGER, SERVICE, Wanted, is_ours};
use crate::target::Kubernetes;
use crate::{adopt, companions, given};
use cdpipe_model::ports::{Call, expose};
use cdpipe_model::release::ReleaseSpec;
use cdpipe_model::strategy::RollPolicy;
use cdpipe_model::{Fault, ServiceName, Value};
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::{ListParams, Patch, PatchParams};
use kube::core::DynamicObject;
use serde_json::json;
use std::collections::BTreeMap;

/// Others may write between our look and our change; more often than this is no accident.
const TRIES: usize = 20;
/// Templates that the platform keeps.
const REVISIONS: u32 = 5;
/// Failed releases whose ids are kept: `retain` is 100 at most.
const REMEMBERED: usize = 100;

/// Says how many there are to be before whoever scales by itself says it.
const HANDOVER: &str = "cdpipe-replicas";

/// How many pods a workload is to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Count {
    /// So many.
    Exactly(u32),
    /// As many as whatever scales it says.
    AsItScales,
}

pub(crate) fn of_service(service: &ServiceName) -> ListParams {
    ListParams::default().labels(&format!("{SERVICE}={service}"))
}

pub(crate) fn stale(workload: &Workload, call: Call<'_>) -> Result<(), Fault> {
    fenced(&workload.metadata, call)
}

/// Whether our lock is the newest under which this was written.
///
/// # Errors
/// `stale-epoch` if it isn't.
pub(crate) fn fenced(meta: &ObjectMeta, call: Call<'_>) -> Result<(), Fault> {
    let said = meta.annotations.as_ref().and_then(|notes| notes.get(EPOCH));
    let newest: u64 = said.and_then(|epoch| epoch.parse().ok()).unwrap_or(0);
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

/// How many former templates a workload keeps.
fn revisions(there: Option<&Workload>) -> u32 {
    let said = there.and_then(|there| there.spec["revisionHistoryLimit"].as_u64());
    said.and_then(|said| u32::try_from(said).ok()).unwrap_or(REVISIONS)
}

/// The releases that have failed in a workload once `spec` is in it: on the way back that is the one that it has now.
fn failed(there: Option<&Workload>, spec: &ReleaseSpec, policy: Option<&RollPolicy>) -> Vec<String> {
    let Some(there) = there else { return Vec::new() };
    let mut failed = found::failed(there);
    if policy.is_some_and(|policy| policy.undo)
        && let Some(now) = release_of(&there.template)
    {
        failed.retain(|known| *known != now.as_str());
        failed.push(now.to_string());
    }
    failed.retain(|known| *known != spec.id().as_str());
    // No more than templates are kept.
    let beyond = failed.len().saturating_sub(REMEMBERED);
    failed.drain(..beyond);
    failed
}

pub(crate) fn what(spec: &ReleaseSpec) -> String {
    format!("{} {} ({})", spec.service, spec.version, spec.id())
}

/// Has a workload that was just read have so many pods. It is no apply: whoever else says how many there are would be in its way.
async fn scale(session: &Session<'_>, seen: &Workload, count: u32) -> Result<DynamicObject, Fault> {
    let api = seen.kind.api(session);
    let patch = Patch::Merge(json!({
        "metadata": {"resourceVersion": seen.metadata.resource_version},
        "spec": {"replicas": count},
    }));
    let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
    session.ask(&format!("scale the {}", seen.title()), || api.patch(seen.name(), &params, &patch)).await
}

/// Has a workload that was just applied have so many pods, whoever writes other things of it in between. Both writes at one go would
/// hardly ever come through beside somebody who writes all the time.
async fn scale_applied(session: &Session<'_>, applied: Workload, count: u32) -> Result<DynamicObject, Fault> {
    let mut seen = applied;
    for _ in 1..TRIES {
        match scale(session, &seen, count).await {
            Err(fault) if fault.kind == "conflict" => {
                let Some(now) = kind::get(session, seen.kind, seen.name()).await? else { return Err(fault) };
                stale(&now, session.call)?;
                if fence(&now) != fence(&seen) {
                    // Its template is another by now: whether to go on is to be decided anew.
                    return Err(fault);
                }
                seen = now;
            }
            answer => return answer,
        }
    }
    scale(session, &seen, count).await
}

/// Has a Deployment have at most so many pods; one that is gone has none.
pub(crate) async fn scale_down(session: &Session<'_>, name: &str, count: u32) -> Result<(), Fault> {
    let mut last = None;
    for _ in 0..TRIES {
        let seen = kind::get(session, Kind::Deployment, name).await?;
        let Some(seen) = seen.filter(|seen| seen.replicas() > count) else { return Ok(()) };
        stale(&seen, session.call)?;
        match scale(session, &seen, count).await {
            Ok(_) => return Ok(()),
            Err(fault) if fault.kind == "conflict" => last = Some(fault),
            Err(fault) => return Err(fault),
        }
    }
    Err(last.unwrap_or_else(|| Fault::new("conflict", format!("the Deployment {name} changes all the time"))))
}

/// Whether the Secret of a release is there.
async fn has_secret(session: &Session<'_>, spec: &ReleaseSpec) -> Result<bool, Fault> {
    let secrets: Api<Secret> = Api::namespaced(session.client(), session.namespace());
    let name = manifest::side_name(spec);
    let params = of_service(&spec.service);
    let there = session.ask("list Secrets", || secrets.list_metadata(&params)).await?.items;
    Ok(there.into_iter().any(|one| one.metadata.name.as_deref() == Some(&name)))
}

impl Kubernetes {
    /// Applies the Secret of a release, if it has secrets.
    pub(crate) async fn apply_secret(&self, session: &Session<'_>, spec: &ReleaseSpec) -> Result<(), Fault> {
        let mut values = BTreeMap::new();
        for (name, value) in spec.env.iter().filter(|(_, value)| matches!(value, Value::Secret(_))) {
            match expose(value, session.call.secrets).await {
                Ok(value) => values.insert(name.clone(), value),
                // The pipeline may name it no more since the release that is gone back to; what that had is there still.
                Err(fault) if fault.kind == "secret-missing" && has_secret(session, spec).await? => {
                    return Ok(());
                }
                Err(fault) => return Err(fault),
            };
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

    /// Applies a workload at the version at which `decide` saw it. `decide` answers `None` where nothing is to be done.
    /// Answers what is there then.
    pub(crate) async fn apply(
        &self,
        session: &Session<'_>,
        spec: &ReleaseSpec,
        (kind, name): (Kind, &str),
        policy: Option<&RollPolicy>,
        decide: impl Fn(Option<&Workload>) -> Result<Option<Count>, Fault>,
    ) -> Result<Option<Workload>, Fault> {
        let title = format!("{} {name}", kind.as_str());
        let api = kind.api(session);
        let mut last = None;
        for _ in 0..TRIES {
            let seen = kind::get(session, kind, name).await?;
            if let Some(seen) = &seen {
                stale(seen, session.call)?;
            }
            let Some(count) = decide(seen.as_ref())? else { return Ok(seen) };
            let foreign = seen.as_ref().filter(|seen| !is_ours(seen.metadata.labels.as_ref()));
            let result = match (&seen, foreign, count) {
                // What was there before cdpipe is scaled, and nothing else of it changes.
                (Some(seen), Some(_), Count::Exactly(count)) if given::is_found(spec) && policy.is_none() => {
                    scale(session, seen, count).await
                }
                (Some(_), Some(_), Count::AsItScales) if given::is_found(spec) && policy.is_none() => {
                    return Ok(seen);
                }
                (seen, foreign, count) => {
                    let prepared = async {
                        let mut fresh = seen.clone();
                        if let Some(foreign) = foreign {
                            fresh = Some(self.take_over(session, spec, foreign).await?);
                        }
                        if let (Some(there), Count::AsItScales) = (&fresh, count) {
                            fresh = Some(hand_over(session, there).await?);
                        }
                        Ok(fresh)
                    };
                    let fresh = match prepared.await {
                        Ok(fresh) => fresh,
                        Err(fault @ Fault { .. }) if fault.kind == "conflict" => {
                            last = Some(fault);
                            continue;
                        }
                        Err(fault) => return Err(fault),
                    };
                    // How many there are may be another's to say: it is written beside the rest only as it is.
                    let there = fresh.as_ref().map(Workload::replicas);
                    let wanted = Wanted {
                        kind,
                        name,
                        replicas: match count {
                            Count::Exactly(count) => Some(there.unwrap_or(count)),
                            Count::AsItScales => None,
                        },
                        policy,
                        retain: policy.map_or_else(|| revisions(fresh.as_ref()), |policy| policy.retain),
                        failed: failed(fresh.as_ref(), spec, policy),
                        epoch: session.call.epoch,
                        seen: fresh.as_ref(),
                    };
                    let patch = Patch::Apply(manifest::workload(spec, &wanted)?);
                    let mut params = PatchParams::apply(MANAGER);
                    params.force = foreign.is_some();
                    let applied =
                        session.ask(&format!("apply the {title}"), || api.patch(name, &params, &patch)).await;
                    match (applied, count) {
                        (Ok(applied), Count::Exactly(count)) if kind != Kind::DaemonSet => {
                            let applied = Workload::read(kind, applied)?;
                            if applied.replicas() == count {
                                return Ok(Some(applied));
                            }
                            scale_applied(session, applied, count).await
                        }
                        (applied, _) => applied,
                    }
                }
            };
            match result {
                Ok(applied) => return Workload::read(kind, applied).map(Some),
                Err(fault) if fault.kind == "conflict" => last = Some(fault),
                Err(fault) => return Err(companions::explained(fault, &title, true)),
            }
        }
        Err(last.unwrap_or_else(|| Fault::new("conflict", format!("the {title} changes all the time"))))
    }

    /// What was there before cdpipe becomes ours: from now on what is applied is all of its spec.
    async fn take_over(
        &self,
        session: &Session<'_>,
        spec: &ReleaseSpec,
        seen: &Workload,
    ) -> Result<Workload, Fault> {
        if !self.manifests.adopt.contains(&spec.service) && !given::is_found(spec) {
            return Err(Fault::new(
                "unmanaged",
                format!("the {} is there already and was not made by cdpipe", seen.title()),
            )
            .help("remove it, or say `adopt = true` in the service to take it over"));
        }
        let Some(fields) = adopt::taken_over(seen) else { return Ok(seen.clone()) };
        let patch = Patch::Merge(json!({
            "metadata": {"managedFields": fields, "resourceVersion": seen.metadata.resource_version},
        }));
        let (api, params) = (seen.kind.api(session), PatchParams::default());
        let taken = session
            .ask(&format!("take over the {}", seen.title()), || api.patch(seen.name(), &params, &patch))
            .await?;
        Workload::read(seen.kind, taken)
    }
}

/// How many there are stays what it is when we say it no more.
async fn hand_over(session: &Session<'_>, seen: &Workload) -> Result<Workload, Fault> {
    if seen.kind == Kind::DaemonSet || !adopt::alone_owns_replicas(seen) {
        return Ok(seen.clone());
    }
    let body = json!({
        "apiVersion": "apps/v1",
        "kind": seen.kind.as_str(),
        "metadata": {"name": seen.name(), "resourceVersion": seen.metadata.resource_version},
        "spec": {"replicas": seen.replicas()},
    });
    let (api, patch) = (seen.kind.api(session), Patch::Apply(body));
    let params = PatchParams::apply(HANDOVER);
    let left = session
        .ask(&format!("leave the count of the {} to what scales it", seen.title()), || {
            api.patch(seen.name(), &params, &patch)
        })
        .await?;
    Workload::read(seen.kind, left)
}
