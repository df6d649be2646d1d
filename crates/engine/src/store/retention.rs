//! How much of the past is kept. Unfinished runs are never pruned.

use super::Store;
use super::error::StoreError;
use super::writer::position;
use cdpipe_model::RunId;
use rusqlite::{Connection, params};

/// What is kept of runs that are over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Runs whose journal and output are kept; of older ones the summary stays.
    pub journals: u64,
    /// Size of the database beyond which the oldest journals go too.
    pub max_bytes: u64,
    /// Runs whose summary is kept.
    pub summaries: u64,
}

impl Default for Retention {
    fn default() -> Self {
        Self { journals: 200, max_bytes: 1 << 30, summaries: 10_000 }
    }
}

/// Runs that one call prunes at most, so that a start never waits long for it; the next one goes on.
const RUNS_AT_ONCE: u64 = 20;

/// Pages given back to the file system in one call.
const PAGES_AT_ONCE: u64 = 20_000;

/// What was pruned.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Runs whose journal and output went.
    pub journals: Vec<RunId>,
    /// How many summaries went.
    pub summaries: u64,
}

impl Store {
    /// Removes journals, outputs and summaries of the oldest finished runs beyond these bounds, some at a time.
    ///
    /// # Errors
    /// If the state can't be written.
    pub fn prune(&self, retention: &Retention) -> Result<Pruned, StoreError> {
        let fault = |error: rusqlite::Error| self.fault(&error);
        let over = self.surplus(retention).map_err(fault)?;
        let mut pruned = Pruned::default();
        if !over.is_empty() {
            self.transaction(|conn| {
                for (run_no, _) in &over {
                    forget_journal(conn, *run_no).map_err(fault)?;
                }
                Ok(())
            })?;
            for (_, run) in over {
                crate::output::remove(&self.log_dir(), &run);
                pruned.journals.push(run);
            }
            let conn = self.conn();
            let mut vacuum =
                conn.prepare(&format!("PRAGMA incremental_vacuum({PAGES_AT_ONCE})")).map_err(fault)?;
            let mut rows = vacuum.query([]).map_err(fault)?;
            // One step gives back one page.
            while rows.next().map_err(fault)?.is_some() {}
        }
        pruned.summaries = self.forget_summaries(retention.summaries).map_err(fault)? as u64;
        Ok(pruned)
    }

    /// Finished runs that have a journal too many, oldest first.
    fn surplus(&self, retention: &Retention) -> Result<Vec<(i64, RunId)>, rusqlite::Error> {
        let conn = self.conn();
        let kept: u64 = conn.query_row("SELECT count(*) FROM headers", [], |row| row.get(0))?;
        let pages: u64 = conn.query_row("PRAGMA page_count", [], |row| row.get(0))?;
        let free: u64 = conn.query_row("PRAGMA freelist_count", [], |row| row.get(0))?;
        let page_bytes: u64 = conn.query_row("PRAGMA page_size", [], |row| row.get(0))?;
        let mut surplus = kept.saturating_sub(retention.journals);
        if (pages - free) * page_bytes > retention.max_bytes {
            // Which runs are the large ones is not known without reading them, so a few of the oldest go at each start.
            surplus = surplus.max(kept.div_ceil(20));
        }
        conn.prepare(
            "SELECT no, id FROM runs WHERE status IN ('finished', 'abandoned') AND NOT pruned ORDER BY no LIMIT ?1",
        )?
        .query_map([surplus.min(RUNS_AT_ONCE)], |row| Ok((row.get(0)?, RunId(row.get(1)?))))?
        .collect()
    }

    fn forget_summaries(&self, keep: u64) -> Result<usize, rusqlite::Error> {
        let conn = self.conn();
        let runs: u64 = conn.query_row("SELECT count(*) FROM runs", [], |row| row.get(0))?;
        if runs <= keep {
            return Ok(0);
        }
        conn.execute(
            "DELETE FROM runs WHERE no IN (SELECT no FROM runs WHERE pruned ORDER BY no LIMIT ?1)",
            [(runs - keep).min(RUNS_AT_ONCE)],
        )
    }
}

fn forget_journal(conn: &Connection, run_no: i64) -> Result<(), rusqlite::Error> {
    conn.execute(
        "DELETE FROM batches WHERE pos >= ?1 AND pos < ?2",
        params![position(run_no, 0), position(run_no + 1, 0)],
    )?;
    conn.execute("DELETE FROM headers WHERE run = ?1", [run_no])?;
    conn.execute("DELETE FROM inbox WHERE run = ?1", [run_no])?;
    conn.execute("DELETE FROM owners WHERE run = ?1", [run_no])?;
    conn.execute("UPDATE runs SET pruned = 1 WHERE no = ?1", [run_no])?;
    Ok(())
}
