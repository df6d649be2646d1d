//! Manifests: one or many documents of YAML or JSON in each file.

use cdpipe_model::Fault;
use serde_json::Value;
use std::path::Path;

/// Bytes of one file.
const MAX_FILE_BYTES: u64 = 8 << 20;
/// Objects of one set.
const MAX_OBJECTS: usize = 2_000;

/// One object as it is written, and where.
#[derive(Debug, Clone, PartialEq)]
pub struct Manifest {
    /// Its file, relative to the pipeline's, and which document of it, where there are several: `k8s/web.yaml #2`.
    pub at: String,
    /// `apps/v1`, or `v1`.
    pub api_version: String,
    /// `Deployment`.
    pub kind: String,
    /// The object's name.
    pub name: String,
    /// Its namespace, where it says one.
    pub namespace: Option<String>,
    /// All of it.
    pub object: Value,
}

impl Manifest {
    /// The API group; "" for that of Pods and Services.
    pub fn group(&self) -> &str {
        self.api_version.split_once('/').map_or("", |(group, _)| group)
    }

    /// The version of that group.
    pub fn version(&self) -> &str {
        self.api_version.split_once('/').map_or(self.api_version.as_str(), |(_, version)| version)
    }

    /// `Deployment web`, for people.
    pub fn title(&self) -> String {
        format!("{} {}", self.kind, self.name)
    }
}

/// The files that a path, a folder or a glob names, relative to `base`, sorted. Not empty.
///
/// # Errors
/// `artifact-missing` if there are none, or a folder can't be read.
pub fn files(base: &Path, pattern: &str) -> Result<Vec<String>, Fault> {
    super::glob::expand(base, pattern)
}

/// The bytes of such a file.
pub(crate) fn bytes(base: &Path, file: &str) -> Result<Vec<u8>, Fault> {
    let path = base.join(file);
    let unreadable = |error: std::io::Error| {
        Fault::new("artifact-missing", format!("{} cannot be read: {error}", path.display()))
            .help("its path is relative to the pipeline's file")
    };
    let size = std::fs::metadata(&path).map_err(unreadable)?.len();
    if size > MAX_FILE_BYTES {
        return Err(Fault::new(
            "manifest-invalid",
            format!("{file} has {size} bytes, and manifests of up to {MAX_FILE_BYTES} are read"),
        ));
    }
    std::fs::read(&path).map_err(unreadable)
}

/// Every object of a file, in the order it is written; a `List` is the objects in it, an empty document none.
///
/// # Errors
/// `manifest-invalid` with the file and the document.
pub fn manifests(file: &str, text: &str) -> Result<Vec<Manifest>, Fault> {
    let invalid = |at: &str, why: String| Fault::new("manifest-invalid", format!("{at}: {why}"));
    let documents: Vec<Value> =
        serde_saphyr::from_multiple(text).map_err(|error| invalid(file, error.to_string()))?;
    let several = documents.len() > 1;
    let mut found = Vec::new();
    for (document, number) in documents.into_iter().zip(1..) {
        let at = if several { format!("{file} #{number}") } else { file.to_owned() };
        add(&mut found, document, &at, 0)?;
        if found.len() > MAX_OBJECTS {
            return Err(invalid(file, format!("there are more than {MAX_OBJECTS} objects")));
        }
    }
    Ok(found)
}

fn add(found: &mut Vec<Manifest>, object: Value, at: &str, depth: u32) -> Result<(), Fault> {
    let invalid = |why: String| Fault::new("manifest-invalid", format!("{at}: {why}"));
    if object.is_null() {
        return Ok(());
    }
    if !object.is_object() {
        return Err(invalid("a manifest is a mapping with `apiVersion`, `kind` and `metadata`".to_owned()));
    }
    let text = |path: &str| {
        object.pointer(path).and_then(Value::as_str).filter(|text| !text.is_empty()).map(str::to_owned)
    };
    let kind = text("/kind").ok_or_else(|| invalid("there is no `kind`".to_owned()))?;
    let api_version =
        text("/apiVersion").ok_or_else(|| invalid(format!("this {kind} has no `apiVersion`")))?;
    if kind.ends_with("List")
        && let Some(items) = object.get("items").and_then(Value::as_array)
    {
        if depth > 0 {
            return Err(invalid("a List in a List".to_owned()));
        }
        return items.iter().try_for_each(|item| add(found, item.clone(), at, depth + 1));
    }
    let name = text("/metadata/name").ok_or_else(|| {
        invalid(match text("/metadata/generateName") {
            Some(_) => format!("this {kind} has a `generateName`: what is applied twice must have a name"),
            None => format!("this {kind} has no `metadata.name`"),
        })
    })?;
    let namespace = text("/metadata/namespace");
    found.push(Manifest { at: at.to_owned(), api_version, kind, name, namespace, object });
    Ok(())
}

