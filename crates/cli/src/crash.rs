//! A death planned for a moment that no signal from outside can hit: `CDPIPE_CRASH=before:K` or `after:K` kills this process,
//! as kill -9 does, before or after the K-th batch it appends to the journal. Only debug builds know it; the sweep over
//! every boundary of a run stands on it (`tests/end_to_end/sweep.rs`).

use cdpipe_engine::{Batch, Journal, Letter, Status};
use cdpipe_model::Fault;
use cdpipe_model::plan::LockKey;
use cdpipe_model::ports::BoxFuture;
use cdpipe_model::record::Record;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The journal, with the death that the environment plans, if it does.
pub(crate) fn planned(journal: Arc<dyn Journal>) -> Arc<dyn Journal> {
    let plan = std::env::var("CDPIPE_CRASH").unwrap_or_default();
    let parsed = plan.split_once(':').and_then(|(when, batch)| Some((when == "before", batch.parse().ok()?)));
    match parsed {
        Some((before, batch)) => Arc::new(Mortal { journal, before, batch, appended: AtomicU64::new(0) }),
        None => journal,
    }
}

struct Mortal {
    journal: Arc<dyn Journal>,
    before: bool,
    batch: u64,
    appended: AtomicU64,
}

fn die() {
    // It does not come back: a process can't refuse its own SIGKILL.
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
}

impl Journal for Mortal {
    fn append<'a>(&'a self, batch: Batch<'a>) -> BoxFuture<'a, Result<(), Fault>> {
        Box::pin(async move {
            let due = self.appended.fetch_add(1, Ordering::Relaxed) + 1 == self.batch;
            if due && self.before {
                die();
            }
            let done = self.journal.append(batch).await;
            if due {
                die();
            }
            done
        })
    }

    fn letters(&self, after: u64) -> Result<Vec<Letter>, Fault> {
        self.journal.letters(after)
    }

    fn wait_letters(&self, after: u64) -> BoxFuture<'_, Result<Vec<Letter>, Fault>> {
        self.journal.wait_letters(after)
    }

    fn note_epoch<'a>(&'a self, key: &'a LockKey, epoch: u64) -> BoxFuture<'a, Result<(), Fault>> {
        self.journal.note_epoch(key, epoch)
    }

    fn epochs(&self) -> Result<BTreeMap<LockKey, u64>, Fault> {
        self.journal.epochs()
    }

    fn park(&self, inputs: Vec<Record>, status: Status) -> BoxFuture<'_, Result<(), Fault>> {
        self.journal.park(inputs, status)
    }
}
