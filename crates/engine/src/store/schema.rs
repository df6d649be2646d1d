//! The database file: how it is opened, what its tables are, and how a file that is not ours, too new or damaged is told.
//!
//! What survives what (<https://sqlite.org/pragma.html#pragma_synchronous>, <https://sqlite.org/wal.html>):
//!
//! - WAL with `synchronous=NORMAL`: "no sync operations occur during most transactions"; the WAL is synced before each checkpoint.
//!   A commit is a write into the page cache of the kernel, so it survives `kill -9` of this process, and not a power cut. The
//!   database stays consistent either way: after a power cut it is as it was after some earlier commit.
//! - WAL with `synchronous=FULL`: "an additional sync operation of the WAL file happens after each transaction commit", so the
//!   commit survives a power cut. The sync is of the whole WAL file: every earlier NORMAL commit survives with it (one that has
//!   been checkpointed out of the WAL was synced by the checkpoint). The order of the journal is therefore kept: there is no later
//!   record on disk without the earlier ones.
//! - The level is a property of the connection and cannot be changed inside a transaction: the writer changes it before `BEGIN`.
//!
//! So a batch with the intent of an effect on a target is committed with FULL, everything else with NORMAL.

use super::error::StoreError;
use rusqlite::{Connection, OpenFlags};
use std::path::Path;
use std::time::{Duration, Instant};

/// Version of the tables; `PRAGMA user_version`. A newer one is refused, an older one is brought up to it.
pub(super) const SCHEMA_VERSION: i64 = TABLES.len() as i64;

/// `PRAGMA application_id`, "cdpi": tells our file from any other SQLite database.
const APPLICATION_ID: i64 = 0x6364_7069;

/// How long a statement waits for another process that writes.
const BUSY_TIMEOUT_MS: u64 = 10_000;

/// Pages in the WAL after which it is written back into the database: 16 MiB. Larger than SQLite's default of 1,000 pages because each
/// checkpoint syncs, and a run of thousands of small commits would pay for thirty of them.
const CHECKPOINT_PAGES: i64 = 4_000;

/// `batches.pos` is the run's number and the sequence number of the batch's first record in one integer key: the journal of a run is
/// one range of one b-tree, and appending touches its right edge only.
pub(super) const SEQ_BITS: u32 = 40;

