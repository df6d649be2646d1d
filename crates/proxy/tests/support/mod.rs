//! A proxy in this process, instances made with somebody else's HTTP server, and raw sockets for what no library would send.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses another part of this module")]
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "this is test code that stands outside of a #[test] function"
)]

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use cdpipe_model::observe::{Member, Role, RouteEntry, RouteRule, RouteTable};
use cdpipe_model::service::Route;
use cdpipe_model::strategy::{RouteMatch, Sticky};
use cdpipe_proxy::control::protocol::{Expect, PutRoute, Selection};
use cdpipe_proxy::{ProxyClient, ServeError, ServeOptions, serve};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// Longest that anything in a test may take.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A port of 127.0.0.1 that nobody listens on.
pub fn free_address() -> SocketAddr {
    let socket = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    socket.local_addr().expect("bound")
}

/// A proxy on a thread of this process.
pub struct Proxy {
    pub client: ProxyClient,
    pub directory: Arc<tempfile::TempDir>,
    thread: Option<JoinHandle<Result<(), ServeError>>>,
}

impl Proxy {
    pub async fn start() -> Proxy {
        Proxy::start_with(Arc::new(tempfile::tempdir().expect("a directory")), |_| {}).await
    }

    pub async fn start_with(
        directory: Arc<tempfile::TempDir>,
        change: impl FnOnce(&mut ServeOptions),
    ) -> Proxy {
        let mut options = ServeOptions::new(directory.path());
        options.workers = 2;
        change(&mut options);
        let thread = std::thread::spawn(move || serve(&options));
        let client = ProxyClient::new(directory.path());
        let proxy = Proxy { client, directory, thread: Some(thread) };
        for _ in 0..2_000 {
            if proxy.client.ping().await.is_ok() {
                return proxy;
            }
            assert!(
                !proxy.thread.as_ref().is_some_and(JoinHandle::is_finished),
                "the proxy ended: {:?}",
                proxy.join()
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("the proxy does not answer");
    }

    fn join(mut self) -> Result<(), ServeError> {
        self.thread.take().expect("running").join().expect("no panic")
    }

    /// Asks it to stop and waits until it has.
    pub async fn stop(self) {
        self.client.shutdown().await.expect("it answers");
        tokio::task::spawn_blocking(move || self.join()).await.expect("joined").expect("a good end");
    }

    pub async fn put(&self, table: RouteTable, epoch: u64) {
        let put = PutRoute { table, expect: Expect::Anything };
        self.client.put(vec![put], Vec::new(), epoch, "test").await.expect("the table is taken");
    }
}

pub fn route(listen: SocketAddr) -> Route {
    Route { service: "web".into(), host: None, path: None, listen: Some(listen.to_string()), object: None }
}

pub fn entry(release: &str, role: Role, weight_bp: u32, members: &[SocketAddr]) -> RouteEntry {
    RouteEntry {
        release: release.into(),
        role,
        weight_bp,
        members: members
            .iter()
            .map(|address| Member {
                instance: format!("{release}-{}", address.port()).as_str().into(),
                address: address.to_string(),
            })
            .collect(),
    }
}

/// One release gets everything.
pub fn only(listen: SocketAddr, release: &str, members: &[SocketAddr]) -> RouteTable {
    table(listen, vec![entry(release, Role::Stable, 10_000, members)])
}

pub fn table(listen: SocketAddr, entries: Vec<RouteEntry>) -> RouteTable {
    RouteTable { route: route(listen), entries, rules: Vec::new(), sticky: Sticky::None }
}

pub fn header_rule(name: &str, value: &str, release: &str) -> RouteRule {
    RouteRule {
        matches: RouteMatch::Header { name: name.into(), value: value.into() },
        release: release.into(),
    }
}

pub fn whole(release: &str) -> Selection {
    Selection { service: "web".into(), route: None, release: release.into(), instances: None }
}

pub type Body = BoxBody<Bytes, Infallible>;

pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).boxed()
}

/// An instance of a release: a real HTTP server that answers by path.
///
/// `/` its name · `/slow/MS` the same after a while · `/echo` the request's body as it comes · `/stream/N/MS` N chunks with
/// a pause before each · `/head` the request's head · `/ws` an upgraded echo
pub struct Instance {
    pub address: SocketAddr,
    pub served: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Instance {
    pub async fn start(name: &str) -> Instance {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("bound");
        let address = listener.local_addr().expect("bound");
        let served = Arc::new(AtomicUsize::new(0));
        let (name, count) = (name.to_owned(), served.clone());
        let task = tokio::spawn(async move {
            // Dropping the set, with the task, ends every connection at once: a stopped instance is gone.
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (name, count) = (name.clone(), count.clone());
                while connections.try_join_next().is_some() {}
                connections.spawn(async move {
                    let service = hyper::service::service_fn(move |request| {
                        let (name, count) = (name.clone(), count.clone());
                        async move {
                            count.fetch_add(1, Ordering::SeqCst);
                            Ok::<_, Infallible>(respond(&name, request).await)
                        }
                    });
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .with_upgrades()
                        .await;
                });
            }
        });
        Instance { address, served, task }
    }

