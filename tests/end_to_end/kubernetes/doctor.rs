//! `cdpipe doctor FILE`: what it says of a cluster that will do, of one that will not, and whether what it asks for is enough.

use super::space::{Space, assert_ended};
use cdpipe_tests::place::Place;
use serde_json::Value;

/// What was found of an environment, by what was looked at: its health and its text.
fn found(place: &Place, code: i32) -> Vec<(String, String, Value)> {
    let ended = place.run(["doctor", "pipeline.cd", "--json"]).unwrap();
    assert_ended(&ended, code, &[]);
    let whole: Value = serde_json::from_str(&ended.stdout).unwrap();
    let text = |finding: &Value, name: &str| finding[name].as_str().unwrap_or_default().to_owned();
    let all = whole["findings"].as_array().unwrap().iter();
    all.filter(|finding| finding["environment"] == "cluster")
        .map(|finding| (text(finding, "what"), text(finding, "health"), finding.clone()))
        .collect()
}

#[track_caller]
fn of<'a>(found: &'a [(String, String, Value)], what: &str) -> &'a Value {
    let one = found.iter().find(|(name, _, _)| name == what);
    &one.unwrap_or_else(|| panic!("nothing was said of {what}: {found:?}")).2
}

impl Space {
    /// Changes the pipeline.
    fn change(&self, from: &str, to: &str) {
        let path = self.place.work().join("pipeline.cd");
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{from:?} is not in\n{text}");
        std::fs::write(&path, text.replace(from, to)).unwrap();
    }

    /// Has the pipeline be run by an account of its own in this namespace, which may nothing.
    fn by_an_account(&self) {
        self.kubectl(&["-n", &self.name, "create", "serviceaccount", "deployer"]);
        let token = self.kubectl(&["-n", &self.name, "create", "token", "deployer"]);
        let text = std::fs::read_to_string(&self.kubeconfig).unwrap();
        let text = text
            .replace("cdpipe-lab-viewer", "other")
            .replace("token: cdpipe-lab", &format!("token: {}", token.trim()));
        self.place.write("kubeconfig", text).unwrap();
        self.change("target kubernetes {", "target kubernetes { kubeconfig = \"kubeconfig\",");
    }

    /// Applies the roles that were printed, as they stand.
    fn give(&self, rights: &Value) {
        let (_, roles) = rights["help"].as_str().unwrap().split_once('\n').unwrap();
        let path = self.place.write("roles.yaml", roles).unwrap();
        self.kubectl(&["apply", "-f", &path.display().to_string()]);
    }
}

fn missing(rights: &Value) -> Vec<&str> {
    rights["missing"].as_array().unwrap().iter().filter_map(Value::as_str).collect()
}

#[test]
fn what_the_doctor_asks_for_is_what_a_run_needs() {
    let Some(space) = Space::new("doctor", "kubernetes-rolling.cd") else { return };
    let name = &space.name;
    let seen = found(&space.place, 0);
    let health: Vec<(&str, &str)> =
        seen.iter().map(|(what, health, _)| (what.as_str(), health.as_str())).collect();
    assert_eq!(
        health,
        [("kubeconfig", "good"), ("server", "good"), ("namespace", "good"), ("rights", "good")]
    );
    assert!(of(&seen, "server")["text"].as_str().unwrap().contains("is Kubernetes v1."));
    let plain = space.place.run(["doctor", "pipeline.cd"]).unwrap();
    assert_ended(
        &plain,
        0,
        &["environment cluster", &format!("{name} is there"), "that the pipeline needs are given"],
    );

    // Somebody who may nothing at all is told so, with the right they would need first.
    space.change("target kubernetes {", "target kubernetes { context = \"viewer\",");
    let plain = space.place.run(["doctor", "pipeline.cd"]).unwrap();
    assert_ended(
        &plain,
        1,
        &["are missing", "create deployments.apps", "kind: RoleBinding", "name: \"viewer\""],
    );
    space.change("target kubernetes { context = \"viewer\",", "target kubernetes {");

    space.by_an_account();
    space.place.write("k8s/set.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n").unwrap();
    space.change("stage before {", "stage objects {\n  apply \"k8s\" to cluster\n}\n\nstage before {");
    let seen = found(&space.place, 1);
    let rights = of(&seen, "rights");
    let missing = missing(rights);
    for right in [
        "patch deployments.apps",
        "list pods",
        "get pods/log",
        "update leases.coordination.k8s.io",
        "create configmaps",
    ] {
        assert!(missing.contains(&right), "{right} is not in {missing:?}");
    }
    assert_ended(&space.run("1.1"), 1, &["grant"]);
    // What it says can be applied as it stands, and with it the same run succeeds.
    space.give(rights);
    let seen = found(&space.place, 0);
    assert_eq!(of(&seen, "rights")["health"], "good");
    // That it may not look at namespaces is no fault of the pipeline.
    assert_eq!(of(&seen, "namespace")["health"], "missing");
    assert_ended(&space.run("1.1"), 0, &[]);
    space.serves("1.1", 4);
    assert_eq!(space.field("configmap/a", "{.metadata.name}"), "a");
}

