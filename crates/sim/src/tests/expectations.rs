//! Tests of a pipeline: what they give, measure and expect.

use super::tested;
use crate::case::Case;
use crate::drive::{End, Simulator};
use crate::expect::judge;
use cdpipe_model::Outcome;

const CANARY: &str = "canary { step 10% for 10s; step 50% for 10s }";
const SERVING: &str = "given environment here { shop = \"v1.0.0\" }\n";

/// What was found for each expectation, "" where it is met.
fn found(says: &str) -> Vec<String> {
    let (given, test) = tested(CANARY, &format!("{SERVING}{says}"));
    let ending = Simulator::new().unwrap().play(&given, &Case::default());
    let judged = test.expects.iter().map(|expectation| judge(expectation, &given, &ending));
    judged.map(|met| met.err().map_or_else(String::new, |unmet| unmet.found)).collect()
}

#[test]
fn what_is_expected_and_happens_is_met() {
    let says = "
        when stage release { candidate.error_rate = 1% }
        expect pipeline == succeeded
        expect stage release == succeeded within 1m
        expect traffic(shop, here) == { \"v2.0.0\" = 100% }
        expect ran \"announce\"";
    assert_eq!(found(says), ["", "", "", ""]);
}

#[test]
fn what_happens_instead_is_told() {
    let says = "
        when stage release { candidate.error_rate = 9% }
        expect pipeline == succeeded
        expect stage release == rolled_back within 1s
        expect traffic(shop, here) == { \"v2.0.0\" = 100% }
        expect ran \"announce\"";
    let found = found(says);
    assert_eq!(found[0], "rolled_back");
    assert!(found[1].starts_with("rolled_back after 9s20ms: candidate.error_rate > 5%"), "{found:?}");
    assert_eq!(found[2], "{ \"v1.0.0\" = 100% }");
    assert!(
        found[3].starts_with("it did not run; what ran is run migrate, deploy shop to here"),
        "{found:?}"
    );
}

#[test]
fn measures_that_are_always_there_can_be_given() {
    let (given, _) = tested(
        "blue_green { keep_old = 30s }",
        &format!("{SERVING}when stage release {{ candidate.error_rate = 0% }}\nexpect pipeline == succeeded"),
    );
    let ending = Simulator::new().unwrap().play(&given, &Case::default());
    assert_eq!(ending.end, End::Finished(Outcome::Succeeded));
}

#[test]
fn a_metric_that_nobody_gives_has_no_data() {
    let found = found("expect stage release == succeeded");
    assert!(found[0].starts_with("rolled_back"), "{found:?}");
}

#[test]
fn a_stage_that_fails_fails_by_its_first_command() {
    let found = found("when stage release { fails = true }\nexpect stage release == succeeded");
    assert_eq!(found, ["failed: `migrate` exited with 1"]);
}

#[test]
fn a_watch_that_fires_while_the_router_is_waited_for_rolls_back_and_does_not_cancel() {
    let says = format!(
        "{SERVING}when stage release {{ candidate.error_rate = 9% }}\nexpect pipeline == rolled_back"
    );
    let (given, _) = tested(CANARY, &says);
    let simulator = Simulator::new().unwrap();
    let undisturbed = simulator.play(&given, &Case::default());
    assert_eq!(undisturbed.end, End::Finished(Outcome::RolledBack));
    let waits = undisturbed.trace.records.iter().find_map(|(_, record)| match &**record {
        cdpipe_model::record::Record::Intent { action } => {
            let waits = matches!(action.kind, cdpipe_model::action::ActionKind::AwaitRouted { .. });
            waits.then_some(action.id.0)
        }
        _ => None,
    });
    let case = Case::parse(&format!("hang@{}", waits.unwrap())).unwrap();
    let ending = simulator.play(&given, &case);
    assert!(ending.struck);
    assert_eq!(ending.end, End::Finished(Outcome::RolledBack));
    assert_eq!(ending.findings, []);
}
