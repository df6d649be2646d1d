//! Named locks as rows of the database.

use super::Store;
use super::error::StoreError;
use super::process::{Process, wall_ms};
use crate::locks::{NamedLocks, QUEUE_SILENCE_MS, locked};
use cdpipe_model::ports::{BoxFuture, LockOwner, LockState, PortResult};
use cdpipe_model::{Fault, RunId};
use rusqlite::{Connection, OptionalExtension, params};
use std::sync::Arc;

/// A named lock that is held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedLockState {
    /// Its name.
    pub name: String,
    /// By whom, since and until when.
    pub state: LockState,
    /// Whether the process that took it lives.
    pub owner_alive: bool,
}

/// What `unlock_named` did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unlocked {
    /// Nobody held it.
    WasFree,
    /// It was taken from this dead owner.
    Freed(LockState),
    /// Its owner lives: nothing was done.
    OwnerLives(LockState),
}

impl NamedLocks for Arc<Store> {
    fn line_up<'a>(&'a self, name: &'a str, owner: &'a LockOwner) -> PortResult<'a, Option<LockOwner>> {
        let (name, owner) = (name.to_owned(), owner.clone());
        self.off_thread(move |store| store.line_up_now(&name, &owner))
    }

    fn leave<'a>(&'a self, name: &'a str, owner: &'a LockOwner) -> BoxFuture<'a, ()> {
        let (name, run) = (name.to_owned(), owner.run.clone());
        let left = self.off_thread(move |store| store.leave_line_now(&name, &run));
        // If it can't be written we are out of the line after `QUEUE_SILENCE_MS` all the same.
        Box::pin(async move {
            let _ = left.await;
        })
    }

    fn acquire<'a>(&'a self, name: &'a str, owner: &'a LockOwner, lease_ms: u64) -> PortResult<'a, u64> {
        let (name, owner) = (name.to_owned(), owner.clone());
        let taken = self.off_thread(move |store| store.acquire_now(&name, &owner, lease_ms));
        Box::pin(async move { taken.await? })
    }

    fn release<'a>(&'a self, name: &'a str, owner: &'a LockOwner) -> PortResult<'a, ()> {
        let (name, run) = (name.to_owned(), owner.run.clone());
        self.off_thread(move |store| {
            store.transaction(|conn| {
                conn.execute(
                    "UPDATE locks SET run = NULL WHERE name = ?1 AND run = ?2",
                    params![name, run.as_str()],
                )
                .map(|_rows| ())
                .map_err(|error| store.fault(&error))
            })
        })
    }
}

