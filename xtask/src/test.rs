//! `cargo xtask test`: the lab up, the binaries built, every test of the workspace run, the lab down, and a summary that
//! says what ran, what was skipped and why.
//!
//! Plain `cargo test` runs them, not another runner: a new user knows it, documentation tests are in it, and whoever
//! reads its closing lines keeps reading them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::args::Args;
use crate::lab::{self, For};
use crate::process::{Job, Stream};
use crate::say::{complain, duration, heading, say};
use crate::{project, runner, sys};

/// Building all tests and binaries, cold, on two cores.
const BUILD_WITHIN: Duration = Duration::from_secs(40 * 60);
/// Running all tests, on two cores that others use too.
const RUN_WITHIN_MIN: u64 = 70;
/// A test that can't run here begins a line of its own with this word (see xtask/README.md).
const SKIPPED: &str = "SKIPPED ";

/// What all test programs together said.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    passed: u64,
    failed: u64,
    ignored: u64,
    programs: u64,
    /// Names of tests that failed.
    pub(crate) failures: Vec<String>,
    skipped: Vec<String>,
}

impl Tally {
    /// Reads one line of the output of `cargo test`.
    fn read(&mut self, line: &str) {
        if let Some(result) = line.strip_prefix("test result: ") {
            self.programs += 1;
            for part in result.split([';', '.']).map(str::trim) {
                let Some((count, what)) = part.split_once(' ') else { continue };
                let count = count.parse().unwrap_or(0);
                match what {
                    "passed" => self.passed += count,
                    "failed" => self.failed += count,
                    "ignored" => self.ignored += count,
                    _ => {}
                }
            }
        } else if let Some(name) =
            line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... FAILED"))
        {
            self.failures.push(name.to_owned());
        } else if let Some(at) = line.find(SKIPPED) {
            // libtest may have begun a line of its own ("test name ... ") in front of what a test says directly.
            if at == 0 || line.starts_with("test ") {
                self.skipped.push(line[at + SKIPPED.len()..].to_owned());
            }
        }
    }

    /// The closing line. A test that skips itself has "passed" for libtest, and is not counted as such here.
    fn line(&self) -> String {
        let skipped = u64::try_from(self.skipped.len()).unwrap_or(0);
        format!(
            "tests: {} passed, {} failed, {} skipped",
            self.passed.saturating_sub(skipped),
            self.failed,
            skipped + self.ignored
        )
    }
}

/// What one run of the tests came to.
pub(crate) struct Run {
    /// Counts and names.
    pub(crate) tally: Tally,
    /// Why it is not good, if it isn't.
    pub(crate) trouble: Option<String>,
}

/// `cargo xtask test`
pub(crate) fn command(raw: &[String]) -> Result<(), String> {
    let args = Args::parse(raw, &["timeout-min"], &["keep-lab", "no-lab"])?;
    let within = Duration::from_secs(60 * args.number("timeout-min", RUN_WITHIN_MIN)?);
    let begin = Instant::now();
    let loan = lab::borrow()?;
    let result = whole(&args.words, within, args.switch("no-lab"));
    let returned = if args.switch("keep-lab") { Ok(()) } else { loan.give_back() };
    let summary = result.and_then(|(run, missing)| summary(&run, &missing, begin.elapsed()));
    summary.and(returned)
}

fn whole(filter: &[String], within: Duration, no_lab: bool) -> Result<(Run, Vec<String>), String> {
    let report = if no_lab {
        lab::Report::default()
    } else {
        heading("lab");
        lab::up(&lab::parts_for(For::Test), true)?
    };
    heading("build");
    build()?;
    heading("tests");
    let run = run(filter, within, &report.env.into_iter().collect())?;
    Ok((run, report.missing))
}

/// Builds the tests and every binary: cargo gives a test the binaries of its own package only, and end-to-end tests start
/// others.
///
/// # Errors
/// It does not compile.
pub(crate) fn build() -> Result<(), String> {
    for args in [vec!["build", "--workspace", "--bins"], vec!["test", "--workspace", "--no-run", "--quiet"]] {
        let job = Job::cargo(&args, BUILD_WITHIN);
        say(&format!("$ {}", job.shown()));
        let ended = job.run()?;
        if !ended.ok() {
            return Err(format!("`{}`: {}", job.shown(), ended.how()));
        }
    }
    Ok(())
}

/// Runs the tests, showing everything they say.
///
/// # Errors
/// cargo cannot be started. Failing tests are in the answer.
pub(crate) fn run(
    filter: &[String],
    within: Duration,
    env: &BTreeMap<String, String>,
) -> Result<Run, String> {
    let mut args: Vec<String> =
        ["--config", &runner::option(), "test", "--workspace", "--no-fail-fast"].map(str::to_owned).into();
    if !filter.is_empty() {
        args.push("--".to_owned());
        args.extend(filter.iter().cloned());
    }
    let mut job = Job::cargo(&args, within).env("CDPIPE_BIN_DIR", project::target().join("debug"));
    for (name, value) in env {
        job = job.env(name, value);
    }
    say(&format!("$ {}", job.shown()));
    let mut tally = Tally::default();
    let ended = job.lines(&mut |stream, line| {
        tally.read(line);
        match stream {
            Stream::Out => say(line),
            Stream::Err => complain(line),
        }
    })?;
    let trouble = if sys::interrupted() {
        Some("interrupted".to_owned())
    } else if !ended.ok() {
        Some(format!("`{}`: {}", job.shown(), ended.how()))
    } else if tally.passed == 0 {
        Some("not one test ran".to_owned())
    } else if project::ci() && !tally.skipped.is_empty() {
        Some("a test was skipped, which is a failure with CI=true".to_owned())
    } else {
        None
    };
    Ok(Run { tally, trouble })
}

fn summary(run: &Run, missing: &[String], took: Duration) -> Result<(), String> {
    heading(&format!("summary ({}, {} test programs)", duration(took), run.tally.programs));
    for name in &run.tally.failures {
        say(&format!("failed:  {name}"));
    }
    for name in &run.tally.skipped {
        say(&format!("skipped: {name}"));
    }
    for part in missing {
        say(&format!("the lab lacks {part}"));
    }
    say(&run.tally.line());
    match &run.trouble {
        None => Ok(()),
        Some(trouble) => Err(trouble.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_output_of_cargo_test_is_understood() {
        let mut tally = Tally::default();
        let output = "\
running 3 tests
test a::b ... ok
test a::c ... FAILED
SKIPPED e2e::flags: needs redis (cargo xtask lab up redis)
test e2e::flags ... ok
test e2e::gate ... SKIPPED e2e::gate: needs prometheus
the word SKIPPED in the middle of a sentence
test result: FAILED. 3 passed; 1 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.04s
test result: ok. 10 passed; 0 failed; 0 ignored; 0 measured; 3 filtered out; finished in 1.20s";
        output.lines().for_each(|line| tally.read(line));
        assert_eq!(tally.line(), "tests: 11 passed, 1 failed, 4 skipped");
        assert_eq!(tally.failures, ["a::c"]);
        assert_eq!(
            tally.skipped,
            ["e2e::flags: needs redis (cargo xtask lab up redis)", "e2e::gate: needs prometheus"]
        );
        assert_eq!(tally.programs, 2);
    }
}
