//! Tables to nginx's words and back.

use super::include::{Include, variable};
use super::processes::{LIST, Worker};
use super::{NginxConfig, NginxRouter};
use crate::bounds::may_change;
use crate::place::{Place, call};
use cdpipe_model::id::{InstanceId, ReleaseId, ServiceName};
use cdpipe_model::observe::{Member, Role, RouteEntry, RouteRule, RouteTable};
use cdpipe_model::ports::Router as _;
use cdpipe_model::service::Route;
use cdpipe_model::strategy::{RouteMatch, Sticky};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

fn table(service: &str, listen: Option<&str>, weights: &[u32]) -> RouteTable {
    let entry = |(n, weight_bp): (usize, &u32)| RouteEntry {
        release: ReleaseId(format!("r{n}")),
        role: if n == 0 { Role::Stable } else { Role::Candidate },
        weight_bp: *weight_bp,
        members: vec![Member { instance: InstanceId(format!("i{n}")), address: format!("127.0.0.1:400{n}") }],
    };
    RouteTable {
        route: Route {
            service: ServiceName::from(service),
            host: None,
            path: None,
            listen: listen.map(str::to_owned),
            object: None,
        },
        entries: weights.iter().enumerate().map(entry).collect(),
        rules: Vec::new(),
        sticky: Sticky::None,
    }
}

fn written(tables: &[RouteTable]) -> String {
    let mut include = Include::new("127.0.0.1:8899");
    for (epoch, table) in (1..).zip(tables) {
        include.put(table, epoch);
    }
    include.text().expect("a text")
}

fn read(text: &str) -> Result<Include, cdpipe_model::Fault> {
    Include::read(Some(text.as_bytes()), "shop.conf", "127.0.0.1:8899").map(|found| found.include)
}

#[test]
fn what_is_written_is_read_back_with_all_its_routes() {
    let tables = [table("web", None, &[7_500, 2_500]), table("api", Some(":8080"), &[10_000])];
    let include = read(&written(&tables)).expect("our own");
    for (epoch, table) in (1..).zip(&tables) {
        let found = include.find(&table.route).expect("is there");
        assert_eq!((&found.table, found.epoch), (table, epoch));
    }
    assert!(include.find(&table("other", None, &[]).route).is_none());
}

#[test]
fn any_changed_byte_is_found_and_a_file_that_is_not_ours_is_refused() {
    let text = written(&[table("web", None, &[10_000])]);
    for (at, _) in text.char_indices().step_by(7) {
        let mut changed = text.clone();
        changed.replace_range(at..=at, if &text[at..=at] == "x" { "y" } else { "x" });
        let fault = read(&changed).expect_err("was changed");
        assert_eq!(fault.kind, "moved", "byte {at}: {fault}");
    }
    assert_eq!(read("server { }\n").expect_err("is not ours").kind, "moved");
    assert!(read("# cdpipe: replace me\nmap {}\n").expect("a seed").routes.is_empty());
    assert!(read("").expect("empty").routes.is_empty());
}

#[test]
fn shares_are_split_exactly_and_rules_go_before_them() {
    let mut table = table("my-shop", None, &[9_999, 1]);
    table.rules.push(RouteRule {
        matches: RouteMatch::Header { name: "x-canary".to_owned(), value: "a\"b".to_owned() },
        release: ReleaseId("r1".to_owned()),
    });
    let text = written(&[table.clone()]);
    assert_eq!(variable(&table.route), "cdpipe_upstream_my_shop");
    assert!(
        text.contains(
            "split_clients \"$request_id\" $cdpipe_upstream_my_shop_share {\n    0.01% cdpipe-my-shop-"
        ),
        "{text}"
    );
    assert!(
        text.contains("map $http_x_canary $cdpipe_upstream_my_shop {\n    default $cdpipe_upstream_my_shop_share;\n    \"~^a\\x22b\\z\" cdpipe-my-shop-"),
        "{text}"
    );
    table.sticky = Sticky::ClientAddress;
    table.rules.clear();
    assert!(written(&[table]).contains("split_clients \"${remote_addr}cdpipe_upstream_my_shop\""));
}

#[test]
fn what_nginx_would_read_as_more_than_a_word_is_refused() {
    for host in ["a; }", "a b", "$host", "a{", ""] {
        let mut table = table("web", Some(":80"), &[10_000]);
        table.route.host = Some(host.to_owned());
        let mut include = Include::new("127.0.0.1:8899");
        include.put(&table, 1);
        assert_eq!(include.text().expect_err(host).kind, "invalid-route");
    }
    let mut include = Include::new("127.0.0.1:8899");
    include.put(&table("a-b", None, &[10_000]), 1);
    include.put(&table("a_b", None, &[10_000]), 1);
    assert_eq!(include.text().expect_err("one variable").kind, "invalid-route");
}

