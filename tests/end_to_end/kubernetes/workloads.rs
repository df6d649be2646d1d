//! Manifests that a user wrote: their Deployments, StatefulSets and DaemonSets, what comes with them, what belongs to others, and
//! what was there before cdpipe.

use super::space::{LONG, Space, assert_ended, ended};
use cdpipe_tests::deployed::comes_true;
use serde_json::Value;
use std::io::Write as _;
use std::process::Stdio;

/// What the service of these tests is made from, but for its image.
const MANIFESTS: &str = "apiVersion: apps/v1\nkind: @KIND@\nmetadata: {name: store, labels: {app: store}}\nspec:\n  selector: {matchLabels: {app: \
     store}}@MORE@\n  template:\n    metadata: {labels: {app: store}, annotations: {team: shop}}\n    spec:\n      terminationGracePeriodSeconds: \
     2\n      containers:\n      - name: store\n        image: not-replaced\n        ports: [{containerPort: 8080}]\n        env:\n        - {name: \
     COLOR, valueFrom: {configMapKeyRef: {name: settings, key: color}}}\n        - {name: KEPT, value: as-given}\n        readinessProbe: {httpGet: \
     {path: /health, port: 8080}, periodSeconds: 1}\n        resources: {requests: {cpu: 11m}}\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: \
     {name: settings}\ndata: {color: blue}\n";

impl Space {
    /// A namespace with these manifests and a pipeline that deploys the service made from them.
    pub(super) fn given(test: &str, kind: &str, more: &str, service: &str, strategy: &str) -> Option<Self> {
        let space = Self::new(test, "kubernetes-rolling.cd")?;
        let text = MANIFESTS.replace("@KIND@", kind).replace("@MORE@", more);
        space.place.write("k8s/store.yaml", text).unwrap();
        space.service("manifest = \"k8s/*.yaml\"", service, strategy);
        Some(space)
    }

    /// Writes the pipeline.
    fn service(&self, made: &str, service: &str, strategy: &str) {
        let registry = std::env::var("CDPIPE_LAB_REGISTRY").unwrap();
        let name = &self.name;
        let text = format!(
            "pipeline store {{ mode = deployment }}\nparam version: string = \"1.0\"\nenvironment cluster {{\n  target kubernetes {{ namespace = \
             \"{name}\" }}\n}}\nservice store {{\n  {made}\n  image = \"{registry}/shop:${{version}}\"\n  drain = 1s\n  {service}\n}}\nstage release \
             {{\n  deploy store to cluster {{\n    {strategy}\n  }}\n}}\n"
        );
        self.place.write("pipeline.cd", text).unwrap();
    }

    fn edit(&self, file: &str, from: &str, to: &str) {
        let text = std::fs::read_to_string(self.place.work().join(file)).unwrap();
        assert!(text.contains(from), "{from} is not in {text}");
        self.place.write(file, text.replace(from, to)).unwrap();
    }

    fn object(&self, object: &str) -> Value {
        let text = self.try_kubectl(&["-n", &self.name, "get", object, "-o", "json"]).unwrap_or_default();
        serde_json::from_str(&text).unwrap_or_default()
    }

    /// Applies a manifest as somebody else.
    fn kubectl_apply(&self, text: &str) {
        let path = self.place.write("other.yaml", text).unwrap();
        self.kubectl(&["-n", &self.name, "apply", "-f", &path.display().to_string()]);
    }
}

