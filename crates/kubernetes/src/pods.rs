//! Whether a pod can still become ready, and why not.

use crate::client::Session;
use crate::found::{belongs, goes_on, is_ready, label, pods};
use crate::manifest::{CONTAINER, SERVICE};
use cdpipe_host::Masker;
use cdpipe_model::Fault;
use cdpipe_model::release::ReleaseSpec;
use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, Event, Pod};
use kube::Api;
use kube::api::{ListParams, LogParams};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

/// So often a container may end before it counts as a crash loop.
const CRASHES: i32 = 2;
/// How long what may pass by itself (no node has room) is let pass.
const MAY_PASS: Duration = Duration::from_secs(5);
/// Stands for the workload itself among the pods that something stands in the way of; no name of a pod.
const REFUSED: &str = "";
/// How long a Deployment may not get on before its pods are looked at.
const FIRST_LOOK: Duration = Duration::from_millis(500);
/// The longest time between two looks at few pods.
const LATER_LOOKS: Duration = Duration::from_secs(2);
/// And how much longer for each of them: a thousand are megabytes.
const EACH_POD: Duration = Duration::from_millis(50);
/// More than this make it no longer.
const MANY: u32 = 260;
/// Annotation: which container is meant where none is named.
const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";
/// Lines of a log that explain a fault.
const LOG_LINES: i64 = 10;
/// What a kubelet answers, as if it were the log, while the container that was asked for is being removed for the next try
/// (`findContainerLog` of Kubernetes).
const REMOVED: &str = "unable to retrieve container logs for ";
/// How often a log is asked for whose container ends again and again, and how long in between.
const LOG_TRIES: u32 = 6;
const LOG_PAUSE: Duration = Duration::from_millis(500);
/// Reasons for which a container that waits will not start whoever waits.
const HOPELESS: [&str; 8] = [
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "ErrImageNeverPull",
    "CreateContainerConfigError",
    "CreateContainerError",
    "RunContainerError",
    "CrashLoopBackOff",
];

/// Why a pod will not become ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hopeless {
    pub(crate) pod: String,
    /// Which of its containers, where it is one of them.
    pub(crate) container: Option<String>,
    pub(crate) why: String,
    /// The log of the container that ended, not of the one that is tried next.
    pub(crate) previous: bool,
    /// The container was started more than once.
    pub(crate) restarted: bool,
    /// It may change when other pods go or nodes come: to be held against it only after a while.
    pub(crate) may_pass: bool,
}

/// What stands in the way of this pod, if anything does that will not go away by waiting.
pub(crate) fn hopeless(pod: &Pod) -> Option<Hopeless> {
    let name = pod.metadata.name.clone()?;
    let status = pod.status.as_ref()?;
    let found = |container: Option<&ContainerStatus>, why: String, previous: bool| Hopeless {
        pod: name.clone(),
        container: container.map(|container| container.name.clone()),
        why,
        previous,
        restarted: container.is_some_and(|container| container.restart_count > 0),
        may_pass: container.is_none(),
    };
    // What runs before the others is in their way when it fails, and is not ready for good once it has done its work.
    let first = status.init_container_statuses.iter().flatten();
    for container in first.chain(status.container_statuses.iter().flatten()) {
        let waiting = container.state.as_ref().and_then(|state| state.waiting.as_ref());
        if let Some(reason) = waiting.and_then(|waiting| waiting.reason.as_deref())
            && HOPELESS.contains(&reason)
        {
            let message = waiting.and_then(|waiting| waiting.message.as_deref()).unwrap_or_default();
            let mut why = format!("{reason}: {}", message.trim());
            if let Some(ended) = ended(container.last_state.as_ref()) {
                why = format!("{reason}: {ended}");
            }
            return Some(found(Some(container), why, container.restart_count > 0));
        }
        let now = ended(container.state.as_ref());
        let is_done = exit_code(container.state.as_ref()) == Some(0);
        let previous = now.is_none();
        if container.restart_count >= CRASHES
            && !container.ready
            && !is_done
            && let Some(ended) = now.or_else(|| ended(container.last_state.as_ref()))
        {
            let why = format!("it ends again and again: {ended}");
            return Some(found(Some(container), why, previous));
        }
    }
    let unscheduled = status.conditions.iter().flatten().find(|one| {
        one.type_ == "PodScheduled" && one.status == "False" && one.reason.as_deref() == Some("Unschedulable")
    })?;
    let message = unscheduled.message.clone().unwrap_or_default();
    Some(found(None, format!("Unschedulable: {message}"), false))
}

