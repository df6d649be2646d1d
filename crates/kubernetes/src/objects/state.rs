//! How far an object is: from its own status alone.

use serde_json::Value;

/// How far it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum State {
    /// As far as it gets, or nothing is waited for.
    Ready,
    /// On its way, in words.
    Waits(String),
    /// It will not get there.
    Failed(String),
}

impl State {
    pub(crate) fn is_ready(&self) -> bool {
        *self == State::Ready
    }
}

/// Kinds that are waited for.
pub(crate) fn is_awaited(kind: &str, group: &str) -> bool {
    matches!(
        (group, kind),
        ("apps", "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet")
            | ("batch", "Job")
            | ("", "Pod" | "Namespace")
            | ("apiextensions.k8s.io", "CustomResourceDefinition")
    )
}

/// How far an object of this kind is.
pub(crate) fn judge(kind: &str, group: &str, object: &Value) -> State {
    let number = |path: &str| object.pointer(path).and_then(Value::as_i64);
    let status = |name: &str| number(&format!("/status/{name}")).unwrap_or(0);
    let seen =
        number("/status/observedGeneration").unwrap_or(0) >= number("/metadata/generation").unwrap_or(0);
    let condition = |wanted: &str, value: &str| {
        object.pointer("/status/conditions").and_then(Value::as_array).and_then(|all| {
            all.iter().find(|one| {
                one.get("type").and_then(Value::as_str) == Some(wanted)
                    && one.get("status").and_then(Value::as_str) == Some(value)
            })
        })
    };
    let words = |condition: &Value| {
        let part =
            |name: &str| condition.get(name).and_then(Value::as_str).unwrap_or_default().trim().to_owned();
        match (part("reason"), part("message")) {
            (reason, message) if message.is_empty() => reason,
            (reason, message) => format!("{reason}: {message}"),
        }
    };
    let count = |updated: i64, ready: i64, all: i64, wanted: i64| {
        if seen && updated >= wanted && ready >= wanted && all <= wanted.max(updated) {
            State::Ready
        } else {
            State::Waits(format!("{ready} of {wanted} pods are ready, {updated} are new"))
        }
    };
    let wanted = number("/spec/replicas").unwrap_or(1);
    match (group, kind) {
        ("", "Namespace") => match object.pointer("/status/phase").and_then(Value::as_str) {
            Some("Active") => State::Ready,
            other => State::Waits(other.unwrap_or("it is being made").to_owned()),
        },
        ("apiextensions.k8s.io", "CustomResourceDefinition") => {
            if let Some(refused) = condition("NamesAccepted", "False") {
                return State::Failed(words(refused));
            }
            match condition("Established", "True") {
                Some(_) => State::Ready,
                None => State::Waits("it is not established".to_owned()),
            }
        }
        ("apps", "Deployment") => {
            if seen
                && let Some(late) = condition("Progressing", "False")
                && late.get("reason").and_then(Value::as_str) == Some("ProgressDeadlineExceeded")
            {
                return State::Failed(words(late));
            }
            match count(status("updatedReplicas"), status("availableReplicas"), status("replicas"), wanted) {
                State::Waits(text) => match condition("ReplicaFailure", "True").filter(|_| seen) {
                    Some(refused) => State::Waits(format!("{text}: {}", words(refused))),
                    None => State::Waits(text),
                },
                other => other,
            }
        }
        ("apps", "StatefulSet") => {
            // With OnDelete pods become new when somebody deletes them.
            let strategy = object.pointer("/spec/updateStrategy/type").and_then(Value::as_str);
            let partition = number("/spec/updateStrategy/rollingUpdate/partition").unwrap_or(0);
            let updated = match strategy {
                Some("OnDelete") => wanted,
                _ => (status("updatedReplicas") + partition).min(wanted),
            };
            count(updated, status("readyReplicas"), status("replicas"), wanted)
        }
        ("apps", "DaemonSet") => {
            let wanted = status("desiredNumberScheduled");
            let strategy = object.pointer("/spec/updateStrategy/type").and_then(Value::as_str);
            let updated =
                if strategy == Some("OnDelete") { wanted } else { status("updatedNumberScheduled") };
            count(updated, status("numberAvailable"), wanted, wanted)
        }
        ("apps", "ReplicaSet") => count(wanted, status("availableReplicas"), status("replicas"), wanted),
        ("batch", "Job") => {
            if object.pointer("/spec/suspend").and_then(Value::as_bool) == Some(true) {
                return State::Ready;
            }
            match (condition("Complete", "True"), condition("Failed", "True")) {
                (Some(_), _) => State::Ready,
                (None, Some(failed)) => State::Failed(words(failed)),
                (None, None) => State::Waits(format!("{} pods have succeeded", status("succeeded"))),
            }
        }
        ("", "Pod") => match object.pointer("/status/phase").and_then(Value::as_str) {
            Some("Succeeded") => State::Ready,
            Some("Failed") => State::Failed("it has failed".to_owned()),
            _ if condition("Ready", "True").is_some() => State::Ready,
            other => State::Waits(other.unwrap_or("Pending").to_owned()),
        },
        _ => State::Ready,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_deployment_is_ready_when_its_newest_template_serves() {
        let at = |observed: u32, updated: u32, available: u32, all: u32| {
            json!({"metadata": {"generation": 2}, "spec": {"replicas": 2}, "status": {"observedGeneration": observed,
                   "updatedReplicas": updated, "availableReplicas": available, "replicas": all}})
        };
        let judge = |object: Value| judge("Deployment", "apps", &object);
        assert!(judge(at(2, 2, 2, 2)).is_ready());
        for waits in [at(1, 2, 2, 2), at(2, 1, 2, 2), at(2, 2, 1, 2), at(2, 2, 2, 3), json!({"spec": {}})] {
            assert!(matches!(judge(waits.clone()), State::Waits(_)), "{waits}");
        }
        let late = json!({"status": {"conditions": [{"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded",
                          "message": "too slow"}]}});
        assert_eq!(judge(late), State::Failed("ProgressDeadlineExceeded: too slow".to_owned()));
    }

    #[test]
    fn jobs_definitions_and_sets_say_how_far_they_are() {
        let with = |kind: &str, status: &str| json!({"status": {"conditions": [{"type": kind, "status": status, "reason": "R"}]}});
        assert!(judge("Job", "batch", &with("Complete", "True")).is_ready());
        assert_eq!(judge("Job", "batch", &with("Failed", "True")), State::Failed("R".to_owned()));
        assert!(!judge("Job", "batch", &json!({})).is_ready());
        let definition = |object: &Value| judge("CustomResourceDefinition", "apiextensions.k8s.io", object);
        assert!(definition(&with("Established", "True")).is_ready());
        assert_eq!(definition(&with("NamesAccepted", "False")), State::Failed("R".to_owned()));
        let daemons = json!({"metadata": {"generation": 1}, "status": {"observedGeneration": 1, "desiredNumberScheduled": 1,
                             "updatedNumberScheduled": 1, "numberAvailable": 1}});
        assert!(judge("DaemonSet", "apps", &daemons).is_ready());
        assert!(judge("ConfigMap", "", &json!({})).is_ready() && judge("Widget", "x", &json!({})).is_ready());
    }
}
