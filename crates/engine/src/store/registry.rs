//! All runs of a project: what other processes see of them and ask of them.

use super::Store;
use super::error::StoreError;
use super::process::{Process, wall_ms};
use super::run::{living_owner, run_no};
use super::writer::set_status;
use crate::journal::Status;
use cdpipe_model::record::{Record, Signal};
use cdpipe_model::{Outcome, RunId};
use rusqlite::{OptionalExtension, Row, params};

/// The process that drives a run, or did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// Which.
    pub process: Process,
    /// When it last said so, milliseconds since 1970.
    pub heartbeat_ms: u64,
    /// Whether it lives.
    pub alive: bool,
}

/// What is going on with a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunState {
    /// An engine drives it.
    Running,
    /// Its engine is gone: killed, or the machine stopped. It can be resumed.
    Crashed,
    /// It was stopped by a person between two steps. It can be resumed.
    Interrupted,
    /// It waits for a person and can be resumed.
    Suspended {
        /// What it waits for.
        waiting: String,
    },
    /// It ended.
    Finished(Outcome),
    /// It was given up unfinished.
    Abandoned,
}

impl RunState {
    /// Stable word.
    pub fn as_str(&self) -> &'static str {
        match self {
            RunState::Running => "running",
            RunState::Crashed => "crashed",
            RunState::Interrupted => "interrupted",
            RunState::Suspended { .. } => "suspended",
            RunState::Finished(outcome) => outcome.as_str(),
            RunState::Abandoned => "abandoned",
        }
    }

    /// Whether `resume` can go on with it.
    pub fn is_resumable(&self) -> bool {
        matches!(self, RunState::Crashed | RunState::Interrupted | RunState::Suspended { .. })
    }

    /// Whether it is neither finished nor given up.
    pub fn is_unfinished(&self) -> bool {
        *self == RunState::Running || self.is_resumable()
    }
}

/// A run in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunSummary {
    /// Which.
    pub run: RunId,
    /// Absolute path of the pipeline's file.
    pub file: String,
    /// The pipeline's name.
    pub pipeline: String,
    /// Hash of the plan.
    pub plan_hash: String,
    /// `user@host`.
    pub started_by: String,
    /// Milliseconds since 1970.
    pub started_at_ms: u64,
    /// Milliseconds since 1970, once it has ended.
    pub ended_at_ms: Option<u64>,
    /// What is going on.
    pub state: RunState,
    /// Who drives it, or did when it died.
    pub owner: Option<Owner>,
    /// Whether only this summary was kept.
    pub pruned: bool,
}

const COLUMNS: &str = "runs.id, file, pipeline, plan_hash, started_by, started_at_ms, ended_at_ms, status, outcome, waiting, pruned,
    owners.process, owners.heartbeat_ms FROM runs LEFT JOIN owners ON owners.run = runs.no";

impl Store {
    /// The newest runs, newest first.
    ///
    /// # Errors
    /// If the state can't be read.
    pub fn runs(&self, limit: u32) -> Result<Vec<RunSummary>, StoreError> {
        self.summaries(&format!("SELECT {COLUMNS} ORDER BY no DESC LIMIT ?1"), &[&limit])
    }

    /// The run of this id.
    ///
    /// # Errors
    /// `UnknownRun`, or if the state can't be read.
    pub fn run(&self, run: &RunId) -> Result<RunSummary, StoreError> {
        self.summaries(&format!("SELECT {COLUMNS} WHERE runs.id = ?1"), &[&run.as_str()])?
            .pop()
            .ok_or_else(|| self.unknown(run))
    }

    /// Runs of this pipeline file that are neither finished nor given up, newest first.
    ///
    /// # Errors
    /// If the state can't be read.
    pub fn unfinished_of(&self, file: &str) -> Result<Vec<RunSummary>, StoreError> {
        self.summaries(
            &format!(
                "SELECT {COLUMNS} WHERE file = ?1 AND status NOT IN ('finished', 'abandoned') ORDER BY no DESC LIMIT 1000"
            ),
            &[&file],
        )
    }

