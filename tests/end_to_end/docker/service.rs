//! What a service says of its containers: settings, health checks, where images come from, what is taken over and what is kept.

use super::{Shop, assert_ended};
use cdpipe_tests::deployed::comes_true;
use cdpipe_tests::edge::{Edge, Router, program};
use cdpipe_tests::lab;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);
const HEALTH: &str = "health   http \"/health\" { every = 100ms, timeout = 1s, within = 5s }";
const IMAGE: &str = "image    = \"@REGISTRY@/shop:${image}\"";

/// Writes the pipeline with `new` in place of `old`.
fn change(shop: &Shop, old: &str, new: &str) {
    let file = shop.deployed.place.work().join("shop.cd");
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.contains(old), "{old:?} is missing from\n{text}");
    std::fs::write(&file, text.replace(old, new)).unwrap();
}

#[test]
fn settings_of_a_service_reach_its_containers() {
    let Some(shop) = Shop::new("settings_of_a_service_reach_its_containers", "recreate", 1) else { return };
    let seen = shop.deployed.place.work().join("seen");
    std::fs::create_dir(&seen).unwrap();
    std::fs::write(seen.join("note"), "from outside").unwrap();
    let settings = format!(
        "drain    = 2s\n  mounts = [\"{}:/seen:ro\"]\n  restart = on_failure\n  entrypoint = [\"/bin/sh\", \"-c\", \"exec /bin/shop\"]\n  user = \"65534:65534\"\n  workdir = \"/tmp\"\n  \
         stop_signal = \"SIGINT\"\n  resources {{ cpu = 0.25, memory = 48Mi, memory_limit = 96Mi }}\n  \
         logs {{ driver = \"json-file\", max_size = \"2m\", max_file = \"2\" }}\n  labels {{ team = \"shop\" }}",
        seen.display()
    );
    change(&shop, "drain    = 2s", &settings);
    change(
        &shop,
        "exec \"wget -q -O - http://127.0.0.1:8080/health\"",
        "exec \"test \\\"$(id -u) $(pwd) $(cat /seen/note)\\\" = '65534 /tmp from outside'\"",
    );
    assert_ended(&shop.deploy("1.0", ""), 0, &[]);
    let name = shop.running().remove(0);
    let format = "{{.HostConfig.NanoCpus}} {{.HostConfig.Memory}} {{.HostConfig.MemoryReservation}} \
        {{.HostConfig.RestartPolicy.Name}} {{.HostConfig.LogConfig.Type}} {{.HostConfig.LogConfig.Config}} \
        {{.Config.Entrypoint}} {{.Config.StopSignal}} {{.Config.User}} {{index .Config.Labels \"team\"}}";
    assert_eq!(
        shop.docker(&["inspect", "--format", format, &name]),
        "250000000 100663296 50331648 on-failure json-file map[max-file:2 max-size:2m] [/bin/sh -c exec /bin/shop] SIGINT 65534:65534 shop"
    );
}

#[test]
fn a_container_that_dies_is_started_again() {
    let Some(shop) = Shop::new("a_container_that_dies_is_started_again", "recreate", 1) else { return };
    assert_ended(&shop.deploy("1.0", ""), 0, &[]);
    let name = shop.running().remove(0);
    let pid = || shop.docker(&["inspect", "--format", "{{.State.Pid}}", &name]);
    let before = pid();
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(before.parse().unwrap()).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    assert!(comes_true(PATIENCE, || pid() != before && pid() != "0"), "{before} {}", pid());
    // At the address that it had, so that no router needs to hear of it.
    assert!(comes_true(PATIENCE, || shop.deployed.ask().is_ok_and(|answer| answer.status == 200)));
}

/// A check that passes lets a release in, and one that does not, keeps it out, with what the check said.
fn decides(test: &str, health: &str, image: &str, says: &str) {
    let Some(shop) = Shop::new(test, "blue_green", 1) else { return };
    change(&shop, HEALTH, health);
    assert_ended(&shop.deploy(image, ""), 0, &[]);
    let stable = shop.running();
    assert_ended(&shop.deploy(image, "never-healthy"), 3, &[says]);
    assert_eq!(shop.running(), stable);
    assert_eq!(shop.answers().0, 200);
}

#[test]
fn the_images_own_healthcheck_decides() {
    // Nothing in the pipeline says how long it may take: the engine's own verdict ends the wait.
    decides("the_images_own_healthcheck_decides", "", "healthcheck", "its image's check says");
}

#[test]
fn a_command_inside_decides() {
    let health = "health command \"wget -q -O /dev/null http://127.0.0.1:8080/health\" { every = 200ms, timeout = 2s, within = 4s }";
    decides("a_command_inside_decides", health, "1.0", "its health check says");
}