#[test]
fn an_older_owner_and_somebody_elses_table_are_refused() {
    let (old, new, other) =
        (table("web", None, &[10_000]), table("web", None, &[5_000, 5_000]), table("web", None, &[]));
    let kind = |found, seen, epoch| may_change(found, &new, seen, epoch, "x").map_err(|fault| fault.kind);
    assert_eq!(kind(Some((&old, 7)), Some(&old), 7), Ok(()));
    assert_eq!(kind(Some((&old, 8)), Some(&old), 7), Err("stale-epoch".to_owned()));
    assert_eq!(kind(Some((&new, 8)), Some(&old), 7), Err("stale-epoch".to_owned()));
    assert_eq!(kind(Some((&other, 7)), Some(&old), 7), Err("moved".to_owned()));
    assert_eq!(kind(None, Some(&old), 7), Err("moved".to_owned()));
    assert_eq!(kind(Some((&new, 6)), Some(&old), 7), Ok(()), "done already");
    assert_eq!(kind(None, None, 7), Ok(()));
}

const FILE: &str = "shop.conf";
/// One nginx with one worker, and another one.
const ONE: &str = "quitting\n70 (nginx) S 60 60 60 0 -1 4194624 100 0 0 0 1 2 0 0 20 0 1 0 5555 1 2 3\n";
const OTHER: &str = "80 (nginx) S 61 61 61 0 -1 4194624 100 0 0 0 1 2 0 0 20 0 1 0 7777 1 2 3\n";
const WORKER: Worker = Worker { pid: 70, start: 5555 };

/// An nginx that does what its file says at once, with these processes. Its status server misses so many answers first.
fn nginx(misses: u32, processes: String) -> (Arc<Place>, NginxRouter) {
    let missed = AtomicU32::new(0);
    let place = Place::new(
        move |folder, _| {
            if missed.fetch_add(1, Ordering::Relaxed) < misses {
                return None;
            }
            let text = std::fs::read_to_string(folder.join(FILE)).ok()?;
            let generation = text.split("return 200 \"cdpipe ").nth(1)?.split(' ').next()?;
            Some(format!("HTTP/1.0 200 OK\r\n\r\ncdpipe {generation} 70\n"))
        },
        move |argv| (argv.get(2).map(String::as_str) == Some(LIST)).then(|| processes.clone()),
    );
    let config = NginxConfig {
        config: place.path(FILE),
        status: "127.0.0.1:8899".to_owned(),
        test: vec!["true".to_owned()],
        reload: vec!["true".to_owned()],
        settle: Duration::from_millis(200),
    };
    let router = NginxRouter::new(config, place.clone());
    (place, router)
}

#[tokio::test]
async fn an_answer_that_was_missed_does_not_let_the_workers_of_before_be_forgotten() {
    let (place, router) = nginx(1, ONE.to_owned());
    let (old, new) = (table("web", None, &[10_000]), table("web", None, &[5_000, 5_000]));
    std::fs::write(place.path(FILE), written(std::slice::from_ref(&old))).expect("a file");
    router.apply(call(1, Duration::from_secs(3)), &new, Some(&old)).await.expect("is taken");
    let include = read(&std::fs::read_to_string(place.path(FILE)).expect("a file")).expect("our own");
    assert_eq!(include.replaced, [WORKER]);
}

#[tokio::test]
async fn workers_that_nobody_names_are_those_of_the_only_nginx_or_nothing_is_changed() {
    let (old, new) = (table("web", None, &[10_000]), table("web", None, &[5_000, 5_000]));
    for (processes, kind) in [(ONE.to_owned(), "not-taken"), (format!("{ONE}{OTHER}"), "router-unreachable")]
    {
        let (place, router) = nginx(u32::MAX, processes);
        let before = written(std::slice::from_ref(&old));
        std::fs::write(place.path(FILE), &before).expect("a file");
        let fault = router.apply(call(1, Duration::from_secs(1)), &new, Some(&old)).await.expect_err(kind);
        assert_eq!(fault.kind, kind, "{fault}");
        assert_eq!(fault.transient, kind == "router-unreachable");
        assert_eq!(std::fs::read_to_string(place.path(FILE)).expect("a file"), before);
    }
}

#[tokio::test]
async fn a_drain_is_not_over_because_the_status_server_does_not_answer() {
    let drain = Duration::from_millis(300);
    let release = ReleaseId("gone".to_owned());
    for (replaced, processes) in [(vec![WORKER], ONE), (Vec::new(), "quitting\n")] {
        let (place, router) = nginx(u32::MAX, processes.to_owned());
        let table = table("web", None, &[10_000]);
        let mut include = Include::new("127.0.0.1:8899");
        include.put(&table, 1);
        include.replaced = replaced;
        std::fs::write(place.path(FILE), include.text().expect("a text")).expect("a file");
        let begun = Instant::now();
        let call = call(1, Duration::from_secs(2));
        router.await_drained(call, &table.route, &release, &[], drain).await.expect("ends");
        assert!(begun.elapsed() >= drain, "{:?}", begun.elapsed());
    }
}
