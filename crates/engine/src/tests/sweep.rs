//! The machine itself in the loop: a crash at every batch of the journal, then a second one inside the recovery, always has the same end,
//! and no command is run twice.

use super::world::{Harness, header};
use crate::{Engine, Journal, Past, RunEnd};
use cdpipe_model::plan::{
    LockKey, Need, Node, NodeKind, OnInterrupt, Retry, Run, SourcePos, Stage, Step, StepKind,
};
use cdpipe_model::record::{Record, RunHeader};
use cdpipe_model::{NodeId, Outcome};
use std::collections::BTreeMap;
use std::sync::Arc;

fn step(script: &str, retry: u32) -> Step {
    Step {
        label: format!("run {script}"),
        kind: StepKind::Run(Run {
            script: script.into(),
            args: Vec::new(),
            env: BTreeMap::new(),
            dir: None,
            stdin: None,
            image: None,
            environment: None,
        }),
        timeout_ms: 60_000,
        retry: Retry { more: retry, ..Retry::default() },
        on_interrupt: OnInterrupt::Fail,
        at: SourcePos::default(),
    }
}

fn stage(id: u32, needs: &[u32], steps: Vec<Step>, lock: Option<&str>) -> Node {
    Node {
        id: NodeId(id),
        name: format!("s{id}"),
        needs: needs.iter().map(|need| Need { node: NodeId(*need), optional: false }).collect(),
        when: None,
        kind: NodeKind::Stage(Box::new(Stage {
            steps,
            timeout_ms: None,
            retry: Retry::default(),
            locks: lock.map(|name| LockKey::Named(name.into())).into_iter().collect(),
            outputs: Vec::new(),
            hooks: Vec::new(),
            undo_on_failure: false,
        })),
        at: SourcePos::default(),
    }
}

/// A diamond of commands: some take time, two stages share a lock, one fails after a second attempt, and what needs it is skipped.
fn pipeline(harness: &Harness) -> Arc<RunHeader> {
    let mut header = header(&harness.run);
    header.plan.nodes = vec![
        stage(0, &[], vec![step("true", 0), step("sleep 300", 0)], None),
        stage(1, &[0], vec![step("sleep 200", 0)], Some("db")),
        stage(2, &[0], vec![step("sleep 100", 0), step("print x", 0)], Some("db")),
        stage(3, &[1, 2], vec![step("false", 1)], None),
        stage(4, &[3], vec![step("true", 0)], None),
    ];
    Arc::new(header)
}

/// Another engine goes on with what the journal holds.
async fn go_on(harness: &Harness) -> RunEnd {
    let mut past = Past::new(pipeline(harness));
    for (_, record) in harness.journal.records() {
        past.fold(&record);
    }
    let journal: Arc<dyn Journal> = Arc::clone(&harness.journal) as _;
    let engine: Engine = harness.engine();
    engine.resume(past, journal).await
}

/// How each stage ended, and every effect that was begun.
fn end(harness: &Harness) -> (Vec<(u32, Outcome)>, Vec<String>) {
    let records = harness.journal.records();
    let mut outcomes: Vec<_> = records
        .iter()
        .filter_map(|(_, record)| match &**record {
            Record::NodeFinished { node, outcome, .. } => Some((node.0, *outcome)),
            _ => None,
        })
        .collect();
    outcomes.sort_unstable();
    let mut begun: Vec<String> = harness
        .world
        .done()
        .into_iter()
        .filter(|line| line.contains("[r1/") && !line.starts_with("probe"))
        .collect();
    begun.sort();
    (outcomes, begun)
}

fn commands(begun: &[String]) -> Vec<&str> {
    let mut commands: Vec<&str> = begun.iter().map(|line| line.split(" [").next().unwrap()).collect();
    commands.sort_unstable();
    commands
}

#[tokio::test(start_paused = true)]
async fn a_crash_at_every_batch_and_again_inside_the_recovery_has_the_same_end() {
    let whole = Harness::new();
    assert_eq!(go_on(&whole).await, RunEnd::Finished(Outcome::Failed));
    let (outcomes, begun) = end(&whole);
    assert_eq!(
        outcomes,
        [
            (0, Outcome::Succeeded),
            (1, Outcome::Succeeded),
            (2, Outcome::Succeeded),
            (3, Outcome::Failed),
            (4, Outcome::Skipped)
        ]
    );
    assert_eq!(
        commands(&begun),
        ["false", "false", "print x", "sleep 100", "sleep 200", "sleep 300", "true"]
    );
    let (batches, _) = whole.journal.batches();
    assert!(batches > 8, "{batches}");
    for first in 0..batches {
        for second in [None, Some(0), Some(1), Some(2), Some(3)] {
            let harness = Harness::new();
            harness.journal.set_room(Some(first));
            let crashed = go_on(&harness).await;
            assert!(matches!(crashed, RunEnd::Stopped(_)), "{first}: {crashed:?}");
            if let Some(second) = second {
                harness.journal.set_room(Some(second));
                go_on(&harness).await;
            }
            harness.journal.set_room(None);
            let ended = match harness.journal.status() {
                Some(crate::Status::Finished { outcome, .. }) => RunEnd::Finished(outcome),
                _ => go_on(&harness).await,
            };
            assert_eq!(ended, RunEnd::Finished(Outcome::Failed), "crash at {first}, then {second:?}");
            let (outcomes_here, begun_here) = end(&harness);
            assert_eq!(outcomes_here, outcomes, "crash at {first}, then {second:?}");
            assert_eq!(commands(&begun_here), commands(&begun), "crash at {first}, then {second:?}");
            assert_eq!(harness.locks.holder("db"), None, "crash at {first}, then {second:?}");
        }
    }
}
