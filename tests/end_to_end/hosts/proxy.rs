//! The built-in proxy on one of the machines, driven over SSH: switches under load, a release that is bad in each way, the proxy killed,
//! and nothing left of it in the end.

use super::{BLUE_GREEN, Machines, PATIENCE, Shop, assert_dropped_nothing, assert_ended};
use cdpipe_tests::deployed::{FILE, comes_true};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

/// Leads a port of this machine's loopback to that of another one's.
struct Forward(Child);

impl Forward {
    fn to(machines: &Machines, machine: &str, address: std::net::SocketAddr) -> Self {
        let mut ssh = Command::new("ssh");
        ssh.args(["-F", &machines.ssh_config, "-N", "-L", &format!("{address}:{address}"), machine]);
        let forward = Self(ssh.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        assert!(comes_true(PATIENCE, || TcpStream::connect(address).is_ok()), "no way to {machine}");
        forward
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The processes of the proxy there.
fn proxies(shop: &Shop<'_>) -> Vec<String> {
    let script = format!("pgrep -f 'proxy --state {}/proxy'", shop.dir);
    shop.machines.shell("web-1", &format!("{script} | grep -vx $$")).lines().map(str::to_owned).collect()
}

#[test]
fn the_proxy_on_one_of_the_machines() {
    let Some(machines) = Machines::get("the_proxy_on_one_of_the_machines") else { return };
    let shop = Shop::watched(&machines, BLUE_GREEN, "process", "4s");
    let file = shop.shop.place.work().join(FILE);
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("traffic proxy {}", "traffic proxy { host = \"web-1\" }")).unwrap();
    assert_ended(&shop.deploy("v1", ""), 0, &[]);
    assert!(TcpStream::connect(shop.shop.address).is_err(), "no proxy on this machine");
    let _forward = Forward::to(&machines, "web-1", shop.shop.address);
    assert_eq!(shop.answers(), (200, "v1".to_owned()));
    let first = proxies(&shop);
    assert_eq!(first.len(), 1, "one proxy, which has outlived the connection");

    let users = shop.visitors();
    for version in ["v2", "v3"] {
        assert_ended(&shop.deploy(version, ""), 0, &[]);
        assert_eq!(shop.answers(), (200, version.to_owned()));
    }
    assert_ended(&shop.deploy("v4", "never-healthy"), 3, &["503"]);
    assert_dropped_nothing(users);
    let users = shop.visitors();
    assert_ended(&shop.deploy("v5", "errors=40%"), 3, &["error_rate"]);
    let report = users.stop().unwrap();
    assert!(report.failures().iter().all(|record| record.status == Some(500)), "{report}");
    assert_eq!((shop.answers(), proxies(&shop)), ((200, "v3".to_owned()), first.clone()));

    // Killed and started again, here by a unit of the machine's own, it has the table that it had.
    let unit = format!("cdpipe-test-proxy-{}", shop.shop.address.port());
    let start = format!(
        "systemd-run --collect --unit={unit} --property=Restart=always --property=RestartSec=200ms \
         $(ls -t {dir}/bin/cdpipe-* | head -n 1) proxy --state {dir}/proxy",
        dir = shop.dir
    );
    let serves = |version: &str| {
        comes_true(PATIENCE, || shop.shop.ask().is_ok_and(|answer| answer.version == version))
    };
    machines.shell("web-1", &format!("kill -9 {}; sleep 1; {start}", first[0]));
    assert!(serves("v3"), "the table is not there again");
    let second = proxies(&shop);
    machines.shell("web-1", &format!("kill -9 {}", second[0]));
    assert!(comes_true(PATIENCE, || proxies(&shop).first().is_some_and(|pid| *pid != second[0])));
    assert!(serves("v3"), "the table is not there again");
    // Without a unit the next run starts it.
    machines.shell("web-1", &format!("systemctl stop {unit}"));
    assert!(comes_true(PATIENCE, || proxies(&shop).is_empty()));
    assert_ended(&shop.deploy("v6", ""), 0, &[]);
    assert_eq!((shop.answers(), proxies(&shop).len()), ((200, "v6".to_owned()), 1));

    assert_ended(&shop.shop.place.run(["down", FILE]).unwrap(), 0, &["3 instances stopped"]);
    assert!(comes_true(PATIENCE, || proxies(&shop).is_empty()), "a proxy without routes ends");
}
