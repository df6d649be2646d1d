//! Manifests that a user wrote, as what a release is made from: which of them is the workload, what comes with it, and what cdpipe
//! puts into it. Nothing here asks a cluster.

use crate::kind::{KINDS, Kind};
use crate::manifest::rolling_name;
use crate::objects::{Manifest, all, bytes, files, order};
use cdpipe_model::release::{Artifact, ReleaseSpec};
use cdpipe_model::{Fault, Value as Said};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::path::Path;

/// What stands before the source of a workload that was there before cdpipe.
pub(crate) const FOUND: &str = "found: ";
/// The source that is the standard input of the run.
const STDIN: &str = "-";
/// An object's annotations hold 256 KiB together, and a template is in them once.
const MAX_DOCUMENT_BYTES: usize = 150 << 10;
/// Written by the cluster, or by whoever applied it: not part of what a user wants.
const NOT_WANTED: [&str; 7] = [
    "managedFields",
    "resourceVersion",
    "uid",
    "generation",
    "creationTimestamp",
    "selfLink",
    "ownerReferences",
];
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// What a release is made from that is not made from an image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Document {
    /// The workload as it was given, without how many.
    pub(crate) workload: Value,
    /// What is applied before it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) objects: Vec<Value>,
}

impl Document {
    pub(crate) fn kind(&self) -> Kind {
        self.workload["kind"].as_str().and_then(Kind::of).unwrap_or(Kind::Deployment)
    }

    pub(crate) fn name(&self) -> &str {
        self.workload["metadata"]["name"].as_str().unwrap_or_default()
    }
}

/// The document of a release, if it is made from one.
///
/// # Errors
/// `state-unreadable` if it is none.
pub(crate) fn document(spec: &ReleaseSpec) -> Result<Option<Document>, Fault> {
    let Artifact::Document { json, .. } = &spec.artifact else { return Ok(None) };
    serde_json::from_str(json).map(Some).map_err(|error| {
        Fault::new("state-unreadable", format!("release {} cannot be read: {error}", spec.id()))
    })
}

/// Whether it was there before cdpipe.
pub(crate) fn is_found(spec: &ReleaseSpec) -> bool {
    matches!(&spec.artifact, Artifact::Document { source, .. } if source.starts_with(FOUND))
}

/// Whether how many there are is for the platform to say: an autoscaler, or the number of nodes.
pub(crate) fn scales_itself(spec: &ReleaseSpec) -> bool {
    matches!(&spec.artifact, Artifact::Document { replicas: None, .. })
}

/// Kind and name of the workload that rolls to this release.
///
/// # Errors
/// Those of [`document`].
pub(crate) fn place(spec: &ReleaseSpec) -> Result<(Kind, String), Fault> {
    Ok(match document(spec)? {
        Some(document) if is_found(spec) => (document.kind(), document.name().to_owned()),
        Some(document) => {
            let name = spec.platform_name.as_deref().unwrap_or(document.name());
            (document.kind(), name.to_owned())
        }
        None => (Kind::Deployment, rolling_name(&spec.service, spec.platform_name.as_deref())),
    })
}

/// Manifests of a service: where they are, and which of them is the workload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// A path, a folder or a glob; `-` is the standard input.
    pub path: String,
    /// `Deployment/web`, where more than one is among them.
    pub workload: Option<String>,
    /// What stood on the standard input.
    pub text: Option<String>,
}

impl Source {
    fn of(source: &str, text: &str) -> Self {
        let split = source.rsplit_once('#').filter(|(_, workload)| workload.contains('/'));
        let (path, workload) = split.map_or((source, None), |(path, workload)| (path, Some(workload)));
        let text = (path == STDIN).then(|| text.to_owned());
        Self { path: path.to_owned(), workload: workload.map(str::to_owned), text }
    }

