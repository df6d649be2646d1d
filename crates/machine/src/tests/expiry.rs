//! An approval expires at its own time, and only while nobody has given it.

use super::plans::{deploy, header, node, stage, step};
use super::world::{Driver, World, spec_of};
use cdpipe_model::plan::{Approval, Deploy, Gate, NodeKind, StepKind};
use cdpipe_model::record::{Record, RunHeader, Signal, TimerPurpose};
use cdpipe_model::strategy::{Canary, CanaryStep, Hold, Sticky, Strategy};
use cdpipe_model::{NodeId, Outcome};
use std::collections::BTreeMap;
use std::sync::Arc;

fn approval(expires_ms: Option<u64>, by: &str) -> Approval {
    Approval { by: vec![by.to_owned()], quorum: 1, expires_ms, always: false }
}

fn approve(driver: &mut Driver, by: &str) {
    let at_ms = driver.now_ms;
    let signal =
        Signal::Approve { node: NodeId(0), by: by.into(), person: String::new(), effect_hash: String::new() };
    driver.feed(Record::Signalled { at_ms, signal });
}

fn expiry(driver: &Driver) -> Option<u64> {
    driver
        .machine
        .next_timer()
        .filter(|(_, timer)| timer.purpose == TimerPurpose::ApprovalExpires)
        .map(|(due_ms, _)| due_ms)
}

fn canary(holds: Vec<Approval>) -> Arc<RunHeader> {
    let steps = holds
        .into_iter()
        .zip([1_000, 5_000])
        .map(|(approval, weight_bp)| CanaryStep { weight_bp, hold: Hold::UntilApproved(approval) })
        .collect();
    let strategy = Strategy::Canary(Canary {
        instances: None,
        env: BTreeMap::new(),
        rules: Vec::new(),
        steps,
        sticky: Sticky::None,
    });
    let deploy = Deploy { watch: None, timeout_ms: 900_000_000, ..deploy("v2", 2, strategy) };
    header(vec![node(0, &[], stage(vec![step(StepKind::Deploy(Box::new(deploy)))], Vec::new()))], Vec::new())
}

fn asked(driver: &Driver) -> usize {
    driver.journal.iter().filter(|record| matches!(record, Record::ApprovalAsked { .. })).count()
}

#[test]
fn an_approval_that_was_given_takes_its_expiry_with_it() {
    let header = canary(vec![approval(Some(60_000), "ann"), approval(None, "ann")]);
    let (stable, _) = spec_of(&header, &World::default());
    let mut driver = Driver::new(&header, World::with_stable(&stable, 2));
    driver.open();
    while asked(&driver) < 1 {
        assert!(driver.turn(&mut |_, _, _| None));
    }
    approve(&mut driver, "ann");
    while asked(&driver) < 2 {
        assert!(driver.turn(&mut |_, _, _| None));
    }
    assert_eq!(expiry(&driver), None, "the second one waits for as long as it takes");
    driver.now_ms += 120_000;
    approve(&mut driver, "ann");
    while driver.turn(&mut |_, _, _| None) {}
    assert_eq!(driver.machine.outcome(), Some(Outcome::Succeeded));
}

#[test]
fn of_several_approvals_each_expires_at_its_own_time() {
    let gate = |approvals| {
        NodeKind::Gate(Box::new(Gate {
            approvals,
            metrics: Vec::new(),
            checks: Vec::new(),
            windows: Vec::new(),
            timeout_ms: None,
            hooks: Vec::new(),
        }))
    };
    let both = || vec![approval(Some(60_000), "ann"), approval(Some(600_000), "bob")];
    let begun_ms = 1_000;
    for ann_in_time in [true, false] {
        let header = header(vec![node(0, &[], gate(both()))], Vec::new());
        let mut driver = Driver::new(&header, World::default());
        driver.open();
        assert_eq!(expiry(&driver), Some(begun_ms + 60_000), "the first that is due, though asked first");
        if ann_in_time {
            approve(&mut driver, "ann");
            assert_eq!(expiry(&driver), Some(begun_ms + 600_000));
            driver.now_ms = begun_ms + 300_000;
            approve(&mut driver, "bob");
            assert_eq!(driver.machine.outcome(), Some(Outcome::Succeeded));
        } else {
            approve(&mut driver, "bob");
            assert!(driver.turn(&mut |_, _, _| None));
            assert_eq!(driver.now_ms, begun_ms + 60_000);
            assert_eq!(driver.machine.outcome(), Some(Outcome::TimedOut));
        }
    }
}

#[test]
fn a_timer_takes_no_approval_that_is_not_due() {
    // As in a journal of before: the one timer of the node was set for another approval than this.
    let header = canary(vec![approval(Some(600_000), "ann"), approval(Some(600_000), "ann")]);
    let (stable, _) = spec_of(&header, &World::default());
    let mut driver = Driver::new(&header, World::with_stable(&stable, 2));
    driver.open();
    while asked(&driver) < 1 {
        assert!(driver.turn(&mut |_, _, _| None));
    }
    let (due_ms, timer) = driver.machine.next_timer().map(|(due_ms, timer)| (due_ms, timer.clone())).unwrap();
    assert_eq!(timer.purpose, TimerPurpose::ApprovalExpires);
    driver.feed(Record::TimerFired { at_ms: due_ms - 1, timer });
    assert_eq!(expiry(&driver), Some(due_ms), "it is not due, so it is waited for again");
    assert_eq!(driver.machine.outcome(), None);
}
