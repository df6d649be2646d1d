//! Which kinds the cluster knows, and objects of any of them.

use super::Manifest;
use crate::client::Session;
use cdpipe_model::Fault;
use cdpipe_model::objects::ObjectWas;
use kube::core::discovery::Scope;
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use kube::error::DiscoveryError;
use kube::{Api, Error, discovery};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// The label that says which set an object belongs to.
pub(crate) const SET: &str = "cdpipe.dev/set";
/// The annotation that says which step of which run has applied an object last.
pub(crate) const MARK: &str = "cdpipe.dev/apply";

/// A kind as the API server serves it.
#[derive(Debug, Clone)]
pub(crate) struct Kind {
    pub(crate) resource: ApiResource,
    pub(crate) namespaced: bool,
    /// It comes with the set: nothing of it can be there yet.
    pub(crate) fresh: bool,
}

/// By `apiVersion` and `kind`.
pub(crate) type Kinds = BTreeMap<(String, String), Kind>;

/// The kinds of these objects; those that their own CRDs bring count as known.
///
/// # Errors
/// `kind-unknown` with the file.
pub(crate) async fn find(session: &Session<'_>, manifests: &[Manifest]) -> Result<Kinds, Fault> {
    let mut kinds = Kinds::new();
    for one in manifests {
        let key = (one.api_version.clone(), one.kind.clone());
        if kinds.contains_key(&key) {
            continue;
        }
        let kind = match look_up(session, one).await? {
            Some(kind) => kind,
            None => brought(manifests, one).ok_or_else(|| {
                Fault::new(
                    "kind-unknown",
                    format!("{}: the cluster knows no {} of {}", one.at, one.kind, one.api_version),
                )
                .help("put its CustomResourceDefinition into the set, or install it first; `kubectl api-resources` shows what there is")
            })?,
        };
        kinds.insert(key, kind);
    }
    Ok(kinds)
}

async fn look_up(session: &Session<'_>, one: &Manifest) -> Result<Option<Kind>, Fault> {
    let gvk = GroupVersionKind::gvk(one.group(), one.version(), &one.kind);
    let client = session.client();
    session
        .ask(&format!("say what a {} of {} is", one.kind, one.api_version), || async {
            match discovery::pinned_kind(&client, &gvk).await {
                Ok((resource, about)) => {
                    let namespaced = about.scope == Scope::Namespaced;
                    Ok(Some(Kind { resource, namespaced, fresh: false }))
                }
                Err(Error::Discovery(
                    DiscoveryError::MissingKind(_)
                    | DiscoveryError::MissingApiGroup(_)
                    | DiscoveryError::MissingResource(_)
                    | DiscoveryError::EmptyApiGroup(_),
                )) => Ok(None),
                Err(Error::Api(status)) if status.code == 404 => Ok(None),
                Err(error) => Err(error),
            }
        })
        .await
}

/// A kind that a CRD of the set brings.
fn brought(manifests: &[Manifest], one: &Manifest) -> Option<Kind> {
    let text = |object: &Value, path: &str| object.pointer(path).and_then(Value::as_str).map(str::to_owned);
    let definition = manifests.iter().find(|other| {
        other.kind == "CustomResourceDefinition"
            && text(&other.object, "/spec/group").as_deref() == Some(one.group())
            && text(&other.object, "/spec/names/kind").as_deref() == Some(one.kind.as_str())
    })?;
    let plural = text(&definition.object, "/spec/names/plural")?;
    let gvk = GroupVersionKind::gvk(one.group(), one.version(), &one.kind);
    Some(Kind {
        resource: ApiResource::from_gvk_with_plural(&gvk, &plural),
        namespaced: text(&definition.object, "/spec/scope").as_deref() == Some("Namespaced"),
        fresh: true,
    })
}

/// Group, resource and namespace of all of these objects, as far as the cluster knows their kinds.
pub(crate) async fn places(
    session: &Session<'_>,
    manifests: &[Manifest],
) -> Result<BTreeSet<(String, String, Option<String>)>, Fault> {
    let kinds = find(session, manifests).await?;
    let places = manifests.iter().filter_map(|one| {
        let kind = kinds.get(&(one.api_version.clone(), one.kind.clone()))?;
        let namespace = one.namespace.clone().unwrap_or_else(|| session.namespace().to_owned());
        Some((one.group().to_owned(), kind.resource.plural.clone(), kind.namespaced.then_some(namespace)))
    });
    Ok(places.collect())
}

/// Objects of this kind, in this namespace or in none.
pub(crate) fn api(
    session: &Session<'_>,
    resource: &ApiResource,
    namespace: Option<&str>,
) -> Api<DynamicObject> {
    match namespace {
        Some(namespace) => Api::namespaced_with(session.client(), namespace, resource),
        None => Api::all_with(session.client(), resource),
    }
}

/// The kind of an object that was seen.
pub(crate) fn resource(object: &ObjectWas) -> ApiResource {
    let (group, version) = object.api_version.split_once('/').unwrap_or(("", &object.api_version));
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, &object.kind), &object.plural)
}

/// The API group of an object that was seen.
pub(crate) fn group(object: &ObjectWas) -> &str {
    object.api_version.split_once('/').map_or("", |(group, _)| group)
}

/// `Deployment shop/web`, for people.
pub(crate) fn title(object: &ObjectWas) -> String {
    match &object.namespace {
        Some(namespace) => format!("{} {namespace}/{}", object.kind, object.name),
        None => format!("{} {}", object.kind, object.name),
    }
}

/// Reads one object.
pub(crate) async fn read(session: &Session<'_>, object: &ObjectWas) -> Result<Option<DynamicObject>, Fault> {
    let api = api(session, &resource(object), object.namespace.as_deref());
    session.ask_for(&format!("read {}", title(object)), || api.get(&object.name)).await
}

/// The mark on an object.
pub(crate) fn mark(object: &DynamicObject) -> Option<&str> {
    object.metadata.annotations.as_ref()?.get(MARK).map(String::as_str)
}
