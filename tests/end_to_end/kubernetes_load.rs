//! Long open loads over many canaries, rollbacks and switches on a real cluster, through a real istiod with its Envoy and through the
//! kube-proxy: not one failed request, and shares that are what the run says they are.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says that something is wrong by panicking")]

#[path = "kubernetes/edge.rs"]
mod edge;
#[allow(dead_code, reason = "of what the other tests on a cluster use, these need a part")]
#[path = "kubernetes/space.rs"]
mod space;

use cdpipe_tests::deployed::{ask, ask_host, comes_true};
use cdpipe_tests::lab;
use cdpipe_tests::load::{Kind, Load, Mix, Named, Record, Timeline};
use edge::{Edge, GATEWAY, ISTIO, edge, is_plausible};
use serde_json::Value;
use space::{LONG, Space, assert_ended};
use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::Stdio;
use std::time::Duration;

const GOOD: u32 = 10;
const BAD: u32 = 5;
const SWITCHES: u32 = 30;
/// How long a step of a canary is held.
const HOLD: Duration = Duration::from_millis(1500);
/// The record's times and the load's are both cut to a millisecond.
const ROUNDING: Duration = Duration::from_millis(2);

/// Runs the pipeline for this version; `routed` is told the candidate's share of each route that it says was observed. Answers its events.
fn follow(space: &Space, version: &str, code: i32, mut routed: impl FnMut(f64)) -> Vec<Value> {
    let set = format!("version={version}");
    let mut command = space.place.command(["run", "pipeline.cd", "--json", "--set", &set]);
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut events = Vec::new();
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let event: Value = serde_json::from_str(&line.unwrap()).unwrap();
        if event["type"] == "routed" {
            routed(share_of(&event));
        }
        events.push(event);
    }
    let ended = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    let last: Vec<String> = events.iter().rev().take(5).map(ToString::to_string).collect();
    assert_eq!(ended.status.code(), Some(code), "{version}: {said}\n{}", last.join("\n"));
    events
}

/// The share of the release that is brought in, in percent.
fn share_of(routed: &Value) -> f64 {
    let releases = routed["releases"].as_array().unwrap();
    let stable = releases.iter().find(|release| release["role"] == "stable");
    let candidate = releases.iter().find(|release| release["role"] == "candidate");
    match (stable, candidate) {
        (_, Some(candidate)) => candidate["percent"].as_f64().unwrap(),
        // Whoever has all is stable.
        (Some(_), None) => 100.0,
        (None, None) => 0.0,
    }
}

/// One held step of a canary: between the moment it was observed and the next change.
struct Step {
    percent: f64,
    candidate: String,
    from_ms: u64,
    to_ms: u64,
}

fn at_ms(event: &Value) -> u64 {
    event["at_ms"].as_u64().unwrap()
}

fn steps(events: &[Value], candidate: &str) -> Vec<Step> {
    let back = events.iter().find(|event| event["type"] == "rollback").map(at_ms);
    let held = |event: &&Value| event["type"] == "routed" && (0.1..99.9).contains(&share_of(event));
    let step = |event: &Value| {
        let (from_ms, hold_ms) = (at_ms(event), u64::try_from(HOLD.as_millis()).unwrap());
        let to_ms = back.unwrap_or(u64::MAX).min(from_ms + hold_ms);
        Step { percent: share_of(event), candidate: candidate.to_owned(), from_ms, to_ms }
    };
    events.iter().filter(held).map(step).collect()
}