/// The container of a pod that does its work, where others stand beside it: the one that it says itself, as `kubectl` reads it, or ours by
/// its name, or that of the service, or the first.
pub(crate) fn main_container(pod: &Pod) -> Option<&str> {
    let said = pod.metadata.annotations.as_ref().and_then(|all| all.get(DEFAULT_CONTAINER));
    let containers = pod.spec.as_ref().map(|spec| spec.containers.as_slice()).unwrap_or_default();
    let like = |name: &str| containers.iter().find(|one| one.name == name);
    let service = label(&pod.metadata, SERVICE);
    let found =
        said.and_then(|name| like(name)).or_else(|| like(CONTAINER)).or_else(|| service.and_then(like));
    let found = found.or_else(|| containers.first());
    found.map(|one| one.name.as_str())
}

fn exit_code(state: Option<&ContainerState>) -> Option<i32> {
    Some(state?.terminated.as_ref()?.exit_code)
}

fn ended(state: Option<&ContainerState>) -> Option<String> {
    let ended = state?.terminated.as_ref()?;
    let reason = ended.reason.as_deref().unwrap_or("ended");
    Some(match ended.message.as_deref().map(str::trim).filter(|message| !message.is_empty()) {
        Some(message) => format!("{reason}, exit code {}: {message}", ended.exit_code),
        None => format!("{reason}, exit code {}", ended.exit_code),
    })
}

/// The same of the pod of this name, asked by a list: that is a right whoever deploys has.
///
/// # Errors
/// If the cluster can't be asked.
pub(crate) async fn main_container_of(session: &Session<'_>, pod: &str) -> Result<Option<String>, Fault> {
    let there = pods(session, &ListParams::default().fields(&format!("metadata.name={pod}"))).await?;
    Ok(there.first().and_then(main_container).map(str::to_owned))
}

/// The last lines of the log of a pod, masked: of this container, or of the one that does its work.
///
/// # Errors
/// If there is none.
pub(crate) async fn log(
    session: &Session<'_>,
    masker: &Masker,
    (pod, container): (&str, Option<&str>),
    lines: i64,
    previous: bool,
) -> Result<Vec<String>, Fault> {
    let api: Api<Pod> = Api::namespaced(session.client(), session.namespace());
    let container = match container {
        Some(container) => Some(container.to_owned()),
        None => main_container_of(session, pod).await?,
    };
    let params = LogParams { container, tail_lines: Some(lines), previous, ..LogParams::default() };
    let text = session.ask(&format!("read the log of {pod}"), || api.logs(pod, &params)).await?;
    if is_removed(&text) {
        return Err(Fault::new("no-log", format!("the log of {pod} is gone: its container was removed")));
    }
    Ok(text.lines().map(|line| masker.mask(line).into_owned()).collect())
}

/// Whether this is a kubelet's excuse, and no line of a container.
fn is_removed(text: &str) -> bool {
    text.starts_with(REMOVED) && text.trim_end().lines().count() == 1
}

/// The last lines of a pod that will not become ready. Between two tries of a container the one that ended is removed before the next has
/// begun, so that for a moment neither has a log.
async fn last_words(session: &Session<'_>, masker: &Masker, hopeless: &Hopeless) -> Vec<String> {
    let place = (hopeless.pod.as_str(), hopeless.container.as_deref());
    let tries = if hopeless.restarted { LOG_TRIES } else { 1 };
    for attempt in 0..tries {
        let other = attempt % 2 == 1;
        match log(session, masker, place, LOG_LINES, hopeless.previous != other).await {
            // The next try of a container has said nothing yet.
            Ok(lines) if lines.is_empty() && other => {}
            Ok(lines) => return lines,
            // There is none just now.
            Err(fault) if matches!(fault.kind.as_str(), "no-log" | "cluster-refused") => {}
            // Who may not read it, or hears nothing of the cluster, is not helped by another question.
            Err(_) => break,
        }
        if attempt + 1 < tries && session.pause(LOG_PAUSE).await.is_err() {
            break;
        }
    }
    Vec::new()
}

