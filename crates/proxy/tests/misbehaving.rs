//! Instances and clients that do not as they should, and what the proxy makes of it: each test speaks over real sockets.

#![allow(clippy::expect_used, reason = "helpers of tests stand outside of #[test] functions")]

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use cdpipe_proxy::Limits;
use support::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

async fn with_limits(change: impl FnOnce(&mut Limits)) -> (Proxy, std::net::SocketAddr) {
    let directory = Arc::new(tempfile::tempdir().expect("a directory"));
    (Proxy::start_with(directory, |options| change(&mut options.limits)).await, free_address())
}

#[tokio::test]
async fn an_instance_that_refuses_is_passed_over() {
    let (proxy, listen) = (Proxy::start().await, free_address());
    let alive = Instance::start("alive").await;
    let dead = free_address();
    proxy.put(only(listen, "r1", &[dead, alive.address]), 1).await;
    let mut raw = Raw::connect(listen).await;
    for n in 0..20 {
        // A body is no obstacle: nothing of it has been sent.
        raw.send(&format!("POST /echo HTTP/1.1\r\nHost: t\r\nContent-Length: 2\r\n\r\n{n:02}")).await;
        let answer = raw.answer().await;
        assert_eq!((answer.status, answer.text()), (200, format!("{n:02}").as_str()));
    }
    let metrics = proxy.client.metrics().await.expect("answered");
    let errors = sample(&metrics, "cdpipe_proxy_connect_errors_total", &["release=\"r1\""]).expect("counted");
    assert!((1.0..20.0).contains(&errors), "{errors} connect errors: it should be passed over for a while");
    assert_eq!(sample(&metrics, "cdpipe_proxy_retries_total", &["release=\"r1\""]), Some(errors));
    proxy.stop().await;
}

#[tokio::test]
async fn when_nobody_takes_the_connection_the_answer_says_so() {
    let (proxy, listen) = (Proxy::start().await, free_address());
    let dead = free_address();
    proxy.put(only(listen, "r1", &[dead]), 1).await;
    let answer = Raw::connect(listen).await.get("/").await;
    assert_eq!((answer.status, answer.header("x-cdpipe-proxy-error")), (502, Some("connect_failed")));
    assert_eq!(answer.header("x-cdpipe-release"), Some("r1"));
    assert!(answer.text().contains(&dead.to_string()), "{}", answer.text());
    proxy.stop().await;
}

