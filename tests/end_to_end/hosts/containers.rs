//! Services of an image on machines, each of which has a Docker engine: every strategy with releases that are good and bad in each way,
//! the engine of a machine that is not there, and cdpipe killed in mid-deploy.

use super::{MACHINES, Machines, PATIENCE, assert_ended, seeds};
use cdpipe_tests::deployed::{Deployed, FILE, comes_true};
use cdpipe_tests::load::{Kind, Load, Mix, Running};
use cdpipe_tests::processes::Ended;
use std::collections::BTreeSet;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// The shop in an environment of its own; what it leaves on the machines goes with it.
pub(super) struct Containers<'a> {
    pub(super) machines: &'a Machines,
    pub(super) shop: Deployed,
    environment: String,
    pub(super) dir: String,
    /// Each machine reaches the lab's registry at its own loopback.
    registry: Vec<Child>,
}

impl<'a> Containers<'a> {
    pub(super) fn with(machines: &'a Machines, environment: &str, strategy: &str) -> Self {
        let registry = std::env::var("CDPIPE_LAB_REGISTRY").unwrap();
        let dir = format!("/var/lib/cdpipe-test-{}", cdpipe_tests::ports::free().unwrap());
        let text = include_str!("../../pipelines/hosts-containers.cd")
            .replace("@SSH_CONFIG@", &machines.ssh_config)
            .replace("@HERE@", environment)
            .replace("@DIR@", &dir)
            .replace("@REGISTRY@", &registry)
            .replace("@STRATEGY@", strategy);
        let shop = Deployed::with(&text).unwrap();
        let mut forwards = Vec::new();
        for machine in MACHINES {
            machines.shell(
                machine,
                &format!("mkdir -p /var/lib/cdpipe-bin {dir} && ln -sfn /var/lib/cdpipe-bin {dir}/bin"),
            );
            let mut ssh = Command::new("ssh");
            ssh.args(["-F", &machines.ssh_config, "-N", "-R", &format!("{registry}:{registry}"), machine]);
            forwards.push(ssh.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        }
        let found = Self { machines, shop, environment: environment.to_owned(), dir, registry: forwards };
        found.clear();
        for machine in MACHINES {
            let reached = || {
                let script = format!("curl -s -o /dev/null -w '%{{http_code}}' http://{registry}/v2/");
                machines.shell(machine, &script) == "200"
            };
            assert!(comes_true(PATIENCE, reached), "{machine} does not reach the registry");
        }
        found
    }

    pub(super) fn deploy(&self, version: &str, fault: &str) -> Ended {
        self.shop.deploy(version, fault).unwrap()
    }

    /// The containers that run, of each machine, without what is the same for all of them.
    fn running(&self) -> Vec<Vec<String>> {
        let script = format!(
            "docker ps --filter label=cdpipe.environment={} --format '{{{{.Image}}}} {{{{.Names}}}}'",
            self.environment
        );
        let lines = |machine| self.machines.shell(machine, &script).lines().map(str::to_owned).collect();
        MACHINES.iter().map(|machine| lines(machine)).collect()
    }

    fn counts(&self) -> Vec<usize> {
        self.running().iter().map(Vec::len).collect()
    }

    pub(super) fn answers(&self) -> (u16, String) {
        let answer = self.shop.ask().unwrap();
        (answer.status, answer.version)
    }

    fn visitors(&self) -> Running {
        let mix = Mix::new([
            (Kind::Short, 60),
            (Kind::Fresh, 20),
            (Kind::Slow { ms: 300 }, 15),
            (Kind::Socket { messages: 10, every_ms: 50, bytes: 200 }, 5),
        ]);
        Load {
            rate_per_s: 40,
            mix: mix.unwrap(),
            length: Duration::from_secs(300),
            ..Load::on(self.shop.address)
        }
        .start()
        .unwrap()
    }

    fn clear(&self) {
        let script = format!(
            "docker ps --all --quiet --filter label=cdpipe.environment={here} | xargs -r docker rm --force --volumes; \
             docker network rm {here}",
            here = self.environment
        );
        for machine in MACHINES {
            self.machines.shell(machine, &script);
        }
    }
}

impl Drop for Containers<'_> {
    fn drop(&mut self) {
        self.clear();
        for machine in MACHINES {
            self.machines.shell(machine, &format!("rm -rf {}", self.dir));
        }
        for ssh in &mut self.registry {
            let _ = ssh.kill();
            let _ = ssh.wait();
        }
    }
}

