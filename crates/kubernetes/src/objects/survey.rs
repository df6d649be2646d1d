//! What a set will change, before anything is changed: its files, its objects, what is there of them, and what the cluster would refuse.

use super::kinds::{self, Kind, Kinds, MARK, SET, title};
use super::{Manifest, copies, order, read, state};
use crate::client::Session;
use crate::manifest::MANAGER;
use cdpipe_model::Fault;
use cdpipe_model::objects::{ApplySpec, ObjectWas, Surveyed, Was};
use cdpipe_model::plan::SourceFile;
use cdpipe_model::ports::BoxFuture;
use futures_util::StreamExt as _;
use kube::api::{ListParams, Patch, PatchParams};
use kube::core::DynamicObject;
use kube::core::discovery::verbs;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeSet;
use std::path::Path;

/// Questions at a time.
const AT_A_TIME: usize = 8;
/// Bytes of all that is kept of what was there.
const MAX_WAS_BYTES: usize = 8 << 20;

/// Reads the files of a set, those and no others that were pinned.
///
/// # Errors
/// `manifest-changed`, `artifact-missing`, `manifest-invalid`.
pub(super) fn load(base: &Path, spec: &ApplySpec) -> Result<(Vec<SourceFile>, Vec<Manifest>), Fault> {
    let names = match spec.files.is_empty() {
        true => read::files(base, &spec.path)?,
        false => spec.files.iter().map(|file| file.path.clone()).collect(),
    };
    let (mut files, mut texts) = (Vec::new(), Vec::new());
    for name in names {
        let bytes = read::bytes(base, &name)?;
        let hash = hash(&bytes);
        if let Some(pinned) = spec.files.iter().find(|file| file.path == name)
            && pinned.hash != hash
        {
            return Err(Fault::new(
                "manifest-changed",
                format!("{name} has changed since it was planned: expected {}, found {hash}", pinned.hash),
            )
            .help(
                "start a new run, which plans it as it is now; where a step of the pipeline writes it, say `generated = true`",
            ));
        }
        let text = String::from_utf8(bytes)
            .map_err(|_| Fault::new("manifest-invalid", format!("{name} is no text in UTF-8")))?;
        files.push(SourceFile { path: name.clone(), hash });
        texts.push((name, text));
    }
    let mut manifests = read::all(&texts)?;
    order::sort(&mut manifests);
    Ok((files, manifests))
}

/// How a file is pinned.
pub(super) fn hash(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// An object of a set without what was there.
pub(super) fn blank(session: &Session<'_>, one: &Manifest, kind: &Kind) -> ObjectWas {
    let namespace =
        kind.namespaced.then(|| one.namespace.clone().unwrap_or_else(|| session.namespace().to_owned()));
    ObjectWas {
        api_version: one.api_version.clone(),
        kind: one.kind.clone(),
        plural: kind.resource.plural.clone(),
        namespace,
        name: one.name.clone(),
        leaves: false,
        was: Was::Absent,
    }
}

/// What is sent to the cluster.
pub(super) fn body(spec: &ApplySpec, one: &Manifest, object: &ObjectWas) -> Value {
    let mut body = one.object.clone();
    if let Some(metadata) = body.get_mut("metadata").and_then(Value::as_object_mut) {
        for field in
            ["managedFields", "resourceVersion", "uid", "creationTimestamp", "generation", "selfLink"]
        {
            metadata.remove(field);
        }
        if let Some(namespace) = &object.namespace {
            metadata.insert("namespace".to_owned(), json!(namespace));
        }
        for (map, key, value) in [("labels", SET, &spec.set), ("annotations", MARK, &spec.mark)] {
            let map = metadata.entry(map).or_insert_with(|| json!({}));
            if map.is_null() {
                *map = json!({});
            }
            if let Some(map) = map.as_object_mut() {
                map.insert(key.to_owned(), json!(value));
            }
        }
    }
    body
}

pub(crate) async fn survey(session: &Session<'_>, base: &Path, spec: &ApplySpec) -> Result<Surveyed, Fault> {
    let (files, manifests) = load(base, spec)?;
    let kinds = kinds::find(session, &manifests).await?;
    let mut looks: Vec<BoxFuture<'_, Result<ObjectWas, Fault>>> = Vec::new();
    for one in &manifests {
        let kind = kind_of(&kinds, one)?;
        looks.push(Box::pin(async move {
            let mut object = blank(session, one, kind);
            if !kind.fresh {
                object.was = was(kinds::read(session, &object).await?, &object, spec)?;
            }
            Ok(object)
        }));
    }
    let mut objects = together(looks).await.into_iter().collect::<Result<Vec<_>, Fault>>()?;
    for at in 1..objects.len() {
        let (before, rest) = objects.split_at(at);
        if let Some(one) = rest.first().filter(|one| before.iter().any(|other| same(other, one))) {
            return Err(Fault::new("manifest-invalid", format!("{} is there twice", title(one)))
                .help("one of them names the namespace of the target, the other leaves it out: keep one"));
        }
    }
    try_out(session, spec, &manifests, &objects, &kinds).await?;
    if spec.prune {
        let leaving = leaving(session, spec, &objects).await?;
        objects.extend(leaving);
    }
    let bytes: usize = objects
        .iter()
        .map(|object| match &object.was {
            Was::There { object, .. } => object.len(),
            _ => 0,
        })
        .sum();
    if bytes > MAX_WAS_BYTES {
        return Err(Fault::new(
            "set-too-large",
            format!(
                "what is there of {} has {bytes} bytes, and up to {MAX_WAS_BYTES} are kept for the way back",
                spec.path
            ),
        )
        .help("apply it as several sets"));
    }
    Ok(Surveyed { files, objects })
}

/// Asks several questions at a time; the answers are in their order.
async fn together<T>(questions: Vec<BoxFuture<'_, T>>) -> Vec<T> {
    futures_util::stream::iter(questions).buffered(AT_A_TIME).collect().await
}

pub(super) fn kind_of<'k>(kinds: &'k Kinds, one: &Manifest) -> Result<&'k Kind, Fault> {
    kinds
        .get(&(one.api_version.clone(), one.kind.clone()))
        .ok_or_else(|| Fault::new("internal", format!("{} was not looked up", one.title())))
}