    /// All runs that are neither finished nor given up, newest first; at most 1,000.
    ///
    /// # Errors
    /// If the state can't be read.
    pub fn unfinished(&self) -> Result<Vec<RunSummary>, StoreError> {
        self.summaries(
            &format!(
                "SELECT {COLUMNS} WHERE status NOT IN ('finished', 'abandoned') ORDER BY no DESC LIMIT 1000"
            ),
            &[],
        )
    }

    /// Runs whose id begins or ends with this text, newest first; at most 20. For people who type a few letters of it.
    ///
    /// # Errors
    /// If the state can't be read.
    pub fn runs_like(&self, part: &str) -> Result<Vec<RunSummary>, StoreError> {
        self.summaries(
            &format!(
                "SELECT {COLUMNS} WHERE substr(runs.id, 1, length(?1)) = ?1 OR substr(runs.id, -length(?1)) = ?1
                 ORDER BY no DESC LIMIT 20"
            ),
            &[&part],
        )
    }

    fn summaries(&self, sql: &str, values: &[&dyn rusqlite::ToSql]) -> Result<Vec<RunSummary>, StoreError> {
        let now_ms = wall_ms();
        let conn = self.conn();
        let read = || -> Result<Vec<RunSummary>, rusqlite::Error> {
            conn.prepare_cached(sql)?.query_map(values, |row| summary(row, now_ms))?.collect()
        };
        read().map_err(|error| self.fault(&error))
    }

    /// Asks something of a run. It is taken by the engine that drives it, or by the one that resumes it. Answers whether an engine drives
    /// it now.
    ///
    /// # Errors
    /// `UnknownRun`, `Over`, or if the state can't be written.
    pub fn send(&self, run: &RunId, signal: Signal) -> Result<bool, StoreError> {
        let letter =
            serde_json::to_string(&Record::Signalled { at_ms: wall_ms(), signal }).map_err(|error| {
                StoreError::Unreadable { run: run.clone(), seq: 0, detail: error.to_string() }
            })?;
        self.transaction(|conn| {
            let fault = |error: rusqlite::Error| self.fault(&error);
            let run_no = self.unfinished_no(conn, run)?;
            conn.execute("INSERT INTO inbox (run, json) VALUES (?1, ?2)", params![run_no, letter])
                .map_err(fault)?;
            Ok(living_owner(conn, run_no).map_err(fault)?.is_some())
        })
    }

