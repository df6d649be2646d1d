//! Behind a real istiod and a real Envoy: shares, headers, hands of others, and a load over canaries and rollbacks.

use super::{Space, assert_ended};
use cdpipe_tests::deployed::ask_host;
use cdpipe_tests::lab;
use cdpipe_tests::load::{Kind, Load, Mix};
use std::net::SocketAddr;

/// Where the lab's Envoy serves VirtualServices or HTTPRoutes.
pub(super) fn edge(test: &str, variable: &str) -> Option<SocketAddr> {
    let found = std::env::var(variable).ok().and_then(|address| address.parse().ok());
    if found.is_none() {
        lab::skip(test, "Istio (cargo xtask test, or cargo xtask lab up istio)").unwrap();
    }
    found
}

/// The chance of at least `k` successes in `n` trials of chance `p`, by Chernoff's bound.
fn chance_of_more(n: f64, p: f64, k: f64) -> f64 {
    let q = k / n;
    if q <= p {
        return 1.0;
    }
    (-n * (q * (q / p).ln() + (1.0 - q) * ((1.0 - q) / (1.0 - p)).ln())).exp()
}

#[derive(Clone, Copy)]
pub(super) struct Edge {
    pub(super) variable: &'static str,
    pipeline: &'static str,
    /// The object whose backends change.
    object: &'static str,
    /// Its rules.
    rules: &'static str,
}

const GATEWAY: Edge = Edge {
    variable: "CDPIPE_LAB_GATEWAY",
    pipeline: "kubernetes-canary-gateway.cd",
    object: "httproute/web",
    rules: "{.spec.rules}",
};
pub(super) const ISTIO: Edge = Edge {
    variable: "CDPIPE_LAB_ISTIO",
    pipeline: "kubernetes-canary-istio.cd",
    object: "virtualservice/web",
    rules: "{.spec.http}",
};

impl Space {
    /// A namespace with a route for this host, and the pipeline with this strategy.
    pub(super) fn behind(test: &str, edge: Edge, host: &str, strategy: &str) -> Option<Self> {
        let space = Self::new(test, edge.pipeline)?;
        let name = &space.name;
        let route = format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: web, namespace: {name}}}\nspec: \
             {{parentRefs: [{{name: edge, namespace: istio-system}}], hostnames: [{host}], rules: [{{matches: [{{path: {{type: PathPrefix, \
             value: /other}}}}], backendRefs: [{{name: other, port: 80, weight: 1}}]}}, {{backendRefs: [{{name: web, port: 80, weight: \
             1}}]}}]}}\n"
        );
        let service = format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: web, namespace: {name}}}\nspec: {{hosts: \
             [{host}], gateways: [istio-system/edge], http: [{{match: [{{uri: {{prefix: /other}}}}], route: [{{destination: {{host: \
             other}}}}]}}, {{route: [{{destination: {{host: web, port: {{number: 80}}}}}}]}}]}}\n"
        );
        let text = if edge.object.starts_with("http") { route } else { service };
        let path = space.place.write("route.yml", text).unwrap();
        // `other` is nobody's Service, so the route is not quite whole: what cdpipe waits for is made so.
        let other = space.place.write("other.yml", format!("apiVersion: v1\nkind: Service\nmetadata: {{name: other, namespace: {name}}}\nspec: {{ports: [{{port: 80}}]}}\n")).unwrap();
        for path in [other, path] {
            space.kubectl(&["apply", "-f", &path.display().to_string()]);
        }
        let text = std::fs::read_to_string(space.place.work().join("pipeline.cd")).unwrap();
        let (head, _) = text.split_once("stage ").unwrap();
        let stage = format!("stage release {{\n  deploy web to cluster {{\n    {strategy}\n  }}\n}}\n");
        space.place.write("pipeline.cd", format!("{head}{stage}")).unwrap();
        Some(space)
    }

    fn delivery(&self) {
        let text = std::fs::read_to_string(self.place.work().join("pipeline.cd")).unwrap();
        self.place.write("pipeline.cd", text.replace("mode = deployment", "mode = delivery")).unwrap();
    }
}

