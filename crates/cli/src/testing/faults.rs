//! `cdpipe test --faults`: what a fault or a crash could do to a pipeline, and the shortest way to each thing that must not be.

use super::text::traced;
use super::{given, inputs, load, tell, trace};
use crate::commands::Ended;
use crate::failure::{self, Failure};
use crate::render::plural;
use crate::ui::{Look, Ui};
use cdpipe_check::{Checked, plan};
use cdpipe_model::Outcome;
use cdpipe_report::style::Style;
use cdpipe_report::words;
use cdpipe_sim::{Case, End, Exploration, Explored, Finding, Found, Given, Note, Simulator, explore};
use cdpipe_syntax::Diagnostic;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Cases of one file where nobody says how many: some seconds' worth.
pub(crate) const DEFAULT_CASES: u64 = 5_000;

/// The progress line changes no more often.
const PROGRESS_EVERY_MS: u64 = 100;

/// Values that a metric of which no test speaks is tried with, until the pipeline is content.
const CONTENT_WITH: [f64; 5] = [0.0, 1.0, 50.0, 100.0, 1_000.0];

/// What is asked.
pub(crate) struct Options {
    /// Only tests whose name contains this.
    pub filter: Option<String>,
    /// Parameters.
    pub set: BTreeMap<String, String>,
    /// At most so many cases of a file.
    pub cases: u64,
    /// Which part of what is crossed.
    pub seed: u64,
    /// This one only.
    pub case: Option<String>,
    /// As JSON.
    pub json: bool,
}

/// Explores every file; ends with 1 if anything was found.
pub(crate) fn run(paths: &[String], options: &Options, ui: &Ui) -> Ended {
    let mut documents = Vec::new();
    let mut clean = true;
    let mut explored = 0;
    for path in paths {
        let Some(checked) = load(path, ui)? else { return Ok(2) };
        let Some(scenarios) = scenarios(path, &checked, options, ui)? else { return Ok(2) };
        if scenarios.is_empty() {
            continue;
        }
        explored += 1;
        let (document, is_clean) = match &options.case {
            Some(name) => replay(path, &scenarios, name, options, ui)?,
            None => one(path, scenarios, options, ui)?,
        };
        documents.push(document);
        clean &= is_clean;
    }
    if explored == 0 {
        return Err(Failure::new(
            &failure::NO_TESTS,
            format!("nothing to explore in {}", plural(paths.len(), "file")),
        )
        .help(
            "name a pipeline that does something, and a `--filter` that one of its tests has in its name",
        ));
    }
    if options.json {
        let document = json!({ "simulated": true, "files": documents });
        ui.print(&format!("{document:#}\n"));
    }
    Ok(if clean { 0 } else { 1 })
}

/// A run to begin with.
type Scenario = (String, Arc<Given>);

/// The tests of a file; without any, an upgrade and a first deploy. `None` if it can't be planned; why has been told.
fn scenarios(
    path: &str,
    checked: &Checked,
    options: &Options,
    ui: &Ui,
) -> Result<Option<Vec<Scenario>>, Failure> {
    let tests = checked.program.as_ref().map(|program| program.tests.as_slice()).unwrap_or_default();
    let wanted = |name: &str| options.filter.as_ref().is_none_or(|filter| name.contains(filter.as_str()));
    let refuse = |errors: Vec<Diagnostic>| {
        tell(checked, &errors.iter().collect::<Vec<_>>(), ui);
        Ok(None)
    };
    if !tests.is_empty() {
        let mut scenarios = Vec::new();
        for test in tests.iter().filter(|test| wanted(&test.name)) {
            match given(checked, path, test, &options.set) {
                Ok(given) => scenarios.push((test.name.clone(), Arc::new(given))),
                Err(errors) => return refuse(errors),
            }
        }
        return Ok(Some(scenarios));
    }
    let plan = match plan(checked, &inputs(None, &options.set)) {
        Ok(plan) => plan,
        Err(errors) => return refuse(errors),
    };
    let texts: Vec<String> = checked.sources.iter().map(|(_, source)| source.text.clone()).collect();
    let simulator = simulator()?;
    let mut scenarios = Vec::new();
    for (name, upgrade) in [("an upgrade", true), ("a first deploy", false)] {
        if !wanted(name) {
            continue;
        }
        let mut content = None;
        for value in CONTENT_WITH {
            let given = Given::assumed(&plan, path, texts.clone(), upgrade, value)
                .map_err(|fault| Failure::from_fault(&failure::CANNOT_RUN, fault).exit(2))?;
            let given = Arc::new(given);
            let ending = simulator.play(&given, &Case::default());
            if content.is_none() || ending.end == End::Finished(Outcome::Succeeded) {
                content = Some(given);
            }
            if ending.end == End::Finished(Outcome::Succeeded) {
                break;
            }
        }
        scenarios.extend(content.map(|given| (name.to_owned(), given)));
    }
    Ok(Some(scenarios))
}

