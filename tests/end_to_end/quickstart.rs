//! The two pipelines that a new user runs first, as they stand in `pipelines/`: what they say, how they end, and who
//! answers users afterwards. Only the port is another, so that a test never meets what runs on this machine already.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says that something is wrong by panicking")]

use cdpipe_tests::cases;
use cdpipe_tests::deployed::Deployed;
use cdpipe_tests::place::{Place, repository};
use cdpipe_tests::transcript::{Normaliser, compare};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

/// Runs a pipeline of `pipelines/` and compares what it says; the version that answers users afterwards is returned.
fn run(pipeline: &str, case: &str, code: i32) -> String {
    let mut place = Place::new().unwrap();
    // Its first stage builds the shop for release, which takes minutes on a cold and busy machine.
    place.limit(Duration::from_secs(25 * 60));
    place.set("USER", "ada");
    let address = SocketAddr::from(([127, 0, 0, 1], cdpipe_tests::ports::free().unwrap()));
    let file = repository().join("pipelines").join(pipeline);
    let port = format!("port={}", address.port());
    let ended = place.run(["run", file.to_str().unwrap(), "--set", &port]).unwrap();
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(code), ""), "{}", ended.stdout);
    let said = by_stage(&what_varies(&place).apply(&ended.stdout));
    compare(&cases::folder(case).join("said.txt"), &said).unwrap();
    let answer = Deployed { place, address }.ask().unwrap();
    assert_eq!(answer.status, 200);
    answer.version
}

/// Times, ids and counts. How often a watch looked, and what it measured while nothing had to be done, depends on the machine.
fn what_varies(place: &Place) -> Normaliser {
    let rules = [
        (
            r"(?m)^\[ *[0-9dhms.]+\] \S* *watch: (passes|warns|has no data).*\n(\[ *[0-9dhms.]+\] \S* {5,}.*\n)*",
            "",
        ),
        (r"(?m)^\[ *[0-9dhms.]+\] ", "| "),
        (r"\b\d{8}-\d{6}-[0-9a-f]{4}\b", "RUN"),
        (r"ada@\S+ pid \d+", "ada@HOST pid PID"),
        (r" in (\d+m)?\d+(\.\d)?s", " in TIME"),
        (r"(?m) +(\d+m)?\d+(\.\d)?s$", "  TIME"),
        (r"\d+ answers:", "N answers:"),
        (r"(v\d+\.\d+\.\d+) \d+([,;])", "$1 N$2"),
        (r"\d+ failures: \d+ ×", "N failures: N ×"),
        (r"was \d+(\.\d+)?%", "was SHARE"),
        // Where a long line of the summary breaks depends on the numbers in it.
        (r"\n {4}(\S)", " $1"),
    ];
    rules
        .iter()
        .fold(place.normaliser(), |normaliser, (pattern, with)| normaliser.pattern(pattern, with).unwrap())
}

/// Stages run side by side, and whose line comes first is chance: here they are told one after the other.
fn by_stage(text: &str) -> String {
    let (live, summary) = text.split_once("\n\n").unwrap();
    let mut stages: Vec<(&str, String)> = Vec::new();
    for line in live.lines() {
        let line = line.strip_prefix("| ").unwrap_or(line);
        let stage = line.split(' ').next().unwrap_or_default();
        let place = stages.iter().position(|(known, _)| *known == stage).unwrap_or_else(|| {
            stages.push((stage, String::new()));
            stages.len() - 1
        });
        let _ = writeln!(stages[place].1, "{line}");
    }
    stages.into_iter().map(|(_, lines)| lines + "\n").collect::<String>() + summary
}

#[test]
fn the_quickstart_brings_v2_in() {
    assert_eq!(run("quickstart.cd", "quickstart", 0), "v2.0.0");
}

#[test]
fn the_quickstart_of_a_bad_release_goes_back_to_v1() {
    assert_eq!(run("quickstart-rollback.cd", "quickstart_rollback", 3), "v1.0.0");
}