#[test]
fn manifests_are_deployed_as_they_are_given_and_what_comes_with_them_is_there_first() {
    let Some(space) =
        Space::given("given", "Deployment", "\n  replicas: 2", "env { ADDED = \"yes\" }", "rolling {}")
    else {
        return;
    };
    let plan = space.place.run(["plan", "pipeline.cd"]).unwrap();
    assert_ended(&plan, 0, &["store"]);
    assert_eq!(space.field("deployments", "{.items[*].metadata.name}"), "");
    assert_eq!(space.field("configmap/settings", "{.metadata.name}"), "");
    assert_ended(&space.run("1.0"), 0, &[]);
    space.serves("1.0", 2);
    let store = space.object("deployment/store");
    let container = &store["spec"]["template"]["spec"]["containers"][0];
    let env = |name: &str| {
        let all = container["env"].as_array().unwrap();
        all.iter().find(|one| one["name"] == name).cloned().unwrap_or_default()
    };
    assert_eq!(env("COLOR")["valueFrom"]["configMapKeyRef"]["name"], "settings");
    assert_eq!(env("KEPT")["value"], "as-given");
    assert_eq!(env("ADDED")["value"], "yes");
    assert_eq!(
        env("CDPIPE_RELEASE")["value"],
        store["spec"]["template"]["metadata"]["labels"]["cdpipe.dev/release"]
    );
    assert_eq!(container["resources"]["requests"]["cpu"], "11m");
    assert_eq!(container["readinessProbe"]["periodSeconds"], 1);
    assert_eq!(store["spec"]["template"]["metadata"]["annotations"]["team"], "shop");
    assert_eq!(space.field("configmap/settings", "{.data.color}"), "blue");
    // The same again is nothing to do; how many is no other release; what the manifests say is one.
    let generation = |space: &Space| space.field("deployment/store", "{.metadata.generation}");
    let before = generation(&space);
    assert_ended(&space.run("1.0"), 0, &["unchanged"]);
    assert_eq!(generation(&space), before);
    let names = space.field("pods", "{.items[*].metadata.name}");
    space.edit("k8s/store.yaml", "replicas: 2", "replicas: 3");
    assert_ended(&space.run("1.0"), 0, &[]);
    space.serves("1.0", 3);
    let now = space.field("pods", "{.items[*].metadata.name}");
    assert!(names.split(' ').all(|name| now.contains(name)), "{names} are not all among {now}");
    // A bad release goes back to the manifests of before, what comes with them too.
    space.edit("k8s/store.yaml", "color: blue", "color: red");
    space.edit("k8s/store.yaml", "as-given", "changed");
    assert_ended(&space.run("no-such-tag"), 3, &["ErrImagePull"]);
    space.serves("1.0", 3);
    assert_eq!(space.field("configmap/settings", "{.data.color}"), "blue");
    assert_eq!(space.object("deployment/store")["spec"]["template"], store["spec"]["template"]);
}

#[test]
fn a_stateful_set_rolls_in_order_and_a_broken_pod_does_not_keep_it_from_going_back() {
    let more = "\n  serviceName: store\n  replicas: 2";
    let Some(space) = Space::given("stateful", "StatefulSet", more, "", "rolling {}") else { return };
    assert_ended(&space.run("1.0"), 0, &[]);
    space.serves("1.0", 2);
    assert_ended(&space.run("1.1"), 0, &[]);
    space.serves("1.1", 2);
    assert_eq!(space.field("pods", "{.items[*].metadata.name}"), "store-0 store-1");
    let template = space.object("statefulset/store")["spec"]["template"].clone();
    assert_ended(&space.run("no-such-tag"), 3, &["ErrImagePull"]);
    space.serves("1.1", 2);
    assert_eq!(space.object("statefulset/store")["spec"]["template"], template);
    assert_ended(&space.run("1.1"), 0, &["unchanged"]);
    space.edit("pipeline.cd", "rolling {}", "recreate {}");
    assert_ended(&space.run("1.2"), 1, &["two releases side by side are two Deployments"]);
    space.serves("1.1", 2);
    assert_ended(&space.place.run(["down", "pipeline.cd"]).unwrap(), 0, &[]);
    assert_eq!(space.field("statefulsets,pods", "{.items[*].metadata.name}"), "");
}

#[test]
fn a_daemon_set_rolls_on_each_node_and_goes_back() {
    let Some(space) = Space::given("daemon", "DaemonSet", "", "", "rolling { max_unavailable = 1 }") else {
        return;
    };
    let nodes = space.kubectl(&["get", "nodes", "-o", "name"]).lines().count();
    assert_ended(&space.run("1.0"), 0, &[]);
    space.serves("1.0", nodes);
    assert_ended(&space.run("1.1"), 0, &[]);
    space.serves("1.1", nodes);
    assert_ended(&space.run("no-such-tag"), 3, &["ErrImagePull"]);
    space.serves("1.1", nodes);
}

#[test]
fn a_field_that_somebody_else_manages_is_explained_and_taken_over_only_when_told_to() {
    let Some(space) = Space::given("conflict", "Deployment", "\n  replicas: 1", "", "rolling {}") else {
        return;
    };
    space.kubectl_apply(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: settings}\ndata: {color: green, other: theirs}\n",
    );
    let refused = space.run("1.0");
    assert_ended(
        &refused,
        1,
        &["ConfigMap settings", "kubectl-client-side-apply", ".data.color", "adopt = true"],
    );
    assert_eq!(space.field("configmap/settings", "{.data.color}"), "green");
    assert_eq!(space.field("deployments,pods", "{.items[*].metadata.name}"), "");
    space.edit("pipeline.cd", "drain = 1s", "drain = 1s\n  adopt = true");
    assert_ended(&space.run("1.0"), 0, &[]);
    assert_eq!(space.field("configmap/settings", "{.data.color} {.data.other}"), "blue theirs");
    // What is changed by hand between two deploys is noticed.
    let registry = std::env::var("CDPIPE_LAB_REGISTRY").unwrap();
    space.kubectl(&[
        "-n",
        &space.name,
        "set",
        "image",
        "deployment/store",
        &format!("store={registry}/shop:1.2"),
    ]);
    space.serves("1.2", 1);
    assert_ended(&space.run("1.1"), 4, &["Deployment store", "managed by somebody else: kubectl-set"]);
    space.serves("1.2", 1);
}