    /// Lets a run that has ended go on, with this signal as the first thing that it hears: a stage is tried again, or a rollback that
    /// failed. It is interrupted then, and can be resumed. A run that succeeded or was given up stays as it is.
    ///
    /// # Errors
    /// `UnknownRun`; `Over` if it can't go on; `Pruned`; or if the state can't be written.
    pub fn reopen(&self, run: &RunId, signal: Signal) -> Result<(), StoreError> {
        let letter =
            serde_json::to_string(&Record::Signalled { at_ms: wall_ms(), signal }).map_err(|error| {
                StoreError::Unreadable { run: run.clone(), seq: 0, detail: error.to_string() }
            })?;
        self.transaction(|conn| {
            let fault = |error: rusqlite::Error| self.fault(&error);
            let found: Option<(i64, String, Option<String>, bool)> = conn
                .query_row(
                    "SELECT no, status, outcome, pruned FROM runs WHERE id = ?1",
                    [run.as_str()],
                    |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)),
                )
                .optional()
                .map_err(fault)?;
            let (run_no, status, outcome, pruned) = found.ok_or_else(|| self.unknown(run))?;
            if pruned {
                return Err(StoreError::Pruned { run: run.clone() });
            }
            if status != "finished" || outcome.as_deref() == Some(Outcome::Succeeded.as_str()) {
                return Err(StoreError::Over { run: run.clone(), status: outcome.unwrap_or(status) });
            }
            set_status(conn, run_no, &Status::Interrupted).map_err(fault)?;
            conn.execute("INSERT INTO inbox (run, json) VALUES (?1, ?2)", params![run_no, letter])
                .map(|_rows| ())
                .map_err(fault)
        })
    }

    /// The newest run of this pipeline file.
    ///
    /// # Errors
    /// If the state can't be read.
    pub fn newest_of(&self, file: &str) -> Result<Option<RunSummary>, StoreError> {
        let sql = format!("SELECT {COLUMNS} WHERE file = ?1 ORDER BY no DESC LIMIT 1");
        Ok(self.summaries(&sql, &[&file])?.pop())
    }

    /// Gives an unfinished run up. What it did stays as it is; its named locks are free.
    ///
    /// # Errors
    /// `UnknownRun`, `Over`, or `Owned` while an engine drives it: cancel it instead.
    pub fn abandon(&self, run: &RunId) -> Result<(), StoreError> {
        self.transaction(|conn| {
            let fault = |error: rusqlite::Error| self.fault(&error);
            let run_no = self.unfinished_no(conn, run)?;
            if let Some(by) = living_owner(conn, run_no).map_err(fault)? {
                return Err(StoreError::Owned { run: run.clone(), by: by.to_string() });
            }
            set_status(conn, run_no, &Status::Abandoned).map_err(fault)?;
            let write = || -> Result<(), rusqlite::Error> {
                conn.execute("UPDATE runs SET ended_at_ms = ?2 WHERE no = ?1", params![run_no, wall_ms()])?;
                conn.execute("DELETE FROM owners WHERE run = ?1", [run_no])?;
                conn.execute("DELETE FROM inbox WHERE run = ?1", [run_no])?;
                conn.execute("UPDATE locks SET run = NULL WHERE run = ?1", [run.as_str()])?;
                conn.execute("DELETE FROM lock_queue WHERE run = ?1", [run.as_str()])?;
                Ok(())
            };
            write().map_err(fault)
        })
    }

    /// Records in the journal of a run.
    ///
    /// # Errors
    /// `UnknownRun`, or if the state can't be read.
    pub fn record_count(&self, run: &RunId) -> Result<u64, StoreError> {
        let conn = self.conn();
        let fault = |error: rusqlite::Error| self.fault(&error);
        let run_no = run_no(&conn, run).map_err(fault)?.ok_or_else(|| self.unknown(run))?;
        let (first, end) = (super::writer::position(run_no, 0), super::writer::position(run_no + 1, 0));
        conn.query_row(
            "SELECT coalesce(max(pos - ?1 + count - 1), 0) FROM batches WHERE pos >= ?1 AND pos < ?2",
            [first, end],
            |row| row.get(0),
        )
        .map_err(fault)
    }
}

fn summary(row: &Row<'_>, now_ms: u64) -> Result<RunSummary, rusqlite::Error> {
    let process: Option<String> = row.get(11)?;
    let heartbeat_ms: Option<u64> = row.get(12)?;
    let owner = process.zip(heartbeat_ms).and_then(|(json, heartbeat_ms)| {
        let process: Process = serde_json::from_str(&json).ok()?;
        let alive = process.is_alive(heartbeat_ms, now_ms);
        Some(Owner { process, heartbeat_ms, alive })
    });
    let status: String = row.get(7)?;
    let outcome: Option<String> = row.get(8)?;
    let waiting: Option<String> = row.get(9)?;
    let driven = owner.as_ref().is_some_and(|owner| owner.alive);
    let state = match status.as_str() {
        "finished" => {
            RunState::Finished(outcome.as_deref().and_then(Outcome::parse).unwrap_or(Outcome::Failed))
        }
        "abandoned" => RunState::Abandoned,
        _ if driven => RunState::Running,
        "suspended" => RunState::Suspended { waiting: waiting.unwrap_or_default() },
        "interrupted" => RunState::Interrupted,
        _ => RunState::Crashed,
    };
    Ok(RunSummary {
        run: RunId(row.get(0)?),
        file: row.get(1)?,
        pipeline: row.get(2)?,
        plan_hash: row.get(3)?,
        started_by: row.get(4)?,
        started_at_ms: row.get(5)?,
        ended_at_ms: row.get(6)?,
        state,
        owner,
        pruned: row.get(10)?,
    })
}
