//! The two pipelines over machines, as they stand in `pipelines/`: one after the other, twice, on the machines of the lab. Both have the
//! same release of the same service, in environments of their own.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says that something is wrong by panicking")]

use cdpipe_tests::deployed::ask;
use cdpipe_tests::lab;
use cdpipe_tests::place::{Place, repository};
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

/// What the pipelines promise beside the build of the shop, which takes minutes on a cold and busy machine.
const RUN_WITHIN: Duration = Duration::from_secs(120);

struct Lab {
    place: Place,
    ssh_config: String,
}

impl Lab {
    fn get(test: &str) -> Option<Self> {
        let Ok(ssh_config) = std::env::var("CDPIPE_LAB_HOSTS") else {
            lab::skip(test, "machines with SSH (cargo xtask lab up hosts)").unwrap();
            return None;
        };
        let mut place = Place::new().unwrap();
        place.limit(Duration::from_secs(25 * 60));
        Some(Self { place, ssh_config })
    }

    /// `cdpipe COMMAND pipelines/NAME.cd`, and what it said. The machines are found where the file looks for them.
    fn cdpipe(&self, command: &str, name: &str, more: &[&str]) -> String {
        let file = repository().join("pipelines").join(format!("{name}.cd"));
        let mut arguments = vec![command, file.to_str().unwrap()];
        arguments.extend(more);
        let ended = self.place.run(arguments).unwrap();
        assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
        ended.stdout + &ended.stderr
    }

    /// Builds what both deploy, so that the time of a run is its own.
    fn build(&self) {
        let status = Command::new(env!("CARGO"))
            .args(["build", "--release", "--quiet", "--package", "cdpipe-demo"])
            .env("CARGO_TARGET_DIR", "target")
            .current_dir(repository())
            .status();
        assert!(status.unwrap().success());
    }

    fn on(&self, machine: &str, script: &str) -> String {
        let output = Command::new("ssh").args(["-F", &self.ssh_config, machine, script]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}

fn in_time<T>(what: &str, act: impl FnOnce() -> T) -> T {
    let begin = std::time::Instant::now();
    let result = act();
    assert!(begin.elapsed() < RUN_WITHIN, "{what} took {:?}", begin.elapsed());
    result
}

/// What the visitors of the pipeline met, as it tells at its end.
#[track_caller]
fn assert_visitors(said: &str, versions: &[&str]) {
    let line = said.lines().find(|line| line.contains("visitors: ")).unwrap_or_default();
    assert!(line.contains("no failures"), "{said}");
    for version in versions {
        assert!(line.contains(version), "{version} is missing from {line}");
    }
}

#[test]
fn the_pipelines_over_machines_run_as_they_stand() {
    let Some(lab) = Lab::get("the pipelines over machines") else { return };
    lab.build();
    let address = SocketAddr::from(([127, 0, 0, 1], cdpipe_tests::ports::free().unwrap()));
    let port = format!("port={}", address.port());
    for _ in 0..2 {
        let said = in_time("hosts-rolling", || lab.cdpipe("run", "hosts-rolling", &["--set", &port]));
        assert_visitors(&said, &["v1.0.0", "v2.0.0"]);
        let said = in_time("hosts-blue-green", || lab.cdpipe("run", "hosts-blue-green", &[]));
        assert_visitors(&said, &["v1.0.0", "v2.0.0"]);
        let answer = ask(address, "").unwrap();
        assert_eq!((answer.status, answer.version.as_str()), (200, "v2.0.0"));
        let version = lab.on("web-1", "curl --silent http://127.0.0.1:8080/version");
        assert!(version.contains("v2.0.0"), "{version}");
        for machine in ["web-1", "web-2", "web-3"] {
            let units = "systemctl list-units --no-legend --plain 'cdpipe-shop-*' | grep -c running";
            assert_eq!(lab.on(machine, units), "2", "one of each environment on {machine}");
        }
    }
    for name in ["hosts-rolling", "hosts-blue-green"] {
        let said = lab.cdpipe("down", name, &[]);
        assert!(said.contains("instances stopped"), "{said}");
    }
    for machine in ["web-1", "web-2", "web-3"] {
        assert_eq!(lab.on(machine, "ls /etc/systemd/system | grep -c '^cdpipe-'"), "0", "on {machine}");
    }
}
