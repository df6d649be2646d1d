//! The target `hosts` on real machines: containers with systemd and an SSH server. Every strategy under an open load, releases that are
//! bad in each way, machines that are not who they were, that are cut off or die, and the engine killed in mid-deploy.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says that something is wrong by panicking")]

#[path = "hosts/containers.rs"]
mod containers;
#[path = "hosts/proxy.rs"]
mod proxy;

use cdpipe_tests::deployed::{Deployed, FILE, comes_true};
use cdpipe_tests::lab;
use cdpipe_tests::load::{Kind, Load, Mix, Running};
use cdpipe_tests::place::binary;
use cdpipe_tests::processes::Ended;
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// For what only a very busy machine delays.
const PATIENCE: Duration = Duration::from_secs(60);

const MACHINES: [&str; 3] = ["web-1", "web-2", "web-3"];

const BLUE_GREEN: &str = "blue_green { keep_old = 500ms }";

/// The machines are the same for all tests, and some tests cut them off.
static MACHINES_TURN: Mutex<()> = Mutex::new(());

/// The machines of the lab, and this test's turn to use them.
struct Machines {
    ssh_config: String,
    engine: String,
    network: String,
    subnet: String,
    _turn: MutexGuard<'static, ()>,
}

impl Machines {
    /// `None` where there are none; says so.
    fn get(test: &str) -> Option<Self> {
        let (Ok(ssh_config), Ok(engine), Ok(network)) = (
            std::env::var("CDPIPE_LAB_HOSTS"),
            std::env::var("CDPIPE_LAB_HOSTS_ENGINE"),
            std::env::var("CDPIPE_LAB_HOSTS_NETWORK"),
        ) else {
            lab::skip(test, "machines with SSH (cargo xtask lab up hosts)").unwrap();
            return None;
        };
        let (network, subnet) = network.split_once(' ').unwrap();
        let turn = MACHINES_TURN.lock().unwrap_or_else(PoisonError::into_inner);
        Some(Self { ssh_config, engine, network: network.to_owned(), subnet: subnet.to_owned(), _turn: turn })
    }

    fn docker(&self, args: &[&str]) -> String {
        let output = Command::new("docker").args(["--host", &self.engine]).args(args).output().unwrap();
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    }

    fn shell(&self, machine: &str, script: &str) -> String {
        let output = Command::new("ssh").args(["-F", &self.ssh_config, machine, script]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// How many processes of the shop of this version run there.
    fn shops(&self, dir: &str, version: &str) -> Vec<usize> {
        let script = format!(
            "n=0; for p in $(grep -lsx shop /proc/[0-9]*/comm | cut -d/ -f3); do e=$(tr '\\0' '\\n' < /proc/$p/environ 2>/dev/null); \
             case \"$e\" in *{dir}/*) echo \"$e\" | grep -qx 'VERSION={version}' && n=$((n+1));; esac; done; echo $n"
        );
        MACHINES.iter().map(|machine| self.shell(machine, &script).parse().unwrap_or(0)).collect()
    }

    fn cut(&self, machine: &str) {
        self.docker(&["network", "disconnect", "--force", &self.network, machine]);
    }

    fn heal(&self, machine: &str) {
        let last = machine.rsplit('-').next().unwrap().parse::<u32>().unwrap() + 10;
        let address = format!("{}.{last}", self.subnet);
        self.docker(&["network", "connect", "--ip", &address, &self.network, machine]);
        self.docker(&["start", machine]);
        assert!(
            comes_true(PATIENCE, || self.shell(machine, "echo back") == "back"),
            "{machine} does not come back"
        );
    }
}

/// The shop on the machines, in a folder of its own there, which goes with it.
struct Shop<'a> {
    machines: &'a Machines,
    shop: Deployed,
    dir: String,
}

impl<'a> Shop<'a> {
    fn with(machines: &'a Machines, strategy: &str, units: &str) -> Self {
        Self::watched(machines, strategy, units, "0s")
    }

