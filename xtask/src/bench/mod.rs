//! `cargo xtask bench`: cdpipe beside a peer, in the same run, on the same work, turn and turn about (A B A B), so that what
//! else the machine does falls on both. Printed are ratios of medians; the numbers behind them go to a JSON file.
//!
//! Invariants: before anything is timed it is shown that both sides do the work (a planted mistake is found, a counted
//! effect happens); a side that can't run is an error, and no figure is printed for it.

mod check;
mod dag;
mod faults;
mod figure;
mod footprint;
mod hosts;
mod journal;
mod kubernetes;
mod machine;
mod proxy;
mod run;
mod swarm;
mod table;

use std::path::{Path, PathBuf};
use std::time::Duration;

use self::figure::Figure;
use crate::args::Args;
use crate::lab;
use crate::process::{self, Job};
use crate::say::{heading, say};
use crate::{project, sys};

/// Link-time optimisation of everything takes minutes.
const BUILD_WITHIN: Duration = Duration::from_secs(40 * 60);
const ROUNDS: usize = 7;

/// What a bench is given.
pub(crate) struct Setup {
    /// The `cdpipe` that is measured.
    pub(crate) cdpipe: PathBuf,
    /// How often each side is run; the median counts.
    pub(crate) rounds: usize,
    /// Where files are generated.
    pub(crate) dir: PathBuf,
    /// The cargo profile in which a library is measured.
    pub(crate) profile: String,
    lab: Vec<(String, String)>,
}

impl Setup {
    /// A binary or address of the lab.
    ///
    /// # Errors
    /// That part is not there.
    pub(crate) fn lab(&self, variable: &str) -> Result<&str, String> {
        self.lab
            .iter()
            .find(|(name, _)| name == variable)
            .map(|(_, value)| value.as_str())
            .ok_or_else(|| format!("the lab has no {variable} (cargo xtask lab status)"))
    }

    /// An empty folder for one bench.
    ///
    /// # Errors
    /// It cannot be made.
    pub(crate) fn fresh(&self, name: &str) -> Result<PathBuf, String> {
        let dir = self.dir.join(name);
        let failed = |error: std::io::Error| format!("{}: {error}", dir.display());
        if dir.exists() {
            std::fs::remove_dir_all(&dir).map_err(failed)?;
        }
        std::fs::create_dir_all(&dir).map_err(failed)?;
        Ok(dir)
    }

    /// `cdpipe ARGS` with a state of its own.
    pub(crate) fn cdpipe(&self, args: &[&str], within: Duration) -> Job {
        Job::new(&self.cdpipe, args, within).env("CDPIPE_STATE", self.dir.join("state")).dir(&self.dir)
    }
}

/// Runs both sides in turn and answers with their wall times in milliseconds. Their processor times are said, because a
/// machine that is busy with something else shows in the first and hardly in the second.
///
/// # Errors
/// One of them fails.
pub(crate) fn alternate(
    rounds: usize,
    ours: impl Fn() -> Result<Job, String>,
    peer: impl Fn() -> Result<Job, String>,
    dir: &Path,
) -> Result<(Vec<f64>, Vec<f64>), String> {
    let output = dir.join("output");
    let time = |job: &Job| -> Result<(f64, f64), String> {
        let ended = job.to_file(&output)?;
        if !ended.ok() {
            let said = std::fs::read_to_string(&output).unwrap_or_default();
            let start: String = said.chars().take(500).collect();
            return Err(format!("`{}`: {}\n{start}", job.shown(), ended.how()));
        }
        Ok((ended.wall.as_secs_f64() * 1e3, ended.cpu.as_secs_f64() * 1e3))
    };
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        a.push(time(&ours()?)?);
        b.push(time(&peer()?)?);
    }
    let split = |pairs: &[(f64, f64)]| pairs.iter().copied().unzip::<f64, f64, Vec<_>, Vec<_>>();
    let ((a_wall, a_cpu), (b_wall, b_cpu)) = (split(&a), split(&b));
    let (a_cpu, b_cpu) = (figure::median(&a_cpu), figure::median(&b_cpu));
    say(&format!("processor time: {a_cpu:.1} ms, peer {b_cpu:.1} ms, ratio {:.2}", a_cpu / b_cpu));
    Ok((a_wall, b_wall))
}

struct Bench {
    name: &'static str,
    /// Parts of the lab that it uses.
    needs: &'static [&'static str],
    run: fn(&Setup) -> Result<Vec<Figure>, String>,
}

