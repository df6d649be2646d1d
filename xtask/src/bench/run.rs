//! `cdpipe run` of 10,000 stages beside ninja, on the same DAG, with the same number of commands at a time. Both start a
//! shell for each command; cdpipe also writes each start and end to its journal before it goes on, ninja keeps no record
//! that could be resumed.

use std::time::Duration;

use super::dag::Dag;
use super::figure::{Aim, Figure};
use super::{Setup, alternate};
use crate::process::{Job, write_file};

const ONE_RUN_WITHIN: Duration = Duration::from_secs(300);
const STAGES: usize = 10_000;
/// Stages of the run that shows that every command is really run.
const PROOF: usize = 200;

pub(crate) fn bench(setup: &Setup) -> Result<Vec<Figure>, String> {
    let dir = setup.fresh("run")?;
    let parallel = std::thread::available_parallelism().map_or(2, usize::from);
    let ninja = setup.lab("CDPIPE_LAB_NINJA")?;
    let ours = |name: &str, dag: &Dag, command: &str| -> Result<Job, String> {
        let file = dir.join(format!("{name}.cd"));
        write_file(&file, &dag.pipeline(command, parallel))?;
        let state = setup.fresh("run-state")?;
        Ok(setup
            .cdpipe(&["run", &file.to_string_lossy()], ONE_RUN_WITHIN)
            .env("CDPIPE_STATE", state)
            .dir(&dir))
    };
    let peer = |name: &str, dag: &Dag, command: &str| -> Result<Job, String> {
        let file = dir.join(format!("{name}.ninja"));
        write_file(&file, &dag.ninja(command))?;
        let parallel = parallel.to_string();
        Ok(Job::new(ninja, ["-f", &file.to_string_lossy(), "-j", &parallel, "--quiet"], ONE_RUN_WITHIN)
            .dir(&dir))
    };

    // A counted effect: each stage leaves one line. And a stage that fails fails the run.
    let small = Dag::random(PROOF, 2);
    let trace = dir.join("trace");
    let command = format!("echo x >> {}", trace.display());
    for (name, job) in
        [("cdpipe run", ours("proof", &small, &command)?), ("ninja", peer("proof", &small, &command)?)]
    {
        write_file(&trace, "")?;
        job.must()?;
        let lines = std::fs::read_to_string(&trace).unwrap_or_default().lines().count();
        if lines != PROOF {
            return Err(format!("{name} ran {lines} of {PROOF} commands, so its time would mean nothing"));
        }
    }
    for (name, job) in
        [("cdpipe run", ours("false", &small, "false")?), ("ninja", peer("false", &small, "false")?)]
    {
        if job.capture()?.code != 1 {
            return Err(format!("{name} does not end with 1 when a command fails"));
        }
    }

    let dag = Dag::random(STAGES, 1);
    // A new state each time: a run must not profit from, or suffer under, the one before.
    let (a, b) =
        alternate(setup.rounds, || ours("bench", &dag, "true"), || peer("bench", &dag, "true"), &dir)?;
    Ok(vec![Figure {
        id: "run-10000",
        what: format!("{STAGES} stages of `run \"true\"`, {parallel} at a time, durable"),
        unit: "ms",
        ours: a,
        peer: Some(("ninja".to_owned(), b)),
        aim: Aim::AtMost(1.5),
    }])
}
