//! The load itself: it finds nothing where nothing is wrong, and each kind of wrong where it is.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says that something is wrong by panicking")]

use cdpipe_demo::fault::Fault;
use cdpipe_demo::server::{Config, Ended, Shop};
use cdpipe_demo::websocket::accept_key;
use cdpipe_tests::load::{FailureKind, Kind, Load, LoadError, Mix, Named, Report, Timeline};
use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// A real shop on a thread of its own.
struct OpenShop {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<Ended>>,
}

impl OpenShop {
    fn with_fault(fault: &str) -> Self {
        let config = Config {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            version: "v1".to_owned(),
            release: "web-1".to_owned(),
            drain: Duration::from_secs(10),
            fault: fault.parse::<Fault>().unwrap(),
        };
        let (tell_address, address) = mpsc::channel();
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let shop = Shop::bind(config).await.unwrap();
                tell_address.send(shop.address()).unwrap();
                let stop = async {
                    let _ = stopped.await;
                };
                shop.run(stop).await
            })
        });
        Self { address: address.recv().unwrap(), stop: Some(stop), thread: Some(thread) }
    }

    fn close(mut self) -> Ended {
        self.stop.take().unwrap().send(()).unwrap();
        self.thread.take().unwrap().join().unwrap()
    }
}

/// A server that does to each request what `answer` does. A connection carries one request.
fn faulty(answer: impl Fn(&str, &mut TcpStream) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let answer = std::sync::Arc::new(answer);
    // The thread ends with the test's process.
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (answer, mut stream) = (std::sync::Arc::clone(&answer), stream.unwrap());
            std::thread::spawn(move || answer(&read_head(&mut stream), &mut stream));
        }
    });
    address
}

fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap_or(0) == 1 {
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

fn value<'a>(head: &'a str, name: &str) -> &'a str {
    head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).unwrap_or("")
}

/// The head of a good answer to this request, up to its own headers.
fn good_head(request: &str, status: &str) -> String {
    let id = value(request, "x-request-id");
    format!("HTTP/1.1 {status}\r\nx-request-id: {id}\r\nx-cdpipe-release: web-1\r\nx-shop-version: v1\r\n")
}

fn answer_with(request: &str, body: &str) -> String {
    format!(
        "{}content-length: {}\r\nconnection: close\r\n\r\n{body}",
        good_head(request, "200 OK"),
        body.len()
    )
}

/// Resets the connection instead of closing it.
fn reset(stream: &TcpStream) {
    rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO)).unwrap();
}

fn load_of(address: SocketAddr, kind: Kind) -> Load {
    let length = Duration::from_millis(300);
    Load {
        rate_per_s: 20,
        length,
        mix: Mix::only(kind),
        patience: Duration::from_secs(5),
        ..Load::on(address)
    }
}

fn run(load: Load) -> Report {
    load.start().unwrap().wait().unwrap()
}

/// Every request failed, in one way: its class and what was said.
fn failed_as(report: &Report) -> (FailureKind, String) {
    assert_eq!(report.records().len(), 6, "{report}");
    assert_eq!(report.failures().len(), 6, "{report}");
    let failure = report.records()[0].failure.clone().unwrap();
    assert!(report.failures().iter().all(|r| r.failure.as_ref().unwrap().kind == failure.kind), "{report}");
    (failure.kind, failure.detail)
}

/// The same for one kind of request sent to a server that does this.
fn found(kind: Kind, answer: impl Fn(&str, &mut TcpStream) + Send + Sync + 'static) -> (FailureKind, String) {
    failed_as(&run(load_of(faulty(answer), kind)))
}

const ECHO: Kind = Kind::Echo { bytes: 1_000 };
const STREAM: Kind = Kind::Stream { events: 5, every_ms: 10 };
const SOCKET: Kind = Kind::Socket { messages: 5, every_ms: 10, bytes: 50 };