/// A Deployment as somebody has it who does not know cdpipe.
fn theirs() -> String {
    let registry = std::env::var("CDPIPE_LAB_REGISTRY").unwrap();
    format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: store, labels: {{team: theirs}}}}\nspec:\n  replicas: 2\n  selector: {{matchLabels: \
         {{run: old}}}}\n  template:\n    metadata: {{labels: {{run: old}}}}\n    spec:\n      terminationGracePeriodSeconds: 2\n      containers:\n      \
         - {{name: old, image: '{registry}/shop:1.0', ports: [{{containerPort: 8080}}], env: [{{name: ONLY, value: theirs}}]}}\n"
    )
}

#[test]
fn what_is_there_already_becomes_the_first_stable_and_comes_back_exactly_as_it_was() {
    let Some(space) = Space::given("adopts", "Deployment", "\n  replicas: 2", "", "rolling {}") else {
        return;
    };
    space.kubectl_apply(&theirs());
    space.serves("1.0", 2);
    let before = space.object("deployment/store");
    let names = space.field("pods", "{.items[*].metadata.name}");
    assert_ended(&space.run("1.1"), 1, &["Deployment/store", "adopt = true"]);
    space.edit("pipeline.cd", "drain = 1s", "drain = 1s\n  adopt = true");
    // The plan shows what serves, and changes nothing.
    assert_ended(&space.place.run(["plan", "pipeline.cd", "--set", "version=1.1"]).unwrap(), 0, &["1.0"]);
    assert_eq!(space.object("deployment/store")["metadata"]["generation"], before["metadata"]["generation"]);
    // A bad one goes back, to the very pods.
    assert_ended(&space.run("no-such-tag"), 3, &["ErrImagePull"]);
    let after = space.object("deployment/store");
    assert_eq!(after["spec"], before["spec"]);
    assert_eq!(after["metadata"]["labels"], before["metadata"]["labels"]);
    space.serves("1.0", 2);
    let pods = space.field("pods", "{.items[*].metadata.name}");
    assert!(names.split(' ').any(|name| pods.contains(name)), "{names} became {pods}");
    // A good one takes its place: nothing of theirs is left in it.
    assert_ended(&space.run("1.1"), 0, &[]);
    space.serves("1.1", 2);
    let ours = space.object("deployment/store");
    let containers = ours["spec"]["template"]["spec"]["containers"].as_array().unwrap();
    assert_eq!(containers.len(), 1, "{containers:?}");
    assert_eq!(ours["spec"]["selector"], before["spec"]["selector"]);
    // It is kept: later, too, it comes back as it was.
    let back = space.place.run(["rollback", "store", "cluster", "1.0", "--yes"]).unwrap();
    assert_ended(&back, 0, &[]);
    assert_eq!(space.object("deployment/store")["spec"], before["spec"]);
    space.serves("1.0", 2);
}

#[test]
fn how_many_there_are_is_for_the_autoscaler_to_say() {
    let Some(space) = Space::given("scales", "Deployment", "", "", "rolling {}") else { return };
    let text = std::fs::read_to_string(space.place.work().join("k8s/store.yaml")).unwrap();
    let scaler = "---\napiVersion: autoscaling/v2\nkind: HorizontalPodAutoscaler\nmetadata: {name: store}\nspec:\n  scaleTargetRef: {apiVersion: \
                  apps/v1, kind: Deployment, name: store}\n  minReplicas: 2\n  maxReplicas: 5\n";
    space.place.write("k8s/store.yaml", text + scaler).unwrap();
    assert_ended(&space.run("1.0"), 0, &[]);
    // It looks every 15 s, and raises to its least.
    space.serves("1.0", 2);
    space.kubectl(&["-n", &space.name, "patch", "hpa", "store", "-p", "{\"spec\":{\"minReplicas\":3}}"]);
    space.serves("1.0", 3);
    let managers =
        "{range .metadata.managedFields[?(@.manager==\"cdpipe\")]}{.fieldsV1.f:spec.f:replicas}{end}";
    assert_eq!(space.field("deployment/store", managers), "");
    // cdpipe's own manifest is what it applies, so it is told the new least too.
    space.edit("k8s/store.yaml", "minReplicas: 2", "minReplicas: 3");
    space.edit("pipeline.cd", "drain = 1s", "drain = 1s\n  adopt = true");
    assert_ended(&space.run("1.1"), 0, &[]);
    space.serves("1.1", 3);
    assert_ended(&space.run("no-such-tag"), 3, &["ErrImagePull"]);
    space.serves("1.1", 3);
    assert_eq!(space.field("deployment/store", "{.spec.replicas}"), "3");
    // Who said it and says it no more leaves it as it is.
    space.edit("pipeline.cd", "drain = 1s", "drain = 1s\n  replicas = 4");
    space.kubectl(&["-n", &space.name, "delete", "hpa", "store"]);
    space.edit("k8s/store.yaml", &scaler.replace("minReplicas: 2", "minReplicas: 3"), "");
    assert_ended(&space.run("1.2"), 0, &[]);
    space.serves("1.2", 4);
    space.edit("pipeline.cd", "\n  replicas = 4", "");
    assert_ended(&space.run("1.1"), 0, &[]);
    space.serves("1.1", 4);
}

