//! Virtual time, and the loop that lets it pass: when nothing can go on, the clock jumps to the next moment somebody sleeps until.

use cdpipe_engine::Clock;
use cdpipe_model::ports::BoxFuture;
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use tokio::runtime::Runtime;

/// Where virtual time begins: Monday, 5 January 2026, 09:00 UTC; a quiet morning in most windows and outside most freezes.
pub const EPOCH_MS: u64 = 1_767_603_600_000;

/// Virtual time may go so far before a run counts as one that never ends.
const HORIZON_MS: u64 = 400 * 24 * 3_600_000;

/// A clock that jumps.
pub(crate) struct VirtualClock {
    now_ms: AtomicU64,
    sleepers: Mutex<Sleepers>,
}

#[derive(Default)]
struct Sleepers {
    /// By when they are due, then by the order in which they fell asleep.
    by_due: BTreeMap<(u64, u64), Option<Waker>>,
    last: u64,
    halt: Option<Halt>,
    main: Option<Waker>,
}

/// Why a future was given up before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Halt {
    /// The process dies here.
    Crash,
    /// Nobody does anything and nobody waits for a time.
    Idle,
    /// Virtual time has gone on for longer than any pipeline.
    Endless,
}

impl VirtualClock {
    pub(crate) fn new() -> Self {
        Self { now_ms: AtomicU64::new(EPOCH_MS), sleepers: Mutex::default() }
    }

    fn sleepers(&self) -> MutexGuard<'_, Sleepers> {
        self.sleepers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Back to the beginning, with nobody asleep.
    pub(crate) fn reset(&self) {
        self.now_ms.store(EPOCH_MS, Ordering::SeqCst);
        *self.sleepers() = Sleepers::default();
    }

    /// Lets time pass while no engine is there.
    pub(crate) fn advance(&self, ms: u64) {
        self.now_ms.fetch_add(ms, Ordering::SeqCst);
    }

    /// Gives up what `Executor::run` runs, before it does anything more.
    pub(crate) fn halt(&self, why: Halt) {
        let mut sleepers = self.sleepers();
        sleepers.halt = Some(why);
        if let Some(main) = sleepers.main.take() {
            main.wake();
        }
    }

    fn halted(&self) -> Option<Halt> {
        self.sleepers().halt
    }

    /// Everybody waits: time goes on to whoever is due first.
    fn jump(&self) {
        let mut sleepers = self.sleepers();
        let next = sleepers.by_due.iter().find(|(_, waker)| waker.is_some()).map(|((due_ms, _), _)| *due_ms);
        let Some(due_ms) = next else {
            drop(sleepers);
            return self.halt(Halt::Idle);
        };
        if due_ms > EPOCH_MS + HORIZON_MS {
            drop(sleepers);
            return self.halt(Halt::Endless);
        }
        let now_ms = due_ms.max(self.now_ms.load(Ordering::SeqCst));
        self.now_ms.store(now_ms, Ordering::SeqCst);
        let wakers: Vec<Waker> =
            sleepers.by_due.range_mut(..=(now_ms, u64::MAX)).filter_map(|(_, waker)| waker.take()).collect();
        drop(sleepers);
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl Clock for VirtualClock {
    fn now_ms(&self) -> u64 {
        self.now_ms.load(Ordering::SeqCst)
    }

    fn sleep_until(&self, due_ms: u64) -> BoxFuture<'_, ()> {
        let mut sleepers = self.sleepers();
        sleepers.last += 1;
        Box::pin(Sleep { clock: self, key: (due_ms, sleepers.last) })
    }

    fn sleep(&self, ms: u64) -> BoxFuture<'_, ()> {
        self.sleep_until(self.now_ms().saturating_add(ms))
    }
}

struct Sleep<'a> {
    clock: &'a VirtualClock,
    key: (u64, u64),
}

impl Future for Sleep<'_> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.clock.now_ms() >= self.key.0 {
            return Poll::Ready(());
        }
        self.clock.sleepers().by_due.insert(self.key, Some(context.waker().clone()));
        Poll::Pending
    }
}

impl Drop for Sleep<'_> {
    fn drop(&mut self) {
        self.clock.sleepers().by_due.remove(&self.key);
    }
}

/// Runs futures on this thread under virtual time.
pub(crate) struct Executor {
    runtime: Runtime,
    pub(crate) clock: Arc<VirtualClock>,
}

impl Executor {
    /// # Errors
    /// If the system has no room for a runtime.
    pub(crate) fn new() -> std::io::Result<Self> {
        let clock = Arc::new(VirtualClock::new());
        let jumping = Arc::clone(&clock);
        let runtime =
            tokio::runtime::Builder::new_current_thread().on_thread_park(move || jumping.jump()).build()?;
        Ok(Self { runtime, clock })
    }

    /// Runs it to its end, or until it is given up; then it is dropped where it stands, as a process that dies.
    pub(crate) fn run<T>(&self, future: impl Future<Output = T>) -> Result<T, Halt> {
        self.clock.sleepers().halt = None;
        let mut future = std::pin::pin!(future);
        let clock = &self.clock;
        self.runtime.block_on(std::future::poll_fn(|context| {
            if let Some(why) = clock.halted() {
                return Poll::Ready(Err(why));
            }
            clock.sleepers().main = Some(context.waker().clone());
            match future.as_mut().poll(context) {
                Poll::Ready(value) => Poll::Ready(Ok(value)),
                // Seen before any task gets another turn: a dead process does nothing more.
                Poll::Pending => clock.halted().map_or(Poll::Pending, |why| Poll::Ready(Err(why))),
            }
        }))
    }
}