    /// Ends it as a kill would.
    pub async fn stop(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

async fn respond(name: &str, mut request: Request<Incoming>) -> Response<Body> {
    let path = request.uri().path().to_owned();
    let parts: Vec<&str> = path.split('/').skip(1).collect();
    let mut response = match parts.as_slice() {
        ["slow", ms] => {
            tokio::time::sleep(Duration::from_millis(ms.parse().expect("milliseconds"))).await;
            Response::new(full(name.to_owned()))
        }
        ["echo"] => {
            let body = request.into_body();
            let frames = futures_util::stream::unfold(body, |mut body| async {
                let frame = body.frame().await?;
                Some((Ok::<_, Infallible>(frame.expect("a whole request body")), body))
            });
            Response::new(BodyExt::boxed(StreamBody::new(Box::pin(frames).sync())))
        }
        ["stream", n, ms] => {
            let (n, ms): (u64, u64) = (n.parse().expect("count"), ms.parse().expect("milliseconds"));
            let frames = futures_util::stream::unfold(0, move |at| async move {
                if at == n {
                    return None;
                }
                tokio::time::sleep(Duration::from_millis(ms)).await;
                Some((Ok::<_, Infallible>(Frame::data(Bytes::from(format!("chunk {at}\n")))), at + 1))
            });
            Response::new(BodyExt::boxed(StreamBody::new(Box::pin(frames).sync())))
        }
        ["head"] => {
            let mut text = format!("{} {}\n", request.method(), request.uri());
            for (name, value) in request.headers() {
                text.push_str(&format!("{name}: {}\n", value.to_str().expect("text")));
            }
            Response::new(full(text))
        }
        ["ws"] => {
            let upgrade = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                let Ok(upgraded) = upgrade.await else { return };
                let mut stream = TokioIo::new(upgraded);
                let mut bytes = [0u8; 4096];
                while let Ok(n) = stream.read(&mut bytes).await {
                    if n == 0 || stream.write_all(&bytes[..n]).await.is_err() {
                        break;
                    }
                }
                let _ = stream.shutdown().await;
            });
            let mut response = Response::new(full(""));
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            response.headers_mut().insert("connection", "upgrade".parse().expect("value"));
            response.headers_mut().insert("upgrade", "echo".parse().expect("value"));
            response
        }
        _ => Response::new(full(name.to_owned())),
    };
    response.headers_mut().insert("x-instance", name.parse().expect("value"));
    response
}

trait Syncly: Sized {
    fn sync(self) -> SyncStream<Self>;
}

impl<S> Syncly for S {
    fn sync(self) -> SyncStream<S> {
        SyncStream(std::sync::Mutex::new(self))
    }
}

/// A body must be `Sync`, which a stream of futures is not by itself.
struct SyncStream<S>(std::sync::Mutex<S>);

impl<S: futures_util::Stream + Unpin> futures_util::Stream for SyncStream<S> {
    type Item = S::Item;
    fn poll_next(
        self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<S::Item>> {
        std::pin::Pin::new(&mut *self.0.lock().expect("not poisoned")).poll_next(cx)
    }
}

/// An instance that says what it is told to, byte by byte: `script` gets each connection.
pub async fn raw_instance<F, Fut>(script: F) -> SocketAddr
where
    F: Fn(usize, TcpStream) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("bound");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        let mut n = 0;
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(script(n, stream));
            n += 1;
        }
    });
    address
}

/// Reads until the end of a head, and returns it with whatever came behind it.
pub async fn read_head(stream: &mut TcpStream) -> (String, Vec<u8>) {
    let mut bytes = Vec::new();
    loop {
        if let Some(at) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            let rest = bytes.split_off(at + 4);
            return (String::from_utf8(bytes).expect("a head is text"), rest);
        }
        let n = stream.read_buf(&mut bytes).await.expect("readable");
        assert!(n > 0, "closed within the head: {:?}", String::from_utf8_lossy(&bytes));
    }
}

/// A raw client connection.
pub struct Raw {
    pub stream: TcpStream,
    rest: Vec<u8>,
}

/// An answer as a raw client reads it.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head
            .lines()
            .skip(1)
            .filter_map(|l| l.split_once(": "))
            .find(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, v)| v)
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("text")
    }
}

impl Raw {
    pub async fn connect(address: SocketAddr) -> Raw {
        let stream = TcpStream::connect(address).await.expect("connected");
        stream.set_nodelay(true).expect("set");
        Raw { stream, rest: Vec::new() }
    }

