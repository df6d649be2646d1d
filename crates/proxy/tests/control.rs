//! What the control socket promises: fences, all or nothing, drains that are true, state that survives.

#![allow(clippy::expect_used, clippy::panic, reason = "helpers of tests stand outside of #[test] functions")]

mod support;

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cdpipe_model::observe::{Role, RouteTable};
use cdpipe_proxy::control::protocol::{Expect, PutRoute, Refusal, RefusalCode, Selection};
use cdpipe_proxy::{ClientError, ProxyClient, ServeError, ServeOptions, serve};
use support::*;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

fn any(table: RouteTable) -> Vec<PutRoute> {
    vec![PutRoute { table, expect: Expect::Anything }]
}

fn refused<T: std::fmt::Debug>(result: Result<T, ClientError>) -> Refusal {
    match result {
        Err(ClientError::Refused(refusal)) => refusal,
        other => panic!("expected a refusal, found {other:?}"),
    }
}

#[tokio::test]
async fn an_older_epoch_is_refused_and_told_who_owns_the_route() {
    let (proxy, listen) = (Proxy::start().await, free_address());
    let instance = Instance::start("r1").await;
    let put = |release: &'static str, epoch: u64, owner: &'static str| {
        let table = only(listen, release, &[instance.address]);
        let client = proxy.client.clone();
        async move { client.put(any(table), Vec::new(), epoch, owner).await }
    };
    assert_eq!(put("r1", 5, "run-a").await.expect("taken").revision, 1);
    // The owner goes on with its epoch; nobody else can use it, nor an older one.
    assert_eq!(put("r2", 5, "run-a").await.expect("taken").revision, 2);
    for (epoch, owner) in [(5, "run-b"), (4, "run-b"), (4, "run-a"), (0, "run-c")] {
        let refusal = refused(put("r9", epoch, owner).await);
        assert_eq!(refusal.code, RefusalCode::Stale);
        assert_eq!((refusal.epoch, refusal.owner.as_deref()), (Some(5), Some("run-a")));
    }
    assert_eq!(put("r3", 6, "run-b").await.expect("taken").revision, 3);
    assert_eq!(refused(put("r4", 5, "run-a").await).code, RefusalCode::Stale);
    let state = proxy.client.get().await.expect("answered");
    assert_eq!(state.table.routes[0].table.entries[0].release.as_str(), "r3");
    assert_eq!((state.table.routes[0].epoch, state.table.routes[0].owner.as_str()), (6, "run-b"));
    // The same again is no change.
    assert_eq!(put("r3", 6, "run-b").await.expect("taken").revision, 3);
    // Removing is fenced too.
    let removed = proxy.client.put(Vec::new(), vec![route(listen)], 5, "run-a").await;
    assert_eq!(refused(removed).code, RefusalCode::Stale);
    proxy.stop().await;
}

#[tokio::test]
async fn a_route_that_somebody_else_changed_is_not_overwritten() {
    let (proxy, listen) = (Proxy::start().await, free_address());
    let instance = Instance::start("r1").await;
    let [one, two, three] = ["r1", "r2", "r3"].map(|release| only(listen, release, &[instance.address]));
    let put = |table: &RouteTable, seen: Option<&RouteTable>, epoch: u64| {
        let put = PutRoute { table: table.clone(), expect: Expect::Seen(seen.cloned()) };
        let client = proxy.client.clone();
        async move { client.put(vec![put], Vec::new(), epoch, "run").await }
    };
    put(&one, None, 1).await.expect("nothing was there");
    put(&two, Some(&one), 2).await.expect("as it was seen");
    // Done already: a write whose answer was lost is repeated.
    put(&two, Some(&one), 2).await.expect("as it is wanted");
    let refusal = refused(put(&three, Some(&one), 3).await);
    assert_eq!(refusal.code, RefusalCode::Moved);
    assert!(
        refusal.message.contains("expected r1 100 %") && refusal.message.contains("found r2 100 %"),
        "{refusal}"
    );
    assert_eq!(refused(put(&three, None, 3).await).code, RefusalCode::Moved);
    put(&three, Some(&two), 3).await.expect("as it was seen");
    proxy.stop().await;
}

