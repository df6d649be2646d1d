//! Engines that go away, hang, are restarted or have no disk left, in the middle of a deploy.

use super::{Shop, assert_ended};
use cdpipe_tests::deployed::comes_true;
use cdpipe_tests::door::Door;
use cdpipe_tests::engine::OwnEngine;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);
const ROLLING: &str = "rolling { batch = 1, monitor = 1s }";

/// A shop whose engine is behind a door.
fn behind_a_door(test: &str) -> Option<(Shop, Door, tempfile::TempDir)> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("docker.sock");
    let endpoint = format!("unix://{}", path.display());
    let shop = Shop::at(test, ROLLING, 3, "0s", Some(&endpoint))?;
    let door = Door::before(&shop.engine, path).unwrap();
    Some((shop, door, folder))
}

fn begin(shop: &Shop, version: &str) -> Child {
    let mut command = shop.deployed.place.command(["run", "shop.cd", "--set", &format!("image={version}")]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn end_of(child: Child) -> (Option<i32>, String) {
    let done = child.wait_with_output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    (done.status.code(), said)
}

/// The engine can't be spoken with for some seconds in the middle of a roll: it is waited for, and users notice nothing.
fn is_waited_for(test: &str, away: impl Fn(&Door)) {
    let Some((shop, mut door, _folder)) = behind_a_door(test) else { return };
    assert_ended(&shop.deploy("1.0", ""), 0, &[]);
    let before = shop.running();
    let users = shop.visitors();
    let run = begin(&shop, "1.1");
    assert!(comes_true(PATIENCE, || shop.running().iter().any(|name| !before.contains(name))));
    away(&door);
    std::thread::sleep(Duration::from_secs(4));
    door.open().unwrap();
    let (code, said) = end_of(run);
    assert_eq!(code, Some(0), "{said}");
    let report = users.stop().unwrap();
    assert!(report.failures().is_empty(), "{report}");
    assert_eq!(shop.answers(), (200, "1.1".to_owned()));
    assert!(comes_true(PATIENCE, || shop.running().len() == 3), "{:?}", shop.running());
    assert!(shop.running().iter().all(|name| !before.contains(name)), "{:?}", shop.running());
}

#[test]
fn an_engine_that_is_gone_for_a_while_is_waited_for() {
    is_waited_for("an_engine_that_is_gone_for_a_while_is_waited_for", Door::shut);
}

#[test]
fn an_engine_that_hangs_for_a_while_is_waited_for() {
    is_waited_for("an_engine_that_hangs_for_a_while_is_waited_for", Door::stick);
}

/// A smoke test goes on in its container while the engine is away: its end is asked for, and it is not run twice.
#[test]
fn a_command_in_a_container_outlives_the_connection_and_runs_once() {
    let test = "a_command_in_a_container_outlives_the_connection_and_runs_once";
    let Some((shop, mut door, _folder)) = behind_a_door(test) else { return };
    assert_ended(&shop.deploy("1.0", ""), 0, &[]);
    let before = shop.running();
    let place = &shop.deployed.place;
    let text = std::fs::read_to_string(place.work().join("shop.cd")).unwrap();
    let smoke = "wget -q -O - http://127.0.0.1:8080/health";
    assert!(text.contains(smoke), "{text}");
    place
        .write("shop.cd", text.replace(smoke, "echo begun >> /tmp/once; sleep 4; echo ended >> /tmp/once"))
        .unwrap();
    let run = begin(&shop, "1.1");
    let new = || shop.running().into_iter().find(|name| !before.contains(name));
    let once = |name: &str| shop.docker(&["exec", name, "cat", "/tmp/once"]);
    assert!(comes_true(PATIENCE, || new().is_some_and(|name| once(&name) == "begun")));
    let name = new().unwrap();
    door.shut();
    std::thread::sleep(Duration::from_secs(1));
    door.open().unwrap();
    let (code, said) = end_of(run);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(once(&name), "begun\nended", "{said}");
}

/// Nobody waits without end, nothing is lost: the run says what it asked and got no answer to, the old release serves, and once the
/// engine answers again the next run works.
#[test]
fn an_engine_that_hangs_for_good_ends_the_run_with_its_name() {
    let test = "an_engine_that_hangs_for_good_ends_the_run_with_its_name";
    let Some((mut shop, mut door, _folder)) = behind_a_door(test) else { return };
    assert_ended(&shop.deploy("1.0", ""), 0, &[]);
    shop.deployed.place.limit(Duration::from_secs(400));
    door.stick();
    let begun = Instant::now();
    let ended = shop.deploy("1.1", "");
    assert_ended(&ended, 1, &["the engine at", &door.endpoint(), "did not answer for", "docker info"]);
    assert!(begun.elapsed() < Duration::from_secs(120), "{:?}", begun.elapsed());
    assert_eq!(shop.answers(), (200, "1.0".to_owned()));
    door.open().unwrap();
    assert_ended(&shop.deploy("1.1", ""), 0, &[]);
    assert_eq!(shop.answers(), (200, "1.1".to_owned()));
}

/// A command whose time ends while the engine is asked has run out of time, as one that takes too long has; hooks and retries see the
/// same.
#[test]
fn a_command_whose_time_ends_before_the_engine_answers_has_timed_out() {
    let test = "a_command_whose_time_ends_before_the_engine_answers_has_timed_out";
    let Some((shop, mut door, _folder)) = behind_a_door(test) else { return };
    super::steps::stages(&shop, "stage look {\n  run \"sleep 60\" { @BUSYBOX@, timeout = 2s }\n}\n");
    door.stick();
    let run = begin(&shop, "1.0");
    std::thread::sleep(Duration::from_secs(4));
    door.open().unwrap();
    let (code, said) = end_of(run);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("timed out"), "{said}");
    assert!(said.contains("when asked to"), "what it waited for is not said:\n{said}");
    assert_ended(&shop.deploy("1.0", ""), 1, &["timed out"]);
}

#[test]
fn an_engine_without_disk_says_so_and_one_that_is_restarted_is_gone_on_with() {
    let test = "an_engine_without_disk_says_so_and_one_that_is_restarted_is_gone_on_with";
    if Shop::new(test, ROLLING, 2).is_none() {
        return;
    }
    let mut own = OwnEngine::start(12).unwrap();
    let mut shop =
        Shop::at(test, "rolling { batch = 1, monitor = 4s }", 2, "0s", Some(&own.endpoint())).unwrap();
    shop.engine = own.endpoint();
    assert_ended(&shop.deploy("1.0", ""), 1, &["no space left on device", "docker system df"]);
    assert!(shop.running().is_empty());
    own.resize(400).unwrap();
    assert_ended(&shop.deploy("1.0", ""), 0, &[]);

    let before = shop.running();
    let mut run = begin(&shop, "1.1");
    assert!(comes_true(PATIENCE, || shop.running().iter().any(|name| !before.contains(name))));
    own.restart().unwrap();
    assert!(run.try_wait().unwrap().is_none(), "it was over before the engine was back");
    let (code, said) = end_of(run);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(shop.answers(), (200, "1.1".to_owned()));
    assert!(comes_true(PATIENCE, || shop.running().len() == 2), "{:?}", shop.running());
    assert!(shop.running().iter().all(|name| !before.contains(name)), "{:?}", shop.running());
}
