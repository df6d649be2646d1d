//! `cdpipe check` beside actionlint, on a pipeline and a workflow of the same DAG. actionlint runs without its helpers
//! shellcheck and pyflakes, which are other programs.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::dag::Dag;
use super::figure::{Aim, Figure, median};
use super::{Setup, alternate};
use crate::process::{Job, write_file};
use crate::project;
use crate::say::say;

const ONE_RUN_WITHIN: Duration = Duration::from_secs(120);

/// Repeats inside one process of the in-process comparison; the median of them is one sample.
const REPEATS: usize = 7;
const BUILD_WITHIN: Duration = Duration::from_secs(20 * 60);

/// The sizes, what the whole process and what the work inside it is called, and the aim.
const SIZES: [(usize, [&str; 2], f64); 2] =
    [(250, ["check-250", "check-250-inside"], 1.0), (10_000, ["check-10000", "check-10000-inside"], 0.5)];

pub(crate) fn bench(setup: &Setup) -> Result<Vec<Figure>, String> {
    let inside = Inside::build(setup)?;
    let mut figures = Vec::new();
    for (stages, ids, aim) in SIZES {
        figures.extend(one(setup, &inside, stages, ids, aim)?);
    }
    Ok(figures)
}

fn one(
    setup: &Setup,
    inside: &Inside,
    stages: usize,
    [whole_id, inside_id]: [&'static str; 2],
    aim: f64,
) -> Result<[Figure; 2], String> {
    let dir = setup.fresh(whole_id)?;
    let dag = Dag::random(stages, 1);
    let (pipeline, workflow) = (dag.pipeline("true", 2), dag.workflow("true"));
    let file = |name: &str, text: &str| -> Result<String, String> {
        let file = dir.join(name);
        write_file(&file, text)?;
        Ok(file.to_string_lossy().into_owned())
    };
    let actionlint = setup.lab("CDPIPE_LAB_ACTIONLINT")?;
    let ours = |file: &str| setup.cdpipe(&["check", file], ONE_RUN_WITHIN);
    let peer = |file: &str| {
        Job::new(actionlint, ["-no-color", "-shellcheck=", "-pyflakes=", file], ONE_RUN_WITHIN).dir(&dir)
    };

    // Both sides look at every need: one that points nowhere, in the last stage, is found.
    let wrong = |text: &str| {
        let at = text.rfind("needs").unwrap_or(0);
        format!("{}{}", &text[..at], text[at..].replacen('[', "[nowhere, ", 1))
    };
    finds("cdpipe check", &ours(&file("wrong.cd", &wrong(&pipeline))?))?;
    finds("actionlint", &peer(&file("wrong.yml", &wrong(&workflow))?))?;

    let (pipeline_file, workflow_file) = (file("bench.cd", &pipeline)?, file("bench.yml", &workflow)?);
    let (ours, peer) = (ours(&pipeline_file), peer(&workflow_file));
    ours.must()?;
    peer.must()?;
    say(&format!("{stages} stages: pipeline {} bytes, workflow {} bytes", pipeline.len(), workflow.len()));
    let (whole_ours, whole_peer) = alternate(setup.rounds, || Ok(ours.clone()), || Ok(peer.clone()), &dir)?;
    let (mut inside_ours, mut inside_peer) = (Vec::new(), Vec::new());
    for _ in 0..setup.rounds {
        inside_ours.push(inside.sample(&inside.ours, &pipeline_file)?);
        inside_peer.push(inside.sample(&inside.peer, &workflow_file)?);
    }
    let figure = |id, how: &str, ours, peer| Figure {
        id,
        what: format!("`check`, {stages} stages, {how}"),
        unit: "ms",
        ours,
        peer: Some(("actionlint".to_owned(), peer)),
        aim: Aim::AtMost(aim),
    };
    Ok([
        figure(whole_id, "whole process", whole_ours, whole_peer),
        figure(inside_id, "as a library, inside a process", inside_ours, inside_peer),
    ])
}

/// The two programs of `xtask/peers` that call the checkers as libraries.
struct Inside {
    ours: PathBuf,
    peer: PathBuf,
}

impl Inside {
    fn build(setup: &Setup) -> Result<Self, String> {
        let sources = project::root().join("xtask").join("peers");
        let target = setup.dir.join("build");
        let manifest = sources.join("check").join("Cargo.toml");
        let args = ["build", "--release", "--quiet", "--manifest-path"].map(std::ffi::OsStr::new);
        Job::cargo(args.into_iter().chain([manifest.as_os_str()]), BUILD_WITHIN)
            .env("CARGO_TARGET_DIR", &target)
            .must()?;
        let peer = target.join("actionlint-inprocess");
        let go = project::find("go").ok_or("there is no `go` on PATH to build the peer with")?;
        let args = ["build", "-trimpath", "-o"].map(std::ffi::OsStr::new);
        let args = args.into_iter().chain([peer.as_os_str(), ".".as_ref()]);
        Job::new(go, args, BUILD_WITHIN).dir(sources.join("actionlint")).must()?;
        Ok(Self { ours: target.join("release").join("check-inprocess"), peer })
    }

    /// The median time of some repeats, in milliseconds.
    fn sample(&self, program: &Path, file: &str) -> Result<f64, String> {
        let said = Job::new(program, [file, &REPEATS.to_string()], ONE_RUN_WITHIN).must()?.output;
        let column = |number: usize| -> Vec<f64> {
            let words = said.lines().filter_map(|line| line.split(' ').nth(number)?.parse().ok());
            words.map(|ns: f64| ns / 1e6).collect()
        };
        let (times, parsing) = (column(0), column(1));
        if !parsing.is_empty() {
            say(&format!("of {:.2} ms, parsing takes {:.2} ms", median(&times), median(&parsing)));
        }
        if times.len() == REPEATS {
            Ok(median(&times))
        } else {
            Err(format!("{} said {said:?}", program.display()))
        }
    }
}

fn finds(name: &str, job: &Job) -> Result<(), String> {
    let ended = job.capture()?;
    if ended.ok() || !ended.output.contains("nowhere") {
        return Err(format!(
            "{name} does not find a planted mistake ({}), so its time would mean nothing",
            ended.how()
        ));
    }
    Ok(())
}
