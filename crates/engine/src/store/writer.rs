//! The one thread that appends. It takes what waits in its queue, commits it together, and only then answers.

use super::error::StoreError;
use super::process::wall_ms;
use super::schema::{self, SEQ_BITS};
use crate::journal::Status;
use rusqlite::{Connection, OptionalExtension, params};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Jobs that may wait. Each sender waits for its answer before it sends again, so this bounds the runs of one process.
const QUEUE_JOBS: usize = 1_024;

/// Jobs in one commit.
const MAX_JOBS_IN_COMMIT: usize = 128;

/// How often the owner of a run says that it lives.
const HEARTBEAT_EVERY_MS: u64 = 5_000;

/// What a run's engine writes.
pub(super) enum Work {
    /// Records, encoded as one JSON array.
    Append {
        first_seq: u64,
        count: u64,
        at_ms: u64,
        json: Vec<u8>,
        taken: Option<u64>,
        status: Option<Status>,
    },
    /// Inputs for the inbox, each encoded, and where the run stands.
    Park { letters: Vec<String>, status: Status },
    /// Under which epoch the run holds a lock.
    NoteEpoch { key: String, epoch: u64 },
    /// The engine lets go of the run.
    Release,
    /// The engine has taken the run; only the heartbeat must know.
    Adopt,
}

/// One job.
pub(super) struct Job {
    /// Number of the run.
    pub(super) run_no: i64,
    /// Proof that the sender still owns it.
    pub(super) token: Arc<str>,
    /// Whether it must survive a power cut.
    pub(super) sync: bool,
    /// What to write.
    pub(super) work: Work,
    /// `Ok(false)`: the run belongs to someone else by now, nothing was written.
    pub(super) answer: oneshot::Sender<Result<bool, StoreError>>,
}

/// The sending end. The thread ends when the last one is gone.
#[derive(Clone)]
pub(super) struct Writer {
    jobs: SyncSender<Job>,
    path: Arc<Path>,
}

impl Writer {
    /// Starts the thread on a connection of its own.
    pub(super) fn start(path: &Path) -> Result<Self, StoreError> {
        let conn = schema::reopen(path)?;
        let (jobs, inbox) = sync_channel(QUEUE_JOBS);
        let owned: PathBuf = path.to_owned();
        std::thread::Builder::new()
            .name("cdpipe-journal".to_owned())
            .spawn(move || {
                Thread { conn, path: owned, full_sync: true, owned_runs: HashMap::new() }.serve(&inbox)
            })
            .map_err(|error| StoreError::Io { path: path.to_owned(), detail: error.to_string() })?;
        Ok(Self { jobs, path: path.into() })
    }

    /// Hands a job over. Never blocks for long: see `QUEUE_JOBS`.
    pub(super) fn send(&self, job: Job) -> Result<(), StoreError> {
        self.jobs.send(job).map_err(|_gone| StoreError::Closed { path: self.path.to_path_buf() })
    }
}

struct Thread {
    conn: Connection,
    path: PathBuf,
    full_sync: bool,
    owned_runs: HashMap<i64, Arc<str>>,
}