impl Store {
    /// Writes to the database may sync, which would hold up everything else on this thread.
    fn off_thread<T: Send + 'static>(
        self: &Arc<Self>,
        body: impl FnOnce(&Store) -> Result<T, StoreError> + Send + 'static,
    ) -> PortResult<'static, T> {
        let store = Arc::clone(self);
        Box::pin(async move {
            match tokio::task::spawn_blocking(move || body(&store)).await {
                Ok(answer) => answer.map_err(Fault::from),
                Err(error) => Err(Fault::new("internal", format!("the lock table was not asked: {error}"))),
            }
        })
    }

    /// As `NamedLocks::line_up`, on this thread.
    ///
    /// # Errors
    /// If the state can't be written.
    pub fn line_up_now(&self, name: &str, owner: &LockOwner) -> Result<Option<LockOwner>, StoreError> {
        let now_ms = wall_ms();
        self.transaction(|conn| {
            let work = || -> Result<Option<LockOwner>, rusqlite::Error> {
                conn.execute(
                    "DELETE FROM lock_queue WHERE name = ?1 AND (seen_ms < ?2 OR seen_ms > ?3)",
                    // One from the future is of a clock that was set back since.
                    params![name, now_ms.saturating_sub(QUEUE_SILENCE_MS), now_ms + QUEUE_SILENCE_MS],
                )?;
                conn.execute(
                    "INSERT INTO lock_queue (name, run, who, seen_ms) VALUES (?1, ?2, ?3, ?4)
                     ON CONFLICT (name, run) DO UPDATE SET seen_ms = ?4",
                    params![name, owner.run.as_str(), owner.who, now_ms],
                )?;
                conn.query_row(
                    "SELECT run, who FROM lock_queue WHERE name = ?1 ORDER BY ticket LIMIT 1",
                    [name],
                    |row| Ok(LockOwner { run: RunId(row.get(0)?), who: row.get(1)?, pid: 0 }),
                )
                .optional()
            };
            work().map_err(|error| self.fault(&error))
        })
        .map(|first| first.filter(|first| first.run != owner.run))
    }

    /// As `NamedLocks::leave`, on this thread.
    ///
    /// # Errors
    /// If the state can't be written; then it is out of the line after `QUEUE_SILENCE_MS`.
    pub fn leave_line_now(&self, name: &str, run: &RunId) -> Result<(), StoreError> {
        self.transaction(|conn| {
            conn.execute("DELETE FROM lock_queue WHERE name = ?1 AND run = ?2", params![name, run.as_str()])
                .map(|_rows| ())
                .map_err(|error| self.fault(&error))
        })
    }

    /// Who waits in which line, each in the order of those who wait. The name of a line is what `line_up` was given: `name/LOCK`,
    /// `service/ENVIRONMENT/SERVICE`, `pipeline/FILE`.
    ///
    /// # Errors
    /// If the state can't be read.
    pub fn waiting(&self) -> Result<Vec<(String, LockOwner)>, StoreError> {
        let since_ms = wall_ms().saturating_sub(QUEUE_SILENCE_MS);
        let conn = self.conn();
        let read = || -> Result<Vec<(String, LockOwner)>, rusqlite::Error> {
            conn.prepare_cached(
                "SELECT name, run, who FROM lock_queue WHERE seen_ms >= ?1 ORDER BY name, ticket",
            )?
            .query_map([since_ms], |row| {
                Ok((row.get(0)?, LockOwner { run: RunId(row.get(1)?), who: row.get(2)?, pid: 0 }))
            })?
            .collect()
        };
        read().map_err(|error| self.fault(&error))
    }

    fn acquire_now(
        &self,
        name: &str,
        owner: &LockOwner,
        lease_ms: u64,
    ) -> Result<Result<u64, Fault>, StoreError> {
        let now_ms = wall_ms();
        let process = serde_json::to_string(&Process::current()).unwrap_or_default();
        self.transaction(|conn| {
            let fault = |error: rusqlite::Error| self.fault(&error);
            let held = lock_row(conn, name).map_err(fault)?;
            if let Some(held) = &held
                && let Some(state) = &held.state
                && state.owner.run != owner.run
                && state.expires_ms > now_ms
            {
                return Ok(Err(locked(
                    name,
                    &state.owner.who,
                    state.owner.run.as_str(),
                    state.since_ms,
                    now_ms,
                )));
            }
            let ours = held
                .as_ref()
                .and_then(|row| row.state.as_ref())
                .filter(|state| state.owner.run == owner.run && state.expires_ms > now_ms);
            let epoch = held.as_ref().map_or(0, |row| row.epoch) + u64::from(ours.is_none());
            let since_ms = ours.map_or(now_ms, |state| state.since_ms);
            conn.execute(
                "INSERT INTO locks (name, run, who, process, since_ms, expires_ms, epoch)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
                 ON CONFLICT (name) DO UPDATE SET
                    run = ?2, who = ?3, process = ?4, since_ms = ?5, expires_ms = ?6, epoch = ?7",
                params![name, owner.run.as_str(), owner.who, process, since_ms, now_ms + lease_ms, epoch],
            )
            .map_err(fault)?;
            Ok(Ok(epoch))
        })
    }

    /// Named locks that are held, by name.
    ///
    /// # Errors
    /// If the state can't be read.
    pub fn named_locks(&self) -> Result<Vec<NamedLockState>, StoreError> {
        let now_ms = wall_ms();
        let conn = self.conn();
        let names = || -> Result<Vec<String>, rusqlite::Error> {
            conn.prepare_cached(
                "SELECT name FROM locks WHERE run IS NOT NULL AND expires_ms > ?1 ORDER BY name",
            )?
            .query_map([now_ms], |row| row.get(0))?
            .collect()
        };
        let mut locks = Vec::new();
        for name in names().map_err(|error| self.fault(&error))? {
            if let Some(row) = lock_row(&conn, &name).map_err(|error| self.fault(&error))?
                && let Some(state) = row.state
            {
                locks.push(NamedLockState { name, state, owner_alive: row.owner_alive });
            }
        }
        Ok(locks)
    }

    /// Frees a named lock whose owner is dead.
    ///
    /// # Errors
    /// If the state can't be written.
    pub fn unlock_named(&self, name: &str) -> Result<Unlocked, StoreError> {
        let now_ms = wall_ms();
        self.transaction(|conn| {
            let fault = |error: rusqlite::Error| self.fault(&error);
            let row = lock_row(conn, name).map_err(fault)?;
            let Some((state, owner_alive)) = row.and_then(|row| Some((row.state?, row.owner_alive))) else {
                return Ok(Unlocked::WasFree);
            };
            if state.expires_ms <= now_ms {
                return Ok(Unlocked::WasFree);
            }
            if owner_alive {
                return Ok(Unlocked::OwnerLives(state));
            }
            conn.execute("UPDATE locks SET run = NULL WHERE name = ?1", [name]).map_err(fault)?;
            Ok(Unlocked::Freed(state))
        })
    }
}

struct LockRow {
    state: Option<LockState>,
    epoch: u64,
    owner_alive: bool,
}

fn lock_row(conn: &Connection, name: &str) -> Result<Option<LockRow>, rusqlite::Error> {
    conn.prepare_cached("SELECT run, who, process, since_ms, expires_ms, epoch FROM locks WHERE name = ?1")?
        .query_row([name], |row| {
            let run: Option<String> = row.get(0)?;
            let process: String = row.get(2)?;
            let process: Option<Process> = serde_json::from_str(&process).ok();
            let epoch = row.get(5)?;
            let (since_ms, expires_ms) = (row.get(3)?, row.get(4)?);
            let who = row.get(1)?;
            Ok(LockRow {
                epoch,
                owner_alive: process.as_ref().is_some_and(|process| process.is_alive(since_ms, wall_ms())),
                state: run.map(|run| LockState {
                    owner: LockOwner {
                        run: RunId(run),
                        who,
                        pid: process.as_ref().map_or(0, |process| process.pid),
                    },
                    since_ms,
                    expires_ms,
                    epoch,
                }),
            })
        })
        .optional()
}