/// What brings the tables from each version to the next one, from an empty file on. Only ever added to.
const TABLES: [&str; 2] = [
    "
CREATE TABLE runs (
    no            INTEGER PRIMARY KEY AUTOINCREMENT,
    id            TEXT NOT NULL UNIQUE,
    file          TEXT NOT NULL,
    pipeline      TEXT NOT NULL,
    plan_hash     TEXT NOT NULL,
    started_by    TEXT NOT NULL,
    started_at_ms INTEGER NOT NULL,
    ended_at_ms   INTEGER,
    status        TEXT NOT NULL,
    outcome       TEXT,
    waiting       TEXT,
    pruned        INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX runs_by_file ON runs (file, no);
CREATE TABLE headers (run INTEGER PRIMARY KEY, json BLOB NOT NULL);
CREATE TABLE batches (
    pos   INTEGER PRIMARY KEY,
    count INTEGER NOT NULL,
    at_ms INTEGER NOT NULL,
    json  BLOB NOT NULL
);
CREATE TABLE inbox (
    id    INTEGER PRIMARY KEY AUTOINCREMENT,
    run   INTEGER NOT NULL,
    json  TEXT NOT NULL
);
CREATE INDEX inbox_by_run ON inbox (run, id);
CREATE TABLE owners (
    run          INTEGER PRIMARY KEY,
    token        TEXT NOT NULL,
    process      TEXT NOT NULL,
    heartbeat_ms INTEGER NOT NULL
);
CREATE TABLE locks (
    name       TEXT PRIMARY KEY,
    run        TEXT,
    who        TEXT NOT NULL,
    process    TEXT NOT NULL,
    since_ms   INTEGER NOT NULL,
    expires_ms INTEGER NOT NULL,
    epoch      INTEGER NOT NULL
);
CREATE TABLE lock_queue (
    ticket  INTEGER PRIMARY KEY AUTOINCREMENT,
    name    TEXT NOT NULL,
    run     TEXT NOT NULL,
    who     TEXT NOT NULL,
    seen_ms INTEGER NOT NULL,
    UNIQUE (name, run)
);
",
    "
CREATE TABLE epochs (
    run   INTEGER NOT NULL,
    key   TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    PRIMARY KEY (run, key)
) WITHOUT ROWID;
",
];

/// Opens the database, making it if `create` says so and it is not there.
pub(super) fn open(path: &Path, create: bool) -> Result<Connection, StoreError> {
    let mut flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    if create {
        flags |= OpenFlags::SQLITE_OPEN_CREATE;
    }
    let conn = Connection::open_with_flags(path, flags).map_err(|error| StoreError::sqlite(path, &error))?;
    conn.busy_timeout(Duration::from_millis(BUSY_TIMEOUT_MS))
        .map_err(|error| StoreError::sqlite(path, &error))?;
    // Look before touching anything: a file of a newer cdpipe, or of somebody else, stays as it is. In one transaction, or another
    // process could make the tables between two of the looks.
    let look = conn.unchecked_transaction().map_err(|error| StoreError::sqlite(path, &error))?;
    let version = version(&conn, path)?;
    look.finish().map_err(|error| StoreError::sqlite(path, &error))?;
    if version < SCHEMA_VERSION {
        make(&conn, path, version)?;
    }
    settle(&conn).map_err(|error| StoreError::sqlite(path, &error))?;
    Ok(conn)
}

/// Opens another connection to a database that `open` has seen.
pub(super) fn reopen(path: &Path) -> Result<Connection, StoreError> {
    open(path, false)
}

/// Version of the tables; 0 for an empty file. Inside a transaction of the caller.
fn version(conn: &Connection, path: &Path) -> Result<i64, StoreError> {
    let number = |pragma: &str| -> Result<i64, StoreError> {
        conn.query_row(&format!("PRAGMA {pragma}"), [], |row| row.get(0))
            .map_err(|error| StoreError::sqlite(path, &error))
    };
    let version = number("user_version")?;
    let application = number("application_id")?;
    if version == 0 && application == 0 {
        let tables: i64 = conn
            .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
            .map_err(|error| StoreError::sqlite(path, &error))?;
        return if tables == 0 { Ok(0) } else { Err(StoreError::NotOurs { path: path.to_owned() }) };
    }
    if application != APPLICATION_ID {
        return Err(StoreError::NotOurs { path: path.to_owned() });
    }
    if version > SCHEMA_VERSION {
        return Err(StoreError::Newer { path: path.to_owned(), found: version, supported: SCHEMA_VERSION });
    }
    Ok(version)
}

fn make(conn: &Connection, path: &Path, found: i64) -> Result<(), StoreError> {
    let fault = |error: rusqlite::Error| StoreError::sqlite(path, &error);
    if found == 0 {
        prepare_empty(conn).map_err(fault)?;
    }
    conn.execute_batch("BEGIN IMMEDIATE").map_err(fault)?;
    let made = version(conn, path).and_then(|found| {
        let missing = TABLES.iter().skip(usize::try_from(found).unwrap_or(0));
        let mut work = missing.map(|tables| conn.execute_batch(tables));
        work.try_for_each(|done| done)
            .and_then(|()| conn.pragma_update(None, "application_id", APPLICATION_ID))
            .and_then(|()| conn.pragma_update(None, "user_version", SCHEMA_VERSION))
            .map_err(fault)
    });
    match made {
        Ok(()) => conn.execute_batch("COMMIT").map_err(fault),
        Err(error) => {
            // The file stays as it was; what matters to the user is the first error.
            let _ = conn.execute_batch("ROLLBACK");
            Err(error)
        }
    }
}

/// Both must come before the first table. Going to WAL needs the file for itself for a moment and does not wait for it, so of two
/// processes that start at once one tries again.
fn prepare_empty(conn: &Connection) -> Result<(), rusqlite::Error> {
    let give_up = Instant::now() + Duration::from_millis(BUSY_TIMEOUT_MS);
    loop {
        match conn.execute_batch("PRAGMA auto_vacuum=INCREMENTAL; PRAGMA journal_mode=WAL;") {
            Err(error) if is_busy(&error) && Instant::now() < give_up => {
                std::thread::sleep(Duration::from_millis(10));
            }
            done => return done,
        }
    }
}

fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DatabaseLocked)
    )
}

fn settle(conn: &Connection) -> Result<(), rusqlite::Error> {
    conn.pragma_update(None, "synchronous", "FULL")?;
    conn.pragma_update(None, "temp_store", "MEMORY")?;
    // These two answer with the value that is now in force.
    conn.query_row(&format!("PRAGMA wal_autocheckpoint={CHECKPOINT_PAGES}"), [], |_| Ok(()))?;
    conn.query_row("PRAGMA journal_size_limit=33554432", [], |_| Ok(()))
}
