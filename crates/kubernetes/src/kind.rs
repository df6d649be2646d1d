//! Workloads of three kinds, seen as one: how many pods they want, from which template, and how far their controller is.

use crate::client::Session;
use cdpipe_model::Fault;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, StatefulSet};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::ApiResource;
use kube::core::DynamicObject;
use serde::Deserialize;
use serde_json::Value;

/// What makes the pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Deployment,
    StatefulSet,
    DaemonSet,
}

pub(crate) const KINDS: [Kind; 3] = [Kind::Deployment, Kind::StatefulSet, Kind::DaemonSet];

impl Kind {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Deployment => "Deployment",
            Self::StatefulSet => "StatefulSet",
            Self::DaemonSet => "DaemonSet",
        }
    }

    pub(crate) fn of(name: &str) -> Option<Self> {
        KINDS.into_iter().find(|kind| kind.as_str() == name)
    }

    fn resource(self) -> ApiResource {
        match self {
            Self::Deployment => ApiResource::erase::<Deployment>(&()),
            Self::StatefulSet => ApiResource::erase::<StatefulSet>(&()),
            Self::DaemonSet => ApiResource::erase::<DaemonSet>(&()),
        }
    }

    pub(crate) fn api(self, session: &Session<'_>) -> Api<DynamicObject> {
        Api::namespaced_with(session.client(), session.namespace(), &self.resource())
    }

    /// For what may say nothing for long.
    pub(crate) fn patient_api(self, session: &Session<'_>) -> Api<DynamicObject> {
        Api::namespaced_with(session.patient_client(), session.namespace(), &self.resource())
    }
}

/// What says how far a controller is. A field that a kind does not have is absent.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Status {
    pub(crate) observed_generation: Option<i64>,
    pub(crate) replicas: Option<i32>,
    pub(crate) updated_replicas: Option<i32>,
    pub(crate) available_replicas: Option<i32>,
    pub(crate) ready_replicas: Option<i32>,
    pub(crate) number_ready: Option<i32>,
    pub(crate) current_revision: Option<String>,
    pub(crate) update_revision: Option<String>,
    pub(crate) desired_number_scheduled: Option<i32>,
    pub(crate) current_number_scheduled: Option<i32>,
    pub(crate) updated_number_scheduled: Option<i32>,
    pub(crate) number_available: Option<i32>,
    pub(crate) conditions: Vec<Condition>,
}

/// A condition of a workload.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Condition {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) status: String,
    pub(crate) reason: Option<String>,
    pub(crate) message: Option<String>,
}

/// A workload as the cluster has it.
#[derive(Debug, Clone)]
pub(crate) struct Workload {
    pub(crate) kind: Kind,
    pub(crate) metadata: ObjectMeta,
    pub(crate) template: PodTemplateSpec,
    pub(crate) status: Status,
    /// All of `spec`, also what this version knows nothing of.
    pub(crate) spec: Value,
}

impl Workload {
    /// Reads one.
    ///
    /// # Errors
    /// `cluster-answer` if it is none.
    pub(crate) fn read(kind: Kind, object: DynamicObject) -> Result<Self, Fault> {
        fn part<T: for<'de> Deserialize<'de>>(kind: Kind, value: &Value) -> Result<T, Fault> {
            T::deserialize(value).map_err(|error| {
                Fault::new("cluster-answer", format!("a {} can't be read: {error}", kind.as_str()))
            })
        }
        let spec = object.data.get("spec").cloned().unwrap_or_default();
        let status = object.data.get("status").filter(|status| !status.is_null());
        Ok(Self {
            kind,
            metadata: object.metadata,
            template: part(kind, &spec["template"])?,
            status: status.map(|status| part(kind, status)).transpose()?.unwrap_or_default(),
            spec,
        })
    }

    pub(crate) fn name(&self) -> &str {
        self.metadata.name.as_deref().unwrap_or_default()
    }

    /// `Deployment web`, for people.
    pub(crate) fn title(&self) -> String {
        format!("{} {}", self.kind.as_str(), self.name())
    }

    /// How many pods there are to be.
    pub(crate) fn replicas(&self) -> u32 {
        let wanted = match self.kind {
            Kind::DaemonSet => i64::from(self.status.desired_number_scheduled.unwrap_or(0)),
            Kind::Deployment | Kind::StatefulSet => self.spec["replicas"].as_i64().unwrap_or(1),
        };
        u32::try_from(wanted).unwrap_or(0)
    }

    /// How many of its pods are ready, as its controller says.
    pub(crate) fn ready(&self) -> u32 {
        let ready = self.status.ready_replicas.or(self.status.number_ready).unwrap_or(0);
        u32::try_from(ready).unwrap_or(0)
    }

    /// Whether its controller has seen it as it is now.
    pub(crate) fn is_observed(&self) -> bool {
        self.status.observed_generation.unwrap_or(0) >= self.metadata.generation.unwrap_or(0)
    }