/// The fault of a release of which this pod will not become ready.
pub(crate) async fn not_ready(
    session: &Session<'_>,
    masker: &Masker,
    what: &str,
    hopeless: &Hopeless,
) -> Fault {
    let mut fault = Fault::new(
        "not-ready",
        format!("{what} will not become ready: pod {}: {}", hopeless.pod, masker.mask(&hopeless.why)),
    );
    // A log explains; that there is none is no fault of its own.
    let lines = last_words(session, masker, hopeless).await;
    if !lines.is_empty() {
        fault = fault.details(lines);
    }
    fault.help(format!("`kubectl describe pod {}` shows more, while it is there", hopeless.pod))
}

/// The fault of a release that took too long, with what its pods and their events say.
pub(crate) async fn too_slow(
    session: &Session<'_>,
    masker: &Masker,
    what: &str,
    spec: &ReleaseSpec,
    pods: &[Pod],
    count: u32,
) -> Fault {
    let mine: Vec<&Pod> = pods.iter().filter(|pod| belongs(pod, spec) && goes_on(pod)).collect();
    let ready = mine.iter().filter(|pod| is_ready(pod)).count();
    let mut fault = Fault::new(
        "not-ready",
        format!("{what} did not become ready in time: {ready} of {count} pods are ready"),
    );
    if let Some(pod) = mine.iter().find(|pod| !is_ready(pod)) {
        fault = fault.details(words(session, masker, pod).await);
    }
    fault.help("look at what the instances say, or give them more time with `within` of `health`")
}

/// When pods are looked at while their Deployment does not get on: soon at first, then less often. What the Deployment itself says is
/// watched, and many pods are much to read.
pub(crate) struct Pace {
    since: Instant,
    pause: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { since: Instant::now(), pause: FIRST_LOOK }
    }
}

impl Pace {
    /// Nothing stands in the way just now.
    pub(crate) fn gets_on(&mut self) {
        self.since = Instant::now();
    }

    pub(crate) fn is_over(&self) -> bool {
        self.since.elapsed() >= self.pause
    }

    /// At so many pods.
    pub(crate) fn looked(&mut self, pods: usize) {
        self.since = Instant::now();
        let longest = LATER_LOOKS + EACH_POD * u32::try_from(pods).unwrap_or(u32::MAX).min(MANY);
        self.pause = (self.pause * 2).min(longest);
    }

    /// How long until it is time.
    pub(crate) fn left(&self) -> Duration {
        self.pause.saturating_sub(self.since.elapsed())
    }
}

/// What a pod that is not ready says: its last warning, and the last lines of its log.
pub(crate) async fn words(session: &Session<'_>, masker: &Masker, pod: &Pod) -> Vec<String> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let events: Api<Event> = Api::namespaced(session.client(), session.namespace());
    let params = ListParams::default().fields(&format!("involvedObject.name={name},type=Warning"));
    let events = session.ask("list events", || events.list(&params)).await;
    let messages = events.map(|events| events.items).unwrap_or_default();
    let last = messages.iter().filter_map(|event| event.message.as_deref()).next_back();
    let mut lines: Vec<String> =
        last.map(|last| format!("pod {name}: {}", masker.mask(last.trim()))).into_iter().collect();
    lines.extend(log(session, masker, (name, unready(pod)), LOG_LINES, false).await.unwrap_or_default());
    lines
}

/// The container that keeps a pod from being ready.
fn unready(pod: &Pod) -> Option<&str> {
    let all = pod.status.as_ref()?.container_statuses.iter().flatten();
    all.into_iter().find(|one| !one.ready).map(|one| one.name.as_str())
}

#[derive(Default)]
pub(crate) struct Patience {
    since: BTreeMap<String, Instant>,
}

impl Patience {
    /// Why the platform can't make pods, once it has said so for a while: pods on their way out count against a quota too.
    pub(crate) fn refused(&mut self, refused: Option<String>) -> Option<String> {
        let Some(why) = refused else {
            self.since.remove(REFUSED);
            return None;
        };
        let since = *self.since.entry(REFUSED.to_owned()).or_insert_with(Instant::now);
        (since.elapsed() >= MAY_PASS).then_some(why)
    }

    /// A pod for which waiting is over, whatever it is of.
    pub(crate) fn worst(&mut self, pods: &[Pod]) -> Option<Hopeless> {
        pods.iter().filter_map(hopeless).find(|hopeless| {
            let since = *self.since.entry(hopeless.pod.clone()).or_insert_with(Instant::now);
            !hopeless.may_pass || since.elapsed() >= MAY_PASS
        })
    }

