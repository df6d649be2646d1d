//! kill -9 of cdpipe at a moment that nobody chose, by every strategy: the next `resume` goes on.

use super::space::{LONG, Space, assert_ended};
use super::ways::{BLUE_GREEN, CANARY, RECREATE, ROLLING, THROUGH_ISTIO, Way};
use cdpipe_tests::deployed::comes_true;
use std::io::Write as _;
use std::time::Duration;

/// Every strategy.
const WAYS: [Way; 5] = [ROLLING, BLUE_GREEN, CANARY, RECREATE, THROUGH_ISTIO];

/// The seeds to try. `cargo xtask soak` tries 1 to 50, each by one of the strategies in turn: `$CDPIPE_KILLED_KUBERNETES_CASES` is how many.
fn seeds(way: Way) -> Vec<u64> {
    let all = match std::env::var("CDPIPE_KILLED_KUBERNETES_CASES") {
        Ok(count) => count.parse().unwrap(),
        Err(_) => return vec![6, 17, 38],
    };
    (1..=all).filter(|seed| WAYS[usize::try_from(seed % 5).unwrap()].test == way.test).collect()
}

/// When the run of a seed is killed: between its start and a bit after its usual end.
fn moment(seed: u64) -> Duration {
    let mixed = (seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33) % 8_000;
    Duration::from_millis(50 + mixed)
}

fn killed_at_any_moment_it_is_gone_on_with(way: Way) {
    let test = way.test.replace("e-", "killed-");
    let Some(space) = Space::on(way, &test) else { return };
    assert_ended(&space.run("1.0"), 0, &[]);
    let mut version = "1.0";
    for seed in seeds(way) {
        let former = version;
        version = if version == "1.1" { "1.2" } else { "1.1" };
        let mut run = space.begin(version);
        std::thread::sleep(moment(seed));
        // It may have ended by itself just now.
        let _ = run.kill();
        run.wait().unwrap();
        let resumed = space.place.run(["resume"]).unwrap();
        assert_ne!(resumed.code, Some(3), "seed {seed}, {}: {resumed:?}", way.test);
        // Killed before its journal had a word of it, or over: there was nothing to resume, and what is there is whole.
        let was_there = resumed.code == Some(0);
        assert_ended(&space.run(version), 0, if was_there { &["unchanged"] } else { &[] });
        let how = if was_there { "resumed" } else { "begun anew" };
        let line = format!(
            "{} seed {seed}, {former} -> {version}, killed after {:?}: {how}",
            way.test,
            moment(seed)
        );
        let _ = writeln!(std::io::stderr(), "{line}");
        space.serves(version, 2);
        assert_eq!(space.field("lease/cdpipe-web-lock", "{.spec.holderIdentity}"), "", "seed {seed}");
        let routed = space.routed(way);
        let id = space.field("pods", "{.items[0].metadata.labels.cdpipe\\.dev/release}");
        assert!(routed.is_empty() || routed.contains(&id), "seed {seed}: {id} is not in {routed}");
    }
}

#[test]
fn rolling_killed_at_any_moment_is_gone_on_with() {
    killed_at_any_moment_it_is_gone_on_with(ROLLING);
}

#[test]
fn blue_green_killed_at_any_moment_is_gone_on_with() {
    killed_at_any_moment_it_is_gone_on_with(BLUE_GREEN);
}

#[test]
fn a_canary_by_replicas_killed_at_any_moment_is_gone_on_with() {
    killed_at_any_moment_it_is_gone_on_with(CANARY);
}

#[test]
fn recreate_killed_at_any_moment_is_gone_on_with() {
    killed_at_any_moment_it_is_gone_on_with(RECREATE);
}

#[test]
fn a_canary_through_istio_killed_at_any_moment_is_gone_on_with() {
    killed_at_any_moment_it_is_gone_on_with(THROUGH_ISTIO);
}

#[test]
fn a_run_that_was_killed_in_the_middle_of_a_roll_is_taken_up_again() {
    let Some(space) = Space::new("killed", "kubernetes-rolling.cd") else { return };
    for (seed, version) in [(3_u64, "1.1"), (7, "1.2"), (12, "1.1")] {
        let mut child = space.begin(version);
        assert!(comes_true(LONG, || space.image() == version), "{}", space.image());
        std::thread::sleep(Duration::from_millis(seed * 83 % 900));
        // It may have ended by itself just now: then there is nothing to go on with.
        let was_over = child.try_wait().unwrap().is_some();
        child.kill().unwrap();
        child.wait().unwrap();
        if !was_over {
            assert_ended(&space.place.run(["resume"]).unwrap(), 0, &[]);
        }
        space.serves(version, 4);
        assert_eq!(space.field("lease/cdpipe-shop-lock", "{.spec.holderIdentity}"), "");
    }
}