#[test]
fn a_port_that_nobody_listens_on_decides() {
    let Some(shop) = Shop::new("a_port_that_nobody_listens_on_decides", "blue_green", 1) else { return };
    change(&shop, HEALTH, "health tcp { every = 100ms, timeout = 1s, within = 3s }");
    assert_ended(&shop.deploy("1.0", ""), 0, &[]);
    let stable = shop.running();
    change(&shop, "port     = 8080", "port     = 8080\n  command  = [\"/bin/sh\", \"-c\", \"sleep 60\"]");
    assert_ended(&shop.deploy("1.1", ""), 3, &["closes connections at once"]);
    assert_eq!(shop.running(), stable);
}

#[test]
fn a_container_that_runs_already_is_refused_or_taken_over() {
    let test = "a_container_that_runs_already_is_refused_or_taken_over";
    let Some(shop) = Shop::new(test, "blue_green { keep_old = 0s }", 1) else { return };
    let registry = std::env::var("CDPIPE_LAB_REGISTRY").unwrap();
    let name = format!("by-hand-{}", std::process::id());
    let image = format!("{registry}/shop:1.0");
    let volume = format!("{name}:/data");
    shop.docker(&[
        "run",
        "--detach",
        "--name",
        &name,
        "--volume",
        &volume,
        "--publish",
        "127.0.0.1:0:8080",
        &image,
    ]);
    let state = || shop.docker(&["inspect", "--format", "{{.State.Status}}", &name]);
    let both = || {
        change(&shop, "drain    = 2s", &format!("drain    = 2s\n  name     = \"{name}\""));
        assert_ended(&shop.deploy("1.1", ""), 1, &["was not made by cdpipe", "adopt = true"]);
        assert_eq!(state(), "running");
        change(&shop, "drain    = 2s", "drain    = 2s\n  adopt    = true");
        assert_ended(&shop.deploy("exits", ""), 3, &["cannot find my configuration"]);
        assert_eq!((state().as_str(), shop.answers()), ("running", (200, "1.0".to_owned())));
        assert_ended(&shop.deploy("1.1", ""), 0, &["1.0 -> 1.1"]);
        assert_eq!(shop.answers(), (200, "1.1".to_owned()));
        assert_eq!(state(), "exited");
        let ended = shop.deployed.place.run(["rollback", "shop", &shop.environment]).unwrap();
        assert_ended(&ended, 0, &[]);
        assert_eq!((state().as_str(), shop.answers()), ("running", (200, "1.0".to_owned())));
    };
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(both));
    shop.docker(&["rm", "--force", &name]);
    shop.docker(&["volume", "rm", &name]);
    result.unwrap();
}

#[test]
fn a_release_that_is_brought_back_is_the_same_image_also_where_its_tag_has_moved() {
    let test = "a_release_that_is_brought_back_is_the_same_image_also_where_its_tag_has_moved";
    let Some(shop) = Shop::new(test, "blue_green { keep_old = 0s }", 1) else { return };
    let registry = std::env::var("CDPIPE_LAB_REGISTRY").unwrap();
    let tag = format!("moving-{}", std::process::id());
    let moves_to = |version: &str| {
        let (from, to) = (format!("{registry}/shop:{version}"), format!("{registry}/shop:{tag}"));
        shop.docker(&["pull", &from]);
        shop.docker(&["tag", &from, &to]);
        shop.docker(&["push", &to]);
        shop.docker(&["rmi", "--no-prune", &to]);
    };
    moves_to("1.0");
    assert_ended(&shop.deploy(&tag, ""), 0, &[]);
    moves_to("1.1");
    assert_ended(&shop.deploy(&tag, ""), 0, &[]);
    assert_eq!(shop.answers(), (200, "1.1".to_owned()));
    let ended = shop.deployed.place.run(["rollback", "shop", &shop.environment]).unwrap();
    assert_ended(&ended, 0, &[]);
    assert_eq!(shop.answers(), (200, "1.0".to_owned()));
}