#[tokio::test]
async fn a_table_that_can_not_be_served_changes_nothing() {
    let (proxy, listen) = (Proxy::start().await, free_address());
    let instance = Instance::start("r1").await;
    proxy.put(only(listen, "r1", &[instance.address]), 1).await;
    let at = instance.address;
    let good = || {
        table(listen, vec![entry("a", Role::Stable, 9_000, &[at]), entry("b", Role::Candidate, 1_000, &[at])])
    };
    let mut cases: Vec<(RouteTable, &str)> = Vec::new();
    let mut case = |change: &dyn Fn(&mut RouteTable), says: &'static str| {
        let mut table = good();
        change(&mut table);
        cases.push((table, says));
    };
    case(&|t| t.entries[0].weight_bp = 8_000, "sum to 10000");
    case(&|t| t.entries[1].members.clear(), "has no member");
    case(&|t| t.entries[1].release = "a".into(), "named twice");
    case(&|t| t.entries[1].release = "b\r\nSet-Cookie: x".into(), "expected a name");
    case(&|t| t.rules = vec![header_rule("x", "y", "gone")], "not one of the route's releases");
    case(&|t| t.rules = vec![header_rule("x y", "y", "a")], "header or cookie name");
    case(&|t| t.entries[0].members[0].address = "nowhere".into(), "expected HOST:PORT");
    case(&|t| t.entries[0].members[0].address = t.route.listen.clone().expect("set"), "own listen address");
    case(&|t| t.route.listen = None, "the route of service \"web\" has none");
    case(&|t| t.route.listen = Some("127.0.0.1:0".into()), "found \"127.0.0.1:0\"");
    case(&|t| t.route.path = Some("api".into()), "starts with \"/\"");
    case(&|t| t.route.service = "".into(), "expected a name");
    for (table, says) in cases {
        let refusal = refused(proxy.client.put(any(table), Vec::new(), 2, "test").await);
        assert_eq!(refusal.code, RefusalCode::Invalid);
        assert!(refusal.message.contains(says), "{says:?} in {refusal}");
    }
    let state = proxy.client.get().await.expect("answered");
    assert_eq!((state.table.revision, state.table.routes.len()), (1, 1));
    assert_eq!(Raw::connect(listen).await.get("/").await.status, 200);
    proxy.stop().await;
}

#[tokio::test]
async fn a_port_in_use_leaves_the_old_table_in_force_and_binds_nothing() {
    let (proxy, listen) = (Proxy::start().await, free_address());
    let instance = Instance::start("r1").await;
    proxy.put(only(listen, "r1", &[instance.address]), 1).await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    let (free, taken_address) = (free_address(), taken.local_addr().expect("bound"));
    let mut tables = [only(free, "r2", &[instance.address]), only(taken_address, "r2", &[instance.address])];
    tables[1].route.service = "other".into();
    let puts = tables
        .iter()
        .map(|table| PutRoute { table: table.clone(), expect: Expect::Anything })
        .collect::<Vec<_>>();
    let refusal = refused(proxy.client.put(puts.clone(), Vec::new(), 2, "test").await);
    assert_eq!(refusal.code, RefusalCode::PortInUse);
    assert!(refusal.message.contains(&taken_address.to_string()), "{refusal}");
    assert!(std::net::TcpStream::connect(free).is_err(), "a port of the refused table is open");
    assert_eq!(Raw::connect(listen).await.get("/").await.header("x-cdpipe-release"), Some("r1"));

    drop(taken);
    proxy.client.put(puts, vec![route(listen)], 2, "test").await.expect("the port is free now");
    assert_eq!(Raw::connect(free).await.get("/").await.header("x-cdpipe-release"), Some("r2"));
    assert_eq!(Raw::connect(taken_address).await.get("/").await.header("x-cdpipe-release"), Some("r2"));
    // The put is answered when the port that is no longer wanted is closed.
    assert!(std::net::TcpStream::connect(listen).is_err(), "a port that is not in the table is open");
    proxy.stop().await;
}

#[tokio::test]
async fn a_route_can_be_closed_whose_port_another_program_has() {
    let (proxy, instance) = (Proxy::start().await, Instance::start("r1").await);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    let listen = taken.local_addr().expect("bound");
    let open = any(only(listen, "r1", &[instance.address]));
    let refusal = refused(proxy.client.put(open.clone(), Vec::new(), 1, "test").await);
    assert_eq!(refusal.code, RefusalCode::PortInUse);
    // How a deploy that was refused goes back.
    proxy.put(RouteTable::closed(route(listen)), 1).await;
    drop(taken);
    proxy.client.put(open, Vec::new(), 1, "test").await.expect("the port is free now");
    assert_eq!(Raw::connect(listen).await.get("/").await.header("x-cdpipe-release"), Some("r1"));
    proxy.stop().await;
}

