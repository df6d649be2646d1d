//! What passes through the proxy: each test speaks over real sockets. What does not is in `misbehaving.rs`.

mod support;

use std::sync::Arc;
use std::time::Duration;

use support::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test]
async fn requests_of_every_shape_pass() {
    let (proxy, listen, _instance) = with_instance().await;
    let mut raw = Raw::connect(listen).await;

    let answer = raw.get("/").await;
    assert_eq!((answer.status, answer.text()), (200, "r1-a"));
    assert_eq!(answer.header("x-cdpipe-release"), Some("r1"));
    assert_eq!(answer.header("x-instance"), Some("r1-a"));

    // All on one connection: a body with a length, one in chunks with an extension and a trailer, one that is empty.
    raw.send("POST /echo HTTP/1.1\r\nHost: t\r\nContent-Length: 5\r\n\r\nhello").await;
    assert_eq!(raw.answer().await.text(), "hello");
    raw.send("POST /echo HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n2\r\nde\r\n0\r\nSum: 1\r\n\r\n").await;
    assert_eq!(raw.answer().await.text(), "abcde");
    raw.send("POST /echo HTTP/1.1\r\nHost: t\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(raw.answer().await.text(), "");

    // HEAD has the length of an answer and no body; what follows is the next answer.
    raw.send("HEAD / HTTP/1.1\r\nHost: t\r\n\r\n").await;
    let (status, head) = raw.head().await;
    assert_eq!(status, 200);
    assert!(head.to_lowercase().contains("content-length: 4"), "{head}");
    assert_eq!(raw.get("/stream/3/1").await.text(), "chunk 0\nchunk 1\nchunk 2\n");

    // Pipelined.
    raw.send("GET /slow/50 HTTP/1.1\r\nHost: t\r\n\r\nGET /head HTTP/1.1\r\nHost: t\r\n\r\n").await;
    assert_eq!(raw.answer().await.text(), "r1-a");
    assert!(raw.answer().await.text().starts_with("GET /head"));
    proxy.stop().await;
}

#[tokio::test]
async fn forwarded_headers_say_who_asked_and_for_what() {
    let (proxy, listen, _instance) = with_instance().await;
    let mut raw = Raw::connect(listen).await;
    raw.send("GET /head HTTP/1.1\r\nHost: shop.example\r\nX-Forwarded-For: 192.0.2.1\r\nConnection: x-mine\r\nX-Mine: 1\r\n\r\n").await;
    let answer = raw.answer().await;
    let text = answer.text();
    for line in [
        "host: shop.example",
        "x-forwarded-for: 192.0.2.1, 127.0.0.1",
        "x-forwarded-proto: http",
        "x-forwarded-host: shop.example",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} in {text}");
    }
    assert!(!text.contains("x-mine") && !text.contains("connection"), "{text}");
    proxy.stop().await;
}

#[tokio::test]
async fn http_1_0_clients_get_what_they_understand() {
    let (proxy, listen, _instance) = with_instance().await;
    let mut raw = Raw::connect(listen).await;
    raw.send("GET /stream/3/1 HTTP/1.0\r\n\r\n").await;
    let all = String::from_utf8(raw.read_to_close().await.expect("a regular end")).expect("text");
    let (head, body) = all.split_once("\r\n\r\n").expect("a head");
    assert!(!head.to_lowercase().contains("transfer-encoding"), "{head}");
    assert_eq!(body, "chunk 0\nchunk 1\nchunk 2\n");

    let mut raw = Raw::connect(listen).await;
    for _ in 0..2 {
        raw.send("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").await;
        let answer = raw.answer().await;
        assert_eq!((answer.text(), answer.header("connection")), ("r1-a", Some("keep-alive")));
    }
    proxy.stop().await;
}

