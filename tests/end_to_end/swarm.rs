//! A real Swarm: every strategy with the good release and the bad ones, beside another writer, through a crash, and while the engine's
//! socket is gone.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says that something is wrong by panicking")]

#[path = "swarm/service.rs"]
mod service;

use cdpipe_tests::deployed::{Deployed, comes_true};
use cdpipe_tests::door::Door;
use cdpipe_tests::lab;
use cdpipe_tests::load::{Kind, Load, Mix};
use cdpipe_tests::processes::Ended;
use rustix::process::{Pid, Signal, kill_process};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);

/// A service of its own name on the lab's Swarm; it goes with the test.
struct Shop {
    deployed: Deployed,
    name: String,
    engine: String,
}

impl Drop for Shop {
    fn drop(&mut self) {
        let _ = self.deployed.place.run(["down", "shop.cd"]);
    }
}

/// `None`: there is no Swarm, and a line says so.
fn shop(name: &str, strategy: &str, routed: bool) -> Option<Shop> {
    let (Ok(engine), Ok(registry)) =
        (std::env::var("CDPIPE_LAB_SWARM"), std::env::var("CDPIPE_LAB_REGISTRY"))
    else {
        lab::skip(name, "a Swarm: `cargo xtask lab up swarm`").unwrap();
        return None;
    };
    Some(shop_at(name, strategy, routed, &engine, &registry))
}

fn shop_at(name: &str, strategy: &str, routed: bool, engine: &str, registry: &str) -> Shop {
    let text = include_str!("../pipelines/swarm.cd")
        .replace("@TRAFFIC@", if routed { "traffic proxy { listen = \"@LISTEN@\" }" } else { "" })
        .replace("@ROUTE@", if routed { "route { path = \"/\" }" } else { "" })
        .replace("@NAME@", name)
        .replace("@SWARM@", engine)
        .replace("@REGISTRY@", registry)
        .replace("@STRATEGY@", strategy);
    Shop { deployed: Deployed::with(&text).unwrap(), name: name.to_owned(), engine: engine.to_owned() }
}

impl Shop {
    fn deploy(&self, version: &str) -> Ended {
        self.deployed.place.run(["run", "shop.cd", "--set", &format!("version={version}")]).unwrap()
    }

