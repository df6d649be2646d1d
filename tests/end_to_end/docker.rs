//! The shop in containers of a real engine, behind the built-in proxy: every strategy, releases that are bad in every way, an engine that
//! goes away or hangs, and a cdpipe that is killed.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says that something is wrong by panicking")]

#[path = "docker/service.rs"]
mod service;
#[path = "docker/steps.rs"]
mod steps;
#[path = "docker/trouble.rs"]
mod trouble;

use cdpipe_tests::deployed::{Deployed, comes_true};
use cdpipe_tests::lab;
use cdpipe_tests::load::{Kind, Load, Mix, Running};
use cdpipe_tests::place::Place;
use cdpipe_tests::processes::Ended;
use std::collections::BTreeSet;
use std::process::{Command, Stdio};
use std::time::Duration;

/// The shop of `pipelines/docker.cd` in an environment of its own; what it leaves on the engine goes with it.
struct Shop {
    deployed: Deployed,
    environment: String,
    engine: String,
}

impl Shop {
    /// `None` where there is no engine.
    fn new(test: &str, strategy: &str, replicas: u32) -> Option<Self> {
        Self::at(test, strategy, replicas, "0s", None)
    }

    fn at(test: &str, strategy: &str, replicas: u32, after: &str, endpoint: Option<&str>) -> Option<Self> {
        let found = |name| std::env::var(name).ok();
        let (Some(engine), Some(registry)) = (found("CDPIPE_LAB_DOCKER"), found("CDPIPE_LAB_REGISTRY"))
        else {
            lab::skip(test, "a Docker engine (cargo xtask lab up docker)").unwrap();
            return None;
        };
        let environment = format!("e{}", test.replace('_', ""));
        let text = include_str!("../pipelines/docker.cd")
            .replace("@HERE@", &environment)
            .replace("@ENGINE@", endpoint.unwrap_or(&engine))
            .replace("@REGISTRY@", &registry)
            .replace("@REPLICAS@", &replicas.to_string())
            .replace("@AFTER@", after)
            .replace("@NO_DATA@", if after == "0s" { "pass" } else { "hold" })
            .replace("@STRATEGY@", strategy);
        let shop = Self { deployed: Deployed::with(&text).unwrap(), environment, engine };
        shop.clear();
        Some(shop)
    }

    fn deploy(&self, image: &str, fault: &str) -> Ended {
        self.deployed
            .place
            .run(["run", "shop.cd", "--set", &format!("image={image}"), "--set", &format!("fault={fault}")])
            .unwrap()
    }

