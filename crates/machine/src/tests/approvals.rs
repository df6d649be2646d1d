//! What an approval counts for: people, not names; and what was seen when it was given, nothing else.

use super::plans::{deploy, header, node, run, stage, step};
use super::world::{Driver, World, spec_of};
use cdpipe_model::action::{ActionKind, ActionResult, Answer};
use cdpipe_model::plan::{Approval, Gate, NodeKind, Output, StepKind};
use cdpipe_model::record::{Record, RunHeader, Signal};
use cdpipe_model::release::{Artifact, ReleaseSpec};
use cdpipe_model::strategy::Strategy;

use cdpipe_model::{NodeId, Outcome, Type};
use std::collections::BTreeMap;
use std::sync::Arc;

fn gate(by: &[&str], quorum: u32) -> NodeKind {
    let by = by.iter().map(|name| (*name).to_owned()).collect();
    NodeKind::Gate(Box::new(Gate {
        approvals: vec![Approval { by, quorum, expires_ms: Some(600_000), always: false }],
        metrics: Vec::new(),
        checks: Vec::new(),
        windows: Vec::new(),
        timeout_ms: None,
        hooks: Vec::new(),
    }))
}

fn approve(driver: &mut Driver, by: &str, person: &str, effect_hash: &str) {
    let at_ms = driver.now_ms;
    let signal = Signal::Approve {
        node: NodeId(0),
        by: by.into(),
        person: person.into(),
        effect_hash: effect_hash.into(),
    };
    driver.feed(Record::Signalled { at_ms, signal });
}

/// Until the run waits for a person or has ended.
fn go_on(driver: &mut Driver) {
    while driver.machine.waiting().is_none() && driver.turn(&mut |_, _, _| None) {}
}

fn hashes(driver: &Driver) -> Vec<String> {
    let asked = driver.journal.iter().filter_map(|record| match record {
        Record::ApprovalAsked { effect_hash, .. } => Some(effect_hash.clone()),
        _ => None,
    });
    asked.collect()
}

#[test]
fn two_people_of_one_group_are_two_and_one_person_of_two_groups_is_one() {
    let header = header(
        vec![node(0, &[], gate(&["ops", "dev"], 2)), node(1, &[0], stage(vec![run("go")], Vec::new()))],
        Vec::new(),
    );
    let mut driver = Driver::new(&header, World::default());
    driver.open();
    approve(&mut driver, "ops", "ann", "");
    approve(&mut driver, "dev", "ann", "");
    assert_eq!(driver.machine.waiting().as_deref(), Some("approval of n0 by ops, dev"), "she is one person");
    approve(&mut driver, "ops", "bob", "");
    go_on(&mut driver);
    assert_eq!(driver.machine.outcome(), Some(Outcome::Succeeded));
}

#[test]
fn an_approval_of_what_is_no_longer_asked_does_not_count() {
    let header = header(
        vec![node(0, &[], gate(&[], 1)), node(1, &[0], stage(vec![run("go")], Vec::new()))],
        Vec::new(),
    );
    let mut driver = Driver::new(&header, World::default());
    driver.open();
    approve(&mut driver, "ann", "", "sha256:of-something-else");
    assert!(driver.machine.waiting().is_some());
    let asked = hashes(&driver).remove(0);
    approve(&mut driver, "ann", "", &asked);
    go_on(&mut driver);
    assert_eq!(driver.machine.outcome(), Some(Outcome::Succeeded));
}

#[test]
fn an_output_that_comes_later_voids_an_approval_that_was_given_before() {
    let mut build = stage(vec![run("build")], Vec::new());
    if let NodeKind::Stage(stage) = &mut build {
        stage.outputs = vec![Output { name: "digest".into(), ty: Type::Str }];
    }
    // The stage behind the gate needs the build, the gate does not; another stage has nothing to do with either.
    let nodes = vec![
        node(0, &[], gate(&["ann", "bob"], 2)),
        node(1, &[], build),
        node(2, &[0, 1], stage(vec![run("go")], Vec::new())),
        node(3, &[], stage(vec![run("beside")], Vec::new())),
    ];
    let mut driver = Driver::new(&header(nodes, Vec::new()), World::default());
    driver.open();
    approve(&mut driver, "ann", "", "");
    let mut end = |script: &str, outputs: BTreeMap<String, String>| {
        let is_it = |kind: &ActionKind| matches!(kind, ActionKind::Run(run) if run.script == script);
        let action = driver.machine.in_flight().find(|action| is_it(&action.kind)).unwrap().id;
        let at_ms = driver.now_ms;
        driver.feed(Record::Returned {
            at_ms,
            action,
            result: ActionResult::Done(Answer::Exited { outputs }),
        });
        hashes(&driver).len()
    };
    assert_eq!(end("beside", BTreeMap::new()), 1, "it goes into nothing that is let pass");
    assert_eq!(end("build", BTreeMap::from([("digest".into(), "abc".into())])), 2);
    assert_eq!(
        driver.machine.waiting().as_deref(),
        Some("2 approvals of n0 by ann, bob"),
        "ann is asked again"
    );
    approve(&mut driver, "ann", "", "");
    approve(&mut driver, "bob", "", "");
    go_on(&mut driver);
    assert_eq!(driver.machine.outcome(), Some(Outcome::Succeeded));
}

fn gated_deploy() -> (Arc<RunHeader>, ReleaseSpec) {
    let deploy = step(StepKind::Deploy(Box::new(deploy("v2", 2, Strategy::Recreate))));
    let behind = |deploy| node(1, &[0], stage(vec![deploy], Vec::new()));
    let header = header(vec![node(0, &[], gate(&["ann"], 1)), behind(deploy.clone())], Vec::new());
    let free = super::plans::header(vec![node(0, &[], stage(vec![deploy], Vec::new()))], Vec::new());
    let (stable, _) = spec_of(&free, &World::default());
    (header, stable)
}

#[test]
fn an_approval_is_void_when_something_else_serves_by_the_time_the_stage_begins() {
    let (header, stable) = gated_deploy();
    let other = ReleaseSpec {
        version: "v9".into(),
        artifact: Artifact::Command { argv: vec!["./web-v9".into()], path: None, digest: None },
        ..stable.clone()
    };
    for changed in [false, true] {
        let mut world = World::with_stable(&stable, 2);
        world.closing_allowed = true;
        let mut driver = Driver::new(&header, world);
        driver.open();
        go_on(&mut driver);
        assert!(driver.machine.waiting().is_some());
        if changed {
            // Another pipeline deploys v9 there, before or after ann says yes.
            driver.world = World::with_stable(&other, 2);
            driver.world.closing_allowed = true;
        }
        approve(&mut driver, "ann", "", "");
        go_on(&mut driver);
        if !changed {
            assert_eq!(driver.machine.outcome(), Some(Outcome::Succeeded));
            continue;
        }
        assert_eq!(driver.machine.outcome(), Some(Outcome::Failed));
        let reason = driver.journal.iter().find_map(|record| match record {
            Record::StepFinished { reason: Some(reason), .. } => Some(reason.clone()),
            _ => None,
        });
        assert_eq!(
            reason.unwrap().message,
            "the approval of n0 is void: it was given while v1 served in here for web, and now it is v9"
        );
        assert_eq!(driver.world.serving(), vec![(other.id(), 10_000, 2)], "nothing was changed");
        assert!(!driver.world.locked);
    }
}
