//! One run in the store: beginning it, taking it over, appending to it, reading it.

use super::error::StoreError;
use super::process::{Process, wall_ms};
use super::schema::SEQ_BITS;
use super::writer::{Job, Work, Writer, set_status};
use super::{Store, retention};
use crate::journal::{Batch, Journal, Letter, Status};
use cdpipe_model::plan::LockKey;
use cdpipe_model::ports::BoxFuture;
use cdpipe_model::record::{JOURNAL_VERSION, Record, RunHeader};
use cdpipe_model::{Fault, RunId};
use rusqlite::{Connection, OptionalExtension, params};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::oneshot;

/// How often the inbox is looked at. A look is one pragma while nobody writes.
const INBOX_EVERY_MS: u64 = 200;

impl Store {
    /// Writes the header of a new run and takes the run. Prunes old runs beyond the bounds of retention.
    ///
    /// # Errors
    /// `Exists` if there is a run of this id, and whatever keeps the state from being written.
    pub fn begin(self: &Arc<Self>, header: &RunHeader) -> Result<RunJournal, StoreError> {
        let json = serde_json::to_vec(header).map_err(|error| StoreError::Unreadable {
            run: header.run.clone(),
            seq: 0,
            detail: error.to_string(),
        })?;
        let me = Process::current();
        let token = new_token(&me);
        let run_no = self.transaction(|conn| {
            let fault = |error: rusqlite::Error| self.fault(&error);
            if run_no(conn, &header.run).map_err(fault)?.is_some() {
                return Err(StoreError::Exists { run: header.run.clone() });
            }
            conn.execute(
                "INSERT INTO runs (id, file, pipeline, plan_hash, started_by, started_at_ms, status)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, 'running')",
                params![
                    header.run.as_str(),
                    header.file,
                    header.plan.name,
                    header.plan.hash,
                    header.started_by,
                    header.started_at_ms
                ],
            )
            .map_err(fault)?;
            let run_no = conn.last_insert_rowid();
            conn.execute("INSERT INTO headers (run, json) VALUES (?1, ?2)", params![run_no, json])
                .map_err(fault)?;
            set_owner(conn, run_no, &token, &me).map_err(fault)?;
            Ok(run_no)
        })?;
        if let Err(error) = self.prune(&retention::Retention::default()) {
            // Too many old runs are no reason not to start a new one.
            tracing::warn!(%error, "old runs were not pruned");
        }
        self.journal(header.run.clone(), run_no, token)
    }

    /// Takes an unfinished run that no living engine drives.
    ///
    /// # Errors
    /// `UnknownRun`, `Over`, or `Owned` with the process that drives it.
    pub fn take(self: &Arc<Self>, run: &RunId) -> Result<RunJournal, StoreError> {
        let me = Process::current();
        let token = new_token(&me);
        let run_no = self.transaction(|conn| {
            let fault = |error: rusqlite::Error| self.fault(&error);
            let run_no = self.unfinished_no(conn, run)?;
            if let Some(by) = living_owner(conn, run_no).map_err(fault)? {
                return Err(StoreError::Owned { run: run.clone(), by: by.to_string() });
            }
            set_owner(conn, run_no, &token, &me).map_err(fault)?;
            set_status(conn, run_no, &Status::Running).map_err(fault)?;
            Ok(run_no)
        })?;
        self.journal(run.clone(), run_no, token)
    }

    fn journal(self: &Arc<Self>, run: RunId, run_no: i64, token: Arc<str>) -> Result<RunJournal, StoreError> {
        let journal = RunJournal { store: Arc::clone(self), writer: self.writer()?, run, run_no, token };
        // The answer is of no interest: the first append says whether the run is ours.
        let _answer = journal.send(false, Work::Adopt)?;
        Ok(journal)
    }