#[test]
fn a_good_shop_under_every_kind_shows_no_failure_and_a_drain_cuts_nothing() {
    let shop = OpenShop::with_fault("");
    let load =
        Load { rate_per_s: 80, length: Duration::from_secs(3), ..Load::on(shop.address) }.start().unwrap();
    let mut timeline = Timeline::new();
    timeline.allow_from(load.clock().now().saturating_sub(Duration::from_secs(1)), ["web-1"]);
    let report = load.wait().unwrap();
    assert!(matches!(shop.close(), Ended::Drained { cut: 0, .. }));

    assert_eq!(report.records().len(), 240);
    assert!(report.failures().is_empty(), "{report}");
    assert_eq!(report.not_allowed(&timeline, Named::ByRelease), []);
    let kinds: BTreeSet<&str> = report.records().iter().map(|record| record.kind.name()).collect();
    assert_eq!(kinds.len(), 6, "{kinds:?}");
    for record in report.records() {
        let expected_bytes = match record.kind {
            Kind::Echo { bytes } => u64::from(bytes),
            Kind::Socket { messages, bytes, .. } => u64::from(messages * bytes),
            _ => 1,
        };
        assert!(record.verified_bytes >= expected_bytes, "{record}: {} verified", record.verified_bytes);
        assert!(
            record.end.saturating_sub(record.start) + Duration::from_millis(150)
                >= record.kind.natural_length()
        );
    }
    let kept = |kind| report.records().iter().filter(|r| r.kind.name() == kind && r.kept_alive).count();
    assert!(kept("short") > 20 && kept("fresh") == 0 && kept("socket") == 0, "{report}");
}

#[test]
fn a_shop_that_drains_under_load_cuts_nothing_that_had_begun() {
    let shop = OpenShop::with_fault("");
    let load = Load { rate_per_s: 100, ..Load::on(shop.address) }.start().unwrap();
    std::thread::sleep(Duration::from_millis(1_500));
    let told = load.clock().now();
    assert!(matches!(shop.close(), Ended::Drained { cut: 0, .. }));
    let report = load.stop().unwrap();
    // Who comes after the close finds nobody; a request that meets it on the way may be dropped unanswered.
    let (before, after): (Vec<_>, Vec<_>) = report.records().iter().partition(|record| record.start < told);
    assert!(before.len() > 100 && !after.is_empty());
    let cut: Vec<_> =
        before.iter().filter(|r| !r.good() && r.start + Duration::from_millis(50) < told).collect();
    assert!(cut.is_empty(), "{cut:?}");
    let running_on = before.iter().filter(|record| record.end > told).count();
    assert!(running_on > 3, "only {running_on} were in flight");
}

#[test]
fn injected_errors_are_counted_one_by_one() {
    let shop = OpenShop::with_fault("errors=25%");
    let report =
        run(Load { rate_per_s: 100, length: Duration::from_secs(1), ..load_of(shop.address, Kind::Short) });
    assert_eq!(report.records().len(), 100);
    assert_eq!(report.failures().len(), 25, "{report}");
    let failure = report.failures()[0].failure.clone().unwrap();
    assert_eq!(
        (failure.kind, failure.detail.as_str()),
        (FailureKind::Status, "expected 200, found 500: The shop made a mistake.")
    );
}

#[test]
fn arrivals_do_not_wait_for_answers() {
    let shop = OpenShop::with_fault("");
    let load = Load {
        rate_per_s: 50,
        length: Duration::from_secs(1),
        ..load_of(shop.address, Kind::Slow { ms: 1_500 })
    };
    let report = run(load);
    // A closed loop would have sent one; here all were sent before the first answer.
    assert_eq!((report.records().len(), report.failures().len()), (50, 0), "{report}");
    let first_end = report.records().iter().map(|record| record.end).min().unwrap();
    assert!(report.records().iter().all(|record| record.start < first_end));
}

#[test]
fn latency_counts_from_when_a_request_was_due() {
    let shop = OpenShop::with_fault("latency=120ms");
    let report = run(load_of(shop.address, Kind::Short));
    assert!(report.failures().is_empty(), "{report}");
    assert!(report.latency(50.0, &["short"]).unwrap() >= Duration::from_millis(120), "{report}");
    for record in report.records() {
        assert_eq!(record.latency(), record.end - Duration::from_millis(50 * record.index));
    }
}

#[test]
fn nobody_there() {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let failure = failed_as(&run(load_of(address, Kind::Short)));
    assert_eq!(failure, (FailureKind::Connect, "Connection refused (os error 111)".to_owned()));
}

#[test]
fn a_connection_closed_without_an_answer() {
    let (kind, detail) = found(Kind::Short, |_, _| {});
    assert_eq!(kind, FailureKind::Dropped);
    assert_eq!(detail, "on a new connection: connection closed before message completed");
}

#[test]
fn a_connection_reset_without_an_answer() {
    let (kind, detail) = found(Kind::Fresh, |_, stream| reset(stream));
    assert_eq!(kind, FailureKind::Dropped);
    assert_eq!(detail, "on a new connection: connection error: Connection reset by peer (os error 104)");
}

