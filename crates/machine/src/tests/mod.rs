//! The machine against a small simulated world: invariants after every effect, a fault at every action, a fold at every position.

mod apply;
mod approvals;
mod expiry;
mod messages;
mod plans;
mod properties;
mod rollback;
mod rolling;
mod timers;
mod world;

use cdpipe_model::action::{ActionKind, ActionResult};
use cdpipe_model::expr::{Expr, Op, Subject};
use cdpipe_model::plan::{
    Approval, Gate, Hook, HookEvent, NodeKind, Retry, Rule, RuleAction, StepKind, Watch,
};
use cdpipe_model::record::{Record, RunHeader, Signal};
use cdpipe_model::release::ReleaseSpec;
use cdpipe_model::strategy::{Canary, CanaryStep, Hold, Order, Sticky, Strategy};
use cdpipe_model::{Fault, NodeId, Outcome, Value};
use plans::{deploy, header, node, one_deploy, run, stage, step, strategies};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use world::{Driver, World, prepared, spec_of};

#[test]
fn every_strategy_brings_the_candidate_in() {
    for strategy in strategies() {
        for replicas in [1, 3, 6] {
            let (header, world, stable, candidate) = prepared(strategy.clone(), replicas);
            let mut driver = Driver::new(&header, world);
            assert_eq!(driver.run(&mut |_, _, _| None), Outcome::Succeeded, "{strategy:?}");
            assert_eq!(driver.world.serving(), vec![(candidate.id(), 10_000, replicas as usize)]);
            let canaries = driver.world.releases.iter().flat_map(|release| &release.instances);
            assert!(
                !canaries.into_iter().any(|instance| instance.id.0.starts_with("canary-")),
                "they end with the promotion"
            );
            let old = driver.world.releases.iter().find(|release| release.id == stable.id());
            assert!(old.is_none_or(|old| old.instances.is_empty()), "the old release is gone");
            assert_eq!(driver.world.commands, ["smoke", "validate"]);
            assert!(!driver.world.locked);
            let floor = match &strategy {
                Strategy::Rolling(rolling) if rolling.order == Order::StopFirst => replicas.saturating_sub(2),
                Strategy::Recreate => 0,
                _ => replicas,
            };
            // A canary's share is served by fewer, but all of stable stays until the promotion.
            assert!(driver.world.fewest_serving.unwrap() >= floor as usize, "{strategy:?} {replicas}");
        }
    }
}

#[test]
fn a_first_deploy_needs_no_stable_and_its_failure_leaves_nothing() {
    for strategy in strategies() {
        let header = one_deploy(strategy.clone(), 2);
        let mut driver = Driver::new(&header, World { closing_allowed: true, ..World::default() });
        assert_eq!(driver.run(&mut |_, _, _| None), Outcome::Succeeded, "{strategy:?}");
        assert_eq!(driver.world.serving().len(), 1);

        let world =
            World { closing_allowed: true, failing_command: Some("validate".into()), ..World::default() };
        let mut driver = Driver::new(&header, world);
        assert_eq!(driver.run(&mut |_, _, _| None), Outcome::Failed, "{strategy:?}");
        assert!(driver.world.releases.is_empty(), "{:?}", driver.world.releases);
        assert!(driver.world.serving().is_empty());
    }
}

#[test]
fn a_release_that_serves_already_is_left_alone() {
    for strategy in strategies() {
        let header = one_deploy(strategy, 3);
        let (_, candidate) = spec_of(&header, &World::default());
        let mut driver = Driver::new(&header, World::with_stable(&candidate, 3));
        let before = driver.world.serving();
        assert_eq!(
            driver.run(&mut |_, action, _| {
                assert!(
                    !action.kind.is_effect()
                        || matches!(action.kind, ActionKind::Lock { .. } | ActionKind::Unlock { .. }),
                    "{action:?}"
                );
                None
            }),
            Outcome::Succeeded
        );
        assert_eq!(driver.world.serving(), before);
    }
}