#[tokio::test]
async fn two_proxies_never_share_a_port() {
    let (one, two, listen) = (Proxy::start().await, Proxy::start().await, free_address());
    let instance = Instance::start("r1").await;
    one.put(only(listen, "r1", &[instance.address]), 1).await;
    let refusal =
        refused(two.client.put(any(only(listen, "r1", &[instance.address])), Vec::new(), 1, "test").await);
    assert_eq!(refusal.code, RefusalCode::PortInUse);
    one.stop().await;
    two.stop().await;
}

#[tokio::test]
async fn a_closed_route_says_so_and_an_unknown_one_too() {
    let (proxy, listen) = (Proxy::start().await, free_address());
    let mut closed = RouteTable::closed(route(listen));
    closed.route.path = Some("/shop".into());
    proxy.put(closed, 1).await;
    let mut raw = Raw::connect(listen).await;
    raw.send("GET /shop/x HTTP/1.1\r\nHost: t\r\n\r\n").await;
    let answer = raw.answer().await;
    assert_eq!((answer.status, answer.header("x-cdpipe-proxy-error")), (503, Some("closed")));
    let answer = Raw::connect(listen).await.get("/other").await;
    assert_eq!((answer.status, answer.header("x-cdpipe-proxy-error")), (404, Some("no_route")));
    proxy.stop().await;
}

#[tokio::test]
async fn a_drain_counts_requests_streams_and_websockets_to_their_last_byte() {
    let (proxy, listen) = (Proxy::start().await, free_address());
    let (old, new) = (Instance::start("old").await, Instance::start("new").await);
    proxy.put(only(listen, "old", &[old.address]), 1).await;
    let (mut slow, mut stream, mut socket) =
        (Raw::connect(listen).await, Raw::connect(listen).await, Raw::connect(listen).await);
    slow.send("GET /slow/300 HTTP/1.1\r\nHost: t\r\n\r\n").await;
    stream.send("GET /stream/10/60 HTTP/1.1\r\nHost: t\r\n\r\n").await;
    socket.send("GET /ws HTTP/1.1\r\nHost: t\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nx").await;
    socket.head().await;
    let old_whole = || proxy.client.drained(whole("old"));
    eventually("three are in flight", || async { old_whole().await.expect("answered").in_flight == 3 }).await;
    let drain = old_whole().await.expect("answered");
    assert_eq!((drain.routed, drain.upgraded, drain.done()), (true, 1, false));
    // What is routed to is never drained, whatever its count.
    assert!(!proxy.client.wait_drained(whole("old"), 50).await.expect("answered").done());
    let refusal = refused(proxy.client.cut(whole("old")).await);
    assert_eq!(refusal.code, RefusalCode::StillRouted);

    proxy.put(only(listen, "new", &[new.address]), 2).await;
    let began = Instant::now();
    let waiting = tokio::spawn({
        let client = proxy.client.clone();
        async move { client.wait_drained(whole("old"), 10_000).await }
    });
    assert_eq!(Raw::connect(listen).await.get("/").await.text(), "new");
    assert_eq!(slow.answer().await.text(), "old");
    // The connection goes on, by the new table.
    assert_eq!(slow.get("/").await.text(), "new");
    assert_eq!(stream.answer().await.text().lines().count(), 10);
    assert!(!waiting.is_finished(), "the websocket is still there");
    assert_eq!(old_whole().await.expect("answered").in_flight, 1);
    socket.bytes(1).await;
    drop(socket);
    let drain = waiting.await.expect("joined").expect("answered");
    assert!(drain.done(), "{drain:?}");
    assert!(began.elapsed() < Duration::from_secs(9), "{:?}", began.elapsed());

    let some = Selection { instances: Some(vec!["gone".into()]), ..whole("new") };
    assert!(
        proxy.client.drained(some).await.expect("answered").done(),
        "an instance nobody knows has nothing in flight"
    );
    proxy.stop().await;
}

