//! What becomes of a good and of a bad release, by every strategy that there is on a cluster.

use super::routes::{self, ISTIO};
use super::space::{LONG, Space, assert_ended};
use cdpipe_tests::deployed::comes_true;

/// How a service of two pods comes in.
#[derive(Clone, Copy)]
pub(super) struct Way {
    pub(super) test: &'static str,
    pub(super) traffic: &'static str,
    pub(super) strategy: &'static str,
}

pub(super) const ROLLING: Way =
    Way { test: "e-rolling", traffic: "", strategy: "rolling { monitor = 1s, max_surge = 1 }" };
pub(super) const BLUE_GREEN: Way = Way {
    test: "e-blue-green",
    traffic: "traffic service { name = \"web\" }",
    strategy: "blue_green { keep_old = 1s, old = scale_to_zero }",
};
pub(super) const CANARY: Way =
    Way { test: "e-canary", traffic: "traffic replicas", strategy: "canary { step 50% for 1s }" };
pub(super) const RECREATE: Way = Way { test: "e-recreate", traffic: "", strategy: "recreate {}" };
pub(super) const THROUGH_ISTIO: Way =
    Way { test: "e-istio", traffic: "istio", strategy: "canary { step 50% for 1s }" };

/// The pipeline: one deploy, watched by a metric that is the number in `errors-candidate`.
fn pipeline(namespace: &str, registry: &str, way: Way) -> String {
    let traffic = way.traffic.replace("istio", "traffic istio { virtual_service = \"web\" }");
    format!(
        "pipeline ways {{ mode = deployment }}\nparam version: string\nparam within: duration = 90s\n\
         environment cluster {{\n  target kubernetes {{ namespace = \"{namespace}\" }}\n  {traffic}\n}}\n\
         service web {{\n  image = \"{registry}/shop:${{version}}\"\n  port = 8080\n  replicas = 2\n  \
         health http \"/health\" {{ every = 1s, timeout = 2s, within = within }}\n  drain = 1s\n}}\n\
         metrics shop {{\n  source command\n  \
         error_rate: percent = 'cat \"errors-$CDPIPE_ROLE\" 2>/dev/null || echo 0'\n}}\n\
         stage release {{\n  deploy web to cluster {{\n    {}\n    watch every 500ms {{\n      \
         rollback when candidate.error_rate > 5%\n      after = 1s\n    }}\n  }}\n}}\n",
        way.strategy
    )
}

impl Space {
    /// A namespace with the pipeline of this way, and with the route that it changes.
    pub(super) fn on(way: Way, test: &str) -> Option<Self> {
        let space = if way.traffic == "istio" {
            routes::edge(test, ISTIO.variable)?;
            Self::behind(test, ISTIO, &format!("{test}.lab"), way.strategy)?
        } else {
            Self::new(test, "kubernetes-rolling.cd")?
        };
        let registry = std::env::var("CDPIPE_LAB_REGISTRY").unwrap();
        space.place.write("pipeline.cd", pipeline(&space.name, &registry, way)).unwrap();
        Some(space)
    }

    /// The releases that the router names, each with its share of traffic where it has one. Nothing where there is no router.
    pub(super) fn routed(&self, way: Way) -> String {
        match way.traffic {
            "istio" => self.field("virtualservice/web", "{.spec.http}"),
            traffic if traffic.contains("service") => self.field("service/web", "{.spec.selector}"),
            _ => String::new(),
        }
    }
}

fn ends_as_the_release_deserves(way: Way) {
    let Some(space) = Space::on(way, way.test) else { return };
    assert_ended(&space.run("1.0"), 0, &[]);
    space.serves("1.0", 2);
    assert_ended(&space.run("1.1"), 0, &["1.0 -> 1.1"]);
    space.serves("1.1", 2);
    assert_ended(&space.run("1.1"), 0, &["unchanged"]);
    let routed = space.routed(way);
    let is_back = |case: &str| {
        space.serves("1.1", 2);
        assert!(comes_true(LONG, || space.routed(way) == routed), "{case}: {}", space.routed(way));
    };
    assert_ended(&space.run("no-such-tag"), 3, &["ErrImagePull"]);
    is_back("an image that is not there");
    assert_ended(&space.run("exits"), 3, &["cannot find my configuration"]);
    is_back("a container that ends");
    let never =
        space.place.run(["run", "pipeline.cd", "--set", "version=never-healthy", "--set", "within=4s"]);
    assert_ended(&never.unwrap(), 3, &["did not become ready in time"]);
    is_back("never ready");
    space.place.write("errors-candidate", "50\n").unwrap();
    assert_ended(&space.run("1.2"), 3, &["error_rate"]);
    is_back("goes bad under watch");
    std::fs::remove_file(space.place.work().join("errors-candidate")).unwrap();
    assert_ended(&space.run("1.2"), 0, &[]);
    space.serves("1.2", 2);
}

#[test]
fn rolling_ends_as_the_release_deserves() {
    ends_as_the_release_deserves(ROLLING);
}

#[test]
fn blue_green_ends_as_the_release_deserves() {
    ends_as_the_release_deserves(BLUE_GREEN);
}

#[test]
fn a_canary_by_replicas_ends_as_the_release_deserves() {
    ends_as_the_release_deserves(CANARY);
}

#[test]
fn recreate_ends_as_the_release_deserves() {
    ends_as_the_release_deserves(RECREATE);
}

#[test]
fn a_canary_through_istio_ends_as_the_release_deserves() {
    ends_as_the_release_deserves(THROUGH_ISTIO);
}