#[test]
fn whatever_action_fails_the_end_is_the_new_state_or_the_old_one() {
    for strategy in strategies() {
        let (header, world, stable, candidate) = prepared(strategy.clone(), 3);
        let mut clean = Driver::new(&header, world.clone());
        clean.run(&mut |_, _, _| None);
        for failing in 1..=clean.actions {
            let mut driver = Driver::new(&header, world.clone());
            let mut failed_unlock = false;
            let outcome = driver.run(&mut |at, action, _| {
                if at != failing {
                    return None;
                }
                failed_unlock = matches!(action.kind, ActionKind::Unlock { .. });
                match action.kind {
                    // A measurement that fails is no data, which holds; it is not a failure.
                    ActionKind::Measure { .. } => None,
                    _ => Some(ActionResult::Failed(Fault::new("test", "injected"))),
                }
            });
            let serving = driver.world.serving();
            let context = format!("{strategy:?}, action {failing}: {outcome}, {serving:?}");
            match outcome {
                Outcome::Succeeded => assert_eq!(serving, vec![(candidate.id(), 10_000, 3)], "{context}"),
                Outcome::RolledBack | Outcome::Failed => {
                    assert_eq!(serving, vec![(stable.id(), 10_000, 3)], "{context}");
                    assert!(
                        driver.world.releases.iter().all(|r| r.id == stable.id() || r.instances.is_empty()),
                        "{context}"
                    );
                }
                other => panic!("{other}: {context}"),
            }
            assert!(failed_unlock || !driver.world.locked, "{context}: a lock stays");
        }
    }
}

/// Done, and the answer never came: the router is asked what it does before the way back sets a table on it.
#[test]
fn a_route_whose_answer_is_lost_is_looked_at_before_the_way_back() {
    for strategy in strategies() {
        let (header, world, stable, _) = prepared(strategy.clone(), 3);
        let mut clean = Driver::new(&header, world.clone());
        let mut routes = 0;
        clean.run(&mut |_, action, _| {
            routes += u32::from(matches!(action.kind, ActionKind::Route { .. }));
            None
        });
        for losing in 1..=routes {
            let mut driver = Driver::new(&header, world.clone());
            let mut route = 0;
            let outcome = driver.run(&mut |_, action, world| {
                route += u32::from(matches!(action.kind, ActionKind::Route { .. }));
                if route != losing || !matches!(action.kind, ActionKind::Route { .. }) {
                    return None;
                }
                world.perform(action);
                Some(ActionResult::TimedOut(Fault::new("timed-out", "the answer was lost")))
            });
            let context = format!("{strategy:?}, route {losing} of {routes}");
            assert_eq!(outcome, Outcome::RolledBack, "{context}");
            assert_eq!(driver.world.serving(), vec![(stable.id(), 10_000, 3)], "{context}");
        }
    }
}

#[test]
fn a_cancel_at_any_moment_goes_back() {
    for strategy in strategies() {
        let (header, world, stable, candidate) = prepared(strategy.clone(), 2);
        let mut clean = Driver::new(&header, world.clone());
        clean.run(&mut |_, _, _| None);
        for at in 1..clean.actions {
            let mut driver = Driver::new(&header, world.clone());
            driver.open();
            while driver.actions < at && driver.turn(&mut |_, _, _| None) {}
            let now_ms = driver.now_ms;
            driver.feed(Record::Signalled {
                at_ms: now_ms,
                signal: Signal::Cancel { by: "me".into(), reason: String::new() },
            });
            while driver.turn(&mut |_, _, _| None) {}
            let serving = driver.world.serving();
            match driver.machine.outcome() {
                Some(Outcome::Cancelled) => {
                    assert_eq!(serving, vec![(stable.id(), 10_000, 2)], "{strategy:?} {at}")
                }
                Some(Outcome::Succeeded) => {
                    assert_eq!(serving, vec![(candidate.id(), 10_000, 2)], "{strategy:?} {at}")
                }
                other => panic!("{other:?} {strategy:?} {at}"),
            }
            assert!(!driver.world.locked);
        }
    }
}

