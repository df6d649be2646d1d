//! Deploys to a real cluster with the real binary, each test in a namespace of its own: the platform rolls and goes back, a Service
//! switches, a killed run is taken up again.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says that something is wrong by panicking")]

#[path = "kubernetes/apply.rs"]
mod apply;
#[path = "kubernetes/beside.rs"]
mod beside;
#[path = "kubernetes/doctor.rs"]
mod doctor;
#[path = "kubernetes/edge.rs"]
mod edge;
#[path = "kubernetes/endings.rs"]
mod endings;
#[path = "kubernetes/killed.rs"]
mod killed;
#[path = "kubernetes/pipelines.rs"]
mod pipelines;
#[path = "kubernetes/reach.rs"]
mod reach;
#[path = "kubernetes/routes.rs"]
mod routes;
#[path = "kubernetes/space.rs"]
mod space;
#[path = "kubernetes/trouble.rs"]
mod trouble;
#[path = "kubernetes/ways.rs"]
mod ways;
#[path = "kubernetes/workloads.rs"]
mod workloads;

use cdpipe_tests::deployed::comes_true;
use space::{LONG, Space, assert_ended, ended};

#[test]
fn a_deployment_rolls_and_the_same_again_is_nothing_to_do() {
    let Some(space) = Space::new("rolls", "kubernetes-rolling.cd") else { return };
    assert_ended(&space.run("1.1"), 0, &[]);
    space.serves("1.1", 4);
    let strategy = "{.spec.strategy.rollingUpdate.maxSurge} {.spec.strategy.rollingUpdate.maxUnavailable}";
    assert_eq!(space.field("deployment/shop", strategy), "2 1");
    // What is there is found by another run: the first stage goes back to 1.0, the second forth again.
    let rolled = space.field("deployment/shop", "{.metadata.generation}");
    space
        .place
        .write("same.cd", {
            let text = std::fs::read_to_string(space.place.work().join("pipeline.cd")).unwrap();
            text.replace("set version = \"1.0\"", "set version = \"1.1\"")
        })
        .unwrap();
    let again = space.place.run(["run", "same.cd", "--set", "version=1.1"]).unwrap();
    assert_ended(&again, 0, &["unchanged"]);
    assert_eq!(space.field("deployment/shop", "{.metadata.generation}"), rolled);
    let down = space.place.run(["down", "pipeline.cd"]).unwrap();
    assert_ended(&down, 0, &[]);
    // The Job of a validator stays for a while.
    assert_eq!(space.field("deployments", "{.items[*].metadata.name}"), "");
    assert!(comes_true(LONG, || space.pods().is_empty()));
}

#[test]
fn an_image_that_is_not_there_goes_back_at_once() {
    let Some(space) = Space::new("missing", "kubernetes-rolling.cd") else { return };
    let ended = space.run("no-such-tag");
    assert_ended(&ended, 3, &["ErrImagePull", "no-such-tag"]);
    assert_eq!(space.image(), "1.0");
    space.serves("1.0", 4);
}

#[test]
fn a_pod_that_ends_again_and_again_goes_back_with_its_last_words() {
    let Some(space) = Space::new("exits", "kubernetes-rolling.cd") else { return };
    assert_ended(&space.run("exits"), 3, &["exit code 3", "cannot find my configuration"]);
    space.serves("1.0", 4);
}

#[test]
fn a_release_that_never_gets_ready_goes_back() {
    let Some(space) = Space::new("never", "kubernetes-rolling.cd") else { return };
    assert_ended(&space.run("never-healthy"), 3, &["did not become ready in time", "Readiness probe failed"]);
    assert_eq!(space.image(), "1.0");
    space.serves("1.0", 4);
}

