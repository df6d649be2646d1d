//! `cargo xtask soak`: the tests again and again, with more and new random cases each time, until the time is up or one
//! fails. For what fails once in a hundred runs: races, ports, leaks of processes.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::args::Args;
use crate::lab::{self, For};
use crate::say::{duration, heading, say};
use crate::{sys, test};

const MINUTES: u64 = 10;
/// One round may take this long, whatever was asked for.
const ROUND_WITHIN: Duration = Duration::from_secs(60 * 60);
/// Cases of one property in one round, four times proptest's default.
const CASES: &str = "1024";
/// Runs of the binary that are killed at random moments, in the first round.
const KILLED: &str = "200";
/// The same on other targets.
const KILLED_ELSEWHERE: [(&str, &str); 4] = [
    ("CDPIPE_KILLED_HOSTS_CASES", "50"),
    ("CDPIPE_KILLED_DOCKER_CASES", "50"),
    ("CDPIPE_KILLED_SWARM_CASES", "50"),
    ("CDPIPE_KILLED_KUBERNETES_CASES", "50"),
];

/// `cargo xtask soak`
pub(crate) fn command(raw: &[String]) -> Result<(), String> {
    let args = Args::parse(raw, &["minutes"], &[])?;
    let minutes: u64 = args.number("minutes", MINUTES)?;
    let loan = lab::borrow()?;
    let result = rounds(&args.words, Duration::from_secs(60 * minutes));
    result.and(loan.give_back())
}

fn rounds(filter: &[String], time: Duration) -> Result<(), String> {
    let report = lab::up(&lab::parts_for(For::Test), true)?;
    test::build()?;
    let mut env: BTreeMap<String, String> = report.env.into_iter().collect();
    env.insert("PROPTEST_CASES".to_owned(), CASES.to_owned());
    let begin = Instant::now();
    let mut round = 0_u32;
    while begin.elapsed() < time && !sys::interrupted() {
        round += 1;
        heading(&format!("round {round}, {} of {}", duration(begin.elapsed()), duration(time)));
        for (name, cases) in std::iter::once(("CDPIPE_KILLED_CASES", KILLED)).chain(KILLED_ELSEWHERE) {
            if round == 1 {
                env.insert(name.to_owned(), cases.to_owned());
            } else {
                env.remove(name);
            }
        }
        let run = test::run(filter, ROUND_WITHIN, &env)?;
        if let Some(trouble) = run.trouble {
            let failed = run.tally.failures.join(", ");
            return Err(format!("round {round}, after {}: {trouble}: {failed}", duration(begin.elapsed())));
        }
    }
    say(&format!("\nsoak: {round} rounds in {}, none failed", duration(begin.elapsed())));
    Ok(())
}