fn same(one: &ObjectWas, other: &ObjectWas) -> bool {
    (kinds::group(one), &one.kind, &one.namespace, &one.name)
        == (kinds::group(other), &other.kind, &other.namespace, &other.name)
}

fn was(found: Option<DynamicObject>, object: &ObjectWas, spec: &ApplySpec) -> Result<Was, Fault> {
    let Some(found) = found else { return Ok(Was::Absent) };
    if found.metadata.deletion_timestamp.is_some() {
        return Err(Fault::new("deleting", format!("{} is being deleted", title(object)))
            .help("wait until it is gone; if it stays, see which finalizer it waits for")
            .transient());
    }
    if object.kind == "Secret" && kinds::group(object).is_empty() {
        let copy = copies::name(&spec.mark, object, found.metadata.resource_version.as_deref());
        return Ok(Was::Copied { copy, mark: kinds::mark(&found).map(str::to_owned) });
    }
    let whole = serde_json::to_value(&found).unwrap_or_default();
    let ready = state::judge(&object.kind, kinds::group(object), &whole).is_ready();
    Ok(Was::There { object: clean(whole).to_string(), ready })
}

/// An object without what only the cluster says of it.
pub(super) fn clean(mut object: Value) -> Value {
    if let Some(whole) = object.as_object_mut() {
        whole.remove("status");
    }
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        for field in ["uid", "resourceVersion", "generation", "creationTimestamp", "selfLink"] {
            metadata.remove(field);
        }
    }
    object
}

/// Asks the cluster what it would say, where it can say it before other objects of the set are there.
async fn try_out(
    session: &Session<'_>,
    spec: &ApplySpec,
    manifests: &[Manifest],
    objects: &[ObjectWas],
    kinds: &Kinds,
) -> Result<(), Fault> {
    let fresh: BTreeSet<&str> = objects
        .iter()
        .filter(|object| object.kind == "Namespace" && object.was == Was::Absent)
        .map(|object| object.name.as_str())
        .collect();
    let defines = |one: &Manifest| {
        manifests.iter().any(|other| {
            other.kind == "CustomResourceDefinition"
                && other.object.pointer("/spec/group").and_then(Value::as_str) == Some(one.group())
        })
    };
    let mut params = PatchParams::apply(MANAGER).dry_run();
    params.force = spec.force;
    let mut asked: Vec<BoxFuture<'_, Option<Fault>>> = Vec::new();
    for (one, object) in manifests.iter().zip(objects) {
        let needs_others = one.kind == "Pod" || one.kind.ends_with("Binding") || defines(one);
        let place_comes = object.namespace.as_deref().is_some_and(|namespace| fresh.contains(namespace));
        if needs_others || place_comes || kind_of(kinds, one)?.fresh {
            continue;
        }
        let params = &params;
        asked.push(Box::pin(async move {
            let api = kinds::api(session, &kinds::resource(object), object.namespace.as_deref());
            let patch = Patch::Apply(body(spec, one, object));
            let answer = session
                .ask(&format!("apply {}", title(object)), || api.patch(&object.name, params, &patch))
                .await;
            answer.err().map(|fault| explained(fault, one, object))
        }));
    }
    let mut faults: Vec<Fault> = together(asked).await.into_iter().flatten().collect();
    faults.retain(|fault| !fault.message.contains("does not support dry run"));
    let mut faults = faults.into_iter();
    let Some(first) = faults.next() else { return Ok(()) };
    Err(first.details(faults.flat_map(|fault| std::iter::once(fault.message).chain(fault.details))))
}

