//! Collects every process that ends below the supervisor: its own children, and orphans it has inherited as their subreaper.

use rustix::process::{WaitOptions, WaitStatus};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

/// Tells those who wait for a child how it ended.
#[derive(Debug, Clone, Default)]
pub(super) struct Reaper {
    waiting: Arc<Mutex<HashMap<u32, oneshot::Sender<WaitStatus>>>>,
}

impl Reaper {
    /// Begins to collect. To be called within the runtime, before the first child.
    ///
    /// # Errors
    /// If the signal can't be listened to.
    pub(super) fn start() -> std::io::Result<Self> {
        let mut child_ended = signal(SignalKind::child())?;
        let reaper = Self::default();
        let collecting = reaper.clone();
        tokio::spawn(async move {
            while child_ended.recv().await.is_some() {
                collecting.collect();
            }
        });
        Ok(reaper)
    }

    /// How the child of this id will end. To be called right after it was started, without an await in between: on the one thread
    /// nothing is collected meanwhile.
    pub(super) fn expect(&self, pid: u32) -> oneshot::Receiver<WaitStatus> {
        let (sender, receiver) = oneshot::channel();
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(pid, sender);
        receiver
    }

    fn collect(&self) {
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            let pid = pid.as_raw_nonzero().get().unsigned_abs();
            let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&pid);
            if let Some(sender) = waiting {
                // Whoever waited may have given up.
                let _ = sender.send(status);
            }
        }
    }
}
