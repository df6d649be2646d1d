//! What a router counts decides about a release: behind the built-in proxy and behind a real HAProxy.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says that something is wrong by panicking")]

use cdpipe_tests::deployed::Deployed;
use cdpipe_tests::edge::{Edge, Router, program};
use cdpipe_tests::lab;
use cdpipe_tests::load::{Kind, Load, Mix};

fn pipeline(route: &str, time: &str) -> String {
    include_str!("../pipelines/counted.cd").replace("@ROUTE@", route).replace("@TIME@", time)
}

/// A good release comes in; one with errors and one that is slow go back, each by its own rule. `rounds` times, so that what a router
/// has counted of releases before is there.
fn decides(shop: &Deployed, rounds: u32) {
    let ended = |version: &str, fault: &str, code: i32, says: &str| {
        let ended = shop.deploy(version, fault).unwrap();
        let said = format!("{}{}", ended.stdout, ended.stderr);
        assert_eq!(ended.code, Some(code), "{said}");
        assert!(said.contains(says), "{says:?} is missing from\n{said}");
        said
    };
    ended("v0", "", 0, "");
    let load = Load { mix: Mix::only(Kind::Short), rate_per_s: 60, ..Load::on(shop.address) };
    let users = load.start().unwrap();
    for round in 1..=rounds {
        let good = format!("v{round}");
        ended(&good, "", 0, "");
        ended(&format!("bad{round}"), "errors=40%", 3, "candidate.error_rate");
        ended(&format!("slow{round}"), "latency=250ms", 3, "candidate.response_time");
        let answer = shop.ask().unwrap();
        assert_eq!((answer.status, answer.version), (200, good));
    }
    let report = users.stop().unwrap();
    assert!(report.failures().iter().all(|record| record.status == Some(500)), "{report}");
}

#[test]
fn what_the_built_in_proxy_counts_decides() {
    let text = pipeline("  route    { listen = \"@LISTEN@\" }", "quantile(0.9, 'response_time_seconds')");
    decides(&Deployed::with(&text.replace("@TRAFFIC@", "proxy {}")).unwrap(), 1);
}

#[test]
fn what_haproxy_counts_decides() {
    if program(Router::Haproxy).is_none() {
        lab::skip("what_haproxy_counts_decides", "haproxy (apt-get install haproxy)").unwrap();
        return;
    }
    let edge = Edge::of(Router::Haproxy, &pipeline("", "'response_time_seconds'")).unwrap();
    // Ten slots, and ten releases: the last ones have slots that others had before.
    decides(&edge.shop, 4);
}
