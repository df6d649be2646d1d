//! Waking those who wait: a bell for "look again", and the cancellation of one action.

use cdpipe_model::ports::{BoxFuture, Cancel};
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::Notify;

/// Wakes everyone who listens. A ring between `listen` and the first poll is not lost.
#[derive(Debug, Default)]
pub(crate) struct Bell(Notify);

impl Bell {
    /// Wakes all who listen now.
    pub(crate) fn ring(&self) {
        self.0.notify_waiters();
    }

    /// Resolves at the first ring after this call.
    pub(crate) fn listen(&self) -> impl Future<Output = ()> + '_ {
        // `Notified` counts rings from its creation, not from its first poll.
        self.0.notified()
    }
}

/// Tells one action to stop.
#[derive(Debug, Default)]
pub(crate) struct CancelFlag {
    set: AtomicBool,
    bell: Bell,
}

impl CancelFlag {
    /// Asks the action to stop; asking twice is asking once.
    pub(crate) fn set(&self) {
        self.set.store(true, Ordering::SeqCst);
        self.bell.ring();
    }
}

impl Cancel for CancelFlag {
    fn is_cancelled(&self) -> bool {
        self.set.load(Ordering::SeqCst)
    }

    fn cancelled(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            loop {
                let rung = self.bell.listen();
                if self.is_cancelled() {
                    return;
                }
                rung.await;
            }
        })
    }
}
