//! What durability costs: appends to the journal beside the machine's own rate of `fdatasync`, and how long a resume of a long run takes
//! to read what happened. Both are measured inside one process, by `crates/engine/examples/journal_rate.rs`, round after round.

use std::time::Duration;

use super::Setup;
use super::figure::{Aim, Figure};
use crate::process::Job;
use crate::say::say;

const ONE_RUN_WITHIN: Duration = Duration::from_secs(600);
/// With the build of the library in the shipped profile.
const BUILD_WITHIN: Duration = Duration::from_secs(40 * 60);
/// Records of the run that is resumed: at least so many.
const RECORDS: f64 = 100_000.0;

/// Appends a second, each synced and each alone, beside the fdatasyncs a second of the same disk; and eight runs at once.
pub(crate) fn journal(setup: &Setup) -> Result<Vec<Figure>, String> {
    let rounds = measure(setup, "journal")?;
    let syncs = series(&rounds, "fdatasync")?;
    let figure = |id: &'static str, name: &str, what: &str, aim: f64| -> Result<Figure, String> {
        Ok(Figure {
            id,
            what: what.to_owned(),
            unit: "a second",
            ours: series(&rounds, name)?,
            peer: Some(("fdatasync".to_owned(), syncs.clone())),
            aim: Aim::AtLeast(aim),
        })
    };
    Ok(vec![
        figure(
            "journal-synced",
            "appends_synced",
            "appends of six records, each synced before the next",
            0.25,
        )?,
        figure("journal-eight", "appends_eight", "the same by eight runs at once, which share commits", 0.5)?,
        figure("journal-unsynced", "appends_unsynced", "appends that need survive only kill -9", 1.0)?,
    ])
}

/// Reading and folding the journal of a run with 100,000 records: what a resume does before it goes on.
pub(crate) fn resume(setup: &Setup) -> Result<Vec<Figure>, String> {
    let rounds = measure(setup, "resume")?;
    let records = series(&rounds, "resume_records")?;
    if records.iter().any(|count| *count < RECORDS) {
        return Err(format!("the run that was resumed has {records:?} records, not {RECORDS}"));
    }
    Ok(vec![Figure {
        id: "resume-100000",
        what: format!("a resume of a run with {:.0} records: reading and folding them", records[0]),
        unit: "ms",
        ours: series(&rounds, "resume_ms")?,
        peer: None,
        aim: Aim::AtMost(100.0),
    }])
}

/// One line `name value` for each number, for each round.
fn measure(setup: &Setup, what: &str) -> Result<Vec<Vec<(String, f64)>>, String> {
    let dir = setup.fresh(what)?;
    let built = [
        "run",
        "--profile",
        setup.profile.as_str(),
        "--package",
        "cdpipe-engine",
        "--example",
        "journal_rate",
        "--",
    ];
    let job = |arguments: &[&str], within: Duration| {
        Job::cargo(built.iter().copied().chain(arguments.iter().copied()), within)
    };
    say("builds the example that measures");
    job(&["--build-only"], BUILD_WITHIN).must()?;
    let mut rounds = Vec::new();
    for _ in 0..setup.rounds {
        let state = setup.fresh(&format!("{what}-state"))?;
        let ended = job(&["--numbers", what, &state.to_string_lossy()], ONE_RUN_WITHIN).dir(&dir).must()?;
        rounds.push(numbers(&ended.output));
    }
    Ok(rounds)
}

fn numbers(output: &str) -> Vec<(String, f64)> {
    let number = |line: &str| {
        let (name, value) = line.trim().split_once(' ')?;
        Some((name.to_owned(), value.trim().parse().ok()?))
    };
    output.lines().filter_map(number).collect()
}

fn series(rounds: &[Vec<(String, f64)>], name: &str) -> Result<Vec<f64>, String> {
    rounds
        .iter()
        .map(|round| {
            let found = round.iter().find(|(found, _)| found == name);
            found.map(|(_, value)| *value).ok_or_else(|| format!("the example did not say `{name}`"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_and_a_missing_one_is_told() {
        let round = numbers("   Compiling x v0.1.0\nfdatasync 1234.5\nresume_ms 12\n");
        let rounds = [round];
        assert_eq!(series(&rounds, "fdatasync"), Ok(vec![1234.5]));
        assert_eq!(series(&rounds, "resume_ms"), Ok(vec![12.0]));
        assert!(series(&rounds, "appends_synced").unwrap_err().contains("appends_synced"));
    }
}
