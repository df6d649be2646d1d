//! The `shop` as it is deployed: a real process, spoken to over plain sockets so that nothing in between is forgiving.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says that something is wrong by panicking")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

struct Shop {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
    address: String,
}

impl Shop {
    fn start(variables: &[(&str, &str)]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_shop"));
        for name in ["HOST", "FAULT", "DRAIN_MS", "CDPIPE_RELEASE"] {
            command.env_remove(name);
        }
        command.env("PORT", "0").env("VERSION", "v7").envs(variables.iter().copied());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        let address = line.split("http://").nth(1).and_then(|rest| rest.split(',').next());
        Self {
            address: address.unwrap_or_else(|| panic!("no address in {line:?}")).to_owned(),
            child,
            output,
        }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream
    }

    /// Status and the rest of the answer to a request on a connection of its own.
    fn ask(&self, request_line: &str) -> (u16, String) {
        let mut stream = self.connect();
        write!(
            stream,
            "{request_line} HTTP/1.1\r\nhost: shop\r\nx-request-id: q1\r\nconnection: close\r\n\r\n"
        )
        .unwrap();
        read_answer(&mut stream)
    }

    fn health(&self) -> u16 {
        self.ask("GET /health").0
    }

    fn terminate(&self) {
        let told = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().unwrap();
        assert!(told.success());
    }

    /// The exit code and what else was said on stdout and stderr.
    fn end(&mut self) -> (Option<i32>, String) {
        let mut said = String::new();
        self.output.read_to_string(&mut said).unwrap();
        self.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        (self.child.wait().unwrap().code(), said)
    }
}

