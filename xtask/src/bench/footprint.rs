//! What the binary costs by being there: time to start, memory, size. There is no peer for these but the aim itself.

use std::time::Duration;

use super::Setup;
use super::dag::Dag;
use super::figure::{Aim, Figure, median};
use crate::process::{Job, write_file};
use crate::say::say;

const ONE_RUN_WITHIN: Duration = Duration::from_secs(60);
/// Starting takes so little that many runs are cheap.
const STARTS: usize = 50;
/// Stages of the pipeline whose check and run are weighed: the size of a large real one.
const STAGES: usize = 250;
const MIB: f64 = 1024.0;

/// From the spawn of `cdpipe --version` to its end, as its parent sees it.
pub(crate) fn start(setup: &Setup) -> Result<Vec<Figure>, String> {
    let job = setup.cdpipe(&["--version"], ONE_RUN_WITHIN);
    let said = job.must()?.output;
    if !said.starts_with("cdpipe ") {
        return Err(format!("`cdpipe --version` said {said:?}"));
    }
    let output = setup.dir.join("start.out");
    let times = |job: &Job| -> Result<Vec<f64>, String> {
        (0..STARTS).map(|_| Ok(job.to_file(&output)?.wall.as_secs_f64() * 1e3)).collect()
    };
    say(&format!("`true`, a program that does nothing: {:.2} ms", median(&times(&nothing())?)));
    let samples = times(&job)?;
    Ok(vec![Figure {
        id: "start",
        what: format!("`cdpipe --version`, spawn to exit, {STARTS} times"),
        unit: "ms",
        ours: samples,
        peer: None,
        aim: Aim::AtMost(5.0),
    }])
}

/// The largest resident set while checking and while running.
pub(crate) fn memory(setup: &Setup) -> Result<Vec<Figure>, String> {
    let dir = setup.fresh("memory")?;
    let file = dir.join("bench.cd");
    write_file(&file, &Dag::random(STAGES, 1).pipeline("true", 2))?;
    let path = file.to_string_lossy().into_owned();
    // Until it is another program, a child counts our own pages (see `sys::Usage`).
    say(&format!("`true`, a program that does nothing: {:.2} MB", kib_to_mb(nothing().must()?.peak_kib)));
    let mut figures = Vec::new();
    for (id, verb) in [("memory-check", "check"), ("memory-run", "run")] {
        let mut samples = Vec::new();
        for _ in 0..setup.rounds {
            let state = setup.fresh("memory-state")?;
            let ended = setup.cdpipe(&[verb, &path], ONE_RUN_WITHIN).env("CDPIPE_STATE", &state).must()?;
            samples.push(kib_to_mb(ended.peak_kib));
        }
        figures.push(Figure {
            id,
            what: format!("peak resident memory of `cdpipe {verb}`, {STAGES} stages"),
            unit: "MB",
            ours: samples,
            peer: None,
            aim: Aim::AtMost(30.0),
        });
    }
    Ok(figures)
}

/// The file that is shipped.
pub(crate) fn size(setup: &Setup) -> Result<Vec<Figure>, String> {
    let length =
        setup.cdpipe.metadata().map_err(|error| format!("{}: {error}", setup.cdpipe.display()))?.len();
    Ok(vec![Figure {
        id: "size",
        what: "the binary, stripped".to_owned(),
        unit: "MB",
        ours: vec![kib_to_mb(length / 1024)],
        peer: None,
        aim: Aim::AtMost(25.0),
    }])
}

/// The floor under what can be measured this way.
fn nothing() -> Job {
    Job::new("true", [] as [&str; 0], ONE_RUN_WITHIN)
}

/// Megabytes of 1,000,000 bytes.
#[expect(clippy::cast_precision_loss, reason = "sizes of programs are far below 2^52")]
fn kib_to_mb(kib: u64) -> f64 {
    kib as f64 * MIB / 1e6
}
