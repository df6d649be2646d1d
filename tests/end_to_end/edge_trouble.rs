//! nginx and HAProxy when something is wrong: a configuration that is refused, somebody else's change, a router that goes away, a run that
//! is killed. And who sees a canary.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says that something is wrong by panicking")]

use cdpipe_tests::deployed::{FILE, ask, comes_true};
use cdpipe_tests::edge::{Edge, Router, program};
use cdpipe_tests::lab;
use cdpipe_tests::processes::Ended;
use std::process::{Child, Stdio};
use std::time::Duration;

/// For what only a very busy machine delays.
const PATIENCE: Duration = Duration::from_secs(60);
const BLUE_GREEN: &str = "blue_green { keep_old = 0s }";
/// It waits until the file `go-VERSION` is there, before the candidate is routed.
const WAITING: &str = "blue_green { keep_old = 0s }\n    \
    verify {\n      run \"touch at-${version}; until [ -e go-${version} ]; do sleep 0.05; done\" { timeout = 60s }\n    }";

fn there(test: &str, router: Router) -> bool {
    if program(router).is_some() {
        return true;
    }
    let name = if router == Router::Haproxy { "haproxy" } else { "nginx" };
    lab::skip(test, &format!("{name} (apt-get install {name})")).unwrap();
    false
}

#[track_caller]
fn ended(edge: &Edge, ended: &Ended, code: i32, says: &[&str]) {
    let said = format!("{}{}", ended.stdout, ended.stderr);
    assert_eq!(ended.code, Some(code), "{said}\n{}", edge.log());
    // Words are wrapped at the width of a terminal.
    let words = said.split_whitespace().collect::<Vec<_>>().join(" ");
    for text in says {
        assert!(words.contains(text), "expected {text:?} in:\n{said}");
    }
}

#[track_caller]
fn serves(edge: &Edge, version: &str) {
    for _ in 0..6 {
        let answer = edge.shop.ask().unwrap();
        assert_eq!((answer.status, answer.version.as_str()), (200, version), "{}", edge.log());
    }
}

/// What the include says to nginx; its head, which says whose it is, changes with each owner.
fn words(edge: &Edge) -> String {
    let text = std::fs::read_to_string(edge.folder().join("shop.conf")).unwrap();
    text.lines().skip(3).collect::<Vec<_>>().join("\n")
}