/// Every object that a path, a folder or a glob names, file by file.
///
/// # Errors
/// Those of [`files`] and [`manifests`]; `manifest-invalid` if an object is there twice.
pub(crate) fn all(texts: &[(String, String)]) -> Result<Vec<Manifest>, Fault> {
    let mut found: Vec<Manifest> = Vec::new();
    for (file, text) in texts {
        found.extend(manifests(file, text)?);
    }
    let mut seen = std::collections::BTreeMap::new();
    for one in &found {
        let key = (one.group(), one.kind.as_str(), one.namespace.as_deref(), one.name.as_str());
        if let Some(before) = seen.insert(key, &one.at) {
            return Err(Fault::new(
                "manifest-invalid",
                format!("{} is there twice: in {before} and in {}", one.title(), one.at),
            )
            .help("an object has one manifest: take one of them out"));
        }
    }
    if found.is_empty() {
        let files: Vec<&str> = texts.iter().map(|(file, _)| file.as_str()).collect();
        return Err(Fault::new("manifest-invalid", format!("there is no object in {}", files.join(", "))));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_document_of_a_file_is_an_object_and_empty_ones_are_none() {
        let text = "---\n# nothing\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, namespace: x}\ndata: {on: \"yes\"}\n\
                    ---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {name: b}\n---\n";
        let found = manifests("k8s/a.yaml", text).unwrap();
        let titles: Vec<String> = found.iter().map(Manifest::title).collect();
        assert_eq!(titles, ["ConfigMap a", "Deployment b"]);
        assert_eq!(found[0].namespace.as_deref(), Some("x"));
        assert_eq!((found[1].group(), found[1].version()), ("apps", "v1"));
        assert_eq!((found[0].group(), found[0].version()), ("", "v1"));
        assert!(found[1].at.starts_with("k8s/a.yaml #"));
        assert_eq!(found[0].object["data"]["on"], "yes");
    }

    #[test]
    fn a_list_is_the_objects_in_it_and_json_is_read_too() {
        let text = r#"{"apiVersion":"v1","kind":"List","items":[{"apiVersion":"v1","kind":"Secret","metadata":{"name":"s"}}]}"#;
        let found = manifests("a.json", text).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].title().as_str(), found[0].at.as_str()), ("Secret s", "a.json"));
    }

    #[test]
    fn what_is_no_manifest_is_said_with_its_file() {
        for (text, why) in [
            ("a: [", "f.yaml"),
            ("- 1\n", "a manifest is a mapping"),
            ("kind: X\n", "this X has no `apiVersion`"),
            ("apiVersion: v1\n", "there is no `kind`"),
            ("apiVersion: v1\nkind: X\n", "no `metadata.name`"),
            ("apiVersion: v1\nkind: X\nmetadata: {generateName: a-}\n", "generateName"),
        ] {
            let fault = manifests("f.yaml", text).unwrap_err();
            assert_eq!(fault.kind, "manifest-invalid");
            assert!(fault.message.contains("f.yaml") && fault.message.contains(why), "{text:?}: {fault}");
        }
    }

    #[test]
    fn an_object_that_is_there_twice_is_refused() {
        let one = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n".to_owned();
        let fault = all(&[("a.yaml".to_owned(), one.clone()), ("b.yaml".to_owned(), one)]).unwrap_err();
        assert_eq!(fault.message, "ConfigMap a is there twice: in a.yaml and in b.yaml");
        let fault = all(&[("a.yaml".to_owned(), "---\n".to_owned())]).unwrap_err();
        assert_eq!(fault.message, "there is no object in a.yaml");
    }
}
