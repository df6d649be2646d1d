//! What was there before cdpipe: as a release, taken over, and given back as it was.

use crate::given::{Document, FOUND, clean};
use crate::kind::Workload;
use crate::manifest::MANAGER;
use cdpipe_model::release::{Artifact, ReleaseSpec};
use cdpipe_model::{Fault, ServiceName};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Who scales by itself, as a field manager.
const AUTOSCALER: &str = "kube-controller-manager";

/// A workload that is there, as the release that serves.
///
/// # Errors
/// `internal`.
pub(crate) fn release(
    service: &ServiceName,
    platform_name: Option<&str>,
    seen: &Workload,
) -> Result<ReleaseSpec, Fault> {
    let mut spec = seen.spec.clone();
    if let Some(spec) = spec.as_object_mut() {
        spec.remove("replicas");
    }
    let workload = clean(json!({
        "apiVersion": "apps/v1",
        "kind": seen.kind.as_str(),
        "metadata": {"name": seen.name()},
        "spec": spec,
    }));
    let containers = seen.spec["template"]["spec"]["containers"].as_array();
    let first = containers.and_then(|all| all.first()).cloned().unwrap_or_default();
    let port = first["ports"][0]["containerPort"].as_u64().and_then(|port| u16::try_from(port).ok());
    let image = first["image"].as_str().unwrap_or_default();
    let tag = image.rsplit('/').next().and_then(|name| name.split_once(':')).map(|(_, tag)| tag);
    let json = serde_json::to_string(&Document { workload, objects: Vec::new() })
        .map_err(|error| Fault::new("internal", format!("a workload cannot be written down: {error}")))?;
    let source = format!("{FOUND}{}/{}", seen.kind.as_str(), seen.name());
    Ok(ReleaseSpec {
        service: service.clone(),
        platform_name: platform_name.map(str::to_owned),
        version: tag.unwrap_or_default().to_owned(),
        artifact: Artifact::Document {
            source,
            json,
            replicas: (!is_autoscaled(seen)).then(|| seen.replicas()),
        },
        port,
        env: BTreeMap::new(),
        health: Vec::new(),
        drain_ms: 10_000,
        extra: BTreeMap::new(),
    })
}

/// The same, written down.
///
/// # Errors
/// `internal`.
pub(crate) fn text(
    service: &ServiceName,
    platform_name: Option<&str>,
    seen: &Workload,
) -> Result<String, Fault> {
    serde_json::to_string(&release(service, platform_name, seen)?)
        .map_err(|error| Fault::new("internal", format!("a workload cannot be written down: {error}")))
}

fn is_autoscaled(seen: &Workload) -> bool {
    seen.metadata.managed_fields.iter().flatten().any(|entry| {
        entry.subresource.as_deref() == Some("scale") && entry.manager.as_deref() == Some(AUTOSCALER)
    })
}

/// Whether we are the only ones who say how many there are to be: who gives that up has it set back to one.
pub(crate) fn alone_owns_replicas(seen: &Workload) -> bool {
    let mut owners = seen.metadata.managed_fields.iter().flatten().filter(|entry| {
        let fields = entry.fields_v1.as_ref().map(|fields| &fields.0);
        fields.is_some_and(|fields| fields["f:spec"].get("f:replicas").is_some())
    });
    owners.next().is_some_and(|owner| {
        owner.manager.as_deref() == Some(MANAGER) && owner.operation.as_deref() == Some("Apply")
    }) && owners.next().is_none()
}

/// `managedFields` in which all of `spec` but the count is ours, whoever wrote it: so that what is applied next is all there is.
/// `None` if it is so already.
pub(crate) fn taken_over(seen: &Workload) -> Option<Value> {
    let mut entries = serde_json::to_value(seen.metadata.managed_fields.as_ref()?).ok()?;
    let is_ours = |entry: &Value| {
        entry["manager"] == MANAGER && entry["operation"] == "Apply" && entry["subresource"].is_null()
    };
    let mut spec = Map::new();
    for entry in entries.as_array_mut()?.iter_mut().filter(|entry| !is_ours(entry)) {
        if !entry["subresource"].is_null() {
            continue;
        }
        let Some(fields) = entry["fieldsV1"]["f:spec"].as_object_mut() else { continue };
        let replicas = fields.remove("f:replicas");
        merge(&mut spec, std::mem::take(fields));
        match replicas {
            Some(replicas) => {
                fields.insert("f:replicas".to_owned(), replicas);
            }
            None => {
                if let Some(all) = entry["fieldsV1"].as_object_mut() {
                    all.remove("f:spec");
                }
            }
        }
    }
    if spec.is_empty() {
        return None;
    }
    let entries = entries.as_array_mut()?;
    match entries.iter_mut().find(|entry| is_ours(entry)) {
        Some(own) => {
            let mut all = own["fieldsV1"]["f:spec"].as_object().cloned().unwrap_or_default();
            merge(&mut all, spec);
            own["fieldsV1"]["f:spec"] = Value::Object(all);
        }
        None => entries.push(json!({
            "manager": MANAGER,
            "operation": "Apply",
            "apiVersion": "apps/v1",
            "fieldsType": "FieldsV1",
            "fieldsV1": {"f:spec": spec},
        })),
    }
    Some(Value::Array(entries.clone()))
}

