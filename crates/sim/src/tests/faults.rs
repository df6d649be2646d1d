//! Faults: nothing that must not be is found in any strategy, and every planted bug is.

use super::{bad, pipeline, strategies};
use crate::case::Case;
use crate::drive::{End, Simulator};
use crate::explore::{Exploration, Explored, explore_with};
use crate::finding::FindingKind;
use crate::given::Given;
use crate::world::Bug;
use cdpipe_model::Outcome;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

fn explored(scenarios: Vec<(String, Arc<Given>)>, max_cases: u64, bug: Option<Bug>) -> Explored {
    let seed = match max_cases {
        0 => 1,
        _ => SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs(),
    };
    let what = Exploration { scenarios, max_cases, seed, threads: 2 };
    let simulator = || match bug {
        Some(bug) => Ok(Simulator::with_bug(bug)),
        None => Simulator::new(),
    };
    explore_with(&what, &|_, _| {}, &simulator).unwrap()
}

#[test]
fn no_fault_and_no_crash_of_any_strategy_has_bad_consequences() {
    let scenarios = strategies().into_iter().map(|(name, given)| (name.to_owned(), given)).collect();
    // Every fault of every action and every crash, each by itself; a soak, which says how many cases it wants, crosses them too.
    let soak: u64 = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(0);
    let explored = explored(scenarios, 20 * soak, None);
    assert!(explored.found.is_empty(), "{:#?}", explored.found);
    assert!(explored.cases > 1_000, "{}", explored.cases);
    assert!(explored.ends["rolled_back"] > 100, "{:?}", explored.ends);
}

#[test]
fn no_single_fault_on_the_way_back_keeps_it_from_getting_there() {
    let strategies =
        ["rolling { batch = 1, pause = 5s }", "blue_green {}", "canary { step 10% for 10s }", "recreate {}"];
    let scenarios = strategies.map(|strategy| (strategy.to_owned(), bad(strategy)));
    let explored = explored(scenarios.into(), 0, None);
    assert!(
        explored.undisturbed.iter().all(|end| *end == End::Finished(Outcome::RolledBack)),
        "{explored:#?}"
    );
    assert!(explored.found.is_empty(), "{:#?}", explored.found);
    assert_eq!(explored.ends.get("rollback_failed"), None, "{:?}", explored.ends);
    assert!(explored.ends["rolled_back"] > 300, "{:?}", explored.ends);
}

#[test]
fn a_rollback_that_fails_and_leaves_neither_state_is_found() {
    let given = bad("blue_green {}");
    let explored = explored(vec![("it".to_owned(), given)], 0, Some(Bug::StopRefuses));
    let found = explored.found.iter().find(|found| found.finding.kind == FindingKind::NeitherState).unwrap();
    assert_eq!(found.case, Case::default());
    assert_eq!(found.finding.text, "the rollback failed: 3 instances of v2.0.0 still run");
}

/// The shortest way to a planted bug, by kind.
fn finds(strategy: &str, bug: Bug, kind: FindingKind) -> Case {
    let given = pipeline(strategy, true);
    let explored = explored(vec![("it".to_owned(), Arc::clone(&given))], 0, Some(bug));
    let kinds: Vec<_> =
        explored.found.iter().map(|found| (found.finding.kind, found.case.to_string())).collect();
    let found = explored.found.iter().find(|found| found.finding.kind == kind);
    let found = found.unwrap_or_else(|| panic!("{bug:?} is not found as {kind:?}, but as {kinds:?}"));
    // It is found again by its name.
    let again = Case::parse(&found.case.to_string()).unwrap();
    let ending = Simulator::with_bug(bug).play(&given, &again);
    assert!(ending.findings.contains(&found.finding), "{again}: {:?}", ending.findings);
    again
}

#[test]
fn a_router_that_says_yes_too_early_is_found() {
    let case = finds("blue_green {}", Bug::RoutedTooEarly, FindingKind::UnreadyServes);
    assert_eq!(case.weight(), 1, "one fault is enough: {case}");
}

#[test]
fn a_target_that_calls_unready_instances_ready_is_found() {
    let case = finds("canary { step 10% for 10s }", Bug::ReadyTooEarly, FindingKind::UnreadyServes);
    assert_eq!(case, Case::default());
}

#[test]
fn a_lock_that_stays_is_found() {
    finds("rolling {}", Bug::LockStays, FindingKind::LockStays);
}

#[test]
fn an_instance_that_goes_on_running_is_found() {
    finds("blue_green {}", Bug::StopForgets, FindingKind::NeitherState);
}

#[test]
fn the_name_of_a_case_is_the_case() {
    for name in ["none", "hang@12", "crash7-after", "lost@3+crash0-before+crash12-after"] {
        assert_eq!(Case::parse(name).unwrap().to_string(), name);
    }
    for wrong in ["", "hang", "hang@x", "crash7", "crash7-later", "bang@3", "hang@1+hang@2"] {
        assert_eq!(Case::parse(wrong), None, "{wrong}");
    }
}