/// Two environments may share a proxy and deploy the same release under the same instance names: neither may wait for, or
/// cut, what is the other's.
#[tokio::test]
async fn routes_of_one_service_drain_each_for_itself() {
    let (proxy, staging, production) = (Proxy::start().await, free_address(), free_address());
    let instances = [Instance::start("r1").await, Instance::start("r1").await];
    for (listen, instance) in [staging, production].into_iter().zip(&instances) {
        let mut table = only(listen, "r1", &[instance.address]);
        table.entries[0].members[0].instance = "r1-1".into();
        proxy.put(table, 1).await;
    }
    let mut user = Raw::connect(production).await;
    user.send("GET /slow/400 HTTP/1.1\r\nHost: t\r\n\r\n").await;
    let of = |listen| Selection { route: Some(route(listen)), ..whole("r1") };
    eventually("it is in flight", || async {
        proxy.client.drained(of(production)).await.expect("answered").in_flight == 1
    })
    .await;
    proxy.put(RouteTable::closed(route(staging)), 2).await;
    let drain = proxy.client.wait_drained(of(staging), 100).await.expect("answered");
    assert!(drain.done(), "{drain:?}");
    assert!(proxy.client.cut(of(staging)).await.expect("nothing to cut").done());
    assert_eq!(user.answer().await.text(), "r1");
    let requests = proxy.client.requests("web", Some(&route(staging))).await.expect("answered").releases;
    assert_eq!(requests.get("r1"), Some(&0));
    proxy.stop().await;
}

#[tokio::test]
async fn what_does_not_drain_can_be_cut() {
    let (proxy, listen) = (Proxy::start().await, free_address());
    let (old, new) = (Instance::start("old").await, Instance::start("new").await);
    proxy.put(only(listen, "old", &[old.address]), 1).await;
    let (mut slow, mut stream, mut socket, mut idle) = (
        Raw::connect(listen).await,
        Raw::connect(listen).await,
        Raw::connect(listen).await,
        Raw::connect(listen).await,
    );
    slow.send("GET /slow/60000 HTTP/1.1\r\nHost: t\r\n\r\n").await;
    stream.send("GET /stream/1000/1000 HTTP/1.1\r\nHost: t\r\n\r\n").await;
    stream.head().await;
    socket.send("GET /ws HTTP/1.1\r\nHost: t\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nx").await;
    socket.head().await;
    assert_eq!(idle.get("/").await.text(), "old");
    eventually("three are in flight", || async {
        proxy.client.drained(whole("old")).await.expect("answered").in_flight == 3
    })
    .await;
    proxy.put(only(listen, "new", &[new.address]), 2).await;
    let mut fresh = Raw::connect(listen).await;
    fresh.send("GET /slow/200 HTTP/1.1\r\nHost: t\r\n\r\n").await;
    let drain = proxy.client.wait_drained(whole("old"), 100).await.expect("answered");
    assert_eq!((drain.done(), drain.in_flight), (false, 3));
    let drain = proxy.client.cut(whole("old")).await.expect("answered");
    assert!(drain.done(), "{drain:?}");
    // What had not been answered is; what had begun is reset; the websocket has ended; nobody else has noticed.
    let answer = slow.answer().await;
    assert_eq!((answer.status, answer.header("x-cdpipe-proxy-error")), (503, Some("cut")));
    assert!(stream.read_to_close().await.is_err());
    let rest = socket.read_to_close().await;
    assert!(rest.is_err() || rest.as_deref().is_ok_and(|rest| rest == b"x"), "{rest:?}");
    assert_eq!(fresh.answer().await.text(), "new");
    assert_eq!(idle.get("/").await.text(), "new");
    proxy.stop().await;
}

#[tokio::test]
async fn state_survives_a_restart_and_is_served_before_anything_else() {
    let directory = Arc::new(tempfile::tempdir().expect("a directory"));
    let listen = free_address();
    let instance = Instance::start("r1").await;
    let proxy = Proxy::start_with(directory.clone(), |_| {}).await;
    proxy.put(only(listen, "r1", &[instance.address]), 7).await;
    let before = proxy.client.get().await.expect("answered").table;
    let mode = |name: &str| {
        std::fs::metadata(directory.path().join(name)).expect("there").permissions().mode() & 0o777
    };
    assert_eq!(mode("control.sock"), 0o600);
    proxy.stop().await;
    assert!(!exists(&directory.path().join("control.sock")) && !exists(&directory.path().join("proxy.pid")));

    let proxy = Proxy::start_with(directory.clone(), |_| {}).await;
    // The first answer on the control socket comes from a proxy that serves.
    assert_eq!(Raw::connect(listen).await.get("/").await.header("x-cdpipe-release"), Some("r1"));
    assert_eq!(proxy.client.get().await.expect("answered").table, before);
    let stale = proxy.client.put(any(only(listen, "r2", &[instance.address])), Vec::new(), 6, "test").await;
    assert_eq!(refused(stale).code, RefusalCode::Stale, "the fence survives too");
    proxy.stop().await;
}

