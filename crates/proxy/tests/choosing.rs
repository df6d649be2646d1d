//! Which release answers: weights, rules, stickiness, routes.

#![allow(clippy::expect_used, reason = "helpers of tests stand outside of #[test] functions")]

mod support;

use std::net::SocketAddr;

use cdpipe_model::observe::{Role, RouteRule, RouteTable};
use cdpipe_model::strategy::{RouteMatch, Sticky};
use support::*;

/// A stable and a candidate release, and a table that gives the candidate so many basis points.
struct Canary {
    proxy: Proxy,
    listen: SocketAddr,
    stable: Instance,
    candidate: Instance,
    epoch: u64,
}

impl Canary {
    async fn start() -> Canary {
        Canary {
            proxy: Proxy::start().await,
            listen: free_address(),
            stable: Instance::start("stable").await,
            candidate: Instance::start("candidate").await,
            epoch: 0,
        }
    }

    fn table(&self, weight_bp: u32) -> RouteTable {
        table(
            self.listen,
            vec![
                entry("old", Role::Stable, 10_000 - weight_bp, &[self.stable.address]),
                entry("new", Role::Candidate, weight_bp, &[self.candidate.address]),
            ],
        )
    }

    async fn put(&mut self, weight_bp: u32, change: impl FnOnce(&mut RouteTable)) {
        let mut table = self.table(weight_bp);
        change(&mut table);
        self.epoch += 1;
        self.proxy.put(table, self.epoch).await;
    }
}

#[tokio::test]
async fn ten_percent_of_a_hundred_requests_is_ten() {
    let mut canary = Canary::start().await;
    for (weight_bp, of_a_hundred) in [(1_000, 10), (100, 1), (5_000, 50), (3_300, 33)] {
        canary.put(weight_bp, |_| {}).await;
        let counts = releases_of(canary.listen, 100).await;
        assert_eq!(counts.get("new"), Some(&of_a_hundred), "{weight_bp} basis points: {counts:?}");
    }
    canary.put(0, |_| {}).await;
    assert_eq!(releases_of(canary.listen, 100).await.get("old"), Some(&100));
    canary.proxy.stop().await;
}

#[tokio::test]
async fn many_connections_at_once_share_one_schedule() {
    let mut canary = Canary::start().await;
    canary.put(1_000, |_| {}).await;
    let listen = canary.listen;
    let tasks: Vec<_> = (0..20).map(|_| tokio::spawn(async move { releases_of(listen, 50).await })).collect();
    let mut candidate = 0;
    for task in tasks {
        candidate += task.await.expect("answered").get("new").copied().unwrap_or(0);
    }
    assert_eq!(candidate, 100);
    canary.proxy.stop().await;
}

#[tokio::test]
async fn rules_pin_whatever_the_weights_are_and_the_first_wins() {
    let mut canary = Canary::start().await;
    canary
        .put(0, |table| {
            table.rules = vec![
                header_rule("x-tester", "no", "old"),
                header_rule("X-Canary", "true", "new"),
                RouteRule {
                    matches: RouteMatch::Cookie { name: "beta".into(), value: "1".into() },
                    release: "new".into(),
                },
            ];
        })
        .await;
    let mut raw = Raw::connect(canary.listen).await;
    for (headers, release) in [
        ("", "old"),
        ("x-canary: true\r\n", "new"),
        ("X-CANARY: true\r\n", "new"),
        ("x-canary: True\r\n", "old"),
        ("x-canary: true\r\nx-tester: no\r\n", "old"),
        ("Cookie: a=b; beta=1\r\n", "new"),
        ("Cookie: beta=10\r\n", "old"),
        ("Cookie: a=b\r\nCookie: c=d; beta=1; e=f\r\n", "new"),
    ] {
        for _ in 0..3 {
            raw.send(&format!("GET / HTTP/1.1\r\nHost: t\r\n{headers}\r\n")).await;
            assert_eq!(raw.answer().await.header("x-cdpipe-release"), Some(release), "{headers:?}");
        }
    }
    canary.proxy.stop().await;
}

/// A user with the cookie it was given.
struct User {
    raw: Raw,
    cookie: Option<String>,
}

impl User {
    async fn new(listen: SocketAddr) -> User {
        User { raw: Raw::connect(listen).await, cookie: None }
    }

    async fn visit(&mut self) -> String {
        let cookie = self.cookie.as_ref().map(|c| format!("Cookie: theme=dark; {c}\r\n")).unwrap_or_default();
        self.raw.send(&format!("GET / HTTP/1.1\r\nHost: t\r\n{cookie}\r\n")).await;
        let answer = self.raw.answer().await;
        assert_eq!(answer.status, 200, "{}", answer.head);
        if let Some(given) = answer.header("set-cookie") {
            assert!(given.ends_with("; Path=/; HttpOnly; SameSite=Lax"), "{given}");
            self.cookie = given.split(';').next().map(str::to_owned);
        }
        answer.header("x-cdpipe-release").expect("a release").to_owned()
    }
}

