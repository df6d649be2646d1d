//! What is there of a service: workloads, their former templates and pods, read by label.

use crate::adopt;
use crate::canary::is_canary;
use crate::client::Session;
use crate::given;
use crate::kind::{KINDS, Kind, Workload};
use crate::manifest::{ADOPTED, FAILED, RELEASE, SERVICE, SPEC, is_ours};
use cdpipe_model::observe::{Instance, Observation, ObservedRelease};
use cdpipe_model::release::ReleaseSpec;
use cdpipe_model::{Fault, InstanceId, ReleaseId, ServiceName};
use k8s_openapi::api::apps::v1::{ControllerRevision, ReplicaSet};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use kube::Api;
use kube::api::ListParams;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeSet;

/// How many replicas the Deployment of a ReplicaSet wanted when its controller looked last.
const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";

/// Everything of one service.
pub(crate) struct Found {
    pub(crate) workloads: Vec<Workload>,
    /// What was there before cdpipe, if it is to be taken over or was.
    adopted: Option<ReleaseSpec>,
    sets: Vec<ReplicaSet>,
    revisions: Vec<ControllerRevision>,
    pub(crate) pods: Vec<Pod>,
}

/// A label of an object.
pub(crate) fn label<'a>(meta: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    meta.labels.as_ref()?.get(name).map(String::as_str)
}

/// The release that a template makes.
pub(crate) fn release_of(template: &PodTemplateSpec) -> Option<ReleaseId> {
    template.metadata.as_ref().and_then(|meta| label(meta, RELEASE)).map(ReleaseId::from)
}

/// Releases that did not stay in a workload because they failed.
pub(crate) fn failed(workload: &Workload) -> Vec<String> {
    let said = workload.annotation(FAILED).unwrap_or_default();
    said.split(',').filter(|id| !id.is_empty()).map(str::to_owned).collect()
}

/// A release whole, as its template has it.
pub(crate) fn spec_of(template: &PodTemplateSpec) -> Option<ReleaseSpec> {
    let text = template.metadata.as_ref()?.annotations.as_ref()?.get(SPEC)?;
    serde_json::from_str(text).ok()
}

/// Whether a workload has the template of this release.
pub(crate) fn has(workload: &Workload, spec: &ReleaseSpec) -> bool {
    if !given::is_found(spec) {
        return release_of(&workload.template).as_ref() == Some(&spec.id());
    }
    adopt::release(&spec.service, spec.platform_name.as_deref(), workload)
        .is_ok_and(|there| there.id() == spec.id())
}

/// What tells whether somebody has changed a workload: its template, not how many there are of it.
pub(crate) fn fence(workload: &Workload) -> u64 {
    let text = serde_json::to_string(&workload.template).unwrap_or_default();
    let hash = Sha256::digest(text.as_bytes());
    // What a JSON reader of any kind keeps exactly.
    hash.iter().take(6).fold(0, |number, byte| (number << 8) | u64::from(*byte))
}

/// Pods that are there and not on their way out, of one release.
pub(crate) fn is_live(pod: &Pod, release: &ReleaseId) -> bool {
    label(&pod.metadata, RELEASE) == Some(release.as_str()) && goes_on(pod)
}

pub(crate) fn goes_on(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    pod.metadata.deletion_timestamp.is_none() && !matches!(phase, Some("Failed" | "Succeeded"))
}

/// Whether a pod is of this release, also on its way out. Of what was there before cdpipe are the pods without our labels: which
/// pods are asked for is said by its selector.
pub(crate) fn belongs(pod: &Pod, spec: &ReleaseSpec) -> bool {
    match given::is_found(spec) {
        true => label(&pod.metadata, RELEASE).is_none(),
        false => label(&pod.metadata, RELEASE) == Some(spec.id().as_str()),
    }
}

pub(crate) fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.is_some_and(|all| all.iter().any(|one| one.type_ == "Ready" && one.status == "True"))
}

fn instance(pod: &Pod, port: Option<u16>) -> Option<Instance> {
    let status = pod.status.as_ref();
    let containers = status.and_then(|status| status.container_statuses.as_ref());
    let restarts = containers.and_then(|all| all.iter().map(|one| one.restart_count).max()).unwrap_or(0);
    let ip = status.and_then(|status| status.pod_ip.as_deref());
    Some(Instance {
        id: InstanceId::from(pod.metadata.name.as_deref()?),
        address: ip.zip(port).map(|(ip, port)| match ip.contains(':') {
            true => format!("[{ip}]:{port}"),
            false => format!("{ip}:{port}"),
        }),
        ready: is_ready(pod),
        reached_at: None,
        restarts: u32::try_from(restarts).unwrap_or(0),
    })
}

