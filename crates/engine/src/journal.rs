//! The journal as the dispatcher sees it: append, durable, and the inbox that other processes write to. `store` keeps it in SQLite; the
//! memory here keeps it for simulations, which crash and resume thousands of runs a second.

use crate::wake::Bell;
use cdpipe_model::plan::LockKey;
use cdpipe_model::ports::BoxFuture;
use cdpipe_model::record::{Record, Signal};
use cdpipe_model::{Fault, Outcome};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Records that become durable together or not at all.
#[derive(Debug, Clone)]
pub struct Batch<'a> {
    /// Number of the first record in the run's journal, from 1.
    pub first_seq: u64,
    /// When they were decided, milliseconds since 1970.
    pub at_ms: u64,
    /// In order; not empty.
    pub records: &'a [Arc<Record>],
    /// Whether they must survive a power cut, not only the end of this process.
    pub sync: bool,
    /// Letters of the inbox up to this id are in `records` now and leave the inbox with this batch.
    pub taken: Option<u64>,
    /// What becomes of the run with this batch.
    pub status: Option<Status>,
}

/// Where a run stands, as the registry shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// An engine drives it, or was driving it when it died.
    Running,
    /// It waits for a person and no engine drives it.
    Suspended {
        /// What it waits for.
        waiting: String,
    },
    /// It was stopped between two steps and can be resumed.
    Interrupted,
    /// It ended.
    Finished {
        /// How.
        outcome: Outcome,
        /// Milliseconds since 1970.
        at_ms: u64,
    },
    /// It was given up unfinished.
    Abandoned,
}

impl Status {
    /// Stable word.
    pub fn as_str(&self) -> &'static str {
        match self {
            Status::Running => "running",
            Status::Suspended { .. } => "suspended",
            Status::Interrupted => "interrupted",
            Status::Finished { .. } => "finished",
            Status::Abandoned => "abandoned",
        }
    }
}

/// An input that waits for the engine of a run: a signal of a person, or a result that came back while the engine was being
/// interrupted. It is in the inbox until the batch that holds it is durable, so it is taken exactly once.
#[derive(Debug, Clone, PartialEq)]
pub struct Letter {
    /// Its number; grows.
    pub id: u64,
    /// `Signalled` or `Returned`.
    pub input: Record,
}

/// The durable half of a run. One engine at a time holds it.
pub trait Journal: Send + Sync {
    /// Appends a batch. When it answers, the batch is durable as asked; when it fails, nothing of the batch is in the journal and
    /// nothing of it may be acted on.
    ///
    /// # Errors
    /// A full disk, an owner that took the run over, a damaged database.
    fn append<'a>(&'a self, batch: Batch<'a>) -> BoxFuture<'a, Result<(), Fault>>;

    /// Letters after this id, oldest first.
    ///
    /// # Errors
    /// If the inbox can't be read.
    fn letters(&self, after: u64) -> Result<Vec<Letter>, Fault>;

    /// Waits until there are letters after this id.
    ///
    /// # Errors
    /// If the inbox can't be read.
    fn wait_letters(&self, after: u64) -> BoxFuture<'_, Result<Vec<Letter>, Fault>>;

    /// Remembers under which epoch this run holds a lock, for the engine that takes the run over: if the lock's epoch has moved on by more
    /// than its own taking, somebody else was there. Survives the end of this process.
    ///
    /// # Errors
    /// As `append`.
    fn note_epoch<'a>(&'a self, key: &'a LockKey, epoch: u64) -> BoxFuture<'a, Result<(), Fault>>;

    /// The epochs that were noted last.
    ///
    /// # Errors
    /// If they can't be read.
    fn epochs(&self) -> Result<BTreeMap<LockKey, u64>, Fault>;

    /// Puts inputs into the inbox for the next engine and says where the run stands.
    ///
    /// # Errors
    /// As `append`.
    fn park(&self, inputs: Vec<Record>, status: Status) -> BoxFuture<'_, Result<(), Fault>>;
}

/// A journal in memory: durable as long as the value lives.
#[derive(Default)]
pub struct MemoryJournal {
    state: Mutex<Memory>,
    bell: Bell,
}

#[derive(Default)]
struct Memory {
    records: Vec<(u64, Arc<Record>)>,
    letters: Vec<Letter>,
    last_letter: u64,
    epochs: BTreeMap<LockKey, u64>,
    status: Option<Status>,
    room: Option<u64>,
    batches: u64,
    synced: u64,
}

impl MemoryJournal {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> MutexGuard<'_, Memory> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses every batch after so many more, as a full disk would; `None` lifts that.
    pub fn set_room(&self, batches: Option<u64>) {
        self.state().room = batches;
    }

    /// All records with the time at which they were decided.
    pub fn records(&self) -> Vec<(u64, Arc<Record>)> {
        self.state().records.clone()
    }

    /// Batches appended, and how many of them were synced.
    pub fn batches(&self) -> (u64, u64) {
        let state = self.state();
        (state.batches, state.synced)
    }

    /// Where the run stands.
    pub fn status(&self) -> Option<Status> {
        self.state().status.clone()
    }

    /// Sends a signal, as another process would.
    pub fn send(&self, at_ms: u64, signal: Signal) {
        self.post(vec![Record::Signalled { at_ms, signal }]);
    }

    fn post(&self, inputs: Vec<Record>) {
        let mut state = self.state();
        for input in inputs {
            state.last_letter += 1;
            let id = state.last_letter;
            state.letters.push(Letter { id, input });
        }
        drop(state);
        self.bell.ring();
    }
}

impl Journal for MemoryJournal {
    fn append<'a>(&'a self, batch: Batch<'a>) -> BoxFuture<'a, Result<(), Fault>> {
        let mut state = self.state();
        let answer = match state.room {
            Some(0) => Err(Fault::new("state-full", "there is no room left for the journal")),
            room => {
                state.room = room.map(|left| left - 1);
                state.batches += 1;
                state.synced += u64::from(batch.sync);
                state.records.extend(batch.records.iter().map(|record| (batch.at_ms, Arc::clone(record))));
                if let Some(taken) = batch.taken {
                    state.letters.retain(|letter| letter.id > taken);
                }
                if let Some(status) = batch.status {
                    state.status = Some(status);
                }
                Ok(())
            }
        };
        Box::pin(std::future::ready(answer))
    }

    fn letters(&self, after: u64) -> Result<Vec<Letter>, Fault> {
        Ok(self.state().letters.iter().filter(|letter| letter.id > after).cloned().collect())
    }

    fn wait_letters(&self, after: u64) -> BoxFuture<'_, Result<Vec<Letter>, Fault>> {
        Box::pin(async move {
            loop {
                let rung = self.bell.listen();
                let letters = self.letters(after)?;
                if !letters.is_empty() {
                    return Ok(letters);
                }
                rung.await;
            }
        })
    }

    fn note_epoch<'a>(&'a self, key: &'a LockKey, epoch: u64) -> BoxFuture<'a, Result<(), Fault>> {
        self.state().epochs.insert(key.clone(), epoch);
        Box::pin(std::future::ready(Ok(())))
    }

    fn epochs(&self) -> Result<BTreeMap<LockKey, u64>, Fault> {
        Ok(self.state().epochs.clone())
    }

    fn park(&self, inputs: Vec<Record>, status: Status) -> BoxFuture<'_, Result<(), Fault>> {
        self.post(inputs);
        self.state().status = Some(status);
        Box::pin(std::future::ready(Ok(())))
    }
}
