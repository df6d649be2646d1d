//! Sets of manifests: their order, what stands in the way, what goes back and how exactly, what is pruned, and a killed run.

use super::space::{LONG, Space, assert_ended, ended};
use cdpipe_tests::deployed::comes_true;
use cdpipe_tests::processes::Ended;
use serde_json::Value;
use std::process::Stdio;
use std::time::Duration;

impl Space {
    /// A namespace, and a pipeline with one stage of these steps.
    fn of_set(test: &str, steps: &str) -> Option<Self> {
        let space = Self::new(test, "kubernetes-rolling.cd")?;
        space.steps(steps);
        Some(space)
    }

    fn steps(&self, steps: &str) {
        let text = format!(
            "pipeline sets {{ mode = deployment }}\nenvironment cluster {{\n  target kubernetes {{ namespace = \"{}\" }}\n}}\nstage \
             objects {{\n{steps}\n}}\n",
            self.name
        );
        self.place.write("pipeline.cd", text).unwrap();
    }

    fn write(&self, file: &str, text: &str) {
        self.place.write(file, text).unwrap();
    }

    fn apply(&self) -> Ended {
        self.place.run(["run", "pipeline.cd"]).unwrap()
    }

    /// An object as a person would compare it: without what only the cluster says, with whose fields are whose.
    fn whole(&self, object: &str) -> Value {
        let text = self.kubectl(&["-n", &self.name, "get", object, "-o", "json", "--show-managed-fields"]);
        let mut whole: Value = serde_json::from_str(&text).unwrap();
        whole.as_object_mut().unwrap().remove("status");
        let metadata = whole["metadata"].as_object_mut().unwrap();
        for field in ["resourceVersion", "generation", "uid", "creationTimestamp"] {
            metadata.remove(field);
        }
        if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
            // Its controller counts on.
            annotations.remove("deployment.kubernetes.io/revision");
        }
        if let Some(entries) = metadata.get_mut("managedFields").and_then(Value::as_array_mut) {
            // Controllers write statuses whenever they like.
            entries.retain(|entry| entry["manager"] != "kube-controller-manager");
        }
        whole
    }

    fn shop(&self, version: &str, extra: &str) -> String {
        let registry = std::env::var("CDPIPE_LAB_REGISTRY").unwrap();
        format!(
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: web}}\nspec:\n  replicas: 1\n  selector: {{matchLabels: {{app: web}}}}\n  \
             template:\n    metadata: {{labels: {{app: web}}}}\n    spec:\n      containers:\n      - name: web\n        image: \
             {registry}/shop:{version}\n        readinessProbe: {{httpGet: {{path: /health, port: 8080}}, periodSeconds: 1{extra}}}\n"
        )
    }

    fn marked(&self) -> String {
        self.field("configmaps", "{.items[?(@.metadata.labels.cdpipe\\.dev/set)].metadata.name}")
    }
}

fn settings(name: &str, value: &str) -> String {
    format!("---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata: {{COLOUR: {value}}}\n")
}

fn secret(value: &str) -> String {
    format!("---\napiVersion: v1\nkind: Secret\nmetadata: {{name: hidden}}\nstringData: {{word: {value}}}\n")
}

#[test]
fn a_set_in_the_wrong_order_is_applied_in_the_right_one() {
    let Some(space) = Space::of_set("ordered", "  apply \"k8s/*.yaml\" to cluster { timeout = 90s }") else {
        return;
    };
    let (name, group) = (format!("{}-made", space.name), format!("{}.example.com", space.name));
    let here = |text: &str| {
        text.replace("metadata: {name: web}", &format!("metadata: {{name: web, namespace: {name}}}"))
    };
    space.write(
        "k8s/1.yaml",
        &format!(
            "{}---\napiVersion: {group}/v1\nkind: Widget\nmetadata: {{name: one, namespace: {name}}}\nspec: {{size: 3}}\n---\napiVersion: \
             v1\nkind: ConfigMap\nmetadata: {{name: a, namespace: {name}}}\n",
            here(&space.shop("1.0", ""))
        ),
    );
    space.write(
        "k8s/2.yaml",
        &format!(
            "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata: {{name: widgets.{group}}}\nspec:\n  group: \
             {group}\n  scope: Namespaced\n  names: {{plural: widgets, singular: widget, kind: Widget}}\n  versions:\n  - {{name: v1, served: \
             true, storage: true, schema: {{openAPIV3Schema: {{type: object, x-kubernetes-preserve-unknown-fields: true}}}}}}\n---\napiVersion: \
             v1\nkind: Namespace\nmetadata: {{name: {name}}}\n"
        ),
    );
    let planned = space.place.run(["plan", "pipeline.cd"]).unwrap();
    assert_ended(&planned, 0, &["undo: the objects as they were"]);
    let run = space.apply();
    assert_ended(&run, 0, &["created Namespace", "created Deployment"]);
    let made: Vec<&str> = run
        .stderr
        .lines()
        .chain(run.stdout.lines())
        .filter_map(|line| line.split("created ").nth(1))
        .collect();
    let kinds: Vec<&str> = made.iter().filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(kinds, ["Namespace", "CustomResourceDefinition", "ConfigMap", "Widget", "Deployment"]);
    let ready =
        space.kubectl(&["-n", &name, "get", "deployment/web", "-o", "jsonpath={.status.readyReplicas}"]);
    assert_eq!(ready, "1");
    // What a failure takes back of a set that was not there is all but the Namespace and the definition.
    space.write("k8s/0.yaml", &here(&space.shop("exits", "")).replace("name: web", "name: bad"));
    assert_ended(&space.apply(), 3, &["cannot find my configuration"]);
    assert!(space.try_kubectl(&["-n", &name, "get", "deployment/bad"]).is_none());
    space.kubectl(&["-n", &name, "get", &format!("widget.{group}/one"), "deployment/web", "configmap/a"]);
    space.kubectl(&["delete", "crd", &format!("widgets.{group}")]);
    space.kubectl(&["delete", "namespace", &name, "--wait=false"]);
}