#[test]
fn a_bad_release_goes_back_by_itself() {
    for strategy in strategies() {
        let (header, mut world, stable, candidate) = prepared(strategy.clone(), 2);
        world.error_rate.insert(candidate.id(), 9.0);
        let mut driver = Driver::new(&header, world);
        assert_eq!(driver.run(&mut |_, _, _| None), Outcome::RolledBack, "{strategy:?}");
        assert_eq!(driver.world.serving(), vec![(stable.id(), 10_000, 2)]);
        let reason = driver.journal.iter().rev().find_map(|record| match record {
            Record::NodeFinished { reason, .. } => reason.clone(),
            _ => None,
        });
        let text = reason.unwrap().message;
        assert!(text.contains("candidate.error_rate was 9%"), "{text}");
    }
}

/// The engine was dead, or the machine asleep, for two minutes in the middle of a soak: all of it is watched again.
#[test]
fn soak_time_counts_only_while_it_is_watched() {
    const SOAK_MS: u64 = 20_000;
    let step = CanaryStep { weight_bp: 5_000, hold: Hold::For { ms: SOAK_MS } };
    let strategy = Strategy::Canary(Canary {
        instances: None,
        env: BTreeMap::new(),
        rules: Vec::new(),
        steps: vec![step],
        sticky: Sticky::None,
    });
    for gap_ms in [0, 120_000] {
        let (header, world, _, candidate) = prepared(strategy.clone(), 2);
        let mut driver = Driver::new(&header, world);
        driver.open();
        let share = |driver: &Driver| {
            let serving = driver.world.serving();
            serving.iter().find(|(id, ..)| *id == candidate.id()).map_or(0, |(_, weight_bp, _)| *weight_bp)
        };
        let until = |driver: &mut Driver, holds: &dyn Fn(&Driver) -> bool| {
            while !holds(driver) {
                assert!(driver.turn(&mut |_, _, _| None), "it ended or stands still");
            }
        };
        until(&mut driver, &|driver| share(driver) == 5_000);
        let routed_ms = driver.now_ms;
        until(&mut driver, &|driver| driver.now_ms >= routed_ms + SOAK_MS / 2);
        driver.now_ms += gap_ms;
        let back_ms = driver.now_ms;
        until(&mut driver, &|driver| share(driver) == 10_000);
        let watched_again_ms = driver.now_ms - back_ms;
        if gap_ms == 0 {
            assert!(watched_again_ms < SOAK_MS, "{watched_again_ms}");
        } else {
            assert!(watched_again_ms >= SOAK_MS, "promoted after {watched_again_ms} ms of watching");
        }
    }
}

#[test]
fn a_watch_that_stands_alone_starts_again_after_a_gap() {
    let watch = plans::watch();
    let over = Expr::Value(Value::Percent(5.0));
    let when = Expr::Binary(Op::Gt, Box::new(plans::metric(Subject::Service)), Box::new(over));
    let rules = vec![Rule { action: RuleAction::Fail, when, ..watch.rules[0].clone() }];
    let watch = Watch { for_ms: Some(20_000), rules, ..watch };
    let header =
        header(vec![node(0, &[], stage(vec![step(StepKind::Watch(watch))], Vec::new()))], Vec::new());
    for (gap_ms, at_least_ms) in [(0, 9_000), (120_000, 20_000)] {
        let mut driver = Driver::new(&header, World::default());
        driver.open();
        while driver.now_ms < 11_000 {
            assert!(driver.turn(&mut |_, _, _| None));
        }
        driver.now_ms += gap_ms;
        let back_ms = driver.now_ms;
        while driver.turn(&mut |_, _, _| None) {}
        assert_eq!(driver.machine.outcome(), Some(Outcome::Succeeded));
        let watched_ms = driver.now_ms - back_ms;
        assert!((at_least_ms..at_least_ms + 5_000).contains(&watched_ms), "{gap_ms}: {watched_ms}");
    }
}

#[test]
fn silence_holds_and_then_goes_back() {
    let (header, mut world, stable, _) = prepared(strategies().remove(3), 2);
    world.no_data = true;
    let mut driver = Driver::new(&header, world);
    assert_eq!(driver.run(&mut |_, _, _| None), Outcome::RolledBack);
    assert_eq!(driver.world.serving(), vec![(stable.id(), 10_000, 2)]);
    assert!(driver.now_ms > 10_000, "it held first");
}

