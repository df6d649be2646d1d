//! Timers and people: absolute deadlines, signals, suspension.

use super::script::{Script, finished, intent, run, timer};
use super::world::{EPOCH_MS, Harness};
use crate::{RunEnd, Status};
use cdpipe_model::record::{Record, Signal};
use cdpipe_model::{NodeId, Outcome};
use std::time::Duration;

fn fired(harness: &Harness) -> Vec<(u64, u32)> {
    let records = harness.journal.records();
    records
        .iter()
        .filter_map(|(_, record)| match &**record {
            Record::TimerFired { at_ms, timer } => Some((at_ms - EPOCH_MS, timer.node.unwrap().0)),
            _ => None,
        })
        .collect()
}

#[tokio::test(start_paused = true)]
async fn timers_fire_when_they_are_due_in_order_and_moved_ones_only_once() {
    let harness = Harness::new();
    let set = |node: u32, ms: u64| Record::TimerSet { timer: timer(node), due_ms: EPOCH_MS + ms };
    harness
        .drive(Script::new(move |input| match input {
            Record::Opened { .. } => vec![set(1, 5_000), set(2, 1_000), set(3, 1_000), set(4, 99_000)],
            Record::TimerFired { timer: which, .. } if *which == timer(2) => {
                vec![set(1, 3_000), Record::TimerCleared { timer: timer(4) }]
            }
            Record::TimerFired { timer: which, .. } if *which == timer(1) => vec![finished()],
            _ => Vec::new(),
        }))
        .await;
    assert_eq!(fired(&harness), [(1_000, 2), (1_000, 3), (3_000, 1)]);
}

#[tokio::test(start_paused = true)]
async fn a_timer_that_came_due_while_no_engine_was_there_fires_at_the_resume() {
    let harness = Harness::new();
    harness.die_with(vec![Record::TimerSet { timer: timer(7), due_ms: EPOCH_MS + 1_000 }]).await;
    tokio::time::advance(Duration::from_secs(3_600)).await;
    harness
        .resume(Script::new(|input| match input {
            Record::TimerFired { .. } => vec![finished()],
            _ => Vec::new(),
        }))
        .await;
    assert_eq!(fired(&harness), [(3_600_000, 7)]);
}

#[tokio::test(start_paused = true)]
async fn a_timer_that_the_machine_forgets_to_clear_does_not_spin() {
    struct Stuck(cdpipe_model::record::TimerId);
    impl crate::dispatch::Decider for Stuck {
        fn apply(&mut self, _: &Record) {}
        fn accept(&mut self, input: Record) -> Vec<Record> {
            vec![input]
        }
        fn in_flight(&self) -> Vec<cdpipe_model::action::Action> {
            Vec::new()
        }
        fn next_timer(&self) -> Option<(u64, &cdpipe_model::record::TimerId)> {
            Some((EPOCH_MS, &self.0))
        }
        fn outcome(&self) -> Option<Outcome> {
            None
        }
        fn waiting(&self) -> Option<String> {
            None
        }
    }
    let harness = Harness::new();
    let header = std::sync::Arc::new(super::world::header(&harness.run));
    let journal = std::sync::Arc::clone(&harness.journal);
    let end = harness.engine().drive(header, Stuck(timer(0)), Default::default(), 0, journal).await;
    assert!(matches!(end, RunEnd::Stopped(fault) if fault.message.contains("fires for ever")));
}

#[tokio::test(start_paused = true)]
async fn a_signal_moves_a_waiting_run_on_and_leaves_the_inbox() {
    let harness = Harness::new();
    let mut script = Script::new(|input| match input {
        Record::Signalled { signal: Signal::Approve { .. }, .. } => vec![finished()],
        _ => Vec::new(),
    });
    script.waiting = Some("approval of `release`".into());
    let journal = std::sync::Arc::clone(&harness.journal);
    let person = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(3_600)).await;
        journal.send(
            EPOCH_MS,
            Signal::Approve {
                node: NodeId(0),
                by: "bob".into(),
                person: String::new(),
                effect_hash: String::new(),
            },
        );
    });
    assert_eq!(harness.drive(script).await, RunEnd::Finished(Outcome::Succeeded));
    person.await.unwrap();
    assert_eq!(crate::Journal::letters(&*harness.journal, 0).unwrap(), []);
}

#[tokio::test(start_paused = true)]
async fn a_run_that_only_a_person_can_move_is_suspended_and_finds_the_answer_at_its_resume() {
    let mut harness = Harness::new();
    harness.options.wait = false;
    let script = || {
        let mut script = Script::new(|input| match input {
            Record::Opened { resumed: false, .. } => vec![intent(run(1, "sleep 500"))],
            Record::Signalled { .. } => vec![finished()],
            _ => Vec::new(),
        });
        script.waiting = Some("approval of `release`".into());
        script
    };
    let end = harness.drive(script()).await;
    assert_eq!(end, RunEnd::Suspended { waiting: "approval of `release`".into() });
    assert_eq!(end.exit_code(), 5);
    assert_eq!(harness.journal.status(), Some(Status::Suspended { waiting: "approval of `release`".into() }));
    assert!(matches!(&*harness.journal.records().last().unwrap().1, Record::Suspended { .. }));
    assert_eq!(harness.elapsed_ms(), 500, "what was under way had come back");
    harness.journal.send(
        EPOCH_MS,
        Signal::Approve {
            node: NodeId(0),
            by: "bob".into(),
            person: String::new(),
            effect_hash: String::new(),
        },
    );
    assert_eq!(harness.resume(script()).await, RunEnd::Finished(Outcome::Succeeded));
}
