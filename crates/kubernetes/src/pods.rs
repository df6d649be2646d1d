//! Whether a pod can still become ready, and why not.

use crate::client::Session;
use crate::found::{is_live, is_ready};
use cdpipe_host::Masker;
use cdpipe_model::{Fault, ReleaseId};
use k8s_openapi::api::core::v1::{ContainerState, Event, Pod};
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
/// Lines of a log that explain a fault.
const LOG_LINES: i64 = 10;
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
    pub(crate) why: String,
    /// The log of the container that ended, not of the one that is tried next.
    pub(crate) previous: bool,
    /// It may change when other pods go or nodes come: to be held against it only after a while.
    pub(crate) may_pass: bool,
}

/// What stands in the way of this pod, if anything does that will not go away by waiting.
pub(crate) fn hopeless(pod: &Pod) -> Option<Hopeless> {
    let name = pod.metadata.name.clone()?;
    let status = pod.status.as_ref()?;
    let found = |why: String, previous: bool, may_pass: bool| {
        Some(Hopeless { pod: name.clone(), why, previous, may_pass })
    };
    for container in status.container_statuses.iter().flatten() {
        let waiting = container.state.as_ref().and_then(|state| state.waiting.as_ref());
        if let Some(reason) = waiting.and_then(|waiting| waiting.reason.as_deref())
            && HOPELESS.contains(&reason)
        {
            let message = waiting.and_then(|waiting| waiting.message.as_deref()).unwrap_or_default();
            let mut why = format!("{reason}: {}", message.trim());
            if let Some(ended) = ended(container.last_state.as_ref()) {
                why = format!("{reason}: {ended}");
            }
            return found(why, container.restart_count > 0, false);
        }
        if container.restart_count >= CRASHES
            && !container.ready
            && let Some(ended) =
                ended(container.state.as_ref()).or_else(|| ended(container.last_state.as_ref()))
        {
            return found(format!("it ends again and again: {ended}"), true, false);
        }
    }
    let unscheduled = status.conditions.iter().flatten().find(|one| {
        one.type_ == "PodScheduled" && one.status == "False" && one.reason.as_deref() == Some("Unschedulable")
    })?;
    let message = unscheduled.message.clone().unwrap_or_default();
    found(format!("Unschedulable: {message}"), false, true)
}

fn ended(state: Option<&ContainerState>) -> Option<String> {
    let ended = state?.terminated.as_ref()?;
    let reason = ended.reason.as_deref().unwrap_or("ended");
    Some(match ended.message.as_deref().map(str::trim).filter(|message| !message.is_empty()) {
        Some(message) => format!("{reason}, exit code {}: {message}", ended.exit_code),
        None => format!("{reason}, exit code {}", ended.exit_code),
    })
}

/// The last lines of a pod's log, masked.
///
/// # Errors
/// If there is none.
pub(crate) async fn log(
    session: &Session<'_>,
    masker: &Masker,
    pod: &str,
    lines: i64,
    previous: bool,
) -> Result<Vec<String>, Fault> {
    let pods: Api<Pod> = Api::namespaced(session.client(), session.namespace());
    let params = LogParams { tail_lines: Some(lines), previous, ..LogParams::default() };
    let text = session.ask(&format!("read the log of {pod}"), || pods.logs(pod, &params)).await?;
    Ok(text.lines().map(|line| masker.mask(line).into_owned()).collect())
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
    let lines = log(session, masker, &hopeless.pod, LOG_LINES, hopeless.previous).await.unwrap_or_default();
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
    release: &ReleaseId,
    pods: &[Pod],
    count: u32,
) -> Fault {
    let mine: Vec<&Pod> = pods.iter().filter(|pod| is_live(pod, release)).collect();
    let ready = mine.iter().filter(|pod| is_ready(pod)).count();
    let mut fault = Fault::new(
        "not-ready",
        format!("{what} did not become ready in time: {ready} of {count} pods are ready"),
    );
    if let Some(name) = mine.iter().find(|pod| !is_ready(pod)).and_then(|pod| pod.metadata.name.as_deref()) {
        fault = fault.details(words(session, masker, name).await);
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
pub(crate) async fn words(session: &Session<'_>, masker: &Masker, name: &str) -> Vec<String> {
    let events: Api<Event> = Api::namespaced(session.client(), session.namespace());
    let params = ListParams::default().fields(&format!("involvedObject.name={name},type=Warning"));
    let events = session.ask("list events", || events.list(&params)).await;
    let messages = events.map(|events| events.items).unwrap_or_default();
    let last = messages.iter().filter_map(|event| event.message.as_deref()).next_back();
    let mut lines: Vec<String> =
        last.map(|last| format!("pod {name}: {}", masker.mask(last.trim()))).into_iter().collect();
    lines.extend(log(session, masker, name, LOG_LINES, false).await.unwrap_or_default());
    lines
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
    pub(crate) fn judge(&mut self, pods: &[Pod], release: &ReleaseId, may_fail: u32) -> Option<Hopeless> {
        let mut lost: Vec<Hopeless> = Vec::new();
        for pod in pods.iter().filter(|pod| is_live(pod, release) && !is_ready(pod)) {
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
