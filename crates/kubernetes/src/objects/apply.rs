//! Applies a set, in order, and waits for what the next objects stand on.

use super::kinds::{self, title};
use super::order::{self, Turn, turn};
use super::survey::{body, explained, load};
use super::{copies, state, wait};
use crate::client::Session;
use crate::manifest::MANAGER;
use cdpipe_host::Masker;
use cdpipe_model::Fault;
use cdpipe_model::event::Stream;
use cdpipe_model::objects::{ApplySpec, ObjectWas, Was};
use kube::api::{DeleteParams, Patch, PatchParams};
use std::path::Path;

pub(crate) async fn apply(
    session: &Session<'_>,
    masker: &Masker,
    base: &Path,
    spec: &ApplySpec,
    objects: &[ObjectWas],
) -> Result<(), Fault> {
    let (_, manifests) = load(base, spec)?;
    let (leaving, coming): (Vec<&ObjectWas>, Vec<&ObjectWas>) =
        objects.iter().partition(|object| object.leaves);
    copies::make(session, spec, objects).await?;
    let mut params = PatchParams::apply(MANAGER);
    params.force = spec.force;
    let mut awaited: Vec<&ObjectWas> = Vec::new();
    let mut last = None;
    for (number, object) in coming.iter().enumerate() {
        let now = turn(kinds::group(object), &object.kind);
        let stands_on_it = matches!(last, Some(Turn::Places | Turn::Kinds)) || now == Turn::Gates;
        if last != Some(now) && stands_on_it {
            wait::all(session, masker, &awaited, "is applied").await?;
            awaited.clear();
        }
        last = Some(now);
        let one = manifests
            .iter()
            .find(|one| {
                let namespace = one.namespace.as_deref().unwrap_or(session.namespace());
                (one.api_version.as_str(), one.kind.as_str(), one.name.as_str())
                    == (object.api_version.as_str(), object.kind.as_str(), object.name.as_str())
                    && object.namespace.as_deref().is_none_or(|wanted| wanted == namespace)
            })
            .ok_or_else(|| {
                Fault::new("manifest-changed", format!("{} is in no file any more", title(object)))
                    .help("start a new run, which plans the files as they are now")
            })?;
        session.call.sink.progress(&format!("{} of {}: {}", number + 1, coming.len(), title(object)));
        let api = kinds::api(session, &kinds::resource(object), object.namespace.as_deref());
        let patch = Patch::Apply(body(spec, one, object));
        let applied = session
            .ask(&format!("apply {}", title(object)), || api.patch(&object.name, &params, &patch))
            .await
            .map_err(|fault| explained(fault, one, object))?;
        let what = match (&object.was, applied.metadata.generation) {
            (Was::Absent, _) => "created",
            _ => "applied",
        };
        session.call.sink.output(Stream::Stdout, &format!("{what} {}", title(object)));
        if state::is_awaited(&object.kind, kinds::group(object)) {
            awaited.push(object);
        }
    }
    wait::all(session, masker, &awaited, "is applied").await?;
    for object in leaving {
        delete(session, object, None).await?;
        session
            .call
            .sink
            .output(Stream::Stdout, &format!("deleted {}, which is in no file any more", title(object)));
    }
    copies::clear(session, spec, objects, false).await;
    Ok(())
}

/// Deletes an object, of this uid if one is named, and waits until it is gone. Nothing there is fine; what holds other things stays.
pub(super) async fn delete(
    session: &Session<'_>,
    object: &ObjectWas,
    uid: Option<&str>,
) -> Result<(), Fault> {
    if order::holds_others(kinds::group(object), &object.kind) {
        return Ok(());
    }
    let api = kinds::api(session, &kinds::resource(object), object.namespace.as_deref());
    let mut params = DeleteParams::background();
    params.preconditions = uid.map(|uid| kube::api::Preconditions {
        uid: Some(uid.to_owned()),
        ..kube::api::Preconditions::default()
    });
    let what = format!("delete {}", title(object));
    session.ask_for(&what, || api.delete(&object.name, &params)).await?;
    wait::gone(session, object, uid).await
}
