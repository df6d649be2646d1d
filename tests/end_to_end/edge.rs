//! The shop behind a real nginx and a real HAProxy: every strategy, many switches under an open load, and what goes wrong.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says that something is wrong by panicking")]

use cdpipe_tests::edge::{Edge, Router, program};
use cdpipe_tests::lab;
use cdpipe_tests::load::{FailureKind, Kind, Load, Mix, Named, Timeline};
use cdpipe_tests::moments::allow_routes;
use cdpipe_tests::processes::Ended;
use std::time::Duration;

const BLUE_GREEN: &str = "blue_green { keep_old = 0s }";
const ROLLING: &str = "rolling { batch = 1, pause = 0s, monitor = 0s }";
const CANARY: &str = "canary {\n      step 25% for 400ms\n    }";

/// The router's tests, where it is; a line that says so where it is not.
fn there(test: &str, router: Router) -> bool {
    if program(router).is_some() {
        return true;
    }
    let name = if router == Router::Haproxy { "haproxy" } else { "nginx" };
    lab::skip(test, &format!("{name} (apt-get install {name})")).unwrap();
    false
}

#[track_caller]
fn ended(edge: &Edge, ended: &Ended, code: i32) {
    assert_eq!(ended.code, Some(code), "{}{}\n{}", ended.stdout, ended.stderr, edge.log());
}

#[track_caller]
fn serves(edge: &Edge, version: &str) {
    for _ in 0..6 {
        let answer = edge.shop.ask().unwrap();
        assert_eq!((answer.status, answer.version.as_str()), (200, version), "{}", edge.log());
    }
}

/// A good release, a second one, and one that never gets healthy, by this strategy.
fn comes_and_goes_back(router: Router, strategy: &str) {
    let edge = Edge::with(router, strategy, "1500ms").unwrap();
    ended(&edge, &edge.shop.deploy("v1", "").unwrap(), 0);
    serves(&edge, "v1");
    ended(&edge, &edge.shop.deploy("v2", "").unwrap(), 0);
    serves(&edge, "v2");
    ended(&edge, &edge.shop.deploy("v3", "never-healthy").unwrap(), 3);
    serves(&edge, "v2");
}

#[test]
fn nginx_blue_green() {
    if there("nginx_blue_green", Router::Nginx) {
        comes_and_goes_back(Router::Nginx, BLUE_GREEN);
    }
}

#[test]
fn nginx_rolling() {
    if there("nginx_rolling", Router::Nginx) {
        comes_and_goes_back(Router::Nginx, ROLLING);
    }
}

#[test]
fn nginx_canary() {
    if there("nginx_canary", Router::Nginx) {
        comes_and_goes_back(Router::Nginx, CANARY);
    }
}

#[test]
fn nginx_recreate() {
    if there("nginx_recreate", Router::Nginx) {
        comes_and_goes_back(Router::Nginx, "recreate {}");
    }
}

#[test]
fn nginx_with_a_server_of_the_users_own() {
    if there("nginx_with_a_server_of_the_users_own", Router::NginxOwnServer) {
        comes_and_goes_back(Router::NginxOwnServer, BLUE_GREEN);
    }
}

#[test]
fn haproxy_blue_green() {
    if there("haproxy_blue_green", Router::Haproxy) {
        comes_and_goes_back(Router::Haproxy, BLUE_GREEN);
    }
}

#[test]
fn haproxy_rolling() {
    if there("haproxy_rolling", Router::Haproxy) {
        comes_and_goes_back(Router::Haproxy, ROLLING);
    }
}

#[test]
fn haproxy_canary() {
    if there("haproxy_canary", Router::Haproxy) {
        comes_and_goes_back(Router::Haproxy, CANARY);
    }
}

#[test]
fn haproxy_recreate() {
    if there("haproxy_recreate", Router::Haproxy) {
        comes_and_goes_back(Router::Haproxy, "recreate {}");
    }
}

/// Switches under an open load: no request fails, and each answer is of a release that was allowed to serve.
fn switches_drop_nothing(router: Router, strategy: &str, count: u32) {
    let edge = Edge::with(router, strategy, "20s").unwrap();
    ended(&edge, &edge.shop.deploy("v0", "").unwrap(), 0);
    let mut mix = vec![
        (Kind::Fresh, 40),
        (Kind::Slow { ms: 300 }, 20),
        (Kind::Echo { bytes: 20_000 }, 20),
        (Kind::Stream { events: 10, every_ms: 50 }, 10),
        (Kind::Short, 30),
    ];
    if router == Router::Haproxy {
        mix.push((Kind::Socket { messages: 10, every_ms: 50, bytes: 200 }, 5));
    }
    let load = Load {
        rate_per_s: 40,
        length: Duration::from_secs(600),
        mix: Mix::new(mix).unwrap(),
        ..Load::on(edge.shop.address)
    };
    let load = load.start().unwrap();
    let clock = load.clock();
    let mut versions = Timeline::new();
    versions.allow_from(Duration::ZERO, ["v0"]);
    for n in 1..=count {
        let done = edge.shop.deploy_with(&format!("v{n}"), "", &["--json"]).unwrap();
        ended(&edge, &done, 0);
        allow_routes(&done.stdout, clock, &mut versions).unwrap();
    }
    let report = load.stop().unwrap();
    let wrong = report.not_allowed(&versions, Named::ByVersion);
    assert!(wrong.is_empty(), "{} answers, such as {}\n{report}", wrong.len(), wrong[0]);
    // An nginx before 1.27.4 closes connections that are idle when it reloads, and a request that a client sends on one in this very
    // moment is never read: clients may and do repeat it (RFC 9112, 9.3.1). This load repeats nothing, so it sees them.
    let races = |record: &&cdpipe_tests::load::Record| {
        let kind = record.failure.as_ref().map(|failure| failure.kind);
        router != Router::Haproxy && record.kept_alive && kind == Some(FailureKind::Dropped)
    };
    let (raced, failed): (Vec<_>, Vec<_>) = report.failures().into_iter().partition(races);
    assert!(failed.is_empty(), "{report}");
    assert!(raced.len() * 100 <= report.records().len(), "{report}");
}

#[test]
fn nginx_switches_drop_nothing() {
    if there("nginx_switches_drop_nothing", Router::Nginx) {
        switches_drop_nothing(Router::Nginx, BLUE_GREEN, 10);
    }
}

#[test]
fn haproxy_switches_drop_nothing() {
    if there("haproxy_switches_drop_nothing", Router::Haproxy) {
        switches_drop_nothing(Router::Haproxy, BLUE_GREEN, 10);
    }
}