fn canaries_and_rollbacks_fail_no_request(test: &str, edge_of: Edge) {
    let Some(address) = edge(test, edge_of.variable) else { return };
    let host = format!("{test}.lab");
    let hold = HOLD.as_millis();
    let strategy = format!(
        "canary {{\n      route header(\"canary\", \"true\")\n      step 10% for {hold}ms\n      step 50% for {hold}ms\n    }}\n    \
         watch every 300ms {{ rollback when candidate.errors > 5% }}"
    );
    let Some(space) = Space::behind(test, edge_of, &host, &strategy) else { return };
    let text = std::fs::read_to_string(space.place.work().join("pipeline.cd")).unwrap();
    let metrics = "metrics web {\n  source command\n  errors: percent = 'cat \"errors-$CDPIPE_ROLE\" 2>/dev/null || echo 0'\n}\n\nstage ";
    let text = text.replacen("stage ", metrics, 1).replace("drain = 2s", "drain = 1s");
    // Whether a pod comes in time is no question here, and the machine may be busy.
    let text = text.replace("within = 15s", "within = 2m");
    space.place.write("pipeline.cd", text).unwrap();
    assert_ended(&space.run("1.0"), 0, &[]);
    let mix = Mix::new([
        (Kind::Short, 5),
        (Kind::Fresh, 2),
        (Kind::Slow { ms: 300 }, 1),
        (Kind::Echo { bytes: 5000 }, 1),
        (Kind::Stream { events: 5, every_ms: 100 }, 1),
    ]);
    let load = Load {
        host: Some(host.clone()),
        rate_per_s: 40,
        length: Duration::from_secs(1200),
        mix: mix.unwrap(),
        ..Load::on(address)
    };
    let load = load.start().unwrap();
    let clock = load.clock();
    let time = |at_ms: u64| clock.at_unix_ms(u128::from(at_ms));
    let mut timeline = Timeline::new();
    timeline.allow_from(Duration::ZERO, ["1.0"]);
    let (mut stable, mut held) = ("1.0".to_owned(), Vec::new());
    let version = |headers: &str| {
        let answer = ask_host(address, &host, headers).unwrap();
        assert_eq!(answer.status, 200, "{}", space.field(edge_of.object, edge_of.rules));
        answer.version
    };
    for n in 0..GOOD + BAD {
        let candidate = if stable == "1.0" { "1.1" } else { "1.0" };
        // Every third is found to be bad, in turn at the first and at the second step.
        let bad_at = (n % 3 == 2).then_some(if n % 2 == 0 { 10.0 } else { 50.0 });
        let errors = space.place.work().join("errors-candidate");
        let events = follow(&space, candidate, if bad_at.is_some() { 3 } else { 0 }, |percent| {
            if !(0.1..99.9).contains(&percent) {
                return;
            }
            assert!((0..5).all(|_| version("canary: true\r\n") == candidate), "at {percent} % of {n}");
            if bad_at == Some(percent) {
                std::fs::write(&errors, "0.5").unwrap();
            }
        });
        let _ = std::fs::remove_file(&errors);
        held.extend(steps(&events, candidate));
        let begun = events.iter().find(|event| event["type"] == "deploy").map(at_ms).unwrap();
        let last = events.iter().rfind(|event| event["type"] == "routed").map(at_ms).unwrap();
        timeline.allow_from(time(begun), ["1.0", "1.1"]);
        if bad_at.is_none() {
            stable = candidate.to_owned();
        }
        timeline.allow_from(time(last) + ROUNDING, [stable.as_str()]);
        assert!((0..5).all(|_| version("canary: true\r\n") == stable && version("") == stable), "after {n}");
    }
    let report = load.stop().unwrap();
    assert!(report.failures().is_empty(), "{report}");
    let wrong = report.not_allowed(&timeline, Named::ByVersion);
    assert!(
        wrong.is_empty(),
        "{} answers of versions that were not allowed, such as {}",
        wrong.len(),
        wrong[0]
    );
    let mut shares: BTreeMap<u32, (usize, usize)> = BTreeMap::new();
    for step in &held {
        let (from, to) = (time(step.from_ms) + ROUNDING, time(step.to_ms).saturating_sub(ROUNDING));
        let within = |record: &&Record| record.start >= from && record.answered.is_some_and(|at| at <= to);
        let answers = || report.records().iter().filter(within);
        let new =
            answers().filter(|record| record.version.as_deref() == Some(step.candidate.as_str())).count();
        let all = answers().count();
        assert!(is_plausible(all, step.percent / 100.0, new), "{new} of {all} at {} %", step.percent);
        let (sum, of) = shares.entry(if step.percent < 20.0 { 10 } else { 50 }).or_default();
        (*sum, *of) = (*sum + new, *of + all);
    }
    for (percent, (new, all)) in &shares {
        assert!(
            *all > 100 && is_plausible(*all, f64::from(*percent) / 100.0, *new),
            "{new} of {all} at {percent} %"
        );
    }
    assert_eq!(shares.len(), 2, "{shares:?}");
}