#[test]
fn manifests_on_the_standard_input_are_kept_for_a_run_that_is_taken_up_again() {
    let Some(space) = Space::given("stdin", "Deployment", "\n  replicas: 2", "", "rolling {}") else {
        return;
    };
    let rendered = std::fs::read_to_string(space.place.work().join("k8s/store.yaml")).unwrap();
    space.service("manifest = \"-\"", "", "rolling {}");
    let start = |text: &str, version: &str| {
        let mut command = space.place.command(["run", "pipeline.cd", "--set", &format!("version={version}")]);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        child
    };
    let secret = format!(
        "{rendered}---\napiVersion: v1\nkind: Secret\nmetadata: {{name: s}}\nstringData: {{a: sesame}}\n"
    );
    for (text, says) in
        [("", "no manifests on the standard input"), (secret.as_str(), "the values of a Secret")]
    {
        assert_ended(&ended(start(text, "1.0")), 2, &[says]);
    }
    assert_ended(&ended(start(&rendered, "1.0")), 0, &[]);
    space.serves("1.0", 2);
    let mut child = start(&rendered.replace("as-given", "rendered"), "never-healthy");
    let image = || space.field("deployment/store", "{.spec.template.spec.containers[0].image}");
    assert!(comes_true(LONG, || image().ends_with("never-healthy")), "{}", image());
    child.kill().unwrap();
    child.wait().unwrap();
    // There is nothing on its standard input now.
    let again = space.place.run(["resume"]).unwrap();
    assert_ended(&again, 3, &["did not become ready"]);
    space.serves("1.0", 2);
    assert_eq!(
        space.field("deployment/store", "{.spec.template.spec.containers[0].env[?(@.name==\"KEPT\")].value}"),
        "as-given"
    );
}

#[test]
fn a_deployment_of_manifests_stands_side_by_side_too() {
    let Some(space) = Space::given("beside", "Deployment", "\n  replicas: 2", "", "recreate {}") else {
        return;
    };
    assert_ended(&space.run("1.0"), 0, &[]);
    space.serves("1.0", 2);
    assert_ended(&space.run("1.1"), 0, &[]);
    space.serves("1.1", 2);
    assert_ended(&space.run("no-such-tag"), 3, &["ErrImagePull"]);
    space.serves("1.1", 2);
    let container = "{.items[0].spec.template.spec.containers[0]";
    assert_eq!(space.field("deployments", &format!("{container}.resources.requests.cpu}}")), "11m");
    assert_ended(&space.place.run(["down", "pipeline.cd"]).unwrap(), 0, &[]);
    assert_eq!(space.field("deployments,pods", "{.items[*].metadata.name}"), "");
}

#[test]
fn of_several_containers_the_service_is_meant_and_what_runs_before_it_is_told() {
    let Some(space) = Space::given(
        "several",
        "Deployment",
        "\n  replicas: 1",
        "health http \"/health\" { every = 1s, timeout = 2s, within = 60s }",
        "rolling {}\n    verify { exec \"echo inside $KEPT\" }",
    ) else {
        return;
    };
    let registry = std::env::var("CDPIPE_LAB_REGISTRY").unwrap();
    let beside = format!("containers:\n      - {{name: beside, image: '{registry}/pause:1'}}\n");
    space.edit("k8s/store.yaml", "containers:\n", &beside);
    assert_ended(&space.run("1.0"), 0, &["inside as-given"]);
    assert_ended(&space.run("exits"), 3, &["cannot find my configuration"]);
    let before = format!(
        "initContainers:\n      - {{name: prepare, image: '{registry}/busybox:1', command: [sh, -c, 'echo there is no table; exit 3']}}\n      \
         containers:\n"
    );
    space.edit("k8s/store.yaml", "containers:\n", &before);
    assert_ended(&space.run("1.1"), 3, &["exit code 3", "there is no table"]);
}
