//! A new release on fifty machines over SSH, by `cdpipe run` and by an Ansible playbook: the same artifact (there already, so both compare its
//! checksum), the old process ended, the new one started, its health asked on the machine. Both do it on all machines at once, without
//! waits. Ansible has what its manual says makes it fast: as many forks as machines, pipelining, kept connections, no facts.

use std::cell::Cell;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::figure::{Aim, Figure};
use super::{Setup, alternate};
use crate::lab;
use crate::process::{Job, write_file};
use crate::project;

const MACHINES: u32 = 50;
const ONE_RUN_WITHIN: Duration = Duration::from_secs(5 * 60);
const INSTALL_WITHIN: Duration = Duration::from_secs(10 * 60);
const BUILD_WITHIN: Duration = Duration::from_secs(20 * 60);
/// For both: here fifty clients and their fifty servers share one machine, and OpenSSH's default exchange (sntrup761) would be most of what is
/// measured of the faster one. With it the ratio was 0.13 on two cores.
const KEY_EXCHANGE: &str = "Host *\n  KexAlgorithms curve25519-sha256\n";
/// The peer, from PyPI.
const ANSIBLE: &str = "ansible-core==2.19.14";

fn names() -> Vec<String> {
    (1..=MACHINES).map(|number| format!("web-{number}")).collect()
}

fn pipeline(ssh_config: &str, shop: &Path) -> String {
    let hosts: Vec<String> = names().iter().map(|name| format!("\"{name}\"")).collect();
    format!(
        r#"param version: string

environment machines {{
  target hosts {{
    hosts      = [{}]
    ssh_config = "{ssh_config}"
    dir        = "/srv/cdpipe"
    units      = process
  }}
}}

service shop {{
  command  = ["./shop"]
  artifact = "{}"
  version  = version
  replicas = {MACHINES}
  env      {{ VERSION = version }}
  health   http "/health" {{ every = 100ms, timeout = 2s, within = 60s }}
  drain    = 1s
}}

stage release {{ deploy shop to machines {{ recreate }} }}
"#,
        hosts.join(", "),
        shop.display()
    )
}

fn playbook(shop: &Path) -> String {
    format!(
        r#"- hosts: all
  gather_facts: false
  tasks:
    - name: the artifact
      copy: {{ src: "{}", dest: /srv/ansible-shop, mode: "0755" }}
    - name: the old one ends, the new one starts
      shell: |
        if [ -s /run/shop.pid ]; then
          pid=$(cat /run/shop.pid)
          kill "$pid" && while kill -0 "$pid" 2>/dev/null; do sleep 0.02; done
        fi
        PORT=9300 HOST=127.0.0.1 VERSION={{{{ version }}}} setsid /srv/ansible-shop >/run/shop.log 2>&1 </dev/null &
        echo $! >/run/shop.pid
    - name: it is healthy
      shell: curl -fsS --retry 50 --retry-delay 0 --retry-all-errors http://127.0.0.1:9300/health
"#,
        shop.display()
    )
}

/// `ansible-playbook`, installed into the cache.
fn ansible() -> Result<PathBuf, String> {
    let home = project::cache()?.join(ANSIBLE.replace("==", "-"));
    let binary = home.join("bin").join("ansible-playbook");
    if !project::is_executable(&binary) {
        Job::new("python3", ["-m".as_ref(), "venv".as_ref(), home.as_os_str()], INSTALL_WITHIN).must()?;
        let args = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", ANSIBLE];
        Job::new(home.join("bin").join("python3"), args, INSTALL_WITHIN).must()?;
    }
    Ok(binary)
}

pub(crate) fn bench(setup: &Setup) -> Result<Vec<Figure>, String> {
    let ansible = ansible()?;
    let report = lab::up(&lab::machines(MACHINES)?, true)?;
    let find = |name: &str| {
        let found = report.env.iter().find(|(variable, _)| variable == name);
        found.map(|(_, value)| value.clone()).ok_or_else(|| format!("the lab has no {name}"))
    };
    let lab_config = find("CDPIPE_LAB_HOSTS")?;
    let dir = setup.fresh("hosts")?;
    let ssh_config = dir.join("ssh_config");
    let text = std::fs::read_to_string(&lab_config).map_err(|error| format!("{lab_config}: {error}"))?;
    write_file(&ssh_config, &format!("{KEY_EXCHANGE}{text}"))?;
    std::fs::set_permissions(&ssh_config, std::fs::Permissions::from_mode(0o600))
        .map_err(|error| format!("{}: {error}", ssh_config.display()))?;
    let ssh_config = ssh_config.display().to_string();
    Job::cargo(["build", "--quiet", "--release", "--package", "cdpipe-demo", "--bin", "shop"], BUILD_WITHIN)
        .must()?;
    let shop = project::target().join("release").join("shop");
    write_file(&dir.join("shop.cd"), &pipeline(&ssh_config, &shop))?;
    write_file(&dir.join("shop.yml"), &playbook(&shop))?;
    write_file(&dir.join("inventory"), &(names().join("\n") + "\n"))?;
    let settings = format!(
        "[defaults]\nforks = {MACHINES}\ninventory = inventory\ninterpreter_python = /usr/bin/python3\ngathering = explicit\n\
         [ssh_connection]\npipelining = True\nssh_args = -F {ssh_config} -o ControlMaster=auto -o ControlPersist=60s\n"
    );
    write_file(&dir.join("ansible.cfg"), &settings)?;

    let ours = |version: &str| {
        let set = format!("version={version}");
        setup
            .cdpipe(&["run", "shop.cd", "--set", &set], ONE_RUN_WITHIN)
            .env("CDPIPE_STATE", dir.join("state"))
            .dir(&dir)
    };
    let peer = |version: &str| {
        let set = format!("version={version}");
        Job::new(&ansible, ["shop.yml", "--extra-vars", &set], ONE_RUN_WITHIN)
            .env("ANSIBLE_CONFIG", dir.join("ansible.cfg"))
            .dir(&dir)
    };
    let count = |of: &str, version: &str| -> Result<usize, String> {
        // Asked of the processes themselves, not of who started them.
        let script = format!("grep -lz '^VERSION={version}$' /proc/[0-9]*/environ 2>/dev/null | wc -l");
        let mut there = 0;
        for name in names() {
            let said = Job::new("ssh", ["-F", &ssh_config, &name, &script], ONE_RUN_WITHIN).must()?.output;
            there += usize::from(said.trim() != "0");
        }
        if there == names().len() {
            Ok(there)
        } else {
            Err(format!("{of} brought {version} to {there} of {MACHINES} machines"))
        }
    };
    ours("ours-0").must()?;
    count("cdpipe", "ours-0")?;
    peer("peer-0").must()?;
    count("ansible", "peer-0")?;
    let turns = [Cell::new(0), Cell::new(0)];
    let next = |turn: &Cell<usize>, who: &str| {
        turn.set(turn.get() + 1);
        format!("{who}-{}", turn.get())
    };
    let measured = alternate(
        setup.rounds,
        || Ok(ours(&next(&turns[0], "ours"))),
        || Ok(peer(&next(&turns[1], "peer"))),
        &dir,
    )?;
    let last = setup.rounds;
    count("cdpipe", &format!("ours-{last}"))?;
    count("ansible", &format!("peer-{last}"))?;
    Ok(vec![Figure {
        id: "hosts-50",
        what: format!("a new release on {MACHINES} machines over SSH, all at once, without waits"),
        unit: "ms",
        ours: measured.0,
        peer: Some(("ansible-playbook".to_owned(), measured.1)),
        aim: Aim::AtMost(0.1),
    }])
}