#[test]
fn fifteen_canaries_and_rollbacks_through_istio_fail_no_request() {
    canaries_and_rollbacks_fail_no_request("istio-load", ISTIO);
}

#[test]
fn fifteen_canaries_and_rollbacks_through_the_gateway_api_fail_no_request() {
    canaries_and_rollbacks_fail_no_request("gateway-load", GATEWAY);
}

/// Passes each connection to loopback on by a connection of its own to this address.
fn forwarder(to: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let here = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            // Whoever can't be passed on is cut off.
            let Ok(upstream) = TcpStream::connect_timeout(&to, Duration::from_secs(5)) else { continue };
            for (from, to) in [(&client, &upstream), (&upstream, &client)] {
                let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut from, &mut to);
                    let _ = to.shutdown(Shutdown::Write);
                });
            }
        }
    });
    here
}

#[test]
fn thirty_switches_of_a_service_fail_no_request() {
    let Some(space) = Space::new("service-load", "kubernetes-blue-green.cd") else { return };
    space.strategy("traffic service { name = \"web\" }", "blue_green { keep_old = 0s }");
    let text = std::fs::read_to_string(space.place.work().join("pipeline.cd")).unwrap();
    space
        .place
        .write(
            "pipeline.cd",
            text.replace("deploy shop", "deploy web").replace("within = 15s", "within = 2m"),
        )
        .unwrap();
    assert_ended(&space.run("1.0"), 0, &[]);
    let address: SocketAddr =
        format!("{}:8080", space.field("service/web", "{.spec.clusterIP}")).parse().unwrap();
    let here = forwarder(address);
    let answers =
        |version: &str| ask(here, "").is_ok_and(|answer| answer.status == 200 && answer.version == version);
    if !comes_true(LONG / 3, || answers("1.0")) {
        lab::skip(
            "service-load",
            "a kube-proxy (the lab has one for each machine, in the checkout that was first)",
        )
        .unwrap();
        return;
    }
    let mix = Mix::new([
        (Kind::Short, 6),
        (Kind::Slow { ms: 400 }, 2),
        (Kind::Echo { bytes: 5000 }, 1),
        (Kind::Stream { events: 5, every_ms: 100 }, 1),
    ]);
    // Each request has a connection of its own, so that each is sent where the cluster says at that moment.
    let load = Load {
        rate_per_s: 40,
        length: Duration::from_secs(1200),
        idle_limit: 0,
        mix: mix.unwrap(),
        ..Load::on(here)
    };
    let load = load.start().unwrap();
    let clock = load.clock();
    let mut timeline = Timeline::new();
    timeline.allow_from(Duration::ZERO, ["1.0"]);
    for n in 0..SWITCHES {
        let candidate = if n % 2 == 0 { "1.1" } else { "1.0" };
        let events = follow(&space, candidate, 0, |_| {});
        let moment = |kind: &str| {
            let event = events.iter().rfind(|event| event["type"] == kind).unwrap();
            clock.at_unix_ms(u128::from(at_ms(event)))
        };
        timeline.allow_from(moment("deploy"), ["1.0", "1.1"]);
        timeline.allow_from(moment("routed") + ROUNDING, [candidate]);
        assert!(answers(candidate), "after switch {n}");
        println!("switch {n}: {:?}", clock.now());
    }
    let report = load.stop().unwrap();
    assert!(report.failures().is_empty(), "{report}");
    let wrong = report.not_allowed(&timeline, Named::ByVersion);
    assert!(
        wrong.is_empty(),
        "{} answers of versions that were not allowed, such as {}",
        wrong.len(),
        wrong[0]
    );
    println!("{report}");
}
