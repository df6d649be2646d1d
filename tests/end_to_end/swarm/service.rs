//! What a service says of its tasks, where their image comes from, and commands in containers of their own.

use super::{PATIENCE, ROLLING, assert_ended, shop};
use cdpipe_tests::deployed::comes_true;
use cdpipe_tests::lab;

#[test]
fn settings_of_a_service_reach_its_tasks() {
    let Some(shop) = shop("swarm-settings", ROLLING, false) else { return };
    let place = &shop.deployed.place;
    let note = place.work().join("note");
    std::fs::write(&note, "from outside").unwrap();
    let path = note.display().to_string();
    // A secret and a config that other tests know nothing of.
    let (secret, config) = (format!("note-{}", std::process::id()), format!("plan-{}", std::process::id()));
    shop.docker(&["secret", "create", &secret, &path]);
    shop.docker(&["config", "create", &config, &path]);
    let settings = format!(
        "drain    = 2s\n  mounts = [\"{path}:/seen/note:ro\"]\n  restart = on_failure\n  user = \"0:0\"\n  workdir = \"/tmp\"\n  \
         stop_signal = \"SIGINT\"\n  placement = [\"node.role == manager\"]\n  resources {{ cpu = 0.1, memory = 48Mi }}\n  \
         logs {{ driver = \"json-file\", max_size = \"2m\" }}\n  labels {{ team = \"shop\" }}\n  \
         secrets {{ {secret} = \"/seen/secret\" }}\n  configs {{ {config} = \"/seen/config\" }}"
    );
    let text = std::fs::read_to_string(place.work().join("shop.cd")).unwrap();
    let verify = "verify {\n      exec \"test \\\"$(pwd) $(cat /seen/note /seen/secret /seen/config)\\\" = \
        '/tmp from outsidefrom outsidefrom outside'\"\n    }\n    watch every 500ms {";
    let text = text.replace("drain    = 2s", &settings).replace("watch every 500ms {", verify);
    place.write("shop.cd", &text).unwrap();
    let ended = shop.deploy("1.0");
    let format = "{{with .Spec.TaskTemplate}}{{.RestartPolicy.Condition}} {{.LogDriver.Name}} {{.Placement.Constraints}} \
        {{.Resources.Limits.MemoryBytes}} {{.ContainerSpec.StopSignal}} {{.ContainerSpec.User}}{{end}} \
        {{index .Spec.Labels \"team\"}}";
    let inspected = shop.docker(&["service", "inspect", "--format", format, &shop.name]);
    place.write("shop.cd", text.replace(&secret, "no-such-secret")).unwrap();
    let without = shop.deploy("1.1");
    let _ = place.run(["down", "shop.cd"]);
    shop.docker(&["secret", "rm", &secret]);
    shop.docker(&["config", "rm", &config]);
    assert_ended(&ended, 0, &[]);
    assert_eq!(inspected, "on-failure json-file [node.role == manager] 50331648 SIGINT 0:0 shop");
    assert_ended(&without, 1, &["no secret `no-such-secret`", "docker secret create"]);
}

#[test]
fn a_command_in_a_task_is_heard_and_may_be_late() {
    let Some(shop) = shop("swarm-exec", ROLLING, false) else { return };
    let place = &shop.deployed.place;
    let text = std::fs::read_to_string(place.work().join("shop.cd")).unwrap();
    let with = |verify: &str| {
        let verify = format!("verify {{\n      {verify}\n    }}\n    watch every 500ms {{");
        place.write("shop.cd", text.replace("watch every 500ms {", &verify)).unwrap();
    };
    with("exec \"echo it says told\"");
    assert_ended(&shop.deploy("1.0"), 0, &["it says told"]);
    with("exec \"echo oh no; exit 5\"");
    assert_ended(&shop.deploy("1.1"), 3, &["oh no", "ended with 5"]);
    with("exec \"echo begun; sleep 77\" { timeout = 2s }");
    let late = shop.deploy("1.1");
    assert_ended(&late, 3, &["begun", "timed out"]);
    assert!(!format!("{}{}", late.stdout, late.stderr).contains("did not answer"), "{}", late.stdout);
    assert!(comes_true(PATIENCE, || shop.running() == ["1.0"; 3]), "{:?}", shop.running());
}