    /// The pod of this release for which waiting is over, if more than `may_fail` are such.
    pub(crate) fn judge(&mut self, pods: &[Pod], spec: &ReleaseSpec, may_fail: u32) -> Option<Hopeless> {
        let mut lost: Vec<Hopeless> = Vec::new();
        for pod in pods.iter().filter(|pod| belongs(pod, spec) && goes_on(pod) && !is_ready(pod)) {
            let Some(hopeless) = hopeless(pod) else { continue };
            let since = *self.since.entry(hopeless.pod.clone()).or_insert_with(Instant::now);
            if !hopeless.may_pass || since.elapsed() >= MAY_PASS {
                lost.push(hopeless);
            }
        }
        (lost.len() > may_fail as usize).then(|| lost.swap_remove(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn why(status: serde_json::Value) -> Option<(String, bool)> {
        let pod = serde_json::from_value(json!({"metadata": {"name": "p"}, "status": status})).unwrap();
        hopeless(&pod).map(|found| (found.why, found.may_pass))
    }

    fn container(state: serde_json::Value, restarts: u32) -> serde_json::Value {
        json!({"containerStatuses": [{"name": "app", "image": "x", "imageID": "", "ready": false, "restartCount": restarts,
               "state": state, "lastState": {"terminated": {"exitCode": 3, "reason": "Error"}}}]})
    }

    #[test]
    fn a_pod_that_only_starts_is_waited_for() {
        assert_eq!(why(json!({})), None);
        assert_eq!(why(container(json!({"waiting": {"reason": "ContainerCreating"}}), 0)), None);
        assert_eq!(why(container(json!({"running": {}}), 1)), None);
    }

    #[test]
    fn a_kubelets_excuse_is_no_line_of_a_container() {
        assert!(is_removed("unable to retrieve container logs for containerd://8cc67ab78a5af017"));
        assert!(!is_removed(
            "unable to retrieve container logs for containerd://8cc67ab78a5af017\nsaid by a program"
        ));
        assert!(!is_removed("there is no table"));
        assert!(!is_removed(""));
    }

    #[test]
    fn what_runs_before_the_others_is_in_their_way() {
        let init = |state: serde_json::Value| {
            json!({"initContainerStatuses": [{"name": "migrate", "image": "x", "imageID": "", "ready": false, "restartCount": 2,
                   "state": state, "lastState": {"terminated": {"exitCode": 3, "reason": "Error"}}}]})
        };
        let fails = why(init(json!({"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}})));
        assert_eq!(fails, Some(("CrashLoopBackOff: Error, exit code 3".to_owned(), false)));
        assert_eq!(why(init(json!({"terminated": {"exitCode": 0}}))), None);
    }

    #[test]
    fn the_container_that_is_meant_is_the_one_it_says_or_ours_or_the_first() {
        let pod = |said: serde_json::Value, names: &[&str]| -> Option<String> {
            let containers: Vec<_> = names.iter().map(|name| json!({"name": name})).collect();
            let labels = json!({SERVICE: "logs"});
            let pod = json!({"metadata": {"annotations": said, "labels": labels}, "spec": {"containers": containers}});
            main_container(&serde_json::from_value(pod).unwrap()).map(str::to_owned)
        };
        assert_eq!(pod(json!({}), &["istio-proxy", "app"]).as_deref(), Some("app"));
        assert_eq!(pod(json!({}), &["web", "logs"]).as_deref(), Some("logs"));
        assert_eq!(pod(json!({}), &["web", "other"]).as_deref(), Some("web"));
        assert_eq!(pod(json!({DEFAULT_CONTAINER: "logs"}), &["web", "logs"]).as_deref(), Some("logs"));
        assert_eq!(pod(json!({DEFAULT_CONTAINER: "gone"}), &["web"]).as_deref(), Some("web"));
    }

    #[test]
    fn what_waiting_does_not_mend_is_told() {
        let pull = json!({"containerStatuses": [{"name": "app", "image": "x", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"waiting": {"reason": "ErrImagePull", "message": "not found"}}}]});
        assert_eq!(why(pull), Some(("ErrImagePull: not found".to_owned(), false)));
        let loops = container(json!({"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}}), 1);
        assert_eq!(why(loops), Some(("CrashLoopBackOff: Error, exit code 3".to_owned(), false)));
        let again = container(json!({"running": {}}), 2);
        assert_eq!(why(again), Some(("it ends again and again: Error, exit code 3".to_owned(), false)));
        let nowhere = json!({"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes"}]});
        assert_eq!(why(nowhere), Some(("Unschedulable: 0/1 nodes".to_owned(), true)));
    }
}