#[tokio::test]
async fn a_large_body_goes_both_ways_at_once() {
    let (proxy, listen, _instance) = with_instance().await;
    let raw = Raw::connect(listen).await;
    let sent: Vec<u8> = (0..8_000_000u32).map(|n| (n % 251) as u8).collect();
    let (mut read, mut write) = raw.stream.into_split();
    let body = sent.clone();
    let writer = tokio::spawn(async move {
        let head = format!(
            "POST /echo HTTP/1.1\r\nHost: t\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        write.write_all(head.as_bytes()).await.expect("sent");
        write.write_all(&body).await.expect("sent");
        write
    });
    let mut all = Vec::new();
    tokio::time::timeout(PATIENCE, read.read_to_end(&mut all)).await.expect("in time").expect("read");
    writer.await.expect("written");
    let at = all.windows(4).position(|w| w == b"\r\n\r\n").expect("a head") + 4;
    // The echo comes in chunks; taking their frames out gives what was sent.
    let (mut rest, mut got) = (&all[at..], Vec::new());
    while let Some(end) = rest.windows(2).position(|w| w == b"\r\n") {
        let size =
            usize::from_str_radix(std::str::from_utf8(&rest[..end]).expect("text"), 16).expect("a size");
        got.extend_from_slice(&rest[end + 2..end + 2 + size]);
        rest = &rest[end + 4 + size..];
    }
    assert!(got == sent, "{} of {} bytes", got.len(), sent.len());
    proxy.stop().await;
}

#[tokio::test]
async fn a_slow_reader_slows_the_sender_and_costs_no_memory() {
    let (proxy, listen) = (Proxy::start().await, free_address());
    let sent = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = sent.clone();
    let endless = raw_instance(move |_, mut stream| {
        let count = count.clone();
        async move {
            read_head(&mut stream).await;
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n").await.expect("sent");
            while let Ok(n) = stream.write(&[b'x'; 65_536]).await {
                count.fetch_add(n, std::sync::atomic::Ordering::SeqCst);
            }
        }
    })
    .await;
    proxy.put(only(listen, "r1", &[endless]), 1).await;
    let mut raw = Raw::connect(listen).await;
    raw.send("GET / HTTP/1.1\r\nHost: t\r\n\r\n").await;
    raw.head().await;
    // Whoever does not read stops the instance once the kernel's buffers are full, whatever its answer's length is.
    let mut before = usize::MAX;
    eventually("the sender stands still", || {
        let now = sent.load(std::sync::atomic::Ordering::SeqCst);
        let still = now == before;
        before = now;
        async move {
            tokio::time::sleep(Duration::from_millis(100)).await;
            still
        }
    })
    .await;
    assert!(before < 64_000_000, "{before} bytes were taken from the instance");
    drop(raw);
    proxy.stop().await;
}

#[tokio::test]
async fn expect_100_continue_is_the_instances_to_decide() {
    let (proxy, listen) = (Proxy::start().await, free_address());
    let willing = raw_instance(|_, mut stream| async move {
        let (head, body) = read_head(&mut stream).await;
        assert!(head.contains("100-continue") && body.is_empty(), "{head}");
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.expect("sent");
        let mut body = [0u8; 5];
        stream.read_exact(&mut body).await.expect("the body");
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n").await.expect("sent");
        stream.write_all(&body).await.expect("sent");
    })
    .await;
    proxy.put(only(listen, "r1", &[willing]), 1).await;
    let mut raw = Raw::connect(listen).await;
    raw.send("POST / HTTP/1.1\r\nHost: t\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n").await;
    let (status, _) = raw.head().await;
    assert_eq!(status, 100);
    raw.send("hello").await;
    let answer = raw.answer().await;
    assert_eq!((answer.text(), answer.header("connection")), ("hello", None));

    // Refused before the body: the answer comes, and the connection can not be used on.
    let refusing = raw_instance(|_, mut stream| async move {
        read_head(&mut stream).await;
        stream.write_all(b"HTTP/1.1 417 No\r\nContent-Length: 2\r\n\r\nno").await.expect("sent");
        let _ = stream.read(&mut [0; 16]).await;
    })
    .await;
    proxy.put(only(listen, "r2", &[refusing]), 2).await;
    raw.send("POST / HTTP/1.1\r\nHost: t\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n").await;
    let answer = raw.answer().await;
    assert_eq!((answer.status, answer.text(), answer.header("connection")), (417, "no", Some("close")));
    proxy.stop().await;
}

#[tokio::test]
async fn trailers_and_interim_answers_arrive() {
    let (proxy, listen) = (Proxy::start().await, free_address());
    let instance = raw_instance(|_, mut stream| async move {
        read_head(&mut stream).await;
        stream
            .write_all(b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\nHTTP/1.1 200 OK\r\nTrailer: Sum\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nSum: 7\r\n\r\n")
            .await
            .expect("sent");
    })
    .await;
    proxy.put(only(listen, "r1", &[instance]), 1).await;
    let mut raw = Raw::connect(listen).await;
    raw.send("GET / HTTP/1.1\r\nHost: t\r\nTE: trailers\r\nConnection: close\r\n\r\n").await;
    let all = String::from_utf8(raw.read_to_close().await.expect("a regular end")).expect("text");
    assert!(
        all.starts_with("HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\nHTTP/1.1 200 OK\r\n"),
        "{all}"
    );
    assert!(all.ends_with("2\r\nhi\r\n0\r\nSum: 7\r\n\r\n"), "{all}");
    proxy.stop().await;
}

#[tokio::test]
async fn an_upgraded_connection_carries_bytes_both_ways_and_half_closes() {
    let (proxy, listen, _instance) = with_instance().await;
    let mut raw = Raw::connect(listen).await;
    // Bytes right behind the head belong to the new protocol.
    raw.send("GET /ws HTTP/1.1\r\nHost: t\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nfirst").await;
    let (status, head) = raw.head().await;
    assert_eq!(status, 101);
    assert!(head.to_lowercase().contains("upgrade: echo"), "{head}");
    assert_eq!(raw.bytes(5).await, b"first");
    raw.send("second").await;
    assert_eq!(raw.bytes(6).await, b"second");
    let load = proxy.client.drained(whole("r1")).await.expect("answered");
    assert_eq!((load.in_flight, load.upgraded), (1, 1));
    raw.send("last").await;
    raw.stream.shutdown().await.expect("half closed");
    assert_eq!(raw.read_to_close().await.expect("a regular end"), b"last");
    eventually("nothing is in flight", || async {
        proxy.client.drained(whole("r1")).await.expect("answered").in_flight == 0
    })
    .await;
    proxy.stop().await;
}

#[tokio::test]
async fn a_client_that_half_closes_still_gets_its_answer() {
    let (proxy, listen, _instance) = with_instance().await;
    let mut raw = Raw::connect(listen).await;
    raw.send("GET /slow/100 HTTP/1.1\r\nHost: t\r\n\r\n").await;
    raw.stream.shutdown().await.expect("half closed");
    assert_eq!(raw.answer().await.text(), "r1-a");
    assert!(raw.read_to_close().await.expect("a regular end").is_empty());
    proxy.stop().await;
}

#[tokio::test]
async fn a_client_that_is_gone_is_not_waited_for() {
    let (proxy, listen, _instance) = with_instance().await;
    for path in ["/slow/60000", "/stream/2/60000"] {
        let mut raw = Raw::connect(listen).await;
        raw.send(&format!("GET {path} HTTP/1.1\r\nHost: t\r\n\r\n")).await;
        // Before an answer has begun, and within one.
        if path.starts_with("/stream") {
            raw.head().await;
        }
        eventually("it is in flight", || async {
            proxy.client.drained(whole("r1")).await.expect("answered").in_flight == 1
        })
        .await;
        rustix::net::sockopt::set_socket_linger(&raw.stream, Some(Duration::ZERO)).expect("set");
        drop(raw);
        eventually("nothing is in flight", || async {
            proxy.client.drained(whole("r1")).await.expect("answered").in_flight == 0
        })
        .await;
    }
    let metrics = proxy.client.metrics().await.expect("answered");
    assert_eq!(
        sample(&metrics, "cdpipe_proxy_requests_total", &["code=\"client_closed\""]),
        Some(1.0),
        "{metrics}"
    );
    proxy.stop().await;
}

#[tokio::test]
async fn an_answer_that_ends_with_its_connection_is_passed_on_so() {
    let (proxy, listen) = (Proxy::start().await, free_address());
    let instance = raw_instance(|_, mut stream| async move {
        read_head(&mut stream).await;
        stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nuntil the end").await.expect("sent");
    })
    .await;
    proxy.put(only(listen, "r1", &[instance]), 1).await;
    let mut raw = Raw::connect(listen).await;
    raw.send("GET / HTTP/1.1\r\nHost: t\r\n\r\n").await;
    let answer = raw.answer().await;
    assert_eq!((answer.text(), answer.header("connection")), ("until the end", Some("close")));
    proxy.stop().await;
}

#[tokio::test]
async fn a_body_cut_short_is_never_taken_for_a_whole_one() {
    let (proxy, listen) = (Proxy::start().await, free_address());
    let instance = raw_instance(|n, mut stream| async move {
        read_head(&mut stream).await;
        let head: &[u8] = match n {
            0 => b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
            _ => b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        };
        stream.write_all(head).await.expect("sent");
    })
    .await;
    proxy.put(only(listen, "r1", &[instance]), 1).await;
    for _ in 0..2 {
        let mut raw = Raw::connect(listen).await;
        raw.send("GET / HTTP/1.1\r\nHost: t\r\n\r\n").await;
        let (status, _) = raw.head().await;
        assert_eq!(status, 200);
        let rest = raw.read_to_close().await;
        assert!(rest.is_err() || !rest.expect("read").ends_with(b"0\r\n\r\n"));
    }
    let metrics = proxy.client.metrics().await.expect("answered");
    assert_eq!(sample(&metrics, "cdpipe_proxy_aborted_total", &["release=\"r1\""]), Some(2.0), "{metrics}");
    proxy.stop().await;
}