    fn docker(&self, args: &[&str]) -> String {
        let output = Command::new("docker").args(args).env("DOCKER_HOST", &self.engine).output().unwrap();
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// The names of the containers that run, in order.
    fn running(&self) -> Vec<String> {
        let filter = format!("label=cdpipe.environment={}", self.environment);
        let listed = self.docker(&["ps", "--filter", &filter, "--format", "{{.Names}}"]);
        let mut names: Vec<String> = listed.lines().map(str::to_owned).collect();
        names.sort();
        names
    }

    /// The engine's time, to nanoseconds, for [`Shop::started`].
    fn now(&self) -> String {
        self.docker(&["info", "--format", "{{.SystemTime}}"])
    }

    /// The containers that the engine has started since then, one entry for each start.
    fn started(&self, since: &str) -> Vec<String> {
        let filter = format!("label=cdpipe.environment={}", self.environment);
        let args = ["events", "--since", since, "--until", &self.now(), "--filter", "event=start"];
        let format = "{{.Actor.Attributes.name}}";
        let listed = self.docker(&[args.as_slice(), &["--filter", &filter, "--format", format]].concat());
        listed.lines().map(str::to_owned).collect()
    }

    fn answers(&self) -> (u16, String) {
        let answer = self.deployed.ask().unwrap();
        (answer.status, answer.version)
    }

    fn visitors(&self) -> Running {
        let socket = Kind::Socket { messages: 10, every_ms: 50, bytes: 200 };
        let mix = Mix::new([(Kind::Short, 75), (Kind::Slow { ms: 300 }, 20), (socket, 5)]).unwrap();
        Load { mix, ..Load::on(self.deployed.address) }.start().unwrap()
    }

    fn clear(&self) {
        let filter = format!("label=cdpipe.environment={}", self.environment);
        let listed = self.docker(&["ps", "--all", "--quiet", "--filter", &filter]);
        let ids: Vec<&str> = listed.lines().collect();
        if !ids.is_empty() {
            self.docker(&[&["rm", "--force", "--volumes"], ids.as_slice()].concat());
        }
    }
}

impl Drop for Shop {
    fn drop(&mut self) {
        self.clear();
    }
}

#[track_caller]
fn assert_ended(ended: &Ended, code: i32, says: &[&str]) {
    assert_eq!(ended.code, Some(code), "stdout:\n{}\nstderr:\n{}", ended.stdout, ended.stderr);
    let said = format!("{}{}", ended.stdout, ended.stderr);
    for part in says {
        assert!(said.contains(part), "{part:?} is missing from\n{said}");
    }
}

/// A good release under load; images that are not there or end at once and one that never gets ready, which nobody meets; and one that
/// goes bad under users. Where it is `steady`, no request fails but by the bad release's own answers.
fn switches(test: &str, strategy: &str, steady: bool) {
    let Some(shop) = Shop::at(test, strategy, 2, "4s", None) else { return };
    assert_ended(&shop.deploy("1.0", ""), 0, &[]);
    assert_eq!(shop.answers(), (200, "1.0".to_owned()));
    let users = shop.visitors();
    assert_ended(&shop.deploy("1.1", ""), 0, &[]);
    assert_eq!(shop.answers(), (200, "1.1".to_owned()));
    assert!(comes_true(Duration::from_secs(10), || shop.running().len() == 2), "{:?}", shop.running());
    assert_ended(&shop.deploy("1.1", ""), 0, &["unchanged"]);
    let stable = shop.running();
    assert_ended(&shop.deploy("nowhere", ""), 1, &["shop:nowhere can't be had"]);
    assert_eq!(shop.running(), stable);
    assert_ended(&shop.deploy("exits", ""), 3, &["exit code 3", "cannot find my configuration"]);
    assert_ended(&shop.deploy("1.2", "never-healthy"), 3, &["/health", "503"]);
    assert_eq!((shop.answers(), shop.running()), ((200, "1.1".to_owned()), stable));
    let report = users.stop().unwrap();
    assert!(!steady || report.failures().is_empty(), "{report}");
    let users = shop.visitors();
    assert_ended(&shop.deploy("1.2", "errors=50%"), 3, &["error_rate"]);
    let report = users.stop().unwrap();
    let other = report.failures().iter().any(|record| record.status != Some(500));
    assert!(!steady || !other, "{report}");
    assert_eq!(shop.answers(), (200, "1.1".to_owned()));
    assert!(comes_true(Duration::from_secs(10), || shop.running().len() == 2), "{:?}", shop.running());
}

/// An engine keeps two networks of one name, and takes that name for neither: every start would fail from then on.
#[test]
fn runs_that_begin_at_once_make_one_network() {
    let test = "runs_that_begin_at_once_make_one_network";
    let network = format!("cdpipe-at-once-{}", std::process::id());
    let shops: Vec<Shop> = (0..6)
        .map_while(|number| Shop::at(&format!("{test}{number}"), "recreate {}", 1, "0s", None))
        .collect();
    let Some(first) = shops.first() else { return };
    for shop in &shops {
        let file = shop.deployed.place.work().join("shop.cd");
        let text = std::fs::read_to_string(&file).unwrap();
        let here = format!("endpoint = \"{}\"", shop.engine);
        assert!(text.contains(&here), "{text}");
        std::fs::write(&file, text.replace(&here, &format!("{here}, network = \"{network}\""))).unwrap();
    }
    let ended: Vec<Ended> = std::thread::scope(|scope| {
        let runs: Vec<_> = shops.iter().map(|shop| scope.spawn(|| shop.deploy("1.0", ""))).collect();
        runs.into_iter().map(|run| run.join().unwrap()).collect()
    });
    let made = first.docker(&["network", "ls", "--quiet", "--filter", &format!("name={network}")]);
    for shop in &shops {
        shop.clear();
    }
    for id in made.lines() {
        first.docker(&["network", "rm", id]);
    }
    for ended in &ended {
        assert_ended(ended, 0, &[]);
    }
    assert_eq!(made.lines().count(), 1, "{made}");
    assert_eq!(
        first.docker(&["volume", "ls", "--quiet", "--filter", &format!("name=cdpipe-making-{network}")]),
        ""
    );
}

#[test]
fn blue_green_switches_and_comes_back() {
    switches("blue_green_switches_and_comes_back", "blue_green { keep_old = 1s }", true);
}

#[test]
fn rolling_switches_and_comes_back() {
    switches("rolling_switches_and_comes_back", "rolling { batch = 1, monitor = 1s }", true);
}

#[test]
fn a_canary_switches_and_comes_back() {
    switches("a_canary_switches_and_comes_back", "canary { step 50% for 1s }", true);
}

#[test]
fn recreate_replaces() {
    switches("recreate_replaces", "recreate", false);
}

#[test]
fn a_release_that_can_not_run_is_never_met_by_a_user() {
    let Some(shop) = Shop::new("a_release_that_can_not_run_is_never_met_by_a_user", "blue_green", 1) else {
        return;
    };
    assert_ended(&shop.deploy("1.0", ""), 0, &[]);
    let stable = shop.running();
    let users = shop.visitors();
    assert_ended(&shop.deploy("exits", ""), 3, &["exit code 3", "cannot find my configuration"]);
    assert_ended(&shop.deploy("no-command", ""), 3, &["/no/such/program"]);
    assert_ended(&shop.deploy("1.1", "never-healthy"), 3, &["/health", "503"]);
    assert_ended(&shop.deploy("nowhere", ""), 1, &["shop:nowhere can't be had", "check name and tag"]);
    let report = users.stop().unwrap();
    assert!(report.failures().is_empty(), "{report}");
    assert!(report.records().iter().all(|record| record.version.as_deref() == Some("1.0")), "{report}");
    assert_eq!(shop.running(), stable);
}

#[test]
fn without_an_engine_it_is_said_where_one_was_looked_for() {
    let test = "without_an_engine_it_is_said_where_one_was_looked_for";
    let Some(shop) = Shop::at(test, "blue_green", 1, "0s", Some("unix:///nonexistent/docker.sock")) else {
        return;
    };
    let ended = shop.deploy("1.0", "");
    assert_ended(&ended, 1, &["no Docker engine answers at unix:///nonexistent/docker.sock", "$DOCKER_HOST"]);
}

#[test]
fn a_killed_run_resumes_and_does_nothing_twice() {
    let test = "a_killed_run_resumes_and_does_nothing_twice";
    let Some(shop) = Shop::new(test, "rolling { batch = 1, monitor = 200ms }", 3) else { return };
    assert_ended(&shop.deploy("1.0", ""), 0, &[]);
    for (version, new) in [("1.1", 1), ("1.2", 2), ("1.0", 1)] {
        let before = shop.running();
        let since = shop.now();
        let place: &Place = &shop.deployed.place;
        let mut run = place.command(["run", "shop.cd", "--set", &format!("image={version}")]);
        let mut run = run.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let are_there = || shop.running().iter().filter(|name| !before.contains(name)).count() >= new;
        let in_the_middle = comes_true(Duration::from_secs(60), are_there);
        run.kill().unwrap();
        run.wait().unwrap();
        assert!(in_the_middle, "{:?}", shop.running());
        let resumed = place.run(["resume"]).unwrap();
        assert_ended(&resumed, 0, &[]);
        assert_eq!(shop.answers(), (200, version.to_owned()), "{}{}", resumed.stdout, resumed.stderr);
        assert!(comes_true(Duration::from_secs(10), || shop.running().len() == 3), "{:?}", shop.running());
        let releases: BTreeSet<String> =
            shop.running().iter().map(|name| name.rsplit_once('-').unwrap().0.to_owned()).collect();
        assert_eq!(releases.len(), 1, "{releases:?}");
        let started = shop.started(&since);
        let once: BTreeSet<&String> = started.iter().collect();
        assert_eq!(once.len(), 3, "{started:?}");
        assert_eq!(started.len(), 3, "{started:?}");
    }
    assert_ended(&place_down(&shop), 0, &["stopped"]);
    assert!(shop.running().is_empty());
}

/// The seeds to try. `cargo xtask soak` tries 1 to 50: `$CDPIPE_KILLED_DOCKER_CASES` is how many.
fn seeds() -> Vec<u64> {
    match std::env::var("CDPIPE_KILLED_DOCKER_CASES") {
        Ok(count) => (1..=count.parse().unwrap()).collect(),
        Err(_) => vec![6, 17, 38],
    }
}

/// When the run of a seed is killed: between its start and a bit after its usual end.
fn moment(seed: u64) -> Duration {
    let mixed = (seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33) % 4_000;
    Duration::from_millis(50 + mixed)
}

#[test]
fn killed_at_any_moment_it_is_gone_on_with_and_users_notice_nothing() {
    let test = "killed_at_any_moment_it_is_gone_on_with_and_users_notice_nothing";
    let Some(shop) = Shop::new(test, "rolling { batch = 1, monitor = 200ms }", 3) else { return };
    assert_ended(&shop.deploy("1.0", ""), 0, &[]);
    let users = shop.visitors();
    let mut version = "1.0";
    for seed in seeds() {
        version = if version == "1.1" { "1.2" } else { "1.1" };
        let since = shop.now();
        let place: &Place = &shop.deployed.place;
        let mut run = place.command(["run", "shop.cd", "--set", &format!("image={version}")]);
        let mut run = run.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(moment(seed));
        // It may have ended by itself just now.
        let _ = run.kill();
        run.wait().unwrap();
        let resumed = place.run(["resume"]).unwrap();
        let first = shop.answers().1 == version;
        if !first {
            // Killed before its journal had a word of it: there was nothing to resume.
            assert_ne!(resumed.code, Some(1), "seed {seed}: {resumed:?}");
            assert_ended(&shop.deploy(version, ""), 0, &[]);
        }
        let how = if first { "resumed" } else { "begun anew" };
        println!("seed {seed}, killed after {:?}: {how}", moment(seed));
        assert_eq!(shop.answers(), (200, version.to_owned()), "seed {seed}");
        assert!(comes_true(Duration::from_secs(10), || shop.running().len() == 3), "{:?}", shop.running());
        let started = shop.started(&since);
        let once: BTreeSet<&String> = started.iter().collect();
        assert_eq!((once.len(), started.len()), (3, 3), "seed {seed}: {started:?}");
    }
    let report = users.stop().unwrap();
    assert!(report.failures().is_empty(), "{report}");
}

fn place_down(shop: &Shop) -> Ended {
    shop.deployed.place.run(["down", "shop.cd", "--yes"]).unwrap()
}
