//! Tables to nginx's words and back.

use super::include::{Include, variable};
use crate::bounds::may_change;
use cdpipe_model::id::{InstanceId, ReleaseId, ServiceName};
use cdpipe_model::observe::{Member, Role, RouteEntry, RouteRule, RouteTable};
use cdpipe_model::service::Route;
use cdpipe_model::strategy::{RouteMatch, Sticky};

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