#[test]
fn whatever_action_fails_once_on_the_way_back_it_gets_there() {
    for strategy in strategies() {
        let (header, mut world, stable, _) = prepared(strategy.clone(), 3);
        world.failing_command = Some("smoke".into());
        let mut clean = Driver::new(&header, world.clone());
        let mut undone_from = 0;
        let outcome = clean.run(&mut |at, action, _| {
            if matches!(action.kind, ActionKind::Run(_)) {
                undone_from = at + 1;
            }
            None
        });
        assert_eq!(outcome, Outcome::RolledBack, "{strategy:?}");
        assert!(undone_from > 0 && undone_from < clean.actions, "{strategy:?}");
        for failing in undone_from..=clean.actions {
            let mut driver = Driver::new(&header, world.clone());
            let outcome = driver.run(&mut |at, action, _| match action.kind {
                ActionKind::Measure { .. } => None,
                _ => (at == failing).then(|| ActionResult::Failed(Fault::new("test", "injected for good"))),
            });
            let context = format!("{strategy:?}, action {failing}");
            assert_eq!(outcome, Outcome::RolledBack, "{context}");
            assert_eq!(driver.world.serving(), vec![(stable.id(), 10_000, 3)], "{context}");
        }
    }
}

#[test]
fn an_undo_that_fails_leaves_the_candidate_and_says_so() {
    // Recreate: stable was stopped and does not come back.
    let (header, mut world, _, _) = prepared(Strategy::Recreate, 2);
    world.failing_command = Some("smoke".into());
    world.never_ready = None;
    let mut driver = Driver::new(&header, world);
    let outcome = driver.run(&mut |_, action, world| {
        if let ActionKind::Run(_) = action.kind {
            world.never_ready = Some("v1".into());
        }
        None
    });
    assert_eq!(outcome, Outcome::RollbackFailed);
    assert!(!driver.world.locked);
}

#[test]
fn a_fold_at_any_position_is_the_same_run() {
    for strategy in strategies() {
        let (header, mut world, stable, candidate) = prepared(strategy.clone(), 3);
        for bad in [false, true] {
            if bad {
                world.error_rate.insert(candidate.id(), 9.0);
            }
            let mut clean = Driver::new(&header, world.clone());
            let expected = clean.run(&mut |_, _, _| None);
            for crash_at in 1..clean.actions {
                let mut first = Driver::new(&header, world.clone());
                first.open();
                while first.actions < crash_at && first.turn(&mut |_, _, _| None) {}
                // The engine dies here. What was in flight may or may not have been done.
                for done in [false, true] {
                    let mut second = Driver::new(&header, first.world.clone());
                    if done && let Some(action) = first.machine.in_flight().next().cloned() {
                        // Locks are the lease's business; a second take of our own is a renewal.
                        if !matches!(action.kind, ActionKind::Lock { .. } | ActionKind::Run(_)) {
                            second.world.perform(&action);
                        }
                    }
                    for record in &first.journal {
                        second.machine.apply(record);
                    }
                    assert_eq!(
                        first.machine.in_flight().collect::<Vec<_>>(),
                        second.machine.in_flight().collect::<Vec<_>>()
                    );
                    second.now_ms = first.now_ms + 60_000;
                    second.feed(Record::Opened {
                        at_ms: first.now_ms + 60_000,
                        by: "again".into(),
                        resumed: true,
                    });
                    let mut turns = 0;
                    while second.turn(&mut |_, _, _| None) {
                        turns += 1;
                        assert!(turns < 5_000, "{strategy:?} crash at {crash_at}");
                    }
                    assert_eq!(
                        second.machine.outcome(),
                        Some(expected),
                        "{strategy:?} crash at {crash_at} {done}"
                    );
                    let serves = if bad { stable.id() } else { candidate.id() };
                    assert_eq!(second.world.serving(), vec![(serves, 10_000, 3)], "{strategy:?} {crash_at}");
                }
            }
        }
    }
}