const BENCHES: &[Bench] = &[
    Bench { name: "check", needs: &["actionlint"], run: check::bench },
    Bench { name: "run", needs: &["ninja"], run: run::bench },
    Bench { name: "proxy", needs: &["nginx", "wrk"], run: proxy::bench },
    Bench { name: "start", needs: &[], run: footprint::start },
    Bench { name: "memory", needs: &[], run: footprint::memory },
    Bench { name: "size", needs: &[], run: footprint::size },
    Bench { name: "journal", needs: &[], run: journal::journal },
    Bench { name: "resume", needs: &[], run: journal::resume },
    Bench { name: "faults", needs: &[], run: faults::faults },
    Bench { name: "swarm", needs: &["swarm"], run: swarm::bench },
    Bench { name: "hosts", needs: &[], run: hosts::bench },
    Bench { name: "kubernetes", needs: &["kubernetes", "istio"], run: kubernetes::bench },
];

/// `cargo xtask bench`
pub(crate) fn command(raw: &[String]) -> Result<(), String> {
    let args = Args::parse(raw, &["rounds", "profile", "binary", "json"], &["quick", "write", "no-build"])?;
    for name in &args.words {
        if !BENCHES.iter().any(|bench| bench.name == name) {
            let known: Vec<&str> = BENCHES.iter().map(|bench| bench.name).collect();
            return Err(format!("there is no bench `{name}`; there is: {}", known.join(", ")));
        }
    }
    let rounds: usize = args.number("rounds", if args.switch("quick") { 3 } else { ROUNDS })?;
    if rounds == 0 {
        return Err("--rounds 0 would measure nothing".to_owned());
    }
    let profile = args.option("profile").unwrap_or("dist");
    let loan = lab::borrow()?;
    let result = measure(&args, rounds, profile);
    let returned = loan.give_back();
    result.and(returned)
}

fn measure(args: &Args, rounds: usize, profile: &str) -> Result<(), String> {
    heading("lab");
    let chosen =
        || BENCHES.iter().filter(|bench| args.words.is_empty() || args.words.iter().any(|w| w == bench.name));
    let needed: Vec<&str> = chosen().flat_map(|bench| bench.needs).copied().collect();
    let report = lab::up(&lab::named(&needed)?, true)?;
    heading("build");
    let cargo_profile = profile.to_owned();
    let (cdpipe, profile) = match args.option("binary") {
        Some(path) => (PathBuf::from(path), format!("the binary {path}")),
        None if args.switch("no-build") => (built(profile)?, profile.to_owned()),
        None => (build(profile)?, profile.to_owned()),
    };
    let dir = project::target().join("bench");
    std::fs::create_dir_all(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    let setup = Setup { cdpipe, rounds, dir: dir.clone(), profile: cargo_profile, lab: report.env };
    let machine = machine::facts(&profile);
    heading("machine");
    machine.iter().for_each(|(name, value)| say(&format!("{name:<8} {value}")));

    let mut figures = Vec::new();
    let mut failed = Vec::new();
    for bench in chosen() {
        if sys::interrupted() {
            return Err("interrupted".to_owned());
        }
        heading(bench.name);
        match (bench.run)(&setup) {
            Ok(found) => {
                found.iter().for_each(|figure| say(&figure.line()));
                figures.extend(found);
            }
            Err(error) => {
                say(&format!("{}: NOT MEASURED: {error}", bench.name));
                failed.push(bench.name);
            }
        }
    }

    heading(&format!("results ({rounds} rounds each, medians)"));
    figures.iter().for_each(|figure| say(&figure.line()));
    failed.iter().for_each(|name| say(&format!("{name:<24} NOT MEASURED (see above)")));
    let json = args.option("json").map_or_else(|| dir.join("results.json"), PathBuf::from);
    process::write_file(&json, &figure::json(&machine, &figures))?;
    say(&format!("\nnumbers: {}", project::shown(&json)));
    if args.switch("write") && args.option("binary").is_some() {
        return Err("--write is for the binary of this checkout, not for one given with --binary".to_owned());
    }
    if args.switch("write") {
        let file = project::root().join("docs").join("benchmarks.md");
        table::write(&file, &machine, &figures)?;
        say(&format!("table:   {}", project::shown(&file)));
    }
    if failed.is_empty() { Ok(()) } else { Err(format!("not measured: {}", failed.join(", "))) }
}

fn build(profile: &str) -> Result<PathBuf, String> {
    let job =
        Job::cargo(["build", "--profile", profile, "--package", "cdpipe", "--bin", "cdpipe"], BUILD_WITHIN);
    say(&format!("$ {}", job.shown()));
    let ended = job.run()?;
    if !ended.ok() {
        return Err(format!("`{}`: {}", job.shown(), ended.how()));
    }
    built(profile)
}

/// The binary that cargo has built in this profile.
fn built(profile: &str) -> Result<PathBuf, String> {
    let folder = if profile == "dev" { "debug" } else { profile };
    let path = project::target().join(folder).join("cdpipe");
    if project::is_executable(&path) {
        Ok(path)
    } else {
        Err(format!("there is no {}", project::shown(&path)))
    }
}
