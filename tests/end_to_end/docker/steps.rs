//! `run "…" { image = … }`: commands in containers of their own.

use super::{Shop, assert_ended};
use cdpipe_tests::deployed::comes_true;
use std::process::Stdio;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);

/// Has the pipeline of a shop end in these stages; `@BUSYBOX@` in them is an image.
pub(super) fn stages(shop: &Shop, stages: &str) {
    let file = shop.deployed.place.work().join("shop.cd");
    let text = std::fs::read_to_string(&file).unwrap();
    let (head, _) = text.split_once("\nstage ").unwrap();
    let registry = std::env::var("CDPIPE_LAB_REGISTRY").unwrap();
    let busybox = format!("image = \"{registry}/busybox:1\", environment = {}", shop.environment);
    std::fs::write(&file, format!("{head}\n{}", stages.replace("@BUSYBOX@", &busybox))).unwrap();
}

/// The containers of steps that are there, whatever they do.
fn there(shop: &Shop) -> Vec<String> {
    let filter = format!("label=cdpipe.environment={}", shop.environment);
    let listed = shop.docker(&["ps", "--all", "--quiet", "--no-trunc", "--filter", &filter]);
    listed.lines().map(str::to_owned).collect()
}

#[test]
fn commands_run_in_containers_of_their_own() {
    let test = "commands_run_in_containers_of_their_own";
    let Some(mut shop) = Shop::new(test, "recreate", 1) else { return };
    shop.deployed.place.set("TOKEN", "sesame-open");
    stages(
        &shop,
        "secret token from env \"TOKEN\"\n\
         stage look {\n  output answer: string\n  run \"echo it is $TOKEN; cat; echo answer=42 > $CDPIPE_OUTPUT\" \
         { @BUSYBOX@, stdin = \"read from stdin\\n\"\n env { TOKEN = token } }\n}\n\
         stage later {\n  needs = [look]\n  run \"echo got ${stage.look.answer}\"\n}\n",
    );
    let ended = shop.deploy("1.0", "");
    assert_ended(&ended, 0, &["it is ***", "read from stdin", "got 42"]);
    assert!(!format!("{}{}", ended.stdout, ended.stderr).contains("sesame-open"));
    stages(&shop, "stage look {\n  run \"echo oh no; exit 5\" { @BUSYBOX@ }\n}\n");
    assert_ended(&shop.deploy("1.0", ""), 1, &["oh no", "ended with 5"]);
    stages(&shop, "stage look {\n  run \"sleep 60\" { @BUSYBOX@, timeout = 1s }\n}\n");
    assert_ended(&shop.deploy("1.0", ""), 1, &["timed out"]);
    let file = shop.deployed.place.work().join("shop.cd");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("busybox:1", "busybox:missing")).unwrap();
    assert_ended(&shop.deploy("1.0", ""), 1, &["busybox:missing can't be had"]);
}

#[test]
fn a_killed_runs_container_is_left_alone_by_other_runs() {
    let test = "a_killed_runs_container_is_left_alone_by_other_runs";
    let Some(shop) = Shop::new(test, "recreate", 1) else { return };
    stages(&shop, "stage slow {\n  run \"sleep 1; exit 3\" { @BUSYBOX@ }\n}\n");
    let mut run = shop.deployed.place.command(["run", "shop.cd", "--set", "image=1.0"]);
    let mut run = run.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    assert!(comes_true(PATIENCE, || !shop.running().is_empty()));
    run.kill().unwrap();
    run.wait().unwrap();
    assert!(comes_true(PATIENCE, || shop.running().is_empty()));
    // Another cdpipe's run of the same environment, with a step of its own.
    let left = there(&shop);
    assert_eq!(left.len(), 1);
    stages(&shop, "stage look {\n  run \"true\" { @BUSYBOX@ }\n}\n");
    let mut other = shop.deployed.place.command(["run", "shop.cd", "--set", "image=1.0"]);
    let other = other.env("CDPIPE_STATE", shop.deployed.place.work().join("other")).output().unwrap();
    assert!(other.status.success(), "{}", String::from_utf8_lossy(&other.stderr));
    assert!(there(&shop).contains(&left[0]), "how the killed run's step ended is not known any more");
}

#[test]
fn a_container_of_a_killed_run_is_waited_for_and_not_run_again() {
    let test = "a_container_of_a_killed_run_is_waited_for_and_not_run_again";
    let Some(shop) = Shop::new(test, "recreate", 1) else { return };
    stages(
        &shop,
        "stage slow {\n  output answer: string\n  run \"echo begun; sleep 3; echo answer=7 > $CDPIPE_OUTPUT\" { @BUSYBOX@ }\n}\n\
         stage later {\n  needs = [slow]\n  run \"echo got ${stage.slow.answer}\"\n}\n",
    );
    // Killed while it runs, and killed until after it has ended.
    for pause in [0, 5] {
        let since = shop.now();
        let mut run = shop.deployed.place.command(["run", "shop.cd", "--set", "image=1.0"]);
        let mut run = run.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        assert!(comes_true(PATIENCE, || !shop.running().is_empty()));
        run.kill().unwrap();
        run.wait().unwrap();
        std::thread::sleep(Duration::from_secs(pause));
        assert_ended(&shop.deployed.place.run(["resume"]).unwrap(), 0, &["got 7"]);
        assert_eq!(shop.started(&since).len(), 1, "{:?}", shop.started(&since));
        assert!(comes_true(PATIENCE, || shop.running().is_empty()));
    }
}
