//! `rollback stage` in hooks: order over all stages, stages under way, failures of the way back, and no standstill.

use super::plans::{header, node, run, stage, step};
use super::world::{Driver, World};
use cdpipe_model::action::{ActionKind, ActionResult};
use cdpipe_model::plan::{Hook, HookEvent, NodeKind, Step, StepKind};
use cdpipe_model::record::{Record, RunHeader, Signal};
use cdpipe_model::{Fault, NodeId, Outcome};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::sync::Arc;

fn undo(script: &str) -> Step {
    step(StepKind::Undo { steps: vec![run(script)] })
}

fn rollback(stages: &[u32]) -> Step {
    let mut stages = stages.iter().map(|id| NodeId(*id));
    step(StepKind::Rollback { stage: stages.next().unwrap(), more: stages.collect() })
}

fn on(event: HookEvent, steps: Vec<Step>) -> Hook {
    Hook { events: vec![event], steps }
}

/// Commands as they were run; those in `failing` fail, and those in `stopped` come back only when they are asked to stop.
fn play(header: &Arc<RunHeader>, failing: &[&str], stopped: &[&str]) -> Driver {
    let mut driver = Driver::new(header, World::default());
    driver.open();
    go_on(&mut driver, failing, stopped);
    driver
}

fn go_on(driver: &mut Driver, failing: &[&str], stopped: &[&str]) {
    for _ in 0..2_000 {
        let asked: BTreeSet<_> = driver
            .machine
            .in_flight()
            .map(|action| action.id)
            .filter(|id| driver.machine.is_cancel_asked(*id))
            .collect();
        let held = |action: &cdpipe_model::action::Action| match &action.kind {
            ActionKind::Run(run) => stopped.contains(&run.script.as_str()) && !asked.contains(&action.id),
            _ => false,
        };
        let next = driver.machine.in_flight().find(|action| !held(action)).cloned();
        let Some(action) = next else {
            if driver.machine.in_flight().next().is_some() || !driver.turn(&mut |_, _, _| None) {
                return;
            }
            continue;
        };
        let result = match &action.kind {
            ActionKind::Run(run) if asked.contains(&action.id) => {
                driver.world.commands.push(format!("{} stopped", run.script));
                ActionResult::Cancelled
            }
            ActionKind::Run(run) if failing.contains(&run.script.as_str()) => {
                driver.world.commands.push(format!("{} failed", run.script));
                ActionResult::Failed(Fault::new("command-failed", format!("{} exited with 1", run.script)))
            }
            _ => driver.world.perform(&action),
        };
        driver.now_ms += 10;
        let at_ms = driver.now_ms;
        driver.feed(Record::Returned { at_ms, action: action.id, result });
    }
    panic!("it does not end: {:#?}", &driver.journal[driver.journal.len() - 20..]);
}

fn signal(driver: &mut Driver, signal: Signal) {
    let at_ms = driver.now_ms;
    driver.feed(Record::Signalled { at_ms, signal });
}

fn two_regions(hooks: Vec<Hook>) -> Vec<cdpipe_model::plan::Node> {
    let region = |id: u32, hooks: Vec<Hook>| {
        let steps = ["web", "api"]
            .iter()
            .flat_map(|service| [run(&format!("{service} {id}")), undo(&format!("undo {service} {id}"))]);
        node(id, &[], stage(steps.collect(), hooks))
    };
    vec![region(0, hooks), region(1, Vec::new())]
}

#[test]
fn all_stages_of_a_matrix_are_taken_back_newest_effect_first() {
    let mut nodes = two_regions(Vec::new());
    nodes.push(node(2, &[0, 1], stage(vec![run("e2e")], Vec::new())));
    let header = header(nodes, vec![on(HookEvent::Failure, vec![rollback(&[0, 1]), run("tell")])]);
    let driver = play(&header, &["e2e"], &[]);
    assert_eq!(
        driver.world.commands,
        [
            "web 0",
            "web 1",
            "api 0",
            "api 1",
            "e2e failed",
            "undo api 1",
            "undo api 0",
            "undo web 1",
            "undo web 0",
            "tell"
        ]
    );
    assert_eq!(driver.machine.outcome(), Some(Outcome::Failed));
    for id in [0, 1] {
        assert_eq!(driver.machine.node_outcome(NodeId(id)), Some(Outcome::RolledBack));
    }
}

#[test]
fn stages_that_are_under_way_are_stopped_and_taken_back_and_those_that_wait_never_begin() {
    let nodes = vec![
        node(0, &[], stage(vec![run("a"), undo("undo a"), run("slow")], Vec::new())),
        node(1, &[0], stage(vec![run("never")], Vec::new())),
        node(
            2,
            &[],
            stage(
                vec![run("b"), undo("undo b"), run("bad")],
                vec![on(HookEvent::Failure, vec![rollback(&[0, 1, 2]), run("tell")])],
            ),
        ),
    ];
    let driver = play(&header(nodes, Vec::new()), &["bad"], &["slow"]);
    assert_eq!(driver.world.commands, ["a", "b", "bad failed", "slow stopped", "undo b", "undo a", "tell"]);
    assert_eq!(driver.machine.node_outcome(NodeId(0)), Some(Outcome::Cancelled));
    assert_eq!(driver.machine.node_outcome(NodeId(1)), Some(Outcome::Skipped));
    assert_eq!(driver.machine.outcome(), Some(Outcome::Failed));
}