impl Thread {
    fn serve(&mut self, inbox: &Receiver<Job>) {
        let mut next_beat = Instant::now() + Duration::from_millis(HEARTBEAT_EVERY_MS);
        let mut jobs = Vec::new();
        loop {
            match inbox.recv_timeout(next_beat.saturating_duration_since(Instant::now())) {
                Ok(job) => {
                    jobs.push(job);
                    while jobs.len() < MAX_JOBS_IN_COMMIT
                        && let Ok(more) = inbox.try_recv()
                    {
                        jobs.push(more);
                    }
                    self.commit(&mut jobs);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if Instant::now() >= next_beat {
                self.beat();
                next_beat = Instant::now() + Duration::from_millis(HEARTBEAT_EVERY_MS);
            }
        }
    }

    fn commit(&mut self, jobs: &mut Vec<Job>) {
        let written = self.write(jobs).map_err(|error| {
            let error = StoreError::sqlite(&self.path, &error);
            tracing::error!(%error, "a batch was not written");
            // The error may have ended the transaction already; a commit that failed halfway must not stay open.
            let _ = self.conn.execute_batch("ROLLBACK");
            error
        });
        for (at, job) in jobs.drain(..).enumerate() {
            let answer = written.clone().map(|owned| owned.get(at).copied().unwrap_or(false));
            match (&answer, job.work) {
                (Ok(true), Work::Adopt) => {
                    self.owned_runs.insert(job.run_no, job.token);
                }
                (Ok(true), Work::Release) => {
                    self.owned_runs.remove(&job.run_no);
                }
                _ => {}
            }
            // Who no longer waits for the answer doesn't act on it either.
            let _ = job.answer.send(answer);
        }
    }

    /// Answers for each job whether its sender owned the run.
    fn write(&mut self, jobs: &[Job]) -> Result<Vec<bool>, rusqlite::Error> {
        // The level can't be changed inside a transaction; see `schema` for what it means.
        let sync = jobs.iter().any(|job| job.sync);
        if sync != self.full_sync {
            self.conn.pragma_update(None, "synchronous", if sync { "FULL" } else { "NORMAL" })?;
            self.full_sync = sync;
        }
        self.conn.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        let owned = jobs.iter().map(|job| self.write_one(job)).collect::<Result<Vec<bool>, _>>()?;
        self.conn.prepare_cached("COMMIT")?.execute([])?;
        Ok(owned)
    }

    fn write_one(&self, job: &Job) -> Result<bool, rusqlite::Error> {
        let conn = &self.conn;
        let owner: Option<bool> = conn
            .prepare_cached("SELECT token = ?2 FROM owners WHERE run = ?1")?
            .query_row(params![job.run_no, &*job.token], |row| row.get(0))
            .optional()?;
        if owner != Some(true) {
            return Ok(false);
        }
        match &job.work {
            Work::Append { first_seq, count, at_ms, json, taken, status } => {
                conn.prepare_cached("INSERT INTO batches (pos, count, at_ms, json) VALUES (?1, ?2, ?3, ?4)")?
                    .execute(params![position(job.run_no, *first_seq), count, at_ms, json])?;
                if let Some(taken) = taken {
                    conn.prepare_cached("DELETE FROM inbox WHERE run = ?1 AND id <= ?2")?
                        .execute(params![job.run_no, taken])?;
                }
                if let Some(status) = status {
                    set_status(conn, job.run_no, status)?;
                }
            }
            Work::Park { letters, status } => {
                for letter in letters {
                    conn.prepare_cached("INSERT INTO inbox (run, json) VALUES (?1, ?2)")?
                        .execute(params![job.run_no, letter])?;
                }
                set_status(conn, job.run_no, status)?;
            }
            Work::NoteEpoch { key, epoch } => {
                conn.prepare_cached("INSERT OR REPLACE INTO epochs (run, key, epoch) VALUES (?1, ?2, ?3)")?
                    .execute(params![job.run_no, key, epoch])?;
            }
            Work::Release => {
                conn.prepare_cached("DELETE FROM owners WHERE run = ?1")?.execute([job.run_no])?;
            }
            Work::Adopt => {}
        }
        Ok(true)
    }

    fn beat(&self) {
        for (run_no, token) in &self.owned_runs {
            let beaten = self.conn.execute(
                "UPDATE owners SET heartbeat_ms = ?3 WHERE run = ?1 AND token = ?2",
                params![run_no, &**token, wall_ms()],
            );
            if let Err(error) = beaten {
                // The next append finds out for itself; a missed beat only matters to owners on other hosts.
                tracing::warn!(%error, run_no, "the heartbeat of a run was not written");
            }
        }
    }
}

/// Key of the batch that begins with this record.
pub(super) fn position(run_no: i64, seq: u64) -> i64 {
    (run_no << SEQ_BITS) | i64::try_from(seq).unwrap_or(i64::MAX)
}

/// Writes where a run stands.
pub(super) fn set_status(conn: &Connection, run_no: i64, status: &Status) -> Result<(), rusqlite::Error> {
    let (outcome, ended_at_ms, waiting) = match status {
        Status::Running | Status::Interrupted | Status::Abandoned => (None, None, None),
        Status::Suspended { waiting } => (None, None, Some(waiting.as_str())),
        Status::Finished { outcome, at_ms } => (Some(outcome.as_str()), Some(*at_ms), None),
    };
    conn.prepare_cached(
        "UPDATE runs SET status = ?2, outcome = ?3, ended_at_ms = ?4, waiting = ?5 WHERE no = ?1",
    )?
    .execute(params![run_no, status.as_str(), outcome, ended_at_ms, waiting])?;
    if matches!(status, Status::Finished { .. } | Status::Abandoned) {
        conn.prepare_cached("DELETE FROM epochs WHERE run = ?1")?.execute([run_no])?;
    }
    Ok(())
}
