//! A roll of a Swarm service by `cdpipe run` beside `docker service update`: the same service twice, with the same image, health check and
//! update_config, on the same engine. Both wait until the Swarm says that the update is complete and its monitoring is over.

use std::cell::Cell;
use std::time::Duration;

use super::figure::{Aim, Figure};
use super::{Setup, alternate};
use crate::process::{Job, write_file};

const ONE_ROLL_WITHIN: Duration = Duration::from_secs(120);
/// Versions that take turns.
const VERSIONS: [&str; 2] = ["1.0", "1.1"];
const OURS: &str = "bench_cdpipe";
const PEER: &str = "bench_docker";

/// The service that both deploy. Four tasks, two at a time, the new one before the old one.
fn pipeline(service: &str, engine: &str, registry: &str) -> String {
    format!(
        r#"param version: string

environment swarm {{
  target swarm {{ endpoint = "{engine}" }}
}}

service {service} {{
  image    = "{registry}/shop:${{version}}"
  port     = 8080
  replicas = 4
  health   http "/health" {{ every = 300ms, timeout = 2s, failures = 2, within = 30s }}
  drain    = 2s
}}

stage release {{
  deploy {service} to swarm {{
    rolling {{ batch = 2, monitor = 500ms, order = start_first, max_failures = 20% }}
  }}
}}
"#
    )
}

pub(crate) fn bench(setup: &Setup) -> Result<Vec<Figure>, String> {
    let engine = setup.lab("CDPIPE_LAB_SWARM")?;
    let clear = || -> Result<(), String> {
        for service in [OURS, PEER] {
            docker(engine, &["service", "rm", service]).capture()?;
        }
        Ok(())
    };
    clear()?;
    let measured = measure(setup, engine);
    clear()?;
    measured
}

fn docker(engine: &str, args: &[&str]) -> Job {
    Job::new("docker", args, ONE_ROLL_WITHIN).env("DOCKER_HOST", engine)
}

fn measure(setup: &Setup, engine: &str) -> Result<Vec<Figure>, String> {
    let dir = setup.fresh("swarm")?;
    let registry = setup.lab("CDPIPE_LAB_REGISTRY")?;
    let docker = |args: &[&str]| docker(engine, args);
    let image = |version: &str| format!("{registry}/shop:{version}");
    for service in [OURS, PEER] {
        write_file(&dir.join(format!("{service}.cd")), &pipeline(service, engine, registry))?;
    }
    let ours = |service: &str, version: &str| {
        let (file, version) = (format!("{service}.cd"), format!("version={version}"));
        let args = ["run", &file, "--set", &version];
        setup.cdpipe(&args, ONE_ROLL_WITHIN).env("CDPIPE_STATE", dir.join("state")).dir(&dir)
    };
    let peer =
        |version: &str| docker(&["service", "update", "--detach=false", "--image", &image(version), PEER]);
    // Both services are made by cdpipe, so that nothing but who rolls them differs.
    for service in [OURS, PEER] {
        ours(service, VERSIONS[0]).must()?;
    }
    // Each of the two brings another image to all four tasks.
    let tasks = |service: &str| -> Result<Vec<String>, String> {
        let format = "{{.Image}} {{.CurrentState}}";
        let args =
            ["service", "ps", "--no-trunc", "--filter", "desired-state=running", "--format", format, service];
        let listed = docker(&args).must()?.output;
        let running = listed.lines().filter_map(|line| line.split_once(" Running"));
        // A digest is the same whoever names it; docker leaves the tag before it.
        Ok(running.map(|(image, _)| image.rsplit('@').next().unwrap_or(image).to_owned()).collect())
    };
    for (service, job) in [(OURS, ours(OURS, VERSIONS[1])), (PEER, peer(VERSIONS[1]))] {
        let before = tasks(service)?;
        job.must()?;
        let after = tasks(service)?;
        if after.len() != 4 || after.iter().any(|image| before.contains(image)) {
            return Err(format!("{service} was not rolled: {before:?}, then {after:?}"));
        }
    }
    let turns = [Cell::new(0), Cell::new(0)];
    let next = |turn: &Cell<usize>| {
        turn.set(turn.get() + 1);
        VERSIONS[(turn.get() + 1) % 2]
    };
    let measured =
        alternate(setup.rounds, || Ok(ours(OURS, next(&turns[0]))), || Ok(peer(next(&turns[1]))), &dir);
    let (a, b) = measured?;
    Ok(vec![Figure {
        id: "swarm-roll",
        what: "a roll of a Swarm service: 4 tasks, 2 at a time, start first, 500 ms of monitoring".to_owned(),
        unit: "ms",
        ours: a,
        peer: Some(("docker service update".to_owned(), b)),
        aim: Aim::AtMost(1.05),
    }])
}