impl Found {
    /// Reads all of it. `place` is the workload that rolls; `adopt` is whether one that is there already is to be taken over.
    ///
    /// # Errors
    /// If the cluster can't be asked.
    pub(crate) async fn read(
        session: &Session<'_>,
        service: &ServiceName,
        platform_name: Option<&str>,
        place: Option<&(Kind, String)>,
        adopt: bool,
    ) -> Result<(Self, Option<Workload>), Fault> {
        let params = ListParams::default().labels(&format!("{SERVICE}={service}"));
        let mut workloads = workloads(session, &params, place).await?;
        let client = session.client();
        let sets: Api<ReplicaSet> = Api::namespaced(client.clone(), session.namespace());
        let revisions: Api<ControllerRevision> = Api::namespaced(client, session.namespace());
        let sets = session.ask("list ReplicaSets", || sets.list(&params)).await?.items;
        let revisions = if workloads.iter().any(|one| one.kind != Kind::Deployment) {
            session.ask("list ControllerRevisions", || revisions.list(&params)).await?.items
        } else {
            Vec::new()
        };
        let mut pods = pods(session, &params).await?;
        let named = match place {
            // What is there already has no label of ours.
            Some((kind, name)) => {
                match workloads.iter().find(|one| one.kind == *kind && one.name() == name) {
                    Some(listed) => Some(listed.clone()),
                    None => crate::kind::get(session, *kind, name).await?,
                }
            }
            None => workloads.iter().find(|one| rolls(one)).cloned(),
        };
        let mut adopted = None;
        if let Some(named) = &named {
            if is_ours(named.metadata.labels.as_ref()) {
                adopted = named.annotation(ADOPTED).and_then(|text| serde_json::from_str(text).ok());
            } else if adopt {
                adopted = Some(adopt::release(service, platform_name, named)?);
                workloads.push(named.clone());
            }
        }
        if let Some(adopted) = &adopted {
            pods.extend(unlabelled(session, adopted).await?);
        }
        Ok((Self { workloads, adopted, sets, revisions, pods }, named))
    }

    /// The workloads whose template is this release.
    pub(crate) fn of(&self, spec: &ReleaseSpec) -> impl Iterator<Item = &Workload> {
        self.workloads.iter().filter(move |workload| has(workload, spec))
    }

    /// Instances of a release, the ready ones first, then by name.
    pub(crate) fn instances(&self, spec: &ReleaseSpec) -> Vec<Instance> {
        instances(&self.pods, spec)
    }

    /// As `observe` answers it.
    pub(crate) fn observation(&self, named: Option<&Workload>) -> Observation {
        let mut releases: Vec<ObservedRelease> = Vec::new();
        if let Some(spec) = &self.adopted {
            let there = self.of(spec).map(Workload::replicas).max();
            // Where it is no template any more it is kept in ours; in the middle of a roll it has pods still.
            let rolling = named.filter(|_| !self.instances(spec).is_empty()).map_or(0, Workload::replicas);
            self.add(&mut releases, spec.id(), spec.clone(), there.unwrap_or(rolling));
        }
        // The cluster keeps the templates of releases that failed, too: they are nothing to go back to.
        let failed: BTreeSet<String> = self.workloads.iter().flat_map(failed).collect();
        let mut sets: Vec<&ReplicaSet> = self.sets.iter().collect();
        sets.sort_by_key(|set| {
            (set.metadata.creation_timestamp.as_ref().map(|at| at.0), set.metadata.name.clone())
        });
        for set in sets {
            let template = set.spec.as_ref().and_then(|spec| spec.template.as_ref());
            let Some((id, spec)) = template.and_then(|one| release_of(one).zip(spec_of(one))) else {
                continue;
            };
            let replicas = set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(0);
            let desired = set.metadata.annotations.as_ref().and_then(|all| all.get(DESIRED)?.parse().ok());
            // In the middle of a roll the set has fewer than the release is to have once it is gone back to.
            let wanted = if replicas > 0 { desired.unwrap_or(replicas) } else { 0 };
            if wanted == 0 && failed.contains(id.as_str()) {
                continue;
            }
            self.add(&mut releases, id, spec, u32::try_from(wanted).unwrap_or(0));
        }
        let mut revisions: Vec<&ControllerRevision> = self.revisions.iter().collect();
        revisions.sort_by_key(|revision| revision.revision);
        for revision in revisions {
            let template = revision.data.as_ref().and_then(|data| {
                serde_json::from_value::<PodTemplateSpec>(data.0["spec"]["template"].clone()).ok()
            });
            let Some((id, spec)) = template.as_ref().and_then(|one| release_of(one).zip(spec_of(one))) else {
                continue;
            };
            let owner = revision.metadata.owner_references.iter().flatten().next().map(|owner| &owner.uid);
            let workload = self.workloads.iter().find(|one| one.metadata.uid.as_ref() == owner);
            // It keeps no count of its own: it is to have all of them as long as it has any.
            let wanted = workload.filter(|_| !self.instances(&spec).is_empty()).map_or(0, Workload::replicas);
            if wanted == 0 && failed.contains(id.as_str()) {
                continue;
            }
            self.add(&mut releases, id, spec, wanted);
        }
        for workload in &self.workloads {
            let Some((id, spec)) = release_of(&workload.template).zip(spec_of(&workload.template)) else {
                continue;
            };
            self.add(&mut releases, id, spec, workload.replicas());
        }
        let unmanaged = named.filter(|named| !is_ours(named.metadata.labels.as_ref()));
        let unmanaged = unmanaged.filter(|_| self.adopted.is_none());
        Observation {
            releases,
            unmanaged: unmanaged
                .map(|one| format!("{}/{}", one.kind.as_str(), one.name()))
                .into_iter()
                .collect(),
            table: None,
            fence: named.map(fence),
            autoscaled: None,
        }
    }

