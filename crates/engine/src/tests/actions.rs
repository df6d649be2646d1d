//! Actions under way: order, deadline, cancellation, panics, and a journal that refuses.

use super::script::{Script, action, command, finished, intent, run, timer};
use super::world::{EPOCH_MS, Harness, exited};
use crate::{Delivery, RunEnd, Status};
use cdpipe_model::action::{ActionKind, ActionResult, Answer};
use cdpipe_model::event::Event;
use cdpipe_model::expr::{MeasureName, MetricRef, Subject};
use cdpipe_model::measure::{MeasureRequest, MeasureScope};
use cdpipe_model::record::Record;
use cdpipe_model::{ActionId, EnvName, Outcome, ServiceName};
use std::sync::{Arc, Mutex};

#[tokio::test(start_paused = true)]
async fn what_is_decided_is_durable_then_done_and_what_comes_back_is_decided_on() {
    let harness = Harness::new();
    let end = harness.drive(Script::all(vec![run(1, "true"), run(2, "false"), run(3, "print hello")])).await;
    assert_eq!(end, RunEnd::Finished(Outcome::Succeeded));
    assert_eq!(harness.world.done().len(), 3);
    let results = harness.results();
    assert_eq!(results.len(), 3);
    assert!(results.contains(&(1, exited())));
    assert!(results.iter().any(|(id, result)| *id == 2 && matches!(result, ActionResult::Failed(_))));
    assert_eq!(
        harness.journal.status(),
        Some(Status::Finished { outcome: Outcome::Succeeded, at_ms: EPOCH_MS }),
    );
    let (batches, synced) = harness.journal.batches();
    assert_eq!(synced, 0, "commands need no sync");
    assert!(batches <= 4, "what is ready at once is one batch: {batches}");
}

