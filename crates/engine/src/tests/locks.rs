//! Locks of a run: order, renewal, loss, and what a resume takes back.

use super::resume::ensure;
use super::script::{Script, action, finished, intent, run, step};
use super::world::{Harness, World};
use crate::RunEnd;
use cdpipe_model::action::{Action, ActionKind, ActionResult, Answer};
use cdpipe_model::plan::LockKey;
use cdpipe_model::ports::LockOwner;
use cdpipe_model::record::Record;
use cdpipe_model::{ActionId, EnvName, Fault, Outcome, RunId, ServiceName};
use std::time::Duration;

fn key() -> LockKey {
    LockKey::Service { environment: EnvName::from("prod"), service: ServiceName::from("web") }
}

fn on(node: u32, action: Action) -> Action {
    Action { step: step(node), ..action }
}

fn lock(id: u64, keys: Vec<LockKey>) -> Action {
    Action { deadline_ms: 600_000, ..action(id, ActionKind::Lock { keys, lease_ms: 30_000 }) }
}

fn unlock(id: u64, keys: Vec<LockKey>) -> Action {
    action(id, ActionKind::Unlock { keys })
}

fn set_holder(world: &World, run: &str, epoch: u64) {
    world.locks.lock().unwrap().insert(key(), (RunId::from(run), epoch));
}

/// One action after the other, each on its node.
fn in_turn(mut actions: Vec<Action>) -> Script {
    actions.reverse();
    Script::new(move |input| match input {
        Record::Opened { .. } | Record::Returned { .. } => match actions.pop() {
            Some(action) => vec![intent(action)],
            None => vec![finished()],
        },
        _ => Vec::new(),
    })
}

#[tokio::test(start_paused = true)]
async fn a_lock_is_held_renewed_and_fences_what_is_done_under_it() {
    let harness = Harness::new();
    let keys = || vec![key(), LockKey::Named("db".into())];
    let actions =
        vec![lock(1, keys()), run(2, "sleep 25000"), ensure(3, "web"), unlock(4, keys()), ensure(5, "web")];
    set_holder(&harness.world, "", 6);
    assert_eq!(harness.drive(in_turn(actions)).await, RunEnd::Finished(Outcome::Succeeded));
    assert_eq!(harness.results()[0].1, ActionResult::Done(Answer::Locked { epoch: 7 }));
    assert_eq!(
        harness.world.done(),
        [
            "lock epoch 7",
            "sleep 25000 [r1/2]",
            "lock epoch 7",
            "lock epoch 7",
            "slept 25000",
            "ensure 2 of web epoch 7",
            "unlock",
            "ensure 2 of web epoch 0",
        ]
    );
    assert_eq!(harness.locks.holder("db"), None);
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_lock_gets_it_when_it_is_free_and_gives_up_at_its_deadline() {
    let harness = Harness::new();
    set_holder(&harness.world, "r0", 1);
    let world = std::sync::Arc::clone(&harness.world);
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(40)).await;
        set_holder(&world, "", 1);
    });
    harness.drive(in_turn(vec![lock(1, vec![key()])])).await;
    assert_eq!(harness.results()[0].1, ActionResult::Done(Answer::Locked { epoch: 2 }));
    assert_eq!(harness.elapsed_ms(), 40_000);

    let harness = Harness::new();
    set_holder(&harness.world, "r0", 1);
    let named = LockKey::Named("db".into());
    harness.drive(in_turn(vec![lock(1, vec![named, key()])])).await;
    let ActionResult::TimedOut(fault) = &harness.results()[0].1 else { panic!() };
    assert!(fault.message.contains("not free in time: run r0 holds it"), "{fault}");
    assert_eq!(harness.locks.holder("db"), None, "the first of the two was given back");
}

#[tokio::test(start_paused = true)]
async fn two_stages_of_one_run_do_not_hold_one_lock_together() {
    let harness = Harness::new();
    let named = || vec![LockKey::Named("db".into())];
    let mut ended = 0;
    let script = Script::new(move |input| match input {
        Record::Opened { .. } => vec![intent(on(0, lock(1, named()))), intent(on(1, lock(2, named())))],
        Record::Returned { action: ActionId(1), .. } => vec![intent(on(0, run(3, "sleep 3000")))],
        Record::Returned { action: ActionId(3), .. } => vec![intent(on(0, unlock(5, named())))],
        Record::Returned { action: ActionId(2), .. } => vec![intent(on(1, run(4, "sleep 2000")))],
        Record::Returned { action: ActionId(4), .. } => vec![intent(on(1, unlock(6, named())))],
        Record::Returned { .. } => {
            ended += 1;
            if ended == 2 { vec![finished()] } else { Vec::new() }
        }
        _ => Vec::new(),
    });
    assert_eq!(harness.drive(script).await, RunEnd::Finished(Outcome::Succeeded));
    assert_eq!(
        harness.world.done(),
        ["sleep 3000 [r1/3]", "slept 3000", "sleep 2000 [r1/4]", "slept 2000"],
        "one after the other"
    );
}

