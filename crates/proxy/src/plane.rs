//! The data plane as a whole: worker threads, listeners, and what outlives a table (members and their counters).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use cdpipe_model::observe::Role;
use cdpipe_model::service::Route;
use futures_util::FutureExt;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};

use crate::answer::{Cause, Causes, OwnAnswer};
use crate::buffer::BufferStore;
use crate::connection::{self, Shared, Worker};
use crate::conns::Conns;
use crate::control::protocol::{ReleaseLoad, Selection};
use crate::metrics::{self, Overview, ReleaseStats};
use crate::options::ServeOptions;
use crate::routing::{Live, Routing};
use crate::table::{ProxyTable, route_name};
use crate::upstream::{Member, MemberKey};

/// Connections the kernel holds for us between two accepts.
const BACKLOG: i32 = 4_096;
/// Counters of this many releases that no table names any more are kept, so that a rollback's last minutes can be read.
const MAX_OLD_STATS: usize = 64;
/// After a failed accept (no file descriptors left) the listener rests this long.
const ACCEPT_REST: Duration = Duration::from_millis(50);

/// What outlives a table.
#[derive(Debug, Default)]
struct Registry {
    members: HashMap<MemberKey, Arc<Member>>,
    /// Oldest first.
    stats: Vec<Arc<ReleaseStats>>,
}

#[derive(Debug)]
struct WorkerThread {
    worker: Arc<Worker>,
    handle: Handle,
}

/// Threads, routing and counters of one proxy.
#[derive(Debug)]
pub(crate) struct Plane {
    pub(crate) shared: Arc<Shared>,
    workers: Vec<WorkerThread>,
    stops: Mutex<Vec<(oneshot::Sender<()>, JoinHandle<()>)>>,
    registry: Mutex<Registry>,
}

/// How much is in flight on a release, or on some of its members.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Load {
    pub(crate) in_flight: u64,
    pub(crate) upgraded: u64,
}