#[test]
fn images_of_a_registry_with_a_password() {
    let test = "swarm images_of_a_registry_with_a_password";
    let Some(shop) = shop("swarm-locked", ROLLING, false) else { return };
    let Ok(locked) = std::env::var("CDPIPE_LAB_REGISTRY_LOCKED") else {
        return lab::skip(test, "a registry with a password (cargo xtask lab up registry)").unwrap();
    };
    let place = &shop.deployed.place;
    let image = format!("image={locked}/shop:1.0");
    let deploy = |config: &str| {
        shop.docker(&["rmi", "--force", &format!("{locked}/shop:1.0")]);
        place.write("config.json", config).unwrap();
        let mut run = place.command(["run", "shop.cd", "--set", "version=1.0", "--set", &image]);
        let output = run.env("DOCKER_CONFIG", place.work()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        (output.status.code(), said.into_owned())
    };
    let (code, said) = deploy("{}");
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains(&format!("there is no image {locked}/shop:1.0")), "{said}");
    // "lab:lab"
    let (code, said) = deploy(&format!("{{\"auths\": {{\"{locked}\": {{\"auth\": \"bGFiOmxhYg==\"}}}}}}"));
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(shop.running(), ["1.0"; 3]);
}

#[test]
fn a_command_runs_in_a_container_of_its_own() {
    let Some(shop) = shop("swarm-steps", ROLLING, false) else { return };
    let place = &shop.deployed.place;
    let text = std::fs::read_to_string(place.work().join("shop.cd")).unwrap();
    let (head, _) = text.split_once("\nstage ").unwrap();
    let registry = std::env::var("CDPIPE_LAB_REGISTRY").unwrap();
    let stage = format!(
        "stage look {{\n  output answer: string\n  run \"echo answer=42 > $CDPIPE_OUTPUT\" {{ image = \"{registry}/busybox:1\", \
         environment = {} }}\n}}\nstage later {{\n  needs = [look]\n  run \"echo got ${{stage.look.answer}}\"\n}}\n",
        shop.name
    );
    place.write("shop.cd", format!("{head}\n{stage}")).unwrap();
    assert_ended(&shop.deploy("1.0"), 0, &["got 42"]);
}

#[test]
fn one_release_runs_in_two_environments_of_a_swarm() {
    let name = "swarm-places";
    let strategy = "blue_green { keep_old = 0s }";
    let (Some(one), Some(two)) = (shop(name, strategy, true), shop(name, strategy, true)) else { return };
    let place = &two.deployed.place;
    let text = std::fs::read_to_string(place.work().join("shop.cd")).unwrap();
    let text = text.replace(&format!("environment {name} {{"), "environment elsewhere {");
    place.write("shop.cd", text.replace(&format!("to {name} {{"), "to elsewhere {")).unwrap();
    let kept = || {
        let filter = format!("label=cdpipe.service={name}");
        let filters = ["--filter", filter.as_str(), "--filter", "label=cdpipe.kind=release"];
        let listed = one.docker(&[&["config", "ls", "--quiet"], filters.as_slice()].concat());
        listed.lines().count()
    };
    assert_ended(&one.deploy("1.0"), 0, &[]);
    assert_ended(&two.deploy("1.0"), 0, &[]);
    assert_eq!((one.running().len(), kept()), (6, 2));
    for shop in [&one, &two] {
        let answer = shop.deployed.ask().unwrap();
        assert_eq!((answer.status, answer.version.as_str()), (200, "1.0"));
    }
    assert_ended(&place.run(["down", "shop.cd"]).unwrap(), 0, &[]);
    assert!(comes_true(PATIENCE, || one.running().len() == 3), "{:?}", one.running());
    assert_eq!(kept(), 1);
    assert_eq!(one.deployed.ask().unwrap().status, 200);
}