/// Answers one request on each connection as if it would live on, then closes it when the next has come.
async fn closes_on_the_second() -> std::net::SocketAddr {
    raw_instance(|_, mut stream| async move {
        read_head(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.expect("sent");
        read_head(&mut stream).await;
    })
    .await
}

#[tokio::test]
async fn a_kept_connection_that_dies_is_replaced_where_nobody_can_notice() {
    let (proxy, listen) = (Proxy::start().await, free_address());
    proxy.put(only(listen, "r1", &[closes_on_the_second().await]), 1).await;
    let mut raw = Raw::connect(listen).await;
    for _ in 0..10 {
        let answer = raw.get("/").await;
        assert_eq!((answer.status, answer.text()), (200, "ok"));
    }
    // A POST may have been acted on: it is not sent again.
    raw.send("POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 2\r\n\r\nhi").await;
    let answer = raw.answer().await;
    assert_eq!((answer.status, answer.header("x-cdpipe-proxy-error")), (502, Some("upstream_closed")));
    proxy.stop().await;
}

#[tokio::test]
async fn a_post_gets_no_connection_that_may_be_closing() {
    let (proxy, listen) = (Proxy::start().await, free_address());
    // Closes what was idle for 1.2 s, as many servers do after some seconds: at the moment the next request may come.
    let instance = raw_instance(|_, mut stream| async move {
        loop {
            let Ok((head, _)) =
                tokio::time::timeout(Duration::from_millis(1_200), read_head(&mut stream)).await
            else {
                return;
            };
            let body: &[u8] = if head.starts_with("POST") {
                b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\npost"
            } else {
                b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nget"
            };
            stream.write_all(body).await.expect("sent");
        }
    })
    .await;
    proxy.put(only(listen, "r1", &[instance]), 1).await;
    let mut raw = Raw::connect(listen).await;
    assert_eq!(raw.get("/").await.text(), "get");
    tokio::time::sleep(Duration::from_millis(1_195)).await;
    raw.send("POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(raw.answer().await.text(), "post");
    proxy.stop().await;
}

#[tokio::test]
async fn an_instance_that_closes_without_an_answer_is_not_asked_twice() {
    let (proxy, listen) = (Proxy::start().await, free_address());
    let asked = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = asked.clone();
    let instance = raw_instance(move |_, mut stream| {
        let count = count.clone();
        async move {
            read_head(&mut stream).await;
            count.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        }
    })
    .await;
    proxy.put(only(listen, "r1", &[instance]), 1).await;
    let answer = Raw::connect(listen).await.get("/").await;
    assert_eq!((answer.status, answer.header("x-cdpipe-proxy-error")), (502, Some("upstream_closed")));
    assert_eq!(asked.load(std::sync::atomic::Ordering::SeqCst), 1);
    proxy.stop().await;
}

#[tokio::test]
async fn nonsense_from_an_instance_is_not_passed_on() {
    let (proxy, listen) = (Proxy::start().await, free_address());
    for (n, answer) in [
        "not http at all\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc",
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\nabc",
        "HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n",
    ]
    .into_iter()
    .enumerate()
    {
        let instance = raw_instance(move |_, mut stream| async move {
            read_head(&mut stream).await;
            stream.write_all(answer.as_bytes()).await.expect("sent");
            let _ = stream.read(&mut [0; 16]).await;
        })
        .await;
        proxy.put(only(listen, &format!("r{n}"), &[instance]), n as u64 + 1).await;
        let found = Raw::connect(listen).await.get("/").await;
        assert_eq!(
            (found.status, found.header("x-cdpipe-proxy-error")),
            (502, Some("upstream_bad_response")),
            "{answer:?}"
        );
    }
    proxy.stop().await;
}

#[tokio::test]
async fn huge_heads_are_refused_and_large_ones_pass() {
    let (proxy, listen, _instance) = with_instance().await;
    let mut raw = Raw::connect(listen).await;
    // Larger than a read buffer, smaller than the limit; hyper takes it too.
    raw.send(&format!("GET /head HTTP/1.1\r\nHost: t\r\nX-Big: {}\r\n\r\n", "y".repeat(50_000))).await;
    let answer = raw.answer().await;
    assert_eq!(answer.status, 200);
    assert!(answer.text().contains(&"y".repeat(50_000)));

    let mut raw = Raw::connect(listen).await;
    raw.send(&format!("GET / HTTP/1.1\r\nHost: t\r\nX-Big: {}\r\n\r\n", "y".repeat(100_000))).await;
    let answer = raw.answer().await;
    assert_eq!((answer.status, answer.header("x-cdpipe-proxy-error")), (431, Some("request_head_too_large")));

    let mut raw = Raw::connect(listen).await;
    let many: String = (0..200).map(|n| format!("X-{n}: y\r\n")).collect();
    raw.send(&format!("GET / HTTP/1.1\r\nHost: t\r\n{many}\r\n")).await;
    assert_eq!(raw.answer().await.status, 431);

    let instance = raw_instance(|_, mut stream| async move {
        read_head(&mut stream).await;
        let _ = stream
            .write_all(format!("HTTP/1.1 200 OK\r\nX-Big: {}\r\n\r\n", "y".repeat(100_000)).as_bytes())
            .await;
        let _ = stream.read(&mut [0; 16]).await;
    })
    .await;
    proxy.put(only(listen, "r2", &[instance]), 2).await;
    let answer = Raw::connect(listen).await.get("/").await;
    assert_eq!(
        (answer.status, answer.header("x-cdpipe-proxy-error")),
        (502, Some("response_head_too_large"))
    );
    proxy.stop().await;
}

#[tokio::test]
async fn bad_requests_are_refused_without_asking_anybody() {
    let (proxy, listen, instance) = with_instance().await;
    for (request, status, cause) in [
        (
            "POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
            "bad_request",
        ),
        ("GET / HTTP/1.1\r\n\r\n", 400, "bad_request"),
        ("GET / HTTP/1.1\r\nHost: t\r\nBad Name: x\r\n\r\n", 400, "bad_request"),
        ("\u{16}\u{3}\u{1}\u{2}\u{0}\u{1}\r\n\r\n", 400, "bad_request"),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "version_not_supported"),
        ("CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", 501, "not_implemented"),
        ("POST / HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: gzip\r\n\r\n", 501, "not_implemented"),
    ] {
        let mut raw = Raw::connect(listen).await;
        raw.send(request).await;
        let answer = raw.answer().await;
        assert_eq!(
            (answer.status, answer.header("x-cdpipe-proxy-error")),
            (status, Some(cause)),
            "{request:?}"
        );
        assert!(raw.read_to_close().await.expect("a regular end").is_empty());
    }
    assert_eq!(instance.served.load(std::sync::atomic::Ordering::SeqCst), 0);

    let mut raw = Raw::connect(listen).await;
    raw.send("POST /echo HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloGARBAGE").await;
    // The instance has begun its answer, or it has not: either way the client never sees a whole one.
    let all = raw.read_to_close().await.unwrap_or_default();
    let text = String::from_utf8_lossy(&all);
    assert!(text.starts_with("HTTP/1.1 400") || !text.ends_with("0\r\n\r\n"), "{text}");
    proxy.stop().await;
}

/// Noise, cut requests and mutilated ones: none may end a worker, leave a request counted, or reach an instance as two.
#[tokio::test]
async fn noise_does_no_harm() {
    use proptest::prelude::*;
    use proptest::strategy::ValueTree;
    let (proxy, listen, _instance) = with_instance().await;
    let good = b"POST /echo HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
        .to_vec();
    let noise = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..300),
        (0..good.len(), any::<u8>()).prop_map({
            let good = good.clone();
            move |(at, byte)| {
                let mut bad = good.clone();
                bad[at] = byte;
                bad
            }
        }),
        (0..good.len()).prop_map(move |at| good[..at].to_vec()),
    ];
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    for _ in 0..300 {
        let bytes = noise.new_tree(&mut runner).expect("a value").current();
        let mut raw = Raw::connect(listen).await;
        // The proxy may have answered and closed before all of it is sent.
        let _ = raw.stream.write_all(&bytes).await;
        let _ = raw.stream.shutdown().await;
        let _ = raw.read_to_close().await;
    }
    eventually("nothing is in flight", || async {
        proxy.client.drained(whole("r1")).await.expect("answered").in_flight == 0
    })
    .await;
    assert_eq!(releases_of(listen, 20).await.get("r1"), Some(&20));
    proxy.stop().await;
}

