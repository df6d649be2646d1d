//! The real API server of the lab is killed in the middle of a deploy and comes back. In a program of its own: cargo runs test programs one
//! after another, so nobody else uses the cluster meanwhile.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says that something is wrong by panicking")]

#[allow(dead_code, reason = "of what the other tests on a cluster use, these need a part")]
#[path = "kubernetes/space.rs"]
mod space;
#[allow(dead_code, reason = "of what the other tests on a cluster use, these need a part")]
#[path = "kubernetes/ways.rs"]
mod ways;

use cdpipe_tests::deployed::comes_true;
use cdpipe_tests::lab;
use cdpipe_tests::processes::Ended;
use rustix::process::{Pid, Signal, kill_process};
use space::{LONG, Space, assert_ended, ended};
use std::path::PathBuf;
use ways::{BLUE_GREEN, CANARY, ROLLING, THROUGH_ISTIO, Way};

/// The file in which the lab keeps the process that starts its API server again.
fn keeper(test: &str) -> Option<PathBuf> {
    let found = std::env::var_os("CDPIPE_LAB_KUBERNETES_KEEPER").map(PathBuf::from);
    if found.is_none() {
        lab::skip(test, "CDPIPE_LAB_KUBERNETES_KEEPER (cargo xtask test, or cargo xtask lab up kubernetes)")
            .unwrap();
    }
    found
}

/// Kills the API server as nothing could stop it from being killed, and says which it was.
fn kill_api_server(keeper: &PathBuf) -> String {
    let text = std::fs::read_to_string(keeper).unwrap();
    let pid = text.split_whitespace().next().unwrap();
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    let server = children
        .split_whitespace()
        .find(|child| {
            let line = std::fs::read_to_string(format!("/proc/{child}/cmdline")).unwrap_or_default();
            line.contains("kube-apiserver")
        })
        .unwrap()
        .to_owned();
    kill_process(Pid::from_raw(server.parse().unwrap()).unwrap(), Signal::KILL).unwrap();
    server
}

/// A deploy of this version has begun to change what is there.
fn is_in_the_middle(space: &Space, version: &str) -> bool {
    let images = space.field("deployments", "{.items[*].spec.template.spec.containers[0].image}");
    images.split_whitespace().any(|image| image.ends_with(&format!(":{version}")))
}

fn goes_on_over_a_restart(way: Way, also_killed: bool) {
    let test = way.test.replace("e-", "restart-");
    let Some(keeper) = keeper(&test) else { return };
    let Some(space) = Space::on(way, &test) else { return };
    assert_ended(&space.run("1.0"), 0, &[]);
    let is_back = || space.try_kubectl(&["get", "--raw", "/readyz"]).is_some();

    let mut run = space.begin("1.1");
    assert!(comes_true(LONG, || is_in_the_middle(&space, "1.1")));
    let killed = kill_api_server(&keeper);
    assert!(run.try_wait().unwrap().is_none(), "it was over before {killed} was killed");
    came_in(&space, &ended(run), "1.1", "1.0");
    assert!(comes_true(LONG, is_back));
    let routed = space.routed(way);

    if !also_killed {
        return;
    }
    // Both at once: nobody is there to wait for it.
    let mut run = space.begin("1.2");
    assert!(comes_true(LONG, || is_in_the_middle(&space, "1.2")));
    kill_api_server(&keeper);
    run.kill().unwrap();
    run.wait().unwrap();
    came_in(&space, &space.place.run(["resume"]).unwrap(), "1.2", "1.1");
    assert!(routed.is_empty() || routed != space.routed(way), "{routed}");
    assert_eq!(space.field("lease/cdpipe-web-lock", "{.spec.holderIdentity}"), "");
}

/// The deploy went on to its end. On a busy machine the cluster's own controllers may need longer to find their API server again than a
/// route is waited for: then it went back whole, says so, and the next one comes in.
fn came_in(space: &Space, ended: &Ended, version: &str, former: &str) {
    if ended.code == Some(3) {
        assert_ended(ended, 3, &["rolls back", &format!("{former} serves")]);
        space.serves(former, 2);
        assert_ended(&space.run(version), 0, &[]);
    } else {
        assert_ended(ended, 0, &[]);
    }
    space.serves(version, 2);
}

/// One after another: each takes the API server from everybody.
#[test]
fn every_strategy_goes_on_while_the_api_server_is_killed_and_comes_back() {
    for (way, also_killed) in [(ROLLING, true), (BLUE_GREEN, true), (CANARY, false), (THROUGH_ISTIO, false)] {
        goes_on_over_a_restart(way, also_killed);
    }
}
