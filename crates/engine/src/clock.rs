//! Time as the engine sees it, so that a simulation can bring its own.

use cdpipe_model::ports::BoxFuture;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A clock. The engine sleeps and looks at the time nowhere else.
pub trait Clock: Send + Sync {
    /// Milliseconds since 1970. May jump.
    fn now_ms(&self) -> u64;

    /// Resolves once `now_ms` is at least this, also if the clock jumps there.
    fn sleep_until(&self, due_ms: u64) -> BoxFuture<'_, ()>;

    /// Resolves after so much time has passed, whatever the clock says meanwhile.
    fn sleep(&self, ms: u64) -> BoxFuture<'_, ()>;
}

/// The clock of the system. When it is set forward, or the machine slept, what is due fires; when it is set back, time goes on from
/// where it was, at the pace of the monotonic clock, so that nothing waits an hour longer.
pub struct SystemClock {
    wall: Box<dyn Fn() -> u64 + Send + Sync>,
    /// What was answered last, and when that was.
    last: Mutex<(u64, Instant)>,
}

/// A deadline is compared with the wall clock at least this often, so that a clock that is set forward, or a machine that slept,
/// fires what is due.
const LOOK_AGAIN_MS: u64 = 1_000;

impl Default for SystemClock {
    fn default() -> Self {
        Self::over(|| {
            SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
        })
    }
}

impl SystemClock {
    fn over(wall: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        let now = (wall(), Instant::now());
        Self { wall: Box::new(wall), last: Mutex::new(now) }
    }
}

impl Clock for SystemClock {
    fn now_ms(&self) -> u64 {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let passed_ms = u64::try_from(last.1.elapsed().as_millis()).unwrap_or(u64::MAX);
        let (wall_ms, expected_ms) = ((self.wall)(), last.0.saturating_add(passed_ms));
        if wall_ms >= expected_ms {
            *last = (wall_ms, Instant::now());
        }
        wall_ms.max(expected_ms)
    }

    fn sleep_until(&self, due_ms: u64) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            loop {
                let left_ms = due_ms.saturating_sub(self.now_ms());
                if left_ms == 0 {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(left_ms.min(LOOK_AGAIN_MS))).await;
            }
        })
    }

    fn sleep(&self, ms: u64) -> BoxFuture<'_, ()> {
        Box::pin(tokio::time::sleep(Duration::from_millis(ms)))
    }
}

/// A clock that goes on from `not_before_ms` where it is behind that: the clock may have been set back between two engines of a run,
/// and what the journal says has happened has happened.
pub(crate) fn going_on(clock: Arc<dyn Clock>, not_before_ms: u64) -> Arc<dyn Clock> {
    match not_before_ms.saturating_sub(clock.now_ms()) {
        0 => clock,
        ahead_ms => Arc::new(Ahead { clock, ahead_ms }),
    }
}

struct Ahead {
    clock: Arc<dyn Clock>,
    ahead_ms: u64,
}

impl Clock for Ahead {
    fn now_ms(&self) -> u64 {
        self.clock.now_ms().saturating_add(self.ahead_ms)
    }

    fn sleep_until(&self, due_ms: u64) -> BoxFuture<'_, ()> {
        self.clock.sleep_until(due_ms.saturating_sub(self.ahead_ms))
    }

    fn sleep(&self, ms: u64) -> BoxFuture<'_, ()> {
        self.clock.sleep(ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    const HOUR_MS: u64 = 3_600_000;

    fn settable(at_ms: u64) -> (Arc<AtomicU64>, SystemClock) {
        let wall = Arc::new(AtomicU64::new(at_ms));
        let read = Arc::clone(&wall);
        (wall, SystemClock::over(move || read.load(Ordering::SeqCst)))
    }

    #[tokio::test]
    async fn a_clock_that_is_set_back_an_hour_holds_nothing_up() {
        let (wall, clock) = settable(10 * HOUR_MS);
        let before_ms = clock.now_ms();
        wall.store(9 * HOUR_MS, Ordering::SeqCst);
        assert!(clock.now_ms() >= before_ms);
        // The wall stands still an hour ago: only the monotonic clock can bring this about.
        clock.sleep_until(before_ms + 20).await;
        assert!(clock.now_ms() >= before_ms + 20 && clock.now_ms() < before_ms + HOUR_MS);
    }

    #[tokio::test]
    async fn a_clock_that_is_set_forward_an_hour_fires_what_is_due() {
        let (wall, clock) = settable(10 * HOUR_MS);
        let due_ms = clock.now_ms() + HOUR_MS;
        wall.store(11 * HOUR_MS, Ordering::SeqCst);
        clock.sleep_until(due_ms).await;
        assert!(clock.now_ms() >= due_ms);
    }

    #[tokio::test]
    async fn a_run_goes_on_from_its_journal_where_the_clock_is_behind_it() {
        let (wall, clock) = settable(9 * HOUR_MS);
        let clock = going_on(Arc::new(clock), 10 * HOUR_MS);
        assert!((10 * HOUR_MS..10 * HOUR_MS + 60_000).contains(&clock.now_ms()));
        clock.sleep_until(10 * HOUR_MS).await;
        wall.store(20 * HOUR_MS, Ordering::SeqCst);
        let not_behind = going_on(Arc::new(settable(10 * HOUR_MS).1), HOUR_MS);
        assert!(not_behind.now_ms() < 11 * HOUR_MS);
    }
}