    fn begin(&self, version: &str) -> Child {
        let mut command =
            self.deployed.place.command(["run", "shop.cd", "--set", &format!("version={version}")]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    fn docker(&self, arguments: &[&str]) -> String {
        docker(&self.engine, arguments)
    }

    /// Versions of the tasks that run, sorted.
    fn running(&self) -> Vec<String> {
        let label = format!("label=cdpipe.service={}", self.name);
        let format = "{{.Names}}";
        let names = self.docker(&["ps", "--filter", &label, "--format", format]);
        let mut versions: Vec<String> = names
            .lines()
            .map(|name| {
                let env =
                    self.docker(&["inspect", "--format", "{{range .Config.Env}}{{println .}}{{end}}", name]);
                env.lines().find_map(|line| line.strip_prefix("VERSION=")).unwrap_or("gone").to_owned()
            })
            .collect();
        versions.sort();
        versions
    }

    fn update_state(&self) -> String {
        self.docker(&[
            "service",
            "inspect",
            "--format",
            "{{if .UpdateStatus}}{{.UpdateStatus.State}}{{end}}",
            &self.name,
        ])
    }
}

fn docker(engine: &str, arguments: &[&str]) -> String {
    let done = Command::new("docker").env("DOCKER_HOST", engine).args(arguments).output().unwrap();
    String::from_utf8_lossy(&done.stdout).trim().to_owned()
}

#[track_caller]
fn assert_ended(ended: &Ended, code: i32, says: &[&str]) {
    assert_eq!(ended.code, Some(code), "stdout:\n{}\nstderr:\n{}", ended.stdout, ended.stderr);
    let said: String =
        format!("{} {}", ended.stdout, ended.stderr).split_whitespace().collect::<Vec<_>>().join(" ");
    for part in says {
        assert!(said.contains(part), "{part:?} is missing from\n{said}");
    }
}

fn end_of(child: Child) -> (Option<i32>, String) {
    let done = child.wait_with_output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    (done.status.code(), said)
}

const ROLLING: &str = "rolling { batch = 2, monitor = 500ms, order = start_first, max_failures = 20% }";

#[test]
fn a_roll_by_the_swarm_ends_as_the_release_deserves() {
    let Some(shop) = shop("swarm-rolls", ROLLING, false) else { return };
    assert_ended(&shop.deploy("1.0"), 0, &["the first release there"]);
    assert_eq!(shop.running(), ["1.0"; 3]);
    assert_ended(&shop.deploy("1.1"), 0, &["1.0 -> 1.1"]);
    assert!(comes_true(PATIENCE, || shop.running() == ["1.1"; 3]), "{:?}", shop.running());
    assert_ended(&shop.deploy("1.1"), 0, &["unchanged"]);
    assert_ended(&shop.deploy("nothing"), 1, &["there is no image", "nothing was changed"]);
    // One failure of three is more than 20 %: the Swarm turns round, and that is what is said.
    assert_ended(
        &shop.deploy("exits"),
        3,
        &["the Swarm went back by itself", "cannot find my configuration"],
    );
    // Healthy releases get long enough for a busy machine; one that never is needs not be waited for.
    let place = &shop.deployed.place;
    let text = std::fs::read_to_string(place.work().join("shop.cd")).unwrap();
    place.write("shop.cd", text.replace("within = 30s", "within = 3s")).unwrap();
    assert_ended(&shop.deploy("never-healthy"), 3, &["the Swarm went back by itself", "health check failed"]);
    assert!(comes_true(PATIENCE, || shop.running() == ["1.1"; 3]), "{:?}", shop.running());
    let failure_action = "{{.Spec.UpdateConfig.FailureAction}} {{.Spec.UpdateConfig.Parallelism}} {{.Spec.UpdateConfig.Order}}";
    assert_eq!(
        shop.docker(&["service", "inspect", "--format", failure_action, &shop.name]),
        "rollback 2 start-first"
    );
}

#[test]
fn a_breach_while_the_swarm_rolls_sends_it_back() {
    let slow = "rolling { batch = 1, pause = 20s, order = start_first }";
    let Some(shop) = shop("swarm-breach", slow, false) else { return };
    assert_ended(&shop.deploy("1.0"), 0, &[]);
    shop.deployed.place.write("errors-candidate", "50\n").unwrap();
    assert_ended(&shop.deploy("1.1"), 3, &["error_rate"]);
    assert!(comes_true(PATIENCE, || shop.running() == ["1.0"; 3]), "{:?}", shop.running());
    // An update to the release that was seen, held if it fails; never the engine's own way back.
    let action =
        shop.docker(&["service", "inspect", "--format", "{{.Spec.UpdateConfig.FailureAction}}", &shop.name]);
    assert_eq!((action.as_str(), shop.update_state().as_str()), ("pause", "completed"));
}

/// Where it is `steady`, no request fails.
fn no_user_notices(name: &str, strategy: &str, steady: bool) {
    let Some(shop) = shop(name, strategy, true) else { return };
    assert_ended(&shop.deploy("1.0"), 0, &[]);
    let socket = Kind::Socket { messages: 10, every_ms: 50, bytes: 200 };
    let mix = Mix::new([(Kind::Short, 75), (Kind::Slow { ms: 300 }, 20), (socket, 5)]).unwrap();
    let users = Load { mix, ..Load::on(shop.deployed.address) }.start().unwrap();
    assert_ended(&shop.deploy("1.1"), 0, &[]);
    assert_ended(&shop.deploy("nothing"), 1, &["there is no image", "nothing was changed"]);
    assert_ended(&shop.deploy("exits"), 3, &["cannot find my configuration"]);
    // Healthy releases get long enough for a busy machine; one that never is needs not be waited for.
    let place = &shop.deployed.place;
    let text = std::fs::read_to_string(place.work().join("shop.cd")).unwrap();
    place.write("shop.cd", text.replace("within = 30s", "within = 3s")).unwrap();
    assert_ended(&shop.deploy("never-healthy"), 3, &["never-healthy became ready in time"]);
    place.write("shop.cd", text).unwrap();
    assert_eq!(shop.deployed.ask().unwrap().version, "1.1");
    shop.deployed.place.write("errors-candidate", "50\n").unwrap();
    assert_ended(&shop.deploy("1.2"), 3, &["error_rate"]);
    let report = users.stop().unwrap();
    assert!(!steady || report.failures().is_empty(), "{report}");
    assert_eq!(shop.deployed.ask().unwrap().version, "1.1");
    assert!(comes_true(PATIENCE, || shop.running() == ["1.1"; 3]), "{:?}", shop.running());
}

#[test]
fn blue_green_behind_the_proxy_fails_no_request() {
    no_user_notices("swarm-blue-green", "blue_green { keep_old = 1s }", true);
}

#[test]
fn a_canary_behind_the_proxy_fails_no_request() {
    no_user_notices("swarm-canary", "canary { step 34% for 1s }", true);
}

#[test]
fn rolling_behind_the_proxy_fails_no_request() {
    no_user_notices("swarm-stepped", "rolling { batch = 2 }", true);
}

#[test]
fn recreate_behind_the_proxy_replaces_and_comes_back() {
    no_user_notices("swarm-recreate", "recreate", false);
}

/// All that a Swarm can be told of rolling and of going back; and of former releases as many are kept as the service says.
#[test]
fn what_rolling_says_reaches_the_swarm() {
    let strategy = "rolling {
      batch = 3, pause = 2s, monitor = 700ms, order = stop_first, max_failures = 20%, failure_action = pause
      rollback_config { batch = 2, pause = 1s, monitor = 600ms, order = start_first, max_failures = 50%, failure_action = continue }
    }";
    let Some(shop) = shop("swarm-told", strategy, false) else { return };
    let place = &shop.deployed.place;
    let text = std::fs::read_to_string(place.work().join("shop.cd")).unwrap();
    place.write("shop.cd", text.replace("  drain    = 2s", "  drain    = 2s\n  retain   = 1")).unwrap();
    let config = |of: &str| {
        let fields = ["Parallelism", "Delay", "Monitor", "MaxFailureRatio", "Order", "FailureAction"];
        let fields: Vec<String> = fields.iter().map(|field| format!("{{{{.Spec.{of}.{field}}}}}")).collect();
        shop.docker(&["service", "inspect", "--format", &fields.join(" "), &shop.name])
    };
    assert_ended(&shop.deploy("1.0"), 0, &[]);
    assert_eq!(config("UpdateConfig"), "3 2s 700ms 0.2 stop-first pause");
    assert_eq!(config("RollbackConfig"), "2 1s 600ms 0.5 start-first continue");
    // Told to pause, the Swarm does not go back by itself: cdpipe does, as `rollback_config` says.
    assert_ended(&shop.deploy("exits"), 3, &["the Swarm holds the roll", "cannot find my configuration"]);
    assert!(comes_true(PATIENCE, || shop.running() == ["1.0"; 3]), "{:?}", shop.running());
    assert_eq!(config("UpdateConfig"), "2 1s 600ms 0.5 start-first continue");
    assert_ended(&shop.deploy("1.1"), 0, &[]);
    assert_ended(&shop.deploy("1.2"), 0, &[]);
    let filter = format!("label=cdpipe.service={}", shop.name);
    let kept = shop.docker(&[
        "config",
        "ls",
        "--filter",
        &filter,
        "--filter",
        "label=cdpipe.kind=release",
        "--quiet",
    ]);
    assert_eq!(kept.lines().count(), 2, "what runs and one more: {kept}");
}

#[test]
fn another_writer_in_the_middle_is_told() {
    let slow = "rolling { batch = 1, pause = 5s, order = start_first }";
    let Some(shop) = shop("swarm-writers", slow, false) else { return };
    assert_ended(&shop.deploy("1.0"), 0, &[]);
    let run = shop.begin("1.1");
    assert!(comes_true(PATIENCE, || shop.update_state() == "updating"));
    shop.docker(&["service", "update", "--detach", "--env-add", "OTHER=1", &shop.name]);
    let (code, said) = end_of(run);
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("somebody else"), "{said}");
    assert!(comes_true(PATIENCE, || shop.running() == ["1.0"; 3]), "{:?}", shop.running());
}

