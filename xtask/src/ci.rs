//! `cargo xtask ci`: everything a change must pass, cheapest first. A check that fails does not stop the others, so one run
//! says all there is to mend.

use std::time::{Duration, Instant};

use crate::args::Args;
use crate::process::Job;
use crate::say::{duration, heading, say};
use crate::{fuzz, lab, sys, test};

/// The longest that one of cargo's commands may take, cold, on two cores.
const CHECK_WITHIN: Duration = Duration::from_secs(30 * 60);
/// All fuzz targets together. `CDPIPE_FUZZ_MINUTES` and `--fuzz-min` say otherwise.
const FUZZ_MINUTES: f64 = 3.0;

struct Check {
    name: &'static str,
    run: fn(&Options) -> Result<String, String>,
}

struct Options {
    fuzz_time: Duration,
}

/// In the order of running.
const CHECKS: &[Check] = &[
    Check { name: "fmt", run: |_| fmt() },
    Check { name: "clippy", run: |_| clippy() },
    Check { name: "deny", run: |_| deny() },
    Check { name: "doc", run: |_| doc() },
    Check { name: "fuzz", run: |options| fuzz::run(options.fuzz_time) },
    Check { name: "test", run: |_| test::command(&[]).map(|()| String::new()) },
];

/// `cargo xtask ci`
pub(crate) fn command(raw: &[String]) -> Result<(), String> {
    let args = Args::parse(raw, &["only", "except", "fuzz-min"], &[])?;
    let (only, except) = (args.list("only"), args.list("except"));
    for name in only.iter().chain(&except).chain(&args.words) {
        if !CHECKS.iter().any(|check| check.name == name) {
            let known: Vec<&str> = CHECKS.iter().map(|check| check.name).collect();
            return Err(format!("there is no check `{name}`; there is: {}", known.join(", ")));
        }
    }
    let default = match std::env::var("CDPIPE_FUZZ_MINUTES") {
        Ok(text) => {
            text.parse().map_err(|_| format!("CDPIPE_FUZZ_MINUTES is `{text}`, which is no number"))?
        }
        Err(_) => FUZZ_MINUTES,
    };
    let minutes: f64 = args.number("fuzz-min", default)?;
    let fuzz_time = Duration::try_from_secs_f64(60.0 * minutes)
        .map_err(|_| format!("{minutes} minutes of fuzzing is not a time"))?;
    let options = Options { fuzz_time };

    let mut lines = Vec::new();
    let mut failed = Vec::new();
    let begin = Instant::now();
    for check in CHECKS {
        let name = check.name.to_owned();
        let wanted =
            (only.is_empty() && args.words.is_empty()) || only.contains(&name) || args.words.contains(&name);
        if !wanted || except.contains(&name) {
            continue;
        }
        if sys::interrupted() {
            return Err("interrupted".to_owned());
        }
        heading(check.name);
        let begin = Instant::now();
        let result = (check.run)(&options);
        let took = duration(begin.elapsed());
        let (verdict, note) = match result {
            Ok(note) => ("ok", note),
            Err(error) => {
                say(&format!("{name}: {error}"));
                failed.push(check.name);
                ("FAILED", error.lines().next().unwrap_or_default().to_owned())
            }
        };
        lines.push(format!("{name:<8} {verdict:<7} {took:>12}  {note}").trim_end().to_owned());
    }
    heading(&format!("checks ({})", duration(begin.elapsed())));
    lines.iter().for_each(|line| say(line));
    if failed.is_empty() { Ok(()) } else { Err(format!("failed: {}", failed.join(", "))) }
}

fn must(job: &Job) -> Result<String, String> {
    say(&format!("$ {}", job.shown()));
    let ended = job.run()?;
    if ended.ok() { Ok(String::new()) } else { Err(format!("`{}`: {}", job.shown(), ended.how())) }
}

fn fmt() -> Result<String, String> {
    must(&Job::cargo(["fmt", "--all", "--check"], CHECK_WITHIN))?;
    // Workspaces of their own.
    for manifest in ["fuzz/Cargo.toml", "xtask/peers/check/Cargo.toml"] {
        must(&Job::cargo(["fmt", "--manifest-path", manifest, "--check"], CHECK_WITHIN))?;
    }
    Ok(String::new())
}

fn clippy() -> Result<String, String> {
    must(&Job::cargo(
        ["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"],
        CHECK_WITHIN,
    ))
}

/// Advisories are left out: they come from a database that is fetched at the time of the check, so the same commit would
/// pass today and fail tomorrow, and a machine without the network could not check at all. `cargo deny check` by hand
/// has them.
fn deny() -> Result<String, String> {
    let part = lab::part("cargo-deny")?;
    let report = lab::up(&[part], false)?;
    let Some((_, path)) = report.env.first() else {
        return Ok(format!("skipped: {}", report.missing.join("; ")));
    };
    let args = ["--workspace", "--locked", "check", "--hide-inclusion-graph", "bans", "licenses", "sources"];
    must(&Job::new(path, args, CHECK_WITHIN))
}

fn doc() -> Result<String, String> {
    must(
        &Job::cargo(["doc", "--no-deps", "--workspace", "--quiet"], CHECK_WITHIN)
            .env("RUSTDOCFLAGS", "-D warnings"),
    )
}
