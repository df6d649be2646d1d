//! The two pipelines over containers of one engine behind an nginx in a container there, and the one over a Swarm, as they stand in
//! `pipelines/`: each twice, and then with releases that deserve to go back.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says that something is wrong by panicking")]

use cdpipe_tests::lab;
use cdpipe_tests::place::{Place, repository};
use std::process::Command;
use std::time::Duration;

/// What the pipelines promise.
const RUN_WITHIN: Duration = Duration::from_secs(120);

struct Lab {
    place: Place,
    engine: String,
    registry: String,
    name: &'static str,
    /// The container with nginx and the network, of the test's own engine.
    edge: String,
    network: String,
}

impl Lab {
    fn get(name: &'static str, shop: &str, engine: &str) -> Option<Self> {
        let found = |name| std::env::var(name).ok();
        let (Some(engine), Some(registry)) = (found(engine), found("CDPIPE_LAB_REGISTRY")) else {
            lab::skip(name, "a Docker engine and a Swarm (cargo xtask lab up docker swarm)").unwrap();
            return None;
        };
        let mut place = Place::new().unwrap();
        place.limit(RUN_WITHIN + Duration::from_secs(60));
        Some(Self { place, engine, registry, name, edge: format!("{shop}-edge"), network: shop.to_owned() })
    }

    fn file(&self) -> String {
        repository().join("pipelines").join(format!("{}.cd", self.name)).to_string_lossy().into_owned()
    }

    /// `cdpipe run` of the file as it stands, but for where the lab's registry listens and a port that is free.
    fn run(&self, more: &[&str], code: i32) -> String {
        let registry = format!("registry={}", self.registry);
        let file = self.file();
        let mut arguments = vec!["run", file.as_str(), "--set", registry.as_str()];
        for setting in more {
            arguments.extend(["--set", setting]);
        }
        let begin = std::time::Instant::now();
        let ended = self.place.run(arguments).unwrap();
        assert_eq!(ended.code, Some(code), "{}{}", ended.stdout, ended.stderr);
        assert!(begin.elapsed() < RUN_WITHIN, "{} took {:?}", self.name, begin.elapsed());
        ended.stdout + &ended.stderr
    }

    fn docker(&self, args: &[&str]) -> String {
        let output = Command::new("docker").args(args).env("DOCKER_HOST", &self.engine).output().unwrap();
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    fn down(&self) -> String {
        let ended = self.place.run(["down", &self.file()]).unwrap();
        ended.stdout + &ended.stderr
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.down();
        self.docker(&["rm", "--force", &self.edge]);
        self.docker(&["network", "rm", &self.network]);
    }
}

/// The line in which the visitors of the pipeline tell what they met.
#[track_caller]
fn visitors(said: &str) -> &str {
    said.lines().find(|line| line.contains("visitors: ")).unwrap_or_else(|| panic!("no visitors in\n{said}"))
}

/// Twice from 1.0 to 1.1, no request lost.
fn runs_as_it_stands(lab: &Lab, port: &str) {
    for _ in 0..2 {
        let said = lab.run(&[port], 0);
        let met = visitors(&said);
        assert!(met.contains("no failures") && met.contains("1.0") && met.contains("1.1"), "{said}");
    }
}

#[test]
fn blue_green_behind_nginx_in_a_container_runs_as_it_stands() {
    let Some(lab) = Lab::get("docker-blue-green", "shop-blue-green", "CDPIPE_LAB_DOCKER") else { return };
    let port = format!("port={}", cdpipe_tests::ports::free().unwrap());
    runs_as_it_stands(&lab, &port);
    let said = lab.run(&[&port, "version=errors"], 3);
    assert!(said.contains("candidate.error_rate > 5%"), "{said}");
    assert!(lab.down().contains("instances stopped"));
}

#[test]
fn a_canary_behind_nginx_in_a_container_runs_as_it_stands() {
    let Some(lab) = Lab::get("docker-canary", "shop-canary", "CDPIPE_LAB_DOCKER") else { return };
    let port = format!("port={}", cdpipe_tests::ports::free().unwrap());
    runs_as_it_stands(&lab, &port);
    let said = lab.run(&[&port, "version=errors"], 3);
    assert!(said.contains("candidate.error_rate > max(2 * stable.error_rate, 1%)"), "{said}");
    // Slower is said, and is no reason to go back.
    let said = lab.run(&[&port, "version=slow"], 0);
    assert!(said.contains("candidate.response_time > 1.5 * stable.response_time"), "{said}");
    assert!(lab.down().contains("instances stopped"));
}

#[test]
fn a_roll_of_a_swarm_runs_as_it_stands() {
    let Some(lab) = Lab::get("swarm-rolling", "shop", "CDPIPE_LAB_SWARM") else { return };
    for _ in 0..2 {
        let said = lab.run(&[], 0);
        assert!(said.contains("shop in fleet: 1.0 -> 1.1"), "{said}");
        assert_eq!(said.matches(" Running ").count(), 5, "{said}");
    }
    // Two of five are more than 20 %.
    let said = lab.run(&["version=exits"], 3);
    assert!(said.contains("the Swarm went back by itself"), "{said}");
    assert!(lab.down().contains("5 instances stopped"));
    assert_eq!(lab.docker(&["service", "ls", "--quiet", "--filter", "name=shop"]), "");
}
