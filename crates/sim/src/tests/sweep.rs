//! A crash before and after every write of the journal, for every strategy, and then another one inside the recovery: the same end, and
//! nothing done twice.

use super::strategies;
use crate::case::{Case, Crash};
use crate::drive::{End, Ending, Simulator};
use cdpipe_model::Outcome;
use cdpipe_model::action::{ActionKind, ActionResult};
use cdpipe_model::record::Record;

/// Commands, requests and messages that were decided on, in order.
fn commands(ending: &Ending) -> Vec<String> {
    ending
        .trace
        .records
        .iter()
        .filter_map(|(_, record)| match &**record {
            Record::Intent { action } => match &action.kind {
                ActionKind::Run(run) => Some(run.script.clone()),
                _ => None,
            },
            _ => None,
        })
        .collect()
}

fn unknown(ending: &Ending) -> bool {
    ending
        .trace
        .records
        .iter()
        .any(|(_, record)| matches!(&**record, Record::Returned { result: ActionResult::Unknown(_), .. }))
}

fn same(name: &str, case: &Case, whole: &Ending, ending: &Ending) {
    assert_eq!(ending.findings, [], "{name}, {case}");
    assert_eq!(ending.end, whole.end, "{name}, {case}");
    assert_eq!(ending.state, whole.state, "{name}, {case}");
    assert_eq!(ending.traffic, whole.traffic, "{name}, {case}");
    assert_eq!(commands(ending), commands(whole), "{name}, {case}");
    assert!(!unknown(ending), "{name}, {case}");
}

#[test]
fn a_crash_at_every_write_has_the_same_end() {
    let simulator = Simulator::new().unwrap();
    for (name, given) in strategies() {
        let whole = simulator.play(&given, &Case::default());
        assert_eq!(whole.end, End::Finished(Outcome::Succeeded), "{name}");
        assert_eq!(whole.findings, [], "{name}");
        assert_eq!(commands(&whole), ["migrate", "smoke", "announce"], "{name}");
        assert!(whole.writes > 10, "{name}: {}", whole.writes);
        for write in 0..whole.writes {
            for after in [false, true] {
                let case = Case { fault: None, crashes: vec![Crash { write, after }] };
                let ending = simulator.play(&given, &case);
                same(name, &case, &whole, &ending);
            }
        }
    }
}

#[test]
fn a_second_crash_inside_the_recovery_has_the_same_end_too() {
    let simulator = Simulator::new().unwrap();
    for (name, given) in strategies() {
        let whole = simulator.play(&given, &Case::default());
        for write in 0..whole.writes {
            // The recovery's first writes are where it differs; the rest is as the run that did not crash.
            for (again, after) in [(0, true), (1, write % 3 == 0), (2, write % 3 == 1)] {
                let first = Crash { write, after: write % 2 == 0 };
                let crashes = vec![first, Crash { write: again, after }];
                let case = Case { fault: None, crashes };
                let ending = simulator.play(&given, &case);
                same(name, &case, &whole, &ending);
            }
        }
    }
}