#[test]
fn stages_follow_the_graph_and_its_limit() {
    let nodes = vec![
        node(0, &[], stage(vec![run("a")], Vec::new())),
        node(1, &[0], stage(vec![run("b")], Vec::new())),
        node(2, &[0], stage(vec![run("fails")], Vec::new())),
        node(3, &[1, 2], stage(vec![run("never")], Vec::new())),
        node(4, &[1], stage(vec![run("c")], Vec::new())),
    ];
    let on = |event: HookEvent, script: &str| Hook { events: vec![event], steps: vec![run(script)] };
    let header = header(
        nodes,
        vec![on(HookEvent::Success, "no"), on(HookEvent::Failure, "hook"), on(HookEvent::Always, "always")],
    );
    let world = World { failing_command: Some("fails".into()), ..World::default() };
    let mut driver = Driver::new(&header, world);
    assert_eq!(driver.run(&mut |_, _, _| None), Outcome::Failed);
    let ran: BTreeSet<_> = driver.world.commands.iter().map(String::as_str).collect();
    assert_eq!(ran, BTreeSet::from(["a", "b", "fails", "c", "hook", "always"]));
    assert_eq!(driver.machine.node_outcome(NodeId(3)), Some(Outcome::Skipped));
}

#[test]
fn a_gate_waits_for_its_people() {
    let gate = NodeKind::Gate(Box::new(Gate {
        approvals: vec![Approval {
            by: vec!["ops".into(), "dev".into()],
            quorum: 2,
            expires_ms: Some(60_000),
            always: false,
        }],
        metrics: Vec::new(),
        checks: Vec::new(),
        windows: Vec::new(),
        timeout_ms: None,
        hooks: Vec::new(),
    }));
    let header =
        header(vec![node(0, &[], gate), node(1, &[0], stage(vec![run("go")], Vec::new()))], Vec::new());
    let mut driver = Driver::new(&header, World::default());
    driver.open();
    assert_eq!(driver.machine.waiting().as_deref(), Some("2 approvals of n0 by ops, dev"));
    let approve = |by: &str| Record::Signalled {
        at_ms: 2_000,
        signal: Signal::Approve {
            node: NodeId(0),
            by: by.into(),
            person: String::new(),
            effect_hash: String::new(),
        },
    };
    driver.feed(approve("mallory"));
    driver.feed(approve("ops"));
    driver.feed(approve("ops"));
    assert_eq!(driver.machine.waiting().as_deref(), Some("approval of n0 by ops, dev"));
    driver.feed(approve("dev"));
    while driver.turn(&mut |_, _, _| None) {}
    assert_eq!(driver.machine.outcome(), Some(Outcome::Succeeded));
    assert_eq!(driver.world.commands, ["go"]);

    let mut driver = Driver::new(&header, World::default());
    assert_eq!(driver.run(&mut |_, _, _| None), Outcome::TimedOut, "nobody came");
    assert!(driver.world.commands.is_empty());
}

/// A stage that migrates and deploys, a later one that fails, and a hook that takes the first one back.
fn taken_back_later(strategy: &Strategy) -> (Arc<RunHeader>, World, ReleaseSpec) {
    let deploy = step(StepKind::Deploy(Box::new(deploy("v2", 2, strategy.clone()))));
    let undo = step(StepKind::Undo { steps: vec![run("undo migration")] });
    let first = stage(vec![run("migrate"), undo, deploy], Vec::new());
    let nodes = vec![node(0, &[], first), node(1, &[0], stage(vec![run("e2e")], Vec::new()))];
    let hook = Hook {
        events: vec![HookEvent::Failure],
        steps: vec![step(StepKind::Rollback { stage: NodeId(0), more: Vec::new() }), run("tell")],
    };
    let header = header(nodes, vec![hook]);
    let (stable, _) = spec_of(&header, &World::default());
    let mut world = World::with_stable(&stable, 2);
    world.closing_allowed = true;
    world.failing_command = Some("e2e".into());
    (header, world, stable)
}