    /// With a watch that goes on for so long after the last user has come.
    fn watched(machines: &'a Machines, strategy: &str, units: &str, after: &str) -> Self {
        let dir = format!("/var/lib/cdpipe-test-{}", cdpipe_tests::ports::free().unwrap());
        let text = include_str!("../pipelines/hosts.cd")
            .replace("@SSH_CONFIG@", &machines.ssh_config)
            .replace("@DIR@", &dir)
            .replace("@UNITS@", units)
            .replace("@AFTER@", after)
            .replace("@STRATEGY@", strategy)
            .replace("@SHOP@", "shop");
        let shop = Deployed::with(&text).unwrap();
        std::fs::copy(binary("shop").unwrap(), shop.place.work().join("shop")).unwrap();
        // The agent is the same for all tests; what is uploaded once need not go over the wire again.
        for machine in MACHINES {
            machines.shell(
                machine,
                &format!("mkdir -p /var/lib/cdpipe-bin {dir} && ln -sfn /var/lib/cdpipe-bin {dir}/bin"),
            );
        }
        Self { machines, shop, dir }
    }

    fn deploy(&self, version: &str, fault: &str) -> Ended {
        self.shop.deploy(version, fault).unwrap()
    }

    fn shops(&self, version: &str) -> Vec<usize> {
        self.machines.shops(&self.dir, version)
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

    fn answers(&self) -> (u16, String) {
        let answer = self.shop.ask().unwrap();
        (answer.status, answer.version)
    }
}

impl Drop for Shop<'_> {
    fn drop(&mut self) {
        // Whatever is left, the next test must not meet it.
        for machine in MACHINES {
            let script = format!(
                "for u in $(cd /etc/systemd/system; grep -ls {dir} cdpipe-*.service); do systemctl stop $u; rm -f /etc/systemd/system/$u \
                 /etc/systemd/system/*.wants/$u; done; for p in $(grep -lsa '{dir}' /proc/[0-9]*/environ /proc/[0-9]*/cmdline | cut -d/ -f3); do \
                 [ $p = $$ ] || kill -9 $p; done 2>/dev/null; rm -rf {dir}",
                dir = self.dir
            );
            self.machines.shell(machine, &script);
        }
    }
}

#[track_caller]
fn assert_ended(ended: &Ended, code: i32, says: &[&str]) {
    assert_eq!(ended.code, Some(code), "stdout:\n{}\nstderr:\n{}", ended.stdout, ended.stderr);
    let said = format!("{}{}", ended.stdout, ended.stderr);
    for part in says {
        assert!(said.contains(part), "{part:?} is missing from\n{said}");
    }
}

#[track_caller]
fn assert_dropped_nothing(users: Running) {
    let report = users.stop().unwrap();
    assert!(report.failures().is_empty(), "{report}");
}

/// A good release, then one that never gets ready, one whose program ends at once, and one that goes bad under watch. `steady` says whether
/// no request may fail but by the answers of the last.
fn good_and_bad(test: &str, strategy: &str, steady: bool) {
    let Some(machines) = Machines::get(test) else { return };
    let shop = Shop::watched(&machines, strategy, "process", "4s");
    assert_ended(&shop.deploy("v1", ""), 0, &[]);
    assert_eq!(shop.shops("v1"), [1, 1, 1], "spread over the machines");
    let users = shop.visitors();
    assert_ended(&shop.deploy("v2", ""), 0, &[]);
    assert_eq!(shop.answers(), (200, "v2".to_owned()));
    assert_eq!((shop.shops("v1"), shop.shops("v2")), (vec![0; 3], vec![1; 3]));
    assert_ended(&shop.deploy("v3", "never-healthy"), 3, &["web-1", "503"]);
    assert_eq!(shop.answers(), (200, "v2".to_owned()));
    assert_ended(&shop.deploy("v4", "nonsense"), 3, &["web-1", "unknown fault"]);
    assert_eq!((shop.answers(), shop.shops("v2")), ((200, "v2".to_owned()), vec![1; 3]));
    let report = users.stop().unwrap();
    assert!(!steady || report.failures().is_empty(), "{report}");
    let users = shop.visitors();
    assert_ended(&shop.deploy("v4", "errors=40%"), 3, &["error_rate"]);
    let report = users.stop().unwrap();
    // Its errors were answers that users got; nothing else may have failed.
    let other = report.failures().iter().any(|record| record.status != Some(500));
    assert!(!steady || !other, "{report}");
    assert_eq!((shop.shops("v2"), shop.shops("v4")), (vec![1; 3], vec![0; 3]));
    assert_ended(&shop.deploy("v2", ""), 0, &["unchanged"]);
    let down = shop.shop.place.run(["down", FILE]).unwrap();
    assert_ended(&down, 0, &["3 instances stopped"]);
    assert_eq!(shop.shops("v2"), [0, 0, 0]);
}

#[test]
fn blue_green_switches_and_goes_back() {
    good_and_bad("blue_green on hosts", BLUE_GREEN, true);
}

#[test]
fn rolling_goes_from_machine_to_machine() {
    good_and_bad("rolling on hosts", "rolling { batch = 1, pause = 200ms }", true);
}

#[test]
fn a_canary_that_goes_bad_goes_back() {
    good_and_bad("canary on hosts", "canary { step 50% for 2s }", true);
}

#[test]
fn recreate_stops_and_starts() {
    good_and_bad("recreate on hosts", "recreate {}", false);
}

#[test]
fn units_are_there_again_after_the_machine_has_started_anew() {
    let Some(machines) = Machines::get("units on hosts") else { return };
    let shop = Shop::with(&machines, BLUE_GREEN, "systemd");
    assert_ended(&shop.deploy("v1", ""), 0, &[]);
    assert_ended(&shop.deploy("v2", ""), 0, &[]);
    let units = "systemctl list-units --no-legend --plain 'cdpipe-shop-*' | grep -c running";
    assert_eq!(machines.shell("web-2", units), "1");
    // One whose supervisor is killed is started again by systemd.
    machines.shell("web-1", "systemctl kill --signal=KILL --kill-who=main 'cdpipe-shop-*'");
    machines.docker(&["restart", "--time", "1", "web-2"]);
    machines.heal("web-2");
    assert!(comes_true(PATIENCE, || shop.shops("v2") == [1, 1, 1]), "{:?}", shop.shops("v2"));
    assert!(comes_true(PATIENCE, || shop.deploy("v2", "").stdout.contains("unchanged")));
    assert_ended(&shop.shop.place.run(["down", FILE]).unwrap(), 0, &["3 instances stopped"]);
    assert_eq!(machines.shell("web-2", "ls /etc/systemd/system | grep -c '^cdpipe-'"), "0");
}

#[test]
fn a_machine_that_is_not_known_or_not_the_same_is_refused() {
    let Some(machines) = Machines::get("host keys") else { return };
    let shop = Shop::with(&machines, BLUE_GREEN, "process");
    let known = std::fs::read_to_string(machines.ssh_config.replace("ssh_config", "known_hosts")).unwrap();
    let own = shop.shop.place.work().join("known_hosts");
    let config = std::fs::read_to_string(&machines.ssh_config).unwrap();
    let config = format!("UserKnownHostsFile \"{}\"\n{config}", own.display());
    let path = shop.shop.place.write("ssh_config", config).unwrap();
    let pipeline = std::fs::read_to_string(shop.shop.place.work().join(FILE)).unwrap();
    shop.shop.place.write(FILE, pipeline.replace(&machines.ssh_config, &path.to_string_lossy())).unwrap();

    let lines: Vec<&str> = known.lines().collect();
    std::fs::write(&own, format!("{}\n{}\n", lines[0], lines[1])).unwrap();
    assert_ended(&shop.deploy("v1", ""), 1, &["the host key of web-3 is not known", "ssh-keyscan"]);
    // The key of another machine under its name.
    let swapped = lines[0].replace("web-1", "web-3");
    std::fs::write(&own, format!("{}\n{}\n{swapped}\n", lines[0], lines[1])).unwrap();
    assert_ended(&shop.deploy("v1", ""), 1, &["web-3 shows another host key", "ssh-keygen -R"]);
    assert_eq!(shop.shops("v1"), [0, 0, 0], "nothing was done on the others");
    std::fs::write(&own, known).unwrap();
    assert_ended(&shop.deploy("v1", ""), 0, &[]);
}

#[test]
fn what_is_in_the_way_is_said() {
    let Some(machines) = Machines::get("faults of hosts") else { return };
    let shop = Shop::with(&machines, BLUE_GREEN, "process");
    let pipeline = std::fs::read_to_string(shop.shop.place.work().join(FILE)).unwrap();
    let with = |from: &str, to: &str| {
        assert!(pipeline.contains(from));
        shop.shop.place.write(FILE, pipeline.replace(from, to)).unwrap();
        shop.deploy("v1", "")
    };
    let guest = "units      = process\n    user       = \"nobody-here\"";
    assert_ended(&with("units      = process", guest), 1, &["lets nobody in"]);
    assert_ended(&with("\"web-3\"]", "\"web-3:1\"]"), 1, &["web-3:1 can't be reached", "Connection refused"]);
    let missing = with("artifact = \"shop\"", "artifact = \"no-such-shop\"");
    assert_ended(&missing, 1, &["no-such-shop does not exist"]);
    std::fs::write(shop.shop.place.work().join("broken"), "#!/bin/sh\necho no database >&2; exit 3\n")
        .unwrap();
    let broken = with(
        "command  = [\"./shop\"]\n  artifact = \"shop\"",
        "command  = [\"sh\", \"./broken\"]\n  artifact = \"broken\"",
    );
    assert_ended(&broken, 1, &["exit status 3", "no database"]);
    assert_eq!(shop.shops("v1"), [0, 0, 0]);
}

/// Ends with the test.
struct KeyAgent {
    process: std::process::Child,
    socket: String,
}

impl Drop for KeyAgent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl KeyAgent {
    fn with(key: &str, folder: &std::path::Path) -> Self {
        let socket = folder.join("agent.sock").to_string_lossy().into_owned();
        let process =
            Command::new("ssh-agent").args(["-D", "-a", &socket]).stdout(Stdio::null()).spawn().unwrap();
        let agent = Self { process, socket };
        let add = || {
            let added =
                Command::new("ssh-add").arg(key).env("SSH_AUTH_SOCK", &agent.socket).output().unwrap();
            added.status.success()
        };
        assert!(comes_true(PATIENCE, add), "the key can't be added");
        agent
    }
}

#[test]
fn sudo_jump_hosts_addresses_and_keys_of_an_agent() {
    let Some(machines) = Machines::get("ways into hosts") else { return };
    let mut shop = Shop::with(&machines, BLUE_GREEN, "process");
    let pipeline = std::fs::read_to_string(shop.shop.place.work().join(FILE)).unwrap();
    let mut version = 0;
    let mut with = |shop: &Shop<'_>, settings: &str, code: i32, says: &[&str]| {
        let from = "units      = process";
        assert!(pipeline.contains(from));
        shop.shop.place.write(FILE, pipeline.replace(from, &format!("{from}\n    {settings}"))).unwrap();
        version += 1;
        let version = format!("v{version}");
        assert_ended(&shop.deploy(&version, ""), code, says);
        if code == 0 {
            assert_eq!(shop.answers(), (200, version.clone()), "{settings}");
            assert_eq!(shop.shops(&version), [1, 1, 1], "{settings}");
        }
    };
    let addresses = [11, 12, 13].map(|last| format!("\"{}.{last}\"", machines.subnet)).join(", ");
    with(&shop, &format!("addresses = [{addresses}]"), 0, &[]);
    with(&shop, "user = \"deploy\"\n    sudo = true", 0, &[]);
    with(&shop, "user = \"guest\"\n    sudo = true", 1, &["sudo on web-1 does not let this user in"]);
    with(&shop, "user = \"guest\"", 1, &["web-1"]);
    with(&shop, "jump = \"guest@web-2\"", 0, &[]);
    with(&shop, "jump = \"web-2:1\"", 1, &["can't be reached"]);