    /// All of them.
    ///
    /// # Errors
    /// `artifact-missing`, `manifest-invalid`, `artifact-unfit`.
    pub fn read(&self, base: &Path) -> Result<Vec<Manifest>, Fault> {
        let mut texts = Vec::new();
        if self.path == STDIN {
            let text = self.text.clone().unwrap_or_default();
            if text.trim().is_empty() {
                return Err(Fault::new("artifact-missing", "there are no manifests on the standard input")
                    .help("hand them over: `helm template … | cdpipe run pipeline.cd`"));
            }
            texts.push(("the standard input".to_owned(), text));
        } else {
            for file in files(base, &self.path)? {
                let text = String::from_utf8(bytes(base, &file)?).map_err(|_| {
                    Fault::new("manifest-invalid", format!("{file} is no UTF-8 text"))
                        .help("a manifest is YAML or JSON")
                })?;
                texts.push((file, text));
            }
        }
        let found = all(&texts)?;
        if let Some(one) = found.iter().find(|one| one.kind == "Secret" && one.group().is_empty()) {
            return Err(Fault::new(
                "artifact-unfit",
                format!(
                    "{} is a {}: what a release is made from is kept in the cluster and in the journal, and the values of a Secret \
                     belong in neither",
                    one.at,
                    one.title()
                ),
            )
            .help("take it out: `env` of the service takes a `secret`, and `apply` brings a Secret that is a file"));
        }
        Ok(found)
    }

    /// Kind and name of the workload.
    ///
    /// # Errors
    /// Those of reading it.
    pub(crate) fn place(&self, base: &Path) -> Result<(Kind, String), Fault> {
        if let Some((kind, name)) = self.workload.as_deref().and_then(|text| text.split_once('/'))
            && let Some(kind) = Kind::of(kind)
        {
            return Ok((kind, name.to_owned()));
        }
        let found = self.read(base)?;
        let (kind, at) = pick(&found, None)?;
        Ok((kind, found[at].name.clone()))
    }

    /// The Namespace of this name, if it is among them.
    pub(crate) fn namespace(&self, base: &Path, name: &str) -> Option<Value> {
        let found = self.read(base).ok()?;
        found
            .into_iter()
            .find(|one| one.kind == "Namespace" && one.group().is_empty() && one.name == name)
            .map(|one| one.object)
    }
}

/// Looks at manifests from the standard input before they are written down.
///
/// # Errors
/// `manifest-invalid`, `artifact-missing`, `artifact-unfit`.
pub fn screen(text: &str) -> Result<(), Fault> {
    Source::of(STDIN, text).read(Path::new("")).map(drop)
}

fn pick(found: &[Manifest], wanted: Option<&str>) -> Result<(Kind, usize), Fault> {
    let kind = |one: &Manifest| Kind::of(&one.kind).filter(|_| one.group() == "apps");
    let workloads: Vec<(Kind, usize)> =
        found.iter().enumerate().filter_map(|(at, one)| Some((kind(one)?, at))).collect();
    let names = || {
        let names: Vec<String> =
            workloads.iter().map(|(kind, at)| format!("{}/{}", kind.as_str(), found[*at].name)).collect();
        names.join(", ")
    };
    if let Some(wanted) = wanted {
        let is = |(kind, at): &&(Kind, usize)| format!("{}/{}", kind.as_str(), found[*at].name) == wanted;
        return workloads.iter().find(is).copied().ok_or_else(|| {
            let fault = Fault::new("artifact-unfit", format!("there is no {wanted} among the manifests"));
            if workloads.is_empty() {
                fault.help("a service is a Deployment, a StatefulSet or a DaemonSet")
            } else {
                fault.help(format!("`workload` can be {}", names()))
            }
        });
    }
    match workloads.as_slice() {
        [one] => Ok(*one),
        [] => Err(Fault::new("artifact-unfit", "there is no workload among the manifests").help(format!(
            "a service is one of {}; other objects are brought by `apply`",
            KINDS.map(Kind::as_str).join(", ")
        ))),
        [_, ..] => Err(Fault::new(
            "artifact-unfit",
            format!("there are {} workloads among the manifests: {}", workloads.len(), names()),
        )
        .help(format!(
            "say which of them is the service: `workload = \"{}\"`",
            names().split(',').next().unwrap_or_default()
        ))),
    }
}