impl Plane {
    /// Starts the workers; nothing is listened on yet.
    pub(crate) fn start(options: &ServeOptions) -> io::Result<Plane> {
        let count = options.workers.clamp(1, 256);
        let empty = Live::new(
            ProxyTable::default(),
            |key| Arc::new(Member::new(key, count)),
            |key| Arc::new(ReleaseStats::new(key, count)),
        );
        let nanos =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_nanos());
        let shared = Arc::new(Shared {
            routing: Routing::new(count, Arc::new(empty)),
            conns: Arc::new(Conns::new(count)),
            causes: Causes::default(),
            limits: options.limits.clone(),
            release_header: options.release_header,
            mark: format!("cdpipe-{:x}-{:x}", std::process::id(), nanos & 0xffff_ffff_ffff),
        });
        let mut workers = Vec::new();
        let mut stops = Vec::new();
        for index in 0..count {
            let (worker, stop, thread) = WorkerThread::start(index, shared.clone())?;
            workers.push(worker);
            stops.push((stop, thread));
        }
        Ok(Plane { shared, workers, stops: Mutex::new(stops), registry: Mutex::default() })
    }

    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a validated table in force. When this returns no request is being chosen by the old one.
    pub(crate) fn put(&self, table: ProxyTable) {
        let count = self.workers.len();
        let mut registry = self.registry();
        let Registry { members, stats } = &mut *registry;
        let mut named = HashSet::new();
        let mut counted = HashSet::new();
        let live = Live::new(
            table,
            |key| {
                named.insert(key.clone());
                members.entry(key.clone()).or_insert_with(|| Arc::new(Member::new(key, count))).clone()
            },
            |key| {
                counted.insert(key.clone());
                stats.iter().find(|s| s.key == key).cloned().unwrap_or_else(|| {
                    let fresh = Arc::new(ReleaseStats::new(key, count));
                    stats.push(fresh.clone());
                    fresh
                })
            },
        );
        // Before the swap, so that a member which comes back keeps its connections from its first request on.
        for (key, member) in members.iter().filter(|(key, _)| named.contains(*key)) {
            debug_assert_eq!(key, &member.key);
            member.set_retired(false);
        }
        self.shared.routing.swap(&Arc::new(live));
        members.retain(|key, member| {
            if named.contains(key) {
                return true;
            }
            member.set_retired(true);
            member.in_flight() > 0
        });
        let is_old = |s: &ReleaseStats| !counted.contains(&s.key);
        let mut surplus = stats.iter().filter(|s| is_old(s)).count().saturating_sub(MAX_OLD_STATS);
        stats.retain(|s| {
            let drop = surplus > 0 && is_old(s);
            surplus -= usize::from(drop);
            !drop
        });
    }

    /// What is in flight on what is selected; and the ids of those members.
    pub(crate) fn load(&self, what: &Selection) -> (Load, Vec<u64>) {
        let mut load = Load::default();
        let mut ids = Vec::new();
        let route = what.route.as_ref().map(route_name);
        for (key, member) in &self.registry().members {
            if key.service == what.service
                && key.release == what.release
                && route.as_ref().is_none_or(|route| key.route == *route)
                && what.covers(&key.instance)
            {
                load.in_flight += member.in_flight() as u64;
                load.upgraded += member.upgraded() as u64;
                ids.push(member.id);
            }
        }
        (load, ids)
    }

    /// In flight by service, route and release, with the role the table gives it.
    pub(crate) fn loads(&self) -> Vec<ReleaseLoad> {
        let live = self.shared.routing.current();
        let mut sums: BTreeMap<(String, String, String), Load> = BTreeMap::new();
        for (key, member) in &self.registry().members {
            let sum = sums.entry((key.service.clone(), key.route.clone(), key.release.clone())).or_default();
            sum.in_flight += member.in_flight() as u64;
            sum.upgraded += member.upgraded() as u64;
        }
        sums.into_iter()
            .map(|((service, route, release), load)| {
                let role =
                    live.role_of(&service, &route, &release).map_or("retired", Role::as_str).to_owned();
                ReleaseLoad {
                    service,
                    route,
                    release,
                    role,
                    in_flight: load.in_flight,
                    upgraded: load.upgraded,
                }
            })
            .collect()
    }

    pub(crate) fn metrics(&self) -> String {
        let conns = &self.shared.conns;
        let loads = self.loads();
        let errors = self.shared.causes.all();
        let mut stats = self.registry().stats.clone();
        stats.sort_by(|a, b| a.key.cmp(&b.key));
        metrics::render(
            &Overview {
                revision: self.shared.routing.current().table.revision,
                connections: conns.open() as u64,
                connections_total: conns.accepted(),
                connections_refused: conns.refused(),
                errors: &errors,
                loads: &loads,
            },
            &stats,
        )
    }

    /// Moves the clock on, wakes who waited too long, closes what idled too long.
    pub(crate) fn sweep(&self) {
        let now_ms = self.shared.conns.sweep();
        for member in self.registry().members.values() {
            member.sweep(now_ms);
        }
    }

    /// Accepts on `listener` until told to stop; then what the kernel already holds is accepted too.
    pub(crate) async fn accept(self: Arc<Self>, listener: Listener, mut stop: watch::Receiver<bool>) {
        let Listener { address, socket } = listener;
        loop {
            let accepted = tokio::select! {
                accepted = socket.accept() => accepted,
                _ = stop.wait_for(|stop| *stop) => break,
            };
            match accepted {
                Ok((stream, client)) => self.take_in(stream, client, address),
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    tracing::warn!(%address, %error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_REST).await;
                }
            }
        }
        while let Some(Ok((stream, client))) = socket.accept().now_or_never() {
            self.take_in(stream, client, address);
        }
    }

    fn take_in(&self, stream: TcpStream, client: SocketAddr, listen: SocketAddr) {
        // Without it small answers wait for the peer's delayed acknowledgement; it can not fail on a live socket.
        let _ = stream.set_nodelay(true);
        // Off this thread's event loop, to be put on the worker's.
        let Ok(stream) = stream.into_std() else { return };
        let conns = &self.shared.conns;
        let index = conns.least_loaded();
        let Some(guard) = conns.admit(index, self.shared.limits.max_connections) else {
            self.refuse(&stream);
            return;
        };
        let at = &self.workers[index];
        let worker = at.worker.clone();
        at.handle.spawn(async move {
            match TcpStream::from_std(stream) {
                Ok(stream) => connection::serve(worker, guard, stream, listen, client).await,
                Err(error) => tracing::warn!(%error, "a connection could not be watched"),
            }
        });
    }

    fn refuse(&self, mut stream: &std::net::TcpStream) {
        self.shared.causes.count(Cause::ConnectionLimit);
        let mut out = Vec::new();
        OwnAnswer::new(
            Cause::ConnectionLimit,
            format!("{} connections are open", self.shared.limits.max_connections),
        )
        .write(&mut out, None, false, true);
        // Said once, without waiting: who floods us must not make us wait.
        let _ = io::Write::write(&mut stream, &out);
        let _ = stream.shutdown(std::net::Shutdown::Write);
    }

    /// Ends idle connections, waits for busy ones until `timeout`. Returns how many were still open.
    pub(crate) async fn drain(&self, timeout: Duration) -> usize {
        self.shared.conns.stop();
        let deadline = tokio::time::Instant::now() + timeout;
        while self.shared.conns.open() > 0 && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.shared.conns.open()
    }

    /// Ends the worker threads and whatever they still carry. Nothing is served afterwards.
    pub(crate) fn stop_workers(&self) {
        let stops = std::mem::take(&mut *self.stops.lock().unwrap_or_else(PoisonError::into_inner));
        // All are told before the first is waited for.
        let threads: Vec<_> = stops.into_iter().map(|(_, thread)| thread).collect();
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a worker panicked");
            }
        }
    }

    /// Requests that ended on each release of a service, or of one route to it, in all roles.
    pub(crate) fn requests(&self, service: &str, route: Option<&Route>) -> BTreeMap<String, u64> {
        let route = route.map(route_name);
        let mut sums = BTreeMap::new();
        for stats in &self.registry().stats {
            if stats.key.service == service && route.as_ref().is_none_or(|route| stats.key.route == *route) {
                *sums.entry(stats.key.release.clone()).or_default() += stats.requests();
            }
        }
        sums
    }
}

