//! Locks that the pipeline names, and the order of those who wait for any lock: kept in the state directory, or in memory for simulations.

use cdpipe_model::Fault;
use cdpipe_model::ports::{BoxFuture, LockOwner, PortResult};
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Named locks and the queue before every lock. A lock is a lease: it ends by itself when it is not renewed.
pub trait NamedLocks: Send + Sync {
    /// Stands in line before this lock, or stays there; whoever does not ask again for `QUEUE_SILENCE_MS` has left. Answers who is
    /// first, `None` if it is us.
    ///
    /// # Errors
    /// If the state can't be written.
    fn line_up<'a>(&'a self, name: &'a str, owner: &'a LockOwner) -> PortResult<'a, Option<LockOwner>>;

    /// Leaves the line.
    fn leave<'a>(&'a self, name: &'a str, owner: &'a LockOwner) -> BoxFuture<'a, ()>;

    /// Takes the lock, or renews it if it is this run's. Answers an epoch that grows with each new owner.
    ///
    /// # Errors
    /// `locked` (transient) while another run holds it; if the state can't be written.
    fn acquire<'a>(&'a self, name: &'a str, owner: &'a LockOwner, lease_ms: u64) -> PortResult<'a, u64>;

    /// Gives the lock back if it is this run's.
    ///
    /// # Errors
    /// If the state can't be written.
    fn release<'a>(&'a self, name: &'a str, owner: &'a LockOwner) -> PortResult<'a, ()>;
}

/// Who waits for a lock asks at least this often, or has left the line.
pub const QUEUE_SILENCE_MS: u64 = 15_000;

/// The fault of a lock that someone else holds.
pub(crate) fn locked(name: &str, who: &str, run: &str, since_ms: u64, now_ms: u64) -> Fault {
    let held = cdpipe_model::value::format_duration_ms(
        // Seconds are exact enough for people.
        f64::from(u32::try_from(now_ms.saturating_sub(since_ms) / 1_000).unwrap_or(u32::MAX)) * 1_000.0,
    );
    Fault::new("locked", format!("lock `{name}` is held by {who}, run {run}, for {held}"))
        .help("it is free when that run ends; `cdpipe unlock` frees it if its owner is dead")
        .transient()
}

/// Named locks in memory, without expiry: the runs of one simulation.
#[derive(Default)]
pub struct MemoryLocks(Mutex<Memory>);

#[derive(Default)]
struct Memory {
    held: HashMap<String, LockOwner>,
    epochs: HashMap<String, u64>,
    lines: HashMap<String, Vec<LockOwner>>,
}

impl MemoryLocks {
    /// No lock is held.
    pub fn new() -> Self {
        Self::default()
    }

    /// Who holds a lock.
    pub fn holder(&self, name: &str) -> Option<LockOwner> {
        self.state().held.get(name).cloned()
    }

    fn state(&self) -> MutexGuard<'_, Memory> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl NamedLocks for MemoryLocks {
    fn line_up<'a>(&'a self, name: &'a str, owner: &'a LockOwner) -> PortResult<'a, Option<LockOwner>> {
        let mut state = self.state();
        let line = state.lines.entry(name.to_owned()).or_default();
        if !line.iter().any(|waiting| waiting.run == owner.run) {
            line.push(owner.clone());
        }
        let first = line.first().filter(|first| first.run != owner.run).cloned();
        Box::pin(std::future::ready(Ok(first)))
    }

    fn leave<'a>(&'a self, name: &'a str, owner: &'a LockOwner) -> BoxFuture<'a, ()> {
        if let Some(line) = self.state().lines.get_mut(name) {
            line.retain(|waiting| waiting.run != owner.run);
        }
        Box::pin(std::future::ready(()))
    }

    fn acquire<'a>(&'a self, name: &'a str, owner: &'a LockOwner, _lease_ms: u64) -> PortResult<'a, u64> {
        let mut state = self.state();
        let answer = match state.held.get(name) {
            Some(holder) if holder.run != owner.run => {
                Err(locked(name, &holder.who, holder.run.as_str(), 0, 0))
            }
            held => {
                let is_new = held.is_none();
                state.held.insert(name.to_owned(), owner.clone());
                let epoch = state.epochs.entry(name.to_owned()).or_default();
                *epoch += u64::from(is_new);
                Ok(*epoch)
            }
        };
        Box::pin(std::future::ready(answer))
    }

    fn release<'a>(&'a self, name: &'a str, owner: &'a LockOwner) -> PortResult<'a, ()> {
        let mut state = self.state();
        if state.held.get(name).is_some_and(|holder| holder.run == owner.run) {
            state.held.remove(name);
        }
        Box::pin(std::future::ready(Ok(())))
    }
}