/// Finds what the release is: reads its manifests, once.
///
/// # Errors
/// `artifact-missing`, `manifest-invalid`, `artifact-unfit`.
pub(crate) fn resolve(
    spec: &ReleaseSpec,
    base: &Path,
    namespace: &str,
    beside: bool,
) -> Result<ReleaseSpec, Fault> {
    let mut spec = spec.clone();
    let Artifact::Document { source, json, replicas } = &mut spec.artifact else { return Ok(spec) };
    let from = Source::of(source, json);
    if !json.is_empty() && from.path != STDIN {
        // A release that is brought back is what it was, whatever the files say now.
        return Ok(spec);
    }
    let mut found = from.read(base)?;
    let (kind, at) = pick(&found, from.workload.as_deref())?;
    let chosen = found.remove(at);
    let title = chosen.title();
    if let Some(other) = chosen.namespace.as_deref().filter(|other| *other != namespace) {
        return Err(Fault::new(
            "artifact-unfit",
            format!("{}: {title} belongs to the namespace {other}, and the target is {namespace}", chosen.at),
        )
        .help(format!("say `namespace = \"{other}\"` in the target, or leave it out of the manifest")));
    }
    if beside && kind != Kind::Deployment {
        return Err(Fault::new(
            "artifact-unfit",
            format!("{}: two releases side by side are two Deployments, and {title} is none", chosen.at),
        )
        .help(format!("deploy {} by `rolling`, which the cluster does by itself", spec.service)));
    }
    let mut workload = clean(chosen.object);
    if kind == Kind::DaemonSet && replicas.is_some() {
        return Err(Fault::new(
            "artifact-unfit",
            format!("`replicas` of {} means nothing: {title} has a pod on each node", spec.service),
        )
        .help("leave `replicas` out"));
    }
    let said = workload["spec"].as_object_mut().and_then(|spec| spec.remove("replicas"));
    if replicas.is_none() && kind != Kind::DaemonSet {
        *replicas = said.as_ref().and_then(Value::as_u64).and_then(|said| u32::try_from(said).ok());
    }
    order::sort(&mut found);
    let objects = found.into_iter().map(|one| clean(one.object)).collect();
    let document = Document { workload, objects };
    let text = serde_json::to_string(&document)
        .map_err(|error| Fault::new("internal", format!("manifests cannot be written down: {error}")))?;
    if text.len() > MAX_DOCUMENT_BYTES {
        return Err(Fault::new(
            "artifact-unfit",
            format!(
                "the manifests of {} are {} bytes, and a release remembers up to {MAX_DOCUMENT_BYTES}",
                spec.service,
                text.len()
            ),
        )
        .help("name only the workload and what changes with it; `apply` brings the rest (CustomResourceDefinitions, dashboards)"));
    }
    *json = text;
    if from.path == STDIN {
        // It is not to be taken for what stood there when it is resolved once more.
        *source = source.replacen(STDIN, "stdin", 1);
    }
    let container = container(&document.workload, &spec)?;
    if container["image"].as_str().unwrap_or_default().is_empty() && !spec.extra.contains_key("image") {
        return Err(Fault::new("artifact-unfit", format!("the container of {title} has no image"))
            .help("give the service an `image`"));
    }
    if spec.port.is_none() {
        let port = container["ports"][0]["containerPort"].as_u64();
        spec.port = port.and_then(|port| u16::try_from(port).ok());
    }
    Ok(spec)
}

/// Without what a cluster or another tool has written into it.
pub(crate) fn clean(mut object: Value) -> Value {
    if let Some(all) = object.as_object_mut() {
        all.remove("status");
    }
    if let Some(metadata) = object["metadata"].as_object_mut() {
        for name in NOT_WANTED {
            metadata.remove(name);
        }
        if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
            annotations.remove(LAST_APPLIED);
        }
    }
    object
}

/// Which container of the pod is the service.
fn container<'a>(workload: &'a Value, spec: &ReleaseSpec) -> Result<&'a Value, Fault> {
    let containers = workload["spec"]["template"]["spec"]["containers"].as_array();
    let containers = containers.map(Vec::as_slice).unwrap_or_default();
    let at = index(containers, workload, spec)?;
    containers.get(at).ok_or_else(|| no_container(workload))
}

fn no_container(workload: &Value) -> Fault {
    let name = workload["metadata"]["name"].as_str().unwrap_or_default();
    Fault::new("artifact-unfit", format!("the template of {name} has no containers"))
        .help("give it one under `spec.template.spec.containers`")
}

