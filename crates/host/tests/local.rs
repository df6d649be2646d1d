//! The target `local` with real processes: what one deploy after another does.

#![allow(clippy::expect_used, reason = "a test says what it expects by panicking")]

mod support;

use cdpipe_model::Value;
use cdpipe_model::observe::Instance;
use cdpipe_model::ports::Target as _;
use cdpipe_model::release::{Artifact, ReleaseSpec};
use cdpipe_model::strategy::OldRelease;
use std::collections::BTreeMap;
use std::time::Duration;
use support::{HELPER, Place, command, eventually, get, runs, script, serve};

fn address(instance: &Instance) -> &str {
    instance.address.as_deref().expect("an address")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_is_deployed_seen_and_stopped() {
    let place = Place::new();
    let spec = serve(&[]);
    let ready = place.deploy(&spec, 3).await;
    assert_eq!(ready.len(), 3);
    assert!(ready.iter().all(|instance| instance.ready && instance.restarts == 0));
    for instance in &ready {
        assert!(get(address(instance)).expect("answers").starts_with(spec.id().as_str()));
    }
    let said = place.context.sink.0.lock().expect("not poisoned").clone();
    assert_eq!(said.last().map(String::as_str), Some("progress: 3 of 3 ready"));

    // Another cdpipe sees the same, and asks for the same: nothing more is started.
    let again =
        place.another().ensure(place.context.call(), &spec, 3, &BTreeMap::new()).await.expect("is there");
    assert_eq!(
        again.iter().map(|instance| &instance.id).collect::<Vec<_>>(),
        ready.iter().map(|instance| &instance.id).collect::<Vec<_>>()
    );
    let seen = place.observe().await;
    assert_eq!(seen.releases.len(), 1);
    assert_eq!((seen.releases[0].wanted, &seen.releases[0].spec), (3, &spec));

    let left = place.local.stop(place.context.call(), &spec, &ready[..1], None, 5).await.expect("stops");
    assert_eq!(left.len(), 2);
    assert_eq!(place.observe().await.releases[0].wanted, 2);
    assert!(get(address(&ready[0])).is_err());

    let left =
        place.local.stop(place.context.call(), &spec, &[], Some(OldRelease::Stop), 5).await.expect("stops");
    assert_eq!(left, []);
    let seen = place.observe().await;
    assert_eq!((seen.releases[0].wanted, seen.releases[0].instances.len()), (0, 0));
    let left =
        place.local.stop(place.context.call(), &spec, &[], Some(OldRelease::Remove), 5).await.expect("stops");
    assert_eq!(left, []);
    assert_eq!(place.observe().await.releases, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_artifact_is_copied_and_survives_the_next_build() {
    let place = Place::new();
    let base = place.folder.path();
    std::fs::create_dir(base.join("dist")).expect("a folder");
    let build = |text: &str| {
        std::fs::write(base.join("dist/app"), format!("#!/bin/sh\necho {text}; exec \"$HELPER\" serve\n"))
            .expect("writes");
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(base.join("dist/app"), std::fs::Permissions::from_mode(0o755))
            .expect("mode");
    };
    let written = ReleaseSpec {
        artifact: Artifact::Command {
            argv: vec!["./app".to_owned()],
            path: Some("dist".to_owned()),
            digest: None,
        },
        env: BTreeMap::from([("HELPER".to_owned(), Value::Str(HELPER.to_owned()))]),
        ..serve(&[])
    };
    build("one");
    let one = place.local.resolve(place.context.call(), &written).await.expect("resolves");
    place.deploy(&one, 1).await;
    build("two");
    let two = place.local.resolve(place.context.call(), &written).await.expect("resolves");
    assert_ne!(one.id(), two.id());
    // Built again between plan and deploy.
    build("three");
    let fault =
        place.local.ensure(place.context.call(), &two, 1, &BTreeMap::new()).await.expect_err("has changed");
    assert_eq!(fault.kind, "artifact-changed");
    build("two");
    place.deploy(&two, 1).await;
    place.local.stop(place.context.call(), &one, &[], Some(OldRelease::Stop), 5).await.expect("stops");
    std::fs::remove_dir_all(base.join("dist")).expect("removes");

    // A rollback needs no build: a release that was made concrete before is looked for among the kept ones.
    assert_eq!(place.local.resolve(place.context.call(), &one).await.expect("is kept"), one);
    let mut gone = one.clone();
    gone.port = Some(81);
    assert_eq!(
        place.local.resolve(place.context.call(), &gone).await.expect_err("never was").kind,
        "release-gone"
    );
    let back = place.deploy(&one, 1).await;
    let log = place.local.logs(place.context.call(), &"web".into(), &back[0], 10).await.expect("a log");
    assert_eq!(log, ["one", "starting "]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_run_is_found_before_anything_is_changed() {
    let place = Place::new();
    let resolve = async |spec: ReleaseSpec| {
        place.local.resolve(place.context.call(), &spec).await.expect_err("is refused").message
    };
    let base = place.folder.path().display();
    assert_eq!(
        resolve(command(&["no-such-program-here"])).await,
        "the program `no-such-program-here` was not found"
    );
    let artifact = |path: &str| ReleaseSpec {
        artifact: Artifact::Command {
            argv: vec!["app".to_owned()],
            path: Some(path.to_owned()),
            digest: None,
        },
        ..serve(&[])
    };
    assert_eq!(resolve(artifact("dist")).await, format!("the artifact {base}/dist does not exist"));
    std::fs::create_dir(place.folder.path().join("dist")).expect("a folder");
    std::fs::write(place.folder.path().join("dist/app"), "").expect("writes");
    assert_eq!(resolve(artifact("dist")).await, format!("the program {base}/dist/app is not executable"));
    assert!(!place.state().exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_loop_is_told_early_with_status_and_log() {
    let place = Place::new();
    let spec = serve(&["--crash-after-ms", "1", "--status", "500 Sick"]);
    place.local.ensure(place.context.call(), &spec, 2, &BTreeMap::new()).await.expect("starts");
    let fault = place.local.await_ready(place.context.call(), &spec, 2, 0).await.expect_err("crashes");
    assert_eq!(fault.kind, "not-ready");
    assert!(fault.message.starts_with("0 of 2 instances of web are ready: instance "), "{}", fault.message);
    assert!(fault.message.contains("keeps ending (exit status 7), 3 times in a row"), "{}", fault.message);
    assert!(fault.details.iter().any(|line| line == "about to crash"), "{:?}", fault.details);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_never_gets_ready_is_told_with_what_it_answers() {
    let place = Place::new();
    let mut spec = serve(&["--status", "503 Busy"]);
    spec.health[0].within_ms = 700;
    place.local.ensure(place.context.call(), &spec, 1, &BTreeMap::new()).await.expect("starts");
    let fault = place.local.await_ready(place.context.call(), &spec, 1, 0).await.expect_err("is never ready");
    let port = &place.status(&spec, 1)["port"];
    assert!(
        fault.message.starts_with(&format!(
            "0 of 1 instances of web are ready after 700ms: GET http://127.0.0.1:{port}/health: answered 503"
        )),
        "{}",
        fault.message
    );
    assert_eq!(fault.details, ["starting v1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn some_may_fail_and_a_slow_one_is_waited_for() {
    let place = Place::new();
    // The first two to come make a place for themselves; the third finds none and crashes.
    let spec = serve(&["--slow-ms", "400"]);
    let ready = place.deploy(&spec, 1).await;
    assert!(ready[0].ready);
    let flaky = script("mkdir $HOME_OF_TEST/one 2>/dev/null || exit 1; exec sleep 1000");
    let flaky = ReleaseSpec {
        env: BTreeMap::from([(
            "HOME_OF_TEST".to_owned(),
            Value::Str(place.folder.path().display().to_string()),
        )]),
        ..flaky
    };
    place.local.ensure(place.context.call(), &flaky, 2, &BTreeMap::new()).await.expect("starts");
    let ready = place.local.await_ready(place.context.call(), &flaky, 2, 1).await.expect("one is enough");
    assert_eq!(ready.iter().filter(|instance| instance.ready).count(), 1);
    let fault =
        place.local.await_ready(place.context.call(), &flaky, 2, 0).await.expect_err("two are wanted");
    assert_eq!(fault.kind, "not-ready");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_wait_ends_at_once() {
    let place = Place::new();
    let spec = serve(&["--status", "503 Busy"]);
    place.local.ensure(place.context.call(), &spec, 1, &BTreeMap::new()).await.expect("starts");
    let cancel = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let _ = place.context.cancel.0.send_replace(true);
    };
    let begun = std::time::Instant::now();
    let (fault, ()) = tokio::join!(place.local.await_ready(place.context.call(), &spec, 1, 0), cancel);
    assert_eq!(fault.expect_err("is cancelled").kind, "cancelled");
    assert!(begun.elapsed() < Duration::from_secs(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_ends_is_started_again_on_its_port() {
    let place = Place::new();
    let spec = serve(&[]);
    let before = place.deploy(&spec, 1).await.remove(0);
    let pid = place.process_pid(&spec, 1);
    support::kill(pid, "KILL");
    eventually("it is ready again", || {
        let status = place.status(&spec, 1);
        status["restarts"] == 1 && status["ready"] == true
    });
    let after = place.instances().await.remove(0);
    assert_eq!((&after.id, &after.address, after.restarts), (&before.id, &before.address, 1));
    assert_eq!(place.status(&spec, 1)["last_exit"]["signal"], 9);
    assert!(!runs(pid));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_gets_sick_is_not_ready_and_then_well_again() {
    let place = Place::new();
    let sick = place.folder.path().join("sick");
    let spec = serve(&["--sick-file", &sick.display().to_string()]);
    place.deploy(&spec, 1).await;
    std::fs::write(&sick, "").expect("writes");
    eventually("it is not ready", || place.status(&spec, 1)["ready"] == false);
    assert!(place.status(&spec, 1)["failure"].as_str().expect("a reason").contains("answered 500"));
    std::fs::remove_file(&sick).expect("removes");
    eventually("it is ready", || place.status(&spec, 1)["ready"] == true);
    assert_eq!(place.instances().await[0].restarts, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_liveness_check_restarts() {
    let place = Place::new();
    let (sick, well) = (place.folder.path().join("sick"), place.folder.path().join("well"));
    let mut spec = serve(&["--sick-file", &sick.display().to_string()]);
    spec.health.push(cdpipe_model::service::Health {
        kind: cdpipe_model::service::HealthKind::Live,
        check: cdpipe_model::service::HealthCheck::Command {
            script: format!("test ! -e {} && touch {}", sick.display(), well.display()),
        },
        ..support::http_health()
    });
    place.deploy(&spec, 1).await;
    // Until it was met once, misses are a slow start.
    eventually("it was found alive", || well.exists());
    let pid = place.process_pid(&spec, 1);
    std::fs::write(&sick, "").expect("writes");
    eventually("it was restarted", || place.status(&spec, 1)["restarts"].as_u64() > Some(0));
    std::fs::remove_file(&sick).expect("removes");
    eventually("it is ready", || place.status(&spec, 1)["ready"] == true);
    assert!(!runs(pid));
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_lost_the_lock_changes_nothing_any_more() {
    use cdpipe_model::plan::LockKey;
    use cdpipe_model::ports::{Call, LockOwner};
    let place = Place::new();
    let key = LockKey::Service { environment: "test".into(), service: "web".into() };
    let owner = |run: &str| LockOwner { run: run.into(), who: "ann@example".into(), pid: std::process::id() };
    let lease = Duration::from_secs(30);
    let spec = place.local.resolve(place.context.call(), &serve(&[])).await.expect("resolves");
    let ensure = async |epoch: u64, count: u32| {
        let call = Call { epoch, ..place.context.call() };
        place.local.ensure(call, &spec, count, &BTreeMap::new()).await
    };
    let first = place.local.lock(place.context.call(), &key, &owner("r1"), lease).await.expect("is free");
    ensure(first, 1).await.expect("it is ours");
    place.local.unlock(place.context.call(), &key, &owner("r1")).await.expect("is given back");
    ensure(first, 1).await.expect("nobody else had it since");
    let second = place.local.lock(place.context.call(), &key, &owner("r2"), lease).await.expect("is free");
    assert!(second > first);
    let fault = ensure(first, 3).await.expect_err("is fenced out");
    assert_eq!(fault.kind, "stale-epoch");
    let call = Call { epoch: first, ..place.context.call() };
    let fault = place.local.stop(call, &spec, &[], Some(OldRelease::Remove), 0).await.expect_err("is too");
    assert_eq!(fault.kind, "stale-epoch");
    assert_eq!(place.observe().await.releases[0].instances.len(), 1, "as it was");
    ensure(second, 2).await.expect("it is theirs now");
}
