//! A set as it was before: what was there is there again, what was not is gone.

use super::apply::delete;
use super::kinds::{self, mark, title};
use super::order::{self, Turn, turn};
use super::{copies, state, wait};
use crate::client::Session;
use crate::manifest::MANAGER;
use cdpipe_host::Masker;
use cdpipe_model::Fault;
use cdpipe_model::event::Stream;
use cdpipe_model::objects::{ApplySpec, ObjectWas, Was};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use kube::api::PostParams;
use kube::core::DynamicObject;
use serde_json::Value;

/// Others may write between our look and our change; more often than this is no accident.
const TRIES: usize = 20;

/// When an object is deleted: what may have to be let go by its controller before that controller goes.
fn deleted_at(object: &ObjectWas) -> u8 {
    match turn(kinds::group(object), &object.kind) {
        Turn::Gates => 0,
        Turn::Edges => 1,
        Turn::Others => 2,
        Turn::Workloads => 3,
        Turn::Names => 4,
        Turn::Settings => 5,
        Turn::Rules => 6,
        Turn::Kinds => 7,
        Turn::Places => 8,
    }
}

pub(crate) async fn take_back(
    session: &Session<'_>,
    masker: &Masker,
    spec: &ApplySpec,
    objects: &[ObjectWas],
) -> Result<(), Fault> {
    let mut faults = Vec::new();
    let mut created: Vec<&ObjectWas> = objects.iter().filter(|object| object.was == Was::Absent).collect();
    created.sort_by_key(|object| deleted_at(object));
    let is_gate = |object: &ObjectWas| turn(kinds::group(object), &object.kind) == Turn::Gates;
    // A gate that came with the set might refuse what comes back.
    for object in created.iter().filter(|object| is_gate(object)) {
        remove(session, spec, object, &mut faults).await?;
    }
    let mut back: Vec<&ObjectWas> = objects.iter().filter(|object| object.was != Was::Absent).collect();
    back.sort_by_key(|object| turn(kinds::group(object), &object.kind));
    let mut awaited = Vec::new();
    for object in back {
        session.call.sink.progress(&format!("going back: {}", title(object)));
        match restore(session, spec, object).await {
            Ok(true) => {
                session.call.sink.output(Stream::Stdout, &format!("restored {}", title(object)));
                if state::is_awaited(&object.kind, kinds::group(object))
                    && matches!(&object.was, Was::There { ready: true, .. })
                {
                    awaited.push(object);
                }
            }
            Ok(false) => {}
            Err(fault) => keep_on(fault, &mut faults)?,
        }
    }
    if let Err(fault) = wait::all(session, masker, &awaited, "is as it was").await {
        keep_on(fault, &mut faults)?;
    }
    for object in created.iter().filter(|object| !is_gate(object)) {
        remove(session, spec, object, &mut faults).await?;
    }
    let mut faults = faults.into_iter();
    match faults.next() {
        Some(first) => Err(first.details(faults.map(|fault| fault.message))),
        None => {
            copies::clear(session, spec, objects, true).await;
            Ok(())
        }
    }
}

/// One object that can't go back keeps no other from it; a cluster that is away does.
fn keep_on(fault: Fault, faults: &mut Vec<Fault>) -> Result<(), Fault> {
    if fault.transient || matches!(fault.kind.as_str(), "cancelled" | "timed-out") {
        return Err(fault);
    }
    faults.push(fault);
    Ok(())
}

/// Deletes what the set has created, if it is still of this apply.
async fn remove(
    session: &Session<'_>,
    spec: &ApplySpec,
    object: &ObjectWas,
    faults: &mut Vec<Fault>,
) -> Result<(), Fault> {
    let found = match kinds::read(session, object).await {
        Ok(Some(found)) => found,
        Ok(None) => return Ok(()),
        Err(fault) => return keep_on(fault, faults),
    };
    if mark(&found) != Some(spec.mark.as_str()) {
        // Not made by this step, or taken over by another apply.
        return Ok(());
    }
    if order::holds_others(kinds::group(object), &object.kind) {
        let text = format!("{} stays: with it would go what it holds", title(object));
        session.call.sink.output(Stream::Stdout, &text);
        return Ok(());
    }
    session.call.sink.progress(&format!("going back: deleting {}", title(object)));
    match delete(session, object, found.metadata.uid.as_deref()).await {
        Ok(()) => {
            session.call.sink.output(Stream::Stdout, &format!("deleted {}", title(object)));
            Ok(())
        }
        Err(fault) => keep_on(fault, faults),
    }
}

