//! Waits for objects: until they are ready, or it is clear that they will not be, with the words of the pod that stands in the way.

use super::kinds::{self, title};
use super::state::{self, State};
use crate::client::Session;
use crate::pods::{self, Patience};
use crate::target::POLL;
use cdpipe_host::Masker;
use cdpipe_model::Fault;
use cdpipe_model::objects::ObjectWas;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::ListParams;
use serde_json::Value;
use std::time::Duration;

/// So long before the end of its time a wait says what is in the way: to find that out takes time too.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// Waits until all of these are ready.
///
/// # Errors
/// `not-ready` with a pod's reason and its last log lines, as soon as it is clear or the time is over.
pub(super) async fn all(
    session: &Session<'_>,
    masker: &Masker,
    objects: &[&ObjectWas],
    done: &str,
) -> Result<(), Fault> {
    let mut patience: Vec<Patience> = objects.iter().map(|_| Patience::default()).collect();
    let mut ready = vec![false; objects.len()];
    let mut told = String::new();
    loop {
        let mut first_waiting = None;
        for (at, object) in objects.iter().enumerate() {
            if ready.get(at).copied().unwrap_or(true) {
                continue;
            }
            let Some(found) = kinds::read(session, object).await? else {
                return Err(Fault::new(
                    "moved",
                    format!("{} was deleted by somebody else while it was waited for", title(object)),
                )
                .help("find out who; then run it again"));
            };
            let whole = serde_json::to_value(&found).unwrap_or_default();
            let text = match state::judge(&object.kind, kinds::group(object), &whole) {
                State::Ready => {
                    if let Some(ready) = ready.get_mut(at) {
                        *ready = true;
                    }
                    continue;
                }
                State::Failed(why) => return Err(failed(session, masker, object, &whole, &why).await),
                State::Waits(text) => text,
            };
            let place = session.within(object.namespace.as_deref());
            let pods = pods_of(&place, object, &whole).await?;
            if let Some(patience) = patience.get_mut(at) {
                let waiting: Vec<Pod> =
                    pods.iter().filter(|pod| !crate::found::is_ready(pod)).cloned().collect();
                if let Some(hopeless) = patience.worst(&waiting) {
                    return Err(pods::not_ready(&place, masker, &title(object), &hopeless).await);
                }
                let refused = whole
                    .pointer("/status/conditions")
                    .and_then(Value::as_array)
                    .and_then(|all| {
                        all.iter().find(|one| one["type"] == "ReplicaFailure" && one["status"] == "True")
                    })
                    .map(|one| one["message"].as_str().unwrap_or_default().to_owned());
                if let Some(why) = patience.refused(refused) {
                    return Err(Fault::new("not-ready", format!("{} gets no pods: {why}", title(object)))
                        .help("a quota or an admission rule stands in the way"));
                }
            }
            if session.left() <= LAST_WORDS {
                return Err(too_slow(&place, masker, object, &pods, &text).await);
            }
            first_waiting.get_or_insert_with(|| format!("{}: {text}", title(object)));
        }
        let Some(text) = first_waiting else { return Ok(()) };
        if text != told {
            session.call.sink.progress(&format!("everything {done}; {text}"));
            told = text;
        }
        session.pause(POLL).await?;
    }
}

/// Waits until an object is gone.
pub(super) async fn gone(session: &Session<'_>, object: &ObjectWas, uid: Option<&str>) -> Result<(), Fault> {
    loop {
        let Some(found) = kinds::read(session, object).await? else { return Ok(()) };
        if uid.is_some_and(|uid| found.metadata.uid.as_deref() != Some(uid)) {
            return Ok(());
        }
        if session.left() <= LAST_WORDS {
            let finalizers = found.metadata.finalizers.unwrap_or_default().join(", ");
            return Err(Fault::new(
                "not-gone",
                format!("{} is being deleted and does not go: it waits for {finalizers}", title(object)),
            )
            .help("whoever set that finalizer has to take it off"));
        }
        session.pause(POLL).await?;
    }
}