    /// The number of a run that is neither finished nor abandoned.
    pub(super) fn unfinished_no(&self, conn: &Connection, run: &RunId) -> Result<i64, StoreError> {
        let found: Option<(i64, String)> = conn
            .query_row("SELECT no, status FROM runs WHERE id = ?1", [run.as_str()], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .optional()
            .map_err(|error| self.fault(&error))?;
        match found {
            None => Err(self.unknown(run)),
            Some((_, status)) if status == "finished" || status == "abandoned" => {
                Err(StoreError::Over { run: run.clone(), status })
            }
            Some((run_no, _)) => Ok(run_no),
        }
    }

    pub(super) fn unknown(&self, run: &RunId) -> StoreError {
        StoreError::UnknownRun { run: run.to_string(), path: self.path.clone() }
    }

    /// What the run is.
    ///
    /// # Errors
    /// `UnknownRun`; `NewerJournal` if a newer cdpipe wrote it; `Pruned`; `Unreadable`.
    pub fn header(&self, run: &RunId) -> Result<RunHeader, StoreError> {
        #[derive(serde::Deserialize)]
        struct Version {
            journal_version: u32,
        }

        let json: Option<Vec<u8>> = self
            .conn()
            .query_row(
                "SELECT headers.json FROM runs LEFT JOIN headers ON headers.run = runs.no WHERE runs.id = ?1",
                [run.as_str()],
                |row| row.get(0),
            )
            .optional()
            .map_err(|error| self.fault(&error))?
            .ok_or_else(|| self.unknown(run))?;
        let json = json.ok_or_else(|| StoreError::Pruned { run: run.clone() })?;
        let newer = |found| StoreError::NewerJournal { run: run.clone(), found, supported: JOURNAL_VERSION };
        match serde_json::from_slice::<RunHeader>(&json) {
            Ok(header) if header.journal_version > JOURNAL_VERSION => Err(newer(header.journal_version)),
            Ok(header) => Ok(header),
            // A newer header may have another shape: then its version, read alone, says more than what did not fit.
            Err(error) => match serde_json::from_slice::<Version>(&json) {
                Ok(Version { journal_version }) if journal_version > JOURNAL_VERSION => {
                    Err(newer(journal_version))
                }
                _ => Err(StoreError::Unreadable { run: run.clone(), seq: 0, detail: error.to_string() }),
            },
        }
    }
}

/// The number of a run.
pub(super) fn run_no(conn: &Connection, run: &RunId) -> Result<Option<i64>, rusqlite::Error> {
    conn.query_row("SELECT no FROM runs WHERE id = ?1", [run.as_str()], |row| row.get(0)).optional()
}

/// The process that drives a run, if it lives.
pub(super) fn living_owner(conn: &Connection, run_no: i64) -> Result<Option<Process>, rusqlite::Error> {
    let found: Option<(String, u64)> = conn
        .query_row("SELECT process, heartbeat_ms FROM owners WHERE run = ?1", [run_no], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .optional()?;
    // An owner that can't be read is of another version of the tables; those are refused at opening.
    Ok(found
        .and_then(|(json, heartbeat_ms)| Some((serde_json::from_str::<Process>(&json).ok()?, heartbeat_ms)))
        .filter(|(process, heartbeat_ms)| process.is_alive(*heartbeat_ms, wall_ms()))
        .map(|(process, _)| process))
}

fn set_owner(conn: &Connection, run_no: i64, token: &str, me: &Process) -> Result<(), rusqlite::Error> {
    conn.execute(
        "INSERT INTO owners (run, token, process, heartbeat_ms) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT (run) DO UPDATE SET token = ?2, process = ?3, heartbeat_ms = ?4",
        params![run_no, token, serde_json::to_string(me).unwrap_or_default(), wall_ms()],
    )?;
    Ok(())
}

/// Unique among all engines that ever owned a run of this state: every append shows it.
fn new_token(me: &Process) -> Arc<str> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("{}/{}/{}/{}/{}/{count}", me.host, me.place, me.pid, me.started_ticks, wall_ms()).into()
}

/// A run that this process owns. Dropping it gives the run back.
pub struct RunJournal {
    store: Arc<Store>,
    writer: Writer,
    run: RunId,
    run_no: i64,
    token: Arc<str>,
}

impl RunJournal {
    /// Which run.
    pub fn run(&self) -> &RunId {
        &self.run
    }

    /// The store it is in.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Gives the run back, and answers when that is written, so that the next process finds it free. Nothing can be appended after it.
    ///
    /// # Errors
    /// If it can't be written; the next process then finds a dead owner and takes the run all the same.
    pub async fn release(&self) -> Result<(), StoreError> {
        self.ask(false, Work::Release).await
    }

    fn send(
        &self,
        sync: bool,
        work: Work,
    ) -> Result<oneshot::Receiver<Result<bool, StoreError>>, StoreError> {
        let (answer, receiver) = oneshot::channel();
        self.writer.send(Job { run_no: self.run_no, token: Arc::clone(&self.token), sync, work, answer })?;
        Ok(receiver)
    }

    async fn ask(&self, sync: bool, work: Work) -> Result<(), StoreError> {
        match self.send(sync, work)?.await {
            Ok(Ok(true)) => Ok(()),
            Ok(Ok(false)) => Err(StoreError::LostOwnership { run: self.run.clone() }),
            Ok(Err(error)) => Err(error),
            Err(_gone) => Err(StoreError::Closed { path: self.store.path.clone() }),
        }
    }

    fn unreadable(&self, seq: u64, detail: impl ToString) -> StoreError {
        StoreError::Unreadable { run: self.run.clone(), seq, detail: detail.to_string() }
    }