#[test]
fn two_stages_that_ask_for_each_other_do_not_wait_for_ever() {
    let both = |id: u32| {
        node(
            id,
            &[],
            stage(
                vec![run(&format!("do {id}")), undo(&format!("undo {id}")), run(&format!("bad {id}"))],
                vec![on(HookEvent::Failure, vec![rollback(&[0, 1])])],
            ),
        )
    };
    let driver = play(&header(vec![both(0), both(1)], Vec::new()), &["bad 0", "bad 1"], &[]);
    assert_eq!(driver.machine.outcome(), Some(Outcome::Failed));
    let undone: BTreeSet<_> = driver.world.commands.iter().filter(|said| said.starts_with("undo")).collect();
    assert_eq!(undone.len(), 2, "{:?}", driver.world.commands);
}

#[test]
fn an_undo_that_fails_is_answered_by_hooks_and_can_be_tried_again() {
    let nodes = vec![
        node(
            0,
            &[],
            stage(
                vec![run("a"), undo("undo a"), run("b"), undo("undo b")],
                vec![on(HookEvent::RollbackFailed, vec![run("stage hook")])],
            ),
        ),
        node(1, &[0], stage(vec![run("e2e")], Vec::new())),
    ];
    let hooks = vec![
        on(HookEvent::RollbackFailed, vec![run("page")]),
        on(HookEvent::Failure, vec![rollback(&[0])]),
        on(HookEvent::Rollback, vec![run("no")]),
    ];
    let header = header(nodes, hooks);
    let mut driver = play(&header, &["e2e", "undo b"], &[]);
    assert_eq!(
        driver.world.commands,
        ["a", "b", "e2e failed", "undo b failed", "undo a", "stage hook", "page"],
        "one that fails keeps no other from being tried"
    );
    assert_eq!(driver.machine.outcome(), Some(Outcome::RollbackFailed));
    assert_eq!(driver.machine.node_outcome(NodeId(0)), Some(Outcome::RollbackFailed));

    // A resume after someone has mended it.
    let mut again = Driver::new(&header, driver.world.clone());
    for record in &driver.journal {
        again.machine.apply(record);
    }
    again.world.commands.clear();
    again.now_ms = driver.now_ms;
    let at_ms = again.now_ms;
    again.feed(Record::Opened { at_ms, by: "again".into(), resumed: true });
    signal(&mut again, Signal::Continue { by: "ann".into() });
    go_on(&mut again, &[], &[]);
    assert_eq!(again.world.commands, ["undo b"], "what was taken back is not done twice");
    assert_eq!(again.machine.node_outcome(NodeId(0)), Some(Outcome::RolledBack));
    assert_eq!(again.machine.outcome(), Some(Outcome::Failed), "e2e had failed");

    signal(&mut driver, Signal::Continue { by: "ann".into() });
    go_on(&mut driver, &["undo b"], &[]);
    assert_eq!(driver.machine.outcome(), Some(Outcome::RollbackFailed), "it failed again");
}

#[test]
fn a_failed_stage_of_a_run_that_has_ended_is_tried_again_with_what_it_had_skipped() {
    let nodes = vec![
        node(0, &[], stage(vec![run("build")], Vec::new())),
        node(1, &[0], stage(vec![run("flaky")], Vec::new())),
        node(2, &[1], stage(vec![run("publish")], Vec::new())),
    ];
    let hooks = vec![on(HookEvent::Success, vec![run("good")]), on(HookEvent::Failure, vec![run("bad")])];
    let mut driver = play(&header(nodes, hooks), &["flaky"], &[]);
    assert_eq!(driver.machine.outcome(), Some(Outcome::Failed));
    signal(&mut driver, Signal::Retry { node: NodeId(0), by: "ann".into() });
    assert_eq!(driver.machine.outcome(), Some(Outcome::Failed), "a stage that succeeded is left alone");
    signal(&mut driver, Signal::Retry { node: NodeId(1), by: "ann".into() });
    go_on(&mut driver, &[], &[]);
    assert_eq!(driver.world.commands, ["build", "flaky failed", "bad", "flaky", "publish", "good"]);
    assert_eq!(driver.machine.outcome(), Some(Outcome::Succeeded));
}

/// A stage of a random plan: what it needs, how many steps, which of them fails, how often it is tried again, what its hook takes back.
type Random =
    (Vec<prop::sample::Index>, usize, Option<prop::sample::Index>, u32, HookEvent, Vec<prop::sample::Index>);