fn a_canary_gets_its_share(test: &str, edge_of: Edge, header: &str) {
    let Some(address) = edge(test, edge_of.variable) else { return };
    let strategy = format!(
        "canary {{\n      {header}\n      step 20% until approved {{ by = [\"{}\"] }}\n    }}",
        whoami()
    );
    let Some(space) = Space::behind(test, edge_of, "shop.lab", &strategy) else { return };
    let before = space.field(edge_of.object, edge_of.rules);
    let version = |headers: &str| {
        let answer = ask_host(address, "shop.lab", headers).unwrap();
        assert_eq!(answer.status, 200, "{}", space.field(edge_of.object, edge_of.rules));
        answer.version
    };
    assert_ended(&space.run("1.0"), 0, &[]);
    assert!((0..20).all(|_| version("") == "1.0"));
    space.delivery();
    assert_ended(&space.run("1.1"), 5, &["20% of traffic on 1.1"]);
    let got = (0..300).filter(|_| version("") == "1.1").count();
    let share = f64::from(u32::try_from(got).unwrap());
    let (more, fewer) = (chance_of_more(300.0, 0.2, share), chance_of_more(300.0, 0.8, 300.0 - share));
    assert!(more > 1e-9 && fewer > 1e-9, "{got} of 300 at 20 %");
    assert!((0..30).all(|_| version("canary: true\r\n") == "1.1"));
    assert!((0..60).any(|_| version("canary: other\r\n") == "1.0"));
    assert_ended(&space.place.run(["approve"]).unwrap(), 0, &[]);
    assert_ended(&space.place.run(["resume"]).unwrap(), 0, &[]);
    assert!((0..20).all(|_| version("") == "1.1"));
    assert_ended(&space.run("exits"), 3, &["cannot find my configuration"]);
    assert!((0..20).all(|_| version("") == "1.1"));
    // Somebody else's hand in the middle.
    assert_ended(&space.run("1.2"), 5, &[]);
    let now = space.field(edge_of.object, edge_of.rules).replace("8000", "7000").replace("2000", "3000");
    let path = edge_of.rules.trim_matches(['{', '}']).trim_start_matches(".spec.");
    let patch = format!("{{\"spec\": {{\"{path}\": {now}}}}}");
    space.kubectl(&["-n", &space.name, "patch", edge_of.object, "--type=merge", "-p", &patch]);
    assert_ended(&space.place.run(["approve"]).unwrap(), 0, &[]);
    assert_ended(&space.place.run(["resume"]).unwrap(), 4, &["someone else has changed the rules"]);
    // Once it is as cdpipe left it, it is cdpipe's again, and taken down it is as it was at first.
    let back = patch.replace("7000", "8000").replace("3000", "2000");
    space.kubectl(&["-n", &space.name, "patch", edge_of.object, "--type=merge", "-p", &back]);
    assert_ended(&space.place.run(["down", "pipeline.cd"]).unwrap(), 0, &[]);
    assert_eq!(space.field(edge_of.object, edge_of.rules), before);
    assert_eq!(space.field("deployments,pods,services", "{.items[*].metadata.name}"), "other");
}

fn whoami() -> String {
    std::env::var("USER").unwrap_or_else(|_| "root".to_owned())
}

#[test]
fn a_canary_behind_the_gateway_api_gets_its_share_and_a_header_chooses_it() {
    a_canary_gets_its_share("gateway", GATEWAY, "route header(\"canary\", \"true\")");
}

#[test]
fn a_canary_through_istio_gets_its_share_and_a_header_chooses_it() {
    a_canary_gets_its_share("istio", ISTIO, "route header(\"canary\", \"true\")");
}

#[test]
fn canaries_and_rollbacks_through_istio_fail_no_request() {
    let Some(address) = edge("istio-load", ISTIO.variable) else { return };
    let strategy = "canary {\n      step 20% for 1s\n      step 60% for 1s\n    }\n    validate { run \"test ${version} != 1.2\" }";
    let Some(space) = Space::behind("istio-load", ISTIO, "\"*\"", strategy) else { return };
    assert_ended(&space.run("1.0"), 0, &[]);
    let load = Load {
        rate_per_s: 30,
        mix: Mix::new([
            (Kind::Short, 6),
            (Kind::Fresh, 2),
            (Kind::Slow { ms: 300 }, 1),
            (Kind::Echo { bytes: 5000 }, 1),
        ])
        .unwrap(),
        ..Load::on(address)
    };
    let running = load.start().unwrap();
    for (version, code) in [("1.1", 0), ("1.2", 3), ("1.0", 0)] {
        assert_ended(&space.run(version), code, &[]);
    }
    let report = running.stop().unwrap();
    assert!(report.records().len() > 300, "{report}");
    assert!(report.failures().is_empty(), "{report}");
}
