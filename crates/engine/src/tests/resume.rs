//! After a crash: what was in flight, by kind.

use super::script::{Script, action, finished, intent, run};
use super::world::{Harness, exited};
use crate::{RunEnd, Verdict};
use cdpipe_model::action::{ActionKind, ActionResult, Answer};
use cdpipe_model::ports::Probe;
use cdpipe_model::record::Record;
use cdpipe_model::release::{Artifact, ReleaseSpec};
use cdpipe_model::{ActionId, EnvName, Fault, Outcome, ServiceName, Value};
use std::collections::BTreeMap;
use std::sync::Arc;

pub(super) fn release(service: &str) -> Box<ReleaseSpec> {
    Box::new(ReleaseSpec {
        service: ServiceName::from(service),
        platform_name: None,
        version: "v1".into(),
        artifact: Artifact::Command { argv: vec!["serve".into()], path: None, digest: None },
        port: None,
        env: BTreeMap::new(),
        health: Vec::new(),
        drain_ms: 0,
        extra: BTreeMap::new(),
    })
}

pub(super) fn ensure(id: u64, service: &str) -> cdpipe_model::action::Action {
    action(
        id,
        ActionKind::Ensure {
            environment: EnvName::from("prod"),
            release: release(service),
            count: 2,
            canary_env: BTreeMap::new(),
        },
    )
}

fn http(id: u64) -> cdpipe_model::action::Action {
    action(
        id,
        ActionKind::Http {
            method: "POST".into(),
            url: Value::Str("http://hooks/deployed".into()),
            headers: BTreeMap::new(),
            body: None,
            expect_status: Vec::new(),
            expect_body: None,
        },
    )
}

fn observe(id: u64) -> cdpipe_model::action::Action {
    action(
        id,
        ActionKind::Observe {
            environment: EnvName::from("prod"),
            service: ServiceName::from("web"),
            platform_name: None,
            route: None,
        },
    )
}

/// Ends when so many have returned.
fn ends_after(mut left: usize) -> Script {
    Script::new(move |input| match input {
        Record::Returned { .. } => {
            left -= 1;
            if left == 0 { vec![finished()] } else { Vec::new() }
        }
        _ => Vec::new(),
    })
}

#[tokio::test(start_paused = true)]
async fn reads_and_convergent_effects_are_done_again() {
    let harness = Harness::new();
    harness.die_with(vec![intent(observe(1)), intent(ensure(2, "web"))]).await;
    assert_eq!(harness.resume(ends_after(2)).await, RunEnd::Finished(Outcome::Succeeded));
    let mut done = harness.world.done();
    done.sort();
    assert_eq!(done, ["ensure 2 of web epoch 0", "observe web epoch 0"]);
    let opened = harness.journal.records();
    assert!(matches!(&*opened[3].1, Record::Opened { resumed: true, .. }));
}

#[tokio::test(start_paused = true)]
async fn a_command_is_looked_for_and_run_again_only_if_it_was_not_run() {
    let done = Answer::Exited { outputs: BTreeMap::from([("digest".to_owned(), "abc".to_owned())]) };
    let failed = Fault::new("command-failed", "it exited with 3");
    let unknown = Fault::new("interrupted", "the machine was restarted");
    let cases = [
        (vec![Probe::Done(done.clone())], ActionResult::Done(done.clone()), vec!["probe [r1/1]"]),
        (vec![Probe::Failed(failed.clone())], ActionResult::Failed(failed), vec!["probe [r1/1]"]),
        (vec![Probe::NotDone], exited(), vec!["probe [r1/1]", "true [r1/1]"]),
        (
            vec![Probe::Running, Probe::Running, Probe::Done(done.clone())],
            ActionResult::Done(done),
            vec!["probe [r1/1]"; 3],
        ),
        (vec![Probe::Unknown(unknown.clone())], ActionResult::Unknown(unknown), vec!["probe [r1/1]"]),
    ];
    for (probes, result, log) in cases {
        let harness = Harness::new();
        harness.die_with(vec![intent(run(1, "true"))]).await;
        harness.world.probes.lock().unwrap().insert("r1/1".into(), probes);
        harness.resume(ends_after(1)).await;
        assert_eq!(harness.results(), [(1, result)]);
        assert_eq!(harness.world.done(), log);
    }
}

#[tokio::test(start_paused = true)]
async fn a_command_that_outlived_its_engine_still_has_its_deadline_and_can_be_cancelled() {
    let harness = Harness::new();
    harness.die_with(vec![intent(run(1, "true"))]).await;
    harness.world.probes.lock().unwrap().insert("r1/1".into(), vec![Probe::Running]);
    harness.resume(ends_after(1)).await;
    assert!(matches!(harness.results()[0].1, ActionResult::TimedOut(_)));
    assert_eq!(harness.world.done().last().unwrap(), "stop [r1/1]");

    let harness = Harness::new();
    harness.die_with(vec![intent(run(1, "true")), Record::CancelAsked { action: ActionId(1) }]).await;
    harness.world.probes.lock().unwrap().insert("r1/1".into(), vec![Probe::Running]);
    harness.resume(ends_after(1)).await;
    assert_eq!(harness.results(), [(1, ActionResult::Cancelled)]);
    assert_eq!(harness.world.done(), ["probe [r1/1]", "stop [r1/1]"]);
    assert_eq!(harness.elapsed_ms(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_was_cancelled_before_the_crash_is_not_begun_again() {
    let harness = Harness::new();
    let asked = |id| Record::CancelAsked { action: ActionId(id) };
    harness
        .die_with(vec![
            intent(ensure(1, "web")),
            intent(observe(2)),
            intent(run(3, "true")),
            asked(1),
            asked(2),
            asked(3),
        ])
        .await;
    harness.world.probes.lock().unwrap().insert("r1/3".into(), vec![Probe::NotDone]);
    harness.resume(ends_after(3)).await;
    assert_eq!(harness.world.done(), ["probe [r1/3]"]);
    assert!(harness.results().iter().all(|(_, result)| *result == ActionResult::Cancelled));
}

#[tokio::test(start_paused = true)]
async fn a_request_may_have_been_sent_so_a_person_is_asked_where_there_is_one() {
    let cases = [
        (None, "unknown", 0),
        (Some(Verdict::Unknown), "unknown", 0),
        (Some(Verdict::Done), "done", 0),
        (Some(Verdict::Again), "done", 1),
    ];
    for (verdict, expected, sent) in cases {
        let mut harness = Harness::new();
        harness.options.ask = verdict.map(|verdict| -> crate::Ask {
            Arc::new(move |action, fault| {
                assert_eq!(action.id, ActionId(1));
                assert!(fault.message.contains("POST http://hooks/deployed"), "{fault}");
                Box::pin(std::future::ready(verdict))
            })
        });
        harness.die_with(vec![intent(http(1))]).await;
        harness.resume(ends_after(1)).await;
        let result = match &harness.results()[0].1 {
            ActionResult::Unknown(_) => "unknown",
            ActionResult::Done(Answer::Status(200)) => "done",
            other => panic!("{other:?}"),
        };
        assert_eq!((result, harness.world.done().len()), (expected, sent), "{verdict:?}");
    }
}
