//! A proxy as a process of its own: started once, outliving its starter, ended by SIGTERM.

#![allow(clippy::expect_used, reason = "helpers of tests stand outside of #[test] functions")]

mod support;

use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use cdpipe_model::action::{Block, StepRef};
use cdpipe_model::event::Stream;
use cdpipe_model::fault::Fault;
use cdpipe_model::id::EffectId;
use cdpipe_model::observe::{Instance as Observed, RouteTable};
use cdpipe_model::ports::{BoxFuture, Call, Cancel, PortResult, Router, Secrets, Sink};
use cdpipe_model::secret::SecretValue;
use cdpipe_proxy::{ProxyClient, ProxyRouter, Start, StartError, ensure_running};
use support::*;

/// The proxy's own program, built beside the tests.
fn program() -> PathBuf {
    let tests = std::env::current_exe().expect("a path");
    let program =
        tests.parent().and_then(|deps| deps.parent()).expect("a target folder").join("examples/proxy");
    assert!(program.is_file(), "{} is not built: run the tests with cargo test", program.display());
    program
}

fn start_in(directory: &tempfile::TempDir) -> Start {
    Start { program: program(), state_dir: directory.path().join("state"), timeout_ms: 10_000 }
}

/// Ends the proxy when the test does, however it does.
struct Ended(PathBuf);