fn simulator() -> Result<Simulator, Failure> {
    Simulator::new().map_err(|error| broken(&error))
}

fn broken(error: &std::io::Error) -> Failure {
    Failure::new(&failure::CANNOT_RUN, format!("the simulation can't be started: {error}"))
}

/// Explores one file and tells what was found.
fn one(path: &str, scenarios: Vec<Scenario>, options: &Options, ui: &Ui) -> Result<(Value, bool), Failure> {
    let began = Instant::now();
    let what = Exploration {
        scenarios,
        max_cases: options.cases,
        seed: options.seed,
        threads: std::thread::available_parallelism().map_or(2, usize::from),
    };
    let told_ms = AtomicU64::new(0);
    let progress = |done: u64, all: u64| {
        let now_ms = ms(began.elapsed());
        let last_ms = told_ms.load(Ordering::Relaxed);
        let due = now_ms >= last_ms + PROGRESS_EVERY_MS || done >= all;
        if ui.err.terminal
            && due
            && told_ms.compare_exchange(last_ms, now_ms, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        {
            ui.note(&format!("\r\u{1b}[K{}", ui.err.dim(&format!("{done} of {all} cases"))));
        }
    };
    let explored = explore(&what, &progress).map_err(|error| broken(&error))?;
    let took = began.elapsed();
    if ui.err.terminal {
        ui.note("\r\u{1b}[K");
    }
    if options.json {
        return Ok((document(path, &what, &explored, took, options), explored.found.is_empty()));
    }
    let mut text = format!("{}\n", ui.out.bold(crate::files::show(path)));
    for ((name, _), end) in what.scenarios.iter().zip(&explored.undisturbed) {
        let _ = writeln!(text, "  {name}: undisturbed it ends {}", ui.out.bold(&end_text(end)));
    }
    ui.print(&text);
    let simulator = simulator()?;
    for found in &explored.found {
        if let Some((name, given)) = what.scenarios.get(found.scenario) {
            ui.print(&tell_found(path, name, given, found, &simulator, options, ui.out));
        }
    }
    ui.print(&closing(&explored, took, options, ui.out));
    Ok((Value::Null, explored.found.is_empty()))
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn end_text(end: &End) -> String {
    match end {
        End::Finished(outcome) => words::outcome(*outcome).to_owned(),
        End::Waiting(waiting) => format!("waiting for {waiting}"),
        End::Stuck(why) => format!("nowhere: {why}"),
    }
}

/// `2:hang@12`: the scenario and the case.
fn name_of(scenario: usize, case: &Case) -> String {
    format!("{}:{case}", scenario + 1)
}

fn tell_found(
    path: &str,
    name: &str,
    given: &Arc<Given>,
    found: &Found,
    simulator: &Simulator,
    options: &Options,
    look: Look,
) -> String {
    let mut text = format!(
        "\n{}: {}: {}\n",
        look.red(&format!("error[{}]", failure::FAULTS.code)),
        look.bold(found.finding.kind.title()),
        found.finding.place
    );
    let _ = writeln!(text, "  {}", found.finding.text);
    let _ = writeln!(
        text,
        "  in {} of \"{name}\"; the shortest way there (simulated; virtual time):",
        plural(usize::try_from(found.cases).unwrap_or(usize::MAX), "case")
    );
    let ending = simulator.play(given, &found.case);
    text.push_str(&told(given, &ending.trace, &found.finding, look));
    let filter = options.filter.as_ref().map(|filter| format!(" --filter '{filter}'")).unwrap_or_default();
    let _ = writeln!(
        text,
        "  {} `cdpipe test --faults{filter} --case {} {path}` plays it again",
        look.cyan("help:"),
        name_of(found.scenario, &found.case)
    );
    text
}

/// The trace up to where the finding is seen, and the finding.
fn told(given: &Arc<Given>, trace: &cdpipe_sim::Trace, finding: &Finding, look: Look) -> String {
    let mut until = trace.clone();
    until.records.truncate(finding.after);
    until.notes.retain(|note| note.after <= finding.after);
    until.notes.push(Note {
        after: finding.after,
        at_ms: finding.at_ms,
        text: format!("seen: {}", finding.text),
    });
    let style = Style { color: look.color, unicode: look.unicode };
    traced(&trace::lines(given.header(), &until, style), look)
}

fn closing(explored: &Explored, took: Duration, options: &Options, look: Look) -> String {
    let count = |count: u64, word: &str| plural(usize::try_from(count).unwrap_or(usize::MAX), word);
    let verdict = match explored.found.len() {
        0 => look.green("nothing found"),
        found => look.red(&format!("{} found", plural(found, "thing"))),
    };
    let mut text = format!("\n{verdict} in {} (simulated)", count(explored.cases, "case"));
    if explored.cases < explored.possible {
        let _ = write!(
            text,
            " of {}, seed {}; `--cases {}` plays all",
            explored.possible, options.seed, explored.possible
        );
    }
    text.push('\n');
    let ends: Vec<String> = explored
        .ends
        .iter()
        .map(|(word, count)| {
            let told =
                Outcome::parse(word).map_or_else(|| (*word).to_owned(), |o| words::outcome(o).to_owned());
            format!("{count} {told}")
        })
        .collect();
    let _ = writeln!(text, "ended: {}", ends.join(", "));
    let _ = writeln!(text, "{} cases/s", per_second(explored.cases, took));
    text
}

fn per_second(cases: u64, took: Duration) -> u64 {
    cases.saturating_mul(1_000) / ms(took).max(1)
}

fn document(path: &str, what: &Exploration, explored: &Explored, took: Duration, options: &Options) -> Value {
    let found: Vec<Value> = explored
        .found
        .iter()
        .map(|found| {
            json!({
                "kind": found.finding.kind.as_str(),
                "place": found.finding.place,
                "text": found.finding.text,
                "scenario": what.scenarios.get(found.scenario).map(|(name, _)| name),
                "case": name_of(found.scenario, &found.case),
                "cases": found.cases,
            })
        })
        .collect();
    let scenarios: Vec<Value> = what
        .scenarios
        .iter()
        .zip(&explored.undisturbed)
        .map(|((name, _), end)| json!({ "name": name, "undisturbed": end_text(end) }))
        .collect();
    json!({
        "path": path,
        "scenarios": scenarios,
        "cases": explored.cases,
        "possible": explored.possible,
        "seed": options.seed,
        "cases_per_s": per_second(explored.cases, took),
        "ended": explored.ends,
        "found": found,
    })
}

/// Plays one case again, by its name, and shows all of it.
fn replay(
    path: &str,
    scenarios: &[Scenario],
    name: &str,
    options: &Options,
    ui: &Ui,
) -> Result<(Value, bool), Failure> {
    let wrong = |message: String| {
        Failure::new(&failure::BAD_ARGUMENT, message)
            .help("a case is named as a finding names it: `2:hang@12+crash7-after`")
    };
    let (scenario, case) =
        name.split_once(':').ok_or_else(|| wrong(format!("`{name}` is no name of a case")))?;
    let at: usize = scenario.parse().map_err(|_| wrong(format!("`{scenario}` is no number of a test")))?;
    let case = Case::parse(case).ok_or_else(|| wrong(format!("`{case}` is no case")))?;
    let Some((scenario, given)) = at.checked_sub(1).and_then(|at| scenarios.get(at)) else {
        return Err(wrong(format!("there is no test {at}; there are {}", scenarios.len())));
    };
    let ending = simulator()?.play(given, &case);
    if options.json {
        let lines = trace::lines(given.header(), &ending.trace, Style::PLAIN);
        let document = json!({
            "path": path,
            "scenario": scenario,
            "case": name,
            "ended": end_text(&ending.end),
            "found": ending.findings.iter().map(|finding| json!({
                "kind": finding.kind.as_str(), "place": finding.place, "text": finding.text,
            })).collect::<Vec<_>>(),
            "trace": lines.into_iter().map(|(line, _)| line).collect::<Vec<_>>(),
        });
        return Ok((document, ending.findings.is_empty()));
    }
    let look = ui.out;
    let mut text = format!("{}\n  {scenario}, case {name} (simulated; virtual time):\n", look.bold(path));
    let mut all = ending.trace.clone();
    all.notes.extend(ending.findings.iter().map(|finding| Note {
        after: finding.after,
        at_ms: finding.at_ms,
        text: format!("seen: {}", finding.text),
    }));
    let style = Style { color: look.color, unicode: look.unicode };
    for (line, remark) in trace::lines(given.header(), &all, style) {
        let line = if remark { look.yellow(&line) } else { line };
        let _ = writeln!(text, "    {}", line.trim_end());
    }
    let verdict = match ending.findings.as_slice() {
        [] => look.green("nothing found"),
        [first, ..] => look.red(&format!("{}: {}", first.kind.title(), first.place)),
    };
    let _ = writeln!(text, "\n{verdict}; ended {}", end_text(&ending.end));
    ui.print(&text);
    Ok((Value::Null, ending.findings.is_empty()))
}