fn spawn(edge: &Edge, arguments: &[&str]) -> Child {
    let mut command = edge.shop.place.command(arguments);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// Deploys `v2` and stops where it waits, v1 being there.
fn waiting(router: Router) -> (Edge, Child) {
    let edge = Edge::with(router, WAITING, "20s").unwrap();
    edge.shop.place.write("go-v1", "").unwrap();
    ended(&edge, &edge.shop.deploy("v1", "").unwrap(), 0, &[]);
    let run = spawn(&edge, &["run", FILE, "--set", "version=v2"]);
    assert!(comes_true(PATIENCE, || edge.shop.place.work().join("at-v2").exists()), "it never came to wait");
    (edge, run)
}

fn finish(edge: &Edge, run: &mut Child) -> Option<i32> {
    edge.shop.place.write("go-v2", "").unwrap();
    run.wait().unwrap().code()
}

/// The chance of at least `k` successes in `n` trials of chance `p`, by Chernoff's bound.
fn chance_of_more(n: f64, p: f64, k: f64) -> f64 {
    let q = k / n;
    if q <= p {
        return 1.0;
    }
    (-n * (q * (q / p).ln() + (1.0 - q) * ((1.0 - q) / (1.0 - p)).ln())).exp()
}

/// How many of 400 requests get the candidate.
fn counted(edge: &Edge, headers: &str, candidate: &str) -> u32 {
    (0..400).map(|_| u32::from(ask(edge.shop.address, headers).unwrap().version == candidate)).sum()
}

fn canary_gets_its_share(router: Router, rule: &str) -> Edge {
    let edge =
        Edge::with(router, &format!("canary {{\n      {rule}\n      step 25% until approved\n    }}"), "20s")
            .unwrap();
    ended(&edge, &edge.shop.deploy("v1", "").unwrap(), 0, &[]);
    let text = std::fs::read_to_string(edge.shop.place.work().join(FILE)).unwrap();
    edge.shop.place.write(FILE, text.replace("mode = deployment", "mode = delivery")).unwrap();
    ended(&edge, &edge.shop.deploy("v2", "").unwrap(), 5, &[]);
    let got = f64::from(counted(&edge, "", "v2"));
    let (more, fewer) = (chance_of_more(400.0, 0.25, got), chance_of_more(400.0, 0.75, 400.0 - got));
    assert!(more > 1e-9 && fewer > 1e-9, "{got} of 400 at 25 %");
    edge
}

fn approve(edge: &Edge) {
    ended(edge, &edge.shop.place.run(["approve"]).unwrap(), 0, &[]);
    ended(edge, &edge.shop.place.run(["resume"]).unwrap(), 0, &[]);
    serves(edge, "v2");
}

#[test]
fn nginx_gives_a_canary_its_share_and_a_header_or_cookie_chooses_it() {
    if !there("nginx_gives_a_canary_its_share", Router::Nginx) {
        return;
    }
    let rules = "route header(\"x-canary\", \"yes; {$1}\")\n      route cookie(\"who-am\", \"tester\")";
    let edge = canary_gets_its_share(Router::Nginx, rules);
    for headers in ["X-Canary: yes; {$1}\r\n", "cookie: a=b; who-am=tester\r\n", "cookie: who-am=tester\r\n"]
    {
        assert!((0..30).all(|_| ask(edge.shop.address, headers).unwrap().version == "v2"), "{headers}");
    }
    for headers in ["X-Canary: YES; {$1}\r\n", "cookie: xwho-am=tester\r\n", "cookie: who-am=tester2\r\n"] {
        assert!((0..60).any(|_| ask(edge.shop.address, headers).unwrap().version == "v1"), "{headers}");
    }
    approve(&edge);
}

#[test]
fn haproxy_gives_a_canary_its_share() {
    if there("haproxy_gives_a_canary_its_share", Router::Haproxy) {
        approve(&canary_gets_its_share(Router::Haproxy, ""));
    }
}

#[test]
fn what_nginx_refuses_is_said_in_its_words_and_the_old_file_is_back() {
    if !there("what_nginx_refuses", Router::Nginx) {
        return;
    }
    let edge = Edge::with(Router::Nginx, BLUE_GREEN, "20s").unwrap();
    ended(&edge, &edge.shop.deploy("v1", "").unwrap(), 0, &[]);
    let before = words(&edge);
    // A mistake in the user's own file: the whole configuration is refused.
    let own = edge.folder().join("nginx.conf");
    let good = std::fs::read_to_string(&own).unwrap();
    std::fs::write(&own, good.replace("http {", "http { no_such_word on;")).unwrap();
    ended(&edge, &edge.shop.deploy("v2", "").unwrap(), 3, &["no_such_word", "the file is as it was"]);
    assert_eq!(words(&edge), before);
    serves(&edge, "v1");
    std::fs::write(&own, good).unwrap();
    ended(&edge, &edge.shop.deploy("v3", "").unwrap(), 0, &[]);
    serves(&edge, "v3");
}

#[test]
fn a_reload_that_has_no_effect_is_seen_and_the_old_file_is_back() {
    if !there("a_reload_that_has_no_effect", Router::Nginx) {
        return;
    }
    let edge = Edge::with(Router::Nginx, BLUE_GREEN, "20s").unwrap();
    ended(&edge, &edge.shop.deploy("v1", "").unwrap(), 0, &[]);
    let before = words(&edge);
    let path = edge.shop.place.work().join(FILE);
    let text = std::fs::read_to_string(&path).unwrap();
    let (head, rest) = text.split_once("reload = [").unwrap();
    let (_, tail) = rest.split_once(']').unwrap();
    std::fs::write(&path, format!("{head}reload = [\"true\"]\n    settle = 1s{tail}")).unwrap();
    ended(&edge, &edge.shop.deploy("v2", "").unwrap(), 3, &["does not serve the new"]);
    assert_eq!(words(&edge), before);
    serves(&edge, "v1");
}

#[test]
fn a_change_by_hand_is_held_and_said() {
    if !there("a_change_by_hand", Router::Nginx) {
        return;
    }
    let edge = Edge::with(Router::Nginx, BLUE_GREEN, "20s").unwrap();
    ended(&edge, &edge.shop.deploy("v1", "").unwrap(), 0, &[]);
    let file = edge.folder().join("shop.conf");
    let changed = std::fs::read_to_string(&file).unwrap().replace("max_fails=0", "max_fails=9");
    std::fs::write(&file, &changed).unwrap();
    ended(&edge, &edge.shop.deploy("v2", "").unwrap(), 1, &["was changed by hand since cdpipe wrote it"]);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), changed, "it is not overwritten");
    serves(&edge, "v1");
}