/// Has an object as it was; answers whether anything had to be done.
async fn restore(session: &Session<'_>, spec: &ApplySpec, object: &ObjectWas) -> Result<bool, Fault> {
    let api = kinds::api(session, &kinds::resource(object), object.namespace.as_deref());
    let params = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
    let mut last = None;
    for _ in 0..TRIES {
        let found = kinds::read(session, object).await?;
        if let (Some(found), Was::Copied { mark: before, .. }) = (&found, &object.was)
            && mark(found) != Some(spec.mark.as_str())
        {
            return untouched(object, mark(found), before.as_deref());
        }
        let was = before(session, object).await?;
        let done = match found {
            None => {
                // Whose fields they were counts only for an object that is there.
                let mut next = was.clone();
                next.metadata.managed_fields = None;
                session.ask(&format!("create {} again", title(object)), || api.create(&params, &next)).await
            }
            Some(found) => {
                if mark(&found) != Some(spec.mark.as_str()) {
                    return untouched(object, mark(&found), mark(&was));
                }
                if let Some(who) = interfered(&was, &found) {
                    return Err(Fault::new(
                        "moved",
                        format!("{} was changed by {who} since: it was left as it is", title(object)),
                    )
                    .help("look at it with `kubectl get -o yaml --show-managed-fields`, and apply by hand what should be there"));
                }
                let mut next = was.clone();
                next.metadata.resource_version = found.metadata.resource_version.clone();
                next.metadata.uid = found.metadata.uid.clone();
                session
                    .ask(&format!("put {} back", title(object)), || api.replace(&object.name, &params, &next))
                    .await
            }
        };
        match done {
            Ok(now) => {
                give_fields_back(session, object, &was, now).await?;
                return Ok(true);
            }
            Err(fault) if fault.kind == "conflict" => last = Some(fault),
            Err(fault) => return Err(fault),
        }
    }
    Err(last.unwrap_or_else(|| Fault::new("conflict", format!("{} changes all the time", title(object)))))
}

fn untouched(object: &ObjectWas, now: Option<&str>, before: Option<&str>) -> Result<bool, Fault> {
    if now == before {
        // This step never got to it, or it is back already.
        return Ok(false);
    }
    Err(Fault::new(
        "superseded",
        format!("{} was applied again since, by {}", title(object), now.unwrap_or("somebody else")),
    )
    .help("it was left as it is; apply by hand what should be there"))
}

async fn before(session: &Session<'_>, object: &ObjectWas) -> Result<DynamicObject, Fault> {
    let unreadable = || Fault::new("internal", format!("what {} was cannot be read any more", title(object)));
    let whole: Value = match &object.was {
        Was::There { object, .. } => serde_json::from_str(object).map_err(|_| unreadable())?,
        Was::Copied { copy, .. } => copies::read(session, object, copy).await?,
        Was::Absent => return Err(unreadable()),
    };
    serde_json::from_value(whole).map_err(|_| unreadable())
}

/// Who else has written more than labels and a status since.
fn interfered(was: &DynamicObject, now: &DynamicObject) -> Option<String> {
    let entries = |object: &DynamicObject| object.metadata.managed_fields.clone().unwrap_or_default();
    let before = entries(was);
    let says_more = |entry: &ManagedFieldsEntry| {
        let fields = entry.fields_v1.as_ref().and_then(|fields| fields.0.as_object());
        fields.is_some_and(|all| all.keys().any(|field| !matches!(field.as_str(), "f:metadata" | "f:status")))
    };
    let changed = |entry: &ManagedFieldsEntry| {
        !before.iter().any(|old| {
            (&old.manager, &old.operation, &old.subresource, &old.time)
                == (&entry.manager, &entry.operation, &entry.subresource, &entry.time)
        })
    };
    entries(now)
        .into_iter()
        .find(|entry| {
            entry.manager.as_deref() != Some(MANAGER)
                && entry.subresource.as_deref().unwrap_or("").is_empty()
                && says_more(entry)
                && changed(entry)
        })
        .map(|entry| entry.manager.unwrap_or_else(|| "somebody".to_owned()))
}

/// Whose fields they were is whose they are again: else the next apply would not know which of them are its own.
async fn give_fields_back(
    session: &Session<'_>,
    object: &ObjectWas,
    was: &DynamicObject,
    mut now: DynamicObject,
) -> Result<(), Fault> {
    let api = kinds::api(session, &kinds::resource(object), object.namespace.as_deref());
    let params = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
    for _ in 0..TRIES {
        now.metadata.managed_fields.clone_from(&was.metadata.managed_fields);
        let what = format!("put the field managers of {} back", title(object));
        match session.ask(&what, || api.replace(&object.name, &params, &now)).await {
            Ok(_) => return Ok(()),
            Err(fault) if fault.kind == "conflict" => {}
            Err(fault) => return Err(fault),
        }
        let Some(found) = kinds::read(session, object).await? else { return Ok(()) };
        now = found;
    }
    Ok(())
}