/// A refusal, with what to do about it.
pub(super) fn explained(fault: Fault, one: &Manifest, object: &ObjectWas) -> Fault {
    match fault.kind.as_str() {
        "field-conflict" => {
            let fields = fault.details.join("; ");
            Fault {
                message: format!("{}: others manage fields of {}: {fields}", one.at, title(object)),
                help: Some(
                    "leave these fields out of the manifest, or have their manager give them up (`kubectl get -o yaml --show-managed-fields` \
                     shows who has what), or say `force = true`: then they are taken over"
                        .to_owned(),
                ),
                ..fault
            }
        }
        "cluster-refused" if fault.message.contains("immutable") => {
            Fault { message: format!("{}: {}", one.at, fault.message), ..fault }
                .help("such a field can't change: delete the object first, or give the new one another name")
        }
        "cancelled" | "timed-out" => fault,
        _ => Fault { message: format!("{}: {}", one.at, fault.message), ..fault },
    }
}

/// Objects that carry the mark of the set and are in none of its files.
async fn leaving(
    session: &Session<'_>,
    spec: &ApplySpec,
    objects: &[ObjectWas],
) -> Result<Vec<ObjectWas>, Fault> {
    let client = session.client();
    let found = session
        .ask("list what kinds there are", || async {
            kube::Discovery::new(client.clone()).run_aggregated().await
        })
        .await?;
    let mut namespaces: BTreeSet<String> = objects.iter().filter_map(|one| one.namespace.clone()).collect();
    namespaces.insert(session.namespace().to_owned());
    let mut kinds = Vec::new();
    for group in found.groups() {
        for (resource, about) in group.recommended_resources() {
            if about.supports_operation(verbs::LIST)
                && about.supports_operation(verbs::DELETE)
                && !order::holds_others(&resource.group, &resource.kind)
                && !matches!(resource.kind.as_str(), "Endpoints" | "EndpointSlice" | "Event" | "ReplicaSet")
            {
                let namespaced = about.scope == kube::core::discovery::Scope::Namespaced;
                kinds.push(Kind { resource, namespaced, fresh: false });
            }
        }
    }
    let mut asked: Vec<BoxFuture<'_, Result<Vec<ObjectWas>, Fault>>> = Vec::new();
    for kind in &kinds {
        asked.push(Box::pin(of_set(session, spec, kind, &namespaces)));
    }
    let lists = together(asked).await.into_iter().collect::<Result<Vec<_>, Fault>>()?;
    let mut leaving = Vec::new();
    for mut object in lists.into_iter().flatten() {
        if objects.iter().any(|one| same(one, &object)) {
            continue;
        }
        let Some(found) = kinds::read(session, &object).await? else { continue };
        let owned = found.metadata.owner_references.as_ref().is_some_and(|owners| !owners.is_empty());
        // Some controllers copy labels onto what they make: only what an apply has marked is ours.
        if owned || kinds::mark(&found).is_none() || found.metadata.deletion_timestamp.is_some() {
            continue;
        }
        object.was = was(Some(found), &object, spec)?;
        leaving.push(object);
    }
    // What stands on others goes first.
    leaving.sort_by_key(|object| std::cmp::Reverse(order::turn(kinds::group(object), &object.kind)));
    Ok(leaving)
}

async fn of_set(
    session: &Session<'_>,
    spec: &ApplySpec,
    kind: &Kind,
    namespaces: &BTreeSet<String>,
) -> Result<Vec<ObjectWas>, Fault> {
    let params = ListParams::default().labels(&format!("{SET}={}", spec.set));
    let what = format!("list {}", kind.resource.plural);
    // Who may not list a kind can't have applied it in a way that would need it gone; it is passed over.
    let passes = |fault: &Fault| matches!(fault.kind.as_str(), "forbidden" | "not-found");
    // Never beyond the namespaces of the set: another set of the same name elsewhere is another set.
    let places: Vec<Option<&str>> = match kind.namespaced {
        true => namespaces.iter().map(|namespace| Some(namespace.as_str())).collect(),
        false => vec![None],
    };
    let mut found = Vec::new();
    for place in places {
        let api = kinds::api(session, &kind.resource, place);
        match session.ask(&what, || api.list_metadata(&params)).await {
            Ok(list) => found.extend(list.items),
            Err(fault) if passes(&fault) => {}
            Err(fault) => return Err(fault),
        }
    }
    let objects = found.into_iter().filter_map(|one| {
        Some(ObjectWas {
            api_version: kind.resource.api_version.clone(),
            kind: kind.resource.kind.clone(),
            plural: kind.resource.plural.clone(),
            namespace: one.metadata.namespace.filter(|_| kind.namespaced),
            name: one.metadata.name?,
            leaves: true,
            was: Was::Absent,
        })
    });
    Ok(objects.collect())
}
