//! Properties of every strategy with any settings: the simulated world itself asserts, at every route, that weights sum to 100 %, that
//! only ready instances get users, and at every stop that the router was seen to be without the instance.

use super::world::{Driver, prepared};
use cdpipe_model::action::{ActionKind, ActionResult};
use cdpipe_model::expr::Expr;
use cdpipe_model::record::{Record, Signal};
use cdpipe_model::strategy::{
    BlueGreen, Canary, CanaryStep, Count, Hold, OldRelease, Order, Rolling, RouteMatch, Sticky, Strategy,
};
use cdpipe_model::{Fault, Outcome};
use proptest::prelude::*;
use proptest::strategy::Strategy as _;

fn count() -> impl proptest::strategy::Strategy<Value = Count> {
    prop_oneof![(1_u32..5).prop_map(Count::Instances), (1.0_f64..120.0).prop_map(Count::Percent)]
}

fn any_strategy() -> impl proptest::strategy::Strategy<Value = Strategy> {
    let order = prop_oneof![Just(Order::StartFirst), Just(Order::StopFirst)];
    let bound = || proptest::option::of(prop_oneof![Just(Count::Instances(0)), count()]);
    let rolling = (count(), 0_u64..3_000, 0_u64..3_000, order, 0.0_f64..50.0, bound(), bound()).prop_map(
        |(batch, pause_ms, monitor_ms, order, max_failures_percent, max_unavailable, max_surge)| {
            Strategy::Rolling(Rolling {
                batch,
                pause_ms,
                monitor_ms,
                order,
                max_failures_percent,
                max_unavailable,
                max_surge,
                ..Rolling::default()
            })
        },
    );
    let old = prop_oneof![Just(OldRelease::Remove), Just(OldRelease::Stop), Just(OldRelease::ScaleToZero)];
    let blue_green = (0_u64..20_000, old, proptest::option::of(Just(":9090".to_owned())))
        .prop_map(|(keep_old_ms, old, preview)| Strategy::BlueGreen(BlueGreen { keep_old_ms, old, preview }));
    let steps = proptest::collection::btree_set(1_u32..10_000, 0..4);
    let canary = (proptest::option::of(count()), steps, 0_u64..4_000, any::<bool>(), any::<bool>()).prop_map(
        |(instances, weights, ms, with_rule, with_env)| {
            let rule = RouteMatch::Header { name: "canary".into(), value: "true".into() };
            Strategy::Canary(Canary {
                instances,
                env: with_env.then(|| ("CANARY".to_owned(), Expr::text("yes"))).into_iter().collect(),
                rules: if with_rule { vec![rule] } else { Vec::new() },
                steps: weights
                    .into_iter()
                    .map(|weight_bp| CanaryStep { weight_bp, hold: Hold::For { ms } })
                    .collect(),
                sticky: Sticky::None,
            })
        },
    );
    prop_oneof![3 => rolling, 1 => blue_green, 2 => canary, 1 => Just(Strategy::Recreate)]
}

/// Ready instances that users may be down to.
fn floor(strategy: &Strategy, replicas: u32) -> u32 {
    match strategy {
        Strategy::Rolling(rolling) => {
            let batch = rolling.batch.of(replicas).max(1);
            let default = if rolling.order == Order::StopFirst { batch } else { 0 };
            let unavailable = rolling.max_unavailable.map_or(default, |count| count.of(replicas));
            // A share of failures is allowed to be missing too.
            let failures = Count::Percent(rolling.max_failures_percent).of(replicas);
            replicas.saturating_sub(unavailable + failures)
        }
        Strategy::Recreate => 0,
        Strategy::BlueGreen(_) | Strategy::Canary(_) => replicas,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_settings_end_with_the_candidate_and_never_under_the_floor(strategy in any_strategy(), replicas in 1_u32..9) {
        let (header, world, stable, candidate) = prepared(strategy.clone(), replicas);
        let mut driver = Driver::new(&header, world);
        prop_assert_eq!(driver.run(&mut |_, _, _| None), Outcome::Succeeded);
        prop_assert_eq!(driver.world.serving(), vec![(candidate.id(), 10_000, replicas as usize)]);
        let fewest = driver.world.fewest_serving.unwrap_or(0);
        prop_assert!(fewest >= floor(&strategy, replicas) as usize, "{fewest} of {replicas} with {strategy:?}");
        let left = driver.world.releases.iter().find(|release| release.id == stable.id());
        prop_assert!(left.is_none_or(|release| release.instances.is_empty()));
        prop_assert!(!driver.world.locked);
    }

    #[test]
    fn an_undo_from_anywhere_restores_what_was_seen(
        strategy in any_strategy(),
        replicas in 1_u32..6,
        at in 1_u32..60,
        cancel in any::<bool>(),
    ) {
        let (header, world, stable, candidate) = prepared(strategy.clone(), replicas);
        let before = world.serving();
        let mut driver = Driver::new(&header, world);
        driver.open();
        let mut turns = 0;
        loop {
            if cancel && driver.actions == at {
                let at_ms = driver.now_ms;
                let signal = Signal::Cancel { by: "me".into(), reason: String::new() };
                driver.feed(Record::Signalled { at_ms, signal });
            }
            let more = driver.turn(&mut |number, action, _| {
                let fails = !cancel && number == at && !matches!(action.kind, ActionKind::Measure { .. });
                fails.then(|| ActionResult::Failed(Fault::new("test", "injected")))
            });
            turns += 1;
            prop_assert!(turns < 5_000);
            if !more {
                break;
            }
        }
        let serving = driver.world.serving();
        match driver.machine.outcome() {
            Some(Outcome::Succeeded) => {
                prop_assert_eq!(serving, vec![(candidate.id(), 10_000, replicas as usize)]);
            }
            Some(Outcome::RolledBack | Outcome::Failed | Outcome::Cancelled) => {
                let shares = |serving: &[(cdpipe_model::ReleaseId, u32, usize)]| serving.to_vec();
                prop_assert_eq!(shares(&serving), shares(&before));
                let stray = driver.world.releases.iter().find(|r| r.id != stable.id() && !r.instances.is_empty());
                prop_assert!(stray.is_none(), "{:?} stays", stray);
            }
            other => prop_assert!(false, "{:?} with {:?}", other, strategy),
        }
    }
}
