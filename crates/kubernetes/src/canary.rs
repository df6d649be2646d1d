//! Pods of a canary that have variables of their own: a Deployment beside that of the release, `SERVICE-RELEASE-c`, whose pods carry the
//! labels of the release. It ends with the promotion.

use crate::client::Session;
use crate::found::{Found, label};
use crate::given;
use crate::kind::{self, Kind, Workload};
use crate::manifest::{self, MANAGER, RELEASE, SPEC, Wanted};
use crate::steps::delete;
use crate::target::Kubernetes;
use crate::workload::stale;
use cdpipe_model::ports::expose;
use cdpipe_model::release::ReleaseSpec;
use cdpipe_model::{Fault, Value};
use k8s_openapi::api::core::v1::{Pod, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::json;
use std::collections::BTreeMap;

/// On the Deployment and its pods.
const CANARY: &str = "cdpipe.dev/canary";
/// Others may write between our look and our change; more often than this is no accident.
const TRIES: usize = 20;

/// Whether these are of a canary.
pub(crate) fn is_canary(meta: &ObjectMeta) -> bool {
    label(meta, CANARY).is_some()
}

/// Whether a workload makes the pods of a canary.
pub(crate) fn makes(workload: &Workload) -> bool {
    workload.template.metadata.as_ref().is_some_and(is_canary)
}

/// How many of these pods of a release a workload made.
pub(crate) fn made_by<'a>(
    workload: &Workload,
    spec: &ReleaseSpec,
    pods: impl Iterator<Item = &'a Pod>,
) -> usize {
    // What was there before cdpipe has no label of ours, and is one workload.
    let is_found = given::is_found(spec);
    pods.filter(|pod| is_found || label(&pod.metadata, manifest::WORKLOAD) == Some(workload.name())).count()
}

fn name(spec: &ReleaseSpec) -> String {
    format!("{}-c", manifest::side_name(spec))
}

/// The Deployment: what the release would be with these variables, under the name and the labels of the release.
fn deployment(
    spec: &ReleaseSpec,
    dressed: &ReleaseSpec,
    wanted: &Wanted<'_>,
) -> Result<serde_json::Value, Fault> {
    let mut made = manifest::workload(dressed, wanted)?;
    let release = spec.id();
    let text = serde_json::to_string(spec)
        .map_err(|error| Fault::new("internal", format!("a release cannot be written down: {error}")))?;
    made["metadata"]["labels"][RELEASE] = json!(release.as_str());
    let template = &mut made["spec"]["template"];
    template["metadata"]["labels"][RELEASE] = json!(release.as_str());
    template["metadata"]["labels"][CANARY] = json!("true");
    template["metadata"]["annotations"][SPEC] = json!(text);
    for container in template["spec"]["containers"].as_array_mut().into_iter().flatten() {
        for variable in container["env"].as_array_mut().into_iter().flatten() {
            if variable["name"] == "CDPIPE_RELEASE" {
                variable["value"] = json!(release.as_str());
            }
            if variable["valueFrom"]["secretKeyRef"]["name"] == json!(manifest::side_name(dressed)) {
                variable["valueFrom"]["secretKeyRef"]["name"] = json!(wanted.name);
            }
        }
    }
    Ok(made)
}

