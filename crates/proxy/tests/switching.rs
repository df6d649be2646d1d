//! The promise: a switch drops nothing, and nobody is answered by a release that may not answer at that time.
//!
//! An open-loop load (requests start when their time comes, whether or not others have ended) of keep-alive requests, slow
//! answers, request bodies, streams and websockets runs over deployments by canary, each of several switches, with every
//! third one rolled back. Each old release is drained and then killed, so that one request sent to it too late fails.

#![allow(clippy::expect_used, reason = "helpers of tests stand outside of #[test] functions")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use cdpipe_model::observe::{Role, RouteEntry};
use http_body_util::{BodyExt, Empty, Full};
use hyper::Request;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use support::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// Requests started each second, over all kinds.
const RATE: u32 = 400;

/// A request as its client saw it.
struct Record {
    kind: &'static str,
    begun: Instant,
    ended: Instant,
    /// The release that answered, or what went wrong.
    result: Result<String, String>,
}

/// A table was put: it may have been in force from `begun` on and was in force for certain after `done`.
struct Switch {
    begun: Instant,
    done: Instant,
    allowed: BTreeSet<String>,
}

type Body = http_body_util::combinators::BoxBody<Bytes, std::convert::Infallible>;

/// Kept connections, as a browser or a service would have them.
#[derive(Clone)]
struct Client {
    listen: SocketAddr,
    idle: Arc<Mutex<Vec<SendRequest<Body>>>>,
    opened: Arc<AtomicUsize>,
}

impl Client {
    async fn connection(&self) -> Result<SendRequest<Body>, String> {
        let kept = self.idle.lock().expect("not poisoned").pop();
        if let Some(kept) = kept {
            return Ok(kept);
        }
        self.opened.fetch_add(1, Ordering::SeqCst);
        let stream = TcpStream::connect(self.listen).await.map_err(|e| format!("connect: {e}"))?;
        let (sender, connection) =
            handshake(TokioIo::new(stream)).await.map_err(|e| format!("handshake: {e}"))?;
        tokio::spawn(connection);
        Ok(sender)
    }

    /// Sends and reads to the last byte. Returns the release and the body.
    async fn ask(&self, request: Request<Body>) -> Result<(String, Bytes), String> {
        let mut sender = self.connection().await?;
        sender.ready().await.map_err(|e| format!("a kept connection was closed: {e}"))?;
        let response = sender.send_request(request).await.map_err(|e| format!("no answer: {e}"))?;
        let status = response.status();
        let release =
            response.headers().get("x-cdpipe-release").and_then(|v| v.to_str().ok()).unwrap_or("").to_owned();
        let instance =
            response.headers().get("x-instance").and_then(|v| v.to_str().ok()).unwrap_or("").to_owned();
        let cause = response.headers().get("x-cdpipe-proxy-error").cloned();
        let body =
            response.into_body().collect().await.map_err(|e| format!("body of {release}: {e}"))?.to_bytes();
        if status != 200 {
            return Err(format!("{status} {cause:?} from {release}"));
        }
        if instance.split('.').next() != Some(&release) {
            return Err(format!("the header says {release}, the instance is {instance}"));
        }
        self.idle.lock().expect("not poisoned").push(sender);
        Ok((release, body))
    }

    async fn get(&self, path: &str, want: impl FnOnce(&str, &[u8]) -> bool) -> Result<String, String> {
        let request = Request::get(path).header("host", "t").body(Empty::new().boxed()).expect("a request");
        let (release, body) = self.ask(request).await?;
        if want(&release, &body) {
            Ok(release)
        } else {
            Err(format!("wrong body from {release}: {} bytes", body.len()))
        }
    }

    async fn post(&self, length: usize) -> Result<String, String> {
        let sent = Bytes::from(vec![b'p'; length]);
        let request = Request::post("/echo")
            .header("host", "t")
            .body(Full::new(sent.clone()).boxed())
            .expect("a request");
        let (release, body) = self.ask(request).await?;
        if body == sent {
            Ok(release)
        } else {
            Err(format!("{} of {length} bytes came back from {release}", body.len()))
        }
    }