/// The seeds to try. `cargo xtask soak` tries 1 to 50: `$CDPIPE_KILLED_SWARM_CASES` is how many.
fn seeds() -> Vec<u64> {
    match std::env::var("CDPIPE_KILLED_SWARM_CASES") {
        Ok(count) => (1..=count.parse().unwrap()).collect(),
        Err(_) => vec![3, 7, 12],
    }
}

#[test]
fn a_run_that_is_killed_in_the_middle_of_a_roll_goes_on() {
    let Some(shop) = shop("swarm-killed", "rolling { batch = 1, monitor = 500ms }", false) else { return };
    assert_ended(&shop.deploy("1.0"), 0, &[]);
    let mut former = "1.0";
    for seed in seeds() {
        let version = if former == "1.1" { "1.2" } else { "1.1" };
        let mut run = shop.begin(version);
        assert!(comes_true(PATIENCE, || shop.update_state() == "updating"));
        std::thread::sleep(Duration::from_millis(seed * 83 % 900));
        kill_process(Pid::from_child(&run), Signal::KILL).unwrap();
        run.wait().unwrap();
        let ended = shop.deployed.place.run(["resume"]).unwrap();
        assert_ended(&ended, 0, &[]);
        let all = comes_true(PATIENCE, || shop.running() == [version; 3]);
        assert!(all, "seed {seed}, from {former}: {:?}", shop.running());
        former = version;
    }
}