#[test]
fn somebody_elses_slot_of_haproxy_is_held_and_said() {
    if !there("somebody_elses_slot", Router::Haproxy) {
        return;
    }
    let (edge, mut run) = waiting(Router::Haproxy);
    let commands = "set server shop/cdpipe9 addr 127.0.0.1 port 9;set server shop/cdpipe9 weight 0;set server shop/cdpipe9 state ready\n";
    edge.socket(commands).unwrap();
    // The candidate is not routed over it, and neither is the way back: a person is called.
    assert_eq!(finish(&edge, &mut run), Some(4));
    assert!(edge.socket("show servers state shop\n").unwrap().contains("cdpipe9 127.0.0.1 2 "));
    let again = edge.shop.deploy("v3", "").unwrap();
    ended(&edge, &again, 1, &["somebody else has changed backend shop", "cdpipe9"]);
}

#[test]
fn nginx_restarted_in_the_middle_of_a_deploy_goes_on_with_it() {
    if !there("nginx_restarted", Router::Nginx) {
        return;
    }
    let (mut edge, mut run) = waiting(Router::Nginx);
    edge.kill();
    edge.start().unwrap();
    let code = finish(&edge, &mut run);
    assert_eq!(code, Some(0), "{}", edge.log());
    serves(&edge, "v2");
}

#[test]
fn without_haproxys_socket_the_error_says_so_and_a_later_deploy_works() {
    if !there("without_haproxys_socket", Router::Haproxy) {
        return;
    }
    let mut edge = Edge::with(Router::Haproxy, BLUE_GREEN, "20s").unwrap();
    ended(&edge, &edge.shop.deploy("v1", "").unwrap(), 0, &[]);
    edge.kill();
    let said = edge.shop.deploy("v2", "").unwrap();
    ended(&edge, &said, 1, &["the runtime socket of HAProxy on this machine", "haproxy.sock"]);
    // It has forgotten its slots, and the next deploy tells it again.
    edge.start().unwrap();
    ended(&edge, &edge.shop.deploy("v3", "").unwrap(), 0, &[]);
    serves(&edge, "v3");
}

#[test]
fn the_same_release_is_deployed_again_after_a_restart_of_haproxy() {
    if !there("the_same_release_is_deployed_again", Router::Haproxy) {
        return;
    }
    let mut edge = Edge::with(Router::Haproxy, BLUE_GREEN, "20s").unwrap();
    ended(&edge, &edge.shop.deploy("v1", "").unwrap(), 0, &[]);
    edge.kill();
    edge.start().unwrap();
    assert_eq!(edge.shop.ask().unwrap().status, 503, "it has forgotten its slots");
    ended(&edge, &edge.shop.deploy("v1", "").unwrap(), 0, &[]);
    serves(&edge, "v1");
}

#[test]
fn a_run_that_is_killed_between_writing_and_reloading_is_gone_on_with() {
    if !there("a_run_that_is_killed", Router::Nginx) {
        return;
    }
    let edge = Edge::with(Router::Nginx, BLUE_GREEN, "20s").unwrap();
    ended(&edge, &edge.shop.deploy("v1", "").unwrap(), 0, &[]);
    // The reload of the second run never comes: it hangs, and the run is killed in it, with all that it started.
    let path = edge.shop.place.work().join(FILE);
    let text = std::fs::read_to_string(&path).unwrap();
    let (head, rest) = text.split_once("reload = [").unwrap();
    let script = "touch reloading; [ ! -e hang ] || sleep 50; exec \\\"$@\\\"";
    std::fs::write(&path, format!("{head}reload = [\"sh\", \"-c\", \"{script}\", \"reload\", {rest}"))
        .unwrap();
    edge.shop.place.write("hang", "").unwrap();
    let mut run = spawn(&edge, &["run", FILE, "--set", "version=v2"]);
    assert!(comes_true(PATIENCE, || edge.shop.place.work().join("reloading").exists()));
    run.kill().unwrap();
    run.wait().unwrap();
    for process in edge.shop.place.running() {
        if process.command.contains("reloading") || process.command == "sleep 50" {
            let pid = rustix::process::Pid::from_raw(process.pid).unwrap();
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
    serves(&edge, "v1");
    std::fs::remove_file(edge.shop.place.work().join("hang")).unwrap();
    ended(&edge, &edge.shop.place.run(["resume"]).unwrap(), 0, &[]);
    serves(&edge, "v2");
}

#[test]
fn a_run_that_is_killed_behind_haproxy_is_gone_on_with() {
    if !there("a_run_that_is_killed_behind_haproxy", Router::Haproxy) {
        return;
    }
    let (edge, mut run) = waiting(Router::Haproxy);
    run.kill().unwrap();
    run.wait().unwrap();
    edge.shop.place.write("go-v2", "").unwrap();
    ended(&edge, &edge.shop.place.run(["resume"]).unwrap(), 0, &[]);
    serves(&edge, "v2");
}