/// The pods of the newest template of a workload.
async fn pods_of(place: &Session<'_>, object: &ObjectWas, whole: &Value) -> Result<Vec<Pod>, Fault> {
    let api: Api<Pod> = Api::namespaced(place.client(), place.namespace());
    if object.kind == "Pod" {
        return Ok(place.ask_for("read a pod", || api.get(&object.name)).await?.into_iter().collect());
    }
    let mut labels: Vec<String> = whole
        .pointer("/spec/selector/matchLabels")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .filter_map(|(name, value)| Some(format!("{name}={}", value.as_str()?)))
        .collect();
    if labels.is_empty() {
        return Ok(Vec::new());
    }
    match object.kind.as_str() {
        "Deployment" => {
            let Some(hash) = newest(place, whole, &labels).await? else { return Ok(Vec::new()) };
            labels.push(format!("pod-template-hash={hash}"));
        }
        "StatefulSet" => {
            if let Some(revision) = whole.pointer("/status/updateRevision").and_then(Value::as_str) {
                labels.push(format!("controller-revision-hash={revision}"));
            }
        }
        _ => {}
    }
    let params = ListParams::default().labels(&labels.join(","));
    let pods = place.ask("list pods", || api.list(&params)).await?.items;
    Ok(pods.into_iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).collect())
}

/// The hash of the ReplicaSet that has the revision of its Deployment.
async fn newest(place: &Session<'_>, whole: &Value, labels: &[String]) -> Result<Option<String>, Fault> {
    const REVISION: &str = "deployment.kubernetes.io/revision";
    let revision = whole.pointer("/metadata/annotations").and_then(|all| all.get(REVISION)?.as_str());
    let seen = whole.pointer("/status/observedGeneration") == whole.pointer("/metadata/generation");
    let (Some(revision), true) = (revision, seen) else { return Ok(None) };
    let api: Api<ReplicaSet> = Api::namespaced(place.client(), place.namespace());
    let params = ListParams::default().labels(&labels.join(","));
    let sets = place.ask("list ReplicaSets", || api.list(&params)).await?.items;
    let uid = whole.pointer("/metadata/uid").and_then(Value::as_str);
    Ok(sets.into_iter().find_map(|set| {
        let mine =
            set.metadata.owner_references.iter().flatten().any(|owner| Some(owner.uid.as_str()) == uid);
        let same = set.metadata.annotations.as_ref().and_then(|all| all.get(REVISION)).map(String::as_str)
            == Some(revision);
        (mine && same).then(|| set.metadata.labels?.get("pod-template-hash").cloned()).flatten()
    }))
}

async fn failed(
    session: &Session<'_>,
    masker: &Masker,
    object: &ObjectWas,
    whole: &Value,
    why: &str,
) -> Fault {
    let place = session.within(object.namespace.as_deref());
    let fault = Fault::new("not-ready", format!("{} has failed: {}", title(object), masker.mask(why)));
    let pods = pods_of(&place, object, whole).await.unwrap_or_default();
    let worst = pods.iter().rfind(|pod| !crate::found::is_ready(pod));
    let fault = match worst {
        Some(pod) => fault.details(pods::words(&place, masker, pod).await),
        None => fault,
    };
    fault.help(format!("`kubectl describe {} {}` shows more, while it is there", object.plural, object.name))
}

async fn too_slow(
    place: &Session<'_>,
    masker: &Masker,
    object: &ObjectWas,
    found: &[Pod],
    text: &str,
) -> Fault {
    let fault = Fault::new(
        "not-ready",
        format!("{} did not become ready in time: {}", title(object), masker.mask(text)),
    );
    let worst = found.iter().find(|pod| !crate::found::is_ready(pod));
    let fault = match worst {
        Some(pod) => fault.details(pods::words(place, masker, pod).await),
        None => fault,
    };
    fault.help("look at what its pods say, or give it more time with `timeout`")
}