    pub async fn send(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).await.expect("sent");
    }

    pub async fn get(&mut self, path: &str) -> Answer {
        self.send(&format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n")).await;
        self.answer().await
    }

    async fn fill(&mut self) -> usize {
        tokio::time::timeout(PATIENCE, self.stream.read_buf(&mut self.rest))
            .await
            .expect("in time")
            .expect("readable")
    }

    /// The next head, interim answers included.
    pub async fn head(&mut self) -> (u16, String) {
        loop {
            if let Some(at) = self.rest.windows(4).position(|w| w == b"\r\n\r\n") {
                let rest = self.rest.split_off(at + 4);
                let head =
                    String::from_utf8(std::mem::replace(&mut self.rest, rest)).expect("a head is text");
                let status = head[9..12].parse().expect("a status");
                return (status, head);
            }
            assert!(
                self.fill().await > 0,
                "closed within the head: {:?}",
                String::from_utf8_lossy(&self.rest)
            );
        }
    }

    /// The next answer but interim ones, body included, by its framing.
    pub async fn answer(&mut self) -> Answer {
        let (status, head) = loop {
            let (status, head) = self.head().await;
            if status >= 200 || status == 101 {
                break (status, head);
            }
        };
        let mut answer = Answer { status, head, body: Vec::new() };
        if let Some(length) = answer.header("content-length") {
            let length: usize = length.parse().expect("a length");
            while self.rest.len() < length {
                assert!(self.fill().await > 0, "closed within the body");
            }
            let rest = self.rest.split_off(length);
            answer.body = std::mem::replace(&mut self.rest, rest);
        } else if answer.header("transfer-encoding").is_some() {
            loop {
                let line = self.line().await;
                let size = usize::from_str_radix(line.trim(), 16).expect("a chunk size");
                while self.rest.len() < size + 2 {
                    assert!(self.fill().await > 0, "closed within a chunk");
                }
                let rest = self.rest.split_off(size + 2);
                let chunk = std::mem::replace(&mut self.rest, rest);
                answer.body.extend_from_slice(&chunk[..size]);
                if size == 0 {
                    break;
                }
            }
        } else if status != 204 && status != 304 && status != 101 {
            while self.fill().await > 0 {}
            answer.body = std::mem::take(&mut self.rest);
        }
        answer
    }

    pub async fn line(&mut self) -> String {
        loop {
            if let Some(at) = self.rest.windows(2).position(|w| w == b"\r\n") {
                let rest = self.rest.split_off(at + 2);
                return String::from_utf8(std::mem::replace(&mut self.rest, rest)).expect("text");
            }
            assert!(self.fill().await > 0, "closed within a line: {:?}", String::from_utf8_lossy(&self.rest));
        }
    }

    /// Reads this many bytes.
    pub async fn bytes(&mut self, count: usize) -> Vec<u8> {
        while self.rest.len() < count {
            assert!(self.fill().await > 0, "closed early");
        }
        let rest = self.rest.split_off(count);
        std::mem::replace(&mut self.rest, rest)
    }

    /// Everything until the end; an error if the connection was reset.
    pub async fn read_to_close(&mut self) -> std::io::Result<Vec<u8>> {
        let read =
            tokio::time::timeout(PATIENCE, self.stream.read_to_end(&mut self.rest)).await.expect("in time");
        read.map(|_| std::mem::take(&mut self.rest))
    }
}

/// Reads Prometheus text: the value of the first sample whose line starts with `name` and holds every label.
pub fn sample(text: &str, name: &str, labels: &[&str]) -> Option<f64> {
    text.lines()
        .filter(|l| l.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{'])))
        .find(|l| labels.iter().all(|label| l.contains(label)))
        .and_then(|l| l.rsplit_once(' '))
        .map(|(_, value)| value.parse().expect("a number"))
}

/// How often each release answered `n` requests for `/` on one connection.
pub async fn releases_of(address: SocketAddr, n: usize) -> HashMap<String, usize> {
    let mut raw = Raw::connect(address).await;
    let mut counts = HashMap::new();
    for _ in 0..n {
        let answer = raw.get("/").await;
        assert_eq!(answer.status, 200, "{}", answer.head);
        *counts.entry(answer.header("x-cdpipe-release").expect("a release").to_owned()).or_default() += 1;
    }
    counts
}

pub fn exists(path: &Path) -> bool {
    path.try_exists().expect("looked at")
}

/// Looks until it is true.
pub async fn eventually<F, Fut>(what: &str, mut look: F)
where
    F: FnMut() -> Fut,
    Fut: Future<Output = bool>,
{
    let end = tokio::time::Instant::now() + PATIENCE;
    while !look().await {
        assert!(tokio::time::Instant::now() < end, "never came true: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A proxy with a route to one instance.
pub async fn with_instance() -> (Proxy, std::net::SocketAddr, Instance) {
    let (proxy, listen) = (Proxy::start().await, free_address());
    let instance = Instance::start("r1-a").await;
    proxy.put(only(listen, "r1", &[instance.address]), 1).await;
    (proxy, listen, instance)
}
