//! Every strategy that there is on a cluster, in one small pipeline.

use super::space::Space;
use std::io::Write as _;

/// How a service of two pods comes in.
#[derive(Clone, Copy)]
pub(crate) struct Way {
    pub(crate) test: &'static str,
    pub(crate) traffic: &'static str,
    pub(crate) strategy: &'static str,
}

pub(crate) const ROLLING: Way =
    Way { test: "e-rolling", traffic: "", strategy: "rolling { monitor = 1s, max_surge = 1 }" };
pub(crate) const BLUE_GREEN: Way = Way {
    test: "e-blue-green",
    traffic: "traffic service { name = \"web\" }",
    strategy: "blue_green { keep_old = 1s, old = scale_to_zero }",
};
pub(crate) const CANARY: Way =
    Way { test: "e-canary", traffic: "traffic replicas", strategy: "canary { step 50% for 1s }" };
pub(crate) const RECREATE: Way = Way { test: "e-recreate", traffic: "", strategy: "recreate {}" };
pub(crate) const THROUGH_ISTIO: Way =
    Way { test: "e-istio", traffic: "istio", strategy: "canary { step 50% for 1s }" };

/// The pipeline: one deploy, watched by a metric that is the number in `errors-candidate`.
fn pipeline(namespace: &str, registry: &str, way: Way) -> String {
    let traffic = way.traffic.replace("istio", "traffic istio { virtual_service = \"web\" }");
    format!(
        "pipeline ways {{ mode = deployment }}\nparam version: string\nparam patience: duration = 90s\n\
         environment cluster {{\n  target kubernetes {{ namespace = \"{namespace}\" }}\n  {traffic}\n}}\n\
         service web {{\n  image = \"{registry}/shop:${{version}}\"\n  port = 8080\n  replicas = 2\n  \
         health http \"/health\" {{ every = 1s, timeout = 2s, within = patience }}\n  drain = 1s\n}}\n\
         metrics shop {{\n  source command\n  \
         error_rate: percent = 'cat \"errors-$CDPIPE_ROLE\" 2>/dev/null || echo 0'\n}}\n\
         stage release {{\n  deploy web to cluster {{\n    {}\n    watch every 500ms {{\n      \
         rollback when candidate.error_rate > 5%\n      after = 1s\n    }}\n  }}\n}}\n",
        way.strategy
    )
}

impl Space {
    /// A namespace with the pipeline of this way, and with the route that it changes. `None` where the lab has not what it needs.
    pub(crate) fn on(way: Way, test: &str) -> Option<Self> {
        let is_routed = way.traffic == "istio";
        if is_routed && std::env::var_os("CDPIPE_LAB_ISTIO").is_none() {
            let _ = writeln!(std::io::stderr(), "SKIPPED {test}: needs Istio (cargo xtask lab up istio)");
            return None;
        }
        let space = Self::new(test, "kubernetes-rolling.cd")?;
        let registry = std::env::var("CDPIPE_LAB_REGISTRY").unwrap();
        space.place.write("pipeline.cd", pipeline(&space.name, &registry, way)).unwrap();
        if is_routed {
            let route = format!(
                "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: web, namespace: {name}}}\nspec: {{hosts: \
                 [{name}.lab], gateways: [istio-system/edge], http: [{{route: [{{destination: {{host: web, port: {{number: 80}}}}}}]}}]}}\n",
                name = space.name
            );
            let path = space.place.write("route.yml", route).unwrap();
            space.kubectl(&["apply", "-f", &path.display().to_string()]);
        }
        Some(space)
    }

    /// The releases that the router names, each with its share of traffic where it has one. Nothing where there is no router.
    pub(crate) fn routed(&self, way: Way) -> String {
        match way.traffic {
            "istio" => self.field("virtualservice/web", "{.spec.http}"),
            traffic if traffic.contains("service") => self.field("service/web", "{.spec.selector}"),
            _ => String::new(),
        }
    }
}