#[test]
fn a_reset_within_the_body() {
    let (kind, detail) = found(Kind::Short, |request, stream| {
        let head = good_head(request, "200 OK");
        stream.write_all(format!("{head}content-length: 500\r\n\r\nhalf").as_bytes()).unwrap();
        std::thread::sleep(Duration::from_millis(50));
        reset(stream);
    });
    assert_eq!(kind, FailureKind::Cut);
    assert_eq!(
        detail,
        "after 4 bytes: error reading a body from connection: Connection reset by peer (os error 104)"
    );
}

#[test]
fn a_body_shorter_than_it_was_announced() {
    let (kind, detail) = found(ECHO, |request, stream| {
        let mut body = [0; 1_000];
        stream.read_exact(&mut body).unwrap();
        let head = good_head(request, "200 OK");
        stream.write_all(format!("{head}content-length: 1000\r\n\r\n").as_bytes()).unwrap();
        stream.write_all(&body[..900]).unwrap();
    });
    assert_eq!(kind, FailureKind::Cut);
    assert!(detail.starts_with("after 900 bytes: "), "{detail}");
}

#[test]
fn one_wrong_byte_in_an_echo() {
    let (kind, detail) = found(ECHO, |request, stream| {
        let mut body = [0; 1_000];
        stream.read_exact(&mut body).unwrap();
        body[700] ^= 1;
        let head = good_head(request, "200 OK");
        stream.write_all(format!("{head}content-length: 1000\r\n\r\n").as_bytes()).unwrap();
        stream.write_all(&body).unwrap();
    });
    assert_eq!(kind, FailureKind::Corrupt);
    assert_eq!(detail, "expected 1000 bytes, found 1000; they differ from byte 700 on");
}

#[test]
fn an_answer_that_is_another_requests() {
    let (kind, detail) = found(Kind::Short, |request, stream| {
        let other = request.replace("x-request-id: 1-", "x-request-id: 1-9");
        stream
            .write_all(answer_with(&other, "The shop, v1 (release web-1), open for 1 s.\n").as_bytes())
            .unwrap();
    });
    assert_eq!(kind, FailureKind::Crossed);
    assert_eq!(detail, "expected the answer to 1-0, found that to 1-90");
}

#[test]
fn a_head_and_a_body_of_different_releases() {
    let (kind, detail) = found(Kind::Short, |request, stream| {
        stream
            .write_all(answer_with(request, "The shop, v1 (release web-2), open for 1 s.\n").as_bytes())
            .unwrap();
    });
    assert_eq!(kind, FailureKind::Corrupt);
    assert_eq!(detail, "expected 44 bytes, found 44; they differ from byte 26 on");
}

#[test]
fn a_server_that_never_answers() {
    let address = faulty(|_, _| std::thread::sleep(Duration::from_secs(20)));
    let load = Load { patience: Duration::from_millis(200), ..load_of(address, Kind::Slow { ms: 100 }) };
    let (kind, detail) = failed_as(&run(load));
    assert_eq!(
        (kind, detail.as_str()),
        (FailureKind::TimedOut, "not over within 300 ms; no answer had begun")
    );
}

#[test]
fn a_slow_answer_that_comes_too_early() {
    let (kind, detail) = found(Kind::Slow { ms: 900 }, |request, stream| {
        stream.write_all(answer_with(request, "v1 took its time: 900 ms.\n").as_bytes()).unwrap();
    });
    assert_eq!(kind, FailureKind::Early);
    assert!(detail.ends_with(" ms already"), "{detail}");
}

#[test]
fn a_stream_that_is_cut_and_one_that_leaves_an_event_out() {
    fn chunk(text: &str) -> String {
        format!("{:x}\r\n{text}\r\n", text.len())
    }
    let event = |n| chunk(&format!("id: {n}\ndata: {n} of 5 from web-1\n\n"));
    let start = move |request: &str, events: &[u32]| {
        let body: String = events.iter().map(|n| event(*n)).collect();
        format!("{}transfer-encoding: chunked\r\n\r\n{body}", good_head(request, "200 OK"))
    };
    let (kind, detail) = found(STREAM, move |request, stream| {
        stream.write_all(start(request, &[1, 2, 3]).as_bytes()).unwrap();
    });
    assert_eq!(kind, FailureKind::Cut);
    assert!(detail.starts_with("after 3 of 5 events: "), "{detail}");

    let (kind, detail) = found(STREAM, move |request, stream| {
        let end = chunk("event: end\ndata: 5\n\n");
        stream.write_all(format!("{}{end}0\r\n\r\n", start(request, &[1, 2, 4, 5])).as_bytes()).unwrap();
    });
    assert_eq!(kind, FailureKind::Corrupt);
    assert!(detail.contains("they differ from byte "), "{detail}");
}