#[test]
fn what_manifests_of_a_service_need_is_asked_too() {
    let more = "\n  serviceName: store\n  replicas: 1";
    let Some(space) = Space::given("doctor-given", "StatefulSet", more, "", "rolling {}") else { return };
    space.by_an_account();
    let seen = found(&space.place, 1);
    let rights = of(&seen, "rights");
    let missing = missing(rights);
    for right in ["watch statefulsets.apps", "list controllerrevisions.apps", "create configmaps"] {
        assert!(missing.contains(&right), "{right} is not in {missing:?}");
    }
    space.give(rights);
    assert_eq!(of(&found(&space.place, 0), "rights")["health"], "good");
    assert_ended(&space.run("1.0"), 0, &[]);
    space.serves("1.0", 1);
    assert_ended(&space.run("1.1"), 0, &[]);
    space.serves("1.1", 1);
}

#[test]
fn a_route_and_a_namespace_that_are_not_there_are_named() {
    let Some(space) = Space::new("nowhere", "kubernetes-canary-gateway.cd") else { return };
    let seen = found(&space.place, 1);
    let router = of(&seen, "router")["text"].as_str().unwrap().to_owned();
    assert!(router.contains("HTTPRoute"), "{router}");
    let gone = format!("{}-gone", space.name);
    space.change(&format!("namespace = \"{}\"", space.name), &format!("namespace = \"{gone}\""));
    let seen = found(&space.place, 1);
    let namespace = of(&seen, "namespace");
    assert_eq!(namespace["text"], format!("there is no namespace {gone}"));
    assert!(namespace["help"].as_str().unwrap().contains(&format!("kubectl create namespace {gone}")));
}

#[test]
fn what_is_wrong_with_a_kubeconfig_is_said() {
    let mut place = Place::new().unwrap();
    let pipeline = |settings: &str| {
        format!(
            "environment cluster {{ target kubernetes {{ {settings} }} }}\nservice shop {{ image = \"shop:1\" }}\nstage release {{\n  \
             deploy shop to cluster {{ rolling {{}} }}\n}}\n"
        )
    };
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let config = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: staging\nclusters:\n- {{name: a, cluster: {{server: \"http://127.0.0.1:{closed}\"}}}}\nusers:\n- \
         {{name: u, user: {{}}}}\ncontexts:\n- {{name: staging, context: {{cluster: a, user: u}}}}\n- {{name: production, context: {{cluster: a, user: \
         u}}}}\n"
    );
    place.write("config", config).unwrap();
    place.set("KUBECONFIG", place.work().join("config").display().to_string());
    place.write("pipeline.cd", pipeline("context = \"prodution\"")).unwrap();
    let seen = found(&place, 1);
    let line = of(&seen, "kubeconfig");
    assert!(line["text"].as_str().unwrap().ends_with("has no context `prodution`"), "{line}");
    assert_eq!(line["help"], "did you mean `production`? it has staging, production");
    place.write("pipeline.cd", pipeline("kubeconfig = \"no/such/file\"")).unwrap();
    let seen = found(&place, 1);
    assert!(of(&seen, "kubeconfig")["text"].as_str().unwrap().contains("no/such/file"));
    place.write("pipeline.cd", pipeline("context = \"staging\"")).unwrap();
    let seen = found(&place, 1);
    assert_eq!(of(&seen, "kubeconfig")["health"], "good");
    let server = of(&seen, "server")["text"].as_str().unwrap().to_owned();
    assert!(server.contains(&format!("127.0.0.1:{closed}")), "{server}");
}

#[test]
fn an_engine_that_does_not_answer_is_named() {
    let place = Place::new().unwrap();
    place
        .write(
            "pipeline.cd",
            "environment cluster { target docker { endpoint = \"unix:///no/such/socket\" } }\nservice shop { image = \"shop:1\" }\nstage \
             release {\n  deploy shop to cluster { rolling {} }\n}\n",
        )
        .unwrap();
    let seen = found(&place, 1);
    let line = of(&seen, "target");
    assert!(line["text"].as_str().unwrap().contains("/no/such/socket"), "{line}");
}