#[test]
fn images_of_a_registry_with_a_password() {
    let test = "images_of_a_registry_with_a_password";
    let Some(shop) = Shop::new(test, "recreate", 1) else { return };
    let Ok(locked) = std::env::var("CDPIPE_LAB_REGISTRY_LOCKED") else {
        return lab::skip(test, "a registry with a password (cargo xtask lab up registry)").unwrap();
    };
    let open = std::env::var("CDPIPE_LAB_REGISTRY").unwrap();
    change(&shop, &IMAGE.replace("@REGISTRY@", &open), &IMAGE.replace("@REGISTRY@", &locked));
    let image = format!("{locked}/shop:1.0");
    let folder = shop.deployed.place.work();
    let deploy = |config: &str| {
        // What was pulled before would hide that it can't be pulled.
        shop.clear();
        shop.docker(&["rmi", "--force", &image]);
        std::fs::write(folder.join("config.json"), config).unwrap();
        let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap());
        let mut run = shop.deployed.place.command(["run", "shop.cd", "--set", "image=1.0"]);
        let output = run.env("DOCKER_CONFIG", &folder).env("PATH", path).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        (output.status.code(), said.into_owned())
    };
    let must = |config: &str, code: i32, says: &[&str]| {
        let (found, said) = deploy(config);
        assert_eq!(found, Some(code), "{said}");
        for part in says {
            assert!(said.contains(part), "{part:?} is missing from\n{said}");
        }
        assert!(!said.contains("lab:lab") && !said.contains("bGFiOmxhYg=="), "{said}");
    };
    must("{}", 1, &["shop:1.0 can't be had", "docker login"]);
    // "lab:wrong"
    let auth = |encoded: &str| format!("{{\"auths\": {{\"{locked}\": {{\"auth\": \"{encoded}\"}}}}}}");
    must(&auth("bGFiOndyb25n"), 1, &["shop:1.0 can't be had", "docker login"]);
    must(&auth("not base64!"), 1, &["is not base64 of `user:password`"]);
    must("{ nothing", 1, &["config.json can't be used"]);
    must(&auth("bGFiOmxhYg=="), 0, &[]);
    let helper = folder.join("docker-credential-lab");
    let script = "#!/bin/sh\nread registry\n[ \"$1\" = get ] && [ \"$registry\" = \"@\" ] || exit 1\n\
        echo '{\"ServerURL\": \"\", \"Username\": \"lab\", \"Secret\": \"lab\"}'\n";
    std::fs::write(&helper, script.replace('@', &locked)).unwrap();
    std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755)).unwrap();
    must("{\"credsStore\": \"lab\"}", 0, &[]);
    must(&format!("{{\"credHelpers\": {{\"{locked}\": \"lab\"}}}}"), 0, &[]);
    must("{\"credsStore\": \"missing\"}", 1, &["docker-credential-missing could not be started"]);
}

#[test]
fn of_former_releases_as_many_are_kept_as_it_says() {
    let test = "of_former_releases_as_many_are_kept_as_it_says";
    let Some(shop) = Shop::new(test, "blue_green { keep_old = 0s }", 2) else { return };
    change(&shop, "drain    = 2s", "drain    = 2s\n  retain   = 2");
    for (version, fault) in
        [("1.0", ""), ("1.1", ""), ("1.2", ""), ("1.0", "latency=1ms"), ("1.1", "latency=1ms")]
    {
        assert_ended(&shop.deploy(version, fault), 0, &[]);
    }
    let filter = format!("label=cdpipe.environment={}", shop.environment);
    let kept = shop.docker(&["ps", "--all", "--quiet", "--filter", &filter, "--filter", "status=exited"]);
    let format = "{{range .Config.Env}}{{println .}}{{end}}";
    let mut kept: Vec<String> = kept
        .lines()
        .map(|id| {
            let env = shop.docker(&["inspect", "--format", format, id]);
            let mut of =
                env.lines().filter(|line| line.starts_with("VERSION=") || line.starts_with("FAULT="));
            let (one, other) = (of.next().unwrap_or_default(), of.next().unwrap_or_default());
            let mut both = [one, other];
            both.sort_unstable();
            both.join(" ")
        })
        .collect();
    kept.sort_unstable();
    assert_eq!(kept, ["FAULT= VERSION=1.2", "FAULT=latency=1ms VERSION=1.0"]);
    assert_eq!(shop.running().len(), 2);
}

#[test]
fn haproxy_stands_before_containers() {
    let test = "haproxy_stands_before_containers";
    let Some(shop) = Shop::new(test, "canary { step 50% for 500ms }", 2) else { return };
    if program(Router::Haproxy).is_none() {
        return lab::skip(test, "haproxy (apt-get install haproxy)").unwrap();
    }
    let text = std::fs::read_to_string(shop.deployed.place.work().join("shop.cd")).unwrap();
    let route = format!("route    {{ listen = \"{}\" }}", shop.deployed.address);
    let text = text.replace("traffic proxy {}", "traffic @TRAFFIC@").replace(&route, "");
    let edge = Edge::of(Router::Haproxy, &text).unwrap();
    let deploy = |image: &str, code: i32| {
        let ended = edge.shop.place.run(["run", "shop.cd", "--set", &format!("image={image}")]).unwrap();
        assert_ended(&ended, code, &[]);
    };
    let serves = |version: &str| {
        let answer = edge.shop.ask().unwrap();
        assert_eq!((answer.status, answer.version.as_str()), (200, version), "{}", edge.log());
    };
    deploy("1.0", 0);
    serves("1.0");
    let load = cdpipe_tests::load::Load {
        mix: cdpipe_tests::load::Mix::only(cdpipe_tests::load::Kind::Short),
        ..cdpipe_tests::load::Load::on(edge.shop.address)
    };
    let users = load.start().unwrap();
    deploy("1.1", 0);
    serves("1.1");
    deploy("exits", 3);
    serves("1.1");
    let report = users.stop().unwrap();
    assert!(report.failures().is_empty(), "{report}");
}
