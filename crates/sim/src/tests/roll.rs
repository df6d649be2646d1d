//! A platform that rolls by itself: it goes back by itself, and is sent back.

use super::{plan, rolled_text};
use crate::case::Case;
use crate::drive::{End, Ending, Simulator};
use crate::given::Given;
use cdpipe_model::Outcome;
use cdpipe_model::action::{ActionKind, ActionResult};
use cdpipe_model::record::Record;
use std::sync::Arc;

fn play(strategy: &str, says: &str) -> Ending {
    played(&rolled_text(strategy), says)
}

fn played(base: &str, says: &str) -> Ending {
    let text = format!(
        "{base}\ntest \"it\" {{ given environment here {{ shop = \"v1.0.0\" }}\n when stage release {{ {says} }}\n \
         expect pipeline == succeeded }}\n"
    );
    let checked = cdpipe_check::check("shop.cd", &text, &|_| Err("no files here".to_owned()));
    assert!(!checked.has_errors(), "{:#?}", checked.diagnostics);
    let test = checked.program.as_ref().unwrap().tests[0].clone();
    let given = Arc::new(Given::of_test(&test, &plan(base), "shop.cd", vec![text]).unwrap());
    let ending = Simulator::new().unwrap().play(&given, &Case::default());
    assert_eq!(ending.findings, []);
    ending
}

/// The rolls that were asked for, each with how it ended.
fn rolls(ending: &Ending) -> Vec<String> {
    let mut rolls = Vec::new();
    let mut numbers = Vec::new();
    for (_, record) in &ending.trace.records {
        match &**record {
            Record::Intent { action } => {
                if let ActionKind::Roll { release, policy, .. } = &action.kind {
                    numbers.push((
                        action.id,
                        format!("{}{}", release.version, if policy.undo { ", back" } else { "" }),
                    ));
                }
            }
            Record::Returned { action, result, .. } => {
                if let Some((_, text)) = numbers.iter().find(|(id, _)| id == action) {
                    let end = match result {
                        ActionResult::Done(_) => "done",
                        ActionResult::Failed(fault) => &fault.kind,
                        ActionResult::Cancelled => "cancelled",
                        other => panic!("{other:?}"),
                    };
                    rolls.push(format!("{text}: {end}"));
                }
            }
            _ => {}
        }
    }
    rolls
}

#[test]
fn a_breach_during_the_roll_stops_it_and_rolls_back() {
    let ending = play("rolling { batch = 1, pause = 30s }", "candidate.error_rate = 9%");
    assert_eq!(ending.end, End::Finished(Outcome::RolledBack));
    assert_eq!(rolls(&ending), ["v2.0.0: cancelled", "v1.0.0, back: done"]);
    assert!(ending.took_ms < 30_000, "{}", ending.took_ms);
}

#[test]
fn a_release_that_never_gets_ready_is_taken_back_by_the_platform_and_told_as_that() {
    let base: String = rolled_text("rolling { batch = 1 }")
        .lines()
        .filter(|line| !line.trim_start().starts_with("run ") && !line.contains("verify"))
        .map(|line| format!("{line}\n"))
        .collect();
    let ending = played(&base, "fails = true");
    assert_eq!(ending.end, End::Finished(Outcome::RolledBack));
    assert_eq!(rolls(&ending), ["v2.0.0: reverted", "v1.0.0, back: done"]);
    let serving: Vec<_> = ending.state.values().flatten().collect();
    assert_eq!(serving, [&("v1.0.0".to_owned(), 3)]);
}
