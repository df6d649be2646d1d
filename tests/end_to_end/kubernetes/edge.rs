//! Behind the lab's Envoy, for the test programs of Kubernetes: where it is, and a namespace with a route.
#![allow(dead_code, reason = "each of the programs uses a part of it")]

use super::space::Space;
use cdpipe_tests::lab;
use std::net::SocketAddr;

/// Where the lab's Envoy serves VirtualServices or HTTPRoutes.
pub(crate) fn edge(test: &str, variable: &str) -> Option<SocketAddr> {
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
    // Nothing of nothing is no surprise.
    let surprise = |found: f64, share: f64| if found > 0.0 { found * (found / share).ln() } else { 0.0 };
    (-n * (surprise(q, p) + surprise(1.0 - q, 1.0 - p))).exp()
}

/// Whether `k` of `n` may be the share `p`: neither so many nor so few come about by chance once in 10^9 times.
pub(crate) fn is_plausible(n: usize, p: f64, k: usize) -> bool {
    let number = |count: usize| f64::from(u32::try_from(count).unwrap());
    let (n, k) = (number(n), number(k));
    chance_of_more(n, p, k) > 1e-9 && chance_of_more(n, 1.0 - p, n - k) > 1e-9
}

#[derive(Clone, Copy)]
pub(crate) struct Edge {
    pub(crate) variable: &'static str,
    pub(crate) pipeline: &'static str,
    /// The object whose backends change.
    pub(crate) object: &'static str,
    /// Its rules.
    pub(crate) rules: &'static str,
}

pub(crate) const GATEWAY: Edge = Edge {
    variable: "CDPIPE_LAB_GATEWAY",
    pipeline: "kubernetes-canary-gateway.cd",
    object: "httproute/web",
    rules: "{.spec.rules}",
};
pub(crate) const ISTIO: Edge = Edge {
    variable: "CDPIPE_LAB_ISTIO",
    pipeline: "kubernetes-canary-istio.cd",
    object: "virtualservice/web",
    rules: "{.spec.http}",
};

impl Space {
    /// A namespace with a route for this host, and the pipeline with this strategy.
    pub(crate) fn behind(test: &str, edge: Edge, host: &str, strategy: &str) -> Option<Self> {
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

    pub(crate) fn delivery(&self) {
        let text = std::fs::read_to_string(self.place.work().join("pipeline.cd")).unwrap();
        self.place.write("pipeline.cd", text.replace("mode = deployment", "mode = delivery")).unwrap();
    }
}
