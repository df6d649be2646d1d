//! A timer is of what set it, and ends with it.

use super::plans::{deploy, header, node, run, stage, step};
use super::world::{Driver, World, spec_of};
use cdpipe_model::action::{ActionKind, ActionResult};
use cdpipe_model::plan::{Deploy, NodeKind, Retry, StepKind};
use cdpipe_model::record::{Record, TimerPurpose};
use cdpipe_model::strategy::{BlueGreen, OldRelease, Strategy};
use cdpipe_model::{Fault, Outcome};

fn due_of(driver: &Driver, purpose: TimerPurpose) -> Vec<u64> {
    let set = driver.journal.iter().filter_map(|record| match record {
        Record::TimerSet { timer, due_ms } if timer.purpose == purpose => Some(*due_ms),
        _ => None,
    });
    set.collect()
}

/// Each takes longer than half of what one may take.
fn slow(version: &str) -> Deploy {
    let strategy =
        Strategy::BlueGreen(BlueGreen { keep_old_ms: 60_000, old: OldRelease::Stop, preview: None });
    Deploy {
        timeout_ms: 100_000,
        watch: None,
        verify: Vec::new(),
        validate: Vec::new(),
        ..deploy(version, 1, strategy)
    }
}

#[test]
fn the_second_deploy_of_a_stage_has_a_timeout_of_its_own() {
    let steps = ["v2", "v3"].map(|version| step(StepKind::Deploy(Box::new(slow(version))))).into();
    let header = header(vec![node(0, &[], stage(steps, Vec::new()))], Vec::new());
    let (stable, _) = spec_of(&header, &World::default());
    let mut driver = Driver::new(&header, World::with_stable(&stable, 1));
    assert_eq!(driver.run(&mut |_, _, _| None), Outcome::Succeeded);
    let due = due_of(&driver, TimerPurpose::DeployTimeout);
    assert!(due.len() == 2 && due[1] >= due[0] + 60_000, "{due:?}");
    assert!(driver.now_ms > due[0], "both together took longer than one may");
}

#[test]
fn the_time_of_a_rollback_ends_with_it() {
    // The deploy goes back by itself, and the stage begins again: what goes back then has all of its time.
    let mut slow = slow("v2");
    slow.validate = vec![run("validate")];
    slow.rollback_timeout_ms = 1_000;
    let mut kind = stage(vec![step(StepKind::Deploy(Box::new(slow)))], Vec::new());
    if let NodeKind::Stage(stage) = &mut kind {
        stage.retry = Retry { more: 1, delay_ms: 100, max_delay_ms: 100 };
    }
    let header = header(vec![node(0, &[], kind)], Vec::new());
    // Nothing served before, so that a failure is one that may be tried again.
    let world = World { failing_command: Some("validate".into()), ..World::default() };
    let mut driver = Driver::new(&header, World { closing_allowed: true, ..world });
    assert_eq!(driver.run(&mut |_, _, _| None), Outcome::Failed);
    let due = due_of(&driver, TimerPurpose::UndoTimeout);
    assert_eq!(due.len(), 2, "{due:?}");
    assert!(due[1] > due[0]);
}

#[test]
fn each_attempt_of_a_stage_has_a_timeout_of_its_own() {
    let mut kind = stage(vec![run("build")], Vec::new());
    if let NodeKind::Stage(stage) = &mut kind {
        stage.timeout_ms = Some(10_000);
        stage.retry = Retry { more: 1, delay_ms: 8_000, max_delay_ms: 8_000 };
    }
    let header = header(vec![node(0, &[], kind)], Vec::new());
    let mut driver = Driver::new(&header, World::default());
    driver.open();
    let end = |driver: &mut Driver, after_ms: u64, failed: bool| {
        driver.now_ms += after_ms;
        let action = driver.machine.in_flight().next().cloned().unwrap();
        let result = match failed {
            true => ActionResult::Failed(Fault::new("command-failed", "no")),
            false => driver.world.perform(&action),
        };
        driver.feed(Record::Returned { at_ms: driver.now_ms, action: action.id, result });
    };
    while driver.machine.in_flight().next().is_none_or(|action| !matches!(action.kind, ActionKind::Run(_))) {
        assert!(driver.turn(&mut |_, _, _| None));
    }
    end(&mut driver, 1_000, true);
    while driver.machine.in_flight().next().is_none() {
        assert!(driver.turn(&mut |_, _, _| None));
    }
    let due = due_of(&driver, TimerPurpose::NodeTimeout);
    assert!(due.len() == 2 && due[1] >= driver.now_ms + 10_000, "{due:?} at {}", driver.now_ms);
    end(&mut driver, 5_000, false);
    assert_eq!(driver.machine.outcome(), Some(Outcome::Succeeded));
}