fn random_stage() -> impl Strategy<Value = Random> {
    let index = || any::<prop::sample::Index>();
    (
        prop::collection::vec(index(), 0..2),
        1_usize..3,
        prop::option::weighted(0.5, index()),
        0_u32..2,
        prop::sample::select(vec![
            HookEvent::Failure,
            HookEvent::Always,
            HookEvent::Cancel,
            HookEvent::RollbackFailed,
        ]),
        prop::collection::vec(index(), 0..3),
    )
}

proptest! {
    /// Whatever asks for whatever to be taken back: the run ends, everything is taken back at most once, and what one rollback takes
    /// back of finished stages goes newest first.
    #[test]
    fn any_rollbacks_in_hooks_come_to_an_end(
        stages in prop::collection::vec(random_stage(), 1..6),
        tail in prop::collection::vec(any::<prop::sample::Index>(), 0..3),
        failing_undo in prop::option::of(any::<prop::sample::Index>()),
        max_parallel in 1_u32..4,
        seed in any::<u64>(),
    ) {
        let count = stages.len();
        let of = |targets: &[prop::sample::Index]| -> Vec<u32> {
            targets.iter().map(|index| u32::try_from(index.index(count)).unwrap()).collect()
        };
        let mut failing = BTreeSet::new();
        let mut nodes = Vec::new();
        for (id, (needs, steps, fails, retries, event, takes_back)) in stages.iter().enumerate() {
            let needs: BTreeSet<u32> = match id {
                0 => BTreeSet::new(),
                _ => needs.iter().map(|need| u32::try_from(need.index(id)).unwrap()).collect(),
            };
            let mut list: Vec<Step> =
                (0..*steps).flat_map(|at| [run(&format!("do {id}.{at}")), undo(&format!("undo {id}.{at}"))]).collect();
            if let Some(at) = fails {
                failing.insert(format!("do {id}.{}", at.index(*steps)));
            }
            list.push(run(&format!("end {id}")));
            let mut hooks = vec![on(HookEvent::Always, vec![run("tell")])];
            if !takes_back.is_empty() {
                hooks.push(on(*event, vec![run("before"), rollback(&of(takes_back)), run("after")]));
            }
            let mut kind = stage(list, hooks);
            if let NodeKind::Stage(stage) = &mut kind {
                stage.retry.more = *retries;
            }
            let needs: Vec<u32> = needs.into_iter().collect();
            nodes.push(node(u32::try_from(id).unwrap(), &needs, kind));
        }
        if let Some(at) = failing_undo {
            failing.insert(format!("undo {}.0", at.index(count)));
        }
        let hooks = if tail.is_empty() { Vec::new() } else {
            vec![on(HookEvent::Always, vec![rollback(&of(&tail))]), on(HookEvent::RollbackFailed, vec![run("page")])]
        };
        let mut header = Arc::unwrap_or_clone(header(nodes, hooks));
        header.plan.max_parallel = max_parallel;
        let header = Arc::new(header);
        let mut driver = Driver::new(&header, World::default());
        driver.open();
        let mut random = seed | 1;
        for turn in 0..3_000 {
            prop_assert!(turn < 2_999, "it does not end");
            if driver.machine.outcome().is_some() {
                break;
            }
            let under_way: Vec<_> = driver.machine.in_flight().cloned().collect();
            if under_way.is_empty() {
                prop_assert!(driver.turn(&mut |_, _, _| None), "it stands still: {:#?}", driver.journal);
                continue;
            }
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let action = &under_way[usize::try_from(random >> 33).unwrap() % under_way.len()];
            let result = match &action.kind {
                ActionKind::Run(_) if driver.machine.is_cancel_asked(action.id) => ActionResult::Cancelled,
                ActionKind::Run(run) if failing.contains(&run.script) => {
                    ActionResult::Failed(Fault::new("command-failed", "no"))
                }
                _ => driver.world.perform(action),
            };
            driver.now_ms += 10;
            let at_ms = driver.now_ms;
            driver.feed(Record::Returned { at_ms, action: action.id, result });
        }
        let undone: Vec<&String> = driver.world.commands.iter().filter(|said| said.starts_with("undo")).collect();
        let once: BTreeSet<&String> = undone.iter().copied().collect();
        prop_assert_eq!(once.len(), undone.len(), "twice: {:?}", driver.world.commands);
        for said in once {
            let done = said.replace("undo", "do");
            prop_assert!(driver.world.commands.contains(&done), "{said} was never done");
        }
        // The journal alone gives the same run.
        let mut folded = cdpipe_machine_of(&header);
        for record in &driver.journal {
            folded.apply(record);
        }
        prop_assert_eq!(folded.outcome(), driver.machine.outcome());
    }
}

fn cdpipe_machine_of(header: &Arc<RunHeader>) -> crate::Machine {
    crate::Machine::new(Arc::clone(header))
}