#[test]
fn whatever_action_fails_once_when_a_finished_stage_is_taken_back_it_gets_there() {
    for strategy in strategies() {
        let (header, world, stable) = taken_back_later(&strategy);
        let mut clean = Driver::new(&header, world.clone());
        let mut undone_from = 0;
        let outcome = clean.run(&mut |at, action, _| {
            if let ActionKind::Run(run) = &action.kind
                && run.script.contains("e2e")
            {
                undone_from = at + 1;
            }
            None
        });
        assert_eq!(outcome, Outcome::Failed, "{strategy:?}");
        assert!(undone_from > 0 && undone_from < clean.actions, "{strategy:?}");
        let mut kinds = BTreeSet::new();
        for failing in undone_from..=clean.actions {
            let mut failed = String::new();
            let mut driver = Driver::new(&header, world.clone());
            let outcome = driver.run(&mut |at, action, _| match action.kind {
                // A command of the user's fails for good.
                ActionKind::Run(_) => None,
                _ => (at == failing).then(|| {
                    let kind = format!("{:?}", action.kind);
                    failed = kind.split(' ').next().unwrap_or_default().to_owned();
                    ActionResult::Failed(Fault::new("test", "injected for good"))
                }),
            });
            let context = format!("{strategy:?}, action {failing}");
            assert_eq!(outcome, Outcome::Failed, "{context}");
            assert_eq!(driver.machine.node_outcome(NodeId(0)), Some(Outcome::RolledBack), "{context}");
            assert_eq!(driver.world.serving(), vec![(stable.id(), 10_000, 2)], "{context}");
            // A lock that can't be given back ends with its lease.
            assert!(!driver.world.locked || failed == "Unlock", "{context}");
            kinds.insert(failed);
        }
        for kind in ["Lock", "Observe", "Route", "Unlock"] {
            assert!(kinds.contains(kind), "{kind} of {strategy:?} was not made to fail: {kinds:?}");
        }
    }
}

#[test]
fn a_later_failure_takes_a_finished_stage_back() {
    for strategy in strategies() {
        let (header, world, stable) = taken_back_later(&strategy);
        let mut driver = Driver::new(&header, world);
        assert_eq!(driver.run(&mut |_, _, _| None), Outcome::Failed, "{strategy:?}");
        assert_eq!(driver.world.serving(), vec![(stable.id(), 10_000, 2)], "{strategy:?}");
        assert_eq!(driver.machine.node_outcome(NodeId(0)), Some(Outcome::RolledBack));
        let tail = &driver.world.commands[driver.world.commands.len() - 2..];
        assert_eq!(tail, ["undo migration", "tell"], "{strategy:?}");
        assert!(!driver.world.locked);
    }
}

#[test]
fn a_step_is_tried_again_as_often_as_it_says() {
    let mut flaky = run("flaky");
    flaky.retry = Retry { more: 2, delay_ms: 1_000, max_delay_ms: 10_000 };
    let header = header(vec![node(0, &[], stage(vec![flaky], Vec::new()))], Vec::new());
    let mut left = 2;
    let mut driver = Driver::new(&header, World::default());
    let outcome = driver.run(&mut |_, action, _| {
        matches!(action.kind, ActionKind::Run(_)).then_some(())?;
        left -= 1;
        (left >= 0).then(|| ActionResult::Failed(Fault::new("command-failed", "no")))
    });
    assert_eq!(outcome, Outcome::Succeeded);
    assert!(driver.now_ms >= 1_000 + 1_000 + 2_000, "1 s, then 2 s");
    assert_eq!(driver.journal.iter().filter(|r| matches!(r, Record::StepStarted { .. })).count(), 3);
}

#[test]
fn ten_thousand_stages_cost_little_each() {
    let nodes = (0..10_000).map(|id| {
        let needs: Vec<u32> = if id >= 10 { vec![id - 10, id / 2] } else { Vec::new() };
        node(id, &needs, stage(vec![run("true")], Vec::new()))
    });
    let header = header(nodes.collect(), Vec::new());
    let mut driver = Driver::new(&header, World::default());
    driver.open();
    let mut turns = 0_u64;
    while driver.turn(&mut |_, _, _| None) {
        turns += 1;
    }
    assert_eq!(driver.machine.outcome(), Some(Outcome::Succeeded));
    assert_eq!(turns, 10_000);
    // Started, step started, intent, returned, step finished, node finished.
    assert_eq!(driver.journal.len(), 60_000 + 2);
}