/// A good release under load; images that are not there or end at once and one that never gets ready, which nobody meets; and one that
/// goes bad under users. `steady` says whether no request may fail meanwhile.
fn good_and_bad(test: &str, environment: &str, strategy: &str, steady: bool) {
    let Some(machines) = Machines::get(test) else { return };
    let shop = Containers::with(&machines, environment, strategy);
    assert_ended(&shop.deploy("1.0", ""), 0, &[]);
    assert_eq!((shop.answers(), shop.counts()), ((200, "1.0".to_owned()), vec![1, 1, 1]));
    let users = shop.visitors();
    assert_ended(&shop.deploy("1.1", ""), 0, &[]);
    assert_eq!((shop.answers(), shop.counts()), ((200, "1.1".to_owned()), vec![1, 1, 1]));
    let stable = shop.running();
    let nowhere = shop.deploy("nowhere", "");
    assert_ended(&nowhere, 1, &["web-1", "shop:nowhere can't be had"]);
    assert_eq!(shop.running(), stable, "nothing was touched");
    assert_ended(&shop.deploy("exits", ""), 3, &["exit code 3", "cannot find my configuration"]);
    assert_ended(&shop.deploy("1.2", "never-healthy"), 3, &["/health", "503"]);
    assert_eq!((shop.answers(), shop.counts()), ((200, "1.1".to_owned()), vec![1, 1, 1]));
    let report = users.stop().unwrap();
    if steady {
        assert!(report.failures().is_empty(), "{report}");
    }
    let users = shop.visitors();
    assert_ended(&shop.deploy("1.2", "errors=50%"), 3, &["error_rate"]);
    let report = users.stop().unwrap();
    if steady {
        // Its errors were answers that users got; nothing else may have failed.
        assert!(report.failures().iter().all(|record| record.status == Some(500)), "{report}");
    }
    assert_eq!((shop.answers(), shop.counts()), ((200, "1.1".to_owned()), vec![1, 1, 1]));
    assert_ended(&shop.deploy("1.1", ""), 0, &["unchanged"]);
    assert_ended(&shop.shop.place.run(["down", FILE]).unwrap(), 0, &["3 instances stopped"]);
    assert_eq!(shop.counts(), [0, 0, 0]);
}

#[test]
fn containers_blue_green() {
    good_and_bad("containers_blue_green", "bluegreen", "blue_green { keep_old = 500ms }", true);
}

#[test]
fn containers_rolling() {
    good_and_bad("containers_rolling", "rolling", "rolling { batch = 1, monitor = 1s }", true);
}

#[test]
fn containers_canary() {
    good_and_bad("containers_canary", "canary", "canary { step 50% for 1s }", true);
}

#[test]
fn containers_recreate() {
    good_and_bad("containers_recreate", "recreate", "recreate {}", false);
}

#[test]
fn containers_of_a_killed_run_are_gone_on_with_and_none_is_there_twice() {
    let test = "containers_of_a_killed_run_are_gone_on_with_and_none_is_there_twice";
    let Some(machines) = Machines::get(test) else { return };
    let shop = Containers::with(&machines, "killed", "rolling { batch = 1, monitor = 200ms }");
    assert_ended(&shop.deploy("1.0", ""), 0, &[]);
    let users = shop.visitors();
    let mut version = "1.0";
    for seed in seeds() {
        version = if version == "1.1" { "1.2" } else { "1.1" };
        let set = format!("version={version}");
        let before: BTreeSet<String> = shop.running().into_iter().flatten().collect();
        let mut run = shop.shop.place.command(["run", FILE, "--set", &set]);
        let mut run = run.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // Killed when the first machine, and with another seed the second or the third, has its new container.
        let wanted = usize::try_from(seed % 3).unwrap() + 1;
        let new = || shop.running().into_iter().flatten().filter(|name| !before.contains(name)).count();
        let in_the_middle = comes_true(PATIENCE, || new() >= wanted);
        run.kill().unwrap();
        run.wait().unwrap();
        assert!(in_the_middle, "seed {seed}: {:?}", shop.running());
        let resumed = shop.shop.place.run(["resume"]).unwrap();
        assert_ended(&resumed, 0, &[]);
        assert_eq!(shop.answers(), (200, version.to_owned()), "seed {seed}");
        assert_eq!(shop.counts(), [1, 1, 1], "seed {seed}: {:?}", shop.running());
    }
    let report = users.stop().unwrap();
    assert!(report.failures().is_empty(), "{report}");
}

#[test]
fn a_machine_without_an_engine_is_named() {
    let test = "a_machine_without_an_engine_is_named";
    let Some(machines) = Machines::get(test) else { return };
    let shop = Containers::with(&machines, "without", "rolling {}");
    let file = shop.shop.place.work().join(FILE);
    let text = std::fs::read_to_string(&file).unwrap();
    let with = |setting: &str| {
        let text = text.replace("    network ", &format!("    {setting}\n    network "));
        std::fs::write(&file, text).unwrap();
    };
    with("engine     = \"unix:///nowhere/docker.sock\"");
    let says = ["web-1", "no Docker engine answers at unix:///nowhere/docker.sock", "`engine` of the target"];
    assert_ended(&shop.deploy("1.0", ""), 1, &says);
    with("engine     = \"unix:///var/run/docker.sock\"");
    assert_ended(&shop.deploy("1.0", ""), 0, &[]);
}