impl Kubernetes {
    /// At least so many pods with these variables.
    pub(crate) async fn ensure_canary(
        &self,
        session: &Session<'_>,
        spec: &ReleaseSpec,
        count: u32,
        extra: &BTreeMap<String, Value>,
    ) -> Result<(), Fault> {
        let (api, name) = (Kind::Deployment.api(session), name(spec));
        let mut dressed = spec.clone();
        dressed.env.extend(extra.iter().map(|(name, value)| (name.clone(), value.clone())));
        let mut values = BTreeMap::new();
        for (name, value) in dressed.env.iter().filter(|(_, value)| matches!(value, Value::Secret(_))) {
            values.insert(name.clone(), expose(value, session.call.secrets).await?);
        }
        if !values.is_empty() {
            let mut secret = manifest::secret(spec, &values);
            secret["metadata"]["name"] = json!(name);
            let secrets: Api<Secret> = Api::namespaced(session.client(), session.namespace());
            let (params, patch) = (PatchParams::apply(MANAGER).force(), Patch::Apply(secret));
            session
                .ask(&format!("apply the Secret {name}"), || secrets.patch(&name, &params, &patch))
                .await?;
        }
        for _ in 0..TRIES {
            let seen = kind::get(session, Kind::Deployment, &name).await?;
            if let Some(seen) = &seen {
                stale(seen, session.call)?;
            }
            let wanted = Wanted {
                kind: Kind::Deployment,
                name: &name,
                replicas: Some(seen.as_ref().map_or(0, Workload::replicas).max(count)),
                policy: None,
                retain: 1,
                failed: Vec::new(),
                epoch: session.call.epoch,
                seen: seen.as_ref(),
            };
            let (params, patch) =
                (PatchParams::apply(MANAGER), Patch::Apply(deployment(spec, &dressed, &wanted)?));
            let what = format!("apply the Deployment {name}");
            match session.ask(&what, || api.patch(&name, &params, &patch)).await {
                Ok(_) => return Ok(()),
                Err(fault) if fault.kind == "conflict" => {}
                Err(fault) => return Err(fault),
            }
        }
        Err(Fault::new("conflict", format!("the Deployment {name} changes all the time")).transient())
    }

    /// Removes the Deployment of a release's canary, if there is one, with its Secret.
    pub(crate) async fn end_canary(
        &self,
        session: &Session<'_>,
        spec: &ReleaseSpec,
        found: &Found,
    ) -> Result<(), Fault> {
        let Some(canary) = found.of(spec).find(|one| makes(one)) else { return Ok(()) };
        stale(canary, session.call)?;
        let (name, params) = (canary.name(), DeleteParams::default());
        delete(session, Kind::Deployment, name).await?;
        let secrets: Api<Secret> = Api::namespaced(session.client(), session.namespace());
        session
            .ask_for(&format!("delete the Secret {name}"), || secrets.delete(name, &params))
            .await
            .map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cdpipe_model::ServiceName;
    use cdpipe_model::release::Artifact;
    use cdpipe_model::secret::{SecretPart, SecretText};

    #[test]
    fn a_canary_has_the_labels_of_its_release_and_variables_of_its_own() {
        let spec = ReleaseSpec {
            service: ServiceName::from("web"),
            platform_name: None,
            version: "1".to_owned(),
            artifact: Artifact::Image { reference: "web:1".to_owned(), digest: None, args: Vec::new() },
            port: Some(80),
            env: BTreeMap::from([("A".to_owned(), Value::Str("plain".to_owned()))]),
            health: Vec::new(),
            drain_ms: 0,
            extra: BTreeMap::new(),
        };
        let mut dressed = spec.clone();
        dressed.env.insert("A".to_owned(), Value::Str("canary".to_owned()));
        dressed
            .env
            .insert("B".to_owned(), Value::Secret(SecretText(vec![SecretPart::Secret("token".to_owned())])));
        let name = name(&spec);
        let wanted = Wanted {
            kind: Kind::Deployment,
            name: &name,
            replicas: Some(1),
            policy: None,
            retain: 1,
            failed: Vec::new(),
            epoch: 1,
            seen: None,
        };
        let made = deployment(&spec, &dressed, &wanted).unwrap();
        let template = &made["spec"]["template"];
        assert_eq!(template["metadata"]["labels"][RELEASE], json!(spec.id().as_str()));
        let kept: ReleaseSpec =
            serde_json::from_str(template["metadata"]["annotations"][SPEC].as_str().unwrap()).unwrap();
        assert_eq!(kept, spec);
        let env = template["spec"]["containers"][0]["env"].as_array().unwrap();
        assert!(env.contains(&json!({"name": "A", "value": "canary"})));
        assert!(
            env.contains(&json!({"name": "B", "valueFrom": {"secretKeyRef": {"name": name, "key": "B"}}}))
        );
        assert!(env.contains(&json!({"name": "CDPIPE_RELEASE", "value": spec.id().as_str()})));
        assert_eq!(made["spec"]["selector"]["matchLabels"][manifest::WORKLOAD], json!(name));
    }
}