impl WorkerThread {
    fn start(
        index: usize,
        shared: Arc<Shared>,
    ) -> io::Result<(WorkerThread, oneshot::Sender<()>, JoinHandle<()>)> {
        let worker = Arc::new(Worker { index, shared, buffers: BufferStore::default() });
        // No timer on purpose: deadlines are the sweeper's, see `conns`.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::Builder::new().name(format!("cdpipe-proxy-{index}")).spawn(move || {
            // Ends when the sender is dropped.
            let _ = runtime.block_on(stopped);
        })?;
        Ok((WorkerThread { worker, handle }, stop, thread))
    }
}

/// A bound port.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) address: SocketAddr,
    socket: TcpListener,
}

impl Listener {
    /// Binds and listens. Must be called within the control runtime.
    pub(crate) fn bind(address: SocketAddr) -> io::Result<Listener> {
        let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let socket = rustix::net::socket_with(
            family,
            SocketType::STREAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )?;
        // Only past connections may be ignored; a port that somebody listens on stays theirs.
        rustix::net::sockopt::set_socket_reuseaddr(&socket, true)?;
        rustix::net::bind(&socket, &address)?;
        rustix::net::listen(&socket, BACKLOG)?;
        Ok(Listener { address, socket: TcpListener::from_std(std::net::TcpListener::from(socket))? })
    }
}