#[test]
fn the_selector_of_a_service_switches_and_a_bad_release_is_never_selected() {
    let Some(space) = Space::new("switches", "kubernetes-blue-green.cd") else { return };
    assert_ended(&space.run("1.1"), 0, &[]);
    space.serves("1.1", 2);
    let selector = "{.spec.selector}";
    let selected = space.field("service/web", selector);
    let ips = space.field("endpointslices", "{.items[*].endpoints[*].addresses[*]}");
    let pods = space.field("pods", "{.items[*].status.podIP}");
    let sorted = |text: &str| {
        let mut words: Vec<String> = text.split(' ').map(str::to_owned).collect();
        words.sort();
        words
    };
    assert_eq!(sorted(&ips), sorted(&pods));
    // The first stage is unchanged only where 1.0 serves; so that the bad one meets 1.1, both stages want it.
    let text = std::fs::read_to_string(space.place.work().join("pipeline.cd")).unwrap();
    space.place.write("pipeline.cd", text.replace("set version = \"1.0\"", "set version = \"1.1\"")).unwrap();
    assert_ended(&space.run("no-such-tag"), 3, &["ErrImagePull"]);
    assert_eq!(space.field("service/web", selector), selected);
    space.serves("1.1", 2);
    assert_ended(&space.place.run(["down", "pipeline.cd"]).unwrap(), 0, &[]);
    assert_eq!(space.field("deployments,pods,services", "{.items[*].metadata.name}"), "");
}

#[test]
fn strategies_take_each_others_place() {
    let Some(space) = Space::new("strategies", "kubernetes-rolling.cd") else { return };
    space.strategy("traffic replicas", "rolling {}");
    assert_ended(&space.run("1.0"), 0, &[]);
    space.strategy("traffic replicas", "recreate {}");
    assert_ended(&space.run("1.1"), 0, &[]);
    space.serves("1.1", 4);
    assert_ended(&space.run("no-such-tag"), 3, &["ErrImagePull"]);
    space.serves("1.1", 4);
    space.strategy("traffic replicas", "rolling {}");
    assert_ended(&space.run("1.2"), 0, &[]);
    space.serves("1.2", 4);
    assert_eq!(space.image(), "1.2");
    space.strategy("traffic replicas", "canary { step 25% for 1s; step 50% for 1s }");
    assert_ended(&space.run("1.0"), 0, &["canary 25%", "canary 50%"]);
    space.serves("1.0", 4);
    assert_ended(&space.run("exits"), 3, &["cannot find my configuration"]);
    space.serves("1.0", 4);
    assert_ended(&space.place.run(["down", "pipeline.cd"]).unwrap(), 0, &[]);
    assert_eq!(space.field("deployments,pods", "{.items[*].metadata.name}"), "");
}

impl Space {
    /// Has the pipeline end in these stages.
    fn stages(&self, stages: &str) {
        let text = std::fs::read_to_string(self.place.work().join("pipeline.cd")).unwrap();
        let (head, _) = text.split_once("stage ").unwrap();
        let registry = std::env::var("CDPIPE_LAB_REGISTRY").unwrap();
        let stages =
            stages.replace("@BUSYBOX@", &format!("image = \"{registry}/busybox:1\", environment = cluster"));
        self.place.write("pipeline.cd", format!("{head}{stages}")).unwrap();
    }
}

