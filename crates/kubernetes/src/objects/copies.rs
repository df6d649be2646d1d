//! Secrets as they were: of a Secret that is changed a copy stays beside it, so that no value is ever in a journal.

use super::kinds::{self, MARK, title};
use super::survey::clean;
use crate::client::Session;
use crate::manifest::MANAGER;
use cdpipe_model::Fault;
use cdpipe_model::objects::{ApplySpec, ObjectWas, Was};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::{DeleteParams, ListParams, PostParams};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, BTreeSet};

/// The label of copies: of which set.
const BEFORE: &str = "cdpipe.dev/before";
/// The one key of a copy.
const KEY: &str = "object";

/// The name of a copy: another one for each version that is replaced.
pub(super) fn name(mark: &str, object: &ObjectWas, version: Option<&str>) -> String {
    let text = format!(
        "{mark}\n{}\n{}\n{}",
        object.namespace.as_deref().unwrap_or(""),
        object.name,
        version.unwrap_or("")
    );
    let hex: String =
        Sha256::digest(text.as_bytes()).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    format!("cdpipe-before-{hex}")
}

fn secrets(session: &Session<'_>, object: &ObjectWas) -> Api<Secret> {
    let namespace = object.namespace.as_deref().unwrap_or(session.namespace());
    Api::namespaced(session.client(), namespace)
}

/// Makes the copies, before anything is changed.
///
/// # Errors
/// If one can't be made.
pub(super) async fn make(
    session: &Session<'_>,
    spec: &ApplySpec,
    objects: &[ObjectWas],
) -> Result<(), Fault> {
    for object in objects {
        let Was::Copied { copy, .. } = &object.was else { continue };
        let api = secrets(session, object);
        if session.ask(&format!("read the Secret {copy}"), || api.get_opt(copy)).await?.is_some() {
            continue;
        }
        let Some(found) = kinds::read(session, object).await? else { continue };
        let whole = clean(serde_json::to_value(&found).unwrap_or_default()).to_string();
        let body = Secret {
            metadata: ObjectMeta {
                name: Some(copy.clone()),
                labels: Some(BTreeMap::from([(BEFORE.to_owned(), spec.set.clone())])),
                annotations: Some(BTreeMap::from([(MARK.to_owned(), spec.mark.clone())])),
                ..ObjectMeta::default()
            },
            data: Some(BTreeMap::from([(KEY.to_owned(), ByteString(whole.into_bytes()))])),
            type_: Some("Opaque".to_owned()),
            ..Secret::default()
        };
        let params = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
        let made =
            session.ask(&format!("keep a copy of {}", title(object)), || api.create(&params, &body)).await;
        match made {
            Ok(_) => {}
            // An earlier try of the same question was answered after all.
            Err(fault) if fault.kind == "conflict" && fault.message.contains("already exists") => {}
            Err(fault) => return Err(fault),
        }
    }
    Ok(())
}

/// What a Secret was.
///
/// # Errors
/// `copy-lost`.
pub(super) async fn read(session: &Session<'_>, object: &ObjectWas, copy: &str) -> Result<Value, Fault> {
    let lost = || {
        Fault::new("copy-lost", format!("the Secret {copy}, which keeps what {} was, is gone", title(object)))
            .help("apply the Secret as it was by hand")
    };
    let api = secrets(session, object);
    let found =
        session.ask(&format!("read the Secret {copy}"), || api.get_opt(copy)).await?.ok_or_else(lost)?;
    let bytes = found.data.as_ref().and_then(|data| data.get(KEY)).ok_or_else(lost)?;
    serde_json::from_slice(&bytes.0).map_err(|_| lost())
}

/// Deletes copies of the set: those of an earlier apply, or of this one too. What can't be deleted stays and does no harm.
pub(super) async fn clear(session: &Session<'_>, spec: &ApplySpec, objects: &[ObjectWas], own_too: bool) {
    let places: BTreeSet<&str> = objects
        .iter()
        .filter(|object| object.kind == "Secret")
        .map(|object| object.namespace.as_deref().unwrap_or(session.namespace()))
        .collect();
    let params = ListParams::default().labels(&format!("{BEFORE}={}", spec.set));
    let plainly = DeleteParams::default();
    for namespace in places {
        let api: Api<Secret> = Api::namespaced(session.client(), namespace);
        let Ok(list) = session.ask("list copies of Secrets", || api.list_metadata(&params)).await else {
            continue;
        };
        for one in list.items {
            let Some(name) = one.metadata.name else { continue };
            let own =
                objects.iter().any(|object| matches!(&object.was, Was::Copied { copy, .. } if *copy == name));
            if own == own_too || !own {
                let _ = session.ask_for("delete a copy of a Secret", || api.delete(&name, &plainly)).await;
            }
        }
    }
}