#[tokio::test]
async fn a_damaged_state_is_an_error_and_not_an_empty_table() {
    let directory = Arc::new(tempfile::tempdir().expect("a directory"));
    let proxy = Proxy::start_with(directory.clone(), |_| {}).await;
    let instance = Instance::start("r1").await;
    proxy.put(only(free_address(), "r1", &[instance.address]), 1).await;
    proxy.stop().await;
    let path = directory.path().join("table.json");
    let good = std::fs::read(&path).expect("read");
    std::fs::write(&path, &good[..good.len() / 2]).expect("written");
    let options = ServeOptions::new(directory.path());
    let ended = tokio::task::spawn_blocking(move || serve(&options)).await.expect("joined");
    let Err(ServeError::State { path: named, .. }) = &ended else { panic!("{ended:?}") };
    assert_eq!(named, &path);
    let text = ended.expect_err("damaged").to_string();
    assert!(text.contains("checksum") && text.contains("Nothing is served"), "{text}");
    assert_eq!(std::fs::read(&path).expect("read"), good[..good.len() / 2], "the file was touched");
}

#[tokio::test]
async fn a_second_proxy_of_one_directory_is_refused() {
    let proxy = Proxy::start().await;
    let options = ServeOptions::new(proxy.directory.path());
    let ended = tokio::task::spawn_blocking(move || serve(&options)).await.expect("joined");
    assert!(matches!(ended, Err(ServeError::AlreadyRunning { .. })), "{ended:?}");
    proxy.client.ping().await.expect("the first is untouched");
    proxy.stop().await;
}

#[tokio::test]
async fn a_put_that_can_not_be_written_down_changes_nothing() {
    let (proxy, listen) = (Proxy::start().await, free_address());
    let instance = Instance::start("r1").await;
    proxy.put(only(listen, "r1", &[instance.address]), 1).await;
    // Root ignores modes, so the way is blocked by a directory where the new file would be written.
    let blocked = proxy.directory.path().join("table.json.new");
    std::fs::create_dir(&blocked).expect("made");
    let refusal =
        refused(proxy.client.put(any(only(listen, "r2", &[instance.address])), Vec::new(), 2, "test").await);
    assert_eq!(refusal.code, RefusalCode::StateUnwritable);
    assert_eq!(Raw::connect(listen).await.get("/").await.header("x-cdpipe-release"), Some("r1"));
    std::fs::remove_dir(&blocked).expect("removed");
    proxy.put(only(listen, "r2", &[instance.address]), 2).await;
    proxy.stop().await;
}

#[tokio::test]
async fn stopping_finishes_what_is_in_flight() {
    let (proxy, listen) = (Proxy::start().await, free_address());
    let instance = Instance::start("r1").await;
    proxy.put(only(listen, "r1", &[instance.address]), 1).await;
    let (mut slow, mut idle) = (Raw::connect(listen).await, Raw::connect(listen).await);
    assert_eq!(idle.get("/").await.status, 200);
    slow.send("GET /slow/300 HTTP/1.1\r\nHost: t\r\n\r\n").await;
    eventually("it is in flight", || async {
        proxy.client.drained(whole("r1")).await.expect("answered").in_flight == 1
    })
    .await;
    proxy.client.shutdown().await.expect("answered");
    assert!(idle.read_to_close().await.expect("a regular end").is_empty());
    eventually("nobody listens", || async { std::net::TcpStream::connect(listen).is_err() }).await;
    assert!(
        proxy.client.ping().await.is_ok_and(|pong| pong.stopping),
        "it answers for itself while it drains"
    );
    let answer = slow.answer().await;
    assert_eq!((answer.text(), answer.header("connection")), ("r1", Some("close")));
    eventually("it is gone", || async { proxy.client.ping().await.is_err() }).await;
}