impl Drop for Ended {
    fn drop(&mut self) {
        if let Ok(text) = std::fs::read_to_string(self.0.join("proxy.pid"))
            && let Some(pid) = text.trim().parse().ok().and_then(rustix::process::Pid::from_raw)
        {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}

async fn pid(client: &ProxyClient) -> rustix::process::Pid {
    let pid = client.ping().await.expect("answered").pid;
    rustix::process::Pid::from_raw(i32::try_from(pid).expect("a pid")).expect("a pid")
}

#[tokio::test]
async fn many_starters_make_one_proxy_in_its_own_session() {
    let directory = tempfile::tempdir().expect("a directory");
    let start = start_in(&directory);
    let _ended = Ended(start.state_dir.clone());
    let starters: Vec<_> = (0..8)
        .map(|_| {
            let start = start.clone();
            tokio::spawn(async move {
                ensure_running(&start).await.expect("started").ping().await.expect("answered").pid
            })
        })
        .collect();
    let mut pids = Vec::new();
    for starter in starters {
        pids.push(starter.await.expect("joined"));
    }
    pids.dedup();
    assert_eq!(pids.len(), 1, "{pids:?}");
    let client = ProxyClient::new(&start.state_dir);
    let pid = pid(&client).await;
    assert_eq!(
        rustix::process::getsid(Some(pid)).expect("a session"),
        pid,
        "it has the session of whoever started it"
    );
    let written = std::fs::read_to_string(start.state_dir.join("proxy.pid")).expect("written");
    assert_eq!(written.trim(), pids[0].to_string());

    // SIGTERM ends it well, and the next start serves what it served.
    let (listen, instance) = (free_address(), Instance::start("r1").await);
    let put = cdpipe_proxy::control::protocol::PutRoute {
        table: only(listen, "r1", &[instance.address]),
        expect: cdpipe_proxy::control::protocol::Expect::Anything,
    };
    client.put(vec![put], Vec::new(), 1, "test").await.expect("taken");
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("sent");
    eventually("it goes", || async { client.ping().await.map_or(true, |pong| pong.stopping) }).await;
    // Starting again while the old one goes waits for it.
    let client = ensure_running(&start).await.expect("started");
    assert_ne!(client.ping().await.expect("answered").pid, pids[0]);
    assert_eq!(Raw::connect(listen).await.get("/").await.text(), "r1");
    client.shutdown().await.expect("answered");
    eventually("it is gone", || async { client.ping().await.is_err() }).await;
}

#[tokio::test]
async fn a_killed_proxy_is_started_again_with_its_table() {
    let directory = tempfile::tempdir().expect("a directory");
    let start = start_in(&directory);
    let _ended = Ended(start.state_dir.clone());
    let client = ensure_running(&start).await.expect("started");
    let (listen, instance) = (free_address(), Instance::start("r1").await);
    let put = cdpipe_proxy::control::protocol::PutRoute {
        table: only(listen, "r1", &[instance.address]),
        expect: cdpipe_proxy::control::protocol::Expect::Anything,
    };
    client.put(vec![put], Vec::new(), 1, "test").await.expect("taken");
    rustix::process::kill_process(pid(&client).await, rustix::process::Signal::KILL).expect("sent");
    eventually("nobody listens", || async { std::net::TcpStream::connect(listen).is_err() }).await;
    ensure_running(&start).await.expect("started over its remains");
    assert_eq!(Raw::connect(listen).await.get("/").await.text(), "r1");
    client.shutdown().await.expect("answered");
    eventually("it is gone", || async { client.ping().await.is_err() }).await;
}

#[tokio::test]
async fn a_proxy_that_can_not_start_says_why() {
    let directory = tempfile::tempdir().expect("a directory");
    let start = start_in(&directory);
    std::fs::create_dir_all(&start.state_dir).expect("made");
    std::fs::write(start.state_dir.join("table.json"), "rubbish\n").expect("written");
    match ensure_running(&start).await {
        Err(StartError::Ended { status, log }) => {
            assert!(!status.success());
            assert!(
                log.iter().any(|line| line.contains("table.json") && line.contains("header line")),
                "{log:?}"
            );
        }
        other => panic!("{other:?}"),
    }
    let missing = Start { program: "/nonexistent/cdpipe".into(), ..start };
    assert!(matches!(ensure_running(&missing).await, Err(StartError::Spawn { .. })));
}

struct Quiet;

impl Sink for Quiet {
    fn output(&self, _: Stream, _: &str) {}
    fn progress(&self, _: &str) {}
}

impl Cancel for Quiet {
    fn is_cancelled(&self) -> bool {
        false
    }
    fn cancelled(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::pending())
    }
}

impl Secrets for Quiet {
    fn resolve<'a>(&'a self, name: &'a str) -> PortResult<'a, SecretValue> {
        Box::pin(async move { Err(Fault::new("secret-missing", name)) })
    }
}

async fn called<T, F: Future<Output = T>>(
    effect: &str,
    epoch: u64,
    work: impl FnOnce(Call<'static>) -> F,
) -> T {
    let effect: &'static EffectId = Box::leak(Box::new(effect.into()));
    let step: &'static StepRef = Box::leak(Box::new(StepRef { node: None, block: Block::Main, index: 0 }));
    let call = Call {
        effect,
        step,
        deadline: Duration::from_secs(10),
        sink: &Quiet,
        cancel: &Quiet,
        secrets: &Quiet,
        epoch,
    };
    work(call).await
}

fn kind<T: std::fmt::Debug>(result: Result<T, Fault>) -> String {
    result.expect_err("a fault").kind
}

#[tokio::test]
async fn the_engine_drives_it_through_the_router_port() {
    let directory = tempfile::tempdir().expect("a directory");
    let start = start_in(&directory);
    let _ended = Ended(start.state_dir.clone());
    let router = ProxyRouter::new(&start.program, &start.state_dir);
    let (listen, old, new) = (free_address(), Instance::start("old").await, Instance::start("new").await);
    let way = route(listen);
    let first = only(listen, "old", &[old.address]);
    let second = only(listen, "new", &[new.address]);

    // Looking starts nothing.
    assert_eq!(called("run-1/1", 1, |c| router.observe(c, &way)).await, Ok(None));
    assert!(!exists(&start.state_dir));
    called("run-1/2", 1, |c| router.apply(c, &first, None)).await.expect("applied");
    called("run-1/3", 1, |c| router.await_routed(c, &first)).await.expect("routed");
    assert_eq!(called("run-1/4", 1, |c| router.observe(c, &way)).await, Ok(Some(first.clone())));

    // A request that does not end is cut when its time is over; then the old release is at rest.
    let mut slow = Raw::connect(listen).await;
    slow.send("GET /slow/60000 HTTP/1.1\r\nHost: t\r\n\r\n").await;
    let client = ProxyClient::new(&start.state_dir);
    eventually("it is in flight", || async {
        client.drained(whole("old")).await.expect("answered").in_flight == 1
    })
    .await;
    let gone = vec![Observed {
        id: format!("old-{}", old.address.port()).as_str().into(),
        address: Some(old.address.to_string()),
        ready: true,
        reached_at: None,
        restarts: 0,
    }];
    let (old_id, drain) = ("old".into(), Duration::from_millis(300));
    let early = called("run-1/5", 1, |c| router.await_drained(c, &way, &old_id, &gone, drain)).await;
    assert_eq!(kind(early), "still-routed");
    called("run-1/6", 1, |c| router.apply(c, &second, Some(&first))).await.expect("applied");
    called("run-1/7", 1, |c| router.await_drained(c, &way, &old_id, &gone, drain)).await.expect("drained");
    assert_eq!(slow.answer().await.header("x-cdpipe-proxy-error"), Some("cut"));
    assert_eq!(Raw::connect(listen).await.get("/").await.text(), "new");
    let requests =
        called("run-1/8", 1, |c| router.requests(c, &way)).await.expect("counted").expect("it counts");
    assert_eq!((requests.get(&"old".into()), requests.get(&"new".into())), (Some(&1), Some(&1)));

    let closed = RouteTable::closed(way.clone());
    // Another run with an older epoch, and one that saw something else.
    assert_eq!(kind(called("run-0/1", 0, |c| router.apply(c, &first, Some(&second))).await), "stale-epoch");
    assert_eq!(kind(called("run-2/1", 2, |c| router.apply(c, &closed, Some(&first))).await), "moved");

    // While no proxy runs, what it would serve is still known.
    client.shutdown().await.expect("answered");
    eventually("it is gone", || async { client.ping().await.is_err() }).await;
    assert_eq!(called("run-2/2", 2, |c| router.observe(c, &way)).await, Ok(Some(second.clone())));
    called("run-2/3", 2, |c| router.await_routed(c, &second)).await.expect("started again and routed");
    assert_eq!(Raw::connect(listen).await.get("/").await.text(), "new");
    client.shutdown().await.expect("answered");
    eventually("it is gone", || async { client.ping().await.is_err() }).await;
}