fn open_socket(request: &str, stream: &mut TcpStream) {
    let accept = accept_key(value(request, "sec-websocket-key"));
    let head = good_head(request, "101 Switching Protocols");
    let upgrade =
        format!("{head}connection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: {accept}\r\n\r\n");
    stream.write_all(upgrade.as_bytes()).unwrap();
}

/// Reads one of the client's messages of 50 bytes and sends it back, its first byte changed by `change`.
fn echo_message(stream: &mut TcpStream, change: u8) {
    let mut frame = [0; 56];
    stream.read_exact(&mut frame).unwrap();
    let (head, payload) = frame.split_at_mut(6);
    for (byte, key) in payload.iter_mut().zip(head[2..].iter().cycle()) {
        *byte ^= key;
    }
    payload[0] ^= change;
    stream.write_all(&[&[0x82, 50], &payload[..]].concat()).unwrap();
}

#[test]
fn a_socket_that_is_cut_closed_early_or_echoes_wrong() {
    let (kind, detail) = found(SOCKET, |request, stream| {
        open_socket(request, stream);
        echo_message(stream, 0);
        echo_message(stream, 0);
    });
    assert_eq!(kind, FailureKind::Cut);
    assert!(detail.starts_with("after 2 of 5 messages: "), "{detail}");

    let (kind, detail) = found(SOCKET, |request, stream| {
        open_socket(request, stream);
        echo_message(stream, 0);
        stream.write_all(&[0x88, 2, 0x03, 0xE9]).unwrap();
        let _ = stream.read_to_end(&mut Vec::new());
    });
    assert_eq!((kind, detail.as_str()), (FailureKind::Cut, "after 1 of 5 messages: closed with 1001 \"\""));

    let (kind, detail) = found(SOCKET, |request, stream| {
        open_socket(request, stream);
        echo_message(stream, 1);
        let _ = stream.read_to_end(&mut Vec::new());
    });
    assert_eq!(kind, FailureKind::Corrupt);
    assert_eq!(detail, "expected 50 bytes, found 50; they differ from byte 0 on");
}

#[test]
fn a_socket_that_is_not_opened() {
    let (kind, detail) = found(SOCKET, |request, stream| {
        stream.write_all(answer_with(request, "").as_bytes()).unwrap();
    });
    assert_eq!((kind, detail.as_str()), (FailureKind::Status, "expected 101, found 200"));
}

#[test]
fn a_request_that_could_not_be_sent_is_a_failure_too() {
    let shop = OpenShop::with_fault("");
    let report = run(Load { in_flight_limit: 2, ..load_of(shop.address, Kind::Slow { ms: 800 }) });
    assert_eq!((report.records().len(), report.failures().len()), (6, 4), "{report}");
    let failure = report.failures()[0].failure.clone().unwrap();
    assert_eq!(failure.kind, FailureKind::Crowded);
    assert_eq!(failure.detail, "not sent: 2 requests were unanswered already");
}

#[test]
fn a_wrong_release_is_found_whenever_it_answers() {
    let shop = OpenShop::with_fault("");
    let report = run(load_of(shop.address, Kind::Short));
    let mut timeline = Timeline::new();
    timeline.allow_from(Duration::ZERO, ["web-1"]).allow_from(report.records()[3].start, ["web-2"]);
    assert!(report.failures().is_empty(), "{report}");
    let wrong: Vec<u64> =
        report.not_allowed(&timeline, Named::ByRelease).iter().map(|found| found.record.index).collect();
    assert_eq!(wrong, [3, 4, 5], "{report}");
}

#[test]
fn stops_when_told_and_refuses_what_it_must_not_do() {
    let shop = OpenShop::with_fault("");
    let began = Instant::now();
    let report =
        Load { rate_per_s: 50, length: Duration::from_secs(60), ..load_of(shop.address, Kind::Short) }
            .start()
            .unwrap()
            .stop()
            .unwrap();
    assert!(began.elapsed() < Duration::from_secs(5) && report.records().len() < 10);

    let elsewhere = Load::on(SocketAddr::from(([192, 0, 2, 1], 80))).start().unwrap_err();
    assert!(matches!(elsewhere, LoadError::NotLoopback(_)));
    assert_eq!(elsewhere.to_string(), "a load is for loopback addresses only, found 192.0.2.1:80");
    let too_fast = Load { rate_per_s: 20_001, ..Load::on(shop.address) }.start().unwrap_err();
    assert_eq!(
        too_fast.to_string(),
        "a load of 20001 requests/s for 600s is out of bounds: at most 20000/s, 3600s and 1000000 requests in all"
    );
}