#[tokio::test]
async fn the_protocol_is_versioned_and_bounded() {
    let proxy = Proxy::start().await;
    let stream = UnixStream::connect(proxy.directory.path().join("control.sock")).await.expect("connected");
    let mut stream = BufReader::new(stream);
    for (message, code) in [
        ("{\"v\":1,\"op\":\"ping\"}\n", "\"ok\""),
        ("{\"v\":2,\"future\":true}\n", "\"version\""),
        ("nonsense\n", "\"bad_message\""),
        ("{\"v\":1,\"op\":\"fly\"}\n", "\"bad_message\""),
        ("{\"v\":1,\"op\":\"put\"}\n", "\"bad_message\""),
    ] {
        stream.get_mut().write_all(message.as_bytes()).await.expect("sent");
        let mut line = String::new();
        stream.read_line(&mut line).await.expect("answered");
        assert!(line.starts_with("{\"v\":1,") && line.contains(code), "{message:?}: {line}");
    }
    // Nobody can make us hold a message without end.
    let writer = tokio::spawn(async move {
        let big = vec![b'x'; 1 << 20];
        while stream.get_mut().write_all(&big).await.is_ok() {}
        let mut rest = String::new();
        let _ = stream.read_to_string(&mut rest).await;
    });
    tokio::time::timeout(PATIENCE, writer).await.expect("it is cut off").expect("joined");
    proxy.client.ping().await.expect("the others are served");
    proxy.stop().await;
}

#[tokio::test]
async fn metrics_tell_releases_roles_and_ends_apart() {
    let directory = Arc::new(tempfile::tempdir().expect("a directory"));
    let (admin, listen) = (free_address(), free_address());
    let proxy = Proxy::start_with(directory, |options| options.admin_listen = Some(admin)).await;
    let (old, new) = (Instance::start("old").await, Instance::start("new").await);
    proxy
        .put(
            table(
                listen,
                vec![
                    entry("old", Role::Stable, 9_000, &[old.address]),
                    entry("new", Role::Candidate, 1_000, &[new.address]),
                ],
            ),
            1,
        )
        .await;
    releases_of(listen, 100).await;
    let mut raw = Raw::connect(admin).await;
    raw.send("GET /metrics HTTP/1.1\r\nHost: t\r\n\r\n").await;
    let answer = raw.answer().await;
    assert!(
        answer.header("content-type").is_some_and(|t| t.starts_with("text/plain; version=0.0.4")),
        "{}",
        answer.head
    );
    let text = answer.text();
    let ok = "code=\"2xx\"";
    for (release, role, count) in [("old", "stable", 90.0), ("new", "candidate", 10.0)] {
        let labels = [format!("release=\"{release}\""), format!("role=\"{role}\"")];
        let labels = [labels[0].as_str(), labels[1].as_str()];
        assert_eq!(
            sample(text, "cdpipe_proxy_requests_total", &[labels[0], labels[1], ok]),
            Some(count),
            "{text}"
        );
        assert_eq!(sample(text, "cdpipe_proxy_request_duration_seconds_count", &labels), Some(count));
        assert_eq!(sample(text, "cdpipe_proxy_in_flight", &labels), Some(0.0));
    }
    // After promotion the same release counts anew, as stable.
    proxy.put(only(listen, "new", &[new.address]), 2).await;
    releases_of(listen, 5).await;
    let text = proxy.client.metrics().await.expect("answered");
    assert_eq!(
        sample(&text, "cdpipe_proxy_requests_total", &["release=\"new\"", "role=\"stable\"", ok]),
        Some(5.0)
    );
    assert_eq!(
        sample(&text, "cdpipe_proxy_requests_total", &["release=\"new\"", "role=\"candidate\"", ok]),
        Some(10.0)
    );
    let requests = proxy.client.requests("web", None).await.expect("answered").releases;
    assert_eq!((requests.get("new"), requests.get("old")), (Some(&15), Some(&90)));
    for (path, status) in [("/healthz", 200), ("/", 404)] {
        assert_eq!(Raw::connect(admin).await.get(path).await.status, status);
    }
    proxy.stop().await;
}

#[tokio::test]
async fn a_long_state_path_works() {
    let base = tempfile::tempdir().expect("a directory");
    let deep = base.path().join("a".repeat(60)).join("b".repeat(60));
    let mut options = ServeOptions::new(&deep);
    options.workers = 1;
    let thread = std::thread::spawn(move || serve(&options));
    let client = ProxyClient::new(&deep);
    eventually("it answers", || async { client.ping().await.is_ok() }).await;
    client.shutdown().await.expect("answered");
    tokio::task::spawn_blocking(|| thread.join())
        .await
        .expect("joined")
        .expect("no panic")
        .expect("a good end");
}