#[tokio::test]
async fn sticky_by_cookie_users_move_once_at_most_and_all_leave_at_a_rollback() {
    let mut canary = Canary::start().await;
    let sticky = |table: &mut RouteTable| table.sticky = Sticky::Cookie;
    canary.put(1_000, sticky).await;
    let mut users = Vec::new();
    for _ in 0..100 {
        users.push(User::new(canary.listen).await);
    }
    let mut on_candidate = vec![false; users.len()];
    for (weight_bp, want) in [(1_000, 10), (1_000, 10), (3_000, 30), (5_000, 50), (2_000, 50), (10_000, 100)]
    {
        canary.put(weight_bp, sticky).await;
        for (user, was) in users.iter_mut().zip(&mut on_candidate) {
            let first = user.visit().await;
            assert!(!*was || first == "new", "a user of the candidate was taken off it");
            assert_eq!(user.visit().await, first, "a user changed release between two visits");
            *was = first == "new";
        }
        let count = on_candidate.iter().filter(|on| **on).count();
        assert!(count.abs_diff(want) <= 2, "{count} users on the candidate at {weight_bp} basis points");
    }
    canary.put(0, sticky).await;
    for user in &mut users {
        assert_eq!(user.visit().await, "old");
    }
    // Whatever a user makes up is as good as no cookie.
    let mut raw = Raw::connect(canary.listen).await;
    for value in ["99999999.new", "x.new", "", "5", "5.gone", "-1.new"] {
        raw.send(&format!("GET / HTTP/1.1\r\nHost: t\r\nCookie: cdpipe_web={value}\r\n\r\n")).await;
        let answer = raw.answer().await;
        assert_eq!((answer.status, answer.header("x-cdpipe-release")), (200, Some("old")));
    }
    canary.proxy.stop().await;
}

#[tokio::test]
async fn sticky_by_address_one_client_stays() {
    let mut canary = Canary::start().await;
    let sticky = |table: &mut RouteTable| table.sticky = Sticky::ClientAddress;
    let mut was_on_candidate = false;
    for weight_bp in [1_000, 3_000, 5_000, 9_000, 10_000] {
        canary.put(weight_bp, sticky).await;
        let counts = releases_of(canary.listen, 20).await;
        assert_eq!(counts.len(), 1, "one address met two releases: {counts:?}");
        assert!(!was_on_candidate || counts.contains_key("new"));
        was_on_candidate = counts.contains_key("new");
    }
    assert!(was_on_candidate);
    canary.put(0, sticky).await;
    assert_eq!(releases_of(canary.listen, 20).await.get("old"), Some(&20));
    canary.proxy.stop().await;
}

#[tokio::test]
async fn the_most_specific_route_answers() {
    let (proxy, listen) = (Proxy::start().await, free_address());
    let other = free_address();
    let mut instances = Vec::new();
    for (n, (service, at, host, path)) in [
        ("any", listen, None, None),
        ("api", listen, None, Some("/api")),
        ("api-v2", listen, None, Some("/api/v2/")),
        ("shop", listen, Some("Shop.example"), None),
        ("shop-pay", listen, Some("shop.example"), Some("/pay")),
        ("other", other, None, None),
    ]
    .into_iter()
    .enumerate()
    {
        let instance = Instance::start(service).await;
        let mut table = only(at, "r1", &[instance.address]);
        table.route.service = service.into();
        table.route.host = host.map(str::to_owned);
        table.route.path = path.map(str::to_owned);
        proxy.put(table, n as u64 + 1).await;
        instances.push(instance);
    }
    for (at, host, path, service) in [
        (listen, "x", "/", "any"),
        (listen, "x", "/api", "api"),
        (listen, "x", "/api?x=y", "api"),
        (listen, "x", "/api/", "api"),
        (listen, "x", "/apix", "any"),
        (listen, "x", "/api/v2/x", "api-v2"),
        (listen, "x", "/api/v22", "api"),
        (listen, "SHOP.example:8080", "/", "shop"),
        (listen, "shop.example", "/pay/now", "shop-pay"),
        (listen, "shop.example", "/api/v2/x", "shop"),
        (other, "shop.example", "/api", "other"),
    ] {
        let mut raw = Raw::connect(at).await;
        raw.send(&format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        assert_eq!(raw.answer().await.text(), service, "{host}{path}");
    }
    proxy.stop().await;
}

#[tokio::test]
async fn requests_go_to_the_member_with_the_fewest() {
    let (proxy, listen) = (Proxy::start().await, free_address());
    let (busy, free) = (Instance::start("busy").await, Instance::start("free").await);
    proxy.put(only(listen, "r1", &[busy.address]), 1).await;
    let mut held = Vec::new();
    for _ in 0..5 {
        let mut raw = Raw::connect(listen).await;
        raw.send("GET /slow/1500 HTTP/1.1\r\nHost: t\r\n\r\n").await;
        held.push(raw);
    }
    eventually("five are in flight", || async {
        proxy.client.drained(whole("r1")).await.expect("answered").in_flight == 5
    })
    .await;
    proxy.put(only(listen, "r1", &[busy.address, free.address]), 2).await;
    let mut raw = Raw::connect(listen).await;
    for _ in 0..20 {
        assert_eq!(raw.get("/").await.text(), "free");
    }
    for mut raw in held {
        assert_eq!(raw.answer().await.text(), "busy");
    }
    // Among equals the turn goes round.
    for _ in 0..20 {
        raw.get("/").await;
    }
    let served = busy.served.load(std::sync::atomic::Ordering::SeqCst);
    assert!((12..=18).contains(&served), "{served} of 25 on the one, 10 of 20 expected after the slow ones");
    proxy.stop().await;
}