    // Without a key in a file: first nobody has one, then an agent has it.
    let config = std::fs::read_to_string(&machines.ssh_config).unwrap();
    let config: String =
        config.lines().filter(|line| !line.contains("Identit")).map(|line| format!("{line}\n")).collect();
    let path = shop.shop.place.write("ssh_config", config).unwrap();
    let pipeline = pipeline.replace(&machines.ssh_config, &path.to_string_lossy());
    shop.shop.place.write(FILE, &pipeline).unwrap();
    shop.shop.place.set("SSH_AUTH_SOCK", "/nonexistent");
    assert_ended(&shop.deploy("by-agent", ""), 1, &["lets nobody in with these keys", "ssh-add -l"]);
    let agent = KeyAgent::with(&machines.ssh_config.replace("ssh_config", "key"), &shop.shop.place.work());
    shop.shop.place.set("SSH_AUTH_SOCK", agent.socket.clone());
    assert_ended(&shop.deploy("by-agent", ""), 0, &[]);
    assert_eq!(shop.answers(), (200, "by-agent".to_owned()));
}

/// A machine goes away while a deploy waits for its candidate. The run goes back and names it; back again, the next deploy works.
fn goes_away(test: &str, away: impl Fn(&Machines), says: &[&str]) {
    let Some(machines) = Machines::get(test) else { return };
    let shop = Shop::with(&machines, BLUE_GREEN, "process");
    assert_ended(&shop.deploy("v1", ""), 0, &[]);
    let arguments = ["run", FILE, "--set", "version=v2", "--set", "fault=slow-start=3s"];
    let run = shop
        .shop
        .place
        .command(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    assert!(comes_true(PATIENCE, || machines.shops(&shop.dir, "v2")[0] > 0), "v2 never began");
    away(&machines);
    let output = run.wait_with_output().unwrap();
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    machines.heal("web-3");
    assert_eq!(output.status.code(), Some(3), "{said}");
    for part in says {
        assert!(said.contains(part), "{part:?} is missing from\n{said}");
    }
    // Users are answered by the old release on the machines that were left, and on the third once it is back.
    assert_eq!(shop.answers(), (200, "v1".to_owned()));
    assert_ended(&shop.deploy("v3", ""), 0, &[]);
    assert_eq!(shop.answers(), (200, "v3".to_owned()));
    assert_eq!(shop.shops("v2"), [0, 0, 0]);
    assert_eq!(shop.shops("v1"), [0, 0, 0]);
}

#[test]
fn a_machine_that_is_cut_off_is_named_and_the_rest_goes_back() {
    goes_away("a machine cut off", |machines| machines.cut("web-3"), &["web-3"]);
}

#[test]
fn a_machine_that_dies_is_named_and_the_rest_goes_back() {
    goes_away("a machine that dies", |machines| drop(machines.docker(&["kill", "web-3"])), &["web-3"]);
}

/// The seeds to try. `cargo xtask soak` tries 1 to 50: `$CDPIPE_KILLED_HOSTS_CASES` is how many.
fn seeds() -> Vec<u64> {
    match std::env::var("CDPIPE_KILLED_HOSTS_CASES") {
        Ok(count) => (1..=count.parse().unwrap()).collect(),
        Err(_) => vec![4, 19, 33],
    }
}

/// When the run of a seed is killed: between its start and a bit after its usual end.
fn moment(seed: u64) -> Duration {
    let mixed = (seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33) % 2_800;
    Duration::from_millis(50 + mixed)
}

#[test]
fn killed_in_mid_deploy_it_is_gone_on_with_and_nothing_is_there_twice() {
    let Some(machines) = Machines::get("kill -9 on hosts") else { return };
    let shop = Shop::with(&machines, BLUE_GREEN, "process");
    assert_ended(&shop.deploy("v0", ""), 0, &[]);
    let users = shop.visitors();
    for seed in seeds() {
        let version = format!("v{seed}");
        let set = format!("version={version}");
        let mut run = shop.shop.place.command(["run", FILE, "--set", &set]);
        let mut run = run.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(moment(seed));
        // It may have ended by itself just now.
        let _ = run.kill();
        run.wait().unwrap();
        let resumed = shop.shop.place.run(["resume"]).unwrap();
        let first = shop.answers().1 == version;
        if !first {
            // Killed before its journal had a word of it: there was nothing to resume.
            assert_ne!(resumed.code, Some(1), "seed {seed}: {resumed:?}");
            assert_ended(&shop.deploy(&version, ""), 0, &[]);
        }
        println!(
            "seed {seed}, killed after {:?}: {}",
            moment(seed),
            if first { "resumed" } else { "begun anew" }
        );
        assert_eq!(shop.answers(), (200, version.clone()), "seed {seed}");
        assert_eq!(shop.shops(&version), [1, 1, 1], "seed {seed}");
    }
    assert_eq!(shop.shops("v0"), [0, 0, 0]);
    assert_dropped_nothing(users);
}

/// HAProxy on one of the machines, asked over SSH: a canary, a release that never gets ready and one whose errors HAProxy itself has counted.
#[test]
fn haproxy_on_one_of_the_machines() {
    let test = "haproxy_on_one_of_the_machines";
    let Some(machines) = Machines::get(test) else { return };
    let strategy = "canary { step 50% for 2s }";
    let shop = Shop::with(&machines, strategy, "process");
    let (dir, port) = (&shop.dir, cdpipe_tests::ports::free().unwrap());
    let config = format!(
        "global\n  stats socket {dir}/edge.sock level admin\n  pidfile {dir}/edge.pid\ndefaults\n  mode http\n  timeout connect 5s\n  \
         timeout client 30s\n  timeout server 30s\nfrontend users\n  bind 127.0.0.1:{port}\n  default_backend shop\nbackend shop\n  \
         balance roundrobin\n  server-template cdpipe 1-12 127.0.0.1:1 disabled\n"
    );
    machines
        .shell("web-1", &format!("cat > {dir}/edge.cfg <<'END'\n{config}END\nhaproxy -D -f {dir}/edge.cfg"));
    let text = std::fs::read_to_string(shop.shop.place.work().join(FILE)).unwrap();
    let listen = format!("route    {{ listen = \"{}\" }}", shop.shop.address);
    let text = text
        .replace(
            "traffic proxy {}",
            &format!("traffic haproxy {{ host = \"web-1\", socket = \"{dir}/edge.sock\" }}"),
        )
        .replace(&listen, "")
        .replace("source scrape {}", "source traffic")
        .replace("watch every 200ms", "watch every 1s")
        .replace(
            "'http_requests_total{status=~\"5..\"}', 'http_requests_total'",
            "'requests_total{code=\"5xx\"}', 'requests_total'",
        );
    shop.shop.place.write(FILE, text).unwrap();
    // Users ask one after the other until they are told to stop.
    let ask = || {
        machines.shell(
            "web-1",
            &format!(
                "rm -f {dir}/stop; for n in $(seq 3000); do [ -e {dir}/stop ] && break; \
                 curl -s -o /dev/null -w '%{{http_code}} ' http://127.0.0.1:{port}/; sleep 0.01; done"
            ),
        )
    };
    let serves = |version: &str| {
        let head = machines.shell("web-1", &format!("curl -si http://127.0.0.1:{port}/"));
        assert!(head.starts_with("HTTP/1.1 200") && head.contains(&format!(": {version}")), "{head}");
    };
    let deploy = |version: &str, fault: &str, code: i32, says: &str| {
        std::thread::scope(|scope| {
            let users = scope.spawn(ask);
            let ended = shop.deploy(version, fault);
            machines.shell("web-1", &format!("touch {dir}/stop"));
            let said = format!("{}{}", ended.stdout, ended.stderr);
            assert_eq!(ended.code, Some(code), "{said}");
            assert!(said.contains(says), "{says:?} is missing from\n{said}");
            users.join().unwrap()
        })
    };
    let first = shop.deploy("1.0", "");
    assert_eq!(first.code, Some(0), "{}{}", first.stdout, first.stderr);
    serves("1.0");
    for (version, fault, code, says) in [("1.1", "", 0, ""), ("1.2", "never-healthy", 3, "/health")] {
        let answers = deploy(version, fault, code, says);
        assert!(answers.split(' ').all(|answer| answer == "200"), "{version}: {answers}");
        serves("1.1");
    }
    let answers = deploy("1.3", "errors=40%", 3, "error_rate");
    assert!(answers.split(' ').all(|answer| ["200", "500"].contains(&answer)), "{answers}");
    serves("1.1");
    machines.shell("web-1", &format!("kill $(cat {dir}/edge.pid)"));
}
