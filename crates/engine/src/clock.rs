//! Time as the engine sees it, so that a simulation can bring its own.

use cdpipe_model::ports::BoxFuture;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A clock. The engine sleeps and looks at the time nowhere else.
pub trait Clock: Send + Sync {
    /// Milliseconds since 1970. May jump.
    fn now_ms(&self) -> u64;

    /// Resolves once `now_ms` is at least this, also if the clock jumps there.
    fn sleep_until(&self, due_ms: u64) -> BoxFuture<'_, ()>;

    /// Resolves after so much time has passed, whatever the clock says meanwhile.
    fn sleep(&self, ms: u64) -> BoxFuture<'_, ()>;
}

/// The clock of the system.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

/// A deadline is compared with the wall clock at least this often, so that a clock that is set forward, or a machine that slept,
/// fires what is due.
const LOOK_AGAIN_MS: u64 = 1_000;

impl Clock for SystemClock {
    fn now_ms(&self) -> u64 {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
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