#[tokio::test]
async fn a_client_that_dawdles_is_told_so() {
    let (proxy, listen) = with_limits(|limits| {
        limits.request_head_timeout_ms = 200;
        limits.keep_alive_timeout_ms = 300;
        limits.body_idle_timeout_ms = 200;
    })
    .await;
    let instance = Instance::start("r1-a").await;
    proxy.put(only(listen, "r1", &[instance.address]), 1).await;

    let mut raw = Raw::connect(listen).await;
    for byte in "GET / HTTP/1.1\r\nHost: t\r\nX-Sl".chars() {
        raw.send(&byte.to_string()).await;
    }
    let answer = raw.answer().await;
    assert_eq!((answer.status, answer.header("x-cdpipe-proxy-error")), (408, Some("request_timeout")));

    let mut raw = Raw::connect(listen).await;
    raw.send("POST /slow/1 HTTP/1.1\r\nHost: t\r\nContent-Length: 10\r\n\r\nhalf").await;
    // hyper answers /slow without reading the body; a body that never comes must not hold the connection.
    let answer = raw.answer().await;
    assert!(matches!(answer.status, 200 | 408), "{}", answer.head);
    assert_eq!(answer.header("connection"), Some("close"));

    // Without a request a connection is closed quietly.
    let began = Instant::now();
    let mut raw = Raw::connect(listen).await;
    assert!(raw.read_to_close().await.expect("a regular end").is_empty());
    assert!(began.elapsed() >= Duration::from_millis(250), "{:?}", began.elapsed());
    proxy.stop().await;
}

#[tokio::test]
async fn an_instance_that_dawdles_is_answered_for() {
    let (proxy, listen) = with_limits(|limits| {
        limits.response_head_timeout_ms = 150;
        limits.body_idle_timeout_ms = 150;
    })
    .await;
    let instance = Instance::start("r1-a").await;
    proxy.put(only(listen, "r1", &[instance.address]), 1).await;
    let mut raw = Raw::connect(listen).await;
    let answer = raw.get("/slow/5000").await;
    assert_eq!((answer.status, answer.header("x-cdpipe-proxy-error")), (504, Some("response_timeout")));
    // The connection lives on, and a stream that stops in the middle is reset.
    raw.send("GET /stream/2/5000 HTTP/1.1\r\nHost: t\r\n\r\n").await;
    let (status, _) = raw.head().await;
    assert_eq!(status, 200);
    assert!(raw.read_to_close().await.is_err());
    proxy.stop().await;
}

#[tokio::test]
async fn connections_are_bounded() {
    let (proxy, listen) = with_limits(|limits| limits.max_connections = 2).await;
    let instance = Instance::start("r1-a").await;
    proxy.put(only(listen, "r1", &[instance.address]), 1).await;
    let (mut first, mut second) = (Raw::connect(listen).await, Raw::connect(listen).await);
    assert_eq!((first.get("/").await.status, second.get("/").await.status), (200, 200));
    let mut third = Raw::connect(listen).await;
    let answer = third.answer().await;
    assert_eq!((answer.status, answer.header("x-cdpipe-proxy-error")), (503, Some("connection_limit")));
    drop(second);
    eventually("there is room again", || async { Raw::connect(listen).await.get("/").await.status == 200 })
        .await;
    assert_eq!(first.get("/").await.status, 200);
    proxy.stop().await;
}

#[tokio::test]
async fn a_table_that_leads_back_to_the_proxy_ends_in_an_answer() {
    let (proxy, first, second) = (Proxy::start().await, free_address(), free_address());
    let mut there = only(first, "r1", &[second]);
    let mut back = only(second, "r1", &[first]);
    there.route.service = "there".into();
    back.route.service = "back".into();
    proxy.put(there, 1).await;
    proxy.put(back, 1).await;
    let answer = Raw::connect(first).await.get("/").await;
    assert_eq!((answer.status, answer.header("x-cdpipe-proxy-error")), (508, Some("loop")));
    proxy.stop().await;
}