    pub(crate) fn annotation(&self, name: &str) -> Option<&str> {
        self.metadata.annotations.as_ref()?.get(name).map(String::as_str)
    }
}

/// One workload, if it is there.
///
/// # Errors
/// If the cluster can't be asked.
pub(crate) async fn get(session: &Session<'_>, kind: Kind, name: &str) -> Result<Option<Workload>, Fault> {
    let api = kind.api(session);
    let found = session.ask(&format!("read the {} {name}", kind.as_str()), || api.get_opt(name)).await?;
    found.map(|found| Workload::read(kind, found)).transpose()
}

/// How far the controller of a workload says it is.
pub(crate) struct Progress {
    pub(crate) done: bool,
    /// Its own deadline is over.
    pub(crate) too_slow: bool,
    /// Pods can't be made.
    pub(crate) refused: Option<String>,
    pub(crate) text: String,
}

/// `count` pods are wanted.
pub(crate) fn progress(workload: &Workload, count: u32) -> Progress {
    let wanted = i32::try_from(count).unwrap_or(i32::MAX);
    let (status, seen) = (&workload.status, workload.is_observed());
    let number = |count: Option<i32>| count.unwrap_or(0);
    let (updated, all, available) = match workload.kind {
        Kind::DaemonSet => (
            number(status.updated_number_scheduled),
            number(status.current_number_scheduled),
            number(status.number_available),
        ),
        Kind::Deployment | Kind::StatefulSet => {
            (number(status.updated_replicas), number(status.replicas), number(status.available_replicas))
        }
    };
    let condition = |kind: &str, value: &str| {
        status.conditions.iter().find(|one| seen && one.kind == kind && one.status == value)
    };
    let refused = condition("ReplicaFailure", "True")
        .map(|one| one.message.clone().or_else(|| one.reason.clone()).unwrap_or_default());
    let too_slow = condition("Progressing", "False")
        .is_some_and(|one| one.reason.as_deref() == Some("ProgressDeadlineExceeded"));
    // A StatefulSet counts a pod as updated that is of the update revision, and keeps the former one until all of them are.
    let whole = workload.kind != Kind::StatefulSet
        || wanted == 0
        || status.update_revision.is_none()
        || status.current_revision == status.update_revision;
    Progress {
        done: seen && whole && updated == wanted && all == wanted && available == wanted,
        too_slow,
        refused,
        text: format!(
            "{updated} of {count} pods are new, {available} serve, {} are old",
            (all - updated).max(0)
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn workload(kind: Kind, status: Value) -> Workload {
        let object = json!({
            "apiVersion": "apps/v1", "kind": kind.as_str(), "metadata": {"name": "a", "generation": 2},
            "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "a"}}, "template": {"metadata": {}, "spec": {"containers": []}}},
            "status": status,
        });
        Workload::read(kind, serde_json::from_value(object).unwrap()).unwrap()
    }

    #[test]
    fn each_kind_says_in_its_own_words_how_far_it_is() {
        for (kind, status, done) in [
            (
                Kind::Deployment,
                json!({"observedGeneration": 2, "replicas": 3, "updatedReplicas": 3, "availableReplicas": 3}),
                true,
            ),
            (
                Kind::Deployment,
                json!({"observedGeneration": 1, "replicas": 3, "updatedReplicas": 3, "availableReplicas": 3}),
                false,
            ),
            (
                Kind::Deployment,
                json!({"observedGeneration": 2, "replicas": 4, "updatedReplicas": 3, "availableReplicas": 3}),
                false,
            ),
            (
                Kind::StatefulSet,
                json!({"observedGeneration": 2, "replicas": 3, "updatedReplicas": 3, "availableReplicas": 3, "currentRevision": "a-1", "updateRevision": "a-2"}),
                false,
            ),
            (
                Kind::StatefulSet,
                json!({"observedGeneration": 2, "replicas": 3, "updatedReplicas": 3, "availableReplicas": 3, "currentRevision": "a-2", "updateRevision": "a-2"}),
                true,
            ),
            (
                Kind::DaemonSet,
                json!({"observedGeneration": 2, "desiredNumberScheduled": 3, "currentNumberScheduled": 3, "updatedNumberScheduled": 2, "numberAvailable": 3}),
                false,
            ),
            (
                Kind::DaemonSet,
                json!({"observedGeneration": 2, "desiredNumberScheduled": 3, "currentNumberScheduled": 3, "updatedNumberScheduled": 3, "numberAvailable": 3}),
                true,
            ),
        ] {
            let workload = workload(kind, status.clone());
            assert_eq!(progress(&workload, 3).done, done, "{kind:?} {status}");
        }
    }

    #[test]
    fn how_many_a_daemon_set_wants_is_what_its_controller_says() {
        assert_eq!(workload(Kind::StatefulSet, json!(null)).replicas(), 3);
        assert_eq!(workload(Kind::DaemonSet, json!({"desiredNumberScheduled": 5})).replicas(), 5);
    }
}
