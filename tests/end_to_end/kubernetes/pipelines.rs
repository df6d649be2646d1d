//! The pipelines over a cluster as they stand in `pipelines/`, each in a namespace of its own: only that, and where the lab's registry
//! is, are other words.

use super::space::{Space, assert_ended};
use cdpipe_tests::place::repository;

/// What the lab has in the namespace `default`: a route whose backends name the Service `web`.
const ROUTES: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: web}\nspec: {parentRefs: [{name: edge, namespace: \
     istio-system}], hostnames: ['@NAME@.lab'], rules: [{backendRefs: [{name: web, port: 80}]}]}\n---\napiVersion: \
     networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: web}\nspec: {hosts: ['@NAME@.lab'], gateways: [istio-system/edge], http: \
     [{route: [{destination: {host: web, port: {number: 80}}}]}]}\n";

/// Runs one twice: once on a bare namespace, and once on what the first run left.
fn runs(test: &str, pipeline: &str, route: Option<&str>) {
    let Some(mut space) = Space::new(test, pipeline) else { return };
    let text = std::fs::read_to_string(repository().join("pipelines").join(pipeline)).unwrap();
    let text = text
        .replace("namespace = \"default\"", &format!("namespace = \"{}\"", space.name))
        .replace("127.0.0.1:5000", &std::env::var("CDPIPE_LAB_REGISTRY").unwrap())
        .replace("../.lab/kubernetes/kubeconfig", &space.kubeconfig);
    space.place.write("pipeline.cd", text).unwrap();
    if let Some(kind) = route {
        let all = ROUTES.replace("@NAME@", &space.name);
        let one = all.split("---\n").find(|one| one.contains(kind)).unwrap();
        let path = space.place.write("route.yaml", one).unwrap();
        space.kubectl(&["-n", &space.name, "apply", "-f", &path.display().to_string()]);
    }
    if pipeline.contains("production") {
        // Its namespace comes with its manifests.
        let made = format!("{}-made", space.name);
        for file in std::fs::read_dir(repository().join("pipelines/k8s")).unwrap() {
            let file = file.unwrap();
            let text = std::fs::read_to_string(file.path()).unwrap().replace("shop-production", &made);
            space.place.write(&format!("k8s/{}", file.file_name().display()), text).unwrap();
        }
        let text = std::fs::read_to_string(space.place.work().join("pipeline.cd")).unwrap();
        space.place.write("pipeline.cd", text.replace("shop-production", &made)).unwrap();
        space.kubectl(&["delete", "namespace", &space.name, "--wait=false"]);
        space.name = made;
    }
    for _ in 0..2 {
        assert_ended(&space.place.run(["run", "pipeline.cd"]).unwrap(), 0, &[]);
        space.serves("1.1", space.pods().len().max(2));
    }
    if pipeline.contains("production") {
        assert_eq!(space.field("service/web", "{.spec.type}"), "LoadBalancer");
        assert_eq!(space.field("pods", "{.items[0].spec.securityContext.runAsUser}"), "10001");
        assert_ended(&space.run("never-healthy"), 3, &["did not become ready in time"]);
        space.serves("1.0", 2);
    }
}

#[test]
fn the_rolling_one_runs_as_it_stands() {
    runs("stands-rolling", "kubernetes-rolling.cd", None);
}

#[test]
fn the_blue_green_one_runs_as_it_stands() {
    runs("stands-blue-green", "kubernetes-blue-green.cd", None);
}

#[test]
fn the_canary_through_a_gateway_runs_as_it_stands() {
    runs("stands-gateway", "kubernetes-canary-gateway.cd", Some("HTTPRoute"));
}

#[test]
fn the_canary_through_istio_runs_as_it_stands() {
    runs("stands-istio", "kubernetes-canary-istio.cd", Some("VirtualService"));
}

#[test]
fn the_production_one_runs_as_it_stands_and_goes_back() {
    runs("stands-production", "kubernetes-production.cd", None);
}