/// The name of the container that is the service, where a manifest says what there is.
///
/// # Errors
/// If none of them can be it.
pub(crate) fn container_name(spec: &ReleaseSpec) -> Result<Option<String>, Fault> {
    let Some(document) = document(spec)? else { return Ok(None) };
    Ok(container(&document.workload, spec)?["name"].as_str().map(str::to_owned))
}

fn index(containers: &[Value], workload: &Value, spec: &ReleaseSpec) -> Result<usize, Fault> {
    let names: Vec<&str> = containers.iter().map(|one| one["name"].as_str().unwrap_or_default()).collect();
    if let Some(Said::Str(wanted)) = spec.extra.get("container") {
        return names.iter().position(|name| name == wanted).ok_or_else(|| {
            Fault::new(
                "artifact-unfit",
                format!("there is no container `{wanted}`; there are {}", names.join(", ")),
            )
            .help("`container` names one of the template's containers")
        });
    }
    let like = |wanted: &str| names.iter().position(|name| *name == wanted);
    match names.as_slice() {
        [] => Err(no_container(workload)),
        [_] => Ok(0),
        _ => like(spec.service.as_str())
            .or_else(|| like(workload["metadata"]["name"].as_str().unwrap_or_default()))
            .ok_or_else(|| {
                Fault::new(
                    "artifact-unfit",
                    format!(
                        "the pods of {} have several containers, and none of them is called so: {}",
                        spec.service,
                        names.join(", ")
                    ),
                )
                .help("say which of them is the service: `container = \"…\"`")
            }),
    }
}

