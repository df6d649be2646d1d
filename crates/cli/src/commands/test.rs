//! `cdpipe test`: plays the tests of pipelines against simulated targets, under virtual time.

use crate::commands::Ended;
use crate::failure::{self, Failure};
use crate::render;
use crate::testing::{self, Suite, faults};
use crate::ui::Ui;
use crate::{files, inputs};
use cdpipe_sim::Simulator;
use std::path::PathBuf;
use std::time::Instant;

/// Arguments of `cdpipe test`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Pipelines, or directories of them; `-` is the standard input.
    #[arg(value_name = "PATH", default_value = ".")]
    paths: Vec<String>,
    /// Only tests whose name contains this.
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// Set a parameter that a test does not set.
    #[arg(long, value_name = "NAME=VALUE")]
    set: Vec<String>,
    /// Let every action fail, hang and lose its answer, and the engine die at every write of its journal.
    #[arg(long, conflicts_with = "junit")]
    faults: bool,
    /// With `--faults`: play at most so many cases of each file.
    #[arg(long, value_name = "N", default_value_t = faults::DEFAULT_CASES, requires = "faults")]
    cases: u64,
    /// With `--faults`: which part of the crossed cases is played, where there are more of them.
    #[arg(long, value_name = "N", default_value_t = 1, requires = "faults")]
    seed: u64,
    /// With `--faults`: play this one case again, by the name that a finding gives it.
    #[arg(long, value_name = "NAME", requires = "faults")]
    case: Option<String>,
    /// Print a JSON document instead of text.
    #[arg(long)]
    json: bool,
    /// Write JUnit XML to this file.
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
}

/// Plays them; ends with 0 if all passed, 1 if one did not, 2 if a file is wrong or there is nothing to test.
pub(crate) fn run(args: &Args, ui: &Ui) -> Ended {
    let began = Instant::now();
    let set = inputs::pairs(&args.set)?;
    let paths = files::expand(&args.paths)?;
    if args.faults {
        let options = faults::Options {
            filter: args.filter.clone(),
            set,
            cases: args.cases,
            seed: args.seed,
            case: args.case.clone(),
            json: args.json,
        };
        return faults::run(&paths, &options, ui);
    }
    let simulator = simulator()?;
    let mut suites: Vec<Suite> = Vec::new();
    for path in &paths {
        let Some(checked) = testing::load(path, ui)? else { return Ok(2) };
        let wanted = |name: &str| args.filter.as_ref().is_none_or(|filter| name.contains(filter.as_str()));
        let all = checked.program.as_ref().map(|program| program.tests.as_slice()).unwrap_or_default();
        let tests: Vec<_> = all
            .iter()
            .filter(|test| wanted(&test.name))
            .map(|test| testing::play(&simulator, &checked, path, test, &set))
            .collect();
        if tests.is_empty() {
            continue;
        }
        let suite = Suite { path: path.clone(), checked, tests };
        if !args.json {
            ui.print(&testing::text::list(&suite, ui.out));
        }
        suites.push(suite);
    }
    if suites.is_empty() {
        return Err(nothing(args, paths.len()));
    }
    if args.json {
        ui.print(&testing::json::render(&suites));
    } else {
        for suite in &suites {
            ui.print(&testing::text::failures(suite, ui.out));
        }
        ui.print(&testing::text::closing(&suites, began.elapsed(), ui.out));
    }
    if let Some(path) = &args.junit {
        files::replace(&path.display().to_string(), &testing::junit::render(&suites))?;
    }
    let passed = suites.iter().flat_map(|suite| &suite.tests).all(testing::Played::passed);
    Ok(if passed { 0 } else { 1 })
}

fn simulator() -> Result<Simulator, Failure> {
    Simulator::new().map_err(|error| {
        Failure::new(&failure::CANNOT_RUN, format!("the simulation can't be started: {error}"))
    })
}

fn nothing(args: &Args, files: usize) -> Failure {
    let files = render::plural(files, "file");
    let message = match &args.filter {
        Some(filter) => format!("no test in {files} has a name with `{filter}` in it"),
        None => format!("there is no test in {files}"),
    };
    Failure::new(&failure::NO_TESTS, message)
        .help("write `test \"…\" { … }` in the pipeline; `cdpipe explain test` shows how")
}