impl Drop for Shop {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read_answer(stream: &mut TcpStream) -> (u16, String) {
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let status =
        answer.split(' ').nth(1).unwrap_or_else(|| panic!("no status in {answer:?}")).parse().unwrap();
    (status, answer)
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < Duration::from_secs(10), "never came about: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn names_its_version_and_release_and_gives_the_request_id_back() {
    let shop = Shop::start(&[("CDPIPE_RELEASE", "web-7f3a")]);
    let (status, answer) = shop.ask("GET /");
    assert_eq!(status, 200);
    for part in [
        "The shop, v7 (release web-7f3a)",
        "x-cdpipe-release: web-7f3a",
        "x-shop-version: v7",
        "x-request-id: q1",
    ] {
        assert!(answer.contains(part), "{part:?} is missing from {answer}");
    }
    assert_eq!(shop.ask("GET /nothing").0, 404);
    assert_eq!(shop.ask("POST /").0, 405);
    assert_eq!(shop.ask("GET /slow?ms=x").0, 400);
    assert_eq!(shop.ask("GET /ws").0, 426);
}

#[test]
fn counts_users_but_not_machines() {
    let shop = Shop::start(&[("CDPIPE_RELEASE", "r1")]);
    for _ in 0..3 {
        assert_eq!((shop.ask("GET /").0, shop.health()), (200, 200));
    }
    let (_, metrics) = shop.ask("GET /metrics");
    assert!(
        metrics.contains(r#"http_requests_total{method="GET",path="/",status="200",release="r1"} 3"#),
        "{metrics}"
    );
    assert!(metrics.contains(r#"http_request_duration_seconds_count{method="GET",path="/",release="r1"} 3"#));
    assert!(!metrics.contains("health") && !metrics.contains(r#"path="/metrics""#), "{metrics}");
}

#[test]
fn echoes_and_streams() {
    let shop = Shop::start(&[]);
    let mut stream = shop.connect();
    stream
        .write_all(
            b"POST /echo HTTP/1.1\r\nhost: shop\r\nconnection: close\r\ncontent-length: 5\r\n\r\nhello",
        )
        .unwrap();
    assert!(read_answer(&mut stream).1.ends_with("\r\n\r\nhello"));
    let (_, events) = shop.ask("GET /stream?events=3&every_ms=1");
    assert!(
        events.contains("id: 3\ndata: 3 of 3 from v7\n\n") && events.contains("event: end\ndata: 3\n\n"),
        "{events}"
    );
}

#[test]
fn errors_are_real_on_user_paths_and_nowhere_else() {
    let shop = Shop::start(&[("FAULT", "errors=50%")]);
    let statuses: Vec<u16> = (0..8).map(|_| shop.ask("GET /").0).collect();
    assert_eq!(statuses, [200, 500, 200, 500, 200, 500, 200, 500]);
    assert!((0..8).all(|_| shop.health() == 200 && shop.ask("GET /metrics").0 == 200));
    assert!(shop.ask("GET /metrics").1.contains(r#"status="500",release="v7"} 4"#));
}

#[test]
fn errors_and_latency_wait_for_their_time() {
    let shop = Shop::start(&[("FAULT", "errors=100%,latency=200ms,after=1s")]);
    assert_eq!(shop.ask("GET /").0, 200);
    until("errors set in", || {
        let asked = Instant::now();
        shop.ask("GET /").0 == 500 && asked.elapsed() >= Duration::from_millis(200)
    });
}

#[test]
fn a_slow_start_serves_nobody_until_it_is_ready_and_never_healthy_is_never() {
    let slow = Shop::start(&[("FAULT", "slow-start=400ms")]);
    assert_eq!((slow.health(), slow.ask("GET /").0), (503, 503));
    until("ready", || slow.health() == 200);
    assert_eq!(slow.ask("GET /").0, 200);

    let never = Shop::start(&[("FAULT", "never-healthy")]);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!((never.health(), never.ask("GET /").0), (503, 503));
}

#[test]
fn a_crash_cuts_what_is_in_flight() {
    let mut shop = Shop::start(&[("FAULT", "crash-after=300ms")]);
    let mut stream = shop.connect();
    stream.write_all(b"GET /slow?ms=5000 HTTP/1.1\r\nhost: shop\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    let cut = stream.read_to_end(&mut answer);
    assert!(answer.is_empty(), "answered {answer:?}, {cut:?}");
    assert_eq!(shop.end(), (Some(101), "shop v7: crash, as $FAULT asks\n".to_owned()));
}

#[test]
fn sigterm_finishes_what_is_in_flight_and_takes_nothing_new() {
    let mut shop = Shop::start(&[]);
    let mut slow = shop.connect();
    slow.write_all(b"GET /slow?ms=700 HTTP/1.1\r\nhost: shop\r\n\r\n").unwrap();
    let mut events = shop.connect();
    events.write_all(b"GET /stream?events=10&every_ms=70 HTTP/1.1\r\nhost: shop\r\n\r\n").unwrap();
    until("both in flight", || {
        shop.ask("GET /metrics").1.contains("http_requests_in_flight{release=\"v7\"} 2")
    });
    shop.terminate();
    until("the port is closed", || TcpStream::connect(&shop.address).is_err());

    let (status, answer) = read_answer(&mut slow);
    assert!(
        status == 200
            && answer.contains("connection: close")
            && answer.ends_with("v7 took its time: 700 ms.\n")
    );
    let (_, answer) = read_answer(&mut events);
    assert!(answer.contains("event: end\ndata: 10\n\n") && answer.ends_with("0\r\n\r\n"), "{answer}");
    let (code, said) = shop.end();
    assert_eq!(code, Some(0));
    assert!(said.starts_with("shop v7 drained in ") && said.ends_with(" ms\n"), "{said}");
}

#[test]
fn a_drain_is_bounded() {
    let mut shop = Shop::start(&[("DRAIN_MS", "200")]);
    let mut slow = shop.connect();
    slow.write_all(b"GET /slow?ms=30000 HTTP/1.1\r\nhost: shop\r\n\r\n").unwrap();
    until("in flight", || shop.ask("GET /metrics").1.contains("http_requests_in_flight{release=\"v7\"} 1"));
    let told = Instant::now();
    shop.terminate();
    let ended = shop.end();
    assert!(told.elapsed() < Duration::from_secs(5));
    let said = "shop v7: 1 connections were still busy after the drain and are cut\n";
    assert_eq!(ended, (Some(0), said.to_owned()));
}

#[test]
fn a_taken_port_is_said_with_the_way_out() {
    let shop = Shop::start(&[]);
    let (_, port) = shop.address.rsplit_once(':').unwrap();
    let second =
        Command::new(env!("CARGO_BIN_EXE_shop")).args(["--port", port]).env_remove("FAULT").output().unwrap();
    let said = String::from_utf8(second.stderr).unwrap();
    assert_eq!(second.status.code(), Some(1));
    let expected = format!(
        "shop: cannot listen on 127.0.0.1:{port}: Address already in use (os error 98); choose another with --port or $PORT\n"
    );
    assert_eq!(said, expected);
}

fn visitors(arguments: &[&str]) -> (Option<i32>, String, String) {
    let done = Command::new(env!("CARGO_BIN_EXE_shop")).arg("visitors").args(arguments).output().unwrap();
    (done.status.code(), String::from_utf8(done.stdout).unwrap(), String::from_utf8(done.stderr).unwrap())
}

#[test]
fn visitors_tell_one_calm_line() {
    let shop = Shop::start(&[("FAULT", "errors=10%")]);
    let url = format!("http://{}", shop.address);
    let (code, said, error) =
        visitors(&["--url", &url, "--rate", "100", "--for", "1s", "--paths", "/,/version,/slow?ms=10"]);
    assert_eq!((code, error.as_str()), (Some(0), ""));
    let numbers: Vec<u64> =
        said.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok()).collect();
    let [good, _v7, by_v7, failed, failed_500, status] = numbers[..] else { panic!("{said}") };
    assert_eq!(said, format!("visitors: {good} answers: v7 {good}; {failed} failures: {failed} × 500\n"));
    assert_eq!((by_v7, failed_500, status), (good, failed, 500));
    // The first visitor comes at once, and the last one may or may not come at the very end.
    assert!((99..=102).contains(&(good + failed)), "{said}");
    assert!((9..=11).contains(&failed), "{said}");
}

#[test]
fn visitors_fail_only_when_asked_to() {
    let shop = Shop::start(&[("FAULT", "errors=100%")]);
    let url = format!("http://{}", shop.address);
    assert_eq!(visitors(&["--url", &url, "--rate", "10", "--for", "300ms"]).0, Some(0));
    assert_eq!(visitors(&["--url", &url, "--rate", "10", "--for", "300ms", "--fail-on-error"]).0, Some(1));
}

#[test]
fn visitors_say_when_nobody_is_there() {
    // Port 1 needs a privilege to listen on and nothing does.
    let (code, said, error) = visitors(&["--url", "http://127.0.0.1:1", "--wait", "200ms", "--for", "1s"]);
    assert_eq!((code, said.as_str()), (Some(1), ""));
    assert_eq!(error, "shop: nobody answered at http://127.0.0.1:1/ within 200ms: connection refused\n");
    let (code, _, error) = visitors(&["--url", "https://127.0.0.1:1"]);
    assert_eq!(code, Some(1));
    assert_eq!(
        error,
        "shop: cannot visit `https://127.0.0.1:1/`; expected a URL such as http://127.0.0.1:8080 and paths such as /\n"
    );
}