    async fn socket(&self) -> Result<String, String> {
        let mut raw = TcpStream::connect(self.listen).await.map_err(|e| format!("connect: {e}"))?;
        raw.write_all(b"GET /ws HTTP/1.1\r\nHost: t\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
            .await
            .map_err(|e| format!("sent: {e}"))?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let byte = raw.read_u8().await.map_err(|e| format!("no answer: {e}"))?;
            head.push(byte);
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        if !head.starts_with("HTTP/1.1 101") {
            return Err(head);
        }
        let release =
            head.lines().find_map(|l| l.strip_prefix("x-cdpipe-release: ")).unwrap_or("").to_owned();
        for n in 0..15u8 {
            raw.write_all(&[n; 100]).await.map_err(|e| format!("message {n} to {release}: {e}"))?;
            let mut echo = [0u8; 100];
            raw.read_exact(&mut echo).await.map_err(|e| format!("message {n} from {release}: {e}"))?;
            if echo != [n; 100] {
                return Err(format!("message {n} from {release} is another"));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(release)
    }

    async fn one(&self, n: u32) -> Record {
        let begun = Instant::now();
        let (kind, result) = match n % 20 {
            0 => {
                ("stream", self.get("/stream/8/25", |_, body| body.split(|b| *b == b'\n').count() == 9).await)
            }
            1 => ("websocket", self.socket().await),
            2 | 3 => {
                ("slow", self.get("/slow/150", |release, body| body.starts_with(release.as_bytes())).await)
            }
            4..=6 => ("post", self.post(usize::try_from(n % 7).expect("small") * 20_000).await),
            _ => ("get", self.get("/", |release, body| body.starts_with(release.as_bytes())).await),
        };
        Record { kind, begun, ended: Instant::now(), result }
    }
}

/// Starts requests at their times until told to stop, then waits for all of them.
async fn load(client: Client, stop: Arc<AtomicBool>) -> Vec<Record> {
    let mut tasks = JoinSet::new();
    let mut records = Vec::new();
    let mut tick = tokio::time::interval(Duration::from_secs(1) / RATE);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
    for n in 0.. {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        tick.tick().await;
        let client = client.clone();
        tasks.spawn(async move { client.one(n).await });
        while let Some(done) = tasks.try_join_next() {
            records.push(done.expect("no panic"));
        }
    }
    while let Some(done) = tasks.join_next().await {
        records.push(done.expect("no panic"));
    }
    records
}

struct Deployer {
    proxy: Proxy,
    listen: SocketAddr,
    epoch: u64,
    switches: Vec<Switch>,
}

impl Deployer {
    async fn switch(&mut self, entries: Vec<RouteEntry>) {
        let allowed =
            entries.iter().filter(|e| e.weight_bp > 0).map(|e| e.release.as_str().to_owned()).collect();
        self.epoch += 1;
        let begun = Instant::now();
        self.proxy.put(table(self.listen, entries), self.epoch).await;
        self.switches.push(Switch { begun, done: Instant::now(), allowed });
    }

    /// Nothing is in flight there, then the instances are killed.
    async fn retire(&mut self, release: &str, instances: Vec<Instance>) {
        let drain = self.proxy.client.wait_drained(whole(release), 15_000).await.expect("answered");
        assert!(drain.done(), "{release} did not drain: {drain:?}");
        let served: usize = instances.iter().map(|i| i.served.load(Ordering::SeqCst)).sum();
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert_eq!(
            instances.iter().map(|i| i.served.load(Ordering::SeqCst)).sum::<usize>(),
            served,
            "{release} was asked after its drain"
        );
        for instance in instances {
            instance.stop().await;
        }
    }
}

async fn release(name: &str) -> Vec<Instance> {
    vec![Instance::start(&format!("{name}.a")).await, Instance::start(&format!("{name}.b")).await]
}

fn addresses(instances: &[Instance]) -> Vec<SocketAddr> {
    instances.iter().map(|i| i.address).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_switches_under_load_drop_nothing() {
    let proxy = Proxy::start().await;
    let listen = free_address();
    let mut deployer = Deployer { proxy, listen, epoch: 0, switches: Vec::new() };
    let (mut stable_name, mut stable) = ("r0".to_owned(), release("r0").await);
    deployer.switch(vec![entry(&stable_name, Role::Stable, 10_000, &addresses(&stable))]).await;

    let client = Client { listen, idle: Arc::default(), opened: Arc::default() };
    let stop = Arc::new(AtomicBool::new(false));
    let running = tokio::spawn(load(client.clone(), stop.clone()));
    tokio::time::sleep(Duration::from_millis(200)).await;

    let mut n = 0;
    while deployer.switches.len() <= 52 {
        n += 1;
        let name = format!("r{n}");
        let candidate = release(&name).await;
        for weight_bp in [1_000, 5_000] {
            deployer
                .switch(vec![
                    entry(&stable_name, Role::Stable, 10_000 - weight_bp, &addresses(&stable)),
                    entry(&name, Role::Candidate, weight_bp, &addresses(&candidate)),
                ])
                .await;
            tokio::time::sleep(Duration::from_millis(70)).await;
        }
        if n % 3 == 0 {
            deployer.switch(vec![entry(&stable_name, Role::Stable, 10_000, &addresses(&stable))]).await;
            deployer.retire(&name, candidate).await;
        } else {
            deployer.switch(vec![entry(&name, Role::Stable, 10_000, &addresses(&candidate))]).await;
            deployer.retire(&stable_name, std::mem::replace(&mut stable, candidate)).await;
            stable_name = name;
        }
    }
    stop.store(true, Ordering::SeqCst);
    let records = running.await.expect("no panic");

    let failures: Vec<String> =
        records.iter().filter_map(|r| r.result.as_ref().err().map(|e| format!("{}: {e}", r.kind))).collect();
    assert!(
        failures.is_empty(),
        "{} of {} requests failed: {:#?}",
        failures.len(),
        records.len(),
        &failures[..failures.len().min(20)]
    );

    let switches = &deployer.switches;
    let mut by_kind: BTreeMap<&str, usize> = BTreeMap::new();
    for record in &records {
        *by_kind.entry(record.kind).or_default() += 1;
        let release = record.result.as_ref().expect("no failures");
        // Table k was in force at some time between its put and the end of the next one.
        let allowed = switches.iter().enumerate().any(|(k, switch)| {
            let until = switches.get(k + 1).map(|next| next.done);
            switch.begun <= record.ended
                && until.is_none_or(|until| until >= record.begun)
                && switch.allowed.contains(release)
        });
        assert!(allowed, "{} was answered by {release}, which was not routed to at that time", record.kind);
    }
    assert_eq!(by_kind.len(), 5, "{by_kind:?}");
    assert!(records.len() > 1_000, "{by_kind:?}");
    // Connections are kept over the switches: they are far fewer than requests.
    let opened = client.opened.load(Ordering::SeqCst);
    assert!(opened * 5 < records.len(), "{opened} connections for {} requests", records.len());
    println!(
        "{} requests {by_kind:?}, {} switches, {opened} kept connections",
        records.len(),
        switches.len()
    );
    deployer.proxy.stop().await;
}

/// The race itself, as tight as it gets: switches to and fro without a pause, each followed at once by a drain whose zero
/// must stay zero.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_that_said_zero_stays_zero() {
    let proxy = Proxy::start().await;
    let listen = free_address();
    let instances = [Instance::start("r0").await, Instance::start("r1").await];
    proxy.put(only(listen, "r0", &[instances[0].address]), 1).await;
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..8)
        .map(|_| {
            let stop = stop.clone();
            tokio::spawn(async move {
                let mut raw = Raw::connect(listen).await;
                let mut count = 0usize;
                while !stop.load(Ordering::SeqCst) {
                    assert_eq!(raw.get("/").await.status, 200);
                    count += 1;
                }
                count
            })
        })
        .collect();
    for n in 1..=200usize {
        let (new, old) = (n % 2, (n + 1) % 2);
        proxy.put(only(listen, &format!("r{new}"), &[instances[new].address]), n as u64 + 1).await;
        let drain = proxy.client.wait_drained(whole(&format!("r{old}")), 5_000).await.expect("answered");
        assert!(drain.done(), "{drain:?}");
        let served = instances[old].served.load(Ordering::SeqCst);
        for _ in 0..3 {
            let again = proxy.client.drained(whole(&format!("r{old}"))).await.expect("answered");
            assert!(again.done(), "{again:?}");
        }
        assert_eq!(instances[old].served.load(Ordering::SeqCst), served, "asked after its drain");
    }
    stop.store(true, Ordering::SeqCst);
    let mut total = 0;
    for client in clients {
        total += client.await.expect("no failure");
    }
    assert!(total > 200, "{total} requests");
    proxy.stop().await;
}