#[test]
fn fields_of_others_are_named_and_taken_over_only_when_told_to() {
    let Some(space) = Space::of_set("conflict", "  apply \"k8s\" to cluster") else { return };
    space.write("theirs.yaml", &settings("a", "red"));
    let theirs = space.place.work().join("theirs.yaml").display().to_string();
    space.kubectl(&[
        "-n",
        &space.name,
        "apply",
        "--server-side",
        "--field-manager",
        "painter",
        "-f",
        &theirs,
    ]);
    space.write("k8s/a.yaml", &settings("a", "green"));
    space.write("k8s/b.yaml", &settings("b", "green"));
    assert_ended(&space.apply(), 1, &["k8s/a.yaml", "painter", ".data.COLOUR", "force = true"]);
    assert_eq!(space.field("configmap/a", "{.data.COLOUR}"), "red");
    assert_eq!(space.marked(), "", "a conflict is found before anything is changed");
    space.steps("  apply \"k8s\" to cluster { force = true }");
    assert_ended(&space.apply(), 0, &[]);
    assert_eq!(space.field("configmap/a", "{.data.COLOUR}"), "green");
    assert_eq!(space.marked(), "a b");
}

#[test]
fn a_deployment_of_a_set_that_never_gets_ready_takes_everything_back() {
    let Some(space) = Space::of_set("unready", "  apply \"k8s\" to cluster { timeout = 25s }") else {
        return;
    };
    space.write("k8s/web.yaml", &(space.shop("1.0", "") + &settings("a", "red") + &secret("first-word")));
    assert_ended(&space.apply(), 0, &[]);
    let objects = ["deployment/web", "configmap/a", "secret/hidden"];
    let before = objects.map(|object| space.whole(object));
    for (version, words) in [
        ("exits", "cannot find my configuration"),
        ("no-such-tag", "ErrImagePull"),
        ("never-healthy", "Readiness probe failed"),
    ] {
        let text = space.shop(version, "")
            + &settings("a", "green")
            + &settings("b", "new")
            + &secret("second-word");
        space.write("k8s/web.yaml", &text);
        assert_ended(&space.apply(), 3, &[words]);
        for (object, before) in objects.iter().zip(&before) {
            assert_eq!(space.whole(object), *before, "{object}");
        }
        assert_eq!(space.marked(), "a", "what was made is gone");
    }
    // A word of a Secret is in nothing that cdpipe writes down, nor is a copy left over.
    for word in ["first-word", "second-word", "Zmlyc3Qtd29yZ", "c2Vjb25kLXdvcm"] {
        let found = std::process::Command::new("grep")
            .args(["-rlF", word])
            .arg(space.place.state())
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&found.stdout), "", "{word}");
    }
    assert_eq!(space.field("secrets", "{.items[*].metadata.name}"), "hidden");
}

#[test]
fn what_a_later_step_takes_back_is_exactly_as_it_was() {
    let steps = "  undo_on_failure = true\n  apply \"k8s\" to cluster\n  run \"exit 1\"";
    let Some(space) = Space::of_set("exactly", steps) else { return };
    space.write("theirs.yaml", &(settings("a", "red") + &secret("first-word")));
    let theirs = space.place.work().join("theirs.yaml").display().to_string();
    // Without COLOUR in the set there is no conflict: both have fields of the same object.
    space.kubectl(&[
        "-n",
        &space.name,
        "apply",
        "--server-side",
        "--field-manager",
        "painter",
        "-f",
        &theirs,
    ]);
    let before = ["configmap/a", "secret/hidden"].map(|object| space.whole(object));
    space.write(
        "k8s/all.yaml",
        &(settings("a", "red").replace("{COLOUR: red}", "{SIZE: large}")
            + &secret("x").replace("word: x", "other: second-word")
            + &settings("b", "new")),
    );
    assert_ended(&space.apply(), 3, &["restored ConfigMap", "restored Secret", "deleted ConfigMap"]);
    assert_eq!(["configmap/a", "secret/hidden"].map(|object| space.whole(object)), before);
    assert_eq!(space.field("configmap/b", "{.metadata.name}"), "", "what was made is gone");
    // Somebody else's hand in between is left alone, and a person is told.
    let patch = "{\\\"data\\\":{\\\"COLOUR\\\":\\\"blue\\\"}}";
    let kubectl = &space.kubectl;
    space.steps(&format!(
        "  undo_on_failure = true\n  apply \"k8s\" to cluster\n  run \"{kubectl} -n {} patch configmap a --field-manager hand -p '{patch}' && exit 1\"",
        space.name
    ));
    assert_ended(&space.apply(), 4, &["was changed by hand since"]);
    assert_eq!(space.field("configmap/a", "{.data}"), "{\"COLOUR\":\"blue\",\"SIZE\":\"large\"}");
    assert_eq!(space.whole("secret/hidden"), before[1], "what nobody else touched is back");
}

