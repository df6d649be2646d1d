//! How many new instances may fail in a roll, and who gets users meanwhile.

use super::world::{Driver, prepared};
use cdpipe_model::Outcome;
use cdpipe_model::action::{ActionKind, ActionResult, Answer};
use cdpipe_model::program::ProgramStep;
use cdpipe_model::record::Record;
use cdpipe_model::strategy::{Count, Rolling, Strategy};

fn rolling(batch: u32, max_failures_percent: f64) -> Strategy {
    Strategy::Rolling(Rolling {
        batch: Count::Instances(batch),
        max_failures_percent,
        monitor_ms: 0,
        ..Rolling::default()
    })
}

#[test]
fn a_batch_of_which_none_is_ready_goes_back_whatever_share_may_fail() {
    for percent in [20.0, 100.0] {
        let (header, mut world, stable, _) = prepared(rolling(2, percent), 10);
        world.never_ready = Some("v2".into());
        let mut driver = Driver::new(&header, world);
        assert_eq!(driver.run(&mut |_, _, _| None), Outcome::RolledBack, "{percent}");
        assert_eq!(driver.world.serving(), vec![(stable.id(), 10_000, 10)]);
    }
}

#[test]
fn the_share_that_may_fail_bounds_all_batches_together() {
    let (header, world, ..) = prepared(rolling(2, 20.0), 10);
    let mut driver = Driver::new(&header, world);
    driver.run(&mut |_, _, _| None);
    let program = driver.journal.iter().find_map(|record| match record {
        Record::Programmed { program, .. } => Some(program),
        _ => None,
    });
    let allowed: Vec<_> = program
        .unwrap()
        .steps
        .iter()
        .filter_map(|step| match step {
            ProgramStep::Ready { count, may_fail, .. } => Some((*count, *may_fail)),
            _ => None,
        })
        .collect();
    assert_eq!(allowed, [(2, 1), (4, 2), (6, 2), (8, 2), (10, 2)]);
}

#[test]
fn users_of_a_roll_go_to_ready_instances_alone() {
    let (header, world, _, candidate) = prepared(rolling(2, 20.0), 10);
    let mut driver = Driver::new(&header, world);
    let mut batches = 0;
    // The new ones of the second batch fall over together with those of the first, just when they were seen to be ready.
    driver.run(&mut |_, action, world| {
        let ActionKind::AwaitReady { release, .. } = &action.kind else { return None };
        if release.id() != candidate.id() {
            return None;
        }
        batches += 1;
        if batches != 2 {
            return None;
        }
        let found = world.releases.iter_mut().find(|found| found.id == candidate.id()).unwrap();
        found.instances.iter_mut().for_each(|instance| instance.ready = false);
        Some(ActionResult::Done(Answer::Instances(found.instances.clone())))
    });
    // The world itself asserts that nobody is sent to an unready instance.
    assert!(batches >= 2);
}
