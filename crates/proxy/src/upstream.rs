//! Members: how many requests each has in flight, and the idle connections to it.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Context;

use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;

use crate::table::MemberAddress;

/// A connection that has been idle this long may be closed by the member at any moment; a request that can not be sent
/// twice gets a younger one or a new one.
const YOUNG_MS: u64 = 1_000;
/// A member that refused is passed over this long, doubled by each refusal, up to [`MAX_BACKOFF_MS`].
const BACKOFF_MS: u64 = 250;
const MAX_BACKOFF_MS: u64 = 8_000;

/// Source of [`Member::id`]. 0 is never given.
static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// What makes two members of two tables the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct MemberKey {
    pub(crate) service: String,
    /// Two environments may route to one service, even to one release of it; what is in flight is each route's own.
    pub(crate) route: String,
    pub(crate) release: String,
    pub(crate) instance: String,
    pub(crate) address: MemberAddress,
}

/// An idle connection to a member.
#[derive(Debug)]
struct Idle {
    stream: TcpStream,
    since_ms: u64,
    expires_ms: u64,
}

/// One instance, as long as a table names it or a request is on it.
#[derive(Debug)]
pub(crate) struct Member {
    /// Unique in this process; what the control plane calls it when it cuts.
    pub(crate) id: u64,
    pub(crate) key: MemberKey,
    in_flight: AtomicUsize,
    upgraded: AtomicUsize,
    failures: AtomicU32,
    failed_until_ms: AtomicU64,
    /// No table names it any more: connections are not kept.
    retired: AtomicBool,
    idle: Box<[Mutex<Vec<Idle>>]>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Member {
    pub(crate) fn new(key: MemberKey, workers: usize) -> Member {
        Member {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            key,
            in_flight: AtomicUsize::new(0),
            upgraded: AtomicUsize::new(0),
            failures: AtomicU32::new(0),
            failed_until_ms: AtomicU64::new(0),
            retired: AtomicBool::new(false),
            idle: (0..workers).map(|_| Mutex::new(Vec::new())).collect(),
        }
    }

    pub(crate) fn address(&self) -> &MemberAddress {
        &self.key.address
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::SeqCst)
    }

    pub(crate) fn upgraded(&self) -> usize {
        self.upgraded.load(Ordering::SeqCst)
    }

    /// Counts a request in. Only [`crate::routing`] calls this, under the lock that a swap takes.
    pub(crate) fn enter(&self) {
        // Holds the step open, so that the test of its being one step meets the race if it ever becomes two.
        #[cfg(test)]
        std::thread::sleep(std::time::Duration::from_micros(50));
        self.in_flight.fetch_add(1, Ordering::SeqCst);
    }

    pub(crate) fn leave(&self) {
        self.in_flight.fetch_sub(1, Ordering::SeqCst);
    }

    pub(crate) fn enter_upgraded(&self) {
        self.upgraded.fetch_add(1, Ordering::SeqCst);
    }

    pub(crate) fn leave_upgraded(&self) {
        self.upgraded.fetch_sub(1, Ordering::SeqCst);
    }

    /// Whether it refused a connection so lately that another member should be asked first.
    pub(crate) fn passed_over(&self, now_ms: u64) -> bool {
        self.failures.load(Ordering::Relaxed) > 0 && self.failed_until_ms.load(Ordering::Relaxed) > now_ms
    }

    pub(crate) fn connect_failed(&self, now_ms: u64) {
        let before = self.failures.fetch_add(1, Ordering::Relaxed).min(16);
        let backoff = (BACKOFF_MS << before).min(MAX_BACKOFF_MS);
        self.failed_until_ms.store(now_ms + backoff, Ordering::Relaxed);
    }

    pub(crate) fn connected(&self) {
        if self.failures.load(Ordering::Relaxed) != 0 {
            self.failures.store(0, Ordering::Relaxed);
        }
    }

    /// Sets whether a table names this member; a retired one lets go of its idle connections.
    pub(crate) fn set_retired(&self, retired: bool) {
        self.retired.store(retired, Ordering::SeqCst);
        if retired {
            for idle in &self.idle {
                lock(idle).clear();
            }
        }
    }

    /// The idle connection used last, if one is still open. `twice` says that the request may be sent twice, so that an
    /// older connection is no risk.
    pub(crate) fn take_idle(
        &self,
        worker: usize,
        now_ms: u64,
        twice: bool,
        cx: &mut Context<'_>,
    ) -> Option<TcpStream> {
        let mut idle = lock(&self.idle[worker]);
        while let Some(mut found) = idle.pop() {
            if found.expires_ms <= now_ms {
                // The others are older still.
                idle.clear();
                return None;
            }
            if !twice && found.since_ms + YOUNG_MS <= now_ms {
                idle.push(found);
                return None;
            }
            // Anything to read here is the end, or an answer nobody asked for; both make the connection useless.
            let mut byte = [0u8; 1];
            if Pin::new(&mut found.stream).poll_read(cx, &mut ReadBuf::new(&mut byte)).is_pending() {
                return Some(found.stream);
            }
        }
        None
    }

    /// Keeps a connection whose last answer has been read to its end.
    pub(crate) fn give_idle(
        &self,
        worker: usize,
        stream: TcpStream,
        now_ms: u64,
        expires_ms: u64,
        most: usize,
    ) {
        let mut idle = lock(&self.idle[worker]);
        // Looked at under the lock, so that a retirement either is seen here or clears what is put in here.
        if self.retired.load(Ordering::SeqCst) || idle.len() >= most {
            return;
        }
        idle.push(Idle { stream, since_ms: now_ms, expires_ms });
    }

    /// Closes the idle connections that have been idle for too long.
    pub(crate) fn sweep(&self, now_ms: u64) {
        for idle in &self.idle {
            let mut idle = lock(idle);
            if !idle.is_empty() {
                idle.retain(|found| found.expires_ms > now_ms);
            }
        }
    }
}
