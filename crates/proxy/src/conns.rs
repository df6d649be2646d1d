//! Every client connection's deadline and cut mark, and the coarse clock they are judged by.
//!
//! A timer for each read would cost more than the read. Instead a connection writes down when it will have waited long enough
//! (one relaxed store) and the sweeper, every [`TICK_MS`], wakes those whose time has come; the connection then finds out by itself.
//! A wake-up is only a hint: what ends a wait is the connection's own look at clock and mark, so a late hint can never hit
//! the next request of the same connection.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::Waker;
use std::time::Instant;

use slab::Slab;

/// How exact deadlines are.
pub(crate) const TICK_MS: u64 = 25;

/// Milliseconds since the proxy started, moved on by the sweeper.
#[derive(Debug)]
pub(crate) struct Clock {
    start: Instant,
    now_ms: AtomicU64,
}

impl Clock {
    pub(crate) fn new() -> Clock {
        Clock { start: Instant::now(), now_ms: AtomicU64::new(0) }
    }

    pub(crate) fn now_ms(&self) -> u64 {
        self.now_ms.load(Ordering::Relaxed)
    }

    fn advance(&self) -> u64 {
        let now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.now_ms.store(now, Ordering::Relaxed);
        now
    }
}

/// Why a wait ended without its byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interrupt {
    /// The deadline passed.
    Expired,
    /// The operator cut what is left on this member.
    Cut,
    /// The proxy is stopping and this connection has nothing to finish.
    Stopping,
}

/// One client connection as the sweeper and the control plane see it.
#[derive(Debug, Default)]
pub(crate) struct Conn {
    waker: OnceLock<Waker>,
    deadline_ms: AtomicU64,
    /// Id of the member whose request is in flight; 0 for none.
    member: AtomicU64,
    /// Id of the member that was last cut.
    cut: AtomicU64,
    idle: AtomicBool,
}

impl Conn {
    /// Ends the current wait `after_ms` from now.
    pub(crate) fn deadline_in(&self, clock: &Clock, after_ms: u64) {
        self.deadline_ms.store(clock.now_ms().saturating_add(after_ms), Ordering::Relaxed);
    }

    pub(crate) fn set_member(&self, id: u64) {
        self.member.store(id, Ordering::SeqCst);
    }

    pub(crate) fn set_idle(&self, idle: bool) {
        self.idle.store(idle, Ordering::SeqCst);
    }

    /// To be called once, from the connection's own task, whose waker never changes.
    pub(crate) fn register(&self, waker: &Waker) {
        let _ = self.waker.set(waker.clone());
    }

    pub(crate) fn check(&self, shared: &Conns) -> Result<(), Interrupt> {
        if self.deadline_ms.load(Ordering::Relaxed) <= shared.clock.now_ms() {
            return Err(Interrupt::Expired);
        }
        let cut = self.cut.load(Ordering::Relaxed);
        if cut != 0 && cut == self.member.load(Ordering::Relaxed) {
            return Err(Interrupt::Cut);
        }
        if self.idle.load(Ordering::Relaxed) && shared.stopping() {
            return Err(Interrupt::Stopping);
        }
        Ok(())
    }
}

/// All client connections, kept by worker.
#[derive(Debug)]
pub(crate) struct Conns {
    pub(crate) clock: Clock,
    workers: Box<[Mutex<Slab<Arc<Conn>>>]>,
    open: AtomicUsize,
    accepted: AtomicU64,
    refused: AtomicU64,
    stopping: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A poisoned list is still a list: each change to it is one call.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Conns {
    pub(crate) fn new(workers: usize) -> Conns {
        Conns {
            clock: Clock::new(),
            workers: (0..workers).map(|_| Mutex::new(Slab::new())).collect(),
            open: AtomicUsize::new(0),
            accepted: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
        }
    }

    /// Counts a connection in, or refuses it at the limit.
    pub(crate) fn admit(self: &Arc<Self>, worker: usize, limit: usize) -> Option<ConnGuard> {
        if self.open.fetch_add(1, Ordering::SeqCst) >= limit {
            self.open.fetch_sub(1, Ordering::SeqCst);
            self.refused.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        self.accepted.fetch_add(1, Ordering::Relaxed);
        let conn = Arc::new(Conn { deadline_ms: AtomicU64::new(u64::MAX), ..Conn::default() });
        let key = lock(&self.workers[worker]).insert(conn.clone());
        Some(ConnGuard { conns: self.clone(), worker, key, conn })
    }

    pub(crate) fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }

    pub(crate) fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    pub(crate) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// The worker with the fewest connections.
    pub(crate) fn least_loaded(&self) -> usize {
        (0..self.workers.len()).min_by_key(|w| lock(&self.workers[*w]).len()).unwrap_or(0)
    }

    pub(crate) fn stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// From now on idle connections end, and busy ones end with their request.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        self.wake(|_| true);
    }

    /// Moves the clock on and wakes whoever has waited long enough.
    pub(crate) fn sweep(&self) -> u64 {
        let now = self.clock.advance();
        self.wake(|conn| conn.deadline_ms.load(Ordering::Relaxed) <= now);
        now
    }

    /// Ends what is in flight on these members. Returns how many connections were told.
    pub(crate) fn cut(&self, members: &[u64]) -> usize {
        let mut told = 0;
        self.wake(|conn| {
            let member = conn.member.load(Ordering::SeqCst);
            let hit = member != 0 && members.contains(&member);
            if hit {
                conn.cut.store(member, Ordering::SeqCst);
                told += 1;
            }
            hit
        });
        told
    }

    fn wake(&self, mut which: impl FnMut(&Conn) -> bool) {
        for worker in &self.workers {
            for (_, conn) in lock(worker).iter() {
                if which(conn)
                    && let Some(waker) = conn.waker.get()
                {
                    waker.wake_by_ref();
                }
            }
        }
    }
}

/// A connection that is counted in; dropping it counts it out.
#[derive(Debug)]
pub(crate) struct ConnGuard {
    conns: Arc<Conns>,
    worker: usize,
    key: usize,
    pub(crate) conn: Arc<Conn>,
}

impl Drop for ConnGuard {
    fn drop(&mut self) {
        lock(&self.conns.workers[self.worker]).try_remove(self.key);
        self.conns.open.fetch_sub(1, Ordering::SeqCst);
    }
}