#[test]
fn an_engine_that_is_gone_for_a_while_is_waited_for() {
    let (Ok(engine), Ok(registry)) =
        (std::env::var("CDPIPE_LAB_SWARM"), std::env::var("CDPIPE_LAB_REGISTRY"))
    else {
        lab::skip("swarm-away", "a Swarm: `cargo xtask lab up swarm`").unwrap();
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let mut door = Door::before(&engine, folder.path().join("docker.sock")).unwrap();
    let strategy = "rolling { batch = 1, monitor = 500ms }";
    let shop = shop_at("swarm-away", strategy, false, &door.endpoint(), &registry);
    assert_ended(&shop.deploy("1.0"), 0, &[]);
    let run = shop.begin("1.1");
    assert!(comes_true(PATIENCE, || shop.update_state() == "updating"));
    door.shut();
    std::thread::sleep(Duration::from_secs(2));
    door.open().unwrap();
    let (code, said) = end_of(run);
    assert_eq!(code, Some(0), "{said}");
    assert!(comes_true(PATIENCE, || shop.running() == ["1.1"; 3]), "{:?}", shop.running());
    // Its `down` goes through the door.
    drop(shop);
}

#[test]
fn a_service_of_a_compose_file_is_deployed() {
    let Some(shop) = shop("swarm-compose", ROLLING, false) else { return };
    let place = &shop.deployed.place;
    let text = std::fs::read_to_string(place.work().join("shop.cd")).unwrap();
    place
        .write(
            "shop.cd",
            text.replace("image    = image", "compose = \"stack.yml#app\"\n  version = version")
                .replace("  port     = 8080\n", ""),
        )
        .unwrap();
    let registry = std::env::var("CDPIPE_LAB_REGISTRY").unwrap();
    let stack = format!(
        "services:\n  app:\n    image: {registry}/shop:1.1\n    environment: {{ MODE: live }}\n    healthcheck: {{ test: \"wget -q -O - http://127.0.0.1:8080/health\", interval: 500ms, timeout: 2s }}\n    deploy:\n      update_config: {{ failure_action: pause }}\n      placement: {{ constraints: [node.role == manager] }}\n      resources: {{ limits: {{ memory: 128M }} }}\n"
    );
    place.write("stack.yml", stack.as_str()).unwrap();
    assert_ended(&shop.deploy("one"), 0, &[]);
    assert_eq!(shop.running(), ["1.1"; 3]);
    let spec = shop.docker(&["service", "inspect", "--format", "{{json .Spec}}", &shop.name]);
    for part in
        ["\"MODE=live\"", "node.role == manager", "\"MemoryBytes\":134217728", "\"FailureAction\":\"pause\""]
    {
        assert!(spec.contains(part), "{part} is missing from {spec}");
    }
    place.write("stack.yml", stack.replace("    deploy:", "    privileged: true\n    deploy:")).unwrap();
    assert_ended(&shop.deploy("two"), 1, &["`privileged`", "take it out"]);
}

#[test]
fn what_runs_already_is_refused_or_taken_over() {
    let Some(shop) = shop("swarm-adopt", ROLLING, false) else { return };
    let image = format!("{}/shop:1.0", std::env::var("CDPIPE_LAB_REGISTRY").unwrap());
    shop.docker(&[
        "service",
        "create",
        "--detach",
        "--name",
        &shop.name,
        "--replicas",
        "3",
        "--endpoint-mode",
        "dnsrr",
        &image,
    ]);
    assert!(comes_true(PATIENCE, || shop
        .docker(&["service", "ps", "--format", "{{.CurrentState}}", &shop.name])
        .matches("Running")
        .count()
        == 3));
    assert_ended(&shop.deploy("1.1"), 1, &["was not made by cdpipe", "adopt = true"]);
    let place = &shop.deployed.place;
    let text = std::fs::read_to_string(place.work().join("shop.cd")).unwrap();
    place.write("shop.cd", text.replace("drain    = 2s", "drain    = 2s\n  adopt = true")).unwrap();
    assert_ended(&shop.deploy("exits"), 3, &["the Swarm went back by itself"]);
    assert_ended(&shop.deploy("1.1"), 0, &["1.0 -> 1.1"]);
    assert!(comes_true(PATIENCE, || shop.running() == ["1.1"; 3]), "{:?}", shop.running());
}