#[tokio::test(start_paused = true)]
async fn runs_wait_in_the_order_in_which_they_came() {
    use crate::NamedLocks;
    let harness = Harness::new();
    let earlier = LockOwner { run: RunId::from("r0"), who: "bob@example".into(), pid: 1 };
    harness.locks.line_up("service/prod/web", &earlier).await.unwrap();
    let locks = std::sync::Arc::clone(&harness.locks);
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(5)).await;
        locks.leave("service/prod/web", &earlier).await;
    });
    harness.drive(in_turn(vec![lock(1, vec![key()])])).await;
    assert_eq!(harness.elapsed_ms(), 5_000, "the lock was free all the while");
}

#[tokio::test(start_paused = true)]
async fn a_lock_that_is_lost_stops_its_stage_and_no_other() {
    let harness = Harness::new();
    let world = std::sync::Arc::clone(&harness.world);
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(12)).await;
        set_holder(&world, "r9", 5);
    });
    let script = Script::new(|input| match input {
        Record::Opened { .. } => vec![intent(lock(1, vec![key()])), intent(on(1, run(2, "sleep 50000")))],
        Record::Returned { action: ActionId(1), .. } => vec![intent(ensure(3, "slow"))],
        Record::Returned { action: ActionId(3), .. } => vec![intent(ensure(4, "web"))],
        Record::Returned { action: ActionId(2), .. } => vec![finished()],
        _ => Vec::new(),
    });
    assert_eq!(harness.drive(script).await, RunEnd::Finished(Outcome::Succeeded));
    let results = harness.results();
    for id in [3, 4] {
        let (_, ActionResult::Failed(fault)) = results.iter().find(|(at, _)| *at == id).unwrap() else {
            panic!("{results:?}")
        };
        assert_eq!(fault.kind, "lock-lost");
        assert!(fault.message.contains("run r9 holds it"), "{fault}");
    }
    assert!(!harness.world.done().contains(&"ensure 2 of web epoch 1".to_owned()), "nothing is done after");
    assert!(harness.world.done().contains(&"slept 50000".to_owned()), "the other stage goes on");
}

#[tokio::test(start_paused = true)]
async fn a_target_that_cannot_be_reached_for_a_while_costs_no_lock_and_for_longer_does() {
    for (failures, lost) in [(2, false), (50, true)] {
        let harness = Harness::new();
        let world = std::sync::Arc::clone(&harness.world);
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let fault = Fault::new("unreachable", "connection refused").transient();
            *world.lock_faults.lock().unwrap() = vec![fault; failures];
        });
        harness.drive(in_turn(vec![lock(1, vec![key()]), run(2, "sleep 59000"), ensure(3, "web")])).await;
        let ended = harness.results().pop().unwrap().1;
        assert_eq!(matches!(ended, ActionResult::Failed(fault) if fault.kind == "lock-lost"), lost);
    }
}

#[tokio::test(start_paused = true)]
async fn a_resume_takes_its_locks_back_unless_someone_had_them_since() {
    // Who holds it now, with which epoch, and whether the run may go on.
    for (holder, epoch, goes_on) in [("r1", 3, true), ("", 3, true), ("", 4, false), ("r9", 4, false)] {
        let harness = Harness::new();
        set_holder(&harness.world, holder, epoch);
        let answer = ActionResult::Done(Answer::Locked { epoch: 3 });
        harness
            .die_with(vec![
                intent(lock(1, vec![key()])),
                Record::Returned { at_ms: 0, action: ActionId(1), result: answer },
                intent(ensure(2, "web")),
            ])
            .await;
        let script = Script::new(|input| match input {
            Record::Returned { .. } => vec![finished()],
            _ => Vec::new(),
        });
        harness.resume(script).await;
        let ended = harness.results().pop().unwrap().1;
        let lost = matches!(&ended, ActionResult::Failed(fault) if fault.kind == "lock-lost");
        assert_eq!(lost, !goes_on, "{holder} {epoch}: {ended:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_wait_for_a_lock_leaves_nothing_behind() {
    let harness = Harness::new();
    set_holder(&harness.world, "r0", 1);
    let named = LockKey::Named("db".into());
    let timer = super::script::timer(0);
    let set = Record::TimerSet { timer, due_ms: super::world::EPOCH_MS + 3_000 };
    let script = Script::new(move |input| match input {
        Record::Opened { .. } => vec![intent(lock(1, vec![named.clone(), key()])), set.clone()],
        Record::TimerFired { .. } => vec![Record::CancelAsked { action: ActionId(1) }],
        Record::Returned { .. } => vec![finished()],
        _ => Vec::new(),
    });
    harness.drive(script).await;
    assert_eq!(harness.results(), [(1, ActionResult::Cancelled)]);
    assert_eq!(harness.locks.holder("db"), None);
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_was_stopped_past_its_lease_asks_before_it_acts_again() {
    let harness = Harness::new();
    let actions = vec![lock(1, vec![key()]), run(2, "stopped 40000"), ensure(3, "web")];
    harness.drive(in_turn(actions)).await;
    let (_, ActionResult::Failed(fault)) = &harness.results()[2] else { panic!() };
    assert_eq!(fault.kind, "lock-lost");
    assert_eq!(harness.world.done(), ["lock epoch 1", "stopped 40000 [r1/2]"]);
    // A lease that is not over needs no asking.
    let harness = Harness::new();
    let actions = vec![lock(1, vec![key()]), run(2, "stopped 5000"), ensure(3, "web")];
    harness.drive(in_turn(actions)).await;
    assert_eq!(harness.world.done().last().unwrap(), "ensure 2 of web epoch 1");
}