    fn encode(&self, batch: &Batch<'_>) -> Result<Work, StoreError> {
        let count = batch.records.len() as u64;
        if batch.first_seq + count >= 1 << SEQ_BITS {
            return Err(self.unreadable(batch.first_seq, "a run has room for 2^40 records"));
        }
        // One array a batch: a commit then writes one row, and its framing costs one byte a record.
        let mut json = Vec::with_capacity(batch.records.len() * 192);
        for record in batch.records {
            json.push(if json.is_empty() { b'[' } else { b',' });
            serde_json::to_writer(&mut json, &**record)
                .map_err(|error| self.unreadable(batch.first_seq, error))?;
        }
        json.push(b']');
        Ok(Work::Append {
            first_seq: batch.first_seq,
            count,
            at_ms: batch.at_ms,
            json,
            taken: batch.taken,
            status: batch.status.clone(),
        })
    }
}

impl Drop for RunJournal {
    fn drop(&mut self) {
        // If it can't be sent, the owner is found dead by its process id later.
        let _ = self.send(false, Work::Release);
    }
}

impl Journal for RunJournal {
    fn append<'a>(&'a self, batch: Batch<'a>) -> BoxFuture<'a, Result<(), Fault>> {
        let work = self.encode(&batch);
        Box::pin(async move { Ok(self.ask(batch.sync, work?).await?) })
    }

    fn letters(&self, after: u64) -> Result<Vec<Letter>, Fault> {
        let conn = self.store.conn();
        let read = || -> Result<Vec<(u64, String)>, rusqlite::Error> {
            conn.prepare_cached(
                "SELECT id, json FROM inbox WHERE run = ?1 AND id > ?2 ORDER BY id LIMIT 1000",
            )?
            .query_map(params![self.run_no, after], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect()
        };
        let rows = read().map_err(|error| self.store.fault(&error))?;
        let letters = rows.into_iter().filter_map(|(id, json)| match serde_json::from_str(&json) {
            Ok(input) => Some(Letter { id, input }),
            // A newer cdpipe may ask for what this one does not know. That must not stop the run now or at any resume; the letter
            // leaves the inbox with the next one that is taken.
            Err(error) => {
                tracing::warn!(id, run = %self.run, %error, "a letter to the run is not understood and is passed over");
                None
            }
        });
        Ok(letters.collect())
    }

    fn wait_letters(&self, after: u64) -> BoxFuture<'_, Result<Vec<Letter>, Fault>> {
        Box::pin(async move {
            // Changes when another connection commits. Ours is not idle meanwhile: the writer's commits count too, so that while
            // the run moves each look is one indexed query.
            let mut seen = None;
            loop {
                let version: i64 = self
                    .store
                    .conn()
                    .query_row("PRAGMA data_version", [], |row| row.get(0))
                    .map_err(|error| self.store.fault(&error))?;
                if seen.replace(version) != Some(version) {
                    let letters = self.letters(after)?;
                    if !letters.is_empty() {
                        return Ok(letters);
                    }
                }
                tokio::time::sleep(Duration::from_millis(INBOX_EVERY_MS)).await;
            }
        })
    }

    fn note_epoch<'a>(&'a self, key: &'a LockKey, epoch: u64) -> BoxFuture<'a, Result<(), Fault>> {
        Box::pin(async move {
            let key = serde_json::to_string(key).map_err(|error| self.unreadable(0, error))?;
            Ok(self.ask(false, Work::NoteEpoch { key, epoch }).await?)
        })
    }

    fn epochs(&self) -> Result<BTreeMap<LockKey, u64>, Fault> {
        let conn = self.store.conn();
        let read = || -> Result<Vec<(String, u64)>, rusqlite::Error> {
            conn.prepare_cached("SELECT key, epoch FROM epochs WHERE run = ?1")?
                .query_map([self.run_no], |row| Ok((row.get(0)?, row.get(1)?)))?
                .collect()
        };
        let rows = read().map_err(|error| self.store.fault(&error))?;
        let decoded = rows.into_iter().map(|(key, epoch)| Ok((serde_json::from_str(&key)?, epoch)));
        let epochs: Result<_, serde_json::Error> = decoded.collect();
        Ok(epochs.map_err(|error| self.unreadable(0, error))?)
    }

    fn park(&self, inputs: Vec<Record>, status: Status) -> BoxFuture<'_, Result<(), Fault>> {
        let letters = inputs
            .iter()
            .map(|input| serde_json::to_string(input).map_err(|error| self.unreadable(0, error)))
            .collect::<Result<Vec<String>, StoreError>>();
        // Results of effects on targets are not written twice if they are lost, only probed; still, a person who presses Ctrl-C
        // and pulls the plug should find them.
        Box::pin(async move { Ok(self.ask(true, Work::Park { letters: letters?, status }).await?) })
    }
}
