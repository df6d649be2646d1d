//! What is there of a service: Deployments, their ReplicaSets and pods, read by label.

use crate::canary::is_canary;
use crate::client::Session;
use crate::manifest::{RELEASE, SERVICE, SPEC, is_ours};
use cdpipe_model::observe::{Instance, Observation, ObservedRelease};
use cdpipe_model::release::ReleaseSpec;
use cdpipe_model::{Fault, InstanceId, ReleaseId, ServiceName};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::ListParams;
use sha2::{Digest as _, Sha256};

/// How many replicas the Deployment of a ReplicaSet wanted when its controller looked last.
const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";

/// Everything of one service.
pub(crate) struct Found {
    pub(crate) deployments: Vec<Deployment>,
    sets: Vec<ReplicaSet>,
    pub(crate) pods: Vec<Pod>,
}

/// A label of an object.
pub(crate) fn label<'a>(meta: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    meta.labels.as_ref()?.get(name).map(String::as_str)
}

/// The release that a template makes.
pub(crate) fn release_of(template: Option<&PodTemplateSpec>) -> Option<ReleaseId> {
    template?.metadata.as_ref().and_then(|meta| label(meta, RELEASE)).map(ReleaseId::from)
}

fn spec_of(template: Option<&PodTemplateSpec>) -> Option<ReleaseSpec> {
    let text = template?.metadata.as_ref()?.annotations.as_ref()?.get(SPEC)?;
    serde_json::from_str(text).ok()
}

/// The template of a Deployment.
pub(crate) fn template(deployment: &Deployment) -> Option<&PodTemplateSpec> {
    deployment.spec.as_ref().map(|spec| &spec.template)
}

/// What tells whether somebody has changed a Deployment: its template, not how many there are of it.
pub(crate) fn fence(deployment: &Deployment) -> u64 {
    let text = serde_json::to_string(&template(deployment)).unwrap_or_default();
    let hash = Sha256::digest(text.as_bytes());
    // What a JSON reader of any kind keeps exactly.
    hash.iter().take(6).fold(0, |number, byte| (number << 8) | u64::from(*byte))
}

/// Pods that are there and not on their way out, of one release.
pub(crate) fn is_live(pod: &Pod, release: &ReleaseId) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    pod.metadata.deletion_timestamp.is_none()
        && label(&pod.metadata, RELEASE) == Some(release.as_str())
        && !matches!(phase, Some("Failed" | "Succeeded"))
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
    /// Reads all of it.
    ///
    /// # Errors
    /// If the cluster can't be asked.
    pub(crate) async fn read(session: &Session<'_>, service: &ServiceName) -> Result<Self, Fault> {
        let params = ListParams::default().labels(&format!("{SERVICE}={service}"));
        let (client, namespace) = (session.client(), session.namespace());
        let deployments: Api<Deployment> = Api::namespaced(client.clone(), namespace);
        let sets: Api<ReplicaSet> = Api::namespaced(client, namespace);
        Ok(Self {
            deployments: session.ask("list Deployments", || deployments.list(&params)).await?.items,
            sets: session.ask("list ReplicaSets", || sets.list(&params)).await?.items,
            pods: pods(session, &params).await?,
        })
    }

    /// The Deployments whose template is this release.
    pub(crate) fn of(&self, release: &ReleaseId) -> impl Iterator<Item = &Deployment> {
        self.deployments
            .iter()
            .filter(move |deployment| release_of(template(deployment)).as_ref() == Some(release))
    }

    /// Instances of a release, the ready ones first, then by name.
    pub(crate) fn instances(&self, spec: &ReleaseSpec) -> Vec<Instance> {
        instances(&self.pods, spec)
    }

    /// As `observe` answers it.
    pub(crate) fn observation(&self, named: Option<&Deployment>) -> Observation {
        let mut releases: Vec<ObservedRelease> = Vec::new();
        let mut sets: Vec<&ReplicaSet> = self.sets.iter().collect();
        sets.sort_by_key(|set| {
            (set.metadata.creation_timestamp.as_ref().map(|at| at.0), set.metadata.name.clone())
        });
        for set in sets {
            let template = set.spec.as_ref().and_then(|spec| spec.template.as_ref());
            let (Some(id), Some(spec)) = (release_of(template), spec_of(template)) else { continue };
            let replicas = set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(0);
            let desired = set.metadata.annotations.as_ref().and_then(|all| all.get(DESIRED)?.parse().ok());
            // In the middle of a roll the set has fewer than the release is to have once it is gone back to.
            let wanted = if replicas > 0 { desired.unwrap_or(replicas) } else { 0 };
            self.add(&mut releases, id, spec, u32::try_from(wanted).unwrap_or(0));
        }
        for deployment in &self.deployments {
            let template = template(deployment);
            let (Some(id), Some(spec)) = (release_of(template), spec_of(template)) else { continue };
            let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(0);
            self.add(&mut releases, id, spec, u32::try_from(wanted).unwrap_or(0));
        }
        let unmanaged = named.filter(|named| !is_ours(named.metadata.labels.as_ref()));
        let unmanaged = unmanaged.and_then(|named| named.metadata.name.clone());
        Observation {
            releases,
            unmanaged: unmanaged.map(|name| format!("Deployment/{name}")).into_iter().collect(),
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

/// The pods of a service.
///
/// # Errors
/// If the cluster can't be asked.
pub(crate) async fn pods(session: &Session<'_>, params: &ListParams) -> Result<Vec<Pod>, Fault> {
    let pods: Api<Pod> = Api::namespaced(session.client(), session.namespace());
    Ok(session.ask("list pods", || pods.list(params)).await?.items)
}

/// Instances of a release among these pods, the ready ones first, those of a canary after the others, then by name.
pub(crate) fn instances(pods: &[Pod], spec: &ReleaseSpec) -> Vec<Instance> {
    let id = spec.id();
    let live = pods.iter().filter(|pod| is_live(pod, &id));
    let mut found: Vec<(bool, Instance)> =
        live.filter_map(|pod| Some((is_canary(&pod.metadata), instance(pod, spec.port)?))).collect();
    let key = |(canary, one): &(bool, Instance)| (!one.ready, *canary, one.id.to_string());
    found.sort_by_cached_key(key);
    found.into_iter().map(|(_, instance)| instance).collect()
}