    fn add(&self, releases: &mut Vec<ObservedRelease>, id: ReleaseId, spec: ReleaseSpec, wanted: u32) {
        if let Some(known) = releases.iter_mut().find(|known| known.id == id) {
            known.wanted = known.wanted.max(wanted);
            return;
        }
        let instances = self.instances(&spec);
        releases.push(ObservedRelease { id, spec, wanted, instances });
    }
}

fn is_other(kind: Kind, place: Option<&(Kind, String)>) -> bool {
    kind != place.map_or(Kind::Deployment, |(kind, _)| *kind)
}

/// Whether a workload rolls from release to release: its name is that of none.
fn rolls(workload: &Workload) -> bool {
    release_of(&workload.template).is_none_or(|id| !workload.name().ends_with(id.as_str()))
}

/// The workloads of a service; `place` is the one that rolls.
///
/// # Errors
/// If the cluster can't be asked.
pub(crate) async fn workloads(
    session: &Session<'_>,
    params: &ListParams,
    place: Option<&(Kind, String)>,
) -> Result<Vec<Workload>, Fault> {
    let mut workloads = Vec::new();
    for kind in KINDS {
        let api = kind.api(session);
        match session.ask(&format!("list {}s", kind.as_str()), || api.list(params)).await {
            Ok(listed) => {
                for one in listed.items {
                    workloads.push(Workload::read(kind, one)?);
                }
            }
            // Who may see Deployments only has no other.
            Err(fault) if fault.kind == "forbidden" && is_other(kind, place) => {}
            Err(fault) => return Err(fault),
        }
    }
    Ok(workloads)
}

/// The pods of a service.
///
/// # Errors
/// If the cluster can't be asked.
pub(crate) async fn pods(session: &Session<'_>, params: &ListParams) -> Result<Vec<Pod>, Fault> {
    let pods: Api<Pod> = Api::namespaced(session.client(), session.namespace());
    Ok(session.ask("list pods", || pods.list(params)).await?.items)
}

/// The pods of a release, also those on their way out.
///
/// # Errors
/// If the cluster can't be asked.
pub(crate) async fn pods_of(session: &Session<'_>, spec: &ReleaseSpec) -> Result<Vec<Pod>, Fault> {
    if given::is_found(spec) {
        return unlabelled(session, spec).await;
    }
    let labels = format!("{SERVICE}={},{RELEASE}={}", spec.service, spec.id());
    pods(session, &ListParams::default().labels(&labels)).await
}

/// The pods of what was there before cdpipe.
async fn unlabelled(session: &Session<'_>, spec: &ReleaseSpec) -> Result<Vec<Pod>, Fault> {
    let Some(document) = given::document(spec)? else { return Ok(Vec::new()) };
    let selector: LabelSelector =
        serde_json::from_value(document.workload["spec"]["selector"].clone()).unwrap_or_default();
    let selector = adopt::selector(&selector);
    if selector.is_empty() {
        return Ok(Vec::new());
    }
    let mut found = pods(session, &ListParams::default().labels(&selector)).await?;
    found.retain(|pod| label(&pod.metadata, SERVICE).is_none());
    Ok(found)
}

/// Instances of a release among these pods, the ready ones first, those of a canary after the others, then by name.
pub(crate) fn instances(pods: &[Pod], spec: &ReleaseSpec) -> Vec<Instance> {
    let live = pods.iter().filter(|pod| belongs(pod, spec) && goes_on(pod));
    let mut found: Vec<(bool, Instance)> =
        live.filter_map(|pod| Some((is_canary(&pod.metadata), instance(pod, spec.port)?))).collect();
    let key = |(canary, one): &(bool, Instance)| (!one.ready, *canary, one.id.to_string());
    found.sort_by_cached_key(key);
    found.into_iter().map(|(_, instance)| instance).collect()
}