#[tokio::test(start_paused = true)]
async fn an_intent_of_an_effect_on_a_target_is_synced() {
    let harness = Harness::new();
    let lock = ActionKind::Lock { keys: Vec::new(), lease_ms: 60_000 };
    harness.drive(Script::all(vec![action(1, lock)])).await;
    assert_eq!(harness.journal.batches(), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn when_the_journal_refuses_nothing_more_is_done() {
    let harness = Harness::new();
    harness.journal.set_room(Some(1));
    let script = Script::new(|input| match input {
        Record::Opened { .. } => vec![intent(run(1, "true")), intent(run(2, "hang"))],
        Record::Returned { .. } => vec![intent(run(3, "true"))],
        _ => Vec::new(),
    });
    let RunEnd::Stopped(fault) = harness.drive(script).await else { panic!("it went on") };
    assert_eq!(fault.kind, "state-full");
    assert_eq!(harness.world.done(), ["true [r1/1]", "hang [r1/2]"], "the third was never begun");
    assert_eq!(fault.details, ["left under way: `hang` (action 2)"]);
    assert_eq!(harness.journal.records().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn an_action_ends_at_its_deadline_whether_it_heeds_or_not() {
    for (script, took_ms) in [("sleep 600000", 60_000), ("hang", 70_000)] {
        let harness = Harness::new();
        harness.drive(Script::all(vec![run(1, script)])).await;
        let results = harness.results();
        let ActionResult::TimedOut(fault) = &results[0].1 else { panic!("{results:?}") };
        assert_eq!(fault.message, format!("`{script}` took longer than 1m"));
        assert_eq!(harness.elapsed_ms(), took_ms, "{script}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_action_stops_and_a_deaf_effect_is_not_called_stopped() {
    for (script, expected) in [("sleep 50000", "cancelled"), ("hang", "timed-out")] {
        let harness = Harness::new();
        let end = harness
            .drive(Script::new(move |input| match input {
                Record::Opened { .. } => vec![
                    intent(run(1, script)),
                    Record::TimerSet { timer: timer(0), due_ms: EPOCH_MS + 1_000 },
                ],
                Record::TimerFired { .. } => vec![Record::CancelAsked { action: ActionId(1) }],
                Record::Returned { .. } => vec![finished()],
                _ => Vec::new(),
            }))
            .await;
        assert_eq!(end, RunEnd::Finished(Outcome::Succeeded));
        match (&harness.results()[0].1, expected) {
            (ActionResult::Cancelled, "cancelled") => assert_eq!(harness.elapsed_ms(), 1_000),
            (ActionResult::TimedOut(fault), "timed-out") => {
                assert!(fault.message.contains("did not stop within 10 s"), "{fault}");
            }
            (other, _) => panic!("{script}: {other:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn cancelled_in_the_batch_that_begins_it_it_is_never_begun() {
    let harness = Harness::new();
    harness
        .drive(Script::new(|input| match input {
            Record::Opened { .. } => {
                vec![intent(run(1, "true")), Record::CancelAsked { action: ActionId(1) }]
            }
            Record::Returned { .. } => vec![finished()],
            _ => Vec::new(),
        }))
        .await;
    assert_eq!(harness.world.done(), Vec::<String>::new());
    assert_eq!(harness.results(), [(1, ActionResult::Cancelled)]);
}

#[tokio::test(start_paused = true)]
async fn a_port_that_panics_fails_its_action_and_a_machine_that_panics_stops_the_run() {
    let harness = Harness::new();
    let end = harness.drive(Script::all(vec![run(1, "panic"), run(2, "true")])).await;
    assert_eq!(end, RunEnd::Finished(Outcome::Succeeded));
    let results = harness.results();
    let (_, ActionResult::Failed(fault)) = results.iter().find(|(id, _)| *id == 1).unwrap() else {
        panic!("{results:?}")
    };
    assert_eq!(
        (fault.kind.as_str(), fault.message.as_str()),
        ("internal", "a bug in cdpipe: a bug of a port")
    );

    let harness = Harness::new();
    let end = harness
        .drive(Script::new(|input| match input {
            Record::Opened { .. } => vec![intent(run(1, "true"))],
            _ => panic!("a bug of the machine"),
        }))
        .await;
    let RunEnd::Stopped(fault) = end else { panic!("{end:?}") };
    assert_eq!(fault.message, "a bug in cdpipe: a bug of the machine");
    assert_eq!(harness.journal.records().len(), 2, "the input that broke it is not in the journal");
}

#[tokio::test(start_paused = true)]
async fn a_run_that_neither_ends_nor_waits_is_told_instead_of_hanging() {
    let harness = Harness::new();
    let RunEnd::Stopped(fault) = harness.drive(Script::new(|_| Vec::new())).await else { panic!() };
    assert_eq!(fault.kind, "internal");
}

#[tokio::test(start_paused = true)]
async fn outputs_beyond_the_bound_fail_the_command() {
    let harness = Harness::new();
    harness.drive(Script::all(vec![run(1, "flood")])).await;
    let (_, ActionResult::Failed(fault)) = &harness.results()[0] else { panic!() };
    assert_eq!(fault.kind, "output-too-large");
}

#[tokio::test(start_paused = true)]
async fn a_sample_that_is_no_number_is_no_data() {
    let harness = Harness::new();
    let scope = MeasureScope {
        service: "web".into(),
        environment: "prod".into(),
        release: String::new(),
        role: String::new(),
        window_ms: 1,
        addresses: Vec::new(),
    };
    let request = |measure| MeasureRequest {
        metric: MetricRef { subject: Subject::Candidate, measure },
        scope: scope.clone(),
        definition: None,
    };
    let named = MeasureName::Named { set: "shop".into(), name: "error_rate".into() };
    let requests = vec![request(MeasureName::Ready), request(named), request(MeasureName::Requests)];
    let measure =
        ActionKind::Measure { environment: Some(EnvName::from("prod")), requests: requests.clone() };
    harness.drive(Script::all(vec![action(1, measure)])).await;
    let (_, ActionResult::Done(Answer::Samples(samples))) = &harness.results()[0] else { panic!() };
    let asked: Vec<_> = requests.into_iter().map(|request| request.metric).collect();
    assert_eq!(samples.iter().map(|sample| sample.metric.clone()).collect::<Vec<_>>(), asked);
    let notes: Vec<_> = samples.iter().map(|sample| (&sample.value, sample.note.as_deref())).collect();
    assert_eq!(
        notes,
        [
            (&None, Some("no instances are wanted")),
            (&None, Some("the answer was NaN")),
            (&None, Some("it has no router")),
        ]
    );
}

#[tokio::test]
async fn reporters_see_every_record_in_order_and_a_blocked_one_does_not_hold_up_the_run() {
    let harness = Harness::new();
    let mut engine = harness.engine();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let into = Arc::clone(&seen);
    let (_never, wait) = std::sync::mpsc::channel::<()>();
    let wait = Mutex::new(wait);
    engine.events.add("blocks", Box::new(move |_| assert!(wait.lock().unwrap().recv().is_err())));
    engine.events.add(
        "sees",
        Box::new(move |delivery: Delivery<'_>| {
            into.lock().unwrap().push(match delivery.event {
                Event::Opened(header) => format!("opened {}", header.run),
                Event::Record { seq, .. } => format!("record {seq}"),
                Event::Output { line, .. } => format!("output {line}"),
                Event::Progress { text, .. } => format!("progress {text}"),
                Event::Closed => "closed".to_owned(),
            });
        }),
    );
    let log_dir = tempfile::tempdir().unwrap();
    engine.log = Some(crate::OutputLog::open(log_dir.path(), &harness.run).unwrap());
    let opening = Script::all(vec![run(1, "print hello")]);
    let header = Arc::new(super::world::header(&harness.run));
    let journal = Arc::clone(&harness.journal);
    let end = engine.drive(header, opening, Default::default(), 0, journal).await;
    assert_eq!(end, RunEnd::Finished(Outcome::Succeeded));
    assert_eq!(
        *seen.lock().unwrap(),
        ["opened r1", "record 1", "record 2", "output hello", "record 3", "record 4", "closed"]
    );
    let mut lines = Vec::new();
    crate::OutputReader::new(log_dir.path(), &harness.run).read(|line| lines.push(line.line)).unwrap();
    assert_eq!(lines, ["hello"]);
}

#[tokio::test(start_paused = true)]
async fn an_environment_without_a_target_or_a_router_is_a_fault_not_a_panic() {
    let harness = Harness::new();
    let observe = |environment: &str| ActionKind::Observe {
        environment: EnvName::from(environment),
        service: ServiceName::from("web"),
        platform_name: None,
        route: None,
    };
    let exec = ActionKind::Run(command("true"));
    let spec = Box::new(cdpipe_model::objects::ApplySpec {
        path: "k8s".into(),
        set: "set".into(),
        mark: "mark".into(),
        force: false,
        prune: false,
        files: Vec::new(),
    });
    let apply = ActionKind::Apply { environment: EnvName::from("prod"), spec, objects: Vec::new() };
    harness
        .drive(Script::all(vec![
            action(1, observe("nowhere")),
            action(2, observe("prod")),
            action(3, exec),
            action(4, apply),
        ]))
        .await;
    let kinds: Vec<_> = harness
        .results()
        .into_iter()
        .filter_map(|(id, result)| match result {
            ActionResult::Failed(fault) => Some((id, fault.kind)),
            _ => None,
        })
        .collect();
    assert_eq!(kinds.len(), 2);
    assert!(
        kinds.contains(&(1, "internal".into())) && kinds.contains(&(4, "unsupported".into())),
        "{kinds:?}"
    );
}
