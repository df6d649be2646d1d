//! What becomes of a good and of a bad release, by every strategy that there is on a cluster.

use super::space::{LONG, Space, assert_ended};
use super::ways::{BLUE_GREEN, CANARY, RECREATE, ROLLING, THROUGH_ISTIO, Way};
use cdpipe_tests::deployed::comes_true;

fn ends_as_the_release_deserves(way: Way) {
    let Some(space) = Space::on(way, way.test) else { return };
    assert_ended(&space.run("1.0"), 0, &[]);
    space.serves("1.0", 2);
    assert_ended(&space.run("1.1"), 0, &["1.0 -> 1.1"]);
    space.serves("1.1", 2);
    assert_ended(&space.run("1.1"), 0, &["unchanged"]);
    let routed = space.routed(way);
    let is_back = |case: &str| {
        space.serves("1.1", 2);
        assert!(comes_true(LONG, || space.routed(way) == routed), "{case}: {}", space.routed(way));
    };
    assert_ended(&space.run("no-such-tag"), 3, &["ErrImagePull"]);
    is_back("an image that is not there");
    assert_ended(&space.run("exits"), 3, &["cannot find my configuration"]);
    is_back("a container that ends");
    let never =
        space.place.run(["run", "pipeline.cd", "--set", "version=never-healthy", "--set", "patience=4s"]);
    assert_ended(&never.unwrap(), 3, &["did not become ready in time"]);
    is_back("never ready");
    space.place.write("errors-candidate", "50\n").unwrap();
    assert_ended(&space.run("1.2"), 3, &["error_rate"]);
    is_back("goes bad under watch");
    std::fs::remove_file(space.place.work().join("errors-candidate")).unwrap();
    assert_ended(&space.run("1.2"), 0, &[]);
    space.serves("1.2", 2);
    // What failed in between is nothing to go back to, whatever the cluster has kept of it.
    assert_ended(&space.place.run(["rollback", "web", "cluster", "--yes"]).unwrap(), 0, &[]);
    space.serves("1.1", 2);
}

#[test]
fn rolling_ends_as_the_release_deserves() {
    ends_as_the_release_deserves(ROLLING);
}

#[test]
fn blue_green_ends_as_the_release_deserves() {
    ends_as_the_release_deserves(BLUE_GREEN);
}

#[test]
fn a_canary_by_replicas_ends_as_the_release_deserves() {
    ends_as_the_release_deserves(CANARY);
}

#[test]
fn recreate_ends_as_the_release_deserves() {
    ends_as_the_release_deserves(RECREATE);
}

#[test]
fn a_canary_through_istio_ends_as_the_release_deserves() {
    ends_as_the_release_deserves(THROUGH_ISTIO);
}
