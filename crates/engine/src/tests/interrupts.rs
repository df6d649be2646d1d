//! Ctrl-C: nothing new is begun, nothing false is recorded, and the resume loses nothing.

use super::script::{Script, action, finished, intent, run};
use super::world::{Harness, exited};
use crate::{Journal, RunEnd, Status};
use cdpipe_model::action::ActionKind;
use cdpipe_model::ports::Probe;
use cdpipe_model::record::Record;
use cdpipe_model::{EnvName, Outcome, ServiceName};
use std::time::Duration;

fn slow_read(id: u64) -> cdpipe_model::action::Action {
    action(
        id,
        ActionKind::Observe {
            environment: EnvName::from("prod"),
            service: ServiceName::from("slow"),
            platform_name: None,
            route: None,
        },
    )
}

fn interrupt_after(harness: &Harness, ms: u64, times: u32) {
    let interrupt = harness.interrupt.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(ms)).await;
        interrupt.send_replace(times);
    });
}

#[tokio::test(start_paused = true)]
async fn reads_are_dropped_effects_come_back_and_the_resume_takes_what_they_said() {
    let harness = Harness::new();
    interrupt_after(&harness, 1_000, 1);
    let opening = || {
        let mut left = 3;
        Script::new(move |input| match input {
            Record::Opened { resumed: false, .. } => {
                vec![intent(slow_read(1)), intent(run(2, "sleep 4000")), intent(run(3, "hang"))]
            }
            Record::Returned { .. } => {
                left -= 1;
                if left == 0 { vec![finished()] } else { Vec::new() }
            }
            _ => Vec::new(),
        })
    };
    let end = harness.drive(opening()).await;
    assert_eq!((end.clone(), end.exit_code()), (RunEnd::Interrupted, 130));
    assert_eq!(harness.elapsed_ms(), 11_000, "ten seconds of grace for what hangs");
    assert_eq!(harness.journal.status(), Some(Status::Interrupted));
    assert_eq!(harness.results(), [], "nothing was decided on");
    assert_eq!(harness.journal.letters(0).unwrap().len(), 1);
    assert_eq!(harness.world.done().last().unwrap(), "slept 4000");

    harness.world.done.lock().unwrap().clear();
    let answer = cdpipe_model::action::Answer::Exited { outputs: Default::default() };
    harness.world.probes.lock().unwrap().insert("r1/3".into(), vec![Probe::Done(answer)]);
    harness.interrupt.send_replace(0);
    assert_eq!(harness.resume(opening()).await, RunEnd::Finished(Outcome::Succeeded));
    assert_eq!(harness.results()[0], (2, exited()), "it came back before, so it comes first");
    let mut done = harness.world.done();
    done.sort();
    assert_eq!(done, ["observe slow epoch 0", "observed", "probe [r1/3]"], "the sleep was not run again");
    assert_eq!(harness.journal.letters(0).unwrap(), []);
}

#[tokio::test(start_paused = true)]
async fn the_second_interrupt_does_not_wait() {
    let harness = Harness::new();
    interrupt_after(&harness, 1_000, 1);
    interrupt_after(&harness, 1_500, 2);
    let end = harness.drive(Script::all(vec![run(1, "hang")])).await;
    assert_eq!(end, RunEnd::Interrupted);
    assert_eq!(harness.elapsed_ms(), 1_500);
}

#[tokio::test(start_paused = true)]
async fn an_interrupt_whose_results_cannot_be_kept_is_told() {
    let harness = Harness::new();
    interrupt_after(&harness, 1_000, 1);
    let end = harness.drive(Script::all(vec![run(1, "sleep 2000")])).await;
    assert_eq!(end, RunEnd::Interrupted);
    assert_eq!(harness.elapsed_ms(), 2_000, "no longer than what is under way takes");
}
