//! An HAProxy that is restarted, does not answer for a moment, or has nobody to serve.

use super::{GONE_AFTER, HaproxyConfig, HaproxyRouter};
use crate::place::{Place, call};
use cdpipe_model::id::{InstanceId, ReleaseId, ServiceName};
use cdpipe_model::observe::{Member, Role, RouteEntry, RouteTable};
use cdpipe_model::ports::Router as _;
use cdpipe_model::service::Route;
use cdpipe_model::strategy::Sticky;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

const SLOTS: usize = 4;

#[derive(Debug, Clone)]
struct Server {
    address: String,
    port: String,
    weight: u32,
    in_use: bool,
    in_flight: u64,
}

/// What the fake HAProxy has in its memory.
#[derive(Default)]
struct Memory {
    servers: Vec<Server>,
    /// So many exchanges are not answered.
    silent: u32,
    /// How often it was told something.
    told: u32,
}

impl Memory {
    fn forget(&mut self) {
        let fresh = || Server {
            address: "127.0.0.1".to_owned(),
            port: "1".to_owned(),
            weight: 1,
            in_use: false,
            in_flight: 0,
        };
        self.servers = std::iter::repeat_with(fresh).take(SLOTS).collect();
    }

    fn answer(&mut self, request: &str) -> Option<String> {
        if self.silent > 0 {
            self.silent -= 1;
            return None;
        }
        if request.starts_with("show servers state") {
            let head = "1\n# be_name srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_port\n";
            let lines = self.servers.iter().zip(1..).map(|(server, n)| {
                let out = if server.in_use { 0 } else { 1 };
                format!("web cdpipe{n} {} 2 {out} {} {}\n", server.address, server.weight, server.port)
            });
            return Some(head.to_owned() + &lines.collect::<String>());
        }
        if request.starts_with("show stat") {
            let lines = self.servers.iter().zip(1..);
            let lines = lines.map(|(server, n)| format!("web,cdpipe{n},{},0\n", server.in_flight));
            return Some("# pxname,svname,scur,stot\n".to_owned() + &lines.collect::<String>());
        }
        self.told += 1;
        for command in request.trim().split(';') {
            let words: Vec<&str> = command.split(' ').collect();
            let number: usize =
                words[2].strip_prefix("web/cdpipe").and_then(|n| n.parse().ok()).expect("a slot");
            let server = &mut self.servers[number - 1];
            match words[3..] {
                ["addr", address, "port", port] => {
                    (server.address, server.port) = (address.to_owned(), port.to_owned());
                }
                ["weight", weight] => server.weight = weight.parse().expect("a weight"),
                ["state", state] => server.in_use = state == "ready",
                _ => return Some("Unknown command\n".to_owned()),
            }
        }
        Some("\n".to_owned())
    }
}

struct Haproxy {
    memory: Arc<Mutex<Memory>>,
    router: HaproxyRouter,
    _place: Arc<Place>,
}

impl Haproxy {
    fn new() -> Self {
        let memory = Arc::new(Mutex::new(Memory::default()));
        let asked = memory.clone();
        let place = Place::new(move |_, request| asked.lock().expect("is whole").answer(request), |_| None);
        let config = HaproxyConfig { socket: place.path("haproxy.sock"), backend: None };
        let router = HaproxyRouter::new(config, place.clone());
        let haproxy = Self { memory, router, _place: place };
        haproxy.memory().forget();
        haproxy
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().expect("is whole")
    }

    async fn serve(&self, table: &RouteTable, seen: Option<&RouteTable>) {
        let call = call(1, Duration::from_secs(20));
        self.router.apply(call, table, seen).await.expect("is taken");
        self.router.await_routed(call, table).await.expect("is in force");
    }

    fn serving(&self) -> usize {
        self.memory().servers.iter().filter(|server| server.in_use).count()
    }
}

fn table(release: &str, members: usize) -> RouteTable {
    let member =
        |n| Member { instance: InstanceId(format!("{release}-{n}")), address: format!("127.0.0.1:400{n}") };
    RouteTable {
        route: Route {
            service: ServiceName::from("web"),
            host: None,
            path: None,
            listen: None,
            object: None,
        },
        entries: vec![RouteEntry {
            release: ReleaseId(release.to_owned()),
            role: Role::Stable,
            weight_bp: 10_000,
            members: (0..members).map(member).collect(),
        }],
        rules: Vec::new(),
        sticky: Sticky::None,
    }
}

#[tokio::test]
async fn one_that_was_restarted_serves_nobody_and_is_told_again_by_the_next_deploy() {
    let haproxy = Haproxy::new();
    let call = call(1, Duration::from_secs(20));
    let (v1, v2) = (table("v1", 2), table("v2", 2));
    haproxy.serve(&v1, None).await;
    assert_eq!(haproxy.router.observe(call, &v1.route).await.expect("is seen"), Some(v1.clone()));
    // The same release again, and another one; who saw the route before or after the restart.
    for (next, before) in [(&v1, &v1), (&v2, &v1)] {
        for with_members in [true, false] {
            haproxy.memory().forget();
            let seen = haproxy.router.observe(call, &v1.route).await.expect("is seen").expect("a table");
            assert_eq!(seen, table(seen.entries[0].release.as_str(), 0), "its release serves, by nobody");
            haproxy.serve(next, Some(if with_members { before } else { &seen })).await;
            assert_eq!(haproxy.serving(), 2);
            haproxy.serve(before, Some(next)).await;
        }
    }
    haproxy.memory().forget();
    let fault = haproxy.router.apply(call, &v2, Some(&table("v0", 2))).await.expect_err("was not there");
    assert_eq!(fault.kind, "moved");
}

#[tokio::test]
async fn a_route_of_no_instances_is_in_force_at_once() {
    let haproxy = Haproxy::new();
    let none = table("v1", 0);
    haproxy.serve(&none, None).await;
    assert_eq!(haproxy.memory().told, 0, "there is nothing to tell");
    assert_eq!(haproxy.serving(), 0);
}

#[tokio::test]
async fn a_drain_goes_on_after_a_moment_without_answers_and_ends_when_it_is_gone() {
    let haproxy = Haproxy::new();
    let (v1, v2) = (table("v1", 1), table("v2", 1));
    haproxy.serve(&v1, None).await;
    let slot = haproxy.memory().servers.iter().position(|server| server.in_use).expect("a slot");
    haproxy.serve(&v2, Some(&v1)).await;
    haproxy.memory().servers[slot].in_flight = 1;
    let release = ReleaseId("v1".to_owned());
    let begun = Instant::now();
    let drain = |longest| {
        let call = call(1, Duration::from_secs(20));
        haproxy.router.await_drained(call, &v1.route, &release, &[], longest)
    };
    haproxy.memory().silent = 2;
    let (done, ()) = tokio::join!(drain(Duration::from_secs(15)), async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        haproxy.memory().servers[slot].in_flight = 0;
    });
    done.expect("has drained");
    assert!(begun.elapsed() >= Duration::from_millis(500), "{:?}", begun.elapsed());
    // Gone for good: it is not waited for to the end.
    haproxy.memory().silent = u32::MAX;
    let begun = Instant::now();
    drain(Duration::from_secs(15)).await.expect("nothing is in flight");
    assert!((GONE_AFTER..GONE_AFTER * 2).contains(&begun.elapsed()), "{:?}", begun.elapsed());
}