/// Both sets of fields.
fn merge(into: &mut Map<String, Value>, from: Map<String, Value>) {
    for (name, value) in from {
        match (into.get_mut(&name), value) {
            (Some(Value::Object(there)), Value::Object(more)) => merge(there, more),
            (Some(_), _) => {}
            (None, value) => {
                into.insert(name, value);
            }
        }
    }
}

/// A selector as a list of objects is asked for.
pub(crate) fn selector(selector: &LabelSelector) -> String {
    let pairs = selector.match_labels.iter().flatten().map(|(name, value)| format!("{name}={value}"));
    let expressions = selector.match_expressions.iter().flatten().map(|one| {
        let values = one.values.clone().unwrap_or_default().join(",");
        match one.operator.as_str() {
            "In" => format!("{} in ({values})", one.key),
            "NotIn" => format!("{} notin ({values})", one.key),
            "Exists" => one.key.clone(),
            _ => format!("!{}", one.key),
        }
    });
    pairs.chain(expressions).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::Kind;

    fn seen(managed: Value) -> Workload {
        let object = json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "managedFields": managed},
            "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "web"}}, "template": {"metadata": {"labels": {"app": "web"}},
                     "spec": {"containers": [{"name": "w", "image": "127.0.0.1:5000/shop:1.0", "ports": [{"containerPort": 8080}]}]}}},
        });
        Workload::read(Kind::Deployment, serde_json::from_value(object).unwrap()).unwrap()
    }

    fn entry(manager: &str, operation: &str, fields: &Value) -> Value {
        json!({"manager": manager, "operation": operation, "apiVersion": "apps/v1", "fieldsType": "FieldsV1", "fieldsV1": fields})
    }

    #[test]
    fn what_is_taken_over_is_everything_but_the_count_and_what_is_not_the_spec() {
        let kubectl = json!({"f:metadata": {"f:labels": {}}, "f:spec": {"f:replicas": {}, "f:template": {"f:spec": {"f:a": {}}}}});
        let editor = json!({"f:spec": {"f:template": {"f:spec": {"f:b": {}}}}});
        let workload = seen(json!([entry("kubectl", "Update", &kubectl), entry("editor", "Apply", &editor)]));
        let taken = taken_over(&workload).unwrap();
        assert_eq!(
            taken[0]["fieldsV1"],
            json!({"f:metadata": {"f:labels": {}}, "f:spec": {"f:replicas": {}}})
        );
        assert_eq!(taken[1]["fieldsV1"], json!({}));
        assert_eq!(taken[2]["manager"], "cdpipe");
        assert_eq!(taken[2]["fieldsV1"]["f:spec"]["f:template"]["f:spec"], json!({"f:a": {}, "f:b": {}}));
        // Once more there is nothing to do.
        assert_eq!(taken_over(&seen(json!([taken[0], taken[2]]))), None);
    }

    #[test]
    fn only_who_alone_says_how_many_has_to_hand_it_over() {
        let count = json!({"f:spec": {"f:replicas": {}}});
        assert!(alone_owns_replicas(&seen(json!([entry("cdpipe", "Apply", &count)]))));
        assert!(!alone_owns_replicas(&seen(json!([
            entry("cdpipe", "Apply", &count),
            entry("hpa", "Update", &count)
        ]))));
        assert!(!alone_owns_replicas(&seen(json!([entry("cdpipe", "Apply", &json!({"f:spec": {}}))]))));
    }

    #[test]
    fn what_is_there_is_a_release_that_the_count_does_not_change() {
        let service = ServiceName::from("web");
        let one = release(&service, None, &seen(json!([]))).unwrap();
        assert_eq!((one.version.as_str(), one.port), ("1.0", Some(8080)));
        let mut more = seen(json!([]));
        more.spec["replicas"] = json!(9);
        assert_eq!(release(&service, None, &more).unwrap().id(), one.id());
        more.spec["template"]["spec"]["containers"][0]["image"] = json!("other");
        assert_ne!(release(&service, None, &more).unwrap().id(), one.id());
    }
}