/// The pod's template with what cdpipe puts into it: `container` is what the release says of its container, as it would be made
/// from an image.
///
/// # Errors
/// If it has no such container.
pub(crate) fn template(document: &Document, spec: &ReleaseSpec, own: &Value) -> Result<Value, Fault> {
    let mut template = document.workload["spec"]["template"].clone();
    let containers = template["spec"]["containers"].as_array().cloned().unwrap_or_default();
    let at = index(&containers, &document.workload, spec)?;
    let container = &mut template["spec"]["containers"][at];
    if let Some(Said::Str(image)) = spec.extra.get("image") {
        container["image"] = json!(image);
    }
    // Only what the pipeline says; all else stays as it was given.
    for field in ["readinessProbe", "livenessProbe", "resources", "args", "command", "workingDir"] {
        if let Some(said) = own.get(field) {
            container[field] = said.clone();
        }
    }
    for (field, said) in own["securityContext"].as_object().into_iter().flatten() {
        container["securityContext"][field] = said.clone();
    }
    if let Some(port) = spec.port {
        let ports = container["ports"].as_array().cloned().unwrap_or_default();
        if !ports.iter().any(|one| one["containerPort"] == json!(port)) {
            container["ports"] =
                json!(ports.into_iter().chain([json!({"containerPort": port})]).collect::<Vec<_>>());
        }
    }
    let mut env = container["env"].as_array().cloned().unwrap_or_default();
    for said in own["env"].as_array().into_iter().flatten() {
        match env.iter_mut().find(|one| one["name"] == said["name"]) {
            Some(there) => *there = said.clone(),
            None => env.push(said.clone()),
        }
    }
    container["env"] = json!(env);
    Ok(template)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cdpipe_model::ServiceName;
    use std::collections::BTreeMap;

    const WEB: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: settings}\ndata: {color: blue}\n---\napiVersion: apps/v1\nkind: \
         Deployment\nmetadata: {name: web, uid: x}\nspec:\n  replicas: 3\n  selector: {matchLabels: {app: web}}\n  template:\n    metadata: \
         {labels: {app: web}}\n    spec:\n      affinity: {nodeAffinity: {}}\n      containers:\n      - {name: web, image: 'shop:1', \
         ports: [{containerPort: 8080}], env: [{name: A, value: given}]}\n      - {name: side, image: side}\n---\napiVersion: v1\nkind: \
         Namespace\nmetadata: {name: shop}\n";

    fn spec(source: &str, text: &str) -> ReleaseSpec {
        ReleaseSpec {
            service: ServiceName::from("web"),
            platform_name: None,
            version: String::new(),
            artifact: Artifact::Document { source: source.to_owned(), json: text.to_owned(), replicas: None },
            port: None,
            env: BTreeMap::new(),
            health: Vec::new(),
            drain_ms: 0,
            extra: BTreeMap::new(),
        }
    }

    fn resolved(text: &str) -> Result<ReleaseSpec, Fault> {
        resolve(&spec("-", text), Path::new("/"), "shop", false)
    }

    #[test]
    fn the_workload_is_one_of_the_manifests_and_the_others_come_before_it() {
        let spec = resolved(WEB).unwrap();
        let document = document(&spec).unwrap().unwrap();
        assert_eq!(place(&spec).unwrap(), (Kind::Deployment, "web".to_owned()));
        let kinds: Vec<&str> = document.objects.iter().filter_map(|one| one["kind"].as_str()).collect();
        assert_eq!(kinds, ["Namespace", "ConfigMap"]);
        assert_eq!(spec.port, Some(8080));
        assert!(matches!(spec.artifact, Artifact::Document { replicas: Some(3), .. }));
        assert!(document.workload["spec"].get("replicas").is_none());
        assert!(document.workload["metadata"].get("uid").is_none());
    }

    #[test]
    fn the_release_is_another_when_the_manifests_are_but_not_when_only_the_count_is() {
        let id = resolved(WEB).unwrap().id();
        assert_eq!(resolved(&WEB.replace("replicas: 3", "replicas: 5")).unwrap().id(), id);
        assert_eq!(resolved(&WEB.replace("  replicas: 3\n", "")).unwrap().id(), id);
        assert_ne!(resolved(&WEB.replace("blue", "green")).unwrap().id(), id);
        assert_ne!(resolved(&WEB.replace("shop:1", "shop:2")).unwrap().id(), id);
        // What was resolved stays what it is.
        let once = resolved(WEB).unwrap();
        assert_eq!(resolve(&once, Path::new("/"), "shop", false).unwrap(), once);
    }

    #[test]
    fn what_the_pipeline_says_goes_over_what_was_given_and_all_else_stays() {
        let mut spec = resolved(WEB).unwrap();
        spec.extra.insert("image".to_owned(), Said::Str("shop:2".to_owned()));
        let document = document(&spec).unwrap().unwrap();
        let own = json!({"env": [{"name": "A", "value": "said"}, {"name": "B", "value": "new"}], "readinessProbe": {"tcpSocket": {}}});
        let template = template(&document, &spec, &own).unwrap();
        let web = &template["spec"]["containers"][0];
        assert_eq!(web["image"], "shop:2");
        assert_eq!(web["env"], own["env"]);
        assert!(web.get("readinessProbe").is_some() && web.get("livenessProbe").is_none());
        assert_eq!(template["spec"]["containers"][1], json!({"name": "side", "image": "side"}));
        assert!(template["spec"].get("affinity").is_some());
    }

    #[test]
    fn what_can_not_be_a_service_is_refused_with_a_way_out() {
        let two =
            format!("{WEB}---\n{}", WEB.split("---\n").nth(1).unwrap().replace("name: web", "name: other"));
        let set = WEB.replace("kind: Deployment", "kind: StatefulSet");
        let other = |text: &str, beside: bool| resolve(&spec("-", text), Path::new("/"), "shop", beside);
        for (fault, says) in [
            (resolved(&two), "workload = \"Deployment/web\""),
            (resolved("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n"), "brought by `apply`"),
            (
                resolved(&format!("{WEB}---\napiVersion: v1\nkind: Secret\nmetadata: {{name: s}}\n")),
                "takes a `secret`",
            ),
            (resolved(&WEB.replace("{name: web, uid: x}", "{name: web, namespace: b}")), "namespace = \"b\""),
            (other(&set, true), "by `rolling`"),
            (resolved(""), "helm template"),
            (
                resolve(&spec("-#Deployment/no", WEB), Path::new("/"), "shop", false),
                "`workload` can be Deployment/web",
            ),
        ] {
            let fault = fault.unwrap_err();
            assert!(fault.help.as_ref().is_some_and(|help| help.contains(says)), "{says}: {fault:?}");
        }
        assert!(other(&set, false).is_ok());
    }
}