#[test]
fn commands_run_inside_a_candidate_and_as_jobs() {
    let Some(mut space) = Space::new("commands", "kubernetes-blue-green.cd") else { return };
    space.place.set("TOKEN", "sesame-open");
    space.stages(
        "secret token from env \"TOKEN\"\n\
         stage look {\n  output answer: string\n  run \"echo it is $TOKEN; cat; echo answer=42 > $CDPIPE_OUTPUT\" \
         { @BUSYBOX@, stdin = \"read from stdin\\n\"\n env { TOKEN = token } }\n}\n\
         stage release {\n  needs = [look]\n  deploy web to cluster {\n    blue_green { keep_old = 0s }\n    verify { exec \"echo inside \
         $VERSION of $CDPIPE_SERVICE after ${stage.look.answer}\" }\n  }\n}\n",
    );
    let ended = space.run("1.0");
    assert_ended(&ended, 0, &["it is ***", "read from stdin", "inside 1.0 of web after 42"]);
    assert!(!format!("{}{}", ended.stdout, ended.stderr).contains("sesame-open"));
    // One that fails says how, and keeps the candidate from the users.
    let text = std::fs::read_to_string(space.place.work().join("pipeline.cd")).unwrap();
    let failing = text.replace("exec \"echo inside", "exec \"echo too bad; exit 4; echo");
    space.place.write("pipeline.cd", failing).unwrap();
    assert_ended(&space.run("1.1"), 3, &["too bad", "exited with 4"]);
    space.serves("1.0", 2);
    space.stages("stage look {\n  run \"echo oh no; exit 5\" { @BUSYBOX@ }\n}\n");
    assert_ended(&space.run("1.0"), 1, &["oh no", "exited with 5"]);
    let text = std::fs::read_to_string(space.place.work().join("pipeline.cd")).unwrap();
    space.place.write("pipeline.cd", text.replace("busybox:1", "busybox:missing")).unwrap();
    assert_ended(&space.run("1.0"), 1, &["can't be started", "ErrImagePull"]);
    // Nothing stays: cdpipe deletes them, and the cluster what it could not delete any more.
    let kept = space.field("jobs", "{.items[*].spec.ttlSecondsAfterFinished}");
    assert!(kept.split_whitespace().all(|kept| kept == "3600"), "{kept}");
}

#[test]
fn a_command_that_is_cancelled_is_gone_when_the_run_ends() {
    let Some(space) = Space::new("cancels", "kubernetes-blue-green.cd") else { return };
    space.stages("stage look {\n  run \"echo begun; sleep 600\" { @BUSYBOX@ }\n}\n");
    let run = space.begin("1.0");
    let phase = || space.field("pods", "{.items[*].status.phase}");
    assert!(comes_true(LONG, || phase() == "Running"), "{}", phase());
    assert_ended(&space.place.run(["cancel"]).unwrap(), 0, &[]);
    assert_ended(&ended(run), 1, &["cancelled"]);
    assert_eq!((space.field("jobs", "{.items[*].metadata.name}"), phase()), (String::new(), String::new()));
}

#[test]
fn a_release_comes_back_with_a_secret_that_the_pipeline_names_no_more() {
    let Some(mut space) = Space::new("withdrawn", "kubernetes-blue-green.cd") else { return };
    space.place.set("TOKEN", "sesame-open");
    let stages = "secret token from env \"TOKEN\"\nstage release {\n  deploy web to cluster {\n    rolling {}\n  }\n}\n";
    space.stages(stages);
    let text = std::fs::read_to_string(space.place.work().join("pipeline.cd")).unwrap();
    let text = text.replace("  traffic service", "  # traffic service");
    let with = text.replace("  drain = ", "  env { TOKEN = token }\n  drain = ");
    assert_ne!(with, text);
    space.place.write("pipeline.cd", with).unwrap();
    assert_ended(&space.run("1.0"), 0, &[]);
    space.place.write("pipeline.cd", text.replace("secret token from env \"TOKEN\"\n", "")).unwrap();
    assert_ended(&space.run("no-such-tag"), 3, &["ErrImagePull"]);
    space.serves("1.0", 2);
}

#[test]
fn a_job_of_a_killed_run_is_waited_for_and_not_run_again() {
    let Some(space) = Space::new("job", "kubernetes-rolling.cd") else { return };
    space.stages(
        "stage slow {\n  output answer: string\n  run \"echo begun; sleep 4; echo answer=7 > $CDPIPE_OUTPUT; echo over\" { @BUSYBOX@ \
         }\n}\nstage later {\n  needs = [slow]\n  run \"echo got ${stage.slow.answer}\"\n}\n",
    );
    let mut child = space.begin("1.0");
    let names = "{.items[*].metadata.uid}";
    assert!(comes_true(LONG, || space.field("pods", "{.items[*].status.phase}") == "Running"));
    let job = space.field("jobs", names);
    child.kill().unwrap();
    child.wait().unwrap();
    assert_ended(&space.place.run(["resume"]).unwrap(), 0, &["got 7"]);
    let after = space.field("jobs", names);
    assert!(after.is_empty() || after == job, "{after} beside {job}");
}