#[test]
fn what_is_in_no_file_any_more_is_pruned_and_comes_back() {
    let Some(space) = Space::of_set("pruned", "  apply \"k8s\" to cluster { prune = true }") else { return };
    space.write("k8s/a.yaml", &settings("a", "red"));
    space.write("k8s/b.yaml", &settings("b", "red"));
    space.write("other/c.yaml", &settings("c", "red"));
    assert_ended(&space.apply(), 0, &[]);
    space.steps("  apply \"other\" to cluster { prune = true }");
    assert_ended(&space.apply(), 0, &[]);
    // Somebody's own object with the label of the set, which no apply has marked.
    let set = space.field("configmap/b", "{.metadata.labels.cdpipe\\.dev/set}");
    space.kubectl(&["-n", &space.name, "create", "configmap", "d"]);
    space.kubectl(&["-n", &space.name, "label", "configmap", "d", &format!("cdpipe.dev/set={set}")]);
    let before = space.whole("configmap/b");
    std::fs::remove_file(space.place.work().join("k8s/b.yaml")).unwrap();
    space.steps("  undo_on_failure = true\n  apply \"k8s\" to cluster { prune = true }\n  run \"exit 1\"");
    assert_ended(&space.apply(), 3, &["deleted ConfigMap", "restored ConfigMap"]);
    let after = space.whole("configmap/b");
    assert_eq!(
        (&after["data"], &after["metadata"]["labels"]),
        (&before["data"], &before["metadata"]["labels"])
    );
    space.steps("  apply \"k8s\" to cluster");
    assert_ended(&space.apply(), 0, &[]);
    assert_eq!(space.marked(), "a b c d", "without `prune` nothing is deleted");
    space.steps("  apply \"k8s\" to cluster { prune = true }");
    assert_ended(&space.apply(), 0, &["deleted ConfigMap"]);
    assert_eq!(space.marked(), "a c d");
}

#[test]
fn a_killed_apply_goes_on_or_goes_back() {
    let Some(space) = Space::of_set("cut", "  apply \"k8s\" to cluster { timeout = 90s }") else { return };
    space.write("k8s/web.yaml", &(space.shop("1.0", "") + &settings("a", "red") + &secret("first-word")));
    assert_ended(&space.apply(), 0, &[]);
    let slow = ", initialDelaySeconds: 6";
    for (version, colour, at) in [("1.1", "green", "green"), ("1.2", "blue", "blue"), ("1.0", "black", "")] {
        let text =
            space.shop(version, slow) + &settings("a", colour) + &settings("b", colour) + &secret(colour);
        space.write("k8s/web.yaml", &text);
        let before = ["configmap/a", "secret/hidden", "deployment/web"].map(|object| space.whole(object));
        let mut command = space.place.command(["run", "pipeline.cd"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // In the middle: one object is changed, the Deployment is not ready yet. Or as soon as it has begun.
        let begun = comes_true(LONG, || at.is_empty() || space.field("configmap/a", "{.data.COLOUR}") == at);
        assert!(begun);
        if at.is_empty() {
            std::thread::sleep(Duration::from_millis(700));
        }
        child.kill().unwrap();
        let _ = ended(child);
        match version {
            "1.2" => {
                // A file that has changed meanwhile is never applied unnoticed: everything is as it was.
                space.write("k8s/web.yaml", &(text + &settings("c", "late")));
                assert_ended(
                    &space.place.run(["resume"]).unwrap(),
                    3,
                    &["k8s/web.yaml has changed since it was planned"],
                );
                let after =
                    ["configmap/a", "secret/hidden", "deployment/web"].map(|object| space.whole(object));
                assert_eq!(after, before);
                assert_eq!(space.field("configmap/c", "{.metadata.name}"), "");
            }
            _ => {
                let resumed = space.place.run(["resume"]).unwrap();
                if at.is_empty() && resumed.code == Some(2) {
                    // The kill came before the run had begun.
                    let after =
                        ["configmap/a", "secret/hidden", "deployment/web"].map(|object| space.whole(object));
                    assert_eq!(after, before);
                    continue;
                }
                assert_ended(&resumed, 0, &[]);
                assert_eq!(space.field("configmap/a", "{.data.COLOUR}"), colour);
                assert_eq!(
                    space.field("deployment/web", "{.status.readyReplicas} {.status.updatedReplicas}"),
                    "1 1"
                );
            }
        }
    }
}
