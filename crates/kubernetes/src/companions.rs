//! What comes with a workload in its manifests: applied before it, server-side.

use crate::client::Session;
use crate::given;
use crate::manifest::MANAGER;
use crate::target::Kubernetes;
use cdpipe_model::Fault;
use cdpipe_model::release::ReleaseSpec;
use kube::Api;
use kube::api::{ApiResource, Patch, PatchParams};
use kube::core::{DynamicObject, GroupVersionKind};
use kube::discovery::{Scope, oneshot};
use serde_json::{Value, json};

impl Kubernetes {
    /// Applies them in their order. Those of a release that is gone back to are applied as they were then; nothing is deleted.
    pub(crate) async fn apply_companions(
        &self,
        session: &Session<'_>,
        spec: &ReleaseSpec,
    ) -> Result<(), Fault> {
        let Some(document) = given::document(spec)?.filter(|_| !given::is_found(spec)) else { return Ok(()) };
        let force = self.manifests.adopt.contains(&spec.service);
        for object in &document.objects {
            apply(session, object, force).await?;
        }
        Ok(())
    }

    /// Makes the namespace of the target, if it is not there and the manifests of a service have it. Answers whether it was made.
    pub(crate) async fn make_namespace(&self, session: &Session<'_>) -> Result<bool, Fault> {
        let name = session.namespace();
        let sources = self.manifests.sources.values();
        let Some(object) = sources.filter_map(|source| source.namespace(&self.base, name)).next() else {
            return Ok(false);
        };
        apply(session, &given::clean(object), false).await.map(|()| true)
    }
}

async fn apply(session: &Session<'_>, object: &Value, force: bool) -> Result<(), Fault> {
    let text = |path: &str| object.pointer(path).and_then(Value::as_str).unwrap_or_default();
    let (kind, name) = (text("/kind"), text("/metadata/name"));
    let title = format!("{kind} {name}");
    let (group, version) = text("/apiVersion").split_once('/').unwrap_or(("", text("/apiVersion")));
    let wanted = GroupVersionKind::gvk(group, version, kind);
    let client = session.client();
    let (resource, scope) = resource(session, &wanted).await?;
    let mut object = object.clone();
    let api: Api<DynamicObject> = match scope {
        Scope::Cluster => Api::all_with(client, &resource),
        Scope::Namespaced => {
            let namespace = match text("/metadata/namespace") {
                "" => session.namespace().to_owned(),
                said => said.to_owned(),
            };
            object["metadata"]["namespace"] = json!(namespace);
            Api::namespaced_with(client, &namespace, &resource)
        }
    };
    let mut params = PatchParams::apply(MANAGER);
    params.force = force;
    let patch = Patch::Apply(&object);
    session
        .ask(&format!("apply the {title}"), || api.patch(name, &params, &patch))
        .await
        .map(drop)
        .map_err(|fault| explained(fault, &title, force))
}

async fn resource(session: &Session<'_>, wanted: &GroupVersionKind) -> Result<(ApiResource, Scope), Fault> {
    let client = session.client();
    let what = format!("look up {} of {}", wanted.kind, wanted.api_version());
    match session.ask(&what, || oneshot::pinned_kind(&client, wanted)).await {
        Ok((resource, capabilities)) => Ok((resource, capabilities.scope)),
        Err(fault) if fault.transient || matches!(fault.kind.as_str(), "unauthorized" | "forbidden") => Err(fault),
        Err(_) => Err(Fault::new(
            "kind-unknown",
            format!("the cluster has no {} in {}", wanted.kind, wanted.api_version()),
        )
        .help("bring its CustomResourceDefinition first, by `apply`; `kubectl api-resources` lists what there is")),
    }
}

/// Who manages what somebody else may not write, with the ways out.
pub(crate) fn explained(fault: Fault, title: &str, is_ours: bool) -> Fault {
    if fault.kind != "field-conflict" {
        return fault;
    }
    let managers: std::collections::BTreeSet<&str> = fault
        .details
        .iter()
        .filter_map(|line| line.split_once("conflict with \"")?.1.split('"').next())
        .collect();
    let owners = managers.into_iter().collect::<Vec<_>>().join(", ");
    Fault::new("field-conflict", format!("fields of the {title} are managed by somebody else: {owners}"))
        .details(fault.details.clone())
        .help(match is_ours {
            true => "say what they want in the pipeline or its manifests, or have them take back their change; nothing was written",
            false => {
                "leave these fields out of what the service is made from, have the other one give them up, or say `adopt = true` in the \
                 service to take them over"
            }
        })
}
