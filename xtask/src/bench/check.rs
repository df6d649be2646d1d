//! `cdpipe check` beside actionlint, on a pipeline and a workflow of the same DAG. actionlint runs without its helpers
//! shellcheck and pyflakes, which are other programs.

use std::time::Duration;

use super::dag::Dag;
use super::figure::{Aim, Figure};
use super::{Setup, alternate};
use crate::process::{Job, write_file};
use crate::say::say;

const ONE_RUN_WITHIN: Duration = Duration::from_secs(120);

pub(crate) fn bench(setup: &Setup) -> Result<Vec<Figure>, String> {
    [("check-250", 250, 1.0), ("check-10000", 10_000, 0.5)]
        .into_iter()
        .map(|(id, stages, aim)| one(setup, id, stages, aim))
        .collect()
}

fn one(setup: &Setup, id: &'static str, stages: usize, aim: f64) -> Result<Figure, String> {
    let dir = setup.fresh(id)?;
    let dag = Dag::random(stages, 1);
    let (pipeline, workflow) = (dag.pipeline("true", 2), dag.workflow("true"));
    let ours = |name: &str, text: &str| -> Result<Job, String> {
        let file = dir.join(name);
        write_file(&file, text)?;
        Ok(setup.cdpipe(&["check", &file.to_string_lossy()], ONE_RUN_WITHIN))
    };
    let actionlint = setup.lab("CDPIPE_LAB_ACTIONLINT")?;
    let peer = |name: &str, text: &str| -> Result<Job, String> {
        let file = dir.join(name);
        write_file(&file, text)?;
        let file = file.to_string_lossy().into_owned();
        let args = ["-no-color", "-shellcheck=", "-pyflakes=", &file];
        Ok(Job::new(actionlint, args, ONE_RUN_WITHIN).dir(&dir))
    };

    // Both sides look at every need: one that points nowhere, in the last stage, is found.
    let wrong = |text: &str| {
        let at = text.rfind("needs").unwrap_or(0);
        format!("{}{}", &text[..at], text[at..].replacen('[', "[nowhere, ", 1))
    };
    finds("cdpipe check", &ours("wrong.cd", &wrong(&pipeline))?)?;
    finds("actionlint", &peer("wrong.yml", &wrong(&workflow))?)?;

    let (ours, peer) = (ours("bench.cd", &pipeline)?, peer("bench.yml", &workflow)?);
    ours.must()?;
    peer.must()?;
    say(&format!("{stages} stages: pipeline {} bytes, workflow {} bytes", pipeline.len(), workflow.len()));
    let (ours, peer) = alternate(setup.rounds, || Ok(ours.clone()), || Ok(peer.clone()), &dir)?;
    Ok(Figure {
        id,
        what: format!("`check`, {stages} stages, whole process"),
        unit: "ms",
        ours,
        peer: Some(("actionlint".to_owned(), peer)),
        aim: Aim::AtMost(aim),
    })
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
